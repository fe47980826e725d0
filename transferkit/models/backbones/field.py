"""The receptive field of each stage of a backbone: the pixels that one position of a map depends on.

Followed through the network as it runs, function by function, without computing anything: convolutions and pooling
widen the field by their kernels and strides, sums and concatenations take the widest of what they join, and what is
computed position by position leaves it as it is (Araujo, Norris and Sim 2019, *Computing Receptive Fields of
Convolutional Neural Networks*, section on arbitrary graphs). It is the theoretical field: what a position can depend
on, borders aside, not how much.

Squeeze-and-excitation and norms over positions put the whole picture into every position, as one number per channel.
The field of the convolutions is told beside that. Attention over all positions sees the whole picture and nothing is
left to tell beside it. Where positions are cut into windows and put together again, the field depends on the position
and no one number is right.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from transferkit.models.backbones.interface import Backbone
from transferkit.models.backbones.pyramid import LAST, Level, as_map, recorded
from transferkit.models.freezing import evaluation_mode

__all__ = ["Field", "receptive_fields"]


@dataclass(frozen=True)
class Field:
    """The rows of the picture that row ``i`` of a map depends on: from ``low + jump * i`` to ``high + jump * i``.

    Attributes:
        axis: Dimension of the tensor that its rows lie along; ``None`` where positions have no such order any more.
        whole: Whether every position depends on the whole picture besides.
    """

    axis: int | None
    jump: int = 1
    low: int = 0
    high: int = 0
    whole: bool = False

    @property
    def size(self) -> int | None:
        """Pixels along a side; ``None`` where it is not one number. What `whole` says comes on top."""
        return None if self.axis is None else self.high - self.low + 1


_UNKNOWN = Field(None)
_WHOLE = Field(None, whole=True)
_REDUCTIONS = frozenset(("mean", "sum", "amax", "amin", "std", "var", "norm", "logsumexp"))
_RESHAPES = frozenset(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"))
_PRODUCTS = frozenset((
    *("scaled_dot_product_attention", "multi_head_attention_forward", "matmul", "__matmul__", "bmm", "baddbmm"),
    "einsum",
))  # fmt: skip
# Not position by position, and not followed.
_MOVING = frozenset((
    *("interpolate", "upsample", "grid_sample", "pixel_shuffle", "pixel_unshuffle", "roll", "flip", "cumsum", "unfold"),
    *("fold", "conv_transpose2d", "gather", "index_select", "scatter", "repeat", "take_along_dim", "sort", "topk"),
))  # fmt: skip


def receptive_fields(backbone: Backbone) -> tuple[tuple[Level, Field], ...]:
    """Return the stages of a backbone with their fields, from input to output; of alike ones in a row, the last.

    Stages are its layer groups that give maps, and the levels of its pyramid. The network runs once on one picture of
    its data config's size; on the ``meta`` device that computes nothing.

    Raises:
        BackboneError: It has no pyramid, see `Backbone.pyramid`.
    """
    modules, size = dict(backbone.model.named_modules()), backbone.data_config.image_size
    names = {*backbone.stages(), *(level.name for level in backbone.pyramid())}
    images = backbone.blank_picture()
    with (
        evaluation_mode(backbone),
        torch.no_grad(),
        recorded({name: modules[name] for name in names - {LAST}}) as outputs,
        _Follower(images) as follower,
    ):
        end = backbone.forward_maps(images)
    if LAST in names:
        outputs[LAST] = end
    stages: list[tuple[Level, Field]] = []
    for name, output in outputs.items():
        maps = as_map(output, size, channels_last=backbone.channels_last, prefix_tokens=backbone.prefix_tokens)
        if maps is not None:
            level = Level(name, round(size[0] / maps.shape[2]), int(maps.shape[1]))
            if stages and (stages[-1][0].stride, stages[-1][0].channels) == (level.stride, level.channels):
                stages.pop()
            stages.append((level, follower.field_of(output)))
    return tuple(stages)


class _Follower(TorchFunctionMode):
    """Notes the field of every tensor that is computed from one of pictures ``(1, C, H, W)``."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.fields = WeakIdKeyDictionary()
        self.fields[images] = Field(images.ndim - 2)

    def field_of(self, value: object) -> Field:
        """Return the field of a tensor; of one that nothing is known of, that it has none."""
        field = self.fields[value] if isinstance(value, Tensor) and value in self.fields else None
        return field if isinstance(field, Field) else _UNKNOWN

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        inputs = [value for value in _tensors((*args, *named.values())) if value in self.fields]
        shapes = [tuple(value.shape) for value in inputs]  # before the call, which may change one in place
        output = func(*args, **named)
        if inputs:
            name = str(getattr(func, "__name__", ""))
            for made in _tensors((output,)):
                sources = [(self.fields[value], shape) for value, shape in zip(inputs, shapes, strict=True)]
                self.fields[made] = _field_after(name, sources, tuple(made.shape), args, named)
        return output


