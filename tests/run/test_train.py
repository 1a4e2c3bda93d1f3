"""train.py as a whole: exact accumulation, the run folder, reproducibility, and what gets a clear error."""
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from refusing import refused
from scripted import scripted
from updates import accumulate, one_update

import train
from minibert.checkpoints import hub, weights
from minibert.checkpoints.weights import random_bert
from minibert.core.batch import Feature, collate
from minibert.core.config import BertConfig
from minibert.core.model import Model, initialise
from minibert.core.optim import SGD, lr_at
from minibert.core.precision import LossScaler
from minibert.errors import MinibertError
from minibert.run.folder import RunFolder
from minibert.run.start import suited_epochs
from minibert.settings import TrainConfig
from minibert.tasks import TASKS
from minibert.tasks.ner import NER

QUICK = ["--epochs", "2", "--batch-size", "7", "--learning-rate", "3e-3", "--precision", "fp32", "--max-pieces", "24",
         "--overlap", "6"]


def run(tiny_folder, tiny_data, output, *more: str) -> Path:
    arguments = ["--weights", str(tiny_folder), "--data", str(tiny_data), "--output", str(output), *QUICK, *more]
    return train.train(arguments)


def updates(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "split" not in line]


def same_weights(a: Path, b: Path) -> bool:
    one, two = ({n: s[...] for n, _, s in weights.read_tensors(f)} for f in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


# ------------------------------------------------------------------------------------------ gradient accumulation


@pytest.fixture
def uneven() -> tuple[Model, NER, list[Feature]]:
    """A float64 model and 32 features of 6 to 16 pieces with 0 to 9 labels each; three have none."""
    task = NER(NER.Options(), ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"])
    config = BertConfig(vocab_size=53, hidden_size=30, num_hidden_layers=2, num_attention_heads=5, intermediate_size=44,
                        max_position_embeddings=19)
    model = Model(random_bert(config, seed=3), task.head(config)).double()
    initialise(model.head, 0.3, seed=4)
    random = np.random.default_rng(5)
    features = []
    for i in range(32):
        T = int(random.integers(6, 17))
        count = 0 if i in (0, 9, 10) else int(random.integers(1, 10))
        picks = np.sort(random.choice(T, min(count, T), replace=False))
        features.append(Feature(i, random.integers(0, 53, T), random.integers(0, 2, T), picks,
                                random.integers(0, 7, len(picks))))
    return model, task, features


def gradient(model, task, features, parts: int, kind: str = "rectangle", **changes):
    settings = TrainConfig(batch_size=32, accumulate=parts, precision="fp32", layout=kind, **changes)
    model.zero_grad()
    batches = train.micro_batches(features, np.arange(32), task, settings, 0, torch.device("cpu"))
    assert len(batches) == parts
    loss = accumulate(model, task, batches, 1.0, settings, step=1)
    return loss, {n: p.grad.to_dense().clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradient(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """To 1e-12 of each tensor's norm. The gradient of a key bias is 0 (it shifts all scores of a query alike, which
    softmax ignores), so what is computed is rounding: it is held to 1e-12 of its query bias instead.
    """
    for name, dw in wanted.items():
        size = wanted[name.replace("key.bias", "query.bias")].norm()
        assert size > 0 and (found[name] - dw).norm() <= 1e-12 * size, name


@pytest.mark.parametrize("parts", [4, 32])
def test_splitting_a_batch_changes_neither_gradient_nor_loss(uneven, parts):
    model, task, features = uneven
    model = without_dropout(model)
    loss, whole = gradient(model, task, features, 1)
    again, split = gradient(model, task, features, parts)
    assert whole.keys() == split.keys() and len(whole) == 39          # 41 parameters without the pooler's two
    assert again == pytest.approx(loss, rel=1e-12)
    assert_same_gradient(split, whole)


def test_more_parts_than_rows_are_a_row_a_part(uneven):
    """Also so many that no list could hold them."""
    model, task, features = uneven
    settings = TrainConfig(batch_size=10 ** 9, accumulate=10 ** 9)
    parts = train.micro_batches(features, np.arange(5), task, settings, 0, torch.device("cpu"))
    assert [b.features for b in parts] == [features[i:i + 1] for i in range(5)]
    assert train.micro_batches(features, np.arange(0), task, settings, 0, torch.device("cpu")) == []


def test_the_objective_is_one_mean_over_all_labels(uneven):
    model, task, features = uneven
    model = without_dropout(model)
    loss, _ = gradient(model, task, features, 4)
    total, count = 0.0, 0
    for f in features:
        scores = model(collate([f])).detach()
        total -= sum(float(scores[j].log_softmax(-1)[label]) for j, label in enumerate(f.labels))
        count += len(f.labels)
    assert loss == pytest.approx(total / count, rel=1e-12)


def test_mean_of_means_would_be_another_gradient(uneven):
    model, task, features = uneven
    model = without_dropout(model)
    _, whole = gradient(model, task, features, 1)
    model.zero_grad()
    for part in np.array_split(np.arange(32), 4):
        batch = collate([features[i] for i in part])
        (task.loss(model(batch), batch)["words"] / task.counts(batch)["words"] / 4).backward()
    difference = max(float((p.grad - whole[n]).norm() / whole[n].norm())
                     for n, p in model.named_parameters() if p.grad is not None)
    assert difference > 0.01


def test_both_layouts_give_one_gradient(uneven):
    model, task, features = uneven
    model = without_dropout(model)
    loss, rectangle = gradient(model, task, features, 4)
    again, ragged = gradient(model, task, features, 4, kind="ragged")
    assert again == pytest.approx(loss, rel=1e-12)
    assert_same_gradient(ragged, rectangle)


def test_an_update_without_any_label_moves_nothing_and_is_finite(uneven):
    model, task, features = uneven
    batches = [collate([features[i] for i in part]) for part in ((0, 9), (10,))]
    loss = accumulate(model, task, batches, 1.0, TrainConfig(precision="fp32"), step=1)
    assert loss == 0.0
    assert all(bool((p.grad.to_dense() == 0).all()) for p in model.parameters() if p.grad is not None)


def test_the_scale_multiplies_the_gradient_and_not_the_loss(uneven):
    model, task, features = uneven
    settings = TrainConfig(precision="fp32")
    found = {}
    for scale in (1.0, 1024.0):
        model.zero_grad()
        loss = accumulate(model, task, [collate(features)], scale, settings, step=2)
        found[scale] = loss, model.head.classifier.weight.grad.clone()
    assert found[1.0][0] == found[1024.0][0]
    assert torch.equal(found[1024.0][1], found[1.0][1] * 1024)


def without_dropout(model: Model) -> Model:
    for m in model.modules():
        if hasattr(m, "p"):
            m.p = 0.0
    return model


# -------------------------------------------------------------------------------------------------- order of steps


class Recorder(SGD):
    """An optimizer that only notes what it was asked."""

    def __init__(self, params):
        super().__init__(params, lr=0.0)
        self.calls = []

    def zero_grad(self):
        self.calls.append("zero")
        super().zero_grad()

    def clip(self, largest):
        self.calls.append("clip")
        return super().clip(largest)

    def set_learning_rate(self, lr):
        self.calls.append("rate")

    def step(self):
        self.calls.append("step")
        self.norm = float(torch.stack([p.grad.norm() for p in self.params if p.grad is not None]).norm())


def test_gradients_are_unscaled_before_the_one_clip(uneven):
    model, task, features = uneven
    batches = [collate(features[:16]), collate(features[16:])]
    settings = TrainConfig(precision="fp32", clip=1e-3)
    optimizer = Recorder(model.parameters())
    scaler = LossScaler(True, scale=2.0 ** 12)
    _, norm = one_update(model, task, batches, optimizer, scaler, settings, step=1, rate=0.1)
    plain = Recorder(model.parameters())
    _, wanted = one_update(model, task, batches, plain, LossScaler(False), settings, step=1, rate=0.1)
    assert optimizer.calls == ["zero", "clip", "rate", "step"]
    assert norm == pytest.approx(wanted, rel=1e-6) and norm > 1e-3
    assert optimizer.norm == pytest.approx(1e-3, rel=1e-6)


def test_an_overflow_skips_the_step_and_lowers_the_scale(uneven):
    model, task, features = uneven
    optimizer, scaler = Recorder(model.parameters()), LossScaler(True, scale=2.0 ** 1000)
    settings = TrainConfig(precision="fp32")
    with torch.no_grad():
        model.head.classifier.weight.mul_(1e30)
    for _ in range(3):
        scaler.scale = float("inf")
        one_update(model, task, [collate(features)], optimizer, scaler, settings, step=1, rate=0.1)
    assert "step" not in optimizer.calls and scaler.skipped == 3


# ---------------------------------------------------------------------------------------------------- a whole run


@pytest.mark.parametrize("engine", ["fast", "by-hand", "autograd"])
def test_weights_that_fp16_cannot_hold_end_the_run_at_the_next_update(tiny_folder, tiny_data, tmp_path, capsys,
                                                                      monkeypatch, engine):
    """The first update breaks them: the loss of the second is no number, which no loss scale can mend."""
    monkeypatch.setattr(train, "LossScaler", functools.partial(LossScaler, scale=16.0))      # no overflow at first
    words = ["--weights", str(tiny_folder), "--data", str(tiny_data), "--output", str(tmp_path / "r"), *QUICK,
             "--precision", "fp16", "--gradients", engine, "--optimizer", "sgd", "--max-steps", "6",
             "--evaluate", "none"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"})
    broken, step = [], SGD.step

    def too_far(self):
        broken.append(1)
        step(self)
        for p in self.params:
            p.mul_(1e20)

    monkeypatch.setattr(SGD, "step", too_far)
    assert train.main(words) == 2
    said = capsys.readouterr()
    error = said.err.strip().splitlines()[-1]
    assert said.out.count("note: this CPU has no products in fp16") == 1
    assert "update 2: the loss is nan" in error and "--precision bf16 or fp32" in error
    assert (tmp_path / "r" / "broken-update-2" / "update.json").is_file() and broken == [1]
    assert [u["step"] for u in updates(tmp_path / "r")] == [1]


@pytest.fixture(scope="module")
def finished(tiny_folder, tiny_data, tmp_path_factory) -> Path:
    return run(tiny_folder, tiny_data, tmp_path_factory.mktemp("runs") / "ner", "--epochs", "12")


def test_a_run_learns(finished):
    losses = [u["loss"] for u in updates(finished)]
    assert np.mean(losses[-9:]) < 0.5 * np.mean(losses[:9])
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["test"]["entity"]["f1"] > metrics["before"]["test"]["entity"]["f1"] + 0.2


def test_the_run_folder_holds_what_the_contract_names(finished, tiny_data):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "train.json",
                 "metrics.jsonl", "metrics.json"):
        assert (finished / name).is_file(), name
    config = json.loads((finished / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"] and "problem_type" in config
    assert config["id2label"]["0"] == "O" and config["label2id"][config["id2label"]["3"]] == 3
    assert config["minibert"]["case_shapes"] and config["type_vocab_size"] == 8
    names = {n for n, _, _ in weights.read_tensors(finished)}
    assert {"classifier.weight", "encoder.layer.1.output.dense.bias"} <= names
    assert [f.name for f in finished.rglob(".*")] == [".lock"]
    assert [f.name for f in (finished / "checkpoints").iterdir()] == ["update-00000108-scored"]


def test_every_update_is_one_line(finished):
    settings = json.loads((finished / "train.json").read_text())
    lines = updates(finished)
    assert [u["step"] for u in lines] == list(range(1, settings["updates"] + 1))
    warmup = int(0.1 * settings["updates"])
    for u in lines:
        assert u.keys() == {"step", "epoch", "loss", "learning_rate", "gradient_norm", "pieces", "seconds"}
        assert u["learning_rate"] == lr_at(u["step"], settings["updates"], warmup, 3e-3)
    everything = map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
    evaluations = [line for line in everything if "split" in line]
    assert [e["epoch"] for e in evaluations] == list(range(1, 13)) and all("loss" not in e for e in evaluations)
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["train"]["pieces"] == sum(u["pieces"] for u in lines)
    assert metrics["train"]["seconds"] == pytest.approx(sum(u["seconds"] for u in lines))
    assert metrics["train"]["steps"] == len(lines)
    assert metrics["dev"].keys() >= {"entity", "tags"}


def test_same_seed_same_bits_whatever_ran_before(tiny_folder, tiny_data, tmp_path):
    a = run(tiny_folder, tiny_data, tmp_path / "a", "--seed", "5")
    torch.rand(17)
    np.random.rand(11)
    b = run(tiny_folder, tiny_data, tmp_path / "b", "--seed", "5")
    c = run(tiny_folder, tiny_data, tmp_path / "c", "--seed", "6")
    losses = [[u["loss"] for u in updates(f)] for f in (a, b, c)]
    assert losses[0] == losses[1] and same_weights(a, b)
    assert losses[0] != losses[2] and not same_weights(a, c)


@pytest.mark.parametrize("steps", [3, 25])
def test_max_steps_is_exact_and_is_the_schedules_total(tiny_folder, tiny_data, tmp_path, steps):
    folder = run(tiny_folder, tiny_data, tmp_path / "r", "--max-steps", str(steps), "--evaluate", "none")
    assert [u["learning_rate"] for u in updates(folder)] == [lr_at(s, steps, steps // 10, 3e-3)
                                                             for s in range(1, steps + 1)]


def test_accumulation_gives_the_same_run(tiny_folder, tiny_data, tmp_path):
    more = ("--dropout", "0", "--evaluate", "none", "--max-steps", "8")
    whole = run(tiny_folder, tiny_data, tmp_path / "a", *more)
    split = run(tiny_folder, tiny_data, tmp_path / "b", *more, "--accumulate", "3")
    assert [u["loss"] for u in updates(split)] == pytest.approx([u["loss"] for u in updates(whole)], rel=1e-4)


def test_the_best_epoch_is_restored_and_patience_ends_the_run(tiny_folder, tiny_data, tmp_path, monkeypatch):
    seen = scripted(monkeypatch, 0.1, 0.7, 0.4, 0.6, 0.9, 0.9)
    folder = run(tiny_folder, tiny_data, tmp_path / "r", "--epochs", "6", "--patience", "2", "--no-before",
                 "--evaluate", "all")
    assert len(seen) == 4                                              # epochs 3 and 4 were no better than 2
    saved, _ = weights.load(folder, head := NER(NER.Options(), labels(folder)).head(BertConfig.read(folder)))
    assert all(torch.equal(t, seen[1]["bert." + n]) for n, t in saved.state_dict().items())
    assert torch.equal(head.classifier.weight, seen[1]["head.classifier.weight"])


@pytest.mark.parametrize("direction, kept", [("max", 2), ("min", 1)])
def test_best_names_another_score_to_choose_by(tiny_folder, tiny_data, tmp_path, monkeypatch, capsys, direction, kept):
    """F1 rises all the time; recall is highest in epoch 3 and lowest in epoch 2."""
    seen, recall = scripted(monkeypatch, 0.1, 0.2, 0.3, 0.4, 0.5), (0.4, 0.2, 0.7, 0.3, 0.6)
    evaluate = train.Run.evaluate

    def instead(self, split):
        found = evaluate(self, split)
        found.scores["entity"]["recall"] = recall[self.at.epoch_in_hand(self.plan) - 1]
        return found

    monkeypatch.setattr(train.Run, "evaluate", instead)
    monkeypatch.setattr(NER, "also_best", {"entity.recall": direction})
    folder = run(tiny_folder, tiny_data, tmp_path / "r", "--epochs", "5", "--best", "entity.recall", "--no-before",
                 "--evaluate", "dev")
    saved, _ = weights.load(folder)
    assert len(seen) == 5 and all(torch.equal(t, seen[kept]["bert." + n]) for n, t in saved.state_dict().items())
    assert f"\ndev entity.recall: {recall[kept]:.3f}\n" in capsys.readouterr().out


def test_a_score_that_cannot_choose(tiny_folder, tiny_data, tmp_path):
    with refused("--best is 'f1'; --task ner can choose by entity.f1, entity.precision"):
        run(tiny_folder, tiny_data, tmp_path / "r", "--best", "f1")
    with refused("--best is entity.f1; it must be left out with --evaluate none"):
        run(tiny_folder, tiny_data, tmp_path / "r", "--best", "entity.f1", "--evaluate", "none")
    assert not (tmp_path / "r").exists()


def test_the_tasks_own_score_by_name_is_no_other_run(tiny_folder, tiny_data, tmp_path, capsys):
    folder = run(tiny_folder, tiny_data, tmp_path / "r", "--max-steps", "2")
    run(tiny_folder, tiny_data, folder, "--max-steps", "4", "--best", "entity.f1", "--resume")
    assert "resumed from update 2" in capsys.readouterr().out
    with refused("best was None, now entity.recall"):
        run(tiny_folder, tiny_data, folder, "--max-steps", "5", "--best", "entity.recall", "--resume")


def test_of_equal_epochs_the_last_is_kept_and_patience_still_ends(tiny_folder, tiny_data, tmp_path, monkeypatch):
    seen = scripted(monkeypatch, *[0.5] * 9)
    folder = run(tiny_folder, tiny_data, tmp_path / "r", "--epochs", "9", "--patience", "2", "--no-before")
    assert len(seen) == 3
    saved, _ = weights.load(folder)
    assert all(torch.equal(t, seen[2]["bert." + n]) for n, t in saved.state_dict().items())


def labels(folder: Path) -> list[str]:
    names = json.loads((folder / "config.json").read_text())["id2label"]
    return [names[str(i)] for i in range(len(names))]


@pytest.mark.parametrize("more", [("--precision", "bf16"), ("--precision", "fp16"), ("--layout", "ragged"),
                                  ("--optimizer", "sgd", "--momentum", "0.8"), ("--no-bias-correction",),
                                  ("--context", "document"), ("--decoding", "argmax"), ("--case-shapes", "off"),
                                  ("--clip", "0"), ("--freeze", "1")])
def test_every_choice_trains_to_a_lower_loss(tiny_folder, tiny_data, tmp_path, more):
    folder = run(tiny_folder, tiny_data, tmp_path / "r", "--max-steps", "40", "--evaluate", "dev", *more)
    losses = [u["loss"] for u in updates(folder)]
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:4])


def test_freezing_the_encoder_trains_the_head_alone(tiny_folder, tiny_data, tmp_path):
    folder = run(tiny_folder, tiny_data, tmp_path / "r", "--freeze", "encoder", "--case-shapes", "off")
    before, after = ({n: s[...] for n, _, s in weights.read_tensors(f)} for f in (tiny_folder, folder))
    assert after.keys() - before.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_without_dev_the_last_epoch_is_kept(tiny_folder, tiny_data, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(next(Path(tiny_data).glob("train.*")), data)
    folder = run(tiny_folder, data, tmp_path / "r")
    assert json.loads((folder / "metrics.json").read_text()).keys() == {"before", "train"}
    assert (folder / "model.safetensors").is_file()
    with pytest.raises(MinibertError, match="--patience is 3.*no dev split"):
        run(tiny_folder, data, tmp_path / "waits", "--patience", "3")
    with pytest.raises(MinibertError, match="--best is entity.f1; .*no dev split"):
        run(tiny_folder, data, tmp_path / "waits", "--best", "entity.f1")
    assert not (tmp_path / "waits").exists()


def test_frozen_embeddings_grow_no_case_shapes(tiny_folder, tiny_data, tmp_path):
    folder = run(tiny_folder, tiny_data, tmp_path / "r", "--freeze", "embeddings", "--max-steps", "1")
    config = json.loads((folder / "config.json").read_text())
    assert config["type_vocab_size"] == 2 and "minibert" not in config
    with pytest.raises(MinibertError, match="--case-shapes is on"):
        run(tiny_folder, tiny_data, tmp_path / "s", "--freeze", "1", "--case-shapes", "on")


def test_the_small_data_is_found_from_any_folder(tiny_folder, tmp_path):
    script = Path(train.__file__).resolve()
    done = subprocess.run([sys.executable, str(script), "--weights", str(tiny_folder), "--limit", "5",
                           "--max-steps", "2", "--evaluate", "none", "--max-pieces", "24"], cwd=tmp_path, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "ner" / "model.safetensors").is_file() and "Traceback" not in done.stderr


def test_the_checkpoints_learning_rate_stands_below_the_command_line(tiny_folder, tiny_data, tmp_path, monkeypatch):
    entry = hub.manifest()["minilm-l6"]
    monkeypatch.setattr(hub, "recommended", lambda folder: entry)
    base = ["--weights", str(tiny_folder), "--data", str(tiny_data), "--max-steps", "1", "--evaluate", "none",
            "--max-pieces", "24", "--overlap", "6"]
    for more, wanted in (([], 2e-4), (["--learning-rate", "1e-3"], 1e-3)):
        folder = train.train([*base, *more, "--output", str(tmp_path / str(wanted))])
        assert json.loads((folder / "train.json").read_text())["learning_rate"] == wanted


def test_the_epochs_that_suit_are_decided_on_rows_and_not_on_texts(tiny_folder, tiny_data):
    """60 texts in windows of 8 pieces are more rows than 100, of 24 pieces fewer."""
    def epochs(*more: str) -> tuple[int, int]:
        t = train.set_up(["--weights", str(tiny_folder), "--data", str(tiny_data), "--cache", "off", "--batch-size",
                          "1", *more])
        return t.settings.epochs, len(t.features["train"])

    few, rows = epochs("--max-pieces", "24", "--overlap", "6")
    assert few == 8 and rows < 100
    many, rows = epochs("--max-pieces", "8", "--overlap", "4")
    assert many == TrainConfig.epochs and rows >= 100
    assert epochs("--max-pieces", "24", "--overlap", "6", "--epochs", "2")[0] == 2
    assert [suited_epochs(TrainConfig(batch_size=2), set(), n).epochs for n in (198, 199)] == [8, TrainConfig.epochs]


def test_unnamed_runs_take_the_next_free_name(tiny_folder, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--weights", str(tiny_folder), "--data", str(tiny_data), "--max-steps", "1", "--evaluate", "none",
                 *QUICK[2:]]
    assert [str(train.train(arguments)) for _ in range(2)] == ["runs/ner", "runs/ner-2"]


# --------------------------------------------------------------------------------------------------- clear errors


@pytest.mark.parametrize("more, says", [
    (("--batch-size", "0"), "--batch-size is 0"), (("--accumulate", "9"), "--accumulate is 9"),
    (("--epochs", "0"), "--epochs is 0"), (("--task", "poetry"), "known: ner"), (("--bogus", "1"), "--bogus"),
    (("--no-whole-words",), "--no-whole-words is an option of --task mlm, not of --task ner"),
    (("--no-hide",), "unrecognized arguments: --no-hide"),
    (("--whole_words",), "unrecognized arguments: --whole_words"),
    (("--beams=2",), "--beams is an option of --task translate, summarize, dialogue, not of"),
    (("--epochs", "many"), "--epochs"), (("--precision", "fp8"), "--precision"),
    (("--freeze", "top"), "--freeze is top"),
    (("--freeze", "77"), "--freeze is 77"), (("--data", "/no/such/folder"), "/no/such/folder"),
    (("--weights", "bert-huge"), "minilm-l6"), (("--max-pieces", "4000"), "--max-pieces is 4000"),
    (("--config", "/no/such.toml"), "/no/such.toml"), (("--learning-rate", "-1"), "--learning-rate is -1"),
    (("--overlap", "20"), "--overlap is 20"), (("--dropout", "1.5"), "--dropout is 1.5")])
def test_a_users_mistake_is_one_line_and_leaves_nothing(tiny_folder, tiny_data, tmp_path, capsys, monkeypatch,
                                                        more, says):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out"
    code = train.main(["--weights", str(tiny_folder), "--data", str(tiny_data), "--output", str(output), *QUICK, *more])
    error = capsys.readouterr().err.strip()
    assert code == 2 and says in error and len(error.splitlines()) == 1 and error.startswith("error: ")
    assert not output.exists()


def test_a_folder_that_holds_a_run_is_refused_and_untouched(finished, tiny_folder, tiny_data, capsys):
    before = {f: f.read_bytes() for f in finished.rglob("*") if f.is_file()}
    code = train.main(["--weights", str(tiny_folder), "--data", str(tiny_data), "--output", str(finished), *QUICK])
    assert code == 2 and str(finished) in capsys.readouterr().err
    assert {f: f.read_bytes() for f in finished.rglob("*") if f.is_file()} == before


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_best(tiny_folder, tiny_data, tmp_path, capsys,
                                                                   monkeypatch):
    loss = NER.loss

    def poisoned(self, scores, batch):
        sums = loss(self, scores, batch)
        return sums if poisoned.calls.pop(0) else {"words": sums["words"] * float("nan")}

    poisoned.calls = [True] * 13 + [False]
    monkeypatch.setattr(NER, "loss", poisoned)
    output = tmp_path / "r"
    code = train.main(["--weights", str(tiny_folder), "--data", str(tiny_data), "--output", str(output), *QUICK])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and "update 14" in error and "nan" in error
    bert, _ = weights.load(output)
    assert all(bool(torch.isfinite(p).all()) for p in bert.parameters())


def test_a_checkpoint_of_another_architecture_is_named(tiny_folder, tiny_data, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "roberta"}))
    code = train.main(["--weights", str(other), "--data", str(tiny_data), "--output", str(tmp_path / "r"), *QUICK])
    assert code == 2 and "roberta" in capsys.readouterr().err


def test_ctrl_c_is_not_a_traceback(tiny_folder, tiny_data, tmp_path, capsys, monkeypatch):
    def interrupted(*a):
        raise KeyboardInterrupt
    monkeypatch.setattr(train, "one_update", interrupted)
    output = tmp_path / "r"
    code = train.main(["--weights", str(tiny_folder), "--data", str(tiny_data), "--output", str(output), *QUICK])
    assert code == 130 and "Traceback" not in capsys.readouterr().err


def test_the_tables_of_tasks_agree():
    for name, kind in TASKS.items():
        assert kind.name == name and "learning_rate" not in kind.defaults


def test_a_stored_head_is_used_only_where_its_labels_are_the_tasks(finished, tiny_data, tmp_path):
    def start(weights_folder: Path, name: str) -> tuple[str, float]:
        folder = train.train(["--weights", str(weights_folder), "--data", str(tiny_data), "--output",
                              str(tmp_path / name), *QUICK, "--max-steps", "1", "--learning-rate", "0", "--seed", "9"])
        before = json.loads((folder / "metrics.json").read_text())["before"]
        return (folder / "log.txt").read_text(), before["test"]["entity"]["f1"]

    reached = json.loads((finished / "metrics.json").read_text())["test"]["entity"]["f1"]
    said, score = start(finished, "same")
    assert "newly initialised" not in said and score == reached
    swapped = tmp_path / "swapped"
    shutil.copytree(finished, swapped)
    config = json.loads((swapped / "config.json").read_text())
    names = config["id2label"]
    names["1"], names["3"] = names["3"], names["1"]
    (swapped / "config.json").write_text(json.dumps(config))
    said, score = start(swapped, "other")
    assert "newly initialised: classifier.weight" in said and score != reached


def test_what_is_printed_is_in_the_log_and_with_verbose_all_of_the_log(tiny_folder, tiny_data, tmp_path, capsys):
    printed, logged = {}, {}
    for name, more in (("few words", ()), ("all", ("--verbose",))):
        folder = run(tiny_folder, tiny_data, tmp_path / "r", *more)
        printed[name] = capsys.readouterr().out
        logged[name] = re.sub(r"^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d ", "", (folder / "log.txt").read_text(), flags=re.M)
        shutil.rmtree(folder)
    assert printed["all"] == logged["all"]
    few = iter(logged["few words"].splitlines())
    assert all(line in few for line in printed["few words"].splitlines())      # in this order
    for text in ("settings: task ner, ", "trained, decayed by 0.01: ", "\ndev, now\n", "\ntest, before\n", "micro avg"):
        assert text in logged["few words"] and text not in printed["few words"]


@pytest.mark.parametrize("kind", ["dangling link", "device"])
def test_an_output_that_is_no_folder_is_one_line(tiny_folder, tiny_data, tmp_path, capsys, kind):
    output = tmp_path / "link"
    output.symlink_to("/nonexistent/folder" if kind == "dangling link" else "/dev/null")
    assert train.main(["--weights", str(tiny_folder), "--data", str(tiny_data), "--output", str(output), *QUICK]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(output) in error and "no folder" in error


def test_case_shapes_cannot_be_taken_away_from_weights_that_have_them(finished, tiny_data, tmp_path, capsys):
    arguments = ["--weights", str(finished), "--data", str(tiny_data), "--output", str(tmp_path / "run"), *QUICK]
    assert train.main([*arguments, "--case-shapes", "off"]) == 2
    assert "--case-shapes" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line_also_while_a_log_is_written(tiny_folder, tiny_data, tmp_path, capsys, monkeypatch):
    def full(self, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "log", full)
    assert train.main(["--weights", str(tiny_folder), "--data", str(tiny_data), "--output", str(tmp_path / "run"),
                       *QUICK]) == 2
    assert "No space left" in capsys.readouterr().err
