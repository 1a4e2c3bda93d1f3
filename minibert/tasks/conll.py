"""CoNLL columns: files of a word and a tag a line, as examples by the million."""
import dataclasses
import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

import numpy as np

from minibert.data.features import check_ends, narrow, ragged, running
from minibert.data.tables import read_short_lines
from minibert.data.wordlist import REMEMBERED, Numbering, Words
from minibert.errors import MinibertError
from minibert.files import open_regular
from minibert.scores.tags import invalid_starts, to_iob2
from minibert.tasks.columns import AHEAD, Columns, Reading

Value = TypeVar("Value")
MOST_TAGS = 2500                                   # different ones in a file: pairs of them are counted in a table
MOST_WORDS = 100_000                               # of a sentence: all of them are encoded at once
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

    def take(self, numbers: np.ndarray) -> "Examples":
        """The examples of these numbers, in their order."""
        sentences = np.diff(self.example_ends)[numbers]
        kept = ragged(self.example_ends[numbers], sentences)
        words = np.diff(self.sentence_ends)[kept]
        cells = ragged(self.sentence_ends[kept], words)
        return dataclasses.replace(self, numbers=self.numbers[cells], tags=self.tags[cells], lines=self.lines[numbers],
                                   sentence_ends=running(words), example_ends=running(sentences))

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
    with open_regular(file, "rb") as f:
        return any(line.startswith(b"-DOCSTART-") for line in f)


def read_examples(file: Path, whole: bool, reading: Reading | None = None) -> Examples:
    """A file as one example a document (`whole`) or a sentence; raises what read_conll raises."""
    return gathered(file, read_conll(file, reading), whole)


def gathered(file: Path, documents: Iterable[Iterable[Sentence]], whole: bool) -> Examples:
    """The sentences of a file as one example a document (`whole`) or a sentence. Raises MinibertError for none."""
    words, names = Numbering(), Numbering()
    numbers, tags, ends, lines, begins = array("i"), array("i"), array("q", [0]), array("q"), array("q")
    for document in documents:
        begins.append(len(lines))
        for sentence in document:
            numbers.extend(map(words.__getitem__, sentence.words))
            tags.extend(map(names.__getitem__, sentence.tags))
            if len(names) > MOST_TAGS:
                raise MinibertError(f"{file}:{sentence.line}: more than {MOST_TAGS:,} different tags so far; is the "
                                    "last column one of tags?")
            ends.append(len(numbers))
            lines.append(sentence.line)

    if not begins:
        raise MinibertError(f"{file}: no sentence in it; expected lines of a word and a tag")

    first = np.array(begins) if whole else np.arange(len(lines))             # sentence where each example begins
    return Examples(file, words.words(), names.words(), np.array(numbers, np.int32), narrow(np.array(tags)),
                    np.array(ends), np.append(first, len(lines)), np.array(lines)[first])


def read_conll(file: Path, reading: Reading | None = None) -> Iterator[Iterator[Sentence]]:
    """The documents of a file, each as its sentences, read while they are taken: take all of one before the next.

    Raises MinibertError with file:line for what does not parse.
    """
    for _, group in itertools.groupby(read_sentences(file, reading or Reading()), key=lambda pair: pair[0]):
        yield (sentence for _, sentence in group)


def read_sentences(file: Path, reading: Reading) -> Iterator[tuple[int, Sentence]]:
    """(number of its document, sentence) of every sentence of a file."""
    document, current = 0, None
    parsed: dict[str, tuple[str, str]] = {}                                   # lines come again and again
    lines = read_short_lines(file)
    head = list(itertools.islice(lines, AHEAD))
    columns = Columns(file, head, reading)
    for number, line in enumerate(itertools.chain(head, lines, [""]), 1):     # an empty line ends the last one
        if line not in parsed:
            text = line.strip(" \t\n")
            if not text or text.startswith("-DOCSTART-"):
                if current is not None:
                    yield document, current
                current, document = None, document + bool(text)
                continue
            where = f"{file}:{number}"
            if columns.passes_over(text, current is None, where):
                continue
            if len(parsed) >= REMEMBERED:
                parsed.clear()
            parsed[line] = columns.read(text, where)

        if current is None:
            current = Sentence([], [], number)
        word, tag = parsed[line]
        current.words.append(word)
        current.tags.append(tag)
        if len(current.words) > MOST_WORDS:
            raise MinibertError(f"{file}:{current.line}: a sentence of more than {MOST_WORDS:,} words; an empty line "
                                "ends one")


def begins_wrongly(before: str, tag: str) -> int:
    """1 where an entity begins at `tag` otherwise than IOB2 allows, with `before` in front of it; else 0."""
    return invalid_starts([before, tag]) - invalid_starts([before])
