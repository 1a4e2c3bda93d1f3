"""Features by the million: flat arrays in place of objects, and the texts that fit one row encoded many at a time.

`rows.word_features` says what a feature is; here the same is computed for a million words at once.
"""
import functools
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, BinaryIO

import numpy as np

from minibert.core.batch import Feature
from minibert.data.rows import WordNumbers, word_features
from minibert.data.tokenizer import Spelling, Tokenizer
from minibert.data.wordlist import Words
from minibert.files import Json

CHUNK = 2 ** 20                                    # words encoded at a time


@dataclass(frozen=True, eq=False)
class Features(Sequence[Feature]):
    """N features in arrays; a Feature is made when asked for. A slice is Features again.

    What they are `about` is a frozen dataclass with fields of int, float or np.ndarray, and each field is a column:
    numbers [N], or arrays of whole numbers end to end; those of one record have the same length.
    """
    example: np.ndarray                            # [N] number of the example each was cut from
    piece_ends: np.ndarray                         # int64 [N+1]: feature i has pieces piece_ends[i]:piece_ends[i + 1]
    pick_ends: np.ndarray                          # int64 [N+1], the same for picks and labels
    about_ends: np.ndarray                         # int64 [N+1], the same for the arrays of `about`
    ids: np.ndarray                                # int32, of all features one after the other
    types: np.ndarray                              # this and what follows in the smallest integers that hold it
    picks: np.ndarray
    labels: np.ndarray
    kind: type | None = None                       # of what they are about; None: nothing
    about: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]: pieces of each feature."""
        return np.diff(self.piece_ends)

    @property
    def ends(self) -> dict[str, np.ndarray]:
        """{name: int64 [N+1]} of all that divide columns among the features."""
        return {"piece_ends": self.piece_ends, "pick_ends": self.pick_ends, "about_ends": self.about_ends}

    @property
    def columns(self) -> dict[str, tuple[np.ndarray, str]]:
        """{name: (numbers, the name of the ends that divide them, "" where every feature has one)}."""
        about = {f"about.{f.name}": (self.about[f.name], "about_ends" if f.type is np.ndarray else "")
                 for f in fields_of(self.kind)}
        return {"example": (self.example, ""), "ids": (self.ids, "piece_ends"), "types": (self.types, "piece_ends"),
                "picks": (self.picks, "pick_ends"), "labels": (self.labels, "pick_ends"), **about}

    def __len__(self) -> int:
        return len(self.example)

    def __getitem__(self, i: int | slice) -> "Feature | Features":
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        i = range(len(self))[i]
        pieces, picks, inside = (slice(ends[i], ends[i + 1])
                                 for ends in (self.piece_ends, self.pick_ends, self.about_ends))
        about = self.kind and self.kind(*(self.about[f.name][inside].astype(np.int64) if f.type is np.ndarray else
                                          f.type(self.about[f.name][i]) for f in fields_of(self.kind)))
        return Feature(int(self.example[i]), *(x.astype(np.int64) for x in (
            self.ids[pieces], self.types[pieces], self.picks[picks], self.labels[picks])), about)

    def take(self, numbers: np.ndarray) -> "Features":
        """The features of these numbers, in their order."""
        counts = {name: np.diff(ends)[numbers] for name, ends in self.ends.items()}
        cells = {"": numbers, **{name: ragged(ends[numbers], counts[name]) for name, ends in self.ends.items()}}
        return Features.from_arrays({**{name: running(n) for name, n in counts.items()},
                                     **{name: x[cells[ends]] for name, (x, ends) in self.columns.items()}}, self.kind)

    def arrays(self) -> dict[str, np.ndarray]:
        """What the cache keeps: from_arrays() makes the same of it."""
        return {**self.ends, **{name: x for name, (x, _) in self.columns.items()}}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], kind: type | None) -> "Features":
        """What arrays() gave, about records of `kind` if it has columns of them."""
        about = {name.removeprefix("about."): x for name, x in arrays.items() if name.startswith("about.")}
        own = {name: x for name, x in arrays.items() if not name.startswith("about.")}
        return cls(**own, kind=kind if about else None, about=about)

    def checked(self) -> "Features":
        """self; raises ValueError or KeyError where arrays that came from outside do not fit each other."""
        for numbers, ends in self.columns.values():
            check_ends(self.ends[ends] if ends else np.arange(len(numbers) + 1), len(self), len(numbers))
        return self

    def fingerprint(self) -> dict[str, np.ndarray]:
        """What tells these rows from others: every number, those of a record in one stretch, floats by their bits."""
        columns = [x for name, x in self.columns.items() if name.startswith("about.")]
        counts = [np.diff(self.about_ends) if ends else np.ones(len(self), np.int64) for _, ends in columns]
        every = running(sum(counts, np.zeros(len(self), np.int64)))

        numbers, begins = np.zeros(every[-1], np.int64), every[:-1].copy()
        for (x, _), count in zip(columns, counts, strict=True):
            numbers[ragged(begins, count)] = x.view(np.int64) if x.dtype == np.float64 else x
            begins += count
        own = {name: x for name, x in self.arrays().items() if not name.startswith("about")}
        return {**own, "target_ends": every, "targets": narrow(numbers)}


@functools.cache                                   # asked for with every feature
def fields_of(kind: type | None) -> tuple[Field, ...]:
    """The fields of a dataclass; of none none."""
    return fields(kind) if kind else ()


def record_to_json(record: object) -> Json | None:
    """The fields of what a feature is about, arrays as lists; None stays None."""
    return record and {name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in vars(record).items()}


def record_from_json(kind: type | None, values: Json | None) -> Any:
    """What record_to_json() was given. Raises KeyError, TypeError or ValueError for values of another kind."""
    if values is None:
        return None
    if kind is None:
        raise ValueError("rows of another task")
    return kind(*(np.array(values[f.name], np.int64) if f.type is np.ndarray else f.type(values[f.name])
                  for f in fields(kind)))


def narrow(values: np.ndarray) -> np.ndarray:
    """The same whole numbers in the smallest signed integers that hold them all. Raises TypeError for others."""
    if values.dtype.kind not in "iu":
        raise TypeError(f"whole numbers expected, not {values.dtype}")
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    fitting = (k for k in (np.int8, np.int16, np.int32) if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    return values.astype(next(fitting, np.int64))


def running(counts: np.ndarray) -> np.ndarray:
    """[N] counts -> int64 [N+1], 0 and the sums so far: where each of N stretches begins, and the end of the last."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def check_ends(ends: np.ndarray, count: int, total: int) -> None:
    """Raises ValueError unless `ends` divides `total` cells into `count` stretches."""
    if len(ends) != count + 1 or ends[0] != 0 or ends[-1] != total or (np.diff(ends) < 0).any():
        raise ValueError(f"{len(ends)} ends do not divide {total} numbers into {count} parts")


