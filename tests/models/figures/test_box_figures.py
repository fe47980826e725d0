"""Figures of boxes against faster-coco-eval and torchmetrics, and what breaks in others' figures."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from detections import by_library, by_torchmetrics, drawn

from transferkit.core.errors import ConfigError
from transferkit.models.detections import matching
from transferkit.models.detections.counts import KEYS, BoxCounts, best_thresholds, curves
from transferkit.models.detections.matching import AREAS, NOTHING, RIGHT, WRONG, matched
from transferkit.models.detections.ranking import RECALLS, reached
from transferkit.models.figures import boxes as boxes_module
from transferkit.models.figures.boxes import BoxTally, Thresholds, box_tally
from transferkit.models.figures.detection import box_figures, box_metrics, compare_boxes

# pycocotools 2.0.11 decodes masks in the old way (measured with numpy 2.4)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

NAMES = ("cell", "nucleus", "dirt")
FEW = {"resamples": 40}


def tally(found=(), true=(), crowd=None):
    """Detections as (box, score, class), objects as (box, class)."""
    return BoxTally(
        boxes=np.array([box for box, _, _ in found], dtype=np.float32).reshape(-1, 4),
        scores=np.array([score for _, score, _ in found], dtype=np.float32),
        classes=np.array([label for *_, label in found], dtype=np.int64),
        true_boxes=np.array([box for box, _ in true], dtype=np.float32).reshape(-1, 4),
        true_classes=np.array([label for _, label in true], dtype=np.int64),
        crowd=np.zeros(len(true), dtype=bool) if crowd is None else np.array(crowd),
    )


def values_of(*tallies, names=NAMES, thresholds=None):
    return box_metrics(tallies, names, thresholds, **FEW)


A, B, C = [0, 0, 10, 10], [20, 20, 50, 40], [60, 10, 100, 90]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("masks", [False, True])
def test_equal_the_library(seed, masks):
    """Every class, size and overlap: crowds, equal scores, pictures without objects and without detections."""
    tallies = drawn(seed=seed, masks=masks, count=8 if masks else 14)
    tallies[0] = replace(tallies[0], true_classes=np.zeros_like(tallies[0].true_classes))
    counts = BoxCounts(tallies, range(4))  # the fourth class is nowhere
    judge = by_library(tallies, 4, masks=masks)
    precision = judge.eval["precision"][..., -1]
    expected = np.where(precision < 0, np.nan, precision).mean(axis=1).transpose(1, 2, 0)
    result = counts.rankings[masks].precision(np.ones(len(tallies)))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    assert np.isnan(result[3]).all()
    assert np.isfinite(result[:3, 0]).all()
    for label in range(3):
        curve = counts.rankings[masks].curve(label)
        np.testing.assert_allclose(curve, precision[0, :, label, 0], rtol=0, atol=1e-6)
    values = box_metrics(tallies, (*NAMES, "absent"), **FEW)
    stats = judge.stats_as_dict
    keys = ("mask_map", "mask_map50") if masks else KEYS
    named = ("AP_all", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large")
    for key, name in zip(keys, named, strict=False):
        if stats[name] < 0:  # the library's sign for objects that are not there
            assert (values[key], values[f"{key}_ci"]) == (None, None)
        else:
            assert values[key] == pytest.approx(stats[name], abs=1e-6)
    low, high = values[f"{keys[0]}_ci"]
    assert low < values[keys[0]] < high


@pytest.mark.parametrize("masks", [False, True])
def test_equal_torchmetrics(masks):
    tallies = drawn(seed=7, masks=masks, count=10)
    values = box_metrics(tallies, NAMES, **FEW)
    expected = by_torchmetrics(tallies, masks=masks)
    front = "mask_" if masks else ""
    keys = {"map": "map", "map50": "map_50"}
    if not masks:
        keys |= {"map75": "map_75", "map_small": "map_small", "map_medium": "map_medium", "map_large": "map_large"}
    for key, name in keys.items():
        value = values[front + key]
        assert (-1 if value is None else value) == pytest.approx(float(expected[name]), abs=1e-6)
    per_class = dict(zip(expected["classes"].tolist(), expected["map_per_class"].tolist(), strict=True))
    for at, name in enumerate(NAMES):
        assert values["per_class"][name][front + "map"] == pytest.approx(per_class[at], abs=1e-6)


HAND_MADE = {
    "all right": ([tally([(A, 0.9, 0), (B, 0.8, 1)], [(A, 0), (B, 1)])], 1.0),
    "one class of two is missed": ([tally([(A, 0.9, 0)], [(A, 0), (B, 1)])], 0.5),
    "a confident false alarm": ([tally([(C, 0.9, 0), (A, 0.8, 0)], [(A, 0)])], 0.5),
    "a false alarm that is less sure": ([tally([(A, 0.9, 0), (C, 0.8, 0)], [(A, 0)])], 1.0),
    "a double": ([tally([(A, 0.9, 0), (A, 0.8, 0), (B, 0.7, 0)], [(A, 0), (B, 0)])], (51 + 50 * 2 / 3) / 101),
    "the wrong class": ([tally([(A, 0.9, 1)], [(A, 0)])], 0.0),
    # Lightning-AI/torchmetrics#794: objects of a picture without detections were forgotten.
    "a picture without detections": ([tally([(A, 0.9, 0)], [(A, 0)]), tally([], [(A, 0)])], 51 / 101),
    # Lightning-AI/torchmetrics#881, #2746: a false alarm in a picture without objects.
    "a picture without objects": ([tally([(A, 0.9, 0)]), tally([(A, 0.5, 0)], [(A, 0)])], 0.5),
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made(name):
    tallies, expected = HAND_MADE[name]
    values = values_of(*tallies)
    assert values["map50"] == pytest.approx(expected, abs=1e-6)
    assert values["map50"] == pytest.approx(float(by_torchmetrics(tallies)["map_50"]), abs=1e-6)


def test_the_first_object_can_be_found():
    """cocodataset/cocoapi#507, pytorch/vision#1530, roboflow/supervision#1895, faster_coco_eval#77: objects and classes
    that were numbered from 0 were never found, and the only object of a set gave 0."""
    for label in range(3):
        values = values_of(tally([(A, 0.9, label)], [(A, label)]))
        assert (values["map"], values["recall"], values["precision"]) == (1.0, 1.0, 1.0)


def test_nothing_is_found_at_all():
    """cocodataset/cocoapi#450, #675, Lightning-AI/torchmetrics#601: no detection was an error, or -1."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = values_of(tally([], [(A, 0), (B, 1)]), tally([], [(A, 0)]))
    assert [values[key] for key in ("map", "map50", "map75", "f1", "recall")] == [0.0] * 5
    assert (values["precision"], values["threshold"]) == (None, None)
    assert values["per_class"]["cell"]["map"] == 0.0
    assert values["curves"]["cell"] == [0.0] * 101
    assert values["mistakes"] == {"double": 0, "wrong class": 0, "badly placed": 0, "background": 0, "missed": 3}


