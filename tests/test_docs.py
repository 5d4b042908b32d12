"""The documents agree with the code: links, commands, settings, messages and figures of the model card."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.main import get_command

import sdzero
from sdzero.cli import app
from sdzero.questions.question import Question
from sdzero.recipe import CODE_SOURCES, Recipe
from sdzero.recipe_io import load_recipe
from sdzero.tiny import arithmetic as world
from sdzero.tiny import corpus, model_folder
from sdzero.tiny.problem import PRETRAINING_SHARE, is_pretraining
from sdzero.verify.attack_answers import HOSTILE_ANSWERS
from sdzero.verify.attacks import ATTACKS
from sdzero.verify.pool import VerifierPool
from sdzero.verify.reward_function import RewardFunctionVerifier, is_reward_function
from sdzero.verify.verdict import Outcome

ROOT = Path(__file__).resolve().parent.parent
CARD = ROOT / "src/sdzero/tiny/README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", CARD, *sorted((ROOT / "docs").glob("*.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_of(text: str) -> Iterator[str]:
    """Fenced blocks, with continued lines joined, and inline code."""
    for _, block in FENCE.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    yield from INLINE.findall(FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings have on GitHub."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_sdzero_exist(page: Path) -> None:
    commands: Any = get_command(app)
    for line in code_of(page.read_text()):
        call = re.match(r"(?:\$ )?(?:\S*/)?sdzero ([a-z-]+)(.*)", line)
        if not call:
            continue
        assert call[1] in commands.commands, line
        options = options_of(commands.commands[call[1]])
        used = set(re.findall(r"(?<!\S)--?[a-z][\w-]*", call[2]))
        assert used <= options | {"--help"}, line


def options_of(command: Any) -> set[str]:
    """The options of a command, and of the commands in it if it is a group."""
    found = {opt for param in command.params for opt in param.opts}
    return found.union(*map(options_of, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in code_of(page.read_text()):
        call = re.match(r"make ([a-z-]+)", line)
        assert not call or call[1] in targets, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_and_overrides_in_commands_exist(page: Path, tmp_path: Path) -> None:
    recipes = {str(path.relative_to(ROOT)) for path in ROOT.glob("recipes/*.yaml")}
    for line in code_of(page.read_text()):
        words = line.split()
        if words[:1] == ["python"] and len(words) > 1 and words[1] != "-m":
            assert (ROOT / words[1]).is_file(), line
        if not re.match(r"sdzero [a-z]+ recipes/", line):
            continue
        assert words[2] in recipes, line
        load_recipe(ROOT / words[2], [word for word in words[3:] if "=" in word])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_recipes_in_yaml_blocks_load(page: Path, tmp_path: Path) -> None:
    """A block without a `name` is a part of a recipe: it is laid over the demo's."""
    for language, block in FENCE.findall(page.read_text()):
        if language != "yaml":
            continue
        values = yaml.safe_load(block)
        if "name" not in values:
            base = yaml.safe_load((ROOT / "recipes/demo.yaml").read_text())
            # Their answers are nothing to learn from, as the page says.
            if values.get("data", {}).get("source") in CODE_SOURCES:
                del base["sft"], base["sdft"]
            values = {**base, **{key: merged(base.get(key), value) for key, value in values.items()}}
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(values))
        load_recipe(file)


def merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}
    return over


def test_settings_named_in_text_exist() -> None:
    """`section.key` in inline code, for each section of the recipe, is a key of that section."""
    known = {
        section: set(field.annotation.model_fields)
        for section, field in Recipe.model_fields.items()
        if hasattr(field.annotation, "model_fields")
    }
    named = re.compile(rf"({'|'.join(known)})\.(\w+)(?:[=: ].*)?")
    files = {"py", "json", "jsonl", "yaml", "md", "html"}
    for page in PAGES:
        for code in INLINE.findall(FENCE.sub("", page.read_text())):
            match = named.fullmatch(code)
            if match and match[2] not in files:
                assert match[2] in known[match[1]], f"{name_of(page)}: {code}"


def test_the_recipes_page_is_up_to_date() -> None:
    script = load_script("make_recipes_page")
    assert script.PAGE.read_text() == script.page(), "run `python docs/make_recipes_page.py`"


def test_the_method_example_is_up_to_date() -> None:
    script = load_script("make_method_example")
    text = script.PAGE.read_text()
    assert text == script.with_example(text), "run `python docs/make_method_example.py`"


def test_functions_named_in_the_method_table_exist() -> None:
    text = (ROOT / "docs/method.md").read_text()
    rows = re.findall(r"^\| .+ \| .+ \| (`[\w/]+\.py`.+) \|$", text, re.MULTILINE)
    assert len(rows) > 8
    for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", " ; ".join(rows)):
        source = (ROOT / "src/sdzero" / file).read_text()
        for name in INLINE.findall(names):
            last = name.rpartition(".")[2]
            assert re.search(rf"(?:def|class) {last}\b", source), f"{file}: {name}"


