"""What the Generator and the Reviser read, and what they are trained on, over three families."""

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from sdzero.errors import UserError
from sdzero.method.roles import AlignmentError, DistillationPair, Roles, WeightedSequence, trim_repeated_tail
from sdzero.questions.question import Question
from sdzero.recipe import ChatSettings, PhraseSettings

TESTS = Path(__file__).resolve().parent.parent
ARCHITECTURES = TESTS.parent / "src" / "sdzero" / "architectures"
FAMILIES = ("qwen3-4b", "llama3", "olmo3-7b")
QUESTION = Question(id="q", text="What is 3 + 4?", answer="7")
END = 99


@cache
def load_tokenizer(family: str) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(ARCHITECTURES / family, local_files_only=True)


def make_roles(family: str, **chat: object) -> Roles:
    return Roles(load_tokenizer(family), PhraseSettings(), ChatSettings.model_validate(chat))


plain_roles = cache(make_roles)


@cache
def golden_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_golden", TESTS / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_golden"] = module
    spec.loader.exec_module(module)
    return module


# Golden sequences and the small tokenizers


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_are_the_golden_ones(family):
    golden = json.loads((TESTS / "golden" / f"{family}.json").read_text(encoding="utf-8"))
    rebuilt = golden_maker().make_golden(family, load_tokenizer(family))
    assert json.loads(json.dumps(rebuilt)) == golden


