"""Offsets in UTF-16 units, beside what is left of the text's bytes as JavaScript has them."""
import json

import pytest

import minibert
from minibert.__main__ import main
from minibert.errors import MinibertError
from minibert.use.offsets import in_utf16

TEXT = "🌧🏙️ Ada 𝔐𝔢𝔱 نور in 𐍈slo, cafe\u0301 न 👩‍🚀!"


def in_javascript(text: str, start: int, end: int) -> str:
    """text.slice(start, end) there."""
    return text.encode("utf-16-le", "surrogatepass")[2 * start:2 * end].decode("utf-16-le", "surrogatepass")


def spans(value: object) -> list[tuple[int, int]]:
    """Of all objects inside that have a start and an end, in their order."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    own = [(value["start"], value["end"])] if isinstance(value, dict) and isinstance(value.get("start"), int) else []
    return own + [span for part in inner for span in spans(part)]


@pytest.mark.parametrize("form", [
    lambda a, b: {"text": TEXT, "entities": [{"text": TEXT[a:b], "type": "PER", "start": a, "end": b}]},
    lambda a, b: {"question": "🌧" * 5, "text": TEXT, "answer": {"text": TEXT[a:b], "start": a, "end": b}},
    lambda a, b: {"text": TEXT, "e1": {"text": TEXT[a:b], "start": a, "end": b}, "label": "end",
                  "probabilities": {"start": 0.25, "end": 0.75}},
    lambda a, b: {"text": TEXT, "masks": [{"start": a, "end": b, "pieces": [{"piece": "in", "probability": 1.0}]}]}])
def test_a_slice_of_the_other_language_is_the_same(form):
    for a in range(len(TEXT) + 1):
        for b in range(a, len(TEXT) + 1):
            result = form(a, b)
            found = in_utf16(result)
            (start, end), = spans(found)
            assert in_javascript(TEXT, start, end) == TEXT[a:b] and spans(result) == [(a, b)]
            assert found.get("probabilities") == result.get("probabilities") and list(found) == list(result)


@pytest.mark.parametrize("result", [
    {"text": "half \ud83c of", "e1": {"start": 5, "end": 8}}, {"first": "🌧", "second": "", "label": "end"},
    {"words": ["🌧"], "tags": ["O"], "entities": [{"text": "🌧", "first": 0, "stop": 1}]},
    {"text": "", "e1": None, "e2": None}, {"question": "x", "answers": []},
    {"question": "🌧", "text": "", "answer": None}])
def test_what_has_nothing_to_count_stays(result):
    """Half of a pair is one unit; words have numbers of their own."""
    assert in_utf16(result) == result


def test_a_model_and_the_command_line_give_them(tiny_folder, tiny_data, tmp_path, capsys):
    import train
    run = train.train(["--weights", str(tiny_folder), "--data", str(tiny_data), "--max-steps", "60",
                       "--batch-size", "6", "--learning-rate", "3e-3", "--max-pieces", "24", "--precision", "fp32",
                       "--no-before", "--evaluate", "none", "--output", str(tmp_path / "run")])
    model, texts = minibert.load(run), ["🌧 Ada met 🏙️ Bruno in Oslo .", "", "Clara left Lima"]
    plain, units = model.predict(texts), model.predict(texts, offsets="utf16")
    assert spans(plain[0]) and units == [in_utf16(r) for r in plain] and units[0] != plain[0] and units[2] == plain[2]
    for (a, b), (start, end) in zip(spans(plain[0]), spans(units[0]), strict=True):
        assert in_javascript(texts[0], start, end) == texts[0][a:b]
    capsys.readouterr()
    assert main(["predict", str(run), "--offsets", "utf16", "--json", *texts]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == units
    with pytest.raises(MinibertError, match="offsets is 'bytes'; expected characters or utf16"):
        model.predict(texts, offsets="bytes")
    for words, says in ((["bytes", "--json"], "'utf16'"), (["utf16"], "add --json")):
        assert main(["predict", str(run), "x", "--offsets", *words]) == 2
        error = capsys.readouterr().err
        assert says in error and len(error.splitlines()) == 1
