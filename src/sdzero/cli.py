"""The command `sdzero`. Heavy imports happen inside the commands, so that help and errors are quick."""

import contextlib
import functools
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape

from sdzero import launch, plan_commands, process_group, ranks, stopping
from sdzero.bundle_commands import bundle_commands
from sdzero.errors import UserError
from sdzero.live.pace import Pace, duration
from sdzero.network_guard import guarded as guarded_network
from sdzero.offline import load_recipe
from sdzero.recipe import Recipe
from sdzero.usage import Commands, print_error

if TYPE_CHECKING:
    from sdzero.pipeline import Stages

app = typer.Typer(
    cls=Commands,
    help="Post-train a language model with SD-Zero: binary rewards become dense token-level supervision.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# Without a terminal rich assumes 80 columns, and would shorten the words of the table.
console = Console() if sys.stdout.isatty() else Console(width=120)
SECONDS_BETWEEN_LINES = 5.0

RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to override, as key=value (dots between levels).")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The run's folder (default: runs/NAME).", show_default=False),
]
SignKey = Annotated[
    Path | None,
    typer.Option(help="A private SSH key to sign the record with, by ssh-keygen.", show_default=False),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
NumProcesses = Annotated[int, typer.Option(help="Processes on this machine (docs/distributed.md).", min=1)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and all else on standard error.")
]

_json_output: list[TextIO] = []
"""The standard output while JSON alone goes there; everything else that prints is led to standard error."""


class Lines:
    """Progress as plain lines: at most one every few seconds, and always the last of a part."""

    def __init__(self) -> None:
        self._last_line = 0.0
        self._part = ""
        self._pace = Pace()

    def __call__(self, part: str, done: int, total: int) -> None:
        if not ranks.is_first():
            return
        now = time.monotonic()
        self._pace.note(part, done, total)
        if part != self._part:
            self._part, self._last_line = part, now
        if done < total and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        left = self._pace.seconds_left() if done < total else None
        shown = "" if left is None else f", {duration(left)} left"
        console.print(f"  {part}: {done:,} of {total:,}{shown}", highlight=False, style="dim")


@contextlib.contextmanager
def showing(folder: Path) -> Iterator[Callable[[str, int, int], None]]:
    """How progress is shown of runs in the folder: a steady display on a terminal, lines elsewhere."""
    if not console.is_terminal or console.is_dumb_terminal or console.quiet:
        yield Lines()
        return
    from sdzero.live.display import LiveRun

    with LiveRun(console, folder) as live:
        yield live


@contextlib.contextmanager
def json_alone(wanted: bool) -> Iterator[None]:
    """With `--json` nothing but `say_json` writes to standard output."""
    if not wanted:
        yield
        return
    _json_output.append(sys.stdout)
    console.stderr = True
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        console.stderr = False
        _json_output.pop()


def say_json(value: Any, indent: int | None = 2) -> None:
    """Write a value to standard output as JSON, of the first process."""
    if ranks.is_first():
        text = json.dumps(value, indent=indent, ensure_ascii=False)
        print(text, file=_json_output[-1] if _json_output else sys.stdout, flush=True)


def report(text: str) -> None:
    """One line for the user, of the first process."""
    if ranks.is_first():
        console.print(escape(text), highlight=False)


def advice(error: Exception) -> str:
    """What to do about an error that nobody foresaw."""
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        return (
            "lower rollout.batch_size while sampling, or micro_batch_size and distill.chunk_tokens while"
            " training, and start in a new folder; finished batches of this one are kept"
        )
    return "run again with --debug for the traceback; what was finished is kept"


def guarded(command: Callable[[], None], debug: bool, as_json: bool = False) -> None:
    """Run a command, in each of a run's processes; a user's error is printed without a traceback and ends
    with status 1."""
    try:
        with json_alone(as_json), process_group.joined():
            console.quiet = not ranks.is_first()
            command()
    except process_group.PeerError as error:
        first_line = str(error).partition("\n")[0]  # that process has printed the rest
        Console(stderr=True).print(escape(f"stopped: {first_line}"), highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except stopping.Stopped as asked:
        if not console.quiet:  # the first process
            typer.echo(f"stopped by {asked}; what was finished is kept", err=as_json)
            typer.echo(f"resume with: sdzero {shlex.join(sys.argv[1:])}", err=as_json)
        raise typer.Exit(0) from None
    except UserError as error:
        if debug:
            raise
        print_error(str(error))
        raise typer.Exit(1) from None
    except Exception as error:  # the last resort: the user gets a sentence, --debug the traceback
        if debug:
            raise
        print_error(f"{type(error).__name__}: {error}\n  to do: {advice(error)}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted: run the same command again to go on from here")
        raise typer.Exit(130) from None


def in_processes(number: int) -> None:
    """Run this very command in so many processes, and end with their status, unless they run it already."""
    if number > 1 and not launch.is_started():
        raise typer.Exit(launch.launch(sys.argv[1:], number))


def on_stages(recipe: Recipe, folder: Path, work: Callable[["Stages"], Any]) -> Any:
    """Open the run and work on its stages."""
    from sdzero.pipeline import open_run

    with showing(folder) as progress, open_run(recipe, folder, report, progress) as stages:
        return work(stages)


def print_results(results: dict[str, Any], folder: Path, as_json: bool = False) -> None:
    """The table, the differences, and where the figures are stored; or the results as JSON."""
    if as_json:
        say_json(results)
        return
    from sdzero.results import difference_lines, results_table, seeds_table

    table = seeds_table(results) if "seeds" in results else results_table(results)
    console.print(table)
    for line in difference_lines(results):
        report(line)
    report(f"results: {folder / 'results.json'}")


def print_suite_of(recipe: Recipe, folder: Path, as_json: bool = False) -> None:
    """The table of the suite that the recipe names, if it does; as JSON it is left to its file."""
    if recipe.suite.name is not None and not as_json:
        from sdzero.evaluate.suite_table import print_suite
        from sdzero.run_dir import RunDir

        scores = RunDir.unlocked(folder).read_json(f"suites/{recipe.suite.name}.json")
        print_suite(scores, folder, console)


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    seeds: Annotated[int, typer.Option(help="How many seeds to run, from the recipe's on.", min=1)] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One step of each stage with a small random model.")
    ] = False,
    num_processes: NumProcesses = 1,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run all stages: collect, srt, distill, the RFT control, evaluate. Safe to repeat: it resumes.

    Example: sdzero run recipes/demo.yaml distill.learning_rate=1e-4 --output runs/mine
    """
    in_processes(num_processes)

    def work() -> None:
        settings = load_recipe(recipe, overrides or [])
        if dry_run:
            from sdzero.dry_run import dry_run as try_out

            tried = output or Path("runs") / f"{settings.name}-dry-run"
            with showing(tried / "run") as progress:
                results = try_out(settings, tried, report, progress)
            if as_json:
                say_json(results)
            return
        folder = output or Path("runs") / settings.name
        if seeds == 1:
            print_results(on_stages(settings, folder, lambda stages: stages.run_all()), folder, as_json)
            print_suite_of(settings, folder, as_json)
            return
        from sdzero.compare_methods import with_seed
        from sdzero.results import over_seeds
        from sdzero.run_dir import RunDir

        every = []
        for seed in range(settings.seed, settings.seed + seeds):
            report(f"seed {seed}")
            own = on_stages(
                with_seed(settings, seed), folder / f"seed-{seed}", lambda stages: stages.run_all()
            )
            if not as_json:
                print_results(own, folder / f"seed-{seed}")
                print_suite_of(settings, folder / f"seed-{seed}")
            every.append(own)
        summary = over_seeds(every)
        RunDir.unlocked(folder).write_json("results.json", summary)
        print_results(summary, folder, as_json)

    guarded(work, debug, as_json)


@app.command()
def collect(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    round_: Annotated[int, typer.Option("--round", help="Which round of collection.", min=1)] = 1,
    debug: Debug = False,
) -> None:
    """Phase 1a: sample initial responses, grade them, sample revisions, keep the verified traces.

    Example: sdzero collect recipes/demo.yaml --output runs/demo
    """

    def work() -> None:
        settings = load_recipe(recipe, overrides or [])
        folder = output or Path("runs") / settings.name
        on_stages(settings, folder, lambda stages: stages.collect(round_))
        report(f"traces: {folder / 'collect'}")

    guarded(work, debug)


@app.command()
def srt(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    round_: Annotated[int, typer.Option("--round", help="Up to which round of collection.", min=1)] = 1,
    debug: Debug = False,
) -> None:
    """Phase 1b: train the base model on the traces that `sdzero collect` left in the run's folder.

    Example: sdzero srt recipes/demo.yaml --output runs/demo
    """

    def work() -> None:
        settings = load_recipe(recipe, overrides or [])
        folder = output or Path("runs") / settings.name
        on_stages(settings, folder, lambda stages: stages.srt(round_))
        report(f"model: {folder / 'srt'}")

    guarded(work, debug)


@app.command()
def distill(
    recipe: RecipeArgument, overrides: Overrides = None, output: Output = None, debug: Debug = False
) -> None:
    """Phase 2: distill the Reviser into the Generator, from the run's SRT model or `srt.checkpoint`.

    Example: sdzero distill recipes/demo.yaml --output runs/demo
    """

    def work() -> None:
        settings = load_recipe(recipe, overrides or [])
        folder = output or Path("runs") / settings.name
        on_stages(settings, folder, lambda stages: stages.distill())
        report(f"model: {folder / 'distill' / 'model'}")

    guarded(work, debug)


@app.command()
def evaluate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Output = None,
    model: Annotated[str | None, typer.Option(help="A model folder; default: all models of the run.")] = None,
    name: Annotated[str, typer.Option(help="The name to store --model's scores under.")] = "model",
    audit: Annotated[
        int | None,
        typer.Option(
            help="Also print so many verdicts of each model for a person to check, some of every kind.",
            min=1,
            show_default=False,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Score on benchmarks in place of the test questions: paper8, math6, code2, or one."
        ),
    ] = None,
    suite_data: Annotated[
        Path | None, typer.Option(help="A folder with local copies of the benchmarks; default: the hub.")
    ] = None,
    lm_eval: Annotated[
        Path | None,
        typer.Option(
            help="A task of lm-evaluation-harness (YAML), or a folder of tasks.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score the run's models, or one model folder, on the test questions, on a suite of benchmarks, or on
    tasks of lm-evaluation-harness.

    Example: sdzero evaluate recipes/demo.yaml --output runs/demo --audit 50
    """

    def work() -> None:
        settings = load_recipe(recipe, overrides or [])
        folder = output or Path("runs") / settings.name
        if lm_eval is not None:
            for given, option in ((suite, "--suite"), (audit, "--audit"), (suite_data, "--suite-data")):
                if given is not None:
                    raise UserError("this does not go with --lm-eval", option, "evaluate once with each")
        if suite is not None:
            from sdzero.evaluate.suite_table import print_suite
            from sdzero.evaluate.suites import benchmarks_of

            benchmarks_of(suite)  # a wrong name is told before anything is loaded
            if audit is not None:
                raise UserError("an audit is of test questions", "--audit", "leave it out with --suite")
            scores = on_stages(settings, folder, lambda stages: stages.suite(suite, model, name, suite_data))
            if as_json:
                say_json(scores)
            else:
                print_suite(scores, folder, console)
            return
        if lm_eval is not None:
            tasks = lm_eval
            scored_by_it = on_stages(settings, folder, lambda stages: stages.harness(tasks, model, name))
            if as_json:
                say_json(scored_by_it)
                return
            for one, results in scored_by_it.items():
                for task, metrics in results.items():
                    shown = ", ".join(f"{key} {v:.4g}" for key, v in metrics.items() if isinstance(v, float))
                    report(f"{one}, {task}: {shown}")
            return
        if suite_data is not None:
            raise UserError("this goes with --suite", "--suite-data", "name a suite: --suite paper8")

        def scored(stages: "Stages") -> dict[str, Any]:
            found = stages.evaluate_all() if model is None else stages.evaluate_folder(name, model)
            if audit is not None:
                from sdzero.evaluate.audit import print_audits

                print_audits(stages, stages.models() if model is None else [name], audit, console)
            return found

        found = on_stages(settings, folder, scored)
        if model is None or as_json:
            print_results(found, folder, as_json)
            return
        score = found["evaluation"]
        report(
            f"{name}: avg@{score['k']} {score['avg']:.1%} (s.e. {score['se']:.1%}), pass@{score['k']}"
            f" {score['pass_at_k']:.1%}, {score['mean_tokens']:.1f} tokens, {score['questions']} questions"
        )

    guarded(work, debug, as_json)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    to: Annotated[Path, typer.Option(help="The folder to write, a new one.")],
    model: Annotated[str, typer.Option(help="Which of the run's models: sdzero, srt, rft, ...")] = "sdzero",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The LoRA adapter alone, for the base model.")
    ] = False,
    sign_key: SignKey = None,
    debug: Debug = False,
) -> None:
    """Write a run's model as a Hugging Face folder with a model card, for transformers, vLLM and others.

    Example: sdzero export runs/demo --to models/demo
    """

    def work() -> None:
        from sdzero.export import export_model
        from sdzero.provenance import NAME
        from sdzero.signatures import require_key, sign

        if sign_key is not None:
            require_key(sign_key)
        export_model(folder, to, model, adapter)
        if sign_key is not None:
            report(f"signature: {sign(to / NAME, sign_key)}")
        report(f"model: {to}")

    guarded(work, debug)


