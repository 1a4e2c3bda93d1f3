"""Public sets in the form that train.py reads, where it does not read them as published.

    python benchmarks/sets.py phrasebank|sts|banking77-10|bank_faq|xquad|multi30k|scitldr|
                              gutenberg|wikitext2|thucnews|weibo_ner SOURCE OUTPUT [--seed N]

SOURCE is the folder of the set as published (each function below names its files), OUTPUT a new folder. sst5 needs
nothing, banking77 only `--columns text,category`. Nothing of the sets is part of this project.
"""
import argparse
import csv
import hashlib
import io
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

Row = tuple[str, ...]
Files = dict[str, tuple[str, int]]                 # name -> its contents, and how many examples these are


def phrasebank(source: Path, seed: int) -> Files:
    """Sentences_50Agree.txt: lines of "sentence@label" in Latin-1. Of every ten the ninth is dev, the tenth test."""
    lines = (source / "Sentences_50Agree.txt").read_text("latin-1").split("\n")        # 0x85 is no line end here
    rows = [tuple(line.rsplit("@", 1)) for line in lines if "@" in line]
    return tables("text,label", {"train": [r for i, r in enumerate(rows) if i % 10 < 8], "dev": rows[8::10],
                                 "test": rows[9::10]})


def sts(source: Path, seed: int) -> Files:
    """train.csv and dev.csv, with tabs between sentence1, sentence2 and similarity; there is no test."""
    names = ("sentence1", "sentence2", "similarity")
    splits = {split: read(source / f"{split}.csv", names, "\t") for split in ("train", "dev")}
    return tables("first,second,label", splits)


def banking77_10(source: Path, seed: int) -> Files:
    """train.csv: ten texts of each class, drawn by the seed; the whole test.csv. Both have text and category."""
    classes: dict[str, list[Row]] = defaultdict(list)
    for row in read(source / "train.csv", ("text", "category")):
        classes[row[1]].append(row)
    draw = random.Random(seed)                     # random() alone is the same in every version of Python
    ten = [row for name in sorted(classes) for row in sorted(classes[name], key=lambda row: draw.random())[:10]]
    return tables("text,label", {"train": ten, "test": read(source / "test.csv", ("text", "category"))})


def bank_faq(source: Path, seed: int) -> Files:
    """BankFAQs.csv: Question and Answer, each pair once; a hash of the answer says which split it and its pairs go to.

    Eight of ten answers are train, one dev, one test. Answers that differ in letter case alone stay together.
    """
    splits: dict[str, list[Row]] = {"train": [], "dev": [], "test": []}
    for pair in dict.fromkeys(read(source / "BankFAQs.csv", ("Question", "Answer"))):
        place = int(hashlib.sha256(pair[1].casefold().encode()).hexdigest(), 16) % 10
        splits["dev" if place == 8 else "test" if place == 9 else "train"].append(pair)
    return tables("question,answer", splits)


def xquad(source: Path, seed: int) -> Files:
    """xquad.en.json: 48 articles in the layout of SQuAD; in file order 32 are train, 8 dev, 8 test."""
    published = json.loads((source / "xquad.en.json").read_text("utf-8"))
    files = {}
    for split, part in (("train", slice(0, 32)), ("dev", slice(32, 40)), ("test", slice(40, 48))):
        articles = published["data"][part]
        questions = sum(len(paragraph["qas"]) for article in articles for paragraph in article["paragraphs"])
        files[f"{split}.json"] = json.dumps({**published, "data": articles}, ensure_ascii=False) + "\n", questions
    return files


def multi30k(source: Path, seed: int) -> Files:
    """train, dev and test, each .de and .en with a sentence a line: German to English."""
    splits = {}
    for split in ("train", "dev", "test"):
        sides = ((source / f"{split}.{language}").read_text("utf-8").split("\n") for language in ("de", "en"))
        rows = [(de.strip(), en.strip()) for de, en in zip(*sides, strict=True)]
        splits[split] = [row for row in rows if all(row)]
    return tables("source,target", splits)


def scitldr(source: Path, seed: int) -> Files:
    """train, dev and test.jsonl: sentences of an abstract in "source"; of the summaries in "target" the first."""
    splits = {}
    for split in ("train", "dev", "test"):
        rows = map(json.loads, (source / f"{split}.jsonl").read_text("utf-8").splitlines())
        splits[split] = [(" ".join(row["source"]), row["target"][0].strip()) for row in rows]
    return tables("source,target", splits)


