"""The whole network on gradients derived by hand: forward with caches, backward through them, no autograd.

Each part of the encoder has a forward and a backward here, chained from ops.py in the same order and in reverse. The
backward pass on one page: docs/09. Gradients of one parameter add up, so a tensor may be used in several places.
"""
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minibert.core import ops
from minibert.core.config import ACTIVATIONS
from minibert.core.model import Attention, Bert, Block, Embeddings, FeedForward, Model, draw
from minibert.errors import MinibertError


class Gradients(dict[str, Tensor]):
    """{name of a trainable parameter: the gradient of the summed loss by it, in its shape and dtype}."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}

    def add(self, *pairs: tuple[nn.Parameter, Tensor]) -> None:
        """Add a contribution to each parameter; frozen ones are passed over."""
        for p, dp in pairs:
            name = self.names.get(id(p))
            if name is not None:
                dp = dp.to(p.dtype)
                self[name] = self[name] + dp if name in self else dp

    def wanted(self, module: nn.Module) -> bool:
        """Whether any parameter of `module` is trained."""
        return any(id(p) in self.names for p in module.parameters())


def loss_and_gradients(model: Model, batch: Any, masks: Any = None, task: Any = None,
                       factors: Mapping[str, float] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch.Batch -> ({term: sum of losses}, {parameter name: gradient of Σ factor · sum over the terms}).

    `masks` is a dropout.DropoutMasks, None: no dropout. `task` is the model's own unless given; a plain Model has
    none, which raises MinibertError. `factors` weigh the terms, 1 each unless given: scale / count gives the gradient
    of a scaled mean. Every trainable parameter has a gradient, 0 where the loss does not reach it; frozen ones have
    none.
    """
    sums, gradients = reached_gradients(model, batch, masks, task, factors)
    unreached = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad and n not in gradients}
    return sums, gradients | unreached


