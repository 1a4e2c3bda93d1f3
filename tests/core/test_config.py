"""config.py: which config.json is read, which is refused by name. commandline.py: options and where they come from."""
import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from refusing import refused
from updates import settings_of

import train
from minibert.checkpoints.weights import read_config
from minibert.core.config import HIDDEN_ACTS, BertConfig
from minibert.core.heads import PooledHead, SpanHead, TokenHead
from minibert.core.model import ACTIVATE
from minibert.files import read_json
from minibert.options import GROUPS, check_bounds, checked, option, parse, read_table
from minibert.settings import TrainConfig
from minibert.tasks import TASKS

# shapes of published files, written down by hand: keys, order and the extras that appear in the wild
BASE_UNCASED = {
    "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522}
GOOGLE_FIRST = {                                   # bert_config.json of 2018: no model_type, no layer_norm_eps
    "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
    "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 512, "num_attention_heads": 12,
    "num_hidden_layers": 12, "type_vocab_size": 2, "vocab_size": 28996}
MULTILINGUAL = {**BASE_UNCASED, "directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12,
                "pooler_num_fc_layers": 3, "pooler_size_per_head": 128, "pooler_type": "first_token_transform",
                "vocab_size": 119547}
FINE_TUNED = {**BASE_UNCASED, "architectures": ["BertForTokenClassification"], "id2label": {"0": "O", "1": "B-PER"},
              "label2id": {"O": 0, "B-PER": 1}, "_name_or_path": "x", "finetuning_task": "ner",
              "torch_dtype": "float16", "classifier_dropout": None, "output_past": True,
              "is_decoder": False, "add_cross_attention": False,
              "pruned_heads": {}, "problem_type": None, "dtype": "float32", "bos_token_id": None}
SMALL = {"model_type": "bert", "vocab_size": 53, "hidden_size": 30, "num_hidden_layers": 7, "num_attention_heads": 5,
         "intermediate_size": 44}


def put(folder, published, name="config.json"):
    (folder / name).write_text(published if isinstance(published, str) else json.dumps(published), encoding="utf-8")
    return folder


# ---------------------------------------------------------------------------------------------- published variants


@pytest.mark.parametrize("published", [BASE_UNCASED, GOOGLE_FIRST, MULTILINGUAL, FINE_TUNED, SMALL],
                         ids=["base-uncased", "google-2018", "multilingual", "fine-tuned", "small"])
def test_published_config_is_read(tmp_path, published):
    config = BertConfig.read(put(tmp_path, published))
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert getattr(config, key) == published[key]
    assert config.layer_norm_eps == 1e-12 and config.max_position_embeddings == 512 and config.type_vocab_size == 2
    assert config.hidden_act == "gelu" and config.case_shapes == ()
    assert config.head_size * published["num_attention_heads"] == published["hidden_size"]


def test_every_number_is_taken_from_the_file(tmp_path):
    own = {"hidden_act": "relu", "max_position_embeddings": 19, "type_vocab_size": 8, "layer_norm_eps": 1e-7,
           "hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.375, "initializer_range": 0.5,
           "pad_token_id": 11, "classifier_dropout": 0.3125, "tie_word_embeddings": False}
    config = BertConfig.read(put(tmp_path, {**SMALL, **own}))
    for key, value in {**SMALL, **own}.items():
        if key != "model_type":
            assert getattr(config, key) == value, key
    covered = set(own) | set(SMALL) | {"case_shapes"}
    assert {f.name for f in dataclasses.fields(BertConfig)} <= covered        # a new fact needs a line above


def test_null_pad_token_id_is_0(tmp_path):
    assert BertConfig.read(put(tmp_path, {**SMALL, "pad_token_id": None})).pad_token_id == 0


def test_dropout_0_and_no_model_type_are_fine():
    config = BertConfig.from_dict({**SMALL, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0.0})
    assert config.hidden_dropout_prob == 0 and config.attention_probs_dropout_prob == 0
    assert BertConfig.from_dict({k: v for k, v in SMALL.items() if k != "model_type"}).hidden_size == 30


def test_case_shapes_are_read_from_our_own_key():
    config = BertConfig.from_dict({**SMALL, "type_vocab_size": 6, "minibert": {"case_shapes": ["a", "b", "c"]}})
    assert config.case_shapes == ("a", "b", "c")
    assert BertConfig.from_dict({**SMALL, "minibert": None}).case_shapes == ()
    assert BertConfig.from_dict({**SMALL, "minibert": {}}).case_shapes == ()


def erf_gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def tanh_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


@pytest.mark.parametrize("name, formula", [
    ("gelu", erf_gelu), ("gelu_python", erf_gelu), ("gelu_new", tanh_gelu), ("gelu_pytorch_tanh", tanh_gelu),
    ("gelu_fast", tanh_gelu), ("relu", lambda x: max(x, 0.0))])
def test_every_known_activation_is_the_function_of_that_name(name, formula):
    config = BertConfig.from_dict({**SMALL, "hidden_act": name})
    xs = [-5.5, -1.7, -0.3, 0.0, 0.45, 1.9, 6.1]
    ours = ACTIVATE[HIDDEN_ACTS[config.hidden_act]](torch.tensor(xs, dtype=torch.float64)).tolist()
    assert ours == pytest.approx([formula(x) for x in xs], abs=1e-13)
    assert erf_gelu(1.9) != pytest.approx(tanh_gelu(1.9), abs=1e-5)           # the two can be told apart


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("change, parts", [
    ({"model_type": "roberta"}, ["model_type", "roberta"]),
    ({"model_type": "distilbert"}, ["model_type", "distilbert"]),
    ({"position_embedding_type": "relative_key"}, ["position_embedding_type", "relative_key"]),
    ({"position_embedding_type": "relative_key_query"}, ["position_embedding_type", "relative_key_query"]),
    ({"is_decoder": True}, ["is_decoder", "decoder"]),
    ({"add_cross_attention": True}, ["add_cross_attention", "cross-attention"]),
    ({"is_encoder_decoder": True}, ["is_encoder_decoder"]),
    ({"pruned_heads": {"1": [0, 3]}}, ["pruned_heads", "[0, 3]"]),
    ({"quantization_config": {"bits": 8}}, ["quantization_config", "bits"]),
    ({"classifier_dropout": 1.0}, ["classifier_dropout", "1.0", "[0, 1)"]),
    ({"classifier_dropout": "0.1"}, ["classifier_dropout", "'0.1'"]),
    ({"tie_word_embeddings": None}, ["tie_word_embeddings", "None", "true or false"]),
    ({"tie_word_embeddings": 0}, ["tie_word_embeddings", "0"]),
    ({"hidden_act": "silu"}, ["hidden_act", "silu", "gelu_new"]),
    ({"hidden_act": None}, ["hidden_act", "None"]),
    ({"hidden_act": ["gelu"]}, ["hidden_act"]),
    ({"hidden_size": 31}, ["hidden_size", "31", "5 heads"]),
    ({"hidden_size": "30"}, ["hidden_size", "'30'"]),
    ({"hidden_size": 30.0}, ["hidden_size", "30.0"]),
    ({"num_attention_heads": True}, ["num_attention_heads", "True"]),
    ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
    ({"vocab_size": -53}, ["vocab_size", "-53"]),
    ({"intermediate_size": None}, ["intermediate_size", "None"]),
    ({"max_position_embeddings": "512"}, ["max_position_embeddings", "'512'"]),
    ({"type_vocab_size": 0}, ["type_vocab_size", "0"]),
    ({"layer_norm_eps": "1e-12"}, ["layer_norm_eps", "1e-12"]),
    ({"layer_norm_eps": None}, ["layer_norm_eps", "None"]),
    ({"layer_norm_eps": math.nan}, ["layer_norm_eps", "nan"]),
    ({"hidden_dropout_prob": 1.0}, ["hidden_dropout_prob", "1.0"]),
    ({"attention_probs_dropout_prob": -0.1}, ["attention_probs_dropout_prob", "-0.1"]),
    ({"initializer_range": True}, ["initializer_range", "True"]),
    ({"pad_token_id": "zero"}, ["pad_token_id", "zero"]),
    ({"minibert": ["case_shapes"]}, ["minibert"]),
    ({"minibert": {"case_shapes": 5}}, ["case_shapes", "5"]),
    ({"minibert": {"case_shapes": "lower"}}, ["case_shapes", "lower"]),
], ids=lambda v: "-".join(f"{k}={x}" for k, x in v.items()) if isinstance(v, dict) else "")
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, change, parts):
    BertConfig.read(put(tmp_path, SMALL))                                    # the same file without the change is fine
    with refused(str(tmp_path / "config.json"), *parts):
        BertConfig.read(put(tmp_path, {**SMALL, **change}))