def test_pictures_without_any_object():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = values_of(tally([(A, 0.9, 0)]), tally())
    assert [values[key] for key in (*KEYS, "f1", "precision", "recall", "threshold")] == [None] * 10
    assert [values[f"{key}_ci"] for key in KEYS] == [None] * 6
    assert (values["objects"], values["detections"]) == (0, 1)
    json.dumps(values, allow_nan=False)


def test_a_class_that_is_nowhere_is_left_out():
    """bes-dev/mean_average_precision#23, rafaelpadilla/review_object_detection_metrics#152, AlexeyAB/darknet#1768: it
    counted as 0; Lightning-AI/torchmetrics#1184: as -1, for people to find out."""
    tallies = drawn(seed=1)
    values, more = box_metrics(tallies, NAMES, **FEW), box_metrics(tallies, (*NAMES, "absent"), **FEW)
    for key in (*KEYS, "f1", "precision", "recall"):
        assert values[key] == pytest.approx(more[key])
        assert values[f"{key}_ci"] == pytest.approx(more[f"{key}_ci"])
    absent = more["per_class"]["absent"]
    known = {key: value for key, value in absent.items() if value is not None}
    assert known == {"n": 0, "objects": 0, "predicted": 0}
    assert more["curves"]["absent"] is None


def test_a_class_that_is_only_predicted_is_left_out_of_the_mean_and_seen():
    """As COCO has it; precision over all classes tells of it, and so do the mistakes."""
    values = values_of(tally([(A, 0.9, 0), (C, 0.95, 2)], [(A, 0)]), thresholds=Thresholds(0.5, (0.5, 0.5, 0.5)))
    assert values["map"] == 1.0
    assert values["per_class"]["dirt"]["predicted"] == 1
    assert values["per_class"]["dirt"]["precision"] is None
    assert values["precision"] == 0.5
    assert values["mistakes"]["background"] == 1


