"""The evaluation rule, `data.images.resize.fit`, and the normalisation as an ONNX graph: uint8 pictures of any size in.

Areas are averaged, and pixels interpolated, by one matrix per axis, made in the graph from the size of the picture. So
a picture that shrinks comes out as it does here, but for rounding at exact halves; one that grows differs by single
levels, since OpenCV interpolates in fixed-point numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from transferkit.core.records import DataConfig

__all__ = ["IR_VERSION", "OPSET", "PICTURES", "preprocessing_graph"]

OPSET: Final = 18
"""Of every ONNX file, read by onnxruntime 1.14 and later."""
IR_VERSION: Final = 10

PICTURES: Final = "pictures"
"""The graph's input, ``(B, H, W, C) uint8``."""

_FLOAT, _INT64, _DOUBLE = 1, 7, 11  # `onnx.TensorProto` has these numbers; onnx may be missing

_TAPS = 4
"""Pixels beyond the edge that an interpolation may ask for; they repeat the edge."""


class _Graph:
    """Nodes and constants of a graph while it is built."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: npt.ArrayLike, kind: npt.DTypeLike = np.float64) -> _Value:
        from onnx import numpy_helper

        name = f"prep_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, dtype=kind), name))
        return _Value(self, name)

    def node(self, operator: str, *inputs: _Value | float, output: str = "", **attributes: Any) -> _Value:
        """Return the output of an ONNX operator; plain numbers among its inputs are float64."""
        from onnx import helper

        values = [value if isinstance(value, _Value) else self.constant(value) for value in inputs]
        output = output or f"prep_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [value.name for value in values], [output], **attributes))
        return _Value(self, output)

    def count(self, start: _Value | int, stop: _Value) -> _Value:
        """Return the whole numbers from `start` to `stop`, as float64."""
        first = self.constant(start, np.int64) if isinstance(start, int) else start
        return self.node("Range", first, stop, self.constant(1, np.int64)).cast(_DOUBLE)


@dataclass(frozen=True)
class _Value:
    """A named value of a graph, with the arithmetic of ONNX."""

    graph: _Graph
    name: str

    def node(self, operator: str, *inputs: _Value | float, **attributes: Any) -> _Value:
        """Return what an operator makes of it, and of other inputs."""
        return self.graph.node(operator, self, *inputs, **attributes)

    def __add__(self, other: _Value | float) -> _Value:
        return self.node("Add", other)

    def __sub__(self, other: _Value | float) -> _Value:
        return self.node("Sub", other)

    def __rsub__(self, other: float) -> _Value:
        return self.graph.node("Sub", other, self)

    def __mul__(self, other: _Value | float) -> _Value:
        return self.node("Mul", other)

    def __truediv__(self, other: _Value | float) -> _Value:
        return self.node("Div", other)

    def cast(self, kind: int) -> _Value:
        return self.node("Cast", to=kind)

    def at_least(self, low: _Value | float) -> _Value:
        return self.node("Max", low)

    def at_most(self, high: _Value | float) -> _Value:
        return self.node("Min", high)

    def where_below(self, limit: float, then: _Value, other: _Value | float) -> _Value:
        """Return `then` where it is below `limit`, else `other`."""
        return self.node("Less", limit).node("Where", then, other)


# ---- weights of pixels, by their distance ------------------------------------------------------------------------


def _nearest(place: _Value, pixel: _Value) -> _Value:
    return (place + 0.5).node("Floor").node("Equal", pixel).cast(_DOUBLE)


def _bilinear(place: _Value, pixel: _Value) -> _Value:
    return (1.0 - (place - pixel).node("Abs")).at_least(0.0)


def _bicubic(place: _Value, pixel: _Value) -> _Value:
    """Keys' cubic with OpenCV's a = -0.75."""
    d = (place - pixel).node("Abs")
    d2 = d * d
    d3 = d2 * d
    inner = d3 * 1.25 - d2 * 2.25 + 1.0
    outer = (d3 - d2 * 5.0 + d * 8.0 - 4.0) * -0.75
    return d.where_below(1.0, inner, d.where_below(2.0, outer, 0.0))


def _lanczos(place: _Value, pixel: _Value) -> _Value:
    """``sinc(d) sinc(d / 4)`` up to four pixels; a shift too small to matter keeps the division from 0."""
    d = (place - pixel).node("Abs")
    whole = d.at_least(1e-9) * math.pi
    quarter = whole / 4.0
    return d.where_below(4.0, whole.node("Sin") * quarter.node("Sin") / (whole * quarter), 0.0)


_KERNELS: Final[Mapping[str, Callable[[_Value, _Value], _Value]]] = {
    "nearest": _nearest, "bilinear": _bilinear, "bicubic": _bicubic, "lanczos": _lanczos,
}  # fmt: skip


# ---- the graph ---------------------------------------------------------------------------------------------------


def _centre_box(pictures: _Value, config: DataConfig) -> _Value:
    """Return the centre box of `fit`, in float64 and rounded to even like Python, so that it is the same box."""
    graph = pictures.graph
    sides = pictures.node("Shape", start=1, end=3)
    lengths, target = sides.cast(_DOUBLE), graph.constant(config.image_size)
    unit = (lengths / target).node("ReduceMin", keepdims=1) * config.crop_pct
    margin = ((lengths - unit * target) / 2.0).node("Round")
    first = margin.at_most(((lengths - 1.0) / 2.0).node("Floor")).cast(_INT64)
    return pictures.node("Slice", first, sides - first, graph.constant([1, 2], np.int64))


def _frame(pictures: _Value, config: DataConfig) -> tuple[_Value, _Value, _Value]:
    """Return the rows and columns that a whole picture takes, ``(1,) int64`` each, and the pixels before them, (2,)."""
    graph = pictures.graph
    lengths = pictures.node("Shape", start=1, end=3).cast(_DOUBLE)
    target, whole = graph.constant(config.image_size), graph.constant(config.image_size, np.int64)
    if config.crop_mode == "pad":
        scale = (target / lengths).node("ReduceMin", keepdims=1)
        sizes = (lengths * scale).node("Round").at_least(1.0).at_most(target).cast(_INT64)
    else:
        sizes = whole
    before = (whole - sizes).node("Div", graph.constant(2, np.int64))
    rows, columns = (sizes.node("Slice", *(graph.constant([at], np.int64) for at in (start, start + 1, 0)))
                     for start in (0, 1))  # fmt: skip
    return rows, columns, before


def _padded(levels: _Value, before: _Value, config: DataConfig) -> _Value:
    """Return levels ``(B, C, h, w)`` in the middle of the mean colour."""
    graph = levels.graph
    ground = graph.constant(np.reshape([round(255 * level) for level in config.mean], (1, -1, 1, 1)), np.float32)
    none, whole = graph.constant([0, 0], np.int64), graph.constant(config.image_size, np.int64)
    after = whole - levels.node("Shape", start=2, end=4) - before
    margins = none.node("Concat", before, none, after, axis=0)
    return (levels - ground).node("Pad", margins) + ground


def _matrix(planes: _Value, axis: int, target: _Value, interpolation: str) -> _Value:
    """Return what fits an axis of n pixels to `target`, ``(target, n)``: n are averaged to m, m interpolated.

    Args:
        planes: ``(B, C, H, W)``.
        axis: Of the pixels.
        target: ``(1,) int64``.
        interpolation: Between pixels.
    """
    graph, columns = planes.graph, planes.graph.constant([1], np.int64)
    length = planes.node("Shape", start=axis, end=axis + 1)
    n, m = length.node("Squeeze"), length.at_most(target).node("Squeeze")
    step = n.cast(_DOUBLE) / m.cast(_DOUBLE)
    begin = (graph.count(0, m) * step).node("Unsqueeze", columns)
    cell = graph.count(0, n)
    covered = ((begin + step).at_most(cell + 1.0) - begin.at_least(cell)).at_least(0.0)
    edges = graph.constant([_TAPS, 0, _TAPS, 0], np.int64)
    area = (covered / step).cast(_FLOAT).node("Pad", edges, mode="edge")
    out = graph.count(0, target.node("Squeeze"))
    place = ((out + 0.5) * (m.cast(_DOUBLE) / target.node("Squeeze").cast(_DOUBLE)) - 0.5).node("Unsqueeze", columns)
    weights = _KERNELS[interpolation](place, graph.count(-_TAPS, m + graph.constant(_TAPS, np.int64)))
    return (weights / weights.node("ReduceSum", columns, keepdims=1)).cast(_FLOAT).node("MatMul", area)


def preprocessing_graph(config: DataConfig, images: str = "images") -> Any:
    """Return an ONNX model that turns pictures ``(B, H, W, C) uint8`` into ``(B, C, h, w) float32, normalised``.

    Args:
        config: How pictures must be prepared.
        images: Name of the output.
    """
    from onnx import TensorProto, helper

    (height, width), mean, std = config.image_size, np.array(config.mean), np.array(config.std)
    graph = _Graph()
    pictures = _Value(graph, PICTURES)
    cropped = _centre_box(pictures, config) if config.crop_mode == "center" else pictures
    planes = cropped.node("Transpose", perm=[0, 3, 1, 2])
    rows, columns, before = _frame(pictures, config)
    down = _matrix(planes, 2, rows, config.interpolation).node("MatMul", planes.cast(_FLOAT))
    across = _matrix(planes, 3, columns, config.interpolation).node("Transpose")
    black, white = (graph.constant(level, np.float32) for level in (0, 255))
    levels = down.node("MatMul", across).node("Round").node("Clip", black, white)
    if config.crop_mode == "pad":
        levels = _padded(levels, before, config)
    scale, shift = (
        graph.constant(values.reshape(1, -1, 1, 1), np.float32) for values in (1.0 / (255.0 * std), -mean / std)
    )
    (levels * scale).node("Add", shift, output=images)
    made = helper.make_graph(
        graph.nodes, "preprocessing",
        [helper.make_tensor_value_info(PICTURES, TensorProto.UINT8, ["batch", "height", "width", config.channels])],
        [helper.make_tensor_value_info(images, TensorProto.FLOAT, ["batch", config.channels, height, width])],
        graph.constants,
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