_Source = tuple[Field, tuple[int, ...]]
"""The field and the shape of a tensor that goes into a function."""


def _field_after(
    name: str, sources: Sequence[_Source], shape: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]
) -> Field:
    """Return the field of what a function made, of this shape, from its sources."""
    field, before = sources[0]
    if name in _PRODUCTS and not (len(sources) == 1 and name in ("matmul", "__matmul__")):
        # With one picture the first dimension is 1 unless positions were cut into windows.
        return _WHOLE if any(source.whole or size[0] == 1 for source, size in sources) else _UNKNOWN
    if len(sources) > 1 or field.axis is None:
        return _joined(sources, shape)
    rule = _RULES.get(name)
    if rule is not None:
        return rule(field, before, args, named)
    if name in _REDUCTIONS or (name in ("max", "min") and _argument(args, named, 1, "dim", None) is not None):
        return _reduced(field, before, args, named)
    if name in _RESHAPES:
        return _reshaped(field, before, shape)
    if name in _MOVING:
        return dataclasses.replace(_UNKNOWN, whole=field.whole)
    return _joined(sources, shape)


def _joined(sources: Sequence[_Source], shape: tuple[int, ...]) -> Field:
    """Return the field of what is computed position by position, by the rules of broadcasting."""
    whole = any(field.whole for field, _ in sources)
    placed: list[tuple[int, Field]] = []
    for field, size in sources:
        if field.axis is None:
            # One number for all positions: a gate. Other values without an order spoil it.
            if field.whole and math.prod(size[2:]) == 1:
                continue
            return dataclasses.replace(_UNKNOWN, whole=whole)
        from_end = field.axis - len(size)
        if -from_end > len(shape) or shape[from_end] != size[from_end]:
            return dataclasses.replace(_UNKNOWN, whole=whole)
        placed.append((from_end, field))
    if not placed:
        return dataclasses.replace(_UNKNOWN, whole=whole)
    if len({(from_end, field.jump) for from_end, field in placed}) > 1:
        return dataclasses.replace(_UNKNOWN, whole=whole)
    low, high = min(field.low for _, field in placed), max(field.high for _, field in placed)
    return Field(placed[0][0] + len(shape), placed[0][1].jump, low, high, whole)


# ---- functions that are not computed position by position -----------------------------------------------------------


def _widened(field: Field, kernel: int, stride: int, padding: int, dilation: int = 1) -> Field:
    low, high = field.low - padding * field.jump, field.high + ((kernel - 1) * dilation - padding) * field.jump
    return dataclasses.replace(field, jump=field.jump * stride, low=low, high=high)


