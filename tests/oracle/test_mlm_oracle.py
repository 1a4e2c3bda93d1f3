"""mlm against transformers' BertForMaskedLM, on checkpoints with everything random and on run folders."""
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

import minibert
import train
from minibert.checkpoints import weights
from minibert.checkpoints.names import name_table
from minibert.core import byhand
from minibert.core.batch import Feature, collate
from minibert.core.heads import NextSentenceHead, WordHead, firsts
from minibert.core.model import Model
from minibert.tasks.mlm import MLM


def drawn(V: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pieces [6,21], what is right there, and where a score is asked for, never at the first."""
    draw = torch.Generator().manual_seed(seed)
    ids, labels = (torch.randint(5, V, (6, 21), generator=draw) for _ in range(2))
    hidden = torch.rand(6, 21, generator=draw) < 0.2
    hidden[:, 0] = False
    return ids, labels, hidden


def assert_same_gradients(gradients, theirs, names) -> None:
    """Ours by our names against those of a model of theirs, all that it has."""
    wanted = {name.removeprefix("bert."): p.grad for name, p in theirs.named_parameters()}
    published = {f"bert.{n.ours}": n.published for n in names}
    for name, dw in gradients.items():
        dw_theirs = wanted[published.get(name, name.removeprefix("head."))]
        assert float((dw - dw_theirs).abs().max()) <= 1e-10 * max(1.0, float(dw_theirs.abs().max())), name
    assert len(gradients) == len(wanted)


@pytest.mark.parametrize("shape", [0, 1, 2])
def test_scores_loss_and_every_gradient_are_theirs(random_bert, tmp_path, shape):
    """A checkpoint that transformers wrote, everything in it random, its bias too; the word vectors are tied."""
    theirs = random_bert(hf.BertForMaskedLM, shape, seed=shape).double()
    theirs.save_pretrained(tmp_path)
    config = weights.read_config(tmp_path)
    head = WordHead(config)
    bert, _ = weights.load(tmp_path, head)
    model = Model(bert, head).double()
    ids, labels, hidden = drawn(config.vocab_size, seed=5)
    B, T = ids.shape
    rows = [Feature(i, ids[i].numpy(), np.zeros(T, np.int64), hidden[i].nonzero()[:, 0].numpy(),
                    labels[i][hidden[i]].numpy()) for i in range(B)]
    batch, task = collate(rows), MLM(MLM.Options())
    found = theirs(ids, labels=labels.masked_fill(~hidden, -100))
    count = task.counts(batch)["pieces"]
    (count * found.loss).backward()
    sums, gradients = byhand.loss_and_gradients(model, batch, task=task)
    with torch.no_grad():
        assert torch.allclose(model(batch), found.logits[hidden], rtol=0, atol=1e-10)
    assert float(sums["pieces"]) == pytest.approx(count * float(found.loss.detach()), rel=1e-12)
    assert_same_gradients(gradients, theirs, name_table(config, pooler=False))


@pytest.mark.parametrize("shape", [0, 1, 2])
def test_next_sentence_scores_losses_and_every_gradient_are_theirs(random_bert, tmp_path, shape):
    """BertForPreTraining adds the mean over hidden pieces and the mean over rows; so do we."""
    theirs = random_bert(hf.BertForPreTraining, shape, seed=shape).double()
    theirs.save_pretrained(tmp_path)
    config = weights.read_config(tmp_path)
    head = NextSentenceHead(config)
    bert, _ = weights.load(tmp_path, head)
    model = Model(bert, head).double()
    ids, labels, hidden = drawn(config.vocab_size, seed=7)
    B, T = ids.shape
    types, answers = (torch.arange(T) > 9).long().expand(B, T), torch.tensor([0, 1, 1, 0, 1, 0])
    rows = [Feature(i, ids[i].numpy(), types[i].numpy(), np.append(0, hidden[i].nonzero()[:, 0].numpy()),
                    np.append(answers[i], labels[i][hidden[i]].numpy())) for i in range(B)]
    batch, task = collate(rows), MLM(MLM.Options(next_sentence=True))
    found = theirs(ids, token_type_ids=types, labels=labels.masked_fill(~hidden, -100), next_sentence_label=answers)
    found.loss.backward()
    factors = {term: 1 / count for term, count in task.counts(batch).items()}
    sums, gradients = byhand.loss_and_gradients(model, batch, task=task, factors=factors)
    with torch.no_grad():
        scores, first = model(batch), firsts(batch)
        assert torch.allclose(scores[first, :2], found.seq_relationship_logits, rtol=0, atol=1e-10)
        rest = torch.ones(len(scores), dtype=torch.bool).index_fill(0, first, False)
        assert torch.allclose(scores[rest], found.prediction_logits[hidden], rtol=0, atol=1e-10)
    assert sum(float(sums[t]) * factors[t] for t in sums) == pytest.approx(float(found.loss.detach()), rel=1e-12)
    assert_same_gradients(gradients, theirs, name_table(config))


def test_transformers_opens_a_run_with_next_sentences(minilm, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.txt").write_text("The harbour of Oslo was closed in winter.\n" * 99, encoding="utf-8")
    run = train.train(["--task", "mlm", "--next-sentence", "--weights", str(minilm), "--data", str(tmp_path / "d"),
                       "--output", str(tmp_path / "r"), "--max-steps", "2", "--max-pieces", "60", "--cache", "off",
                       "--precision", "fp32", "--case-shapes", "off"])
    theirs, info = hf.AutoModelForPreTraining.from_pretrained(run, output_loading_info=True)
    assert type(theirs) is hf.BertForPreTraining and not any(map(len, info.values()))
    model = minibert.load(run)
    rows = [Feature(i, np.arange(1000, 1000 + n), (np.arange(n) > 7).astype(np.int64), np.array([0, 3]),
                    np.array([0, 5])) for i, n in enumerate((17, 31, 12))]
    with torch.no_grad():
        scores = model(collate(rows)).view(3, 2, -1)
        for f, z in zip(rows, scores, strict=True):
            found = theirs.eval()(torch.tensor(f.ids)[None], token_type_ids=torch.tensor(f.types)[None])
            size = float(found.prediction_logits.abs().max())
            assert float((z[0, :2] - found.seq_relationship_logits[0]).abs().max()) <= 1e-4
            assert float((z[1] - found.prediction_logits[0, 3]).abs().max()) <= 1e-4 * size


@pytest.fixture(scope="module")
def run(minilm, tmp_path_factory) -> Path:
    """A run folder after two updates."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "data").mkdir()
    (folder / "data" / "train.txt").write_text("The harbour of Oslo was closed in winter.\n" * 9, encoding="utf-8")
    return train.train(["--task", "mlm", "--weights", str(minilm), "--data", str(folder / "data"), "--output",
                        str(folder / "run"), "--max-steps", "2", "--max-pieces", "60", "--cache", "off", "--precision",
                        "fp32", "--case-shapes", "off"])


def test_transformers_opens_the_folder_and_computes_the_same_scores(run):
    theirs, info = hf.AutoModelForMaskedLM.from_pretrained(run, output_loading_info=True)
    assert type(theirs) is hf.BertForMaskedLM
    assert not any(info[k] for k in ("missing_keys", "mismatched_keys", "error_msgs"))
    assert set(info["unexpected_keys"]) <= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}   # minilm-l6 has one
    model = minibert.load(run)
    texts = ["Paris is the capital of [MASK].", "[MASK] sold it for 1,200.50 € in [MASK]", "it closed [MASK] " * 9]
    ids, mask, types = model.features(texts)
    with torch.no_grad():
        wanted = theirs.eval()(ids, attention_mask=mask, token_type_ids=types).logits
        hidden, _ = model.bert.encode(ids, mask, types)
        ours = model.head.words(hidden)
    live = mask.bool()
    assert float((ours[live] - wanted[live]).abs().max()) <= 1e-4 * float(wanted[live].abs().max())
    tokenizer = hf.AutoTokenizer.from_pretrained(run)
    for text, row, there in zip(texts, ids, mask, strict=True):
        assert tokenizer(text)["input_ids"] == row[there.bool()].tolist()
