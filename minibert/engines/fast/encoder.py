"""byhand.py once more, for speed: the same gradients, the same formulas, in as few passes as torch allows.

What differs from byhand.py, and nothing else does:

- LayerNorm, GELU and softmax, forward and backward, are one kernel of torch each.
- Dropout and the sum with the residual are one pass.
- q, k and v come from one product; so do their three gradients by x.
- In 16 bits, matrices are cast once an update and activations stay in 16 bits. Softmax and the backward of LayerNorm
  are fp32.
- The last block, after its attention, works on the pieces that the head reads, and on a few more that fill a step.
- Of scores for a whole vocabulary one softmax gives both the loss and its gradient.
- The gradient of the word vectors is sparse: the rows that the batch uses.
- Dropout masks are drawn ahead of the forward, in threads.
- The activation of the feed-forward is computed again in the backward, and not kept.
- In bf16 the gradient of a matrix stays so until AdamW reads it, and is clipped there.
- AdamW is one kernel, and the C library keeps the memory that is freed.

docs/performance.md has what each of them is worth.
"""
import dataclasses
import importlib.util
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.core.byhand import Gradients, lowest_trained
from minibert.core.config import ACTIVATIONS
from minibert.core.model import ACTIVATE, Attention, Bert, Block, Embeddings, Model, attention_fused, draw
from minibert.core.precision import DTYPES, autocast
from minibert.engines.fast.linear import Linear, linear_kind
from minibert.engines.fast.memory import give_back

LONG = 64                                          # columns from which torch's fused attention is faster on a CPU
THREADS = ThreadPoolExecutor(torch.get_num_threads())
SHORT = torch.bfloat16                             # as wide as fp32 in range, so it needs no loss scale
STEP = 64                                          # rows of the last block come in multiples of it
aten = torch.ops.aten
ACTIVATE_BACKWARD = {"gelu": aten.gelu_backward, "relu": lambda dout, x: aten.threshold_backward(dout, x, 0),
                     "gelu_tanh": lambda dout, x: aten.gelu_backward(dout, x, approximate="tanh")}


class Kept:
    """What an encoder keeps from one update to the next: its matrices, [n,m], in the working format."""

    def __init__(self, training: bool = True):
        self.training, self.precision, self.dtype = training, "", torch.float32
        self.kind: type[Linear] = Linear
        self.blocks: list[tuple[Linear, ...]] = []
        self.room: dict[nn.Linear, Linear] = {}    # memory for what has to be copied, by the first of its maps
        self.largest, self.grown = 0, False        # pieces of a batch so far; whether the last batch set this record

    def refresh(self, model: Model, precision: str) -> None:
        """cast() once an update: weights stand still from the first gradient to the optimizer's step."""
        if self.precision != precision or all(p.grad is None for p in model.parameters()):
            self.cast(model, precision)

    def settles(self, pieces: int) -> bool:
        """Whether the heap is still settling: this batch or the one before is larger than all that came earlier."""
        before, self.grown, self.largest = self.grown, pieces > self.largest, max(pieces, self.largest)
        return before or self.grown

    @torch.no_grad()
    def cast(self, model: Model, precision: str) -> None:
        """Take all matrices as they are now."""
        self.precision, self.dtype = precision, DTYPES[precision] or model.bert.embeddings.word.weight.dtype
        self.kind = linear_kind(model.bert.embeddings.word.weight.device, self.dtype, self.training)
        self.blocks = [tuple(self.working(*maps) for maps in maps_of(block)) for block in model.bert.blocks]

    def working(self, *maps: nn.Linear) -> Linear:
        """Linear maps side by side in the working format; a single one that has it already is taken as it is."""
        first, n = maps[0], [f.out_features for f in maps]
        if len(maps) == 1 and first.weight.dtype == self.dtype:
            return self.kind(first.weight.detach(), first.bias.detach())
        if first not in self.room or self.room[first].w.dtype != self.dtype:
            self.room[first] = self.kind(*(first.weight.new_empty(shape, dtype=self.dtype)
                                           for shape in ((sum(n), first.in_features), (sum(n),))))
        kept = self.room[first]
        for f, w, b in zip(maps, kept.w.split(n), kept.b.split(n), strict=True):
            w.copy_(f.weight)
            b.copy_(f.bias)
        return kept


