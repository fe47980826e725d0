"""Backbones: the contract for every kind, names and weights, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import contracts
import pytest
import timm
import torch
import torchvision
from contracts import SIDE, BackboneContract, build, images
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from transferkit.core.errors import BackboneError, ConfigError
from transferkit.core.files import sha256_of_file
from transferkit.core.records import DataConfig
from transferkit.models.artifact import load_model
from transferkit.models.backbones import (
    mini,
    registered,
)
from transferkit.models.backbones.groups import child_groups, named_groups
from transferkit.models.backbones.registry import (
    create_backbone,
    describe_backbone,
    list_backbones,
    register_backbone,
)
from transferkit.models.backbones.torchvision import _adapted
from transferkit.models.weights import downloads, hub
from transferkit.models.weights.downloads import WeightsFile


class Own(nn.Module):
    """A backbone as a user writes one: a loose parameter, two stages, batch norm; gives a feature map."""

    def __init__(self, width=12, vector=False):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(8, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU())
        self.vector = vector

    def forward(self, x):
        maps = self.head(self.first(x + self.shift))
        return maps.mean((2, 3)) if self.vector else maps


@pytest.fixture(scope="module", autouse=True)
def own_registry():
    before = dict(registered.REGISTRATIONS)
    register_backbone("own", data_config=DataConfig(image_size=(32, 32)), license="MIT")(Own)

    @register_backbone("own-vector")
    def build_vector(width=12):
        return Own(width, vector=True)

    yield
    registered.REGISTRATIONS.clear()
    registered.REGISTRATIONS.update(before)


class TestTimm(BackboneContract):
    widths = {  # noqa: RUF012
        "test_resnet": 96,
        "test_efficientnet": 256,
        "test_vit": 64,
        "test_convnext": 64,
        "mobilenetv3_small_050": 1024,  # timm's num_features says 288
        "transferkit/mini": 256,
    }


class TestTorchvision(BackboneContract):
    widths = {  # noqa: RUF012
        "torchvision/squeezenet1_1": 512,
        "torchvision/resnet18": 512,
        "torchvision/mobilenet_v3_small": 1024,
    }


class TestRegistered(BackboneContract):
    widths = {"own": 12, "own-vector": 12}  # noqa: RUF012
    maps = {"own-vector": ()}  # noqa: RUF012
    least_groups = 3
    without_maps = frozenset({"own-vector"})


def test_the_contract_can_fail():
    contract = BackboneContract()
    backbone = build("own").eval()
    groups = backbone.layer_groups()
    for broken, check, message in (
        (groups[::-1], contract.test_groups_are_ordered_from_input_to_output, "runs before the one listed before it"),
        (groups[:-1], contract.test_groups_partition_the_parameters_in_order, "assert"),
        ((*groups, groups[0]), contract.test_groups_partition_the_parameters_in_order, "assert"),
    ):
        backbone.layer_groups = lambda broken=broken: broken
        with pytest.raises(AssertionError, match=message):
            check(backbone)
    backbone.num_features = 11
    with pytest.raises(AssertionError):
        contract.test_features_have_the_promised_width(backbone)
    backbone.num_features = 12
    contract.maps = {"own": (8, 13)}
    with pytest.raises(AssertionError):
        contract.test_the_pyramid_has_the_promised_widths(backbone)
    contract.maps = {"own": ()}
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        contract.test_the_pyramid_has_the_promised_widths(backbone)
    backbone.forward_maps = lambda pictures: 2 * backbone.model(pictures)
    with pytest.raises(AssertionError):
        contract.test_features_are_the_pooled_maps(backbone)


class Idle(Own):
    """A network with a layer that nothing is computed with."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Conv2d(8, 8, 1)


class Shaken(Own):
    """A network whose features are drawn at random, whatever its weights are."""

    def forward(self, x):
        return super().forward(x) + torch.rand(1)


