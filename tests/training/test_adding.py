"""Classes added to a solved probe: exactly what fitting everything at once gives, without the old pictures."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from transferkit.core.csv import read_csv
from transferkit.core.errors import CheckpointError
from transferkit.features.linear.logistic import MISSING_LOGIT
from transferkit.features.linear.statistics import SHARPNESS, RowStatistics

COLOURS = {"blue": (60, 60, 200), "green": (60, 200, 60), "grey": (128, 128, 128), "red": (200, 60, 60)}
OLD = ("blue", "red")
OPTIONS = ("--backbone", "test_resnet", "--weights", "random", "--image-size", "32", "--precision", "32", "--quiet")


def rows(count=80, width=6, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, count)
    X = generator.normal(size=(count, width)) * (1 + np.arange(width)) + 2.0 * y[:, None]
    return X.astype(np.float32), y


def test_the_solution_is_that_of_scikit_learn():
    X, y = rows()
    (model,) = RowStatistics.of(X, y, ("a", "b", "c")).solve([0.01])
    scaler = StandardScaler().fit(X.astype(np.float64))
    expected = Ridge(alpha=0.01 * len(X)).fit(scaler.transform(X.astype(np.float64)), np.eye(3)[y])
    assert model.logits(X.astype(np.float64)) == pytest.approx(
        SHARPNESS * expected.predict(scaler.transform(X.astype(np.float64))), abs=1e-6
    )


def test_sums_add_up_whatever_the_order_of_classes():
    X, y = rows()
    old, new = y < 2, y == 2
    before = RowStatistics.of(X[old], y[old], ("b", "c"))
    after = before + RowStatistics.of(X[new], np.zeros(new.sum(), dtype=int), ("a",))
    assert after.names == ("a", "b", "c")
    both = RowStatistics.of(X, (y + 1) % 3, ("a", "b", "c"))
    for one, two in zip(after.solve([0.1, 10.0]), both.solve([0.1, 10.0]), strict=True):
        assert one.weight == pytest.approx(two.weight, abs=1e-9) and one.bias == pytest.approx(two.bias, abs=1e-9)
    without = both - RowStatistics.of(X[new], (y[new] + 1) % 3, ("a", "b", "c"))
    assert without.solve([0.1])[0].bias[0] == MISSING_LOGIT  # no row of it is left
    assert without.sums == pytest.approx(before.sums)


def test_a_constant_feature_and_weights():
    X, y = rows()
    X[:, 0] = 7.0
    weight = np.random.default_rng(1).integers(1, 4, len(X))
    (model,) = RowStatistics.of(X, y, ("a", "b", "c"), weight).solve([0.1])
    repeated = RowStatistics.of(np.repeat(X, weight, axis=0), np.repeat(y, weight), ("a", "b", "c")).solve([0.1])[0]
    assert (model.weight[:, 0] == 0).all()
    assert model.weight == pytest.approx(repeated.weight, abs=1e-9)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes, two more, and all four together."""
    root, generator = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for number in range(24):
            pixels = (np.array(colour) + generator.normal(0, 60, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            for part in ("old" if name in OLD else "new", "all"):
                (root / part / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / part / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory):
    """A probe on two classes, two more added to it, and a probe on all four."""
    from transferkit.cli.main import main

    out = tmp_path_factory.mktemp("runs")
    store = ("--store", str(out / "store"))
    strength = out / "strength.yaml"
    words = {
        "old": ["--data", pictures / "old", "--classifier", "ridge"],
        "added": ["--add", pictures / "new", "--to", out / "old"],
        "all": ["--config", strength, "--data", pictures / "all", "--classifier", "ridge"],
    }
    for name, own in words.items():
        if name == "all":
            chosen = json.loads((out / "old" / "metrics.json").read_text(encoding="utf-8"))["probe"]["strength"]
            strength.write_text(f"classifier_args:\n  strength: {chosen}\n", encoding="utf-8")
        assert main(["probe", *map(str, own), *OPTIONS, *store, "--calibrate", "none", "--out", str(out / name)]) == 0
    return out


def test_adding_equals_fitting_on_everything_at_once(runs):
    added, everything = (load_file(runs / name / "model.safetensors") for name in ("added", "all"))
    for name in ("head.linear.weight", "head.linear.bias"):
        assert added[name] == pytest.approx(everything[name], abs=1e-6)
    model = json.loads((runs / "added" / "model.json").read_text(encoding="utf-8"))
    assert model["classes"] == sorted(COLOURS)
    probe = json.loads((runs / "added" / "metrics.json").read_text(encoding="utf-8"))["probe"]
    assert (probe["classifier"], probe["new_classes"]) == ("ridge", ["green", "grey"])
    assert probe["added_to"] == str(runs / "old")


@pytest.mark.filterwarnings("default::transferkit.core.errors.TransferkitWarning")  # the verb prints them
def test_the_run_has_the_pictures_of_both(runs, pictures, command):
    listed = {(row["sha256"], row["split"]) for row in read_csv(runs / "added" / "pictures.csv")}
    assert listed == {(row["sha256"], row["split"]) for row in read_csv(runs / "all" / "pictures.csv")}
    status, _, err = command("evaluate", runs / "added", pictures / "all", "--out", runs / "evaluation")
    assert status == 0 and "was trained on 65 of these 96 pictures" in err
    assert json.loads((runs / "evaluation" / "metrics.json").read_text(encoding="utf-8"))["all"]["acc"] > 0.9


@pytest.mark.filterwarnings("default::transferkit.core.errors.TransferkitWarning")  # the verb prints them
def test_pictures_are_not_added_twice(runs, pictures, tmp_path, command):
    words = ["probe", "--add", pictures / "new", "--to", runs / "added", *OPTIONS, "--store", runs / "store",
             "--calibrate", "none", "--out", tmp_path / "again"]  # fmt: skip
    status, _, err = command(*words)
    assert status == 0 and "not added again" in err
    one, two = (load_file(place / "model.safetensors") for place in (runs / "added", tmp_path / "again"))
    assert one["head.linear.weight"] == pytest.approx(two["head.linear.weight"], abs=1e-9)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--add", "new"], 2, "--add and --to belong together"),
        (["--to", "old"], 2, "--add and --to belong together"),
        (["--add", "new", "--to", "old", "--data", "new"], 2, "--data cannot be had with --add"),
        (["--add", "new", "--to", "old", "--classifier", "knn"], 2, "--add goes on with ridge"),
        (["--add", "new", "--to", "old", "--image-size", "64"], 2, "--image-size is 64, and was 32"),
        (["--add", "new", "--to", "missing"], 6, "expected a run of `transferkit probe --classifier ridge`"),
        ([], 2, "--data is missing"),
    ],
)
def test_what_cannot_be_added_says_so(runs, pictures, tmp_path, command, words, status, message):
    places = {"new": pictures / "new", "old": runs / "old", "missing": tmp_path}
    options = [*OPTIONS, "--out", tmp_path / "out"]
    if "--image-size" in words:
        options = [option for option in options if option not in ("--image-size", "32")] + ["--precision", "32"]
        options = ["--backbone", "test_resnet", "--weights", "random", "--quiet", "--out", tmp_path / "out"]
    seen, _, err = command("probe", *(places.get(word, word) for word in words), *options)
    assert seen == status, err
    assert message in err and not (tmp_path / "out").exists()


def test_features_of_another_network_are_refused(runs, pictures, tmp_path, command):
    shutil.copytree(runs / "old", tmp_path / "old")
    statistics, facts = RowStatistics.read(tmp_path / "old")
    statistics.save(tmp_path / "old", {**facts, "weights_sha256": "0" * 64})
    words = ["probe", "--add", pictures / "new", "--to", tmp_path / "old", *OPTIONS, "--out", tmp_path / "out"]
    status, _, err = command(*words)
    assert status == 6 and "other weights_sha256" in err


@pytest.mark.parametrize("damage", ["cut", "shape", "nan"])
def test_a_damaged_file_is_one_error(runs, tmp_path, damage):
    path = tmp_path / "statistics.safetensors"
    data = (runs / "old" / "statistics.safetensors").read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-8])
    else:
        parts = load_file(runs / "old" / "statistics.safetensors")
        parts["sums"] = parts["sums"][:-1] if damage == "shape" else parts["sums"] * np.nan
        save_file(parts, path, metadata={"classes": '["blue", "red"]', "facts": "{}"})
    with pytest.raises(CheckpointError, match="cannot be read"):
        RowStatistics.read(tmp_path)
