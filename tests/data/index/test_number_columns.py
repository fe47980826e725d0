"""Numbers per picture: which columns are read, what is no number, which task a table shows."""

import csv

import numpy as np
import pytest
from PIL import Image

from transferkit.core.errors import DataError
from transferkit.data.index.index import index_images
from transferkit.data.index.numbers import NumberReader
from transferkit.data.index.targets import inferred_task
from transferkit.data.scan.columns import number
from transferkit.data.scan.records import Kind
from transferkit.options.data import DataOptions


def table(root, header, rows):
    """A manifest beside pictures of noise, one per row."""
    generator = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    with (root / "list.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", *header])
        for at, row in enumerate(rows):
            Image.fromarray(generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(root / f"{at}.png")
            writer.writerow([f"{at}.png", *row])
    return str(root / "list.csv")


def index(data, **options):
    return index_images(DataOptions(data=data, **options), reader=NumberReader())


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3.0), (" -1.5e3 ", -1500.0), ("1_000", None), ("1,5", None), ("nan", None), ("inf", None),
     ("-Infinity", None), ("", None), ("12 kg", None), ("0x10", None), ("٣", 3.0), ("1e999", None)],
)  # fmt: skip
def test_what_is_a_number(text, value):
    assert number(text) == value


@pytest.mark.parametrize("cell", ["many", "nan", "inf", "1_000", "1,5"])
def test_a_cell_that_is_no_number_is_refused_with_its_row(tmp_path, cell):  # fault 131
    rows = [[str(at), "5"] for at in range(8)]
    rows[2][0] = cell
    rows[5][1] = cell
    with pytest.raises(DataError, match="answer cannot be read") as caught:
        index(table(tmp_path, ["red", "white"], rows), targets="red,white")
    message = str(caught.value)
    assert f"line 4: {cell!r} in 'red', expected a number" in message
    assert f"line 7: {cell!r} in 'white', expected a number" in message
    assert "correct or remove them" in message


def test_an_empty_cell_is_refused_with_its_row(tmp_path):  # fault 131
    rows = [[str(at)] for at in range(8)]
    rows[3][0] = ""
    with pytest.raises(DataError, match=r"rows without a path or a red: line 5"):
        index(table(tmp_path, ["red"], rows), targets="red")


def test_a_target_that_is_always_the_same_is_refused(tmp_path):  # fault 132
    data = table(tmp_path, ["red", "split", "age"], [[3, "train" if at < 6 else "val", at] for at in range(8)])
    with pytest.raises(DataError, match=r"the same for all training pictures: red \(3\) - leave them out"):
        index(data, targets="red,age")
    assert index(data, targets="age").targets.spec.names == ("age",)


@pytest.mark.parametrize(("names", "words"), [
    (["error", "age"], "'error' - rename them"),
    (["age", "unlike_training"], "'unlike_training' - rename them"),
    (["red", "red_low", "red_high"], "'red_low', 'red_high' - rename them"),
])  # fmt: skip
def test_targets_called_as_columns_of_predictions_are_refused(tmp_path, names, words):  # fault 161
    rows = [[number + at for at in range(len(names))] for number in range(8)]
    data = table(tmp_path, names, rows)
    with pytest.raises(DataError, match=f"targets called as other columns of predictions: {words}"):
        index(data, targets=",".join(names))
    assert index(data, targets=names[0] if names[0] != "error" else "age")


def test_units_are_those_of_the_training_pictures(tmp_path):
    rows = [[at, "train" if at < 6 else "val", 10 * at] for at in range(8)]
    indexed = index(table(tmp_path, ["age", "split", "height"], rows), targets="age,height")
    facts = indexed.targets.spec.facts
    np.testing.assert_allclose(facts["mean"], [2.5, 25.0])
    np.testing.assert_allclose(facts["scale"], [np.std(range(6)), 10 * np.std(range(6))])
    assert facts["grades"] == [True, True]
    encoded = indexed.targets.encode([record.label for record in indexed.records])
    np.testing.assert_array_equal(encoded, [[at, 10 * at] for at in range(8)])


def test_outliers_are_told(tmp_path):  # fault 133
    rows = [[at % 5 + 0.5] for at in range(30)]
    rows[7] = [1e4]
    findings = index(table(tmp_path, ["target"], rows)).findings
    (note,) = [
        finding for finding in findings if finding.kind == Kind.NOTE and "far from the others" in finding.message
    ]
    assert "7.png (10000)" in note.message


def test_the_names_of_class_folders_may_be_numbers(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("0.5", "2", "3.5"):
        (tmp_path / name).mkdir()
        for at in range(4):
            Image.fromarray(generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(tmp_path / name / f"{at}.png")
    indexed = index(str(tmp_path), val_split=0.0, test_split=0.0)
    assert sorted({float(record.label) for record in indexed.records}) == [0.5, 2.0, 3.5]
    assert indexed.targets.spec.facts["mean"] == [2.0]
    (tmp_path / "2").rename(tmp_path / "many")
    with pytest.raises(DataError, match="answers that are no numbers: 'many' - correct them, or train classes"):
        index(str(tmp_path))


@pytest.mark.parametrize(
    ("header", "cells", "options", "task"),
    [
        (["label"], lambda at: [at % 10], {}, "classification"),  # digits are classes
        (["target"], lambda at: [at / 7], {}, "regression"),
        (["red"], lambda at: [at], {"targets": "red"}, "regression"),
        (["a", "b"], lambda at: [at % 2, 1], {"targets": "a,b"}, "multilabel"),
        (["labels"], lambda at: ["x|y"], {}, "multilabel"),
        (["label", "target"], lambda at: ["x", at], {}, "classification"),
    ],
)  # fmt: skip
def test_the_task_that_a_table_shows(tmp_path, header, cells, options, task):
    data = table(tmp_path, header, [cells(at) for at in range(20)])
    assert inferred_task(DataOptions(data=data, **options))[0] == task


def test_digits_stay_classes_and_it_is_said_how_to_have_them_otherwise(tmp_path):  # fault 114
    data = table(tmp_path, ["label"], [[at % 40] for at in range(160)])
    notes = index_images(DataOptions(data=data, val_split=0.0, test_split=0.0)).notes
    assert any("--task regression" in note and "--label-column label" in note for note in notes)
    indexed = index(data, label_column="label", val_split=0.0, test_split=0.0)
    assert indexed.targets.spec.names == ("label",)
    assert indexed.targets.spec.facts["mean"] == [19.5]
