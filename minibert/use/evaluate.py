"""Features -> scores -> text-level predictions -> metrics; used by train.py and the command line."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from minibert.core.batch import Feature, collate
from minibert.core.model import Model
from minibert.data.features import Features
from minibert.engines.fast.engine import Scorer
from minibert.scores.tables import Scores
from minibert.tasks.base import Example, Prediction, Task

CELLS = 2048                                       # pieces a batch of inference, padding included: more leave the cache


def batches_by_length(features: Sequence[Feature]) -> Iterator[list[int]]:
    """Numbers of features, longest first, so many at a time that a batch has about CELLS cells."""
    lengths = features.lengths.tolist() if isinstance(features, Features) else [len(f.ids) for f in features]
    order = sorted(range(len(features)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        stop = start + max(1, CELLS // lengths[order[start]])
        yield order[start:stop]
        start = stop


@torch.inference_mode()
def score_features(model: Model, task: Task, features: Sequence[Feature], precision: str = "fp32",
                   layout: str = "rectangle") -> list[np.ndarray]:
    """The head's scores of every feature, float32 [M,K] each, in the order of `features`; dropout is off."""
    device = next(model.parameters()).device
    result: list[np.ndarray] = [np.zeros(0)] * len(features)
    scorer, one_a_row = Scorer(model, precision), model.head.one_a_row
    for numbers in batches_by_length(features):
        chosen = [features[i] for i in numbers]
        batch = collate(chosen, layout, prefix=task.layout(chosen), device=device)
        scores = scorer(batch).float().cpu().numpy()
        ends = np.cumsum([1 if one_a_row else len(f.picks) for f in chosen])[:-1]
        for i, rows in zip(numbers, np.split(scores, ends), strict=True):
            result[i] = rows
    return result


class FeatureScorer:
    """score(features) -> their scores, by a model in some precision."""

    def __init__(self, model: Model, task: Task, precision: str):
        self.model, self.task, self.precision = model, task, precision

    def __call__(self, features: Sequence[Feature]) -> list[np.ndarray]:
        """As score_features()."""
        return score_features(self.model, self.task, features, self.precision)


def predict_examples(model: Model, task: Task[Example, Prediction], examples: Sequence[Example],
                     features: Sequence[Feature], precision: str = "fp32") -> list[Prediction]:
    """One text-level prediction an example."""
    return task.infer(FeatureScorer(model, task, precision), examples, features)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a split; and the one label that all of it was given, if it was."""
    scores: Scores
    collapsed: str | None


def evaluate_split(score: FeatureScorer, examples: Sequence[Example], features: Sequence[Feature]) -> Evaluation:
    """The scores of the examples that the features were cut from."""
    predictions = score.task.infer(score, examples, features)
    return Evaluation(score.task.score(predictions, examples), score.task.collapsed(predictions, examples))
