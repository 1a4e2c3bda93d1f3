"""Every operation of BERT as f_forward(...) -> (out, cache), directly followed by f_backward(dout, cache).

Plain tensor formulas: no autograd, no backward kernel of torch. The gradient of `w` is `dw`: the derivative of the
summed loss by w, in the shape of w. A label in brackets marks the line that is this equation of docs/, where
notation.md lists them all. The cache holds what the backward needs and nothing else.

B rows, T columns of a row, S keys (here T), P pieces of a batch, A heads, H hidden, D = H/A, F feed-forward,
V vocabulary, K labels, M labelled pieces; m numbers into a linear map and n out of it.
"""
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minibert.core.layout import Layout

Cache = Any                                        # what a forward keeps for its own backward; nobody else looks inside
Pair = tuple[Tensor, Tensor]                       # a parameter and its gradient

ROOT_2 = math.sqrt(2.0)
ROOT_2_PI = math.sqrt(2.0 * math.pi)
ROOT_2_OVER_PI = math.sqrt(2.0 / math.pi)
PART = 2 ** 16                                     # numbers that a GELU works on at a time
CUBE = 0.044715                                    # fixed by the checkpoint: of the tanh form (Hendrycks & Gimpel 2016)


def embedding_forward(ids: Tensor, w: Tensor) -> tuple[Tensor, tuple[Tensor, torch.Size]]:
    """int64 [P], table [V,H] -> rows [P,H]."""
    out = w[ids]                                                              # [EMB-1]
    return out, (ids, w.shape)


def embedding_backward(dout: Tensor, cache: tuple[Tensor, torch.Size]) -> Tensor:
    """[P,H] -> dw [V,H]; an id that stands twice gets both rows, added."""
    ids, shape = cache
    return dout.new_zeros(shape).index_add_(0, ids, dout)                     # [EMB-3]


# ----------------------------------------------------------------------------- dropout and residual (docs/01, 09)


