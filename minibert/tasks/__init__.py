"""TASKS, the only place that lists them. Read base.py, what a task is, then ner.py.

A task is one file. labelled.py, tabular.py, pairs.py and vocabulary.py have what several share, probabilities.py what
is done to scores, class_weights.py how much a label counts; conll.py, columns.py, spans.py, label_lists.py, squad.py,
next_sentence.py, reply_rows.py and generate.py are parts of one task that stand by themselves.
Imports core, data and scores; the table is imported by train.py, use/predict.py and the command line alone.
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
