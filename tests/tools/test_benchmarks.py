"""benchmarks/ without transformers: arithmetic, options, workers that die, real ones, a GPU's script on the CPU."""
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from minibert.checkpoints.weights import random_bert
from minibert.core.batch import Feature
from minibert.core.config import BertConfig
from minibert.data.order import epoch_batches
from minibert.errors import MinibertError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import compare  # noqa: E402
import contender  # noqa: E402
import gpu  # noqa: E402
import gpu_parts  # noqa: E402
import old_new  # noqa: E402
import summary  # noqa: E402
import workers  # noqa: E402

# ------------------------------------------------------------------------------------------------------ arithmetic


def test_quartiles_and_median_of_five_on_paper():
    """Sorted 1 2 4 8 16: five values, so the quartiles are the second and the fourth, the median the third."""
    assert summary.quartiles([8.0, 1.0, 16.0, 2.0, 4.0]) == (2.0, 4.0, 8.0)


def test_quartiles_between_two_values_are_linear():
    assert summary.quartiles([10.0, 30.0]) == (15.0, 20.0, 25.0)


def test_ratios_are_taken_round_by_round():
    """A disturbance that halves both sides of one round leaves the ratio of that round: 3/2 throughout."""
    assert summary.ratios([6.0, 3.0, 9.0], [4.0, 2.0, 6.0]) == [1.5, 1.5, 1.5]
    with pytest.raises(ValueError):
        summary.ratios([6.0, 3.0], [4.0])


