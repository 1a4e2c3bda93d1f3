"""Two texts: whether they say the same (or any other of K classes), or how alike they are, a number.

Both stand in one row, [CLS] first [SEP] second [SEP], told apart by their token types, and are read from the pooled
state of [CLS]. A number is learnt by squared error.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minibert.core import ops
from minibert.core.batch import Batch, Feature
from minibert.data.rows import pair_rows
from minibert.data.tables import BAR, read_table
from minibert.data.text import words_of
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError
from minibert.options import option
from minibert.scores.numbers import correlations
from minibert.scores.tables import Scores
from minibert.tasks.base import Result, TableOptions, Task, TaskOptions, coloured, only_one, text_of
from minibert.tasks.labelled import Answer, LabelTask, three_best
from minibert.tasks.probabilities import mean_scores

LARGEST = 1e15                                     # a score; float32 holds the squares of such, and their sums


@dataclass(frozen=True)
class Example:
    """Two texts and what they are to each other: a class, or with --answer score a number; None: not known."""
    first: str
    second: str
    label: str | float | None
    where: str                                     # file:line


@dataclass(frozen=True)
class Number:
    """With --answer score: how alike two texts are, as it should be said, or as a model says it."""
    score: float


@dataclass(frozen=True)
class Options(TableOptions):
    """Matching's own options."""
    columns: str = option("first,second,label", "names of the columns that hold the two texts and their label",
                         later=True)
    answer: str = option("class", "class: one of K labels, such as same and different; score: a number",
                         ("class", "score"))


class Match(LabelTask[Example]):
    """The task; see base.Task for what each member is."""
    name = "match"
    trial = f"How do I get a new card? {BAR} My card is gone, please send me another one."
    unit = "pairs"
    Options, About = Options, Number

    def __init__(self, options: TaskOptions, labels: Sequence[str] = ()):
        super().__init__(options, labels)
        self.numeric = self.options.answer == "score"
        if self.numeric:
            self.best, self.also_best = ("pearson", "max"), {"spearman": "max", "mse": "min"}
            self.problem_type = "regression"

    def read_file(self, file: Path) -> list[Example]:
        return [Example(text_of(first, where), text_of(second, where), self.read_label(label, where), where)
                for where, (first, second, label) in read_table(file, self.options.names)]

    def read_label(self, value: object, where: str) -> str | float:
        """A name, or with --answer score a finite number."""
        if not isinstance(value, bool | int | float | str) or not str(value).strip():
            raise MinibertError(f"{where}: the label is {value!r}; expected {'a number' if self.numeric else 'a name'}")
        if not self.numeric:
            return str(value).strip()

        try:
            number = float(value)
        except (ValueError, OverflowError):        # a JSON number of 400 digits is an int
            shown = str(value)[:60]
            raise MinibertError(f"{where}: the score is {shown!r}, not a number; --answer class takes names") from None
        if not abs(number) <= LARGEST:
            raise MinibertError(f"{where}: the score is {value!r}; it must be finite and at most {LARGEST:g}, so that "
                                "its square is a number too; scale the scores")
        return number

    def learn_labels(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """The labels of train, sorted; of numbers there must be several, and their one score is called so."""
        super().learn_labels(splits)
        self.labels = ["score"] if self.numeric else self.labels

    def note_unseen(self, splits: Mapping[str, Sequence[Example]]) -> None:
        if not self.numeric:
            super().note_unseen(splits)

    def example(self, text: str) -> Example:
        texts = [part.strip() for part in text.split(BAR)]
        if len(texts) != 2:
            raise MinibertError(f"{text[:60]!r}: expected two texts with {BAR} between")
        return Example(*texts, None, "text")

    def encode(self, number: int, example: Example, tokenizer: Tokenizer, max_pieces: int,
               overlap: int) -> list[Feature]:
        """[CLS] first [SEP] second [SEP], read at [CLS]; of texts too long for a row, each window with each."""
        pieces = tokenizer.pieces([words_of(example.first), words_of(example.second)])
        return self.read_at_cls(number, pair_rows(*pieces, tokenizer, max_pieces, overlap),
                                *self.numbers(example.label))

    def numbers(self, label: str | float | None) -> tuple[int, Number | None]:
        """(the class, -1: not known, no loss; with --answer score the score)."""
        if self.numeric:
            return -1 if label is None else 0, Number(label or 0.0)
        return self.number(label), None

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

    def decode(self, examples: Sequence[Example], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[Answer | Number]:
        if not self.numeric:
            return super().decode(examples, features, scores)
        return [Number(score) for score, in mean_scores(len(examples), 1, features, scores).tolist()]

    def score(self, predictions: Sequence[Answer | Number], examples: Sequence[Example]) -> Scores:
        if not self.numeric:
            return super().score(predictions, examples)
        return correlations([e.label for e in examples], [p.score for p in predictions])

    def report(self, scores: Scores) -> str:
        if not self.numeric:
            return super().report(scores)
        return "\n".join(f"{name:9}{value:>10,}" if name == "support" else f"{name:9}{value:10.3f}"
                         for name, value in scores.items())

    def summary(self, scores: Scores, before: Scores | None = None) -> str:
        """The table a class, or the correlations."""
        return Task.summary(self, scores, before) if self.numeric else super().summary(scores, before)

    def collapsed(self, predictions: Sequence[Answer | Number], examples: Sequence[Example]) -> str | None:
        if not self.numeric:
            return super().collapsed(predictions, examples)
        return only_one({f"{p.score:.3g}" for p in predictions}, {str(e.label) for e in examples})

    def shown(self, example: Example) -> Result:
        return {"first": example.first, "second": example.second}

    def result(self, example: Example, prediction: Answer | Number) -> Result:
        """{"first", "second", "score"}, or {..., "label", "probabilities": {label: p}, the most probable first}."""
        if not self.numeric:
            return super().result(example, prediction)
        return {**self.shown(example), "score": prediction.score}

    def render(self, result: Result, colour: bool) -> str:
        said = f"{result['score']:.2f}" if self.numeric else three_best(result["probabilities"])
        return f"{coloured(said, colour)}\n  {result['first']}\n  {result['second']}"
