import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from baselines.small_run import ON_POLICY, QUESTIONS, Killed, killed, rollouts, small_run
from sdzero.baselines.sdft import train_sdft
from sdzero.errors import UserError
from sdzero.method.micro_batches import make_micro_batch
from sdzero.method.objectives import ReferenceDivergence, ReviserDivergence, TeacherDivergence
from sdzero.method.roles import Roles
from sdzero.method.teacher import Teacher
from sdzero.models import load_tokenizer
from sdzero.questions.question import Question
from sdzero.recipe import ChatSettings, PhraseSettings
from sdzero.recipe_baselines import SdftSettings
from sdzero.run_context import Budget, RunContext
from sdzero.verify.verdict import Outcome, Verdict
from support import in_turn

PLACES = "{question}\n\nThe answer is {reference}."


def train(folder: Path, questions: list[Question], budget: Budget, **section: Any) -> dict[str, Any]:
    """Train SDFT in a run of its own (or go on with it); returns what the tests look at."""
    grade = section.pop("grade", None)
    with small_run(folder, questions[:4], questions[4:], grade, sdft=ON_POLICY | section) as context:
        train_sdft(context, "sdft", context.recipe.sdft, budget)
        return outcome(context)


def outcome(context: RunContext) -> dict[str, Any]:
    return {
        "weights": dict(context.load(context.run.path("sdft/model")).named_parameters()),
        "steps": rollouts(context, "sdft"),
        "counts": context.ledger.by_stage()["sdft"],
        "log": context.run.read_jsonl("sdft/log.jsonl"),
        "info": context.run.stage_info("sdft"),
    }


# ---- the loss ----


def test_the_loss_is_that_of_trls_sdft_trainer(tmp_path: Path) -> None:
    """Its own contexts, its own loss, on the same completions: full logits, reverse KL, no clipping."""
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    settings = SdftSettings.model_validate(ON_POLICY | {"normalize": "sequences"})
    questions = QUESTIONS[:4]
    with small_run(tmp_path / "run", questions, [], model={"path": "tiny", "dtype": "float64"}) as context:
        student, teacher = context.load("tiny"), context.load("tiny")
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in student.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.mul_(1 + 0.1 * noise)
        tokenizer, roles = context.tokenizer, context.roles
        end = roles.end_token_id
        completions = [[40, 50, 41, end], [42, end], [43, 44, 45, 46, 47], [48, 49, end]]
        prompts = [tuple(roles.generator_prompt(q)) for q in questions]

        objective = ReferenceDivergence(settings.divergence, 2, settings.template, settings.reference)
        pairs = [
            (
                roles.reference_pair(p, roles.reference_prompt(q, q.answer, settings.template), tuple(y)),
                reward,
            )
            for q, p, y, reward in zip(questions, prompts, completions, (0, 1, 0, 1), strict=True)
        ]
        inputs = make_micro_batch(pairs, [], tokenizer.pad_token_id)
        weights_T = torch.repeat_interleave(1.0 / inputs["lengths_B"], inputs["lengths_B"])
        ours = objective.token_losses(student, Teacher(teacher, "tiny"), inputs, weights_T).total / 4
        ours.backward()
        gradients = {name: p.grad.clone() for name, p in student.named_parameters()}
        student.zero_grad()

        conversations = [[{"role": "user", "content": q.text}] for q in questions]
        answers = [q.answer for q in questions]
        trainer = SDFTTrainer(
            student,
            SDFTConfig(
                output_dir=str(tmp_path / "trl"),
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                per_device_train_batch_size=4,
                num_generations=1,
                distillation_mode="full_logits",
                distillation_alpha=1.0,
                distillation_is_clip=None,
                temperature=1.0,
                teacher_prompt_template="{prompt}\n\nThe answer is {privileged_context}.",
            ),
            Dataset.from_dict({"prompt": conversations, "privileged_context": answers}),
            processing_class=tokenizer,
        )
        for own, named in zip(trainer.teacher_model.parameters(), teacher.parameters(), strict=True):
            assert torch.equal(own, named)
        longest = max(map(len, completions))
        completion_ids = torch.tensor([y + [0] * (longest - len(y)) for y in completions])
        completion_mask = torch.tensor([[1] * len(y) + [0] * (longest - len(y)) for y in completions])
        widest = max(map(len, prompts))
        batch = {
            "prompt_ids": torch.tensor([[0] * (widest - len(p)) + list(p) for p in prompts]),
            "prompt_mask": torch.tensor([[0] * (widest - len(p)) + [1] * len(p) for p in prompts]),
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
            **trainer.teacher_context_builder.build(conversations, answers, completion_ids, completion_mask),
        }
        student.train(False)
        theirs = trainer.compute_loss(student, batch)
        theirs.backward()

    assert ours.item() > 0.01
    # TRL pads on the left, which moves positions, and rotary angles are float32 in a float64 model.
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def written_out(student: Any, teacher: Any, roles: Roles, rows: list[Any], divergence: str) -> float:
    """The loss on stored responses: one at a time, whole distributions, mean over all target tokens."""
    by_id = {q.id: q for q in QUESTIONS}
    total, tokens = 0.0, 0
    for row in rows:
        question, y = by_id[row["question"]], row["token_ids"]
        text = PLACES.format(question=question.text, reference=question.answer)
        sides = []
        for model, read in ((student, question), (teacher, dataclasses.replace(question, text=text))):
            ids = torch.tensor([roles.generator_prompt(read) + y])
            with torch.no_grad():
                sides.append(model(ids).logits[0, -len(y) - 1 : -1].log_softmax(-1))
        first, second = sides if divergence == "reverse" else reversed(sides)
        total += float((first.exp() * (first - second)).sum())
        tokens += len(y)
    return total / tokens


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_training_minimises_the_divergence_from_the_base_model_with_the_reference(
    tmp_path: Path, divergence: str
) -> None:
    section = {"learning_rate": 1e-3, "batch_size": 8, "micro_batch_size": 4, "divergence": divergence}
    done = train(tmp_path / "run", QUESTIONS[:8], Budget("responses", 96), **section)
    with small_run(tmp_path / "other", [], []) as context:
        base, trained = context.load("tiny"), context.load(tmp_path / "run/sdft/model")
        before = written_out(base, base, context.roles, done["steps"][0], divergence)
        after = written_out(trained, base, context.roles, done["steps"][0], divergence)
    assert done["log"][0]["loss"] == pytest.approx(before, rel=1e-4)
    # Reverse KL is slow here: the embedded model cannot use a reference, and its teacher is all unsure.
    assert after < {"reverse": 0.93, "forward": 0.6}[divergence] * before
    assert done["info"]["syncs"] == 0


