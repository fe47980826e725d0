"""What the answers of two models to the same pictures are compared in, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Compared"]


@dataclass(frozen=True)
class Compared:
    """What two models' answers to one picture are compared in.

    Attributes:
        answers: What a model gives.
        another: What a model gives that does not agree.
        values: What predictions are.
        scale: What counts as 1 of each value of a prediction; empty: 1.
        share: What `Output.shares` are.
        measured: Whether predictions differ by numbers; rows of boxes may change places.
        exported: Names of the outputs of an exported file: predictions, and what the network returns where that is
            something else.
    """

    answers: str = "labels"
    another: str = "another class"
    values: str = "probabilities"
    scale: tuple[float, ...] = ()
    share: str = "probability"
    measured: bool = True
    exported: tuple[str, ...] = ("probabilities", "logits")
