"""YAML as people mean it: a key stands once, and a value remembers how it was written.

`run_dir: 2024`, `data.path=1e3` or `run_dir=on` name folders, though YAML reads a number or a truth in them: what is
read as something else than a string is kept with its text, and the schema takes the one that a key needs.
"""

from dataclasses import dataclass
from typing import Any

import yaml

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
