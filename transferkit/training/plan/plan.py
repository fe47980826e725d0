"""`Plan`: phases over a model's groups and an epoch's length, everything that happens as pure functions of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transferkit.training.plan.phases import Phase

__all__ = ["Plan"]

SAMPLES = 200
"""Steps, beside the first, at which `plan.json` holds the LRs."""


@dataclass(frozen=True)
class Plan:
    """What trains in which epoch, and every group's LR and momentum at every step, whatever happened before.

    Args:
        phases: In order.
        group_names: The model's groups, input to output, the head last.
        steps_per_epoch: Optimizer steps in one epoch, at least 1.
    """

    phases: tuple[Phase, ...]
    group_names: tuple[str, ...]
    steps_per_epoch: int

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases together."""
        return self.epochs * self.steps_per_epoch

    def phase_at(self, epoch: int) -> int:
        """Return the index of the phase that `epoch` (from 0, over all phases) belongs to; past the end, the last."""
        for index, phase in enumerate(self.phases):
            if epoch < phase.epochs:
                return index
            epoch -= phase.epochs
        return len(self.phases) - 1

    def first_epoch(self, index: int) -> int:
        """Return the epoch, over all phases, at which phase `index` starts."""
        return sum(phase.epochs for phase in self.phases[:index])

    def with_values(self, values: Mapping[int, Sequence[float]]) -> Plan:
        """Return the plan as it stands once validation values are known, for schedules that go by them (`plateau`).

        Args:
            values: By phase index, the monitored loss of each of its finished epochs.
        """
        phases = [replace(phase, schedule=phase.curve.with_values(values.get(number, ())))
                  for number, phase in enumerate(self.phases)]  # fmt: skip
        return replace(self, phases=tuple(phases))

    def scale(self, index: int, group: str) -> float:
        """Return a group's peak LR over `Phase.lr` in phase `index`.

        0 when frozen; else what `group_lrs` say, else `layer_decay` to the distance from the head.
        """
        phase = self.phases[index]
        if group not in phase.trained(self.group_names):
            return 0.0
        own = phase.own_lr(group)
        if own is not None:
            return own / phase.lr
        return float(phase.layer_decay ** (len(self.group_names) - 1 - self.group_names.index(group)))

    def lrs(self, step: int) -> dict[str, float]:
        """Return every group's LR at optimizer step `step` (from 0, over all phases); 0 for frozen groups."""
        index, *place = self._place(step)
        phase = self.phases[index]
        factor = phase.curve.factor(*place)
        return {group: phase.lr * self.scale(index, group) * factor for group in self.group_names}

    def lr(self, group: str, step: int) -> float:
        """Return one group's LR at optimizer step `step`."""
        return self.lrs(step)[group]

    def momentum(self, step: int) -> float | None:
        """Return the momentum at optimizer step `step`, or ``None`` where the optimizer's own holds."""
        index, *place = self._place(step)
        return self.phases[index].curve.momentum(*place)

    def to_dict(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """Return the plan as `plan.json` holds it.

        Args:
            sizes: Parameters of each group.
        """
        last = self.steps - 1
        samples = sorted({round(number * last / SAMPLES) for number in range(SAMPLES + 1)}) if self.steps else []
        lrs = [self.lrs(step) for step in samples]
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "epochs": self.epochs,
            "groups": [{"name": name, "parameters": size} for name, size in sizes.items()],
            "phases": [
                {
                    **phase.to_dict(),
                    "first_epoch": self.first_epoch(number),
                    "groups": list(phase.trained(self.group_names)),
                    "trainable_parameters": sum(sizes[name] for name in phase.trained(self.group_names)),
                    "peak_lr": {name: phase.lr * self.scale(number, name) for name in self.group_names},
                }
                for number, phase in enumerate(self.phases)
            ],
            "lr": {"step": samples, **{name: [row[name] for row in lrs] for name in self.group_names}},
        }

    def _place(self, step: int) -> tuple[int, int, int, int]:
        """Return the phase of a step, the step within it, the phase's steps, and those of an epoch."""
        index = self.phase_at(step // self.steps_per_epoch)
        local = step - self.first_epoch(index) * self.steps_per_epoch
        return index, local, self.phases[index].epochs * self.steps_per_epoch, self.steps_per_epoch
