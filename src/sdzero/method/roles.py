"""Generator and Reviser: every prompt and every token sequence is built here and nowhere else.

One policy plays both roles (arXiv 2604.12002, section 3). The Generator reads the question x; the
Reviser reads x, a response y and the control phrase P_r, all inside one assistant turn:

    Generator   chat(x)
    Reviser     chat(x) + y + "\\n\\n" + P_r + "\\n\\n"

The baselines' sequences are built here too. SDFT's teacher reads the question with its reference:

    reference   chat(template filled with x and the reference)

Responses are token ids, exactly as sampled. They are put side by side with ids that were tokenised
apart, once; nothing is decoded and encoded again, since the ids that come back from that can differ
from those the policy sampled. The first copy of y loses its end-of-turn token, because the assistant
turn goes on; the last response of a sequence keeps it, so that stopping is learned. Imports no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from jinja2.exceptions import TemplateError

from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.recipe import ChatSettings, PhraseSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_REPEAT_PERIOD = 64
"""Longest block, in tokens, that counts as a degenerate repetition."""
MIN_REPEATS = 8
"""How often a block must stand at the end before it counts as one."""

_PROBE = "PROBE"
"""Stands for the content of a message when a chat template is looked at."""


class AlignmentError(RuntimeError):
    """The student's and the teacher's positions of the same target token do not agree."""


@dataclass(frozen=True)
class WeightedSequence:
    """Token ids with the weight that each has as a target of the loss; 0 means no loss.

    `segments` are (name, start, end) spans that cover the sequence in order; names are `prompt`,
    `initial`, `control_phrase`, `revised`, `response`. Raises ValueError when the parts disagree.
    """

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]
    segments: tuple[tuple[str, int, int], ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.weights):
            raise ValueError(f"{len(self.token_ids)} token ids but {len(self.weights)} weights")
        position = 0
        for name, start, end in self.segments:
            if start != position or end < start:
                raise ValueError(f"segment `{name}` spans {start}..{end}, expected a start at {position}")
            position = end
        if position != len(self.token_ids):
            raise ValueError(f"segments cover {position} of {len(self.token_ids)} tokens")


@dataclass(frozen=True)
class DistillationPair:
    """The student's and the teacher's context of the same y, and where the logits of each y_t are.

    The logits at `student_logit_positions[t]` of the student's sequence and those at
    `teacher_logit_positions[t]` of the teacher's both predict `targets[t]` (equation 5). Raises
    AlignmentError unless the lengths agree, the positions run without a gap up to the end of both
    sequences, and on both sides the next token is the target. `loss_weights` are those of the targets; None
    means that each weighs 1.
    """

    student_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]
    targets: tuple[int, ...]
    student_logit_positions: tuple[int, ...]
    teacher_logit_positions: tuple[int, ...]
    loss_weights: tuple[float, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_side("student", self.student_ids, self.student_logit_positions, self.targets)
        _check_side("teacher", self.teacher_ids, self.teacher_logit_positions, self.targets)
        _check_weights(self.loss_weights, self.targets)

    @property
    def context_tokens(self) -> int:
        """How many tokens the longer of the two sequences has: the teacher's reads more."""
        return len(self.teacher_ids)


@dataclass(frozen=True)
class ContrastivePair(DistillationPair):
    """A pair, and y in the teacher's context with the other control phrase.

    The teacher also reads the student's context, without any phrase.
    """

    other_ids: tuple[int, ...]
    other_logit_positions: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side("other phrase's", self.other_ids, self.other_logit_positions, self.targets)

    @property
    def context_tokens(self) -> int:
        """How many tokens the longest of the sequences has."""
        return max(len(self.teacher_ids), len(self.other_ids))


