"""Fine-tune BERT: settings, data, model, optimizer, engine, epochs, updates, evaluation. Read it from top to bottom.

    python train.py --task ner                          # gradients on torch's fused kernels
    python train.py --task ner --gradients by-hand      # the learner's command: every operation is its formula

Block by block both run minibert/core/byhand.py, so its labelled lines ([BLK-1], [BLK-2]) are what runs; by default
the walk over the blocks, and the last of them on the rows that the head reads, are minibert/engines/fast/engine.py's.
Labelled lines of core/ops.py run in the head and the loss always, in the blocks with --gradients by-hand; by default
fused kernels of torch, proved equal to them, stand in there (minibert/engines/fast/kernels.py). --gradients autograd
runs core/model.py and leaves the gradient to torch.
"""
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from minibert.core import coupled
from minibert.core.adversarial import AddGradient, derivation
from minibert.core.batch import Batch, Feature, collate
from minibert.core.dropout import DropoutMasks
from minibert.core.model import Model
from minibert.core.objective import Loss
from minibert.core.optim import SGD, Optimizer, decay_groups, lr_at
from minibert.core.precision import LossScaler, refuse_not_finite
from minibert.data.order import epoch_batches, row_generator
from minibert.engines import ENGINES, Engine
from minibert.errors import MinibertError
from minibert.options import INSTALLED
from minibert.run.processes import ALONE, Processes, SharedScorer, join
from minibert.run.progress import Plan, chosen_by
from minibert.run.replay import replay_command_line
from minibert.run.run import Run, refuse_lonely_rows
from minibert.run.start import fetch_weights, resolve_device, start_model, suited, suited_epochs
from minibert.run.stopping import nothing_begun
from minibert.run.terminal import TRAINING, exit_code
from minibert.run.training import Training
from minibert.settings import TrainConfig, resolve
from minibert.tasks import TASKS
from minibert.tasks.base import Task
from minibert.use.divide import divide
from minibert.use.evaluate import Evaluation, evaluate_split
from minibert.use.prepare import Splits, encode_splits, read_splits

HERE = Path(__file__).resolve().parent
DATA = None if INSTALLED else Path(os.path.relpath(HERE / "data"))            # small sets written for this project
DESCRIPTION = "Fine-tune a BERT encoder on your data for one of several tasks, and score it."


@torch.no_grad()                                   # torch derives nothing unless the engine says so
def train(argv: list[str]) -> Path:
    """One run, from the command line's words to the run folder it returns; raises Stopped if it was asked to stop."""
    with nothing_begun("give the same command again"):
        t = set_up(argv)
    settings, features = t.settings, t.features["train"]
    derive = derivation(t.model, settings.adversarial, t.processes.first)

    def evaluate(split: str) -> Evaluation:
        score = SharedScorer(t.model, t.task, settings.precision, t.processes)
        return evaluate_split(score, t.examples[split], t.features[split])

    # The run owns what outlives a process: folder, lock, log, checkpoints, signals, clock, words.
    with Run(t, evaluate) as run:
        run.score_before()

        for epoch in run.epochs_left():
            order = epoch_batches(features.lengths, settings.batch_size, settings.seed, epoch)

            for numbers in run.batches_left(order):
                step = run.at.step + 1
                batches = micro_batches(features, t.processes.share(numbers), t.task, settings, t.tokenizer.pad,
                                        t.device, epoch)
                gradient = partial(accumulate, t.engine, t.task, batches, settings.seed, step, t.processes)
                rate = lr_at(step, t.plan.total, t.plan.warmup, settings.learning_rate)

                with run.watch(batches):
                    loss, norm = one_update(partial(derive, gradient), t.optimizer, t.scaler, rate, settings.clip)
                run.after_update(loss, norm, rate, batches)                   # log, bar, a checkpoint if one is due

            run.after_epoch(epoch)                                            # dev, the best model, patience
        return run.finish()


def set_up(argv: list[str]) -> Training:
    """Everything before the first update: settings, data, model, optimizer, engine. Raises MinibertError."""
    # Settings: command line > --config > the task's defaults > what suits the checkpoint > defaults.
    settings, options, chosen = resolve(argv, TASKS, DATA, DESCRIPTION)
    task, device = TASKS[settings.task](options), resolve_device(settings.device)
    processes = join(device.type)
    chosen_by(task, settings.best)                 # refuses a score there is not before anything is read
    refuse_lonely_rows(task.coupled, settings, processes)

    # Data and model: the task learns its labels from the data, its head has a score for each.
    examples = read_data(task, settings)
    folder = fetch_weights(settings.weights)
    settings = suited(settings, chosen, folder, device)
    model, tokenizer, loaded = start_model(folder, task, settings)
    model.to(device)
    features = encode_splits(task, examples, tokenizer, settings.max_pieces, settings.overlap or 0)
    settings = suited_epochs(settings, chosen, len(features["train"]))

    # Engine and optimizer: who derives the gradient says in which form AdamW reads it.
    engine = ENGINES[settings.gradients](model, settings.precision)
    optimizer = build_optimizer(model, engine, settings)
    scaler = LossScaler(enabled=settings.precision == "fp16")
    plan = Plan.of(settings, task, len(features["train"]), examples)
    return Training(settings, options, task, processes, device, examples, features, model, tokenizer, loaded, engine,
                    optimizer, scaler, plan)


