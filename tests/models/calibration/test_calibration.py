"""Calibration against brute force, autograd and torch's own L-BFGS; sets and thresholds against figures by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import betabinom
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_calibration_error

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning
from transferkit.models.calibration.calibration import Calibration, cannot_calibrate, fit_calibration
from transferkit.models.calibration.conformal import HeldOut, cross_fitted_sets, least_pictures
from transferkit.models.calibration.scaling import BOUND, STRENGTH, fit_temperature, fit_vector, stratified_folds
from transferkit.models.figures.classification import classification_metrics


def draw(count, classes=5, temperature=1.0, seed=0, spread=2.0):
    """Logits whose softmax at `temperature` is the true distribution of the labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(count, classes, generator=generator)
    targets = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    return logits * temperature, targets


def nll(probs, targets):
    return float(-probs.double().gather(1, targets[:, None]).log().mean())


# ---- temperature ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "temperature"), [(40, 0.3), (300, 1.0), (300, 4.0)])
def test_temperature_is_the_best_of_a_grid(count, temperature):
    logits, targets = draw(count, temperature=temperature)
    grid = np.exp(np.linspace(math.log(0.05), math.log(20), 4001))
    losses = [float(cross_entropy(logits.double() / value, targets)) for value in grid]
    fitted = fit_temperature(logits, targets)
    assert fitted == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    assert float(cross_entropy(logits.double() / fitted, targets)) <= min(losses) + 1e-12


def test_blocks_of_rows_add_up(monkeypatch):
    logits, targets = draw(300, temperature=2.0)
    whole = fit_temperature(logits, targets), *fit_vector(logits, targets)
    monkeypatch.setattr("transferkit.models.calibration.scaling.BLOCK", 35)
    blocks = fit_temperature(logits, targets), *fit_vector(logits, targets)
    assert blocks[0] == pytest.approx(whole[0], rel=1e-9)
    assert blocks[1] == pytest.approx(whole[1], abs=1e-5)


def test_temperature_is_bounded():
    logits, targets = draw(200, temperature=1.0)
    assert fit_temperature(logits * 1000, targets) == pytest.approx(BOUND)
    assert fit_temperature(logits / 1000, targets) == pytest.approx(1 / BOUND)
    assert fit_temperature(-logits, targets) == pytest.approx(BOUND)  # worse than chance


def test_separable_pictures_do_not_make_certain():
    logits = draw(60, spread=0.5)[0]
    targets = logits.argmax(dim=1)
    logits[range(60), targets] += 1.0
    fitted = fit_temperature(logits, targets)
    assert 1 / BOUND < fitted < 1.0
    assert float((logits / fitted).softmax(dim=1).amax(dim=1).mean()) == pytest.approx(61 / 62, abs=1e-6)
    assert fit_temperature(logits * 50, targets) == 1.0  # more certain than that already: left as it is
    assert fit_temperature(torch.zeros(60, 5), targets) == 1.0  # nothing to win
    assert fit_temperature(logits / 1e4, targets) == pytest.approx(1 / BOUND)


def test_a_fold_without_mistakes_does_not_ruin_the_others():
    """Ninety-nine of a hundred right: the fold with the mistake is judged by a fit that has seen none."""
    logits = draw(100, spread=0.5)[0]
    targets = logits.argmax(dim=1)
    logits[range(100), targets] += 1.0
    targets[7] = (targets[7] + 1) % 5
    calibration, probs = fit_calibration(logits, targets)
    assert calibration.figures["loss_after"] < calibration.figures["loss_before"]
    without_rule = (logits[7:8] * BOUND).softmax(dim=1)
    assert nll(probs[7:8], targets[7:8]) < 0.3 * nll(without_rule, targets[7:8])


# ---- vector -----------------------------------------------------------------------------------------------------


