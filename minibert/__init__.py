"""minibert: BERT fine-tuning in plain PyTorch, to be read. The names here are the whole interface from Python."""
from minibert import scores as metrics
from minibert.checkpoints.hub import fetch
from minibert.checkpoints.weights import load_bert
from minibert.core import byhand
from minibert.core.optim import SGD, AdamW, lr_at
from minibert.errors import MinibertError
from minibert.use.predict import load

__all__ = ["SGD", "AdamW", "MinibertError", "byhand", "fetch", "load", "load_bert", "lr_at", "metrics"]
__version__ = "0.1.0"
