"""Heads: from features (or a feature map) to logits, built in, registered by name, or the user's own module.

A head takes features ``(B, D)`` and returns logits ``(B, C)``. One that wants the feature map instead,
``(B, C, H, W)`` or tokens ``(B, N, C)``, says so by an attribute ``takes_maps = True`` on its class or instance; one
that wants the pictures and their pyramid, by ``takes_pyramid = True``: a head of masks, or one that finds objects and
says so by ``finds_objects = True``; one whose outputs are of classes, of which a picture has one, by
``of_classes = True``. Nothing else is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol, TypeVar

import torch
from torch import Tensor, nn

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.core.text import first_line
from transferkit.models.backbones.interface import Backbone
from transferkit.models.freezing import evaluation_mode
from transferkit.models.heads.feed import Feed, HeadInput, dry_run
from transferkit.models.heads.flat import CosineHead, LinearHead, MLPHead
from transferkit.models.heads.maps import AttentionPoolHead, AvgMaxHead
from transferkit.models.heads.metric import ArcFaceHead, MarginLoss, PrototypeHead

__all__ = [
    "FLAT",
    "HeadBuilder",
    "HeadKinds",
    "HeadOf",
    "build_head",
    "check_head",
    "head_hint",
    "head_of",
    "list_heads",
    "of_classes",
    "one_at_a_time",
    "register_head",
    "registered_head",
    "takes_maps",
    "takes_pyramid",
    "unknown_head",
]

HeadBuilder = Callable[[Any, int], nn.Module]
"""Called with the width of its input (of a pyramid: with its levels), and with the number of classes."""

_Builder = TypeVar("_Builder", bound=HeadBuilder)


class HeadOf(StrEnum):
    """What a head answers for."""

    PICTURES = "one answer per picture"
    MASKS = "masks"
    OBJECTS = "objects"


_FLAT: Final[dict[str, Callable[..., nn.Module]]] = {
    "arcface": ArcFaceHead,
    "attention-pool": AttentionPoolHead,
    "avgmax": AvgMaxHead,
    "cosine": CosineHead,
    "linear": LinearHead,
    "mlp": MLPHead,
    "prototype": PrototypeHead,
}
_BUILT_IN: Final = {
    HeadOf.PICTURES: tuple(_FLAT),
    HeadOf.MASKS: ("deeplabv3plus", "fpn", "hypercolumns", "linear", "unet"),
    HeadOf.OBJECTS: ("faster_rcnn", "fcos", "mask_rcnn", "retinanet"),
}
_REGISTERED: dict[str, HeadBuilder] = {}


class HeadKinds(Protocol):
    """The heads that a task can have: which there are, what goes into each, how it is built."""

    @property
    def usual(self) -> str:
        """The name of the one that is taken where none is named."""

    @property
    def drops(self) -> bool:
        """Whether they have dropout."""

    @property
    def lr(self) -> float:
        """Peak LR of the head while the network is fine-tuned, per step, where none is named."""

    @property
    def probe_lr(self) -> float:
        """Peak LR of the head while it is trained alone, likewise."""

    def names(self) -> list[str]:
        """Return the names of those that are known, sorted."""

    def feed(self, head: str | nn.Module) -> Feed:
        """Return what a head is given."""

    def learning(self, head: nn.Module, inputs: HeadInput) -> Any:
        """Return what the training loss takes: what `head` makes of its inputs, or what waits for the answers."""

    def loss(self, head: nn.Module, loss: nn.Module) -> nn.Module:
        """Return the training loss of a head, from that of the task: itself, or one that makes it harder."""

    def build(self, head: str | nn.Module, backbone: Backbone, width: int, *, drop_rate: float = 0.0) -> nn.Module:
        """Return a head for a backbone, tried with a dry forward.

        Args:
            head: A name, or a module.
            backbone: What it goes on.
            width: Outputs, at least 1.
            drop_rate: Dropout in the head, in [0, 1).

        Raises:
            ConfigError: With everything that is wrong.
        """


def register_head(name: str) -> Callable[[_Builder], _Builder]:
    """Make a head known by `name`: a decorator for a builder, or for a class called the same way.

    The builder is called with ``(in_features, num_classes)``. A class with ``takes_maps = True`` is given the
    number of channels of the feature map as ``in_features``; one with ``takes_pyramid = True`` the levels of the
    pyramid, from fine to coarse (`transferkit.models.backbones.pyramid.Level`), and it is a head of masks; with
    ``finds_objects = True`` besides, one of objects, see `transferkit.models.objects.detector.Detector`.

    Raises:
        ConfigError: `name` is taken.
    """
    if any(name in (*names, *_REGISTERED) for names in _BUILT_IN.values()):
        raise ConfigError(f"a head named {name!r} exists already - register it under another name")

    def register(builder: _Builder) -> _Builder:
        _REGISTERED[name] = builder
        return builder

    return register


def registered_head(name: str) -> HeadBuilder | None:
    """Return what was registered by a name; ``None`` where nothing was."""
    return _REGISTERED.get(name)


def list_heads(of: HeadOf = HeadOf.PICTURES) -> list[str]:
    """Return the names of the heads that are known of a kind, sorted."""
    return sorted((*_BUILT_IN[of], *(name for name in _REGISTERED if head_of(name) is of)))


def unknown_head(head: str | nn.Module, of: HeadOf = HeadOf.PICTURES) -> list[str]:
    """Return that a head is none of `list_heads`, a sentence; nothing where it is, or is a module."""
    known = list_heads(of)
    if not isinstance(head, str) or head in known:
        return []
    return [f"unknown head {head!r}.{head_hint(head, known)} Known: {', '.join(known)}"]


def head_hint(head: str, known: Sequence[str]) -> str:
    """Return what a head that is none of the known ones may be: of another kind, or a misspelt one; else nothing."""
    other = next((kind for kind in HeadOf if head in list_heads(kind)), None)
    return did_you_mean(head, known) if other is None else f" It is a head of {other}."


def head_of(head: str | nn.Module) -> HeadOf:
    """Return what a head of one's own answers for; asked as `takes_maps`."""
    if not takes_pyramid(head):
        return HeadOf.PICTURES
    finds = _says(head, "finds_objects")
    return HeadOf.OBJECTS if finds else HeadOf.MASKS


