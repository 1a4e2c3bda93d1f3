"""The whole network by hand: against autograd and differences, on real weights, over many updates, without a graph."""
import ast
import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import trajectory
from bytorch import LABELS, Untouched, by_autograd
from differences import check_gradient
from refusing import refused
from tiny import shake
from updates import one_update

import minibert
import train
from minibert.core import byhand, ops
from minibert.core.batch import collate
from minibert.core.dropout import DropoutMasks
from minibert.core.heads import TokenHead
from minibert.core.kit import Formulas
from minibert.core.model import Bert, Model
from minibert.core.optim import AdamW
from minibert.engines import ENGINES
from minibert.run.training import Training
from minibert.use.predict import FineTuned

ROOT = Path(__file__).resolve().parents[2]


def assert_equal(mine: dict[str, torch.Tensor], torchs: dict[str, torch.Tensor], tolerance: float) -> None:
    """Each within `tolerance` of torch's, relative to that tensor's norm; key biases, whose gradient is 0, in both
    engines at most 1e-12 of the query bias's (docs/02)."""
    assert mine.keys() == torchs.keys()
    reached = 0
    for name, dw in torchs.items():
        if "key.bias" in name:
            size = torchs[name.replace("key", "query")].norm()
            assert size > 1e-6 and mine[name].norm() <= 1e-12 * size and dw.norm() <= 1e-12 * size, name
        elif "pooler" in name:
            assert not mine[name].any() and not dw.any()
        else:
            assert dw.norm() > 0 and (mine[name] - dw).norm() <= tolerance * dw.norm(), name
            reached += 1
    assert reached > 20


# -------------------------------------------------------------------------------------------------- one gradient


@pytest.fixture
def tiny() -> tuple[Model, list]:
    """A float64 model with no bias 0 and no LayerNorm weight 1, and one list of features."""
    model, batches = trajectory.start()
    return shake(model, seed=6), batches[0].features


@pytest.mark.parametrize("kind", ["rectangle", "ragged"])
@pytest.mark.parametrize("masks", [None, DropoutMasks(3, 5, micro_batch=2)])
@pytest.mark.parametrize("prefix", [None, torch.tensor([3, 5, 2, 6, 4, 7])])
def test_every_gradient_of_the_network_equals_autograds(tiny, kind, masks, prefix):
    model, features = tiny
    batch = collate(features, kind, prefix=prefix)
    loss, torchs = by_autograd(model, batch, masks)
    sums, mine = byhand.loss_and_gradients(model, batch, masks, Untouched())
    assert float(sums["words"]) == pytest.approx(float(loss), rel=1e-13)
    assert_equal(mine, torchs, 1e-12)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_every_activation_trains(tiny, activation):
    model, features = tiny
    config = dataclasses.replace(model.bert.config, hidden_act=activation)
    other = Bert(config, pooler=True).double()
    other.load_state_dict(model.bert.state_dict(), strict=False)
    model = Model(other, model.head)
    batch = collate(features)
    _, torchs = by_autograd(model, batch)
    _, mine = byhand.loss_and_gradients(model, batch, task=Untouched())
    assert_equal(mine, torchs, 1e-12)


def test_the_network_against_central_differences(tiny):
    """Along random directions of all parameters at once, dropout on: the error shrinks as h²."""
    model, features = tiny
    batch, masks, task = collate(features, "ragged"), DropoutMasks(3, 5), Untouched()
    params = [p.detach().clone() for p in model.parameters()]
    _, gradients = byhand.loss_and_gradients(model, batch, masks, task)
    width = 0.02                                   # a step of h moves each number by h · width times a normal

    @torch.no_grad()
    def f(*values):
        for p, value in zip(model.parameters(), values, strict=True):
            p.copy_(value)
        loss = task.loss(model(batch, masks), batch)["words"]
        for p, value in zip(model.parameters(), params, strict=True):
            p.copy_(value)
        return loss

    check_gradient(lambda *z: f(*(p + width * x for p, x in zip(params, z, strict=True))),
                   [torch.zeros_like(p) for p in params], [width * gradients[n] for n, _ in model.named_parameters()])


def test_factors_weigh_the_terms_and_the_sums_do_not_change(tiny):
    model, features = tiny
    batch, task = collate(features), Untouched()
    sums, plain = byhand.loss_and_gradients(model, batch, task=task)
    again, weighed = byhand.loss_and_gradients(model, batch, task=task, factors={"words": 0.25})
    assert torch.equal(sums["words"], again["words"])
    assert all(torch.allclose(0.25 * plain[n], weighed[n], rtol=1e-12, atol=1e-18) for n in plain)


