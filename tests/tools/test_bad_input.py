"""Every reader takes whatever it is given: a value, or one line of MinibertError. `make torture` has the long form."""
import dataclasses
import struct
from pathlib import Path

import pytest
from bad_input import Bad, readers, resident, try_out
from hypothesis import strategies as st
from tiny import write_tiny_folder

from minibert.checkpoints import weights
from minibert.errors import MinibertError

NAMES = ["CoNLL files", "safetensors", "model.safetensors.index.json", "config.json", "labels", "tokenizer.json",
         "vocab.txt", "tokenizer_config.json", "classify from .csv", "classify from .tsv", "classify from .jsonl",
         "classify from .txt", "match from .csv", "match from .tsv", "match from .jsonl", "match from .txt",
         "ner from .jsonl", "ner from .json", "qa from .json", "relation from .txt", "reply from .jsonl",
         "translate from .jsonl", "mlm from .txt", "answers of reply", "--replay", "complete.json", "state.json",
         "optimizer.safetensors", "train.json", "config.json of ner", "train.json of classify",
         "config.json of classify", "texts", "command line", "--config in JSON", "--config in TOML",
         "answer of the hub", "wheel", "fetched.json", "cache"]


@pytest.fixture(scope="module")
def all_readers(tmp_path_factory) -> dict:
    return {reader.name: reader for reader in readers(tmp_path_factory.mktemp("good"))}


def test_all_readers_have_a_row(all_readers):
    assert list(all_readers) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_bad_files_are_read_or_refused_in_one_line(all_readers, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)                            # a word of a command line may be taken for a file
    read, refused = try_out(all_readers[name], tmp_path / "bad", 300, seed=2)
    assert read + refused >= 300
    plain = ("texts", "vocab.txt", "mlm from .txt", "answers of reply")        # of plain text little is wrong
    assert refused > 200 if name not in plain else read > 60                   # bad enough to mean something


@pytest.mark.parametrize("name", NAMES)
def test_the_good_file_is_read(all_readers, tmp_path, name):
    """So what is refused is refused for its faults."""
    reader = all_readers[name]
    one = dataclasses.replace(reader, inputs=st.just)
    assert try_out(one, tmp_path / "good", 1, seed=2) == (1, 0)


def test_another_exception_is_a_fault_and_shown(all_readers, tmp_path):
    def careless(folder: Path) -> None:
        if b"5" in (folder / "config.json").read_bytes():
            raise KeyError("hidden_size")

    reader = dataclasses.replace(all_readers["config.json"], inputs=lambda good: st.text("05").map(str.encode).map(Bad),
                                 read=careless)
    with pytest.raises(KeyError, match="hidden_size") as caught:
        try_out(reader, tmp_path / "bad", 50, 2)
    assert "Bad(b'5')" in "".join(caught.value.__notes__)                  # the smallest such file


@pytest.mark.parametrize("said, fault", [("", "assert"), ("two\nlines", None), ("x" * 1400, None)])
def test_what_a_refusal_may_say(all_readers, tmp_path, said, fault):
    """The error class itself makes one line of at most 1,000 characters of anything; only silence is a fault."""
    def refuse(folder: Path) -> None:
        raise MinibertError(said)

    reader = dataclasses.replace(all_readers["config.json"], inputs=st.just, read=refuse)
    if fault:
        with pytest.raises(AssertionError):
            try_out(reader, tmp_path / "bad", 1, 2)
    else:
        assert try_out(reader, tmp_path / "bad", 1, 2) == (0, 1)


def test_a_reader_that_grows_is_a_fault(all_readers, tmp_path):
    kept = []
    reader = dataclasses.replace(all_readers["config.json"], inputs=st.just,
                                 read=lambda folder: kept.append(b"x" * 300_000_000))
    with pytest.raises(AssertionError, match="memory"):
        try_out(reader, tmp_path / "bad", 1, 2)


def test_a_header_of_a_hundred_megabytes_takes_no_memory(tmp_path):
    write_tiny_folder(tmp_path)
    with open(tmp_path / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", 100_000_001) + b'{"a":')
        f.truncate(100_000_100)
    begin = resident()
    with pytest.raises(MinibertError, match="model.safetensors: header of 100000001 bytes"):
        weights.load(tmp_path)
    assert resident() - begin < 50


def test_what_cannot_be_used_is_a_fault_though_it_was_read(all_readers, tmp_path):
    class PanicException(BaseException):
        """As the tokenizers library raises it, which no `except Exception` sees."""

    def read_and_use(folder: Path) -> None:
        raise PanicException("index out of bounds")

    reader = dataclasses.replace(all_readers["vocab.txt"], inputs=st.just, read=read_and_use)
    with pytest.raises(AssertionError, match="PanicException: index out of bounds"):
        try_out(reader, tmp_path / "bad", 1, 2)
