"""Files of a vocabulary as people have them: which piece has which number, which file counts, what is refused.

What is expected was written down by hand from the files; tests/oracle compares random folders with transformers.
"""
import json
from pathlib import Path

import pytest
import torch
from refusing import refused
from safetensors.torch import load_file, save_file

from minibert.checkpoints import weights
from minibert.core.precision import autocast
from minibert.data.tokenizer import Tokenizer
from minibert.run.start import start_model
from minibert.settings import TrainConfig
from minibert.tasks.generate import write
from minibert.tasks.mlm import MLM
from minibert.tasks.relation import MARKS, Relation
from minibert.tasks.vocabulary import without

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CYRILLIC = [*SPECIALS, "дом", "Дом", "##а", "ёж", "еж", "в"]
GREEK = [*SPECIALS, "οδος", "Οδός", "οδός", "##ς", "και"]
CHINESE = [*SPECIALS, "中", "国", "中国", "a", "##b"]


def folder_of(folder: Path, **files: object) -> Path:
    """A folder with vocab (lines), config, published (a tokenizer.json), added (added_tokens.json), special (a map)."""
    names = {"vocab": "vocab.txt", "config": "tokenizer_config.json", "published": "tokenizer.json",
             "added": "added_tokens.json", "special": "special_tokens_map.json"}
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        (folder / names[name]).write_text(text, encoding="utf-8")
    return folder


def lines(pieces: list[str]) -> str:
    return "\n".join(pieces) + "\n"


