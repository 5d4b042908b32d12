import copy
import math
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from sdzero.errors import UserError
from sdzero.ledger import Ledger
from sdzero.method import srt
from sdzero.method.checkpoints import COMPLETE_MARKER, last_complete_checkpoint
from sdzero.method.roles import Roles, WeightedSequence
from sdzero.method.srt import SRTConfig, srt_rows, train_weighted, weighted_loss_sum
from sdzero.method.trace import RevisionTrace
from sdzero.method.weighted_batches import LengthSortedSampler, WeightedCollator
from sdzero.packed_attention import enable_packing
from sdzero.recipe import ChatSettings, PhraseSettings, SrtSettings
from sdzero.recipe_base import OptimizerSettings

VOCABULARY, CONTEXT = 23, 40


def make_model(dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).to(dtype)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<end>", "<user>", "<assistant>", *"abcdefghijklmnopqrs"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template="{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
    )


def make_sequence(ids: list[int], weights: list[float]) -> WeightedSequence:
    return WeightedSequence(tuple(ids), tuple(weights), (("response", 0, len(ids)),))


def make_sequences(count: int) -> list[WeightedSequence]:
    rng = random.Random(2)
    rows = []
    for _ in range(count):
        prompt, rest = rng.randint(2, 6), rng.randint(1, 20)
        ids = [rng.randrange(1, VOCABULARY) for _ in range(prompt + rest)]
        rows.append(make_sequence(ids, [0.0] * prompt + [rng.choice([0.5, 1.0, 2.0]) for _ in range(rest)]))
    return rows


def make_settings(batch_size: int = 8, micro_batch_size: int = 8, **changes: object) -> OptimizerSettings:
    values = {"learning_rate": 0.01, "batch_size": batch_size, "micro_batch_size": micro_batch_size} | changes
    return OptimizerSettings(**values)


def loss_by_hand(model: PreTrainedModel, sequences: list[WeightedSequence]) -> torch.Tensor:
    """Row by row without padding, token by token: sum of weight * -log p over sum of weights."""
    total, weight_sum = 0.0, 0.0
    for sequence in sequences:
        log_p = model(torch.tensor([sequence.token_ids])).logits[0].log_softmax(-1)
        for place in range(1, len(sequence.token_ids)):
            total = total - sequence.weights[place] * log_p[place - 1, sequence.token_ids[place]]
            weight_sum += sequence.weights[place]
    return total / weight_sum


def make_batch(sequences: list[WeightedSequence], packed: bool = False) -> dict[str, torch.Tensor]:
    rows = [{"input_ids": list(s.token_ids), "token_weights": list(s.weights)} for s in sequences]
    (part,) = WeightedCollator(0, packed=packed)(rows)["parts"]
    return part


# ---- the loss ----


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("logits_at_a_time", [1 << 27, VOCABULARY * 7])
def test_loss_and_gradient_are_those_worked_by_hand(monkeypatch, logits_at_a_time, packed):
    monkeypatch.setattr(srt, "LOGITS_AT_A_TIME", logits_at_a_time)
    model, sequences = make_model(), make_sequences(5)
    if packed:
        enable_packing(model)
    batch = make_batch(sequences, packed)
    assert (batch["lengths"] is not None) == packed
    loss = weighted_loss_sum(model, batch["ids"], batch["weights"], batch["lengths"])
    ours = loss / batch["weights"].sum()
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = loss_by_hand(model, sequences)
    expected.backward()
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-14)


def test_the_first_token_has_no_prediction_so_its_weight_counts_nowhere(tmp_path, tokenizer):
    ids = [3, 4, 5]
    logs = []
    train_weighted(
        make_model(),
        tokenizer,
        [make_sequence(ids, [9.0, 1.0, 1.0])],
        make_settings(),
        epochs=1,
        checkpoint_every=1,
        output_dir=tmp_path,
        seed=0,
        log=logs.append,
    )
    expected = loss_by_hand(make_model(), [make_sequence(ids, [0.0, 1.0, 1.0])])
    assert logs[0]["loss"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 8])
def test_weights_after_training_do_not_depend_on_the_micro_batch(tmp_path, tokenizer, micro_batch_size):
    sequences = make_sequences(13)  # the last batch of the epoch is not full
    trained, losses = [], []
    for name, micro in (("whole", 8), ("cut", micro_batch_size)):
        model, logs = make_model(), []
        steps = train_weighted(
            model,
            tokenizer,
            sequences,
            make_settings(8, micro),
            epochs=2,
            checkpoint_every=100,
            output_dir=tmp_path / name,
            seed=5,
            log=logs.append,
        )
        assert steps == 4
        trained.append(model)
        losses.append([entry["loss"] for entry in logs])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, parameter in trained[0].named_parameters():
        torch.testing.assert_close(trained[1].get_parameter(name), parameter, rtol=1e-7, atol=1e-9)


