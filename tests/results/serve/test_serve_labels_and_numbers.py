"""The pages of labels and of numbers in a real browser, and heat maps of a chosen label or number."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("uvicorn", reason="the serve extra is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from live_browser import CHROMIUM, Visit, open_browser
from live_server import LIMITS, Near, ask, png, serving

from transferkit.data.augment.normalise import normalise
from transferkit.models.artifact import save_model
from transferkit.models.module import TransferModule
from transferkit.models.unlike.statistics import fit_distance
from transferkit.results.explain.gradcam import heatmaps
from transferkit.results.explain.pictures import enlarged, overlay
from transferkit.results.predict.predictor import Predictor, load
from transferkit.results.serve.answering import Answerer

LABELS = ("sky", "sea", '<b>"sand"</b>', *(f"label {number}" for number in range(9)))
TARGETS = ("10", "2", "<i>width</i>")
"""Names like numbers: an object of JavaScript puts these in an order of its own."""

MINUS = "\N{MINUS SIGN}"

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


class FakeNeighbours:
    def __init__(self, path, label):
        self.path, self.label = str(path), label

    def nearest(self, images, hashes, k):
        return [[Near(self.path, self.label, 0.75), Near("/gone/secret.png", "", 0.5)][:k] for _ in images]


def untrained(directory, task, names, facts, *, bias=None, informed=True):
    """Write a model that was never trained, and what it knows of its training pictures; gives it back, loaded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TransferModule(
            "test_resnet", len(names), weights="random", image_size=32, class_names=names, task=task, target_facts=facts
        ).eval()
        torch.nn.init.normal_(module.head.linear.weight, std=1.0)
        if bias is not None:
            torch.nn.init.constant_(module.head.linear.bias, bias)
    if informed:
        predictor = Predictor(module, None)
        predictor.info = type("Info", (), {"preprocessing": module.data_config})
        shown = torch.from_numpy(np.stack([predictor.decode(png(seed)) for seed in range(50)]))
        with torch.inference_mode():
            features = module.backbone(normalise(shown, module.data_config))
        module.unlike = fit_distance(features[:30].numpy(), np.zeros(30, dtype=np.int64))
        module.unlike.hold_out(module.unlike(features[30:]), features[30:])
    directory.mkdir()
    save_model(directory, module, head="linear")
    return load(directory)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    limits = [0.5, 0.25, 0.9, *np.linspace(0.1, 0.9, 9).round(6).tolist()]
    return untrained(tmp_path_factory.mktemp("labels") / "run", "multilabel", LABELS, {"thresholds": limits})


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    facts = {
        "mean": [10.0, 0.5, -300.0], "scale": [4.0, 0.02, 100.0], "range": [[0.0, 25.0], [0.4, 0.6], [-500.0, -499.0]],
        "errors": [np.linspace(0.0, 5.0, 40).tolist(), np.linspace(0.0, 0.05, 40).tolist(), [1.0, 2.0]],
    }  # fmt: skip
    return untrained(tmp_path_factory.mktemp("numbers") / "run", "regression", TARGETS, facts)


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    path = tmp_path_factory.mktemp("train") / "near.png"
    path.write_bytes(png(99, (64, 64)))
    return path


def answering(predictor, near=None, label=""):
    neighbours = None if near is None else FakeNeighbours(near, label)
    return serving(
        Answerer(predictor, name="run", batch_size=8, wait_s=0.005, threads=2, count=2, neighbours=neighbours)
    )


@pytest.fixture(scope="module")
def label_port(labels, near):
    with answering(labels, near, "sea|sky") as port:
        yield port


@pytest.fixture(scope="module")
def number_port(numbers, near):
    with answering(numbers, near, "18|0.5|-300") as port:
        yield port


@pytest.fixture(scope="module")
def browser():
    with open_browser() as chromium:
        yield chromium


@pytest.fixture
def visit(browser):
    opened = []

    def open_page(port, **options):
        opened.append(Visit(browser, port, **options))
        return opened[-1]

    yield open_page
    for each in opened:
        each.context.close()


def answered(here):
    here.page.locator("#result:not(.old) #time").wait_for(state="visible", timeout=20_000)
    here.page.locator("#stage:not(.busy)").wait_for(timeout=20_000)


def place(element):
    """Return where an element begins and how wide it is, in percent of its parent; without a width 0."""
    style = element.get_attribute("style")
    found = [re.search(rf"\b{name}: (-?[\d.]+)%", style) for name in ("left", "width")]
    return [float(one[1]) if one else 0.0 for one in found]


def pixels_of(address):
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        return np.asarray(image)