def published(pieces: list[str], **change: object) -> dict[str, object]:
    """tokenizer.json of an uncased BERT, parts exchanged by `change`."""
    return {"normalizer": {"type": "BertNormalizer", "lowercase": True}, "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {"type": "WordPiece", "vocab": {p: i for i, p in enumerate(pieces)}}} | change


def spelt(folder: Path, text: str) -> list[str]:
    tokenizer = Tokenizer.read(folder)
    return [str(tokenizer.backend.id_to_token(i)) for i in tokenizer.pieces([text.split()])[0].ids]


# ---------------------------------------------------------------------------------------- a number is not a position


@pytest.mark.parametrize("pieces, text, wanted", [
    ([*CYRILLIC, "дом"], "дом дома", [11, 11, 7]),                            # the last of two lines counts
    ([*CYRILLIC[:6], "", *CYRILLIC[6:]], "дома ёж", [5, 8, 10]),              # an empty line is counted, and is nothing
    ([*GREEK, "", ""], "και οδος", [9, 5]),                                    # empty lines at the end are nothing
    ([*CHINESE[:5], "a", "a", *CHINESE[5:]], "中国 ab", [7, 8, 10, 11])])
def test_a_piece_has_the_number_of_its_line(tmp_path, pieces, text, wanted):
    tokenizer = Tokenizer.read(folder_of(tmp_path, vocab=lines(pieces)))
    assert tokenizer.pieces([text.split()])[0].ids == wanted
    there = {i for i, p in enumerate(pieces) if p and p not in pieces[i + 1:]}
    assert tokenizer.numbers.tolist() == sorted(there) and tokenizer.size == max(there) + 1
    assert tokenizer.absent(20).tolist() == sorted(set(range(20)) - there)


def test_repeated_lines_are_told_with_their_places(tmp_path):
    folder_of(tmp_path, vocab=lines([*GREEK, "και", "οδος"]), config={"do_lower_case": True})
    assert Tokenizer.read(tmp_path).notices == [f"{tmp_path / 'vocab.txt'}: 2 lines are repeated further down, first 6 "
                                                "in 12 ('οδος'); the last counts"]


@pytest.mark.parametrize("pieces, first", [([*CYRILLIC, "дом", "в"], 13), ([*GREEK[:7], "", *GREEK[7:]], 11),
                                           ([*CHINESE, "国", ""], 11), (CHINESE, 10)])
def test_new_pieces_get_numbers_that_no_piece_has(tmp_path, pieces, first):
    tokenizer = Tokenizer.read(folder_of(tmp_path, vocab=lines(pieces)))
    before = tokenizer.backend.get_vocab()
    tokenizer.add(["[E1]", "[CLS]", "[E2]"])
    after = tokenizer.backend.get_vocab()
    assert after == before | {"[E1]": first, "[E2]": first + 1} and len(set(after.values())) == len(after)
    assert tokenizer.size == first + 2

    (tmp_path / "out").mkdir()
    tokenizer.save(tmp_path / "out")                                           # and a run folder keeps them
    again = Tokenizer.read(tmp_path / "out")
    assert again.backend.get_vocab() == after and again.numbers.tolist() == sorted(after.values())
    assert again.pieces([["a[E1]b", "中"]]) == tokenizer.pieces([["a[E1]b", "中"]])
    (tmp_path / "out" / "tokenizer.json").unlink()                             # for programs that know vocab.txt alone
    assert Tokenizer.read(tmp_path / "out").backend.get_vocab() == after


def far(rows: int, H: int) -> torch.Tensor:
    return 50 * torch.randn(rows, H, generator=torch.Generator().manual_seed(4))


def padded(folder: Path, tiny_folder: Path, rows: int) -> Path:
    """The tiny checkpoint with further rows of large numbers in its table of words, which no piece has."""
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name] = torch.cat([tensors[name], far(rows, tensors[name].shape[1])])
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["vocab_size"] += rows
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("rows, spare", [(2, 2), (4, 4), (7, 4)])
def test_spare_rows_are_drawn_anew_when_a_new_piece_takes_one(tiny_folder, tmp_path, rows, spare):
    """All that is drawn is what is drawn without the padding."""
    made = []
    for folder in (tiny_folder, padded(tmp_path / "padded", tiny_folder, rows)):
        task = Relation(Relation.Options(), ["a", "b", "c"])
        made.append(start_model(folder, task, TrainConfig(task="relation", seed=3, case_shapes="off", max_pieces=40)))
    (plain, _, _), (model, tokenizer, report) = made
    V = plain.bert.config.vocab_size - 4
    numbers = [tokenizer.number(mark) for mark in MARKS]
    assert numbers == [V, V + 1, V + 2, V + 3]
    assert torch.equal(model.bert.embeddings.word.weight[:V + 4], plain.bert.embeddings.word.weight)
    assert torch.equal(model.head.linear.weight, plain.head.linear.weight)
    assert model.bert.config.vocab_size == len(model.bert.embeddings.word.weight) == V + max(4, rows)
    assert torch.equal(model.bert.embeddings.word.weight[V + 4:], far(rows, model.bert.config.hidden_size)[4:])
    assert f"drawn anew: word vectors that no piece had, for {' '.join(MARKS[:spare])}" in str(report)
    assert ("grown: word vectors" in str(report)) == (spare < 4)


def test_spare_rows_take_part_in_no_prediction(tiny_folder, tmp_path):
    """Their vectors are the largest, so that one of them would be the first."""
    folder, settings = padded(tmp_path / "padded", tiny_folder, 7), TrainConfig(task="mlm", max_pieces=20)
    task = MLM(MLM.Options())
    model, tokenizer, _ = start_model(folder, task, settings)
    V, absent = model.bert.config.vocab_size, tokenizer.absent(model.bert.config.vocab_size)
    assert absent.tolist() == list(range(V - 7, V))

    scores = torch.arange(float(3 * V)).view(3, V)
    assert without(scores, absent).argmax(1).tolist() == [V - 8] * 3
    task.tokenizer = tokenizer
    rows = [task.encode(0, "ada [MASK] bruno [MASK] .", tokenizer, 20, 0)[0]]
    filling, = task.decode(["x"], rows, [scores[:2].numpy()])
    said = [piece for best in filling.values() for piece, _ in best]
    assert len(said) == 2 * 5 and "None" not in said
    assert [sum(p for _, p in best) < 1 for best in filling.values()] == [True, True]

    model.head.attach(model.bert)
    model.eval()
    with torch.no_grad(), autocast("fp32", torch.device("cpu")):
        found, = write(model, [rows[0]], [6], tokenizer.end, 1, absent=absent)
        wild, = write(model, [rows[0]], [6], tokenizer.end, 1)
    assert max(wild) >= V - 7 and max(found, default=0) < V - 7


