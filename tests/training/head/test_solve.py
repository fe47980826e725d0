"""LP-FT by construction: the head solved on cached features is the live model's head, to the last picture."""

import json
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_runs import SignalAt

from transferkit.core.csv import read_csv
from transferkit.core.errors import CheckpointError, ConfigError, Interrupted
from transferkit.data.batches.datamodule import ImageData
from transferkit.features.extract.rows import StoredRows
from transferkit.features.linear.logistic import LinearModel
from transferkit.features.linear.softening import START_STD, scaled_down
from transferkit.features.probe.probe import FittedProbe
from transferkit.features.probe.solver import ClassSolver
from transferkit.models.artifact import load_model
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.heads.solver import HeadState
from transferkit.models.module import TransferModule
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.runs.measure import predictions_of
from transferkit.training.finetune import finetune
from transferkit.training.head.features import training_rows
from transferkit.training.head.solve import soften_head, solve_head
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.plan.options import resolve_phases
from transferkit.training.plan.phases import Phase, check_phases, make_phases, preset_phases


def options_in(folder, root):
    """Options of a run whose probe is solved."""
    return {
        "data": str(folder), "image_size": 32, "batch_size": 8, "epochs": 2, "precision": "32", "accelerator": "cpu",
        "workers": 0, "quiet": True, "store": str(root / "store"), "out": str(root / "run"),
    }  # fmt: skip


