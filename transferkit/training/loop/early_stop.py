"""The best epoch so far, and whether to stop because no better one comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["BEFORE_TRAINING", "Selection"]

BEFORE_TRAINING = -1
"""The epoch that stands for a solved head."""


class Selection:
    """Chooses the epoch whose weights are kept, by one figure; of equal ones that of the lowest loss, then the first.

    Early stopping looks at the last phase only, so that when a phase begins follows from the plan alone.

    Args:
        monitor: Name of the figure.
        higher_is_better: Its direction.
        patience: Epochs of the last phase without improvement after which training stops; ``None`` for never.

    Attributes:
        best_value: Of the figure; ``None`` before the first epoch.
        best_loss: Of that epoch; ``None`` where it is not known.
        best_epoch: From 0, over all phases; `BEFORE_TRAINING` for a solved head.
        stopped_early: Whether patience ran out.
    """

    def __init__(self, monitor: str, *, higher_is_better: bool, patience: int | None) -> None:
        self.monitor = monitor
        self.higher_is_better = higher_is_better
        self.patience = patience
        self.best_value: float | None = None
        self.best_loss: float | None = None
        self.best_epoch = BEFORE_TRAINING
        self.stopped_early = False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs."""
        return {"best_value": self.best_value, "best_loss": self.best_loss, "best_epoch": self.best_epoch,
                "stopped_early": self.stopped_early}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the choice of the process that is being continued."""
        self.best_value = state["best_value"]
        self.best_loss = state.get("best_loss")  # a checkpoint of an earlier release has none
        self.best_epoch = state["best_epoch"]
        self.stopped_early = state["stopped_early"]

    def offer(self, value: float, epoch: int, loss: float | None = None) -> bool:
        """Choose an epoch if it is better than the best so far; return whether it is.

        Args:
            value: Of the figure.
            epoch: From 0, over all phases.
            loss: By which epochs of equal value are told apart; ``None`` where it is not known.
        """
        best, lowest = self.best_value, self.best_loss
        if best is None:
            better = True
        elif value == best:
            better = loss is not None and lowest is not None and loss < lowest
        else:
            better = value > best if self.higher_is_better else value < best
        if better:
            self.best_value, self.best_loss, self.best_epoch = value, loss, epoch
        return better

    def end_epoch(self, epoch: int, first: int) -> bool:
        """Note the end of an epoch of the last phase; return whether training stops.

        Args:
            epoch: From 0, over all phases.
            first: The first epoch of the phase.
        """
        if self.patience is not None and epoch - max(self.best_epoch, first - 1) >= self.patience:
            self.stopped_early = True
        return self.stopped_early