@app.command()
def compare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder (default: runs/NAME-compare).", show_default=False),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods, with commas. `grpo@tokens`: GRPO at equal sampled tokens.")
    ] = "base,sft,rft,grpo,sdft,srt,sdzero",
    seeds: Annotated[int, typer.Option(help="How many seeds, from the recipe's on.", min=1)] = 5,
    num_processes: NumProcesses = 1,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """SD-Zero against the baselines: same questions, one budget, a learning-rate search each, statistics.

    Example: sdzero compare recipes/demo.yaml --methods base,rft,grpo,srt,sdzero --seeds 5
    """
    in_processes(num_processes)

    def work() -> None:
        settings = load_recipe(recipe, overrides or [])
        from sdzero.compare import compare as run_compare
        from sdzero.compare_methods import parse_methods
        from sdzero.compare_results import compare_table, notes

        folder = output or Path("runs") / f"{settings.name}-compare"
        named = parse_methods([name.strip() for name in methods.split(",") if name.strip()])
        with showing(folder) as progress:
            results = run_compare(settings, folder, named, seeds, report, progress)
        if as_json:
            say_json(results)
            return
        console.print(compare_table(results))
        for line in notes(results):
            report(line)
        report(f"results: {folder / 'compare.json'}")

    guarded(work, debug, as_json)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="Which study; `list` lists them.", show_default=False)],
    recipe: Annotated[
        Path | None, typer.Argument(help="The recipe, a YAML file.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder (default: runs/NAME-compare).", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds, from the recipe's on.", min=1)] = 3,
    num_processes: NumProcesses = 1,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """One of the paper's studies, beside the runs of a comparison in the same folder.

    Example: sdzero study loss recipes/demo.yaml --seeds 3
    """
    in_processes(num_processes)

    def work() -> None:
        from sdzero.studies.run import (
            STUDIES,
            measured_lines,
            paper_line,
            run_study,
            study_named,
            study_notes,
            study_table,
        )

        if name == "list":
            if as_json:
                say_json({one.name: one.asks for one in STUDIES.values()})
                return
            for one in STUDIES.values():
                report(f"{one.name}: {one.asks}")
            return
        wanted = study_named(name)
        if recipe is None:
            raise UserError("a study needs a recipe", "RECIPE", f"sdzero study {name} recipes/demo.yaml")
        settings = load_recipe(recipe, overrides or [])
        folder = output or Path("runs") / f"{settings.name}-compare"
        with showing(folder) as progress:
            results = run_study(settings, folder, wanted, seeds, report, progress)
        if as_json:
            say_json(results)
            return
        console.print(study_table(results))
        for line in (study_notes(results), *measured_lines(results), paper_line(results)):
            report(line)
        report(f"results: {folder / f'study-{name}.json'}")

    guarded(work, debug, as_json)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many examples of each kind.", min=1)] = 2,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Print token sequences with their loss masks: what SRT trains on, what phase 2 aligns.

    Example: sdzero inspect runs/demo --count 1
    """

    def work() -> None:
        from sdzero.inspection import inspect_run, sequences_as_json

        if as_json:
            say_json(sequences_as_json(folder, count))
        else:
            inspect_run(folder, count, console)

    guarded(work, debug, as_json)


@app.command()
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe whose needs are looked at too.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    output: Output = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the self-test, which loads the model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Check this machine: versions, the sandbox, attacks on it; with a recipe its data, verifier and model,
    room on disk and in memory, what would go online, and a self-test of the divergence on the model itself.

    Ends with status 1 if anything did not hold.

    Example: sdzero doctor recipes/demo.yaml
    """
    held = True

    def work() -> None:
        nonlocal held
        from sdzero.onprem.doctor import examine, show, show_json

        settings = None if recipe is None else load_recipe(recipe, overrides or [])
        online = settings is not None and settings.online
        with nullcontext() if online else guarded_network(()):
            findings = examine(settings, quick, output)
        held = all(finding.held for finding in findings)
        if as_json:
            typer.echo(show_json(findings))
        else:
            show(findings, console)

    guarded(work, debug)
    if not held:
        raise typer.Exit(1)


@app.command()
def provenance(
    folder: Annotated[Path, typer.Argument(help="A model folder that a run kept or `export` wrote.")],
    allowed_signers: Annotated[
        Path | None,
        typer.Option(help="Who may have signed it: a file as ssh-keygen takes it.", show_default=False),
    ] = None,
    sign_key: SignKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Compare a model folder with its record, provenance.json: every file, the recipe, the signature.

    Ends with status 1 if anything is not as the record says.

    Example: sdzero provenance models/demo
    """
    held = True

    def work() -> None:
        nonlocal held
        from sdzero.provenance import NAME
        from sdzero.provenance_check import check_folder, show, show_json
        from sdzero.signatures import sign

        record, results = check_folder(folder, None if sign_key else allowed_signers)
        held = all(result.held for result in results)
        if sign_key is not None and held:  # what does not hold is not signed
            sign(folder / NAME, sign_key)
            record, results = check_folder(folder, allowed_signers)
            held = all(result.held for result in results)
        if as_json:
            typer.echo(show_json(record, results))
        else:
            show(record, results, console)

    guarded(work, debug)
    if not held:
        raise typer.Exit(1)


app.add_typer(bundle_commands(guarded, report), name="bundle")


def told(command: Callable[..., Any]) -> Callable[..., None]:
    """The command, with errors told as `guarded` does; what it returns is the exit status, if it is not 0."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        statuses: list[Any] = []
        guarded(lambda: statuses.append(command(**given)), bool(given["debug"]))
        if any(statuses):
            raise typer.Exit(1)

    return run


app.command()(told(plan_commands.plan))
app.command()(told(plan_commands.bench))


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or one with several runs.")],
    once: Annotated[bool, typer.Option("--once", help="Print the state of now, and end.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 2.0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show a run that goes on elsewhere: its stage, speed, reward, length, divergence, and the time left.

    It reads the run's folder only, and ends when the run ends.

    Example: sdzero watch runs/demo
    """

    def work() -> None:
        from sdzero.live.watch import watch as watch_run

        def write(line: str) -> None:
            print(line, file=_json_output[-1] if as_json else sys.stdout, flush=True)

        watch_run(folder, console, once=once, as_json=as_json, every=every, write=write)

    guarded(work, debug, as_json)


@app.command()
def init(
    model: Annotated[str, typer.Option(help="The model's folder.", show_default=False)],
    data: Annotated[str, typer.Option(help="Questions: JSONL, CSV or parquet.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The recipe to write, a new file.")] = Path(
        "recipe.yaml"
    ),
    question_field: Annotated[
        str | None, typer.Option(help="The column of questions, in place of a guess.", show_default=False)
    ] = None,
    answer_field: Annotated[
        str | None, typer.Option(help="The column of answers, in place of a guess.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look at a model and at data, and write a first recipe for them, with the reasons in it.

    Example: sdzero init --model models/qwen3-4b --data questions.jsonl --output recipe.yaml
    """

    def work() -> None:
        from sdzero.first_recipe.write import write_first_recipe

        written = write_first_recipe(model, data, output, question_field, answer_field)
        if as_json:
            say_json({"recipe": str(written.file), "seen": written.seen, "check": written.check})
            return
        for line in written.seen:
            report(line)
        report("please check:")
        for line in written.check:
            report(f"  {line}")
        report(f"recipe: {output}")
        report(f"next: sdzero doctor {output}; sdzero run {output} --dry-run; sdzero run {output}")

    guarded(work, debug, as_json)


@app.command()
def revise(
    model: Annotated[str, typer.Argument(help="A model's folder, or `tiny`.", show_default=False)],
    recipe: Annotated[
        Path | None,
        typer.Option(help="Phrases, chat, verifier and data of this recipe.", show_default=False),
    ] = None,
    question: Annotated[str | None, typer.Option(help="A question of your own.", show_default=False)] = None,
    answer: Annotated[
        str | None, typer.Option(help="The reference answer of --question.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Questions from a JSONL file.", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(help="How many questions of the data.", min=1)] = 3,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The longest response, in tokens.", min=1, show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of the responses.")] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Have a model answer, grade the answer, and have it revise after the control phrase; print all of it.

    Without a reference there is no verdict, and both control phrases are tried. With --recipe alone the
    questions are the first of its test set. As JSON it is one line a question.

    Example: sdzero revise tiny --question "(5+9)*5-8" --answer 62
    """

    def work() -> None:
        from sdzero.revise_command import revise_and_show

        with tempfile.TemporaryDirectory() as folder:
            revise_and_show(
                model,
                recipe,
                question=question,
                answer=answer,
                data=data,
                count=count,
                max_new_tokens=max_new_tokens,
                seed=seed,
                folder=Path(folder),
                report=report,
                console=console,
                as_line=(lambda value: say_json(value, indent=None)) if as_json else None,
            )

    guarded(work, debug, as_json)


def main() -> None:
    """Entry point of the command."""
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
