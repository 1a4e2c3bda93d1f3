"""Chapter 02: linear map, softmax and attention, each against loops, the whole Jacobian, differences and autograd."""
import itertools
import math
from fractions import Fraction

import pytest
import torch
from differences import check_gradient
from torch.utils.flop_counter import FlopCounterMode

from minibert.core import model, ops
from minibert.core.dropout import DropoutMasks
from minibert.core.layout import KINDS, Layout

# rows of 9 columns: right padding, holes, full, a single piece, no piece at all, both ends padded, left padding
ROWS = ["111111000", "110101011", "111111111", "000010000", "000000000", "011111100", "000111111"]
LIVE = torch.tensor([[c == "1" for c in row] for row in ROWS])
PREFIX = torch.tensor([3, 4, 9, 2, 5, 1, 6])
B, T = LIVE.shape
A, D = 5, 6
H = A * D


def numbers(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def apart(found: torch.Tensor, right: torch.Tensor) -> float:
    """How far two tensors differ, as a share of the second."""
    return float((found - right).norm() / right.norm())


# ------------------------------------------------------------------------------------------------------ linear map


@pytest.fixture
def linear():
    """x [7,11], w [5,11], b [5] and the gradient from above [7,5]."""
    return numbers(7, 11), numbers(5, 11, seed=1), numbers(5, seed=2), numbers(7, 5, seed=3)


def test_each_output_is_an_offset_and_a_dot_product_LIN_1(linear):
    x, w, b, _ = linear
    out, _ = ops.linear_forward(x, w, b)
    for p, j in itertools.product(range(7), range(5)):
        products = [float(x[p, i]) * float(w[j, i]) for i in range(11)]
        assert float(out[p, j]) == pytest.approx(math.fsum([float(b[j]), *products]), rel=1e-12)


def test_linear_gradients_index_by_index_LIN_2_LIN_3_LIN_4(linear):
    x, w, b, dout = linear
    dx, dw, db = ops.linear_backward(dout, ops.linear_forward(x, w, b)[1])
    for p, i in itertools.product(range(7), range(11)):
        products = [float(dout[p, j]) * float(w[j, i]) for j in range(5)]
        assert float(dx[p, i]) == pytest.approx(math.fsum(products), rel=1e-11)
    for j, i in itertools.product(range(5), range(11)):
        products = [float(dout[p, j]) * float(x[p, i]) for p in range(7)]
        assert float(dw[j, i]) == pytest.approx(math.fsum(products), rel=1e-11)
    for j in range(5):
        assert float(db[j]) == pytest.approx(math.fsum(dout[:, j].tolist()), rel=1e-12)


def test_linear_gradients_by_differences_and_autograd_LIN_2_LIN_3_LIN_4(linear):
    x, w, b, dout = linear
    mine = ops.linear_backward(dout, ops.linear_forward(x, w, b)[1])
    check_gradient(lambda x, w, b: (ops.linear_forward(x, w, b)[0] * dout).sum(), (x, w, b), mine)
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    torch.nn.functional.linear(*leaves).backward(dout)
    for g, leaf in zip(mine, leaves, strict=True):
        assert apart(g, leaf.grad) < 1e-12


# --------------------------------------------------------------------------------------------------------- softmax


@pytest.fixture
def scores():
    """Scores and the gradient from above [5,7,9]; the three axes cannot be mistaken for each other."""
    return 2.0 * numbers(5, 7, 9) + 1.0, numbers(5, 7, 9, seed=3)


def softmax_slowly(row: list[float]) -> list[float]:
    whole = math.fsum(math.exp(t) for t in row)
    return [math.exp(t) / whole for t in row]


def test_both_forms_are_shares_of_the_exponentials_SM_1_SM_2(scores):
    s, _ = scores
    for p in (ops.softmax_textbook(s), ops.softmax_forward(s)[0]):
        for found, row in zip(p.flatten(0, 1).tolist(), s.flatten(0, 1).tolist(), strict=True):
            assert found == pytest.approx(softmax_slowly(row), rel=1e-13)


def test_the_textbook_form_overflows_past_88_and_vanishes_below_minus_104_in_fp32_SM_1():
    def textbook(*row):
        return ops.softmax_textbook(torch.tensor(row))

    for row in ((88.0, 87.0), (-103.0, -103.0)):
        assert torch.isfinite(textbook(*row)).all()
    for row in ((89.0, 87.0), (-104.0, -105.0)):                              # ∞/∞, 0/0
        assert torch.isnan(textbook(*row)).any()
        found, _ = ops.softmax_forward(torch.tensor(row))
        assert found.tolist() == pytest.approx(softmax_slowly([t - row[0] for t in row]), rel=1e-6)


def test_the_safe_form_takes_any_offset_without_a_bit_of_difference_SM_2():
    """Eighths below 16, moved by ±1024, are exact in fp32; so the answer must not change in the last bit."""
    s = (64 * numbers(5, 7, 9)).round().clamp(-127, 127).float() / 8
    expected = torch.tensor([[softmax_slowly(row) for row in rows] for rows in s.double().tolist()])
    p, _ = ops.softmax_forward(s)
    torch.testing.assert_close(p, expected, rtol=1e-6, atol=0)
    for offset in (1024.0, -1024.0):
        assert torch.equal(ops.softmax_forward(s + offset)[0], p)


def test_ds_by_the_whole_jacobian_SM_3(scores):
    """ds_j = Σ_i dp_i ∂p_i/∂s_j with ∂p_i/∂s_j = p_i (δ_ij - p_j) written out, T × T numbers a row."""
    s, dp = scores
    ds = ops.softmax_backward(dp, ops.softmax_forward(s)[1])
    for found, above, row in zip(*(t.flatten(0, 1).tolist() for t in (ds, dp, s)), strict=True):
        p = softmax_slowly(row)
        for j in range(9):
            slow = math.fsum(above[i] * p[i] * ((i == j) - p[j]) for i in range(9))
            assert found[j] == pytest.approx(slow, rel=1e-10, abs=1e-15)


def test_softmax_gradient_by_differences_and_autograd_SM_3(scores):
    s, dp = scores
    ds = ops.softmax_backward(dp, ops.softmax_forward(s)[1])
    check_gradient(lambda s: (ops.softmax_forward(s)[0] * dp).sum(), (s,), (ds,))
    leaf = s.clone().requires_grad_()
    leaf.softmax(-1).backward(dp)
    assert apart(ds, leaf.grad) < 1e-12


def test_a_shift_of_all_scores_of_a_row_changes_nothing_SM_4(scores):
    s, _ = scores
    shift = 10.0 * numbers(5, 7, 1, seed=4)
    claimed = ops.softmax_forward(s)[0]                                       # [SM-4]
    for form in (ops.softmax_textbook, lambda s: ops.softmax_forward(s)[0]):
        torch.testing.assert_close(form(s + shift), claimed, rtol=1e-12, atol=0)


def test_the_gradient_by_the_scores_sums_to_0_SM_5(scores):
    s, dp = scores
    ds = ops.softmax_backward(dp, ops.softmax_forward(s)[1])
    last = -ds[..., :-1].sum(-1)                                              # [SM-5] all others taken together
    torch.testing.assert_close(last, ds[..., -1], rtol=1e-11, atol=1e-15)
    assert last.abs().max() > 0.1


def test_softmax_can_be_taken_in_pieces_SM_6(scores):
    """Two stretches of keys, each seen without the other, with scores that overflow the textbook form."""
    s, _ = scores
    s, v = 400.0 + 3.0 * s, numbers(5, 9, 6, seed=5)
    parts = []
    for keys in (slice(0, 4), slice(4, 9)):
        m = s[..., keys].amax(-1, keepdim=True)
        e = (s[..., keys] - m).exp()
        parts.append((m, e.sum(-1, keepdim=True), e @ v[:, keys]))
    (m1, z1, o1), (m2, z2, o2) = parts
    m = torch.maximum(m1, m2)
    w1, w2 = (m1 - m).exp(), (m2 - m).exp()
    merged = (w1 * o1 + w2 * o2) / (w1 * z1 + w2 * z2)                        # [SM-6]
    torch.testing.assert_close(merged, ops.softmax_forward(s)[0] @ v, rtol=1e-11, atol=1e-13)
    assert (m1 > m2).any() and (m2 > m1).any() and min(w1.min(), w2.min()) < 0.1


# -------------------------------------------------------------------------------------- who sits where, who sees whom


def cells(kind: str) -> list[tuple[int, int]]:
    """(row, column) of each piece in order."""
    return [(b, t) for b in range(B) for t in range(T) if kind == "rectangle" or LIVE[b, t]]


def sees(b: int, query: int, key: int, prefix) -> bool:
    """A live key; with a prefix, one in the source or not after the query."""
    return bool(LIVE[b, key]) and (prefix is None or key < int(prefix[b]) or key <= query)


@pytest.fixture(params=[(kind, prefix) for kind in KINDS for prefix in (None, PREFIX)],
                ids=[f"{kind}-{prefix}" for kind in KINDS for prefix in ("all", "prefix")])
def layout(request):
    return Layout(LIVE, *request.param)


@pytest.fixture(params=[False, True], ids=["", "dropout"])
def mask(request):
    """A dropout mask of the probabilities, or None."""
    return DropoutMasks(3, 5)(1, (B, A, T, T), 0.3, numbers(1)) if request.param else None


@pytest.fixture
def qkv(layout):
    P = len(layout.live)
    return tuple(1.5 * numbers(P, H, seed=i) for i in (1, 2, 3))


@pytest.fixture
def dout(layout):
    """The gradient from above: 0 where a query sees no key (nothing reads its output), not 0 on other padding."""
    sighted = layout.allowed.expand(B, 1, T, T).any(-1).view(B, T)
    dout = numbers(len(layout.live), H, seed=4) * layout.pieces(sighted)[:, None]
    if layout.kind == "rectangle":
        assert dout[~layout.live].any() and not dout.all()
    return dout


def heads(x: torch.Tensor, layout) -> torch.Tensor:
    """[P,H] -> [B,A,T,D] by index lists, differentiable, without the code under test."""
    rows, columns = zip(*cells(layout.kind), strict=True)
    full = torch.zeros(B, T, H, dtype=x.dtype).index_put((torch.tensor(rows), torch.tensor(columns)), x)
    return torch.stack([full[..., a * D:(a + 1) * D] for a in range(A)], 1)


def unheads(x: torch.Tensor, layout) -> torch.Tensor:
    """[B,A,T,D] -> [P,H], in the same manner."""
    return torch.stack([torch.cat([x[b, a, t] for a in range(A)]) for b, t in cells(layout.kind)])


def test_head_a_takes_channels_aD_to_a_plus_1_D_of_its_piece_ATT_1(layout):
    x = numbers(len(layout.live), H)
    found = ops.split_heads(x, layout, A)
    assert found.shape == (B, A, T, D)
    for p, (b, t) in enumerate(cells(layout.kind)):
        for a, c in itertools.product(range(A), range(D)):
            assert float(found[b, a, t, c]) == float(x[p, a * D + c])
    if layout.kind == "ragged":
        assert not found.transpose(1, 2)[~LIVE].any()


def test_joining_puts_the_heads_side_by_side_again_ATT_2(layout):
    x = numbers(B, A, T, D)
    found = ops.join_heads(x, layout)
    assert found.shape == (len(layout.live), H)
    for p, (b, t) in enumerate(cells(layout.kind)):
        for a, c in itertools.product(range(A), range(D)):
            assert float(found[p, a * D + c]) == float(x[b, a, t, c])


def test_who_sees_whom_by_three_loops_ATT_11(layout):
    seen = layout.allowed.expand(B, 1, T, T)
    for b, query, key in itertools.product(range(B), range(T), range(T)):
        assert bool(seen[b, 0, query, key]) == sees(b, query, key, layout.prefix)


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_piece_is_news_to_none_before_it_ATT_11(kind):
    """Another key and value at column 5 of each row: outputs of the queries that see it change, others by no bit."""
    layout, column = Layout(LIVE, kind, PREFIX), 5
    q, k, v = (numbers(len(layout.live), H, seed=i) for i in (1, 2, 3))
    before, _ = ops.attention_forward(q, k, v, layout, A)
    changed = (layout.position == column)[:, None] * 3.0
    after, _ = ops.attention_forward(q, k + changed, v + changed, layout, A)
    told = [bool((x != y).any()) for x, y in zip(before, after, strict=True)]
    live = layout.live.tolist()
    right = [sees(b, t, column, PREFIX) for b, t in cells(kind)]
    assert [x for x, alive in zip(told, live, strict=True) if alive] == \
        [x for x, alive in zip(right, live, strict=True) if alive]
    assert 0 < sum(told) < len(told)


def test_rows_and_pieces_are_adjoint_ATT_12(layout):
    """Turn and turn about: the sum over cells of rows(x) · y is the sum over pieces of x · pieces(y)."""
    x, y = numbers(len(layout.live), H, seed=1), numbers(B, T, H, seed=2)
    claimed = (x * layout.pieces(y)).sum()                                    # [ATT-12]
    torch.testing.assert_close((layout.rows(x) * y).sum(), claimed, rtol=1e-12, atol=0)
    assert abs(claimed) > 1


# ------------------------------------------------------------------------------------------------ attention forward


def test_the_variance_of_a_dot_product_ATT_13():
    """Exactly, with every outcome counted: q is -1 or 2 (two to one), k is -3 or 1 (one to three), both of mean 0."""
    q = {-1: Fraction(2, 3), 2: Fraction(1, 3)}
    k = {-3: Fraction(1, 4), 1: Fraction(3, 4)}

    def moment(values, n):
        return sum(chance * value ** n for value, chance in values.items())

    assert moment(q, 1) == moment(k, 1) == 0
    dot = {0: Fraction(1)}
    terms = 5
    for _ in range(terms):                                                    # one more channel, independent
        longer = {}
        for (have, c1), (x, c2), (y, c3) in itertools.product(dot.items(), q.items(), k.items()):
            longer[have + x * y] = longer.get(have + x * y, 0) + c1 * c2 * c3
        dot = longer
    claimed = terms * moment(q, 2) * moment(k, 2)                             # [ATT-13]
    assert sum(dot.values()) == 1 and moment(dot, 1) == 0
    assert moment(dot, 2) == claimed == 5 * 2 * 3


def test_attention_in_loops_ATT_3_ATT_4_ATT_5(layout, qkv, mask):
    q, k, v = (heads(x, layout).tolist() for x in qkv)
    m = None if mask is None else mask.tolist()
    slow = torch.zeros(B, A, T, D, dtype=torch.float64)
    for b, a, i in itertools.product(range(B), range(A), range(T)):
        seen = [j for j in range(T) if sees(b, i, j, layout.prefix)]
        scores = [math.fsum(q[b][a][i][c] * k[b][a][j][c] for c in range(D)) / math.sqrt(D) for j in seen]
        shares = dict(zip(seen, softmax_slowly(scores), strict=True)) if seen else dict.fromkeys(range(T), 1 / T)
        if m is not None:
            shares = {j: share * m[b][a][i][j] for j, share in shares.items()}
        slow[b, a, i] = torch.tensor([math.fsum(share * v[b][a][j][c] for j, share in shares.items())
                                      for c in range(D)], dtype=torch.float64)
    out, _ = ops.attention_forward(*qkv, layout, A, mask)
    torch.testing.assert_close(out, unheads(slow, layout), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_hidden_keys_get_exactly_0_and_a_query_without_keys_the_mean_ATT_4(layout, qkv, dtype):
    """Also where all visible scores are -10,000 or less (in fp16 that is near the end of the format)."""
    q, k, v = (x.to(dtype) for x in qkv)
    size = 30.0 if dtype == torch.float16 else 300.0
    out, cache = ops.attention_forward(size * q, size * k, v, layout, A)
    seen = layout.allowed.expand(B, A, T, T)
    assert out.isfinite().all()
    assert not cache[-1].p[~seen & seen.any(-1, keepdim=True)].any()
    blind = cache[-1].p[~seen.any(-1)]
    assert len(blind) >= A * T and torch.equal(blind, torch.full_like(blind, 1 / T))


def test_minus_infinity_would_give_nan_to_a_query_without_keys_ATT_4():
    s = torch.full((5, 7, 9), -math.inf)
    assert ops.softmax_forward(s)[0].isnan().all()
    assert torch.equal(ops.softmax_forward(torch.full_like(s, torch.finfo(s.dtype).min))[0], torch.full_like(s, 1 / 9))
    layout = Layout(LIVE)
    q, k, v = (numbers(B * T, H, seed=i) for i in (1, 2, 3))
    _, cache = ops.attention_forward(q, k, v, layout, A)
    assert torch.equal(cache[-1].p[ROWS.index("000000000")], torch.full((A, T, T), 1 / T, dtype=torch.float64))


def test_the_network_computes_the_same_with_its_explicit_and_its_fused_attention_ATT_3_ATT_4_ATT_5(layout, qkv, mask):
    out, _ = ops.attention_forward(*qkv, layout, A, mask)
    q, k, v = (heads(x, layout) for x in qkv)
    assert apart(out, unheads(model.attention(q, k, v, layout.allowed, mask), layout)) < 1e-12
    if mask is None:
        fused = unheads(model.attention_fused(q, k, v, layout.allowed), layout)
        sighted = layout.pieces(layout.allowed.expand(B, 1, T, T).any(-1).view(B, T))
        assert apart(out[sighted], fused[sighted]) < 1e-12


def test_nothing_is_hidden_in_a_full_rectangle_ATT_3_ATT_5():
    layout = Layout(torch.ones(B, T, dtype=torch.bool))
    assert layout.allowed is None
    q, k, v = (numbers(B * T, H, seed=i) for i in (1, 2, 3))
    out, _ = ops.attention_forward(q, k, v, layout, A)
    fused = model.attention_fused(*(heads(x, layout) for x in (q, k, v)), None)
    assert apart(out, unheads(fused, layout)) < 1e-12


# ----------------------------------------------------------------------------------------------- attention backward


def test_attention_gradients_query_by_query_ATT_6_ATT_7_ATT_8(layout, qkv, mask, dout):
    """Each query adds its share to every key and value; the Jacobian of softmax is written out, T × T a query."""
    _, cache = ops.attention_forward(*qkv, layout, A, mask)
    q, k, v = (heads(x, layout) for x in qkv)
    above = heads(dout, layout)
    m = torch.ones(B, A, T, T, dtype=torch.float64) if mask is None else mask
    dq, dk, dv = (torch.zeros(B, A, T, D, dtype=torch.float64) for _ in range(3))
    for at in itertools.product(range(B), range(A), range(T)):                # row, head, query
        ba, p = at[:2], cache[-1].p[at]
        dp = m[at] * torch.mv(v[ba], above[at])
        ds = torch.mv(torch.diag(p) - torch.outer(p, p), dp)
        dv[ba] += torch.outer(p * m[at], above[at])
        dq[at] += torch.mv(k[ba].T, ds) / math.sqrt(D)
        dk[ba] += torch.outer(ds, q[at]) / math.sqrt(D)
    for found, slow in zip(ops.attention_backward(dout, cache), (dq, dk, dv), strict=True):
        assert apart(found, unheads(slow, layout)) < 1e-12


def test_attention_gradients_by_differences_ATT_6_ATT_9_ATT_10(layout, qkv, mask, dout):
    """Of f(x/8) at 8x: a step moves thousands of numbers at once, and the coarsest would leave the h² regime."""
    _, cache = ops.attention_forward(*qkv, layout, A, mask)
    check_gradient(lambda *x: (ops.attention_forward(*(t / 8 for t in x), layout, A, mask)[0] * dout).sum(),
                   [8 * x for x in qkv], [g / 8 for g in ops.attention_backward(dout, cache)])


def test_attention_gradients_by_autograd_ATT_8_ATT_9_ATT_10(layout, qkv, mask, dout):
    """Through the network's explicit attention, and through the fused kernel where nothing is dropped."""
    mine = ops.attention_backward(dout, ops.attention_forward(*qkv, layout, A, mask)[1])
    ways = [lambda q, k, v: model.attention(q, k, v, layout.allowed, mask)]
    if mask is None:
        ways.append(lambda q, k, v: model.attention_fused(q, k, v, layout.allowed))
    for way in ways:
        leaves = [x.clone().requires_grad_() for x in qkv]
        unheads(way(*(heads(x, layout) for x in leaves)), layout).backward(dout)
        for g, leaf in zip(mine, leaves, strict=True):
            assert apart(g, leaf.grad) < 1e-12


def test_dead_keys_and_values_learn_exactly_nothing_ATT_6_ATT_10(layout, qkv, mask, dout):
    _, cache = ops.attention_forward(*qkv, layout, A, mask)
    _, dk, dv = ops.attention_backward(dout, cache)
    assert not dk[~layout.live].any() and not dv[~layout.live].any()
    assert (dv[layout.live].norm(dim=-1) > 0).all() and dk[layout.live].norm() > 1
    dk, dv = (ops.split_heads(x, layout, A).transpose(1, 2)[~LIVE] for x in (dk, dv))
    assert not dk.any() and not dv.any()


@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["all", "prefix"])
def test_both_kinds_of_layout_give_live_pieces_the_same_gradients_ATT_7_ATT_8_ATT_12(prefix, mask):
    wide, ragged = (Layout(LIVE, kind, prefix) for kind in ("rectangle", "ragged"))
    q, k, v, dout = (numbers(B * T, H, seed=i) for i in (1, 2, 3, 4))
    _, cache = ops.attention_forward(q, k, v, wide, A, mask)
    full = ops.attention_backward(dout * wide.live[:, None], cache)
    _, cache = ops.attention_forward(*(x[wide.live] for x in (q, k, v)), ragged, A, mask)
    for g, few in zip(full, ops.attention_backward(dout[wide.live], cache), strict=True):
        assert apart(few, g[wide.live]) < 1e-12


# ------------------------------------------------------------------------------------------------------ the key bias


@pytest.fixture
def maps(layout):
    """x [P,H] and weight and bias of the maps to queries, keys and values; no bias is small."""
    x = numbers(len(layout.live), H, seed=5)
    return x, [(numbers(H, H, seed=6 + i) / math.sqrt(H), numbers(H, seed=9 + i) + 2.0) for i in range(3)]


def test_the_key_bias_learns_nothing_by_ops_ATT_14(layout, maps, mask, dout):
    x, weights = maps
    made = [ops.linear_forward(x, w, b) for w, b in weights]
    _, cache = ops.attention_forward(*(out for out, _ in made), layout, A, mask)
    dq, dk, dv = ops.attention_backward(dout, cache)
    (_, _, query), (_, dw, key), (_, _, value) = (ops.linear_backward(d, c[1])
                                                  for d, c in zip((dq, dk, dv), made, strict=True))
    assert query.norm() > 1 and value.norm() > 1 and dw.norm() > 1
    assert key.norm() <= 1e-12 * query.norm()
    last = -dk[:-1].sum(0)                                                    # [ATT-14] all others taken together
    assert layout.live[-1] and dk[-1].norm() > 0.1
    assert (dk[-1] - last).norm() <= 1e-12 * query.norm()


def test_the_key_bias_learns_nothing_by_autograd_ATT_14(layout, maps, mask, dout):
    x, weights = maps
    leaves = [(w.clone().requires_grad_(), b.clone().requires_grad_()) for w, b in weights]
    q, k, v = (heads(torch.nn.functional.linear(x, w, b), layout) for w, b in leaves)
    out = unheads(model.attention(q, k, v, layout.allowed, mask), layout)
    out.backward(dout)
    (_, query), (dw, key), (_, value) = ((w.grad, b.grad) for w, b in leaves)
    assert query.norm() > 1 and value.norm() > 1 and dw.norm() > 1
    assert key.norm() <= 1e-12 * query.norm()


# ------------------------------------------------------------------------------------------------ cost, example


def test_operations_and_numbers_kept_ATT_15():
    """torch's own counter, a multiplication and an addition being two operations."""
    layout = Layout(torch.ones(B, T, dtype=torch.bool))
    q, k, v, dout = (numbers(B * T, H, seed=i) for i in (1, 2, 3, 4))
    with FlopCounterMode(display=False) as forward:
        _, cache = ops.attention_forward(q, k, v, layout, A)
    with FlopCounterMode(display=False) as backward:
        ops.attention_backward(dout, cache)
    claimed = 4 * B * T ** 2 * H                                              # [ATT-15]
    assert forward.get_total_flops() == claimed
    assert backward.get_total_flops() == 2 * claimed
    with FlopCounterMode(display=False) as linear:
        ops.linear_forward(q, numbers(H, H), numbers(H))
    assert linear.get_total_flops() == 2 * B * T * H ** 2
    assert cache[-1].p.numel() == B * A * T ** 2


def test_worked_example_forward_ATT_3_ATT_5():
    """Chapter 02: ℓ = ln 3, D = 4 with two channels that are 0 throughout, so √D = 2.

    Q = (2ℓ, 0; 0, 4ℓ), K = (1, 1; 0, 2): QKᵀ = (2ℓ, 0; 4ℓ, 8ℓ), halved (ℓ, 0; 2ℓ, 4ℓ), exponentials (3, 1; 9, 81),
    P = (3/4, 1/4; 1/10, 9/10). V = (4, 0; 8, 20): first row 3/4·4 + 1/4·8 = 5 and 1/4·20 = 5, second row
    4/10 + 72/10 = 38/5 and 180/10 = 18.
    """
    out, cache = ops.attention_forward(*example(), Layout(torch.ones(1, 2, dtype=torch.bool)), 1)
    assert cache[-1].p.flatten().tolist() == pytest.approx([3 / 4, 1 / 4, 1 / 10, 9 / 10], rel=1e-14)
    assert out.flatten().tolist() == pytest.approx([5, 5, 0, 0, 38 / 5, 18, 0, 0], rel=1e-14)


def test_worked_example_backward_ATT_8_ATT_9_ATT_10():
    """Chapter 02, from dO = (1, 0; 0, 1): dV = Pᵀ, dP = Vᵀ = (4, 8; 0, 20).

    Σ dP P = 3 + 2 = 5 and 0 + 18 = 18: dS = (3/4·(4 - 5), 1/4·(8 - 5); 1/10·(0 - 18), 9/10·(20 - 18))
    = (-3/4, 3/4; -9/5, 9/5), halved (-3/8, 3/8; -9/10, 9/10).
    dq_1 = 3/8 (k_2 - k_1) = 3/8 (-1, 1), dq_2 = 9/10 (-1, 1); dk_1 = -3/8 q_1 - 9/10 q_2 = (-3/4 ℓ, -18/5 ℓ) = -dk_2.
    """
    _, cache = ops.attention_forward(*example(), Layout(torch.ones(1, 2, dtype=torch.bool)), 1)
    dout = torch.eye(2, 4, dtype=torch.float64)
    dq, dk, dv = (x[:, :2].flatten().tolist() for x in ops.attention_backward(dout, cache))
    ell = math.log(3)
    assert dv == pytest.approx([3 / 4, 1 / 10, 1 / 4, 9 / 10], rel=1e-14)
    assert dq == pytest.approx([-3 / 8, 3 / 8, -9 / 10, 9 / 10], rel=1e-13)
    assert dk == pytest.approx([-3 / 4 * ell, -18 / 5 * ell, 3 / 4 * ell, 18 / 5 * ell], rel=1e-13)


def example() -> list[torch.Tensor]:
    """Q, K and V [2,4] of the worked example."""
    ell = math.log(3)
    pairs = ([[2 * ell, 0], [0, 4 * ell]], [[1, 1], [0, 2]], [[4, 0], [8, 20]])
    return [torch.nn.functional.pad(torch.tensor(x, dtype=torch.float64), (0, 2)) for x in pairs]
