"""The options of the verbs that train, plan a training or look for its options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from transferkit.core.text import listing
from transferkit.options.augment import augment_option, no_flip_problem
from transferkit.options.data import PIXEL_STORE, SEED, BackboneOptions, fit_problems, pixel_store_problems
from transferkit.options.fields import (
    BELOW_ONE,
    EPOCHS,
    MOST_EPOCHS,
    NOT_NEGATIVE,
    POSITIVE,
    Options,
    Range,
    at_least,
    flag,
    option,
)
from transferkit.options.loggers import logger_args_option, logger_option, logger_problems
from transferkit.options.sizes import image_size_problem, train_size_problems

__all__ = [
    "FinetuneConfig",
    "LRFindConfig",
    "PlanConfig",
    "SearchConfig",
    "SelftestConfig",
    "TrainingOptions",
]

AUTO = "auto"

OF_MEANS = ("arcface", "cosine", "prototype")
"""Heads of one point per class, which can be solved as class means."""

SOLVED = ("auto", "linear", "hypercolumns", "prototype")
"""Heads that are solved unasked: one linear layer, or prototypes, which are class means by their definition."""

SOLVABLE = (*SOLVED, *OF_MEANS)
"""Heads that can be solved."""

DECAY = Range("a decay in (0, 1), such as 0.999", lambda value: 0.0 < value < 1.0)
RATIO = Range("a ratio in (0, 1]", lambda value: 0.0 < value <= 1.0)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(BackboneOptions):
    """The backbone's start and the head."""

    init_from: str | None = option(
        None, "start from the weights of this run directory, model.safetensors or checkpoint"
    )
    head: str = option(
        "auto",
        "auto, linear, mlp, cosine, attention-pool, avgmax, prototype, arcface or a registered head; "
        "of masks linear, hypercolumns, unet, fpn, deeplabv3plus; of "
        "objects faster_rcnn, retinanet, fcos, mask_rcnn",
    )
    drop_rate: float = option(0.0, "dropout in the head, [0, 1)", BELOW_ONE)
    tile: bool = option(
        False,
        "of masks: pictures at their own resolution, in windows of --image-size, instead of whole and smaller",
    )


