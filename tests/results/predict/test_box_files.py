"""Boxes on the command line: a row each, COCO results, numbered instances in a folder, views of mirror images."""

import csv
import json

import numpy as np
import parallel_worker as worker
import pytest
from box_runs import BOX_CLASSES, make_box_run, predict_boxes_in_rounds
from live_server import make_run
from mask_runs import picture
from PIL import Image

from transferkit.core.errors import ConfigError, DataError, ExportError
from transferkit.options.results import PredictConfig
from transferkit.results.boxes.instances import numbered_masks
from transferkit.results.predict.predict import predict_files
from transferkit.results.predict.predictor import load


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_box_run(tmp_path_factory.mktemp("boxes") / "run")


@pytest.fixture(scope="module")
def outlined(tmp_path_factory):
    return make_box_run(tmp_path_factory.mktemp("boxes") / "outlined", outlines=True)


@pytest.fixture
def pictures(tmp_path):
    """Three photos: one that lies on its side, one in which nothing is found."""
    turned = Image.Exif()
    turned[0x0112] = 6
    folder = tmp_path / "pictures"
    picture(folder / "7.png", (150, 41))
    picture(folder / "b" / "8.jpg", (31, 97), seed=1, exif=turned)  # upright: 97 wide
    Image.new("RGB", (20, 20), (0, 0, 255)).save(folder / "nothing.png")
    return folder


def predict(run, *paths, **options):
    words = {name: str(value) if name in ("out", "masks", "coco_ids") else value for name, value in options.items()}
    predict_files(PredictConfig(**{
        "run": str(run), "paths": list(map(str, paths)), "workers": 0, "accelerator": "cpu", "quiet": True, **words,
    }))  # fmt: skip


def rows(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_row_for_each_box(run, pictures, tmp_path):
    predict(run, pictures, out=tmp_path / "out.csv")
    table, predictor = rows(tmp_path / "out.csv"), load(run)
    assert list(table[0]) == ["path", "left", "top", "right", "bottom", "label", "score", "error"]
    paths = list(dict.fromkeys(row["path"] for row in table))
    for path, record in zip(paths, predictor.predict(paths, workers=0), strict=True):
        mine = [row for row in table if row["path"] == path]
        assert len(mine) == max(1, len(record.boxes))
        for row, one in zip(mine, record.boxes, strict=False):
            assert row["label"] == one.label and float(row["score"]) == pytest.approx(one.score, abs=1e-6)
            assert [float(row[side]) for side in ("left", "top", "right", "bottom")] == pytest.approx(
                one.box, abs=0.006
            )
        with Image.open(path) as image:
            size = image.size[:: -1 if image.getexif().get(0x0112) == 6 else 1]
        assert all(one.box[2] <= size[0] and one.box[3] <= size[1] for one in record.boxes)
    assert table[-1]["path"].endswith("nothing.png") and table[-1]["label"] == ""
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["pictures"]


def test_an_unreadable_picture_is_a_row(run, pictures, tmp_path):  # fault 185
    (pictures / "torn.png").write_bytes(b"torn")
    with pytest.raises(ExportError, match="1 of 4 pictures could not be read"):
        predict(run, pictures, out=tmp_path / "out.csv")
    assert rows(tmp_path / "out.csv")[-1]["error"] and rows(tmp_path / "out.csv")[-1]["left"] == ""
    with pytest.raises(ExportError, match="1 of 4 pictures could not be read"):
        predict(run, pictures, out=tmp_path / "out.json")
    names = {entry["file_name"] for entry in json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))}
    assert len(names) == 2 and not any("torn" in name for name in names)


def test_lines_of_json_and_standard_output(run, pictures, tmp_path, capsys):
    predict(run, pictures, out=tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 3 and lines[2]["boxes"] == [] and "unsure" not in lines[0] and "mask" not in lines[0]
    predict(run, pictures, format="coco")
    entries = json.loads(capsys.readouterr().out)
    assert {entry["image_id"] for entry in entries} == {7, 8}
    assert len(entries) > sum(len(line["boxes"]) for line in lines)  # those that are not told, too
    predict(run, pictures, out=tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == entries


def test_coco_results_with_the_numbers_of_a_file(run, pictures, tmp_path):
    images = [{"id": 70 + at, "file_name": name} for at, name in enumerate(("7.png", "b/8.jpg", "nothing.png"))]
    categories = [{"id": 5 * at, "name": name} for at, name in enumerate(BOX_CLASSES)]
    ids = tmp_path / "own.json"
    ids.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}), encoding="utf-8")
    predict(run, pictures, out=tmp_path / "out.json", coco_ids=ids)
    entries = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert {entry["image_id"] for entry in entries} == {70, 71}
    assert {entry["category_id"]: entry["category"] for entry in entries} == {
        5 * at: one for at, one in enumerate(BOX_CLASSES)
    }
    ids.write_text(json.dumps({"images": images[1:], "annotations": [], "categories": categories}), encoding="utf-8")
    with pytest.raises(DataError, match=r"has no image for '.*7.png'"):
        predict(run, pictures, out=tmp_path / "other.json", coco_ids=ids)
    assert not (tmp_path / "other.json").exists()


