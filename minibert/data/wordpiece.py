"""The files of a published tokenizer, as people have them -> one WordPiece, or one line that says why not.

Pieces and their numbers stand in tokenizer.json or vocab.txt, pieces that were added later in tokenizer_config.json,
added_tokens.json or tokenizer.json, special ones in tokenizer_config.json or special_tokens_map.json, and how text is
cleaned in tokenizer_config.json. Where two files disagree, what counts is what counts for transformers, and a notice
says so where it is the cleaning.
"""
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from minibert.errors import MinibertError
from minibert.files import Json, read_json, read_text, refuse_stand_in

SPECIAL = {"unknown": "[UNK]", "start": "[CLS]", "end": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
NAMES = {"unknown": "unk_token", "start": "cls_token", "end": "sep_token", "pad": "pad_token", "mask": "mask_token"}
OWN = ("PreTrainedTokenizerFast", "TokenizersBackend")         # classes for which tokenizer.json has the last word
CLASSES = (None, *(name + fast for name in ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
                   for fast in ("", "Fast")), *OWN)
PARTS = {"normalizer": ("BertNormalizer",), "pre_tokenizer": ("BertPreTokenizer",), "model": ("WordPiece",),
         "post_processor": ("TemplateProcessing", "BertProcessing"), "decoder": ("WordPiece",)}
MAP, LISTS = "special_tokens_map.json", ("extra_special_tokens", "additional_special_tokens")
MOST = 2 ** 27                                     # numbers of pieces, more than any vocabulary has
LARGEST = 2 ** 24                                  # bytes of vocab.txt, a million pieces: in memory fifteen times that
LONGEST = 100                                      # letters of a word that is cut into pieces; longer ones are unknown


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """What happens to text before it is cut: the four switches of BERT's normaliser."""
    clean_text: bool = True
    handle_chinese_chars: bool = True              # a blank on each side of every one
    strip_accents: bool | None = None              # None: as `lowercase`
    lowercase: bool = True

    def __str__(self) -> str:
        return (f"{'no' if self.lowercase else 'with'} capitals, {'no' if self.strips else 'with'} accents, Chinese "
                f"characters {'apart' if self.handle_chinese_chars else 'together'}")

    @property
    def strips(self) -> bool:
        """Whether accents are cut off."""
        return self.lowercase if self.strip_accents is None else self.strip_accents


def read_wordpiece(folder: Path) -> tuple[Backend, list[str]]:
    """The tokenizer of a folder, and what is worth telling of it. Raises MinibertError naming file and place."""
    config, file, lines = (folder / name for name in ("tokenizer_config.json", "tokenizer.json", "vocab.txt"))
    settings = read_json(config) if config.exists() else {}
    named = special_names(folder, settings)
    refuse_others(settings, config, named)
    extra = extra_tokens(settings, named, config)
    if file.exists():
        published = read_json(file)
        pieces, notices = published_pieces(published, file), []
        count = len(pieces)
        cleaning = published_cleaning(published, file)
        if settings.get("tokenizer_class") not in OWN:
            own, cleaning = cleaning, cleaning_of(settings, config)
            if str(own) != str(cleaning):
                notices.append(f"{file} asks for {own}; what counts, as for transformers, is {config.name}: {cleaning}")
    elif lines.exists():
        published, cleaning = {}, cleaning_of(settings, config)
        pieces, count, notices = read_vocabulary(lines)
    else:
        raise MinibertError(f"{folder}: neither tokenizer.json nor vocab.txt")

    backend = bert_tokenizer(pieces, cleaning)
    add_tokens(backend, numbered_tokens(backend, count, added_tokens(folder, settings, published,
                                                                     {token.content for token, _ in extra}), extra))
    if cleaning.lowercase and "do_lower_case" not in settings:
        notices += capitals(pieces, folder)
    return backend, notices


def bert_tokenizer(pieces: dict[str, int], cleaning: Cleaning) -> Backend:
    """WordPiece with these pieces and numbers, on text that is cleaned and split as BERT's is."""
    backend = Backend(models.WordPiece(pieces, unk_token=SPECIAL["unknown"], max_input_chars_per_word=LONGEST))
    backend.normalizer = normalizers.BertNormalizer(**dataclasses.asdict(cleaning))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    start, end = SPECIAL["start"], SPECIAL["end"]
    if start in pieces and end in pieces:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{start}:0 $A:0 {end}:0", pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
            special_tokens=[(start, pieces[start]), (end, pieces[end])])
    backend.add_special_tokens([AddedToken(p, normalized=False, special=True) for p in SPECIAL.values() if p in pieces])
    return backend


