"""Mixup and CutMix: what is mixed with what, by the shares of the labels, from torch's own generator only."""

import random

import numpy as np
import pytest
import torch

from transferkit.core.errors import ConfigError
from transferkit.data.augment.mixing import Mixer


def batch(size=6, classes=3, channels_last=True):
    images = torch.randn(size, 3, 8, 10, generator=torch.Generator().manual_seed(1))
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.arange(size) % classes


def shares(soft, targets, classes=3):
    """The share of every picture's own label, read back where its neighbour's label is another."""
    own = soft[torch.arange(len(targets)), targets]
    return own[targets != targets.roll(1)]


def test_mixup_blends_with_the_neighbour_by_the_share_of_the_labels():
    images, targets = batch()
    torch.manual_seed(0)
    mixed, soft = Mixer(3, mixup=0.4, cutmix=0.0)(images, targets)
    share = shares(soft, targets)[0]
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))
    one_hot = torch.nn.functional.one_hot(targets, 3).float()
    torch.testing.assert_close(soft, share * one_hot + (1 - share) * one_hot.roll(1, 0))


def test_cutmix_pastes_a_box_and_weighs_labels_by_its_area():
    images, targets = batch()
    torch.manual_seed(2)
    mixed, soft = Mixer(3, mixup=0.0, cutmix=1.0)(images, targets)
    pasted = (mixed != images).any(dim=1)
    assert all(mask.equal(pasted[0]) for mask in pasted)
    rows, columns = pasted[0].nonzero(as_tuple=True)
    height, width = (int(axis.max() - axis.min()) + 1 for axis in (rows, columns))
    assert 0 < len(rows) == height * width < 80  # a full box
    assert mixed[:, :, rows, columns].equal(images.roll(1, 0)[:, :, rows, columns])
    torch.testing.assert_close(shares(soft, targets), torch.full((6,), 1 - len(rows) / 80))


def kind(mixed, images):
    """Whether a batch was pasted together: then some pixels are those of before."""
    return "cutmix" if (mixed == images).any() else "mixup"


def test_one_of_both_is_drawn_per_batch():
    images, targets = batch()
    torch.manual_seed(0)
    mixer = Mixer(3, mixup=1.0, cutmix=1.0)
    kinds = [kind(mixer(images, targets)[0], images) for _ in range(200)]
    assert 70 < kinds.count("mixup") < 130  # 5 deviations are 35


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_shape_type_format_and_what_is_left_alone(mixup, cutmix):
    for channels_last in (True, False):
        images, targets = batch(channels_last=channels_last)
        before = images.clone(), targets.clone()
        mixed, soft = Mixer(3, mixup, cutmix)(images, targets)
        assert images.equal(before[0])
        assert targets.equal(before[1])
        assert mixed.shape == images.shape
        assert mixed.dtype == soft.dtype == torch.float32
        assert mixed.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        assert soft.shape == (6, 3)
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(6))


def test_the_memory_format_survives_a_roll_that_loses_it(monkeypatch):
    """As on a GPU, where rolling the batch gives the plain format."""
    roll = torch.Tensor.roll
    monkeypatch.setattr(torch.Tensor, "roll", lambda tensor, *where: roll(tensor, *where).contiguous())
    images, targets = batch()
    assert not images.roll(1, 0).is_contiguous(memory_format=torch.channels_last)
    mixed, _ = Mixer(3, mixup=0.4, cutmix=0.0)(images, targets)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("width", [1, 3])
def test_rows_of_labels_or_numbers_are_mixed_and_a_single_one_stays(width):
    images, rows = batch()[0], torch.randn(6, width)
    mixed, soft = Mixer(width, mixup=0.4, cutmix=0.0)(images, rows)
    share = ((soft - rows.roll(1, 0)) / (rows - rows.roll(1, 0))).flatten()
    torch.testing.assert_close(share, share[:1].expand_as(share), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mixed, images * share[0] + images.roll(1, 0) * (1 - share[0]), rtol=1e-3, atol=1e-4)
    alone, row = Mixer(width, mixup=0.4, cutmix=0.0)(images[:1], rows[:1])
    assert alone.equal(images[:1])
    assert row.equal(rows[:1])


def test_all_draws_come_from_torchs_generator():  # faults 51 and 52
    """Other generators change nothing and are not moved; torch's state alone repeats the mixtures."""
    images, targets = batch()
    mixer = Mixer(3, mixup=0.4, cutmix=1.0)
    torch.manual_seed(5)
    for _ in range(3):
        mixer(images, targets)
    state = torch.get_rng_state()
    random.seed(1), np.random.seed(1)
    python, numpy = random.getstate(), np.random.get_state()
    expected = [mixer(images, targets) for _ in range(12)]
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy[1])
    random.seed(2), np.random.seed(2)
    torch.set_rng_state(state)
    again = [Mixer(3, mixup=0.4, cutmix=1.0)(images, targets) for _ in range(12)]
    for ours, theirs in zip(expected, again, strict=True):
        assert ours[0].equal(theirs[0])
        assert ours[1].equal(theirs[1])
    assert len({soft.numpy().tobytes() for _, soft in expected}) > 6  # and they differ from batch to batch


def test_a_single_picture_comes_back_as_it_is():
    images, targets = batch(size=1)
    state = torch.get_rng_state()
    mixed, soft = Mixer(3, mixup=0.4, cutmix=1.0)(images, targets)
    assert mixed is images
    assert soft.equal(torch.tensor([[1.0, 0.0, 0.0]]))
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 0.0, 0.0), "mixup and cutmix are both 0"),
        ((3, -0.1, 1.0), "mixup is -0.1, expected"),
        ((3, 0.2, float("inf")), "cutmix is inf, expected"),
        ((0, -1.0, 0.0), r"\(1\) num_classes is 0.*\(2\) mixup is -1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Mixer(*arguments)
