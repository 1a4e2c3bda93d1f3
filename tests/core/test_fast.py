"""The fast engine beside the readable ones: the same gradients, the same AdamW, the same runs."""
import ctypes
import dataclasses
import functools
import importlib.util
import itertools
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
import trajectory
from bytorch import Untouched, by_autograd
from tiny import shake
from torch import nn

import train
from minibert.adapt.freeze import freeze
from minibert.checkpoints.weights import random_bert
from minibert.core import byhand, ops
from minibert.core.batch import Feature, collate
from minibert.core.dropout import DropoutMasks
from minibert.core.heads import TokenHead, WordHead
from minibert.core.model import Bert, Model, attention
from minibert.core.optim import SGD, AdamW, clip_gradient
from minibert.core.precision import LossScaler
from minibert.engines import ENGINES
from minibert.engines.fast import engine as fast
from minibert.engines.fast import kernels
from minibert.engines.fast.adamw import FusedAdamW
from minibert.engines.fast.linear import Convolution, Linear
from minibert.engines.fast.memory import Heap, keep_memory
from minibert.settings import TrainConfig
from minibert.tasks.mlm import MLM

PREFIX = torch.tensor([3, 5, 2, 6, 4, 7])


@pytest.fixture
def tiny(monkeypatch) -> tuple[Model, list]:
    """A float64 model with no bias 0 and no LayerNorm weight 1, and three lists of features."""
    monkeypatch.setattr(fast, "STEP", 7)           # some pieces of the last block are left out, some filled in
    model, batches = trajectory.start()
    return shake(model, seed=6), [b.features for b in batches[:3]]


@functools.cache
def engine_of(model: Model, precision: str) -> fast.Fast:
    """One for all updates of a model."""
    return fast.Fast(model, precision)


def add_gradients(model: Model, task, batch, masks, factors, precision: str) -> dict[str, torch.Tensor]:
    return engine_of(model, precision)(task, batch, masks, factors)


def by_fast(model: Model, batch, masks=None, factor: float = 1.0) -> tuple[float, dict[str, torch.Tensor]]:
    """(summed loss, {name: dense gradient}) of one call."""
    for p in model.parameters():
        p.grad = None
    sums = add_gradients(model, Untouched(), batch, masks, {"words": factor}, "fp32")
    return float(sums["words"]), dense(model)


def dense(model: Model) -> dict[str, torch.Tensor]:
    """Every gradient that is there, with its zeros."""
    return {n: p.grad.to_dense().clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 1e-12) -> None:
    """Each within `tolerance` of the wanted one's norm; key biases, whose gradient is 0, of the query bias's."""
    assert found.keys() == wanted.keys() and len(found) > 1
    for name, dw in wanted.items():
        size = wanted[name.replace("key.bias", "query.bias")].norm()
        assert size > 0 and (found[name] - dw).norm() <= tolerance * size, name


# ---------------------------------------------------------------------------------------------------- the gradients


@pytest.mark.parametrize("kind", ["rectangle", "ragged"])
@pytest.mark.parametrize("masks", [None, DropoutMasks(3, 5, micro_batch=2)])
@pytest.mark.parametrize("prefix", [None, PREFIX])
def test_every_gradient_equals_the_one_by_hand(tiny, kind, masks, prefix):
    model, (features, *_) = tiny
    batch = collate(features, kind, prefix=prefix)
    sums, wanted = byhand.reached_gradients(model, batch, masks, Untouched(), {"words": 0.3})
    loss, found = by_fast(model, batch, masks, factor=0.3)
    assert loss == pytest.approx(float(sums["words"]), rel=1e-13)
    assert_equal(found, wanted)


