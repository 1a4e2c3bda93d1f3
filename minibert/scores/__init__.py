"""Scores: predictions beside the right answers -> numbers and tables. Nothing here knows a model or a task.

Read tags.py first (entities, what a tag means, precision and recall of them), then tables.py, from which every row of
precision, recall and F1 comes, labels.py (classes, relations), numbers.py (correlations, rankings), words.py (what a
word is in which script), texts.py (answers, BLEU, ROUGE). Imports errors only. From Python this package is
`minibert.metrics`.
"""
from minibert.scores.labels import (
    confusion,
    confusion_report,
    label_report,
    label_scores,
    relation_report,
    relation_scores,
    unseen,
)
from minibert.scores.numbers import correlations, ranking_scores
from minibert.scores.tags import (
    detect_scheme,
    entities,
    entity_report,
    entity_scores,
    invalid_starts,
    is_tag,
    scheme_of,
    tag_report,
    tag_scores,
    to_iob2,
)
from minibert.scores.texts import answer_report, answer_scores, bleu, rouge
from minibert.scores.words import word_rules

__all__ = ["answer_report", "answer_scores", "bleu", "confusion", "confusion_report", "correlations", "detect_scheme",
           "entities", "entity_report", "entity_scores", "invalid_starts", "is_tag", "label_report", "label_scores",
           "ranking_scores", "relation_report", "relation_scores", "rouge", "scheme_of", "tag_report", "tag_scores",
           "to_iob2", "unseen", "word_rules"]
