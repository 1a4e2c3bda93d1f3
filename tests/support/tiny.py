"""A checkpoint with pairwise distinct sizes, its vocabulary, and a few learnable sentences: what the fixtures of
../conftest.py write, for programs that are no tests too."""
import json
import string
from pathlib import Path

import numpy as np
import torch
from torch import nn

from minibert.checkpoints.weights import random_bert, save
from minibert.core.config import BertConfig

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PERSONS = ["ada", "bruno", "clara", "edgar", "ivana", "stone", "keller", "moreau"]
PLACES = ["oslo", "lima", "cairo", "quito", "new", "port"]
COMPANIES = ["acme", "globex", "nordia", "bank", "motors"]
PLAIN = ["in", "met", "left", "for", "works", "at", "and", "the", "old", "today", "bought", "visited", "from", "rain",
         "##ing", "##ed", "##er", ".", ","]

# upper-case letters are slots: P a person, L a place, O an organisation
TEMPLATES = ["P met P in L .", "P works at O .", "O bought O in L , P left .", "P left L for L today .",
             "P visited L .", "the rain in L left today .", "O and O works in L .", "today P left O",
             "the old bank met the rain today .", "rain visited L and P .", "P from O met the old P from L .",
             "in L the bank of O left"]
NAMES = {"PER": [["Ada"], ["Bruno"], ["Clara"], ["Edgar"], ["Ivana"], ["Ada", "Stone"], ["Bruno", "Keller"],
                 ["Clara", "Moreau"], ["Zoe"]],
         "LOC": [["Oslo"], ["Lima"], ["Cairo"], ["Quito"], ["New", "Lima"], ["Port", "Stone"], ["Bern"]],
         "ORG": [["ACME"], ["Globex"], ["Nordia"], ["Nordia", "Bank"], ["ACME", "Motors"], ["UNX"]]}
SLOTS = {"P": "PER", "L": "LOC", "O": "ORG"}


def make_vocabulary() -> list[str]:
    """95 pieces; every word of a to z can be spelt."""
    letters = list(string.ascii_lowercase)
    pieces = SPECIALS + letters + ["##" + c for c in letters] + PERSONS + PLACES + COMPANIES + PLAIN
    assert len(set(pieces)) == len(pieces)
    return pieces


def make_config(vocab_size: int) -> BertConfig:
    """A=5, D=6, H=30, F=44, L=2, 40 positions, 2 types: no size equals another."""
    return BertConfig(vocab_size=vocab_size, hidden_size=30, num_hidden_layers=2, num_attention_heads=5,
                      intermediate_size=44, max_position_embeddings=40, initializer_range=0.1)


def write_tiny_folder(folder: Path) -> Path:
    """The checkpoint of tiny_folder in an empty folder."""
    vocabulary = make_vocabulary()
    save(folder, shake(random_bert(make_config(len(vocabulary)), seed=11), seed=12))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}), encoding="utf-8")
    return folder


def write_tiny_data(folder: Path) -> Path:
    """The sentences of tiny_data in an empty folder."""
    draw = np.random.default_rng(5)
    for split, count in (("train", 60), ("dev", 20), ("test", 20)):
        sentences = []
        for i in range(count):
            lines = []
            for word in TEMPLATES[i % len(TEMPLATES)].split():
                if word in SLOTS:
                    kind = SLOTS[word]
                    name = NAMES[kind][draw.integers(len(NAMES[kind]))]
                    lines += [f"{w} {'I' if j else 'B'}-{kind}" for j, w in enumerate(name)]
                else:
                    lines.append(f"{word} O")
            sentences.append("\n".join(lines))
        (folder / f"{split}.conll").write_text("\n\n".join(sentences) + "\n", encoding="utf-8")
    return folder


@torch.no_grad()
def shake(bert: nn.Module, seed: int) -> nn.Module:
    """Move every bias and LayerNorm weight away from 0 and 1, so that none of them can be forgotten unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for p in bert.parameters():
        if p.dim() == 1:
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return bert
