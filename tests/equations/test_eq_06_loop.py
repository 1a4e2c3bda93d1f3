"""Chapter 06: the learning rate, clipping, accumulation, number formats and loss scaling; both engines in one loop."""
import dataclasses
import json
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from incomplete import incomplete
from torch import nn
from updates import accumulate, build_model, derive, one_update

import train
from minibert import engines
from minibert.core import ops, optim
from minibert.core.batch import collate
from minibert.core.dropout import DropoutMasks
from minibert.core.precision import LossScaler, autocast
from minibert.engines.by_hand import ByHand
from minibert.settings import TrainConfig
from minibert.tasks.base import Task
from minibert.tasks.ner import NER
from minibert.use.prepare import encode_all

CPU = torch.device("cpu")
ENGINES = ["autograd", "by-hand", "fast"]
FORMATS = {torch.float16: (5, 10), torch.bfloat16: (8, 7), torch.float32: (8, 23)}       # exponent and mantissa bits
HALF = [torch.float16, torch.bfloat16]


def numbers(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_gradients(*gradients) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for p, g in zip(params, gradients, strict=True):
        p.grad = g.clone()
    return params


@pytest.fixture
def parts(tiny_folder, tiny_data):
    """-> make(dtype, **settings): (model, task, 32 short sentences as features, settings); no dropout unless set."""
    def make(dtype=torch.float64, **changes):
        settings = TrainConfig(**{"weights": str(tiny_folder), "data": str(tiny_data), "precision": "fp32",
                                  "max_pieces": 24, "case_shapes": "off", "dropout": 0.0, "batch_size": 32} | changes)
        task = NER(NER.Options())
        splits = train.read_data(task, settings)
        model, tokenizer = build_model(tiny_folder, task, settings)
        with torch.no_grad():
            model.head.classifier.bias.add_(numbers(7, seed=5).float())
        features = encode_all(task, splits["train"], tokenizer, 24, 6)[:32]
        assert len({len(f.labels) for f in features}) > 4
        return model.to(dtype), task, features, settings
    return make


def split(features, task, settings, pieces: int):
    """One update's features in `pieces` micro-batches."""
    return train.micro_batches(features, np.arange(len(features)), task,
                               TrainConfig(accumulate=pieces, layout=settings.layout), 0, CPU)


def gradient(model, task, batches, settings, scale: float = 1.0, step: int = 3):
    """(loss, {name: gradient}) of one update's batches, nothing scaled back."""
    for p in model.parameters():
        p.grad = None
    loss = accumulate(model, task, batches, scale, settings, step)
    return loss, {n: p.grad.to_dense().clone() for n, p in model.named_parameters() if p.grad is not None}


def one_by_one(model, task, features):
    """(loss, {name: gradient}) of the mean over all labels, the slow obvious way: a row at a time, torch's autograd."""
    losses = []
    for f in features:
        scores = model(collate([f])).log_softmax(-1)
        losses += [-scores[j, label] for j, label in enumerate(f.labels)]
    mean = sum(losses) / len(losses)
    names, params = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    return float(mean.detach()), dict(zip(names, torch.autograd.grad(mean, params), strict=True))


def assert_same(found, wanted, tolerance: float = 1e-12) -> None:
    """Each tensor to `tolerance` of its norm; a key bias, whose gradient is 0 on paper (softmax ignores a shift of all
    scores of a query), of its query bias's."""
    assert found.keys() == wanted.keys()
    for name, dw in wanted.items():
        size = wanted[name.replace("key.bias", "query.bias")].norm()
        assert size > 0 and (found[name] - dw).norm() <= tolerance * size, name


# -------------------------------------------------------------------------------------------------------- one update


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("share", [0.05, 20.0])
def test_one_update_with_plain_sgd_in_full_UPD_1(parts, engine, share):
    """Three micro-batches, a loss scale, the clip active (share < 1) and not, another learning rate than before."""
    model, task, features, settings = parts(gradients=engine)
    theta = {n: p.detach().clone() for n, p in model.named_parameters()}
    _, wanted_gradient = one_by_one(model, task, features)
    norm = math.sqrt(math.fsum(x * x for g in wanted_gradient.values() for x in g.flatten().tolist()))
    lr, clip = 0.3, share * norm
    settings = TrainConfig(precision="fp32", gradients=engine, clip=clip)
    optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], lr=7.0)
    for p in model.parameters():
        p.grad = torch.full_like(p, 100.0) if p.requires_grad else None       # of an update before: to be forgotten
    batches = split(features, task, settings, 3)
    _, found_norm = one_update(model, task, batches, optimizer, LossScaler(True, 2.0 ** 10), settings, 3, lr)
    assert found_norm == pytest.approx(norm, rel=1e-12)
    moved = {}
    for name, g in wanted_gradient.items():
        moved[name] = theta[name] - lr * min(1.0, clip / norm) * g            # [UPD-1]
    found = {n: p.detach() for n, p in model.named_parameters()}
    for name, wanted in moved.items():
        assert (found[name] - wanted).norm() < 1e-13 * wanted.norm(), name
    assert all(torch.equal(found[n], theta[n]) for n in theta if n not in moved) and len(moved) == 39


