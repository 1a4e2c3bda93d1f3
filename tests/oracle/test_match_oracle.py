"""match against transformers, which opens its run folders, and against scipy, which scores its numbers."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from scipy.stats import pearsonr, spearmanr
from updates import build_model, settings_of

import minibert
import train
from minibert import metrics
from minibert.tasks import TASKS
from minibert.use.evaluate import score_features

PAIRS = [("where is my card", "has the new card been sent yet?"), ("", "rain"), ("NASA's McCoy sold 1,200.50 €", ""),
         ("the plant in São Paulo closed " * 12, "it closed"), ("a long story " * 30, "another long story " * 30)]
FILES = {"class": "first,second,label\na cat,a dog,different\na car,an automobile,same\nit rains,it is wet,same\n",
         "score": "first,second,label\na cat,a dog,1.5\na car,an automobile,4.8\nit rains,it is wet,3\n"}


@pytest.fixture(scope="module", params=FILES)
def run(request, minilm, tmp_path_factory) -> tuple[Path, int]:
    """(run folder, number of scores) after two updates."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "data").mkdir()
    (folder / "data" / "train.csv").write_text(FILES[request.param], encoding="utf-8")
    output = train.train(["--task", "match", "--answer", request.param, "--weights", str(minilm), "--data",
                          str(folder / "data"), "--output", str(folder / "run"), "--max-steps", "2", "--max-pieces",
                          "60", "--overlap", "10", "--cache", "off", "--precision", "fp32", "--case-shapes", "off"])
    return output, {"class": 2, "score": 1}[request.param]


def test_transformers_opens_the_folder_and_computes_the_same_scores(run):
    folder, count = run
    theirs, info = hf.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert type(theirs) is hf.BertForSequenceClassification and theirs.config.num_labels == count
    assert theirs.config.problem_type == ("regression" if count == 1 else "single_label_classification")
    assert not any(info[k] for k in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"))
    model, texts = minibert.load(folder), [" ||| ".join(pair) for pair in PAIRS]
    assert [theirs.config.id2label[i] for i in range(count)] == model.task.outputs
    ids, mask, types = model.features(texts)
    with torch.no_grad():
        wanted = theirs.eval()(ids, attention_mask=mask, token_type_ids=types).logits
    rows = model.encode_examples([model.task.example(t) for t in texts])
    assert len(rows) > len(texts)                  # the long ones have windows
    ours = torch.from_numpy(np.concatenate(score_features(model, model.task, rows)))
    assert ours.shape == wanted.shape == (len(rows), count)
    assert float((ours - wanted).abs().max()) <= 1e-5
    assert wanted.std(0).min() > 1e-4


def test_pieces_and_types_are_those_of_transformers(run):
    """Of an empty second text it leaves out the [SEP] too; ours stays a pair."""
    folder, _ = run
    model, tokenizer = minibert.load(folder), hf.AutoTokenizer.from_pretrained(folder)
    for pair in [*PAIRS[:2], (PAIRS[2][0], "it's 5%")]:
        ids, _, types = model.features([" ||| ".join(pair)])
        theirs = tokenizer(*pair)
        assert ids[0].tolist() == theirs["input_ids"] and types[0].tolist() == theirs["token_type_ids"], pair


def test_a_published_head_is_taken_over(run, tmp_path):
    """What transformers saved, opened as --weights of a run of the same kind, keeps its classifier."""
    folder, count = run
    theirs = hf.AutoModelForSequenceClassification.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(folder / "tokenizer.json", tmp_path / "theirs")
    settings, options, _ = settings_of(["--task", "match", "--answer", "score" if count == 1 else "class",
                                                   "--case-shapes", "off", "--weights", str(tmp_path / "theirs")])
    task = TASKS["match"](options, minibert.load(folder).task.labels)
    model, _ = build_model(tmp_path / "theirs", task, settings)
    assert torch.equal(model.head.classifier.weight, theirs.classifier.weight)


@pytest.mark.parametrize("seed", range(20))
def test_correlations_are_scipys(seed):
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=41).round(1), draw.integers(0, 6, 41) / 2
    ours = metrics.correlations(x.tolist(), y.tolist())
    assert ours["pearson"] == pytest.approx(pearsonr(x, y).statistic, abs=1e-12)
    assert ours["spearman"] == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
