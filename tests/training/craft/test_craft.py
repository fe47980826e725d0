"""Every flag of training craft, from its option to the run directory."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import SignalAt

from transferkit.cli.main import main
from transferkit.core.errors import ConfigError, Interrupted, TrainingError
from transferkit.data.batches.datamodule import ImageData
from transferkit.models.answers.losses import balanced_class_weights
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.results.predict.predictor import load
from transferkit.training.checks.overfit import OverfitResult
from transferkit.training.craft.ema import KEY
from transferkit.training.craft.interpolation import load_start
from transferkit.training.craft.snapshots import snapshot_paths
from transferkit.training.finetune import finetune
from transferkit.training.loop.checkpoints import load_checkpoint
from transferkit.training.setup import prepare

SGDR = {"name": "sgdr", "cycle_epochs": 1}


def metrics(run):
    return json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))


def weights(run):
    """The network's, without what is measured of it when a run ends."""
    tensors = load_file(run.path / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("unlike.")}


@pytest.fixture(scope="module")
def everything(folder, tmp_path_factory):
    """One run with everything that goes together."""
    return finetune(
        data=str(folder), backbone="test_resnet", weights="random", image_size=32, batch_size=4, epochs=3,
        probe_epochs=1, precision="32", accelerator="cpu", workers=0, quiet=True, augment="light", schedule=SGDR,
        snapshots=True, ema=0.8, l2_sp=0.01, interpolate=True, recalibrate_bn=True, mixup=0.2, cutmix=1.0, loss="focal",
        class_weights="balanced", train_size=24, fixres_epochs=1,
        out=tmp_path_factory.mktemp("everything") / "run",
    )  # fmt: skip


def test_everything_at_once(everything):
    values = metrics(everything)
    assert [phase["name"] for phase in values["phases"]] == ["probe", "finetune", "fixres"]
    assert len(values["snapshots"]["val"]["each_acc"]) == len(snapshot_paths(everything.path)) == 3
    assert 0.0 <= values["interpolation"]["alpha"] <= 1.0
    assert values["recalibrated_bn"] > 0
    for name in ("interpolation.csv", "interpolation.png"):
        assert (everything.path / name).is_file()


def test_the_summary_says_what_was_done(everything, capsys):
    from transferkit.runs.summary import print_summary

    print_summary(everything.path)
    said = capsys.readouterr().out
    for word in ("mixed    ", "of the fine-tuned weights, chosen on val", "bn       ", "snapshots val", "3 alone"):
        assert word in said


def test_the_recipe_it_wrote_gives_the_same_model(everything, tmp_path):
    recipe = everything.path / "config.yaml"
    config = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert (config["mixup"], config["phases"][-1]["test_view"], "dry_run" in config) == (0.2, True, False)
    assert (
        main(["finetune", "--config", str(recipe), "--out", str(tmp_path / "run"), "--quiet", "--report", "off"]) == 0
    )
    again = load_file(tmp_path / "run" / "model.safetensors")
    assert all(again[name].equal(tensor) for name, tensor in weights(everything).items())


def test_predict_takes_what_came_of_it(everything, folder):
    predictor = load(everything.path)
    paths = sorted(str(path) for path in (folder / "val").rglob("*.png"))
    right = sum(item.label == path.split("/")[-2] for item, path in zip(predictor.predict(paths), paths, strict=True))
    assert right / len(paths) == pytest.approx(metrics(everything)["val"]["acc"])


# ---- the weights --------------------------------------------------------------------------------------------------


def test_ema_is_what_is_kept(quick, tmp_path):
    run = finetune(**{**quick, "ema": 0.9, "out": tmp_path / "run"})
    best = load_checkpoint(run.path / "checkpoints" / "best.ckpt")
    assert all(tensor.equal(best["state_dict"][name]) for name, tensor in weights(run).items())
    assert not all(tensor.equal(best["state_dict"][name]) for name, tensor in best[KEY]["raw"].items())


def test_interpolation_stands_between_its_ends(everything):
    start = load_start(everything.path)
    end = load_checkpoint(everything.path / "checkpoints" / "best.ckpt")["state_dict"]
    for name, tensor in weights(everything).items():
        if tensor.is_floating_point() and "running_" not in name:  # these are measured anew afterwards
            expected = torch.lerp(start[name], end[name], metrics(everything)["interpolation"]["alpha"])
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7, msg=name)


def test_recalibration_changes_statistics_only(quick, tmp_path):
    run = finetune(**quick, phases="finetune", recalibrate_bn=True, out=tmp_path / "run")
    best = load_checkpoint(run.path / "checkpoints" / "best.ckpt")["state_dict"]
    changed = {name for name, tensor in weights(run).items() if not tensor.equal(best[name])}
    assert changed
    assert all("running_" in name or "num_batches" in name for name in changed)


