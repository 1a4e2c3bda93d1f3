"""Several processes that train one model together: who has which rows, and the few numbers they tell each other.

    torchrun --nproc-per-node 4 train.py --task ner

Nothing here averages, and nothing wraps the model. Every process holds all weights and makes the same updates; of each
update's rows it has its share, derives the gradient *sums* of those, and one all_reduce(SUM) of one flat tensor adds
them up. Counts are added up before, so every sum is divided by the count of the whole update: the objective that
train.accumulate() states. What has a form (counts, scores, names) travels as JSON, never as pickled objects.
"""
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from minibert.core.batch import Feature
from minibert.core.model import Model
from minibert.errors import MinibertError
from minibert.files import Json
from minibert.tasks.base import Task
from minibert.use.evaluate import FeatureScorer

Given = TypeVar("Given")


class SharedScorer(FeatureScorer):
    """A FeatureScorer among several processes: each does its share of the features, and has all scores."""

    def __init__(self, model: Model, task: Task, precision: str, processes: "Processes"):
        super().__init__(model, task, precision)
        self.processes = processes

    def __call__(self, features: Sequence[Feature]) -> list[np.ndarray]:
        """As score_features()."""
        rank, size = self.processes.rank, self.processes.size
        shares = [range(r, len(features), size) for r in range(size)]
        mine = super().__call__([features[i] for i in shares[rank]])
        scores: list[np.ndarray] = [np.zeros(0)] * len(features)
        for share, arrays in zip(shares, self.processes.gather_arrays(mine), strict=True):
            for i, rows in zip(share, arrays, strict=True):
                scores[i] = rows
        return scores


class Shared(MinibertError):
    """An error of the first process that all of them raise: one of them is enough to print it."""


class Processes:
    """This process among `size`: `rank` 0 writes and prints. One process alone asks nobody anything."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu"):
        self.rank, self.size, self.device = rank, size, torch.device(device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, numbers: np.ndarray) -> np.ndarray:
        """This process's part of an update's rows: every size-th, as neighbours are of similar length; perhaps none."""
        return numbers[self.rank::self.size]

    def sum_counts(self, counts: Mapping[str, float]) -> dict[str, float]:
        """{term: number} over all processes; a process without rows has no terms, and learns of them here."""
        total: dict[str, float] = {}
        for part in self.gather(dict(counts)):
            for term, count in part.items():
                total[term] = total.get(term, 0.0) + count
        return total

    def sum_gradients(self, model: nn.Module) -> None:
        """Every .grad becomes the sum over all processes, dense; one that no process has stays None."""
        if self.size == 1:
            return
        params = list(model.parameters())
        there = torch.tensor([p.grad is not None for p in params], dtype=torch.float32, device=self.device)
        dist.all_reduce(there)
        moved = [p for p, n in zip(params, there.tolist(), strict=True) if n]
        flat = torch.zeros(sum(p.numel() for p in moved), dtype=moved[0].dtype if moved else None, device=self.device)
        parts = flat.split([p.numel() for p in moved])
        for p, part in zip(moved, parts, strict=True):
            if p.grad is not None and p.grad.is_sparse:
                part.view_as(p).index_copy_(0, p.grad.indices()[0], p.grad.values())
            elif p.grad is not None:
                part.copy_(p.grad.view(-1))
        dist.all_reduce(flat)
        for p, part in zip(moved, parts, strict=True):
            p.grad = part.view_as(p)

    def add(self, number: float) -> float:
        """The sum of a number over all processes, in float64."""
        if self.size == 1:
            return number
        total = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def any(self, *answers: bool) -> tuple[bool, ...]:
        """For each question whether any process says yes."""
        if self.size == 1:
            return answers
        votes = torch.tensor(answers, dtype=torch.float32, device=self.device)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return tuple(v > 0 for v in votes.tolist())

    def by_first(self, call: Callable[[], Given]) -> Given:
        """What call() gives in the first process, for all, as JSON gives it back; or the MinibertError it raises."""
        if self.size == 1:
            return call()
        answer: Json = {}
        if self.first:
            try:
                answer["given"] = call()
            except (MinibertError, OSError) as e:
                answer["error"] = str(e)
        answer = self.gather(answer)[0]
        if "error" in answer:
            raise Shared(answer["error"])
        return answer["given"]

    def gather(self, value: Any) -> list[Any]:
        """What every process has, by rank; as JSON gives it back."""
        if self.size == 1:
            return [value]
        return [json.loads(bytes(x)) for x in self.gather_bytes(json.dumps(value).encode())]

    def gather_arrays(self, arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """The float32 arrays [M,K] of every process, by rank."""
        if self.size == 1:
            return [list(arrays)]
        shapes = self.gather([list(a.shape) for a in arrays])
        flat = np.concatenate([np.ravel(a) for a in arrays] or [np.zeros(0)]).astype(np.float32)
        result = []
        for rows, data in zip(shapes, self.gather_bytes(flat.tobytes()), strict=True):
            cuts = np.cumsum([int(np.prod(s)) for s in rows])[:-1]
            parts = np.split(np.frombuffer(data, np.float32), cuts) if rows else []
            result.append([part.reshape(s) for part, s in zip(parts, rows, strict=True)])
        return result

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of every process, by rank: first how many, then all of them at the longest one's length."""
        size = torch.tensor([len(data)], dtype=torch.int64, device=self.device)
        sizes = [torch.zeros_like(size) for _ in range(self.size)]
        dist.all_gather(sizes, size)
        counts = [int(s) for s in sizes]
        mine = torch.zeros(max(counts), dtype=torch.uint8, device=self.device)
        mine[:len(data)] = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[:len(data)].to(self.device)
        everything = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everything, mine)
        return [x[:n].cpu().numpy().tobytes() for x, n in zip(everything, counts, strict=True)]

    def leave(self) -> None:
        """Close the connection to the others, if there were any."""
        if self.size > 1:
            dist.destroy_process_group()


ALONE = Processes()


def refuse_shared_gpus() -> None:
    """Raise MinibertError where this machine has fewer GPUs than processes; all of these find it alike."""
    gpus, rank = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", rank + 1))
    if here > gpus:
        raise MinibertError(f"{here} processes on a machine of {gpus} GPUs: each needs one; start {gpus} "
                            "(--nproc-per-node), or give --device cpu")


def join(device: str) -> Processes:
    """As torchrun's environment says; alone without it. "cpu" speaks gloo, "cuda" nccl, a GPU a process."""
    try:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return ALONE
        if size < 1:
            raise ValueError("less than one process")
        if device == "cuda":
            refuse_shared_gpus()
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        store, rank, _ = next(dist.rendezvous("env://"))
    except (KeyError, ValueError) as e:
        raise MinibertError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r}, but this is no process of torchrun ({e}); "
                            "start with torchrun, or unset WORLD_SIZE") from None
    # after a restart torchrun's store still has what the processes before wrote into it, addresses where nobody is
    attempt = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=attempt, rank=rank, world_size=size)
    if rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (the first process speaks for all)
    return Processes(rank, size, device)
