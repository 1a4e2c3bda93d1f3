"""SGD and AdamW with decoupled weight decay, the two decay groups, global-norm clipping, the learning rate.

Both optimizers move θ by −η·direction − ηλθ, both terms at the old θ (Loshchilov & Hutter 2019, Decoupled Weight
Decay Regularization). With plain SGD that is the same as an L2 term in the loss; with momentum or Adam it is not.
"""
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from minibert.errors import MinibertError

SLICE = 2 ** 18                                    # numbers that a step moves at a time
Group = dict[str, Any]                             # "params": parameters, "names" of them, and their settings
State = dict[str, Any]                             # what a rule remembers of a parameter: tensors of its shape, a count
Params = Iterable[nn.Parameter] | Iterable[Group]


class Optimizer(ABC):
    """What both optimizers share: groups of parameters with their own settings, and a state a parameter.

    `params`: parameters, or groups {"params": [...], and any of the settings to override}. A parameter without a
    gradient is left as it is: no step, no decay.
    """

    def __init__(self, params: Params, **settings: object):
        given = list(params)
        groups = [g for g in given if isinstance(g, dict)] or [{"params": given}]
        self.groups: list[Group] = [{**settings, **g, "params": list(g["params"])} for g in groups]
        self.state: dict[nn.Parameter, State] = {}
        self.params: list[nn.Parameter] = [p for g in self.groups for p in g["params"]]
        if not self.params:
            raise ValueError("an optimizer needs at least one parameter")
        if len(set(map(id, self.params))) != len(self.params):
            raise ValueError("a parameter stands in two groups, or twice in one")

    def clip(self, largest: float) -> float:
        """clip_gradient() of all its parameters."""
        return clip_gradient(self.params, largest)

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state.setdefault(p, {})
                    self.begin(p, state, group)
                    g = p.grad.to_dense() if p.grad.is_sparse else p.grad
                    for part in in_slices(p, g, state):
                        self.update(*part, group)

    @abstractmethod
    def begin(self, p: Tensor, state: State, group: Group) -> None:
        """Once an update and parameter: make what `state` needs, count."""

    @abstractmethod
    def update(self, p: Tensor, g: Tensor, state: State, group: Group) -> None:
        """The rule: move `p` in place, given its gradient `g` and the tensors of its state, all of one shape."""

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.params:
            p.grad = None

    def set_learning_rate(self, lr: float) -> None:
        """The same learning rate for every group; decay scales with it."""
        for group in self.groups:
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """{"settings": one dict a group, "shapes": of its parameters, "state": {number of the parameter: tensors}}."""
        number = {p: i for i, p in enumerate(self.params)}
        return {"settings": [{k: v for k, v in g.items() if k != "params"} for g in self.groups],
                "shapes": [[list(p.shape) for p in g["params"]] for g in self.groups],
                "state": {number[p]: dict(s) for p, s in self.state.items()}}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from the state_dict() of an optimizer over such parameters; MinibertError if they differ."""
        mine = self.state_dict()
        same_rule = [*map(set, saved["settings"])] == [*map(set, mine["settings"])]
        if saved["shapes"] != mine["shapes"] or not same_rule:
            raise MinibertError("the optimizer state is of another rule, or of parameters in other groups or shapes; "
                                "load it into the same kind of model")
        for group, settings in zip(self.groups, saved["settings"], strict=True):
            group.update(settings)
        self.state = {self.params[i]: {k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()}
                      for i, s in saved["state"].items()}


def in_slices(p: Tensor, g: Tensor, state: State) -> Iterator[tuple[Tensor, Tensor, State]]:
    """(p, g, state) in flat views of SLICE numbers: the rules act on single numbers, so they cannot tell.

    A temporary of the size of the word embeddings would be fresh memory at every step, page by page; one of SLICE
    numbers stays in the cache. Half the time of a step on 12 million numbers.
    """
    if p.numel() <= SLICE or not (p.is_contiguous() and g.is_contiguous()):
        yield p, g, state
        return
    for i in range(0, p.numel(), SLICE):
        cut = {k: v.view(-1)[i:i + SLICE] if isinstance(v, Tensor) else v for k, v in state.items()}
        yield p.view(-1)[i:i + SLICE], g.view(-1)[i:i + SLICE], cut


class SGD(Optimizer):
    """v ← μv + g;  θ ← θ − ηv − ηλθ."""

    def __init__(self, params: Params, lr: float, momentum: float = 0.0, weight_decay: float = 0.0):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def begin(self, p: Tensor, state: State, group: Group) -> None:
        """The velocity starts at 0."""
        if group["momentum"] and not state:
            state["v"] = torch.zeros_like(p, memory_format=torch.contiguous_format)

    def update(self, p: Tensor, g: Tensor, state: State, group: Group) -> None:
        """The first line of the class."""
        if group["momentum"]:
            g = state["v"].mul_(group["momentum"]).add_(g)                    # [SGD-1]
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(g, alpha=-group["lr"])  # [SGD-2]


class AdamW(Optimizer):
    """m ← β₁m + (1−β₁)g;  s ← β₂s + (1−β₂)g²;  θ ← θ − η·m̂/(√ŝ + ε) − ηλθ, with m̂ = m/(1−β₁ᵗ), ŝ = s/(1−β₂ᵗ).

    `bias_correction=False` is the rule of the original BERT code: m̂ = m, ŝ = s.
    """

    def __init__(self, params: Params, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, bias_correction: bool = True):
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay,
                         bias_correction=bias_correction)

    def begin(self, p: Tensor, state: State, group: Group) -> None:
        """The running means start at 0; t counts the updates of this parameter."""
        if not state:
            state.update({"t": 0} | {k: torch.zeros_like(p, memory_format=torch.contiguous_format) for k in "ms"})
        state["t"] += 1

    def update(self, p: Tensor, g: Tensor, state: State, group: Group) -> None:
        """The first line of the class."""
        m, s, (beta1, beta2) = state["m"], state["s"], group["betas"]
        m.mul_(beta1).add_(g, alpha=1 - beta1)                                # [ADAM-1]
        s.mul_(beta2).addcmul_(g, g, value=1 - beta2)                         # [ADAM-2]
        correct1, correct2 = 1.0, 1.0
        if group["bias_correction"]:
            correct1 = 1 - beta1 ** state["t"]                                # [ADAM-3]
            correct2 = 1 - beta2 ** state["t"]                                # [ADAM-4]
        root = s.sqrt().div_(correct2 ** 0.5).add_(group["eps"])              # [ADAM-5]
        p.mul_(1 - group["lr"] * group["weight_decay"]).addcdiv_(m, root, value=-group["lr"] / correct1)  # [ADAM-6]


def decay_groups(model: nn.Module, weight_decay: float) -> list[Group]:
    """Two groups of the trainable parameters, each with "names": matrices are decayed; biases and LayerNorm are not.

    Decided by the type of the module that holds a parameter and its role there, never by matching names: a bias only
    shifts, a LayerNorm weight has its natural size at 1, so pulling either towards 0 fits no prior.
    """
    plain = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)}
    plain |= {id(m.bias) for m in model.modules() if getattr(m, "bias", None) is not None}
    groups: list[Group] = [{"params": [], "names": [], "weight_decay": decay} for decay in (weight_decay, 0.0)]
    for name, p in model.named_parameters():
        if p.requires_grad:
            group = groups[id(p) in plain]
            group["params"].append(p)
            group["names"].append(name)
    return [g for g in groups if g["params"]]


@torch.no_grad()
def clip_gradient(params: Iterable[nn.Parameter], largest: float) -> float:
    """Scale all gradients by one factor so that their joint Euclidean norm is at most `largest` (0: only measure).

    Returns the norm before. One norm over all parameters: clipping each alone would turn the direction.
    """
    grads = [stored(p.grad) for p in params if p.grad is not None]
    if not grads:
        return 0.0
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads])))  # [CLIP-1]
    if largest and norm > largest:
        torch._foreach_mul_(grads, largest / norm)                            # [CLIP-2]
    return norm


def stored(g: Tensor) -> Tensor:
    """The numbers of a gradient that are kept, to read or to change in place: all, or the rows of a sparse one."""
    return g.values() if g.is_sparse else g


def lr_at(step: int, total: int, warmup: int, peak: float) -> float:
    """The learning rate of update `step` in 1..total: a straight rise over `warmup` updates, then a straight fall.

    peak · min(step/warmup, (total+1−step)/(total+1−warmup)); the first update is above 0, the last too.
    """
    rise = step / warmup if warmup else 1.0                                   # [LR-1]
    return peak * min(rise, (total + 1 - step) / (total + 1 - warmup))        # [LR-2]
