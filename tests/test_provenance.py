"""The records of kept and exported models: where a model came from, and whether a byte of it has changed."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdzero import tiny
from sdzero.checksums import sha256_of, take_sums
from sdzero.cli import app
from sdzero.errors import UserError
from sdzero.export import export_model
from sdzero.ledger import Ledger
from sdzero.provenance import NAME, SIGNATURE, read_record
from sdzero.provenance_check import check_folder
from sdzero.questions.splits import QuestionSets
from sdzero.recipe_io import load_recipe, recipe_sha256
from sdzero.run_context import RunContext
from sdzero.run_dir import RunDir
from sdzero.run_provenance import complete_record, note_model
from support import make_questions, micro_recipe

needs_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def exported(micro_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "model"
    export_model(micro_run, folder)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of an exported folder."""
    return Path(shutil.copytree(exported, tmp_path / "model"))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def failed(folder: Path) -> dict[str, str]:
    return {one.what: one.detail for one in check_folder(folder)[1] if not one.held}


def test_every_kept_model_has_its_record(micro_run: Path) -> None:
    for stage in ("srt/round-1", "rft", "distill"):
        model = micro_run / stage / "model"
        record = read_record(model)
        assert record["stage"] == stage
        assert failed(model) == {}
        assert record["files"]["model.safetensors"]["sha256"] == sha256(model / "model.safetensors")


def test_the_chain_goes_down_to_the_base_model(micro_run: Path, exported: Path) -> None:
    record = read_record(exported)
    assert [link["stage"] for link in record["chain"]] == ["base", "srt/round-1", "distill", "export"]
    base, srt, distill, own = (link["weights"] for link in record["chain"])
    assert base == sha256_of([["model.safetensors", sha256(tiny.model_folder() / "model.safetensors")]])
    assert srt == sha256_of(
        [["model.safetensors", sha256(micro_run / "srt/round-1/model/model.safetensors")]]
    )
    assert distill == own, "the weights are exported as they are"
    assert len({base, srt, distill}) == 3
    kept = read_record(micro_run / "distill/model")
    assert kept["parent"]["path"] == str((micro_run / "srt/round-1/model").resolve())
    assert read_record(micro_run / "rft/model")["parent"]["path"] == "tiny"
    assert {"config.json", "model.safetensors"} <= set(kept["parent"]["files"])


def test_what_a_record_holds(micro_run: Path, exported: Path) -> None:
    recipe = load_recipe(micro_run / "recipe.yaml")
    results = json.loads((micro_run / "results.json").read_text())
    for record in (read_record(micro_run / "distill/model"), read_record(exported)):
        assert record["recipe"] == recipe.model_dump(mode="json")
        assert record["recipe_sha256"] == recipe_sha256(recipe)
        assert record["results"]["evaluations"] == results["evaluations"]
        assert record["seeds"] == {"seed": 3, "split_seed": 0}
        assert record["data"]["questions"] == {"n1": 24, "n2": 24, "tuning": 4, "test": 6}
        assert len(record["data"]["questions_sha256"]) == 64
        assert record["ledger"]["by_stage"]["distill"]["responses"] == 24
        assert record["libraries"]["torch"] == record["versions"]["torch"]
        assert len(record["code"]["sha256"]) == 64
    assert {"README.md", "recipe.yaml", "results.json", "tokenizer.json"} <= set(
        read_record(exported)["files"]
    )


def test_a_changed_byte_is_named(folder: Path) -> None:
    assert failed(folder) == {}
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-100] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "better\n")
    (folder / "tokenizer.json").unlink()
    (folder / "extra.py").write_text("")
    found = failed(folder)
    assert set(found) == {"model.safetensors", "README.md", "tokenizer.json", "extra.py"}
    assert "content has changed" in found["model.safetensors"]
    assert "too long" in found["README.md"]
    assert "missing" in found["tokenizer.json"]
    assert "not in the record" in found["extra.py"]


def changed(folder: Path, **keys: Any) -> None:
    record = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps(record | keys))