def dropout_forward(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and a mask of its shape, 0 or 1/(1-p) (dropout.DropoutMasks); None: no dropout."""
    if mask is None:
        return x, None
    return x * mask, mask                                                     # [DROP-1]


def dropout_backward(dout: Tensor, cache: Tensor | None) -> Tensor:
    """dx: what was dropped learns nothing."""
    if cache is None:
        return dout
    return dout * cache                                                       # [DROP-4]


def residual_forward(x: Tensor, f: Tensor) -> tuple[Tensor, None]:
    """[P,H] and a branch of it [P,H] -> their sum; nothing to keep."""
    return x + f, None                                                        # [RES-1]


def residual_backward(dout: Tensor, cache: None) -> tuple[Tensor, Tensor]:
    """dx through the shortcut, df into the branch: the same tensor twice."""
    return dout, dout                                                         # [RES-2]


# ------------------------------------------------------------------------------------------ linear map (docs/02)


def linear_forward(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """[P,m], weight [n,m], bias [n] -> [P,n]; torch stores a weight as (out, in), hence the transpose."""
    out = torch.addmm(b, x, w.T)                                              # [LIN-1]
    return out, (x, w)


def linear_backward(dout: Tensor, cache: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """[P,n] -> dx [P,m], dw [n,m], db [n]."""
    x, w = cache
    dx = dout @ w                                                             # [LIN-2]
    dw = dout.T @ x                                                           # [LIN-3]
    db = dout.sum(0)                                                          # [LIN-4]
    return dx, dw, db


# ---------------------------------------------------------------------------- a text as one vector (docs/tasks/reply)


def row_mean_forward(x: Tensor, row: Tensor, B: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """[M,H], int64 [M] the row of each -> [B,H], the mean of each row, which has at least one."""
    n = torch.bincount(row, minlength=B).to(x.dtype)[:, None]                 # [B,1]
    out = x.new_zeros(B, x.shape[1]).index_add(0, row, x) / n                 # [POOL-1]
    return out, (row, n)


def row_mean_backward(dout: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    """[B,H] -> dx [M,H]: each of n takes an n-th."""
    row, n = cache
    return (dout / n)[row]                                                    # [POOL-2]


def unit_forward(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """[B,H] -> the same directions at length 1; a row of zeros stays one."""
    length = (x * x).sum(-1, keepdim=True).sqrt().clamp(min=1e-12)            # [B,1]
    u = x / length                                                            # [UNIT-1]
    return u, (u, length)


def unit_backward(du: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    """dx [B,H]: what points along the vector changes nothing, the rest shrinks by the length."""
    u, length = cache
    return (du - (du * u).sum(-1, keepdim=True) * u) / length                 # [UNIT-2]


# -------------------------------------------------------------------------------------- softmax, attention (docs/02)


def softmax_textbook(s: Tensor) -> Tensor:
    """[..., T] -> probabilities [..., T], as on paper: overflows where a score passes 88 (fp32); for the test only."""
    return s.exp() / s.exp().sum(-1, keepdim=True)                            # [SM-1]


def softmax_forward(s: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [..., T] -> probabilities [..., T]; the largest exponent is 0, so nothing overflows.

    It works in place on what it made itself, which autograd would refuse; `s` is left as it is.
    """
    e = (s - s.amax(-1, keepdim=True)).exp_()                                 # in (0, 1], one of them 1
    p = e.div_(e.sum(-1, keepdim=True))                                       # [SM-2]
    return p, p


def softmax_backward(dout: Tensor, cache: Tensor) -> Tensor:
    """ds [..., T] from the probabilities alone; the scores are not needed."""
    p = cache
    ds = p * (dout - (dout * p).sum(-1, keepdim=True))                        # [SM-3]
    return ds


def split_heads(x: Tensor, layout: Layout, heads: int) -> Tensor:
    """[P,H] -> [B,A,T,D]: pieces to rows, channels to heads; head a takes channels aD to (a+1)D."""
    # [P,H] -rows-> [B,T,H] -split-> [B,T,A,D] -swap-> [B,A,T,D]
    return layout.rows(x).unflatten(-1, (heads, -1)).transpose(1, 2)          # [ATT-1]


def join_heads(x: Tensor, layout: Layout) -> Tensor:
    """[B,A,T,D] -> [P,H]: the inverse of split_heads on live pieces, and its adjoint."""
    # [B,A,T,D] -swap-> [B,T,A,D] -join-> [B,T,H] -pieces-> [P,H]
    return layout.pieces(x.transpose(1, 2).flatten(2))                        # [ATT-2]


class AttentionCache(NamedTuple):
    """What attend_backward needs: q [B,A,T,D], k, v [B,A,S,D]; probabilities before dropout and its mask [B,A,T,S]."""
    q: Tensor
    k: Tensor
    v: Tensor
    p: Tensor
    mask: Tensor | None


def attend_forward(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, mask: Tensor | None = None,
                   ) -> tuple[Tensor, AttentionCache]:
    """softmax(QKᵀ/√D)V in every head: q [B,A,T,D], k and v [B,A,S,D] -> [B,A,T,D]; here S = T.

    `allowed`, bool, broadcasts to [B,A,T,S]: which key each query may see; None: all. A query that may see no key
    spreads evenly over all; nothing reads its output. `mask` [B,A,T,S] drops probabilities.
    """
    s = q @ k.mT / math.sqrt(q.shape[-1])                                     # [ATT-3]
    if allowed is not None:
        s = s.masked_fill_(~allowed, torch.finfo(s.dtype).min)                # [ATT-4]

    p, _ = softmax_forward(s)
    dropped, _ = dropout_forward(p, mask)
    out = dropped @ v                                                         # [ATT-5]
    return out, AttentionCache(q, k, v, p, mask)


def attend_backward(dout: Tensor, cache: AttentionCache) -> tuple[Tensor, Tensor, Tensor]:
    """[B,A,T,D] -> dq [B,A,T,D], dk, dv [B,A,S,D]."""
    q, k, v, p, mask = cache
    dropped, _ = dropout_forward(p, mask)
    dv = dropped.mT @ dout                                                    # [ATT-6]
    ddropped = dout @ v.mT                                                    # [ATT-7]

    ds = softmax_backward(dropout_backward(ddropped, mask), p)                # a hidden key has p = 0, so ds = 0
    du = ds / math.sqrt(q.shape[-1])                                          # [ATT-8]
    dq = du @ k                                                               # [ATT-9]
    dk = du.mT @ q                                                            # [ATT-10]
    return dq, dk, dv


def attention_forward(q: Tensor, k: Tensor, v: Tensor, layout: Layout, heads: int, mask: Tensor | None = None,
                      ) -> tuple[Tensor, tuple[Layout, int, AttentionCache]]:
    """attend_forward() of pieces as they lie in a batch: [P,H] three times -> [P,H].

    `layout` (layout.Layout) knows which pieces share a row and, in `layout.allowed`, which key each query may see.
    """
    q, k, v = (split_heads(x, layout, heads) for x in (q, k, v))
    mixed, cache = attend_forward(q, k, v, layout.allowed, mask)
    return join_heads(mixed, layout), (layout, heads, cache)


def attention_backward(dout: Tensor, cache: tuple[Layout, int, AttentionCache]) -> tuple[Tensor, Tensor, Tensor]:
    """[P,H] -> dq, dk, dv, [P,H] each."""
    layout, heads, inner = cache
    dq, dk, dv = attend_backward(split_heads(dout, layout, heads), inner)
    return join_heads(dq, layout), join_heads(dk, layout), join_heads(dv, layout)


# -------------------------------------------------------------------------------------------- LayerNorm (docs/03)


def layernorm_forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Each piece [H] of [P,H] to mean 0 and variance 1, then scaled by w [H] and shifted by b [H] (Ba et al. 2016)."""
    mean = x.mean(-1, keepdim=True)                                           # [LN-1] [P,1]
    centred = x - mean
    variance = (centred * centred).mean(-1, keepdim=True)                     # [LN-2] [P,1]
    rstd = 1 / (variance + eps).sqrt()                                        # [LN-3] [P,1]
    xhat = centred * rstd                                                     # [LN-4] [P,H]
    out = xhat * w + b                                                        # [LN-5] [P,H]
    return out, (xhat, rstd, w)


def layernorm_backward(dout: Tensor, cache: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """[P,H] -> dx [P,H], dw [H], db [H]."""
    xhat, rstd, w = cache
    db = dout.sum(0)                                                          # [LN-6] [H]
    dw = (dout * xhat).sum(0)                                                 # [LN-7] [H]
    dxhat = dout * w                                                          # [LN-8] [P,H]
    along_one = dxhat.mean(-1, keepdim=True)                                  # [LN-9] [P,1]
    along_xhat = (dxhat * xhat).mean(-1, keepdim=True)                        # [LN-10] [P,1]
    dx = rstd * (dxhat - along_one - xhat * along_xhat)                       # [LN-11] [P,H]
    return dx, dw, db


# ------------------------------------------------------------------------------------------ activations (docs/03)


def normal_cdf(x: Tensor) -> Tensor:
    """Φ(x), any shape: the share of a standard normal that lies below x."""
    return 0.5 * (1 + torch.erf(x / ROOT_2))                                  # [GELU-1]


def normal_pdf(x: Tensor) -> Tensor:
    """φ(x) = Φ'(x), any shape."""
    return torch.exp(-0.5 * x * x) / ROOT_2_PI                                # [GELU-3]


def gelu_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """x · Φ(x), any shape (Hendrycks & Gimpel 2016); Φ is computed again in the backward rather than kept."""
    out = in_parts(lambda x: x * normal_cdf(x), x)                            # [GELU-2]
    return out, x


def gelu_backward(dout: Tensor, cache: Tensor) -> Tensor:
    """dx: product rule on x · Φ(x)."""
    return in_parts(lambda dout, x: dout * (normal_cdf(x) + x * normal_pdf(x)), dout, cache)  # [GELU-4]


def gelu_tanh_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """The tanh form of GELU, which some checkpoints were trained with, any shape."""
    out = in_parts(lambda x: 0.5 * x * (1 + torch.tanh(tanh_argument(x))), x)  # [GELU-6]
    return out, x


def tanh_argument(x: Tensor) -> Tensor:
    """u(x), any shape."""
    return ROOT_2_OVER_PI * (x + CUBE * x * x * x)                            # [GELU-5]


def gelu_tanh_backward(dout: Tensor, cache: Tensor) -> Tensor:
    """dx: product rule and chain rule through tanh."""
    def part(dout: Tensor, x: Tensor) -> Tensor:
        t = torch.tanh(tanh_argument(x))
        du = ROOT_2_OVER_PI * (1 + 3 * CUBE * x * x)                          # [GELU-7]
        return dout * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du)            # [GELU-8]

    return in_parts(part, dout, cache)


