"""AdamW by torch's fused kernel, on gradients that may be sparse or bf16."""
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minibert.core.optim import AdamW, Group, State, stored

BAND = 4096                                        # rows of a sparse gradient that are spread into zeros at a time


# --------------------------------------------------------------------------------------------------- the optimizer


class FusedAdamW(AdamW):
    """AdamW's step by torch's fused kernel: one pass over θ, g, m and s instead of one an operation.

    A sparse gradient is spread into zeros, BAND rows at a time: rows without one move too, by their m and s. One in
    bf16 is written in the parameter's format a matrix at a time, and clipped there: it does not leave the cache.
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.factor = 1.0                          # of the gradients, in the next step
        for p in self.params:
            p.grad_dtype = None                    # any

    @torch.no_grad()
    def clip(self, largest: float) -> float:
        """clip_gradient() of all parameters, but step() scales them."""
        norms = [torch.linalg.vector_norm(g) for g in widened(self.params)]
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
        self.factor = largest / norm if largest and norm > largest else 1.0
        return norm

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient, scaled as the clip() before it found."""
        for group in self.groups:
            moved = [p for p in group["params"] if p.grad is not None]
            for p in moved:
                self.begin(p, self.state.setdefault(p, {}), group)
            self.scale([stored(p.grad) for p in moved if p.grad.dtype == p.dtype])
            whole = [p for p in moved if p.grad.dtype == p.dtype and not p.grad.is_sparse]
            self.move(whole, [p.grad for p in whole], [self.state[p] for p in whole], group)
            short = [p for p in moved if p.grad.dtype != p.dtype]
            for p, g in zip(short, widened(short), strict=True):
                self.scale([g])
                self.move([p], [g], [self.state[p]], group)
            for p in moved:
                if p.grad.is_sparse:
                    self.move_bands(p, p.grad, group)
        self.factor = 1.0

    def scale(self, grads: list[Tensor]) -> None:
        """What clip() asked for, in place."""
        if grads and self.factor != 1.0:
            torch._foreach_mul_(grads, self.factor)

    def move_bands(self, p: nn.Parameter, grad: Tensor, group: Group) -> None:
        """[V,H] with a coalesced gradient; on a GPU in one band, as finding the ends of others would wait for it."""
        rows, values, state = grad.indices()[0], grad.values(), self.state[p]
        band = BAND if p.device.type == "cpu" else len(p)
        ends = [0, len(rows)]
        if band < len(p):
            ends = torch.searchsorted(rows, torch.arange(0, len(p) + band, band)).tolist()
        zeros = p.new_zeros(min(band, len(p)), *p.shape[1:])
        for i, start in enumerate(range(0, len(p), band)):
            cut, here = slice(start, start + band), slice(ends[i], ends[i + 1])
            g = zeros[:len(p[cut])].index_copy_(0, rows[here] - start, values[here])
            self.move([p[cut]], [g], [state | {k: state[k][cut] for k in "ms"}], group)
            g.index_fill_(0, rows[here] - start, 0.0)

    def move(self, params: list[Tensor], grads: list[Tensor], states: list[State], group: Group,
             ) -> None:
        """One call for all of them, tensors of the same place in each list belonging together."""
        if not params:
            return
        # 1 - beta^t is 1 at t = infinity: no correction
        counts = [float(s["t"]) if group["bias_correction"] else math.inf for s in states]
        known = {t: torch.tensor(t, device=params[0].device) for t in set(counts)}
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(params, grads, [s["m"] for s in states], [s["s"] for s in states], [],
                            [known[t] for t in counts], lr=group["lr"], beta1=beta1, beta2=beta2,
                            weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False)


def widened(params: Sequence[nn.Parameter]) -> Iterator[Tensor]:
    """The numbers of each gradient in the parameter's format, until the next is asked for: room for one is enough."""
    room = torch.empty(0)
    for p in params:
        if p.grad is None:
            continue
        g = stored(p.grad)
        if g.dtype != p.dtype:
            room = room if room.numel() >= g.numel() else p.new_empty(p.numel())
            g = room[:g.numel()].view(g.shape).copy_(g)
        yield g
