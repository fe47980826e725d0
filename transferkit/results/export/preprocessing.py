"""The evaluation rule of `data.resize.fit` and the normalisation as an ONNX graph: uint8 pictures of any size in.

Areas are averaged, and pixels interpolated, by one matrix per axis, made in the graph from the size of the picture. So
a picture that shrinks comes out as it does here, but for rounding at exact halves; one that grows differs by single
levels, since OpenCV interpolates in fixed-point numbers.
"""

from __future__ import annotations

from typing import Any, Final

from transferkit.core.records import DataConfig

__all__ = ["IR_VERSION", "OPSET", "PICTURES", "preprocessing_graph"]

OPSET: Final = 18
"""Of every ONNX file, read by onnxruntime 1.14 and later."""
IR_VERSION: Final = 10

PICTURES: Final = "pictures"
"""The graph's input, ``(B, H, W, 3) uint8``."""

_TAPS = 4
"""Pixels beyond the edge that an interpolation may ask for; they repeat the edge."""

# The centre box of `fit`, in float64 and rounded to even like Python, so that it is the same box.
_BOX = """
    prep_sides = Shape <start = 1, end = 3> (pictures)
    prep_lengths = Cast <to = 11> (prep_sides)
    prep_target = Constant <value = double[2] {{{height}, {width}}}> ()
    prep_ratios = Div (prep_lengths, prep_target)
    prep_ratio = ReduceMin <keepdims = 1> (prep_ratios)
    prep_share = Constant <value = double {{{crop_pct}}}> ()
    prep_unit = Mul (prep_share, prep_ratio)
    prep_box = Mul (prep_unit, prep_target)
    prep_around = Sub (prep_lengths, prep_box)
    prep_two = Constant <value = double {{2.0}}> ()
    prep_margin = Div (prep_around, prep_two)
    prep_rounded = Round (prep_margin)
    prep_unity = Constant <value = double {{1.0}}> ()
    prep_others = Sub (prep_lengths, prep_unity)
    prep_halves = Div (prep_others, prep_two)
    prep_most = Floor (prep_halves)
    prep_least = Min (prep_rounded, prep_most)
    prep_first = Cast <to = 7> (prep_least)
    prep_last = Sub (prep_sides, prep_first)
    prep_axes = Constant <value = int64[2] {{1, 2}}> ()
    prep_cropped = Slice (pictures, prep_first, prep_last, prep_axes)"""

_WHOLE = """
    prep_cropped = Identity (pictures)"""

_START = """
    prep_planes = Transpose <perm = [0, 3, 1, 2]> (prep_cropped)
    prep_pixels = Cast <to = 1> (prep_planes)
    prep_zero = Constant <value = int64 {{0}}> ()
    prep_one = Constant <value = int64 {{1}}> ()
    prep_nothing = Constant <value = double {{0.0}}> ()
    prep_half = Constant <value = double {{0.5}}> ()
    prep_whole = Constant <value = double {{1.0}}> ()
    prep_taps = Constant <value = int64 {{{taps}}}> ()
    prep_column = Constant <value = int64[1] {{1}}> ()
    prep_around_it = Constant <value = int64[4] {{{taps}, 0, {taps}, 0}}> ()"""

