"""What holds of every world: enough questions on either side, tokens, and a base model that answers."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.method.roles import Roles
from sdzero.models import load_model, load_tokenizer, resolve_path
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import split_questions
from sdzero.recipe import ChatSettings, ModelSettings, PhraseSettings
from sdzero.recipe_io import load_recipe
from sdzero.tiny.build import encode_document
from sdzero.tiny.check import Sampler, drawn, measure
from sdzero.tiny.corpus import PHRASE_CORRECT, PHRASE_WRONG, documents, joined_phrase, with_hint
from sdzero.tiny.problem import is_pretraining
from sdzero.tiny.worlds import WORLDS, World

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE_OF = {
    "arithmetic": "demo",
    "spelling": "spelling",
    "walks": "walks",
    "edits": "edits",
    "starts": "starts",
}
NEW = ["spelling", "walks", "edits", "starts"]
VERIFIER_OF: dict[str, dict[str, Any]] = {
    "spelling": {"name": "puzzle"},
    "walks": {"name": "math"},
    "edits": {"name": "code", "timeout_seconds": 20.0},
    "starts": {"name": "math"},
}
SFT_OF = {"edits": {"answer_format": "{answer}"}}
"""Where the answer is a program, it stands in no box."""


@pytest.fixture(scope="module", params=list(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


def test_the_worlds_import_no_torch() -> None:
    code = "import sys, sdzero.tiny.corpus; print('torch' in sys.modules, 'reasoning_gym' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_six_kinds_are_hard_and_the_others_easy(world: World) -> None:
    shares = world.share_right.values()
    assert sum(0.04 <= share <= 0.15 for share in shares) == 6
    assert all(share == 0.9 for share in shares if share > 0.15)
    assert [kind for kind in world.share_right if world.is_hard(kind)] == list(world.share_right)[:6]


def test_an_outcome_tells_right_from_wrong(world: World) -> None:
    assert world.outcome("I do not know.") is None
    for kind in world.share_right:
        for problem in drawn(world, kind, 20, random.Random(0)):
            right, wrong = (world.outcome(world.solution(problem, right, False)) for right in (True, False))
            assert right is not None
            assert wrong is not None
            assert right != wrong


def test_no_text_belongs_to_two_problems_and_the_sides_are_apart(world: World) -> None:
    problems = [problem for kind in world.share_right for problem in world.all_problems(kind)]
    after = world.post_training_problems()
    assert len({problem.text for problem in problems}) == len(problems)
    assert {problem.text for problem in after} == {p.text for p in problems if not is_pretraining(p.text)}
    assert len(after) / len(problems) == pytest.approx(0.55, abs=0.01)


def test_every_set_of_the_recipe_is_balanced(world: World) -> None:
    settings = load_recipe(RECIPES / f"{RECIPE_OF[world.name]}.yaml", []).data
    sets = split_questions(load_questions(settings), settings)
    kinds = len(world.share_right)
    for questions in (sets.n1, sets.n2, sets.tuning, sets.test):
        assert not any(is_pretraining(question.text) for question in questions)
        counts = Counter(question.kind for question in questions)
        assert len(counts) == kinds
        assert max(counts.values()) - min(counts.values()) <= (1 if world.name in NEW else len(questions))


@pytest.mark.parametrize("name", NEW)
def test_a_recipe_is_the_demos_but_for_its_family(name: str) -> None:
    demo, own = (load_recipe(RECIPES / f"{file}.yaml", []).model_dump() for file in ("demo", name))

    def without_lengths(section: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in section.items() if key != "max_new_tokens"}

    for key, section in demo.items():
        if key in ("name", "model", "data", "verifier"):
            continue
        if isinstance(section, dict):
            family = SFT_OF.get(name, {}) if key == "sft" else {}
            assert without_lengths(own[key]) == without_lengths(section) | family, key
    assert own["data"] == demo["data"] | {"source": name}
    assert own["model"]["path"] == f"tiny:{name}"
    assert own["verifier"] == demo["verifier"] | VERIFIER_OF[name]


@pytest.mark.parametrize("name", NEW)
def test_a_response_with_four_attempts_fits_and_two_of_them_the_context(name: str) -> None:
    world, tokenizer = WORLDS[name], load_tokenizer(f"tiny:{name}")
    limit = load_recipe(RECIPES / f"{name}.yaml", []).collect.max_new_tokens
    config = load_model(f"tiny:{name}", ModelSettings(device="cpu")).config
    after_wrong = len(tokenizer.encode(joined_phrase(PHRASE_WRONG), add_special_tokens=False))
    for kind in world.share_right:
        for problem in drawn(world, kind, 50, random.Random(0)):
            attempt = len(tokenizer.encode(world.solution(problem, True, False), add_special_tokens=False))
            assert 4 * attempt + 3 * after_wrong + 1 <= limit
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": with_hint(problem)}],
                add_generation_prompt=True,
                return_dict=False,
            )
            assert len(prompt) + 2 * limit + after_wrong <= config.max_position_embeddings


@pytest.mark.parametrize("name", NEW)
def test_fixed_texts_are_one_token_and_any_text_comes_back(name: str) -> None:
    tokenizer = load_tokenizer(f"tiny:{name}")
    for text in (joined_phrase(PHRASE_CORRECT), joined_phrase(PHRASE_WRONG), *WORLDS[name].fixed_texts):
        assert len(tokenizer.encode(text, add_special_tokens=False)) == 1, text
    for text in ("Grüße, 你好\n\n 3+4", " a  b\tc\n", "user assistant\n", "Wait, this is 17\\boxed{-3}", ""):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert len(tokenizer.encode("1024", add_special_tokens=False)) == 4


def test_letters_of_words_stand_alone_in_spelling() -> None:
    tokenizer, world = load_tokenizer("tiny:spelling"), WORLDS["spelling"]
    for kind in world.share_right:
        for problem in drawn(world, kind, 20, random.Random(1)):
            (word,) = problem.operands
            question = tokenizer.encode(problem.text, add_special_tokens=False)
            assert [tokenizer.decode([token]) for token in question[1:]] == list(word)
            answer = tokenizer.encode(world.solution(problem, True, False), add_special_tokens=False)
            assert [tokenizer.decode([token]) for token in answer[1:-1]] == list(word[::-1])


def test_the_program_of_edits_is_made_of_pieces_and_single_numbers() -> None:
    tokenizer, world = load_tokenizer("tiny:edits"), WORLDS["edits"]
    for kind in world.share_right:
        for problem in drawn(world, kind, 20, random.Random(1)):
            for text in (problem.text, *(world.solution(problem, right, False) for right in (True, False))):
                pieces = [
                    tokenizer.decode([token]) for token in tokenizer.encode(text, add_special_tokens=False)
                ]
                assert "".join(pieces) == text
                assert all(piece in world.fixed_texts or piece in "0123456789:-'" for piece in pieces)


@pytest.mark.parametrize("name", NEW)
def test_the_roles_see_the_phrase_as_the_corpus_wrote_it(name: str) -> None:
    """The Reviser's context, token by token, is what the base model was pre-trained on."""
    tokenizer: Any = load_tokenizer(f"tiny:{name}")
    roles = Roles(tokenizer, PhraseSettings(), ChatSettings())
    document = next(d for d in documents(1, "tuning", WORLDS[name]) if len(d.pieces) == 3 and not d.hinted)
    ids, labels = encode_document(tokenizer, document, "tuning")
    attempts = [tokenizer.encode(piece, add_special_tokens=False) for piece in document.pieces[::2]]
    reward = int(WORLDS[name].is_right(document.problem, document.pieces[0]))
    prompt = roles.generator_prompt(Question("q", document.prompt, str(document.problem.answer)))
    joint = roles.joint_sequence(
        prompt, [*attempts[0], roles.end_token_id], reward, [*attempts[1], roles.end_token_id]
    )
    assert list(joint.token_ids) == ids
    assert [label for label in labels if label >= 0] == [*attempts[0], *attempts[1], roles.end_token_id]