@pytest.mark.parametrize("size", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                                  "intermediate_size"])
def test_a_missing_size_is_named(tmp_path, size):
    published = {k: v for k, v in SMALL.items() if k != size}
    with refused(str(tmp_path), size, "missing"):
        BertConfig.read(put(tmp_path, published))


def test_another_kind_of_model_is_called_so_before_its_sizes_are_missed(tmp_path):
    with refused("gpt2"):
        BertConfig.read(put(tmp_path, {"model_type": "gpt2", "n_embd": 768}))


@pytest.mark.parametrize("text, parts", [
    ('{"model_type": "bert",', ["JSON"]), ("", ["empty"]), ("[1, 2]", ["list", "object"]), ("7", ["int", "object"]),
    ("null", ["object"]), ("[" * 100_000, ["JSON"]), ('{"a": "line\nbreak"}', ["JSON"])],
    ids=["broken", "empty", "list", "number", "null", "deep", "control"])
def test_a_config_that_is_no_json_object(tmp_path, text, parts):
    with refused(str(tmp_path / "config.json"), *parts):
        BertConfig.read(put(tmp_path, text))


def test_missing_unreadable_and_non_utf8_files(tmp_path):
    with refused(str(tmp_path / "config.json"), "no such file"):
        BertConfig.read(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"model_type": "b\xff"}')
    with refused(str(tmp_path / "config.json")):
        BertConfig.read(tmp_path)
    (tmp_path / "folder").mkdir()
    with refused(str(tmp_path / "folder")):
        read_json(tmp_path / "folder")
    with refused("config.json"):
        BertConfig.read(tmp_path / "config.json")                            # a file where a folder is expected


