"""What an on-policy step minimises: one trainer, three objectives.

The student samples a response y to each question, y is graded, and the loss is a weighted sum over the
tokens of y. What differs is what the tokens are compared with:

    ReviserDivergence     KL to the Reviser, which reads x, y and P_r (SD-Zero's phase 2, equation 5)
    ReferenceDivergence   KL to a teacher that reads x with its reference (SDFT, arXiv 2601.19897)
    ConstantAdvantage     -A log pi(y_t), A < 0 on wrong responses and 0 on right ones; no teacher

To SD-Zero's two things may be added: the contrast of both control phrases, in the teacher, and a term of
policy gradient, beside it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sdzero.method.distill_config import SelfDistillationConfig
from sdzero.method.divergence import Backend, DivergenceKind, check_backend, divergence_from_hidden
from sdzero.method.graded import Graded
from sdzero.method.hidden import hidden_states, logits_of, output_head
from sdzero.method.micro_batches import Context
from sdzero.method.roles import Roles
from sdzero.method.srt import LOGITS_AT_A_TIME
from sdzero.method.teacher import Teacher
from sdzero.method.token_factors import ClipGradient, TokenFactors
from sdzero.questions.question import Question


@dataclass(frozen=True)
class TokenLosses:
    """The loss of one micro-batch: `total` is the weighted sum over tokens, and carries the gradient.

    `measure_T` is the objective's measure of each target token and `entropy_T` the student's entropy
    there, in nats; both are unweighted and detached, for the log.
    """

    total: Tensor
    measure_T: Tensor
    entropy_T: Tensor


class Objective(Protocol):
    """What the on-policy trainer asks of an objective."""

    @property
    def seeded_as(self) -> str:
        """The rollouts' seeds depend on this word, not on the stage's name: two such runs are alike."""
        ...

    @property
    def measure(self) -> str:
        """The name under which `measure_T` is logged, apart for wrong (`_r0`) and right (`_r1`) responses."""
        ...

    @property
    def needs_teacher(self) -> bool:
        """Whether there is a teacher."""
        ...

    @property
    def teacher_passes(self) -> int:
        """How many passes of the teacher a micro-batch has."""
        ...

    def context(self, roles: Roles, one: Graded) -> Context:
        """The response in the contexts in which the loss reads it."""
        ...

    def token_losses(
        self,
        student: PreTrainedModel,
        teacher: Teacher | None,
        inputs: dict[str, Any],
        weights_T: Tensor | None,
    ) -> TokenLosses:
        """The loss of a micro-batch (see `make_micro_batch`); `weights_T` defaults to ones."""
        ...


def student_hidden(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """[T, D]: what `model` has at the student's positions, in the student's context."""
    return hidden_states(model, inputs["input_ids"], inputs["student_positions"], inputs["student_lengths"])


def phrase_reward(reward: int, phrase_for_reward: str) -> int:
    """Which phrase the Reviser gets: the true one, or for ablations a held or a flipped one."""
    if phrase_for_reward == "held":
        return 1
    return 1 - reward if phrase_for_reward == "flipped" else reward


@dataclass(frozen=True)
class TeacherDivergence:
    """The divergence between student and teacher at each token of y, each in its own context."""

    kind: DivergenceKind
    chunk_tokens: int | Literal["auto"]
    factors: TokenFactors = field(default_factory=TokenFactors, kw_only=True)
    backend: Backend = field(default="chunked", kw_only=True)

    measure = "divergence"
    needs_teacher = True

    @property
    def teacher_passes(self) -> int:
        """How many passes of the teacher a micro-batch has."""
        return 1

    def token_losses(
        self,
        student: PreTrainedModel,
        teacher: Teacher | None,
        inputs: dict[str, Any],
        weights_T: Tensor | None,
    ) -> TokenLosses:
        """Gradient reaches the student's distributions only."""
        assert teacher is not None, "the trainer checks that there is one"
        student_hidden_TD = student_hidden(student, inputs)
        return self.divergence(student, student_hidden_TD, teacher, inputs, weights_T)

    def teacher_hidden(self, teacher: Teacher, inputs: dict[str, Any]) -> Tensor:
        """[T, D]: what the teacher's head is to read."""
        return teacher.hidden_states(
            inputs["teacher_ids"], inputs["teacher_positions"], inputs["teacher_lengths"]
        )

    def divergence(
        self,
        student: PreTrainedModel,
        student_hidden_TD: Tensor,
        teacher: Teacher,
        inputs: dict[str, Any],
        weights_T: Tensor | None,
    ) -> TokenLosses:
        """The divergence, from the student's hidden states."""
        with torch.no_grad():
            teacher_hidden_TD = self.teacher_hidden(teacher, inputs)
        student_head, (teacher_head_VD, teacher_bias_V) = output_head(student), teacher.head()
        lengths = inputs["lengths_B"].tolist()

        def factors_of(divergence_T: Tensor, entropy_T: Tensor) -> Tensor | None:
            return self.factors(divergence_T, entropy_T, lengths)

        result = divergence_from_hidden(
            student_hidden_TD,
            teacher_hidden_TD,
            student_head.weight,
            teacher_head_VD,
            kind=self.kind,
            chunk_tokens=self.chunk_tokens,
            weights_T=weights_T,
            student_bias_V=student_head.bias,
            teacher_bias_V=teacher_bias_V,
            factors_of=None if self.factors.are_ones else factors_of,
            factors_are_local=self.factors.are_local,
            backend=self.backend,
        )
        return TokenLosses(result.total, result.per_token_T, result.student_entropy_T)