def maps_of(m: Block) -> list[list[nn.Linear]]:
    """The linear maps of a block; those that read the same input together."""
    a, f = m.attention, m.feedforward
    return [[a.query, a.key, a.value], [a.output], [f.inner], [f.outer]]


class Sums(Gradients):
    """Gradients that are added to p.grad at once, as autograd does, and kept nowhere else.

    That of a matrix which came out of its product in bf16 stays so, if nothing is added and FusedAdamW reads it.
    """

    def add(self, *pairs: tuple[nn.Parameter, Tensor]) -> None:
        """Add a contribution to each parameter; frozen ones are passed over."""
        for p, dp in pairs:
            if id(p) in self.names:
                if p.grad is None:
                    keep = dp.dtype == SHORT and dp.dim() > 1 and p.grad_dtype is None
                    p.grad = dp if keep else dp.to(p.dtype)
                elif p.grad.is_sparse:
                    p.grad = (p.grad + dp).coalesce()
                else:
                    p.grad = p.grad.to(p.dtype).add_(dp)


@torch.no_grad()
def add_gradients(model: Model, task: Any, batch: Any, masks: Any, factors: Mapping[str, float], precision: str,
                  ) -> dict[str, Tensor]:
    """A batch.Batch -> {term: sum of losses}; the gradient of Σ factor · sum is added to every parameter's .grad.

    Outside any autocast. The word vectors' .grad is a sparse tensor: the rows that the batch uses.
    """
    kept = model.__dict__.setdefault("_kept", Kept())
    kept.refresh(model, precision)
    gradients, settling = Sums(model), kept.settles(len(batch.ids))
    read = Read(batch, wide=model.head.wide)
    if settling:
        give_back()
    hidden, caches = bert_forward(model, batch, read, masks, gradients, kept)
    with autocast(precision, hidden.device):
        scores, head_cache = model.head.forward_by_hand(hidden, read.batch, masks)
        sums, dscores = loss_and_gradient(task, scores, read.batch, factors)
        dhidden, pairs = model.head.backward_by_hand(dscores.to(scores.dtype), head_cache)
    gradients.add(*pairs)
    if settling:
        give_back()
    bert_backward(model, dhidden.to(hidden.dtype), caches, gradients, kept)
    return sums


def loss_and_gradient(task: Any, scores: Tensor, batch: Any, factors: Mapping[str, float],
                      ) -> tuple[dict[str, Tensor], Tensor]:
    """-> ({term: sum of losses}, the gradient of Σ factor · sum by the scores)."""
    if (terms := task.terms(batch)) is not None:
        return cross_entropy(scores, terms, factors)
    sums = task.loss(scores, batch)
    return sums, sum(factors[term] * dterm for term, dterm in task.loss_backward(scores, batch).items())


def cross_entropy(z: Tensor, labels: Mapping[str, Tensor], factors: Mapping[str, float],
                  ) -> tuple[dict[str, Tensor], Tensor]:
    """Scores [M,K], {term: labels [M], -1 for none; a row has one in one term at most} -> as loss_and_gradient().

    One softmax is both: p less the one-hot label is the gradient, and since the largest score's p, which is
    1/K or more, cannot underflow, lse z = max z - log max p without another pass of exponentials.
    """
    p = torch.softmax(z, -1, dtype=torch.promote_types(z.dtype, torch.float32))
    top, best = z.max(-1, keepdim=True)
    known, y = {term: of >= 0 for term, of in labels.items()}, torch.stack([*labels.values()]).amax(0)[:, None]
    losses = (top - p.gather(-1, best).log() - z.gather(-1, y.clamp(min=0))).squeeze(-1)
    sums = {term: losses.where(there, 0).sum() for term, there in known.items()}
    weight = sum(factors[term] * there.to(p.dtype) for term, there in known.items())
    p.scatter_add_(-1, y.clamp(min=0), p.new_full(y.shape, -1.0))
    return sums, p.mul_(weight[:, None])


