"""SIGTERM and Ctrl-C as a request: the update in hand is finished, the run is saved, and then it ends."""
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

STOPPED = 75                                       # exit code: not finished, nothing lost, --resume goes on


class Stopped(BaseException):
    """The run ends here because it was asked to; the text says what asked. No `except Exception` holds it up."""


@contextlib.contextmanager
def nothing_begun(then: str) -> Iterator[None]:
    """Within it SIGTERM raises Stopped at once, and one line says that no update was made yet, and what to do `then`.

    Ctrl-C ends as Python has it. Several processes wait for each other where no handler is heard: there, as in another
    thread than the main one, SIGTERM is left alone.
    """
    def ask(number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number).name)

    if os.environ.get("WORLD_SIZE", "1") != "1" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    except Stopped as e:
        with contextlib.suppress(OSError):         # whoever reads this may be gone
            os.write(2, f"stopped by {e} before training began; nothing is lost: {then}\n".encode())
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class StopRequest:
    """Listens for SIGTERM and SIGINT within a `with`. `asked` names the one that came, or is None.

    A second Ctrl-C raises KeyboardInterrupt wherever the process is, as Python does without this.
    """

    def __init__(self, together: bool = False):
        self.together = together                   # with other processes, which may wait for this one
        self.asked: str | None = None
        self.nothing_in_hand = False
        self.before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not the main thread: signals are someone else's there
                self.before[number] = signal.signal(number, self.on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if self.nothing_in_hand:
            raise Stopped(self.asked)
        # os.write: print could be interrupted by this very handler while it holds its buffer; the reader of a pipe
        # (tee) may have had the same Ctrl-C and be gone
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self.asked}: finishing this update, then saving; Ctrl-C ends at once\n".encode())

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """What is done inside changes nothing that is saved: a signal raises Stopped at once, unless others wait."""
        if self.together:
            yield
            return
        self.nothing_in_hand = True                # first: from here on on_signal() raises, before it is seen below
        try:
            if self.asked is not None:
                raise Stopped(self.asked)
            yield
        finally:
            self.nothing_in_hand = False
