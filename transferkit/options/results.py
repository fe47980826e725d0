"""The options of the verbs that use a finished run: to measure, ask, explain, report, export and serve it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transferkit.core.errors import CheckpointError
from transferkit.options.data import SEED
from transferkit.options.fields import POSITIVE, REQUIRED, Options, Range, at_least, option

__all__ = [
    "CalibrateConfig",
    "EvaluateConfig",
    "ExplainConfig",
    "ExportConfig",
    "PredictConfig",
    "ReportConfig",
    "ServeConfig",
    "SimilarConfig",
]

TTA = ("none", "flip", "5crop")

NO_RUN = "RUN is missing, expected a run directory"
NO_DATA = "DATA is missing, expected a labelled folder, a manifest or 'sample'"
NO_PATHS = "PATH is missing, expected pictures, folders, globs or -"
MAX_PIXELS = "largest picture that is decoded, in pixels; default: the model's, which is 100 million unless set"
PATH_COLUMN = "column of a manifest with the paths; default: that of the run's own where it is there, else path"
ROOT = "folder that a manifest's paths are relative to; default: of the run's own manifest as it was, else its folder"
RESCAN = "read and hash every labelled file again, instead of trusting what is known of files that are as they were"
RESCAN_TRAINED = "read and hash every training picture again, instead of trusting what is known of files as they were"
RATE = Range("a rate in (0, 1), such as 0.95", lambda value: 0.0 < value < 1.0)
PORT = Range("a port in [0, 65535]", lambda value: 0 <= value <= 65535)
WAIT = Range("milliseconds in [0, 1000]", lambda value: 0.0 <= value <= 1000.0)


def _require_run(run: str) -> None:
    """Check that a run's directory is there. Raises `CheckpointError`."""
    if not Path(run).exists():
        raise CheckpointError(f"{run}: does not exist - expected the directory of a finished run")


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """A finished run, and the machine its model runs on."""

    run: str = option(REQUIRED, "run directory of a finished run", missing=NO_RUN)
    batch_size: int | None = option(None, "pictures per forward pass; default: what suits the device", at_least(1))
    workers: int | None = option(None, "decoding processes; default: what the processor has room for", at_least(0))
    precision: Literal["32", "bf16"] = option(
        "32", "bf16 may be faster where the processor has it, and may flip close calls"
    )
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = option("auto", "where to compute")
    max_pixels: int | None = option(None, MAX_PIXELS, at_least(1))

    def require_places(self) -> None:
        """Check that the run is there. Raises `CheckpointError`."""
        super().require_places()
        _require_run(self.run)


