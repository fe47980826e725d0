"""The pages of `serve` in a real browser: opened, given pictures, looked at."""

import base64
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SHOTS = os.environ.get("TRANSFERKIT_SCREENSHOTS")  # a folder: the pages are also kept as pictures

GIVE = """([name, kind, data, how]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type: kind}));
  const event = how === "paste"
    ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true})
    : new DragEvent(how, {dataTransfer: transfer, bubbles: true, cancelable: true});
  document.getElementById("stage").dispatchEvent(event);
}"""


@contextmanager
def open_browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


class Visit:
    """An open page, with everything it asked for and complained of."""

    def __init__(self, browser, port, *, width=1200, scheme="light", touch=False):
        self.base = f"http://127.0.0.1:{port}"
        self.context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, has_touch=touch, is_mobile=touch
        )
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append((request.method, request.url)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(self.base)

    def give(self, data, how="drop", *, name="picture.png", kind="image/png"):
        self.page.evaluate(GIVE, [name, kind, base64.b64encode(data).decode(), how])

    def answered(self):
        self.page.locator("#result:not(.old) #verdict").wait_for(state="visible", timeout=20_000)
        return self.page.locator("#verdict").inner_text()

    def shot(self, name):
        if SHOTS:
            self.page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)

    def has_no_sideways_scroll(self):
        return self.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
