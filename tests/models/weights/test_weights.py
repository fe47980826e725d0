"""Weights files: what is read, what is refused, and that they fit a backbone whole or not at all."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from transferkit.core.errors import BackboneError, StorageError
from transferkit.models.weights.files import read_state_dict
from transferkit.models.weights.loading import load_backbone_weights


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.bn = nn.BatchNorm2d(width)


class Net(nn.Module):
    """A backbone of `depth` blocks, with a classifier when `classes` is given."""

    def __init__(self, depth=2, width=4, classes=None):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        if classes:
            self.fc = nn.Linear(width, classes)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {
        name: torch.rand(value.shape) + 0.1 if value.is_floating_point() else torch.tensor(3)
        for name, value in Net().state_dict().items()
    }


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


# --- reading ---


def old_format(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [save_file, torch.save, old_format])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w"])
def test_the_content_decides_not_the_name(state, tmp_path, save, name):
    save(state, tmp_path / name)
    assert_same(read_state_dict(tmp_path / name), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_stay_as_stored_and_are_converted_on_loading(state, tmp_path, dtype):
    save_file({name: v.to(dtype) if v.is_floating_point() else v for name, v in state.items()}, tmp_path / "w")
    read = read_state_dict(str(tmp_path / "w"))
    assert read["blocks.0.conv.weight"].dtype == dtype
    net = Net()
    load_backbone_weights(net, read, source="w")
    assert net.blocks[0].conv.weight.dtype == torch.float32
    assert torch.equal(net.blocks[0].conv.weight, state["blocks.0.conv.weight"].to(dtype).float())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "loss": torch.tensor(1.0)},
        lambda s: {"model": s, "optimizer": {"state": {}}},
        lambda s: {"model_state_dict": s},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"state_dict_ema": s, "epoch": 1},
        lambda s: {"model_ema": s},
        lambda s: {"state_dict": s, "state_dict_ema": {name: value * 0 for name, value in s.items()}},
        lambda s: {**s, "version": 3, "note": "x"},
        lambda s: {name: nn.Parameter(v) if v.is_floating_point() else v for name, v in s.items()},
        lambda s: {f"module.{name}": value for name, value in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{name}": value for name, value in s.items()}},
        lambda s: {"state_dict": {f"model.backbone.{name}": value for name, value in s.items()}},
        # Paths to classes stay text: fault 88.
        lambda s: {"state_dict": s, "hyper_parameters": {"_instantiator": "os.system", "_class_path": "os.system"}},
    ],
)
def test_containers_and_wrappers(state, tmp_path, wrap):
    torch.save(wrap(state), tmp_path / "w.ckpt")
    assert_same(read_state_dict(tmp_path / "w.ckpt"), state)


def test_a_lightning_checkpoint_with_a_head_beside_the_backbone(state, tmp_path):
    wrapped = {f"backbone.{name}": value for name, value in state.items()}
    # The backbone's own `head.norm` and the module's head want the same name: the backbone's is what was asked for.
    heads = {"backbone.head.norm": torch.ones(2), "head.norm": torch.zeros(2), "head.fc.weight": torch.zeros(7, 4)}
    torch.save({"state_dict": wrapped | heads}, tmp_path / "last.ckpt")
    read = read_state_dict(tmp_path / "last.ckpt")
    assert_same(read, state | {"head.norm": torch.ones(2), "head.fc.weight": torch.zeros(7, 4)})
    load_backbone_weights(Net(), read, source="last.ckpt")


def test_wrappers_stay_when_not_all_tensors_carry_them(state, tmp_path):
    partly = {f"module.{name}" if "0" in name else name: value for name, value in state.items()}
    torch.save(partly, tmp_path / "w.pth")
    assert_same(read_state_dict(tmp_path / "w.pth"), partly)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, r"holds a mapping without tensors \(keys: 'epoch'\) - expected a state dict"),
        ({}, "holds a mapping without tensors - expected"),
        ([torch.ones(2)], "holds a list - expected a state dict, alone or under one of 'state_dict'"),
        (torch.ones(2), "holds a Tensor"),
        ({1: torch.ones(2)}, "holds a dict"),
    ],
)
def test_files_without_a_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=message):
        read_state_dict(tmp_path / "w.pth")


def test_a_container_that_contains_itself(tmp_path):
    knot: dict = {}
    knot["model"] = knot
    torch.save(knot, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="without tensors"):
        read_state_dict(tmp_path / "w.pth")


# --- damage ---


@pytest.mark.parametrize("save", [save_file, torch.save, old_format])
@pytest.mark.parametrize("end", [1, 9, 60, 0.3, 0.99])
def test_truncated(state, tmp_path, save, end):  # fault 32
    save(state, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(content[: end if isinstance(end, int) else int(len(content) * end)])
    with pytest.raises(BackboneError, match=r"weights file .*w' is .*(damaged|cut short).* - delete it and fetch it"):
        read_state_dict(tmp_path / "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"weights file .*w.pth' does not exist - .* check the path"),
        (b"", "is empty - delete it and fetch it again"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer, .* `git lfs pull`"),
        (b"conv.weight,1,2,3\n", "is neither safetensors nor a PyTorch file"),
        (b"\x93NUMPY" + bytes(100), "is neither safetensors nor a PyTorch file"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):  # fault 32
    if content is not None:
        (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(BackboneError, match=message):
        read_state_dict(tmp_path / "w.pth")


def test_a_folder_and_a_file_that_may_not_be_read(tmp_path, monkeypatch):  # fault 32
    with pytest.raises(BackboneError, match="is a folder - expected a file"):
        read_state_dict(tmp_path)
    (tmp_path / "w.pth").write_bytes(b"x")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(StorageError, match=r"cannot read weights file .*w.pth': Permission denied"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("save", [save_file, torch.save, old_format])
def test_random_damage_never_escapes_as_another_error(state, tmp_path, save):  # fault 87
    save({name: state[name] for name in list(state)[:3]}, tmp_path / "w")
    content, generator = (tmp_path / "w").read_bytes(), random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(generator.choice([1, 1, 4, 50])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        (tmp_path / "w").write_bytes(damaged)
        try:
            read_state_dict(tmp_path / "w")  # damage among the numbers cannot be seen without a recorded hash
        except BackboneError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_flipped_bit_in_a_torch_file(tmp_path, place):  # fault 33
    numbers = torch.arange(1000.0)
    torch.save({"w": numbers}, tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[bytes(content).index(numbers.numpy().tobytes()) + int(4000 * place)] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    assert not torch.equal(torch.load(tmp_path / "w.pth")["w"], numbers)  # torch does not look at its checksums
    with pytest.raises(BackboneError, match=r"is damaged, .* Bad CRC-32 .* - delete it and fetch it again"):
        read_state_dict(tmp_path / "w.pth")


def test_a_torch_file_written_without_checksums(state, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_state_dict(tmp_path / "w.pth"), state)


# --- recorded hashes ---


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "line", ["{} *w.safetensors\n", "{}  w.safetensors\n", "{}\n", "00  other\n{}  ./w.safetensors"]
)
def test_sidecar_hash(state, tmp_path, line):  # fault 33
    file, sidecar = tmp_path / "w.safetensors", tmp_path / "w.safetensors.sha256"
    save_file(state, file)
    sidecar.write_text(line.format(hashlib.sha256(file.read_bytes()).hexdigest()), encoding="utf-8")
    assert_same(read_state_dict(file), state)
    flip(file)
    with pytest.raises(
        BackboneError, match=r"has sha256 \w{16}\.\.\., but 'w.safetensors.sha256' records \w{16}\.\.\."
    ):
        read_state_dict(file)
    sidecar.write_text("00  other\n", encoding="utf-8")
    with pytest.raises(BackboneError, match=r"'w.safetensors.sha256' records none for it"):
        read_state_dict(file)
    sidecar.unlink()
    assert read_state_dict(file).keys() == state.keys()  # safetensors itself sees nothing: the guard is what found it


def test_model_json_hash(state, tmp_path):  # fault 33
    file, manifest = tmp_path / "model.safetensors", tmp_path / "model.json"
    save_file(state, file)
    manifest.write_text(json.dumps({"sha256": hashlib.sha256(file.read_bytes()).hexdigest().upper()}), encoding="utf-8")
    assert_same(read_state_dict(file), state)
    flip(file)
    with pytest.raises(BackboneError, match=r"but 'model.json' records"):
        read_state_dict(file)
    manifest.write_bytes(b'{"sha')
    with pytest.raises(BackboneError, match="is not JSON, so they cannot be verified"):
        read_state_dict(file)
    manifest.write_bytes(b'{"classes": []}')  # another program's file: no hash, no claim
    assert read_state_dict(file).keys() == state.keys()


# --- code in files ---


class Bomb:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def zipped(payload, path, protocol):
    """A torch checkpoint whose pickle is `payload`, in the given protocol."""
    torch.save({"w": torch.ones(1)}, path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(buffer, "w") as target:
        for entry in source.namelist():
            is_pickle = entry.endswith("data.pkl")
            target.writestr(entry, pickle.dumps(payload, protocol) if is_pickle else source.read(entry))
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("write", ["zip", "old", "bare"])
def test_code_is_refused_named_and_not_run(tmp_path, protocol, write):  # faults 35 and 88
    file, marker = tmp_path / "w.pth", tmp_path / "marker"
    payload = {"state_dict": {"w": Bomb(marker)}}
    if write == "zip":
        zipped(payload, file, protocol)
    elif write == "old":
        torch.save(payload, file, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    else:
        file.write_bytes(pickle.dumps(payload, protocol))
    with pytest.raises(
        BackboneError, match=r"asks for more than tensors: '(posix|nt).mkdir' - it was refused"
    ) as caught:
        read_state_dict(file)
    assert caught.value.exit_status == 4
    assert not marker.exists()
    torch.load(file, weights_only=False) if write != "bare" else pickle.loads(file.read_bytes())
    assert marker.exists()  # the file was live: only the reader kept it from running


@pytest.mark.parametrize("name", ["w.pkl", "w.npy"])
def test_code_in_other_files(tmp_path, name):  # fault 88
    file, marker = tmp_path / name, tmp_path / "marker"
    with file.open("wb") as stream:
        if name == "w.npy":
            np.save(stream, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
        else:
            pickle.dump(Bomb(marker), stream, protocol=0)  # without a header
    with pytest.raises(BackboneError, match="is neither safetensors nor a PyTorch file"):
        read_state_dict(file)
    assert not marker.exists()


def test_objects_are_refused_with_all_their_names(state, tmp_path):  # fault 35
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=1), "model": Net()}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"'argparse.Namespace'.*Net'.* save the state dict alone") as caught:
        read_state_dict(tmp_path / "w.pth")
    assert "OrderedDict" not in str(caught.value)
    assert "rebuild" not in str(caught.value)


# --- matching ---


def test_everything_fits(state):
    net = Net()
    load_backbone_weights(net, state, source="w")
    assert_same(net.state_dict(), state)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


def test_step_counters_may_be_missing_or_left_over(state):
    net = Net()
    without = {name: value for name, value in state.items() if "num_batches" not in name}
    load_backbone_weights(net, without, source="w")
    assert int(net.blocks[0].bn.num_batches_tracked) == 0
    assert_same({name: net.state_dict()[name] for name in without}, without)
    load_backbone_weights(net, state | {"blocks.0.act.num_batches_tracked": torch.tensor(1)}, source="w")


def test_heads_of_the_file(state):
    with_head = state | {"fc.weight": torch.ones(7, 4), "last.1.weight": torch.ones(7, 4)}
    for classifier in (("last.1",), ("last.", "fc")):
        net = Net()
        load_backbone_weights(net, with_head, source="w", classifier=classifier)
        assert_same(net.state_dict(), state)


def refused(module, state, match):
    """Expect a refusal that leaves the module as it was; return the message."""
    before = snapshot(module)
    with pytest.raises(BackboneError, match=match) as caught:
        load_backbone_weights(module, state, source="file w.pth")
    assert_same(snapshot(module), before)
    assert caught.value.exit_status == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_architecture(state):  # fault 34
    strange = {f"features.{number}.w": torch.ones(2) for number in range(9)}
    message = refused(Net(), strange, r"'file w.pth' do not fit the backbone: 0 of 12 tensors matched; missing")
    assert "'blocks.0.conv.weight'" in message
    assert "and 9 more; left over 'features.0.w', 'features.1.w', 'features.2.w' and 6 more" in message
    assert message.endswith("name the backbone they were made for, or pass other weights")


def test_another_width(state):
    message = refused(
        Net(), Net(width=8).state_dict(), r"0 of 12 .* different 'blocks.0.conv.weight' is \(8, 3, 3, 3\) in"
    )
    assert "the file, (4, 3, 3, 3) in the backbone" in message
    assert message.endswith("another size of this architecture, another image size or other input channels")


def changed(change):
    return lambda state: state | {"blocks.0.conv.weight": change(state["blocks.0.conv.weight"])}


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        (
            Net,  # an unknown prefix under which a tensor is missing is named  # fault 34
            lambda state: {
                f"encoder.net.{name}": value for name, value in state.items() if "1.bn.running_v" not in name
            },
            r"0 of 12 .* \(nearest in the file: 'encoder.net.blocks.0.conv.weight'\).* carry the prefix 'encoder.net.'",
        ),
        (lambda: nn.ModuleDict({"trunk": Net()}), dict, r"0 of 12 .* lack the prefix 'trunk.'"),
        (
            Net,
            lambda state: {name: value for name, value in state.items() if name != "blocks.1.bn.running_var"},
            r"11 of 12 tensors matched; missing 'blocks.1.bn.running_var' \(nearest in the file: 'bl",
        ),
        (
            Net,  # a deeper network
            lambda state: Net(depth=3).state_dict(),
            "12 of 12 tensors matched; left over 'blocks.2.conv.weight'",
        ),
        (lambda: Net(classes=7), dict, r"12 of 14 tensors matched; missing 'fc.weight' .*'fc.bias'"),
        (
            Net,
            lambda state: state | {"last.1.weight": torch.ones(7, 4)},
            r"12 of 12 tensors matched; left over 'last.1.weight' - they look like another architecture's",
        ),
        (Net, changed(lambda t: t.to(torch.int8)), "is torch.int8 in the file, torch.float32 in the backbone"),
        (Net, changed(lambda t: t.to(torch.complex64)), "is torch.complex64 in the file"),
        (Net, changed(lambda t: t.to_sparse()), "11 of 12 tensors .* is sparse or quantized in the file"),
    ],
)
def test_what_does_not_fit(state, module, change, message):
    refused(module(), change(state), message)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_numbers_that_are_not_finite_or_overflow(state, bad):
    state["blocks.1.bn.running_var"] = torch.full((4,), bad, dtype=torch.float64)
    refused(Net(), state, r"hold NaN or infinity in 'blocks.1.bn.running_var' - the file is damaged")


def test_a_mask_that_is_infinite_by_design():
    def masked():
        net = nn.Linear(2, 2)
        net.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        return net

    weights = masked().state_dict()
    load_backbone_weights(masked(), weights, source="w")
    weights["mask"] = torch.tensor([float("nan"), 0.0])
    refused(masked(), weights, "hold NaN or infinity in 'mask'")


def test_a_backbone_that_is_itself_called_backbone(state, tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Net()

    torch.save({f"backbone.{name}": value for name, value in state.items()}, tmp_path / "w.pth")
    for stored in (read_state_dict(tmp_path / "w.pth"), {f"backbone.{name}": value for name, value in state.items()}):
        net = Wrapped()
        load_backbone_weights(net, stored, source="w")
        assert_same(net.backbone.state_dict(), state)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "test_mambaout"])
def test_timm_models_take_their_own_files(tmp_path, name):
    full = timm.create_model(name, num_classes=7)
    headless = timm.create_model(name, num_classes=0)
    torch.save(full.state_dict(), tmp_path / "w.pth")
    classifier = full.pretrained_cfg["classifier"]
    prefixes = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    state = read_state_dict(tmp_path / "w.pth")
    load_backbone_weights(headless, state, source=name, classifier=prefixes)
    assert_same(headless.state_dict(), {key: state[key] for key in headless.state_dict()})
    # The independent reference: the features of the model the file was made from.
    pictures = torch.rand(2, 3, *full.pretrained_cfg["input_size"][1:])
    with torch.inference_mode():
        expected = full.eval().forward_head(full.forward_features(pictures), pre_logits=True)
        assert torch.allclose(headless.eval()(pictures), expected, atol=1e-6)


def test_a_resnet34_file_does_not_pass_for_a_resnet18():  # trap 12
    with torch.device("meta"):
        names = timm.create_model("resnet34", num_classes=0).state_dict()
    state = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in names.items()}
    refused(timm.create_model("resnet18", num_classes=0), state, "100 of 100 tensors matched; left over 'layer1.2.")


def test_a_header_length_that_begins_like_a_pickle(tmp_path):
    """A safetensors file begins with its header's length, whose low byte is 0x80 in one file of thirty-two."""
    path = tmp_path / "x.safetensors"
    for padding in range(0, 256, 8):
        save_file({"weight": torch.ones(2)}, path, metadata={"format": "pt", "padding": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert list(read_state_dict(path)) == ["weight"]