@pytest.mark.parametrize("engine", ENGINES)
def test_an_overflow_leaves_weights_and_state_alone_AMP_3(parts, engine):
    """A scale of 2^40 is no number in fp16: the update is skipped, the scale halves, AdamW counts nothing."""
    model, task, features, settings = parts(torch.float32, precision="fp16", gradients=engine)
    theta = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1.0)
    scaler = LossScaler(True, 2.0 ** 40)
    loss, norm = one_update(model, task, split(features, task, settings, 2), optimizer, scaler, settings, 1, 1.0)
    assert math.isfinite(loss) and norm == math.inf
    assert scaler.scale == 2.0 ** 39 and scaler.skipped == 1 and not optimizer.state
    assert all(torch.equal(p, theta[n]) for n, p in model.named_parameters())


# ------------------------------------------------------------------------------------------------------ learning rate

RUNS = [(97, 11), (97, 1), (97, 0), (23, 23), (1, 0), (1, 1)]


@pytest.mark.parametrize("total, warmup", RUNS)
def test_rise_and_fall_in_fractions_LR_1_LR_2(total, warmup):
    peak = 3e-4
    for step in range(1, total + 1):
        if step <= warmup:
            share = Fraction(step, warmup)
        else:
            share = 1 - Fraction(step - warmup, total + 1 - warmup)           # from 1 at `warmup` to 0 after the last
        assert 0 < share <= 1
        assert optim.lr_at(step, total, warmup, peak) == pytest.approx(peak * float(share), rel=1e-15)


@pytest.mark.parametrize("total, warmup", RUNS)
def test_the_sum_of_all_factors_forgets_the_warmup_LR_1_LR_2_LR_3(total, warmup):
    factors = [optim.lr_at(step, total, warmup, 1.0) for step in range(1, total + 1)]
    claimed = (total + (warmup > 0)) / 2                                      # [LR-3]
    assert math.fsum(factors) == pytest.approx(claimed, rel=1e-14)