# ---- what the teacher reads ----


def graded(question: Question, ids: tuple[int, ...], prompt: list[int], outcome: Outcome) -> Any:
    from sdzero.method.graded import Graded

    return Graded(question, 0, tuple(prompt), ids, Verdict(outcome), len(ids))


@pytest.mark.parametrize(("reference", "shown"), [("answer", "23"), ("solution", "4*5=20;3+20=23")])
def test_sdfts_teacher_reads_the_reference_and_the_reviser_never_does(reference, shown) -> None:
    tokenizer = load_tokenizer("tiny")
    roles = Roles(tokenizer, PhraseSettings(), ChatSettings(answer_instruction="Box it."))
    question = Question("q", "3+4*5", "23", solution="4*5=20;3+20=23")
    prompt = roles.generator_prompt(question)
    response = (*roles.demonstration_ids("\\boxed{35}", "here"),)
    for verdict in (Outcome.WRONG, Outcome.CORRECT):
        one = graded(question, response, prompt, verdict)
        pair = ReferenceDivergence("reverse", 8, PLACES, reference).context(roles, one)
        told = roles.decode(pair.teacher_ids)
        assert f"3+4*5\n\nBox it.\n\nThe answer is {shown}." in told
        assert told.endswith("\\boxed{35}")
        assert PhraseSettings().correct not in told
        assert PhraseSettings().wrong not in told
        assert roles.decode(pair.student_ids) == roles.decode((*prompt, *response))
        assert pair.targets == response
        reviser = roles.decode(ReviserDivergence("reverse", 8).context(roles, one).teacher_ids)
        assert "23" not in reviser
        assert PhraseSettings().correct in reviser or PhraseSettings().wrong in reviser


# ---- the loop ----


def test_a_budget_of_responses_goes_over_all_training_questions(tmp_path: Path) -> None:
    """Six questions, four a step: an epoch is 4 + 2, and 11 responses pay for 4 + 2 + 4."""
    done = train(tmp_path / "run", QUESTIONS[:6], Budget("responses", 11))
    assert [len(rows) for rows in done["steps"]] == [4, 2, 4]
    assert done["counts"]["responses"] == 10
    first = [row["question"] for rows in done["steps"][:2] for row in rows]
    assert sorted(first) == sorted(q.id for q in QUESTIONS[:6])
    assert len({row["seed"] for rows in done["steps"] for row in rows}) == 10
    assert done["info"]["steps"] == 3
    assert done["log"][-1]["step"] == done["log"][-1]["max_steps"] == 3


