"""BERT in plain torch: Embeddings, Attention, FeedForward, Block, Pooler, Bert; Model = Bert + head.

B batch, T columns of a row, P pieces as the Layout lays them out, H hidden, A heads, D = H/A, F feed-forward.
Source of every formula: Vaswani et al. 2017 (attention, feed-forward), Devlin et al. 2019 (the rest).
"""
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.core.batch import Batch
from minibert.core.config import HIDDEN_ACTS, BertConfig
from minibert.core.dropout import Masks, draw
from minibert.core.layout import Layout
from minibert.core.objective import Loss
from minibert.errors import MinibertError

if TYPE_CHECKING:
    from minibert.core.heads import Head  # which imports this file

ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}


def attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, mask: Tensor | None = None) -> Tensor:
    """softmax(QKᵀ/√D)V, as a learner reads it: [B,A,T,D] three times -> [B,A,T,D].

    `allowed`, bool, broadcasts to [B,A,T,T]: which key (last axis) each query may see; None: all. `mask` [B,A,T,T]
    multiplies the probabilities (dropout). A query that may see no key gets the mean of all values, in
    attention_fused 0, never NaN; nothing reads it.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])                 # [B,A,T query,T key]
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1)
    if mask is not None:
        probabilities = probabilities * mask
    return probabilities @ v


def attention_fused(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """attention() without dropout in one torch kernel that never stores the [T,T] scores."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def dropout(x: Tensor, p: float, masks: Masks | None, site: int) -> Tensor:
    """x · mask, any shape."""
    mask = draw(masks, site, x.shape, p, x)
    return x if mask is None else x * mask


