import math

import numpy as np
import pytest
import torch
from torch import nn

from minibert.core import optim
from minibert.core.model import Bert
from minibert.core.optim import SGD, AdamW, clip_gradient, decay_groups, lr_at
from minibert.errors import MinibertError

SHAPES = [(7, 11), (13,), (5, 6, 8), (9, 1)]
STEPS = 100


def parameters(seed: int = 0, shapes=SHAPES, dtype=torch.float64) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=g, dtype=dtype)) for s in shapes]


def gradients(steps: int = STEPS, shapes=SHAPES, dtype=torch.float64, seed: int = 1) -> list[list[torch.Tensor]]:
    """Of very different sizes, so that epsilon and both running means matter."""
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(s, generator=g, dtype=dtype) * 10.0 ** -((i + t) % 5) for i, s in enumerate(shapes)]
            for t in range(steps)]


def follow(optimizer, params, grads) -> None:
    for step in grads:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        optimizer.step()


def distance(ours, theirs) -> float:
    """Largest difference, relative where numbers are above 1."""
    return max(((a - b).abs() / b.abs().clamp(min=1)).max().item() for a, b in zip(ours, theirs, strict=True))


# -------------------------------------------------------------------------------------------------- against torch's own


@pytest.mark.parametrize("settings", [{}, {"betas": (0.7, 0.95), "eps": 1e-3}], ids=["default", "other"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("lr", [1e-3, 10.0])
def test_adamw_follows_torch(lr, decay, settings):
    ours, theirs = parameters(), parameters()
    follow(AdamW(ours, lr, weight_decay=decay, **settings), ours, gradients())
    follow(torch.optim.AdamW(theirs, lr, weight_decay=decay, **settings), theirs, gradients())
    assert distance(ours, theirs) < 1e-12
    assert distance(ours, parameters()) > 1e-2


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_groups_have_their_own_settings_as_in_torch(kind):
    make, torchs = (AdamW, torch.optim.AdamW) if kind == "adamw" else (SGD, torch.optim.SGD)
    ours, theirs = parameters(), parameters()

    def groups(p):
        return [{"params": p[:2], "weight_decay": 0.1}, {"params": p[2:], "lr": 3e-3}]

    follow(make(groups(ours), 0.02), ours, gradients())
    follow(torchs(groups(theirs), 0.02, weight_decay=0.0), theirs, gradients())
    assert distance(ours, theirs) < 1e-12


@pytest.mark.parametrize("momentum, decay", [(0.0, 0.0), (0.9, 0.0), (0.0, 0.1)])
@pytest.mark.parametrize("lr", [1e-3, 0.3])
def test_sgd_follows_torch(lr, momentum, decay):
    ours, theirs = parameters(), parameters()
    follow(SGD(ours, lr, momentum, decay), ours, gradients())
    follow(torch.optim.SGD(theirs, lr, momentum, weight_decay=decay), theirs, gradients())
    assert distance(ours, theirs) < 1e-12


def test_set_learning_rate_reaches_every_group_between_steps():
    ours, theirs = parameters(), parameters()
    a = AdamW([{"params": ours[:1]}, {"params": ours[1:], "weight_decay": 0.2}], 1.0)
    b = torch.optim.AdamW([{"params": theirs[:1]}, {"params": theirs[1:], "weight_decay": 0.2}], 1.0, weight_decay=0.0)
    for t, grads in enumerate(gradients(20)):
        a.set_learning_rate(0.01 * (t + 1))
        for group in b.param_groups:
            group["lr"] = 0.01 * (t + 1)
        follow(a, ours, [grads])
        follow(b, theirs, [grads])
    assert distance(ours, theirs) < 1e-12


# ---------------------------------------------------------------------------------------- against the rule, written out


def numbers(params) -> list[list[float]]:
    return [p.detach().flatten().tolist() for p in params]


def test_adamw_without_bias_correction_is_the_recurrence_of_the_original_bert_code():
    lr, b1, b2, eps, decay = 0.01, 0.9, 0.999, 1e-6, 0.1
    ours = parameters()
    theta = numbers(ours)
    m, s = [[0.0] * len(x) for x in theta], [[0.0] * len(x) for x in theta]
    for step in gradients():
        for i, g in enumerate(numbers(step)):
            for j, gj in enumerate(g):
                m[i][j] = b1 * m[i][j] + (1 - b1) * gj
                s[i][j] = b2 * s[i][j] + (1 - b2) * gj * gj
                theta[i][j] -= lr * (m[i][j] / (math.sqrt(s[i][j]) + eps) + decay * theta[i][j])
    follow(AdamW(ours, lr, (b1, b2), eps, decay, bias_correction=False), ours, gradients())
    expected = [torch.tensor(x, dtype=torch.float64).view(p.shape) for x, p in zip(theta, ours, strict=True)]
    assert distance(ours, expected) < 1e-12
    corrected = parameters()
    follow(AdamW(corrected, lr, (b1, b2), eps, decay), corrected, gradients())
    assert distance(corrected, expected) > 1e-2


def test_sgd_with_momentum_and_decay_is_the_decoupled_recurrence_and_torch_is_not():
    """v <- mu v + g, theta <- theta - eta v - eta lambda theta; torch puts lambda theta into g, so into v as well."""
    lr, mu, decay = 0.05, 0.9, 0.1
    ours, coupled = parameters(), parameters()
    theta = numbers(ours)
    v = [[0.0] * len(x) for x in theta]
    for step in gradients():
        for i, g in enumerate(numbers(step)):
            for j, gj in enumerate(g):
                v[i][j] = mu * v[i][j] + gj
                theta[i][j] = theta[i][j] - lr * v[i][j] - lr * decay * theta[i][j]
    follow(SGD(ours, lr, mu, decay), ours, gradients())
    follow(torch.optim.SGD(coupled, lr, mu, weight_decay=decay), coupled, gradients())
    expected = [torch.tensor(x, dtype=torch.float64).view(p.shape) for x, p in zip(theta, ours, strict=True)]
    assert distance(ours, expected) < 1e-12
    assert distance(coupled, expected) > 1e-2


@pytest.mark.parametrize("momentum, same", [(0.0, True), (0.9, False)])
def test_decoupled_decay_is_an_l2_term_only_under_plain_sgd(momentum, same):
    """loss + lambda/2 |theta|^2 has the gradient g + lambda theta."""
    decay, g = 0.1, torch.Generator().manual_seed(3)
    targets = [torch.randn(s, generator=g, dtype=torch.float64) for s in SHAPES]
    decoupled, penalised = parameters(), parameters()
    a, b = SGD(decoupled, 0.05, momentum, decay), SGD(penalised, 0.05, momentum)
    for _ in range(30):
        for params, optimizer, penalty in ((decoupled, a, 0.0), (penalised, b, decay)):
            optimizer.zero_grad()
            loss = sum((p - t).cosh().sum() + penalty / 2 * (p ** 2).sum()
                       for p, t in zip(params, targets, strict=True))
            loss.backward()
            optimizer.step()
    assert (distance(decoupled, penalised) < 1e-12) == same
    assert (distance(decoupled, penalised) > 1e-3) == (not same)


def test_one_step_of_adamw_by_hand():
    """theta = 2, g = 1/2, eta = 1/10, beta = (9/10, 3/4), eps = 1/2, lambda = 1/5; a second step with g = -1.

    1: m = 0.05, s = 0.0625; m^ = 0.05/0.1 = 0.5, s^ = 0.0625/0.25 = 0.25, root 0.5;
       theta = 2 - 0.1 * 0.5/(0.5 + 0.5) - 0.1 * 0.2 * 2 = 2 - 0.05 - 0.04 = 1.91.
    2: m = 0.045 - 0.1 = -0.055, s = 0.046875 + 0.25 = 0.296875; m^ = -0.055/0.19, s^ = 0.296875/0.4375 = 19/28;
       theta = 1.91 + 0.1 * (0.055/0.19)/(sqrt(19/28) + 0.5) - 0.1 * 0.2 * 1.91.
    """
    p = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    optimizer = AdamW([p], 0.1, (0.9, 0.75), 0.5, 0.2)
    follow(optimizer, [p], [[torch.tensor(0.5, dtype=torch.float64)]])
    assert float(p.detach()) == pytest.approx(1.91, abs=1e-15)
    follow(optimizer, [p], [[torch.tensor(-1.0, dtype=torch.float64)]])
    second = 1.91 + 0.1 * (0.055 / 0.19) / (math.sqrt(19 / 28) + 0.5) - 0.0382
    assert float(p.detach()) == pytest.approx(second, abs=1e-15)


# --------------------------------------------------------------------------------------------------- what is left alone


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, 0.9, 0.5), lambda p: AdamW(p, 0.1, weight_decay=0.5)])
def test_parameter_without_gradient_is_untouched_and_starts_fresh_later(make):
    params, alone = parameters(), parameters()
    optimizer = make(params)
    for step in gradients(5):
        for p, g in list(zip(params, step, strict=True))[1:]:
            p.grad = g.clone()
        optimizer.step()
    assert torch.equal(params[0], parameters()[0])
    assert all(not torch.equal(a, b) for a, b in zip(params[1:], parameters()[1:], strict=True))
    optimizer.zero_grad()
    last = gradients(1, seed=7)[0][0]
    follow(optimizer, params[:1], [[last]])
    follow(make(alone[:1]), alone[:1], [[last]])
    assert torch.equal(params[0], alone[0])


