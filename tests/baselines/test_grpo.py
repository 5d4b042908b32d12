import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sdzero.baselines import grpo
from sdzero.baselines.grpo import train_grpo
from sdzero.baselines.grpo_rollouts import QuestionRows, most_steps, verdict_reward
from sdzero.engines import transformers_engines
from sdzero.errors import UserError
from sdzero.ledger import Ledger
from sdzero.method.checkpoints import last_complete_checkpoint
from sdzero.method.grading import Grade
from sdzero.method.roles import Roles
from sdzero.models import load_tokenizer
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import QuestionSets, split_questions
from sdzero.recipe import DataSettings, Recipe
from sdzero.run_context import Budget, RunContext
from sdzero.run_dir import RunDir
from sdzero.verify.math import MathVerifier
from sdzero.verify.verdict import Outcome, Verdict

WORDS = ["<pad>", "<end>", "<user>", "<assistant>", *"abcdefghijklmnopqrs"]
END = WORDS.index("<end>")
QUESTIONS = [Question(f"q{n}", text, "a") for n, text in enumerate(["a", "b c", "d e f", "g h i j k", "l"])]
ARITHMETIC = DataSettings(source="arithmetic", n1=32, n2=32, test=1)


class StopHere(BaseException):
    """A kill."""


def save_words(folder: Path) -> None:
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template="{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
    ).save_pretrained(folder)