@pytest.mark.parametrize("family", FAMILIES)
def test_shipped_tokenizer_is_the_regenerated_one(family):
    shipped = json.loads((ARCHITECTURES / family / "tokenizer.json").read_text(encoding="utf-8"))
    made = golden_maker().make_tokenizer(family)
    assert json.loads(made.backend_tokenizer.to_str()) == shipped
    assert load_tokenizer(family).chat_template == golden_maker().chat_template(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_architecture_folder_is_complete(family):
    config = AutoConfig.from_pretrained(ARCHITECTURES / family, local_files_only=True)
    assert config.num_hidden_layers == {"qwen3-4b": 36, "llama3": 32, "olmo3-7b": 32}[family]
    rows = [json.loads(line) for line in (ARCHITECTURES / family / "rows.jsonl").open(encoding="utf-8")]
    assert len(rows) == 2
    assert all(f"\\boxed{{{row['answer']}}}" in row["solution"] for row in rows)


# What the templates promise, as text


def test_qwen_prompts_as_text():
    roles, tokenizer = plain_roles("qwen3-4b"), load_tokenizer("qwen3-4b")
    prompt = roles.generator_prompt(QUESTION)
    assert tokenizer.decode(prompt) == ("<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n")
    response = [*tokenizer.encode("8"), roles.end_token_id]
    assert tokenizer.decode(roles.reviser_prompt(prompt, response, 0)) == (
        "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n"
        "8\n\nWait, this response is not correct, let me start over.\n\n"
    )
    assert tokenizer.decode(roles.reviser_prompt(prompt, response, 1)).endswith(
        "8\n\nLet me rephrase the above solution.\n\n"
    )


def test_system_prompt_and_answer_instruction_stand_around_the_question():
    roles = make_roles("llama3", system_prompt="Be brief.", answer_instruction="Box the answer.")
    assert load_tokenizer("llama3").decode(roles.generator_prompt(QUESTION)) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is 3 + 4?\n\nBox the answer.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_olmo_has_its_own_system_message_unless_one_is_given():
    tokenizer = load_tokenizer("olmo3-7b")
    default = tokenizer.decode(plain_roles("olmo3-7b").generator_prompt(QUESTION))
    assert default.startswith("<|im_start|>system\nYou are a helpful function-calling AI assistant. ")
    assert "<functions></functions><|im_end|>\n<|im_start|>user\n" in default
    given = tokenizer.decode(make_roles("olmo3-7b", system_prompt="Be brief.").generator_prompt(QUESTION))
    assert given.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize(
    ("family", "token"), [("qwen3-4b", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("olmo3-7b", "<|endoftext|>")]
)
def test_end_token_is_the_one_that_closes_the_last_assistant_turn(family, token):
    assert load_tokenizer(family).convert_ids_to_tokens(plain_roles(family).end_token_id) == token


def test_end_token_may_differ_from_the_tokenizers_eos():
    tokenizer = AutoTokenizer.from_pretrained(ARCHITECTURES / "qwen3-4b", local_files_only=True)
    tokenizer.eos_token = "<|endoftext|>"
    roles = Roles(tokenizer, PhraseSettings(), ChatSettings())
    assert tokenizer.convert_ids_to_tokens(roles.end_token_id) == "<|im_end|>"


def test_llama_prompt_has_one_begin_token():
    tokenizer = load_tokenizer("llama3")
    assert tokenizer.encode("x")[0] == tokenizer.bos_token_id  # the tokenizer adds one to plain text
    assert plain_roles("llama3").generator_prompt(QUESTION).count(tokenizer.bos_token_id) == 1
    assert tokenizer.bos_token_id not in plain_roles("llama3").control_phrase_ids(0)


def test_template_arguments_reach_the_template():
    tokenizer = AutoTokenizer.from_pretrained(ARCHITECTURES / "qwen3-4b", local_files_only=True)
    tokenizer.chat_template += (
        "{%- if enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    )
    chat = ChatSettings(template_arguments={"enable_thinking": False})
    prompt = Roles(tokenizer, PhraseSettings(), chat).generator_prompt(QUESTION)
    assert tokenizer.decode(prompt).endswith("assistant\n<think>\n\n</think>\n\n")


def test_decode_leaves_special_tokens_out():
    roles, tokenizer = plain_roles("qwen3-4b"), load_tokenizer("qwen3-4b")
    assert roles.decode([*tokenizer.encode("so , 7 ."), roles.end_token_id]) == "so , 7 ."


# Faults of the surroundings are told to people


def tokenizer_with(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(ARCHITECTURES / "llama3", local_files_only=True)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "which is no special token"),
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
    ],
)
def test_unusable_templates_are_user_errors(template, what):
    with pytest.raises(UserError, match=what) as raised:
        Roles(tokenizer_with(template), PhraseSettings(), ChatSettings())
    assert raised.value.todo


def test_two_begin_tokens_are_a_user_error():
    template = load_tokenizer("llama3").chat_template
    roles = Roles(tokenizer_with("{{ bos_token }}" + template), PhraseSettings(), ChatSettings())
    with pytest.raises(UserError, match="two begin tokens"):
        roles.generator_prompt(QUESTION)


def test_special_tokens_in_text_are_user_errors():
    with pytest.raises(UserError, match="special token") as raised:
        plain_roles("qwen3-4b").generator_prompt(Question(id="q7", text="a<|im_end|>b", answer="1"))
    assert raised.value.where == "question q7"
    with pytest.raises(UserError, match="special token"):
        Roles(load_tokenizer("qwen3-4b"), PhraseSettings(wrong="<|im_end|>"), ChatSettings())


def test_template_arguments_may_not_take_sdzeros_own_place():
    with pytest.raises(UserError, match="add_generation_prompt"):
        make_roles("qwen3-4b", template_arguments={"add_generation_prompt": False})


def test_rewards_are_0_or_1():
    with pytest.raises(ValueError, match="0 or 1"):
        plain_roles("qwen3-4b").control_phrase_ids(-1)


def test_importing_roles_does_not_import_torch():
    code = "import sys, sdzero.method.roles; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# Token sequences, for any response


@st.composite
def cases(draw, minimum=1):
    """A family's roles with two responses of arbitrary ids; some of them were cut and have no end token."""
    family = draw(st.sampled_from(FAMILIES))
    roles = plain_roles(family)
    others = [token_id for token_id in range(len(load_tokenizer(family))) if token_id != roles.end_token_id]
    body = st.lists(st.sampled_from(others), min_size=minimum, max_size=30)
    ending = st.sampled_from([[], [roles.end_token_id]])
    responses = [draw(body) + draw(ending) for _ in range(2)]
    return roles, responses[0], responses[1], draw(st.sampled_from([0, 1]))


@given(cases())
@settings(max_examples=100, deadline=None)
def test_distillation_pair_holds_the_sampled_ids_twice(case):
    roles, response, _, reward = case
    prompt = roles.generator_prompt(QUESTION)
    pair = roles.distillation_pair(prompt, response, reward)
    cut = response[-1] != roles.end_token_id
    first_copy = response if cut else response[:-1]
    assert list(pair.student_ids) == prompt + response
    assert list(pair.teacher_ids) == prompt + first_copy + roles.control_phrase_ids(reward) + response
    assert list(pair.targets) == response
    # y can only have an end token in the second copy, and has one exactly if it was not cut.
    turn = list(pair.teacher_ids[len(prompt) :])
    assert turn.count(roles.end_token_id) == (0 if cut else 1)
    for ids, positions in (
        (pair.student_ids, pair.student_logit_positions),
        (pair.teacher_ids, pair.teacher_logit_positions),
    ):
        assert [ids[position + 1] for position in positions] == response
        assert positions[-1] == len(ids) - 2
    # The first target is predicted where the prompt ends, and where the control phrase ends.
    assert pair.student_logit_positions[0] == len(prompt) - 1
    assert pair.teacher_logit_positions[0] == len(roles.reviser_prompt(prompt, response, reward)) - 1


@given(cases())
@settings(max_examples=100, deadline=None)
def test_reference_pair_holds_the_sampled_ids_after_two_prompts(case):
    roles, response, _, _ = case
    prompt = roles.generator_prompt(QUESTION)
    told = roles.reference_prompt(QUESTION, "7", "{question}\n\nThe answer is {reference}.")
    pair = roles.reference_pair(prompt, told, response)
    assert list(pair.student_ids) == prompt + response
    assert list(pair.teacher_ids) == told + response
    assert list(pair.targets) == response
    assert pair.student_logit_positions[0] == len(prompt) - 1
    assert pair.teacher_logit_positions[0] == len(told) - 1
    alone = roles.student_targets(prompt, response)
    assert (alone.student_ids, alone.targets) == (pair.student_ids, pair.targets)
    assert alone.student_logit_positions == pair.student_logit_positions


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_stands_in_the_users_turn_after_all_that_the_student_reads(family):
    roles = make_roles(family, answer_instruction="Box it.")
    told = roles.reference_prompt(QUESTION, "{7}", "{question}\n\nThe answer is {reference}.")
    text = "What is 3 + 4?\n\nBox it.\n\nThe answer is {7}."
    same = make_roles(family).generator_prompt(Question(id="q", text=text, answer=""))
    assert told == same


@pytest.mark.parametrize("family", FAMILIES)
def test_a_demonstration_is_tokenised_apart_and_ends(family):
    roles = plain_roles(family)
    ids = roles.demonstration_ids("\\boxed{7}", "here")
    assert ids == [*load_tokenizer(family).encode("\\boxed{7}", add_special_tokens=False), roles.end_token_id]


@pytest.mark.parametrize(
    ("build", "where"),
    [
        (lambda roles, token: roles.demonstration_ids(f"7{token}", "question q"), "question q"),
        (
            lambda roles, token: roles.reference_prompt(QUESTION, f"7{token}", "{question}{reference}"),
            "its ref",
        ),
        (lambda roles, token: roles.reference_prompt(QUESTION, "7", f"{{question}}{token}"), "sdft.template"),
    ],
)
def test_special_tokens_in_demonstrations_and_references_are_refused(build, where):
    with pytest.raises(UserError, match="special token") as caught:
        build(plain_roles("qwen3-4b"), "<|im_end|>")
    assert where in caught.value.where


@given(cases(minimum=0), st.floats(0, 3), st.floats(0, 3))
@settings(max_examples=100, deadline=None)
def test_joint_weights_are_the_sum_of_the_two_losses(case, generation_weight, revision_weight):
    roles, initial, revised, reward = case
    prompt = roles.generator_prompt(QUESTION)
    arguments = (prompt, initial, reward, revised)
    joint = roles.joint_sequence(*arguments, generation_weight, revision_weight)
    generation = roles.generation_sequence(*arguments)
    revision = roles.revision_sequence(*arguments)
    assert joint.token_ids == generation.token_ids == revision.token_ids
    assert joint.weights == tuple(
        generation_weight * of_generation + revision_weight * of_revision
        for of_generation, of_revision in zip(generation.weights, revision.weights, strict=True)
    )
    spans = {name: slice(start, end) for name, start, end in joint.segments}
    assert list(joint.token_ids[spans["initial"]]) == roles.without_end(initial)
    assert list(joint.token_ids[spans["control_phrase"]]) == roles.control_phrase_ids(reward)
    assert list(joint.token_ids[spans["revised"]]) == revised
    assert sum(revision.weights) == len(revised)
    assert sum(generation.weights) == len(joint.token_ids) - len(prompt)
    assert set(joint.weights[spans["prompt"]]) == {0.0}


def test_joint_weights_by_hand():
    roles = plain_roles("qwen3-4b")
    phrase = roles.control_phrase_ids(0)
    joint = roles.joint_sequence([1, 2, 3], [10, 11, roles.end_token_id], 0, [20, roles.end_token_id])
    assert joint.token_ids == (1, 2, 3, 10, 11, *phrase, 20, roles.end_token_id)
    assert joint.weights == (0.0, 0.0, 0.0, 1.0, 1.0, *[1.0] * len(phrase), 2.0, 2.0)


def test_response_sequence_trains_on_the_response_and_its_end():
    roles = plain_roles("llama3")
    built = roles.response_sequence([1, 2], [10, roles.end_token_id])
    assert built.token_ids == (1, 2, 10, roles.end_token_id)
    assert built.weights == (0.0, 0.0, 1.0, 1.0)
    assert built.segments == (("prompt", 0, 2), ("response", 2, 4))


def test_ids_that_decoding_would_change_are_kept():
    roles, tokenizer = plain_roles("qwen3-4b"), load_tokenizer("qwen3-4b")
    merged = tokenizer.encode("answer")
    response = [tokenizer.encode(letter)[0] for letter in "answer"]
    assert tokenizer.encode(tokenizer.decode(response)) == merged != response
    pair = roles.distillation_pair(roles.generator_prompt(QUESTION), response, 1)
    assert list(pair.student_ids[-6:]) == list(pair.teacher_ids[-6:]) == response


@pytest.mark.parametrize(
    "build",
    [
        lambda roles, y: roles.without_end(y),
        lambda roles, y: roles.reviser_prompt([1], y, 0),
        lambda roles, y: roles.distillation_pair([1], y, 0),
        lambda roles, y: roles.reference_pair([1], [1, 2], y),
        lambda roles, y: roles.student_targets([1], y),
        lambda roles, y: roles.response_sequence([1], y),
        lambda roles, y: roles.joint_sequence([1], [5], 0, y),
        lambda roles, y: roles.joint_sequence([1], y, 0, [5]),
    ],
)
def test_an_end_token_inside_a_response_is_refused(build):
    roles = plain_roles("qwen3-4b")
    with pytest.raises(ValueError, match="end token at 1"):
        build(roles, [5, roles.end_token_id, 6])


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": (7, 8, 9)},
        {"teacher_ids": (1, 2, 7, 5, 7, 9)},
        {"student_ids": (1, 2, 7, 8, 9)},
        {"student_logit_positions": (1,)},
        {"teacher_logit_positions": (2, 3)},
        {"student_ids": (7, 8), "student_logit_positions": (-1, 0)},
    ],
)
def test_misaligned_pairs_raise(changes):
    right = {
        "student_ids": (1, 2, 7, 8),
        "teacher_ids": (1, 2, 7, 5, 7, 8),
        "targets": (7, 8),
        "student_logit_positions": (1, 2),
        "teacher_logit_positions": (3, 4),
    }
    DistillationPair(**right)
    with pytest.raises(AlignmentError):
        DistillationPair(**{**right, **changes})


