"""COCO, Pascal VOC and YOLO: one set in three layouts is one set; what is wrong with real ones, all at once."""

import json
from pathlib import Path

import numpy as np
import pytest
from object_sets import NAMES, coco, expected, found, look, save, scene, voc, voc_xml, yolo

from transferkit.core.errors import ConfigError, DataError
from transferkit.data.index.targets import inferred_task
from transferkit.data.objects.voc import parse_xml
from transferkit.data.scan.records import Kind
from transferkit.models.task import task_of
from transferkit.options.data import DataOptions


@pytest.fixture
def scenes():
    return {f"p{seed}": scene(seed) for seed in range(4)}


def refused(data, *kinds, **options):
    with pytest.raises(DataError) as error:
        look(data, **options)
    assert {finding.kind for finding in error.value.findings} == set(kinds)
    return str(error.value)


def reason(data):
    return inferred_task(DataOptions(data=str(data)))


# ---- layouts ----------------------------------------------------------------------------------------------------


def test_three_layouts_of_one_set_are_one_set(tmp_path, scenes):
    sets = [
        look(coco(tmp_path / "coco", scenes)),
        look(voc(tmp_path / "voc", scenes)),
        look(yolo(tmp_path / "y", scenes)),
    ]
    for one in sets:
        assert found(one) == expected(scenes)
        assert one.class_names == NAMES and one.counts()["train"] == sets[0].counts()["train"]
    assert len({one.digest() for one in sets}) == 1
    lines = [one.notes[0] for one in sets]
    assert lines[0].startswith("COCO: ") and "from 1" in lines[1] and "shares of the sides" in lines[2]
    layouts = [reason(tmp_path / name) for name in ("coco", "voc", "y")]
    assert layouts == [
        ("detection", "a COCO file lies there"),
        ("detection", "JPEGImages/ and Annotations/*.xml lie side by side"),
        ("detection", "images/ and labels/*.txt of the same stems lie side by side"),
    ]
    assert any(note.startswith("detection (") for note in sets[1].notes)
    assert [path.read_bytes() for path in sorted((tmp_path / "voc").rglob("*.xml"))]  # read, and there as before


def test_a_label_is_canonical_and_its_order_does_not_count(tmp_path, scenes):
    one = look(coco(tmp_path / "a", scenes))
    turned = {stem: s._replace(boxes=s.boxes[::-1], classes=s.classes[::-1]) for stem, s in scenes.items()}
    other = look(coco(tmp_path / "b", turned))
    assert one.digest() == other.digest() and one.records[0].label != other.records[0].label
    label = one.records[0].label
    assert json.dumps(json.loads(label), sort_keys=True, separators=(",", ":")) == label
    moved = {**scenes, "p0": scenes["p0"]._replace(classes=[(k + 1) % 3 for k in scenes["p0"].classes])}
    assert look(coco(tmp_path / "c", moved)).digest() != one.digest()


def test_splits_come_from_names_of_files_lists_and_folders(tmp_path, scenes):
    split = {"p0": "train", "p1": "train", "p2": "val", "p3": "test"}
    scenes["p0"].classes[:] = [0, 1, 2, 0]
    parts = {name: {stem: scenes[stem] for stem in scenes if split[stem] == name} for name in ("train", "val", "test")}
    for name, part in parts.items():
        coco(tmp_path / "a", part, name=f"annotations/instances_{name}2017.json", folder=f"{name}2017")
        coco(tmp_path / "b", part, name=f"{name}/_annotations.coco.json", folder=name)
        yolo(tmp_path / "c", part, split=name)
        yolo(tmp_path / "d" / {"val": "valid"}.get(name, name), part, names=False)
    (tmp_path / "d" / "data.yaml").write_text("names:\n  0: cat\n  1: dog\n  2: elk\n", encoding="utf-8")
    voc(tmp_path / "e", scenes, split=split)
    for name in "abcde":
        index = look(tmp_path / name)
        assert {Path(r.path).stem: r.split for r in index.records} == split, name
        assert found(index) == expected(scenes)
    (tmp_path / "a" / "annotations" / "captions_train2017.json").write_text(
        json.dumps({"images": [], "annotations": [{"caption": "x"}]}), encoding="utf-8"
    )
    assert len(look(tmp_path / "a").records) == 4  # captions are no objects
    one = look(tmp_path / "a" / "annotations" / "instances_train2017.json")
    assert len(one.records) == 2 and reason(tmp_path / "a" / "annotations" / "instances_train2017.json")[1].endswith(
        "COCO"
    )


