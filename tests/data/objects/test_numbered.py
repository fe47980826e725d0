"""Numbered masks as objects: outlines, boxes, problems, and what a model remembers of them."""

import numpy as np
import pytest
from PIL import Image

from transferkit.core.errors import ConfigError, DataError
from transferkit.data.index.boxes import BoxReader
from transferkit.data.index.index import index_images
from transferkit.data.index.targets import inferred_task
from transferkit.data.objects.labels import objects_of
from transferkit.data.objects.outlines import drawn
from transferkit.options.data import DataOptions
from transferkit.tasks.segmentation import TASK as MASKS


def write(root, name, numbers, *, mode=None, picture=None):
    """Write a picture and its mask of numbers."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    size = numbers.shape[:2] if picture is None else picture
    noise = np.random.default_rng(ord(name[0])).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "images" / f"{name}.png")
    Image.fromarray(numbers if mode is None else numbers.astype(mode)).save(root / "masks" / f"{name}.png")


def options(root, **more):
    return DataOptions(data=str(root), mask_values="instances", val_split=0.0, test_split=0.0, **more)


def index(root, **more):
    return index_images(options(root, **more), reader=BoxReader())


def some_numbers(seed=0, height=23, width=31):
    """Numbers with gaps between them, one of an object in two pieces."""
    numbers = np.zeros((height, width), dtype=np.uint8)
    numbers[2:9, 3:7] = 7
    numbers[0:4, 20:31] = 200
    numbers[15:23, 10:20] = 3
    numbers[16:18, 12:14] = 0  # a hole
    numbers[20, 28:30], numbers[12, 29] = 9, 9
    return numbers


def test_each_number_is_an_object_with_its_pixels(tmp_path):
    numbers = some_numbers()
    for name in ("a", "b", "c"):
        write(tmp_path, name, numbers)
    (record, *_) = index(tmp_path).records
    objects = objects_of(record.label)
    assert objects.size == numbers.shape
    assert [item.name for item in objects.items] == ["object"] * 4
    for item, number in zip(objects.items, (3, 7, 9, 200), strict=True):
        pixels = numbers == number
        rows, columns = np.nonzero(pixels)
        assert item.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.array_equal(drawn(item.outline, objects.size), pixels)
    annotation = BoxReader().of(index(tmp_path).targets.spec).annotate([record.label], [record.path]).read(0)
    assert np.array_equal(annotation.instances > 0, numbers > 0)
    assert len(np.unique(annotation.instances)) == 5


def test_many_objects_in_deep_masks(tmp_path):
    numbers = np.arange(900).reshape(30, 30).repeat(2, axis=0).repeat(2, axis=1)
    write(tmp_path, "a", numbers, mode=np.uint16)
    write(tmp_path, "b", numbers, mode=np.uint16)
    (record, _) = index(tmp_path).records
    assert len(objects_of(record.label).items) == 899


def test_colours_are_numbers_too_and_no_object_is_no_problem(tmp_path):
    colours = np.zeros((20, 20, 3), dtype=np.uint8)
    colours[2:6, 2:6], colours[10:15, 3:9] = (255, 0, 0), (1, 2, 3)
    write(tmp_path, "a", colours)
    write(tmp_path, "b", np.zeros((20, 20), dtype=np.uint8))
    first, second = index(tmp_path).records
    assert len(objects_of(first.label).items) == 2
    assert objects_of(second.label).items == ()


def test_all_that_is_wrong_is_said_at_once(tmp_path):  # fault 195
    write(tmp_path, "a", some_numbers())
    write(tmp_path, "b", some_numbers(), picture=(10, 10))
    write(tmp_path, "c", some_numbers())
    (tmp_path / "masks" / "c.png").write_bytes(b"no picture")
    write(tmp_path, "d", some_numbers())
    (tmp_path / "masks" / "d.png").unlink()
    with pytest.raises(DataError) as caught:
        index(tmp_path)
    for words in ("c.png", "31 x 23 in", "1 pictures without a mask"):
        assert words in str(caught.value)
    kept = index(tmp_path, skip_bad=True)
    assert [record.path.endswith("a.png") for record in kept.records] == [True]


def test_the_task_is_told_by_the_option(tmp_path):
    write(tmp_path, "a", some_numbers())
    assert inferred_task(options(tmp_path))[0] == "detection"
    with pytest.raises(ConfigError, match="--mask-values instances says what stands in masks"):
        MASKS.targets.columns_of(options(tmp_path))
    with pytest.raises(DataError, match="pass --mask-values instances to finetune"):
        index_images(DataOptions(data=str(tmp_path), task="detection"), reader=BoxReader())


def test_a_model_remembers_how_its_objects_stood(tmp_path):
    for name in ("a", "b"):
        write(tmp_path, name, some_numbers())
    spec = index(tmp_path).targets.spec
    assert spec.facts["outlines"] is True
    assert BoxReader().of(spec).columns.numbered
    assert not BoxReader().of(spec.with_facts({"mask_values": None})).columns.numbered
