"""Damaged checkpoints and weights: no code runs, the error is one of ours with its status, and nothing is lost."""

import hashlib
import io
import json
import pickle
import shutil
import zipfile

import pytest
import torch
from fuzzing import Outcomes, check_ending, counts, refused, run, searching
from hypothesis import given
from hypothesis import strategies as st
from mutation import Payload, damaged_bytes, damaged_values, payload
from safetensors.torch import load_file, save

from transferkit.core.documents import parse_yaml
from transferkit.core.errors import CheckpointError
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.initial import load_weights_from
from transferkit.models.module import TransferModule
from transferkit.models.optimizers import check_optimizer_state
from transferkit.results.predict.predictor import load
from transferkit.training.loop.checkpoints import load_checkpoint

RESUME = ("--report", "off", "--quiet")


def small_module():
    backbone = create_backbone("test_resnet", weights="random", image_size=32)
    return TransferModule(backbone, 3, class_names=["circle", "square", "stripes"])


def whole(module, start):
    """Whether a module has the tensors that it began with."""
    return all(torch.equal(tensor, start[name]) for name, tensor in module.state_dict().items())


@pytest.fixture(scope="module")
def interrupted_run(finished_run, tmp_path_factory):
    """A run that was killed before its end."""
    own = shutil.copytree(finished_run, tmp_path_factory.mktemp("runs") / "interrupted")
    kept = ("config.yaml", "data.json", "plan.json", "pictures.csv", "history.csv")
    for path in own.iterdir():
        if path.is_file() and path.name not in kept:
            path.unlink()
    return own


@pytest.mark.parametrize("count", counts(40, 10_000))
def test_damaged_bytes(count, tmp_path, finished_run):  # fault 32, fault 33, fault 56
    """The CRC of each record tells, whatever reads it."""
    content = (finished_run / "checkpoints" / "last.ckpt").read_bytes()
    file, module = tmp_path / "last.ckpt", small_module()
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    outcomes = Outcomes()

    @searching(count)
    @given(damaged_bytes(content))
    def check(content):
        file.write_bytes(content)
        outcomes[refused(lambda: load_checkpoint(file), allowed=(6,))] += 1
        outcomes[f"weights: {refused(lambda: load_weights_from(file, module), allowed=(4,))}"] += 1
        assert outcomes["weights: accepted"] or whole(module, start)

    check()
    outcomes.shown()
    assert outcomes["CheckpointError"] > count / 2


@pytest.mark.parametrize("count", counts(60, 5_000))
@pytest.mark.filterwarnings("ignore::transferkit.core.errors.TransferkitWarning")
def test_other_values_under_sound_checksums(count, tmp_path, finished_run):  # fault 158
    """Readers of a checkpoint that is whole, and is not what a run wrote."""
    content = torch.load(finished_run / "checkpoints" / "last.ckpt", weights_only=True)
    content = {name: content[name] for name in ("state_dict", "hyper_parameters", "transferkit_data_config",
               "transferkit", "callbacks", "optimizer_states", "loops")}  # fmt: skip
    file, outcomes = tmp_path / "last.ckpt", Outcomes()
    content["optimizer_states"], module = [], small_module()

    @searching(count)
    @given(damaged_values(content))
    def check(values):
        torch.save(values, file)
        outcomes[refused(lambda: load_checkpoint(file), allowed=(6,))] += 1
        outcomes[f"weights: {refused(lambda: load_weights_from(file, module), allowed=(2, 4))}"] += 1

    check()
    outcomes.shown()
    assert outcomes["accepted"] > 0


