"""Scores and calibration of masks: against torch and scikit-learn, and that pictures are never split."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning
from transferkit.core.targets import TargetSpec
from transferkit.models.answers import segmentation
from transferkit.models.answers.segmentation import MaskCalibrator, MaskScores
from transferkit.models.calibration.scaling import fit_temperature
from transferkit.models.figures.masks import MaskTally

SPEC = TargetSpec(("ground", "cell", "nucleus"), {"pixels": [10, 900, 30]})


def overconfident(count=30, pixels=80, scale=3.0, seed=0):
    """Logits that are `scale` times what the truths were drawn from."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        logits = generator.normal(size=(pixels, 3)) * 1.5
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        truths = np.array([generator.choice(3, p=share) for share in shares], dtype=np.uint8)
        confusion = np.zeros((3, 3), np.int64)
        np.add.at(confusion, (truths, logits.argmax(axis=1)), 1)
        made.append(MaskTally(confusion, (logits * scale).astype(np.float32), truths))
    return made


def pooled(tallies):
    return np.concatenate([one.logits for one in tallies]), np.concatenate([one.truths for one in tallies])


def loss_at(tallies, temperature):
    logits, truths = pooled(tallies)
    return log_loss(truths, torch.from_numpy(logits.astype(float) / temperature).softmax(dim=1).numpy())


def test_the_temperature_is_that_of_the_least_loss():
    kept = overconfident()
    fitted, _ = MaskCalibrator().fit(kept, None, method="temperature", seed=0)
    best = minimize_scalar(lambda t: loss_at(kept, t), bounds=(0.5, 10), method="bounded", options={"xatol": 1e-8})
    assert fitted.temperature == pytest.approx(best.x, rel=1e-4)
    assert 2.5 < fitted.temperature < 3.5
    assert (fitted.method, fitted.folds, fitted.covers) == ("temperature", 5, False)


def test_figures_before_and_after():
    kept = overconfident()
    fitted, after = MaskCalibrator().fit(kept, None, method="auto", seed=0)
    assert fitted.figures["n"] == 30
    assert fitted.figures["loss_before"] == pytest.approx(loss_at(kept, 1), abs=1e-6)
    logits, truths = pooled(after)
    probs = torch.from_numpy(logits.astype(float)).softmax(dim=1).numpy()  # of float32, which sum to 1 by 1e-7 only
    assert fitted.figures["loss_after"] == pytest.approx(log_loss(truths, probs), abs=1e-6)
    assert fitted.figures["loss_after"] < fitted.figures["loss_before"]
    assert fitted.figures["ece_after"] < fitted.figures["ece_before"] / 3


def test_no_pixel_of_a_picture_fits_its_own_temperature(monkeypatch):
    """Each prediction is by a fit on other pictures, whole ones."""
    kept = overconfident()
    fits = []

    def recorded(logits, targets, units=None):
        fits.append(({row.tobytes() for row in logits.numpy()}, fit_temperature(logits, targets, units), units))
        return fits[-1][1]

    monkeypatch.setattr(segmentation, "fit_temperature", recorded)
    fitted, after = MaskCalibrator().fit(kept, None, method="temperature", seed=0)
    assert len(fits) == 6
    for one, prediction in zip(kept, after, strict=True):
        mine = {row.tobytes() for row in one.logits}
        without = [(temperature, units) for rows, temperature, units in fits if not rows & mine]
        assert len(without) == 1
        np.testing.assert_allclose(prediction.logits, one.log_probs(without[0][0]).logits)
        assert without[0][1] == 24
        assert sum(mine <= rows for rows, _, _ in fits) == 5
    assert {round(temperature, 6) for _, temperature, units in fits if units == 30} == {round(fitted.temperature, 6)}


def test_many_pixels_are_fitted_on_some_of_each_picture(monkeypatch):
    kept = overconfident(60, 200)
    every, _ = MaskCalibrator().fit(kept, None, method="temperature", seed=0)
    monkeypatch.setattr(segmentation, "NUMBERS", 60 * 3 * 50)
    some, after = MaskCalibrator().fit(kept, None, method="temperature", seed=0)
    assert some.temperature == pytest.approx(every.temperature, rel=0.05)
    assert some.temperature != every.temperature
    assert [len(one.truths) for one in after] == [200] * 60


def test_pixels_that_are_all_right_are_as_sure_as_the_pictures_are_many():
    """Laplace's rule with 12 pictures, not with their 12 x 50 pixels, which are alike."""
    truths = np.tile(np.arange(2, dtype=np.uint8), 25)
    logits = np.where(truths[:, None] == np.arange(2), 1.0, 0.0).astype(np.float32)
    kept = [MaskTally(np.eye(2, dtype=np.int64) * 25, logits, truths)] * 12
    fitted, _ = MaskCalibrator().fit(kept, None, method="temperature", seed=0)
    sure = torch.tensor([1.0, 0.0]).div(fitted.temperature).softmax(dim=0)[0]
    assert float(sure) == pytest.approx(13 / 14, abs=1e-6)