class Lost(Own):
    """A network with a number that is in no state dict."""

    def __init__(self):
        super().__init__()
        self.scale = float(torch.rand(()))

    def forward(self, x):
        return super().forward(x) * self.scale


@pytest.mark.parametrize(
    ("network", "check", "message"),
    [
        (Idle, "test_a_training_step_reaches_every_parameter", "no gradient reaches a parameter"),
        (Shaken, "test_a_frozen_backbone_is_the_same_function_in_train_mode", "assert"),
        (Lost, "test_a_trained_network_comes_back", "assert"),
    ],
)
def test_a_network_that_breaks_the_contract_is_seen(network, check, message, tmp_path):
    register_backbone(f"broken-{network.__name__}")(network)
    contract = BackboneContract()
    options = {"tmp_path": tmp_path} if check == "test_a_trained_network_comes_back" else {}
    with pytest.raises(AssertionError, match=message):
        getattr(contract, check)(build(f"broken-{network.__name__}"), **options)


def test_an_exported_file_of_other_labels_is_seen(tmp_path, monkeypatch):
    """The comparison from outside: what `export` wrote is run beside another network."""
    monkeypatch.setattr(contracts, "load_model", lambda run: (Swapped(load_model(run)[0]), None))
    contract = contracts.ExportContract()
    contract.sides = {"test_resnet": 32}
    with pytest.raises(AssertionError):
        contract.test_the_exported_file_gives_the_same_labels("test_resnet", tmp_path)


