"""Scores of a head as probabilities, in numpy."""
from collections.abc import Sequence

import numpy as np

from minibert.core.batch import Feature


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """Any shape -> probabilities of that shape; no score overflows it."""
    return np.exp(-np.logaddexp(0.0, -scores))


def softmax(scores: np.ndarray) -> np.ndarray:
    """[N,K] -> probabilities [N,K]."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mean_scores(examples: int, outputs: int, features: Sequence[Feature], scores: Sequence[np.ndarray]) -> np.ndarray:
    """The scores [1,outputs] of every feature -> [examples,outputs]: the mean over the windows of each example.

    Every example has at least one: a text without words is [CLS] [SEP].
    """
    sums, counts = np.zeros((examples, outputs)), np.zeros((examples, 1))
    for feature, rows in zip(features, scores, strict=True):
        sums[feature.example] += rows[0]
        counts[feature.example] += 1
    return sums / counts
