"""Several labels per picture, part by part: readers, losses, figures, calibration, mixing, against other libraries."""

import numpy as np
import pytest
import torch
from data_sets import draw, index, labels_of, refused, table
from scipy.optimize import minimize
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    hamming_loss,
    log_loss,
    precision_recall_curve,
    precision_score,
    recall_score,
)
from timm.loss.asymmetric_loss import AsymmetricLossMultiLabel
from torch.nn import functional

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning
from transferkit.core.targets import TargetSpec
from transferkit.data.index.labels import LabelReader, LabelTargets, _other_separator
from transferkit.data.index.targets import inferred_task
from transferkit.models.answers.multilabel import LabelHeads, LabelObjective
from transferkit.models.calibration.labels import (
    NEVER,
    LabelCalibration,
    best_threshold,
    fit_label_calibration,
    precise_threshold,
)
from transferkit.models.details import Answered
from transferkit.models.figures.labels import average_precisions, label_metrics
from transferkit.models.parts import LossOptions, Request
from transferkit.options.data import DataOptions
from transferkit.results.details.labels import LabelDetails
from transferkit.results.predict.labels import LabelOutput
from transferkit.results.report.labels import _count, _few

READER = LabelReader()


def pictures(root, count=6):
    for number in range(count):
        draw(root / f"{number}.bmp", number)
    return root


def manifest(root, *rows, header="path,labels,split"):
    pictures(root)
    return table(root / "m.csv", *rows, header=header)


def read(path, **options):
    return index(path, reader=READER, task="multilabel", **options)


