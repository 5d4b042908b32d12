"""The page without a browser: what it says, that it loads nothing, that nothing in it can run."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from report.report_runs import HOSTILE, token_row, write, write_run
from sdzero.errors import UserError
from sdzero.report.page import page, write_report
from sdzero.report.source import read_sources
from support import environment

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Parsed(HTMLParser):
    """Every start tag with its attributes, the texts of scripts, styles and of all else."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.inside:
            self.inside[tag].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.inside:
            self.inside[self.open[-1]][-1] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    tokens = [
        token_row("q1", ["a", " b", "\n"], [0.1, 2.0, 0.0]),
        token_row("q1", ["c"], [0.2], outcome="correct"),
        token_row("q2", ["d", HOSTILE], [3.0, 4.0], text=HOSTILE),
    ]
    return write_run(tmp_path / "demo", tokens)


def made(*folders: Path, plan: Path | None = None) -> Parsed:
    parsed = Parsed(page(read_sources(folders, plan)))
    parsed.close()
    assert not parsed.open, "every element is closed"
    return parsed


def test_nothing_is_loaded_from_anywhere(run: Path) -> None:
    parsed = made(run)
    loading = {"src", "srcset", "action", "poster", "data", "background", "formaction", "xlink:href"}
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        assert not loading & set(attributes), (tag, attributes)
        assert not [key for key in attributes if key.startswith("on") or key == "style"], attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?:|//[a-z]", "".join(parsed.inside["style"]))
    assert not re.search(r"https?:|import\(|fetch\(|XMLHttp|eval\(|innerHTML", parsed.inside["script"][1])


def test_the_policy_names_the_one_style_and_the_one_script(run: Path) -> None:
    parsed = made(run)
    policy = next(own["content"] for tag, own in parsed.tags if tag == "meta" and "http-equiv" in own)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy

    def sha256(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    assert f"script-src 'sha256-{sha256(parsed.inside['script'][1])}'" in policy
    assert f"style-src 'sha256-{sha256(parsed.inside['style'][0])}'" in policy


def test_what_a_model_wrote_cannot_leave_the_data_block(run: Path) -> None:
    parsed = made(run)
    assert len(parsed.inside["script"]) == 2
    block = parsed.inside["script"][0]
    assert not set("<>&\u2028\u2029") & set(block)
    data = json.loads(block)
    assert data["responses"][0]["x"] == HOSTILE
    assert HOSTILE in data["vocabulary"]


def test_the_data_holds_every_response_the_one_with_most_to_change_first(run: Path) -> None:
    data = json.loads(made(run).inside["script"][0])
    assert [(one["q"], one["v"], one["s"]) for one in data["responses"]] == [
        ("q2", "wrong", 7.0),
        ("q1", "wrong", 2.1),
        ("q1", "correct", 0.2),
    ]
    packed = json.loads(zlib.decompress(base64.b64decode(data["responses"][1]["z"])))
    words = data["vocabulary"]
    assert [words[number] for number in packed["t"]] == ["a", " b", "\n"]
    assert packed["d"] == [100, 2000, 0]
    first = packed["r"]["a"][0]
    assert [(words[first[at]], first[at + 1]) for at in (0, 2)] == [("two", 9700), ("one", 300)]
    assert data["phrases"][data["responses"][2]["p"]].startswith("Let me rephrase")


def test_the_verdict_follows_the_interval(run: Path, tmp_path: Path) -> None:
    text = made(run).text
    assert "SD-Zero is above base (+75.0% [+60.0%, +90.0%])" in text
    assert "is not shown to differ from SRT" in text
    results = json.loads((run / "results.json").read_text())
    results["differences"]["srt"]["interval"] = [-0.3, -0.1]
    write(run / "results.json", results)
    assert "and is below SRT" in made(run).text


def test_tables_have_captions_and_heads_and_images_have_words(run: Path) -> None:
    parsed = made(run)
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("table") == tags.count("caption") > 5
    assert all(own.get("scope") in ("col", "row") for tag, own in parsed.tags if tag == "th")
    images = [own for tag, own in parsed.tags if tag == "svg"]
    assert len(images) >= 7
    assert all(own["role"] == "img" and own["aria-label"] for own in images)
    assert tags.count("figure") == tags.count("details") - 1, "each has its numbers, and the recipe is folded"


def test_energy_that_was_not_measured_and_costs_without_prices_are_told(run: Path) -> None:
    text = made(run).text
    assert "Energy: not measured. Cost: no prices were given." in text
    assert "The teacher is abcd; syncs with the student: 1. After steps 5." in text
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe + "cost: {price_per_device_hour: 600}\n")
    assert "Cost: 1 (in the currency" in made(run).text