# ---------------------------------------------------------------------------------------------------- round trip


PUBLISHED_KEYS = {"model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                  "intermediate_size", "hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
                  "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "pad_token_id",
                  "position_embedding_type"}


@pytest.mark.parametrize("shapes", [(), ("lower", "title", "upper")])
def test_to_dict_round_trip(tmp_path, shapes):
    config = BertConfig(53, 30, 7, 5, 44, "gelu_new", 19, 6, 3e-7, 0.2, 0.3, 0.04, 9, shapes)
    published = config.to_dict()
    assert BertConfig.read(put(tmp_path, published)) == config
    assert set(published) - {"minibert"} == PUBLISHED_KEYS
    assert published["model_type"] == "bert" and published["position_embedding_type"] == "absolute"
    assert published.get("minibert") == ({"case_shapes": list(shapes)} if shapes else None)


def test_what_is_unusual_of_a_head_is_written_down_too(tmp_path):
    config = dataclasses.replace(BertConfig.from_dict(SMALL), classifier_dropout=0.35, tie_word_embeddings=False)
    published = config.to_dict()
    assert set(published) == PUBLISHED_KEYS | {"classifier_dropout", "tie_word_embeddings"}
    assert BertConfig.read(put(tmp_path, published)) == config


@pytest.mark.parametrize("own, dropout, p", [(None, None, 0.2), (0.35, None, 0.35), (0.0, None, 0.0), (0.35, 0.5, 0.5)])
def test_a_head_has_the_dropout_that_its_config_asks_for(tmp_path, own, dropout, p):
    """--dropout replaces it too; an answer's span has none."""
    put(tmp_path, {**SMALL, "hidden_dropout_prob": 0.2, "classifier_dropout": own})
    config = read_config(tmp_path, dropout)
    assert (TokenHead(config, 3).p, PooledHead(config, 3).p, SpanHead(config).p) == (p, p, 0.0)


