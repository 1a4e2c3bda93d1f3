"""Texts as rows: windows over long ones, a label a word, two texts in one row."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minibert.core.batch import Feature
from minibert.data.tokenizer import Pieces, Tokenizer
from minibert.errors import MinibertError

MOST_ROWS = 20_000                                 # of a pair: windows of one text times those of the other


def windows(words: Sequence[int] | np.ndarray, capacity: int, overlap: int) -> list[tuple[int, int]]:
    """Cut a text of pieces into windows [start, stop) of at most `capacity` pieces, never inside a word.

    `words`: the word of each piece, ascending. Neighbours share about `overlap` pieces. A word of more than `capacity`
    pieces has a window of its own, which holds the first `capacity` of them.
    """
    words = np.asarray(words)
    n = len(words)
    if n <= capacity:
        return [(0, n)]

    begins = np.flatnonzero(np.diff(words, prepend=-1))              # piece where each word begins
    edges = np.append(begins, n)
    result, start = [], 0
    while True:
        after = int(np.searchsorted(edges, start + capacity, side="right"))
        stop = int(edges[after - 1])                                 # the last word that ends inside
        if stop == start:                                            # one word, longer than the window
            stop = int(edges[after])
            result.append((start, start + capacity))
            if stop == n:
                return result
            start = stop
            continue
        result.append((start, stop))
        if stop == n:
            return result
        # back by the overlap, but not so far that the next window could show no new word
        earliest = min(stop, max(stop - overlap, int(edges[after]) - capacity))
        start = int(edges[np.searchsorted(edges, max(start + 1, earliest))])


def owned_words(words: Sequence[int] | np.ndarray, cuts: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """For each window the words it owns: every word belongs to the window where it has most context.

    Context is the smaller of the pieces to its left and to its right inside the window; an end of the text itself
    limits nothing. Of equals the first wins.
    """
    words = np.asarray(words)
    n, count = len(words), int(words[-1]) + 1 if len(words) else 0
    begins, last = np.searchsorted(words, np.arange(count)), np.searchsorted(words, np.arange(count), side="right") - 1
    best, owner = np.full(count, -1.0), np.full(count, -1)
    for i, (start, stop) in enumerate(cuts):
        inside = slice(*np.searchsorted(begins, [start, stop]))      # words that begin in it
        context = context_in_window(begins[inside], last[inside], start, stop, n)
        better = inside.start + np.flatnonzero(context > best[inside])
        best[better], owner[better] = context[better - inside.start], i
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.searchsorted(owner[order], np.arange(len(cuts) + 1)))[1:-1]


def context_in_window(begins: np.ndarray, last: np.ndarray, start: int, stop: int, n: int) -> np.ndarray:
    """Context of each word in a window [start, stop) of n pieces: the smaller of the numbers to its left and right.

    `begins`, `last` [words]: first and last piece of each word. The result [words] means something only for words that
    begin inside the window; one that the window cuts off has context 0.
    """
    left = begins - start if start else np.full(len(begins), np.inf)          # [WIN-1]
    right = stop - 1 - last if stop < n else np.full(len(last), np.inf)       # [WIN-2]
    return np.maximum(np.minimum(left, right), 0.0)                           # [WIN-3]


@dataclass(frozen=True)
class WordNumbers:
    """Which words of its text a row's picks are the first pieces of: what puts scores back in the order of the text."""
    words: np.ndarray                              # int64 [M]


def word_features(example: int, pieces: Pieces, tokenizer: Tokenizer, max_pieces: int, overlap: int,
                  labels: Sequence[int] | np.ndarray) -> list[Feature]:
    """One text with a label a word as features: [CLS] window [SEP], picks on the first piece of each owned word."""
    cuts = windows(pieces.words, max_pieces - 2, overlap)
    ids = np.array(pieces.ids, np.int64)
    types = tokenizer.types * np.array(pieces.shapes, np.int64)               # [PIECE-3]
    begins = np.searchsorted(pieces.words, np.arange(len(labels)))            # [PIECE-2]
    labels = np.asarray(labels, np.int64)

    features = []
    for (start, stop), owned in zip(cuts, owned_words(pieces.words, cuts), strict=True):
        picks = begins[owned] - start + 1                                     # [PIECE-4]
        features.append(Feature(
            example, ids=np.concatenate([[tokenizer.start], ids[start:stop], [tokenizer.end]]),
            types=np.concatenate([[0], types[start:stop], [0]]), picks=picks,
            labels=labels[owned], about=WordNumbers(owned)))
    return features


class PairRow(NamedTuple):
    """[CLS] first [SEP] second [SEP]: two texts, or a window of each, in a row; types of the second are one higher."""
    ids: np.ndarray                                # int64 [T]
    types: np.ndarray                              # int64 [T]
    first: tuple[int, int]                         # pieces [start, stop) of the first text that stand in it
    second: tuple[int, int]


def pair_rows(first: Pieces, second: Pieces, tokenizer: Tokenizer, max_pieces: int, overlap: int,
              where: str = "text") -> list[PairRow]:
    """The rows of two texts.

    Where they do not fit in one row, the longer text is cut into windows; where both are longer than half a row, both
    are, and each window of the first stands with each of the second. Raises MinibertError where these are too many.
    """
    room = max_pieces - 3
    of_first = max(room - len(second.ids), room // 2)
    of_second = room - min(of_first, len(first.ids))

    firsts, seconds, rows = (windows(first.words, of_first, overlap), windows(second.words, of_second, overlap), [])
    if len(firsts) * len(seconds) > MOST_ROWS:
        raise MinibertError(f"{where}: two texts of {len(first.ids):,} and {len(second.ids):,} pieces make "
                            f"{len(firsts) * len(seconds):,} rows, {MOST_ROWS:,} at most; cut one up")
    for a, b in firsts:
        for c, d in seconds:
            shapes = [0, *first.shapes[a:b], 0, *second.shapes[c:d], 0]
            order = [0] * (b - a + 2) + [tokenizer.second_type] * (d - c + 1)
            ids = [tokenizer.start, *first.ids[a:b], tokenizer.end, *second.ids[c:d], tokenizer.end]
            types = tokenizer.types * np.array(shapes, np.int64) + np.array(order)
            rows.append(PairRow(np.array(ids, np.int64), types, (a, b), (c, d)))
    return rows
