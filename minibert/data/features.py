"""Features by the million: flat arrays in place of objects, and the texts that fit one row encoded many at a time.

`rows.word_features` says what a feature is; here the same is computed for a million words at once.
"""
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, BinaryIO

import numpy as np

from minibert.core.batch import Feature
from minibert.data.rows import WordNumbers, word_features
from minibert.data.tokenizer import Spelling, Tokenizer
from minibert.data.wordlist import Words

CHUNK = 2 ** 20                                    # words encoded at a time


@dataclass(frozen=True, eq=False)
class Records(Sequence[Any]):
    """N records of one frozen dataclass, a column a field: int or float [N], or arrays of whole numbers, end to end.

    The arrays of one record have the same length.
    """
    kind: type
    ends: np.ndarray                               # int64 [N+1]: record i has ends[i]:ends[i + 1] of every array
    columns: dict[str, np.ndarray]

    @classmethod
    def of(cls, records: Sequence[Any]) -> "Records":
        """These, one at least, kept so."""
        kind, counts, columns = type(records[0]), np.zeros(len(records), np.int64), {}
        for f in fields(kind):
            values = [getattr(record, f.name) for record in records]
            if f.type is np.ndarray:
                counts = np.array([len(x) for x in values], np.int64)
                columns[f.name] = narrow(np.concatenate(values))
            else:
                columns[f.name] = np.array(values, np.float64) if f.type is float else narrow(np.array(values))
        return cls(kind, running(counts), columns)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> Any:
        inside = slice(self.ends[i], self.ends[i + 1])
        return self.kind(*(self.columns[f.name][inside].astype(np.int64) if f.type is np.ndarray else
                           f.type(self.columns[f.name][i]) for f in fields(self.kind)))

    def take(self, numbers: np.ndarray) -> "Records":
        """The records of these numbers, in their order."""
        counts = np.diff(self.ends)[numbers]
        cells = ragged(self.ends[numbers], counts)
        return Records(self.kind, running(counts), {
            f.name: self.columns[f.name][cells if f.type is np.ndarray else numbers] for f in fields(self.kind)})

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [N+1] ends, numbers): all fields of one record, then those of the next; a float by its bits."""
        counts = [np.diff(self.ends) if f.type is np.ndarray else np.ones(len(self), np.int64)
                  for f in fields(self.kind)]
        ends = running(sum(counts))

        numbers, begins = np.zeros(ends[-1], np.int64), ends[:-1].copy()
        for f, count in zip(fields(self.kind), counts, strict=True):
            column = self.columns[f.name]
            numbers[ragged(begins, count)] = column.view(np.int64) if f.type is float else column
            begins += count
        return ends, narrow(numbers)


def record_to_json(record: Any) -> dict[str, Any] | None:
    """The fields of one record, arrays as lists; None stays None."""
    return None if record is None else {
        name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in vars(record).items()}


def record_from_json(kind: type | None, values: dict[str, Any] | None) -> Any:
    """What record_to_json() was given. Raises KeyError, TypeError or ValueError for values of another kind."""
    if values is None:
        return None
    if kind is None:
        raise ValueError("rows of another task")
    return kind(**{f.name: np.array(values[f.name], np.int64) if f.type is np.ndarray else f.type(values[f.name])
                   for f in fields(kind)})


@dataclass(frozen=True, eq=False)
class Features(Sequence[Feature]):
    """N features in arrays; a Feature is made when asked for. A slice is Features again."""
    example: np.ndarray                            # [N] number of the example each was cut from
    piece_ends: np.ndarray                         # int64 [N+1]: feature i has pieces piece_ends[i]:piece_ends[i + 1]
    pick_ends: np.ndarray                          # int64 [N+1], the same for picks and labels
    ids: np.ndarray                                # int32, of all features one after the other
    types: np.ndarray                              # this and what follows in the smallest integers that hold it
    picks: np.ndarray
    labels: np.ndarray
    about: Records | None = None                   # N of them, where the task has something to know of its rows

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]: pieces of each feature."""
        return np.diff(self.piece_ends)

    def __len__(self) -> int:
        return len(self.example)

    def __getitem__(self, i: int | slice) -> "Feature | Features":
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        i = range(len(self))[i]
        pieces, picks = (slice(ends[i], ends[i + 1]) for ends in (self.piece_ends, self.pick_ends))
        return Feature(int(self.example[i]), *(x.astype(np.int64) for x in (
            self.ids[pieces], self.types[pieces], self.picks[picks], self.labels[picks])),
            None if self.about is None else self.about[i])

    def take(self, numbers: np.ndarray) -> "Features":
        """The features of these numbers, in their order."""
        pieces, picks = self.lengths[numbers], np.diff(self.pick_ends)[numbers]
        piece_cells, pick_cells = ragged(self.piece_ends[numbers], pieces), ragged(self.pick_ends[numbers], picks)
        return Features(self.example[numbers], running(pieces), running(picks), self.ids[piece_cells],
                        self.types[piece_cells], self.picks[pick_cells], self.labels[pick_cells],
                        None if self.about is None else self.about.take(numbers))

    def arrays(self) -> dict[str, np.ndarray]:
        """What the cache keeps: from_arrays() makes the same of it."""
        own = {name: x for name, x in vars(self).items() if name != "about"}
        if not self.about:
            return own
        return own | {"about_ends": self.about.ends, **{f"about.{name}": x for name, x in self.about.columns.items()}}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], kind: type | None) -> "Features":
        """What arrays() gave; `kind`: of its records. Raises ValueError for arrays that do not fit each other."""
        own = {name: x for name, x in arrays.items() if not name.startswith("about")}
        if "about_ends" not in arrays:
            return cls(**own).checked()
        columns = {name.removeprefix("about."): x for name, x in arrays.items() if name.startswith("about.")}
        return cls(**own, about=Records(kind, arrays["about_ends"], columns)).checked()

    def checked(self) -> "Features":
        """self; raises ValueError where arrays that came from outside do not fit each other."""
        divided = [(self.piece_ends, self.ids), (self.piece_ends, self.types), (self.pick_ends, self.picks),
                   (self.pick_ends, self.labels)]
        if self.about is not None:
            every = np.arange(len(self) + 1)
            divided += [(self.about.ends if f.type is np.ndarray else every, self.about.columns[f.name])
                        for f in fields(self.about.kind)]
        for ends, numbers in divided:
            check_ends(ends, len(self), len(numbers))
        return self

    def fingerprint(self) -> dict[str, np.ndarray]:
        """What tells these rows from any others, whatever the fields of their records are called."""
        ends, numbers = self.about.flat() if self.about else (np.zeros(len(self) + 1, np.int64), np.zeros(0, np.int8))
        own = {name: x for name, x in vars(self).items() if name != "about"}
        return own | {"target_ends": ends, "targets": numbers}


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
    """Any features, one by one, as arrays; all have a record of one kind, or none has."""
    rows = list(features)
    flat = {name: np.concatenate([np.zeros(0, np.int64), *(vars(f)[name] for f in rows)])
            for name in ("ids", "types", "picks", "labels")}
    ends = [running(np.array([len(vars(f)[name]) for f in rows], np.int64)) for name in ("ids", "picks")]
    about = Records.of([f.about for f in rows]) if rows and rows[0].about is not None else None
    return compact(np.array([f.example for f in rows], np.int64), *ends, about, **flat)


