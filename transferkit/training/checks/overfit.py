"""`--overfit-batches`, the first check: a small sample must be learnt by heart; if it is not, what to look at."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import StochasticDepth

from transferkit.core.errors import ConfigError, TrainingError, gather
from transferkit.core.targets import TargetSpec
from transferkit.data.augment.normalise import normalise
from transferkit.data.batches.datamodule import ImageData
from transferkit.models.backbones.timm_import import DropBlock2d, DropPath, PatchDropout
from transferkit.models.module import TransferModule
from transferkit.models.optimizers import build_optimizer, param_groups
from transferkit.options.training import FinetuneConfig
from transferkit.show.progress import counting_bar, output_console
from transferkit.training.plan.options import usual_lr
from transferkit.training.setup import Training

__all__ = ["OverfitResult", "check_overfit", "choose_evenly", "overfit"]

EPOCHS = 50
"""Passes over the few batches, at least; `--epochs` can ask for more."""

ACC = "acc"
"""The running figure of a task that counts right answers: their share."""

# Noise against overfitting: off, since overfitting is the aim.
_NOISE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
          DropPath, DropBlock2d, PatchDropout, StochasticDepth)  # fmt: skip

FLAT = 0.9
"""A loss that stays above this share of its first value has not fallen."""

_FEW = 3


@dataclass(frozen=True)
class OverfitResult:
    """How far a sample was learnt by heart.

    Attributes:
        reached: Whether every picture was right, in train mode over a whole epoch and in eval mode after it; of a task
            that counts no right answers, whether its loss came down as far as `Objective.by_heart` has it.
        epochs: Epochs trained.
        figure: What says so: ``"acc"``, in [0, 1], or ``"loss"``.
        train: Its value in train mode over the last epoch, each batch before its step.
        evaluation: Its value in eval mode after the last epoch.
        losses: Mean plain loss of each epoch, in train mode, before the steps.
        pictures: Number of pictures in the sample.
        advice: What to look at, a sentence each. Never empty when it was not reached; when it was, empty unless
            something is wrong all the same.
    """

    reached: bool
    epochs: int
    figure: str
    train: float
    evaluation: float
    losses: tuple[float, ...]
    pictures: int
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: ``reached``, ``epochs``, and the figure in both modes, such as ``train_acc``."""
        values = {f"train_{self.figure}": self.train, f"eval_{self.figure}": self.evaluation}
        return {"reached": self.reached, "epochs": self.epochs, **values}


@dataclass
class _Sample:
    """The chosen pictures, in batches on the device, and how well they are known."""

    batches: list[tuple[Tensor, Tensor]]
    labels: list[tuple[str, str]]  # path and label
    conflicts: list[tuple[str, str, str, str]]  # path, label, other path, other label
    spec: TargetSpec
    figure: str
    by_heart: tuple[float, float] = (0.01, 0.01)
    guessing: float = 0.0
    losses: list[float] = field(default_factory=list)
    train: float = 0.0
    evaluation: float = 0.0
    wrong: list[tuple[str, str, str]] = field(default_factory=list)  # path, label, prediction

    def learnt(self) -> bool:
        """Whether the figure in train mode says that all pictures are known by heart."""
        return self.train == 1.0 if self.figure == ACC else self.train <= self.by_heart[0] * self.losses[0]

    def knows(self) -> bool:
        """Whether the figure in eval mode says so."""
        if self.figure == ACC:
            return self.evaluation == 1.0
        return self.evaluation <= self.by_heart[1] * min(self.losses[0], self.guessing)


