"""One answer an example, a label of K: what texts, pairs and relations share.

A text too long for a row has several rows, windows of it; each learns the label, and the mean of their scores decides.
"""
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from minibert.core.batch import Feature
from minibert.core.config import BertConfig
from minibert.core.heads import Head, PooledHead
from minibert.data.rows import PairRow, word_features
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError, spelt_out
from minibert.scores.labels import confusion, confusion_report, label_report, label_scores, unseen
from minibert.scores.tables import Scores, averages, compared
from minibert.tasks.base import Result, Task, only_one
from minibert.tasks.probabilities import by_label, mean_scores, softmax
from minibert.tasks.tabular import skipping

ODD, WIDE = 50, 200                                # labels: so many may be a mistake, more make no square table


class Located(Protocol):
    """What every example of such a task has."""

    @property
    def where(self) -> str:
        """file:line, or "text"."""


Example = TypeVar("Example", bound=Located)


@dataclass(frozen=True)
class Answer:
    """What a model says of one example."""
    probabilities: Mapping[str, float]             # of every label, in their order

    @property
    def label(self) -> str:
        """The most probable."""
        return max(self.probabilities.items(), key=lambda pair: pair[1])[0]

    @property
    def ranked(self) -> dict[str, float]:
        """The most probable first."""
        return dict(sorted(self.probabilities.items(), key=lambda pair: -pair[1]))


