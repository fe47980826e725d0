"""The solved probe, first phase of LP-FT: the head fitted at once on cached features, written into the live model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import nn

from transferkit.core.errors import ConfigError, DataError, gather
from transferkit.data.batches.datamodule import ImageData
from transferkit.features.engine.compute import Compute
from transferkit.features.engine.taps import LAST_CELLS, PYRAMID_CELLS, Tap
from transferkit.features.extract.extract import make_compute
from transferkit.features.linear.means import MEANS, fit_means, softened, with_rows
from transferkit.features.linear.solution import LinearSolution
from transferkit.features.store.store import FeatureStore
from transferkit.models.dense.linear import HypercolumnHead, LinearMaskHead
from transferkit.models.freezing import evaluation_mode
from transferkit.models.heads.flat import LinearHead
from transferkit.models.heads.solver import Array, HeadState, Solver
from transferkit.models.module import TransferModule
from transferkit.training.head.cells import CellRows, sample_of
from transferkit.training.head.features import HeadRows, PooledRows, SplitFeatures, different_views

__all__ = ["SolvedProbe", "soften_head", "solve_head", "solve_probe", "views_fitted"]


@dataclass(frozen=True)
class SolvedProbe:
    """The result of the solved probe.

    Attributes:
        figures: Plain values for `metrics.json`: how the regularisation was chosen, ``train_acc``, ``val_acc``,
            ``val_loss`` (``None`` without a validation split), seconds, pictures computed, precision of the features.
            Of masks those of train are of the cells that were fitted, those of val of the network's own answers.
        head: State of the head as it was solved.
        start: State of the head that fine-tuning starts from.
        val_losses: ``(N,) float64``, of each val picture, see `Task.picture_losses`; ``None`` where they are not known.
    """

    figures: Mapping[str, Any]
    head: Mapping[str, torch.Tensor]
    start: Mapping[str, torch.Tensor]
    val_losses: torch.Tensor | None = None


def solve_head(module: TransferModule, data: ImageData, *, store: str | None = None) -> SolvedProbe:
    """Fit the linear head of a model on the features of its frozen backbone, and write it into the model.

    The solver of the task does it; of classification, logistic regression by L-BFGS on standardised features, whose
    regularisation is chosen by cross-validation inside the training split, and whose standardiser is folded into weight
    and bias. The features stay in the store. A fine-tuning that starts here starts from a converged head (LP-FT; Kumar
    et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", section 3.4).
    Heads of one point per class become class means, see `fit_means`. A hidden layer, and pooling that is learned or
    another than the backbone's, have no such solution: they are trained.

    Args:
        module: With a linear head, or one of class means.
        data: Its training split is fitted, its validation split measured.
        store: Directory of the feature store; the user's cache when ``None``.

    Raises:
        ConfigError: The head cannot be solved, or the task has no solver.
        DataError: There is nothing to tell apart in the training pictures.
    """
    return solve_probe(module, data, FeatureStore(store), make_compute())


def solve_probe(
    module: TransferModule,
    data: ImageData,
    store: FeatureStore,
    compute: Compute,
    *,
    views: int = 0,
    seed: int = 0,
    taken: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> SolvedProbe:
    """Fit the head as `solve_head` does, with a store and device of the caller's.

    Args:
        module: With a head that can be solved.
        data: Pictures that are in memory already are not decoded again.
        store: Where features are stored.
        compute: What to compute them with.
        views: Augmented views of each training picture to fit on, besides the evaluation view.
        seed: Of the folds and the views.
        taken: Classes, labels or targets whose rows of the head stay as they are.
        progress: Called with pictures computed and pictures to compute.

    Raises:
        ConfigError: The head cannot be solved, or the task has no solver.
        DataError: There is nothing to tell apart in the training pictures, or one has changed since it was indexed.
    """
    if isinstance(module.head, MEANS) and module.task.output.names_one:
        return _solve_means(module, SplitFeatures(module, data, store, compute, seed=seed), views, taken, progress)
    collect = _collector(module.head, "be solved", "train it instead")
    solver: Solver = module.task.require("solver", "a solved probe")
    started = time.perf_counter()
    features = SplitFeatures(module, data, store, compute, seed=seed)
    material = collect(features, views=views, progress=progress)
    if problems := solver.problems(material.y):
        raise DataError(f"the training split holds {gather(problems)}")
    choice: Mapping[str, Any] = {}
    outputs_of: Callable[[Array], Array]
    if set(taken) < set(module.class_names) or not taken:
        solution = solver.fit(material.rows(), material.options, seed=seed)
        head, choice, outputs_of = solution.head(), solution.choice, solution.outputs
        if head is None or head.name != "linear":
            raise TypeError(f"the solver of {module.task.name} gives no linear head")
        if taken:
            joined = _joined(module, head, taken)
            head, outputs_of = joined.head(), joined.outputs
        _write(module.head, head)
    else:
        outputs_of = _joined(module, HeadState("linear", {}, module.head.state_dict()), taken).outputs
    solved = {name: tensor.clone() for name, tensor in module.head.state_dict().items()}
    outputs = outputs_of(material.X)
    figures = {
        "solver": solver.method,
        **({"kept": list(taken)} if taken else {}),
        **{key: value for key, value in choice.items() if key != "curve"},
        **material.train_figures(outputs),
        **material.val_figures(outputs_of),
        **material.facts,
        "computed": features.computed,
        "precision": features.precision,
        "logit_std": float(outputs.std()),
        "time_s": time.perf_counter() - started,
    }
    start = solver.start(HeadState("linear", {}, solved), material.X, outputs)
    return SolvedProbe(figures, solved, start.tensors, material.val_losses(outputs_of))


def _solve_means(
    module: TransferModule,
    features: SplitFeatures,
    views: int,
    taken: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> SolvedProbe:
    """Fit a head of one point per class, see `fit_means`."""
    started = time.perf_counter()
    head, solver = module.head, module.task.require("solver", "a solved probe")
    material = PooledRows(features, views=views, progress=progress)
    if problems := solver.problems(material.y):
        raise DataError(f"the training split holds {gather(problems)}")
    solution = fit_means(head, material.rows())
    if taken:
        solution = with_rows(solution, head, [module.class_names.index(name) for name in taken])
    head.load_state_dict(dict(solution.tensors))
    solved = {name: tensor.clone() for name, tensor in head.state_dict().items()}

    def outputs_of(X: Array) -> Array:
        with evaluation_mode(head), torch.inference_mode():
            logits: Array = head(torch.from_numpy(X)).numpy()
        return logits

    outputs = outputs_of(material.X)
    figures = {
        "solver": "class means of cached features",
        **({"kept": list(taken)} if taken else {}),
        **solution.choice,
        **material.train_figures(outputs),
        **material.val_figures(outputs_of),
        **material.facts,
        "computed": features.computed,
        "precision": features.precision,
        "logit_std": float(outputs.std()),
        "time_s": time.perf_counter() - started,
    }
    return SolvedProbe(figures, solved, softened(solution, outputs), material.val_losses(outputs_of))


_TAPS: Final[Mapping[type[nn.Module], Tap]] = {LinearMaskHead: LAST_CELLS, HypercolumnHead: PYRAMID_CELLS}

_COLLECTORS: Final[tuple[tuple[type[nn.Module], Callable[..., HeadRows]], ...]] = (
    (LinearHead, PooledRows),
    *((kind, partial(CellRows, tap=tap)) for kind, tap in _TAPS.items()),
)
"""The heads that can be solved, and what each is fitted on."""


def _collector(head: nn.Module, what: str, advice: str) -> Callable[..., HeadRows]:
    for kind, collect in _COLLECTORS:
        if isinstance(head, kind):
            return collect
    raise ConfigError(f"a {type(head).__name__} cannot {what}, expected a linear head or one of class means - {advice}")


def _write(head: nn.Module, solved: HeadState) -> None:
    """Put solved weights ``(C, D)`` into a head; a convolution of one place has them as ``(C, D, 1, 1)``."""
    shapes = {name: tensor.shape for name, tensor in head.state_dict().items()}
    head.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in solved.tensors.items()})


def _joined(module: TransferModule, solved: HeadState, names: Sequence[str]) -> LinearSolution:
    """Return a solution whose rows of these names are those that the head has, and the others as they were solved."""
    places = [module.class_names.index(name) for name in names]
    taken = module.head.state_dict()
    weight, bias = (
        module.task.heads.joined(
            taken[name].double().cpu().reshape(shape), solved.tensors[name].double().reshape(shape), places
        ).numpy()
        for name, shape in (("linear.weight", (module.num_classes, -1)), ("linear.bias", (-1,)))
    )
    return LinearSolution(weight, bias)


def views_fitted(module: TransferModule, data: ImageData, views: int) -> int:
    """Return how many views of training pictures go through the backbone to solve a head.

    Args:
        module: With a head that can be solved.
        data: The pictures.
        views: As for `solve_probe`.

    Raises:
        ConfigError: It cannot be solved.
    """
    if not isinstance(module.head, MEANS):
        _collector(module.head, "be solved", "train it instead")
    for kind, tap in _TAPS.items():
        if isinstance(module.head, kind):
            sample = sample_of(module, data, tap, views)
            return sample.pictures * (1 + sample.views)
    return data.rows("train") * (1 + different_views(data, views))


def soften_head(head: nn.Module, solved: SolvedProbe) -> None:
    """Put a head into the state that fine-tuning starts from, see `Solver.start`.

    Raises:
        ConfigError: It cannot be solved.
    """
    if not isinstance(head, MEANS):
        _collector(head, "have been solved", "train it instead")
    head.load_state_dict(solved.start)
