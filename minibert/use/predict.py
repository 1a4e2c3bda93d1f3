"""Load a model, of a run folder or published by somebody else: texts in, its task's predictions out."""
import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minibert.checkpoints import hub
from minibert.checkpoints.labels import read_labels, read_own
from minibert.checkpoints.weights import load as load_weights
from minibert.checkpoints.weights import read_fitting_config, read_tokenizer
from minibert.core.batch import Feature, collate
from minibert.core.config import BertConfig
from minibert.core.heads import Head
from minibert.core.model import Bert, Model
from minibert.data.records import LONGEST
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError
from minibert.files import Json, read_json
from minibert.options import checked, later_options, typed
from minibert.settings import TrainConfig, default_overlap
from minibert.tasks import TASKS
from minibert.tasks.base import Result, Task, TaskOptions
from minibert.use.evaluate import predict_examples
from minibert.use.offsets import UNITS, in_utf16
from minibert.use.prepare import encode_all
from minibert.use.published import Published, read_published

Text = str | Sequence[str]                         # raw, or its words


class FineTuned(Model):
    """A Model with its task and tokenizer, as load() gives it."""
    task: Task

    def __init__(self, bert: Bert, head: Head, task: Task, tokenizer: Tokenizer, settings: Json):
        super().__init__(bert, head)
        self.task, self.tokenizer, self.settings = task, tokenizer, settings

    @property
    def notices(self) -> list[str]:
        """What is worth telling of its files and its labels, in words."""
        return [*self.tokenizer.notices, *self.task.notices]

    def predict(self, texts: Sequence[Text], offsets: str = "characters") -> list[Result]:
        """One result a text, with character offsets; float32, no dropout. The form is the task's result().

        `offsets`: "utf16" makes them count UTF-16 units, see offsets.py; the task's render() takes characters.

        A list of words in the place of a text is read as these words, which nothing cuts again. A text of nothing but
        blanks has the task's empty() result.
        """
        if offsets not in UNITS:
            raise MinibertError(f"offsets is {offsets!r}; expected {' or '.join(UNITS)}")
        refuse_one(texts)
        blank = {i for i, text in enumerate(texts) if isinstance(text, str) and not text.strip()}
        examples = {i: self.example(i, text) for i, text in enumerate(texts) if i not in blank}
        given = list(examples.values())
        predictions = predict_examples(self, self.task, given, self.encode_examples(given)) if given else []
        found = dict(zip(examples, map(self.task.result, given, predictions), strict=True))
        results = [found[i] if i in found else self.task.empty(str(text)) for i, text in enumerate(texts)]
        return [in_utf16(r) for r in results] if offsets == "utf16" else results

    def features(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor, Tensor]:
        """ids, mask, types, int64 [B,T] each, as the model sees them: a row a window, texts in order."""
        refuse_one(texts)
        rows = self.encode_examples([self.example(i, text) for i, text in enumerate(texts)])
        if not rows:
            nothing = torch.zeros(0, 0, dtype=torch.int64)
            return nothing, nothing.clone(), nothing.clone()
        batch = collate(rows, "rectangle", pad=self.tokenizer.pad)
        ids, types, mask = (batch.layout.rows(x) for x in (batch.ids, batch.types, batch.layout.live.long()))
        return ids, mask, types

    def example(self, number: int, text: Text) -> Any:
        """The task's example of text `number`, counted from 0. Raises MinibertError naming the text that is none."""
        try:
            given = text if isinstance(text, str) else checked_words(text)
            if sum(map(len, given)) > LONGEST:
                raise MinibertError(f"more than {LONGEST:,} characters; cut it up")
            return self.task.example(given) if isinstance(given, str) else self.task.example_of_words(given)
        except MinibertError as e:
            raise MinibertError(f"text {number + 1}: {e}") from None

    def encode_examples(self, examples: Sequence[Any]) -> Sequence[Feature]:
        """The task's features under the settings of the run."""
        return encode_all(self.task, examples, self.tokenizer, self.settings["max_pieces"], self.settings["overlap"])


def refuse_one(texts: Sequence[Text]) -> None:
    """Raise MinibertError for one string in the place of several, which is a list of letters."""
    if isinstance(texts, str):
        raise MinibertError("expected a list of texts, not one string; write [text]")


def checked_words(words: Sequence[str]) -> Sequence[str]:
    """`words`. Raises MinibertError for one that a file of a word a line could not have."""
    if not isinstance(words, Sequence):
        raise MinibertError(f"{repr(words)[:60]}: expected a text, or a list of words")
    for number, word in enumerate(words, 1):
        if not isinstance(word, str) or not word.strip() or word.splitlines() != [word]:
            raise MinibertError(f"word {number} is {repr(word)[:60]}; expected letters or signs, and no line end")
    return words


