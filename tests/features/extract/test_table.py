"""Features as arrays: taking the table apart, splits, and exports that read back exactly."""

import csv
import os

import numpy as np
import pyarrow.parquet
import pytest

from transferkit.core.errors import ConfigError, StorageError
from transferkit.core.records import ImageRecord
from transferkit.data.index.index import ImageIndex
from transferkit.data.index.targets import ClassTargets
from transferkit.features.extract import table as module
from transferkit.features.extract.table import FeatureTable, check_export

LABELS = ["b", "a", "=cmd|' /C calc'!A0", "a", "b"]
SPLITS = ["train", "val", "train", "test", "train"]
NAMES = ["one.png", "-2+3.png", "\tthree.png", 'four,"4".png', "five\nfünf.png"]
VALUES = [0.1, 1 / 3, np.pi * 1e30, -1.17549435e-38, 1.4e-45, 16777217.0, 0.0, -0.0, np.finfo(np.float32).max, 1e-7]


def make(count=5, *, layers=("pooled",), views=0, names=NAMES, labels=LABELS):
    generator = np.random.default_rng(0)
    classes = tuple(sorted(set(labels)))
    records = tuple(
        ImageRecord(names[at], labels[at], SPLITS[at], f"{at:064x}", None) for at in range(count)
    )  # fmt: skip
    rows = {layer: generator.normal(size=(count, 10 - at)).astype(np.float32) for at, layer in enumerate(layers)}
    if count:
        rows[layers[-1]][0, : rows[layers[-1]].shape[1]] = np.array(VALUES, dtype=np.float32)[: 11 - len(layers)]
    shown = {layer: generator.normal(size=(views, *each.shape)).astype(np.float32) for layer, each in rows.items()}
    return FeatureTable(
        layers=rows,
        y=np.array([classes.index(label) for label in labels[:count]], dtype=np.int64),
        index=ImageIndex("root", ClassTargets(classes), records),
        records=records,
        views=shown if views else {},
    )


def test_it_comes_apart():
    table = make(layers=("layer1", "pooled"))
    X, y = table
    assert X is table.layers["pooled"]
    assert y is table.y
    assert len(table) == 5
    assert table.paths == NAMES
    assert [table.class_names[label] for label in y] == LABELS


def test_splits():
    table = make(layers=("layer1", "pooled"), views=2)
    parts = {name: table.split(name) for name in ("train", "val", "test")}
    for name, part in parts.items():
        chosen = [at for at, split in enumerate(SPLITS) if split == name]
        assert [record.path for record in part.records] == [NAMES[at] for at in chosen]
        assert np.array_equal(part.X, table.X[chosen])
        assert np.array_equal(part.y, table.y[chosen])
        assert np.array_equal(part.layers["layer1"], table.layers["layer1"][chosen])
        assert np.array_equal(part.views["pooled"], table.views["pooled"][:, chosen])
        assert part.class_names == table.class_names
    assert sum(map(len, parts.values())) == len(table)


def same_bits(ours, exact):
    assert ours.dtype == exact.dtype == np.float32
    assert ours.tobytes() == np.ascontiguousarray(exact).tobytes()


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("layers", [("pooled",), ("layer1", "blocks.2", "pooled")])
def test_npz_reads_back_without_pickle(tmp_path, layers, views):
    table = make(layers=layers, views=views)
    table.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        content = {name: archive[name] for name in archive.files}
    same_bits(content.pop("X"), table.X)
    assert content.pop("y").tolist() == table.y.tolist()
    assert tuple(content.pop("class_names")) == table.class_names
    for name, values in (("path", NAMES), ("label", LABELS), ("split", SPLITS)):
        assert content.pop(name).tolist() == values
    assert content.pop("sha256").tolist() == [record.sha256 for record in table.records]
    for layer in layers:
        if len(layers) > 1:
            same_bits(content.pop(f"X_{layer}"), table.layers[layer])
        if views:
            same_bits(content.pop(f"views_{layer}"), table.views[layer])
    assert content == {}


