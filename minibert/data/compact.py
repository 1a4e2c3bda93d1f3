"""Examples by the million: the values of many records as bytes, for those whose fields are not words and tags."""
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

Record = TypeVar("Record")
BLOCK = 64                                         # records that are read, and remembered, together
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class Compact(Sequence[Record]):
    """N records of one frozen dataclass read from a file, each made when asked for; a slice is Compact again.

    Fields are texts, numbers, None or tuples of these; the last is `where`, "file:line", of which the line is kept.
    """

    def __init__(self, kind: Callable[..., Record], file: Path, blocks: list[bytes], size: int):
        """`blocks`: BLOCK records each, the last perhaps more than are left of `size`."""
        self.kind, self.file, self.blocks, self.size = kind, file, blocks, size
        self.known, self.records = -1, list[Record]()      # the block that was asked for last

    @classmethod
    def of(cls, kind: Callable[..., Record], file: Path, records: Iterable[Record]) -> "Compact[Record]":
        """These records, taken one after the other."""
        found, rest = cls(kind, file, [], 0), iter(records)
        while part := list(islice(rest, BLOCK)):
            found.blocks.append(found.packed(part))
            found.size += len(part)
        return found

    def packed(self, records: Iterable[Record]) -> bytes:
        """Records as bytes, field by field, in JSON."""
        *columns, places = zip(*(vars(record).values() for record in records), strict=True)
        start = len(f"{self.file}:")
        lines = [int(where[start:]) for where in places]
        return ENCODER.encode([*columns, lines]).encode("utf-8", "surrogatepass")

    def unpacked(self, number: int) -> list[Record]:
        """The records of a block."""
        *columns, lines = json.loads(self.blocks[number].decode("utf-8", "surrogatepass"))
        return [self.kind(*map(as_tuple, values), f"{self.file}:{line}")
                for *values, line in zip(*columns, lines, strict=True)]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, i: int) -> Record: ...

    @overload
    def __getitem__(self, i: slice) -> "Compact[Record]": ...

    def __getitem__(self, i: int | slice) -> "Record | Compact[Record]":
        numbers: Any = range(self.size)[i]
        if isinstance(i, slice):
            whole = numbers.start == 0 and numbers.step == 1
            return Compact(self.kind, self.file, self.blocks[:-(-len(numbers) // BLOCK)], len(numbers)) if whole else (
                self.take(numbers))
        block, place = divmod(numbers, BLOCK)
        if block != self.known:
            self.known, self.records = block, self.unpacked(block)
        return self.records[place]

    def __iter__(self) -> Iterator[Record]:
        every = (record for number in range(len(self.blocks)) for record in self.unpacked(number))
        return islice(every, self.size)

    def take(self, numbers: Iterable[int]) -> "Compact[Record]":
        """The records of these numbers, in their order."""
        return Compact.of(self.kind, self.file, (self[int(i)] for i in numbers))

    def change(self, how: Callable[[Record], Record]) -> None:
        """Put another record in the place of each."""
        for number in range(len(self.blocks)):
            self.blocks[number] = self.packed(map(how, self.unpacked(number)))
        self.known = -1


def as_tuple(value: object) -> object:
    """A value of JSON with tuples for lists, which no field holds."""
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value
