"""The product: `model.safetensors` + `model.json`, everything that prediction needs."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from transferkit import __version__
from transferkit.core.documents import parse_json
from transferkit.core.errors import CheckpointError, ConfigError, gather
from transferkit.core.files import atomic_write, sha256_of_file, user_path, write_json
from transferkit.core.records import DataConfig
from transferkit.core.targets import TargetSpec
from transferkit.core.text import first_line, listing, shown
from transferkit.data.index.targets import Targets
from transferkit.machine.lightning_import import L
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.backbones.timm_import import timm
from transferkit.models.calibration.calibration import Calibration
from transferkit.models.heads.neighbour import KNN, NeighbourHead
from transferkit.models.module import TransferModule
from transferkit.models.parts import FittedCalibration
from transferkit.models.task import CLASSIFICATION, Task, task_named
from transferkit.models.unlike.distance import TrainingDistance
from transferkit.models.weights.loading import not_finite

__all__ = ["ModelInfo", "load_model", "product_of", "read_info", "save_info", "save_model", "versions"]

FORMAT = 1
WEIGHTS, INFO = "model.safetensors", "model.json"
UNLIKE = "unlike_training"
"""Key of `model.json`; the tensors lie in `model.safetensors`."""


@dataclass(frozen=True)
class ModelInfo:
    """The content of `model.json`.

    Attributes:
        backbone: Name for `create_backbone`.
        head: Name of the head, or ``None`` for a module of the user's own.
        head_args: What else its head is built with.
        class_names: In index order.
        preprocessing: Facts that travel with the weights.
        weights_source: Where the backbone's starting weights came from.
        calibration: A `FittedCalibration`, which makes predictions that can be trusted of outputs; of method ``"none"``
            until it is fitted.
        license: Of the backbone's weights, where known.
        backbone_args: Of the backbone's constructor.
        versions: Of the libraries that wrote the model.
        sha256: Hex digest of the weights file.
        task: The kind of answer; a `model.json` of the first release names none, it knew classification only.
        target_facts: What travels with the names, see `TargetSpec`.
        unlike: Of the distance from the training pictures, see `TrainingDistance.to_dict`; ``None`` where the model
            keeps none, as those of the first release.
    """

    backbone: str
    head: str | None
    class_names: tuple[str, ...]
    preprocessing: DataConfig
    weights_source: str
    calibration: Any = field(default_factory=Calibration)
    license: str | None = None
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    head_args: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""
    task: str = CLASSIFICATION
    target_facts: Mapping[str, Any] = field(default_factory=dict)
    unlike: Mapping[str, Any] | None = None

    @property
    def target_spec(self) -> TargetSpec:
        """The meaning of the model's answers."""
        return TargetSpec(self.class_names, self.target_facts)

    def calibrated(self, calibration: FittedCalibration) -> Self:
        """Return the facts of the model with another calibration."""
        own = {name: value for name, value in self.target_facts.items() if name not in self.calibration.facts}
        facts = {**own, **calibration.facts}
        return replace(self, calibration=calibration, target_facts=facts)

    @property
    def targets(self) -> Targets:
        """The meaning that labels have to the model."""
        return task_named(self.task).targets.of(self.target_spec)


def versions() -> dict[str, str]:
    """Return the versions of Python, transferkit and the libraries a result depends on."""
    return {
        "python": platform.python_version(),
        "transferkit": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "timm": timm.__version__,
        "lightning": L.__version__,
    }


