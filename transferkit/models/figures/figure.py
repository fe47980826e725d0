"""A figure about predictions with everything that showing it needs: label, value, interval, unit and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Figure", "classification_figures"]


@dataclass(frozen=True)
class Figure:
    """A number about predictions.

    Attributes:
        key: Its name in `metrics.json`, such as ``"acc"``.
        label: Its name for people.
        value: ``None`` where the pictures cannot tell.
        ci: 95 % interval; ``None`` where none was computed.
        higher_is_better: The direction in which a model improves.
        unit: ``"share"`` in [0, 1], shown in percent; ``"nats"``, ``"pictures"``, or ``""`` for a plain number.
        meaning: What it says, in a few words.
        of: The class (or target) that it is about; ``None`` for all pictures together.
    """

    key: str
    label: str
    value: float | None
    ci: tuple[float, float] | None
    higher_is_better: bool
    unit: str
    meaning: str
    of: str | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """`ci` where it has a width; of none, as of a single picture, the bootstrap knows nothing."""
        return None if self.ci is None or self.ci[0] >= self.ci[1] else self.ci

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return vars(self) | {"ci": None if self.ci is None else list(self.ci)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Figure:
        """Rebuild a figure from `to_dict`'s values."""
        value, ci = values["value"], values["ci"]
        return cls(
            key=str(values["key"]),
            label=str(values["label"]),
            value=None if value is None else float(value),
            ci=None if ci is None else (float(ci[0]), float(ci[1])),
            higher_is_better=bool(values["higher_is_better"]),
            unit=str(values["unit"]),
            meaning=str(values["meaning"]),
            of=None if values.get("of") is None else str(values["of"]),
        )


_WHOLE = (
    ("acc", "Accuracy", True, "share", "share of pictures classified correctly"),
    ("balanced_acc", "Balanced accuracy", True, "share", "mean recall of the classes, each counting the same"),
    ("f1_macro", "Macro F1", True, "share", "mean over the classes of precision and recall in one"),
    ("kappa", "Weighted kappa", True, "", "agreement of grades beyond chance, quadratic weights (Cohen 1968)"),
    ("acc_top5", "Top-5 accuracy", True, "share", "the class is among the five most probable"),
    ("loss", "Log loss (NLL)", False, "nats", "mean negative log-likelihood of the true class; 0 at best"),
    ("ece", "Calibration error (ECE)", False, "", "mean distance of stated probability and accuracy; 0 at best"),
)
_PER_CLASS = (
    ("recall", "Recall", "share of the pictures of the class that were classified as it"),
    ("precision", "Precision", "share of the pictures classified as it that are of the class"),
    ("f1", "F1", "precision and recall in one"),
)


def classification_figures(values: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of one split: those of all pictures in the order of a table, then those of each class.

    Args:
        values: From `classification_metrics`, or what `metrics.json` holds of a split. Figures that it lacks are left
            out.
    """
    figures = []
    for key, label, higher_is_better, unit, meaning in _WHOLE:
        if key in values:
            bounds = values.get(f"{key}_ci")
            ci = None if bounds is None else (bounds[0], bounds[1])
            figures.append(Figure(key, label, values[key], ci, higher_is_better, unit, meaning))
    for name, row in (values.get("per_class") or {}).items():
        figures += [
            Figure(key, label, row[key], None, True, "share", meaning, of=name) for key, label, meaning in _PER_CLASS
        ]
    return figures