def test_zero_grad_forgets_every_gradient():
    params = parameters()
    optimizer = SGD([{"params": params[:1]}, {"params": params[1:]}], 0.1)
    follow(optimizer, params, gradients(1))
    optimizer.zero_grad()
    assert [p.grad for p in params] == [None] * len(SHAPES)


def test_nothing_to_train_and_twice_the_same_are_refused():
    a, b = parameters()[:2]
    for nothing in ([], iter([]), [{"params": []}]):
        with pytest.raises(ValueError, match="at least"):
            SGD(nothing, 0.1)
    for twice in ([a, b, a], [{"params": [a, b]}, {"params": [b]}]):
        with pytest.raises(ValueError, match="twice"):
            AdamW(twice, 0.1)


def test_generators_are_taken_as_params():
    plain, once, grouped = parameters(), parameters(), parameters()
    for params, given in ((plain, plain), (once, (p for p in once)), (grouped, iter([{"params": iter(grouped)}]))):
        follow(AdamW(given, 0.1), params, gradients(3))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(plain, once, grouped, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(plain, parameters(), strict=True))


# ------------------------------------------------------------------------------------------------------ save and resume

MAKERS = {"sgd": lambda p: SGD(p, 0.01, 0.9, 0.1), "adamw": lambda p: AdamW(p, 0.01, weight_decay=0.1),
          "groups": lambda p: AdamW([{"params": p[:2], "weight_decay": 0.3}, {"params": p[2:]}], 0.01)}