def test_crowds_are_neither_to_be_found_nor_wrong_to_find():
    """rafaelpadilla/Object-Detection-Metrics#71, cocodataset/cocoapi#444: difficult objects counted against a model."""
    wide = [0, 0, 100, 100]
    inside = [([10, 10, 30, 30], 0.99, 0), ([50, 50, 80, 80], 0.98, 0)]
    one = tally([*inside, (B, 0.5, 1)], [(wide, 0), (B, 1)], crowd=[True, False])
    values = values_of(one)
    assert values["map"] == 1.0  # of the second class; the first has only a crowd
    assert values["per_class"]["cell"]["map"] is None
    assert (values["objects"], values["crowd"]) == (1, 1)
    assert values["precision"] == 1.0
    assert sum(values["mistakes"].values()) == 0
    [states] = [one.states[0, 0].tolist() for one in matched([one], [0])]
    assert states == [NOTHING, NOTHING]


def test_sizes_are_those_of_the_picture_not_of_the_canvas():
    """tianzhi0549/FCOS#81, tensorflow/models#6884: 100 x 100 pixels of a picture are 25 x 25 of its canvas."""
    import torch

    truth = {"boxes": [[100, 100, 200, 200]], "classes": [0]}
    one = box_tally(torch.tensor([[25.0, 25.0, 50.0, 50.0, 0.9, 0.0]]), (0, 0, 64, 64), (256, 256), **truth)
    values = values_of(one)
    assert (values["map_small"], values["map_medium"], values["map_large"]) == (None, None, 1.0)


def test_sizes_of_masks_are_their_own():
    """open-mmlab/mmdetection#4898: of masks the areas of boxes were taken."""
    one = drawn(count=1, objects=3, detections=5, seed=2, crowd=0, masks=True)[0]
    box = np.array([[10, 10, 50, 50]], dtype=np.float32)  # 1,600 pixels are medium; its mask of a quarter is small
    small = {"boxes": box, "scores": np.array([0.9], np.float32), "classes": np.array([0]), "true_boxes": box}
    from detections import discs

    part = discs([[10, 10, 30, 30]])
    one = replace(one, **small, true_classes=np.array([0]), crowd=np.array([False]), masks=part, true_masks=part)
    areas = [matched([one], [0], masks=masks)[0].counted[:, 0].tolist() for masks in (False, True)]
    assert AREAS == ("all", "small", "medium", "large")
    assert areas == [[True, False, True, False], [True, True, False, False]]


def test_boxes_are_corners_not_sides():
    """facebookresearch/detectron2#2957, Cartucho/mAP#70: heights that were bottoms gave 0 without a word."""
    values = values_of(tally([([30, 40, 50, 90], 0.9, 0)], [([30, 40, 50, 90], 0)]))
    assert values["map"] == 1.0
    flipped = tally([([30, 40, 50, 90], 0.9, 0)], [([30, 90, 50, 40], 0)])
    with pytest.raises(ConfigError, match=r"an object's box is \[30.0, 90.0, 50.0, 40.0\], expected left, top, right"):
        values_of(flipped)


def test_an_object_of_no_area_is_missed_and_nothing_breaks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = values_of(tally([(A, 0.9, 0), ([5, 5, 5, 5], 0.8, 0)], [([5, 5, 5, 5], 0), (A, 0)]))
    assert values["recall"] == 0.5
    assert 0 < values["map50"] < 1