def test_learning_rate_worked_example_LR_1_LR_2_LR_3():
    """Chapter 06: of 10 updates 4 are warm-up: 1/4, 2/4, 3/4, 1, 6/7, ..., 1/7; 10/4 + 21/7 = 11/2 = (10 + 1)/2."""
    factors = [optim.lr_at(step, 10, 4, 1.0) for step in range(1, 11)]
    assert factors == [1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    assert math.fsum(factors) == pytest.approx(11 / 2, rel=1e-15)


# ----------------------------------------------------------------------------------------------------------- clipping

SHAPES = [(7, 11), (13,), (5, 6, 8)]


def three_gradients() -> list[torch.Tensor]:
    """Norms apart by factors of about 8 and 30, so that one of them alone is not the whole."""
    return [size * numbers(*shape, seed=i) for i, (shape, size) in enumerate(zip(SHAPES, (3.0, 1.0, 5.0), strict=True))]


def length(*tensors) -> float:
    return math.hypot(*(x for t in tensors for x in t.flatten().tolist()))


def test_the_norm_is_one_over_all_parameters_CLIP_1():
    gradients = three_gradients()
    params = [*with_gradients(*gradients), nn.Parameter(torch.ones(4))]       # the last has no gradient
    assert optim.clip_gradient(params, 0.0) == pytest.approx(length(*gradients), rel=1e-14)
    assert all(torch.equal(p.grad, g) for p, g in zip(params, gradients, strict=False))
    inf = with_gradients(*gradients)
    inf[1].grad[2] = math.inf
    assert optim.clip_gradient(inf, 0.0) == math.inf


@pytest.mark.parametrize("limit", [1.0, 0.37, 60.0])
def test_one_factor_for_all_brings_the_norm_to_the_limit_CLIP_1_CLIP_2(limit):
    gradients = three_gradients()
    before = length(*gradients)
    assert before > 61
    params = with_gradients(*gradients)
    assert optim.clip_gradient(params, limit) == pytest.approx(before, rel=1e-14)
    assert length(*(p.grad for p in params)) == pytest.approx(limit, rel=1e-13)
    for p, g in zip(params, gradients, strict=True):
        for found, x in zip(p.grad.flatten().tolist(), g.flatten().tolist(), strict=True):
            assert found == pytest.approx(x * limit / before, rel=1e-13)
    short = with_gradients(*(g / 100 for g in gradients))
    assert optim.clip_gradient(short, limit) == pytest.approx(before / 100, rel=1e-14)
    if before / 100 < limit:
        assert all(torch.equal(p.grad, g / 100) for p, g in zip(short, gradients, strict=True))


def test_clipping_each_tensor_turns_the_direction_CLIP_2_CLIP_3():
    gradients = three_gradients()
    flat = torch.cat([g.flatten() for g in gradients])

    def cosine(params) -> float:
        other = torch.cat([p.grad.flatten() for p in params])
        return float(flat @ other / (flat.norm() * other.norm()))

    together = with_gradients(*gradients)
    optim.clip_gradient(together, 0.7)
    assert cosine(together) == pytest.approx(1.0, abs=1e-14)
    alone = with_gradients(*gradients)
    for p in alone:
        assert optim.clip_gradient([p], 0.7) > 0.7
    norms = [length(g) for g in gradients]
    claimed = sum(norms) / (math.sqrt(len(norms)) * length(*gradients))       # [CLIP-3]
    assert cosine(alone) == pytest.approx(claimed, rel=1e-13) and claimed < 0.9


def test_clipped_before_unscaled_the_limit_is_divided_too_CLIP_4():
    gradients, limit, scale = three_gradients(), 0.7, 2.0 ** 10
    right, wrong = ([g * scale for g in gradients] for _ in range(2))
    right, wrong = with_gradients(*right), with_gradients(*wrong)
    scaler = LossScaler(True, scale)
    scaler.unscale(right)
    assert optim.clip_gradient(right, limit) == pytest.approx(length(*gradients), rel=1e-14)
    assert optim.clip_gradient(wrong, limit) == pytest.approx(length(*gradients) * scale, rel=1e-14)
    scaler.unscale(wrong)
    claimed = limit / scale                                                   # [CLIP-4]
    assert length(*(p.grad for p in wrong)) == pytest.approx(claimed, rel=1e-13)
    assert length(*(p.grad for p in right)) == pytest.approx(limit, rel=1e-13)


def test_the_scale_moves_after_it_was_used():
    """Moved before unscale, the scale is not the one that the gradient was multiplied with."""
    g = numbers(7, 11)
    for swapped, factor in ((False, 1.0), (True, 0.5)):
        scaler, (p,) = LossScaler(True, 64.0, interval=1), with_gradients(64.0 * g)
        for name in ("update", "unscale") if swapped else ("unscale", "update"):
            getattr(scaler, name)(True if name == "update" else [p])
        assert torch.equal(p.grad, factor * g) and scaler.scale == 128.0


def test_clipping_worked_example_CLIP_1_CLIP_2_CLIP_3():
    """Chapter 06: gradients (3, 4) and (12): norms 5 and 12, together sqrt(25 + 144) = 13.

    Limit 6.5: factor 1/2, (1.5, 2) and (6). Limit 1 on each alone: (0.6, 0.8) and (1), of which the product with the
    whole is 1.8 + 3.2 + 12 = 17 and the length sqrt 2: cosine 17/(13 sqrt 2) = 0.9247, an angle of 22.4 degrees.
    Two micro-batches (10, 0) and (-9, 0): the sum (1, 0) has norm 1; each clipped to 1, they add up to 0.
    """
    gradients = [torch.tensor(v, dtype=torch.float64) for v in ([3, 4], [12])]
    params = with_gradients(*gradients)
    assert optim.clip_gradient(params, 6.5) == 13.0
    assert [p.grad.tolist() for p in params] == [[1.5, 2.0], [6.0]]
    alone = with_gradients(*gradients)
    assert [optim.clip_gradient([p], 1.0) for p in alone] == [5.0, 12.0]
    flat = [x for p in alone for x in p.grad.tolist()]
    assert flat == pytest.approx([0.6, 0.8, 1.0], rel=1e-15)
    cosine = sum(a * b for a, b in zip(flat, (3, 4, 12), strict=True)) / (13 * math.hypot(*flat))
    assert round(cosine, 4) == 0.9247 and round(math.degrees(math.acos(cosine)), 1) == 22.4
    halves = [torch.tensor(v, dtype=torch.float64) for v in ([10, 0], [-9, 0])]
    (whole,), (first,), (second,) = (with_gradients(g) for g in (halves[0] + halves[1], *halves))
    for p in (whole, first, second):
        optim.clip_gradient([p], 1.0)
    assert whole.grad.tolist() == [1, 0] and (first.grad + second.grad).tolist() == [0, 0]


# ------------------------------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pieces, layout", [(1, "rectangle"), (4, "rectangle"), (32, "rectangle"), (4, "ragged")])
def test_1x32_4x8_and_32x1_are_one_mean_over_all_labels_ACC_1_ACC_3_ACC_4(parts, engine, pieces, layout):
    model, task, features, settings = parts(gradients=engine, layout=layout)
    wanted_loss, wanted = one_by_one(model, task, features)
    batches = split(features, task, settings, pieces)
    assert len(batches) == pieces
    loss, found = gradient(model, task, batches, settings)
    assert loss == pytest.approx(wanted_loss, rel=1e-12)
    assert_same(found, wanted)


@pytest.mark.parametrize("pieces", [4, 32])
def test_by_hand_in_parts_equals_the_whole_batch_without_masks_ACC_4(parts, pieces):
    model, task, features, settings = parts(gradients="by-hand")
    found = []
    for count in (1, pieces):
        for p in model.parameters():
            p.grad = None
        for batch in split(features, task, settings, count):
            ByHand(model, "fp32")(task, batch, None, {"words": 1 / 7})
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert_same(found[1], found[0])


def test_both_engines_see_the_same_dropout_AMP_1_ACC_4(parts):
    """Masks of micro-batch 2 are not those of micro-batch 1; each engine gets them from the same numbers."""
    found = {}
    for engine in ENGINES:
        model, task, features, settings = parts(dropout=0.2, gradients=engine)
        found[engine] = gradient(model, task, split(features, task, settings, 3), settings, scale=3.0)
    for engine in ENGINES[1:]:
        assert found[engine][0] == pytest.approx(found["autograd"][0], rel=1e-12)
        assert_same(found[engine][1], found["autograd"][1])
    plain = parts(dropout=0.0)
    assert found["autograd"][0] != pytest.approx(gradient(*plain[:2], split(plain[2], *plain[1::2], 3), plain[3])[0],
                                                 rel=1e-3)


def test_the_error_of_a_mean_of_means_ACC_2(parts):
    """The gradients of the two means, from the model, put together wrongly."""
    model, task, features, settings = parts()
    batches = split(sorted(features, key=lambda f: len(f.labels)), task, settings, 2)
    n = [int((b.labels >= 0).sum()) for b in batches]
    assert n[1] > 1.4 * n[0]
    (_, whole), *means = (gradient(model, task, part, settings) for part in (batches, batches[:1], batches[1:]))
    for name, dw in whole.items():
        m = [g[name] for _, g in means]
        wrong = (m[0] + m[1]) / 2
        claimed = (n[1] - n[0]) * (m[0] - m[1]) / (2 * (n[0] + n[1]))         # [ACC-2]
        size = whole[name.replace("key.bias", "query.bias")].norm()
        assert (wrong - dw - claimed).norm() < 1e-12 * size, name
        assert claimed.norm() > 0.005 * size or "key.bias" in name


class Line(nn.Module):
    """One weight: the score of x is w·x."""

    def __init__(self, w: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, batch, masks=None):
        return self.w * batch.ids


@incomplete
class Terms(Task):
    """The loss of a score is the score, or its square, in terms that a batch names; counts are given."""

    def __init__(self):
        super().__init__(None)

    def counts(self, batch):
        return batch.counts

    def loss(self, scores, batch):
        return {"plain": scores.sum(), "squared": (scores * scores).sum()} if batch.both else {"plain": scores.sum()}


def line_batch(x, counts, both=False):
    return SimpleNamespace(ids=torch.tensor(x, dtype=torch.float64), counts=counts, both=both)


def test_accumulation_worked_example_ACC_1_ACC_2_ACC_3():
    """Chapter 06: losses 0.5, 1, 1.5 in one micro-batch, 5 in the other; the loss of x is w·x at w = 1, so its
    gradient is x too. Sums 3 and 5, counts 3 and 1: 8/4 = 2. Mean of means (1 + 5)/2 = 3, error (1-3)(1-5)/(2·4) = 1.
    With a scale of 8 each sum has the factor 8/4 = 2: 6 + 10 = 16, and 16/8 = 2.
    """
    batches = [line_batch([0.5, 1.0, 1.5], {"plain": 3.0}), line_batch([5.0], {"plain": 1.0})]
    settings = TrainConfig(precision="fp32", gradients="autograd")
    model = Line(1.0)
    assert accumulate(model, Terms(), batches, 1.0, settings, 1) == 2.0 == float(model.w.grad)
    means = []
    for b in batches:
        model = Line(1.0)
        means.append(accumulate(model, Terms(), [b], 1.0, settings, 1))
    assert means == [1.0, 5.0] and sum(means) / 2 - 2.0 == (1 - 3) * (1 - 5) / (2 * 4) == 1.0
    model = Line(1.0)
    assert accumulate(model, Terms(), batches, 8.0, settings, 1) == 2.0
    assert float(model.w.grad) == 16.0
    LossScaler(True, 8.0).unscale([model.w])
    assert float(model.w.grad) == 2.0


@pytest.mark.parametrize("scale", [1.0, 48.0])
def test_every_term_has_its_own_count_ACC_1_ACC_3_AMP_1(scale):
    """J = Σ wx / N₁ + Σ (wx)² / N₂, so J' = Σ x / N₁ + 2w Σ x² / N₂; in fractions. A term that counts 0 is left out."""
    x = [[3, 5, 7], [11, 2], [13]]
    counts = [{"plain": 3.0, "none": 0.0}, {"plain": 2.0, "squared": 2.0}, {"plain": 4.0, "squared": 5.0}]
    batches = [line_batch(a, c, both=i > 0) for i, (a, c) in enumerate(zip(x, counts, strict=True))]
    model = Line(1.5)
    settings = TrainConfig(precision="fp32", gradients="autograd")
    loss = accumulate(model, Terms(), batches, scale, settings, 1)
    w, first, second = Fraction(3, 2), sum(map(sum, x)), sum(a * a for part in x[1:] for a in part)
    assert loss == pytest.approx(float(w * first / 9 + w * w * second / 7), rel=1e-15)
    assert float(model.w.grad) == pytest.approx(scale * float(Fraction(first, 9) + 2 * w * second / 7), rel=1e-15)


# ------------------------------------------------------------------------------------------- learning around each word


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pieces", [1, 3])
def test_the_mean_of_the_gradient_here_and_uphill_ADV_1_ADV_2(parts, engine, pieces):
    """Both gradients by autograd, the second on a model whose word vectors were moved by hand; weights come back."""
    length, scale, step = 0.7, 3.0, 2000
    model, task, features, settings = parts(dropout=0.2, gradients="autograd")
    word, batches = model.bert.embeddings.word.weight, split(features, task, settings, pieces)
    wanted_loss, here = gradient(model, task, batches, settings, scale, step)
    direction = here["bert.embeddings.word.weight"]
    start = word.detach().clone()
    with torch.no_grad():
        word.add_(direction / math.sqrt(float((direction ** 2).sum())), alpha=length)
    _, there = gradient(model, task, batches, settings, scale, step)
    with torch.no_grad():
        word.copy_(start)
    settings = parts(dropout=0.2, gradients=engine, adversarial=length)[3]
    for p in model.parameters():
        p.grad = None
    loss = derive(model, task, batches, scale, settings, step)
    found = {n: p.grad.to_dense().clone() for n, p in model.named_parameters() if p.grad is not None}
    assert loss == pytest.approx(wanted_loss, rel=1e-12) and torch.equal(word, start)
    assert_same(found, {n: here[n] / 2 + there[n] / 2 for n in here})
    assert all((there[n] - here[n]).norm() > 1e-3 * here[n].norm() for n in here)


def test_one_update_goes_uphill_only_when_asked(parts, monkeypatch):
    seen = []
    monkeypatch.setattr("minibert.core.adversarial.adversarial", lambda *a: seen.append(len(a)) or 1.0)
    for length in (0.0, 0.25):
        model, task, features, settings = parts(gradients="fast", adversarial=length)
        optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        batches = split(features, task, settings, 2)
        one_update(model, task, batches, optimizer, LossScaler(False), settings, 1, 0.1)
        assert len(seen) == (length > 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_any_label_there_is_no_direction_and_no_step(parts, engine):
    model, task, features, settings = parts(gradients=engine, adversarial=0.5)
    empty = [f for f in features if not (f.labels >= 0).any()] or [dataclasses.replace(
        features[0], labels=np.full_like(features[0].labels, -1))]
    word = model.bert.embeddings.word.weight.detach().clone()
    for p in model.parameters():
        p.grad = None
    assert derive(model, task, [collate(empty)], 1.0, settings, step=3) == 0.0
    assert torch.equal(model.bert.embeddings.word.weight, word)
    assert all(bool((p.grad.to_dense() == 0).all()) for p in model.parameters() if p.grad is not None)


def test_the_loss_uphill_rises_by_the_length_times_the_norm_ADV_1_ADV_3(parts):
    """What is left of the difference is quadratic in the length; per length, a third for a third of it."""
    model, task, features, settings = parts(gradients="autograd")
    word, batches = model.bert.embeddings.word.weight, split(features, task, settings, 1)
    base, here = gradient(model, task, batches, settings)
    g = here["bert.embeddings.word.weight"]
    norm, start, left = float(g.norm()), word.detach().clone(), []
    for length in (0.003, 0.001):
        with torch.no_grad():
            word.copy_(start + length * g / norm)
        claimed = base + length * norm                                        # [ADV-3]
        left.append((gradient(model, task, batches, settings)[0] - claimed) / length)
    assert norm > 0.01 and 2.8 < left[0] / left[1] < 3.2


# ----------------------------------------------------------------------------------------------------- number formats


def positive(dtype) -> torch.Tensor:
    """Every finite number from 0 up that a 16-bit format has, ascending, by all its bit patterns; as float64."""
    x = torch.arange(2 ** 15, dtype=torch.int32).to(torch.int16).view(dtype).double()
    return x[torch.isfinite(x)]


def of_bits(pattern: int, dtype) -> float:
    whole = torch.int32 if dtype is torch.float32 else torch.int16
    return float(torch.tensor(pattern, dtype=whole).view(dtype))


@pytest.mark.parametrize("dtype", FORMATS)
def test_largest_and_smallest_number_by_their_bits_FMT_1_FMT_2(dtype):
    """The largest is the pattern just below infinity (all exponent bits set), the smallest the pattern 1."""
    e, m = FORMATS[dtype]
    b = 2 ** (e - 1) - 1
    largest = (2 - 2.0 ** -m) * 2.0 ** b                                      # [FMT-1]
    smallest = 2.0 ** (1 - b - m)                                             # [FMT-2]
    infinity = (2 ** e - 1) << m
    assert of_bits(infinity, dtype) == math.inf
    assert of_bits(infinity - 1, dtype) == largest and of_bits(1, dtype) == smallest
    if dtype in HALF:
        assert float(positive(dtype).max()) == largest and float(positive(dtype)[1]) == smallest


@pytest.mark.parametrize("dtype", HALF)
def test_worst_relative_error_of_rounding_over_all_numbers_FMT_3(dtype):
    """The worst case lies midway between neighbours: half their distance over their mean."""
    e, m = FORMATS[dtype]
    x = positive(dtype)
    x = x[x >= 2.0 ** (2 - 2 ** (e - 1))]                                     # normal numbers; below, digits run out
    midway = (x[1:] + x[:-1]) / 2
    assert bool(((midway.to(dtype).double() == x[1:]) | (midway.to(dtype).double() == x[:-1])).all())
    errors = (midway.to(dtype).double() - midway).abs() / midway
    claimed = 1 / (2 ** (m + 1) + 1)                                          # [FMT-3]
    assert float(errors.max()) == pytest.approx(claimed, rel=1e-14)


def test_the_table_of_formats_FMT_1_FMT_2_FMT_3():
    """Chapter 06: largest, smallest normal, smallest number, worst relative error, as printed there."""
    table = {torch.float32: ("3.4e+38", "1.2e-38", "1.4e-45", "6.0e-08"),
             torch.bfloat16: ("3.4e+38", "1.2e-38", "9.2e-41", "3.9e-03"),
             torch.float16: ("6.6e+04", "6.1e-05", "6.0e-08", "4.9e-04")}
    for dtype, printed in table.items():
        e, m = FORMATS[dtype]
        one_and_next = torch.tensor([1.0], dtype=dtype).view(torch.int32 if e + m == 31 else torch.int16) + 1
        step = float(one_and_next.view(dtype).double() - 1)
        row = (of_bits(((2 ** e - 1) << m) - 1, dtype), of_bits(1 << m, dtype), of_bits(1, dtype), step / (2 + step))
        assert tuple(f"{x:.1e}" for x in row) == printed


@pytest.mark.parametrize("dtype", HALF)
def test_a_smaller_step_does_not_move_a_weight_FMT_4(dtype):
    _, m = FORMATS[dtype]
    for w in torch.tensor([0.05, 0.3, 0.7, 1.0, 1.9, 6.0]).to(dtype).double().tolist():
        threshold = 2.0 ** (math.floor(math.log2(w)) - m - 1)                 # [FMT-4]
        below, above = torch.tensor([w + 0.9996 * threshold, w + 1.0004 * threshold], dtype=torch.float64).to(dtype)
        assert float(below) == w and float(above) == w + 2 * threshold


def test_steps_of_training_against_the_threshold_FMT_4():
    """Chapter 06: a weight of 0.05 in bf16 stays where a step is below 2^-13 = 1.2e-4, one of 1 below 2^-8 = 3.9e-3."""
    for w, threshold, printed in ((0.05, 2.0 ** -13, "1.2e-04"), (1.0, 2.0 ** -8, "3.9e-03")):
        assert f"{threshold:.1e}" == printed
        w = torch.tensor(w).bfloat16()
        assert torch.equal((w.double() + 0.999 * threshold).bfloat16(), w)
        assert not torch.equal((w.double() + 1.001 * threshold).bfloat16(), w)
        assert (w.float() + 1e-3 * threshold) != w.float()                    # fp32 has 16 bits more


@pytest.mark.parametrize("dtype", HALF)
def test_a_sum_of_ones_stops_FMT_5(dtype):
    _, m = FORMATS[dtype]
    total, one = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)
    for _ in range(5000):
        total = total + one
    claimed = 2.0 ** (m + 1)                                                  # [FMT-5]
    assert float(total) == claimed and claimed in (256.0, 2048.0)


# ------------------------------------------------------------------------------------------------------- loss scaling


def test_a_gradient_of_1e_8_dies_in_fp16_and_lives_in_bf16_AMP_2():
    g = torch.tensor([1e-8, -1e-8], dtype=torch.float64)
    assert g.half().tolist() == [0.0, 0.0]
    assert (g.bfloat16().double() / g - 1).abs().max() < 1 / 257
    (p,) = with_gradients((g * 2.0 ** 16).half().float())
    LossScaler(True).unscale([p])
    assert (p.grad.double() / g - 1).abs().max() < 1 / 2049


@pytest.mark.parametrize("scale", [1.0, 2.0 ** 16, 2.0 ** -3])
@pytest.mark.parametrize("dtype", HALF)
def test_which_gradients_survive_a_scale_AMP_5(dtype, scale):
    e, m = FORMATS[dtype]
    b = 2 ** (e - 1) - 1
    low, high = 2.0 ** (-b - m) / scale, (2 - 2.0 ** (-m - 1)) * 2.0 ** b / scale       # [AMP-5]
    g = torch.tensor([low * 0.9999, low * 1.0001, high * 0.9999, high * 1.0001], dtype=torch.float64)
    held = (g * scale).to(dtype).double()
    assert held[0] == 0 and held[1] > 0 and torch.isfinite(held[2]) and held[3] == math.inf


def test_unscale_divides_by_the_scale_AMP_2():
    gradients = three_gradients()
    for scale, bits in ((2.0 ** 16, True), (2.0 ** -5, True), (3.0, False)):
        params = with_gradients(*(g * scale for g in gradients))
        assert LossScaler(True, scale).unscale(params) is True
        for p, g in zip(params, gradients, strict=True):
            assert torch.equal(p.grad, g) if bits else torch.allclose(p.grad, g, rtol=1e-15, atol=0)


def test_the_scale_halves_and_doubles_AMP_3_AMP_4():
    """Chapter 06, with an interval of 3, from 64: three good updates double; an overflow halves and starts the count
    anew."""
    scaler, seen = LossScaler(True, scale=64.0, interval=3), []
    for good in (1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1):
        scaler.update(bool(good))
        seen.append(scaler.scale)
    assert seen == [64, 64, 128, 128, 128, 64, 64, 64, 32, 16, 16, 16, 32] and scaler.skipped == 3


def test_small_gradients_survive_by_the_scale_AMP_1_AMP_2(parts):
    """The scale is in the loss before anything is rounded: at 2^-18 (a loss 260,000 times smaller) fp16 loses most
    numbers, at 2^10 nearly none, and after unscale what is left is the gradient of fp32."""
    model, task, features, settings = parts(torch.float32)
    exact = torch.cat([g.flatten() for g in gradient(model, task, split(features, task, settings, 2), settings)[1]
                       .values()])
    for engine in ENGINES:
        lost, errors = [], []
        for scale in (2.0 ** -18, 2.0 ** 10):
            model, task, features, settings = parts(torch.float32, precision="fp16", gradients=engine)
            gradient(model, task, split(features, task, settings, 2), settings, scale)
            params = [p for p in model.parameters() if p.grad is not None]
            assert LossScaler(True, scale).unscale(params)
            found = torch.cat([p.grad.to_dense().flatten() for p in params])
            lost.append(float(((found == 0) & (exact != 0)).double().mean()))
            errors.append(float((found - exact).norm() / exact.norm()))
        assert lost[0] > 0.5 and lost[1] < 0.05, engine
        assert errors[0] > 0.05 and errors[1] < 0.01, engine


# ------------------------------------------------------------------------------------------- both engines, whole runs


def losses_of(folder) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "split" not in line]


