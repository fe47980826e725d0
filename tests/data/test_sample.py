"""The bundled sample set and weights: drawn the same each time, learnable by structure and not by colour."""

import os
import shutil
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.models.resnet import BasicBlock, ResNet

from transferkit.core.errors import ConfigError, DataError, StorageError
from transferkit.data import sample
from transferkit.data.sample import SAMPLE_CLASSES, draw_sample, sample_folder

REPOSITORY = Path(sample.__file__).parents[2]
BUNDLED = REPOSITORY / "transferkit" / "models" / "bundled"
PER_CLASS = 60


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_sample(tmp_path_factory.mktemp("drawn") / "sample")


@pytest.fixture(scope="module")
def pictures(drawn):
    """``(N, 96, 96, 3)`` uint8: the centre of each picture of the whole set."""
    squares = []
    for path in sorted(drawn.glob("*/*.jpg")):
        with Image.open(path) as picture:
            side = min(picture.size)
            left, top = (picture.width - side) / 2, (picture.height - side) / 2
            box = (left, top, left + side, top + side)
            squares.append(np.asarray(picture.resize((96, 96), Image.Resampling.BILINEAR, box)))
    return np.stack(squares)


@pytest.fixture(scope="module")
def labels():
    return np.repeat(np.arange(len(SAMPLE_CLASSES)), PER_CLASS)


def accuracy(features, labels):
    """Cross-validated accuracy of a linear probe, each with the regularisation that suits it best."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    probes = [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)) for c in (0.01, 0.1)]
    return max(cross_val_score(probe, features, labels, cv=folds).mean() for probe in probes)


def mini(seed=None):
    """ResNet-10 at half width with the bundled weights, or with random ones."""
    torch.manual_seed(seed or 0)
    network = ResNet(BasicBlock, (1, 1, 1, 1), channels=(32, 64, 128, 256), num_classes=0)
    if seed is None:
        stored = load_file(BUNDLED / "mini.safetensors")
        network.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in stored.items()}
        )
    return network.eval()


def features(network, pictures):
    """``(N, 256)``: pooled features, prepared as the model card says."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in images.split(60)]).numpy()


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_six_classes_of_sixty_pictures_of_varied_sizes(drawn):
    assert sorted(path.name for path in drawn.iterdir()) == sorted(SAMPLE_CLASSES) and len(SAMPLE_CLASSES) == 6
    sizes = set()
    for name in SAMPLE_CLASSES:
        files = sorted(path.name for path in (drawn / name).iterdir())
        assert files == [f"{number:03}.jpg" for number in range(PER_CLASS)]
        for file in files:
            with Image.open(drawn / name / file) as picture:
                assert (picture.format, picture.mode) == ("JPEG", "RGB")
                sizes.add(picture.size)
    assert len(sizes) > 200
    assert len(set(tree(drawn).values())) == 6 * PER_CLASS


def test_the_same_seed_gives_the_same_bytes(tmp_path, drawn):
    np.random.seed(5)
    again = draw_sample(tmp_path / "again", per_class=3)
    other = draw_sample(tmp_path / "other", per_class=3, seed=1)
    assert tree(again) == {key: value for key, value in tree(drawn).items() if int(Path(key).stem) < 3}
    assert not set(tree(again).values()) & set(tree(other).values())


