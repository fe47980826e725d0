"""The advice as one story: pictures and networks are read, a race is run, likeness is measured, a recipe is written."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from transferkit.core.errors import ConfigError
from transferkit.core.text import one_line
from transferkit.data.batches.dataset import Picture
from transferkit.data.batches.statistics import ranged
from transferkit.features.engine.compute import Compute
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extract import make_compute
from transferkit.features.probe.logme import logme
from transferkit.models.task import Task, task_of
from transferkit.options.advise import AdviseConfig
from transferkit.options.fields import make_config
from transferkit.results.advise.candidates import Contender, check_names, display_names, load_candidates
from transferkit.results.advise.depth import probe_depths
from transferkit.results.advise.halving import Gap, Place, race
from transferkit.results.advise.likeness import SHIFTED, norm_shift, source_test
from transferkit.results.advise.pictures import TrainingPictures, read_training_pictures
from transferkit.results.advise.quadrants import Quadrants, amount_of
from transferkit.results.advise.recipe import choose_settings, write_recipe
from transferkit.results.advise.record import PLOT, Advice, Row
from transferkit.results.advise.scoring import Scored, behind, score_features
from transferkit.results.advise.show import draw_advice, print_advice
from transferkit.runs.directory import named_run_dir, open_run_dir, prepare_run_dir
from transferkit.runs.summary import data_lines, print_lines
from transferkit.runs.write import write_config
from transferkit.show.progress import counting_bar, output_console, progress_console, waiting

__all__ = ["advise", "run_advise"]


def advise(data: str | os.PathLike[str], **options: Any) -> Advice:
    """Say which backbone suits a data set, and how to tune it; write a recipe that runs.

    Candidates are compared by a probe on their frozen features, cross-validated inside the training split; val and test
    are not looked at. Features stay in the store, so that a second call, `probe` and `finetune` compute none of them
    again.

    Args:
        data: Folder, CSV or Parquet manifest, or ``"sample"``.
        options: The fields of `AdviseConfig`: ``backbones``, ``weights``, ``image_size``, ``source``, ``folds``,
            ``halving``, ``pictures``, ``depth``, ``out``, ...

    Returns:
        The advice: ``.best``, ``.rows`` from the best candidate on, ``.quadrants``, and ``.recipe``, the path for
        ``finetune --config``.

    Raises:
        ConfigError: An option is unknown or out of range, or heads of the task cannot be solved on features.
        DataError: Pictures are missing, unreadable, contradictory, or too few to hold any out.
        BackboneError: A name is unknown, or no candidate can be had.
        CheckpointError: The directory is taken.
        StoreError: Features of the last candidate are not finite.
        StorageError: The disk is full or failing.
    """
    return run_advise(make_config(AdviseConfig, {"data": data, "quiet": True, **options}))


def run_advise(config: AdviseConfig) -> Advice:
    """Do what the verb does, see `advise`.

    Returns:
        The advice, whose directory holds `recipe.yaml`, `advice.json`, `advice.csv`, `advice.png` and `config.yaml`.
    """
    task = task_of(config)
    _require_solver(task)
    check_names(config.candidates)
    with named_run_dir(config.out, config.data, "advice") as out:
        prepare_run_dir(out, resume=False, overwrite=config.overwrite)
        return _advise(config, task, out)


def _require_solver(task: Task) -> None:
    """Refuse tasks whose candidates cannot be compared by a head that is solved on one vector per picture.

    Raises:
        ConfigError: It is one of them.
    """
    if task.solver is None or not task.extent.whole:
        why = "has no solver" if task.solver is None else "answers for pixels, not with one vector per picture"
        raise ConfigError(
            f"advise compares backbones by a head that is solved on their features, and {task.name} {why} - compare "
            "short trainings: search, with a list of backbones in its space"
        )


def _advise(config: AdviseConfig, task: Task, out: Path) -> Advice:
    started, console = time.perf_counter(), progress_console(config.quiet)
    config = ranged(config, task.targets)
    compute = make_compute(config.accelerator, config.precision, config.workers, config.compile, config.batch_size)
    with counting_bar(console, "reading pictures") as progress:
        pictures = read_training_pictures(config, task, progress)
    if not config.quiet:
        print_lines(output_console(), data_lines(pictures.index))
    ladder = pictures.rungs  # too few pictures are an error before any network is built
    with counting_bar(console, "building candidates") as progress:
        training = {record.sha256: record.path for record in pictures.index.split("train")}
        contenders, refused = load_candidates(config, task, compute, training, progress)
    scores: dict[tuple[int, int], float] = {}
    places = _race(pictures, contenders, compute, console, scores)
    rows = _rows(config, contenders, refused, places, scores, len(ladder))
    winner = next(one for one in contenders if one.name == rows[0].name)
    quadrants = _quadrants(pictures, winner, compute, console, rows[0])
    ranked = _why(rows)
    settings = choose_settings(
        config, winner.candidate, winner.frozen.backbone, ranked, quadrants, pictures.task
    )  # fmt: skip
    notes = _notes(rows, quadrants)
    advice = Advice(out, config.data, task.name, tuple(rows), quadrants, tuple(settings), tuple(notes),
                    time.perf_counter() - started)  # fmt: skip
    with open_run_dir(out, resume=False, overwrite=config.overwrite):
        write_config(out, dataclasses.asdict(config))
        with waiting(console, "drawing the plot"):
            draw_advice(rows, out / PLOT)
        write_recipe(advice.recipe, settings, [quadrants.sentences()["quadrant"], *notes])
        advice.write()
    if not config.quiet:
        print_advice(advice, output_console())
    return advice


def _race(
    pictures: TrainingPictures,
    contenders: Sequence[Contender],
    compute: Compute,
    console: Console | None,
    scores: dict[tuple[int, int], float],
) -> list[Place[Scored]]:
    """Run the race; `scores` get the LogME of each candidate and rung."""
    ladder, task, seed = pictures.rungs, pictures.task, pictures.config.seed

    def measure(number: int, rung: int) -> Scored:
        places, folds = ladder[rung].places, ladder[rung].folds
        contender = contenders[number]
        with counting_bar(console, f"features of {contender.name}") as progress:
            taps = find_taps(contender.frozen.backbone)
            features = pictures.features(contender, taps, places, compute, progress)[0]
        y, units = pictures.y[places], pictures.units[places]
        with counting_bar(console, f"fitting {contender.name}") as progress:
            scores[number, rung] = logme(features, y)
            return score_features(features, y, units, folds, task, pictures.spec, seed=seed, progress=progress)

    def compare(leader: Scored, other: Scored) -> Gap:
        return behind(leader, other, task, seed=seed)

    return race(len(contenders), [len(rung) for rung in ladder], measure, compare, lambda scored: scored.rank)


def _rows(
    config: AdviseConfig,
    contenders: Sequence[Contender],
    refused: dict[str, str],
    places: Sequence[Place[Scored]],
    scores: dict[tuple[int, int], float],
    laps: int,
) -> list[Row]:
    """Return a row for each candidate: the ranked ones from the best on, the dropped ones, the others."""
    rows = []
    for contender, place in zip(contenders, places, strict=True):
        last = place.laps[-1] if place.laps else None
        first = scores.get((place.number, 0), math.nan)
        row = Row(
            contender.name, contender.candidate, "ranked", cost=contender.cost,
            logme=first if math.isfinite(first) else None,
            laps=tuple(
                {"pictures": lap.pictures, "value": lap.result.figure.value, "ci": lap.result.figure.ci,
                 "behind": None if lap.behind is None else lap.behind.to_dict(), "fit_s": lap.result.seconds,
                 "logme": _finite(scores.get((place.number, lap.rung)))}
                for lap in place.laps
            ),
        )  # fmt: skip
        if last is not None:
            row = dataclasses.replace(row, pictures=last.pictures, figures=last.result.figures, behind=last.behind)
        if place.failed is not None:
            row = dataclasses.replace(row, state="failed", note=one_line(place.failed))
        elif place.dropped is not None and last is not None:
            note = f"rung {place.dropped + 1} of {laps}, {last.pictures:,} pictures: {_gap_text(row)} behind the first"
            row = dataclasses.replace(row, state="dropped", note=note)
        rows.append(row)
    order = {"ranked": 0, "dropped": 1, "failed": 2}
    best_first = sorted(
        zip(rows, places, strict=True),
        key=lambda pair: (order[pair[0].state], -len(pair[1].laps),
                          -pair[1].laps[-1].result.rank if pair[1].laps else 0.0, pair[1].number),
    )  # fmt: skip
    ranked = [dataclasses.replace(row, rank=number) if row.state == "ranked" else row
              for number, (row, _) in enumerate(best_first, 1)]  # fmt: skip
    ranked = [dataclasses.replace(row, pareto=_undominated(row, ranked), note=row.note or _standing(row))
              for row in ranked]  # fmt: skip
    names = dict(zip(display_names(config.candidates), config.candidates, strict=True))
    return ranked + [Row(name, names[name], "left out", one_line(reason)) for name, reason in refused.items()]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _undominated(row: Row, rows: Sequence[Row]) -> bool:
    """Whether no ranked candidate before this one is as quick: ranks are by the figure."""
    if row.rank is None or row.cost is None:
        return False
    before = [other.cost for other in rows if other.rank is not None and other.rank < row.rank and other.cost]
    return all(cost.images_per_s < row.cost.images_per_s for cost in before)


def _standing(row: Row) -> str:
    if row.rank is None or row.behind is None:
        return ""
    return f"{_gap_text(row)} behind the first{', which may be chance' if row.tied else ', clearly'}"


def _gap_text(row: Row) -> str:
    """Return how far a candidate is behind the leader, with the interval."""
    gap, figure = row.behind, row.figure
    if gap is None or figure is None:
        return ""
    if figure.unit == "share":
        return f"{100 * gap.lead:.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
    return f"{gap.lead:.3g} ({gap.low:+.3g} to {gap.high:+.3g})"


def _quadrants(
    pictures: TrainingPictures, winner: Contender, compute: Compute, console: Console | None, best: Row
) -> Quadrants:
    """Return the data in the lectures' terms, with what the best candidate says of the pictures."""
    counts = pictures.index.counts()["train"]
    quadrants = amount_of(len(pictures), counts, pictures.spec.names)
    rung = pictures.part(SHIFTED)
    shown = [Picture(pictures.records[at].path, pictures.records[at].sha256) for at in rung.places]
    with waiting(console, "measuring how like the source they are"):
        shift = norm_shift(winner.frozen.backbone, shown, winner.prepared)
    with counting_bar(console, "features of the source") as progress:
        features = pictures.features(winner, find_taps(winner.frozen.backbone), pictures.rungs[-1].places, compute)[0]
        source = source_test(pictures, winner, features, compute, progress)
    depth = []
    if pictures.config.depth:
        with (
            counting_bar(console, "features of every layer") as extracting,
            counting_bar(console, "fitting every layer") as fitting,
        ):
            depth = probe_depths(pictures, winner, compute, extracting=extracting, fitting=fitting)
    unit = "share" if best.figure is None else best.figure.unit
    return quadrants.with_likeness(winner.name, shift, source, depth, unit)


