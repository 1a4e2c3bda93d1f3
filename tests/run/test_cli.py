"""python -m minibert, as a shell sees it: fetch, predict, evaluate."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minibert
import train
from minibert.__main__ import main
from minibert.core.model import Model
from minibert.use.evaluate import predict_examples

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tiny_folder, tiny_data, tmp_path_factory) -> Path:
    return train.train(["--weights", str(tiny_folder), "--data", str(tiny_data), "--epochs", "6", "--batch-size", "6",
                        "--learning-rate", "3e-3", "--max-pieces", "24", "--overlap", "6", "--precision", "fp32",
                        "--no-before", "--output", str(tmp_path_factory.mktemp("runs") / "ner")])


def texts(tiny_data) -> list[str]:
    lines = (next(Path(tiny_data).glob("test.*"))).read_text().split("\n\n")
    return [" ".join(line.split()[0] for line in s.splitlines() if line.strip()) for s in lines if s.strip()][:5]


def test_the_python_door(finished, tiny_data):
    model = minibert.load(finished)
    assert isinstance(model, Model) and model.task.name == "ner" and model.head and model.tokenizer
    given = texts(tiny_data)
    results = model.predict(given)
    assert [r["text"] for r in results] == given
    for r in results:
        for e in r["entities"]:
            assert r["text"][e["start"]:e["end"]] == e["text"] and e["type"] in ("PER", "ORG", "LOC", "MISC")
    assert sum(len(r["entities"]) for r in results) > 0
    ids, mask, types = model.features(given)
    assert ids.shape == mask.shape == types.shape and ids.shape[0] == len(given)
    assert set(types.flatten().tolist()) == {0, 2, 4}                  # 2·shape: lower, title and upper occur
    assert mask.sum(1).tolist() == [len(f.ids) for f in model.encode_examples([model.task.example(t) for t in given])]


def test_long_texts_and_empty_ones_are_answered_too(finished, tiny_data):
    model = minibert.load(finished)
    long = " ".join(texts(tiny_data) * 9)
    empty, answer = model.predict(["", long])
    assert empty == {"text": "", "entities": []}
    assert max((e["end"] for e in answer["entities"]), default=0) > len(long) // 2
    assert len(model.features([long])[0]) > 3


def test_a_trained_model_is_used_with_other_options(finished, tiny_data, capsys):
    """As an option and from Python; the tags of each word alone are others here, and the scores with them."""
    found = {}
    for decoding in ("valid", "argmax"):
        assert main(["evaluate", str(finished), "--data", str(tiny_data), "--decoding", decoding, "--json"]) == 0
        found[decoding] = json.loads(capsys.readouterr().out)
        model = minibert.load(finished, decoding=decoding)
        examples = model.task.read(Path(tiny_data))["test"]
        guess = predict_examples(model, model.task, examples, model.encode_examples(examples))
        assert model.task.options.decoding == decoding and model.task.score(guess, examples) == found[decoding]["test"]
    assert main(["evaluate", str(finished), "--data", str(tiny_data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found["valid"]


@pytest.mark.parametrize("words, says", [
    (["--beams", "3"], "--beams: "), (["--length-penalty", "1"], "--length-penalty: "),
    (["--decoding", "x"], "'valid'"), (["--hide", "0.5"], "--hide")])
def test_options_that_a_trained_model_cannot_take(finished, capsys, words, says):
    assert main(["predict", str(finished), "Ada", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1


CUT = ["Ada", "Stone-Keller", "met", "U.S.", "\u200b", "Nordia", "San Lima", "!?", "आज", "北京", "cafe\u0301"]


def test_words_that_are_cut_already_have_a_tag_each(finished):
    """Also those of several windows, or without a piece: of one row each tag is the best at the word's first piece."""
    model = minibert.load(finished, decoding="argmax")
    long = CUT * 5
    text, short, whole, none = model.predict(["Ada met Bruno .", CUT, long, []])
    assert list(text) == ["text", "entities"] and none == {"words": [], "tags": [], "entities": []}
    assert (short["words"], whole["words"]) == (CUT, long)

    model.settings["max_pieces"] = 40              # all positions: one row holds CUT
    pieces, = model.tokenizer.pieces([CUT])
    ids = torch.tensor([[model.tokenizer.start, *pieces.ids, model.tokenizer.end]])
    types = torch.tensor([[0, *(2 * shape for shape in pieces.shapes), 0]])
    assert 24 < ids.shape[1] <= 40
    with torch.no_grad():
        hidden = model.bert.encode(ids, torch.ones_like(ids), types)[0][0]
        best = [model.task.labels[k] for k in model.head.linear(hidden).argmax(-1).tolist()]
    one_row, = model.predict([CUT])
    assert one_row["tags"] == [best[1 + pieces.words.index(i)] for i in range(len(CUT))]
    assert len(set(one_row["tags"])) > 1
    assert len(short["tags"]) == len(CUT) and len(whole["tags"]) == len(long)
    for result in (short, whole, one_row):
        for entity in result["entities"]:
            inside = slice(entity["first"], entity["stop"])
            assert " ".join(result["words"][inside]) == entity["text"]
            assert {tag[2:] for tag in result["tags"][inside]} == {entity["type"]}


