"""TASKS, the only place that lists them. base.py says what a task is; ner.py is the one to read first.

A task is one file; conll.py, squad.py, next_sentence.py and generate.py are parts of one that stand by themselves.
Imports core, data and scores; nothing but the tables of use, train.py and the command line imports it.
"""
from minibert.tasks.base import Task
from minibert.tasks.classify import Classify
from minibert.tasks.match import Match
from minibert.tasks.mlm import MLM
from minibert.tasks.ner import NER
from minibert.tasks.qa import QA
from minibert.tasks.relation import Relation
from minibert.tasks.reply import Reply
from minibert.tasks.seq2seq import Dialogue, Summarize, Translate

TASKS: dict[str, type[Task]] = {"ner": NER, "classify": Classify, "match": Match, "relation": Relation,
                               "qa": QA, "reply": Reply, "mlm": MLM, "translate": Translate, "summarize": Summarize,
                               "dialogue": Dialogue}