def test_a_piece_without_a_vector_is_named_with_its_line(tiny_folder, tmp_path):
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    V = len((tmp_path / "vocab.txt").read_text("utf-8").splitlines())
    with open(tmp_path / "vocab.txt", "a", encoding="utf-8") as f:
        f.write("\nжук\n")
    with refused(f"{tmp_path / 'vocab.txt'}:{V + 2}", "'жук'", f"{V} vectors"):
        weights.read_tokenizer(tmp_path, weights.load_bert(tmp_path))


# ------------------------------------------------------------------------------------------------ pieces added later


ADDED = {"@кто": 11, "[url]": 12}


@pytest.mark.parametrize("files", [
    {"vocab": lines(CYRILLIC), "added": ADDED},
    {"vocab": lines(CYRILLIC), "config": {"added_tokens_decoder": {
        str(n): {"content": p, "normalized": False, "special": False} for p, n in ADDED.items()}}},
    {"published": published(CYRILLIC, added_tokens=[{"id": n, "content": p, "special": True}
                                                    for p, n in ADDED.items()])},
    {"published": published(CYRILLIC, added_tokens=[]), "added": ADDED}],
    ids=["added_tokens.json", "added_tokens_decoder", "tokenizer.json", "both"])
def test_added_pieces_are_known_as_wholes(tmp_path, files):
    tokenizer = Tokenizer.read(folder_of(tmp_path, **files))
    assert tokenizer.pieces(["@кто в [url] дома".split()])[0].ids == [11, 10, 12, 5, 7]


@pytest.mark.parametrize("files, wanted", [
    ({"special": {"extra_special_tokens": ["дом", "@ник"]}}, ["[UNK]", "дом", "[UNK]", "@ник", "ёж"]),
    ({"special": {"additional_special_tokens": ["@ник"], "bos_token": "дом"}}, ["[UNK]", "дом", "[UNK]", "@ник", "ёж"]),
    ({"config": {"additional_special_tokens": ["@ник"]}, "special": {"additional_special_tokens": ["дом"]}},
     ["[UNK]", "@ник", "ёж"]),                                                # a list there is: this one does not count
    ({"config": {"extra_special_tokens": ["@ник"]}, "special": {"extra_special_tokens": ["дом"]}},
     ["[UNK]", "дом", "[UNK]", "@ник", "ёж"]),                                  # but this one is added to it
    ({"config": {"extra_special_tokens": ["@ник"], "added_tokens_decoder": {}},
      "special": {"extra_special_tokens": ["дом"], "cls_token": "<s>"}}, ["[UNK]", "@ник", "ёж"]),   # nobody asks it
    ({"config": {"cls_token": "<s>"}, "special": {"cls_token": {"content": "[CLS]"},
      "additional_special_tokens": [{"content": "@ник", "lstrip": True}]}}, ["[UNK]", "@ник", "ёж"]),
    ({"special": {"unk_token": "[UNK]", "extra_special_tokens": []}}, ["[UNK]", "[UNK]", "[UNK]", "ёж"])])
@pytest.mark.parametrize("where", ["vocab", "published"])
def test_special_pieces_of_either_file_are_known_as_wholes(tmp_path, where, files, wanted):
    """A special piece is found inside of words, before anything is cleaned; дом has a number, @ник gets the next."""
    cyrillic = [p for p in CYRILLIC if p != "еж"]
    files = {"config": {}, **files} | {where: published(cyrillic) if where == "published" else lines(cyrillic)}
    files["config"] = {"strip_accents": False, **files["config"]}
    folder = folder_of(tmp_path, **files)
    found = spelt(folder, "адома @ник ёж")
    assert found == wanted
    assert "@ник" not in found or Tokenizer.read(folder).backend.token_to_id("@ник") == len(cyrillic)