def test_vector_scaling_is_the_optimum_that_torch_finds():
    logits, targets = draw(150, classes=4, temperature=2.0)
    logits[:, 1] += 2.0
    values = torch.tensor([[1.0] * 4, [0.0] * 4], dtype=torch.float64, requires_grad=True)
    z = logits.double() - logits.double().mean(dim=1, keepdim=True)

    def objective():
        loss = cross_entropy(z * values[0] + values[1], targets, reduction="sum")
        return loss + 0.5 * STRENGTH * ((values[0] - 1) ** 2 + values[1] ** 2).sum()

    def closure():
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS([values], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    optimizer.step(closure)
    scale, bias = fit_vector(logits, targets)
    assert scale == pytest.approx(values[0].detach().numpy(), abs=1e-4)
    assert bias == pytest.approx(values[1].detach().numpy(), abs=1e-4)


def test_vector_scaling_may_change_labels_and_does_not_see_a_shift():
    logits, targets = draw(300, classes=4)
    logits[:, 2] += 3.0
    calibration, probs = fit_calibration(logits, targets, method="vector")
    assert (probs.argmax(dim=1) != logits.argmax(dim=1)).sum() > 20
    assert (probs.argmax(dim=1) == targets).sum() > (logits.argmax(dim=1) == targets).sum() + 20
    assert calibration.figures["loss_after"] < calibration.figures["loss_before"] - 0.2
    shifted, others = fit_calibration(logits + 7 * torch.randn(300, 1), targets, method="vector")
    assert shifted.scale == pytest.approx(calibration.scale, abs=1e-3)
    assert torch.allclose(others, probs, atol=1e-3)


def test_vector_scaling_of_a_few_pictures_stays_near_the_identity():
    logits, _ = draw(20, classes=10)
    scale, bias = fit_vector(logits, logits.argmax(dim=1))
    assert np.abs(scale - 1).max() < 1.0
    assert np.abs(bias).max() < 1.0


# ---- cross-fitting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_each_picture_is_judged_by_a_fit_on_the_others(method):
    logits, targets = draw(61, temperature=3.0)
    calibration, probs = fit_calibration(logits, targets, method=method, seed=7)
    places = stratified_folds(targets, 5, seed=7)
    for fold in range(5):
        held = torch.from_numpy(places == fold)
        if method == "temperature":
            alone = Calibration(method, fit_temperature(logits[~held], targets[~held]))
        else:
            scale, bias = fit_vector(logits[~held], targets[~held])
            alone = Calibration(method, scale=tuple(scale), bias=tuple(bias))
        assert torch.equal(probs[held], alone.probs(logits[held]))
    assert calibration.folds == 5
    whole = fit_temperature(logits, targets)
    assert calibration.temperature == (whole if method == "temperature" else 1.0)
    assert not torch.allclose(probs, calibration.probs(logits), atol=1e-4)


def test_folds_are_stratified_and_seeded():
    targets = torch.tensor([0] * 23 + [1] * 11 + [2])
    places = stratified_folds(targets, 5, seed=1)
    table = np.array([[int(((places == fold) & (targets.numpy() == label)).sum()) for label in range(3)]
                      for fold in range(5)])  # fmt: skip
    assert (np.ptp(table, axis=0) <= 1).all()
    assert np.ptp(table.sum(axis=1)) <= 1
    assert np.array_equal(places, stratified_folds(targets, 5, seed=1))
    assert not np.array_equal(places, stratified_folds(targets, 5, seed=2))
    assert len(set(stratified_folds(torch.tensor([0, 1] * 5), 20))) == 5


def test_figures_are_those_of_the_metrics():
    logits, targets = draw(1000, temperature=4.0)
    calibration, probs = fit_calibration(logits, targets)
    for name, scored in (("before", logits.softmax(dim=1)), ("after", probs)):
        ece = multiclass_calibration_error(scored, targets, 5, n_bins=15, norm="l1")
        assert calibration.figures[f"ece_{name}"] == pytest.approx(float(ece), abs=1e-6)
        metrics = classification_metrics(scored, targets, "abcde", resamples=1)
        assert calibration.figures[f"loss_{name}"] == pytest.approx(metrics["loss"], abs=1e-6)
    assert calibration.figures["n"] == 1000
    assert calibration.figures["ece_before"] > 0.15
    assert calibration.figures["ece_after"] < 0.04
    for scaled in (probs, calibration.probs(logits)):  # a temperature changes no label
        assert torch.equal(scaled.argmax(dim=1), logits.argmax(dim=1))


def test_what_does_not_help_is_not_hidden():
    logits, targets = draw(30, seed=2)
    calibration, probs = fit_calibration(logits, targets)
    assert calibration.method == "temperature"
    assert calibration.figures["loss_after"] == pytest.approx(nll(probs, targets), abs=1e-6)
    assert calibration.figures["loss_after"] > calibration.figures["loss_before"]


@pytest.mark.parametrize(
    ("count", "change", "message"),
    [
        (9, lambda z, y: (z, y), "9 held-out pictures are too few, expected at least 10"),
        (30, lambda z, y: (z, y * 0), "all of one class, expected at least two"),
        (30, lambda z, y: (z.log(), y), "returns NaN or infinity for held-out pictures"),
    ],
)
def test_nothing_to_fit_on(count, change, message):
    logits, targets = change(*draw(count))
    assert message in cannot_calibrate(logits, targets)
    with pytest.warns(TransferkitWarning, match=f"probabilities are not calibrated: .*{message}"):
        calibration, probs = fit_calibration(logits, targets)
    assert calibration == Calibration()
    assert torch.equal(probs.nan_to_num(), logits.softmax(dim=1).nan_to_num())


def test_ten_pictures_of_two_classes_will_do():
    logits, _ = draw(10, classes=2)
    targets = torch.tensor([0] * 9 + [1])
    assert cannot_calibrate(logits, targets) is None
    for method in ("temperature", "vector"):
        calibration, probs = fit_calibration(logits, targets, method=method)
        assert calibration.folds == 5
        assert torch.allclose(probs.sum(dim=1), torch.ones(10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "platt"}, "method is 'platt', expected one of none, temperature, vector"),
        ({"targets": torch.zeros(7, dtype=torch.int64)}, r"targets \(7,\), expected \(N, C\) and \(N,\)"),
        ({"targets": torch.full((30,), 5)}, r"targets lie in \[5, 5\], expected \[0, 5\)"),
    ],
)
def test_wrong_arguments(change, message):
    logits, targets = draw(30)
    with pytest.raises(ConfigError, match=message):
        fit_calibration(logits, **{"targets": targets, **change})