def test_a_record_that_was_tampered_with(folder: Path) -> None:
    record = read_record(folder)
    changed(folder, recipe=record["recipe"] | {"seed": 4})
    assert "recipe" in failed(folder)
    changed(folder, recipe=record["recipe"], recipe_sha256=record["recipe_sha256"])
    assert failed(folder) == {}
    files = record["files"] | {"../outside": record["files"]["README.md"]}
    changed(folder, files=files)
    assert "leads out" in failed(folder)["../outside"]
    chain = [*record["chain"][:-1], record["chain"][-1] | {"weights": "0" * 64}]
    changed(folder, files=record["files"], chain=chain)
    assert "other weights" in failed(folder)[NAME]


def test_the_command_shows_the_chain_and_ends_with_its_status(folder: Path) -> None:
    shown = invoke("provenance", folder)
    assert shown.exit_code == 0, shown.output
    for words in ("base: weights", "-> srt/round-1", "-> distill", "-> export", "data: arithmetic: n1 24"):
        assert words in shown.output
    assert "not signed" in shown.output
    (folder / "config.json").write_text("{}")
    told = invoke("provenance", folder, "--json")
    assert told.exit_code == 1
    found = json.loads(told.stdout)
    assert found["held"] is False
    assert [one["what"] for one in found["checks"] if not one["held"]] == ["config.json"]
    assert found["record"]["chain"][0]["stage"] == "base"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "has no provenance.json"),
        ("{", "cannot be read"),
        ("[]", "no record"),
        ('{"schema": 9}', "no record"),
    ],
)
def test_folders_without_a_record(tmp_path: Path, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / NAME).write_text(content)
    with pytest.raises(UserError, match=problem):
        read_record(tmp_path)


@pytest.mark.parametrize(
    "keys",
    [
        {"chain": []},
        {"chain": [1]},
        {"chain": [{"stage": "base", "weights": "0"}]},
        {"files": []},
        {"files": {"config.json": {}}},
        {"recipe": None},
        {"results": []},
        {"data": None},
        {"code": {}},
        {"seeds": {}},
    ],
)
def test_a_record_with_nonsense_in_it_is_damaged(folder: Path, keys: dict[str, Any]) -> None:
    changed(folder, **keys)
    with pytest.raises(UserError, match=f"damaged: {next(iter(keys))}"):
        read_record(folder)


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    record = read_record(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()  # reads as an error for root too
    row = record["files"]["config.json"] | {"bytes": (folder / "config.json").stat().st_size}
    changed(folder, files=record["files"] | {"config.json": row})
    assert "cannot be read" in failed(folder)["config.json"]


def test_a_link_that_was_added_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "more").symlink_to(tmp_path)
    assert "not in the record" in failed(folder)["more"]


def test_a_run_of_an_earlier_version_does_not_know_what_was_asked(folder: Path) -> None:
    record = read_record(folder)
    changed(folder, data=record["data"] | {"questions_sha256": None})
    shown = invoke("provenance", folder)
    assert (shown.exit_code, "sha256 not known" in shown.output) == (0, True)


def test_a_record_of_another_schema(folder: Path) -> None:
    changed(folder, schema=2)
    with pytest.raises(UserError, match="schema 2"):
        read_record(folder)


