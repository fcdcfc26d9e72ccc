"""Plain YAML: no tags, no key twice, and numbers such as 4.0e5 are numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from spectromap.schema import FileError


class _PlainLoader(yaml.SafeLoader):
    """A safe loader that refuses to lose one of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping after looking for repeated keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key.value}' occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 4.0e5 for text because the exponent has no sign.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file of keys and values.

    Parameters
    ----------
    path : path
        The file, UTF-8 text.

    Returns
    -------
    dict
        Plain Python values.

    Raises
    ------
    FileError
        Missing, unreadable, not YAML, a key given twice, or a tag.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FileError("no such file", where=path, remedy="Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise FileError(f"cannot be read ({reason})", where=path) from error
    return parse_yaml(text, path)


def parse_yaml(text: str, where: object) -> dict[str, Any]:
    """Parse YAML text of keys and values; see `load_yaml`."""
    try:
        content = yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it holds characters that are not text"
        raise FileError(
            f"not a valid YAML file: {problem}{place}",
            where=where,
            remedy="Only plain keys, values and lists are allowed, each key once.",
        ) from error
    if not isinstance(content, dict):
        raise FileError("holds no keys", where=where, remedy="Its top must be 'key: value' lines.")
    return content


def mistakes(errors: Sequence[Mapping[str, Any]]) -> str:
    """What pydantic found wrong, one indented line for each mistake, with its path.

    Parameters
    ----------
    errors : sequence of mapping
        As ``ValidationError.errors()`` returns them.
    """
    return "".join(f"\n  - {_mistake(error)}" for error in errors)


def _mistake(error: Mapping[str, Any]) -> str:
    """One line about one mistake."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key"
    if error["type"] == "missing":
        return f"{path}: is required"
    message = str(error["msg"]).removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{path}: {message}{shown}" if path else message