def test_first_logged_loss_is_the_mean_over_the_global_batch(tmp_path, tokenizer):
    sequences, logs = make_sequences(8), []
    train_weighted(
        make_model(),
        tokenizer,
        sequences,
        make_settings(8, 2),
        epochs=1,
        checkpoint_every=100,
        output_dir=tmp_path,
        seed=0,
        log=logs.append,
    )
    assert logs[0]["loss"] == pytest.approx(loss_by_hand(make_model(), sequences).item(), rel=1e-6)
    assert (logs[0]["step"], logs[0]["max_steps"]) == (1, 1)


# ---- training ----


def test_training_lowers_the_loss_and_leaves_an_ordinary_model(tmp_path, tokenizer):
    sequences, model = make_sequences(8), make_model(torch.float32)
    before = loss_by_hand(model, sequences).item()
    train_weighted(
        model,
        tokenizer,
        sequences,
        make_settings(),
        epochs=15,
        checkpoint_every=100,
        output_dir=tmp_path,
        seed=0,
        gradient_checkpointing=True,
    )
    after = loss_by_hand(model, sequences).item()
    assert after < 0.7 * before
    # TRL's trainer patches the model's forward; a copy must run its own weights, not the original's.
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert loss_by_hand(twin, sequences).item() == pytest.approx(after)


def train_from(folder: Path, tokenizer, stop_at: int | None = None) -> tuple[PreTrainedModel, list[dict]]:
    """Train 2 epochs of 3 steps with checkpoints every 2; `stop_at` breaks off after that step."""
    model, logs = make_model(torch.float32), []

    def log(values: dict) -> None:
        logs.append(values)
        if values["step"] == stop_at:
            raise KeyboardInterrupt

    arguments = {"epochs": 2, "checkpoint_every": 2, "output_dir": folder, "seed": 7, "log": log}
    settings = make_settings(4, 2, schedule="cosine", warmup_ratio=0.2, weight_decay=0.01)
    train_weighted(model, tokenizer, make_sequences(11), settings, **arguments)
    return model, logs


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5, 6])
def test_a_run_that_was_killed_ends_in_the_same_weights_bit_for_bit(tmp_path, tokenizer, stop_at):
    straight, straight_logs = train_from(tmp_path / "straight", tokenizer)
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        train_from(folder, tokenizer, stop_at)
    torch.manual_seed(stop_at)  # a new process has other random state
    resumed, resumed_logs = train_from(folder, tokenizer)
    assert resumed_logs[0]["step"] == (stop_at - 1) // 2 * 2 + 1, "the log comes before the checkpoint"
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    tail = straight_logs[-len(resumed_logs) :]
    assert [entry["loss"] for entry in resumed_logs] == [entry["loss"] for entry in tail]


def test_a_finished_training_is_not_done_again(tmp_path, tokenizer):
    first, _ = train_from(tmp_path, tokenizer)
    second, logs = train_from(tmp_path, tokenizer)
    assert logs == []
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))