@pytest.mark.parametrize("count", counts(3, 200))
@pytest.mark.filterwarnings("ignore::transferkit.core.errors.TransferkitWarning")
def test_resume_of_other_values(count, tmp_path, interrupted_run, monkeypatch):  # fault 158
    content = torch.load(interrupted_run / "checkpoints" / "last.ckpt", weights_only=True)
    outcomes = Outcomes()
    monkeypatch.chdir(tmp_path)

    @searching(count)
    @given(st.sampled_from(["last.ckpt", "last.ckpt", "best.ckpt"]), damaged_values(content))
    def check(name, values):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        own = shutil.copytree(interrupted_run, tmp_path / "run")
        torch.save(values, own / "checkpoints" / name)
        words = ["finetune", "--resume", "--out", str(own), *RESUME]
        status, err = run(*words)
        check_ending(words, status, err, allowed=(0, 2, 3, 4, 5, 6, 74))
        assert status == 0 or not (own / "metrics.json").exists()
        assert (own / "history.csv").read_bytes().startswith((interrupted_run / "history.csv").read_bytes()[:200])
        outcomes[status] += 1

    check()
    outcomes.shown()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("last.ckpt", {"state_dict": {}}, "is whole, but not of this training (RuntimeError: Error(s) in loading"),
        ("last.ckpt", {"state_dict": 7}, "'state_dict' in it cannot be right"),
        ("last.ckpt", {"loops": {"fit_loop": 3}}, "is whole, but not of this training"),
        ("last.ckpt", {"transferkit_data_config": {}}, "is whole, but not of this training (ValueError: preprocessing"),
        ("best.ckpt", {"state_dict": {"x": torch.zeros(1)}}, "best.ckpt: is whole, but not of this training"),
        ("last.ckpt", None, "not a whole checkpoint"),
    ],
)
@pytest.mark.filterwarnings("ignore::transferkit.core.errors.TransferkitWarning")
def test_a_resume_says_which_file_and_what_to_do(
    name, change, message, command, interrupted_run, tmp_path
):  # fault 158
    own = shutil.copytree(interrupted_run, tmp_path / "run")
    path = own / "checkpoints" / name
    if change is None:
        for path in (own / "checkpoints").iterdir():
            path.write_bytes(path.read_bytes()[:-5000])
    else:
        torch.save(torch.load(path, weights_only=True) | change, path)
    before = {file: file.read_bytes() for file in own.rglob("*") if file.is_file()}
    status, _, err = command("finetune", "--resume", "--out", own, *RESUME)
    assert status == 6, err
    assert message in err
    assert name in err
    assert "start anew" in err
    kept = {file: file.read_bytes() for file in before if file.name != ".lock"}
    assert kept == {file: content for file, content in before.items() if file.name != ".lock"}


def test_moments_of_another_shape_are_refused():  # fault 158
    """Lightning-AI/pytorch-lightning 9852; torch's kernels would write past their end."""
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": list(module.parameters()), "param_names": ["weight", "bias"]}])
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    check_optimizer_state(optimizer, state)
    state["state"][0]["exp_avg"] = torch.zeros(5, 7)
    with pytest.raises(CheckpointError, match=r"exp_avg of parameter 0 is \(5, 7\), expected \(2, 3\)"):
        check_optimizer_state(optimizer, state)


def test_a_group_without_an_option_is_refused():  # fault 158
    """Lightning-AI/pytorch-lightning 5325; what newer releases of torch add may be missing."""
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(2))], "param_names": ["weight"]}])
    state = optimizer.state_dict()
    del state["param_groups"][0]["decoupled_weight_decay"]
    check_optimizer_state(optimizer, state)
    del state["param_groups"][0]["betas"]
    with pytest.raises(CheckpointError, match="its groups lack betas"):
        check_optimizer_state(optimizer, state)


@pytest.mark.parametrize("count", counts(40, 3_000))
@pytest.mark.filterwarnings("ignore::transferkit.core.errors.TransferkitWarning")
def test_other_tensors_under_the_right_hash(count, tmp_path, finished_run, folder):  # fault 158
    """Of `model.safetensors`: tensors gone, doubled, of other shapes and types, NaN; `model.json` has its hash."""
    tensors = load_file(finished_run / "model.safetensors")
    info = json.loads((finished_run / "model.json").read_text(encoding="utf-8"))
    own, outcomes, module = tmp_path / "run", Outcomes(), small_module()
    own.mkdir()
    changes = {
        "gone": lambda tensor: None, "flat": lambda tensor: tensor.reshape(-1), "half": lambda tensor: tensor.half(),
        "whole": lambda tensor: tensor.long(), "nan": lambda tensor: torch.full_like(tensor, torch.nan),
        "empty": lambda tensor: tensor[:0] if tensor.ndim else tensor.reshape(1),
        "more": lambda tensor: torch.stack([tensor, tensor]), "huge": lambda tensor: torch.full_like(tensor, 1e38),
    }  # fmt: skip

    @searching(count)
    @given(
        st.sampled_from(sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())),
        st.sampled_from(sorted(changes)),
    )
    def check(name, change):
        tensor = changes[change](tensors[name])
        values = {key: value for key, value in tensors.items() if key != name}
        content = save(values if tensor is None else values | {name: tensor.contiguous()})
        (own / "model.safetensors").write_bytes(content)
        text = json.dumps(info | {"sha256": hashlib.sha256(content).hexdigest()})
        (own / "model.json").write_text(text, encoding="utf-8")
        picture = folder / "test" / "circle" / "000.png"
        ending = refused(lambda: load(own).predict([picture], workers=0), allowed=(4, 6, 8))
        outcomes[ending] += 1
        refused(lambda: load_weights_from(own, module), allowed=(4, 6))
        assert change not in ("gone", "empty", "more", "nan") or ending != "accepted", f"{name} {change}"

    check()
    outcomes.shown()
    assert outcomes["CheckpointError"] > count / 3


