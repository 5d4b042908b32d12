"""Recipes: what loads, what comes back, and what people are told when it does not load."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.errors import UserError
from sdzero.recipe import Recipe
from sdzero.recipe_io import differing_keys, dump_recipe, load_recipe, recipe_sha256

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = """\
name: small
data: {n1: 4, n2: 4, test: 2}
collect: {max_new_tokens: 32}
srt:
  learning_rate: 1e-4
distill:
  learning_rate: 1e-4
  max_new_tokens: 32
rft: {learning_rate: 1e-4}
evaluate: {max_new_tokens: 32}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def edited(path: Path, old: str, new: str) -> Path:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return path


def test_numbers_as_people_write_them(small: Path) -> None:
    recipe = load_recipe(small)
    assert recipe.srt.learning_rate == 0.0001
    assert recipe.model.path == "tiny"


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("distill.learning_rate=1e-5", "distill", "learning_rate", 1e-5),
        ("distill.learning_rate=2", "distill", "learning_rate", 2.0),
        ("srt.betas=[0.8, 0.9]", "srt", "betas", (0.8, 0.9)),
        ("collect.target_traces=null", "collect", "target_traces", None),
        ("collect.target_traces=", "collect", "target_traces", None),
        ("collect.strip_openings=[You're right, 'no']", "collect", "strip_openings", ["You're right", "no"]),
        ("model.gradient_checkpointing=true", "model", "gradient_checkpointing", True),
        ("phrases.wrong=a=b", "phrases", "wrong", "a=b"),
        ("chat.template_arguments={rate: 1e-3}", "chat", "template_arguments", {"rate": 0.001}),
        ("chat.template_arguments.day=2026-01-01", "chat", "template_arguments", {"day": "2026-01-01"}),
        ("distill.phrase_for_reward=true", "distill", "phrase_for_reward", "true"),
        ("data.pool=10_000", "data", "pool", 10_000),
    ],
)
def test_overrides(small: Path, override: str, section: str, key: str, value: object) -> None:
    assert getattr(getattr(load_recipe(small, [override]), section), key) == value


