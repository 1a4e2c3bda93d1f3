"""terminal.py and what people do to a program: streams that are closed, full or narrow; words that cannot be meant."""
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from updates import settings_of

import train
from minibert import __main__
from minibert.__main__ import main
from minibert.errors import MinibertError
from minibert.run import report, terminal
from minibert.run.processes import Shared
from minibert.scores.labels import confusion_report
from minibert.scores.tables import table
from minibert.tasks.classify import Classify
from minibert.tasks.ner import NER

ROOT = Path(__file__).resolve().parents[2]


def command(tiny_folder, data, output, *more: str) -> list[str]:
    return ["--weights", str(tiny_folder), "--data", str(data), "--output", str(output), "--epochs", "1",
            "--batch-size", "7", "--precision", "fp32", "--max-pieces", "24", "--overlap", "6", "--no-before",
            "--cache", "off", *more]


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """A line of sh in `folder`."""
    return subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment})


def typed(words: list[str]) -> str:
    return " ".join([sys.executable, str(ROOT / "train.py"), *words])


@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-", "> /dev/full", "| head -1"])
def test_a_run_ends_well_wherever_its_words_go(tiny_folder, tiny_data, tmp_path, redirection):
    done = shell(f"({typed(command(tiny_folder, tiny_data, tmp_path / 'r'))}; echo $? > code) {redirection}"
                 if "head" in redirection else
                 f"{typed(command(tiny_folder, tiny_data, tmp_path / 'r'))} {redirection}; echo $? > code", tmp_path)
    assert (tmp_path / "code").read_text() == "0\n" and done.stderr == ""
    assert (tmp_path / "r" / "metrics.json").is_file()


@pytest.mark.parametrize("program", [lambda: terminal.say("word"), lambda: main(["fetch", "word"])],
                         ids=["say", "main"])
def test_a_dead_output_is_given_up_without_a_descriptor_that_stays_open(monkeypatch, program):
    """A descriptor more for every line would end a long run."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setitem(__main__.COMMANDS, "fetch", lambda words: print(words.name, flush=True))
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        before = len(os.listdir("/dev/fd"))
        program()
        assert len(os.listdir("/dev/fd")) == before
        assert os.path.samestat(os.fstat(writing), os.stat(os.devnull))


def test_a_path_in_a_paragraph_stays_whole():
    path = "/" + "a-long-name/" * 20
    text = report.wrapped(f"data: {path}: " + "word " * 40)
    assert path in text and len(text.splitlines()) > 3


def test_labels_that_the_terminal_cannot_show_are_spelt_out(tiny_folder, tiny_data, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for file in tiny_data.iterdir():
        (data / file.name).write_text(file.read_text().replace("-PER", "-ЛИЦО"))
    done = shell(typed(command(tiny_folder, data, tmp_path / "r")), tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "\\u041b" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("more, says", [
    (("--output", "s\udcff"), "--output is"), (("--data", "d\udcff"), "--data is"),
    (("--output", "a\0b"), "--output is"), (("--output", ""), "--output is ''"),
    (("--freeze", "9" * 5000), "--freeze is"), (("--epochs", "9" * 400), "--epochs"),
    (("--max-steps", str(10 ** 310)), "--max-steps"),
    (("--optimizer", "sgd", "--learning-rate", "1e308"), "--learning-rate")])
def test_words_that_cannot_be_meant_are_one_line(tiny_folder, tiny_data, tmp_path, capsys, more, says):
    words = command(tiny_folder, tiny_data, tmp_path / "r")
    if more[0] in words:
        i = words.index(more[0])
        del words[i:i + 2]
    assert train.main([*words, *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and says in error[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("world", ["2", "a", "-1", "0"])
def test_a_batch_systems_number_of_processes_is_one_line(tiny_folder, tiny_data, tmp_path, capsys, monkeypatch, world):
    monkeypatch.setenv("WORLD_SIZE", world)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert train.main(command(tiny_folder, tiny_data, tmp_path / "r")) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and f"WORLD_SIZE is {world!r}" in error[0]


def test_a_link_to_a_disk_that_is_away_is_named(tiny_folder, tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(tmp_path / "away")
    words = command(tiny_folder, tiny_data, "x")
    del words[words.index("--output"):words.index("--output") + 2]
    assert train.main(words) == 2
    assert "error: runs: cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--replay"], ["--replay", "a", "b"], ["--replay=a", "b"]])
def test_replay_takes_one_file(words, capsys):
    assert train.main(words) == 2
    assert "--replay takes one file" in capsys.readouterr().err


def test_replay_with_a_sign(tmp_path, capsys):
    assert train.main([f"--replay={tmp_path}/none.json"]) == 2
    assert "none.json: no such file" in capsys.readouterr().err


def test_the_last_of_two_tasks_counts_as_for_every_other_option():
    assert settings_of(["--task", "x", "--task", "ner"])[0].task == "ner"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 5 bytes")])
def test_predict_out_of_memory_is_one_line(tmp_path, monkeypatch, capsys, error):
    def full(*_, **__):
        raise error

    (tmp_path / "train.json").touch()
    monkeypatch.setattr("minibert.use.predict.load", full)
    assert main(["predict", str(tmp_path), "text"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "out of memory; give shorter texts" in said[0]


def test_an_error_is_one_line_whatever_is_in_it():
    odd = "a\rb\x1b[2Jc\u2028d\u2029e\x85f\x7fg\x00h\ti\nj"
    assert str(MinibertError(odd)) == r"a\rb\x1b[2Jc\u2028d\u2029e\x85f\x7fg\x00h\ti\nj"
    assert str(MinibertError("Łódź, 東京 — naïve")) == "Łódź, 東京 — naïve"


@pytest.mark.parametrize("environment, error, says", [
    ({}, MinibertError("x"), "error: x\n"), ({"RANK": "3"}, MinibertError("x"), "error: x\n"),
    ({"RANK": "3", "WORLD_SIZE": "1"}, OSError("x"), "error: x\n"),
    ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, MinibertError("x"), "error: x\n"),
    ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, MinibertError("x"), ""),
    ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, MinibertError("x"), "process 2: error: x\n"),
    ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, Shared("x"), ""),
    ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, OSError("x"), "process 1: error: x\n")])
def test_of_several_processes_one_a_machine_says_what_the_user_can_mend(monkeypatch, capsys, environment, error, says):
    """What is no user's mistake may be one process's alone, and each says its own."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def work() -> None:
        raise error

    assert terminal.exit_code(work, terminal.Advice()) == 2
    assert capsys.readouterr().err == says


