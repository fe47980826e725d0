"""What a model is worth on pictures that a worse camera would have taken: each spoilt in several ways, at strengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError
from transferkit.core.records import SkippedFile
from transferkit.data.images.corruption import CORRUPTIONS, STRENGTHS
from transferkit.features.engine.whole import Alone, Output
from transferkit.models.figures.figure import Figure
from transferkit.options.results import EvaluateConfig
from transferkit.results.evaluate.outputs import readable_outputs
from transferkit.results.predict.predictor import Predictor
from transferkit.results.predict.views import PredictionViews
from transferkit.runs.labelled import LabelledPicture
from transferkit.runs.truths import Truths, answers_of

__all__ = ["corruption_rows", "figures_spoilt", "require_views"]

MOST: Final = 1000
"""Pictures of a split that are spoilt: each is shown once for every way and strength."""

MOVED: Final = ("rotation",)
"""Kinds that move what is shown: answers that lie on pixels would have to move with it."""


def require_views(predictor: Predictor, config: EvaluateConfig) -> None:
    """Refuse ``--corruptions`` for a model that sees pictures in windows.

    Raises:
        ConfigError: It does.
    """
    if config.corruptions and predictor.info.preprocessing.tiled:
        raise ConfigError("--corruptions spoils pictures as the model is shown them, and this one sees them in windows "
                          "- leave it out")  # fmt: skip


def figures_spoilt(
    predictor: Predictor, pictures: Sequence[LabelledPicture], truths: Truths | None, config: EvaluateConfig
) -> dict[str, Any]:
    """Return the first figure of the task by kind and strength of corruption, as `metrics.json` holds it.

    Args:
        predictor: The model.
        pictures: That can be read, N of a split; at most `MOST` of them are taken, spread over their hashes.
        truths: Answers that lie on their pixels.
        config: How to compute; ``seed`` is of the noise, too.

    Returns:
        ``figure``: the name of the figure, without a value. ``pictures``: how many were shown. ``clean``: the figure of
        these pictures as they are. ``values`` and ``ci``: by kind, of strengths 1, 2 and 3, with 95 % intervals over
        the pictures; ``clean_ci`` likewise. ``mean`` and ``worst``: over all of them, as means are taken by Hendrycks &
        Dietterich (2019, section 4.1), but of the figure itself, and not over another network's.
    """
    task, info = predictor.module.task, predictor.info
    kinds = [kind for kind in CORRUPTIONS if not (predictor.module.feed.on_pixels and kind in MOVED)]
    ways = [(kind, strength) for kind in kinds for strength in STRENGTHS]
    views = PredictionViews.spoilt(info.preprocessing, ways, config.seed)
    shown = sorted(pictures, key=lambda picture: picture.sha256)[:: -(-len(pictures) // MOST)]
    outputs = predictor.outputs(
        [picture.path for picture in shown], tta=views, batch_size=config.batch_size, workers=config.workers
    )

    def begin(output: Output) -> Alone:
        truth = None if truths is None else truths.of(output.name)

        def measured(logits: npt.NDArray[np.float32]) -> list[Any]:
            return [task.extent.entry(predictor.probs(logits[view : view + 1]), truth) for view in range(len(logits))]

        return Alone(measured)

    gone: list[SkippedFile] = []
    made = list(readable_outputs(shown, outputs, begin, gone, title="spoilt pictures", quiet=config.quiet))
    labels = [picture.label for picture, _, _ in made]
    figures = []
    for view in range(views.count):
        predictions = task.extent.table([entries[view] for _, _, entries in made])
        answers = answers_of(info.targets, labels, predictions, truths)
        figures.append(
            Figure.from_dict(task.values(predictions, answers, info.target_spec, seed=config.seed)["figures"][0])
        )
    clean, spoilt = figures[0], [figure.value for figure in figures[1:]]
    values = {kind: spoilt[at * len(STRENGTHS) : (at + 1) * len(STRENGTHS)] for at, kind in enumerate(kinds)}
    bounds = [None if figure.interval is None else list(figure.interval) for figure in figures]
    known = {way: value for way, value in zip(ways, spoilt, strict=True) if value is not None}
    worst = (min if clean.higher_is_better else max)(known, key=lambda way: known[way], default=None)
    return {
        "figure": {"key": clean.key, "label": clean.label, "unit": clean.unit,
                   "higher_is_better": clean.higher_is_better},
        "pictures": len(made),
        "clean": clean.value,
        "clean_ci": bounds[0],
        "mean": sum(known.values()) / len(known) if known else None,
        "worst": None if worst is None else {"kind": worst[0], "strength": worst[1], "value": known[worst]},
        "values": values,
        "ci": {kind: bounds[1 + at * len(STRENGTHS) : 1 + (at + 1) * len(STRENGTHS)] for at, kind in enumerate(kinds)},
    }  # fmt: skip


def corruption_rows(splits: dict[str, dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the rows of `corruptions.csv`: split, corruption, strength (0 for none), figure and interval."""
    rows: list[tuple[Any, ...]] = []
    for split, values in splits.items():
        spoilt = values.get("corruptions")
        if spoilt is None:
            continue
        rows = rows or [("split", "corruption", "strength", spoilt["figure"]["key"], "low", "high")]
        rows.append((split, "none", 0, spoilt["clean"], *(spoilt["clean_ci"] or (None, None))))
        rows += [(split, kind, strength, value, *(ci or (None, None))) for kind, row in spoilt["values"].items()
                 for strength, value, ci in zip(STRENGTHS, row, spoilt["ci"][kind], strict=True)]  # fmt: skip
    return rows