def takes_pyramid(head: str | nn.Module) -> bool:
    """Whether `head` wants the pictures and the pyramid; asked as `takes_maps`."""
    return _says(head, "takes_pyramid")


def one_at_a_time(head: nn.Module) -> bool:
    """Whether what `head` computes can be written down for one picture at a time only; asked as `takes_maps`."""
    return bool(getattr(head, "one_at_a_time", False))


def takes_maps(head: str | nn.Module) -> bool:
    """Whether `head` wants the feature map; `build_head` must then be given the map's channels as ``in_features``.

    For a name, the registered class answers; a builder function that returns such a head carries the attribute itself.
    """
    return _says(head, "takes_maps")


def of_classes(head: str | nn.Module) -> bool:
    """Whether the outputs of `head` are of classes, of which a picture has one; asked as `takes_maps`."""
    return _says(head, "of_classes")


def _says(head: str | nn.Module, what: str) -> bool:
    kind = {**_FLAT, **_REGISTERED}.get(head) if isinstance(head, str) else head
    return bool(getattr(kind, what, False))


def build_head(
    head: str | nn.Module,
    in_features: int,
    num_classes: int,
    *,
    drop_rate: float = 0.0,
) -> nn.Module:
    """Return the head that `head` names, or `head` itself when it is a module.

    A head for features is tried with a dry forward here; one for feature maps where they are known, by `check_head`.

    Args:
        head: One of `list_heads`, or a module.
        in_features: Width D of the features; for a head that takes maps, the map's channels.
        num_classes: Number of classes C, at least 1.
        drop_rate: Share of the inputs (``mlp``: of the hidden units) set to zero in training, in [0, 1); for built-in
            heads only.

    Raises:
        ConfigError: The name is unknown, a number is out of range, the head has dropout of its own, or it does not
            return ``(B, num_classes)``.
    """
    problems = _problems(head, in_features, num_classes, drop_rate)
    if problems:
        raise ConfigError(gather(problems))
    if isinstance(head, nn.Module):
        built = head
    elif head in _FLAT:
        built = _FLAT[head](in_features, num_classes, drop_rate=drop_rate)
    else:
        built = _REGISTERED[head](in_features, num_classes)
        if not isinstance(built, nn.Module):
            raise ConfigError(f"head {head!r} built a {type(built).__name__} - it must return an nn.Module")
        if takes_maps(built) and not takes_maps(head):
            raise ConfigError(
                f"head {head!r} takes feature maps, but what was registered does not say so - "
                "set `takes_maps = True` on the class, or on the builder function"
            )
    if not takes_maps(built):
        check_head(built, torch.zeros(2, in_features), (2, num_classes))
    return built