@dataclass(frozen=True, kw_only=True)
class CraftOptions(ModelOptions):
    """Additions to a training; everything here is off by default."""

    adapter: Literal["none", "lora", "dora"] = option(
        "none", "train low-rank additions to frozen layers, which are merged into them at the end (needs peft)"
    )
    adapter_rank: int = option(8, "rank of the additions", at_least(1))
    adapter_alpha: float | None = option(None, "they count by alpha / rank; default: twice the rank", POSITIVE)
    adapter_targets: str = option("all", "the layers that have one, as a selector: all, blocks.*, *.attn.qkv, ...")
    teacher: str | None = option(
        None, "learn the answers of this finished run instead of the labels; it is asked once, about every view"
    )
    teacher_views: int = option(
        4, "augmented views of each picture that a teacher answers for; the epochs take them in turn", at_least(1)
    )
    teacher_share: float = option(
        1.0, "share of the teacher in what is learnt, the rest is of the labels, (0, 1]", RATIO
    )
    teacher_temperature: float = option(
        2.0, "what softens the probabilities of a teacher, and those that learn from it, at least 1",
        Range("a finite number of at least 1", lambda value: 1.0 <= value < float("inf")),
    )  # fmt: skip
    loss: str = option(
        "auto",
        "the training loss: cross_entropy or focal; of labels bce, asymmetric or focal; of numbers mse, huber or l1",
    )
    focal_gamma: float = option(2.0, "focal loss: how much less an easy picture counts, at least 0", NOT_NEGATIVE)
    class_weights: Literal["none", "balanced"] = option("none", "balanced weighs the loss of rare classes or labels up")
    sampler: Literal["shuffle", "balanced"] = option("shuffle", "balanced draws every class equally often")
    mixup: float = option(0.0, "mix pairs of pictures: alpha of the beta distribution; 0 for none", NOT_NEGATIVE)
    cutmix: float = option(0.0, "paste a part of one picture into another: alpha; 0 for none", NOT_NEGATIVE)
    ema: float | None = option(
        None, "keep an exponential moving average of the weights, decay in (0, 1), and use it", DECAY
    )
    l2_sp: float | None = option(
        None, "pull the backbone towards its starting weights, by this strength (L2-SP)", POSITIVE
    )
    interpolate: bool = option(False, "mix probe and fine-tuned weights, share chosen on val (WiSE-FT)")
    snapshots: bool = option(False, "keep the weights at the end of every sgdr cycle; their average is measured too")
    batch_norm: Literal["auto", "batch", "keep"] = option(
        "auto",
        "what the backbone's batch norm uses in training: statistics of the batch, or those it came with, kept; auto "
        "keeps them where pictures are few",
    )
    recalibrate_bn: bool = option(False, "batch-norm statistics of the result from one pass over the training pictures")
    train_size: int | str | list[int] | None = option(
        None,
        "side of training pictures in pixels, default: --image-size; several, such as 128,160,224, share the epochs of "
        "fine-tuning out between them, in this order",
    )
    fixres_epochs: int = option(
        0, "last epochs of the head alone on pictures as they are evaluated (FixRes)", at_least(0, most=MOST_EPOCHS)
    )
    accumulate: int = option(1, "batches per optimizer step", at_least(1))


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(CraftOptions):
    """Phases, LRs and length of a training, and the machine it runs on."""

    phases: str | list[dict[str, Any]] = option(
        "auto",
        "{auto|probe|finetune|probe-finetune|gradual}, or a list of phases in a recipe; auto: probe where "
        "cross-validation leaves nothing to win, or few pictures come without val, else probe-finetune",
    )
    train: str | None = option(
        None,
        "what ready-made phases fine-tune besides the head, as a selector: all, bias, norm, 'layer[34] - norm', ...; "
        "default: all, or the adapter",
    )
    epochs: int = option(10, "fine-tuning epochs (of the probe, when only the probe is trained, by sgd)", EPOCHS)
    probe: Literal["auto", "solve", "sgd"] = option(
        "auto",
        "the head alone is solved on cached features, or trained by sgd; auto solves a linear head, and prototypes",
    )
    probe_views: int = option(
        2, "augmented views of each training picture that a solved probe is fitted on", at_least(0)
    )
    probe_epochs: int | None = option(
        None, "epochs of the head alone, where it is trained; default: 3, and --epochs where nothing else is", EPOCHS
    )
    lr: float | Literal["auto"] | None = option(
        None,
        "peak learning rate of the head while fine-tuning, per step; auto looks for it first (lr-find); default: "
        "0.001, of objects 0.0003, and less for few steps after a solved head",
        POSITIVE,
    )
    probe_lr: float | None = option(
        None, "peak LR of the head while it is trained alone, per step; default: 0.01, of objects 0.0003", POSITIVE
    )
    schedule: str | dict[str, Any] = option(
        "cosine",
        "constant, step, exponential, cosine, polynomial, inverse_sqrt, plateau, one_cycle, triangular, triangular2, "
        "exp_range or sgdr; with options as '{name: sgdr, cycle_epochs: 2}'",
    )
    warmup_epochs: float = option(
        0.5, "linear warmup of the schedules that are named without options, in epochs", NOT_NEGATIVE
    )
    layer_decay: float = option(
        0.75, "peak LR of a layer group over that of the next one nearer the head, (0, 1]", RATIO
    )
    optimizer: Literal["adamw", "sgd", "adam", "rmsprop"] = option("adamw", "the optimizer")
    weight_decay: float = option(0.05, "weight decay; never applied to biases and norms", NOT_NEGATIVE)
    momentum: float = option(0.9, "momentum of sgd and rmsprop, [0, 1)", BELOW_ONE)
    nesterov: bool = option(True, "Nesterov momentum for sgd")
    clip: float | None = option(1.0, "largest gradient norm; 'null' for no clipping", POSITIVE)
    label_smoothing: float | None = option(
        None, "label smoothing of the training loss, [0, 1); default: 0.1 for classes, 0 for labels", BELOW_ONE
    )
    batch_size: int | Literal["auto"] | None = option(
        None,
        "pictures per step and device; auto takes what fits and goes on with less after out-of-memory; default: 8, 16 "
        "or 32 by the number of pictures",
        at_least(1),
    )
    patience: int | None = option(
        None, "stop when this many epochs of the last phase bring no improvement", at_least(1)
    )
    monitor: str = option(
        "auto", "what the best epoch is chosen by: val_loss or a figure of the task, such as val_acc, by its best "
        "value; auto: the losses of the val pictures, compared one by one (of masks val_miou, of objects val_map)",
    )  # fmt: skip
    augment: str | list[Any] = augment_option("training augmentation")
    augment_on: Literal["auto", "cpu", "device"] = option(
        "auto", "where light and standard run: auto is the device on a GPU, in batches, and the CPU elsewhere"
    )
    no_flip: bool = option(False, "augmentation mirrors no picture: for arrows, digits, text, left and right")
    precision: Literal["auto", "32", "bf16"] = option("auto", "auto measures which is faster on this machine")
    memory_format: Literal["auto", "channels_last", "contiguous"] = option(
        "auto", "how pictures and weights lie in memory while training; auto measures which is faster on this machine"
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto", "compile what training steps compute; auto where the steps to come pay for it"
    )
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = option("auto", "where to train")
    devices: int = option(1, "number of devices, a process each; under torchrun: processes per machine", at_least(1))
    num_nodes: int = option(1, "number of machines", at_least(1))
    strategy: str = option(
        "auto", "Lightning's strategy, such as ddp or fsdp; auto: ddp where there are several devices"
    )
    workers: int | None = option(None, "decoding processes; default: what the processor has room for", at_least(0))
    keep_activations: Literal["auto", "off"] = option(
        "auto", "run the frozen part once a phase, where there is no augmentation and memory suffices"
    )
    store: str | None = option(None, "directory of the feature store; default: in the user's cache")
    pixel_store: str = option(
        PIXEL_STORE,
        "disk, in the user's cache, for decoded pictures that do not fit into memory, such as 500MB; what was used "
        "longest ago goes first; off: decode them again in every epoch",
    )

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        yield from pixel_store_problems(self.pixel_store)
        yield from train_size_problems(self.train_size, tile=self.tile)
        yield from fit_problems(self.fit, tile=self.tile)
        yield from no_flip_problem(self.augment, self.no_flip)
        if self.teacher is None:
            said = [flag(name) for name in ("teacher_views", "teacher_share", "teacher_temperature")
                    if getattr(self, name) != getattr(CraftOptions, name)]  # fmt: skip
            if said:
                yield f"{listing(said, quote=False)} would mean nothing without --teacher RUN - leave it out"
        elif self.head == "arcface":
            yield "--head arcface learns true classes with a margin, and a teacher gives shares - choose another head"
        elif self.mixup or self.cutmix:
            yield "--mixup and --cutmix make pictures that the teacher never saw, and it is asked once - leave them out"
        if self.batch_norm == "keep" and self.recalibrate_bn:
            yield "--batch-norm keep trains on the statistics that --recalibrate-bn would replace - choose one"
        yield from self._adapter_conflicts()
        if self.sampler == self.class_weights == "balanced":
            yield "--sampler balanced and --class-weights balanced would count rare classes twice over - choose one"
        for name, of in (("momentum", ("sgd", "rmsprop")), ("nesterov", ("sgd",))):
            if self.optimizer not in of and getattr(self, name) != getattr(TrainingOptions, name):
                yield f"{flag(name)} is of --optimizer {' and '.join(of)}, not {self.optimizer} - leave it out"
        if self.probe == "solve":
            if self.head not in SOLVABLE:
                yield f"--probe solve fits a linear head or class means, not {self.head!r} - pass --probe sgd"
            for name in ("probe_epochs", "probe_lr"):
                if getattr(self, name) is not None:
                    yield f"{flag(name)} belongs to --probe sgd; a solved probe has none"

    def _adapter_conflicts(self) -> Iterator[str]:
        if self.train is not None and (not isinstance(self.phases, str) or self.phases in ("probe", "gradual")):
            reason = "a list of phases says it itself" if isinstance(self.phases, list) else f"not of {self.phases}"
            yield f"--train is of --phases finetune, probe-finetune and auto, {reason} - leave it out"
        if self.adapter == "none":
            for name in ("adapter_rank", "adapter_alpha", "adapter_targets"):
                if getattr(self, name) != getattr(TrainingOptions, name):
                    yield f"{flag(name)} is of --adapter lora and dora - pass --adapter, or leave it out"
            return
        if self.phases == "gradual":
            yield "--phases gradual unfreezes whole layer groups, which --adapter leaves frozen - choose one"
        for name in ("interpolate", "snapshots", "l2_sp"):
            if getattr(self, name):
                yield f"{flag(name)} works on the weights that --adapter leaves frozen - choose one"

    @property
    def solves_probe(self) -> bool:
        """Whether the head alone is solved on cached features; by default where it can be and SGD is not set up."""
        if self.probe == "auto":
            return self.head in SOLVED and self.probe_epochs is None and self.probe_lr is None
        return self.probe == "solve"

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a recipe writes them."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingOptions):
    """Fine-tune a pretrained backbone on a folder of pictures; writes a run directory."""

    dry_run: bool = option(False, "only say what would happen: phases, LRs, predicted time and memory; trains nothing")
    overfit_batches: int | None = option(
        None, "a check, not a training: so many batches must be learnt to 100 %; writes no run", at_least(1)
    )
    calibrate: Literal["auto", "temperature", "vector", "conformal", "none"] = option(
        "auto", "fit the confidence on val: one number for all logits (auto) or a scale and a shift per class; "
        "intervals of numbers: conformal (auto)",
    )  # fmt: skip
    report: Literal["on", "off"] = option("on", "write report.html")
    logger: str | list[str] | None = logger_option()
    logger_args: dict[str, Any] | None = logger_args_option()
    out: str | None = option(None, "run directory; default: runs/<data>-<backbone>-<n>")
    resume: bool = option(False, "go on with the run in --out, exactly where it stopped")
    overwrite: bool = option(False, "replace the run in --out; it is deleted only when the new one is done")
    quiet: bool = option(False, "no progress bars, no summary")

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        yield from logger_problems(self.logger, self.logger_args)
        if self.resume and self.overwrite:
            yield "--resume and --overwrite exclude each other, expected at most one of them"
        if self.resume and self.out is None:
            yield "--resume needs --out, the run directory to go on with"
        modes = {"--dry-run": self.dry_run, "--resume": self.resume, "--overfit-batches": self.overfit_batches}
        chosen = [name for name, value in modes.items() if value]
        if len(chosen) > 1:
            yield f"{' and '.join(chosen)} exclude each other, expected at most one of them"


