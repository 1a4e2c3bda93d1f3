"""JSON taken from a file a value at a time, so that one value is in memory and not the file."""
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minibert.errors import MinibertError

DECODER = json.JSONDecoder()
PORTION, LARGEST = 2 ** 18, 8_000_000              # characters: read at a time, of one value at most
NEAR = 16                                          # where a text that was cut off is found wrong: -Infinity has 9
BLANKS = re.compile(r"[ \t\n\r]*")


class JsonText:
    """The text of a file; `at` is where the next value or sign begins in the part that is in memory."""

    def __init__(self, file: Path, parts: Iterator[str], expected: str):
        """`parts`: the text in parts of any length; `expected` ends what is said of damage."""
        self.file, self.parts, self.expected = file, parts, expected
        self.text, self.at, self.counted, self.line = "", 0, 0, 1            # counted: lines up to there

    @property
    def where(self) -> str:
        """file:line of what is next."""
        return f"{self.file}:{self.line_next()}"

    def line_next(self) -> int:
        """The line of the next sign that is no blank."""
        self.next()
        self.line += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        return self.line

    def more(self, size: int) -> bool:
        """Forget what was taken and read on; False, and nothing is forgotten, where there is no more."""
        found: list[str] = []
        while sum(map(len, found)) < size and (part := next(self.parts, "")):
            found.append(part)
        if found:
            self.line += self.text.count("\n", self.counted, self.at)
            self.text = self.text[self.at:] + "".join(found)
            self.at = self.counted = 0
        return bool(found)

    def next(self) -> str:
        """The next sign that is no blank, "" at the end; it stays."""
        while True:
            self.at = BLANKS.match(self.text, self.at).end()  # type: ignore[union-attr]  # no blank matches too
            if self.at < len(self.text) or not self.more(PORTION):
                return self.text[self.at:self.at + 1]

    def take(self, sign: str) -> bool:
        """Whether this sign is next; then it is taken."""
        there = self.next() == sign
        self.at += there
        return there

    def value(self) -> tuple[object, str]:
        """(the value that is next, as it is written). Raises MinibertError for damage, and one that is too long."""
        self.next()
        size = PORTION
        while (found := self.parsed()).cut and found.end - self.at <= LARGEST and self.more(size):
            size *= 2
        if found.end - self.at > LARGEST:
            raise MinibertError(f"{self.where}: a value of more than {LARGEST:,} characters begins here; cut it up, or "
                                "mend its end")
        if found.wrong:
            raise self.damage(found.wrong, found.end)
        written = self.text[self.at:found.end]
        if "\\ud" in written.lower() and not encodable(found.value):
            raise MinibertError(f"{self.where}: \\ud... is half of a pair that UTF-8 cannot write; mend the line")
        self.at = found.end
        return found.value, written

    def parsed(self) -> "Parsed":
        """What is in memory from `at` on, read as a value."""
        try:
            value, end = DECODER.raw_decode(self.text, self.at)
            return Parsed(value, end, end > len(self.text) - NEAR)            # there a number may go on: 2.5e-7
        except json.JSONDecodeError as e:
            cut = e.msg.startswith("Unterminated string") or e.pos > len(self.text) - NEAR
            return Parsed(None, len(self.text) if cut else e.pos, cut, e.msg)
        except ValueError as e:                    # a number of 5,000 digits
            return Parsed(None, self.at, False, str(e))
        except RecursionError:
            return Parsed(None, self.at, False, "nested too deeply")

    def damage(self, said: str, at: int) -> MinibertError:
        """What is wrong at a place in memory, of what begins at the next sign."""
        begun = self.where
        line = self.line + self.text.count("\n", self.counted, at)
        return MinibertError(f"{begun}: not JSON ({said}: line {line}); expected {self.expected}")

    def each(self, name: str) -> Iterator[bool]:
        """Of the object that is next: stops before every value of the list `name`, which whoever iterates takes.

        Other members are passed over. Raises MinibertError where there is no such object or list.
        """
        begun, found = self.where, False
        if not self.take("{"):
            self.value()
        else:
            for _ in self.until("}"):
                key, _ = self.value()
                if not isinstance(key, str) or not self.take(":"):
                    raise self.damage("no name and colon", self.at)
                if key == name and self.take("["):
                    found = True
                    yield from self.until("]")
                else:
                    self.value()
        if not found:
            raise MinibertError(f"{begun}: {name} is not a list; expected {self.expected}")

    def until(self, end: str) -> Iterator[bool]:
        """Stops before every entry up to the sign `end`; takes that, and the commas between."""
        if self.take(end):
            return
        yield True
        while not self.take(end):
            if not self.take(","):
                raise self.damage(f"no comma, and no {end}", self.at)
            yield True


@dataclass(frozen=True)
class Parsed:
    """A value and where it ends in memory; or what is wrong, and where. `cut`: more of the text may change that."""
    value: object
    end: int
    cut: bool
    wrong: str = ""


def encodable(value: object) -> bool:
    """Whether all texts in a JSON value can be written as UTF-8, which has no halves of surrogate pairs."""
    return not re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False))