@dataclass(frozen=True)
class FlatHeads:
    """Heads that return a row per picture.

    Attributes:
        classes: Whether the row is of classes, of which a picture has one.
    """

    usual: str = "linear"
    drops: bool = True
    lr: float = 1e-3
    probe_lr: float = 1e-2
    classes: bool = True

    def names(self) -> list[str]:
        """Return the names of those that are known, sorted."""
        return [name for name in list_heads() if self.classes or not of_classes(name)]

    def feed(self, head: str | nn.Module) -> Feed:
        """Return features, or the map where the head says so."""
        return Feed.MAPS if takes_maps(head) else Feed.FEATURES

    def learning(self, head: nn.Module, inputs: HeadInput) -> Any:
        """Return the logits."""
        return head(inputs)

    def loss(self, head: nn.Module, loss: nn.Module) -> nn.Module:
        """Return the loss with the margin of a head that learns with one."""
        return MarginLoss(loss, float(head.scale), head.margin) if isinstance(head, ArcFaceHead) else loss

    def build(self, head: str | nn.Module, backbone: Backbone, width: int, *, drop_rate: float = 0.0) -> nn.Module:
        """Return a head of logits ``(B, width)``. Raises `ConfigError`."""
        if of_classes(head) and not self.classes:
            name = head if isinstance(head, str) else type(head).__name__
            raise ConfigError(
                f"head {name!r} tells classes apart, of which a picture has one, and these answers are of another kind "
                f"- pass one of {', '.join(self.names())}"
            )
        kind = self.feed(head)
        in_features = backbone.map_channels if kind is Feed.MAPS else backbone.num_features
        if in_features is None:
            raise ConfigError(f"{backbone.name} has no feature map for this head - use a head that takes features")
        built = build_head(head, in_features, width, drop_rate=drop_rate)
        if kind is Feed.MAPS:
            with evaluation_mode(backbone):
                check_head(built, dry_run(backbone, kind), (1, width))
        return built


FLAT = FlatHeads()


def check_head(head: nn.Module, inputs: HeadInput, expected: tuple[int, ...]) -> None:
    """Run `head` once in eval mode, without gradients, and check what it returns. Modes are restored.

    Args:
        head: The head.
        inputs: As it will have them, of one or two blank pictures. It is moved to the head's device.
        expected: Shape of what it has to return for them.

    Raises:
        ConfigError: The head fails, or does not return floating-point numbers of this shape.
    """
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    what = "pictures and pyramids" if takes_pyramid(head) else "feature maps" if takes_maps(head) else "features"
    shown = f"{what} of shape {', '.join(str(tuple(part.shape)) for part in parts)}"
    device = next((parameter.device for parameter in head.parameters()), parts[0].device)
    moved = tuple(part.to(device) for part in parts)
    answer = ", ".join(["B", *map(str, expected[1:2]), *(("H", "W") if len(expected) > 2 else ())])
    try:
        with evaluation_mode(head), torch.no_grad():
            logits = head(moved if isinstance(inputs, tuple) else moved[0])
    except Exception as error:  # the user's own code: anything may come out of it
        raise ConfigError(
            f"head {type(head).__name__} fails on {shown}: {first_line(error)} - "
            f"a head must accept {what} and return logits ({answer})"
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != expected or not logits.is_floating_point():
        kind = f" of {logits.dtype}" if isinstance(logits, Tensor) else ""
        raise ConfigError(
            f"head {type(head).__name__} returns {shape}{kind} for {shown} - it must return float logits {expected}"
        )


def _problems(head: str | nn.Module, in_features: int, num_classes: int, drop_rate: float) -> list[str]:
    problems = []
    problems += unknown_head(head)
    if isinstance(head, nn.Module) and takes_pyramid(head):
        task = "detection" if head_of(head) is HeadOf.OBJECTS else "segmentation"
        problems.append(f"head {type(head).__name__} takes a pyramid - it is a head of {head_of(head)}, for {task=}")
    for name, value in (("in_features", in_features), ("num_classes", num_classes)):
        if value < 1:
            problems.append(f"{name} must be at least 1, not {value}")
    if not 0 <= drop_rate < 1:
        problems.append(f"drop_rate must be in [0, 1), not {drop_rate}")
    elif drop_rate and head not in _BUILT_IN[HeadOf.PICTURES]:
        problems.append(f"drop_rate={drop_rate} has no effect on a head of your own - put the dropout into the head")
    return problems
