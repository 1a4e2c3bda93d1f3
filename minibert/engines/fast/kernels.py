"""The kit of core/kit.py on fused kernels: the same operations, the same formulas, in as few passes as torch allows.

- LayerNorm, GELU and softmax, forward and backward, are one kernel of torch each.
- Dropout and the sum with the residual are one pass.
- Linear maps of one input, such as q, k and v, are one product; so are their gradients.
- In 16 bits matrices are cast once an update and activations stay in 16 bits. Softmax and the backward of LayerNorm
  are fp32.
- The gradient of the word vectors is sparse: the rows that the batch uses.
- The activation of the feed-forward is computed again in the backward, and not kept.
"""
import importlib.util
import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.core.batch import Batch
from minibert.core.dropout import Masks, draw
from minibert.core.kit import Collector, Formulas, Maps
from minibert.core.layout import Layout
from minibert.core.model import ACTIVATE, Attention, Embeddings, FeedForward, Model, attention_fused
from minibert.core.ops import Cache
from minibert.core.precision import DTYPES
from minibert.engines.fast.linear import Linear, linear_kind

LONG = 64                                          # columns from which torch's fused attention is faster on a CPU
aten = torch.ops.aten
ACTIVATE_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": aten.gelu_backward, "relu": lambda dout, x: aten.threshold_backward(dout, x, 0),
    "gelu_tanh": lambda dout, x: aten.gelu_backward(dout, x, approximate="tanh")}


