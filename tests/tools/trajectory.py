"""Ten losses of a tiny model, made by torch alone: autograd, F.cross_entropy, torch.optim.AdamW; no code of ops.py.

    python tests/tools/trajectory.py                   # prints LOSSES of tests/core/test_byhand.py

torch 2.13.0, float64. The masks are the project's (numpy's Philox), since both engines must be handed the same.
"""
import numpy as np
import torch
import torch.nn.functional as F

from minibert.checkpoints.weights import random_bert
from minibert.core.batch import Batch, Feature, collate
from minibert.core.config import BertConfig
from minibert.core.dropout import DropoutMasks
from minibert.core.heads import TokenHead
from minibert.core.model import Model, initialise

K, LR, DECAY, SEED = 7, 3e-3, 0.1, 23


def start() -> tuple[Model, list[Batch]]:
    """The untrained model, float64, and ten batches of 6 rows."""
    config = BertConfig(vocab_size=53, hidden_size=30, num_hidden_layers=2, num_attention_heads=5, intermediate_size=44,
                        max_position_embeddings=19, initializer_range=0.2)
    model = Model(random_bert(config, seed=3, pooler=False), TokenHead(config, K)).double()
    initialise(model.head, 0.3, seed=4)
    random = np.random.default_rng(5)
    batches = []
    for _ in range(10):
        features = []
        for i in range(6):
            T = int(random.integers(7, 17))
            picks = np.sort(random.choice(T, int(random.integers(5, 8)), replace=False))
            ids = random.integers(0, 53, T)
            features.append(Feature(i, ids, random.integers(0, 2, T), picks, ids[picks] % K))   # something to learn
        batches.append(collate(features))
    return model, batches


def main() -> None:
    """Train and print."""
    model, batches = start()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
    for step, batch in enumerate(batches, 1):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch, DropoutMasks(SEED, step)), batch.labels)
        loss.backward()
        optimizer.step()
        print(f"          {loss.item()!r},")


if __name__ == "__main__":
    main()