def make_model(architecture: str) -> PreTrainedModel:
    """A random model of 23 words, whose logits differ clearly."""
    torch.manual_seed(1)
    common: dict[str, Any] = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": END}
    if architecture == "gpt2":  # positions are learnt, so padding must not shift them
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.4}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**common, **sizes, **dropout, bos_token_id=None))
    return Qwen3ForCausalLM(
        Qwen3Config(
            **common,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=64,
            bos_token_id=None,
            initializer_range=0.2,
        )
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of random models."""
    made = {}
    for architecture in ("qwen3", "gpt2"):
        folder = tmp_path_factory.mktemp(architecture)
        make_model(architecture).save_pretrained(folder)
        save_words(folder)
        made[architecture] = str(folder)
    return made


def grade_by_length(items: Sequence[tuple[Question, str]]) -> list[Verdict]:
    """Of the finished responses, those of one or two words are right."""
    return [Verdict(Outcome.CORRECT if len(text.split()) < 3 else Outcome.WRONG) for _, text in items]


def grade_by_parity(items: Sequence[tuple[Question, str]]) -> list[Verdict]:
    """Of the finished responses, those of an even number of words are right: about half from the start."""
    return [Verdict(Outcome.WRONG if len(text.split()) % 2 else Outcome.CORRECT) for _, text in items]


def make_context(
    folder: Path, path: str, grade: Grade = grade_by_length, dtype: str = "float32", **changes: Any
) -> RunContext:
    optimizer = {"learning_rate": 1e-2, "batch_size": 8, "micro_batch_size": 8}
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "seed": 4,
            "model": {"path": path, "device": "cpu", "dtype": dtype},
            "data": {"n1": 1, "n2": 1, "test": 1},
            "collect": {"max_new_tokens": 8},
            "srt": optimizer,
            "distill": optimizer | {"max_new_tokens": 8},
            "rft": optimizer,
            "grpo": optimizer | {"max_new_tokens": 8, "checkpoint_every": 2} | changes,
            "evaluate": {"max_new_tokens": 8},
        }
    )
    tokenizer = load_tokenizer(path)
    run = RunDir.open(folder, recipe)
    return RunContext(
        recipe=recipe,
        run=run,
        ledger=Ledger(run.path("ledger.jsonl")),
        tokenizer=tokenizer,
        roles=Roles(tokenizer, recipe.phrases, recipe.chat),
        sets=QuestionSets(n1=QUESTIONS[:2], n2=QUESTIONS[2:], tuning=[], test=[]),
        grade=grade,
        report=lambda line: None,
        progress=lambda *_: None,
        make_engine=transformers_engines(recipe, tokenizer),
    )


def train(context: RunContext, budget: Budget) -> list[dict[str, Any]]:
    """Train, give the folder up, and return the step log."""
    assert context.recipe.grpo is not None
    try:
        train_grpo(context, "grpo", context.recipe.grpo, budget)
    finally:
        context.run.close()
    return context.run.read_jsonl("grpo/log.jsonl")


def rollouts(context: RunContext, step: int) -> list[dict[str, Any]]:
    return context.run.read_jsonl(f"grpo/rollouts/step-{step:06d}.jsonl")


def trained_weights(context: RunContext) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(context.run.path("grpo/model")).named_parameters())


def on_trainer(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Have the trainer changed before it trains."""
    make = grpo.make_trainer

    def changed(*args: Any) -> Any:
        trainer = make(*args)
        change(trainer)
        return trainer

    monkeypatch.setattr(grpo, "make_trainer", changed)


# ---- what is minimised ----


def grade_with_errors(items: Sequence[tuple[Question, str]]) -> list[Verdict]:
    """Of the finished responses, each third is our own fault."""
    right = grade_by_length(items)
    return [Verdict(Outcome.ERROR) if place % 3 == 0 else verdict for place, verdict in enumerate(right)]


def dense_gradient(context: RunContext, start: PreTrainedModel, temperature: float) -> PreTrainedModel:
    """GRPO's gradient written out: one response at a time, no padding, ratio 1."""
    rows = rollouts(context, 0)
    prompts = {q.id: context.roles.generator_prompt(q) for q in QUESTIONS}
    counted = [row for row in rows if row["outcome"] != "error"]
    loss = torch.zeros((), dtype=torch.float64)
    for row in counted:
        group = [float(r["outcome"] == "correct") for r in counted if r["question"] == row["question"]]
        rewards = torch.tensor(group, dtype=torch.float64)
        own = float(row["outcome"] == "correct")
        advantage = 0.0
        if len(group) > 1:
            advantage = float((own - rewards.mean()) / (rewards.std() + 1e-4))
        prompt = prompts[row["question"]]
        logits = start(torch.tensor([[*prompt, *row["token_ids"]]])).logits[0, len(prompt) - 1 : -1]
        log_probs = (logits / temperature).log_softmax(-1)
        loss = loss - advantage * log_probs[range(len(row["token_ids"])), row["token_ids"]].sum()
    (loss / sum(len(row["token_ids"]) for row in counted)).backward()
    return start


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
@pytest.mark.parametrize(
    ("micro_batch_size", "grade"), [(16, grade_by_length), (4, grade_by_length), (4, grade_with_errors)]
)
def test_the_step_is_the_papers_gradient(
    tmp_path: Path,
    folders: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    micro_batch_size: int,
    grade: Grade,
) -> None:
    context = make_context(
        tmp_path / "run",
        folders[architecture],
        grade,
        "float64",
        batch_size=16,
        micro_batch_size=micro_batch_size,
        temperature=1.5,
    )
    gradients: dict[str, torch.Tensor] = {}

    def watch(trainer: Any) -> None:
        clip = trainer._clip_grad_norm

        def keep(model: Any) -> Any:
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})
            return clip(model)

        trainer._clip_grad_norm = keep

    on_trainer(monkeypatch, watch)
    train(context, Budget("responses", 16))
    outcomes = {row["outcome"] for row in rollouts(context, 0)}
    assert {"correct", "truncated"} <= outcomes
    assert ("error" in outcomes) == (grade is grade_with_errors)
    start = AutoModelForCausalLM.from_pretrained(folders[architecture], dtype=torch.float64)
    dense_gradient(context, start, 1.5)
    largest = max(float(p.grad.abs().max()) for p in start.parameters())
    assert largest > 1e-2
    for name, parameter in start.named_parameters():
        # TRL takes logits to float32.
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5 * largest)


