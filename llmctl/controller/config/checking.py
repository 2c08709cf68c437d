"""Plain values -> a pydantic model, with errors as a person would say them: file, line, key, what to write.

Files, environment and flags all come through here, so a wrong value is told the same way from everywhere.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from llmctl.controller.config.fields import PATTERN_WORDS
from llmctl.controller.config.secrets import looks_secret
from llmctl.controller.config.yamlfile import Document, Loc
from llmctl.errors import ConfigError

M = TypeVar("M", bound=BaseModel)

MORE_SHOWN = 3
"""Problems named in the hint beside the first one, which is the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    missing: bool
    order: int
    text: str


def check_document(model: type[M], document: Document, what: str) -> M:
    """The document as `model`; `what` is its name in messages (`the job`). Raises ConfigError."""
    if not isinstance(document.data, dict):
        raise ConfigError(f"{document.where(())}: {what} must be a mapping, found {found(document.data)}")
    _check_version(document, what)
    return check(model, document.data, what=what, where=document.where, lines=document.lines)


def check(
    model: type[M],
    data: dict[str, Any],
    *,
    what: str,
    where: Callable[[Loc], str],
    lines: dict[Loc, int] | None = None,
) -> M:
    """`data` as `model`; `where` says where the value at a place was written. Raises ConfigError."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = _problems(model, error, what=what, where=where, lines=lines or {})
    first, *others = problems
    more = "; ".join(problem.text for problem in others[:MORE_SHOWN])
    unsaid = f" and {len(others) - MORE_SHOWN} more" if len(others) > MORE_SHOWN else ""
    raise ConfigError(first.text, hint=f"also: {more}{unsaid}" if others else None)


def found(value: Any) -> str:
    """A value as it is called in `found …`: its kind and, where short, itself."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        text = value if len(value) <= 40 else f"{value[:37]}…"
        return f'text "{text if text.isprintable() else repr(text)[1:-1]}"'
    return "a list" if isinstance(value, list) else "a mapping"


def _found_kind(value: Any) -> str:
    """As `found`, for a value that may be a secret: never itself."""
    if isinstance(value, bool):
        return "a bool"
    return (
        "a number" if isinstance(value, int | float) else "text" if isinstance(value, str) else found(value)
    )


def did_you_mean(name: str, known: list[str]) -> str:
    """`; did you mean `x`?`, or the known names where none is near and they are few."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean `{near[0]}`?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 12 else ""


def _check_version(document: Document, what: str) -> None:
    version = document.data.get("version", 1)
    if isinstance(version, int) and version != 1:
        raise ConfigError(
            f"{document.where(('version',))}: {what} has version {version}; this llmctl reads version 1",
            hint="upgrade llmctl, or write the file in the form of version 1",
        )


def _problems(
    model: type[BaseModel],
    error: ValidationError,
    *,
    what: str,
    where: Callable[[Loc], str],
    lines: dict[Loc, int],
) -> list[_Problem]:
    """In the file's order, but what is missing last: a typo is often the reason for it."""
    result = []
    for entry in error.errors(include_url=False):
        loc = tuple(part for part in entry["loc"] if part != "[key]")
        kind = entry["type"]
        text = _sentence(model, kind, loc, entry, what)
        order = lines.get(loc, lines.get(loc[:-1], 0))
        result.append(_Problem(missing=kind == "missing", order=order, text=f"{where(loc)}: {text}"))
    return sorted(result, key=lambda problem: (problem.missing, problem.order))


def _sentence(model: type[BaseModel], kind: str, loc: Loc, entry: Any, what: str) -> str:
    if kind == "extra_forbidden":
        return f"unknown key `{loc[-1]}` in {_inside(loc, what)}{_nearest_key(model, loc)}"
    if kind == "missing":
        hint = ": `version: 1`" if loc == ("version",) else ""
        return f"missing key `{loc[-1]}` in {_inside(loc, what)}{hint}"
    if "[key]" in entry["loc"]:
        return f"`{loc[-1]}` in {_inside(loc, what)} must be {_pattern_words(entry)}"
    if kind in ("too_short", "too_long"):
        return f"`{path_text(loc)}` must have {_length_words(entry['ctx'])}, found {len(entry['input'])}"
    if kind == "value_error":
        return f"`{path_text(loc)}`: {entry['ctx']['error']}"
    value = entry["input"]
    near = _near_choice(value, entry) if kind == "literal_error" else ""
    shown = _found_kind(value) if loc[:2] == ("env", "set") and looks_secret(str(loc[-1])) else found(value)
    return f"`{path_text(loc)}` must be {_wanted(kind, entry)}, found {shown}{near}"


