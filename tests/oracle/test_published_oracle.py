"""Models that transformers saved, of the five published classes: loaded, asked and scored as transformers has them."""
import json
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
import transformers as hf

import minibert
from minibert.__main__ import main

V = 97                                             # of SHAPES[1], which has 64 positions
TEXTS = ["Ada Lovelace met Bruno in São Paulo.", "आज मुंबई में बारिश हुई", "แม่น้ำโขงยาวมาก", "في القاهرة مطر اليوم",
         "北京今天下雨了。", "서울 날씨가 좋다", "cafe\u0301 crème, 1,200.50 €", "rain 🌧 in Oslo", "?"]
TAGS = ["O", "B-LOC", "I-LOC", "I-PER", "B-PER"]
TOLERANCE = dict(rel=1e-4, abs=1e-5)


@pytest.fixture
def publish(random_bert, tmp_path):
    """publish(class, **config) -> (transformers' model and tokenizer, the folder that they saved)."""
    def make(kind: type, seed: int = 0, **config):
        model = random_bert(kind, 1, seed, **config)
        letters = [c for c, _ in Counter("".join(TEXTS).replace(" ", "")).most_common((V - 5) // 2)]   # others: [UNK]
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
        assert len(pieces) == V
        (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
        tokenizer = hf.BertTokenizerFast(str(tmp_path / "vocab.txt"), do_lower_case=False)
        folder = tmp_path / "published"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return model, tokenizer, folder
    return make


def logits(model, tokenizer, *texts: str, **how) -> torch.Tensor:
    """Theirs of one text or pair, without the first axis."""
    with torch.no_grad():
        return model(**tokenizer(*texts, return_tensors="pt", **how)).logits[0]


def names(*labels: str) -> dict:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def scores(capsys, folder: Path, file: Path, *words: str) -> dict:
    assert main(["evaluate", str(folder), "--data", str(file), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)["test"]


@pytest.mark.parametrize("labels, several", [(("bad", "fair", "good"), False), (("a", "b", "c", "d"), True),
                                             ((), False)])
def test_texts(publish, tmp_path, capsys, labels, several):
    config = {**(names(*labels) if labels else {}), "problem_type": "multi_label_classification" if several else None}
    model, tokenizer, folder = publish(hf.BertForSequenceClassification, **config)
    labels = labels or ("LABEL_0", "LABEL_1")      # of which the file says nothing
    assert ("id2label" in json.loads((folder / "config.json").read_text())) == (labels[0] != "LABEL_0")
    z = torch.stack([logits(model, tokenizer, text) for text in TEXTS])
    wanted = z.sigmoid() if several else z.softmax(-1)

    found = minibert.load(folder).predict(TEXTS)
    assert len({tuple(f"{p:.2f}" for p in row) for row in wanted.tolist()}) > 6
    for result, row in zip(found, wanted.tolist(), strict=True):
        assert result["probabilities"] == pytest.approx(dict(zip(labels, row, strict=True)), **TOLERANCE)

    chosen = [[label for label, p in zip(labels, row, strict=True) if p > (0.5 if several else max(row) - 1e-9)]
              for row in wanted.tolist()]
    assert [sorted(r["labels"]) for r in found] == chosen
    gold = [[labels[i % len(labels)]] for i in range(len(TEXTS))]
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps({"text": t, "label": g if several else g[0]}) + "\n"
                            for t, g in zip(TEXTS, gold, strict=True)))
    right = sum(g[0] in c for g, c in zip(gold, chosen, strict=True))
    found = scores(capsys, folder, file)["micro_f1"]
    assert found == pytest.approx(2 * right / (len(TEXTS) + sum(map(len, chosen))))


@pytest.mark.parametrize("classes", [2, 1])
def test_pairs(publish, tmp_path, capsys, classes):
    model, tokenizer, folder = publish(hf.BertForSequenceClassification, 2, num_labels=classes)
    pairs = list(zip(TEXTS, TEXTS[3:] + TEXTS[:3], strict=True))
    z = torch.stack([logits(model, tokenizer, *pair) for pair in pairs])
    found = minibert.load(folder, task="match").predict([" ||| ".join(pair) for pair in pairs])
    if classes == 1:
        assert [r["score"] for r in found] == pytest.approx(z[:, 0].tolist(), **TOLERANCE)
    else:
        said = [r["probabilities"]["LABEL_1"] for r in found]
        assert said == pytest.approx(z.softmax(-1)[:, 1].tolist(), **TOLERANCE)

    gold = [i % 3 if classes == 1 else f"LABEL_{i % 2}" for i in range(len(pairs))]
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps({"first": a, "second": b, "label": y}) + "\n"
                            for (a, b), y in zip(pairs, gold, strict=True)))
    found = scores(capsys, folder, file, "--task", "match")
    if classes == 1:
        assert found["mse"] == pytest.approx(float(((z[:, 0] - torch.tensor(gold)) ** 2).mean()), **TOLERANCE)
    else:
        assert found["accuracy"] == pytest.approx(sum(f"LABEL_{int(row.argmax())}" == y for row, y in
                                                      zip(z, gold, strict=True)) / len(pairs))


