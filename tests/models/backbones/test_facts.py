"""The facts about a backbone beside the lectures' table, the papers', and what is measured on the network itself."""

import pytest
import torch
from torch import nn

from transferkit.models.backbones.facts import multiply_adds
from transferkit.models.backbones.field import receptive_fields
from transferkit.models.backbones.registry import blank_backbone, create_backbone, describe, describe_backbone

MILLION = 1e6

# The lectures' figure in millions, and how near ours is. Parameters are counted with the classifier of 1000 classes,
# as the lectures do; multiply-adds without it, which is at most 0.01 of them, but for AlexNet.
PARAMETERS = {
    "torchvision/alexnet": (60, 0.02),  # of "one weird trick", on one GPU: without groups, and with narrower layers
    "vgg11": (133, 0.01),
    "vgg13": (133, 0.01),
    "vgg16": (138, 0.01),
    "vgg19": (144, 0.01),
    "mobilenetv1_100": (4.2, 0.02),
    "mobilenetv2_100": (3.4, 0.04),  # 3.50 M, of which 0.03 M scale and shift of batch norm; the paper prints 3.4
    "densenet201": (20, 0.01),
    "torchvision/squeezenet1_0": (1.25, 0.01),  # Iandola et al. 2016, table 1: 4.8 MB in float32
    "nasnetalarge": (88.9, 0.01),  # Zoph et al. 2018, table 2; the mobile one is in neither library
    "torchvision/shufflenet_v2_x1_5": (3.5, 0.01),  # Ma et al. 2018, table 8; the lectures' 3.4 M is version 1
}
OPERATIONS = {
    "mobilenetv1_100": (575, 0.02),  # the paper on version 1 has 569 M
    "mobilenetv2_100": (300, 0.01),
    "mobilenetv2_140": (585, 0.01),
    "nasnetalarge": (23_800, 0.01),
    "torchvision/shufflenet_v2_x1_5": (299, 0.02),
    "efficientnet_b0": (390, 0.02),
    "resnet18": (1_800, 0.01),
}


@pytest.fixture(scope="module")
def facts():
    """What `describe` tells of each network of the tables, once."""
    return {name: describe(blank_backbone(name)) for name in {*PARAMETERS, *OPERATIONS, "torchvision/googlenet"}}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_lectures(facts, name):
    expected, share = PARAMETERS[name]
    assert facts[name]["parameters_with_classifier"] == pytest.approx(expected * MILLION, rel=share)


@pytest.mark.parametrize("name", OPERATIONS)
def test_multiply_adds_are_those_of_the_lectures(facts, name):
    expected, share = OPERATIONS[name]
    assert facts[name]["multiply_adds"] == pytest.approx(expected * MILLION, rel=share)


def test_the_classifier_is_the_difference(facts):
    # He et al. 2016, VGG: 1000 classes of 4096 or 512 features; SqueezeNet classifies by a convolution.
    for name, width in (("vgg16", 4096), ("resnet18", 512), ("torchvision/squeezenet1_0", 512)):
        assert facts[name]["parameters_with_classifier"] - facts[name]["parameters"] == 1000 * width + 1000


def test_a_googlenet_has_5_to_7_million_whichever_way_it_is_counted(facts):
    figures = facts["torchvision/googlenet"]
    assert 5 * MILLION < figures["parameters"] < figures["parameters_with_classifier"] < 7 * MILLION
    auxiliary = 13_004_888  # torchvision's count with the two auxiliary classifiers, which are left out
    assert figures["parameters_with_classifier"] < auxiliary


def test_the_stages_of_an_efficientnet_b0():
    facts = describe_backbone("efficientnet_b0")
    stages = facts["stages"]
    assert [stage["channels"] for stage in stages] == [16, 24, 40, 80, 112, 192, 320]  # Tan and Le 2019, table 1
    assert [stage["stride"] for stage in stages] == [2, 4, 8, 16, 16, 32, 32]
    assert facts["num_features"] == 1280
    assert all(stage["sees_all"] for stage in stages), "squeeze-and-excitation shows the whole picture"


def test_a_network_whose_constructor_needs_numbers_is_described():
    facts = describe_backbone("torchvision/regnet_y_400mf")
    assert facts["parameters_with_classifier"] == 4_344_144  # torchvision's own table
    assert [stage["channels"] for stage in facts["stages"]] == [32, 48, 104, 208, 440]
    assert all(parameter.is_meta for parameter in blank_backbone("torchvision/regnet_y_400mf").parameters())


