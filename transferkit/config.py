"""The options of every verb, once: at the same time flags, recipe keys and Python keyword arguments.

Plain data and its checks; nothing heavy is imported, so that `--help` and mistakes are answered at once. It lies below
the wings, because they read it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from transferkit.errors import ConfigError, did_you_mean, gather

__all__ = ["REQUIRED", "BackbonesConfig", "CheckConfig", "FinetuneConfig", "PredictConfig", "make_config"]

Config = TypeVar("Config")


def option(default: Any, text: str) -> Any:
    """Declare an option with its default and its help text, units included."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


REQUIRED = ""  # the empty string is never a valid path, so it can stand for "not given"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where pictures come from and how they are split."""

    data: str = option(
        REQUIRED, "folder/<class>/*, folder/{train,val,test}/<class>/*, a CSV/Parquet manifest, or 'sample'"
    )
    val_split: float = option(0.15, "share of a folder without splits that becomes the validation split, [0, 1)")
    test_split: float = option(0.15, "share of a folder without splits that becomes the test split, [0, 1)")
    skip_bad: bool = option(False, "drop unreadable pictures before splitting and list them, instead of stopping")
    allow_empty_classes: bool = option(False, "keep a class without pictures as an output of the model")
    allow_leaks: bool = option(False, "go on although the same picture is in two splits or has two labels")
    seed: int = option(0, "seed of splits, initialisation, sample order and augmentation")

    def data_problems(self) -> list[str]:
        """Return what is wrong with these options."""
        found = [] if self.data else ["--data is missing, expected a folder, a manifest or 'sample'"]
        for name in ("val_split", "test_split"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                found.append(f"--{name.replace('_', '-')} is {value}, expected a share in [0, 1)")
        if not found and self.val_split + self.test_split >= 1.0:
            found.append(f"--val-split {self.val_split} and --test-split {self.test_split} leave nothing to train on")
        if not 0 <= self.seed < 2**32:
            found.append(f"--seed is {self.seed}, expected a whole number in [0, 2**32)")
        return found


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(DataOptions):
    """Fine-tune a pretrained backbone on a folder of pictures; writes a run directory."""

    backbone: str = option("transferkit/mini", "a timm name, torchvision/NAME, transferkit/mini or a registered name")
    weights: str = option("pretrained", "{pretrained|bundled|random|FILE|hf-hub:ID}; never random unless asked for")
    init_from: str | None = option(
        None, "start from the weights of this run directory, model.safetensors or checkpoint"
    )
    head: str = option("linear", "linear, mlp, cosine or a registered head")
    drop_rate: float = option(0.0, "dropout in the head, [0, 1)")
    phases: str | list[dict[str, Any]] = option(
        "probe-finetune", "{probe|finetune|probe-finetune|gradual}, or a list of phases in a recipe"
    )
    epochs: int = option(10, "fine-tuning epochs (of the probe, when only the probe is trained)")
    probe_epochs: int = option(3, "epochs of the head alone, before fine-tuning")
    lr: float = option(1e-3, "peak learning rate of the head while fine-tuning, per step")
    probe_lr: float = option(1e-2, "peak learning rate of the head while it is trained alone, per step")
    schedule: str | dict[str, Any] = option("cosine", "constant, cosine, one_cycle or sgdr; options in a recipe")
    warmup_epochs: float = option(0.5, "linear warmup of the schedules that have one, in epochs")
    layer_decay: float = option(0.75, "peak LR of a layer group over that of the next one nearer the head, (0, 1]")
    optimizer: Literal["adamw", "sgd", "adam", "rmsprop"] = option("adamw", "the optimizer")
    weight_decay: float = option(0.05, "weight decay; never applied to biases and norms")
    momentum: float = option(0.9, "momentum of sgd and rmsprop, [0, 1)")
    nesterov: bool = option(True, "Nesterov momentum for sgd")
    clip: float | None = option(1.0, "largest gradient norm; 'null' for no clipping")
    label_smoothing: float = option(0.1, "label smoothing of the training loss, [0, 1)")
    batch_size: int = option(32, "pictures per step and device")
    patience: int | None = option(None, "stop when this many epochs of the last phase bring no improvement")
    monitor: Literal["val_loss", "val_acc"] = option("val_acc", "what the best epoch is chosen by")
    image_size: int | None = option(None, "side of the model's input in pixels; default: the backbone's own")
    augment: Literal["none", "light", "standard", "heavy"] = option("light", "strength of training augmentation")
    precision: Literal["auto", "32", "bf16"] = option("auto", "auto measures which is faster on this machine")
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = option("auto", "where to train")
    devices: int = option(1, "number of devices")
    workers: int | None = option(None, "decoding processes; default: what the processor has room for")
    out: str | None = option(None, "run directory; default: runs/<data>-<backbone>-<n>")
    resume: bool = option(False, "go on with the run in --out, exactly where it stopped")
    overwrite: bool = option(False, "replace the run in --out; it is deleted only when the new one is done")
    quiet: bool = option(False, "no progress bars, no summary")

    def problems(self) -> list[str]:
        """Return everything that is wrong with these options; empty when they can be tried."""
        found = self.data_problems()
        for name in ("epochs", "probe_epochs", "batch_size", "devices"):
            found += _at_least(name, getattr(self, name), 1)
        for name in ("patience", "image_size"):
            if getattr(self, name) is not None:
                found += _at_least(name, getattr(self, name), 1)
        if self.workers is not None:
            found += _at_least("workers", self.workers, 0)
        for name in ("lr", "probe_lr"):
            found += _positive(name, getattr(self, name))
        if self.clip is not None:
            found += _positive("clip", self.clip)
        for name in ("drop_rate", "momentum", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                found.append(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected a number in [0, 1)")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            found.append(f"--weight-decay is {self.weight_decay}, expected a finite number of at least 0")
        if not 0.0 < self.layer_decay <= 1.0:
            found.append(f"--layer-decay is {self.layer_decay}, expected a ratio in (0, 1]")
        if not (math.isfinite(self.warmup_epochs) and self.warmup_epochs >= 0):
            found.append(f"--warmup-epochs is {self.warmup_epochs}, expected a number of at least 0")
        if self.resume and self.overwrite:
            found.append("--resume and --overwrite exclude each other, expected at most one of them")
        if self.resume and self.out is None:
            found.append("--resume needs --out, the run directory to go on with")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a recipe writes them."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class CheckConfig(DataOptions):
    """Audit a data folder: unreadable, duplicate and leaking pictures, imbalance, classes without a split."""

    quiet: bool = option(False, "no progress bar")

    def problems(self) -> list[str]:
        """Return everything that is wrong with these options."""
        return self.data_problems()


@dataclass(frozen=True, kw_only=True)
class BackbonesConfig:
    """List, search and describe backbones."""

    pattern: str = option("*", "names to list, with * and ?; a full name is described")
    pretrained: bool = option(False, "only those that have pretrained weights")
    describe: bool = option(False, "parameters, feature width, input size, licence and layer groups of each match")

    def problems(self) -> list[str]:
        """Return everything that is wrong with these options."""
        return []


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Predict the class of pictures with the model of a run directory; CSV on standard output or in a file."""

    run: str = option(REQUIRED, "run directory of a finished run")
    paths: list[str] = option([], "pictures, or folders of pictures")
    out: str | None = option(None, "CSV file to write; default: standard output")
    batch_size: int = option(32, "pictures per forward pass")
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = option("auto", "where to compute")

    def problems(self) -> list[str]:
        """Return everything that is wrong with these options."""
        found = [] if self.run else ["RUN is missing, expected a run directory"]
        found += [] if self.paths else ["PATH is missing, expected pictures or folders"]
        return found + _at_least("batch_size", self.batch_size, 1)


def _at_least(name: str, value: int, low: int) -> list[str]:
    return [] if value >= low else [f"--{name.replace('_', '-')} is {value}, expected a whole number of at least {low}"]


def _positive(name: str, value: float) -> list[str]:
    if math.isfinite(value) and value > 0:
        return []
    return [f"--{name.replace('_', '-')} is {value}, expected a finite number above 0"]


def make_config(kind: type[Config], options: Mapping[str, Any]) -> Config:
    """Build a verb's options from keyword arguments, with every mistake in one error.

    Args:
        kind: One of this module's dataclasses.
        options: Values by field name.

    Raises:
        ConfigError: A name is unknown, a value has the wrong type or is out of range.
    """
    known: dict[str, Field[Any]] = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    problems = [f"unknown option {key!r}.{did_you_mean(key, known)}" for key in options if key not in known]
    for key, item in known.items():
        if key in options:
            problems += _type_problem(key, options[key], str(item.type))
    if problems:
        raise ConfigError(gather(problems))
    config = kind(**{key: _plain(value, str(known[key].type)) for key, value in options.items()})
    problems = config.problems()  # type: ignore[attr-defined]
    if problems:
        raise ConfigError(gather(problems))
    return config


def default_of(item: Field[Any]) -> Any:
    """Return a field's default value."""
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def _plain(value: Any, annotation: str) -> Any:
    """Turn a path-like into text and a whole number into a float where the option is one."""
    if annotation.startswith("str") and isinstance(value, os.PathLike):
        return os.fspath(value)
    if annotation.startswith("float") and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _type_problem(name: str, value: Any, annotation: str) -> list[str]:
    """Return what is wrong with a value's type; the annotations of this module are a small closed set."""
    if value is None:
        return [] if "None" in annotation else [f"{name} is None, expected {annotation}"]
    if annotation.startswith("Literal["):
        choices = [part.strip(" \"'") for part in annotation[len("Literal[") : -1].split(",")]
        if value in choices:
            return []
        return [f"{name} is {value!r}.{did_you_mean(str(value), choices)} Expected one of {', '.join(choices)}"]
    accepted = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
        "str": isinstance(value, str | os.PathLike),
        "list[str]": isinstance(value, list) and all(isinstance(part, str) for part in value),
        "list[dict[str, Any]]": isinstance(value, list | tuple),
        "dict[str, Any]": isinstance(value, Mapping),
    }
    if any(accepted[part.strip()] for part in annotation.split(" | ") if part.strip() != "None"):
        return []
    return [f"{name} is {value!r}, expected {annotation.replace('dict[str, Any]', 'a mapping')}"]
