"""classify against transformers, which opens its run folders, and against scikit-learn, which scores its answers."""
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

import minibert
import train
from minibert import metrics
from minibert.use.evaluate import score_features

ROOT = Path(__file__).parents[2]
TEXTS = ["Orders doubled and the forecast rose.", "Rain.", "", "NASA's McCoy sold 1,200.50 € of shares, again",
         "the plant in São Paulo closed " * 40]


@pytest.fixture(scope="module", params=["one", "yes-no", "several", "without a pooler"])
def run(request, minilm, tmp_path_factory) -> tuple[Path, int]:
    """(run folder, number of scores) after two updates on the first texts of data/classify."""
    folder, choice = tmp_path_factory.mktemp("run"), request.param
    data, source = folder / "data", minilm
    data.mkdir()
    lines = (ROOT / "data" / "classify" / "train.csv").read_text("utf-8").splitlines()[:40]
    if choice == "yes-no":
        lines = [line for line in lines if not line.endswith(",neutral")]
    (data / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if choice == "without a pooler":
        source = folder / "source"
        source.mkdir()
        torch.manual_seed(8)
        hf.BertForMaskedLM(hf.BertConfig(vocab_size=30522, hidden_size=30, num_attention_heads=5, intermediate_size=44,
                                         num_hidden_layers=2, initializer_range=0.2)).save_pretrained(source)
        shutil.copy(minilm / "tokenizer.json", source)
        choice = "one"
    output = train.train(["--task", "classify", "--choice", choice, "--weights", str(source), "--data", str(data),
                          "--output", str(folder / "run"), "--max-steps", "2", "--max-pieces", "100", "--overlap", "30",
                          "--cache", "off", "--precision", "fp32"])
    return output, {"one": 3, "yes-no": 1, "several": 3}[choice]


def test_transformers_opens_the_folder_and_computes_the_same_scores(run):
    folder, count = run
    theirs, info = hf.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert type(theirs) is hf.BertForSequenceClassification and theirs.config.num_labels == count
    assert not any(info[k] for k in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"))
    model = minibert.load(folder)
    assert [theirs.config.id2label[i] for i in range(count)] == model.task.outputs
    ids, mask, types = model.features(TEXTS)
    with torch.no_grad():
        wanted = theirs.eval()(ids, attention_mask=mask, token_type_ids=types).logits
    rows = model.encode_examples([model.task.example(t) for t in TEXTS])
    assert len(rows) > len(TEXTS)                  # the long text has windows
    for layout in ("rectangle", "ragged"):
        ours = torch.from_numpy(np.concatenate(score_features(model, model.task, rows, layout=layout)))
        assert ours.shape == wanted.shape == (len(rows), count)
        assert float((ours - wanted).abs().max()) <= 1e-5
    assert wanted.std(0).min() > 1e-4              # no head of constants


def test_the_pieces_are_those_of_transformers(run):
    folder, _ = run
    model, tokenizer = minibert.load(folder), hf.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS[:4]:
        ids, _, _ = model.features([text])
        assert ids[0].tolist() == tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_one_label_are_scikit_learns(seed):
    draw = random.Random(seed)
    labels = ["a", "b", "c", "d", "e", "f"][:draw.randint(2, 6)]
    gold = draw.choices(labels, k=draw.randint(1, 40))
    guess = [draw.choice(labels) if draw.random() < 0.5 else g for g in gold]
    ours = metrics.label_scores([(g,) for g in gold], [(g,) for g in guess], labels)
    assert ours["accuracy"] == pytest.approx(accuracy_score(gold, guess), abs=1e-12)
    for kind in ("micro", "macro", "weighted"):
        assert ours[f"{kind}_f1"] == pytest.approx(f1_score(gold, guess, average=kind, zero_division=0), abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = classification_report(gold, guess, output_dict=True, zero_division=0)
    for label, row in ours["per_class"].items():
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(
            [theirs[label][k] for k in ("precision", "recall", "f1-score", "support")], abs=1e-12)
    assert metrics.confusion(gold, guess, labels) == confusion_matrix(gold, guess, labels=labels).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_several_labels_are_scikit_learns(seed):
    draw = random.Random(seed)
    labels = list("abcdefg")
    gold, guess = ([tuple(sorted(draw.sample(labels, draw.randint(0, 4)))) for _ in range(25)] for _ in range(2))
    binary = MultiLabelBinarizer(classes=labels)
    y, z = binary.fit_transform(gold), binary.transform(guess)
    ours = metrics.label_scores(gold, guess, labels)
    assert ours["accuracy"] == pytest.approx(accuracy_score(y, z), abs=1e-12)
    for kind in ("micro", "macro", "weighted"):
        assert ours[f"{kind}_f1"] == pytest.approx(f1_score(y, z, average=kind, zero_division=0), abs=1e-12)
