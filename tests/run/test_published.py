"""A model that was fine-tuned elsewhere: what its config.json means here, and what is refused in one line."""
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minibert
from minibert.__main__ import main
from minibert.checkpoints.weights import load as load_weights
from minibert.checkpoints.weights import save
from minibert.core.heads import NextSentenceHead, PooledHead, SpanHead, TokenHead
from minibert.errors import MinibertError
from minibert.use.published import CLASSES

IOB2 = ["B-LOC", "I-LOC", "O", "B-PER", "I-PER"]
TEXT = "Ada met Bruno in New Lima . आज वर्षा"


@pytest.fixture
def publish(tiny_folder, tmp_path):
    """publish(class, outputs, **config) -> a folder as others have it: no train.json, random weights and biases."""
    def make(name: str, outputs: int = 2, **config) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_folder, folder)
        bert, _ = load_weights(folder)
        heads = {"BertForTokenClassification": TokenHead, "BertForSequenceClassification": PooledHead}
        head = (heads[name](bert.config, outputs) if name in heads else
                SpanHead(bert.config) if "Question" in name else NextSentenceHead(bert.config))
        torch.manual_seed(outputs)
        for p in head.parameters():
            p.data = torch.randn(p.shape)
        save(folder, bert, head, {"architectures": [name], **config})
        return folder
    return make


def named(*labels: str) -> dict[str, str]:
    return {str(i): label for i, label in enumerate(labels)}


def refusal(folder: str | Path, **asked) -> str:
    with pytest.raises(MinibertError) as caught:
        minibert.load(folder, **asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name, outputs, config, asked, task, options, labels", [
    ("BertForTokenClassification", 5, {"id2label": named(*IOB2)}, None, "ner", {"decoding": "valid"}, IOB2),
    ("BertForSequenceClassification", 3, {}, None, "classify", {"choice": "one"}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ("BertForSequenceClassification", 2, {"id2label": named("no", "yes")}, "match", "match", {"answer": "class"},
     ["no", "yes"]),
    ("BertForSequenceClassification", 3, {"problem_type": "multi_label_classification", "id2label": named(*"xyz")},
     "classify", "classify", {"choice": "several"}, ["x", "y", "z"]),
    ("BertForSequenceClassification", 1, {"problem_type": "multi_label_classification", "id2label": named("x")},
     None, "classify", {"choice": "several"}, ["x"]),
    ("BertForSequenceClassification", 1, {"id2label": named("LABEL_0")}, None, "match", {"answer": "score"}, ["score"]),
    ("BertForSequenceClassification", 1, {"problem_type": "regression"}, "match", "match", {"answer": "score"},
     ["score"]),
    ("BertForQuestionAnswering", 2, {}, None, "qa", {"answers": "some"}, ["start", "end"]),
    ("BertForMaskedLM", 2, {}, None, "mlm", {"next_sentence": False}, []),
    ("BertForPreTraining", 2, {}, "mlm", "mlm", {"next_sentence": False}, [])])
def test_a_class_and_its_labels_say_which_task_it_is(publish, name, outputs, config, asked, task, options, labels):
    model = minibert.load(publish(name, outputs, **config), task=asked)
    assert model.task.name == task and model.task.labels == labels
    assert {option: vars(model.task.options)[option] for option in options} == options
    assert {name: model.settings[name] for name in ("max_pieces", "overlap", "precision")} == {
        "max_pieces": 40, "overlap": 10, "precision": "fp32"}                  # 40: the positions of the checkpoint
    assert model.notices == []
    assert len(model.predict([model.task.trial, model.task.trial])) == 2


@pytest.mark.parametrize("most, wanted", [(300, (256, 64)), (1, None)])
def test_rows_are_the_tasks_and_no_longer_than_the_positions(publish, most, wanted):
    folder = publish("BertForTokenClassification", 5, id2label=named(*IOB2))
    bert, _ = load_weights(folder)
    bert.config = minibert.core.config.BertConfig.from_dict({**bert.config.to_dict(), "max_position_embeddings": most})
    bert.embeddings.position = torch.nn.Embedding(most, 30)
    head = TokenHead(bert.config, 5)
    save(folder, bert, head, {"architectures": ["BertForTokenClassification"], "id2label": named(*IOB2)})
    if wanted is None:
        assert "--max-pieces is 1; it must be at least 8" in refusal(folder)
    else:
        settings = minibert.load(folder).settings
        assert (settings["max_pieces"], settings["overlap"]) == wanted


