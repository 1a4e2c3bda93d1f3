import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from minibert.adapt.grow import grow_types
from minibert.core.batch import Feature, collate
from minibert.core.config import BertConfig
from minibert.core.dropout import DropoutMasks
from minibert.core.heads import Head
from minibert.core.layout import KINDS, Layout
from minibert.core.model import Bert, Embeddings, FeedForward, Model, attention, attention_fused, initialise
from minibert.errors import MinibertError

EPS = 1e-3                                         # of LayerNorm here: large enough that forgetting it shows
RIGHT, LEFT, HOLES = "111111000", "000111111", "110101101"
LIVE = np.array([[c == "1" for c in row] for row in (RIGHT, "111111111", HOLES, "100000000")])


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """float64, and every parameter away from 0 and 1, so that none can be forgotten or exchanged unnoticed."""
    g = torch.Generator().manual_seed(seed)
    module.double()
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) * (0.3 if p.dim() > 1 else 0.5)
    return module.eval()


@pytest.fixture
def config(tiny_config) -> BertConfig:
    return dataclasses.replace(tiny_config, layer_norm_eps=EPS, type_vocab_size=3, hidden_dropout_prob=0.2,
                               attention_probs_dropout_prob=0.3)


@pytest.fixture
def bert(config) -> Bert:
    return randomise(Bert(config))


def draw_input(config, live: np.ndarray = LIVE, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, mask, types [B,T]; masked cells hold real ids too, which nothing may look at."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(1, config.vocab_size, live.shape)
    types = draw.integers(0, config.type_vocab_size, live.shape)
    return torch.from_numpy(ids), torch.from_numpy(live.astype(np.int64)), torch.from_numpy(types)


# ------------------------------------------------------------------------- the encoder written again, in numpy, float64


ACTIVATIONS = {"gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
               "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))),
               "relu": lambda x: np.where(x > 0, x, 0.0)}


class Restated:
    """BERT row by row, with only the live pieces of a row in memory: there is no padding that could leak.

    `masks` maps a dropout site to the factors of that site: [T,H] a row, for attention [A,T,T] a row.
    """

    def __init__(self, bert: Bert):
        self.w = {name: p.detach().numpy() for name, p in bert.state_dict().items()}
        self.c = bert.config

    def norm(self, x, name):
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        normal = (x - mean) / np.sqrt(variance + self.c.layer_norm_eps)
        return normal * self.w[name + ".weight"] + self.w[name + ".bias"]

    def linear(self, x, name):
        return np.einsum("ti,oi->to", x, self.w[name + ".weight"]) + self.w[name + ".bias"]

    def attention(self, x, name, mask):
        A, D = self.c.num_attention_heads, self.c.hidden_size // self.c.num_attention_heads
        q, k, v = (self.linear(x, f"{name}.{part}").reshape(len(x), A, D) for part in ("query", "key", "value"))
        e = np.exp(np.einsum("qad,kad->aqk", q, k) / np.sqrt(D))
        p = e / e.sum(-1, keepdims=True) * mask
        return self.linear(np.einsum("aqk,kad->qad", p, v).reshape(len(x), A * D), f"{name}.output")

    def row(self, ids, types, columns, mask):
        """[n] three times -> [n,H]; mask(site) -> factors."""
        w = self.w
        x = w["embeddings.word.weight"][ids] + w["embeddings.token_type.weight"][types]
        x = self.norm(x + w["embeddings.position.weight"][columns], "embeddings.norm") * mask(0)
        for i in range(self.c.num_hidden_layers):
            b, site = f"blocks.{i}", 1 + 3 * i
            x = self.norm(x + self.attention(x, f"{b}.attention", mask(site)) * mask(site + 1), f"{b}.attention_norm")
            inner = ACTIVATIONS[self.c.hidden_act](self.linear(x, f"{b}.feedforward.inner"))
            x = self.norm(x + self.linear(inner, f"{b}.feedforward.outer") * mask(site + 2), f"{b}.feedforward_norm")
        return x

    def __call__(self, ids, live, types, masks=None):
        """[B,T] three times -> hidden [B,T,H], 0 where not live, and pooled [B,H]."""
        hidden = np.zeros((*live.shape, self.c.hidden_size))
        for b, on in enumerate(live):
            columns = np.flatnonzero(on)

            def mask(site, b=b, columns=columns):
                if masks is None:
                    return 1.0
                m = masks[site][b]
                return m[np.ix_(range(m.shape[0]), columns, columns)] if m.ndim == 3 else m[columns]

            hidden[b, columns] = self.row(ids[b, columns], types[b, columns], columns, mask)
        if "pooler.dense.weight" not in self.w:
            return hidden, None
        return hidden, np.tanh(self.linear(hidden[:, 0], "pooler.dense"))


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).detach().abs().max().item()


