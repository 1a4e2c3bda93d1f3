"""Features by the million: flat arrays in place of objects, and the texts that fit one row encoded many at a time.

`rows.word_features` says what a feature is; here the same is computed for a million words at once.
"""
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import BinaryIO

import numpy as np

from minibert.core.batch import Feature
from minibert.data.rows import word_features
from minibert.data.tokenizer import Spelling, Tokenizer
from minibert.data.wordlist import Words

CHUNK = 2 ** 20                                    # words encoded at a time


@dataclass(frozen=True, eq=False)
class Features(Sequence[Feature]):
    """N features in nine arrays; a Feature is made when asked for. A slice is Features again."""
    example: np.ndarray                            # [N] number of the example each was cut from
    piece_ends: np.ndarray                         # int64 [N+1]: feature i has pieces piece_ends[i]:piece_ends[i + 1]
    pick_ends: np.ndarray                          # int64 [N+1], the same for picks and labels
    target_ends: np.ndarray                        # int64 [N+1], the same for targets, which a task may leave out
    ids: np.ndarray                                # int32, of all features one after the other
    types: np.ndarray                              # this and what follows in the smallest integers that hold it
    picks: np.ndarray
    labels: np.ndarray
    targets: np.ndarray

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
        pieces, picks, targets = (slice(ends[i], ends[i + 1]) for ends in (self.piece_ends, self.pick_ends,
                                                                          self.target_ends))
        return Feature(int(self.example[i]), *(x.astype(np.int64) for x in (
            self.ids[pieces], self.types[pieces], self.picks[picks], self.labels[picks], self.targets[targets])))

    def take(self, numbers: np.ndarray) -> "Features":
        """The features of these numbers, in their order."""
        ends, cells = {}, {}
        for name in ("piece_ends", "pick_ends", "target_ends"):
            old = getattr(self, name)
            counts = np.diff(old)[numbers]
            ends[name], cells[name] = running(counts), ragged(old[numbers], counts)
        return Features(self.example[numbers], **ends, **{
            field: getattr(self, field)[cells[name]] for name, group in GROUPS.items() for field in group})

    def arrays(self) -> dict[str, np.ndarray]:
        """What the cache keeps: Features(**arrays) is the same again."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def checked(self) -> "Features":
        """self; raises ValueError where arrays that came from outside do not fit each other."""
        for name, group in GROUPS.items():
            for field in group:
                check_ends(getattr(self, name), len(self), len(getattr(self, field)))
        return self


GROUPS = {"piece_ends": ("ids", "types"), "pick_ends": ("picks", "labels"), "target_ends": ("targets",)}


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
    """Any features, one by one, as arrays."""
    rows = list(features)
    empty = [np.zeros(0, np.int64)]
    flat = {name: np.concatenate([getattr(f, name) for f in rows] or empty)
            for name in ("ids", "types", "picks", "labels", "targets")}
    ends = [running(np.array([len(getattr(f, name)) for f in rows], np.int64)) for name in ("ids", "picks", "targets")]
    return compact(np.array([f.example for f in rows], np.int64), *ends, **flat)


def compact(example: np.ndarray, *ends: np.ndarray, ids: np.ndarray, **others: np.ndarray) -> Features:
    """Features with every array in its narrow form."""
    return Features(narrow(example), *ends, narrow(ids).astype(np.int32, casting="safe"),
                    **{name: narrow(x) for name, x in others.items()})


def join(parts: Iterable[Features]) -> Features:
    """All parts as one, in their order."""
    every = list(parts) or [pack([])]
    joined = {f.name: np.concatenate([getattr(p, f.name) for p in every]) for f in fields(Features)}
    for name in GROUPS:
        joined[name] = running(np.concatenate([np.diff(getattr(p, name)) for p in every]))
    return Features(**joined)


def spill(parts: Iterable[Features]) -> Features:
    """join() for more than fits in memory: pieces and types are written, part by part, to files without a name.

    The system reads them back page by page when a row is asked for, and takes their room back when nobody can ask any
    more. They lie in the folder for temporary files (TMPDIR).
    """
    small: list[Features] = []
    with tempfile.TemporaryFile() as ids, tempfile.TemporaryFile() as types:
        for part in parts:
            part.ids.astype(np.int32, casting="safe").tofile(ids)
            part.types.astype(np.int16, casting="same_kind").tofile(types)
            small.append(replace(part, ids=part.ids[:0], types=part.types[:0]))
        whole = join(small)
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
            parts = join([parts, pack(f for (i, text), p in zip(texts.items(), spelt, strict=True) for f in
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
    targets = np.arange(len(words)) - np.repeat(text_ends[:-1], counts)
    return compact(example, piece_ends, text_ends, text_ends, ids=ids, types=types, picks=picks, labels=labels,
                   targets=targets)
