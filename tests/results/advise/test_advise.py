"""The verb: a known better backbone comes first, what cannot be had is left out, and the recipe runs."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from data_sets import draw, table
from PIL import Image
from torch import nn

import transferkit
from transferkit.cli.main import main
from transferkit.core.errors import BackboneError, CheckpointError, ConfigError, DataError, StoreError
from transferkit.core.records import DataConfig
from transferkit.data.batches import dataset
from transferkit.features.engine.engine import Engine
from transferkit.models.backbones import registered
from transferkit.models.backbones.registry import register_backbone
from transferkit.results.advise import advise as story
from transferkit.results.advise.record import PLOT, RECIPE, RECORD, TABLE
from transferkit.training.finetune import finetune

SMALL = DataConfig(image_size=(16, 16), crop_pct=1.0)


class Seen(nn.Module):
    """Features that are the mean colour, as far as they see it: the share of noise is known."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        for layer in (self.first, self.second):
            nn.init.orthogonal_(layer.weight.flatten(1))
            nn.init.zeros_(layer.bias)

    def forward(self, images):
        maps = self.second(self.first(images))
        speed = torch.tensor([1.1e4, 1.7e4, 2.3e4, 3.1e4])  # of the picture, and of nothing in it
        noise = torch.sin(images.mean(dim=(1, 2, 3))[:, None] * speed)[:, :, None, None]
        return maps + self.noise * noise


@pytest.fixture
def known():
    """Two registered backbones, the first of which is the better one."""
    before = dict(registered.REGISTRATIONS)
    register_backbone("clear", data_config=SMALL)(lambda: Seen(0.0))
    register_backbone("blurred", data_config=SMALL)(lambda: Seen(30.0))
    yield [{"backbone": "blurred", "weights": "random"}, {"backbone": "clear", "weights": "random"}]
    registered.REGISTRATIONS.clear()
    registered.REGISTRATIONS.update(before)


def colours(root, count=40, classes=3):
    """Classes are mean colours with noise around them."""
    generator = np.random.default_rng(0)
    for number in range(classes):
        for picture in range(count):
            colour = np.full(3, 110.0)
            colour[number] += 45
            pixels = np.clip(colour + generator.normal(0, 18, 3) + generator.normal(0, 20, (16, 16, 3)), 0, 255)
            path = Path(root) / "train" / f"class{number}" / f"{picture}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.round().astype(np.uint8)).save(path)
    return Path(root)


@pytest.fixture
def options(tmp_path):
    return {"out": str(tmp_path / "advice"), "store": str(tmp_path / "store"), "accelerator": "cpu", "precision": "32",
            "workers": 0, "compile": "off"}  # fmt: skip


MINIS = [{"backbone": "transferkit/mini", "image_size": 32}, {"backbone": "transferkit/mini", "image_size": 48}]


def test_the_better_backbone_comes_first(tmp_path, known, options):
    advice = transferkit.advise(colours(tmp_path / "colours"), backbones=known, depth=False, **options)
    assert [row.name for row in advice.rows] == ["clear", "blurred"]
    first, second = advice.rows
    assert first.figure.value > second.figure.value + 0.1
    assert first.logme > second.logme
    assert first.rank == 1 and first.behind is None
    assert second.behind.low > 0 and "clearly" in second.note
    assert not second.tied


def test_one_clearly_behind_is_dropped_on_a_part_of_the_pictures(tmp_path, known, options):
    data = colours(tmp_path / "colours", count=250)
    quick = transferkit.advise(data, backbones=known, depth=False, **options)
    dropped = quick.rows[1]
    assert (dropped.name, dropped.state, dropped.rank) == ("blurred", "dropped", None)
    total = quick.quadrants.pictures
    assert 256 <= dropped.pictures <= total / 2 + 3  # of each class a rounded half
    assert f"rung 1 of 2, {dropped.pictures} pictures" in dropped.note
    assert quick.best.pictures == total
    whole = transferkit.advise(data, backbones=known, depth=False, halving=False, **{**options, "overwrite": True})
    assert [row.pictures for row in whole.rows] == [total, total]
    assert whole.best.name == quick.best.name
    assert whole.best.figure == quick.best.figure


