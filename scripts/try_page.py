"""Uses the server's page in headless Chromium, and takes screenshots.

It asks, follows a citation, uploads, syncs and removes, by keyboard too and on a small screen, and
looks for faults of accessibility by axe-core. Chromium is the system's (apt-get install chromium).

    pip install playwright axe-playwright-python
    gem-rag serve --engine transformers --index docs=INDEX --port 8000
    python scripts/try_page.py http://127.0.0.1:8000 "QUESTION" --out docs

The question must be one that the index answers with a citation.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

HOSTILE = (
    "# Rain\n\nRain falls <script>alert(1)</script><img src=x onerror=alert(2)> from clouds.\n"
)
SERIOUS = ("serious", "critical")
# The lengths that the newest answer comes to have.
_WATCH_LENGTHS = """() => {
  const note = () => window.lengths.add(
    document.querySelector("article:last-of-type .answer")?.textContent.length);
  window.lengths = new Set();
  new MutationObserver(note).observe(
    document.getElementById("turns"), {childList: true, subtree: true, characterData: true});
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("question")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 760}, color_scheme="light")
        watched = watch(page, options.url)
        page.goto(options.url)
        ask(page, options.question)
        follow_citation(page)
        page.screenshot(path=options.out / "page-light.png")
        check(page, "light")
        page.get_by_role("button", name="Dark").click()
        check(page, "dark")
        page.screenshot(path=options.out / "page-dark.png")
        upload(page)
        ask_by_keyboard(page)
        stop(page, options.question)
        small(page, options)
        browser.close()
    assert not watched, watched
    print("no dialog, no error in the console, no request to another host")


def watch(page: Page, url: str) -> list[str]:
    """What must not happen, as far as it has."""
    found: list[str] = []
    page.on("dialog", lambda dialog: (found.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on(
        "console", lambda said: found.append(f"console: {said.text}") if said.type == "error" else 0
    )
    page.on(
        "request",
        lambda sent: None if sent.url.startswith((url, "data:")) else found.append(sent.url),
    )
    return found


def ask(page: Page, question: str) -> None:
    """Ask, and see the answer grow."""
    page.get_by_label("Your question").fill(question)
    page.evaluate(_WATCH_LENGTHS)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("article:last-of-type .cite").first).to_be_visible(timeout=60_000)
    grown = page.evaluate("[...window.lengths].filter(Boolean).length")
    assert grown > 2, "the answer came in one piece"
    print(
        f"the answer grew in {grown} steps:",
        page.locator("article:last-of-type .answer").inner_text(),
    )
    expect(page.locator("article:last-of-type .quiet").first).to_contain_text("generate")


def follow_citation(page: Page) -> None:
    page.locator("article:last-of-type .cite").first.click()
    expect(page.locator("#viewer-text mark")).to_be_visible()
    quote = " ".join(page.locator("#viewer-text mark").inner_text().split())
    assert quote in page.locator("article:last-of-type .answer").inner_text()
    place = page.locator("#viewer-place").inner_text()
    assert "line" in place or "page" in place
    print(f"the citation opens {page.locator('#viewer-title').inner_text()}, {place}: {quote}")


def check(page: Page, name: str) -> None:
    """Raise AssertionError for a serious fault that axe-core finds."""
    violations: list[Any] = Axe().run(page).response["violations"]
    bad = [f"{one['id']}: {one['help']}" for one in violations if one["impact"] in SERIOUS]
    found = ", ".join(f"{one['id']} ({one['impact']})" for one in violations) or "no findings"
    print(f"axe-core, {name}: {found}")
    assert not bad, [*bad, *(node["html"] for one in violations for node in one["nodes"])]


def upload(page: Page) -> None:
    """Add a file that would run scripts if it could, look at it, sync, and remove it."""
    page.get_by_role("button", name="Documents").click()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rain.md"
        file.write_text(HOSTILE)
        page.get_by_label("Add files").set_input_files(file)
        expect(page.locator("#report")).to_contain_text("1 added", timeout=60_000)
    check(page, "documents")
    page.get_by_role("button", name="Sync with the files").click()
    expect(page.locator("#report")).to_contain_text("0 added", timeout=60_000)
    page.locator("#sources .name", has_text="rain.md").click()
    expect(page.locator("#viewer-text")).to_contain_text("<script>alert(1)</script>")
    page.get_by_role("button", name="Documents").click()
    page.get_by_role("button", name="Remove", exact=False).filter(has_text="Remove").last.wait_for()
    page.locator("#sources li", has_text="rain.md").get_by_role("button", name="Remove").click()
    expect(page.locator("#report")).to_contain_text("removed 1")
    page.keyboard.press("Escape")
    print("a hostile file was uploaded, shown as text, synced and removed")


def ask_by_keyboard(page: Page) -> None:
    page.keyboard.press("Escape")  # closes the document
    expect(page.locator("#viewer")).to_be_hidden()
    page.locator("h1").click()
    page.keyboard.press("/")
    page.keyboard.type("What is a tuple?")
    page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("#turns")).to_have_attribute("aria-busy", "false", timeout=60_000)
    print("asked by keyboard alone")


def stop(page: Page, question: str) -> None:
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.locator("article:last-of-type")).to_contain_text("stopped")
    print("stopped an answer by Escape")


def small(page: Page, options: argparse.Namespace) -> None:
    page.set_viewport_size({"width": 380, "height": 720})
    page.reload()
    ask(page, options.question)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 380, f"the page is {wide} pixels wide"
    check(page, "small")
    page.screenshot(path=options.out / "page-small.png")
    follow_citation(page)


if __name__ == "__main__":
    main()
