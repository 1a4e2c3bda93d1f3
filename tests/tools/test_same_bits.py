"""tests/tools/same_bits.py: what it calls a difference, and the whole command on trees that only pretend to train."""
import importlib.util
import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

TOOL = Path(__file__).resolve().parent / "same_bits.py"
spec = importlib.util.spec_from_file_location("same_bits", TOOL)
same_bits = importlib.util.module_from_spec(spec)
spec.loader.exec_module(same_bits)

# ------------------------------------------------------------------------------------------------------ comparing


def test_the_last_bit_is_a_difference():
    loss = 0.7343
    good, words = same_bits.compare({"a": 1.0, "b": loss}, {"a": 1.0, "b": math.nextafter(loss, 1)})
    assert not good and words.startswith("DIFFERS, 1 of 2 values, first b: 0.7343 -> 0.73430000")
    assert same_bits.compare({"a": 1.0, "b": loss}, {"b": 0.7343, "a": 1.0}) == (True, "same, 2 values")


def test_the_first_difference_and_the_largest_are_told():
    old, new = {"x": 1.0, "y": 100.0, "z": -4.0}, {"x": 1.0, "y": 99.0, "z": -5.0}
    assert same_bits.compare(old, new) == (
        False, "DIFFERS, 2 of 3 values, first y: 100.0 -> 99.0; largest relative difference of 2 numbers 0.2")
    words = same_bits.compare({**old, "w": "ab"}, {**new, "w": "cd"})[1]
    assert words.startswith("DIFFERS, 3 of 4 values") and words.endswith("of 2 numbers 0.2")
    assert same_bits.compare(old, new, 0.21)[0] and not same_bits.compare(old, new, 0.19)[0]


@pytest.mark.parametrize("a, b", [(None, 0.0), (True, 1), ("1", 1), (math.inf, 1.0), (-math.inf, math.inf), ("x", "y"),
                                  (0.5, "missing")])
def test_no_tolerance_forgives_what_is_not_two_numbers(a, b):
    assert not same_bits.compare({"first": 1.0, "a": a}, {"first": 1.1, "a": b}, 0.999)[0]
    assert same_bits.compare({"a": a, "b": b}, {"a": a, "b": b})[0]


@pytest.mark.parametrize("old, new", [({"a": 1}, {}), ({}, {"a": 1})])
def test_a_value_that_one_side_lacks_is_a_difference(old, new):
    assert not same_bits.compare(old, new, 0.999)[0]


def test_every_place_of_a_json_value_counts():
    value = {"a": [1, {"b": None}], "c": {}, "d": [], "e": "x"}
    assert dict(same_bits.leaves(value)) == {"a.0": 1, "a.1.b": None, "c": "{}", "d": "[]", "e": "x"}
    assert same_bits.of_answers('{"a": 1}\n[]\n') == {"line 1.a": 1, "line 2": "[]"}


def test_of_an_update_the_loss_and_the_norm_count_and_of_other_lines_all():
    lines = [{"step": 1, "epoch": 1, "loss": 2.5, "gradient_norm": None, "seconds": 0.1},
             {"step": 1, "split": "dev", "f1": {"micro": 0.5}}, {"saved weights": {"w": "F32"}}]
    assert same_bits.of_training("\n".join(map(json.dumps, lines)) + "\n") == {
        "update 1 loss": 2.5, "update 1 gradient_norm": None, "update 1.step": 1, "update 1.split": "dev",
        "update 1.f1.micro": 0.5, "saved weights.w": "F32"}


def test_saved_weights_differ_in_the_tensor_that_was_changed_alone(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(5)}
    found = []
    for name, change in (("one", 0.0), ("two", 0.0), ("three", 2.0 ** -23)):
        tensors["a"] = tensors["a"] + change
        save_file(tensors, tmp_path / name, {"format": name})
        found.append(same_bits.saved_weights(tmp_path / name))
    assert found[0] == found[1] and found[0].keys() == found[2].keys() == {"a", "b"}
    assert found[0]["b"] == found[2]["b"] and found[0]["a"] != found[2]["a"]