@dataclass(frozen=True, kw_only=True)
class LabelledOptions(RunOptions):
    """Labelled pictures that a run is asked about; a manifest is read as the run's own was."""

    path_column: str | None = option(None, PATH_COLUMN)
    root: str | None = option(None, ROOT)
    rescan: bool = option(False, RESCAN)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(LabelledOptions):
    """Measure a run on a labelled folder or manifest; writes a directory with metrics, tables, plots and a report."""

    data: str = option(
        REQUIRED, "folder/<class>/*, folder/{train,val,test}/<class>/*, a manifest, or 'sample'", missing=NO_DATA
    )
    split: Literal["auto", "train", "val", "test", "all"] = option(
        "auto", "which pictures of data with splits: auto takes every split but train, all takes them together"
    )
    against: str | None = option(None, "another run directory, compared picture by picture")
    unlike: str | None = option(
        None, "a folder of pictures that belong to no class: how well the model tells them from the labelled ones"
    )
    corruptions: bool = option(
        False, "also on the pictures spoilt by noise, blur, JPEG, light, contrast and tilt, at three strengths"
    )
    unseen_only: bool = option(False, "leave out pictures that the run was trained on")
    check_classes: bool = option(False, "fail when the classes are not exactly those of the model")
    skip_bad: bool = option(False, "leave unreadable pictures out and list them, instead of stopping")
    tta: str = option("none", "{none|flip|5crop|K}: probabilities averaged over views of each picture")
    seed: int = option(0, "seed of the bootstrap, and of K augmented views", SEED)
    out: str | None = option(None, "directory to write; default: runs/<data>-<run>-evaluate-<n>")
    report: Literal["on", "off"] = option("on", "write report.html")
    overwrite: bool = option(False, "replace what is in --out; it is deleted only when the new one is done")
    quiet: bool = option(False, "no progress bars, no summary")

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        yield from _tta_problems(self.tta)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunOptions):
    """Predict what the model of a run directory says of pictures: CSV, JSON lines or COCO results, masks as PNG."""

    paths: list[str] = option(
        [], "pictures, folders of pictures, globs, or - for a list on standard input", missing=NO_PATHS
    )
    out: str | None = option(None, "file to write, .csv, .jsonl or, of boxes, .json; default: CSV on standard output")
    masks: str | None = option(None, "of masks: folder for a PNG of each; default: NAME-masks beside --out NAME.csv")
    overwrite: bool = option(False, "replace the file in --out, and masks of an earlier time")
    format: Literal["auto", "csv", "jsonl", "coco"] = option(
        "auto",
        "auto follows the name of --out; coco: of boxes, one .json for tools that measure detections",
    )
    coco_ids: str | None = option(
        None, "of --format coco: COCO file whose ids of images and categories are used; default: by file name and index"
    )
    top_k: int | None = option(None, "of one class per picture: most probable ones to tell; default: 3", at_least(1))
    tta: str = option("none", "{none|flip|5crop|K}: probabilities averaged over views of each picture")
    abstain: float | None = option(
        None, "give a label only where the calibrated model can, at this rate, in (0, 1)", RATE
    )
    abstain_by: Literal["sets", "thresholds"] | None = option(
        None, "sets (default): the conformal set of that coverage holds one class; thresholds: its precision per class"
    )
    coverage: float | None = option(
        None, "of numbers: share of the true ones that intervals shall hold, in (0, 1); default: 0.9", RATE
    )
    unknown: float | None = option(
        None,
        "label 'unknown' for pictures further from the training pictures than this share of held-out ones, in (0, 1)",
        RATE,
    )
    check_classes: bool = option(False, "fail when a folder's class folders are not exactly the model's classes")
    strict: bool = option(False, "stop at the first picture that cannot be read")
    seed: int = option(0, "seed of K augmented views", SEED)
    quiet: bool = option(False, "no progress bar")

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        yield from _tta_problems(self.tta)
        if self.abstain_by is not None and self.abstain is None:
            yield f"--abstain-by {self.abstain_by} says how --abstain decides - pass --abstain, such as 0.95, too"


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(LabelledOptions):
    """Calibrate a run on labelled pictures it was not trained on; rewrites its model.json."""

    data: str = option(REQUIRED, "labelled folder, manifest or 'sample'; pictures the run was trained on are left out")
    split: Literal["auto", "val", "test", "all"] = option("auto", "auto takes val where there is one, else all")
    method: Literal["auto", "temperature", "vector", "conformal", "none"] = option(
        "auto", "one number for all logits (auto) or a scale and a shift per class; intervals of numbers: conformal "
        "(auto); none takes calibration off",
    )  # fmt: skip
    label_precision: float | None = option(
        None, "of several labels: precision that each threshold shall reach, in (0, 1); default: the largest F1", RATE
    )
    seed: int = option(0, "seed of the folds", SEED)
    quiet: bool = option(False, "no progress bar, no summary")

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        if self.method == "none" and self.label_precision is not None:
            yield "--label-precision chooses thresholds, and --method none takes them off - leave one of them out"
        if not self.data and self.method != "none":
            yield NO_DATA


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(RunOptions):
    """Show why: heat maps of pictures, and the training pictures nearest to them."""

    paths: list[str] = option(
        [], "pictures, folders of pictures, globs, or - for a list on standard input", missing=NO_PATHS
    )
    out: str = option(
        REQUIRED,
        "directory to write: a PNG per picture and explain.csv",
        missing="--out is missing, expected a directory",
    )
    target: str | None = option(None, "class whose evidence is shown; default: the predicted one")
    neighbours: int = option(5, "nearest training pictures of each; 0 for none", at_least(0))
    rescan: bool = option(False, RESCAN_TRAINED)
    store: str | None = option(None, "directory of the feature store; default: in the user's cache")
    quiet: bool = option(False, "no progress bar")