def test_yolo_knows_pixels_outlines_and_lists_of_names(tmp_path, scenes):  # fault 176
    pixels = look(yolo(tmp_path / "p", scenes, pixels=True))
    assert found(pixels) == expected(scenes) and "in pixels: 16 of 16" in pixels.notes[0]
    root = yolo(tmp_path / "o", scenes, names=False)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    for path in (root / "labels").glob("*.txt"):
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        lines = []
        for kind, x, y, w, h in ((row[0], *map(float, row[1:])) for row in rows):
            a, b, c, d = x - w / 2, y - h / 2, x + w / 2, y + h / 2
            lines.append(" ".join(map(str, (kind, a, b, c, b, c, d, a, d))))
        path.write_text("\n".join(lines), encoding="utf-8")
    outlined = look(root)
    assert "all objects have outlines" in outlined.notes[0] and outlined.targets.spec.facts["outlines"] is True
    records = [(record.label, record.path) for record in outlined.records]
    annotations = outlined.targets.annotate(*zip(*records, strict=True))
    for row, (stem, one) in enumerate(sorted(scenes.items())):
        instances = annotations.read(row).instances
        for number, (left, top, right, bottom) in enumerate(one.boxes, 1):
            assert (instances[top:bottom, left:right] == number).all(), stem
        assert (instances > 0).sum() == sum((c - a) * (d - b) for a, b, c, d in one.boxes)
    bare = look(yolo(tmp_path / "n", scenes, names=False))
    assert set(bare.class_names) <= {"0", "1", "2"} and any("go by their numbers" in note for note in bare.notes)


def test_voc_counts_from_zero_where_a_box_begins_there(tmp_path, scenes):  # fault 176
    edge = scene(9)
    edge.boxes[0] = (0, 0, 20, 30)
    scenes["edge"] = edge
    index = look(voc(tmp_path, scenes, zero=True))
    assert found(index) == expected(scenes) and "from 0, as 1 of 20 begin there" in index.notes[0]


def test_classes_that_nothing_shows_are_left_out_or_keep_their_place(tmp_path):
    one = scene(0)
    scenes = {"a": one._replace(classes=[0, 2, 2, 2])}
    assert look(coco(tmp_path, scenes)).class_names == ("cat", "elk")
    assert look(tmp_path, allow_empty_classes=True).class_names == NAMES


def test_what_is_no_such_set_is_none(tmp_path, scenes):
    for name in ("cat", "dog"):
        save(tmp_path / "classes" / name / "a.png", scenes["p0"].pixels)
    (tmp_path / "classes" / "meta.json").write_text('{"images": 3, "annotations": 1}', encoding="utf-8")
    assert reason(tmp_path / "classes")[0] == "classification"
    with pytest.raises(DataError, match="no objects in .*expected a COCO file"):
        look(tmp_path / "classes")
    coco(tmp_path / "two", scenes)
    voc(tmp_path / "two", scenes)
    with pytest.raises(DataError, match="annotations of COCO, Pascal VOC"):
        look(tmp_path / "two")
    with pytest.raises(DataError, match="is a list, as files of predictions are"):
        (tmp_path / "p.json").write_text('[{"image_id": 1}]', encoding="utf-8")
        look(tmp_path / "p.json")
    with pytest.raises(ConfigError, match="--palette names the classes of masks"):
        look(tmp_path / "two", palette="x.csv")


def test_a_set_of_objects_is_of_detection(tmp_path, scenes):
    assert task_of(DataOptions(data=str(voc(tmp_path, scenes)))).name == "detection"


# ---- faults -----------------------------------------------------------------------------------------------------

