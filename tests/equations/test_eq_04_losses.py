"""Chapter 04: each loss against a slow obvious version, each gradient against differences and autograd."""
import math
import statistics
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from differences import check_gradient
from incomplete import incomplete
from torch.nn import functional as F
from updates import accumulate

from minibert.checkpoints.weights import random_bert
from minibert.core import ops
from minibert.core.batch import Feature, collate
from minibert.core.model import Model, initialise
from minibert.settings import TrainConfig
from minibert.tasks.base import Task
from minibert.tasks.classify import Classify, Example
from minibert.tasks.ner import NER

M, K, V = 11, 7, 13
DOUT = 0.7                                         # the gradient from above: 1 would hide a forgotten factor
DEAD = [1, 6, 7]                                   # rows without a label


def numbers(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def binary():
    """Scores z of both signs and soft targets strictly between 0 and 1, so that both halves of the loss count."""
    return 2.0 * numbers(M, K) + 0.3, torch.sigmoid(numbers(M, K, seed=1))


@pytest.fixture
def rows():
    """[M,K] scores whose largest is far from 0, and labels, three of them -1."""
    y = torch.arange(M) * 3 % K
    y[DEAD] = -1
    return 2.0 * numbers(M, K, seed=2) + 5.0, y


def exact(z: float, y: float) -> tuple[float, float]:
    """Binary cross-entropy and its gradient by the textbook formulas, with 400 digits instead of 7 or 16."""
    with localcontext(prec=400):
        p = 1 / (1 + (-Decimal(z)).exp())
        y = Decimal(y)
        return float(-(y * p.ln() + (1 - y) * (1 - p).ln())), float(-(y / p - (1 - y) / (1 - p)) * p * (1 - p))


def slow_cross_entropy(z: torch.Tensor, y: torch.Tensor) -> list[float]:
    """−log softmax at the label, row by row; no entry for a row without a label."""
    return [math.log(math.fsum(map(math.exp, row))) - row[k] for row, k in zip(z.tolist(), y.tolist(), strict=True)
            if k >= 0]


# ------------------------------------------------------------------------------------------------- empirical risk


class Table(torch.nn.Module):
    """A model that is a table: the scores of piece v are its row v, whatever stands around it."""

    def __init__(self):
        super().__init__()
        self.scores = torch.nn.Parameter(2.0 * numbers(V, K, seed=3))

    def forward(self, batch, masks):
        return self.scores[batch.ids[batch.picks]]


@incomplete
class Fixed(Task):
    """A task of two terms whose sums and counts are written down beforehand, a pair a batch."""

    def __init__(self, **pairs):
        super().__init__(None)
        self.pairs = pairs

    def counts(self, batch):
        return {term: float(pairs[batch.number][1]) for term, pairs in self.pairs.items()}

    def loss(self, scores, batch):
        return {term: scores * pairs[batch.number][0] for term, pairs in self.pairs.items()}


class Numbered:
    """What accumulate() asks of a batch: where its ids are."""

    def __init__(self, number: int):
        self.number, self.ids = number, torch.zeros(1)


def labelled(*labels: int) -> Feature:
    """A row that begins with a piece without any label; every later piece has one, -1 among them."""
    T = len(labels) + 1
    ids = (5 * np.arange(T) + sum(labels)) % V
    return Feature(0, ids, np.zeros(T, np.int64), np.arange(1, T), np.array(labels, np.int64))


def test_the_risk_is_one_mean_over_all_labels_however_split_RISK_1():
    features = [labelled(3, 0, -1, 6, 2), labelled(), labelled(-1, 4), labelled(5, 5, 1, 0, 2, 3), labelled(-1, -1)]
    task, model = NER(NER.Options(), [str(k) for k in range(K)]), Table()
    picked = [(int(f.ids[i]), int(k)) for f in features for i, k in zip(f.picks, f.labels, strict=True) if k >= 0]
    rows = model.scores.detach().tolist()
    losses = [math.log(math.fsum(map(math.exp, rows[v]))) - rows[v][k] for v, k in picked]
    gradient = [[0.0] * K for _ in range(V)]
    for v, label in picked:
        total = math.fsum(map(math.exp, rows[v]))
        for k in range(K):
            gradient[v][k] += (math.exp(rows[v][k]) / total - (k == label)) / len(picked)
    for split in ([[0, 1, 2, 3, 4]], [[0, 1], [2, 3], [4]], [[0], [1], [2], [3], [4]]):
        model.zero_grad()
        batches = [collate([features[i] for i in part]) for part in split]
        loss = accumulate(model, task, batches, 1.0, TrainConfig(precision="fp32", gradients="autograd"), step=1)
        assert loss == pytest.approx(statistics.fmean(losses), rel=1e-13)
        torch.testing.assert_close(model.scores.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-12,
                                   atol=1e-15)


def test_sum_and_count_worked_example_RISK_1():
    """Chapter 04: one word with loss 6, and three with losses 1, 2 and 3: (6 + 6)/(1 + 3) = 3.

    The mean of the two means would be (6/1 + 6/3)/2 = 4. A second term of sums 5 and 2 over counts 4 and 3 adds 7/7,
    a third that found no label in either part adds 0/1.
    """
    batches, theta = [Numbered(0), Numbered(1)], torch.ones((), dtype=torch.float64, requires_grad=True)

    def risk(**terms):
        theta.grad = None
        loss = accumulate(lambda batch, masks: theta, Fixed(**terms), batches, 1.0,
                          TrainConfig(precision="fp32", gradients="autograd"), step=1)
        assert loss == pytest.approx(float(theta.grad), rel=1e-15)           # every loss here is its sum times θ = 1
        return loss

    assert risk(words=[(6, 1), (6, 3)]) == 3.0
    assert risk(words=[(6, 1), (6, 3)], rows=[(5, 4), (2, 3)], none=[(0, 0), (0, 0)]) == pytest.approx(4.0, rel=1e-15)


def test_the_risk_is_minus_the_mean_log_probability_of_all_labels_RISK_2(rows):
    z, y = rows
    p = [math.exp(row[k]) / math.fsum(map(math.exp, row)) for row, k in zip(z.tolist(), y.tolist(), strict=True)
         if k >= 0]
    N = M - len(DEAD)
    claimed = -math.log(math.prod(p)) / N                                     # [RISK-2]
    assert float(ops.cross_entropy_forward(z, y)[0]) / N == pytest.approx(claimed, rel=1e-13)


def test_a_product_of_a_thousand_probabilities_is_0_in_fp32_RISK_2():
    """0.9^1000 = 1.7e-46 and the smallest fp32 number is 1.4e-45; its logarithm is a harmless -105.4."""
    p = torch.full((1000,), 0.9)
    assert float(p.prod()) == 0.0 and 0.9 ** 1000 == pytest.approx(1.7e-46, rel=0.03)
    z = (p / (1 - p)).log()                                                   # sigmoid(z) = 0.9
    assert float(ops.bce_forward(z, torch.ones(1000))[0]) == pytest.approx(105.4, abs=0.05)


# ----------------------------------------------------------------------------------------- binary cross-entropy


def test_sigmoid_is_half_a_tanh_and_undoes_the_log_odds_BCE_1(binary):
    z, _ = binary
    p = ops.sigmoid_textbook(z)
    for found, t in zip(p.flatten().tolist(), z.flatten().tolist(), strict=True):
        assert found == pytest.approx(0.5 * (1 + math.tanh(t / 2)), rel=1e-13)
        assert math.log(found / (1 - found)) == pytest.approx(t, rel=1e-11)


def test_bce_is_minus_the_log_probability_of_the_label_BCE_2(binary):
    z, y = binary
    for labels in (y, torch.ones_like(z), torch.zeros_like(z)):
        found = ops.bce_textbook(z, labels).flatten().tolist()
        for loss, t, label in zip(found, z.flatten().tolist(), labels.flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-t))
            assert loss == pytest.approx(-math.log(p ** label * (1 - p) ** (1 - label)), rel=1e-12)