def test_a_tensor_used_twice_gets_both_gradients(tiny):
    model, features = tiny
    model.bert.blocks[1] = model.bert.blocks[0]                               # one block, run twice
    batch = collate(features)
    _, torchs = by_autograd(model, batch)
    _, mine = byhand.loss_and_gradients(model, batch, task=Untouched())
    assert_equal(mine, torchs, 1e-12)


def test_the_backward_ends_at_the_lowest_trained_block(tiny, monkeypatch):
    model, features = tiny
    batch = collate(features)
    model.bert.embeddings.requires_grad_(False)
    model.bert.blocks[0].requires_grad_(False)
    _, torchs = by_autograd(model, batch)
    calls = []
    real = byhand.block_backward
    monkeypatch.setattr(byhand, "block_backward", lambda kit, m, *rest: calls.append(m) or real(kit, m, *rest))
    _, mine = byhand.loss_and_gradients(model, batch, task=Untouched())
    assert calls == [model.bert.blocks[1]] and set(mine) == set(torchs)
    for name, dw in torchs.items():
        if "key.bias" not in name:
            assert (mine[name] - dw).norm() <= 1e-12 * dw.norm(), name


@pytest.mark.parametrize("trained, kept", [("all", 3), ("block 1", 1), ("nothing", 0)])
def test_what_the_backward_will_not_visit_keeps_no_cache(tiny, trained, kept):
    model, features = tiny
    model.bert.requires_grad_(trained == "all")
    model.bert.blocks[1].requires_grad_(trained != "nothing")
    with torch.no_grad():
        _, caches = byhand.bert_forward(Formulas(), model.bert, collate(features), None)
    assert len(caches) == kept
    assert set(byhand.loss_and_gradients(model, collate(features), task=Untouched())[1]) == {
        n for n, p in model.named_parameters() if p.requires_grad}


def test_what_the_loss_does_not_reach_is_0_for_the_caller_and_nothing_for_the_optimizer(tiny_folder):
    bert = minibert.load_bert(tiny_folder)
    head = TokenHead(bert.config, len(LABELS))
    model = Model(bert, head)
    batch = collate(trajectory.start()[1][0].features)
    _, whole = byhand.loss_and_gradients(model, batch, task=Untouched())
    _, reached = byhand.reached_gradients(model, batch, task=Untouched())
    assert set(whole) - set(reached) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert not any(whole[n].any() for n in set(whole) - set(reached))


def test_a_model_without_a_task_is_one_clear_error(tiny):
    model, features = tiny
    with refused("knows no task", "task=", "minibert.load()"):
        byhand.loss_and_gradients(model, collate(features))


def test_a_model_in_bf16_throughout_trains(tiny):
    """Not autocast: weights too. Each gradient has its parameter's dtype and is near the float64 one."""
    model, features = tiny
    batch = collate(features)
    _, exact = byhand.loss_and_gradients(model, batch, task=Untouched())
    _, mine = byhand.loss_and_gradients(model.to(torch.bfloat16), batch, task=Untouched())
    for name, dw in exact.items():
        assert mine[name].dtype == torch.bfloat16
        assert "key.bias" in name or (mine[name].double() - dw).norm() < 0.1 * dw.norm(), name


def test_a_model_of_a_run_folder_brings_its_task(tiny_folder, tiny_data, tmp_path):
    folder = train.train(["--weights", str(tiny_folder), "--data", str(tiny_data), "--output", str(tmp_path / "run"),
                          "--max-steps", "3", "--precision", "fp32", "--max-pieces", "24", "--no-before"])
    model = minibert.load(folder)
    assert isinstance(model, FineTuned)
    examples = model.task.read(tiny_data)["dev"]
    batch = collate(model.double().encode_examples(examples))
    sums, mine = minibert.byhand.loss_and_gradients(model, batch)
    loss, torchs = by_autograd(model, batch, task=model.task)
    assert float(sums["words"]) == pytest.approx(float(loss), rel=1e-12)
    assert set(mine) == {n for n, _ in model.named_parameters()} and any("pooler" in n for n in mine)
    assert_equal(mine, torchs, 1e-11)


# ------------------------------------------------------------------------------------------------- real weights


@pytest.fixture(scope="module")
def minilm() -> Training:
    """A NER run on minilm-l6 with its grown token types that has not begun, in float64."""
    folder = minibert.fetch("minilm-l6", ROOT / "weights")
    run = train.set_up(["--weights", str(folder), "--data", str(ROOT / "data" / "ner"), "--limit", "40", "--precision",
                        "fp32", "--learning-rate", "1e-4"])
    run.model.double()
    return run


