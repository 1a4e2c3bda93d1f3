"""Opening nothing but regular files; writing so that a crash leaves the old one or the new one, never half of one."""
import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from io import BufferedRandom, BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, Literal, overload

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from minibert.errors import MinibertError

Json = dict[str, Any]                              # an object of JSON
LARGEST = 40_000_000                               # bytes of a file read whole: JSON takes six times that, or more
NO_WAIT, NO_LINK = getattr(os, "O_NONBLOCK", 0), getattr(os, "O_NOFOLLOW", 0)  # Windows has neither


@overload
def open_regular(file: str | Path, mode: Literal["rb"]) -> BufferedReader: ...
@overload
def open_regular(file: str | Path, mode: Literal["rb+"]) -> BufferedRandom: ...
@overload
def open_regular(file: str | Path, mode: Literal["r", "w", "a"] = "r", encoding: str | None = None,
                 errors: str | None = None, pipe: bool = False) -> TextIOWrapper: ...
def open_regular(file: str | Path, mode: str = "r", encoding: str | None = None, errors: str | None = None,
                 pipe: bool = False) -> object:
    """open() of a regular file: OSError for a folder, a device, a named pipe, and without waiting for anybody.

    A link is followed to read (the hub's cache consists of links), never to write. `pipe`: one is read as well, and
    waited for.
    """
    writes = mode not in ("r", "rb")

    def regular(path: str, flags: int) -> int:
        if writes and os.path.islink(path):
            raise OSError(errno.ELOOP, "a link, and nothing is written through one; remove it", path)
        try:
            handle = os.open(path, flags | (0 if pipe else NO_WAIT) | (NO_LINK if writes else 0), 0o666)
        except OSError as e:
            if e.errno == errno.ENXIO:             # a named pipe that nobody reads, or a socket
                raise OSError(errno.EINVAL, "not a regular file", path) from None
            raise
        kind = os.fstat(handle).st_mode
        if stat.S_ISREG(kind) or (pipe and stat.S_ISFIFO(kind)):
            return handle
        os.close(handle)
        folder = stat.S_ISDIR(kind)
        raise OSError(errno.EISDIR if folder else errno.EINVAL, "a folder" if folder else "not a regular file", path)

    return open(file, mode, encoding=encoding, errors=errors, opener=regular)


def check_regular(file: Path) -> None:
    """Raise OSError, as open_regular() does, for what a library is about to open by its path."""
    open_regular(file, "rb").close()


def read_text(file: Path, encoding: str = "utf-8", pipe: bool = False, largest: int | None = None) -> str:
    """The text of a file of at most `largest` bytes, LARGEST unless given. Raises OSError, of a larger one before it is
    read, UnicodeError.
    """
    largest = LARGEST if largest is None else largest
    with open_regular(file, encoding=encoding, pipe=pipe) as f:
        large = os.fstat(f.fileno()).st_size > largest
        text = "" if large else f.read(largest + 1)                       # a pipe says no size
        if large or len(text) > largest:
            raise OSError(errno.EFBIG, f"more than {largest:,} bytes; is this the file that is meant?", str(file))
    return text


def read_json(path: Path, pipe: bool = False, largest: int | None = None) -> Json:
    """The JSON object in `path`. Raises MinibertError where the file is missing, unreadable, not an object, or longer
    than `largest` bytes, LARGEST unless given.
    """
    try:
        if not pipe:                               # of which nothing can be read twice
            refuse_stand_in(path)
        value = json.loads(read_text(path, "utf-8-sig", pipe, largest))
    except FileNotFoundError:
        raise MinibertError(f"{path}: no such file") from None
    except OSError as e:
        raise MinibertError(f"{path}: cannot be read ({e.strerror})") from None
    except (ValueError, RecursionError) as e:
        raise MinibertError(f"{path}: cannot be read as JSON ({e})") from None
    if not isinstance(value, dict):
        raise MinibertError(f"{path}: holds {type(value).__name__}, not a JSON object")
    return value


def refuse_stand_in(file: Path) -> None:
    """Raise MinibertError where something else was saved under the name of a checkpoint's file; OSError as open()."""
    with open_regular(file, "rb") as f:
        start = f.read(256)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    archive = start[:4] == b"PK\3\4" or (start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"))
    if not start:
        raise MinibertError(f"{file}: is empty; fetch it again, or mend it")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise MinibertError(f"{file}: is a pointer of git-lfs, which stands for the file; type git lfs pull in "
                            f"{file.parent}, or fetch the file itself")
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise MinibertError(f"{file}: is a web page, perhaps of an error or a login, saved under this name; fetch the "
                            "file itself")
    if archive and start[8:9] != b"{":             # else it is safetensors with a header of so many bytes
        raise MinibertError(f"{file}: is a zip archive or a pickle, such as pytorch_model.bin, under another name; "
                            "that can run code when opened and is never read; save the weights as safetensors")


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
        check_regular(file)                        # else a file that is gone would look like a disk that is full
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

    It lies in a folder made for it alone, which no link leads out of and where a library can have files of its own.
    Where it is not done, what was there before stays, nothing half-written does, and the error goes on.
    """
    folder = file.with_name(f".{file.name}{mark}.new")
    remove(folder)                                 # of a process that was killed
    folder.mkdir()
    try:
        yield folder / file.name
        replace(folder / file.name, file)
    finally:
        with contextlib.suppress(OSError):
            remove(folder)


def remove(path: Path) -> None:
    """What stands there, if anything does: a folder with all that is in it, of a link the link. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    """Bytes of a file that is on the disk when this returns; 0 where there is none. Raises OSError."""
    try:
        with open_regular(file, "rb+") as f:
            os.fsync(f.fileno())
            return f.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return 0


def truncate(file: Path, size: int) -> bool:
    """Leave the first `size` bytes of a file, of a shorter one its whole lines; False if it has fewer.

    Raises MinibertError where it cannot be written.
    """
    try:
        with open_regular(file, "rb+") as f:
            there = f.seek(0, os.SEEK_END)
            if shorter := there < size:
                f.seek(0)
                size = f.read().rfind(b"\n") + 1
            f.truncate(size)
            os.fsync(f.fileno())
    except FileNotFoundError:
        return size == 0
    except OSError as e:
        raise MinibertError(f"{file}: cannot be cut to {size} bytes ({e.strerror}); mend that, then --resume") from None
    return not shorter
