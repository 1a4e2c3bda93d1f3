import itertools
import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import nn

from minibert.core.dropout import DropoutMasks
from minibert.core.precision import (
    LossScaler,
    NotFinite,
    autocast,
    precision_notices,
    refuse_not_finite,
    resolve_precision,
)

CPU = torch.device("cpu")
LIKE = torch.zeros((), dtype=torch.float64)
ARGUMENTS = dict(seed=7, update=11, micro_batch=3, process=2)


def draw(site=5, shape=(6, 7, 13), p=0.1, like=LIKE, **changes) -> torch.Tensor:
    return DropoutMasks(**(ARGUMENTS | changes))(site, shape, p, like)


# -------------------------------------------------------------------------------------------------------- pure function


def test_same_arguments_same_bits_whatever_was_drawn_before():
    masks = DropoutMasks(**ARGUMENTS)
    first = masks(5, (6, 7, 13), 0.1, LIKE)
    torch.rand(9)
    np.random.random(9)
    torch.manual_seed(1234)
    for site in (4, 6, 5):
        masks(site, (31,), 0.5, LIKE)
    assert torch.equal(masks(5, (6, 7, 13), 0.1, LIKE), first)
    assert torch.equal(draw(), first)


def test_drawing_leaves_the_global_generators_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    draw()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1]) and np.random.get_state()[2] == states[2]


def test_every_argument_and_every_exchange_of_two_gives_another_mask():
    """3^5 argument tuples, so (update 1, micro-batch 2) also meets (update 2, micro-batch 1): all masks differ."""
    names = ("seed", "update", "micro_batch", "process", "site")
    seen = {draw(shape=(101,), p=0.5, **dict(zip(names, values, strict=True))).numpy().tobytes()
            for values in product(range(3), repeat=5)}
    assert len(seen) == 3 ** 5


def test_neighbouring_seeds_differ_up_to_the_largest():
    large = [2 ** 63 - 1, 2 ** 63 - 2, 2 ** 53 + 1, 2 ** 53]
    assert len({draw(seed=s, shape=(101,), p=0.5).numpy().tobytes() for s in large}) == len(large)


# -------------------------------------------------------------------------------------------------- the bits themselves

ROUND = 0xD2E7470EE14C6C93, 0xCA5A826395121157         # Salmon et al. 2011, table 2: philox4x64
BUMP = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B          # golden ratio and sqrt(3) - 1
LOW = 2 ** 64 - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 in whole numbers: ten rounds of two 64 x 64 -> 128 bit products."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        a, b = ROUND[0] * c[0], ROUND[1] * c[2]
        c = [(b >> 64) ^ c[1] ^ k0, b & LOW, (a >> 64) ^ c[3] ^ k1, a & LOW]
        k0, k1 = (k0 + BUMP[0]) & LOW, (k1 + BUMP[1]) & LOW
    return c