@pytest.mark.parametrize("kind, masks", [("rectangle", None), ("ragged", DropoutMasks(1, 2))])
def test_every_gradient_on_real_weights(minilm, kind, masks):
    batch = collate(minilm.features["train"][:6], kind)
    loss, torchs = by_autograd(minilm.model, batch, masks, minilm.task)
    sums, mine = byhand.loss_and_gradients(minilm.model, batch, masks, minilm.task)
    assert float(sums["words"]) == pytest.approx(float(loss), rel=1e-12)
    assert_equal(mine, torchs, 1e-10)
    assert len(mine) == len(torchs) == 103                                    # 5 + 6 · 16 + 2 of the head; no pooler


def test_twenty_steps_by_hand_and_by_autograd(minilm):
    """NER on real weights with dropout, clipping and AdamW, float64, from one start: the same losses to 1e-9."""
    begin = {k: v.clone() for k, v in minilm.model.state_dict().items()}
    losses = {}
    for engine in ("autograd", "by-hand"):
        minilm.model.load_state_dict(begin)
        settings = dataclasses.replace(minilm.settings, gradients=engine, batch_size=6)
        optimizer = train.build_optimizer(minilm.model, ENGINES[engine], settings)
        losses[engine] = []
        for step in range(1, 21):
            numbers = torch.arange(6).numpy() + 6 * (step % 5)
            batches = train.micro_batches(minilm.features["train"], numbers, minilm.task, settings, 0, "cpu")
            loss, _ = one_update(minilm.model, minilm.task, batches, optimizer, minilm.scaler, settings, step, 1e-4)
            losses[engine].append(loss)
    minilm.model.load_state_dict(begin)
    assert losses["by-hand"] == pytest.approx(losses["autograd"], rel=0, abs=1e-9)
    assert losses["autograd"][-1] < 0.6 * losses["autograd"][0]               # it did learn, so weights did move


# ------------------------------------------------------------------------------------------------ over many updates


# printed by tests/tools/trajectory.py
LOSSES = [2.307220470556571, 3.061155101333483, 2.516829363920071, 2.3170636570470697, 2.1685726517726653,
          2.3239427359723224, 2.1437126920470515, 1.9757947097833983, 2.1063638069893282, 1.900711063880439]


def test_ten_losses_of_a_tiny_model():
    """By hand with our AdamW, against ten numbers that torch alone made: a wrong gradient shows in the second."""
    model, batches = trajectory.start()
    optimizer = AdamW(model.parameters(), trajectory.LR, weight_decay=trajectory.DECAY)
    for step, (batch, wanted) in enumerate(zip(batches, LOSSES, strict=True), 1):
        count = float((batch.labels >= 0).sum())
        sums, gradients = byhand.loss_and_gradients(model, batch, DropoutMasks(trajectory.SEED, step), Untouched(),
                                                    {"words": 1 / count})
        assert float(sums["words"]) / count == pytest.approx(wanted, rel=1e-10), step
        for name, p in model.named_parameters():
            p.grad = gradients[name]
        optimizer.step()


@pytest.mark.parametrize("precision, close", [("fp32", 1e-5), ("bf16", 0.03)])
def test_a_run_by_hand_gives_the_losses_and_scores_of_autograd(tiny_folder, tiny_data, tmp_path, precision, close):
    found = {}
    for engine in ("autograd", "by-hand"):
        folder = train.train(["--weights", str(tiny_folder), "--data", str(tiny_data), "--output",
                              str(tmp_path / engine), "--max-steps", "50", "--batch-size", "7", "--accumulate", "3",
                              "--learning-rate", "3e-3", "--precision", precision, "--max-pieces", "24", "--no-before",
                              "--gradients", engine])
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[engine] = ([x["loss"] for x in lines if "loss" in x], json.loads((folder / "metrics.json").read_text()))
    (a, scores_a), (b, scores_b) = found.values()
    assert len(a) == 50 and a[-1] < 0.5 * a[0]
    assert b == pytest.approx(a, abs=close)
    assert scores_b["test"]["entity"]["f1"] == pytest.approx(scores_a["test"]["entity"]["f1"], abs=0.03)


# ---------------------------------------------------------------------------------------------- without autograd