@pytest.mark.parametrize("what", ["none", "1"])
def test_every_mask_is_drawn_once_in_its_shape_and_used(tiny, what, monkeypatch):
    model, (features, *_) = tiny
    freeze(model, what)
    made, shapes = [], {}

    class Watched(fast.MasksAhead):
        def __init__(self, masks, *rest):
            super().__init__(masks, *rest)
            shapes.update({site: mask.shape for site, mask in self.drawn.items()})
            made.append(self)

        def __call__(self, site, shape, *rest):
            assert shapes[site] == tuple(shape)
            return super().__call__(site, shape, *rest)

    monkeypatch.setattr(fast, "MasksAhead", Watched)
    by_fast(model, collate(features), DropoutMasks(3, 5))
    assert [a.drawn for a in made] == [{}] and len(shapes) == 1 + 3 * len(model.bert.blocks)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_every_activation(tiny, activation):
    model, (features, *_) = tiny
    other = Bert(dataclasses.replace(model.bert.config, hidden_act=activation), pooler=True).double()
    other.load_state_dict(model.bert.state_dict(), strict=False)
    model, batch = Model(other, model.head), collate(features)
    _, wanted = by_autograd(model, batch)
    wanted = {n: g for n, g in wanted.items() if "pooler" not in n}            # which no score depends on
    _, found = by_fast(model, batch)
    assert_equal(found, wanted)


@pytest.mark.parametrize("what", ["embeddings", "1", "2", "encoder"])
def test_frozen_parts_get_nothing_and_the_rest_is_the_same(tiny, what):
    model, (features, *_) = tiny
    batch, masks = collate(features), DropoutMasks(3, 5)
    _, whole = by_fast(model, batch, masks)
    freeze(model, what)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert 0 < len(trained) < len(whole)
    assert_equal(by_fast(model, batch, masks)[1], {n: g for n, g in whole.items() if n in trained})


@pytest.mark.parametrize("kind", ["rectangle", "ragged"])
def test_products_by_the_other_library(tiny, kind, monkeypatch):
    """Whichever of the two this machine would choose, the gradients are the same."""
    model, (features, *_) = tiny
    batch, masks = collate(features, kind), DropoutMasks(3, 5)
    _, wanted = byhand.reached_gradients(model, batch, masks, Untouched())
    for products in (Linear, Convolution):
        monkeypatch.setattr(kernels, "linear_kind", lambda *asked, products=products: products)
        engine_of.cache_clear()
        assert_equal(by_fast(model, batch, masks)[1], wanted)
        assert {type(f) for f in engine_of(model, "fp32").kit.ready.values()} == {products}


