"""weights.py: the name table, every way a published file can look or be damaged, the report, saving.

Files are written and read here by hand (struct + json + numpy), and a numpy forward pass on the published names says
what a checkpoint computes: neither the safetensors library nor the package's own table is asked what is right.
"""
import dataclasses
import errno
import json
import math
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from refusing import refused
from safetensors.torch import load_file, save_file
from torch import nn

from minibert import files
from minibert.adapt.grow import grow_types
from minibert.checkpoints import weights
from minibert.checkpoints.names import name_table
from minibert.core.config import BertConfig
from minibert.core.heads import Head, WordHead
from minibert.core.model import Model
from minibert.data.tokenizer import Tokenizer
from minibert.files import write_json

V, H, L, A, F, P, TYPES, K = 53, 30, 2, 5, 44, 19, 7, 9
CONFIG = BertConfig(V, H, L, A, F, max_position_embeddings=P, type_vocab_size=TYPES)
KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BF16": "<u2"}


# ------------------------------------------------------------------------- the format, by hand: a writer and a reader


def to_bytes(values: np.ndarray, kind: str) -> bytes:
    if kind == "BF16":                             # the upper half of a float32, rounded towards zero
        return (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(values).astype(KINDS[kind]).tobytes()


def write_raw(file: Path, header: str | bytes, body: bytes, length: int | None = None) -> Path:
    raw = header.encode() if isinstance(header, str) else header
    file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)
    return file


