"""Accumulated batches give the step of one large batch, whatever is left for the last window and the last batch."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from transferkit.models.module import TransferModule
from transferkit.models.optimizers import Window


def trained(batch, accumulate, clip=None, pictures=22):
    """Weights after an epoch of SGD on the same pictures in the same order."""
    torch.manual_seed(0)
    module = TransferModule(
        "test_vit",
        3,
        weights="random",
        image_size=32,
        optimizer="sgd",
        momentum=0.0,
        nesterov=False,
        lr=0.1,
        weight_decay=0.0,
    )
    generator = torch.Generator().manual_seed(1)
    images, targets = torch.randn(pictures, 3, 32, 32, generator=generator), torch.arange(pictures) % 3
    trainer = L.Trainer(
        max_epochs=1, accumulate_grad_batches=accumulate, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=clip,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(images, targets), batch_size=batch))
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers", "ignore:.*val_dataloader")
@pytest.mark.parametrize(
    ("batch", "accumulate", "large"), [(8, 2, 16), (8, 32, 22), (5, 3, 15), (4, 4, 16)]
)  # the last window has fewer batches; the last batch 6, 2 and 2 pictures
@pytest.mark.parametrize("clip", [None, 0.5])
def test_it_is_the_large_batch(batch, accumulate, large, clip):  # fault 106
    expected = trained(large, 1, clip)
    assert torch.allclose(trained(batch, accumulate, clip), expected, atol=2e-6)
    assert not torch.allclose(trained(batch, 1, clip), expected, atol=1e-3)


def test_full_windows_are_left_as_they_are():
    window, parameter = Window(), torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.tensor([0.1])
    losses = [torch.tensor(0.3) for _ in range(3)]
    assert all(window.weigh(loss, 8) is loss for loss in losses)
    window.settle([parameter], 3)
    assert parameter.grad.item() == torch.tensor(0.1).item()
    window.settle([parameter], 3)  # nothing was added up
    assert parameter.grad.item() == torch.tensor(0.1).item()
