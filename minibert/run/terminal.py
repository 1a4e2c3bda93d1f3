"""What a run says to the person in front of it, and how its end becomes an exit code."""
import contextlib
import errno
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from minibert.errors import MinibertError
from minibert.options import INSTALLED
from minibert.run.processes import Shared
from minibert.run.stopping import STOPPED, Stopped


@dataclass(frozen=True)
class Advice:
    """What a program says where it ran out of memory, and where Ctrl-C ended it ("": nothing)."""
    memory: str = "give shorter texts, or fewer at a time"
    interrupted: str = ""


TRAINING = Advice(                                 # what to do when a run ends otherwise than it should
    memory="give --accumulate 2 or more, or a smaller --batch-size or --max-pieces; --resume goes on from the last "
           "checkpoint",
    interrupted="interrupted; --resume goes on from the last checkpoint, if one was saved")


MEND = {(errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "free space on the disk, or write to another one",
        (errno.EACCES, errno.EPERM): "you lack the permission: change it, or name another place",
        (errno.EROFS,): "the disk cannot be written to: name another place"}


def say(text: str) -> None:
    """A line for the user. Where nobody can hear it any more (a pipe whose reader is gone, a full disk under a
    redirection) the program does not end for it: from then on standard output leads nowhere.
    """
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except OSError:
        lead_nowhere(sys.stdout)


def lead_nowhere(stream: TextIO) -> None:
    """From now on whatever is written to this stream is lost, and no error."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def open_streams() -> None:
    """Standard output and error that are there, though perhaps nowhere, and spell out what they cannot show."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:                         # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for as long as it runs)
        elif getattr(stream, "errors", None) == "strict":
            stream.reconfigure(errors="backslashreplace")


def interpreter() -> str:
    """What to type for the Python that runs this: its path from here where that is short, as in .venv/bin/python."""
    path = os.path.relpath(sys.executable)
    return Path(sys.executable).name if path.startswith("..") else shlex.quote(path)


def package_command() -> str:
    """What to type for `minibert`: its script where the shell finds the one beside the Python that runs this."""
    script = shutil.which("minibert") if INSTALLED else None
    here = script is not None and Path(script).parent == Path(sys.executable).parent
    return "minibert" if here else f"{interpreter()} -m minibert"


def training_command() -> str:
    """What to type to train."""
    return f"{package_command()} train" if INSTALLED else f"{interpreter()} train.py"


def resume_command(run: Path) -> str:
    """What to add to a command to go on with a run."""
    return f"--resume --output {shlex.quote(str(run))}"


def replay_command(update: Path) -> str:
    """What to type to look at an update that went wrong."""
    return f"{training_command()} --replay {shlex.quote(str(update))}"


def complain(text: str) -> None:
    """One line on standard error, if anybody is there to read it."""
    process = os.environ.get("RANK", "0") if several() else "0"
    with contextlib.suppress(OSError):
        print(f"error: {text}" if process == "0" else f"process {process}: error: {text}", file=sys.stderr, flush=True)


def several() -> bool:
    """Whether a launcher has started this process beside others."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdecimal() and int(size) > 1


def speaks(error: Exception) -> bool:
    """Whether this process prints an error: one of the first alone is the first's; what the user can mend all the
    processes of a machine find alike, and one of them says it.
    """
    if not several():
        return True
    rank = "RANK" if isinstance(error, Shared) else "LOCAL_RANK"
    return not isinstance(error, MinibertError) or os.environ.get(rank, "0") == "0"


def exit_code(work: Callable[[], object], advice: Advice) -> int:
    """0 after work(), 2 for what the user can mend, 75 for Stopped, 130 for Ctrl-C; a line on standard error says it.

    What nobody expects goes through, with its traceback.
    """
    open_streams()
    try:
        work()
        return 0
    except (MinibertError, OSError) as e:
        if speaks(e):
            words = refused(e) if isinstance(e, OSError) else str(e)
            complain(str(MinibertError(words)))    # one line, of a length that can be read
        return 2
    except (MemoryError, RuntimeError) as e:       # torch says RuntimeError, on a GPU a kind of it
        if not (words := mendable(e, advice)):
            raise
        complain(words)
        return 2
    except Stopped:
        return STOPPED
    except KeyboardInterrupt:
        if advice.interrupted:
            complain(advice.interrupted)
        return 130


def refused(e: OSError) -> str:
    """What the system refused, in one line, and what to do about it where that is known."""
    advice = next((f"; {words}" for numbers, words in MEND.items() if e.errno in numbers), "")
    return f"{f'{e.filename}: ' if e.filename else ''}{e.strerror or e}{advice}"


def mendable(e: Exception, advice: Advice) -> str:
    """What to do about a fault of memory or of another process, in one line; "" for any other."""
    first = (str(e) or type(e).__name__).splitlines()[0][:200]
    if isinstance(e, MemoryError) or "allocate memory" in str(e) or "out of memory" in str(e):
        return f"out of memory; {advice.memory} ({first})"
    if several() and ("gloo" in str(e) or "NCCL" in str(e)):
        return f"another process is gone; --resume goes on from the last checkpoint ({first})"
    return ""
