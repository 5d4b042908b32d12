"""The page in a real browser, opened from disk with the network cut. Needs playwright and Chromium.

Run by `make test-browser`. Pictures are compared with those in `screenshots`; after a wanted change

    SDZERO_KEEP_SCREENSHOTS=1 python -m pytest -m browser tests/report

makes them anew.
"""

import json
import os
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report.report_runs import HOSTILE, token_row, write_run
from sdzero.report.page import write_report

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")

SCREENSHOTS = Path(__file__).parent / "screenshots"
WIDTHS = (390, 768, 1280)
MANY = 2_000
LONG = 150
"""Tokens of each of the many responses."""
SQUARE, GREYS = 60, 10
"""How looks are compared: the mean greys of squares of so many pixels, and how much they may differ."""
FIRST_PAINT_SECONDS, INTERACTION_SECONDS = 2.0, 0.1
TIMES = 5


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        # The sandbox of the browser itself does not start for root in a container.
        own = started.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--font-render-hinting=none"]
        )
        yield own
        own.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokens = [
        token_row("q1", ["a", " b", "\n", "c"], [0.1, 2.0, 0.0, 0.5]),
        token_row("q1", ["right", "!"], [0.2, 0.1], outcome="correct"),
        token_row("q2", ["d", HOSTILE], [3.0, 4.0], text=HOSTILE),
        token_row("q3", ["cut"], [1.0], outcome="truncated"),
    ]
    folder = tmp_path_factory.mktemp("page")
    write_report([write_run(folder / "run", tokens)], folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    tokens = []
    for number in range(MANY):
        row = token_row(
            f"question-{number // 2}",
            [f" w{(number * 7 + place * place) % 997}" for place in range(LONG)],
            [((number * 31 + place * 17) % 211) / 100 for place in range(LONG)],
            outcome="correct" if number % 2 else "wrong",
        )
        for role, salt in (("student", 5), ("reviser", 11)):
            firsts = [0.5 + ((number + place * salt) % 400) / 1000 for place in range(LONG)]
            row[role] = {
                "ids": [
                    [1 + (number + place + one * salt) % 900 for one in range(5)] for place in range(LONG)
                ],
                "probabilities": [[p, *((1 - p) / 2**one for one in range(1, 5))] for p in firsts],
                "target": firsts,
            }
        tokens.append(row)
    run = write_run(folder / "run", tokens)
    words = {str(number): f" word{number}" for number in range(1, 901)}
    (run / "report/vocabulary.json").write_text(json.dumps(words))
    write_report([run], folder / "page.html")
    return folder / "page.html"


class Opened:
    """A page that was opened, with all that it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, **keywords: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **keywords)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.url = file.as_uri()
        self.page.goto(self.url)
        self.page.wait_for_selector(".token")

    def close(self) -> None:
        """Nothing was asked for but the file itself, and nothing went wrong."""
        self.context.close()
        assert set(self.requests) == {self.url}
        assert not self.complaints


def choose(page: Any, question: str) -> None:
    """Click on the first response to a question, and wait until it is there."""
    page.locator("#responses button", has_text=question).first.click()
    page.locator(".response h3", has_text=question).first.wait_for()


@pytest.fixture
def opened(browser: Any, small: Path) -> Iterator[Opened]:
    own = Opened(browser, small)
    yield own
    own.close()


def test_the_page_opens_without_a_network_and_what_a_model_wrote_does_not_run(opened: Opened) -> None:
    assert opened.page.evaluate("window.owned") is None
    assert opened.page.locator(".response").first.locator("h3").inner_text() == "q2: wrong"
    assert HOSTILE in opened.page.locator(".question").first.text_content()
    assert opened.page.locator("img").count() == 0


def test_pointing_at_a_token_shows_what_both_would_write(opened: Opened) -> None:
    page = opened.page
    choose(page, "q1")
    token = page.locator(".response").first.locator(".token").nth(1)
    token.hover()
    shown = page.locator("#detail").inner_text()
    assert "2.000 nats" in shown
    assert "student 90.0%, Reviser 3.0%" in shown
    rows = page.locator("#detail tbody tr").all_inner_texts()
    assert [row.split() for row in rows] == [
        ["one", "90.0%"],
        ["two", "10.0%"],
        ["two", "97.0%"],
        ["one", "3.0%"],
    ]
    assert "Wait, start over." in page.locator(".phrase").first.inner_text()


def test_a_wrong_response_stands_beside_a_right_one(opened: Opened) -> None:
    choose(opened.page, "q1")
    assert opened.page.locator(".response h3").all_inner_texts() == ["q1: wrong", "q1: correct"]


def test_the_keyboard_reaches_every_token_through_one_stop(opened: Opened) -> None:
    page = opened.page
    choose(page, "q1")
    tokens = page.locator(".response").first.locator(".token")
    assert tokens.evaluate_all("all => all.filter((one) => one.tabIndex === 0).length") == 1
    page.locator(".response").first.locator(".token[tabindex='0']").focus()
    assert "Token 2 of 4" in page.locator("#detail").inner_text(), "it begins at the most divergent one"
    for key, place in (
        ("ArrowRight", 3),
        ("End", 4),
        ("ArrowRight", 4),
        ("Home", 1),
        ("ArrowLeft", 1),
        ("n", 2),
    ):
        page.keyboard.press(key)
        assert f"Token {place} of 4" in page.locator("#detail").inner_text(), key
        assert page.evaluate("Number(document.activeElement.dataset.place)") == place - 1
    assert tokens.evaluate_all("all => all.filter((one) => one.tabIndex === 0).length") == 1


def test_filters_choose_by_verdict_and_by_words(opened: Opened) -> None:
    page = opened.page
    assert page.locator("#found").inner_text() == "4 of 4 responses"
    page.locator("#filter-verdict").select_option("truncated")
    assert page.locator("#responses button").all_inner_texts()[0].startswith("q3")
    assert page.locator("#found").inner_text() == "1 of 4 responses"
    page.locator("#filter-verdict").select_option("")
    page.locator("#filter-text").fill("Q1")
    assert page.locator("#found").inner_text() == "2 of 4 responses"


def test_shade_grows_with_the_divergence(opened: Opened) -> None:
    choose(opened.page, "q1")
    shades = (
        opened.page.locator(".response")
        .first.locator(".token")
        .evaluate_all("all => all.map((one) => Number(one.style.getPropertyValue('--shade')))")
    )
    assert shades[2] == 0 < shades[0] < shades[3] < shades[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, small: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    own = Opened(browser, small, color_scheme=scheme)
    own.page.locator(".token").first.hover()
    found = axe.Axe().run(own.page).response["violations"]
    own.close()
    serious = [
        (one["id"], [node["html"][:150] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not serious


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_looks_as_it_did(browser: Any, small: Path, width: int, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    own = Opened(browser, small, width)
    assert own.page.evaluate("document.documentElement.scrollWidth") <= width, "nothing hangs over"
    kept, taken = SCREENSHOTS / f"page-{width}.png", tmp_path / "taken.png"
    # The provenance names the folder of this very test.
    own.page.evaluate("document.querySelector('[aria-labelledby=provenance]').remove()")
    own.page.screenshot(path=str(taken), full_page=True)
    own.close()
    if os.environ.get("SDZERO_KEEP_SCREENSHOTS"):
        SCREENSHOTS.mkdir(exist_ok=True)
        image.open(taken).convert("P", palette=image.Palette.ADAPTIVE, colors=64).save(kept, optimize=True)
    before, now = image.open(kept).convert("L"), image.open(taken).convert("L")
    # Fonts differ a little from machine to machine; a part that is missing or moved changes a square's mean.
    assert abs(before.height - now.height) <= 0.03 * before.height
    size = (width // SQUARE, before.height // SQUARE)
    means = [one.resize(size, image.Resampling.BOX).tobytes() for one in (before, now)]
    worst = max(abs(one - other) for one, other in zip(*means, strict=True))
    assert worst <= GREYS, f"a square of {SQUARE} pixels differs by {worst} greys of 255 on average"


def test_two_thousand_responses_are_small_and_quick(browser: Any, large: Path, record_property: Any) -> None:
    size = large.stat().st_size
    assert size < 20e6
    paints, clicks, hovers = [], [], []
    for _ in range(TIMES):
        own = Opened(browser, large)
        paints.append(
            own.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1e3
        )
        clicks += own.page.evaluate(TIME_CLICKS)
        hovers += own.page.evaluate(TIME_HOVERS)
        own.page.locator("#page-on").click()
        assert own.page.locator("#page-number").inner_text() == f"page 2 of {MANY // 50}"
        assert own.page.locator(".token").count() == 2 * LONG, "only what was chosen is drawn"
        own.close()
    found = {
        "bytes": size,
        "first_paint_seconds": statistics.median(paints),
        "response_seconds": statistics.median(clicks) / 1e3,
        "token_seconds": statistics.median(hovers) / 1e3,
    }
    print(json.dumps(found))
    record_property("found", found)
    assert found["first_paint_seconds"] < FIRST_PAINT_SECONDS
    assert found["response_seconds"] < INTERACTION_SECONDS
    assert found["token_seconds"] < INTERACTION_SECONDS


UNTIL_DRAWN = "await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
TIME_CLICKS = f"""async () => {{
  const times = [];
  for (const button of [...document.querySelectorAll('#responses button')].slice(1, 6)) {{
    const before = document.querySelector('.response'), start = performance.now();
    button.click();
    while (document.querySelector('.response') === before) await new Promise((done) => setTimeout(done));
    {UNTIL_DRAWN}
    times.push(performance.now() - start);
  }}
  return times;
}}"""
TIME_HOVERS = f"""async () => {{
  const times = [];
  for (const token of [...document.querySelectorAll('.token')].slice(10, 15)) {{
    const start = performance.now();
    token.dispatchEvent(new MouseEvent('mouseover', {{ bubbles: true }}));
    {UNTIL_DRAWN}
    times.push(performance.now() - start);
  }}
  return times;
}}"""
