"""Scores of a head as probabilities, in numpy."""
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from minibert.core.batch import Feature


class ByLabel(Mapping[str, float]):
    """{label: p} of one row [K] of a table; a dictionary of its own a row would take ten times the table."""

    def __init__(self, places: Mapping[str, int], row: np.ndarray):
        self.places, self.row = places, row

    def __getitem__(self, label: str) -> float:
        return float(self.row[self.places[label]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def by_label(places: Mapping[str, int], table: np.ndarray) -> list[ByLabel]:
    """The rows of a table [N,K] by label; `places`: {label: its column}."""
    if table.shape[1] != len(places):
        raise ValueError(f"{table.shape[1]} columns for {len(places)} labels")
    return [ByLabel(places, row) for row in table]


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
