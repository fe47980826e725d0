"""Pictures as a worse camera would have taken them: noise, blur, JPEG, light, contrast and tilt, at three strengths."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from transferkit.data.images.decode import Pixels

__all__ = ["CORRUPTIONS", "STRENGTHS", "corrupt"]

STRENGTHS: Final = (1, 2, 3)

CORRUPTIONS: Final[Mapping[str, tuple[float, float, float]]] = {
    "noise": (0.08, 0.18, 0.38),
    "blur": (1 / 224, 3 / 224, 6 / 224),
    "jpeg": (25, 15, 7),
    "dark": (0.7, 0.5, 0.3),
    "bright": (1.4, 1.8, 2.4),
    "contrast": (0.4, 0.2, 0.1),
    "rotation": (10.0, 20.0, 40.0),
}
"""What each strength is: deviation of the noise, of 1; radius of the blur over the shorter side; quality; factors of
light and of contrast; degrees, either way.

Noise, blur and quality are severities 1, 3 and 5 of Hendrycks & Dietterich (2019, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations"), who blur pictures of 224 pixels; their contrast goes down to 0.05,
and they turn none.
"""


def corrupt(image: Pixels, kind: str, strength: int, seed: int) -> Pixels:
    """Return a picture spoilt in one way.

    Args:
        image: ``(H, W, 3) uint8``, as the model is shown it: how strong a corruption is depends on its size.
        kind: One of `CORRUPTIONS`.
        strength: 1, 2 or 3.
        seed: Of the noise, and of the way that the picture is turned; at least 0.
    """
    amount = CORRUPTIONS[kind][strength - 1]
    return _APPLIED[kind](image, amount, np.random.default_rng(seed))


def _noise(image: Pixels, deviation: float, draws: np.random.Generator) -> Pixels:
    noisy = image + draws.normal(0.0, 255 * deviation, image.shape)
    return np.clip(noisy.round(), 0, 255).astype(np.uint8)


def _blur(image: Pixels, share: float, draws: np.random.Generator) -> Pixels:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(share * min(image.shape[:2]))))


def _jpeg(image: Pixels, quality: float, draws: np.random.Generator) -> Pixels:
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        return np.asarray(Image.open(file).convert("RGB"))


def _light(image: Pixels, factor: float, draws: np.random.Generator) -> Pixels:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(factor))


def _contrast(image: Pixels, factor: float, draws: np.random.Generator) -> Pixels:
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(factor))


def _rotation(image: Pixels, degrees: float, draws: np.random.Generator) -> Pixels:
    """Turn about the middle; where nothing was, the outermost pixels go on in mirror image."""
    height, width = image.shape[:2]
    rim = math.ceil((math.hypot(height, width) - min(height, width)) / 2) + 1
    rims = ((rim, rim), (rim, rim), (0, 0))
    wide = Image.fromarray(np.pad(image, rims, mode="symmetric"))
    turned = np.asarray(wide.rotate(degrees * (1 if draws.random() < 0.5 else -1), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(turned[rim : rim + height, rim : rim + width])


_APPLIED: Final[Mapping[str, Callable[[Pixels, float, np.random.Generator], Pixels]]] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "dark": _light,
    "bright": _light,
    "contrast": _contrast,
    "rotation": _rotation,
}
