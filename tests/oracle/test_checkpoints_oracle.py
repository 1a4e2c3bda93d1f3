"""Random published checkpoints of every class, as files have them: transformers' scores, or a refusal by name."""
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from minibert.checkpoints import weights
from minibert.core.batch import Feature, collate
from minibert.core.config import BertConfig
from minibert.core.heads import Head, NextSentenceHead, PooledHead, SpanHead, TokenHead, WordHead
from minibert.core.model import Model
from minibert.errors import MinibertError

CHECKPOINTS, K, V, B, T = 240, 5, 61, 3, 11
CLASSES: dict[str, type] = {name: getattr(hf, name) for name in (
    "BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForTokenClassification",
    "BertForSequenceClassification", "BertForQuestionAnswering")}
DECODER, WORDS = "cls.predictions.decoder.{}", "bert.embeddings.word_embeddings.weight"


def head_of(kind: str, config: BertConfig) -> Head | None:
    heads = {"BertForMaskedLM": WordHead, "BertForPreTraining": NextSentenceHead, "BertForQuestionAnswering": SpanHead}
    if kind in heads:
        return heads[kind](config)
    maps = {"BertForTokenClassification": TokenHead, "BertForSequenceClassification": PooledHead}
    return maps[kind](config, K) if kind in maps else None


def written(draw: random.Random, kind: str, folder: Path) -> list[str]:
    """A checkpoint of that class with everything random, its files changed as people's are; -> the changes."""
    settings = {"hidden_act": draw.choice(["gelu", "relu", "gelu_new"]), "layer_norm_eps": draw.choice([1e-12, 1e-5]),
                "classifier_dropout": draw.choice([None, 0.3]), "tie_word_embeddings": draw.random() < 0.5,
                "type_vocab_size": draw.choice([1, 2, 3]), "num_labels": 2 if kind == "BertForQuestionAnswering" else K}
    config = hf.BertConfig(vocab_size=V, hidden_size=12, num_hidden_layers=draw.choice([1, 2]), num_attention_heads=3,
                           intermediate_size=20, max_position_embeddings=17, **settings)
    model = CLASSES[kind](config)
    generator = torch.Generator().manual_seed(draw.randrange(10 ** 6))
    for p in model.parameters():
        p.data = 0.4 * torch.randn(p.shape, generator=generator)
    model.save_pretrained(folder)

    tensors, done = load_file(folder / "model.safetensors"), []
    changes = {
        "another decoder": lambda t: t.update({DECODER.format("weight"): torch.randn(V, 12, generator=generator)}),
        "another bias": lambda t: t.update({DECODER.format("bias"): torch.randn(V, generator=generator)}),
        "both names": lambda t: t.setdefault(DECODER.format("weight"), t[WORDS].clone()),
        "decoder's name alone": lambda t: t.setdefault(DECODER.format("weight"), t.pop(WORDS)),
        "decoder's bias alone": lambda t: t.setdefault(DECODER.format("bias"), t.pop("cls.predictions.bias")),
        "no decoder": lambda t: t.pop(DECODER.format("weight"), None)} if "cls.predictions.bias" in tensors else {}
    changes |= {
        "16 bits": lambda t: t.update({name: x.half() for name, x in t.items()}),
        "gamma, beta": lambda t: [t.update({name.replace("LayerNorm.weight", "LayerNorm.gamma"): t.pop(name)})
                                  for name in list(t) if name.endswith("LayerNorm.weight")],
        "positions": lambda t: t.update({"bert.embeddings.position_ids": torch.arange(17)[None]})}
    for name in draw.sample(sorted(changes), draw.randrange(3)):
        if "decoder's name alone" in done and name in ("another decoder", "both names", "no decoder"):
            continue                               # it holds the word vectors now
        changes[name](tensors)
        done.append(name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return [*done, json.dumps(settings)]


def scores_of(model: torch.nn.Module, kind: str, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """Theirs, a row a piece or a row a text."""
    with torch.no_grad():
        out = model(input_ids=ids, token_type_ids=types)
    if kind == "BertModel":
        return out.last_hidden_state.flatten(0, 1)
    if kind == "BertForQuestionAnswering":
        return torch.stack([out.start_logits, out.end_logits], -1).flatten(0, 1)
    if kind == "BertForPreTraining":
        return out.prediction_logits[:, 1:].flatten(0, 1)
    return out.logits.flatten(0, 1) if out.logits.dim() == 3 else out.logits


def rows(kind: str, ids: torch.Tensor, types: torch.Tensor) -> list[Feature]:
    """Scores are asked for at every piece, of a text's class at the first; the first of BertForPreTraining answers."""
    picks = np.arange(1 if kind == "BertForSequenceClassification" else T)
    return [Feature(i, ids[i].numpy(), types[i].numpy(), picks, np.zeros(len(picks), np.int64)) for i in range(B)]


@pytest.mark.parametrize("kind", CLASSES)
def test_scores_are_theirs_or_the_load_names_what_it_cannot_honour(tmp_path, kind):
    draw, same, refused = random.Random(kind), 0, 0
    for i in range(CHECKPOINTS // len(CLASSES)):
        changes = written(draw, kind, folder := tmp_path / str(i))
        config = weights.read_config(folder)
        head = head_of(kind, config)
        try:
            bert, _ = weights.load(folder, head)
        except MinibertError as e:
            assert any(name in str(e) for name in ("decoder", "cls.predictions", "word_embeddings")), (changes, e)
            refused += 1
            continue
        theirs = CLASSES[kind].from_pretrained(folder).float().eval()
        generator = torch.Generator().manual_seed(i)
        ids = torch.randint(5, V, (B, T), generator=generator)
        types = torch.randint(0, config.type_vocab_size, (B, T), generator=generator)

        wanted = scores_of(theirs, kind, ids, types)
        if head is None:
            found = bert.requires_grad_(False).encode(ids, torch.ones_like(ids), types)[0].flatten(0, 1)
        else:
            model = Model(bert, head).eval()
            with torch.no_grad():
                found = model(collate(rows(kind, ids, types)))
            if kind == "BertForPreTraining":
                found = found.view(B, T, V)[:, 1:].flatten(0, 1)
            if kind in ("BertForTokenClassification", "BertForSequenceClassification"):
                assert model.head.p == theirs.dropout.p, changes
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().max()) < 1e-4 * max(1.0, float(wanted.abs().max())), (i, changes)
        same += 1
    assert same > 20, (same, refused)