@pytest.mark.slow
def test_colour_does_not_tell_the_classes_apart(pictures, labels):
    """Chance is 16.7 %."""
    bins = (pictures // 32).astype(np.int64) @ [64, 8, 1]
    histograms = np.stack([np.bincount(picture.ravel(), minlength=512) for picture in bins])
    reached = accuracy(np.sqrt(histograms), labels)
    assert reached < 0.4
    painted = pictures.copy()
    painted[labels == 0, :48] = (255, 0, 0)  # the classifier can use colour where there is something to see
    bins = (painted // 32).astype(np.int64) @ [64, 8, 1]
    helped = accuracy(np.sqrt(np.stack([np.bincount(picture.ravel(), minlength=512) for picture in bins])), labels)
    assert helped > reached + 0.08
    print(f"colour histogram {reached:.3f}")


@pytest.mark.slow
def test_pretrained_features_beat_random_ones(pictures, labels):
    """The reason for the bundled weights: at least 15 points over the same network with random weights."""
    pretrained = accuracy(features(mini(), pictures), labels)
    untrained = [accuracy(features(mini(seed), pictures), labels) for seed in (1, 2, 3)]
    print(f"pretrained {pretrained:.3f}, random {', '.join(f'{value:.3f}' for value in untrained)}")
    assert pretrained > max(untrained) + 0.15
    assert 0.8 < pretrained < 0.99


def test_the_model_card_names_the_file_that_is_bundled():
    card = (BUNDLED / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert sha256((BUNDLED / "mini.safetensors").read_bytes()).hexdigest() in card
    assert sum(parameter.numel() for parameter in mini().parameters()) == 1_246_336
    assert "1,246,336" in card


# --- how it appears --------------------------------------------------------------------------------------------------


def few(monkeypatch):
    monkeypatch.setattr(sample, "_PER_CLASS", 1)
    monkeypatch.setattr(draw_sample, "__kwdefaults__", {"per_class": 1, "seed": 0, "progress": None})


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match=r"is not empty, expected a new or empty one"):
        draw_sample(tmp_path, per_class=1)
    with pytest.raises(DataError, match=r"mine\.txt' is a file, expected a new or empty folder"):
        draw_sample(tmp_path / "mine.txt", per_class=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled_and_is_readable_by_others(tmp_path):
    (tmp_path / "new").mkdir()
    folder = draw_sample(tmp_path / "new", per_class=1)
    assert len(tree(folder)) == 6
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):  # fault 48
    drawing, calls = sample.draw_picture, []

    def full(name, rng):
        calls.append(name)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return drawing(name, rng)

    monkeypatch.setattr(sample, "draw_picture", full)
    with pytest.raises(StorageError, match=r"draw the sample set in .*No space left on device"):
        draw_sample(tmp_path / "sample", per_class=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"per_class": 0}, "per_class is 0, expected at least 1"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"per_class": -2, "seed": -1}, r"\(1\) per_class.*\(2\) seed"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        draw_sample(tmp_path / "x", **values)
    assert not (tmp_path / "x").exists()


def test_more_than_a_thousand_pictures_keep_their_order(tmp_path):
    names = [path.name for path in sample._paths(tmp_path, 1001)[:1001]]
    assert names == sorted(names) and len(set(names)) == 1001


def test_the_cached_folder_is_drawn_once(monkeypatch):
    few(monkeypatch)
    folder = sample_folder()
    assert folder == Path(os.environ["XDG_CACHE_HOME"]) / "transferkit" / "sample-v1"
    before = tree(folder)
    monkeypatch.setattr(sample, "draw_picture", None)  # calling it would fail
    assert sample_folder() == folder and tree(folder) == before


@pytest.mark.parametrize("setting", ["", "relative/path"])
def test_without_a_usable_setting_the_cache_is_in_the_home_folder(monkeypatch, tmp_path, setting):
    few(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", setting)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sample_folder() == tmp_path / ".cache" / "transferkit" / "sample-v1"


def test_two_at_once(monkeypatch):  # fault 36, for the sample set
    """The slower one meets the other's folder when it wants to put its own in place."""
    few(monkeypatch)
    drawing, meeting = sample._draw, threading.Barrier(4, timeout=60)

    def together(*arguments):
        drawing(*arguments)
        meeting.wait()

    monkeypatch.setattr(sample, "_draw", together)
    results = []
    threads = [threading.Thread(target=lambda: results.append(sample_folder())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len(set(results)) == 1
    assert len(tree(results[0])) == 6
    assert [path.name for path in results[0].parent.iterdir()] == ["sample-v1"]  # no temporary folder is left


def test_a_cache_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(StorageError, match=r"cannot draw the sample set in .*sample-v1'"):
        sample_folder()


def test_a_damaged_cache_is_said(monkeypatch):
    few(monkeypatch)
    folder = sample_folder()
    shutil.rmtree(folder / "wood")
    with pytest.raises(DataError, match=r"damaged: 1 of 6 pictures are missing.*delete that folder"):
        sample_folder()


def test_a_killed_drawing_leaves_no_folder(tmp_path):
    script = (
        "import os, sys\n"
        "from transferkit.data import sample\n"
        "drawing = sample.draw_picture\n"
        "def kill(name, rng):\n"
        "    if name == 'fern': os._exit(9)\n"
        "    return drawing(name, rng)\n"
        "sample.draw_picture = kill\n"
        "sample.draw_sample(sys.argv[1], per_class=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "sample")], cwd=REPOSITORY, check=False)
    assert done.returncode == 9
    assert not (tmp_path / "sample").exists()
    assert len(tree(draw_sample(tmp_path / "sample", per_class=1))) == 6
