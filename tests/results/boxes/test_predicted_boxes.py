"""What is told of a picture: rows, JSON, COCO results that other tools measure alike, views put together, agreement."""

import csv
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detections import SIDE, discs, drawn
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image
from pycocotools import mask as coco

from transferkit.core.errors import ConfigError, DataError, TransferkitWarning
from transferkit.core.targets import TargetSpec
from transferkit.models.answers.detection import BoxScores
from transferkit.models.figures.boxes import BoxTally
from transferkit.models.parts import Request
from transferkit.results.boxes.coco import CocoNumbers, image_id
from transferkit.results.boxes.instances import InstanceFiles, numbered_masks
from transferkit.results.predict.boxes import BoxOutput, BoxPrediction
from transferkit.results.predict.lines import csv_header, csv_rows, json_row, lines_of

NAMES = ("cat", "dog", '=<b>"x"</b>')
OUTPUT, WHOLE, ROWS = BoxOutput(), Request(), Request(whole=False)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools under numpy 2


def told(threshold):
    return TargetSpec(NAMES, {"thresholds": {"every": threshold, "of_class": [threshold] * len(NAMES)}})


def pixels(mask):
    return coco.decode([mask])[..., 0].astype(bool)


def found(scores, *, masks=False, size=(SIDE, SIDE)):
    """A tally of discs side by side."""
    boxes = np.array([[10 + 30 * at, 20, 40 + 30 * at, 80] for at in range(len(scores))], dtype=np.float32)
    nothing = np.zeros((0, 4), dtype=np.float32)
    return BoxTally(
        boxes.reshape(-1, 4), np.array(scores, dtype=np.float32), np.arange(len(scores)) % 3, nothing,
        np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool), discs(boxes) if masks else None, size=size,
    )  # fmt: skip


def record(scores, spec, request=WHOLE, **options):
    return OUTPUT.record("a/7.jpg", found(scores, **options), spec, request)


# ---- records and rows -----------------------------------------------------------------------------------------------


def test_boxes_are_told_from_the_threshold_on():
    one = record([0.9, 0.5, 0.4, 0.05, 0.04], told(0.5))
    assert [box.score for box in one.boxes] == pytest.approx([0.9, 0.5])
    assert [box.score for box in one.unsure] == pytest.approx([0.4, 0.05])
    assert [box.label for box in one.boxes] == ["cat", "dog"] and one.boxes[1].box == (40.0, 20.0, 70.0, 80.0)
    assert record([0.9, 0.4], told(0.5), ROWS).unsure == ()
    low = record([0.9, 0.03, 0.01], told(0.02))
    assert [len(low.boxes), len(low.unsure)] == [2, 0]  # a threshold below the floor is kept to
    assert record([0.9], told(None)).boxes == ()


def test_a_row_for_each_box_and_one_where_there_is_none():
    records = [record([0.9, 0.6], told(0.5)), record([], told(0.5)), OUTPUT.unreadable("b.jpg", "torn")]
    text = csv_header(OUTPUT, told(0.5), ROWS) + "".join(csv_rows(OUTPUT, one, told(0.5), ROWS) for one in records)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["path", "left", "top", "right", "bottom", "label", "score", "error"]
    assert [row["path"] for row in rows] == ["a/7.jpg", "a/7.jpg", "a/7.jpg", "b.jpg"]
    assert rows[1] == {"path": "a/7.jpg", "left": "40.00", "top": "20.00", "right": "70.00", "bottom": "80.00",
                       "label": "dog", "score": "0.600000", "error": ""}  # fmt: skip
    assert set(list(rows[2].values())[1:]) == {""} and rows[3]["error"] == "torn" and rows[3]["label"] == ""