def slow_numbers(count: int, dropped: int) -> tuple[list[int], int]:
    """(16-bit numbers as `draw` decides by them, how many needed their low byte).

    Key (seed, process), counter (block, site, micro-batch, update) with blocks from 1, as numpy counts. Each 64-bit
    number gives eight bytes, lowest first: a high byte for every mask entry; then, from the next whole 64-bit number
    on, a low byte for every entry whose high byte is that of `dropped`. Elsewhere 0 stands for the low byte.
    """
    a = ARGUMENTS
    words = (n for block in itertools.count(1)
             for n in philox([block, 5, a["micro_batch"], a["update"]], [a["seed"], a["process"]]))

    def take(wanted: int) -> list[int]:
        found = []
        while len(found) < wanted:
            n = next(words)
            found += [(n >> 8 * j) & 0xFF for j in range(8)]
        return found[:wanted]

    upper = take(count)
    tied = [i for i, byte in enumerate(upper) if byte == dropped // 256]
    lower = dict(zip(tied, take(len(tied)), strict=True))
    return [256 * byte + lower.get(i, 0) for i, byte in enumerate(upper)], len(tied)


CASES = [((5, 6, 7), 1311), ((5, 6, 7), 6554), ((101,), 6554), ((7, 11, 43), 6554), ((7, 11, 43), 32767),
         ((4096,), 6554),                                       # the high bytes end where a block ends
         ((7, 11, 43), 131), ((4096,), 1),                      # the high byte of t is 0
         ((7, 11, 43), 25 * 256), ((7, 11, 43), 0),             # its low byte is 0
         ((7, 11, 43), 255 * 256), ((7, 11, 43), 2 ** 16 - 1),  # its high byte is 255
         ((3,), 6554), ((0,), 6554)]


@pytest.mark.parametrize("shape, dropped", CASES)
def test_bits_are_philox_with_key_and_counter_as_documented(shape, dropped):
    """Of 65536 numbers the `dropped` lowest."""
    found, _ = slow_numbers(math.prod(shape), dropped)
    scale = 65536 / (65536 - dropped)
    expected = torch.tensor([scale if u >= dropped else 0.0 for u in found], dtype=torch.float64)
    assert torch.equal(draw(shape=shape, p=dropped / 65536), expected.view(shape))


def test_among_these_cases_are_none_and_few_and_many_ties_and_ties_of_either_fate():
    found = {case: slow_numbers(math.prod(case[0]), case[1]) for case in CASES}
    ties = {case: n for case, (_, n) in found.items()}
    assert ties[(5, 6, 7), 1311] == ties[(3,), 6554] == ties[(0,), 6554] == 0
    assert [ties[(7, 11, 43), t] for t in (6554, 131, 255 * 256)] == [13, 16, 6]
    decided = [u >= 6554 for u in found[(7, 11, 43), 6554][0] if u // 256 == 6554 // 256]
    assert len(decided) == ties[(7, 11, 43), 6554] and 2 < sum(decided) < len(decided) - 2


@pytest.mark.parametrize("p", [0.1, 0.37])
def test_the_mask_does_not_depend_on_the_byte_order_of_the_machine(monkeypatch, p):
    """numpy's numbers stored highest byte first, as on a big-endian machine: same values, same mask."""
    expected, true = draw(shape=(7, 11, 43), p=p), np.random.Philox

    class BigEndian:
        def __init__(self, **given):
            self.philox = true(**given)

        def random_raw(self, count):
            return self.philox.random_raw(count).astype(">u8")

    monkeypatch.setattr(np.random, "Philox", BigEndian)
    assert torch.equal(draw(shape=(7, 11, 43), p=p), expected)


# ----------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("p", [0.1, 0.5, 0.02])
def test_share_and_scale_and_expectation(p):
    """n draws: the dropped are binomial, five standard deviations allowed; the mean is 1 in expectation exactly."""
    n = 480_017
    mask = draw(shape=(n,), p=p)
    rounded = round(p * 2 ** 16) / 2 ** 16
    scale = 1 / (1 - rounded)
    assert set(mask.unique().tolist()) == {0.0, scale}
    assert abs(rounded - p) <= 2 ** -17
    zeros = int((mask == 0).sum())
    assert abs(zeros - n * rounded) < 5 * math.sqrt(n * rounded * (1 - rounded))
    assert abs(float(mask.mean()) - 1) < 5 * math.sqrt(rounded / (1 - rounded) / n)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_no_correlation_between_sites_updates_lanes_and_rows(p):
    """Correlation of n independent pairs has standard deviation 1/sqrt(n); five of them allowed."""
    rows, columns = 640, 384
    bound = 5 / math.sqrt(rows * columns)
    base = draw(shape=(rows, columns), p=p)
    others = [draw(shape=(rows, columns), p=p, **{name: value + 1}) for name, value in ARGUMENTS.items()]
    others += [draw(site=s, shape=(rows, columns), p=p) for s in (4, 6, 7)]
    assert max(abs(correlation(base, o)) for o in others) < bound
    flat = base.flatten()
    for lag in (1, 2, 3, 4, 8, 16, 64, columns):
        assert abs(correlation(flat[:-lag], flat[lag:])) < 5 / math.sqrt(len(flat) - lag), lag
    lanes = flat.view(-1, 8).T                                  # eight bytes of a 64-bit number
    for i in range(8):
        assert abs(float(lanes[i].mean()) - 1) < 5 * math.sqrt(p / (1 - p) / lanes.shape[1])
        for j in range(i):
            assert abs(correlation(lanes[i], lanes[j])) < 5 / math.sqrt(lanes.shape[1]), (i, j)


# ------------------------------------------------------------------------------------------------------- shape and type


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 3), (), (0, 5), (7, 0)])
def test_any_shape(shape):
    mask = draw(shape=iter(shape), p=0.5)
    assert mask.shape == torch.Size(shape)
    assert torch.equal(mask.flatten(), draw(shape=(173,), p=0.5)[:mask.numel()])     # t = 2^15: no low byte matters
    assert torch.equal(draw(shape=shape).flatten(), draw(shape=(mask.numel(),)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_device_of_like(dtype):
    mask = draw(like=torch.zeros(3, dtype=dtype))
    assert mask.dtype == dtype and mask.device == CPU
    assert torch.equal(mask != 0, draw() != 0)
    assert draw(like=torch.zeros(3, dtype=dtype, device="meta")).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_product_of_bits_is_the_product_of_floats(dtype):
    """To the bit, where the scale is rounded, and where it overflows: 2^16 is more than fp16 holds."""
    for dropped in (*range(0, 2 ** 16, 331), 2 ** 16 - 2, 2 ** 16 - 1):
        mask = draw(shape=(7, 11, 43), p=dropped / 2 ** 16, like=torch.zeros((), dtype=dtype))
        kept = draw(shape=(7, 11, 43), p=dropped / 2 ** 16) != 0
        expected = kept.to(dtype) * (2 ** 16 / (2 ** 16 - dropped))
        assert mask.dtype == dtype and torch.equal(mask.view(torch.uint8), expected.view(torch.uint8)), dropped


def test_p_zero_keeps_everything():
    """Of 480 000 16-bit numbers about seven are the lowest there is: it is kept too."""
    assert torch.equal(draw(shape=(480_000,), p=0.0), torch.ones(480_000, dtype=torch.float64))


# --------------------------------------------------------------------------------------------------------- loss scaling


def test_loss_scaler_follows_its_table():
    """interval 3 from 64: three good updates double, an overflow halves, is counted, and starts the counting anew."""
    scaler = LossScaler(enabled=True, scale=64.0, interval=3)
    table = [(True, 64, 0), (True, 64, 0), (True, 128, 0), (True, 128, 0), (True, 128, 0), (False, 64, 1),
             (True, 64, 1), (True, 64, 1), (False, 32, 2), (False, 16, 3), (True, 16, 3), (True, 16, 3),
             (True, 32, 3), (True, 32, 3)]
    for line, (finite, scale, skipped) in enumerate(table):
        scaler.update(finite)
        assert (scaler.scale, scaler.skipped) == (scale, skipped), line


def test_disabled_scaler_stays_at_one_and_never_objects():
    scaler = LossScaler(enabled=False, scale=64.0, interval=2)
    p = nn.Parameter(torch.zeros(7))
    p.grad = torch.tensor([1.0, math.inf, math.nan, 4.0, 5.0, 6.0, 7.0])
    assert scaler.scale == 1.0
    assert scaler.unscale([p]) and p.grad[3:].tolist() == [4.0, 5.0, 6.0, 7.0]
    for finite in (True, True, False, True, True):
        scaler.update(finite)
        assert (scaler.scale, scaler.skipped) == (1.0, 0)


def gradients_of(*values: list[float]) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.zeros(len(v))) for v in values]
    for p, v in zip(params, values, strict=True):
        p.grad = torch.tensor(v)
    return [*params, nn.Parameter(torch.zeros(5))]              # the last has no gradient


