"""train.py interrupted: whatever ends a run, --resume goes on to the same bits, and says what it does."""
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torture
from scripted import scripted

import train
from minibert.checkpoints import weights
from minibert.checkpoints.labels import read_labels
from minibert.core.model import Model
from minibert.core.optim import AdamW
from minibert.engines.fast.adamw import FusedAdamW
from minibert.errors import MinibertError
from minibert.run import checkpoint, resume
from minibert.run import folder as runfolder
from minibert.run.stopping import STOPPED, Stopped, StopRequest
from minibert.tasks.conll import Example
from minibert.tasks.ner import NER
from minibert.use import predict
from minibert.use.evaluate import predict_examples

UPDATES = 27                                       # three epochs of nine


class Killed(BaseException):
    """Stands for the end of the process: nothing in the program catches it."""


def arguments(tiny_folder, tiny_data, output, *more: str) -> list[str]:
    return ["--weights", str(tiny_folder), "--data", str(tiny_data), "--output", str(output), "--epochs", "3",
            "--batch-size", "7", "--learning-rate", "3e-3", "--precision", "fp32", "--max-pieces", "24", "--overlap",
            "6", "--no-before", "--cache", "off", "--save-every", "4", *more]


def at_update(monkeypatch, number: int, act) -> None:
    """Do act() once, at the beginning of the update of this number."""
    accumulate, waiting = train.accumulate, [number]

    def interrupted(*a):
        if waiting and a[4] == waiting[0]:
            waiting.clear()
            act()
        return accumulate(*a)

    monkeypatch.setattr(train, "accumulate", interrupted)


def kill() -> None:
    raise Killed


def killed_at(update: int, command: list[str]) -> None:
    """Train until the beginning of that update."""
    with pytest.MonkeyPatch.context() as m:
        at_update(m, update, kill)
        with pytest.raises(Killed):
            train.train(command)


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without the clock."""
    read = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read]


def assert_same_run(a: Path, b: Path) -> None:
    assert torture.same_weights(a, b)
    assert lines(a) == lines(b)
    one, two = (json.loads((f / "metrics.json").read_text()) for f in (a, b))
    assert {k: one[k] for k in ("dev", "test")} == {k: two[k] for k in ("dev", "test")}
    assert one["train"]["pieces"] == two["train"]["pieces"] and one["train"]["steps"] == two["train"]["steps"]


VARIANTS = {"fast fp32": (), "fast bf16": ("--precision", "bf16"), "by-hand fp32": ("--gradients", "by-hand"),
            "autograd fp32": ("--gradients", "autograd"), "autograd bf16": ("--gradients", "autograd", "--precision",
                                                                            "bf16"),
            "autograd fp16": ("--gradients", "autograd", "--precision", "fp16"),
            "sgd": ("--optimizer", "sgd", "--learning-rate", "0.05"), "micro-batches": ("--accumulate", "3"),
            "max steps": ("--max-steps", "25"), "without dev": ("--evaluate", "none"),
            "patience": ("--patience", "1", "--learning-rate", "1e-6")}
untouched: dict[str, Path] = {}


@pytest.fixture
def reference(tiny_folder, tiny_data, tmp_path_factory):
    """name -> the folder of the variant's run that nobody interrupted."""
    def run(name: str) -> Path:
        if name not in untouched:
            output = tmp_path_factory.mktemp("untouched") / "run"
            untouched[name] = train.train(arguments(tiny_folder, tiny_data, output, *VARIANTS[name]))
        return untouched[name]
    return run


@pytest.mark.parametrize("update", range(1, UPDATES + 1))
def test_killed_at_any_update_it_ends_with_the_same_bits(tiny_folder, tiny_data, tmp_path, reference, capsys, update):
    command = arguments(tiny_folder, tiny_data, tmp_path / "r")
    killed_at(update, command)
    capsys.readouterr()
    train.train([*command, "--resume"])
    saved = (update - 1) // 4 * 4
    assert (f"resumed from update {saved}\n" if saved else "starting anew") in capsys.readouterr().out
    assert_same_run(tmp_path / "r", reference("fast fp32"))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_run_ends_with_the_same_bits(tiny_folder, tiny_data, tmp_path, reference, name):
    command = arguments(tiny_folder, tiny_data, tmp_path / "r", *VARIANTS[name])
    (tmp_path / "r").mkdir()
    total = lines(reference(name))[-1]["step"]
    for update in (6, 11, 14, 24):                 # in the first epoch, after its end, in the second and the third
        if update <= total:
            killed_at(update, [*command, "--resume"])
    train.train([*command, "--resume"])
    if name == "without dev":
        assert torture.same_weights(tmp_path / "r", reference(name)) and lines(tmp_path / "r") == lines(reference(name))
    else:
        assert_same_run(tmp_path / "r", reference(name))


def test_killed_while_an_epoch_is_scored(tiny_folder, tiny_data, tmp_path, reference, monkeypatch):
    command = arguments(tiny_folder, tiny_data, tmp_path / "r", "--save-every", "9")    # a save just before scoring
    (tmp_path / "r").mkdir()
    for number in (1, 2, 3, 4):                    # 4: the test set, after all updates
        with monkeypatch.context() as m:
            m.setattr(train.Run, "evaluate", lambda self, split: kill())
            with pytest.raises(Killed):
                train.train([*command, "--resume"])
        with monkeypatch.context() as m:
            if number < 3:
                at_update(m, 9 * number + 1, kill)
                with pytest.raises(Killed):
                    train.train([*command, "--resume"])
    train.train([*command, "--resume"])
    assert_same_run(tmp_path / "r", reference("fast fp32"))


def test_a_damaged_checkpoint_costs_updates_and_nothing_else(tiny_folder, tiny_data, tmp_path, reference, capsys):
    command = arguments(tiny_folder, tiny_data, tmp_path / "r")
    killed_at(15, command)
    file = tmp_path / "r" / "checkpoints" / "update-00000012" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    train.train([*command, "--resume"])
    said = capsys.readouterr().out
    assert "resumed from update 8\n" in said and f"{file.parent}: passed over" in said
    assert "optimizer.safetensors is not as it was written" in said
    assert_same_run(tmp_path / "r", reference("fast fp32"))
    assert (tmp_path / "r" / "checkpoints" / "update-00000012-damaged").is_dir()


def test_the_best_model_comes_back_with_the_checkpoint(tiny_folder, tiny_data, tmp_path, monkeypatch):
    seen, command = scripted(monkeypatch, 0.9, 0.1, 0.1), arguments(tiny_folder, tiny_data, tmp_path / "r")
    killed_at(17, command)
    (tmp_path / "r" / "model.safetensors").unlink()
    train.train([*command, "--resume"])
    bert, _ = weights.load(tmp_path / "r")
    assert all(bool((t == seen[0]["bert." + n]).all()) for n, t in bert.state_dict().items())