def as_text(share):
    return f"{100 * share:.1f} %" if 0.001 <= share <= 0.999 else "< 0.1 %" if share < 0.001 else "> 99.9 %"


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1200, "dark"), (400, "light")])
def test_labels_that_are_given_go_first(visit, labels, label_port, width, scheme):
    here = visit(label_port, width=width, scheme=scheme)
    page = here.page
    here.give(png(3, (320, 200)))
    answered(here)
    (expected,) = labels.predict(png(3, (320, 200)))
    probs = dict(zip(LABELS, expected.probs, strict=True))
    limits = dict(zip(LABELS, labels.module.target_spec.facts["thresholds"], strict=True))
    chosen = list(expected.labels)
    assert 0 < len(chosen) < len(LABELS) and page.locator("#verdict").inner_text() == ", ".join(chosen[:8]) + (
        f" and {len(chosen) - 8} more" if len(chosen) > 8 else ""
    )
    others = sorted((name for name in LABELS if name not in chosen), key=lambda name: -probs[name])
    rows = page.locator("#labels li")
    assert [row.locator("span").first.text_content() for row in rows.all()] == chosen + others
    assert page.locator("#labels li.chosen").count() == len(chosen)
    for row, name in zip(rows.all(), chosen + others, strict=True):
        assert place(row.locator(".fill"))[1] == pytest.approx(100 * probs[name], abs=0.01)
        assert place(row.locator(".mark"))[0] == pytest.approx(100 * limits[name], abs=0.01)
        told = f"threshold {as_text(limits[name])} · {as_text(probs[name])}"
        assert row.locator(".name > span").last.text_content() == told
    assert page.locator("#near figcaption").first.inner_text().startswith("sea, sky")
    assert page.locator("#near figcaption").last.inner_text().startswith("none of the labels")
    assert page.locator("#result b").count() == 0  # names are text
    assert as_text(expected.unlike_training).split()[0] in page.locator("#unlike").inner_text()
    assert here.has_no_sideways_scroll()
    assert here.complaints == []
    here.shot(f"labels-{width}-{scheme}")


@needs_chromium
def test_none_of_many_labels(visit, tmp_path):
    names = tuple(f"label {number}" for number in range(60))
    predictor = untrained(tmp_path / "run", "multilabel", names, {}, bias=-40.0, informed=False)
    with answering(predictor) as port:
        here = visit(port)
        here.give(png(1))
        answered(here)
        page = here.page
        assert page.locator("#verdict").inner_text() == "none of the labels"
        assert page.locator("#unlike").is_hidden() and page.locator("#nearby").is_hidden()
        assert page.locator("#labels li:visible").count() == 10
        assert page.locator("#labels li.chosen").count() == 0
        page.get_by_role("button", name="Show all 60 labels").focus()
        page.keyboard.press("Enter")
        assert page.locator("#labels li:visible").count() == 60
        assert page.evaluate("document.activeElement === document.querySelectorAll('#labels li')[10]")
        assert page.locator("#more").is_hidden()
        assert here.complaints == []


@needs_chromium
def test_the_keyboard_chooses_what_the_heat_map_is_about(visit, labels, label_port):
    here = visit(label_port)
    page = here.page
    assert page.locator("#about").is_disabled() and page.get_by_role("switch").is_disabled()
    here.give(png(3, (320, 320)))
    answered(here)
    likeliest = LABELS[int(np.argmax(labels.predict(png(3, (320, 320)))[0].probs))]
    assert page.locator("#heat").get_attribute("alt").endswith(f"spoke for {likeliest}")
    before = page.locator("#heat").get_attribute("src")
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert reached == ["API", "file", "toggle", "about"]
    page.keyboard.type("label 7")
    page.locator("#legend", has_text="spoke for label 7,").wait_for(state="visible", timeout=20_000)
    answered(here)
    assert page.locator("#heat").is_visible() and page.get_by_role("switch").is_checked()
    shown = page.locator("#heat").get_attribute("src")
    assert shown != before
    (heat,) = heatmaps(labels, labels.decode(png(3, (320, 320)))[None], ["label 7"])
    large = enlarged(png(3, (320, 320)), labels.info.preprocessing, 448, name="picture")
    assert np.abs(pixels_of(shown).astype(int) - overlay(large, heat)).max() <= 1
    here.give(png(4))
    page.locator("#time").wait_for(timeout=20_000)
    answered(here)
    assert page.locator("#about").input_value() == "label 7"  # of the next picture, too
    for control in page.locator("input, select").all():
        named = "it => (it.getAttribute('aria-label') || it.labels[0].textContent).length > 0"
        assert control.evaluate(named)
    assert here.complaints == []


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_numbers_with_their_intervals(visit, numbers, number_port, width, scheme):
    here = visit(number_port, width=width, scheme=scheme)
    page = here.page
    here.give(png(3, (320, 200)))
    answered(here)
    (expected,) = numbers.predict(png(3, (320, 200)))
    rows = page.locator("#numbers li")
    assert [row.locator(".name span").first.text_content() for row in rows.all()] == list(TARGETS)
    ranges = numbers.module.target_spec.facts["range"]
    for at, row in enumerate(rows.all()):
        value, low, high = expected.numbers[at], expected.low[at], expected.high[at]
        told = float(row.locator(".value").inner_text().replace(MINUS, "-"))
        within = numbers.module.target_spec.facts["scale"][at] / 50
        assert told == pytest.approx(value, abs=within)
        ends = [value, *ranges[at], *([] if low is None else [low, high])]
        least, span = min(ends), max(ends) - min(ends)
        percent = [100 * (one - least) / span for one in (value, *ranges[at])]
        assert place(row.locator(".mark"))[0] == pytest.approx(percent[0], abs=0.02)
        begin, wide = place(row.locator(".range"))
        assert [begin, begin + wide] == pytest.approx(percent[1:], abs=0.02)
        shown = row.locator("p").first.inner_text().replace(MINUS, "-")
        if low is None:  # its two held-out errors are too few
            assert at == 2 and shown == "No interval." and row.locator(".between").count() == 0
            continue
        assert shown.startswith("90 % interval: ")
        assert [float(part) for part in shown.removeprefix("90 % interval: ").split(" to ")] == pytest.approx(
            [low, high], abs=within
        )
        begin, wide = place(row.locator(".between"))
        assert [begin, begin + wide] == pytest.approx([100 * (one - least) / span for one in (low, high)], abs=0.02)
    outside = [not low <= value <= high for value, (low, high) in zip(expected.numbers, ranges, strict=True)]
    assert outside[2]
    assert [row.get_by_text("Outside the range").count() for row in rows.all()] == list(map(int, outside))
    assert page.locator("#near figcaption").first.inner_text().startswith("10 18, 2 0.5, <i>width</i> -300")
    assert page.locator("#result i").count() == 0
    assert page.locator("#heat").get_attribute("alt").endswith("raised 10")
    page.locator("#about").select_option("<i>width</i>")
    page.locator("#legend", has_text="raised <i>width</i>,").wait_for(state="visible", timeout=20_000)
    answered(here)
    assert page.locator("#heat").is_visible()
    assert here.has_no_sideways_scroll()
    assert here.complaints == []
    here.shot(f"numbers-{width}-{scheme}")


