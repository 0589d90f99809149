"""Every error tiedio raises, as one tree.

    TiedioError
    ├── ArgumentError           (TypeError, ValueError)  something else was passed than is asked for
    ├── TieError                (ValueError)  variables cannot be tied, untied or retied
    ├── ModelNotBuiltError      (ValueError)  a layer or model has no variables yet
    ├── MissingFileError        (FileNotFoundError, ValueError)  no such file, or folder for it
    ├── FileFormatError  (OSError, ValueError)  not a file Keras wrote, or a damaged one
    ├── RecordError             (ValueError)  the record of a file cannot be honoured
    ├── MissingPackageError     (ImportError) an optional package is needed
    ├── MigrationError          (ValueError)  a file cannot be migrated as it was asked for
    │   └── OptionNeededError                 unless an option is given, which is named
    │       └── TargetExistsError             as there is something at the target
    ├── CustomObjectsError      (TypeError)   classes the file needs are not registered
    ├── SaveError               (ValueError)  a state cannot be saved without loss
    └── LoadError               (ValueError)  a state cannot be restored without loss
        └── NoModelError                      the file holds something else

Each leaf is also the builtin that code written for Keras already catches. A
message has at most three lines: what failed and for which variables (all of
them, sorted); what was expected and received; what to do.
"""

import contextlib
import errno
import importlib
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# What to do with a file that is damaged.
RESTORE = "Restore it from a copy, or save the model again."
# What to do with one that does not fit a model: that of the file, or one that was built before.
SAME_CLASSES = "Load the file with the same classes, in the version it was saved with."
BUILD_IT = "Build the model as it was when saved."
BUILD_PARTS = "Let the `build` of the class that has them build all of its layers."
# What Keras says where a layer's own code fails. Why is in bold, and may be inside of more words.
_FAILED_CALL = re.compile(
    r"Exception encountered when calling (?P<call>\S+)\.\n\n\x1b\[1m"
    r"(Could not automatically infer [^\n]* of '(?P<layer>[^\n]*)' \(of [^\n]* encountered:\n\n)?"
    r"(?P<why>.*?)\x1b\[0m",
    re.DOTALL,
)

# How Keras shows a variable in a message, with its values.
_VALUES = re.compile(r"(<Variable path=[^>]*?), value=[^>]*(>|$)")

BACKENDS = ("tensorflow", "jax", "torch")
# Code of these is not the caller's.
_INSIDE = ("tiedio", "keras")


class TiedioError(Exception):
    """Base class of every error and of nothing else.

    Example:

    >>> import tiedio
    >>> try:
    ...     tiedio.load_tied("nowhere.keras")
    ... except tiedio.TiedioError as error:
    ...     print(error)
    There is no file `nowhere.keras`.
    Expected: a file. Received: nothing there.
    Check the path.
    """

    def or_pass(self, option: str) -> "TiedioError":
        """Returns this error, its advice with an option that the caller has."""
        error = type(self)(f"{str(self).removesuffix('.')}, or pass `{option}`.")
        error.__cause__ = self.__cause__
        return error


class ArgumentError(TiedioError, TypeError, ValueError):
    """A function was given something else than it asks for."""


class TieError(TiedioError, ValueError):
    """Variables cannot be tied, untied or retied."""


class ModelNotBuiltError(TiedioError, ValueError):
    """A layer or a model has no variables yet."""


class MissingFileError(TiedioError, FileNotFoundError, ValueError):
    """There is no file at the path (Keras raises `ValueError` for it), or no folder for it."""

    def __init__(self, message: str, filename: str | None = None):
        super().__init__(message)
        self.errno, self.filename = errno.ENOENT, filename  # as the system says

    def __str__(self) -> str:
        return self.args[0]


class FileFormatError(TiedioError, OSError, ValueError):
    """The file is not one that Keras or tiedio wrote, or it is damaged.

    Keras raises `OSError` for what HDF5 cannot read, and its `BackupAndRestore` then goes back
    to the backup before; `ValueError` for what is no archive.
    """


class RecordError(TiedioError, ValueError):
    """The record of a file is malformed, too new, or does not fit the model.

    No `OSError`, which Keras would take for damage, and put an older backup in its place.
    """


class MissingPackageError(TiedioError, ImportError):
    """A package that is needed for this, and for nothing else, is not installed."""


class MigrationError(TiedioError, ValueError):
    """A file cannot be migrated as it was asked for.

    Attributes:
        unused: The names that functions were given for, if the file has none there.
    """

    unused: tuple[str, ...] = ()


class OptionNeededError(MigrationError):
    """Something has to be allowed before a file is migrated; the option is named.

    Attributes:
        plan: What would be done then, a `tiedio.migration.proposals.Plan`, if that is known.
        needs: The options, as they are given on the command line.
    """

    plan: Any = None

    def __init__(self, message: str, *needs: str):
        super().__init__(message)
        self.needs = needs


class TargetExistsError(OptionNeededError):
    """There is something already where a file would be written.

    Attributes:
        target: The path.
    """

    target: str = ""