def close(a, b, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(a.detach().numpy() if isinstance(a, torch.Tensor) else a, b, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------------------------ attention


def draw_qkv(dtype=torch.float64, seed: int = 4, grad: bool = False):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, 7, 6, generator=g, dtype=torch.float64).to(dtype).requires_grad_(grad) for _ in range(3)]


def table(*rows: str) -> torch.Tensor:
    return torch.tensor([[c == "1" for c in row] for row in rows])


KEYS = table("1111100", "0110101")[:, None, None, :]               # [B,1,1,T]: right padding; left padding and a hole
CAUSAL = torch.ones(7, 7).tril().bool().expand(2, 1, 7, 7) & KEYS.logical_or(torch.eye(7).bool())


@pytest.mark.parametrize("allowed", [None, KEYS, CAUSAL], ids=["all", "keys", "causal"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_attention_is_its_formula_in_three_loops(allowed, with_mask):
    """exp(q.k/sqrt(6)) of the allowed keys, divided by their sum, times the dropout factor, weighs the values."""
    q, k, v = draw_qkv()
    factors = torch.rand(2, 5, 7, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2
    seen = torch.ones(2, 5, 7, 7).bool() if allowed is None else allowed.expand(2, 5, 7, 7)
    Q, K, V, M, S = (x.tolist() for x in (q, k, v, factors, seen))
    expected = np.zeros((2, 5, 7, 6))
    for b in range(2):
        for a in range(5):
            for i in range(7):
                e = [math.exp(sum(x * y for x, y in zip(Q[b][a][i], K[b][a][j], strict=True)) / math.sqrt(6))
                     if S[b][a][i][j] else 0.0 for j in range(7)]
                for j in range(7):
                    weight = e[j] / math.fsum(e) * (M[b][a][i][j] if with_mask else 1.0)
                    expected[b, a, i] += [weight * x for x in V[b][a][j]]
    close(attention(q, k, v, allowed, factors if with_mask else None), expected)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("allowed", [None, KEYS, CAUSAL], ids=["all", "keys", "causal"])
def test_the_fused_kernel_computes_the_same_and_has_the_same_gradients(allowed, dtype, tolerance):
    plain, fused = draw_qkv(dtype, grad=True), draw_qkv(dtype, grad=True)
    w = torch.randn(2, 5, 7, 6, generator=torch.Generator().manual_seed(8)).to(dtype)
    a, b = attention(*plain, allowed), attention_fused(*fused, allowed)
    close(a, b.detach().numpy(), tolerance)
    (a * w).sum().backward()
    (b * w).sum().backward()
    for x, y in zip(plain, fused, strict=True):
        close(x.grad, y.grad.numpy(), 5 * tolerance)
        assert float(x.grad.abs().max()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_without_any_key_gives_numbers_forward_and_backward(dtype):
    """Its explicit attention is the mean of all values; the other row is as if it stood alone."""
    empty = table("0000000", "0110101")[:, None, None, :]
    for f in (attention, attention_fused):
        qkv = draw_qkv(dtype, grad=True)
        out = f(*qkv, empty)
        out.sum().backward()
        assert all(bool(torch.isfinite(x).all()) for x in (out, *(t.grad for t in qkv)))
        alone = f(*(t[1:].detach() for t in qkv), empty[1:])
        torch.testing.assert_close(out[1:], alone)
        if f is attention:
            torch.testing.assert_close(out[0], qkv[2][0].mean(1, keepdim=True).expand(5, 7, 6))


def test_attention_does_not_overflow():
    """Scores up to 1e4 · sqrt(6): exp of them is infinite, their softmax is not."""
    q, k, v = draw_qkv()
    out, fused = attention(q * 100, k * 100, v, KEYS), attention_fused(q * 100, k * 100, v, KEYS)
    assert bool(torch.isfinite(out).all())
    close(out, fused.numpy(), 1e-9)


# ----------------------------------------------------------------------------------------------------------- the pieces


def test_embeddings_are_a_sum_normalised(config):
    module = randomise(Embeddings(config))
    w = {name: p.detach().numpy() for name, p in module.named_parameters()}
    draw = np.random.default_rng(1)
    ids, types, positions = (draw.integers(0, n, 37) for n in (config.vocab_size, config.type_vocab_size, 40))
    x = w["word.weight"][ids] + w["position.weight"][positions] + w["token_type.weight"][types]
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + EPS)
    close(module(*map(torch.from_numpy, (ids, types, positions))), x * w["norm.weight"] + w["norm.bias"])


@pytest.mark.parametrize("name, same_as", [("gelu", "gelu"), ("gelu_python", "gelu"), ("gelu_new", "gelu_new"),
                                           ("gelu_pytorch_tanh", "gelu_new"), ("gelu_fast", "gelu_new"),
                                           ("relu", "relu")])
def test_feedforward_with_every_activation(config, name, same_as):
    module = randomise(FeedForward(dataclasses.replace(config, hidden_act=name)))
    w = {n: p.detach().numpy() for n, p in module.named_parameters()}
    x = np.random.default_rng(2).normal(size=(17, 30)) * 2
    inner = ACTIVATIONS[same_as](x @ w["inner.weight"].T + w["inner.bias"])
    close(module(torch.from_numpy(x)), inner @ w["outer.weight"].T + w["outer.bias"])


def test_the_activations_can_be_told_apart():
    """The two GELUs differ by up to 4.7e-4, far above the tolerance that the tests use."""
    x = np.linspace(-4, 4, 801)
    gap = np.abs(ACTIVATIONS["gelu"](x) - ACTIVATIONS["gelu_new"](x)).max()
    assert 4e-4 < gap < 5e-4


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_encode_is_the_encoder_written_again(config, kind, activation):
    bert = randomise(Bert(dataclasses.replace(config, hidden_act=activation)))
    ids, mask, types = draw_input(config)
    hidden, pooled = bert.encode(ids, mask, types, layout=kind)
    expected_hidden, expected_pooled = Restated(bert)(ids.numpy(), LIVE, types.numpy())
    close(hidden, expected_hidden)
    close(pooled, expected_pooled)
    assert np.abs(expected_hidden[LIVE]).min() > 0


def test_one_block_is_post_norm(config):
    bert = randomise(Bert(dataclasses.replace(config, num_hidden_layers=1)))
    x = np.random.default_rng(6).normal(size=(9, 30))
    block, restated = bert.blocks[0], Restated(bert)
    y = restated.norm(x + restated.attention(x, "blocks.0.attention", 1.0), "blocks.0.attention_norm")
    inner = ACTIVATIONS["gelu"](restated.linear(y, "blocks.0.feedforward.inner"))
    z = restated.norm(y + restated.linear(inner, "blocks.0.feedforward.outer"), "blocks.0.feedforward_norm")
    close(block(torch.from_numpy(x), Layout(torch.ones(1, 9).bool())), z)


# -------------------------------------------------------------------------------------------------------- encode's door


@pytest.mark.parametrize("kind", KINDS)
def test_mask_and_types_may_be_left_out(bert, config, kind):
    ids, _, types = draw_input(config)
    everything = np.ones_like(LIVE)
    hidden, pooled = bert.encode(ids, layout=kind)
    expected, expected_pooled = Restated(bert)(ids.numpy(), everything, np.zeros_like(types.numpy()))
    close(hidden, expected)
    close(pooled, expected_pooled)
    close(bert.encode(ids, types=types, layout=kind)[0], Restated(bert)(ids.numpy(), everything, types.numpy())[0])


@pytest.mark.parametrize("kind", KINDS)
def test_right_padding_changes_nothing(bert, config, kind):
    ids, _, types = draw_input(config, np.ones((3, 6), bool))
    short, pooled = bert.encode(ids, types=types, layout=kind)
    wide = torch.full((3, 11), 8), torch.zeros(3, 11, dtype=torch.int64), torch.ones(3, 11, dtype=torch.int64)
    for to, value in zip(wide, (ids, torch.ones_like(ids), types), strict=True):
        to[:, :6] = value
    long, long_pooled = bert.encode(*wide, layout=kind)
    close(long[:, :6], short.detach().numpy())
    close(long_pooled, pooled.detach().numpy())
    assert not long[:, 6:].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("live", [LEFT, HOLES, RIGHT, "000010000"])
def test_padded_cells_are_exactly_zero_and_never_looked_at(bert, config, live, kind):
    on = np.array([[c == "1" for c in live]] * 2)
    ids, mask, types = draw_input(config, on)
    hidden, _ = bert.encode(ids, mask, types, layout=kind)
    assert torch.equal(hidden == 0, ~torch.from_numpy(on)[..., None].expand_as(hidden))
    close(hidden, Restated(bert)(ids.numpy(), on, types.numpy())[0])
    other = torch.where(mask.bool(), ids, (ids + 5) % config.vocab_size)
    assert torch.equal(bert.encode(other, mask, (types * mask), layout=kind)[0], hidden)


def test_left_padding_is_another_function_because_positions_are_columns(bert, config):
    ids, _, _ = draw_input(config, np.ones((2, 6), bool))
    shifted = torch.zeros(2, 9, dtype=torch.int64)
    shifted[:, 3:] = ids
    left = bert.encode(shifted, (shifted > 0).long())[0][:, 3:]
    assert gap(left, bert.encode(ids)[0]) > 0.1
    moved = copy.deepcopy(bert)
    moved.embeddings.position.weight.data = bert.embeddings.position.weight.data.roll(-3, 0)
    close(left, moved.encode(ids)[0].detach().numpy())


def test_a_mask_of_any_type_will_do(bert, config):
    ids, mask, types = draw_input(config)
    expected = bert.encode(ids, mask, types)[0]
    for kind in (torch.bool, torch.float32, torch.uint8):
        assert torch.equal(bert.encode(ids, mask.to(kind), types)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_row_stays_zero_and_harms_no_other(bert, config, kind):
    on = np.array([[c == "1" for c in row] for row in (RIGHT, "000000000")])
    ids, mask, types = draw_input(config, on)
    hidden, _ = bert.encode(ids, mask, types, layout=kind)
    assert not hidden[1].any() and bool(torch.isfinite(hidden).all())
    close(hidden[:1], Restated(bert)(ids.numpy()[:1], on[:1], types.numpy()[:1])[0])
    hidden.square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for n, p in bert.named_parameters() if "pooler" not in n)


def test_rectangle_and_ragged_agree_in_value_and_gradient(bert, config):
    ids, mask, types = draw_input(config)
    g = torch.Generator().manual_seed(2)
    w = torch.randn(*LIVE.shape, 30, generator=g, dtype=torch.float64)
    v = torch.randn(len(LIVE), 30, generator=g, dtype=torch.float64)
    results = {}
    for kind in KINDS:
        bert.zero_grad()
        hidden, pooled = bert.encode(ids, mask, types, layout=kind)
        ((hidden * w).sum() + (pooled * v).sum()).backward()
        results[kind] = {n: p.grad.clone() for n, p in bert.named_parameters()} | {"hidden": hidden, "pooled": pooled}
    for name, value in results["rectangle"].items():
        size = float(value.detach().abs().max())
        assert size > 0 or name.endswith("key.bias"), name
        close(value / max(size, 1), (results["ragged"][name] / max(size, 1)).detach().numpy())


def test_pooled_is_refused_where_the_mask_hides_column_0(bert, config):
    on = np.array([[c == "1" for c in row] for row in (RIGHT, LEFT, HOLES, "010000000")])
    ids, mask, types = draw_input(config, on)
    hidden, pooled = bert.encode(ids, mask, types)
    close(hidden, Restated(bert)(ids.numpy(), on, types.numpy())[0])
    for use in (lambda: pooled.shape, lambda: pooled[0], lambda: pooled[:, 3], lambda: list(pooled)):
        with pytest.raises(MinibertError, match=r"column 0.*\[1, 3\]"):
            use()
    for use in (lambda: pooled + 1, lambda: 2 * pooled, lambda: pooled @ whole(30, 3), lambda: torch.tanh(pooled)):
        with pytest.raises((MinibertError, TypeError)):
            use()


def test_without_a_pooler_pooled_is_none(config):
    bert = randomise(Bert(config, pooler=False))
    ids, mask, types = draw_input(config)
    hidden, pooled = bert.encode(ids, mask, types)
    assert pooled is None
    close(hidden, Restated(bert)(ids.numpy(), LIVE, types.numpy())[0])
    assert bert.encode(ids, torch.from_numpy(LIVE[:, ::-1].copy()), types)[1] is None


def whole(*shape: int, value: int = 0) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.int64)


@pytest.mark.parametrize("arguments, words", [
    ((whole(7),), "must all be"), ((whole(2, 7), whole(2, 6)), "must all be"),
    ((whole(2, 7), whole(2, 7, value=1), whole(3, 7)), "must all be"), ((whole(2, 41),), "41 pieces.*40 positions"),
    ((whole(2, 7, value=95),), "ids run from 95 to 95.*0 to 94"), ((whole(2, 7, value=-1),), "ids run from -1"),
    ((whole(2, 7), whole(2, 7, value=1), whole(2, 7, value=3)), "types run from 3 to 3.*0 to 2"),
    ((whole(2, 7), whole(2, 7, value=1), whole(2, 7, value=-1)), "types run from -1")])
def test_input_that_does_not_fit_is_named(bert, arguments, words):
    with pytest.raises(MinibertError, match=words):
        bert.encode(*arguments)


def test_input_at_its_limits_is_fine(bert):
    hidden, pooled = bert.encode(whole(2, 40, value=94), types=whole(2, 40, value=2))
    assert hidden.shape == (2, 40, 30) and pooled.shape == (2, 30)
    assert [x.shape for x in bert.encode(whole(0, 7))] == [(0, 7, 30), (0, 30)]


# -------------------------------------------------------------------------------------------------------------- dropout


class Recorded:
    """Stands in for DropoutMasks: any positive factors, and a note of every call."""

    def __init__(self):
        self.calls: list[tuple[int, float]] = []
        self.drawn: dict[int, torch.Tensor] = {}

    def __call__(self, site, shape, p, like):
        g = torch.Generator().manual_seed(100 + site)
        self.calls.append((site, p))
        self.drawn[site] = torch.rand(tuple(shape), generator=g, dtype=like.dtype) * 2
        return self.drawn[site]


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_multiplies_at_the_published_sites_and_nowhere_else(bert, config, kind):
    """Once after the embeddings' norm, and in each block on the probabilities and on both branches before the sum."""
    ids, mask, types = draw_input(config)
    placed, masks = Layout(mask.bool(), kind), Recorded()
    out = placed.rows(bert(placed.pieces(ids), placed.pieces(types), placed, masks)) * mask[..., None]
    assert sorted(masks.calls) == [(0, 0.2), (1, 0.3), (2, 0.2), (3, 0.2), (4, 0.3), (5, 0.2), (6, 0.2)]
    by_site = {s: (m if m.dim() == 4 else placed.rows(m)).numpy() for s, m in masks.drawn.items()}
    close(out, Restated(bert)(ids.numpy(), LIVE, types.numpy(), by_site)[0])
    assert gap(out, bert.encode(ids, mask, types)[0]) > 0.1


def test_same_masks_same_result_and_other_updates_other_results(bert, config):
    ids, mask, types = draw_input(config)
    rows = Layout(mask.bool())
    first, again, other = (bert(ids.flatten(), types.flatten(), rows, DropoutMasks(5, update)) for update in (1, 1, 2))
    assert torch.equal(first, again)
    assert gap(first, other) > 0.1


@pytest.mark.parametrize("hidden, attended, sites", [(0.0, 0.0, []), (0.2, 0.0, [0, 2, 3, 5, 6]), (0.0, 0.3, [1, 4])])
def test_a_probability_of_zero_draws_no_mask(config, hidden, attended, sites):
    probabilities = {"hidden_dropout_prob": hidden, "attention_probs_dropout_prob": attended}
    bert = randomise(Bert(dataclasses.replace(config, **probabilities)))
    ids, mask, types = draw_input(config)
    placed, masks = Layout(mask.bool()), Recorded()
    out = bert(ids.flatten(), types.flatten(), placed, masks)
    assert sorted(s for s, _ in masks.calls) == sites
    assert torch.equal(out, bert(ids.flatten(), types.flatten(), placed)) == (not sites)


def test_without_masks_there_is_no_dropout_even_in_training_mode(bert, config):
    ids, mask, types = draw_input(config)
    expected = bert.encode(ids, mask, types)[0]
    bert.train()
    assert torch.equal(bert.encode(ids, mask, types)[0], expected)


def test_a_dropped_probability_really_hides_its_value(bert):
    """A mask that keeps one key only, at factor 1: the explicit path must take its share unnormalised."""
    q, k, v = draw_qkv()
    only = torch.zeros(2, 5, 7, 7, dtype=torch.float64)
    only[..., 3] = 1
    share = ((q @ k.transpose(2, 3)) / math.sqrt(6)).softmax(-1)[..., 3:4]
    close(attention(q, k, v, None, only), (share * v[:, :, 3:4]).numpy())


# ---------------------------------------------------------------------------------------------------------- new weights


def test_new_weights_are_a_normal_cut_at_two_standard_deviations():
    """The normal cut at 2 sd has variance sd² (1 - 4 phi(2)/(2 Phi(2) - 1)); n draws know their sd to sd/sqrt(2n)."""
    sd, module = 0.05, nn.ModuleDict({"a": nn.Linear(211, 307), "b": nn.Embedding(401, 101), "c": nn.LayerNorm(13)})
    for p in module.parameters():
        p.data.fill_(7.0)
    initialise(module, sd, seed=3)
    phi, inside = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2))
    expected = sd * math.sqrt(1 - 4 * phi / inside)
    for name in ("a", "b"):
        w = module[name].weight.detach().double()
        assert 1.98 * sd < float(w.abs().max()) <= 2 * sd * (1 + 1e-6)
        assert abs(float(w.std()) / expected - 1) < 5 / math.sqrt(2 * w.numel())
        assert abs(float(w.mean())) < 5 * sd / math.sqrt(w.numel())
    assert torch.equal(module["a"].bias, torch.zeros(307))
    assert torch.equal(module["c"].weight, torch.ones(13)) and torch.equal(module["c"].bias, torch.zeros(13))