def test_matrix_weights_are_those_of_the_module():
    c = BertConfig(vocab_size=53, hidden_size=30, num_hidden_layers=7, num_attention_heads=5, intermediate_size=44,
                   max_position_embeddings=19)
    linear = [m for m in random_bert(c).blocks.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 6 * 7
    assert summary.matrix_weights(c) == sum(m.weight.numel() for m in linear)


def test_limit_of_minilm_on_paper():
    """6 · (4·384² + 2·384·1536) = 10,616,832 weights; ·6 = 63.7 MFLOP a piece; 150 GFLOP/s are 2,355 pieces/s."""
    c = BertConfig(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                   intermediate_size=1536)
    assert summary.matrix_weights(c) == 10_616_832
    assert summary.limit("train", 10_616_832, 150.0) == pytest.approx(2354.7, abs=0.1)
    assert summary.limit("score", 10_616_832, 150.0) == pytest.approx(3 * 2354.7, abs=0.3)


def made_result() -> dict:
    """Two contenders, three rounds; the second pads: 70 pieces in 100 cells a round, and works while it waits."""
    def rounds(cells, cpu):
        return [{"pieces": 70, "cells": cells, "waited_seconds": 5.0, "waited_cpu_seconds": cpu}] * 3

    return {"name": "train-fp32", "kind": "train", "geometry": "minilm-l6", "what": "training", "notes": [],
            "matrix_weights": 1_000_000_000, "contenders": [
                {"name": "minibert fp32", "resolved": "fp32", "rounds": rounds(70, 0.0), "values": [6.0, 12.0, 9.0]},
                {"name": "transformers, best bf16", "resolved": "bf16", "rounds": rounds(100, 0.5),
                 "values": [5.0, 6.0, 9.0]}]}


def test_summarise():
    """Ratios 1.2, 2, 1: median 1.2 (that of the medians, 9 and 6, would be 1.5), quartiles 1.1 and 1.6."""
    result = made_result()
    summary.summarise(result)
    ours, theirs = result["contenders"]
    assert (ours["median"], theirs["median"], theirs["quartiles"]) == (9.0, 6.0, [5.5, 7.5])
    assert ours["padding"] == 0.0 and theirs["padding"] == pytest.approx(0.3)
    assert ours["waiting_cpu"] == 0.0 and theirs["waiting_cpu"] == pytest.approx(0.1)
    assert result["ratios"] == [{"of": "minibert fp32", "to": "transformers, best bf16", "values": [1.2, 2.0, 1.0],
                                 "median": 1.2, "quartiles": [1.1, 1.6]}]


def test_limits_take_the_contenders_own_number_format_and_shape():
    """1e9 weights · 6 FLOPs: 120 GFLOP/s are 20 pieces/s, of which 9 are 45 %."""
    result = made_result()
    summary.summarise(result)
    summary.add_limits(result, {"fp32": {"square 2048": 120.0, "minilm-l6": 180.0, "bert-base": 7.0},
                                "bf16": {"square 2048": 600.0, "minilm-l6": 1200.0, "bert-base": 8.0}})
    ours, theirs = result["contenders"]
    assert ours["share_of_limit"] == pytest.approx({"square 2048": 0.45, "minilm-l6": 0.3})
    assert theirs["limit"] == pytest.approx({"square 2048": 100.0, "minilm-l6": 200.0})


def test_the_machines_best_of_several_measurements():
    runs = [{"gflops": {"fp32": {"a": 5.0, "b": 11.0}}, "copy_gb": 7.0},
            {"gflops": {"fp32": {"a": 6.0, "b": 10.0}}, "copy_gb": 6.5}]
    assert summary.best_rates(runs) == {"gflops": {"fp32": {"a": 6.0, "b": 11.0}}, "copy_gb": 7.0}


def test_the_table_says_what_its_numbers_count():
    result = made_result()
    summary.summarise(result)
    rates = {form: {"square 2048": 120.0, "minilm-l6": 180.0} for form in ("fp32", "bf16")}
    summary.add_limits(result, rates)
    text = summary.table({"system": dict.fromkeys(("cpu", "threads", "torch", "transformers", "minibert"), "x"),
                          "machine": {"gflops": rates, "copy_gb": 10.0}, "results": [result],
                          "settings": {"data": "ner"}})
    row = next(line for line in text.splitlines() if "transformers, best bf16" in line)
    assert "6 pieces/s" in row and "padding 30%" in row and "minibert / this: 1.20 (1.10 to 1.60)" in row
    counted = text.partition("what the numbers count")[2]
    assert "  train: " in counted and "  limit: " in counted and "  memory: " not in counted
    assert max(map(len, text.splitlines())) <= 120


def test_contenders_that_read_other_pieces_are_told():
    same = {"train": {"rows": 6, "pieces": 31, "sha256": "a"}}
    other = {"train": {"rows": 6, "pieces": 30, "sha256": "b"}}
    assert summary.disagreements([same, same]) == []
    assert "6 rows of 31 pieces, 6 rows of 30 pieces" in summary.disagreements([same, other])[0]


def test_a_fingerprint_sees_pieces_order_and_the_ends_of_rows():
    whole = contender.fingerprint([[11, 12, 13], [14]])
    others = ([[11, 12], [13, 14]], [[14], [11, 12, 13]], [[11, 12, 15], [14]], [[1, 112, 13], [14]])
    assert whole not in [contender.fingerprint(rows) for rows in others]
    assert whole == contender.fingerprint(iter([(11, 12, 13), (14,)]))


# --------------------------------------------------------------------------------------------------------- options


def test_turns_are_reversed_every_other_round():
    assert [compare.turns(3, n) for n in range(3)] == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]


def names(only: str | None) -> list[str]:
    return [s.name for s in compare.choose(only, compare.settings("bf16"))]


def test_only_takes_names_and_beginnings():
    assert names("train-bf16,start-up") == ["train-bf16", "start-up"]
    assert names("score-base") == ["score-base-fp32", "score-base-bf16", "score-base-auto"]
    assert names("machine") == []
    assert len(names(None)) == len(set(names(None))) == 15
    with pytest.raises(MinibertError, match="--only names 'trai'; known: machine, train-fp32"):
        names("train-bf16,trai")


def test_minibert_stands_first_and_every_target_of_speed_has_its_pair():
    pairs = {(s.name, s.contenders[0], other) for s in compare.settings("bf16") for other in s.contenders[1:]}
    assert {first[0] for _, first, _ in pairs} == {"minibert"}
    for tag in ("", "base-"):
        for p in ("fp32", "bf16"):
            assert (f"train-{tag}{p}", ("minibert", p), ("transformers, best", p)) in pairs
        assert (f"train-{tag}auto", ("minibert", "auto"), ("transformers, recipe", "fp32")) in pairs
        assert (f"train-{tag}auto", ("minibert", "auto"), ("minibert", "fp32")) in pairs


