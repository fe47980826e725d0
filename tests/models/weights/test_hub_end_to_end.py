"""`--weights` over the hub, end to end through the command: fetched, cached, offline, unreachable, damaged, foreign."""

import json

import pytest
import timm
import torch
from loopback_hub import LoopbackHub
from safetensors.torch import load_file

from transferkit.cli.main import main


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LoopbackHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server


@pytest.fixture
def model():
    torch.manual_seed(7)
    return timm.create_model("test_resnet", pretrained=False)


def finetune(folder, out, weights, *more):
    """A probe that hardly moves: what is saved afterwards is the backbone that was loaded."""
    words = [
        "finetune", "--data", folder, "--backbone", "test_resnet", "--weights", weights, "--image-size", 32,
        "--phases", "probe", "--epochs", 1, "--batch-size", 8, "--precision", 32, "--accelerator", "cpu", "--quiet",
        "--out", out, *more,
    ]  # fmt: skip
    return main([str(word) for word in words])


def assert_loaded(out, model):
    product = load_file(out / "model.safetensors")
    expected = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("fc.")}
    for name, tensor in expected.items():
        assert product[f"backbone.model.{name}"].equal(tensor), name


def test_pretrained_is_fetched_once_and_then_cached(hub, model, folder, tmp_path, monkeypatch):  # fault 31
    repo = model.pretrained_cfg["hf_hub_id"]
    hub.add_timm_repo(repo, "test_resnet", model.state_dict(), model.pretrained_cfg)
    assert finetune(folder, tmp_path / "a", "pretrained") == 0
    assert_loaded(tmp_path / "a", model)
    source = json.loads((tmp_path / "a" / "model.json").read_text())["weights_source"]
    assert repo.split("/")[-1] in source
    fetched = len(hub.paths("GET"))
    assert finetune(folder, tmp_path / "b", "pretrained") == 0
    assert len(hub.paths("GET")) == fetched
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(hub.requests)
    assert finetune(folder, tmp_path / "c", "pretrained") == 0
    assert len(hub.requests) == before
    assert_loaded(tmp_path / "c", model)


def test_a_repository_by_its_id(hub, model, folder, tmp_path):
    cfg = {**model.pretrained_cfg, "mean": [0.1, 0.2, 0.3]}
    hub.add_timm_repo("acme/tiny", "test_resnet", model.state_dict(), cfg)
    assert finetune(folder, tmp_path / "run", "hf-hub:acme/tiny") == 0
    assert_loaded(tmp_path / "run", model)
    described = json.loads((tmp_path / "run" / "model.json").read_text())
    assert described["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert described["weights_source"].startswith("hf-hub:acme/tiny@")


@pytest.mark.parametrize(
    ("weights", "state", "words"),
    [
        ("pretrained", "offline", "--weights FILE"),  # fault 31
        ("hf-hub:acme/none", "offline", "--weights FILE"),
        ("pretrained", "gone", "cannot reach"),
        ("hf-hub:acme/other", "there", "test_efficientnet"),  # fault 34
        ("vit.pth", "there", "tensors matched"),
        ("none.pth", "there", "does not exist"),
    ],
)
def test_weights_that_cannot_be_had(hub, folder, tmp_path, capsys, monkeypatch, weights, state, words):
    other = timm.create_model("test_efficientnet", pretrained=False)
    hub.add_timm_repo("acme/other", "test_efficientnet", other.state_dict(), other.pretrained_cfg)
    torch.save(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "vit.pth")
    if state == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif state == "gone":
        with LoopbackHub() as server:
            monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.chdir(tmp_path)
    assert finetune(folder, tmp_path / "run", weights) == 4
    err = capsys.readouterr().err
    assert err.startswith("transferkit: error[backbone]: ")
    assert err.count("\n") == 1
    assert words in err
    assert state == "there" or hub.requests == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["cut", "corrupt"])
def test_damage_on_the_way_is_found_and_mended_by_the_next_call(
    hub, model, folder, tmp_path, capsys, damage
):  # fault 36
    hub.add_timm_repo(model.pretrained_cfg["hf_hub_id"], "test_resnet", model.state_dict(), model.pretrained_cfg)
    if damage == "cut":
        hub.cut(1000)
    else:
        hub.corrupt()
    assert finetune(folder, tmp_path / "run", "pretrained") == 4
    assert capsys.readouterr().err.count("\n") == 1
    hub.heal()
    assert finetune(folder, tmp_path / "run", "pretrained") == 0
    assert_loaded(tmp_path / "run", model)


def test_a_local_file(model, folder, tmp_path):
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert finetune(folder, tmp_path / "run", tmp_path / "w.pth") == 0
    assert_loaded(tmp_path / "run", model)
