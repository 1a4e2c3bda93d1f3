"""Chapter 01: lookup, the sum of three tables and dropout against slow obvious versions, differences and autograd."""
import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from differences import check_gradient

from minibert.core import byhand, ops
from minibert.core.batch import Batch, Feature, collate
from minibert.core.config import BertConfig
from minibert.core.dropout import DropoutMasks
from minibert.core.kit import Formulas
from minibert.core.model import Embeddings
from minibert.core.optim import AdamW

H, V, TYPES, POSITIONS = 15, 23, 6, 17
LENGTHS = (9, 5, 7)                                # rows of different length: the rectangle holds dead cells
PAD = 0
EPS = 5.0                                          # so large that LayerNorm does not hide the size of its input
P_DROP = 0.3
LANES = 2 ** 16


def numbers(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(below: int, count: int, seed: int, lowest: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(lowest, below, (count,), generator=generator).numpy()


@pytest.fixture
def lookup():
    """(ids that repeat and leave rows out, table, gradient from above)."""
    ids = torch.tensor([4, 7, 4, 2, 11, 7, 4])
    return ids, numbers(13, H) + 0.5, numbers(len(ids), H, seed=1)


@pytest.fixture
def layer() -> Embeddings:
    """Float64 embeddings of a small BERT in which no parameter is near 0 or 1 throughout."""
    config = BertConfig(V, H, 2, 5, 19, max_position_embeddings=POSITIONS, type_vocab_size=TYPES, layer_norm_eps=EPS,
                        hidden_dropout_prob=P_DROP)
    m = Embeddings(config).double()
    for i, p in enumerate(m.parameters()):
        p.data = 1.3 * numbers(*p.shape, seed=10 + i) + 0.4
    return m


def batch_of(kind: str) -> Batch:
    """Three rows of random pieces and types; piece 0 is the padding and stands nowhere else."""
    none = np.zeros(0, np.int64)
    return collate([Feature(i, whole(V, n, i, lowest=1), whole(TYPES, n, 5 + i), none, none)
                    for i, n in enumerate(LENGTHS)], kind, PAD)


def from_above(batch: Batch, seed: int = 3) -> torch.Tensor:
    """A gradient from above, the same in both kinds of layout, 0 where no piece is."""
    cells = numbers(len(LENGTHS), max(LENGTHS), H, seed=seed)
    return batch.layout.pieces(cells) * batch.layout.live[:, None]


# ------------------------------------------------------------------------------------------------------- lookup


def test_lookup_is_the_row_of_each_id_EMB_1(lookup):
    ids, w, _ = lookup
    out, _ = ops.embedding_forward(ids, w)
    assert out.tolist() == [w.tolist()[i] for i in ids.tolist()]


def test_the_gradients_of_repeated_ids_add_up_EMB_3(lookup):
    ids, w, dout = lookup
    dw = ops.embedding_backward(dout, ops.embedding_forward(ids, w)[1])
    slow = [[0.0] * H for _ in w]
    for i, row in zip(ids.tolist(), dout.tolist(), strict=True):
        for h in range(H):
            slow[i][h] += row[h]
    torch.testing.assert_close(dw, torch.tensor(slow, dtype=torch.float64), rtol=1e-14, atol=0)
    assert [v for v in range(13) if bool((dw[v] == 0).all())] == [0, 1, 3, 5, 6, 8, 9, 10, 12]


def test_lookup_gradient_by_differences_and_autograd_EMB_3(lookup):
    ids, w, dout = lookup
    dw = ops.embedding_backward(dout, ops.embedding_forward(ids, w)[1])
    check_gradient(lambda w: (ops.embedding_forward(ids, w)[0] * dout).sum(), (w,), (dw,))
    leaf = w.clone().requires_grad_()
    torch.nn.functional.embedding(ids, leaf).backward(dout)
    torch.testing.assert_close(dw, leaf.grad, rtol=1e-14, atol=0)


def test_lookup_is_a_product_with_a_one_hot_matrix_EMB_4_EMB_5(lookup):
    """Adding zeros rounds nothing, so the product is the lookup to the last bit."""
    ids, w, dout = lookup
    onehot = torch.zeros(len(ids), len(w), dtype=torch.float64)
    for p, i in enumerate(ids.tolist()):
        onehot[p, i] = 1.0
    out, cache = ops.embedding_forward(ids, w)
    product = onehot @ w                                                      # [EMB-4]
    assert torch.equal(out, product)
    transposed = onehot.T @ dout                                              # [EMB-5]
    torch.testing.assert_close(ops.embedding_backward(dout, cache), transposed, rtol=1e-14, atol=0)


# ------------------------------------------------------------------------------------------ the sum of three tables


@pytest.mark.parametrize("kind", ["rectangle", "ragged"])
def test_a_piece_is_word_plus_type_plus_column_EMB_2(layer, kind):
    batch = batch_of(kind)
    out, _ = Formulas().embed_forward(layer, batch, None)
    T = max(LENGTHS)
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            piece = b * T + t if kind == "rectangle" else sum(LENGTHS[:b]) + t
            i, kind_of = int(batch.features[b].ids[t]), int(batch.features[b].types[t])
            total = [layer.word.weight.tolist()[i][h] + layer.token_type.weight.tolist()[kind_of][h]
                     + layer.position.weight.tolist()[t][h] for h in range(H)]
            normed = torch.nn.functional.layer_norm(torch.tensor(total, dtype=torch.float64), (H,),
                                                    layer.norm.weight, layer.norm.bias, EPS)
            torch.testing.assert_close(out[piece], normed.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["rectangle", "ragged"])
def test_gradients_of_all_tables_by_differences_EMB_2_EMB_3_DROP_4(layer, kind):
    """With dropout: its masks are a function of numbers, so every call of the forward draws the same ones."""
    batch, masks, dout = batch_of(kind), DropoutMasks(3, 8), from_above(batch_of(kind))
    _, cache = Formulas().embed_forward(layer, batch, masks)
    gradients = byhand.Gradients(layer)
    Formulas().embed_backward(layer, dout, cache, gradients)
    names = [name for name, _ in layer.named_parameters()]
    assert set(names) == set(gradients)

    def loss(*values):
        for p, value in zip(layer.parameters(), values, strict=True):
            p.data = value
        return (Formulas().embed_forward(layer, batch, masks)[0] * dout).sum()

    with torch.no_grad():
        check_gradient(loss, [p.data.clone() for p in layer.parameters()], [gradients[n] for n in names])


@pytest.mark.parametrize("kind", ["rectangle", "ragged"])
def test_both_engines_agree_with_the_same_masks_EMB_2_DROP_1_DROP_4(layer, kind):
    batch, dout = batch_of(kind), from_above(batch_of(kind))
    gradients = byhand.Gradients(layer)
    with torch.no_grad():
        mine, cache = Formulas().embed_forward(layer, batch, DropoutMasks(3, 8))
        Formulas().embed_backward(layer, dout, cache, gradients)
    theirs = layer(batch.ids, batch.types, batch.layout.position, DropoutMasks(3, 8))
    theirs.backward(dout)
    assert 0.2 < float((mine == 0).double().mean()) < 0.4
    torch.testing.assert_close(mine, theirs.detach(), rtol=1e-12, atol=1e-13)
    for name, p in layer.named_parameters():
        assert float((gradients[name] - p.grad).norm() / p.grad.norm()) < 1e-13, name


@torch.no_grad()
def test_padding_learns_nothing_and_both_layouts_agree_EMB_3(layer):
    found = []
    for kind in ("rectangle", "ragged"):
        batch, gradients = batch_of(kind), byhand.Gradients(layer)
        assert batch.ids.tolist().count(PAD) == (6 if kind == "rectangle" else 0)
        _, cache = Formulas().embed_forward(layer, batch, None)
        Formulas().embed_backward(layer, from_above(batch), cache, gradients)
        assert bool((gradients["word.weight"][PAD] == 0).all())
        found.append(gradients)
    for name in found[0]:
        assert float((found[0][name] - found[1][name]).norm() / found[1][name].norm()) < 1e-14, name
        assert float(found[1][name].norm()) > 1


def test_a_row_without_gradient_still_moves():
    """Why the gradient is dense: AdamW's running mean and decay move a row whose piece is not in the batch."""
    w = torch.nn.Parameter(numbers(5, H) + 0.5)
    optimizer = AdamW([w], lr=0.01, weight_decay=0.1)
    start = w.detach().clone()
    for ids in ([1, 3], [3, 3]):
        ids = torch.tensor(ids)
        before = w.detach().clone()
        w.grad = ops.embedding_backward(numbers(2, H, seed=4), (ids, w.shape))
        optimizer.step()
    assert bool((w.grad[1] == 0).all()) and float((w.detach() - before)[1].abs().min()) > 1e-3    # running mean
    torch.testing.assert_close(w.detach()[2], start[2] * (1 - 0.01 * 0.1) ** 2, rtol=1e-13, atol=0)     # decay alone


# ------------------------------------------------------------------------------------------------------- dropout


@pytest.fixture
def every_lane(monkeypatch):
    """A generator in place of Philox for 2^16 mask entries: entry number u is decided by the bits of u.

    So each of the 2^16 values comes once, and shares become exact. First it gives every high byte 256 times. The 256
    entries that have t's high byte ask for more, in order, and get the low bytes 0 to 255.
    """
    class Every:
        def __init__(self, key, counter):
            self.asked = iter([np.repeat(np.arange(256), 256), np.arange(256)])

        def random_raw(self, count):
            given = next(self.asked).astype(np.uint8).view("<u8")
            assert count == len(given)
            return given

    monkeypatch.setattr(np.random, "Philox", Every)
    return lambda p: DropoutMasks(3, 8)(0, (LANES,), p, torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("p", [0.1, 0.37, 0.5, 0.9, 1e-5, 0.0])
def test_the_share_dropped_is_p_to_the_nearest_2_to_the_minus_16_DROP_5_DROP_6(every_lane, p):
    """Counted over all lanes, not estimated: no number of 65,536 is nearer to p than the one dropped."""
    dropped = int((every_lane(p) == 0).sum())
    assert abs(Fraction(dropped, LANES) - Fraction(p)) <= Fraction(1, 2 * LANES)


def test_p_just_below_1_keeps_one_lane_of_65536_DROP_2_DROP_5(every_lane):
    mask = every_lane(1 - 2.0 ** -30)
    assert sorted(mask.tolist())[-2:] == [0.0, float(LANES)]


def test_the_highest_lanes_are_kept_DROP_6_DROP_8(every_lane):
    """0.1 drops the lowest 6,554."""
    assert every_lane(0.1).tolist() == [0.0] * 6554 + [LANES / (LANES - 6554)] * (LANES - 6554)


def test_two_bytes_decide_as_16_bits_do_for_every_high_and_every_low_byte_of_t_DROP_6_DROP_8(every_lane):
    """All 2^16 values of u, for 2,032 values of t: four low bytes under each high one, and the other way round."""
    some = (0, 1, 154, 255)
    thresholds = {256 * a + b for a, b in [*itertools.product(range(256), some), *itertools.product(some, range(256))]}
    u = torch.arange(LANES)
    assert [t for t in sorted(thresholds) if not torch.equal(every_lane(t / LANES) != 0, u >= t)] == []


@pytest.mark.parametrize("t", [6554, 1, 255, 256, 200 * 256 + 3, 2 ** 16 - 1])
def test_the_low_byte_of_a_tie_brings_the_share_to_t_DROP_7(every_lane, t):
    """Counted over all lanes; a byte is below b in b of 256 cases."""
    high, low = t // 256, t % 256
    claimed = Fraction(high, 256) + Fraction(1, 256) * Fraction(low, 256)     # [DROP-7]
    assert claimed == Fraction(t, LANES) == Fraction(int((every_lane(t / LANES) == 0).sum()), LANES)


@pytest.mark.parametrize("p", [0.1, 0.37, 0.9])
def test_survivors_grow_so_that_the_mean_is_1_DROP_2(every_lane, p):
    mask = every_lane(p)
    survivors = mask[mask != 0]
    assert set(survivors.tolist()) == {float(Fraction(LANES, len(survivors)))}
    assert moments(1.0, mask)[0] == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize("p", [0.1, 0.37, 0.9])
@pytest.mark.parametrize("x", [-2.75, 0.4, 6.0])
def test_expectation_and_variance_of_dropout_DROP_1_DROP_3(every_lane, p, x):
    """Over all lanes, each equally likely: nothing is sampled."""
    mask = every_lane(p)
    rounded = int((mask == 0).sum()) / LANES
    claimed = torch.tensor([x, x * x * rounded / (1 - rounded)], dtype=torch.float64)     # [DROP-3]
    torch.testing.assert_close(torch.tensor(moments(x, mask), dtype=torch.float64), claimed, rtol=1e-13, atol=0)


def moments(x: float, mask: torch.Tensor) -> list[float]:
    """Mean and variance of dropout's output over the entries of a mask, in Python's fractions."""
    out, _ = ops.dropout_forward(torch.full(mask.shape, x, dtype=torch.float64), mask)
    outcomes = [(Fraction(v), n) for v, n in Counter(out.tolist()).items()]
    mean = sum(v * n for v, n in outcomes) / len(mask)
    return [float(mean), float(sum((v - mean) ** 2 * n for v, n in outcomes) / len(mask))]


def test_dropout_multiplies_each_number_by_its_own_mask_DROP_1():
    x, mask = numbers(7, H), DropoutMasks(3, 8)(2, (7, H), P_DROP, numbers(1))
    out, _ = ops.dropout_forward(x, mask)
    slow = [[a * m for a, m in zip(*rows, strict=True)] for rows in zip(x.tolist(), mask.tolist(), strict=True)]
    assert out.tolist() == slow
    assert ops.dropout_forward(x, None) == (x, None) and ops.dropout_backward(x, None) is x


def test_dropout_gradient_by_differences_and_jacobian_DROP_4():
    x, mask, dout = numbers(7, H), DropoutMasks(3, 8)(2, (7, H), P_DROP, numbers(1)), numbers(7, H, seed=5)
    dx = ops.dropout_backward(dout, ops.dropout_forward(x, mask)[1])
    check_gradient(lambda x: (ops.dropout_forward(x, mask)[0] * dout).sum(), (x,), (dx,))
    jacobian = torch.autograd.functional.jacobian(lambda x: ops.dropout_forward(x, mask)[0].flatten(), x)
    torch.testing.assert_close(dx, (jacobian * dout.flatten()[:, None, None]).sum(0), rtol=1e-14, atol=0)
    assert 10 < int((dx == 0).sum()) < 60


def test_a_mask_is_a_function_of_five_numbers_and_nothing_else():
    """(seed, update, micro-batch, process, site): any other draw before or between changes nothing."""
    def draw(numbers_given, site):
        return DropoutMasks(*numbers_given)(site, (5, 7, 11), P_DROP, torch.zeros(()))

    points = list(itertools.product((3, 4), (8, 9), (0, 1), (0, 1), (0, 1)))
    forwards = {point: draw(point[:4], point[4]) for point in points}
    torch.manual_seed(77)
    np.random.seed(77)
    backwards = {point: draw(point[:4], point[4]) for point in reversed(points)}
    assert all(torch.equal(forwards[k], backwards[k]) for k in points)
    assert len({forwards[k].numpy().tobytes() for k in points}) == 32


# ---------------------------------------------------------------------------------------------- the worked example


def test_worked_example_forward_EMB_1_DROP_1_DROP_2():
    """Chapter 01: ids (2, 0, 2, 1), types (0, 0, 1, 1), columns 0 to 3, without LayerNorm.

    (3, 1) + (1, 0) + (0, 1) = (4, 2);  (1, 2) + (1, 0) + (1, 0) = (3, 2);  (3, 1) + (0, 1) + (1, 1) = (4, 3);
    (0, -1) + (0, 1) + (-1, 2) = (-1, 2). p = 3/4: survivors times 1/(1/4) = 4.
    """
    out = worked_example()["out"]
    assert worked_example()["sum"].tolist() == [[4, 2], [3, 2], [4, 3], [-1, 2]]
    assert out.tolist() == [[16, 0], [0, 8], [0, 12], [0, 0]]
    values = DropoutMasks(0, 1)(0, (64,), 0.75, torch.zeros((), dtype=torch.float64)).unique().tolist()
    assert values == [0, 4]


def test_worked_example_backward_EMB_3_DROP_4():
    """Chapter 01: dy = (1, 5), (2, 1), (-3, 2), (1, 1) times the mask is (4, 0), (0, 4), (0, 8), (0, 0).

    Words: 2 stands twice, (4, 0) + (0, 8) = (4, 8); 0 once, (0, 4); 1 was dropped. Types: 0 has the first two,
    (4, 0) + (0, 4) = (4, 4); 1 the last two, (0, 8). Every column stands once.
    """
    example = worked_example()
    dx = ops.dropout_backward(torch.tensor([[1.0, 5], [2, 1], [-3, 2], [1, 1]]), example["mask"])
    assert dx.tolist() == [[4, 0], [0, 4], [0, 8], [0, 0]]
    dwords, dtypes, dpositions = (ops.embedding_backward(dx, cache).tolist() for cache in example["caches"])
    assert dwords == [[0, 4], [0, 0], [4, 8]]
    assert dtypes == [[4, 4], [0, 8]]
    assert dpositions == [[4, 0], [0, 4], [0, 8], [0, 0]]


def test_worked_example_variance_DROP_3(every_lane):
    """Chapter 01: 4 becomes 16 once in four, else 0: mean 16/4 = 4, variance (12² + 3 · 4²)/4 = 48 = 4² · 3."""
    assert moments(4.0, every_lane(0.75)) == [4, 48]


def worked_example() -> dict:
    """The example of the chapter, through ops.py."""
    words, types, positions = (torch.tensor(rows, dtype=torch.float32) for rows in (
        [[1, 2], [0, -1], [3, 1]], [[1, 0], [0, 1]], [[0, 1], [1, 0], [1, 1], [-1, 2]]))
    found = [ops.embedding_forward(torch.tensor(ids), table) for ids, table in (
        ([2, 0, 2, 1], words), ([0, 0, 1, 1], types), ([0, 1, 2, 3], positions))]
    total = sum(rows for rows, _ in found)
    mask = torch.tensor([[4.0, 0], [0, 4], [0, 4], [0, 0]])
    out, mask = ops.dropout_forward(total, mask)
    return {"sum": total, "out": out, "mask": mask, "caches": [cache for _, cache in found]}
