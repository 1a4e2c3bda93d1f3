"""One text, one of K classes; or yes or no; or any number of K labels. Read from the pooled state of [CLS].

Every kind is the same sum over rows with other targets: what a row asks of each of its scores.
"""
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from minibert.data.rows import word_features
from minibert.data.tables import read_table
from minibert.data.text import split_words
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError
from minibert.options import option
from minibert.scores.labels import confusion, confusion_report, label_report, label_scores, unseen
from minibert.tasks.base import Columns, FromTables, mean_scores, sigmoid, softmax


@dataclass(frozen=True)
class Example:
    """A text and its labels: one, or with --choice several any number."""
    text: str
    labels: tuple[str, ...]
    where: str                                     # file:line


@dataclass(frozen=True)
class Options(Columns):
    """Classification's own options."""
    columns: str = option("text,label", "names of the columns that hold the text and its label", later=True)
    choice: str = option("one", "one: one of K classes, by a softmax; yes-no: one of two, by a sigmoid; several: any "
                                "number of K labels, by a sigmoid each", ("one", "yes-no", "several"))
    class_weights: str = option("none", "balanced: a row of a class with n of N texts counts N / (K n)",
                                ("none", "balanced"))
    label_smoothing: float = option(0.0, "share of a target that is spread over all classes")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise MinibertError(f"--label-smoothing is {self.label_smoothing}; it must be in [0, 1)")
        if self.class_weights != "none" and self.choice != "one":
            raise MinibertError(f"--class-weights is {self.class_weights}; with --choice {self.choice} it must be none")


