"""Dev scores that a test dictates."""
import torch

from minibert.run.run import Run


def scripted(monkeypatch, *f1: float) -> list[dict[str, torch.Tensor]]:
    """Dev's entity F1 in epoch 1, 2, ... is what stands here; -> the weights each time it was asked for."""
    evaluate, seen = Run.evaluate, []

    def instead(self, split):
        found = evaluate(self, split)
        if split == "dev":
            found.scores["entity"]["f1"] = f1[self.at.epoch_in_hand(self.plan) - 1]
            seen.append({n: t.clone() for n, t in self.training.model.state_dict().items()})
        return found

    monkeypatch.setattr(Run, "evaluate", instead)
    return seen