def test_the_embedded_models_are_found_by_name() -> None:
    assert resolve_path("tiny") == resolve_path("tiny:arithmetic") == str(tiny.model_folder())
    for name in WORLDS:
        assert resolve_path(f"tiny:{name}") == str(tiny.model_folder(name))
    assert set(tiny.MODEL_FOLDERS) == set(WORLDS)


@pytest.mark.parametrize("path", ["tiny:xyz", "tiny:", "tiny:a/b"])
def test_an_unknown_embedded_model_is_refused_and_the_known_ones_named(path: str) -> None:
    with pytest.raises(UserError, match="no embedded model") as error:
        resolve_path(path)
    assert all(f"tiny:{name}" in str(error.value) for name in WORLDS)


@pytest.mark.parametrize("name", NEW)
def test_a_base_model_is_wrong_by_its_misconceptions_and_mends_some(name: str) -> None:
    """Bounds are wide: 60 sampled responses a figure. Starts is learnt least well (model card)."""
    torch.manual_seed(0)
    world, rng = WORLDS[name], random.Random(0)
    sampler = Sampler(tiny.model_folder(name), temperature=1.0)
    kinds = list(world.share_right)
    hard, easy = (measure(sampler, world, kind, 60, rng) for kind in (kinds[0], kinds[-1]))
    assert hard["right"] < 0.25
    assert hard["misconception"] > 0.7
    assert easy["right"] > (0.5 if name == "starts" else 0.7)
    assert 0.15 < hard["mended"] < 0.6
    assert 0.35 < hard["hinted"] < 0.85
    assert hard["kept"] > 0.8
    assert max(hard["neither"], easy["neither"]) < (0.4 if name == "starts" else 0.1)