def check_overfit(training: Training[FinetuneConfig]) -> dict[str, Any]:
    """Learn a few batches by heart, and say what came of it.

    Args:
        training: With ``overfit_batches``; its module is used up.

    Returns:
        See `OverfitResult.to_dict`.

    Raises:
        TrainingError: They could not be learnt; the message says what to look at.
    """
    config = training.config
    batches = config.overfit_batches or 0
    lr = usual_lr(config, training.module.task)
    with counting_bar(training.console, "overfitting") as progress:
        result = overfit(
            training.module, training.data, batches=batches, epochs=max(EPOCHS, config.epochs), lr=lr, progress=progress
        )
    train, evaluation = (_text(result.figure, value) for value in (result.train, result.evaluation))
    if not result.reached:
        reached = f"{'accuracy ' * (result.figure == ACC)}{train} in training, {evaluation} in evaluation"
        raise TrainingError(
            f"{batches} batch(es) could not be learnt by heart in {result.epochs} passes: {reached} - "
            f"{'; '.join(result.advice)}"
        )
    if not config.quiet:
        both = "100 % in training and" if result.figure == ACC else f"{train} in training, {evaluation}"
        sentence = f"learnt {batches} batch(es) by heart in {result.epochs} passes at LR {lr:g}: {both} in evaluation"
        for line in (sentence, *(f"but {advice}" for advice in result.advice)):
            output_console().print(line, soft_wrap=True)
    return result.to_dict()


def overfit(
    module: TransferModule,
    data: ImageData,
    *,
    batches: int,
    epochs: int,
    lr: float,
    progress: Callable[[int, int], None] | None = None,
) -> OverfitResult:
    """Train all of a model on a few batches of training pictures until it knows them by heart.

    Pictures are as they are evaluated, always in the same batches; the loss is the plain one, the LR constant.
    Weight decay, label smoothing, dropout and drop path are off. A set-up that cannot learn them has a fault that no
    amount of data will mend. The result is a function of the module and the data's seed.

    Args:
        module: Is trained in place: throw it away afterwards. Its optimizer is the one used.
        data: Prepared for the module.
        batches: How many batches of ``data.batch_size`` pictures, classes as even as the training split allows.
        epochs: At most so many.
        lr: Of all groups.
        progress: Called with epochs done and epochs in all.

    Raises:
        ConfigError: An argument is out of range, or the data have other classes.
        DataError: There are no training pictures, or one cannot be read any more.
    """
    sizes = (("batches", batches, 1), ("epochs", epochs, 1), ("batch_size", data.batch_size, 2))
    problems = [
        f"{name} is {value}, expected a whole number of at least {low}" for name, value, low in sizes if value < low
    ]
    if not (math.isfinite(lr) and lr > 0):
        problems.append(f"lr is {lr}, expected a finite number above 0")
    task = module.task
    if not problems and (width := task.heads.width(data.index.targets.spec)) != module.num_classes:
        problems.append(f"the data have {width} classes, the model {module.num_classes} - expected the same")
    if problems:
        raise ConfigError(gather(problems))
    figure = ACC if ACC in task.objective.running else "loss"
    sample = _take(data, batches * data.batch_size, module.device, figure)
    sample.by_heart, sample.guessing = task.objective.by_heart, _guessing(module, sample)
    module.train_groups(module.group_names())
    groups = param_groups(module.groups(), weight_decay=0.0)
    optimizer = build_optimizer(groups=groups, **{**module.optimizer_options, "lr": lr})  # type: ignore[arg-type]
    silent = {name for name, members in module.groups() if members}
    devices = [module.device] if module.device.type == "cuda" else []
    reached = False
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(data.seed)
        while not reached and len(sample.losses) < epochs:
            goes_on = _epoch(module, optimizer, sample, silent)
            if progress is not None:
                progress(len(sample.losses), epochs)
            if not goes_on:
                break
            if sample.learnt():
                _evaluate(module, sample)
                reached = sample.knows()
        _evaluate(module, sample)
    return OverfitResult(
        reached=reached,
        epochs=len(sample.losses),
        figure=figure,
        train=sample.train,
        evaluation=sample.evaluation,
        losses=tuple(sample.losses),
        pictures=len(sample.labels),
        advice=tuple(_advice(module, sample, silent, lr, reached)),
    )


