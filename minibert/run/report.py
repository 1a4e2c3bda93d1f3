"""What a run says: what is trained on what and how, a bar, a line an epoch, a table at the end, what to type next."""
import collections
import dataclasses
import shlex
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from minibert.core.optim import Group
from minibert.core.precision import precision_notices
from minibert.errors import spelt_out
from minibert.files import Json
from minibert.run.folder import RunFolder
from minibert.run.progress import Plan, Progress
from minibert.run.terminal import package_command
from minibert.run.training import Training
from minibert.scores.tables import Scores, score_at
from minibert.settings import TrainConfig

WIDTH = 100                                        # columns
BORING = {"task", "data", "weights", "output", "epochs", "max_steps", "batch_size", "learning_rate", "precision",
          "verbose", "resume", "before", "evaluate", "device"}                   # settings that have their own words


def introduce(folder: RunFolder, record: Json, t: Training) -> None:
    """The model, the data, the settings in a few lines; all of each in log.txt."""
    folder.tell(wrapped(f"model: {describe_model(t)}"))
    sizes = ", ".join(f"{split} {len(examples):,}" for split, examples in t.examples.items())
    labels = f"; {len(t.task.labels)} labels" if t.task.labels else ""
    folder.tell(wrapped(f"data: {record['data']}: {sizes} examples{labels}"))
    folder.tell(wrapped(f"training: {describe_plan(record, t.plan)}"))
    notices = (*t.tokenizer.notices, *t.task.notices, *precision_notices(t.settings.precision, t.device))
    for notice in notices:
        folder.tell(wrapped(f"note: {spelt_out(notice)}"))

    folder.note(str(t.loaded))
    for group in t.optimizer.groups:
        folder.note(wrapped(describe_group(group)))
    folder.note(wrapped("settings: " + ", ".join(f"{k} {v}" for k, v in record.items())))
    rows = ", ".join(f"{split} {len(features):,}" for split, features in t.features.items())
    folder.note(f"rows: {rows}")


def describe_model(t: Training) -> str:
    """What the encoder is, and what is new in it."""
    c = t.model.bert.config
    numbers = sum(p.numel() for p in t.model.parameters())
    new = [*([f"new: {', '.join(t.loaded.new)}"] if t.loaded.new else []), *t.loaded.grown]
    return "; ".join([f"{t.settings.weights}, a BERT of {numbers / 1e6:.1f} million weights: {c.num_hidden_layers} "
                      f"blocks, {c.hidden_size} numbers a piece (token), {c.num_attention_heads} heads, "
                      f"{c.vocab_size:,} pieces", *new])


def describe_plan(record: Json, plan: Plan) -> str:
    """How long, and with which settings that are not the defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    differ = {k: v for k, v in record.items() if k in defaults and k not in BORING and v != defaults[k]
              and not (k == "overlap" and v == record["max_pieces"] // 4) and not (k == "best" and v is None)}
    length = (f"{plan.total:,} updates" if record["max_steps"] else
              f"{record['epochs']} epochs of {plan.an_epoch:,} updates")
    said = ", ".join(f"{k.replace('_', '-')} {v}" for k, v in differ.items())
    return (f"{length}, {record['batch_size']} rows each, {record['precision']}, learning rate "
            f"{record['learning_rate']:g}, {record['threads']} threads on {record['device']}"
            + (f"; not by default: {said}" if said else ""))


def describe_group(group: Group) -> str:
    """A group of the optimizer's parameters, the numbers of blocks in their names folded into one star."""
    names = dict.fromkeys(".".join("*" if p.isdecimal() else p for p in n.split(".")) for n in group["names"])
    what = f"decayed by {group['weight_decay']}" if group["weight_decay"] else "not decayed"
    count = sum(p.numel() for p in group["params"])
    return f"trained, {what}: {len(group['names'])} tensors, {count:,} numbers: {', '.join(names)}"


def wrapped(text: str) -> str:
    """A long line as a paragraph; a path stays whole."""
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


class Bar:
    """A bar of updates."""

    def __init__(self, bar: tqdm):
        self.bar, self.recent = bar, collections.deque[float](maxlen=20)

    def show(self, line: Json, p: Progress) -> None:
        """One update more."""
        self.recent.append(line["loss"])
        self.bar.set_postfix_str(f"epoch {line['epoch']}, loss {sum(self.recent) / len(self.recent):.3f}, lr "
                                 f"{line['learning_rate']:.1e}, {p.pieces / p.seconds:,.0f} pieces/s")
        self.bar.update()

    def close(self) -> None:
        """Leave it as it is."""
        self.bar.close()


@contextmanager
def progress_bar(total: int, done: int, first: bool) -> Iterator[Bar]:
    """A bar where somebody watches the first process."""
    with tqdm(total=total, initial=done, unit="update", disable=None if first else True, dynamic_ncols=True) as bar:
        yield Bar(bar)


def collapse(epoch: int, label: str, rate: float) -> str:
    """All of dev was given one and the same label though it has several."""
    return (f"warning: epoch {epoch}: everything in dev was given {label!r}; likely causes: --learning-rate {rate} is "
            "too high or too low, too few updates so far, or labels that do not belong to their texts")


def summarise(folder: RunFolder, t: Training, before: dict[str, Scores], after: dict[str, Scores],
              speed: dict[str, float]) -> None:
    """The table of the last split, the others in log.txt; before -> after, where it is, what to type next."""
    key = t.plan.chosen_by[0]
    for split, scores in after.items():
        for when, found in (("before", before.get(split)), ("now", scores)):
            if found:
                folder.note(f"\n{split}, {when}\n{t.task.report(found)}")
    if after:
        split, scores = list(after.items())[-1]
        folder.tell(f"\n{split}\n{t.task.summary(scores, before.get(split))}")

    folder.tell(f"\ntrained: {speed['steps']:,} updates, {speed['pieces']:,} pieces in {speed['seconds']:.0f} s "
                f"({speed['pieces_per_second']:,.0f} pieces/s)")
    for split, scores in after.items():
        was = f"{score_at(before[split], key):.3f} -> " if split in before else ""
        folder.tell(f"{split} {key}: {was}{score_at(scores, key):.3f}")
    folder.tell(f"run folder: {folder.path} (all tables and settings: log.txt, all scores: metrics.json)\n"
                f"next: {package_command()} predict {shlex.quote(str(folder.path))} \"{t.task.trial}\"")
