import dataclasses
from pathlib import Path

import pytest
import torch

from baselines.small_run import OPTIMIZER, QUESTIONS, small_run
from sdzero.baselines.sft import sft_sequences, train_sft
from sdzero.errors import UserError
from sdzero.method.roles import Roles
from sdzero.models import load_tokenizer
from sdzero.questions.question import Question
from sdzero.recipe import ChatSettings, PhraseSettings
from sdzero.recipe_baselines import SftSettings
from sdzero.run_context import Budget

SOLVED = Question("q1", "3+4*5", "23", solution="4*5=20;3+20=23\\boxed{23}")


def settings(**changes: object) -> SftSettings:
    return SftSettings.model_validate(OPTIMIZER | changes)


@pytest.fixture(scope="module")
def roles() -> Roles:
    return Roles(load_tokenizer("tiny"), PhraseSettings(), ChatSettings())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "4*5=20;3+20=23\\boxed{23}"),
        ({"demonstrations": "answers"}, "\\boxed{23}"),
        ({"demonstrations": "answers", "answer_format": "={answer}"}, "=23"),
    ],
)
def test_a_row_is_the_prompt_and_the_demonstration_with_its_end(roles: Roles, changes, text: str) -> None:
    [sequence] = sft_sequences([SOLVED], roles, settings(**changes))
    prompt = roles.generator_prompt(SOLVED)
    response = sequence.token_ids[len(prompt) :]
    assert list(sequence.token_ids[: len(prompt)]) == prompt
    assert roles.decode(response) == text
    assert response[-1] == roles.end_token_id
    assert sequence.weights == (0.0,) * len(prompt) + (1.0,) * len(response)


def test_missing_solutions_are_named(roles: Roles) -> None:
    blank = (("q2", ""), ("q3", " \n"))
    without = [dataclasses.replace(SOLVED, id=name, solution=text) for name, text in blank]
    with pytest.raises(UserError, match="2 of the 3 training questions") as caught:
        sft_sequences([SOLVED, *without], roles, settings())
    assert "q2" in caught.value.where
    assert "data.fields.solution" in caught.value.todo
    assert "sft.demonstrations=answers" in caught.value.todo
    assert len(sft_sequences(without, roles, settings(demonstrations="answers"))) == 2


def test_a_special_token_in_a_demonstration_is_refused(roles: Roles) -> None:
    token = next(iter(roles._special_tokens))
    with pytest.raises(UserError, match="special token") as caught:
        sft_sequences([dataclasses.replace(SOLVED, solution=f"23{token}")], roles, settings())
    assert caught.value.where == "question q1"


def test_training_learns_the_demonstrations_and_samples_nothing(tmp_path: Path) -> None:
    section = OPTIMIZER | {"demonstrations": "answers", "epochs": 6}
    n1, n2 = QUESTIONS[:6], QUESTIONS[6:10]
    with small_run(tmp_path / "run", n1, n2, sft=section) as context:
        train_sft(context, "sft", context.recipe.sft, Budget("responses", 10))
        counts = context.ledger.by_stage()["sft"]
        assert counts["responses"] == counts["sampled_tokens"] == 0
        sequences = sft_sequences([*n1, *n2], context.roles, context.recipe.sft)
        assert counts["trained_tokens"] == 6 * sum(int(sum(s.weights)) for s in sequences)

        def loss(path: object) -> float:
            model = context.load(path)
            total = 0.0
            for sequence in sequences:
                ids = torch.tensor([sequence.token_ids])
                with torch.no_grad():
                    log = model(ids).logits[0, :-1].log_softmax(-1)
                chosen = log.gather(-1, ids[0, 1:, None])[:, 0]
                total -= float((chosen * torch.tensor(sequence.weights[1:])).sum())
            return total

        assert loss(context.run.path("sft/model")) < 0.5 * loss("tiny")
        before = context.run.path("sft/model/model.safetensors").stat().st_mtime_ns
        train_sft(context, "sft", context.recipe.sft, Budget("responses", 10))
        assert context.run.path("sft/model/model.safetensors").stat().st_mtime_ns == before
