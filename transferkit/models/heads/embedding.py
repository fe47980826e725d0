"""`embedding_of`: the space in which a head compares pictures, where it is another one than that of the features."""

from __future__ import annotations

from torch import nn

from transferkit.core.errors import ConfigError

__all__ = ["embedding_of"]


def embedding_of(head: nn.Module) -> nn.Module | None:
    """Return what turns features ``(B, D)`` into the embedding ``(B, E)`` that a head compares pictures by.

    A head of metric learning that has a projection of its own says so by an attribute ``embedding``, a module. Others
    have none: of heads that work on directions of the features themselves, such as ``cosine``, those are the embedding.

    Raises:
        ConfigError: The attribute is there and is no module.
    """
    embedding = getattr(head, "embedding", None)
    if embedding is not None and not isinstance(embedding, nn.Module):
        raise ConfigError(
            f"`embedding` of head {type(head).__name__} is a {type(embedding).__name__} - it must be an nn.Module from "
            "features to the space that pictures are compared in"
        )
    return embedding