# One axis: `area` averages n pixels to m = min(n, target), `kernel` interpolates m to the target.
_AXIS = """
    {a}_length = Shape <start = {axis}, end = {next}> (prep_planes)
    {a}_target = Constant <value = int64[1] {{{target}}}> ()
    {a}_kept = Min ({a}_length, {a}_target)
    {a}_n = Squeeze ({a}_length)
    {a}_m = Squeeze ({a}_kept)
    {a}_t = Squeeze ({a}_target)
    {a}_n_real = Cast <to = 11> ({a}_n)
    {a}_m_real = Cast <to = 11> ({a}_m)
    {a}_t_real = Cast <to = 11> ({a}_t)
    {a}_step = Div ({a}_n_real, {a}_m_real)
    {a}_rows = Range (prep_zero, {a}_m, prep_one)
    {a}_rows_real = Cast <to = 11> ({a}_rows)
    {a}_begins = Mul ({a}_rows_real, {a}_step)
    {a}_begin = Unsqueeze ({a}_begins, prep_column)
    {a}_end = Add ({a}_begin, {a}_step)
    {a}_cells = Range (prep_zero, {a}_n, prep_one)
    {a}_cell = Cast <to = 11> ({a}_cells)
    {a}_cell_end = Add ({a}_cell, prep_whole)
    {a}_from = Max ({a}_begin, {a}_cell)
    {a}_to = Min ({a}_end, {a}_cell_end)
    {a}_overlap = Sub ({a}_to, {a}_from)
    {a}_covered = Max ({a}_overlap, prep_nothing)
    {a}_shares = Div ({a}_covered, {a}_step)
    {a}_area = Cast <to = 1> ({a}_shares)
    {a}_area_padded = Pad <mode = "edge"> ({a}_area, prep_around_it)
    {a}_grow = Div ({a}_m_real, {a}_t_real)
    {a}_out = Range (prep_zero, {a}_t, prep_one)
    {a}_out_real = Cast <to = 11> ({a}_out)
    {a}_centre = Add ({a}_out_real, prep_half)
    {a}_scaled = Mul ({a}_centre, {a}_grow)
    {a}_places = Sub ({a}_scaled, prep_half)
    {a}_place = Unsqueeze ({a}_places, prep_column)
    {a}_low = Neg (prep_taps)
    {a}_high = Add ({a}_m, prep_taps)
    {a}_around = Range ({a}_low, {a}_high, prep_one)
    {a}_pixel = Cast <to = 11> ({a}_around){kernel}
    {a}_total = ReduceSum <keepdims = 1> ({a}_weights, prep_column)
    {a}_normed = Div ({a}_weights, {a}_total)
    {a}_kernel = Cast <to = 1> ({a}_normed)
    {a}_matrix = MatMul ({a}_kernel, {a}_area_padded)"""

_DISTANCE = """
    {a}_apart = Sub ({a}_place, {a}_pixel)
    {a}_d = Abs ({a}_apart)"""

_KERNELS = {
    "nearest": """
    {a}_above = Add ({a}_place, prep_half)
    {a}_nearest = Floor ({a}_above)
    {a}_hit = Equal ({a}_nearest, {a}_pixel)
    {a}_weights = Cast <to = 11> ({a}_hit)""",
    "bilinear": _DISTANCE
    + """
    {a}_tent = Sub (prep_whole, {a}_d)
    {a}_weights = Max ({a}_tent, prep_nothing)""",
    # Keys' cubic with OpenCV's a = -0.75: 1.25 d^3 - 2.25 d^2 + 1 up to one pixel, then -0.75 (d^3 - 5 d^2 + 8 d - 4).
    "bicubic": _DISTANCE
    + """
    {a}_d2 = Mul ({a}_d, {a}_d)
    {a}_d3 = Mul ({a}_d2, {a}_d)
    {a}_c1 = Constant <value = double {{1.25}}> ()
    {a}_c2 = Constant <value = double {{2.25}}> ()
    {a}_c3 = Constant <value = double {{-0.75}}> ()
    {a}_c4 = Constant <value = double {{5.0}}> ()
    {a}_c5 = Constant <value = double {{8.0}}> ()
    {a}_c6 = Constant <value = double {{4.0}}> ()
    {a}_two = Constant <value = double {{2.0}}> ()
    {a}_i1 = Mul ({a}_c1, {a}_d3)
    {a}_i2 = Mul ({a}_c2, {a}_d2)
    {a}_i3 = Sub ({a}_i1, {a}_i2)
    {a}_inner = Add ({a}_i3, prep_whole)
    {a}_o1 = Mul ({a}_c4, {a}_d2)
    {a}_o2 = Sub ({a}_d3, {a}_o1)
    {a}_o3 = Mul ({a}_c5, {a}_d)
    {a}_o4 = Add ({a}_o2, {a}_o3)
    {a}_o5 = Sub ({a}_o4, {a}_c6)
    {a}_outer = Mul ({a}_c3, {a}_o5)
    {a}_near = Less ({a}_d, prep_whole)
    {a}_in_reach = Less ({a}_d, {a}_two)
    {a}_far = Where ({a}_in_reach, {a}_outer, prep_nothing)
    {a}_weights = Where ({a}_near, {a}_inner, {a}_far)""",
    # sinc(d) sinc(d / 4) up to four pixels; the division by d^2 is kept from 0 by a shift too small to matter.
    "lanczos": _DISTANCE
    + """
    {a}_tiny = Constant <value = double {{1e-9}}> ()
    {a}_four = Constant <value = double {{4.0}}> ()
    {a}_pi = Constant <value = double {{3.141592653589793}}> ()
    {a}_x = Max ({a}_d, {a}_tiny)
    {a}_px = Mul ({a}_x, {a}_pi)
    {a}_px4 = Div ({a}_px, {a}_four)
    {a}_s1 = Sin ({a}_px)
    {a}_s2 = Sin ({a}_px4)
    {a}_top = Mul ({a}_s1, {a}_s2)
    {a}_bottom = Mul ({a}_px, {a}_px4)
    {a}_wave = Div ({a}_top, {a}_bottom)
    {a}_in_reach = Less ({a}_d, {a}_four)
    {a}_weights = Where ({a}_in_reach, {a}_wave, prep_nothing)""",
}