@pytest.mark.parametrize("kind", MAKERS)
def test_state_dict_continues_to_the_same_bits(kind):
    grads = gradients(20, dtype=torch.float32)
    whole, half = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    a = MAKERS[kind](whole)
    follow(a, whole, grads)
    b = MAKERS[kind](half)
    b.set_learning_rate(0.5)
    b.set_learning_rate(0.01)
    follow(b, half, grads[:9])
    resumed = [nn.Parameter(p.detach().clone()) for p in half]
    c = MAKERS[kind](resumed)
    c.set_learning_rate(77.0)                      # settings come from the saved state
    c.load_state_dict(b.state_dict())
    for i in range(9, 20):                         # both go on: they must not share any tensor
        follow(c, resumed, grads[i:i + 1])
        follow(b, half, grads[i:i + 1])
    assert all(torch.equal(x, y) for x, y in zip(whole, resumed, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(whole, half, strict=True))
    fresh = [nn.Parameter(p.detach().clone()) for p in resumed]
    follow(MAKERS[kind](fresh), fresh, grads[:1])
    follow(c, resumed, grads[:1])
    assert not all(torch.equal(x, y) for x, y in zip(fresh, resumed, strict=True))


def saved(kind: str, shapes=SHAPES) -> dict:
    params = parameters(shapes=shapes)
    optimizer = MAKERS[kind](params)
    follow(optimizer, params, gradients(2, shapes))
    return optimizer.state_dict()


MISFITS = {"another number of groups": ("adamw", SHAPES, "groups", SHAPES),
           "more parameters than there are": ("adamw", SHAPES, "adamw", SHAPES[:3]),
           "another shape": ("sgd", SHAPES, "sgd", [SHAPES[0], (12,), *SHAPES[2:]]),
           "transposed": ("adamw", SHAPES, "adamw", [(11, 7), *SHAPES[1:]])}


@pytest.mark.parametrize("case", MISFITS)
def test_state_that_does_not_fit_is_an_error_and_changes_nothing(case):
    kind, shapes, other, others = MISFITS[case]
    params = parameters(shapes=others)
    optimizer, twin = MAKERS[other](params), parameters(shapes=others)
    with pytest.raises(MinibertError, match="same kind of model"):
        optimizer.load_state_dict(saved(kind, shapes))
    follow(optimizer, params, gradients(3, others))
    follow(MAKERS[other](twin), twin, gradients(3, others))
    assert all(torch.equal(a, b) for a, b in zip(params, twin, strict=True))


@pytest.mark.parametrize("case", ["of another rule", "of fewer parameters"])
def test_state_of_another_optimizer_is_an_error(case):
    """Neither may pass silently: SGD has no use for m and s, and two tensors' state is no state for four."""
    params = parameters()
    other = saved("adamw") if case == "of another rule" else saved("sgd", SHAPES[:2])
    with pytest.raises(MinibertError):
        SGD(params, 0.01, 0.9, 0.1).load_state_dict(other)


# -------------------------------------------------------------------------------------------------------- learning rate


@pytest.mark.parametrize("total, warmup", [(100, 10), (97, 0), (50, 50), (7, 1), (1, 0), (1, 1), (1404, 140)])
def test_lr_is_two_straight_lines(total, warmup):
    """Knots: (0, 0), (warmup, peak), (total + 1, 0); without warm-up the peak would be at step 0."""
    peak = 3e-4
    knots = [(0, 0.0), (warmup, peak), (total + 1, 0.0)] if warmup else [(0, peak), (total + 1, 0.0)]
    got = [lr_at(step, total, warmup, peak) for step in range(1, total + 1)]
    expected = np.interp(range(1, total + 1), *zip(*knots, strict=True))
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    top = max(warmup - 1, 0)
    assert all(a < b for a, b in zip(got[:top], got[1:top + 1], strict=True))
    assert all(a > b for a, b in zip(got[top:], got[top + 1:], strict=False))
    assert min(got) > 0 and max(got) <= peak


def test_lr_at_its_marked_steps():
    """total 10, warmup 4, peak 7: 1 -> 7/4, 4 -> 7, 5 -> 7 * 6/7 = 6, 10 -> 7 * 1/7 = 1."""
    assert [lr_at(s, 10, 4, 7.0) for s in (1, 4, 5, 10)] == pytest.approx([1.75, 7.0, 6.0, 1.0], rel=1e-15)


# --------------------------------------------------------------------------------------------------------- decay groups


class Odd(nn.Module):
    """Names that lie about their modules."""

    def __init__(self):
        super().__init__()
        self.word = nn.Embedding(13, 6)
        self.LayerNorm = nn.Linear(6, 7)
        self.dense = nn.LayerNorm(7)
        self.bias = nn.Linear(7, 5, bias=False)
        self.norm = nn.ModuleDict({"LayerNorm": nn.Linear(5, 6), "weight": nn.LayerNorm(6)})
        self.frozen = nn.Linear(6, 9)
        self.frozen.requires_grad_(False)
        self.partly = nn.Linear(6, 8)
        self.partly.weight.requires_grad_(False)
        self.tied = nn.Linear(6, 13)
        self.tied.weight = self.word.weight
        self.scale = nn.Parameter(torch.ones(3, 4))


def test_decay_goes_by_type_of_module_not_by_name():
    model = Odd()
    decayed, plain = decay_groups(model, 0.25)
    assert set(decayed["names"]) == {"word.weight", "LayerNorm.weight", "bias.weight", "norm.LayerNorm.weight", "scale"}
    assert set(plain["names"]) == {"LayerNorm.bias", "dense.weight", "dense.bias", "norm.LayerNorm.bias",
                                   "norm.weight.weight", "norm.weight.bias", "partly.bias", "tied.bias"}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.25, 0.0)
    by_name = dict(model.named_parameters())
    for group in (decayed, plain):
        assert [id(p) for p in group["params"]] == [id(by_name[n]) for n in group["names"]]
    AdamW([decayed, plain], 0.1)                   # would refuse a parameter given twice


