"""Losses and running figures of masks beside torch's, the library's and torchmetrics' own."""

import pytest
import torch
from torch.nn import functional
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from transferkit.core.errors import ConfigError
from transferkit.core.targets import IGNORED
from transferkit.models.answers.losses import FocalLoss
from transferkit.models.dense.losses import MASK_LOSSES, PixelLoss, dice_loss, pixel_losses
from transferkit.models.dense.objective import MaskFigure, MaskObjective
from transferkit.models.parts import LossOptions

CLASSES = 4


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, CLASSES, 9, 7, generator=generator)
    targets = torch.randint(0, CLASSES - 1, (3, 9, 7), generator=generator).to(torch.uint8)  # one class is not shown
    targets[torch.rand(3, 9, 7, generator=generator) < 0.2] = IGNORED
    return logits, targets


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.2, 3.0, 1.0])])
def test_cross_entropy_is_torchs(batch, weights):
    logits, targets = batch
    made = PixelLoss("cross_entropy", class_weights=weights, label_smoothing=0.1)(logits, targets)
    expected = functional.cross_entropy(
        logits, targets.long(), weight=weights, ignore_index=IGNORED, label_smoothing=0.1
    )
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.2, 3.0, 1.0])])
def test_focal_loss_is_that_of_classes_pixel_by_pixel(batch, weights):
    logits, targets = batch
    counts = targets != IGNORED
    rows = logits.permute(0, 2, 3, 1)[counts]
    expected = FocalLoss(2.0, weights)(rows, targets[counts].long())
    torch.testing.assert_close(PixelLoss("focal", class_weights=weights)(logits, targets), expected)


def test_dice_is_the_librarys(batch):
    losses = pytest.importorskip("segmentation_models_pytorch.losses", reason="the library is not installed")
    logits, targets = batch
    reference = losses.DiceLoss("multiclass", ignore_index=IGNORED)
    torch.testing.assert_close(dice_loss(logits, targets), reference(logits, targets.long()))
    weights = torch.tensor([1.0, 0.2, 3.0, 1.0])
    weighted = losses.DiceLoss("multiclass", ignore_index=IGNORED, class_weights=weights.tolist())
    torch.testing.assert_close(dice_loss(logits, targets, weights), weighted(logits, targets.long()))


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_sums_are_sums_and_a_batch_of_nothing_costs_nothing(batch, name):
    logits, targets = batch
    made = PixelLoss(name)(logits, targets)
    torch.testing.assert_close(made, sum(PixelLoss(term)(logits, targets) for term in name.split("+")))
    blank = logits.clone().requires_grad_()
    loss = PixelLoss(name)(blank, torch.full_like(targets, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert blank.grad.isfinite().all()


def test_ignored_pixels_change_nothing(batch):
    logits, targets = batch
    other = torch.where((targets == IGNORED).unsqueeze(1), logits + 5 * torch.randn_like(logits), logits)
    for name in MASK_LOSSES:
        torch.testing.assert_close(PixelLoss(name)(other, targets), PixelLoss(name)(logits, targets))
    torch.testing.assert_close(pixel_losses(other, targets), pixel_losses(logits, targets))


def test_a_picture_that_does_not_count_costs_nothing(batch):
    logits, targets = batch
    targets = targets.clone()
    targets[1] = IGNORED
    losses = pixel_losses(logits, targets)
    assert losses[1] == 0
    expected = functional.cross_entropy(logits[:1], targets[:1].long(), ignore_index=IGNORED)
    torch.testing.assert_close(losses[0], expected)


def test_words_that_are_no_loss():
    for name in ("tversky", "dice+dice", "cross_entropy,dice", ""):
        with pytest.raises(ConfigError, match="unknown loss"):
            PixelLoss(name)
    with pytest.raises(ConfigError, match="gamma is -1"):
        PixelLoss("focal", gamma=-1)
    with pytest.raises(ConfigError, match="dice has none"):
        PixelLoss("dice", label_smoothing=0.1)
    with pytest.raises(ConfigError, match="not all 0"):
        MaskObjective().loss(LossOptions(class_weights=(0.0, 0.0)), 2)


def test_figures_of_an_epoch_are_torchmetrics(batch):
    logits, targets = batch
    counts = targets != IGNORED
    hard, true = logits.argmax(dim=1)[counts], targets[counts].long()
    made = {}
    for name in ("miou", "dice", "pixel_acc", "balanced_acc"):
        metric = MaskFigure(name, CLASSES)
        for at in range(3):
            metric.update(logits[at : at + 1], targets[at : at + 1])
        made[name] = float(metric.compute())
    present = [c for c in range(CLASSES) if (true == c).any() or (hard == c).any()]
    jaccard = MulticlassJaccardIndex(CLASSES, average=None, ignore_index=IGNORED)
    jaccard.update(logits, targets.long())
    assert made["miou"] == pytest.approx(jaccard.compute()[present].double().mean().item(), abs=1e-6)
    dice = multiclass_f1_score(hard, true, CLASSES, average=None)[present]
    assert made["dice"] == pytest.approx(dice.double().mean().item(), abs=1e-6)
    assert made["pixel_acc"] == pytest.approx((hard == true).double().mean().item(), abs=1e-6)
    shown = true.unique()
    recall = multiclass_accuracy(hard, true, CLASSES, average=None)[shown]
    assert made["balanced_acc"] == pytest.approx(recall.double().mean().item(), abs=1e-6)


def test_the_running_figure_is_the_share_of_right_pixels(batch):
    logits, targets = batch
    targets = targets.clone()
    targets[2] = IGNORED
    expected = 0.0
    for at in range(2):
        counts = targets[at] != IGNORED
        expected += (logits[at].argmax(dim=0)[counts] == targets[at][counts]).double().mean().item()
    assert MaskObjective().running_sums(logits, targets).item() == pytest.approx(expected)


def test_balanced_weights_go_by_pixels():
    assert MaskObjective(pixels=(300, 100)).balanced(None, 2) == pytest.approx([2 / 3, 2.0])
    with pytest.raises(ConfigError, match="not counted"):
        MaskObjective().balanced(None, 2)
