"""What a run begins with: a device, a folder of weights, the published encoder with a head for the task."""
import dataclasses
from pathlib import Path

import torch
from torch import nn

from minibert.adapt.freeze import freeze
from minibert.adapt.grow import grow_types, set_words
from minibert.checkpoints import hub, weights
from minibert.checkpoints.labels import holds_head_of
from minibert.core.model import Bert, Model, initialise
from minibert.core.precision import resolve_precision
from minibert.data.tokenizer import CASE_SHAPES, Tokenizer
from minibert.errors import MinibertError
from minibert.run.terminal import say
from minibert.settings import TrainConfig
from minibert.tasks.base import Task

FEW, MANY = 100, 8                                 # updates an epoch below which so many epochs do better: docs/ner.md


def resolve_device(wanted: str) -> torch.device:
    """"auto" -> CUDA where there is one. Raises MinibertError for a CUDA device that is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MinibertError("--device is cuda; torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda" if wanted == "auto" and torch.cuda.is_available() else wanted.replace("auto", "cpu"))


def fetch_weights(name: str) -> Path:
    """The folder of a checkpoint; says what it is before fetching it."""
    if not hub.at_hand(name):
        say(f"fetching {hub.describe(name)}")
    return hub.fetch(name)


def suited(settings: TrainConfig, chosen: set[str], folder: Path, device: torch.device) -> TrainConfig:
    """The settings with what suits the checkpoint and the device, where nothing else was `chosen`."""
    entry = hub.recommended(folder)
    if entry and "learning_rate" not in chosen:
        settings = dataclasses.replace(settings, learning_rate=entry.learning_rate)
    return dataclasses.replace(settings, precision=resolve_precision(settings.precision, device))


def suited_epochs(settings: TrainConfig, chosen: set[str], rows: int) -> TrainConfig:
    """The same with the epochs that suit so many rows of training, where no others were `chosen`."""
    few = "epochs" not in chosen and -(-rows // settings.batch_size) < FEW
    return dataclasses.replace(settings, epochs=MANY) if few else settings


def start_model(folder: Path, task: Task, settings: TrainConfig) -> tuple[Model, Tokenizer, weights.Report]:
    """The published encoder with a head for the task; what was loaded, what is new. Raises MinibertError."""
    head = task.head(weights.read_fitting_config(folder, settings.dropout))
    new_head = not task.head_parts and not holds_head_of(folder, task)
    bert, report = weights.load(folder, head, new_head=new_head, dropout=settings.dropout, parts=task.head_parts)
    refuse_misfit(bert, folder, settings)
    tokenizer = weights.read_tokenizer(folder, bert)
    first = tokenizer.size                         # the number of the first new piece
    tokenizer.add(task.new_pieces)

    new_pooler = draw_new(bert, head, tokenizer, first, report, settings.seed)
    if wants_case_shapes(bert, tokenizer, settings):
        grow_types(bert, CASE_SHAPES)
        tokenizer.case_shapes = True
        report.grown.append(f"grown: token types to {bert.config.type_vocab_size}, a copy of each for the case shapes "
                            f"{', '.join(CASE_SHAPES)}")

    model = freeze(Model(bert, head), settings.freeze)
    if new_pooler and bert.pooler is not None:
        bert.pooler.requires_grad_(True)           # what is new belongs to the head
    return model, tokenizer, report


def refuse_misfit(bert: Bert, folder: Path, settings: TrainConfig) -> None:
    """Raise MinibertError for settings that this checkpoint cannot have."""
    if settings.max_pieces > bert.config.max_position_embeddings:
        raise MinibertError(f"--max-pieces is {settings.max_pieces}; the checkpoint has "
                            f"{bert.config.max_position_embeddings} positions")
    if settings.case_shapes == "off" and bert.config.case_shapes:
        raise MinibertError(f"--case-shapes is off; {folder} was trained with them; start from published weights")


def wants_case_shapes(bert: Bert, tokenizer: Tokenizer, settings: TrainConfig) -> bool:
    """Whether token types are to grow by case shapes that the checkpoint does not have yet."""
    auto = settings.case_shapes == "auto" and tokenizer.uncased and settings.freeze == "none"
    return not bert.config.case_shapes and (settings.case_shapes == "on" or auto)


def draw_new(bert: Bert, head: nn.Module, tokenizer: Tokenizer, first: int, report: weights.Report, seed: int) -> bool:
    """Draw all that no file had, head, pooler and vectors of pieces from number `first` on, from one generator in this
    order; -> a new pooler?
    """
    new_pooler = any(name.startswith("pooler.") for name in report.new)
    rows = nn.Embedding(tokenizer.size - first, bert.config.hidden_size)
    new = [module for name, module in head.named_modules()
           if {f"{name}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False)} & set(report.new)]
    pooler = [bert.pooler] if new_pooler and bert.pooler is not None else []
    initialise(nn.ModuleList([*new, *pooler, rows]), bert.config.initializer_range, seed)

    if len(rows.weight):
        pieces = [str(tokenizer.backend.id_to_token(i)) for i in range(first, tokenizer.size)]
        spare = set_words(bert, first, rows.weight)
        if spare:
            report.grown.append(f"drawn anew: word vectors that no piece had, for {' '.join(pieces[:spare])}")
        if pieces[spare:]:
            report.grown.append(f"grown: word vectors to {bert.config.vocab_size:,}, for {' '.join(pieces[spare:])}")
    return new_pooler
