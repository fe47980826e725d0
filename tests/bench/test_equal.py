"""The script that compares what two releases wrote sees each kind of difference."""

import json

import numpy as np
import pytest
from bench.equal import compare
from safetensors.numpy import save_file


@pytest.fixture
def pair(tmp_path):
    """Two run directories of the same content, from other places and times."""
    for name in ("before", "after"):
        run = tmp_path / name
        run.mkdir()
        save_file({"w": np.arange(6, dtype=np.float32)}, run / "model.safetensors")
        np.savez(run / "features.npz", X=np.ones((2, 3), np.float32), paths=np.array([f"{run}/cat/1.png"]))
        figures = {"val": {"acc": 0.5, "loss": None}, "time_s": len(name)}
        (run / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
        (run / "history.csv").write_text(f"epoch,val_acc,images_per_s\n0,0.5,{len(name)}\n", encoding="utf-8")
        (run / "p.jsonl").write_text('{"label": "cat", "probability": 0.5}\n', encoding="utf-8")
    return tmp_path / "before", tmp_path / "after"


def different(pair):
    return {name: problems for name, _, problems in compare(*pair) if problems}


def test_equal_runs(pair):
    assert different(pair) == {}
    assert len(compare(*pair)) == 5


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("metrics.json", "0.5", "0.6", "largest difference 1.0e-01 at val.acc"),
        ("metrics.json", "null", "0.1", "val.loss: None -> 0.1"),
        ("metrics.json", '"acc"', '"accuracy"', "only before: val.acc"),
        ("history.csv", "0,0.5", "1,0.5", "largest difference 1.0e+00 at [0].epoch"),
        ("p.jsonl", "cat", "dog", "[0].label: 'cat' -> 'dog'"),
    ],
)
def test_a_value_that_differs(pair, name, old, new, problem):
    path = pair[1] / name
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    assert different(pair)[name][0].startswith(problem)


def test_bits_that_differ_and_files_that_are_missing(pair):
    weights = np.arange(6, dtype=np.float32)
    weights[3] = np.nextafter(weights[3], 9)
    save_file({"w": weights}, pair[1] / "model.safetensors")
    np.savez(pair[1] / "features.npz", X=np.ones((2, 3), np.float64), paths=np.array([f"{pair[1]}/dog/1.png"]))
    (pair[1] / "p.jsonl").unlink()
    assert different(pair) == {
        "model.safetensors": ["w: largest difference 2.4e-07"],
        "features.npz": ["X: float32 (2, 3) -> float64 (2, 3)", "paths: other values"],
        "p.jsonl": ["only before"],
    }
