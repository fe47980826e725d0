"""Training orders, plain and balanced: pure functions of seed and epoch, in one split; equal classes from unequal."""

import shutil
from collections import Counter

import pytest
import torch

from transferkit.data.augment.views import REPEAT
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.loader import ImageLoader
from transferkit.data.batches.samplers import EpochSampler

TARGETS = [0] * 900 + [2] * 90 + [3] * 10  # class 1 has no pictures


def order(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return [job.picture for job in sampler]


def build(targets=TARGETS, **options):
    return EpochSampler(len(targets), **{"batch_size": 4, "seed": 0, "balance": targets, **options})


def test_classes_are_equally_likely_and_pictures_within_them_too():  # fault 26
    sampler = build()
    drawn = Counter()
    for epoch in range(30):
        positions = order(sampler, epoch)
        assert len(positions) == len(sampler) == 1000
        drawn.update(positions)
    by_class = Counter()
    for position, times in drawn.items():
        by_class[TARGETS[position]] += times
    assert set(by_class) == {0, 2, 3}
    for times in by_class.values():  # 30,000 draws at 1/3: a deviation is 82
        assert abs(times - 10_000) < 5 * 82
    rare = [drawn[position] for position in range(990, 1000)]  # 1,000 each: a deviation is 31
    assert all(abs(times - 1000) < 5 * 31 for times in rare)
    assert all(drawn[position] < 50 for position in range(900))
    assert sum(drawn[position] > 0 for position in range(900)) > 890


both = pytest.mark.parametrize("options", [{}, {"balance": None}], ids=["balanced", "plain"])


def test_the_plain_order_is_a_permutation():
    """What the test above would see of an order that leaves classes as they are."""
    positions = order(build(balance=None))
    assert sorted(positions) == list(range(1000)) != positions


@both
def test_the_order_is_a_function_of_seed_and_epoch(options):  # faults 51 and 52
    first, again = build(**options), build(**options)
    state = torch.get_rng_state()
    orders = [order(first, epoch) for epoch in range(3)]
    torch.manual_seed(99)
    assert [order(again, epoch) for epoch in (2, 0, 1)] == [orders[epoch] for epoch in (2, 0, 1)]
    orders.append(order(build(seed=1, **options)))
    assert len({tuple(positions) for positions in orders}) == 4
    torch.set_rng_state(state)
    order(first, 5)
    assert torch.get_rng_state().equal(state)


@both
def test_ranks_share_an_epoch(options):
    whole = order(build(**options))
    parts = [order(build(rank=rank, world_size=3, **options)) for rank in range(3)]
    assert [len(part) for part in parts] == [334] * 3
    together = [part[step] for step in range(334) for part in parts]
    assert together[:1000] == whole
    assert together[1000:] == whole[:2]  # the order wraps around


def test_it_starts_in_the_middle():  # fault 52
    sampler = build()
    sampler.set_epoch(1)
    whole = list(sampler)
    sampler.start = 40
    assert list(sampler) == whole[40:]
    sampler.set_epoch(2)
    assert len(list(sampler)) == 1000


@both
@pytest.mark.parametrize(("size", "batch", "expected"), [(9, 4, 8), (8, 4, 8), (10, 4, 10), (1, 4, 1), (3, 1, 3)])
def test_a_last_batch_of_one_is_left_out(size, batch, expected, options):  # fault 27
    sampler = build([0] * size, batch_size=batch, **options)
    assert len(sampler) == len(list(sampler)) == expected


def test_a_key_tells_how_often_its_picture_came_before():
    plain, sampler = build(balance=None), build()
    plain.set_epoch(7)
    assert {job.views for job in plain} == {(7,)}
    sampler.set_epoch(7)
    times = Counter()
    for job in sampler:
        assert job.views == (7 + REPEAT * times[job.picture],)
        times[job.picture] += 1
    assert max(times.values()) > 10


@pytest.fixture
def long_tail(folder, tmp_path):
    """8 circles, 8 squares, a single picture of stripes to train on."""
    root = shutil.copytree(folder, tmp_path / "tail")
    for path in sorted((root / "train" / "stripes").iterdir())[1:]:
        path.unlink()
    return ImageData(root, image_size=32, batch_size=4, augment="heavy")


@pytest.mark.parametrize("workers", [0, 2])
def test_it_draws_from_its_split_only_and_augments_repeats_anew(long_tail, workers):  # fault 26
    dataset = long_tail.dataset("train", train=True)
    held_out = {r.sha256 for split in ("val", "test") for r in long_tail.index.split(split)}
    strata = long_tail.targets("train").tolist()
    sampler = build(strata)
    assert set(order(sampler)) <= set(range(len(dataset)))
    assert not held_out & {dataset.pictures[position].sha256 for position in order(sampler)}
    loader = ImageLoader(dataset, 4, sampler=sampler, workers=workers)
    assert set(order(sampler)) >= {16}
    images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    stripes = [image.numpy().tobytes() for image, target in zip(images, targets, strict=True) if target == 2]
    assert len(stripes) > 2  # one picture ...
    assert len(set(stripes)) == len(stripes)  # ... never twice the same
    assert images.shape == (16, 32, 32, 3)  # 17 pictures, the last batch of one left out
    # A loader continues in mid-epoch with the same pictures.
    again = ImageLoader(dataset, 4, sampler=build(strata))
    again.load_state_dict({"epoch": 0, "samples": 8})
    assert torch.cat([part for part, _ in again]).equal(images[8:])
