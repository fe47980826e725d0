"""What every backbone promises, tested once; a kind of backbone inherits it with a table of names."""

from __future__ import annotations

import lightning
import onnxruntime
import pytest
import torch
from export_runs import make_run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from transferkit.core.errors import BackboneError
from transferkit.models.artifact import load_model, save_model
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.freezing import frozen_modules, frozen_state_digest, keep_frozen_eval, set_trainable
from transferkit.models.module import TransferModule
from transferkit.options.results import ExportConfig
from transferkit.results.export.export import export

SIDE = 64


def images(count: int = 3, *, seed: int = 0, side: int = SIDE) -> torch.Tensor:
    """Pictures as a backbone gets them, normalised: (count, 3, side, side)."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def build(name, *, side: int = SIDE, seed: int = 0, **options):
    """A random backbone, the same at every call."""
    torch.manual_seed(seed)
    return create_backbone(name, weights="random", image_size=side, **options)


class MapHead(nn.Module):
    """A head that takes the feature map."""

    takes_maps = True

    def __init__(self, channels, classes):
        super().__init__()
        self.conv = nn.Conv2d(channels, classes, 1)

    def forward(self, maps):
        return self.conv(maps).amax(dim=(2, 3))


class Model(nn.Module):
    """A backbone and a head, as the Lightning module has them: frozen parts stay in eval mode through `.train()`."""

    keeps_eval = True

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(backbone.num_features, 2))

    def forward(self, pictures):
        return self.head(self.backbone(pictures))

    def train(self, mode=True):
        super().train(mode)
        if self.keeps_eval:
            keep_frozen_eval(self)
        return self


def freeze_first(model, count):
    """Freeze the first `count` layer groups of the backbone; return the names of the frozen parameters."""
    groups = model.backbone.layer_groups()
    learns = [p for group in groups[count:] for _, p in group.parameters] + list(model.head.parameters())
    set_trainable(model, learns)
    model.train()
    return [f"backbone.{name}" for group in groups[:count] for name, _ in group.parameters]


def train_a_little(model, steps=2):
    """Real steps with momentum and weight decay, each after a fresh `.train()`; returns the optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(steps):
        model.train()
        optimizer.zero_grad(set_to_none=False)  # zeros, not None, where a gradient ever was: the harder case
        side = model.backbone.data_config.image_size[0]
        pictures = images(4, seed=step, side=side)
        nn.functional.cross_entropy(model(pictures), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()
    return optimizer


def check_frozen_prefix(model, count):
    """Freeze `count` groups, train, and compare with what was there before: weights, buffers, modes, gradients."""
    freeze_first(model, 0)
    train_a_little(model, 1)  # everything has a gradient and moved statistics once
    frozen = freeze_first(model, count)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    digest = frozen_state_digest(model)
    train_a_little(model)
    parameters = dict(model.named_parameters())
    assert [name for name in frozen if parameters[name].grad is not None] == [], "a frozen parameter has a gradient"
    parts = {id(part) for part in frozen_modules(model)}
    paths = tuple(f"{path}." for path, part in model.named_modules() if id(part) in parts)
    buffers = [name for name, _ in model.named_buffers() if name.startswith(paths)]
    now = model.state_dict()
    moved = [name for name in (*frozen, *buffers) if name in state and not torch.equal(state[name], now[name])]
    assert moved == [], "a frozen tensor moved"
    assert frozen_state_digest(model) == digest, "the digest of the frozen state changed"
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any(not torch.equal(state[name], now[name]) for name in learning), "nothing learned: this proves nothing"


class BackboneContract:
    """Inherit, and set `widths`: name -> D, written down by hand from the library's or the paper's own table.

    Attributes:
        widths: Of the features.
        maps: Widths of the pyramid by name, from fine to coarse; an empty tuple where there is none. Of the others it
            is only proven that the maps are as `pyramid` says.
        sides: Of pictures, for those that do not take `SIDE`.
        without_maps: Names of those that give no feature map.
        least_groups: Layer groups, without the head.
    """

    widths: dict[str, int]
    maps: dict[str, tuple[int, ...]] = {}  # noqa: RUF012
    sides: dict[str, int] = {}  # noqa: RUF012
    without_maps: frozenset[str] = frozenset()
    least_groups: int = 4

    def pytest_generate_tests(self, metafunc):
        metafunc.parametrize("backbone", list(self.widths), indirect=True, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, request):
        return cls.build(request.param)

    @classmethod
    def build(cls, name, **options):
        return build(name, side=cls.side(name), **options)

    @classmethod
    def side(cls, name):
        return cls.sides.get(name, SIDE)

    def pictures(self, backbone, count=3):
        return images(count, side=self.side(backbone.name))

    @pytest.fixture(autouse=True)
    def evaluating(self, backbone):
        backbone.eval()

    def test_features_have_the_promised_width(self, backbone):
        with torch.no_grad():
            features = backbone(self.pictures(backbone))
        assert features.shape == (3, backbone.num_features)
        assert backbone.num_features == self.widths[backbone.name]
        assert features.dtype == torch.float32
        assert features.isfinite().all()
        assert features.std() > 0

    def test_features_are_the_pooled_maps(self, backbone):
        with torch.no_grad():
            if backbone.name in self.without_maps:
                assert backbone.map_channels is None
                with pytest.raises(BackboneError, match=r"no .*feature map - use a head that takes features"):
                    backbone.forward_maps(self.pictures(backbone))
                return
            maps = backbone.forward_maps(self.pictures(backbone))
            assert maps.ndim in (3, 4)
            assert maps.shape[1 if maps.ndim == 4 else 2] == backbone.map_channels
            assert torch.equal(backbone.pool(maps), backbone(self.pictures(backbone)))

    def test_groups_partition_the_parameters_in_order(self, backbone):
        groups = backbone.layer_groups()
        names = [group.name for group in groups]
        assert len(set(names)) == len(names) >= self.least_groups
        assert "head" not in names
        listed = [(name, id(parameter)) for group in groups for name, parameter in group.parameters]
        own = [(name, id(parameter)) for name, parameter in backbone.named_parameters()]
        assert sorted(listed) == sorted(own)
        assert all(group.parameters for group in groups)

    def test_groups_are_ordered_from_input_to_output(self, backbone):
        """Each group's first layer runs after the first layer of the group listed before it."""
        order = {}
        hooks = []

        def note(name):
            def hook(module, args):
                order.setdefault(name, len(order))

            return hook

        for name, module in backbone.named_modules():
            if list(module.parameters(recurse=False)):  # a norm layer may hold others: its activation
                hooks.append(module.register_forward_pre_hook(note(name)))
        with torch.no_grad():
            backbone(self.pictures(backbone, 1))
        for hook in hooks:
            hook.remove()
        first_run = [
            min(
                (order[owner] for name, _ in group.parameters if (owner := name.rpartition(".")[0]) in order), default=0
            )
            for group in backbone.layer_groups()
        ]
        assert first_run == sorted(first_run), "a group runs before the one listed before it"

    def test_data_config_is_valid(self, backbone):
        config = backbone.data_config
        assert config.image_size == (self.side(backbone.name),) * 2
        assert all(0 <= value <= 1 for value in config.mean)
        assert all(0 < value <= 1 for value in config.std)
        assert config.interpolation in ("nearest", "bilinear", "bicubic", "lanczos")
        assert 0 < config.crop_pct <= 1
        assert config.crop_mode in ("center", "squash")  # "pad" is for answers on pixels, whatever the backbone
        assert type(config).from_dict(config.to_dict()) == config

    def test_random_weights_say_so(self, backbone):
        assert (backbone.weights_source, backbone.weights_sha256, backbone.license) == ("random", None, None)

    def test_state_dict_round_trip(self, backbone):
        with torch.no_grad():
            expected = backbone(self.pictures(backbone))
            other = self.build(backbone.name, seed=1).eval()
            assert not torch.equal(other(self.pictures(backbone)), expected), (
                "two random backbones agree: the test proves nothing"
            )
            other.load_state_dict(backbone.state_dict())
            assert torch.equal(other(self.pictures(backbone)), expected)

    def test_a_picture_does_not_depend_on_its_batch(self, backbone):
        with torch.no_grad():
            together = backbone(self.pictures(backbone, 4))
            alone = torch.cat([backbone(self.pictures(backbone, 4)[row : row + 1]) for row in range(4)])
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-5 * max(1.0, float(together.abs().max())))

    def test_evaluation_is_deterministic(self, backbone):
        with torch.no_grad():
            assert torch.equal(backbone(self.pictures(backbone)), backbone(self.pictures(backbone)))

    def test_a_frozen_backbone_is_the_same_function_in_train_mode(self, backbone):  # fault 49, fault 50
        model = Model(self.build(backbone.name))
        freeze_first(model, len(model.backbone.layer_groups()))
        with torch.no_grad():
            expected = model.eval().backbone(self.pictures(backbone))
            digest = frozen_state_digest(model)
            for _ in range(2):
                assert torch.equal(model.train().backbone(self.pictures(backbone)), expected)
        assert model.head.training and model.training
        assert frozen_state_digest(model) == digest

    def test_a_frozen_prefix_does_not_move(self, backbone):  # fault 49
        model = Model(self.build(backbone.name))
        check_frozen_prefix(model, max(1, len(model.backbone.layer_groups()) // 2))

    def test_the_pyramid_has_the_promised_widths(self, backbone):
        expected = self.maps.get(backbone.name)
        if expected == ():
            with pytest.raises(BackboneError, match=r"has no pyramid|no .*feature map"):
                backbone.pyramid()
            return
        levels = backbone.pyramid()
        widths = tuple(level.channels for level in levels)
        assert expected in (None, widths)
        strides = [level.stride for level in levels]
        assert strides == sorted(set(strides)), "levels are not from fine to coarse"
        with torch.no_grad():
            maps = backbone.forward_pyramid(self.pictures(backbone, 2))
        assert [made.shape[:2] for made in maps] == [(2, width) for width in widths]
        side = self.side(backbone.name)
        assert [round(side / made.shape[2]) for made in maps] == strides

    def test_a_head_of_any_size_fits(self, backbone):
        for classes, head in ((3, "linear"), (7, "mlp")):
            module = TransferModule(backbone, classes, head).eval()
            with torch.no_grad():
                logits = module(self.pictures(backbone, 2))
            assert logits.shape == (2, classes)
            assert [name for name, _ in module.groups()][-1] == "head"
            own = [id(parameter) for parameter in module.parameters()]
            assert sorted(id(p) for _, members in module.groups() for _, p in members) == sorted(own)

    def test_a_training_step_reaches_every_parameter(self, backbone):
        module = TransferModule(self.build(backbone.name), 2)
        half = module.group_names()[len(module.groups()) // 2 :]
        for names in (module.group_names(), half):
            module.train_groups(names)
            module.train()
            module.zero_grad()
            loss = nn.functional.cross_entropy(module(self.pictures(backbone, 4)), torch.tensor([0, 1, 0, 1]))
            loss.backward()
            trained = {id(p) for name, members in module.groups() if name in names for _, p in members}
            idle = [name for name, p in module.named_parameters() if id(p) in trained and p.grad is None]
            assert idle == [], "no gradient reaches a parameter that is to learn"
            assert not [name for name, p in module.named_parameters() if id(p) not in trained and p.grad is not None]
            assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)

    def test_a_trained_network_comes_back(self, backbone, tmp_path):
        """From the checkpoint of a Trainer after a step, and from the product's two files."""
        torch.manual_seed(0)
        module = TransferModule(backbone.name, 2, "mlp", weights="random", image_size=self.side(backbone.name))
        data = TensorDataset(self.pictures(backbone, 4), torch.tensor([0, 1, 0, 1]))
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(data, batch_size=4))
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        save_model(tmp_path, module.eval())
        torch.manual_seed(1)
        for other in (TransferModule.load_from_checkpoint(tmp_path / "a.ckpt"), load_model(tmp_path)[0]):
            assert other.group_names() == module.group_names()
            with torch.no_grad():
                assert torch.equal(other.eval()(self.pictures(backbone)), module(self.pictures(backbone)))


class ExportContract:
    """Inherit, and set `sides`: name -> side of pictures. A run with the backbone is exported to ONNX."""

    sides: dict[str, int]

    def pytest_generate_tests(self, metafunc):
        metafunc.parametrize("name", list(self.sides))

    def test_the_exported_file_gives_the_same_labels(self, name, tmp_path):
        run = make_run(tmp_path / "run", backbone=name, image_size=self.sides[name])
        # `export` itself refuses a file whose labels differ; here they are compared once more, from outside.
        made = export(ExportConfig(run=str(run), out=str(tmp_path / "a.onnx"), quiet=True))
        pictures = images(8, side=self.sides[name])
        session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
        (probs, *_) = session.run(None, {session.get_inputs()[0].name: pictures.numpy()})
        with torch.no_grad():
            expected = load_model(run)[0].eval()(pictures).softmax(dim=1)
        assert probs.argmax(axis=1).tolist() == expected.argmax(dim=1).tolist()
        assert abs(probs - expected.numpy()).max() < 1e-3
