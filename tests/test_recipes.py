"""Every recipe is one that the command takes; the light ones run."""

import re
from pathlib import Path

import pytest

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