@pytest.mark.parametrize("kind", ["rectangle", "ragged"])
def test_the_head_may_read_few_pieces_in_any_order_and_more_than_once(tiny, kind):
    """As a pair of entities would, or the first piece alone; the head is given those pieces and a few others."""
    model, (features, *_) = tiny
    for picks in ([3, 0, 3], [0]):
        few = [dataclasses.replace(f, picks=np.array(picks), labels=np.array([2, 1, 4])[:len(picks)]) for f in features]
        batch, masks = collate(few, kind), DropoutMasks(3, 5)
        _, wanted = byhand.reached_gradients(model, batch, masks, Untouched())
        seen, forward = [], model.head.forward_by_hand
        model.head.forward_by_hand = lambda hidden, *rest, s=seen, f=forward: s.append(len(hidden)) or f(hidden, *rest)
        _, found = by_fast(model, batch, masks)
        del model.head.forward_by_hand
        live = len(set(picks)) * len(features)
        assert seen == [-(-live // 7) * 7] and seen[0] < len(batch.ids)
        assert_equal(found, wanted)
        with torch.no_grad():
            scores = model(batch)
        assert (fast.Scorer(model, "fp32")(batch) - scores).norm() <= 1e-13 * scores.norm()


def test_a_wide_head_is_given_picks_without_a_label(tiny):
    """Their number is a multiple of STEP (7 here), and neither a score nor a gradient differs."""
    model, (features, *_) = tiny
    model = Model(model.bert, WordHead(model.bert.config).double())
    shake(model, seed=8)
    batch, masks, task = collate(features), DropoutMasks(3, 5), MLM(MLM.Options())
    assert len(batch.picks) % 7
    seen, forward = [], model.head.forward_by_hand
    model.head.forward_by_hand = lambda hidden, b, *rest: seen.append(b.picks) or forward(hidden, b, *rest)
    sums = add_gradients(model, task, batch, masks, {"pieces": 0.3}, "fp32")
    del model.head.forward_by_hand
    assert [len(picks) for picks in seen] == [-(-len(batch.picks) // 7) * 7]
    wanted_sums, wanted = byhand.reached_gradients(model, batch, masks, task, {"pieces": 0.3})
    assert float(sums["pieces"]) == pytest.approx(float(wanted_sums["pieces"]), rel=1e-13)
    assert_equal(dense(model), wanted)
    with torch.no_grad():
        scores = model(batch)
    assert fast.Scorer(model, "fp32")(batch).shape == scores.shape
    assert (fast.Scorer(model, "fp32")(batch) - scores).norm() <= 1e-13 * scores.norm()


def test_one_softmax_gives_both_the_loss_and_its_gradient():
    """As ops.py has them; where the label's probability is no number any more, where two scores are the largest, −∞."""
    z = torch.randn(11, 13, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z[1, 4], z[2, 5], z[3, 2:] = -800.0, z[2].max(), -torch.inf
    z[2, 6] = z[2].max()
    first, second = (torch.full((11,), -1) for _ in range(2))
    first[:6], second[7:] = torch.tensor([0, 4, 5, 1, 12, 3]), torch.tensor([2, 2, 11, 0])
    sums, dz = fast.cross_entropy(z, {"a": first, "b": second}, {"a": 0.7, "b": 1.9})
    wanted = 0.7 * ops.cross_entropy_backward(1.0, (z, first)) + 1.9 * ops.cross_entropy_backward(1.0, (z, second))
    assert (dz - wanted).norm() < 1e-15 * 11 and dz[1, 4] == -0.7
    for term, labels in (("a", first), ("b", second)):
        assert float(sums[term]) == pytest.approx(float(ops.cross_entropy_forward(z, labels)[0]), rel=1e-15)
    assert float(sums["a"]) > 800
    short, dshort = fast.cross_entropy(z.bfloat16(), {"a": first, "b": second}, {"a": 0.7, "b": 1.9})
    exact, dexact = fast.cross_entropy(z.bfloat16().double(), {"a": first, "b": second}, {"a": 0.7, "b": 1.9})
    assert dshort.dtype == torch.float32 and (dshort - dexact).norm() < 1e-6
    assert float(short["a"]) == pytest.approx(float(exact["a"]), rel=1e-6)     # fp32 inside


def test_on_a_device_that_would_have_to_be_asked_all_pieces_are_read():
    batch = SimpleNamespace(ids=torch.empty(5, device="meta"), picks=torch.empty(3, device="meta"))
    assert fast.rows_read(batch, wide=False) == (None, batch)


def test_a_batch_of_which_nothing_is_read(tiny, monkeypatch):
    """Every gradient is 0, by either library."""
    model, (features, *_) = tiny
    none = np.zeros(0, np.int64)
    batch = collate([dataclasses.replace(f, picks=none, labels=none) for f in features])
    for products in (Linear, Convolution):
        monkeypatch.setattr(kernels, "linear_kind", lambda *asked, products=products: products)
        engine_of.cache_clear()
        loss, found = by_fast(model, batch, DropoutMasks(3, 5))
        assert loss == 0 and len(found) > 30 and not any(g.any() for g in found.values())
        assert fast.Scorer(model, "fp32")(batch).shape == (0, model.head.classifier.out_features)


def test_sums_over_a_thousand_pieces_of_16_bits_are_not_16_bit_sums():
    """dw and db of LayerNorm: torch's kernel alone, given 16-bit numbers, is 3 % off here."""
    generator = torch.Generator().manual_seed(4)
    norm = nn.LayerNorm(44)
    x, dout = (torch.randn(1201, 44, generator=generator).bfloat16() for _ in range(2))
    _, mean, rstd = kernels.norm_forward(norm, x)
    gradients = fast.AddedGradients(norm)
    dx = kernels.norm_backward(norm, dout, x, mean, rstd, gradients)
    normal = (x.double() - x.double().mean(1, keepdim=True)) / (x.double().var(1, keepdim=True, correction=0)
                                                                + norm.eps).sqrt()
    assert dx.dtype == torch.bfloat16
    for found, terms in ((norm.weight.grad, dout.double() * normal), (norm.bias.grad, dout.double())):
        assert (found - terms.sum(0)).norm() < 1e-3 * terms.sum(0).norm()


def test_micro_batches_add_up_row_by_row(tiny):
    """Three batches that share some pieces and not others: the sparse gradient of the word vectors is the sum."""
    model, parts = tiny
    batches, task = [collate(f) for f in parts], Untouched()
    wanted: dict[str, torch.Tensor] = {}
    for i, batch in enumerate(batches):
        _, one = byhand.reached_gradients(model, batch, DropoutMasks(3, 5, micro_batch=i), task)
        wanted = {n: wanted[n] + g if wanted else g for n, g in one.items()}
    for p in model.parameters():
        p.grad = None
    for i, batch in enumerate(batches):
        add_gradients(model, task, batch, DropoutMasks(3, 5, micro_batch=i), {"words": 1.0}, "fp32")
    used = torch.cat([b.ids for b in batches]).unique()
    word = model.bert.embeddings.word.weight.grad
    assert word.is_sparse and torch.equal(word.indices()[0], used) and len(used) < len(word)
    assert not torch.equal(batches[0].ids.unique(), used)
    assert_equal(dense(model), wanted)


def test_a_dense_gradient_that_stands_there_already_is_added_to(tiny):
    model, (features, *_) = tiny
    batch = collate(features)
    _, wanted = by_autograd(model, batch)
    add_gradients(model, Untouched(), batch, None, {"words": 2.0}, "fp32")
    assert_equal(dense(model), {n: 3 * g for n, g in wanted.items()})


def test_weights_that_moved_are_cast_again(tiny):
    """By an optimizer, and by hand between two updates: the products see the new matrices."""
    model, (first, second, _) = tiny
    optimizer = FusedAdamW(model.parameters(), lr=0.05)
    by_fast(model, collate(first))
    optimizer.step()
    _, wanted = byhand.reached_gradients(model, collate(second), None, Untouched())
    assert_equal(by_fast(model, collate(second))[1], wanted)
    with torch.no_grad():
        model.bert.blocks[1].attention.value.weight.mul_(-1.5)
    _, wanted = byhand.reached_gradients(model, collate(second), None, Untouched())
    assert_equal(by_fast(model, collate(second))[1], wanted)


def test_in_16_bits_it_is_about_as_near_to_the_truth_as_autocast(tiny):
    """Against float64 with the same masks, beside torch's own bf16 run: all tensors together at most 1.5 times as far
    off (the residual stream is rounded too: 1.18 times on average over twelve batches), none alone more than twice as
    far, or 1 %."""
    model, (features, *_) = tiny
    batch, masks, task = collate(features), DropoutMasks(3, 5), Untouched()
    _, truth = byhand.reached_gradients(model, batch, masks, task)
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(batch, masks)
    task.loss(scores, batch)["words"].backward()
    torchs = dense(model)
    for p in model.parameters():
        p.grad = None
    add_gradients(model, task, batch, masks, {"words": 1.0}, "bf16")
    off = {}
    for name, found in dense(model).items():
        if "key.bias" not in name:
            size = truth[name].norm()
            off[name] = [float((g[name] - truth[name]).norm() / size) for g in (dense(model), torchs)]
            assert found.dtype == torch.float32 and 0 < off[name][0] < max(2 * off[name][1], 0.01), (name, off[name])
    ours, theirs = (math.sqrt(sum(pair[i] ** 2 for pair in off.values())) for i in (0, 1))
    assert ours < 1.5 * theirs and max(mine for mine, _ in off.values()) > 1e-3              # it really was bf16


# ------------------------------------------------------------------------------------------------------- the scores


@pytest.fixture
def rows() -> tuple[Model, list[Feature]]:
    """A float64 model with 90 positions, five rows of which the longest is LONG + 7 pieces, no bias 0."""
    config = dataclasses.replace(trajectory.start()[0].bert.config, max_position_embeddings=90)
    model = Model(random_bert(config, seed=3, pooler=False), TokenHead(config, 7)).double()
    draw = np.random.default_rng(8)
    features = [Feature(i, draw.integers(0, 53, T), draw.integers(0, 2, T), np.arange(1, T, 2), np.zeros(T // 2, int))
                for i, T in enumerate((11, 6, kernels.LONG + 7, 29, 17))]
    return shake(model, seed=6), features


@pytest.mark.parametrize("kind", ["rectangle", "ragged"])
@pytest.mark.parametrize("prefix", [None, PREFIX[:5]])
@pytest.mark.parametrize("longest", [29, kernels.LONG + 7])
def test_scores_are_the_models(rows, kind, prefix, longest):
    model, features = rows
    kept = [f for f in features if len(f.ids) <= longest]
    batch = collate(kept, kind, prefix=None if prefix is None else prefix[:len(kept)])
    assert (batch.layout.shape[1] >= kernels.LONG) == (longest > 29)
    with torch.no_grad():
        wanted = model(batch)
    found = fast.Scorer(model, "fp32")(batch)
    assert found.shape == (len(batch.picks), 7) and (found - wanted).norm() <= 1e-13 * wanted.norm()


def test_a_scorer_takes_the_weights_as_they_are_when_it_is_made(rows):
    """Also between an optimizer's step and the next gradient, when the engine's own copies are out of date."""
    model, features = rows
    batch = collate(features)
    optimizer = FusedAdamW(model.parameters(), lr=0.05)
    add_gradients(model, Untouched(), batch, None, {"words": 1.0}, "fp32")
    before = fast.Scorer(model, "fp32")(batch)
    optimizer.step()
    with torch.no_grad():
        wanted = model(batch)
    found = fast.Scorer(model, "fp32")(batch)
    assert (found - wanted).norm() <= 1e-13 * wanted.norm() < 1e-3 * (before - wanted).norm()


def test_scores_in_bf16(rows):
    """Near the float64 scores, and not them: the products really were in 16 bits."""
    model, features = rows
    with torch.no_grad():
        truth = model(collate(features))
    model.float()
    for kind in ("rectangle", "ragged"):
        off = float((fast.Scorer(model, "bf16")(collate(features, kind)) - truth).norm() / truth.norm())
        assert 1e-4 < off < 0.03


def test_rows_end_to_end_for_the_kernel_of_cuda(rows, monkeypatch):
    """The call that only CUDA can answer, answered by the readable attention, row by row."""
    model, features = rows
    batch, calls = collate(features, "ragged"), []

    def one_row_after_the_other(q, k, v, ends, also_ends, longest, also_longest):
        calls.append(longest)
        assert ends is also_ends and ends.dtype == torch.int32 and longest == also_longest == max(ends.diff())
        assert q.shape == (int(ends[-1]), 5, 6)
        cut = [[x[a:b].transpose(0, 1)[None] for x in (q, k, v)] for a, b in itertools.pairwise(ends.tolist())]
        return torch.cat([attention(*row, None)[0].transpose(0, 1) for row in cut])

    wanted = fast.Scorer(model, "fp32")(batch)
    assert not kernels.may_pack(torch.zeros(5, 90, dtype=torch.bfloat16), batch.layout)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", one_row_after_the_other)
    monkeypatch.setattr(kernels, "may_pack", lambda qkv, layout: layout.kind == "ragged")
    found = fast.Scorer(model, "fp32")(batch)
    assert calls == [kernels.LONG + 7] * 2 and (found - wanted).norm() <= 1e-13 * wanted.norm()


@pytest.mark.parametrize("device, bits, kind, prefix, answer", [
    ("cuda", 2, "ragged", None, True), ("cpu", 2, "ragged", None, False), ("cuda", 4, "ragged", None, False),
    ("cuda", 2, "rectangle", None, False), ("cuda", 2, "ragged", PREFIX, False)])
def test_when_rows_may_be_packed(device, bits, kind, prefix, answer, monkeypatch):
    qkv = SimpleNamespace(is_cuda=device == "cuda", element_size=lambda: bits)
    assert kernels.may_pack(qkv, SimpleNamespace(kind=kind, prefix=prefix)) is answer
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)         # an older torch has no such kernel
    assert kernels.may_pack(qkv, SimpleNamespace(kind=kind, prefix=prefix)) is False


def test_torchs_compiler_is_not_imported():
    """It would take a second and a half of every start."""
    command = [sys.executable, "-c", "import sys, train; sys.exit('torch._dynamo' in sys.modules)"]
    assert subprocess.run(command, cwd=Path(train.__file__).parent).returncode == 0


# ---------------------------------------------------------------------------------------------------- the optimizer


def quadratic(seed: int = 2) -> list[nn.Parameter]:
    """Five float64 parameters of different shapes; the first is a table of which few rows get a gradient."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((29, 7), (11, 13), (17,), (5, 6), (8,))
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


def give_gradients(params: list[nn.Parameter], step: int, sparse: bool) -> None:
    """The same numbers dense or sparse; rows 20 to 28 never get any, the fourth parameter none every third step."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params):
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if i == 3 and step % 3 == 0:
            p.grad = None
    rows = torch.randperm(20, generator=generator)[:6].sort().values
    table = torch.zeros_like(params[0]).index_copy_(0, rows, params[0].grad[rows])
    params[0].grad = torch.sparse_coo_tensor(rows[None], table[rows], table.shape, is_coalesced=True,
                                             check_invariants=False) if sparse else table


@pytest.mark.parametrize("sparse, band", [(False, 7), (True, 7), (True, 4096)])
@pytest.mark.parametrize("settings", [{}, {"bias_correction": False, "eps": 1e-3}, {"betas": (0.5, 0.75)}])
def test_fused_adamw_is_adamw(sparse, band, settings, monkeypatch):
    """100 steps, two groups, learning rates that change; also the rows whose gradient is 0 move, decay and remember.

    The table's 29 rows are four bands of 7 and one of 1, or fewer than a band; some bands have no gradient at all.
    """
    monkeypatch.setattr("minibert.engines.fast.adamw.BAND", band)
    mine, plain = quadratic(), quadratic()
    optimizers = [rule([{"params": p[:2], "weight_decay": 0.1}, {"params": p[2:]}], lr=1e-3, **settings)
                  for rule, p in ((FusedAdamW, mine), (AdamW, plain))]
    start = [p.detach().clone() for p in plain]
    for step in range(1, 101):
        give_gradients(mine, step, sparse)
        give_gradients(plain, step, sparse=False)
        for optimizer in optimizers:
            optimizer.set_learning_rate(1e-2 * step / 100)
            optimizer.step()
    for p, q, before in zip(mine, plain, start, strict=True):
        assert (q - before).norm() > 0.01 and (p - q).norm() <= 1e-12 * q.norm()
        for key in "ms":
            a, b = (o.state[x][key] for o, x in zip(optimizers, (p, q), strict=True))
            assert b.norm() > 0 and (a - b).norm() <= 1e-12 * b.norm()
    assert not torch.equal(plain[0][25], start[0][25]) and [o.state[p[3]]["t"] for o, p in
                                                           zip(optimizers, (mine, plain), strict=True)] == [67, 67]


def test_a_short_gradient_is_clipped_and_moves_as_the_same_numbers_in_full():
    """Six tensors, the matrices' gradients in bf16 or sparse; clipping on and off, and forgotten after its step."""
    mine, plain = quadratic(), quadratic()
    optimizers = [rule(p, lr=0.01, weight_decay=0.1) for rule, p in ((FusedAdamW, mine), (AdamW, plain))]
    for step in range(1, 31):
        give_gradients(mine, step, sparse=True)
        give_gradients(plain, step, sparse=False)
        for p, q in zip(mine, plain, strict=True):
            if p.grad is not None and p.dim() > 1 and not p.grad.is_sparse:
                p.grad = p.grad.bfloat16()
                q.grad = p.grad.to(q.dtype)
        norm = math.sqrt(sum(float((p.grad ** 2).sum()) for p in plain if p.grad is not None))
        limit = {0: 0.0, 1: 0.3 * norm, 2: 2 * norm}[step % 3]
        assert [o.clip(limit) for o in optimizers] == pytest.approx([norm, norm], rel=1e-13)
        for optimizer in optimizers:
            optimizer.step()
    assert sum(p.grad.dtype == torch.bfloat16 for p in mine if p.grad is not None) >= 1
    for p, q in zip(mine, plain, strict=True):
        assert (p - q).norm() <= 1e-12 * q.norm()


def test_what_is_clipped_once_is_not_clipped_again():
    mine, plain = quadratic(), quadratic()
    first, second = FusedAdamW(mine, lr=0.01), FusedAdamW(plain, lr=0.01)
    for step in (1, 2):
        give_gradients(mine, step, sparse=False)
        give_gradients(plain, step, sparse=False)
        if step == 1:
            assert first.clip(0.1) > 0.2
            clip_gradient(plain, 0.1)
        first.step()
        second.step()
    assert all((p - q).norm() <= 1e-13 * q.norm() for p, q in zip(mine, plain, strict=True))


def test_clipping_nothing():
    optimizer = FusedAdamW(quadratic(), lr=0.01)
    assert optimizer.clip(1.0) == 0.0
    optimizer.step()


def test_a_gradient_in_bf16_stays_so_for_the_optimizer_that_reads_it(tiny):
    """Of matrices, and of one micro-batch: a sum is of fp32 numbers, and no other rule is given short ones."""
    model, features = tiny
    model, batches = model.float(), [collate(f) for f in features[:2]]

    def gradients(*batches, precision="bf16"):
        for p in model.parameters():
            p.grad = None
        for batch in batches:
            add_gradients(model, Untouched(), batch, DropoutMasks(3, 5), {"words": 1.0}, precision)
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    AdamW(model.parameters(), lr=0.1)
    wide = [gradients(batch) for batch in batches]
    assert {g.dtype for found in wide for g in found.values()} == {torch.float32}
    FusedAdamW(model.parameters(), lr=0.1)
    short = gradients(batches[0])
    in_bf16 = {n for n, g in short.items() if g.dtype == torch.bfloat16}
    assert {n for n, m in model.bert.named_modules(prefix="bert") if isinstance(m, nn.Linear)} - {"bert.pooler"} == {
        n.removesuffix(".weight") for n in in_bf16 if n.startswith("bert.")}
    assert all(torch.equal(g.to_dense().float(), wide[0][n].to_dense()) for n, g in short.items())
    for n, g in gradients(*batches).items():
        both = wide[0][n].to_dense() + wide[1][n].to_dense()
        assert g.dtype == torch.float32 and torch.equal(g.to_dense(), both), n
    assert {g.dtype for g in gradients(batches[0], precision="fp16").values()} == {torch.float32}  # the scale needs it


@pytest.mark.parametrize("rule", [AdamW, SGD])
def test_the_readable_rules_take_a_sparse_gradient_too(rule):
    mine, plain = quadratic(), quadratic()
    optimizers = [rule(p, lr=0.1, weight_decay=0.01) for p in (mine, plain)]
    for step in range(1, 8):
        for params, optimizer, sparse in zip((mine, plain), optimizers, (True, False), strict=True):
            give_gradients(params, step, sparse)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(mine, plain, strict=True))


def test_the_state_goes_from_one_rule_to_the_other():
    """Seven steps by the readable rule, seven by the fused one: as fourteen by either."""
    mine, plain = quadratic(), quadratic()
    first, whole = AdamW(mine, lr=0.01, weight_decay=0.1), AdamW(plain, lr=0.01, weight_decay=0.1)
    second = FusedAdamW(mine, lr=0.5)
    for step in range(1, 15):
        if step == 8:
            second.load_state_dict(first.state_dict())
        give_gradients(mine, step, sparse=step > 7)
        give_gradients(plain, step, sparse=False)
        (first if step < 8 else second).step()
        whole.step()
    assert all((p - q).norm() <= 1e-13 * q.norm() for p, q in zip(mine, plain, strict=True))


def test_a_group_without_any_gradient_stands_still():
    params = quadratic()
    optimizer = FusedAdamW([{"params": params[:3]}, {"params": params[3:]}], lr=0.1, weight_decay=0.5)
    before = [p.detach().clone() for p in params]
    for p in params[3:]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [torch.equal(p, q) for p, q in zip(params, before, strict=True)] == [True] * 3 + [False] * 2


def test_clipping_and_unscaling_see_the_numbers_of_a_sparse_gradient():
    mine, plain = quadratic(), quadratic()
    give_gradients(mine, 1, sparse=True)
    give_gradients(plain, 1, sparse=False)
    scaler = LossScaler(True, scale=64.0)
    for params in (mine, plain):
        assert scaler.unscale(params)
    norm = math.sqrt(sum(float((p.grad ** 2).sum()) for p in plain))
    assert [clip_gradient(p, 0.25 * norm) for p in (mine, plain)] == pytest.approx([norm, norm], rel=1e-14)
    for p, q in zip(mine, plain, strict=True):
        assert torch.allclose(p.grad.to_dense(), q.grad, rtol=1e-14, atol=0)
    mine[0].grad.values()[3, 2] = math.inf
    assert not scaler.unscale(mine)


# ------------------------------------------------------------------------------------------------------- in the loop


def test_it_is_the_default_and_brings_its_optimizer(tiny):
    model, _ = tiny
    assert TrainConfig().gradients == "fast"
    rules = {engine: type(train.build_optimizer(model, ENGINES[engine], TrainConfig()))
             for engine in ("fast", "by-hand", "autograd")}
    assert rules == {"fast": FusedAdamW, "by-hand": AdamW, "autograd": AdamW}
    assert type(train.build_optimizer(model, ENGINES["fast"], TrainConfig(optimizer="sgd"))) is SGD


class Library:
    """Stands in for the C library: what it was asked."""
    asked = []

    def __init__(self, name):
        self.mallopt = lambda parameter, value: self.asked.append((parameter, value))
        self.malloc_trim = lambda left: self.asked.append(left)


def test_the_engine_keeps_memory_from_its_first_update_on_and_no_other_does(tiny, monkeypatch):
    monkeypatch.setattr(Library, "asked", [])
    monkeypatch.setattr(ctypes, "CDLL", Library)
    for name in ("by-hand", "autograd"):
        ENGINES[name](tiny[0], "fp32")
    assert Library.asked == []
    ENGINES["fast"](tiny[0], "fp32")
    assert Library.asked == [(-1, 2 ** 31 - 1), (-4, 0), (-8, 1)]


def test_memory_is_kept_and_given_back_where_the_c_library_can_and_nothing_happens_elsewhere(monkeypatch):
    monkeypatch.setattr(Library, "asked", [])
    monkeypatch.setattr(ctypes, "CDLL", Library)
    keep_memory()
    Heap().give_back()
    # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX of glibc's malloc.h, then malloc_trim
    assert Library.asked == [(-1, 2 ** 31 - 1), (-4, 0), (-8, 1), 0]
    for error in (OSError, TypeError):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, error=error: (_ for _ in ()).throw(error))
        keep_memory()
        Heap().give_back()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())                  # a library without them
    keep_memory()
    Heap().give_back()


def test_the_heap_gives_back_its_free_pages_around_a_batch_larger_than_all_before(tiny, monkeypatch):
    """Before its forward, before its backward, and the same once more around the next batch."""
    model, (features, *_) = tiny
    features = sorted(features, key=lambda f: -len(f.ids))                     # the longest stands in all batches
    monkeypatch.setattr(Library, "asked", [])
    monkeypatch.setattr(ctypes, "CDLL", Library)
    counts = []
    for rows in (2, 1, 1, 3, 2, 3, 3):
        add_gradients(model, Untouched(), collate(features[:rows]), None, {"words": 1.0}, "fp32")
        counts.append(Library.asked.count(0))
        Library.asked.clear()
    assert counts == [2, 2, 0, 2, 2, 0, 0]
