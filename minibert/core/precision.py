"""Number formats: autocast, and loss scaling for fp16."""
import math
from collections.abc import Iterable

import torch
from torch import nn

from minibert.errors import MinibertError

SMALLEST = 2.0 ** -24                              # loss scale: below it nothing is left of a gradient in fp16
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(wanted: str, device: torch.device) -> str:
    """"auto" -> "bf16" where the hardware multiplies bf16 fast, else "fp32"; other names stand as they are."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    can = torch.cpu.get_capabilities()             # without these two, bf16 on a CPU is slower than fp32
    return "bf16" if can.get("avx512_bf16") or can.get("amx_bf16") else "fp32"


def precision_notices(precision: str, device: torch.device) -> list[str]:
    """What is worth telling of a number format on a device: an x86 CPU without products in fp16 takes very long."""
    can = torch.cpu.get_capabilities()
    own = can.get("avx512_fp16") or can.get("amx_fp16") or can.get("architecture") != "x86_64"
    if precision != "fp16" or device.type != "cpu" or own:
        return []
    return ["this CPU has no products in fp16 of its own (neither avx512_fp16 nor amx_fp16): an update takes many "
            "times as long as with --precision fp32, 20 to 45 times where it was measured"]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which matrix products run in `precision`; weights and the loss stay fp32."""
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


class NotFinite(MinibertError):
    """A loss or a gradient that is no number, in an update that has not touched the weights."""


class LossScaler:
    """Scales the loss so that small gradients survive fp16, whose smallest positive number is 2^-24 ≈ 6e-8.

    Scaling, and skipping an update whose gradient overflowed: Micikevicius et al. 2018, section 3.2. The scale halves
    after such an update and doubles after `interval` good ones, as torch's GradScaler does. Disabled, it stays 1.
    """

    def __init__(self, enabled: bool, scale: float = 2.0 ** 16, interval: int = 2000):
        self.enabled, self.scale, self.interval = enabled, scale if enabled else 1.0, interval
        self.good = 0                              # updates since the scale last changed
        self.skipped = 0

    def unscale(self, params: Iterable[nn.Parameter]) -> bool:
        """Divide every gradient by the scale, in place, once an update; False if any of them is not finite."""
        grads = [p.grad.values() if p.grad.is_sparse else p.grad for p in params if p.grad is not None]
        if self.scale != 1.0:
            torch._foreach_mul_(grads, 1.0 / self.scale)                      # [AMP-2]
        return all(bool(torch.isfinite(g).all()) for g in grads) if self.enabled else True

    def update(self, finite: bool) -> None:
        """After each update: shrink the scale where it overflowed, grow it after a long good run."""
        if not self.enabled:
            return
        if not finite:
            self.scale = self.scale / 2                                       # [AMP-3]
            self.good, self.skipped = 0, self.skipped + 1
            return
        self.good += 1
        if self.good == self.interval:
            self.scale = self.scale * 2                                       # [AMP-4]
            self.good = 0


def refuse_not_finite(loss: float, norm: float, scaler: LossScaler) -> None:
    """Raise NotFinite where loss or gradient are no numbers, before the weights are touched.

    In fp16 a gradient may overflow where the loss, which no scale multiplies, is a number: such an update is skipped,
    until there is no smaller scale left to try.
    """
    if math.isfinite(loss + norm):
        return
    if not (scaler.enabled and math.isfinite(loss)):
        advice = "; use --precision bf16 or fp32, or lower --learning-rate" if scaler.enabled else ""
        raise NotFinite(f"the loss is {loss}, the gradient norm {norm}; stopped before the weights were touched"
                        + advice)
    if scaler.scale / 2 < SMALLEST:
        raise NotFinite(f"fp16 gradients overflow at every loss scale, {scaler.skipped + 1} updates skipped; lower "
                        "--learning-rate, or use --precision fp32")
