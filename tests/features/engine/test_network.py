"""The frozen network against the plain backbone, for every kind of network; batch norm folded only where it may be."""

import pytest
import torch
from engine_worker import CLOSE, build, error, inputs, lively, own, random_images, small_net
from timm.layers import BatchNormAct2d
from torch import nn

from transferkit.core.errors import TransferkitError
from transferkit.features.engine import folding
from transferkit.features.engine.folding import fold_batch_norm
from transferkit.features.engine.network import freeze_network
from transferkit.features.engine.taps import LAST_CELLS, PYRAMID_CELLS, find_taps, places
from transferkit.models.digest import state_digest

NETWORKS = {  # name -> image size
    "test_resnet": 32,
    "test_efficientnet": 64,
    "test_vit": 64,
    "test_convnext": 64,
    "test_byobnet": 64,
    "test_nfnet": 64,
    "mobilenetv3_small_100": 64,
    "transferkit/mini": 64,
    "torchvision/squeezenet1_1": 64,
    "swin_tiny_patch4_window7_224": 64,  # channels last
    "densenet121": 32,
}


def norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def outputs_of_stages(backbone, images):
    """What each stage returns, copied at that moment: later layers may write into it."""
    outputs = {}

    def keep(name):
        def hook(module, args, output):
            outputs[name] = output.clone()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in backbone.stages().items()]
    with torch.no_grad():
        outputs["pooled"] = backbone(inputs(backbone, images))
    for handle in handles:
        handle.remove()
    return outputs


def as_places(backbone, output):
    """(B, places, C), with the prefix tokens left out."""
    if output.ndim == 3:
        return output[:, backbone.prefix_tokens :]
    if not backbone.channels_last:
        output = output.permute(0, 2, 3, 1)
    return output.reshape(output.shape[0], -1, output.shape[-1])


