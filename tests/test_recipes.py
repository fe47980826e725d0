"""Every recipe is one that the command takes; the light ones run."""

from pathlib import Path

import pytest

from transferkit.cli import main, parse_options
from transferkit.config import FinetuneConfig, make_config
from transferkit.training.options import resolve_phases

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_sound(recipe):
    config = make_config(FinetuneConfig, parse_options("finetune", ["--config", str(recipe)]))
    assert resolve_phases(config, None)
    assert f"recipes/{recipe.name}" in recipe.read_text()  # it opens with its command
    assert recipe.name in (recipe.parent / "README.md").read_text()


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
