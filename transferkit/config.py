"""The options of every verb, once: at the same time flags, recipe keys and Python keyword arguments.

Plain data and its checks; nothing heavy is imported, so that `--help` and mistakes are answered at once. It lies below
the wings, because they read it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from transferkit.declare import at_least, default_of, make_config, option, positive
from transferkit.errors import did_you_mean

__all__ = [
    "REQUIRED",
    "BackbonesConfig",
    "CheckConfig",
    "FeaturesConfig",
    "FinetuneConfig",
    "PredictConfig",
    "ProbeConfig",
    "StoreConfig",
    "default_of",
    "make_config",
]

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
    epochs: int = option(10, "fine-tuning epochs (of the probe, when only the probe is trained, by sgd)")
    probe: Literal["auto", "solve", "sgd"] = option(
        "auto", "the head alone is solved on cached features, or trained by sgd; auto solves a linear head"
    )
    probe_views: int = option(2, "augmented views of each training picture that a solved probe is fitted on")
    probe_epochs: int | None = option(None, "epochs of the head alone, where it is trained; default: 3")
    lr: float = option(1e-3, "peak learning rate of the head while fine-tuning, per step")
    probe_lr: float | None = option(None, "peak LR of the head while it is trained alone, per step; default: 0.01")
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
    keep_activations: Literal["auto", "off"] = option(
        "auto", "run the frozen part once a phase, where there is no augmentation and memory suffices"
    )
    store: str | None = option(None, "directory of the feature store; default: in the user's cache")
    out: str | None = option(None, "run directory; default: runs/<data>-<backbone>-<n>")
    resume: bool = option(False, "go on with the run in --out, exactly where it stopped")
    overwrite: bool = option(False, "replace the run in --out; it is deleted only when the new one is done")
    quiet: bool = option(False, "no progress bars, no summary")

    def problems(self) -> list[str]:
        """Return everything that is wrong with these options; empty when they can be tried."""
        found = self.data_problems()
        for name, low in (("epochs", 1), ("batch_size", 1), ("devices", 1), ("probe_views", 0)):
            found += at_least(name, getattr(self, name), low)
        for name in ("probe_epochs", "patience", "image_size"):
            if getattr(self, name) is not None:
                found += at_least(name, getattr(self, name), 1)
        if self.workers is not None:
            found += at_least("workers", self.workers, 0)
        for name in ("lr", "probe_lr", "clip"):
            if getattr(self, name) is not None:
                found += positive(name, getattr(self, name))
        if self.probe == "solve":
            if self.head != "linear":
                found.append(f"--probe solve fits a linear head, not {self.head!r} - pass --probe sgd")
            for name in ("probe_epochs", "probe_lr"):
                if getattr(self, name) is not None:
                    found.append(f"--{name.replace('_', '-')} belongs to --probe sgd; a solved probe has none")
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

    @property
    def solves_probe(self) -> bool:
        """Whether the head alone is solved on cached features; by default where it can be and SGD is not set up."""
        if self.probe == "auto":
            return self.head == "linear" and self.probe_epochs is None and self.probe_lr is None
        return self.probe == "solve"

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a recipe writes them."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(DataOptions):
    """Which features of the pictures, where they are kept, and what they are computed with."""

    backbone: str = option("transferkit/mini", "a timm name, torchvision/NAME, transferkit/mini or a registered name")
    weights: str = option("pretrained", "{pretrained|bundled|random|FILE|hf-hub:ID}; never random unless asked for")
    image_size: int | None = option(None, "side of the model's input in pixels; default: the backbone's own")
    layer: str = option(
        "pooled", "{pooled|stageN|NAME|all}: the penultimate layer, a stage, or every depth in one pass"
    )
    pool: Literal["avg", "max", "avgmax", "cls"] | None = option(
        None, "how a feature map becomes a vector; default: the backbone's own, the average for stages"
    )
    views: int = option(0, "augmented views of each picture, kept besides the evaluation view")
    augment: Literal["none", "light", "standard", "heavy"] = option("light", "strength of the augmented views")
    store: str | None = option(None, "directory of the feature store; default: in the user's cache")
    precision: Literal["auto", "32", "bf16"] = option(
        "auto", "auto takes bf16 where it is faster and every row keeps a cosine of 0.9995 with fp32"
    )
    compile: Literal["auto", "on", "off"] = option("auto", "compile the backbone; auto where the pictures pay for it")
    batch_size: int | None = option(None, "pictures per forward pass; default: what suits the device")
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = option("auto", "where to compute")
    workers: int | None = option(None, "decoding processes; default: what the processor has room for")

    def feature_problems(self) -> list[str]:
        """Return what is wrong with these options."""
        found = self.data_problems() + at_least("views", self.views, 0)
        for name, low in (("image_size", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) is not None:
                found += at_least(name, getattr(self, name), low)
        if self.views and self.augment == "none":
            found.append("--views without augmentation are all the same - pass --augment light, standard or heavy")
        return found


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(FeatureOptions):
    """Extract penultimate features of a folder into the store, and export them."""

    out: str | None = option(None, "also write the features to this .npz, .parquet or .csv")
    quiet: bool = option(False, "no progress bars, no summary")

    def problems(self) -> list[str]:
        """Return everything that is wrong with these options."""
        return self.feature_problems()


CLASSIFIERS = ("logistic", "knn")
"""Those that are known by name."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(FeatureOptions):
    """Fit a classifier on cached features; writes a run directory."""

    classifier: str = option("logistic", "{logistic|knn|IMPORT.PATH} of any scikit-learn classifier")
    classifier_args: dict[str, Any] | None = option(None, "arguments of the scikit-learn classifier; in a recipe")
    class_weight: Literal["none", "balanced"] = option("none", "balanced weighs rare classes up")
    folds: int = option(5, "folds of the cross-validation inside the training split")
    use_views: Literal["sample", "average"] = option(
        "sample", "with --views: every view is a training row of its own, or a picture's views are averaged"
    )
    depth: bool = option(False, "also probe every stage: accuracy over depth, with a plot")
    learning_curve: bool = option(False, "also fit on 10, 20, 40, 80 and 100 % of the labels, with a plot")
    out: str | None = option(None, "run directory; default: runs/<data>-<backbone>-probe-<n>")
    overwrite: bool = option(False, "replace the run in --out; it is deleted only when the new one is done")
    quiet: bool = option(False, "no progress bars, no summary")

    def problems(self) -> list[str]:
        """Return everything that is wrong with these options."""
        found = self.feature_problems() + at_least("folds", self.folds, 2)
        if "." not in self.classifier and self.classifier not in CLASSIFIERS:
            found.append(
                f"unknown classifier {self.classifier!r}.{did_you_mean(self.classifier, CLASSIFIERS)} Expected "
                f"{', '.join(CLASSIFIERS)} or the import path of a scikit-learn classifier, such as sklearn.svm.SVC"
            )
        if self.layer == "all":
            found.append("--layer all gives several sets of features - name one, or pass --depth to compare them")
        return found


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """List, verify or clean the feature store."""

    action: Literal["list", "verify", "gc"] = option("list", "{list|verify|gc}")
    store: str | None = option(None, "directory of the feature store; default: in the user's cache")
    unused_days: float | None = option(None, "gc: also remove sets that were not used for so many days")
    dry_run: bool = option(False, "gc: only say what would be removed")
    quiet: bool = option(False, "no progress bar")

    def problems(self) -> list[str]:
        """Return everything that is wrong with these options."""
        if self.unused_days is not None and not (math.isfinite(self.unused_days) and self.unused_days >= 0):
            return [f"--unused-days is {self.unused_days}, expected a finite number of at least 0"]
        if self.action != "gc" and (self.unused_days is not None or self.dry_run):
            return [f"--unused-days and --dry-run belong to 'store gc', not to 'store {self.action}'"]
        return []


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
        return found + at_least("batch_size", self.batch_size, 1)
