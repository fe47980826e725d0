"""Extraction when things go wrong: bad pictures, changed files, values that are no numbers, stores that fail."""

import hashlib
import os
import shutil
import signal
import time
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_worker import CLOSE, build, error, extract, only, own, pictures_of, plain_rows
from PIL import Image
from shapes import draw_folder
from torch import nn
from torch.utils.data import get_worker_info

from transferkit.core.errors import DataError, StorageError, StoreError, TrainingError, TransferkitWarning
from transferkit.data.batches import loader
from transferkit.data.batches.dataset import ImageDataset, Picture
from transferkit.features.engine import compute
from transferkit.features.engine.engine import Engine
from transferkit.features.extract.extract import build_once, extract_features
from transferkit.features.store.store import FeatureStore

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def backbone():
    return build("test_resnet")


@pytest.fixture
def shapes(folder, tmp_path):
    """Pictures of this test's own."""
    return pictures_of(shutil.copytree(folder, tmp_path / "shapes"))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(compute, "CPU_CHUNK", 10)


run = partial(extract, batch_size=5)


def bad_picture(folder, name="bad.png", content=b"no picture"):
    path = Path(folder) / name
    path.write_bytes(content)
    return Picture(str(path), hashlib.sha256(content).hexdigest())


# --- bad pictures


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("views", [0, 2])
def test_a_bad_picture_is_named_and_the_rest_is_stored(shapes, backbone, store, tmp_path, workers, views):  # fault 69
    some = [*shapes[:7], bad_picture(tmp_path), *shapes[7:12]]
    result = run(some, backbone, store, views=views, workers=workers)
    assert list(result.failures) == [7]
    assert result.failures[7]
    rows = only(result)
    assert np.isnan(rows[:, 7]).all()
    good = [at for at in range(len(some)) if at != 7]
    assert error(rows[0, good], plain_rows(backbone, [some[at].name for at in good])) <= CLOSE
    assert np.isfinite(rows[:, good]).all()
    again = run(some, backbone, store, views=views)
    assert again.computed == 0
    assert again.failures == result.failures
    assert np.array_equal(only(again), rows, equal_nan=True)


def test_a_bad_picture_is_not_decoded_again(shapes, backbone, store, tmp_path, decoded):
    some = [*shapes[:3], bad_picture(tmp_path)]
    assert run(some, backbone, store).computed == 3  # of which the network saw something
    assert len(decoded) == 4
    decoded.clear()
    run([*some, shapes[3]], backbone, store)
    assert decoded == [shapes[3].name]


def test_nothing_but_bad_pictures(backbone, store, tmp_path):
    some = [bad_picture(tmp_path, f"{n}.png", b"no picture" * (n % 3 + 1)) for n in range(4)]  # two are alike
    result = run(some, backbone, store)
    assert sorted(result.failures) == [0, 1, 2, 3]
    assert only(result).shape == (1, 4, backbone.num_features)
    assert sorted(run(some, backbone, store).failures) == [0, 1, 2, 3]


def test_a_mended_picture_is_a_new_one(shapes, backbone, store, tmp_path):
    bad = bad_picture(tmp_path)
    assert run([bad], backbone, store).failures
    shutil.copy(shapes[0].name, bad.name)
    result = run([Picture(bad.name, shapes[0].sha256)], backbone, store)
    assert (result.computed, result.failures) == (1, {})


@pytest.fixture
def options(tmp_path):
    return {
        "backbone": "transferkit/mini", "image_size": 32, "precision": "32", "compile": "off", "accelerator": "cpu",
        "store": str(tmp_path / "store"), "workers": 0,
    }  # fmt: skip


def test_a_data_set_with_a_bad_picture(folder, tmp_path, options, decoded):  # fault 69
    data = shutil.copytree(folder, tmp_path / "data")
    clean = extract_features(data, **{**options, "store": str(tmp_path / "clean")})
    bad = data / "train" / "circle" / "0000-bad.png"  # before all others
    bad.write_bytes(b"no picture")
    (data / "val" / "square" / "worse.png").write_bytes((data / "val" / "square" / "000.png").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"2 unreadable pictures: .*0000-bad\.png.*worse\.png.*--skip-bad"):
        extract_features(data, **options)
    decoded.clear()
    table = extract_features(data, skip_bad=True, **options)
    assert decoded == []
    assert table.facts["computed"] == 0
    assert table.paths == clean.paths
    assert np.allclose(table.X, clean.X, rtol=0, atol=1e-5)
    assert np.array_equal(table.y, clean.y)
    assert {file.path for file in table.index.skipped} >= {str(bad), str(data / "val" / "square" / "worse.png")}