def test_new_weights_are_a_function_of_the_seed(tiny_config):
    models = [Bert(tiny_config) for _ in range(3)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for model, seed in zip(models, (4, 4, 5), strict=True):
        initialise(model, 0.02, seed)
    assert torch.equal(torch.get_rng_state(), before)
    a, b, c = ([p for p in m.parameters() if p.dim() == 2] for m in models)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(a, c, strict=True))
    square = [p for p in a if p.shape == (30, 30)]
    assert not any(torch.equal(x, y) for i, x in enumerate(square) for y in square[:i])


# ---------------------------------------------------------------------------------------------------------- case shapes


@pytest.mark.parametrize("frozen", [False, True])
def test_grown_types_are_copies_and_keep_the_function(bert, config, frozen):
    ids, mask, types = draw_input(config)
    old = copy.deepcopy(bert)
    bert.embeddings.token_type.weight.requires_grad_(not frozen)
    shapes = ("lower", "title", "upper", "mixed", "none")
    assert grow_types(bert, shapes) is bert
    grown, rows = bert.embeddings.token_type.weight, old.embeddings.token_type.weight
    assert grown.shape == (15, 30) and grown.requires_grad == (not frozen)
    for shape in range(5):
        for kind in range(3):
            assert torch.equal(grown[3 * shape + kind], rows[kind])
    assert dataclasses.replace(bert.config, type_vocab_size=3, case_shapes=()) == config
    assert (bert.config.type_vocab_size, bert.config.case_shapes) == (15, shapes)
    expected = old.encode(ids, mask, types)[0]
    for shape in range(5):
        assert torch.equal(bert.encode(ids, mask, types + 3 * shape)[0], expected)
    grown.data[3 * 2 + 1] += 1.0
    assert torch.equal(bert.encode(ids, mask, types)[0], expected)
    assert torch.equal(old.embeddings.token_type.weight, rows)


