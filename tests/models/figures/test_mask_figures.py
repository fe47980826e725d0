"""Figures of masks against torchmetrics and scikit-learn on the same pixels, and what breaks in others' figures."""

import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassJaccardIndex,
)
from torchmetrics.segmentation import DiceScore, MeanIoU

from transferkit.core.errors import ConfigError
from transferkit.core.targets import IGNORED
from transferkit.models.figures.masks import MaskTally, mask_of, tally
from transferkit.models.figures.segmentation import KEYS, MaskCounts, compare_masks, mask_figures, mask_metrics

NAMES = ("ground", "cell", "nucleus", "dirt")


def pictures(count=12, classes=4, seed=0, rare=None):
    """Masks, with holes, and logits that are right more often than not; of several sizes."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        size = (int(generator.integers(20, 60)), int(generator.integers(20, 60)))
        mask = np.kron(generator.integers(0, classes, (6, 6), dtype=np.uint8), np.ones((10, 10), np.uint8))
        mask = mask[: size[0], : size[1]].copy()
        if rare is not None and number:
            mask[mask == rare] = 0
        mask[generator.random(size) < 0.1] = IGNORED
        logits = generator.normal(size=(classes, *size)).astype(np.float32)
        for at in range(classes):
            logits[at][mask == at] += 1.5
        made.append((torch.from_numpy(logits), mask))
    return made


def tallies(made, pixels=10**6):
    return [tally(logits, (0, 0, *mask.shape), mask, pixels=pixels) for logits, mask in made]


def flat(made):
    """All pixels that count: truth, prediction and probabilities."""
    truth, predicted, probs = [], [], []
    for logits, mask in made:
        counts = mask != IGNORED
        truth.append(mask[counts])
        predicted.append(logits.argmax(dim=0).numpy()[counts])
        probs.append(logits.double().softmax(dim=0).numpy()[:, counts].T)
    return tuple(np.concatenate(part) for part in (truth, predicted, probs))


@pytest.mark.parametrize("seed", range(3))
def test_equal_scikit_learn(seed):
    made = pictures(seed=seed)
    truth, predicted, probs = flat(made)
    values = mask_metrics(tallies(made), NAMES)
    close = {"abs": 1e-6, "rel": 0}
    assert values["confusion"] == reference.confusion_matrix(truth, predicted).tolist()
    assert values["miou"] == pytest.approx(reference.jaccard_score(truth, predicted, average="macro"), **close)
    assert values["dice"] == pytest.approx(reference.f1_score(truth, predicted, average="macro"), **close)
    assert values["pixel_acc"] == pytest.approx(reference.accuracy_score(truth, predicted), **close)
    assert values["balanced_acc"] == pytest.approx(reference.balanced_accuracy_score(truth, predicted), **close)
    assert values["loss"] == pytest.approx(reference.log_loss(truth, probs), **close)
    assert (values["n"], values["pixels"]) == (12, len(truth))
    of_class = {
        "miou": reference.jaccard_score(truth, predicted, average=None),
        "dice": reference.f1_score(truth, predicted, average=None),
        "recall": reference.recall_score(truth, predicted, average=None),
        "precision": reference.precision_score(truth, predicted, average=None),
    }
    for key, expected in of_class.items():
        assert [values["per_class"][name][key] for name in NAMES] == pytest.approx(expected.tolist(), **close)
    for key in KEYS:
        low, high = values[f"{key}_ci"]
        assert low < values[key] < high


def test_equal_torchmetrics():
    made = pictures()
    values = mask_metrics(tallies(made), NAMES)
    ones = {
        "miou": MulticlassJaccardIndex(4, ignore_index=IGNORED),
        "dice": MulticlassF1Score(4, average="macro", ignore_index=IGNORED),
        "pixel_acc": MulticlassAccuracy(4, average="micro", ignore_index=IGNORED),
        "balanced_acc": MulticlassAccuracy(4, average="macro", ignore_index=IGNORED),
        "ece": MulticlassCalibrationError(4, n_bins=15, norm="l1", ignore_index=IGNORED),
    }
    for logits, mask in made:
        for metric in ones.values():
            metric.update(logits.softmax(dim=0)[None], torch.from_numpy(mask.astype(np.int64))[None])
    for key, metric in ones.items():
        assert values[key] == pytest.approx(float(metric.compute()), abs=1e-6), key


def test_equal_torchmetrics_for_segmentation():
    """Its mean IoU and Dice are means over pictures: equal to ours of each picture alone."""
    made = [(logits, np.where(mask == IGNORED, 0, mask).astype(np.uint8)) for logits, mask in pictures()]
    for logits, mask in made:
        predicted, truth = logits.argmax(dim=0)[None], torch.from_numpy(mask.astype(np.int64))[None]
        values = mask_metrics(tallies([(logits, mask)]), NAMES)
        iou = MeanIoU(4, input_format="index", per_class=True)(predicted, truth)
        dice = DiceScore(4, input_format="index", average="none")(predicted, truth)
        assert [values["per_class"][name]["miou"] for name in NAMES] == pytest.approx(iou.tolist(), abs=1e-6)
        assert [values["per_class"][name]["dice"] for name in NAMES] == pytest.approx(dice.flatten().tolist(), abs=1e-6)


def test_reliability_is_that_of_the_sampled_pixels():
    values = mask_metrics(tallies(pictures(), pixels=100), NAMES)
    rows = values["reliability"]
    total = sum(row["n"] for row in rows)
    assert total == 12 * 100
    gaps = [row["n"] / total * abs(row["confidence"] - row["accuracy"]) for row in rows if row["n"]]
    assert sum(gaps) == pytest.approx(values["ece"])


def test_sampled_pixels_say_what_all_would():
    made = pictures(60)
    some, every = (mask_metrics(tallies(made, pixels), NAMES) for pixels in (256, 10**6))
    assert some["loss"] == pytest.approx(every["loss"], abs=0.02)
    assert {key: some[key] for key in KEYS[:-1]} == {key: every[key] for key in KEYS[:-1]}


def test_a_class_that_is_nowhere_is_left_out():
    """Lightning-AI/torchmetrics#1693: it counted as 0; Lightning-AI/pytorch-lightning#3098: as 1."""
    made = [(torch.cat([logits, torch.full((1, *mask.shape), -50.0)]), mask) for logits, mask in pictures()]
    values = mask_metrics(tallies(made), (*NAMES, "absent"))
    expected = mask_metrics(tallies(pictures()), NAMES)
    for key in KEYS[:-1]:
        assert values[key] == pytest.approx(expected[key])
        assert values[f"{key}_ci"] == pytest.approx(expected[f"{key}_ci"])
    absent = values["per_class"]["absent"]
    assert {key for key, value in absent.items() if value is None} == {
        "miou", "miou_ci", "dice", "dice_ci", "recall", "precision"
    }  # fmt: skip
    assert absent["n"] == absent["pixels"] == absent["predicted"] == 0


