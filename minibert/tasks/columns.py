"""Which columns of a CoNLL file hold the word and its tag, decided on its first lines; and how its tags are written.

What is certain is read, and said once in Reading.notes; what a later line contradicts is refused there.
"""
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minibert.errors import MinibertError
from minibert.scores.tags import spelled

MOST_LETTERS = 100_000                             # of a line: all of them are encoded at once
AHEAD = 1000                                       # lines of a file that are looked at before it is read
NUMBER, NO_WORD = re.compile("[0-9]{1,9}"), re.compile(r"[0-9]+[-.][0-9]+")        # 3; 3-4 and 5.1 of CoNLL-U
COLUMN = re.compile("-?[1-9][0-9]{0,4}")           # as --columns names it


@dataclass
class Reading:
    """How files are to be read, and what is worth telling of it."""
    columns: Mapping[str, str] = field(default_factory=dict)                  # what --columns says of each name
    notes: dict[str, str] = field(default_factory=dict)                       # {kind: first place and what it means}

    @property
    def members(self) -> dict[str, str]:
        """What it says of JSON: names, not numbers."""
        return {what: name for what, name in self.columns.items() if not COLUMN.fullmatch(name)}

    def number(self, name: str, file: Path) -> int | None:
        """A column of --columns as an index; None: not given. Raises MinibertError for what is no number but 0."""
        value = self.columns.get(name)
        if value is None:
            return None
        if not COLUMN.fullmatch(value):
            raise MinibertError(f"--columns has {name}={value}; the columns of {file} have numbers, from 1 on and from "
                                "the end -1, as in word=1,tag=-1")
        return int(value) - (int(value) > 0)


class TagForm:
    """The tags of one file as O and PREFIX-TYPE. The first that is not O says in which form all are written."""

    def __init__(self, reading: Reading):
        self.reading, self.form, self.first = reading, "", ""
        self.known: dict[str, str] = {}            # tags that were read

    def read(self, tag: str, where: str) -> str | None:
        """A tag in the usual form; None for what is none. Raises MinibertError for one of another form."""
        if tag in self.known:
            return self.known[tag]
        if (found := spelled(tag)) is None:
            return None
        form, usual = found
        if form and not self.form:
            self.form, self.first = form, f"{tag!r} in {where}"
            if form == "B":
                self.reading.notes.setdefault(form, f"{where}: tags such as {tag!r} name no type; all entities are of "
                                                    f"one type, {usual[2:]}")
            elif form != "B-TYPE":
                self.reading.notes.setdefault(form, f"{where}: tags are written {form}; {tag!r} is read as {usual!r}")
        if form not in ("", self.form):
            raise MinibertError(f"{where}: the tag {tag!r} is written otherwise than {self.first}; write all tags of a "
                                "file in one form, O and B-TYPE, I-TYPE")
        self.known[tag] = usual
        return usual


