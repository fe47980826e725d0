"""An option that means nothing for a kind of answer is refused, with one sentence: none is left out in silence."""

import csv

import numpy as np
import pytest
from PIL import Image

from transferkit.core.targets import TargetSpec
from transferkit.models.parts import Request
from transferkit.models.task import task_named

WORDS = ("--backbone", "test_resnet", "--weights", "random", "--image-size", "32", "--workers", "0")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Twelve pictures with a class, a list of labels, columns of 0 and 1, and a number, a table of each."""
    root = tmp_path_factory.mktemp("answers")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(root / f"{number}.png")
        rows.append((f"{number}.png", "ab"[number % 2], ("x", "x;y", "", "y")[number % 4], number % 2, number / 7))
    for name, at in (("label", 1), ("labels", 2), ("flag", 3), ("target", 4)):
        with (root / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("path", name), *((row[0], row[at]) for row in rows)])
    return root


@pytest.mark.parametrize(
    ("table", "words", "told"),
    [
        ("label", ["--label-separator", ";"], "--label-separator stands between the labels of one cell"),
        (
            "label",
            ["--task", "classification", "--targets", "label"],
            "--targets names columns of 0 and 1 or of numbers",
        ),
        ("label", ["--focal-gamma", "1"], "--focal-gamma is of --loss focal"),
        ("label", ["--calibrate", "conformal"], "cannot be 'conformal', expected one of auto, temperature, vector"),
        ("labels", ["--calibrate", "conformal"], "cannot be 'conformal', expected one of auto, temperature, vector"),
        ("labels", ["--loss", "cross_entropy"], "Expected one of bce, asymmetric, focal"),
        ("labels", ["--monitor", "val_acc"], "Expected one of val_loss, val_map"),
        ("flag", ["--task", "multilabel", "--targets", "flag", "--label-separator", ";"], "are columns of 0 and 1"),
        ("target", ["--label-separator", ";"], "the answers are numbers"),
        ("target", ["--label-smoothing", "0.1"], "--label-smoothing is 0.1, but regression has none"),
        ("target", ["--class-weights", "balanced"], "and these are numbers"),
        ("target", ["--sampler", "balanced"], "--sampler balanced draws classes or labels alike, and regression has"),
        ("target", ["--cutmix", "1"], "a part has no number of its own"),
        ("target", ["--calibrate", "vector"], "cannot be 'vector', expected one of auto, conformal, none"),
    ],
)
def test_finetune_refuses_what_means_nothing(tables, table, words, told, tmp_path, command):  # fault 154
    out = tmp_path / "run"
    status, _, err = command("finetune", "--data", tables / f"{table}.csv", *WORDS, *words, "--out", out, "--quiet")
    assert status == 2 and err.startswith("transferkit: error[config]: ") and err.count("\n") == 1
    assert told in err and not out.exists()


@pytest.mark.parametrize(("table", "words"), [("labels", ["--label-separator", ";"]), ("target", [])])
def test_check_doubts_classes_alone(tables, table, words, tmp_path, command):  # fault 154
    words = [*WORDS, *words, "--fix", tmp_path / "clean.csv", "--fix-labels", "drop", "--out", tmp_path / "page"]
    status, _, err = command("check", "--data", tables / f"{table}.csv", *words, "--quiet")
    assert status == 2 and "--fix-labels drop is for one class per picture" in err
    assert not (tmp_path / "clean.csv").exists()


@pytest.mark.parametrize(
    ("task", "request_", "told"),
    [
        ("classification", Request(coverage=0.9), "--coverage is of the intervals of numbers"),
        ("multilabel", Request(coverage=0.9), "--coverage is of the intervals of numbers"),
        ("multilabel", Request(top_k=2), "--top-k is for one class per picture"),
        ("multilabel", Request(abstention=lambda probs, order: (True, ())), "--abstain is for one class per picture"),
        ("regression", Request(top_k=2), "--top-k is for one class per picture"),
        ("regression", Request(abstention=lambda probs, order: (True, ())), "--abstain is for one class per picture"),
    ],
)
def test_predict_refuses_what_means_nothing(task, request_, told):  # fault 154
    spec = TargetSpec(("a", "b"))
    assert told in task_named(task).of(spec).output.problem(spec, request_)
    assert task_named(task).of(spec).output.problem(spec, Request()) is None


def test_a_rule_of_abstention_needs_a_rate(command, tmp_path):
    status, _, err = command("predict", tmp_path, "x.png", "--abstain-by", "thresholds")
    assert status == 2 and "pass --abstain" in err
