"""On a GPU: the engine's features are the CPU's, in bf16 within its tolerance, and no batch waits for the device."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from transferkit.features.engine.engine import Engine
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extract import extract_features
from transferkit.machine.precision import COSINE
from transferkit.models.backbones.registry import create_backbone

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


@pytest.fixture
def backbone():
    return create_backbone("transferkit/mini").eval()


@pytest.fixture
def images():
    return torch.randint(0, 256, (64, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("compiling", ["off", "on"])
def test_features_are_the_cpus(backbone, images, compiling):  # fault 71
    taps = find_taps(backbone, "all")
    reference = Engine(backbone, taps, compiling="off").rows(images)
    on_gpu = Engine(backbone, taps, device="cuda", compiling=compiling).rows(images)
    for ours, exact in zip(on_gpu, reference, strict=True):
        torch.testing.assert_close(ours.cpu(), exact, rtol=1e-4, atol=1e-4)


def test_bf16_keeps_every_row(backbone, images):
    taps = find_taps(backbone, "all")
    reference = Engine(backbone, taps, compiling="off").rows(images)
    half = Engine(backbone, taps, device="cuda", precision="bf16", compiling="off").rows(images)
    for ours, exact in zip(half, reference, strict=True):
        assert float(functional.cosine_similarity(ours.cpu(), exact, dim=1).min()) > COSINE


def test_no_batch_waits_for_the_device(backbone, images):
    engine = Engine(backbone, find_taps(backbone), device="cuda", precision="bf16", compiling="off")
    pinned = images.pin_memory()
    engine.rows(pinned)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rows = [engine.rows(pinned) for _ in range(4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert rows[-1][0].device.type == "cuda"


def test_extraction_on_a_gpu(folder, tmp_path):
    on_gpu = extract_features(folder, image_size=32, accelerator="gpu", precision="32", store=tmp_path / "gpu")
    on_cpu = extract_features(folder, image_size=32, accelerator="cpu", precision="32", store=tmp_path / "cpu")
    np.testing.assert_allclose(on_gpu.X, on_cpu.X, rtol=1e-4, atol=1e-4)
    assert on_gpu.facts["computed"] == 45
