"""docs/notebook.ipynb is whole, is kept without outputs, and does what it says when it is run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs/notebook.ipynb"
LAST = (
    "\nimport json\nprint(json.dumps({name: found['evaluation']['avg'] for name, found in scores.items()}))"
)
"""Run behind the last cell: the scores, for the test to read."""


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_has_the_form_of_a_notebook() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all({"cell_type", "id", "metadata", "source"} <= set(cell) for cell in notebook["cells"])
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert len(cells("code")) + len(cells("markdown")) == len(ids)


def test_it_is_kept_without_outputs() -> None:
    assert [cell["id"] for cell in cells("code") if cell["outputs"] or cell["execution_count"]] == []


def test_its_code_compiles_and_imports_what_there_is() -> None:
    code = ["".join(cell["source"]) for cell in cells("code")]
    for number, cell in enumerate(code):
        compile(cell, f"cell {number}", "exec")
    # All its imports stand in the first cell; IPython's are there where a notebook runs.
    lines = [line for line in code[0].splitlines() if not line.startswith("from IPython")]
    exec(compile("\n".join(lines), "imports", "exec"), {})


def test_every_step_is_told_in_words() -> None:
    told = "\n".join("".join(cell["source"]) for cell in cells("markdown"))
    headings = [line for line in told.splitlines() if line.startswith("## ")]
    assert [heading[3] for heading in headings[:-1]] == list("123456")


def test_its_links_lead_somewhere() -> None:
    told = "\n".join("".join(cell["source"]) for cell in cells("markdown"))
    files = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", told)]
    assert len(files) > 3
    assert [file for file in files if not (NOTEBOOK.parent / file).exists()] == []


@pytest.mark.slow
def test_the_score_rises_when_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `docs`")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `docs`")
    pytest.importorskip("ipykernel", reason="needs the extra `docs`")
    # What the kernel and the notebook write goes to pytest's folder.
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    notebook.cells.append(nbformat.v4.new_code_cell(LAST))
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    printed = notebook.cells[-1]["outputs"][-1]["text"]
    scores = json.loads(printed.splitlines()[-1])
    assert list(scores) == ["base", "SRT", "SD-Zero"]
    # The gain over 200 questions is tens of points: see docs/results.md.
    assert scores["SD-Zero"] > scores["base"] + 0.1
    (html,) = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert " nats" in html
