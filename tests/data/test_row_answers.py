"""Several answers per picture: read from one manifest, missing ones as NaN, faults in one message."""

import math
import shutil

import numpy as np
import pytest

import transferkit as tk
from transferkit.core.errors import ConfigError, DataError
from transferkit.data.answers import RowReader

READER = RowReader(classes=("kind", "place"), numbers=("weight",))


@pytest.fixture
def manifest(folder, tmp_path):
    shutil.copytree(folder / "train", tmp_path / "pictures")
    names = [path.relative_to(tmp_path).as_posix() for path in sorted((tmp_path / "pictures").rglob("*.png"))]

    def write(*rows, columns="kind,place,weight"):
        path = tmp_path / "m.csv"
        lines = [f"{name},{row}" for name, row in zip(names, rows, strict=False)]
        path.write_text("\n".join([f"path,{columns},split", *lines]) + "\n", encoding="utf-8")
        return path

    return write


ROWS = ("cat,in,1,train", "dog,out,,train", ",in,4,train", "cat,,7,train", "dog,,,val", "cat,out,2,val")


def test_targets_units_and_splits(manifest):
    data = tk.ImageData(manifest(*ROWS), 32, reader=READER, batch_size=4, augment="none")
    known = data.index.targets
    assert known.classes == {"kind": ("cat", "dog"), "place": ("in", "out")}
    expected = [[0, 0, 1], [1, 1, math.nan], [math.nan, 0, 4], [0, math.nan, 7]]
    np.testing.assert_array_equal(data.targets("train").numpy(), np.array(expected, dtype=np.float32))
    assert known.units == {"weight": (pytest.approx(4.0), pytest.approx(np.std([1, 4, 7])))}
    assert data.index.counts() == {"train": {"cat": 2, "dog": 1, "": 1}, "val": {"cat": 1, "dog": 1, "": 0}}
    assert data.index.notes == ("answers that are missing, of 6 pictures: kind (1), place (2), weight (2)",)
    images, targets = next(iter(data.val_dataloader()))
    assert images.shape == (2, 32, 32, 3) and targets.isnan().sum(dim=0).tolist() == [0, 1, 1]
    again = READER.of(known.spec)
    assert again == known and again.find('["cat", "", "2"]')[0] == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("cat,in,heavy,train", r"rows whose answer cannot be read: line 2: 'heavy' in 'weight', expected a number"),
        ("cat,in,inf,train", r"'inf' in 'weight', expected a number"),
        (",,,train", r"line 2: nothing in 'kind', 'place', 'weight', expected one answer at least"),
        ("cow,in,1,val", r"classes of 'kind' without training pictures: 'cow'"),
    ],
)
def test_rows_that_cannot_be_used(manifest, row, message):  # fault 227
    with pytest.raises(DataError, match=message):
        tk.ImageData(manifest(row, *ROWS), 32, reader=READER).index  # noqa: B018


def test_data_that_cannot_be_learnt(manifest, folder):
    one = manifest("cat,in,1,train", "cat,out,2,train", "cat,in,,val")
    with pytest.raises(DataError, match="column 'kind' has 1 different answers in train, expected 2"):
        tk.ImageData(one, 32, reader=READER).index  # noqa: B018
    with pytest.raises(DataError, match="answers that are no rows.*with the columns path, kind, place, weight"):
        tk.ImageData(folder, 32, reader=READER).index  # noqa: B018
    with pytest.raises(DataError, match="no column 'weight'"):
        tk.ImageData(manifest("cat,in,train", columns="kind,place"), 32, reader=READER).index  # noqa: B018


def test_splits_are_balanced_by_the_first_class(manifest):
    rows = [f"{'cat' if number % 2 else 'dog'},in,{number}," for number in range(24)]
    rows[0] = "dog,out,0,"
    counts = tk.ImageData(manifest(*rows), 32, reader=READER, val_split=0.3, test_split=0.0).index.counts()
    assert set(counts) == {"train", "val"} and all(counts["val"][name] for name in ("cat", "dog"))
    alone = tk.ImageData(manifest(*rows), 32, reader=RowReader(numbers=("weight",)), val_split=0.3, test_split=0.0)
    assert sum(alone.index.counts()["train"].values()) + sum(alone.index.counts()["val"].values()) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected tuples that name columns"),
        ({"classes": "kind"}, "expected tuples that name columns"),
        ({"classes": ("kind",), "numbers": ("kind",)}, "named twice"),
    ],
)
def test_readers_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        RowReader(**options)


def test_rows_are_not_blended(manifest):
    data = tk.ImageData(manifest(*ROWS), 32, reader=READER, mixup=0.2)
    with pytest.raises(ConfigError, match="of rows some are classes or missing"):
        data.prepare(next(iter(data.train_dataloader())), train=True)
