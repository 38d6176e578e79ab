"""From YAML to frozen dataclasses and back: every key and every type is checked, and errors name the key.

Understands the annotations that a config needs: bool, int, float, str, Literal, `X | None`, tuples,
dict[str, X] and nested dataclasses. Imports nothing heavy, so that a bad config is rejected at once.
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from gspn_dit.errors import UserError
from gspn_dit.files import at_home, describe_file

NULLS = ("", "~", "null", "Null", "NULL")
"""How YAML writes null."""


@dataclass(frozen=True)
class Written:
    """A scalar that is no string to YAML: its value, and its text."""

    value: Any
    text: str
    problem: str | None = None
    """Why the text is no YAML; then only a key that takes a string can use it."""

    def __repr__(self) -> str:
        return repr(self.value)  # in messages


class Loader(yaml.SafeLoader):
    """SafeLoader, but a key given twice is an error, keys are strings, and other scalars are `Written`."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Look for keys given twice before a merge (`<<`) brings in keys that may be given again."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {line}: a key that is a list or a mapping; expected a name")
            if key.value in lines:
                first = lines[key.value]
                where = (
                    f"twice in line {line}" if first == line else f"in line {first} and again in line {line}"
                )
                raise yaml.YAMLError(f"key '{key.value}' stands {where}: remove one")
            lines[key.value] = line
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

    def construct_written(self, node: yaml.ScalarNode) -> Any:
        try:
            value = yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        except ValueError:  # it looks like a date, or a number, and is none
            return node.value
        return Written(value, node.value)


for kind in ("bool", "int", "float", "timestamp"):
    Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.construct_written)


def parse(text: str) -> Any:
    """What a YAML document holds; yaml.YAMLError for what is no YAML, or holds a key twice."""
    return yaml.load(text, Loader)


def parse_value(text: str) -> Any:
    """The value of `key=text` on a command line, kept with its text; a string in quotes is what is in them."""
    try:
        value = parse(text)
    except yaml.YAMLError as error:
        return Written(None, text, getattr(error, "problem", None) or str(error))
    if isinstance(value, str) and text.lstrip()[:1] in ("'", '"'):
        return value
    if value is None and text.strip() in NULLS:
        return None
    return Written(value.value if isinstance(value, Written) else value, text)


Place = NewType("Place", str)
"""A string that is a path, in which ~ is home, or a hub id."""

T = TypeVar("T")

NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Place: "a path",
    type(None): "null",
}


KINDS = {
    "diffusion": ("a diffusion model, which train.py trains", ("diffusion", "sample")),
    "classifier": ("a classifier, which python -m gspn_dit.classification.train trains", ("augment",)),
    "distillation": ("a distillation, which python -m gspn_dit.text_to_image.distil does", ("teacher",)),
}
"""Kinds of runs: what their config is for, and keys that no other kind's has."""


def check_kind(path: Path, mapping: dict[str, Any], kind: str) -> None:
    """Raise `UserError` for a config file of another kind than `kind`, one of `KINDS`."""
    for other, (what, keys) in KINDS.items():
        if other != kind and any(key in mapping for key in keys):
            raise UserError(f"{path}: it is for {what}")


