"""Where features are taken: names, numbers and pools of layers; pooling by hand."""

import pytest
import torch
from engine_worker import build, own, small_net
from torch import nn

from transferkit.core.errors import ConfigError
from transferkit.features.engine.taps import MOST_PLACES, Tap, find_taps, places, pool_maps


@pytest.fixture(scope="module")
def convolutional():
    return build("test_resnet")


@pytest.fixture(scope="module")
def tokens():
    return build("test_vit", size=64)


@pytest.fixture(scope="module")
def vectors():
    return own(nn.Sequential(small_net(), nn.Flatten(), nn.LazyLinear(5)), name="vectors")


@pytest.mark.parametrize(
    ("layer", "pool", "expected"),
    [
        ("pooled", None, [("pooled", "own")]),
        ("pooled", "max", [("pooled", "max")]),
        ("layer3", None, [("layer3", "avg")]),
        ("stage3", None, [("layer3", "avg")]),
        ("stage1", "avgmax", [("layer1", "avgmax")]),
        ("all", None, [*((f"layer{n}", "avg") for n in (1, 2, 3, 4)), ("pooled", "own")]),
        ("all", "max", [*((f"layer{n}", "max") for n in (1, 2, 3, 4)), ("pooled", "max")]),
    ],
)
def test_names_of_layers(convolutional, layer, pool, expected):
    assert find_taps(convolutional, layer, pool) == tuple(Tap(*pair) for pair in expected)


def test_names_of_blocks(tokens):
    assert find_taps(tokens, "blocks.2", "cls") == (Tap("blocks.2", "cls"),)
    assert find_taps(tokens, "stage3") == (Tap("blocks.2", "avg"),)
    assert [tap.layer for tap in find_taps(tokens, "all")] == [*(f"blocks.{n}" for n in range(6)), "pooled"]


@pytest.mark.parametrize(
    ("layer", "pool", "message"),
    [
        (
            "layer5",
            None,
            r"test_resnet has no layer 'layer5'\. Did you mean 'layer.*Known: pooled, stage1 to stage4 \(la",
        ),
        ("pool", None, r"no layer 'pool'\. Did you mean 'pooled'\?"),
        ("stage5", None, "no layer 'stage5'"),
        ("stage0", None, "no layer 'stage0'"),
        ("", None, "no layer ''"),
        ("stem", None, "no layer 'stem'"),
        ("pooled", "mean", r"unknown pool 'mean'\. Known: avg, max, avgmax, cls|unknown pool 'mean'\. Did you mean"),
        ("pooled", "own", "unknown pool 'own'"),
        ("pooled", "cells", "pool 'cells' gives many vectors per picture, and features are one - use avg, max or avg"),
        ("layer1", "cls", "pool 'cls' needs a class token, which test_resnet has not - use avg, max or avgmax"),
    ],
)
def test_no_such_place(convolutional, layer, pool, message):
    with pytest.raises(ConfigError, match=message):
        find_taps(convolutional, layer, pool)


@pytest.mark.parametrize("layer", ["pooled", "all"])
def test_a_network_without_maps_is_not_pooled(vectors, layer):
    assert find_taps(vectors)[0] == Tap("pooled", "own")
    with pytest.raises(ConfigError, match="vectors has no one feature map to pool by 'max' - leave the pool out"):
        find_taps(vectors, layer, "max")


def test_a_map_is_pooled():
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, -2.0], [-3.0, -4.0]]]])  # (1, 2, 2, 2)
    assert pool_maps(maps, "avg").tolist() == [[3.0, -2.5]]
    assert pool_maps(maps, "max").tolist() == [[6.0, -1.0]]
    assert pool_maps(maps, "avgmax").tolist() == [[3.0, -2.5, 6.0, -1.0]]


def test_tokens_are_pooled_without_the_class_token():
    tokens = torch.tensor([[[9.0, -9.0], [1.0, 2.0], [3.0, -4.0]]])  # (1, 3, 2): a class token and two places
    assert pool_maps(tokens, "cls", prefix_tokens=1).tolist() == [[9.0, -9.0]]
    assert pool_maps(tokens, "avg", prefix_tokens=1).tolist() == [[2.0, -1.0]]
    assert pool_maps(tokens, "max", prefix_tokens=1).tolist() == [[3.0, 2.0]]
    assert pool_maps(tokens, "avgmax", prefix_tokens=1).tolist() == [[2.0, -1.0, 3.0, 2.0]]
    assert pool_maps(tokens, "max").tolist() == [[9.0, 2.0]]


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_a_vector_has_no_places(pool):
    vector = torch.tensor([[1.0, 2.0]])
    assert pool_maps(vector, pool).tolist() == [[1.0, 2.0]]


def test_small_maps_have_all_their_places():
    assert places(1, 1).tolist() == [0]
    assert places(8, 8).tolist() == list(range(64))
    assert places(5, 12).tolist() == list(range(60))


@pytest.mark.parametrize("size", [(10, 10), (9, 8), (7, 20), (34, 55), (64, 64), (1, 1000), (128, 128)])
def test_places_of_larger_maps_lie_evenly(size):
    """Every eighth of the rows and of the columns has its share, and no place is taken twice."""
    chosen = places(*size)
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == MOST_PLACES == len(chosen)
    assert chosen.tolist() == sorted(chosen.tolist())
    assert int(chosen[0]) >= 0 and int(chosen[-1]) < size[0] * size[1]
    for along, side in ((chosen // size[1], size[0]), (chosen % size[1], size[1])):
        if side >= 4:
            bands = torch.bincount(along * 4 // side, minlength=4)
            share = torch.bincount(torch.arange(side) * 4 // side, minlength=4) / side * MOST_PLACES
            assert ((bands - share).abs() <= 3).all(), (bands, share)


def test_places_are_the_same_on_every_machine():
    """They are a part of what a store holds."""
    assert places(10, 10).tolist()[:12] == [0, 2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15]
    assert places(64, 64).tolist()[:12] == [0, 53, 103, 153, 203, 252, 302, 352, 402, 452, 601, 651]
