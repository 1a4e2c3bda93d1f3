"""The whole network on gradients derived by hand: forward with caches, backward through them, no autograd.

A block is written once, here, on a kit of operations: `Formulas` (kit.py) or its subclass `Kernels`, fused kernels
(engines/fast/kernels.py), so `kit: Formulas` may be either. The backward reads the forward from its last line to its
first: docs/09, on one page. Gradients of one parameter add up, so a tensor may be used in several places.
"""
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from minibert.core.batch import Batch
from minibert.core.dropout import Masks, draw
from minibert.core.kit import Collector, Formulas, kit_of
from minibert.core.layout import Layout
from minibert.core.model import Attention, Bert, Block, Model
from minibert.core.objective import Loss
from minibert.core.ops import Cache, Pair
from minibert.errors import MinibertError


class Gradients(dict[str, Tensor]):
    """{name of a trainable parameter: the gradient of the summed loss by it, in its shape and dtype}."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}

    def add(self, *pairs: Pair) -> None:
        """Add a contribution to each parameter; frozen ones are passed over."""
        for p, dp in pairs:
            name = self.names.get(id(p))
            if name is not None:
                dp = dp.to(p.dtype)
                self[name] = self[name] + dp if name in self else dp


def loss_and_gradients(model: Model, batch: Batch, masks: Masks | None = None, task: Loss | None = None,
                       factors: Mapping[str, float] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch -> ({term: sum of losses}, {parameter name: gradient of Σ factor · sum over the terms}).

    `masks` is a dropout.DropoutMasks, None: no dropout. `task` says what the scores lose; it is the model's own unless
    given, and a plain Model has none, which raises MinibertError. `factors` multiply the terms, 1 each unless given:
    scale / count gives the gradient of a scaled mean. Every trainable parameter has a gradient, 0 where the loss does
    not reach it; frozen ones have none.
    """
    sums, gradients = reached_gradients(model, batch, masks, task, factors)
    unreached = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad and n not in gradients}
    return sums, gradients | unreached


