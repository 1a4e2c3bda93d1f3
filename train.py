"""Fine-tune BERT: settings · data · model · optimizer · one update · the loop. Read it from top to bottom.

    python train.py --task ner
"""
import collections
import contextlib
import dataclasses
import math
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from minibert.adapt.freeze import freeze
from minibert.adapt.grow import grow_types, grow_words
from minibert.checkpoints import hub, weights
from minibert.checkpoints.weights import read_tokenizer
from minibert.core import coupled
from minibert.core.batch import Batch, Feature, collate
from minibert.core.byhand import reached_gradients
from minibert.core.dropout import DropoutMasks
from minibert.core.model import Bert, Model, initialise
from minibert.core.optim import SGD, AdamW, Optimizer, decay_groups, lr_at
from minibert.core.precision import LossScaler, autocast, resolve_precision
from minibert.data.order import epoch_batches, row_generator
from minibert.data.tokenizer import CASE_SHAPES, Tokenizer
from minibert.engines.fast import encoder as fast
from minibert.engines.fast.adamw import FusedAdamW
from minibert.engines.fast.memory import keep_memory
from minibert.errors import MinibertError
from minibert.files import write_json
from minibert.options import option_given, option_names, parse, read_settings
from minibert.run.checkpoint import Checkpoints, Interval
from minibert.run.folder import claim_folder, lock
from minibert.run.processes import ALONE, Processes, SharedScorer, join
from minibert.run.replay import NotFinite, replay
from minibert.run.resume import Progress, Resumable
from minibert.run.stopping import Stopped, StopRequest
from minibert.run.terminal import Advice, exit_code, interpreter, print_wrapped, say, side_by_side
from minibert.settings import TrainConfig
from minibert.tasks import TASKS
from minibert.tasks.base import Task
from minibert.use.evaluate import at
from minibert.use.prepare import Splits, encode_splits, read_splits

TRAINING = Advice(                                 # what to do when a run ends otherwise than it should
    memory="give --accumulate 2 or more, or a smaller --batch-size or --max-pieces; --resume goes on from the last "
           "checkpoint",
    interrupted="interrupted; --resume goes on from the last checkpoint, if one was saved")
DATA = Path(os.path.relpath(Path(__file__).resolve().parent / "data"))        # small sets written for this project

# ------------------------------------------------------------------------------------------------------- settings


def resolve_settings(argv: list[str]) -> tuple[TrainConfig, Any, set[str]]:
    """(settings, the task's own options, names that were chosen rather than left at TrainConfig's default)."""
    name = task_name(argv)
    kind = TASKS[name]
    refuse_options_of_others(argv, name)
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
    name = option_given(argv, "--task")
    if name is None and (file := option_given(argv, "--config")):
        options = [k.Options for k in TASKS.values()]
        name = read_settings(file, TrainConfig, *options).get("task")
    name = TrainConfig.task if name is None else name
    if name not in TASKS:
        raise MinibertError(f"--task is {name!r}; known: {', '.join(TASKS)}")
    return name


def refuse_options_of_others(argv: list[str], name: str) -> None:
    """Raise MinibertError for an option that this task does not have and another one has."""
    known = option_names(TrainConfig, TASKS[name].Options)
    for word in (word.partition("=")[0] for word in argv if word.startswith("--")):
        having = [task for task, kind in TASKS.items() if word in option_names(kind.Options)]
        if having and word not in known:
            raise MinibertError(f"{word} is an option of --task {', '.join(having)}, not of --task {name}; leave it "
                                "out, or name the task that is meant")


# ----------------------------------------------------------------------------------------------------------- data


def read_data(task: Task, settings: TrainConfig) -> Splits:
    """{"train", "dev", "test": examples}; the task has learnt its labels from train."""
    folder = Path(settings.data)
    splits = read_splits(task, folder, settings.cache)
    if "train" not in splits:
        raise MinibertError(f"{folder}: no training file; --data takes a folder with a train file, and dev and test")
    if settings.limit:
        splits = splits.limited(settings.limit)
    task.learn_labels(splits)
    return splits


# ---------------------------------------------------------------------------------------------------------- model


