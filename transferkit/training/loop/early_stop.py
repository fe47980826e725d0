"""The epoch whose weights are kept so far, and whether to stop because no better one comes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from transferkit.show.words import MINUS
from transferkit.training.plan.amount import EVEN

__all__ = [
    "BEFORE_TRAINING",
    "CLEAR",
    "ByFigure",
    "ByPictures",
    "Candidate",
    "Clarity",
    "Rule",
    "Selection",
    "clearness",
]

BEFORE_TRAINING = -1
"""The epoch that stands for a solved head."""

CLEAR = 1.0
"""How clearly worse than what is kept the next epoch must be to be passed over: standard errors of the mean difference.

It had the longer training, and what it lost on a few pictures is noise as a rule.
"""

EARLY = 2.0
"""How clearly better than a solved head an epoch before the last must be: there are many of them to be lucky."""


@dataclass(frozen=True)
class Candidate:
    """The weights after an epoch.

    Attributes:
        epoch: From 0, over all phases; `BEFORE_TRAINING` for a solved head.
        value: Of the figure that is followed.
        loss: Mean loss on `val`; ``None`` where it is not known.
        losses: ``(N,) float64``, of each val picture, at the scale of all outputs that suits them; ``None`` where
            outputs are not kept.
        last: Whether training ends with it.
    """

    epoch: int
    value: float
    loss: float | None = None
    losses: Tensor | None = None
    last: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        return {"epoch": self.epoch, "value": self.value, "loss": self.loss, "losses": self.losses,
                "last": self.last}  # fmt: skip


@dataclass(frozen=True)
class Clarity:
    """How clear a choice was.

    Attributes:
        over: What was not chosen.
        pictures: How many were compared.
        gain: What the loss of a picture is lower by on the mean.
        gain_ci: Its 95 % interval; ``None`` where there is one picture alone.
    """

    over: str
    pictures: int
    gain: float
    gain_ci: tuple[float, float] | None

    @property
    def sentence(self) -> str:
        """Say it."""
        low, high = (math.nan, math.nan) if self.gain_ci is None else self.gain_ci
        within = "" if self.gain_ci is None else f", 95 % interval {-high:+.3f} to {-low:+.3f}"
        many = "picture" if self.pictures == 1 else "pictures"
        change = f"{-self.gain:+.3f}{within}".replace("-", MINUS)
        return f"against {self.over} the loss on {self.pictures:,} {many} changes by {change}"


class Rule(Protocol):
    """How candidates are compared."""

    @property
    def by_pictures(self) -> bool:
        """Whether the losses of pictures are needed."""

    @property
    def words(self) -> str:
        """The rule, for a reader."""

    def better(self, new: Candidate, kept: Candidate, start: Candidate | None) -> bool:
        """Whether a later candidate is taken instead of the one that is kept; `start` is a solved head, or none."""

    def lower(self, new: Candidate, lowest: Candidate) -> bool:
        """Whether a later candidate is an improvement, for patience."""


@dataclass(frozen=True)
class ByFigure:
    """The best value of one figure; of equal ones that of the lowest loss, then the first.

    Attributes:
        higher_is_better: Its direction.
    """

    higher_is_better: bool
    by_pictures: bool = False
    words: str = "the best value, then the lowest loss, then the first"

    def better(self, new: Candidate, kept: Candidate, start: Candidate | None) -> bool:
        """Compare the figures."""
        if new.value == kept.value:
            return new.loss is not None and kept.loss is not None and new.loss < kept.loss
        return new.value > kept.value if self.higher_is_better else new.value < kept.value

    def lower(self, new: Candidate, lowest: Candidate) -> bool:
        """As `better`."""
        return self.better(new, lowest, None)


@dataclass(frozen=True)
class ByPictures:
    """The last epoch, unless an earlier one is clearly better picture by picture; a solved head unless one is so.

    The losses of the same pictures under two candidates are compared, which a difference of a few pictures right or
    wrong is not enough for: with 100 val pictures the accuracy of one model has a standard error of 5 points.

    Attributes:
        per_output: Training pictures for each output: of classes, pictures a class.
    """

    per_output: float
    by_pictures: bool = True

    @property
    def words(self) -> str:
        """The rule, with what it demands of the run at hand."""
        last = (
            f"unless the last epoch is better than it by more than {self.demanded:.1f} standard errors"
            if self.demanded > 0
            else f"where it is better than the last epoch by {-self.demanded:.1f} standard errors or more"
        )
        return (
            f"the last epoch, unless an earlier one is better by more than {CLEAR:g} standard error on the same "
            f"pictures; the solved probe, {last}, and no earlier epoch better than it by more than "
            f"{max(EARLY, self.demanded):.1f}"
        )

    @property
    def demanded(self) -> float:
        """How clearly better than a solved head the last epoch must be, in standard errors.

        With few pictures fine-tuning loses as a rule, with many it wins, and the measurement on `val` is added to what
        is usual: 1.5 with 5 pictures a class, -0.5 with 20, -1 from 28 on. On 96 trainings from a solved head (resnet18
        at 64 px, five sets, 5 to 100 pictures a class; mean of 11 kinds) the weights that this rule kept were right on
        79.9 % of the test pictures, those of the best accuracy on 79.5, of the lowest loss on 78.3, of the last epoch
        on 75.9, the best in hindsight on 81.0.
        """
        return min(2.0, max(-CLEAR, math.log2(EVEN / max(self.per_output, 1e-9))))

    def better(self, new: Candidate, kept: Candidate, start: Candidate | None) -> bool:
        """Take it, unless what is kept is clearly better, or what it started from is not clearly enough worse."""
        if kept.losses is None:  # of a run that an earlier release began
            return True
        demanded = self.demanded if new.last else max(EARLY, self.demanded)
        if start is not None and clearness(start, new) <= demanded:
            return False
        return kept.epoch == BEFORE_TRAINING or clearness(new, kept) <= CLEAR

    def lower(self, new: Candidate, lowest: Candidate) -> bool:
        """Compare the mean losses."""
        if new.losses is None or lowest.losses is None:
            return True
        return bool(new.losses.mean() < lowest.losses.mean())


def clearness(worse: Candidate, better: Candidate) -> float:
    """Return by how many standard errors `better` has the lower mean loss on the same pictures; below 0 a higher one.

    Raises:
        TypeError: A candidate has no losses of pictures.
    """
    if worse.losses is None or better.losses is None:
        raise TypeError("candidates are compared by pictures, and the losses of one are not known")
    gains = worse.losses - better.losses
    mean, error = float(gains.mean()), _standard_error(gains)
    if error == 0.0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / error


def _standard_error(gains: Tensor) -> float:
    """Return that of their mean; infinite for one alone."""
    return float(gains.std()) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf


class Selection:
    """Chooses the epoch whose weights are kept.

    Early stopping looks at the last phase only, so that when a phase begins follows from the plan alone.

    Args:
        monitor: Name of the figure that is followed.
        rule: How epochs are compared.
        patience: Epochs of the last phase without improvement after which training stops; ``None`` for never.

    Attributes:
        kept: The choice so far; ``None`` before the first candidate.
        lowest: The epoch that is best by its own figure or mean loss, which patience goes by: not the solved head, for
            fine-tuning falls behind it at first as a rule.
        start: The solved head, where there is one.
        stopped_early: Whether patience ran out.
    """

    def __init__(self, monitor: str, rule: Rule, *, patience: int | None) -> None:
        self.monitor = monitor
        self.rule = rule
        self.patience = patience
        self.kept: Candidate | None = None
        self.lowest: Candidate | None = None
        self.start: Candidate | None = None
        self.stopped_early = False

    @property
    def best_epoch(self) -> int:
        """The epoch that is kept, from 0, over all phases; `BEFORE_TRAINING` for a solved head."""
        return BEFORE_TRAINING if self.kept is None else self.kept.epoch

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs."""
        candidates = {"kept": self.kept, "lowest": self.lowest, "start": self.start}
        return {"candidates": {name: one.to_dict() for name, one in candidates.items() if one is not None},
                "stopped_early": self.stopped_early}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the choice of the process that is being continued."""
        if "candidates" in state:
            candidates = {name: Candidate(**values) for name, values in state["candidates"].items()}
        else:  # of an earlier release
            kept = Candidate(state["best_epoch"], state["best_value"], state.get("best_loss"))
            candidates = {"kept": kept, "lowest": kept} if kept.value is not None else {}
        self.kept, self.lowest = candidates.get("kept"), candidates.get("lowest")
        self.start = candidates.get("start")
        self.stopped_early = state["stopped_early"]

    def offer(self, new: Candidate) -> bool:
        """Choose a candidate if it is to be kept; return whether it is."""
        if new.epoch == BEFORE_TRAINING:
            self.start = new
        elif self.lowest is None or self.rule.lower(new, self.lowest):
            self.lowest = new
        taken = self.kept is None or self.rule.better(new, self.kept, self.start)
        if taken:
            self.kept = new
        return taken

    def end_epoch(self, epoch: int, first: int) -> bool:
        """Note the end of an epoch of the last phase; return whether training stops.

        Args:
            epoch: From 0, over all phases.
            first: The first epoch of the phase.
        """
        lowest = BEFORE_TRAINING if self.lowest is None else self.lowest.epoch
        if self.patience is not None and epoch - max(lowest, first - 1) >= self.patience:
            self.stopped_early = True
        return self.stopped_early

    def clarity(self) -> Clarity | None:
        """Return how clear the choice was; ``None`` where pictures were not compared, or there was nothing else.

        An epoch is compared with the solved head, where there is one, and that with the epoch of the lowest mean loss.
        """
        rival = self.start if self.best_epoch != BEFORE_TRAINING and self.start is not None else self.lowest
        if self.kept is None or rival is None or rival.epoch == self.kept.epoch:
            return None
        if self.kept.losses is None or rival.losses is None:
            return None
        gains = rival.losses - self.kept.losses
        mean, half = float(gains.mean()), 1.96 * _standard_error(gains)
        over = "the solved probe" if rival.epoch == BEFORE_TRAINING else f"epoch {rival.epoch + 1}"
        return Clarity(over, len(gains), mean, (mean - half, mean + half) if math.isfinite(half) else None)