class Swapped(nn.Module):
    """A model whose classes are in another order."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).roll(1, dims=1)


def test_few_groups_are_opened_at_their_largest_sequence():
    net = nn.Sequential()
    net.stem = nn.Conv2d(3, 4, 1)
    net.body = nn.ModuleDict({"first": nn.Linear(2, 2), "stages": nn.Sequential(*(nn.Linear(9, 9) for _ in range(3)))})
    net.body["last"] = nn.LayerNorm(2)
    listed = [[name for name, _ in net.named_parameters() if name.startswith(part)] for part in ("stem", "body")]
    names = [[name for name, _ in group.parameters] for group in named_groups(net, listed, least=4)]
    assert names == [
        ["stem.weight", "stem.bias"],
        ["body.first.weight", "body.first.bias"],
        ["body.stages.0.weight", "body.stages.0.bias"],
        ["body.stages.1.weight", "body.stages.1.bias"],
        ["body.stages.2.weight", "body.stages.2.bias", "body.last.weight", "body.last.bias"],
    ]
    assert len(named_groups(net, listed, least=2)) == 2
    assert len(named_groups(nn.Linear(2, 2), [["weight"], ["bias"]], least=4)) == 2  # nothing is left to open


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r"unknown backbone 'resnet81'\. Did you mean '"),
        ("timm/test_resnett", r"unknown backbone 'timm/test_resnett'\. Did you mean 'timm/test_resnet'"),
        ("torchvision/resnet19", r"unknown backbone .* Did you mean 'torchvision/resnet18'"),
        ("mini", r"unknown backbone 'mini'\. Did you mean 'transferkit/mini'\?"),
        ("squeezenet1_1", r"Did you mean 'torchvision/squeezenet1_1'\?"),
        ("", "unknown backbone ''"),
        ("resnet18.a9_in1k", r"'resnet18' has no weights tagged 'a9_in1k'\. Did you mean 'resnet18.a\d_in1k'"),
        ("vit_tiny_patch16_224_in21k", "has a new name in timm - use 'vit_tiny_patch16_224.augreg_in21k'"),
    ],
)
def test_unknown_names_get_close_matches(name, message):  # fault 30
    with pytest.raises(BackboneError, match=message) as caught:
        create_backbone(name, weights="random")
    assert "\n" not in str(caught.value)


def test_timm_names_with_and_without_prefix_and_tag_are_one_network():
    expected = build("test_resnet").eval()
    for name in ("timm/test_resnet", "test_resnet.r160_in1k", "timm/test_resnet.r160_in1k"):
        other = build(name).eval()
        assert other.name == name
        assert torch.equal(other(images()), expected(images()))


def test_listing():
    assert list_backbones("transferkit/*") == ["transferkit/mini"]
    assert list_backbones("own*") == ["own", "own-vector"]
    assert list_backbones("own*", pretrained_only=True) == []
    from_torchvision = list_backbones("torchvision/*")
    assert {"torchvision/resnet18", "torchvision/vit_b_16"} <= set(from_torchvision)
    others = ("mnasnet", "rcnn", "fcn", "raft")  # cannot be reloaded, or classify nothing
    assert not [name for name in from_torchvision if any(other in name for other in others)]
    assert list_backbones("test_resnet") == ["test_resnet"]
    assert list_backbones("timm/test_resnet") == ["timm/test_resnet"]
    assert list_backbones("test_resnet.*") == ["test_resnet.r160_in1k"]
    assert "test_vit4" in list_backbones("test_*") and "test_vit4" not in list_backbones("test_*", pretrained_only=True)
    assert len(list_backbones()) > 1000
    assert list_backbones("no such thing") == []


def test_describe_by_hand():
    facts = describe_backbone("torchvision/resnet18")
    # He et al. 2016: 11,689,512 parameters with the classifier's 512 x 1000 + 1000.
    assert facts["parameters"] == 11_689_512 - 513_000
    assert facts["num_features"] == 512
    assert facts["image_size"] == [224, 224] and facts["crop_pct"] == 224 / 256
    assert facts["mean"] == [0.485, 0.456, 0.406]
    assert facts["license"] == "BSD-3-Clause"
    assert facts["pretrained"].endswith("resnet18-f37072fd.pth")
    assert list(facts["layer_groups"]) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert sum(facts["layer_groups"].values()) == facts["parameters"]
    json.dumps(facts)


@pytest.mark.parametrize(
    ("name", "source", "license_"),
    [
        ("test_vit", "hf-hub:timm/test_vit.r160_in1k", "apache-2.0"),
        ("timm/test_vit", "hf-hub:timm/test_vit.r160_in1k", "apache-2.0"),
        ("test_vit4", None, None),
        ("transferkit/mini", "bundled", mini.MINI_LICENSE),
        ("own", None, None),
    ],
)
def test_describe_says_where_weights_come_from(name, source, license_):
    facts = describe_backbone(name)
    assert (facts["pretrained"], facts["license"]) == (source, license_)


# --- layer groups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_resnet", ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("test_vit", ["stem", *(f"blocks.{n}" for n in range(6))]),
        ("test_convnext", ["stem", *(f"stages.{n}" for n in range(4)), "head.norm"]),
        ("mobilenetv3_small_050", ["stem", *(f"blocks.{n}" for n in range(6)), "conv_head"]),
        ("own", ["stem", "first", "head.0"]),
        ("torchvision/squeezenet1_1", [f"features.{n}" for n in (0, 3, 4, 6, 7, 9, 10, 11, 12)]),
    ],
)
def test_group_names_by_hand(name, expected):
    assert [group.name for group in build(name).layer_groups()] == expected


def test_the_stem_of_a_vit_holds_what_comes_before_the_blocks():
    stem = build("test_vit").layer_groups()[0]
    short = {name.removeprefix("model.") for name, _ in stem.parameters}
    assert short == {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_parameters_no_group_lists_join_their_neighbour():
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    groups = named_groups(net, [["0.weight"], ["2.weight", "2.bias"]])
    assert [[name for name, _ in group.parameters] for group in groups] == [
        ["0.weight", "0.bias", "1.weight", "1.bias"],
        ["2.weight", "2.bias"],
    ]
    assert [group.name for group in child_groups(net)] == ["0", "1", "2"]


# --- weights from files ------------------------------------------------------------------------------------------


def timm_file(path: Path, name: str, *, num_classes: int = 7, **options) -> nn.Module:
    """Save a whole timm classifier with numbers unlike any fresh one's, as timm and the hub store them."""
    torch.manual_seed(5)
    model = timm.create_model(name, num_classes=num_classes, **options)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) * 0.1 + 0.01)
    save_file(model.state_dict(), path)
    return model.eval()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_a_file_is_loaded_whole(name, tmp_path):
    model = timm_file(tmp_path / "w.safetensors", name)
    backbone = create_backbone(name, weights=str(tmp_path / "w.safetensors")).eval()
    own = backbone.model.state_dict()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in own.items())
    assert backbone.weights_source == "file:w.safetensors"
    assert backbone.weights_sha256 == sha256_of_file(tmp_path / "w.safetensors")
    assert backbone.license is None
    pictures = torch.randn(2, 3, *backbone.data_config.image_size)
    with torch.no_grad():
        logits = model.get_classifier()(backbone(pictures))
        torch.testing.assert_close(logits, model(pictures))


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


