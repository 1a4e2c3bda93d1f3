"""Schedule, decay groups, loss, accumulation and whole updates against transformers and torch."""
import dataclasses

import numpy as np
import pytest
import torch
import transformers as hf
from transformers.trainer import Trainer
from updates import accumulate, build_model, one_update

import minibert
import train
from minibert.checkpoints import weights
from minibert.checkpoints.names import name_table
from minibert.core.batch import Feature, collate
from minibert.core.model import Model
from minibert.core.optim import decay_groups
from minibert.core.precision import LossScaler
from minibert.engines import ENGINES
from minibert.settings import TrainConfig
from minibert.tasks.ner import NER

LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
SETTINGS = TrainConfig(batch_size=32, precision="fp32", max_pieces=30)
CPU = torch.device("cpu")


# -------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("total, warmup", [(1, 0), (1, 1), (7, 0), (7, 3), (10, 10), (131, 13), (132, 1), (997, 500)])
def test_lr_at_is_their_schedule_of_one_step_more_read_one_step_later(total, warmup):
    """lr_at(s, total, W, η) = their rate after s calls of scheduler.step(), of a schedule of total + 1 steps.

    Theirs gives update s = 1..total the rate after s − 1 calls, of total steps: its first update has rate 0 if there
    is warm-up, and moves nothing. Ours starts at η/W; both would reach 0 at the update after the last.
    """
    def theirs(steps: int) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=3e-4)
        scheduler = hf.get_linear_schedule_with_warmup(optimizer, warmup, steps)
        rates = []
        for _ in range(steps + 1):
            rates.append(scheduler.get_last_lr()[0])                         # [k]: after k calls of step()
            optimizer.step()
            scheduler.step()
        return rates

    ours = [minibert.lr_at(s, total, warmup, 3e-4) for s in range(1, total + 1)]
    shifted = theirs(total + 1)
    assert ours == pytest.approx(shifted[1:total + 1], rel=1e-14)
    assert min(ours) > 0 and max(ours) <= 3e-4 * (1 + 1e-14) and shifted[total + 1] == 0.0
    plain = theirs(total)[:total]
    assert plain[0] == (0.0 if warmup else 3e-4)
    if warmup:                                     # the offset matters: without it no two schedules agree
        assert ours != pytest.approx(plain, rel=1e-3)


# ---------------------------------------------------------------------------------------------------- decay groups


def names_by_decay(model: Model) -> dict[float, set[str]]:
    table = {"bert." + n.ours: "bert." + n.published for n in name_table(model.bert.config)}
    return {g["weight_decay"]: {table.get(n, n.removeprefix("head.")) for n in g["names"]}
            for g in decay_groups(model, 0.01)}


def test_decay_groups_are_theirs_on_minilm(minilm):
    task = NER(NER.Options(), LABELS)
    model, _ = build_model(minilm, task, TrainConfig())
    theirs = hf.BertForTokenClassification.from_pretrained(minilm, num_labels=len(LABELS))
    everything = {n for n, _ in theirs.named_parameters()}
    decayed = set(Trainer.get_decay_parameter_names(None, theirs))           # it does not use self
    # the older recipe, by name; bias is a suffix, so that no decayed name is left out by accident
    assert decayed == {n for n in everything if not n.endswith(("bias", "LayerNorm.weight"))}
    ours = names_by_decay(model)
    assert ours == {0.01: decayed, 0.0: everything - decayed}
    assert len(ours[0.01]) == 3 + 6 * 6 + 1 and len(ours[0.0]) == 2 + 10 * 6 + 1


def test_decay_groups_of_a_sentence_model_hold_the_pooler(random_bert, tmp_path):
    theirs = random_bert(hf.BertForSequenceClassification, num_labels=len(LABELS))
    theirs.save_pretrained(tmp_path)
    bert, _ = weights.load(tmp_path)
    model = Model(bert, NER(NER.Options(), LABELS).head(bert.config))
    decayed = set(Trainer.get_decay_parameter_names(None, theirs))
    assert names_by_decay(model) == {0.01: decayed, 0.0: {n for n, _ in theirs.named_parameters()} - decayed}
    assert "bert.pooler.dense.weight" in decayed and "bert.pooler.dense.bias" not in decayed


# --------------------------------------------------------------------------------------- loss, accumulation, updates


