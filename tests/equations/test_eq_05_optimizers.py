"""Chapter 05: the two rules against closed forms, exact fractions and torch.optim; each claim about them by numbers."""
import itertools
import math
from fractions import Fraction

import pytest
import torch
from differences import check_gradient
from torch import nn

from minibert.core.model import Bert
from minibert.core.optim import SGD, AdamW, clip_gradient, decay_groups

N, T = 11, 7
ETA, MU, DECAY = 0.03, 0.85, 0.4
BETAS, EPS = (0.7, 0.95), 0.3                      # eps so large that a forgotten or misplaced one shows


def numbers(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(steps: int = T) -> list[torch.Tensor]:
    return list(numbers(steps, N, seed=1) + 0.4)


def parameter(start: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(start.clone())


def follow(optimizer, p, grads) -> torch.Tensor:
    """Where p is after one step for each gradient."""
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    return p.detach().clone()


def last_move(make, grads) -> torch.Tensor:
    """What the last of several steps does to a parameter that stands at 0 before each of them: −η·direction."""
    p = parameter(torch.zeros_like(grads[0]))
    optimizer = make([p])
    for g in grads:
        p.data.zero_()
        follow(optimizer, p, [g])
    return p.detach()


def loss(theta: torch.Tensor) -> torch.Tensor:
    """Curved differently everywhere, the least at the target."""
    return (theta - numbers(N, seed=2)).cosh().sum()


def slope(theta: torch.Tensor) -> torch.Tensor:
    return (theta - numbers(N, seed=2)).sinh()


def exact(x: torch.Tensor) -> list[Fraction]:
    return [Fraction(v) for v in x.tolist()]


def close(ours: torch.Tensor, theirs, rel: float = 1e-13) -> bool:
    theirs = [float(v) for v in theirs]
    return ours.tolist() == pytest.approx(theirs, rel=rel, abs=1e-15)


# ------------------------------------------------------------------------------------------------------ the gradient


def test_a_step_against_the_gradient_descends_and_none_descends_faster_SGD_2_SGD_3():
    theta = numbers(N)
    g = slope(theta)

    def loss_after(eta):
        p = parameter(theta)
        return loss(follow(SGD([p], ETA * float(eta)), p, [g]))               # ETA: else differences are too coarse

    along = -(g * g).sum()                                                    # [SGD-3]
    check_gradient(loss_after, (torch.zeros((), dtype=torch.float64),), (ETA * along,))
    length = float(g.norm())
    assert float(along) / length == pytest.approx(-length, rel=1e-14)         # a rate per unit of way: −‖g‖
    others = numbers(500, N, seed=3)
    rates = others @ g / others.norm(dim=1)
    assert -length < float(rates.min()) < 0


def test_how_much_a_step_lowers_a_quadratic_loss_SGD_4():
    theta, root = numbers(N), numbers(N, N + 2, seed=3)
    curve = root @ root.T
    centre = numbers(N, seed=4)

    def quadratic(x):
        return 0.5 * (x - centre) @ curve @ (x - centre)

    g = curve @ (theta - centre)
    p = parameter(theta)
    after = quadratic(follow(SGD([p], ETA), p, [g]))
    expected = quadratic(theta) - ETA * g.dot(g) + 0.5 * ETA ** 2 * g.dot(curve.mv(g))   # [SGD-4]
    assert float(after) == pytest.approx(float(expected), rel=1e-12)
    sizes, directions = torch.linalg.eigh(curve)
    steepest, c = centre + directions[:, -1], float(sizes[-1])
    for factor, falls in ((0.1, True), (1.99, True), (2.01, False)):
        p = parameter(steepest)
        after = quadratic(follow(SGD([p], factor / c), p, [curve @ (steepest - centre)]))
        assert (float(after) < float(quadratic(steepest))) == falls


# ---------------------------------------------------------------------------------------------------------- momentum


def test_velocity_is_a_geometric_sum_of_gradients_SGD_1_SGD_5():
    p, grads, mu = parameter(numbers(N)), gradients(), Fraction(MU)
    optimizer = SGD([p], ETA, MU, DECAY)
    follow(optimizer, p, grads)
    for j in range(N):
        past = [exact(g)[j] for g in grads]
        velocity = sum(mu ** (T - i) * g for i, g in enumerate(past, start=1))      # [SGD-5]
        assert float(optimizer.state[p]["v"][j]) == pytest.approx(float(velocity), rel=1e-13)


def test_a_lasting_gradient_is_multiplied_up_to_ten_times_SGD_1_SGD_6():
    g, mu = numbers(N), 0.9
    for steps in (1, 2, 5, 13, 500):
        moved = last_move(lambda p: SGD(p, 1.0, mu), [g] * steps)             # noqa: B023
        velocity = g * (1 - mu ** steps) / (1 - mu)                           # [SGD-6]
        assert close(-moved, velocity.tolist())
    assert close(velocity, (10 * g).tolist())
    alternating = last_move(lambda p: SGD(p, 1.0, mu), [g, -g] * 250)
    assert close(alternating, (g / (1 + mu)).tolist())


@pytest.mark.parametrize("mu", [0.0, MU])
def test_sgd_by_exact_fractions_SGD_1_SGD_2(mu):
    p, grads = parameter(numbers(N)), gradients()
    eta, decay, theta, v = Fraction(ETA), Fraction(DECAY), exact(p.detach()), [Fraction(0)] * N
    for step in map(exact, grads):
        v = [Fraction(mu) * a + b for a, b in zip(v, step, strict=True)]
        theta = [x - eta * a - eta * decay * x for x, a in zip(theta, v, strict=True)]
    assert close(follow(SGD([p], ETA, mu, DECAY), p, grads), theta)


# -------------------------------------------------------------------------------------------------------------- Adam


def weights_of(beta: float, steps: int) -> list[Fraction]:
    """(1−β)·βᵗ⁻ⁱ for i = 1..t: how much of each gradient a running mean holds."""
    beta = Fraction(beta)
    return [(1 - beta) * beta ** (steps - i) for i in range(1, steps + 1)]


def test_running_means_by_exact_fractions_ADAM_1_ADAM_2():
    p, grads = parameter(numbers(N)), gradients()
    optimizer = AdamW([p], ETA, BETAS, EPS, DECAY)
    follow(optimizer, p, grads)
    for name, beta, power in (("m", BETAS[0], 1), ("s", BETAS[1], 2)):
        held = [sum(w * exact(g)[j] ** power for w, g in zip(weights_of(beta, T), grads, strict=True))
                for j in range(N)]
        assert close(optimizer.state[p][name], held)


def test_corrected_means_are_weighted_averages_ADAM_3_ADAM_4_ADAM_5():
    """Σ w·g / Σ w with the same weights, added up instead of 1 − βᵗ; then eps, outside the root and after it."""
    for steps in (1, 2, T):
        grads = gradients(steps)
        moved = last_move(lambda p: AdamW(p, ETA, BETAS, EPS), grads)
        for j in range(N):
            mean, square = (float(sum(w * exact(g)[j] ** power for w, g in zip(weights, grads, strict=True))
                                  / sum(weights))
                            for weights, power in ((weights_of(BETAS[0], steps), 1), (weights_of(BETAS[1], steps), 2)))
            assert float(moved[j]) == pytest.approx(-ETA * mean / (math.sqrt(square) + EPS), rel=1e-12)


@pytest.mark.parametrize("correct", [True, False])
def test_adamw_step_by_scalars_ADAM_5_ADAM_6(correct):
    p, grads = parameter(numbers(N)), gradients()
    theta = p.tolist()
    for j in range(N):
        for t in range(1, T + 1):
            past = [exact(g)[j] for g in grads[:t]]
            m, s = (float(sum(w * x ** power for w, x in zip(weights_of(beta, t), past, strict=True)))
                    for beta, power in zip(BETAS, (1, 2), strict=True))
            if correct:
                m, s = m / (1 - BETAS[0] ** t), s / (1 - BETAS[1] ** t)
            theta[j] = theta[j] - ETA * m / (math.sqrt(s) + EPS) - ETA * DECAY * theta[j]
    assert close(follow(AdamW([p], ETA, BETAS, EPS, DECAY, correct), p, grads), theta)


def test_adamw_follows_torch_ADAM_5_ADAM_6():
    p, q, grads = parameter(numbers(N)), parameter(numbers(N)), gradients(60)
    ours = follow(AdamW([p], ETA, BETAS, EPS, DECAY), p, grads)
    theirs = follow(torch.optim.AdamW([q], ETA, BETAS, EPS, DECAY), q, grads)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


def test_expectation_of_a_running_mean_over_every_sequence_ADAM_1_ADAM_2_ADAM_7():
    """Three outcomes, five steps: 243 sequences, a coordinate each, weighted by their probabilities. No sampling.

    E[g] = -1/2 + 1/6 + 1/2 = 1/6;  E[g²] = 1/2 + 1/12 + 3/2 = 25/12.
    """
    outcomes, chances, steps = (-1.0, 0.5, 3.0), (Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)), 5
    sequences = list(itertools.product(range(3), repeat=steps))
    chance = [math.prod(chances[k] for k in sequence) for sequence in sequences]
    assert sum(chance) == 1
    grads = [torch.tensor([outcomes[sequence[t]] for sequence in sequences], dtype=torch.float64) for t in range(steps)]
    p = parameter(torch.zeros(len(sequences), dtype=torch.float64))
    optimizer = AdamW([p], ETA, BETAS, EPS)
    follow(optimizer, p, grads)
    for name, beta, mean in (("m", BETAS[0], 1 / 6), ("s", BETAS[1], 25 / 12)):
        expectation = sum(c * x for c, x in zip(chance, exact(optimizer.state[p][name]), strict=True))
        claimed = (1 - beta ** steps) * mean                                  # [ADAM-7]
        assert float(expectation) == pytest.approx(claimed, rel=1e-13)
        same = [i for i, sequence in enumerate(sequences) if len(set(sequence)) == 1]    # g₁ = … = g_t: as dependent
        dependent = sum(c * float(optimizer.state[p][name][i]) for c, i in zip(chances, same, strict=True))
        assert float(dependent) == pytest.approx(claimed, rel=1e-13)


def test_first_step_is_eta_in_every_coordinate_ADAM_8():
    g = torch.tensor([3e-6, -2e-4, 0.07, -1.0, 40.0, 5e3], dtype=torch.float64)
    eps = 1e-8
    moved = last_move(lambda p: AdamW(p, ETA, eps=eps), [g])
    size = ETA * g.abs() / (g.abs() + eps)                                    # [ADAM-8]
    torch.testing.assert_close(moved, -g.sign() * size, rtol=1e-13, atol=0)
    assert float((size / ETA - 1).abs().max()) < 0.004
    big = last_move(lambda p: AdamW(p, ETA, BETAS, EPS), [g])                 # whatever the betas
    torch.testing.assert_close(big, -ETA * g / (g.abs() + EPS), rtol=1e-13, atol=0)


def test_epsilon_of_the_fused_step_has_a_root_ADAM_9():
    """η√c₂/c₁ · m/(√s + ε̂) is the step if ε̂ = √(1−β₂ᵗ)·ε; without the root it is another step."""
    beta1, beta2 = BETAS
    for t in (1, 3, T):
        p = parameter(torch.zeros(N, dtype=torch.float64))
        optimizer = AdamW([p], ETA, BETAS, EPS)
        follow(optimizer, p, gradients(t)[:-1])
        p.data.zero_()
        moved = follow(optimizer, p, gradients(t)[-1:])
        m, s = optimizer.state[p]["m"], optimizer.state[p]["s"]

        def fused(hat, m=m, s=s, t=t):
            return -ETA * math.sqrt(1 - beta2 ** t) / (1 - beta1 ** t) * m / (s.sqrt() + hat)

        eps_hat = math.sqrt(1 - beta2 ** t) * EPS                             # [ADAM-9]
        torch.testing.assert_close(fused(eps_hat), moved, rtol=1e-12, atol=0)
        assert float((fused((1 - beta2 ** t) * EPS) / moved - 1).abs().min()) > 0.03


def test_eps_outside_and_its_square_inside_are_within_root_2_ADAM_10():
    g = torch.logspace(-7, 7, 1401, dtype=torch.float64)
    eps = 10.0 ** -2
    outside = -g / last_move(lambda p: AdamW(p, 1.0, eps=eps), [g])           # √ŝ + ε: at the first step ŝ = g²
    ratio = (g + eps) / (g * g + eps * eps).sqrt()                            # [ADAM-10]
    torch.testing.assert_close(outside / (g * g + eps ** 2).sqrt(), ratio, rtol=1e-12, atol=0)
    assert 1 < float(ratio.min()) < 1 + 1e-5 and float(ratio.max()) <= math.sqrt(2) * (1 + 1e-15)
    assert float(ratio.max()) == pytest.approx(math.sqrt(2), rel=1e-14)
    assert float(g[ratio.argmax()]) == pytest.approx(eps)
    unsquared = (g + 1e-8) / (g * g + 1e-8).sqrt()                            # 1e-8 moved inside acts as 1e-4 outside
    assert float(unsquared.min()) < 0.0011


def test_without_bias_correction_early_steps_are_larger_ADAM_11():
    beta1, beta2 = 0.9, 0.999
    ratios, p, q = [], parameter(torch.zeros(N, dtype=torch.float64)), parameter(torch.zeros(N, dtype=torch.float64))
    plain, corrected = AdamW([p], 1.0, eps=0.0, bias_correction=False), AdamW([q], 1.0, eps=0.0)
    for t, g in enumerate(gradients(1000), start=1):
        p.data.zero_()
        q.data.zero_()
        found = follow(plain, p, [g]) / follow(corrected, q, [g])
        ratio = (1 - beta1 ** t) / math.sqrt(1 - beta2 ** t)                  # [ADAM-11]
        assert close(found, [ratio] * N)
        ratios.append(ratio)
    assert [round(ratios[t - 1], 2) for t in (1, 12, 300, 1000)] == [3.16, 6.57, 1.96, 1.26]
    assert max(ratios) == ratios[11]
    assert 1 / math.sqrt(1 - beta2 ** 3925) < 1.01 < 1 / math.sqrt(1 - beta2 ** 3924)    # β₁ᵗ is long gone


def test_the_gradient_over_its_root_descends_ADAM_12():
    theta = numbers(N)
    g = slope(theta)

    def loss_after(eta):
        p = parameter(theta)
        return loss(follow(AdamW([p], float(eta), BETAS, EPS), p, [g]))

    root = g.abs() + EPS                                                      # of the first step
    along = -(g * g / root).sum()                                             # [ADAM-12]
    check_gradient(loss_after, (torch.zeros((), dtype=torch.float64),), (along,))


def test_later_a_step_may_go_uphill_ADAM_1():
    """β₁ = 2/3: after g = 6 comes g = -1. m = 2/3 · 2 - 1/3 = 1 is above 0 still, so θ falls; the loss rises there."""
    p = parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = AdamW([p], 0.1, (2 / 3, 3 / 4), 2.0)
    before = follow(optimizer, p, [torch.tensor([6.0], dtype=torch.float64)])
    after = follow(optimizer, p, [torch.tensor([-1.0], dtype=torch.float64)])
    assert float(optimizer.state[p]["m"]) == pytest.approx(1, rel=1e-14)
    assert float(after) < float(before)


# ------------------------------------------------------------------------------------------------------------- decay


def directions(grads) -> torch.Tensor:
    """Adam's direction at the last of these gradients, by torch; it depends on the gradients alone."""
    return -last_move(lambda p: torch.optim.Adam(p, 1.0, BETAS, EPS), grads)


def test_decay_first_or_in_one_go_is_the_same_DEC_1():
    for steps in (1, 2, T):
        theta, grads = numbers(N), gradients(steps)
        d = directions(grads)
        ends = []
        for rule in (AdamW, torch.optim.AdamW):
            p = parameter(theta)
            optimizer = rule([p], ETA, BETAS, EPS, weight_decay=DECAY)
            follow(optimizer, p, grads[:-1])
            p.data.copy_(theta)
            ends.append(follow(optimizer, p, grads[-1:]))
        decay_first = (1 - ETA * DECAY) * theta - ETA * d                     # [DEC-1]
        for end in (*ends, theta - ETA * d - ETA * DECAY * theta):
            torch.testing.assert_close(end, decay_first, rtol=1e-13, atol=1e-15)


def test_decay_after_the_step_is_another_rule_DEC_2():
    theta, grads = numbers(N), gradients(1)
    p, q = parameter(theta), parameter(theta)
    ours = follow(AdamW([p], ETA, BETAS, EPS, DECAY), p, grads)
    after = (1 - ETA * DECAY) * follow(AdamW([q], ETA, BETAS, EPS), q, grads)
    gap = ETA ** 2 * DECAY * directions(grads)                                # [DEC-2]
    torch.testing.assert_close(after - ours, gap, rtol=1e-10, atol=0)
    assert float(gap.abs().min()) > 1e-5


def test_decay_alone_is_a_product_over_the_schedule_DEC_3():
    rates = [ETA * t / T for t in range(1, 3 * T)]
    for rule in (SGD, AdamW):
        p = parameter(numbers(N))
        optimizer = rule([p], 0.0, weight_decay=DECAY)
        for lr in rates:
            optimizer.set_learning_rate(lr)
            follow(optimizer, p, [torch.zeros(N, dtype=torch.float64)])       # a zero gradient; None would not decay
        left = math.prod(1 - lr * DECAY for lr in rates)                      # [DEC-3]
        torch.testing.assert_close(p.detach(), left * numbers(N), rtol=1e-13, atol=0)
        second_order = DECAY ** 2 * math.fsum(lr * lr for lr in rates) / 2
        assert math.log(left) + DECAY * math.fsum(rates) == pytest.approx(-second_order, rel=0.05)
    assert round((1 - 1e-4 * 0.01) ** 1000, 4) == 0.9990                      # fine-tuning
    assert round((1 - 5e-5 * 0.01) ** 1_000_000, 2) == 0.61                   # pre-training


def test_a_penalty_is_decay_under_plain_sgd_DEC_4():
    p, q, r = (parameter(numbers(N)) for _ in range(3))
    ours, torchs = SGD([p], ETA, weight_decay=DECAY), torch.optim.SGD([q], ETA, weight_decay=DECAY)
    penalised = SGD([r], ETA)
    theta = numbers(N)
    for _ in range(T):
        theta = theta - ETA * (slope(theta) + DECAY * theta)                  # [DEC-4]
        (loss(r) + DECAY / 2 * (r ** 2).sum()).backward()
        penalised.step()
        r.grad = None
        for end in (follow(ours, p, [slope(p.detach())]), follow(torchs, q, [slope(q.detach())]), r.detach()):
            torch.testing.assert_close(end, theta, rtol=1e-12, atol=1e-15)


def test_a_penalty_is_not_decay_under_momentum_DEC_5():
    theta = numbers(N)
    p, q = parameter(theta), parameter(theta)
    ours, penalised = SGD([p], ETA, MU, DECAY), torch.optim.SGD([q], ETA, MU, weight_decay=DECAY)
    first = [follow(o, x, [slope(theta)]) for o, x in ((ours, p), (penalised, q))]
    torch.testing.assert_close(*first, rtol=1e-13, atol=1e-15)
    second = [follow(o, x, [slope(first[0])]) for o, x in ((ours, p), (penalised, q))]
    gap = -ETA * MU * DECAY * theta                                           # [DEC-5]
    torch.testing.assert_close(second[1] - second[0], gap, rtol=1e-10, atol=1e-14)
    assert float(gap.abs().max()) > 1e-3


def test_under_momentum_a_penalty_pulls_ten_times_as_much_in_the_end_DEC_5():
    """No gradient but the penalty's: −log of what is left grows 1/(1−μ) times as fast, by [SGD-6]."""
    p, q, nothing = parameter(numbers(N)), parameter(numbers(N)), [torch.zeros(N, dtype=torch.float64)]
    ours, penalised = SGD([p], 1e-3, 0.9, 0.1), torch.optim.SGD([q], 1e-3, 0.9, weight_decay=0.1)
    early = [follow(o, x, nothing * 200) for o, x in ((ours, p), (penalised, q))]
    late = [follow(o, x, nothing * 200) for o, x in ((ours, p), (penalised, q))]
    pulls = [float((a / b).log().mean()) for a, b in zip(early, late, strict=True)]
    assert pulls[1] / pulls[0] == pytest.approx(10, rel=0.01)


def test_a_penalty_is_not_decay_under_adam_DEC_6():
    theta, g = numbers(N), gradients(1)[0]
    h = g + DECAY * theta                                                     # the gradient with the penalty's part
    p, q = parameter(theta), parameter(theta)
    ours = follow(AdamW([p], ETA, BETAS, EPS, DECAY), p, [g])
    penalised = follow(torch.optim.Adam([q], ETA, BETAS, EPS, weight_decay=DECAY), q, [g])
    gap = ETA * (g / (g.abs() + EPS) - h / (h.abs() + EPS) + DECAY * theta)   # [DEC-6]
    torch.testing.assert_close(penalised - ours, gap, rtol=1e-10, atol=1e-15)
    assert float(gap.abs().max()) > 1e-3


def test_adam_does_not_feel_a_small_penalty_at_its_first_step_DEC_6():
    """ε → 0, g and g + λθ of one sign: the step is −η·sign(g) with and without the penalty; the gap is all of ηλθ."""
    theta, g, decay = numbers(N), gradients(1)[0], 1e-3
    assert torch.equal((g + decay * theta).sign(), g.sign())
    p, q, r = (parameter(theta) for _ in range(3))
    bare = follow(AdamW([p], ETA, BETAS, 0.0), p, [g])
    penalised = follow(torch.optim.Adam([q], ETA, BETAS, 0.0, weight_decay=decay), q, [g])
    torch.testing.assert_close(penalised, bare, rtol=1e-13, atol=1e-15)
    ours = follow(AdamW([r], ETA, BETAS, 0.0, decay), r, [g])
    torch.testing.assert_close(penalised - ours, ETA * decay * theta, rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("limit", [0.9, 1e9])
def test_clipping_shortens_a_penalty_and_not_the_decay_DEC_7(limit):
    theta = numbers(N)
    g = slope(theta)
    p, q, r = (parameter(theta) for _ in range(3))
    for x, gradient in ((p, g), (q, g + DECAY * theta), (r, g)):
        x.grad = gradient.clone()
        clip_gradient([x], limit)
    SGD([p], ETA, weight_decay=DECAY).step()
    SGD([q], ETA).step()
    torch.optim.SGD([r], ETA, weight_decay=DECAY).step()                      # adds λθ after clipping: decoupled
    c_ours, c = (min(1.0, limit / math.sqrt(math.fsum(v * v for v in x.tolist()))) for x in (g, g + DECAY * theta))
    gap = ETA * DECAY * (1 - c) * theta + ETA * (c_ours - c) * g              # [DEC-7]
    torch.testing.assert_close((q - p).detach(), gap, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(r, p, rtol=1e-13, atol=1e-15)
    assert (float(gap.abs().max()) > 1e-3) == (limit == 0.9)


# --------------------------------------------------------------------------------------------------- worked example


def scalar(rule, grads, *settings, **more) -> float:
    p = parameter(torch.tensor(4.0, dtype=torch.float64))
    return float(follow(rule([p], *settings, **more), p, [torch.tensor(g, dtype=torch.float64) for g in grads]))


PAPER = (0.1, (2 / 3, 3 / 4), 2.0, 0.5)            # η, (β₁, β₂), ε, λ


def test_two_steps_for_paper_ADAM_3_ADAM_4_ADAM_6():
    """Chapter 05: θ = 4, η = 1/10, β = (2/3, 3/4), ε = 2, λ = 1/2, gradients 6 and 1.

    1: m = 6/3 = 2, s = 36/4 = 9; c₁ = 1/3, c₂ = 1/4; m̂ = 6, ŝ = 36, direction 6/(6 + 2) = 3/4;
       θ = 4 - 0.1 · 3/4 - 0.1 · 0.5 · 4 = 4 - 0.075 - 0.2 = 3.725.
    2: m = 2/3 · 2 + 1/3 = 5/3, s = 3/4 · 9 + 1/4 = 7; c₁ = 5/9, c₂ = 7/16; m̂ = 3, ŝ = 16, direction 3/(4 + 2) = 1/2;
       θ = 3.725 - 0.05 - 0.05 · 3.725 = 3.725 - 0.05 - 0.18625 = 3.48875.
    """
    for rule in (AdamW, torch.optim.AdamW):
        assert scalar(rule, [6.0], *PAPER) == pytest.approx(3.725, abs=1e-14)
        assert scalar(rule, [6.0, 1.0], *PAPER) == pytest.approx(3.48875, abs=1e-14)


def test_the_table_of_variants_DEC_1_DEC_2_ADAM_11():
    """One step from the worked example by each rule, in fractions, and by programs where there are programs."""
    theta, g, eta, eps, decay = 4, 6, Fraction(1, 10), 2, Fraction(1, 2)
    m, root_s = Fraction(1, 3) * g, Fraction(1, 2) * g                        # s = g²/4
    c1, root_c2 = Fraction(1, 3), Fraction(1, 2)
    d = (m / c1) / (root_s / root_c2 + eps)
    table = {"here": theta - eta * d - eta * decay * theta,
             "paper": theta - (eta * d + decay * theta),                      # the schedule's multiplier is 1
             "bert": theta - eta * (m / (root_s + eps) + decay * theta),
             "after": (theta - eta * root_c2 / c1 * m / (root_s + eps)) * (1 - eta * decay),
             "only after": (theta - eta * d) * (1 - eta * decay),
             "penalty": theta - eta * (g + decay * theta) / (g + decay * theta + eps)}
    assert {k: float(v) for k, v in table.items()} == {"here": 3.725, "paper": 1.925, "bert": 3.76, "after": 3.743,
                                                       "only after": 3.72875, "penalty": 3.92}
    assert table["only after"] - table["here"] == eta ** 2 * decay * d == Fraction(375, 100_000)
    fused = [root_c2 / c1 * m / (root_s + hat) for hat in (root_c2 * eps, root_c2 ** 2 * eps)]
    assert fused == [d, Fraction(6, 7)]
    programs = {"here": scalar(AdamW, [6.0], *PAPER), "bert": scalar(AdamW, [6.0], *PAPER, bias_correction=False),
                "paper": scalar(AdamW, [6.0], *PAPER[:3], PAPER[3] / PAPER[0]),
                "penalty": scalar(torch.optim.Adam, [6.0], *PAPER)}
    for name, found in programs.items():
        assert found == pytest.approx(float(table[name]), abs=1e-14)


# ------------------------------------------------------------------------------------------ groups, and what is stored


def test_matching_names_would_decay_every_layernorm_of_this_model(tiny_config):
    """The list that most scripts carry finds "LayerNorm" in no name here; the types of the modules cannot be missed."""
    model = Bert(tiny_config)
    usual = ["bias", "LayerNorm.weight"]
    norms = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    by_name = {name for name, _ in model.named_parameters() if not any(part in name for part in usual)}
    decayed, plain = decay_groups(model, 0.01)
    assert len(norms) == 2 * tiny_config.num_hidden_layers + 1
    assert norms <= by_name and norms <= set(plain["names"]) and not norms & set(decayed["names"])
    assert by_name - norms == set(decayed["names"])
    assert not [name for name, _ in model.named_parameters() if name in usual]    # whole names match nothing at all


def test_share_of_bert_base_that_is_not_decayed(tiny_config):
    sizes = {"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
             "intermediate_size": 3072, "max_position_embeddings": 512}
    with torch.device("meta"):
        model = Bert(type(tiny_config)(**sizes))
    decayed, plain = ([p.numel() for p in g["params"]] for g in decay_groups(model, 0.01))
    assert (sum(decayed), sum(plain)) == (109_360_128, 122_112)


def test_a_running_mean_in_bf16_would_never_fall_ADAM_2():
    p = nn.Parameter(torch.zeros(128, dtype=torch.bfloat16))
    optimizer, nothing = AdamW([p], 0.1), torch.zeros(128, dtype=torch.bfloat16)
    follow(optimizer, p, [nothing])
    every = torch.arange(128.0, 256.0).to(torch.bfloat16)                     # all of 8 bits
    optimizer.state[p]["s"].copy_(every)
    follow(optimizer, p, [nothing] * 100)
    assert torch.equal(optimizer.state[p]["s"], every)


def test_decay_below_half_a_bit_is_lost_in_fp32_DEC_3():
    for dtype, lost in ((torch.float32, True), (torch.float64, False)):
        start = torch.linspace(1, 2, 101, dtype=dtype)
        p = parameter(start)
        follow(AdamW([p], 2e-6, weight_decay=0.01), p, [torch.zeros_like(start)] * 50)
        assert torch.equal(p.detach(), start) == lost
