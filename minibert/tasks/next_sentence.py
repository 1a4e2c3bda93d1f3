"""Does the second half of a row follow the first in the text? Rows of two halves; the head is in core/heads.py.

The question that BERT was trained on beside the masked words (Devlin et al. 2019, section 3.1), published as
cls.seq_relationship on the pooler.
"""
from collections.abc import Iterable, Iterator

import numpy as np

from minibert.data.features import Features, compact, ragged, running
from minibert.data.order import row_generator
from minibert.data.tokenizer import Tokenizer

FOLLOWS, OTHER = 0, 1                              # the published numbers of both answers


def halves(blocks: Iterable[np.ndarray], tokenizer: Tokenizer, max_pieces: int) -> Iterator[Features]:
    """int64 [2,n] blocks of pieces and case shapes, a [SEP] behind each document -> rows [CLS] half [SEP] half [SEP].

    Documents are cut into stretches that fill a row, their last ones are shorter. Half of the rows, drawn by chance,
    have the second half of another row of the same length, see partners(); each half is read once. A single piece has
    no halves: it is left out.
    """
    left, number = np.zeros((2, 0), np.int64), 0
    for block in blocks:
        pieces = np.concatenate([left, block], 1)
        begins, counts, rest = stretches(pieces[0], tokenizer.end, max_pieces - 3)
        left, whole = pieces[:, rest:], counts > 1
        begins, counts = begins[whole], counts[whole]
        drawn = partners(counts, row_generator(1, 0, number))                  # no update and no scoring draws from it
        yield rows_of_halves(pieces, begins, counts, *drawn, tokenizer, number)
        number += len(begins)


def stretches(ids: np.ndarray, end: int, room: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Pieces [N] -> where stretches of at most `room` begin, how long each is, and where what is left over begins.

    None goes across an `end`. Behind the last `end` a document is open: only full stretches are taken from it.
    """
    ends = np.flatnonzero(ids == end)
    begin, stop = np.append(0, ends + 1), np.append(ends, len(ids))            # of documents
    number = -(-(stop - begin) // room)
    number[-1] = (stop[-1] - begin[-1]) // room
    begins = np.repeat(begin, number) + room * ragged(np.zeros_like(number), number)
    counts = np.minimum(room, np.repeat(stop, number) - begins)
    return begins, counts, int(begin[-1] + room * number[-1])


def partners(counts: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `counts` [n] pieces -> whose second half each has, int64 [n], and which can be asked about it, bool [n].

    With probability 1/2 a row has the second half of another row of equal length, so that the length tells nothing
    about the answer. A row that is the only one of its length keeps its own and is not asked.
    """
    n = len(counts)
    _, group, size = np.unique(counts, return_inverse=True, return_counts=True)
    swapped, keys, coin = draw.random(n) < 0.5, draw.random(n), draw.random(len(size)) < 0.5
    # one drawn alone has nobody to exchange with: with probability 1/2 another joins it, else it is not drawn
    alone = np.bincount(group, swapped, len(size)) == 1
    joins = alone & coin & (size > 1)
    chance = np.lexsort([keys, swapped, group])    # by length, those not drawn before the drawn
    swapped[chance[np.cumsum(size) - size][joins]] = True
    swapped[(alone & ~joins)[group]] = False

    rows = np.flatnonzero(swapped)
    order = rows[np.lexsort([keys[rows], group[rows]])]
    first = np.flatnonzero(np.diff(group[order], prepend=-1))                  # where each length begins
    last = np.flatnonzero(np.diff(group[order], append=-1))
    seconds = np.arange(n)
    seconds[order] = np.roll(order, -1)
    seconds[order[last]] = order[first]                                        # each length is a ring
    return seconds, size[group] > 1


def rows_of_halves(pieces: np.ndarray, begins: np.ndarray, counts: np.ndarray, seconds: np.ndarray, asked: np.ndarray,
                   tokenizer: Tokenizer, number: int) -> Features:
    """Stretches of int64 [2,N] pieces and shapes, n of them, and what partners() says of them -> n features.

    One that is asked picks its [CLS], whose label is FOLLOWS or OTHER; they are numbered from `number`.
    """
    n, a = len(begins), counts // 2
    b = counts - a
    ends = running(counts + 3)
    whole = np.full((2, ends[-1]), [[tokenizer.end], [0]])
    whole[0, ends[:-1]] = tokenizer.start

    middle = ends[:-1] + a + 2                                                 # past [CLS], a half and [SEP]
    whole[:, ragged(ends[:-1] + 1, a)] = pieces[:, ragged(begins, a)]
    own, given = (pieces[:, ragged(begins[rows] + a, b)] for rows in (np.arange(n), seconds))   # equal lengths, halves
    whole[:, ragged(middle, b)] = given

    types = tokenizer.types * whole[1]
    types[ragged(middle, b + 1)] += tokenizer.second_type
    other = np.bincount(np.repeat(np.arange(n), b), own[0] != given[0], n) > 0  # a half like its own does follow
    answers = np.where(other, OTHER, FOLLOWS)[asked]
    return compact(np.arange(number, number + n), ends, running(asked.astype(np.int64)), np.zeros(n + 1, np.int64),
                   ids=whole[0], types=types, picks=np.zeros_like(answers), labels=answers)
