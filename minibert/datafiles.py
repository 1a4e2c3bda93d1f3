"""Data files as people have them: which file of a folder is which split, its lines, the rows of a table."""
from collections.abc import Iterator, Sequence
from pathlib import Path

from minibert.errors import MinibertError

SPLITS = {"train": ("train",), "dev": ("dev", "valid", "testa"), "test": ("test", "testb")}


def split_files(path: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """{"test": path} for one file, find_files() of a folder; MinibertError for neither."""
    if not path.exists():
        raise MinibertError(f"{path}: no such file or folder; --data takes a folder with train, dev and test files")
    return {"test": path} if path.is_file() else find_files(path, suffixes)


def find_files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """{"train", "dev", "test": file} of a folder, those that are there."""
    found = {}
    for split, names in SPLITS.items():
        candidates = [folder / (name + suffix) for name in names for suffix in suffixes]
        files = [f for f in candidates if f.is_file()]
        if len(files) > 1:
            raise MinibertError(f"{folder}: {files[0].name} and {files[1].name} could both be {split}; keep one")
        found |= {split: files[0]} if files else {}
    if not found:
        raise MinibertError(f"{folder}: no train, dev or test file; expected names such as train{suffixes[0]}, "
                            f"dev{suffixes[-1]}, valid{suffixes[0]}, testa{suffixes[0]}")
    return found


def read_lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, with or without a byte order mark; each of the three line ends there are becomes \\n.

    Raises MinibertError with file:line.
    """
    try:
        with open(file, encoding="utf-8-sig") as f:
            yield from f
    except OSError as e:
        raise MinibertError(f"{file}: cannot be read ({e.strerror})") from None
    except UnicodeDecodeError:
        with open(file, "rb") as f:
            number, raw, place = next((n, x, p) for n, x in enumerate(f, 1) if (p := not_utf8(x)) is not None)
        raise MinibertError(f"{file}:{number}: byte 0x{raw[place]:02x} is not UTF-8; convert the file") from None


def not_utf8(raw: bytes) -> int | None:
    """Place of the first byte that is not UTF-8; None where all are."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as e:
        return e.start
    return None