def gutenberg(source: Path, seed: int) -> Files:
    """Fifteen books, a sentence a line, each a document: chesterton-thursday is dev, carroll-alice test."""
    books = {file.stem: file.read_text("utf-8").strip() + "\n" for file in sorted(source.glob("*.txt"))}
    dev, test = ([books.pop(name)] for name in ("chesterton-thursday", "carroll-alice"))
    splits = {"dev": dev, "test": test, "train": [*books.values()]}
    return {f"{split}.txt": ("\n".join(texts), sum(text.count("\n") for text in texts))
            for split, texts in splits.items()}


def wikitext2(source: Path, seed: int) -> Files:
    """dev.txt and test.txt, without the marks of unknown words, hyphens and points of numbers joined again."""
    files = {}
    for split in ("dev", "test"):
        text = (source / f"{split}.txt").read_text("utf-8").replace("<unk>", "")
        text = re.sub(r" @([-,.])@ ", r"\1", text)
        lines = [" ".join(line.split()) for line in text.split("\n")]
        files[f"{split}.txt"] = "\n".join(lines) + "\n", sum(map(bool, lines))
    return files


def thucnews(source: Path, seed: int) -> Files:
    """dev.txt (every tenth line dev, the others train) and test.txt: title, tab, number of a line of class.txt.

    text.txt has the titles of train, for a vocabulary.
    """
    names = (source / "class.txt").read_text("utf-8").split()
    known, test = ([(title, names[int(number)]) for title, _, number in
                    (line.rpartition("\t") for line in (source / name).read_text("utf-8").splitlines())]
                   for name in ("dev.txt", "test.txt"))
    train = [row for i, row in enumerate(known) if i % 10 != 9]
    return {**tables("text,label", {"train": train, "dev": known[9::10], "test": test}),
            "text.txt": ("".join(f"{title}\n" for title, _ in train), len(train))}


def weibo_ner(source: Path, seed: int) -> Files:
    """train, dev and test.conll: a character and its place in its word, tab, tag; the place is left out.

    text.txt has the posts of train, for a vocabulary.
    """
    files = {}
    for split in ("train", "dev", "test"):
        posts = [[line.split("\t") for line in post.split("\n")] for post in
                 (source / f"{split}.conll").read_text("utf-8").strip().split("\n\n")]
        files[f"{split}.conll"] = "\n".join("".join(f"{field[0]}\t{tag}\n" for field, tag in post) for post in posts
                                           ), len(posts)
        if split == "train":
            text = "".join("".join(field[0] for field, _ in post) + "\n" for post in posts)
            files["text.txt"] = text, len(posts)
    return files


def read(file: Path, names: Sequence[str], delimiter: str = ",") -> list[Row]:
    """The columns `names` of a published table, without blanks at the ends; its line ends become \\n."""
    with open(file, encoding="utf-8-sig") as f:
        rows = csv.DictReader(f, delimiter=delimiter, strict=True)
        return [tuple(row[name].strip() for name in names) for row in rows]


def tables(columns: str, splits: dict[str, list[Row]]) -> Files:
    """train.csv and so on, with quotes where they are needed."""
    files = {}
    for split, rows in splits.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns.split(","), *rows])
        files[f"{split}.csv"] = text.getvalue(), len(rows)
    return files


SETS: dict[str, Callable[[Path, int], Files]] = {"phrasebank": phrasebank, "sts": sts, "banking77-10": banking77_10,
                                                 "bank_faq": bank_faq, "xquad": xquad, "multi30k": multi30k,
                                                 "scitldr": scitldr, "gutenberg": gutenberg, "wikitext2": wikitext2,
                                                 "thucnews": thucnews, "weibo_ner": weibo_ner}


def main() -> int:
    """Write the files of one set and say how many examples each has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SETS)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random, in banking77-10")
    options = parser.parse_args()
    files = SETS[options.name](options.source, options.seed)
    options.output.mkdir(parents=True)
    for name, (text, count) in files.items():
        (options.output / name).write_text(text, "utf-8", newline="\n")
        print(f"{name}: {count:,} examples")
    return 0


if __name__ == "__main__":
    sys.exit(main())
