"""Nearest training pictures: those of a search without any cleverness, computed once, never the picture itself."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from transferkit.core.csv import csv_text
from transferkit.core.errors import CheckpointError, DataError, TransferkitWarning
from transferkit.data.augment.normalise import normalise
from transferkit.models.artifact import ModelInfo
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule
from transferkit.results.explain.neighbours import TrainingNeighbours
from transferkit.results.predict.predictor import Predictor


def predictor_of(seed=0):
    torch.manual_seed(seed)
    module = TransferModule(create_backbone("test_resnet", weights="random", image_size=32), 3)
    return Predictor(module, ModelInfo("test_resnet", "linear", ("a", "b", "c"), module.data_config, "random"))


def list_pictures(run, paths):
    """Write the list of a run's pictures; the split and the label are the names of the folders they lie in."""
    rows = [
        (path.parts[-3], path.parts[-2], str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths
    ]
    (run / "pictures.csv").write_text(csv_text([("split", "label", "path", "sha256"), *rows]), encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def predictor():
    return predictor_of()


@pytest.fixture(scope="module")
def pictures(folder):
    return sorted(folder.rglob("*.png"))


@pytest.fixture(scope="module")
def train(pictures):
    return [path for path in pictures if path.parts[-3] == "train"]


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    return list_pictures(tmp_path_factory.mktemp("run"), pictures)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def known(run, predictor, store):
    return TrainingNeighbours(run, predictor, store)


@pytest.fixture
def copied(train, tmp_path):
    """A run of its own whose pictures may be damaged: three of each class."""
    chosen = [path for path in train if path.stem in ("000", "001", "002")]
    paths = [tmp_path / Path(*path.parts[-3:]) for path in chosen]
    for source, path in zip(chosen, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)
    return list_pictures(tmp_path, paths), paths


def by_definition(predictor, paths, train, k):
    """Features one by one in plain fp32, all cosines in float64, all sorted."""

    def features(path):
        view = torch.from_numpy(predictor.decode(path)[None])
        with torch.no_grad():
            return predictor.module.backbone(normalise(view, predictor.info.preprocessing))[0].double().numpy()

    rows = np.stack([features(path) for path in train])
    nearest = []
    for path in paths:
        query = features(path)
        cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
        nearest.append([(str(train[at]), float(cosines[at])) for at in np.argsort(-cosines, kind="stable")[:k]])
    return nearest


def nearest(known, predictor, paths, k):
    hashes = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    return known.nearest([predictor.decode(path) for path in paths], hashes, k)


def test_the_nearest_by_definition(known, predictor, pictures, train):
    queries = [path for path in pictures if path.parts[-3] == "test"]
    for ours, exact in zip(
        nearest(known, predictor, queries, 4), by_definition(predictor, queries, train, 4), strict=True
    ):
        assert [one.path for one in ours] == [path for path, _ in exact]
        assert [one.label for one in ours] == [Path(path).parent.name for path, _ in exact]
        # bf16 where this machine chooses it for features
        np.testing.assert_allclose([one.similarity for one in ours], [cosine for _, cosine in exact], atol=2e-3)


def test_computed_once_for_each_model(run, predictor, store, known, train):  # fault 64
    calls = []
    assert TrainingNeighbours(run, predictor, store, lambda done, total: calls.append((done, total))).computed == 0
    assert calls[-1] == (len(train), len(train))
    other = TrainingNeighbours(run, predictor_of(seed=1), store)  # the same network with other weights
    assert other.computed == known.computed == len(train)


def test_a_training_picture_is_not_its_own_neighbour(known, predictor, train):
    (itself,) = known.nearest([predictor.decode(train[5])], [""], 3)  # of a file that is not known
    assert itself[0].path == str(train[5]) and itself[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert nearest(known, predictor, [train[5]], 2) == [itself[1:]]


def test_files_that_are_gone_or_changed(copied, predictor, train, tmp_path):
    run, paths = copied
    store = tmp_path / "store"
    assert TrainingNeighbours(run, predictor, store).computed == 9
    paths[0].unlink()
    shutil.copy(paths[2], paths[1])  # another picture under the name
    with pytest.warns(TransferkitWarning, match="2 of 9 training pictures are gone or changed"):
        known = TrainingNeighbours(run, predictor, store)
    assert known.computed == 0
    (others,) = nearest(known, predictor, [next(train[0].parents[2].glob("val/*/*.png"))], 9)
    assert {one.path for one in others} == set(map(str, paths[2:]))


def test_a_file_that_is_no_picture(copied, predictor, tmp_path):
    run, paths = copied
    paths[0].write_bytes(b"words")
    list_pictures(run, paths)
    with pytest.warns(TransferkitWarning, match="1 of 9 training pictures"):
        known = TrainingNeighbours(run, predictor, tmp_path / "store")
    (others,) = nearest(known, predictor, [paths[1]], 9)
    assert len(others) == 7 and all(np.isfinite(one.similarity) for one in others)


def test_all_gone(copied, predictor, tmp_path):
    run, paths = copied
    for path in paths:
        path.unlink()
    with pytest.raises(DataError, match=r"none of the 9 training pictures of .* is where it was.*--neighbours 0"):
        TrainingNeighbours(run, predictor, tmp_path / "store")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, r"no pictures\.csv that lists training pictures"),
        ("split,label\ntrain,a\n", r"pictures\.csv: has no column path, sha256"),
        ("split,label,path,sha256\nval,a,a.png,0\n", r"no pictures\.csv that lists training pictures"),
    ],
)
def test_runs_that_do_not_say(tmp_path, predictor, table, message):
    if table is not None:
        (tmp_path / "pictures.csv").write_text(table, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        TrainingNeighbours(tmp_path, predictor, tmp_path / "store")
