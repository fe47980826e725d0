"""A head trained on features takes the steps of a run: it equals loops by hand."""

import math
import random

import numpy as np
import pytest
import torch
from torch.nn import functional

from transferkit.data.batches.samplers import EpochSampler
from transferkit.models.answers.losses import make_loss
from transferkit.models.heads.registry import build_head
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.training.head.train import train_head
from transferkit.training.plan.phases import Phase

ROWS, WIDTH = 21, 16


@pytest.fixture(scope="module")
def table():
    """Features of three classes that a linear head can tell apart, and the labels."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(ROWS) % 3
    return torch.randn(ROWS, WIDTH, generator=generator) + 2 * functional.one_hot(y, WIDTH), y


def linear(**options):
    torch.manual_seed(1)
    return build_head("linear", WIDTH, 3, **options)


def options(**more):
    return make_config(FinetuneConfig, {"data": "-", "clip": None, **more})


def by_hand(head, X, y, config, smoothing):
    """Train a linear head in place as torch's own manuals do, for 8 epochs; return the loss of every step."""
    groups = [{"params": [head.linear.weight], "weight_decay": config.weight_decay},
              {"params": [head.linear.bias], "weight_decay": 0}]  # fmt: skip
    sgd = config.optimizer == "sgd"
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True) if sgd else torch.optim.AdamW(groups)
    sampler = EpochSampler(len(X), batch_size=8, seed=config.seed)
    steps, losses = [], []
    for epoch in range(8):
        sampler.set_epoch(epoch)
        order = [job.picture for job in sampler]
        batches = [order[start : start + 8] for start in range(0, len(order), 8)]
        steps += [batches[first : first + config.accumulate] for first in range(0, len(batches), config.accumulate)]
    head.train()
    for step, batches in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 + math.cos(math.pi * step / len(steps))) / 2
        optimizer.zero_grad()
        for rows in batches:
            loss = functional.cross_entropy(head(X[rows]), y[rows], label_smoothing=smoothing)
            (loss / config.accumulate).backward()
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_(head.parameters(), config.clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    "more",
    [
        {"optimizer": "adamw"},
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "clip": 0.1, "accumulate": 2},  # of 3 batches an epoch: steps of 2 and 1
    ],
)
def test_it_equals_a_loop_by_hand(table, more):
    X, y = table
    ours, reference, start = linear().eval(), linear(), linear()
    config = options(weight_decay=0.05, seed=5, **more)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    phase = Phase("probe", epochs=8, train="head", lr=0.02)
    train_head(ours, make_loss("cross_entropy", label_smoothing=0.1), table, config, phase, 8, ROWS)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert not ours.training
    assert not ours.linear.training
    assert all(parameter.grad is None for parameter in ours.parameters())
    losses = by_hand(reference, X, y, config, 0.1)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(ours.linear.weight, reference.linear.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.linear.bias, reference.linear.bias, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(ours.linear.weight, start.linear.weight, atol=1e-3)


def test_it_is_the_same_again_and_another_with_another_seed(table):
    heads = [linear(drop_rate=0.5) for _ in range(3)]
    phase = Phase("probe", epochs=3, train="head", lr=0.01)
    for head, seed in zip(heads, (1, 1, 2), strict=True):
        torch.rand(3)
        train_head(head, functional.cross_entropy, table, options(seed=seed), phase, 8, ROWS)
    assert torch.equal(heads[0].linear.weight, heads[1].linear.weight)
    assert not torch.equal(heads[0].linear.weight, heads[2].linear.weight)


def test_an_epoch_takes_each_picture_once(table):
    """Where pictures have three rows each, an epoch ends after as many rows as there are pictures."""
    steps = []

    def loss(outputs, targets):
        steps.append(len(targets))
        return functional.cross_entropy(outputs, targets)

    phase = Phase("probe", epochs=3, train="head", lr=0.01)
    train_head(linear(), loss, table, options(), phase, 2, ROWS // 3)  # 7 rows: 3 batches, the last row left out
    assert steps == [2] * 9
