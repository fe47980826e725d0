"""When the model had better say nothing of a picture."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError
from transferkit.models.artifact import ModelInfo
from transferkit.models.module import TransferModule
from transferkit.models.parts import UNKNOWN
from transferkit.models.unlike.distance import LEAST

__all__ = ["AbstainBy", "Abstention", "check_unknown"]

AbstainBy: TypeAlias = Literal["sets", "thresholds"]


class Abstention:
    """Whether the model is sure enough of a picture to give it a label.

    Args:
        info: With a calibration that holds held-out pictures.
        rate: In (0, 1): coverage of the prediction sets, or precision of each class.
        by: ``"sets"``: when the conformal prediction set holds one class only. ``"thresholds"``: when the probability
            is at least the one from which on held-out pictures of the class were right at that rate.

    Raises:
        ConfigError: The rate is out of range, or there are no held-out pictures.
    """

    def __init__(self, info: ModelInfo, rate: float, by: AbstainBy) -> None:
        if not 0.0 < rate < 1.0:
            raise ConfigError(f"abstain is {rate}, expected a rate in (0, 1), such as 0.95")
        if by not in ("sets", "thresholds"):
            raise ConfigError(f"abstain_by is {by!r}, expected sets or thresholds")
        if info.calibration.held_out is None:
            raise ConfigError(
                "this model has no held-out pictures to abstain by, expected a calibrated one - run "
                "`transferkit calibrate RUN DATA` with labelled pictures that it was not trained on"
            )
        self.class_names = info.class_names
        self.threshold = info.calibration.set_threshold(rate) if by == "sets" else None
        self.least = info.calibration.class_thresholds(rate) if by == "thresholds" else ()

    def __call__(self, probs: npt.NDArray[np.float32], order: npt.NDArray[np.int64]) -> tuple[bool, tuple[str, ...]]:
        """Return whether to give the label, and the prediction set, most probable class first; empty for thresholds.

        Args:
            probs: ``(C,)``, calibrated.
            order: Class indices ``(C,)``, most probable first.
        """
        if self.threshold is not None:
            classes = tuple(self.class_names[index] for index in order if probs[index] >= self.threshold)
            return len(classes) == 1, classes
        least = self.least[int(order[0])]
        return least is not None and bool(probs[order[0]] >= least), ()


def check_unknown(module: TransferModule, rate: float) -> None:
    """Refuse a rate from which on pictures are unknown, where it cannot be used.

    Raises:
        ConfigError: It is not in (0, 1), the model keeps no held-out pictures, a class of it has that name, or it gives
            no labels.
    """
    if not 0.0 < rate < 1.0:
        raise ConfigError(f"unknown is {rate}, expected a rate in (0, 1), such as 0.95")
    if not module.task.output.labels:
        hint = "" if module.unlike is None else "; the column unlike_training says it"
        raise ConfigError(
            f"--unknown writes {UNKNOWN!r} for a label, and {module.task.name} gives none - leave it out{hint}"
        )
    if module.unlike is None:
        raise ConfigError(
            "this model does not know how far pictures are from its training pictures: it is of an older transferkit, "
            f"or its run had fewer than {LEAST} val pictures - run finetune or probe again, or leave --unknown out"
        )
    if UNKNOWN in module.class_names:
        raise ConfigError(
            f"the model has a class {UNKNOWN!r} of its own, which could not be told from what --unknown writes - leave "
            "it out; the column unlike_training says it"
        )