def test_many_objects_of_a_picture_are_counted():  # fault 168
    """facebookresearch/detectron2#3359, cocodataset/cocoapi#584: a hundred detections of a class count; who has more
    objects must be told, or a perfect model looks poor."""
    corners = [[10 * at, 0, 10 * at + 8, 8] for at in range(130)]
    perfect = tally([(box, 0.9, 0) for box in corners], [(box, 0) for box in corners])
    values = values_of(perfect, tally([(A, 0.9, 0)], [(A, 0)]))
    assert values["beyond"] == 30
    assert values["map"] == pytest.approx(float(by_library([perfect, tally([(A, 0.9, 0)], [(A, 0)])], 1).stats[0]))
    assert values["map"] < 1


def test_figures_are_of_the_set_not_means_over_pictures():
    """ultralytics/yolov5#2227: means over groups of pictures are another number."""
    tallies = drawn(count=20, seed=3, crowd=0)
    whole = box_metrics(tallies, NAMES, **FEW)["map"]
    means = [box_metrics([one], NAMES)["map"] for one in tallies]
    assert abs(np.mean([value for value in means if value is not None]) - whole) > 0.02
    assert whole == pytest.approx(by_library(tallies, 3).stats[0], abs=1e-6)


def test_measuring_twice_gives_the_same():
    tallies = drawn(seed=4)
    assert box_metrics(tallies, NAMES, **FEW) == box_metrics(tallies, NAMES, **FEW)


def test_the_bootstrap_counts_whole_pictures():
    """Weights give the figures of pictures that are really there several times."""
    tallies = drawn(count=16, seed=5, ties=False, masks=True)
    counts = BoxCounts(tallies, range(3))
    weights = np.random.default_rng(1).integers(0, 3, len(tallies))
    repeated = [one for one, times in zip(tallies, weights, strict=True) for _ in range(times)]
    expected = BoxCounts(repeated, range(3)).figures(np.ones(len(repeated)))
    np.testing.assert_allclose(counts.figures(weights), expected, rtol=0, atol=1e-9)
    judge = by_library(repeated, 3)
    assert counts.figures(weights)[:6] == pytest.approx(judge.stats[:6], abs=1e-6)


def test_one_picture_has_figures_and_no_interval():
    values = box_metrics(drawn(count=1), NAMES)
    assert values["map"] is not None
    assert [values[f"{key}_ci"] for key in (*KEYS, "f1")] == [None] * 7


def test_intervals_hold_the_truth():
    """Pictures of one source: 95 % intervals hold the figure of all of them about as often."""
    source = drawn(count=400, objects=3, detections=8, classes=1, seed=6, crowd=0, ties=False)
    truth = BoxCounts(source, [0]).figures(np.ones(len(source)))[1]
    generator, held = np.random.default_rng(0), 0
    for _ in range(40):
        some = [source[at] for at in generator.choice(len(source), 60, replace=False)]
        low, high = box_metrics(some, ("cell",), resamples=100)["map50_ci"]
        held += low <= truth <= high
    assert 33 <= held <= 40


