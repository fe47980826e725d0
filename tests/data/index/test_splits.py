"""The split as a pure function of content and seed."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from transferkit.data.index.splits import Item, assign_splits, unit_interval


def sha(text):
    return hashlib.sha256(str(text).encode()).hexdigest()


def items(count, classes=2, start=0):
    return [Item(sha(number), number % classes) for number in range(start, start + count)]


def split(pictures, val=0.15, test=0.15, seed=0):
    return assign_splits(pictures, val_split=val, test_split=test, seed=seed)


def reference(item, val, test, seed):
    """The rule written out on its own: the first 53 bits of sha256(seed:key), as a binary fraction."""
    key = f"image:{item.sha256}" if item.group is None else f"group:{item.group}"
    bits = bin(int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest(), 16))[2:].zfill(256)[:53]
    u = sum(2.0**-position for position, bit in enumerate(bits, 1) if bit == "1")
    return "test" if u < test else "val" if u < test + val else "train"


def test_the_rule():
    pictures = [*items(300), *(Item(sha(f"g{n}"), 0, f"burst{n // 3}") for n in range(60))]
    for val, test, seed in ((0.15, 0.15, 0), (0.3, 0.0, 1), (0.0, 0.5, 2)):
        assigned, moved = split(pictures, val, test, seed)
        assert list(assigned) == [reference(item, val, test, seed) for item in pictures]
        assert moved == ()


def test_fixed_values():
    # written out once: a change here would move every user's pictures
    assert unit_interval(0, "image:a") == pytest.approx(0.24979290986669012, abs=1e-15)
    assert unit_interval(1, "image:a") == pytest.approx(0.43998175891912084, abs=1e-15)
    assert all(0 <= unit_interval(seed, "x") < 1 for seed in range(1000))


def test_shares_hold_in_expectation_for_every_class():
    pictures = items(6000, classes=3)
    assigned, _ = split(pictures, 0.2, 0.1)
    counts = Counter((item.stratum, place) for item, place in zip(pictures, assigned, strict=True))
    for stratum in range(3):
        # 2000 draws: four standard deviations are 0.036 and 0.027
        assert counts[stratum, "val"] / 2000 == pytest.approx(0.2, abs=0.036)
        assert counts[stratum, "test"] / 2000 == pytest.approx(0.1, abs=0.027)


def test_adding_files_and_their_order_move_nothing():
    before = dict(zip(items(200), split(items(200))[0], strict=True))
    mixed = items(500)
    random.Random(0).shuffle(mixed)
    after = dict(zip(mixed, split(mixed)[0], strict=True))
    assert all(after[item] == place for item, place in before.items())


def test_a_larger_test_share_only_adds_to_test():
    small, large = split(items(500), 0, 0.1)[0], split(items(500), 0, 0.3)[0]
    assert all(b == "test" for a, b in zip(small, large, strict=True) if a == "test")


def test_another_seed_is_another_split():
    assert split(items(100))[0] != split(items(100), seed=1)[0]
    assert split(items(100))[0] == split(items(100))[0]


def test_equal_files_share_a_split():
    assigned, _ = split([*items(50), *items(50)])
    assert assigned[:50] == assigned[50:]


def test_groups_stay_together_across_classes():
    pictures = [Item(sha(n), n % 3, f"g{n // 5}") for n in range(300)]
    assigned, _ = split(pictures)
    places = {}
    for item, place in zip(pictures, assigned, strict=True):
        assert places.setdefault(item.group, place) == place
    assert set(places.values()) == {"train", "val", "test"}


def test_groups_tied_by_an_equal_picture_stay_together():
    for attempt in range(40):
        a, b, shared = f"a{attempt}", f"b{attempt}", sha(f"same{attempt}")
        pictures = [
            Item(sha(f"1{attempt}"), 0, a),
            Item(shared, 0, a),
            Item(shared, 1, b),
            Item(sha(f"2{attempt}"), 1, b),
        ]
        assigned, _ = split([*pictures, *items(100)], 0.3, 0.3)
        assert len(set(assigned[:4])) == 1
        # named by the smallest key, so that it is known where they go
        assert assigned[0] == reference(Item("", 0, a), 0.3, 0.3, 0)


def test_a_class_without_training_pictures_gets_its_nearest_unit():
    pool = [Item(sha(n), 9) for n in range(2000)]
    away = [item for item in pool if reference(item, 0.15, 0.15, 0) != "train"][:5]
    assigned, moved = split([*items(50), *away])
    assert moved == (9,)
    nearest = max(away, key=lambda item: unit_interval(0, f"image:{item.sha256}"))
    for item, place in zip(away, assigned[50:], strict=True):
        assert place == ("train" if item is nearest else reference(item, 0.15, 0.15, 0))


def test_a_whole_group_moves():
    group = next(f"g{n}" for n in range(100) if reference(Item("", 0, f"g{n}"), 0.15, 0.15, 0) == "test")
    pictures = [*items(40), Item(sha("x"), 9, group), Item(sha("y"), 9, group), Item(sha("z"), 0, group)]
    assigned, moved = split(pictures)
    assert assigned[40:] == ("train", "train", "train") and moved == (9,)


def test_a_single_picture_is_used_for_training():  # fault 5
    for number in range(30):
        assigned, _ = split([Item(sha(number), 7), *items(20, start=100)], 0.4, 0.4)
        assert assigned[0] == "train"


def test_nothing_to_split():
    assert split([]) == ((), ())