def ragged(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """begins[0], begins[0] + 1, ... (counts[0] of them), begins[1], ...: the cells of N stretches, one after the other.

    >>> ragged(np.array([7, 2]), np.array([3, 2])).tolist()
    [7, 8, 9, 2, 3]
    """
    ends = running(counts)
    return np.arange(ends[-1]) + np.repeat(begins - ends[:-1], counts)


def pack(features: Iterable[Feature]) -> Features:
    """Any features, one by one, as arrays; all are about a record of one kind, or none is."""
    rows = list(features)
    flat = {name: np.concatenate([np.zeros(0, np.int64), *(vars(f)[name] for f in rows)])
            for name in ("ids", "types", "picks", "labels")}
    kind = type(rows[0].about) if rows and rows[0].about is not None else None
    counts, about = [0] * len(rows), {}
    for f in fields_of(kind):
        values = [vars(row.about)[f.name] for row in rows]
        if f.type is np.ndarray:
            counts, about[f.name] = [len(x) for x in values], narrow(np.concatenate(values))
        else:
            about[f.name] = np.array(values, np.float64) if f.type is float else narrow(np.array(values))

    ends = [running(np.array(n, np.int64)) for n in ([len(f.ids) for f in rows], [len(f.picks) for f in rows], counts)]
    return compact(np.array([f.example for f in rows], np.int64), *ends, kind=kind, about=about, **flat)


def compact(example: np.ndarray, *ends: np.ndarray, ids: np.ndarray, kind: type | None = None,
            about: Mapping[str, np.ndarray] | None = None, **others: np.ndarray) -> Features:
    """Features with every array in its narrow form."""
    return Features(narrow(example), *ends, narrow(ids).astype(np.int32, casting="safe"),
                    **{name: narrow(x) for name, x in others.items()}, kind=kind, about=about or {})


def concatenate(parts: Iterable[Features]) -> Features:
    """All parts as one, in their order."""
    every = [part for part in parts if len(part)] or [pack([])]
    ends = {name: running(np.concatenate([np.diff(p.ends[name]) for p in every])) for name in every[0].ends}
    columns = {name: np.concatenate([p.columns[name][0] for p in every]) for name in every[0].columns}
    return Features.from_arrays(ends | columns, every[0].kind)


def spill(parts: Iterable[Features]) -> Features:
    """concatenate() for more than fits in memory: pieces and types are written, part by part, to files without a name.

    The system reads them back page by page when a row is asked for, and frees the files once nothing refers to
    them. They lie in the folder for temporary files (TMPDIR).
    """
    small: list[Features] = []
    with tempfile.TemporaryFile() as ids, tempfile.TemporaryFile() as types:
        for part in parts:
            part.ids.astype(np.int32, casting="safe").tofile(ids)
            part.types.astype(np.int16, casting="same_kind").tofile(types)
            small.append(replace(part, ids=part.ids[:0], types=part.types[:0]))
        whole = concatenate(small)
        return replace(whole, ids=mapped(ids, np.int32), types=mapped(types, np.int16))


def mapped(file: BinaryIO, dtype: type) -> np.ndarray:
    """The numbers in a file that was just written, which lives on as long as they do."""
    file.flush()
    size = os.fstat(file.fileno()).st_size
    return np.memmap(file, dtype, "r") if size else np.zeros(0, dtype)


def texts_of_words(words: Words, numbers: np.ndarray, ends: np.ndarray, labels: np.ndarray, tokenizer: Tokenizer,
                   max_pieces: int, overlap: int) -> Iterator[Features]:
    """What word_features gives for N texts, about CHUNK words at a time; a text without words has no feature.

    `numbers`: [W] the words of all texts, into `words`; `ends`: int64 [N+1], where each text begins in them, and the
    end of the last; `labels`: [W]. Only distinct words of a chunk are tokenised, so memory is bounded by the chunk and
    what comes out, whatever the words are.
    """
    first = 0
    while first < len(ends) - 1:
        stop = max(first + 1, int(np.searchsorted(ends, ends[first] + CHUNK, side="right")) - 1)
        chunk = slice(ends[first], ends[stop])

        distinct, rows = np.unique(numbers[chunk], return_inverse=True)
        spelling = tokenizer.spell(list(words.take(distinct)))
        pieces = np.diff(running(np.diff(spelling.ends)[rows])[ends[first:stop + 1] - ends[first]])
        counts = np.diff(ends[first:stop + 1])

        fits = pieces <= max_pieces - 2
        short = np.flatnonzero(fits & (counts > 0))
        cells = ragged(ends[first:stop][short] - ends[first], counts[short])
        parts = one_row_each(first + short, counts[short], rows[cells], labels[chunk][cells], spelling, tokenizer)

        if not fits.all():
            texts = {i: slice(ends[i], ends[i + 1]) for i in (first + np.flatnonzero(~fits)).tolist()}
            spelt = tokenizer.pieces([list(words.take(numbers[text])) for text in texts.values()])
            parts = concatenate([parts, pack(f for (i, text), p in zip(texts.items(), spelt, strict=True) for f in
                                      word_features(i, p, tokenizer, max_pieces, overlap, labels[text]))])
            parts = parts.take(np.argsort(parts.example, kind="stable"))
        yield parts
        first = stop


def one_row_each(example: np.ndarray, counts: np.ndarray, words: np.ndarray, labels: np.ndarray, spelling: Spelling,
                 tokenizer: Tokenizer) -> Features:
    """word_features of N texts that fit one row each, all at once.

    `example`, `counts`: [N] number of each text, and its words, at least one; `words`: [W] into `spelling`;
    `labels`: [W].
    """
    lengths = np.diff(spelling.ends)[words]                                   # [W] pieces of each word
    word_ends, text_ends = running(lengths), running(counts)                  # [W+1] in pieces, [N+1] in words
    piece_ends = word_ends[text_ends] + 2 * np.arange(len(counts) + 1)        # [CLS] and [SEP] on top

    inside = np.ones(piece_ends[-1], bool)
    inside[piece_ends[:-1]] = inside[piece_ends[1:] - 1] = False
    ids, types = np.empty(len(inside), np.int32), np.zeros(len(inside), np.int32)
    ids[piece_ends[:-1]], ids[piece_ends[1:] - 1] = tokenizer.start, tokenizer.end
    ids[inside] = spelling.ids[ragged(spelling.ends[words], lengths)]
    types[inside] = np.repeat(tokenizer.types * spelling.shapes[words], lengths)
    picks = word_ends[:-1] - np.repeat(word_ends[text_ends[:-1]], counts) + 1

    numbers = narrow(np.arange(len(words)) - np.repeat(text_ends[:-1], counts))
    return compact(example, piece_ends, text_ends, text_ends, kind=WordNumbers, about={"words": numbers}, ids=ids,
                   types=types, picks=picks, labels=labels)
