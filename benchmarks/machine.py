"""What the machine can do: matrix products in both number formats and copies, alone, without any model."""
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from minibert.engines.fast.linear import Convolution

SECONDS = 0.4                                      # spent on each measurement, at least
SQUARE = 2048
PIECES = 600                                       # of a batch: about 32 sentences of news
GEOMETRIES = {"minilm-l6": (384, 1536), "bert-base": (768, 3072)}             # H, F
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
COPIED = 2 ** 26                                   # float32 numbers, far more than any cache holds


class Machine:
    """A contender that is no library: its rates are the limit of all others."""

    def facts(self) -> dict[str, Any]:
        """Nothing was read."""
        return {}

    @torch.inference_mode()
    def rates(self) -> dict[str, Any]:
        """{"gflops": {format: {shape: rate}}, "copy_gb": GB/s, read and written bytes both counted}."""
        gflops: dict[str, dict[str, float]] = {}
        for name, dtype in FORMATS.items():
            gflops[name] = {"square 2048": rate([(SQUARE, SQUARE, SQUARE)], dtype)}
            for geometry, (H, F_) in GEOMETRIES.items():
                gflops[name][geometry] = rate(block_shapes(H, F_), dtype)
        a, b = torch.ones(COPIED), torch.empty(COPIED)
        return {"gflops": gflops, "copy_gb": 2 * a.nbytes / seconds(lambda: b.copy_(a)) / 1e9}


def block_shapes(H: int, F_: int) -> list[tuple[int, int, int]]:
    """(pieces, in, out) of the six matrix products of a block: query, key, value, output, feed-forward in and out."""
    return [(PIECES, H, H)] * 4 + [(PIECES, H, F_), (PIECES, F_, H)]


def rate(shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> float:
    """GFLOP/s of x [m,k] · wᵀ [k,n] over `shapes` (m, k, n), 2·m·k·n each; inputs are in `dtype` already.

    Torch has two libraries that can be asked for a product (see minibert/engines/fast/linear.py); the faster counts.
    """
    def fastest(m: int, k: int, n: int) -> float:
        x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
        convolution = Convolution(w, torch.zeros(n, dtype=dtype))
        return min(seconds(lambda: F.linear(x, w)), seconds(lambda: convolution(x)))

    took = sum(shapes.count(s) * fastest(*s) for s in dict.fromkeys(shapes))
    return sum(2 * m * k * n for m, k, n in shapes) / took / 1e9


def seconds(work: Callable[[], Any]) -> float:
    """The shortest of the calls that fit into SECONDS, after one that does not count."""
    work()
    times: list[float] = []
    while sum(times) < SECONDS:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)
