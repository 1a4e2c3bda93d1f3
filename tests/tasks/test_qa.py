"""tasks/qa.py: SQuAD's layout, edges of words, windows, the loss of rows of different length, spans, scores."""
import itertools
import json
import math

import numpy as np
import pytest
import torch
from refusing import refused
from updates import settings_of

from minibert.__main__ import one_by_one
from minibert.checkpoints import weights
from minibert.core.batch import Feature, collate
from minibert.data.text import split_words
from minibert.data.tokenizer import Tokenizer
from minibert.data.wordpiece import SPECIAL, Cleaning, bert_tokenizer
from minibert.errors import MinibertError
from minibert.run.start import start_model
from minibert.scores import texts as textscores
from minibert.tasks.qa import ENDS, NOWHERE, QA, STARTS, Edges, Span, best_span, by_row, edges, first_answer
from minibert.tasks.squad import Example

TEXT = "Ada met Bruno Keller in Oslo; the rainer visited Lima."


def task(**options) -> QA:
    return QA(QA.Options(**options))


def squad(*questions: dict, context: str = TEXT) -> str:
    paragraphs = [{"context": context, "qas": list(questions)}]
    return json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}, indent=1)


def asked(number: str, text: str | None, start: int = 0, **more) -> dict:
    answers = [] if text is None else [{"text": text, "answer_start": start}]
    return {"id": number, "question": "who met ada ?", "answers": answers, **more}


# ----------------------------------------------------------------------------------------------------- reading


def test_both_versions_of_the_layout_are_read_with_their_lines(tmp_path):
    text = squad(asked("q1", "Bruno Keller", 8), asked("q2", None, is_impossible=True), asked("q1", " Oslo", 23))
    (tmp_path / "train.json").write_text(text)
    found = task().read(tmp_path)["train"]
    assert [e.answers for e in found] == [(("Bruno Keller", 8),), (), (("Oslo", 24),)]
    assert all(e.context == TEXT and e.question == "who met ada ?" for e in found)
    lines = [i for i, line in enumerate(text.split("\n"), 1) if '"id"' in line]
    assert [e.where for e in found] == [f"{tmp_path}/train.json:{i}" for i in lines]


def test_impossible_questions_keep_no_plausible_answer(tmp_path):
    (tmp_path / "dev.json").write_text(squad(asked("a", "Ada", 0, is_impossible=True)))
    found, = task().read(tmp_path)["dev"]
    assert found.answers == ()


@pytest.mark.parametrize("text, line, said", [
    ("", 1, "not JSON"), ("[" * 100_000, 1, "not JSON"), ("{\n]", 2, "not JSON"),
    ('{"data": ' + "[" * 100_000, 1, "nested too deeply"), ("[]", 1, "no questions"),
    ('{"data": 1}', 1, "data is not a"),
    ('{"data": [5]}', 1, "paragraphs is not a list"), ('{"data": []}', 1, "no questions"),
    ('{"data": [{"paragraphs": [{"context": null, "qas": []}]}]}', 1, "context is not a text"),
    ('{"data": [{"paragraphs": [{"context": "a", "qas": [7]}]}]}', 1, "question is not a text"),
    (squad(asked("a", "Bruno", 9)), 10, "is not at character 9, where the text has 'runo '"),
    (squad(asked("a", "Bruno", -46)), 10, "is not at character -46"),
    (squad(asked("a", "Bruno", True)), 10, "answer_start is not a whole number"),
    (squad(asked("a", " ", 3)), 10, "an answer of blanks"),
    (squad(asked("a", "सर्दी", 1), context=" कल सर्दी है"), 10, "question a: the answer 'सर्दी' is not at character 1, "
                                                     "where the text has 'कल सर'; it stands at 4; answer_start"),
    (squad(asked("a", "o", 2)), 10, "'a'; answer_start"),
    (squad(asked("a", None, is_impossible="no")), 10, "is_impossible"),
    (squad(asked("a", None, is_impossible=False)), 10, "no answer"),
    (squad(asked("a", "Ada", 0, question=" ")), 10, "the question is empty"),
    (squad(asked("a", "x", 0), context=" "), 10, "the context is empty"),
    (squad(asked("\ud800", "Ada", 0)), 0, "half of a pair")])
