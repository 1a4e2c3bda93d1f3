"""Text -> the words that BLEU and ROUGE compare, by the rule that the right texts ask for.

Published scores come from two rules for languages whose letters are a to z and whose words have blanks between: NIST's
13a for BLEU, runs of a to z and digits for ROUGE. The first makes one word of a Chinese or Thai sentence, the second
throws every letter of a Hindi one away.
"""
import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

FEW = 0.1                                          # up to this share of its letters a script decides nothing
HAN = ("CJK", "IDEOGRAPHIC")                       # words that names of characters begin with, as Unicode has them
UNDIVIDED = (*HAN, "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR")  # no blanks there
# what sacrebleu takes for Chinese, which by a slip begins at U+2001 and ends with U+FFEF
CHINESE = re.compile("([\u2001-\u2a6d\u2e80-\u2fdf\u2ff0-\u303f\u3100-\u312f\u31a0-\u31ef\u3200-\u4db5\u4e00-\u9fbb"
                     "\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef])")


@functools.cache
def script(character: str) -> str:
    """LATIN, DEVANAGARI, THAI, CJK …: how the Unicode name of a letter begins; "" for what is no letter."""
    return unicodedata.name(character, "").partition(" ")[0] if unicodedata.category(character)[0] == "L" else ""


def word_rules(gold: Sequence[str]) -> dict[str, str]:
    """{"bleu": a name of BLEU_WORDS, "rouge": one of ROUGE_WORDS}: the rules for a set of right texts, by its letters.

    ROUGE: unicode where more than a tenth of the letters is not Latin, with or without accents. BLEU: where more than a
    tenth is of scripts that are written without blanks, zh if no more than a tenth of those is other than Han, else
    char; sacrebleu would have a dictionary for Japanese (ja-mecab), this is its rule without one. In all other cases
    latin and 13a, so that the numbers of a language in Latin letters are the published ones.

    >>> word_rules(["Où est l'église ?"]), word_rules(["教堂在哪里？"])["bleu"]
    ({'bleu': '13a', 'rouge': 'latin'}, 'zh')
    >>> word_rules(["चर्च कहाँ है?"]), word_rules(["教会はどこですか。"])["bleu"]
    ({'bleu': '13a', 'rouge': 'unicode'}, 'char')
    """
    characters, scripts = Counter[str](), Counter[str]()
    for text in gold:
        characters.update(unicodedata.normalize("NFKC", text))
    for character, count in characters.items():
        scripts[script(character)] += count
    del scripts[""]

    undivided, han = (sum(scripts[name] for name in names) for names in (UNDIVIDED, HAN))
    without_blanks = "zh" if undivided - han <= FEW * undivided else "char"
    return {"bleu": without_blanks if undivided > FEW * scripts.total() else "13a",
            "rouge": "unicode" if scripts.total() - scripts["LATIN"] > FEW * scripts.total() else "latin"}


# ---- BLEU


def words_13a(text: str) -> list[str]:
    """The rules of NIST's mteval-v13a, which every published score of a language with blanks assumes.

    >>> words_13a("It's 3,000.50 (net) - not 4-5%.")
    ["It's", '3,000.50', '(', 'net', ')', '-', 'not', '4', '-', '5', '%', '.']
    """
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    return signs_apart(f" {text} ")


def signs_apart(text: str) -> list[str]:
    """Words by blanks, punctuation by itself."""
    text = re.sub(r"([{-~\[-` -&(-+:-@/])", r" \1 ", text)         # ASCII signs but ' , - . stand alone
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)              # . and , unless digits stand on both sides
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def words_zh(text: str) -> list[str]:
    """Each Chinese character by itself, with sacrebleu's table of them, and what is between as 13a has it.

    >>> words_zh("我有2.5元, USB线。")
    ['我', '有', '2.5', '元', ',', 'USB', '线', '。']
    """
    return signs_apart(CHINESE.sub(r" \1 ", text.strip()))


def words_char(text: str) -> list[str]:
    """Every character by itself, blanks left out, as sacrebleu's char."""
    return [character for character in text if not character.isspace()]


# ---- ROUGE


def words_latin(text: str) -> list[str]:
    """Lower-case runs of a to z and digits, as rouge-score has them; all else divides, an é too.

    >>> words_latin("Où est l'église 12b?")
    ['o', 'est', 'l', 'glise', '12b']
    """
    return re.findall("[a-z0-9]+", text.lower())


def words_unicode(text: str) -> list[str]:
    """Lower-case runs of letters, marks and digits of any script; all else divides.

    A letter of a script that is written without blanks is a word by itself, with the marks on it: nothing divides words
    there, and a sentence as one word would be right as a whole or not at all. Characters are compared in their usual
    form (NFKC), and those that only control how others are joined or directed are passed over.

    >>> words_unicode("नमस्ते, दुनिया!"), words_unicode("B級グルメ 25種"), words_unicode("กินข้าว")
    (['नमस्ते', 'दुनिया'], ['b', '級', 'グ', 'ル', 'メ', '25', '種'], ['กิ', 'น', 'ข้', 'า', 'ว'])
    """
    words: list[str] = []
    before = ""                                    # of the word in hand: "run", "alone", or there is none
    for character in unicodedata.normalize("NFKC", text.lower()):
        kind = kind_of(character)
        if kind == "mark" and before or kind == before == "run":
            words[-1] += character
        elif kind in ("run", "alone"):
            words.append(character)
        if kind not in ("mark", "none"):
            before = kind
    return words


@functools.cache
def kind_of(character: str) -> str:
    """What a character is in a word: "run", "alone", "mark", "none" for one that is passed over, "" for an end."""
    category = unicodedata.category(character)
    if category[0] in "LN":
        return "alone" if script(character) in UNDIVIDED else "run"
    return "mark" if category[0] == "M" else "none" if category == "Cf" else ""


BLEU_WORDS: dict[str, Callable[[str], list[str]]] = {"13a": words_13a, "zh": words_zh, "char": words_char}
ROUGE_WORDS: dict[str, Callable[[str], list[str]]] = {"latin": words_latin, "unicode": words_unicode}