@dataclass(frozen=True, kw_only=True)
class SimilarConfig(Options):
    """Find the pictures of a run's data that its model finds most like others; exact search on cached features."""

    run: str = option(REQUIRED, "run directory of a finished run", missing=NO_RUN)
    paths: list[str] = option(
        [], "pictures, folders of pictures, globs, or - for a list on standard input", missing=NO_PATHS
    )
    top: int = option(5, "similar pictures of each", at_least(1))
    data: str | None = option(
        None, "folder, manifest or 'sample' to search; default: the pictures the run was trained on, where they were"
    )
    split: Literal["auto", "train", "val", "test", "all"] = option(
        "auto", "which pictures are searched: auto takes train of the run, all of --data"
    )
    with_same: bool = option(False, "let a picture be similar to itself: the same bytes, or the same pixels")
    out: str | None = option(None, "file to write: .csv, .jsonl, or .html with the pictures; default: lines to read")
    overwrite: bool = option(False, "replace the file in --out")
    path_column: str | None = option(None, PATH_COLUMN)
    root: str | None = option(None, ROOT)
    store: str | None = option(None, "directory of the feature store; default: in the user's cache")
    rescan: bool = option(False, RESCAN_TRAINED)
    batch_size: int | None = option(None, "pictures per forward pass; default: what suits the device", at_least(1))
    workers: int | None = option(None, "decoding processes; default: what the processor has room for", at_least(0))
    precision: Literal["auto", "32", "bf16"] = option(
        "auto", "auto takes bf16 where it is faster and every row keeps a cosine of 0.9995 with fp32"
    )
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = option("auto", "where to compute")
    max_pixels: int | None = option(None, MAX_PIXELS, at_least(1))
    quiet: bool = option(False, "no progress bars, no summary")

    def require_places(self) -> None:
        """Check that the run is there. Raises `CheckpointError`."""
        super().require_places()
        _require_run(self.run)

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        if self.data is None and (self.path_column is not None or self.root is not None):
            yield "--path-column and --root say how the manifest of --data is read - pass --data, too"


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Write report.html of a run, or one page that compares several."""

    runs: list[str] = option(
        [], "run directories, or directories that evaluate wrote",
        missing="RUN is missing, expected one or more run directories",
    )  # fmt: skip
    out: str | None = option(None, "page to write; default: report.html in the run, or here for several runs")
    pictures: Literal["on", "off"] = option("on", "sample pictures, mistakes and heat maps inside the page")
    quiet: bool = option(False, "no progress bar, no summary")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Options):
    """Export a run's model; the file is reloaded and compared on real pictures before it appears."""

    run: str = option(REQUIRED, "run directory of a finished run", missing=NO_RUN)
    format: Literal["onnx", "torch", "safetensors", "skops"] = option(
        "onnx", "ONNX, torch.export, weights for plain timm, or the scikit-learn probe"
    )
    out: str | None = option(None, "file to write; default: the run's name, in the run directory")
    precision: Literal["32", "fp16", "int8"] = option("32", "of the weights; fp16 and int8 for ONNX only")
    preprocessing: Literal["outside", "inside"] = option(
        "outside", "inside: the ONNX graph takes uint8 pictures of any size and resizes and normalises them itself"
    )
    data: str | None = option(None, "labelled pictures to compare on; default: the run's own validation pictures")
    path_column: str | None = option(None, PATH_COLUMN)
    root: str | None = option(None, ROOT)
    pictures: int = option(200, "most pictures to compare on", at_least(1))
    rescan: bool = option(False, RESCAN)
    max_pixels: int | None = option(None, MAX_PIXELS, at_least(1))
    overwrite: bool = option(False, "replace the file in --out")
    quiet: bool = option(False, "no progress bar, no summary")

    def require_places(self) -> None:
        """Check that the run is there. Raises `CheckpointError`."""
        super().require_places()
        _require_run(self.run)

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        if self.format != "onnx" and (self.precision != "32" or self.preprocessing != "outside"):
            yield f"--precision and --preprocessing are for --format onnx, not for {self.format}"
        if self.data is None and (self.path_column is not None or self.root is not None):
            yield "--path-column and --root say how the manifest of --data is read - pass --data, too"


@dataclass(frozen=True, kw_only=True)
class ServeConfig(RunOptions):
    """Serve a run's model over HTTP: /predict, /health, OpenAPI documentation, and a page to drop pictures on."""

    host: str = option("127.0.0.1", "address to listen on; anything but loopback is open to the network")
    port: int = option(8000, "port to listen on; 0 for a free one", PORT)
    max_upload_mb: float = option(16.0, "largest picture taken, in megabytes", POSITIVE)
    max_requests: int = option(64, "requests under way at once; more are told to come back (503)", at_least(1))
    wait_ms: float = option(5.0, "how long a batch waits for more requests, in milliseconds", WAIT)
    top_k: int | None = option(None, "of one class per picture: most probable ones to tell; default: 5", at_least(1))
    neighbours: int = option(3, "nearest training pictures to show; 0 for none", at_least(0))
    rescan: bool = option(False, RESCAN_TRAINED)
    store: str | None = option(None, "directory of the feature store; default: in the user's cache")
    quiet: bool = option(False, "no line per request")


def _tta_problems(tta: str) -> Iterator[str]:
    if not (tta in TTA or (tta.isdecimal() and 1 <= int(tta) <= 100)):
        yield f"--tta is {tta!r}, expected {', '.join(TTA)} or a number of views from 1 to 100"