def test_a_class_that_is_only_predicted_counts_as_0():
    """Project-MONAI/MONAI#4052, qubvel/segmentation_models#553: it was left out, so false alarms cost nothing."""
    mask = np.zeros((10, 10), np.uint8)
    logits = torch.zeros(3, 10, 10)
    logits[0], logits[2, :, 0] = 1, 2
    values = mask_metrics(tallies([(logits, mask)]), ("ground", "cell", "dirt"))
    assert [values["per_class"][name]["miou"] for name in ("ground", "cell", "dirt")] == [0.9, None, 0.0]
    assert values["miou"] == pytest.approx(0.45)
    assert values["per_class"]["dirt"]["recall"] is None
    assert values["per_class"]["dirt"]["precision"] == 0.0
    assert values["balanced_acc"] == pytest.approx(0.9)  # recall of what is there
    truth, predicted = mask.ravel(), mask_of(logits, (0, 0, 10, 10), (10, 10)).ravel()
    assert values["miou"] == pytest.approx(reference.jaccard_score(truth, predicted, average="macro"))


def test_an_empty_mask_that_is_predicted_empty_is_right():
    """milesial/Pytorch-UNet#241, qubvel/segmentation_models#406: 0 for a picture without objects that has none."""
    logits = torch.zeros(2, 10, 10)
    logits[0] = 1
    empty = (logits, np.zeros((10, 10), np.uint8))
    values = mask_metrics(tallies([empty]), ("ground", "cell"))
    assert (values["miou"], values["dice"], values["pixel_acc"]) == (1.0, 1.0, 1.0)
    assert values["per_class"]["cell"]["miou"] is None
    made = pictures(classes=2)
    alone, beside = (mask_metrics(tallies(each), ("ground", "cell")) for each in (made, [*made, empty]))
    assert beside["per_class"]["cell"]["miou"] == alone["per_class"]["cell"]["miou"]  # nor does it take from the others
    assert beside["per_class"]["ground"]["miou"] > alone["per_class"]["ground"]["miou"]


def test_ignored_pixels_are_in_no_row_and_no_column():
    """Lightning-AI/torchmetrics#312, #1385, #2747; smp#546: they moved the union, or their class stayed in the mean."""
    made = pictures()
    expected = mask_metrics(tallies(made), NAMES)
    for logits, mask in made:
        logits[:, mask == IGNORED] = torch.randn(4, int((mask == IGNORED).sum())) * 9
    assert mask_metrics(tallies(made), NAMES)["confusion"] == expected["confusion"]


