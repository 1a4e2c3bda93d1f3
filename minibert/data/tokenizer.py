"""Text -> words -> pieces: each piece knows its word and its character span, each word its case shape.

WordPiece itself is the tokenizers library's; this file decides what a word is, that no word is ever lost, and that
nothing is cut or padded behind our back.
"""
import functools
import json
import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from minibert.data.text import is_ideograph, split_words
from minibert.data.wordpiece import SPECIAL, add_tokens, read_wordpiece
from minibert.errors import MinibertError
from minibert.files import write_json, written

ROLES = set(SPECIAL.values())
CASE_SHAPES = ("lower", "title", "upper", "mixed")
TEXT, BLOCK = 128, 2 ** 16                         # words that spell() gives the library as one text, and in one call


def case_shape(word: str) -> int:
    """Index into CASE_SHAPES: how the letters of a word are written.

    >>> [CASE_SHAPES[case_shape(w)] for w in ("apple", "Apple", "USA", "McCoy", "1996")]
    ['lower', 'title', 'upper', 'mixed', 'lower']
    """
    word = unicodedata.normalize("NFC", word)        # a combining mark would end a word for istitle
    letters = [c for c in word if c.isalpha()]
    if not any(c.istitle() for c in letters):          # capital or titlecase (ǅ)
        return 0
    if all(c.isupper() for c in letters):
        return 2
    return 1 if word.istitle() else 3


@dataclass(frozen=True)
class Pieces:
    """The pieces of one text, without special pieces. Lists of equal length, one entry a piece."""
    ids: list[int]
    words: list[int]                               # which word each piece belongs to
    spans: list[tuple[int, int]]                   # characters of that word, [start, end); no character is left out
    shapes: list[int]                              # case shape of that word; all 0 where case is not given back


@dataclass(frozen=True)
class Spelling:
    """The pieces of many words, each tokenised by itself."""
    ids: np.ndarray                                # int64, of all words one after the other
    ends: np.ndarray                               # int64 [words + 1]: word w has ids[ends[w]:ends[w + 1]], never none
    shapes: np.ndarray                             # int64 [words]: case shapes; all 0 where case is not given back


