"""Nearest training pictures: those of a search without any cleverness, computed once, never the picture itself."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.core.csv import csv_text
from transferkit.core.errors import CheckpointError, ConfigError, DataError, TransferkitWarning
from transferkit.data.batches.datamodule import normalise
from transferkit.features.store.store import FeatureStore
from transferkit.models.artifact import ModelInfo
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule
from transferkit.results.explain import neighbours
from transferkit.results.explain.neighbours import Neighbour, TrainingNeighbours
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
    (run / "pictures.csv").write_text(csv_text([("split", "label", "path", "sha256"), *rows]))
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
    found = []
    for path in paths:
        query = features(path)
        cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
        found.append([(str(train[at]), float(cosines[at])) for at in np.argsort(-cosines, kind="stable")[:k]])
    return found


def test_the_nearest_by_definition(known, predictor, pictures, train):
    queries = [path for path in pictures if path.parts[-3] == "test"]
    nearest = known.nearest(queries, 4)
    for ours, exact in zip(nearest, by_definition(predictor, queries, train, 4), strict=True):
        assert [one.path for one in ours] == [path for path, _ in exact]
        assert [one.label for one in ours] == [Path(path).parent.name for path, _ in exact]
        # bf16 where this machine chooses it for features
        np.testing.assert_allclose([one.similarity for one in ours], [cosine for _, cosine in exact], atol=2e-3)
    views = np.stack([predictor.decode(path) for path in queries])
    assert known.nearest(views, 4) == nearest  # however they are given
    assert known.nearest(list(views), 4) == nearest
    assert known.nearest([path.read_bytes() for path in queries], 4) == nearest


def test_only_training_pictures_count(known, train):
    assert (known.count, known.left_out) == (len(train), 0)


def test_computed_once_for_each_model(run, predictor, store, known, train):  # fault 64
    assert TrainingNeighbours(run, predictor, store).computed == 0
    assert TrainingNeighbours(run, predictor, FeatureStore(store)).computed == 0
    other = TrainingNeighbours(run, predictor_of(seed=1), store)  # the same network with other weights
    assert other.computed == known.computed == len(train)


def test_progress(run, predictor, store, known, train):
    told = []
    TrainingNeighbours(run, predictor, store, lambda done, total: told.append((done, total)))
    assert told[-1] == (len(train), len(train))


def test_a_training_picture_is_not_its_own_neighbour(known, predictor, train, tmp_path):
    path = train[5]
    view = predictor.decode(path)
    itself = known.nearest([view], 3)[0]
    assert itself[0].path == str(path) and itself[0].similarity == pytest.approx(1.0, abs=1e-5)
    renamed = shutil.copy(path, tmp_path / "other.png")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for others in (
        known.nearest([path], 2)[0],
        known.nearest([str(renamed)], 2)[0],
        known.nearest([path.read_bytes()], 2)[0],
        known.nearest([view], 2, sha256s=[sha256])[0],
    ):
        assert others == itself[1:]


def test_files_that_are_gone_or_changed(copied, predictor, train, tmp_path):
    run, paths = copied
    store = tmp_path / "store"
    assert TrainingNeighbours(run, predictor, store).count == 9
    paths[0].unlink()
    shutil.copy(paths[2], paths[1])  # another picture under the name
    with pytest.warns(TransferkitWarning, match="2 of 9 training pictures are gone or changed"):
        known = TrainingNeighbours(run, predictor, store)
    assert (known.count, known.left_out, known.computed) == (7, 2, 0)
    found = {one.path for one in known.nearest([train[0]], 9)[0]}
    assert found == {str(path) for path in paths[2:]}


def test_a_file_that_is_no_picture(copied, predictor, tmp_path):
    run, paths = copied
    paths[0].write_bytes(b"words")
    list_pictures(run, paths)
    with pytest.warns(TransferkitWarning, match="1 of 9 training pictures"):
        known = TrainingNeighbours(run, predictor, tmp_path / "store")
    found = known.nearest([paths[1]], 9)[0]
    assert len(found) == 7 and all(np.isfinite(one.similarity) for one in found)


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
        (tmp_path / "pictures.csv").write_text(table)
    with pytest.raises(CheckpointError, match=message):
        TrainingNeighbours(tmp_path, predictor, tmp_path / "store")


def test_refusals(known, predictor, train, tmp_path):
    with pytest.raises(ConfigError, match="k is 0, expected at least 1"):
        known.nearest([train[0]], 0)
    with pytest.raises(ConfigError, match=r"an array is \(48, 56, 3\) uint8, .* evaluation view \(32, 32, 3\)"):
        known.nearest([np.zeros((48, 56, 3), dtype=np.uint8)], 1)
    with pytest.raises(ConfigError, match="2 sha256s for 1 pictures"):
        known.nearest([train[0]], 1, sha256s=[None, None])
    with pytest.raises(DataError, match=r"cannot read picture '.*gone\.png'"):
        known.nearest([tmp_path / "gone.png"], 1)
    assert known.nearest([], 1) == []
    assert known.nearest(predictor.decode(train[0])[None], 1)[0] == [
        Neighbour(str(train[0]), "circle", pytest.approx(1))
    ]


def test_pillow_pictures(known, predictor, train):
    with Image.open(train[3]) as image:
        assert known.nearest([image], 1)[0][0].path == str(train[3])


# ---- the search -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 100])
def test_search_in_blocks(monkeypatch, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    # Cosines with (1, 0): 0, 1, 0.6, 1, -1, 0.6, 0.6
    rows = np.array([[0, 1], [1, 0], [0.6, 0.8], [1, 0], [-1, 0], [0.6, -0.8], [0.6, 0.8]], dtype=np.float32)
    query = np.array([[1, 0], [1, 0]], dtype=np.float32)
    first, second = neighbours._top(query, rows, 3, [[], [1, 2]])
    assert [at for at, _ in first] == [1, 3, 2]  # of equals the first
    assert [at for at, _ in second] == [3, 5, 6]
    assert [cosine for _, cosine in first] == pytest.approx([1.0, 1.0, 0.6])
    everything = neighbours._top(query, rows, 10, [[], [4]])
    assert [at for at, _ in everything[0]] == [1, 3, 2, 5, 6, 0, 4]
    assert [at for at, _ in everything[1]] == [1, 3, 2, 5, 6, 0]


def test_a_row_of_zeros_is_like_nothing():
    directions = neighbours._directions(np.array([[0, 0], [3, 4]], dtype=np.float32))
    assert directions.tolist() == [[0, 0], [pytest.approx(0.6), pytest.approx(0.8)]]