BAD = {
    "over": ([120, 80, 30, 30], None),
    "area": ([10, 10, 0, 5], "1 boxes without area"),
    "negative": ([10, 10, -5, 5], "1 boxes whose right or lower edge comes before the left or upper one"),
    "outside": ([140, 10, 20, 20], "1 boxes outside their pictures"),
    "nan": ([float("nan"), 1, 2, 3], "1 boxes that are not four numbers"),
    "inf": ([1, 1, float("inf"), 3], "1 boxes that are not four numbers"),
    "text": (["1", 1, 2, 3], "1 boxes that are not four numbers"),
    "huge": ([10**400, 1, 2, 3], "1 boxes that are not four numbers"),
    "three": ([1, 2, 3], "1 boxes that are not four numbers"),
    "missing": (None, "1 boxes that are not four numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_boxes_are_named_and_left_out(tmp_path, scenes, name):  # fault 172
    box, said = BAD[name]
    extra = [{"id": 77, "image_id": 1, "category_id": 3, "bbox": box}]
    coco(tmp_path, scenes, extra=extra)
    if said is None:
        index = look(tmp_path)
        assert found(index)["p0"][-1] == ("cat", 120.0, 80.0, 130.0, 90.0)
        assert any(note.startswith("1 boxes of 1 pictures reach over the edge and are clipped") for note in index.notes)
        return
    message = refused(tmp_path, Kind.BOX)
    assert said in message and "annotation 77" in message and "p0.png" in message and "--skip-bad" in message
    index = look(tmp_path, skip_bad=True)
    assert found(index) == expected(scenes) and any(said in note and "left out" in note for note in index.notes)


def test_all_faults_come_at_once(tmp_path, scenes):  # faults 172 and 173
    extra = [
        {"id": 70, "image_id": 1, "category_id": 99, "bbox": [1, 1, 9, 9]},
        {"id": 71, "image_id": 1, "category_id": 3, "bbox": [10, 10, 0, 5]},
        {"id": 72, "image_id": 2, "category_id": 3, "bbox": [900, 1, 9, 9]},
        {"id": 73, "image_id": 55, "category_id": 3, "bbox": [1, 1, 9, 9]},
        {"id": 74, "image_id": 3, "category_id": 3, "bbox": [5, 5, 9, 9]},
        {"id": 75, "image_id": 3, "category_id": 3, "bbox": [5, 5, 9, 9]},
    ]
    images = [{"id": 40, "file_name": "gone.png", "height": 9, "width": 9},
              {"id": 41, "file_name": "../../p0.png", "height": 33, "width": 44}]  # fmt: skip
    coco(tmp_path, scenes, extra=extra, images=images[:1])
    message = refused(tmp_path, Kind.BOX)
    for said in ("class 99", "without area", "outside", "image_id 55", "annotated twice", "'gone.png'"):
        assert said in message.replace("gone.png", "'gone.png'"), said
    index = look(tmp_path, skip_bad=True)
    kept = expected(scenes)
    kept["p2"] = [*kept["p2"], ("cat", 5.0, 5.0, 14.0, 14.0)]
    assert found(index) == kept
    coco(tmp_path / "b", scenes, images=images[1:])
    assert "one file of several images" in refused(tmp_path / "b", Kind.LAYOUT)  # never outside: its last part counts


def test_pictures_of_another_size_than_stated(tmp_path, scenes):  # fault 174
    voc(tmp_path, scenes)
    voc_xml(tmp_path, "p1", (45, 65), [("cat", 1, 1, 9, 9)])
    voc_xml(tmp_path, "p2", (0, 0), [("cat", 1, 1, 9, 9)])  # labelImg writes 0 at times: nothing is stated then
    message = refused(tmp_path, Kind.BOX)
    assert "1 pictures of another size" in message and "65 x 45" in message and "130 x 90 in the file" in message
    index = look(tmp_path, skip_bad=True)
    assert set(found(index)) == {"p0", "p2", "p3"} and found(index)["p2"] == [("cat", 0.0, 0.0, 9.0, 9.0)]
    assert [Path(one.path).stem for one in index.skipped if "size" in one.reason] == ["p1"]


def test_negatives_are_counted_and_missing_pictures_named(tmp_path, scenes):  # fault 173
    yolo(tmp_path, scenes)
    (tmp_path / "labels" / "p1.txt").write_text("\n", encoding="utf-8")
    (tmp_path / "labels" / "p2.txt").unlink()
    index = look(tmp_path)
    assert any(note.startswith("2 of 4 pictures show no object: they are negatives") for note in index.notes)
    assert found(index)["p1"] == found(index)["p2"] == []
    (tmp_path / "labels" / "lost.txt").write_text("0 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    assert "annotations of 1 pictures that are not there" in refused(tmp_path, Kind.BOX)
    assert len(look(tmp_path, skip_bad=True).records) == 4


@pytest.mark.parametrize(("line", "said"), [
    ("0 0.5 0.5 0.1", "4 numbers, expected a class and 4"), ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers"),
])  # fmt: skip
def test_lines_of_yolo_that_cannot_be_read(tmp_path, scenes, line, said):  # fault 172
    yolo(tmp_path, scenes)
    with (tmp_path / "labels" / "p0.txt").open("a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")
    message = refused(tmp_path, Kind.BOX)
    assert said in message and "line 5" in message
    assert set(found(look(tmp_path, skip_bad=True))) == {"p1", "p2", "p3"}


def test_numbers_of_yolo_that_are_none(tmp_path, scenes):
    yolo(tmp_path, scenes)
    (tmp_path / "labels" / "p0.txt").write_text("0 nan 0.5 0.1 0.1\n7 0.5 0.5 0.1 0.1\n0 1.3 0.5 0.2 0.2\n"
                                                "1 0.95 0.5 0.2 0.2\n", encoding="utf-8")  # fmt: skip
    message = refused(tmp_path, Kind.BOX)
    assert "not four numbers" in message and "class 7" in message and "outside" in message
    assert found(look(tmp_path, skip_bad=True))["p0"] == [("dog", 110.5, 36.0, 130.0, 54.0)]


def test_crowds_and_difficult_objects_are_kept_apart(tmp_path, scenes):
    coco(
        tmp_path / "c", scenes, extra=[{"id": 9, "image_id": 1, "category_id": 5, "bbox": [0, 0, 50, 50], "iscrowd": 1}]
    )
    voc(tmp_path / "v", scenes)
    text = (tmp_path / "v" / "Annotations" / "p0.xml").read_text(encoding="utf-8")
    (tmp_path / "v" / "Annotations" / "p0.xml").write_text(
        text.replace("<difficult>0", "<difficult>1", 1), encoding="utf-8"
    )
    for name, crowds in (("c", [False] * 4 + [True]), ("v", [True] + [False] * 3)):
        index = look(tmp_path / name)
        annotation = index.targets.annotate([index.records[0].label], [index.records[0].path]).read(0)
        assert annotation.crowd.tolist() == crowds
        total = sum(len(one.boxes) for one in scenes.values())
        assert sum(index.counts()["train"].values()) == total - (name == "v")


def test_files_that_are_damaged_or_dangerous(tmp_path, scenes):  # fault 175
    voc(tmp_path, scenes)
    bomb = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><annotation><folder>&y;</folder></annotation>'
    (tmp_path / "Annotations" / "p0.xml").write_text(bomb, encoding="utf-8")
    (tmp_path / "Annotations" / "p1.xml").write_text("<annotation><object>", encoding="utf-8")
    message = refused(tmp_path, Kind.BOX)
    assert "declares entities" in message and "it is not XML" in message
    assert set(found(look(tmp_path, skip_bad=True))) == {"p2", "p3"}
    (tmp_path / "p0.xml").write_bytes(bomb.encode("utf-16"))
    with pytest.raises(ValueError, match="declares entities"):
        parse_xml(tmp_path / "p0.xml")
    for text in ("{", "[" * 100_000, '{"images": 3, "annotations": [], "categories": []}'):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="is not JSON|has no list 'images'"):
            look(tmp_path / "x.json")
    root = yolo(tmp_path / "y", scenes)
    for text in ("names: !!python/object/apply:os.system [ls]\n", "a: &a [1, 1]\nb: &b [*a, *a]\nnames: [*b, *b]\n",
                 "names: {cat: 0}\n", "names: [\n"):  # fmt: skip
        (root / "data.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="is not YAML|names is no list of names"):
            look(root)


def test_splits_that_clash_or_lack_train(tmp_path, scenes):
    root = voc(tmp_path / "v", scenes, split={"p0": "val", "p1": "val"})
    assert "no train.txt" in refused(root, Kind.NO_TRAIN, Kind.EMPTY)
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").write_text("p1\np2\np9\n", encoding="utf-8")
    message = refused(root, Kind.LEAK, Kind.BOX)
    assert "p1 (train and val)" in message and "p9" in message
    coco(tmp_path / "c", scenes, name="a.json")
    coco(tmp_path / "c", scenes, name="b.json")
    with pytest.raises(DataError, match="several COCO files of no split"):
        look(tmp_path / "c")


def test_a_class_that_only_val_shows(tmp_path):
    train, val = scene(0)._replace(classes=[0] * 4), scene(1)._replace(classes=[0, 0, 1, 0])
    yolo(tmp_path, {"a": train}, split="train")
    yolo(tmp_path, {"b": val}, split="val")
    assert "classes without training objects that other splits have: 'dog'" in refused(tmp_path, Kind.UNTRAINED)


def test_pictures_without_objects_stand_for_no_class(tmp_path):  # fault 199
    scenes = {str(number): scene(number, objects=0) for number in range(9)}
    rare = scene(40, objects=1)._replace(classes=[0])
    scenes |= {"rare": rare, "other": scene(41, objects=2)._replace(classes=[1, 2])}
    root = voc(tmp_path, scenes)
    for seed in range(12):
        index = look(root, val_split=0.45, test_split=0.45, split_seed=seed)
        counts = index.counts()
        assert all(counts["train"][name] for name in ("cat", "dog", "elk")), (seed, counts)
    strata = index.targets.strata([record.label for record in index.records])
    assert sorted(set(strata.tolist())) == [-1, 0, 1]


def test_no_object_to_train_on(tmp_path):
    yolo(tmp_path, {"a": scene(0, objects=0), "b": scene(1, objects=0)})
    assert "show no object to learn" in refused(tmp_path, Kind.EMPTY)


# ---- EXIF -------------------------------------------------------------------------------------------------------

STORED = {5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p), 7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
          8: lambda p: np.rot90(p, -1)}  # fmt: skip


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("upright", [True, False])
def test_annotations_of_the_unturned_picture_are_turned(tmp_path, scenes, orientation, upright):  # fault 174
    """The file is stored so that EXIF turns it upright; the boxes are of the one or of the other."""
    coco(tmp_path, scenes, outlines=True)
    values = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    for stem, one in scenes.items():
        stored = np.ascontiguousarray(STORED[orientation](one.pixels))
        save(tmp_path / "images" / f"{stem}.png", stored, orientation)
        numbers = np.zeros(one.pixels.shape[:2], dtype=np.uint8)
        for number, (left, top, right, bottom) in enumerate(one.boxes, 1):
            numbers[top:bottom, left:right] = number
        turned = STORED[orientation](np.repeat(numbers[:, :, None], 3, axis=2))[:, :, 0]
        if not upright:
            image = next(image for image in values["images"] if image["file_name"] == f"{stem}.png")
            image["height"], image["width"] = stored.shape[:2]
            own = [a for a in values["annotations"] if a["image_id"] == image["id"]]
            for number, annotation in enumerate(own, 1):
                rows, columns = np.nonzero(turned == number)
                left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                annotation["bbox"] = [int(left), int(top), int(right - left), int(bottom - top)]
                annotation["segmentation"] = [list(map(int, (left, top, right, top, right, bottom, left, bottom)))]
                if number == 1:  # run lengths are turned, too
                    flat = (turned == 1).ravel(order="F").astype(int)
                    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), len(flat)]).tolist()
                    annotation["segmentation"] = {"size": list(turned.shape), "counts": runs}
    (tmp_path / "train.json").write_text(json.dumps(values), encoding="utf-8")
    index = look(tmp_path)
    assert found(index) == expected(scenes)
    assert any("4 annotations fit only the unturned picture" in note for note in index.notes) != upright
    records = [(record.label, record.path) for record in index.records]
    annotations = index.targets.annotate(*zip(*records, strict=True))
    for row, (_, one) in enumerate(sorted(scenes.items())):
        instances = annotations.read(row).instances
        for number, (left, top, right, bottom) in enumerate(one.boxes, 1):
            assert (instances[top:bottom, left:right] == number).all()


def test_a_picture_that_cannot_be_read_is_said_once(tmp_path, scenes):
    voc(tmp_path, scenes)
    (tmp_path / "JPEGImages" / "p0.png").write_bytes(b"no picture")
    assert "p0.png" in refused(tmp_path, Kind.UNREADABLE)
    assert set(found(look(tmp_path, skip_bad=True))) == {"p1", "p2", "p3"}
