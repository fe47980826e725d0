"""Weights for plain timm: its own key names, the classifier among them, so that timm is all one needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from transferkit.core.errors import ExportError
from transferkit.core.text import first_line
from transferkit.models.artifact import ModelInfo
from transferkit.models.backbones.timm import TimmBackbone
from transferkit.models.backbones.timm_import import timm
from transferkit.models.heads.flat import LinearHead
from transferkit.models.module import TransferModule
from transferkit.results.export.check import Exported, Limits
from transferkit.results.export.format import Format, Subject

__all__ = ["FORMAT", "timm_arguments"]

_PREFIX = "timm/"


def timm_arguments(module: TransferModule, info: ModelInfo) -> dict[str, Any]:
    """Return what `timm.create_model` is called with: ``model_name``, ``num_classes`` and the constructor's arguments.

    Raises:
        ExportError: The backbone is not timm's, or the head is not linear.
    """
    if not isinstance(module.backbone, TimmBackbone):
        raise ExportError(
            f"--format safetensors writes weights for plain timm, but {info.backbone} is not a timm network - "
            "use --format onnx or torch"
        )
    if not isinstance(module.head, LinearHead):
        raise ExportError(
            f"--format safetensors writes weights for plain timm, whose classifier is one linear layer, but the head "
            f"is {info.head or type(module.head).__name__!r} - use --format onnx or torch"
        )
    arguments = {
        "model_name": info.backbone.removeprefix(_PREFIX),
        "num_classes": module.head.linear.out_features,
        **info.backbone_args,
    }
    if module.backbone.adapted:
        arguments["in_chans"] = info.preprocessing.channels
    config = getattr(module.backbone.model, "pretrained_cfg", {})
    if config.get("fixed_input_size"):
        arguments["img_size"] = list(info.preprocessing.image_size)
    return arguments


def _write(subject: Subject, path: Path) -> None:
    """Write weights that ``timm.create_model(NAME, num_classes=C).load_state_dict(load_file(FILE))`` takes strictly."""
    module, info = subject.module, subject.info
    arguments = timm_arguments(module, info)
    network = _create(arguments)
    assert isinstance(module.head, LinearHead)
    layer = module.head.linear
    state: dict[str, Tensor] = dict(module.backbone.model.state_dict())
    for name in _classifiers(network, info):
        own = network.get_submodule(name)
        shape = getattr(own, "weight", torch.empty(0)).shape
        if tuple(shape[:2]) != tuple(layer.weight.shape) or any(side != 1 for side in shape[2:]):
            raise ExportError(
                f"timm's classifier {name!r} of {info.backbone} has weights of shape {tuple(shape)}, expected "
                f"{tuple(layer.weight.shape)} - use --format onnx or torch"
            )
        state[f"{name}.weight"] = layer.weight.detach().reshape(shape)
        state[f"{name}.bias"] = layer.bias.detach()
    facts = {**subject.facts, "create_model": json.dumps(arguments), "format": "pt"}
    path.write_bytes(save({key: tensor.contiguous() for key, tensor in state.items()}, metadata=facts))


def _load(subject: Subject, path: Path) -> Exported:
    """Return written weights as a function: in a network of plain timm, loaded strictly."""
    info = subject.info
    network = _create(timm_arguments(subject.module, info)).eval()
    try:
        network.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise ExportError(
            f"plain timm does not take the weights of {info.backbone} ({first_line(error)}) - "
            "use --format onnx or torch"
        ) from error

    def run(images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        with torch.inference_mode():
            logits = network(torch.from_numpy(images).to(memory_format=torch.channels_last))
            return subject.module.task.predictions(logits, info.calibration).numpy(), logits.numpy()

    return run


def _create(arguments: Mapping[str, Any]) -> nn.Module:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()
    }
    try:
        network: nn.Module = timm.create_model(**values, pretrained=False)
    except Exception as error:  # whatever the constructor meets
        raise ExportError(
            f"timm cannot build {arguments['model_name']} with a classifier ({first_line(error)}) - "
            "use --format onnx or torch"
        ) from error
    return network


def _classifiers(network: nn.Module, info: ModelInfo) -> list[str]:
    """Return the names of the layers that give logits: one; two of distilled networks, whose mean counts."""
    config = getattr(network, "pretrained_cfg", {})
    named = config.get("classifier") or ()
    names = [named] if isinstance(named, str) else list(named)
    layers = [name for name in names if name in dict(network.named_modules())]
    if not layers:
        raise ExportError(f"timm's {info.backbone} has no classifier to put the head into - use --format onnx or torch")
    return layers


def _supports(run: Path, module: TransferModule, info: ModelInfo) -> None:
    timm_arguments(module, info)


FORMAT: Final = Format(".safetensors", _write, _load, lambda config: Limits(agreement=1.0, logits=1e-4), _supports)