def numbered_tokens(backend: Backend, count: int, added: Sequence[tuple[int, AddedToken, str]],
                    extra: Sequence[tuple[AddedToken, str]]) -> list[tuple[int, AddedToken, str]]:
    """(number, token, where it stands) of pieces that have a number, and then of special ones that may have none yet.

    `count`: lines of the vocabulary. Raises MinibertError for a number that transformers would not give them.
    """
    known, numbered = backend.get_vocab(), list(added)
    whole = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
    following = max([count, *(number + 1 for number in whole.values())])
    for number, token, where in added:
        if token.content not in known and number != following:
            raise MinibertError(f"{where}: {token.content!r} has the number {number}, but the next one is {following}; "
                                "transformers would take that; mend the file")
        whole[token.content], following = number, max(following, number + 1)

    for token, where in extra:
        if token.content in whole:
            continue
        if token.content not in known and count <= max(known.values(), default=-1):
            raise MinibertError(f"{where}: {token.content!r} has no number, and the next one, {count}, is taken, as "
                                "lines of the vocabulary repeat; mend the vocabulary")
        number = whole[token.content] = known.get(token.content, following)
        following = max(following, number + 1)
        numbered.append((number, token, where))
    return numbered


def add_tokens(backend: Backend, added: Sequence[tuple[int, AddedToken, str]]) -> None:
    """Know tokens as wholes wherever they stand in text, under their numbers. Raises MinibertError if one is taken.

    The library would count the pieces to find a number, which are fewer than the numbers where lines repeat. The model
    is made anew once, not once a token: it holds a copy of all pieces.
    """
    numbers = backend.get_vocab()
    pieces, new = {number: piece for piece, number in numbers.items()}, {}
    for number, token, where in added:
        there = numbers.setdefault(token.content, number)
        if there != number:
            raise MinibertError(f"{where}: {token.content!r} has the number {number}, in the vocabulary it has "
                                f"{there}; mend the file")
        if (taken := pieces.setdefault(number, token.content)) != token.content:
            raise MinibertError(f"{where}: {token.content!r} has the number {number}, which is {taken!r} in the "
                                "vocabulary; mend the file")
        new[token.content] = number
    if any(backend.token_to_id(piece) is None for piece in new):
        backend.model = models.WordPiece(backend.get_vocab(with_added_tokens=False) | new,
                                         unk_token=SPECIAL["unknown"], max_input_chars_per_word=LONGEST)
    for special, tokens in itertools.groupby((token for _, token, _ in added), key=lambda token: token.special):
        (backend.add_special_tokens if special else backend.add_tokens)(list(tokens))


# ------------------------------------------------------------------------------------------------- pieces, numbers


def read_vocabulary(file: Path) -> tuple[dict[str, int], int, list[str]]:
    """({piece: the number of its line, from 0} of vocab.txt, different lines, a notice where lines repeat).

    Of a piece that stands there twice the last line counts, as for transformers, and an empty line names none: either
    leaves a number that no piece has.
    """
    try:
        refuse_stand_in(file)
        lines = read_text(file, largest=LARGEST).split("\n")
    except (OSError, UnicodeError) as e:
        raise MinibertError(f"{file}: cannot be read as a tokenizer ({e}); fetch the checkpoint again") from None
    if lines[0].startswith("\ufeff"):
        raise MinibertError(f"{file}:1: begins with a byte order mark, which no piece has; save it as UTF-8 without")
    pieces = {piece: number for number, piece in enumerate(lines) if piece}
    again = [number for number, piece in enumerate(lines) if piece and pieces[piece] != number]
    count = len(pieces) + ("" in lines[:-1])       # an empty line is one for transformers
    if not again:
        return pieces, count, []
    piece = lines[again[0]]
    return pieces, count, [f"{file}: {len(again)} lines are repeated further down, first {again[0] + 1} in "
                    f"{pieces[piece] + 1} ({piece!r}); the last counts"]


