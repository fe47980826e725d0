"""An answer for a picture that the model sees in windows: a few at a time, those of other callers in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Final

from transferkit.data.images.decode import Pixels
from transferkit.data.images.resize import mean_colour
from transferkit.data.images.windows import cut, windows
from transferkit.features.engine.whole import Gathered, Output
from transferkit.results.predict.predictor import Predictor

__all__ = ["WINDOWS_AT_ONCE", "put_together"]

WINDOWS_AT_ONCE: Final = 16
"""Of one picture that are asked about together."""


async def put_together(
    predictor: Predictor,
    pixels: Pixels,
    submit: Callable[[Pixels], Awaitable[Output]],
    in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
) -> tuple[Output, Any]:
    """Return the last output of a picture, and what `Predictor.placing` makes of all.

    Args:
        predictor: The model.
        pixels: ``(H, W, 3) uint8``, the decoded picture.
        submit: Asks about a window.
        in_thread: Does what takes a while.
    """
    config, size = predictor.info.preprocessing, (pixels.shape[0], pixels.shape[1])
    output, ground = Output("", None, size=size), mean_colour(config)
    gathered: Gathered | None = None
    todo = windows(size, config)
    while part := list(islice(todo, WINDOWS_AT_ONCE)):
        shown = [cut(pixels, window, config.image_size, ground) for window in part]
        outputs = await asyncio.gather(*map(submit, shown))
        for window, of_window in zip(part, outputs, strict=True):
            output = replace(of_window, size=size, window=window)
            gathered = predictor.placing(output) if gathered is None else gathered
            await in_thread(partial(gathered.add, output))
    return output, None if gathered is None else gathered.done()