def with_nan(state):
    state["norm.bias"][0] = float("nan")
    return state


@pytest.mark.parametrize(
    ("saved", "change", "name", "image_size", "message"),
    [
        ("test_resnet", dict, "test_efficientnet", None, r"'file:w.safetensors' do not fit the backbone: \d+ of \d+"),
        ("resnet34", dict, "resnet18", None, "do not fit"),  # the tensors of a resnet18 are a part of those
        ("test_resnet", dict, "dla46_c", None, "do not fit"),  # dla is built non-strict inside timm
        ("test_resnet", lambda state: {"some.weight": torch.ones(3)}, "dla46_c", None, r": 0 of \d+ tensors matched"),
        ("dla46_c", without("base_layer.1.weight"), "dla46_c", None, "missing 'base_layer.1.weight'"),
        ("test_vit", without("blocks.0.attn.qkv.weight"), "test_vit", None, "missing 'blocks.0.attn.qkv.weight'"),
        # 96: position embeddings are resampled by timm's own loader, which must hide nothing
        ("test_vit", without("blocks.3.mlp.fc1.weight"), "test_vit", 96, "missing 'blocks.3.mlp.fc1.weight'"),
        ("test_vit", with_nan, "test_vit", None, "NaN"),
        ("test_vit", with_nan, "test_vit", 96, "do not fit"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(saved, change, name, image_size, message, tmp_path):  # fault 34
    state = timm_file(tmp_path / "whole.safetensors", saved).state_dict()
    save_file(change(dict(state)), tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=message):
        create_backbone(name, weights=str(tmp_path / "w.safetensors"), image_size=image_size)


def test_position_embeddings_of_a_file_are_resampled(tmp_path):
    model = timm_file(tmp_path / "w.safetensors", "test_vit")
    backbone = create_backbone("test_vit", weights=str(tmp_path / "w.safetensors"), image_size=96)
    assert backbone.data_config.image_size == (96, 96)
    position, fresh = model.pos_embed, backbone.model.pos_embed
    assert position.shape == (1, 101, 64) and fresh.shape == (1, 37, 64)
    # No antialiasing is asked for here, only that the numbers come from the file: the same mean, not the fresh std.
    assert fresh.mean().item() == pytest.approx(position.mean().item(), rel=0.02)
    expected = nn.functional.interpolate(
        position[:, 1:].reshape(1, 10, 10, 64).permute(0, 3, 1, 2), size=(6, 6), mode="bicubic", antialias=True
    )
    torch.testing.assert_close(fresh[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 36, 64))
    rest = {key: value for key, value in backbone.model.state_dict().items() if key != "pos_embed"}
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in rest.items())


def test_a_foreign_format_goes_through_timms_filter(tmp_path):
    """The original ConvNeXt names (Meta's release), which timm's filter renames."""
    model = timm_file(tmp_path / "w.safetensors", "convnext_atto", num_classes=5)
    renamed = {}
    for key, value in model.state_dict().items():
        key = key.replace("head.norm.", "norm.").replace("head.fc.", "head.")
        key = (
            key.replace("stem.", "downsample_layers.0.").replace(".conv_dw.", ".dwconv.").replace(".mlp.fc", ".pwconv")
        )
        for stage in range(4):
            key = key.replace(f"stages.{stage}.downsample", f"downsample_layers.{stage}")
            key = key.replace(f"stages.{stage}.blocks", f"stages.{stage}")
        if "pwconv" in key and key.endswith("weight"):
            value = value.flatten(1)
        renamed[key] = value.contiguous()
    save_file(renamed, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match="do not fit"):  # another size of the same family still does not pass
        create_backbone("convnext_femto", weights=str(tmp_path / "w.safetensors"), image_size=SIDE)
    backbone = create_backbone("convnext_atto", weights=str(tmp_path / "w.safetensors"), image_size=SIDE)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in backbone.model.state_dict().items())


def test_a_missing_tensor_of_a_foreign_format_is_seen_where_timm_is_not_strict(tmp_path, monkeypatch):  # fault 34
    """The tensor-by-tensor check itself: timm's loader is made non-strict, as it is for some families."""
    state = timm_file(tmp_path / "w.safetensors", "test_vit", num_classes=0).state_dict()
    state.pop("blocks.2.norm1.weight")  # initialised with ones whatever the seed
    save_file(state, tmp_path / "w.safetensors")
    builder = sys.modules["timm.models._builder"]
    load = builder.load_pretrained
    monkeypatch.setattr(builder, "load_pretrained", lambda *args, **more: load(*args, **{**more, "strict": False}))
    with pytest.raises(BackboneError, match=r"missing 'blocks.2.norm1.weight'"):
        create_backbone("test_vit", weights=str(tmp_path / "w.safetensors"), image_size=96)


def test_facts_beside_a_file_travel_with_it(tmp_path):
    timm_file(tmp_path / "w.safetensors", "test_vit")
    config = DataConfig((96, 96), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "nearest", 0.7, "squash")
    (tmp_path / "model.json").write_text(json.dumps({"preprocessing": config.to_dict()}), encoding="utf-8")
    backbone = create_backbone("test_vit", weights=str(tmp_path / "w.safetensors"))
    assert backbone.data_config == config
    assert backbone.model.pos_embed.shape[1] == 37
    (tmp_path / "model.json").write_text(json.dumps({"preprocessing": {"mean": 3}}), encoding="utf-8")
    with pytest.raises(BackboneError, match=r"no readable `preprocessing` \(ValueError"):
        create_backbone("test_vit", weights=str(tmp_path / "w.safetensors"))


# --- bundled weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["bundled", "pretrained"])
def test_the_bundled_weights_match_every_tensor(weights):
    backbone = create_backbone("transferkit/mini", weights=weights)
    stored = load_file(mini._FILE)
    own = backbone.model.state_dict()
    assert stored.keys() == own.keys()
    assert all(torch.equal(value.to(own[key].dtype), own[key]) for key, value in stored.items())
    assert (backbone.weights_source, backbone.license) == ("bundled", mini.MINI_LICENSE)
    assert backbone.weights_sha256 == sha256_of_file(mini._FILE)
    assert backbone.data_config.image_size == (96, 96)


# --- pretrained weights, with the fetching replaced --------------------------------------------------------------


@pytest.fixture
def fetched(monkeypatch):
    """Serve files by hub id or URL in place of the network; ``"requests"`` lists what was fetched."""
    served: dict[str, Path] = {}
    requests: list[str] = []

    def from_hub(repo_id, *, revision=None, filenames=("model.safetensors", "pytorch_model.bin")):
        requests.append(repo_id)
        return WeightsFile(served[repo_id], f"hf-hub:{repo_id}", sha256_of_file(served[repo_id]))

    def from_url(url):
        requests.append(url.rpartition("/")[2])
        return WeightsFile(served["url"], url, sha256_of_file(served["url"]))

    monkeypatch.setattr(hub, "fetch_from_hub", from_hub)
    monkeypatch.setattr(downloads, "fetch_url", from_url)
    served["requests"] = requests
    return served


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet.r160_in1k"])
def test_pretrained_timm_weights_are_those_of_the_file(name, fetched, tmp_path):
    architecture = name.partition(".")[0]
    model = timm_file(tmp_path / "w.safetensors", architecture, num_classes=1000)
    repo = f"timm/{architecture}.r160_in1k"
    fetched[repo] = tmp_path / "w.safetensors"
    backbone = create_backbone(name)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in backbone.model.state_dict().items())
    assert (backbone.weights_source, backbone.license) == (f"hf-hub:{repo}", "apache-2.0")
    assert backbone.weights_sha256 == sha256_of_file(tmp_path / "w.safetensors")
    assert "state_dict" not in backbone.model.pretrained_cfg
    assert fetched["requests"] == [repo]


