"""From a folder to X and y: what happens to the folder between two calls, options, and the verb under real signals."""

import csv
import itertools
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from engine_worker import CLOSE, error, plain_rows
from PIL import Image
from safetensors.torch import save_file
from shapes import draw_folder

from transferkit.core.errors import BackboneError, ConfigError, DataError, TransferkitWarning
from transferkit.data.batches import dataset
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.images import sketchbook
from transferkit.data.images.decode import decode_with_info
from transferkit.features.engine import compute
from transferkit.features.extract.extract import build_once, extract_features, extract_table, frozen_backbone
from transferkit.features.store.store import FeatureStore
from transferkit.machine import precision, timings
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.digest import state_digest
from transferkit.options.features import FeaturesConfig
from transferkit.options.fields import make_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(folder, tmp_path):
    """The drawn folder, of this test's own."""
    return shutil.copytree(folder, tmp_path / "data")


@pytest.fixture
def options(tmp_path):
    return {
        "image_size": 32, "precision": "32", "compile": "off", "accelerator": "cpu", "workers": 0,
        "store": str(tmp_path / "store"),
    }  # fmt: skip


# --- X and y


def test_X_and_y(folder, options):
    table = extract_features(folder, **options)
    X, y = table
    names = [record.path for record in table.records]
    assert names == sorted(names)
    assert len(names) == 45
    backbone = create_backbone("transferkit/mini", image_size=32).eval()
    assert X.dtype == np.float32
    assert error(X, plain_rows(backbone, names)) <= CLOSE
    assert y.dtype == np.int64
    assert [table.class_names[label] for label in y] == [name.rsplit("/", 2)[1] for name in names]
    assert {name: len(table.split(name)) for name in ("train", "val", "test")} == {"train": 24, "val": 12, "test": 9}
    facts = table.facts
    assert facts["backbone"] == "transferkit/mini"
    assert facts["weights"] == "bundled"
    assert facts["computed"] == 45
    assert facts["layers"] == {"pooled": "own"}
    assert facts["data_config"]["image_size"] == [32, 32]
    assert facts["augment"] == "none"
    assert facts["store"] == options["store"]


def test_pictures_that_a_training_kept_on_disk_are_not_decoded_again(data, options, monkeypatch, decoded):
    usual = create_backbone("transferkit/mini", image_size=32).data_config
    kept = ImageData(data, data_config=usual, keep_bytes=0, pixel_store="1GB")
    kept.index  # noqa: B018  # decodes, and keeps
    kept.pixels.flush()
    files = {path: path.stat() for path in kept.pixels.disk.folder.iterdir()}
    X, _ = extract_features(data, **options)
    assert decoded == []
    assert {path: path.stat() for path in kept.pixels.disk.folder.glob("*.pixels")}.keys() <= files.keys()
    shutil.rmtree(kept.pixels.disk.folder)
    again, _ = extract_features(data, **{**options, "store": options["store"] + "2"})
    assert len(decoded) == 45
    assert np.array_equal(X, again)
    assert not kept.pixels.disk.folder.exists()  # nothing is added


def test_the_callers_backbone_cache_is_not_changed(folder, options):
    frozen = frozen_backbone("transferkit/mini", "pretrained", 32)
    before = state_digest(frozen.backbone)
    extract_features(folder, layer="all", views=1, **options)
    assert state_digest(frozen.backbone) == before


def test_layers_and_views(folder, options):
    table = extract_features(folder, layer="all", pool="max", views=2, **options)
    assert list(table.layers) == ["layer1", "layer2", "layer3", "layer4", "pooled"]
    assert table.X is table.layers["pooled"]
    assert {layer: rows.shape[0] for layer, rows in table.views.items()} == dict.fromkeys(table.layers, 2)
    assert all(rows.shape[1:] == table.layers[layer].shape for layer, rows in table.views.items())
    assert extract_features(folder, layer="stage2", pool="max", **options).facts["computed"] == 0