def _convolved(field: Field, before: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Field:
    weight = _argument(args, named, 1, "weight", None)
    padding = _argument(args, named, 4, "padding", 0)
    if field.axis != len(before) - 2 or weight.ndim != 4 or isinstance(padding, str):
        return dataclasses.replace(_UNKNOWN, whole=field.whole)
    stride, dilation = _argument(args, named, 3, "stride", 1), _argument(args, named, 5, "dilation", 1)
    return _widened(field, int(weight.shape[2]), _side(stride), _side(padding), _side(dilation))


def _pooled(field: Field, before: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Field:
    if field.axis != len(before) - 2:
        return dataclasses.replace(_UNKNOWN, whole=field.whole)
    kernel = _argument(args, named, 1, "kernel_size", 1)
    stride = _argument(args, named, 2, "stride", None) or kernel
    return _widened(field, _side(kernel), _side(stride), _side(_argument(args, named, 3, "padding", 0)))


def _pooled_to(field: Field, before: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Field:
    side, target = before[-2], _side(_argument(args, named, 1, "output_size", 1))
    if field.axis != len(before) - 2 or side % target:
        return dataclasses.replace(_UNKNOWN, whole=field.whole)
    return _WHOLE if target == 1 else _widened(field, side // target, side // target, 0)


def _padded(field: Field, before: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Field:
    edges = list(_argument(args, named, 1, "pad", ()))
    place = 2 * (len(before) - 1 - (field.axis or 0))  # edges are listed from the last dimension on
    ahead = int(edges[place]) if place < len(edges) else 0
    return dataclasses.replace(field, low=field.low - ahead * field.jump, high=field.high - ahead * field.jump)


def _sliced(field: Field, before: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Field:
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if any(not isinstance(part, slice | int) for part in index) or field.axis is None:
        return dataclasses.replace(_UNKNOWN, whole=field.whole)
    part = index[field.axis] if field.axis < len(index) else slice(None)
    if isinstance(part, int):
        return dataclasses.replace(_UNKNOWN, whole=field.whole)
    start, _, step = part.indices(before[field.axis])
    gone = sum(isinstance(other, int) for other in index[: field.axis])
    low, high = field.low + start * field.jump, field.high + start * field.jump
    return dataclasses.replace(field, axis=field.axis - gone, jump=field.jump * step, low=low, high=high)


def _permuted(field: Field, before: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Field:
    order = args[1:] if len(args) > 2 else _argument(args, named, 1, "dims", ())
    places = [place % len(before) for place in (order if isinstance(order, Sequence) else (order,))]
    return dataclasses.replace(field, axis=places.index(field.axis or 0))


def _transposed(field: Field, before: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Field:
    first = _argument(args, named, 1, "dim0", 0) % len(before)
    second = _argument(args, named, 2, "dim1", 1) % len(before)
    return dataclasses.replace(field, axis={first: second, second: first}.get(field.axis or 0, field.axis))


def _along_channels(field: Field, before: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Field:
    """Of a product with a matrix along the last dimension: along rows it would mix all of them."""
    return _WHOLE if field.axis == len(before) - 1 else field


def _normed(field: Field, before: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Field:
    return dataclasses.replace(field, whole=True)


def _layer_normed(field: Field, before: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Field:
    first = len(before) - len(_argument(args, named, 1, "normalized_shape", ()))
    return field if (field.axis or 0) < first else dataclasses.replace(field, whole=True)


def _softmaxed(field: Field, before: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Field:
    return field if _argument(args, named, 1, "dim", -1) % len(before) != field.axis else _WHOLE


def _reduced(field: Field, before: tuple[int, ...], args: Sequence[Any], named: Mapping[str, Any]) -> Field:
    dim = _argument(args, named, 1, "dim", None)
    dims = range(len(before)) if dim is None else (dim if isinstance(dim, Sequence) else (dim,))
    gone = {place % len(before) for place in dims}
    if field.axis is None or field.axis in gone:
        return _WHOLE
    keepdim = _argument(args, named, 2, "keepdim", False)
    return field if keepdim else dataclasses.replace(field, axis=field.axis - sum(p < field.axis for p in gone))


def _reshaped(field: Field, before: tuple[int, ...], shape: tuple[int, ...]) -> Field:
    """Of a reshape that leaves the rows alone; of others, such as into tokens or windows, nothing is known."""
    axis = field.axis or 0
    if shape[: axis + 1] == before[: axis + 1]:
        return field
    after = len(before) - axis
    if shape[-after:] == before[-after:]:
        return dataclasses.replace(field, axis=len(shape) - after)
    return dataclasses.replace(_UNKNOWN, whole=field.whole)


_Rule = Callable[[Field, tuple[int, ...], Sequence[Any], Mapping[str, Any]], Field]

_RULES: dict[str, _Rule] = {
    "conv2d": _convolved,
    "max_pool2d": _pooled,
    "avg_pool2d": _pooled,
    "adaptive_avg_pool2d": _pooled_to,
    "adaptive_max_pool2d": _pooled_to,
    "pad": _padded,
    "__getitem__": _sliced,
    "permute": _permuted,
    "transpose": _transposed,
    "linear": _along_channels,
    "matmul": _along_channels,
    "__matmul__": _along_channels,
    "group_norm": _normed,
    "instance_norm": _normed,
    "layer_norm": _layer_normed,
    "softmax": _softmaxed,
}


def _argument(args: Sequence[Any], named: Mapping[str, Any], place: int, name: str, usual: Any) -> Any:
    return args[place] if len(args) > place else named.get(name, usual)


def _side(value: Any) -> int:
    """Return the entry for rows of a number or a pair."""
    return int(value[0] if isinstance(value, Sequence) else value)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