def test_a_solved_head_keeps_the_statistics_that_it_was_solved_on(quick, tmp_path):
    asked = {key: value for key, value in quick.items() if key != "probe_epochs"}
    asked |= {"probe": "solve", "phases": "probe-finetune", "epochs": 2, "lr": 3.0, "warmup_epochs": 0.0}
    run = finetune(**asked, recalibrate_bn=True, batch_norm="batch", out=tmp_path / "run")
    assert metrics(run)["selection"]["kept"] == "the solved probe"
    assert metrics(run)["recalibrated_bn"] == 0
    start = load_checkpoint(run.path / "checkpoints" / "best.ckpt")["state_dict"]
    assert all(tensor.equal(start[name]) for name, tensor in weights(run).items())


# ---- the pictures and the loss --------------------------------------------------------------------------------------


class Watcher:
    """Keeps what training steps were given."""

    def __init__(self, monkeypatch):
        from transferkit.models.module import TransferModule

        self.batches = []
        step = TransferModule.training_step

        def watched(module, batch, batch_idx):
            self.batches.append((module.trainer.current_epoch, *batch))
            return step(module, batch, batch_idx)

        monkeypatch.setattr(TransferModule, "training_step", watched)


def test_fixres_trains_small_and_ends_at_the_size_of_the_model(quick, tmp_path, monkeypatch):
    watcher = Watcher(monkeypatch)
    options = {**quick, "train_size": 24, "fixres_epochs": 1, "phases": "finetune", "epochs": 2, "store": str(tmp_path)}
    run = finetune(**options, out=tmp_path / "run")
    sizes = {epoch: {tuple(images.shape[2:]) for at, images, _ in watcher.batches if at == epoch} for epoch in range(3)}
    assert sizes == {0: {(24, 24)}, 1: {(24, 24)}, 2: {(32, 32)}}
    info = json.loads((run.path / "model.json").read_text(encoding="utf-8"))
    assert info["preprocessing"]["image_size"] == [32, 32]
    assert metrics(run)["phases"][-1]["name"] == "fixres"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_test_view_is_the_evaluation_view(folder, workers):
    data = ImageData(folder, image_size=32, batch_size=4, augment="heavy", workers=workers, train_size=20)
    data.show_as_evaluated({1})
    train, plain = data.train_dataloader(), data.dataset("train")
    for epoch in (0, 1):
        train.sampler.set_epoch(epoch)
        order = [job.picture for job in train.sampler]
        images = torch.cat([images for images, _ in train])
        expected = plain.batch(order).images
        assert images.shape[1:3] == ((20, 20), (32, 32))[epoch]
        if epoch:
            assert images.equal(expected)


def test_mixing_gives_shares_in_training_only_and_turns_kept_activations_off(quick, tmp_path, monkeypatch):
    watcher = Watcher(monkeypatch)
    options = {**quick, "augment": "none", "phases": "probe", "probe": "sgd", "probe_epochs": 2}
    run = finetune(**options, mixup=0.5, out=tmp_path / "mixed")
    shares = [targets for _, _, targets in watcher.batches]
    assert all(target.shape[1] == 3 and target.sum(dim=1).allclose(torch.ones(())) for target in shares)
    assert any(((target > 0) & (target < 1)).any() for target in shares)
    assert metrics(run)["val"]["n"] == 12
    assert {images.ndim for _, images, _ in watcher.batches} == {4}
    watcher.batches.clear()
    finetune(**options, out=tmp_path / "plain")
    assert {images.ndim for _, images, _ in watcher.batches} == {2}  # the features, so the test can fail


def test_class_weights_come_from_the_training_split(tmp_path, quick):
    import shutil

    from shapes import draw_folder

    root = draw_folder(tmp_path / "photos", per_class=12)
    for path in sorted((root / "circle").iterdir())[4:]:
        path.unlink()
    options = {**quick, "data": str(root), "val_split": 0.0, "test_split": 0.0, "class_weights": "balanced"}
    module = prepare(make_config(FinetuneConfig, options), quiet=True).module
    assert module.loss.class_weights.tolist() == pytest.approx(balanced_class_weights([4, 12, 12]).tolist())
    shutil.rmtree(root)


def test_the_balanced_sampler_evens_classes_out(tmp_path, quick):  # fault 26
    from shapes import draw_folder

    root = draw_folder(tmp_path / "photos", per_class=20)
    for path in sorted((root / "circle").iterdir())[2:]:
        path.unlink()
    data = ImageData(root, image_size=16, batch_size=7, sampler="balanced", val_split=0.0, test_split=0.0)
    loader, drawn = data.train_dataloader(), torch.zeros(3)
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)
        for _, targets in loader:
            drawn += torch.bincount(targets, minlength=3)
    assert drawn.sum() == 20 * len(loader.sampler)
    assert (drawn / drawn.sum()).tolist() == pytest.approx([1 / 3] * 3, abs=0.06)  # by chance alone it would be 2 of 42
    with pytest.raises(ConfigError, match="unknown sampler 'balance'. Did you mean 'balanced'"):
        ImageData(root, sampler="balance")


# ---- schedules in a run ---------------------------------------------------------------------------------------------


