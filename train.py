"""Fine-tune BERT: settings · data · model · optimizer · one update · the loop. Read it from top to bottom.

    python train.py --task ner
"""
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
from collections.abc import Sequence
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
from minibert.config import TrainConfig, parse, read_settings
from minibert.errors import MinibertError
from minibert.evaluate import at, predict_examples
from minibert.model import Model, grow_types, initialise
from minibert.optim import SGD, AdamW, Optimizer, clip_gradient, decay_groups, lr_at
from minibert.precision import DropoutMasks, LossScaler, autocast, resolve_precision
from minibert.predict import read_tokenizer
from minibert.prepare import Splits, encode_splits, read_splits
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
               settings: TrainConfig, step: int, lr: float) -> tuple[float, float]:
    """Forward, backward and one step of the optimizer over the micro-batches of an update; -> (loss, gradient norm).

    The objective is Σ over terms of (sum of losses / count), both over all micro-batches: one mean over the labelled
    words of the whole update, however it is split.
    """
    params = [p for g in optimizer.groups for p in g["params"]]
    optimizer.zero_grad()
    if settings.adversarial:
        loss = adversarial_gradient(model, task, batches, scaler.scale, settings, step)
    else:
        loss = accumulate_gradient(model, task, batches, scaler.scale, settings, step)
    whole = scaler.unscale(params)
    norm = clip_gradient(params, settings.clip) if whole else math.inf
    if not scaler.enabled and not math.isfinite(loss + norm):
        raise MinibertError(f"update {step}: the loss is {loss}, the gradient norm {norm}; stopped before the weights "
                            "were touched; lower --learning-rate, or look at this batch")
    optimizer.set_learning_rate(lr)
    if whole:
        optimizer.step()
    scaler.update(whole)
    if scaler.scale < 2.0 ** -24:
        raise MinibertError(f"update {step}: fp16 gradients overflow at every loss scale, {scaler.skipped} updates "
                            "skipped; lower --learning-rate, or use --precision fp32")
    return loss, norm


def accumulate_gradient(model: Model, task: Task, batches: Sequence[Batch], scale: float, settings: TrainConfig,
                        step: int) -> float:
    """Add the gradient of scale · objective to every parameter, one micro-batch at a time; -> the objective."""
    counts: dict[str, float] = {}
    for batch in batches:
        for term, count in task.counts(batch).items():
            counts[term] = counts.get(term, 0.0) + count                      # [ACC-3]
    factors = {term: scale / (count or 1.0) for term, count in counts.items()}  # [ACC-1] 0/1 for a term without labels
    add_gradient = {"fast": fast.add_gradients, "by-hand": add_by_hand, "autograd": add_by_autograd}[settings.gradients]
    sums = [add_gradient(model, task, batch, DropoutMasks(settings.seed, step, micro_batch=i), factors,
                         settings.precision) for i, batch in enumerate(batches)]
    # only now are numbers asked for: a GPU has had all its work by then
    return sum(float(part[term]) / (counts[term] or 1.0) for part in sums for term in part)  # [RISK-1]


def adversarial_gradient(model: Model, task: Task, batches: Sequence[Batch], scale: float, settings: TrainConfig,
                         step: int) -> float:
    """Half the gradient here and half of it where the word vectors are a step further uphill; -> the objective here.

    The step has the length --adversarial and the direction of the first gradient (Miyato et al. 2017, for text). What
    the model learns must hold around every word, not only at its vector.
    """
    w = model.bert.embeddings.word.weight
    loss = accumulate_gradient(model, task, batches, scale / 2, settings, step)
    g = w.grad if w.grad.is_sparse else w.grad.to_sparse(1)                    # the rows of words that are there
    rows, uphill = g.indices()[0], g.values()      # [rows], [rows,H]
    with torch.no_grad():
        here = w[rows]                             # a copy: adding and subtracting would not bring back every bit
        size = uphill.norm().clamp(min=torch.finfo(uphill.dtype).tiny)         # no direction, no step
        w[rows] = here + uphill * (settings.adversarial / size)               # [ADV-1]
    accumulate_gradient(model, task, batches, scale / 2, settings, step)      # [ADV-2]
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