@pytest.mark.filterwarnings("ignore:classes without a val picture")  # so few are drawn
def test_a_bad_picture_is_left_out_before_splitting(tmp_path, options):  # fault 69
    """A class keeps the share of test pictures that its readable pictures give it."""
    whole = draw_folder(tmp_path / "whole", per_class=20)
    damaged = shutil.copytree(whole, tmp_path / "damaged")
    for number in (3, 4, 5):
        (damaged / "circle" / f"{number:03d}.png").write_bytes(b"no picture %d" % number)
        (whole / "circle" / f"{number:03d}.png").unlink()
    expected, table = extract_features(whole, **options), extract_features(damaged, skip_bad=True, **options)
    assert [record.split for record in table.records] == [record.split for record in expected.records]
    assert np.array_equal(table.X, expected.X)


# --- files that change under the hands


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("what", ["deleted", "changed"])
def test_a_file_that_is_not_what_was_hashed(shapes, backbone, store, what, workers):  # fault 23
    victim = Path(shapes[17].name)
    if what == "deleted":
        victim.unlink()
    else:
        shutil.copy(shapes[0].name, victim)
    expected = "cannot be read any more" if what == "deleted" else "its content changed since the data were indexed"
    with pytest.raises(DataError, match=f"{victim}: {expected}"):
        run(shapes, backbone, store, workers=workers)


@pytest.mark.parametrize("hangs", [False, True])
def test_a_lost_worker(monkeypatch, shapes, backbone, store, small_chunks, hangs):  # fault 45
    batch = ImageDataset.batch

    def harmed(self, jobs):
        if get_worker_info() is not None and any(job.picture == 15 for job in jobs):  # of the second chunk
            time.sleep(60) if hangs else os.kill(os.getpid(), signal.SIGKILL)
        return batch(self, jobs)

    monkeypatch.setattr(ImageDataset, "batch", harmed)
    monkeypatch.setattr(loader, "TIMEOUT_S", 1.0 if hangs else 300.0)
    reason = "processes sent nothing for 1 s" if hangs else "process was lost"
    with pytest.raises(StorageError, match=rf"decoding {reason}.* reduce --workers or raise shm") as caught:
        run(shapes, backbone, store, workers=1)
    assert caught.value.exit_status == 74
    assert 10 <= len(shapes) - run(shapes, backbone, store).computed < 20  # the first chunk is kept


def test_what_was_computed_before_a_file_vanished_is_kept(shapes, backbone, store, small_chunks):  # fault 23
    Path(shapes[17].name).unlink()
    with pytest.raises(DataError):
        run(shapes, backbone, store)
    left = [picture for at, picture in enumerate(shapes) if at != 17]
    assert run(left, backbone, store).computed == len(left) - 15  # one chunk of 10 and one batch of 5 came before


# --- values that are no numbers


class Singular(nn.Module):
    """A network that gives no number for one kind of picture: a black one."""

    def __init__(self, value):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.value = value

    def forward(self, x):
        black = x.amax(dim=(1, 2, 3), keepdim=True) < 0  # darker than the mean everywhere
        return torch.where(black, torch.full_like(self.conv(x), self.value), self.conv(x))


@pytest.fixture
def black(tmp_path):
    path = tmp_path / "black.png"
    Image.new("RGB", (20, 20)).save(path)
    return Picture(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("layer", ["pooled", "all"])
def test_features_that_are_no_numbers(shapes, black, store, value, layer):  # fault 71
    singular = own(Singular(value))
    with pytest.raises(StoreError, match=r"features of '.*black\.png' are not finite - try --precision 32") as caught:
        run([*shapes[:7], black, *shapes[7:9]], singular, store, layer=layer)
    assert caught.value.exit_status == 7
    with pytest.raises(StoreError, match=r"black\.png"):  # not served from the store afterwards
        run([black], singular, store, layer=layer)
    assert np.isfinite(only(run(shapes[:9], singular, store))).all()


def test_features_that_are_no_numbers_where_nothing_is_kept(shapes, black, tmp_path):  # fault 71
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"black\.png"):
        run([*shapes[:3], black], own(Singular(torch.nan)), FeatureStore(tmp_path / "file" / "store"))


# --- stores that fail


@pytest.mark.parametrize(("name", "rows"), [("shard", 10), ("manifest.json", 45)])
def test_what_is_damaged_is_computed_again(shapes, backbone, store, small_chunks, name, rows):  # fault 66
    first = only(run(shapes, backbone, store))
    (stored,) = store.sets()
    path = stored.path / (stored.manifest().shards[1].file if name == "shard" else name)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.warns(TransferkitWarning, match=f"{path.name} is damaged, .* rows .*are computed again"):
        second = run(shapes, backbone, store)
    assert second.computed == rows
    assert error(only(second), first) <= CLOSE
    assert run(shapes, backbone, store).computed == 0