def test_bce_textbook_gradient_by_differences_and_autograd_BCE_3_BCE_4(binary):
    z, y = binary
    dz = ops.bce_textbook_backward(z, y)
    check_gradient(lambda z: ops.bce_textbook(z, y).sum(), (z,), (dz,))
    leaf = z.clone().requires_grad_()
    F.binary_cross_entropy(torch.sigmoid(leaf), y, reduction="sum").backward()
    torch.testing.assert_close(dz, leaf.grad, rtol=1e-11, atol=1e-13)


def test_the_collapsed_gradient_is_the_product_and_the_derivative_BCE_5(binary):
    z, y = binary
    dz = ops.bce_backward(DOUT, (z, y))
    torch.testing.assert_close(dz, DOUT * ops.bce_textbook_backward(z, y), rtol=1e-11, atol=1e-13)
    check_gradient(lambda z: DOUT * ops.bce_forward(z, y)[0], (z,), (dz,))
    leaf = z.clone().requires_grad_()
    (DOUT * F.binary_cross_entropy_with_logits(leaf, y, reduction="sum")).backward()
    torch.testing.assert_close(dz, leaf.grad, rtol=1e-13, atol=1e-15)


def test_the_safe_loss_is_the_textbook_loss_with_400_digits_BCE_6(binary):
    z, y = binary
    slow = math.fsum(exact(t, label)[0] for t, label in zip(z.flatten().tolist(), y.flatten().tolist(), strict=True))
    assert float(ops.bce_forward(z, y)[0]) == pytest.approx(slow, rel=1e-13)
    for t, label in ((3.0, 0.25), (-3.0, 0.25), (3.0, 1.0), (-3.0, 0.0)):    # one at a time: a sum can hide a sign
        one, target = (torch.tensor([v], dtype=torch.float64) for v in (t, label))
        assert float(ops.bce_forward(one, target)[0]) == pytest.approx(exact(t, label)[0], rel=1e-13)


