"""Any number of labels a text, as people write them: lists, names with | between, vectors of 0 and 1."""
import ast
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from minibert.errors import MinibertError


class LabelLists:
    """The lists of one file: names, or vectors of 0 and 1, which is known once all have been seen."""

    def __init__(self):
        self.first: dict[int, tuple[str, Sequence[str]]] = {}      # by length of a vector, 0: of names: (where, names)

    def read(self, value: object, where: str) -> tuple[str, ...]:
        """The names in one value, as they stand. Raises MinibertError with file:line for what is no list of names."""
        names = tuple(read_list(value, where))
        self.first.setdefault(len(names) if is_vector(names) else 0, (where, names))
        return names

    def meaning(self, file: Path, notices: list[str]) -> Callable[[Sequence[str]], tuple[str, ...]]:
        """What makes sorted labels of what read() gave.

        Where all are lists of 0 and 1 of one length, a 1 means the label of its place: as names they would give all
        texts the same labels, or one of them twice. Raises MinibertError where some are such vectors and some are not.
        """
        length = max(self.first, default=0)
        if length and len(self.first) == 1:
            notices.append(f"{file}: labels are vectors of 0 and 1, read as {length} labels named by their places, "
                           "from 0")
            return lambda names: tuple(sorted(str(i) for i, name in enumerate(names) if name == "1"))

        length = next((n for n in self.first if n > 2), 0)
        if length:
            where, names = self.first[length]
            other = next(place for n, (place, _) in self.first.items() if n != length)
            raise MinibertError(f"{where}: the labels are {' '.join(names)[:40]}, a vector of 0 and 1, but not those "
                                f"of {other}, or of another length; write names, or such vectors everywhere")
        return lambda names: tuple(sorted(set(names)))


def is_vector(names: Sequence[str]) -> bool:
    """Whether labels are 0 and 1 alone, two or more."""
    return len(names) > 1 and set(names) <= {"0", "1"}


def read_list(value: object, where: str) -> list[str]:
    """The names in one value: a list, a list as text, or names with | between; empty ones are none."""
    given = value
    if isinstance(value, str):
        given = written_list(value.strip()) if value.strip()[:1] == "[" else value.split("|")
    if not isinstance(given, list) or not all(isinstance(name, str | int) or name in (0.0, 1.0) for name in given):
        raise MinibertError(f"{where}: the labels are {str(value)[:60]!r}; expected a list of names, names with | "
                            "between, or a vector of 0 and 1")
    names = (str(int(name) if isinstance(name, bool | float) else name).strip() for name in given)
    return [name for name in names if name]


def written_list(text: str) -> object:
    """What a text in brackets says, as JSON, as Python writes a list, or a vector as numpy does; None for none."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    numbers = text.strip("[]").split()
    return [int(x[0]) for x in numbers] if all(x in ("0", "1", "0.", "1.") for x in numbers) else None
