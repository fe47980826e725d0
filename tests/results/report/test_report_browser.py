"""The page about a run in a real browser: opens silently, sorts, tells confusions, fits a phone, has a dark mode."""

import os
import shutil
from pathlib import Path

import pytest
from report_runs import CLASSES, draw_all, predictions, write_run

from transferkit.results.report.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SHOTS = os.environ.get("TRANSFERKIT_SCREENSHOTS")  # a folder: the pages are also kept as pictures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a run with pictures, and one that compares two."""
    root = tmp_path_factory.mktemp("runs")
    run = write_run(root / "run", data=root / "data")
    draw_all(run)
    rows = [(split, path, label, CLASSES[0], "0.9", "0.2") for split, path, label, *_ in predictions(root / "data")]
    other = write_run(root / "other", data=root / "data", rows=rows, config={"lr": 0.01})
    return {"run": write_report([run]), "both": write_report([run, other], root / "both.html")}


class Visit:
    """A page that is open, and what was heard of it."""

    def __init__(self, browser, path, *, width=1200, **context):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **context)
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(Path(path).as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.context.close()

    def keep(self, name):
        if SHOTS:
            self.page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)

    def column(self, number, table="#per-class"):
        return self.page.locator(f"{table} tbody tr > :nth-child({number})").all_inner_texts()


def test_it_opens_silently_and_asks_for_nothing(browser, pages):  # fault 91
    for path in pages.values():
        with Visit(browser, path) as visit:
            assert visit.page.evaluate("document.readyState") == "complete"
            assert visit.said == []
            assert [url for url in visit.asked if not url.startswith("data:")] == [path.as_uri()]
            broken = visit.page.evaluate("[...document.images].filter((image) => !image.naturalWidth).length")
            assert broken == 0


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ("<script>document.title = 'taken'</script>", "script-src"),
        ("<p onclick=\"document.title = 'taken'\">x</p><script>document.querySelector('p[onclick]').click()</script>",
         "script-src"),
        ("<img src='http://127.0.0.1:9/x.png' id='foreign'>", "img-src"),
    ],
    ids=["script", "handler", "picture"],
)  # fmt: skip
def test_the_policy_stops_what_is_not_the_page_itself(browser, pages, tmp_path, more, rule):
    """That the page is silent must mean something: a page with more in it is not."""
    path = tmp_path / "more.html"
    path.write_text(pages["run"].read_text(encoding="utf-8").replace("</main>", f"{more}</main>"), encoding="utf-8")
    with Visit(browser, path) as visit:
        assert "resnet" in visit.page.title()
        assert any(rule in line for line in visit.said)
        assert visit.page.evaluate("document.getElementById('foreign')?.naturalWidth ?? 0") == 0


def test_a_click_or_a_key_sorts(browser, pages):
    with Visit(browser, pages["run"]) as visit:
        assert visit.column(1) == list(CLASSES)
        recall = visit.page.get_by_role("button", name="recall")
        recall.click()
        assert visit.column(3)[0].startswith("66.7")
        assert [text.split()[0][:4] for text in visit.column(3)] == ["66.7", "83.3", "n/a"]
        assert visit.page.locator("#per-class th[aria-sort]").get_attribute("aria-sort") == "ascending"
        recall.press("Enter")
        assert [text.split()[0][:4] for text in visit.column(3)] == ["83.3", "66.7", "n/a"]  # unknown stays last
        assert visit.page.locator("#per-class th[aria-sort]").get_attribute("aria-sort") == "descending"
        visit.page.locator("#per-class").get_by_role("button", name="class", exact=True).press(" ")
        assert visit.column(1) == [CLASSES[0], "$x$", "a&b"]
        assert visit.page.locator("#per-class th[aria-sort]").count() == 1


def test_a_cell_says_what_it_holds(browser, pages):
    with Visit(browser, pages["run"]) as visit:
        says, cells = visit.page.locator("#cell"), visit.page.locator("td.cell")
        idle = says.inner_text()
        cells.nth(5).hover()
        assert says.inner_text().replace("\u202f", " ") == (
            "True a&b, predicted $x$: 2 pictures, 33.3 % of the 6 that are “a&b”, 100.0 % of those called “$x$”."
        )
        visit.keep("report-hover")
        visit.page.mouse.move(5, 5)
        assert says.inner_text() == idle
        cells.nth(0).focus()
        assert says.inner_text().startswith(f"True {CLASSES[0]} and rightly predicted {CLASSES[0]}: 5 pictures, 83.3")
        visit.page.keyboard.press("ArrowRight")
        visit.page.keyboard.press("ArrowDown")
        assert says.inner_text().startswith("True a&b and rightly predicted a&b: 4 pictures")
        visit.page.keyboard.press("End")
        visit.page.keyboard.press("ArrowRight")  # stays inside
        assert says.inner_text().startswith("True a&b, predicted $x$")
        assert [cell.get_attribute("tabindex") for cell in cells.all()].count("0") == 1
        cells.nth(8).click()
        assert says.inner_text().startswith("True $x$ and rightly predicted $x$: 0 pictures, n/a of the 0")


def test_everything_is_reached_by_keyboard(browser, pages):
    with Visit(browser, pages["run"]) as visit:
        reached = []
        for _ in range(45):
            visit.page.keyboard.press("Tab")
            reached.append(visit.page.evaluate(
                "(({tagName, className, role}) => `${tagName} ${className}`.trim())(document.activeElement)"
            ))  # fmt: skip
        assert reached[0] == "A skip"
        for wanted in ("A", "BUTTON sort", "TD cell right", "SUMMARY", "BUTTON copy", "DIV box"):
            assert wanted in reached, wanted


@pytest.mark.parametrize("name", ["run", "both"])
def test_it_fits_a_phone(browser, pages, name):
    with Visit(browser, pages[name], width=400) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 400
        wide = visit.page.evaluate(
            "[...document.querySelectorAll('body *')].filter((one) => !one.closest('.box, .hidden, .skip, svg') && "
            "one.getBoundingClientRect().right > 400.5).map((one) => one.outerHTML.slice(0, 80))"
        )
        assert wide == []
        visit.keep(f"report-{name}-phone")


def test_dark_mode_has_other_colours(browser, pages):
    look = """() => [document.body, document.querySelector('svg text'), document.querySelector('td.cell.wrong')]
        .map((one) => getComputedStyle(one)).flatMap((style) => [style.backgroundColor, style.color, style.fill])"""
    seen = {}
    for scheme in ("light", "dark"):
        with Visit(browser, pages["run"], color_scheme=scheme) as visit:
            seen[scheme] = visit.page.evaluate(look)
            visit.keep(f"report-run-{scheme}")
    light, dark = seen["light"], seen["dark"]
    assert light[0] == "rgb(252, 252, 250)"
    assert dark[0] == "rgb(21, 23, 26)"
    for place in (0, 1, 5, 6):  # ground and text of the page, text of a chart, a tinted cell
        assert light[place] != dark[place]


def test_it_prints_light_and_whole(browser, pages):
    with Visit(browser, pages["run"], color_scheme="dark") as visit:
        visit.page.emulate_media(media="print")
        style = "(name) => getComputedStyle(document.querySelector(name))"
        assert visit.page.evaluate(f"({style})('body').backgroundColor") == "rgb(255, 255, 255)"
        assert visit.page.evaluate(f"({style})('nav').display") == "none"
        assert visit.page.evaluate(f"({style})('.box').overflowX") == "visible"
        if SHOTS:
            visit.page.pdf(path=str(Path(SHOTS) / "report.pdf"))