def test_decay_groups_of_bert_are_its_matrices_and_its_vectors(tiny_config):
    """In BERT every bias and LayerNorm weight is a vector, everything else a matrix."""
    model = Bert(tiny_config)
    model.blocks[0].requires_grad_(False)
    groups = decay_groups(model, 0.01)
    names = [n for g in groups for n in g["names"]]
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(names) == len(set(names)) and set(names) == set(trained)
    decayed = {n for g in groups if g["weight_decay"] for n in g["names"]}
    assert decayed == {n for n, p in trained.items() if p.dim() == 2}
    assert set(names) - decayed == {n for n, p in trained.items() if p.dim() == 1}
    assert not any(n.startswith("blocks.0") for n in names)


def test_an_empty_decay_group_is_left_out():
    assert [g["names"] for g in decay_groups(nn.LayerNorm(7), 0.1)] == [["weight", "bias"]]
    assert [g["names"] for g in decay_groups(nn.Linear(7, 5, bias=False), 0.1)] == [["weight"]]


# ------------------------------------------------------------------------------------------------------------- clipping


def with_gradients(scale: float) -> list[nn.Parameter]:
    params = parameters()
    for p, g in zip(params, gradients(1)[0], strict=True):
        p.grad = g * scale
    params.append(nn.Parameter(torch.ones(4)))     # one without gradient
    return params