@torch.no_grad()
def reached_gradients(model: Model, batch: Batch, masks: Masks | None = None, task: Loss | None = None,
                      factors: Mapping[str, float] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """loss_and_gradients() without the zeros: as with autograd, what the loss does not reach has no gradient."""
    task = model.task if task is None else task
    if task is None:
        raise MinibertError("by hand: this model knows no task; pass task=..., or take a model from minibert.load()")
    kit, gradients = kit_of(model, Formulas)(), Gradients(model)

    # forward
    hidden, caches = bert_forward(kit, model.bert, batch, masks)
    scores, head_cache = model.head.forward_by_hand(hidden, batch, masks)
    sums = task.loss(scores, batch)

    # backward
    parts = [(1.0 if factors is None else factors[term]) * dterm
             for term, dterm in task.loss_backward(scores, batch).items()]
    dhidden, pairs = model.head.backward_by_hand(sum(parts[1:], parts[0]).to(scores.dtype), head_cache)
    gradients.add(*pairs)
    bert_backward(kit, model.bert, dhidden, caches, gradients)
    return sums, dict(gradients)


# ------------------------------------------------------------------------------------------------------ the encoder


def lowest_trained(bert: Bert) -> int:
    """Where the backward ends: 0 for the embeddings, i for block i of 1..L, L + 1 where all is frozen."""
    parts = [bert.embeddings, *bert.blocks]
    return next((i for i, part in enumerate(parts) if any(p.requires_grad for p in part.parameters())), len(parts))


def bert_forward(kit: Formulas, bert: Bert, batch: Batch, masks: Masks | None) -> tuple[Tensor, list[Cache]]:
    """-> hidden states [P,H] and a cache for each part that the backward will visit, lowest first."""
    lowest = lowest_trained(bert)
    x, cache = kit.embed_forward(bert.embeddings, batch, masks)
    caches = [cache] if lowest == 0 else []
    for i, block in enumerate(bert.blocks, 1):
        x, cache = block_forward(kit, block, x, batch.layout, masks)
        if i >= lowest:
            caches.append(cache)
    return x, caches


def bert_backward(kit: Formulas, bert: Bert, dout: Tensor, caches: list[Cache], gradients: Collector) -> None:
    """[P,H] -> gradients of the encoder; each cache is let go as soon as it was used."""
    for block in reversed(bert.blocks[max(lowest_trained(bert) - 1, 0):]):
        dout = block_backward(kit, block, dout, caches.pop(), gradients)
    if caches:
        kit.embed_backward(bert.embeddings, dout, caches.pop(), gradients)


def block_forward(kit: Formulas, m: Block, x: Tensor, layout: Layout, masks: Masks | None) -> tuple[Tensor, Cache]:
    """[P,H] -> [P,H]: first the pieces of a row see each other, then each is worked on by itself."""
    mixed, mix = mix_forward(kit, m.attention, x, layout, masks)
    out, rest = per_piece_forward(kit, m, x, mixed, masks)
    return out, (mix, rest)


def block_backward(kit: Formulas, m: Block, dout: Tensor, cache: Cache, gradients: Collector) -> Tensor:
    """[P,H] -> dx [P,H]: x went into attention and past it, so two gradients come back."""
    mix, rest = cache
    dx, dmixed = per_piece_backward(kit, m, dout, rest, gradients)
    return dx + mix_backward(kit, m.attention, dmixed, mix, gradients)        # [BLK-2]


def mix_forward(kit: Formulas, m: Attention, x: Tensor, layout: Layout, masks: Masks | None) -> tuple[Tensor, Cache]:
    """[P,H] -> [P,H]: three linear maps of x, then attention, the only place where pieces see each other."""
    B, T = layout.shape
    qkv = kit.linear_forward((m.query, m.key, m.value), x)
    mask = draw(masks, m.site, (B, m.A, T, T), m.p, qkv)
    mixed, attention = kit.attention_forward(m, qkv, layout, mask)
    return mixed, (x, attention)


def mix_backward(kit: Formulas, m: Attention, dmixed: Tensor, cache: Cache, gradients: Collector) -> Tensor:
    """[P,H] -> dx [P,H]."""
    x, attention = cache
    dqkv = kit.attention_backward(m, dmixed, attention, gradients)
    return kit.linear_backward((m.query, m.key, m.value), dqkv, x, gradients)


def per_piece_forward(kit: Formulas, m: Block, x: Tensor, mixed: Tensor, masks: Masks | None) -> tuple[Tensor, Cache]:
    """The stream [P,H] and what attention mixed [P,H] -> [P,H]: twice branch, dropout, residual, LayerNorm."""
    f = kit.linear_forward((m.attention.output,), mixed)
    x, norm1 = kit.add_norm_forward(m.attention_norm, x, f, draw(masks, m.site + 1, f.shape, m.p, f))
    f, feedforward = kit.feedforward_forward(m.feedforward, x)
    x, norm2 = kit.add_norm_forward(m.feedforward_norm, x, f, draw(masks, m.site + 2, f.shape, m.p, f))
    return x, (mixed, norm1, feedforward, norm2)


def per_piece_backward(kit: Formulas, m: Block, dout: Tensor, cache: Cache, gradients: Collector,
                       ) -> tuple[Tensor, Tensor]:
    """[P,H] -> dx, dmixed, [P,H] each: the forward read from its last line to its first."""
    mixed, norm1, feedforward, norm2 = cache
    dx, df = kit.add_norm_backward(m.feedforward_norm, dout, norm2, gradients)
    dx = dx + kit.feedforward_backward(m.feedforward, df, feedforward, gradients)  # [BLK-1]
    dx, df = kit.add_norm_backward(m.attention_norm, dx, norm1, gradients)
    return dx, kit.linear_backward((m.attention.output,), df, mixed, gradients)