def test_words_of_the_command_line_are_cut_at_blanks_alone(finished, capsys, monkeypatch):
    assert main(["predict", str(finished), "--words", "--json", "Ada  Stone's\tU.S. ,", " "]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["words"] for r in found] == [["Ada", "Stone's", "U.S.", ","], []]
    assert main(["predict", str(finished), "--words", "Ada met", "rain"]) == 0
    assert main(["predict", str(finished), "--words", "Ada met"]) == 0
    plain = capsys.readouterr().out
    tags = minibert.load(finished).predict([["Ada", "met"], ["rain"]])
    lines = [[f"{w}\t{t}" for w, t in zip(r["words"], r["tags"], strict=True)] for r in tags]
    assert plain.split("\n") == [*lines[0], "", *lines[1], "", *lines[0], "", ""]
    shown = minibert.load(finished).task.render({"words": ["Ada", "is"], "tags": ["B-PER", "O"], "entities": []}, True)
    assert shown == "Ada\t\033[36mB-PER\033[0m\nis\tO\n"


@pytest.mark.parametrize("texts, says", [
    (["Ada", ["met", ""]], "text 2: word 2 is ''; expected"), ([["\u00a0 "]], "text 1: word 1 is '\\xa0 '"),
    ([["a", "b"], ["in\n"]], "text 2: word 1 is 'in\\n'"), ([["a\u2028b"]], "word 1 is 'a\\u2028b'"),
    ([["a\rb"]], "text 1: word 1 is 'a\\rb'"), ([["a", 7]], "text 1: word 2 is 7"), ([["a", ["b"]]], "word 2 is ['b']"),
    (["x", None], "text 2: None: expected a text"), ([b"Ada"], "word 1 is 65")])
def test_what_is_no_word_is_named(finished, texts, says):
    with pytest.raises(minibert.MinibertError) as caught:
        minibert.load(finished).predict(texts)
    assert says in str(caught.value)


def test_one_string_instead_of_a_list_is_an_error(finished):
    with pytest.raises(minibert.MinibertError, match="list"):
        minibert.load(finished).predict("Paris")