def test_files_that_are_none(tmp_path, text, line, said):
    (tmp_path / "dev.json").write_text(text)
    with refused(f"{tmp_path}/dev.json:{line or ''}", said):                  # 10: the line of the id
        task().read(tmp_path)


@pytest.mark.parametrize("more", [{}, {"answers": [{"text": "", "answer_start": -1}]},
                                  {"answers": [{"text": "", "answer_start": 0}], "is_impossible": False},
                                  {"answers": {"text": [], "answer_start": []}}])
def test_no_answer_without_a_word_about_it(tmp_path, more):
    """Annotation tools leave is_impossible out."""
    (tmp_path / "train.json").write_text(squad(asked("x1", "Ada", 0), asked("x2", None) | more, asked("x3", None)))
    found = task()
    assert [e.answers for e in found.read(tmp_path)["train"]] == [(("Ada", 0),), (), ()]
    said, = found.notices
    assert said.startswith("2 questions without an answer do not say that they are impossible")
    assert "the first" in said and "train.json:" in said


@pytest.mark.parametrize("name, array", [("test.jsonl", False), ("test.json", True), ("test.json", False)])
def test_a_question_an_object_with_answers_in_columns(tmp_path, name, array):
    rows = [{"id": 7, "context": TEXT, "question": "who ?",
             "answers": {"text": ["Ada", "Oslo"], "answer_start": [0, 24]}},
            {"id": "b", "context": "오슬로에 비", "question": "어디 ?",
             "answers": {"text": ["비"], "answer_start": [5]}}]
    text = ",\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(f"[{text}]" if array else text.replace(",\n", "\n"))
    found = task().read(tmp_path)["test"]
    assert [(e.answers, e.where) for e in found] == [((("Ada", 0), ("Oslo", 24)), f"{tmp_path / name}:1"),
                                                     ((("비", 5),), f"{tmp_path / name}:2")]
    (tmp_path / name).write_text(json.dumps(rows[0] | {"answers": {"text": ["Ada"], "answer_start": []}}) + "\n")
    with refused(f"{name}:1: question 7: 1 texts of answers, but 0 of answer_start"):
        task().read(tmp_path)


@pytest.mark.parametrize("text", ["", "rain", "who?|||", "||| it rained", " ||| "])
def test_raw_text_needs_both(text):
    with refused("expected a question and a text"):
        task().example(text)
    assert task().example(" who? ||| Ada ||| Bruno ") == Example("who?", "Ada ||| Bruno", None, "text")


def test_answers_must_suit_the_questions():
    some, every = Example("a", "b", (), "f:1"), Example("a", "b", (("b", 0),), "f:2")
    plain, strict = task(), task(answers="all")
    plain.learn_labels({"train": [every, every]})
    strict.learn_labels({"train": [every, some]})
    assert "--answers all would answer" in plain.notices[0] and plain.labels == ["start", "end"]
    assert strict.notices == ["train has 1 questions without an answer, which --answers all must miss"]
    quiet = task()
    quiet.learn_labels({"train": [every, some]})
    assert quiet.notices == []
    with refused("--longest"):
        task(longest=0)


# ---------------------------------------------------------------------------------------------------- encoding


def encoded(tokenizer, example, max_pieces=40, overlap=6):
    return task().encode(5, example, tokenizer, max_pieces, overlap)


def slices(row: Feature, text: str) -> list[str]:
    """The text from where each pick may start an answer to the next place where one may end."""
    starts, ends = row.about.starts, row.about.ends
    return [text[a:next(e for e in ends[i:] if e != NOWHERE)] for i, a in enumerate(starts) if a != NOWHERE]