def test_figures_are_of_the_set_not_means_over_batches_or_pictures():
    """Lightning-AI/torchmetrics#2558, smp#226 and #207: the figure hung on the batches."""
    made = pictures(rare=3)
    one = mask_metrics(tallies(made), NAMES)
    other = mask_metrics(tallies(made[::-1]), NAMES)
    for key in ("miou", "dice", "pixel_acc", "balanced_acc", "pixels", "confusion"):
        assert one[key] == other[key]
    means = [mask_metrics(tallies([each]), NAMES)["miou"] for each in made]
    assert abs(np.mean(means) - one["miou"]) > 1e-3  # the mean over pictures is another number


def test_counts_are_exact_where_float32_is_not():
    """Lightning-AI/torchmetrics#708, davidtvs/PyTorch-ENet#46: int32 overflows, float32 rounds beyond 16,777,216."""
    large = np.array([[2**31 + 1, 1], [0, 2**33 + 3]])
    sums = mask_metrics([MaskTally(large, np.zeros((0, 2), np.float32), np.zeros(0, np.uint8))] * 1000, ("a", "b"))
    assert sums["confusion"] == (large * 1000).tolist()
    assert sums["pixels"] == int(large.sum()) * 1000
    assert sums["per_class"]["a"]["predicted"] == (2**31 + 1) * 1000
    assert sums["loss"] is None
    assert sums["ece"] is None


def test_measuring_twice_gives_the_same():
    """Project-MONAI/MONAI#4172: the second time, what was undefined counted as 0."""
    kept = tallies(pictures(rare=3))
    assert mask_metrics(kept, NAMES) == mask_metrics(kept, NAMES)


def test_one_picture_has_figures_and_no_interval():
    values = mask_metrics(tallies(pictures(1)), NAMES)
    assert values["miou"] is not None
    assert all(values[f"{key}_ci"] is None for key in KEYS)
    assert all(row["miou_ci"] is None for row in values["per_class"].values())


def test_a_set_without_pixels_that_count():
    logits, mask = pictures(1)[0]
    mask[:] = IGNORED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = mask_metrics(tallies([(logits, mask)] * 3), NAMES)
    assert [values[key] for key in KEYS] == [None] * 5
    assert values["ece"] is None
    assert values["pixels"] == 0


def test_logits_that_are_not_finite_give_no_loss():
    kept = tallies(pictures(3), pixels=50)
    kept[1].logits[7, 2] = np.nan
    values = mask_metrics(kept, NAMES)
    assert (values["loss"], values["loss_ci"], values["ece"], values["reliability"]) == (None, None, None, [])
    assert values["miou"] is not None


def test_the_bootstrap_counts_whole_pictures():
    """Weights give the figures of pictures that are really there several times."""
    made = pictures(rare=3)
    counts = MaskCounts(tallies(made))
    weights = np.random.default_rng(1).integers(0, 3, len(made))
    repeated = MaskCounts(tallies([each for each, times in zip(made, weights, strict=True) for _ in range(times)]))
    np.testing.assert_allclose(counts.figures(weights), repeated.figures(np.ones(weights.sum())))


