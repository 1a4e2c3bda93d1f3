"""Fine-tune BERT: settings · data · model · optimizer · one update · the loop. Read it from top to bottom.

    python train.py --task ner
"""
import collections
import contextlib
import dataclasses
import itertools
import json
import math
import os
import shlex
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from minibert import fast, hub, weights
from minibert.adapt import freeze
from minibert.batching import Batch, Feature, collate, epoch_batches
from minibert.byhand import reached_gradients
from minibert.cache import checksum
from minibert.checkpoint import Checkpoints, Interval, copy, lock, read_optimizer, write_optimizer
from minibert.config import BertConfig, TrainConfig, parse, read_json, read_settings
from minibert.errors import MinibertError
from minibert.evaluate import at, predict_examples
from minibert.model import Model, grow_types, initialise
from minibert.optim import SGD, AdamW, Optimizer, clip_gradient, decay_groups, lr_at
from minibert.precision import DropoutMasks, LossScaler, autocast, resolve_precision
from minibert.predict import read_tokenizer
from minibert.prepare import Splits, encode_splits, read_splits
from minibert.processes import ALONE, Processes, Shared, join
from minibert.replay import NotFinite, as_parts, broken_weight, replay, write_update
from minibert.stopping import STOPPED, Stopped, StopRequest
from minibert.tasks import TASKS, Task
from minibert.tokenizer import CASE_SHAPES, Tokenizer

DATA = Path(os.path.relpath(Path(__file__).resolve().parent / "data"))        # small sets written for this project

# ------------------------------------------------------------------------------------------------------- settings


