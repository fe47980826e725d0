"""The first check of a training set-up: a small sample must be learned by heart, and if it is not, what to look at."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from timm.layers.drop import DropBlock2d, DropPath
from timm.layers.patch_dropout import PatchDropout
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import StochasticDepth

from transferkit.core.errors import ConfigError, gather
from transferkit.core.targets import TargetSpec
from transferkit.data.batches.datamodule import ImageData, normalise
from transferkit.models.module import TransferModule
from transferkit.models.optimizers import build_optimizer, param_groups

__all__ = ["OverfitResult", "choose_evenly", "overfit"]

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
        reached: Whether every picture was right, in train mode over a whole epoch and in eval mode after it.
        epochs: Epochs trained.
        train_acc: Accuracy in train mode over the last epoch, each batch before its step; in [0, 1].
        eval_acc: Accuracy in eval mode after the last epoch.
        losses: Mean plain loss of each epoch, in train mode, before the steps.
        pictures: Number of pictures in the sample.
        advice: What to look at, a sentence each. Never empty when it was not reached; when it was, empty unless
            something is wrong all the same.
    """

    reached: bool
    epochs: int
    train_acc: float
    eval_acc: float
    losses: tuple[float, ...]
    pictures: int
    advice: tuple[str, ...]


@dataclass
class _Sample:
    """The chosen pictures, in batches on the device, and how well they are known."""

    batches: list[tuple[Tensor, Tensor]]
    labels: list[tuple[str, str]]  # path and label
    conflicts: list[tuple[str, str, str, str]]  # path, label, other path, other label
    spec: TargetSpec
    losses: list[float] = field(default_factory=list)
    train_acc: float = 0.0
    wrong: list[tuple[str, str, str]] = field(default_factory=list)  # path, label, prediction

    @property
    def eval_acc(self) -> float:
        return 1 - len(self.wrong) / len(self.labels)


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
    Weight decay, label smoothing, dropout and drop path are off. A set-up that cannot reach 100 % here has a fault that
    no amount of data will mend. The result is a function of the module and the data's seed.

    Args:
        module: Is trained in place: throw it away afterwards. Its optimizer is the one used.
        data: Prepared for the module.
        batches: How many batches of ``data.batch_size`` pictures, classes as even as the training split allows.
        epochs: At most so many.
        lr: Of all groups.
        progress: Called with epochs done and epochs in all.

    Raises:
        ConfigError: An argument is out of range, or the data have another number of classes.
        DataError: There are no training pictures, or one cannot be read any more.
    """
    sizes = (("batches", batches, 1), ("epochs", epochs, 1), ("batch_size", data.batch_size, 2))
    problems = [
        f"{name} is {value}, expected a whole number of at least {low}" for name, value, low in sizes if value < low
    ]
    if not (math.isfinite(lr) and lr > 0):
        problems.append(f"lr is {lr}, expected a finite number above 0")
    if not problems and data.num_classes != module.num_classes:
        problems.append(f"the data have {data.num_classes} classes, the model {module.num_classes} - expected the same")
    if problems:
        raise ConfigError(gather(problems))
    sample = _take(data, batches * data.batch_size, module.device)
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
            reached = sample.train_acc == 1.0 and _evaluate(module, sample) == 1.0
        _evaluate(module, sample)
    return OverfitResult(
        reached=reached,
        epochs=len(sample.losses),
        train_acc=sample.train_acc,
        eval_acc=sample.eval_acc,
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


def _take(data: ImageData, count: int, device: torch.device) -> _Sample:
    dataset = data.dataset("train")
    labels = [record.label for record in data.index.split("train")]
    positions = choose_evenly(data.index.targets.strata(labels).tolist(), count, data.seed)
    if len(positions) % data.batch_size == 1:
        positions = positions[:-1]  # batch norm cannot train on a single picture
    sample = _Sample([], [(dataset.pictures[at].name, labels[at]) for at in positions], [], data.index.targets.spec)
    first: dict[bytes, tuple[str, str]] = {}
    for start in range(0, len(positions), data.batch_size):
        images, targets = dataset.batch(positions[start : start + data.batch_size]).labelled()
        for image, (path, label) in zip(images, sample.labels[start:], strict=False):
            other = first.setdefault(image.numpy().tobytes(), (path, label))
            if other[1] != label:
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
        outputs = module(images).float()
        loss = objective.item_losses(outputs, targets).mean()
        right = objective.running_sums(outputs, targets)[0]
        total += torch.stack((loss.detach() * len(targets), right))
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
    sample.train_acc = round(accuracy * len(sample.labels)) / len(sample.labels)  # 1.0 where all are right
    return learns and math.isfinite(mean_loss)


def _evaluate(module: TransferModule, sample: _Sample) -> float:
    """Note what is wrong in eval mode, and return the accuracy."""
    module.eval()
    output = module.task.output
    with torch.no_grad():
        rows = [row for images, targets in sample.batches
                for row in output.rows(output.activate(module(images).float()).cpu(), targets.cpu(), sample.spec)
                ]  # fmt: skip
    sample.wrong = [
        (path, label, row[1]) for (path, label), row in zip(sample.labels, rows, strict=True) if row[0] != row[1]
    ]
    return sample.eval_acc


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
    if sample.train_acc == 1.0:
        advice.append(_modes_differ(module, sample.eval_acc))
    else:
        advice.append(_course(losses, lr, module.num_classes))
        if sample.eval_acc == 1.0:
            advice.append(
                f"all pictures are right in eval mode, {sample.train_acc:.1%} in train mode - look for a layer of your "
                "own that draws at random in training; without one give it more epochs"
            )
    if 0 < len(sample.wrong) <= max(1, len(sample.labels) // 10):
        listed = "; ".join(f"{path} ({label}, taken for {guess})" for path, label, guess in sample.wrong[:_FEW])
        advice.append(f"{len(sample.wrong)} of {len(sample.labels)} pictures are still wrong - look at their labels: "
                      f"{listed}")  # fmt: skip
    return advice


def _modes_differ(module: TransferModule, eval_acc: float) -> str:
    what = f"all pictures are right in train mode, {eval_acc:.1%} in eval mode"
    if any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        return (
            f"{what}: the running statistics of batch norm are not those of these pictures yet - give it more epochs, "
            "a lower LR, or --recalibrate-bn"
        )
    return f"{what} - look for a layer of your own that does something else where `self.training` is not set"


def _course(losses: Sequence[float], lr: float, classes: int) -> str:
    first, last, count = losses[0], losses[-1], len(losses)
    what = f"from {first:.3g} to {last:.3g} in {count} epochs at LR {lr:g} (guessing costs {math.log(classes):.3g})"
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
