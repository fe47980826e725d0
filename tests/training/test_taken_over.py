"""A run that starts from another: rows of its head go by name, the others start from the solved probe."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import transferkit as tk
from transferkit.core.errors import TransferkitWarning
from transferkit.core.targets import TargetSpec
from transferkit.models.answers.classification import ClassHeads
from transferkit.models.answers.regression import NumberHeads

TINY = {"backbone": "test_resnet", "weights": "random", "image_size": 32, "precision": "32", "accelerator": "cpu",
        "workers": 0, "phases": "probe", "probe_views": 0, "report": "off", "calibrate": "none"}  # fmt: skip
COLOURS = {"blue": (20, 20, 230), "green": (20, 230, 20), "red": (230, 20, 20)}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Tables of pictures with patches: two labels, three labels; two classes, three classes."""
    root = tmp_path_factory.mktemp("patches")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        pixels = rng.integers(60, 120, (32, 32, 3), dtype=np.uint8)
        own = [name for name in COLOURS if rng.random() < 0.5] or ["red"]
        for place, name in enumerate(own):
            pixels[8 * place : 8 * place + 8] = COLOURS[name]
        Image.fromarray(pixels).save(root / f"{number}.png")
        rows.append((f"{number}.png", own, "train" if number < 45 else "val"))
    for name, column, cell in (
        ("two_labels", "labels", lambda own: "|".join(one for one in own if one != "green")),
        ("three_labels", "labels", "|".join),
        ("two_classes", "label", lambda own: own[0] if own[0] != "green" else "red"),
        ("three_classes", "label", lambda own: own[0]),
    ):
        with (root / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            lines = [(path, cell(own), split) for path, own, split in rows]
            csv.writer(stream).writerows([("path", column, "split"), *lines])
    return root


def head(run):
    tensors = load_file(run.path / "model.safetensors")
    return tensors["head.linear.weight"], tensors["head.linear.bias"]


@pytest.mark.parametrize("kind", ["labels", "classes"])
def test_known_rows_are_taken_over_and_the_others_solved(tables, kind, tmp_path, capsys):  # fault 98
    small = tk.finetune(data=str(tables / f"two_{kind}.csv"), out=str(tmp_path / "a"), quiet=True, **TINY)
    large = {"data": str(tables / f"three_{kind}.csv"), **TINY}
    solved = tk.finetune(out=str(tmp_path / "b"), quiet=True, **large)
    capsys.readouterr()
    with pytest.warns(TransferkitWarning, match="names that start fresh: 'green'"):
        both = tk.finetune(init_from=str(small.path), out=str(tmp_path / "c"), **large)
    assert f"'blue', 'red' as in {small.path}; solved on these pictures: 'green'" in capsys.readouterr().out
    for before, anew, now in zip(head(small), head(solved), head(both), strict=True):
        assert now[[0, 2]].equal(before)
        shift = (before - anew[[0, 2]]).mean(dim=0) if kind == "classes" else 0.0
        assert torch.allclose(now[1], anew[1] + shift, atol=1e-5)
    assert both.metrics["phases"][0]["kept"] == ["blue", "red"]
    again = tk.finetune(init_from=str(solved.path), out=str(tmp_path / "d"), quiet=True, **large)
    assert all(now.equal(before) for before, now in zip(head(solved), head(again), strict=True))
    with pytest.warns(TransferkitWarning, match="start fresh"):
        anew = tk.finetune(init_from=str(small.path), probe="solve", out=str(tmp_path / "e"), quiet=True, **large)
    assert all(torch.allclose(now, before, atol=1e-6) for before, now in zip(head(solved), head(anew), strict=True))


def test_rows_of_numbers_say_the_same_in_other_units():
    theirs = TargetSpec(("a", "b"), {"mean": [10.0, 0.0], "scale": [2.0, 1.0]})
    ours = TargetSpec(("c", "a"), {"mean": [0.0, 4.0], "scale": [1.0, 5.0]})
    weight, bias, features = torch.randn(3), torch.tensor(0.7), torch.randn(5, 3)
    places = {"theirs": (theirs, 0), "ours": (ours, 1)}
    row, moved = (NumberHeads().row(values, bias=at, **places) for values, at in ((weight, False), (bias, True)))
    assert torch.allclose((features @ weight + bias) * 2 + 10, (features @ row + moved) * 5 + 4, atol=1e-5)


def test_what_all_logits_share_says_nothing():
    taken, solved = torch.randn(3, 4), torch.randn(3, 4)
    rows = ClassHeads().joined(taken, solved, [0, 2])
    assert rows[[0, 2]].equal(taken[[0, 2]])
    assert torch.allclose(ClassHeads().joined(solved + 7, solved, [0, 2]), solved + 7)