class Read:
    """The pieces that the head reads. After the last attention no piece sees another, so the others end there.

    A few of the others stay, to make a multiple of STEP: torch's library builds and keeps a program of a megabyte for
    every new number of rows. For a `wide` head it is ten megabytes, so its picks become such a multiple as well: those
    that are added have no label.
    """

    def __init__(self, batch: Any, wide: bool = False):
        self.rows: Tensor | None = None
        self.batch = batch
        if batch.ids.device.type != "cpu":         # counting them would wait for the device
            return
        read = torch.zeros(len(batch.ids), dtype=torch.bool)
        read[batch.picks] = True
        missing = -max(int(read.sum()), 1) % STEP
        read[(~read).nonzero().flatten()[:missing]] = True
        self.rows = read.nonzero().flatten()                                   # [W] ascending
        picks, labels = torch.searchsorted(self.rows, batch.picks), batch.labels
        if wide:
            more = 0, -len(picks) % STEP
            picks, labels = F.pad(picks, more), F.pad(labels, more, value=-1)
        self.batch = dataclasses.replace(batch, picks=picks, labels=labels)

    def by(self, block: Block, bert: Bert) -> Tensor | None:
        """The pieces [W] that are wanted of a block; None: all of them."""
        return self.rows if block is bert.blocks[-1] else None


class RowMasks:
    """The masks of P pieces, of which [W] rows are wanted: the numbers that these rows would have got anyway."""

    def __init__(self, masks: Any, rows: Tensor, P: int):
        self.masks, self.rows, self.P = masks, rows, P

    def __call__(self, site: int, shape: tuple[int, ...], p: float, like: Tensor) -> Tensor:
        """[W,H]."""
        return self.masks(site, (self.P, *shape[1:]), p, like)[self.rows]


class Ahead:
    """The encoder's masks of a micro-batch, drawn before its forward in threads: numpy draws without Python's lock."""

    def __init__(self, masks: Any, bert: Bert, batch: Any, dtype: torch.dtype):
        e, (B, T), stream = bert.embeddings, batch.layout.shape, (len(batch.ids), bert.config.hidden_size)
        like = e.word.weight.new_empty(0, dtype=dtype)
        asked = [(0, stream, e.p, e.word.weight)]
        for m in bert.blocks:
            a = m.attention
            asked += [(a.site, (B, a.A, T, T), a.p, like), *((m.site + i, stream, m.p, like) for i in (1, 2))]
        drawn = THREADS.map(lambda one: draw(masks, *one), asked)
        self.drawn = {site: mask for (site, *_), mask in zip(asked, drawn, strict=True)}

    def __call__(self, site: int, shape: tuple[int, ...], p: float, like: Tensor) -> Tensor:
        """Each of them once."""
        return self.drawn.pop(site)


def spread(x: Tensor, rows: Tensor, P: int) -> Tensor:
    """[W,H] at these rows of [P,H], 0 elsewhere."""
    return x.new_zeros(P, x.shape[1]).index_copy_(0, rows, x)


class Scorer:
    """A model as it is now, for scores alone: matrices cast once, nothing kept for a backward, no dropout."""

    def __init__(self, model: Model, precision: str):
        self.model, self.precision, self.kept = model, precision, Kept(training=False)
        self.kept.cast(model, precision)

    @torch.inference_mode()
    def __call__(self, batch: Any) -> Tensor:
        """A batch.Batch -> the head's scores."""
        bert = self.model.bert
        wide, activation = self.model.head.wide, ACTIVATIONS[bert.config.hidden_act]
        read = Read(batch, wide)
        x, _ = embeddings_forward(bert.embeddings, batch, None, self.kept.dtype)
        for block, maps in zip(bert.blocks, self.kept.blocks, strict=True):
            x, _ = block_forward(block, maps, x, batch.layout, None, activation, attend, read.by(block, bert))
        with autocast(self.precision, x.device):
            scores = self.model.head(x, read.batch, None)
        return scores[:len(batch.picks)] if wide else scores


