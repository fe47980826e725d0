"""A head trained on features takes the steps of a run: it equals loops by hand."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from torch.nn import functional

from transferkit.core.errors import ConfigError
from transferkit.data.batches.samplers import EpochSampler
from transferkit.models.heads import build_head
from transferkit.models.losses import make_loss
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.training.head.train import HeadTraining, train_head
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


def by_hand(head, X, y, training, smoothing):
    """Train a linear head in place as torch's own manuals do; return the loss of every step."""
    groups = [{"params": [head.linear.weight], "weight_decay": training.weight_decay},
              {"params": [head.linear.bias], "weight_decay": 0}]  # fmt: skip
    sgd = training.optimizer == "sgd"
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True) if sgd else torch.optim.AdamW(groups)
    sampler = EpochSampler(len(X), batch_size=training.batch_size, seed=training.seed)
    steps, losses = [], []
    for epoch in range(len(training.lrs)):
        sampler.set_epoch(epoch)
        order = [job.picture for job in sampler]
        batches = [order[start : start + training.batch_size] for start in range(0, len(order), training.batch_size)]
        steps += [batches[first : first + training.accumulate] for first in range(0, len(batches), training.accumulate)]
    head.train()
    for lr, batches in zip(training.lrs, steps, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        for rows in batches:
            loss = functional.cross_entropy(head(X[rows]), y[rows], label_smoothing=smoothing)
            (loss / training.accumulate).backward()
        if training.clip is not None:
            torch.nn.utils.clip_grad_norm_(head.parameters(), training.clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw"},
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "clip": 0.1, "accumulate": 2},  # of 3 batches an epoch: steps of 2 and 1
    ],
)
def test_it_equals_a_loop_by_hand(table, options):
    X, y = table
    ours, reference, start = linear().eval(), linear(), linear()
    training = HeadTraining(
        lrs=[0.02 * (1 - step / 25) for step in range(25)], batch_size=8, weight_decay=0.05, seed=5, **options
    )
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    train_head(ours, make_loss("cross_entropy", label_smoothing=0.1), X, y, training)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert not ours.training
    assert not ours.linear.training
    assert all(parameter.grad is None for parameter in ours.parameters())
    losses = by_hand(reference, X, y, training, 0.1)
    assert losses[-1] < losses[0]
    torch.testing.assert_close(ours.linear.weight, reference.linear.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.linear.bias, reference.linear.bias, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(ours.linear.weight, start.linear.weight, atol=1e-3)


def test_it_is_the_same_again_and_another_with_another_seed(table):
    heads = [linear(drop_rate=0.5) for _ in range(3)]
    for head, seed in zip(heads, (1, 1, 2), strict=True):
        torch.rand(3)
        training = HeadTraining(lrs=[0.01] * 9, batch_size=8, optimizer="adamw", weight_decay=0.0, seed=seed)
        train_head(head, functional.cross_entropy, *table, training)
    assert torch.equal(heads[0].linear.weight, heads[1].linear.weight)
    assert not torch.equal(heads[0].linear.weight, heads[2].linear.weight)


def test_a_phase_of_a_run_says_how():
    config = make_config(FinetuneConfig, {"data": "-", "clip": 0.5, "accumulate": 2, "momentum": 0.8, "seed": 3})
    phase = Phase("probe", epochs=3, train="head", lr=0.1)
    training = HeadTraining.of_phase(config, phase, ROWS, 4)  # 5 batches an epoch: the last picture is left out
    assert len(training.lrs) == 3 * 3
    assert training.lrs[0] == 0.1 > training.lrs[-1] > 0
    assert (training.clip, training.accumulate, training.momentum, training.seed) == (0.5, 2, 0.8, 3)
    assert training.batch_size == 4


def test_what_does_not_fit_is_told_together(table):
    training = HeadTraining(lrs=[0.1], batch_size=0, optimizer="sgd", weight_decay=0.0)
    with pytest.raises(ConfigError, match=r"\(1\) X has 3 rows and y 2.*\(2\) batch_size is 0"):
        train_head(torch.nn.Linear(4, 2), functional.cross_entropy, torch.zeros(3, 4), torch.zeros(2), training)

    class OnMaps(torch.nn.Linear):
        takes_maps = True

    with pytest.raises(ConfigError, match="takes feature maps"):
        train_head(OnMaps(WIDTH, 3), functional.cross_entropy, *table, dataclasses.replace(training, batch_size=2))
