"""What a task is: all that the loop, the engines and the command line ask of one, with a default for each member.

A task of one label an example is shorter still on LabelTask (labelled.py), one of two texts and a label on
PairTask (pairs.py), one whose labels are pieces of the vocabulary on VocabularyTask (vocabulary.py).
"""
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from minibert.core import ops
from minibert.core.batch import Batch, Feature
from minibert.core.config import BertConfig
from minibert.core.heads import Head, TokenHead
from minibert.core.model import Model
from minibert.data.compact import Compact
from minibert.data.features import Features
from minibert.data.tables import TABLES, split_files
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError
from minibert.files import Json
from minibert.options import check_bounds
from minibert.scores.tables import Scores, score_at

Example = TypeVar("Example")
Prediction = TypeVar("Prediction")
Result = Json                                      # a prediction as JSON
RowDraw = Callable[[int], np.random.Generator]     # what is random about feature i of an update, in this epoch


class Scorer(Protocol):
    """Features -> their scores, float32 [M,K] each, by `model` in `precision`."""
    model: Model
    precision: str

    def __call__(self, features: Sequence[Feature]) -> list[np.ndarray]:
        """In the order of `features`."""


@dataclass(frozen=True)
class TaskOptions:
    """A task's own options: each field is made by options.option(), which knows its bounds."""

    def __post_init__(self) -> None:
        """Raises MinibertError for values that no task can have."""
        check_bounds(self)

    def check_changes(self, changes: Mapping[str, object]) -> None:
        """Raises MinibertError for a change that a model trained with these options cannot be used with."""