def choose_evenly(targets: Sequence[int], count: int, seed: int) -> list[int]:
    """Return `count` positions (all, where there are fewer), classes as even as possible, shuffled by `seed`.

    Classes take turns, so every stretch of the result is even, too.
    """
    generator = torch.Generator().manual_seed(seed)
    by_class: dict[int, list[int]] = defaultdict(list)
    for position in torch.randperm(len(targets), generator=generator).tolist():
        by_class[targets[position]].append(position)
    turns = [(turn, position) for members in by_class.values() for turn, position in enumerate(members)]
    return [position for _, position in sorted(turns, key=lambda pair: pair[0])][:count]


def _take(data: ImageData, count: int, device: torch.device, figure: str) -> _Sample:
    dataset = data.dataset("train")
    windows = data.windows("train")
    labels = [record.label for record in data.index.split("train")]
    if windows is not None:
        labels = [labels[windows.place(row)[0]] for row in range(len(windows))]
    positions = choose_evenly(data.index.targets.strata(labels).tolist(), count, data.seed)
    if len(positions) % data.batch_size == 1:
        positions = positions[:-1]  # batch norm cannot train on a single picture
    names = [(dataset.pictures[at].name, labels[at]) for at in positions]
    sample = _Sample([], names, [], data.index.targets.spec, figure)
    first: dict[bytes, tuple[str, str]] = {}
    for start in range(0, len(positions), data.batch_size):
        images, targets = dataset.batch(positions[start : start + data.batch_size]).labelled()
        for image, (path, label) in zip(images, sample.labels[start:], strict=False):
            other = first.setdefault(image.numpy().tobytes(), (path, label))
            if other[1] != label and windows is None:  # windows of nothing are alike, and so are their answers
                sample.conflicts.append((*other, path, label))
        sample.batches.append((normalise(images.to(device), data.data_config), targets.to(device)))
    return sample


def _epoch(module: TransferModule, optimizer: torch.optim.Optimizer, sample: _Sample, silent: set[str]) -> bool:
    """Train for an epoch; return whether it makes sense to go on. Groups that get a gradient leave `silent`."""
    module.train()
    for part in module.modules():
        if isinstance(part, _NOISE):
            part.eval()
    objective, total = module.task.objective, torch.zeros(2, device=module.device)
    learns = True
    for images, targets in sample.batches:
        outputs = module.learn(images).float()
        loss = objective.item_losses(outputs, targets).mean()
        total[0] += loss.detach() * len(targets)
        if sample.figure == ACC:
            total[1] += objective.running_sums(outputs, targets)[objective.running.index(ACC)]
        if not loss.requires_grad:
            learns = False
            continue
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if silent:
            silent -= {name for name, members in module.groups()
                       if any(p.grad is not None and bool(p.grad.any()) for _, p in members)}  # fmt: skip
        optimizer.step()
    mean_loss, accuracy = (total / len(sample.labels)).tolist()
    sample.losses.append(mean_loss)
    right = round(accuracy * len(sample.labels)) / len(sample.labels)  # 1.0 where all are right
    sample.train = right if sample.figure == ACC else mean_loss
    return learns and math.isfinite(mean_loss)


def _evaluate(module: TransferModule, sample: _Sample) -> float:
    """Note what is wrong in eval mode, and return the figure."""
    module.eval()
    output, count = module.task.output, len(sample.labels)
    with torch.no_grad():
        batches = [(module(images).float().cpu(), targets.to("cpu")) for images, targets in sample.batches]
    if sample.figure != ACC:
        losses = [module.task.objective.item_losses(outputs, targets) for outputs, targets in batches]
        sample.evaluation = float(torch.cat(losses).mean())
        return sample.evaluation
    rows = [row for outputs, targets in batches for row in output.rows(output.activate(outputs), targets, sample.spec)]
    sample.wrong = [
        (path, label, row[1]) for (path, label), row in zip(sample.labels, rows, strict=True) if row[0] != row[1]
    ]
    sample.evaluation = 1 - len(sample.wrong) / count
    return sample.evaluation


