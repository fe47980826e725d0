"""Selectors: what words reach, against sets written out by hand; what reaches nothing is refused."""

import pytest
import torch
from torch import nn

from transferkit.core.errors import ConfigError
from transferkit.models.module import TransferModule
from transferkit.models.tuning.layout import cut_groups, layout_of, norm_layers, train_parts
from transferkit.models.tuning.selectors import (
    Layout,
    Leaf,
    Selector,
    Term,
    as_layout,
    cuts_of,
    labels_of,
    parse_selector,
)

PLAIN, BIAS, NORM = frozenset(), frozenset({"bias"}), frozenset({"norm"})
LAYOUT = Layout(
    ("stem", "layer1", "layer2", "head"),
    (
        Leaf("stem", "backbone.model.conv1.weight", 9, PLAIN),
        Leaf("stem", "backbone.model.bn1.weight", 1, NORM),
        Leaf("stem", "backbone.model.bn1.bias", 1, NORM | BIAS),
        Leaf("layer1", "backbone.model.layer1.0.attn.qkv.base_layer.weight", 9, PLAIN),
        Leaf("layer1", "backbone.model.layer1.0.attn.qkv.lora_A.default.weight", 3, frozenset({"adapter"})),
        Leaf("layer1", "backbone.model.layer1.0.bn.weight", 1, NORM),
        Leaf("layer2", "backbone.model.layer2.1.attn.qkv.weight", 9, PLAIN),
        Leaf("layer2", "backbone.model.layer2.1.attn.qkv.bias", 1, BIAS),
        Leaf("head", "head.linear.weight", 4, PLAIN),
        Leaf("head", "head.linear.bias", 2, BIAS),
    ),
)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("all", range(10)),
        ("*", range(10)),
        ("head", (8, 9)),
        ("layer[12]", (3, 4, 5, 6, 7)),
        ("layer[!1], head", (6, 7, 8, 9)),
        ("bias", (2, 7, 9)),
        ("norm", (1, 2, 5)),
        ("adapter", (4,)),
        ("head | norm", (1, 2, 5, 8, 9)),
        ("all - norm - bias", (0, 3, 4, 6, 8)),
        ("!norm", (0, 3, 4, 6, 7, 8, 9)),
        ("head,!bias", (8,)),
        ("head, all - norm", (0, 3, 4, 6, 7, 8, 9)),  # from left to right: it is taken from all before it
        ("all - norm, head", (0, 3, 4, 6, 7, 8, 9)),
        ("layer* & bias", (7,)),
        ("head, layer2 & bias", (7, 8, 9)),
        ("*.attn.qkv", (3, 4, 6, 7)),  # a module stands for all that is in it
        ("layer1.0.attn.qkv.weight", (3,)),  # as the library calls it, with an adapter on it or not
        ("backbone.model.layer2.1", (6, 7)),
        ("*.weight", (0, 1, 3, 4, 5, 6, 8)),
        ("bn1", (1, 2)),
    ],
)
def test_what_words_reach(text, places):
    selector = parse_selector(text)
    assert [LAYOUT.leaves.index(leaf) for leaf in selector.select(LAYOUT)] == list(places)
    assert selector.problems(LAYOUT) == []
    assert parse_selector(str(selector)) == selector
    assert eval(repr(selector), {"Selector": Selector, "Term": Term}) == selector  # it can be pasted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layr1", "'layr1' matches no layer group, module or parameter. Did you mean 'layer1'"),
        ("head, nrom", "'nrom' matches no layer group, module or parameter. Did you mean 'norm'"),
        ("head - norm", "'- norm' takes nothing away: 'head' has none of it"),
        ("head & norm", "'head & norm' is nothing"),
        ("head - all", "'head - all' leaves nothing"),
    ],
)
def test_what_reaches_nothing_is_refused(text, message):  # fault 221
    (problem,) = parse_selector(text).problems(LAYOUT)
    assert message in problem


def test_all_that_is_wrong_is_said_at_once_and_a_kind_that_a_model_has_not_in_a_word():
    problems = parse_selector("layr1, heat - adapter").problems(Layout(("head",), (Leaf("head", "w", 1, PLAIN),)))
    assert len(problems) == 3
    assert problems[2] == "there is no 'adapter' in this model"