def test_thresholds_are_those_of_the_best_f1():
    """Against a search through all scores; ultralytics/ultralytics#18592 asked for them."""
    tallies = drawn(count=20, seed=8)
    counts = BoxCounts(tallies, range(3))
    chosen = best_thresholds(counts)

    def f1(places, threshold):
        right = wrong = objects = 0
        for one in (counts.matched[place] for place in places):
            states = one.states[0, 0][one.scores >= threshold]
            right, wrong = right + (states == RIGHT).sum(), wrong + (states == WRONG).sum()
            objects += len(one.owners)
        return 2 * right / (right + wrong + objects)

    for places, threshold in ((range(3), chosen.every), *(([at], chosen.of_class[at]) for at in range(3))):
        scores = np.unique(np.concatenate([counts.matched[place].scores for place in places]))
        best = max(f1(places, score) for score in scores)
        assert f1(places, threshold) == best
        assert threshold == max(score for score in scores if f1(places, score) == best)
    values = box_metrics(tallies, NAMES, **FEW)
    assert (values["f1"], values["threshold"], values["chosen_here"]) == (
        f1(range(3), chosen.every),
        chosen.every,
        True,
    )
    assert values["f1_ci"][0] < values["f1"] < values["f1_ci"][1]
    precision, recall = values["precision"], values["recall"]
    assert values["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    row = values["per_class"]["nucleus"]
    assert row["f1"] == pytest.approx(f1([1], row["threshold"]))
    assert row["f1"] == pytest.approx(2 * row["precision"] * row["recall"] / (row["precision"] + row["recall"]))


def test_thresholds_of_other_pictures_are_taken():
    """What is chosen on val is measured on test as it is, not chosen again."""
    one = tally([(A, 0.9, 0), (B, 0.4, 0), (C, 0.3, 1)], [(A, 0), (B, 0), (C, 1)])
    values = values_of(one, thresholds=Thresholds(0.5, (0.35, None, None)))
    assert (values["threshold"], values["chosen_here"]) == (0.5, False)
    assert (values["precision"], values["recall"]) == (1.0, pytest.approx(1 / 3))
    assert values["per_class"]["cell"]["recall"] == 1.0
    assert values["per_class"]["nucleus"]["recall"] == 0.0
    assert values_of(one)["threshold"] == pytest.approx(0.3)
    with pytest.raises(ConfigError, match="thresholds of 2 classes, expected 3"):
        values_of(one, thresholds=Thresholds(0.5, (0.5, 0.5)))


def test_equal_scores_are_told_together():
    one = tally([(A, 0.5, 0), (C, 0.5, 0), (B, 0.5, 0)], [(A, 0), (B, 0)])
    values = values_of(one)
    assert (values["threshold"], values["precision"], values["recall"]) == (0.5, pytest.approx(2 / 3), 1.0)


def test_recalls_are_reached_to_the_last_bit():
    recalls = np.concatenate([np.arange(of + 1) / of for of in range(1, 301)])
    np.testing.assert_array_equal(reached(recalls), np.searchsorted(RECALLS, recalls, side="right"))


def test_curves_fall():
    counts = BoxCounts(drawn(seed=9), range(3))
    for curve in curves(counts):
        assert curve.shape == (101,)
        assert (np.diff(curve) <= 0).all()


def test_figures_are_records():
    values = box_metrics(drawn(masks=True, count=6), NAMES, **FEW)
    figures = box_figures(values)
    whole = [figure.key for figure in figures if figure.of is None]
    assert whole == [*KEYS, "mask_map", "mask_map50", "f1", "precision", "recall"]
    keys = ("map", "map50", "map75", "mask_map", "mask_map50", "f1", "precision", "recall")
    assert [(figure.of, figure.key) for figure in figures if figure.of] == [
        (name, key) for name in NAMES for key in keys
    ]
    for figure in figures:
        assert figure.value == (values if figure.of is None else values["per_class"][figure.of])[figure.key]
        assert (figure.unit, figure.higher_is_better) == ("share", True)
        assert ("the classes" in figure.meaning or "over classes" in figure.meaning) <= (figure.of is None)
        assert figure.label.startswith("Mean") == (figure.of is None and "map" in figure.key)
    for figure in figures:
        assert (figure.ci is None) == (figure.value is None or (figure.of is not None and figure.key in whole[-3:]))
    json.dumps(values, allow_nan=False)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ConfigError, match="no predictions to measure"):
        box_metrics([], NAMES)
    with pytest.raises(ConfigError, match="a box is of class 2, expected 0 to 1 by the names"):
        box_metrics([tally([(A, 0.9, 2)])], NAMES[:2])
    with pytest.raises(ConfigError, match="masks of objects are to be measured, but a picture has none"):
        BoxCounts([tally([(A, 0.9, 0)])], range(3), masks=True)


def test_without_the_library_the_error_says_what_to_type(monkeypatch):
    monkeypatch.setattr(boxes_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"faster-coco-eval, not installed - pip install 'transferkit\[dense\]'"):
        box_metrics(drawn(count=2), NAMES)


@pytest.mark.parametrize("state", [(), ([1], [1], [0.9], [False], [False], [], [])])
def test_a_library_that_keeps_its_matches_otherwise_is_refused(monkeypatch, state):  # fault 167
    class Other:
        def __getstate__(self):
            return state

    from faster_coco_eval import COCOeval_faster

    monkeypatch.setattr(COCOeval_faster, "evaluate", lambda self: setattr(self, "_evalImgs_cpp", [Other()] * 4))
    with pytest.raises(ConfigError, match=r"keeps its matches in another way .* pip install 'faster-coco-eval>=1.8"):
        matched([tally([(A, 0.9, 0)], [(A, 0)])], [0])


