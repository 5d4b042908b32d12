"""Score models on a suite of benchmarks: load, compare with the training questions, sample, grade.

Before anything is sampled, all benchmarks are loaded, their questions are compared with the recipe's training
questions, and each prompt must fit the model's context. Then each model answers each benchmark; finished
batches are kept, as everywhere. Every response is graded by the benchmark's own verifier.

    suites/NAME.json                    scores of all models on the suite NAME
    suites/contamination/BENCH.jsonl    questions of a benchmark that the recipe trains on
    suites/scored/BENCH/MODEL/          responses, batch by batch, and the settings that they were made with
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sdzero.errors import UserError
from sdzero.evaluate.contamination import Match, TrainingTexts
from sdzero.evaluate.paper_figures import paper_figures
from sdzero.evaluate.score import evaluate
from sdzero.evaluate.suite_data import BenchmarkQuestions, find_copies, load_benchmark
from sdzero.evaluate.suite_scores import macro, summary
from sdzero.evaluate.suites import Benchmark, benchmarks_of
from sdzero.method.graded import GradedSampler
from sdzero.method.grading import Grade
from sdzero.method.roles import Roles
from sdzero.method.teacher import fingerprint
from sdzero.questions.splits import normalise
from sdzero.recipe import EvaluateSettings, Recipe, VerifierSettings
from sdzero.run_context import RunContext
from sdzero.verify.code import check_languages
from sdzero.verify.pool import pool_of

SCHEMA = 1


def score_suite(
    context: RunContext, suite: str, models: Mapping[str, str], data: Path | None = None
) -> dict[str, Any]:
    """Score `models` (name -> folder or hub id) on a suite; writes and returns `suites/NAME.json`.

    `data` is a folder of local copies; without it, and without `suite.data`, benchmarks come from the hub.
    Scores of other models that the file has already are kept. Raises UserError, before anything is sampled,
    for faults in the data, for prompts that do not fit, and for scores that were made with other settings.
    """
    recipe, run = context.recipe, context.run
    stored = f"suites/{suite}.json"
    loaded = load_suite(context, suite, data)
    matches = find_contamination(context, loaded)
    header = {
        "schema": SCHEMA,
        "suite": suite,
        "model": recipe.model.path,
        "seed": recipe.seed,
        "sampling": sampling_of(recipe).model_dump(mode="json", include=SAMPLING_KEYS),
        "benchmarks": {one.benchmark.name: _about(one, matches[one.benchmark.name]) for one in loaded},
    }
    scored = _earlier(context, stored, header)
    with graders(context, [one.benchmark for one in loaded], loaded) as grades:
        for name, path in models.items():
            found = _score_model(context, name, path, loaded, matches, grades)
            scored[name] = {"path": path, "benchmarks": found, "macro": macro(found)}
            result = header | {
                "models": scored,
                "paper": paper_figures(recipe.model.path, [one.benchmark.name for one in loaded]),
            }
            run.write_json(stored, result)
    return dict(run.read_json(stored))


SAMPLING_KEYS = {"k", "temperature", "top_p", "max_new_tokens"}


def sampling_of(recipe: Recipe) -> EvaluateSettings:
    """How the suite's responses are sampled."""
    own = recipe.suite
    return EvaluateSettings(
        k=own.k,
        temperature=own.temperature,
        top_p=own.top_p,
        max_new_tokens=own.max_new_tokens,
        batch_size=own.batch_size,
    )


def load_suite(context: RunContext, suite: str, data: Path | None) -> list[BenchmarkQuestions]:
    """The questions of every benchmark, with a warning for each that has not as many as it should."""
    own, benchmarks = context.recipe.suite, benchmarks_of(suite)
    folder = data if data is not None else None if own.data is None else Path(own.data).expanduser()
    copies = {} if folder is None else find_copies(benchmarks, folder)
    training = {normalise(one.text) for named in training_sets(context).values() for one in named}
    loaded = []
    for benchmark in benchmarks:
        one = load_benchmark(benchmark, copies.get(benchmark.name), training, own.max_tests)
        context.report(f"{benchmark.title}: {len(one.questions)} questions from {one.place}")
        if one.surprise is not None:
            context.report(f"  WARNING: {one.surprise}; its score is not the benchmark's")
        if one.passed_over:
            context.report(f"  {one.passed_over} held-out questions are trained on; the next stand for them")
        loaded.append(one)
    return loaded