# -------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(tiny_folder, tiny_data, tmp_path, reference,
                                                                 monkeypatch, capfd, number, name):
    command = arguments(tiny_folder, tiny_data, tmp_path / "r", "--save-every", "90m")
    with monkeypatch.context() as m:
        at_update(m, 11, lambda: os.kill(os.getpid(), number))
        assert train.main(command) == STOPPED == 75
    said = capfd.readouterr()
    assert f"{name}: finishing this update" in said.err
    assert f"stopped by {name} after update 11" in said.out and f"--resume --output {tmp_path / 'r'}" in said.out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and lines(tmp_path / "r")[-1]["step"] == 11
    assert train.main([*command, "--resume"]) == 0
    assert "resumed from update 11\n" in capfd.readouterr().out
    assert_same_run(tmp_path / "r", reference("fast fp32"))


def test_asked_while_an_epoch_is_scored_it_does_not_wait(tiny_folder, tiny_data, tmp_path, reference, monkeypatch):
    command, evaluate = arguments(tiny_folder, tiny_data, tmp_path / "r"), train.evaluate_split

    def asked(score, examples, features):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    (tmp_path / "r").mkdir()
    for _ in range(2):                             # the same end of an epoch again
        with monkeypatch.context() as m:
            m.setattr(train, "evaluate_split", asked)
            assert train.main([*command, "--resume"]) == STOPPED
    assert evaluate is train.evaluate_split and lines(tmp_path / "r")[-1]["step"] == 9
    assert train.main([*command, "--resume"]) == 0
    assert_same_run(tmp_path / "r", reference("fast fp32"))


def test_asked_before_the_first_update_there_is_nothing_to_save(tiny_folder, tiny_data, tmp_path, monkeypatch, capfd):
    command = [*arguments(tiny_folder, tiny_data, tmp_path / "r"), "--before"]
    monkeypatch.setattr(train, "evaluate_split", lambda *a: os.kill(os.getpid(), signal.SIGTERM))
    assert train.main(command) == STOPPED
    said = capfd.readouterr().out
    assert "stopped by SIGTERM after update 0; nothing is lost; --resume" in said and "go on" not in said
    assert not (tmp_path / "r" / "checkpoints").exists()


@pytest.mark.parametrize("where, says", [("read_data", "give the same command again"),
                                         ("resume", "go on with --resume")])
def test_asked_before_training_begins_one_line_says_so(tiny_folder, tiny_data, copy, tmp_path, monkeypatch, capfd,
                                                       where, says):
    """While data are read, nothing is there; while a checkpoint is, everything is as it was."""
    def asked(*a):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    monkeypatch.setattr(*((train, "read_data") if where == "read_data" else (train.Run, "introduce")), asked)
    before = signal.getsignal(signal.SIGTERM)
    command = arguments(tiny_folder, tiny_data, tmp_path / "new") if where == "read_data" else [
        *arguments(tiny_folder, tiny_data, copy), "--resume"]
    assert train.main(command) == STOPPED
    said = capfd.readouterr().err
    assert said.startswith("stopped by SIGTERM before training began; nothing is lost: ") and says in said
    assert said.count("\n") == 1 and not (tmp_path / "new").exists() and signal.getsignal(signal.SIGTERM) == before


def test_the_second_ctrl_c_ends_at_once(tiny_folder, tiny_data, tmp_path, monkeypatch, capfd):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_update(monkeypatch, 7, twice)
    assert train.main(arguments(tiny_folder, tiny_data, tmp_path / "r")) == 130
    assert lines(tmp_path / "r")[-1]["step"] == 6 and "Traceback" not in capfd.readouterr().err


def test_a_signal_between_the_question_and_the_evaluation_is_not_lost():
    """SIGTERM in the very moment at_once() has found that nobody asked."""
    class Late(StopRequest):
        def __getattribute__(self, name: str):
            value = object.__getattribute__(self, name)
            if name == "asked" and armed:
                armed.clear()
                self.on_signal(signal.SIGTERM, None)
            return value

    armed: list[int] = []
    stop = Late()
    armed.append(1)
    with pytest.raises(Stopped, match="SIGTERM"), stop.at_once():
        pytest.fail("the evaluation began")
    assert not stop.nothing_in_hand


def test_in_another_thread_signals_are_left_alone():
    before, found = signal.getsignal(signal.SIGTERM), []

    def inside() -> None:
        with StopRequest() as stop:
            found.append((signal.getsignal(signal.SIGTERM), stop.asked))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [(before, None)]


# -------------------------------------------------------------------------------------------- what may and may not be


def test_a_reader_that_is_gone_does_not_end_a_run_that_is_asked_to_stop(tiny_folder, tiny_data, tmp_path):
    """As with `2>&1 | tee`: Ctrl-C ends the reader of the pipe too."""
    script = tmp_path / "asked.py"
    script.write_text(f"""
import os, signal, sys
sys.path[:0] = [{str(Path(train.__file__).parent)!r}]
import train
accumulate = train.accumulate
def asked(*a):
    if a[4] == 6:
        os.dup2(int(os.environ["DEAD"]), 1)
        os.dup2(1, 2)
        os.kill(os.getpid(), signal.SIGINT)
    return accumulate(*a)
train.accumulate = asked
sys.exit(train.main(sys.argv[1:]))
""")
    reading, writing = os.pipe()
    os.close(reading)                                      # whoever writes gets a broken pipe
    command = [sys.executable, str(script), *arguments(tiny_folder, tiny_data, tmp_path / "r")]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, env={**os.environ, "DEAD": str(writing)},
                          pass_fds=[writing])
    os.close(writing)
    assert done.returncode == STOPPED and (tmp_path / "r" / "checkpoints" / "update-00000006").is_dir()


@pytest.fixture(scope="module")
def halfway(tiny_folder, tiny_data, tmp_path_factory) -> Path:
    """A run killed at update 11, its newest checkpoint at 8. Copy it."""
    output = tmp_path_factory.mktemp("halfway") / "r"
    killed_at(11, arguments(tiny_folder, tiny_data, output))
    return output


@pytest.fixture
def copy(halfway, tmp_path) -> Path:
    return Path(shutil.copytree(halfway, tmp_path / "r"))


@pytest.mark.parametrize("more, says", [
    (("--seed", "3"), "seed was 0, now 3"), (("--batch-size", "8"), "batch_size was 7, now 8"),
    (("--gradients", "autograd"), "gradients was fast, now autograd"),
    (("--dropout", "0"), "dropout was None, now 0.0"),
    (("--decoding", "argmax"), "decoding was"), (("--epochs", "2"), "updates were 27, now 18"),
    (("--precision", "bf16", "--clip", "2"), "clip was 1.0, now 2.0; precision was fp32, now bf16")])