def build_model(folder: Path, task: Task, settings: TrainConfig) -> tuple[Model, Tokenizer]:
    """The published encoder with a head for the task; prints what was loaded, what is new and what is trained."""
    head = task.head(weights.read_config(folder, settings.dropout))
    parts = task.head_parts
    bert, report = weights.load(folder, head, new_head=not parts and not weights.holds_head_of(folder, task),
                                dropout=settings.dropout, parts=parts)
    if settings.max_pieces > bert.config.max_position_embeddings:
        raise MinibertError(f"--max-pieces is {settings.max_pieces}; the checkpoint has "
                            f"{bert.config.max_position_embeddings} positions")
    if settings.case_shapes == "off" and bert.config.case_shapes:
        raise MinibertError(f"--case-shapes is off; {folder} was trained with them; start from published weights")
    tokenizer = read_tokenizer(folder, bert)
    tokenizer.add(task.new_pieces)
    new_pooler = start_new(bert, head, tokenizer, report, settings)
    wanted = settings.case_shapes == "on" or (settings.case_shapes == "auto" and tokenizer.uncased
                                                  and settings.freeze == "none")
    if wanted and not bert.config.case_shapes:
        grow_types(bert, CASE_SHAPES)
        tokenizer.case_shapes = True
        report.grown.append(f"grown: token types to {bert.config.type_vocab_size}, a copy of each for the case shapes "
                            f"{', '.join(CASE_SHAPES)}")
    model = freeze(Model(bert, head), settings.freeze)
    if new_pooler:
        bert.pooler.requires_grad_(True)           # what is new belongs to the head
    say(str(report))
    return model, tokenizer


