"""What a task is."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from minibert.core import ops
from minibert.core.batch import Batch, Feature
from minibert.core.config import BertConfig
from minibert.core.heads import WordHead
from minibert.data.tables import TABLES, split_files
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError


def column_names(columns: str, example: str) -> list[str]:
    """The names in --columns, as many as in `example`; MinibertError where they are not so many different ones."""
    names, wanted = [name.strip() for name in columns.split(",")], len(example.split(","))
    if len(names) != wanted or len(set(names)) != wanted or not all(names):
        raise MinibertError(f"--columns is {columns!r}; it must be {wanted} different names with commas between, such "
                            f"as {example}")
    return names


class Columns:
    """Options whose field `columns` names columns with commas between; its default says how many there are."""
    columns: str

    def __post_init__(self) -> None:
        column_names(self.columns, type(self).columns)         # refuses what cannot be

    @property
    def names(self) -> list[str]:
        """Of the columns. Raises MinibertError where they cannot be such."""
        return column_names(self.columns, type(self).columns)


class FromTables:
    """A task whose files are tables: it has read_file(file), the examples of one."""

    def files(self, path: Path) -> dict[str, Path]:
        """One file is the test split; a folder has those of SPLITS."""
        return split_files(path, TABLES)

    def read(self, path: Path) -> dict[str, list[Any]]:
        """{split: examples}. Raises MinibertError with file:line."""
        return {split: list(self.read_file(file)) for split, file in self.files(Path(path)).items()}


def mean_scores(examples: int, outputs: int, features: Sequence[Feature], scores: Sequence[np.ndarray]) -> np.ndarray:
    """The scores [1,outputs] of every feature -> [examples,outputs]: the mean over the windows of each example.

    Every example has at least one: a text without words is [CLS] [SEP].
    """
    sums, counts = np.zeros((examples, outputs)), np.zeros((examples, 1))
    for feature, rows in zip(features, scores, strict=True):
        sums[feature.example] += rows[0]
        counts[feature.example] += 1
    return sums / counts


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """Any shape -> probabilities of that shape; no score overflows it."""
    return np.exp(-np.logaddexp(0.0, -scores))


def softmax(scores: np.ndarray) -> np.ndarray:
    """[N,K] -> probabilities [N,K]."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Task(Protocol):
    """One file of this folder. An instance knows its options and, once read from data or a run folder, its labels.

    For data by the million a task may have two members more. `Examples`: the class of the sequences that read() gives,
    whose arrays() and from_arrays(file, arrays) let the cache keep them. `encode_many(examples, tokenizer, max_pieces,
    overlap)`: the features of all of such a sequence, as parts for features.join, or with `on_disk = True` for
    features.spill. Features are kept for any task.

    Ten more that a task may have. `rows(features, draw)`: the rows that an update on these features reads, in place
    of them; draw(i) is the generator of features[i] in this epoch. `coupled = True`: the loss of a row reads the scores
    of others, see coupled.py. `infer(score, examples, features)`: predictions in place of decode(), where one look is
    not enough; score(features) gives the scores of any features, and has the model and its precision. `head_parts`:
    beginnings of the head's names, where a name alone says what a tensor means, whatever labels the checkpoint has: a
    part of which it has nothing starts new, the others are taken. `terms(batch)`: {term: labels [M], -1 for none, each
    row in one term at most}, where the loss is the cross-entropy of the scores and they are many; fast.py has a kernel
    for that. `learnt`: what the loss needs of the training data, as JSON, and `recall(learnt)`, which takes it back in
    a model that was loaded. `note_rows(split, features)`: add to `notices` what did not fit into rows. `also_best`:
    {score: "max" or "min"}, those that may select a checkpoint in place of `best`.
    """
    name: str                                      # key in TASKS
    defaults: dict[str, Any]                       # TrainConfig values that suit it; never the learning rate
    best: tuple[str, str]                          # the score that selects a checkpoint, ("entity.f1", "max")
    architecture: str                              # the published class that opens a run folder
    problem_type: str | None                       # the published config's word for the kind of labels
    Options: type                                  # dataclass of config.option()s; check_changes(changes), if it has
                                                   # that, refuses what a model trained with these cannot be used with
    new_pieces: tuple[str, ...]                    # that the vocabulary needs for it, such as marks around a span
    trial: str                                     # a text to try a model of this task on
    labels: list[str]                              # [K] names, by number
    outputs: list[str]                             # the label that each score speaks for; mostly all of them
    notices: list[str]                             # what reading found worth telling, in words

    def files(self, path: Path) -> dict[str, Path]:
        """{split: file} of all that read(path) opens, and nothing else: the cache knows them by their contents."""

    def read(self, path: Path) -> dict[str, Sequence[Any]]:
        """A folder, or one file as "test", -> {"train" | "dev" | "test": examples}; errors name file and line.

        What comes out depends on files(path), the options and the code alone; of the task only `notices` changes.
        """

    def learn_labels(self, splits: dict[str, Sequence[Any]]) -> None:
        """Take the labels from the training examples, then note_unseen()."""

    def note_unseen(self, splits: dict[str, Sequence[Any]]) -> None:
        """Count labels that training never saw into `notices`; they count as missed, and never crash."""

    def encode(self, number: int, example: Any, tokenizer: Tokenizer, max_pieces: int, overlap: int) -> list[Feature]:
        """Example `number` as features; what becomes of a long text is the task's to say: most make windows of it."""

    def head(self, config: BertConfig) -> nn.Module:
        """Hidden states [P,H] and batch -> scores [M,K]; its parameters carry the published names.

        One with the attribute one_a_row = True has scores [B,K], one for each feature whatever it picks. One with
        wide = True is given further picks, of label -1, behind those of the features.
        Beside forward(hidden, batch, masks) it has forward_by_hand, the same arguments -> (scores, cache), and
        backward_by_hand(dscores, cache) -> (dhidden [P,H], [(parameter, gradient), ...]).
        """

    def layout(self, features: Sequence[Feature]) -> Tensor | None:
        """Prefix lengths [B] for a sequence-to-sequence batch; None: all within a row attend to all."""

    def counts(self, batch: Batch) -> dict[str, float]:
        """{term: how much of it there is to learn from}, from labels alone."""

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{term: sum of losses}, in float32; the objective divides by the counts of the whole update."""

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{term: gradient of its sum by the scores [M,K]}, for --gradients by-hand."""

    def decode(self, examples: Sequence[Any], features: Sequence[Feature], scores: Sequence[np.ndarray]) -> list[Any]:
        """The scores [M,K] of every feature -> one prediction an example, at text level."""

    def score(self, predictions: Sequence[Any], examples: Sequence[Any]) -> dict[str, Any]:
        """Nested dict of numbers."""

    def collapsed(self, predictions: Sequence[Any], examples: Sequence[Any]) -> str | None:
        """The one label that everything was given, if the examples have more than one; None otherwise."""

    def report(self, predictions: Sequence[Any], examples: Sequence[Any]) -> str:
        """The scores as text tables."""

    def example(self, text: str) -> Any:
        """An example without labels from raw text."""

    def result(self, example: Any, prediction: Any) -> dict[str, Any]:
        """A prediction for raw text, ready for JSON, with character offsets."""

    def render(self, result: dict[str, Any], colour: bool) -> str:
        """A result as text for a person."""


