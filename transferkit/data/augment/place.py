"""Where training pictures are augmented: by albumentations on the CPU, or in batches on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from transferkit.core.errors import ConfigError
from transferkit.core.records import DataConfig
from transferkit.data.augment.draws import DRAWABLE

__all__ = ["PLACES", "Place", "Where", "choose_place"]

Where: TypeAlias = Literal["auto", "cpu", "device"]
PLACES: Final = ("auto", "cpu", "device")


@dataclass(frozen=True, slots=True)
class Place:
    """Where augmentation runs.

    Attributes:
        on_device: Whether on the network's device.
        reason: Why, as what follows a colon.
    """

    on_device: bool
    reason: str


def choose_place(where: str, name: Any, device: str, config: DataConfig, *, answers: bool) -> Place:
    """Return where pictures are augmented.

    ``"auto"`` is the device on a GPU of CUDA, and the CPU elsewhere: torch does on a CPU in batches what albumentations
    does there in a sixth of the time, picture by picture (`tests/bench/RESULTS.md`), so nothing is measured.

    Args:
        where: One of `PLACES`.
        name: Of the augmentation, or own steps.
        device: torch's name of the network's device.
        config: How pictures are prepared.
        answers: Whether answers on pixels are carried along.

    Raises:
        ConfigError: ``"device"``, and the device cannot do it.
    """
    if name == "none":
        return Place(False, "nothing is augmented")
    obstacle = None
    if answers:
        obstacle = "masks and boxes are carried along by albumentations"
    elif config.tiled:
        obstacle = "windows are cut by albumentations"
    elif config.channels != len("RGB"):
        obstacle = "the device augments RGB alone"
    elif not isinstance(name, str):
        obstacle = f"the device does {' and '.join(DRAWABLE)} alone"
    elif name not in DRAWABLE:
        obstacle = f"{name!r} has steps that only albumentations has; the device does {' and '.join(DRAWABLE)}"
    if where == "device" and obstacle is not None:
        raise ConfigError(f"--augment-on device: {obstacle} - pass --augment-on cpu or auto")
    if where != "auto":
        return Place(where == "device", "as --augment-on has it")
    if obstacle is not None:
        return Place(False, obstacle)
    if device == "cuda":
        return Place(True, "the GPU does it in batches, and the CPU has time to decode")
    return Place(False, "albumentations is faster than torch there" if device == "cpu" else f"not tried on {device}")