def test_a_config_cannot_be_changed_in_place():
    config = BertConfig.from_dict(SMALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 31
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 5


# ------------------------------------------------------------------------------------------- TrainConfig: check()


def test_the_defaults_pass():
    assert TrainConfig().check() == TrainConfig()


INF, NAN = math.inf, math.nan
GOOD = [("epochs", 1), ("batch_size", 1), ("accumulate", 32), ("max_steps", 0), ("limit", 0), ("patience", 0),
        ("overlap", 0), ("overlap", 128), ("learning_rate", 0.0), ("clip", 0.0), ("momentum", 0.0), ("beta1", 0.0),
        ("beta2", 0.0), ("weight_decay", 0.0), ("warmup", 0.0), ("warmup", 1.0), ("dropout", 0.0), ("dropout", None),
        ("seed", 2 ** 63 - 1), ("freeze", "none"), ("freeze", "embeddings"), ("freeze", "encoder"), ("freeze", "0"),
        ("freeze", "11"), ("batch_size", 10 ** 9)]
BAD = [("epochs", 0), ("batch_size", 0), ("batch_size", -7), ("accumulate", 0), ("accumulate", 33), ("max_steps", -1),
       ("limit", -1), ("patience", -1), ("max_pieces", 7), ("overlap", -1), ("overlap", 129),
       ("learning_rate", -1e-9), ("learning_rate", NAN), ("learning_rate", INF), ("clip", -0.1), ("clip", NAN),
       ("momentum", 1.0), ("momentum", -0.1), ("momentum", NAN), ("beta1", 1.0), ("beta1", -0.1), ("beta2", 1.0),
       ("beta2", -0.1), ("epsilon", 0.0), ("epsilon", INF), ("weight_decay", -0.01), ("weight_decay", INF),
       ("warmup", -0.1), ("warmup", 1.1), ("warmup", NAN), ("dropout", 1.0), ("dropout", -0.1), ("dropout", NAN),
       ("seed", -1), ("seed", 2 ** 63), ("freeze", "all"), ("freeze", "-1"), ("freeze", "2.5"), ("freeze", "²"),
       ("freeze", ""), ("batch_size", 10 ** 20)]


@pytest.mark.parametrize("name, value", GOOD)
def test_values_at_the_edge_are_allowed(name, value):
    settings = dataclasses.replace(TrainConfig(), **{"batch_size": 32, "max_pieces": 256, name: value})
    assert settings.check() is settings


@pytest.mark.parametrize("name, value", BAD)
def test_values_that_no_run_can_have(name, value):
    with refused("--" + name.replace("_", "-") + " is " + str(value)):
        dataclasses.replace(TrainConfig(), **{"batch_size": 32, "max_pieces": 256, "overlap": 64, name: value}).check()


def test_accumulate_has_a_bound_of_its_own():
    with refused("--accumulate is 1000000001", "1,000,000,000"):
        dataclasses.replace(TrainConfig(), batch_size=10 ** 9, accumulate=10 ** 9 + 1).check()


def test_so_many_updates_and_patience_cannot_both_be_meant():
    """Of a run folder that has both it is no fault: there were such runs."""
    with refused("--patience is 2", "--max-steps"):
        settings_of(["--max-steps", "25", "--patience", "2"])
    assert settings_of(["--max-steps", "25"])[0].max_steps == 25
    dataclasses.replace(TrainConfig(), max_steps=25, patience=2).check()


def test_the_smallest_window_and_its_overlap():
    dataclasses.replace(TrainConfig(), max_pieces=8, overlap=4).check()
    with refused("--overlap is 5"):
        dataclasses.replace(TrainConfig(), max_pieces=8, overlap=5).check()
    dataclasses.replace(TrainConfig(), max_pieces=128).check()         # the usual length with the default overlap


# ------------------------------------------------------------------------------------------------ the command line


WORDS = {                                          # field -> words of the command line, value they mean
    "task": (["--task", "ner"], "ner"), "data": (["--data", "a folder"], "a folder"),
    "cache": (["--cache", "a/place"], "a/place"),
    "weights": (["--weights=x/y"], "x/y"), "output": (["--output", "runs/7"], "runs/7"),
    "epochs": (["--epochs", "13"], 13), "max_steps": (["--max-steps", "17"], 17),
    "batch_size": (["--batch-size", "19"], 19), "accumulate": (["--accumulate", "5"], 5),
    "max_pieces": (["--max-pieces", "77"], 77), "overlap": (["--overlap", "23"], 23),
    "learning_rate": (["--learning-rate", "3e-4"], 0.0003), "optimizer": (["--optimizer", "sgd"], "sgd"),
    "momentum": (["--momentum", "0.75"], 0.75), "beta1": (["--beta1", "0.5"], 0.5),
    "beta2": (["--beta2", "0.625"], 0.625),
    "epsilon": (["--epsilon", "1e-6"], 1e-6), "bias_correction": (["--no-bias-correction"], False),
    "weight_decay": (["--weight-decay", "0.125"], 0.125), "warmup": (["--warmup", "0.25"], 0.25),
    "clip": (["--clip", "5"], 5.0), "dropout": (["--dropout", "0.375"], 0.375),
    "case_shapes": (["--case-shapes", "off"], "off"), "layout": (["--layout", "ragged"], "ragged"),
    "precision": (["--precision", "bf16"], "bf16"), "gradients": (["--gradients", "by-hand"], "by-hand"),
    "adversarial": (["--adversarial", "0.5"], 0.5), "freeze": (["--freeze", "3"], "3"),
    "patience": (["--patience", "6"], 6), "best": (["--best", "bleu"], "bleu"),
    "evaluate": (["--evaluate", "dev"], "dev"),
    "before": (["--no-before"], False), "save_every": (["--save-every", "7m"], "7m"), "keep": (["--keep", "3"], 3),
    "resume": (["--resume"], True), "verbose": (["--verbose"], True),
    "split": (["--split", "0.7,0.3"], "0.7,0.3"), "stratify": (["--stratify"], True),
    "limit": (["--limit", "29"], 29), "seed": (["--seed", "31"], 31), "device": (["--device", "cpu"], "cpu")}
FIELDS = {f.name: f for f in dataclasses.fields(TrainConfig)}


def test_every_option_has_a_row_above():
    assert set(WORDS) == set(FIELDS)                                         # a new option needs a row in WORDS
    promised = {"task", "data", "weights", "output", "epochs", "batch_size", "accumulate", "learning_rate", "optimizer",
                "weight_decay", "warmup", "clip", "dropout", "precision", "freeze", "patience", "max_steps", "limit",
                "evaluate", "before", "seed", "device", "gradients", "save_every", "resume"}
    assert promised <= set(FIELDS)


@pytest.mark.parametrize("name", WORDS)
def test_each_option_is_parsed_to_its_value_and_type(name):
    words, value = WORDS[name]
    parsed = parse(words, TrainConfig)
    assert parsed == {name: value} and type(parsed[name]) is type(value)     # and nothing that was not given


def test_all_options_together_and_none():
    everything = parse([w for words, _ in WORDS.values() for w in words], TrainConfig)
    assert everything == {name: value for name, (_, value) in WORDS.items()}
    assert parse([], TrainConfig) == {}


def test_booleans_both_ways():
    assert parse(["--before"], TrainConfig) == {"before": True}
    assert parse(["--no-before", "--bias-correction"], TrainConfig) == {"before": False, "bias_correction": True}


@pytest.mark.parametrize("words, parts", [
    (["--epoch", "3"], ["--epoch"]),                                         # no abbreviations
    (["--colour", "red"], ["--colour"]), (["ner"], ["ner"]),
    (["--batch-size", "3.5"], ["--batch-size", "3.5"]), (["--batch-size", "many"], ["--batch-size", "many"]),
    (["--learning-rate", "fast"], ["--learning-rate", "fast"]), (["--clip"], ["--clip"]),
    (["--precision", "fp8"], ["--precision", "fp8", "bf16"]), (["--optimizer", "lion"], ["--optimizer", "lion", "sgd"]),
    (["--evaluate", "train"], ["--evaluate", "none"]), (["--before", "yes"], ["yes"]),
    (["--config"], ["--config"]), (["--batch_size", "7"], ["--batch_size"])], ids=" ".join)
def test_a_wrong_command_line_is_one_line(words, parts):
    with refused(*parts, "--help"):
        parse(words, TrainConfig)


def test_options_of_a_task_stand_beside_the_general_ones():
    parsed = parse(["--colour", "blue", "--epochs", "9"], TrainConfig, Toy.Options)
    assert parsed == {"colour": "blue", "epochs": 9}
    with refused("--colour", "green", "red"):
        parse(["--colour", "green"], TrainConfig, Toy.Options)


@pytest.mark.parametrize("kind", [TrainConfig, *(t.Options for t in TASKS.values())], ids=lambda k: k.__module__)
def test_every_field_has_help_and_a_default_of_its_own_type(kind, capsys):
    for f in dataclasses.fields(kind):
        assert len(f.metadata["help"]) > 5, f.name
        choices = f.metadata["choices"]
        assert choices is None or f.default in choices, f.name
    with pytest.raises(SystemExit) as stop:
        parse(["--help"], kind)
    shown = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for f in dataclasses.fields(kind):
        assert "--" + f.name.replace("_", "-") in shown
        assert " ".join(f.metadata["help"].split()) in shown or "-" in f.metadata["help"]    # argparse may break at "-"


@pytest.mark.parametrize("level", ["-O", "-OO"])
def test_help_begins_with_a_sentence_and_ends_with_the_replay_also_without_docstrings(level):
    shown = subprocess.run([sys.executable, level, train.__file__, "--help"], capture_output=True, text=True,
                           timeout=60)
    assert shown.returncode == 0 and shown.stderr == ""
    usage, description, *_, epilog = shown.stdout.strip().split("\n\n")
    assert description == train.DESCRIPTION and usage.startswith("usage: ")
    assert epilog.startswith("train.py --replay ")


def test_a_percent_sign_in_a_help_text_is_shown(capsys):
    @dataclass
    class Odd:
        share: float = option(0.5, "a share of 10% (so)")

    with pytest.raises(SystemExit):
        parse(["--help"], Odd)
    assert "a share of 10% (so)" in " ".join(capsys.readouterr().out.split())


def test_help_has_the_six_that_people_use_first_then_groups(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"], TrainConfig, Toy.Options)
    shown = capsys.readouterr().out
    titles = [f"\n{title}:\n" for title in (*GROUPS.values(), "of this task alone")]
    places = [shown.index(title) for title in titles]
    assert places == sorted(places)
    first = shown[places[0]:places[1]]
    options = [line.split()[0].rstrip(",") for line in first.splitlines() if line.startswith("  --")]
    assert options == ["--task", "--data", "--weights", "--output", "--epochs", "--learning-rate"]
    assert {f.metadata["group"] for f in dataclasses.fields(TrainConfig)} == set(GROUPS)


ALIASES = {"--max-length": "max_pieces", "--max-seq-length": "max_pieces", "--lr": "learning_rate",
           "--gradient-accumulation-steps": "accumulate", "--warmup-ratio": "warmup", "--max-grad-norm": "clip",
           "--num-train-epochs": "epochs", "--adam-epsilon": "epsilon"}


@pytest.mark.parametrize("typed, name", ALIASES.items())
def test_what_other_programs_call_it_is_taken_on_the_command_line_and_in_a_file(tmp_path, typed, name):
    value = {"learning_rate": 0.25, "warmup": 0.5, "clip": 2.0, "epsilon": 0.125}.get(name, 9)
    assert parse([typed, str(value)], TrainConfig) == {name: value}
    file = write(tmp_path, "a.json", json.dumps({typed[2:]: value}))
    assert read_settings(file, TrainConfig) == {name: value}
    twice = write(tmp_path, "b.json", json.dumps({typed[2:]: value, name: value}))
    with refused(twice, name, "twice"):
        read_settings(twice, TrainConfig)


@pytest.mark.parametrize("task, options, says", [
    ("classify", {"label_smoothing": 1.0}, "--label-smoothing is 1.0; it must be in [0, 1)"),
    ("mlm", {"hide": NAN}, "--hide is nan; it must be between 0 and 1"),
    ("qa", {"longest": 0}, "--longest is 0; it must be between 1 and 1,000,000"),
    ("reply", {"temperature": INF}, "--temperature is inf; it must be above 0"),
    ("reply", {"rerank": -1}, "--rerank is -1; it must be between 0 and 1,000,000"),
    ("translate", {"longest": 10 ** 7}, "--longest is 10000000; it must be between 1 and 1,000,000"),
    ("translate", {"beams": 1001}, "--beams is 1001; it must be between 1 and 1,000"),
    ("translate", {"length_penalty": NAN}, "--length-penalty is nan; it must be between -100 and 100"),
    ("relation", {"none": "\ud83d"}, "--none is '\\ud83d'; it must be text")], ids=lambda v: str(v)[:30])
def test_the_options_of_a_task_keep_to_their_bounds(task, options, says):
    with refused(says):
        TASKS[task].Options(**options)


@pytest.mark.parametrize("bounds, good, bad, words", [
    ({"least": 1, "most": 9}, [1, 9], [0, 10], "between 1 and 9"),
    ({"least": 0, "below": 1}, [0, 0.5], [-0.1, 1], "[0, 1)"), ({"least": 0}, [0, 7], [-1], "0 or more"),
    ({"above": 0}, [1e-9, 5], [0, math.inf, math.nan], "above 0"), ({"least": 8}, [8], [7], "at least 8"),
    ({"above": 0, "below": 1}, [0.5], [0, 1], "between 0 and 1"), ({}, [-3], [math.inf], "finite")])
def test_bounds(bounds, good, bad, words):
    Bounded = dataclasses.make_dataclass("Bounded", [("size", float, option(1.0, "a size", **bounds))])
    for value in good:
        check_bounds(Bounded(value))
    for value in bad:
        with refused(f"--size is {value}; it must be", words):
            check_bounds(Bounded(value))


# -------------------------------------------------------------------------------------------------------- --config


def read_settings(file: str, kind: type) -> dict:
    return checked(read_table(Path(file)), Path(file), kind)


def write(folder, name, text):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return str(file)


TOML = """
batch-size = 19
learning_rate = 3e-4
clip = 5                 # a whole number where a float is expected
before = false
weights = "x/y"
dropout = 0.375
optimizer = "sgd"
"""
JSON = ('{"batch-size": 19, "learning_rate": 3e-4, "clip": 5, "before": false, "weights": "x/y", "dropout": 0.375,'
        ' "optimizer": "sgd", "data": null}')


@pytest.mark.parametrize("name, text", [("a.toml", TOML), ("a.json", JSON), ("a.conf", TOML)])
def test_settings_of_a_file(tmp_path, name, text):
    read = read_settings(write(tmp_path, name, text), TrainConfig)
    assert read == {"batch_size": 19, "learning_rate": 0.0003, "clip": 5.0, "before": False, "weights": "x/y",
                    "dropout": 0.375, "optimizer": "sgd"}
    assert type(read["clip"]) is float


@pytest.mark.parametrize("name, text, parts", [
    ("a.toml", "batchsize = 7", ["batchsize", "batch_size"]), ("a.json", '{"colour": 1}', ["colour"]),
    ("a.toml", 'config = "b.toml"', ["config"]),
    ("a.toml", 'batch_size = "7"', ["batch_size", "'7'", "int"]), ("a.toml", "batch_size = 7.0", ["batch_size", "7.0"]),
    ("a.toml", "batch_size = true", ["batch_size", "True"]), ("a.toml", "before = 1", ["before", "bool"]),
    ("a.toml", "learning_rate = true", ["learning_rate", "float"]), ("a.toml", "clip = [1]", ["clip", "[1]"]),
    ("a.toml", "weights = 7", ["weights", "str"]), ("a.json", '{"batch_size": null}', ["batch_size", "None"]),
    ("a.toml", "[clip]\nvalue = 1", ["clip"]), ("a.toml", "seed = 1979-05-27", ["seed"]),
    ("a.toml", 'precision = "fp8"', ["precision", "fp8", "bf16"]), ("a.json", '{"evaluate": "train"}', ["evaluate"]),
    ("a.toml", "batch_size = ", ["TOML"]), ("a.toml", "a = 1\na = 2", ["TOML"]), ("a.json", "{", ["JSON"]),
    ("a.json", "[]", ["object"]), ("a.toml", "batch_size = 7\nbatch-size = 9", ["batch", "twice"]),
], ids=lambda v: v if isinstance(v, str) else "")
def test_a_wrong_file_of_settings_is_one_line(tmp_path, name, text, parts):
    with refused(str(tmp_path / name), *parts):
        read_settings(write(tmp_path, name, text), TrainConfig)


def test_a_missing_file_a_folder_and_a_file_that_is_no_text(tmp_path):
    for name in ("none.toml", "none.json"):
        with refused(name):
            read_settings(str(tmp_path / name), TrainConfig)
    with refused(str(tmp_path)):
        read_settings(str(tmp_path), TrainConfig)
    (tmp_path / "raw.toml").write_bytes(b"weights = '\xff'")
    with refused("raw.toml"):
        read_settings(str(tmp_path / "raw.toml"), TrainConfig)


# ------------------------------------------------------------------------------------------------ order of settings


class Toy:
    """A task with a default and an option of its own."""
    defaults = {"epochs": 11, "batch_size": 22, "patience": 33, "colour": "blue"}

    @dataclass(frozen=True)
    class Options:
        colour: str = option("red", "of the toy", ("red", "blue", "white"))
        wheels: int = option(4, "how many")


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(TASKS, "toy", Toy)


def test_order_of_settings(tmp_path, toy):
    file = write(tmp_path, "a.toml", "epochs = 111\nbatch-size = 222\nseed = 444\nwheels = 6\n")
    settings, own, chosen = settings_of(["--task", "toy", "--config", file, "--epochs", "1111"])
    assert settings.epochs == 1111                                           # command line > file > task > TrainConfig
    assert settings.batch_size == 222                                        # file > task
    assert settings.patience == 33                                           # task > TrainConfig
    assert settings.seed == 444                                              # file > TrainConfig
    assert settings.max_pieces == TrainConfig().max_pieces                   # nobody said anything
    assert settings.task == "toy" and (own.colour, own.wheels) == ("blue", 6)
    assert {"epochs", "batch_size", "patience", "seed"} <= chosen and "learning_rate" not in chosen
    assert settings_of(["--task=toy", "--wheels", "8", "--config", file])[1].wheels == 8


def test_without_anything_it_is_the_task_and_then_trainconfig(toy):
    settings, own, chosen = settings_of(["--task", "toy"])
    assert (settings.epochs, settings.batch_size, own.colour, own.wheels) == (11, 22, "blue", 4)
    settings, _, chosen = settings_of([])
    assert settings.task == TrainConfig.task and "learning_rate" not in chosen
    assert "learning_rate" in settings_of(["--learning-rate", "1e-3"])[2]


def test_the_task_can_stand_in_the_file_and_the_command_line_stands_above(tmp_path, toy):
    file = write(tmp_path, "a.toml", 'task = "toy"\ncolour = "white"\n')
    settings, own, _ = settings_of(["--config", file])
    assert settings.task == "toy" and own.colour == "white" and settings.epochs == 11
    settings, _, _ = settings_of([f"--config={file}"])
    assert settings.task == "toy"
    with refused("colour", "unknown"):                                       # ner has no such option
        settings_of(["--config", file, "--task", "ner"])
    plain = write(tmp_path, "b.json", '{"task": "toy", "epochs": 8}')
    assert settings_of(["--config", plain, "--task", "ner"])[0].task == "ner"


@pytest.mark.parametrize("words, parts", [
    (["--task", "nre"], ["nre", "ner"]), (["--task"], ["--task"]), (["--task="], ["--task"]),
    (["--batch-size", "0"], ["--batch-size"]), (["--accumulate", "33"], ["--accumulate", "33"]),
    (["--colour", "red"], ["--colour"])], ids=" ".join)
def test_wrong_settings_are_one_line(words, parts):
    with refused(*parts):
        settings_of(words)


@pytest.mark.parametrize("words", [[], ["--task", "toy"]], ids=" ".join)
def test_a_file_that_can_be_read_once_is_read_once(tmp_path, toy, words):
    """A pipe, as in --config <(...): a second reader would find it empty."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('task = "toy"\nseed = 444\nwheels = 6\n',), daemon=True)
    writer.start()
    settings, own, _ = settings_of(["--config", str(pipe), *words])
    writer.join(5)
    assert (settings.task, settings.seed, own.wheels) == ("toy", 444, 6)


def test_a_wrong_task_in_the_file(tmp_path):
    with refused("--task", "'nre'", "ner"):
        settings_of(["--config", write(tmp_path, "a.toml", 'task = "nre"')])
    with refused("task", "5"):
        settings_of(["--config", write(tmp_path, "b.toml", "task = 5")])
    with refused("--batch-size"):                                            # rules hold for the file as well
        settings_of(["--config", write(tmp_path, "c.toml", "batch_size = 0")])


def test_a_wrong_option_ends_with_code_2_and_one_line(capsys):
    assert train.main(["--batch-size", "0"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "--batch-size" in shown.err


def test_a_settings_file_may_begin_with_a_byte_order_mark_and_count_frozen_blocks(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbffreeze = 2\n")
    assert read_settings(str(tmp_path / "a.toml"), TrainConfig) == {"freeze": "2"}
    (tmp_path / "b.toml").write_text(f"learning_rate = 1{'0' * 400}\n")
    with refused("learning_rate", "float"):
        read_settings(str(tmp_path / "b.toml"), TrainConfig)


@pytest.mark.parametrize("name, most", [
    ("vocab_size", 2_097_152), ("hidden_size", 65_536), ("num_hidden_layers", 1_024), ("num_attention_heads", 1_024),
    ("intermediate_size", 262_144), ("max_position_embeddings", 1_048_576), ("type_vocab_size", 1_024)])
@pytest.mark.parametrize("value", [None, 10 ** 9, 10 ** 30, -1, 0, True, 2.0])
def test_sizes_that_no_encoder_has(name, most, value):
    """Said before anything is built."""
    value = most + 1 if value is None else value
    sizes = {"vocab_size": 11, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
             "intermediate_size": 14, name: value}
    with refused(f"f: {name} is {repr(value)[:40]}, not a whole number from 1 to {most:,};"):
        BertConfig.from_dict(sizes, "f")


def test_the_least_numbers_by_hand():
    """(11 + 5 + 2) · 12 vectors, 2 · (4 · 144 + 2 · 12 · 14) in matrices."""
    config = BertConfig(vocab_size=11, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=14,
                        max_position_embeddings=5)
    assert config.least_numbers == 216 + 2 * (576 + 336)