def run(tiny_folder, tiny_data, output, *more: str) -> list[float]:
    train.train(["--weights", str(tiny_folder), "--data", str(tiny_data), "--output", str(output), "--batch-size", "7",
                 "--learning-rate", "3e-3", "--max-pieces", "24", "--overlap", "6", "--evaluate", "none",
                 "--max-steps", "9", *more])
    return losses_of(output)


def test_bf16_losses_of_both_engines_agree_to_its_rounding(tiny_folder, tiny_data, tmp_path):
    """Nine updates with dropout: apart by less than one rounding of bf16, 1/257; and really bf16, not fp32."""
    found = {engine: run(tiny_folder, tiny_data, tmp_path / engine, "--precision", "bf16", "--gradients", engine)
             for engine in ENGINES}
    wide = run(tiny_folder, tiny_data, tmp_path / "fp32", "--precision", "fp32", "--gradients", "by-hand")
    for engine in ENGINES[1:]:
        assert found[engine] == pytest.approx(found["autograd"], rel=1 / 257)
        apart = np.abs(np.array(found[engine]) / np.array(wide) - 1)
        assert apart.max() > 1e-4 and apart.max() < 1 / 100


def test_fp16_by_hand_finds_its_scale_and_learns(tiny_folder, tiny_data, tmp_path, monkeypatch):
    """From 2^16 the scale falls until the gradient fits; from there the losses are autograd's to fp16's rounding."""
    scales, update = [], LossScaler.update
    monkeypatch.setattr(LossScaler, "update", lambda self, finite: (update(self, finite), scales.append(self.scale)))
    found = {engine: run(tiny_folder, tiny_data, tmp_path / engine, "--precision", "fp16", "--gradients", engine,
                         "--max-steps", "24") for engine in ENGINES}
    assert scales[:24] == scales[24:48] == scales[48:] == sorted(scales[48:], reverse=True)
    assert 2.0 ** 8 < scales[-1] < 2.0 ** 16                                  # at least one update was skipped
    for engine in ENGINES[1:]:
        assert found[engine] == pytest.approx(found["autograd"], rel=1 / 513)
        assert np.mean(found[engine][-8:]) < 0.8 * np.mean(found[engine][:4])


