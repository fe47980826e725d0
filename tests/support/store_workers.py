"""What the store's tests run in other processes, and the rows they agree on; imports nothing heavy."""

import hashlib
import multiprocessing
import os
import random
import signal
from functools import cache
from pathlib import Path

import numpy as np

from transferkit.features.store.spec import FeatureSpec, row_key
from transferkit.features.store.store import FeatureStore

SPAWN = multiprocessing.get_context("spawn")
WIDTH = 8
SPEC = FeatureSpec(
    backbone="resnet18",
    weights_sha256="ab" * 32,
    layer="pooled",
    pool="avg",
    transform={"size": 224, "mean": [0.485, 0.456, 0.406]},
    decode_side=256,
    precision="32",
    versions={"torch": "2.15.0", "pillow": "12.0.0"},
)


def key_of(number, seed=0):
    return row_key(hashlib.sha256(str(number).encode()).hexdigest(), seed)


def keys_of(numbers):
    return [key_of(number) for number in numbers]


@cache
def row_of(number, width):
    return np.random.default_rng(number).normal(size=width).astype(np.float32)


def rows_of(numbers, width=WIDTH):
    """The one right row of each number: a function of the number alone, as features are of a picture."""
    return np.stack([row_of(number, width) for number in numbers])


def missing_of(target, numbers):
    """The positions that a set has no row of; every row that it serves must be the right one."""
    out = np.full((len(numbers), WIDTH), np.nan, np.float32)
    missing = target.read(keys_of(numbers), out)
    expected = rows_of(numbers)
    expected[missing] = np.nan
    assert np.array_equal(out, expected, equal_nan=True)
    return missing


def add(target, numbers):
    target.add(keys_of(numbers), rows_of(numbers))


def fill(root, chunks, seed, ready=None, stay=False):
    """Add chunks in an order drawn by `seed`, as one of several extractions would: only what is missing."""
    target = FeatureStore(root).open(SPEC)
    random.Random(seed).shuffle(chunks)
    out = np.empty((len(chunks[0]), WIDTH), np.float32)
    if ready is not None:
        ready.set()
    for chunk in chunks:
        if target.read(keys_of(chunk), out):
            add(target, chunk)
    if stay:
        signal.pause()


def fill_blindly(root, chunks, barrier):
    """Add chunks all at once with the others, whether they are there or not."""
    target = FeatureStore(root).open(SPEC)
    barrier.wait(60)
    for chunk in chunks:
        add(target, chunk)


def hold_claim(root, numbers, ready):
    with FeatureStore(root).open(SPEC).claim(keys_of(numbers), wait=False) as mine:
        if mine:
            ready.set()
        signal.pause()


def die_at(root, numbers, name, nth):
    """Add rows, and be killed just before the n-th call of a function that writing goes through."""
    owner = Path if name in ("write_bytes", "replace") else os
    original, calls = getattr(owner, name), []

    def dying(*args):
        calls.append(None)
        if len(calls) > nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(owner, name, dying)
    add(FeatureStore(root).open(SPEC), numbers)