def test_names(publish, tmp_path, capsys):
    """Of each word the scores at its first piece; the file of data has the same words."""
    model, tokenizer, folder = publish(hf.BertForTokenClassification, 3, initializer_range=0.7, **names(*TAGS))
    ours = minibert.load(folder, decoding="argmax")
    examples = [ours.task.example(text) for text in TEXTS]
    wanted = []
    for example in examples:
        owners = tokenizer(example.words, is_split_into_words=True).word_ids()
        z = logits(model, tokenizer, example.words, is_split_into_words=True)
        wanted.append([TAGS[int(z[owners.index(i)].argmax())] for i in range(len(example.words))])
    for result, example, tags in zip(ours.predict(TEXTS), examples, wanted, strict=True):
        begin = [i for i, (before, tag) in enumerate(pairwise(["O", *tags])) if tag[0] == "B" or before[1:] != tag[1:]]
        entities = [(example.spans[i][0], tags[i][2:]) for i in begin if tags[i] != "O"]
        assert [(e["start"], e["type"]) for e in result["entities"]] == entities
    assert len({tag for tags in wanted for tag in tags}) > 2

    (tmp_path / "test.conll").write_text("\n\n".join("\n".join(f"{w} B-LOC" for w in e.words) for e in examples) + "\n")
    tags = scores(capsys, folder, tmp_path / "test.conll", "--decoding", "argmax")["tags"]["per_tag"]["B-LOC"]
    assert tags["recall"] == pytest.approx(sum(t.count("B-LOC") for t in wanted) / sum(map(len, wanted)))


def test_questions(publish, tmp_path, capsys):
    """Of all stretches of whole words the one with the highest sum, if that is above the sum at [CLS]."""
    model, tokenizer, folder = publish(hf.BertForQuestionAnswering, 4)
    questions = list(zip(TEXTS[::-1], TEXTS, strict=True))
    wanted = []
    for question, text in questions:
        row = tokenizer(question, text, return_tensors="pt", return_offsets_mapping=True)
        spans, pieces = row.pop("offset_mapping")[0].tolist(), tokenizer.convert_ids_to_tokens(row["input_ids"][0])
        with torch.no_grad():
            out = model(**row)
        start, end = out.start_logits[0].tolist(), out.end_logits[0].tolist()
        inside = [i for i, part in enumerate(row.sequence_ids()) if part == 1]
        begins = [i for i in inside if not pieces[i].startswith("##")]
        ends = [i for i in inside if not pieces[i + 1].startswith("##")]
        lead, i, j = max((start[i] + end[j] - start[0] - end[0], i, j)
                         for i, j in product(begins, ends) if i <= j < i + 30)
        wanted.append((spans[i][0], spans[j][1]) if lead >= 0 else None)

    found = minibert.load(folder).predict([" ||| ".join(pair) for pair in questions])
    assert [r["answer"] and (r["answer"]["start"], r["answer"]["end"]) for r in found] == wanted
    assert None in wanted and len(set(wanted)) > 3
    paragraphs = [{"context": text, "qas": [{"id": f"q{i}", "question": q, "answers": [], "is_impossible": True}]}
                  for i, (q, text) in enumerate(questions)]
    (tmp_path / "test.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    assert scores(capsys, folder, tmp_path / "test.json")["exact"] == pytest.approx(wanted.count(None) / len(wanted))


@pytest.mark.parametrize("kind", [hf.BertForMaskedLM, hf.BertForPreTraining])
def test_masked_words(publish, tmp_path, capsys, kind):
    model, tokenizer, folder = publish(kind, 5)
    texts = [f"{text} [MASK] a" for text in TEXTS]
    for result, text in zip(minibert.load(folder).predict(texts), texts, strict=True):
        row = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            out = model(**row)
        z = (out.logits if kind is hf.BertForMaskedLM else out.prediction_logits)[0]
        best = z[row["input_ids"][0].tolist().index(tokenizer.mask_token_id)].softmax(-1).topk(5)
        found = {p["piece"]: p["probability"] for p in result["masks"][0]["pieces"]}
        wanted = dict(zip(tokenizer.convert_ids_to_tokens(best.indices), best.values.tolist(), strict=True))
        assert found == pytest.approx(wanted, **TOLERANCE)

    (tmp_path / "test.txt").write_text("\n".join(TEXTS) + "\n")
    assert scores(capsys, folder, tmp_path / "test.txt")["support"] > 10