def test_instances_lie_in_a_folder(outlined, pictures, tmp_path):
    predict(outlined, pictures, out=tmp_path / "out.csv")
    table, predictor = rows(tmp_path / "out.csv"), load(outlined)
    assert list(table[0])[-3:] == ["mask", "instance", "error"]
    folder = tmp_path / "out-masks"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    assert names == ["7.png", "b/8.png", "nothing.png"]
    paths = list(dict.fromkeys(row["path"] for row in table))
    for path, record in zip(paths, predictor.predict(paths, workers=0), strict=True):
        mine = [row for row in table if row["path"] == path]
        with Image.open(mine[0]["mask"]) as image:
            numbers = np.asarray(image)
        assert np.array_equal(numbers, numbered_masks([one.mask for one in record.boxes], record.size))
        told = [str(at + 1) for at in range(len(record.boxes))] or [""]
        assert [row["instance"] for row in mine] == told
    predict(outlined, pictures, out=tmp_path / "out.csv", overwrite=True)  # a folder of its own may be replaced
    predict(outlined, pictures, out=tmp_path / "out.json")
    assert not (tmp_path / "out.json-masks").exists()
    first = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))[0]
    assert first["segmentation"]["size"] == [41, 150] and isinstance(first["segmentation"]["counts"], str)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"masks": "m"}, "--masks is a folder for masks, and this model of detection gives none"),
        ({"top_k": 2, "coverage": 0.9}, "--top-k is of one class .* this model gives boxes.*; --coverage is of"),
        ({"abstain": 0.9}, "--abstain is of one class per picture, and this model gives boxes"),
        ({"unknown": 0.9}, "for a label, and detection gives none - leave it out"),
        ({"check_classes": True}, "--check-classes compares folders with classes, and a model of detection"),
        ({"tta": "5crop"}, "expected one of none, flip"),
        ({"coco_ids": "x.json"}, "--coco-ids is for COCO results"),
    ],
)
def test_what_means_nothing_for_boxes_is_refused(run, pictures, tmp_path, options, told):  # fault 154
    with pytest.raises(ConfigError, match=told):
        predict(run, pictures, out=tmp_path / "o.csv", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize(
    ("options", "told"), [({"format": "coco"}, "--format coco is for"), ({}, r"--out \S+x.json: .json is")]
)
def test_coco_results_are_refused_where_nothing_is_found(pictures, tmp_path, options, told):
    with pytest.raises(ConfigError, match=told):
        predict(make_run(tmp_path / "classes"), pictures, out=tmp_path / "x.json", **options)
    assert not (tmp_path / "x.json").exists()


def test_mirror_images_find_the_same_in_the_same_places(outlined, pictures):
    """The two views of a picture that is its own mirror image find the same, once they are upright."""
    predictor, half = load(outlined), np.asarray(Image.open(pictures / "7.png").convert("RGB"))
    same = np.concatenate([half, half[:, ::-1]], axis=1)
    (alone,), (both,) = (predictor.predict([same], workers=0, tta=tta) for tta in ("none", "flip"))
    width = same.shape[1]
    mirrored = [(width - one.right, one.top, width - one.left, one.bottom) for one in alone.boxes]
    for one in both.boxes:
        places = [*(each.box for each in alone.boxes), *mirrored]
        assert min(np.abs(np.subtract(one.box, place)).max() for place in places) < 0.1
    assert len(both.boxes) >= len(alone.boxes) and both.boxes[0].score == pytest.approx(alone.boxes[0].score, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "json"])
def test_two_processes_write_what_one_does(outlined, pictures, tmp_path, ending):  # fault 81
    predict(outlined, pictures, out=tmp_path / f"one.{ending}")
    words = ["predict", str(outlined), "-", "--accelerator", "cpu", "--quiet", "--out", str(tmp_path / f"two.{ending}")]
    listed = [str(pictures / name) for name in ("7.png", "b/8.jpg", "nothing.png")]
    ended = worker.Ranks(2, tmp_path, predict_boxes_in_rounds, words, listed, 1).results()
    assert [result[1][0] for result in ended] == [0, 0]
    own, theirs = ((tmp_path / f"{name}.{ending}").read_text(encoding="utf-8") for name in ("one", "two"))
    assert own.replace("one-masks/b/", "one-masks/") == theirs.replace("two-masks/", "one-masks/")
