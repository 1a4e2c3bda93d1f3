"""Scores of numbers and of rankings: correlations, recall at k, MRR."""
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from minibert.scores.tables import ratio, side_by_side


def ranking_scores(places: Sequence[int]) -> dict[str, float]:
    """Of the place, from 1, that the first right answer of each question has: recall at 1 and at 5, and MRR.

    MRR is the mean of one over the place.

    >>> ranking_scores([1, 2, 4, 10])
    {'recall_1': 0.25, 'recall_5': 0.75, 'mrr': 0.4625, 'support': 4}
    """
    within = {f"recall_{k}": ratio(sum(place <= k for place in places), len(places)) for k in (1, 5)}
    return {**within, "mrr": ratio(sum(1 / place for place in places), len(places)), "support": len(places)}


def correlations(gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """How well numbers were guessed: Pearson's and Spearman's correlation (0 where a side is constant), mean square.

    Spearman's is Pearson's of the ranks; equal numbers share the mean of theirs. Raises MinibertError where the two
    differ in length.

    Below the guesses rise as the truth does, but not in a straight line: 10/√105 and 1.

    >>> scores = correlations([1, 2, 3], [1, 2, 6])
    >>> round(scores["pearson"], 3), round(scores["spearman"], 3), scores["mse"]
    (0.945, 1.0, 3.0)
    """
    mse = ratio(sum((g - p) ** 2 for g, p in side_by_side(gold, predicted, "numbers")), len(gold))
    return {"pearson": _pearson(gold, predicted), "spearman": _pearson(_ranks(gold), _ranks(predicted)), "mse": mse,
            "support": len(gold)}


def _pearson(xs: Sequence[float], ys: Sequence[float]) -> float:
    sides = [(values, ratio(sum(values), len(values))) for values in (xs, ys)]
    dx, dy = ([v - mean for v in values] for values, mean in sides)
    size = math.sqrt(sum(a * a for a in dx)) * math.sqrt(sum(b * b for b in dy))
    return ratio(sum(a * b for a, b in zip(dx, dy, strict=True)), size)


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal numbers share the mean of their places."""
    order = sorted(values)
    return [(bisect_left(order, v) + bisect_right(order, v) + 1) / 2 for v in values]
