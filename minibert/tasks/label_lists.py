"""Any number of labels a text, as people write them: lists, names with | between, vectors of 0 and 1."""
import ast
import json
from collections.abc import Sequence
from pathlib import Path

from minibert.errors import MinibertError

Rows = Sequence[tuple[str, Sequence[object]]]


def label_lists(rows: Rows, file: Path, notices: list[str]) -> list[tuple[str, ...]]:
    """The labels of each row ("file:line", (text, labels)), sorted; perhaps none.

    Where all are lists of 0 and 1 of one length, a 1 means the label of its place: as names they would give all texts
    the same labels, or one of them twice. Raises MinibertError with file:line for what is no list of names.
    """
    lists = [read_list(value, where) for where, (_, value) in rows]
    if all(map(is_vector, lists)) and len({len(names) for names in lists}) == 1:
        notices.append(f"{file}: labels are vectors of 0 and 1, read as {len(lists[0])} labels named by their places, "
                       "from 0")
        return [tuple(sorted(str(i) for i, name in enumerate(names) if name == "1")) for names in lists]

    vector = next((i for i, names in enumerate(lists) if is_vector(names) and len(names) > 2), None)
    if vector is not None:
        other = next(i for i, names in enumerate(lists) if not is_vector(names) or len(names) != len(lists[vector]))
        raise MinibertError(f"{rows[vector][0]}: the labels are {' '.join(lists[vector])[:40]}, a vector of 0 and 1, "
                            f"but not those of {rows[other][0]}, or of another length; write names, or such vectors "
                            "everywhere")
    return [tuple(sorted(set(names))) for names in lists]


def is_vector(names: Sequence[str]) -> bool:
    """Whether labels are 0 and 1 alone, two or more."""
    return len(names) > 1 and set(names) <= {"0", "1"}


def read_list(value: object, where: str) -> list[str]:
    """The names in one value: a list, a list as text, or names with | between; empty ones are none."""
    given = value
    if isinstance(value, str):
        given = written_list(value.strip()) if value.strip()[:1] == "[" else value.split("|")
    if not isinstance(given, list) or not all(isinstance(name, str | int) for name in given):
        raise MinibertError(f"{where}: the labels are {str(value)[:60]!r}; expected a list of names, or names with | "
                            "between")
    return [name for name in (str(int(name) if isinstance(name, bool) else name).strip() for name in given) if name]


def written_list(text: str) -> object:
    """What a text in brackets says, as JSON or as Python writes a list; None for neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None