def guesses(count=80, labels=5, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    truth = rng.random((count, labels)) < [0.5, 0.2, 0.1, 0.3, 0.4]
    probs = 1 / (1 + np.exp(-(2 * truth - 1 + rng.normal(0, 1.5, (count, labels)))))
    return (probs.round(1) if ties else probs).astype(np.float32), truth.astype(np.float32)


# ---- columns and reader -------------------------------------------------------------------------------------------


def test_a_list_column_with_spaces_empty_cells_and_doubles(tmp_path):
    rows = ("0.bmp, dog | cat ,train", "1.bmp,,train", "2.bmp,cat|cat,train", "3.bmp,dog,val", "4.bmp,|,val")
    data = read(manifest(tmp_path, *rows))
    assert data.class_names == ("cat", "dog")
    told = labels_of(data)
    texts = [told[key] for key in sorted(told)]
    assert data.targets.encode(texts).tolist() == [[1, 1], [0, 0], [1, 0], [0, 1], [0, 0]]
    assert data.counts() == {"train": {"cat": 2, "dog": 1, "no label": 1}, "val": {"cat": 0, "dog": 1, "no label": 1}}
    notes = " ".join(finding.message for finding in data.findings)
    assert "2 of 5 pictures have no label at all" in notes and "labels without a val picture" in notes


def test_another_separator(tmp_path):
    path = manifest(tmp_path, "0.bmp,a;b,train", "1.bmp,b,val")
    assert read(path, label_separator=";").class_names == ("a", "b")
    assert refused(path, "untrained", reader=READER, task="multilabel")[1]  # 'a;b' is one label otherwise


def test_columns_of_0_and_1(tmp_path):
    rows = ("0.bmp,1,0,train", "1.bmp,true,1,train", "2.bmp,,0,train", "3.bmp,0.0,yes,val")
    path = manifest(tmp_path, *rows, header="path,cat,dog,split")
    data = read(path, targets="dog,cat")
    assert data.class_names == ("dog", "cat")
    told = labels_of(data)
    assert data.targets.encode([told[key] for key in sorted(told)]).tolist() == [[0, 1], [1, 1], [0, 0], [1, 0]]


def test_a_cell_that_is_neither_0_nor_1_is_named_with_its_row(tmp_path):
    path = manifest(tmp_path, "0.bmp,1,0,train", "1.bmp,2,1,train", header="path,cat,dog,split")
    message, _ = refused(path, "layout", "empty", reader=READER, task="multilabel", targets="cat,dog")
    assert "'2' in 'cat', expected 0 or 1" in message and "line 3" in message


def test_a_label_only_in_val_is_refused_and_named(tmp_path):
    path = manifest(tmp_path, "0.bmp,cat,train", "1.bmp,dog,val")
    message, _ = refused(path, "untrained", reader=READER, task="multilabel")
    assert "'dog'" in message and "add such pictures to train" in message


def test_no_label_at_all_is_refused(tmp_path):
    path = manifest(tmp_path, "0.bmp,,train", "1.bmp,,val")
    message, _ = refused(path, "empty", reader=READER, task="multilabel")
    assert "no training picture has any label" in message


def test_a_label_without_positives_is_refused_unless_allowed_and_one_that_all_have_is_said(tmp_path):
    rows = ("0.bmp,1,0,1,train", "1.bmp,1,0,0,train", "2.bmp,1,0,1,val")
    path = manifest(tmp_path, *rows, header="path,a,b,c,split")
    message, _ = refused(path, "empty", reader=READER, task="multilabel", targets="a,b,c")
    assert "labels that no training picture has: 'b'" in message
    data = read(path, targets="a,b,c", allow_empty_classes=True)
    assert any("all training pictures have" in finding.message for finding in data.findings)


def test_names_are_compared_in_nfc():
    targets = LabelTargets(("caf\u00e9", "tea"))
    assert targets.find("cafe\u0301|tea") == [0, 1]
    assert targets.find("cafe") is None and targets.find("") == []


def test_the_stratum_is_the_rarest_label():
    targets = LabelTargets(("a", "b", "c"))
    assert targets.strata(["a|b", "a", "a|b|c", "", "a"]).tolist() == [1, 0, 2, 3, 0]


@pytest.mark.parametrize(
    ("header", "row", "options", "expected"),
    [
        ("path,labels", "0.bmp,a", {}, "multilabel"),
        ("path,label", "0.bmp,a|b", {}, "classification"),
        ("path,a,b", "0.bmp,0,1", {"targets": "a,b"}, "multilabel"),
        ("path,a,b", "0.bmp,0,1.5", {"targets": "a,b"}, "regression"),
        ("path,label,labels", "0.bmp,a,b", {}, "classification"),
    ],
)
def test_the_task_is_seen_by_the_columns(tmp_path, header, row, options, expected):
    path = manifest(tmp_path, row, header=header)
    assert inferred_task(DataOptions(data=str(path), **options))[0] == expected


# ---- figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_figures_are_those_of_scikit_learn(ties):
    probs, truth = guesses(ties=ties)
    values = label_metrics(probs, truth, tuple("abcde"))
    given = probs >= 0.5
    assert average_precisions(probs, truth > 0.5) == pytest.approx(average_precision_score(truth, probs, average=None))
    assert values["map"] == pytest.approx(average_precision_score(truth, probs, average="macro"))
    assert values["f1_macro"] == pytest.approx(f1_score(truth, given, average="macro"))
    assert values["f1_micro"] == pytest.approx(f1_score(truth, given, average="micro"))
    assert values["subset_acc"] == pytest.approx(accuracy_score(truth, given))
    assert values["hamming"] == pytest.approx(hamming_loss(truth, given))
    assert values["loss"] == pytest.approx(np.mean([log_loss(truth[:, at], probs[:, at].astype(float).clip(1e-7, 1))
                                                    for at in range(5)]), rel=1e-4)  # fmt: skip
    for at, name in enumerate("abcde"):
        row = values["per_label"][name]
        assert row["precision"] == pytest.approx(precision_score(truth[:, at], given[:, at], zero_division=np.nan))
        assert row["recall"] == pytest.approx(recall_score(truth[:, at], given[:, at]))
        assert row["n"] == truth[:, at].sum()


def test_a_label_without_positives_has_no_figure_and_none_stands_in_for_it():
    probs, truth = guesses()
    truth[:, 1] = 0
    values = label_metrics(probs, truth, tuple("abcde"))
    assert values["per_label"]["b"]["ap"] is None and values["per_label"]["b"]["recall"] is None
    rest = [0, 2, 3, 4]
    assert values["map"] == pytest.approx(average_precision_score(truth[:, rest], probs[:, rest]))
    nothing = label_metrics(probs, np.zeros_like(truth), tuple("abcde"))
    assert nothing["map"] is None and nothing["none"]["n"] == 80


def test_a_bootstrap_interval_holds_the_figure_and_narrows_with_more_pictures():
    few, many = (label_metrics(*guesses(count), tuple("abcde")) for count in (60, 600))
    for values in (few, many):
        for key in ("map", "f1_macro", "f1_micro", "hamming", "loss"):
            low, high = values[f"{key}_ci"]
            assert low <= values[key] <= high
    assert np.ptp(many["map_ci"]) < np.ptp(few["map_ci"])


def test_a_rare_label_has_an_interval_though_some_draws_lack_it():
    probs, truth = guesses()
    truth[:, 2] = 0
    truth[[3, 9, 40], 2] = 1
    low, high = label_metrics(probs, truth, tuple("abcde"))["per_label"]["c"]["ap_ci"]
    assert 0 < low < high <= 1


# ---- losses -------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_the_papers():
    logits, targets = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.eye(6, 4)
    objective = LabelObjective()
    plain = objective.loss(LossOptions(), 4)(logits, targets)
    probs = logits.sigmoid()
    by_hand = -(targets * probs.log() + (1 - targets) * (1 - probs).log())
    assert plain == pytest.approx(by_hand.mean().item(), rel=1e-5)
    assert objective.item_losses(logits, targets).tolist() == pytest.approx(by_hand.mean(dim=1).tolist(), rel=1e-5)
    weighted = objective.loss(LossOptions(class_weights=[1.0, 2.0, 3.0, 4.0]), 4)(logits, targets)
    heavier = torch.where(targets > 0, by_hand * torch.tensor([1.0, 2.0, 3.0, 4.0]), by_hand)
    assert weighted == pytest.approx(heavier.mean().item(), rel=1e-5)
    sure = torch.where(targets > 0, probs, 1 - probs)
    focal = objective.loss(LossOptions("focal", focal_gamma=2.0), 4)(logits, targets)
    assert focal == pytest.approx(((1 - sure) ** 2 * by_hand).mean().item(), rel=1e-5)
    shifted = (probs - 0.05).clamp_min(0)
    asymmetric = torch.where(
        targets > 0, -(1 - probs) * probs.clamp_min(1e-8).log(), -(shifted**4) * (1 - shifted).log()
    )
    assert objective.loss(LossOptions("asymmetric"), 4)(logits, targets) == pytest.approx(
        asymmetric.mean().item(), rel=1e-4
    )
    theirs = AsymmetricLossMultiLabel()  # a sum over labels, and over the batch in some releases
    soft = torch.rand(1, 4, generator=torch.Generator().manual_seed(1))
    own = objective.loss(LossOptions("asymmetric"), 4)(logits[:1], soft)
    assert own == pytest.approx(theirs(logits[:1], soft).item() / 4, rel=1e-5)
    smooth = objective.loss(LossOptions(label_smoothing=0.2), 4)(logits, targets)
    expected = functional.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1)
    assert smooth == pytest.approx(expected.item(), rel=1e-5)