@dataclass(frozen=True)
class StudentTargets:
    """The student's context of y where no teacher is asked; asserts the same as `DistillationPair`."""

    student_ids: tuple[int, ...]
    targets: tuple[int, ...]
    student_logit_positions: tuple[int, ...]
    loss_weights: tuple[float, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_side("student", self.student_ids, self.student_logit_positions, self.targets)
        _check_weights(self.loss_weights, self.targets)

    @property
    def context_tokens(self) -> int:
        """How many tokens the sequence has."""
        return len(self.student_ids)


def _check_side(
    side: str, token_ids: tuple[int, ...], positions: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    if len(positions) != len(targets):
        raise AlignmentError(f"{len(targets)} targets but {len(positions)} {side} positions")
    first = len(token_ids) - 1 - len(targets)
    if first < 0 or positions != tuple(range(first, first + len(targets))):
        raise AlignmentError(f"the {side} positions do not run up to the end of its sequence")
    if token_ids[first + 1 :] != targets:
        raise AlignmentError(f"the {side} sequence does not end with the targets")


def _check_weights(weights: tuple[float, ...] | None, targets: tuple[int, ...]) -> None:
    if weights is not None and len(weights) != len(targets):
        raise AlignmentError(f"{len(targets)} targets but {len(weights)} loss weights")


class Roles:
    """Builds what the Generator and the Reviser read, and the sequences that they are trained on.

    Responses everywhere are the sampler's ids. They may lack the end token (cut by the length limit);
    one that has an end token before its last place raises ValueError. `reward` is 0 or 1, anything else
    raises ValueError. The constructor raises UserError for a tokenizer that cannot serve.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, phrases: PhraseSettings, chat: ChatSettings
    ) -> None:
        self._tokenizer = tokenizer
        self._chat = chat
        if not tokenizer.chat_template:
            raise UserError(
                "The tokenizer has no chat template",
                where=f"model.path ({tokenizer.name_or_path})",
                todo="use an instruction-tuned checkpoint, or put a chat_template.jinja into its folder",
            )
        taken = set(inspect.signature(tokenizer.apply_chat_template).parameters)
        for name in chat.template_arguments:
            if name in taken:
                raise UserError(
                    f"`{name}` is no variable of a chat template",
                    where="chat.template_arguments",
                    todo=f"remove `{name}`: it is set by sdzero itself",
                )
        self._special_tokens = {
            added.content: token_id
            for token_id, added in tokenizer.added_tokens_decoder.items()
            if added.special
        }
        self._refuse_special_tokens(chat.system_prompt, "chat.system_prompt")
        self._refuse_special_tokens(chat.answer_instruction, "chat.answer_instruction")
        self._refuse_special_tokens(phrases.wrong, "phrases.wrong")
        self._refuse_special_tokens(phrases.correct, "phrases.correct")
        self.end_token_id: int = self._find_end_token()
        self._phrase_ids = (self._encode_phrase(phrases.wrong), self._encode_phrase(phrases.correct))

    def generator_prompt(self, question: Question) -> list[int]:
        """Ids of chat(x), up to where the assistant's text begins."""
        return self._render(self._content(question))

    def reference_prompt(self, question: Question, reference: str, template: str) -> list[int]:
        """Ids of what SDFT's teacher reads: the chat around `template`, filled in.

        `{question}` stands for all that the student's user turn holds, the answer instruction included, as
        in TRL's SDFT trainer, and `{reference}` for `reference`.
        """
        self._refuse_special_tokens(reference, f"question {question.id}: its reference")
        self._refuse_special_tokens(template, "sdft.template")
        return self._render(template.format(question=self._content(question), reference=reference))

    def demonstration_ids(self, text: str, where: str) -> list[int]:
        """Ids of a given response (SFT): tokenised apart from the prompt, the end token after it.

        `where` says in an error where the text stands.
        """
        self._refuse_special_tokens(text, where)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return [*cast("list[int]", ids), self.end_token_id]

    def control_phrase_ids(self, reward: int) -> list[int]:
        """Ids of P_r with a blank line before and after it, tokenised apart from y."""
        if reward not in (0, 1):
            raise ValueError(f"a reward is 0 or 1, not {reward!r}")
        return list(self._phrase_ids[reward])

    def without_end(self, response_ids: Sequence[int]) -> list[int]:
        """The response less its end token, if it has one."""
        self._refuse_inner_end(response_ids)
        ids = list(response_ids)
        if ids and ids[-1] == self.end_token_id:
            ids.pop()
        return ids

    def reviser_prompt(
        self, prompt_ids: Sequence[int], response_ids: Sequence[int], reward: int
    ) -> list[int]:
        """Ids of x + y + P_r, where the Reviser begins: y less its end token."""
        return [*prompt_ids, *self.without_end(response_ids), *self.control_phrase_ids(reward)]

    def decode(self, response_ids: Sequence[int], special: bool = False) -> str:
        """A response as text for the verifier and for people; without special tokens, unless `special`."""
        text = self._tokenizer.decode(
            list(response_ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return cast("str", text)

    def revision_sequence(
        self, prompt_ids: Sequence[int], initial_ids: Sequence[int], reward: int, revised_ids: Sequence[int]
    ) -> WeightedSequence:
        """`L_revision` = -log pi(y_revised | x, y_init, P_r) (equation 3): weight on y_revised only."""
        return self.joint_sequence(prompt_ids, initial_ids, reward, revised_ids, 0.0, 1.0)

    def generation_sequence(
        self, prompt_ids: Sequence[int], initial_ids: Sequence[int], reward: int, revised_ids: Sequence[int]
    ) -> WeightedSequence:
        """`L_generation` = -log pi([y_init, P_r, y_revised] | x) (equation 3)."""
        return self.joint_sequence(prompt_ids, initial_ids, reward, revised_ids, 1.0, 0.0)

    def joint_sequence(
        self,
        prompt_ids: Sequence[int],
        initial_ids: Sequence[int],
        reward: int,
        revised_ids: Sequence[int],
        generation_weight: float = 1.0,
        revision_weight: float = 1.0,
    ) -> WeightedSequence:
        """Both losses in one forward pass.

        They share their tokens, so `generation_weight * L_generation + revision_weight * L_revision` is
        one sum with `generation_weight` on y_init and P_r and the sum of both on y_revised.
        """
        self._refuse_inner_end(revised_ids)
        return _join(
            ("prompt", prompt_ids, 0.0),
            ("initial", self.without_end(initial_ids), generation_weight),
            ("control_phrase", self.control_phrase_ids(reward), generation_weight),
            ("revised", revised_ids, generation_weight + revision_weight),
        )

    def response_sequence(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> WeightedSequence:
        """Plain fine-tuning on one response (SFT, RFT): weight 1 on it, end token included."""
        self._refuse_inner_end(response_ids)
        return _join(("prompt", prompt_ids, 0.0), ("response", response_ids, 1.0))

    def distillation_pair(
        self, prompt_ids: Sequence[int], response_ids: Sequence[int], reward: int
    ) -> DistillationPair:
        """Student: x + y. Teacher: x + y (no end token) + P_r + y. Targets: y, end token included."""
        return _pair(prompt_ids, self.reviser_prompt(prompt_ids, response_ids, reward), response_ids)

    def contrastive_pair(
        self, prompt_ids: Sequence[int], response_ids: Sequence[int], reward: int
    ) -> ContrastivePair:
        """As `distillation_pair`, and the teacher's context with the phrase of the other reward."""
        pair = self.distillation_pair(prompt_ids, response_ids, reward)
        other = self.distillation_pair(prompt_ids, response_ids, 1 - reward)
        return ContrastivePair(
            student_ids=pair.student_ids,
            teacher_ids=pair.teacher_ids,
            targets=pair.targets,
            student_logit_positions=pair.student_logit_positions,
            teacher_logit_positions=pair.teacher_logit_positions,
            other_ids=other.teacher_ids,
            other_logit_positions=other.teacher_logit_positions,
        )

    def reference_pair(
        self, prompt_ids: Sequence[int], reference_prompt_ids: Sequence[int], response_ids: Sequence[int]
    ) -> DistillationPair:
        """SDFT. Student: x + y. Teacher: x with the reference + y. Targets: y, end token included."""
        self._refuse_inner_end(response_ids)
        return _pair(prompt_ids, reference_prompt_ids, response_ids)

    def student_targets(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> StudentTargets:
        """x + y for a loss that asks no teacher. Targets: y, end token included."""
        self._refuse_inner_end(response_ids)
        first = len(prompt_ids) - 1
        return StudentTargets(
            student_ids=(*prompt_ids, *response_ids),
            targets=tuple(response_ids),
            student_logit_positions=tuple(range(first, first + len(response_ids))),
        )

    def _content(self, question: Question) -> str:
        self._refuse_special_tokens(question.text, f"question {question.id}")
        return self._chat.user_turn(question.text)

    def _render(self, content: str) -> list[int]:
        # The template writes the begin token itself where the model has one; tokenising in the same call
        # keeps the tokenizer from adding a second.
        rendered = self._apply_template(
            self._chat.messages(content), add_generation_prompt=True, tokenize=True
        )
        ids = list(cast("list[int]", rendered))
        begin = self._tokenizer.bos_token_id
        if begin is not None and ids[:2] == [begin, begin]:
            raise UserError(
                f"The prompt starts with two begin tokens ({self._tokenizer.bos_token})",
                where=f"chat template of {self._tokenizer.name_or_path}",
                todo="write the begin token once in the template",
            )
        return ids

    def _apply_template(
        self, messages: list[dict[str, str]], add_generation_prompt: bool, tokenize: bool
    ) -> object:
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=add_generation_prompt,
                tokenize=tokenize,
                return_dict=False,
                **self._chat.template_arguments,
            )
        except TemplateError as error:
            raise UserError(
                f"The chat template refuses the conversation: {error}",
                where=f"chat template of {self._tokenizer.name_or_path}",
                todo="look at chat.system_prompt (some models take none) and chat.template_arguments",
            ) from error

    def _find_end_token(self) -> int:
        """The special token that the template writes straight after the assistant's text."""
        messages = [*self._chat.messages("question"), {"role": "assistant", "content": _PROBE}]
        text = cast("str", self._apply_template(messages, add_generation_prompt=False, tokenize=False))
        _, found, tail = text.rpartition(_PROBE)
        candidates = dict(self._special_tokens)
        if self._tokenizer.eos_token is not None:
            candidates[str(self._tokenizer.eos_token)] = int(self._tokenizer.eos_token_id)
        ends = [token for token in candidates if token and tail.startswith(token)]
        if not found or not ends:
            raise UserError(
                f"The chat template ends an assistant turn with {tail[:20]!r}, which is no special token",
                where=f"chat template of {self._tokenizer.name_or_path}",
                todo="add the end-of-turn token to the tokenizer as a special token, or set eos_token to it",
            )
        return candidates[max(ends, key=len)]

    def _encode_phrase(self, phrase: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(f"\n\n{phrase}\n\n", add_special_tokens=False))

    def _refuse_inner_end(self, response_ids: Sequence[int]) -> None:
        if self.end_token_id in response_ids[:-1]:
            place = list(response_ids).index(self.end_token_id)
            raise ValueError(f"the response has an end token at {place}, before its last place")

    def _refuse_special_tokens(self, text: str | None, where: str) -> None:
        """Text that spells a special token would be read as one, and could end a turn or begin another."""
        for token in self._special_tokens:
            if text and token in text:
                raise UserError(
                    f"The text contains the special token {token}",
                    where=where,
                    todo="remove it, or leave the question out",
                )


def _pair(
    prompt_ids: Sequence[int], teacher_prompt_ids: Sequence[int], response_ids: Sequence[int]
) -> DistillationPair:
    """The response after the student's and after the teacher's prompt."""
    # The one table: row t is where the student's and the teacher's logits of y_t are.
    table = [
        (len(prompt_ids) - 1 + place, len(teacher_prompt_ids) - 1 + place)
        for place in range(len(response_ids))
    ]
    return DistillationPair(
        student_ids=(*prompt_ids, *response_ids),
        teacher_ids=(*teacher_prompt_ids, *response_ids),
        targets=tuple(response_ids),
        student_logit_positions=tuple(student for student, _ in table),
        teacher_logit_positions=tuple(teacher for _, teacher in table),
    )


def _join(*parts: tuple[str, Sequence[int], float]) -> WeightedSequence:
    """Put (name, ids, weight) parts side by side."""
    token_ids: list[int] = []
    weights: list[float] = []
    segments: list[tuple[str, int, int]] = []
    for name, ids, weight in parts:
        segments.append((name, len(token_ids), len(token_ids) + len(ids)))
        token_ids.extend(ids)
        weights.extend([weight] * len(ids))
    return WeightedSequence(tuple(token_ids), tuple(weights), tuple(segments))


def trim_repeated_tail(
    ids: Sequence[int],
    end_token_id: int,
    max_period: int = MAX_REPEAT_PERIOD,
    min_repeats: int = MIN_REPEATS,
) -> tuple[list[int], bool]:
    """Cut a degenerate tail: a block of 1 to `max_period` tokens that stands `min_repeats` times or more.

    One copy of the block is kept, and so is an end token at the end. The last repetition may be
    incomplete, as in a response that was cut. Returns the ids and whether anything was cut; trimming
    the result again cuts nothing. Works on ids, so what is kept is what was sampled.
    """
    body = list(ids)
    end = [end_token_id] if body and body[-1] == end_token_id else []
    if end:
        body.pop()
    length = len(body)
    while surplus := _longest_surplus(body, max_period, min_repeats):
        del body[-surplus:]
    return body + end, len(body) < length


def _longest_surplus(body: list[int], max_period: int, min_repeats: int) -> int:
    """How many tokens at the end of `body` only repeat the block before them; 0 if too few do."""
    longest = 0
    for period in range(1, min(max_period, len(body) // min_repeats) + 1):
        # The tokens after the first copy are those that equal the token one period earlier.
        surplus = 0
        while surplus + period < len(body) and body[-1 - surplus] == body[-1 - surplus - period]:
            surplus += 1
        if surplus >= period * (min_repeats - 1):
            longest = max(longest, surplus)
    return longest
