"""TransferModule: heads, freezing through `.train()`, checkpoints, a plain Trainer."""

import lightning as L
import pytest
import torch
from contracts import MapHead
from torch import nn

from transferkit.core.errors import CheckpointError, ConfigError
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule


@pytest.fixture
def build():
    def make(head="linear", **options):
        torch.manual_seed(0)
        return TransferModule(create_backbone("test_resnet", weights="random", image_size=32), 3, head, **options)

    return make


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_head_may_take_the_map(build):
    channels = build().backbone.map_channels
    module = build(MapHead(channels, 3))
    maps = module.eval().backbone.forward_maps(IMAGES)
    torch.testing.assert_close(module(IMAGES), module.head(maps))


def test_bad_arguments_come_together(build):
    backbone = create_backbone("test_resnet", weights="random", image_size=32)
    with pytest.raises(ConfigError, match=r"\(1\) num_classes is 1.*\(2\) class_names holds 2.*\(3\) label_smoothing"):
        TransferModule(backbone, 1, class_names=["a", "b"], label_smoothing=1.0)


def test_groups_hold_every_parameter_once(build):
    module = build("mlp")
    listed = [id(parameter) for _, members in module.groups() for _, parameter in members]
    assert sorted(listed) == sorted(id(parameter) for parameter in module.parameters())
    assert module.group_names()[-1] == "head"
    names = {name for _, members in module.groups() for name, _ in members}
    assert names == {name for name, _ in module.named_parameters()}


def test_frozen_is_exact_in_training(build):  # fault 49
    module = build()
    module.train_groups(["head"])
    module.train()
    before = {name: tensor.clone() for name, tensor in module.backbone.state_dict().items()}
    expected = module.backbone.eval()(IMAGES)
    module.train()
    optimizer = module.configure_optimizers()
    for _ in range(3):
        module.train()
        assert module.backbone(IMAGES).equal(expected)
        loss = nn.functional.cross_entropy(module(IMAGES), torch.tensor([0, 1, 2, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(before[name].equal(tensor) for name, tensor in module.backbone.state_dict().items())


def test_freezing_by_hand_is_exact_too(build):
    module = build()
    module.backbone.requires_grad_(False)
    module.train()
    assert not module.backbone.model.layer1.training
    assert module.head.training


def test_gradients_of_pictures_pass_a_frozen_backbone(build):
    module = build()
    module.train_groups(["head"])
    images = IMAGES.clone().requires_grad_()
    module(images).sum().backward()
    assert images.grad.abs().sum() > 0


def test_training_loss_is_the_written_out_one(build):
    module = build(label_smoothing=0.2).eval()
    targets = torch.tensor([0, 1, 2, 0])
    log_probs = module(IMAGES).log_softmax(dim=1)
    soft = nn.functional.one_hot(targets, 3) * 0.8 + 0.2 / 3
    expected = -(soft * log_probs).sum(dim=1).mean()
    torch.testing.assert_close(module.training_step((IMAGES, targets), 0), expected)
    loss, correct, count = module.train_sums().tolist()
    assert loss == pytest.approx(4 * expected.item(), rel=1e-5)
    assert correct == (log_probs.argmax(dim=1) == targets).sum().item()
    assert count == 4


def loader():
    images = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(images, torch.arange(10) % 3)
    return torch.utils.data.DataLoader(data, batch_size=4)


def trainer(tmp_path, **options):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, **options,
    )  # fmt: skip


def test_a_plain_trainer_and_a_plain_loader(build, tmp_path):
    module = build()
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(module, loader(), loader())
    assert {"train_loss", "train_acc", "val_loss", "val_acc", "val_f1_macro"} <= set(runner.callback_metrics)
    (measured,) = runner.test(module, loader(), verbose=False)
    batches = list(loader())
    module.eval()
    logits = torch.cat([module(images) for images, _ in batches])
    targets = torch.cat([labels for _, labels in batches])
    assert measured["test_acc"] == pytest.approx((logits.argmax(dim=1) == targets).float().mean().item())
    assert measured["test_loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
    probs = torch.cat(runner.predict(module, loader()))
    torch.testing.assert_close(probs, logits.softmax(dim=1), atol=1e-6, rtol=0)


def test_load_from_checkpoint_rebuilds_without_fetching(build, tmp_path):
    module = build("mlp", class_names=["a", "b", "c"])
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(module, loader())
    runner.save_checkpoint(tmp_path / "x.ckpt")
    again = TransferModule.load_from_checkpoint(tmp_path / "x.ckpt")
    assert again.class_names == ("a", "b", "c")
    assert again.data_config == module.data_config
    torch.testing.assert_close(again.eval()(IMAGES), module.eval()(IMAGES))


def test_checkpoints_from_the_network_are_refused():  # fault 89
    with pytest.raises(CheckpointError, match="refusing to load a checkpoint from the network"):
        TransferModule.load_from_checkpoint("http://127.0.0.1:9/x.ckpt")


def test_a_figure_more_is_watched_on_val(build):
    module = build()
    before = set(module.val_metrics.keys())
    module.watch("balanced_acc")
    assert set(module.val_metrics.keys()) - before == {"val_balanced_acc"}
    module.watch("loss")  # is measured anyway
    assert set(module.val_metrics.keys()) == before
