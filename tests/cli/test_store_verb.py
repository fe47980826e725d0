"""The store verb and the features verb: what they print, and what they end with."""

import numpy as np
import pytest

from transferkit.core.files import user_cache
from transferkit.data.batches.datamodule import ImageData
from transferkit.features.extract.rows import StoredRows
from transferkit.features.store.store import FeatureStore


@pytest.fixture
def store(folder, tmp_path, command):
    """A store with the features of the drawn folder, and the words that name it."""
    root = tmp_path / "store"
    words = ["--data", folder, "--image-size", 32, "--store", root, "--quiet"]
    assert command("features", *words) == (0, "", "")
    return root


def test_features_are_exported_and_told(folder, store, tmp_path, command):
    out = tmp_path / "x.npz"
    status, text, err = command(
        "features", "--data", folder, "--image-size", 32, "--store", store, "--layer", "all", "--views", 1,
        "--augment", "standard", "--out", out,
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "pictures  45 of 3 classes (train 24, val 12, test 9)" in text
    assert "views     1 plain, 1 augmented (standard)" in text
    assert f"written   {out}" in text
    with np.load(out, allow_pickle=False) as table:
        assert table["X"].shape == (45, 256)
        assert table["X_layer2"].shape == (45, 64)
        assert table["views_pooled"].shape == (1, 45, 256)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--layer", "stage7"], 2, "transferkit/mini has no layer 'stage7'. Did you mean 'stage4'"),
        (["--out", "x.npy"], 2, "unknown ending '.npy'. Did you mean '.npz'"),
        (["--data", "nowhere"], 3, "--data nowhere does not exist"),
        (["--backbone", "resnet1"], 4, "unknown backbone 'resnet1'"),
    ],
)
def test_mistakes(folder, tmp_path, command, words, status, message):
    data = [] if "--data" in words else ["--data", folder]
    code, _, err = command("features", "--store", tmp_path / "s", *data, *words)
    assert code == status
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_list_verify_and_gc(store, command):
    status, out, _ = command("store", "list", "--store", store)
    assert status == 0
    assert "transferkit/mini" in out
    assert "1 sets" in out
    assert "MB of what is known of picture files" in out
    status, out, _ = command("store", "verify", "--store", store)
    assert (status, "45 rows: every shard is what was written" in out) == (0, True)
    (feature_set,) = FeatureStore(store).sets()
    (shard,) = feature_set.path.glob("*.safetensors")
    data = shard.read_bytes()
    shard.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    status, out, err = command("store", "verify", "--store", store)  # fault 66
    assert status == 7
    assert shard.name in out
    assert "transferkit store gc" in err
    status, out, _ = command("store", "gc", "--dry-run", "--store", store)
    assert (status, shard.exists(), "would be freed" in out) == (0, True, True)
    assert command("store", "gc", "--store", store)[0] == 0
    assert not shard.exists()
    assert command("store", "verify", "--store", store)[0] == 0


@pytest.mark.parametrize(("stop", "status", "name"), [(KeyboardInterrupt, 130, "SIGINT"), (SystemExit, 143, "SIGTERM")])
def test_stopped_in_the_middle(folder, tmp_path, command, monkeypatch, stop, status, name):
    add = StoredRows.add

    def stopped(*args):
        add(*args)
        raise stop

    monkeypatch.setattr(StoredRows, "add", stopped)
    words = ["features", "--data", folder, "--image-size", 32, "--store", tmp_path / "s"]
    code, _, err = command(*words)
    assert code == status
    assert f"stopped by {name}; the features computed so far are in the store - run again to go on" in err
    monkeypatch.undo()
    code, out, _ = command(*words)
    assert code == 0
    assert "computed  0, the others were in the store" in out


def test_decoded_pictures_are_listed_verified_and_cleaned(folder, store, command):
    data = ImageData(folder, image_size=32, keep_bytes=0)
    data.index  # noqa: B018
    (shard,) = data.pixels.disk.folder.glob("*.pixels")
    status, out, _ = command("store", "list", "--store", store)
    assert (status, "1 sets of pixels" in out, "pillow " in out) == (0, True, True)
    status, out, _ = command("store", "verify", "--store", store)
    assert (status, "45 rows; 45 decoded pictures: every shard is what was written" in out) == (0, True)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    status, out, err = command("store", "verify", "--store", store)  # fault 203
    assert (status, shard.name in out, "pixels" in err) == (7, True, True)
    status, out, _ = command("store", "gc", "--dry-run", "--store", store)
    assert (status, shard.exists(), "would be freed, 1 things" in out) == (0, True, True)
    assert command("store", "gc", "--store", store)[0] == 0
    assert not shard.exists() and not shard.parent.exists()
    assert command("store", "verify", "--store", store)[0] == 0


def test_a_user_without_a_home_has_no_pixel_store(store, command, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("transferkit.cli.store_report.pixel_root", lambda: user_cache() / "pixels")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    for action in ("list", "verify", "gc"):
        assert command("store", action, "--store", store)[0] == 0