def entries(tensors: dict, kinds: dict | str = "F32") -> tuple[list[str], bytes]:
    """Header entries as JSON text, one a tensor, and the bytes they point into."""
    texts, body = [], b""
    for name, values in tensors.items():
        kind = kinds if isinstance(kinds, str) else kinds.get(name, "F32")
        raw = to_bytes(values, kind)
        entry = {"dtype": kind, "shape": list(values.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        texts.append(f"{json.dumps(name)}: {json.dumps(entry)}")
        body += raw
    return texts, body


def write_file(file: Path, tensors: dict, kinds: dict | str = "F32") -> Path:
    texts, body = entries(tensors, kinds)
    return write_raw(file, "{" + ", ".join(texts) + "}", body)


def parse_file(file: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file, without the safetensors library."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, result = json.loads(raw[8:8 + length]), {}
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, stop = (8 + length + at for at in entry["data_offsets"])
        values = np.frombuffer(raw[start:stop], KINDS[entry["dtype"]])
        if entry["dtype"] == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        result[name] = values.reshape(entry["shape"])
    return result


# ------------------------------------------------------------------------------------------- a checkpoint, by hand


def shapes(pooler: bool = True) -> dict[str, tuple[int, ...]]:
    """Published name -> shape, as published checkpoints have them."""
    result = {"embeddings.word_embeddings.weight": (V, H), "embeddings.position_embeddings.weight": (P, H),
              "embeddings.token_type_embeddings.weight": (TYPES, H), "embeddings.LayerNorm.weight": (H,),
              "embeddings.LayerNorm.bias": (H,)}
    for i in range(L):
        for name, out, into in (("attention.self.query", H, H), ("attention.self.key", H, H),
                                ("attention.self.value", H, H), ("attention.output.dense", H, H),
                                ("intermediate.dense", F, H), ("output.dense", H, F)):
            result |= {f"encoder.layer.{i}.{name}.weight": (out, into), f"encoder.layer.{i}.{name}.bias": (out,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            result |= {f"encoder.layer.{i}.{name}.weight": (H,), f"encoder.layer.{i}.{name}.bias": (H,)}
    return result | ({"pooler.dense.weight": (H, H), "pooler.dense.bias": (H,)} if pooler else {})


def draw(pooler: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Numbers for every published name; no two tensors alike, LayerNorm weights about 1."""
    random = np.random.default_rng(seed)
    return {name: (0.2 * random.standard_normal(shape) + ("LayerNorm.weight" in name)).astype(np.float32)
            for name, shape in shapes(pooler).items()}


def checkpoint(folder: Path, tensors: dict, kinds: dict | str = "F32", config: BertConfig = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    write_file(folder / "model.safetensors", tensors, kinds)
    return folder


def norm(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def bert_in_numpy(w: dict[str, np.ndarray], ids: np.ndarray, types: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One row [T] through the network of the paper in float64, from tensors under their published names."""
    w = {k: v.astype(np.float64) for k, v in w.items()}
    e = "embeddings."
    x = (w[e + "word_embeddings.weight"][ids] + w[e + "position_embeddings.weight"][:len(ids)]
         + w[e + "token_type_embeddings.weight"][types])
    x = norm(x, w, "embeddings.LayerNorm")
    for i in range(L):
        b, D = f"encoder.layer.{i}.", H // A
        q, k, v = (linear(x, w, f"{b}attention.self.{n}") for n in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for a in range(A):
            part = slice(a * D, a * D + D)
            scores = np.exp(q[:, part] @ k[:, part].T / math.sqrt(D))
            mixed[:, part] = scores / scores.sum(-1, keepdims=True) @ v[:, part]
        x = norm(x + linear(mixed, w, b + "attention.output.dense"), w, b + "attention.output.LayerNorm")
        inner = linear(x, w, b + "intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(x + linear(inner, w, b + "output.dense"), w, b + "output.LayerNorm")
    return x, np.tanh(linear(x[0], w, "pooler.dense")) if "pooler.dense.weight" in w else None


def assert_computes(bert, tensors) -> None:
    """The loaded encoder computes what numpy does from the same published tensors."""
    random = np.random.default_rng(1)
    ids, types = random.integers(0, V, 13), random.integers(0, TYPES, 13)
    hidden, pooled = bert.encode(torch.tensor(ids)[None], types=torch.tensor(types)[None])
    expected, expected_pooled = bert_in_numpy(tensors, ids, types)
    assert np.abs(hidden[0].detach().numpy() - expected).max() < 2e-5
    if expected_pooled is None:
        assert pooled is None
    else:
        assert np.abs(pooled[0].detach().numpy() - expected_pooled).max() < 2e-5


class MapHead(Head):
    def __init__(self, K: int = K):
        super().__init__()
        self.classifier = nn.Linear(H, K)


def head_tensors(K: int = K) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {"classifier.weight": random.standard_normal((K, H)).astype(np.float32),
            "classifier.bias": random.standard_normal(K).astype(np.float32)}


# ------------------------------------------------------------------------------------------------- the name table


@pytest.mark.parametrize("pooler", [True, False])
def test_name_table_is_one_to_one_and_covers_every_parameter(pooler):
    rows = name_table(CONFIG, pooler)
    symbols, ours, published = ([r[i] for r in rows] for i in range(3))
    for names in (symbols, ours, published):
        assert len(set(names)) == len(names) == 5 + 16 * L + 2 * pooler
    state = weights.random_bert(CONFIG, pooler=pooler).state_dict()
    assert set(ours) == set(state)
    assert set(published) == set(shapes(pooler))
    for row in rows:                               # both ways lead to the same shape
        assert tuple(state[row.ours].shape) == shapes(pooler)[row.published]


def test_symbols_are_matrices_for_matrices_and_vectors_for_vectors():
    state = weights.random_bert(CONFIG).state_dict()
    for row in name_table(CONFIG):
        kind = row.symbol.split("_")[0]
        assert {"W": 2, "E": 2, "b": 1, "gamma": 1, "beta": 1}[kind] == state[row.ours].dim(), row
        assert (kind in ("gamma", "beta")) == ("LayerNorm" in row.published), row
        assert (kind in ("b", "beta")) == row.published.endswith("bias"), row


# ------------------------------------------------------------------------------------- how published files look


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("old", [False, True], ids=["weight", "gamma"])
@pytest.mark.parametrize("pooler", [True, False], ids=["pooler", "no-pooler"])
def test_every_tensor_lands_in_its_place(tmp_path, prefix, old, pooler):
    tensors = draw(pooler)
    named = {}
    for name, values in tensors.items():
        if old:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        named[prefix + name] = values
    bert, report = weights.load(checkpoint(tmp_path, named))
    assert_computes(bert, tensors)
    assert sorted(report.loaded) == sorted(tensors) and not report.new and not report.ignored
    assert str(report) == f"loaded: {len(tensors)} tensors"
    assert not bert.training and all(p.dtype == torch.float32 for p in bert.parameters())
    assert (bert.pooler is not None) == pooler


def test_load_bert_takes_a_string_too(tmp_path):
    checkpoint(tmp_path, draw())
    assert_computes(weights.load_bert(str(tmp_path)), draw())


@pytest.mark.parametrize("kind", ["F64", "F16", "BF16", "F32"])
def test_stored_formats(tmp_path, kind):
    folder = checkpoint(tmp_path, draw(), kind)
    stored = parse_file(folder / "model.safetensors")
    state = weights.load_bert(folder).state_dict()
    for row in name_table(CONFIG):
        assert state[row.ours].dtype == torch.float32
        assert np.array_equal(state[row.ours].numpy(), stored[row.published].astype(np.float32)), row
    if kind in ("F16", "BF16"):                    # the rounding of the file is there, so it was that file
        assert not np.array_equal(stored["pooler.dense.weight"], draw()["pooler.dense.weight"])


def test_mixed_formats_in_one_file(tmp_path):
    kinds = {"embeddings.word_embeddings.weight": "F16", "pooler.dense.bias": "F64",
             "embeddings.LayerNorm.bias": "BF16"}
    folder = checkpoint(tmp_path, draw(), kinds)
    assert_computes(weights.load_bert(folder), parse_file(folder / "model.safetensors"))


def test_buffers_and_known_heads_are_ignored_in_words(tmp_path):
    extra = {"bert.embeddings.position_ids": np.arange(P)[None], "cls.predictions.bias": np.zeros(V),
             "cls.predictions.transform.dense.weight": np.zeros((H, H)),
             "cls.predictions.decoder.weight": np.zeros((V, H)),
             "cls.predictions.transform.LayerNorm.gamma": np.ones(H),
             "cls.seq_relationship.weight": np.zeros((2, H)), "qa_outputs.bias": np.zeros(2)}
    tensors = {"bert." + k: v for k, v in draw().items()} | extra
    bert, report = weights.load(checkpoint(tmp_path, tensors, {"bert.embeddings.position_ids": "I64"}))
    assert_computes(bert, draw())
    assert len(report.loaded) == len(draw()) and not report.new
    assert {what: len(names) for what, names in report.ignored.items()} == {
        "constant buffers": 1, "known: masked-word head": 4, "known: next-sentence head": 1,
        "known: question-answering head": 1}
    text = str(report)
    assert text.count("ignored: ") == 4 and "newly" not in text and "unknown" not in text
    for what in ("constant buffers", "masked-word head", "next-sentence head", "question-answering head"):
        assert what in text


def test_an_unknown_tensor_is_reported_by_name(tmp_path):
    _, report = weights.load(checkpoint(tmp_path, {**draw(), "adapter.down": np.ones((5, 6))}))
    assert list(report.ignored.values()) == [["adapter.down"]]
    assert "unknown: adapter.down" in str(report)


def test_a_layer_too_many_does_not_fit_its_config(tmp_path):
    """DESIGN section 9: names that do not fit the config are refused; a layer left out gives other numbers."""
    more = {k.replace("layer.1", "layer.2"): v for k, v in draw().items() if "layer.1" in k}
    with refused("encoder.layer.2", tmp_path):
        weights.load(checkpoint(tmp_path, {**draw(), **more}))


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_several_files_with_an_index(tmp_path, prefix):
    tensors = {prefix + k: v for k, v in draw().items()}
    folder = indexed(tmp_path, tensors)
    assert len(list(folder.glob("*.safetensors"))) == 3
    bert, report = weights.load(folder)
    assert_computes(bert, draw())
    assert len(report.loaded) == len(tensors)


def indexed(folder: Path, tensors: dict, **change) -> Path:
    """A checkpoint in three files with model.safetensors.index.json."""
    names = list(tensors)
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()), encoding="utf-8")
    table = {}
    for i in range(3):
        file = f"model-0000{i + 1}-of-00003.safetensors"
        write_file(folder / file, {n: tensors[n] for n in names[i::3]})
        table |= dict.fromkeys(names[i::3], file)
    index = {"metadata": {"total_size": 7}, "weight_map": table} | change
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def test_a_file_of_the_index_is_missing_or_damaged(tmp_path):
    folder = indexed(tmp_path, draw())
    second = folder / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-4])
    with refused(second):
        weights.load(folder)
    second.unlink()
    with refused(second, "index"):
        weights.load(folder)


@pytest.mark.parametrize("table", [["a.safetensors"], "a.safetensors", None, {"a": 7}, {"a": "../a.safetensors"},
                                   {"a": "b/a.safetensors"}, {"a": "/a.safetensors"}, {"a": None}], ids=str)
def test_a_weight_map_that_cannot_be_followed(tmp_path, table):
    folder = tmp_path / "x"
    folder.mkdir()
    write_file(tmp_path / "a.safetensors", draw())                            # what ../ would reach
    indexed(folder, draw(), weight_map=table)
    with refused(folder / "model.safetensors.index.json", "weight_map"):
        weights.load(folder)


def test_an_index_that_names_a_file_no_system_can_have(tmp_path):
    folder = indexed(tmp_path, draw(), weight_map={"a": "a" * 3000})
    with refused(folder, "listed in model.safetensors.index.json but not there"):
        weights.load(folder)


def test_an_index_that_is_no_json_object(tmp_path):
    folder = indexed(tmp_path, draw())
    for text in ("[]", "{", ""):
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        with refused(folder / "model.safetensors.index.json"):
            weights.load(folder)


def test_one_tensor_in_two_files_of_an_index(tmp_path):
    folder = indexed(tmp_path, draw())
    file = folder / "model-00003-of-00003.safetensors"
    name = "embeddings.word_embeddings.weight"
    write_file(file, {**parse_file(file), name: draw()[name]})
    with refused(name, file.name, "model-00001-of-00003.safetensors"):
        weights.load(folder)


# -------------------------------------------------------------------------------------------------------- heads


def test_a_head_is_loaded_from_the_same_file(tmp_path):
    head = MapHead()
    folder = checkpoint(tmp_path, {**draw(), **head_tensors()})
    _, report = weights.load(folder, head)
    assert np.array_equal(head.classifier.weight.detach().numpy(), head_tensors()["classifier.weight"])
    assert np.array_equal(head.classifier.bias.detach().numpy(), head_tensors()["classifier.bias"])
    assert "classifier.weight" in report.loaded and not report.new and not report.ignored


def test_a_new_head_keeps_its_initial_values_even_where_the_stored_one_would_fit(tmp_path):
    head = MapHead()
    initial = {k: v.clone() for k, v in head.state_dict().items()}
    _, report = weights.load(checkpoint(tmp_path, {**draw(), **head_tensors()}), head, new_head=True)
    assert all(torch.equal(v, initial[k]) for k, v in head.state_dict().items())
    assert report.new == ["classifier.weight", "classifier.bias"]
    assert set(report.ignored["known: classification head"]) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("stored", [{}, head_tensors(K=11), {"classifier.bias": head_tensors()["classifier.bias"]}],
                         ids=["absent", "11 labels", "half"])
def test_a_head_that_does_not_fit(tmp_path, stored):
    head = MapHead()
    initial = {k: v.clone() for k, v in head.state_dict().items()}
    folder = checkpoint(tmp_path, {**draw(), **stored})
    bert, report = weights.load(folder, head, new_head=True)
    assert_computes(bert, draw())
    assert report.new == ["classifier.weight", "classifier.bias"]
    assert all(torch.equal(initial[k], v) for k, v in head.state_dict().items())
    text = str(report)
    assert "newly initialised: classifier.weight, classifier.bias" in text and "new head" in text
    assert ("ignored: known: classification head" in text) == bool(stored)
    with refused(folder, "classifier.weight", *(["[11, 30]", "[9, 30]"] if len(stored) == 2 else [])):
        weights.load(folder, MapHead(), new_head=False)


def test_load_into_replaces_encoder_and_head(tmp_path):
    checkpoint(tmp_path, {**draw(), **head_tensors()})
    model = Model(weights.random_bert(CONFIG, seed=5), MapHead())
    weights.load_into(tmp_path, model)
    assert_computes(model.bert, draw())
    assert np.array_equal(model.head.classifier.weight.detach().numpy(), head_tensors()["classifier.weight"])


def test_dropout_of_the_checkpoint_and_of_the_command_line(tmp_path):
    config = dataclasses.replace(CONFIG, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    folder = checkpoint(tmp_path, draw(), config=config)
    bert, _ = weights.load(folder)
    assert (bert.config.hidden_dropout_prob, bert.config.attention_probs_dropout_prob) == (0.2, 0.3)
    assert bert.embeddings.p == 0.2 and bert.blocks[1].attention.p == 0.3
    bert, _ = weights.load(folder, dropout=0.0)
    assert (bert.config.hidden_dropout_prob, bert.config.attention_probs_dropout_prob) == (0.0, 0.0)
    assert bert.embeddings.p == 0.0 and bert.blocks[1].attention.p == 0.0


# ------------------------------------------------------------------------------------------------ damaged files


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.1.output.LayerNorm.bias",
                                  "pooler.dense.bias"])
def test_a_missing_weight_is_named(tmp_path, name):
    with refused(tmp_path, name, "missing"):
        weights.load(checkpoint(tmp_path, {k: v for k, v in draw().items() if k != name}))


@pytest.mark.parametrize("name, shape", [
    ("embeddings.word_embeddings.weight", (V + 1, H)), ("embeddings.token_type_embeddings.weight", (2, H)),
    ("encoder.layer.0.intermediate.dense.weight", (H, F)), ("encoder.layer.1.attention.self.key.bias", (1, H)),
    ("encoder.layer.0.output.dense.weight", (H * F,)), ("embeddings.LayerNorm.weight", ())])
def test_a_wrong_shape_names_tensor_file_and_both_shapes(tmp_path, name, shape):
    folder = checkpoint(tmp_path, {**draw(), name: np.ones(shape)})
    with refused(folder / "model.safetensors", name, list(shape), list(shapes()[name])):
        weights.load(folder)


@pytest.mark.parametrize("kind", ["I64", "I32", "U8"])
def test_whole_numbers_are_no_weights(tmp_path, kind):
    name = "encoder.layer.1.attention.output.dense.bias"
    with refused(tmp_path / "model.safetensors", name, kind):
        weights.load(checkpoint(tmp_path, draw(), {name: kind}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["F32", "F16", "F64", "BF16"])
def test_numbers_that_are_not_finite(tmp_path, value, kind):
    name = "encoder.layer.0.attention.self.value.weight"
    tensors = draw()
    tensors[name][17, 23] = value
    with refused(tmp_path / "model.safetensors", name, "finite"):
        weights.load(checkpoint(tmp_path, tensors, {name: kind}))


def test_a_double_too_large_for_float32_is_not_finite(tmp_path):
    name = "pooler.dense.bias"
    with refused(name, "finite"):
        weights.load(checkpoint(tmp_path, {**draw(), name: np.full(H, 1e300)}, {name: "F64"}))


def test_not_finite_numbers_of_a_head(tmp_path):
    values = head_tensors()
    values["classifier.bias"][6] = np.nan
    with refused("classifier.bias", "finite"):
        weights.load(checkpoint(tmp_path, {**draw(), **values}), MapHead())


def test_truncated_files(tmp_path):
    folder = checkpoint(tmp_path, draw())
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    for size in (0, 1, 7, 8, 9, 8 + header // 2, 8 + header - 1, 8 + header, 8 + header + 100, len(whole) // 2,
                 len(whole) - 1):
        file.write_bytes(whole[:size])
        with refused(file):
            weights.load(folder)
    file.write_bytes(whole)
    assert_computes(weights.load_bert(folder), draw())                        # whole again: fine again


def test_bytes_too_many(tmp_path):
    folder = checkpoint(tmp_path, draw())
    with open(folder / "model.safetensors", "ab") as f:
        f.write(b"\0" * 12)
    with refused(folder / "model.safetensors"):
        weights.load(folder)


@pytest.mark.parametrize("length", [10 ** 9, 2 ** 63, 2 ** 64 - 1, 100_000_001])
def test_a_header_longer_than_the_file_or_the_limit(tmp_path, length):
    folder = checkpoint(tmp_path, draw())
    write_raw(folder / "model.safetensors", "{}", b"", length)
    with refused(folder / "model.safetensors", length):
        weights.load(folder)


@pytest.mark.parametrize("header", ["[]", "7", "null", '"x"', "{", "{'a': 1}", "", b"\xff\xfe{}", "{}}", "[" * 50_000,
                                    '{"a": 7}', '{"a": {"dtype": "F32"}}'],
                         ids=lambda h: repr(h[:12]))
def test_headers_that_are_not_what_they_should_be(tmp_path, header):
    folder = checkpoint(tmp_path, draw())
    write_raw(folder / "model.safetensors", header, b"")
    with refused(folder / "model.safetensors"):
        weights.load(folder)


@pytest.mark.parametrize("where", ["same", "other"])
def test_a_name_twice_in_the_header(tmp_path, where):
    """Both entries are well formed and the library takes the last one in silence."""
    folder = checkpoint(tmp_path, draw())
    tensors = draw()
    texts, body = entries(tensors)
    name = "encoder.layer.0.attention.self.query.bias"
    at = list(tensors).index(name)
    again = {"dtype": "F32", "shape": [H], "data_offsets": [len(body), len(body) + 4 * H]}
    twice = texts[at] if where == "same" else f"{json.dumps(name)}: {json.dumps(again)}"
    body += b"" if where == "same" else np.ones(H, "<f4").tobytes()
    write_raw(folder / "model.safetensors", "{" + ", ".join([*texts, twice]) + "}", body)
    with refused(folder / "model.safetensors", name, "twice"):
        weights.load(folder)


def test_a_key_twice_inside_an_entry(tmp_path):
    folder = checkpoint(tmp_path, draw())
    texts, body = entries(draw())
    texts[0] = texts[0].replace('"dtype": "F32"', '"dtype": "I32", "dtype": "F32"')
    write_raw(folder / "model.safetensors", "{" + ", ".join(texts) + "}", body)
    with refused(folder / "model.safetensors", "dtype", "twice"):
        weights.load(folder)


@pytest.mark.parametrize("twin, plain", [
    ("embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
    ("bert.encoder.layer.1.output.LayerNorm.beta", "encoder.layer.1.output.LayerNorm.bias"),
    ("bert.pooler.dense.weight", "pooler.dense.weight")])
def test_one_tensor_under_two_spellings(tmp_path, twin, plain):
    with refused(tmp_path / "model.safetensors", plain):
        weights.load(checkpoint(tmp_path, {**draw(), twin: draw()[plain] + 1}))


def test_offsets_that_overlap_leave_a_hole_or_lie_outside(tmp_path):
    folder = checkpoint(tmp_path, draw())
    size = 4 * H
    for second in ([size - 4, 2 * size - 4], [0, size], [size + 4, 2 * size + 4], [2 * size, 3 * size],
                   [size, size + 4], [2 * size, size], [-4, size - 4]):
        header = {"a": {"dtype": "F32", "shape": [H], "data_offsets": [0, size]},
                  "b": {"dtype": "F32", "shape": [H], "data_offsets": second}}
        write_raw(folder / "model.safetensors", json.dumps(header), b"\0" * 2 * size)
        with refused(folder / "model.safetensors"):
            weights.load(folder)


def test_an_unknown_format_of_numbers(tmp_path):
    folder = checkpoint(tmp_path, draw())
    texts, body = entries(draw())
    write_raw(folder / "model.safetensors", "{" + ", ".join(texts).replace('"F32"', '"Q7"', 1) + "}", body)
    with refused(folder / "model.safetensors"):
        weights.load(folder)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 90868376\n"
STAND_INS = {"pointer": (POINTER, "git lfs pull"), "page": (b"\n <!DOCTYPE html>\n<html><body>Sign in", "web page"),
             "html": (b"\xef\xbb\xbf<HTML lang='hi'>", "web page"), "xml": (b"<?xml version='1.0'?>", "web page"),
             "zip": (b"PK\3\4\0\0\x08\x08" + bytes(40), "pickle"), "empty": (b"", "is empty"),
             "pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
             "pickle 4": (pickle.dumps({"bert": [1, 2]}, 4), "pickle")}


@pytest.mark.parametrize("kind", STAND_INS)
@pytest.mark.parametrize("name", ["model.safetensors", "model-00002-of-00003.safetensors", "config.json",
                                  "model.safetensors.index.json", "vocab.txt", "tokenizer.json",
                                  "tokenizer_config.json", "added_tokens.json"])
def test_what_stands_in_for_a_file_is_named(tiny_folder, tmp_path, kind, name):
    content, says = STAND_INS[kind]
    folder = indexed(tmp_path, draw())
    (folder / "vocab.txt").write_bytes((tiny_folder / "vocab.txt").read_bytes())
    (folder / name).write_bytes(content)
    with refused(str(folder / name), says, f"git lfs pull in {folder}" if kind == "pointer" else ""):
        if name.startswith(("config", "model")):
            weights.load(folder)
        Tokenizer.read(folder)


def test_headers_of_640_bytes_and_of_a_length_that_spells_pk_are_no_archives(tmp_path):
    """A safetensors file of 640 = 0x280 bytes of header begins as a pickle does, one of 67 MB as a zip archive."""
    for length in (0x280, 0x380, 0x480, 0x580, 0x04034B50):
        (file := tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a": 1' + b" " * 64)
        files.refuse_stand_in(file)
        with refused("pickle"):
            file.write_bytes(struct.pack("<Q", length) + b"}q\0X" + b" " * 64)
            files.refuse_stand_in(file)


WRAPPERS = ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.",
            "module.model.", "module.module."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("prefix", ["bert.", ""])
@pytest.mark.parametrize("shards", [False, True])
def test_a_prefix_of_all_names_is_a_wrappers(tmp_path, wrapper, prefix, shards):
    tensors = {wrapper + prefix + k: v for k, v in draw().items()}
    tensors |= {wrapper + k: v for k, v in head_tensors().items()}
    folder = indexed(tmp_path, tensors) if shards else checkpoint(tmp_path, tensors)
    bert, report = weights.load(folder, head := MapHead())
    assert_computes(bert, draw())
    assert np.array_equal(head.classifier.weight.detach().numpy(), head_tensors()["classifier.weight"])
    assert report.wrapper == wrapper and f"begin with {wrapper!r}" in str(report) and not report.ignored
    model = Model(weights.random_bert(CONFIG, seed=3), MapHead())
    weights.load_into(folder, model)
    assert_computes(model.bert, draw())


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_published_names_have_no_wrapper(tmp_path, prefix):
    tensors = {prefix + k: v for k, v in draw().items()} | {"module.scale": np.ones(7, np.float32)}
    bert, report = weights.load(checkpoint(tmp_path, tensors))
    assert_computes(bert, draw())
    assert not report.wrapper and "wrapper" not in str(report) and report.ignored == {
        "unknown: module.scale": ["module.scale"]}


@pytest.mark.parametrize("one, other", [("module.", ""), ("_orig_mod.", "module."), ("module._orig_mod.", "module.")])
def test_a_prefix_of_some_names_is_refused(tmp_path, one, other):
    odd = "encoder.layer.1.output.dense.bias"
    tensors = {(other if k == odd else one) + "bert." + k: v for k, v in draw().items()}
    with refused(f"{one}bert.embeddings.word_embeddings.weight'", f"'{other}bert.{odd}' has not", "state_dict()"):
        weights.load(checkpoint(tmp_path, tensors))


@pytest.mark.parametrize("other, hint", [("pytorch_model.bin", "pytorch_model.bin"), ("bert_model.ckpt.index", "ckpt"),
                                         (None, "model.safetensors")])
def test_a_folder_without_safetensors(tmp_path, other, hint):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()), encoding="utf-8")
    if other:
        (tmp_path / other).write_bytes(b"\x80\x02}.")
    with refused(tmp_path, "no model.safetensors", hint, *(["not read"] if other else [])):
        weights.load(tmp_path)


def test_no_folder_and_no_config(tmp_path):
    with refused(tmp_path / "none"):
        weights.load(tmp_path / "none")
    write_file(tmp_path / "model.safetensors", draw())
    with refused(tmp_path / "config.json"):
        weights.load(tmp_path)


def test_a_config_that_does_not_belong_to_the_file(tmp_path):
    config = dataclasses.replace(CONFIG, intermediate_size=45)
    with refused("model.safetensors", "encoder.layer.0.intermediate.dense.weight", "[44, 30]", "[45, 30]"):
        weights.load(checkpoint(tmp_path, draw(), config=config))
    config = dataclasses.replace(CONFIG, num_hidden_layers=3)
    with refused("16 weights missing", "encoder.layer.2"):
        weights.load(checkpoint(tmp_path, draw(), config=config))


# ------------------------------------------------------------------------------------------------------- saving


def trained(seed: int = 3, pooler: bool = True) -> tuple:
    bert = weights.random_bert(CONFIG, seed, pooler)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in bert.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return bert, MapHead()


@pytest.mark.parametrize("pooler", [True, False])
def test_a_saved_file_has_the_published_names_and_the_same_numbers(tmp_path, pooler):
    bert, head = trained(pooler=pooler)
    weights.save(tmp_path, bert, head, {"architectures": ["X"], "id2label": {"0": "O"}})
    stored = parse_file(tmp_path / "model.safetensors")
    assert {k: v.shape for k, v in stored.items()} == {
        **{"bert." + k: v for k, v in shapes(pooler).items()}, "classifier.weight": (K, H), "classifier.bias": (K,)}
    assert_computes(bert, {k.removeprefix("bert."): v for k, v in stored.items()})
    assert np.array_equal(stored["classifier.weight"], head.classifier.weight.detach().numpy())
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["X"] and config["id2label"] == {"0": "O"} and config["model_type"] == "bert"
    assert BertConfig.read(tmp_path) == CONFIG
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_saved_header_names_the_format_that_the_usual_libraries_ask_for(tmp_path):
    weights.save(tmp_path, *trained())
    raw = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(raw[8:8 + struct.unpack("<Q", raw[:8])[0]])
    assert header["__metadata__"] == {"format": "pt"}
    assert {e["dtype"] for k, e in header.items() if k != "__metadata__"} == {"F32"}


@pytest.mark.parametrize("pooler", [True, False])
def test_saved_and_loaded_again_every_number_is_the_same(tmp_path, pooler):
    bert, head = trained(pooler=pooler)
    weights.save(tmp_path, bert, head)
    again, report = weights.load(tmp_path, other := MapHead())
    assert again.state_dict().keys() == bert.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in bert.state_dict().items())
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in head.state_dict().items())
    assert not report.new and not report.ignored and len(report.loaded) == len(shapes(pooler)) + 2


def test_case_shapes_survive_saving(tmp_path):
    bert = grow_types(trained()[0], ("lower", "title", "upper"))
    weights.save(tmp_path, bert)
    stored = parse_file(tmp_path / "model.safetensors")["bert.embeddings.token_type_embeddings.weight"]
    assert stored.shape == (3 * TYPES, H)
    assert np.array_equal(stored[:TYPES], stored[TYPES:2 * TYPES])
    assert np.array_equal(stored[:TYPES], stored[2 * TYPES:])
    again = weights.load_bert(tmp_path)
    assert again.config.case_shapes == ("lower", "title", "upper") and again.config == bert.config


def test_a_model_in_double_precision_is_saved_as_float32(tmp_path):
    bert, head = trained()
    weights.save(tmp_path, bert.double(), head.double())
    assert {v.dtype for v in parse_file(tmp_path / "model.safetensors").values()} == {np.dtype("float32")}


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(tensors, file, metadata=None):
    Path(file).write_bytes(b"half a file")
    full_disk()


def write_text_fails(self, *_, **__):
    self.write_bytes(b'{"half')
    full_disk()


@pytest.mark.parametrize("target, name, broken", [
    (files, "save_file", half_written), (os, "fsync", full_disk), (os, "replace", full_disk)],
    ids=["write", "fsync", "rename"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, target, name, broken):
    weights.save(tmp_path, *trained(seed=3))
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with monkeypatch.context() as m:
        m.setattr(target, name, broken)
        with refused(tmp_path, "No space left"):
            weights.save(tmp_path, *trained(seed=4))
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    weights.save(tmp_path, *trained(seed=4))                                  # and the next one succeeds
    assert (tmp_path / "model.safetensors").read_bytes() != before["model.safetensors"]


def test_a_failed_config_leaves_the_old_one_and_no_temporary(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"old": [1, "é"]})
    monkeypatch.setattr(Path, "write_text", write_text_fails)
    with refused(tmp_path / "a.json", "No space left"):
        write_json(tmp_path / "a.json", {"new": 2})
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_bytes().decode("utf-8")) == {"old": [1, "é"]}


def test_saving_where_nothing_can_be_written(tmp_path):
    with refused(tmp_path / "none"):
        weights.save(tmp_path / "none", *trained())
    (tmp_path / "file").write_text("x")
    with refused(tmp_path / "file"):
        weights.save(tmp_path / "file", *trained())
    if os.geteuid() != 0:                                                     # root writes everywhere
        os.chmod(tmp_path, 0o500)
        with refused(tmp_path):
            weights.save(tmp_path, *trained())


def test_the_file_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (order.append("flush"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), rename(a, b)))
    weights.save(tmp_path, *trained())
    assert order == ["flush", "model.safetensors", "flush", "flush", "config.json", "flush"]


