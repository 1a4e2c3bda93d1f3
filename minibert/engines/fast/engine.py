"""The default engine: core/byhand.py's chain on the kernels of kernels.py, and what is around it that saves time.

- The last block, after its attention, works on the pieces that the head reads, and on a few more that fill a step.
- Of scores for a whole vocabulary one softmax gives both the loss and its gradient.
- Dropout masks are drawn ahead of the forward, in threads.
- In bf16 the gradient of a matrix stays so until AdamW reads it, and is clipped there.
- AdamW is one kernel, and the C library keeps the memory that is freed.
"""
import dataclasses
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from minibert.core.batch import Batch
from minibert.core.byhand import (
    Gradients,
    block_backward,
    block_forward,
    lowest_trained,
    mix_backward,
    mix_forward,
    per_piece_backward,
    per_piece_forward,
)
from minibert.core.dropout import Masks, draw
from minibert.core.kit import kit_of
from minibert.core.layout import Layout
from minibert.core.model import Bert, Block, Model
from minibert.core.objective import Loss
from minibert.core.ops import Cache, Pair
from minibert.core.optim import AdamW
from minibert.core.precision import autocast
from minibert.engines.fast.adamw import FusedAdamW
from minibert.engines.fast.kernels import Kernels, ScoringKernels
from minibert.engines.fast.memory import Heap, keep_memory

THREADS = ThreadPoolExecutor(torch.get_num_threads())
SHORT = torch.bfloat16                             # as wide as fp32 in range, so it needs no loss scale
STEP = 64                                          # rows of the last block come in multiples of it


class Fast:
    """--gradients fast."""
    adamw: type[AdamW] = FusedAdamW

    def __init__(self, model: Model, precision: str):
        self.model, self.precision, self.heap = model, precision, Heap()
        keep_memory()
        self.kit = kit_of(model, Kernels)(model, precision)

    @torch.no_grad()
    def __call__(self, criterion: Loss, batch: Batch, masks: Masks | None, factors: Mapping[str, float],
                 ) -> dict[str, Tensor]:
        """Add the gradient of Σ factor · sum of losses to every parameter's .grad; -> the sums.

        The word vectors' .grad is a sparse tensor: the rows that the batch uses.
        """
        model, kit, gradients = self.model, self.kit, AddedGradients(self.model)
        if all(p.grad is None for p in model.parameters()):
            kit.cast()                             # once an update: weights stand still until the optimizer's step
        settling = self.heap.settles(len(batch.ids))
        rows, read = rows_read(batch, model.head.wide)

        if settling:
            self.heap.give_back()
        hidden, caches = bert_forward(kit, model.bert, batch, masks, rows)
        with autocast(self.precision, hidden.device):
            scores, head_cache = model.head.forward_by_hand(hidden, read, masks)
            sums, dscores = loss_and_gradient(criterion, scores, read, factors)
            dhidden, pairs = model.head.backward_by_hand(dscores.to(scores.dtype), head_cache)
        gradients.add(*pairs)

        if settling:
            self.heap.give_back()
        bert_backward(kit, model.bert, dhidden.to(hidden.dtype), caches, gradients, rows)
        return sums


class Scorer:
    """A model as it is now, for scores alone: matrices cast once, nothing kept for a backward, no dropout."""

    def __init__(self, model: Model, precision: str):
        self.model, self.precision = model, precision
        self.kit = kit_of(model, ScoringKernels)(model, precision)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Tensor:
        """A batch -> the head's scores."""
        head = self.model.head
        rows, read = rows_read(batch, head.wide)
        *blocks, last = self.model.bert.blocks
        x, _ = self.kit.embed_forward(self.model.bert.embeddings, batch, None)
        for block in blocks:
            x, _ = block_forward(self.kit, block, x, batch.layout, None)
        x, _ = last_forward(self.kit, last, x, batch.layout, None, rows)
        with autocast(self.precision, x.device):
            scores = head(x, read, None)
        return scores[:len(batch.picks)] if head.wide else scores


class AddedGradients(Gradients):
    """Gradients that are added to p.grad at once, as autograd does, and kept nowhere else.

    That of a matrix which came out of its product in bf16 stays so, if nothing is added and FusedAdamW reads it.
    """

    def add(self, *pairs: Pair) -> None:
        """Add a contribution to each parameter; frozen ones are passed over."""
        for p, dp in pairs:
            if id(p) not in self.names:
                continue
            if p.grad is None:
                keep = dp.dtype == SHORT and dp.dim() > 1 and p.grad_dtype is None
                p.grad = dp if keep else dp.to(p.dtype)
            elif p.grad.is_sparse:
                p.grad = (p.grad + dp).coalesce()
            else:
                p.grad = p.grad.to(p.dtype).add_(dp)


# ------------------------------------------------------------------------------------------------------ the encoder


def bert_forward(kit: Kernels, bert: Bert, batch: Batch, masks: Masks | None, rows: Tensor | None,
                 ) -> tuple[Tensor, list[Cache]]:
    """byhand.bert_forward(), the last block on `rows` [W] alone -> [W,H], caches."""
    lowest = lowest_trained(bert)
    masks = masks and MasksAhead(masks, bert, batch, kit.dtype)
    x, cache = kit.embed_forward(bert.embeddings, batch, masks)
    caches = [cache] if lowest == 0 else []
    for i, block in enumerate(bert.blocks, 1):
        if i < len(bert.blocks):
            x, cache = block_forward(kit, block, x, batch.layout, masks)
        else:
            x, cache = last_forward(kit, block, x, batch.layout, masks, rows)
        if i >= lowest:
            caches.append(cache)
    return x, caches


