"""Several processes: the gradients, scores and weights of one, whoever has no rows; and a worker that is killed."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torture
from refusing import refused
from safetensors.torch import load_file
from together import ENGINES, ROWS
from torch import nn

from minibert.errors import MinibertError
from minibert.run.processes import ALONE, Processes, join

ROOT = Path(__file__).resolve().parents[2]
TOGETHER = ROOT / "tests" / "support" / "together.py"


def torchrun(count: int, *command: str, restarts: int = 0, **more: str) -> subprocess.CompletedProcess:
    """`count` processes on this machine, which find each other by a free port of the loopback device."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    words = ["--standalone", "--nproc-per-node", str(count), "--max-restarts", str(restarts), *command]
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], env=environment, text=True,
                          capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def together(tiny_folder, tiny_data, tmp_path_factory):
    """K -> (gradients, scores) of K processes."""
    found = {}

    def run(count: int) -> tuple[dict[str, torch.Tensor], dict]:
        if count not in found:
            folder = tmp_path_factory.mktemp(f"of{count}")
            done = torchrun(count, str(TOGETHER), str(folder), str(tiny_folder), str(tiny_data))
            assert done.returncode == 0, done.stderr[-3000:]
            scores = json.loads((folder / "scores.json").read_text())
            found[count] = load_file(folder / "gradients.safetensors"), scores
        return found[count]
    return run


@pytest.mark.parametrize("count", [2, 4])
def test_k_processes_have_the_gradients_of_one(together, count):
    """To 1e-6 of each tensor's norm, key biases by their query's (their own gradient is rounding)."""
    (one, _), (many, _) = together(1), together(count)
    assert one.keys() == many.keys() and len(one) > 39 * len(ENGINES) * len(ROWS) * 4
    for key, g in one.items():
        size = one[key.replace("key.bias", "query.bias")].norm()
        assert size > 0 and float((many[key] - g).norm() / size) <= 1e-6, key


@pytest.mark.parametrize("count", [2, 4])
def test_k_processes_have_the_scores_of_one(together, count):
    assert together(count)[1] == together(1)[1]


def arguments(tiny_folder, tiny_data, output, *more: str) -> list[str]:
    return [str(ROOT / "train.py"), "--weights", str(tiny_folder), "--data", str(tiny_data), "--output",
            str(output), "--epochs", "2", "--batch-size", "7", "--learning-rate", "3e-3", "--precision", "fp32",
            "--max-pieces", "24", "--overlap", "6", "--no-before", "--cache", "off", *more]