def test_rewards_are_the_verdicts_of_the_very_ids(
    tmp_path: Path, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], Verdict]] = []

    def watched(completion_ids: Any, verdict: Any, **others: Any) -> Any:
        seen.extend(zip(completion_ids, verdict, strict=True))
        return verdict_reward(verdict=verdict, **others)

    monkeypatch.setattr(grpo, "verdict_reward", watched)
    context = make_context(tmp_path / "run", folders["qwen3"], micro_batch_size=2)
    logged = train(context, Budget("responses", 24))
    rows = [row for step in range(3) for row in rollouts(context, step)]
    assert [(ids, str(verdict.outcome)) for ids, verdict in seen] == [
        (row["token_ids"], row["outcome"]) for row in rows
    ]
    for row in rows:
        assert (row["token_ids"][-1] == END) == (row["outcome"] != "truncated")
        assert END not in row["token_ids"][:-1]
    for step, row in enumerate(logged):
        right = [one["outcome"] == "correct" for one in rollouts(context, step)]
        assert row["reward"] == pytest.approx(sum(right) / 8)


def test_none_stands_for_a_verdict_that_says_nothing() -> None:
    verdicts = [Verdict(o) for o in (Outcome.CORRECT, Outcome.WRONG, Outcome.TRUNCATED, Outcome.ERROR)]
    assert verdict_reward(verdicts, prompts=["0"] * 4) == [1.0, 0.0, 0.0, None]