class CustomObjectsError(TiedioError, TypeError):
    """The file needs classes or functions that are not registered."""


class SaveError(TiedioError, ValueError):
    """Saving would lose something; the old file is untouched."""


class LoadError(TiedioError, ValueError):
    """Loading would lose something."""


class NoModelError(LoadError):
    """The file is one of Keras, and what it holds is no model."""


class TiedioWarning(UserWarning):
    """Something was given up that the caller allowed, or could not be kept.

    Example:

    >>> import tiedio, warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", tiedio.TiedioWarning)  # which makes errors of them
    """


def warn(messages: Iterable[str]) -> None:
    """Warns whoever called tiedio, or Keras where that called it."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    for message in messages:
        warnings.warn(message, TiedioWarning, stacklevel=level)


def listed(names: Iterable[str]) -> str:
    """Joins names for a message: every one of them, sorted, in backquotes."""
    return ", ".join(f"`{name}`" for name in sorted(name.replace("\n", " ") for name in names))


def first_line(error: Exception) -> str:
    """Returns what a message of Keras opens with, and of a call that failed why it did.

    The rest may be pages of configs, or of values.
    """
    message = str(error).strip() or type(error).__name__
    if failed := _FAILED_CALL.match(message):
        layer = f" of `{failed['layer']}`" if failed["layer"] else ""
        return f"`{failed['call']}`{layer} failed: {' '.join(failed['why'].split())}"
    return _VALUES.sub(r"\1>", message.splitlines()[0])


def unfit(given: Mapping[str, Any], expected: str, advice: str) -> ArgumentError:
    """The error for arguments, by name, that are of another kind than a function asks for."""
    received = ", ".join(_kind(given[name]) for name in sorted(given))
    return ArgumentError(
        f"Cannot use what was passed as {listed(given)}.\n"
        f"Expected: {expected}. Received: {received}.\n"
        f"{advice}"
    )


def texts(argument: str, given: Any, expected: str, advice: str, least: int = 0) -> list[str]:
    """Lists the texts that were passed, which may be one by itself; `unfit` if it is no text."""
    found = [given] if isinstance(given, str) else given
    found = list(found) if isinstance(found, Iterable) else None
    if found is None or len(found) < least or not all(isinstance(one, str) for one in found):
        raise unfit({argument: given}, expected, advice)
    return found


def check_mapping(argument: str, given: Any, advice: str) -> None:
    """Raises `unfit` if something was passed, and is no mapping."""
    if not (given is None or isinstance(given, Mapping)):
        raise unfit({argument: given}, "a dict", advice)


def _kind(thing: Any) -> str:
    """Tells what something is: a short text or a number as it is, others by their class."""
    several = isinstance(thing, (list, tuple))
    if isinstance(thing, (str, int, float, type(None))) or (several and not thing):
        return repr(thing)
    if isinstance(thing, type):
        return f"the class {_name(thing)}"
    return f"a {_name(type(thing))}" + (f" of {_name(type(thing[0]))}" if several else "")


def _name(kind: type) -> str:
    package = kind.__module__.partition(".")[0]
    return kind.__name__ if package == "builtins" else f"{package}.{kind.__name__}"


def imported(package: str, what: str, extra: str) -> Any:
    """Imports an optional package; `MissingPackageError` if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"{what} needs a package that is not installed.\n"
            f"Expected: `{package}`. Received: {first_line(error)}.\n"
            f"Install it: `pip install 'tiedio[{extra}]'`."
        ) from error


@contextlib.contextmanager
def importing_keras(what: str) -> Iterator[None]:
    """Says what to install if Keras cannot be imported, as its backend is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in BACKENDS:
            raise
        raise MissingPackageError(
            f"{what} needs Keras, whose backend is not installed.\n"
            f"Expected: `{error.name}`. Received: {first_line(error)}.\n"
            f"Install it: `pip install 'tiedio[{error.name}]'`, or set KERAS_BACKEND to another."
        ) from error


@contextlib.contextmanager
def explained(filepath: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turns errors of these kinds, as a damaged container leads to them, into `damaged`."""
    try:
        yield
    except (TiedioError, ImportError, MemoryError, NameError):
        raise
    except kinds as error:
        raise damaged(filepath, first_line(error)) from error


def damaged(filepath: str, received: str) -> FileFormatError:
    """The error for a container that is not as it was written."""
    return FileFormatError(
        f"`{filepath}` is damaged.\n"
        f"Expected: a complete file of Keras or tiedio. Received: {received}.\n"
        f"{RESTORE}"
    )


def forget_frames(error: BaseException) -> None:
    """Lets go of all that was in memory where an error came from."""
    error.__traceback__ = error.__cause__ = error.__context__ = None


def removed(filepath: Any) -> MissingFileError:
    """The error for what was there when it was opened."""
    return MissingFileError(
        f"`{filepath}` was removed while it was read.\n"
        "Expected: a checkpoint that stays. Received: nothing there any more.\n"
        "Load again; a run that saves by Orbax keeps as many steps as its `max_to_keep` says."
    )
