"""Chapter 03: each equation against a slow obvious version, each gradient against differences and autograd."""
import math
import statistics

import pytest
import torch
from differences import check_gradient

from minibert.core import ops

P, H = 7, 11
EPS = 0.3                                          # so large that a forgotten or misplaced eps shows


def numbers(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def layer():
    """x, w, b and the gradient from above; no mean near 0, no size near 1."""
    return 3.0 * numbers(P, H) + 2.0, numbers(H, seed=1) + 1.5, numbers(H, seed=2) + 0.5, numbers(P, H, seed=3)


def rows_by_statistics(x):
    """[(mean, variance with 1/H)] of each piece, by Python's own library."""
    return [(statistics.fmean(row), statistics.pvariance(row)) for row in x.tolist()]


# ------------------------------------------------------------------------------------------------- LayerNorm forward


def test_xhat_has_mean_0_variance_1_and_the_order_of_x_LN_1_LN_2(layer):
    x, w, b, _ = layer
    _, (xhat, rstd, _) = ops.layernorm_forward(x, w, b, 0.0)
    for row, scale, (mean, variance), found in zip(x, rstd.flatten(), rows_by_statistics(x), xhat, strict=True):
        torch.testing.assert_close(row - found / scale, torch.full_like(row, mean), rtol=1e-13, atol=0)     # LN-1
        assert 1 / float(scale) ** 2 == pytest.approx(variance, rel=1e-13)                                  # LN-2
        assert statistics.fmean(found.tolist()) == pytest.approx(0, abs=1e-14)


def test_eps_stands_inside_the_root_LN_3_LN_4(layer):
    x, w, b, _ = layer
    _, (xhat, rstd, _) = ops.layernorm_forward(x, w, b, EPS)
    for p, (mean, variance) in enumerate(rows_by_statistics(x)):
        r = 1 / math.sqrt(variance + EPS)
        assert float(rstd[p]) == pytest.approx(r, rel=1e-13)
        for h in range(H):
            assert float(xhat[p, h]) == pytest.approx((float(x[p, h]) - mean) * r, rel=1e-11)


def test_size_and_offset_of_each_channel_LN_5(layer):
    x, w, b, _ = layer
    out, (xhat, _, _) = ops.layernorm_forward(x, w, b, EPS)
    for p in range(P):
        for h in range(H):
            assert float(out[p, h]) == pytest.approx(float(w[h]) * float(xhat[p, h]) + float(b[h]), rel=1e-14)
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(x, (H,), w, b, EPS), rtol=1e-12, atol=1e-13)


def test_a_constant_piece_gives_the_offset_not_nan_LN_3():
    out, _ = ops.layernorm_forward(torch.full((P, H), 5.0), torch.ones(H), torch.arange(float(H)), 1e-12)
    assert torch.equal(out, torch.arange(float(H)).expand(P, H))


# ------------------------------------------------------------------------------------------------ LayerNorm backward


def test_gradients_of_offset_and_size_are_sums_over_pieces_LN_6_LN_7(layer):
    x, w, b, dout = layer
    _, (xhat, rstd, _) = ops.layernorm_forward(x, w, b, EPS)
    _, dw, db = ops.layernorm_backward(dout, (xhat, rstd, w))
    for h in range(H):
        assert float(db[h]) == pytest.approx(math.fsum(dout[:, h].tolist()), rel=1e-12)
        products = [float(dout[p, h]) * float(xhat[p, h]) for p in range(P)]
        assert float(dw[h]) == pytest.approx(math.fsum(products), rel=1e-12)