def updates(output: Path) -> list[dict]:
    return [line for line in map(json.loads, (output / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


def test_a_whole_run_goes_the_same_way(tiny_folder, tiny_data, tmp_path):
    """Batches of 3 among 4 processes: one of them never has a row."""
    runs = {}
    for count in (1, 4):
        done = torchrun(count, *arguments(tiny_folder, tiny_data, tmp_path / str(count), "--dropout", "0",
                                          "--batch-size", "3"))
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("epoch 2: loss") == 1     # one speaks
        runs[count] = updates(tmp_path / str(count))
    for a, b in zip(runs[1], runs[4], strict=True):
        assert (a["step"], a["epoch"], a["pieces"], a["learning_rate"]) == (b["step"], b["epoch"], b["pieces"],
                                                                           b["learning_rate"])
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)
    one, four = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in "14")
    assert one["train"]["pieces"] == four["train"]["pieces"]
    assert json.loads((tmp_path / "4" / "train.json").read_text())["processes"] == 4


KILLER = """
import os, signal, sys
sys.path[:0] = [{root!r}]
import train
accumulate = train.accumulate
def deadly(*a):
    if a[4] == {step} and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return accumulate(*a)
train.accumulate = deadly
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_killed_worker_starts_again_from_the_last_checkpoint_to_the_same_weights(tiny_folder, tiny_data, tmp_path):
    script = tmp_path / "deadly.py"
    script.write_text(KILLER.format(root=str(ROOT), step=11))
    command = ["--save-every", "4", "--resume"]
    unbroken = torchrun(2, *arguments(tiny_folder, tiny_data, tmp_path / "unbroken", *command))
    assert unbroken.returncode == 0, unbroken.stderr[-3000:]
    _, *rest = arguments(tiny_folder, tiny_data, tmp_path / "broken", *command)
    broken = torchrun(2, str(script), *rest, restarts=2)
    assert broken.returncode == 0, broken.stderr[-3000:]
    assert "resumed from update 8" in broken.stdout
    assert torture.same_weights(tmp_path / "broken", tmp_path / "unbroken")
    assert [u["loss"] for u in updates(tmp_path / "broken")] == [u["loss"] for u in updates(tmp_path / "unbroken")]


def test_sigterm_to_all_of_them_saves_and_ends(tiny_folder, tiny_data, tmp_path):
    script = tmp_path / "asked.py"
    script.write_text(KILLER.format(root=str(ROOT), step=5).replace("SIGKILL", "SIGTERM"))
    _, *rest = arguments(tiny_folder, tiny_data, tmp_path / "r")
    torchrun(2, str(script), *rest)
    assert (tmp_path / "r" / "checkpoints" / "update-00000005").is_dir()
    assert "stopped by another process after update 5" in (tmp_path / "r" / "log.txt").read_text()


def test_a_launcher_that_is_asked_to_stop_is_not_restarted(tiny_folder, tiny_data, tmp_path):
    """SIGTERM to torchrun itself, as a batch system sends it, restarts or no restarts: saved, and the end."""
    script = tmp_path / "asked.py"
    script.write_text(KILLER.format(root=str(ROOT), step=5).replace(
        "os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getppid(), signal.SIGTERM), time.sleep(1)").replace(
        "import os", "import os, time"))
    _, *rest = arguments(tiny_folder, tiny_data, tmp_path / "r")
    done = torchrun(2, str(script), *rest, "--resume", restarts=2)
    assert done.returncode != 0
    log = (tmp_path / "r" / "log.txt").read_text()
    assert "stopped by" in log and "resumed" not in log and not (tmp_path / "r" / "metrics.json").exists()
    assert (tmp_path / "r" / "checkpoints" / "update-00000005").is_dir()


def test_a_mistake_is_one_line_for_all_of_them(tiny_folder, tiny_data, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "letter.txt").write_text("dear all")
    done = torchrun(2, *arguments(tiny_folder, tiny_data, tmp_path / "r"))
    assert done.returncode != 0
    assert done.stderr.count("holds something, but no run") == 1


def test_what_the_first_cannot_write_is_one_line(tiny_folder, tiny_data, tmp_path):
    """The other waits for it, and does not say that it is gone."""
    (tmp_path / "r" / "train.json").mkdir(parents=True)
    done = torchrun(2, *arguments(tiny_folder, tiny_data, tmp_path / "r", "--resume"))
    assert done.returncode != 0
    assert [line.partition(": cannot be written")[0] for line in done.stderr.splitlines() if "error: " in line] == [
        f"error: {tmp_path / 'r' / 'train.json'}"]


# -------------------------------------------------------------------------------------------------------- alone


def test_alone_it_asks_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join("cpu") is ALONE and ALONE.first
    model = nn.Linear(7, 5)
    ALONE.sum_gradients(model)
    assert model.weight.grad is None and ALONE.sum_counts({"words": 5.0}) == {"words": 5.0} and ALONE.add(0.1) == 0.1
    assert ALONE.any(True, False) == (True, False) and ALONE.gather([1]) == [[1]]
    with pytest.raises(MinibertError, match="no"):
        ALONE.by_first(lambda: (_ for _ in ()).throw(MinibertError("no")))


@pytest.mark.parametrize("rank", ["0", "2"])
@pytest.mark.parametrize("here", [{"LOCAL_WORLD_SIZE": "3"}, {}])
def test_more_processes_than_gpus_are_refused_before_they_meet(monkeypatch, rank, here):
    """By each of them alike, where the launcher says how many they are."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if here else int(rank))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in {"WORLD_SIZE": "3", "RANK": rank, "LOCAL_RANK": rank, **here}.items():
        monkeypatch.setenv(name, value)
    with refused("processes on a machine of", "--device cpu"):
        join("cuda")


def test_shares_are_all_of_it_once_and_differ_by_one_at_most():
    numbers = np.arange(100, 123)
    for size in (1, 2, 4, 30):
        shares = [Processes(rank, size).share(numbers) for rank in range(size)]
        assert sorted(np.concatenate(shares).tolist()) == numbers.tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