def training_sets(context: RunContext) -> dict[str, Any]:
    """The questions that the recipe trains on, or makes choices on."""
    return {name: getattr(context.sets, name) for name in ("n1", "n2", "tuning")}


def find_contamination(context: RunContext, loaded: Sequence[BenchmarkQuestions]) -> dict[str, list[Match]]:
    """The matches of each benchmark with the training questions; each list is kept as a file."""
    texts = TrainingTexts(training_sets(context))
    found = {}
    for one in loaded:
        name = one.benchmark.name
        found[name] = texts.matches(one.questions)
        file = f"suites/contamination/{name}.jsonl"
        context.run.write_jsonl(file, [match.to_json() for match in found[name]])
        if found[name]:
            context.report(
                f"  WARNING: {len(found[name])} of {len(one.questions)} questions of {one.benchmark.title}"
                f" are trained on (listed in {context.run.path(file)}); scores are with and without them"
            )
    context.report(f"compared with {len(texts):,} training questions")
    return found


def _about(one: BenchmarkQuestions, matches: Sequence[Match]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for question in one.questions:
        digest.update(json.dumps([question.id, question.text, question.answer]).encode())
    return {
        "title": one.benchmark.title,
        "source": one.place,
        "verifier": one.benchmark.verifier,
        "questions": len(one.questions),
        "expected": one.benchmark.expected,
        "passed_over": one.passed_over,
        "sha256": digest.hexdigest(),
        "contamination": {
            "exact": sum(match.how == "exact" for match in matches),
            "overlap": sum(match.how == "overlap" for match in matches),
        },
    }


def _earlier(context: RunContext, stored: str, header: Mapping[str, Any]) -> dict[str, Any]:
    """The models that the suite's file has scores of. UserError if those were made in another way."""
    if not context.run.path(stored).exists():
        return {}
    old = context.run.read_json(stored)

    def facts(of: Mapping[str, Any]) -> Any:
        return of["sampling"], {name: about["sha256"] for name, about in of["benchmarks"].items()}

    if facts(old) != facts(header):
        raise UserError(
            "the suite was scored with other questions or other sampling",
            str(context.run.path(stored)),
            "use the same data and `suite` settings, or move the folder `suites` away to score anew",
        )
    return dict(old["models"])


@contextmanager
def graders(
    context: RunContext, benchmarks: Sequence[Benchmark], loaded: Sequence[BenchmarkQuestions]
) -> Iterator[dict[str, Grade]]:
    """How each kind of benchmark is graded: by the run's own verifier where it is of that kind, else by a
    pool that is opened for it, after its canaries."""
    grades: dict[str, Grade] = {}
    with ExitStack() as stack:
        for kind in dict.fromkeys(benchmark.verifier for benchmark in benchmarks):
            settings = verifier_settings(context.recipe, kind)
            if kind == "code":
                questions = [q for one in loaded if one.benchmark.verifier == "code" for q in one.questions]
                check_languages(questions, settings.sandbox)
            if context.recipe.verifier.name == kind:
                grades[kind] = context.grade
                continue
            pool = stack.enter_context(pool_of(settings, context.run.path("cache/verdicts.sqlite")))
            pool.check_canaries()
            grades[kind] = pool.grade
        yield grades


def verifier_settings(recipe: Recipe, kind: str) -> VerifierSettings:
    """The settings of the verifier `math` or `code`: the recipe's own, or else the suite's."""
    if recipe.verifier.name == kind:
        return recipe.verifier
    if kind == "math":
        return VerifierSettings(name=kind, workers=recipe.verifier.workers)
    return VerifierSettings(
        name=kind,
        workers=recipe.verifier.workers,
        timeout_seconds=recipe.suite.code_timeout_seconds,
        sandbox=recipe.suite.sandbox,
    )


def _score_model(
    context: RunContext,
    name: str,
    path: str,
    loaded: Sequence[BenchmarkQuestions],
    matches: Mapping[str, Sequence[Match]],
    grades: Mapping[str, Grade],
) -> dict[str, Any]:
    recipe = context.recipe
    model = context.load(path)
    own = fingerprint(model)
    samplers, chats = {}, {}
    for kind in grades:
        instruction = recipe.suite.math_instruction if kind == "math" else recipe.suite.code_instruction
        chats[kind] = recipe.chat.model_copy(update={"answer_instruction": instruction})
        roles = Roles(context.tokenizer, recipe.phrases, chats[kind])
        engine = context.make_engine(model, roles)
        samplers[kind] = GradedSampler(
            engine, roles, grades[kind], context.run, context.ledger, context.progress
        )
    for one in loaded:
        _check_lengths(samplers[one.benchmark.verifier], one, recipe.suite.max_new_tokens)
    for one in loaded:
        _claim(context, one, name, own, chats[one.benchmark.verifier].model_dump(mode="json"))
    found = {}
    for one in loaded:
        benchmark = one.benchmark
        context.report(f"{name} on {benchmark.title}: {len(one.questions)} questions, k={recipe.suite.k}")
        scored = evaluate(
            one.questions,
            samplers[benchmark.verifier],
            sampling_of(recipe),
            seed=recipe.seed,
            folder=_folder(benchmark, name),
            stage="suite",
            revise=False,
        )
        found[benchmark.name] = summary(scored, {match.question for match in matches[benchmark.name]})
    return found


def _folder(benchmark: Benchmark, name: str) -> str:
    return f"suites/scored/{benchmark.name}/{name}"


def _check_lengths(sampler: GradedSampler, one: BenchmarkQuestions, max_new_tokens: int) -> None:
    """Raise UserError if a prompt and a response of full length do not fit the model's context."""
    prompts = ((question, sampler.roles.generator_prompt(question)) for question in one.questions)
    try:
        sampler.check_fits(prompts, max_new_tokens)
    except UserError as fault:
        raise UserError(
            fault.what,
            f"benchmark {one.benchmark.name}, {fault.where}",
            "score a model with a longer context, or lower suite.max_new_tokens (the paper's is 32,768:"
            " figures with less are not to be compared with its own)",
        ) from fault


def _claim(
    context: RunContext, one: BenchmarkQuestions, name: str, model: str, chat: Mapping[str, Any]
) -> None:
    """Note how a model is scored on a benchmark; UserError if it was begun in another way."""
    kind = one.benchmark.verifier
    settings = {
        "model": model,
        "questions": _about(one, ())["sha256"],
        "seed": context.recipe.seed,
        "sampling": sampling_of(context.recipe).model_dump(mode="json", exclude={"on"}),
        "chat": dict(chat),
        "verifier": verifier_settings(context.recipe, kind).model_dump(mode="json", exclude={"workers"}),
        "max_tests": context.recipe.suite.max_tests if kind == "code" else None,
    }
    folder = _folder(one.benchmark, name)
    file = f"{folder}/settings.json"
    if not any(context.run.path(folder).glob("responses/batch-*.jsonl")):
        context.run.write_json(file, settings)
        return
    stored = context.run.read_json(file)
    differing = [key for key in settings if stored.get(key) != settings[key]]
    if differing:
        raise UserError(
            f"`{name}` was scored on {one.benchmark.name} in another way"
            f" (what differs: {', '.join(differing)})",
            str(context.run.path(file)),
            "use the same settings, pass another --name for another model, or move that folder away",
        )