def test_a_question_and_a_text_are_one_row(tokenizer):
    row, = encoded(tokenizer, Example("who met ada ?", TEXT, (("Bruno Keller", 8),), ""))
    pieces = [tokenizer.backend.id_to_token(i) for i in row.ids]
    assert pieces[:6] == ["[CLS]", "w", "##h", "##o", "met", "ada"] and row.example == 5
    first = pieces.index("[SEP]") + 1
    assert row.picks.tolist() == [0, *range(first, len(pieces) - 1)]
    assert row.types.tolist() == [0] * first + [1] * (len(pieces) - first)
    marked = {pieces[p]: y for p, y in zip(row.picks, row.labels, strict=True) if y}
    assert marked == {"bruno": STARTS, "keller": ENDS}
    assert slices(row, TEXT) == ["Ada", "met", "Bruno", "Keller", "in", "Oslo", ";", "the", "rainer", "visited", "Lima",
                                 "."]


def test_characters_are_counted_and_not_bytes(tokenizer):
    text = "“Öl” – ada … met 𝔸 lima"
    row, = encoded(tokenizer, Example("who ?", text, (("lima", text.index("lima")),), ""))
    assert slices(row, text)[-1] == "lima" and row.labels.tolist()[-1] == STARTS + ENDS


@pytest.mark.parametrize("answer, wanted", [
    ("Bruno", "Bruno"), ("runo Kell", "Bruno Keller"), ("rain", "rainer"), ("er", "Keller"), ("; the", "; the"),
    ("Lima.", "Lima."), (TEXT, TEXT), ("A", "Ada")])
def test_an_answer_is_widened_to_whole_words(tokenizer, answer, wanted):
    pieces, = tokenizer.pieces([[TEXT[a:b] for a, b in split_words(TEXT)]])
    starts, ends = edges(TEXT, pieces, tokenizer)
    first, last = first_answer(Example("", TEXT, ((answer, TEXT.index(answer)),), ""), starts, ends)
    assert TEXT[starts[first]:ends[last]] == wanted


@pytest.mark.parametrize("text, answer", [
    ("वह कल दिल्ली में थी", "दिल्ली"), ("वह कल दिल्ली में थी", "थी"), ("ทีม แม่น้ำ สีฟ้า", "แม่น้ำ"),
    ("قرأ الكِتابُ كلُّهُ أمس", "الكِتابُ كلُّهُ"),
    ("مدير \u200fشركة\u200f كبيرة", "\u200fشركة\u200f"), ("o tha\u0306ra\u0306 vine", "tha\u0306ra\u0306"),
    ("ho\u0323 ca\u0301o mo\u0302\u0323t", "ca\u0301o"), ("a \u00adnew\u00ad co\u00adop", "\u00adnew\u00ad"),
    ("le cafe\u0301, Rene\u0301.", "Rene\u0301"), ("go ❤\ufe0f Oslo", "❤\ufe0f"),
    ("비가 오슬로에 온다", "오슬로에")], ids=ascii)
def test_an_answer_of_whole_words_is_learnt_and_said_with_all_its_signs(tokenizer, text, answer):
    """Right is what split_words() says the words are, not what an uncased vocabulary makes of them."""
    at = text.index(answer)
    words = [(a, b) for a, b in split_words(text) if a < at + len(answer) and b > at]
    assert text[words[0][0]:words[-1][1]] == answer
    row, = task().encode(0, Example("a ?", text, ((answer, at),), ""), tokenizer, 90, 0)
    z = np.zeros((len(row.picks), 2))
    z[row.labels == STARTS, 0] = z[row.labels == ENDS, 1] = 9.0
    z[row.labels == STARTS + ENDS] = 9.0
    said, = task().decode([None], [row], [z])
    assert text[said.start:said.end] == answer


@pytest.mark.parametrize("answer", ["7", "€", "5", "°", "°c", "€7", "c"])
def test_an_answer_may_begin_inside_a_word_of_bert_where_a_word_for_people_does(answer):
    """BERT has € ##7 and 5 ##° ##c; ##7 continues a word, and yet 7 is an answer."""
    text = "a €7 or 5°c"
    pieces = [*SPECIAL.values(), "a", "or", "€", "##7", "5", "##°", "##c"]
    tokenizer = Tokenizer(bert_tokenizer({piece: i for i, piece in enumerate(pieces)}, Cleaning()))
    found, = tokenizer.pieces([tokenizer.words(text)])
    assert found.ids == [5, 7, 8, 6, 9, 10, 11]
    starts, ends = edges(text, found, tokenizer)
    first, last = first_answer(Example("", text, ((answer, text.rindex(answer)),), ""), starts, ends)
    assert text[starts[first]:ends[last]] == answer