class Task(ABC, Generic[Example, Prediction]):
    """One task. An instance knows its options and, once read from data or a run folder, its labels.

    The members come in the order in which a run asks for them: files to examples, examples to features, scores to a
    loss, scores back to predictions, predictions to numbers and text.
    """
    name = ""                                      # key in TASKS
    defaults: dict[str, int | float | str] = {}    # TrainConfig values that suit it; never the learning rate
    best = ("accuracy", "max")                     # the score that selects a checkpoint
    also_best: dict[str, str] = {}                 # {score: "max" or "min"}: those that may do so in its place
    architecture = "BertForTokenClassification"    # the published class that opens a run folder
    problem_type: str | None = None                # the published config's word for the kind of labels
    Options: type[TaskOptions] = TaskOptions
    suffixes: Sequence[str] = TABLES               # of its data files
    Examples: Any = ()                             # class of what read() gives, if the cache can keep that
    About: type | None = None                      # class of what its features are `about`
    RowAbout: type | None = None                   # the same of what rows() makes of them, where that is another
    new_pieces: tuple[str, ...] = ()               # that the vocabulary needs for it, such as marks around a span
    head_parts: tuple[str, ...] = ()               # beginnings of the head's names, where these say what a tensor means
                                                   # whatever the labels: a part that a checkpoint lacks starts new
    trial = "Angela Merkel met Tim Cook in Paris."  # a text to try a model of it on
    unit = "rows"                                  # what its loss is the mean of: the name of the one term
    coupled = False                                # the loss of a row reads the scores of others, see core/coupled.py
    on_disk = False                                # features are too many for memory: encode_many() is spilt

    def __init__(self, options: TaskOptions, labels: Sequence[str] = ()):
        self.options: Any = options                # an instance of Options, which is the task's own
        self.labels = list(labels)                 # [K] names, by number
        self.notices: list[str] = []               # what reading found worth telling, in words
        self.tokenizer: Tokenizer                  # the one that encoded, from then on

    @property
    def outputs(self) -> list[str]:
        """The label that each score speaks for; mostly all of them."""
        return self.labels

    # --------------------------------------------------------------------------------------------- files -> examples

    def files(self, path: Path) -> dict[str, Path]:
        """{split: file} of all that read(path) opens: one file is "test", a folder has train, dev, test."""
        return split_files(Path(path), self.suffixes)

    def read(self, path: Path) -> dict[str, Sequence[Example]]:
        """{split: examples}. What comes out depends on files(path), the options and the code alone."""
        return {split: self.read_file(file) for split, file in self.files(path).items()}

    def read_file(self, file: Path) -> Sequence[Example]:
        """The examples of one file; a task with a read() of its own needs none. Raises MinibertError with file:line."""
        raise NotImplementedError

    def read_candidates(self, file: Path) -> None:
        """Take what raw texts choose from out of a file (--answers). Raises MinibertError where a task has no such."""
        raise MinibertError(f"--answers {file}: a model of --task {self.name} chooses no replies; leave it out")

    def subset(self, examples: Sequence[Example], numbers: np.ndarray) -> Sequence[Example]:
        """Some of the examples of one file, for --split; of class `Examples`, where that is what they were."""
        return (examples.take(numbers) if isinstance(examples, Compact) else
                [examples[i] for i in numbers.tolist()])

    def stratum(self, example: Example) -> object:
        """What --stratify shares out evenly. Raises MinibertError for a task that has no such thing."""
        raise MinibertError(f"--stratify: an example of --task {self.name} has no label of its own; leave it out")

    @abstractmethod
    def example(self, text: str) -> Example:
        """An example without labels from raw text. Raises MinibertError for a text that is none."""

    def example_of_words(self, words: Sequence[str]) -> Example:
        """The same from words that were cut already. Raises MinibertError where a task says nothing of single words."""
        raise MinibertError(f"words that are cut already: a model of --task {self.name} says nothing of single words; "
                            "give texts")

    def learn_labels(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """Take the labels from the training examples, then note_unseen()."""
        self.note_unseen(splits)

    def note_unseen(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """Count labels that training never saw into `notices`; they count as missed, and never crash."""

    @property
    def learnt(self) -> Json:
        """What the loss needs of the training data beside the labels, as JSON."""
        return {}

    def recall(self, learnt: Mapping[str, object]) -> None:
        """Take back what `learnt` was in a model that was loaded. Raises MinibertError where it does not fit."""

    # ------------------------------------------------------------------------------------------ examples -> features

    @abstractmethod
    def encode(self, number: int, example: Example, tokenizer: Tokenizer, max_pieces: int,
               overlap: int) -> list[Feature]:
        """Example `number` as features; what becomes of a long text is the task's to say: most make windows of it."""

    def encode_many(self, examples: Sequence[Example], tokenizer: Tokenizer, max_pieces: int,
                    overlap: int) -> Iterator[Features]:
        """encode() of a whole sequence of class `Examples`, in parts; a task without such a class needs none."""
        raise NotImplementedError

    def note_rows(self, split: str, features: Features) -> None:
        """Tell in `notices` what did not fit into the rows of a split."""

    def rows(self, features: Sequence[Feature], draw: RowDraw) -> list[Feature]:
        """The rows that an update on these features reads."""
        return list(features)

    def layout(self, features: Sequence[Feature]) -> Tensor | None:
        """Prefix lengths [B] for a sequence-to-sequence batch; None: all within a row attend to all."""
        return None

    # ------------------------------------------------------------------------------------------------ scores -> loss

    def head(self, config: BertConfig) -> Head:
        """From hidden states to scores, under the published names."""
        return TokenHead(config, len(self.outputs))

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """{term: int64, a label for each row of the scores, -1 for none}; a row has one in one term at most."""
        return {self.unit: batch.labels}

    def terms(self, batch: Batch) -> dict[str, Tensor] | None:
        """targets(), where the scores are so many that an engine has a kernel for their loss; None: it asks loss()."""
        return None

    def counts(self, batch: Batch) -> dict[str, float]:
        """{term: how much of it there is to learn from}, from labels alone."""
        return {term: float((labels >= 0).sum()) for term, labels in self.targets(batch).items()}  # [PIECE-5]

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,K] -> {term: sum of losses}, here of −log softmax at the label; counts() divide it later."""
        z = ops.at_least_fp32(scores)              # a sum of many terms: not in 16 bits
        return {term: ops.cross_entropy_forward(z, labels)[0] for term, labels in self.targets(batch).items()}

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{term: gradient of its sum by the scores [M,K]}."""
        z = ops.at_least_fp32(scores)
        return {term: ops.cross_entropy_backward(1.0, (z, labels)) for term, labels in self.targets(batch).items()}

    # ----------------------------------------------------------------------------------------- scores -> predictions

    def infer(self, score: Scorer, examples: Sequence[Example], features: Sequence[Feature]) -> list[Prediction]:
        """One prediction an example. A task that has to look at a model more than once has its own."""
        return self.decode(examples, features, score(features))

    @abstractmethod
    def decode(self, examples: Sequence[Example], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[Prediction]:
        """The scores [M,K] of every feature -> one prediction an example, at text level."""

    # ------------------------------------------------------------------------------------ predictions -> what is said

    @abstractmethod
    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Scores:
        """Nested dict of numbers."""

    def report(self, scores: Scores) -> str:
        """What score() gave as text, here a number a line."""
        return "\n".join(f"{name.replace('_', ' '):14}{value:12,{'' if isinstance(value, int) else '.3f'}}"
                         for name, value in scores.items())

    def summary(self, scores: Scores, before: Scores | None = None) -> str:
        """The scores that an epoch can be chosen by, a line each, and as they were `before`."""
        lines = [f"{'':20}  {'now':>10}" + f"  {'before':>10}" * bool(before)]
        for path in dict.fromkeys([self.best[0], *self.also_best]):
            was = f"  {score_at(before, path):10.3f}" if before else ""
            lines.append(f"{path:20}  {score_at(scores, path):10.3f}{was}")
        return "\n".join(lines)

    def collapsed(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> str | None:
        """The one label that everything was given, if the examples have more than one; None otherwise."""
        return None

    @abstractmethod
    def result(self, example: Example, prediction: Prediction) -> Result:
        """A prediction for raw text, ready for JSON, with character offsets."""

    def empty(self, text: str) -> Result:
        """The result of a text of nothing but blanks, which no model reads: result() with nothing found."""
        return {"text": text}

    def render(self, result: Result, colour: bool) -> str:
        """A result as text for a person, here a line a member."""
        return "\n".join(f"{coloured(name, colour)}  {value}" for name, value in result.items())


def coloured(text: str, colour: bool) -> str:
    """What a model says, set off from what it was given, where `colour`."""
    return f"\033[36m{text}\033[0m" if colour else text


def only_one(given: set[str], there: set[str]) -> str | None:
    """What everything was given, if that is one and there are several."""
    return next(iter(given)) if len(given) == 1 and len(there) > 1 else None