def _advice(module: TransferModule, sample: _Sample, silent: set[str], lr: float, reached: bool) -> list[str]:
    losses, advice = sample.losses, []
    if silent:
        names = ", ".join(name for name in module.group_names() if name in silent)
        advice.append(
            f"no gradient reached {names} - look for detach(), .data, no_grad or requires_grad_(False) in the forward "
            "of the model (transferkit.check_gradients finds them in a head)"
        )
    if reached:
        return advice
    for path, label, other, other_label in sample.conflicts[:_FEW]:
        advice.append(f"{path} ({label}) and {other} ({other_label}) are the same picture to the model - "
                      "correct one of the labels, or remove both")  # fmt: skip
    if len(sample.conflicts) > _FEW:
        advice.append(f"{len(sample.conflicts) - _FEW} more pictures are the same as one of another class - "
                      "`transferkit check` lists them")  # fmt: skip
    if not math.isfinite(losses[-1]):
        advice.append(
            f"the loss was not finite in epoch {len(losses)} at LR {lr:g} - lower it ten times (`transferkit lr-find` "
            "shows a good one); in a head of your own look for a division or a logarithm of 0"
        )
        return advice
    if len(silent) == len(module.groups()):
        return advice
    if sample.learnt():
        advice.append(_modes_differ(module, _text(sample.figure, sample.evaluation)))
    else:
        advice.append(_course(losses, lr, sample.guessing))
        if sample.knows():
            advice.append(
                f"all pictures are right in eval mode, {_text(sample.figure, sample.train)} in train mode - look for a "
                "layer of your own that draws at random in training; without one give it more epochs"
            )
    if 0 < len(sample.wrong) <= max(1, len(sample.labels) // 10):
        listed = "; ".join(f"{path} ({label}, taken for {guess})" for path, label, guess in sample.wrong[:_FEW])
        advice.append(f"{len(sample.wrong)} of {len(sample.labels)} pictures are still wrong - look at their labels: "
                      f"{listed}")  # fmt: skip
    return advice


def _modes_differ(module: TransferModule, evaluation: str) -> str:
    what = f"all pictures are right in train mode, {evaluation} in eval mode"
    if any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        return (
            f"{what}: the running statistics of batch norm are not those of these pictures yet - give it more epochs, "
            "a lower LR, or --recalibrate-bn"
        )
    return f"{what} - look for a layer of your own that does something else where `self.training` is not set"


def _guessing(module: TransferModule, sample: _Sample) -> float:
    """Return the mean plain loss of outputs of 0, which know nothing of a picture."""
    module.eval()
    losses = []
    with torch.no_grad():
        for images, targets in sample.batches:
            losses.append(module.task.objective.item_losses(torch.zeros_like(module(images).float()), targets).cpu())
    return float(torch.cat(losses).mean())


def _text(figure: str, value: float) -> str:
    return f"{value:.1%}" if figure == ACC else f"loss {value:.3g}"


def _course(losses: Sequence[float], lr: float, guessing: float) -> str:
    first, last, count = losses[0], losses[-1], len(losses)
    what = f"from {first:.3g} to {last:.3g} in {count} epochs at LR {lr:g} (guessing costs {guessing:.3g})"
    if count == 1:
        return f"a single epoch is too few to learn anything (loss {first:.3g}) - give it more"
    if last > 1.5 * first:
        return f"the loss rose {what}: the LR is too high - lower it ten times"
    if min(losses) > FLAT * first:
        return (
            f"the loss did not fall, {what}: the LR is too low, or the layers that could learn are frozen - raise it "
            "ten times, and look at the pictures the model is given"
        )
    if last <= 1.02 * min(losses):
        return f"the loss was still falling, {what} - give it more epochs"
    return f"the loss fell, but not to the end, {what}, at best {min(losses):.3g} - lower the LR or give it more epochs"