class Kernels(Formulas):
    """The kit for training. It keeps the matrices, [n,m], in the working format from one cast() to the next."""
    training = True

    def __init__(self, model: Model, precision: str):
        weight = model.bert.embeddings.word.weight
        self.dtype = DTYPES[precision] or weight.dtype
        self.kind = linear_kind(weight.device, self.dtype, self.training)
        self.ready: dict[Maps, Linear] = {}
        self.room: dict[Maps, Linear] = {}         # memory for what has to be copied

    def cast(self) -> None:
        """From here on all matrices are as they are now; each is taken when it is first asked for."""
        self.ready.clear()

    def working(self, maps: Maps) -> Linear:
        """Linear maps side by side in the working format; a single one that has it already is taken as it is."""
        if maps not in self.ready:
            self.ready[maps] = self.taken(maps)
        return self.ready[maps]

    @torch.no_grad()
    def taken(self, maps: Maps) -> Linear:
        """working() of weights as they are now."""
        first, n = maps[0], [f.out_features for f in maps]
        if len(maps) == 1 and first.weight.dtype == self.dtype:
            return self.kind(first.weight.detach(), first.bias.detach())
        if maps not in self.room:
            self.room[maps] = self.kind(*(first.weight.new_empty(shape, dtype=self.dtype)
                                          for shape in ((sum(n), first.in_features), (sum(n),))))
        room = self.room[maps]
        for f, w, b in zip(maps, room.w.split(n), room.b.split(n), strict=True):
            w.copy_(f.weight)
            b.copy_(f.bias)
        return room

    # ------------------------------------------------------------------------------------------------- the operations

    def embed_forward(self, m: Embeddings, batch: Batch, masks: Masks | None) -> tuple[Tensor, Cache]:
        """A batch -> [P,H] in the working format."""
        total = m.word.weight[batch.ids]
        total += m.token_type.weight[batch.types]
        total += m.position.weight[batch.layout.position]
        x, mean, rstd = norm_forward(m.norm, total)
        mask = draw(masks, 0, x.shape, m.p, x)
        x = (x if mask is None else x.mul_(mask)).to(self.dtype)
        return x, (batch, total, mean, rstd, mask)

    def embed_backward(self, m: Embeddings, dout: Tensor, cache: Cache, gradients: Collector) -> None:
        """[P,H]; rows of the word table that no piece of the batch uses are not visited."""
        batch, total, mean, rstd, mask = cache
        dout = times(dout.to(total.dtype), mask)
        dout = norm_backward(m.norm, dout, total, mean, rstd, gradients)
        for table, ids in ((m.token_type, batch.types), (m.position, batch.layout.position)):
            gradients.add((table.weight, aten.embedding_dense_backward(dout, ids, len(table.weight), -1, False)))
        gradients.add((m.word.weight, word_gradient(m.word.weight, dout, batch.ids)))

    def linear_forward(self, maps: Maps, x: Tensor) -> Tensor:
        """[P,m] -> [P,n], one product."""
        return self.working(maps)(x)

    def linear_backward(self, maps: Maps, dout: Tensor, x: Tensor, gradients: Collector) -> Tensor:
        """[P,n], [P,m] -> dx [P,m]: one product by the weights of all maps, one by the input."""
        together, n = self.working(maps), [f.out_features for f in maps]
        for f, dw, db in zip(maps, *(d.split(n) for d in together.by_weights(dout, x)), strict=True):
            gradients.add((f.weight, dw), (f.bias, db))
        return together.by_input(dout)

    def attention_forward(self, m: Attention, qkv: Tensor, layout: Layout, mask: Tensor | None) -> tuple[Tensor, Cache]:
        """[P,3H] -> [P,H]: softmax(QKᵀ/√D)V in every head, the softmax in fp32 at least."""
        (B, T), wide = layout.shape, torch.promote_types(qkv.dtype, torch.float32)
        # [P,3H] -rows-> [B,T,3H] -split-> [B,T,3,A,D] -move-> [3,B,A,T,D] -join-> [3,BA,T,D]
        rows = layout.rows(qkv).view(B, T, 3, m.A, m.D).permute(2, 0, 3, 1, 4)
        q, k, v = rows.contiguous().view(3, B * m.A, T, m.D)

        s = (q @ k.mT).to(wide).mul_(1 / math.sqrt(m.D)).view(B, m.A, T, T)
        if layout.allowed is not None:
            s += torch.zeros_like(layout.allowed, dtype=wide).masked_fill_(~layout.allowed, torch.finfo(wide).min)
        p = s.softmax(-1).to(qkv.dtype)
        mixed = times(p, mask).view(B * m.A, T, T) @ v

        # [BA,T,D] -split-> [B,A,T,D] -swap-> [B,T,A,D] -join-> [B,T,H] -pieces-> [P,H]
        out = mixed.view(B, m.A, T, m.D).transpose(1, 2).reshape(B, T, m.A * m.D)
        return layout.pieces(out), (layout, q, k, v, p, mask)

    def attention_backward(self, m: Attention, dout: Tensor, cache: Cache, gradients: Collector) -> Tensor:
        """[P,H] -> dqkv [P,3H]."""
        layout, q, k, v, p, mask = cache
        (B, A, T, _), D, wide = p.shape, q.shape[-1], torch.promote_types(q.dtype, torch.float32)
        dmixed = layout.rows(dout).view(B, T, A, D).transpose(1, 2).reshape(B * A, T, D)
        dp = times((dmixed @ v.mT).view(p.shape), mask)
        ds = aten._softmax_backward_data(dp.to(wide), p.to(wide), -1, wide).mul_(1 / math.sqrt(D)).to(q.dtype)
        ds = ds.view(B * A, T, T)

        dqkv = torch.empty(3, B * A, T, D, dtype=q.dtype, device=q.device)
        torch.bmm(ds, k, out=dqkv[0])
        torch.bmm(ds.mT, q, out=dqkv[1])
        torch.bmm(times(p, mask).view(B * A, T, T).mT, dmixed, out=dqkv[2])
        # [3,BA,T,D] -split-> [3,B,A,T,D] -move-> [B,T,3,A,D] -join-> [B,T,3H] -pieces-> [P,3H]
        return layout.pieces(dqkv.view(3, B, A, T, D).permute(1, 3, 0, 2, 4).reshape(B, T, 3 * A * D))

    def feedforward_forward(self, m: FeedForward, x: Tensor) -> tuple[Tensor, Cache]:
        """[P,H] -> [P,F] -> [P,H]; what comes out of the activation is as large as what goes in, and not kept."""
        before = self.linear_forward((m.inner,), x)
        return self.linear_forward((m.outer,), ACTIVATE[m.activation](before)), (x, before)

    def feedforward_backward(self, m: FeedForward, dout: Tensor, cache: Cache, gradients: Collector) -> Tensor:
        """[P,H] -> dx [P,H]."""
        x, before = cache
        dactive = self.linear_backward((m.outer,), dout, ACTIVATE[m.activation](before), gradients)
        dbefore = ACTIVATE_BACKWARD[m.activation](dactive, before)
        return self.linear_backward((m.inner,), dbefore, x, gradients)

    def add_norm_forward(self, m: nn.LayerNorm, x: Tensor, f: Tensor, mask: Tensor | None) -> tuple[Tensor, Cache]:
        """[P,H] each -> LayerNorm(x + dropout(f))."""
        total = x + f if mask is None else torch.addcmul(x, f, mask)
        out, mean, rstd = norm_forward(m, total)
        return out, (total, mean, rstd, mask)

    def add_norm_backward(self, m: nn.LayerNorm, dout: Tensor, cache: Cache, gradients: Collector,
                          ) -> tuple[Tensor, Tensor]:
        """[P,H] -> the gradients of x and of f."""
        total, mean, rstd, mask = cache
        dx = norm_backward(m, dout, total, mean, rstd, gradients)
        return dx, times(dx, mask)