def bert_backward(kit: Kernels, bert: Bert, dout: Tensor, caches: list[Cache], gradients: Gradients,
                  rows: Tensor | None) -> None:
    """byhand.bert_backward(), from [W,H]; each cache is let go as soon as it was used."""
    lowest = lowest_trained(bert)
    for i in range(len(bert.blocks), max(lowest, 1) - 1, -1):
        if i < len(bert.blocks):
            dout = block_backward(kit, bert.blocks[i - 1], dout, caches.pop(), gradients)
        else:
            dout = last_backward(kit, bert.blocks[i - 1], dout, caches.pop(), gradients, rows)
    if caches:
        kit.embed_backward(bert.embeddings, dout, caches.pop(), gradients)


def last_forward(kit: Kernels, m: Block, x: Tensor, layout: Layout, masks: Masks | None, rows: Tensor | None,
                 ) -> tuple[Tensor, Cache]:
    """byhand.block_forward() -> [W,H]: after its attention no piece sees another, so those that nobody reads end there.
    """
    if rows is None:
        return block_forward(kit, m, x, layout, masks)
    mixed, mix = mix_forward(kit, m.attention, x, layout, masks)
    out, rest = per_piece_forward(kit, m, x[rows], mixed[rows], masks and RowMasks(masks, rows, len(x)))
    return out, (mix, rest, len(x))


def last_backward(kit: Kernels, m: Block, dout: Tensor, cache: Cache, gradients: Gradients, rows: Tensor | None,
                  ) -> Tensor:
    """[W,H] -> dx [P,H]."""
    if rows is None:
        return block_backward(kit, m, dout, cache, gradients)
    mix, rest, P = cache
    dx, dmixed = (spread(d, rows, P) for d in per_piece_backward(kit, m, dout, rest, gradients))
    return dx + mix_backward(kit, m.attention, dmixed, mix, gradients)


def spread(x: Tensor, rows: Tensor, P: int) -> Tensor:
    """[W,H] at these rows of [P,H], 0 elsewhere."""
    return x.new_zeros(P, x.shape[1]).index_copy_(0, rows, x)


def rows_read(batch: Batch, wide: bool) -> tuple[Tensor | None, Batch]:
    """(the pieces [W], ascending, that the last block computes, None: all; the batch as the head sees those).

    They are the pieces that the head reads, and a few others to make a multiple of STEP: torch's library builds and
    keeps a program of a megabyte for every new number of rows. For a `wide` head it is ten megabytes, so its picks
    become such a multiple as well: those that are added have no label.
    """
    if batch.ids.device.type != "cpu":             # counting them would wait for the device
        return None, batch
    read = torch.zeros(len(batch.ids), dtype=torch.bool)
    read[batch.picks] = True
    missing = -max(int(read.sum()), 1) % STEP
    read[(~read).nonzero().flatten()[:missing]] = True
    rows = read.nonzero().flatten()

    picks, labels = torch.searchsorted(rows, batch.picks), batch.labels
    if wide:
        more = 0, -len(picks) % STEP
        picks, labels = F.pad(picks, more), F.pad(labels, more, value=-1)
    return rows, dataclasses.replace(batch, picks=picks, labels=labels)


# -------------------------------------------------------------------------------------------------------- the masks


class RowMasks:
    """The masks of P pieces, of which [W] rows are wanted: the numbers that these rows would have got anyway."""

    def __init__(self, masks: Masks, rows: Tensor, P: int):
        self.masks, self.rows, self.P = masks, rows, P

    def __call__(self, site: int, shape: Iterable[int], p: float, like: Tensor) -> Tensor:
        """[W,H]."""
        _, *others = shape
        return self.masks(site, (self.P, *others), p, like)[self.rows]


class MasksAhead:
    """The encoder's masks of a micro-batch, drawn before its forward in threads: numpy draws without Python's lock."""

    def __init__(self, masks: Masks, bert: Bert, batch: Batch, dtype: torch.dtype):
        self.masks = masks
        e, (B, T), stream = bert.embeddings, batch.layout.shape, (len(batch.ids), bert.config.hidden_size)
        like = e.word.weight.new_empty(0, dtype=dtype)
        asked: list[tuple[int, tuple[int, ...], float, Tensor]] = [(0, stream, e.p, e.word.weight)]
        for m in bert.blocks:
            a = m.attention
            asked += [(a.site, (B, a.A, T, T), a.p, like), *((m.site + i, stream, m.p, like) for i in (1, 2))]
        drawn = THREADS.map(lambda one: draw(masks, *one), asked)
        self.drawn = {site: mask for (site, *_), mask in zip(asked, drawn, strict=True) if mask is not None}

    def __call__(self, site: int, shape: Iterable[int], p: float, like: Tensor) -> Tensor:
        """Each of them once; that of a site which is no block's, such as an adaptation's, when it is asked for."""
        return self.drawn.pop(site) if site in self.drawn else self.masks(site, shape, p, like)


# --------------------------------------------------------------------------------------------------------- the loss


def loss_and_gradient(criterion: Loss, scores: Tensor, batch: Batch, factors: Mapping[str, float],
                      ) -> tuple[dict[str, Tensor], Tensor]:
    """-> ({term: sum of losses}, the gradient of Σ factor · sum by the scores)."""
    if (labels := criterion.terms(batch)) is not None:
        return cross_entropy(scores, labels, factors)
    sums = criterion.loss(scores, batch)
    parts = [factors[term] * dterm for term, dterm in criterion.loss_backward(scores, batch).items()]
    return sums, sum(parts[1:], parts[0])


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

    weights = [factors[term] * there.to(p.dtype) for term, there in known.items()]
    p.scatter_add_(-1, y.clamp(min=0), p.new_full(y.shape, -1.0))
    return sums, p.mul_(sum(weights[1:], weights[0])[:, None])
