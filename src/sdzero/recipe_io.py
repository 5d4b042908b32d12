"""Reading and writing recipes. Imports no torch.

A recipe file is YAML with plain values as YAML 1.2 reads them: `1e-4` is a number, `yes` is text, a date
is text. Every fault that can be found is found in one go and told with its key, line and remedy.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sdzero.checksums import sha256_of
from sdzero.errors import UserError
from sdzero.recipe import Recipe


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the plain values of YAML 1.2 (see `_PLAIN_VALUES`)."""


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the texts that `_Loader` would read as something else."""


_PLAIN_VALUES: tuple[tuple[str, str, str], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)
"""Tag, the texts that have it, and their first characters (NUL stands for the empty text)."""

for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, _texts, _first in _PLAIN_VALUES:
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(rf"(?:{_texts})\Z"),
            ["" if c == "\0" else c for c in _first],
        )


@dataclass(frozen=True)
class _Fault:
    what: str
    where: str
    todo: str


@dataclass
class _Source:
    """A recipe as written: its values, where each key stands, and the faults found so far."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    faults: list[_Fault] = field(default_factory=list)

    def place(self, key: str) -> str:
        """The file, line or override, and key; the nearest section's line where the key has none."""
        known = key
        while known and known not in self.places:
            known = known.rpartition(".")[0]
        place = self.places.get(known, str(self.path))
        return f"{place}: {key}" if key else place


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe at `path`, with `overrides` such as `distill.learning_rate=1e-4` on top.

    Override values are YAML: a number, `true`, `null` (or nothing), `[a, b]`, `{a: 1}`. A later override
    of the same key wins.

    Raises:
        UserError: with all faults at once: no such file, malformed YAML, a key that is unknown, missing
            or given twice, a value of the wrong type or out of range, settings that exclude each other.
    """
    source = _read_source(Path(path))
    for override in overrides:
        _apply_override(source, override)
    recipe: Recipe | None = None
    try:
        # Validated as JSON, where strict types still let a list stand for a tuple: `3` is no text, `true`
        # no number.
        recipe = Recipe.model_validate_json(json.dumps(source.values), strict=True)
    except ValidationError as error:
        source.faults += [_fault_of(details, source) for details in error.errors(include_url=False)]
    except (TypeError, ValueError) as error:
        source.faults.append(
            _Fault(f"a value is not plain data ({error})", str(path), "use text, numbers, lists, mappings")
        )
    if recipe is None or source.faults:
        raise _error_of(source)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key written out; it loads to an equal recipe."""
    return yaml.dump(
        recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )


def recipe_sha256(recipe: Recipe) -> str:
    """SHA-256, in hex, of the resolved recipe as JSON with sorted keys and no blanks."""
    return sha256_of(recipe.model_dump(mode="json"))