def published_pieces(published: Json, file: Path) -> dict[str, int]:
    """{piece: number} of tokenizer.json. Raises MinibertError by name for a part that is not BERT's own."""
    for part, kinds in PARTS.items():
        value = published.get(part)
        kind = value.get("type", kinds[0]) if isinstance(value, dict) else value
        if kind not in (*kinds, None):
            raise MinibertError(f"{file}: {part} is {str(kind)[:40]!r}; minibert reads BERT's own alone, {kinds[0]}")
    model = published.get("model") or {}
    pieces, wanted = model.get("vocab"), {"unk_token": SPECIAL["unknown"], "continuing_subword_prefix": "##"}
    for name, right in wanted.items():
        if model.get(name, right) != right:
            raise MinibertError(f"{file}: {name} is {str(model[name])[:40]!r}; minibert reads {right!r} alone")
    if not isinstance(pieces, dict) or not all(type(n) is int and 0 <= n < MOST for n in pieces.values()):
        raise MinibertError(f"{file}: no vocabulary of pieces and their numbers in it; fetch the checkpoint again")
    if len(set(pieces.values())) < len(pieces):
        seen: dict[int, str] = {}
        first, second = next((seen[n], p) for p, n in pieces.items() if seen.setdefault(n, p) != p)
        raise MinibertError(f"{file}: {first!r} and {second!r} have one number, {pieces[second]}; mend the file")
    return pieces


def added_tokens(folder: Path, settings: Json, published: Json, special: set[str],
                 ) -> list[tuple[int, AddedToken, str]]:
    """(number, token, where it stands), by number: what was added to a vocabulary after it was made.

    If tokenizer_config.json has a list, it is the only one that counts, as for transformers. Of added_tokens.json those
    that are called `special` elsewhere are looked for before text is cleaned.
    """
    config, plain, file = (folder / name for name in ("tokenizer_config.json", "added_tokens.json", "tokenizer.json"))
    found: dict[int, tuple[AddedToken, str]] = {}
    if "added_tokens_decoder" in settings:
        listed = settings["added_tokens_decoder"]
        if not isinstance(listed, dict):
            raise MinibertError(f"{config}: added_tokens_decoder is {str(listed)[:60]}; expected pieces by number")
        for number, token in listed.items():
            found[numbered(number, config)] = added_token(token, config), str(config)
    else:
        for piece, number in (read_json(plain) if plain.exists() else {}).items():
            whole = piece in special or piece in SPECIAL.values()
            token = {"content": piece, "special": whole, "normalized": not whole}
            found[numbered(number, plain)] = added_token(token, plain), str(plain)
        listed = published.get("added_tokens", [])
        for token in listed if isinstance(listed, list) else [None]:
            number = token.get("id") if isinstance(token, dict) else None
            found[numbered(number, file)] = added_token(token, file), str(file)
    return [(number, *found[number]) for number in sorted(found)]


def special_names(folder: Path, settings: Json) -> Json:
    """What special_tokens_map.json says; {} where tokenizer_config.json lists what was added: then nobody asks it."""
    file = folder / MAP
    return read_json(file) if file.exists() and "added_tokens_decoder" not in settings else {}


def extra_tokens(settings: Json, named: Json, config: Path) -> list[tuple[AddedToken, str]]:
    """(token, where it stands) of special pieces beside BERT's five: such as bos_token, then those of a list.

    They are known as a whole wherever they stand in text, and have the number of the vocabulary or, in this order, the
    next ones. Where both files have a name, special_tokens_map.json has the last word on bos_token and eos_token alone;
    it adds to the list of the other, but its `additional_special_tokens` count only where there is no list at all.
    Raises MinibertError for what is no token.
    """
    table, ends = config.with_name(MAP), ("bos_token", "eos_token")
    both = named | settings | {name: named[name] for name in ends if name in named}
    names = [name for name in both if name.endswith("_token") and name not in NAMES.values()
             and isinstance(both[name], (str, dict))]
    names.sort(key=lambda name: ends.index(name) if name in ends else len(ends))
    found = [(both[name], config if name in settings and name not in named.keys() & set(ends) else table)
             for name in names]

    own: object = next((settings[name] for name in LISTS if settings.get(name)), [])
    more = named.get(LISTS[1] if LISTS[0] not in named and not settings.keys() & set(LISTS) else LISTS[0]) or []
    for listed, where in ((own, config), (more, table)):
        if not isinstance(listed, list):
            raise MinibertError(f"{where}: {LISTS[0]} is {str(listed)[:60]}; expected a list of pieces; mend the file")
        found += [(value, where) for value in listed]
    return [(special_token(value, file), str(file)) for value, file in found]