@pytest.mark.parametrize("argv, said", [
    ([], "the following arguments are required: --data"), (["--rounds", "1"], "--rounds is 1; it must be at least 2"),
    (["--updates", "0"], "--updates is 0"), (["--warm-up", "0"], "--warm-up is 0"),
    (["--memory-updates", "60,20"], "--memory-updates is [60, 20]"), (["--memory-updates", "x"], "--memory-updates"),
    (["--fast"], "unrecognized arguments: --fast")])
def test_a_wrong_option_is_one_line_and_exit_2(argv, said, tmp_path, capsys):
    data = ["--data", str(tmp_path)] if argv else []
    assert compare.main([*data, *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_a_run_of_some_settings_overwrites_no_results():
    argv = ["--data", "x", "--only", "start-up"]
    assert compare.read_options(argv).output is None
    assert compare.read_options([*argv, "--output", "y"]).output == Path("y")
    assert compare.read_options(argv[:2]).output == ROOT / "benchmarks" / "results"


def test_arguments_for_minibert_are_one_string():
    assert compare.read_options(["--data", "x", "--minibert", "--gradients by-hand"]).minibert == "--gradients by-hand"


def test_missing_transformers_or_data_are_one_line(tmp_path, tiny_data, monkeypatch, capsys):
    argv = ["--only", "train-fp32", "--data"]
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: None)
    assert compare.main([*argv, str(tiny_data)]) == 2
    assert capsys.readouterr().err.startswith("error: transformers: not installed")
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: "found")
    assert compare.main([*argv, str(tmp_path / "none")]) == 2
    assert "none: no such folder" in capsys.readouterr().err
    (tmp_path / "train.txt").write_text("Oslo B-LOC\n")
    assert compare.main([*argv, str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: no test file; both are needed\n"


def test_the_parent_imports_no_transformers():
    code = "import sys; sys.path.insert(0, 'benchmarks'); import compare; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --------------------------------------------------------------------------------------------------------- workers


DIES = """
import sys
if sys.argv[1] == "at once":
    sys.exit(5)
sys.stdin.readline()
print("some noise\\nminibert.errors.MinibertError: no such tensor\\n", file=sys.stderr)
if sys.argv[1] == "in the middle":
    print('{"pieces": 3', end="", flush=True)
sys.exit(3)
"""


@pytest.mark.parametrize("when, said", [("in an order", "exit code 3: no such tensor"),
                                        ("in the middle", "exit code 3: no such tensor"),
                                        ("at once", "exit code 5: it printed nothing")])
def test_a_dead_worker_is_one_line_with_its_name_and_last_words(when, said, tmp_path):
    with workers.Worker("peer bf16", [sys.executable, "-c", DIES, when], tmp_path / "log") as worker:
        if when == "at once":
            worker.process.wait()                  # the order then meets a closed pipe
        with pytest.raises(MinibertError) as caught:
            worker.ask("updates", count=6)
        assert str(caught.value) == f"worker 'peer bf16' died at updates with {said}"


def test_a_killed_worker_names_the_signal(tmp_path):
    with workers.Worker("peer", [sys.executable, "-c", "input(); import os; os.kill(os.getpid(), 9)"],
                        tmp_path / "log") as worker:
        with pytest.raises(MinibertError, match=r"signal 9 \(out of memory\?\): it printed nothing"):
            worker.ask("score", every=6)


def test_an_error_kills_a_worker_and_a_good_end_lets_it_leave(tmp_path):
    """The process would leave by itself, with code 0, once its standard input is closed."""
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with pytest.raises(KeyboardInterrupt), workers.Worker("slow", waits, tmp_path / "log") as interrupted:
        raise KeyboardInterrupt
    with workers.Worker("slow", waits, tmp_path / "log") as finished:
        pass
    assert (interrupted.process.returncode, finished.process.returncode) == (-9, 0)


def test_the_command_survives_a_dead_worker(tmp_path, tiny_data, monkeypatch, capsys):
    """What was measured before is printed, the error is one line, nothing is written."""
    rates = {form: {"square 2048": 120.0, "minilm-l6": 180.0, "bert-base": 150.0} for form in ("fp32", "bf16")}
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: "found")
    monkeypatch.setattr(compare.minibert, "fetch", lambda *_: tmp_path)
    monkeypatch.setattr(compare.Bench, "rates", lambda self: {"gflops": rates, "copy_gb": 12.0})
    monkeypatch.setattr(compare, "start", lambda name, spec, log: workers.Worker(
        name, [sys.executable, "-c", DIES, "in an order"], log))
    output = tmp_path / "results"
    assert compare.main(["--data", str(tiny_data), "--only", "train-bf16", "--output", str(output)]) == 2
    out, err = capsys.readouterr()
    assert err == "error: worker 'train-bf16: minibert bf16' died at facts with exit code 3: no such tensor\n"
    assert "copying 12.0 GB/s" in out and not output.exists()


def test_a_minibert_worker_trains_and_scores_what_is_counted(tiny_folder, tiny_data, tmp_path):
    """The real process: train.py's parts still fit together, and its pieces are those of the batches it must take."""
    spec = {"side": "minibert", "precision": "fp32", "data": str(tiny_data), "weights": str(tiny_folder),
            "output": str(tmp_path / "run"), "arguments": ["--batch-size", "7", "--max-pieces", "24"]}
    with workers.start("minibert", spec, tmp_path / "log") as worker:
        facts = worker.ask("facts")
        warm, first, rest = (worker.ask(*job, count=n) for job, n in ((["warm_up"], 2), (["updates"], 5),
                                                                      (["updates"], 4)))
        epoch = worker.ask("whole_epoch")
        scored, part = worker.ask("score", every=1), worker.ask("score", every=6)
    import train
    t = train.set_up(["--data", str(tiny_data), "--weights", str(tiny_folder), "--max-pieces", "24"])
    lengths = t.features["train"].lengths
    pieces = [sum(lengths[i] for i in b) for b in epoch_batches(lengths, 7, 0, 1)]
    assert len(pieces) == 9
    assert (first["pieces"], rest["pieces"]) == (sum(pieces[:5]), sum(pieces[5:]))
    assert (epoch["updates"], epoch["pieces"]) == (9, sum(lengths))
    assert warm["pieces"] == sum(sum(lengths[i] for i in b) for b in epoch_batches(lengths, 7, 0, 0)[:2])
    test = [len(f.ids) for f in t.features["test"]]
    assert (scored["pieces"], part["pieces"]) == (sum(test), sum(test[::6]))
    assert facts["read"]["train"] == {"rows": 60, "pieces": sum(lengths),
                                      "sha256": contender.fingerprint(f.ids for f in t.features["train"])}
    assert facts["precision"] == "fp32" and set(facts["read"]) == {"train", "dev", "test"}
    assert first["seconds"] > 0 and first["cells"] >= first["pieces"] and json.dumps(scored)


def test_its_updates_are_those_of_train(tiny_folder, tiny_data, tmp_path):
    """The same losses, norms and rates in metrics.jsonl, bit by bit, with micro-batches and --adversarial."""
    from ours import Minibert

    import train
    words = ["--accumulate", "3", "--adversarial", "0.5", "--batch-size", "9", "--max-pieces", "24"]
    known = Minibert({"data": str(tiny_data), "weights": str(tiny_folder), "output": str(tmp_path / "ours"),
                      "precision": "fp32", "arguments": [*words, "--max-steps", "9"]})
    known.updates(9)
    known.held.close()
    train.train(["--data", str(tiny_data), "--weights", str(tiny_folder), "--output", str(tmp_path / "run"), "--device",
                 "cpu", "--precision", "fp32", "--max-steps", "9", "--no-before", "--evaluate", "none", *words])
    said = [[{k: v for k, v in json.loads(line).items() if k not in ("seconds", "epoch")} for line in
             (tmp_path / side / "metrics.jsonl").read_text().splitlines()] for side in ("ours", "run")]
    assert said[0] == said[1] and len(said[0]) == 9 and len({line["loss"] for line in said[0]}) == 9


# ---------------------------------------------------------------------------------------------------- old beside new


def old_new_bench(tiny_folder: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options):
    """This checkout beside itself, and the sides in the order in which they begin and are asked to score."""
    monkeypatch.setattr(old_new.minibert, "fetch", lambda *_: tiny_folder)
    given = {"data": tiny_data, "rounds": 2, "updates": 3, "warm_up": 2, "minibert": "--max-pieces 24", **options}
    bench, order = old_new.OldNew(SimpleNamespace(**given), ROOT, tmp_path), []
    run, ask = bench.run, workers.Worker.ask
    monkeypatch.setattr(bench, "run", lambda side, *more: order.append(("new", "old")[side]) or run(side, *more))
    monkeypatch.setattr(workers.Worker, "ask", lambda worker, job, **arguments: order.append(
        worker.name.split()[0] if arguments.get("every") == 1 else "") or ask(worker, job, **arguments))
    return bench, order


def test_old_beside_new(tiny_folder, tiny_data, tmp_path, monkeypatch):
    """The order is reversed every other time; the first run of each counts in nothing."""
    bench, order = old_new_bench(tiny_folder, tiny_data, tmp_path, monkeypatch)
    bench.training("fp32")
    assert order == ["old", "new", "new", "old", "old", "new"]
    order.clear()
    bench.scoring("fp32")
    assert [side for side in order if side] == ["new", "old", "old", "new"]
    assert list(bench.values) == ["training fp32, pieces/s", "besides the updates fp32, s", "peak memory fp32, MB",
                                  "updates fp32 at their best, s", "scoring fp32, pieces/s"]
    for what, (new, old) in bench.values.items():
        assert len(new) == len(old) == (1 if "best" in what else 2) and min(new + old) > 0, what
    assert bench.values["peak memory fp32, MB"][0][0] > 50
    assert not list(tmp_path.glob("run-*/model.safetensors"))


def test_old_beside_new_on_paper(tiny_folder, tiny_data, tmp_path, monkeypatch):
    """Two rounds of one update to warm up and two that count: 1 + 2 s at best of (1, 3) and (4, 2), 12 / 4 pieces/s."""
    bench, _ = old_new_bench(tiny_folder, tiny_data, tmp_path, monkeypatch, warm_up=1, updates=2)
    left_out, first = old_new.TrainingRun([9, 9, 9], [9] * 3, 99, 9), old_new.TrainingRun([7, 1, 3], [5, 4, 8], 20, 64)
    rounds = iter([left_out] * 2 + [first] * 2 + [old_new.TrainingRun([7, 4, 2], [5, 4, 8], 20, 64)] * 2)
    monkeypatch.setattr(bench, "run", lambda side, precision: next(rounds))
    bench.training("bf16")
    assert bench.values["updates bf16 at their best, s"] == ([3], [3])
    assert bench.values["training bf16, pieces/s"] == ([3, 2], [3, 2])
    assert bench.values["besides the updates bf16, s"] == ([9, 7], [9, 7])


def test_a_run_that_fails_beside_another_is_one_line(tiny_folder, tiny_data, tmp_path, monkeypatch):
    bench, _ = old_new_bench(tiny_folder, tiny_data, tmp_path, monkeypatch, minibert="--max-pieces 0")
    with pytest.raises(MinibertError, match=r"train\.py: error: --max-pieces is 0") as e:
        bench.run(1, "fp32")
    assert len(str(e.value).splitlines()) == 1


def test_old_beside_new_in_words(tmp_path, monkeypatch, capsys):
    """Ratios 2 and 1/2 of two rounds: the median 1.25 is of them, that of the medians would be 1."""
    def training(bench, precision):
        bench.values[f"training {precision}, pieces/s"] = [20.0, 30.0], [10.0, 60.0]
    monkeypatch.setattr(old_new.minibert, "fetch", lambda *_: tmp_path)
    monkeypatch.setattr(old_new.OldNew, "training", training)
    monkeypatch.setattr(old_new.OldNew, "scoring", lambda bench, precision: None)
    assert old_new.main(["--old", str(ROOT)]) == 0
    bf16, fp32 = capsys.readouterr().out.splitlines()
    assert bf16.split() == ("training bf16, pieces/s new 25.00 old 35.00 new / old 1.250 (0.500 to 2.000)").split()
    assert fp32.startswith("training fp32")


def test_a_commit_is_unpacked_as_it_was(tmp_path, monkeypatch):
    """Of a repository made here: the file as committed, not as it is now."""
    repository = tmp_path / "new"
    (repository / "benchmarks").mkdir(parents=True)
    (repository / "benchmarks" / "a.py").write_text("then")
    who = ["-c", "user.name=x", "-c", "user.email=x"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    (repository / "benchmarks" / "a.py").write_text("now")
    monkeypatch.setattr(old_new, "ROOT", repository)
    assert (old_new.unpacked("HEAD", tmp_path / "old") / "benchmarks" / "a.py").read_text() == "then"


def test_a_commit_that_is_not_there_is_one_line(capsys):
    assert old_new.main(["--old", "no-such-commit"]) == 2
    assert capsys.readouterr().err.startswith("error: --old is 'no-such-commit': fatal: not a")


# ------------------------------------------------------------------------------------------------------------- a GPU


def few(kind: str, arguments: dict) -> bool:
    """One part of each kind, and each engine once."""
    by_hand = arguments.get("layout") == "ragged" and arguments.get("precision") == "fp16"
    return (kind in ("facts", "reference") or (kind == "scores" and arguments["precision"] == "bf16")
            or (kind == "gradients" and (arguments["precision"] == "fp32" or by_hand))
            or ({"bert-base", "long"} <= {*arguments.values()} and "dropout" not in arguments))


def test_the_script_for_a_gpu_runs_on_the_cpu(tiny_data, tmp_path, monkeypatch, capsys):
    """All engines and layouts agree with the reference; what needs transformers says that it is not there."""
    chosen = [part for part in gpu.parts() if few(*part)]
    monkeypatch.setattr(gpu, "parts", lambda: iter(chosen))
    monkeypatch.setitem(workers.ENVIRONMENT, "PYTHONPATH", str(no_transformers(tmp_path)))
    output = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--small", "--updates", "3", "--data", str(tiny_data), "--output",
                     str(output)]) == 1
    report = json.loads(output.read_text())
    parts = report["parts"]
    assert len(parts) == len(chosen) and report["no time for"] == [] and report["ratios"] == {}
    assert report["failed"] == ["peer train bert-base long", "peer score bert-base long"]
    assert "No module named 'transformers'" in parts["peer score bert-base long"]["error"]
    assert any("import transformers" in line for line in parts["peer train bert-base long"]["trace"])

    compared = {name: part for name, part in parts.items() if name.startswith("gradients")}
    assert len(compared) == 3 * 2 + 3
    for name, part in compared.items():
        known = parts[f"reference {name.split()[2]}"]
        largest = 1e-6 if "fp32" in name else 2e-3
        assert part["gradient"] < largest and part["loss"] < largest and part["norm"] < 10 * largest, name
        assert part["losses"] == pytest.approx(known["losses"], rel=largest) and len(part["updates"]) == 3
        assert part["scale"] == (2.0 ** 16 if "fp16" in name else 1.0) and part["skipped"] == 0
    assert all(part["rate"] > 0 for name, part in parts.items() if name.startswith(("train", "score ")))
    assert all(part["largest difference"] < 0.1 * part["sd of the scores"] for name, part in parts.items()
               if name.startswith("scores"))
    assert "failed: peer train bert-base long, peer score bert-base long" in capsys.readouterr().out