class PieceTask:
    """A task whose labels are pieces of the vocabulary: its head and its loss."""
    architecture, problem_type = "BertForMaskedLM", None
    head_parts = ("cls.predictions.", "cls.seq_relationship.")
    new_pieces: tuple[str, ...] = ()

    def __init__(self, options: Any, labels: Sequence[str] = ()):
        self.options, self.labels, self.notices = options, list(labels), []
        self.tokenizer: Tokenizer | None = None    # the last one that encoded; pieces are named by it

    @property
    def outputs(self) -> list[str]:
        """The scores are those of the vocabulary, which has a file of its own."""
        return []

    def learn_labels(self, splits: Any) -> None:
        """There are none: the text is its own label."""

    def note_unseen(self, splits: Any) -> None:
        """Nothing can be unseen: every text has pieces of the vocabulary."""

    def head(self, config: BertConfig) -> nn.Module:
        """Published as `cls.predictions`."""
        return WordHead(config)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """{term: labels [M], -1 at picks that are none of it}."""
        return {"pieces": batch.labels}

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pieces that are to be said."""
        return {"pieces": float(sum((f.labels >= 0).sum() for f in batch.features))}

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,V] -> the sums of −log softmax at the right piece."""
        z = ops.at_least_fp32(scores)
        return {term: ops.cross_entropy_forward(z, y)[0] for term, y in self.terms(batch).items()}

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,V] -> the gradients [M,V] of the sums by them."""
        z = ops.at_least_fp32(scores)
        return {term: ops.cross_entropy_backward(1.0, (z, y)) for term, y in self.terms(batch).items()}
