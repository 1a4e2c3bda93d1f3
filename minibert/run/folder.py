"""The folder of a run: which one it is, and that it is one process's."""
import contextlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from minibert.errors import MinibertError
from minibert.files import Json, flush_folder, open_regular, read_text, write_json
from minibert.run.processes import Processes
from minibert.run.terminal import say
from minibert.settings import TrainConfig

MARKS = ({"train.json"}, {"metrics.json", "complete.json"})                    # of a run, and of a finished one
BARELY_BEGUN = {".lock", "log.txt", ".train.json.new"}                         # what a run writes before train.json


def claim_folder(settings: TrainConfig) -> Path:
    """The run folder: made here and empty, or with --resume one that holds a run; MinibertError for any other."""
    if settings.output is None and settings.resume and (last := last_run(settings.task)):
        return last
    if settings.output is not None:
        output = Path(settings.output)
        if os.path.lexists(output) and not output.is_dir():
            raise MinibertError(f"--output {output}: is there and no folder; name another")
        if settings.resume and not output.is_dir() and "TORCHELASTIC_RESTART_COUNT" not in os.environ:
            raise MinibertError(f"--output {output}: no run there to resume; mend the name, or leave out --resume")
        inside = {f.name for f in output.iterdir()} - BARELY_BEGUN if output.is_dir() else set()
        if inside and not any(marks <= inside for marks in MARKS):
            raise MinibertError(f"--output {output}: holds something, but no run; name another folder")
        if inside and not settings.resume:
            raise MinibertError(f"--output {output}: holds another run; name another folder, remove that one, or "
                                "continue it with --resume")
        return make_folder(output, exist_ok=True)
    make_folder(Path("runs"), exist_ok=True)       # else what is wrong with it would look like a number that is taken
    for number in itertools.count(max(numbers(settings.task), default=0) + 1):
        output = default_folder(settings.task, number)
        with contextlib.suppress(FileExistsError):             # taken, perhaps this very moment by another process
            return make_folder(output, exist_ok=False)
    raise AssertionError("count() has no end")


def default_folder(task: str, number: int) -> Path:
    """runs/TASK, runs/TASK-2, runs/TASK-3 ..."""
    return Path("runs") / (task if number == 1 else f"{task}-{number}")


def numbers(task: str) -> list[int]:
    """Of the default folders that are there, rising: the highest is the newest, because no gap is ever filled."""
    names = [f.name.removeprefix(task) for f in Path("runs").glob(f"{task}*")]
    return sorted(int(name[1:] or 1) for name in names if re.fullmatch(r"|-([2-9]|[1-9][0-9]+)", name))


def last_run(task: str) -> Path | None:
    """The last of the default folders that holds a run."""
    runs = [folder for n in numbers(task) if ((folder := default_folder(task, n)) / "train.json").is_file()]
    return runs[-1] if runs else None


def make_folder(folder: Path, exist_ok: bool) -> Path:
    """`folder`, made and its name on the disk. Raises FileExistsError for one that is taken, unless `exist_ok`.

    Any other fault is the user's: MinibertError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as e:
        if isinstance(e, FileExistsError) and not exist_ok:
            raise
        raise MinibertError(f"{folder}: cannot be made ({e.strerror}); name another with --output") from None
    flush_folder(folder.parent)
    return folder


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold a run folder. Raises MinibertError where another process does; one that was killed holds nothing."""
    from filelock import FileLock, Timeout
    file = run / ".lock"
    try:
        open_regular(file, "a").close()            # no link, which the library might follow and cut
        held = FileLock(file).acquire(blocking=False)
    except Timeout:
        holder = read_text(file).strip() or "another process"
        raise MinibertError(f"{run}: {holder} is training in it; wait for it, or name another --output") from None
    except OSError as e:
        raise MinibertError(f"{run}: cannot be locked ({e.strerror or e}); remove {file}, or name an --output on "
                            "another file system") from None
    with held:
        with contextlib.suppress(OSError), open_regular(file, "w") as f:       # a full disk: it is held all the same
            f.write(f"process {os.getpid()}")
        yield


class RunFolder:
    """The folder of a run, and what is written into it besides checkpoints: only the first process writes."""

    def __init__(self, path: Path, processes: Processes, verbose: bool = False):
        self.path, self.first, self.verbose = path, processes.first, verbose

    def log(self, line: Json) -> None:
        """One line of metrics.jsonl. Raises MinibertError where it cannot be written."""
        if not self.first:
            return
        file = self.path / "metrics.jsonl"
        try:
            with open_regular(file, "a", "utf-8") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as e:
            raise MinibertError(f"{file}: cannot be written ({e.strerror}); free space, then --resume") from None

    def tell(self, text: str) -> None:
        """Something for the user, and for log.txt with the time before it."""
        if self.first:
            say(text)
            self.note(text, shown=True)

    def note(self, text: str, shown: bool = False) -> None:
        """Something for log.txt; with --verbose the user sees it too."""
        if not self.first:
            return
        if self.verbose and not shown:
            say(text)
        file = self.path / "log.txt"               # names of tensors may hold what UTF-8 cannot write
        with contextlib.suppress(OSError), open_regular(file, "a", "utf-8", "backslashreplace") as f:
            f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def write(self, name: str, value: object) -> None:
        """A JSON file."""
        if self.first:
            write_json(self.path / name, value)