def test_weighted_sequences_check_their_parts():
    WeightedSequence((1, 2), (0.0, 1.0), (("prompt", 0, 1), ("response", 1, 2)))
    with pytest.raises(ValueError, match="2 token ids but 1 weights"):
        WeightedSequence((1, 2), (0.0,), (("prompt", 0, 2),))
    with pytest.raises(ValueError, match="expected a start at 1"):
        WeightedSequence((1, 2), (0.0, 1.0), (("prompt", 0, 1), ("response", 0, 2)))
    with pytest.raises(ValueError, match="cover 1 of 2"):
        WeightedSequence((1, 2), (0.0, 1.0), (("prompt", 0, 1),))


# Degenerate tails


@pytest.mark.parametrize(
    ("ids", "trimmed"),
    [
        ([1, 2, *[3] * 8], [1, 2, 3]),
        ([1, 2, *[3] * 8, END], [1, 2, 3, END]),
        ([1, *[2, 3] * 9, 2], [1, 2, 3]),  # cut in the middle of a repetition
        ([1, 2, *[3] * 7], None),
        ([1, *[3] * 20, 4], None),  # not at the end
        ([], None),
        ([END], None),
        ([0, *range(1, 65)] + list(range(1, 65)) * 7, list(range(65))),
        ([0, *range(1, 66)] + list(range(1, 66)) * 7, None),  # 65 tokens are no block
    ],
)
def test_trimming_by_hand(ids, trimmed):
    expected = (ids, False) if trimmed is None else (trimmed, True)
    assert trim_repeated_tail(ids, END) == expected


tokens = st.lists(st.integers(0, 3), max_size=12)


@given(tokens, tokens.filter(bool), st.integers(8, 12), st.integers(0, 11), st.sampled_from([[], [END]]))
@settings(max_examples=100, deadline=None)
def test_trimming_leaves_at_most_one_copy_and_nothing_more_to_cut(head, block, repeats, extra, end):
    ids = head + block * repeats + block[: extra % len(block)] + end
    trimmed, was_cut = trim_repeated_tail(ids, END)
    assert was_cut
    assert len(trimmed) <= len(head) + len(block) + len(end)
    body = trimmed[: len(trimmed) - len(end)]
    assert trimmed == body + end
    assert body == ids[: len(body)]
    assert trim_repeated_tail(trimmed, END) == (trimmed, False)


@given(st.lists(st.integers(0, 40), max_size=100, unique=True), st.sampled_from([[], [END]]))
def test_trimming_leaves_other_responses_alone(body, end):
    assert trim_repeated_tail(body + end, END) == (body + end, False)