def test_the_last_override_wins_and_can_mend_the_file(small: Path) -> None:
    edited(small, "max_new_tokens: 32}\nsrt", "max_new_tokens: many}\nsrt")
    overrides = ["collect.max_new_tokens=8", "collect.max_new_tokens=16"]
    assert load_recipe(small, overrides).collect.max_new_tokens == 16


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["distill.learnig_rate=1"], ["unknown key `distill.learnig_rate`", "`distill.learning_rate`"]),
        (["target_traces=5"], ["unknown key `target_traces`", "`collect.target_traces`"]),
        (["evaluate.learning_rat=1"], ["`srt.learning_rate` or `distill.learning_rate`"]),
        (["model.zzzz=1"], ["unknown key `model.zzzz`", "known keys here: path, dtype"]),
        (["model.dtype=float16"], ["'float16' is not a choice", "model.dtype", "'bfloat16'"]),
        (["distill.epochs=two"], ["'two' does not fit", "override `distill.epochs=two`", "valid integer"]),
        (["distill.epochs=true"], ["does not fit", "valid integer"]),
        (["distill.epochs=1.5"], ["1.5 does not fit", "valid integer"]),
        (["seed='3'"], ["'3' does not fit", "seed"]),
        (["name=3"], ["3 does not fit", "valid string"]),
        (["distill.learning_rate=-1"], ["-1 does not fit", "greater than 0"]),
        (["distill.learning_rate=.inf"], ["does not fit", "finite"]),
        (["data=null"], ["data", "does not fit"]),
        (["distill.sync=steps"], ["sync_every goes with sync: steps", "distill"]),
        (["distill.sync=plateau"], ["looks at the tuning score", "evaluate_every", "distill"]),
        (["distill.sync=epoch", "distill.teacher_decay=0.9"], ["follows the student", "distill"]),
        (
            ["distill.token_share=0.5", "distill.divergence_on=final_answer"],
            ["token_share chooses among all tokens", "distill"],
        ),
        (["distill.clip_gradient=stop"], ["clip_gradient goes with divergence_clip", "distill"]),
        (
            ["distill.divergence_backend=trl", "distill.divergence=mixed"],
            ["TRL's kernel has no mixed divergence", "distill"],
        ),
        (["distill.micro_batch_tokens=0"], ["distill.micro_batch_tokens", "greater than or equal to 1"]),
        (["model.packing=on", "model.attention=eager"], ["cannot read packed sequences", "model"]),
        (["rollout.engine=vllm", "rollout.cuda_graphs=true"], ["goes with engine: transformers", "rollout"]),
        (
            ["grpo.learning_rate=1e-4", "grpo.max_new_tokens=8", "grpo.micro_batch_tokens=128"],
            ["has no micro_batch_tokens", "grpo"],
        ),
        (["distill.token_share=0"], ["distill.token_share", "greater than 0"]),
        (["distill.early_stop_patience=2"], ["early_stop_patience needs evaluate_every"]),
        (["distill.evaluate_every=2"], ["data.tuning above 0"]),
        (["srt.micro_batch_size=5"], ["multiple of micro_batch_size"]),
        (["srt.warmup_steps=5", "srt.warmup_ratio=0.1"], ["not both"]),
        (["srt.warmup_steps=5", "srt.schedule=constant"], ["constant_with_warmup"]),
        (["srt.betas=[0.9, 1.0]"], ["each of betas"]),
        (["data.source=jsonl"], ["needs `path`"]),
        (["data.path=here.jsonl"], ["reads no `path`"]),
        (["data.tasks=[chain_sum]"], ["go with source `reasoning_gym`"]),
        (["data.source=reasoning_gym"], ["needs `tasks`"]),
        (["data.source=reasoning_gym", "data.tasks=[a]", "data.pool=9"], ["(10) is more than pool (9)"]),
        (["distill.epochs"], ["not of the form key=value", "override `distill.epochs`"]),
        (["distill..epochs=1"], ["not of the form key=value"]),
        (["distill.epochs=[1"], ["not well-formed YAML", "override `distill.epochs=[1`"]),
        (["name.first=x"], ["`name` is a value and holds no keys"]),
    ],
)
def test_faults_in_overrides(small: Path, overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(small, overrides)
    assert [part for part in parts if part not in str(caught.value)] == []
    assert caught.value.todo


def test_a_fault_in_the_file_names_file_line_and_key(small: Path) -> None:
    edited(small, "  learning_rate: 1e-4\n  max_new", "  learning_rte: 1e-4\n  max_new")
    with pytest.raises(UserError) as caught:
        load_recipe(small)
    told = str(caught.value)
    assert "the recipe has 2 faults" in told  # the unknown key, and the key that is missing for it
    assert f"{small}: line 7: distill.learning_rte" in told
    assert "did you mean `distill.learning_rate`" in told
    assert "add `distill.learning_rate`" in told


def test_several_faults_are_told_at_once(small: Path) -> None:
    edited(small, "name: small", "name: small\nname: again\nsed: 1")
    with pytest.raises(UserError) as caught:
        load_recipe(small, ["srt.epochs=none", "nonsense"])
    told = str(caught.value)
    assert "the recipe has 4 faults" in told
    assert "given twice: first on line 1" in told
    assert f"{small}: line 2: name" in told
    assert "did you mean `seed`" in told
    assert "'none' does not fit" in told
    assert "override `nonsense`" in told


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: x\n  data: y\n", ["not well-formed YAML", "line 2, column 7"]),
        ("name: [x\n", ["not well-formed YAML", "line 2"]),
        ("", ["empty"]),
        ("- a\n", ["not a mapping"]),
        ("a: 1\n---\nb: 2\n", ["not well-formed YAML"]),
        ("name: !!python/object/apply:os.getcwd []\n", ["not well-formed YAML", "line 1"]),
        ("name: &a {b: *a}\n", ["alias contains itself"]),
        ("name: \x07\n", ["not well-formed YAML"]),
        ("chat: {template_arguments: {1: x}}\n", ["the key `1` is not text", "line 1"]),
        ("name: !!binary aGk=\n", ["not plain data"]),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert [part for part in [*parts, str(path)] if part not in str(caught.value)] == []


def test_files_that_cannot_be_read(tmp_path: Path, small: Path) -> None:
    with pytest.raises(UserError, match=r"no such recipe") as caught:
        load_recipe(tmp_path / "smal")
    assert f"did you mean `{small}`" in str(caught.value)
    with pytest.raises(UserError, match="this is a folder"):
        load_recipe(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 9\)"):
        load_recipe(latin)


def test_an_override_does_not_reach_through_an_alias(small: Path) -> None:
    edited(small, "srt:\n  learning_rate: 1e-4\n", "srt: &shared {learning_rate: 1e-4}\n")
    edited(small, "rft: {learning_rate: 1e-4}", "rft: *shared")
    recipe = load_recipe(small, ["rft.learning_rate=1e-5"])
    assert (recipe.srt.learning_rate, recipe.rft.learning_rate) == (1e-4, 1e-5)


def test_hash_and_differences(small: Path) -> None:
    recipe, other = load_recipe(small), load_recipe(small, ["seed=1", "srt.betas=[0.9, 0.95]"])
    assert recipe_sha256(recipe) == recipe_sha256(load_recipe(small, ["seed=0"]))
    assert len(recipe_sha256(recipe)) == 64
    assert recipe_sha256(recipe) != recipe_sha256(other)
    assert differing_keys(recipe, other) == ["seed: 0 -> 1", "srt.betas: [0.9, 0.999] -> [0.9, 0.95]"]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "1e-4",
        "010",
        "yes",
        "true",
        "null",
        "~",
        "",
        "2026-01-01",
        "1_0",
        ".5",
        "<<",
        "=",
        "#",
        " a: b",
        "\n",
        "&a",
    ]
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(
    arguments=st.dictionaries(texts, plain, max_size=3),
    wrong=texts,
    openings=st.lists(texts, max_size=3),
    rate=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(),
)
def test_a_dumped_recipe_loads_to_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    arguments: dict[str, object],
    wrong: str,
    openings: list[str],
    rate: float,
    seed: int,
) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "seed": seed,
            "chat": {"template_arguments": arguments},
            "phrases": {"wrong": wrong},
            "data": {"n1": 1, "n2": 1, "test": 1},
            "collect": {"max_new_tokens": 1, "strip_openings": openings},
            "srt": {"learning_rate": rate},
            "distill": {"learning_rate": 0.1, "max_new_tokens": 1},
            "rft": {"learning_rate": 1e-6},
            "evaluate": {"max_new_tokens": 1},
        }
    )
    path = tmp_path_factory.mktemp("dumped") / "recipe.yaml"
    path.write_bytes(dump_recipe(recipe).encode())
    loaded = load_recipe(path)
    assert loaded == recipe
    assert recipe_sha256(loaded) == recipe_sha256(recipe)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("name", ["qwen3-4b-math", "olmo3-7b-math"])
