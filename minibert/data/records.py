"""Rows of files that name their columns: values with a sign between them, and objects of JSON.

What people mean is taken where it is certain, and told in `notices`: another sign, names in other letter case.
"""
import contextlib
import csv
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minibert.data.jsontext import JsonText, encodable
from minibert.errors import MinibertError

if TYPE_CHECKING:
    from _csv import Reader

LONGEST = 4_000_000                                # characters of a line or a field, more than a long novel has
csv.field_size_limit(LONGEST)                      # its own 131,072 refuses long texts
SIGNS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
WANTED = "an object a line, or an array of objects"
ADVICE = "say with --columns which are meant"


# ------------------------------------------------------------------------------------------------------- the columns


def find_columns(names: Sequence[str], columns: Sequence[str]) -> list[int]:
    """The place of each of the `columns` in `names`, by other letter case if need be; [] where one is not there once.
    """
    folded, found = list(map(fold, names)), []
    for column in columns:
        for there, wanted in ((names, column), (folded, fold(column))):
            if there.count(wanted) == 1:
                found.append(there.index(wanted))
                break
    return found if len(set(found)) == len(columns) else []


def fold(name: str) -> str:
    """A name without letter case, its accents written in one way of two."""
    return unicodedata.normalize("NFC", name.casefold())


def first_missing(names: Sequence[str], columns: Sequence[str]) -> str:
    """Which of the `columns` find_columns() did not find."""
    return next((column for column in columns if not find_columns(names, [column])), columns[-1])


def tell_case(file: Path, found: Sequence[str], columns: Sequence[str], notices: list[str]) -> None:
    """A notice where the columns are called so in other letter case."""
    if other := [f"{name} as {column}" for name, column in zip(found, columns, strict=True) if name != column]:
        notices.append(f"{file}: columns are told by other letter case: {', '.join(other)}")


# ------------------------------------------------------------------------------------------ values with a sign between


def read_values(file: Path, lines: Iterator[str], columns: Sequence[str],
                notices: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows of .csv (quotes as in RFC 4180: a field in quotes may hold commas and line ends) and of .tsv (no quotes).

    Between the values stands what the suffix says, what a first line "sep=;" says, as spreadsheets write it, or the
    sign by which the first line names the columns.
    """
    begun, sign, names, places = read_header(file, lines, columns, notices)
    rows, line = cut(file, lines, sign), begun + 1
    try:
        for row in rows:
            if row and len(row) != len(names):
                raise MinibertError(f"{file}:{line}: {len(row)} fields, but the first line names {len(names)}")
            if row:
                yield line, [row[i] for i in places]
            line = begun + rows.line_num + 1       # where the next row begins: a row may have several lines
    except csv.Error as e:
        quotes = '; a field with commas or quotes stands in quotes, as "She said ""no"""' if sign != "\t" else ""
        raise MinibertError(f"{file}:{line}: does not parse ({e}){quotes}") from None


def read_header(file: Path, lines: Iterator[str], columns: Sequence[str],
                notices: list[str]) -> tuple[int, str, list[str], list[int]]:
    """(its line, the sign between values, all names, the places of `columns`), up to the line that names the columns.
    """
    usual = "\t" if file.suffix.lower() == ".tsv" else ","
    line, head, own = 0, "", usual
    for head in lines:
        line += 1
        if named := re.fullmatch(r'"?sep=([,;|\t])"?\s*', head, re.I):
            own = named[1]
        elif head.strip():
            break

    ways = {sign: header(file, head, sign) for sign in (own, *SIGNS)}
    sign = next((sign for sign, names in ways.items() if find_columns(names, columns)), own)
    names, places = ways[sign], find_columns(ways[sign], columns)
    if head.strip() and not places:
        raise MinibertError(f"{file}:{line}: the first line must name the column {first_missing(names, columns)!r} "
                            f"once; with {SIGNS[sign]} between it names {', '.join(map(repr, names))}; {ADVICE}")
    if sign != usual:
        notices.append(f"{file}: {SIGNS[sign]} stand between its values")
    if places:
        tell_case(file, [names[i] for i in places], columns, notices)
    return line, sign, names, places


def cut(file: Path, lines: Iterable[str], sign: str) -> "Reader":
    """The rows of a file with this sign between its values: in a .tsv tabs need no quotes."""
    if sign == "\t" and file.suffix.lower() == ".tsv":
        return csv.reader(lines, delimiter=sign, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=sign, strict=True)


def header(file: Path, head: str, sign: str) -> list[str]:
    """The names in a first line with this sign between them; none where it does not parse."""
    try:
        return [name.strip() for row in cut(file, [head], sign) for name in row]
    except csv.Error:
        return []


# ------------------------------------------------------------------------------------------------------ objects of JSON


def read_objects(file: Path, lines: Iterator[str], columns: Sequence[str],
                 notices: list[str]) -> Iterator[tuple[int, list[object]]]:
    """Rows of JSON: an object a line, or an array of objects, told by the first sign; their members are the columns."""
    told = list(columns)
    for line, row in read_values_of_json(file, lines):
        if not isinstance(row, dict):
            raise MinibertError(f"{file}:{line}: {type(row).__name__}, not an object with {', '.join(columns)}")
        names = list(row)
        found = [names[i] for i in find_columns(names, columns)]
        if not found:
            raise MinibertError(f"{file}:{line}: no {first_missing(names, columns)!r}; the object has "
                                f"{', '.join(map(repr, names))}; {ADVICE}")
        if found != told:
            tell_case(file, found, columns, notices)
            told = found
        yield line, [row[name] for name in found]


def read_values_of_json(file: Path, parts: Iterator[str]) -> Iterator[tuple[int, object]]:
    """(line it begins in, value) of every row of a file: a value a line of .jsonl, or several objects in a list; in
    .json the members of one array, or values one after the other. Raises MinibertError with file:line.

    `parts`: what tables.read_json_parts() gives.
    """
    if file.suffix.lower() != ".jsonl":
        yield from values_in(JsonText(file, parts, WANTED))
        return
    for line, text in enumerate(parts, 1):
        if text.strip():
            with json_at(f"{file}:{line}"):
                value = json.loads(text)
            if "\\ud" in text.lower() and not encodable(value):
                raise MinibertError(f"{file}:{line}: \\ud... is half of a pair that UTF-8 cannot write; mend the line")
            several = isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
            yield from ((line, row) for row in (value if several else [value]))


def values_in(text: JsonText) -> Iterator[tuple[int, object]]:
    """The same of a text of .json."""
    array, line = text.take("["), 1
    while text.next() and not (array and text.next() == "]"):
        line = text.line_next()
        value, _ = text.value()
        yield line, value
        if array and not text.take(",") and text.next() != "]":
            raise MinibertError(f"{text.file}:{line}: no comma and no end of the array behind what begins here; mend "
                                "it")
    if array and not (text.take("]") and not text.next()):
        raise MinibertError(f"{text.file}:{line}: the array does not end, or more follows it; expected one array")


@contextlib.contextmanager
def json_at(where: str) -> Iterator[None]:
    """What JSON's reader raises as a MinibertError."""
    try:
        yield
    except (ValueError, RecursionError) as e:
        raise MinibertError(f"{where}: not JSON ({e}); expected {WANTED}") from None
