"""A finished run as the teacher of another: what it says of every view is computed once, and learnt from then on.

The student sees the views that the teacher saw, which matters more than how long it learns (Beyer et al. 2022,
*Knowledge distillation: A good teacher is patient and consistent*). There the teacher is asked anew in every step; here
about K views of each picture, which the epochs take in turn, and its answers are kept in the feature store.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.text import listing
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import Picture
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.taps import OWN, POOLED, Tap
from transferkit.features.engine.whole import WholeNetwork
from transferkit.features.extract.extract import make_views
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.store.store import FeatureStore
from transferkit.models.answers.teaching import Teaching
from transferkit.models.artifact import ModelInfo, load_model, read_info
from transferkit.models.task import task_of
from transferkit.options.training import TrainingOptions
from transferkit.runs.summary import print_lines
from transferkit.show.progress import counting_bar, output_console
from transferkit.training.head.features import Progress, different_views
from transferkit.training.ranks.parallel import is_writer
from transferkit.training.setup import Options, Training

__all__ = ["Lessons", "ask_teacher", "check_teacher", "teach", "teacher_facts"]


@dataclass(frozen=True)
class Lessons:
    """What a teacher says of training pictures.

    Attributes:
        answers: ``(1 + K, N, ...)``, as the training loss takes targets: of the evaluation view, and of K augmented.
        computed: Pictures that it was asked about now; the others were in the store.
        info: Of the teacher.
    """

    answers: torch.Tensor
    computed: int
    info: ModelInfo

    @property
    def sentence(self) -> str:
        """What is told of them."""
        views, pictures = self.answers.shape[:2]
        known = "" if self.computed == pictures else f", {pictures - self.computed:,} of them from the store"
        shown = f"{views - 1} augmented views of {pictures:,} pictures" if views > 1 else f"{pictures:,} pictures"
        size = " x ".join(map(str, self.info.preprocessing.image_size))
        return f"{self.info.backbone} at {size} px answers for {shown}{known}"


def check_teacher(config: TrainingOptions) -> None:
    """Refuse a teacher that cannot teach, before any picture is read.

    Raises:
        ConfigError: It gives another kind of answers, or those of this kind cannot be taught.
        CheckpointError: Its directory holds no model.
        DataError: The manifest cannot be read.
    """
    if config.teacher is None:
        return
    task, info = task_of(config), read_info(Path(config.teacher))
    task.require("teaching", "distill")
    if info.task != task.name:
        raise ConfigError(
            f"{config.teacher} answers {info.task}, and these pictures are of {task.name} - name another teacher"
        )


def teach(training: Training[Options], *, quiet: bool = False) -> Training[Options]:
    """Let a training learn from the run that its options name; leave it as it is where they name none.

    Args:
        training: All is prepared, no step has been taken.
        quiet: No line on what the teacher answers.

    Raises:
        ConfigError: The teacher gives other answers than the pictures have.
        CheckpointError: Its directory holds no model, or a damaged one.
        DataError: A picture cannot be read any more.
        TrainingError: Memory ran out.
    """
    config, module = training.config, training.module
    if config.teacher is None:
        return training
    with counting_bar(training.console, "asking the teacher") as progress:
        lessons = ask_teacher(config, training.data, training.compute, progress=progress)
    training.data.teach(lessons.answers)
    teaching: Teaching = module.task.require("teaching", "distill")
    if teaching.softens and config.teacher_temperature > 1:
        module.soften(config.teacher_temperature)
    if not quiet and is_writer():
        print_lines(output_console(), [("teacher", lessons.sentence)])
    return training


def ask_teacher(
    config: TrainingOptions, data: ImageData, compute: Compute, *, progress: Progress | None = None
) -> Lessons:
    """Return what a teacher says of the views of the training pictures.

    It sees them at its own size, prepared in its own way, as the same draws show them to the student.

    Args:
        config: Names the teacher, and says how its answers are mixed with the true ones.
        data: The pictures.
        compute: What to compute with.
        progress: Called with pictures computed and pictures to compute.

    Raises:
        TransferkitError: As `teach` says.
    """
    run = Path(str(config.teacher))
    module, info = load_model(run)
    order = _order(run, info, data)
    count = different_views(data, config.teacher_views)
    views = make_views(info.preprocessing, count, data.augment, data.seed, flip=data.flip, whole=data.whole)
    pictures = [Picture(record.path, record.sha256) for record in data.index.split("train")]
    tap = Tap(POOLED, OWN)
    extraction = extract_pictures(
        pictures, FrozenBackbone(WholeNetwork(module)), [tap], views, FeatureStore(config.store), compute,
        progress=progress, pixels=data.pixels,
    )  # fmt: skip
    if extraction.failures:
        at, reason = next(iter(extraction.failures.items()))
        raise DataError(f"{pictures[at].name}: cannot be read any more ({reason}) - run again")
    teaching: Teaching = module.task.require("teaching", "distill")
    said = teaching.answers(torch.from_numpy(extraction.rows[tap]), config.teacher_temperature)[..., order]
    answers = teaching.mixed(said, data.targets("train"), config.teacher_share)
    return Lessons(answers.contiguous(), extraction.computed, info)


def teacher_facts(config: TrainingOptions) -> dict[str, Any]:
    """Return what `metrics.json` says of the teacher: nothing where there was none."""
    if config.teacher is None:
        return {}
    values = {name: getattr(config, f"teacher_{name}") for name in ("views", "share", "temperature")}
    return {"teacher": {"run": config.teacher, "model_sha256": read_info(Path(config.teacher)).sha256, **values}}


def _order(run: Path, info: ModelInfo, data: ImageData) -> list[int]:
    """Return where each answer of the student stands among those of the teacher."""
    names, known = data.index.targets.spec.names, info.class_names
    if set(names) != set(known):
        missing, other = (sorted(set(a) - set(b)) for a, b in ((names, known), (known, names)))
        parts = [f"does not know {listing(missing, limit=5)}"] if missing else []
        parts += [f"knows {listing(other, limit=5)} besides"] if other else []
        raise ConfigError(
            f"{run} {' and '.join(parts)}, expected the answers of these pictures - name a teacher of the same classes"
        )
    return [known.index(name) for name in names]
