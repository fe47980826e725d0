"""Losses against torch, scikit-learn and the written-out formulas."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional

from transferkit.core.errors import ConfigError
from transferkit.models.answers.losses import balanced_class_weights, make_loss

WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.25])


def batch(soft=False):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 4, generator=generator)
    if soft:
        return logits, torch.rand(7, 4, generator=generator).softmax(dim=1)
    return logits, torch.tensor([0, 1, 1, 3, 2, 0, 3])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs_and_focal_without_gamma_is_cross_entropy(soft, weights, smoothing):
    logits, targets = batch(soft)
    options = {"class_weights": weights, "label_smoothing": smoothing}
    expected_at = logits.clone().requires_grad_()
    expected = functional.cross_entropy(expected_at, targets, weight=weights, label_smoothing=smoothing)
    expected.backward()
    cross = make_loss("cross_entropy", **options)(logits, targets)
    assert cross.shape == ()
    assert cross.equal(expected.detach())
    at = logits.clone().requires_grad_()
    focal = make_loss("focal", gamma=0.0, **options)(at, targets)
    focal.backward()
    torch.testing.assert_close(focal, expected)
    torch.testing.assert_close(at.grad, expected_at.grad)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_by_hand(gamma):
    """Lin et al. 2017 eq. 5, picture by picture; the weighted mean as torch takes it."""
    logits, targets = batch()
    terms, total = 0.0, 0.0
    for row, target in zip(logits.double().numpy(), targets.tolist(), strict=True):
        p = math.exp(row[target]) / np.exp(row).sum()
        alpha = WEIGHTS[target].item()
        terms += -alpha * (1 - p) ** gamma * math.log(p)
        total += alpha
    loss = make_loss("focal", gamma=gamma, class_weights=WEIGHTS)(logits, targets)
    assert loss.item() == pytest.approx(terms / total, rel=1e-5)


def test_focal_of_soft_targets_is_the_mixture_of_its_labels():
    logits, targets = batch()
    others = targets.roll(1)
    soft = 0.3 * functional.one_hot(targets, 4) + 0.7 * functional.one_hot(others, 4)
    loss = make_loss("focal", gamma=2.0)
    torch.testing.assert_close(loss(logits, soft), 0.3 * loss(logits, targets) + 0.7 * loss(logits, others))
    # With weights, too, where the division by B is undone.
    weighted, summed = make_loss("focal", class_weights=WEIGHTS), WEIGHTS[targets].sum()
    one_hot = functional.one_hot(targets, 4).float()
    torch.testing.assert_close(weighted(logits, one_hot) * 7, weighted(logits, targets) * summed)


def test_focal_has_the_gradient_of_its_formula():
    logits, targets = batch()
    for soft in (targets, batch(soft=True)[1].double()):
        loss = make_loss("focal", gamma=1.5, class_weights=WEIGHTS, label_smoothing=0.1).double()
        assert torch.autograd.gradcheck(lambda x, y=soft, loss=loss: loss(x, y), logits.double().requires_grad_())


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_stays_finite_where_a_picture_is_certain(gamma):
    logits = torch.tensor([[200.0, 0.0, -200.0], [-200.0, 200.0, 0.0]], requires_grad=True)
    for targets in (torch.tensor([0, 0]), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])):
        loss = make_loss("focal", gamma=gamma)(logits, targets)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_weights_move_with_the_module_and_are_not_saved(name):
    loss = make_loss(name, class_weights=WEIGHTS)
    module = nn.ModuleDict({"loss": loss})
    assert module.state_dict() == {}
    assert module.to("meta")["loss"].class_weights.device.type == "meta"
    assert module.double()["loss"].class_weights.dtype == torch.float64
    whole = torch.tensor([1, 2, 0, 4])  # of whole numbers, and still the caller's own
    held = make_loss(name, class_weights=whole).class_weights
    whole.zero_()
    assert held.dtype == torch.float32
    assert held.tolist() == [1.0, 2.0, 0.0, 4.0]
    assert "weighted=True" in repr(loss)


@pytest.mark.parametrize("counts", [[10, 20, 70], [1, 1], [3, 10000, 5, 5]])
def test_balanced_weights_are_scikit_learns(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    weights = balanced_class_weights(counts)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)


def test_a_class_without_pictures_weighs_nothing_and_changes_nothing():
    weights = balanced_class_weights([10, 0, 30])
    np.testing.assert_allclose(weights.numpy(), [40 / (2 * 10), 0.0, 40 / (2 * 30)], rtol=1e-6)
    assert (weights * torch.tensor([10, 0, 30])).sum().item() == pytest.approx(40)
    logits, targets = torch.zeros(2, 3), torch.tensor([0, 2])
    assert make_loss("focal", class_weights=weights)(logits, targets).isfinite()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("focall", {}, "unknown loss 'focall'. Did you mean 'focal'"),
        ("focal", {"gamma": -1.0}, "gamma is -1.0, expected"),
        ("focal", {"gamma": math.nan}, "gamma is nan"),
        ("cross_entropy", {"label_smoothing": 1.0}, "label_smoothing is 1.0, expected"),
        ("focal", {"class_weights": torch.tensor([1.0, -1.0])}, "class_weights must be one finite number"),
        ("focal", {"class_weights": torch.tensor([1.0, math.inf])}, "class_weights must be one finite number"),
        ("focal", {"class_weights": torch.ones(2, 2)}, "class_weights must be one finite number"),
        ("focal", {"class_weights": torch.zeros(3)}, "class_weights are all 0"),
        ("focal", {"gamma": -1.0, "label_smoothing": -0.1}, r"\(1\) gamma is -1.0.*\(2\) label_smoothing"),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_loss(name, **options)


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_weights_of_another_number_of_classes_are_refused(name):
    logits, targets = batch()
    for count in (1, 3):  # a single weight would be broadcast
        with pytest.raises(ConfigError, match=f"there are {count} class weights for 4 classes"):
            make_loss(name, class_weights=torch.ones(count))(logits, targets)


@pytest.mark.parametrize(
    ("counts", "message"), [([3, -1], "a class count is -1"), ([0, 0], "no pictures"), ([], "no pictures")]
)
def test_bad_counts(counts, message):
    with pytest.raises(ConfigError, match=message):
        balanced_class_weights(counts)