@pytest.mark.parametrize("part", [False, True])  # whose rows are no block of memory of their own
@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("layers", [("pooled",), ("layer1", "pooled")])
def test_parquet_reads_back(tmp_path, layers, views, part):
    table = make(layers=layers, views=views)
    if part:
        table = table.split("train")
    table.save(tmp_path / "x.parquet")
    content = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    expected = ["path", "label", "split", "sha256"]
    expected += ["features"] if len(layers) == 1 else [f"features_{layer}" for layer in layers]
    expected += [f"view{number}_{layer}" for layer in layers for number in range(1, views + 1)]
    assert content.column_names == expected
    assert content["path"].to_pylist() == table.paths
    assert content["label"].to_pylist() == [record.label for record in table.records]

    def rows(name):
        return np.array(content[name].to_pylist(), dtype=np.float32)

    same_bits(rows("features" if len(layers) == 1 else "features_pooled"), table.X)
    for number in range(views):
        same_bits(rows(f"view{number + 1}_{layers[0]}"), table.views[layers[0]][number])


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def test_csv_reads_back_exactly(tmp_path):
    table = make(layers=("layer1", "pooled"), views=1)
    table.save(tmp_path / "x.csv")
    header, *lines = read_csv(tmp_path / "x.csv")
    assert header == ["path", "label", "split", "sha256", *(f"f{number}" for number in range(table.X.shape[1]))]
    same_bits(np.array([[np.float32(value) for value in line[4:]] for line in lines]), table.X)
    assert [line[2] for line in lines] == SPLITS


def test_csv_holds_no_formulas(tmp_path):  # fault 28
    make().save(tmp_path / "x.csv")
    _, *lines = read_csv(tmp_path / "x.csv")
    assert [line[0] for line in lines] == ["one.png", "'-2+3.png", "'\tthree.png", 'four,"4".png', "five\nfünf.png"]
    assert [line[1] for line in lines] == ["b", "a", "'=cmd|' /C calc'!A0", "a", "b"]


@pytest.mark.parametrize("ending", [".npz", ".parquet", ".csv"])
def test_bytes_that_are_no_text(tmp_path, ending):  # fault 28
    """File names are bytes; Python stands surrogates in for those that are no UTF-8. Classes are folder names."""
    name, label = os.fsdecode(b"caf\xe9/\xff.png"), os.fsdecode(b"caf\xe9")
    make(1, names=[name], labels=[label]).save(tmp_path / f"x{ending}")
    if ending == ".npz":
        with np.load(tmp_path / "x.npz", allow_pickle=False) as content:
            texts = content["path"].tolist() + content["label"].tolist()
    elif ending == ".csv":
        texts = read_csv(tmp_path / "x.csv")[1][:2]
    else:
        content = pyarrow.parquet.read_table(tmp_path / "x.parquet")
        texts = content["path"].to_pylist() + content["label"].to_pylist()
    assert texts == ["caf\\xe9/\\xff.png", "caf\\xe9"] or texts == ["caf\\xe9/\\xff.png", label]


@pytest.mark.parametrize("ending", [".npz", ".parquet", ".csv"])
def test_an_empty_table(tmp_path, ending):
    empty = make().split("none of it")
    assert (len(empty), empty.X.shape) == (0, (0, 10))
    empty.save(tmp_path / f"x{ending}")
    assert (tmp_path / f"x{ending}").stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.npy", r"unknown ending '\.npy'\. Did you mean '\.npz'\? Known: \.npz, \.parquet, \.csv"),
        ("x", "unknown ending ''"),
        ("x.CSV", r"unknown ending '\.CSV'"),
        ("missing/x.npz", "the folder .*missing does not exist - make it, or name another"),
        ("folder.npz", "is a folder, expected a file to write"),
    ],
)
def test_where_a_table_cannot_go(tmp_path, name, message):
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ConfigError, match=message):
        check_export(tmp_path / name)
    with pytest.raises(ConfigError, match=message):
        make().save(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder.npz"]


def test_parquet_without_its_library(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="Parquet needs pyarrow - pip install pyarrow, or use .npz"):
        check_export(tmp_path / "x.parquet")
    check_export(tmp_path / "x.npz")


@pytest.mark.parametrize("ending", [".npz", ".parquet", ".csv"])
def test_an_export_is_whole_or_not_there(tmp_path, monkeypatch, ending):
    target = tmp_path / f"x{ending}"
    target.write_bytes(b"the one before")

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left"):
        make().save(target)
    assert target.read_bytes() == b"the one before"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
