"""Two texts: whether they say the same (or any other of K classes), or how alike they are, a number.

A number is learnt by squared error; all else is any pair's, see pairs.py.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minibert.core import ops
from minibert.core.batch import Batch, Feature
from minibert.data.tables import BAR
from minibert.errors import MinibertError
from minibert.options import option
from minibert.scores.numbers import correlations
from minibert.scores.tables import Scores
from minibert.tasks.base import Result, Task, TaskOptions, only_one
from minibert.tasks.pairs import Pair, PairOptions, PairTask
from minibert.tasks.probabilities import mean_scores

LARGEST = 1e15                                     # a score; float32 holds the squares of such, and their sums


@dataclass(frozen=True)
class Number:
    """With --answer score: how alike two texts are, as it should be said, or as a model says it."""
    score: float


@dataclass(frozen=True)
class Options(PairOptions):
    """Matching's own options."""
    answer: str = option("class", "class: one of K labels, such as same and different; score: a number",
                         ("class", "score"))


class Match(PairTask):
    """The task; see base.Task for what each member is."""
    name = "match"
    trial = f"How do I get a new card? {BAR} My card is gone, please send me another one."
    Options, About = Options, Number

    def __init__(self, options: TaskOptions, labels: Sequence[str] = ()):
        super().__init__(options, labels)
        self.numeric = self.options.answer == "score"
        if self.numeric:
            self.best, self.also_best = ("pearson", "max"), {"spearman": "max", "mse": "min"}
            self.problem_type = "regression"

    def read_label(self, value: object, where: str) -> Any:
        """A name, or with --answer score a finite number."""
        if not self.numeric:
            return super().read_label(str(value) if isinstance(value, float) else value, where)
        if not isinstance(value, int | float | str) or not str(value).strip():
            raise MinibertError(f"{where}: the label is {value!r}; expected a number")

        try:
            number = float(value)
        except (ValueError, OverflowError):        # a JSON number of 400 digits is an int
            shown = str(value)[:60]
            raise MinibertError(f"{where}: the score is {shown!r}, not a number; --answer class takes names") from None
        if not abs(number) <= LARGEST:
            raise MinibertError(f"{where}: the score is {value!r}; it must be finite and at most {LARGEST:g}, so that "
                                "its square is a number too; scale the scores")
        return number

    def learn_labels(self, splits: Mapping[str, Sequence[Pair]]) -> None:
        """The labels of train, sorted; of numbers there must be several, and their one score is called so."""
        super().learn_labels(splits)
        self.labels = ["score"] if self.numeric else self.labels

    def note_unseen(self, splits: Mapping[str, Sequence[Pair]]) -> None:
        if not self.numeric:
            super().note_unseen(splits)

    def numbers(self, example: Pair) -> tuple[int, Number | None]:
        """(the class, -1: not known, no loss; with --answer score the score)."""
        if not self.numeric:
            return self.number(example.label), None
        return -1 if example.label is None else 0, Number(float(example.label or 0.0))

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,K] -> the sum of −log softmax at the label; [M,1] -> the sum of squared errors."""
        if not self.numeric:
            return super().loss(scores, batch)
        return {"pairs": ops.mse_forward(*self.known(scores, batch))[0]}

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,K] -> the gradient of the sum by them."""
        if not self.numeric:
            return super().loss_backward(scores, batch)
        _, cache = ops.mse_forward(*self.known(scores, batch))
        return {"pairs": ops.mse_backward(1.0, cache)}

    def known(self, scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(guesses, right ones) [M,1]; both 0 where the latter is not known."""
        z, known = ops.at_least_fp32(scores), (batch.labels >= 0)[:, None]
        right = torch.tensor([f.about.score for f in batch.features], dtype=torch.float64)
        return z * known, right.to(z)[:, None] * known

    def decode(self, examples: Sequence[Pair], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[Any]:
        if not self.numeric:
            return super().decode(examples, features, scores)
        return [Number(score) for score, in mean_scores(len(examples), 1, features, scores).tolist()]

    def score(self, predictions: Sequence[Any], examples: Sequence[Pair]) -> Scores:
        if not self.numeric:
            return super().score(predictions, examples)
        return correlations([e.label for e in examples], [p.score for p in predictions])

    def report(self, scores: Scores) -> str:
        return Task.report(self, scores) if self.numeric else super().report(scores)

    def summary(self, scores: Scores, before: Scores | None = None) -> str:
        """The table a class, or the correlations."""
        return Task.summary(self, scores, before) if self.numeric else super().summary(scores, before)

    def collapsed(self, predictions: Sequence[Any], examples: Sequence[Pair]) -> str | None:
        if not self.numeric:
            return super().collapsed(predictions, examples)
        return only_one({f"{p.score:.3g}" for p in predictions}, {str(e.label) for e in examples})

    def result(self, example: Pair, prediction: Any) -> Result:
        """{"first", "second", "score"}, or {..., "label", "probabilities": {label: p}, the most probable first}."""
        if not self.numeric:
            return super().result(example, prediction)
        return {**self.shown(example), "score": prediction.score}

    def said(self, result: Result) -> str:
        return f"{result['score']:.2f}" if self.numeric else super().said(result)