def test_pretrained_torchvision_weights(fetched, tmp_path):
    torch.manual_seed(3)
    model = torchvision.models.resnet18().eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    fetched["url"] = tmp_path / "w.safetensors"
    backbone = create_backbone("torchvision/resnet18").eval()
    assert fetched["requests"] == ["resnet18-f37072fd.pth"]
    assert backbone.license == "BSD-3-Clause"
    with torch.no_grad():
        torch.testing.assert_close(model.fc(backbone(images())), model(images()))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("test_resnet", "pretrained", "do not fit the backbone"),  # it is served another's
        ("test_vit4", "pretrained", "'test_vit4' has no pretrained weights - pass --weights FILE"),
        ("own", "pretrained", "'own' was registered without pretrained weights"),
        ("resnet18", "bundled", "'resnet18' has no bundled weights - only 'transferkit/mini' has"),
        ("own", "hf-hub:someone/x", "are for timm's networks, not for backbone 'own'"),
        (
            "torchvision/resnet18",
            "hf-hub:someone/x",
            "are for timm's networks, not for backbone 'torchvision/resnet18'",
        ),
        ("transferkit/mini", "hf-hub:someone/x", "are for timm's networks, not for backbone 'transferkit/mini'"),
    ],
)
def test_wrong_weights_or_none_never_give_a_random_network(fetched, tmp_path, name, weights, message):  # fault 34
    timm_file(tmp_path / "w.safetensors", "test_efficientnet")
    fetched["timm/test_resnet.r160_in1k"] = tmp_path / "w.safetensors"
    with pytest.raises(BackboneError, match=message):
        create_backbone(name, weights=weights)