@pytest.mark.parametrize("what, trained", [("none", 39), ("embeddings", 34), ("1", 18), ("encoder", 2)])
def test_frozen_parameters_have_no_gradient_and_the_rest_is_autograds_ACC_4(parts, what, trained):
    """Four updates of AdamW in float64, two micro-batches each, dropout on: one trajectory, whoever derives."""
    ends = {}
    for engine in ENGINES:
        model, task, features, settings = parts(dropout=0.1, freeze=what, gradients=engine)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer, losses = train.build_optimizer(model, engines.ENGINES[engine], settings), []
        for step in range(1, 5):
            batches = split(features[8 * step - 8:8 * step], task, settings, 2)
            losses.append(one_update(model, task, batches, optimizer, LossScaler(False), settings, step, 1e-3))
        with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
        assert with_gradient == {n for n, p in model.named_parameters() if p.requires_grad}
        assert len(with_gradient) == trained
        for name, p in model.named_parameters():
            assert torch.equal(p, start[name]) == (name not in with_gradient), name
        ends[engine] = losses, {n: p.detach() for n, p in model.named_parameters() if "key.bias" not in n}
    for engine in ENGINES[1:]:
        assert np.allclose(ends[engine][0], ends["autograd"][0], rtol=1e-9, atol=0)
        for name, p in ends["autograd"][1].items():
            assert (ends[engine][1][name] - p).norm() < 1e-9 * p.norm(), name