@pytest.mark.parametrize("change, asked, says", [
    ({"architectures": None}, {}, "architectures is missing; expected one of BertForTokenClassification"),
    ({"architectures": ["BertModel"]}, {}, "architectures is ['BertModel']; expected one of"),
    ({"architectures": "BertForTokenClassification"}, {}, "is 'BertForTokenClassification'; expected one of"),
    ({"architectures": ["BertForMaskedLM", "BertForQuestionAnswering"]}, {}, "is ['BertForMaskedLM', "),
    ({"architectures": [["BertForMaskedLM"], 5]}, {}, "expected one of"),
    ({}, {"task": "qa"}, "is a model of --task ner, not 'qa'; leave --task out"),
    ({}, {"task": "sing"}, "not 'sing'"),
    ({}, {"beams": 2}, "--beams: "), ({}, {"choice": "one"}, "--choice: "),
    ({"id2label": named("LABEL_0", "LABEL_1", "O", "B-PER", "I-PER")}, {}, "id2label has 'LABEL_0', 'LABEL_1'; "),
    ({"id2label": named("PER", "LOC", "O", "ORG", "X-Y")}, {}, "has 'PER', 'LOC', 'ORG'; expected O, and B-TYPE"),
    ({"id2label": named("NOUN", "VERB", "ADJ", "X", "DET")}, {}, "has 'NOUN', 'VERB', 'ADJ'; "),
    ({"id2label": named("B-PER", "I-PER", "B-LOC", "I-LOC", "B-X")}, {}, "has 'B-PER', 'I-PER', 'B-LOC'; expected O"),
    ({"id2label": None}, {}, "id2label has 'LABEL_0', 'LABEL_1', 'LABEL_2'; "),
    ({"id2label": {"0": "O", "2": "B-PER"}}, {}, "expected names for 0, 1, 2"),
    ({"id2label": []}, {}, "id2label is []; expected names"),
    ({"id2label": {}}, {}, "id2label has 'LABEL_0', 'LABEL_1', 'LABEL_2'; "),
    ({"id2label": named("O", "B-PER", "I-PER", "O", "O")}, {}, "id2label: the name 'O' stands there twice"),
    ({"id2label": named("O", "B-PER", "I-PER")}, {}, "classifier.weight is [5, 30], but config.json asks for [3, 30]"),
    ({"id2label": named("O", "B-PER", "I-PER", "I-LOC", "I-ORG")}, {"decoding": "valid"},
     "--decoding is valid; with the labels in ")])
def test_a_model_of_tags_that_is_none_of_ours_is_one_line(publish, change, asked, says):
    folder = publish("BertForTokenClassification", 5, id2label=named(*IOB2))
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    said = refusal(folder, **asked)
    assert says in said and str(folder) in said


@pytest.mark.parametrize("outputs, config, asked, says", [
    (3, {"problem_type": "ranking"}, {}, "problem_type is 'ranking'; expected single_label_classification, "),
    (3, {"problem_type": "regression"}, {}, "but classifier has 3 labels; expected one score"),
    (1, {"problem_type": "single_label_classification"}, {}, "has 1 labels; expected two labels at least"),
    (1, {"problem_type": ["regression"]}, {}, "problem_type is ['regression']"),
    (1, {}, {"task": "classify"}, "of regression is a model of --task match, not 'classify'"),
    (4, {"problem_type": "multi_label_classification"}, {"task": "match"}, "model of --task classify, not 'match'"),
    (2, {}, {"task": "reply"}, "is a model of --task classify or match, not 'reply'")])
def test_a_classifier_of_texts_that_is_none_of_ours_is_one_line(publish, outputs, config, asked, says):
    assert says in refusal(publish("BertForSequenceClassification", outputs, **config), **asked)


@pytest.mark.parametrize("lost, says", [("pooler", "2 weights missing, first pooler.dense.weight"),
                                        ("classifier.weight", "classifier.weight missing"),
                                        ("classifier.bias", "classifier.bias missing")])
def test_weights_that_are_missing_are_never_drawn(publish, lost, says):
    """Also the pooler's, which training would make anew."""
    folder = publish("BertForSequenceClassification", 3)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: x for name, x in tensors.items() if lost not in name}, folder / "model.safetensors")
    assert says in refusal(folder)