def hub_config(monkeypatch, **values):
    monkeypatch.setattr(hub, "hub_config", lambda repo_id: values)


def test_a_hub_id_brings_its_own_facts(fetched, monkeypatch, tmp_path):
    timm_file(tmp_path / "w.safetensors", "test_vit", num_classes=4, img_size=96)
    fetched["someone/vit"] = tmp_path / "w.safetensors"
    hub_config(
        monkeypatch,
        architecture="test_vit",
        num_classes=4,
        pretrained_cfg={
            "input_size": [3, 96, 96],
            "mean": [0.1, 0.2, 0.3],
            "std": [0.3, 0.2, 0.1],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "license": "cc-by-4.0",
            "file": "/etc/passwd",
            "custom_load": True,
        },
        model_args={"img_size": 96, "checkpoint_path": "/etc/passwd"},
    )
    backbone = create_backbone("test_vit", weights="hf-hub:someone/vit")
    assert backbone.data_config == DataConfig((96, 96), (0.1, 0.2, 0.3), (0.3, 0.2, 0.1), "bilinear", 1.0, "center")
    assert (backbone.weights_source, backbone.license) == ("hf-hub:someone/vit", "cc-by-4.0")
    assert backbone.model.pos_embed.shape[1] == 37


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architecture": "resnet50"},
            "are of architecture 'resnet50', but the backbone is 'test_vit' - pass --backbone",
        ),
        ({"model_type": "bert"}, "without an architecture"),
        ({"architecture": "test_vit", "pretrained_cfg": 3}, "the config of 'hf-hub:someone/x' is not timm's"),
    ],
)
def test_a_hub_id_of_another_network_is_refused(config, message, monkeypatch):
    hub_config(monkeypatch, **config)
    with pytest.raises(BackboneError, match=message):
        create_backbone("test_vit", weights="hf-hub:someone/x")


