"""Boxes over HTTP, and on the page: where they are in the picture, what each colour means, a threshold to move."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("uvicorn", reason="the serve extra is not installed")

from box_runs import BOX_CLASSES, THRESHOLD, make_box_run
from faster_coco_eval.core import mask as coco
from live_browser import CHROMIUM, Visit, open_browser
from live_server import ask, serving
from mask_runs import picture

from transferkit.results.boxes.instances import numbered_masks
from transferkit.results.predict.predictor import load
from transferkit.results.serve.answering import Answerer

browsers = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return load(make_box_run(tmp_path_factory.mktemp("boxes") / "run", outlines=True))


@pytest.fixture(scope="module")
def port(predictor):
    with serving(Answerer(predictor, name="cells", batch_size=8, wait_s=0.005, threads=2)) as number:
        yield number


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    predictor = load(make_box_run(tmp_path_factory.mktemp("boxes") / "plain"))
    with serving(Answerer(predictor, name="cells", batch_size=8, wait_s=0.005, threads=2)) as number:
        yield number


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A photo that lies on its side: upright 331 x 517."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(tmp_path_factory.mktemp("photos") / "turned.jpg", (517, 331), seed=1, exif=exif)


def boxes_of(records):
    return [[round(value, 2) for value in one.box] for one in records]


def test_an_answer_holds_what_predict_finds(predictor, port, turned):
    status, _, answer = ask(port, data=Path(turned).read_bytes(), kind="image/jpeg")
    assert status == 200
    (expected,) = predictor.predict([turned], workers=0)
    assert expected.size == (517, 331) and len(expected.boxes) > 3 and len(expected.unsure) > 3
    assert [one["box"] for one in answer["boxes"]] == boxes_of(expected.boxes)
    assert [one["box"] for one in answer["unsure"]] == boxes_of(expected.unsure)
    assert {one["label"] for one in answer["boxes"]} <= set(BOX_CLASSES)
    assert min(one["score"] for one in answer["boxes"]) >= THRESHOLD > max(one["score"] for one in answer["unsure"])
    mask = answer["boxes"][0]["mask"]
    assert np.array_equal(
        coco.decode({**mask, "counts": mask["counts"].encode()}), coco.decode(dict(expected.boxes[0].mask))
    )
    kind, _, data = answer["mask"].partition(";base64,")
    numbers = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert kind == "data:image/png"
    assert np.array_equal(numbers, numbered_masks([one.mask for one in expected.boxes], expected.size))
    assert {"heatmap", "label", "probabilities", "shares"}.isdisjoint(answer)


def test_boxes_alone_have_no_masks(plain, turned):
    status, _, answer = ask(plain, data=Path(turned).read_bytes(), kind="image/jpeg")
    assert status == 200 and "mask" not in answer and set(answer["boxes"][0]) == {"box", "label", "score"}


@pytest.mark.parametrize(
    ("query", "told"),
    [("top_k=2", "top_k is for models of one class per picture"), ("coverage=0.9", "coverage is of the intervals"),
     ("unknown=0.9", "for a label, and detection gives none")],
)  # fmt: skip
def test_what_means_nothing_for_boxes_is_refused(port, turned, query, told):  # fault 154
    status, _, answer = ask(port, f"/predict?{query}", Path(turned).read_bytes(), kind="image/jpeg")
    assert status == 422 and told in answer["error"] and "--" not in answer["error"].split(" - ")[0]


def test_a_heat_map_is_refused_in_a_sentence(port, turned):  # fault 171
    status, _, answer = ask(port, "/predict?explain=true", Path(turned).read_bytes(), kind="image/jpeg")
    assert status == 200 and answer["notes"] == ["There is no heat map for this model."] and answer["boxes"]


def test_the_documentation_tells_of_boxes(port):
    status, _, page = ask(port, "/docs")
    assert status == 200 and "left, top, right and bottom in pixels" in page and "as pycocotools reads them" in page


@browsers
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_the_page_draws_boxes_over_the_picture(predictor, port, turned, width, scheme):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (expected,) = predictor.predict([turned], workers=0)
    with open_browser() as browser:
        visit = Visit(browser, port, width=width, scheme=scheme)
        page = visit.page
        assert page.get_by_role("switch", name="Boxes").is_disabled() and page.locator("#level").is_disabled()
        assert page.locator("#levelled").inner_text() == "0.50"
        page.locator("#file").set_input_files(turned)
        told = visit.answered()
        counts = {name: sum(one.label == name for one in expected.boxes) for name in BOX_CLASSES}
        assert sorted(told.split(", ")) == sorted(f"{count} {name}" for name, count in counts.items() if count)
        visit.shot(f"boxes-{width}-{scheme}")
        assert page.locator("#preview").evaluate("it => [it.naturalWidth, it.naturalHeight]") == [331, 517]

        # where they lie on the screen, by the picture's own pixels
        frame = page.locator("#preview").bounding_box()
        scale = min(frame["width"] / 331, frame["height"] / 517)
        corner = [frame["x"] + (frame["width"] - 331 * scale) / 2, frame["y"] + (frame["height"] - 517 * scale) / 2]
        drawn = page.locator("#over rect.box")
        assert drawn.count() == len(expected.boxes)
        for one, place in zip(reversed(expected.boxes), drawn.all(), strict=True):
            shown = place.evaluate(EDGES)
            wanted = [corner[at % 2] + scale * value for at, value in enumerate(one.box)]
            assert shown == pytest.approx(wanted, abs=3.5)  # the stroke has a width

        # an outline is a path of the mask's pixels
        mask = coco.decode(dict(expected.boxes[0].mask)).astype(bool)
        inside = page.locator("#over path").last.evaluate(
            "(it, points) => points.map(([x, y]) => it.isPointInFill(new DOMPoint(x, y)))",
            [[x + 0.5, y + 0.5] for x, y in POINTS],
        )
        assert inside == [bool(mask[y, x]) for x, y in POINTS] and any(inside) and not all(inside)

        # names never lie on each other, nor beside the picture
        plates = [one.bounding_box() for one in page.locator("#over .plate").all()]
        assert plates
        for at, one in enumerate(plates):
            assert one["x"] >= corner[0] - 1 and one["x"] + one["width"] <= corner[0] + 331 * scale + 1
            for other in plates[at + 1 :]:
                assert max(_gap(one, other, "x", "width"), _gap(one, other, "y", "height")) >= -1

        # the threshold hides, and shows what is not told
        every = (*expected.boxes, *expected.unsure)
        for least in ("0.7", "0.05"):
            page.locator("#level").fill(least)
            count = sum(one.score >= float(least) for one in every)
            assert drawn.count() == count == page.locator("#table tbody tr").count()
            told = f"{count} of {len(every)} boxes from a score of {float(least):.2f} on."
            assert page.locator("#count").inner_text() == told
        page.locator("#table tbody tr").first.focus()
        assert page.locator("#over .lit").count() == 1
        page.get_by_role("switch", name="Boxes").uncheck()
        assert page.locator("#over").is_hidden() and page.locator("#preview").is_visible()
        page.get_by_role("switch", name="Boxes").check()
        with page.expect_download() as saved:
            page.locator("#save").click()
        with Image.open(saved.value.path()) as image:
            numbers = numbered_masks([one.mask for one in expected.boxes], expected.size)
            assert np.array_equal(np.asarray(image), numbers)
        assert visit.has_no_sideways_scroll() and visit.complaints == []


EDGES = "it => { const at = it.getBoundingClientRect(); return [at.left, at.top, at.right, at.bottom] }"
POINTS = [(x, y) for x in range(5, 331, 23) for y in range(5, 517, 23)]


def _gap(one, other, place, length):
    """How far two boxes lie apart on an axis; less than 0 where they overlap."""
    return max(one[place], other[place]) - min(one[place] + one[length], other[place] + other[length])


@browsers
def test_a_picture_without_boxes_says_so(plain):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    blue = io.BytesIO()
    Image.new("RGB", (64, 64), (0, 0, 255)).save(blue, "PNG")
    with open_browser() as browser:
        visit = Visit(browser, plain)
        visit.give(blue.getvalue())
        assert visit.answered() == "Nothing is found"
        assert visit.page.locator("#over rect").count() == 0 and visit.page.locator("#save").is_hidden()
        assert visit.complaints == []