def no_transformers(folder: Path) -> Path:
    """A folder for PYTHONPATH in which transformers is not to be had, whatever is installed."""
    (folder / "none").mkdir()
    (folder / "none" / "transformers.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'transformers'\")\n", encoding="utf-8")
    return folder / "none"


def made_bench(folder: Path, seconds: float, script: str, monkeypatch) -> gpu.Bench:
    monkeypatch.setattr(gpu, "start", lambda name, spec, log: workers.Worker(
        name, [sys.executable, "-c", script, "in an order"], log))
    options = SimpleNamespace(weights=None, data=folder, output=folder / "gpu.json", seconds=seconds)
    return gpu.Bench(options, {"scratch": str(folder)}, time.monotonic() + seconds)


def test_a_part_that_kills_its_process_leaves_the_others(tmp_path, monkeypatch):
    """Started anew for the next part; what it printed last is kept, in the report and on the disk."""
    bench = made_bench(tmp_path, 60, DIES, monkeypatch)
    for number in range(2):
        bench.note(f"part {number}", bench.ask("facts", {}))
        assert bench.worker is None
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert bench.started == 2 and report["failed"] == ["part 0", "part 1"]
    assert report["parts"]["part 1"] == {"error": "worker 'gpu' died at part with exit code 3: no such tensor",
                                         "trace": ["some noise", "minibert.errors.MinibertError: no such tensor"]}


