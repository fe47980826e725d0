"""The table of every network: well formed, and a sample of its rows made once more."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from bench import backbones
from torch import nn

from transferkit.models.backbones.groups import child_groups

FIGURES = ("parameters", "multiply_adds", "features", "groups", "image_size")
SAMPLE = (
    *("resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "caformer_s18", "mobilenetv3_small_050"),
    *("convnext_atto", "densenet121", "levit_128s", "torchvision/googlenet", "torchvision/squeezenet1_0"),
)


@pytest.fixture(scope="module")
def rows():
    return backbones.read(backbones.FILE)


def test_every_row_has_its_figures_or_its_reason(rows):
    for row in rows.values():
        assert row["held"] in ("yes", "no")
        assert bool(row["reason"]) == (row["held"] == "no"), row["name"]
        if row["held"] == "yes":
            assert all(row[column] for column in FIGURES), row["name"]
            assert int(row["groups"]) >= backbones.LEAST_GROUPS
        assert len(row["strides"].split()) == len(row["widths"].split())


@pytest.mark.slow
def test_every_network_has_a_row(rows):
    assert [name for name in backbones.names_of_all() if name not in rows] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_rows_is_made_once_more(rows, name):
    made = {column: str(value) for column, value in backbones.row_of(name).items()}
    assert made == rows[name]


@pytest.mark.slow
def test_a_network_that_ends_its_process_is_written_down(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(backbones, "names_of_all", lambda: ["test_vit", "nothing", "test_resnet"])
    found = {}
    backbones.rows_in_processes(["test_vit", "nothing", "test_resnet"], tmp_path / "b.csv", found)
    assert [(name, row["held"]) for name, row in found.items()] == [
        ("test_vit", "yes"),
        ("nothing", "no"),
        ("test_resnet", "yes"),
    ]
    assert found["nothing"]["reason"] == "its process ended with status 1"
    assert list(backbones.read(tmp_path / "b.csv")) == ["test_vit", "nothing", "test_resnet"]
    assert "KeyError" in capfd.readouterr().err


def blank(net, groups):
    """A network on the meta device, with what the sweep asks of a backbone."""
    net.layer_groups, net.num_features = lambda: groups(net), 6
    net.data_config = SimpleNamespace(image_size=(8, 8))
    return net.to("meta")


def make(**more):
    layers = {f"layer{n}": nn.Conv2d(3 if n == 0 else 6, 6, 1) for n in range(4)} | more
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    net.add_module("end", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    return net


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x


def test_problems_are_seen():
    assert backbones.problems(blank(make(), child_groups)) == []
    assert backbones.problems(blank(make(), lambda net: child_groups(net)[:3])) == [
        "its groups do not hold every parameter exactly once",
        "it has 3 layer groups",
    ]
    assert backbones.problems(blank(make(spare=Unused()), child_groups)) == [
        "no gradient reaches 1 of its parameters, such as spare.weight"
    ]


def test_the_table_of_families(rows):
    done = subprocess.run(
        [sys.executable, backbones.__file__, "--families"], capture_output=True, encoding="utf-8", check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| family | library | held | refused |")
    held = sum(int(line.split("|")[3]) for line in lines[2:])
    assert held == sum(row["held"] == "yes" for row in rows.values())