def test_files_and_what_is_in_them(folder, options, real_figures):
    advice = transferkit.advise(folder, backbones=MINIS, **options)
    out = advice.path
    assert {item.name for item in out.iterdir()} == {"config.yaml", RECIPE, RECORD, TABLE, PLOT}
    with Image.open(out / PLOT) as plot:
        assert plot.size[0] > 500
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    assert [row["rank"] for row in record["candidates"]] == [1, 2]
    assert record["quadrants"]["pictures"] == 24
    assert [row["layer"] for row in record["quadrants"]["depth"]][-1] == "pooled"
    assert set(record["quadrants"]["sentences"]) == {"amount", "source", "depth", "balance", "quadrant"}
    with (out / TABLE).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == [row.name for row in advice.rows]
    assert float(rows[0]["value"]) == pytest.approx(advice.best.figure.value, abs=1e-6)
    cost = record["candidates"][0]["cost"]
    assert cost["parameters"] == 1_246_336
    assert cost["disk"] == pytest.approx(4 * cost["parameters"], rel=0.01)
    assert cost["images_per_s"] > 0
    assert cost["memory"] > 4 * 4 * cost["parameters"]


def test_the_recipe_runs(folder, options, tmp_path):
    advice = transferkit.advise(folder, backbones=MINIS, depth=False, **options)
    text = advice.recipe.read_text(encoding="utf-8")
    lines = text.splitlines()
    recipe = yaml.safe_load(text)
    assert recipe["data"] == str(folder)
    assert recipe["image_size"] == advice.best.candidate.image_size
    for name in recipe:  # each choice has its reason in the line before
        assert lines[next(at for at, line in enumerate(lines) if line.startswith(f"{name}:")) - 1].startswith("# ")
    words = ["finetune", "--config", str(advice.recipe), "--epochs", "1", "--out", str(tmp_path / "run"), "--quiet",
             "--accelerator", "cpu", "--precision", "32", "--workers", "0", "--report", "off"]  # fmt: skip
    assert main(words) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["val"]["acc"] > 0.3


def test_the_recipe_says_what_finetune_would_choose(folder, options, tmp_path):
    """Batch, batch norm and LR are those of `finetune` itself, spelled out."""
    advice = transferkit.advise(folder, backbones=MINIS[:1], depth=False, **options)
    recipe = yaml.safe_load(advice.recipe.read_text(encoding="utf-8"))
    own = finetune(data=str(folder), backbone="transferkit/mini", image_size=32, epochs=10, dry_run=True, quiet=True,
                   accelerator="cpu", precision="32", workers=0, out=str(tmp_path / "run"))  # fmt: skip
    plan = json.loads((own.path / "plan.json").read_text(encoding="utf-8"))
    chosen = {choice["name"]: choice["value"] for choice in plan["choices"]}
    assert {name: recipe[name] for name in ("batch_size", "batch_norm", "lr")} == {
        name: chosen[name] for name in ("batch_size", "batch_norm", "lr")
    }


def test_options_of_the_data_are_in_the_recipe(options, tmp_path):
    rows = [(f"{number}.png", "ab"[number % 2]) for number in range(40)]
    for number, (name, _) in enumerate(rows):
        draw(tmp_path / name, number)
    data = table(tmp_path / "set.csv", *(f"{name},{label}" for name, label in rows), header="path,kind")
    advice = transferkit.advise(data, label_column="kind", val_split=0.2, backbones=MINIS[:1], depth=False, **options)
    recipe = yaml.safe_load(advice.recipe.read_text(encoding="utf-8"))
    assert (recipe["label_column"], recipe["val_split"]) == ("kind", 0.2)


