"""The other run of `evaluate --against`: asked about the same pictures, with classes matched by name."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.core.errors import DataError, TransferkitWarning
from transferkit.core.files import sha256_of_file
from transferkit.core.records import SkippedFile
from transferkit.models.figures.classification import negative_log
from transferkit.models.figures.paired import Scores, compare
from transferkit.options.results import EvaluateConfig
from transferkit.results.predict.predictor import load
from transferkit.runs.labelled import LabelledPicture, trained_pictures
from transferkit.show.progress import counting_bar, progress_console

__all__ = ["Paired"]


class Paired:
    """A run to compare with.

    Args:
        run: Its directory.
        config: The options of the evaluation.

    Attributes:
        splits: By split, what `compare` returns; ``left_out``, the number of pictures whose class this run lacks; and
            ``seen_in_training``, how many of the others it was trained on, ``None`` where it does not say.

    Raises:
        CheckpointError: The model is missing or damaged.
    """

    def __init__(self, run: Path, config: EvaluateConfig) -> None:
        self.run = run
        self.config = config
        self.splits: dict[str, dict[str, Any]] = {}
        self._predictor = load(run, accelerator=config.accelerator, precision=config.precision)
        self._digest = sha256_of_file(run / "model.safetensors")
        self._index = {_form(name): number for number, name in enumerate(self._predictor.class_names)}
        names = (Path(config.run).resolve().name, run.resolve().name)
        self._names = names if names[0] != names[1] else (config.run, str(run))

    def add(
        self, split: str, pictures: Sequence[LabelledPicture], probs: Tensor, class_names: Sequence[str]
    ) -> list[SkippedFile]:
        """Compare on the pictures of a split whose classes this run has; return those that it could not take.

        Args:
            split: Their split.
            pictures: N pictures, with class indices of the model in question.
            probs: ``(N, C) float32``, what that model says of them.
            class_names: Its C classes.

        Raises:
            DataError: This run has none of the classes of the pictures.

        Warns:
            TransferkitWarning: This run was trained on some of the pictures.
        """
        rows = [row for row, picture in enumerate(pictures) if _form(class_names[picture.target]) in self._index]
        if not rows:
            raise DataError(
                f"{self.run}: its classes are others than those of the {split} pictures, so there is nothing to compare"
                " on - leave --against out, or name a run of the same classes"
            )
        config, asked = self.config, [pictures[row] for row in rows]
        outputs = self._predictor.outputs(
            [picture.path for picture in asked], tta=config.tta, batch_size=config.batch_size, workers=config.workers,
            seed=config.seed,
        )  # fmt: skip
        kept: list[int] = []
        bad: list[SkippedFile] = []
        theirs: list[tuple[bool, float]] = []
        with counting_bar(progress_console(config.quiet), "the other run") as told:
            for number, (row, picture, output) in enumerate(zip(rows, asked, outputs, strict=True), 1):
                if output.logits is None:
                    bad.append(SkippedFile(picture.path, f"{self.run.name}: {output.error}"))
                else:
                    target = self._index[_form(class_names[picture.target])]
                    answer = self._predictor.probs(output.logits)
                    theirs.append((int(answer.argmax()) == target, float(answer[target])))
                    kept.append(row)
                if told is not None:
                    told(number, len(asked))
        if kept:
            targets = torch.tensor([pictures[row].target for row in kept])
            mine = probs[kept]
            right, own = (torch.tensor(values) for values in zip(*theirs, strict=True))
            self.splits[split] = compare(
                _scores(mine.argmax(dim=1) == targets, mine.gather(1, targets[:, None]).squeeze(1)),
                _scores(right, own),
                targets.numpy(),
                class_names,
                names=self._names,
                seed=config.seed,
            )
            met = trained_pictures(self.run, asked)
            if met:
                warnings.warn(
                    f"{self.run} was trained on {met:,} of the {len(asked):,} {split} pictures, which favours it - "
                    "compare on pictures that are new to both",
                    TransferkitWarning,
                    stacklevel=4,
                )
            self.splits[split] |= {"left_out": len(pictures) - len(rows), "seen_in_training": met}
        return bad

    def results(self) -> dict[str, Any]:
        """Return what `metrics.json` holds of the comparison: the other run, and by split what came of it."""
        return {
            "run": str(self.run.resolve()),
            "names": list(self._names),
            "model_sha256": self._digest,
            **self.splits,
        }


def _scores(right: Tensor, own: Tensor) -> Scores:
    return Scores(right.numpy().astype(np.bool_), negative_log(own).numpy())


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)