BREAKS = [(torch.float32, 17.0), (torch.float32, -89.0), (torch.float64, 37.0), (torch.float64, -710.0)]


@pytest.mark.parametrize("dtype, z", BREAKS, ids=lambda v: str(v))
def test_where_the_textbook_loss_breaks_and_the_safe_one_does_not_BCE_2_BCE_6(dtype, z):
    wrong = 0.0 if z > 0 else 1.0
    for y, broken in ((wrong, math.isinf), (1 - wrong, math.isnan)):
        scores, labels = torch.tensor([z], dtype=dtype), torch.tensor([y], dtype=dtype)
        assert broken(float(ops.bce_textbook(scores, labels)))
        safe = float(ops.bce_forward(scores, labels)[0])
        assert safe == pytest.approx(exact(z, y)[0], rel=torch.finfo(dtype).eps, abs=torch.finfo(dtype).tiny)
    before = torch.tensor([z + (1.0 if z < 0 else -1.0)], dtype=dtype)
    assert all(bool(ops.bce_textbook(before, torch.full_like(before, y)).isfinite()) for y in (0.0, 1.0))


@pytest.mark.parametrize("dtype, z", BREAKS, ids=lambda v: str(v))
def test_where_the_textbook_gradient_breaks_and_the_safe_one_does_not_BCE_3_BCE_5(dtype, z):
    for y in (0.0, 1.0):
        scores, labels = torch.tensor([z], dtype=dtype), torch.tensor([y], dtype=dtype)
        assert math.isnan(float(ops.bce_textbook_backward(scores, labels)))
        safe = float(ops.bce_backward(1.0, (scores, labels)))
        assert safe == pytest.approx(exact(z, y)[1], rel=0, abs=torch.finfo(dtype).eps / 2)
    before = torch.tensor([z + (1.0 if z < 0 else -1.0)], dtype=dtype)
    assert all(bool(ops.bce_textbook_backward(before, torch.full_like(before, y)).isfinite()) for y in (0.0, 1.0))


@pytest.mark.parametrize("dtype, bits, step", [(torch.bfloat16, 8, 2 ** -5), (torch.float32, 24, 1e-3),
                                               (torch.float64, 53, 1e-3)], ids=str)
def test_the_sigmoid_becomes_1_at_bits_times_log_2_BCE_7(dtype, bits, step):
    edge = bits * math.log(2)                                                 # [BCE-7]
    assert torch.finfo(dtype).eps == 2.0 ** (1 - bits)
    below, above = (torch.tensor([edge + s * step], dtype=torch.float64).to(dtype) for s in (-1, 1))
    assert float(below) < edge < float(above)
    assert float(ops.sigmoid_textbook(below)) < 1 and float(ops.sigmoid_textbook(above)) == 1


def test_digits_are_lost_long_before_the_break_BCE_2_BCE_6():
    """z = 15, y = 1 in fp32: log(1 + e^-15) = 3.059e-7; the textbook says 3.576e-7, p being a multiple of 2^-24."""
    z, y = torch.tensor([15.0]), torch.ones(1)
    true, _ = exact(15.0, 1.0)
    assert true == pytest.approx(3.059e-7, rel=1e-4)
    assert float(ops.bce_textbook(z, y)) == pytest.approx(3.576e-7, rel=1e-3)
    assert float(ops.bce_forward(z, y)[0]) == pytest.approx(true, rel=2e-7)