def test_json_holds_boxes_and_masks():
    one = json.loads(json_row(OUTPUT, record([0.9, 0.3], told(0.5), masks=True)))
    assert list(one) == ["path", "boxes", "unsure", "error"]
    assert one["boxes"][0]["box"] == [10.0, 20.0, 40.0, 80.0] and one["boxes"][0]["score"] == pytest.approx(0.9)
    mask = one["boxes"][0]["mask"]
    assert np.array_equal(pixels({**mask, "counts": mask["counts"].encode()}), pixels(discs([[10, 20, 40, 80]])[0]))
    assert json.loads(json_row(OUTPUT, record([0.9], told(0.5), ROWS)))["boxes"][0].keys() == {"box", "label", "score"}


def test_what_a_heat_map_is_about():
    one = record([0.9, 0.6, 0.4, 0.3], told(0.5))
    assert OUTPUT.answer(one, told(0.5)) == "cat" and OUTPUT.answer(record([], told(0.5)), told(0.5)) == "cat"
    assert OUTPUT.shares(one, told(0.5)) == pytest.approx({"cat": 0.9, "dog": 0.6, NAMES[2]: 0.4})
    assert list(OUTPUT.shares(record([0.2], told(0.5)), told(0.5)).values()) == pytest.approx([0.2, 0, 0])
    outputs = torch.zeros(2, 5, 6)
    outputs[0, :3, 4:] = torch.tensor([[0.9, 1.0], [0.8, 0.0], [0.7, 0.0]])
    outputs.requires_grad_()
    scores = OUTPUT.explained(outputs, torch.tensor([0, 1]))
    assert scores.tolist() == pytest.approx([0.8, 0.0])
    scores.sum().backward()
    assert outputs.grad.nonzero().tolist() == [[0, 1, 4]]


def test_wishes_that_mean_nothing_are_named_at_once():
    wish = Request(top_k=2, coverage=0.9, abstention=lambda probs, order: (True, ()))
    problem = OUTPUT.problem(told(0.5), wish)
    assert all(f"{name} is of" in problem for name in ("--top-k", "--abstain", "--coverage"))
    assert "this model gives boxes" in problem and OUTPUT.problem(told(0.5), WHOLE) is None


# ---- instances ------------------------------------------------------------------------------------------------------


def test_instances_are_numbered_the_most_confident_on_top():
    boxes = [[10, 10, 60, 60], [40, 10, 90, 60]]
    masks = discs(boxes)
    numbers = numbered_masks([masks[0], None, masks[1]], (SIDE, SIDE))
    first, second = map(pixels, masks)
    assert (first & second).any() and numbers.dtype == np.uint8
    assert np.array_equal(numbers == 1, first) and np.array_equal(numbers == 3, second & ~first)
    assert numbered_masks([masks[0]] * 300, (SIDE, SIDE)).dtype == np.uint16
    assert not numbered_masks([], (5, 7)).any() and numbered_masks([], (5, 7)).shape == (5, 7)


@pytest.mark.parametrize("count", [2, 300])
def test_their_file_has_the_numbers(count):
    mask = discs([[10, 10, 60, 60]])[0]
    tally = found([0.9] * count)
    masks = [mask] * (count - 1) + discs([[100, 100, 150, 150]])
    made = OUTPUT.record("a.png", replace(tally, masks=masks), told(0.5), WHOLE)
    with Image.open(io.BytesIO(InstanceFiles().content(made, told(0.5)))) as image:
        assert image.mode == ("P" if count < 256 else "I;16")
        numbers = np.asarray(image)
    assert set(np.unique(numbers).tolist()) == {0, 1, count}
    with pytest.raises(ValueError, match="has no masks"):
        InstanceFiles().content(BoxPrediction("a.png"), told(0.5))


def test_a_head_says_whether_there_are_instances():
    assert not InstanceFiles().given_by(torch.nn.Identity())
    head = torch.nn.Identity()
    head.outlines = True
    assert InstanceFiles().given_by(head)
    legend = InstanceFiles().legend(told(0.5))
    assert [name for name, _ in legend] == list(NAMES) and len({colour for _, colour in legend}) == 3
    assert "#000000" not in dict(legend).values()