class Run:
    """One run: its parts, its folder, the best score so far, how to evaluate and save."""

    def __init__(self, argv: list[str]):
        """Everything from the command line's words to an untrained model and a claimed run folder."""
        fast.keep_memory()
        settings, options, chosen = resolve_settings(argv)
        device = resolve_device(settings.device)
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
        an_epoch = -(-len(self.lengths) // settings.batch_size)
        self.total = settings.max_steps or settings.epochs * an_epoch          # updates
        self.warmup = int(settings.warmup * self.total)
        wanted = {"all": ("dev", "test"), "dev": ("dev",), "none": ()}[settings.evaluate]
        self.scored = [split for split in wanted if split in self.splits]
        self.best: tuple[float, Any, str] | None = None                        # value, scores, tables on dev
        self.saved_epoch = self.better_epoch = self.epoch = 0
        if settings.patience and "dev" not in self.scored:
            raise MinibertError(f"--patience is {settings.patience}; {settings.data} has no dev split to wait for")
        self.output = claim_folder(self.settings)
        self.introduce({**dataclasses.asdict(self.settings), **dataclasses.asdict(options), "output": str(self.output),
                        "updates": self.total, "threads": torch.get_num_threads(), "device": device.type,
                        "torch": torch.__version__})

    def introduce(self, record: dict[str, Any]) -> None:
        """Save and print every resolved setting and what was read."""
        weights.write_json(self.output / "train.json", record)
        self.tokenizer.save(self.output)
        print_wrapped("settings: " + ", ".join(f"{k} {v}" for k, v in record.items()))
        for note in self.task.notices:
            print(f"note: {note}")
        sizes = ", ".join(f"{split} {len(examples):,} examples in {len(self.features[split]):,} rows"
                          for split, examples in self.splits.items())
        print(f"data: {sizes}; {len(self.task.labels)} labels; {self.total:,} updates")

    def log(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        with open(self.output / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")

    def evaluate(self, split: str) -> tuple[dict[str, Any], str]:
        """(scores, text tables) of one split."""
        examples = self.splits[split]
        guess = predict_examples(self.model, self.task, examples, self.features[split], self.settings.precision)
        return self.task.score(guess, examples), self.task.report(guess, examples)

    def end_of_epoch(self, step: int, loss: float) -> bool:
        """Score dev, save if it is the best so far (or dev is not scored); -> whether patience is at its end."""
        self.epoch += 1
        key, direction = self.task.best
        better, as_good, said = True, True, ""
        if "dev" in self.scored:
            scores, tables = self.evaluate("dev")
            self.log({"step": step, "epoch": self.epoch, "split": "dev", **scores})
            value = at(scores, key)
            better = self.best is None or (value > self.best[0] if direction == "max" else value < self.best[0])
            as_good = better or value == self.best[0]                          # of equals the longer trained
            self.best = (value, scores, tables) if as_good else self.best
            said = f", dev {key} {value:.4f}{' (best so far)' if better else ''}"
        tqdm.write(f"epoch {self.epoch}: loss {loss:.4f}{said}")
        self.better_epoch = self.epoch if better else self.better_epoch
        if as_good:
            self.saved_epoch = self.epoch
            self.save()
        return bool(self.settings.patience) and self.epoch - self.better_epoch >= self.settings.patience

    def save(self) -> None:
        """The model as it is now, under the published names."""
        labels = self.task.labels
        weights.save(self.output, self.model.bert, self.model.head, {
            "architectures": [self.task.architecture], "problem_type": self.task.problem_type,
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)}})

    def final_scores(self) -> dict[str, tuple[dict[str, Any], str]]:
        """Go back to the weights of the best epoch, which are on the disk, and score what was not scored with them."""
        if self.saved_epoch != self.epoch:
            weights.load_into(self.output, self.model)
        return {split: self.best[1:] if split == "dev" else self.evaluate(split) for split in self.scored}


def fetch_weights(name: str) -> Path:
    """The folder of a checkpoint; says what it is before fetching it."""
    if not hub.at_hand(name):
        print(f"fetching {hub.describe(name)}")
    return hub.fetch(name)


def claim_folder(settings: TrainConfig) -> Path:
    """The run folder, made here and empty; raises MinibertError where the named one holds something."""
    if settings.output is not None:
        output = Path(settings.output)
        if os.path.lexists(output) and not output.is_dir():
            raise MinibertError(f"--output {output}: is there and no folder; name another")
        if output.is_dir() and any(output.iterdir()):
            raise MinibertError(f"--output {output}: holds another run; name another folder, or remove that one")
        return make_folder(output, exist_ok=True)
    for number in itertools.count(1):
        output = Path("runs") / (settings.task if number == 1 else f"{settings.task}-{number}")
        with contextlib.suppress(FileExistsError):             # taken, perhaps this very moment by another process
            return make_folder(output, exist_ok=False)


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


def fit(run: Run) -> dict[str, float]:
    """All updates, dev scored after every epoch; -> {"seconds", "pieces", "pieces_per_second", "steps"}.

    Seconds are the wall time of updates, assembling their batches included, evaluation and saving not.
    """
    settings, device = run.settings, next(run.model.parameters()).device
    seconds, pieces, step = 0.0, 0, 0
    timer = time.perf_counter()
    bar = tqdm(total=run.total, unit="update", disable=None, dynamic_ncols=True)
    while step < run.total:
        order = epoch_batches(run.lengths, settings.batch_size, settings.seed, run.epoch + 1)
        losses: list[float] = []                                               # of this epoch's updates
        for numbers in order[:run.total - step]:
            step += 1
            lr = lr_at(step, run.total, run.warmup, settings.learning_rate)
            batches = micro_batches(run.features["train"], numbers, run.task, settings, run.tokenizer.pad, device)
            loss, norm = one_update(run.model, run.task, batches, run.optimizer, run.scaler, settings, step, lr)
            live, took = sum(b.pieces for b in batches), time.perf_counter() - timer
            run.log({"step": step, "epoch": run.epoch + 1, "loss": finite(loss), "learning_rate": lr,
                     "gradient_norm": finite(norm), "pieces": live, "seconds": took})
            seconds, pieces, timer = seconds + took, pieces + live, timer + took
            losses.append(loss)
            bar.set_postfix_str(f"epoch {run.epoch + 1}, loss {mean(losses[-20:]):.3f}, lr {lr:.1e}, "
                                f"{pieces / seconds:,.0f} pieces/s")
            bar.update()
        if run.end_of_epoch(step, mean(losses)) and not settings.max_steps:
            break
        timer = time.perf_counter()
    bar.close()
    return {"seconds": seconds, "pieces": pieces, "pieces_per_second": pieces / seconds, "steps": step}


def mean(losses: Sequence[float]) -> float:
    """Of the finite ones: an fp16 update that overflowed and was skipped has no loss."""
    kept = [x for x in losses if math.isfinite(x)]
    return sum(kept) / len(kept) if kept else math.nan


def finite(x: float) -> float | None:
    """x, or None for what JSON has no number for: an fp16 update that overflowed and was skipped."""
    return x if math.isfinite(x) else None


def train(argv: list[str]) -> Path:
    """One run, from the command line's words to the run folder it returns."""
    run = Run(argv)
    with torch.set_grad_enabled(run.settings.gradients == "autograd"):
        before = {split: run.evaluate(split) for split in (run.scored if run.settings.before else ())}
        speed = fit(run)
        after = run.final_scores()
    weights.write_json(run.output / "metrics.json", {"before": {split: scores for split, (scores, _) in before.items()},
                                                     **{split: scores for split, (scores, _) in after.items()},
                                                     "train": speed})
    summarise(run, before, after, speed)
    return run.output


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


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, 2 for something the user can mend (one line says what), 130 for Ctrl-C."""
    try:
        train(sys.argv[1:] if argv is None else argv)
    except (MinibertError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the best model so far, if an epoch was finished, is in the run folder", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    sys.exit(main())
