"""The site that `make docs` makes: whole, strict, and nothing in it loads from a network.

What builds it needs the extra `docs`; the search in a browser also playwright and Chromium (`browser`).
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "docs/site/conf.py"
LOADS = {
    ("audio", "src"),
    ("embed", "src"),
    ("form", "action"),
    ("iframe", "src"),
    ("img", "src"),
    ("img", "srcset"),
    ("input", "src"),
    ("link", "href"),
    ("object", "data"),
    ("script", "src"),
    ("source", "src"),
    ("source", "srcset"),
    ("video", "poster"),
    ("video", "src"),
}
"""(element, attribute): what a browser loads by itself, or sends to. Links are loaded by a reader's click."""
CSS_LOADS = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")


class Page(HTMLParser):
    """What a page loads, where it links to, and its anchors."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self._in_style = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        for name, value in attrs:
            if value is None:
                continue
            if (tag, name) in LOADS:
                self.loads.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)
            elif name == "id":
                self.anchors.add(value)
            elif name == "style":
                self.loads += css_loads(value)

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.loads += css_loads(data)


def css_loads(text: str) -> list[str]:
    return [url or imported for url, imported in CSS_LOADS.findall(text)]


def conf() -> Any:
    spec = importlib.util.spec_from_file_location("site_conf", CONF)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation_once() -> None:
    found = [path for pattern in conf().include_patterns for path in ROOT.glob(pattern)]
    assert len(found) > 30
    pages = sorted(str(path.relative_to(ROOT).with_suffix("")) for path in found)
    assert sorted(conf().PAGES) == pages


def test_loads_are_found_in_html_and_css(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(
        '<link href="a.css"><script src="//b/c.js"></script><p id="x" style="background: url(d.png)">'
        '<style>@import "e.css"; p { background: url("f.png") }</style><a href="https://g">h</a>'
    )
    page = Page(file)
    assert page.loads == ["a.css", "//b/c.js", "d.png", "e.css", "f.png"]
    assert (page.links, page.anchors) == (["https://g"], {"x"})


# ---- built ----


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(needed, reason="needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    options = ["-q", "-W", "--keep-going", "-b", "html", "-c", CONF.parent, "-d", folder / "doctrees"]
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ROOT, folder / "site"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    # Strict: a link to a page, file or anchor that is not there fails it.
    assert made.returncode == 0, made.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in sorted(site.rglob("*.html"))}


def test_the_site_has_all_pages(site: Path, pages: dict[Path, Page]) -> None:
    names = {str(file.relative_to(site)) for file in pages}
    assert {f"{page}.html" for page in conf().PAGES} <= names
    assert {"index.html", "search.html"} <= names


def test_nothing_is_loaded_from_a_network(site: Path, pages: dict[Path, Page]) -> None:
    loads = [(file, url) for file, page in pages.items() for url in page.loads]
    sheets = sorted(site.rglob("*.css"))
    assert sheets
    loads += [(file, url) for file in sheets for url in css_loads(file.read_text(encoding="utf-8"))]
    assert len(loads) > len(pages)
    for file, url in loads:
        parts = urlsplit(url)
        if parts.scheme == "data":
            continue
        assert not parts.scheme, f"{file}: {url}"
        assert not parts.netloc, f"{file}: {url}"
        if parts.path:
            assert (file.parent / unquote(parts.path)).is_file(), f"{file}: {url}"


def test_links_and_anchors_lead_somewhere(pages: dict[Path, Page]) -> None:
    within = [
        (file, parts)
        for file, page in pages.items()
        for parts in map(urlsplit, page.links)
        if not parts.scheme and not parts.netloc
    ]
    assert len(within) > 1000
    for file, parts in within:
        target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
        assert target.is_file(), f"{file}: {parts.geturl()}"
        if parts.fragment and target in pages:
            assert unquote(parts.fragment) in pages[target].anchors, f"{file}: {parts.geturl()}"


@pytest.mark.browser
def test_the_search_works_from_disk_without_a_network(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        # The sandbox of the browser itself does not start for root in a container.
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        context = browser.new_context()
        context.set_offline(True)
        page = context.new_page()
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((site / "index.html").as_uri())
        page.wait_for_url("**/docs/README.html")
        page.locator("input.sidebar-search").fill("bubblewrap")
        page.locator("input.sidebar-search").press("Enter")
        page.wait_for_url("**/search.html?**")
        results = page.locator("#search-results li a")
        results.first.wait_for()
        titles = results.all_inner_texts()
        sandbox = next(place for place, title in enumerate(titles) if "sandbox" in title.lower())
        results.nth(sandbox).click()
        page.wait_for_url("**/docs/sandbox.html**")
        assert "bubblewrap" in page.locator("article").inner_text()
        # Equations are text: they show with the system's fonts.
        page.goto((site / "docs/method.html").as_uri())
        assert "L_SRT        = L_revision + L_generation" in page.locator("article").inner_text()
        browser.close()
    assert asked
    assert {urlsplit(url).scheme for url in asked} <= {"file", "data"}
    assert complaints == []