def test_what_is_wrong_with_a_loss_is_said():
    with pytest.raises(ConfigError, match=r"unknown loss 'bec'.*bce"):
        LabelObjective().loss(LossOptions("bec"), 3)
    with pytest.raises(ConfigError, match="weighs --loss bce"):
        LabelObjective().loss(LossOptions("focal", class_weights=[1.0]), 1)
    assert LabelHeads().problems(0) and not LabelHeads().problems(1)


def test_balanced_weights_are_negatives_over_positives():
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    assert LabelObjective().balanced(targets, 3) == [3.0, 1.0, 1.0]


def test_figures_that_are_watched_are_those_of_an_evaluation():
    probs, truth = guesses()
    values = label_metrics(probs, truth, tuple("abcde"))
    metrics = LabelObjective().metrics(["map", "f1_macro", "f1_micro", "subset_acc", "hamming"], 5)
    for name, metric in metrics.items():
        metric.update(torch.from_numpy(probs[:30]), torch.from_numpy(truth[:30]))
        metric.update(torch.from_numpy(probs[30:]), torch.from_numpy(truth[30:]))
        assert float(metric.compute()) == pytest.approx(values[name], abs=1e-6)
    with pytest.raises(ConfigError, match="no figure 'acc' to watch"):
        LabelObjective().metrics(["acc"], 5)


# ---- mixing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(0.8, 0.0), (0.0, 1.0)])
def test_mixing_mixes_labels_by_the_share_of_the_pictures(options):
    mixer = READER.mixer(TargetSpec(("a", "b", "c")), *options)
    torch.manual_seed(0)
    first = torch.zeros(2, 3, 16, 16)
    first[1] = 1.0
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    images, mixed = mixer(first.clone(), targets)
    share = float(images[0].mean())  # of the second picture in the first
    assert 0 < share < 1
    assert mixed[0].tolist() == pytest.approx([1 - share, 1.0, share], abs=1e-5)


# ---- calibration --------------------------------------------------------------------------------------------------


def made_logits(count=400, seed=1):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 3))
    truth = rng.random((count, 3)) < 1 / (1 + np.exp(-(logits * [0.5, 1.5, 0.7] + [0.0, -1.0, 0.5])))
    return torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(truth.astype(np.float32))