# ---- COCO results ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [("x/000042.jpg", 42), ("7.b.png", "7.b"), ("cat.jpg", "cat"), ("²7.jpg", "²7"), ("٣.jpg", "٣"), ("-3.jpg", "-3"),
     ("a/\udcff.jpg", "\\xff")],
)  # fmt: skip
def test_ids_are_the_numbers_of_files(path, expected):
    assert image_id(path) == expected


def model(spec):
    return SimpleNamespace(
        module=SimpleNamespace(task=SimpleNamespace(output=OUTPUT, name="x")), info=SimpleNamespace(target_spec=spec)
    )


def results(tallies, spec, path="{}.jpg"):
    records = [OUTPUT.record(path.format(at + 1), one, spec, WHOLE) for at, one in enumerate(tallies)]
    return json.loads("".join(lines_of(iter(records), "coco", WHOLE, model(spec))))


@pytest.mark.parametrize("masks", [False, True])
def test_other_tools_measure_the_same_by_them(masks, tmp_path):
    tallies, spec = drawn(count=10, masks=masks), told(0.6)
    tallies = [replace(one, scores=np.where(one.scores < 0.35, one.scores / 10, one.scores)) for one in tallies]
    entries = results(tallies, spec)
    kept = []
    for one in tallies:
        own = one.scores >= 0.05  # what is less sure no file holds
        outlines = one.masks and [mask for mask, keep in zip(one.masks, own, strict=True) if keep]
        kept.append(
            replace(one, boxes=one.boxes[own], scores=one.scores[own], classes=one.classes[own], masks=outlines)
        )
    assert 50 < len(entries) == sum(len(one.scores) for one in kept) < sum(len(one.scores) for one in tallies)
    objects = []
    for number, one in enumerate(tallies, 1):
        outlines = one.true_masks or [None] * len(one.true_boxes)
        for box, label, crowd, outline in zip(one.true_boxes, one.true_classes, one.crowd, outlines, strict=True):
            left, top, right, bottom = map(float, box)
            area = (right - left) * (bottom - top) if outline is None else float(coco.area(outline))
            segmentation = {} if outline is None else {"segmentation": outline}
            ids = {"id": len(objects) + 1, "image_id": number, "category_id": int(label) + 1, "iscrowd": int(crowd)}
            objects.append({**ids, "bbox": [left, top, right - left, bottom - top], "area": area, **segmentation})
    categories = [{"id": at, "name": name} for at, name in enumerate(NAMES, 1)]
    images = [{"id": at + 1, "height": SIDE, "width": SIDE} for at in range(10)]
    truth = COCO({"info": {}, "annotations": objects, "categories": categories, "images": images})
    (tmp_path / "r.json").write_text(json.dumps(entries), encoding="utf-8")
    values = BoxScores().measure(kept, None, spec)
    for kind, key in (("bbox", "map"), ("segm", "mask_map"))[: 1 + masks]:
        judge = COCOeval_faster(truth, truth.loadRes(str(tmp_path / "r.json")), kind, print_function=lambda *_: None)
        judge.run()
        assert judge.stats[0] == pytest.approx(values[key], abs=1e-6) and 0.1 < values[key] < 0.9
        assert judge.stats[1] == pytest.approx(values[f"{key}50"], abs=1e-6)


def test_they_hold_names_beside_numbers():
    (entry,) = results([found([0.9], masks=True)], told(0.5), "x/{}.jpg")
    assert entry["image_id"] == 1 and entry["category_id"] == 1 and entry["category"] == "cat"
    assert entry["file_name"] == "x/1.jpg" and entry["bbox"] == [10.0, 20.0, 30.0, 60.0]
    assert isinstance(entry["segmentation"]["counts"], str) and entry["segmentation"]["size"] == [SIDE, SIDE]


