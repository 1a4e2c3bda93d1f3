"""Fine-tune BERT: settings · data · model · optimizer · one update · the loop. Read it from top to bottom.

    python train.py --task ner
"""
import contextlib
import dataclasses
import itertools
import json
import math
import os
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

from minibert import hub, weights
from minibert.adapt import freeze
from minibert.batching import Batch, Feature, collate, epoch_batches
from minibert.config import TrainConfig, parse, read_settings
from minibert.errors import MinibertError
from minibert.evaluate import at, encode_all, predict_examples
from minibert.model import Model, grow_types, initialise
from minibert.optim import SGD, AdamW, Optimizer, clip_gradient, decay_groups, lr_at
from minibert.precision import DropoutMasks, LossScaler, autocast, resolve_precision
from minibert.predict import read_tokenizer
from minibert.tasks import TASKS, Task
from minibert.tokenizer import CASE_SHAPES, Tokenizer

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
    name = name or TrainConfig.task
    if name not in TASKS:
        raise MinibertError(f"--task is {name!r}; known: {', '.join(TASKS)}")
    return name


# ----------------------------------------------------------------------------------------------------------- data


def read_data(task: Task, settings: TrainConfig) -> dict[str, list[Any]]:
    """{"train", "dev", "test": examples}; the task has learnt its labels from train."""
    folder = Path(settings.data or f"data/{settings.task}")
    splits = task.read(folder)
    if "train" not in splits:
        raise MinibertError(f"{folder}: no training file; expected a name such as train.conll or train.txt")
    if settings.limit:
        splits = {split: examples[:settings.limit] for split, examples in splits.items()}
    task.learn_labels(splits)
    return splits


# ---------------------------------------------------------------------------------------------------------- model