@pytest.mark.slow
def test_a_second_call_computes_no_feature(folder, options, monkeypatch):
    transferkit.advise(folder, backbones=MINIS, **options)
    rows, computed = Engine.rows, []

    def counting(engine, images, *, left=0):
        computed.append(len(images))
        return rows(engine, images, left=left)

    monkeypatch.setattr(dataset.ImageDataset, "batch", _only_for_the_shift(dataset.ImageDataset.batch, computed))
    first = json.loads((Path(options["out"]) / RECORD).read_text(encoding="utf-8"))
    again = transferkit.advise(folder, backbones=MINIS, **{**options, "overwrite": True})
    assert sum(computed) == 24  # the source is asked anew, of the first one alone
    assert [row.figure.value for row in again.rows] == [row["figures"][0]["value"] for row in first["candidates"]]


def _only_for_the_shift(batch, computed):
    def counting(self, keys, **more):
        computed.append(len(keys))
        return batch(self, keys, **more)

    return counting


def test_one_that_cannot_be_had_is_left_out_with_its_reason(folder, options, tmp_path):
    gone = {"backbone": "test_resnet", "weights": str(tmp_path / "gone.safetensors")}
    small = {"backbone": "test_vit", "weights": "random", "image_size": 7}
    advice = transferkit.advise(folder, backbones=[gone, small, MINIS[0]], depth=False, **options)
    assert [(row.state, row.rank) for row in advice.rows] == [("ranked", 1), ("left out", None), ("left out", None)]
    assert "gone.safetensors" in advice.rows[1].note
    assert advice.rows[2].note


