"""The commands on models and what they were trained on: `export`, `provenance`, `inspect`, `revise`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from sdzero.cli.app import AsJson, Debug, SignKey, app
from sdzero.cli.running import guarded
from sdzero.cli.screen import Lines, console, report, say_json


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


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many examples of each kind.", min=1)] = 2,
    question: Annotated[
        str | None,
        typer.Option(help="A question's id: its tokens by divergence, after `localize`.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Print token sequences with their loss masks: what SRT trains on, what phase 2 aligns.

    Example: sdzero inspect runs/demo --count 1
    """

    def work() -> None:
        if question is not None:
            from sdzero.inspect_tokens import inspect_question, question_as_json

            if as_json:
                say_json(question_as_json(folder, question))
            else:
                inspect_question(folder, question, console)
            return
        from sdzero.inspection import inspect_run, sequences_as_json

        if as_json:
            say_json(sequences_as_json(folder, count))
        else:
            inspect_run(folder, count, console)

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
                progress=Lines(),
                console=console,
                as_line=(lambda value: say_json(value, indent=None)) if as_json else None,
            )

    guarded(work, debug, as_json)
