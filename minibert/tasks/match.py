"""Two texts: whether they say the same (or any other of K classes), or how alike they are, a number.

Both stand in one row, [CLS] first [SEP] second [SEP], told apart by their token types, and are read from the pooled
state of [CLS]. A number is learnt by squared error.
"""
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minibert.core import ops
from minibert.core.batch import Batch, Feature
from minibert.core.config import BertConfig
from minibert.core.heads import PooledHead
from minibert.data.rows import pair_rows
from minibert.data.tables import read_table
from minibert.data.text import split_words
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError
from minibert.options import option
from minibert.scores.labels import confusion, confusion_report, label_report, label_scores, unseen
from minibert.scores.numbers import correlations
from minibert.tasks.base import Columns, FromTables, mean_scores, softmax

BAR = "|||"                                        # between two texts that come as one
LARGEST = 1e15                                     # a score; float32 holds the squares of such, and their sums


@dataclass(frozen=True)
class Example:
    """Two texts and what they are to each other: a class, or with --answer score a number; None: not known."""
    first: str
    second: str
    label: str | float | None
    where: str                                     # file:line


@dataclass(frozen=True)
class Options(Columns):
    """Matching's own options."""
    columns: str = option("first,second,label", "names of the columns that hold the two texts and their label",
                         later=True)
    answer: str = option("class", "class: one of K labels, such as same and different; score: a number",
                         ("class", "score"))


