"""The small verbs: `check` audits a folder, `backbones` lists and describes."""

import shutil

import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Where `runs/` may be written."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def test_check_of_a_sound_folder(folder, command):
    status, out, err = command("check", "--data", folder, "--quick")
    assert (status, err) == (0, "")
    assert "circle" in out
    assert "24" in out  # training pictures
    assert "refuse" not in out


@pytest.fixture
def own(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "own")


def unreadable(data):
    (data / "train" / "circle" / "bad.png").write_text("no picture", encoding="utf-8")


def leaking(data):
    shutil.copy(data / "train" / "circle" / "000.png", data / "val" / "circle" / "copy.png")


def relabelled(data):
    shutil.copy(data / "train" / "circle" / "000.png", data / "train" / "square" / "copy.png")


def empty(data):
    (data / "train" / "moon").mkdir()


@pytest.mark.parametrize(
    ("damage", "message", "flag"),
    [
        (unreadable, "1 unreadable pictures", "--skip-bad"),
        (leaking, "1 pictures in more than one split", "--allow-leaks"),
        (relabelled, "1 pictures with more than one label", "--allow-leaks"),
        (empty, "classes without pictures: moon", "--allow-empty-classes"),
    ],
)
def test_check_says_what_finetune_would_refuse(own, command, damage, message, flag):  # fault 3, fault 10, fault 24
    damage(own)
    status, out, err = command("check", "--data", own, "--quick")
    assert status == 3
    assert message in out
    assert "finetune would refuse this folder" in err
    assert message in err
    status, out, err = command("check", "--data", own, "--quick", flag)
    assert (status, err) == (0, "")
    assert message in out


def test_check_speaks_of_imbalance(folder, tmp_path, command):  # fault 26
    shutil.copytree(folder / "train", tmp_path / "flat")
    for path in sorted((tmp_path / "flat" / "circle").iterdir())[1:]:
        path.unlink()
    for number in range(20):
        picture = tmp_path / "flat" / "square" / "000.png"
        copy = picture.with_name(f"more{number}.png")
        copy.write_bytes(picture.read_bytes() + bytes([number]))  # another content, the same picture
    _, out, _ = command("check", "--data", tmp_path / "flat", "--quick")
    assert "imbalance: 28 pictures of square, 1 of circle" in out


def test_backbones_are_listed(command):
    status, out, _ = command("backbones", "test_res*")
    assert status == 0
    assert "test_resnet" in out.split()


def test_one_backbone_is_described(command):
    status, out, _ = command("backbones", "transferkit/mini")
    assert status == 0
    for part in ("1,246,336", "256 (penultimate, pooled)", "96 x 96 px", "pretrained bundled", "layer4 (919,040)"):
        assert part in " ".join(out.split())


def test_the_cost_and_the_stages_of_a_backbone_are_told(command):
    _, out, _ = command("backbones", "mobilenetv3_small_050")
    words = " ".join(out.split())
    # 1024 features of 1000 classes. A stem of 3 px and stride 2, then 3 px depthwise, with squeeze-and-excitation.
    assert "568,224 without the classifier, 1,593,224 with it" in words
    assert "23 M multiply-adds" in words
    assert "stride 4, 8 channels (blocks.0), receptive field 7 px, and the whole picture through gates" in words
    assert command("backbones", "test_vit")[1].count("receptive field the whole picture") == 1


def test_no_backbone_matches(command):
    status, _, err = command("backbones", "resnet81")
    assert status == 4
    assert "no backbone matches 'resnet81'. Did you mean 'resnet18'" in err
