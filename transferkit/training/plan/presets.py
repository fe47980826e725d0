"""What the names of ready-made phase lists stand for."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.core.errors import ConfigError, did_you_mean
from transferkit.training.plan.phases import HEAD, Phase
from transferkit.training.schedules.schedules import Schedule

__all__ = ["PRESETS", "preset_phases"]

PRESETS = ("probe", "finetune", "probe-finetune", "gradual")


def preset_phases(
    preset: str,
    *,
    epochs: int,
    probe_epochs: int,
    lr: float,
    probe_lr: float,
    schedule: Schedule,
    layer_decay: float,
    group_names: Sequence[str],
    solve: bool = False,
) -> tuple[Phase, ...]:
    """Return the phases that a preset's name stands for.

    - ``probe``: the head alone, solved or for `epochs` epochs.
    - ``finetune``: everything for `epochs` epochs.
    - ``probe-finetune``: the head alone, solved or for `probe_epochs`, then everything for `epochs` (LP-FT, Kumar et
      al. 2022: fine-tuning from a converged head distorts the features less).
    - ``gradual``: the head alone, likewise, then one more layer group per phase, from the output to the
      input (gradual unfreezing; ULMFiT, Howard & Ruder 2018, section 3.3). `epochs` are shared out evenly, early
      phases get what is left over; with fewer epochs than groups several groups are unfrozen at a time.

    Args:
        preset: One of `PRESETS`.
        epochs: Fine-tuning epochs (of the probe, when only the probe is trained).
        probe_epochs: Epochs of a probe that comes before fine-tuning.
        lr: Peak LR of the head while more than the head is trained.
        probe_lr: Peak LR of the head while it is trained alone.
        schedule: Of the phases after the probe; the probe itself is annealed by half a cosine.
        layer_decay: See `Phase`.
        group_names: The model's groups, input to output, the head last.
        solve: Whether the head alone is solved on cached features instead of trained.

    Raises:
        ConfigError: The preset is unknown.
    """
    probe = Phase("probe", epochs=0 if solve else probe_epochs, train=HEAD, lr=probe_lr, solve=solve)
    everything = Phase("finetune", epochs=epochs, train="all", lr=lr, schedule=schedule, layer_decay=layer_decay)
    if preset == "probe":
        return (probe,) if solve else (Phase("probe", epochs=epochs, train=HEAD, lr=probe_lr, schedule=schedule),)
    if preset == "finetune":
        return (everything,)
    if preset == "probe-finetune":
        return (probe, everything)
    if preset == "gradual":
        layers = [name for name in group_names if name != HEAD][::-1]
        count = max(1, min(len(layers), epochs))
        phases = [probe]
        for number in range(count):
            unfrozen = layers[: (number + 1) * len(layers) // count]
            share = epochs // count + (number < epochs % count)
            trained = tuple(name for name in group_names if name == HEAD or name in unfrozen)
            name = f"unfreeze-{unfrozen[-1]}" if unfrozen else "unfreeze"
            phases.append(Phase(name, epochs=share, train=trained, lr=lr, schedule=schedule, layer_decay=layer_decay))
        return tuple(phases)
    raise ConfigError(
        f"unknown phases {preset!r}.{did_you_mean(preset, PRESETS)} "
        f"Known: {', '.join(PRESETS)}, or a list of phases in a recipe."
    )