def test_pictures_without_boxes_have_no_entry():  # fault 185
    assert results([found([]), found([0.01])], told(0.5)) == []
    lines = lines_of(iter([OUTPUT.unreadable("a.jpg", "torn")]), "coco", WHOLE, model(told(0.5)))
    assert json.loads("".join(lines)) == []


def test_one_id_for_two_pictures_is_told():  # fault 183
    records = [OUTPUT.record(f"{folder}/1.jpg", found([0.9]), told(0.5), WHOLE) for folder in "ab"]
    with pytest.warns(TransferkitWarning, match="1 pictures have the image_id of another one"):
        "".join(lines_of(iter(records), "coco", WHOLE, model(told(0.5))))


# ---- views ----------------------------------------------------------------------------------------------------------


def rows(*boxes, count=6, width=6):
    table = np.zeros((count, width), dtype=np.float32)
    for at, box in enumerate(boxes):
        table[at, :6] = box
    return table


def test_views_are_put_together_without_doubles():
    first = rows((0, 0, 10, 10, 0.9, 0), (50, 50, 90, 90, 0.5, 1), width=790)
    second = rows(
        (0, 0, 10, 11, 0.8, 0), (0, 0, 10, 10, 0.7, 1), (50, 50, 90, 88, 0.6, 1), (20, 0, 30, 10, 0.2, 0), width=790
    )
    first[:, 6:], second[:, 6:] = 1, 2
    merged = OUTPUT.merge(np.stack([first, second]))
    assert merged.shape == (6, 790) and merged.dtype == np.float32
    assert merged[:, 4].tolist() == pytest.approx([0.9, 0.7, 0.6, 0.2, 0, 0])
    assert merged[2, :4].tolist() == [50, 50, 90, 88] and merged[:4, 6].tolist() == [1, 2, 2, 2]
    assert not merged[4:].any()


def test_one_view_is_as_it_is_and_the_best_are_kept():
    alone = rows((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0))
    assert np.array_equal(OUTPUT.merge(alone[None]), alone)
    views = np.stack([rows(*[(20 * at, 30 * view, 20 * at + 10, 30 * view + 10, 0.9 - 0.1 * at - 0.05 * view, 0)
                             for at in range(6)]) for view in range(2)])  # fmt: skip
    merged = OUTPUT.merge(views)
    assert merged[:, 4].tolist() == pytest.approx([0.9, 0.85, 0.8, 0.75, 0.7, 0.65])
    assert not OUTPUT.merge(np.zeros((2, 6, 6), dtype=np.float32)).any()


# ---- agreement ------------------------------------------------------------------------------------------------------


A, B, C = (0, 0, 100, 100, 0.9, 0), (50, 0, 150, 100, 0.6, 1), (200, 0, 260, 60, 0.31, 1)


EDGE = (0.0, 10.0, 0.0, 40.0, 0.9, 1)


def moved(box, *, by=0.0, score=0.0, label=None):
    left, top, right, bottom, sure, own = box
    return (left + by, top, right + by, bottom, sure + score, own if label is None else label)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((A, B, C), (A, B, C), True),
        ((A, B, C), (C, B, A), True),  # their order is no matter
        ((), (), True),
        ((A, EDGE), (A, EDGE), True),  # of no area: no detection
        ((A, EDGE), (A,), True),
        ((A, B), (A,), False),
        ((A,), (A, B), False),
        ((A,), (), False),
        ((A, B), (A, moved(B, label=0)), False),
        ((A, B), (A, moved(B, score=0.01)), True),
        ((A, B), (A, moved(B, score=0.03)), False),
        ((A, B), (moved(A, by=5), B), True),  # 0.905 overlap
        ((A, B), (moved(A, by=20), B), False),
        ((A, C), (A, moved(C, score=-0.015)), True),  # one is below the floor, and still its partner
        ((A, moved(C, score=-0.05)), (A,), True),  # below the floor on either side
        ((A, A), (A,), False),  # a partner of its own
        ((A, A), (A, moved(A, by=1)), True),
        # each could be the other's, and only one way round pairs all
        ((moved(A, by=3), A), (moved(A, by=-3), moved(A, by=7)), True),
    ],
)  # fmt: skip
def test_two_models_agree_where_every_sure_box_has_its_partner(ours, theirs, expected):
    assert OUTPUT.agree(rows(*ours)[None], rows(*theirs)[None], 0.02).tolist() == [expected]
    assert OUTPUT.agree(rows(*theirs)[None], rows(*ours)[None], 0.02).tolist() == [expected]