# ----------------------------------------------------------------------------------------------- what happens in it


def read_data(task: Task, settings: TrainConfig) -> Splits:
    """{"train", "dev", "test": examples}; the task has learnt its labels from train. Raises MinibertError."""
    folder = Path(str(settings.data))
    examples = divide(task, read_splits(task, folder, settings.cache), folder, settings.split, settings.stratify,
                      settings.seed)
    if "train" not in examples:
        raise MinibertError(f"{folder}: no training file; --data takes a folder with a train file, and dev and test, "
                            "or with --split one file")
    if settings.limit:
        examples = examples.limited(settings.limit)
    task.learn_labels(examples)
    return examples


def build_optimizer(model: Model, engine: Engine, settings: TrainConfig) -> Optimizer:
    """Over two groups of parameters: matrices are decayed, biases and LayerNorm are not."""
    groups = decay_groups(model, settings.weight_decay)
    if settings.optimizer == "sgd":
        return SGD(groups, settings.learning_rate, settings.momentum)
    return engine.adamw(groups, settings.learning_rate, (settings.beta1, settings.beta2), settings.epsilon,
                        bias_correction=settings.bias_correction)


def micro_batches(features: Sequence[Feature], numbers: np.ndarray, task: Task, settings: TrainConfig, pad: int,
                  device: torch.device, epoch: int = 1) -> list[Batch]:
    """One update's features in --accumulate parts of as nearly equal size as can be."""
    rows = task.rows([features[i] for i in numbers], lambda i: row_generator(settings.seed, epoch, int(numbers[i])))
    many = min(settings.accumulate, len(rows) or 1)                           # no part without a row
    cuts = [part for part in np.array_split(np.arange(len(rows)), many) if len(part)]
    parts = [rows[part[0]:part[-1] + 1] for part in cuts]
    return [collate(p, settings.layout, pad, task.layout(p), device) for p in parts]


def one_update(gradient: AddGradient, optimizer: Optimizer, scaler: LossScaler, rate: float, clip: float,
               ) -> tuple[float, float]:
    """One step of the optimizer -> (loss, gradient norm); gradient(scale) adds scale · gradient to every parameter's.

    Raises NotFinite before the weights are touched.
    """
    optimizer.zero_grad()
    loss = gradient(scaler.scale)

    # Unscale before clipping: the norm must be the true gradient's.
    finite = scaler.unscale(optimizer.params)
    norm = optimizer.clip(clip) if finite else math.inf
    refuse_not_finite(loss, norm, scaler)

    optimizer.set_learning_rate(rate)
    if finite:
        optimizer.step()
    scaler.update(finite)
    return loss, norm


def accumulate(engine: Engine, task: Task, batches: Sequence[Batch], seed: int, step: int, processes: Processes = ALONE,
               scale: float = 1.0) -> float:
    """Add the gradient of scale · objective to every parameter, one micro-batch at a time; -> the objective.

    The objective is Σ over terms of (sum of losses / count), both over all micro-batches of all processes: one mean
    over the labelled words of the whole update, however it is split.
    """
    masks = [DropoutMasks(seed, step, i, processes.rank) for i in range(len(batches))]
    criteria: Sequence[Loss] = [task] * len(batches)  # who says what each micro-batch loses
    if task.coupled and len(batches) > 1:
        criteria = coupled.known_losses(engine.model, task, batches, masks, engine.precision)

    # All counts first: the mean of the micro-batches' means would be another objective.
    counts: dict[str, float] = {}
    for batch in batches:
        for term, count in task.counts(batch).items():
            counts[term] = counts.get(term, 0.0) + count                      # [ACC-3]
    counts = processes.sum_counts(counts)
    factors = {term: scale / (count or 1.0) for term, count in counts.items()}  # [ACC-1] 0/1 for a term without labels

    # Each engine multiplies the gradient of its sums by `factors`; what is divided below is only reported.
    sums = [engine(criterion, batch, mask, factors)
            for criterion, batch, mask in zip(criteria, batches, masks, strict=True)]
    processes.sum_gradients(engine.model)

    # only now are numbers asked for: a GPU has had all its work by then
    mine = sum(float(part[term]) / (counts[term] or 1.0) for part in sums for term in part)  # [RISK-1]
    return processes.add(mine)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, 2 for something the user can mend (one line says what), 75 for a run that was asked to stop and is
    saved, 130 for a Ctrl-C that nothing was saved for.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    words = sys.argv[1:] if argv is None else argv
    if words and words[0].partition("=")[0] == "--replay":
        return exit_code(lambda: replay_command_line(words), TRAINING)
    return exit_code(lambda: train(words), TRAINING)


if __name__ == "__main__":
    sys.exit(main())
