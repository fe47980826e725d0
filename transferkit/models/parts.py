"""The parts of a task: what each of them does, whatever the kind of answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from transferkit.core.targets import TargetSpec
from transferkit.models.figures.compared import Compared
from transferkit.models.figures.figure import Figure
from transferkit.models.record_files import ObjectResults, Page, RecordFiles

if TYPE_CHECKING:
    from transferkit.machine.lightning_import import Metric

__all__ = [
    "ON_CANVAS",
    "UNKNOWN",
    "Calibrator",
    "Epochs",
    "FittedCalibration",
    "LossOptions",
    "Objective",
    "Output",
    "Record",
    "Request",
    "Scores",
]

Array = npt.NDArray[np.float32]

ON_CANVAS = (
    "Epochs are measured on the square that the network sees, a finished run at each picture's own size: their figures "
    "differ."
)
"""Of answers that lie on pixels, see `Epochs`."""

UNKNOWN = "unknown"
"""The label of a picture that is too unlike the training pictures."""


@dataclass(frozen=True)
class LossOptions:
    """What the training loss is made of.

    Attributes:
        name: Of the loss; ``"auto"`` for the task's own.
        focal_gamma: Of the focal loss, at least 0.
        class_weights: Weight of each class or label, in index order; ``None`` where all count alike.
        label_smoothing: In [0, 1).
    """

    name: str = "auto"
    focal_gamma: float = 2.0
    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Epochs:
    """What a reader has to know of the curves of a run.

    Attributes:
        val_loss: Name of the loss on `val` where it has another unit than that of training; empty where it has not.
        measured: A sentence on how epochs are measured otherwise than a finished run; empty where they are not.
    """

    val_loss: str = ""
    measured: str = ""


class Objective(Protocol):
    """What training minimises, and what is watched while it goes on."""

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the training losses, the usual one first."""

    @property
    def smoothing(self) -> float | None:
        """The usual label smoothing; ``None`` where there is no such thing."""

    @property
    def monitor(self) -> str:
        """The figure that usually chooses the epoch."""

    @property
    def running(self) -> tuple[str, ...]:
        """Figures of the running epoch besides the loss, such as ``("acc",)``: means over its pictures."""

    @property
    def by_heart(self) -> tuple[float, float]:
        """Shares that the loss comes down to where pictures are known by heart.

        In training of its first value, in evaluation of what guessing costs.
        """

    @property
    def watched(self) -> tuple[str, ...]:
        """Figures that are measured on `val` after every epoch, besides ``"loss"``."""

    @property
    def monitors(self) -> Mapping[str, bool]:
        """Every figure that may choose the epoch, and whether higher is better."""

    def loss(self, options: LossOptions, width: int) -> nn.Module:
        """Return the training loss: a module from outputs ``(B, width)`` and targets to a scalar.

        Raises:
            ConfigError: With everything that is wrong with the options.
        """

    def balanced(self, targets: Any, width: int) -> list[float]:
        """Return weights of the outputs that make rare answers count as much as frequent ones.

        Args:
            targets: ``(N, ...)`` of all training pictures; ``None`` of answers that lie on pixels.
            width: Of the outputs.

        Raises:
            ConfigError: There is nothing to balance.
        """

    def item_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the plain loss of each picture, ``(B,)``: what validation reports and probes minimise."""

    def scaled(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return outputs ``(N, width) float64`` divided by the one number that makes their mean loss lowest.

        By them models are compared that a calibration will follow. What has no such scale stays as it is.
        """

    def running_sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the figures `running` of a training batch, summed over its pictures: ``(len(running),)``."""

    def metrics(self, names: Sequence[str], width: int) -> dict[str, Metric]:
        """Return a metric for each of these figures; each is updated with activated outputs and targets."""


@dataclass(frozen=True)
class Request:
    """What of a prediction is wanted.

    Attributes:
        top_k: Most probable classes to name, at least 1; ``None`` for the usual number of them.
        sets: Whether there is a column for prediction sets.
        whole: Whether the record holds the whole prediction, too: of classification every class's probability.
        abstention: Decides whether there is an answer, from probabilities and their order; ``None``: always.
        coverage: Share of true numbers that intervals shall hold, in (0, 1); ``None`` for the usual one.
        unlike: Whether there is a column for how unlike the training pictures a picture is.
        unknown: Share of held-out pictures, in (0, 1), beyond which a picture is `UNKNOWN`; ``None``: none is.
        files: Whether there are columns for files that not every model of the task has.
    """

    top_k: int | None = None
    sets: bool = False
    whole: bool = True
    coverage: float | None = None
    unlike: bool = False
    unknown: float | None = None
    files: bool = False
    abstention: Callable[[Array, npt.NDArray[np.int64]], tuple[bool, tuple[str, ...]]] | None = None


class Record(Protocol):
    """What is said of one picture: a dataclass; the rest of it is the task's own."""

    @property
    def path(self) -> str:
        """The file, or the place among the pictures."""

    @property
    def error(self) -> str | None:
        """Why there is no prediction; ``None`` where there is one."""

    @property
    def abstained(self) -> bool:
        """Whether there is no answer because the model is not sure enough."""

    @property
    def unlike_training(self) -> float | None:
        """Share of held-out pictures that are nearer to the training pictures; ``None`` where it is not known."""