@pytest.mark.parametrize("labels, says, first_letters", [
    (["O", "I-PER", "I-LOC", "B-LOC", "I-ORG"], "lacks B-ORG, B-PER", {1: "BIIIIIIII", 3: "BBBBBBBBB", 4: "BIIIIIIII"}),
    (["O", "B-PER", "I-PER", "E-PER", "S-PER"], "has E-PER, S-PER", {2: "BIIIIIIII", 3: "BBBBBBBBB", 4: "BBBBBBBBB"})])
def test_tags_of_another_scheme_are_chosen_word_by_word_and_written_in_iob2(publish, capsys, tmp_path, labels, says,
                                                                             first_letters):
    """`first_letters`: of the tags, where the scores of every word are highest at one label."""
    folder = publish("BertForTokenClassification", 5, id2label=named(*labels))
    model = minibert.load(folder)
    assert len(model.notices) == 1 and says in model.notices[0] and model.task.options.decoding == "argmax"
    sentence = model.task.example(TEXT)
    for chosen, letters in first_letters.items():
        table = torch.zeros(len(sentence.words), 5)
        table[:, chosen] = 1
        rows = model.encode_examples([sentence])
        tags, = model.task.decode([sentence], rows, [table[torch.from_numpy(f.about.words)].numpy() for f in rows])
        assert "".join(tag[0] for tag in tags) == letters and {tag[1:] for tag in tags} == {labels[chosen][1:]}

    (tmp_path / "test.conll").write_text("Ada B-PER\nStone I-PER\nmet O\nLima B-LOC\n\nRain B-WEATHER\n")
    assert main(["evaluate", str(folder), "--data", str(tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["test"]["words"] == 5
    notes = said.err.splitlines()
    assert len(notes) == 2 and all(note.startswith("note: ") for note in notes) and says in notes[0]
    assert "B-WEATHER (1 words)" in notes[1] and "-PER" not in notes[1]
    assert ("B-LOC" in notes[1]) == ("I-LOC" not in labels)


def test_the_commands_use_it_and_tell_its_notices_once(publish, tmp_path, capsys):
    folder = publish("BertForSequenceClassification", 2, id2label=named("other", "same"))
    settings = {"do_lower_case": True, "tokenize_chinese_chars": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert main(["predict", str(folder), "--task", "match", "--json", "Ada met ||| Bruno left"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["label"] in ("other", "same") and said.err == ""
    assert main(["predict", str(folder), "--json", "Ada met ||| Bruno left"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["text", "labels", "probabilities"]

    (tmp_path / "test.csv").write_text("first,second,label\nAda,Bruno,same\nLima,the rain,other\n")
    assert main(["evaluate", str(folder), "--task", "match", "--data", str(tmp_path / "test.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"]["support"] == 2
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text().replace("keller", "Keller"))
    assert main(["predict", str(folder), "Ada"]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1 and notes[0].startswith("note: ") and "capital" in notes[0]


def test_a_name_is_fetched_and_said_on_standard_error(publish, monkeypatch, capsys):
    folder, asked = publish("BertForMaskedLM"), []
    monkeypatch.setattr("minibert.checkpoints.hub.fetch", lambda name: asked.append(name) or folder)
    monkeypatch.setattr("minibert.checkpoints.hub.at_hand", lambda name: bool(asked))
    monkeypatch.setattr("minibert.checkpoints.hub.describe", lambda name: f"{name}: 5 MB")
    for line in ("fetching some/bert@v2: 5 MB\n", ""):
        assert main(["predict", "some/bert@v2", "--json", "in [MASK] ."]) == 0
        said = capsys.readouterr()
        assert said.err == line and len(json.loads(said.out)["masks"][0]["pieces"]) == 5
    assert asked == ["some/bert@v2"] * 2 and minibert.load("org/name").task.name == "mlm"


@pytest.mark.parametrize("there, says", [(["ner", "ner-2"], "runs has ner, ner-2;"), ([], "runs has none;")])
def test_a_run_that_is_not_there_is_no_name_of_a_hub(tmp_path, monkeypatch, capsys, there, says):
    """runs/nre has the form of org/name; nobody on the network is asked for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minibert.use.predict.hub, "_listing", lambda *_: pytest.fail("the hub was asked"))
    for name in there:
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert main(["predict", "runs/nre", "x"]) == 2
    with pytest.raises(MinibertError, match="^runs/nre: no such folder"):
        minibert.load("runs/nre")
    assert capsys.readouterr().err == (f"error: runs/nre: no such folder; {says} name one with a train.json or a "
                                       "config.json\n")


def test_every_class_has_a_model_above():
    assert len(CLASSES) == 5
