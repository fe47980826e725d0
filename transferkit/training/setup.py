"""From options to what is trained: the data, read and checked, the model with its weights, its phases, the machine."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from transferkit.core.errors import ConfigError, DataError, TransferkitWarning
from transferkit.core.errors import gather as gather_problems
from transferkit.data.augment.place import Place
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.samplers import EpochSampler
from transferkit.data.batches.statistics import measured, ranged
from transferkit.data.batches.tryout import try_augmentation
from transferkit.data.index.targets import framed
from transferkit.data.scan.records import SPLITS
from transferkit.features.engine.compute import Compute
from transferkit.machine.cores import available_cores, free_memory
from transferkit.machine.device import choose_accelerator, choose_workers, device_of, tune_process
from transferkit.machine.lightning_import import L
from transferkit.machine.precision import Machine, MemoryFormat
from transferkit.models.backbones.registry import Backbone, create_backbone
from transferkit.models.initial import load_weights_from
from transferkit.models.module import TransferModule
from transferkit.models.parts import LossOptions
from transferkit.models.task import Task, task_of
from transferkit.models.tuning.layout import layout_of
from transferkit.models.tuning.selectors import HEAD, Layout
from transferkit.options.augment import augment_words
from transferkit.options.sizes import train_sizes
from transferkit.options.training import AUTO, TrainingOptions
from transferkit.runs.seen import warn_of_seen
from transferkit.runs.summary import data_lines, print_lines
from transferkit.show.progress import counting_bar, output_console, progress_console, waiting
from transferkit.training.plan.amount import Choice, by_amount
from transferkit.training.plan.options import adapter_of, lacks_solver, resolve_phases, usual_lr
from transferkit.training.plan.phases import Phase
from transferkit.training.plan.plan import Plan
from transferkit.training.plan.sizes import epoch_sizes
from transferkit.training.ranks.parallel import by_first, gather, is_writer, local_world
from transferkit.training.rehearsal import rehearse
from transferkit.training.steps import CompileChoice, choose_steps

__all__ = ["Options", "Training", "loss_options", "prepare"]

log = logging.getLogger("transferkit")

USUAL_BATCH = 32
"""Of a loader that is built before the batch size has been measured."""

Options = TypeVar("Options", bound=TrainingOptions)


@dataclass(frozen=True)
class Training(Generic[Options]):
    """What is trained, on which pictures, by which phases and with what.

    Attributes:
        config: The options. What was ``"auto"`` is, step by step, what was chosen for it.
        data: The pictures, read and checked.
        module: The model, with weights.
        phases: Resolved against the module's groups.
        machine: What it is computed with.
        console: Where progress is shown; ``None`` for nowhere.
        taken: Classes, labels or targets whose rows of the head are those of the run to start from.
        choices: Options that nobody named, as they were chosen for these pictures.
    """

    config: Options
    data: ImageData
    module: TransferModule
    phases: tuple[Phase, ...]
    machine: Machine
    console: Console | None = None
    taken: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()

    @cached_property
    def plan(self) -> Plan:
        """What happens in which step."""
        config, size = self.config, self.data.batch_size
        share = EpochSampler(
            self.data.rows("train"), batch_size=size, seed=config.seed,
            world_size=config.devices * config.num_nodes,
        )  # fmt: skip
        batches = math.ceil(len(share) / size)
        return Plan(self.phases, layout_of(self.module), math.ceil(batches / config.accumulate))

    @property
    def plan_values(self) -> dict[str, Any]:
        """The content of `plan.json`."""
        sides = epoch_sizes(self.phases, self.config.train_size, self.plan.layout)
        return {
            **self.plan.to_dict(),
            "choices": [asdict(choice) for choice in self.choices],
            "train_sizes": [side or max(self.module.data_config.image_size) for side in sides],
            "steps": {
                "precision": self.machine.precision, "memory_format": self.machine.memory_format,
                "reason": self.machine.reason, "compile": self.config.compile,
            },
        }  # fmt: skip

    @property
    def device(self) -> str:
        """Where it is computed: ``"cpu"``, ``"cuda"`` or ``"mps"``."""
        return device_of(self.machine.accelerator)

    @property
    def compute(self) -> Compute:
        """What features are computed with."""
        # bf16 in training says nothing of features, where every row counts: it is tried, and used if exact enough.
        precision = "32" if self.machine.precision == "32" else "auto"
        return Compute(self.device, precision, workers=self.machine.workers, threads=available_cores())

    def in_batches_of(self, size: int) -> Training[Options]:
        """Return the training with so many pictures per batch."""
        return replace(self, config=replace(self.config, batch_size=size), data=self.data.in_batches_of(size))

    def with_phases(self, phases: tuple[Phase, ...], choice: Choice) -> Training[Options]:
        """Return the training of other phases, which were chosen."""
        return replace(self, phases=phases, choices=(*self.choices, choice))

    def compiled(self, choice: CompileChoice) -> Training[Options]:
        """Return the training with steps compiled, or not; compiled ones are channels-last, unless asked otherwise."""
        layout: MemoryFormat = (
            "channels_last" if choice.on and self.config.memory_format == AUTO else self.machine.memory_format
        )
        machine = replace(self.machine, memory_format=layout)
        return replace(self, config=replace(self.config, compile="on" if choice.on else "off"), machine=machine)

    def at_lr(self, lr: float, phases: tuple[Phase, ...]) -> Training[Options]:
        """Return the training with this LR, which these phases have."""
        return replace(self, config=replace(self.config, lr=lr), phases=phases)

    @property
    def shown_pixels(self) -> float:
        """Pixels that training shows the model, in all epochs together."""
        return _shown_pixels(self.data, self.phases)

    @property
    def settled_config(self) -> Options:
        """The options that repeat this training: with what was chosen for ``"auto"``, and phases spelled out."""
        phases = [phase.to_dict() for phase in self.phases]
        machine = self.machine
        return replace(
            self.config, precision=machine.precision, memory_format=machine.memory_format, phases=phases,
            augment_on=self.data.augment_on,
        )  # fmt: skip


def prepare(config: Options, *, quiet: bool = False, fresh: bool = True) -> Training[Options]:
    """Build everything that a training needs, and choose what it is computed with.

    Args:
        config: The options.
        quiet: No progress bars, and no line on what was understood of the data.
        fresh: Whether weights named by ``init_from`` are loaded; a resume has them in its checkpoint.

    Raises:
        ConfigError: The phases or the accelerator do not fit, or an option needs a validation split that is not there.
        DataError: Pictures are missing, unreadable or contradictory.
        BackboneError: The backbone is unknown, or its weights cannot be had or do not fit.
    """
    accelerator = choose_accelerator(config.accelerator, config.devices)
    workers, threads = choose_workers(config.workers, accelerator)
    tune_process(threads)
    config.require_places()
    console = progress_console(quiet)
    task = task_of(config)
    config = ranged(config, task.targets)
    L.seed_everything(config.seed, workers=True, verbose=False)
    backbone = create_backbone(
        config.backbone,
        weights=config.weights,
        image_size=config.size,
        channels=config.channels,
        any_size=bool(train_sizes(config.train_size)),
    )
    usual = backbone.data_config
    if config.tile and not task.targets.tiles:
        resolve_phases(config, None)  # which refuses it, with all else that is wrong
    prepared = config.prepared(usual)
    backbone.data_config = framed(task.targets, prepared.in_windows() if config.tile else prepared, config.fit)
    timed = config.workers is None and workers > 0 and accelerator != "cpu"
    data = _data(config, task, backbone, None if timed else workers, console)
    if backbone.measures:
        pictures = {record.sha256: record.path for record in data.index.split("train")}
        backbone.data_config = data.data_config = measured(data.data_config, pictures)
    place = data.place(device_of(accelerator))
    data.augment_on = "device" if place.on_device else "cpu"
    try_augmentation(data)
    config, choices = by_amount(config, data.rows("train"), task.of(data.index.targets.spec), backbone)
    if isinstance(config.batch_size, int):
        data = data.in_batches_of(config.batch_size)
    if not quiet and is_writer():
        solved_alone = config.phases == "probe" and config.solves_probe and not lacks_solver(config)
        lines = [] if solved_alone else [(choice.title, choice.sentence) for choice in choices]
        lines = [*data_lines(data.index), *_window_lines(data), *_augment_lines(data, place), *lines]
        print_lines(output_console(), lines)
    module = _module(config, task, backbone, data)
    module.keeps_statistics = config.batch_norm == "keep"
    taken: tuple[str, ...] = ()
    if config.init_from is not None and fresh:
        taken = load_weights_from(Path(config.init_from), module)
    if (adapter := adapter_of(config)) is not None:
        words = module.adapt(adapter)  # on the weights that training starts from: DoRA takes their lengths
        log.info("%s: %s", adapter.kind, words)
        if not quiet and is_writer():
            print_lines(output_console(), [("adapter", f"{adapter.kind}, {words}")])
    rehearse(config, module)
    phases = resolve_phases(config, layout_of(module))
    _warn_of_head(config, phases, layout_of(module))
    if isinstance(config.phases, str) and phases[0].head_alone and lacks_solver(config):
        trained = f"the head is trained for {phases[0].epochs} epochs: {task.name} has no solver for it"
        log.info(trained)
        if console is not None:
            console.print(trained)
    _require_val(config, data, phases)
    warn_of_seen([config.init_from, config.weights, config.teacher], data.index, config.decoding())
    layout = config.memory_format  # of runs that were begun before there was a choice, it is the usual one
    layout = "channels_last" if layout == AUTO and not fresh else layout
    with waiting(console, "timing steps"):
        choice = by_first(choose_steps)(
            config.precision, layout, accelerator, module, data.batch_size,
            pixels=_shown_pixels(data, phases),
        )  # fmt: skip
    log.info("precision %s, %s: %s", *choice.way, choice.reason)
    if len(set(gather(data.index.digest()))) > 1:
        raise DataError(f"{config.data}: other pictures on another machine, expected the same - copy the folder anew")
    machine = Machine(accelerator, choice.way.precision, workers, threads, choice.reason, choice.way.memory_format)
    return Training(config, data, module, phases, machine, console, taken, choices)


def _shown_pixels(data: ImageData, phases: Sequence[Phase]) -> float:
    """Return the pixels that training shows a model, in all epochs together."""
    height, width = data.data_config.image_size
    return float(data.rows("train") * sum(phase.epochs for phase in phases) * height * width)


def _window_lines(data: ImageData) -> list[tuple[str, str]]:
    """Return how many windows each split has, where pictures are seen in windows."""
    counts = [f"{data.rows(split):,} {split}" for split in SPLITS if data.index.split(split)]
    height, width = data.data_config.image_size
    text = f"{' / '.join(counts)}, of {width} x {height} pixels at the pictures' own resolution"
    return [("windows", text)] if data.data_config.tiled else []


def _augment_lines(data: ImageData, place: Place) -> list[tuple[str, str]]:
    """Return where pictures are augmented, and why."""
    where = "on the device" if place.on_device else "on the CPU"
    text = f"{augment_words(data.augment)}, {where}: {place.reason}"
    if data.data_config.channels != len("RGB") and isinstance(data.augment, str):
        text += "; hue, saturation and grey are of RGB, light and contrast alone change here"
    return [] if data.augment == "none" else [("augment", text)]


def _warn_of_head(config: TrainingOptions, phases: Sequence[Phase], layout: Layout) -> None:
    """Warn where a head that is new stays what it was drawn as."""
    learns = any(leaf.group == HEAD and not leaf.kinds for phase in phases for leaf in phase.parts(layout))
    if not learns and config.init_from is None:
        warnings.warn("no phase trains the weights of the head, which are drawn at random - add head to `train` of one",
                      TransferkitWarning, stacklevel=3)  # fmt: skip


def _data(
    config: TrainingOptions, task: Task, backbone: Backbone, workers: int | None, console: Console | None
) -> ImageData:
    """Read and check the pictures."""
    with counting_bar(console, "reading pictures") as progress:
        data = ImageData(
            config.data,
            batch_size=config.batch_size if isinstance(config.batch_size, int) else USUAL_BATCH,
            train_size=config.train_size,
            tile=config.tile,
            augment=config.augment,
            fit=config.fit,
            channels=config.channels,
            value_range=config.value_range,
            augment_on=config.augment_on,
            flip=not config.no_flip,
            sampler=config.sampler,
            mixup=config.mixup,
            cutmix=config.cutmix,
            data_config=backbone.data_config,
            val_split=config.val_split,
            test_split=config.test_split,
            group_by=config.group_by,
            group_near=config.group_near,
            seed=config.seed,
            split_seed=config.split_seed,
            workers=workers,
            keep_bytes=free_memory() // (4 * local_world()),
            pixel_store=config.pixel_store,
            skip_bad=config.skip_bad,
            rescan=config.rescan,
            allow_empty_classes=config.allow_empty_classes,
            allow_leaks=config.allow_leaks,
            reader=task.targets,
            targets=config.targets,
            path_column=config.path_column,
            label_column=config.label_column,
            label_separator=config.label_separator,
            root=config.root,
            mask_values=config.mask_values,
            palette=config.palette,
            progress=progress,
        )
        pictures = len(data.index.split("train"))
    if config.sampler == "balanced" and len(data.index.targets.stratum_names) < 2:
        raise ConfigError(f"--sampler balanced draws classes or labels alike, and {task.name} has none - leave it out")
    if pictures < 2:
        raise DataError(f"{config.data}: {pictures} training picture(s), expected at least 2 - lower --val-split")
    return data


def _module(config: TrainingOptions, task: Task, backbone: Backbone, data: ImageData) -> TransferModule:
    spec = data.index.targets.spec
    options = loss_options(config, task.of(spec), data)
    L.seed_everything(config.seed, workers=True, verbose=False)  # a fetched backbone must not change the head's start
    return TransferModule(
        backbone,
        task.heads.width(spec),
        task.head_kinds.usual if config.head == AUTO else config.head,
        class_names=spec.names,
        task=task,
        target_facts=spec.facts,
        drop_rate=config.drop_rate,
        label_smoothing=options.label_smoothing,
        loss=options.name,
        focal_gamma=options.focal_gamma,
        class_weights=options.class_weights,
        optimizer=config.optimizer,
        lr=usual_lr(config, task),
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )


def loss_options(config: TrainingOptions, task: Task, data: ImageData | None = None) -> LossOptions:
    """Return what the training loss is made of.

    Args:
        config: The options.
        task: Of the data set.
        data: The training pictures, by which rare answers are weighed; ``None`` where nothing is to be weighed.

    Raises:
        ConfigError: Weights are wanted, and the answers cannot be balanced.
    """
    usual = 0.0 if config.teacher is not None else task.objective.smoothing or 0.0
    smoothing = usual if config.label_smoothing is None else config.label_smoothing
    weights = None
    if config.class_weights == "balanced" and data is not None:
        targets = data.targets("train") if task.extent.whole else None  # those of pixels are counted in the spec
        weights = task.objective.balanced(targets, task.heads.width(data.index.targets.spec))
    return LossOptions(config.loss, config.focal_gamma, weights, smoothing)


def _require_val(config: TrainingOptions, data: ImageData, phases: tuple[Phase, ...]) -> None:
    """Refuse options that need a validation split where there is none, before anything is computed."""
    if data.index.split("val"):
        return
    problems = ["--interpolate chooses its share on val"] if config.interpolate else []
    problems += [f"schedule {phase.curve.name} of phase {phase.name!r} goes by the loss on val"
              for phase in phases if phase.curve.needs_values]  # fmt: skip
    if problems:
        raise ConfigError(
            f"the data have no val pictures: {gather_problems(problems)} - add a val folder, or a --val-split above 0"
        )