@dataclass(frozen=True, kw_only=True)
class PlanConfig(TrainingOptions):
    """Preview of `finetune`, without training: phases, every group's LR over time, time and memory."""

    rgn: bool = option(False, "also propose which groups to tune, by their relative gradient norms")
    out: str | None = option(None, "directory for plan.json and plan.png; default: runs/<data>-<backbone>-plan")
    quiet: bool = option(False, "no progress bars, no table")


@dataclass(frozen=True, kw_only=True)
class LRFindConfig(TrainingOptions):
    """LR range test: train a copy of the model while the LR rises, and suggest where to start from."""

    phase: str | None = option(None, "the phase to find the LR of; default: the first one that is trained by sgd")
    steps: int = option(100, "steps of the test, at least 30", at_least(30))
    lr_min: float = option(1e-7, "first LR of the head, per step", POSITIVE)
    lr_max: float = option(1.0, "last LR of the head, per step", POSITIVE)
    spacing: Literal["exponential", "linear"] = option("exponential", "how the LR rises")
    measure: Literal["train", "val"] = option("train", "the loss of the batch, or of some validation pictures")
    out: str | None = option(None, "directory for lr.csv and lr.png; default: runs/<data>-<backbone>-lr")
    quiet: bool = option(False, "no progress bars, no summary")

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        if self.lr_min >= self.lr_max:
            yield f"--lr-min is {self.lr_min} and --lr-max {self.lr_max}, expected lr-min below lr-max"


