"""From options to a training, for a task that is not the package's own."""

import dataclasses
import logging
from pathlib import Path

import pytest
from PIL import Image
from small_runs import make_module

from transferkit.core.errors import ConfigError, TransferkitWarning
from transferkit.data.batches.datamodule import ImageData
from transferkit.models import task as tasks
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.runs.seen import warn_of_seen
from transferkit.runs.write import write_data
from transferkit.training.loop.early_stop import ByFigure, Selection
from transferkit.training.loop.interruption import SignalFlag
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.loop.recorder import RunRecorder
from transferkit.training.plan.options import resolve_options
from transferkit.training.plan.phases import Phase
from transferkit.training.setup import prepare


@pytest.fixture
def options(quick, monkeypatch):
    """Options of a task whose heads can only be trained."""
    task = dataclasses.replace(tasks.task_named("classification"), name="unsolved", solver=None)
    monkeypatch.setitem(tasks._REGISTERED, "unsolved", task)
    return {**quick, "task": "unsolved", "probe_epochs": None}


def test_without_a_solver_the_head_is_trained_and_one_line_says_so(options, caplog):
    with caplog.at_level(logging.INFO, "transferkit"):
        training = prepare(make_config(FinetuneConfig, options), quiet=True)
    assert [(phase.name, phase.epochs, phase.solve) for phase in training.phases] == [
        ("probe", 3, False), ("finetune", 2, False)
    ]  # fmt: skip
    assert "the head is trained for 3 epochs: unsolved has no solver for it" in caplog.messages


@pytest.mark.parametrize("phases", ["probe-finetune", [{"name": "a", "solve": True}]])
def test_a_solved_phase_needs_a_solver(options, phases):
    with pytest.raises(ConfigError, match="a solved phase has no solver for unsolved - train the head by steps"):
        resolve_options({**options, "phases": phases, "probe": "solve"})


def test_a_phase_ends_with_the_first_figure_that_its_task_watches(tmp_path):
    module = make_module()
    objective = dataclasses.replace(module.task.objective, running=(), watched=("f1_macro", "acc"))
    module.task = dataclasses.replace(module.task, objective=objective)
    selection = Selection("val_loss", ByFigure(higher_is_better=False), patience=None)
    recorder = RunRecorder(tmp_path, module, PhaseSchedule([Phase("all", 1)]), selection, SignalFlag())
    assert recorder.history.figures == ("train_loss", "val_loss", "val_f1_macro")


@pytest.mark.parametrize("again", [False, True])
def test_weights_that_were_trained_on_what_is_measured_are_said(pets, tmp_path, again):  # fault 99
    earlier = ImageData(pets, image_size=32, seed=0).index
    (tmp_path / "run").mkdir()
    write_data(tmp_path / "run", earlier, skip_bad=False)
    trained = {record.sha256 for record in earlier.split("train")}
    config = make_config(FinetuneConfig, {"data": str(pets), "init_from": str(tmp_path / "run"), "seed": 1})
    data = ImageData(pets, image_size=32, seed=1)
    held = [record.sha256 in trained for record in data.index.records if record.split != "train"]
    if again:  # the same pictures, of the same splits, under other bytes
        rows = [(record.split, record.label, saved_again(record.path, tmp_path / "again")) for record in
                data.index.records]  # fmt: skip
        lines = [",".join(("path", "label", "split")), *(f"{path},{label},{split}" for split, label, path in rows)]
        (tmp_path / "again" / "m.csv").write_text("\n".join(lines), encoding="utf-8")
        data = ImageData(tmp_path / "again" / "m.csv", image_size=32)
    with pytest.warns(
        TransferkitWarning, match=f"was trained on {sum(held)} of these {len(held)} val and test pictures"
    ):
        warn_of_seen([config.init_from, None], data.index)
    warn_of_seen([config.init_from, None], ImageData(pets, image_size=32, seed=0).index)  # the same splits


def saved_again(path, folder):
    """Write a picture as PNG, and return the name of the file."""
    folder.mkdir(exist_ok=True)
    name = f"{Path(path).parent.name}-{Path(path).stem}.png"
    Image.open(path).save(folder / name)
    return name


def test_the_split_has_a_seed_of_its_own(quick, pets):
    def splits(**seeds):
        config = make_config(FinetuneConfig, {**quick, "data": str(pets), **seeds})
        return [record.split for record in prepare(config, quiet=True).data.index.records]

    assert splits(seed=1) == splits(seed=1, split_seed=1) == splits(seed=2, split_seed=1) == splits(split_seed=1)
    assert splits(seed=2) != splits(seed=1)
    assert splits(seed=1, split_seed=0) == splits()
