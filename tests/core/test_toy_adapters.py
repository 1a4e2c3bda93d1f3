"""The seams of adaptation: two toys, in a layer before the kit each, that touch no file of the project.

One adds a product of low rank to a linear map, in at most 30 lines; one gives attention further keys and values, in at
most 40. Autograd runs the modules, by-hand and fast run the layers; all three must agree.
"""
import inspect

import pytest
import torch
import torch.nn.functional as F
import trajectory
from bytorch import Untouched, by_autograd
from differences import check_gradient
from refusing import refused
from tiny import shake
from torch import Tensor, nn

from minibert.checkpoints import weights
from minibert.core import ops
from minibert.core.batch import collate
from minibert.core.dropout import DropoutMasks, draw
from minibert.core.model import Attention, Model, attention
from minibert.core.optim import SGD
from minibert.engines import ENGINES
from minibert.engines.fast.engine import Scorer


class LowRank(nn.Linear):
    """y = Wx + b + B(Ax)."""

    def __init__(self, f: nn.Linear, rank: int):
        super().__init__(f.in_features, f.out_features, dtype=f.weight.dtype)
        self.load_state_dict(f.state_dict())
        self.a = nn.Parameter(torch.randn(rank, f.in_features, dtype=f.weight.dtype) / 8)
        self.b = nn.Parameter(torch.randn(f.out_features, rank, dtype=f.weight.dtype) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.a.T @ self.b.T


class LowRankLayer:
    def linear_forward(self, maps, x):
        out = super().linear_forward(maps, x)
        for f, part in zip(maps, out.split([f.out_features for f in maps], 1), strict=True):
            if isinstance(f, LowRank):
                part += x @ f.a.to(x.dtype).T @ f.b.to(x.dtype).T
        return out

    def linear_backward(self, maps, dout, x, gradients):
        dx = super().linear_backward(maps, dout, x, gradients)
        for f, df in zip(maps, dout.split([f.out_features for f in maps], 1), strict=True):
            if isinstance(f, LowRank):
                a, b = f.a.to(x.dtype), f.b.to(x.dtype)
                gradients.add((f.b, df.T @ (x @ a.T)), (f.a, (df @ b).T @ x))
                dx = dx + df @ b @ a
        return dx


class LongerAttention(Attention):
    """Attention whose every query also sees n keys and values that belong to no piece."""

    def __init__(self, m: Attention, n: int):
        nn.Module.__init__(self)
        self.query, self.key, self.value, self.output = m.query, m.key, m.value, m.output
        self.A, self.D, self.p, self.site = m.A, m.D, m.p, m.site
        self.more = nn.Parameter(torch.randn(2, n, m.A * m.D, dtype=m.key.weight.dtype))

    def lengthened(self, k, v, allowed, mask):
        """[B,A,T,D] twice -> [B,A,n+T,D] twice; the further keys are always seen and never dropped."""
        n = self.more.shape[1]
        more = self.heads(self.more.to(k.dtype))[:, None].expand(-1, len(k), -1, -1, -1)   # [2,B,A,n,D]
        seen = None if allowed is None else F.pad(allowed, (n, 0), value=True)
        return torch.cat([more[0], k], 2), torch.cat([more[1], v], 2), seen, mask if mask is None else F.pad(
            mask, (n, 0), value=1.0)

    def forward(self, x, layout, masks=None):
        q, k, v = (self.heads(layout.rows(f(x))) for f in (self.query, self.key, self.value))
        mask = draw(masks, self.site, (*q.shape[:3], k.shape[2]), self.p, q)
        mixed = attention(q, *self.lengthened(k, v, layout.allowed, mask))
        return self.output(layout.pieces(mixed.transpose(1, 2).flatten(2)))


class LongerLayer:
    def attention_forward(self, m, qkv, layout, mask):
        if not isinstance(m, LongerAttention):
            return super().attention_forward(m, qkv, layout, mask)
        q, k, v = (ops.split_heads(x, layout, m.A) for x in qkv.chunk(3, 1))
        mixed, cache = ops.attend_forward(q, *m.lengthened(k, v, layout.allowed, mask))
        return ops.join_heads(mixed, layout), (layout, cache)

    def attention_backward(self, m, dout, cache, gradients):
        if not isinstance(m, LongerAttention):
            return super().attention_backward(m, dout, cache, gradients)
        (layout, cache), n = cache, m.more.shape[1]
        dq, dk, dv = ops.attend_backward(ops.split_heads(dout, layout, m.A), cache)
        gradients.add((m.more, torch.stack([d[:, :, :n].sum(0).transpose(0, 1).flatten(1) for d in (dk, dv)])))
        return torch.cat([ops.join_heads(d, layout) for d in (dq, dk[:, :, n:], dv[:, :, n:])], 1)


def lines(*parts: type) -> int:
    return sum(len([x for x in inspect.getsource(part).splitlines() if x.strip()]) for part in parts)


def test_the_toys_are_small():
    assert lines(LowRank, LowRankLayer) <= 30 and lines(LongerAttention, LongerLayer) <= 40


@pytest.fixture
def batch_and_model() -> tuple[Model, object]:
    model, batches = trajectory.start()
    torch.manual_seed(3)
    return shake(model, seed=6), collate(batches[0].features)


def adapted(model: Model, toy: str) -> Model:
    """One map, or the attention of one block, with a toy in its place."""
    block = model.bert.blocks[1]
    if toy == "low rank":
        block.attention.value, block.feedforward.outer = LowRank(block.attention.value, 7), LowRank(
            block.feedforward.outer, 6)
        model.kit_layers = (LowRankLayer,)
    elif toy == "longer":
        block.attention = LongerAttention(block.attention, 8)
        model.kit_layers = (LongerLayer,)
    else:
        adapted(adapted(model, "low rank"), "longer")
        model.kit_layers = (LowRankLayer, LongerLayer)
    return model


def by_engine(name: str, model: Model, batch, masks, precision: str = "fp32") -> dict[str, Tensor]:
    for p in model.parameters():
        p.grad = None
    ENGINES[name](model, precision)(Untouched(), batch, masks, {"words": 1.0})
    return {n: p.grad.to_dense() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("masks", [None, DropoutMasks(3, 5)])
@pytest.mark.parametrize("toy", ["low rank", "longer", "both"])
def test_all_engines_give_the_gradient_of_the_adapted_network(batch_and_model, toy, masks):
    model, batch = batch_and_model
    plain = model(batch, masks).detach()
    adapted(model, toy)
    assert float((model(batch, masks).detach() - plain).norm()) > 0.02 * float(plain.norm())
    _, wanted = by_autograd(model, batch, masks)
    new = [n for n in wanted if n.endswith((".a", ".b", ".more"))]
    assert len(new) == {"low rank": 4, "longer": 1, "both": 5}[toy]
    for engine in ENGINES:
        found = by_engine(engine, model, batch, masks)
        for name, dw in wanted.items():
            if "key.bias" not in name or (toy != "low rank" and "blocks.1" in name):   # else it is 0: see docs/02
                assert float((found[name] - dw).norm()) <= 1e-12 * float(dw.norm()), (engine, name)
        assert all(float(found[n].norm()) > 1e-3 for n in new)
    with torch.no_grad():
        scores = model(batch)
    assert float((Scorer(model, "fp32")(batch) - scores).norm()) <= 1e-12 * float(scores.norm())


@pytest.mark.parametrize("toy", ["low rank", "longer", "both"])
def test_in_16_bits_the_gradients_are_near_those_of_float64(batch_and_model, toy):
    """A number in bf16 has 8 bits, so one rounding is up to 0.4 %; a gradient comes through some dozens of them."""
    model, batch = adapted(batch_and_model[0], toy), batch_and_model[1]
    _, wanted = by_autograd(model, batch)
    model.float()
    for engine in ENGINES:
        found = by_engine(engine, model, batch, None, "bf16")
        for name in (n for n in wanted if n.endswith((".a", ".b", ".more"))):
            off = float((found[name].double() - wanted[name]).norm() / wanted[name].norm())
            assert 1e-4 < off < 0.05, (engine, name, off)                      # not 0: it really was bf16


@pytest.mark.parametrize("toy", ["low rank", "longer"])
def test_their_gradients_by_differences(batch_and_model, toy):
    model, batch = adapted(batch_and_model[0], toy), batch_and_model[1]
    named = {n: p for n, p in model.named_parameters() if n.endswith((".a", ".b", ".more"))}
    found, part = by_engine("by-hand", model, batch, None), {"low rank": 64, "longer": 2}[toy]

    def loss(*values):
        for p, value in zip(named.values(), values, strict=True):
            p.data = value / part                  # the more the loss bends, the shorter the steps
        return Untouched().loss(model(batch), batch)["words"]

    with torch.no_grad():
        check_gradient(loss, [part * p.data for p in named.values()], [found[n] / part for n in named])


@pytest.mark.parametrize("engine", ENGINES)
def test_an_adapter_learns_alone(batch_and_model, engine):
    """Everything else is frozen, and stays."""
    model, batch = adapted(batch_and_model[0], "low rank"), batch_and_model[1]
    for n, p in model.named_parameters():
        p.requires_grad_(n.endswith((".a", ".b")))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    derive, losses = ENGINES[engine](model, "fp32"), []
    for _ in range(6):
        optimizer.zero_grad()
        losses.append(float(derive(Untouched(), batch, None, {"words": 1.0})["words"]))
        optimizer.step()
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(p, before[n]) is not n.endswith((".a", ".b")) for n, p in model.named_parameters())


@pytest.mark.parametrize("toy", ["low rank", "longer"])
def test_what_an_adaptation_adds_is_saved_and_loaded(batch_and_model, tmp_path, toy):
    """Under its own name beside the published ones; another library passes over it, and here it may not be missing."""
    model, batch = batch_and_model
    (tmp_path / "plain").mkdir()
    (tmp_path / "adapted").mkdir()
    weights.save(tmp_path / "plain", model.bert, model.head)
    adapted(model, toy).float()
    weights.save(tmp_path / "adapted", model.bert, model.head)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    new = {n for n in before if n.endswith((".a", ".b", ".more"))}
    names = {name for name, _, _ in weights.read_tensors(tmp_path / "adapted")}
    assert new and {f"added.{n.removeprefix('bert.')}" for n in new} <= names

    with torch.no_grad():
        for p in model.parameters():
            p.mul_(-1.5)
    weights.load_into(tmp_path / "adapted", model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    with refused(str(tmp_path / "plain"), "added.blocks.1", "missing"):
        weights.load_into(tmp_path / "plain", model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())          # nothing half-loaded
    bert, report = weights.load(tmp_path / "adapted")
    assert len(report.ignored) and torch.equal(bert.embeddings.word.weight, model.bert.embeddings.word.weight)
