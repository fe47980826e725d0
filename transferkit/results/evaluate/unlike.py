"""Pictures that belong to no class, and whether a folder as a whole differs from what the model was made for."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from transferkit.core.errors import ConfigError, DataError
from transferkit.data.scan.named import find_pictures
from transferkit.features.engine.whole import Output
from transferkit.models.unlike.distance import SAMPLED
from transferkit.models.unlike.figures import separation
from transferkit.models.unlike.two_sample import LEAST_OF_TEST, compare_samples
from transferkit.options.results import EvaluateConfig
from transferkit.results.predict.predictor import Predictor
from transferkit.show.progress import counting_bar, progress_console

__all__ = ["Likeness", "doubts_of", "require_statistics"]

BEYOND = 0.95


def require_statistics(predictor: Predictor, config: EvaluateConfig) -> None:
    """Refuse ``--unlike`` for a model that does not know how far pictures are from its training pictures.

    Raises:
        ConfigError: It does not.
    """
    if config.unlike is None:
        return
    if predictor.module.feed.on_pixels:
        raise ConfigError(
            "--unlike goes by features of whole pictures, and a model of "
            f"{predictor.module.task.name} keeps none of its training pictures - leave it out"
        )
    if predictor.module.unlike is None:
        raise ConfigError(
            "--unlike asks how well the model tells pictures that belong to no class, but this one keeps nothing of "
            "its training pictures: it is of an older transferkit, or its run had too few val pictures - run finetune "
            "or probe again, or leave --unlike out"
        )


@dataclass
class Likeness:
    """Distances of the pictures of one evaluation, by split, and features of a sample of them.

    Args:
        predictor: Its model; where that keeps nothing of its training pictures, nothing is collected.
        seed: Of the samples and permutations.
    """

    predictor: Predictor
    seed: int = 0
    _distances: dict[str, list[float]] = field(default_factory=dict)
    _features: dict[str, list[npt.NDArray[np.float16]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    def add(self, split: str, output: Output) -> None:
        """Take the distance and features of a picture."""
        if output.distance is None or output.features is None:
            return
        distances, sample = self._distances.setdefault(split, []), self._features.setdefault(split, [])
        distances.append(output.distance)
        row = (output.features / max(float(np.linalg.norm(output.features)), 1e-12)).astype(np.float16)
        if len(sample) < SAMPLED:
            sample.append(row)
        elif (place := self._draw.randrange(len(distances))) < SAMPLED:  # each picture so far is as likely to be kept
            sample[place] = row

    def results(self, config: EvaluateConfig, unsure: dict[str, npt.NDArray[np.float32]]) -> dict[str, Any]:
        """Return what `metrics.json` holds: of each split, and of the pictures that belong to no class.

        Args:
            config: With the folder of those, and how to compute.
            unsure: By split, 1 minus the largest probability of each picture; empty where answers are no classes.

        Raises:
            DataError: The folder holds no picture that can be read.
        """
        module = self.predictor.module.unlike
        if module is None:
            return {}
        splits: dict[str, Any] = {}
        for split, distances in self._distances.items():
            shares = np.array([module.nearer(distance) for distance in distances])
            splits[split] = {"median": float(np.median(shares)), "beyond_95": float((shares > BEYOND).mean()),
                             **self._test(split)}  # fmt: skip
        if config.unlike is None:
            return {"unlike_training": splits}
        others, doubts = self._ask(config)
        for split, values in splits.items():
            values["told"] = {"distance": separation(np.array(self._distances[split]), others)}
            if split in unsure:
                values["told"]["probability"] = separation(unsure[split], doubts)
        shares = np.array([module.nearer(distance) for distance in others.tolist()])
        summary = {"data": config.unlike, "n": len(others), "median": float(np.median(shares)),
                   "beyond_95": float((shares > BEYOND).mean())}  # fmt: skip
        return {"unlike_training": splits, "unlike": summary}

    def _test(self, split: str) -> dict[str, Any]:
        """Compare the pictures of a split with the run's held-out ones, where there are enough of both."""
        module, rows = self.predictor.module.unlike, self._features[split]
        assert module is not None
        held = module.sample.cpu().numpy()
        if min(len(rows), len(held)) < LEAST_OF_TEST:
            return {}
        test = compare_samples(np.stack(rows), held, seed=self.seed)
        return {"mmd2": test.mmd2, "p": test.p, "compared": [test.n, test.m]}

    def _ask(self, config: EvaluateConfig) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        paths = list(find_pictures([str(config.unlike)]))
        outputs = self.predictor.outputs(paths, batch_size=config.batch_size, workers=config.workers)
        distances, doubts = [], []
        with counting_bar(progress_console(config.quiet), "pictures of no class") as progress:
            for number, output in enumerate(outputs, 1):
                if output.logits is not None and output.distance is not None:
                    distances.append(output.distance)
                    doubts.append(1.0 - float(self.predictor.probs(output.logits).max()))
                if progress is not None:
                    progress(number, len(paths))
        if not distances:
            raise DataError(f"--unlike {config.unlike}: none of its {len(paths)} pictures can be read - name others")
        return np.array(distances), np.array(doubts)


def doubts_of(predictions: Tensor) -> npt.NDArray[np.float32]:
    """Return 1 minus the largest probability of each picture, ``(N,)``, for ``(N, C)``."""
    doubts: npt.NDArray[np.float32] = (1.0 - predictions.max(dim=1).values).numpy()
    return doubts