def test_momentum_cycles_and_comes_back(quick, tmp_path):
    phases = [
        {"name": "up", "epochs": 2, "lr": 1e-3, "schedule": {"name": "one_cycle", "cycle_momentum": True}},
        {"name": "flat", "epochs": 1, "lr": 1e-3, "schedule": "constant"},
    ]
    betas_of = []
    from transferkit.training.checks.selftest import Trace

    class Momentum(Trace):
        def on_train_batch_start(self, trainer, *rest):
            betas_of.append((trainer.current_epoch, trainer.optimizers[0].param_groups[0]["betas"]))

    finetune(**{**quick, "phases": phases, "out": tmp_path / "run"}, callbacks=[Momentum(tmp_path / "x")])
    up = [first for epoch, (first, _) in betas_of if epoch < 2]
    assert min(up) == pytest.approx(0.85, abs=0.01)
    assert max(up) == pytest.approx(0.95, abs=0.01)
    assert {betas for epoch, betas in betas_of if epoch == 2} == {(0.9, 0.999)}


def test_plateau_goes_by_validation_and_survives_a_resume(quick, tmp_path):
    schedule = {"name": "plateau", "gamma": 0.5, "patience": 0, "threshold": 0.5}  # hardly ever enough of a gain
    options = {**quick, "phases": "finetune", "epochs": 4, "schedule": schedule}
    run = finetune(**options, out=tmp_path / "run").path
    lrs = [float(line.split(",")[3]) for line in (run / "history.csv").read_text(encoding="utf-8").splitlines()[1:]]
    assert lrs[-1] < lrs[0]
    with pytest.raises(Interrupted):
        finetune(callbacks=[SignalAt(12)], **options, out=tmp_path / "part")
    finetune(out=tmp_path / "part", resume=True, quiet=True)
    again = (tmp_path / "part" / "history.csv").read_text(encoding="utf-8").splitlines()
    drop = [line.rsplit(",", 1)[0] for line in again]
    assert drop == [line.rsplit(",", 1)[0] for line in (run / "history.csv").read_text(encoding="utf-8").splitlines()]


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshots": True}, "snapshots"),
        ({"interpolate": True, "phases": "finetune"}, "--interpolate mixes the probe with what was fine-tuned"),
        ({"interpolate": True, "phases": "probe"}, "--interpolate mixes the probe with what was fine-tuned"),
        ({"ema": 0.9, "phases": "probe", "probe_epochs": None}, "--ema needs a phase that is trained"),
        ({"l2_sp": 1.0, "phases": "probe", "probe_epochs": None}, "--l2-sp needs a phase that is trained"),
        ({"fixres_epochs": 1, "train_size": 32}, "--train-size and --image-size are both 32"),
        ({"train_size": "16,24,32"}, "--train-size names 3 sizes for 2 epoch"),
        ({"ema": 1.0}, "--ema is 1.0, expected a decay in (0, 1)"),
        ({"mixup": -1.0}, "--mixup is -1.0, expected a finite number of at least 0"),
        ({"accumulate": 0}, "--accumulate is 0"),
        ({"l2_sp": 0.0}, "--l2-sp is 0.0, expected a finite number above 0"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"dry_run": True, "overfit_batches": 1}, "--dry-run and --overfit-batches exclude each other"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(quick, tmp_path, options, message):  # fault 38, fault 39
    with pytest.raises(ConfigError) as caught:
        finetune(**{**quick, **options, "out": tmp_path / "run"})
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["finetune", "plan"])
def test_what_needs_a_validation_split_says_so_before_training(quick, folder, tmp_path, verb, capsys):  # fault 39
    words = [verb, "--data", str(folder / "train"), "--val-split", "0", "--test-split", "0", "--quiet"]
    words += ["--backbone", "test_resnet", "--weights", "random", "--image-size", "32"]
    words += ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "run")]
    assert main([*words, "--interpolate", "--schedule", "plateau"]) == 2
    err = capsys.readouterr().err
    assert "the data have no val pictures: (1) --interpolate chooses its share on val; (2) schedule plateau of" in err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "store").exists()  # nothing was computed


# ---- the check of the lectures --------------------------------------------------------------------------------------


def test_overfit_batches(quick, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["finetune", "--data", quick["data"], "--backbone", "test_resnet", "--weights", "random"]
    words += ["--image-size", "32", "--batch-size", "6", "--workers", "0", "--precision", "32"]
    words += ["--overfit-batches", "2", "--lr", "0.003"]
    assert main([*words, "--epochs", "200"]) == 0
    assert "learnt 2 batch(es) by heart" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []  # a check writes no run


def test_overfit_batches_that_fail_say_what_to_look_at(quick, monkeypatch):
    result = OverfitResult(
        reached=False,
        epochs=50,
        figure="acc",
        train=0.5,
        evaluation=0.4,
        losses=(1.0, 1.0),
        advice=("look here",),
        pictures=4,
    )
    monkeypatch.setattr("transferkit.training.checks.overfit.overfit", lambda *_, **__: result)
    with pytest.raises(
        TrainingError, match=r"could not be learnt by heart in 50 passes: accuracy 50.0% .* - look here"
    ):
        finetune(**{**quick, "overfit_batches": 1})
