"""`lr-find`: the LR range test of one phase, with its curve as CSV and PNG."""

from __future__ import annotations

from pathlib import Path

from transferkit.core.errors import ConfigError, TrainingError, did_you_mean
from transferkit.core.files import storage_errors
from transferkit.features.store.store import FeatureStore
from transferkit.options.training import LRFindConfig
from transferkit.runs.directory import run_stem
from transferkit.show.progress import output_console
from transferkit.training.batch_size import with_batch_size
from transferkit.training.head.solve import solve_probe
from transferkit.training.lr.range_test import RangeTest
from transferkit.training.lr.result import LRSearch
from transferkit.training.lr.start import peak_lr, search_phase
from transferkit.training.plan.phases import Phase
from transferkit.training.setup import prepare
from transferkit.training.teaching import check_teacher, teach

__all__ = ["CURVE", "PLOT", "run_lr_find"]

CURVE, PLOT = "lr.csv", "lr.png"


def run_lr_find(config: LRFindConfig) -> LRSearch:
    """Find the LR of one phase, write the curve and print the suggestions.

    Raises:
        ConfigError: An option is out of range, or there is no such phase.
        DataError: Pictures are missing, unreadable or contradictory.
        BackboneError: The backbone is unknown, or its weights cannot be had or do not fit.
        TrainingError: Nothing can be suggested; the curve is written all the same.
        StorageError: The directory cannot be written to.
    """
    check_teacher(config)
    training = teach(prepare(config, quiet=config.quiet), quiet=config.quiet)
    phase = _chosen(training.phases, config.phase)
    training = with_batch_size(training)
    solved = None
    if training.phases[0].solve:
        solved = solve_probe(
            training.module, training.data, FeatureStore(config.store), training.compute,
            views=config.probe_views, seed=config.seed,
        )  # fmt: skip
    test = RangeTest(config.steps, config.lr_min, config.lr_max, config.spacing, config.measure)
    search = search_phase(training, phase, solved, test)
    out = Path(config.out) if config.out else Path("runs") / f"{run_stem(config.data, config.backbone)}-lr"
    with storage_errors("create", out):
        out.mkdir(parents=True, exist_ok=True)
    save_search(search, out)
    if not config.quiet:
        _print(search, phase, out)
    if search.suggestion is None:
        raise TrainingError(f"no LR can be suggested for phase {phase.name!r}: {search.reason} - look at {out / PLOT}")
    return search


def save_search(search: LRSearch, directory: Path) -> None:
    """Write the curve of a range test into a directory, as CSV and PNG. Raises `StorageError`."""
    search.save_csv(directory / CURVE)
    if len(search.lrs) > 1:
        search.plot(directory / PLOT)


def _chosen(phases: tuple[Phase, ...], name: str | None) -> Phase:
    trained = {phase.name: phase for phase in phases if not phase.solve}
    if name is None and trained:
        return next(iter(trained.values()))
    if name in trained:
        return trained[name]
    if not trained:
        raise ConfigError("no phase is trained by sgd, so there is no LR to find - pass --phases probe-finetune")
    raise ConfigError(
        f"no phase {name!r} that is trained by sgd.{did_you_mean(str(name), trained)} Known: {', '.join(trained)}."
    )


def _print(search: LRSearch, phase: Phase, out: Path) -> None:
    console = output_console()
    console.print(f"phase    {phase.name}: {len(search.lrs)} steps, LR {search.lrs[0]:.2g} to {search.lrs[-1]:.2g}"
                  if search.lrs else f"phase    {phase.name}", soft_wrap=True)  # fmt: skip
    for rule, lr in search.suggestions.items():
        value = "none" if lr is None else f"{lr:.2g}"
        console.print(f"{rule:<9}{value}{' <- suggested' if rule == search.suggestion_rule and lr else ''}")
    if search.warning is not None:
        console.print(f"warning  {search.warning}", soft_wrap=True)
    if search.group_lrs is not None:
        groups = ", ".join(f"{group} {lr:.2g}" for group, lr in search.group_lrs.items())
        console.print(f"groups   {groups}", soft_wrap=True)
    console.print(f"curve    {out / CURVE}, {out / PLOT}", soft_wrap=True)
    if search.suggestion is not None:
        peak = peak_lr(search, phase)
        console.print(
            f"peak     {peak:.2g}, so that the mean over the {phase.curve.name} schedule is what is suggested"
        )
        console.print(f"next     transferkit finetune ... --lr {peak:.2g}")