@pytest.fixture
def pair(random_bert, tmp_path):
    """(ours, theirs, task): one model twice in float64, without dropout."""
    off = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    random_bert(hf.BertForTokenClassification, 0, seed=2, num_labels=len(LABELS), **off).save_pretrained(tmp_path)
    theirs = hf.BertForTokenClassification.from_pretrained(tmp_path, dtype=torch.float64)
    task = NER(NER.Options(), LABELS)
    head = task.head(weights.read_config(tmp_path))
    bert, _ = weights.load(tmp_path, head)
    return Model(bert, head).double().train(), theirs.train(), task


@pytest.fixture
def features() -> list[Feature]:
    """32 rows of 3 to 30 pieces with 0 to 12 labels; whole micro-batches of 1 have none."""
    draw, rows = np.random.default_rng(3), []
    for i in range(32):
        T = int(draw.integers(3, 31))
        picks = np.sort(draw.permutation(np.arange(1, T - 1))[:0 if i in (4, 11, 30) else draw.integers(1, 13)])
        labels = draw.integers(0, len(LABELS), len(picks))
        labels[draw.random(len(picks)) < 0.1] = -1                           # tags that training never saw
        rows.append(Feature(i, draw.integers(1, 131, T), draw.integers(0, 2, T), picks, labels))
    return rows


def their_inputs(rows: list[Feature]) -> dict[str, torch.Tensor]:
    """The same rows as transformers takes them: −100 wherever there is no label."""
    T = max(len(f.ids) for f in rows)
    ids, types, mask = (torch.zeros(len(rows), T, dtype=torch.int64) for _ in range(3))
    labels = torch.full((len(rows), T), -100)
    for b, f in enumerate(rows):
        n = len(f.ids)
        ids[b, :n], types[b, :n], mask[b, :n] = torch.from_numpy(f.ids), torch.from_numpy(f.types), 1
        labels[b, f.picks] = torch.from_numpy(np.where(f.labels < 0, -100, f.labels))
    return dict(input_ids=ids, token_type_ids=types, attention_mask=mask, labels=labels)


