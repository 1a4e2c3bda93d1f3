"""Every reader takes whatever it is given: a value, or one line of MinibertError. `make torture` has the long form."""
import random
import struct
from pathlib import Path

import pytest
from bad_input import broken_safetensors, readers, resident, try_out
from conftest import write_tiny_folder

from minibert import weights
from minibert.errors import MinibertError

NAMES = ["CoNLL files", "safetensors", "config.json", "labels", "tokenizer.json", "vocab.txt", "--config in JSON",
         "--config in TOML", "--replay", "complete.json"]


@pytest.fixture(scope="module")
def all_readers(tmp_path_factory) -> dict:
    return {reader.name: reader for reader in readers(tmp_path_factory.mktemp("good"))}


def test_all_readers_have_a_row(all_readers):
    assert list(all_readers) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_bad_files_are_read_or_refused_in_one_line(all_readers, tmp_path, name):
    read, refused = try_out(all_readers[name], tmp_path / "bad", 300, seed=2)
    assert refused > 60                                    # the inputs are bad enough to mean something


def test_another_exception_is_a_fault(all_readers, tmp_path):
    reader = all_readers["config.json"]

    def careless(folder: Path) -> None:
        raise KeyError("hidden_size")

    with pytest.raises(AssertionError, match="(?s)config.json, input 0 of seed 2, .*: KeyError"):
        try_out(type(reader)(reader.name, reader.good, reader.fragments, reader.file, careless), tmp_path / "bad", 5, 2)


def test_a_header_of_a_hundred_megabytes_takes_no_memory(tmp_path):
    write_tiny_folder(tmp_path)
    with open(tmp_path / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", 100_000_001) + b'{"a":')
        f.truncate(100_000_100)
    begin = resident()
    with pytest.raises(MinibertError, match="model.safetensors: header of 100000001 bytes"):
        weights.load(tmp_path)
    assert resident() - begin < 50


def test_the_maker_of_safetensors_files_makes_good_ones_too(all_readers):
    draw, reader = random.Random(5), all_readers["safetensors"]
    sizes = {len(broken_safetensors(draw, reader)) for _ in range(50)}
    assert len(sizes) > 20