class Match(FromTables):
    """The task; see tasks.Task for what each member is."""
    name = "match"
    defaults: dict[str, Any] = {"epochs": 8}
    architecture = "BertForSequenceClassification"
    new_pieces: tuple[str, ...] = ()
    trial = f"How do I get a new card? {BAR} My card is gone, please send me another one."
    Options = Options

    def __init__(self, options: Options, labels: Sequence[str] = ()):
        self.options, self.labels, self.notices = options, list(labels), []
        self.numeric = options.answer == "score"
        self.best = ("pearson" if self.numeric else "accuracy", "max")
        self.also_best = ({"spearman": "max", "mse": "min"} if self.numeric else
                          {"macro_f1": "max", "weighted_f1": "max"})
        self.problem_type = "regression" if self.numeric else "single_label_classification"

    @property
    def outputs(self) -> list[str]:
        """A score a label; a number has one, "score"."""
        return self.labels

    # --------------------------------------------------------------------------------------------- text -> examples

    def read_file(self, file: Path) -> Iterator[Example]:
        """The examples of one file. Raises MinibertError with file:line."""
        for where, (first, second, label) in read_table(file, self.options.names):
            for text in (first, second):
                if not isinstance(text, str):
                    raise MinibertError(f"{where}: the text is {text!r}, not a string")
            yield Example(first, second, self.read_label(label, where), where)

    def read_label(self, value: Any, where: str) -> str | float:
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

    def learn_labels(self, splits: dict[str, Sequence[Example]]) -> None:
        """The labels of train, sorted; for numbers the table of those that occur."""
        there = sorted({e.label for e in splits["train"]})
        if len(there) < 2:
            raise MinibertError(f"{splits['train'][0].where}: all training pairs have the label {there[0]}; expected "
                                "at least two (is --limit too small?)")
        self.labels = ["score"] if self.numeric else there
        self.note_unseen(splits)

    def note_unseen(self, splits: dict[str, Sequence[Example]]) -> None:
        """Count labels that training never saw; any number will do."""
        for split, examples in {} if self.numeric else splits.items():
            self.notices += unseen(split, Counter(e.label for e in examples), self.labels, "labels", "pairs")

    def example(self, text: str) -> Example:
        """Raw text, "first ||| second"."""
        texts = [part.strip() for part in text.split(BAR)]
        if len(texts) != 2:
            raise MinibertError(f"{text[:60]!r}: expected two texts with {BAR} between")
        return Example(*texts, None, "text")

    # ----------------------------------------------------------------------------------- examples -> scores and loss

    def encode(self, number: int, example: Example, tokenizer: Tokenizer, max_pieces: int,
               overlap: int) -> list[Feature]:
        """[CLS] first [SEP] second [SEP], read at [CLS]; of texts too long for a row, each window with each."""
        words = [[text[a:b] for a, b in split_words(text)] for text in (example.first, example.second)]
        start, (label, target) = np.zeros(1, np.int64), self.numbers(example.label)
        return [Feature(number, row.ids, row.types, start, label, target)
                for row in pair_rows(*tokenizer.pieces(words), tokenizer, max_pieces, overlap)]

    def numbers(self, label: str | float | None) -> tuple[np.ndarray, np.ndarray]:
        """(the class [1], -1: not known, no loss; the score [1], the bits of its float64 as a whole number)."""
        if self.numeric:
            return np.array([-1 if label is None else 0]), np.array([label or 0.0]).view(np.int64)
        return np.array([self.labels.index(label) if label in self.labels else -1]), np.zeros(0, np.int64)

    def head(self, config: BertConfig) -> nn.Module:
        """Published as `classifier`, on the pooler."""
        return PooledHead(config, len(self.outputs))

    def layout(self, features: Sequence[Feature]) -> None:
        """All within a row attend to all."""

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs with a label."""
        return {"pairs": float((batch.labels >= 0).sum())}

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,K] -> the sum of −log softmax at the label; [M,1] -> the sum of squared errors."""
        z = ops.at_least_fp32(scores)
        if self.numeric:
            return {"pairs": ops.mse_forward(*self.known(z, batch))[0]}
        return {"pairs": ops.cross_entropy_forward(z, batch.labels)[0]}

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,K] -> the gradient of the sum by them."""
        z = ops.at_least_fp32(scores)
        if self.numeric:
            _, cache = ops.mse_forward(*self.known(z, batch))
            return {"pairs": ops.mse_backward(1.0, cache)}
        return {"pairs": ops.cross_entropy_backward(1.0, (z, batch.labels))}

    def known(self, z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(guesses, targets) [M,1]; both 0 where the target is not known."""
        known = (batch.labels >= 0)[:, None]
        targets = np.concatenate([f.targets for f in batch.features]).view(np.float64)
        return z * known, torch.from_numpy(targets).to(z)[:, None] * known

    # ---------------------------------------------------------------------------------------- scores -> text and score

    def decode(self, examples: Sequence[Example], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """{label: probability}, or {"score": number}, from the mean over a pair's windows."""
        means = mean_scores(len(examples), len(self.outputs), features, scores)
        rows = means if self.numeric else softmax(means)
        return [dict(zip(self.outputs, row.tolist(), strict=True)) for row in rows]

    def score(self, predictions: Sequence[dict[str, float]], examples: Sequence[Example]) -> dict[str, Any]:
        """label_scores and the confusion matrix, or correlations."""
        if self.numeric:
            return correlations([e.label for e in examples], [p["score"] for p in predictions])
        gold, guess = [e.label for e in examples], [max(p, key=p.get) for p in predictions]
        return {**label_scores([[g] for g in gold], [[g] for g in guess], self.labels),
                "confusion": confusion(gold, guess, self.labels)}

    def collapsed(self, predictions: Sequence[dict[str, float]], examples: Sequence[Example]) -> str | None:
        """The one answer that all pairs were given, if they have several."""
        given = {f"{p['score']:.3g}" if self.numeric else max(p, key=p.get) for p in predictions}
        return given.pop() if len(given) == 1 and len({e.label for e in examples}) > 1 else None

    def report(self, predictions: Sequence[dict[str, float]], examples: Sequence[Example]) -> str:
        """The table a class and the confusion matrix, or the correlations."""
        scores = self.score(predictions, examples)
        if self.numeric:
            return "\n".join(f"{name:9}{value:>10,}" if name == "support" else f"{name:9}{value:10.3f}"
                             for name, value in scores.items())
        table = label_report(scores)
        return table if len(self.labels) > 20 else (
            f"{table}\n\n{confusion_report(scores['confusion'], self.labels)}")

    def result(self, example: Example, prediction: dict[str, float]) -> dict[str, Any]:
        """{"first", "second", "score"}, or {..., "label", "probabilities": {label: p}, the most probable first}."""
        texts = {"first": example.first, "second": example.second}
        if self.numeric:
            return {**texts, **prediction}
        ranked = dict(sorted(prediction.items(), key=lambda pair: -pair[1]))
        return {**texts, "label": next(iter(ranked)), "probabilities": ranked}

    def render(self, result: dict[str, Any], colour: bool) -> str:
        """The answer, then the two texts."""
        said = f"{result['score']:.2f}" if self.numeric else "  ".join(
            f"{label} {p:.3f}" for label, p in list(result["probabilities"].items())[:3])
        head = f"\033[36m{said}\033[0m" if colour else said
        return f"{head}\n  {result['first']}\n  {result['second']}"