# ---- code ---------------------------------------------------------------------------------------------------------


def planted(kind, protocol, marker):
    """A file that makes a folder where it is unpickled, or its tags are followed."""
    if kind == "pickle":
        return payload(marker, protocol)
    if kind == "yaml":
        return f"!!python/object/apply:os.mkdir ['{marker}']\n".encode()
    stream = io.BytesIO()
    if kind == "inside":
        content = {"state_dict": Payload(marker), "optimizer_states": [], "loops": {}}
        torch.save(content, stream, pickle_protocol=max(2, protocol))
    else:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", payload(marker, protocol))
            archive.writestr("archive/version", "3\n")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "protocol"), [("pickle", 0), ("pickle", 2), ("pickle", 4), ("zip", 2), ("inside", 2), ("yaml", 0)]
)
def test_no_code_runs(kind, protocol, tmp_path, finished_run, folder, monkeypatch):  # fault 88
    """Whatever reads a file of a run, and whatever the file is called."""
    monkeypatch.chdir(tmp_path)
    marker, module = tmp_path / "ran", small_module()
    own = shutil.copytree(finished_run, tmp_path / "run")
    picture, content = folder / "test" / "circle" / "000.png", planted(kind, protocol, marker)
    for name in ("checkpoints/last.ckpt", "model.safetensors", "model.json", "config.yaml", "metrics.json"):
        path = own / name
        before = path.read_bytes()
        path.write_bytes(content)
        assert refused(lambda path=path: load_checkpoint(path), allowed=(6,)) == "CheckpointError"
        assert refused(lambda path=path: load_weights_from(path, module), allowed=(4, 6)) != "accepted"
        weights = str(path)
        build = lambda weights=weights: create_backbone("test_resnet", weights=weights, image_size=32)  # noqa: E731
        assert refused(build, allowed=(4, 6)) != "accepted"
        refused(lambda: load(own).predict([picture], workers=0), allowed=(4, 6))
        words = ("backbones", "test_resnet", "--config", weights)
        check_ending(words, *run(*words), allowed=(2,))
        path.write_bytes(before)
    with pytest.raises(ValueError, match=r"\S"):
        parse_yaml(planted("yaml", protocol, marker).decode())
    assert not marker.exists(), "code ran"


@pytest.mark.parametrize("kind", ["zip", "inside"])
def test_no_code_of_a_checkpoint_runs_on_resume(kind, tmp_path, interrupted_run):  # fault 88
    own = shutil.copytree(interrupted_run, tmp_path / "run")
    for path in (own / "checkpoints").iterdir():
        path.write_bytes(planted(kind, 2, tmp_path / "ran"))
    words = ("finetune", "--resume", "--out", str(own), *RESUME)
    check_ending(words, *run(*words), allowed=(6,))
    assert not (tmp_path / "ran").exists(), "code ran"


def test_the_payload_works(tmp_path):
    """Where it is unpickled, the folder appears: a test that finds none has seen no code run."""
    with zipfile.ZipFile(io.BytesIO(planted("zip", 2, tmp_path / "ran"))) as archive:
        pickle.loads(archive.read("archive/data.pkl"))
    assert (tmp_path / "ran").is_dir()