class Tokenizer:
    """WordPiece with the vocabulary of a checkpoint."""

    def __init__(self, backend: Backend, case_shapes: bool = False, types: int = 2, notices: Sequence[str] = ()):
        self.case_shapes = case_shapes             # whether pieces carry the case shape of their word
        self.types = types                         # token types a case shape has: shape s begins at types · s
        self.notices = list(notices)               # what its files have that is worth telling
        backend.no_truncation()                    # some published files cut at 128 pieces and pad everything to 128
        backend.no_padding()
        self.backend = backend
        self.numbers = np.array(sorted(backend.get_vocab().values()), np.int64)        # those that a piece has
        ids: dict[str, Any] = {role: backend.token_to_id(piece) for role, piece in SPECIAL.items()}
        if missing := [SPECIAL[role] for role, i in ids.items() if i is None and role != "mask"]:
            raise MinibertError(f"vocabulary without {', '.join(missing)}; is this the tokenizer of a BERT checkpoint?")
        self.unknown, self.start, self.end, self.pad, self.mask = ids.values()

    @classmethod
    def read(cls, folder: Path) -> "Tokenizer":
        """From tokenizer.json, or vocab.txt, and what stands beside them. Raises MinibertError, see wordpiece.py."""
        folder = Path(folder)
        backend, notices = read_wordpiece(folder)
        try:
            return cls(backend, notices=notices)
        except MinibertError as e:
            file = folder / "tokenizer.json"
            raise MinibertError(f"{file if file.is_file() else folder / 'vocab.txt'}: {e}") from None

    def save(self, folder: Path) -> None:
        """tokenizer.json, without truncation or padding, and for other programs tokenizer_config.json and vocab.txt.

        In vocab.txt the number of a piece is that of its line; the line of a number that no piece has is empty. Each
        file is whole or as it was before. Raises MinibertError where one cannot be written.
        """
        with written(folder / "tokenizer.json") as temporary:
            temporary.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        normalizer = json.loads(self.backend.to_str())["normalizer"] or {}
        settings = {"strip_accents": normalizer.get("strip_accents"),
                    "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
                    "tokenizer_class": "BertTokenizer", "do_lower_case": self.uncased, "unk_token": "[UNK]",
                    "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
        write_json(folder / "tokenizer_config.json", settings)
        pieces = {number: piece for piece, number in self.backend.get_vocab().items() if "\n" not in piece}
        with written(folder / "vocab.txt") as temporary:
            temporary.write_text("".join(f"{pieces.get(i, '')}\n" for i in range(self.size)), encoding="utf-8")

    @property
    def uncased(self) -> bool:
        """Whether capital letters are thrown away."""
        normalizer = self.backend.normalizer
        return normalizer is not None and normalizer.normalize_str("A") == "a"

    def add(self, pieces: Sequence[str]) -> None:
        """New pieces at the end of the vocabulary; what has them already keeps its number."""
        for piece in pieces:
            there = self.backend.token_to_id(piece)
            number = self.size if there is None else there
            add_tokens(self.backend, [(number, AddedToken(piece, normalized=False, special=True), "new pieces")])
            self.numbers = np.union1d(self.numbers, [number])

    def absent(self, V: int) -> np.ndarray:
        """int64: the numbers below V that no piece has, as of vectors that fill a table up; ascending."""
        full = V == len(self.numbers) == self.size                            # as with most checkpoints
        return np.zeros(0, np.int64) if full else np.setdiff1d(np.arange(V), self.numbers)

    def number(self, piece: str) -> int:
        """The number of a piece. Raises MinibertError where the vocabulary has none such."""
        found = self.backend.token_to_id(piece)
        if found is None:
            raise MinibertError(f"vocabulary without {piece}; is this the run folder of this task?")
        return found

    def spell_out(self, ids: Sequence[int]) -> str:
        """The text of pieces: ##s joined to what they continue, punctuation where it belongs; special pieces left out.

        An uncased vocabulary gives no capitals. Blanks are set by rule: what stood there is not known.
        """
        pieces = [self.backend.id_to_token(i) or SPECIAL["unknown"] for i in ids
                  if i not in (self.start, self.end, self.pad, self.mask)]
        return with_punctuation(" ".join(pieces).replace(" ##", ""))

    @property
    def second_type(self) -> int:
        """What a second text in a row adds to its token types: nothing where a checkpoint has one type."""
        return 1 if self.types > 1 else 0

    @functools.cached_property
    def continuing(self) -> np.ndarray:
        """bool [V]: which pieces continue a word (##s)."""
        found = np.zeros(self.size, bool)
        found[[number for piece, number in self.backend.get_vocab().items() if piece.startswith("##")]] = True
        return found

    @property
    def size(self) -> int:
        """[V] numbers of pieces: the highest and one more."""
        return int(self.numbers.max(initial=-1)) + 1

    @functools.cached_property
    def chinese_apart(self) -> bool:
        """Whether each Chinese character is a word to BERT."""
        return bool((json.loads(self.backend.to_str())["normalizer"] or {}).get("handle_chinese_chars", True))

    @functools.cached_property
    def wholes(self) -> re.Pattern[str] | None:
        """What finds the added pieces in text, the longest first; None without such.

        [CLS] and its like are not among them: in a text they are letters like any other. Nor are those that stand as
        words of their own alone: as such the library finds them.
        """
        tokens = [token for token in self.backend.get_added_tokens_decoder().values()
                  if token.content not in ROLES and not token.single_word]
        forms = [f"(?i:{re.escape(token.content)})" if token.normalized and self.uncased else re.escape(token.content)
                 for token in sorted(tokens, key=lambda token: -len(token.content))]
        return re.compile("|".join(forms)) if forms else None

    def cut(self, text: str, wholes: bool = True) -> list[tuple[int, int]]:
        """Character spans of the words of raw text, so that its pieces are BERT's own: those of split_words(), joined
        where BERT knows no cut, as in 20°C, without those that BERT drops, and with `wholes` each added piece as one.
        """
        pattern = self.wholes if wholes else None
        ends = [found.span() for found in pattern.finditer(text)] if pattern else []
        spans: list[tuple[int, int]] = []
        for begin, (a, b) in zip([0, *(b for _, b in ends)], [*ends, (len(text), len(text))], strict=True):
            first = len(spans)
            for c, d in split_words(text[begin:a]):
                c, d = c + begin, d + begin
                touches = len(spans) > first and spans[-1][1] == c
                joined = touches and not (self.parts(text[c - 1]) or self.parts(text[c]))
                spans[-1:] = [(spans[-1][0], d)] if joined else [*spans[-1:], (c, d)]
            spans += [(a, b)] if b > a else []
        return [(a, b) for a, b in spans if not all(map(unseen, text[a:b]))]

    def parts(self, c: str) -> bool:
        """Whether BERT makes a word of a character: punctuation, every ASCII sign, and mostly Chinese."""
        if c < "\x80":
            return c in string.punctuation
        return unicodedata.category(c)[0] == "P" or (self.chinese_apart and is_ideograph(c))

    def words(self, text: str, wholes: bool = True) -> list[str]:
        """The words of cut() themselves."""
        return [text[a:b] for a, b in self.cut(text, wholes)]

    def pieces(self, texts: Sequence[Sequence[str]]) -> list[Pieces]:
        """Each text, given as its words, as pieces; spans count characters inside the word, see whole().

        A word that gives no piece (a lone zero-width space, a control character) becomes one unknown piece, so that
        every word has a first piece, a label and a prediction.
        """
        encoded = self.backend.encode_batch([clean(t) for t in texts], is_pretokenized=True, add_special_tokens=False)
        return [self._complete(words, e) for words, e in zip(texts, encoded, strict=True)]

    def _complete(self, words: Sequence[str], encoded) -> Pieces:
        rows = list(zip(encoded.ids, encoded.word_ids, encoded.offsets, strict=True))
        if empty := set(range(len(words))) - set(encoded.word_ids):
            rows += [(self.unknown, w, (0, len(words[w]))) for w in empty]
            rows.sort(key=lambda r: r[1])          # stable: the pieces of one word keep their order
        ids, owners, spans = map(list, zip(*rows, strict=True)) if rows else ([], [], [])
        shape = [case_shape(w) if self.case_shapes else 0 for w in words]
        return Pieces(ids, owners, whole(spans, owners, words), [shape[w] for w in owners])

    def spell(self, words: Sequence[str]) -> Spelling:
        """What pieces() gives for each word as a text of its own; it depends on no neighbour, so it holds in any text.

        Words go to the library many to a text, which is faster than one by one.
        """
        ids, owners = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for i in range(0, len(words), BLOCK):
            texts = [clean(words[j:j + TEXT]) for j in range(i, min(i + BLOCK, len(words)), TEXT)]
            for number, e in enumerate(self.backend.encode_batch(texts, is_pretokenized=True,
                                                                 add_special_tokens=False)):
                ids.append(np.array(e.ids, np.int64))
                owners.append(np.array(e.word_ids, np.int64) + i + TEXT * number)

        flat, owner = np.concatenate(ids), np.concatenate(owners)
        counts = np.bincount(owner, minlength=len(words))
        empty = np.flatnonzero(counts == 0)                                   # words that give no piece
        flat = np.insert(flat, np.searchsorted(owner, empty), self.unknown)
        ends = np.concatenate([[0], np.cumsum(np.maximum(counts, 1))])
        shapes = [case_shape(w) for w in words] if self.case_shapes else [0] * len(words)
        return Spelling(flat, ends, np.array(shapes, np.int64))


def unseen(c: str) -> bool:
    """Whether BERT takes a character out of every text: what cannot be seen, and the sign for a lost letter."""
    return c == "\ufffd" or unicodedata.category(c)[0] == "C"


def whole(spans: Sequence[tuple[int, int]], owners: Sequence[int], words: Sequence[str]) -> list[tuple[int, int]]:
    """The spans of pieces with what the vocabulary drops, such as accents and signs that cannot be seen.

    It belongs to the piece before it, at the beginning of a word to the first: so a word's first and last piece have
    the word's own edges, in every script. `owners`: the word of each piece, ascending.
    """
    result = []
    for i, ((start, end), w) in enumerate(zip(spans, owners, strict=True)):
        last = i + 1 == len(spans) or owners[i + 1] != w
        following = len(words[w]) if last else spans[i + 1][0]
        result.append((start if i and owners[i - 1] == w else 0, max(end, following)))
    return result


def clean(words: Sequence[str]) -> list[str]:
    """Words that the library takes: half a surrogate pair becomes "?"."""
    return [w.encode("utf-8", "replace").decode() for w in words]


def with_punctuation(text: str) -> str:
    """Words and signs with blanks between all of them -> blanks as they are usual.

    >>> with_punctuation("it ' s a t - shirt ( red ) for $ 1 , 200 . 50 , isn ' t it ?")
    "it's a t-shirt (red) for $1,200.50, isn't it?"
    >>> with_punctuation("the skaters ' coach left at two o ' clock")
    "the skaters' coach left at two o'clock"
    """
    for pattern, result in ((r" ([.,!?;:%)\]}])", r"\1"), (r"([(\[{$€£#]) ", r"\1"), (r"(\w) ([/-]) (?=\w)", r"\1\2"),
                            (r"(\ws) (['’]) (?!(?:s|t|d|m|ll|re|ve)\b)", r"\1\2 "), (r"(\w) (['’]) (?=\w)", r"\1\2"),
                            (r"(\d), (?=\d{3}\b)", r"\1,"), (r"(\d)\. (?=\d)", r"\1.")):
        text = re.sub(pattern, result, text)
    return text
