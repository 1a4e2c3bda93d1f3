"""A checkpoint that nobody trained: a vocabulary learnt from text, and random weights of a size of one's own."""
from collections.abc import Iterator
from pathlib import Path

from tokenizers import trainers

from minibert.checkpoints.weights import random_bert, save
from minibert.core.config import BertConfig
from minibert.data.tables import read_lines
from minibert.data.tokenizer import Tokenizer
from minibert.data.wordpiece import SPECIAL, Cleaning, bert_tokenizer
from minibert.errors import MinibertError

ORDER = ("pad", "unknown", "start", "end", "mask")             # their numbers are 0 to 4


def learn_vocabulary(text: Path, size: int, cased: bool = False) -> Tokenizer:
    """WordPiece with at most `size` pieces, learnt from a text file: letters first, then what stands together most.

    A pair of pieces must stand together twice. Raises MinibertError where the letters alone are more than `size`.
    """
    backend = bert_tokenizer({}, Cleaning(lowercase=not cased))
    trainer = trainers.WordPieceTrainer(vocab_size=size, min_frequency=2, show_progress=False,
                                        special_tokens=[SPECIAL[role] for role in ORDER])
    backend.train_from_iterator(lines(text), trainer)
    if (found := backend.get_vocab_size()) > size:
        raise MinibertError(f"{text}: its letters alone make {found} pieces; give --vocabulary {found} or more")
    return Tokenizer(backend)


def lines(text: Path) -> Iterator[str]:
    """Those of a text file. Raises MinibertError for one without words."""
    empty = True
    for line in read_lines(text):
        empty = empty and not line.strip()
        yield line
    if empty:
        raise MinibertError(f"{text}: no text in it")


def new_checkpoint(folder: Path, tokenizer: Tokenizer, config: BertConfig, seed: int = 0) -> None:
    """A folder that --weights takes: the tokenizer, and random weights of this size, initialised as in the paper."""
    if folder.exists() and any(folder.iterdir()):
        raise MinibertError(f"{folder}: not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    save(folder, random_bert(config, seed))
