"""Every recipe is one that the command takes; the light ones run."""

import csv
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.cli.main import main
from transferkit.cli.parser import parse_options
from transferkit.cli.verbs import VERBS
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.training.plan.options import resolve_phases

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_sound(recipe):
    command = re.search(rf"transferkit (\w+) --config recipes/{recipe.name}", recipe.read_text(encoding="utf-8"))
    assert command  # it opens with its command
    config = make_config(VERBS[command[1]].options, parse_options(command[1], ["--config", str(recipe)]))
    if isinstance(config, FinetuneConfig):
        assert resolve_phases(config, None)
    assert recipe.name in (recipe.parent / "README.md").read_text(encoding="utf-8")


def test_phases_written_out_run(folder, tmp_path):
    words = [
        "--data",
        folder,
        "--image-size",
        32,
        "--batch-size",
        8,
        "--precision",
        32,
        "--quiet",
        "--out",
        tmp_path / "r",
    ]
    recipe = RECIPES[[path.stem for path in RECIPES].index("gradual")]
    assert main(["finetune", "--config", str(recipe), *map(str, words)]) == 0
    assert (tmp_path / "r" / "model.json").exists()


def test_lora_runs(folder, tmp_path):
    recipe = next(path for path in RECIPES if path.stem == "lora")
    words = "--backbone transferkit/mini --weights bundled --image-size 32 --epochs 1 --batch-size 8 --precision 32"
    out = ["--data", str(folder), "--out", str(tmp_path / "r")]
    assert main(["finetune", "--config", str(recipe), *words.split(), "--quiet", *out]) == 0
    assert (tmp_path / "r" / "model.json").exists()


# ---- two heads --------------------------------------------------------------------------------------------------

TWO_HEADS = Path(__file__).parent.parent / "recipes" / "two_heads.py"
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
SMALL = {"backbone": "test_resnet", "weights": "random", "size": 32, "accelerator": "cpu", **QUIET}


@pytest.fixture
def scales(folder, tmp_path):
    """A manifest of the drawn shapes: their kind, and as their weight how bright they are; of three two lack one."""
    rows = [("path", "kind", "weight", "split")]
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        weight = f"{100 + np.asarray(Image.open(path)).mean():.3f}"
        kind, weight = (("", weight), (path.parent.name, ""), (path.parent.name, weight))[number % 3]
        rows.append((path.relative_to(folder.parent).as_posix(), kind, weight, path.parts[-3]))
    manifest = tmp_path / "scales.csv"
    with manifest.open("w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows(rows)
    (tmp_path / folder.name).symlink_to(folder)
    return manifest


def recipe():
    """Run the recipe as a file of its own; its head is registered once."""
    return runpy.run_path(str(TWO_HEADS))


@pytest.fixture(scope="module")
def two_heads():
    return recipe()


@pytest.mark.parametrize("uncertainty", [False, True])
def test_two_heads_learn_from_what_each_has(scales, two_heads, uncertainty):
    torch.manual_seed(0)
    model, figures = two_heads["main"](scales, uncertainty=uncertainty, epochs=(2, 15), **SMALL)
    assert set(figures) >= {"train_acc", "train_mae", "val_acc", "val_mae"}
    assert figures["train_acc"] > 0.6 and figures["train_mae"] < 0.7 * model.scale, figures
    assert bool((model.head.log_variances != 0).all()) is uncertainty
    assert model.mean == pytest.approx(np.mean([float(row["weight"]) for row in known(scales)]), rel=1e-6)


def known(manifest):
    with manifest.open(encoding="utf-8", newline="") as table:
        return [row for row in csv.DictReader(table) if row["weight"] and row["split"] == "train"]


def test_a_batch_without_one_of_the_answers_teaches_the_other_head(two_heads):
    """No NaN of an empty mean (open-edge-platform/geti 2377, JayYip/m3tl 35), and no gradient of what is not known."""
    model = two_heads["KindAndWeight"]("test_resnet", 4, "kind-and-weight", weights="random", image_size=32)
    model.mean, model.scale, model.uncertainty = 5.0, 2.0, False
    model.log = lambda name, value, batch_size: logged.update({name: (value.detach(), batch_size)})
    logged, images, missing = {}, torch.randn(4, 3, 32, 32), float("nan")
    for targets, of in (
        (torch.tensor([[0, missing], [1, missing], [2, missing], [1, missing]]), "kind"),
        (torch.tensor([[missing, 1.0], [missing, 2.0], [missing, 5.0], [missing, 3.0]]), "weight"),
        (torch.full((4, 2), missing), ""),
    ):
        model.zero_grad()
        loss = model.training_step((images, targets), 0)
        loss.backward()
        assert loss.isfinite()
        for name in ("kind", "weight"):
            assert bool(getattr(model.head, name).weight.grad.abs().sum() > 0) is (name == of)
    with torch.no_grad():
        outputs = model.eval()(images)
    targets = torch.tensor([[0, 7.0], [1, missing], [missing, 3.0], [2, missing]])
    losses = model.losses((images, targets), "val")
    kind = torch.nn.functional.cross_entropy(outputs[[0, 1, 3], :3], torch.tensor([0, 1, 2]))
    weight = (outputs[[0, 2], 3] - torch.tensor([1.0, -1.0])).square().mean()
    torch.testing.assert_close(losses, torch.stack((kind, weight)))
    assert logged["val_acc"][1] == 3 and logged["val_mae"][1] == 2


def test_two_heads_are_fewer_than_60_lines():
    text = TWO_HEADS.read_text(encoding="utf-8")
    assert text.count("\n") < 60 and TWO_HEADS.name in (TWO_HEADS.parent / "README.md").read_text(encoding="utf-8")
