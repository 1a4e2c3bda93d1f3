"""Data files as people have them: which file of a folder is which split, its lines, the rows of a table."""
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import TextIOWrapper
from pathlib import Path

from minibert.data.jsontext import PORTION
from minibert.data.records import LONGEST, read_objects, read_values
from minibert.errors import MinibertError
from minibert.files import check_regular, open_regular

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".txt")        # suffixes that read_table() knows
BAR = "|||"                                        # between the fields of a line of .txt, and of texts that come as one
SPLITS = {"train": ("train",), "dev": ("dev", "valid", "validation", "val", "eval", "dev1", "testa"),
          "test": ("test", "testb")}
Reader = Callable[[Path, Iterator[str], Sequence[str], list[str]], Iterator[tuple[int, Sequence[object]]]]


def split_files(path: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """{"test": path} for one file, find_files() of a folder; MinibertError for neither, or what cannot be opened."""
    if not os.path.exists(path):                   # Path.exists raises where the name is too long
        raise MinibertError(f"{path}: no such file or folder; --data takes a folder with train, dev and test files")
    found = find_files(path, suffixes) if path.is_dir() else {"test": path}
    for file in found.values():
        try:
            check_regular(file)
        except OSError as e:
            raise MinibertError(f"{file}: cannot be read ({e.strerror})") from None
    return found


def find_files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """{"train", "dev", "test": file} of a folder, those that are there; suffixes in any letter case."""
    try:
        there = sorted(f for f in folder.iterdir() if f.suffix.lower() in suffixes and not f.is_dir())
    except OSError as e:
        raise MinibertError(f"{folder}: cannot be read ({e.strerror})") from None

    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        files = [f for f in there if f.stem.lower() in names]
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
    return read_as(file, lambda f: f)


def read_as(file: Path, cut: Callable[[TextIOWrapper], Iterable[str]]) -> Iterator[str]:
    """The text of a file as `cut` cuts it; see read_lines()."""
    try:
        with open_regular(file, encoding="utf-8-sig") as f:
            yield from cut(f)
    except OSError as e:
        raise MinibertError(f"{file}: cannot be read ({e.strerror})") from None
    except UnicodeDecodeError:
        number, stray = 1, None
        with open_regular(file, encoding="utf-8-sig", errors="surrogateescape") as f:   # lines counted as above
            while not (stray := re.search("[\udc80-\udcff]", part := f.read(PORTION))):
                number += part.count("\n")
        number, byte = number + part.count("\n", 0, stray.start()), ord(stray[0]) - 0xdc00
        raise MinibertError(f"{file}:{number}: byte 0x{byte:02x} is not UTF-8; convert the file") from None


def read_short_lines(file: Path) -> Iterator[str]:
    """read_lines() of a file whose lines hold texts, each read as a whole: MinibertError for one that is too long."""
    lines = read_as(file, lambda f: iter(partial(f.readline, LONGEST + 1), ""))
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST:
            raise MinibertError(f"{file}:{number}: a line of more characters than the {LONGEST:,} at most that are "
                                "read; cut its texts up, or end its lines")
        yield line


def read_json_parts(file: Path) -> Iterator[str]:
    """What records.read_values_of_json() reads: of .jsonl read_short_lines(), of other files parts of the text."""
    if file.suffix.lower() == ".jsonl":
        return read_short_lines(file)
    return read_as(file, lambda f: iter(partial(f.read, PORTION), ""))


def read_table(file: Path, columns: Sequence[str], notices: list[str]) -> Iterator[tuple[str, Sequence[object]]]:
    """("file:line", the values of `columns`) of every row of a table; what is worth telling goes into `notices`.

    .csv and .tsv have a first line that names the columns, .jsonl an object a line, .json an array of objects; in .txt
    the columns stand in the order of `columns` backwards, with ||| between, as in "label ||| text". Empty lines are
    passed over. Values of JSON may be other than strings. Suffixes may have capitals. Raises MinibertError for any
    other suffix, and with file:line for what does not parse.
    """
    kinds: dict[str, Reader] = {".csv": read_values, ".tsv": read_values, ".jsonl": read_objects, ".json": read_objects,
                                ".txt": read_bars}
    if (suffix := file.suffix.lower()) not in kinds:
        raise MinibertError(f"{file}: no table by its suffix {suffix!r}; convert it to one of {', '.join(kinds)}")
    line = 0                                       # no row yet
    lines = read_json_parts(file) if suffix == ".json" else read_short_lines(file)
    for line, values in kinds[suffix](file, lines, columns, notices):
        yield f"{file}:{line}", values
    if not line:
        raise MinibertError(f"{file}: no rows in it; expected the columns {', '.join(columns)}")


def read_bars(file: Path, lines: Iterator[str], columns: Sequence[str],
              notices: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows of .txt: fields with ||| between, the last column first; the text may hold ||| itself."""
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        fields = [field.strip() for field in text.split(BAR, len(columns) - 1)]
        if len(fields) != len(columns):
            shape = f" {BAR} ".join(reversed(columns))
            raise MinibertError(f"{file}:{line}: {len(fields)} field; expected {shape}")
        yield line, fields[::-1]