def special_token(value: object, file: Path) -> AddedToken:
    """A special token, given as such or as its letters alone. Raises MinibertError for what is none."""
    return added_token({"content": value} if isinstance(value, str) else value, file, special=True)


def numbered(number: object, file: Path) -> int:
    """A piece's number as such. Raises MinibertError for what is none."""
    text = str(number)
    if isinstance(number, bool) or not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < MOST):
        raise MinibertError(f"{file}: {text[:40]!r} is no number of an added piece; mend the file")
    return int(text)


def added_token(value: object, file: Path, special: bool = False) -> AddedToken:
    """An added token as the library knows it, `special` or as it says. Raises MinibertError for what is none."""
    given = value if isinstance(value, dict) else {}
    content = given.get("content")
    flags = {name: given.get(name, default) for name, default in
             (("single_word", False), ("lstrip", False), ("rstrip", False), ("special", special))}
    flags["normalized"] = given.get("normalized", not flags["special"])
    if not isinstance(content, str) or not content or not all(isinstance(flag, bool) for flag in flags.values()):
        raise MinibertError(f"{file}: {str(value)[:60]!r} is no added piece; mend the file")
    return AddedToken(content, **flags)


# ------------------------------------------------------------------------------------------------------- cleaning


def refuse_others(settings: Json, config: Path, named: Json) -> None:
    """Raise MinibertError by name for a tokenizer that is not BERT's, or that calls its special pieces otherwise.

    `named`: special_tokens_map.json, which has the last word on these.
    """
    kind = settings.get("tokenizer_class")
    if kind not in CLASSES:
        raise MinibertError(f"{config}: tokenizer_class is {str(kind)[:40]!r}; minibert reads BERT's WordPiece alone")
    for role, name in NAMES.items():
        value, file = (named[name], config.with_name(MAP)) if name in named else (settings.get(name), config)
        piece = value.get("content") if isinstance(value, dict) else value
        if piece not in (SPECIAL[role], None):
            raise MinibertError(f"{file}: {name} is {str(piece)[:40]!r}; minibert reads {SPECIAL[role]} alone")


def cleaning_of(settings: Json, config: Path) -> Cleaning:
    """What tokenizer_config.json asks for, or is silent about. Raises MinibertError."""
    return checked(config, {"handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
                            "strip_accents": settings.get("strip_accents"),
                            "lowercase": settings.get("do_lower_case", True)})


def published_cleaning(published: Json, file: Path) -> Cleaning:
    """What the normaliser of tokenizer.json does. Raises MinibertError."""
    own = published.get("normalizer")
    if not isinstance(own, dict):
        raise MinibertError(f"{file}: no normalizer in it; minibert reads BERT's own alone, BertNormalizer")
    found = checked(file, {f.name: own.get(f.name, f.default) for f in dataclasses.fields(Cleaning)})
    if not found.clean_text:
        raise MinibertError(f"{file}: clean_text is false; minibert takes control characters out of every text")
    return found


def checked(file: Path, switches: Json) -> Cleaning:
    """The switches that a file names. Raises MinibertError for one that is neither true nor false."""
    for name, value in switches.items():
        if not isinstance(value, bool) and (value is not None or name != "strip_accents"):
            raise MinibertError(f"{file}: {name} is {str(value)[:40]!r}; expected true or false; mend the file")
    return Cleaning(**switches)


def capitals(pieces: dict[str, int], folder: Path) -> list[str]:
    """A notice where a vocabulary that nobody called uncased has pieces with capitals."""
    never = [piece for piece in pieces if piece not in SPECIAL.values() and piece != piece.lower()]
    if not never:
        return []
    return [f"{folder}: {len(never):,} of {len(pieces):,} pieces have capitals and never occur, as nothing says that "
            'text keeps them; for a cased checkpoint write {"do_lower_case": false} into tokenizer_config.json']