def test_the_last_of_full_rows_needs_no_partner():
    many = [(20 * at, 0, 20 * at + 10, 10, 0.9 - 0.05 * at, 0) for at in range(7)]
    ours, other = rows(*many[:6]), rows(*many[:5], (300, 0, 310, 10, 0.65, 0))
    assert OUTPUT.agree(ours[None], other[None], 0.02).tolist() == [True]
    assert OUTPUT.agree(rows(*many[:5])[None], rows(*many[:4])[None], 0.02).tolist() == [False]
    early = rows(*many[:3], *many[4:6], (300, 0, 310, 10, 0.65, 0))
    assert OUTPUT.agree(ours[None], early[None], 0.02).tolist() == [False]


def test_masks_have_to_agree_too():
    ours, other = (np.full((1, 6, 790), -1, dtype=np.float32) for _ in range(2))
    for side in (ours, other):
        side[0, :, :6] = rows(A)
        side[0, 0, 6 : 6 + 400] = 1
    assert OUTPUT.agree(ours, other, 0.02).tolist() == [True]
    other[0, 0, 6 : 6 + 200] = -1
    assert OUTPUT.agree(ours, other, 0.02).tolist() == [False]


# ---- numbers of another file ----------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A COCO file whose numbers nobody would guess."""
    categories = [{"id": at, "name": name} for at, name in ((90, "dog"), (7, NAMES[2]), (31, "cat"), (1, "bird"))]
    images = [("a/1.jpg", 12), ("b/1.jpg", 13), ("deep\\2.jpg", 14), ("3.jpg", 15)]
    path = tmp_path / "annotations.json"
    values = {"images": [{"id": number, "file_name": name} for name, number in images], "categories": categories}
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_numbers_are_those_of_the_file(own):
    numbers = CocoNumbers.read(str(own), told(0.5))
    assert [numbers.categories[name] for name in NAMES] == [31, 90, 7]
    assert [numbers.image(path) for path in ("x/a/1.jpg", "b/1.jpg", "/y/deep/2.jpg", "other/3.jpg")] == [
        12,
        13,
        14,
        15,
    ]
    records = [OUTPUT.record("x/b/1.jpg", found([0.9, 0.6]), told(0.5), WHOLE)]
    entries = json.loads("".join(lines_of(iter(records), "coco", WHOLE, model(told(0.5)), numbers)))
    assert [(one["image_id"], one["category_id"]) for one in entries] == [(13, 31), (13, 90)]


@pytest.mark.parametrize(("path", "told_of"), [("1.jpg", "has 2 images for"), ("x/4.jpg", "has no image for")])
def test_a_picture_without_one_number_is_refused(own, path, told_of):  # fault 184
    with pytest.raises(DataError, match=told_of):
        CocoNumbers.read(str(own), told(0.5)).image(path)


@pytest.mark.parametrize(
    ("content", "told_of"),
    [("[]", "no COCO file"), ("{", "no COCO file"), ('{"images": [], "categories": [{"name": "cat"}]}', "no COCO file"),
     ('{"images": [], "categories": [{"name": "cat", "id": 1}]}', "no category for 'dog'")],
)  # fmt: skip
def test_a_file_without_numbers_is_refused(tmp_path, content, told_of):  # fault 184
    path = tmp_path / "x.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=told_of):
        CocoNumbers.read(str(path), told(0.5))
