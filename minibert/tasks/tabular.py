"""What tasks that read tables share: which columns, what becomes of rows that lack something."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minibert.data.tables import read_table
from minibert.errors import MinibertError
from minibert.options import option
from minibert.tasks.base import Task, TaskOptions


@dataclass(frozen=True)
class TableOptions(TaskOptions):
    """Options of a task that reads tables: `columns` names columns, its default says how many."""
    columns: str = option("text,label", "names of the columns that hold the text and its label", later=True)
    incomplete: str = option("refuse", "rows without a text or without a label: refuse them, or skip them and say how "
                                       "many", ("refuse", "skip"), later=True)

    def __post_init__(self) -> None:
        example = type(self).columns
        wanted = len(example.split(","))
        if len(self.names) != wanted or len(set(self.names)) != wanted or not all(self.names):
            raise MinibertError(f"--columns is {self.columns!r}; it must be {wanted} different names with commas "
                                f"between, such as {example}")
        super().__post_init__()

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [name.strip() for name in self.columns.split(",")]


def table_rows(task: Task, file: Path, needed: slice = slice(None)) -> Iterator[tuple[str, Sequence[object]]]:
    """("file:line", values) of the rows of a table; `needed`: the columns that must not be empty, of those asked for.

    Rows that lack one are passed over with --incomplete skip, else they come like others: the task refuses what it
    cannot read, and a notice counts the rest.
    """
    skip, lacking, kept = task.options.incomplete == "skip", [], 0
    for where, values in read_table(file, task.options.names, task.notices):
        if any(is_blank(value) for value in values[needed]):
            lacking.append(where)
            if skip:
                continue
        kept += 1
        yield where, values
    if lacking and not kept:
        raise MinibertError(f"{file}: no row in it has all of {', '.join(task.options.names)}; nothing is left")
    if lacking:
        said = "are left out" if skip else "are read as they are; --incomplete skip leaves them out"
        task.notices.append(f"{len(lacking):,} rows without a text or a label {said}, the first {lacking[0]}")


def is_blank(value: object) -> bool:
    """Whether a value of a table says nothing; what is no number says so too."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def text_of(value: object, where: str, wanted: str = "") -> str:
    """A value of a table that must be a text, not an empty one where it is `wanted`. Raises MinibertError."""
    if not isinstance(value, str) or (wanted and not value.strip()):
        raise MinibertError(f"{where}: the text is {repr(value)[:60]}; expected {wanted or 'a string'}"
                            f"{skipping(value)}")
    return value


def skipping(value: object) -> str:
    """What may be done about a value that says nothing; "" for any other."""
    return "; --incomplete skip leaves such rows out" if is_blank(value) else ""


