"""The C library's heap: keep what is freed, give back what does not fit."""
import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8                         # of mallopt(3): bytes, blocks, heaps


# ------------------------------------------------------------------------------------------------------- the memory


def keep_memory() -> None:
    """Tell the C library to keep what is freed, in one heap: every update asks for the same large tensors again.

    By default glibc gives them back to the system, which hands out fresh pages, one fault and 4 kB of zeros at a time,
    and the threads that draw masks have heaps of their own.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):              # another C library: nothing to tell
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_ARENA_MAX, 1)


class Heap:
    """The heap of a run, whose batches grow at first: a new largest one may not fit between what is freed."""

    def __init__(self) -> None:
        self.largest, self.grown = 0, False        # pieces of a batch so far; whether the last batch set this record

    def settles(self, pieces: int) -> bool:
        """Whether the heap is still settling: this batch or the one before is larger than all that came earlier."""
        before, self.grown, self.largest = self.grown, pieces > self.largest, max(pieces, self.largest)
        return before or self.grown

    def give_back(self) -> None:
        """Give the free pages of the heap to the system, wherever they lie."""
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