@needs_chromium
def test_one_number_of_which_nothing_is_known(visit, tmp_path):
    predictor = untrained(tmp_path / "run", "regression", ("grade",), {}, informed=False)
    with answering(predictor) as port:
        here = visit(port)
        here.give(png(1))
        answered(here)
        told = float(here.page.locator(".value").inner_text().replace(MINUS, "-"))
        assert told == pytest.approx(predictor.predict(png(1))[0].numbers[0], rel=0.01)
        assert here.page.locator(".scale").count() == here.page.locator("#about").count() == 0
        assert "1 number ·" in here.page.locator("header").inner_text()
        assert here.page.locator("#key").is_hidden()
        assert here.complaints == []


@needs_chromium
def test_far_pictures_are_said_first(visit, labels, label_port):
    far = io.BytesIO()
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    Image.fromarray(np.stack([checks, 0 * checks, 255 - checks], axis=-1).astype(np.uint8)).save(far, "PNG")
    assert labels.predict(far.getvalue())[0].unlike_training == 1.0
    here = visit(label_port)
    here.give(far.getvalue())
    answered(here)
    told = "Unlike the training pictures: all held-out pictures are nearer to the training pictures than this one."
    assert here.page.locator("#result > :first-child").inner_text() == told
    here.give(png(3))
    here.page.get_by_text("of held-out pictures").wait_for(timeout=20_000)
    assert here.page.locator("#result > :first-child").get_attribute("id") == "verdict"


@needs_chromium
@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_errors_leave_no_answer(visit, request, kind):
    here = visit(request.getfixturevalue("label_port" if kind == "labels" else "number_port"))
    here.give(png(1))
    answered(here)
    here.give(b"plain text", name="notes.png")
    error = here.page.get_by_role("alert")
    error.wait_for(timeout=20_000)
    assert "not a picture of a known format" in error.inner_text()
    assert here.page.locator("#result").is_hidden()
    assert here.page.get_by_role("switch").is_disabled() and here.page.locator("#about").is_disabled()
    here.give(b"\0" * (LIMITS.picture_bytes + 1))
    here.page.get_by_text("more than the limit of 0.3 MB").wait_for(timeout=20_000)


def test_what_a_heat_map_cannot_be_about_is_refused(label_port):  # fault 179
    for query, told in (
        ("target=sky", "target is what a heat map is about - ask for one by explain=true, too"),
        ("explain=true&target=sku", "target is 'sku', expected one of the 12 names of the model. Did you mean 'sky'?"),
        ("explain=true&target=", "target is '', expected one of the 12 names of the model"),
    ):
        assert ask(label_port, f"/predict?{query}", png())[::2] == (422, {"error": told})


@pytest.mark.parametrize(("port", "words"), [("label_port", "threshold"), ("number_port", "interval")])
def test_the_start_and_the_documentation_fit_the_task(request, port, words):
    number = request.getfixturevalue(port)
    status, headers, page = ask(number, "/")
    assert (status, headers.get_content_type()) == (200, "text/html") and words in page
    assert "innerHTML" not in page and "<b>" not in page and "<i>" not in page
    assert "target" in ask(number, "/docs")[2]
