"""What each fast piece is worth: the default update beside the same update without that piece, in turn.

    python benchmarks/without.py --data DIR [--rounds 40] [--precision bf16]

One process, one batch a round, every variant in every round, every other round in reverse order. The ratio of a round
is the time without the piece over the time with all of them: 1.10 says that an update would take 10 % longer. Median
and quartiles over the rounds. All variants train models of their own, and the first rounds warm up.
"""
import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import train  # noqa: E402 (train.py is a script beside the package)
from minibert import byhand, fast, ops, optim  # noqa: E402
from minibert.batching import epoch_batches  # noqa: E402
from minibert.precision import DropoutMasks  # noqa: E402

WARM_UP = 4


def whole_product(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """fast.product() in one call, whatever its shape."""
    return x @ w if b is None else torch.addmm(b, x, w)


def masks_of_16_bits(self: DropoutMasks, site: int, shape: Any, p: float, like: torch.Tensor) -> torch.Tensor:
    """DropoutMasks with 16 random bits for every number, and a cast of booleans."""
    threshold = min(round(p * 2 ** 16), 2 ** 16 - 1)
    key, counter = [self.seed, self.process], [0, site, self.micro_batch, self.update]
    philox = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    count = int(np.prod(shape))
    lanes = philox.random_raw(-(-count // 4)).view(np.int16)[:count]
    kept = torch.from_numpy(lanes >= threshold - 2 ** 15).view(shape)
    return kept.to(like.dtype) * (2 ** 16 / (2 ** 16 - threshold))


def dense_word_gradient(w: torch.Tensor, dout: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """[V,H] with all its zeros."""
    return fast.aten.embedding_dense_backward(dout, ids, len(w), -1, False)


def readable_norm(m: torch.nn.LayerNorm, x: torch.Tensor) -> tuple[torch.Tensor, Any, Any]:
    """LayerNorm by its formulas; the cache stands in the place of the mean."""
    out, cache = ops.layernorm_forward(ops.at_least_fp32(x), m.weight, m.bias, m.eps)
    return out.to(x.dtype), cache, None


def readable_norm_backward(m: torch.nn.LayerNorm, dout: torch.Tensor, x: torch.Tensor, cache: Any, _: None,
                           gradients: byhand.Gradients) -> torch.Tensor:
    """Its backward by formulas."""
    dx, dw, db = ops.layernorm_backward(ops.at_least_fp32(dout), cache)
    gradients.add((m.weight, dw), (m.bias, db))
    return dx.to(dout.dtype)


VARIANTS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "all pieces": contextlib.nullcontext,
    "products of long rows in two halves": lambda: mock.patch.object(fast, "product", whole_product),
    "masks from one byte a number": lambda: mock.patch.object(DropoutMasks, "__call__", masks_of_16_bits),
    "the word vectors' gradient on their rows": lambda: mock.patch.object(fast, "word_gradient", dense_word_gradient),
    "LayerNorm in one kernel": lambda: mock.patch.multiple(fast, norm_forward=readable_norm,
                                                           norm_backward=readable_norm_backward),
    "AdamW in one kernel": contextlib.nullcontext,             # an optimizer of its own, see prepare()
    "all of them: autograd instead": contextlib.nullcontext,   # likewise
}


def prepare(name: str, number: int, data: list[str], precision: str, folder: str) -> train.Run:
    """A run about to begin."""
    engine = "autograd" if name.startswith("all of them") else "fast"
    run = train.Run([*data, "--precision", precision, "--gradients", engine, "--no-before", "--evaluate", "none",
                     "--output", f"{folder}/{number}"])
    if name.startswith("AdamW"):
        run.optimizer = optim.AdamW(run.optimizer.groups, run.settings.learning_rate)
    return run


def update(run: train.Run, numbers: np.ndarray, step: int) -> float:
    """Seconds of one update, its batch made within."""
    begin = time.perf_counter()
    batches = train.micro_batches(run.features["train"], numbers, run.task, run.settings, run.tokenizer.pad, "cpu")
    with torch.set_grad_enabled(run.settings.gradients == "autograd"):
        train.one_update(run.model, run.task, batches, run.optimizer, run.scaler, run.settings, step, 1e-5)
    return time.perf_counter() - begin


def in_turn(runs: dict[str, train.Run], rounds: int) -> Iterator[dict[str, float]]:
    """{variant: seconds} of each round after the warm-up."""
    run = next(iter(runs.values()))
    batches = epoch_batches(run.lengths, run.settings.batch_size, run.settings.seed, 1)
    for step in range(1, rounds + WARM_UP + 1):
        seconds = {}
        for name in runs if step % 2 else reversed(runs):
            with VARIANTS[name]():
                seconds[name] = update(runs[name], batches[step % len(batches)], step)
        if step > WARM_UP:
            yield seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--precision", default="bf16")
    args = parser.parse_args()
    data = ["--data", args.data] if args.data else []
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: prepare(name, i, data, args.precision, folder) for i, name in enumerate(VARIANTS)}
        rounds = list(in_turn(runs, args.rounds))
    print(f"{args.precision}: {statistics.median(r['all pieces'] for r in rounds) * 1000:.0f} ms an update")
    for name in list(VARIANTS)[1:]:
        low, middle, high = statistics.quantiles([r[name] / r["all pieces"] for r in rounds], n=4)
        print(f"  without {name:42} {middle:.2f}  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
