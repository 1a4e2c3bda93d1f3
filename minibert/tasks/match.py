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
    """The task; see base.Task for what each member is. With --answer score it is a Likeness."""
    name = "match"
    trial = f"How do I get a new card? {BAR} My card is gone, please send me another one."
    Options, About = Options, Number

    def __new__(cls, options: TaskOptions, labels: Sequence[str] = ()) -> "Match":
        assert isinstance(options, Options)
        return super().__new__(Likeness if options.answer == "score" else cls)

    def read_label(self, value: object, where: str) -> Any:
        """A name; a number may be one too."""
        return super().read_label(str(value) if isinstance(value, float) else value, where)


class Likeness(Match):
    """The same with finite numbers for labels, of which one is guessed."""
    best, also_best = ("pearson", "max"), {"spearman": "max", "mse": "min"}
    problem_type = "regression"
    report, summary = Task.report, Task.summary

    def read_label(self, value: object, where: str) -> float:
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
        """There must be several numbers; their one score is called so."""
        super().learn_labels(splits)
        self.labels = ["score"]

    def stratum(self, example: Pair) -> object:
        raise MinibertError("--stratify: with --answer score a pair has a number, not a label; leave it out")

    def note_unseen(self, splits: Mapping[str, Sequence[Pair]]) -> None:
        """Of numbers none is."""

    def refuse_texts(self, examples: Sequence[Pair]) -> None:
        """Of numbers never too many differ."""

    def numbers(self, example: Pair) -> tuple[int, Number]:
        """(0, or -1: not known, no loss; the score)."""
        return -1 if example.label is None else 0, Number(float(example.label or 0.0))

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,1] -> the sum of squared errors."""
        return {"pairs": ops.mse_forward(*self.known(scores, batch))[0]}

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,1] -> the gradient of the sum by them."""
        _, cache = ops.mse_forward(*self.known(scores, batch))
        return {"pairs": ops.mse_backward(1.0, cache)}

    def known(self, scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(guesses, right ones) [M,1]; both 0 where the latter is not known."""
        z, known = ops.at_least_fp32(scores), (batch.labels >= 0)[:, None]
        right = torch.tensor([f.about.score for f in batch.features], dtype=torch.float64)
        return z * known, right.to(z)[:, None] * known

    def decode(self, examples: Sequence[Pair], features: Sequence[Feature], scores: Sequence[np.ndarray]) -> list[Any]:
        """The mean of the scores [1,1] of each example's windows."""
        return [Number(score) for score, in mean_scores(len(examples), 1, features, scores).tolist()]

    def score(self, predictions: Sequence[Any], examples: Sequence[Pair]) -> Scores:
        return correlations([e.label for e in examples], [p.score for p in predictions])

    def collapsed(self, predictions: Sequence[Any], examples: Sequence[Pair]) -> str | None:
        return only_one({f"{p.score:.3g}" for p in predictions}, {str(e.label) for e in examples})

    def result(self, example: Pair, prediction: Any) -> Result:
        """{"first", "second", "score"}."""
        return {**self.shown(example), "score": prediction.score}

    def empty(self, text: str) -> Result:
        return {**dict.fromkeys(self.texts, ""), self.texts[0]: text, "score": None}

    def said(self, result: Result) -> str:
        return f"{result['score']:.2f}"