def test_a_batch_of_errors_is_survived_and_counted(
    tmp_path: Path, folders: dict[str, str], capfd: Any
) -> None:
    context = make_context(
        tmp_path / "run",
        folders["qwen3"],
        lambda items: [Verdict(Outcome.ERROR)] * len(items),
        max_new_tokens=48,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logged = train(context, Budget("responses", 16))
    errors = sum(row["outcome"] == "error" for step in range(2) for row in rollouts(context, step))
    assert errors > 8
    assert logged[-1]["verifier_errors"] == context.run.stage_info("grpo")["verifier_errors"] == errors
    assert "reward functions returned None" not in capfd.readouterr().err


def test_the_reward_rises(tmp_path: Path, folders: dict[str, str]) -> None:
    context = make_context(tmp_path / "run", folders["qwen3"], batch_size=32, micro_batch_size=32)
    logged = train(context, Budget("responses", 32 * 25))
    rewards = [row["reward"] for row in logged]
    assert sum(rewards[:3]) / 3 < 0.5
    assert sum(rewards[-3:]) / 3 > 0.9


@pytest.mark.slow  # a quarter of a minute on one core
def test_the_embedded_model_learns_arithmetic(tmp_path: Path) -> None:
    verifier = MathVerifier()

    def grade(items: Sequence[tuple[Question, str]]) -> list[Verdict]:
        return [verifier.grade(question, text) for question, text in items]

    sizes = {"learning_rate": 4e-4, "batch_size": 32, "micro_batch_size": 32, "max_new_tokens": 112}
    context = make_context(tmp_path / "run", "tiny", grade, **sizes)
    questions = split_questions(load_questions(ARITHMETIC), ARITHMETIC)
    context.sets = QuestionSets(n1=questions.n1, n2=questions.n2, tuning=[], test=[])
    rewards = [row["reward"] for row in train(context, Budget("responses", 32 * 32))]
    # Each eight steps are one pass of the 64 questions.
    assert sum(rewards[-8:]) / 8 > sum(rewards[:8]) / 8 + 0.1


def test_with_a_kl_weight_the_distance_to_the_base_model_is_part_of_the_loss(
    tmp_path: Path, folders: dict[str, str]
) -> None:
    context = make_context(
        tmp_path / "run", folders["gpt2"], grade_by_parity, kl_weight=0.5, max_new_tokens=24
    )
    logged = train(context, Budget("responses", 24))
    assert logged[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert logged[2]["kl"] > 1e-4


# ---- what is sampled ----


def test_rollouts_are_of_the_current_weights(tmp_path: Path, folders: dict[str, str]) -> None:
    context = make_context(tmp_path / "run", folders["qwen3"])
    train(context, Budget("responses", 24))
    assert [{row["weight_version"] for row in rollouts(context, step)} for step in range(3)] == [
        {0},
        {1},
        {2},
    ]


def test_every_response_has_a_seed_of_its_own(tmp_path: Path, folders: dict[str, str]) -> None:
    # Ten groups of five questions: each question is asked twice in a step.
    context = make_context(tmp_path / "run", folders["qwen3"], batch_size=20, micro_batch_size=20)
    context.sets = QuestionSets(n1=QUESTIONS[:1], n2=QUESTIONS[1:2], tuning=[], test=[])
    train(context, Budget("responses", 40))
    seeds = [row["seed"] for step in range(2) for row in rollouts(context, step)]
    assert len(set(seeds)) == 40
    assert {row["index"] for row in rollouts(context, 0)} == set(range(12))


def test_questions_come_in_groups_and_in_another_order_each_pass() -> None:
    rows = list(QuestionRows(6, steps=4, per_step=3, responses=2, repeats=2, seed=0))
    assert len(rows) == len(QuestionRows(6, steps=4, per_step=3, responses=2, repeats=2, seed=0)) == 48
    batches = [rows[start : start + 6] for start in range(0, 48, 6)]
    assert all(batches[i] == batches[i + 1] for i in range(0, 8, 2))  # read twice, used once
    assert all(batch[0::2] == batch[1::2] for batch in batches)
    first, second = batches[0][::2] + batches[2][::2], batches[4][::2] + batches[6][::2]
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


def test_a_pass_goes_over_into_the_next_without_a_rest() -> None:
    rows = list(QuestionRows(5, steps=5, per_step=2, responses=1, repeats=1, seed=3))
    assert sorted(rows[:5]) == sorted(rows[5:]) == list(range(5))


# ---- the budget ----


def test_a_budget_of_responses_is_spent_in_whole_batches(tmp_path: Path, folders: dict[str, str]) -> None:
    context = make_context(tmp_path / "run", folders["qwen3"], micro_batch_size=4)
    logged = train(context, Budget("responses", 23))
    assert [row["step"] for row in logged] == [1, 2]
    assert {row["max_steps"] for row in logged} == {2}
    counted = context.ledger.by_stage()["grpo"]
    rows = [*rollouts(context, 0), *rollouts(context, 1)]
    assert counted["responses"] == len(rows) == 16
    assert counted["sampled_tokens"] == sum(row["sampled_tokens"] for row in rows)
    assert counted["trained_tokens"] == counted["sampled_tokens"]
    assert context.run.is_done("grpo")
    before = (context.run.path("grpo/model/model.safetensors")).stat().st_mtime_ns
    train_grpo(context, "grpo", context.recipe.grpo, Budget("responses", 23))  # done is not done again
    assert (context.run.path("grpo/model/model.safetensors")).stat().st_mtime_ns == before


def test_a_budget_of_tokens_ends_after_the_step_that_spends_it(
    tmp_path: Path, folders: dict[str, str]
) -> None:
    context = make_context(tmp_path / "run", folders["qwen3"], schedule="linear")
    logged = train(context, Budget("tokens", 200))
    sampled = [sum(row["sampled_tokens"] for row in rollouts(context, step)) for step in range(len(logged))]
    assert sum(sampled[:-1]) < 200 <= sum(sampled)
    assert len(logged) > 2
    assert not context.run.path(f"grpo/rollouts/step-{len(logged):06d}.jsonl").exists()
    rates = [1e-2 * (1 - sum(sampled[:step]) / 200) for step in range(len(logged))]
    assert [row["learning_rate"] for row in logged] == pytest.approx(rates)
    assert logged[0]["max_steps"] == pytest.approx(len(logged), abs=2)
    assert logged[-1]["max_steps"] == len(logged)


@pytest.mark.parametrize("match", ["responses", "tokens"])
def test_a_budget_that_is_too_small_is_an_error_for_people(
    tmp_path: Path, folders: dict[str, str], match: Any
) -> None:
    context = make_context(tmp_path / "run", folders["qwen3"])
    with pytest.raises(UserError, match=r"smaller than one batch of GRPO \(8 responses\)") as error:
        train(context, Budget(match, 7 if match == "responses" else 0))
    assert error.value.where == f"budget.{match}"
    assert most_steps(Budget("responses", 15), 8) == 1
    assert most_steps(Budget("tokens", 17), 8) == 3


# ---- resuming, and what is left behind ----


@pytest.mark.parametrize("budget", [Budget("responses", 32), Budget("tokens", 500)], ids=str)
def test_four_steps_are_two_and_two_steps(
    tmp_path: Path, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    def context(name: str) -> RunContext:
        # Micro-batches are dealt with the global random numbers, and a pass of the questions ends in step 3.
        changes = {"micro_batch_size": 2, "max_new_tokens": 24}
        return make_context(tmp_path / name, folders["qwen3"], grade_by_parity, **changes)

    whole = context("whole")
    logged = train(whole, budget)
    assert len(logged) >= 4
    assert sum(row["grad_norm"] > 0.01 for row in logged) >= 3
    cut = context("cut")

    def die_in_step_4(trainer: Any) -> None:
        compute = trainer.compute_loss

        def dying(*args: Any, **kwargs: Any) -> Any:
            if trainer.state.global_step == 3:
                raise StopHere
            return compute(*args, **kwargs)

        trainer.compute_loss = dying

    with monkeypatch.context() as patch:
        on_trainer(patch, die_in_step_4)
        with pytest.raises(StopHere):
            train(cut, budget)
    stored = [cut.run.path(f"grpo/rollouts/step-{step:06d}.jsonl") for step in range(4)]
    times = [file.stat().st_mtime_ns for file in stored]
    again = context("cut")
    resumed = train(again, budget)
    assert [file.stat().st_mtime_ns for file in stored] == times  # read, not sampled again
    for step in range(len(logged)):
        assert rollouts(again, step) == rollouts(whole, step)
    timed = ("rollout_seconds", "update_seconds")
    assert [{k: v for k, v in row.items() if k not in timed} for row in resumed] == [
        {k: v for k, v in row.items() if k not in timed} for row in logged
    ]
    expected = trained_weights(whole)
    for name, parameter in trained_weights(again).items():
        assert torch.equal(parameter, expected[name]), name
    assert again.ledger.by_stage()["grpo"]["responses"] == 8 * len(logged)
    assert again.run.stage_info("grpo") == whole.run.stage_info("grpo")


@pytest.mark.parametrize("budget", [Budget("responses", 24), Budget("tokens", 120)], ids=str)
def test_killed_before_the_model_was_kept_trains_no_further(
    tmp_path: Path, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    def die(*_: Any) -> None:
        raise StopHere

    context = make_context(tmp_path / "run", folders["qwen3"])
    with monkeypatch.context() as patch:
        patch.setattr(RunContext, "keep", die)
        with pytest.raises(StopHere):
            train(context, budget)
    logged = context.run.read_jsonl("grpo/log.jsonl")
    last = last_complete_checkpoint(context.run.path("grpo/checkpoints"))
    assert last is not None
    expected = dict(AutoModelForCausalLM.from_pretrained(last).named_parameters())
    again = make_context(tmp_path / "run", folders["qwen3"])
    assert train(again, budget) == logged
    for name, parameter in trained_weights(again).items():
        assert torch.equal(parameter, expected[name]), name
    assert again.run.stage_info("grpo")["steps"] == len(logged)


def test_nothing_of_trl_is_left_on_the_model_or_in_the_folder(
    tmp_path: Path, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[PreTrainedModel] = []
    keep = RunContext.keep

    def watched(self: RunContext, name: str, model: PreTrainedModel, facts: dict[str, Any]) -> None:
        kept.append(model)
        assert not list(self.run.path(name).rglob("README.md"))
        keep(self, name, model, facts)

    monkeypatch.setattr(RunContext, "keep", watched)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *_, **__: pytest.fail("telemetry"))
    monkeypatch.delenv("CI", raising=False)
    context = make_context(tmp_path / "run", folders["gpt2"])
    context.tokenizer.pad_token = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(context, Budget("responses", 16))
    assert "forward" not in vars(kept[0])
    assert not kept[0]._forward_pre_hooks
    assert not kept[0].model_tags
    assert context.tokenizer.pad_token is None
    names = {path.name for path in context.run.path("grpo").iterdir() if not path.name.startswith(".")}
    assert names - {"done.json"} == {"rollouts", "log.jsonl", "model"}
    row = json.loads(context.run.path("grpo/log.jsonl").read_text().splitlines()[0])
    wanted = ("loss", "grad_norm", "reward", "tokens", "entropy", "rollout_seconds", "update_seconds")
    assert all(isinstance(row[name], float) for name in wanted)