# ------------------------------------------------------------------------------------------------- random weights


def test_random_bert_is_a_function_of_the_seed_alone():
    one = weights.random_bert(CONFIG, seed=5)
    torch.manual_seed(99)
    torch.rand(7)
    two, other = weights.random_bert(CONFIG, seed=5), weights.random_bert(CONFIG, seed=6)
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert not torch.equal(one.embeddings.word.weight, other.embeddings.word.weight)
    assert not one.training and weights.random_bert(CONFIG, pooler=False).pooler is None


def test_random_bert_is_initialised_as_in_the_paper():
    bert = weights.random_bert(dataclasses.replace(CONFIG, vocab_size=5003, initializer_range=0.05), seed=2)
    words = bert.embeddings.word.weight.detach()
    assert float(words.abs().max()) <= 0.1 + 1e-7                             # cut at two standard deviations
    # sd of a normal cut at ±2: sqrt(1 − 4φ(2)/(2Φ(2) − 1)) = 0.8796
    assert float(words.std()) == pytest.approx(0.05 * 0.8796, rel=0.01) and abs(float(words.mean())) < 1e-3
    for name, p in bert.state_dict().items():
        if name.endswith("bias"):
            assert float(p.abs().max()) == 0.0, name
        elif "norm" in name:
            assert bool((p == 1).all()), name
        else:
            assert float(p.std()) > 0.03, name