def test_the_papers_budget(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    collect, distill = recipe.collect, recipe.distill
    assert (recipe.data.n1, recipe.data.n2) == (6_000, 9_000)
    assert collect.target_initial == 10_000
    assert collect.target_initial <= collect.initial_per_question * recipe.data.n1
    in_collect = collect.target_initial * (1 + collect.revisions_per_initial)
    assert in_collect == 40_000
    assert in_collect + distill.epochs * recipe.data.n2 == 49_000
    assert recipe.evaluate.k == 8
    assert {collect.temperature, distill.temperature, recipe.evaluate.temperature} == {0.7}
    # A response cut by the limit is trained on in phase 2: its two copies must fit.
    assert distill.max_context is not None
    assert 2 * distill.max_new_tokens + 512 <= distill.max_context


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (
            "sft: {learning_rate: 1.0e-5, micro_batch_size: 1, demonstrations: answers}",
            "sft.demonstrations=answers",
        ),
        ("sdft: {learning_rate: 1.0e-5, micro_batch_size: 1, max_new_tokens: 8}", "sdft.reference=answer"),
    ],
)
def test_hashes_of_tests_are_nothing_to_learn_from(section: str, key: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((RECIPES / "qwen3-4b-code.yaml").read_text() + f"\n{section}\n")
    with pytest.raises(UserError) as caught:
        load_recipe(recipe)
    assert f"{key}: answers of source `codeforces` are hashes of tests" in str(caught.value)
    assert "out of --methods" in str(caught.value)


def test_settings_import_no_torch(small: Path) -> None:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from sdzero.recipe_io import load_recipe; load_recipe(sys.argv[1])\n"
        "import sdzero.run_dir, sdzero.ledger\n"
        "print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)), time.perf_counter() - start < 5)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(small)], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[0] == "[] True"