def build_model(folder: Path, task: Task, settings: TrainConfig) -> tuple[Model, Tokenizer]:
    """The published encoder with a head for the task; prints what was loaded, what is new and what is trained."""
    head = task.head(weights.read_config(folder, settings.dropout))
    bert, report = weights.load(folder, head, new_head=True, dropout=settings.dropout)
    if report.new:
        initialise(head, bert.config.initializer_range, settings.seed)
    tokenizer = read_tokenizer(folder, bert)
    if settings.max_pieces > bert.config.max_position_embeddings:
        raise MinibertError(f"--max-pieces is {settings.max_pieces}; the checkpoint has "
                            f"{bert.config.max_position_embeddings} positions")
    wanted = settings.case_shapes == "on" or (settings.case_shapes == "auto" and tokenizer.uncased)
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
        text = f"trained, {what}: {len(g['names'])} tensors, {count:,} numbers: {shorten(g['names'])}"
        print(textwrap.fill(text, 118, subsequent_indent="  "))
    if settings.optimizer == "sgd":
        return SGD(groups, settings.learning_rate, settings.momentum)
    return AdamW(groups, settings.learning_rate, (settings.beta1, settings.beta2), settings.epsilon,
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
            counts[term] = counts.get(term, 0.0) + count
    device = next(model.parameters()).device
    loss = 0.0
    for i, batch in enumerate(batches):
        with autocast(settings.precision, device):
            scores = model(batch, DropoutMasks(settings.seed, step, micro_batch=i))
        sums = task.loss(scores, batch)
        objective = sum(sums[term] / (counts[term] or 1.0) for term in sums)     # a term without labels is 0/1
        (objective * scale).backward()
        loss += float(objective.detach())
    return loss


def micro_batches(features: Sequence[Feature], numbers: np.ndarray, task: Task, settings: TrainConfig, pad: int,
                  device: torch.device) -> list[Batch]:
    """One update's features in --accumulate parts of as nearly equal size as can be."""
    parts = [[features[i] for i in part] for part in np.array_split(numbers, settings.accumulate) if len(part)]
    return [collate(p, settings.layout, pad, task.layout(p), device) for p in parts]


# ------------------------------------------------------------------------------------------------------- the loop


def train(argv: list[str]) -> Path:
    """One run, from the command line's words to the run folder it returns."""
    settings, options, chosen = resolve_settings(argv)
    device = resolve_device(settings.device)
    task = TASKS[settings.task](options)
    splits = read_data(task, settings)
    if not hub.at_hand(settings.weights):
        print(f"fetching {hub.describe(settings.weights)}")
    folder = hub.fetch(settings.weights)
    entry = hub.recommended(folder)
    if entry and "learning_rate" not in chosen:
        settings = dataclasses.replace(settings, learning_rate=entry.learning_rate)
    settings = dataclasses.replace(settings, precision=resolve_precision(settings.precision, device))

    model, tokenizer = build_model(folder, task, settings)
    model.to(device)
    features = {s: encode_all(task, e, tokenizer, settings.max_pieces, settings.overlap) for s, e in splits.items()}
    lengths = [len(f.ids) for f in features["train"]]
    optimizer = build_optimizer(model, settings)
    scaler = LossScaler(enabled=settings.precision == "fp16")
    an_epoch = -(-len(lengths) // settings.batch_size)
    total = settings.max_steps or settings.epochs * an_epoch
    warmup = int(settings.warmup * total)

    output = claim_folder(settings)
    record = {**dataclasses.asdict(settings), **dataclasses.asdict(options), "output": str(output), "updates": total,
              "threads": torch.get_num_threads(), "device": device.type, "torch": torch.__version__}
    weights.write_json(output / "train.json", record)
    tokenizer.save(output)
    print(textwrap.fill("settings: " + ", ".join(f"{k} {v}" for k, v in record.items()), 118, subsequent_indent="  "))
    for note in task.notices:
        print(f"note: {note}")
    sizes = ", ".join(f"{s} {len(e):,} examples in {len(features[s]):,} rows" for s, e in splits.items())
    print(f"data: {sizes}; {len(task.labels)} labels; {total:,} updates")

    run = Run(output, task, splits, features, model, settings)
    before, before_tables = run.evaluate(run.scored if settings.before else ())
    timer = time.perf_counter()
    seconds, pieces, step, epoch, running = 0.0, 0, 0, 0, 0.0
    bar = tqdm(total=total, unit="update", disable=None, dynamic_ncols=True)
    while step < total:
        epoch += 1
        for numbers in epoch_batches(lengths, settings.batch_size, settings.seed, epoch)[:total - step]:
            step += 1
            lr = lr_at(step, total, warmup, settings.learning_rate)
            batches = micro_batches(features["train"], numbers, task, settings, tokenizer.pad, device)
            loss, norm = one_update(model, task, batches, optimizer, scaler, settings, step, lr)
            pieces += sum(b.pieces for b in batches)
            now = time.perf_counter()
            run.log({"step": step, "epoch": epoch, "loss": finite(loss), "learning_rate": lr,
                     "gradient_norm": finite(norm), "pieces": sum(b.pieces for b in batches), "seconds": now - timer})
            seconds, timer = seconds + now - timer, now
            if math.isfinite(loss):
                running = loss if step == 1 else 0.95 * running + 0.05 * loss
            bar.set_postfix_str(f"epoch {epoch}, loss {running:.3f}, lr {lr:.1e}, {pieces / seconds:,.0f} pieces/s")
            bar.update()
        if run.end_of_epoch(epoch, step, running) and not settings.max_steps:
            break
        timer = time.perf_counter()
    bar.close()

    run.restore_best()
    after, after_tables = run.evaluate(run.scored)
    speed = {"seconds": seconds, "pieces": pieces, "pieces_per_second": pieces / seconds, "steps": step}
    weights.write_json(output / "metrics.json", {"before": before, **after, "train": speed})
    summarise(run, before, before_tables, after, after_tables, speed)
    return output


def finite(x: float) -> float | None:
    """x, or None for what JSON has no number for: an fp16 update that overflowed and was skipped."""
    return x if math.isfinite(x) else None


class Run:
    """What the loop keeps: the run folder, the best score so far, how to evaluate."""

    def __init__(self, output: Path, task: Task, splits: dict[str, list[Any]], features: dict[str, list[Feature]],
                 model: Model, settings: TrainConfig):
        self.output, self.task, self.splits, self.features = output, task, splits, features
        self.model, self.settings = model, settings
        wanted = {"all": ("dev", "test"), "dev": ("dev",), "none": ()}[settings.evaluate]
        self.scored = [s for s in wanted if s in splits]
        self.best: float | None = None
        self.best_epoch = self.saved_epoch = 0

    def log(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        with open(self.output / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")

    def evaluate(self, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """({split: scores}, {split: text tables}) of the named splits."""
        scores, tables = {}, {}
        for split in names:
            examples = self.splits[split]
            guess = predict_examples(self.model, self.task, examples, self.features[split], self.settings.precision)
            scores[split], tables[split] = self.task.score(guess, examples), self.task.report(guess, examples)
        return scores, tables

    def end_of_epoch(self, epoch: int, step: int, loss: float) -> bool:
        """Score dev, save if it is the best so far (or dev is not scored); -> whether patience is at its end."""
        key, direction = self.task.best
        better = True
        if "dev" in self.scored:
            scores = self.evaluate(["dev"])[0]["dev"]
            self.log({"step": step, "epoch": epoch, "split": "dev", **scores})
            value = at(scores, key)
            better = self.best is None or (value > self.best if direction == "max" else value < self.best)
            tqdm.write(f"epoch {epoch}: loss {loss:.4f}, dev {key} {value:.4f}{' (best so far)' if better else ''}")
            self.best = value if better else self.best
        else:
            tqdm.write(f"epoch {epoch}: loss {loss:.4f}")
        if better:
            self.best_epoch = self.saved_epoch = epoch
            self.save()
        self.epoch = epoch
        return bool(self.settings.patience) and epoch - self.best_epoch >= self.settings.patience

    def save(self) -> None:
        """The model as it is now, under the published names."""
        labels = dict(enumerate(self.task.labels))
        weights.save(self.output, self.model.bert, self.model.head, {
            "architectures": [self.task.architecture], "problem_type": self.task.problem_type,
            "id2label": {str(i): label for i, label in labels.items()},
            "label2id": {label: i for i, label in labels.items()}})

    def restore_best(self) -> None:
        """Go back to the weights of the best epoch, which are on the disk."""
        if self.saved_epoch != self.epoch:
            weights.load_into(self.output, self.model)


def claim_folder(settings: TrainConfig) -> Path:
    """The run folder, made here and empty; raises MinibertError where the named one holds something."""
    if settings.output is not None:
        output = Path(settings.output)
        if output.is_dir() and any(output.iterdir()) or output.is_file():
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


def summarise(run: Run, before: dict, before_tables: dict[str, str], after: dict, after_tables: dict[str, str],
              speed: dict[str, float]) -> None:
    """What was trained, before -> after, where it is, what to type next."""
    for split in after:
        columns = [("before fine-tuning", before_tables[split])] if split in before else []
        print(f"\n{split}\n" + side_by_side(*columns, ("after fine-tuning", after_tables[split])))
    s = run.settings
    print(f"\ntrained: {s.task} on {s.data or 'data/' + s.task} from {s.weights}, {speed['steps']:,} updates, "
          f"{speed['pieces']:,} pieces in {speed['seconds']:.0f} s ({speed['pieces_per_second']:,.0f} pieces/s)")
    key = run.task.best[0]
    for split, scores in after.items():
        was = f"{at(before[split], key):.3f} -> " if split in before else ""
        print(f"{split} {key}: {was}{at(scores, key):.3f}")
    print(f"run folder: {run.output}\nnext: python -m minibert predict {run.output} "
          '"Angela Merkel met Tim Cook in Paris."')


def side_by_side(*columns: tuple[str, str]) -> str:
    """Titled blocks of text, next to each other."""
    blocks = [[title, *text.splitlines()] for title, text in columns]
    widths = [max(map(len, b)) for b in blocks]
    height = max(map(len, blocks))
    rows = zip(*(b + [""] * (height - len(b)) for b in blocks), strict=True)
    return "\n".join("   |   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, 2 for something the user can mend (one line says what), 130 for Ctrl-C."""
    try:
        train(sys.argv[1:] if argv is None else argv)
    except MinibertError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the best model so far, if an epoch was finished, is in the run folder", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    sys.exit(main())