def test_a_store_that_cannot_be_written(shapes, backbone, tmp_path, small_chunks):  # fault 70
    (tmp_path / "file").write_bytes(b"")  # a place below a file: nobody can write there, not even root
    store = FeatureStore(tmp_path / "file" / "store")
    with pytest.warns(
        TransferkitWarning, match="cannot be written: what it has is used, new features are not"
    ) as warned:
        result = run([*shapes, bad_picture(tmp_path)], backbone, store, views=1)
    assert len(warned) == 1
    assert result.computed == len(shapes)
    assert list(result.failures) == [len(shapes)]
    assert error(only(result)[0, :-1], plain_rows(backbone, [each.name for each in shapes])) <= CLOSE
    assert np.isfinite(only(result)[1, :-1]).all()
    assert (tmp_path / "file").read_bytes() == b""


def test_what_a_read_only_store_has_is_used(shapes, backbone, store, monkeypatch):  # fault 70
    first = only(run(shapes[:20], backbone, store))
    allowed, before = os.access, sorted(store.root.rglob("*"))
    monkeypatch.setattr(os, "access", lambda path, mode, **more: not mode & os.W_OK and allowed(path, mode, **more))
    assert run(shapes[:20], backbone, store).computed == 0
    with pytest.warns(TransferkitWarning, match="cannot be written"):
        result = run(shapes, backbone, store)
    assert result.computed == len(shapes) - 20
    assert np.array_equal(only(result)[0, :20], first[0])
    assert sorted(store.root.rglob("*")) == before


class Stop(Exception):
    pass


@pytest.mark.parametrize(("stop", "after"), [(KeyboardInterrupt, 5), (SystemExit, 15), (Stop, 40)])
def test_what_was_computed_before_an_interrupt_is_kept(shapes, backbone, store, small_chunks, stop, after):
    def interrupt(done, total):
        if done >= after:
            raise stop

    with pytest.raises(stop):
        run(shapes, backbone, store, progress=interrupt)
    result = run(shapes, backbone, store)
    assert result.computed == len(shapes) - after
    assert error(only(result)[0], plain_rows(backbone, [each.name for each in shapes])) <= CLOSE


def test_an_interrupt_between_a_batch_and_its_names(shapes, backbone, store, monkeypatch):
    """Ctrl-C comes at any instruction: rows without names must not be kept under those of others."""
    rows, calls = Engine.rows, []

    def interrupted(self, images, **more):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rows(self, images, **more)

    monkeypatch.setattr(Engine, "rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(shapes, backbone, store)
    monkeypatch.undo()
    result = run(shapes, backbone, store)
    assert result.computed == len(shapes) - 10
    assert error(only(result)[0], plain_rows(backbone, [each.name for each in shapes])) <= CLOSE


def test_no_space_is_said_before_anything_is_computed(shapes, backbone, store, monkeypatch, decoded):  # fault 68
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 2**26 + 100))
    with pytest.raises(StorageError, match=r"needs [\d,]+ bytes and a reserve of .*free some space, or give another"):
        run(shapes, backbone, store)
    assert decoded == []
    width = backbone.num_features
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, 2**26 + len(shapes) * (4 * width + 64)))
    assert run(shapes, backbone, store).computed == len(shapes)
    written = sum(shard.bytes for each in store.sets() for shard in each.manifest().shards)
    assert written <= len(shapes) * (4 * width + 64)


def test_space_for_views_and_depths(shapes, backbone, store, monkeypatch):  # fault 68
    required = []
    monkeypatch.setattr(FeatureStore, "require_space", lambda self, nbytes: required.append(nbytes))
    run(shapes[:4], backbone, store, views=2, layer="all")
    written = sum(shard.bytes for each in store.sets() for shard in each.manifest().shards)
    (bound,) = required
    assert 4 * 3 * 4 * (8 + backbone.num_features) < bound
    assert bound > 0.8 * written


def test_a_disk_that_fills_up_on_the_way(shapes, backbone, store, small_chunks, monkeypatch):  # fault 68
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(None)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        run(shapes, backbone, store)
    monkeypatch.setattr(os, "fsync", fsync)
    result = run(shapes, backbone, store)
    assert 0 < result.computed < len(shapes)
    assert error(only(result)[0], plain_rows(backbone, [each.name for each in shapes])) <= CLOSE


def test_out_of_memory_names_a_smaller_batch(shapes, backbone, store, monkeypatch):
    def greedy(self, images, **more):
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(Engine, "rows", greedy)
    with pytest.raises(TrainingError, match=r"batches of 5 - pass a smaller batch size \(such as 2\) or image size"):
        run(shapes, backbone, store)


def test_warnings_come_once(tmp_path, options):
    """The index is built twice, before and after extraction; what it warns of is told once."""
    data = draw_folder(tmp_path / "data", per_class=6)
    shutil.copy(data / "circle" / "000.png", data / "square" / "copy.png")
    build_once.cache_clear()
    with pytest.warns(TransferkitWarning) as warned:
        extract_features(data, allow_leaks=True, **options)
    texts = [str(warning.message) for warning in warned]
    assert any("more than one label" in text for text in texts)
    assert len(texts) == len(set(texts))
