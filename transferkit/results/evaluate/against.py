"""The other run of `evaluate --against`: asked about the same pictures, with answers matched by name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.core.errors import ConfigError, DataError, TransferkitWarning
from transferkit.core.files import sha256_of_file
from transferkit.core.records import SkippedFile
from transferkit.core.targets import TargetSpec
from transferkit.data.index.targets import Targets
from transferkit.features.engine.whole import Gathered, Output
from transferkit.models.details import Answered
from transferkit.models.extent import Joined
from transferkit.models.task import Task
from transferkit.options.results import EvaluateConfig
from transferkit.results.evaluate.outputs import measuring, readable_outputs
from transferkit.results.predict.predictor import load
from transferkit.runs.labelled import LabelledPicture, trained_pictures
from transferkit.runs.truths import answers_of, truths_of

__all__ = ["Paired"]


class Paired:
    """A run to compare with.

    Args:
        run: Its directory.
        config: The options of the evaluation.
        task: What the run in question answers.
        targets: What labels mean to it.
        spec: What its outputs mean.

    Attributes:
        splits: By split, what `Details.compare` returns; ``left_out``, the number of pictures whose label this run
            lacks; and ``seen_in_training``, how many of the others it was trained on, ``None`` where it does not say.

    Raises:
        CheckpointError: The model is missing or damaged.
        ConfigError: The two answer different questions, or their answers cannot be compared picture by picture.
    """

    def __init__(self, run: Path, config: EvaluateConfig, task: Task, targets: Targets, spec: TargetSpec) -> None:
        task.require("details", "evaluate --against")
        self.run = run
        self.config = config
        self.splits: dict[str, dict[str, Any]] = {}
        self._task, self._targets, self._spec = task, targets, spec
        self._predictor = load(
            run, accelerator=config.accelerator, precision=config.precision, max_pixels=config.max_pixels
        )
        other = self._predictor.module.task.name
        if other != task.name:
            raise ConfigError(f"--against {run} is a model of {other}, expected one of {task.name} - name another run")
        self._digest = sha256_of_file(run / "model.safetensors")
        names = (Path(config.run).resolve().name, run.resolve().name)
        self._names = names if names[0] != names[1] else (config.run, str(run))

    def add(self, split: str, pictures: Sequence[LabelledPicture], predictions: Tensor) -> list[SkippedFile]:
        """Compare on the pictures of a split whose labels this run knows; return those that it could not take.

        Args:
            split: Their split.
            pictures: N pictures, with targets of the model in question.
            predictions: ``(N, ...) float32``, what that model says of them.

        Raises:
            DataError: This run knows none of the labels of the pictures.

        Warns:
            TransferkitWarning: This run was trained on some of the pictures.
        """
        known = self._predictor.info.targets
        places = {picture.path: row for row, picture in enumerate(pictures) if known.find(picture.label) is not None}
        if not places:
            raise DataError(
                f"{self.run}: its classes are others than those of the {split} pictures, so there is nothing to compare"
                " on - leave --against out, or name a run of the same classes"
            )
        config, shared = self.config, [pictures[row] for row in places.values()]
        outputs = self._predictor.outputs(
            list(places), tta=config.tta, batch_size=config.batch_size, workers=config.workers, seed=config.seed
        )
        bad: list[SkippedFile] = []
        rows: list[int] = []
        info, extent = self._predictor.info, self._task.extent
        theirs = Joined(extent)
        truths = truths_of(known, [one.label for one in shared], [one.path for one in shared], info.preprocessing)
        title = "the other run"

        def begin(output: Output) -> Gathered:
            return measuring(self._predictor, output, None if truths is None else truths.of(output.name))

        for picture, _, prediction in readable_outputs(shared, outputs, begin, bad, title=title, quiet=config.quiet):
            rows.append(places[picture.path])
            theirs.add(extent.table([prediction]))
        if rows and self._task.details is not None:
            labels = [pictures[row].label for row in rows]
            mine = extent.table([predictions[row] for row in rows])
            sides = (mine, self._targets, self._spec), (theirs.whole(), known, info.target_spec)
            first, second = (
                Answered(made, answers_of(meaning, labels, made, truths), spec) for made, meaning, spec in sides
            )
            self.splits[split] = self._task.details.compare(first, second, names=self._names, seed=config.seed)
            trained = trained_pictures(self.run, shared)
            if trained:
                warnings.warn(
                    f"{self.run} was trained on {trained:,} of the {len(shared):,} {split} pictures, which favours it"
                    " - compare on pictures that are new to both",
                    TransferkitWarning,
                    stacklevel=4,
                )
            self.splits[split] |= {"left_out": len(pictures) - len(places), "seen_in_training": trained}
        return [SkippedFile(file.path, f"{self.run.name}: {file.reason}") for file in bad]

    def results(self) -> dict[str, Any]:
        """Return what `metrics.json` holds of the comparison: the other run, and by split what came of it."""
        return {
            "run": str(self.run.resolve()),
            "names": list(self._names),
            "model_sha256": self._digest,
            **self.splits,
        }
