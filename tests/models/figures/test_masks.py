"""Tallies of masks against torch on the whole picture, and scikit-learn's counts."""

import os
import subprocess
import sys
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch.nn import functional

from transferkit.core.errors import ConfigError
from transferkit.core.targets import IGNORED
from transferkit.models.figures.masks import Counting, enlarged, mask_of, tally


class Frame(NamedTuple):
    top: int
    left: int
    height: int
    width: int


CASES = [
    # canvas, frame, picture
    ((32, 32), Frame(0, 0, 32, 32), (32, 32)),
    ((32, 48), Frame(4, 0, 24, 48), (57, 111)),  # enlarged
    ((64, 64), Frame(0, 13, 64, 37), (29, 17)),  # made smaller
    ((32, 32), Frame(15, 0, 1, 32), (3, 200)),  # one row of the canvas
    ((16, 16), Frame(0, 0, 16, 16), (1, 1)),
    ((16, 16), Frame(0, 7, 16, 2), (400, 1)),
]


def example(canvas, size, classes=5, ignored=0.2, seed=0):
    generator = np.random.default_rng(seed)
    mask = generator.integers(0, classes, size, dtype=np.uint8)
    mask[generator.random(size) < ignored] = IGNORED
    return torch.from_numpy(generator.normal(size=(classes, *canvas)).astype(np.float32)), mask


def whole(logits, frame, size):
    """The same in double precision by torch, of the whole picture at once."""
    part = logits[:, frame[0] : frame[0] + frame[2], frame[1] : frame[1] + frame[3]].double()
    return functional.interpolate(part[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize(("canvas", "frame", "size"), CASES)
def test_logits_at_the_own_size_are_torchs(canvas, frame, size):
    logits, _ = example(canvas, size)
    strips = list(enlarged(logits, frame, size))
    result = torch.cat([strip for _, strip in strips], dim=1)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), whole(logits, frame, size), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("canvas", "frame", "size"), CASES)
@pytest.mark.parametrize("numbers", [1, 500, 3000])
def test_strips_change_nothing(canvas, frame, size, numbers):
    logits, _ = example(canvas, size)
    [(start, expected)] = enlarged(logits, frame, size)
    assert start == 0
    strips = list(enlarged(logits, frame, size, numbers=numbers))
    assert len(strips) > 1 or size[0] == 1 or numbers == 3000
    starts = np.cumsum([0, *(strip.shape[1] for _, strip in strips)])
    assert [start for start, _ in strips] == starts[:-1].tolist()
    assert starts[-1] == size[0]
    assert torch.equal(torch.cat([strip for _, strip in strips], dim=1), expected)


@pytest.mark.parametrize(("canvas", "frame", "size"), CASES)
def test_pixels_are_counted_as_scikit_learn_does(canvas, frame, size):
    logits, mask = example(canvas, size, ignored=0.2 if size != (1, 1) else 0.0)
    result = tally(logits, frame, mask)
    predicted = mask_of(logits, frame, size)
    exact = whole(logits, frame, size)
    # The same class as in double precision, but where two logits differ by rounding only.
    best = exact.max(dim=0).values
    chosen = exact.gather(0, torch.from_numpy(predicted.astype(np.int64))[None])[0]
    assert float((best - chosen).max()) < 5e-5
    counts = mask != IGNORED
    expected = confusion_matrix(mask[counts], predicted[counts], labels=range(5))
    np.testing.assert_array_equal(result.confusion, expected)
    assert result.confusion.dtype == np.int64


def test_the_kept_logits_are_those_of_the_pixels_that_were_drawn():
    """Logits that say where they are: the canvas is a plane, which bilinear interpolation keeps between its centres."""
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    logits = torch.stack([rows, columns, torch.zeros(20, 30)])
    size = (60, 90)
    generator = np.random.default_rng(0)
    mask = generator.integers(0, 3, size, dtype=np.uint8)
    mask[:5] = mask[-5:] = mask[:, :5] = mask[:, -5:] = IGNORED  # beyond the outer centres the plane is flat
    result = tally(logits, (0, 0, 20, 30), mask, pixels=500)
    assert result.logits.shape == (500, 3)
    at = np.rint((result.logits[:, :2] + 0.5) * 3 - 0.5).astype(int)
    assert len({tuple(each) for each in at}) == 500  # without replacement
    np.testing.assert_array_equal(mask[at[:, 0], at[:, 1]], result.truths)
    assert IGNORED not in result.truths
    np.testing.assert_array_equal(at[:, 0], np.sort(at[:, 0]))