class Columns:
    """How the lines of one file are cut, found out from its first AHEAD lines."""

    def __init__(self, file: Path, head: Sequence[str], reading: Reading):
        """Raises MinibertError where it is not certain which column is the word."""
        self.reading, self.tags = reading, TagForm(reading)
        word, tag = reading.number("word", file), reading.number("tag", file)
        sentences = sentences_of(head)
        rows = [row for sentence in sentences for row in sentence]
        self.width = mixed_width([text for _, text in rows])
        if self.width:
            number, text = rows[0]
            reading.notes.setdefault("mixed", f"{file}:{number}: blanks and tabs stand between columns, {self.width} "
                                              f"in a line; the first word is {self.split(text)[0]!r}")

        cells = [[self.split(text) for _, text in sentence] for sentence in sentences]
        self.widths = {len(parts) for sentence in cells for parts in sentence}
        self.numbered = is_numbered(file, sentences, cells, word)
        self.word = word if word is not None else int(self.numbered)
        self.tag = tag if tag is not None else -1
        self.strict = self.numbered and word is None                           # every line must begin with a number
        self.others = other_tags([parts for sentence in cells for parts in sentence], self.word, self.tag)
        if self.strict:
            self.note_numbers(f"{file}:{rows[0][0]}", tag is None)

    def note_numbers(self, where: str, last: bool) -> None:
        """Tell that the first column is no word, and which is the tag where there are two to choose from."""
        also = "; the tag is the last column, and column {0} has tags too: --columns tag={0} reads those"
        self.reading.notes.setdefault("numbers", f"{where}: the first column counts, it is no word; the word is column "
                                      f"{self.word + 1}{also.format(*self.others) if last and self.others else ''}")

    def split(self, text: str) -> list[str]:
        """The columns of a line: tabs between, or blanks where there is no tab; both where all lines mix them."""
        if self.width:
            return re.split("[ \t]+", text)
        return [part.strip(" ") for part in text.split("\t")] if "\t" in text else re.split(" +", text)

    def passes_over(self, text: str, begins: bool, where: str) -> bool:
        """Whether a line is none of a word: a comment where a sentence `begins`, or several words or none by number."""
        if self.numbered and NO_WORD.fullmatch(self.split(text)[0]):
            self.reading.notes.setdefault("ranges", f"{where}: lines numbered as 3-4 or 5.1 are passed over; each word "
                                                    "has a line of its own")
            return True
        if not begins or not text.startswith("#" if self.numbered else ("# ", "#\t")):
            return False
        parts = self.split(text)
        like_others = not self.widths or (len(parts) in self.widths and spelled("".join(parts[self.tag:][:1])))
        if not self.numbered and like_others:
            return False
        self.reading.notes.setdefault("comments", f"{where}: lines with # before the first word of a sentence are "
                                                  "passed over as comments")
        return True

    def read(self, text: str, where: str) -> tuple[str, str]:
        """The word of a line and its tag in the usual form. Raises MinibertError where they are not there."""
        if len(text) > MOST_LETTERS:
            raise MinibertError(f"{where}: {shown(text)} is a line of {len(text):,} characters, {MOST_LETTERS:,} at "
                                "most; expected a word and a tag, as in 'Paris B-LOC'")
        parts = self.split(text)
        word_at, tag_at = (k if k >= 0 else len(parts) + k for k in (self.word, self.tag))
        if (len(parts) < 2 or (self.width and len(parts) != self.width) or word_at == tag_at
                or not (0 <= word_at < len(parts) and 0 <= tag_at < len(parts) and parts[word_at] and parts[tag_at])
                or (self.strict and not NUMBER.fullmatch(parts[0]))):
            raise MinibertError(f"{where}: {shown(text)} {self.fault(parts)}")
        word, written = parts[word_at], parts[tag_at]
        if " " in word:
            self.reading.notes.setdefault("blanks", f"{where}: words hold blanks where tabs stand between columns, the "
                                                    f"first is {word!r}")
        if (tag := self.tags.read(written, where)) is None:
            raise MinibertError(f"{where}: {written!r} is no tag; expected O, B-TYPE, I-TYPE, E-TYPE or S-TYPE as "
                                f"{named(self.tag)} of {shown(text)}{self.advice(written, len(parts))}")
        return word, tag

    def fault(self, parts: Sequence[str]) -> str:
        """What is wrong with the columns of a line that read() refuses."""
        if len(parts) < 2:
            return "has one column; expected a word and a tag, as in 'Paris B-LOC'"
        if self.width and len(parts) != self.width:
            return (f"has {len(parts)} columns, the first line {self.width}, blanks and tabs between; write tabs alone "
                    "between columns")
        if self.strict and not NUMBER.fullmatch(parts[0]):
            return ("begins with no number, as all lines before do; --columns word=1 takes the first column for the "
                    "word")
        return (f"has {len(parts)} columns; expected the word in {named(self.word)} and its tag in {named(self.tag)} "
                "(--columns)")

    def advice(self, written: str, width: int) -> str:
        """What to do about a tag that is none, in a line of so many columns."""
        alone = " (a type alone does not say where a name begins)" if written[:1].isalpha() else ""
        other = self.others[0] if self.others else "N"
        return alone + (f"; --columns tag={other} takes another column" if width > 2 else "")