def test_no_answer_and_one_that_is_not_known(tokenizer):
    none, = encoded(tokenizer, Example("who ?", TEXT, (), ""))
    assert none.labels.tolist() == [STARTS + ENDS] + [0] * (len(none.picks) - 1)
    unknown, = encoded(tokenizer, Example("who ?", TEXT, None, ""))
    assert set(unknown.labels.tolist()) == {-1}


@pytest.mark.parametrize("overlap", [0, 5, 9])
def test_windows_skip_nothing_and_learn_only_what_they_hold(tokenizer, overlap):
    text = " ".join(f"{w} {x}" for w in ("ada", "bruno", "oslo", "lima", "rain") for x in "abcdefgh")
    at = text.index("lima c")
    rows = encoded(tokenizer, Example("who met ?", text, (("lima c", at),), ""), 26, overlap)
    assert len(rows) > 3 and all(len(r.ids) <= 26 for r in rows)
    seen, held = set(), 0
    for row in rows:
        starts, ends = row.about.starts, row.about.ends
        seen |= set(starts[1:].tolist())
        there = at in starts and at + 6 in ends
        held += there
        wanted = (starts.tolist().index(at), ends.tolist().index(at + 6)) if there else (0, 0)
        assert [int((row.labels & bit).argmax()) for bit in (STARTS, ENDS)] == list(wanted)
        assert (row.labels & STARTS).sum() == STARTS and (row.labels & ENDS).sum() == ENDS
    begins = {i for i, c in enumerate(text) if c != " " and (i == 0 or text[i - 1] == " ")}
    assert seen >= begins and held >= 1


def test_a_question_longer_than_half_a_row_meets_the_whole_text(tokenizer):
    rows = encoded(tokenizer, Example("ada " * 30, "oslo lima " * 20, (("oslo", 10),), ""), 24, 4)
    assert all(len(r.ids) <= 24 for r in rows)
    assert sum((r.labels[1:] != 0).any() for r in rows) >= 3    # each window of the question with the answer's


# ------------------------------------------------------------------------------------------- the loss and its gradient


def batch_of(*labels: list[int]):
    """Rows with so many picks and these labels."""
    return collate([Feature(i, np.arange(9), np.zeros(9, np.int64), np.arange(len(y)), np.array(y))
                    for i, y in enumerate(labels)])


LABELS = [[0, STARTS, 0, ENDS, 0], [STARTS + ENDS, 0], [0, 0, 0, 0, 0, 0, STARTS + ENDS], [-1, -1, -1]]


