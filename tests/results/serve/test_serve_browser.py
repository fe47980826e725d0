"""The page in a real browser: what is dropped on it, what it shows, what it may not do."""

import re

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("uvicorn", reason="the serve extra is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from live_browser import CHROMIUM, Visit, open_browser
from live_server import CLASSES, LIMITS, FakeNeighbours, make_run, png, serving

from transferkit.results.predict.predictor import load
from transferkit.results.serve.answering import Answerer

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return load(make_run(tmp_path_factory.mktemp("runs") / "shapes-7"))


@pytest.fixture(scope="module")
def port(predictor, tmp_path_factory):
    near = tmp_path_factory.mktemp("train") / "near.png"
    near.write_bytes(png(99, (64, 64)))
    answerer = Answerer(
        predictor, name="shapes-7", batch_size=8, wait_s=0.005, threads=2, count=2, neighbours=FakeNeighbours(str(near))
    )
    with serving(answerer) as number:
        yield number


@pytest.fixture(scope="module")
def browser():
    with open_browser() as chromium:
        yield chromium


@pytest.fixture
def visit(browser, port):
    opened = []

    def open_page(**options):
        opened.append(Visit(browser, port, **options))
        return opened[-1]

    yield open_page
    for each in opened:
        each.context.close()


@pytest.fixture(scope="module")
def answered(browser, port):
    """A page with an answer, for tests that only look at it."""
    here = Visit(browser, port)
    here.give(png(1))
    here.answered()
    yield here
    here.context.close()


@pytest.mark.parametrize(
    ("width", "scheme"), [pytest.param(1200, "light", marks=pytest.mark.slow), (1200, "dark"), (400, "light")]
)
def test_a_dropped_picture_is_answered(visit, predictor, width, scheme):
    here = visit(width=width, scheme=scheme)
    page = here.page
    here.shot(f"empty-{width}-{scheme}")
    here.give(png(3, (320, 200)))
    (expected,) = predictor.predict(png(3, (320, 200)))
    assert here.answered() == expected.label
    bars = page.locator("#bars li")
    assert bars.count() == 3
    assert [bar.locator("span").first.inner_text() for bar in bars.all()] == [label for label, _ in expected.top]
    widths = [float(re.search(r"[\d.]+", fill.get_attribute("style"))[0]) for fill in page.locator(".fill").all()]
    assert widths == pytest.approx([100 * share for _, share in expected.top], abs=0.01)
    assert page.locator("#preview").evaluate("image => image.naturalWidth") == 320
    assert "95 % level" in page.locator("#set").inner_text()
    near = page.locator("#near img")
    assert near.count() == 1  # of the other the file is gone
    assert near.evaluate("image => image.naturalWidth") > 0
    assert near.get_attribute("alt") == f"Training picture of class {CLASSES[2]}"
    here.shot(f"answer-{width}-{scheme}")
    assert not page.locator("#heat").is_visible()
    page.get_by_role("switch", name="Heat map").check()
    assert page.locator("#heat").is_visible()
    assert page.locator("#heat").evaluate("image => image.naturalWidth") == 448
    assert not page.locator("#preview").is_visible()
    assert expected.label in page.locator("#legend").inner_text()
    here.shot(f"heat-{width}-{scheme}")
    assert here.has_no_sideways_scroll()
    assert here.complaints == []
    assert {url.partition("?")[0] for _, url in here.requests if not url.startswith(("data:", "blob:"))} == {
        f"{here.base}/",
        f"{here.base}/predict",
    }
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (scheme == "dark")


def test_a_picture_is_pasted_or_chosen_and_the_newest_counts(visit, predictor):
    here = visit()
    here.give(png(1), "paste")
    assert here.answered() == predictor.predict(png(1))[0].label
    for seed in (4, 5, 6):
        here.page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": png(seed)})
    (expected,) = predictor.predict(png(6))
    share = f"{100 * expected.probability:.1f} % sure."
    here.page.get_by_text(share).wait_for(timeout=20_000)
    assert here.answered() == expected.label
    assert here.complaints == []


def test_a_phone_may_take_a_photo(visit, predictor):
    here = visit(width=400, touch=True)
    assert here.page.get_by_text("Take a photo").is_visible()
    assert here.page.locator("#shot").get_attribute("capture") == "environment"
    here.page.set_input_files("#shot", {"name": "x.jpg", "mimeType": "image/jpeg", "buffer": png(7, kind="JPEG")})
    assert here.answered() == predictor.predict(png(7, kind="JPEG"))[0].label
    assert here.has_no_sideways_scroll()
    assert not visit().page.get_by_text("Take a photo").is_visible()


def test_class_names_are_text(answered):
    assert CLASSES[2] in answered.page.locator("#bars").inner_text()
    assert answered.page.locator("#result b").count() == 0
    assert CLASSES[2] in answered.page.locator("#near").inner_text()


def test_what_cannot_be_answered_is_told(visit):
    here = visit()
    here.give(png(1))
    here.answered()
    here.give(b"plain text", name="notes.png")
    error = here.page.get_by_role("alert")
    error.wait_for(timeout=20_000)
    assert "not a picture of a known format" in error.inner_text()
    assert not here.page.locator("#result").is_visible()  # no answer of an earlier picture beside it
    assert here.page.get_by_role("switch").is_disabled()
    here.shot("error")
    sent = len(here.requests)
    here.give(b"\0" * (LIMITS.picture_bytes + 1))
    here.page.get_by_text("more than the limit of 0.3 MB").wait_for(timeout=20_000)
    assert len(here.requests) == sent  # nothing was sent in vain
    here.give(png(1))
    here.answered()
    assert not error.is_visible()


def test_everything_has_a_name(answered):
    page = answered.page
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("h1").count() == 1
    for image in page.locator("img:visible").all():
        assert image.get_attribute("alt")
    for control in page.locator("input").all():
        assert control.evaluate("input => input.labels.length === 1 && input.labels[0].textContent.length > 0")


def test_the_keyboard_reaches_everything(answered):
    reached = []
    for _ in range(3):
        answered.page.keyboard.press("Tab")
        reached.append(answered.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert reached == ["API", "file", "toggle"]  # taking a photo is for devices with a camera at hand
    answered.page.keyboard.press("Space")
    assert answered.page.locator("#heat").is_visible()


@pytest.mark.parametrize(("width", "scheme"), [pytest.param(1200, "light", marks=pytest.mark.slow), (400, "dark")])
def test_the_documentation_needs_no_network(visit, width, scheme):
    here = visit(width=width, scheme=scheme)
    here.page.get_by_role("link", name="API").click()
    here.page.get_by_role("heading", name="POST /predict").wait_for(timeout=20_000)
    here.shot(f"docs-{width}-{scheme}")
    assert here.has_no_sideways_scroll()
    assert {url for _, url in here.requests if not url.startswith("data:")} == {f"{here.base}/", f"{here.base}/docs"}
    assert here.complaints == []
