"""The README's Python runs as it stands, with a tiny backbone in place of the large one, from a loopback hub."""

import re
import warnings
from pathlib import Path

import pytest
import timm
from loopback_hub import LoopbackHub

README = Path(__file__).parent.parent / "README.md"


def block_with(text):
    """The one Python block that holds `text`."""
    (block,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
        if text in block
    ]
    return block


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that serves pretrained weights of a tiny network under its real address."""
    model = timm.create_model("test_resnet", pretrained=False)
    with LoopbackHub() as server:
        repo = model.pretrained_cfg["hf_hub_id"]
        server.add_timm_repo(repo, "test_resnet", model.state_dict(), model.pretrained_cfg)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        yield server


def test_the_example_of_the_design(hub, folder, tmp_path, monkeypatch):
    code = block_with("tk.ImageData(")
    for name in ("ImageData", "TransferModule", "Phase(", "SGDR", "PhaseSchedule", "finetune(", "find_lr"):
        assert name in code
    replaced = {
        '"folder/"': repr(str(folder)),
        '"folder/cat/1.jpg"': repr(str(folder / "val" / "circle" / "000.png")),
        "efficientnet_b0": "test_resnet",
        "image_size=224": "image_size=32",
        "steps=100": "steps=30",
        'backbone="test_resnet")': 'backbone="test_resnet", image_size=32, epochs=1, probe_epochs=1, quiet=True)',
        'head="linear")': 'head="linear", image_size=32)',
    }
    for old, new in replaced.items():
        assert old in code, old
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with warnings.catch_warnings():
        # a plain Trainer says what it thinks of its defaults
        for message in (".*max_epochs. was not set", ".*num_workers", ".*logger.*", ".*tensorboard.*", ".*eval mode.*"):
            warnings.filterwarnings("ignore", message)
        exec(code, names)
    assert names["labels"][0] in ("circle", "square", "stripes")
    assert (tmp_path / "lr.png").exists()
    assert names["run"].metrics["val"]["n"] == 12
    assert [phase.epochs for phase in names["phases"]] == [3, 10]
    assert any("model.safetensors" in path for path in hub.paths("GET"))


def test_the_example_of_features(folder, capsys):
    names: dict = {}
    exec(block_with("tk.FeatureExtractor(").replace('"folder/"', repr(str(folder))), names)
    assert names["X"].shape == (45, 256)
    assert names["table"].views["pooled"].shape == (2, 45, 256)
    assert 0 <= float(capsys.readouterr().out.split()[-1]) <= 1


def test_the_example_of_a_backbone():
    names: dict = {}
    exec(block_with("@tk.register_backbone"), names)
    assert names["model"].backbone.num_features == 32


def test_every_flag_in_the_readme_exists():
    from transferkit.cli.verbs import VERBS
    from transferkit.options.fields import flag
    from transferkit.options.training import FinetuneConfig

    known = {flag(name) for verb in VERBS.values() for name in verb.options.__dataclass_fields__}
    known |= {"--config", "--debug", "--help", "--strict"}  # --strict is mypy's
    known |= {"--logdir"}  # TensorBoard's
    known |= {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint"}  # torchrun's
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README.read_text(encoding="utf-8"))) <= known
    assert "--overwrite" in {flag(name) for name in FinetuneConfig.__dataclass_fields__}
