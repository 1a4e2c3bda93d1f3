"""Dropout masks as a pure function of (seed, update, micro-batch, process, site)."""
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}      # bytes of a float -> whole numbers as wide


class Masks(Protocol):
    """Where dropout masks come from."""

    def __call__(self, site: int, shape: Iterable[int], p: float, like: Tensor) -> Tensor:
        """A mask of `shape` in the dtype and on the device of `like`: 0 with probability p, else 1/(1-p)."""


def draw(masks: Masks | None, site: int, shape: Iterable[int], p: float, like: Tensor) -> Tensor | None:
    """The mask of a site, in the dtype of `like`; None: no dropout."""
    return None if masks is None or p == 0 else masks(site, shape, p, like)


class DropoutMasks:
    """The dropout masks of one micro-batch: a pure function of (seed, update, micro-batch, process, site).

    Philox is a counter-based generator: output = f(key, counter), f being a bijection of the counter. The key is
    (seed, process), the counter (block, site, micro-batch, update), so two sites never share a number and nothing
    depends on what was drawn before (Salmon et al. 2011).
    """

    def __init__(self, seed: int, update: int, micro_batch: int = 0, process: int = 0):
        self.seed, self.update, self.micro_batch, self.process = seed, update, micro_batch, process

    def __call__(self, site: int, shape: Iterable[int], p: float, like: Tensor) -> Tensor:
        """A mask of `shape` in the dtype and on the device of `like`: 0 with probability p, else 1/(1-p).

        16 random bits decide each number, so p is rounded to a multiple of 2^-16 (0.1 becomes 0.1000061); survivors
        are scaled by the rounded p, so the expectation is exact up to the rounding of 1/(1-p) to the dtype of `like`
        (in bf16 1.1111 becomes 1.1094: 0.16 % low, as in torch).
        """
        shape = tuple(shape)
        threshold = min(round(p * 2 ** 16), 2 ** 16 - 1)                      # [DROP-5] p just below 1 is not 1
        key, counter = [self.seed, self.process], [0, site, self.micro_batch, self.update]
        philox = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
        kept = at_least(threshold, int(np.prod(shape)), philox)
        scale = torch.tensor(2 ** 16 / (2 ** 16 - threshold), dtype=like.dtype)  # [DROP-2]
        bits = scale.view(WHOLE[like.element_size()]).numpy()
        mask = torch.from_numpy(kept * bits)       # 0 or 1 times the bits of the scale: no slow cast of booleans
        return mask.view(like.dtype).view(shape).to(like.device)


def at_least(threshold: int, count: int, philox: np.random.Philox) -> np.ndarray:
    """[count] booleans: whether `count` random 16-bit numbers reach `threshold`, itself one of 0 .. 2^16 - 1.

    The high bytes come first, one for each number. The low byte is drawn only where the high one equals the
    threshold's, for one number in 256: those bytes follow, in the same order.
    """
    high, low = divmod(threshold, 2 ** 8)
    upper = next_bytes(philox, count)
    kept = upper > high                                                       # [DROP-6] decided by the high byte
    ties = np.flatnonzero(upper == high)
    kept[ties] |= next_bytes(philox, len(ties)) >= low                        # [DROP-8]
    return kept


def next_bytes(philox: np.random.Philox, count: int) -> np.ndarray:
    """[count] bytes of the generator's next 64-bit numbers, the lowest byte of each first on every machine.

    It takes whole numbers: what is left of the last one is not used.
    """
    return philox.random_raw(-(-count // 8)).astype("<u8", copy=False).view(np.uint8)[:count]