def test_the_loss_by_hand_SPAN_1_SPAN_2():
    """Row by row with math.log; the fourth row is not known."""
    batch, z = batch_of(*LABELS), torch.randn(17, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted, at = 0.0, 0
    for labels, (start, end) in zip(LABELS, [(1, 3), (0, 0), (6, 6), (None, None)], strict=True):
        part = z[at:at + len(labels)].tolist()
        at += len(labels)
        for column, y in ((0, start), (1, end)):
            if y is not None:
                wanted += math.log(sum(math.exp(row[column]) for row in part)) - part[y][column]
    assert float(task().loss(z, batch)["rows"]) == pytest.approx(wanted / 2, rel=1e-12)
    assert task().counts(batch) == {"rows": 3.0}
    table, y, cells = by_row(z, batch)
    assert table.shape == (8, 7) and y.tolist() == [1, 0, 6, -1, 3, 0, 6, -1]
    assert torch.isinf(table).sum() == 2 * (4 * 7 - 17) and torch.equal(table.reshape(2, 28)[:, cells].T, z)


def test_a_uniform_guess_costs_the_log_of_the_picks_SPAN_2():
    assert float(task().loss(torch.zeros(7, 2), batch_of(LABELS[2]))["rows"]) == pytest.approx(math.log(7), rel=1e-6)


def test_the_gradient_is_autograds_SPAN_1_SPAN_3():
    batch = batch_of(*LABELS)
    z = torch.randn(17, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    task().loss(z, batch)["rows"].backward()
    assert torch.allclose(task().loss_backward(z.detach(), batch)["rows"], z.grad, rtol=0, atol=1e-14)
    assert float(z.grad[:14].abs().max()) > 0.1 and float(z.grad[14:].abs().max()) == 0


def test_the_gradient_is_half_of_probabilities_minus_label_SPAN_3():
    """Two picks with scores 0 and log 3: probabilities 1/4 and 3/4. Start at the second, end at the first."""
    batch = batch_of([ENDS, STARTS])
    z = torch.tensor([[0.0, 0.0], [math.log(3), math.log(3)]])
    wanted = torch.tensor([[0.25, 0.25 - 1], [0.75 - 1, 0.75]]) / 2
    assert torch.allclose(task().loss_backward(z, batch)["rows"], wanted, rtol=0, atol=1e-7)


# ------------------------------------------------------------------------------------------------ scores -> answer


def feature(starts: list[int], ends: list[int]) -> Feature:
    n = len(starts)
    return Feature(0, np.arange(n), np.zeros(n, np.int64), np.arange(n), np.full(n, -1),
                   Edges(np.array(starts), np.array(ends)))


def slow_best(f: Feature, z: np.ndarray, longest: int) -> tuple[float, int, int]:
    """Every pair of picks, one by one."""
    starts, ends = f.about.starts, f.about.ends
    legal = [(z[i, 0] + z[j, 1] - z[0, 0] - z[0, 1], int(starts[i]), int(ends[j]))
             for i, j in itertools.product(range(len(starts)), repeat=2)
             if i <= j < i + longest and starts[i] != NOWHERE and ends[j] != NOWHERE]
    return max(legal, key=lambda row: row[0])


@pytest.mark.parametrize("seed", range(30))
def test_the_best_span_is_the_best_of_all_SPAN_4(seed):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(2, 24))
    inside = np.append(draw.random(n - 1) < 0.3, False)
    inside[0] = False                              # a text begins with a word
    starts, ends = np.where(inside, NOWHERE, 5 * np.arange(n)), np.where(np.append(inside[1:], False), NOWHERE,
                                                                         5 * np.arange(n) + 4)
    f, z = feature([NOWHERE, *starts], [NOWHERE, *ends]), draw.normal(size=(n + 1, 2))
    for longest in (1, 3, 50):
        lead, start, end = slow_best(f, z, longest)
        found, said = best_span(f, z, longest, always=True)
        assert (said.start, said.end) == (start, end) and found == pytest.approx(lead, abs=1e-12)
        ratio = np.prod([np.exp(z[i, e]) / np.exp(z[:, e]).sum() for e, i in ((0, [*starts].index(start) + 1),
                                                                              (1, [*ends].index(end) + 1))])
        assert said.probability == pytest.approx(ratio, rel=1e-12)
        none = np.prod([np.exp(z[0, e]) / np.exp(z[:, e]).sum() for e in (0, 1)])
        assert math.log(ratio / none) == pytest.approx(found, abs=1e-9)        # what the lead means
        _, plain = best_span(f, z, longest, always=False)
        assert (plain.start is None) == (lead < 0)
        if lead < 0:
            assert plain.probability == pytest.approx(none, rel=1e-12)


def test_a_window_without_a_word_says_nothing():
    lead, said = best_span(feature([NOWHERE], [NOWHERE]), np.zeros((1, 2)), 30, always=True)
    assert lead == -np.inf and said.start is None


def test_of_several_windows_the_largest_lead_wins():
    """The first has the higher scores, but is even surer of having no answer: 3 against 5 ahead."""
    one, two = feature([-1, 0, 4], [-1, 3, 7]), feature([-1, 8, 12], [-1, 11, 15])
    scores = [np.array([[9.0, 9], [12, 0], [0, 9]]), np.array([[0.0, 0], [4, 1], [0, 1]])]
    examples = [Example("q", "aaa bbb ccc ddd", (), "")]
    found, = task().decode(examples, [one, two], scores)
    assert (found.start, found.end) == (8, 11)
    assert task().result(examples[0], found)["answer"] == {"text": "ccc", "start": 8, "end": 11}


def test_a_text_of_one_word_longer_than_a_row_has_no_answer():
    row = feature([NOWHERE, 0, NOWHERE], [NOWHERE, NOWHERE, NOWHERE])
    found, = task(answers="all").decode([Example("q", "aaa", (), "")], [row], [np.zeros((3, 2))])
    assert found.start is None


def test_good_lines_come_before_a_bad_one():
    def predict(texts: list[str]) -> list[str]:
        for number, text in enumerate(texts, 1):
            if "|||" not in text:
                raise MinibertError(f"text {number}: {text!r}: expected |||")
        return [text[0] for text in texts]

    found = one_by_one(predict, ["a? ||| b", "c? ||| d", "no bar", "e? ||| f"], "standard input:", 64)
    assert [next(found), next(found)] == ["a", "c"]
    with pytest.raises(MinibertError, match="^standard input:67: 'no bar': expected"):
        next(found)
    assert list(one_by_one(predict, ["a? ||| b"], "text ")) == ["a"]


def test_what_is_said_of_no_answer():
    e = Example("who?", "Ada", (("Ada", 0),), "")
    nothing = Span(None, None, 0.75)
    assert task().result(e, nothing) == {"question": "who?", "text": "Ada", "answer": None, "probability": 0.75}
    assert task().render(task().result(e, nothing), False) == "no answer  0.750\n  who?"
    ada = Span(0, 3, 0.5)
    assert task().render(task().result(e, ada), False) == "Ada  0.500  characters 0 to 3\n  who?"
    assert task().collapsed([nothing, nothing], [e, e]) == "no answer"
    assert task().collapsed([nothing, ada], [e, e]) is None
    assert task().collapsed([nothing], [Example("", "", (), "")]) is None


# ------------------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("gold, guess, exact, f1", [
    (["Anna Lindqvist"], "anna  lindqvist.", 1, 1), (["in the year 1911", "1911"], "1911", 1, 1),
    (["the red house"], "a red red house", 0, 4 / 5), ([], "", 1, 1), ([], "x", 0, 0), (["x"], "", 0, 0),
    (["The"], "", 1, 1), (["the", "x"], "x", 1, 1), (["§ 5"], "§5", 0, 0), (["U.S."], "US", 1, 1)])