@dataclass(frozen=True, kw_only=True)
class SearchConfig(TrainingOptions):
    """Search for options: several fine-tunings, chosen by Optuna; writes the best ones as a recipe."""

    trials: int = option(20, "trials of the study in all, those of earlier calls included", at_least(1))
    search_sampler: Literal["tpe", "random"] = option("tpe", "how the next options are chosen")
    prune: bool = option(True, "end trials early that are worse than the others were at that epoch")
    space: dict[str, Any] | None = option(
        None, "what to search, in a recipe; default: LR, decays, augmentation, phases"
    )
    search_timeout: float | None = option(None, "start no trial after so many seconds", POSITIVE)
    logger: str | list[str] | None = logger_option()
    logger_args: dict[str, Any] | None = logger_args_option()
    out: str | None = option(None, "directory of the study; default: runs/<data>-<backbone>-search")
    quiet: bool = option(False, "no progress, no summary")

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        yield from logger_problems(self.logger, self.logger_args)


@dataclass(frozen=True, kw_only=True)
class SelftestConfig(Options):
    """Prove on this machine that what is promised holds."""

    resume: bool = option(False, "kill runs at random points; the resumed ones must equal an undisturbed one exactly")
    data: str = option("sample", "pictures to run on")
    backbone: str = option("transferkit/mini", "backbone to run with")
    weights: str = option("bundled", "{pretrained|bundled|random|FILE|hf-hub:ID}")
    image_size: int | str | list[int] | None = option(32, "model's input in pixels: a side, or HEIGHTxWIDTH")
    tile: bool = option(False, "of masks: in windows of --image-size")
    kills: int = option(20, "how often to kill", at_least(1))
    seed: int = option(0, "of the points", SEED)
    quiet: bool = option(False, "no progress, no table")

    def _conflicts(self) -> Iterator[str]:
        yield from super()._conflicts()
        yield from image_size_problem(self.image_size)
        if not self.resume:
            yield "nothing to test - pass --resume"