def test_training_by_hand_never_records_a_graph(tiny_folder, tiny_data, tmp_path, monkeypatch):
    """Grad mode is off in every operation of the run, nothing has a grad_fn, and no backward of torch is called."""
    def forbidden(*_, **__):
        raise AssertionError("autograd was called")

    seen = Counter()

    def watched(f):
        def inner(*arguments):
            result = f(*arguments)
            tensors = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
            assert not torch.is_grad_enabled() and all(t.grad_fn is None for t in tensors), f.__name__
            seen[f.__name__] += len(tensors)
            return result
        return inner

    monkeypatch.setattr(torch.Tensor, "backward", forbidden)
    monkeypatch.setattr(torch.autograd, "backward", forbidden)
    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    for name, f in list(vars(ops).items()):
        if name.endswith(("_forward", "_backward")):
            monkeypatch.setattr(ops, name, watched(f))
    for name, pair in ops.ACTIVATIONS.items():                                # these were taken before the patch
        monkeypatch.setitem(ops.ACTIVATIONS, name, tuple(map(watched, pair)))
    monkeypatch.setattr(train, "accumulate", watched_update(train.accumulate))
    arguments = ["--weights", str(tiny_folder), "--data", str(tiny_data), "--max-steps", "3", "--precision", "fp32",
                 "--max-pieces", "24", "--gradients"]
    folder = train.train([*arguments, "by-hand", "--output", str(tmp_path / "run")])
    assert {"gelu_forward", "gelu_backward", "attention_backward", "layernorm_backward", "linear_backward"} <= set(seen)
    assert seen.total() > 300 and (folder / "metrics.json").is_file()
    with pytest.raises(AssertionError, match="embedding_forward"):        # and both guards do bite
        train.train([*arguments, "autograd", "--output", str(tmp_path / "other")])
    with pytest.raises(AssertionError, match="autograd was called"):
        torch.ones(5, requires_grad=True).sum().backward()


def watched_update(f):
    """accumulate() that looks at every gradient it left behind."""
    def inner(engine, *rest):
        loss = f(engine, *rest)
        grads = [p.grad for p in engine.model.parameters() if p.grad is not None]
        assert isinstance(loss, float) and len(grads) > 20
        assert all(g.grad_fn is None and not g.requires_grad for g in grads)
        return loss
    return inner


FORBIDDEN = {"autograd", "func", "enable_grad", "set_grad_enabled", "requires_grad_", "grad_fn", "vjp", "jvp", "grad",
             "jacrev", "jacfwd", "jacobian", "hessian", "linearize", "_C", "aten", "register_hook"}
OURS = ("ops.", "task.", "model.head.", "kit.", "self.", "super().")


def uses_autograd(source: str) -> list[str]:
    """Every use of torch's differentiation in a source: forbidden names, any foreign name with "backward" in it, and
    any import from torch but Tensor and nn."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            foreign = "backward" in node.attr and (not whole.startswith(OURS) or node.attr == "backward")
            if node.attr in FORBIDDEN or foreign or whole == "torch.ops":
                found.append(whole)
            if node.attr == "requires_grad" and isinstance(node.ctx, ast.Store):
                found.append(whole)
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith(("torch.", "functorch"))]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("torch", "functorch"):
            found += [a.name for a in node.names if (node.module, a.name) not in (("torch", "Tensor"), ("torch", "nn"))]
        elif isinstance(node, ast.keyword) and node.arg == "requires_grad":
            found.append("requires_grad=")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in FORBIDDEN | {"backward"}:
            found.append(node.value)                                          # getattr(x, "backward")
    return found


@pytest.mark.parametrize("name", ["ops", "kit", "byhand", "heads"])
def test_no_differentiation_of_torch_in_the_source(name):
    assert uses_autograd((ROOT / "minibert" / "core" / f"{name}.py").read_text("utf-8")) == []


@pytest.mark.parametrize("source", [
    "loss.backward()", "torch.autograd.grad(a, b)", "torch.func.grad(f)", "torch.ops.aten.tanh_backward(g, y)",
    "from torch.func import vjp", "from torch import autograd", "x.requires_grad_()", "getattr(loss, 'backward')()",
    "torch.native_layer_norm_backward(g)", "with torch.enable_grad(): pass", "import torch.func as f",
    "torch._softmax_backward_data(g, p, -1, p.dtype)", "import torch.autograd", "from functorch import jacrev",
    "loss.grad_fn(one)", "x.requires_grad = True", "torch.tensor(1.0, requires_grad=True)",
    "import torch.nn.grad as g"])
def test_the_rule_against_differentiation_can_fail(source):
    assert uses_autograd(source)