def _why(rows: Sequence[Row]) -> str:
    """Return why the first candidate is recommended, a sentence."""
    best, compared = rows[0], [row for row in rows if row.rank is not None or row.state == "dropped"]
    label = "" if best.figure is None else f"{best.figure.label.lower()} "
    if len(compared) == 1:
        return f"the only candidate that could be measured: {label}{best.figure_text()} of held-out training pictures"
    tied = [row.name for row in rows[1:] if row.tied]
    unsure = f"; {', '.join(tied)} cannot be told from it" if tied else ""
    return f"the first of {len(compared)} by {label}{best.figure_text()} of held-out training pictures{unsure}"


def _notes(rows: Sequence[Row], quadrants: Quadrants) -> list[str]:
    """Return what is worth knowing of the ranking."""
    best = rows[0]
    notes = [
        "figures are of a head on frozen features, cross-validated inside train; the first was chosen by them, so its "
        "own is optimistic by a little; val and test were not looked at",
    ]
    quick = [row for row in rows[1:] if row.tied and row.pareto and row.cost and best.cost]
    if quick and quick[-1].cost and best.cost:
        ratio = quick[-1].cost.images_per_s / best.cost.images_per_s
        notes.append(f"{quick[-1].name} is {ratio:.1f} times as quick and cannot be told from the first")
    if quadrants.earlier is not None:
        notes.append(f"transferkit probe --layer {quadrants.earlier.layer} keeps the earlier features that are better")
    return notes
