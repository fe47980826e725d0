"""On a GPU: the same contract, bf16, channels-last, fused optimizer, pinned memory, and no host sync in a step."""

import json

import lightning as L
import pytest
import torch
from small_runs import SignalAt, make_trainer

from transferkit.cli.job import finetune
from transferkit.cli.main import main
from transferkit.core.errors import Interrupted, TrainingError
from transferkit.data.batches.datamodule import ImageData
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule
from transferkit.results.predict.predictor import load
from transferkit.training.checks.selftest import Trace, compare_traces
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.plan.phases import Phase

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


@pytest.fixture
def on_gpu(quick):
    return {**quick, "accelerator": "gpu", "precision": "auto", "workers": 2}


class NoSync(L.Callback):
    """torch raises on every synchronising call between the first batch's start and the last one's end."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches.append((batch[0].device.type, batch[0].is_contiguous(memory_format=torch.channels_last)))
        if batch_idx + 1 == trainer.num_training_batches:
            torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, trainer, module, exception):
        torch.cuda.set_sync_debug_mode("default")


def test_finetune_on_a_gpu(on_gpu, tmp_path):
    run = finetune(**on_gpu, out=tmp_path / "run")
    environment = run.metrics["environment"]
    assert environment["accelerator"] == "gpu"
    assert environment["precision"] == "bf16"
    assert environment["device"] == torch.cuda.get_device_name()
    assert json.loads((tmp_path / "run" / "model.json").read_text(encoding="utf-8"))["classes"] == [
        "circle",
        "square",
        "stripes",
    ]


def test_gpu_and_cpu_agree(quick, tmp_path):
    options = {**quick, "augment": "none", "optimizer": "sgd", "lr": 1e-3, "probe_lr": 1e-3}
    gpu = finetune(**{**options, "accelerator": "gpu"}, out=tmp_path / "gpu").metrics["val"]
    cpu = finetune(**options, out=tmp_path / "cpu").metrics["val"]
    assert gpu["loss"] == pytest.approx(cpu["loss"], abs=2e-2)


def test_a_step_does_not_wait_for_the_device(folder, tmp_path):
    backbone = create_backbone("test_resnet", weights="random", image_size=32)
    module = TransferModule(backbone, 3).to(memory_format=torch.channels_last)
    data = ImageData(folder, image_size=32, batch_size=4, workers=1)
    guard = NoSync()
    schedule = PhaseSchedule([Phase("probe", 1, "head"), Phase("all", 1)])
    options = {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed", "gradient_clip_val": 1.0}
    trainer = make_trainer(tmp_path, schedule, guard, limit_val_batches=0, **options)
    trainer.fit(module, datamodule=data)
    assert len(guard.batches) == 12
    assert set(guard.batches) == {("cuda", True)}
    assert all(group["fused"] for group in trainer.optimizers[0].param_groups)


CRAFT = {
    "plain": {},
    "mixed": {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
    "averaged": {"ema": 0.9, "l2_sp": 0.01},
    "weighed": {"class_weights": "balanced", "loss": "focal"},
    "gradual": {"phases": "gradual", "keep_activations": "off"},
    "cycles": {"schedule": {"name": "sgdr", "cycle_epochs": 1}, "snapshots": True},
    "sgd": {"optimizer": "sgd"},
}


@pytest.mark.parametrize("craft", CRAFT)
def test_no_option_makes_a_step_wait(on_gpu, tmp_path, craft):
    guard = NoSync()
    finetune(**{**on_gpu, "epochs": 4, **CRAFT[craft]}, out=tmp_path / "run", callbacks=[guard])
    assert set(guard.batches) == {("cuda", True)}


def test_resume(on_gpu, tmp_path):  # fault 47
    """Kernels of a GPU add in any order, so the same to rounding, while batches and LRs are the same exactly."""
    options = {**on_gpu, "precision": "32", "drop_rate": 0.3, "mixup": 0.2, "ema": 0.9, "workers": 0}
    whole = finetune(**options, out=tmp_path / "whole", callbacks=[Trace(tmp_path / "whole.trace")])
    trace = Trace(tmp_path / "halves.trace")
    with pytest.raises(Interrupted):
        finetune(**options, out=tmp_path / "halves", callbacks=[trace, SignalAt(9)])
    halves = finetune(out=tmp_path / "halves", resume=True, quiet=True, callbacks=[trace])
    assert compare_traces(tmp_path / "halves.trace", tmp_path / "whole.trace") == []
    assert halves.metrics["val"]["loss"] == pytest.approx(whole.metrics["val"]["loss"], rel=1e-2)


def test_memory_that_runs_out(on_gpu, tmp_path):  # fault 46
    """A GPU with 30 MB to give, however large it is."""
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved() + 30 * 2**20) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.raises(TrainingError, match=r"out of memory at batch size 16 - try --batch-size 8"):
            finetune(**{**on_gpu, "backbone": "resnet18", "image_size": 224, "batch_size": 16}, out=tmp_path / "run")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.filterwarnings("ignore:--lr auto")  # of tiny pictures the rules disagree
def test_everything_that_measures(on_gpu, tmp_path):
    """`--batch-size auto`, `--lr auto`, interpolation, batch norm and calibration, all on the device."""
    run = finetune(
        **{**on_gpu, "batch_size": "auto", "lr": "auto", "interpolate": True, "recalibrate_bn": True},
        out=tmp_path / "run",
    )
    assert (tmp_path / "run" / "interpolation.csv").is_file()
    assert run.metrics["calibration"]["method"] in ("temperature", "vector", "none")


def test_one_answer_on_every_device(on_gpu, folder, tmp_path):
    """What a GPU trained says the same from a CPU, from a GPU, and from onnxruntime."""
    run = finetune(**on_gpu, out=tmp_path / "run").path
    files = sorted(str(path) for path in (folder / "test").rglob("*.png"))
    on_gpu_, on_cpu = (load(run, accelerator=where).predict(files) for where in ("gpu", "cpu"))
    for there, here in zip(on_gpu_, on_cpu, strict=True):
        assert there.label == here.label
        assert there.probability == pytest.approx(here.probability, abs=1e-4)
    half = load(run, accelerator="gpu", precision="bf16").predict(files)
    assert [item.probability for item in half] == pytest.approx([item.probability for item in on_cpu], abs=0.05)
    assert (
        main(["evaluate", str(run), str(folder), "--out", str(tmp_path / "e"), "--accelerator", "gpu", "--quiet"]) == 0
    )
    assert main(["explain", str(run), files[0], "--out", str(tmp_path / "x"), "--accelerator", "gpu", "--quiet"]) == 0
    assert main(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "m.onnx"), "--quiet"]) == 0


def test_the_sync_guard_can_fail():
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            torch.ones(2, device="cuda").sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_are_pinned(folder):
    images, _ = next(iter(ImageData(folder, image_size=32, batch_size=4).train_dataloader()))
    assert images.is_pinned()
