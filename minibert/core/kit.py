"""The operations of a block, as everybody's figure of it has them, each by the formulas of ops.py.

byhand.py chains them and knows nothing of how they are computed. Another kit has the same names and signatures:
engines/fast/kernels.py computes the same on fused kernels, and what is added to the network (a low-rank term on a
linear map, further keys and values) is a layer in front of a kit, see kit_of().

A forward gives its result and what its backward needs; a linear map needs only its input, so it gives no cache. The
gradients of parameters go to `gradients`, see byhand.Gradients.
"""
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from minibert.core import ops
from minibert.core.batch import Batch
from minibert.core.dropout import Masks, draw
from minibert.core.layout import Layout
from minibert.core.model import Attention, Embeddings, FeedForward, Model
from minibert.core.ops import Cache, Pair

Maps = tuple[nn.Linear, ...]                       # linear maps that read the same input
Kit = TypeVar("Kit", bound="Formulas")


class Collector(Protocol):
    """Where gradients of parameters go."""

    def add(self, *pairs: Pair) -> None:
        """Add a contribution to the gradient of each parameter."""


class Formulas:
    """The kit that a learner reads: every operation as it stands in ops.py."""

    def embed_forward(self, m: Embeddings, batch: Batch, masks: Masks | None) -> tuple[Tensor, Cache]:
        """A batch -> [P,H]: three lookups, their sum, LayerNorm, dropout."""
        word, word_cache = ops.embedding_forward(batch.ids, m.word.weight)
        kind, type_cache = ops.embedding_forward(batch.types, m.token_type.weight)
        position, position_cache = ops.embedding_forward(batch.layout.position, m.position.weight)
        total = word + kind + position                                        # [EMB-2]

        x, norm_cache = ops.layernorm_forward(total, m.norm.weight, m.norm.bias, m.norm.eps)
        x, mask = ops.dropout_forward(x, draw(masks, 0, x.shape, m.p, x))
        return x, (word_cache, type_cache, position_cache, norm_cache, mask)

    def embed_backward(self, m: Embeddings, dout: Tensor, cache: Cache, gradients: Collector) -> None:
        """[P,H]; a sum hands its gradient to each of the three summands."""
        word_cache, type_cache, position_cache, norm_cache, mask = cache
        dtotal, dw, db = ops.layernorm_backward(ops.dropout_backward(dout, mask), norm_cache)
        gradients.add((m.norm.weight, dw), (m.norm.bias, db))

        for table, table_cache in ((m.word, word_cache), (m.token_type, type_cache), (m.position, position_cache)):
            gradients.add((table.weight, ops.embedding_backward(dtotal, table_cache)))

    def linear_forward(self, maps: Maps, x: Tensor) -> Tensor:
        """[P,m] -> [P,n] of each map, side by side in one tensor."""
        outs = [ops.linear_forward(x, f.weight, f.bias)[0] for f in maps]
        return torch.cat(outs, 1) if len(outs) > 1 else outs[0]

    def linear_backward(self, maps: Maps, dout: Tensor, x: Tensor, gradients: Collector) -> Tensor:
        """[P,n] side by side, and the input [P,m] -> dx [P,m]: x went into each map, so a gradient comes from each."""
        parts = []
        for f, df in zip(maps, dout.split([f.out_features for f in maps], 1), strict=True):
            part, dw, db = ops.linear_backward(df, (x, f.weight))
            gradients.add((f.weight, dw), (f.bias, db))
            parts.append(part)

        dx = parts[0]
        for part in parts[1:]:
            dx = dx + part                                                    # [BLK-3]
        return dx

    def attention_forward(self, m: Attention, qkv: Tensor, layout: Layout, mask: Tensor | None) -> tuple[Tensor, Cache]:
        """Queries, keys and values [P,3H] side by side -> [P,H]; `mask` [B,A,T,T] drops probabilities."""
        q, k, v = qkv.chunk(3, 1)
        return ops.attention_forward(q, k, v, layout, m.A, mask)

    def attention_backward(self, m: Attention, dout: Tensor, cache: Cache, gradients: Collector) -> Tensor:
        """[P,H] -> dqkv [P,3H]; attention has no parameters, but keys and values of another kit may."""
        return torch.cat(ops.attention_backward(dout, cache), 1)

    def feedforward_forward(self, m: FeedForward, x: Tensor) -> tuple[Tensor, Cache]:
        """[P,H] -> [P,F] -> [P,H]."""
        activate, _ = ops.ACTIVATIONS[m.activation]
        active, curve = activate(self.linear_forward((m.inner,), x))
        return self.linear_forward((m.outer,), active), (x, curve, active)

    def feedforward_backward(self, m: FeedForward, dout: Tensor, cache: Cache, gradients: Collector) -> Tensor:
        """[P,H] -> dx [P,H]."""
        x, curve, active = cache
        _, activate_backward = ops.ACTIVATIONS[m.activation]
        dactive = self.linear_backward((m.outer,), dout, active, gradients)
        return self.linear_backward((m.inner,), activate_backward(dactive, curve), x, gradients)

    def add_norm_forward(self, m: nn.LayerNorm, x: Tensor, f: Tensor, mask: Tensor | None) -> tuple[Tensor, Cache]:
        """The stream x and a branch f of it, [P,H] each -> LayerNorm(x + dropout(f))."""
        f, mask = ops.dropout_forward(f, mask)
        total, _ = ops.residual_forward(x, f)
        out, norm_cache = ops.layernorm_forward(total, m.weight, m.bias, m.eps)
        return out, (norm_cache, mask)

    def add_norm_backward(self, m: nn.LayerNorm, dout: Tensor, cache: Cache, gradients: Collector,
                          ) -> tuple[Tensor, Tensor]:
        """[P,H] -> the gradients of x and of f, [P,H] each. Neither may be changed in place: they may be one."""
        norm_cache, mask = cache
        dtotal, dw, db = ops.layernorm_backward(dout, norm_cache)
        gradients.add((m.weight, dw), (m.bias, db))
        dx, df = ops.residual_backward(dtotal, None)
        return dx, ops.dropout_backward(df, mask)


def kit_of(model: Model, kit: type[Kit]) -> type[Kit]:
    """The class `kit` with the layers that the model was given in front of it: `model.kit_layers`, the outermost first.

    A layer is a class without a base that overrides some operations and reaches the kit below it by super().
    """
    return cast(type[Kit], type(kit.__name__, (*model.kit_layers, kit), {})) if model.kit_layers else kit