def test_no_options_go_unnoticed(folder, options):
    with pytest.raises(ConfigError, match=r"bakbone.*Did you mean 'backbone'"):
        extract_features(folder, bakbone="resnet18", **options)
    with pytest.raises(ConfigError, match=r"--views is -1"):
        extract_features(folder, views=-1, **options)
    with pytest.raises(BackboneError, match="unknown backbone"):
        extract_features(folder, backbone="resnet1", **options)


def test_a_folder_that_is_wrong_is_refused_before_any_work(data, options, decoded):
    shutil.copy(data / "train" / "circle" / "000.png", data / "val" / "circle" / "copy.png")
    with pytest.raises(DataError, match="in more than one split"):
        extract_features(data, **options)
    assert decoded == []
    with pytest.warns(TransferkitWarning, match="in more than one split"):
        table = extract_features(data, allow_leaks=True, **options)
    assert table.facts["computed"] == 45  # the copy is the same picture
    assert len(table) == 46


def test_copies_under_other_bytes_are_found_while_features_are_computed(data, options, decoded, monkeypatch):
    whole, options = data / "train", {**options, "split_seed": 3}  # no splits of its own
    for path in sorted(whole.rglob("*.png"))[::2]:
        Image.open(path).save(path.with_suffix(".bmp"))
    monkeypatch.setattr(sketchbook, "read_images", refuse_to_read)
    cold = extract_features(whole, **options)
    assert len(decoded) == len(set(decoded)) == cold.facts["computed"] == 36  # once each
    warm = extract_features(whole, **options)
    assert warm.facts["computed"] == 0 and len(decoded) == 36
    for table in (cold, warm):
        together = {}
        for record in table.records:
            together.setdefault(record.path[:-4], set()).add((record.split, record.unit))
        assert len(together) == 24 and all(len(units) == 1 for units in together.values())
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(data))  # what is known of pictures is lost, their features are there
    other = extract_features(whole, **options)
    assert other.facts["computed"] == 0 and other.records == cold.records


def refuse_to_read(paths, **options):
    assert not paths
    return []


def test_a_copy_in_another_split_is_refused_once_it_is_found(data, options, decoded):  # fault 24
    Image.open(data / "train" / "circle" / "000.png").save(data / "val" / "circle" / "copy.bmp")
    for computed in (46, 0):  # the features that the first time computed are kept
        decoded.clear()
        with pytest.raises(DataError, match=r"in more than one split: .*000\.png.*copy\.bmp"):
            extract_features(data, **options)
        assert len(decoded) == computed
    with pytest.warns(TransferkitWarning, match=r"in more than one split: .*000\.png.*copy\.bmp"):
        assert len(extract_features(data, allow_leaks=True, **options)) == 46