# --- torchvision, family by family -------------------------------------------------------------------------------

CUT = {  # the last layer, and the width of its input
    "alexnet": ("classifier.6", 4096),
    "densenet121": ("classifier", 1024),
    "efficientnet_b0": ("classifier.1", 1280),
    "googlenet": ("fc", 1024),
    "mobilenet_v2": ("classifier.1", 1280),
    "regnet_y_400mf": ("fc", 440),
    "shufflenet_v2_x0_5": ("fc", 1024),
    "convnext_tiny": ("classifier.2", 768),
    "swin_t": ("head", 768),
}


@pytest.mark.parametrize("name", CUT)
def test_torchvision_features_are_the_input_of_the_last_layer(name, tmp_path):
    quiet = {"aux_logits": False, "transform_input": True, "init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **quiet).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    layer, width = CUT[name]
    inputs = []
    model.get_submodule(layer).register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    backbone = create_backbone(f"torchvision/{name}", weights=str(tmp_path / "w.pth"), image_size=SIDE).eval()
    with torch.no_grad():
        model(images(1))
        features = backbone(images(1))
        assert features.shape == (1, width)
        torch.testing.assert_close(features, inputs[0])
        if backbone.map_channels is not None:
            assert torch.equal(backbone.pool(backbone.forward_maps(images(1))), features)
    groups = backbone.layer_groups()
    assert sum(len(group.parameters) for group in groups) == len(list(backbone.parameters()))
    assert len({group.name for group in groups}) == len(groups) > 2


def test_old_densenet_names_are_understood():
    old = {"features.denseblock1.denselayer2.norm.1.weight": torch.ones(1), "features.denseblock1.denselayer2.x": 1}
    assert list(_adapted(nn.Identity(), "densenet121", (SIDE, SIDE), old)) == [
        "features.denseblock1.denselayer2.norm1.weight",
        "features.denseblock1.denselayer2.x",
    ]


def test_a_torchvision_vit_takes_other_image_sizes():
    small = {"patch_size": 16, "num_layers": 1, "num_heads": 1, "hidden_dim": 8, "mlp_dim": 8}
    saved = VisionTransformer(image_size=96, **small)
    nn.init.normal_(saved.encoder.pos_embedding)
    other = VisionTransformer(image_size=SIDE, **small)
    state = _adapted(other, "vit_b_16", (SIDE, SIDE), dict(saved.state_dict()))
    other.load_state_dict(state)
    grid = saved.encoder.pos_embedding[:, 1:].permute(0, 2, 1).reshape(1, 8, 6, 6)
    expected = nn.functional.interpolate(grid, size=4, mode="bicubic", align_corners=True).reshape(1, 8, 16)
    torch.testing.assert_close(other.encoder.pos_embedding[:, 1:], expected.permute(0, 2, 1))
    with pytest.raises(BackboneError, match="takes square pictures only, not 64x96"):
        create_backbone("torchvision/vit_b_16", weights="random", image_size=(64, 96))


# --- arguments ---------------------------------------------------------------------------------------------------


def test_backbone_args_reach_the_network():
    assert build("test_resnet", backbone_args={"drop_rate": 0.25}).model.drop_rate == 0.25
    assert build("transferkit/mini", backbone_args={"drop_rate": 0.25}).model.drop_rate == 0.25
    assert build("own", backbone_args={"width": 20}).num_features == 20
    assert build("torchvision/mobilenet_v3_small", backbone_args={"dropout": 0.0}).num_features == 1024


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("test_resnet", {"foo": 1}, "cannot be built with the arguments foo=1 .*unexpected keyword argument 'foo'"),
        ("test_vit", {"foo": 1}, "unexpected keyword argument 'foo'"),
        ("test_resnet", {"foo": None}, "'foo' is None, which timm ignores"),
        (
            "test_resnet",
            {"num_classes": 3, "img_size": 4},
            r"\(1\) 'num_classes' is decided .*\(2\) 'img_size' is set by",
        ),
        ("test_resnet", {"checkpoint_path": "x"}, "'checkpoint_path' is decided by transferkit"),
        ("test_resnet", {"global_pool": ""}, r"returns \(1, 96, 2, 2\) .* keep its pooling on"),
        ("torchvision/resnet18", {"foo": 1}, "cannot be built with the arguments foo=1"),
        ("torchvision/resnet18", {"num_classes": 3}, "num_classes in backbone_args is decided"),
        ("transferkit/mini", {"foo": 1}, "does not take foo - it takes drop_block_rate, drop_path_rate, drop_rate"),
        ("own", {"foo": 1}, "'own' does not take these backbone_args: got an unexpected keyword argument 'foo'"),
    ],
)
def test_unknown_backbone_args_are_refused(name, arguments, message):
    with pytest.raises(BackboneError, match=message):
        build(name, backbone_args=arguments)