def test_dx_by_the_whole_jacobian_LN_8_LN_9_LN_10(layer):
    """dx_j = Σ_h dy_h γ_h ∂x̂_h/∂x_j with the H × H matrix written out, before it collapsed to three terms."""
    x, w, b, dout = layer
    _, cache = ops.layernorm_forward(x, w, b, EPS)
    dx, _, _ = ops.layernorm_backward(dout, cache)
    for p, (mean, variance) in enumerate(rows_by_statistics(x)):
        r = (variance + EPS) ** -0.5
        for j in range(H):
            slow = 0.0
            for h in range(H):
                direct = ((h == j) - 1 / H) * r
                through_r = (float(x[p, h]) - mean) * -0.5 * r ** 3 * 2 / H * (float(x[p, j]) - mean)
                slow += float(dout[p, h]) * float(w[h]) * (direct + through_r)
            assert float(dx[p, j]) == pytest.approx(slow, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("eps", [1e-12, EPS])
def test_layernorm_gradient_by_differences_and_autograd_LN_6_LN_7_LN_11(layer, eps):
    x, w, b, dout = layer
    _, cache = ops.layernorm_forward(x, w, b, eps)
    mine = ops.layernorm_backward(dout, cache)
    check_gradient(lambda x, w, b: (ops.layernorm_forward(x, w, b, eps)[0] * dout).sum(), (x, w, b), mine)
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    torch.nn.functional.layer_norm(leaves[0], (H,), leaves[1], leaves[2], eps).backward(dout)
    for g, leaf in zip(mine, leaves, strict=True):
        assert float((g - leaf.grad).norm() / leaf.grad.norm()) < 1e-12


def test_the_gradient_has_no_part_along_ones_LN_12(layer):
    x, w, b, dout = layer
    dx, _, _ = ops.layernorm_backward(dout, ops.layernorm_forward(x, w, b, EPS)[1])
    last = -dx[:, :-1].sum(-1)                                                # [LN-12] all others taken together
    torch.testing.assert_close(last, dx[:, -1], rtol=1e-12, atol=1e-14)
    assert last.abs().min() > 1e-3


def test_the_gradient_along_xhat_is_what_eps_leaves_LN_13(layer):
    x, w, b, dout = layer
    _, (xhat, rstd, _) = ops.layernorm_forward(x, w, b, EPS)
    dx, _, _ = ops.layernorm_backward(dout, (xhat, rstd, w))
    c = (dout * w * xhat).mean(-1)
    claimed = H * c * EPS * rstd.squeeze(-1) ** 3                             # [LN-13]
    torch.testing.assert_close((xhat * dx).sum(-1), claimed, rtol=1e-10, atol=1e-13)
    assert claimed.abs().max() > 1e-3


def test_one_pass_variance_is_equal_on_paper_and_cancels_in_fp32_LN_14():
    x = numbers(P, H) + 1000.0

    def one_pass(x):
        return (x * x).mean(-1) - x.mean(-1) ** 2                             # [LN-14]

    exact = torch.tensor([v for _, v in rows_by_statistics(x)], dtype=torch.float64)
    torch.testing.assert_close(one_pass(x), exact, rtol=1e-8, atol=0)
    _, (_, rstd, _) = ops.layernorm_forward(x.float(), torch.ones(H), torch.zeros(H), 0.0)
    two_pass_error = (1 / rstd.double().flatten() ** 2 / exact - 1).abs().max()
    one_pass_error = (one_pass(x.float()).double() / exact - 1).abs().max()
    assert two_pass_error < 1e-3 and one_pass_error > 100 * two_pass_error


def test_layernorm_worked_example_LN_9_LN_10_LN_11():
    """Chapter 03: x = (1, 7, 7, 9), eps = 7.

    Mean 24/4 = 6, deviations (-5, 1, 1, 3), variance 36/4 = 9, r = 1/sqrt(16) = 1/4, xhat = (-5, 1, 1, 3)/4.
    γ = (2, 1, -1, 2), β = (0, 1, 0, -1): y = (-10/4, 1/4 + 1, -1/4, 6/4 - 1).
    dy = (1, 2, 0, -1): dxhat = (2, 2, 0, -2), a = 2/4, c = (-10 + 2 + 0 - 6)/4/4 = -7/8,
    dx = (dxhat - 1/2 + 7/8 xhat)/4 = (2 - 16/32 - 35/32, 2 - 16/32 + 7/32, -16/32 + 7/32, -2 - 16/32 + 21/32)/4
       = (13, 55, -9, -59)/128.
    """
    x, w, b, dout = (torch.tensor(v, dtype=torch.float64)
                     for v in ([[1, 7, 7, 9]], [2, 1, -1, 2], [0, 1, 0, -1], [[1, 2, 0, -1]]))
    out, cache = ops.layernorm_forward(x, w, b, 7.0)
    assert out.tolist() == [[-2.5, 1.25, -0.25, 0.5]]
    dx, dw, db = ops.layernorm_backward(dout, cache)
    assert (128 * dx).tolist() == [[13, 55, -9, -59]]
    assert dw.tolist() == [-1.25, 0.5, 0, -0.75] and db.tolist() == [1, 2, 0, -1]


# --------------------------------------------------------------------------------------------------------- GELU


def test_normal_cdf_by_the_standard_library_GELU_1():
    x = 2.0 * numbers(P, H)
    cdf = statistics.NormalDist().cdf
    for found, t in zip(ops.normal_cdf(x).flatten().tolist(), x.flatten().tolist(), strict=True):
        assert found == pytest.approx(cdf(t), rel=1e-11)


def test_normal_pdf_by_the_standard_library_GELU_3():
    x = 2.0 * numbers(P, H)
    pdf = statistics.NormalDist().pdf
    for found, t in zip(ops.normal_pdf(x).flatten().tolist(), x.flatten().tolist(), strict=True):
        assert found == pytest.approx(pdf(t), rel=1e-13)


def test_gelu_is_x_times_the_share_below_x_GELU_2():
    x = 2.0 * numbers(P, H)
    cdf = statistics.NormalDist().cdf
    out, _ = ops.gelu_forward(x)
    for found, t in zip(out.flatten().tolist(), x.flatten().tolist(), strict=True):
        assert found == pytest.approx(t * cdf(t), rel=1e-11)
    torch.testing.assert_close(out - ops.gelu_forward(-x)[0], x, rtol=1e-13, atol=1e-15)      # Φ(x) + Φ(-x) = 1


def test_gelu_tanh_by_the_standard_library_GELU_5_GELU_6():
    x = 2.0 * numbers(P, H)
    out, _ = ops.gelu_tanh_forward(x)
    for found, t in zip(out.flatten().tolist(), x.flatten().tolist(), strict=True):
        u = math.sqrt(2 / math.pi) * (t + 0.044715 * t ** 3)
        assert found == pytest.approx(0.5 * t * (1 + math.tanh(u)), rel=1e-11)


@pytest.mark.parametrize("name, approximate", [("gelu", "none"), ("gelu_tanh", "tanh")])
def test_gelu_gradients_by_differences_and_autograd_GELU_4_GELU_7_GELU_8(name, approximate):
    forward, backward = ops.ACTIVATIONS[name]
    x, dout = 1.5 * numbers(P, H), numbers(P, H, seed=3)
    dx = backward(dout, forward(x)[1])
    check_gradient(lambda x: (forward(x)[0] * dout).sum(), (x,), (dx,))
    leaf = x.clone().requires_grad_()
    torch.nn.functional.gelu(leaf, approximate=approximate).backward(dout)
    assert float((dx - leaf.grad).norm() / leaf.grad.norm()) < 1e-12


def test_the_two_forms_differ_by_at_most_473_millionths_GELU_9():
    x = torch.linspace(-6, 6, 240_001, dtype=torch.float64)
    apart = (ops.gelu_forward(x)[0] - ops.gelu_tanh_forward(x)[0]).abs()
    claimed = 4.73e-4                                                         # [GELU-9]
    assert float(apart.max()) == pytest.approx(claimed, rel=5e-4)
    assert 2 < abs(float(x[apart.argmax()])) < 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_half_precision_is_rounded_once_GELU_2_GELU_6(name, dtype):
    forward, backward = ops.ACTIVATIONS[name]
    x, dout = (1.2 * numbers(P, H)).to(dtype), numbers(P, H, seed=3).to(dtype)
    out, cache = forward(x)
    exact, exact_cache = forward(x.double())
    half_a_bit = dict(rtol=0.5 * torch.finfo(dtype).eps, atol=3e-7)           # atol: 1 + erf cancels in fp32
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, **half_a_bit)
    torch.testing.assert_close(backward(dout, cache).double(), backward(dout.double(), exact_cache), **half_a_bit)


