"""What is kept of logits on pixels, and how they come back to the picture: by hand, from torch's own resizing."""

import weakref

import numpy as np
import pytest
import torch
from torch.nn import functional

from transferkit.core.targets import IGNORED
from transferkit.data.masks.annotation import Annotation
from transferkit.models.dense.extent import MaskExtent
from transferkit.models.extent import WHOLE_PICTURE, Joined, Truth

EXTENT = MaskExtent()
FRAME = (2, 0, 12, 16)  # a picture of 24 x 32 on a canvas of 16 x 16


@pytest.fixture
def logits():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def by_hand(logits):
    """The class of each pixel of the picture, ``(24, 32)``."""
    top, left, height, width = FRAME
    part = logits[None, :, top : top + height, left : left + width]
    return functional.interpolate(part, (24, 32), mode="bilinear", align_corners=False)[0].argmax(dim=0).numpy()


def test_a_prediction_comes_to_the_size_of_the_picture(logits):
    probs = logits[0].softmax(dim=0).numpy()
    assert np.array_equal(EXTENT.placed(probs, FRAME, (24, 32)), by_hand(logits[0]))
    whole = EXTENT.placed(probs, None, None)
    assert np.array_equal(whole, logits[0].argmax(dim=0).numpy())


def test_a_tally_is_of_the_picture_where_its_mask_is_there_and_of_the_canvas_elsewhere(logits):
    mask = by_hand(logits[0]).astype(np.uint8)
    mask[:5] = IGNORED
    truth = Truth(FRAME, "masks/a.png", Annotation(mask))
    (kept,), answers = EXTENT.entries(logits[:1], torch.zeros(1, 16, 16, dtype=torch.uint8), [truth])
    assert answers[0] is kept
    assert kept.file == "masks/a.png"
    assert kept.confusion.sum() == kept.confusion.trace() == 19 * 32
    targets = logits.argmax(dim=1).to(torch.uint8)
    targets[:, 0] = IGNORED
    on_canvas, _ = EXTENT.entries(logits, targets)
    assert [one.confusion.trace() for one in on_canvas] == [15 * 16] * 2
    assert EXTENT.join([on_canvas, [kept]]) == [*on_canvas, kept]


def test_a_merged_prediction_is_measured_as_its_logits_are(logits):
    mask = np.random.default_rng(0).integers(0, 3, (24, 32)).astype(np.uint8)
    truth = Truth(FRAME, "", Annotation(mask))
    (kept,), _ = EXTENT.entries(logits[:1], torch.zeros(1, 16, 16, dtype=torch.uint8), [truth])
    entry = EXTENT.entry(logits[0].softmax(dim=0).numpy(), truth)
    assert np.array_equal(entry.confusion, kept.confusion)
    np.testing.assert_allclose(entry.log_probs().logits, kept.log_probs().logits, atol=1e-5)
    with pytest.raises(ValueError, match="measured by the mask"):
        EXTENT.entry(logits[0].softmax(dim=0).numpy(), None)


def test_mirror_images_are_turned_back(logits):
    outputs = logits.numpy()
    turned = EXTENT.upright(outputs, (1,), (32, 32))
    assert np.array_equal(turned[0], outputs[0])
    assert np.array_equal(turned[1], outputs[1, :, :, ::-1])
    assert EXTENT.upright(outputs, (), (32, 32)) is outputs


def test_of_a_whole_picture_all_is_kept():
    outputs, targets = torch.randn(3, 2), torch.arange(3)
    kept, answers = WHOLE_PICTURE.entries(outputs, targets)
    assert torch.equal(WHOLE_PICTURE.join([kept, kept]), torch.cat((outputs, outputs)))
    assert torch.equal(answers, targets)
    entries = [WHOLE_PICTURE.entry(row, None) for row in outputs.numpy()]
    assert torch.equal(WHOLE_PICTURE.table(entries), outputs)
    assert WHOLE_PICTURE.upright(outputs.numpy(), (1,), (32, 32)).shape == (3, 2)
    assert len(WHOLE_PICTURE.table([])) == len(WHOLE_PICTURE.join([])) == 0


@pytest.mark.parametrize("count", [0, 1, 4, 11])
def test_parts_are_joined_in_blocks_and_do_not_live_on(count):
    rows = [torch.randn(1, 3) for _ in range(count)]
    joined, expected = Joined(WHOLE_PICTURE, block=4), torch.cat(rows) if rows else torch.zeros(0, 0)
    alive = [weakref.ref(row) for row in rows]
    while rows:
        joined.add(rows.pop(0))
    assert sum(one() is not None for one in alive) == count % 4
    assert torch.equal(joined.whole(), expected)


def test_tallies_are_joined_in_blocks_too(logits):
    targets = logits.argmax(dim=1).to(torch.uint8)
    tallies = [one for _ in range(3) for one in EXTENT.entries(logits, targets)[0]]
    joined = Joined(EXTENT, block=2)
    for one in tallies:
        joined.add(EXTENT.table([one]))
    assert [id(one) for one in joined.whole()] == [id(one) for one in tallies]