def our_gradient(model, task, rows, parts: int, layout: str = "rectangle") -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient by published name, through the loop's own functions."""
    settings = dataclasses.replace(SETTINGS, accumulate=parts, layout=layout)
    model.zero_grad()
    batches = train.micro_batches(rows, np.arange(len(rows)), task, settings, 0, CPU)
    assert len(batches) == parts and [len(b.features) for b in batches] == [len(rows) // parts] * parts
    loss = accumulate(model, task, batches, 1.0, settings, step=1)
    ours = dict(model.named_parameters())
    table = {"bert." + n.published: "bert." + n.ours for n in name_table(model.bert.config, pooler=False)}
    table |= {"classifier.weight": "head.classifier.weight", "classifier.bias": "head.classifier.bias"}
    return loss, {name: ours[n].grad.to_dense().clone() for name, n in table.items()}


def their_gradient(model, rows, parts: int) -> tuple[float, dict[str, torch.Tensor]]:
    """The usual recipe: the head's own mean loss of each micro-batch, divided by their number."""
    model.zero_grad()
    loss = 0.0
    for part in np.array_split(np.arange(len(rows)), parts):
        share = model(**their_inputs([rows[i] for i in part])).loss / parts
        share.backward()
        loss += share.item()
    return loss, {n: p.grad.clone() for n, p in model.named_parameters()}


def worst(ours: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest distance relative to a tensor's norm.

    The gradient of a key's bias is 0 (it moves all scores of a query alike): there, relative to its query's bias.
    """
    assert ours.keys() == wanted.keys()
    return max(float((ours[n] - dw).norm() / wanted[n.replace("self.key.bias", "self.query.bias")].norm())
               for n, dw in wanted.items())


@pytest.mark.parametrize("layout", ["rectangle", "ragged"])
def test_the_loss_of_one_batch_is_theirs(pair, features, layout):
    ours, theirs, task = pair
    loss, gradient = our_gradient(ours, task, features, 1, layout)
    wanted, dw = their_gradient(theirs, features, 1)
    count = sum(int((f.labels >= 0).sum()) for f in features)
    assert task.counts(collate(features, layout)) == {"words": count} and count > 100
    assert loss == pytest.approx(wanted, rel=1e-12)
    assert worst(gradient, dw) <= 1e-10


@pytest.mark.parametrize("layout", ["rectangle", "ragged"])
@pytest.mark.parametrize("parts", [4, 32])
def test_splitting_a_batch_moves_our_gradient_by_rounding_only(pair, features, parts, layout):
    """1×32, 4×8, 32×1, with micro-batches that have no labelled piece at all; and all equal theirs of the whole."""
    ours, theirs, task = pair
    assert any(not (f.labels >= 0).any() for f in features)
    loss, whole = our_gradient(ours, task, features, 1, layout)
    again, split = our_gradient(ours, task, features, parts, layout)
    assert again == pytest.approx(loss, rel=1e-12)
    assert worst(split, whole) <= 1e-12
    assert worst(split, their_gradient(theirs, features, 1)[1]) <= 1e-10


def test_for_the_record_their_head_gives_a_mean_of_means(pair, features):
    """Why our loss is sums and counts: micro-batches of 1 and 12 labels weigh the same there; one of 0 is NaN."""
    theirs = pair[1]
    labelled = [f for f in features if (f.labels >= 0).any()]
    parts = len(labelled)
    assert parts > 20
    loss, whole = their_gradient(theirs, labelled, 1)
    uneven, split = their_gradient(theirs, labelled, parts)
    assert abs(uneven - loss) > 5e-4 * loss        # random labels: every mean is near log K, yet not the same
    assert worst(split, whole) > 0.05
    even = [dataclasses.replace(f, picks=f.picks[:1], labels=np.abs(f.labels[:1])) for f in labelled]
    assert worst(their_gradient(theirs, even, parts)[1], their_gradient(theirs, even, 1)[1]) <= 1e-12
    without = next(f for f in features if not (f.labels >= 0).any())
    with torch.no_grad():
        assert torch.isnan(theirs(**their_inputs([without])).loss)


@pytest.mark.parametrize("optimizer, clip, tolerance", [("adamw", 0.0, 1e-9), ("adamw", 0.5, 1e-5),
                                                        ("sgd", 0.0, 1e-9), ("sgd", 0.5, 1e-5)])
def test_eight_updates_are_theirs(pair, features, optimizer, clip, tolerance):
    """train.one_update beside torch's optimizer, clip and schedule on transformers' model: same losses, norms, weights.

    float64; 4 micro-batches here, the whole batch there. torch's clip divides by norm + 1e-6, ours by the norm, hence
    the wider tolerance. SGD has no momentum: there decoupled and coupled decay are one thing.
    """
    ours, theirs, task = pair
    total, warmup, peak = 8, 3, {"adamw": 1e-2, "sgd": 0.3 if clip else 0.1}[optimizer]
    settings = dataclasses.replace(SETTINGS, accumulate=4, optimizer=optimizer, momentum=0.0, weight_decay=0.1,
                                   clip=clip)
    decayed = set(Trainer.get_decay_parameter_names(None, theirs))
    groups = [{"params": [p for n, p in theirs.named_parameters() if (n in decayed) == d], "weight_decay": decay}
              for d, decay in ((True, 0.1), (False, 0.0))]
    their_optimizer = (torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD)(groups, lr=peak)
    scheduler = hf.get_linear_schedule_with_warmup(their_optimizer, warmup, total + 1)
    their_optimizer.step()                         # no gradient yet, nothing moves: our steps are their steps + 1
    our_optimizer = train.build_optimizer(ours, ENGINES[settings.gradients](ours, settings.precision), settings)
    scaler = LossScaler(enabled=False)
    start, losses, norms = {n: p.detach().clone() for n, p in theirs.named_parameters()}, [], []
    for step in range(1, total + 1):
        scheduler.step()
        theirs.zero_grad()
        wanted = theirs(**their_inputs(features)).loss
        wanted.backward()
        losses.append(wanted.item())
        norms.append(float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip or float("inf"))))
        their_optimizer.step()
        batches = train.micro_batches(features, np.arange(32), task, settings, 0, CPU)
        found = one_update(ours, task, batches, our_optimizer, scaler, settings, step,
                                 minibert.lr_at(step, total, warmup, peak))
        assert found == pytest.approx((losses[-1], norms[-1]), rel=tolerance)
    assert min(norms) > clip and losses[-1] < 0.9 * losses[0]                # every clip bit, and something was learnt
    parameters = dict(ours.named_parameters())
    moved = {n: float((p.detach() - start[n]).norm()) for n, p in theirs.named_parameters()}
    for row in name_table(ours.bert.config, pooler=False):
        name = "bert." + row.published
        distance = float((parameters["bert." + row.ours] - theirs.get_parameter(name)).detach().norm())
        assert distance <= tolerance * moved[name.replace("self.key.bias", "self.query.bias")], name