@dataclass(frozen=True)
class ReviserDivergence(TeacherDivergence):
    """SD-Zero: the teacher is the Reviser. `phrase_for_reward` is for ablations (see `phrase_reward`).

    `contrast` c > 0 takes from the teacher's log-probabilities c times what the other phrase would have
    changed (after RLCSD, arXiv 2606.11709); up to a constant
    log q = log pi_T(P_r) - c (log pi_T(P_other) - log pi_T(no phrase)).
    What both phrases change alike, such as style, falls out at c = 1.

    `policy_gradient_weight` w > 0 adds -w (r - b) log pi(y_t) for each token, b the mean reward of the step
    (a hybrid, as in arXiv 2604.03128 and 2606.04036). The step is on-policy, so there is no ratio to clip.
    Like the divergence, log pi is at temperature 1: the term is exact only if y is sampled so too.
    """

    phrase_for_reward: str = "true"
    contrast: float = 0.0
    policy_gradient_weight: float = 0.0

    seeded_as = "distill"

    @property
    def teacher_passes(self) -> int:
        """Three with a contrast: x + y + P_r + y, x + y + P_other + y, and x + y."""
        return 3 if self.contrast else 1

    def context(self, roles: Roles, one: Graded) -> Context:
        """The teacher reads x + y + P_r + y; for a contrast also x + y + P_other + y, and x + y."""
        shown = phrase_reward(one.reward, self.phrase_for_reward)
        make = roles.contrastive_pair if self.contrast else roles.distillation_pair
        return make(one.prompt_ids, one.token_ids, shown)

    def teacher_hidden(self, teacher: Teacher, inputs: dict[str, Any]) -> Tensor:
        """The head is linear, so a sum of log-probabilities is one of hidden states; their weights sum to 1,
        so a bias stays as it is."""
        hidden_TD = super().teacher_hidden(teacher, inputs)
        if not self.contrast:
            return hidden_TD
        other_TD = teacher.hidden_states(
            inputs["other_ids"], inputs["other_positions"], inputs["other_lengths"]
        )
        plain_TD = teacher.hidden_states(
            inputs["input_ids"], inputs["student_positions"], inputs["student_lengths"]
        )
        return hidden_TD - self.contrast * (other_TD - plain_TD)

    def token_losses(
        self,
        student: PreTrainedModel,
        teacher: Teacher | None,
        inputs: dict[str, Any],
        weights_T: Tensor | None,
    ) -> TokenLosses:
        """The divergence, and the policy gradient where it has a weight."""
        assert teacher is not None, "the trainer checks that there is one"
        student_hidden_TD = student_hidden(student, inputs)
        losses = self.divergence(student, student_hidden_TD, teacher, inputs, weights_T)
        if not self.policy_gradient_weight:
            return losses
        log_probability_T, _ = target_log_probabilities(
            student_hidden_TD, output_head(student), inputs["targets_T"].to(student_hidden_TD.device)
        )
        advantage_B = inputs["rewards_B"].to(log_probability_T) - inputs["mean_reward"]
        advantage_T = torch.repeat_interleave(advantage_B, inputs["lengths_B"].to(advantage_B.device))
        if weights_T is not None:
            advantage_T = advantage_T * weights_T
        term = -self.policy_gradient_weight * (advantage_T * log_probability_T).sum()
        return TokenLosses(losses.total + term, losses.measure_T, losses.entropy_T)


