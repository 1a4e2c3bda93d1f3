"""What each of K processes does in test_processes.py; started by torchrun with a folder to write into.

    torchrun --nproc-per-node K tests/support/together.py FOLDER WEIGHTS DATA
"""
import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from updates import derive  # noqa: E402

import train  # noqa: E402
from minibert.engines import ENGINES  # noqa: E402
from minibert.files import write_json, write_tensors  # noqa: E402
from minibert.run.processes import SharedScorer  # noqa: E402
from minibert.run.training import Training  # noqa: E402
from minibert.use.evaluate import evaluate_split  # noqa: E402

ROWS = {"even": range(24), "uneven": range(23), "fewer than processes": range(2), "one": range(1)}


def dense(p: torch.nn.Parameter) -> torch.Tensor:
    return p.grad.to_dense() if p.grad.is_sparse else p.grad


def gradients(t: Training) -> dict[str, torch.Tensor]:
    """{"ENGINE ROWS NAME": gradient of one update, summed over all processes, and "... loss"}."""
    found = {}
    for engine in ENGINES:
        for accumulate in (1, 3):
            for adversarial in (0.0, 0.5):
                settings = dataclasses.replace(t.settings, gradients=engine, accumulate=accumulate,
                                               adversarial=adversarial)
                for name, rows in ROWS.items():
                    batches = train.micro_batches(t.features["train"], t.processes.share(np.array(rows)), t.task,
                                                  settings, 0, torch.device("cpu"))
                    t.model.zero_grad()
                    loss = derive(t.model, t.task, batches, 1.0, settings, 1, t.processes)
                    key = f"{engine} {accumulate} {adversarial} {name}"
                    found |= {f"{key}: {n}": dense(p).clone() for n, p in t.model.named_parameters()
                              if p.grad is not None}
                    found[f"{key}: loss"] = torch.tensor(loss, dtype=torch.float64)
    return found


def main() -> None:
    folder, weights_folder, data = sys.argv[1:]
    t = train.set_up(["--weights", weights_folder, "--data", data, "--precision", "fp32", "--max-pieces", "24",
                      "--overlap", "6", "--dropout", "0", "--cache", "off", "--seed", "4"])
    processes = t.processes
    assert processes.gather({"rank": processes.rank}) == [{"rank": r} for r in range(processes.size)]
    assert processes.add(processes.rank + 0.5) == sum(r + 0.5 for r in range(processes.size))
    assert processes.any(processes.rank == processes.size - 1, False) == (True, False)
    arrays = [np.full((processes.rank + i, 3), 10.0 * processes.rank + i, np.float32) for i in range(processes.rank)]
    shapes = [[a.shape for a in part] for part in processes.gather_arrays(arrays)]
    assert shapes == [[(r + i, 3) for i in range(r)] for r in range(processes.size)]
    found = gradients(t)
    score = SharedScorer(t.model, t.task, t.settings.precision, processes)
    scores = evaluate_split(score, t.examples["test"], t.features["test"]).scores
    if processes.first:
        write_tensors(Path(folder) / "gradients.safetensors", {k: v.contiguous() for k, v in found.items()})
        write_json(Path(folder) / "scores.json", scores)
    processes.leave()


if __name__ == "__main__":
    main()