# ------------------------------------------------------------------------------------------------ the whole command

TRAIN = '''
import json, struct, sys
from pathlib import Path
words = sys.argv[1:]
after = lambda option: words[words.index(option) + 1]
out = Path(after("--output"))
out.mkdir()
number = sum(map(ord, "".join(words[:words.index("--max-steps")]))) / 7 * FACTOR + len(DATA)
with (out / "metrics.jsonl").open("w") as file:
    for step in range(1, int(after("--max-steps")) + 1):
        line = {"step": step, "loss": number / step, "gradient_norm": number, "seconds": id(file)}
        print(json.dumps(line), file=file)
    if after("--evaluate") == "dev":
        print(json.dumps({"step": step, "split": "dev", "f1": 0.25}), file=file)
header = json.dumps({"w": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}).encode()
(out / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<d", number))
(out / "number").write_text(str(number))
'''
ASK = '''
import json, sys
from pathlib import Path
print(json.dumps([sys.argv[1], sys.argv[3], float((Path(sys.argv[2]) / "number").read_text()) * ASKED]))
'''
TASKS = "class NER:\n    trial = 'Ada é | Oslo'\nTASKS = {'ner': NER}\n"


def write_tree(folder: Path, factor: float = 1.0, asked: float = 1.0) -> Path:
    """A tree whose runs and answers are arithmetic on their command lines."""
    (folder / "minibert").mkdir(parents=True)
    (folder / "data" / "ner").mkdir(parents=True)
    (folder / "data" / "ner" / "train.conll").write_text("Ada B-PER\n")
    reads = "DATA = Path(after('--data'), 'train.conll').read_text()\n"
    (folder / "train.py").write_text(f"FACTOR = {factor!r}" + TRAIN.replace("number = ", reads + "number = ", 1))
    (folder / "minibert" / "__init__.py").write_text("")
    (folder / "minibert" / "tasks.py").write_text(TASKS, "utf-8")
    (folder / "minibert" / "__main__.py").write_text(f"ASKED = {asked!r}" + ASK)
    return folder