def test_intervals_hold_the_truth():
    """Sets of pictures of differing difficulty: 95 % intervals hold the mIoU of all pictures about as often."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        made = []
        for right in generator.beta(8, 2, 30):
            hits = generator.binomial(500, right, 2)
            confusion = np.array([[hits[0], 500 - hits[0]], [500 - hits[1], hits[1]]])
            made.append(MaskTally(confusion, np.zeros((0, 2), np.float32), np.zeros(0, np.uint8)))
        low, high = mask_metrics(made, ("a", "b"), resamples=200)["miou_ci"]
        held += low <= 0.8 / 1.2 <= high
    assert 50 <= held <= 60


def test_always_the_most_frequent_class():
    made = pictures()
    truth, _, _ = flat(made)
    guess = np.full(len(truth), 2)
    always = mask_metrics(tallies(made), NAMES, [5, 6, 70, 1])["always"]
    assert always["class"] == "nucleus"
    assert always["miou"] == pytest.approx(reference.jaccard_score(truth, guess, average="macro"))
    assert always["dice"] == pytest.approx(reference.f1_score(truth, guess, average="macro"))
    assert always["pixel_acc"] == pytest.approx((truth == 2).mean())
    assert always["balanced_acc"] == pytest.approx(0.25)
    own = mask_metrics(tallies(made), NAMES)["always"]["class"]
    assert own == NAMES[np.bincount(truth).argmax()]


def test_figures_are_records():
    values = mask_metrics(tallies(pictures()), NAMES)
    figures = mask_figures(values)
    assert [figure.key for figure in figures if figure.of is None] == [*KEYS, "ece"]
    assert [(figure.key, figure.of) for figure in figures if figure.of] == [
        (key, name) for name in NAMES for key in ("miou", "dice")
    ]
    for figure in figures:
        assert figure.value == (values if figure.of is None else values["per_class"][figure.of])[figure.key]
        assert (figure.ci is None) == (figure.key == "ece")
        assert figure.higher_is_better == (figure.key not in ("loss", "ece"))


def test_wrong_classes_and_nothing_at_all_are_refused():
    with pytest.raises(ConfigError, match="no predictions to measure"):
        mask_metrics([], NAMES)
    with pytest.raises(ConfigError, match=r"\(4, 4\).*expected 3 by the names"):
        mask_metrics(tallies(pictures(2)), NAMES[:3])


@pytest.fixture(scope="module")
def better():
    """The same pictures as those of `pictures`, and logits that are right more often."""
    made = []
    for logits, mask in pictures(40):
        more = logits.clone()
        for at in range(4):
            more[at][torch.from_numpy(mask == at)] += 0.3
        made.append((more, mask))
    return made


def test_a_comparison_is_paired(better):
    worse = pictures(40)
    result = compare_masks(tallies(better), tallies(worse), (NAMES, NAMES), names=("new", "old"))
    first, second = (mask_metrics(tallies(made), NAMES) for made in (better, worse))
    row = result["figures"][0]
    assert (row["key"], row["of"], result["n"]) == ("miou", None, 40)
    assert row["first"] == pytest.approx(first["miou"])
    assert row["second"] == pytest.approx(second["miou"])
    assert row["difference"] == pytest.approx(first["miou"] - second["miou"])
    low, high = row["ci"]
    assert 0 < low < row["difference"] < high
    assert high - low < min(one["miou_ci"][1] - one["miou_ci"][0] for one in (first, second))  # pairing narrows it
    assert "new" in result["verdict"]
    assert "chance" not in result["verdict"]
    by_key = {(each["key"], each["of"]): each for each in result["figures"]}
    assert by_key["loss", None]["difference"] == pytest.approx(first["loss"] - second["loss"])
    for name in NAMES:
        for key in ("miou", "dice"):
            expected = first["per_class"][name][key] - second["per_class"][name][key]
            assert by_key[key, name]["difference"] == pytest.approx(expected)


def test_classes_are_compared_by_name(better):
    """The second model numbers them otherwise."""
    order = [2, 0, 3, 1]  # its class at each place
    place = np.array([order.index(at) for at in range(4)] + [IGNORED] * 252, dtype=np.uint8)
    worse = pictures(40)
    plain = compare_masks(tallies(better), tallies(worse), (NAMES, NAMES))
    shuffled = tallies([(logits[order], place[mask]) for logits, mask in worse])
    result = compare_masks(tallies(better), shuffled, (NAMES, [NAMES[at] for at in order]))
    for one, other in zip(plain["figures"], result["figures"], strict=True):
        assert one["difference"] == pytest.approx(other["difference"])
        assert one["ci"] == pytest.approx(other["ci"])
    assert result["classes_left_out"] == []


def test_classes_of_one_model_only_are_left_out(better):
    """Its masks do not know them: their pixels count for nothing there, so they count for nothing here."""
    known = np.array([0, 1, 2, *[IGNORED] * 253], dtype=np.uint8)
    second = tallies([(logits[:3], known[mask]) for logits, mask in pictures(40)])
    result = compare_masks(tallies(better), second, (NAMES, NAMES[:3]))
    assert result["classes_left_out"] == ["dirt"]
    assert {row["of"] for row in result["figures"]} == {None, *NAMES[:3]}
    assert "loss" not in {row["key"] for row in result["figures"]}
    truth, predicted, _ = flat([(logits, known[mask]) for logits, mask in better])
    expected = reference.jaccard_score(truth, predicted, average="macro", labels=range(3))
    assert result["figures"][0]["first"] == pytest.approx(expected)


def test_pictures_that_are_not_the_same_are_refused(better):
    kept = tallies(better, 10)
    with pytest.raises(ConfigError, match="the 40 and the 39 pictures"):
        compare_masks(kept, kept[1:], (NAMES, NAMES))
    with pytest.raises(ConfigError, match="the same pictures"):
        compare_masks(kept, kept[::-1], (NAMES, NAMES))
    with pytest.raises(ConfigError, match="a and b have no class in common"):
        compare_masks(kept, kept, (NAMES, ("w", "x", "y", "z")), names=("a", "b"))
