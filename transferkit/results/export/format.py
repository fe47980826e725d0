"""A file format of `export` as a record, and what every exported file says of itself."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transferkit import __version__
from transferkit.core.errors import CheckpointError, ExportError
from transferkit.models.artifact import ModelInfo
from transferkit.models.module import TransferModule
from transferkit.models.task import task_named
from transferkit.options.results import ExportConfig
from transferkit.results.export.check import Exported, ExportPictures, Limits
from transferkit.results.predict.predictor import Predictor
from transferkit.runs.files import RunFiles

__all__ = ["Format", "Subject", "export_facts", "need", "which_weights"]


@dataclass(frozen=True)
class Subject:
    """What goes out.

    Attributes:
        config: The options.
        predictor: The run's model.
        facts: What the file will say of itself.
        pictures: To compare on, and to measure ranges on.
        way: Which of the format's ways of writing it, where there are several.
    """

    config: ExportConfig
    predictor: Predictor
    facts: Mapping[str, str]
    pictures: ExportPictures
    way: str = ""

    @property
    def module(self) -> TransferModule:
        """The model, in eval mode on the CPU."""
        return self.predictor.module

    @property
    def info(self) -> ModelInfo:
        """What `model.json` holds."""
        return self.predictor.info


@dataclass(frozen=True)
class Format:
    """A format that a model can be written in.

    Attributes:
        suffix: Of the file, where its name is not given.
        write: Writes a model to a path.
        load: Reads what was written back, as a function.
        limits: How far it may then be from the run.
        supports: Raises an `ExportError` for a model that cannot be written in it, before there is any work; returns
            further facts of one that can.
        instead: What to do where it is further from the run.
        needs: Libraries that may be missing.
        extra: Of this package, which installs them.
        timed: Whether its speed is worth measuring.
        note: What else is worth telling of the file.
    """

    suffix: str
    write: Callable[[Subject, Path], None]
    load: Callable[[Subject, Path], Exported]
    limits: Callable[[ExportConfig], Limits]
    supports: Callable[[Path, TransferModule, ModelInfo], Mapping[str, str] | None] = lambda run, module, info: None
    instead: Callable[[ExportConfig], str] = lambda config: "use another format"
    needs: tuple[str, ...] = ()
    extra: str = ""
    timed: bool = True
    note: str = ""


def need(format: Format) -> None:
    """Raise an `ExportError` with the line to install where a library of a format is missing."""
    for name in format.needs:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ExportError(
                f"{error.name or error} is not installed, but this format needs it - "
                f"pip install 'transferkit[{format.extra}]'"
            ) from error


# ---- facts ------------------------------------------------------------------------------------------------------


def export_facts(config: ExportConfig, info: ModelInfo) -> dict[str, str]:
    """Return the metadata of an exported model, as texts; lists and mappings are JSON.

    Args:
        config: The options.
        info: What the `model.json` of the run holds.
    """
    values = info.calibration.to_dict()
    calibration = {key: values[key] for key in ("method", "temperature", "scale", "bias") if key in values}
    thresholds = info.calibration.facts.get("thresholds")  # of several labels per picture
    files = task_named(info.task).output.files
    colours = None if files is None else [colour for _, colour in files.legend(info.target_spec)]
    return {
        **({} if colours is None else {"colours": json.dumps(colours)}),
        **({} if thresholds is None else {"thresholds": json.dumps(thresholds)}),
        "classes": json.dumps(list(info.class_names), ensure_ascii=False),
        "preprocessing": json.dumps({**info.preprocessing.to_dict(), "decode_side": info.preprocessing.decode_side}),
        "temperature": repr(info.calibration.temperature),
        "calibration": json.dumps(calibration),
        "backbone": info.backbone,
        "head": info.head or "",
        "license": info.license or "not known",
        "weights": which_weights(Path(config.run)),
        "weights_source": info.weights_source,
        "sha256": info.sha256,
        "transferkit": __version__,
        "precision": config.precision,
        "preprocessing_inside": str(config.preprocessing == "inside").lower(),
    }


def which_weights(run: Path) -> str:
    """Return in words which of a run's weights its product holds: averaged or not, of which epoch, how made."""
    files = RunFiles(run, lenient=True)
    try:
        metrics = files.metrics
    except CheckpointError:  # it only informs
        metrics = {}
    if "probe" in metrics:
        return f"pretrained backbone as it was, head by the {metrics['probe'].get('classifier')} probe"
    selection = metrics.get("selection")
    if not isinstance(selection, Mapping):
        return "those of model.safetensors; how they were chosen is not recorded"
    epoch = selection.get("epoch")
    if epoch is not None:
        averaged = files.config.get("ema")
        kind = f"moving average (EMA {averaged:g}) of the weights" if averaged else "weights"
        text = f"{kind} at epoch {epoch + 1}, chosen by {selection.get('monitor')}"
    elif selection.get("monitor") is None:
        text = "pretrained backbone as it was, head solved"
    else:
        text = f"{selection.get('kept')}, chosen by {selection.get('monitor')}"
    if "interpolation" in metrics:
        text += f"; mixed with those before training (alpha {metrics['interpolation'].get('alpha')})"
    if "recalibrated_bn" in metrics:
        text += "; batch norm measured anew"
    return text