# ---- probabilities and model.json -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", "temperature", "vector"])
def test_probabilities_of_any_shape(method):
    logits, targets = draw(50)
    calibration, plain = fit_calibration(logits, targets, method=method)
    assert (calibration == Calibration()) == torch.equal(plain, logits.softmax(dim=1)) == (method == "none")
    for shape in ((5,), (3, 5), (50, 5), (2, 3, 5)):
        probs = calibration.probs(60 * torch.randn(shape))
        assert probs.shape == shape
        assert probs.dtype == torch.float32
        assert torch.allclose(probs.sum(dim=-1), torch.ones(shape[:-1]), atol=1e-5)
    assert torch.allclose(calibration.probs(logits[:3])[1], calibration.probs(logits[1]), atol=1e-7)


@pytest.mark.parametrize("method", ["none", "temperature", "vector"])
def test_the_way_through_json(method):
    logits, targets = draw(200, classes=3)
    calibration, _ = fit_calibration(logits, targets, method=method, fitted_on="my pictures")
    read = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict(), allow_nan=False)))
    assert read == calibration
    assert torch.equal(read.probs(logits), calibration.probs(logits))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "KeyError"),
        ({"method": "magic"}, "method is 'magic'"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        ({"temperature": "warm"}, "could not convert string to float"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"scale": [1.0]}, "1 scales and 0 biases"),
        ({"method": "vector"}, "0 scales and 0 biases for method 'vector'"),
        ({"method": "vector", "scale": [1.0, float("inf")], "bias": [0.0, 0.0]}, "not finite"),
        ({"figures": [1]}, "AttributeError"),
        ({"held_out": 3}, "its held_out cannot be read"),
        ({"held_out": {"p_label": "0.5 0.5"}}, "of different length"),
        ({"held_out": {"label": "9"}}, r"outside \[0, 3\)"),
        ({"held_out": {"p_predicted": "1.5"}}, r"a probability outside \[0, 1\]"),
        ({"held_out": {"p_label": "x"}}, "could not convert"),
    ],
)
def test_nonsense_is_refused(change, message):
    values = Calibration("temperature", 2.0, held_out=HeldOut((0,), (1,), (0.25,), (0.75,), 3)).to_dict()
    assert Calibration.from_dict(values).temperature == 2.0
    if isinstance(change.get("held_out"), dict):
        change = {"held_out": {**values["held_out"], **change["held_out"]}}
    with pytest.raises(CheckpointError, match=message):
        Calibration.from_dict({**values, **change} if change else {})