def save_model(
    directory: Path,
    module: TransferModule,
    *,
    head: str | None = None,
    head_args: Mapping[str, Any] | None = None,
    calibration: FittedCalibration | None = None,
    preprocessing: DataConfig | None = None,
) -> ModelInfo:
    """Write a module as a product; the weights first, so that `model.json` never describes a file that is not there.

    Args:
        directory: Where the two files go.
        module: The trained module.
        head: Name of its head, where the module was not built by one.
        head_args: What else that head is built with; plain values.
        calibration: Of its logits.
        preprocessing: How its pictures were prepared, where that is not the module's own.

    Raises:
        ConfigError: The module has an adapter.
        StorageError: The disk is full or read-only.
    """
    if module.adapter is not None:
        raise ConfigError(
            "the model has an adapter, and a product is a plain model - call module.merge_adapter(images) first"
        )
    hparams = dict(module.hparams)
    tensors, places = {}, set()
    for name, tensor in product_of(module).state_dict().items():
        tensors[name] = tensor.detach().cpu().contiguous()
        if tensors[name].data_ptr() in places:  # one tensor under two names: the file holds it twice
            tensors[name] = tensors[name].clone()
        places.add(tensors[name].data_ptr())
    atomic_write(directory / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    info = ModelInfo(
        backbone=module.backbone.name,
        head=head or hparams.get("head"),
        head_args=dict(head_args or {}),
        class_names=module.class_names,
        preprocessing=preprocessing or module.data_config,
        weights_source=module.backbone.weights_source,
        license=module.backbone.license,
        backbone_args=hparams.get("backbone_args", {}),
        versions=versions(),
        sha256=sha256_of_file(directory / WEIGHTS),
        task=module.task.name,
        target_facts=module.target_spec.facts,
        unlike=None if module.unlike is None else module.unlike.to_dict(),
    ).calibrated(calibration or Calibration())
    save_info(directory, info)
    return info


def save_info(directory: Path, info: ModelInfo) -> None:
    """Write `model.json`, whole or not at all.

    Args:
        directory: Where `model.safetensors` lies.
        info: What to write.

    Raises:
        StorageError: The disk is full or read-only.
    """
    write_json(
        directory / INFO,
        {
            "format": FORMAT,
            "task": info.task,
            "spec": info.target_spec.to_dict(),
            "backbone": info.backbone,
            "head": info.head,
            "head_args": dict(info.head_args),
            "classes": list(info.class_names),
            "preprocessing": info.preprocessing.to_dict(),
            "temperature": info.calibration.temperature,
            "calibration": info.calibration.to_dict(),
            "weights_source": info.weights_source,
            "license": info.license,
            "backbone_args": dict(info.backbone_args),
            "versions": dict(info.versions),
            "sha256": info.sha256,
            **({} if info.unlike is None else {UNLIKE: dict(info.unlike)}),
        },
    )


def load_model(
    directory: str | Path, *, head: nn.Module | None = None, max_pixels: int | None = None
) -> tuple[TransferModule, ModelInfo]:
    """Rebuild a product in eval mode on the CPU.

    Args:
        directory: A run directory, or any folder with the two files.
        head: The head, for a model whose head was a module of the user's own.
        max_pixels: The largest picture to decode, in pixels; that of the model when ``None``.

    Raises:
        CheckpointError: A file is missing, damaged, of another kind, or of a newer transferkit.
    """
    folder = Path(user_path(str(directory)))
    info = read_info(folder)
    if max_pixels is not None:
        decoding = replace(info.preprocessing.decoding, max_pixels=max_pixels)
        info = replace(info, preprocessing=replace(info.preprocessing, decoding=decoding))
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{weights}: missing, expected it beside {INFO} - run `finetune` again")
    if sha256_of_file(weights) != info.sha256:
        raise CheckpointError(f"{weights}: does not match the sha256 in {INFO} - the file is damaged; copy it again")
    config, spec, task = info.preprocessing, info.target_spec, task_named(info.task)
    chosen = head if head is not None else info.head
    if chosen is None:
        raise CheckpointError(f"{folder}: the head is a module of your own - pass it: load_model(run, head=...)")
    backbone = create_backbone(
        info.backbone,
        weights="random",
        image_size=config.image_size,
        channels=config.channels,
        backbone_args=info.backbone_args,
    )
    backbone.data_config = config
    if chosen == KNN:
        try:
            chosen = NeighbourHead(backbone.num_features, len(info.class_names), **info.head_args)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{folder / INFO}: head_args cannot be right ({first_line(error)}) - copy it again"
            ) from error
    module = TransferModule(
        backbone, task.heads.width(spec), chosen, class_names=spec.names, task=task, target_facts=spec.facts
    )
    if info.unlike is not None:
        try:
            module.unlike = TrainingDistance.from_dict(info.unlike)
        except CheckpointError as error:
            raise CheckpointError(f"{folder / INFO}: {error}") from error
    try:
        state, product = load_file(weights), product_of(module)
        bad = not_finite(state, product)
        product.load_state_dict(state)
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{weights}: does not fit {info.backbone} ({error}) - was {INFO} edited?") from error
    if bad:
        raise CheckpointError(f"{weights}: NaN or infinity in {listing(bad)} - its training diverged: train anew")
    return module.eval(), info