def path_text(loc: Loc) -> str:
    """`pools.main.hosts[1].port`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _inside(loc: Loc, what: str) -> str:
    return f"`{path_text(loc[:-1])}`" if len(loc) > 1 else what


_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "`true` or `false`",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}

_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def _wanted(kind: str, entry: Any) -> str:
    context = entry.get("ctx", {})
    if kind in _KINDS:
        return _KINDS[kind]
    if kind in _LIMITS:
        words, key = _LIMITS[kind]
        return f"{words} {context[key]:g}"
    if kind == "literal_error":
        return _or_list(_choices(entry))
    if kind == "string_pattern_mismatch":
        return _pattern_words(entry)
    return str(entry["msg"]).removeprefix("Input should be ")


def _length_words(context: dict[str, Any]) -> str:
    least, most = context.get("min_length"), context.get("max_length")
    number = most if least is None else least
    return f"at {'most' if least is None else 'least'} {number} {'entry' if number == 1 else 'entries'}"


def _pattern_words(entry: Any) -> str:
    pattern = entry["ctx"]["pattern"]
    return PATTERN_WORDS.get(pattern, f"text like {pattern}")


def _choices(entry: Any) -> list[str]:
    """pydantic says `'auto', 'gloo' or 'nccl'`."""
    text = str(entry["ctx"]["expected"]).replace(" or ", ", ")
    return [choice.strip("'") for choice in text.split(", ")]


def _or_list(choices: list[str]) -> str:
    quoted = [f"`{choice}`" for choice in choices]
    return " or ".join(part for part in (", ".join(quoted[:-1]), quoted[-1]) if part)


def _near_choice(value: Any, entry: Any) -> str:
    if not isinstance(value, str):
        return ""
    choices = [choice for choice in _choices(entry) if choice != value]
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.6)
    return f"; did you mean `{near[0]}`?" if near else ""


def _nearest_key(model: type[BaseModel], loc: Loc) -> str:
    """Wrong indentation is common: a key of that name elsewhere beats a vaguely similar one here."""
    parent = type_at(model, loc[:-1])
    here = field_names(parent) if _is_model(parent) else []
    near = difflib.get_close_matches(str(loc[-1]), here, n=1, cutoff=0.8)
    if not near:
        for place in _places_of(str(loc[-1]), model):
            return f"; did you mean `{place}`?"
    return did_you_mean(str(loc[-1]), here)


def field_names(model: type[BaseModel]) -> list[str]:
    """The keys of a model as they are written in YAML."""
    return [field.alias or name for name, field in model.model_fields.items()]


def type_at(model: type[BaseModel], loc: Loc) -> Any:
    """The type that belongs at `loc`, or None where the model has no such place."""
    current: Any = model
    for part in loc:
        if _is_model(current):
            keys = {field.alias or name: field for name, field in current.model_fields.items()}
            if part not in keys:
                return None
            current = inner_type(keys[part].annotation)
        elif typing.get_args(current):
            current = inner_type(typing.get_args(current)[-1])
        else:
            return None
    return current


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def inner_type(annotation: Any) -> Any:
    """`X` of `X | None` and of `Annotated[X, …]`; anything else as it is."""
    if typing.get_origin(annotation) is typing.Annotated:
        return inner_type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return inner_type(kinds[0]) if len(kinds) == 1 else annotation
    return annotation


def _places_of(name: str, model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted places of every key called `name` below `model`, sections only (no lists)."""
    for field_name, field in model.model_fields.items():
        key = field.alias or field_name
        if key == name and prefix:
            yield f"{prefix}{key}"
        kind = inner_type(field.annotation)
        if _is_model(kind):
            yield from _places_of(name, kind, f"{prefix}{key}.")