# ------------------------------------------------------------------------------------------------------ the encoder


def bert_forward(model: Model, batch: Any, read: Read, masks: Any, gradients: Gradients, kept: Kept,
                 ) -> tuple[Tensor, list[Any]]:
    """-> hidden states [W,H] of the pieces read and a cache for each part that the backward visits, lowest first."""
    bert = model.bert
    lowest, activation = lowest_trained(bert, gradients), ACTIVATIONS[bert.config.hidden_act]
    masks = masks and Ahead(masks, bert, batch, kept.dtype)
    x, cache = embeddings_forward(bert.embeddings, batch, masks, kept.dtype)
    caches = [cache] if lowest == 0 else []
    for i, (block, maps) in enumerate(zip(bert.blocks, kept.blocks, strict=True), 1):
        x, cache = block_forward(block, maps, x, batch.layout, masks, activation, attention_forward,
                                 read.by(block, bert))
        if i >= lowest:
            caches.append(cache)
    return x, caches


def bert_backward(model: Model, dout: Tensor, caches: list[Any], gradients: Gradients, kept: Kept) -> None:
    """[W,H] -> gradients of the encoder; each cache is let go as soon as it was used."""
    bert, activation = model.bert, ACTIVATIONS[model.bert.config.hidden_act]
    for i in reversed(range(max(lowest_trained(bert, gradients) - 1, 0), len(bert.blocks))):
        dout = block_backward(bert.blocks[i], kept.blocks[i], dout, caches.pop(), gradients, activation)
    if caches:
        embeddings_backward(bert.embeddings, dout, caches.pop(), gradients)


def embeddings_forward(m: Embeddings, batch: Any, masks: Any, dtype: torch.dtype) -> tuple[Tensor, Any]:
    """-> [P,H] in `dtype`."""
    total = m.word.weight[batch.ids]
    total += m.token_type.weight[batch.types]
    total += m.position.weight[batch.layout.position]
    x, mean, rstd = norm_forward(m.norm, total)
    mask = draw(masks, 0, x.shape, m.p, x)
    x = (x if mask is None else x.mul_(mask)).to(dtype)
    return x, (batch, total, mean, rstd, mask)


def embeddings_backward(m: Embeddings, dout: Tensor, cache: Any, gradients: Gradients) -> None:
    """[P,H]; rows of the word table that no piece of the batch uses are not visited."""
    batch, total, mean, rstd, mask = cache
    dout = dout.to(total.dtype)
    dout = norm_backward(m.norm, dout if mask is None else dout * mask, total, mean, rstd, gradients)
    for table, ids in ((m.token_type, batch.types), (m.position, batch.layout.position)):
        gradients.add((table.weight, aten.embedding_dense_backward(dout, ids, len(table.weight), -1, False)))
    gradients.add((m.word.weight, word_gradient(m.word.weight, dout, batch.ids)))


def word_gradient(w: Tensor, dout: Tensor, ids: Tensor) -> Tensor:
    """[P,H], int64 [P] -> dw [V,H], sparse: each row that the batch uses once, in ascending order."""
    rows, number = torch.unique(ids, return_inverse=True)
    values = aten.embedding_dense_backward(dout, number, len(rows), -1, False)
    return torch.sparse_coo_tensor(rows[None], values, w.shape, is_coalesced=True, check_invariants=False)