def test_torn_checkpoints_are_removed_and_the_newest_whole_one_is_taken(tmp_path):
    for step, whole in ((8, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if whole:
            (folder / COMPLETE_MARKER).write_text("{}")
    (tmp_path / "checkpoint-notes").mkdir()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-8",
        "checkpoint-notes",
    ]
    assert last_complete_checkpoint(tmp_path / "absent") is None


def test_trained_tokens_are_counted_once_over_a_resumed_run(tmp_path, tokenizer):
    sequences = make_sequences(11)
    per_epoch = sum(sum(weight > 0 for weight in s.weights) for s in sequences)
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def train(log=None):
        train_weighted(
            make_model(torch.float32),
            tokenizer,
            sequences,
            make_settings(4, 2),
            epochs=2,
            checkpoint_every=2,
            output_dir=tmp_path / "checkpoints",
            seed=7,
            log=log,
            ledger=ledger,
            stage="srt",
            key="round-1",
        )

    def stop(values):
        if values["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stop)
    train()
    assert ledger.totals()["trained_tokens"] == 2 * per_epoch


def test_a_loss_that_is_not_a_number_stops_training(tmp_path, tokenizer):
    model = make_model(torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight[VOCABULARY - 1] = math.nan
    with pytest.raises(UserError, match="loss is nan at step 1"):
        train_weighted(
            model,
            tokenizer,
            make_sequences(4),
            make_settings(),
            epochs=1,
            checkpoint_every=1,
            output_dir=tmp_path,
            seed=0,
        )


@pytest.mark.parametrize(
    ("sequences", "settings", "message"),
    [
        ([], make_settings(), "no sequences"),
        ([make_sequence([3] * (CONTEXT + 1), [1.0] * (CONTEXT + 1))], make_settings(), "context is 40"),
        ([make_sequence([3, 4], [0.0, 0.0])], make_settings(), "no token with a weight"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(tmp_path, tokenizer, sequences, settings, message):
    with pytest.raises(UserError, match=message):
        train_weighted(
            make_model(),
            tokenizer,
            sequences,
            settings,
            epochs=1,
            checkpoint_every=1,
            output_dir=tmp_path,
            seed=0,
        )


@pytest.mark.parametrize("change", [{"max_length": 1024}, {"packing": True}])
def test_the_config_cannot_be_told_to_cut_or_pack(tmp_path, change):
    with pytest.raises(UserError, match=next(iter(change))):
        SRTConfig(output_dir=str(tmp_path), use_cpu=True, **change)


# ---- batches ----


def test_every_row_comes_once_an_epoch_in_batches_of_like_length():
    rng = random.Random(0)
    lengths = [rng.randint(5, 100) for _ in range(203)]
    sampler = LengthSortedSampler(lengths, 8, seed=3)
    first, again = list(sampler), list(LengthSortedSampler(lengths, 8, seed=3))
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(203))
    assert first == again
    assert first != second
    assert first != list(LengthSortedSampler(lengths, 8, seed=4))

    def padded(order):
        return sum(max(lengths[row] for row in order[i : i + 8]) * 8 for i in range(0, 200, 8))

    assert padded(first) < 0.75 * padded(range(200))


def test_the_collator_refuses_weights_that_do_not_fit():
    with pytest.raises(ValueError, match="3 token ids but 2 weights"):
        WeightedCollator(0)([{"input_ids": [1, 2, 3], "token_weights": [0.0, 1.0]}])


@pytest.mark.parametrize("packed", [False, True])
def test_training_in_parts_and_packed_ends_in_the_same_weights(tmp_path, tokenizer, packed):
    """Through the trainer, to rounding: whole padded micro-batches, and parts of at most 30 tokens."""
    ends, shapes = [], []
    for limit in (None, 30):
        model = make_model()
        if packed and limit:
            enable_packing(model)
        if limit:
            model.model.register_forward_pre_hook(
                lambda module, _, keywords: shapes.append((module.training, keywords["input_ids"].shape)),
                with_kwargs=True,
            )
        train_weighted(
            model,
            tokenizer,
            make_sequences(11),
            make_settings(micro_batch_tokens=limit),
            epochs=2,
            checkpoint_every=100,
            output_dir=tmp_path / str(limit),
            seed=0,
        )
        ends.append(dict(model.named_parameters()))
    trained = [shape for is_training, shape in shapes if is_training]
    assert len(trained) > 4  # more than the micro-batches
    assert all(shape.numel() <= 30 for shape in trained)
    assert any(shape[0] > 1 for shape in trained) != packed
    for name, parameter in ends[0].items():
        torch.testing.assert_close(ends[1][name], parameter, rtol=1e-6, atol=1e-9)


# ---- the stages ----


def make_trace(reward: int) -> RevisionTrace:
    return RevisionTrace(f"question {reward}", (2, 5, 1, 3), (6, 7, 1), reward, (8, 9, 10, 1))


@pytest.fixture(scope="module")
def roles(tokenizer) -> Roles:
    return Roles(tokenizer, PhraseSettings(correct="p", wrong="q"), ChatSettings())


def test_joint_stage_weighs_both_losses(roles):
    settings = SrtSettings(learning_rate=1.0, generation_weight=0.5, revision_weight=2.0)
    (stage,) = srt_rows([make_trace(0), make_trace(1)], roles, settings)
    phrase = len(roles.control_phrase_ids(0))
    # y_init without its end token and P_r weigh 0.5, y_revised 0.5 + 2.
    expected = (0.0,) * 4 + (0.5,) * (2 + phrase) + (2.5,) * 4
    assert [sequence.weights for sequence in stage] == [expected, expected]
    assert stage[0].token_ids != stage[1].token_ids, "the control phrase follows the reward"


def test_generation_on_wrong_leaves_the_revision_loss_on_right_ones(roles):
    settings = SrtSettings(learning_rate=1.0, generation_on="wrong")
    (stage,) = srt_rows([make_trace(0), make_trace(1)], roles, settings)
    phrase = len(roles.control_phrase_ids(0))
    assert stage[0].weights == (0.0,) * 4 + (1.0,) * (2 + phrase) + (2.0,) * 4
    assert stage[1].weights == (0.0,) * (6 + phrase) + (1.0,) * 4


def test_two_stages_are_generation_on_wrong_then_revision_on_all(roles):
    settings = SrtSettings(learning_rate=1.0, schedule_of_losses="two_stage")
    generation, revision = srt_rows([make_trace(1), make_trace(0)], roles, settings)
    phrase = len(roles.control_phrase_ids(0))
    assert [sequence.weights for sequence in generation] == [(0.0,) * 4 + (1.0,) * (6 + phrase)]
    assert [sequence.weights for sequence in revision] == [(0.0,) * (6 + phrase) + (1.0,) * 4] * 2


@pytest.mark.parametrize(("schedule", "rewards"), [("two_stage", [1]), ("joint", [])])
def test_a_stage_without_traces_is_refused(roles, schedule, rewards):
    settings = SrtSettings(learning_rate=1.0, schedule_of_losses=schedule)
    with pytest.raises(UserError, match="stage 1"):
        srt_rows([make_trace(reward) for reward in rewards], roles, settings)


def test_a_trace_survives_json():
    trace = make_trace(1)
    assert RevisionTrace.from_json(trace.to_json()) == trace
