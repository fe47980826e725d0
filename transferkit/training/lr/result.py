"""The result of an LR range test: the curve, the LRs that the rules suggest, and its picture and table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transferkit.core.csv import csv_text
from transferkit.core.files import atomic_write
from transferkit.show.charts import save_figure

__all__ = ["LRSearch", "Measure", "Spacing"]

Spacing = Literal["exponential", "linear"]
Measure = Literal["train", "val"]

LOOK = {
    "steep": ("#d1701a", "--", "steepest"),
    "minimum": ("#4b8b3b", ":", "minimum / 10"),
    "valley": ("#a03c8c", "-.", "valley"),
    "slide": ("#7a5a3a", (0, (6, 2)), "slide"),
}


@dataclass(frozen=True)
class LRSearch:
    """The result of a range test.

    Attributes:
        lrs: LR of the axis at each step, up to where the loss diverged.
        losses: Smoothed loss at each step.
        raw_losses: The loss itself at each step.
        suggestions: LR by rule (`transferkit.training.lr.rules`); ``None`` where a rule finds nothing.
        suggestion_rule: The rule in use.
        ratios: LR over that of the axis, by layer group; 0 for those that do not train.
        axis: The group that `lrs` are of: ``"head"``, or the one with ratio 1.
        spacing: How the LR rose, ``"exponential"`` or ``"linear"``.
        measure: ``"train"`` for the loss of each step's batch, ``"val"`` for that of some validation pictures.
        reason: Why nothing can be suggested, in words; ``None`` when something can.
        warning: What speaks against trusting the suggestion, such as rules that disagree by more than 10 times.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    raw_losses: tuple[float, ...]
    suggestions: Mapping[str, float | None]
    suggestion_rule: str
    ratios: Mapping[str, float]
    axis: str
    spacing: Spacing = "exponential"
    measure: Measure = "train"
    reason: str | None = None
    warning: str | None = None

    @property
    def suggestion(self) -> float | None:
        """The LR that the rule in use suggests, or ``None``: then `reason` says why."""
        return self.suggestions[self.suggestion_rule]

    @property
    def group_lrs(self) -> Mapping[str, float] | None:
        """The suggested LR of every layer group, 0 for those that do not train; ``None`` without a suggestion."""
        lr = self.suggestion
        return None if lr is None else {group: lr * ratio for group, ratio in self.ratios.items()}

    def save_csv(self, path: str | Path) -> None:
        """Write the curve as CSV with the columns ``lr,loss,smoothed``. Raises `StorageError`."""
        rows = zip(self.lrs, self.raw_losses, self.losses, strict=True)
        atomic_write(path, csv_text([("lr", "loss", "smoothed"), *rows]))

    def plot(self, path: str | Path) -> None:
        """Write the curve as PNG, every rule's suggestion marked. Raises `StorageError`."""
        figure = Figure(figsize=(8, 4.8), layout="constrained")
        axis = figure.subplots()
        axis.plot(self.lrs, self.raw_losses, color="#1f5fa8", alpha=0.3, linewidth=1, label="loss")
        axis.plot(self.lrs, self.losses, color="#1f5fa8", linewidth=2, label="smoothed")
        for rule, lr in self.suggestions.items():
            if lr is not None:
                colour, dashes, name = LOOK[rule]
                used = rule == self.suggestion_rule
                axis.axvline(
                    lr, color=colour, linestyle=dashes, linewidth=2.2 if used else 1.4,
                    label=f"{name}: {lr:.2g}{'  (in use)' if used else ''}",
                )  # fmt: skip
        if self.spacing == "exponential":
            axis.set_xscale("log")
        axis.set_xlabel(f"learning rate of {self.axis}")
        axis.set_ylabel("loss on validation pictures" if self.measure == "val" else "training loss")
        axis.grid(color="#dddddd", linewidth=0.6)
        _fit_height(axis, self.raw_losses, self.losses)
        if self.reason is not None:
            axis.set_title("nothing can be suggested", fontsize="medium", color="#444444")
        axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        save_figure(figure, Path(path))


def _fit_height(axis: Axes, raw: Sequence[float], smoothed: Sequence[float]) -> None:
    """Show the fall whole; of the divergence, and of single losses, what does not squeeze it flat."""
    if not smoothed:
        return
    low, fall = min(smoothed), smoothed[0] - min(smoothed)
    top = max(smoothed)
    if fall > 0.05 * (top - low):
        top = min(top, smoothed[0] + 2 * fall)
    room = 0.5 * (top - low) or 0.1
    bottom, top = max(min(*raw, *smoothed), low - room), min(max(*raw, *smoothed), top + room)
    axis.set_ylim(bottom - 0.1 * room, top + 0.1 * room)