def differing_keys(old: Recipe, new: Recipe) -> list[str]:
    """The settings in which two recipes differ, as lines `key: old -> new`."""
    before, after = (dict(_leaves(recipe.model_dump(mode="json"))) for recipe in (old, new))
    missing = "(not there)"
    return [
        f"{key}: {before.get(key, missing)!r} -> {after.get(key, missing)!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, missing) != after.get(key, missing)
    ]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_source(path: Path) -> _Source:
    """Parse the file; a fault in the YAML itself leaves nothing to look at, so it is raised at once."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("there is no such recipe", str(path), _nearby_recipes(path)) from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a recipe", str(path), _nearby_recipes(path / "_")) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"the recipe is not UTF-8 text (byte {error.start})", str(path), "save it as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(
            f"the recipe cannot be read ({error.strerror})", str(path), "check its permissions"
        ) from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UserError(
                "the recipe is empty or is not a mapping of keys to values",
                str(path),
                "start from a recipe that ships in recipes/",
            )
        source = _Source(path)
        _note_places(node, "", source, ())
        values = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}: line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise UserError(
            f"the recipe is not well-formed YAML: {error.problem or error.context}",
            place,
            "mend the line named, or the one before it",
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"the recipe is not well-formed YAML: {error}", str(path), "mend the file") from None
    assert isinstance(values, dict)
    source.values = values
    return source


def _nearby_recipes(path: Path) -> str:
    """What to do about a recipe that is not there: the nearest name, and the recipes around."""
    folders = dict.fromkeys([path.parent, Path("recipes")])
    found = [file for folder in folders for file in sorted(folder.glob("*.yaml"))]
    if not found:
        return "give the path of a recipe file (YAML); none was found beside it or in recipes/"
    by_stem = {file.stem: file for file in reversed(found)}
    close = difflib.get_close_matches(path.stem, by_stem, n=1)
    hint = f"did you mean `{by_stem[close[0]]}`? " if close else ""
    return f"{hint}recipes found: {', '.join(map(str, found))}"


def _note_places(node: yaml.Node, prefix: str, source: _Source, above: tuple[yaml.Node, ...]) -> None:
    """Note the line of every key, and the faults that constructing would hide: doubles and loops."""
    if any(node is outer for outer in above):
        raise yaml.composer.ComposerError(None, None, "an alias contains itself", node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _note_places(item, prefix, source, (*above, node))
    if not isinstance(node, yaml.MappingNode):
        return
    first_lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        place = f"{source.path}: line {line}"
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in (
            "tag:yaml.org,2002:str",
            "tag:yaml.org,2002:merge",
        ):
            name = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            source.faults.append(
                _Fault(f"the key `{name}` is not text", place, "use text for keys; put it in quotes")
            )
            continue
        key = f"{prefix}{key_node.value}"
        if key_node.value in first_lines:
            source.faults.append(
                _Fault(
                    f"the key is given twice: first on line {first_lines[key_node.value]}",
                    f"{place}: {key}",
                    "keep one of them",
                )
            )
        first_lines.setdefault(key_node.value, line)
        source.places[key] = place
        _note_places(value_node, f"{key}.", source, (*above, node))


def _apply_override(source: _Source, override: str) -> None:
    """Write one `key=value` into the values; a fault is noted, not raised."""
    place = f"override `{override}`"
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        source.faults.append(
            _Fault("an override is not of the form key=value", place, "write it like distill.epochs=2")
        )
        return
    try:
        loader = _Loader(text)
        value = loader.get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or error
        source.faults.append(
            _Fault(f"the value is not well-formed YAML: {problem}", place, "put text in quotes")
        )
        return
    section = source.values
    for depth, name in enumerate(names[:-1]):
        inner = section.get(name)
        if inner is None:
            inner = section[name] = {}
        elif not isinstance(inner, dict):
            holder = ".".join(names[: depth + 1])
            source.faults.append(
                _Fault(f"`{holder}` is a value and holds no keys", place, f"override `{holder}` itself")
            )
            return
        else:
            # YAML aliases share one object between sections; an override is meant for one of them.
            inner = section[name] = dict(inner)
        section = inner
    section[names[-1]] = value
    dotted = ".".join(names)
    for known in [k for k in source.places if k.startswith(f"{dotted}.")]:
        del source.places[known]
    source.places[dotted] = place


def _fault_of(details: ErrorDetails, source: _Source) -> _Fault:
    """One of pydantic's errors in our words."""
    location = details["loc"]
    key = ".".join(map(str, location))
    where, given, context = source.place(key), details["input"], details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return _Fault(f"unknown key `{key}`", where, _nearest_keys(location))
        case "missing":
            return _Fault(f"the key `{key}` is missing", where, f"add `{key}` (or pass {key}=VALUE)")
        case "value_error":
            message = details["msg"].removeprefix("Value error, ")
            return _Fault(message, where, "change one of the keys named")
        case "literal_error":
            return _Fault(f"{given!r} is not a choice", where, f"use one of: {context['expected']}")
        case _:
            return _Fault(
                f"{given!r} does not fit", where, details["msg"].replace("Input should", "it should")
            )


def _known_keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key of a settings class, sections included."""
    for name, info in model.model_fields.items():
        yield (*prefix, name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _known_keys(info.annotation, (*prefix, name))


def _nearest_keys(location: tuple[int | str, ...]) -> str:
    """Which known keys may be meant: alike in the same section, or of the same name in another."""
    section, name = tuple(map(str, location[:-1])), str(location[-1])
    keys = list(_known_keys(Recipe))
    beside = [key[-1] for key in keys if key[:-1] == section]
    alike = [(*section, close) for close in difflib.get_close_matches(name, beside, n=1)]
    elsewhere = [key for key in keys if key[-1] == name]
    if not alike and not elsewhere:
        close_names = difflib.get_close_matches(name, {key[-1] for key in keys}, n=1)
        elsewhere = [key for key in keys if key[-1] in close_names]
    meant = [f"`{'.'.join(key)}`" for key in [*alike, *elsewhere]]
    if meant:
        return f"did you mean {' or '.join(meant)}?"
    return f"known keys here: {', '.join(beside)}"


def _error_of(source: _Source) -> UserError:
    faults = source.faults
    if len(faults) == 1:
        return UserError(faults[0].what, faults[0].where, faults[0].todo)
    told = [
        f"{number}. {f.what}\n     where: {f.where}\n     to do: {f.todo}"
        for number, f in enumerate(faults, 1)
    ]
    return UserError(
        "\n".join([f"the recipe has {len(faults)} faults:", *told]), str(source.path), "mend each fault above"
    )
