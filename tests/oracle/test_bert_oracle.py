"""The encoder, its gradients and its run folders against transformers: same weights in, same numbers out."""
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from updates import accumulate, build_model

import minibert
import train
from minibert.checkpoints import weights
from minibert.checkpoints.names import name_table
from minibert.core.batch import Batch
from minibert.core.layout import KINDS, Layout
from minibert.core.model import Model
from minibert.errors import MinibertError
from minibert.settings import TrainConfig
from minibert.tasks.ner import NER
from minibert.use.evaluate import score_features
from minibert.use.predict import FineTuned

MASKS = ("none", "right", "left", "holes", "mixed")
LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER", "B-MISC", "I-MISC"]
TEXTS = ["Angela Merkel met Tim Cook of Apple in Paris.", "Rain.", "NASA's McCoy flew to São Paulo on 3 May, again",
         "dull lower-case words only", "« Straße » 東京 \u200b 1,200.50 €", "IBM IBM IBM " * 30]


def inputs(config, B: int, T: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """ids (no [PAD]: transformers never gives that row a gradient) and types, int64 [B,T]; hidden cells are garbage."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(1, config.vocab_size, (B, T), generator=generator),
            torch.randint(0, config.type_vocab_size, (B, T), generator=generator))


@torch.no_grad()
def difference(ours, theirs, ids, mask, types) -> float:
    """The largest one between ours in both layouts and theirs with both attentions, hidden and pooled."""
    live = torch.ones_like(ids).bool() if mask is None else mask.bool()
    largest = 0.0
    for attention in ("eager", "sdpa"):
        theirs.set_attn_implementation(attention)
        wanted = theirs(ids, attention_mask=mask, token_type_ids=types)
        assert wanted.last_hidden_state[live].std() > 0.1                    # an outcome of mere zeros proves nothing
        for kind in KINDS:
            hidden, pooled = ours.encode(ids, mask, types, layout=kind)
            assert hidden.shape == wanted.last_hidden_state.shape and hidden.dtype == wanted.last_hidden_state.dtype
            assert bool((hidden[~live] == 0).all())
            largest = max(largest, distance(hidden[live], wanted.last_hidden_state[live]))
            if wanted.pooler_output is None:
                assert pooled is None
            elif bool(live[:, 0].all()):
                assert pooled.shape == wanted.pooler_output.shape
                largest = max(largest, distance(pooled, wanted.pooler_output))
            else:                                  # transformers pools a dead column there
                with pytest.raises(MinibertError, match="column 0"):
                    pooled.shape  # noqa: B018
    return largest


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a − b|; NaN, which compares as small, is made infinite."""
    d = float((a - b).detach().abs().max())
    return math.inf if math.isnan(d) else d


# -------------------------------------------------------------------------------------------------------- minilm-l6


@pytest.fixture(scope="module")
def real(minilm):
    """minilm-l6 twice: ours, theirs."""
    return minibert.load_bert(minilm), hf.BertModel.from_pretrained(minilm, dtype=torch.float32).eval()


def rows_of_text(minilm, words, lengths: list[int]) -> torch.Tensor:
    """Real text as ids, [len(lengths), max]; cells past a row's length carry more text."""
    pieces = weights.read_tokenizer(minilm, minibert.load_bert(minilm)).pieces(words)
    ids = torch.tensor([i for p in pieces for i in p.ids])
    T = max(lengths)
    rows = torch.stack([ids[k * 97:k * 97 + T] for k in range(len(lengths))])
    rows[:, 0] = 101
    return rows


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("kind", MASKS)
def test_minilm(real, minilm, ner_words, masks, kind, typed):
    ids = rows_of_text(minilm, ner_words, [43] * 7)
    types = (torch.arange(43) >= torch.arange(5, 40, 5)[:, None]).long() if typed else None
    assert difference(*real, ids, masks(kind, 7, 43), types) <= 1e-5


@pytest.mark.parametrize("side", ["right", "left"])
def test_minilm_with_rows_of_one_to_512_pieces(real, minilm, ner_words, side):
    lengths = [512, 1, 130, 17]
    ids = rows_of_text(minilm, ner_words, lengths)
    mask = (torch.arange(512) < torch.tensor(lengths)[:, None]).long()
    assert difference(*real, ids, mask if side == "right" else mask.flip(1), None) <= 1e-5


def test_types_masks_and_positions_are_not_idle_on_minilm(real, minilm, ner_words):
    """The tests above would see each of them ignored: it moves the numbers by far more than 1e-5."""
    ours, ids = real[0], rows_of_text(minilm, ner_words, [43] * 3)
    mask = torch.ones_like(ids)
    mask[:, 21:30] = 0
    with torch.no_grad():
        plain, _ = ours.encode(ids)
        typed, _ = ours.encode(ids, types=torch.ones_like(ids))
        holes, _ = ours.encode(ids, mask)
        closed, _ = ours.encode(torch.cat([ids[:, :21], ids[:, 30:]], 1))
    assert (plain - typed).abs().max() > 1e-2 and (plain - holes)[:, :21].abs().max() > 1e-2
    assert (holes[:, 30:] - closed[:, 21:]).abs().max() > 1e-2


def test_every_use_of_pooled_is_an_error_where_column_0_is_masked(real):
    ours, theirs = real
    ids, mask = torch.randint(1000, 30000, (3, 11)), torch.ones(3, 11, dtype=torch.int64)
    mask[1, 0] = 0                                 # one row is enough
    with torch.no_grad():
        wanted = theirs(ids, attention_mask=mask)
        hidden, pooled = ours.encode(ids, mask)
    assert torch.isfinite(wanted.pooler_output).all()                        # a number is there, of a dead column
    uses = {"attribute": lambda: pooled.mean(), "index": lambda: pooled[0], "sum": lambda: pooled + 1,
            "product": lambda: wanted.pooler_output @ pooled, "function": lambda: torch.tanh(pooled),
            "len": lambda: len(pooled), "iteration": lambda: list(pooled), "array": lambda: np.asarray(pooled),
            "truth": lambda: bool(pooled), "comparison": lambda: pooled == wanted.pooler_output}
    silent = []
    for name, use in uses.items():
        try:
            use()
            silent.append(name)
        except (MinibertError, TypeError):         # TypeError: torch and Python say no before we are asked
            pass
    assert silent == []


def test_a_row_without_any_live_piece_is_zeros_and_disturbs_no_other(real):
    ids, mask = torch.randint(1000, 30000, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    mask[1] = 0
    with torch.no_grad():
        wanted = real[1](ids).last_hidden_state
        for kind in KINDS:
            hidden, _ = real[0].encode(ids, mask, layout=kind)
            assert bool((hidden[1] == 0).all()) and distance(hidden[[0, 2]], wanted[[0, 2]]) <= 1e-5


# ---------------------------------------------------------------------------------------------- random checkpoints


ACTIVATIONS = ("gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")


@pytest.mark.parametrize("types", [1, 2, 5])
@pytest.mark.parametrize("epsilon", [1e-12, 1e-5])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_config_variation(random_bert, masks, tmp_path, activation, epsilon, types):
    """fp32 to 1e-5; and in float64 to 1e-11, where an epsilon or a GELU that is nearly right is seen as well."""
    shape = (ACTIVATIONS.index(activation) + types) % 3
    theirs = random_bert(hf.BertModel, shape, seed=types, hidden_act=activation, layer_norm_eps=epsilon,
                         type_vocab_size=types)
    theirs.save_pretrained(tmp_path)
    ours = minibert.load_bert(tmp_path)
    B, T = 6, theirs.config.max_position_embeddings - types + 1              # once the longest row there can be
    ids, kinds = inputs(theirs.config, B, T)
    for kind in MASKS:
        assert difference(ours, theirs, ids, masks(kind, B, T), kinds) <= 1e-5
    ours, theirs = ours.double(), theirs.double()
    for kind in MASKS:
        assert difference(ours, theirs, ids, masks(kind, B, T), None if kind == "left" else kinds) <= 1e-11


def test_the_variations_are_told_apart(random_bert, tmp_path):
    """In float64 a wrong activation or epsilon moves the numbers by far more than the tolerance of 1e-11."""
    theirs = random_bert(hf.BertModel, 0, seed=1)
    theirs.save_pretrained(tmp_path)
    ids, types = inputs(theirs.config, 6, 40)

    def hidden(**changes) -> torch.Tensor:
        published = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(published | changes))
        with torch.no_grad():
            return minibert.load_bert(tmp_path).double().encode(ids, None, types)[0]

    gelu = hidden(hidden_act="gelu")
    assert distance(gelu, hidden(hidden_act="gelu_new")) > 1e-5
    assert distance(gelu, hidden(hidden_act="relu")) > 1e-2
    assert distance(gelu, hidden(hidden_act="gelu", layer_norm_eps=1e-5)) > 1e-7
    assert distance(gelu, hidden(layer_norm_eps=1e-12)) == 0.0


KINDS_OF_FILE = {"encoder": (hf.BertModel, {}), "no pooler": (hf.BertModel, {"pooler": False}),
                 "masked words": (hf.BertForMaskedLM, {}), "pre-training": (hf.BertForPreTraining, {}),
                 "next sentence": (hf.BertForNextSentencePrediction, {}),
                 "tokens": (hf.BertForTokenClassification, {"num_labels": 7})}
HEADS = {"masked words": {"masked-word head"}, "pre-training": {"masked-word head", "next-sentence head"},
         "next sentence": {"next-sentence head"}, "tokens": {"classification head"}}


@pytest.mark.parametrize("storage", ["one file", "several files", "float16", "bfloat16"])
@pytest.mark.parametrize("file", KINDS_OF_FILE)
def test_every_kind_of_file(random_bert, masks, tmp_path, file, storage):
    kind, extra = KINDS_OF_FILE[file]
    written = random_bert(kind, shape=1, seed=3, type_vocab_size=5, **extra)
    if "float" in storage:
        written = written.to(getattr(torch, storage))
    written.save_pretrained(tmp_path, max_shard_size="40KB" if storage == "several files" else "5GB")
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or storage == "several files"
    assert (tmp_path / "model.safetensors.index.json").is_file() == (storage == "several files")
    stored = {str(t.dtype) for f in tmp_path.glob("*.safetensors") for t in load_file(f).values()}
    assert stored == {"torch." + (storage if "float" in storage else "float32")}

    ours, report = weights.load(tmp_path)
    whole = kind.from_pretrained(tmp_path, dtype=torch.float32).eval()
    theirs = whole if kind is hf.BertModel else whole.bert
    if file == "no pooler":
        theirs = hf.BertModel.from_pretrained(tmp_path, dtype=torch.float32, add_pooling_layer=False).eval()
    assert (ours.pooler is None) == (theirs.pooler is None) == (file in ("no pooler", "masked words", "tokens"))
    assert {what.removeprefix("known: ") for what in report.ignored} == HEADS.get(file, set())
    assert len(report.loaded) == 5 + 16 * 3 + 2 * (ours.pooler is not None) and report.new == []
    ids, types = inputs(theirs.config, 4, 61)
    for mask in ("right", "holes"):
        assert difference(ours, theirs, ids, masks(mask, 4, 61), types) <= 1e-5


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_the_first_published_names(random_bert, tmp_path, prefix):
    """LayerNorm.gamma/beta and stored position_ids, with and without the prefix: what transformers wrote in 2019."""
    theirs = random_bert(hf.BertModel, shape=2, seed=4, type_vocab_size=2)
    theirs.config.save_pretrained(tmp_path)
    old = {prefix + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"):
           t.contiguous() for n, t in theirs.state_dict().items()}
    assert sum(".gamma" in n for n in old) == 9
    save_file(old | {prefix + "embeddings.position_ids": torch.arange(33)[None]}, tmp_path / "model.safetensors")
    ours, report = weights.load(tmp_path)
    assert list(report.ignored) == ["constant buffers"]
    ids, types = inputs(theirs.config, 5, 33)
    assert difference(ours, theirs, ids, None, types) <= 1e-5


# ------------------------------------------------------------------------------------------------------- gradients


def batch_of(ids, mask, types, labels, kind: str) -> Batch:
    """A Batch from padded tensors [B,T]; labels −100 where a piece has none."""
    layout = Layout(mask.bool(), kind)
    picked = layout.pieces(labels) != -100
    return Batch(layout.pieces(ids), layout.pieces(types), layout, picked.nonzero().squeeze(1),
                 layout.pieces(labels)[picked], [])


def published_names(model: Model) -> dict[str, torch.nn.Parameter]:
    """Every parameter by the name that transformers gives it."""
    ours = dict(model.named_parameters())
    table = {"bert." + n.published: ours.pop("bert." + n.ours)
             for n in name_table(model.bert.config, model.bert.pooler is not None)}
    return table | {n.removeprefix("head."): p for n, p in ours.items()}


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("layout", KINDS)
def test_gradient_of_the_mean_loss_by_name(random_bert, masks, tmp_path, layout, kind, activation):
    """Autograd through our network = autograd through theirs, float64, to 1e-10 of each tensor's norm.

    The bias of the keys moves all scores of a query alike, which softmax does not see: its gradient is 0, and what
    both sides show there is rounding, compared with the gradient of the queries' bias.
    """
    shape = MASKS.index(kind) % 3
    random_bert(hf.BertForTokenClassification, shape, seed=5, type_vocab_size=5, num_labels=len(LABELS),
                hidden_act=activation).save_pretrained(tmp_path)
    theirs = hf.BertForTokenClassification.from_pretrained(tmp_path, dtype=torch.float64,
                                                           attn_implementation="eager").eval()
    task = NER(NER.Options(), LABELS)
    head = task.head(weights.read_config(tmp_path, dropout=0.0))
    bert, _ = weights.load(tmp_path, head, dropout=0.0)
    ours = Model(bert, head).double()

    B, T = 6, 29
    ids, types = inputs(theirs.config, B, T)
    mask = torch.ones(B, T, dtype=torch.int64) if kind == "none" else masks(kind, B, T)
    labels = torch.randint(0, len(LABELS), (B, T), generator=torch.Generator().manual_seed(6))
    labels[(mask == 0) | (ids % 3 == 0)] = -100
    result = theirs(ids, attention_mask=mask, token_type_ids=types, labels=labels)
    result.loss.backward()
    batch = batch_of(ids, mask, types, labels, layout)
    assert batch.labels.numel() == int((labels != -100).sum()) > 30
    loss = accumulate(ours, task, [batch], 1.0, TrainConfig(precision="fp32"), step=1)
    assert loss == pytest.approx(result.loss.item(), rel=1e-12)

    gradient, wanted = published_names(ours), dict(theirs.named_parameters())
    assert gradient.keys() == wanted.keys()
    for name, p in wanted.items():
        dw = gradient[name].grad.to_dense()
        assert torch.isfinite(dw).all(), name
        if name.endswith("self.key.bias"):
            scale = wanted[name.replace("key", "query")].grad.norm()
            assert dw.norm() < 1e-12 * scale and p.grad.norm() < 1e-12 * scale, name
        else:
            assert p.grad.norm() > 1e-6 and (dw - p.grad).norm() <= 1e-10 * p.grad.norm(), name


# ----------------------------------------------------------------------------------------------------- run folders


CHARACTERS = [chr(c) for c in range(33, 127)] + list("éüß€«»…–’")


def write_tokenizer(folder, lowercase: bool, form: str) -> int:
    """Pieces of one character and a few words, as tokenizer.json or vocab.txt; -> how many pieces."""
    words = ["the", "of", "in", "##er", "##ing", "paris", "Paris", "##le"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *("##" + c for c in CHARACTERS), *words]
    if form == "tokenizer.json":
        hf.BertTokenizer(vocab={p: i for i, p in enumerate(pieces)},
                         do_lower_case=lowercase).save_pretrained(folder)
    else:
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    return len(pieces)


def fine_tune(source, output, *more: str):
    """A real, short run of train.py on data/ner."""
    quick = "--evaluate none --no-before --precision fp32".split()
    assert train.main(["--task", "ner", "--data", str(Path(train.__file__).parent / "data" / "ner"),
                       "--weights", str(source), "--output", str(output), *quick, *more]) == 0
    return output


# source's class, lower case, tokenizer's form, types of the source, more options -> types of the run
RUNS = {"uncased, with case shapes": (hf.BertModel, True, "tokenizer.json", 2, [], 8),
        "one type, with case shapes": (hf.BertForMaskedLM, True, "vocab.txt", 1, [], 4),
        "five types, with case shapes": (hf.BertForMaskedLM, True, "vocab.txt", 5, [], 20),
        "uncased, without": (hf.BertForPreTraining, True, "vocab.txt", 2, ["--case-shapes", "off"], 2),
        "cased": (hf.BertForMaskedLM, False, "tokenizer.json", 2, ["--layout", "ragged"], 2)}


@pytest.fixture(scope="module", params=[*RUNS, "minilm-l6"])
def run(request, random_bert, minilm, tmp_path_factory):
    """(run folder, number of types it must have), freshly trained."""
    folder = tmp_path_factory.mktemp("run")
    if request.param == "minilm-l6":
        return fine_tune(minilm, folder / "run", "--limit", "20", "--max-steps", "2"), 8
    kind, lowercase, form, types, more, after = RUNS[request.param]
    source = folder / "source"
    source.mkdir()
    size = write_tokenizer(source, lowercase, form)
    settings = dict(vocab_size=size + 3, hidden_size=30, num_attention_heads=5, intermediate_size=44,
                    num_hidden_layers=2, max_position_embeddings=150, type_vocab_size=types, initializer_range=0.2)
    torch.manual_seed(8)
    kind(hf.BertConfig(**settings)).save_pretrained(source)
    short = "--limit 40 --max-steps 6 --batch-size 16 --learning-rate 5e-3 --max-pieces 100 --overlap 30".split()
    return fine_tune(source, folder / "run", *short, *more), after


def logits_of(run, ids, mask, types) -> torch.Tensor:
    theirs = hf.AutoModelForTokenClassification.from_pretrained(run, dtype=torch.float32).eval()
    with torch.no_grad():
        return theirs(ids, attention_mask=mask, token_type_ids=types).logits


def test_run_folder_opens_in_transformers_without_a_missing_key(run):
    folder, types = run
    theirs, info = hf.AutoModelForTokenClassification.from_pretrained(folder, output_loading_info=True)
    assert type(theirs) is hf.BertForTokenClassification
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["error_msgs"]
    assert set(info["unexpected_keys"]) <= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    ours = minibert.load(folder)
    assert theirs.config.type_vocab_size == types == ours.bert.config.type_vocab_size
    assert [theirs.config.id2label[i] for i in range(9)] == ours.task.labels and theirs.config.num_labels == 9
    assert theirs.config.label2id == {label: i for i, label in enumerate(ours.task.labels)}
    for name, p in theirs.named_parameters():      # and every number arrived
        assert torch.equal(p, published_names(Model(ours.bert, ours.head))[name]), name


def test_transformers_computes_the_logits_of_predict(run):
    folder, types = run
    model = minibert.load(folder)
    assert isinstance(model, FineTuned)
    ids, mask, kinds = model.features(TEXTS)
    assert int(kinds.max()) == (types * 3 // 4 if types > 2 else 0)          # the shape "mixed", of McCoy
    wanted = logits_of(folder, ids, mask, kinds)
    rows = model.encode_examples([model.task.example(t) for t in TEXTS])
    assert len(rows) == len(ids) >= len(TEXTS)
    for layout in KINDS:
        scores = score_features(model, model.task, rows, layout=layout)
        for b, (row, ours) in enumerate(zip(rows, scores, strict=True)):
            assert ids[b, :len(row.ids)].tolist() == row.ids.tolist() and int(mask[b].sum()) == len(row.ids)
            assert ours.shape == (len(row.picks), 9)
            if len(row.picks):
                assert distance(torch.from_numpy(ours), wanted[b, row.picks]) <= 1e-5
    assert wanted[mask.bool()].std(0).min() > 1e-3                           # no head of constants
    # each word is read once, at the piece where transformers begins it
    tokenizer, read = hf.AutoTokenizer.from_pretrained(folder), []
    for row in rows:
        words = model.task.example(TEXTS[row.example]).words
        first = [(tokenizer(w, add_special_tokens=False)["input_ids"] or [tokenizer.unk_token_id])[0] for w in words]
        assert row.ids[row.picks].tolist() == [first[w] for w in row.about.words]
        read += [(row.example, int(w)) for w in row.about.words]
    assert sorted(read) == [(e, w) for e, t in enumerate(TEXTS) for w in range(len(model.task.example(t).words))]
    if types > 2:                                                            # and the shapes have been learnt
        assert distance(wanted, logits_of(folder, ids, mask, kinds * 0)) > 1e-4


def test_case_shapes_start_as_copies_of_type_0(run, capsys):
    """Every type that the features of a run use descends from type 0 of the checkpoint, the one of a single text."""
    folder, types = run
    model, settings = minibert.load(folder), json.loads((folder / "train.json").read_text())
    source = weights.load(Path(settings["weights"]))[0]
    grown, tokenizer = build_model(Path(settings["weights"]), model.task, TrainConfig(
        **{k: settings[k] for k in ("weights", "case_shapes", "max_pieces", "overlap")}))
    assert grown.bert.config.type_vocab_size == types
    fresh = FineTuned(grown.bert, grown.head, model.task, tokenizer, model.settings)
    ids, mask, kinds = fresh.features(TEXTS)
    with torch.no_grad():
        assert distance(grown.bert.encode(ids, mask, kinds)[0], source.encode(ids, mask)[0]) <= 1e-6


def test_transformers_cuts_the_same_pieces_from_the_run_folder(run, ner_words):
    folder, _ = run
    theirs, ours = hf.AutoTokenizer.from_pretrained(folder), minibert.load(folder).tokenizer
    words = [*ner_words, ["Straße", "São", "東京", "[SEP]", "naïve", "A" * 101, "e\u0301"]]
    wanted = theirs(words, is_split_into_words=True)
    for pieces, ids, sentence in zip(ours.pieces(words), wanted["input_ids"], words, strict=True):
        assert [ours.start, *pieces.ids, ours.end] == ids, sentence
    assert theirs.pad_token_id == ours.pad and theirs.mask_token_id == ours.mask


def test_saving_a_random_model_with_a_head(random_bert, masks, tmp_path):
    """weights.save without a training run: LayerNorms, biases and head all random, eight types."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    random_bert(hf.BertForTokenClassification, shape=1, seed=9, type_vocab_size=8, num_labels=7,
                hidden_act="gelu_new", layer_norm_eps=1e-6).save_pretrained(tmp_path / "in")
    task = NER(NER.Options(), LABELS)
    head = task.head(weights.read_config(tmp_path / "in"))
    bert, _ = weights.load(tmp_path / "in", head)
    bert.config = dataclasses.replace(bert.config, case_shapes=("lower", "title", "upper", "mixed"))
    weights.save(tmp_path / "out", bert, head, {"architectures": [task.architecture],
                                                "id2label": {str(i): x for i, x in enumerate(LABELS)},
                                                "label2id": {x: i for i, x in enumerate(LABELS)}})
    theirs, info = hf.AutoModelForTokenClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"))
    assert (theirs.config.hidden_act, theirs.config.layer_norm_eps, theirs.config.type_vocab_size) == \
        ("gelu_new", 1e-6, 8)
    ids, types = inputs(theirs.config, 5, 37)
    mask = masks("holes", 5, 37)
    with torch.no_grad():
        wanted = theirs.eval()(ids, attention_mask=mask, token_type_ids=types).logits
        hidden, pooled = bert.encode(ids, mask, types)
        assert pooled is None and distance(head.classifier(hidden)[mask.bool()], wanted[mask.bool()]) <= 1e-5
