"""Draw photo-like pictures of six kinds of surface; what tells them apart is structure, never colour.

A surface is a function of plane coordinates. The picture of it is taken by a random camera in random colours under
random light, and these are drawn in the same way for every class: a colour histogram learns next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["SURFACES", "draw_picture"]

Field: TypeAlias = npt.NDArray[np.float32]
"""``(H, W)`` float32."""

Surface: TypeAlias = tuple[Field, Field, Field]
"""Height, share of the second material (joints, gaps, sky, ground) and tone within the first; each about [0, 1]."""

_CELLS = 64  # patterns repeat after this many units, more than any picture shows


def draw_picture(name: str, rng: np.random.Generator) -> Image.Image:
    """Draw one picture.

    Args:
        name: One of `SURFACES`.
        rng: Decides everything else.

    Returns:
        An RGB picture 128 to 191 pixels wide and 112 to 159 high.
    """
    height, width = int(rng.integers(112, 160)), int(rng.integers(128, 192))
    rows, columns = (axis.astype(np.float32) for axis in np.mgrid[:height, :width])
    relief, second, tone = SURFACES[name](*_camera(rows, columns, rng), rng)
    picture = _colours(second, tone, rng) * _light(relief, rows / height - 0.5, columns / width - 0.5, rng)[..., None]
    picture = picture * rng.uniform(0.75, 1.25) + rng.uniform(-0.06, 0.1)
    lens = Image.fromarray((_clip(picture) * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(0.2, 1))
    )
    grain = rng.standard_normal((height, width, 4), dtype=np.float32)
    noisy = np.asarray(lens) + rng.uniform(0.5, 5) * grain[..., :1] + 2 * grain[..., 1:]
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _camera(rows: Field, columns: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """Map pixels to the plane: a slight roll, a tilt that makes the far side smaller, a distance, a place."""
    x, y = (columns - columns.mean()) / 100, (rows - rows.mean()) / 100
    roll, tilt_x, tilt_y = rng.normal(0, 0.25), rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25)
    x, y = x * math.cos(roll) - y * math.sin(roll), x * math.sin(roll) + y * math.cos(roll)
    zoom = math.exp(rng.uniform(math.log(2.5), math.log(6))) / (1 + tilt_x * x + tilt_y * y)
    return _f32(x * zoom + rng.uniform(0, 60)), _f32(y * zoom + rng.uniform(0, 60))


def _colours(second: Field, tone: Field, rng: np.random.Generator) -> Field:
    """Paint the two materials, ``(H, W, 3)`` in [0, 1]. Either may be the brighter one, so that joints always show."""
    first, accent, other = _colour(rng), _colour(rng), _colour(rng)
    while abs(first.mean() - other.mean()) < 0.2:
        other = _colour(rng)
    painted = first + (accent - first) * (rng.uniform(0.2, 0.7) * tone)[..., None]
    return _f32(painted + (other * (0.75 + 0.25 * tone[..., None]) - painted) * second[..., None])


def _colour(rng: np.random.Generator) -> Field:
    hue, saturation, value = rng.random(), rng.beta(1.3, 4), rng.uniform(0.2, 0.95)
    ramp = _clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1)
    return _f32(value * (1 - saturation + saturation * ramp))


def _light(relief: Field, v: Field, u: Field, rng: np.random.Generator) -> Field:
    """Brightness: a lamp from one side on the relief, a gradient, a vignette, a soft shadow."""
    down, across = np.gradient(relief)
    lamp, strength = rng.uniform(0, 2 * math.pi), rng.uniform(1.0, 4.0)
    shade = np.clip(1 + strength * (across * math.cos(lamp) + down * math.sin(lamp)), 0.3, 1.8)
    glow = 1 + rng.uniform(-0.5, 0.5) * u + rng.uniform(-0.5, 0.5) * v - rng.uniform(0, 0.8) * (u * u + v * v)
    return _f32(shade * glow * (1 - rng.uniform(0, 0.4) * _step(0.45, 0.65, _fractal(u * 2 + 9, v * 2 + 9, rng, 2))))


def _bricks(x: Field, y: Field, rng: np.random.Generator) -> Surface:
    length, joint = rng.uniform(1.7, 2.6), rng.uniform(0.05, 0.11)
    chipped = 0.12 * (_fractal(x * 2, y * 2, rng, 2) - 0.5)
    x, y = x + chipped, y + chipped
    row = np.floor(y)
    along = _f32(x / length + row * (1 / 2, 1 / 2, 1 / 3)[rng.integers(3)])
    column = np.floor(along)
    body = _step(joint * 0.5, joint * 1.6, np.minimum(_edge(along) * length, _edge(y)))
    rough = _fractal(x * 5, y * 5, rng, 3)
    return 0.5 * body + 0.35 * rough, 1 - body, 0.6 * _per_cell(column, row, rng) + 0.4 * rough


def _clouds(x: Field, y: Field, rng: np.random.Generator) -> Surface:
    scale, flatness, cover = rng.uniform(0.35, 0.75), rng.uniform(1.0, 1.8), rng.uniform(0.4, 0.52)
    x, y = x * scale, y * scale * flatness
    warp = _fractal(x, y, rng, 2)
    density = _fractal(x + 1.2 * warp, y + 0.8 * warp, rng, 5)
    body = _step(cover, cover + rng.uniform(0.12, 0.3), density)
    return 0.6 * body * density, 1 - body, 0.4 + 1.5 * (density - cover)


def _fern(x: Field, y: Field, rng: np.random.Generator) -> Surface:
    height, width = x.shape
    sheets = [Image.new("F", (width, height), 0) for _ in range(2)]
    heights, tones = (ImageDraw.Draw(sheet) for sheet in sheets)
    unit = 1 / float(np.hypot(x[0, 1] - x[0, 0], y[0, 1] - y[0, 0]))  # pixels in one unit of the plane
    for number in range(int(rng.integers(6, 12))):
        level, tone = 0.3 + 0.05 * number, rng.uniform(0.1, 0.9)
        point = rng.uniform(-0.1, 1.1, 2) * (width, height)
        angle, curl, size = rng.uniform(0, 2 * math.pi), rng.uniform(-0.08, 0.08), unit * rng.uniform(2.0, 3.5)
        pairs = int(rng.integers(14, 20))
        for pair in range(pairs):
            angle += curl
            end = point + size / pairs * np.array([np.cos(angle), np.sin(angle)])
            reach = size * 0.34 * np.sin(np.pi * (0.12 + 0.86 * pair / pairs)) ** 0.8
            for side in (-1, 1):
                lean = angle + side * rng.uniform(1.0, 1.2)
                along = np.array([np.cos(lean), np.sin(lean)])
                across = np.array([-along[1], along[0]]) * size / pairs * 0.42
                belly, tip = point + along * reach * 0.4, point + along * reach
                upper, lower = [*point, *(belly + across), *tip], [*point, *(belly - across), *tip]
                heights.polygon([*upper, *(belly - across)], fill=level)
                tones.polygon(upper, fill=tone + 0.12 * side)
                tones.polygon(lower, fill=tone + 0.12 * side - 0.12)
            stem = [*point, *end]
            heights.line(stem, fill=level + 0.05, width=max(1, round(unit * 0.04)))
            tones.line(stem, fill=tone * 0.6, width=max(1, round(unit * 0.04)))
            point = end
    raised, tone_map = (np.asarray(sheet, dtype=np.float32) for sheet in sheets)
    ground = _fractal(x * 2, y * 2, rng, 4)
    leaf = _f32(raised > 0)
    return raised + 0.3 * ground * (1 - leaf), 1 - leaf, np.where(leaf > 0, tone_map, 0.4 * ground)


def _pebbles(x: Field, y: Field, rng: np.random.Generator) -> Surface:
    """Cells of scattered points (Worley 1996, "A cellular texture basis function"), each a dome."""
    jitter = 0.1 + 0.8 * rng.random((2, _CELLS, _CELLS), dtype=np.float32)
    column, row = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    x = x + 0.15 * _fractal(x * 2, y * 2, rng, 2)
    nearest, second, own = np.full_like(x, 9), np.full_like(x, 9), np.zeros_like(column)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            c, r = column + across, row + down
            cell = (r % _CELLS) * _CELLS + c % _CELLS
            distance = np.hypot(x - c - jitter[0].ravel()[cell], y - r - jitter[1].ravel()[cell])
            second = np.minimum(second, np.maximum(distance, nearest))
            own = np.where(distance < nearest, cell, own)
            nearest = np.minimum(nearest, distance)
    gap = _f32(second - nearest)
    dome = np.sqrt(_clip(1.4 * gap)) * (1.1 - 0.5 * nearest)
    tone = 0.75 * rng.random(_CELLS * _CELLS, dtype=np.float32)[own] + 0.25 * _fractal(x * 4, y * 4, rng, 3)
    return _f32(dome), 1 - _step(0.04, 0.2, gap), tone


def _tiles(x: Field, y: Field, rng: np.random.Generator) -> Surface:
    column, row, joint = np.floor(x), np.floor(y), rng.uniform(0.02, 0.05)
    u, v = x - column - 0.5, y - row - 0.5
    body = _step(joint * 0.5, joint * 1.5, np.minimum(_edge(x), _edge(y)))
    motif = [
        np.zeros_like(x),
        (column + row) % 2,
        _step(-0.02, 0.02, _f32(0.3 - np.abs(u) - np.abs(v))),
        _step(-0.02, 0.02, _f32(0.04 - np.abs(np.hypot(u, v) - 0.3))),
    ][rng.integers(4)]
    tone = 0.3 + 0.2 * _per_cell(column, row, rng) + 0.2 * _fractal(x, y, rng, 3)
    return 0.35 * body + 0.03 * _fractal(x * 4, y * 4, rng, 2), np.maximum(1 - body, 0.7 * motif), tone


def _wood(x: Field, y: Field, rng: np.random.Generator) -> Surface:
    width = rng.uniform(1.2, 3.0)
    board = np.floor(y / width)
    joint = _step(0.005, 0.03, _edge(y / width))
    shift = 40 * _per_cell(board, board, rng)
    bend = _fractal(x * 0.25 + shift, y * 1.2 + shift, rng, 3)
    rings = 0.5 + 0.5 * np.sin(2 * math.pi * (y * rng.uniform(1.0, 2.0) + bend * rng.uniform(3, 6)))
    fibre = _fractal(x * 0.6 + shift, y * 14, rng, 2)
    tone = _f32(0.45 * rings + 0.35 * fibre + 0.3 * _per_cell(board, board, rng))
    return 0.25 * joint + 0.12 * fibre, _f32(0.9 * (1 - joint) + 0.25 * rings * joint), tone


SURFACES: dict[str, Callable[[Field, Field, np.random.Generator], Surface]] = {
    "bricks": _bricks,
    "clouds": _clouds,
    "fern": _fern,
    "pebbles": _pebbles,
    "tiles": _tiles,
    "wood": _wood,
}
"""Each class and the function that gives its surface at plane coordinates ``x, y``, both ``(H, W)``."""


def _fractal(x: Field, y: Field, rng: np.random.Generator, octaves: int) -> Field:
    """Noise in [0, 1]: `octaves` value noises, each twice as fine and half as strong as the one before."""
    noise = sum(_noise(x * 2**octave, y * 2**octave, rng) / 2**octave for octave in range(octaves))
    return _f32(noise / (2 - 2.0 ** (1 - octaves)))


def _noise(x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Smooth noise in [0, 1], with features about one unit wide."""
    table = rng.random(_CELLS * _CELLS, dtype=np.float32)
    left, top = np.floor(x), np.floor(y)
    across, down = _ease(x - left), _ease(y - top)
    x0, y0 = left.astype(np.int32), top.astype(np.int32)
    x1, y1 = (x0 + 1) % _CELLS, (y0 + 1) % _CELLS * _CELLS
    x0, y0 = x0 % _CELLS, y0 % _CELLS * _CELLS
    upper, lower = table[y0 + x0], table[y1 + x0]
    upper += (table[y0 + x1] - upper) * across
    lower += (table[y1 + x1] - lower) * across
    return _f32(upper + (lower - upper) * down)


def _per_cell(column: Field, row: Field, rng: np.random.Generator) -> Field:
    """One random number in [0, 1) for each whole-numbered cell."""
    cell = row.astype(np.int32) % _CELLS * _CELLS + column.astype(np.int32) % _CELLS
    return _f32(rng.random(_CELLS * _CELLS, dtype=np.float32)[cell])


def _edge(x: Field) -> Field:
    """Distance to the nearest whole number."""
    return _f32(np.abs(x - np.round(x)))


def _step(low: float, high: float, value: Field) -> Field:
    """0 below `low`, 1 above `high`, smooth between."""
    return _ease(_clip((value - low) / (high - low)))


def _ease(t: Field) -> Field:
    return t * t * (3 - 2 * t)


def _clip(value: npt.NDArray[np.floating]) -> Field:
    return _f32(np.clip(value, 0, 1))


def _f32(value: npt.ArrayLike) -> Field:
    return np.asarray(value, dtype=np.float32)