@pytest.fixture
def solving(folder, tmp_path):
    return options_in(folder, tmp_path)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A run whose probe is solved, its store beside it."""
    return finetune(**options_in(folder, tmp_path_factory.mktemp("solved")))


def build(folder, head="linear", **options):
    backbone = create_backbone("transferkit/mini", image_size=32)
    data = ImageData(folder, batch_size=8, data_config=backbone.data_config, **options)
    return TransferModule(backbone, data.num_classes, head, class_names=data.class_names), data


def read(run, name="metrics.json"):
    return json.loads((Path(run) / name).read_text(encoding="utf-8"))


def history(run):
    rows = read_csv(Path(run) / "history.csv")
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in rows]


# ---- the head ---------------------------------------------------------------------------------------------------


def test_the_live_model_is_the_probe_to_the_last_picture(folder, tmp_path):
    module, data = build(folder)
    figures = solve_head(module, data, store=str(tmp_path)).figures
    probs, targets = predictions_of(module, data.evaluation_loader("val"))
    live = (probs.argmax(dim=1) == targets).double().mean()
    assert figures["val_acc"] == float(live)
    nll = -probs.gather(1, targets[:, None]).double().log().mean()
    assert figures["val_loss"] == pytest.approx(float(nll), abs=1e-4)


def test_the_head_is_scikit_learns_with_the_standardiser_folded_in(folder, tmp_path):
    module, data = build(folder)
    figures = solve_head(module, data, store=str(tmp_path)).figures
    loader = data.evaluation_loader("train")
    features, labels = [], []
    with torch.inference_mode():
        for images, targets in loader:
            features.append(module.backbone.eval()(data.on_after_batch_transfer((images, targets), 0)[0]))
            labels.append(targets)
    X, y = torch.cat(features).double().numpy(), torch.cat(labels).numpy()
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=figures["C"], tol=1e-8, max_iter=10_000)).fit(X, y)
    with torch.inference_mode():
        ours = module.head.eval()(torch.from_numpy(X).float()).softmax(dim=1).numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(X), atol=2e-3)


def test_the_backbone_is_left_alone(folder, tmp_path):
    module, data = build(folder)
    before = {name: tensor.clone() for name, tensor in module.backbone.state_dict().items()}
    random = torch.get_rng_state()
    solve_head(module, data, store=str(tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_second_solution_computes_nothing(folder, tmp_path):
    first = solve_head(*build(folder), store=str(tmp_path)).figures
    second = solve_head(*build(folder), store=str(tmp_path)).figures
    assert (first["computed"], second["computed"]) == (36, 0)
    assert {**first, "computed": 0, "time_s": 0} == {**second, "time_s": 0}


def test_a_head_that_is_not_linear_is_refused(folder, tmp_path):
    module, data = build(folder, head="mlp")
    with pytest.raises(
        ConfigError, match="a MLPHead cannot be solved, expected a linear head or one of class means - train it instead"
    ):
        solve_head(module, data, store=str(tmp_path))


def test_the_solver_of_the_task_is_asked(folder, tmp_path):
    """Least squares on one-hot targets, say."""

    class Squares(ClassSolver):
        def fit(self, rows, options=None, *, seed=0, progress=None):
            X = np.column_stack((rows.X, np.ones(len(rows))))
            weight = np.linalg.lstsq(X, np.eye(rows.width)[rows.y], rcond=None)[0].T
            return FittedProbe("squares", {"rank": 1}, rows.width, LinearModel(weight[:, :-1], weight[:, -1]))

    module, data = build(folder)
    module.task = replace(module.task, solver=Squares("least squares"))
    solved = solve_head(module, data, store=str(tmp_path))
    assert (solved.figures["solver"], solved.figures["rank"], solved.figures["train_acc"]) == ("least squares", 1, 1.0)
    probs, targets = predictions_of(module, data.evaluation_loader("train"))
    assert (probs.argmax(dim=1) == targets).all()
    module.task = replace(module.task, solver=None)
    with pytest.raises(ConfigError, match="a solved probe has no solver for classification - train the head by steps"):
        solve_head(module, data, store=str(tmp_path))


def test_views_are_rows_that_weigh_as_much_as_one_picture(folder, tmp_path):
    from transferkit.features.extract.extract import extract_features

    train = extract_features(folder, image_size=32, views=2, store=str(tmp_path)).split("train")
    rows = training_rows(train, "pooled", "sample")
    X, y, groups, weight = rows.X, rows.y, rows.groups, rows.weight
    assert X.shape == (3 * 24, 256)
    assert weight.sum() == pytest.approx(24)
    assert all(len({groups[row] for row in range(at, 72, 24)}) == 1 for at in range(24))
    np.testing.assert_array_equal(y, np.tile(train.y, 3))
    rows = training_rows(train, "pooled", "average")
    expected = (train.X.astype(float) + train.views["pooled"].astype(float).sum(axis=0)) / 3
    np.testing.assert_allclose(rows.X, expected, rtol=1e-5, atol=1e-6)
    assert (len(rows.y), len(rows.groups), rows.weight) == (24, 24, None)


# ---- runs -------------------------------------------------------------------------------------------------------


def test_a_run_begins_with_a_solved_head(whole):
    probe, tuned = whole.metrics["phases"]
    assert (probe["name"], probe["epochs"], probe["solver"]) == ("probe", 0, "L-BFGS on cached features")
    assert probe["views"] == 2
    assert tuned["epochs"] == 2
    assert read(whole.path, "plan.json")["phases"][0]["solve"] is True
    assert [row["phase"] for row in history(whole.path)] == ["finetune", "finetune"]


def test_the_probes_val_accuracy_is_where_finetuning_starts(solving, folder):
    """A run with an LR of next to nothing stays where the probe put it."""
    run = finetune(**{**solving, "lr": 1e-12, "epochs": 1})
    assert run.metrics["val"]["acc"] == run.metrics["phases"][0]["val_acc"]


def test_finetuning_starts_from_the_same_decisions_with_less_confidence(folder, tmp_path):
    module, data = build(folder)
    solved = solve_head(module, data, store=str(tmp_path))
    probs, _ = predictions_of(module, data.evaluation_loader("val"))
    soften_head(module.head, solved)
    softer, _ = predictions_of(module, data.evaluation_loader("val"))
    assert solved.figures["logit_std"] > START_STD
    for name, tensor in module.head.state_dict().items():
        expected = solved.head[name] * (START_STD / solved.figures["logit_std"])
        torch.testing.assert_close(tensor, expected)
    assert torch.equal(softer.argmax(dim=1), probs.argmax(dim=1))
    assert bool((softer.max(dim=1).values < probs.max(dim=1).values).all())


def test_a_head_that_is_soft_already_is_left_alone():
    head = HeadState("linear", {}, {"linear.weight": torch.ones(2, 3), "linear.bias": torch.zeros(2)})
    assert torch.equal(scaled_down(head, np.array([[0.1, -0.1]])).tensors["linear.weight"], torch.ones(2, 3))


@pytest.mark.parametrize("monitor", ["val_acc", "val_loss", "auto"])
def test_the_solved_probe_is_kept_when_finetuning_only_makes_it_worse(solving, real_figures, monitor):
    """With its confidence, which fine-tuning starts without."""
    run = finetune(**{**solving, "lr": 10.0, "clip": None, "optimizer": "sgd", "monitor": monitor,
                      "batch_size": 32, "batch_norm": "batch"})  # fmt: skip
    assert (run.path / "curves.png").read_bytes().startswith(b"\x89PNG")  # the best is before the first epoch
    assert (run.metrics["selection"]["kept"], run.metrics["selection"]["epoch"]) == ("the solved probe", None)
    assert run.metrics["val"]["acc"] == run.metrics["phases"][0]["val_acc"]
    assert run.metrics["val"]["loss"] == pytest.approx(run.metrics["phases"][0]["val_loss"], abs=1e-3)


def test_a_solved_probe_alone_is_a_whole_run(solving, capsys):
    run = finetune(**{**solving, "phases": "probe", "quiet": False})
    assert run.metrics["selection"]["monitor"] is None
    _, info = load_model(run.path)
    assert info.class_names == ("circle", "square", "stripes")
    out = capsys.readouterr().out
    assert "solved" in out
    assert "nothing chosen on it" in out
    assert not (run.path / "curves.png").exists()


def test_pictures_in_memory_are_not_decoded_again(solving, monkeypatch):
    from transferkit.data.batches import dataset

    decoded = []
    monkeypatch.setattr(dataset, "decode_with_info", lambda *args, **kwargs: decoded.append(args))
    finetune(**{**solving, "phases": "probe"})
    assert decoded == []


@pytest.mark.parametrize(
    ("options", "epochs"), [({"probe": "sgd"}, 3), ({"probe_epochs": 1}, 1), ({"head": "mlp"}, 3), ({}, 0)]
)
def test_sgd_keeps_the_trained_way(options, epochs):
    probe = resolve_phases(make_config(FinetuneConfig, {"data": "-", **options}), None)[0]
    assert (probe.name, probe.epochs, probe.solve) == ("probe", epochs, epochs == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"probe": "solve", "head": "mlp"},
            "--probe solve fits a linear head or class means, not 'mlp' - pass --probe sgd",
        ),
        ({"probe": "solve", "probe_epochs": 3}, "--probe-epochs belongs to --probe sgd; a solved probe has none"),
        ({"probe": "solve", "probe_lr": 0.1}, "--probe-lr belongs to --probe sgd"),
        ({"probe_views": -1}, "--probe-views is -1, expected a whole number of at least 0"),
        ({"probe_lr": 0.0}, "--probe-lr is 0.0"),
        (
            {"head": "mlp", "phases": [{"name": "p", "solve": True}]},
            "a phase with solve fits a linear head or class means, not 'mlp'",
        ),
    ],
)
def test_options_that_contradict_each_other(solving, options, message):  # fault 38
    with pytest.raises(ConfigError, match=message):
        finetune(**{**solving, **options})
    assert not Path(solving["out"]).exists()


# ---- stops and resumes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_resume_equals_an_undisturbed_run(whole, solving, stop_at):  # fault 52
    with pytest.raises(Interrupted):
        finetune(callbacks=[SignalAt(stop_at)], **solving)
    resumed = finetune(out=solving["out"], resume=True, quiet=True, store=solving["store"])
    assert history(resumed.path) == history(whole.path)
    assert resumed.metrics["val"] == whole.metrics["val"]
    assert {**resumed.metrics["phases"][0], "time_s": 0, "computed": 0} == {
        **whole.metrics["phases"][0], "time_s": 0, "computed": 0,
    }  # fmt: skip


def test_killed_right_after_the_probe_is_resumable(whole, solving, monkeypatch):
    class Killed(Exception):
        pass

    def killed(self, *args):
        raise Killed

    monkeypatch.setattr(PhaseSchedule, "on_train_batch_start", killed)
    with pytest.raises(Killed):
        finetune(**solving)
    monkeypatch.undo()
    assert (Path(solving["out"]) / "checkpoints" / "best.ckpt").is_file()
    resumed = finetune(out=solving["out"], resume=True, quiet=True)
    assert history(resumed.path) == history(whole.path)
    assert resumed.metrics["val"] == whole.metrics["val"]


def test_stopped_while_extracting_leaves_no_run_and_keeps_the_features(solving, monkeypatch):
    add = StoredRows.add

    def interrupted(*args):
        add(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(StoredRows, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune(**{**solving, "probe_views": 0})
    monkeypatch.undo()
    assert not Path(solving["out"]).exists()
    run = finetune(**{**solving, "probe_views": 0, "phases": "probe"})
    assert run.metrics["phases"][0]["computed"] == 12  # the 24 training pictures were kept


def test_resume_of_nothing_is_refused(solving):  # fault 55
    with pytest.raises(CheckpointError, match="nothing to resume"):
        finetune(**{**solving, "resume": True})


# ---- phases -----------------------------------------------------------------------------------------------------


def test_presets_with_a_solved_probe():
    probe, tuning = Phase("probe", epochs=0, train="head", lr=1e-2, solve=True), Phase("finetune", epochs=4)
    names = ("stem", "layer1", "head")
    for preset in ("probe", "probe-finetune", "gradual"):
        phases = preset_phases(preset, probe, tuning, names)
        assert phases[0] == probe
        assert check_phases(phases, names) == []
        assert not any(phase.solve for phase in phases[1:])
    assert not preset_phases("finetune", probe, tuning, names)[0].solve


def test_a_recipe_with_a_solved_phase():
    phases = make_phases([{"name": "probe", "solve": True}, {"name": "all", "epochs": 2}])
    assert (phases[0].epochs, phases[0].train, phases[0].solve) == (0, "head", True)
    assert make_phases([phase.to_dict() for phase in phases])[0].solve


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{"name": "a", "epochs": 1}, {"name": "b", "solve": True}], "phase 'b': solve comes first or not at all"),
        ([{"name": "a", "solve": True, "epochs": 3}], "epochs is 3, expected 0 for a phase that is solved"),
        ([{"name": "a", "solve": True, "train": "all"}], "train is 'all', expected 'head' for a solved phase"),
        ([{"name": "a", "solve": "yes", "epochs": 1}], "solve is 'yes', expected true or false"),
        ([{"name": "a", "epochs": 0}], "epochs is 0, expected a whole number of at least 1"),
    ],
)
def test_solved_phases_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        make_phases(values)


def test_a_plain_trainer_is_told_to_solve_first(folder):
    module, data = build(folder)
    phases = [Phase("probe", epochs=0, train="head", solve=True), Phase("all", epochs=1)]
    trainer = L.Trainer(
        callbacks=[PhaseSchedule(phases)], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"call transferkit.solve_head\(model, data\) before `fit`"):
        trainer.fit(module, data)