class ScoringKernels(Kernels):
    """The kit where there is no backward: no dropout, and long rows never store their [T,T] scores."""
    training = False

    def attention_forward(self, m: Attention, qkv: Tensor, layout: Layout, mask: Tensor | None) -> tuple[Tensor, Cache]:
        """[P,3H] -> [P,H], and nothing kept."""
        B, T = layout.shape
        if may_pack(qkv, layout):
            return attention_packed(m, qkv, layout), None
        if T < LONG and qkv.device.type == "cpu":
            return super().attention_forward(m, qkv, layout, None)[0], None
        # [P,3H] -rows-> [B,T,3H] -split-> [B,T,3,A,D] -move-> [3,B,A,T,D]
        q, k, v = layout.rows(qkv).view(B, T, 3, m.A, m.D).permute(2, 0, 3, 1, 4)
        mixed = attention_fused(q, k, v, layout.allowed)
        return layout.pieces(mixed.transpose(1, 2).reshape(B, T, m.A * m.D)), None


def times(x: Tensor, mask: Tensor | None) -> Tensor:
    """x with a dropout mask; None: no dropout."""
    return x if mask is None else x * mask


def norm_forward(m: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[P,H] -> out [P,H], mean and 1/sd [P,1].

    Torch's kernel for CPUs reads 16 bits beside weights in 32; that for CUDA takes one number format.
    """
    whole = x if x.device.type == "cpu" else x.to(m.weight.dtype)
    out, mean, rstd = torch.native_layer_norm(whole, m.normalized_shape, m.weight, m.bias, m.eps)
    return out.to(x.dtype), mean, rstd


def norm_backward(m: nn.LayerNorm, dout: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gradients: Collector,
                  ) -> Tensor:
    """[P,H] -> dx [P,H].

    In fp32 at least: of 16-bit numbers torch's kernel adds up dw and db in 16 bits, percents off after 1,000 pieces.
    """
    dx, dw, db = aten.native_layer_norm_backward(dout.to(mean.dtype), x.to(mean.dtype), m.normalized_shape, mean, rstd,
                                                 m.weight, m.bias, [True] * 3)
    gradients.add((m.weight, dw), (m.bias, db))
    return dx.to(dout.dtype)


def word_gradient(w: Tensor, dout: Tensor, ids: Tensor) -> Tensor:
    """[P,H], int64 [P] -> dw [V,H], sparse: each row that the batch uses once, in ascending order."""
    rows, number = torch.unique(ids, return_inverse=True)
    values = aten.embedding_dense_backward(dout, number, len(rows), -1, False)
    return torch.sparse_coo_tensor(rows[None], values, w.shape, is_coalesced=True, check_invariants=False)


def may_pack(qkv: Tensor, layout: Layout) -> bool:
    """Whether torch has a kernel for these rows end to end: CUDA, 16 bits, every piece of a row sees all of it."""
    return (qkv.is_cuda and qkv.element_size() == 2 and layout.kind == "ragged" and layout.prefix is None
            and importlib.util.find_spec("torch.nn.attention.varlen") is not None)


def attention_packed(m: Attention, qkv: Tensor, layout: Layout) -> Tensor:
    """[N,3H] of a ragged layout -> [N,H], by torch's kernel for rows of different lengths."""
    from torch.nn.attention.varlen import varlen_attn  # only here: it brings torch's compiler, a second and a half
    q, k, v = qkv.view(-1, 3, m.A, m.D).unbind(1)                              # [N,A,D] each
    ends = F.pad(layout.lengths.cumsum(0), (1, 0)).to(torch.int32)             # [B+1]
    longest = layout.shape[1]                      # columns; asking the device for the longest row would wait for it
    mixed = cast(Tensor, varlen_attn(q, k, v, ends, ends, longest, longest))   # alone: nothing else was asked for
    return mixed.reshape(len(qkv), -1)