def test_other_settings_are_refused_with_what_differs(tiny_folder, tiny_data, copy, capsys, more, says):
    before = {f: f.read_bytes() for f in copy.rglob("*") if f.is_file() and f.name != ".lock"}
    assert train.main([*arguments(tiny_folder, tiny_data, copy), "--resume", *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and says in error[0] and "update-00000008" in error[0]
    assert {f: f.read_bytes() for f in copy.rglob("*") if f.is_file() and f.name != ".lock"} == before


def test_other_weights_are_refused_unless_the_model_is_the_same(tiny_folder, tiny_data, copy, tmp_path, capsys):
    other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    for change in ({"num_attention_heads": 6}, {"hidden_dropout_prob": 0.4}, {"num_hidden_layers": 1}):
        (other / "config.json").write_text(json.dumps(config | change))
        assert train.main([*arguments(other, tiny_data, copy), "--resume"]) == 2
        error = capsys.readouterr().err.strip()
        assert "Traceback" not in error and ("another model than" in error or "no place for" in error)
    (other / "config.json").write_text(json.dumps(config))
    assert train.main([*arguments(other, tiny_data, copy), "--resume"]) == 0


def test_a_state_of_another_version_is_one_line(tiny_folder, tiny_data, copy, capsys):
    folder = copy / "checkpoints" / "update-00000008"
    state = json.loads((folder / "state.json").read_text())
    state["progress"]["moon"] = "full"
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "complete.json").unlink()
    checkpoint.seal(folder)
    assert train.main([*arguments(tiny_folder, tiny_data, copy), "--resume"]) == 2
    assert "state.json: of another version of minibert" in capsys.readouterr().err


def test_a_lost_log_of_numbers_is_told(tiny_folder, tiny_data, copy, capsys):
    (copy / "metrics.jsonl").unlink()
    train.train([*arguments(tiny_folder, tiny_data, copy), "--resume"])
    assert "metrics.jsonl is shorter than it was" in capsys.readouterr().out


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json", "tokenizer.json", "one bit", "cut config.json",
                                  "cut tokenizer.json", "cut tokenizer_config.json"])