def test_gelu_worked_example_GELU_2_GELU_4():
    """Chapter 03: Φ(1) = 0.8413, φ(1) = 0.2420 from a table, so y = 0.8413 and the slope 0.8413 + 0.2420 = 1.0833."""
    one = torch.ones(1, dtype=torch.float64)
    assert round(float(ops.gelu_forward(one)[0]), 4) == 0.8413
    assert round(float(ops.gelu_backward(one, one)), 4) == 1.0833


# ------------------------------------------------------------------------------------------------------ tanh, ReLU


def test_tanh_and_its_gradient_TANH_1_TANH_2():
    x, dout = numbers(P, H), numbers(P, H, seed=3)
    out, cache = ops.tanh_forward(x)
    for found, t in zip(out.flatten().tolist(), x.flatten().tolist(), strict=True):
        assert found == pytest.approx(math.tanh(t), rel=1e-13)
    dx = ops.tanh_backward(dout, cache)
    check_gradient(lambda x: (ops.tanh_forward(x)[0] * dout).sum(), (x,), (dx,))


def test_relu_and_its_gradient_RELU_1_RELU_2():
    x, dout = numbers(P, H), numbers(P, H, seed=3)
    x[2, 3] = 0.0                                                             # no derivative there; we say 0
    out, cache = ops.relu_forward(x)
    assert out.tolist() == [[max(t, 0.0) for t in row] for row in x.tolist()]
    dx = ops.relu_backward(dout, cache)
    slow = [[g if t > 0 else 0.0 for t, g in zip(*rows, strict=True)]
            for rows in zip(x.tolist(), dout.tolist(), strict=True)]
    assert dx.tolist() == slow and float(dx[2, 3]) == 0.0
