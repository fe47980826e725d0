"""Colours of classes beside the table of Pascal VOC, and masks laid over pictures."""

import io

import numpy as np
from PIL import Image

from transferkit.core.targets import IGNORED, TargetSpec
from transferkit.results.predict.colours import EDGE, STRENGTH, hex_colour, laid_over, mask_png, palette_of

# cat, person, potted plant and tv/monitor of the development kit of Pascal VOC 2012
VOC = {8: (64, 0, 0), 15: (192, 128, 128), 16: (0, 64, 0), 20: (0, 64, 128)}


def test_colours_are_bright_then_those_of_pascal_voc_unless_the_data_have_their_own():
    table = palette_of(TargetSpec(("a", "b")))
    assert {at: tuple(table[at].tolist()) for at in VOC} == VOC
    assert len(np.unique(table, axis=0)) == 256
    own = palette_of(TargetSpec(("a", "b"), {"palette": [[1, 2, 3], [4, 5, 6]]}))
    assert own[:3].tolist() == [[1, 2, 3], [4, 5, 6], [86, 180, 233]]
    assert hex_colour(own[0]) == "#010203"


def test_a_mask_file_holds_indices_and_shows_colours():
    mask = np.array([[0, 1, 2], [20, 254, IGNORED]], dtype=np.uint8)
    palette = palette_of(TargetSpec(("a",)))
    with Image.open(io.BytesIO(mask_png(mask, palette))) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), mask)
        assert np.array_equal(np.asarray(picture.convert("RGB")), palette[mask])


def test_what_is_laid_over_leaves_the_background_alone():
    image = np.full((6, 8, 3), 200, dtype=np.uint8)
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[:, 4:] = 1
    mask[0] = IGNORED
    palette = palette_of(TargetSpec(("a", "b")))
    laid = laid_over(image, mask, palette)
    assert (laid[:, :4] == 200).all()
    assert (laid[0] == 200).all()
    inside = np.rint((1 - STRENGTH) * 200 + STRENGTH * palette[1])
    edge = np.rint((1 - EDGE) * 200 + EDGE * palette[1])
    assert np.array_equal(laid[3, 6], inside)
    assert np.array_equal(laid[3, 4], edge)
