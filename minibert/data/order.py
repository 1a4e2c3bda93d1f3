"""The order of batches as a function of (seed, epoch)."""
from collections.abc import Sequence

import numpy as np

POOL = 50                                          # batches that are sorted by length together


def shuffled(count: int, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """A permutation of 0..count-1, a pure function of its arguments: sorted random keys from Philox."""
    key = np.array([seed, 2 ** 63 + epoch], np.uint64)               # apart from dropout's keys, whose second is small
    philox = np.random.Philox(key=key, counter=[0, purpose, 0, 0])
    return np.argsort(philox.random_raw(count), kind="stable")


def row_generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """What is random about feature `number` in an epoch, apart from dropout: a pure function of its arguments."""
    key = np.array([seed, 2 ** 62 + number], np.uint64)              # apart from the keys of dropout and shuffled()
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, epoch]))


def epoch_batches(lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch as arrays of feature numbers; every feature once, rows of a batch of similar length.

    Features are shuffled, cut into pools of POOL batches, sorted by length inside a pool, and the batches shuffled
    again, so that long and short ones alternate.
    """
    lengths = np.asarray(lengths)
    order = shuffled(len(lengths), seed, epoch, purpose=0)
    batches = []
    for i in range(0, len(order), POOL * batch_size):
        pool = order[i:i + POOL * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[j:j + batch_size] for j in range(0, len(pool), batch_size)]
    return [batches[i] for i in shuffled(len(batches), seed, epoch, purpose=1)]