def test_weights_that_must_be_fetched_offline_are_left_out(folder, options, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    advice = transferkit.advise(folder, backbones="transferkit/mini@32,resnet18", depth=False, **options)
    assert [row.state for row in advice.rows] == ["ranked", "left out"]
    assert "--weights FILE" in advice.rows[1].note


def test_where_none_can_be_had_every_reason_is_told(folder, options, tmp_path):
    names = [{"backbone": "test_resnet", "weights": str(tmp_path / f"{name}.safetensors")} for name in "ab"]
    with pytest.raises(BackboneError, match=r"none of the candidates can be had: .*a\.safetensors.*b\.safetensors"):
        transferkit.advise(folder, backbones=names, **options)
    assert not Path(options["out"]).exists()


def test_names_that_are_none_are_all_told_at_once(folder, options):
    with pytest.raises(BackboneError, match=r"'resnt18'.*Did you mean.*'effnet'"):
        transferkit.advise(folder, backbones="resnt18,transferkit/mini,effnet", **options)


def test_features_that_are_not_finite_fail_one_candidate(tmp_path, known, options, monkeypatch):
    class Broken(Seen):
        on = False

        def forward(self, images):
            return super().forward(images) * (torch.nan if self.on else 1.0)

    def broken_by_now(*arguments):
        Broken.on = True
        return race(*arguments)

    race = story.race
    monkeypatch.setattr(story, "race", broken_by_now)

    register_backbone("broken", data_config=SMALL)(lambda: Broken(0.0))
    broken = {"backbone": "broken", "weights": "random"}
    data = colours(tmp_path / "colours", count=12)
    advice = transferkit.advise(data, backbones=[broken, known[1]], depth=False, **options)
    assert [row.state for row in advice.rows] == ["ranked", "failed"]
    assert "finite" in advice.rows[1].note
    Broken.on = False
    with pytest.raises(StoreError, match="finite"):
        transferkit.advise(data, backbones=[broken], depth=False, **{**options, "out": str(tmp_path / "other")})


def test_pictures_like_the_source_are_tested(folder, options, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folder / "train", source)
    advice = transferkit.advise(folder, backbones=MINIS[:1], source=str(source), depth=False, **options)
    assert advice.quadrants.source.p > 0.05
    assert "cannot be told from" in advice.quadrants.sentences()["source"]
    for number in range(12):
        draw(tmp_path / "noise" / f"{number}.png", number)
    options |= {"overwrite": True, "source": str(tmp_path / "noise")}
    assert transferkit.advise(folder, backbones=MINIS[:1], depth=False, **options).quadrants.source.p < 0.05


def test_a_source_of_few_pictures_is_refused(folder, options, tmp_path):
    draw(tmp_path / "few" / "1.png", 1)
    with pytest.raises(DataError, match="expected at least 10 of each"):
        transferkit.advise(folder, backbones=MINIS[:1], source=str(tmp_path / "few"), depth=False, **options)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_tasks_without_a_solver_for_vectors_are_sent_elsewhere(folder, options, task):
    with pytest.raises(ConfigError, match="short trainings: search, with a list of backbones"):
        transferkit.advise(folder, task=task, **options)


def test_a_directory_that_is_taken_is_refused_before_any_work(folder, options, monkeypatch):
    out = Path(options["out"])
    out.mkdir()
    (out / "mine.txt").write_text("x", encoding="utf-8")
    monkeypatch.setattr(story, "read_training_pictures", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(CheckpointError, match="is not empty"):
        transferkit.advise(folder, backbones=MINIS[:1], **options)


def test_the_verb_prints_table_sentences_and_what_is_next(folder, options, capsys):
    words = ["advise", "--data", str(folder), "--backbones", "transferkit/mini@32,transferkit/mini@48", "--depth",
             "false", "--out", options["out"], "--store", options["store"], "--accelerator", "cpu", "--precision", "32",
             "--workers", "0"]  # fmt: skip
    assert main(words) == 0
    out = capsys.readouterr().out
    for text in ("transferkit/mini@32", "images/s", "amount", "24 training pictures", "quadrant", "balance",
                 f"transferkit finetune --config {options['out']}"):  # fmt: skip
        assert text in out, text


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--folds", "1", "--backbones", "a@x"], 2),
        (["--backbones", "resnt18"], 4),
        (["--data", "missing"], 3),
        (["--task", "detection"], 2),
    ],
)
def test_exit_statuses(folder, options, words, status, capsys):
    assert (
        main(["advise", "--data", str(folder), "--out", options["out"], "--backbones", "transferkit/mini@32", *words])
        == status
    )
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path(options["out"]).exists()


def test_ctrl_c_keeps_features(folder, options, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(story, "race", stop)
    words = ["advise", "--data", str(folder), "--backbones", "transferkit/mini@32", "--out", options["out"], "--quiet"]
    assert main(words) == 130
    assert "the features computed so far are in the store" in capsys.readouterr().err
    assert not Path(options["out"]).exists()


def test_numbers_and_labels_have_advice_too(options, tmp_path):
    generator = np.random.default_rng(0)
    for number in range(48):
        draw(tmp_path / f"{number}.png", number)
    values = generator.normal(size=48)
    numbers = table(tmp_path / "numbers.csv", *(f"{at}.png,train,{values[at]:.4f}" for at in range(48)),
                    header="path,split,target")  # fmt: skip
    advice = transferkit.advise(numbers, backbones=MINIS, depth=False, val_split=0, **options)
    assert advice.task == "regression"
    assert advice.best.figure.key == "rmse"
    assert "no classes to be uneven" in advice.quadrants.sentences()["balance"]
    labels = table(tmp_path / "labels.csv", *(f"{at}.png,train,{['a', 'b', 'a|b'][at % 3]}" for at in range(48)),
                   header="path,split,labels")  # fmt: skip
    advice = transferkit.advise(labels, backbones=MINIS, depth=False, val_split=0, **{**options, "overwrite": True})
    assert advice.best.figure.key == "map"
    assert "label" in advice.quadrants.sentences()["balance"]