def test_saved_weights_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        weights.save(tmp_path, weights.random_bert(CONFIG))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name, value", [("num_hidden_layers", 2 ** 10), ("vocab_size", 2 ** 20),
                                         ("intermediate_size", 2 ** 18), ("max_position_embeddings", 2 ** 20)])
def test_a_network_far_larger_than_its_file_is_not_begun(tiny_folder, tmp_path, monkeypatch, name, value):
    shutil.copytree(tiny_folder, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, name: value}))
    monkeypatch.setattr(weights, "Bert", None)     # which nobody may call
    with refused(str(tmp_path / "m"), "config.json asks for", "the weights are"):
        weights.load(tmp_path / "m")


@pytest.mark.parametrize("layers, refusal", [(67, "1040 weights missing, first encoder.layer.2."),
                                             (68, "asks for 1,088 tensors at least, the weights are 39")])
def test_blocks_are_counted_before_they_are_built(tiny_folder, tmp_path, layers, refusal):
    """39 tensors in the file, 16 a block: 1,072 are no more than 2 · 39 + 1,000 and are looked for, 1,088 are more."""
    shutil.copytree(tiny_folder, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with refused(str(tmp_path / "m"), refusal):
        weights.load(tmp_path / "m")


# ------------------------------------------------------------------------------------- one tensor under two names


DECODER = {"weight": "cls.predictions.decoder.weight", "bias": "cls.predictions.decoder.bias"}
WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture
def masked(tmp_path, tiny_config) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder with a masked-word head, and its tensors."""
    bert = weights.random_bert(tiny_config, seed=3, pooler=False)
    head = WordHead(tiny_config)
    nn.init.normal_(head.cls["predictions"].bias, std=0.3, generator=torch.Generator().manual_seed(1))
    weights.save(tmp_path, bert, head)
    return tmp_path, load_file(tmp_path / "model.safetensors")


def loaded(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Words and bias as they are read from these tensors."""
    save_file(tensors, folder / "model.safetensors")
    head = WordHead(weights.read_config(folder))
    bert, report = weights.load(folder, head)
    assert not report.ignored and not report.new
    _, _, bias, words = (head.attach(bert), head.parts)[1]
    return {"weight": words.detach(), "bias": bias.detach()}


@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")])
@pytest.mark.parametrize("both", [True, False])
def test_a_tied_tensor_is_found_under_either_name(masked, names, both):
    folder, tensors = masked
    own = {"weight": tensors[WORDS], "bias": tensors["cls.predictions.bias"]}
    stored = tensors | {DECODER[name]: own[name].clone() for name in names}
    if not both:
        stored = {k: v for k, v in stored.items() if k not in [{"weight": WORDS, "bias": "cls.predictions.bias"}[n]
                                                               for n in names]}
    found = loaded(folder, stored)
    assert torch.equal(found["weight"], own["weight"]) and torch.equal(found["bias"], own["bias"])


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_tied_tensor_that_is_not_the_other_is_refused_by_name(masked, name):
    folder, tensors = masked
    other = tensors[WORDS if name == "weight" else "cls.predictions.bias"] + 1
    with refused(str(folder), DECODER[name], "ties them", "tie_word_embeddings"):
        loaded(folder, tensors | {DECODER[name]: other})


def test_an_untied_decoder_has_its_own_bias_or_the_shared_one(masked):
    folder, tensors = masked
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"tie_word_embeddings": False})
    matrix, bias = tensors[WORDS] * 2, tensors["cls.predictions.bias"]
    for more, wanted in (({}, bias), ({DECODER["bias"]: bias + 3}, bias + 3)):
        found = loaded(folder, tensors | {DECODER["weight"]: matrix} | more)
        assert torch.equal(found["weight"], matrix) and torch.equal(found["bias"], wanted)
    with refused(str(folder), DECODER["weight"], "missing"):
        loaded(folder, tensors)
