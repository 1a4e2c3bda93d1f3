"""Writing files so that a crash leaves the old one or the new one, never half of one."""
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from minibert.errors import MinibertError

Json = dict[str, Any]                              # an object of JSON
LARGEST = 40_000_000                               # bytes of one, which take six times that in memory, or more


def read_json(path: Path, largest: int = LARGEST) -> Json:
    """The JSON object in `path`. Raises MinibertError where the file is missing, unreadable, not an object, or longer
    than `largest` bytes.
    """
    try:
        if (size := Path(path).stat().st_size) > largest:
            raise MinibertError(f"{path}: {size:,} bytes, {largest:,} at most; is this the file that is meant?")
        value = json.loads(Path(path).read_text("utf-8-sig"))
    except FileNotFoundError:
        raise MinibertError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as e:
        raise MinibertError(f"{path}: cannot be read as JSON ({e})") from None
    if not isinstance(value, dict):
        raise MinibertError(f"{path}: holds {type(value).__name__}, not a JSON object")
    return value


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file: the whole of it or nothing. Raises MinibertError where it cannot be written."""
    with written(file) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.umask(mask := os.umask(0))              # safetensors makes files that only their owner may read
        os.chmod(temporary, 0o666 & ~mask)


def write_json(file: Path, value: object) -> None:
    """`value` as JSON in `file`: the whole of it or nothing. Raises MinibertError where it cannot be written."""
    with written(file) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy(file: Path, second: Path) -> None:
    """A copy of a file, flushed to the disk: the whole of it or what was there before. Raises MinibertError."""
    try:
        open(file, "rb").close()                   # else a file that is gone would look like a disk that is full
    except OSError as e:
        raise MinibertError(f"{file}: cannot be read ({e.strerror})") from None
    with written(second) as temporary:
        shutil.copyfile(file, temporary)


@contextlib.contextmanager
def written(file: Path) -> Iterator[Path]:
    """beside() for a file of a run folder. Raises MinibertError where it cannot be written."""
    try:
        with beside(file) as temporary:
            yield temporary
    except (OSError, SafetensorError, UnicodeError) as e:                      # UnicodeError: half of a surrogate pair
        raise MinibertError(f"{file}: cannot be written ({e}); free space or name another --output") from None


@contextlib.contextmanager
def beside(file: Path, mark: str = "") -> Iterator[Path]:
    """Where to write what `file` is to hold: once that is done it is flushed to the disk and takes the file's place.

    Where it is not done, what was there before stays, nothing half-written does, and the error goes on.
    """
    temporary = file.with_name(f".{file.name}{mark}.new")
    try:
        yield temporary
        replace(temporary, file)
    except Exception:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def replace(temporary: Path, file: Path) -> None:
    """Flush `temporary` to the disk, then give it its name in one step, and flush that too."""
    with open(temporary, "rb+") as f:
        os.fsync(f.fileno())
    os.replace(temporary, file)
    flush_folder(file.parent)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):             # a folder cannot be opened on Windows
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def flushed_size(file: Path) -> int:
    """Bytes of a file that is on the disk when this returns; 0 where there is none."""
    if not file.is_file():
        return 0
    with open(file, "rb+") as f:
        os.fsync(f.fileno())
        return f.seek(0, os.SEEK_END)


def truncate(file: Path, size: int) -> bool:
    """Leave the first `size` bytes of a file, of a shorter one its whole lines; False if it has fewer."""
    if not file.is_file():
        return size == 0
    with open(file, "rb+") as f:
        there = f.seek(0, os.SEEK_END)
        if there < size:
            f.seek(0)
            size, shorter = f.read().rfind(b"\n") + 1, True
        else:
            shorter = False
        f.truncate(size)
        os.fsync(f.fileno())
    return not shorter
