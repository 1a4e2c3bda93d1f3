"""What a task is, and TASKS: the only place that lists them."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from minibert.batching import Batch, Feature
from minibert.config import BertConfig
from minibert.tasks.classify import Classify
from minibert.tasks.match import Match
from minibert.tasks.mlm import MLM
from minibert.tasks.ner import NER
from minibert.tasks.qa import QA
from minibert.tasks.relation import Relation
from minibert.tasks.reply import Reply
from minibert.tasks.seq2seq import Dialogue, Summarize, Translate
from minibert.tokenizer import Tokenizer


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


TASKS: dict[str, type[Task]] = {"ner": NER, "classify": Classify, "match": Match, "relation": Relation,
                               "qa": QA, "reply": Reply, "mlm": MLM, "translate": Translate, "summarize": Summarize,
                               "dialogue": Dialogue}