def test_bce_worked_example_BCE_1_BCE_3_BCE_4():
    """Chapter 04: z = log 3, so p = 3/4. y = 1: -4/3 · 3/16 = -1/4. y = 0: 4 · 3/16 = 3/4."""
    z, y = torch.full((2,), math.log(3), dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert ops.sigmoid_textbook(z).tolist() == pytest.approx([3 / 4, 3 / 4], rel=1e-15)
    assert ops.bce_textbook_backward(z, y).tolist() == pytest.approx([-1 / 4, 3 / 4], rel=1e-14)


def test_bce_worked_example_BCE_2_BCE_5_BCE_6():
    """Chapter 04: z = log 3. y = 1: log(4/3) = 0.2877, gradient 3/4 - 1. y = 0: log 4 = 1.3863, gradient 3/4 - 0."""
    z, y = torch.full((2,), math.log(3), dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    losses = ops.bce_textbook(z, y).tolist()
    assert losses == pytest.approx([math.log(4 / 3), math.log(4)], rel=1e-14)
    assert [round(x, 4) for x in losses] == [0.2877, 1.3863]
    total, cache = ops.bce_forward(z, y)
    assert float(total) == pytest.approx(math.log(16 / 3), rel=1e-15)
    assert ops.bce_backward(1.0, cache).tolist() == pytest.approx([-1 / 4, 3 / 4], rel=1e-15)


# ---------------------------------------------------------------------------------------- softmax cross-entropy


def test_textbook_loss_is_minus_the_log_of_the_share_of_the_label_CE_1(rows):
    z, y = rows
    live = y >= 0
    found = ops.cross_entropy_textbook(z[live], y[live])
    for loss, row, k in zip(found.tolist(), z[live].tolist(), y[live].tolist(), strict=True):
        assert loss == pytest.approx(-math.log(math.exp(row[k]) / math.fsum(map(math.exp, row))), rel=1e-12)


def test_loss_of_each_row_is_log_sum_exp_minus_the_score_of_the_label_CE_2_CE_3(rows):
    z, y = rows
    live = y >= 0
    slow = slow_cross_entropy(z, y)
    for row, label, wanted in zip(z[live], y[live], slow, strict=True):
        assert float(ops.cross_entropy_forward(row[None], label[None])[0]) == pytest.approx(wanted, rel=1e-12)
        far = ops.cross_entropy_forward(row[None] + 900.0, label[None])[0]    # e^900 has no float64
        assert float(far) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("dtype, far", [(torch.float32, 110.0), (torch.float64, 800.0)], ids=str)
def test_where_the_textbook_softmax_loss_breaks_and_the_safe_one_does_not_CE_1_CE_2(dtype, far):
    cases = [([0.0, far], 0, math.inf, far),                                 # e^far overflows: 1/inf, its log
             ([0.0, far], 1, math.nan, 0.0),                                 # inf/inf
             ([0.0, -far], 1, math.inf, far),                                # 0/1, its log
             ([-far, -far - 2], 1, math.nan, 2 + math.log1p(math.exp(-2)))]  # 0/0
    for scores, label, textbook, true in cases:
        z, y = torch.tensor([scores], dtype=dtype), torch.tensor([label])
        assert float(ops.cross_entropy_textbook(z, y)) == pytest.approx(textbook, nan_ok=True)
        assert float(ops.cross_entropy_forward(z, y)[0]) == pytest.approx(true, rel=1e-5, abs=1e-30)
        assert bool(ops.cross_entropy_backward(1.0, (z, y)).isfinite().all())


def test_a_large_shared_offset_costs_no_digits_CE_2_CE_3_CE_4():
    """(10000, 10001), label 1, fp32: log(1 + 1/e) = 0.31326. Rounded at 10001 it would be 0.3135, a 1024th apart."""
    z, y = torch.tensor([[10000.0, 10001.0]]), torch.tensor([1])
    loss, cache = ops.cross_entropy_forward(z, y)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)
    assert torch.equal(ops.cross_entropy_backward(DOUT, cache), ops.cross_entropy_backward(DOUT, (z - 10000.0, y)))


def test_dz_by_the_whole_softmax_jacobian_CE_4(rows):
    """dz_j = Σ_k dp_k ∂p_k/∂z_j with the K × K matrix written out, before it collapsed to p − y."""
    z, y = rows
    dz = ops.cross_entropy_backward(DOUT, (z, y))
    for row, label, found in zip(z.tolist(), y.tolist(), dz.tolist(), strict=True):
        total = math.fsum(map(math.exp, row))
        p = [math.exp(t) / total for t in row]
        for j in range(K):
            slow = 0.0
            for k in range(K):
                dp = -DOUT / p[k] if k == label else 0.0
                slow += dp * p[k] * ((k == j) - p[j])
            assert found[j] == pytest.approx(slow, rel=1e-11, abs=1e-14)


def test_cross_entropy_gradient_by_differences_and_autograd_CE_3_CE_4(rows):
    z, y = rows
    dz = ops.cross_entropy_backward(DOUT, (z, y))
    check_gradient(lambda z: DOUT * ops.cross_entropy_forward(z, y)[0], (z,), (dz,))
    leaf = z.clone().requires_grad_()
    (DOUT * F.cross_entropy(leaf, y, ignore_index=-1, reduction="sum")).backward()
    torch.testing.assert_close(dz, leaf.grad, rtol=1e-12, atol=1e-14)


def test_rows_without_a_label_count_for_nothing_CE_4_CE_5(rows):
    z, y = rows
    total, cache = ops.cross_entropy_forward(z, y)
    assert float(total) == pytest.approx(math.fsum(slow_cross_entropy(z, y)), rel=1e-13)
    dz = ops.cross_entropy_backward(DOUT, cache)
    live = y >= 0
    alone = ops.cross_entropy_forward(z[live], y[live])
    assert float(total) == pytest.approx(float(alone[0]), rel=1e-14)
    assert torch.equal(dz[live], ops.cross_entropy_backward(DOUT, alone[1])) and not dz[~live].any()
    other = torch.where(live[:, None], z, -3.0 * z)
    assert torch.equal(ops.cross_entropy_forward(other, y)[0], total)
    assert torch.equal(ops.cross_entropy_backward(DOUT, (other, y)), dz)


def test_what_one_label_loses_the_others_gain_CE_6(rows):
    z, y = rows
    dz = ops.cross_entropy_backward(DOUT, (z, y))
    last = -dz[:, :-1].sum(-1)                                                # [CE-6]
    torch.testing.assert_close(dz[:, -1], last, rtol=1e-9, atol=1e-14)
    assert dz[y >= 0].abs().amax(-1).min() > 0.01


def test_softmax_over_two_is_the_sigmoid_of_the_difference_CE_7():
    z, y = 2.0 * numbers(M, 2, seed=4) + 1.0, torch.arange(M) % 3 % 2
    claimed = ops.sigmoid_textbook(z[:, 1] - z[:, 0])                         # [CE-7]
    torch.testing.assert_close(ops.softmax_forward(z)[0][:, 1], claimed, rtol=1e-13, atol=0)
    total, cache = ops.cross_entropy_forward(z, y)
    binary, binary_cache = ops.bce_forward(z[:, 1] - z[:, 0], y.double())
    assert float(total) == pytest.approx(float(binary), rel=1e-13)
    difference = ops.bce_backward(DOUT, binary_cache)
    both = torch.stack([-difference, difference], -1)
    torch.testing.assert_close(ops.cross_entropy_backward(DOUT, cache), both, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("labels", [2, 9, 30522])
def test_a_uniform_guess_costs_log_K_CE_8(labels):
    claimed = math.log(labels)                                                # [CE-8]
    z = torch.full((M, labels), 2.5, dtype=torch.float64)
    total, _ = ops.cross_entropy_forward(z, torch.arange(M) % labels)
    assert float(total) / M == pytest.approx(claimed, rel=1e-13)
    shown = {2: 0.693, 9: 2.197, 30522: 10.326}
    assert round(claimed, 3) == shown[labels]


def test_a_fresh_head_begins_near_log_K_CE_8(tiny_config):
    task = NER(NER.Options(), [str(k) for k in range(K)])
    model = Model(random_bert(tiny_config, seed=5), task.head(tiny_config)).double()
    batch = collate([labelled(*(k % K for k in range(i, 2 * i + 9))) for i in range(M)])
    for sd, least, most in ((0.02, 0.0, 0.02), (2.0, 1.0, 99.0)):            # a badly initialised head is told apart
        initialise(model.head, sd, seed=6)
        loss = float(task.loss(model(batch).detach(), batch)["words"]) / task.counts(batch)["words"]
        assert least < abs(loss - math.log(K)) < most


def test_small_scores_add_half_their_variance_CE_9():
    """Over all labels alike, the loss is log K + variance/2 + O(h³): halving the scores cuts the error by 8."""
    def error(h: float) -> float:
        z = h * numbers(1, K, seed=7)
        mean = statistics.fmean(float(ops.cross_entropy_forward(z, torch.tensor([k]))[0]) for k in range(K))
        claimed = math.log(K) + z.var(-1, correction=0).item() / 2            # [CE-9]
        return mean - claimed

    errors = [error(2.0 ** -k) for k in range(5, 9)]
    assert all(7.5 < a / b < 8.5 for a, b in zip(errors, errors[1:], strict=False)), errors


def test_cross_entropy_worked_example_CE_1_CE_2_CE_3():
    """Chapter 04: scores (0, log 2, log 5), shares (1, 2, 5)/8. Label 1: log(8/2) = log 4. Label 2: log(8/5).

    The second row is 100 higher, which changes nothing; the third has no label. Sum: log 4 + log 8/5 = log 6.4;
    over two labels 0.9281; and -log(1/4 · 5/8)/2 is the same.
    """
    row = torch.tensor([0, math.log(2), math.log(5)], dtype=torch.float64)
    z, y = torch.stack([row, row + 100, 3 * row]), torch.tensor([1, 2, -1])
    assert ops.cross_entropy_textbook(z[:2], y[:2]).tolist() == pytest.approx([math.log(4), math.log(1.6)], rel=1e-12)
    total = float(ops.cross_entropy_forward(z, y)[0])
    assert total == pytest.approx(math.log(6.4), rel=1e-13)
    assert round(total / 2, 4) == 0.9281 and total / 2 == pytest.approx(-math.log(1 / 4 * 5 / 8) / 2, rel=1e-13)


def test_cross_entropy_worked_example_CE_4_CE_6():
    """Chapter 04: (1, 2, 5)/8 minus (0, 1, 0) is (1, -6, 5)/8; minus (0, 0, 1) is (1, 2, -3)/8; no label: 0."""
    row = torch.tensor([0, math.log(2), math.log(5)], dtype=torch.float64)
    z, y = torch.stack([row, row + 100, 3 * row]), torch.tensor([1, 2, -1])
    dz = 8 * ops.cross_entropy_backward(1.0, (z, y))
    wanted = torch.tensor([[1, -6, 5], [1, 2, -3], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(dz, wanted, rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------------------- tasks/ner.py


@pytest.fixture
def words(rows):
    """Scores and a batch of M words with their labels, three of them -1."""
    z, y = rows
    return z, y, collate([labelled(*y.tolist())])


def test_ner_has_this_loss_and_this_gradient_CE_3_CE_4_CE_5(words):
    z, y, batch = words
    task = NER(NER.Options(), [str(k) for k in range(K)])
    leaf = z.clone().requires_grad_()
    loss = task.loss(leaf, batch)["words"]
    loss.backward()
    loss = loss.detach()
    total, cache = ops.cross_entropy_forward(z, y)
    dz = task.loss_backward(z, batch)["words"]
    assert loss.dtype == dz.dtype == torch.float64 and task.counts(batch) == {"words": float(M - len(DEAD))}
    assert float(loss) == pytest.approx(float(total), rel=1e-14)
    assert float(loss) == pytest.approx(math.fsum(slow_cross_entropy(z, y)), rel=1e-13)
    assert torch.equal(dz, ops.cross_entropy_backward(1.0, cache))
    torch.testing.assert_close(dz, leaf.grad, rtol=1e-12, atol=1e-14)


def test_ner_sums_bf16_scores_in_fp32_CE_5():
    z = numbers(3000, K, seed=8).bfloat16()
    y = torch.arange(3000) % K
    y[5::11] = -1
    task, batch = NER(NER.Options(), [str(k) for k in range(K)]), collate([labelled(*y.tolist())])
    losses = slow_cross_entropy(z.double(), y)
    loss, dz = task.loss(z, batch)["words"], task.loss_backward(z, batch)["words"]
    assert loss.dtype == dz.dtype == torch.float32
    for found in (loss, ops.cross_entropy_forward(z.float(), y)[0]):
        assert float(found) == pytest.approx(math.fsum(losses), rel=1e-6)
    torch.testing.assert_close(dz.double(), ops.cross_entropy_backward(1.0, (z.double(), y)), rtol=1e-5, atol=1e-7)
    assert abs(float(loss.bfloat16()) / math.fsum(losses) - 1) > 1e-4        # so the sum never was a bf16 number


def test_a_running_bf16_sum_of_ones_stops_at_256():
    """257 needs nine bits, bf16 has eight: 256 + 1 rounds to 256, however often one adds."""
    total = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(1000):
        total += 1
    assert float(total) == 256


# -------------------------------------------------------------------------------------------- mean squared error


def test_squared_errors_in_exact_fractions_MSE_1_MSE_2():
    guess, y = 3.0 * numbers(M, K, seed=9), numbers(M, K, seed=10)
    total, cache = ops.mse_forward(guess, y)
    errors = [Fraction(a) - Fraction(b) for a, b in zip(guess.flatten().tolist(), y.flatten().tolist(), strict=True)]
    assert float(total) == pytest.approx(float(sum(e * e for e in errors)), rel=1e-14)
    found = ops.mse_backward(DOUT, cache).flatten().tolist()
    assert found == pytest.approx([float(2 * Fraction(DOUT) * e) for e in errors], rel=1e-13)


def test_mse_gradient_by_differences_and_autograd_MSE_2():
    guess, y = 3.0 * numbers(M, K, seed=9), numbers(M, K, seed=10)
    dguess = ops.mse_backward(DOUT, ops.mse_forward(guess, y)[1])
    check_gradient(lambda guess: DOUT * ops.mse_forward(guess, y)[0], (guess,), (dguess,))
    leaf = guess.clone().requires_grad_()
    (DOUT * F.mse_loss(leaf, y, reduction="sum")).backward()
    torch.testing.assert_close(dguess, leaf.grad, rtol=1e-14, atol=0)


@pytest.mark.parametrize("sd", [0.4, math.sqrt(0.5), 1.7])
def test_squared_error_is_the_log_likelihood_of_a_normal_MSE_1_MSE_3(sd):
    guess, y = 1.5 * numbers(M, seed=11), numbers(M, seed=12)
    for one, label in zip(guess, y, strict=True):
        square = float(ops.mse_forward(one[None], label[None])[0])
        claimed = square / (2 * sd ** 2) + math.log(sd * math.sqrt(2 * math.pi))   # [MSE-3]
        likelihood = statistics.NormalDist(float(one), sd).pdf(float(label))
        assert -math.log(likelihood) == pytest.approx(claimed, rel=1e-12)


def test_mse_worked_example_MSE_1_MSE_2():
    """Chapter 04: guesses (3, -1), targets (1, 2): errors (2, -3), sum 4 + 9 = 13, gradient (4, -6)."""
    total, cache = ops.mse_forward(torch.tensor([3.0, -1.0]), torch.tensor([1.0, 2.0]))
    assert float(total) == 13 and ops.mse_backward(1.0, cache).tolist() == [4, -6]


# ---------------------------------------------------------------------------------------------------- soft targets


@pytest.fixture
def soft():
    """[M,K] scores, and targets whose rows add up to different sums; one row of zeros."""
    t = torch.rand(M, K, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    t[4] = 0.0
    return 2.0 * numbers(M, K, seed=4) + 3.0, t


def test_soft_cross_entropy_row_by_row_SOFT_1(soft):
    z, t = soft
    rows = [sum(w * (math.log(math.fsum(map(math.exp, row))) - x) for w, x in zip(targets, row, strict=True))
            for row, targets in zip(z.tolist(), t.tolist(), strict=True)]
    assert float(ops.soft_cross_entropy_forward(z, t)[0]) == pytest.approx(math.fsum(rows), rel=1e-13)
    assert rows[4] == 0


def test_soft_cross_entropy_with_one_hot_targets_is_cross_entropy_SOFT_1_SOFT_2(rows):
    z, y = rows
    hard = F.one_hot(y.clamp(min=0), K).double() * (y >= 0)[:, None]
    total, cache = ops.soft_cross_entropy_forward(z, hard)
    wanted, other = ops.cross_entropy_forward(z, y)
    assert float(total) == pytest.approx(float(wanted), rel=1e-14)
    assert torch.allclose(ops.soft_cross_entropy_backward(DOUT, cache), ops.cross_entropy_backward(DOUT, other),
                          rtol=0, atol=1e-15)


def test_soft_cross_entropy_is_torchs_for_targets_that_sum_to_one_SOFT_1(soft):
    z, t = soft
    t = torch.where(t.sum(-1, keepdim=True) > 0, t / t.sum(-1, keepdim=True), torch.full_like(t, 1 / K))
    assert float(ops.soft_cross_entropy_forward(z, t)[0]) == pytest.approx(
        float(F.cross_entropy(z, t, reduction="sum")), rel=1e-13)


def test_soft_cross_entropy_gradient_by_differences_and_autograd_SOFT_2(soft):
    z, t = soft
    check_gradient(lambda x: ops.soft_cross_entropy_forward(x, t)[0] * DOUT, [z],
                   [ops.soft_cross_entropy_backward(DOUT, (z, t))])
    leaf = z.clone().requires_grad_()
    (DOUT * ops.soft_cross_entropy_forward(leaf, t)[0]).backward()
    assert torch.allclose(leaf.grad, ops.soft_cross_entropy_backward(DOUT, (z, t)), rtol=0, atol=1e-14)


def test_a_large_shared_offset_costs_soft_targets_no_digits_SOFT_1():
    z, t = numbers(M, K, seed=6), torch.full((M, K), 1 / K, dtype=torch.float64)
    assert float(ops.soft_cross_entropy_forward(z + 1e4, t)[0]) == pytest.approx(
        float(ops.soft_cross_entropy_forward(z, t)[0]), rel=1e-11)


def classify(texts: list[tuple[str, str]], **options) -> Classify:
    task = Classify(Classify.Options(**options))
    task.learn_labels({"train": [Example(text, tuple(label.split("|")) if label else (), f"f:{i}")
                                 for i, (text, label) in enumerate(texts, 1)]})
    return task


TEXTS = [(f"t{i}", "abcde"[k]) for i, k in enumerate([0, 0, 0, 0, 1, 1, 2, 3, 3, 4])]     # 4, 2, 1, 2, 1 of 10


def text_batch(task: Classify, labels: list[str | None]):
    """A row a label; None: train never saw it."""
    one, rows = np.zeros(1, np.int64), []
    for i, label in enumerate(labels):
        number, targets = task.numbers(
            Example("", ("unseen",) if label is None else tuple(filter(None, label.split("|"))), "f:1"))
        rows.append(Feature(i, np.array([2, 5 + i, 3]), np.zeros(3, np.int64), one, np.array([number]), targets))
    return collate(rows)


def targets(task: Classify, labels: list[str | None]) -> torch.Tensor:
    return task.targets_of(text_batch(task, labels), torch.zeros(len(labels), len(task.outputs), dtype=torch.float64))


def test_smoothed_targets_by_hand_SOFT_3():
    """Five labels, s = 0.2: 0.8 + 0.04 for the label, 0.04 for each other. Yes or no: 0.8 + 0.1 and 0.1."""
    found = targets(classify(TEXTS, label_smoothing=0.2), list("abcde"))
    assert torch.allclose(found, torch.full((5, 5), 0.04).double() + 0.8 * torch.eye(5), atol=1e-7)
    pair = targets(classify([("x", "no"), ("y", "yes")], choice="yes-no", label_smoothing=0.2), ["no", "yes"])
    assert torch.allclose(pair, torch.tensor([[0.1], [0.9]]).double(), atol=1e-7)
    several = targets(classify([("x", "a|c"), ("y", "b")], choice="several", label_smoothing=0.2), ["a|c", "", "b"])
    wanted = [[0.9, 0.1, 0.9], [0.1, 0.1, 0.1], [0.1, 0.9, 0.1]]
    assert torch.allclose(several, torch.tensor(wanted).double(), atol=1e-7)


def test_smoothing_is_torchs_SOFT_3():
    task, z = classify(TEXTS, label_smoothing=0.3), numbers(10, 5, seed=7)
    batch = text_batch(task, [label for _, label in TEXTS])
    assert float(task.loss(z, batch)["texts"]) == pytest.approx(
        float(F.cross_entropy(z, batch.labels, label_smoothing=0.3, reduction="sum")), rel=1e-6)


def test_the_least_loss_under_smoothing_is_at_the_targets_SOFT_1_SOFT_3():
    """The entropy of the targets: exercise 2."""
    t = targets(classify(TEXTS[:7], label_smoothing=0.1), ["a", "b"])
    least = float(ops.soft_cross_entropy_forward(t[:1].log(), t[:1])[0])
    p = [0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]
    assert least == pytest.approx(-sum(x * math.log(x) for x in p), rel=1e-6)
    nudged = [float(ops.soft_cross_entropy_forward(t[:1].log() + 0.1 * numbers(1, 3, seed=s), t[:1])[0])
              for s in range(9)]
    assert min(nudged) > least


def test_balanced_classes_have_the_same_say_SOFT_4():
    """10 texts, 5 labels: 10 / (5 · 4) = 1/2 for a, 1 for b and d, 2 for c and e."""
    task = classify(TEXTS, class_weights="balanced")
    assert task.weights.tolist() == [0.5, 1.0, 2.0, 1.0, 2.0]
    found = targets(task, [label for _, label in TEXTS])
    assert torch.allclose(found.sum(0), torch.full((5,), 2.0).double())          # N/K each


def test_the_objective_is_torchs_weighted_mean_SOFT_4_SOFT_5():
    """Texts of unknown label count for nothing; torch divides by the sum of the weights too."""
    task, z = classify(TEXTS, class_weights="balanced"), numbers(6, 5, seed=8)
    batch = text_batch(task, ["a", "c", None, "b", "e", "a"])
    ours = float(task.loss(z, batch)["texts"]) / task.counts(batch)["texts"]
    y = batch.labels.clone()
    y[2] = -100
    weights = torch.tensor([0.5, 1.0, 2.0, 1.0, 2.0], dtype=torch.float64)
    assert ours == pytest.approx(float(F.cross_entropy(z, y, weight=weights)), rel=1e-7)
    assert task.counts(batch) == {"texts": pytest.approx(0.5 + 2 + 1 + 2 + 0.5)}


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"class_weights": "balanced"}])
def test_classify_has_this_loss_and_this_gradient_SOFT_1_SOFT_2(options):
    task, z = classify(TEXTS, **options), numbers(7, 5, seed=9).requires_grad_()
    batch = text_batch(task, ["a", None, "c", "b", "e", "d", "a"])
    task.loss(z, batch)["texts"].backward()
    assert torch.allclose(z.grad, task.loss_backward(z.detach(), batch)["texts"], atol=1e-14)
    assert not z.grad[1].any() and z.grad[0].any() and batch.labels.tolist() == [0, -1, 2, 1, 4, 3, 0]


@pytest.mark.parametrize("choice, labels", [("yes-no", ["no", None, "yes", "yes", "no"]),
                                            ("several", ["a|b", None, "a", "c", "b|c"])])
def test_decisions_by_sigmoids_are_torchs_BCE_5_BCE_6(choice, labels):
    texts = [(f"t{i}", label) for i, label in enumerate(labels) if label]
    task = classify(texts, choice=choice)
    z = numbers(5, len(task.outputs), seed=10).requires_grad_()
    batch = text_batch(task, labels)
    total = task.loss(z, batch)["texts"]
    total.backward()
    keep = [0, 2, 3, 4]
    hard = torch.tensor([[float(o in labels[i].split("|")) for o in task.outputs] for i in keep], dtype=torch.float64)
    assert float(total.detach()) / task.counts(batch)["texts"] == pytest.approx(
        float(F.binary_cross_entropy_with_logits(z.detach()[keep], hard)), rel=1e-12)
    assert torch.allclose(z.grad, task.loss_backward(z.detach(), batch)["texts"], atol=1e-15)