@pytest.fixture
def trees(tmp_path, monkeypatch):
    """compare(new tree, more words) -> exit code, against one old tree, with a baseline in tmp_path."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"any")
    old = write_tree(tmp_path / "old")

    def compare(new: Path, *words: str) -> int:
        return same_bits.main(["--old", str(old), "--new", str(new), "--tasks", "ner", "--updates", "3", "--weights",
                               str(tmp_path / "weights"), "--baseline", str(tmp_path / "kept"), *words])
    return compare


def test_equal_trees_are_the_same_in_every_comparison(trees, tmp_path, capsys):
    (tmp_path / "old" / "data" / "ner" / "train.conll").write_text("other data that nobody reads\n")
    assert trees(write_tree(tmp_path / "new")) == 0
    assert (tmp_path / "kept" / "data" / "ner" / "train.conll").read_text() == "Ada B-PER\n"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        "ner/fast-bf16", "ner/fast-fp32", "ner/by-hand-fp32", "ner/accumulate", "ner/adversarial", "ner/ragged",
        "ner/autograd-fp32", "ner/predict", "ner/evaluate"]
    assert lines[0].endswith("same, 7 values") and lines[1].endswith("same, 10 values")
    assert lines[-1].startswith("0 of 9 comparisons differ")


def test_the_kept_old_side_is_not_run_again(trees, tmp_path, capsys):
    assert trees(write_tree(tmp_path / "new"), "--prepare") == 0
    (tmp_path / "old" / "train.py").write_text("raise SystemExit('the old side was run again')")
    shutil.rmtree(tmp_path / "old" / "minibert")
    (tmp_path / "new" / "data" / "ner" / "train.conll").write_text("other data of the new tree since then\n")
    assert trees(tmp_path / "new") == 0


def test_a_changed_constant_differs_where_it_works_and_only_there(trees, tmp_path, capsys):
    assert trees(write_tree(tmp_path / "new", factor=1 + 2e-16)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(" DIFFERS, " in line and "first update 1 loss: " in line for line in lines[:7])
    assert all(" same, " in line for line in lines[7:9])
    assert lines[-1].startswith("7 of 9 comparisons differ")


def test_answers_of_an_old_run_folder_are_compared(trees, tmp_path, capsys):
    assert trees(write_tree(tmp_path / "new", asked=1.5)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [" DIFFERS, 1 of 3 values, first line 1.2: " in line for line in lines[:-1]] == [False] * 7 + [True] * 2


def test_an_allowed_comparison_stands_for_itself_alone(trees, tmp_path, capsys):
    new = write_tree(tmp_path / "new", factor=1 + 1e-9)
    assert trees(new, "--allow", "ner/ragged=1e-6") == 1
    lines = [line.split()[1] for line in capsys.readouterr().out.splitlines()[:7]]
    assert lines == ["DIFFERS,"] * 5 + ["within"] + ["DIFFERS,"]
    assert trees(new, "--tasks", "ner/ragged", "--allow", "ner/ragged=1e-6") == 0
    assert trees(new, "--tasks", "ner/ragged", "--allow", "ner/ragged=1e-12") == 1


def test_a_tree_that_fails_or_stops_early_is_a_difference(trees, tmp_path, capsys):
    new = write_tree(tmp_path / "new")
    text = (new / "train.py").read_text()
    (new / "train.py").write_text(text.replace("for step in range(1,", "for step in range(2,"))
    assert trees(new, "--tasks", "ner/ragged") == 1
    assert "FAILED" in (said := capsys.readouterr().out) and "wrote 2 updates into metrics.jsonl, not 3" in said
    (new / "train.py").write_text("raise SystemExit('a fault of its own')")
    assert trees(new, "--tasks", "ner/ragged") == 1
    assert "a fault of its own" in capsys.readouterr().out


def test_a_baseline_of_another_machine_or_setting_is_refused(trees, tmp_path, capsys, monkeypatch):
    new = write_tree(tmp_path / "new")
    assert trees(new, "--prepare") == 0
    assert trees(new, "--updates", "4") == 2
    assert "updates is 3 there and 4 here" in capsys.readouterr().err
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert trees(new) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(same_bits, "processor", lambda: "another")
    assert trees(new) == 2
    assert "processor is " in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [(["--tasks", "nre"], "nre is no comparison"),
                                         (["--allow", "ner/ragged"], "give it as"),
                                         (["--allow", "ner/ragged=2"], "between 0 and 1"),
                                         (["--allow", "ner/rag=1e-6"], "one of ner/fast-bf16"),
                                         (["--weights", "nowhere"], "no model.safetensors")])
def test_what_cannot_be_compared_is_refused_in_one_line(trees, tmp_path, capsys, words, said):
    assert trees(write_tree(tmp_path / "new"), *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_commit_is_checked_out_and_leaves_no_trace(tmp_path, monkeypatch):
    repository = write_tree(tmp_path / "repository")
    monkeypatch.setattr(same_bits, "REPOSITORY", repository)
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "-m", "one"]):
        subprocess.run(["git", "-C", str(repository), *words], check=True)
    (repository / "train.py").write_text("changed since the commit")
    with same_bits.checked_out("HEAD") as tree:
        assert "FACTOR = 1.0" in (tree / "train.py").read_text() and tree != repository
    assert not tree.exists() and len(same_bits.git("worktree", "list").splitlines()) == 1
    with same_bits.checked_out(str(repository)) as tree:
        assert tree == repository
    with pytest.raises(same_bits.Failed, match="worktree add"), same_bits.checked_out("no-such-commit"):
        pass
