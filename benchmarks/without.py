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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from loop import Loop  # noqa: E402 (imports this checkout's train.py)

import train  # noqa: E402 (train.py is a script beside the package)
from minibert.core import ops, optim  # noqa: E402
from minibert.core.dropout import DropoutMasks  # noqa: E402
from minibert.core.kit import Collector  # noqa: E402
from minibert.engines import ENGINES  # noqa: E402
from minibert.engines.fast import engine, kernels  # noqa: E402
from minibert.engines.fast.adamw import FusedAdamW  # noqa: E402
from minibert.engines.fast.linear import Linear  # noqa: E402
from minibert.run.training import Training  # noqa: E402

WARM_UP = 4


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
    return kernels.aten.embedding_dense_backward(dout, ids, len(w), -1, False)


def readable_norm(m: torch.nn.LayerNorm, x: torch.Tensor) -> tuple[torch.Tensor, Any, Any]:
    """LayerNorm by its formulas; the cache stands in the place of the mean."""
    out, cache = ops.layernorm_forward(ops.at_least_fp32(x), m.weight, m.bias, m.eps)
    return out.to(x.dtype), cache, None


def readable_norm_backward(m: torch.nn.LayerNorm, dout: torch.Tensor, x: torch.Tensor, cache: Any, _: None,
                           gradients: Collector) -> torch.Tensor:
    """Its backward by formulas."""
    dx, dw, db = ops.layernorm_backward(ops.at_least_fp32(dout), cache)
    gradients.add((m.weight, dw), (m.bias, db))
    return dx.to(dout.dtype)


class Variant(NamedTuple):
    """How an update goes without a piece: what is patched meanwhile, the engine, the optimizer's rule."""
    patched: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    engine: str = "fast"
    rule: type[optim.AdamW] = FusedAdamW


def patched(module: Any, name: str, other: Any) -> Variant:
    """One name of a module replaced."""
    return Variant(lambda: mock.patch.object(module, name, other))


VARIANTS = {
    "all pieces": Variant(),
    "products as convolutions": patched(kernels, "linear_kind", lambda *asked: Linear),
    "the last block on the pieces read": patched(engine, "rows_read", lambda batch, wide: (None, batch)),
    "masks ahead, in threads": patched(engine, "MasksAhead", lambda masks, *rest: masks),
    "masks from one byte a number": patched(DropoutMasks, "__call__", masks_of_16_bits),
    "the word vectors' gradient on their rows": patched(kernels, "word_gradient", dense_word_gradient),
    "LayerNorm in one kernel": Variant(lambda: mock.patch.multiple(kernels, norm_forward=readable_norm,
                                                                   norm_backward=readable_norm_backward)),
    "matrices' gradients in bf16 until AdamW": patched(engine, "SHORT", None),
    "AdamW in one kernel": Variant(rule=optim.AdamW),
    "all of them: autograd instead": Variant(engine="autograd", rule=optim.AdamW),
}


class Arm:
    """One variant of the one run: the same model, the same m and s, an optimizer and an engine of its own."""

    def __init__(self, t: Training, variant: Variant):
        self.variant = variant
        optimizer = variant.rule(t.optimizer.groups, t.settings.learning_rate)
        optimizer.state = t.optimizer.state
        with variant.patched():                    # an engine chooses its products when it is made
            made = ENGINES[variant.engine](t.model, t.settings.precision)
        self.loop = Loop(dataclasses.replace(t, engine=made, optimizer=optimizer))

    def update(self, numbers: np.ndarray) -> float:
        """Seconds of one update, its batch made within."""
        with self.variant.patched():
            begin = time.perf_counter()
            self.loop.update(self.loop.batches(numbers))
            return time.perf_counter() - begin


def in_turn(t: Training, rounds: int) -> Iterator[dict[str, float]]:
    """{variant: seconds} of each round after the warm-up."""
    arms = {name: Arm(t, variant) for name, variant in VARIANTS.items()}
    order, shuffle = Loop(t).order(1), random.Random(0)
    for i in range(1, rounds + WARM_UP + 1):
        seconds = {name: arms[name].update(order[i % len(order)]) for name in shuffle.sample(list(arms), len(arms))}
        if i > WARM_UP:
            yield seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--precision", default="bf16")
    args = parser.parse_args()
    data = ["--data", args.data] if args.data else []
    t = train.set_up([*data, "--precision", args.precision, "--device", "cpu", "--max-steps", "100000"])
    rounds = list(in_turn(t, args.rounds))
    print(f"{args.precision}: {statistics.median(r['all pieces'] for r in rounds) * 1000:.0f} ms an update")
    for name in list(VARIANTS)[1:]:
        low, middle, high = statistics.quantiles([r[name] / r["all pieces"] for r in rounds], n=4)
        print(f"  without {name:42} {middle:.2f}  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