@torch.no_grad()
def reached_gradients(model: Model, batch: Any, masks: Any = None, task: Any = None,
                      factors: Mapping[str, float] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """loss_and_gradients() without the zeros: as with autograd, what the loss does not reach has no gradient."""
    task = getattr(model, "task", None) if task is None else task
    if task is None:
        raise MinibertError("by hand: this model knows no task; pass task=..., or take a model from minibert.load()")
    gradients = Gradients(model)
    hidden, caches = bert_forward(model.bert, batch, masks, gradients)
    scores, head_cache = model.head.forward_by_hand(hidden, batch, masks)
    sums = task.loss(scores, batch)
    parts = [(1.0 if factors is None else factors[term]) * dterm
             for term, dterm in task.loss_backward(scores, batch).items()]
    dhidden, pairs = model.head.backward_by_hand(sum(parts[1:], parts[0]).to(scores.dtype), head_cache)
    gradients.add(*pairs)
    bert_backward(model.bert, dhidden, caches, gradients)
    return sums, dict(gradients)


def lowest_trained(bert: Bert, gradients: Gradients) -> int:
    """Where the backward ends: 0 for the embeddings, i for block i of 1..L, L + 1 where all is frozen."""
    parts = [bert.embeddings, *bert.blocks]
    return next((i for i, part in enumerate(parts) if gradients.wanted(part)), len(parts))


def bert_forward(bert: Bert, batch: Any, masks: Any, gradients: Gradients) -> tuple[Tensor, list[Any]]:
    """-> hidden states [P,H] and a cache for each part that the backward will visit, lowest first."""
    lowest = lowest_trained(bert, gradients)
    x, cache = embeddings_forward(bert.embeddings, batch, masks)
    caches = [cache] if lowest == 0 else []
    for i, block in enumerate(bert.blocks, 1):
        x, cache = block_forward(block, x, batch.layout, masks, ACTIVATIONS[bert.config.hidden_act])
        if i >= lowest:
            caches.append(cache)
    return x, caches


def bert_backward(bert: Bert, dout: Tensor, caches: list[Any], gradients: Gradients) -> None:
    """[P,H] -> gradients of the encoder; each cache is let go as soon as it was used."""
    for block in reversed(bert.blocks[max(lowest_trained(bert, gradients) - 1, 0):]):
        dout = block_backward(block, dout, caches.pop(), gradients)
    if caches:
        embeddings_backward(bert.embeddings, dout, caches.pop(), gradients)


def embeddings_forward(m: Embeddings, batch: Any, masks: Any) -> tuple[Tensor, Any]:
    """-> [P,H]."""
    word, word_cache = ops.embedding_forward(batch.ids, m.word.weight)
    kind, type_cache = ops.embedding_forward(batch.types, m.token_type.weight)
    position, position_cache = ops.embedding_forward(batch.layout.position, m.position.weight)
    total = word + kind + position                                            # [EMB-2]
    x, norm_cache = ops.layernorm_forward(total, m.norm.weight, m.norm.bias, m.norm.eps)
    x, mask = ops.dropout_forward(x, draw(masks, 0, x.shape, m.p, x))
    return x, (word_cache, type_cache, position_cache, norm_cache, mask)


def embeddings_backward(m: Embeddings, dout: Tensor, cache: Any, gradients: Gradients) -> None:
    """[P,H]; a sum hands its gradient to each of the three summands."""
    word_cache, type_cache, position_cache, norm_cache, mask = cache
    dtotal, dw, db = ops.layernorm_backward(ops.dropout_backward(dout, mask), norm_cache)
    gradients.add((m.norm.weight, dw), (m.norm.bias, db))
    for table, table_cache in ((m.word, word_cache), (m.token_type, type_cache), (m.position, position_cache)):
        gradients.add((table.weight, ops.embedding_backward(dtotal, table_cache)))


def block_forward(m: Block, x: Tensor, layout: Any, masks: Any, activation: str) -> tuple[Tensor, Any]:
    """[P,H] -> [P,H]: twice branch, dropout, residual, LayerNorm."""
    f, attention_cache = attend_forward(m.attention, x, layout, masks)
    f, mask1 = ops.dropout_forward(f, draw(masks, m.site + 1, f.shape, m.p, f))
    x, _ = ops.residual_forward(x, f)
    x, norm1_cache = ops.layernorm_forward(x, m.attention_norm.weight, m.attention_norm.bias, m.attention_norm.eps)
    f, feedforward_cache = feedforward_forward(m.feedforward, x, activation)
    f, mask2 = ops.dropout_forward(f, draw(masks, m.site + 2, f.shape, m.p, f))
    x, _ = ops.residual_forward(x, f)
    x, norm2_cache = ops.layernorm_forward(x, m.feedforward_norm.weight, m.feedforward_norm.bias,
                                           m.feedforward_norm.eps)
    return x, (attention_cache, mask1, norm1_cache, feedforward_cache, mask2, norm2_cache)


def block_backward(m: Block, dout: Tensor, cache: Any, gradients: Gradients) -> Tensor:
    """[P,H] -> dx [P,H]: the forward read from its last line to its first."""
    attention_cache, mask1, norm1_cache, feedforward_cache, mask2, norm2_cache = cache
    dsum, dw, db = ops.layernorm_backward(dout, norm2_cache)
    gradients.add((m.feedforward_norm.weight, dw), (m.feedforward_norm.bias, db))
    dx, df = ops.residual_backward(dsum, None)
    df = feedforward_backward(m.feedforward, ops.dropout_backward(df, mask2), feedforward_cache, gradients)
    dsum, dw, db = ops.layernorm_backward(dx + df, norm1_cache)               # [BLK-1]
    gradients.add((m.attention_norm.weight, dw), (m.attention_norm.bias, db))
    dx, df = ops.residual_backward(dsum, None)
    df = attend_backward(m.attention, ops.dropout_backward(df, mask1), attention_cache, gradients)
    return dx + df                                                            # [BLK-2]


def attend_forward(m: Attention, x: Tensor, layout: Any, masks: Any) -> tuple[Tensor, Any]:
    """[P,H] -> [P,H]: three linear maps, attention, one linear map."""
    (q, query), (k, key), (v, value) = (ops.linear_forward(x, f.weight, f.bias) for f in (m.query, m.key, m.value))
    B, T = layout.shape
    mask = draw(masks, m.site, (B, m.A, T, T), m.p, q)
    mixed, attention_cache = ops.attention_forward(q, k, v, layout, m.A, mask)
    out, output = ops.linear_forward(mixed, m.output.weight, m.output.bias)
    return out, (query, key, value, attention_cache, output)


def attend_backward(m: Attention, dout: Tensor, cache: Any, gradients: Gradients) -> Tensor:
    """[P,H] -> dx [P,H]: x went into three maps, so three gradients come back."""
    query, key, value, attention_cache, output = cache
    dmixed, dw, db = ops.linear_backward(dout, output)
    gradients.add((m.output.weight, dw), (m.output.bias, db))
    dx = 0.0
    for f, df, linear_cache in zip((m.query, m.key, m.value), ops.attention_backward(dmixed, attention_cache),
                                   (query, key, value), strict=True):
        part, dw, db = ops.linear_backward(df, linear_cache)
        gradients.add((f.weight, dw), (f.bias, db))
        dx = dx + part                                                        # [BLK-3]
    return dx


def feedforward_forward(m: FeedForward, x: Tensor, activation: str) -> tuple[Tensor, Any]:
    """[P,H] -> [P,F] -> [P,H]."""
    forward, backward = ops.ACTIVATIONS[activation]
    inner, inner_cache = ops.linear_forward(x, m.inner.weight, m.inner.bias)
    active, active_cache = forward(inner)
    out, outer_cache = ops.linear_forward(active, m.outer.weight, m.outer.bias)
    return out, (inner_cache, backward, active_cache, outer_cache)


def feedforward_backward(m: FeedForward, dout: Tensor, cache: Any, gradients: Gradients) -> Tensor:
    """[P,H] -> dx [P,H]."""
    inner_cache, activation_backward, active_cache, outer_cache = cache
    dactive, dw, db = ops.linear_backward(dout, outer_cache)
    gradients.add((m.outer.weight, dw), (m.outer.bias, db))
    dx, dw, db = ops.linear_backward(activation_backward(dactive, active_cache), inner_cache)
    gradients.add((m.inner.weight, dw), (m.inner.bias, db))
    return dx
