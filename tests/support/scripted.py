"""Dev scores that a test dictates."""
import torch

import train


def scripted(monkeypatch, *f1: float) -> list[dict[str, torch.Tensor]]:
    """Dev's entity F1 in epoch 1, 2, ... is what stands here; -> the weights each time it was asked for."""
    evaluate, seen = train.Run.evaluate, []

    def instead(self, split):
        found, tables = evaluate(self, split)
        if split == "dev":
            found["entity"]["f1"] = f1[self.epoch_in_hand - 1]
            seen.append({n: t.clone() for n, t in self.model.state_dict().items()})
        return found, tables

    monkeypatch.setattr(train.Run, "evaluate", instead)
    return seen
