"""What an exported file says of itself: classes, preprocessing, calibration, and which weights went out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from transferkit import __version__
from transferkit.models.artifact import ModelInfo

__all__ = ["export_facts", "which_weights"]


def export_facts(run: Path, info: ModelInfo, **more: str) -> dict[str, str]:
    """Return the metadata of an exported model, as texts; lists and mappings are JSON.

    Args:
        run: The run directory.
        info: What its `model.json` holds.
        more: Further facts of the format.
    """
    calibration = {
        "method": info.calibration.method,
        "temperature": info.calibration.temperature,
        "scale": list(info.calibration.scale),
        "bias": list(info.calibration.bias),
    }
    return {
        "classes": json.dumps(list(info.class_names), ensure_ascii=False),
        "preprocessing": json.dumps({**info.preprocessing.to_dict(), "decode_side": info.preprocessing.decode_side}),
        "temperature": repr(info.calibration.temperature),
        "calibration": json.dumps(calibration),
        "backbone": info.backbone,
        "head": info.head or "",
        "license": info.license or "not known",
        "weights": which_weights(run),
        "weights_source": info.weights_source,
        "sha256": info.sha256,
        "transferkit": __version__,
        **more,
    }


def which_weights(run: Path) -> str:
    """Return in words which of a run's weights its product holds: averaged or not, of which epoch, how made."""
    metrics, config = _mapping(run / "metrics.json"), _mapping(run / "config.yaml")
    if "probe" in metrics:
        return f"pretrained backbone as it was, head by the {metrics['probe'].get('classifier')} probe"
    selection = metrics.get("selection")
    if not isinstance(selection, Mapping):
        return "those of model.safetensors; how they were chosen is not recorded"
    epoch = selection.get("epoch")
    if epoch is not None:
        averaged = config.get("ema")
        kind = f"moving average (EMA {averaged:g}) of the weights" if averaged else "weights"
        told = f"{kind} at epoch {epoch + 1}, chosen by {selection.get('monitor')}"
    elif selection.get("monitor") is None:
        told = "pretrained backbone as it was, head solved"
    else:
        told = f"{selection.get('kept')}, chosen by {selection.get('monitor')}"
    if "interpolation" in metrics:
        told += f"; mixed with those before training (alpha {metrics['interpolation'].get('alpha')})"
    if "recalibrated_bn" in metrics:
        told += "; batch norm measured anew"
    return told


def _mapping(path: Path) -> Mapping[str, Any]:
    """Return what a file of the run holds; nothing where it is missing or damaged, for it only informs."""
    try:
        text = path.read_text()
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, Mapping) else {}