def test_a_plan_stands_beside_what_was_spent(run: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    write(
        plan,
        {"stages": [{"name": "collect", "responses": 20, "seconds": 1.5}, {"name": "srt", "seconds": 9.0}]},
    )
    text = made(run, plan=plan).text
    assert "collect responses 20 10 0.50" in text
    assert "collect seconds 1.5 3.0 2.00" in text
    assert "srt seconds 9.0" in text


def test_several_runs_stand_side_by_side(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", better=False)
    parsed = made(run, other)
    assert "In demo SD-Zero is above base" in parsed.text
    assert "In other SD-Zero is not shown to differ from base" in parsed.text
    assert "Scores of the runs side by side" in parsed.text
    assert f"Tokens of {other} were not measured" in parsed.text


def test_seeds_are_taken_together(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"three/seed-{seed}")
    text = made(tmp_path / "three").text
    # 20 questions were solved by half, 20 not at all: 0.75 more on average over the 40.
    assert re.search(r"Over 3 seeds SD-Zero is above base \(\+75\.0% \[\+6\d", text)
    assert "means over 3 seeds" in text


def test_committed_comparisons_and_studies_have_their_tables(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "compared/seed-0").parent
    results = Path(__file__).parents[2] / "benchmarks/results"
    (folder / "compare.json").write_text((results / "compare-walks.json").read_text())
    (folder / "study-loss.json").write_text((results / "study-loss-walks.json").read_text())
    text = made(folder).text
    assert "Comparison on walks: 5 seeds" in text
    assert "Study loss on walks: Does SRT need both of its losses?" in text
    assert "generation loss only" in text
    assert "-40.4% [-43.8%, -37.0%]" in text


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    write(
        folder / "manifest.json",
        {"schema": 1, "recipe_sha256": "1", "created": "", "versions": {}, "seed": 0},
    )
    text = made(folder).text
    assert "nothing has been evaluated yet" in text
    assert "Nothing has been trained yet" in text


def test_a_training_that_diverged_has_a_page(run: Path) -> None:
    with (run / "distill/log.jsonl").open("a") as log:
        log.write('{"part": 0, "step": 11, "reward": NaN, "tokens": Infinity, "teacher_syncs": 40,')
        log.write(' "entropy": "nan", "divergence_r0": "inf"}\n')  # as a run writes what is not finite
        log.writelines(f'{{"part": 0, "step": {12 + n}, "teacher_syncs": {41 + n}}}\n' for n in range(30))
    parsed = made(run)
    label = next(own["aria-label"] for tag, own in parsed.tags if tag == "svg")
    assert label is not None
    assert label.endswith("demo: from 5% to 50%")
    assert "5, 11, 12" in parsed.text
    assert "and 12 more" in parsed.text


def test_folders_that_are_no_runs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run's folder"):
        read_sources([tmp_path])
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([run], run / "manifest.json" / "report.html")


def test_the_same_run_makes_the_same_page(run: Path) -> None:
    assert page(read_sources([run])) == page(read_sources([run]))


def test_the_page_is_made_without_torch(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sdzero.report.page import write_report;"
        f"write_report([Path({str(run)!r})], Path({str(tmp_path / 'page.html')!r}));"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'transformers')))"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").stat().st_size > 10_000