@pytest.mark.parametrize("text", ["", " ", ",", "head,", "head,,norm", "head norm", "head -", "a & !b", "& a"])
def test_what_cannot_be_read(text):
    with pytest.raises(ConfigError):
        parse_selector(text)


def test_names_alone_are_groups_of_every_kind():
    groups = ("a", "b", "head")
    assert [leaf.name for leaf in parse_selector("all - b").select(groups)] == ["a", "head"]
    assert parse_selector("head, bias").problems(groups) == []
    assert cuts_of([parse_selector("bias")], as_layout(groups)) == ()


# ---- real models ------------------------------------------------------------------------------------------------


def small(name="test_resnet"):
    return TransferModule(name, 3, weights="random", image_size=32)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "transferkit/mini"])
def test_kinds_of_real_networks_are_what_torch_says(name):
    module = small(name)
    parameters = {id(parameter): name for name, parameter in module.named_parameters()}
    norms = {
        parameters[id(parameter)]
        for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.LayerNorm)
        for parameter in (layer.weight, layer.bias)
    }  # fmt: skip
    layout = layout_of(module)
    assert {leaf.name for leaf in parse_selector("norm").select(layout)} == norms
    biases = {name for name, _ in module.named_parameters() if name.endswith(".bias")}
    assert {leaf.name for leaf in parse_selector("bias").select(layout)} == biases
    assert sum(leaf.size for leaf in layout.leaves) == sum(parameter.numel() for parameter in module.parameters())
    assert norm_layers(module)


def test_a_table_of_biases_by_position_is_no_bias():
    assert parse_selector("bias").problems(as_layout(("a",))) == []
    module = TransferModule("swin_tiny_patch4_window7_224", 2, weights="random", image_size=224)
    names = [leaf.name for leaf in parse_selector("bias").select(layout_of(module))]
    assert names
    assert not [name for name in names if "relative_position" in name]


@pytest.mark.parametrize("text", ["bias", "norm", "layer4 - norm", "head & bias, conv1"])
def test_parts_that_learn_do_and_all_else_stays(text):
    module, images = small(), torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    leaves = parse_selector(f"head, {text}").select(layout_of(module))
    names = {leaf.name for leaf in leaves}
    for layer in norm_layers(module):  # some begin at 0, which no gradient passes
        nn.init.uniform_(layer.weight, 0.5, 1.5)
    train_parts(module, leaves)
    assert {name for name, parameter in module.named_parameters() if parameter.requires_grad} == names
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.train()
    optimizer = module.configure_optimizers()
    for _ in range(2):
        module.loss(module.learn(images), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        assert {name for name, parameter in module.named_parameters() if parameter.grad is not None} <= names
        optimizer.step()
    moved = {name for name, tensor in module.state_dict().items() if not tensor.equal(before[name])}
    parameters = {name for name, _ in module.named_parameters()}
    assert moved & parameters == names
    # Statistics belong to their layer: they move where any of it learns, and nowhere else.
    learning = {name.rpartition(".")[0] for name in names}
    statistics = {name.rpartition(".")[0] for name in moved - parameters if "running" in name}
    assert statistics == {place for place in learning if f"{place}.running_mean" in before}


def test_kept_statistics_stay_though_norm_layers_learn():
    module = small()
    module.keeps_statistics = True
    train_parts(module, parse_selector("head, norm").select(layout_of(module)))
    before = {name: tensor.clone() for name, tensor in module.named_buffers()}
    module.train()
    module.learn(torch.randn(4, 3, 32, 32))
    assert all(tensor.equal(before[name]) for name, tensor in module.named_buffers())


def test_groups_are_cut_by_lr_and_hold_every_parameter_once():
    module = small()
    layout = layout_of(module)
    cuts = cuts_of([parse_selector(text) for text in ("norm", "head", "layer3, layer4 & bias", "norm")], layout)
    assert [str(cut) for cut in cuts] == ["norm", "layer3, layer4 & bias"]  # whole groups are no cut
    groups = cut_groups(module, layout, cuts)
    ids = [id(parameter) for _, members in groups for _, parameter in members]
    assert sorted(ids) == sorted(map(id, module.parameters()))
    labels = labels_of(layout, cuts)
    assert len(set(labels.values())) == len(groups)
    (name,) = [name for name in layout.names if name == "layer4"]
    assert f"{name}[norm; layer3, layer4 & bias]" in dict(groups)