def compact(example: np.ndarray, piece_ends: np.ndarray, pick_ends: np.ndarray, about: Records | None = None, *,
            ids: np.ndarray, **others: np.ndarray) -> Features:
    """Features with every array in its narrow form."""
    return Features(narrow(example), piece_ends, pick_ends, narrow(ids).astype(np.int32, casting="safe"),
                    **{name: narrow(x) for name, x in others.items()}, about=about)


def concatenate(parts: Iterable[Features]) -> Features:
    """All parts as one, in their order."""
    every = list(parts) or [pack([])]
    flat = {name: np.concatenate([vars(p)[name] for p in every]) for name in ("example", "ids", "types", "picks",
                                                                              "labels")}
    ends = {name: joined_ends([vars(p)[name] for p in every]) for name in ("piece_ends", "pick_ends")}

    records = [p.about for p in every if p.about]
    about = Records(records[0].kind, joined_ends([r.ends for r in records]), {
        name: np.concatenate([r.columns[name] for r in records]) for name in records[0].columns}) if records else None
    return Features(**flat, **ends, about=about)


def joined_ends(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The ends of stretches that come one part after the other.

    >>> joined_ends([np.array([0, 3, 5]), np.array([0, 2])]).tolist()
    [0, 3, 5, 7]
    """
    return running(np.concatenate([np.diff(ends) for ends in parts]))


def spill(parts: Iterable[Features]) -> Features:
    """concatenate() for more than fits in memory: pieces and types are written, part by part, to files without a name.

    The system reads them back page by page when a row is asked for, and takes their room back when nobody can ask any
    more. They lie in the folder for temporary files (TMPDIR).
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
    about = Records(WordNumbers, text_ends, {"words": numbers})
    return compact(example, piece_ends, text_ends, about, ids=ids, types=types, picks=picks, labels=labels)
