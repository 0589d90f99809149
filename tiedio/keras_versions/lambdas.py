"""Find the functions that a config holds as code, and put functions of a name in their place.

A Python lambda is saved as what one version of Python compiled it to. Another one refuses that, or
crashes as it runs it. Which one it was shows in the code. To this module code is bytes to look at:
it makes no function of them.
"""

import binascii
import contextlib
import dataclasses
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tiedio.errors import ArgumentError, check_mapping, listed

_Version = tuple[int, int]


class Pythons(NamedTuple):
    """Versions of Python: the first, the last, and what to call them."""

    first: _Version
    last: _Version
    name: str


_UP_TO_2 = Pythons((2, 0), (2, 7), "2")
_UP_TO_3_7 = Pythons((3, 0), (3, 7), "3.0 to 3.7")
_UP_TO_3_10 = Pythons((3, 8), (3, 10), "3.8 to 3.10")
_3_11_OR_3_12 = Pythons((3, 11), (3, 12), "3.11 or 3.12")
_3_11 = Pythons((3, 11), (3, 11), "3.11")
_3_12 = Pythons((3, 12), (3, 12), "3.12")
_3_13 = Pythons((3, 13), (3, 13), "3.13")
_LATER = Pythons((3, 14), (3, 99), "3.14 or later")

# The instruction that opens a function, as each numbers it.
_OPENS = {151: _3_11_OR_3_12, 149: _3_13, 128: _LATER}
# Instructions that 3.11 and 3.12 number alike, and how many free places 3.11 leaves after each.
_FREE_IN_3_11 = {25: 4, 106: 4, 107: 2, 116: 5, 171: 4}

# A function by its module and its name, or by the name that it is registered by.
_NAMED = re.compile(r"(\w+(\.\w+)*:\w+)|(\w+>)?\w+")
_ADVICE = "Pass functions as `module:function`, or registered names, by the names of layers."


@dataclasses.dataclass(frozen=True)
class Code:
    """A function that a config holds as code.

    Attributes:
        name: The layer, by the names that lead to it, such as `"decoder/scale"`; with what the
            function is to it, unless it is that of a `Lambda`: `"distance/mask"`.
        pythons: The versions of Python of which one compiled it; `None` if none did.
    """

    name: str
    pythons: Pythons | None

    def runs_in(self, python: _Version) -> bool:
        """Whether this version of Python may have compiled it."""
        return self.pythons is not None and self.pythons.first <= python <= self.pythons.last

    @property
    def runs_nowhere(self) -> bool:
        """Whether no version that this package runs in compiled it."""
        return self.pythons is None or self.pythons in (_UP_TO_2, _UP_TO_3_7, _UP_TO_3_10)


def told(codes: Iterable[Code]) -> str:
    """Says of some code which versions of Python compiled it."""
    pythons = sorted({one.pythons for one in codes if one.pythons})
    if not pythons:
        return "code that no known Python wrote"
    return f"code of Python {', '.join(one.name for one in pythons)}"


def options(names: Iterable[str]) -> str:
    """Returns the options that put functions in the place of code, by its names."""
    return " ".join(f"--lambda {name}=MODULE:FUNCTION" for name in names)


def found(config: Any) -> list[Code]:
    """Lists the functions that a config of any version holds as code, by their names."""
    pythons: dict[str, Pythons | None] = {}
    for held in _functions(config):
        if (code := _code(held)) is not None:
            pythons.setdefault(held.name, _pythons(code))
    surely = {_3_11, _3_12}.intersection(pythons.values())
    for name in pythons if len(surely) == 1 else ():  # as one process wrote all of it
        if pythons[name] == _3_11_OR_3_12:
            (pythons[name],) = surely
    return [Code(name, pythons[name]) for name in sorted(pythons)]


def named(config: Any) -> list[str]:
    """Lists the `Lambda` layers of a config whose functions have names, for who loads it."""
    return [held.name for held in _functions(config) if _code(held) is None]


def check(given: Mapping[str, str] | None) -> None:
    """Raises `ArgumentError` for functions that are not given by their names."""
    check_mapping("lambdas", given, _ADVICE)
    unread = {
        name: one
        for name, one in (given or {}).items()
        if not (isinstance(one, str) and _NAMED.fullmatch(one))
    }
    if unread:
        raise ArgumentError(
            f"Cannot tell which functions take the place of those of {listed(map(str, unread))}.\n"
            f"Expected: names. Received: {', '.join(map(repr, unread.values()))}.\n"
            f"{_ADVICE}"
        )


def notes(codes: Sequence[Code]) -> Iterator[str]:
    """Yields what there is to say of code in a config."""
    for these, which in (
        ([one for one in codes if one.runs_nowhere], "which does not run in Python 3.11 or later"),
        (
            [one for one in codes if not one.runs_nowhere],
            "which loads there only, and with `safe_mode=False`",
        ),
    ):
        if these:
            of = told(these).capitalize().replace("python", "Python")
            yield f"{of}, {which}: {listed(one.name for one in these)}."


