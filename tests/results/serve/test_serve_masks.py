"""Masks over HTTP, and on the page: at the picture's own size, over the picture, with what each colour means."""

import base64
import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("uvicorn", reason="the serve extra is not installed")

from live_server import ask, serving
from mask_runs import MASK_CLASSES, make_mask_run, picture

from transferkit.results.predict.predictor import load
from transferkit.results.serve.answering import Answerer

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PALETTE = [[0, 0, 0], [230, 159, 0], [86, 180, 233]]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return load(make_mask_run(tmp_path_factory.mktemp("masks") / "run", palette=PALETTE))


@pytest.fixture(scope="module")
def port(predictor):
    with serving(Answerer(predictor, name="leaves", batch_size=8, wait_s=0.005, threads=2)) as number:
        yield number


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A photo that lies on its side, large enough to be decoded at a fraction of its size: upright 331 x 517."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(tmp_path_factory.mktemp("photos") / "turned.jpg", (517, 331), seed=1, exif=exif)


def mask_in(address):
    kind, _, data = address.partition(";base64,")
    assert kind == "data:image/png"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.mode == "P"
    return np.asarray(image)


def test_an_answer_holds_the_mask_that_predict_writes(predictor, port, turned):
    status, _, answer = ask(port, data=Path(turned).read_bytes(), kind="image/jpeg")
    assert status == 200
    (expected,) = predictor.predict([turned], workers=0)
    assert expected.mask.shape == (517, 331)
    assert np.array_equal(mask_in(answer["mask"]), expected.mask)
    assert answer["shares"] == {name: round(share, 6) for name, share in expected.shares.items()}
    assert {"heatmap", "neighbours", "top", "label"}.isdisjoint(answer)


def test_a_model_of_windows_answers_with_the_mask_that_predict_writes(tmp_path, turned):
    """Of two pictures at once, whose windows share batches; one map of heat for all windows of one."""
    predictor = load(make_mask_run(tmp_path / "run", side=32, palette=PALETTE, crop_mode="tile"))
    small = picture(tmp_path / "small.png", (70, 20), seed=4)
    (expected, other) = predictor.predict([turned, small], workers=0)
    with serving(Answerer(predictor, name="tiles", batch_size=8, wait_s=0.005, threads=2)) as number:
        with ThreadPoolExecutor(2) as pool:
            asked = [
                pool.submit(ask, number, "/predict", Path(path).read_bytes(), kind=kind)
                for path, kind in ((turned, "image/jpeg"), (small, "image/png"))
            ]
        for (status, _, answer), said in zip([one.result() for one in asked], (expected, other), strict=True):
            assert status == 200
            assert (mask_in(answer["mask"]) == said.mask).mean() > 0.9995
        status, _, answer = ask(number, "/predict?explain=true", Path(small).read_bytes(), kind="image/png")
    assert status == 200
    heat = Image.open(io.BytesIO(base64.b64decode(answer["heatmap"].partition(";base64,")[2])))
    assert heat.size == (448, 128)


@pytest.mark.parametrize(
    ("query", "told"),
    [("top_k=2", "top_k is for models of one class per picture"), ("coverage=0.9", "coverage is of the intervals"),
     ("unknown=0.9", "for a label, and segmentation gives none")],
)  # fmt: skip
def test_what_means_nothing_for_masks_is_refused(port, turned, query, told):  # fault 154
    status, _, answer = ask(port, f"/predict?{query}", Path(turned).read_bytes(), kind="image/jpeg")
    assert status == 422 and told in answer["error"] and "--" not in answer["error"].split(" - ")[0]


def test_the_documentation_tells_of_the_mask(port):
    status, _, page = ask(port, "/docs")
    assert status == 200 and "PNG of class indices" in page and "top_k=3" not in page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_lays_the_mask_over_the_picture(predictor, port, turned):
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (expected,) = predictor.predict([turned], workers=0)
    complaints = []
    with sync.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}")
        assert page.get_by_role("switch", name="Mask").is_disabled()
        page.locator("#file").set_input_files(turned)
        page.locator("#result:not(.old) #verdict").wait_for(state="visible", timeout=20_000)
        rows = page.locator("#classes li")
        assert [row.locator("span").nth(1).inner_text() for row in rows.all()] == list(MASK_CLASSES)
        told = [float(row.locator(".share").inner_text().removesuffix(" %")) for row in rows.all()]
        assert told == pytest.approx([100 * expected.shares[name] for name in MASK_CLASSES], abs=0.05)
        swatch = rows.nth(1).locator(".swatch").evaluate("it => getComputedStyle(it).backgroundColor")
        assert swatch == "rgb(230, 159, 0)"
        shown = page.evaluate("""() => {
          const over = document.getElementById("over");
          const levels = over.getContext("2d").getImageData(0, 0, over.width, over.height).data;
          return [over.width, over.height, ...levels];
        }""")
        pixels = np.array(shown[2:], dtype=np.uint8).reshape(shown[1], shown[0], 4)
        assert np.array_equal(pixels[..., 3] == 0, expected.mask == 0)
        for at in (1, 2):
            assert (pixels[expected.mask == at][:, :3] == PALETTE[at]).all()
        boxes = [page.locator(name).bounding_box() for name in ("#preview", "#over")]
        assert boxes[0] == boxes[1]  # one on the other, both fitted into it
        assert page.locator("#preview").evaluate("it => [it.naturalWidth, it.naturalHeight]") == [331, 517]
        with page.expect_download() as saved:
            page.locator("#save").click()
        with Image.open(saved.value.path()) as image:
            assert np.array_equal(np.asarray(image), expected.mask)
        page.get_by_role("switch", name="Mask").uncheck()
        assert page.locator("#over").is_hidden() and page.locator("#preview").is_visible()
        chromium.close()
    assert complaints == []