class Embeddings(nn.Module):
    """One vector a piece: word + position + type, normalised."""

    def __init__(self, c: BertConfig):
        super().__init__()
        self.word = nn.Embedding(c.vocab_size, c.hidden_size)
        self.position = nn.Embedding(c.max_position_embeddings, c.hidden_size)
        self.token_type = nn.Embedding(c.type_vocab_size, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.p = c.hidden_dropout_prob

    def forward(self, ids: Tensor, types: Tensor, position: Tensor, masks: Masks | None = None) -> Tensor:
        """int64 [P] three times -> [P,H]."""
        x = self.word(ids) + self.token_type(types) + self.position(position)
        return dropout(self.norm(x), self.p, masks, site=0)


class Attention(nn.Module):
    """A heads side by side; the only place where pieces see each other."""

    def __init__(self, c: BertConfig, site: int):
        super().__init__()
        H = c.hidden_size
        self.query, self.key, self.value, self.output = (nn.Linear(H, H) for _ in range(4))
        self.A, self.D = c.num_attention_heads, c.head_size
        self.p, self.site = c.attention_probs_dropout_prob, site

    def forward(self, x: Tensor, layout: Layout, masks: Masks | None = None) -> Tensor:
        """[P,H] -> [P,H]."""
        q, k, v = (self.heads(layout.rows(f(x))) for f in (self.query, self.key, self.value))
        mask = draw(masks, self.site, (*q.shape[:3], k.shape[2]), self.p, q)
        mixed = attention_fused(q, k, v, layout.allowed) if mask is None else attention(q, k, v, layout.allowed, mask)
        # [B,A,T,D] -swap-> [B,T,A,D] -join-> [B,T,H]
        return self.output(layout.pieces(mixed.transpose(1, 2).flatten(2)))

    def heads(self, x: Tensor) -> Tensor:
        """[B,T,H] -> [B,A,T,D]."""
        # [B,T,H] -split-> [B,T,A,D] -swap-> [B,A,T,D]
        return x.unflatten(-1, (self.A, self.D)).transpose(1, 2)


class FeedForward(nn.Module):
    """[P,H] -> [P,F] -> [P,H]."""

    def __init__(self, c: BertConfig):
        super().__init__()
        self.inner = nn.Linear(c.hidden_size, c.intermediate_size)
        self.outer = nn.Linear(c.intermediate_size, c.hidden_size)
        self.activation = HIDDEN_ACTS[c.hidden_act]
        self.activate = ACTIVATE[self.activation]

    def forward(self, x: Tensor) -> Tensor:
        """[P,H] -> [P,H]."""
        return self.outer(self.activate(self.inner(x)))


class Block(nn.Module):
    """Attention and feed-forward, each followed by dropout, residual and LayerNorm (post-norm, unlike GPT)."""

    def __init__(self, c: BertConfig, number: int):
        super().__init__()
        self.site = 1 + 3 * number                 # dropout sites: 0 embeddings, then three a block, then the head
        self.attention = Attention(c, self.site)
        self.attention_norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.feedforward = FeedForward(c)
        self.feedforward_norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.p = c.hidden_dropout_prob

    def forward(self, x: Tensor, layout: Layout, masks: Masks | None = None) -> Tensor:
        """[P,H] -> [P,H]."""
        x = self.attention_norm(x + dropout(self.attention(x, layout, masks), self.p, masks, self.site + 1))
        return self.feedforward_norm(x + dropout(self.feedforward(x), self.p, masks, self.site + 2))


class Pooler(nn.Module):
    """tanh of a linear map of each row's first piece, trained on next-sentence prediction."""

    def __init__(self, c: BertConfig):
        super().__init__()
        self.dense = nn.Linear(c.hidden_size, c.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        """[B,H] -> [B,H]."""
        return torch.tanh(self.dense(first))


class Bert(nn.Module):
    """The encoder. `pooler` is None for checkpoints without one."""

    def __init__(self, config: BertConfig, pooler: bool = True):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        blocks = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.blocks = cast(Sequence[Block], blocks)                           # which torch's list does not say
        self.pooler = Pooler(config) if pooler else None

    def forward(self, ids: Tensor, types: Tensor, layout: Layout, masks: Masks | None = None) -> Tensor:
        """int64 [P], [P] -> hidden states [P,H]; `masks` None: no dropout."""
        x = self.embeddings(ids, types, layout.position, masks)
        for block in self.blocks:
            x = block(x, layout, masks)
        return x

    def encode(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None,
               layout: str = "rectangle") -> "tuple[Tensor, Tensor | None | NoPooled]":
        """The encoder as other libraries call it, without dropout: int64 [B,T] each -> hidden [B,T,H], pooled [B,H].

        `mask` is 1 where a piece is live (default: everywhere) and may have left padding and holes: positions are
        columns. Padded positions return 0. `pooled` comes from column 0; it is None for an encoder without a pooler,
        and any use of it is an error where the mask hides that column. Raises MinibertError for ids, types or a
        length that the checkpoint has no row for.
        """
        mask = torch.ones_like(ids) if mask is None else mask
        types = torch.zeros_like(ids) if types is None else types
        self.check_input(ids, mask, types)
        live = mask.bool()
        placed = Layout(live, layout)
        hidden = placed.rows(self(placed.pieces(ids), placed.pieces(types), placed))
        hidden = hidden * live[..., None]
        if self.pooler is None:
            return hidden, None
        masked_rows = (~live[:, 0]).nonzero().flatten().tolist()
        return hidden, NoPooled(masked_rows) if masked_rows else self.pooler(hidden[:, 0])

    def check_input(self, ids: Tensor, mask: Tensor, types: Tensor) -> None:
        """Raises MinibertError where [B,T] ids, mask or types do not fit the checkpoint."""
        c = self.config
        if ids.dim() != 2 or ids.shape != mask.shape or ids.shape != types.shape:
            raise MinibertError(f"encode: ids {list(ids.shape)}, mask {list(mask.shape)} and types {list(types.shape)} "
                                "must all be [B,T]")
        if ids.shape[1] > c.max_position_embeddings:
            raise MinibertError(f"encode: rows of {ids.shape[1]} pieces; the checkpoint has "
                                f"{c.max_position_embeddings} positions; cut the text into windows")
        for name, x, size in (("ids", ids, c.vocab_size), ("types", types, c.type_vocab_size)):
            if x.numel() and not (0 <= int(x.min()) and int(x.max()) < size):
                raise MinibertError(f"encode: {name} run from {int(x.min())} to {int(x.max())}; the checkpoint knows "
                                    f"0 to {size - 1}")


class NoPooled:
    """Stands where `pooled` would, when column 0 is masked: hidden states are fine, using this is an error."""

    def __init__(self, rows: list[int]):
        self._rows = rows

    def __getattr__(self, name: str) -> NoReturn:
        raise MinibertError(f"pooled is taken from column 0, which the mask hides in rows {self._rows}; "
                            "pad on the right, or use the hidden states")

    def _refuse(self, *operands: object) -> NoReturn:
        self.__getattr__("use")

    __getitem__ = __eq__ = __bool__ = _refuse      # Python would answer the last two by itself


class Model(nn.Module):
    """Bert and a task's head.

    `task`: what the scores lose, where the model knows it. `kit_layers`: what adaptation puts in front of the kits
    that compute a block by hand, see kit.kit_of().
    """
    task: Loss | None = None
    kit_layers: tuple[type, ...] = ()

    def __init__(self, bert: Bert, head: "Head"):
        super().__init__()
        self.bert, self.head = bert, head
        head.attach(bert)

    def forward(self, batch: Batch, masks: Masks | None = None) -> Tensor:
        """A batch -> the head's scores; `masks` None: no dropout."""
        return self.head(self.bert(batch.ids, batch.types, batch.layout, masks), batch, masks)


@torch.no_grad()
def initialise(module: nn.Module, sd: float, seed: int) -> None:
    """New weights as in the paper's code: matrices from a normal cut at two sd, biases 0, LayerNorm 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(m.weight, std=sd, a=-2 * sd, b=2 * sd, generator=generator)
        elif isinstance(m, nn.LayerNorm):
            m.weight.fill_(1.0)
        if isinstance(m, (nn.Linear, nn.LayerNorm)):
            m.bias.zero_()