def test_predict_prints_spans_and_json(finished, tiny_data, capsys):
    given = texts(tiny_data)[:2]
    assert main(["predict", str(finished), *given]) == 0
    plain = capsys.readouterr().out
    assert "\033" not in plain and "[" in plain
    assert main(["predict", str(finished), "--json", *given]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == minibert.load(finished).predict(given)


def test_predict_reads_standard_input_as_lines(finished, tiny_data, capsys, monkeypatch, tmp_path):
    given = texts(tiny_data) * 30
    (tmp_path / "lines").write_text("\n".join(given) + "\n")
    with open(tmp_path / "lines") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["predict", str(finished), "--json", "-"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == given


@pytest.mark.parametrize("end, code", [("full", 2), (signal.SIGINT, 130)])
def test_predict_ends_while_it_waits_for_more_lines(finished, end, code):
    """Whoever writes has not closed the pipe: a thread waits in it, and nobody waits for the thread."""
    with open("/dev/full", "w") as full, subprocess.Popen(
            [sys.executable, "-m", "minibert", "predict", str(finished), "-"], stdin=subprocess.PIPE,
            stdout=full if end == "full" else subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:  # a shell's & ignores it
        process.stdin.write(b"Ada met Bruno .\n")
        process.stdin.flush()
        if end != "full":
            assert process.stdout.readline()       # past its start, in which Python itself answers
            process.send_signal(end)
        try:
            assert process.wait(60) == code
        finally:
            process.kill()
        assert b"Fatal" not in process.stderr.read()


def test_evaluate_repeats_what_training_reported(finished, tiny_data, capsys):
    assert main(["evaluate", str(finished), "--data", str(tiny_data), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    reported = json.loads((finished / "metrics.json").read_text())
    assert scores == {split: reported[split] for split in ("dev", "test")}
    assert main(["evaluate", str(finished), "--data", str(tiny_data), "--split", "test"]) == 0
    assert "micro avg" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, says", [
    (["predict", "/no/such/run", "x"], "/no/such/run"), (["evaluate", "RUN", "--data", "/no/data"], "/no/data"),
    (["fetch", "bert-enormous"], "minilm-l6"), (["dance"], "dance"), ([], "fetch | predict"),
    (["predict", "RUN"], "text"),
    (["predict", "CHECKPOINT", "x"], "train.json"), (["predict", "CHECKPOINT", "--task", "qa", "x"], "architectures"),
    (["predict", "RUN", "--task", "qa", "x"], "--task is 'qa', but "),
    (["evaluate", "RUN", "--task", "classify", "--data", "DATA"], "holds a model of --task ner; leave it out")])
def test_mistakes_are_one_line_with_exit_code_2(finished, tiny_folder, capsys, arguments, says):
    words = [{"RUN": str(finished), "CHECKPOINT": str(tiny_folder)}.get(a, a) for a in arguments]
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1


def test_a_real_process_with_a_closed_pipe_stays_quiet(finished, tiny_data):
    command = [sys.executable, "-m", "minibert", "predict", str(finished), "-"]
    lines = "\n".join(texts(tiny_data) * 400)
    done = subprocess.run(f"{' '.join(command)} | head -n 1", input=lines, shell=True, capture_output=True, text=True,
                          cwd=ROOT)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("stdin, answers, says", [
    (b"ada met\nbad \xff byte\n", 1, "standard input:2: byte 0xff is not UTF-8; "), (None, 0, ""), (b"", 0, ""),
    (b"\xe0\xa4 cut\nada\n", 0, "standard input:1: byte 0xe0 is not UTF-8; "),
    (b"a\r\n\n\nb\nends in \xc3", 4, "standard input:5: byte 0xc3 is not UTF-8; ")])
def test_standard_input_that_breaks_or_is_closed_ends_the_program(finished, stdin, answers, says):
    command = [sys.executable, "-m", "minibert", "predict", str(finished), "-"]
    close = " <&-" if stdin is None else ""
    done = subprocess.run(f"{' '.join(command)} --json {close}", input=stdin, shell=True, capture_output=True,
                          timeout=60, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, cwd=ROOT)
    assert done.returncode == (2 if says else 0)
    assert says in done.stderr.decode() and len(done.stderr.splitlines()) == bool(says)
    assert len(done.stdout.splitlines()) == answers


def in_locale(name: str, **more: str) -> dict[str, str]:
    """The environment of a process there, in which nothing else says what bytes mean."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONIOENCODING", "PYTHONUTF8"))}
    return {**kept, "LC_ALL": name, **more}


LINES = ["\ufeffAda met Łucja in Oslo .", "", "आज ओस्लो में वर्षा\r", " \u3000", "北京 😀 Lima", "في ليما"]


@pytest.mark.parametrize("more", [{}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=["C", "ASCII"])
def test_lines_are_utf8_in_any_locale_and_each_has_an_answer(finished, more):
    """A byte order mark and line ends are no part of them; the answer to an empty one is empty."""
    command = [sys.executable, "-m", "minibert", "predict", str(finished), "-"]
    done = [subprocess.run([*command, *option], input="\n".join(LINES).encode(), capture_output=True, timeout=120,
                           cwd=ROOT, env=in_locale("C", **more)) for option in (["--json"], [])]
    assert [(d.returncode, d.stderr) for d in done] == [(0, b"")] * 2
    texts = [line.strip("\ufeff\r") for line in LINES]
    results = [json.loads(line) for line in done[0].stdout.decode("utf-8").splitlines()]
    assert [r["text"] for r in results] == texts and results[1] == {"text": "", "entities": []}
    plain = [line for line in done[1].stdout.decode("utf-8").split("\n") if not line.startswith("  ")]    # spans
    assert [bool(line) for line in plain] == [bool(text.strip()) for text in texts] + [False]


@pytest.mark.parametrize("more", [{}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=["C", "ASCII"])
def test_an_argument_that_is_no_text_is_one_line(finished, more):
    command = [sys.executable, "-m", "minibert", "predict", str(finished), b"Ada", b"in \xff met"]
    done = subprocess.run(command, capture_output=True, timeout=120, cwd=ROOT, env=in_locale("C", **more))
    assert (done.returncode, done.stdout) == (2, b"") and len(done.stderr.splitlines()) == 1
    assert b"text 2: byte 0xff of 'in \\udcff met' is no letter" in done.stderr


def test_what_the_terminal_cannot_show_is_spelt_out(finished):
    command = [sys.executable, "-m", "minibert", "predict", str(finished), "Ada \u0141".encode()]
    done = subprocess.run(command, capture_output=True, timeout=60, cwd=ROOT,
                          env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stderr == b"" and b"\\u" in done.stdout


def test_answers_come_before_the_writer_has_ended(finished):
    """A line, its answer, the next line; then one that is no text, and the end."""
    command = [sys.executable, "-m", "minibert", "predict", str(finished), "--words", "--json", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
                          env=in_locale("C")) as process:
        for line in ("Ada met", "", "वर्षा 🌧"):
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["words"] == line.split()
        out, error = process.communicate("ok\n\u00a0\nrain\n".encode(), timeout=60)
    assert json.loads(out)["words"] == ["ok"] and process.returncode == 2
    assert error.startswith(b"error: standard input:5: word 1 is ") and len(error.splitlines()) == 1




def test_settings_of_a_run_that_lost_a_line_are_named(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "train.json").read_text())
    del settings["max_pieces"]
    (tmp_path / "run" / "train.json").write_text(json.dumps(settings))
    assert main(["predict", str(tmp_path / "run"), "x"]) == 2
    assert "max_pieces" in capsys.readouterr().err


@pytest.mark.parametrize("name, value, says", [
    ("max_pieces", 41, "expected 40 at most, the positions of the encoder"), ("max_pieces", 7, "must be at least 8"),
    ("max_pieces", "24", "not a value of type int"), ("overlap", None, "expected a number, half of max_pieces at most"),
    ("overlap", 13, "must be between 0 and half"), ("precision", "auto", "expected fp32, bf16 or fp16"),
    ("precision", "fp8", "not one of auto, fp32, bf16, fp16")])
def test_settings_that_a_model_cannot_be_used_with_are_refused_when_it_is_loaded(finished, tmp_path, capsys, name,
                                                                                 value, says):
    """File and key, on a short text already."""
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    settings = json.loads((tmp_path / "run" / "train.json").read_text())
    (tmp_path / "run" / "train.json").write_text(json.dumps({**settings, name: value}))
    assert main(["predict", str(tmp_path / "run"), "Oslo"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/run/train.json: ") and says in said and said.count("\n") == 1
    assert name in said.replace("-", "_")


@pytest.mark.parametrize("change, says", [
    ({"id2label": {"0": "O", "2": "B-X"}}, "expected names for 0, 1, 2"), ({"id2label": [["O"]]}, "expected names for"),
    ({"id2label": {"0": "O", "1": None}}, "expected a list of names"), ({"id2label": {"0": "O", "1": "O"}}, "twice"),
    ({"label2id": {"O": 1}}, "disagree"), ({"minibert": {"labels": "O"}}, "expected a list of names"),
    ({"minibert": 5}, "minibert is 5"), ({"id2label": {str(i): f"B-{i}" for i in range(40_000)}}, "numbers at least")])
def test_labels_that_cannot_be_those_of_the_head_are_refused(finished, tmp_path, capsys, change, says):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    if "id2label" in change:
        config.pop("label2id", None)
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, **change}))
    assert main(["predict", str(tmp_path / "run"), "Oslo"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/run") and says in said and said.count("\n") == 1