@pytest.mark.parametrize("limit", [1.0, 0.37, 1e-4])
def test_clip_is_one_norm_over_everything(limit):
    """torch divides by norm + 1e-6, so its result is a factor norm/(norm + 1e-6) shorter."""
    ours, theirs = with_gradients(3.0), with_gradients(3.0)
    flat = torch.cat([p.grad.flatten() for p in ours[:-1]])
    norm = math.sqrt(math.fsum(x * x for x in flat.tolist()))
    assert norm > 1
    assert clip_gradient(ours, limit) == pytest.approx(norm, rel=1e-14)
    assert float(nn.utils.clip_grad_norm_(theirs, limit)) == pytest.approx(norm, rel=1e-14)
    clipped = torch.cat([p.grad.flatten() for p in ours[:-1]])
    torch.testing.assert_close(clipped, flat * (limit / norm), rtol=1e-14, atol=0)
    torch_clipped = torch.cat([p.grad.flatten() for p in theirs[:-1]])
    torch.testing.assert_close(clipped, torch_clipped * ((norm + 1e-6) / norm), rtol=1e-12, atol=0)
    assert ours[-1].grad is None


@pytest.mark.parametrize("scale, limit", [(3.0, 0.0), (3.0, 1e9), (1e-3, 1.0)])
def test_clip_only_measures_at_zero_and_below_the_limit(scale, limit):
    params = with_gradients(scale)
    norm = clip_gradient(iter(params), limit)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(params[:-1], with_gradients(scale)[:-1], strict=True))
    assert norm == pytest.approx(clip_gradient(with_gradients(1.0), 0.0) * scale, rel=1e-12)


def test_clip_of_no_gradients_is_zero():
    assert clip_gradient(parameters(), 1.0) == 0.0


@pytest.mark.parametrize("rule, settings", [(SGD, {"momentum": 0.7}), (AdamW, {"eps": 1e-6})])
def test_a_step_in_parts_equals_a_step_at_once(rule, settings, monkeypatch):
    draw = torch.Generator().manual_seed(8)
    start, gradients = torch.randn(23, 11, generator=draw), torch.randn(6, 23, 11, generator=draw)
    ends = []
    for part in (10_000, 37):                       # 253 numbers: at once, or in seven parts, the last one shorter
        monkeypatch.setattr(optim, "SLICE", part)
        p = torch.nn.Parameter(start.clone())
        optimizer = rule([p], lr=0.03, weight_decay=0.2, **settings)
        for g in gradients:
            p.grad = g.clone()
            optimizer.step()
        ends.append(p.detach())
    assert torch.equal(*ends) and not torch.equal(ends[0], start)


def test_parameters_and_gradients_may_lie_in_any_order(monkeypatch):
    monkeypatch.setattr(optim, "SLICE", 13)
    draw = torch.Generator().manual_seed(9)
    start, g = torch.randn(7, 9, generator=draw), torch.randn(7, 9, generator=draw)
    ends = []
    for turn in (lambda x: x, lambda x: x.t().contiguous().t()):
        p = torch.nn.Parameter(turn(start.clone()))
        optimizer = AdamW([p], lr=0.03)
        for _ in range(3):
            p.grad = turn(g.clone())
            optimizer.step()
        ends.append(p.detach())
    assert torch.equal(*ends)
