"""One text, one of K classes; or yes or no; or any number of K labels. Read from the pooled state of [CLS].

Every kind is the same sum over rows with other targets: what a row asks of each of its scores.
"""
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from minibert.core import ops
from minibert.core.batch import Batch, Feature
from minibert.data.compact import Compact
from minibert.errors import MinibertError, spelt_out
from minibert.options import option
from minibert.scores.labels import label_scores
from minibert.scores.tables import Scores
from minibert.tasks.base import Result, TaskOptions, coloured
from minibert.tasks.class_weights import balanced, recalled, total_weight
from minibert.tasks.label_lists import LabelLists
from minibert.tasks.labelled import Answer, LabelTask, three_best
from minibert.tasks.probabilities import by_label, mean_scores, sigmoid
from minibert.tasks.tabular import TableOptions, table_rows, text_of


@dataclass(frozen=True)
class Example:
    """A text and its labels: one, or with --choice several any number."""
    text: str
    labels: tuple[str, ...]
    where: str                                     # file:line


@dataclass(frozen=True)
class Holding:
    """With --choice several: the labels that a text has."""
    labels: np.ndarray                             # int64, any number of them


@dataclass(frozen=True)
class Options(TableOptions):
    """Classification's own options."""
    choice: str = option("one", "one: one of K classes, by a softmax; yes-no: one of two, by a sigmoid; several: any "
                                "number of K labels, by a sigmoid each", ("one", "yes-no", "several"))
    class_weights: str = option("none", "balanced: a row of a class with n of N texts counts N / (K n)",
                                ("none", "balanced"))
    label_smoothing: float = option(0.0, "share of a target that is spread over all classes", least=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_weights != "none" and self.choice != "one":
            raise MinibertError(f"--class-weights is {self.class_weights}; with --choice {self.choice} it must be none")


class Classify(LabelTask[Example]):
    """The task; see base.Task for what each member is."""
    name = "classify"
    trial = "Orders doubled and the company raised its forecast for the year."
    also_best = dict.fromkeys(["accuracy", "macro_f1", "micro_f1", "weighted_f1"], "max")
    Options, About = Options, Holding

    def __init__(self, options: TaskOptions, labels: Sequence[str] = ()):
        super().__init__(options, labels)
        if self.options.choice == "several":
            self.best, self.fewest = ("micro_f1", "max"), 1
        if self.options.choice != "one":
            self.problem_type = "multi_label_classification"
        self.weights = torch.ones(len(self.labels), dtype=torch.float64)       # [K] of the classes, from training texts

    @property
    def outputs(self) -> list[str]:
        """The label that each score speaks for: with --choice yes-no only the second."""
        return self.labels[1:] if self.options.choice == "yes-no" else self.labels

    def read_file(self, file: Path) -> Compact[Example]:
        """One label each; with --choice several any number, see LabelLists, perhaps none."""
        if self.options.choice != "several":
            return Compact.of(Example, file, (Example(text_of(text, where), (self.read_label(label, where),), where)
                                              for where, (text, label) in table_rows(self, file)))
        lists = LabelLists()
        examples = Compact.of(Example, file, (Example(text_of(text, where), lists.read(labels, where), where)
                                              for where, (text, labels) in table_rows(self, file, slice(0, 1))))
        labels_of = lists.meaning(file, self.notices)
        examples.change(lambda e: Example(e.text, labels_of(e.labels), e.where))
        return examples

    def right(self, example: Example) -> tuple[str, ...]:
        return example.labels

    def example(self, text: str) -> Example:
        return Example(text, (), "text")

    def learn_labels(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """The labels of train, sorted, numbers by their size; and the weights of the classes."""
        super().learn_labels(splits)
        self.labels = sorted(self.labels, key=lambda x: (0, float(x), x) if is_number(x) else (1, 0.0, x))
        self.refuse_labels(self.options.choice == "yes-no" and len(self.labels) > 2, "two", splits)

        self.weights = torch.ones(len(self.labels), dtype=torch.float64)
        if self.options.class_weights == "balanced":
            counts = Counter(label for e in splits["train"] for label in e.labels)
            self.weights = balanced(counts, self.labels)

    @property
    def learnt(self) -> dict[str, list[float]]:
        """The weights of the classes."""
        return {"class_weights": self.weights.tolist()} if self.options.class_weights == "balanced" else {}

    def recall(self, learnt: Mapping[str, object]) -> None:
        if self.options.class_weights == "balanced":
            self.weights = recalled(learnt, len(self.labels))

    def numbers(self, example: Example) -> tuple[int, Holding | None]:
        """(the class, -1 if train never saw it; with --choice several the labels that hold)."""
        known = [self.places[label] for label in example.labels if label in self.places]
        if self.options.choice == "several":
            return 0 if len(known) == len(example.labels) else -1, Holding(np.array(known, np.int64))
        return known[0] if known else -1, None

    def targets_of(self, batch: Batch, like: Tensor) -> Tensor:
        """[M,outputs]: what each row asks of its scores, smoothed and weighted, in the format of `like`."""
        y = batch.labels.clamp(min=0)
        if self.options.choice == "several":
            hard = torch.zeros_like(like)
            for row, feature in zip(hard, batch.features, strict=True):
                row[torch.from_numpy(feature.about.labels)] = 1.0
        else:                                      # of no and yes the second alone has a score
            hard = nn.functional.one_hot(y, len(self.labels))[:, -len(self.outputs):].to(like.dtype)

        K = len(self.labels) if self.options.choice == "one" else 2            # what a sigmoid chooses from: yes or no
        s = self.options.label_smoothing
        targets = (1 - s) * hard + s / K                                      # [SOFT-3]
        return targets * self.weights.to(like)[y][:, None]

    def counts(self, batch: Batch) -> dict[str, float]:
        """Rows with a known label, by the weight of their class; with sigmoids decisions."""
        if self.options.choice == "one":
            return {"texts": total_weight(batch.labels, self.weights)}
        return {"texts": float((batch.labels >= 0).sum()) * len(self.outputs)}

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
        backward = ops.soft_cross_entropy_backward if self.options.choice == "one" else ops.bce_backward
        return {"texts": backward(1.0, (z, self.targets_of(batch, z))) * keep}

    def decode(self, examples: Sequence[Example], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[Answer]:
        """Probabilities from the mean score over a text's windows, by a softmax or by sigmoids."""
        if self.options.choice == "one":
            return super().decode(examples, features, scores)
        p = sigmoid(mean_scores(len(examples), len(self.outputs), features, scores))
        p = np.concatenate([1 - p, p], 1) if self.options.choice == "yes-no" else p
        return [Answer(row) for row in by_label(self.places, p)]

    def chosen(self, prediction: Answer) -> tuple[str, ...]:
        if self.options.choice == "several":
            return tuple(sorted(label for label, p in prediction.probabilities.items() if p > 0.5))
        return (prediction.label,)

    def score(self, predictions: Sequence[Answer], examples: Sequence[Example]) -> Scores:
        if self.options.choice != "several":
            return super().score(predictions, examples)
        return label_scores([e.labels for e in examples], [self.chosen(p) for p in predictions], self.labels)

    def result(self, example: Example, prediction: Answer) -> Result:
        """{"text", "labels": the chosen, "probabilities": {label: p}, the most probable first}."""
        return {"text": example.text, "labels": list(self.chosen(prediction)), "probabilities": prediction.ranked}

    def empty(self, text: str) -> Result:
        return {"text": text, "labels": [], "probabilities": {}}

    def render(self, result: Result, colour: bool) -> str:
        """The chosen labels, the text, and the three most probable labels below."""
        said = coloured(spelt_out(" ".join(result["labels"])) or "none", colour)
        return f"{said}  {result['text']}\n  {three_best(result['probabilities'])}"


def is_number(text: str) -> bool:
    """Whether a label is a finite number, as the five grades of a review are."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