def replace(config: Any, given: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Puts functions of a name in the place of others.

    Args:
        config: A config of any version, which is changed.
        given: Functions by their names, as `check` has them, by what each takes the place of.

    Returns:
        Notes for the user, and the names that have no function there.
    """
    left = dict(given)
    for held in list(_functions(config)) if given else ():
        if held.name not in given or held.is_shape:
            continue
        left.pop(held.name, None)
        held.holder[held.key] = _described(given[held.name])
        if held.is_what_it_computes and not _is_shape(held.holder.get("output_shape")):
            del held.holder["output_shape"]  # Keras finds it out by calling the function
    notes = [
        f"`{name}` runs `{function}`: give `{function.rpartition(':')[2]}` as `custom_objects`."
        for name, function in given.items()
        if name not in left and not function.startswith("keras.")
    ]
    return notes, list(left)


def _is_shape(given: Any) -> bool:
    """Whether this is a shape, and no function that tells one."""
    return given is None or (isinstance(given, list) and not any(isinstance(n, str) for n in given))


def _described(name: str) -> dict[str, Any]:
    """Describes a function as Keras 3 does: in its module, or by the name it is registered by."""
    module, _, function = name.rpartition(":")
    registered = function if module else "function"
    described = {"module": module or "builtins", "class_name": "function", "config": function}
    return {**described, "registered_name": registered}


@dataclasses.dataclass(frozen=True)
class _Held:
    """A part of a config: where it is held, in which layer, and what it is to that."""

    holder: Any
    key: Any
    layer: str | None = None  # of the model itself
    role: str = ""
    is_of_lambda: bool = False

    @property
    def value(self) -> Any:
        return self.holder[self.key]

    @property
    def is_what_it_computes(self) -> bool:
        return self.is_of_lambda and self.role == "function"

    @property
    def is_shape(self) -> bool:
        """Whether it tells the shape of what a `Lambda` computes."""
        return self.is_of_lambda and self.role == "output_shape"

    @property
    def name(self) -> str:
        role = "" if self.is_what_it_computes or self.is_shape else self.role
        return "/".join(filter(None, (self.layer, role)))

    def inside(self) -> Iterator["_Held"]:
        """Yields the parts that it consists of, as far as they may hold functions."""
        value = self.value
        if isinstance(value, dict) and isinstance(value.get("class_name"), str):
            yield from self._inside_object(value)
        elif isinstance(value, dict | list):
            for key, one in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(one, dict | list):
                    yield dataclasses.replace(self, holder=value, key=key)

    def _inside_object(self, value: dict[str, Any]) -> Iterator["_Held"]:
        config, layer = value.get("config"), self.layer
        if layer is None:
            layer = ""
        elif isinstance(config, dict) and isinstance(config.get("name"), str):
            layer = f"{layer}/{config['name']}".lstrip("/")
        is_lambda = value["class_name"] == "Lambda"
        for held in config, value.get("compile_config"):
            for key, one in held.items() if isinstance(held, dict) else ():
                if is_lambda or isinstance(one, dict | list):
                    yield _Held(held, key, layer, str(key), is_lambda)
        if isinstance(config, list):  # of the earliest Sequential
            yield _Held(value, "config", layer)


def _functions(config: Any) -> Iterator[_Held]:
    """Yields what is code in a config, and the function of each `Lambda`, however deep they are."""
    parts = [_Held([config], 0)]
    for part in parts:  # what is inside goes to the end
        if part.is_what_it_computes or _code(part) is not None:
            yield part
        else:
            parts.extend(part.inside())


def _code(part: _Held) -> str | None:
    """Returns the code that a part of a config is; `None` if it is something else."""
    value = part.value
    if isinstance(value, dict) and value.get("class_name") == "__lambda__":
        inner = value.get("config")
        inner = inner if isinstance(inner, dict) else {}
        value = inner.get("code", inner.get("value"))
        return str(value[0] if isinstance(value, list) and value else value)
    is_function = part.is_of_lambda and part.role in ("function", "output_shape", "mask")
    if is_function and isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        return value[0]  # with defaults and closure, as Keras 2 writes it
    return None


def _pythons(text: str) -> Pythons | None:
    """Tells by which versions of Python a text of code was compiled.

    Code is the letter `c`, some numbers, and the instructions: a string, so the letter `s` and
    its length come first. A bit beside these letters is set for what other objects refer to.
    """
    for code in _decoded(text):
        for numbers in 4, 5, 6:
            start = 1 + 4 * numbers
            if len(code) > start + 5 and (code[0] & 0x7F, code[start] & 0x7F) == (0x63, 0x73):
                (size,) = struct.unpack_from("<i", code, start + 1)
                instructions = code[start + 5 : start + 5 + max(size, 0) : 2]
                return _told_by(numbers, bool(code[start] & 0x80), instructions)
    return None


def _told_by(numbers: int, is_referred_to: bool, instructions: bytes) -> Pythons:
    # 3.0 counts one kind of arguments more, 3.8 another one; 3.11 does not count variables any
    # more, and holds the instructions in another form, beside which it keeps this one.
    if numbers != 5:
        return _UP_TO_2 if numbers == 4 else _UP_TO_3_10
    if not is_referred_to:
        return _UP_TO_3_7
    pythons = next((_OPENS[one] for one in _OPENS if one in instructions), _LATER)
    if pythons != _3_11_OR_3_12:
        return pythons
    for number, one in enumerate(instructions):
        if free := _FREE_IN_3_11.get(one):
            after = instructions[number + 1 :]
            return _3_11 if len(after) - len(after.lstrip(b"\0")) == free else _3_12
    return pythons


def _decoded(text: str) -> Iterator[bytes]:
    """Yields the bytes of code as versions of Keras wrote them as text."""
    with contextlib.suppress(ValueError):  # of other letters
        yield binascii.a2b_base64(text)
    yield text.encode("raw_unicode_escape")
