import pytest
import torch
from torch import nn

from minibert.adapt.freeze import freeze
from minibert.core.heads import Head
from minibert.core.layout import Layout
from minibert.core.model import Bert, Model
from minibert.core.optim import SGD, AdamW, decay_groups
from minibert.errors import MinibertError


class Reading(Head):
    """Reads pieces, or the pooler."""

    def __init__(self, uses_pooler: bool):
        super().__init__()
        self.classifier = nn.Linear(30, 7)
        self.uses_pooler = uses_pooler


def make(config, uses_pooler: bool = False, pooler: bool = True) -> Model:
    torch.manual_seed(0)
    return Model(Bert(config, pooler), Reading(uses_pooler))


def frozen(model: Model) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


EMBEDDINGS = {f"bert.embeddings.{n}" for n in ("word.weight", "position.weight", "token_type.weight", "norm.weight",
                                               "norm.bias")}
LINEARS = ("attention.query", "attention.key", "attention.value", "attention.output", "attention_norm",
           "feedforward.inner", "feedforward.outer", "feedforward_norm")
BLOCKS = [{f"bert.blocks.{i}.{n}.{kind}" for n in LINEARS for kind in ("weight", "bias")} for i in range(2)]
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
EXPECTED = {"none": set(), "embeddings": EMBEDDINGS, "0": EMBEDDINGS, "1": EMBEDDINGS | BLOCKS[0],
            "2": EMBEDDINGS | BLOCKS[0] | BLOCKS[1]}


def test_the_names_above_are_all_there_are(tiny_config):
    names = {name for name, _ in make(tiny_config).named_parameters()}
    assert names == EMBEDDINGS | BLOCKS[0] | BLOCKS[1] | POOLER | {"head.classifier.weight", "head.classifier.bias"}


@pytest.mark.parametrize("what", EXPECTED)
def test_exactly_these_parameters_are_frozen(tiny_config, what):
    model = make(tiny_config)
    assert freeze(model, what) is model
    assert frozen(model) == EXPECTED[what] | POOLER
    assert frozen(freeze(make(tiny_config, pooler=False), what)) == EXPECTED[what]
    assert frozen(freeze(make(tiny_config, uses_pooler=True), what)) == EXPECTED[what]


@pytest.mark.parametrize("uses_pooler", [False, True])
def test_encoder_leaves_only_the_head(tiny_config, uses_pooler):
    model = freeze(make(tiny_config, uses_pooler), "encoder")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"head.classifier.weight", "head.classifier.bias"}


def test_more_blocks_than_there_are_is_an_error(tiny_config):
    with pytest.raises(MinibertError, match="3; the checkpoint has 2 blocks"):
        freeze(make(tiny_config), "3")


@pytest.mark.parametrize("what", ["none", "embeddings", "1", "2", "encoder"])
@pytest.mark.parametrize("everything", [False, True], ids=["trained only", "all given to the optimizer"])
def test_frozen_parameters_do_not_move_and_all_others_do(tiny_config, what, everything):
    """Also not by decay, and also where an optimizer was given every parameter."""
    model = freeze(make(tiny_config), what)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    if everything:
        optimizers = [AdamW(model.parameters(), 0.1, weight_decay=0.1), SGD(model.parameters(), 0.1, 0.9, 0.1)]
    else:
        optimizers = [AdamW(decay_groups(model, 0.1), 0.1), SGD(decay_groups(model, 0.1), 0.1, 0.9)]
    ids = torch.arange(1, 22).view(3, 7) * 4
    for optimizer in optimizers:
        optimizer.zero_grad()
        hidden = model.bert(ids.flatten(), (ids.flatten() % 2), Layout(ids > 0))
        model.head.classifier(hidden).logsumexp(-1).sum().backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    keep = (EMBEDDINGS | BLOCKS[0] | BLOCKS[1] if what == "encoder" else EXPECTED[what]) | POOLER
    assert moved == set(before) - keep
