"""Fixtures for every test: the checkpoint, the vocabulary and the sentences of support/tiny.py."""
from pathlib import Path

import pytest
from tiny import make_config, make_vocabulary, write_tiny_data, write_tiny_folder

from minibert.core.config import BertConfig


@pytest.fixture(scope="session")
def tiny_vocabulary() -> list[str]:
    return make_vocabulary()


@pytest.fixture(scope="session")
def tiny_config(tiny_vocabulary) -> BertConfig:
    return make_config(len(tiny_vocabulary))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A checkpoint: config.json, model.safetensors, vocab.txt, tokenizer_config.json. Do not write into it."""
    return write_tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """train, dev and test .conll with 60, 20 and 20 short sentences, PER, LOC and ORG. Do not write into it."""
    return write_tiny_data(tmp_path_factory.mktemp("tiny_data"))