def test_messages_in_troubleshooting_are_real() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src/sdzero").rglob("*.py"))
    quoted = re.findall(r"^> (.+)$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 20
    assert [message for message in quoted if message not in source] == []


def test_the_verifier_of_the_documents_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = FENCE.findall((ROOT / "docs/verifiers.md").read_text())
    (code,) = [block for language, block in blocks if language == "python"]
    (tmp_path / "my_verifier.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with VerifierPool("my_verifier:ExactVerifier", workers=1, timeout_seconds=10) as pool:
        pool.check_canaries()
        (verdict,) = pool.grade([(Question("q", "2 + 2 = ?", "4"), "It is\n4")])
    assert verdict.outcome is Outcome.CORRECT


def test_the_examples_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, one after the other, as a reader would type them; whole runs are only defined."""
    blocks = [
        code
        for language, code in FENCE.findall((ROOT / "docs/python.md").read_text())
        if language == "python"
    ]
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in blocks:
        exec(compile(code, "docs/python.md", "exec"), names)
    assert set(names) >= {*sdzero.__all__} - {"__version__"}, "every public name is shown"
    assert names["trainer"].state.global_step == 2
    assert 0 <= names["scores"]["evaluation"]["avg"] <= 1
    assert is_reward_function(names["exact"])
    verdict = RewardFunctionVerifier("exact", names["exact"]).grade(
        Question("q", "2 + 2 = ?", "4"), "It is\n4"
    )
    assert verdict.outcome is Outcome.CORRECT


def test_the_run_folder_in_the_documents_is_the_real_one(micro_run: Path) -> None:
    """Every name in the listings of README.md and docs/runs.md is there, and nothing is left out."""
    full = listing((ROOT / "docs/runs.md").read_text())
    only_if_asked_for = {"evaluate/sdzero/audit.txt", "evaluate/sdzero/audit.jsonl", "cache/verdicts.sqlite"}
    only_if_asked_for |= {"tracking/", "report/", "report.html"}
    places = {place.replace("NAME", "sdzero") for place in full} - {"distill/tuning/"} - only_if_asked_for
    for place in places | set(listing((ROOT / "README.md").read_text())):
        assert (micro_run / place).exists(), place
    tops = {place.split("/")[0] for place in places}
    assert {path.name for path in micro_run.iterdir() if not path.name.startswith(".")} <= tops


def listing(text: str) -> list[str]:
    """The files and folders of the block that lists a run's folder."""
    (block,) = [block for _, block in FENCE.findall(text) if "manifest.json" in block]
    left = [re.split(r" {3,}", line)[0] for line in block.splitlines()]
    return [place for part in left for place in part.split()] + re.findall(r"evaluate/NAME\.json", block)


def rows_of_card() -> dict[str, list[str]]:
    """The card's tables: first cell -> the other cells."""
    rows = re.findall(r"^\| (.+) \|$", CARD.read_text(), re.MULTILINE)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]
    return {first.strip("`"): rest for first, *rest in cells}


@pytest.mark.parametrize("kind", world.KINDS)
def test_the_kinds_of_the_model_card(kind: str) -> None:
    example, right, wrong, share = rows_of_card()[kind]
    text = example.strip("`")
    problem = next(problem for problem in world.all_problems(kind) if problem.text == text)
    assert right.strip("`") == world.solution(problem)
    assert float(share) == world.KINDS[kind].share_right
    assert INLINE.findall(wrong) == [world.solution(problem, right=False)]


def test_misconceptions_never_give_the_right_answer() -> None:
    """The card says so."""
    for kind in world.KINDS:
        for problem in world.all_problems(kind):
            assert world.boxed_value(world.solution(problem, right=False)) != problem.answer


def test_the_figures_of_the_model_card() -> None:
    rows, text = rows_of_card(), CARD.read_text()
    assert float(rows["documents with revisions"][0]) == corpus.SHARE_WITH_REVISIONS
    counts = rows["revisions in such a document, drawn from"][0]
    assert tuple(map(int, counts.split(", "))) == corpus.REVISION_COUNTS
    shares = {key.partition(" (")[0]: value[0] for key, value in rows.items()}
    assert float(shares["right after a wrong attempt"]) == corpus.SHARE_REVISED_RIGHT
    stops = rows["ends after a right attempt was repeated, with probability"][0]
    assert float(stops) == corpus.SHARE_STOP_AFTER_RIGHT
    problems = [problem for kind in world.KINDS for problem in world.all_problems(kind)]
    after = [problem for problem in problems if not is_pretraining(problem.text)]
    assert f"{len(problems):,} distinct questions" in text
    assert f"{PRETRAINING_SHARE} in 100" in text
    assert f"the rest ({len(after):,})" in text


def test_the_architecture_of_the_model_card() -> None:
    rows = rows_of_card()
    config = json.loads((model_folder() / "config.json").read_text())
    assert rows["architecture"][0] == (
        f"Llama, causal language model; {config['num_hidden_layers']} layers, width {config['hidden_size']},"
        f" {config['num_attention_heads']} heads, tied embeddings"
    )
    assert config["tie_word_embeddings"]
    assert rows["context"][0] == f"{config['max_position_embeddings']} tokens"
    assert f"BPE of {config['vocab_size']} tokens" in rows["tokenizer"][0]
    from safetensors import safe_open

    with safe_open(model_folder() / "model.safetensors", "pt") as weights:  # type: ignore[no-untyped-call]
        sizes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    total = 0
    for shape in sizes:
        size = 1
        for length in shape:
            size *= length
        total += size
    assert rows["parameters"][0] == f"{total:,}"


def test_the_documents_leave_room_for_measured_figures() -> None:
    for page, names in (
        ("README.md", ["figures"]),
        ("docs/results.md", ["figures-demo", "figures-phrase", "figures-sync"]),
    ):
        text = (ROOT / page).read_text()
        for name in names:
            assert text.count(f"<!-- {name}:begin -->") == 1
            assert text.index(f"<!-- {name}:begin -->") < text.index(f"<!-- {name}:end -->")


def test_the_attacks_of_the_sandboxs_page_are_those_of_the_suite() -> None:
    page = (ROOT / "docs/sandbox.md").read_text()
    shown = page.partition("| attack | tries |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| (.+?) \| (.+) \|$", shown, re.MULTILINE) == [(a.name, a.tries) for a in ATTACKS]
    assert f"holds {len(HOSTILE_ANSWERS)} hostile answers" in page