def test_temperature_and_platt_scaling_reach_the_minimum_of_another_optimiser():
    logits, truth = made_logits()
    x, y = logits.double().numpy(), truth.double().numpy()
    fitted, _ = fit_label_calibration(logits, truth, method="temperature")
    best = minimize(lambda t: np.mean(np.logaddexp(0, x / t) - y * x / t), [1.0], method="Nelder-Mead",
                    options={"xatol": 1e-8, "fatol": 1e-12}).x[0]  # fmt: skip
    assert fitted.temperature == pytest.approx(best, rel=1e-3)
    vector, _ = fit_label_calibration(logits, truth, method="vector")
    for at in range(3):

        def loss(both, at=at):
            z = x[:, at] * both[0] + both[1]
            return np.sum(np.logaddexp(0, z) - y[:, at] * z) + 0.5 * ((both[0] - 1) ** 2 + both[1] ** 2)

        found = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x
        assert (vector.scale[at], vector.bias[at]) == pytest.approx(tuple(found), rel=1e-2, abs=1e-3)
    assert vector.figures["loss_after"] < vector.figures["loss_before"]
    assert LabelCalibration.from_dict(vector.to_dict()) == vector


def test_a_picture_is_judged_by_a_calibration_that_has_not_seen_it():
    logits, truth = made_logits(60)
    _, before = fit_label_calibration(logits, truth, method="vector")
    truth[7] = 1 - truth[7]
    _, after = fit_label_calibration(logits, truth, method="vector")
    assert torch.equal(before[7], after[7]) or (before - after).abs()[7].max() < (before - after).abs().max()


def test_the_threshold_is_that_of_the_largest_f1():
    rng = np.random.default_rng(5)
    truth = (rng.random(120) < 0.3).astype(float)
    probs = np.clip(truth * 0.2 + rng.random(120) * 0.8, 0, 1)
    precision, recall, limits = precision_recall_curve(truth, probs)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    mine = best_threshold(probs, truth)
    assert f1_score(truth, probs >= mine) == pytest.approx(f1[:-1].max())
    assert mine not in probs and len(limits)
    assert best_threshold(probs, np.r_[np.ones(4), np.zeros(116)]) == 0.5  # too few to choose by


def test_nothing_to_calibrate_on_is_said_and_probabilities_stay():
    logits, truth = made_logits(5)
    with pytest.warns(TransferkitWarning, match="too few"):
        fitted, probs = fit_label_calibration(logits, truth)
    assert fitted is None and torch.equal(probs, logits.sigmoid())
    with pytest.raises(ConfigError, match="expected one of temperature, vector"):
        fit_label_calibration(logits, truth, method="isotonic")
    with pytest.raises(CheckpointError, match="cannot be read"):
        LabelCalibration.from_dict({"method": "vector"})
    with pytest.raises(ConfigError, match="another model"):
        LabelCalibration("vector", (1.0,), (0.0,), (0.5,)).probs(logits)


# ---- output -------------------------------------------------------------------------------------------------------


def test_records_hold_the_labels_over_their_thresholds():
    spec = TargetSpec(("a", "b", "c"), {"thresholds": [0.2, 0.6, 0.5]})
    output = LabelOutput()
    record = output.record("x.png", np.array([0.3, 0.55, 0.7], dtype=np.float32), spec, Request())
    assert record.labels == ("c", "a")
    assert output.cells(record, spec, Request()) == [["c|a", "0.300000", "0.550000", "0.700000"]]
    assert output.header(spec, Request()) == ["labels", "p_a", "p_b", "p_c"]
    assert output.values(record)["labels"] == ["c", "a"]
    assert output.record("y", np.full(3, 0.1, dtype=np.float32), spec, Request()).labels == ()
    rows = output.rows(torch.tensor([[0.3, 0.55, 0.7]]), torch.tensor([[1.0, 1.0, 0.0]]), spec)
    assert rows[0][:3] == ("a|b", "a|c", "2")
    loss = -np.log([0.3, 0.55, 0.3]).mean()
    assert float(rows[0][3]) == pytest.approx(loss, abs=1e-5)


# ---- two models ---------------------------------------------------------------------------------------------------