@pytest.mark.parametrize("files, said", [
    ({"special": {"cls_token": "<s>"}}, "special_tokens_map.json: cls_token is '<s>'; minibert reads [CLS] alone"),
    ({"special": {"mask_token": {"content": "<mask>"}}, "config": {"mask_token": "[MASK]"}}, "mask_token is '<mask>'"),
    ({"special": {"extra_special_tokens": {"url": "дом"}}}, "special_tokens_map.json: extra_special_tokens is"),
    ({"special": {"additional_special_tokens": [7]}}, "special_tokens_map.json: '7' is no added piece"),
    ({"config": {"extra_special_tokens": "дом"}}, "tokenizer_config.json: extra_special_tokens is дом; expected"),
    ({"special": {"bos_token": "<нет>"}, "vocab": lines([*CYRILLIC, "дом"])}, "'<нет>' has no number")])
def test_special_pieces_that_cannot_be_honoured_are_refused_by_name(tmp_path, files, said):
    with refused(tmp_path, said):
        Tokenizer.read(folder_of(tmp_path, **{"vocab": lines(CYRILLIC)} | files))


def test_the_list_of_the_config_is_the_only_one_that_counts(tmp_path):
    folder = folder_of(tmp_path, vocab=lines(CYRILLIC), added={"[url]": 11}, config={"added_tokens_decoder": {
        "11": {"content": "@кто"}}})
    assert spelt(folder, "@кто дом") == ["@кто", "дом"]
    assert Tokenizer.read(folder).backend.token_to_id("[url]") is None


@pytest.mark.parametrize("files, said", [
    ({"added": {"@x": 7}}, "'@x' has the number 7, but the next one is 11"),
    ({"added": {"@x": 11, "@y": 13}}, "'@y' has the number 13, but the next one is 12"),
    ({"added": {"дом": 9}}, "'дом' has the number 9, in the vocabulary it has 5"),
    ({"added": {"@x": "eleven"}}, "'eleven' is no number"),
    ({"added": {"": 11}}, "is no added piece"),
    ({"config": {"added_tokens_decoder": ["@x"]}}, "added_tokens_decoder is ['@x']"),
    ({"config": {"added_tokens_decoder": {"11": "@x"}}}, "is no added piece"),
    ({"config": {"added_tokens_decoder": {"11": {"content": "@x", "special": "no"}}}}, "is no added piece"),
    ({"config": {"cls_token": "<s>"}}, "cls_token is '<s>'; minibert reads [CLS] alone"),
    ({"config": {"tokenizer_class": "BertJapaneseTokenizer"}}, "tokenizer_class is 'BertJapaneseTokenizer'")])
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, files, said):
    with refused(tmp_path / ("added_tokens.json" if "added" in files else "tokenizer_config.json"), said):
        Tokenizer.read(folder_of(tmp_path, vocab=lines(CYRILLIC), **files))


@pytest.mark.parametrize("change, said", [
    ({"normalizer": {"type": "NFKC"}}, "normalizer is 'NFKC'"),
    ({"normalizer": {"type": "Sequence", "normalizers": []}}, "normalizer is 'Sequence'"),
    ({"normalizer": None}, "no normalizer"),
    ({"normalizer": {"type": "BertNormalizer", "clean_text": False}}, "clean_text is false"),
    ({"normalizer": {"type": "BertNormalizer", "lowercase": "no"}}, "lowercase is 'no'"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}}}, "pre_tokenizer is 'Split'"),
    ({"post_processor": {"type": "RobertaProcessing"}}, "post_processor is 'RobertaProcessing'"),
    ({"decoder": {"type": "ByteLevel"}}, "decoder is 'ByteLevel'"),
    ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "model is 'Unigram'"),
    ({"model": {"type": "WordPiece", "vocab": [["a", 0]]}}, "no vocabulary"),
    ({"model": {"type": "WordPiece", "vocab": {"a": -1}}}, "no vocabulary"),
    ({"model": {"type": "WordPiece", "vocab": {"a": 2 ** 40}}}, "no vocabulary"),
    ({"model": {"type": "WordPiece", "vocab": {"в": 5, "ёж": 5}}}, "'в' and 'ёж' have one number, 5"),
    ({"model": {"type": "WordPiece", "continuing_subword_prefix": "@@", "vocab": {}}}, "prefix is '@@'"),
    ({"added_tokens": [7]}, "is no added piece"), ({"added_tokens": 7}, "is no added piece")])