@pytest.mark.parametrize("backbone", list(NETWORKS), indirect=True, scope="class")
class TestEveryNetwork:
    """What the engine promises of each kind of backbone."""

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, request):
        return build(request.param, size=NETWORKS[request.param])

    def test_features_are_those_of_a_plain_loop(self, backbone):
        images = random_images(backbone)
        with torch.no_grad():
            exact = torch.cat([backbone(inputs(backbone, images[row : row + 1])) for row in range(len(images))])
        network = freeze_network(backbone, find_taps(backbone))
        with torch.inference_mode():
            (together,) = network(images)
            alone = torch.cat([network(images[row : row + 1])[0] for row in range(len(images))])
        assert together.shape == (4, backbone.num_features)
        assert together.dtype == torch.float32
        assert exact.std() > 0
        assert error(together, exact) <= CLOSE
        assert error(alone, exact) <= CLOSE

    def test_every_depth_is_what_a_hook_sees(self, backbone):
        images = random_images(backbone)
        taps = find_taps(backbone, "all")
        outputs = outputs_of_stages(backbone, images)
        with torch.inference_mode():
            rows = freeze_network(backbone, taps)(images)
        assert [tap.layer for tap in taps] == [*backbone.stages(), "pooled"]
        wrong = {}
        for tap, ours in zip(taps, rows, strict=True):
            output = outputs[tap.layer]
            exact = output if output.ndim == 2 else as_places(backbone, output).mean(dim=1)
            wrong |= {tap.layer: off} if (off := error(ours, exact)) > CLOSE else {}
        assert wrong == {}

    def test_pools_of_the_last_map(self, backbone):
        images = random_images(backbone)
        with torch.no_grad():
            maps = backbone.forward_maps(inputs(backbone, images))
        places = maps[:, backbone.prefix_tokens :] if maps.ndim == 3 else maps.flatten(2).transpose(1, 2)
        mean, largest = places.mean(dim=1), places.max(dim=1).values
        exact = {"avg": mean, "max": largest, "avgmax": torch.cat((mean, largest), dim=1)}
        if backbone.prefix_tokens:  # elsewhere refused, see test_taps.py
            exact["cls"] = maps[:, 0]
        taps = [find_taps(backbone, "pooled", pool)[0] for pool in exact]
        with torch.inference_mode():
            rows = freeze_network(backbone, taps)(images)
        for row, expected in zip(rows, exact.values(), strict=True):
            assert error(row, expected) <= CLOSE

    def test_cells_of_the_last_map(self, backbone):
        """Those of a loop over the places of the map, whose prefix tokens are gone and whose channels come first."""
        images = random_images(backbone, 2)
        with torch.no_grad():
            last = backbone.forward_last_map(inputs(backbone, images))
        width = last.shape[3]
        exact = torch.stack([
            torch.cat([one[:, place // width, place % width] for place in places(*last.shape[2:]).tolist()])
            for one in last
        ])  # fmt: skip
        with torch.inference_mode():
            (rows,) = freeze_network(backbone, (LAST_CELLS,))(images)
        assert error(rows, exact) <= CLOSE

    def test_the_callers_backbone_is_left_alone(self, backbone):
        images = random_images(backbone, 2)
        before, count = state_digest(backbone), norms(backbone)
        hooks = [len(module._forward_hooks) for module in backbone.modules()]
        with torch.no_grad():
            expected = backbone(inputs(backbone, images))
        network = freeze_network(backbone, find_taps(backbone, "all"))
        with torch.inference_mode():
            network(images)
        with torch.no_grad():
            assert torch.equal(backbone(inputs(backbone, images)), expected)
        assert state_digest(backbone) == before
        assert norms(backbone) == count
        assert [len(module._forward_hooks) for module in backbone.modules()] == hooks
        assert not network.training and not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("test_resnet", 0),
        ("test_efficientnet", 0),
        ("transferkit/mini", 0),
        ("mobilenetv3_small_100", 0),
        (
            "densenet121",
            62,
        ),  # 121 norms, each conv1 of 58 layers and the stem's conv have one behind them, the rest not
    ],
)
def test_norms_behind_a_convolution_are_gone(name, left):
    backbone = build(name, size=NETWORKS[name])
    assert norms(backbone) > left
    assert norms(freeze_network(backbone, find_taps(backbone))) == left


# --- stages that are no layers


class Odd(nn.Module):
    """Stages as some of timm's networks have them: a list that is never called itself, and one that gives a pair."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, 2)

        def forward(self, x):
            return self.conv(x), x.shape[-2:]

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2)
        self.several = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)])
        self.pair = self.Pair()
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.first(x)
        for each in self.several:
            x = each(x)
        return self.last(self.pair(x)[0])


def test_every_depth_of_a_network_whose_stages_are_odd():
    """As in hrnet (a `ModuleList`), mvitv2, twins, tnt (tuples), efficientvit (a layer that is not used)."""
    backbone = own(Odd())
    images = random_images(backbone)
    with torch.inference_mode():
        taps = find_taps(backbone, "all")
        rows = freeze_network(backbone, taps)(images)
    assert {"first", "last", "pooled"} <= {tap.layer for tap in taps}
    assert all(row.shape == (4, 8) and row.isfinite().all() for row in rows)


@pytest.mark.parametrize("layer", ["several", "pair"])
def test_a_stage_that_gives_no_features_is_refused(layer):
    backbone = own(Odd())
    with pytest.raises(TransferkitError, match=layer):
        freeze_network(backbone, find_taps(backbone, layer))


def test_tokens_of_a_stage_that_has_no_class_token_yet():
    """In xcit, cait and convit the class token joins late: until then every token is a place."""
    backbone = build("xcit_nano_12_p16_224", size=32)
    assert backbone.prefix_tokens == 1
    images = random_images(backbone, 2)
    tokens = outputs_of_stages(backbone, images)["blocks.0"]
    assert tokens.shape[1] == (32 // 16) ** 2
    with torch.inference_mode():
        (rows,) = freeze_network(backbone, find_taps(backbone, "blocks.0"))(images)
    assert error(rows, tokens.mean(dim=1)) <= CLOSE


@pytest.mark.parametrize(
    "make",
    [
        # The next layer writes into the stage's output.
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 2)),
        # Folding the norm behind the stage would change what it gives.
        small_net,
    ],
    ids=["written into", "folded"],
)
def test_a_stage_is_what_it_returns(make):
    torch.manual_seed(0)
    backbone = own(make())
    images = random_images(backbone)
    with torch.no_grad():
        exact = backbone.model[0](inputs(backbone, images)).mean(dim=(2, 3))
    assert (exact < 0).any(), "nothing is cut off by the ReLU: this proves nothing"
    with torch.inference_mode():
        (rows,) = freeze_network(backbone, find_taps(backbone, "stage1"))(images)
    assert error(rows, exact) <= CLOSE


# --- folding


def example(seed=0):
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


class Twice(nn.Module):
    """A convolution whose output goes into a norm and past it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class Shared(nn.Module):
    """A convolution used twice, with a norm behind the first use."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.conv(self.norm(self.conv(x)))


class SharedNorm(nn.Module):
    """One norm behind two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.second(self.norm(self.first(x))))


