"""Chapter 09: residuals, forks, a whole block and its costs, against autograd and against counting."""
import pytest
import torch
import trajectory
from tiny import shake
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from minibert.core import byhand, ops
from minibert.core.batch import collate
from minibert.core.dropout import DropoutMasks
from minibert.core.kit import Formulas
from minibert.core.model import Block

MASKS = DropoutMasks(7, 11)


@pytest.fixture
def parts():
    """A shaken float64 model, a batch with padding, its hidden states and a gradient from above."""
    model, batches = trajectory.start()
    generator = torch.Generator().manual_seed(8)
    shake(model, seed=9)
    batch = collate(batches[0].features)
    assert not batch.layout.live.all()
    shape = (len(batch.ids), model.bert.config.hidden_size)
    x, dout = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return model, batch, x, dout


def close(mine: torch.Tensor, torchs: torch.Tensor) -> bool:
    return float((mine - torchs).norm()) <= 1e-12 * float(torchs.norm()) and float(torchs.norm()) > 1e-3


def test_a_residual_adds_and_hands_its_gradient_to_both_RES_1_RES_2():
    x, f, dout = (torch.randn(7, 11, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3))
    out, cache = ops.residual_forward(x, f)
    slow = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(x.tolist(), f.tolist(), strict=True)]
    assert out.tolist() == slow
    dx, df = ops.residual_backward(dout, cache)
    assert torch.equal(dx, dout) and torch.equal(df, dout)


@pytest.mark.parametrize("masks", [None, MASKS])
def test_the_backward_of_a_block_is_autograds_BLK_1_BLK_2_BLK_3(parts, masks):
    model, batch, x, dout = parts
    block: Block = model.bert.blocks[1]
    leaf = x.clone().requires_grad_()
    out = block(leaf, batch.layout, masks)
    out.backward(dout)
    with torch.no_grad():
        mine, cache = byhand.block_forward(Formulas(), block, x, batch.layout, masks)
        gradients = byhand.Gradients(block)
        dx = byhand.block_backward(Formulas(), block, dout, cache, gradients)
    assert close(mine, out.detach()) and close(dx, leaf.grad)
    for name, p in block.named_parameters():
        assert "key.bias" in name or close(gradients[name], p.grad), name
    assert len(gradients) == 16


def test_three_maps_read_one_input_and_their_gradients_add_BLK_3(parts):
    """The branch alone, and each of its three ways: with two of the maps cut the third is what is left."""
    model, batch, x, dout = parts
    m = model.bert.blocks[0].attention
    with torch.no_grad():
        _, cache = byhand.mix_forward(Formulas(), m, x, batch.layout, None)
        dmixed = dout @ m.output.weight
        dx = byhand.mix_backward(Formulas(), m, dmixed, cache, byhand.Gradients(m))
        ways = ops.attention_backward(dmixed, cache[1])
        slow = sum(d @ f.weight for d, f in zip(ways, (m.query, m.key, m.value), strict=True))
    leaf = x.clone().requires_grad_()
    m(leaf, batch.layout).backward(dout)
    assert close(dx, leaf.grad) and close(dx, slow)


def test_residual_worked_example_BLK_1_BLK_2_RES_2():
    """Chapter 09: x = 3, w = 2, u = -1/2, loss t²/2.

    s = 3 + 6 = 9, t = 9 - 4.5 = 4.5. dt = 4.5, du = 4.5 · 9 = 40.5, ds = 4.5 - 2.25 = 2.25, dw = 2.25 · 3 = 6.75,
    dx = 2.25 + 4.5 = 6.75 = t (1 + w)(1 + u) = 4.5 · 3 · 0.5.
    """
    x, w, u, none = (torch.tensor([[v]], dtype=torch.float64) for v in (3.0, 2.0, -0.5, 0.0))
    f, first = ops.linear_forward(x, w, none[0])
    s, _ = ops.residual_forward(x, f)
    f, second = ops.linear_forward(s, u, none[0])
    t, _ = ops.residual_forward(s, f)
    assert float(s) == 9 and float(t) == 4.5
    shortcut, df = ops.residual_backward(t, None)
    through, du, _ = ops.linear_backward(df, second)
    ds = shortcut + through
    shortcut, df = ops.residual_backward(ds, None)
    through, dw, _ = ops.linear_backward(df, first)
    assert (float(du), float(ds), float(dw), float(shortcut + through)) == (40.5, 2.25, 6.75, 6.75)


def costs(model, batch) -> tuple[int, int]:
    """Operations of all matrix products of the encoder, forward and backward, as torch counts them."""
    with torch.no_grad():
        gradients = byhand.Gradients(model)
        with FlopCounterMode(display=False) as forward:
            out, caches = byhand.bert_forward(Formulas(), model.bert, batch, MASKS)
        with FlopCounterMode(display=False) as backward:
            byhand.bert_backward(Formulas(), model.bert, torch.ones_like(out), caches, gradients)
    return forward.get_total_flops(), backward.get_total_flops()


def test_operations_of_a_forward_and_a_backward_BLK_4_BLK_5(parts):
    model, batch, _, _ = parts
    c, (B, T) = model.bert.config, batch.layout.shape
    L, H, F, P = c.num_hidden_layers, c.hidden_size, c.intermediate_size, B * T
    forward, backward = costs(model, batch)
    claimed = L * (P * (8 * H ** 2 + 4 * H * F) + 4 * B * T ** 2 * H)         # [BLK-4]
    twice = 2 * claimed                                                       # [BLK-5]
    assert (forward, backward) == (claimed, twice)


def test_numbers_that_a_block_keeps_BLK_6(parts):
    """Every tensor in a block's cache, each storage once, weights not counted."""
    model, batch, x, _ = parts
    c, (B, T) = model.bert.config, batch.layout.shape
    H, F, A = c.hidden_size, c.intermediate_size, c.num_attention_heads
    with torch.no_grad():
        _, cache = byhand.block_forward(Formulas(), model.bert.blocks[0], x, batch.layout, MASKS)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 8 for t in tree_leaves(cache)
                if isinstance(t, torch.Tensor)}
    kept = sum(n for place, n in storages.items() if place not in weights)
    claimed = 10 * H + 2 * F + 2 * A * T + 2                                  # [BLK-6]
    assert kept == B * T * claimed
