"""Many words in little memory: every word is a number, and the letters of all distinct words lie in one array."""
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

REMEMBERED = 2 ** 19                               # words that a Numbering remembers: about 70 MB


class Words(Sequence[str]):
    """A list of strings as two arrays."""

    def __init__(self, letters: np.ndarray, ends: np.ndarray):
        """`letters`: uint8, all words in UTF-8 one after the other; `ends`: int64 [words + 1], 0 before the first."""
        self.letters, self.ends = letters, ends

    @classmethod
    def of(cls, words: Iterable[str]) -> "Words":
        """These strings as arrays."""
        numbering = Numbering()
        for word in words:
            numbering.add(word)
        return numbering.words()

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> str:  # type: ignore[override]  # one word, never a slice
        return next(self.take([range(len(self))[i]]))

    def take(self, numbers: Iterable[int]) -> Iterator[str]:
        """The words of these numbers, in their order."""
        letters, ends = self.letters.data, self.ends                  # int(): 127 + 1 does not fit into int8
        return (str(letters[ends[n]:ends[n + 1]], "utf-8", "surrogatepass") for n in map(int, numbers))


class Numbering(dict[str, int]):
    """numbering[word] is the number of a word; a word not seen before gets the next one.

    The dictionary starts again at REMEMBERED words, so that a stream of ever new words grows the letters only. A word
    that comes back after that has two numbers, each of which means it.
    """

    def __init__(self):
        super().__init__()
        self.letters, self.ends = bytearray(), array("q", [0])

    def __missing__(self, word: str) -> int:
        if len(self) >= REMEMBERED:
            self.clear()
        self[word] = number = self.add(word)
        return number

    def add(self, word: str) -> int:
        """The next number, for `word`, whether it has one or not."""
        self.letters += word.encode("utf-8", "surrogatepass")          # half a surrogate pair is kept as it is
        self.ends.append(len(self.letters))
        return len(self.ends) - 2

    def words(self) -> Words:
        """All words so far, by number."""
        return Words(np.array(self.letters, np.uint8), np.array(self.ends, np.int64))
