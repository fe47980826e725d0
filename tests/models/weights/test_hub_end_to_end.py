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


@pytest.mark.parametrize("weights", ["pretrained", "hf-hub:acme/tiny", "w.pth"])
def test_weights_arrive_and_are_fetched_once(hub, model, folder, tmp_path, monkeypatch, weights):  # fault 31
    repo = "acme/tiny" if weights.startswith("hf-hub") else model.pretrained_cfg["hf_hub_id"]
    hub.add_timm_repo(repo, "test_resnet", model.state_dict(), {**model.pretrained_cfg, "mean": [0.1, 0.2, 0.3]})
    torch.save(model.state_dict(), tmp_path / "w.pth")
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path / "first", tmp_path / "offline")[: 2 if weights == "pretrained" else 1]:
        assert finetune(folder, out, weights) == 0
        assert_loaded(out, model)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    facts = json.loads((tmp_path / "first" / "model.json").read_text(encoding="utf-8"))
    assert facts["weights_source"].startswith("file:w.pth" if weights == "w.pth" else f"hf-hub:{repo}")
    assert (facts["preprocessing"]["mean"] == [0.1, 0.2, 0.3]) == (repo == "acme/tiny")  # it brings its own facts
    gets = hub.paths("GET")
    assert len(gets) == len(set(gets)) == {"pretrained": 1, "hf-hub:acme/tiny": 2, "w.pth": 0}[weights]


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
