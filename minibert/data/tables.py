"""Data files as people have them: which file of a folder is which split, its lines, the rows of a table."""
import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from minibert.errors import MinibertError

TABLES = (".csv", ".tsv", ".jsonl", ".txt")        # suffixes that read_table() knows
BAR = "|||"                                        # between the fields of a line of .txt, and of texts that come as one
LONGEST = 4_000_000                                # characters of a line or a field, more than a long novel has
csv.field_size_limit(LONGEST)                      # its own 131,072 refuses long texts
SPLITS = {"train": ("train",), "dev": ("dev", "valid", "testa"), "test": ("test", "testb")}


def split_files(path: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """{"test": path} for one file, find_files() of a folder; MinibertError for neither."""
    if not os.path.exists(path):                   # Path.exists raises where the name is too long
        raise MinibertError(f"{path}: no such file or folder; --data takes a folder with train, dev and test files")
    return {"test": path} if path.is_file() else find_files(path, suffixes)


def find_files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """{"train", "dev", "test": file} of a folder, those that are there; suffixes in any letter case."""
    try:
        there = sorted(f for f in folder.iterdir() if f.suffix.lower() in suffixes and f.is_file())
    except OSError as e:
        raise MinibertError(f"{folder}: cannot be read ({e.strerror})") from None

    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        files = [f for f in there if f.stem in names]
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
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as f:  # so its lines are counted as above
            number, stray = next((n, c) for n, line in enumerate(f, 1) for c in line if "\udc80" <= c <= "\udcff")
        byte = ord(stray) - 0xdc00
        raise MinibertError(f"{file}:{number}: byte 0x{byte:02x} is not UTF-8; convert the file") from None


def read_short_lines(file: Path) -> Iterator[str]:
    """read_lines() of a file whose lines hold texts, each read as a whole: MinibertError for one that is too long."""
    for number, line in enumerate(read_lines(file), 1):
        if len(line) > LONGEST:
            raise MinibertError(f"{file}:{number}: a line of {len(line):,} characters, {LONGEST:,} at most; cut its "
                                "texts up, or end its lines")
        yield line


def read_table(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, Sequence[object]]]:
    """("file:line", the values of `columns`) of every row of a table.

    .csv and .tsv have a first line that names the columns, .jsonl an object a line; in .txt the columns stand in the
    order of `columns` backwards, with ||| between, as in "label ||| text". Empty lines are passed over. Values of
    .jsonl may be other than strings. Suffixes may have capitals. Raises MinibertError for any other suffix, and with
    file:line for what does not parse.
    """
    kinds: dict[str, Callable[[Path, Sequence[str]], Iterator[tuple[int, Sequence[object]]]]] = {
        ".csv": read_csv, ".tsv": read_csv, ".jsonl": read_json_lines, ".txt": read_bars}
    if (suffix := file.suffix.lower()) not in kinds:
        raise MinibertError(f"{file}: no table by its suffix {suffix!r}; convert it to one of {', '.join(kinds)}")
    line = 0                                       # no row yet
    for line, values in kinds[suffix](file, columns):
        yield f"{file}:{line}", values
    if not line:
        raise MinibertError(f"{file}: no rows in it; expected the columns {', '.join(columns)}")


def read_csv(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows of .csv (quotes as in RFC 4180: a field in quotes may hold commas and line ends) and of .tsv (no quotes)."""
    quoted = file.suffix.lower() == ".csv"
    form = {"strict": True} if quoted else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    rows, line = csv.reader(read_short_lines(file), **form), 1
    names: list[str] = []

    try:
        for row in rows:
            if row and not names:
                names = [name.strip() for name in row]
                if missing := [name for name in columns if names.count(name) != 1]:
                    raise MinibertError(f"{file}:{line}: the first line must name the column {missing[0]!r} once; it "
                                        f"names {', '.join(map(repr, names))}; say with --columns which are meant")
                places = [names.index(name) for name in columns]
            elif row:
                if len(row) != len(names):
                    raise MinibertError(f"{file}:{line}: {len(row)} fields, but the first line names {len(names)}")
                yield line, [row[i] for i in places]
            line = rows.line_num + 1               # where the next row begins: a row may have several lines
    except csv.Error as e:
        advice = '; a field with commas or quotes stands in quotes, as "She said ""no"""' if quoted else ""
        raise MinibertError(f"{file}:{line}: does not parse ({e}){advice}") from None


def read_json_lines(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[object]]]:
    """Rows of .jsonl."""
    for line, text in enumerate(read_short_lines(file), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise MinibertError(f"{file}:{line}: not JSON ({e}); expected an object a line") from None

        if "\\ud" in text.lower() and not encodable(row):
            raise MinibertError(f"{file}:{line}: \\ud... is half of a pair that UTF-8 cannot write; mend the line")
        if not isinstance(row, dict):
            raise MinibertError(f"{file}:{line}: {type(row).__name__}, not an object with {', '.join(columns)}")
        if missing := [name for name in columns if name not in row]:
            raise MinibertError(f"{file}:{line}: no {missing[0]!r}; the object has {', '.join(map(repr, row))}; say "
                                "with --columns which are meant")
        yield line, [row[name] for name in columns]


def encodable(value: object) -> bool:
    """Whether all texts in a JSON value can be written as UTF-8, which has no halves of surrogate pairs."""
    return not re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False))


def read_bars(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows of .txt: fields with ||| between, the last column first; the text may hold ||| itself."""
    for line, text in enumerate(read_short_lines(file), 1):
        if not text.strip():
            continue
        fields = [field.strip() for field in text.split(BAR, len(columns) - 1)]
        if len(fields) != len(columns):
            shape = f" {BAR} ".join(reversed(columns))
            raise MinibertError(f"{file}:{line}: {len(fields)} field; expected {shape}")
        yield line, fields[::-1]