def test_what_a_calibration_is_kept_as():
    calibrator = MaskCalibrator()
    kept = overconfident()
    fitted, _ = calibrator.fit(kept, None, method="temperature", seed=0)
    again = calibrator.read(fitted.to_dict())
    assert again == fitted
    for one, prediction in zip(kept, calibrator.apply(again, kept), strict=True):
        expected = torch.from_numpy(one.logits / fitted.temperature).softmax(dim=1)
        np.testing.assert_allclose(np.exp(prediction.logits), expected.numpy(), atol=1e-6)
        assert prediction.confusion is one.confusion
    with pytest.raises(CheckpointError):
        calibrator.read({"method": "temperature"})


def _only(kept, label):
    return [MaskTally(one.confusion, one.logits, one.truths * 0 + label) for one in kept]


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (overconfident(9), "9 held-out pictures with pixels that count are too few, expected 10 or more"),
        ([*overconfident(9), MaskTally(np.zeros((3, 3), int), np.zeros((0, 3)), np.zeros(0, int))], "9 held-out"),
        (_only(overconfident(12), 1), "all of one class"),
        ([*overconfident(12), *(MaskTally(one.confusion, one.logits * np.inf, one.truths) for one in overconfident(1))],
         "NaN or infinity"),
    ],
)  # fmt: skip
def test_pictures_that_give_no_temperature(kept, reason):
    assert reason in MaskCalibrator().problem(kept, None)
    with pytest.warns(TransferkitWarning, match=f"probabilities are not calibrated: .*{reason}"):
        fitted, predictions = MaskCalibrator().fit(kept, None, method="temperature", seed=0)
    assert (fitted.method, fitted.temperature, len(predictions)) == ("none", 1.0, len(kept))


def test_no_calibration_and_unknown_ones():
    kept = overconfident()
    fitted, predictions = MaskCalibrator().fit(kept, None, method="none", seed=0)
    assert fitted.method == "none"
    np.testing.assert_allclose(predictions[0].logits, kept[0].log_probs().logits)
    with pytest.raises(ConfigError, match="method is 'vector', expected one of none, temperature"):
        MaskCalibrator().fit(kept, None, method="vector", seed=0)
    assert MaskCalibrator().at_precision(0.9) is None


def test_pictures_without_pixels_that_count_are_taken_along():
    empty = MaskTally(np.zeros((3, 3), np.int64), np.zeros((0, 3), np.float32), np.zeros(0, np.uint8))
    kept = [*overconfident(), empty]
    fitted, after = MaskCalibrator().fit(kept, None, method="temperature", seed=0)
    alone, _ = MaskCalibrator().fit(kept[:-1], None, method="temperature", seed=0)
    assert fitted.temperature == pytest.approx(alone.temperature)
    assert after[-1].logits.shape == (0, 3)


def test_a_summary_counts_pixels():
    kept = overconfident()
    fitted, after = MaskCalibrator().fit(kept, None, method="temperature", seed=0)
    lines, columns, rows = MaskCalibrator().summary(fitted, kept, None, after, seed=0)
    assert [name for name, _ in lines] == ["method", "ECE", "NLL"]
    assert f"temperature {fitted.temperature:.3f}" == lines[0][1]
    assert columns == ("probability from", "pixels", "right")
    logits, truths = pooled(after)
    best, right = np.exp(logits.max(axis=1)), logits.argmax(axis=1) == truths
    for (least, pixels, share), limit in zip(rows, (0.0, 0.5, 0.9, 0.99), strict=True):
        sure = best >= limit
        expected = (f"{limit:.0%}", f"{sure.mean():.1%}", f"{right[sure].mean():.1%}")
        assert (least, pixels, share) == expected


def test_scores_are_those_of_the_tallies():
    kept = overconfident()
    _, after = MaskCalibrator().fit(kept, None, method="temperature", seed=0)
    scores = MaskScores()
    values = scores.measure(after, object(), SPEC, plain=[one.log_probs() for one in kept], seed=3)
    of_logits = scores.measure(after, None, SPEC, plain=kept, seed=3)
    plain = values.pop("uncalibrated")
    assert plain == pytest.approx(of_logits.pop("uncalibrated"), abs=1e-6)
    assert values == of_logits
    assert plain["loss"] == pytest.approx(loss_at(kept, 1), abs=1e-6)
    assert values["loss"] < plain["loss"]
    assert values["always"]["class"] == "cell"
    assert [figure.key for figure in scores.figures(values)][:2] == ["miou", "dice"]
    assert "uncalibrated" not in scores.measure(after, None, SPEC)