class Classify(FromTables):
    """The task; see tasks.Task for what each member is."""
    name = "classify"
    defaults: dict[str, Any] = {"epochs": 8}
    architecture = "BertForSequenceClassification"
    new_pieces: tuple[str, ...] = ()
    trial = "Orders doubled and the company raised its forecast for the year."
    Options = Options

    def __init__(self, options: Options, labels: Sequence[str] = ()):
        self.options, self.labels, self.notices = options, list(labels), []
        several = options.choice == "several"
        self.best = ("micro_f1" if several else "accuracy", "max")
        self.also_best = dict.fromkeys(["accuracy", "macro_f1", "micro_f1", "weighted_f1"], "max")
        self.problem_type = "single_label_classification" if options.choice == "one" else "multi_label_classification"
        self.weights = torch.ones(len(self.labels), dtype=torch.float64)       # [K] of the classes, from training texts

    # --------------------------------------------------------------------------------------------- text -> examples

    def read_file(self, file: Path) -> Iterator[Example]:
        """The examples of one file. Raises MinibertError with file:line."""
        for where, (text, label) in read_table(file, self.options.names):
            if not isinstance(text, str):
                raise MinibertError(f"{where}: the text is {text!r}, not a string")
            yield Example(text, self.read_labels(label, where), where)

    def read_labels(self, value: Any, where: str) -> tuple[str, ...]:
        """One label; with --choice several a JSON list, or names with | between, perhaps none."""
        if self.options.choice != "several":
            if isinstance(value, bool | int | str) and str(value).strip():
                return (str(value).strip(),)
            raise MinibertError(f"{where}: the label is {value!r}; expected one name (--choice several takes lists)")
        names = value.split("|") if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
            raise MinibertError(f"{where}: the labels are {value!r}; expected a list of names")
        return tuple(sorted({str(name).strip() for name in names} - {""}))

    def learn_labels(self, splits: dict[str, Sequence[Example]]) -> None:
        """The labels of train, sorted, numbers by their size; and the table of targets."""
        counts = Counter(label for e in splits["train"] for label in e.labels)
        self.labels = sorted(counts, key=lambda x: (0, float(x), x) if is_number(x) else (1, 0.0, x))
        if len(self.labels) < 2 or (self.options.choice == "yes-no" and len(self.labels) > 2):
            wanted = "two" if self.options.choice == "yes-no" else "at least two"
            raise MinibertError(f"{splits['train'][0].where}: the training texts have the labels "
                                f"{', '.join(self.labels[:5]) or 'none'}; expected {wanted} (is --limit too small?)")
        self.weights = torch.ones(len(self.labels), dtype=torch.float64)
        if self.options.class_weights == "balanced":
            N, K, n = counts.total(), len(self.labels), self.weights.new_tensor([counts[x] for x in self.labels])
            self.weights = N / (K * n)                                        # [SOFT-4]
        self.note_unseen(splits)

    @property
    def learnt(self) -> dict[str, Any]:
        """What the loss needs of the training data, as JSON."""
        return {"class_weights": self.weights.tolist()} if self.options.class_weights == "balanced" else {}

    def recall(self, learnt: Mapping[str, Any]) -> None:
        """Take back what `learnt` was. Raises MinibertError where it does not fit."""
        if self.options.class_weights != "balanced":
            return
        weights = learnt.get("class_weights", [1.0] * len(self.labels))
        if not isinstance(weights, list) or len(weights) != len(self.labels) or not all(
                type(w) is float and 0 < w < math.inf for w in weights):
            raise MinibertError(f"the class weights are {str(weights)[:60]}; expected a positive number for each of "
                                f"{len(self.labels)} labels")
        self.weights = torch.tensor(weights, dtype=torch.float64)

    @property
    def outputs(self) -> list[str]:
        """The label that each score speaks for: with --choice yes-no only the second."""
        return self.labels[1:] if self.options.choice == "yes-no" else self.labels

    def note_unseen(self, splits: dict[str, Sequence[Example]]) -> None:
        """Count labels that training never saw."""
        for split, examples in splits.items():
            there = Counter(label for e in examples for label in e.labels)
            self.notices += unseen(split, there, self.labels, "labels", "texts")

    def example(self, text: str) -> Example:
        """Raw text."""
        return Example(text, (), "text")

    # ----------------------------------------------------------------------------------- examples -> scores and loss

    def encode(self, number: int, example: Example, tokenizer: Tokenizer, max_pieces: int,
               overlap: int) -> list[Feature]:
        """[CLS] text [SEP], read at [CLS]; every window of a long text is one, with the label of the text."""
        words = [example.text[a:b] for a, b in split_words(example.text)]
        windows = word_features(number, tokenizer.pieces([words])[0], tokenizer, max_pieces, overlap, [0] * len(words))
        first, (label, targets) = np.zeros(1, np.int64), self.numbers(example.labels)
        return [Feature(number, f.ids, f.types, first, label, targets) for f in windows]

    def numbers(self, labels: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """(the class [1], -1 if train never saw it; the labels that hold [any number] with --choice several)."""
        known = [self.labels.index(label) for label in labels if label in self.labels]
        if self.options.choice == "several":
            return np.array([0 if len(known) == len(labels) else -1]), np.array(known, np.int64)
        return np.array([known[0] if known else -1]), np.zeros(0, np.int64)

    def head(self, config: BertConfig) -> nn.Module:
        """Published as `classifier`, on the pooler."""
        return PooledHead(config, len(self.outputs))

    def layout(self, features: Sequence[Feature]) -> None:
        """All within a row attend to all."""

    def targets_of(self, batch: Batch, like: Tensor) -> Tensor:
        """[M,outputs]: what each row asks of its scores, smoothed and weighed, in the format of `like`."""
        y = batch.labels.clamp(min=0)
        if self.options.choice == "one":
            hard = nn.functional.one_hot(y, len(self.labels)).to(like.dtype)
        elif self.options.choice == "yes-no":
            hard = y[:, None].to(like.dtype)
        else:
            hard = torch.zeros_like(like)
            for row, feature in zip(hard, batch.features, strict=True):
                row[torch.from_numpy(feature.targets)] = 1.0
        K = len(self.labels) if self.options.choice == "one" else 2            # what a sigmoid chooses from: yes or no
        s = self.options.label_smoothing
        targets = (1 - s) * hard + s / K                                      # [SOFT-3]
        return targets * self.weights.to(like)[y][:, None] if self.options.choice == "one" else targets

    def counts(self, batch: Batch) -> dict[str, float]:
        """Rows with a known label, by the weight of their class; with sigmoids decisions."""
        known = batch.labels[batch.labels >= 0].cpu()
        if self.options.choice == "one":
            return {"texts": float(self.weights[known].sum())}                # [SOFT-5]
        return {"texts": float(len(known) * len(self.outputs))}

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,outputs] -> the sum over rows of their (binary) cross-entropies."""
        z, keep = ops.at_least_fp32(scores), batch.labels >= 0
        targets = self.targets_of(batch, z)
        if self.options.choice == "one":
            return {"texts": ops.soft_cross_entropy_forward(z, targets * keep[:, None])[0]}
        return {"texts": ops.bce_forward(z[keep], targets[keep])[0]}

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,outputs] -> the gradient of the sum by them."""
        z, keep = ops.at_least_fp32(scores), (batch.labels >= 0)[:, None]
        targets = self.targets_of(batch, z)
        if self.options.choice == "one":
            return {"texts": ops.soft_cross_entropy_backward(1.0, (z, targets * keep))}
        return {"texts": ops.bce_backward(1.0, (z, targets)) * keep}

    # ---------------------------------------------------------------------------------------- scores -> text and score

    def decode(self, examples: Sequence[Example], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """{label: probability}, from the mean score over a text's windows."""
        means = mean_scores(len(examples), len(self.outputs), features, scores)
        if self.options.choice == "one":
            p = softmax(means)
        else:
            p = sigmoid(means)
        p = np.concatenate([1 - p, p], 1) if self.options.choice == "yes-no" else p
        return [dict(zip(self.labels, row.tolist(), strict=True)) for row in p]

    def chosen(self, prediction: dict[str, float]) -> tuple[str, ...]:
        """The most probable label, or with --choice several all that are more probable than not."""
        if self.options.choice == "several":
            return tuple(sorted(label for label, p in prediction.items() if p > 0.5))
        return (max(prediction, key=prediction.get),)

    def score(self, predictions: Sequence[dict[str, float]], examples: Sequence[Example]) -> dict[str, Any]:
        """label_scores; with one label a text the confusion matrix too."""
        gold, guess = [e.labels for e in examples], [self.chosen(p) for p in predictions]
        scores = label_scores(gold, guess, self.labels)
        if self.options.choice != "several":
            scores["confusion"] = confusion([g for g, in gold], [g for g, in guess], self.labels)
        return scores

    def collapsed(self, predictions: Sequence[dict[str, float]], examples: Sequence[Example]) -> str | None:
        """The one label that all texts were given, if there are texts with others; none of several is where they start.
        """
        given = {self.chosen(p) for p in predictions}
        others = any(e.labels not in given for e in examples)
        return " and ".join(given.pop()) or None if len(given) == 1 and others else None

    def report(self, predictions: Sequence[dict[str, float]], examples: Sequence[Example]) -> str:
        """The table a class, and the confusion matrix where classes are not too many to be read."""
        scores = self.score(predictions, examples)
        table = label_report(scores)
        if self.options.choice == "several" or len(self.labels) > 20:
            return table
        return f"{table}\n\n{confusion_report(scores['confusion'], self.labels)}"

    def result(self, example: Example, prediction: dict[str, float]) -> dict[str, Any]:
        """{"text", "labels": the chosen, "probabilities": {label: p}, the most probable first}."""
        ranked = sorted(prediction.items(), key=lambda pair: -pair[1])
        return {"text": example.text, "labels": list(self.chosen(prediction)), "probabilities": dict(ranked)}

    def render(self, result: dict[str, Any], colour: bool) -> str:
        """The chosen labels, the text, and the three most probable labels below."""
        said = " ".join(result["labels"]) or "none"
        top = list(result["probabilities"].items())[:3]
        head = f"\033[36m{said}\033[0m" if colour else said
        return f"{head}  {result['text']}\n  " + "  ".join(f"{label} {p:.3f}" for label, p in top)


def is_number(text: str) -> bool:
    """Whether a label is a finite number, as the five grades of a review are."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