def block_forward(m: Block, maps: tuple[Linear, ...], x: Tensor, layout: Any, masks: Any, activation: str,
                  attention: Callable[..., tuple[Tensor, Any]], rows: Tensor | None) -> tuple[Tensor, Any]:
    """[P,H] -> [P,H], or [W,H] if only these rows are wanted; `attention` is attention_forward or attend."""
    qkv, output, inner, outer = maps
    mixed, attention_cache = attention(m.attention, qkv(x), layout, masks)
    stream = x
    if rows is not None:
        mixed, stream, masks = mixed[rows], x[rows], masks and RowMasks(masks, rows, len(x))
    mid, branch1 = join_forward(m.attention_norm, stream, output(mixed), m.p, masks, m.site + 1)
    before = inner(mid)
    out, branch2 = join_forward(m.feedforward_norm, mid, outer(ACTIVATE[activation](before)), m.p, masks, m.site + 2)
    return out, (x, rows, attention_cache, mixed, branch1, mid, before, branch2)


def block_backward(m: Block, maps: tuple[Linear, ...], dout: Tensor, cache: Any, gradients: Gradients,
                   activation: str) -> Tensor:
    """[P,H] or [W,H] -> dx [P,H]: the forward read from its last line to its first."""
    x, rows, attention_cache, mixed, branch1, mid, before, branch2 = cache
    qkv, output, inner, outer = maps
    a, f = m.attention, m.feedforward
    shortcut, dbranch = join_backward(m.feedforward_norm, dout, branch2, gradients)
    weigh(gradients, outer, dbranch, ACTIVATE[activation](before), f.outer)
    dbefore = ACTIVATE_BACKWARD[activation](outer.by_input(dbranch), before)
    weigh(gradients, inner, dbefore, mid, f.inner)
    shortcut, dbranch = join_backward(m.attention_norm, shortcut.add_(inner.by_input(dbefore)), branch1, gradients)
    weigh(gradients, output, dbranch, mixed, a.output)
    dmixed = output.by_input(dbranch)
    if rows is not None:
        dmixed, shortcut = spread(dmixed, rows, len(x)), spread(shortcut, rows, len(x))
    dqkv = attention_backward(dmixed, attention_cache)
    weigh(gradients, qkv, dqkv, x, a.query, a.key, a.value)
    return shortcut.add_(qkv.by_input(dqkv))


def weigh(gradients: Gradients, together: Linear, dout: Tensor, x: Tensor, *maps: nn.Linear) -> None:
    """[P,n], [P,m] -> gradients of the linear maps that stand side by side in `together`."""
    n = [f.out_features for f in maps]
    for f, dw, db in zip(maps, *(d.split(n) for d in together.by_weights(dout, x)), strict=True):
        gradients.add((f.weight, dw), (f.bias, db))