def test_multiply_adds_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.Flatten(), nn.Linear(4 * 4 * 4, 5))
    by_hand = 4 * 4 * 4 * 3 * 9 + 64 * 5
    assert multiply_adds(net, torch.zeros(1, 3, 9, 9)) == by_hand
    assert multiply_adds(net.to("meta"), torch.zeros(1, 3, 9, 9, device="meta")) == by_hand
    assert all(parameter.requires_grad for parameter in net.parameters()) and net.training
    with torch.inference_mode():  # in which torch's counter counts nothing
        assert multiply_adds(net, torch.zeros(1, 3, 9, 9, device="meta")) == by_hand


# --- receptive fields --------------------------------------------------------------------------------------------

# Araujo, Norris and Sim 2019, *Computing Receptive Fields of Convolutional Neural Networks*: of the last map.
PUBLISHED = {
    "torchvision/alexnet": 195,
    "vgg16": 212,
    "mobilenetv1_100": 315,
    "inception_v3": 1311,
    "inception_v4": 2071,
    "inception_resnet_v2": 3039,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_fields_are_the_published_ones(name):
    _, field = receptive_fields(blank_backbone(name))[-1]
    assert (field.size, field.whole) == (PUBLISHED[name], False)


def test_fields_of_a_vgg_by_hand():
    sizes = [field.size for _, field in receptive_fields(blank_backbone("vgg16"))]
    assert sizes == [5, 14, 40, 92, 196, 212]


def rows_by_nan(backbone, name, height):
    """Return the first and last row of the picture that a row in the middle of a stage's output depends on.

    A NaN in the picture makes NaN of all that depends on it, and of nothing else, when convolutions are computed one
    output by one (the vendor's are not). So two searches by halves find the first and the last row.
    """
    found = {}
    stage = backbone.model.get_submodule(name) if name else None
    if stage is not None:
        handle = stage.register_forward_hook(lambda module, args, output: found.update(made=output))

    def spoilt(rows):
        images = torch.full((1, 3, height, 32), 0.5)
        images[:, :, rows] = torch.nan
        before = torch.backends.mkldnn.set_flags(False)
        with torch.no_grad():
            end = backbone.forward_maps(images)
        torch.backends.mkldnn.set_flags(before[0])
        made = found["made"] if stage is not None else end
        return bool(made[:, :, made.shape[2] // 2].isnan().any())

    def border(reaches, low, high):
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if reaches(middle) else (low, middle)
        return low

    last = border(lambda row: spoilt(slice(row, None)), 0, height)
    first = height - 1 - border(lambda row: spoilt(slice(0, height - row)), 0, height)
    if stage is not None:
        handle.remove()
    return first, last


def check_by_nan(name, height):
    torch.manual_seed(0)
    backbone = create_backbone(name, weights="random", image_size=(height, 32)).eval()
    for level, field in receptive_fields(backbone):
        first, last = rows_by_nan(backbone, level.name, height)
        assert field.size == last - first + 1, level.name
        assert not field.whole


@pytest.mark.parametrize("name", ["test_resnet", "transferkit/mini"])
def test_fields_are_what_a_picture_shows(name):
    check_by_nan(name, 512)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "height"),
    [
        ("mobilenetv2_035", 1024),
        ("torchvision/squeezenet1_1", 512),
        ("torchvision/googlenet", 1536),
        ("regnetx_002", 1536),
        ("convnext_atto", 4096),
        ("resnet18", 1024),
    ],
)
def test_fields_of_more_networks_are_what_a_picture_shows(name, height):
    check_by_nan(name, height)


def test_attention_sees_the_whole_picture_and_windows_have_no_one_field():
    ((_, field),) = receptive_fields(blank_backbone("test_vit"))
    assert (field.size, field.whole) == (None, True)
    stages = receptive_fields(blank_backbone("swin_tiny_patch4_window7_224"))
    assert [(field.size, field.whole) for _, field in stages[:-1]] == [(None, False)] * 3


def test_the_comparison_with_a_picture_can_fail():
    backbone = create_backbone("test_resnet", weights="random", image_size=(512, 32)).eval()
    level, field = receptive_fields(backbone)[1]
    backbone.model.maxpool = nn.Identity()
    first, last = rows_by_nan(backbone, level.name, 512)
    assert field.size != last - first + 1
