"""The documents with measured figures, and how figures get into them."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"


def fill(page: Path, blocks: Mapping[str, str]) -> None:
    """Put each block between its marks `<!-- NAME:begin -->` and `<!-- NAME:end -->` on a page."""
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
        text, count = re.subn(
            pattern, lambda found, b=block: f"{found[1]}{b}\n{found[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            sys.exit(f"{page}: {count} blocks named {name}")
    page.write_text(text, encoding="utf-8")