def test_a_part_that_does_not_end_is_ended(tmp_path, monkeypatch):
    bench = made_bench(tmp_path, 4, "input(); import time; time.sleep(60)", monkeypatch)
    begin = time.monotonic()
    assert bench.ask("facts", {})["error"] == "killed: it took too long" and bench.worker is None
    assert 1 <= time.monotonic() - begin < 4


def test_without_time_nothing_is_begun(tiny_data, tmp_path):
    output = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--small", "--data", str(tiny_data), "--seconds", "1", "--output",
                     str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["parts"] == {} and len(report["no time for"]) == len(list(gpu.parts())) == 63
    assert len(set(report["no time for"])) == 63


def test_distance_of_gradients_on_paper():
    """Norms 5 and 12, 13 in all; away by 0.5 and 0: 1/26 of all, a tenth of the first."""
    wanted = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([12.0])}
    found = gpu_parts.distance({"a": torch.tensor([3.3, 4.4]), "b": torch.tensor([12.0])}, wanted)
    assert found == {"all": pytest.approx(0.5 / 13), "worst": pytest.approx(0.1), "worst tensor": "a"}
    assert gpu_parts.distance({"a": torch.tensor([3.0, torch.nan]), "b": torch.zeros(1)}, wanted)["worst tensor"] == "a"