def load(folder: str | Path, checkpoint: Path | None = None, task: str | None = None, **changes: object) -> FineTuned:
    """A fine-tuned model, ready to predict: that of a run folder, or one that somebody else published.

    `folder`: a run folder; or a folder with a config.json, a name of the manifest or org/name[@revision] of the model
    hub, which is fetched where it is not at hand. `checkpoint`: of the run, to have the model as it was then. `task`:
    of a published model that may be of several, see published.py. `changes`: options of its task to use it with, those
    with `later`, such as beams=4. Raises MinibertError for a folder that holds no whole model, and for a task or an
    option that it cannot take.
    """
    if checkpoint or is_run(folder):
        folder, found = Path(folder), Published("", {})
        kind, options, settings = read_run(folder, task)
        labels = read_labels(checkpoint or folder)
    else:
        folder = hub.fetch(from_elsewhere(folder))
        found = read_published(folder, task)
        kind, labels = TASKS[found.task], found.labels
        options, settings = kind.Options(**found.options), usual_settings(kind, BertConfig.read(folder))
    check_changes(changes, options, kind, found.options, folder)

    source = checkpoint or folder
    use = kind(dataclasses.replace(options, **changes), labels)
    use.notices += found.notices
    try:
        use.recall(read_own(source))
    except MinibertError as e:
        raise MinibertError(f"{source}/config.json: {e}") from None

    with warnings.catch_warnings(action="ignore"):         # of a head without labels, which load_weights() refuses
        head = use.head(read_fitting_config(source, labels=len(use.outputs)))
    bert, _ = load_weights(source, head)
    if not found.task:
        refuse_settings(settings, bert, folder / "train.json")
    return FineTuned(bert, head.eval(), use, read_tokenizer(folder, bert), settings)


def is_run(folder: str | Path) -> bool:
    """Whether training wrote this folder; any other has a model of somebody else, or is a name of one."""
    return os.path.lexists(os.path.join(folder, "train.json"))       # what it is, reading it will say


def from_elsewhere(name: str | Path) -> str | Path:
    """`name`, of what is no run. Raises MinibertError for a path that leads nowhere, before a hub is asked for it."""
    parent = os.path.dirname(name)
    there = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
    if not os.path.isdir(name) and (there or parent == "runs"):
        raise MinibertError(f"{name}: no such folder; {parent} has {', '.join(there[:5]) or 'none'}; name one with a "
                            "train.json or a config.json")
    return name


def read_run(folder: Path, asked: str | None) -> tuple[type[Task], TaskOptions, Json]:
    """(task, its options, all settings) of a run folder. Raises MinibertError, also where another task is `asked`."""
    file = folder / "train.json"
    settings = read_json(file)
    if missing := {"task", "max_pieces", "overlap", "precision"} - settings.keys():
        raise MinibertError(f"{file}: {', '.join(sorted(missing))} missing; training wrote more")
    kind = TASKS.get(str(settings["task"]))
    if kind is None:
        raise MinibertError(f"{file}: task {settings.get('task')!r}; known: {', '.join(TASKS)}")
    if asked not in (None, kind.name):
        raise MinibertError(f"--task is {asked!r}, but {folder} holds a model of --task {kind.name}; leave it out")

    asked_for = {f.name for s in (TrainConfig, kind.Options) for f in dataclasses.fields(s)}
    stored = checked({k: v for k, v in settings.items() if k in asked_for}, file, TrainConfig, kind.Options)
    own = {f.name for f in dataclasses.fields(kind.Options)}
    try:
        TrainConfig(**{k: v for k, v in stored.items() if k not in own}).check()
        return kind, kind.Options(**{k: v for k, v in stored.items() if k in own}), settings
    except MinibertError as e:
        raise MinibertError(f"{file}: {e}") from None


def usual_settings(kind: type[Task], config: BertConfig) -> Json:
    """Those of a model that somebody else trained: our defaults, and rows no longer than it has positions."""
    most = min(int(kind.defaults.get("max_pieces", TrainConfig.max_pieces)), config.max_position_embeddings)
    settings = TrainConfig(kind.name, max_pieces=most, overlap=default_overlap(most), precision="fp32")
    return dataclasses.asdict(settings.check())


def check_changes(changes: Mapping[str, object], options: TaskOptions, kind: type[Task], fixed: Mapping[str, object],
                  folder: Path) -> None:
    """Raise MinibertError for a change that a model cannot be used with; `fixed`: options that its class decides."""
    if wrong := changes.keys() - later_options(kind.Options).keys():
        raise MinibertError(f"{typed(min(wrong))}: {folder} holds a model of --task {kind.name}, which takes none "
                            "after training; leave it out")
    for name in changes.keys() & fixed.keys():
        if changes[name] != fixed[name]:
            raise MinibertError(f"{typed(name)} is {changes[name]}; with the labels in {folder}/config.json it must be "
                                f"{fixed[name]}; leave it out")
    options.check_changes(changes)


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