def test_a_calibration_of_another_model():
    calibration = Calibration("vector", scale=(1.0, 1.0), bias=(0.0, 0.0))
    with pytest.raises(ConfigError, match=r"shape \(4, 3\), expected \(..., 2\): the calibration is of another model"):
        calibration.probs(torch.zeros(4, 3))


# ---- what is kept of held-out pictures --------------------------------------------------------------------------


def test_held_out_numbers_are_rounded_down():
    probs = torch.tensor([[0.12345678, 0.87654322], [1.0, 0.0], [3e-9, 1.0]])
    held_out = HeldOut.of(probs, torch.tensor([0, 0, 0]))
    assert held_out == HeldOut((0, 0, 0), (1, 0, 1), (0.123456, 1.0, 3e-9), (0.876543, 1.0, 1.0), 2)
    logits, targets = draw(3000, classes=30, spread=8.0)
    held_out = HeldOut.of(logits.softmax(dim=1), targets)
    exact = logits.softmax(dim=1).gather(1, targets[:, None]).squeeze(1).double().numpy()
    assert (np.array(held_out.p_label) <= exact).all()
    assert (np.array(held_out.p_label) >= exact * (1 - 1e-5) - 1e-16).all()
    assert HeldOut.from_dict(json.loads(json.dumps(held_out.to_dict()))) == held_out


def test_twenty_thousand_are_kept():
    probs = torch.rand(20_500, 2).softmax(dim=1)
    targets = torch.arange(20_500) % 2
    first, second = (HeldOut.of(probs, targets, seed=seed) for seed in (0, 1))
    assert len(first.label) == len(first.p_predicted) == 20_000
    assert first != second
    assert first == HeldOut.of(probs, targets, seed=0)
    assert 9_800 < sum(first.label) < 10_200


# ---- conformal sets ---------------------------------------------------------------------------------------------


def with_held_out(p_label):
    count = len(p_label)
    return Calibration(held_out=HeldOut((0,) * count, (0,) * count, tuple(p_label), (0.9,) * count, 2))


def test_the_quantile_is_exact():
    nineteen = with_held_out(np.linspace(0.05, 0.95, 19))
    assert nineteen.set_threshold(0.95) == 0.05  # ceil(20 x 0.95) = 19: the least of 19
    assert nineteen.set_threshold(0.9) == pytest.approx(0.1)
    assert nineteen.set_threshold(0.951) == 0.0  # ceil(19.02) = 20: there is none, so every class
    assert with_held_out([0.5] * 18).set_threshold(0.95) == 0.0
    ninety_nine = with_held_out(np.arange(1, 100) / 100)
    assert 100 * 0.07 > 7
    assert ninety_nine.set_threshold(0.07) == 0.93  # the 7th largest, not the 8th
    assert ninety_nine.set_threshold(np.float64(0.99)) == 0.01


def simulated_coverage(seed, count, rate, fresh=4000, shift=0):
    logits, targets = draw(count + fresh, classes=6, temperature=3.0, seed=seed)
    calibration, _ = fit_calibration(logits[:count], targets[:count])
    own = calibration.probs(logits[count:]).gather(1, targets[count:, None])
    threshold = calibration.set_threshold(rate)
    if shift:
        threshold = float(np.sort(calibration.held_out.p_label)[count - math.ceil((count + 1) * rate) + shift])
    return int((own >= threshold).sum())


def within_bounds(covered, count, rate, fresh):
    """The number covered of `fresh` pictures follows this law (Angelopoulos and Bates 2021, section 3.2)."""
    rank = math.ceil((count + 1) * rate)
    low, high = betabinom.ppf([1e-4, 1 - 1e-4], fresh, rank, count + 1 - rank)
    return low <= covered <= high


@pytest.mark.parametrize("rate", [0.8, 0.95])
def test_fresh_pictures_are_covered(rate):
    counts = [simulated_coverage(seed, 400, rate) for seed in range(5)]
    assert all(within_bounds(covered, 400, rate, 4000) for covered in counts)
    small = [simulated_coverage(seed, 39, rate, fresh=1000) / 1000 for seed in range(30)]
    assert rate - 0.02 < np.mean(small) < rate + 1 / 40 + 0.02  # on average, also for 39 held-out pictures


