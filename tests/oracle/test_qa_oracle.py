"""qa against transformers, which opens its run folders, and its copy of SQuAD's official scores."""
import json
import random
from pathlib import Path

import pytest
import torch
import transformers as hf
from torchmetrics.functional.text import squad

import minibert
import train
from minibert.core import byhand
from minibert.core.batch import collate
from minibert.scores import texts as textscores
from minibert.use.evaluate import score_features

TEXTS = ["Who sold it? ||| NASA's McCoy sold it for 1,200.50 € in São Paulo.", "where? ||| the plant closed " * 30,
         "When was the plant in the old harbour closed " * 12 + "||| It closed in May. " * 40]
CONTEXT = "Anna Lindqvist built the tower in 1911; it fell in 1952."
QUESTIONS = [("Who built it?", "Anna Lindqvist", 0), ("When did it fall?", "1952", 51), ("Who paid?", None, 0)]


@pytest.fixture(scope="module")
def folder(minilm, tmp_path_factory) -> Path:
    """A run folder after two updates."""
    place = tmp_path_factory.mktemp("run")
    (place / "data").mkdir()
    qas = [{"id": str(i), "question": q, "is_impossible": text is None,
            "answers": [] if text is None else [{"text": text, "answer_start": at}]}
           for i, (q, text, at) in enumerate(QUESTIONS)]
    whole = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}]}
    (place / "data" / "train.json").write_text(json.dumps(whole))
    return train.train(["--task", "qa", "--weights", str(minilm), "--data", str(place / "data"), "--output",
                        str(place / "run"), "--max-steps", "2", "--max-pieces", "60", "--overlap", "10", "--cache",
                        "off", "--precision", "fp32", "--case-shapes", "off"])


def opened(folder: Path):
    theirs, info = hf.AutoModelForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    assert type(theirs) is hf.BertForQuestionAnswering
    assert not any(info[k] for k in ("missing_keys", "mismatched_keys", "error_msgs"))
    assert set(info["unexpected_keys"]) <= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}   # minilm-l6 has one
    return theirs.eval()


def test_transformers_opens_the_folder_and_computes_the_same_scores(folder):
    theirs, model = opened(folder), minibert.load(folder)
    ids, mask, types = model.features(TEXTS)
    with torch.no_grad():
        wanted = theirs(ids, attention_mask=mask, token_type_ids=types)
    wanted = torch.stack([wanted.start_logits, wanted.end_logits], -1)
    rows = model.encode_examples([model.task.example(t) for t in TEXTS])
    assert len(rows) > len(TEXTS)
    for row, ours, all_of_them in zip(rows, score_features(model, model.task, rows), wanted, strict=True):
        assert float((torch.from_numpy(ours) - all_of_them[torch.from_numpy(row.picks)]).abs().max()) <= 1e-5
    assert float(wanted.std()) > 1e-3


def test_the_loss_is_theirs_where_only_the_picks_take_part(folder):
    """Their softmax runs over the question too; with its scores at -inf the losses are one."""
    theirs, model = opened(folder), minibert.load(folder)
    rows = [f for i, e in enumerate(model.task.read(folder.parent / "data")["train"])
            for f in model.task.encode(i, e, model.tokenizer, 60, 10)]
    batch = collate(rows, pad=model.tokenizer.pad)
    ids, types = (batch.layout.rows(x) for x in (batch.ids, batch.types))
    with torch.no_grad():
        found = theirs(ids, attention_mask=batch.layout.live.view(ids.shape).long(), token_type_ids=types)
    total = 0.0
    for i, row in enumerate(rows):
        for z, bit in ((found.start_logits[i], 1), (found.end_logits[i], 2)):
            z = z[torch.from_numpy(row.picks)]
            total += float(torch.nn.functional.cross_entropy(z, torch.tensor(int((row.labels & bit).argmax())))) / 2
    sums, _ = byhand.loss_and_gradients(model, batch)
    assert float(sums["rows"]) == pytest.approx(total, rel=1e-5)


WORDS = ["tower", "Tower,", "1911", "U.S.", "new-york", "São", "the x", "a 5"]


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_the_first_version(seed):
    """torchmetrics has SQuAD 1.1's official script; questions without an answer are checked by hand elsewhere."""
    draw = random.Random(seed)

    def text(least: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randrange(least, 5)))

    gold = [[text(1) for _ in range(draw.randrange(1, 4))] for _ in range(40)]
    guess = [draw.choice([text(0), *right]) for right in gold]
    theirs = squad([{"id": str(i), "prediction_text": p} for i, p in enumerate(guess)],
                   [{"id": str(i), "answers": {"text": right, "answer_start": [0] * len(right)}}
                    for i, right in enumerate(gold)])
    ours = textscores.answer_scores(gold, guess)
    assert 100 * ours["exact"] == pytest.approx(float(theirs["exact_match"]), abs=1e-4)
    assert 100 * ours["f1"] == pytest.approx(float(theirs["f1"]), abs=1e-4)
    assert 0 < ours["exact"] < ours["f1"] < 1
