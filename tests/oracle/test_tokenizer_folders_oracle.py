"""Random folders of tokenizer files as people have them: read as transformers reads them, or refused by name."""
import json
import random
from pathlib import Path

import pytest
import transformers as hf

from minibert.data.tokenizer import Tokenizer
from minibert.data.wordpiece import NAMES, SPECIAL, Cleaning, bert_tokenizer
from minibert.errors import MinibertError

FOLDERS = 300
PLAIN = ["anna", "Anna", "éva", "eva", "Éva", "Eva", "in", "##s", "中", "国", "中国", "!", ",", "a", "##n", "[unused1]"]
NEW = ["[url]", "@user", "htag", "Anna's", "<x>"]
WORDS = "anna Anna Éva éva Évas in 中国 Anna's ! htag #htags @user in [url] [MASK] <x> Eva , ins [unused1]".split()


def drawn(draw: random.Random, folder: Path) -> dict[str, object]:
    """A folder with some of the files, which may contradict each other; -> what was chosen."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    lines = [*SPECIAL.values(), *draw.sample(PLAIN, len(PLAIN))]
    if draw.random() < 0.2:
        lines[draw.randrange(5, len(lines))] = lines[draw.randrange(5, len(lines))]             # a repeated line
    there = draw.choice([("tokenizer.json",), ("vocab.txt",), ("tokenizer.json", "vocab.txt")])
    switches = {"do_lower_case": (True, False), "strip_accents": (True, False, None), "tokenize_chinese_chars":
                (True, False), "tokenizer_class": ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast")}
    settings = {name: draw.choice(values) for name, values in switches.items() if draw.random() < 0.6}
    if "tokenizer.json" not in there and settings.get("tokenizer_class") == "PreTrainedTokenizerFast":
        del settings["tokenizer_class"]            # transformers reads no vocab.txt for this class
    more = {piece: len(set(lines)) + i for i, piece in enumerate(draw.sample(NEW, draw.randrange(4)))}
    places = draw.sample(["added_tokens_decoder", "added_tokens.json", "tokenizer.json"], draw.randrange(1, 3))

    if "added_tokens_decoder" in places:
        settings["added_tokens_decoder"] = {str(number): {"content": piece, "special": draw.random() < 0.5,
                                            "normalized": draw.random() < 0.5} for piece, number in more.items()}
    if "added_tokens.json" in places:
        (folder / "added_tokens.json").write_text(json.dumps(more, ensure_ascii=False), encoding="utf-8")
    if "vocab.txt" in there:
        (folder / "vocab.txt").write_text("\n".join(lines) + "\n" * draw.choice([1, 1, 1, 2]), encoding="utf-8")
    if "tokenizer.json" in there:
        asked = Cleaning(strip_accents=draw.choice([True, False, None]), lowercase=draw.random() < 0.5,
                         handle_chinese_chars=draw.random() < 0.7)
        backend = bert_tokenizer({piece: number for number, piece in enumerate(lines)}, asked)
        if "tokenizer.json" in places:
            backend.add_tokens(list(more))
        backend.save(str(folder / "tokenizer.json"))
    named = draw_special(draw, settings, folder, lines, list(more)) if draw.random() < 0.6 else {}
    if settings or draw.random() < 0.5:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    return {"there": there, "places": places, "lines": lines, "settings": settings, "more": more, "map": named}


def draw_special(draw: random.Random, settings: dict[str, object], folder: Path, lines: list[str], more: list[str]):
    """Names of special pieces, in either file, mostly those that BERT has; -> those in special_tokens_map.json."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    named: dict[str, object] = {}
    for place in (settings, named):
        for role, name in NAMES.items():
            if draw.random() < 0.3:
                piece = SPECIAL[role] if draw.random() < 0.97 else draw.choice(["<s>", "anna"])
                kind = {"__type": "AddedToken"} if place is settings else {}
                place[name] = draw.choice([piece, {"content": piece, **flags, **kind}])
        for name in ("bos_token", "eos_token", "url_token"):
            if draw.random() < 0.1:
                place[name] = draw.choice(["[CLS]", "[unused1]", "[url]", "<x>", "@user"])
        for name in ("extra_special_tokens", "additional_special_tokens"):
            if draw.random() < 0.3:
                place[name] = draw.sample(sorted({*lines[5:], *more, *NEW}), draw.randrange(3))
    if named:
        (folder / "special_tokens_map.json").write_text(json.dumps(named, ensure_ascii=False), encoding="utf-8")
    return named


def test_random_folders_are_read_as_transformers_does_or_refused_by_name(tmp_path):
    draw, read, refused = random.Random(11), 0, {}
    for i in range(FOLDERS):
        chosen = drawn(draw, folder := tmp_path / str(i))
        try:
            ours = Tokenizer.read(folder)
        except MinibertError as e:
            assert str(folder) in str(e)
            refused.setdefault(str(e).split(": ", 1)[1][-40:], i)
            continue
        theirs = hf.AutoTokenizer.from_pretrained(folder)
        read += 1
        wanted = theirs(WORDS, is_split_into_words=True, add_special_tokens=False)["input_ids"]
        assert ours.pieces([WORDS])[0].ids == wanted, (i, chosen, theirs.convert_ids_to_tokens(wanted))
    print(read, refused)
    assert read > 200


if __name__ == "__main__":
    pytest.main([__file__])
