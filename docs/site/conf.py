"""How `make docs` makes the site: Sphinx with MyST and the theme Furo, from the Markdown files as they are.

The source folder is the repository's root, so that a link from one file to another is the same on the site
and in the repository. All that a page needs lies beside it: fonts are the system's, the index of the search
is a script, and nothing is loaded from a network.
"""

project = "sdzero"
author = "the sdzero developers"
html_title = "sdzero"

START = "docs/README"
"""The page that the site begins with; the navigation hangs on it."""

NAVIGATION: dict[str, dict[str, str]] = {
    "Begin": {
        "README": "Quick start",
        "docs/command": "The command",
        "docs/data": "Your own data",
        "docs/verifiers": "Your own verifier",
        "docs/python": "From Python",
        "docs/troubleshooting": "Troubleshooting",
    },
    "Method": {
        "docs/method": "Equations against code",
        "docs/label-free": "Without answers",
        "docs/options": "Options of later papers",
        "docs/thinking": "Models that think",
        "docs/recipes": "Every setting",
    },
    "On GPUs": {
        "docs/gpu-recipes": "GPU recipes",
        "docs/plan": "A plan before a run",
        "docs/distributed": "Several GPUs and machines",
        "docs/rollouts": "Sampling, and vLLM",
        "docs/lora": "LoRA and 4 bits",
        "docs/speed": "Speed and memory",
    },
    "On your premises": {
        "docs/on-premises": "The guide",
        "docs/air-gap": "Air gap",
        "docs/threat-model": "Threat model",
        "docs/sandbox": "The sandbox",
        "docs/energy": "Energy and cost",
        "docs/provenance": "Provenance",
    },
    "Runs and models": {
        "docs/runs": "A run's folder",
        "docs/report": "The report",
        "docs/export": "Export",
    },
    "Results": {
        "docs/results": "The demo's figures",
        "docs/comparison": "Against other methods",
        "docs/families": "Families of questions",
        "docs/benchmarks": "The paper's benchmarks",
        "src/sdzero/tiny/README": "The embedded model",
    },
    "The project": {
        "CONTRIBUTING": "Contributing",
        "CHANGELOG": "Changelog",
    },
}
"""Caption -> page (from the root, without .md) -> its name in the navigation. Every page stands here once."""

PAGES = [START, *(page for pages in NAVIGATION.values() for page in pages)]

extensions = ["myst_parser"]
root_doc = START
source_suffix = {".md": "markdown"}
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "src/sdzero/tiny/README.md"]
exclude_patterns = [".*", "build", "dist", "runs", "site", "tests"]
myst_heading_anchors = 4
highlight_language = "text"
nitpicky = True

html_theme = "furo"
html_extra_path = ["root"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_use_index = False
# The lines under a search result are fetched from the pages, which browsers refuse to files on a disk.
html_show_search_summary = False


def navigation() -> str:
    """The tables of contents of the start page, in MyST."""
    parts = []
    for caption, pages in NAVIGATION.items():
        entries = "\n".join(f"{name} </{page}>" for page, name in pages.items())
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n")
    return "\n" + "\n".join(parts)


def _add_navigation(app: object, page: str, source: list[str]) -> None:
    # Not in the file itself: who reads it elsewhere would see directives.
    if page == START:
        source[0] += navigation()


def setup(app: "object") -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _add_navigation)  # type: ignore[attr-defined]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