class TwoOutputs(nn.Module):
    """A network that returns what comes before the norm as well."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return y, self.norm(y)


UNFOLDABLE = {
    "output used twice": Twice,
    "convolution used twice": Shared,
    "norm used twice": SharedNorm,
    "output returned": TwoOutputs,
    "norm first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
    "something between": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
    "something between, in place": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)),
    "statistics of the batch": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
}


@pytest.mark.parametrize("kind", list(UNFOLDABLE))
def test_nothing_is_folded_that_would_change_the_function(kind):
    torch.manual_seed(0)
    network = UNFOLDABLE[kind]()
    if kind != "statistics of the batch":
        lively(network)
    network.eval()
    before, modules = state_digest(network), dict(network.named_modules())
    with torch.no_grad():
        expected = network(example(1))
        assert fold_batch_norm(network, example()) == 0
        again = network(example(1))
    assert all(
        torch.equal(*pair)
        for pair in (zip(expected, again, strict=True) if isinstance(again, tuple) else [(expected, again)])
    )
    assert state_digest(network) == before
    assert dict(network.named_modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_the_comparison_is_what_protects(monkeypatch):
    network = lively(Twice()).eval()
    with torch.no_grad():
        expected = network(example())
        monkeypatch.setattr(folding, "_close", lambda old, new: True)
        assert fold_batch_norm(network, example()) == 1
        assert error(network(example()), expected) > 0.1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_folded_is_the_same_function(bias, affine, groups):
    torch.manual_seed(0)
    network = lively(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, groups=groups, bias=bias, padding_mode="reflect"),
            nn.BatchNorm2d(6, affine=affine, eps=1e-3),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3, bias=bias),
            nn.BatchNorm2d(4, affine=affine),
        )
    ).eval()
    with torch.no_grad():
        expected = network(example(1))
        assert fold_batch_norm(network, example()) == 2
        assert norms(network) == 0
        assert error(network(example(1)), expected) <= CLOSE


def test_what_a_norm_carries_stays():
    torch.manual_seed(0)
    network = lively(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4))).eval()
    with torch.no_grad():
        expected = network(example())
        assert expected.min() == 0
        assert fold_batch_norm(network, example()) == 1
        assert norms(network) == 0
        assert error(network(example()), expected) <= CLOSE


def test_a_network_with_nan_weights_is_left_as_it_is():
    network = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = torch.nan
    assert fold_batch_norm(network, example()) == 0
    assert norms(network) == 1


@pytest.mark.parametrize(("name", "layer"), [("volo_d1_224", "network.1"), ("pvt_v2_b0", "patch_embed")])
def test_a_stage_in_the_other_layout(name, layer):
    """Networks that give maps ``(B, H, W, C)`` at some depths although they declare nothing."""
    backbone = build(name, size=64)
    images = random_images(backbone, 2)
    maps = outputs_of_stages(backbone, images)[layer]
    assert maps.shape[1] == maps.shape[2] != maps.shape[3]
    with torch.inference_mode():
        (rows,) = freeze_network(backbone, find_taps(backbone, layer))(images)
    assert rows.shape[1] == maps.shape[3]
    assert error(rows, maps.mean(dim=(1, 2))) <= CLOSE


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "transferkit/mini", "swin_tiny_patch4_window7_224"])
def test_cells_of_a_pyramid_are_all_levels_enlarged_to_the_finest(name):
    backbone = build(name, size=64)
    images = random_images(backbone, 2)
    with torch.no_grad():
        maps = backbone.forward_pyramid(inputs(backbone, images))
    maps = [level for level, at in zip(maps, backbone.pyramid(), strict=True) if at.stride >= 4]
    enlarged = [nn.functional.interpolate(level, maps[0].shape[2:], mode="bilinear") for level in maps]
    chosen = places(*maps[0].shape[2:])
    exact = torch.cat(enlarged, dim=1).flatten(2)[:, :, chosen].transpose(1, 2).flatten(1)
    with torch.inference_mode():
        (rows,) = freeze_network(backbone, (PYRAMID_CELLS,))(images)
    assert len(maps) == 4
    assert error(rows, exact) <= CLOSE


def test_cells_are_taken_alone():
    with pytest.raises(ValueError, match="cells are taken alone"):
        freeze_network(build("test_resnet"), (*find_taps(build("test_resnet")), LAST_CELLS))
