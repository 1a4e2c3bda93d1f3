"""Raw text -> words: punctuation alone, hyphens inside, as newspaper corpora are cut."""
import unicodedata


def split_words(text: str) -> list[tuple[int, int]]:
    """Character spans of the words of raw text, cut as newspaper corpora are: punctuation alone, hyphens inside.

    >>> text = "Dr. Jean-Luc O'Neil's U.S. trip cost 1,200.50."
    >>> [text[a:b] for a, b in split_words(text)]
    ['Dr.', 'Jean-Luc', "O'Neil", "'s", 'U.S.', 'trip', 'cost', '1,200.50', '.']
    """
    spans, start = [], None
    for i, c in enumerate(text + " "):
        if c.isspace():
            if start is not None:
                spans += split_chunk(text, start, i)
            start = None
        elif start is None:
            start = i
    return spans


TITLES = {"Dr.", "Mr.", "Mrs.", "Ms.", "St.", "Jr.", "Sr.", "Prof.", "Gen.", "Sen.", "Gov.", "Lt.", "Col.", "vs.",
          "No."}
JOINER = "\u200d"                                  # zero width: several pictures are one


def words_of(text: str) -> list[str]:
    """The words of split_words() themselves.

    >>> words_of("Ada's cat.")
    ['Ada', "'s", 'cat', '.']
    """
    return [text[a:b] for a, b in split_words(text)]


def split_chunk(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """The words of one stretch without spaces."""
    cuts = [start, *(i for i in range(start + 1, end) if boundary(text, i, start, end)), end]
    spans: list[tuple[int, int]] = []
    for a, b in zip(cuts, cuts[1:], strict=False):
        if text[a:b] == "." and spans and is_abbreviation(text[spans[-1][0]:b]):
            spans[-1] = (spans[-1][0], b)
        else:
            spans.append((a, b))
    return spans


def is_abbreviation(word: str) -> bool:
    """Whether a final full stop belongs to the word: a title, one capital (J.), letters with stops between (U.S.)."""
    parts = word[:-1].split(".")
    initials = all(len(p) == 1 and p.isalpha() for p in parts)
    return word in TITLES or (initials and word != "I." and (word[0].isupper() or len(parts) > 1))


def boundary(text: str, i: int, start: int, end: int) -> bool:
    """Whether a new word begins at character i, which is neither the first nor past the last of its chunk."""
    here, last = text[i], i - 1
    if combines(here) or JOINER in (here, text[last]):
        return False
    while last > start and combines(text[last]):
        last -= 1                                  # a sign that combines is what the character before it is
    before = text[last]
    if is_ideograph(before) or is_ideograph(here):
        return True
    if here in "'’" and is_letter(before):
        tail = next((j for j in range(i + 1, end) if not is_letter(text[j])), end)
        if text[i + 1:tail].lower() in ("s", "ll", "re", "ve", "d", "m"):
            return True                            # possessives and contractions: Merkel | 's
    if is_letter(before) and is_letter(here):
        return False

    inside = i if not is_letter(here) else last    # the punctuation mark in question
    joins = (start < inside < end - 1 and is_letter(text[inside - 1]) and is_letter(text[inside + 1])
             and (text[inside] in "-‐‑'’.&@_·/:" or (text[inside] == "," and text[inside + 1].isdecimal()
                                                    and text[inside - 1].isdecimal())))
    if text[inside] == ":" and joins:
        joins = text[inside - 1].isdecimal() and text[inside + 1].isdecimal()
    return not joins


def leading_marks(text: str) -> int:
    """How many characters at its beginning combine with the one before them: accents, vowel signs."""
    return next((i for i, c in enumerate(text) if not combines(c)), len(text))


def combines(c: str) -> bool:
    """Whether a character is a sign on the one before it."""
    return c >= "\u0300" and unicodedata.category(c)[0] == "M"                # the first of them; most text is below


def is_letter(c: str) -> bool:
    """Letters, digits and the marks that combine with them; also what cannot be seen, which is never punctuation."""
    return unicodedata.category(c)[0] in "LNMC"


def is_ideograph(c: str) -> bool:
    """Chinese characters, each of which BERT treats as a word."""
    return any(a <= ord(c) <= b for a, b in ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2CEAF), (0xF900, 0xFAFF)))
