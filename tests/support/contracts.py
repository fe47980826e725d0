"""What every backbone promises, tested once; a kind of backbone inherits it with a table of names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit.core.errors import BackboneError
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.freezing import frozen_modules, frozen_state_digest, keep_frozen_eval, set_trainable

SIDE = 64


def images(count: int = 3, *, seed: int = 0) -> torch.Tensor:
    """Pictures as a backbone gets them, normalised: (count, 3, SIDE, SIDE)."""
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def build(name, **options):
    """A random backbone, the same at every call."""
    torch.manual_seed(0)
    return create_backbone(name, weights="random", image_size=SIDE, **options)


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
        nn.functional.cross_entropy(model(images(4, seed=step)), torch.tensor([0, 1, 0, 1])).backward()
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
    """Inherit, and set `widths`: name -> D, written down by hand from the library's or the paper's own table."""

    widths: dict[str, int]
    without_maps: frozenset[str] = frozenset()

    def pytest_generate_tests(self, metafunc):
        metafunc.parametrize("backbone", list(self.widths), indirect=True, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, request):
        return build(request.param)

    @pytest.fixture(autouse=True)
    def evaluating(self, backbone):
        backbone.eval()

    def test_features_have_the_promised_width(self, backbone):
        with torch.no_grad():
            features = backbone(images())
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
                    backbone.forward_maps(images())
                return
            maps = backbone.forward_maps(images())
            assert maps.ndim in (3, 4)
            assert maps.shape[1 if maps.ndim == 4 else 2] == backbone.map_channels
            assert torch.equal(backbone.pool(maps), backbone(images()))

    def test_groups_partition_the_parameters_in_order(self, backbone):
        groups = backbone.layer_groups()
        names = [group.name for group in groups]
        assert len(set(names)) == len(names) > 1
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
            def hook(module, args, output):
                order.setdefault(name, len(order))

            return hook

        modules = {name: module for name, module in backbone.named_modules() if not list(module.children())}
        for name, module in modules.items():
            if list(module.parameters()):
                hooks.append(module.register_forward_hook(note(name)))
        with torch.no_grad():
            backbone(images(1))
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
        assert config.image_size == (SIDE, SIDE)
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
            expected = backbone(images())
            other = create_backbone(backbone.name, weights="random", image_size=SIDE).eval()
            assert not torch.equal(other(images()), expected), "two random backbones agree: the test proves nothing"
            other.load_state_dict(backbone.state_dict())
            assert torch.equal(other(images()), expected)

    def test_a_picture_does_not_depend_on_its_batch(self, backbone):
        with torch.no_grad():
            together = backbone(images(4))
            alone = torch.cat([backbone(images(4)[row : row + 1]) for row in range(4)])
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-5 * max(1.0, float(together.abs().max())))

    def test_evaluation_is_deterministic(self, backbone):
        with torch.no_grad():
            assert torch.equal(backbone(images()), backbone(images()))

    def test_a_frozen_backbone_is_the_same_function_in_train_mode(self, backbone):  # fault 49, fault 50
        model = Model(build(backbone.name))
        freeze_first(model, len(model.backbone.layer_groups()))
        with torch.no_grad():
            expected = model.eval().backbone(images())
            digest = frozen_state_digest(model)
            for _ in range(2):
                assert torch.equal(model.train().backbone(images()), expected)
        assert model.head.training and model.training
        assert frozen_state_digest(model) == digest

    def test_a_frozen_prefix_does_not_move(self, backbone):  # fault 49
        model = Model(build(backbone.name))
        check_frozen_prefix(model, max(1, len(model.backbone.layer_groups()) // 2))