class Output(Protocol):
    """From what the network returns to what a user reads."""

    def activate(self, outputs: Any) -> Any:
        """Return predictions for outputs ``(..., width) float32``: probabilities, say, before any calibration.

        Of outputs that are kept as records, see `Extent`, predictions are records, too.
        """

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `predictions.csv` after ``split, path``; the first is the answer of the data."""

    def rows(self, predictions: Any, targets: Any, spec: TargetSpec) -> list[tuple[str, ...]]:
        """Return these columns for predictions and targets of N pictures, as `Extent` keeps them, a row per picture."""

    def merge(self, predictions: Array) -> Array:
        """Return the prediction of a picture for those of its views, ``(V, ...)``."""

    def problem(self, spec: TargetSpec, request: Request) -> str | None:
        """Return why a model cannot give what is wanted, and what to do, in words; ``None`` where it can."""

    def record(self, name: str, prediction: Any, spec: TargetSpec, request: Request) -> Any:
        """Return the `Record` of a picture, of what `Extent.placed` returns for its prediction."""

    def unreadable(self, name: str, error: str) -> Any:
        """Return the `Record` of a picture that has no prediction."""

    @property
    def labels(self) -> bool:
        """Whether a record gives labels, which `UNKNOWN` can stand for."""

    def unknown(self, record: Any) -> Any:
        """Return a record with the label `UNKNOWN`; it is asked for only where there are `labels`."""

    def header(self, spec: TargetSpec, request: Request) -> list[str]:
        """Return the columns of `predict` between ``path`` and ``error``."""

    def cells(self, record: Any, spec: TargetSpec, request: Request) -> list[list[object]]:
        """Return a record as rows of cells under `header`: one or more."""

    def values(self, record: Any) -> dict[str, Any]:
        """Return a record as plain values for a line of JSON, without ``path`` and ``error``."""

    @property
    def objects(self) -> ObjectResults | None:
        """What lists the objects of a record; ``None`` where it speaks of a picture as a whole."""

    @property
    def files(self) -> RecordFiles | None:
        """The files that belong to records; ``None`` where a row says all."""

    @property
    def page(self) -> Page | None:
        """The page that `serve` shows; ``None`` for the page about its requests."""

    @property
    def names_one(self) -> bool:
        """Whether a record names one of `spec.names`, that with the largest prediction: a `Prediction`."""

    def answer(self, record: Any, spec: TargetSpec) -> str:
        """Return which of `spec.names` a record speaks of: what its heat map explains unless another one is named."""

    def shares(self, record: Any, spec: TargetSpec) -> dict[str, float]:
        """Return how much a whole `record` gives each of `spec.names`, in [0, 1], most first; empty: it gives none."""

    def explained(self, outputs: Tensor, places: Tensor) -> Tensor:
        """Return the score ``(B,)`` of each picture that a heat map of the name at `places` explains, with gradient."""

    @property
    def compared(self) -> Compared:
        """What two models are compared in."""

    def agree(self, predictions: Array, expected: Array, near: float) -> npt.NDArray[np.bool_]:
        """Return for which pictures two models' ``(B, ...)`` say the same, ``(B,)``; numbers may be `near` apart."""


class Scores(Protocol):
    """What predictions are worth."""

    def measure(
        self, predictions: Any, targets: Any, spec: TargetSpec, *, plain: Any = None, seed: int = 0
    ) -> dict[str, Any]:
        """Return what `metrics.json` holds of one split, as plain JSON values.

        Args:
            predictions: ``(N, ...) float32``, as users see them: calibrated where the model is.
            targets: ``(N, ...)``.
            spec: What they mean.
            plain: Predictions before calibration; ``None`` where there is no calibration.
            seed: Of the bootstrap.
        """

    def figures(self, values: Mapping[str, Any]) -> list[Figure]:
        """Return the figures that `measure`'s values hold, the one that counts most first."""


class FittedCalibration(Protocol):
    """A calibration; the rest of it is the task's own."""

    @property
    def method(self) -> str:
        """How it was fitted; ``"none"`` where nothing was."""

    @property
    def temperature(self) -> float:
        """What all outputs are divided by; 1 where that is not how it works."""

    @property
    def fitted_on(self) -> str | None:
        """The pictures it was fitted on, in words."""

    @property
    def folds(self) -> int:
        """Of the cross-fitting."""

    @property
    def covers(self) -> bool:
        """Whether answers can be had at a coverage: sets of classes, intervals of numbers."""

    @property
    def figures(self) -> Mapping[str, float]:
        """What it brought, such as ``loss_before`` and ``loss_after``."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What joins the facts of the spec, for whoever makes records of predictions: thresholds, say."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `model.json`."""


class Calibrator(Protocol):
    """From outputs to predictions that can be trusted, fitted on held-out pictures."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Ways to fit, the usual one first."""

    def fit(self, outputs: Any, targets: Any, *, method: str, seed: int) -> tuple[Any, Any]:
        """Return the calibration, and predictions for `outputs` by calibrations that have not seen the picture.

        Raises:
            ConfigError: There is no such method.
        """

    def at_precision(self, rate: float) -> Any:
        """Return the calibrator whose labels are right at a rate on held-out pictures, ``None`` where there are none.

        Args:
            rate: In (0, 1).
        """

    def read(self, values: Mapping[str, Any]) -> Any:
        """Return the calibration of which `values` are the `to_dict`.

        Raises:
            CheckpointError: They are none.
        """

    def apply(self, calibration: Any, outputs: Any) -> Any:
        """Return calibrated predictions for outputs ``(..., width)``."""

    def problem(self, outputs: Any, targets: Any) -> str | None:
        """Return why nothing can be fitted on these pictures, for a sentence; ``None`` where it can."""

    def summary(
        self, calibration: Any, outputs: Any, targets: Any, predictions: Any, *, seed: int
    ) -> tuple[list[tuple[str, str]], tuple[str, ...], list[tuple[str, ...]]]:
        """Return what a person reads of a fit: lines, and columns and rows of a table of coverage.

        Args:
            calibration: From `fit`.
            outputs: What it was fitted on.
            targets: Likewise.
            predictions: From `fit`.
            seed: As for `fit`.
        """