def shown(text: str) -> str:
    """A line as a message has it."""
    return repr(text if len(text) < 60 else text[:57] + "...")


def named(column: int) -> str:
    """An index of a column as --columns counts."""
    return "the last column" if column == -1 else f"column {column + (column >= 0)}"


def sentences_of(head: Sequence[str]) -> list[list[tuple[int, str]]]:
    """(line, what stands in it) of each sentence among the first lines; what may be a comment is left out."""
    sentences: list[list[tuple[int, str]]] = [[]]
    for number, line in enumerate(head, 1):
        text = line.strip(" \t\n")
        if not text or text.startswith("-DOCSTART-"):
            sentences.append([])
        elif sentences[-1] or not text.startswith("#"):
            sentences[-1].append((number, text))
    return [sentence for sentence in sentences if sentence]


def mixed_width(texts: Sequence[str]) -> int:
    """How many columns the first line has, if tabs and blanks stand between them; 0: blanks beside tabs are in words.

    "Anna NNP<tab>B-PER" has three. Words do not all hold blanks, least of all those outside of names: so where every
    line with a tab has a blank beside it, one with the tag O too, it stands between columns.
    """
    parts = [re.split("[ \t]+", text) for text in texts]
    tabbed = [(text, cut) for text, cut in zip(texts, parts, strict=True) if "\t" in text]
    if len(texts) < 2 or not tabbed or not all(len(cut) > text.count("\t") + 1 for text, cut in tabbed):
        return 0
    outside = parts if len({len(cut) for cut in parts}) == 1 else [cut for _, cut in tabbed]
    return len(parts[0]) if any("O" in cut[1:] for cut in outside) else 0


def counts_words(sentence: Sequence[Sequence[str]]) -> bool:
    """Whether the first column goes up by one from each line of a sentence to the next, and two columns follow."""
    words = [parts for parts in sentence if not NO_WORD.fullmatch(parts[0])]
    if not all(len(parts) > 2 and NUMBER.fullmatch(parts[0]) for parts in words):
        return False
    return all(int(b[0]) == int(a[0]) + 1 for a, b in itertools.pairwise(words))


def is_numbered(file: Path, sentences: Sequence[Sequence[tuple[int, str]]],
                cells: Sequence[Sequence[Sequence[str]]], word: int | None) -> bool:
    """Whether the first column counts the words, the lines of `sentences` being cut into `cells`.

    It must do so in every sentence; in most where --columns says which is the `word`. Raises MinibertError for doubt.
    """
    counting = [counts_words(parts) for parts in cells]
    several = [counts for counts, parts in zip(counting, cells, strict=True) if len(parts) > 1]
    mostly = 2 * sum(several) > len(several)
    if word is not None or (mostly and all(counting)):
        return mostly and word != 0

    lone = bool(cells) and not several and all(counting) and all(parts[0][0] == "1" for parts in cells)
    if mostly or lone:
        number, text = sentences[0 if lone else counting.index(False)][0]
        why = "every sentence is one line that begins with 1" if lone else "other sentences count in column 1"
        raise MinibertError(f"{file}:{number}: {text[:60]!r}: {why}; say with --columns word=1 or word=2 where the "
                            "words are")
    return False


def other_tags(rows: Sequence[Sequence[str]], word: int, tag: int) -> list[int]:
    """The columns, from 1 on, beside that of the tag in which all first lines have tags, some of them not O."""
    rows = [parts for parts in rows if not NO_WORD.fullmatch(parts[0])]
    width = min(map(len, rows), default=0)
    forms = {k: [spelled(parts[k]) for parts in rows] for k in range(width) if k not in (word, tag, width + tag)}
    return [k + 1 for k, found in forms.items() if all(found) and any(pair and pair[0] for pair in found)]
