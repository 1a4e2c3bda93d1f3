"""What is trained and what stays: freezing."""
from minibert.core.model import Model
from minibert.errors import MinibertError


def freeze(model: Model, what: str) -> Model:
    """Keep part of the encoder as it was loaded: "none", "embeddings", a number K of blocks, or "encoder".

    K freezes the embeddings and the first K blocks. A pooler that the head does not read gets no gradient; it is
    frozen too, so that lists of trained parameters tell the truth. Raises MinibertError for more blocks than there are.
    """
    bert = model.bert
    if not model.head.uses_pooler and bert.pooler is not None:
        bert.pooler.requires_grad_(False)
    if what == "none":
        return model
    if what == "encoder":
        bert.requires_grad_(False)
        return model
    blocks = 0 if what == "embeddings" else int(what)
    if blocks > len(bert.blocks):
        raise MinibertError(f"--freeze is {blocks}; the checkpoint has {len(bert.blocks)} blocks")
    bert.embeddings.requires_grad_(False)
    for block in bert.blocks[:blocks]:
        block.requires_grad_(False)
    return model
