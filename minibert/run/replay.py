"""An update that went wrong: written down where it happened, and done again with every tensor looked at.

    python train.py --replay RUN/broken-update-14/update.json
"""
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from minibert.core.batch import Batch, Feature, collate
from minibert.core.byhand import reached_gradients
from minibert.core.dropout import DropoutMasks
from minibert.core.precision import autocast
from minibert.data.features import record_from_json, record_to_json
from minibert.errors import MinibertError
from minibert.files import Json, read_json, write_json
from minibert.run.terminal import say
from minibert.use.predict import FineTuned, load

ARRAYS = ("ids", "types", "picks", "labels")


def broken_weight(model: nn.Module) -> str:
    """The first parameter that holds numbers that are not finite; "" where all are."""
    return next((name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())), "")


def as_parts(batches: Sequence[Batch], process: int) -> list[Json]:
    """The micro-batches of one process in a form that JSON knows: their numbers and their rows."""
    return [{"process": process, "number": i, "rows": [
        {"example": f.example, **{name: vars(f)[name].tolist() for name in ARRAYS}, "about": record_to_json(f.about)}
        for f in b.features]}
        for i, b in enumerate(batches)]


def write_update(file: Path, step: int, parts: list[Json], settings: Json, said: str) -> None:
    """One update as JSON: the micro-batches of all processes and the settings. The weights before it lie beside it."""
    write_json(file, {"update": step, "said": said, "settings": settings, "micro_batches": parts})


def read_update(file: Path) -> Json:
    """What write_update() wrote. Raises MinibertError for anything else."""
    update = read_json(file, largest=2 ** 31)      # a large batch is a large file
    try:
        for part in update["micro_batches"]:
            part["rows"] = [Feature(int(row["example"]), **{name: np.array(row[name], np.int64) for name in ARRAYS},
                                    about=row["about"]) for row in part["rows"]]
            int(part["process"]), int(part["number"])
        update["settings"]["precision"], update["update"], update["said"]      # asked for below
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise MinibertError(f"{file}: not an update that training wrote ({type(e).__name__}: {e})") from None
    return update


def replay_command_line(words: list[str]) -> None:
    """--replay FILE or --replay=FILE, which stands alone: print what replay() says."""
    given = [words[0].partition("=")[2], *words[1:]] if "=" in words[0] else words[1:]
    if len(given) != 1:
        raise MinibertError(f"--replay takes one file, such as RUN/broken-update-14/update.json, and nothing else; "
                            f"there are {len(given)} words after it")
    for line in replay(Path(given[0])):
        say(line)


def replay(file: Path) -> list[str]:
    """Do the update in `file` again, from the weights before it; -> lines that say where numbers stop being finite.

    Raises MinibertError for a file that does not fit its run.
    """
    update = read_update(file)
    if not (file.parent / "model.safetensors").is_file():
        raise MinibertError(f"{file}: the weights before this update are not beside it: they could not be written, or "
                            "held numbers that are not finite; look at the updates before it in metrics.jsonl")
    try:
        return list(once_more(update, file.resolve().parent))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise MinibertError(f"{file}: does not fit the model beside it ({type(e).__name__}: {e})") from None


def once_more(update: Json, folder: Path) -> Iterator[str]:
    """The lines of replay()."""
    run = folder.parent
    model, settings, step = load(run, folder), update["settings"], update["update"]
    yield f"{run.name}, {update['said']}"
    if settings.get("adversarial", 0) > 0:
        yield (f"the run had --adversarial {settings['adversarial']}: the half of the update with the word vectors a "
               "step uphill is not repeated")
    for part in update["micro_batches"]:
        kind = model.task.RowAbout or model.task.About
        features = [dataclasses.replace(f, about=record_from_json(kind, f.about)) for f in part["rows"]]
        masks = DropoutMasks(settings["seed"], step, part["number"], part["process"])
        batch = collate(features, settings["layout"], model.tokenizer.pad, model.task.layout(features))
        if len(update["micro_batches"]) > 1 and model.task.coupled:
            yield f"micro-batch {part['number']}: its loss reads the rows of all others; it is not repeated by itself"
            continue
        where, losses = forward(model, batch, masks, settings["precision"])
        yield (f"process {part['process']}, micro-batch {part['number']}, {len(features)} rows, {batch.pieces} pieces: "
               f"loss {losses}; "
               + (f"first not finite: {where}" if where else "every tensor of the forward is finite"))
        yield from gradients(model, batch, masks)
        if not model.task.coupled:
            yield from rows(model, features, settings)


@torch.no_grad()
def forward(model: FineTuned, batch: Batch, masks: DropoutMasks | None, precision: str) -> tuple[str, dict[str, float]]:
    """(the first module whose output is not finite, "" for none; {term: sum of losses})."""
    seen: list[str] = []

    def look(name: str, out: object) -> None:
        if not isinstance(out, Tensor):
            return
        whole = torch.isfinite(out)
        if name == "head":
            whole |= torch.isneginf(out)           # how a head says that something is no answer
        if bad := int((~whole).sum()):
            seen.append(f"{name}, {bad:,} of {out.numel():,} numbers")

    hooks = [m.register_forward_hook(lambda m, x, out, name=name: look(name, out)) for name, m in model.named_modules()
             if name]
    try:
        with autocast(precision, batch.ids.device):
            scores = model(batch, masks)
    finally:
        for hook in hooks:
            hook.remove()
    return (seen or [""])[0], {term: float(x) for term, x in model.task.loss(scores.float(), batch).items()}


def gradients(model: FineTuned, batch: Batch, masks: DropoutMasks) -> Iterator[str]:
    """A line for the gradients that are not finite by the formulas of ops.py in fp32, where there are some."""
    counts = model.task.counts(batch)
    factors = {term: 1.0 / (count or 1.0) for term, count in counts.items()}
    with torch.no_grad():
        _, found = reached_gradients(model, batch, masks, model.task, factors)
    bad = [name for name, dw in found.items() if not bool(torch.isfinite(dw).all())]
    if bad:
        yield f"  gradients that are not finite in fp32: {', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}"


def rows(model: FineTuned, features: Sequence[Feature], settings: Json) -> Iterator[str]:
    """A line for each row whose loss by itself, without dropout, is not finite."""
    for f in features:
        batch = collate([f], settings["layout"], model.tokenizer.pad, model.task.layout([f]))
        where, losses = forward(model, batch, None, settings["precision"])
        if not all(np.isfinite(x) for x in losses.values()):
            text = model.tokenizer.backend.decode(f.ids.tolist(), skip_special_tokens=True)
            yield f"  example {f.example} of train alone: loss {losses}, {where or 'finite scores'}: {text[:100]!r}"
