"""minibert: BERT fine-tuning in plain PyTorch, to be read. The names here are the whole Python door."""
from minibert import byhand, metrics
from minibert.errors import MinibertError
from minibert.hub import fetch
from minibert.optim import SGD, AdamW, lr_at
from minibert.predict import load
from minibert.weights import load_bert

__all__ = ["SGD", "AdamW", "MinibertError", "byhand", "fetch", "load", "load_bert", "lr_at", "metrics"]
__version__ = "0.1.0"
