"""The bundled sample set and weights: the same everywhere, learnable by structure and not by colour."""

import os
import shutil
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
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

from transferkit.core.errors import DataError, StorageError
from transferkit.data import sample
from transferkit.data.sample import sample_folder

REPOSITORY = Path(sample.__file__).parents[2]
BUNDLED = REPOSITORY / "transferkit" / "models" / "backbones" / "bundled"
CLASSES = ("bricks", "clouds", "fern", "pebbles", "tiles", "wood")
PER_CLASS = 60
DIGEST = "8e6cc28539bcf2566f9b064a94ddaa2ad3a9a7c202827592253a3f8b17b8dba8"


@pytest.fixture
def pictures():
    """``(N, 96, 96, 3)`` uint8: the centre of each picture of the whole set."""
    squares = []
    for path in sorted(sample_folder().glob("*/*.jpg")):
        with Image.open(path) as picture:
            side = min(picture.size)
            left, top = (picture.width - side) / 2, (picture.height - side) / 2
            box = (left, top, left + side, top + side)
            squares.append(np.asarray(picture.resize((96, 96), Image.Resampling.BILINEAR, box)))
    return np.stack(squares)


@pytest.fixture
def labels():
    return np.repeat(np.arange(len(CLASSES)), PER_CLASS)


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


# --- what it is ------------------------------------------------------------------------------------------------------


def test_six_classes_of_sixty_pictures_of_varied_sizes():
    files = tree(sample_folder())
    assert list(files) == [f"{name}/{number:03}.jpg" for name in CLASSES for number in range(PER_CLASS)]
    assert len(set(files.values())) == 6 * PER_CLASS
    sizes = set()
    for file in files:
        with Image.open(sample_folder() / file) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            sizes.add(picture.size)
    assert len(sizes) > 200


def test_the_pictures_never_change_under_one_name():
    """Results on the sample set are compared over years: other pictures need another folder than ``sample-v1``."""
    folder = sample_folder()
    assert folder.name == "sample-v1"
    assert sha256("".join(tree(folder).values()).encode()).hexdigest() == DIGEST


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


def test_it_is_unpacked_once(monkeypatch):
    folder = sample_folder()
    assert folder == Path(os.environ["XDG_CACHE_HOME"]) / "transferkit" / "sample-v1"
    monkeypatch.setattr(zipfile.ZipFile, "extractall", None)  # calling it would fail
    assert sample_folder() == folder


def test_others_may_read_it(tmp_path):
    (tmp_path / "plain").mkdir()
    assert sample_folder().stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_several_at_once(monkeypatch):  # fault 36, for the sample set
    """The slower ones meet the folder of the first when they want to put their own in place."""
    unpack, meeting = zipfile.ZipFile.extractall, threading.Barrier(4, timeout=60)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", lambda self, path: (unpack(self, path), meeting.wait()))
    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(lambda _: sample_folder(), range(4)))
    assert len(tree(folder)) == 6 * PER_CLASS
    assert [path.name for path in folder.parent.iterdir()] == ["sample-v1"]  # no temporary folder is left


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(monkeypatch, error):  # fault 48
    def fail(archive, path):
        unpack(archive, path, members=archive.namelist()[:3])
        raise error

    unpack = zipfile.ZipFile.extractall
    monkeypatch.setattr(zipfile.ZipFile, "extractall", fail)
    with pytest.raises(StorageError if isinstance(error, OSError) else KeyboardInterrupt):
        sample_folder()
    assert list(Path(os.environ["XDG_CACHE_HOME"], "transferkit").iterdir()) == []


def test_a_killed_process_leaves_no_folder():
    script = (
        "import os, zipfile\n"
        "from transferkit.data.sample import sample_folder\n"
        "unpack = zipfile.ZipFile.extractall\n"
        "def kill(archive, path):\n"
        "    unpack(archive, path, members=archive.namelist()[:3])\n"
        "    os._exit(9)\n"
        "zipfile.ZipFile.extractall = kill\n"
        "sample_folder()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=False)
    assert done.returncode == 9
    assert not Path(os.environ["XDG_CACHE_HOME"], "transferkit", "sample-v1").exists()
    assert len(tree(sample_folder())) == 6 * PER_CLASS


def test_a_cache_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(StorageError, match=r"cannot unpack the sample set in .*sample-v1'"):
        sample_folder()


def test_a_damaged_cache_is_said():
    shutil.rmtree(sample_folder() / "wood")
    with pytest.raises(DataError, match=r"damaged: 60 of 360 pictures are missing.*delete that folder"):
        sample_folder()
