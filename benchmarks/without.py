"""What each fast piece is worth: the default update beside the same update without that piece, in turn.

    python benchmarks/without.py --data DIR [--rounds 40] [--precision bf16]

One process, one model, one batch a round, every variant in every round, in an order that is drawn anew. The ratio of a
round is the time without the piece over the time with all of them: 1.10 says that an update would take 10 % longer.
Median and quartiles over the rounds; the first rounds warm up. (Models of their own would differ by some percent for
no reason but where their memory lies.)
"""
import argparse
import contextlib
import dataclasses
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import train  # noqa: E402 (train.py is a script beside the package)
from minibert.core import byhand, ops, optim  # noqa: E402
from minibert.core.dropout import DropoutMasks  # noqa: E402
from minibert.data.order import epoch_batches  # noqa: E402
from minibert.engines.fast import encoder as fast  # noqa: E402
from minibert.engines.fast import linear as products  # noqa: E402
from minibert.engines.fast.adamw import FusedAdamW  # noqa: E402

WARM_UP = 4


class AllRead(fast.Read):
    """As if the head read every piece."""

    def __init__(self, batch: Any):
        self.rows, self.batch = None, batch


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


class Variant(NamedTuple):
    """How an update goes without a piece: what is patched meanwhile, the engine, the optimizer's rule."""
    patched: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    engine: str = "fast"
    rule: type[optim.AdamW] = FusedAdamW


def patched(name: str, other: Any) -> Variant:
    """One name of fast.py replaced."""
    return Variant(lambda: mock.patch.object(fast, name, other))


VARIANTS = {
    "all pieces": Variant(),
    "products as convolutions": patched("linear_kind", lambda *asked: products.Linear),
    "the last block on the pieces read": patched("Read", AllRead),
    "masks ahead, in threads": patched("Ahead", lambda masks, *rest: masks),
    "masks from one byte a number": Variant(lambda: mock.patch.object(DropoutMasks, "__call__", masks_of_16_bits)),
    "the word vectors' gradient on their rows": patched("word_gradient", dense_word_gradient),
    "LayerNorm in one kernel": Variant(lambda: mock.patch.multiple(fast, norm_forward=readable_norm,
                                                                   norm_backward=readable_norm_backward)),
    "matrices' gradients in bf16 until AdamW": patched("SHORT", None),
    "AdamW in one kernel": Variant(rule=optim.AdamW),
    "all of them: autograd instead": Variant(engine="autograd", rule=optim.AdamW),
}


class Arm:
    """One variant of the one run: the same model, the same m and s, an optimizer and casts of its own."""

    def __init__(self, run: train.Run, variant: Variant):
        self.run, self.variant, self.kept = run, variant, fast.Kept()
        self.settings = dataclasses.replace(run.settings, gradients=variant.engine)
        self.optimizer = variant.rule(run.optimizer.groups, run.settings.learning_rate)
        self.optimizer.state = run.optimizer.state

    def update(self, numbers: np.ndarray, step: int) -> float:
        """Seconds of one update, its batch made within."""
        run = self.run
        run.model.__dict__["_kept"] = self.kept
        with self.variant.patched(), torch.set_grad_enabled(self.variant.engine == "autograd"):
            begin = time.perf_counter()
            batches = train.micro_batches(run.features["train"], numbers, run.task, run.settings, run.tokenizer.pad,
                                          "cpu")
            train.one_update(run.model, run.task, batches, self.optimizer, run.scaler, self.settings, step, 1e-5)
            return time.perf_counter() - begin


def in_turn(run: train.Run, rounds: int) -> Iterator[dict[str, float]]:
    """{variant: seconds} of each round after the warm-up."""
    arms = {name: Arm(run, variant) for name, variant in VARIANTS.items()}
    batches = epoch_batches(run.lengths, run.settings.batch_size, run.settings.seed, 1)
    shuffle = random.Random(0)
    for step in range(1, rounds + WARM_UP + 1):
        seconds = {name: arms[name].update(batches[step % len(batches)], step)
                   for name in shuffle.sample(list(arms), len(arms))}
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
        run = train.Run([*data, "--precision", args.precision, "--no-before", "--evaluate", "none", "--output",
                         f"{folder}/run"])
        rounds = list(in_turn(run, args.rounds))
    print(f"{args.precision}: {statistics.median(r['all pieces'] for r in rounds) * 1000:.0f} ms an update")
    for name in list(VARIANTS)[1:]:
        low, middle, high = statistics.quantiles([r[name] / r["all pieces"] for r in rounds], n=4)
        print(f"  without {name:42} {middle:.2f}  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