def test_what_nobody_expects_goes_through():
    def work() -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        terminal.exit_code(work, terminal.Advice())


@pytest.mark.parametrize("number, advice", [
    (errno.ENOSPC, "; free space on the disk, or write to another one"), (errno.EDQUOT, "; free space on the disk"),
    (errno.EACCES, "; you lack the permission: change it"), (errno.EROFS, "; the disk cannot be written to"),
    (errno.EIO, "")])
def test_what_the_system_refuses_is_said_with_what_to_do(capsys, number, advice):
    def work() -> None:
        raise OSError(number, os.strerror(number), "some/file")

    assert terminal.exit_code(work, terminal.Advice()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: some/file: {os.strerror(number)}{advice}") and said.count("\n") == 1
    assert "Errno" not in said and (advice or said == f"error: some/file: {os.strerror(number)}\n")


@pytest.mark.parametrize("sign", ["\x1b[2J", "\r", "\n", "\x9b"])
def test_labels_that_would_move_the_cursor_are_spelt_out(sign):
    """In tables of scores and in answers; where a program reads them, as JSON, they stay as they are."""
    label, other = f"gut{sign}x", "böse"
    shown = f"gut{repr(sign)[1:-1]}x"
    row = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 4}
    texts = [
        table({label: row, other: row}, before={label: row}), confusion_report([[1, 0], [2, 3]], [label, other]),
        Classify(Classify.Options(), [label, other]).render(
            {"text": "हाँ", "labels": [label], "probabilities": {label: 0.75, other: 0.25}}, False),
        NER(NER.Options(), ["O", f"B-{label}"]).render(
            {"text": "Zoë", "entities": [{"text": "Zoë", "type": label, "start": 0, "end": 3}]}, False)]
    for text in texts:
        assert shown in text and label not in text
    heading, one, two = table({label: row, other: row}, gaps=False).splitlines()
    assert len(heading) == len(one) == len(two)            # as wide as it is shown