def read_info(folder: Path) -> ModelInfo:
    """Return the content of the `model.json` in a folder. Raises `CheckpointError`."""
    path = folder / INFO
    if not path.is_file():
        raise CheckpointError(f"{path}: missing - expected the directory of a finished run")
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}) - copy it again") from error
    if not isinstance(values, dict) or type(values.get("format")) is not int:
        raise CheckpointError(f"{path}: not a transferkit model - expected the directory of a finished run")
    if values["format"] > FORMAT:
        writer = dict(values["versions"]).get("transferkit") if isinstance(values.get("versions"), dict) else "?"
        raise CheckpointError(f"{path}: written by transferkit {writer}, newer than this one ({__version__}) - upgrade")
    needed = ("backbone", "head", "classes", "preprocessing", "temperature", "weights_source", "license",
              "backbone_args", "versions", "sha256")  # fmt: skip
    values.setdefault("head_args", {})  # models written before there were any
    missing = [key for key in needed if key not in values]
    if missing:
        raise CheckpointError(f"{path}: {', '.join(missing)} missing - was it edited? Copy it again")
    wrong = [f"{key} is {shown(values[key])}" for key, kind in _KINDS.items() if not isinstance(values[key], kind)]
    if wrong:
        raise CheckpointError(f"{path}: {gather(wrong)} - was it edited? Copy it again")
    task, spec = _task(values, path)
    try:
        preprocessing = DataConfig.from_dict(values["preprocessing"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error} - was it edited? Copy it again") from error
    return ModelInfo(
        class_names=spec.names,
        preprocessing=preprocessing,
        calibration=_calibration(values, task, path=path),
        task=task.name,
        target_facts=spec.facts,
        unlike=values.get(UNLIKE),
        **{name: values[name] for name in ("backbone", "head", "head_args", "weights_source", "license",
                                           "backbone_args", "versions", "sha256")},
    )  # fmt: skip


_KINDS: Mapping[str, Any] = {
    "backbone": str, "head": str | None, "head_args": dict, "weights_source": str, "license": str | None,
    "backbone_args": dict, "versions": dict, "sha256": str,
}  # fmt: skip
"""Types of plain values of `model.json`."""


def _task(values: Mapping[str, Any], path: Path) -> tuple[Task, TargetSpec]:
    """Return the kind of answer that a model gives, and what its answers mean."""
    try:
        task = task_named(str(values.get("task", CLASSIFICATION)))
        spec = TargetSpec.from_dict(values.get("spec") or {"names": values["classes"], "facts": {}})
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error} - register the task before the model is loaded") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the spec cannot be read ({error}) - was it edited? Copy it again") from error
    return task, spec


def _calibration(values: Mapping[str, Any], task: Task, *, path: Path) -> FittedCalibration:
    """Return the calibration of a model's facts; models written before there was one have a temperature at most."""
    if "calibration" in values:
        facts = values["calibration"]
        if task.calibrator is None or (isinstance(facts, Mapping) and facts.get("method") == "none"):
            return Calibration()
        try:
            fitted: FittedCalibration = task.calibrator.read(facts)
            return fitted
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    temperature = values["temperature"]
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise CheckpointError(f"{path}: temperature is {shown(temperature)}, expected a number above 0 - copy it again")
    return Calibration() if temperature == 1.0 else Calibration(method="temperature", temperature=temperature)


def product_of(module: TransferModule) -> nn.ModuleDict:
    """Backbone, head, and the distance from the training pictures: metrics are no part of the product."""
    parts = {"backbone": module.backbone, "head": module.head}
    return nn.ModuleDict(parts if module.unlike is None else {**parts, "unlike": module.unlike})
