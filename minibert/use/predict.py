"""Load a run folder: texts in, its task's predictions out."""
import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minibert.checkpoints.weights import load as load_weights
from minibert.checkpoints.weights import read_fitting_config, read_labels, read_own, read_tokenizer
from minibert.core.batch import Feature, collate
from minibert.core.heads import Head
from minibert.core.model import Bert, Model
from minibert.data.tables import LONGEST
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError
from minibert.files import Json, read_json
from minibert.options import checked, later_options
from minibert.settings import TrainConfig
from minibert.tasks import TASKS
from minibert.tasks.base import Result, Task
from minibert.use.evaluate import predict_examples
from minibert.use.prepare import encode_all


class FineTuned(Model):
    """A Model with its task and tokenizer: what a run folder holds."""
    task: Task

    def __init__(self, bert: Bert, head: Head, task: Task, tokenizer: Tokenizer, settings: Json):
        super().__init__(bert, head)
        self.task, self.tokenizer, self.settings = task, tokenizer, settings

    def predict(self, texts: Sequence[str]) -> list[Result]:
        """One result a text, with character offsets; float32, no dropout. The form is the task's result()."""
        examples = self.examples(texts)
        predictions = predict_examples(self, self.task, examples, self.encode_examples(examples))
        return [self.task.result(e, p) for e, p in zip(examples, predictions, strict=True)]

    def features(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """ids, mask, types, int64 [B,T] each, as the model sees them: a row a window, texts in order."""
        rows = self.encode_examples(self.examples(texts))
        if not rows:
            nothing = torch.zeros(0, 0, dtype=torch.int64)
            return nothing, nothing.clone(), nothing.clone()
        batch = collate(rows, "rectangle", pad=self.tokenizer.pad)
        ids, types, mask = (batch.layout.rows(x) for x in (batch.ids, batch.types, batch.layout.live.long()))
        return ids, mask, types

    def examples(self, texts: Sequence[str]) -> list[Any]:
        """The task's examples of raw texts. Raises MinibertError for one string, which is a list of letters."""
        if isinstance(texts, str):
            raise MinibertError("expected a list of texts, not one string; write [text]")
        if long := next((t for t in texts if len(t) > LONGEST), None):
            raise MinibertError(f"{long[:60]!r}: a text of {len(long):,} characters, {LONGEST:,} at most; cut it up")
        return [self.task.example(t) for t in texts]

    def encode_examples(self, examples: Sequence[Any]) -> Sequence[Feature]:
        """The task's features under the settings of the run."""
        return encode_all(self.task, examples, self.tokenizer, self.settings["max_pieces"], self.settings["overlap"])


def load(folder: str | Path, checkpoint: Path | None = None, **changes: object) -> FineTuned:
    """The model in a run folder, ready to predict; with a checkpoint of the run, as it was then.

    `changes`: options of its task to use it with, those with `later`, such as beams=4. Raises MinibertError for a
    folder that holds no whole run, and for an option that it cannot take.
    """
    folder = Path(folder)
    source = checkpoint or folder
    if not (folder / "train.json").is_file():
        raise MinibertError(f"{folder}: no train.json; a run folder is expected, which training wrote")

    settings = read_json(folder / "train.json")
    if missing := {"task", "max_pieces", "overlap", "precision"} - settings.keys():
        raise MinibertError(f"{folder}/train.json: {', '.join(sorted(missing))} missing; training wrote more")
    kind = TASKS.get(str(settings["task"]))
    if kind is None:
        raise MinibertError(f"{folder}/train.json: task {settings.get('task')!r}; known: {', '.join(TASKS)}")

    asked = {f.name for s in (TrainConfig, kind.Options) for f in dataclasses.fields(s)}
    stored = checked({k: v for k, v in settings.items() if k in asked}, folder / "train.json", TrainConfig,
                     kind.Options)
    own = {f.name for f in dataclasses.fields(kind.Options)}
    try:
        TrainConfig(**{k: v for k, v in stored.items() if k not in own}).check()
    except MinibertError as e:
        raise MinibertError(f"{folder}/train.json: {e}") from None
    if wrong := changes.keys() - later_options(kind.Options).keys():
        raise MinibertError(f"--{min(wrong).replace('_', '-')}: {folder} holds a model of --task {kind.name}, which "
                            "takes none after training; leave it out")

    options = kind.Options(**{k: v for k, v in stored.items() if k in own})
    options.check_changes(changes)
    task = kind(dataclasses.replace(options, **changes), read_labels(source))
    try:
        task.recall(read_own(source))
    except MinibertError as e:
        raise MinibertError(f"{source}/config.json: {e}") from None

    with warnings.catch_warnings(action="ignore"):         # of a head without labels, which load_weights() refuses
        head = task.head(read_fitting_config(source, labels=len(task.outputs)))
    bert, _ = load_weights(source, head)
    refuse_settings(settings, bert, folder / "train.json")
    return FineTuned(bert, head.eval(), task, read_tokenizer(folder, bert), settings)


def refuse_settings(settings: Json, bert: Bert, file: Path) -> None:
    """Raise MinibertError for settings in a train.json with which this encoder cannot read every text.

    Training has written them as they were used, each with a value of its own.
    """
    positions = bert.config.max_position_embeddings
    for name, right, wanted in (
            ("max_pieces", settings["max_pieces"] <= positions, f"{positions} at most, the positions of the encoder"),
            ("overlap", settings["overlap"] is not None, "a number, half of max_pieces at most"),
            ("precision", settings["precision"] != "auto", "fp32, bf16 or fp16, as it was trained in")):
        if not right:
            raise MinibertError(f"{file}: {name} is {settings[name]!r}; expected {wanted}; mend the file")