def load(path: str | Path, overrides: Sequence[str], make: Callable[[dict[str, Any]], T], kind: str) -> T:
    """What `make` makes of a YAML file's mapping with `key.path=value` overrides; its `UserError` names the file.

    Args:
        kind: one of `KINDS`, for which the file must be.
    """
    path = Path(path)
    mapping = read_yaml(path)
    check_kind(path, mapping, kind)
    for override in overrides:
        apply_override(mapping, override)
    try:
        return make(mapping)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; `UserError` when it is missing, not YAML, or empty."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        found = f"it is {describe_file(path)}" if path.exists() else error.strerror
        raise UserError(f"cannot read config {path}: {found}; see configs/") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        kind = describe_file(path)
        found = "" if kind == "a text" else f"it is {kind}: "
        raise UserError(f"{path} is not valid YAML: {found}{' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        content = content.value if isinstance(content, Written) else content
        found = "is empty" if content in (None, {}) else f"holds {type(content).__name__}"
        raise UserError(f"{path} {found}: expected a mapping with run_dir, model, data and train")
    return content


def apply_override(mapping: dict[str, Any], override: str) -> None:
    """Set `key.path=value` in a nested mapping; the value is read as YAML, and taken as written for a string."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}': expected key.path=value, e.g. train.steps=200")
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        below = mapping.setdefault(parent, {})
        if isinstance(below, Written) and isinstance(below.value, dict):  # of an override before this one
            below = mapping[parent] = below.value
        if not isinstance(below, dict):
            raise UserError(f"override '{override}': '{'.'.join(parents[: depth + 1])}' has no keys below it")
        mapping = below
    mapping[last] = parse_value(text)


def build(cls: type[T], mapping: Any, prefix: str = "") -> T:
    """Make the dataclass `cls` from a YAML mapping; `prefix` is the dotted path to its keys, for messages.

    Raises `UserError` for an unknown key (naming the nearest valid one), a missing key, or a wrong type.
    """
    mapping = read(mapping, cls, prefix.rstrip("."))
    if not isinstance(mapping, dict):
        raise UserError(f"{prefix.rstrip('.') or 'the config'}: expected a mapping of keys, got {mapping!r}")
    hints = get_type_hints(cls)
    for key in mapping:
        if key not in hints:
            raise UserError(f"unknown key '{prefix}{key}'; {suggestion(str(key), hints, prefix)}")
    values = {key: convert(value, hints[key], prefix + key) for key, value in mapping.items()}
    for field in dataclasses.fields(cls):
        if field.name not in values and is_required(field):
            raise UserError(f"missing key '{prefix}{field.name}': expected {describe(hints[field.name])}")
    return cls(**values)


def convert(value: Any, annotation: Any, key: str) -> Any:
    """Check one YAML value against a type annotation, and make it that type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin not in (Union, types.UnionType):  # of which one is chosen first
        value = read(value, annotation, key)
    if dataclasses.is_dataclass(annotation):
        return build(annotation, value, key + ".")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return convert(value, next(a for a in arguments if a is not type(None)), key)
    if origin is Literal and value in arguments:
        return value
    if origin is dict and isinstance(value, dict):
        return {str(name): convert(item, arguments[1], f"{key}.{name}") for name, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(convert(item, arguments[0], key) for item in value)
        if len(value) == len(arguments):
            return tuple(convert(*pair, key) for pair in zip(value, arguments, strict=True))
    if annotation is float and is_number(value):
        return float(value)
    if annotation is Place and isinstance(value, str):
        return at_home(key, value)
    if type(value) is annotation:
        return value
    raise UserError(f"{key}: expected {describe(annotation)}, got {value!r}")


def read(value: Any, annotation: Any, key: str) -> Any:
    """What a value that remembers its text is to this annotation: the text for a string, else what YAML reads."""
    if not isinstance(value, Written):
        return value
    if annotation in (str, Place):
        return value.text
    if value.problem:
        raise UserError(f"{key}: '{value.text}' is not a YAML value ({value.problem}); quote it")
    return value.value


def is_number(value: Any) -> bool:
    """Whether a YAML value reads as a float; YAML 1.1 leaves `1e-4`, written without a point, a string."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def describe(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each {describe(arguments[0])}"
        return f"a list of {len(arguments)}, each {describe(arguments[0])}"
    if origin is dict or dataclasses.is_dataclass(annotation):
        return "a mapping"
    return NAMES[annotation]


def suggestion(name: str, valid: Any, prefix: str = "") -> str:
    """The end of an error message about an unknown name: the nearest valid one, or all of them."""
    near = difflib.get_close_matches(name, valid, n=1)
    return f"did you mean '{prefix}{near[0]}'?" if near else f"valid here: {', '.join(valid)}"


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a dataclass, nested ones included."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def to_plain(value: Any) -> Any:
    """A dataclass as dicts, lists and scalars that YAML can hold."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def help_text(cls: type, prefix: str = "") -> str:
    """Every key with its default and the docstring under its field, for a command line's --help."""
    lines, hints, docs = [], get_type_hints(cls), field_docs(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            lines.append(help_text(hints[field.name], f"{prefix}{field.name}."))
            continue
        default = "required" if is_required(field) else f"default {default_of(field)}"
        lines.append(f"  {prefix}{field.name}  ({default})")
        lines += textwrap.wrap(docs[field.name], 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def default_of(field: dataclasses.Field) -> Any:
    value = field.default_factory() if field.default is dataclasses.MISSING else field.default
    # json's words are YAML's; as keys of a dict 1.0 and True would be one.
    return json.dumps(value) if value is None or isinstance(value, bool) else value


def field_docs(cls: type) -> dict[str, str]:
    """The string that follows each field in the source of a dataclass, or of one that it extends."""
    docs = {}
    for owner in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for statement, following in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                docs[statement.target.id] = " ".join(following.value.value.split())
    return docs