def start_new(bert: Bert, head: nn.Module, tokenizer: Tokenizer, report: weights.Report, settings: TrainConfig) -> bool:
    """Draw all that no file had, head, pooler and word vectors, from one generator in this order; -> a new pooler?"""
    new_pooler = any(name.startswith("pooler.") for name in report.new)
    rows = nn.Embedding(max(0, tokenizer.size - bert.config.vocab_size), bert.config.hidden_size)
    new = [module for name, module in head.named_modules()
           if {f"{name}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False)} & set(report.new)]
    initialise(nn.ModuleList([*new, *[bert.pooler] * new_pooler, rows]), bert.config.initializer_range, settings.seed)
    if len(rows.weight):
        pieces = [tokenizer.backend.id_to_token(i) for i in range(bert.config.vocab_size, tokenizer.size)]
        grow_words(bert, rows.weight)
        report.grown.append(f"grown: word vectors to {bert.config.vocab_size:,}, for {' '.join(pieces)}")
    return new_pooler


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
    rule = FusedAdamW if settings.gradients == "fast" else AdamW
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
    optimizer.zero_grad()
    if settings.adversarial:
        loss = adversarial_gradient(model, task, batches, scaler.scale, settings, step, processes)
    else:
        loss = accumulate_gradient(model, task, batches, scaler.scale, settings, step, processes)
    whole = scaler.unscale(optimizer.params)
    norm = optimizer.clip(settings.clip) if whole else math.inf
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
    masks = [DropoutMasks(settings.seed, step, i, processes.rank) for i in range(len(batches))]
    losses = [task] * len(batches)                 # who says what each micro-batch loses
    if len(batches) > 1 and task.coupled:
        losses = coupled.parts(model, task, batches, masks, settings.precision)
    counts: dict[str, float] = {}
    for batch in batches:
        for term, count in task.counts(batch).items():
            counts[term] = counts.get(term, 0.0) + count                      # [ACC-3]
    counts = processes.sum_counts(counts)
    factors = {term: scale / (count or 1.0) for term, count in counts.items()}  # [ACC-1] 0/1 for a term without labels
    add_gradient = {"fast": fast.add_gradients, "by-hand": add_by_hand, "autograd": add_by_autograd}[settings.gradients]
    sums = [add_gradient(model, loss, batch, mask, factors, settings.precision)
            for loss, batch, mask in zip(losses, batches, masks, strict=True)]
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
                  device: torch.device, epoch: int = 1) -> list[Batch]:
    """One update's features in --accumulate parts of as nearly equal size as can be."""
    rows = task.rows([features[i] for i in numbers], lambda i: row_generator(settings.seed, epoch, int(numbers[i])))
    cuts = [part for part in np.array_split(np.arange(len(rows)), settings.accumulate) if len(part)]
    parts = [rows[part[0]:part[-1] + 1] for part in cuts]
    return [collate(p, settings.layout, pad, task.layout(p), device) for p in parts]


# --------------------------------------------------------------------------------------------------- before the loop


class Run(Resumable):
    """One run: its parts, its folder, how to evaluate; resume.py has what is saved of it."""

    def __init__(self, argv: list[str]):
        """Everything from the command line's words to a claimed run folder and a model, new or as it was saved."""
        keep_memory()
        settings, options, chosen = resolve_settings(argv)
        device = resolve_device(settings.device)
        self.processes = join(device.type)
        if not self.processes.first:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (the first process speaks for all)
        self.task = TASKS[settings.task](options)
        self.chosen_by = chosen_by(self.task, settings.best)
        refuse_uncoupled(self.task, settings, self.processes)
        self.splits = read_data(self.task, settings)
        folder = fetch_weights(settings.weights)
        entry = hub.recommended(folder)
        if entry and "learning_rate" not in chosen:
            settings = dataclasses.replace(settings, learning_rate=entry.learning_rate)
        self.settings = dataclasses.replace(settings, precision=resolve_precision(settings.precision, device))
        self.model, self.tokenizer = build_model(folder, self.task, settings)
        self.model.to(device)
        self.features = encode_splits(self.task, self.splits, self.tokenizer, settings.max_pieces, settings.overlap)
        self.optimizer = build_optimizer(self.model, self.settings)
        self.scaler = LossScaler(enabled=self.settings.precision == "fp16")
        self.plan()
        self.claim()
        self.record = {**dataclasses.asdict(self.settings), **dataclasses.asdict(options), "output": str(self.output),
                       "best": None if self.chosen_by == self.task.best else settings.best,  # one run to --resume
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

    def plan(self) -> None:
        """How many updates there are, what is scored, where the run stands: at its beginning."""
        settings, self.lengths = self.settings, self.features["train"].lengths
        self.an_epoch = -(-len(self.lengths) // settings.batch_size)           # updates
        self.total = settings.max_steps or settings.epochs * self.an_epoch
        self.warmup = int(settings.warmup * self.total)
        wanted = {"all": ("dev", "test"), "dev": ("dev",), "none": ()}[settings.evaluate]
        self.scored = [split for split in wanted if split in self.splits]
        self.progress = Progress()
        self.last_in_memory = True                 # the weights are those of the last update, not of the best epoch
        for name in ("patience", "best"):
            if (value := getattr(settings, name)) and "dev" not in self.scored:
                raise MinibertError(f"--{name} is {value}; {settings.data} has no dev split to score")

    def claim(self) -> None:
        """The run folder, this run's alone as long as its lock is held, and what saves checkpoints there."""
        self.output = Path(self.processes.by_first(lambda: str(claim_folder(self.settings))))
        self.lock = contextlib.ExitStack()
        self.lock.callback(self.processes.leave)
        self.processes.by_first(lambda: self.lock.enter_context(lock(self.output)) and None)
        self.checkpoints = Checkpoints(self.output, self.settings.keep)
        self.interval = Interval(self.settings.save_every)

    def introduce(self) -> None:
        """Save and print every resolved setting and what was read."""
        if not self.processes.first:
            return
        write_json(self.output / "train.json", self.record)
        self.tokenizer.save(self.output)
        print_wrapped("settings: " + ", ".join(f"{k} {v}" for k, v in self.record.items()))
        for note in self.task.notices:
            say(f"note: {note}")
        sizes = ", ".join(f"{split} {len(examples):,} examples in {len(self.features[split]):,} rows"
                          for split, examples in self.splits.items())
        say(f"data: {sizes}; {len(self.task.labels)} labels; {self.total:,} updates")

    def warn_of_collapse(self, guess: list[Any], examples: Sequence[Any]) -> None:
        """Say so where all of dev was given one and the same label though it has several."""
        if label := self.task.collapsed(guess, examples):
            self.tell(f"warning: epoch {self.epoch_in_hand}: everything in dev was given {label!r}; likely causes: "
                      f"--learning-rate {self.settings.learning_rate} is too high or too low, too few updates so far, "
                      "or labels that do not belong to their texts")

    def evaluate(self, split: str) -> tuple[dict[str, Any], str]:
        """(scores, text tables) of one split."""
        examples = self.splits[split]
        score = SharedScorer(self.model, self.task, self.settings.precision, self.processes)
        guess = self.task.infer(score, examples, self.features[split])
        if self.progress.step > self.progress.scored:
            self.warn_of_collapse(guess, examples)
        scores = self.task.score(guess, examples)
        return scores, self.task.report(scores)

    def end_of_epoch(self, stop: StopRequest) -> None:
        """Score dev, save if it is the best so far (or dev is not scored), note whether patience is at its end."""
        p, (key, direction) = self.progress, self.chosen_by
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
            self.save_best()
        p.over = bool(self.settings.patience) and epoch - p.better_epoch >= self.settings.patience

    def final_scores(self) -> dict[str, tuple[dict[str, Any], str]]:
        """Go back to the weights of the best epoch, which are on the disk, and score what was not scored with them."""
        p = self.progress
        if p.saved != p.step:
            self.last_in_memory = False
            if not self.best_is_there():
                raise MinibertError(f"{self.output}: the best model is not as it was written; --resume brings it back")
            weights.load_into(self.output, self.model)
        return {split: p.best[1:] if split == "dev" and p.best else self.evaluate(split) for split in self.scored}


def chosen_by(task: Task, name: str | None) -> tuple[str, str]:
    """(score, "max" or "min") that selects a checkpoint. Raises MinibertError for a score that this task has not."""
    known = dict([task.best]) | task.also_best
    if name is not None and name not in known:
        raise MinibertError(f"--best is {name!r}; --task {task.name} can choose by {', '.join(known)}")
    return (name, known[name]) if name else task.best


def refuse_uncoupled(task: Task, settings: TrainConfig, processes: Processes) -> None:
    """Raise MinibertError where rows whose loss reads those of others would not meet them."""
    if not task.coupled:
        return
    if processes.size > 1:
        raise MinibertError(f"--task {settings.task} with {processes.size} processes: each would set its rows against "
                            "its own alone; start one process (--accumulate saves memory)")
    if settings.batch_size < 2:
        raise MinibertError(f"--batch-size is {settings.batch_size}; --task {settings.task} learns from the other rows "
                            "of an update: 2 or more, better 32 (--accumulate saves memory)")


def fetch_weights(name: str) -> Path:
    """The folder of a checkpoint; says what it is before fetching it."""
    if not hub.at_hand(name):
        say(f"fetching {hub.describe(name)}")
    return hub.fetch(name)


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
                    run.save_if_possible()
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
                            device, run.epoch_in_hand)
    try:
        loss, norm = one_update(run.model, run.task, batches, run.optimizer, run.scaler, settings, step, lr,
                                run.processes)
    except NotFinite as e:
        raise NotFinite(f"{e}; {run.write_down(step, batches, str(e))}") from None
    live = int(run.processes.add(sum(b.pieces for b in batches)))
    took = time.perf_counter() - timer
    line = {"step": step, "epoch": run.epoch_in_hand, "loss": finite(loss), "learning_rate": lr,
            "gradient_norm": finite(norm), "pieces": live, "seconds": took}
    run.log(line)
    p.step, p.seconds, p.pieces = step, p.seconds + took, p.pieces + live
    if math.isfinite(loss):
        p.losses, p.loss_sum = p.losses + 1, p.loss_sum + loss
    return line


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
            run.tell(f"stopped by {e} after update {run.progress.step}; go on with --resume --output "
                     f"{shlex.quote(str(run.output))}")
            raise
        if run.processes.first:
            before = {split: scores for split, (scores, _) in run.progress.before.items()}
            write_json(run.output / "metrics.json", {
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
    run.save_if_possible()
    with stop.at_once():
        return speed, run.final_scores()


# ------------------------------------------------------------------------------------------------------- the words


def summarise(run: Run, before: dict[str, tuple], after: dict[str, tuple], speed: dict[str, float]) -> None:
    """What was trained, before -> after, where it is, what to type next."""
    for split, (_, tables) in after.items():
        columns = [("before fine-tuning", before[split][1])] if split in before else []
        say(f"\n{split}\n" + side_by_side(*columns, ("after fine-tuning", tables)))
    s, key = run.settings, run.chosen_by[0]
    say(f"\ntrained: {s.task} on {s.data} from {s.weights}, {speed['steps']:,} updates, "
          f"{speed['pieces']:,} pieces in {speed['seconds']:.0f} s ({speed['pieces_per_second']:,.0f} pieces/s)")
    for split, (scores, _) in after.items():
        was = f"{at(before[split][0], key):.3f} -> " if split in before else ""
        say(f"{split} {key}: {was}{at(scores, key):.3f}")
    say(f"run folder: {run.output}\nnext: {interpreter()} -m minibert predict {shlex.quote(str(run.output))} "
          f'"{run.task.trial}"')


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, 2 for something the user can mend (one line says what), 75 for a run that was asked to stop and is
    saved, 130 for a Ctrl-C that nothing was saved for.
    """
    words = sys.argv[1:] if argv is None else argv
    if words and words[0].partition("=")[0] == "--replay":
        return exit_code(lambda: [say(line) for line in replay(replayed(words))], TRAINING)
    return exit_code(lambda: train(words), TRAINING)


def replayed(words: list[str]) -> Path:
    """The file of --replay FILE or --replay=FILE, which stands alone."""
    given = [words[0].partition("=")[2], *words[1:]] if "=" in words[0] else words[1:]
    if len(given) != 1:
        raise MinibertError(f"--replay takes one file, such as RUN/broken-update-14/update.json, and nothing else; "
                            f"there are {len(given)} words after it")
    return Path(given[0])


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    sys.exit(main())
