"""On a GPU: the same contract, bf16, channels-last, fused optimizer, pinned memory, and no host sync in a step."""

import json

import lightning as L
import pytest
import torch

from transferkit.data.datamodule import ImageData
from transferkit.models.backbones import create_backbone
from transferkit.models.module import TransferModule
from transferkit.training.callbacks import PhaseSchedule
from transferkit.training.finetune import finetune
from transferkit.training.phases import Phase

pytestmark = pytest.mark.gpu


@pytest.fixture
def on_gpu(quick):
    return {**quick, "accelerator": "gpu", "precision": "auto", "workers": 2}


def test_finetune_on_a_gpu(on_gpu, tmp_path):
    run = finetune(**on_gpu, out=tmp_path / "run")
    environment = run.metrics["environment"]
    assert environment["accelerator"] == "gpu"
    assert environment["precision"] == "bf16"
    assert environment["device"] == torch.cuda.get_device_name()
    assert json.loads((tmp_path / "run" / "model.json").read_text())["classes"] == ["circle", "square", "stripes"]


def test_gpu_and_cpu_agree(quick, tmp_path):
    options = {**quick, "augment": "none", "optimizer": "sgd", "lr": 1e-3, "probe_lr": 1e-3}
    gpu = finetune(**{**options, "accelerator": "gpu"}, out=tmp_path / "gpu").metrics["val"]
    cpu = finetune(**options, out=tmp_path / "cpu").metrics["val"]
    assert gpu["loss"] == pytest.approx(cpu["loss"], abs=2e-2)


def test_a_step_does_not_wait_for_the_device(folder, tmp_path):
    """torch raises on every synchronising call between the first batch's start and the last one's end."""

    class NoSync(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 1:
                torch.cuda.set_sync_debug_mode("error")

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append((batch[0].device.type, batch[0].is_contiguous(memory_format=torch.channels_last)))
            if batch_idx + 1 == trainer.num_training_batches:
                torch.cuda.set_sync_debug_mode("default")

        def on_exception(self, trainer, module, exception):
            torch.cuda.set_sync_debug_mode("default")

    seen = []
    backbone = create_backbone("test_resnet", weights="random", image_size=32)
    module = TransferModule(backbone, 3).to(memory_format=torch.channels_last)
    data = ImageData(folder, image_size=32, batch_size=4, workers=1)
    trainer = L.Trainer(
        accelerator="gpu", devices=1, precision="bf16-mixed", gradient_clip_val=1.0, logger=False, max_epochs=-1,
        callbacks=[PhaseSchedule([Phase("probe", 1, "head"), Phase("all", 1)]), NoSync()], num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert len(seen) == 12
    assert set(seen) == {("cuda", True)}
    assert all(group["fused"] for group in trainer.optimizers[0].param_groups)


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