def test_the_coverage_test_can_fail():
    assert not within_bounds(simulated_coverage(0, 400, 0.8, shift=100), 400, 0.8, 4000)


def test_sets_of_other_folds():
    logits, targets = draw(100, classes=4)
    probs, folds = logits.softmax(dim=1), stratified_folds(targets, 5)
    covered, sizes = [], []
    for row in range(100):
        others = [float(probs[i, targets[i]]) for i in range(100) if folds[i] != folds[row]]
        threshold = sorted(others, reverse=True)[math.ceil((len(others) + 1) * 0.9) - 1]
        chosen = [index for index in range(4) if float(probs[row, index]) >= threshold]
        covered.append(int(targets[row]) in chosen)
        sizes.append(len(chosen))
    assert cross_fitted_sets(probs, targets, folds, 0.9) == pytest.approx(
        {"covered": np.mean(covered), "size": np.mean(sizes), "single": np.mean([size == 1 for size in sizes])}
    )
    assert cross_fitted_sets(probs, targets, folds, 0.999) == {"covered": 1.0, "size": 4.0, "single": 0.0}


# ---- thresholds per class ---------------------------------------------------------------------------------------


def test_thresholds_by_hand():
    # Class 0 is predicted 14 times: twelve right from 0.99 down to 0.88, then wrong at 0.5, right at 0.4.
    sure = [0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.9, 0.89, 0.88, 0.5, 0.4]
    label = [0] * 12 + [1, 0]
    # Class 1: nine times, all right; class 2: ten times, half right; class 3: never.
    sure += [0.9] * 9 + [0.8] * 10
    label += [1] * 9 + [2, 0] * 5
    predicted = [0] * 14 + [1] * 9 + [2] * 10
    held_out = HeldOut(tuple(label), tuple(predicted), (0.5,) * 33, tuple(sure), 4)
    calibration = Calibration(held_out=held_out)
    assert calibration.class_thresholds(0.9) == (0.4, None, None, None)  # 13 of 14 are 0.929
    assert calibration.class_thresholds(0.925)[0] == 0.4
    assert calibration.class_thresholds(0.93)[0] is None  # the first twelve are right, but one mistake needs 15
    assert calibration.class_thresholds(0.5) == (0.4, None, 0.8, None)
    assert calibration.class_thresholds(0.51)[2] is None
    assert least_pictures(0.5) == 10
    assert least_pictures(0.93) == 15
    assert least_pictures(0.95) == 20
    assert least_pictures(0.99) == 100


def test_equal_probabilities_stand_or_fall_together():
    held_out = HeldOut((0,) * 19 + (1,) * 2, (0,) * 21, (0.5,) * 21, (0.9,) * 10 + (0.8,) * 11, 2)
    calibration = Calibration(held_out=held_out)
    assert calibration.class_thresholds(0.9)[0] == 0.8  # 19 of 21
    assert calibration.class_thresholds(0.95)[0] is None  # 19 of the first 20, but the 21st is as probable
    assert calibration.class_thresholds(0.905)[0] is None
    twenty = replace(held_out, label=(0,) * 19 + (1,), predicted=(0,) * 20, p_label=(0.5,) * 20,
                     p_predicted=(0.9,) * 10 + (0.8,) * 10)  # fmt: skip
    assert Calibration(held_out=twenty).class_thresholds(0.95)[0] == 0.8  # 19 of 20 are 0.95 exactly


@pytest.mark.parametrize("rate", [0.0, 1.0, 1.5, float("nan")])
def test_rates_outside_the_range(rate):
    calibration = with_held_out([0.5] * 30)
    with pytest.raises(ConfigError, match="coverage is .*, expected a rate in"):
        calibration.set_threshold(rate)
    with pytest.raises(ConfigError, match="precision is .*, expected a rate in"):
        calibration.class_thresholds(rate)


def test_without_held_out_pictures():
    for ask in (Calibration().set_threshold, Calibration().class_thresholds):
        with pytest.raises(ConfigError, match="no held-out pictures to go by - run `transferkit calibrate RUN DATA`"):
            ask(0.9)