def test_image_size():
    assert build("test_vit").model.pos_embed.shape[1] == 17
    assert create_backbone("test_vit", weights="random", image_size=(64, 96)).model.pos_embed.shape[1] == 25
    assert create_backbone("test_resnet", weights="random").data_config.image_size == (160, 160)
    for size in (0, -3, (64, 0)):
        with pytest.raises(ConfigError, match=r"image_size is .*, expected a side or HEIGHTxWIDTH"):
            create_backbone("test_resnet", weights="random", image_size=size)
    with pytest.raises(BackboneError, match="fails on a picture of 8x8 pixels"):
        create_backbone("torchvision/alexnet", weights="random", image_size=8)


def test_building_leaves_the_random_numbers_of_others_alone(tmp_path):
    timm_file(tmp_path / "w.safetensors", "test_vit")
    torch.manual_seed(1)
    expected = [create_backbone("test_vit", weights="random", image_size=96), torch.rand(3)][1]
    torch.manual_seed(1)
    create_backbone("test_vit", weights=str(tmp_path / "w.safetensors"), image_size=96)
    assert torch.equal(torch.rand(3), expected)


# --- registering -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["own", "resnet18", "torchvision/mine", "transferkit/mine", "timm/mine"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(ConfigError, match=f"a backbone named '{name}' exists already"):
        register_backbone(name)


def test_a_builder_may_bring_its_weights(tmp_path):
    register_backbone("trained", pretrained=True, license="MIT")(Own)
    backbone = create_backbone("trained", image_size=SIDE)
    assert (backbone.weights_source, backbone.license) == ("registered", "MIT")
    with pytest.raises(BackboneError, match="the builder of backbone 'trained' loads weights itself"):
        create_backbone("trained", weights="random")
    save_file(Own().state_dict(), tmp_path / "w.safetensors")
    other = create_backbone("trained", weights=str(tmp_path / "w.safetensors"), image_size=SIDE)
    assert (other.weights_source, other.license) == ("file:w.safetensors", None)


def test_a_builder_that_returns_no_network_is_refused():
    register_backbone("nothing")(lambda: 3)
    with pytest.raises(BackboneError, match="the builder of backbone 'nothing' returned a int"):
        create_backbone("nothing", weights="random")
    register_backbone("tokens")(lambda: nn.Flatten(2))
    with pytest.raises(BackboneError, match=r"'tokens' returns \(1, 3, 4096\) for one picture of 64x64 pixels"):
        create_backbone("tokens", weights="random", image_size=SIDE)