def resolve_settings(argv: list[str]) -> tuple[TrainConfig, Any, set[str]]:
    """(settings, the task's own options, names that were chosen rather than left at TrainConfig's default)."""
    name = task_name(argv)
    kind = TASKS[name]
    given = parse(argv, TrainConfig, kind.Options, description=__doc__.splitlines()[0])
    if "config" in given:
        given = read_settings(given.pop("config"), TrainConfig, kind.Options) | given
    given = {**kind.defaults, **given, "task": name}
    own = {f.name for f in dataclasses.fields(kind.Options)}
    settings = TrainConfig(**{k: v for k, v in given.items() if k not in own}).check()
    if settings.overlap is None:
        settings = dataclasses.replace(settings, overlap=settings.max_pieces // 4)
    if settings.data is None:
        settings = dataclasses.replace(settings, data=str(DATA / name))
    return settings, kind.Options(**{k: v for k, v in given.items() if k in own}), set(given)


def task_name(argv: list[str]) -> str:
    """The task asked for: on the command line, else in --config, else the default; it decides which options exist."""
    def option(name: str) -> str | None:
        for i, word in enumerate(argv):
            if word == name:
                return argv[i + 1] if i + 1 < len(argv) else None
            if word.startswith(name + "="):
                return word[len(name) + 1:]
        return None

    name = option("--task")
    if name is None and (file := option("--config")):
        options = [k.Options for k in TASKS.values()]
        name = read_settings(file, TrainConfig, *options).get("task")
    name = TrainConfig.task if name is None else name
    if name not in TASKS:
        raise MinibertError(f"--task is {name!r}; known: {', '.join(TASKS)}")
    return name


# ----------------------------------------------------------------------------------------------------------- data


def read_data(task: Task, settings: TrainConfig) -> Splits:
    """{"train", "dev", "test": examples}; the task has learnt its labels from train."""
    folder = Path(settings.data)
    splits = read_splits(task, folder, settings.cache)
    if "train" not in splits:
        raise MinibertError(f"{folder}: no training file; expected a name such as train.conll or train.txt")
    if settings.limit:
        splits = splits.limited(settings.limit)
    task.learn_labels(splits)
    return splits


# ---------------------------------------------------------------------------------------------------------- model


def build_model(folder: Path, task: Task, settings: TrainConfig) -> tuple[Model, Tokenizer]:
    """The published encoder with a head for the task; prints what was loaded, what is new and what is trained."""
    head = task.head(weights.read_config(folder, settings.dropout))
    fits = weights.read_labels(folder) == task.labels        # a stored head of the same size may mean other labels
    bert, report = weights.load(folder, head, new_head=not fits, dropout=settings.dropout)
    if report.new:
        initialise(head, bert.config.initializer_range, settings.seed)
    tokenizer = read_tokenizer(folder, bert)
    if settings.max_pieces > bert.config.max_position_embeddings:
        raise MinibertError(f"--max-pieces is {settings.max_pieces}; the checkpoint has "
                            f"{bert.config.max_position_embeddings} positions")
    if settings.case_shapes == "off" and bert.config.case_shapes:
        raise MinibertError(f"--case-shapes is off; {folder} was trained with them; start from published weights")
    wanted = settings.case_shapes == "on" or (settings.case_shapes == "auto" and tokenizer.uncased
                                                  and settings.freeze == "none")
    if wanted and not bert.config.case_shapes:
        grow_types(bert, CASE_SHAPES)
        tokenizer.case_shapes = True
        report.grown.append(f"grown: token types to {bert.config.type_vocab_size}, a copy of each for the case shapes "
                            f"{', '.join(CASE_SHAPES)}")
    model = freeze(Model(bert, head), settings.freeze)
    print(report)
    return model, tokenizer


# ------------------------------------------------------------------------------------------------------ optimizer


def build_optimizer(model: nn.Module, settings: TrainConfig) -> Optimizer:
    """Two groups, decayed and not, printed."""
    groups = decay_groups(model, settings.weight_decay)
    for g in groups:
        count = sum(p.numel() for p in g["params"])
        what = f"decayed by {g['weight_decay']}" if g["weight_decay"] else "not decayed"
        print_wrapped(f"trained, {what}: {len(g['names'])} tensors, {count:,} numbers: {shorten(g['names'])}")
    if settings.optimizer == "sgd":
        return SGD(groups, settings.learning_rate, settings.momentum)
    rule = fast.FusedAdamW if settings.gradients == "fast" else AdamW
    return rule(groups, settings.learning_rate, (settings.beta1, settings.beta2), settings.epsilon,
                bias_correction=settings.bias_correction)


def shorten(names: list[str]) -> str:
    """Parameter names with the numbers of blocks folded into one star."""
    folded = dict.fromkeys(".".join("*" if p.isdecimal() else p for p in n.split(".")) for n in names)
    return ", ".join(folded)


# ----------------------------------------------------------------------------------------------------- one update


def one_update(model: Model, task: Task, batches: Sequence[Batch], optimizer: Optimizer, scaler: LossScaler,
               settings: TrainConfig, step: int, lr: float, processes: Processes = ALONE) -> tuple[float, float]:
    """Forward, backward and one step of the optimizer over the micro-batches of an update; -> (loss, gradient norm).

    The objective is Σ over terms of (sum of losses / count), both over all micro-batches of all processes: one mean
    over the labelled words of the whole update, however it is split.
    """
    params = [p for g in optimizer.groups for p in g["params"]]
    optimizer.zero_grad()
    if settings.adversarial:
        loss = adversarial_gradient(model, task, batches, scaler.scale, settings, step, processes)
    else:
        loss = accumulate_gradient(model, task, batches, scaler.scale, settings, step, processes)
    whole = scaler.unscale(params)
    norm = clip_gradient(params, settings.clip) if whole else math.inf
    if not scaler.enabled and not math.isfinite(loss + norm):
        raise NotFinite(f"update {step}: the loss is {loss}, the gradient norm {norm}; stopped before the weights were "
                        "touched")
    optimizer.set_learning_rate(lr)
    if whole:
        optimizer.step()
    scaler.update(whole)
    if scaler.scale < 2.0 ** -24:
        raise NotFinite(f"update {step}: fp16 gradients overflow at every loss scale, {scaler.skipped} updates "
                        "skipped; lower --learning-rate, or use --precision fp32")
    return loss, norm


def accumulate_gradient(model: Model, task: Task, batches: Sequence[Batch], scale: float, settings: TrainConfig,
                        step: int, processes: Processes = ALONE) -> float:
    """Add the gradient of scale · objective to every parameter, one micro-batch at a time; -> the objective.

    What was in .grad before is of this process; what is there after is the sum over all of them.
    """
    counts: dict[str, float] = {}
    for batch in batches:
        for term, count in task.counts(batch).items():
            counts[term] = counts.get(term, 0.0) + count                      # [ACC-3]
    counts = processes.sum_counts(counts)
    factors = {term: scale / (count or 1.0) for term, count in counts.items()}  # [ACC-1] 0/1 for a term without labels
    add_gradient = {"fast": fast.add_gradients, "by-hand": add_by_hand, "autograd": add_by_autograd}[settings.gradients]
    sums = [add_gradient(model, task, batch, DropoutMasks(settings.seed, step, i, processes.rank), factors,
                         settings.precision) for i, batch in enumerate(batches)]
    processes.sum_gradients(model)
    # only now are numbers asked for: a GPU has had all its work by then
    mine = sum(float(part[term]) / (counts[term] or 1.0) for part in sums for term in part)  # [RISK-1]
    return processes.add(mine)


def adversarial_gradient(model: Model, task: Task, batches: Sequence[Batch], scale: float, settings: TrainConfig,
                         step: int, processes: Processes = ALONE) -> float:
    """Half the gradient here and half of it where the word vectors are a step further uphill; -> the objective here.

    The step has the length --adversarial and the direction of the first gradient (Miyato et al. 2017, for text). What
    the model learns must hold around every word, not only at its vector.
    """
    w = model.bert.embeddings.word.weight
    loss = accumulate_gradient(model, task, batches, scale / 2, settings, step, processes)
    g = w.grad if w.grad.is_sparse else w.grad.to_sparse(1)                    # the rows of words that are there
    rows, uphill = g.indices()[0], g.values()      # [rows], [rows,H]
    with torch.no_grad():
        here = w[rows]                             # a copy: adding and subtracting would not bring back every bit
        size = uphill.norm().clamp(min=torch.finfo(uphill.dtype).tiny)         # no direction, no step
        w[rows] = here + uphill * (settings.adversarial / size)               # [ADV-1]
    if not processes.first:                        # the first half is there once, not once a process
        for p in model.parameters():
            p.grad = None
    accumulate_gradient(model, task, batches, scale / 2, settings, step, processes)  # [ADV-2]
    with torch.no_grad():
        w[rows] = here
    return loss


def add_by_autograd(model: Model, task: Task, batch: Batch, masks: DropoutMasks, factors: dict[str, float],
                    precision: str) -> dict[str, torch.Tensor]:
    """Add the gradient of Σ factor · sum of losses to every parameter's, derived by torch; -> the sums."""
    with autocast(precision, batch.ids.device):
        scores = model(batch, masks)
    sums = task.loss(scores, batch)
    objective = sum(factors[term] * sums[term] for term in sums)              # [AMP-1]
    objective.backward()
    return {term: x.detach() for term, x in sums.items()}


def add_by_hand(model: Model, task: Task, batch: Batch, masks: DropoutMasks, factors: dict[str, float],
                precision: str) -> dict[str, torch.Tensor]:
    """The same gradient by the formulas of ops.py, without autograd."""
    with autocast(precision, batch.ids.device):
        sums, gradients = reached_gradients(model, batch, masks, task, factors)
    for name, p in model.named_parameters():
        if name in gradients:
            p.grad = gradients[name] if p.grad is None else p.grad.add_(gradients[name])  # [ACC-4]
    return sums


def micro_batches(features: Sequence[Feature], numbers: np.ndarray, task: Task, settings: TrainConfig, pad: int,
                  device: torch.device) -> list[Batch]:
    """One update's features in --accumulate parts of as nearly equal size as can be."""
    parts = [[features[i] for i in part] for part in np.array_split(numbers, settings.accumulate) if len(part)]
    return [collate(p, settings.layout, pad, task.layout(p), device) for p in parts]


# --------------------------------------------------------------------------------------------------- before the loop


@dataclass
class Progress:
    """Where a run stands. With weights, optimizer and scaler it is all that a checkpoint has to hold: batches and
    dropout masks are functions of the seed and of these numbers.
    """
    step: int = 0                                  # updates done
    scored: int = 0                                # updates done when an epoch was last scored and perhaps saved
    epoch: int = 0                                 # epochs scored
    better_epoch: int = 0                          # the last that was better than all before
    saved_epoch: int = 0                           # the one whose weights are the run folder's
    over: bool = False                             # patience is at its end
    seconds: float = 0.0                           # of all updates, and their pieces
    pieces: int = 0
    losses: int = 0                                # finite ones of this epoch so far, and their sum
    loss_sum: float = 0.0
    best: tuple[float, Any, str] | None = None     # value, scores, tables on dev
    before: dict[str, tuple[Any, str]] = field(default_factory=dict)           # scores, tables of the untrained model


class Run:
    """One run: its parts, its folder, where it stands, how to evaluate and save."""

    def __init__(self, argv: list[str]):
        """Everything from the command line's words to a claimed run folder and a model, new or as it was saved."""
        fast.keep_memory()
        settings, options, chosen = resolve_settings(argv)
        device = resolve_device(settings.device)
        self.processes = join(device.type)
        if not self.processes.first:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (the first process speaks for all)
        self.task = TASKS[settings.task](options)
        self.splits = read_data(self.task, settings)
        folder = fetch_weights(settings.weights)
        entry = hub.recommended(folder)
        if entry and "learning_rate" not in chosen:
            settings = dataclasses.replace(settings, learning_rate=entry.learning_rate)
        self.settings = dataclasses.replace(settings, precision=resolve_precision(settings.precision, device))

        self.model, self.tokenizer = build_model(folder, self.task, settings)
        self.model.to(device)
        self.features = encode_splits(self.task, self.splits, self.tokenizer, settings.max_pieces, settings.overlap)
        self.lengths = self.features["train"].lengths
        self.optimizer = build_optimizer(self.model, self.settings)
        self.scaler = LossScaler(enabled=self.settings.precision == "fp16")
        self.an_epoch = -(-len(self.lengths) // settings.batch_size)           # updates
        self.total = settings.max_steps or settings.epochs * self.an_epoch
        self.warmup = int(settings.warmup * self.total)
        wanted = {"all": ("dev", "test"), "dev": ("dev",), "none": ()}[settings.evaluate]
        self.scored = [split for split in wanted if split in self.splits]
        self.progress = Progress()
        self.last_in_memory = True                 # the weights are those of the last update, not of the best epoch
        if settings.patience and "dev" not in self.scored:
            raise MinibertError(f"--patience is {settings.patience}; {settings.data} has no dev split to wait for")
        self.output = Path(self.processes.by_first(lambda: str(claim_folder(self.settings))))
        self.lock = contextlib.ExitStack()
        self.lock.callback(self.processes.leave)
        self.processes.by_first(lambda: self.lock.enter_context(lock(self.output)) and None)
        self.checkpoints, self.interval = Checkpoints(self.output, settings.keep), Interval(settings.save_every)
        self.record = {**dataclasses.asdict(self.settings), **dataclasses.asdict(options), "output": str(self.output),
                       "updates": self.total, "threads": torch.get_num_threads(), "processes": self.processes.size,
                       "device": device.type, "torch": torch.__version__}
        try:
            if settings.resume:
                self.resume()
            if not self.finished:
                self.introduce()
        except BaseException:
            self.lock.close()
            raise

    def introduce(self) -> None:
        """Save and print every resolved setting and what was read."""
        if not self.processes.first:
            return
        weights.write_json(self.output / "train.json", self.record)
        self.tokenizer.save(self.output)
        print_wrapped("settings: " + ", ".join(f"{k} {v}" for k, v in self.record.items()))
        for note in self.task.notices:
            print(f"note: {note}")
        sizes = ", ".join(f"{split} {len(examples):,} examples in {len(self.features[split]):,} rows"
                          for split, examples in self.splits.items())
        print(f"data: {sizes}; {len(self.task.labels)} labels; {self.total:,} updates")

    def log(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if not self.processes.first:
            return
        with open(self.output / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")

    def warn_of_collapse(self, guess: list[Any], examples: Sequence[Any]) -> None:
        """Say so where all of dev was given one and the same label though it has several."""
        if label := self.task.collapsed(guess, examples):
            self.tell(f"warning: epoch {self.epoch_in_hand}: everything in dev was given {label!r}; likely causes: "
                      f"--learning-rate {self.settings.learning_rate} is too high or too low, too few updates so far, "
                      "or labels that do not belong to the words")

    def tell(self, text: str) -> None:
        """A line for the user, and for the run's log.txt with the time before it."""
        if not self.processes.first:
            return
        say(text)
        with contextlib.suppress(OSError), open(self.output / "log.txt", "a", encoding="utf-8") as f:
            f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def evaluate(self, split: str) -> tuple[dict[str, Any], str]:
        """(scores, text tables) of one split."""
        examples = self.splits[split]
        guess = predict_examples(self.model, self.task, examples, self.features[split], self.settings.precision,
                                 self.processes)
        if self.progress.step > self.progress.scored:
            self.warn_of_collapse(guess, examples)
        return self.task.score(guess, examples), self.task.report(guess, examples)

    @property
    def epoch_in_hand(self) -> int:
        """The number, from 1, of the epoch that the next update belongs to, or whose end was not yet scored."""
        p = self.progress
        return (p.step - (p.step > p.scored)) // self.an_epoch + 1

    @property
    def done(self) -> bool:
        """Whether all updates are made and scored, or none is worth making any more."""
        p = self.progress
        return p.scored == p.step and (p.step >= self.total or (p.over and not self.settings.max_steps))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do, the final scores included."""
        return self.done and (self.output / "metrics.json").is_file()

    def end_of_epoch(self, stop: StopRequest) -> None:
        """Score dev, save if it is the best so far (or dev is not scored), note whether patience is at its end."""
        p, (key, direction) = self.progress, self.task.best
        epoch, better, as_good, said = self.epoch_in_hand, True, True, ""
        if "dev" in self.scored:
            with stop.at_once():                   # before any number below has changed
                scores, tables = self.evaluate("dev")
            self.log({"step": p.step, "epoch": epoch, "split": "dev", **scores})
            value = at(scores, key)
            better = p.best is None or (value > p.best[0] if direction == "max" else value < p.best[0])
            as_good = better or value == p.best[0]                             # of equals the longer trained
            p.best = (value, scores, tables) if as_good else p.best
            said = f", dev {key} {value:.4f}{' (best so far)' if better else ''}"
        say(f"epoch {epoch}: loss {p.loss_sum / p.losses if p.losses else math.nan:.4f}{said}")
        p.epoch, p.scored, p.losses, p.loss_sum = epoch, p.step, 0, 0.0
        p.better_epoch = epoch if better else p.better_epoch
        if as_good:
            p.saved_epoch = epoch
            self.processes.by_first(lambda: self.save(self.output))
        p.over = bool(self.settings.patience) and epoch - p.better_epoch >= self.settings.patience

    def save(self, folder: Path) -> None:
        """The model as it is now, under the published names."""
        labels = self.task.labels
        weights.save(folder, self.model.bert, self.model.head, {
            "architectures": [self.task.architecture], "problem_type": self.task.problem_type,
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)}})

    def final_scores(self) -> dict[str, tuple[dict[str, Any], str]]:
        """Go back to the weights of the best epoch, which are on the disk, and score what was not scored with them."""
        p = self.progress
        if p.saved_epoch != p.epoch:
            self.last_in_memory = False
            weights.load_into(self.output, self.model)
        return {split: p.best[1:] if split == "dev" and p.best else self.evaluate(split) for split in self.scored}

    # ------------------------------------------------------------------------------------------------ checkpoints

    def checkpoint(self) -> None:
        """Save all that a resumed run needs. Raises MinibertError where it cannot be written, or is worth nothing.

        The first process saves; the others go on, and wait for it where the next sum does.
        """
        def write(folder: Path) -> None:
            self.save(folder)
            optimizer = write_optimizer(folder, self.optimizer)
            if self.progress.saved_epoch:
                copy(self.output / "model.safetensors", folder / "best.safetensors")
            weights.write_json(folder / "state.json", {
                "progress": dataclasses.asdict(self.progress), "scaler": vars(self.scaler), "optimizer": optimizer,
                "metrics_bytes": flushed_size(self.output / "metrics.jsonl"), "rows": self.rows(),
                "settings": self.record})

        p = self.progress
        if broken := broken_weight(self.model):    # it would take the place of one that is worth more
            raise MinibertError(f"{broken} holds numbers that are not finite")
        if self.processes.first and self.last_in_memory:
            self.checkpoints.save(f"update-{p.step:08d}" + ("-scored" if p.scored == p.step else ""), write)

    def rewind(self, found: Path, size: int) -> None:
        """The run folder as it was at a checkpoint: its best model, its lines of metrics.jsonl, no final scores."""
        self.bring_back(found)
        (self.output / "metrics.json").unlink(missing_ok=True)
        if not cut(self.output / "metrics.jsonl", size):
            self.tell(f"note: {self.output}/metrics.jsonl is shorter than it was at this checkpoint; lines are missing")

    def bring_back(self, found: Path) -> None:
        """The best model, if there was one, from a checkpoint into the run folder."""
        if self.progress.saved_epoch:
            copy(found / "best.safetensors", self.output / "model.safetensors")
            copy(found / "config.json", self.output / "config.json")

    def rows(self) -> str:
        """What the run learns from: SHA-256 of the encoded training rows and of the labels' names."""
        return checksum(self.features["train"].arrays(), self.task.labels)

    def resume(self) -> None:
        """Go to the newest whole checkpoint, or say that there is none. All processes read the same folder."""
        found = self.processes.by_first(lambda: str(self.checkpoints.newest() or ""))
        for notice in self.checkpoints.notices:
            self.tell(f"note: {notice}")
        if not found:
            if (self.output / "metrics.json").is_file():
                raise MinibertError(f"{self.output}: finished, and without a whole checkpoint to go on from; name "
                                    "another --output")
            self.tell(f"{self.output}: no whole checkpoint to resume from; starting anew")
            self.processes.by_first(lambda: (self.output / "metrics.jsonl").unlink(missing_ok=True))
            return
        found = Path(found)
        state = read_json(found / "state.json")
        try:
            self.go_to(found, state)
        except (KeyError, TypeError) as e:
            raise MinibertError(f"{found}/state.json: of another version of minibert ({type(e).__name__}: {e}); go on "
                                "with that one, or name another --output") from None

    def go_to(self, found: Path, state: dict[str, Any]) -> None:
        """The run as it was when a checkpoint of it was saved. Raises MinibertError where this is not that run."""
        refuse_changes(state["settings"], self.record, found)
        if BertConfig.read(found) != self.model.bert.config:
            raise MinibertError(f"{found}: config.json says another model than {self.settings.weights} with these "
                                "settings; give the --weights that the run began with, or name another --output")
        if state["rows"] != self.rows():
            raise MinibertError(f"{self.settings.data}: not the training data of {found}; give those, or name another "
                                "--output")
        weights.load_into(found, self.model)
        read_optimizer(found, self.optimizer, state["optimizer"])
        vars(self.scaler).update(state["scaler"])
        self.progress = Progress(**state["progress"])
        if self.finished:
            if any(not (self.output / name).is_file() for name in ("model.safetensors", "config.json")):
                self.processes.by_first(lambda: self.bring_back(found))
            return
        self.processes.by_first(lambda: self.rewind(found, state["metrics_bytes"]))
        self.tell(f"resumed from update {self.progress.step}")
        for name in ("threads", "processes", "torch"):
            if (then := state["settings"].get(name)) != self.record[name]:
                self.tell(f"note: {name} was {then}, now {self.record[name]}: the same rows in the same order, but not "
                          "the same bits")


FREE = {"data", "cache", "weights", "output", "epochs", "max_steps", "updates", "before", "save_every", "keep",
        "resume", "threads", "processes", "torch"}                             # what a resumed run may change


def refuse_changes(then: dict[str, Any], now: dict[str, Any], found: Path) -> None:
    """Raises MinibertError with every setting that differs from the saved run's and may not."""
    differ = [f"{k} was {then.get(k)}, now {now.get(k)}" for k in {**then, **now}
              if then.get(k) != now.get(k) and k not in FREE]
    if now["updates"] < then["updates"]:
        differ.append(f"updates were {then['updates']}, now {now['updates']}: there may only be more")
    if differ:
        raise MinibertError(f"{found}: saved with other settings: {'; '.join(differ)}; give the same, or name another "
                            "--output")


def flushed_size(file: Path) -> int:
    """Bytes of a file that is on the disk when this returns; 0 where there is none."""
    if not file.is_file():
        return 0
    with open(file, "rb+") as f:
        os.fsync(f.fileno())
        return f.seek(0, os.SEEK_END)


def cut(file: Path, size: int) -> bool:
    """Leave the first `size` bytes of a file; False if it has fewer."""
    there = file.stat().st_size if file.is_file() else 0
    if there > size:
        os.truncate(file, size)
    return there >= size


def say(text: str) -> None:
    """A line for the user. Where nobody listens any more (a pipe whose reader is gone) the run does not end for it."""
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fetch_weights(name: str) -> Path:
    """The folder of a checkpoint; says what it is before fetching it."""
    if not hub.at_hand(name):
        print(f"fetching {hub.describe(name)}")
    return hub.fetch(name)


BARELY_BEGUN = {".lock", "log.txt", ".train.json.new"}                         # what a run writes before train.json


def claim_folder(settings: TrainConfig) -> Path:
    """The run folder: made here and empty, or with --resume one that holds a run; MinibertError for any other."""
    if settings.output is None and settings.resume and (last := last_run(settings.task)):
        return last
    if settings.output is not None:
        output = Path(settings.output)
        if os.path.lexists(output) and not output.is_dir():
            raise MinibertError(f"--output {output}: is there and no folder; name another")
        inside = {f.name for f in output.iterdir()} - BARELY_BEGUN if output.is_dir() else set()
        if inside and not settings.resume:
            raise MinibertError(f"--output {output}: holds another run; name another folder, remove that one, or "
                                "continue it with --resume")
        if inside and "train.json" not in inside:
            raise MinibertError(f"--output {output}: holds something, but no run to resume; name another folder")
        return make_folder(output, exist_ok=True)
    for number in itertools.count(1):
        output = default_folder(settings.task, number)
        with contextlib.suppress(FileExistsError):             # taken, perhaps this very moment by another process
            return make_folder(output, exist_ok=False)


def default_folder(task: str, number: int) -> Path:
    """runs/TASK, runs/TASK-2, runs/TASK-3 ..."""
    return Path("runs") / (task if number == 1 else f"{task}-{number}")


def last_run(task: str) -> Path | None:
    """The last of the default folders that holds a run."""
    numbers = [1, *(int(f.name.rpartition("-")[2]) for f in Path("runs").glob(f"{task}-*")
                    if f.name.rpartition("-")[2].isdecimal())]
    runs = [default_folder(task, n) for n in sorted(numbers) if (default_folder(task, n) / "train.json").is_file()]
    return runs[-1] if runs else None


def make_folder(folder: Path, exist_ok: bool) -> Path:
    """`folder`, made; FileExistsError is the caller's business, any other fault the user's."""
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as e:
        raise MinibertError(f"{folder}: cannot be made ({e.strerror}); name another with --output") from None
    return folder


def resolve_device(wanted: str) -> torch.device:
    """"auto" -> CUDA where there is one."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MinibertError("--device is cuda; torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda" if wanted == "auto" and torch.cuda.is_available() else wanted.replace("auto", "cpu"))


# ------------------------------------------------------------------------------------------------------- the loop


def fit(run: Run, stop: StopRequest) -> dict[str, float]:
    """All updates that are left, dev scored after every epoch; -> {"seconds", "pieces", "pieces_per_second", "steps"}.

    Seconds are the wall time of updates, assembling their batches included, evaluation and saving not. Raises Stopped
    after the update in which `stop` was asked.
    """
    p, recent, timer = run.progress, collections.deque(maxlen=20), time.perf_counter()
    quiet = None if run.processes.first else True                              # None: where nobody watches
    with tqdm(total=run.total, initial=p.step, unit="update", disable=quiet, dynamic_ncols=True) as bar:
        while not run.done:
            begun = (run.epoch_in_hand - 1) * run.an_epoch                     # updates of the epochs before this one
            order = epoch_batches(run.lengths, run.settings.batch_size, run.settings.seed, run.epoch_in_hand)
            for numbers in order[p.step - begun:run.total - begun]:
                line = next_update(run, numbers, timer)
                timer += line["seconds"]
                recent.append(line["loss"])
                bar.set_postfix_str(f"epoch {line['epoch']}, loss {mean(recent):.3f}, lr {line['learning_rate']:.1e}, "
                                    f"{p.pieces / p.seconds:,.0f} pieces/s")
                bar.update()
                asked, due = run.processes.any(stop.asked is not None,
                                               run.processes.first and run.interval.due(p.step))
                if asked:
                    raise Stopped(stop.asked or "another process")
                if due:
                    save_if_possible(run)
                    timer = time.perf_counter()
            run.end_of_epoch(stop)
            timer = time.perf_counter()
    return {"seconds": p.seconds, "pieces": p.pieces, "pieces_per_second": p.pieces / p.seconds, "steps": p.step}


def next_update(run: Run, numbers: np.ndarray, timer: float) -> dict[str, Any]:
    """One update on the rows of these numbers, its clock running since `timer`; -> its line of metrics.jsonl."""
    p, settings, device = run.progress, run.settings, next(run.model.parameters()).device
    step = p.step + 1
    lr = lr_at(step, run.total, run.warmup, settings.learning_rate)
    batches = micro_batches(run.features["train"], run.processes.share(numbers), run.task, settings, run.tokenizer.pad,
                            device)
    try:
        loss, norm = one_update(run.model, run.task, batches, run.optimizer, run.scaler, settings, step, lr,
                                run.processes)
    except NotFinite as e:
        raise NotFinite(f"{e}; {write_down(run, step, batches, str(e))}") from None
    live = int(run.processes.add(sum(b.pieces for b in batches)))
    took = time.perf_counter() - timer
    line = {"step": step, "epoch": run.epoch_in_hand, "loss": finite(loss), "learning_rate": lr,
            "gradient_norm": finite(norm), "pieces": live, "seconds": took}
    run.log(line)
    p.step, p.seconds, p.pieces = step, p.seconds + took, p.pieces + live
    if math.isfinite(loss):
        p.losses, p.loss_sum = p.losses + 1, p.loss_sum + loss
    return line


def write_down(run: Run, step: int, batches: Sequence[Batch], said: str) -> str:
    """Leave an update that went wrong in the run folder, with the weights before it; -> what to do now."""
    folder, broken, lost = run.output / f"broken-update-{step}", broken_weight(run.model), ""
    parts = [part for rank in run.processes.gather(as_parts(batches, run.processes.rank)) for part in rank]
    examples = [row["example"] for part in parts for row in part["rows"]]
    if run.processes.first:
        try:
            folder.mkdir(exist_ok=True)
            write_update(folder / "update.json", step, parts, run.record, said)
            if not broken:
                run.save(folder)
        except (MinibertError, OSError) as e:      # what went wrong first is what the user must read
            lost = f"it could not be written down ({e}); "
    if not broken:
        save_if_possible(run)
    why = f"{broken} was not finite before it: lower --learning-rate" if broken else (
        f"{lost}look at it with {interpreter()} train.py --replay {shlex.quote(str(folder / 'update.json'))}, or lower "
        "--learning-rate")
    return f"train examples {', '.join(map(str, examples[:8]))}{', ...' if len(examples) > 8 else ''}; {why}"


def save_if_possible(run: Run) -> None:
    """A checkpoint; where it cannot be written, the run goes on and says so: stopping would lose more."""
    try:
        run.checkpoint()
    except MinibertError as e:
        run.tell(f"warning: update {run.progress.step} is not saved: {e}; the run goes on")


def mean(losses: Iterable[float | None]) -> float:
    """Of those that there are: an fp16 update that overflowed and was skipped has no loss."""
    kept = [x for x in losses if x is not None]
    return sum(kept) / len(kept) if kept else math.nan


def finite(x: float) -> float | None:
    """x, or None for what JSON has no number for: an fp16 update that overflowed and was skipped."""
    return x if math.isfinite(x) else None


def train(argv: list[str]) -> Path:
    """One run, from the command line's words to the run folder it returns; raises Stopped if it was asked to stop."""
    run = Run(argv)
    with run.lock, torch.set_grad_enabled(run.settings.gradients == "autograd"), \
            StopRequest(run.processes.size > 1) as stop:
        if run.finished:
            run.tell(f"{run.output}: finished already, {run.progress.step:,} updates; nothing to do")
            return run.output
        try:
            speed, after = whole_run(run, stop)
        except Stopped as e:
            if run.progress.step:
                run.checkpoint()
            run.tell(f"stopped by {e} after update {run.progress.step}; go on with --resume --output {run.output}")
            raise
        if run.processes.first:
            before = {split: scores for split, (scores, _) in run.progress.before.items()}
            weights.write_json(run.output / "metrics.json", {
                "before": before, **{split: scores for split, (scores, _) in after.items()}, "train": speed})
    if run.processes.first:
        summarise(run, run.progress.before, after, speed)
    return run.output


def whole_run(run: Run, stop: StopRequest) -> tuple[dict[str, float], dict[str, tuple[dict[str, Any], str]]]:
    """Scores before, all updates, a checkpoint to go on from with more of them, scores after; -> (speed, scores)."""
    if run.settings.before and not run.progress.step:
        with stop.at_once():
            run.progress.before = {split: run.evaluate(split) for split in run.scored}
    speed = fit(run, stop)
    save_if_possible(run)
    with stop.at_once():
        return speed, run.final_scores()


# ------------------------------------------------------------------------------------------------------- the words


def summarise(run: Run, before: dict[str, tuple], after: dict[str, tuple], speed: dict[str, float]) -> None:
    """What was trained, before -> after, where it is, what to type next."""
    for split, (_, tables) in after.items():
        columns = [("before fine-tuning", before[split][1])] if split in before else []
        print(f"\n{split}\n" + side_by_side(*columns, ("after fine-tuning", tables)))
    s, key = run.settings, run.task.best[0]
    print(f"\ntrained: {s.task} on {s.data} from {s.weights}, {speed['steps']:,} updates, "
          f"{speed['pieces']:,} pieces in {speed['seconds']:.0f} s ({speed['pieces_per_second']:,.0f} pieces/s)")
    for split, (scores, _) in after.items():
        was = f"{at(before[split][0], key):.3f} -> " if split in before else ""
        print(f"{split} {key}: {was}{at(scores, key):.3f}")
    print(f"run folder: {run.output}\nnext: {interpreter()} -m minibert predict {shlex.quote(str(run.output))} "
          '"Angela Merkel met Tim Cook in Paris."')


def interpreter() -> str:
    """What to type for the Python that runs this: its path from here where that is short, as in .venv/bin/python."""
    path = os.path.relpath(sys.executable)
    return Path(sys.executable).name if path.startswith("..") else shlex.quote(path)


def side_by_side(*columns: tuple[str, str]) -> str:
    """Titled blocks of text, next to each other."""
    blocks = [[title, *text.splitlines()] for title, text in columns]
    widths = [max(map(len, b)) for b in blocks]
    height = max(map(len, blocks))
    rows = zip(*(b + [""] * (height - len(b)) for b in blocks), strict=True)
    return "\n".join("   |   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def print_wrapped(text: str) -> None:
    """A long line as a paragraph."""
    print(textwrap.fill(text, 118, subsequent_indent="  "))


def complain(text: str) -> None:
    """One line on standard error, if anybody is there to read it."""
    with contextlib.suppress(OSError):
        process = os.environ.get("RANK", "0")
        print(f"error: {text}" if process == "0" else f"process {process}: error: {text}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, 2 for something the user can mend (one line says what), 75 for a run that was asked to stop and is
    saved, 130 for a Ctrl-C that nothing was saved for.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        if words[:1] == ["--replay"]:
            print(*replay(Path(*words[1:2])), sep="\n")
        else:
            train(words)
    except (MinibertError, OSError) as e:
        if not isinstance(e, Shared) or os.environ.get("RANK", "0") == "0":
            complain(str(e))
        return 2
    except (MemoryError, RuntimeError) as e:       # torch says RuntimeError, on a GPU a kind of it
        first = (str(e) or type(e).__name__).splitlines()[0][:200]
        if isinstance(e, MemoryError) or "allocate memory" in str(e) or "out of memory" in str(e):
            complain("out of memory; give --accumulate 2 or more, or a smaller --batch-size or --max-pieces; --resume "
                     f"goes on from the last checkpoint ({first})")
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1 and ("gloo" in str(e) or "NCCL" in str(e)):
            complain(f"another process is gone; --resume goes on from the last checkpoint ({first})")
        else:
            raise
        return 2
    except Stopped:
        return STOPPED
    except KeyboardInterrupt:
        complain("interrupted; --resume goes on from the last checkpoint, if one was saved")
        return 130
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    sys.exit(main())
