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


def give_back() -> None:
    """Give the free pages of the heap to the system, wherever they lie: the next tensors may not fit between them."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