def test_a_manifest(data, options):
    whole = extract_features(data, **options)
    rows = [(os.path.relpath(record.path, data), record.label, record.split) for record in whole.records[::2]]
    with (data / "some.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    table = extract_features(data / "some.csv", **options)
    assert table.facts["computed"] == 0
    assert np.array_equal(table.X, whole.X[::2])


def test_progress_of_both_passes(folder, options):
    hashed, done = [], []
    config = make_config(FeaturesConfig, {"data": str(folder), **options})
    extract_table(config, indexing=lambda *each: hashed.append(each), extracting=lambda *each: done.append(each))
    assert hashed[-1] == done[-1] == (45, 45)


# --- the same pictures, elsewhere


def test_names_places_and_times_cost_nothing(data, tmp_path, options, decoded):  # fault 64
    first = extract_features(data, **options)
    decoded.clear()
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        os.utime(path, (1, 1))
        if number % 3 == 0:
            path.rename(path.with_name(f"z{path.name}"))
    (data / "train" / "circle" / "001.png").rename(data / "test" / "square" / "moved.png")  # nor labels and splits
    moved = data.rename(tmp_path / "elsewhere")
    second = extract_features(moved, **options)
    assert second.facts["computed"] == 0
    assert decoded == []
    assert second.paths != first.paths
    assert len(second.split("test")) == len(first.split("test")) + 1
    ours = {record.sha256: row.tobytes() for record, row in zip(second.records, second.X, strict=True)}
    assert ours == {record.sha256: row.tobytes() for record, row in zip(first.records, first.X, strict=True)}


def test_new_and_changed_pictures_alone_are_computed(data, tmp_path, options, decoded):
    first = extract_features(data, **options)
    fresh = sorted(draw_folder(tmp_path / "fresh", per_class=2, seed=9).rglob("*.png"))
    for number, path in enumerate(fresh[:5]):
        shutil.copy(path, data / "train" / "circle" / f"new{number}.png")
    decoded.clear()
    more = extract_features(data, **options)
    assert more.facts["computed"] == len(decoded) == 5
    changed = data / "train" / "circle" / "000.png"
    shutil.copy(fresh[5], changed)
    decoded.clear()
    other = extract_features(data, **options)
    assert (other.facts["computed"], decoded) == (1, [str(changed)])
    at = other.paths.index(str(changed))
    assert not np.allclose(other.X[at], first.X[first.paths.index(str(changed))])
    backbone = create_backbone("transferkit/mini", image_size=32).eval()
    assert error(other.X, plain_rows(backbone, other.paths)) <= CLOSE


# --- the same process, other weights


def test_a_weights_file_that_is_written_again_is_another_one(folder, tmp_path, options):  # fault 64
    """In a notebook: train, extract, train on, extract."""
    weights = tmp_path / "weights.safetensors"
    backbone = create_backbone("transferkit/mini", image_size=32)
    tables = []
    for _ in range(2):
        save_file({name: value.contiguous() for name, value in backbone.model.state_dict().items()}, weights)
        tables.append(extract_features(folder, weights=str(weights), **options))
        with torch.no_grad():
            backbone.model.layer4[0].conv1.weight.mul_(0.5)
    assert [table.facts["computed"] for table in tables] == [45, 45]
    assert not np.allclose(tables[0].X, tables[1].X)


def test_random_weights_follow_the_seed(folder, options):
    """`seed` is documented as that of initialisation too: the next process must find the features again."""
    tables = []
    for _ in range(2):
        build_once.cache_clear()  # as in another process
        torch.rand(1)
        tables.append(extract_features(folder, weights="random", seed=3, **options))
    assert tables[1].facts["computed"] == 0
    build_once.cache_clear()
    assert extract_features(folder, weights="random", seed=4, **options).facts["computed"] == 45


# --- the verb


@pytest.mark.parametrize("ending", ["npz", "csv", "parquet"])
def test_quiet_prints_nothing(folder, tmp_path, command, ending):
    words = ["--image-size", 32, "--store", tmp_path / "s", "--out", tmp_path / f"x.{ending}", "--quiet"]
    assert command("features", "--data", folder, *words) == (0, "", "")
    assert (tmp_path / f"x.{ending}").exists()


def test_flags_are_the_keyword_arguments(folder, tmp_path, command, options):
    out = tmp_path / "x.npz"
    words = ["--image-size", 32, "--store", options["store"], "--layer", "stage2", "--pool", "max", "--views", 2]
    status, printed, _ = command(
        "features", "--data", folder, *words, "--augment", "standard", "--precision", 32, "--out", out
    )
    assert status == 0
    assert "computed  45, the others were in the store" in printed
    table = extract_features(folder, layer="layer2", pool="max", views=2, augment="standard", **options)
    assert table.facts["computed"] == 0
    with np.load(out, allow_pickle=False) as content:
        assert np.array_equal(content["X"], table.X)
        assert np.array_equal(content["views_layer2"], table.views["layer2"])


def test_an_export_that_cannot_be_is_refused_before_any_work(folder, tmp_path, command, decoded):
    for out in (tmp_path / "x.xls", tmp_path / "missing" / "x.npz"):
        status, _, err = command("features", "--data", folder, "--store", tmp_path / "s", "--out", out)
        assert status == 2
        assert err.count("\n") == 1
    assert decoded == []


@pytest.fixture
def interruptible():
    """A process that a shell started in the background ignores SIGINT from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=["without bf16", pytest.param("with bf16", marks=pytest.mark.precision)])
def processors(request):
    """A processor without bf16, and one on which features are computed in it unasked."""
    if request.param == "with bf16":
        request.getfixturevalue("fast_bf16")


@pytest.mark.usefixtures("interruptible", "processors")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_signal(folder, tmp_path, command, monkeypatch, number, status):
    """It comes while a picture is decoded; the chunk that was done is kept, and so are the batches before it."""
    monkeypatch.setattr(compute, "CPU_CHUNK", 10)
    count = itertools.count(1)  # decoders are threads

    def hit(*args, **more):
        if next(count) == 17:
            os.kill(os.getpid(), number)
        return decode_with_info(*args, **more)

    monkeypatch.setattr(dataset, "decode_with_info", hit)
    before = signal.getsignal(signal.SIGTERM)
    words = ["--image-size", 32, "--store", tmp_path / "s", "--batch-size", 2, "--quiet"]
    code, out, err = command("features", "--data", folder, *words)
    assert (code, out) == (status, "")
    assert err == (
        f"transferkit: error[interrupted]: stopped by {number.name}; the features computed so far are in the store - "
        "run again to go on\n"
    )
    assert signal.getsignal(signal.SIGTERM) is before
    (stored,) = FeatureStore(tmp_path / "s").sets()
    assert 14 <= sum(shard.rows for shard in stored.manifest().shards) <= 16
    status, out, _ = command("features", "--data", folder, *words[:-1])
    assert status == 0
    assert "computed  31" in out or "computed  29" in out


@pytest.mark.usefixtures("processors")
def test_features_that_are_no_numbers_end_with_seven(folder, tmp_path, command, monkeypatch):  # fault 71
    from transferkit.features.engine.network import FeatureNetwork

    forward = FeatureNetwork.forward

    def broken(network, images):
        rows = forward(network, images)
        if len(images) > 1:
            rows[0][0, 0] = torch.nan
        return rows

    monkeypatch.setattr(FeatureNetwork, "forward", broken)
    build_once.cache_clear()
    words = ["--image-size", 32, "--store", tmp_path / "s", "--compile", "off"]
    status, _, err = command("features", "--data", folder, *words)
    assert status == 7
    assert err.startswith("transferkit: error[store]: features of '")
    assert "000.png'" in err
    assert all(not each.manifest().shards for each in FeatureStore(tmp_path / "s").sets())


@pytest.mark.precision
def test_the_precision_is_chosen_once_for_every_verb_and_said(folder, tmp_path, command, fast_bf16, monkeypatch):
    """The choice holds for the next process too, whatever the stopwatch would say there."""
    store = tmp_path / "s"
    words = ["--image-size", 32, "--store", store, "--compile", "off"]
    status, out, _ = command("features", "--data", folder, *words)
    assert status == 0
    (line,) = (line for line in out.splitlines() if line.startswith("precision"))
    assert re.fullmatch(r"precision bf16: a forward pass of 32 in bf16 is 4.00 times as fast .* cosine .*", line)
    monkeypatch.setattr(timings, "_SESSION", {})
    monkeypatch.setattr(precision, "compare", lambda full, half: 0.5)
    table = extract_features(folder, image_size=32, store=store, compile="off", workers=0)
    assert (table.facts["precision"], table.facts["computed"]) == ("bf16", 0)
    assert line == f"precision bf16: {table.facts['precision_reason']}"
    assert command("probe", "--data", folder, *words, "--out", tmp_path / "run")[0] == 0
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["features"]
    assert (facts["precision"], facts["computed"]) == ("bf16", 0)
    assert facts["precision_reason"] == table.facts["precision_reason"]
