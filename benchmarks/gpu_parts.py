"""What benchmarks/gpu.py asks for, in a process of its own: each part gives its figures, or says how it failed."""
import itertools
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from loop import Loop
from safetensors.torch import load_file, save_file

import train
from minibert.core.batch import Batch, Feature, collate
from minibert.core.layout import moved
from minibert.core.precision import LossScaler
from minibert.data.order import epoch_batches
from minibert.use import evaluate

LONG = 128                                         # pieces of a joined row, at most
SCORED = (64, 512)                                 # rows a batch of scores, for transformers: the faster counts
CELLS = (evaluate.CELLS, 16 * evaluate.CELLS)      # cells a batch of scores, for minibert
FLOOR = 1e-3                                       # of the whole gradient: smaller tensors are measured against this
TRACE = 6                                          # lines of a traceback that are kept


class Parts:
    """Parts by name. `spec`: device, data, weights {geometry: folder}, scratch, updates, seconds of a round."""

    def __init__(self, spec: dict[str, Any]):
        self.spec, self.device = spec, torch.device(spec["device"])

    def part(self, kind: str, **arguments: Any) -> dict[str, Any]:
        """The figures of one part; where it fails {"error", "trace", "broken": whether this process is of no more use}.
        """
        known: dict[str, Callable[..., dict[str, Any]]] = {
            "facts": self.facts, "reference": self.reference, "gradients": self.gradients, "scores": self.scores,
            "train": self.train, "score": self.score, "peer train": self.peer_train, "peer score": self.peer_score}
        try:
            return known[kind](**arguments)
        except Exception as e:                     # whatever it is, the other parts are worth having
            trace = [x for x in "".join(traceback.format_exception(e)).splitlines() if x.strip()]
            return {"error": " ".join(f"{type(e).__name__}: {e}".split())[:400], "trace": trace[-TRACE:],
                    "broken": not self.alive()}

    def alive(self) -> bool:
        """Whether the device still answers: after some errors CUDA does not, until the process ends."""
        try:
            return float(torch.ones(2, device=self.device).sum()) == 2.0
        except Exception:
            return False

    def facts(self) -> dict[str, Any]:
        """What it runs on."""
        found = {"torch": torch.__version__, "device": self.device.type, "threads": torch.get_num_threads(),
                 "gradients of another format": "grad_dtype" in dir(torch.nn.Parameter)}
        if self.device.type == "cuda":
            found |= {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda,
                      "capability": torch.cuda.get_device_capability(), "bf16": torch.cuda.is_bf16_supported()}
        return found

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def loop(self, geometry: str, *words: str, device: str | None = None) -> Loop:
        """A training that is about to begin."""
        return Loop(train.set_up(["--data", self.spec["data"], "--weights", self.spec["weights"][geometry], "--device",
                                  device or self.device.type, "--max-steps", str(self.spec["updates"]), *words]))

    # ------------------------------------------------------------------------------------- the same numbers as the CPU

    def reference(self, layout: str) -> dict[str, Any]:
        """All updates on the CPU in fp32 by autograd; keeps losses, norms, and of some updates weights and gradient."""
        loop, losses, norms, kept = self.loop("minilm-l6", *words("autograd", layout, "fp32"), device="cpu"), [], [], {}
        for step, batches in enumerate(self.updates(loop), 1):
            if step in self.looked_at:
                kept |= {f"{step} weight {name}": p.detach().clone() for name, p in loop.t.model.named_parameters()}
                loss, gradient, _ = gradient_of(loop, batches, step)
                kept |= {f"{step} gradient {name}": g for name, g in gradient.items()}
                kept[f"{step} loss"] = torch.tensor(loss, dtype=torch.float64)
            loss, norm, _ = loop.update(batches)
            losses.append(loss)
            norms.append(norm)
        kept |= {name: torch.tensor(x, dtype=torch.float64) for name, x in (("losses", losses), ("norms", norms))}
        save_file(kept, self.reference_file(layout))
        return {"losses": [losses[0], losses[-1]], "norms": [norms[0], norms[-1]]}

    def reference_file(self, layout: str) -> Path:
        """Where reference() keeps it."""
        return Path(self.spec["scratch"]) / f"reference-{layout}.safetensors"

    @property
    def looked_at(self) -> list[int]:
        """The updates whose gradients are compared: the first, one in the middle, the last."""
        return sorted({1, (self.spec["updates"] + 1) // 2, self.spec["updates"]})

    def updates(self, loop: Loop) -> Iterator[list[Batch]]:
        """The micro-batches of every update."""
        order = ((epoch, numbers) for epoch in itertools.count(1) for numbers in loop.order(epoch))
        for epoch, numbers in itertools.islice(order, self.spec["updates"]):
            yield loop.batches(numbers, epoch)

    def gradients(self, engine: str, layout: str, precision: str) -> dict[str, Any]:
        """All updates on the device beside reference(); then the gradients of some, each at the CPU's weights."""
        loop, known = self.loop("minilm-l6", *words(engine, layout, precision)), load_file(self.reference_file(layout))
        losses, norms, seen = [], [], {}
        for step, batches in enumerate(self.updates(loop), 1):
            if step in self.looked_at:
                seen[step] = batches
            loss, norm, _ = loop.update(batches)
            losses.append(loss)
            norms.append(norm)
        skipped, scale = loop.t.scaler.skipped, loop.t.scaler.scale

        compared = {}
        for step, batches in seen.items():
            with torch.no_grad():
                for name, p in loop.t.model.named_parameters():
                    p.copy_(known[f"{step} weight {name}"])
            loss, gradient, norm = gradient_of(loop, batches, step)
            wanted = {name: known[f"{step} gradient {name}"] for name in gradient}
            compared[step] = {"loss": loss - float(known[f"{step} loss"]), "norm": norm, **distance(gradient, wanted)}
        return {"gradient": max(c["all"] for c in compared.values()),
                "loss": relative(losses, known["losses"]), "loss of the first 5": relative(losses[:5], known["losses"]),
                "norm": relative(norms, known["norms"]), "losses": [losses[0], losses[-1]], "skipped": skipped,
                "scale": scale, "updates": compared}

    def scores(self, layout: str, precision: str) -> dict[str, Any]:
        """Scores of the test set before any training, beside the CPU's in fp32."""
        found = []
        for device, kind, form in (("cpu", "rectangle", "fp32"), (self.device.type, layout, precision)):
            t = self.loop("minilm-l6", *words("fast", kind, form), device=device).t
            rows = evaluate.score_features(t.model, t.task, t.features["test"], form, kind)
            found.append(np.concatenate(rows).astype(np.float64))
        a, b = found
        return {"largest difference": float(abs(a - b).max()), "sd of the scores": float(a.std()),
                "same label": float((a.argmax(-1) == b.argmax(-1)).mean()), "scores": a.size}

    # ------------------------------------------------------------------------------------------------------- how fast

    def train(self, geometry: str, rows: str, engine: str, layout: str, dropout: str | None = None) -> dict[str, Any]:
        """Pieces a second of updates in bf16."""
        more = [] if dropout is None else ["--dropout", dropout]
        loop = self.loop(geometry, *words(engine, layout, "bf16"), "--max-steps", "100000", *more)
        features = laid_out(loop.t.features["train"], rows)
        loop.t.features["train"] = features

        def update(numbers: np.ndarray) -> int:
            batches = loop.batches(numbers)
            loop.update(batches)
            return sum(b.pieces for b in batches)
        return self.rates(update, batches_of(features, loop.t.settings.batch_size))

    def score(self, geometry: str, rows: str, layout: str) -> dict[str, Any]:
        """Pieces a second of score_features in bf16, the larger batches beside those of evaluate.py."""
        t = self.loop(geometry, *words("fast", layout, "bf16")).t
        features = laid_out(t.features["test"], rows)

        def score(_: Any) -> int:
            evaluate.score_features(t.model, t.task, features, "bf16", layout)
            return sum(len(f.ids) for f in features)

        found = {}
        for cells in CELLS:
            with mock.patch.object(evaluate, "CELLS", cells):
                found[f"{cells} cells"] = self.rates(score, itertools.repeat(None))
        return {"rate": found[f"{CELLS[0]} cells"]["rate"], **found}

    def peer(self, geometry: str, dropout: str | None = None) -> tuple[Any, Any]:
        """(a token classifier of transformers of the same size, our training, whose rows it takes)."""
        import transformers as hf  # only here: everything else does without
        t = self.loop(geometry, *words("fast", "rectangle", "fp32"), device="cpu").t
        c = t.model.bert.config
        p = c.hidden_dropout_prob if dropout is None else float(dropout)
        config = hf.BertConfig(
            vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads, intermediate_size=c.intermediate_size, hidden_dropout_prob=p,
            attention_probs_dropout_prob=p, num_labels=len(t.task.labels))
        model = hf.AutoModelForTokenClassification.from_config(config, attn_implementation="sdpa")
        return model.to(self.device), t

    def padded(self, rows: Sequence[Feature]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What its forward takes, int64 [B,T] each; and labels [B,T], -100 for none."""
        batch = collate(rows)
        labels = torch.full_like(batch.ids, -100)
        labels[batch.picks] = batch.labels.masked_fill(batch.labels < 0, -100)
        inputs = {"input_ids": batch.ids, "attention_mask": batch.layout.live.long(), "labels": labels}
        found = {name: moved(x.view(batch.layout.shape), self.device) for name, x in inputs.items()}
        return found, found.pop("labels")

    def autocast(self) -> torch.autocast:
        """bf16, as both sides have it."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def peer_train(self, geometry: str, rows: str, dropout: str | None = None) -> dict[str, Any]:
        """Pieces a second of transformers: sdpa, autocast to bf16, fused AdamW, minibert's batches, nothing asked."""
        model, t = self.peer(geometry, dropout)
        model.train()
        features = laid_out(t.features["train"], rows)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)

        def update(numbers: np.ndarray) -> int:
            chosen = [features[i] for i in numbers]
            inputs, labels = self.padded(chosen)
            with self.autocast():
                loss = model(**inputs, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return sum(len(f.ids) for f in chosen)
        return self.rates(update, batches_of(features, t.settings.batch_size))

    def peer_score(self, geometry: str, rows: str) -> dict[str, Any]:
        """Pieces a second of its scores: sorted by length, in batches of few and of many rows, weights cast once."""
        model, t = self.peer(geometry)
        model.eval()
        features = sorted(laid_out(t.features["test"], rows), key=lambda f: -len(f.ids))

        @torch.inference_mode()
        def score(size: int) -> int:
            with self.autocast():
                for i in range(0, len(features), size):
                    model(**self.padded(features[i:i + size])[0]).logits.float().cpu().numpy()
            return sum(len(f.ids) for f in features)

        found = {f"{size} rows": self.rates(score, itertools.repeat(size)) for size in SCORED}
        return {"rate": max(f["rate"] for f in found.values()), **found}

    def rates(self, work: Callable[[Any], int], batches: Iterator[Any]) -> dict[str, Any]:
        """work(batch) -> pieces, over and over: their median rate over three rounds, after a round that warms up."""
        found, calls, cuda = [], 0, self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(4):
            begin, pieces = time.perf_counter(), 0
            while not pieces or time.perf_counter() - begin < self.spec["seconds"]:
                pieces += work(next(batches))
                calls += 1
            self.wait()
            found.append(pieces / (time.perf_counter() - begin))
        memory = {"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if cuda else {}
        return {"rate": statistics.median(found[1:]), "rates": found[1:], "calls": calls, **memory}


def words(engine: str, layout: str, precision: str) -> list[str]:
    """Arguments of train.py."""
    return ["--gradients", engine, "--layout", layout, "--precision", precision]


def gradient_of(loop: Loop, batches: list[Batch], step: int) -> tuple[float, dict[str, torch.Tensor], float]:
    """(loss, {name: gradient, dense float32 on the CPU}, its norm) of an update that is not made.

    In fp16 by the first loss scale at which it is finite.
    """
    t, scaler = loop.t, LossScaler(enabled=loop.t.scaler.enabled)
    while True:
        t.optimizer.zero_grad()
        loss = train.accumulate(t.engine, t.task, batches, t.settings.seed, step, scale=scaler.scale)
        if scaler.unscale(t.optimizer.params) or scaler.scale < 1:
            break
        scaler.update(False)
    norm = t.optimizer.clip(0.0)
    gradient = {name: p.grad.to_dense().float().cpu().clone() for name, p in t.model.named_parameters()
                if p.grad is not None}
    t.optimizer.zero_grad()
    return loss, gradient, norm


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The norm of the difference to that of what is wanted: over all, and of the tensor where it is largest."""
    size = {name: float(g.double().norm()) for name, g in wanted.items()}
    away = {name: float((found[name].double() - g.double()).norm()) for name, g in wanted.items()}
    whole = math.hypot(*size.values())
    each = {name: away[name] / max(size[name], FLOOR * whole) for name in size}
    worst = max(each, key=lambda name: math.inf if math.isnan(each[name]) else each[name])
    return {"all": math.hypot(*away.values()) / whole, "worst": each[worst], "worst tensor": worst}


def relative(found: Sequence[float], wanted: torch.Tensor) -> float | None:
    """The largest |difference| / wanted, of the updates that were not skipped."""
    pairs = [(a, b) for a, b in zip(found, wanted.tolist(), strict=False) if math.isfinite(a)]
    return max((abs(a - b) / abs(b) for a, b in pairs), default=None)


def laid_out(features: Sequence[Feature], rows: str) -> list[Feature]:
    """"sentences": a row each, as data/ner has them; "long": neighbours in one row, as long as it has LONG pieces."""
    if rows == "sentences":
        return list(features)
    result: list[Feature] = []
    for f in features:
        if result and len(result[-1].ids) + len(f.ids) - 2 <= LONG:
            r = result.pop()
            shift = len(r.ids) - 2                 # without its end and without the start of f
            f = Feature(r.example, *(np.concatenate(x) for x in (
                (r.ids[:-1], f.ids[1:]), (r.types[:-1], f.types[1:]), (r.picks, f.picks + shift),
                (r.labels, f.labels))))
        result.append(f)
    return result


def batches_of(features: Sequence[Feature], size: int) -> Iterator[np.ndarray]:
    """Numbers of rows, epoch after epoch."""
    lengths = [len(f.ids) for f in features]
    return (numbers for epoch in itertools.count(1) for numbers in epoch_batches(lengths, size, 0, epoch))
