"""Data files as people have them: which file of a folder is which split, its lines, the rows of a table."""
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minibert.errors import MinibertError

TABLES = (".csv", ".tsv", ".jsonl", ".txt")        # suffixes that read_table() knows
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



def read_table(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """("file:line", the values of `columns`) of every row of a table.

    .csv and .tsv have a first line that names the columns, .jsonl an object a line; in .txt the columns stand in the
    order of `columns` backwards, with ||| between, as in "label ||| text". Empty lines are passed over. Values of
    .jsonl may be other than strings. Raises MinibertError with file:line for what does not parse.
    """
    kinds = {".csv": read_csv, ".tsv": read_csv, ".jsonl": read_json_lines, ".txt": read_bars}
    empty = True
    for line, values in kinds[file.suffix](file, columns):
        empty = False
        yield f"{file}:{line}", values
    if empty:
        raise MinibertError(f"{file}: no rows in it; expected the columns {', '.join(columns)}")


def read_csv(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows of .csv (quotes as in RFC 4180: a field in quotes may hold commas and line ends) and of .tsv (no quotes)."""
    lines = read_lines(file)
    rows = csv.reader(lines, strict=True) if file.suffix == ".csv" else csv.reader(lines, "excel-tab",
                                                                                  quoting=csv.QUOTE_NONE)
    places, names, line = [], [], 1
    while True:
        line = rows.line_num + 1                   # a row may have several
        try:
            row = next(rows, None)
        except csv.Error as e:
            raise MinibertError(f"{file}:{line}: does not parse ({e}); a field with commas or quotes stands in quotes, "
                                'as "She said ""no"""') from None
        if row is None:
            return
        if not row:
            continue
        if not names:
            names = [name.strip() for name in row]
            if missing := [name for name in columns if names.count(name) != 1]:
                raise MinibertError(f"{file}:{line}: the first line must name the column {missing[0]!r} once; it names "
                                    f"{', '.join(map(repr, names))}; say with --columns which are meant")
            places = [names.index(name) for name in columns]
            continue
        if len(row) != len(names):
            raise MinibertError(f"{file}:{line}: {len(row)} fields, but the first line names {len(names)}")
        yield line, [row[i] for i in places]


def read_json_lines(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    """Rows of .jsonl."""
    for line, text in enumerate(read_lines(file), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise MinibertError(f"{file}:{line}: not JSON ({e}); expected an object a line") from None
        if not isinstance(row, dict):
            raise MinibertError(f"{file}:{line}: {type(row).__name__}, not an object with {', '.join(columns)}")
        if missing := [name for name in columns if name not in row]:
            raise MinibertError(f"{file}:{line}: no {missing[0]!r}; the object has {', '.join(map(repr, row))}; say "
                                "with --columns which are meant")
        yield line, [row[name] for name in columns]


def read_bars(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows of .txt: fields with ||| between, the last column first; the text may hold ||| itself."""
    for line, text in enumerate(read_lines(file), 1):
        if not text.strip():
            continue
        fields = [field.strip() for field in text.split("|||", len(columns) - 1)]
        if len(fields) != len(columns):
            shape = " ||| ".join(reversed(columns))
            raise MinibertError(f"{file}:{line}: {len(fields)} field; expected {shape}")
        yield line, fields[::-1]