def reviser_divergence(args: SelfDistillationConfig) -> ReviserDivergence:
    """SD-Zero's objective as the trainer's arguments have it."""
    kind: DivergenceKind = args.divergence  # type: ignore[assignment]
    gradient: ClipGradient = args.clip_gradient  # type: ignore[assignment]
    backend: Backend = args.divergence_backend  # type: ignore[assignment]
    check_backend(backend, kind)
    chunk_tokens: int | Literal["auto"] = args.chunk_tokens  # type: ignore[assignment]
    return ReviserDivergence(
        kind,
        chunk_tokens,
        args.phrase_for_reward,
        args.contrast,
        args.policy_gradient_weight,
        factors=TokenFactors(args.divergence_clip, gradient, args.token_share),
        backend=backend,
    )


def reference_of(question: Question, reference: Literal["solution", "answer"]) -> str:
    """What SDFT's teacher is shown: the worked solution, or the answer."""
    return question.solution if reference == "solution" else question.answer


@dataclass(frozen=True)
class ReferenceDivergence(TeacherDivergence):
    """SDFT: the teacher reads `template`, filled with the question and its reference, and then y.

    It knows what is right, and is not told how y was graded.
    """

    template: str
    reference: Literal["solution", "answer"]

    seeded_as = "sdft"

    def context(self, roles: Roles, one: Graded) -> Context:
        """The teacher reads x with the reference + y."""
        shown = reference_of(one.question, self.reference)
        teacher_prompt_ids = roles.reference_prompt(one.question, shown, self.template)
        return roles.reference_pair(one.prompt_ids, teacher_prompt_ids, one.token_ids)


@dataclass(frozen=True)
class ConstantAdvantage:
    """Policy gradient with a constant advantage on the tokens of wrong responses, and 0 on right ones.

    The loss of a token is -A log pi(y_t): with A < 0 its probability falls. The step is on-policy, so the
    ratio of new to old probabilities is 1. Right responses carry no loss, but count in the normaliser,
    which is all target tokens of the step. The loss has no lower bound. As in phase 2 its temperature is
    1 whatever the sampling temperature.
    """

    advantage: float

    seeded_as = "negative"
    measure = "log_probability"
    needs_teacher = False
    teacher_passes = 0

    def context(self, roles: Roles, one: Graded) -> Context:
        """x + y under the student alone."""
        return roles.student_targets(one.prompt_ids, one.token_ids)

    def token_losses(
        self,
        student: PreTrainedModel,
        teacher: Teacher | None,
        inputs: dict[str, Any],
        weights_T: Tensor | None,
    ) -> TokenLosses:
        """The measure is log pi(y_t)."""
        hidden_TD = student_hidden(student, inputs)
        log_probability_T, entropy_T = target_log_probabilities(
            hidden_TD, output_head(student), inputs["targets_T"].to(hidden_TD.device)
        )
        rewards_T = torch.repeat_interleave(inputs["rewards_B"], inputs["lengths_B"])
        advantage_T = (rewards_T == 0).to(log_probability_T) * self.advantage
        if weights_T is not None:
            advantage_T = advantage_T * weights_T
        total = -(advantage_T * log_probability_T).sum()
        return TokenLosses(total, log_probability_T.detach(), entropy_T)


def target_log_probabilities(
    hidden_TD: Tensor, head: torch.nn.Linear, targets_T: Tensor
) -> tuple[Tensor, Tensor]:
    """log pi of each target, and the entropy (detached) of the distribution that it is from; both [T].

    Logits are float32 (float64 stays). If there are many, they are made chunk by chunk, and again in the
    backward pass.
    """

    def chunk(hidden_CD: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
        logits_CV = logits_of(head, hidden_CD)
        if logits_CV.dtype != torch.float64:
            logits_CV = logits_CV.float()
        log_CV = logits_CV.log_softmax(-1)
        with torch.no_grad():
            entropy_C = -(log_CV.exp() * log_CV).sum(-1)
        return log_CV.gather(-1, targets_C[:, None])[:, 0], entropy_C

    size = max(1, LOGITS_AT_A_TIME // head.out_features)
    if len(targets_T) <= size:
        return chunk(hidden_TD, targets_T)
    parts = [
        checkpoint(
            chunk, hidden_TD[start : start + size], targets_T[start : start + size], use_reentrant=False
        )
        for start in range(0, len(targets_T), size)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