# ---- in a run ----


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    """A run with a question file and a model `distill`, as far as records look at it."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n}?", "answer": str(n)}) + "\n" for n in range(9)))
    data = {"source": "jsonl", "path": str(rows), "n1": 2, "n2": 2, "tuning": 0, "test": 2}
    recipe = load_recipe(micro_recipe(tmp_path, {"data": data}))
    run = RunDir.open(tmp_path / "run", recipe)
    run.close()
    questions = make_questions(6)
    shutil.copytree(tiny.model_folder(), run.path("distill/model"))
    return RunContext(
        recipe=recipe,
        run=run,
        ledger=Ledger(run.path("ledger.jsonl")),
        tokenizer=None,  # type: ignore[arg-type]
        roles=None,  # type: ignore[arg-type]
        sets=QuestionSets(questions[:2], questions[2:4], [], questions[4:]),
        grade=None,  # type: ignore[arg-type]
        report=lambda line: None,
        progress=lambda part, done, total: None,
        make_engine=None,  # type: ignore[arg-type]
    )


def test_a_recipe_in_any_script_has_its_hash(context: RunContext) -> None:
    phrases = context.recipe.phrases.model_copy(update={"wrong": "Warte, das ist falsch: \u00e4, \u6c34."})
    context.recipe = context.recipe.model_copy(update={"phrases": phrases})
    assert sha256_of(note(context)["recipe"]) == recipe_sha256(context.recipe)
    assert failed(context.run.path("distill/model")) == {}


def note(context: RunContext) -> dict[str, Any]:
    from sdzero.kept_models import sums_of_model

    sums = {name: row for name, row in sums_of_model(context.run, "distill").items() if name != NAME}
    note_model(context, "distill", "tiny", sums)
    return read_record(context.run.path("distill/model"))


def test_the_datas_file_is_summed_up(context: RunContext) -> None:
    record, file = note(context), Path(str(context.recipe.data.path))
    assert record["data"]["files"] == {"rows.jsonl": {"bytes": file.stat().st_size, "sha256": sha256(file)}}
    before = record["data"]["questions_sha256"]
    context.sets = QuestionSets(context.sets.n2, context.sets.n1, [], context.sets.test)
    assert note(context)["data"]["questions_sha256"] != before, "which question is in which set is part of it"


def test_the_same_stage_has_the_same_record(context: RunContext) -> None:
    note(context)
    first = context.run.path("distill/model", NAME).read_bytes()
    note(context)
    assert context.run.path("distill/model", NAME).read_bytes() == first


def test_a_chain_goes_on_from_a_parent_of_another_run(context: RunContext, exported: Path) -> None:
    note_model(context, "distill", exported, take_sums(context.run.path("distill/model")))
    record = read_record(context.run.path("distill/model"))
    stages = [link["stage"] for link in record["chain"]]
    assert stages == ["base", "srt/round-1", "distill", "export", "distill"]
    assert record["parent"]["path"] == str(exported)


@pytest.mark.parametrize("damage", ["weights", "record"])
def test_a_parent_that_is_not_what_its_record_says_begins_the_chain(
    context: RunContext, folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    if damage == "weights":
        shutil.copyfile(tiny.model_folder("walks") / "model.safetensors", folder / "model.safetensors")
    else:
        (folder / NAME).write_text("{")
    note_model(context, "distill", folder, take_sums(context.run.path("distill/model")))
    record = read_record(context.run.path("distill/model"))
    assert [link["stage"] for link in record["chain"]] == ["base", "distill"]
    assert record["chain"][0]["model"] == str(folder)
    assert "begins there" in caplog.text


def test_a_record_is_completed_once_and_then_stays(context: RunContext) -> None:
    note(context)
    model, results = context.run.path("distill/model"), {"evaluations": {"sdzero": {"avg": 0.5}}}
    context.run.write_json("results.json", results)
    context.run.write_text("distill/model/README.md", "# card\n")
    complete_record(context, "distill")
    record = read_record(model)
    assert record["results"] == results
    assert record["files"]["README.md"]["sha256"] == sha256(model / "README.md")
    assert failed(model) == {}
    text = (model / NAME).read_bytes()
    context.ledger.record("suite", "later", responses=5)
    complete_record(context, "distill")
    assert (model / NAME).read_bytes() == text, "else a signature would be lost"
    context.run.write_json("results.json", {"evaluations": {"sdzero": {"avg": 0.6}}})
    complete_record(context, "distill")
    assert read_record(model)["results"]["evaluations"]["sdzero"]["avg"] == 0.6


def test_damage_is_not_made_good_by_completing(context: RunContext) -> None:
    note(context)
    context.run.write_json("results.json", {"evaluations": {}})
    weights = context.run.path("distill/model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    complete_record(context, "distill")
    assert "cut short" in failed(context.run.path("distill/model"))["model.safetensors"]


def test_models_of_earlier_versions_have_none_and_are_exported_all_the_same(
    micro_run: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(micro_run, tmp_path / "old"))
    (old / "rft/model" / NAME).unlink()
    export_model(old, tmp_path / "out", "rft")
    record = read_record(tmp_path / "out")
    assert [link["stage"] for link in record["chain"]] == ["base", "export"]
    assert record["parent"]["path"] == str(old / "rft/model")
    assert record["data"]["questions_sha256"] is None
    assert failed(tmp_path / "out") == {}


# ---- signatures ----


def make_key(folder: Path, name: str) -> Path:
    key = folder / name
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(key)],
        check=True,
        capture_output=True,
    )
    return key


def signers(folder: Path, *keys: Path) -> Path:
    file = folder / "allowed"
    lines = [f"{key.name}@example.org {key.with_name(key.name + '.pub').read_text()}" for key in keys]
    file.write_text("".join(lines))
    return file


@needs_keygen
def test_a_signed_folder_names_its_signer(folder: Path, tmp_path: Path) -> None:
    mine, other = make_key(tmp_path, "mine"), make_key(tmp_path, "other")
    signed = invoke(
        "provenance", folder, "--sign-key", mine, "--allowed-signers", signers(tmp_path, mine, other)
    )
    assert signed.exit_code == 0, signed.output
    assert "signed by mine@example.org" in signed.output
    assert (folder / SIGNATURE).is_file()
    assert "not checked" in invoke("provenance", folder).output
    stranger = invoke("provenance", folder, "--allowed-signers", signers(tmp_path, other))
    assert stranger.exit_code == 1
    assert "none of the allowed signers" in stranger.output
    record = read_record(folder)
    changed(folder, results=None)
    forged = invoke("provenance", folder, "--allowed-signers", signers(tmp_path, mine))
    assert forged.exit_code == 1
    assert "not the signature of this record" in forged.output
    assert record["results"] is not None


@needs_keygen
def test_a_signature_stays_until_there_is_another(folder: Path, tmp_path: Path) -> None:
    mine = make_key(tmp_path, "mine")
    assert invoke("provenance", folder, "--sign-key", mine).exit_code == 0
    before = (folder / SIGNATURE).read_bytes()
    (tmp_path / "broken").write_text("no key at all\n")
    refused = invoke("provenance", folder, "--sign-key", tmp_path / "broken")
    assert (refused.exit_code, "could not be signed" in refused.stderr) == (1, True)
    assert (folder / SIGNATURE).read_bytes() == before
    assert failed(folder) == {}
    (folder / SIGNATURE).unlink()
    (folder / SIGNATURE).mkdir()
    refused = invoke("provenance", folder, "--sign-key", mine)
    assert (refused.exit_code, "cannot be written" in refused.stderr) == (1, True)
    assert not list(folder.glob(".*"))


@needs_keygen
def test_an_export_can_be_signed_at_once(micro_run: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path, "key")
    done = invoke("export", micro_run, "--to", tmp_path / "out", "--sign-key", key)
    assert done.exit_code == 0, done.output
    checked = invoke("provenance", tmp_path / "out", "--allowed-signers", signers(tmp_path, key))
    assert checked.exit_code == 0, checked.output


@needs_keygen
def test_what_does_not_hold_is_not_signed(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text("{}")
    refused = invoke("provenance", folder, "--sign-key", make_key(tmp_path, "key"))
    assert refused.exit_code == 1
    assert not (folder / SIGNATURE).exists()


def test_without_its_key_nothing_is_exported(micro_run: Path, tmp_path: Path) -> None:
    refused = invoke("export", micro_run, "--to", tmp_path / "out", "--sign-key", tmp_path / "no-key")
    assert refused.exit_code == 1
    assert "there is no key here" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_signing_and_checking_need_what_they_need(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsigned = invoke("provenance", folder, "--allowed-signers", tmp_path / "nobody")
    assert unsigned.exit_code == 1
    assert f"there is no {SIGNATURE}" in unsigned.output
    missing = invoke("provenance", folder, "--sign-key", tmp_path / "no-key")
    assert (missing.exit_code, "there is no key here" in missing.stderr) == (1, True)
    (tmp_path / "key").write_text("no key at all\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    without = invoke("provenance", folder, "--sign-key", tmp_path / "key")
    assert "ssh-keygen is not installed" in without.stderr
    assert "apt-get install openssh-client" in without.stderr