_END = """
    prep_high = MatMul (prep_y_matrix, prep_pixels)
    prep_x_turned = Transpose (prep_x_matrix)
    prep_fitted = MatMul (prep_high, prep_x_turned)
    prep_levels = Round (prep_fitted)
    prep_black = Constant <value = float {{0.0}}> ()
    prep_white = Constant <value = float {{255.0}}> ()
    prep_image = Clip (prep_levels, prep_black, prep_white)
    prep_scale = Constant <value = float[1, 3, 1, 1] {{{scale}}}> ()
    prep_shift = Constant <value = float[1, 3, 1, 1] {{{shift}}}> ()
    prep_product = Mul (prep_image, prep_scale)
    {images} = Add (prep_product, prep_shift)"""


def preprocessing_graph(config: DataConfig, images: str = "images") -> Any:
    """Return an ONNX model that turns pictures ``(B, H, W, 3) uint8`` into ``(B, 3, h, w) float32, normalised``.

    Args:
        config: How pictures must be prepared.
        images: Name of the output.
    """
    from onnx import parser

    height, width = config.image_size
    scale = [1.0 / (255.0 * std) for std in config.std]
    shift = [-mean / std for mean, std in zip(config.mean, config.std, strict=True)]
    parts = [
        _BOX.format(height=float(height), width=float(width), crop_pct=float(config.crop_pct))
        if config.crop_mode == "center"
        else _WHOLE.format(),
        _START.format(taps=_TAPS),
    ]
    for name, axis, target in (("prep_y", 2, height), ("prep_x", 3, width)):
        kernel = _KERNELS[config.interpolation].format(a=name)
        parts.append(_AXIS.format(a=name, axis=axis, next=axis + 1, target=target, kernel=kernel))
    parts.append(_END.format(scale=_floats(scale), shift=_floats(shift), images=images))
    text = (
        f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>\n'
        f"preprocessing (uint8[batch, height, width, 3] {PICTURES}) => (float[batch, 3, {height}, {width}] {images}) {{"
        f"{''.join(parts)}\n}}"
    )
    return parser.parse_model(text)


def _floats(values: list[float]) -> str:
    return ", ".join(f"{value:.9g}" if "e" in f"{value:.9g}" or "." in f"{value:.9g}" else f"{value:.1f}"
                     for value in values)  # fmt: skip