def test_the_overlaps_are_the_librarys(monkeypatch):
    monkeypatch.setattr(matching, "IOUS", (0.5, 0.75))
    with pytest.raises(ConfigError, match="keeps its matches in another way"):
        matched([tally([(A, 0.9, 0)], [(A, 0)])], [0])


@pytest.fixture(scope="module")
def better():
    """The detections of `drawn`, moved halfway to their objects."""
    made = []
    for one in drawn(count=40, seed=10, ties=False):
        boxes = one.boxes.copy()
        for at, box in enumerate(boxes):
            if len(one.true_boxes):
                nearest = np.abs(one.true_boxes - box).sum(axis=1).argmin()
                boxes[at] = (box + one.true_boxes[nearest]) / 2
        made.append(replace(one, boxes=boxes))
    return made


def test_a_comparison_is_paired(better):
    worse = drawn(count=40, seed=10, ties=False)
    result = compare_boxes(better, worse, (NAMES, NAMES), names=("new", "old"), resamples=100)
    first, second = (box_metrics(made, NAMES, resamples=100) for made in (better, worse))
    row = result["figures"][0]
    assert (row["key"], row["of"], result["n"], result["classes_left_out"]) == ("map", None, 40, [])
    assert (row["first"], row["second"]) == (first["map"], second["map"])
    assert row["difference"] == pytest.approx(first["map"] - second["map"])
    low, high = row["ci"]
    assert 0 < low < row["difference"] < high
    assert high - low < min(one["map_ci"][1] - one["map_ci"][0] for one in (first, second))  # pairing narrows it
    assert "Mean AP: new" in result["verdict"]
    assert "chance" not in result["verdict"]
    by_key = {(each["key"], each["of"]): each for each in result["figures"]}
    assert by_key["map50", "dirt"]["first"] == first["per_class"]["dirt"]["map50"]
    assert set(by_key) == {(key, None) for key in KEYS} | {(key, name) for key in KEYS[:3] for name in NAMES}


def test_a_model_against_itself(better):
    result = compare_boxes(better, better, (NAMES, NAMES), resamples=40)
    assert {row["difference"] for row in result["figures"]} == {0.0}
    assert "chance" in result["verdict"]


def test_classes_are_compared_by_name(better):
    """The second model numbers them otherwise, and lacks one."""
    worse = drawn(count=40, seed=10, ties=False)
    plain = compare_boxes(better, worse, (NAMES, NAMES), resamples=40)
    place = np.array([1, 0, 2])  # its class for ours; the third it calls something else
    other = [replace(one, classes=place[one.classes], true_classes=place[one.true_classes]) for one in worse]
    result = compare_boxes(better, other, (NAMES, ("nucleus", "cell", "blood")), resamples=40)
    assert result["classes_left_out"] == ["blood", "dirt"]
    rows = {(row["key"], row["of"]): row for row in result["figures"]}
    for row in plain["figures"]:
        if row["of"] in NAMES[:2]:
            assert rows[row["key"], row["of"]]["difference"] == pytest.approx(row["difference"])
    assert ("map", "dirt") not in rows


def test_masks_are_compared_where_both_have_some():
    tallies = drawn(count=5, masks=True)
    without = [replace(one, masks=None, true_masks=None) for one in tallies]
    keys = {row["key"] for row in compare_boxes(tallies, tallies, (NAMES, NAMES), resamples=10)["figures"]}
    assert {"mask_map", "mask_map50"} < keys
    assert "mask_map" not in {
        row["key"] for row in compare_boxes(tallies, without, (NAMES, NAMES), resamples=10)["figures"]
    }


def test_pictures_that_are_not_the_same_are_refused(better):
    with pytest.raises(ConfigError, match="the 40 and the 39 pictures have other objects"):
        compare_boxes(better, better[1:], (NAMES, NAMES))
    with pytest.raises(ConfigError, match="have other objects"):
        compare_boxes(better, better[::-1], (NAMES, NAMES))
    with pytest.raises(ConfigError, match="a and b have no class in common"):
        compare_boxes(better, better, (NAMES, ("w", "x", "y")), names=("a", "b"))