class LabelTask(Task[Example, Answer]):
    """A task of one label an example, read at [CLS].

    An example has `text`, `label` (None: not known, as in raw text) and `where`, file:line or "text". One without a
    text has its own encode() and shown(), one with other labels its own right().
    """
    defaults = {"epochs": 8}
    also_best = {"macro_f1": "max", "weighted_f1": "max"}
    architecture = "BertForSequenceClassification"
    problem_type: str | None = "single_label_classification"
    unit = "texts"
    fewest = 2                                     # labels that there must be
    fixed: tuple[str, ...] = ()                    # all labels there may be, in the order of the scores; (): any names

    @property
    def labels(self) -> list[str]:
        """[K] names, by number; whoever changes them sets them all."""
        return self._labels

    @labels.setter
    def labels(self, names: Sequence[str]) -> None:
        """And `places`: {label: its number}."""
        self._labels = list(names)
        self.places = {name: number for number, name in enumerate(self._labels)}

    def read_label(self, value: object, where: str) -> Any:
        """A label of a table as text. Raises MinibertError for what is no name, or none of those that are `fixed`."""
        label = str(value).strip() if isinstance(value, bool | int | str) else ""
        if not label or (self.fixed and label not in self.fixed):
            wanted = f"one of {', '.join(self.fixed)}" if self.fixed else "a name"
            raise MinibertError(f"{where}: the label is {value!r}; expected {wanted}{skipping(value)}")
        return label

    def right(self, example: Any) -> tuple[str, ...]:
        """The labels of an example: one."""
        return (example.label,)

    def stratum(self, example: Example) -> object:
        return self.right(example)

    def chosen(self, prediction: Answer) -> tuple[str, ...]:
        """The labels that a model gives an example: the most probable."""
        return (prediction.label,)

    def learn_labels(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """The labels of train, sorted, or those that are fixed. Raises MinibertError for too few."""
        self.labels = list(self.fixed) or sorted({label for e in splits["train"] for label in self.right(e)})
        self.refuse_labels(len(self.labels) < self.fewest, f"at least {('one', 'two')[self.fewest - 1]}", splits)
        self.refuse_texts(splits["train"])
        self.note_unseen(splits)

    def refuse_labels(self, wrong: bool, wanted: str, splits: Mapping[str, Sequence[Example]]) -> None:
        """Raise MinibertError where the labels of train are too few or too many."""
        if wrong:
            raise MinibertError(f"{splits['train'][0].where}: the training {self.unit} have the labels "
                                f"{', '.join(map(str, self.labels[:5])) or 'none'}; expected {wanted} (is --limit too "
                                "small?)")

    def refuse_texts(self, examples: Sequence[Example]) -> None:
        """Tell, or raise MinibertError, where labels are so many for the examples that they may be something else."""
        K, given = len(self.labels), sum(len(self.right(e)) for e in examples)
        said = (f"{examples[0].where}: {K:,} labels on {given:,} {self.unit}, first {self.labels[0][:60]!r}; are text "
                "and label columns exchanged?")
        if not self.fixed and refuses(K, given):
            raise MinibertError(said)
        if not self.fixed and K >= ODD and 3 * K > given:
            self.notices.append(said)

    def note_unseen(self, splits: Mapping[str, Sequence[Example]]) -> None:
        for split, examples in splits.items():
            there = Counter(label for e in examples for label in self.right(e))
            self.notices += unseen(split, there, self.labels, "labels", self.unit)

    def number(self, label: str | None) -> int:
        """Of a label; -1 for one that is not known, or that train never saw: no loss."""
        return -1 if label is None else self.places.get(label, -1)

    def numbers(self, example: Example) -> tuple[int, object]:
        """(number() of an example's label, what its features are `about`)."""
        label, = self.right(example)
        return self.number(label), None

    def encode(self, number: int, example: Any, tokenizer: Tokenizer, max_pieces: int, overlap: int) -> list[Feature]:
        """[CLS] text [SEP], read at [CLS]; every window of a long text is one, with the label of the text."""
        words = tokenizer.words(example.text)
        pieces, = tokenizer.pieces([words])
        rows = word_features(number, pieces, tokenizer, max_pieces, overlap, [0] * len(words))
        return self.read_at_cls(number, rows, example)

    def read_at_cls(self, number: int, rows: Iterable[Feature | PairRow], example: Example) -> list[Feature]:
        """The rows of example `number`, each read at its [CLS]."""
        label, about = self.numbers(example)
        return [Feature(number, row.ids, row.types, np.zeros(1, np.int64), np.array([label]), about) for row in rows]

    def head(self, config: BertConfig) -> Head:
        return PooledHead(config, len(self.outputs))

    def decode(self, examples: Sequence[Example], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[Answer]:
        """The softmax of the mean scores [1,K] of each example's windows."""
        table = softmax(mean_scores(len(examples), len(self.outputs), features, scores))
        return [Answer(row) for row in by_label(self.places, table)]

    def score(self, predictions: Sequence[Answer], examples: Sequence[Example]) -> Scores:
        gold, guess = [self.right(e) for e in examples], [self.chosen(p) for p in predictions]
        scores = label_scores(gold, guess, self.labels)
        if len(self.labels) > WIDE:                # a table of K·K numbers, in every line of metrics.jsonl
            return scores
        return {**scores, "confusion": confusion([y for y, *_ in gold], [y for y, *_ in guess], self.labels)}

    def report(self, scores: Scores) -> str:
        table = label_report(scores)
        if "confusion" not in scores or len(self.labels) > 20:
            return table
        return f"{table}\n\n{confusion_report(scores['confusion'], self.labels)}"

    def summary(self, scores: Scores, before: Scores | None = None) -> str:
        """A line a class, where they are not too many, and the averages."""
        few = len(scores["per_class"]) <= 20
        return compared(lambda s: {**(s["per_class"] if few else {}), **averages(s)}, scores, before)

    def collapsed(self, predictions: Sequence[Answer], examples: Sequence[Example]) -> str | None:
        """None for no label of several too: that is where they start."""
        given = {" and ".join(self.chosen(p)) for p in predictions}
        return only_one(given, {" and ".join(self.right(e)) for e in examples}) or None

    def shown(self, example: Any) -> Result:
        """What of an example stands in a result."""
        return {"text": example.text}

    def result(self, example: Example, prediction: Answer) -> Result:
        """{what shown() gives, "label", "probabilities": {label: p}}, the most probable first."""
        return {**self.shown(example), "label": prediction.label, "probabilities": prediction.ranked}

    def empty(self, text: str) -> Result:
        return {"text": text, "label": None, "probabilities": {}}


def refuses(labels: int, examples: int) -> bool:
    """Whether so many labels are a mistake: too many to be worth a table, on fewer than three examples each.

    >>> refuses(200, 200), refuses(201, 603), refuses(201, 602)
    (False, False, True)
    """
    return labels > WIDE and 3 * labels > examples


def three_best(probabilities: Mapping[str, float]) -> str:
    """The first three labels of a ranking with their probabilities."""
    return "  ".join(f"{spelt_out(label)} {p:.3f}" for label, p in list(probabilities.items())[:3])