def test_a_frozen_run_is_the_same_run_by_hand(tiny_folder, tiny_data, tmp_path):
    more = ("--precision", "fp32", "--freeze", "1", "--accumulate", "2", "--max-steps", "6")
    found = [run(tiny_folder, tiny_data, tmp_path / engine, *more, "--gradients", engine) for engine in ENGINES]
    assert found[1] == pytest.approx(found[0], rel=1e-4) and found[2] == pytest.approx(found[0], rel=1e-4)


def test_by_hand_autograd_is_off_from_first_to_last(tiny_folder, tiny_data, tmp_path, monkeypatch):
    """No graph is built and no backward of torch is called; by autograd the same spies see the opposite."""
    seen, call = [], ByHand.__call__

    def spy(self, *rest):
        sums = call(self, *rest)
        seen.append(torch.is_grad_enabled() or any(s.requires_grad for s in sums.values()))
        return sums

    def refuse(*a, **k):
        raise AssertionError("torch's backward was called")

    monkeypatch.setattr(ByHand, "__call__", spy)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    monkeypatch.setattr(torch.autograd, "backward", refuse)
    quick = ("--precision", "fp32", "--max-steps", "3")
    run(tiny_folder, tiny_data, tmp_path / "a", *quick, "--gradients", "by-hand")
    assert seen == [False] * 3 and torch.is_grad_enabled()
    with pytest.raises(AssertionError, match="backward was called"):
        run(tiny_folder, tiny_data, tmp_path / "b", *quick, "--gradients", "autograd")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_where_autocast_rounds(parts, precision, monkeypatch):
    """Products come out in the half format; weights, residual stream, LayerNorm, sums and gradients are fp32."""
    dtype, seen, kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision], {}, {}

    def spy(name, inner):
        def spied(*a, **k):
            out, cache = inner(*a, **k)
            seen.setdefault(name, set()).add(out.dtype)
            return out, cache
        monkeypatch.setattr(ops, name + "_forward", spied)

    for name in ("linear", "attention", "layernorm", "residual"):
        spy(name, getattr(ops, name + "_forward"))
    for engine in ENGINES:
        model, task, features, settings = parts(torch.float32, precision=precision, gradients=engine)
        gradient(model, task, split(features, task, settings, 2), settings)
        kinds[engine] = {p.dtype for p in model.parameters()} | {p.grad.dtype for p in model.parameters()
                                                                 if p.grad is not None}
        with autocast(precision, CPU):
            scores = model(collate(features), DropoutMasks(0, 1))
        assert scores.dtype == dtype and task.loss(scores, collate(features))["words"].dtype == torch.float32
    assert seen == {"linear": {dtype}, "attention": {dtype}, "layernorm": {torch.float32}, "residual": {torch.float32}}
    assert kinds == {engine: {torch.float32} for engine in ENGINES}
