"""A task whose labels are pieces of the vocabulary: what masked words and writing share."""
from torch import Tensor

from minibert.core.batch import Batch
from minibert.core.config import BertConfig
from minibert.core.heads import Head, WordHead
from minibert.tasks.base import Example, Prediction, Task


class VocabularyTask(Task[Example, Prediction]):
    """Such a task; no label can be unseen, since every text has pieces of the vocabulary."""
    architecture = "BertForMaskedLM"
    head_parts = ("cls.predictions.", "cls.seq_relationship.")
    unit = "pieces"

    @property
    def outputs(self) -> list[str]:
        """The scores are those of the vocabulary, which has a file of its own."""
        return []

    def head(self, config: BertConfig) -> Head:
        return WordHead(config)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        return self.targets(batch)