def in_parts(f: Callable[..., Tensor], *xs: Tensor) -> Tensor:
    """f(*xs) for a function of single numbers, PART of them at a time; shape and dtype of the last of `xs`.

    What f makes on the way stays in the processor's cache instead of filling fresh memory as large as x. Half formats
    are widened: f computes in fp32, and what it returns is rounded once.
    """
    out = torch.empty_like(xs[-1], memory_format=torch.contiguous_format)
    flat, target = [x.reshape(-1) for x in xs], out.view(-1)
    for i in range(0, target.numel(), PART):
        target[i:i + PART] = f(*(at_least_fp32(x[i:i + PART]) for x in flat))
    return out


def at_least_fp32(x: Tensor) -> Tensor:
    """x; half formats become fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def tanh_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """tanh x, any shape."""
    out = torch.tanh(x)                                                       # [TANH-1]
    return out, out


def tanh_backward(dout: Tensor, cache: Tensor) -> Tensor:
    """dx from the output alone."""
    out = cache
    return dout * (1 - out * out)                                             # [TANH-2]


def relu_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """max(x, 0), any shape."""
    out = x.clamp(min=0)                                                      # [RELU-1]
    return out, out


def relu_backward(dout: Tensor, cache: Tensor) -> Tensor:
    """dx; at exactly 0, where there is no derivative, 0."""
    out = cache
    return dout * (out > 0)                                                   # [RELU-2]


ACTIVATIONS = {"gelu": (gelu_forward, gelu_backward), "gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward),
               "relu": (relu_forward, relu_backward)}

# ----------------------------------------------------------------------------------------------- losses (docs/04)


def sigmoid_textbook(z: Tensor) -> Tensor:
    """1 / (1 + e^-z), any shape: the probability of "yes"."""
    return 1 / (1 + torch.exp(-z))                                            # [BCE-1]


def bce_textbook(z: Tensor, y: Tensor) -> Tensor:
    """Binary cross-entropy of each score, any shape, as on paper: inf or nan where the sigmoid rounds to 0 or 1."""
    p = sigmoid_textbook(z)
    return -(y * p.log() + (1 - y) * (1 - p).log())                           # [BCE-2]


def bce_textbook_backward(z: Tensor, y: Tensor) -> Tensor:
    """Its gradient by z in two factors, any shape: nan where the sigmoid rounds to 0 or 1."""
    p = sigmoid_textbook(z)
    dp = -(y / p - (1 - y) / (1 - p))                                         # [BCE-3]
    slope = p * (1 - p)                                                       # [BCE-4]
    return dp * slope


def bce_forward(z: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Scores z and targets y in [0, 1], one shape -> the sum of binary cross-entropies; no score overflows it."""
    losses = z.clamp(min=0) - z * y + torch.log1p(torch.exp(-z.abs()))        # [BCE-6]
    return losses.sum(), (z, y)