def test_relative_difference_leaves_out_what_was_skipped():
    assert gpu_parts.relative([1.0, float("inf"), 3.0], torch.tensor([2.0, 2.0, 4.0])) == 0.5
    assert gpu_parts.relative([float("nan")], torch.tensor([2.0])) is None


def test_long_rows_are_neighbours_without_their_inner_ends():
    """[CLS] a b [SEP] and [CLS] c [SEP] are [CLS] a b c [SEP]; what would be longer than LONG begins a row."""
    def row(*ids, picks):
        return Feature(0, np.array(ids), np.zeros(len(ids), np.int64), np.array(picks), 10 * np.array(picks))

    first, *rest = gpu_parts.laid_out([row(2, 7, 8, 3, picks=[1, 2]), row(2, 9, 3, picks=[1]),
                                       row(2, *range(20, 20 + gpu_parts.LONG - 4), 3, picks=[1])], "long")
    assert first.ids.tolist() == [2, 7, 8, 9, 3] and first.picks.tolist() == [1, 2, 3]
    assert first.labels.tolist() == [10, 20, 10] and len(first.types) == 5 and [len(f.ids) for f in rest] == [126]


def test_ratios_are_of_the_fastest_of_each_side():
    done = {"train minilm-l6 long fast rectangle": {"rate": 30.0}, "train minilm-l6 long fast ragged": {"rate": 60.0},
            "train minilm-l6 long fast rectangle dropout 0": {"rate": 90.0}, "score bert-base long": {"error": "x"},
            "peer train minilm-l6 long": {"rate": 40.0}, "peer score minilm-l6 long": {"rate": 1.0},
            "peer train minilm-l6 long dropout 0": {"rate": 45.0}}
    assert gpu.ratios(done) == {"train minilm-l6 long": 1.5, "train minilm-l6 long dropout 0": 2.0}