# -------------------------------------------------------------------------------------------------------- Bert and head


class MapHead(Head):
    """[P,H] -> [M,4], with a dropout site of its own."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(30, 4)

    def forward(self, hidden, batch, masks=None):
        x = hidden[batch.picks]
        return self.map(x if masks is None else x * masks(7, x.shape, 0.4, x))


@pytest.mark.parametrize("kind", KINDS)
def test_model_gives_the_heads_scores_of_the_batch(bert, config, kind):
    draw = np.random.default_rng(8)
    features = [Feature(i, draw.integers(1, 95, n), draw.integers(0, 3, n), np.array(picks), np.zeros(len(picks), int))
                for i, (n, picks) in enumerate([(9, [1, 4, 7]), (5, [0, 3]), (11, [10, 2, 5, 6])])]
    model = Model(bert, randomise(MapHead(), 6))
    batch = collate(features, kind)
    w = {n: p.detach().numpy() for n, p in model.head.named_parameters()}
    rows = [Restated(bert).row(f.ids, f.types, np.arange(len(f.ids)), lambda site: 1.0)[f.picks] for f in features]
    close(model(batch), np.concatenate(rows) @ w["map.weight"].T + w["map.bias"])
    masks = Recorded()
    dropped = model(batch, masks)
    assert [s for s, _ in masks.calls] == list(range(8))
    hidden = bert(batch.ids, batch.types, batch.layout, Recorded()).detach().numpy()[batch.picks.numpy()]
    close(dropped, hidden * masks.drawn[7].numpy() @ w["map.weight"].T + w["map.bias"])