def test_unscale_divides_every_gradient_once_in_place():
    params = gradients_of([64.0, -128.0, 1.0], [0.0, 32.0])
    first = params[0].grad
    scaler = LossScaler(enabled=True, scale=64.0)
    assert scaler.unscale(iter(params)) is True
    assert first is params[0].grad
    assert params[0].grad.tolist() == [1.0, -2.0, 1 / 64] and params[1].grad.tolist() == [0.0, 0.5]
    assert params[2].grad is None and scaler.scale == 64.0


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_unscale_finds_one_bad_number_among_many(bad, scale):
    scaler = LossScaler(enabled=True, scale=scale)
    assert scaler.unscale(gradients_of([1.0, 2.0], [3.0, 4.0, bad])) is False
    assert scaler.unscale(gradients_of([bad, 2.0], [3.0, 4.0])) is False
    assert scaler.unscale(gradients_of([1.0, 2.0], [3.0, 4.0])) is True


@pytest.mark.parametrize("loss", [0.7, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("norm", [2.0, math.inf, math.nan])
@pytest.mark.parametrize("scaled", [True, False])
def test_only_a_gradient_may_overflow_and_only_where_there_is_a_scale(loss, norm, scaled):
    fine = loss == 0.7 and (norm == 2.0 or scaled)
    try:
        refuse_not_finite(loss, norm, LossScaler(scaled, scale=2.0 ** -23))
    except NotFinite as e:
        assert not fine and f"the loss is {loss}" in str(e) and ("--precision bf16" in str(e)) == scaled
    else:
        assert fine
    if loss == 0.7 and norm != 2.0:
        with pytest.raises(NotFinite, match="overflow at every loss scale" if scaled else "the gradient norm"):
            refuse_not_finite(loss, norm, LossScaler(scaled, scale=2.0 ** -24))


# ----------------------------------------------------------------------------------------------------- choice of format


@pytest.mark.parametrize("capabilities, chosen", [
    ({"avx512_bf16": True, "amx_bf16": False}, "bf16"), ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
    ({"avx512_f": True, "avx2": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"), ({"neon": True}, "fp32")])
def test_auto_on_a_cpu(monkeypatch, capabilities, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", CPU) == chosen
    assert [resolve_precision(p, CPU) for p in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]


@pytest.mark.parametrize("capabilities, slow", [
    ({"architecture": "x86_64", "avx512_fp16": False, "amx_fp16": False, "avx512_bf16": True}, True),
    ({"architecture": "x86_64", "avx512_fp16": True, "amx_fp16": False}, False),
    ({"architecture": "x86_64", "avx512_fp16": False, "amx_fp16": True}, False),
    ({"architecture": "aarch64", "neon": True}, False)])
def test_fp16_on_a_cpu_that_has_none_is_told(monkeypatch, capabilities, slow):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    told = precision_notices("fp16", CPU)
    assert len(told) == slow and all("--precision fp32" in notice for notice in told)
    assert not precision_notices("fp32", CPU) + precision_notices("bf16", CPU)
    assert not precision_notices("fp16", torch.device("cuda", 0))


def test_torch_knows_the_names_of_fp16_on_this_kind_of_cpu():
    can = torch.cpu.get_capabilities()
    assert can.get("architecture") != "x86_64" or {"avx512_fp16", "amx_fp16"} <= can.keys()


@pytest.mark.parametrize("supported, chosen", [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_gpu(monkeypatch, supported, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not supported})
    assert resolve_precision("auto", torch.device("cuda", 0)) == chosen


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16),
                                              ("fp32", torch.float32)])
def test_autocast_multiplies_in_the_chosen_format(precision, dtype):
    g = torch.Generator().manual_seed(2)
    linear, x = nn.Linear(11, 7), torch.randn(5, 11, generator=g)
    with autocast(precision, CPU):
        y = linear(x)
        product = x @ x.T
    assert y.dtype == product.dtype == dtype and linear.weight.dtype == torch.float32
    exact = x.double() @ x.double().T
    rounded = x.to(dtype).double() @ x.to(dtype).double().T     # what the format alone does to the factors
    error = (product.double() - exact).abs().max()
    assert error > 0.1 * torch.finfo(dtype).eps * exact.abs().max() or precision == "fp32"
    torch.testing.assert_close(product.double(), rounded, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    y.float().sum().backward()
    assert linear.weight.grad.dtype == torch.float32


def test_autocast_ends_with_its_block():
    x = torch.ones(5, 6)
    with autocast("bf16", CPU):
        with autocast("fp32", CPU):
            assert (x @ x.T).dtype == torch.float32
        assert (x @ x.T).dtype == torch.bfloat16
    assert (x @ x.T).dtype == torch.float32


def test_masks_of_one_update_do_not_repeat_from_site_to_site():
    """A block's counter never runs into the next site's: long masks of neighbouring sites share no stretch."""
    masks = [draw(site=s, shape=(4096,), p=0.5) for s in range(4)]
    windows = [{m[i:i + 64].numpy().tobytes() for i in range(0, 4096 - 63, 4)} for m in masks]
    assert all(not (a & b) for a, b in pairwise(windows))


def test_p_just_below_one_keeps_almost_nothing_and_divides_by_no_zero():
    mask = DropoutMasks(3, 5)(0, (400, 500), 0.9999999, torch.zeros(()))
    assert bool(torch.isfinite(mask).all()) and float((mask == 0).double().mean()) > 0.999