def test_two_models_are_compared_by_the_labels_that_both_have():
    probs, truth = guesses(300)
    worse = np.clip(probs + np.random.default_rng(1).normal(0, 0.5, probs.shape), 0, 1).astype(np.float32)
    first = Answered(torch.from_numpy(probs), torch.from_numpy(truth), TargetSpec(tuple("abcde")))
    turned = [3, 0, 1, 2]
    second = Answered(torch.from_numpy(worse[:, turned]), torch.from_numpy(truth[:, turned]), TargetSpec(tuple("dabc")))
    values = LabelDetails().compare(first, second, names=("ours", "theirs"), seed=0)
    row = values["figures"][0]
    assert row["first"] == pytest.approx(average_precision_score(truth[:, :4], probs[:, :4]))
    assert row["second"] == pytest.approx(average_precision_score(truth[:, :4], worse[:, :4]))
    assert row["ci"][0] > 0 and "that may be chance" not in values["verdict"]
    assert values["labels_left_out"] == ["e"] and "left out: e" in LabelDetails().compared(values)
    table_ = LabelDetails().differences({"val": values})
    assert table_[0][:3] == ("split", "figure", "of") and len(table_) == 1 + 3 + 4
    same = LabelDetails().compare(first, first, names=("ours", "ours"), seed=0)
    assert same["figures"][0]["difference"] == 0 and "may be chance" in same["verdict"]
    alien = Answered(first.predictions, first.targets, TargetSpec(tuple("vwxyz")))
    with pytest.raises(ConfigError, match="no label in common"):
        LabelDetails().compare(first, alien, names=("ours", "theirs"), seed=0)


def test_the_threshold_of_a_precision_is_the_lowest_that_reaches_it():  # fault 155
    rng = np.random.default_rng(4)
    probs = rng.random(200).round(2)  # with ties
    truth = (rng.random(200) < probs).astype(float)
    for rate in (0.6, 0.8, 0.95):
        limit = precise_threshold(probs, truth, precision=rate)
        reached = [at for at in np.unique(probs) if (given := probs >= at).sum() >= max(10, 1 / (1 - rate))
                   and truth[given].mean() >= rate]  # fmt: skip
        assert limit == NEVER if not reached else (probs >= limit).sum() == (probs >= min(reached)).sum()
    assert precise_threshold(probs, np.zeros(200), precision=0.5) == NEVER
    assert precise_threshold(probs[:9], np.ones(9), precision=0.5) == NEVER  # too few to vouch for it
    with pytest.raises(ConfigError, match="precision is 1"):
        precise_threshold(probs, truth, precision=1.0)
    logits = torch.from_numpy(rng.normal(size=(60, 2)).astype(np.float32))
    targets = torch.stack([(logits[:, 0] > 0).float(), (torch.rand(60) < 0.5).float()], dim=1)
    fitted, _ = fit_label_calibration(logits, targets, precision=0.9)
    assert fitted.thresholds[1] == NEVER > fitted.thresholds[0]
    assert LabelCalibration.from_dict(fitted.to_dict()) == fitted


def test_the_interval_of_many_rare_labels_holds_its_figure():
    rng = np.random.default_rng(5)
    truth = (rng.random((60, 40)) < 0.05).astype(np.float32)
    values = label_metrics(rng.random((60, 40)).astype(np.float32), truth, [f"n{at}" for at in range(40)])
    low, high = values["map_ci"]
    assert low < values["map"] < high  # a picture drawn twice lies next to itself: plain percentiles lie above
    assert all(0 <= bound <= 1 for row in values["per_label"].values() if row["ap_ci"] for bound in row["ap_ci"])


def test_a_page_of_very_many_labels_stays_readable():  # fault 156
    names = [f"n{at}" for at in range(300)]
    assert _few(names[:8]) == names[:8] and _few(names) == [*names[:8], "292 more"]
    assert (_count(0.123), _count(3.21), _count(210.7), _count(1234.5)) == ("0.12", "3.2", "211", "1,234")


def test_a_label_that_holds_the_mark_of_lists_is_refused(tmp_path):  # fault 157
    path = manifest(tmp_path, "0.bmp,a|b;c,train", "1.bmp,c,train")
    message, _ = refused(path, "layout", reader=READER, task="multilabel", label_separator=";")
    assert "expected labels without '|' in them" in message and "line 2" in message
    with pytest.raises(ConfigError, match="labels without '|'"):
        READER.columns_of(DataOptions(data="-", targets=["a|b", "c"]))


def test_another_separator_is_seen(tmp_path):  # fault 157
    rows = [f"{at}.bmp,{text},train" for at, text in enumerate(("a;b", "a", "b;c", "c;a", "b", "c"))]
    found = read(manifest(tmp_path, *rows)).findings
    assert any("--label-separator ';'" in finding.message for finding in found)
    assert _other_separator({"a-b", "b;c", "R&B"}) is None and _other_separator({"a/b", "b/a", "a"}) == "/"
