"""Write dataclasses as JSON, and read JSON by name and type.

What is not as it should be is a `RecordError` that says so.
"""

import collections
import dataclasses
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from tiedio.errors import RecordError, damaged, listed

T = TypeVar("T")

_HALVES = re.compile("[\ud800-\udfff]")


def typed(value: Any, kind: Any, what: str) -> Any:
    """Returns a value if it is of that kind, and no text that cannot be written.

    Raises:
        RecordError: If it is not.
    """
    # JSON has no type of its own for what Python calls a bool that is an int.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise malformed(f"{what} as {getattr(kind, '__name__', kind)}", value)
    # JSON also holds halves of characters, which are no name anywhere else.
    if isinstance(value, str) and not value.isascii() and _HALVES.search(value):
        raise malformed(f"{what} as text", value)
    return value


class Written:
    """A dataclass whose JSON is an object of its fields."""

    def to_json(self) -> dict[str, Any]:
        made: Any = self
        return {one.name: _json(getattr(self, one.name)) for one in dataclasses.fields(made)}


def _json(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _json(one) for key, one in value.items()}
    return [_json(one) for one in value] if isinstance(value, list | tuple) else value


class Fields:
    """A JSON object whose every value is asked for by name and type."""

    def __init__(self, data: Any, what: str):
        self.data = typed(data, dict, what)
        self.what = what

    def get(self, name: str, kind: Any, missing: Any = None) -> Any:
        return typed(self.data.get(name, missing), kind, f"`{name}` of {self.what}")

    def each(self, name: str, read: Callable[[Any], T], missing: Any = None) -> list[T]:
        return [read(item) for item in self.get(name, list, missing)]

    def mapped(self, name: str, read: Callable[[Any], T]) -> dict[str, T]:
        return {key: read(item) for key, item in self.get(name, dict, missing={}).items()}


# `repr` itself fails on what is nested too deeply, and takes long for what is long.
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200


def malformed(expected: str, received: Any) -> RecordError:
    """The error for a value that is something else."""
    return unreadable(expected, _short.repr(received))


def contradictory(expected: str, twice: Iterable[str]) -> RecordError:
    """The error for what stands more than once."""
    return unreadable(expected, f"several for {listed(twice)}")


def unreadable(expected: str, received: str) -> RecordError:
    """The error for a record, with what was received in words."""
    return RecordError(
        "Cannot read the record of this file.\n"
        f"Expected: {expected}. Received: {received}.\n"
        "The file was changed after it was saved; save it again."
    )


def parse(filepath: str, name: str, text: str | bytes) -> dict[str, Any]:
    """Reads a JSON object of a file.

    Raises:
        FileFormatError: If it is none, or readers would take it differently.
    """
    try:
        content = json.loads(text, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError, MemoryError) as error:
        raise damaged(filepath, f"`{name}` is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise damaged(filepath, f"`{name}` is not a JSON object")
    return content


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a JSON object of pairs; with a key twice, readers would differ."""
    made = dict(pairs)
    if len(made) < len(pairs):
        key, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{key[:99]!r} stands twice in one object")
    return made
