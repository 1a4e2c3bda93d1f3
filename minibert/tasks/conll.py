"""CoNLL columns: files of a word and a tag a line, as examples by the million."""
import dataclasses
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

import numpy as np

from minibert.data.features import check_ends, narrow
from minibert.data.tables import read_lines
from minibert.data.wordlist import REMEMBERED, Numbering, Words
from minibert.errors import MinibertError
from minibert.scores.tags import invalid_starts, is_tag, to_iob2

Value = TypeVar("Value")
MOST_TAGS = 1000                                   # different ones in a file: pairs of them are counted in a table
MOST_WORDS, MOST_LETTERS = 100_000, 100_000        # of a sentence, of a line: all of either are encoded at once
SUFFIXES = (".conll", ".txt", ".tsv", ".iob", ".bio", ".iob2")


@dataclass(frozen=True)
class Example:
    """A sentence, or a document of several."""
    words: list[str]
    tags: list[str]                                # one a word; empty for raw text
    sentences: list[int]                           # word where each sentence begins
    where: str                                     # file:line of the first word
    text: str = ""                                 # raw text, where the words were cut from one
    spans: Sequence[tuple[int, int]] = ()          # characters of each word in `text`

    def cut(self, values: Sequence[Value]) -> list[list[Value]]:
        """One value a word -> one list a sentence."""
        ends = [*self.sentences[1:], len(self.words)][:len(self.sentences)]
        return [list(values[a:b]) for a, b in zip(self.sentences, ends, strict=True)]


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """N examples of one file in arrays; an Example is made when asked for. A slice without a step is Examples again."""
    file: Path
    words: Words                                   # the distinct words
    names: Words                                   # the distinct tags
    numbers: np.ndarray                            # int32 [W] every word of the file, into `words`
    tags: np.ndarray                               # [W] its tag, into `names`
    sentence_ends: np.ndarray                      # int64 [S+1]: sentence s begins at word sentence_ends[s]
    example_ends: np.ndarray                       # int64 [N+1]: the same for an example's sentences
    lines: np.ndarray                              # int64 [N] line of its first word

    @property
    def word_ends(self) -> np.ndarray:
        """int64 [N+1]: example i has words word_ends[i]:word_ends[i + 1]."""
        return self.sentence_ends[self.example_ends]

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, i: int) -> Example: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[Example]: ...

    def __getitem__(self, i: int | slice) -> Example | Sequence[Example]:
        if isinstance(i, slice):
            chosen = range(len(self))[i]
            if chosen.step != 1:
                return [self[j] for j in chosen]
            return dataclasses.replace(self, lines=self.lines[i],
                                       example_ends=self.example_ends[chosen.start:chosen.start + len(chosen) + 1])
        i = range(len(self))[i]
        bounds = self.sentence_ends[self.example_ends[i]:self.example_ends[i + 1] + 1]
        inside = slice(bounds[0], bounds[-1])
        return Example(list(self.words.take(self.numbers[inside])), list(self.names.take(self.tags[inside])),
                       (bounds[:-1] - bounds[0]).tolist(), f"{self.file}:{self.lines[i]}")

    def count_tags(self) -> dict[str, int]:
        """{tag: words that have it}, in the order of their first words."""
        ends = self.word_ends
        tags = self.tags[ends[0]:ends[-1]]
        counts = np.bincount(tags, minlength=len(self.names))
        there = sorted(np.flatnonzero(counts), key=lambda k: int((tags == k).argmax()))
        return {self.names[int(k)]: int(counts[k]) for k in there}

    def neighbours(self) -> np.ndarray:
        """int32 [W]: (tag before) · (len(names) + 1) + tag; len(names) stands for the O before a sentence."""
        before = np.roll(self.tags.astype(np.int32), 1)
        before[self.sentence_ends[:-1]] = len(self.names)
        return before * (len(self.names) + 1) + self.tags

    def count_neighbours(self) -> Counter[tuple[str, str]]:
        """{(tag before, tag): words}; "O" stands before the first word of a sentence. Examples of whole files only."""
        names, counts = [*self.names, "O"], np.bincount(self.neighbours())
        result: Counter[tuple[str, str]] = Counter()
        for pair in np.flatnonzero(counts).tolist():
            result[names[pair // len(names)], names[pair % len(names)]] += int(counts[pair])
        return result

    def in_iob2(self, scheme: str) -> "Examples":
        """The same with tags in IOB2: what a tag becomes depends on nothing but the one before it."""
        names, pairs, new = [*self.names, "O"], self.neighbours(), Numbering()
        table = np.zeros(len(names) ** 2, np.int64)
        for pair in np.flatnonzero(np.bincount(pairs)).tolist():
            table[pair] = new[to_iob2([names[pair // len(names)], names[pair % len(names)]], scheme)[1]]
        return dataclasses.replace(self, names=new.words(), tags=narrow(table)[pairs])

    def arrays(self) -> dict[str, np.ndarray]:
        """What the cache keeps: everything but the name of the file."""
        return {"words.letters": self.words.letters, "words.ends": self.words.ends, "names.letters": self.names.letters,
                "names.ends": self.names.ends, **{name: vars(self)[name] for name in ARRAYS}}

    @classmethod
    def from_arrays(cls, file: Path, arrays: dict[str, np.ndarray]) -> "Examples":
        """The examples that arrays() was taken from, or of a file of the same contents.

        Raises ValueError or KeyError for arrays that do not fit each other.
        """
        words, names = (Words(arrays[f"{x}.letters"], arrays[f"{x}.ends"]) for x in ("words", "names"))
        found = cls(file, words, names, **{name: arrays[name] for name in ARRAYS})
        check_ends(found.example_ends, len(found), len(found.sentence_ends) - 1)
        for ends, cells in ((words.ends, words.letters), (names.ends, names.letters),
                            (found.sentence_ends, found.numbers), (found.sentence_ends, found.tags)):
            check_ends(ends, len(ends) - 1, len(cells))
        for values, count in ((found.numbers, len(words)), (found.tags, len(names))):
            if len(values) and not 0 <= values.min() <= values.max() < count:
                raise ValueError(f"numbers outside of 0 to {count - 1}")
        return found


ARRAYS = ("numbers", "tags", "sentence_ends", "example_ends", "lines")


@dataclass
class Sentence:
    """As it stands in the file."""
    words: list[str]
    tags: list[str]
    line: int                                      # of its first word


def has_documents(file: Path) -> bool:
    """Whether some line of a file begins with -DOCSTART-."""
    with open(file, "rb") as f:
        return any(line.startswith(b"-DOCSTART-") for line in f)


def read_examples(file: Path, whole: bool) -> Examples:
    """A file as one example a document (`whole`) or a sentence, tags as they stand; raises what read_conll raises."""
    words, names = Numbering(), Numbering()
    numbers, tags, ends, lines, documents = array("i"), array("i"), array("q", [0]), array("q"), array("q")
    for document in read_conll(file):
        documents.append(len(lines))
        for sentence in document:
            numbers.extend(map(words.__getitem__, sentence.words))
            tags.extend(map(names.__getitem__, sentence.tags))
            if len(names) > MOST_TAGS:
                raise MinibertError(f"{file}:{sentence.line}: more than {MOST_TAGS:,} different tags so far; is the "
                                    "last column one of tags?")
            ends.append(len(numbers))
            lines.append(sentence.line)

    first = np.array(documents) if whole else np.arange(len(lines))          # sentence where each example begins
    return Examples(file, words.words(), names.words(), np.array(numbers, np.int32), narrow(np.array(tags)),
                    np.array(ends), np.append(first, len(lines)), np.array(lines)[first])


def read_conll(file: Path) -> Iterator[Iterator[Sentence]]:
    """The documents of a file, each as its sentences, read while they are taken: take all of one before the next.

    Raises MinibertError with file:line for what does not parse.
    """
    found = False
    for _, group in itertools.groupby(read_sentences(file), key=lambda pair: pair[0]):
        found = True
        yield (sentence for _, sentence in group)
    if not found:
        raise MinibertError(f"{file}: no sentence in it; expected lines of a word and a tag")


def read_sentences(file: Path) -> Iterator[tuple[int, Sentence]]:
    """(number of its document, sentence) of every sentence of a file."""
    document, current = 0, None
    parsed: dict[str, tuple[str, str]] = {}                                   # lines come again and again
    for number, line in enumerate(itertools.chain(read_lines(file), [""]), 1):  # an empty line ends the last one
        if line not in parsed:
            text = line.strip(" \t\n")
            if not text or text.startswith("-DOCSTART-"):
                if current is not None:
                    yield document, current
                current, document = None, document + bool(text)
                continue
            if len(parsed) >= REMEMBERED:
                parsed.clear()
            parsed[line] = columns(text, f"{file}:{number}")

        if current is None:
            current = Sentence([], [], number)
        word, tag = parsed[line]
        current.words.append(word)
        current.tags.append(tag)
        if len(current.words) > MOST_WORDS:
            raise MinibertError(f"{file}:{current.line}: a sentence of more than {MOST_WORDS:,} words; an empty line "
                                "ends one")


def columns(line: str, where: str) -> tuple[str, str]:
    """First and last column: a word and its tag. Raises MinibertError where there is no second or it is no tag."""
    shown = line if len(line) < 60 else line[:57] + "..."
    if len(line) > MOST_LETTERS:
        raise MinibertError(f"{where}: {shown!r} is a line of {len(line):,} characters, {MOST_LETTERS:,} at most; "
                            "expected a word and a tag, as in 'Paris B-LOC'")
    parts = [p.strip(" ") for p in line.split("\t")] if "\t" in line else re.split(" +", line)
    if len(parts) < 2 or not parts[0]:
        raise MinibertError(f"{where}: {shown!r} has one column; expected a word and a tag, as in 'Paris B-LOC'")
    if not is_tag(parts[-1]):
        raise MinibertError(f"{where}: {parts[-1]!r} is no tag; expected O, B-TYPE, I-TYPE, E-TYPE or S-TYPE as the "
                            f"last column of {shown!r}")
    return parts[0], parts[-1]


def begins_wrongly(before: str, tag: str) -> int:
    """1 where an entity begins at `tag` otherwise than IOB2 allows, with `before` in front of it; else 0."""
    return invalid_starts([before, tag]) - invalid_starts([before])