def test_every_pixel_that_counts_is_drawn_as_likely():
    """Over many masks: the mean place is the middle of those that count, and holes are never drawn."""
    columns = torch.arange(64.0).expand(1, 64, 64)
    logits = torch.cat([columns, columns.transpose(1, 2)])
    hits = np.zeros((64, 64))
    for seed in range(300):
        _, mask = example((64, 64), (64, 64), classes=2, ignored=0.3, seed=seed)
        mask[:, 48:] = IGNORED
        at = tally(logits, (0, 0, 64, 64), mask, pixels=40).logits.astype(int)
        hits[at[:, 1], at[:, 0]] += 1
    assert hits[:, 48:].sum() == 0
    shares = hits[:, :48].reshape(8, 8, 6, 8).sum(axis=(1, 3)) / hits.sum()
    assert abs(shares * 48 - 1).max() < 5 * np.sqrt(48 / hits.sum())


def test_the_draw_hangs_only_on_where_the_mask_counts():
    """Two models, or one whose classes have another order, are measured at the same pixels."""
    places = torch.arange(100.0 * 100).reshape(1, 100, 100)
    logits = torch.cat([places, places * 0])
    _, mask = example((100, 100), (100, 100), classes=2)
    other = np.where(mask == IGNORED, IGNORED, 1 - mask).astype(np.uint8)
    moved = np.roll(mask, 1, axis=1)
    drawn = [tally(logits, (0, 0, 100, 100), each).logits[:, 0] for each in (mask, mask, other, moved)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert (drawn[0] != drawn[3]).any()  # else all pictures of a set would be measured at the same places


def test_few_pixels_are_all_kept_and_none_of_an_empty_mask():
    logits, mask = example((8, 8), (8, 8))
    mask[:] = IGNORED
    empty = tally(logits, (0, 0, 8, 8), mask)
    assert (empty.confusion.sum(), empty.logits.shape, empty.truths.shape) == (0, (0, 5), (0,))
    assert empty.log_probs(2.0).logits.shape == (0, 5)
    mask[3, 4], mask[7, 0] = 2, 1
    few = tally(logits, (0, 0, 8, 8), mask)
    assert few.truths.tolist() == [2, 1]
    np.testing.assert_allclose(few.logits, [logits[:, 3, 4].numpy(), logits[:, 7, 0].numpy()])


@pytest.mark.parametrize("classes", [17, 21, 255])
def test_many_classes_do_not_overflow(classes):
    """open-mmlab/mmsegmentation#3583: of 8 bits, class times classes plus class overflows from 17 classes on."""
    logits, mask = example((40, 40), (40, 40), classes=classes)
    result = tally(logits, (0, 0, 40, 40), mask)
    counts = mask != IGNORED
    expected = confusion_matrix(mask[counts], logits.numpy().argmax(axis=0)[counts], labels=range(classes))
    np.testing.assert_array_equal(result.confusion, expected)


def test_bf16_and_gradients_are_taken():
    logits, mask = example((16, 16), (40, 40))
    plain = tally(logits.bfloat16(), (0, 0, 16, 16), mask)
    assert plain.logits.dtype == np.float32
    grown = tally(logits.bfloat16().float().requires_grad_(), (0, 0, 16, 16), mask)
    np.testing.assert_array_equal(plain.confusion, grown.confusion)


@pytest.mark.parametrize(
    ("frame", "mask", "message"),
    [
        ((0, 0, 9, 8), np.zeros((4, 4), np.uint8), r"frame top 0, left 0, height 9, width 8"),
        ((-1, 0, 4, 4), np.zeros((4, 4), np.uint8), r"expected \(C, h, w\)"),
        ((0, 0, 0, 4), np.zeros((4, 4), np.uint8), r"height 0"),
        ((0, 0, 8, 8), np.zeros((4, 4), np.int64), r"the mask is int64 of shape \(4, 4\)"),
        ((0, 0, 8, 8), np.zeros((4, 4, 3), np.uint8), r"shape \(4, 4, 3\)"),
        ((0, 0, 8, 8), np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        # open-mmlab/mmsegmentation#471: a class out of range was lost without a word
        ((0, 0, 8, 8), np.full((4, 4), 3, np.uint8), r"class 3, but there are logits of 3 classes, expected 0 to 2"),
        ((0, 0, 8, 8), np.full((4, 4), 254, np.uint8), r"class 254"),
    ],
)
def test_what_cannot_be_counted_is_refused(frame, mask, message):
    with pytest.raises(ConfigError, match=message):
        tally(torch.zeros(3, 8, 8), frame, mask)


def test_too_many_classes_are_refused():
    with pytest.raises(ConfigError, match="up to 255 classes"):
        tally(torch.zeros(256, 8, 8), (0, 0, 8, 8), np.zeros((4, 4), np.uint8))


def test_log_probabilities_are_logits():
    """Taking them twice changes nothing but rounding, and a temperature is that of the logits."""
    logits, mask = example((16, 16), (16, 16))
    plain = tally(logits, (0, 0, 16, 16), mask)
    once = plain.log_probs(1.7)
    np.testing.assert_allclose(np.exp(once.logits).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(once.log_probs().logits, once.logits, atol=1e-6)
    expected = torch.from_numpy(plain.logits / 1.7).softmax(dim=1)
    np.testing.assert_allclose(np.exp(once.logits), expected.numpy(), atol=1e-6)
    assert once.confusion is plain.confusion


LARGE = """
import resource
import numpy as np, torch
from transferkit.models.figures.masks import tally
generator = np.random.default_rng(0)
tally(torch.zeros(21, 8, 8), (0, 0, 8, 8), np.zeros((8, 8), np.uint8))
mask = generator.integers(0, 21, (4000, 6000), dtype=np.uint8)
logits = torch.from_numpy(generator.random((21, 512, 512), dtype=np.float32))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = tally(logits, (85, 0, 341, 512), mask)
assert result.confusion.sum() == 24_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow  # seconds of a free core, many more of a busy one
def test_a_large_picture_needs_little_memory():
    """6,000 x 4,000 pixels of 21 classes would be 2 GB of logits; open-mmlab/mmsegmentation#2015."""
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", LARGE]
    run = subprocess.run(words, capture_output=True, encoding="utf-8", check=True, env=one)
    assert int(run.stdout) / 1024 < 400  # MiB


@pytest.mark.parametrize("size", [(50, 41), (32, 200), (7, 5)])
def test_parts_add_up_to_the_picture_to_the_last_pixel(size):
    """Parts of random cuts, in any order: counts, sampled pixels and their logits are those of the whole."""
    generator = np.random.default_rng(size[0])
    logits, mask = example(size, size)
    expected = tally(logits, (0, 0, *size), mask)
    counting = Counting(mask)
    rows, columns = (sorted({0, side, *generator.integers(0, side + 1, 4).tolist()}) for side in size)
    parts = [(top, left, bottom - top, right - left) for top, bottom in pairwise(rows) for left, right in
             pairwise(columns)]  # fmt: skip
    for top, left, height, width in generator.permutation(parts).tolist():
        above, before = generator.integers(0, 9, 2).tolist()
        canvas = torch.full((5, height + above + 3, width + before + 2), 99.0)
        canvas[:, above : above + height, before : before + width] = logits[:, top:, left:][:, :height, :width]
        counting.add(canvas, (above, before, height, width), (top, left, height, width))
    made = counting.tally()
    assert np.array_equal(made.confusion, expected.confusion) and made.confusion.sum() == (mask != IGNORED).sum()
    assert np.array_equal(made.logits, expected.logits) and np.array_equal(made.truths, expected.truths)
