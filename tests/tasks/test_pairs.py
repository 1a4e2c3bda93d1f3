"""tasks/pairs.py: a task of two texts that says nothing but names, with a fixed set of labels."""
import re

import pytest

from minibert.errors import MinibertError
from minibert.tasks.labelled import Answer
from minibert.tasks.pairs import PairTask


class Truth(PairTask):
    """A claim and its evidence."""
    name, texts, fixed = "truth", ("claim", "evidence"), ("supported", "refuted", "unknown")


def truth() -> Truth:
    return Truth(Truth.Options())


def test_labels_are_those_that_are_fixed_in_their_order(tmp_path):
    (tmp_path / "train.csv").write_text("first,second,label\nit rains,the street is wet,unknown\n")
    task = truth()
    splits = task.read(tmp_path)
    task.learn_labels(splits)
    example, = splits["train"]
    assert task.labels == ["supported", "refuted", "unknown"] and task.notices == []
    assert task.numbers(example) == (2, None) and task.numbers(task.example("a ||| b")) == (-1, None)


@pytest.mark.parametrize("label", ["Supported", "maybe", ""])
def test_any_other_label_is_refused(tmp_path, label):
    (tmp_path / "dev.tsv").write_text(f"first\tsecond\tlabel\na\tb\t{label}\n")
    with pytest.raises(MinibertError, match=re.escape(f"{tmp_path}/dev.tsv:2: the label is {label!r}; expected one of "
                                                      "supported, refuted, unknown")):
        truth().read(tmp_path)


@pytest.mark.parametrize("text", ["", "a", "a ||| b ||| c"])
def test_raw_text_that_is_no_pair(text):
    with pytest.raises(MinibertError, match="expected two texts"):
        truth().example(text)


def test_a_result_has_the_names_of_the_task():
    task = truth()
    result = task.result(task.example("it rains ||| all is wet"), Answer({"supported": 0.7, "refuted": 0.3}))
    assert result == {"claim": "it rains", "evidence": "all is wet", "label": "supported",
                      "probabilities": {"supported": 0.7, "refuted": 0.3}}
    assert task.render(result, False) == "supported 0.700  refuted 0.300\n  it rains\n  all is wet"