def test_scores_by_hand(gold, guess, exact, f1):
    scores = textscores.answer_scores([gold], [guess])
    assert scores["exact"] == exact and scores["f1"] == pytest.approx(f1)
    assert textscores.answer_scores([gold, ["zz"]], [guess, "yy"])["f1"] == pytest.approx(f1 / 2)


def test_the_task_scores_slices_of_the_text():
    examples = [Example("q", TEXT, (("Bruno Keller", 8), ("Keller", 14)), ""), Example("q", TEXT, (), "")]
    said = [Span(14, 20, 1.0), Span(0, 3, 1.0)]
    scores = task().score(said, examples)
    assert (scores["exact"], scores["answered"]["exact"], scores["unanswerable"]["exact"]) == (0.5, 1.0, 0.0)
    assert "answered        1.000    1.000          1" in task().report(scores)


def test_a_published_head_is_taken_whatever_its_labels_are_called(tiny_folder, tiny_config, tmp_path):
    """BertForQuestionAnswering has no names for its two scores, or LABEL_0 and LABEL_1."""
    head = QA(QA.Options()).head(tiny_config)
    torch.nn.init.normal_(head.qa_outputs.weight, generator=torch.Generator().manual_seed(3))
    for number, labels in enumerate((None, {"0": "LABEL_0", "1": "LABEL_1"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        weights.save(folder, weights.random_bert(tiny_config, seed=3), head,
                     {"architectures": ["BertForQuestionAnswering"], **({"id2label": labels} if labels else {})})
        for name in ("vocab.txt", "tokenizer_config.json"):
            (folder / name).write_bytes((tiny_folder / name).read_bytes())
        settings, _, _ = settings_of(["--task", "qa", "--max-pieces", "40", "--overlap", "9"])
        model, _, report = start_model(folder, QA(QA.Options()), settings)
        assert torch.equal(model.head.qa_outputs.weight, head.qa_outputs.weight) and report.new == []