def norm_forward(m: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[P,H] -> out [P,H], mean and 1/sd [P,1]."""
    return torch.native_layer_norm(x, m.normalized_shape, m.weight, m.bias, m.eps)


def norm_backward(m: nn.LayerNorm, dout: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gradients: Gradients) -> Tensor:
    """[P,H] -> dx [P,H].

    In fp32 at least: of 16-bit numbers torch's kernel adds up dw and db in 16 bits, percents off after 1,000 pieces.
    """
    dx, dw, db = aten.native_layer_norm_backward(dout.to(mean.dtype), x.to(mean.dtype), m.normalized_shape, mean, rstd,
                                                 m.weight, m.bias, [True] * 3)
    gradients.add((m.weight, dw), (m.bias, db))
    return dx.to(dout.dtype)


def join_forward(m: nn.LayerNorm, x: Tensor, f: Tensor, p: float, masks: Any, site: int) -> tuple[Tensor, Any]:
    """Branch f back into the stream x, [P,H] each: LayerNorm(x + dropout(f))."""
    mask = draw(masks, site, f.shape, p, f)
    total = x + f if mask is None else torch.addcmul(x, f, mask)
    out, mean, rstd = norm_forward(m, total)
    return out, (total, mean, rstd, mask)


def join_backward(m: nn.LayerNorm, dout: Tensor, cache: Any, gradients: Gradients) -> tuple[Tensor, Tensor]:
    """[P,H] -> the gradients of x and of f."""
    total, mean, rstd, mask = cache
    dx = norm_backward(m, dout, total, mean, rstd, gradients)
    return dx, dx.clone() if mask is None else dx * mask


def times(x: Tensor, mask: Tensor | None) -> Tensor:
    """x with a dropout mask; None: no dropout."""
    return x if mask is None else x * mask


def attention_forward(m: Attention, qkv: Tensor, layout: Any, masks: Any) -> tuple[Tensor, Any]:
    """[P,3H] -> [P,H]: softmax(QKᵀ/√D)V in every head, the softmax in fp32 at least."""
    (B, T), wide = layout.shape, torch.promote_types(qkv.dtype, torch.float32)
    # [P,3H] -rows-> [B,T,3H] -split-> [B,T,3,A,D] -move-> [3,B,A,T,D] -join-> [3,BA,T,D]
    rows = layout.rows(qkv).view(B, T, 3, m.A, m.D).permute(2, 0, 3, 1, 4)
    q, k, v = rows.contiguous().view(3, B * m.A, T, m.D)
    s = (q @ k.mT).to(wide).mul_(1 / math.sqrt(m.D)).view(B, m.A, T, T)
    if layout.allowed is not None:
        s += torch.zeros_like(layout.allowed, dtype=wide).masked_fill_(~layout.allowed, torch.finfo(wide).min)
    p = s.softmax(-1).to(qkv.dtype)
    mask = draw(masks, m.site, p.shape, m.p, p)
    mixed = times(p, mask).view(B * m.A, T, T) @ v
    # [BA,T,D] -split-> [B,A,T,D] -swap-> [B,T,A,D] -join-> [B,T,H] -pieces-> [P,H]
    out = mixed.view(B, m.A, T, m.D).transpose(1, 2).reshape(B, T, m.A * m.D)
    return layout.pieces(out), (layout, q, k, v, p, mask)


def attend(m: Attention, qkv: Tensor, layout: Any, masks: None) -> tuple[Tensor, None]:
    """attention_forward() without dropout and without a cache; long rows never store their [T,T] scores."""
    B, T = layout.shape
    if may_pack(qkv, layout):
        return attend_packed(m, qkv, layout), None
    if T < LONG and qkv.device.type == "cpu":
        return attention_forward(m, qkv, layout, None)[0], None
    # [P,3H] -rows-> [B,T,3H] -split-> [B,T,3,A,D] -move-> [3,B,A,T,D]
    q, k, v = layout.rows(qkv).view(B, T, 3, m.A, m.D).permute(2, 0, 3, 1, 4)
    mixed = attention_fused(q, k, v, layout.allowed)
    return layout.pieces(mixed.transpose(1, 2).reshape(B, T, m.A * m.D)), None


def may_pack(qkv: Tensor, layout: Any) -> bool:
    """Whether torch has a kernel for these rows end to end: CUDA, 16 bits, every piece of a row sees all of it."""
    return (qkv.is_cuda and qkv.element_size() == 2 and layout.kind == "ragged" and layout.prefix is None
            and importlib.util.find_spec("torch.nn.attention.varlen") is not None)


def attend_packed(m: Attention, qkv: Tensor, layout: Any) -> Tensor:
    """[N,3H] of a ragged layout -> [N,H], by torch's kernel for rows of different lengths."""
    from torch.nn.attention.varlen import varlen_attn  # only here: it brings torch's compiler, a second and a half
    q, k, v = qkv.view(-1, 3, m.A, m.D).unbind(1)                              # [N,A,D] each
    ends = F.pad(layout.lengths.cumsum(0), (1, 0)).to(torch.int32)             # [B+1]
    longest = layout.shape[1]                      # columns; asking the device for the longest row would wait for it
    return varlen_attn(q, k, v, ends, ends, longest, longest).reshape(len(qkv), -1)


def attention_backward(dout: Tensor, cache: Any) -> Tensor:
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