def test_a_model_that_was_lost_after_the_end_comes_back(tiny_folder, tiny_data, copy, reference, lost):
    command = [*arguments(tiny_folder, tiny_data, copy), "--resume"]
    train.train(command)
    said = predict.load(copy).predict(["Ada met Bruno in Oslo ."])
    whole = {f.name: f.read_bytes() for f in copy.glob("*.json") if f.name != "train.json"}
    if lost == "one bit":
        flip(copy / "model.safetensors")
    elif lost.startswith("cut "):
        file = copy / lost.removeprefix("cut ")
        os.truncate(file, file.stat().st_size // 2)
    else:
        (copy / lost).unlink()
    train.train(command)
    assert_same_run(copy, reference("fast fp32"))
    assert {f.name: f.read_bytes() for f in copy.glob("*.json") if f.name != "train.json"} == whole
    assert predict.load(copy).predict(["Ada met Bruno in Oslo ."]) == said


@pytest.mark.parametrize("name", resume.SEALED)
@pytest.mark.parametrize("damage", ["cut", "one bit", "gone", "a pipe"])
def test_what_belongs_to_a_finished_run_comes_back_as_it_was_and_is_named(tiny_folder, tiny_data, ended, tmp_path,
                                                                         capsys, name, damage):
    run = Path(shutil.copytree(ended, tmp_path / "r"))
    file, command = run / name, [*arguments(tiny_folder, tiny_data, run), "--resume"]
    whole = {f.name: f.read_bytes() for f in run.iterdir() if f.name in resume.SEALED}
    data = file.read_bytes()
    file.unlink()
    if damage == "a pipe":
        os.mkfifo(file)
    elif damage != "gone":
        file.write_bytes(data[:len(data) // 2] if damage == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    signal.alarm(120)                                      # ends the process, where it waits for ever
    try:
        assert train.main(command) == 0
    finally:
        signal.alarm(0)
    said = capsys.readouterr().out
    assert f"note: {run}: not as written, and brought back: {name}\n" in said and "finished already" in said
    changed = {f.name: f.read_bytes() for f in run.iterdir() if f.name in resume.SEALED}
    assert {k: v for k, v in changed.items() if k != "train.json"} == {
        k: v for k, v in whole.items() if k != "train.json"}
    settings, before = json.loads(changed["train.json"]), json.loads(whole["train.json"])
    assert {k: v for k, v in settings.items() if k not in resume.FREE} == {
        k: v for k, v in before.items() if k not in resume.FREE}
    assert predict.load(run).predict(["Ada met Bruno in Oslo ."])
    assert train.main(command) == 0                        # all is whole: not a word more
    assert "note:" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def ended(tiny_folder, tiny_data, halfway, tmp_path_factory) -> Path:
    """The run of `halfway`, finished. Copy it."""
    output = Path(shutil.copytree(halfway, tmp_path_factory.mktemp("ended") / "r"))
    train.train([*arguments(tiny_folder, tiny_data, output), "--resume"])
    return output


def test_final_scores_that_are_damaged_are_found_again(tiny_folder, tiny_data, ended, tmp_path, capsys):
    run = Path(shutil.copytree(ended, tmp_path / "r"))
    scores = json.loads((run / "metrics.json").read_text())
    os.truncate(run / "metrics.json", 30)
    assert train.main([*arguments(tiny_folder, tiny_data, run), "--resume"]) == 0
    assert "finished already" not in capsys.readouterr().out
    found = json.loads((run / "metrics.json").read_text())
    assert {k: found[k] for k in ("dev", "test")} == {k: scores[k] for k in ("dev", "test")}


def test_what_killed_processes_left_goes_when_a_run_goes_on(tiny_folder, tiny_data, ended, tmp_path):
    """Also in a run that is finished, where nothing else is written."""
    run = Path(shutil.copytree(ended, tmp_path / "r"))
    (run / ".model.safetensors.new").mkdir()
    (run / ".model.safetensors.new" / "its-own.tmp").write_text("half")
    (run / "checkpoints" / ".update-00000016.old").mkdir()
    assert train.main([*arguments(tiny_folder, tiny_data, run), "--resume"]) == 0
    assert [f.name for f in run.rglob(".*")] == [".lock"]


def test_a_best_model_that_is_no_numbers_is_not_saved(tiny_folder, tiny_data, tmp_path, capsys):
    """The update itself is finite; the weights it makes are not."""
    command = arguments(tiny_folder, tiny_data, tmp_path / "r", "--optimizer", "sgd", "--learning-rate", "1e9",
                        "--clip", "0", "--weight-decay", "1e30", "--max-steps", "1")
    assert train.main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "holds numbers that are not finite after update 1: this model is not saved" in error[0]
    assert not {f.name for f in (tmp_path / "r").iterdir()} & {"model.safetensors", "metrics.json", "checkpoints"}


def test_an_update_that_went_wrong_is_not_written_through_a_link(tiny_folder, tiny_data, tmp_path, monkeypatch):
    (outside := tmp_path / "outside").mkdir()
    at_update(monkeypatch, 3, lambda: (tmp_path / "r" / "broken-update-3").symlink_to(outside))
    poisoned(monkeypatch, 3)
    assert train.main(arguments(tiny_folder, tiny_data, tmp_path / "r")) == 2
    assert list(outside.iterdir()) == [] and (tmp_path / "r" / "broken-update-3" / "update.json").is_file()


def flip(file: Path) -> None:
    """One bit of a file, at a number that is a weight."""
    with open(file, "rb+") as f:
        f.seek(-500, os.SEEK_END)
        byte = f.read(1)
        f.seek(-500, os.SEEK_END)
        f.write(bytes([byte[0] ^ 1]))


def test_the_scores_are_those_of_the_model_that_is_kept(tiny_folder, tiny_data, tmp_path, reference, monkeypatch):
    """Its weights, read from the run folder, give the printed test scores; the last epoch's would not."""
    with monkeypatch.context() as m:
        scripted(m, 0.9, 0.1, 0.2)
        train.train(arguments(tiny_folder, tiny_data, tmp_path / "r"))
    saved = json.loads((tmp_path / "r" / "metrics.json").read_text())["test"]
    model = predict.load(tmp_path / "r")
    examples = model.task.read(tiny_data)["test"]
    guess = predict_examples(model, model.task, examples, model.encode_examples(examples))
    assert model.task.score(guess, examples) == saved
    assert not torture.same_weights(tmp_path / "r", reference("fast fp32"))


def test_an_epoch_that_is_scored_twice_has_the_scores_of_the_kept_model(tiny_folder, tiny_data, tmp_path, monkeypatch):
    """--max-steps 25 ends within epoch 3; two updates more end within it again, and are worse."""
    command = arguments(tiny_folder, tiny_data, tmp_path / "r")
    with monkeypatch.context() as m:
        scripted(m, 0.1, 0.2, 0.9)
        train.train([*command, "--max-steps", "25"])
    with monkeypatch.context() as m:
        scripted(m, 0.1, 0.2, 0.3)
        train.train([*command, "--max-steps", "27", "--resume"])
    saved = json.loads((tmp_path / "r" / "metrics.json").read_text())["test"]
    model = predict.load(tmp_path / "r")
    examples = model.task.read(tiny_data)["test"]
    assert model.task.score(predict_examples(model, model.task, examples, model.encode_examples(examples)),
                            examples) == saved


@pytest.mark.parametrize("damage, says", [(flip, "not as it was written"), (Path.unlink, "gone")])
def test_damage_to_the_best_model_does_not_spread(tiny_folder, tiny_data, tmp_path, monkeypatch, capsys, damage, says):
    """Epoch 1 is the best; in the second its file loses a bit, or is lost. No checkpoint seals that, and the end tells.

    The warning names this cause, once, and no other.
    """
    command = arguments(tiny_folder, tiny_data, tmp_path / "r")
    with monkeypatch.context() as m:
        scripted(m, 0.9, 0.1, 0.1)
        at_update(m, 14, lambda: damage(tmp_path / "r" / "model.safetensors"))
        assert train.main(command) == 2
    captured = capsys.readouterr()
    assert (f"warning: update 16 is not saved: {tmp_path}/r/model.safetensors is {says}; --resume brings it back, with "
            "the last checkpoint; the run goes on\n") in captured.out
    assert "best model is not as it was written; --resume brings it back" in captured.err
    folders = sorted(f.name for f in (tmp_path / "r" / "checkpoints").iterdir())
    assert folders == ["update-00000008", "update-00000012"]
    with monkeypatch.context() as m:
        scripted(m, 0.9, 0.1, 0.1)
        assert train.main([*command, "--resume"]) == 0
    with monkeypatch.context() as m:
        scripted(m, 0.9, 0.1, 0.1)
        whole = train.train(arguments(tiny_folder, tiny_data, tmp_path / "whole"))
    assert torture.same_weights(tmp_path / "r", whole)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a Linux device that is always full")
def test_a_log_on_a_full_disk_is_named(tiny_folder, tiny_data, tmp_path, monkeypatch, capsys):
    file, real = tmp_path / "r" / "metrics.jsonl", runfolder.open_regular

    def full(path, *more):
        return open("/dev/full", "a") if path == file else real(path, *more)

    at_update(monkeypatch, 6, lambda: monkeypatch.setattr(runfolder, "open_regular", full))
    assert train.main(arguments(tiny_folder, tiny_data, tmp_path / "r")) == 2
    assert f"error: {file}: cannot be written (No space left on device)" in capsys.readouterr().err


def test_an_epochs_loss_is_whole_after_a_kill(tiny_folder, tiny_data, tmp_path, capsys):
    """The mean over all updates of the epoch, those before the kill included."""
    command = arguments(tiny_folder, tiny_data, tmp_path / "r")
    killed_at(7, command)
    train.train([*command, "--resume"])
    said = re.search(r"epoch 1: loss ([\d.]+),", capsys.readouterr().out)[1]
    first = [line["loss"] for line in lines(tmp_path / "r") if line["step"] <= 9 and "loss" in line]
    assert said == f"{sum(first) / 9:.4f}"


@pytest.mark.parametrize("left", [("log.txt",), (".train.json.new", ".lock")])
def test_a_run_that_was_killed_before_it_began_can_begin(tiny_folder, tiny_data, tmp_path, left):
    (tmp_path / "r").mkdir()
    for name in left:
        (tmp_path / "r" / name).write_text("")
    assert train.main([*arguments(tiny_folder, tiny_data, tmp_path / "r"), "--resume", "--max-steps", "2"]) == 0


def test_one_bit_of_the_best_model_costs_one_checkpoint(tiny_folder, tiny_data, tmp_path, capsys):
    command = arguments(tiny_folder, tiny_data, tmp_path / "r")
    killed_at(18, command)
    flip(tmp_path / "r" / "checkpoints" / "update-00000016" / "best.safetensors")
    train.train([*command, "--resume"])
    assert "resumed from update 12\n" in capsys.readouterr().out


def test_patience_that_is_decided_late_survives_a_kill(tiny_folder, tiny_data, tmp_path, capsys, monkeypatch):
    """Dev scores 0.3, 0.5, 0.4, 0.4: the second is the best and the fourth the last, whenever it is killed."""
    scripted(monkeypatch, 0.3, 0.5, 0.4, 0.4, 0.9)
    more = ("--epochs", "5", "--patience", "2", "--before")
    train.train(arguments(tiny_folder, tiny_data, tmp_path / "a", *more))
    capsys.readouterr()
    (tmp_path / "b").mkdir()
    said = []
    for update in (11, 20, 25, 29, 36):
        killed_at(update, [*arguments(tiny_folder, tiny_data, tmp_path / "b", *more), "--resume"])
        said.append(capsys.readouterr().out)
    with monkeypatch.context() as m:                       # and once in the final scores
        m.setattr(resume.RunStore, "go_back_to_best", lambda self: kill())
        with pytest.raises(Killed):
            train.train([*arguments(tiny_folder, tiny_data, tmp_path / "b", *more), "--resume"])
    said.append(capsys.readouterr().out)
    assert "resumed from update 36\n" not in said[-1]
    train.train([*arguments(tiny_folder, tiny_data, tmp_path / "b", *more), "--resume"])
    assert "resumed from update 36\n" in capsys.readouterr().out
    assert_same_run(tmp_path / "b", tmp_path / "a")
    one, two = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in "ab")
    assert one["before"] == two["before"] != {} and one["train"]["steps"] == 36
    assert two["train"]["seconds"] > 0.5 * sum(line["seconds"] for line in map(
        json.loads, (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()) if "seconds" in line)


def test_scores_of_an_older_end_do_not_stay_while_a_run_goes_on(tiny_folder, tiny_data, copy):
    train.train([*arguments(tiny_folder, tiny_data, copy), "--resume"])
    killed_at(30, [*arguments(tiny_folder, tiny_data, copy), "--resume", "--epochs", "5"])
    assert not (copy / "metrics.json").exists()


@pytest.mark.parametrize("every, code, says", [
    ("4", STOPPED, "update 27 is not saved (the model holds the weights of the best epoch by now): what came after "
                   "update-00000024 is lost; go on with --resume"),
    ("90m", 2, "all 27 updates are lost")])
def test_asked_after_an_end_that_was_not_saved_it_says_what_is_lost(tiny_folder, tiny_data, tmp_path, monkeypatch,
                                                                    capfd, every, code, says):
    """The model then holds the best epoch's weights: no checkpoint of the last update may be made of them."""
    scripted(monkeypatch, 0.9, 0.1, 0.1)
    evaluate, finish = train.evaluate_split, train.Run.finish
    command = arguments(tiny_folder, tiny_data, tmp_path / "r", "--save-every", every)

    def asked(*a):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*a)

    def unsaved(run):
        monkeypatch.setattr(resume.RunStore, "save_if_possible", lambda store: None)       # the disk is full
        monkeypatch.setattr(train, "evaluate_split", asked)
        return finish(run)

    monkeypatch.setattr(train.Run, "finish", unsaved)
    assert train.main(command) == code
    said = capfd.readouterr()
    assert says in (said.out if code == STOPPED else said.err)
    assert ("go on with" in said.out + said.err) == (code == STOPPED)
    assert not list((tmp_path / "r").glob("checkpoints/*update-00000027*"))


def test_other_training_data_are_refused(tiny_folder, tiny_data, copy, tmp_path, capsys):
    data = Path(shutil.copytree(tiny_data, tmp_path / "moved"))
    train.train([*arguments(tiny_folder, data, copy), "--resume"])                      # another place is fine
    text = (data / "train.conll").read_text()
    (data / "train.conll").write_text(text.replace("today", "old", 1))
    assert train.main([*arguments(tiny_folder, data, copy), "--resume", "--epochs", "4"]) == 2
    assert f"{data}: not the train data of" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["dev", "names of labels"])
def test_another_dev_set_and_other_names_of_labels_are_refused(tiny_folder, tiny_data, copy, tmp_path, capsys, what):
    """The best epoch would be chosen by two sets; the same rows would mean other labels."""
    data = Path(shutil.copytree(tiny_data, tmp_path / "moved"))
    for file in data.iterdir() if what != "dev" else [data / "dev.conll"]:
        text = file.read_text()
        file.write_text(text.replace("today", "old") if what == "dev" else text.replace("-PER", "-PET"))
    assert train.main([*arguments(tiny_folder, data, copy), "--resume"]) == 2
    assert f"{data}: not the {'dev' if what == 'dev' else 'dev and train'} data of" in capsys.readouterr().err


def test_this_and_nothing_else_may_change_on_resume():
    assert {"data", "cache", "weights", "output", "epochs", "max_steps", "updates", "before", "save_every", "keep",
            "resume", "verbose", "threads", "processes", "torch"} == resume.FREE


def test_the_page_lists_all_that_may_change_and_nothing_else():
    page = (Path(train.__file__).parent / "docs" / "reliability.md").read_text("utf-8")
    paragraph = page.split("**What may differ on resume**")[1].split("\n\n")[0]
    listed = {name.replace("-", "_") for name in re.findall(r"`--([a-z-]+)`", paragraph.split("Anything else")[0])}
    assert listed == resume.FREE - {"updates", "threads", "processes", "torch"}
    assert all(word in paragraph for word in ("updates", "threads", "processes", "torch"))


def test_rows_are_hashed_once_a_run_and_not_at_every_checkpoint(tiny_folder, tiny_data, tmp_path, monkeypatch):
    hashed, checksum = [], resume.checksum
    monkeypatch.setattr(resume, "checksum", lambda *a: (hashed.append(1), checksum(*a))[1])

    def first_is_saved() -> None:
        assert hashed
        hashed.clear()

    at_update(monkeypatch, 6, first_is_saved)
    train.train(arguments(tiny_folder, tiny_data, tmp_path / "r", "--evaluate", "dev", "--max-steps", "9"))
    assert len(list((tmp_path / "r" / "checkpoints").iterdir())) == 2 and hashed == []


def test_more_epochs_go_on_from_the_end(tiny_folder, tiny_data, copy):
    train.train([*arguments(tiny_folder, tiny_data, copy), "--resume"])
    train.train([*arguments(tiny_folder, tiny_data, copy), "--resume", "--epochs", "5"])
    updates = [line for line in lines(copy) if "loss" in line]
    assert [u["step"] for u in updates] == list(range(1, 46)) and updates[-1]["epoch"] == 5
    assert updates[27]["learning_rate"] == train.lr_at(28, 45, 4, 3e-3)
    assert json.loads((copy / "train.json").read_text())["epochs"] == 5


def test_a_finished_run_stays_as_it_is(tiny_folder, tiny_data, copy, capsys):
    command = [*arguments(tiny_folder, tiny_data, copy), "--resume"]
    assert train.main(command) == 0
    before = {f: f.read_bytes() for f in copy.rglob("*") if f.is_file() and f.name not in (".lock", "log.txt")}
    assert train.main(command) == 0
    assert "finished already, 27 updates" in capsys.readouterr().out
    assert {f: f.read_bytes() for f in copy.rglob("*") if f.is_file() and f.name not in (".lock", "log.txt")} == before


def test_an_end_without_a_checkpoint_stays_as_long_as_all_is_whole(tiny_folder, tiny_data, copy, capsys):
    """As a full disk leaves it: the model and the scores could be written, no checkpoint could."""
    command = [*arguments(tiny_folder, tiny_data, copy), "--resume"]
    train.train(command)
    shutil.rmtree(copy / "checkpoints")
    assert train.main(command) == 0
    assert "finished already, 27 updates" in capsys.readouterr().out
    for more, says in ((("--epochs", "5"), "finished, and without a whole checkpoint to go on from; name"),
                       (("--seed", "3"), f"{copy}: saved with other settings: seed was 0, now 3")):
        assert train.main([*command, *more]) == 2
        assert says in capsys.readouterr().err
    flip(copy / "model.safetensors")
    assert train.main(command) == 2
    assert "to go on from (model.safetensors is not as it was written); name" in capsys.readouterr().err


def test_a_run_that_ends_on_a_full_disk_is_finished_once_there_is_room(tiny_folder, tiny_data, tmp_path, monkeypatch,
                                                                       capsys, reference):
    """No checkpoint, of three epochs or of their end, finds room; the model does."""
    command = arguments(tiny_folder, tiny_data, tmp_path / "r")

    def full(file, tensors):
        raise MinibertError(f"{file}: cannot be written ([Errno 28] No space left on device)")

    with monkeypatch.context() as m:
        m.setattr(checkpoint, "write_tensors", full)
        assert train.main(command) == 0
    assert list((tmp_path / "r" / "checkpoints").iterdir()) == []
    assert train.main([*command, "--resume"]) == 0
    assert "finished already, 27 updates" in capsys.readouterr().out
    assert_same_run(tmp_path / "r", reference("fast fp32"))


def test_without_a_checkpoint_it_starts_anew_and_says_so(tiny_folder, tiny_data, tmp_path, reference, capsys):
    output = tmp_path / "r"
    output.mkdir()
    command = [*arguments(tiny_folder, tiny_data, output), "--resume"]
    train.train(command)
    assert "no whole checkpoint to resume from; starting anew" in capsys.readouterr().out
    assert_same_run(output, reference("fast fp32"))
    assert "starting anew" in (output / "log.txt").read_text()


def test_a_name_that_is_no_folder_is_not_resumed_unless_torchrun_starts_it(tiny_folder, tiny_data, tmp_path, capsys,
                                                                           monkeypatch):
    """torchrun begins and restarts with one command."""
    command = [*arguments(tiny_folder, tiny_data, tmp_path / "typo", "--epochs", "1"), "--resume"]
    assert train.main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"--output {tmp_path / 'typo'}: no run there to resume" in error
    assert not (tmp_path / "typo").exists()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert train.main(command) == 0


def test_a_folder_that_holds_something_else_is_left_alone(tiny_folder, tiny_data, tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("dear all")
    assert train.main([*arguments(tiny_folder, tiny_data, tmp_path), "--resume"]) == 2
    assert "holds something, but no run" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["letter.txt"]


def test_two_runs_in_one_folder_the_second_is_refused(tiny_folder, tiny_data, copy, capsys):
    with runfolder.lock(copy):
        assert train.main([*arguments(tiny_folder, tiny_data, copy), "--resume"]) == 2
    assert f"process {os.getpid()} is training in it" in capsys.readouterr().err
    assert train.main([*arguments(tiny_folder, tiny_data, copy), "--resume"]) == 0


def test_without_a_name_the_last_run_goes_on(tiny_folder, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = arguments(tiny_folder, tiny_data, "x")
    del command[4:6]
    train.train([*command, "--max-steps", "3"])
    killed_at(6, command)
    assert train.train([*command, "--resume"]) == Path("runs/ner-2")
    assert "resumed from update 4" in capsys.readouterr().out and not Path("runs/ner-3").exists()


def test_the_log_tells_the_story_with_the_time(tiny_folder, tiny_data, copy, reference):
    plain = (reference("without dev") / "log.txt").read_text()             # nothing out of the ordinary
    assert not any(word in plain for word in ("resumed", "warning", "note", "stopped", "anew", "finished"))
    train.train([*arguments(tiny_folder, tiny_data, copy), "--resume"])
    said = (copy / "log.txt").read_text().splitlines()
    assert any(line.endswith(" resumed from update 8") and line[:2] == "20" for line in said)


@pytest.mark.parametrize("text", ["0", "5s", "m", "-3", "5.5m", ""])
def test_an_interval_that_is_none_is_one_line(tiny_folder, tiny_data, tmp_path, capsys, text):
    assert train.main([*arguments(tiny_folder, tiny_data, tmp_path / "r"), f"--save-every={text}"]) == 2
    assert "--save-every is" in capsys.readouterr().err and not (tmp_path / "r").exists()


# ----------------------------------------------------------------------------------------------- a disk that is full


def test_a_run_outlives_a_full_disk_and_says_what_is_not_saved(tiny_folder, tiny_data, tmp_path, reference, monkeypatch,
                                                               capsys):
    real, calls = checkpoint.write_tensors, []

    def full(file, tensors):
        calls.append(file)
        if len(calls) in (2, 3):
            raise MinibertError(f"{file}: cannot be written ([Errno 28] No space left on device)")
        real(file, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    train.train(arguments(tiny_folder, tiny_data, tmp_path / "r"))
    said = capsys.readouterr().out
    assert said.count("is not saved") == 2 and "warning: update 8 is not saved" in said and "No space left" in said
    assert_same_run(tmp_path / "r", reference("fast fp32"))


def test_where_the_system_takes_no_larger_files_the_last_checkpoint_is_whole(tiny_folder, tiny_data, tmp_path, capsys,
                                                                             reference, monkeypatch):
    """The kernel itself refuses to write, in the middle of a file."""
    before, command = resource.getrlimit(resource.RLIMIT_FSIZE), arguments(tiny_folder, tiny_data, tmp_path / "r")
    try:
        with monkeypatch.context() as m:
            at_update(m, 6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1])))
            assert train.main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr()
    assert "warning: update 8 is not saved" in said.out and "File too large" in said.out   # then the best model, too
    assert len(said.err.strip().splitlines()) == 1 and "model.safetensors: cannot be written" in said.err
    assert [f.name for f in (tmp_path / "r" / "checkpoints").iterdir()] == ["update-00000004"]
    assert not [f for f in (tmp_path / "r").rglob(".*new")]
    assert train.main([*command, "--resume"]) == 0
    assert_same_run(tmp_path / "r", reference("fast fp32"))


@pytest.mark.parametrize("what, says", [("checkpoints", "is not saved"), ("metrics.jsonl", "metrics.jsonl")])
def test_a_place_that_cannot_be_written_to_is_named(tiny_folder, tiny_data, tmp_path, capsys, monkeypatch, what, says):
    """Something else stands there: what a folder without permission is to anyone but root."""
    def block() -> None:
        place = tmp_path / "r" / what
        if place.is_dir():
            shutil.rmtree(place)
            place.write_text("in the way")
        else:
            place.unlink()
            place.mkdir()

    at_update(monkeypatch, 6, block)
    code = train.main(arguments(tiny_folder, tiny_data, tmp_path / "r"))
    said = capsys.readouterr()
    assert says in said.out + said.err and "Traceback" not in said.err and code == (2 if what == "metrics.jsonl" else 0)


HUNGRY = """
import resource, sys
sys.path[:0] = [{root!r}]
import torch, train
accumulate, eaten = train.accumulate, []
def hungry(*a):
    if a[4] == 11 and "--resume" not in sys.argv:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2 ** 20, used + 300 * 2 ** 20))
        while True:
            eaten.append(torch.ones(2 ** 22))
    return accumulate(*a)
train.accumulate = hungry
sys.exit(train.main(sys.argv[1:]))
"""


def test_out_of_memory_is_one_line_and_the_run_goes_on_with_more(tiny_folder, tiny_data, tmp_path, reference):
    script = tmp_path / "hungry.py"
    script.write_text(HUNGRY.format(root=str(Path(train.__file__).parent)))
    command = [sys.executable, str(script), *arguments(tiny_folder, tiny_data, tmp_path / "r")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "error: out of memory; give --accumulate" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0 and "resumed from update 8" in done.stdout, done.stderr
    assert_same_run(tmp_path / "r", reference("fast fp32"))


def test_five_kills_of_a_real_process(tmp_path):
    """The short form of `make torture`: SIGKILL, one of them or more within a save."""
    kills = list(torture.torture(torture.tiny_job(tmp_path), tmp_path, 5, seed=7, longest=0.4, most_a_run=5))
    assert len(kills) == 5 and sys.executable


# ------------------------------------------------------------------------------------------- numbers that go wrong


def poisoned(monkeypatch, step: int) -> None:
    """The loss of the update of this number is no number."""
    loss, asked = NER.loss, []

    def broken(self, scores, batch):
        asked.append(1)
        sums = loss(self, scores, batch)
        return {"words": sums["words"] * float("nan")} if len(asked) == step else sums

    monkeypatch.setattr(NER, "loss", broken)


def started(monkeypatch) -> list[Model]:
    """The model of every run that begins from now on."""
    start, models = train.start_model, []

    def remembered(*a):
        found = start(*a)
        models.append(found[0])
        return found

    monkeypatch.setattr(train, "start_model", remembered)
    return models


@pytest.mark.parametrize("engine", ["fast", "by-hand", "autograd"])
def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_update_behind(tiny_folder, tiny_data, tmp_path, capsys,
                                                                             monkeypatch, engine):
    command = arguments(tiny_folder, tiny_data, tmp_path / "r", "--gradients", engine, "--accumulate", "2")
    with monkeypatch.context() as m:
        poisoned(m, 21)                                    # the first half of update 11
        assert train.main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "update 11: the loss is nan" in error[0] and "train examples " in error[0]
    file = tmp_path / "r" / "broken-update-11" / "update.json"
    assert f"--replay {file}" in error[0]
    update = json.loads(file.read_text())
    assert update["update"] == 11 and (tmp_path / "r" / "checkpoints" / "update-00000010").is_dir()
    assert [(part["process"], part["number"], len(part["rows"])) for part in update["micro_batches"]] == [
        (0, 0, 4), (0, 1, 3)]
    assert [line["step"] for line in lines(tmp_path / "r") if "loss" in line] == list(range(1, 11))
    assert train.main(["--replay", str(file)]) == 0        # nothing is wrong with the update itself
    said = capsys.readouterr().out
    assert said.count("every tensor of the forward is finite") == 2 and "the loss is nan" in said
    assert train.main([*command, "--resume"]) == 0         # and so the run goes on
    assert train.main(["--replay", str(file)]) == 0        # and the update can still be looked at


def test_an_update_that_cannot_be_written_down_is_not_to_be_looked_at(tiny_folder, tiny_data, tmp_path, capsys,
                                                                      monkeypatch):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "broken-update-2").touch()                               # no folder can have this name
    (tmp_path / "r" / "train.json").touch()
    poisoned(monkeypatch, 2)
    assert train.main([*arguments(tiny_folder, tiny_data, tmp_path / "r"), "--resume"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "could not be written down" in error[0] and "lower --learning-rate" in error[0]
    assert "--replay" not in error[0]


@pytest.mark.parametrize("engine", ["fast", "autograd"])
def test_a_gradient_that_is_no_number_stops_the_run_too(tiny_folder, tiny_data, tmp_path, capsys, monkeypatch, engine):
    """The loss itself is finite."""
    rule, asked = {"fast": FusedAdamW, "autograd": AdamW}[engine], []
    clip = rule.clip

    def broken(self, largest):
        asked.append(1)
        if len(asked) == 11:
            next(p for p in self.params if p.grad is not None and not p.grad.is_sparse).grad.view(-1)[3] = float("inf")
        return clip(self, largest)

    monkeypatch.setattr(rule, "clip", broken)
    assert train.main(arguments(tiny_folder, tiny_data, tmp_path / "r", "--gradients", engine)) == 2
    error = capsys.readouterr().err
    assert re.search(r"update 11: the loss is \d\.\d+, the gradient norm (inf|nan); stopped before the weights", error)
    assert lines(tmp_path / "r")[-1]["step"] == 10


def test_the_replay_names_module_gradients_and_example(tiny_folder, tiny_data, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as m:
        poisoned(m, 11)
        train.main(arguments(tiny_folder, tiny_data, tmp_path / "r"))
    file = tmp_path / "r" / "broken-update-11" / "update.json"
    update = json.loads(file.read_text())
    checkpoint_folder = file.parent
    row = update["micro_batches"][0]["rows"][2]
    bert, _ = weights.load(checkpoint_folder, head := NER(NER.Options(), read_labels(checkpoint_folder)).head(
        weights.BertConfig.read(checkpoint_folder)))
    with torch.no_grad():
        bert.blocks[1].feedforward.inner.weight.fill_(2e38)        # finite, but not a sum of thirty of them
    weights.save(checkpoint_folder, bert, head, {k: v for k, v in json.loads(
        (checkpoint_folder / "config.json").read_text()).items() if k in ("id2label", "label2id")})
    capsys.readouterr()
    assert train.main(["--replay", str(file)]) == 0
    said = capsys.readouterr().out
    assert "first not finite: bert.blocks.1.feedforward.inner, " in said
    assert "gradients that are not finite in fp32: " in said
    assert re.search(rf"example {row['example']} of train alone: loss .*nan.*bert.blocks.1.feedforward.inner", said)


def test_the_replay_says_what_it_does_not_repeat(broken_update, tmp_path, capsys):
    run = Path(shutil.copytree(broken_update.parent.parent, tmp_path / "r"))
    file, told = run / "broken-update-3" / "update.json", "the half of the update with the word vectors a step uphill"
    capsys.readouterr()
    assert train.main(["--replay", str(file)]) == 0
    assert told not in capsys.readouterr().out
    update = json.loads(file.read_text())
    update["settings"]["adversarial"] = 0.5
    file.write_text(json.dumps(update))
    assert train.main(["--replay", str(file)]) == 0
    assert capsys.readouterr().out.count(f"the run had --adversarial 0.5: {told} is not repeated\n") == 1


def test_weights_that_are_broken_take_no_checkpoints_place(tiny_folder, tiny_data, tmp_path, capsys, monkeypatch):
    def poison_weight() -> None:
        with torch.no_grad():
            models[0].bert.embeddings.norm.bias[3] = float("inf")

    models = started(monkeypatch)
    at_update(monkeypatch, 11, poison_weight)
    assert train.main(arguments(tiny_folder, tiny_data, tmp_path / "r")) == 2
    error = capsys.readouterr().err.strip()
    assert "bert.embeddings.norm.bias was not finite before it" in error
    folder = tmp_path / "r" / "checkpoints"
    assert sorted(f.name for f in folder.iterdir()) == ["update-00000004", "update-00000008"]
    assert train.main(["--replay", str(tmp_path / "r" / "broken-update-11" / "update.json")]) == 2
    assert "held numbers that are not finite" in capsys.readouterr().err


def test_broken_weights_in_a_row_that_nothing_uses_are_not_saved_either(tiny_folder, tiny_data, tmp_path, capsys,
                                                                        monkeypatch):
    def poison_weight() -> None:
        with torch.no_grad():
            models[0].bert.embeddings.position.weight[39, 3] = float("inf")    # longer than any row

    models = started(monkeypatch)
    at_update(monkeypatch, 6, poison_weight)
    train.main(arguments(tiny_folder, tiny_data, tmp_path / "r", "--evaluate", "none", "--max-steps", "8"))
    assert "update 8 is not saved: bert.embeddings.position.weight holds numbers" in capsys.readouterr().out
    assert [f.name for f in (tmp_path / "r" / "checkpoints").iterdir()] == ["update-00000004"]


@pytest.fixture(scope="module")
def broken_update(tiny_folder, tiny_data, tmp_path_factory) -> Path:
    """The update.json of a run whose update 3 had no number for a loss. Copy its run folder."""
    output = tmp_path_factory.mktemp("broken") / "r"
    with pytest.MonkeyPatch.context() as m:
        poisoned(m, 3)
        train.main(arguments(tiny_folder, tiny_data, output))
    return output / "broken-update-3" / "update.json"


@pytest.mark.parametrize("what", ["no seed", "no layout", "precision", "id", "pick", "label", "empty", "update",
                                  "process", "lengths"])
def test_a_replay_that_does_not_fit_its_model_is_one_line(broken_update, tmp_path, capsys, what):
    run = Path(shutil.copytree(broken_update.parent.parent, tmp_path / "r"))
    file = run / "broken-update-3" / "update.json"
    update = json.loads(file.read_text())
    part, settings = update["micro_batches"][0], update["settings"]
    row = part["rows"][0]
    changes = {"no seed": lambda: settings.pop("seed"), "no layout": lambda: settings.pop("layout"),
               "precision": lambda: settings.update(precision="fp7"), "id": lambda: row["ids"].__setitem__(1, 10 ** 6),
               "pick": lambda: row["picks"].__setitem__(0, 999), "label": lambda: row["labels"].__setitem__(0, 999),
               "empty": lambda: part.update(rows=[]), "update": lambda: update.update(update="x"),
               "process": lambda: part.update(process=-1), "lengths": lambda: row["ids"].append(3)}
    changes[what]()
    file.write_text(json.dumps(update))
    capsys.readouterr()
    assert train.main(["--replay", str(file)]) == 2
    error = capsys.readouterr().err.strip()
    assert str(file) in error and "does not fit the model beside it" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"micro_batches": 5, "settings": {}, "update": 1, "said": ""}',
                                  '{"micro_batches": [{"rows": [{"example": 1}]}], "settings": {"precision": "fp32"}}'])
def test_a_replay_of_something_else_is_one_line(tmp_path, capsys, text):
    (tmp_path / "x.json").write_text(text)
    assert train.main(["--replay", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "x.json" in error and len(error.splitlines()) == 1
    assert train.main(["--replay"]) == 2 and train.main(["--replay", str(tmp_path / "none.json")]) == 2


def test_predictions_that_collapsed_are_pointed_out(tiny_folder, tiny_data, tmp_path, capsys):
    train.train(arguments(tiny_folder, tiny_data, tmp_path / "r", "--learning-rate", "0", "--seed", "1"))
    assert "warning" not in capsys.readouterr().out
    train.train(arguments(tiny_folder, tiny_data, tmp_path / "s", "--learning-rate", "1"))
    said = capsys.readouterr().out
    assert re.search("warning: epoch [123]: everything in dev was given '.+'; likely causes: --learning-rate 1.0", said)


def test_what_collapsed_means():
    task = NER(NER.Options(), ["O", "B-PER"])
    examples = [Example(["a", "b"], ["O", "B-PER"], [0], "x:1"), Example(["c"], ["O"], [0], "x:4")]
    assert task.collapsed([["O", "O"], ["O"]], examples) == "O"
    assert task.collapsed([["O", "B-PER"], ["O"]], examples) is None
    assert task.collapsed([["O"]], examples[1:]) is None   # there is nothing else to give
    assert task.collapsed([], []) is None