def test_a_tokenizer_json_that_is_not_berts_own_is_refused_by_name(tmp_path, change, said):
    with refused(tmp_path / "tokenizer.json", said):
        Tokenizer.read(folder_of(tmp_path, published=published(CYRILLIC, **change)))


# --------------------------------------------------------------------------------------------- files that disagree


@pytest.mark.parametrize("pieces, config, text, wanted", [
    (CYRILLIC, {"do_lower_case": False}, "Дом Ёж", ["Дом", "[UNK]"]),
    (CYRILLIC, {"do_lower_case": True, "strip_accents": False}, "Дом Ёж", ["дом", "ёж"]),
    (CYRILLIC, {}, "Дом Ёж", ["дом", "еж"]),
    (GREEK, {"do_lower_case": False}, "Οδός", ["Οδός"]),
    (GREEK, {"strip_accents": False}, "Οδός", ["οδός"]),
    (GREEK, {"tokenizer_class": "BertTokenizerFast"}, "Οδός", ["οδος"]),
    (CHINESE, {"tokenize_chinese_chars": False}, "中国", ["中国"]),
    (CHINESE, {"tokenize_chinese_chars": True}, "中国", ["中", "国"])])
def test_tokenizer_config_stands_above_the_normaliser_of_tokenizer_json(tmp_path, pieces, config, text, wanted):
    """Whatever tokenizer.json says of letter case, accents and Chinese characters; unless the class leaves it to it."""
    for number, own in enumerate(({"lowercase": True}, {"lowercase": False, "handle_chinese_chars": False},
                                  {"lowercase": True, "strip_accents": False})):
        file = published(pieces, normalizer={"type": "BertNormalizer", **own})
        folder = folder_of(tmp_path / str(number), published=file, config=config)
        assert spelt(folder, text) == wanted
    vocab = folder_of(tmp_path / "vocab", vocab=lines(pieces), config=config)
    assert spelt(vocab, text) == wanted and not any("asks for" in n for n in Tokenizer.read(vocab).notices)


def test_a_class_that_leaves_it_to_tokenizer_json(tmp_path):
    file = published(GREEK, normalizer={"type": "BertNormalizer", "lowercase": False})
    folder = folder_of(tmp_path, published=file, config={"tokenizer_class": "PreTrainedTokenizerFast"})
    assert spelt(folder, "Οδός") == ["Οδός"] and Tokenizer.read(folder).notices == []


def test_a_disagreement_is_told_and_agreement_is_not(tmp_path):
    settings = {"do_lower_case": False}
    folder = folder_of(tmp_path, published=published(GREEK), config=settings)
    assert Tokenizer.read(folder).notices == [
        f"{folder / 'tokenizer.json'} asks for no capitals, no accents, Chinese characters apart; what counts, as for "
        "transformers, is tokenizer_config.json: with capitals, with accents, Chinese characters apart"]
    same = published(GREEK, normalizer={"type": "BertNormalizer", "lowercase": False, "strip_accents": None})
    assert Tokenizer.read(folder_of(tmp_path, published=same, config=settings)).notices == []


@pytest.mark.parametrize("pieces, never", [(CYRILLIC, "1 of 11"), (GREEK, "1 of 10"), (["Žižek", *CHINESE], "1 of 11"),
                                           (CHINESE, None)])
def test_a_cased_vocabulary_alone_is_recognised(tmp_path, pieces, never):
    notices = Tokenizer.read(folder_of(tmp_path, vocab=lines(pieces))).notices
    assert [n.split(": ")[1].split(" pieces")[0] for n in notices] == ([never] if never else [])
    assert Tokenizer.read(folder_of(tmp_path, config={"do_lower_case": True})).notices == []
