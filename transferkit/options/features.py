"""The options of the verbs that work on features, and of the lists of backbones and of the feature store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from transferkit.core.errors import did_you_mean
from transferkit.core.text import shown
from transferkit.options.augment import augment_option, no_flip_problem
from transferkit.options.data import BackboneOptions, fit_problems
from transferkit.options.fields import NOT_NEGATIVE, Options, at_least, option
from transferkit.options.loggers import logger_args_option, logger_option, logger_problems

__all__ = [
    "BackbonesConfig",
    "CheckConfig",
    "ComputeOptions",
    "FeatureOptions",
    "FeaturesConfig",
    "ProbeConfig",
    "StoreConfig",
]


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(BackboneOptions):
    """The store of features, and the machine they are computed on."""

    store: str | None = option(None, "directory of the feature store; default: in the user's cache")
    precision: Literal["auto", "32", "bf16"] = option(
        "auto", "auto takes bf16 where it is faster and every row keeps a cosine of 0.9995 with fp32"
    )
    compile: Literal["auto", "on", "off"] = option("auto", "compile the backbone; auto where the pictures pay for it")
    batch_size: int | None = option(None, "pictures per forward pass; default: what suits the device", at_least(1))
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = option("auto", "where to compute")
    workers: int | None = option(None, "decoding processes; default: what the processor has room for", at_least(0))


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(ComputeOptions):
    """Features of the pictures: of which layer, and of which views."""

    layer: str = option(
        "pooled", "{pooled|stageN|NAME|all}: the penultimate layer, a stage, or every depth in one pass"
    )
    pool: Literal["avg", "max", "avgmax", "cls"] | None = option(
        None, "how a feature map becomes a vector; default: the backbone's own, the average for stages"
    )
    views: int = option(0, "augmented views of each picture, kept besides the evaluation view", at_least(0))
    augment: str | list[Any] = augment_option("the augmented views")
    no_flip: bool = option(False, "augmentation mirrors no picture: for arrows, digits, text, left and right")

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        yield from no_flip_problem(self.augment, self.no_flip)
        if self.views and self.augment == "none":
            yield "--views without augmentation are all the same - pass --augment light, standard or heavy"


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(FeatureOptions):
    """Extract penultimate features of a folder into the store, and export them."""

    out: str | None = option(None, "also write the features to this .npz, .parquet or .csv")
    quiet: bool = option(False, "no progress bars, no summary")


@dataclass(frozen=True, kw_only=True)
class CheckConfig(ComputeOptions):
    """Audit a data folder: files, copies, labels, outliers, splits; writes check.html and check.json."""

    tile: bool = option(False, "of masks: say how many windows of --image-size there are, as finetune --tile sees them")
    quick: bool = option(False, "only what needs no network: no likely wrong labels, outliers or mirrored classes")
    fix: str | None = option(None, "write a cleaned manifest to this .csv, for finetune --data; pictures stay")
    fix_labels: Literal["keep", "drop", "relabel"] = option(
        "keep", "what --fix does with training pictures whose labels are likely wrong: look at them first"
    )
    out: str | None = option(None, "directory for check.html and check.json; default: runs/<data>-check-<n>")
    overwrite: bool = option(False, "replace check.html and check.json in --out, and the manifest of --fix")
    quiet: bool = option(False, "no progress bars")

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        yield from fit_problems(self.fit, tile=self.tile)
        if self.fix_labels != "keep" and self.fix is None:
            yield f"--fix-labels {self.fix_labels} changes nothing without --fix: name the manifest to write"
        if self.fix_labels != "keep" and self.quick:
            yield f"--fix-labels {self.fix_labels} needs a network to tell which: leave out --quick"
        if self.fix is not None and not self.fix.lower().endswith(".csv"):
            yield f"--fix {shown(self.fix)}: expected the name of a .csv file to write"


CLASSIFIERS = ("auto", "logistic", "knn", "ridge")
"""Those that are known by name."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(FeatureOptions):
    """Fit a classifier on cached features; writes a run directory."""

    classifier: str = option(
        "auto", "{auto|logistic|knn|ridge|IMPORT.PATH} of any scikit-learn classifier; auto: logistic, of numbers ridge"
    )
    classifier_args: dict[str, Any] | None = option(None, "arguments of the scikit-learn classifier; in a recipe")
    class_weight: Literal["none", "balanced"] = option("none", "balanced weighs rare classes up")
    folds: int = option(
        5, "most folds of the cross-validation inside the training split; of more than 20,000 rows fewer", at_least(2)
    )
    use_views: Literal["sample", "average"] = option(
        "sample", "with --views: every view is a training row of its own, or a picture's views are averaged"
    )
    depth: bool = option(False, "also probe every stage: accuracy over depth, with a plot")
    learning_curve: bool = option(False, "also fit on 10, 20, 40, 80 and 100 % of the labels, with a plot")
    calibrate: Literal["auto", "temperature", "vector", "conformal", "none"] = option(
        "auto", "fit the confidence on val: one number for all logits (auto) or a scale and a shift per class; "
        "intervals of numbers: conformal (auto)",
    )  # fmt: skip
    data: str = option("", "folder/<class>/*, folder/{train,val,test}/<class>/*, a CSV/Parquet manifest, or 'sample'")
    add: str | None = option(None, "instead of --data: pictures to add to a run of --classifier ridge, named by --to")
    to: str | None = option(None, "the run that classes and pictures of --add are added to, exactly, without its own")
    report: Literal["on", "off"] = option("on", "write report.html")
    logger: str | list[str] | None = logger_option()
    logger_args: dict[str, Any] | None = logger_args_option()
    out: str | None = option(None, "run directory; default: runs/<data>-<backbone>-probe-<n>")
    overwrite: bool = option(False, "replace the run in --out; it is deleted only when the new one is done")
    quiet: bool = option(False, "no progress bars, no summary")

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        yield from logger_problems(self.logger, self.logger_args)
        if "." not in self.classifier and self.classifier not in CLASSIFIERS:
            yield (
                f"unknown classifier {self.classifier!r}.{did_you_mean(self.classifier, CLASSIFIERS)} Expected "
                f"{', '.join(CLASSIFIERS)} or the import path of a scikit-learn classifier, such as sklearn.svm.SVC"
            )
        if self.add is None and self.to is None and not self.data:
            yield "--data is missing, expected a folder, a manifest or 'sample'"
        if (self.add is None) != (self.to is None):
            yield "--add and --to belong together: pictures, and the run of --classifier ridge to add them to"
        if self.add is not None:
            only = {"--data": self.data, "--views": self.views, "--depth": self.depth,
                    "--learning-curve": self.learning_curve, "--classifier-args": self.classifier_args}  # fmt: skip
            yield from (f"{name} cannot be had with --add" for name, value in only.items() if value)
            if self.classifier not in ("auto", "ridge") or self.class_weight != "none":
                yield "--add goes on with ridge, rows counting alike - leave --classifier and --class-weight out"
        if self.use_views == "average" and not self.views:
            yield "--use-views average says what becomes of --views, and there are none - pass --views, such as 4, too"
        if self.layer == "all":
            yield "--layer all gives several sets of features - name one, or pass --depth to compare them"


@dataclass(frozen=True, kw_only=True)
class StoreConfig(Options):
    """List, verify or clean the feature store and the pixel store."""

    action: Literal["list", "verify", "gc"] = option("list", "{list|verify|gc}")
    store: str | None = option(None, "directory of the feature store; default: in the user's cache")
    unused_days: float | None = option(None, "gc: also remove sets that were not used for so many days", NOT_NEGATIVE)
    dry_run: bool = option(False, "gc: only say what would be removed")
    quiet: bool = option(False, "no progress bar")

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        if self.action != "gc" and (self.unused_days is not None or self.dry_run):
            yield f"--unused-days and --dry-run belong to 'store gc', not to 'store {self.action}'"


@dataclass(frozen=True, kw_only=True)
class BackbonesConfig(Options):
    """List, search and describe backbones."""

    pattern: str = option("*", "names to list, with * and ?; a full name is described")
    pretrained: bool = option(False, "only those that have pretrained weights")
    describe: bool = option(False, "parameters, feature width, input size, licence and layer groups of each match")