def test_a_budget_of_tokens_ends_with_the_step_that_spends_it(tmp_path: Path) -> None:
    section = {"schedule": "linear"}
    done = train(tmp_path / "run", QUESTIONS[:8], Budget("tokens", 300), **section)
    lengths = [sum(row["sampled_tokens"] for row in rows) for rows in done["steps"]]
    assert sum(lengths[:-1]) < 300 <= sum(lengths)
    assert done["counts"]["sampled_tokens"] == sum(lengths)
    rates = [row["learning_rate"] for row in done["log"]]
    assert rates == pytest.approx([3e-4 * (1 - sum(lengths[:n]) / 300) for n in range(len(lengths))])
    assert done["log"][-1]["step"] == done["log"][-1]["max_steps"] == len(lengths)


@pytest.mark.parametrize("match", ["responses", "tokens"])
def test_a_budget_that_is_too_small_is_refused(tmp_path: Path, match) -> None:
    amount = 3 if match == "responses" else 0
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", QUESTIONS[:8], Budget(match, amount))
    assert caught.value.where == f"budget.{match}"


def test_missing_solutions_are_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="8 of the 8") as caught:
        train(tmp_path / "run", QUESTIONS[:8], Budget("responses", 8), reference="solution")
    assert "sdft.reference=answer" in caught.value.todo
    assert not (tmp_path / "run/sdft").exists()


def test_responses_that_the_verifier_failed_on_are_left_out(tmp_path: Path) -> None:
    grade = in_turn(Outcome.WRONG, Outcome.ERROR)
    done = train(tmp_path / "run", QUESTIONS[:4], Budget("responses", 4), grade=grade)
    [rows] = done["steps"]
    errors = sum(row["outcome"] == "error" for row in rows)
    kept = [len(row["token_ids"]) for row in rows if row["outcome"] != "error"]
    assert errors > 0
    assert done["info"]["verifier_errors"] == errors
    assert done["counts"]["trained_tokens"] == sum(kept)
    assert done["counts"]["responses"] == 4


def test_a_teachers_context_over_the_models_is_dropped_and_counted(tmp_path: Path) -> None:
    long = "word " * 450  # the student's prompt fits the context of 512 tokens, the teacher's does not
    section = {"template": long + PLACES}
    done = train(tmp_path / "run", QUESTIONS[:4], Budget("responses", 4), **section)
    assert done["info"]["overlong"] == 4
    assert done["counts"]["trained_tokens"] == 0


@pytest.mark.parametrize("budget", [Budget("responses", 22), Budget("tokens", 600)], ids=str)
def test_a_killed_training_ends_in_the_same_weights(tmp_path: Path, monkeypatch, budget: Budget) -> None:
    """Killed within the second epoch, after the rollout of a step; and again before the model is kept."""
    section = {"sync": "steps", "sync_every": 2, "schedule": "linear", "warmup_steps": 1}
    whole = train(tmp_path / "whole", QUESTIONS[:6], budget, **section)
    steps = len(whole["steps"])
    assert steps >= 5
    compute, calls = TeacherDivergence.token_losses, []

    def dying(self: Any, *args: Any) -> Any:
        calls.append(1)
        return killed() if len(calls) == 4 else compute(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherDivergence, "token_losses", dying)
        with pytest.raises(Killed):
            train(tmp_path / "cut", QUESTIONS[:6], budget, **section)
    with monkeypatch.context() as patch:
        patch.setattr(RunContext, "keep", killed)
        with pytest.raises(Killed):
            train(tmp_path / "cut", QUESTIONS[:6], budget, **section)
    again = train(tmp_path / "cut", QUESTIONS[:6], budget, **section)
    assert [[row["token_ids"] for row in rows] for rows in again["steps"]] == [
        [row["token_ids"] for row in rows] for rows in whole["steps"]
    ]
    for name, parameter in whole["weights"].items():
        assert torch.equal(parameter, again["weights"][name]), name
    assert again["counts"]["responses"] == whole["counts"]["responses"]
    assert again["info"] == whole["info"]
