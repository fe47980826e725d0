"""`Plan`: phases over a model's groups and an epoch's length, everything that happens as pure functions of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transferkit.models.tuning.selectors import (
    Groups,
    Layout,
    Selector,
    as_layout,
    cuts_of,
    labels_of,
    parse_selector,
)
from transferkit.training.plan.phases import Phase

__all__ = ["Plan", "lr_cuts"]

SAMPLES = 200
"""Steps, beside the first, at which `plan.json` holds the LRs."""


@dataclass(frozen=True)
class Plan:
    """What trains in which epoch, and every group's LR and momentum at every step, whatever happened before.

    Args:
        phases: In order.
        groups: The model's, input to output, the head last.
        steps_per_epoch: Optimizer steps in one epoch, at least 1.
    """

    phases: tuple[Phase, ...]
    groups: Groups
    steps_per_epoch: int

    @cached_property
    def layout(self) -> Layout:
        """The parameters of the model."""
        return as_layout(self.groups)

    @property
    def group_names(self) -> tuple[str, ...]:
        """The names of the groups."""
        return self.layout.names

    @cached_property
    def lr_names(self) -> tuple[str, ...]:
        """The names of all LRs: those of the groups, and of parts of them that `group_lrs` take out of them."""
        return tuple(dict.fromkeys(labels_of(self.layout, lr_cuts(self.phases, self.layout)).values()))

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

    def scale(self, index: int, name: str) -> float:
        """Return the peak over `Phase.lr` of one of `lr_names` in phase `index`.

        0 when all of it is frozen; else what `group_lrs` say, else `layer_decay` to the distance from the head.
        """
        return self._scales[index][name]

    @cached_property
    def _scales(self) -> tuple[dict[str, float], ...]:
        labels = labels_of(self.layout, lr_cuts(self.phases, self.layout))
        last = len(self.group_names) - 1
        result = []
        for phase in self.phases:
            own = phase.own_lrs(self.layout)
            scales = dict.fromkeys(self.lr_names, 0.0)
            for leaf in phase.parts(self.layout):
                distance = last - self.group_names.index(leaf.group)
                scales[labels[leaf]] = own[leaf] / phase.lr if leaf in own else float(phase.layer_decay**distance)
            result.append(scales)
        return tuple(result)

    def lrs(self, step: int) -> dict[str, float]:
        """Return every one of `lr_names` at optimizer step `step` (from 0, over all phases); 0 for frozen groups."""
        index, *place = self._place(step)
        phase = self.phases[index]
        factor = phase.curve.factor(*place)
        return {name: phase.lr * scale * factor for name, scale in self._scales[index].items()}

    def lr(self, group: str, step: int) -> float:
        """Return one group's LR at optimizer step `step`."""
        return self.lrs(step)[group]

    def momentum(self, step: int) -> float | None:
        """Return the momentum at optimizer step `step`, or ``None`` where the optimizer's own holds."""
        index, *place = self._place(step)
        return self.phases[index].curve.momentum(*place)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as `plan.json` holds it."""
        last = self.steps - 1
        samples = sorted({round(number * last / SAMPLES) for number in range(SAMPLES + 1)}) if self.steps else []
        lrs = [self.lrs(step) for step in samples]
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "epochs": self.epochs,
            "groups": [
                {"name": name, "parameters": sum(leaf.size for leaf in self.layout.leaves if leaf.group == name)}
                for name in self.group_names
            ],
            "phases": [
                {
                    **phase.to_dict(),
                    "first_epoch": self.first_epoch(number),
                    "groups": list(phase.trained(self.layout)),
                    "trainable_parameters": sum(leaf.size for leaf in phase.parts(self.layout)),
                    "trained": self._trained(phase),
                    "peak_lr": {name: phase.lr * scale for name, scale in self._scales[number].items()},
                }
                for number, phase in enumerate(self.phases)
            ],
            "lr": {"step": samples, **{name: [row[name] for row in lrs] for name in self.lr_names}},
        }

    def _trained(self, phase: Phase) -> dict[str, int]:
        """Return how many parameters learn in a phase, by the name of their LR."""
        labels = labels_of(self.layout, lr_cuts(self.phases, self.layout))
        counts: dict[str, int] = {}
        for leaf in phase.parts(self.layout):
            counts[labels[leaf]] = counts.get(labels[leaf], 0) + leaf.size
        return counts

    def _place(self, step: int) -> tuple[int, int, int, int]:
        """Return the phase of a step, the step within it, the phase's steps, and those of an epoch."""
        index = self.phase_at(step // self.steps_per_epoch)
        local = step - self.first_epoch(index) * self.steps_per_epoch
        return index, local, self.phases[index].epochs * self.steps_per_epoch, self.steps_per_epoch


def lr_cuts(phases: Sequence[Phase], groups: Groups) -> tuple[Selector, ...]:
    """Return the selectors of `group_lrs` that take parts of layer groups, over all phases.

    The optimizer holds these parts as groups of their own, from step 0, whichever phase they belong to.
    """
    layout = as_layout(groups)
    return cuts_of([parse_selector(text) for phase in phases for text in phase.group_lrs], layout)