def bce_backward(dout: Tensor | float, cache: tuple[Tensor, Tensor]) -> Tensor:
    """dz: the two factors of the textbook form collapse to a difference."""
    z, y = cache
    return dout * (torch.sigmoid(z) - y)                                      # [BCE-5]


def cross_entropy_textbook(z: Tensor, y: Tensor) -> Tensor:
    """[M,K] scores, int64 [M] labels -> [M] losses, as on paper: infinite where a probability rounds to 0."""
    return -softmax_textbook(z).gather(-1, y[:, None]).log().squeeze(-1)      # [CE-1]


def cross_entropy_forward(z: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Scores [M,K], labels int64 [M] -> the sum over rows of -log softmax at the label; label -1: the row counts 0."""
    known = y >= 0
    shifted = z - z.amax(-1, keepdim=True)                                    # at most 0, one of them 0
    log_sum = shifted.exp().sum(-1).log()                                     # [CE-2] [M]
    losses = log_sum - shifted.gather(-1, y.clamp(min=0)[:, None]).squeeze(-1)  # [CE-3] [M]
    return (losses * known).sum(), (z, y)                                     # [CE-5]


def cross_entropy_backward(dout: Tensor | float, cache: tuple[Tensor, Tensor]) -> Tensor:
    """dz [M,K]: probabilities minus the one-hot label."""
    z, y = cache
    known = y >= 0
    p, _ = softmax_forward(z)
    onehot = torch.zeros_like(p).scatter_(-1, y.clamp(min=0)[:, None], 1.0)
    dz = dout * (p - onehot)                                                  # [CE-4]
    return dz * known[:, None]


def soft_cross_entropy_forward(z: Tensor, t: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Scores [M,K], targets [M,K] of at least 0 -> the sum over rows of -Σ t log softmax; a row of zeros counts 0."""
    shifted = z - z.amax(-1, keepdim=True)
    log_p = shifted - shifted.exp().sum(-1, keepdim=True).log()
    return -(t * log_p).sum(), (z, t)                                         # [SOFT-1]


def soft_cross_entropy_backward(dout: Tensor | float, cache: tuple[Tensor, Tensor]) -> Tensor:
    """dz [M,K]: the row's whole target, spread as the probabilities say, minus the target."""
    z, t = cache
    p, _ = softmax_forward(z)
    return dout * (t.sum(-1, keepdim=True) * p - t)                           # [SOFT-2]


def mse_forward(guess: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Guesses and targets of one shape -> the sum of squared errors."""
    error = guess - y
    return (error * error).sum(), error                                       # [MSE-1]


def mse_backward(dout: Tensor | float, cache: Tensor) -> Tensor:
    """dguess."""
    error = cache
    return dout * 2 * error                                                   # [MSE-2]
