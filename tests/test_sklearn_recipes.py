"""The scikit-learn recipes run as they stand, on a small draw of the sample set, and give the figures they print."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from transferkit.data.sample import sample_folder

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("sklearn_*.py"))
CHANCE = 1 / 6


@pytest.fixture
def pictures(tmp_path):
    """The first twelve of each class."""
    ignored = [f"{number:03}.jpg" for number in range(12, 60)]
    return shutil.copytree(sample_folder(), tmp_path / "sample", ignore=shutil.ignore_patterns(*ignored))


def run(name, *args, **options):
    return runpy.run_path(str(RECIPES / f"{name}.py"))["main"](*args, **options)


def test_pipeline(pictures, capsys):
    figures = run("sklearn_pipeline", pictures)
    assert figures["accuracy"] > 2 * CHANCE and figures["features"] == 256
    assert f"accuracy {figures['accuracy']:.1%}" in capsys.readouterr().out


def test_grid_search(pictures, capsys):
    figures = run("sklearn_grid_search", pictures, folds=2)
    assert figures["accuracy"] > 2 * CHANCE and figures["fits"] == 25
    assert set(figures["best"]) == {"featureextractor__layer", "svc__C"}
    assert "25 fits" in capsys.readouterr().out


def test_cross_validation(pictures, capsys):
    scores = run("sklearn_cross_validation", pictures, n_jobs=1)
    assert list(scores) == ["logistic probe", "SVM", "5 neighbours"]
    assert all(len(fold) == 8 and fold.mean() > 2 * CHANCE for fold in scores.values())
    said = capsys.readouterr().out
    assert all(f"{np.mean(fold):.1%}" in said for fold in scores.values())


def test_skops(pictures, capsys):
    pytest.importorskip("skops")
    figures = run("sklearn_skops", pictures)
    assert figures["equal"] and figures["untrusted"] == ["transferkit.features.sklearn.FeatureExtractor"]
    assert "equal after loading: True" in capsys.readouterr().out


def test_skops_refuses_what_it_does_not_know(pictures, monkeypatch):
    pytest.importorskip("skops")
    recipe = runpy.run_path(str(RECIPES / "sklearn_skops.py"))
    monkeypatch.setitem(recipe["main"].__globals__, "TRUSTED", ["somebody.Else"])
    with pytest.raises(SystemExit, match="do not load it"):
        recipe["main"](pictures)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_how_and_what(name):
    text = (RECIPES / f"{name}.py").read_text(encoding="utf-8")
    assert f"#   python recipes/{name}.py\n" in text and "# Measured: 2" in text


def test_every_recipe_is_run():
    source = Path(__file__).read_text(encoding="utf-8")
    assert NAMES and [name for name in NAMES if f'run("{name}"' not in source] == []
