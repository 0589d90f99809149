"""Find the files that paths mean: files, folders of them, and patterns.

Which files of a folder are looked at, and that some folders are one file, is decided here.
"""

import collections
import dataclasses
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tiedio.errors import MissingFileError, listed, texts
from tiedio.formats import orbax_folder, table, tensorflow_paths
from tiedio.formats.content import CONFIG, VALUES, WEIGHTS
from tiedio.formats.tensorflow_paths import INDEX, NEWEST, SAVED_MODEL

_SHARD = re.compile(r"_\d{5}\.weights\.h5$")


@dataclasses.dataclass(frozen=True)
class File:
    """A file to be looked at; a folder, if that is what a model was saved to.

    Attributes:
        path: Its path.
        name: Its name below the folder that was asked for, or below the last one that the
            pattern names whole.
        size: Its bytes; 0 if unknown.
    """

    path: str
    name: str
    size: int = 0


@dataclasses.dataclass(frozen=True)
class Listing:
    """What paths mean.

    Attributes:
        files: The files, each once.
        passed_over: How many other files the folders have, by the endings of these.
    """

    files: tuple[File, ...]
    passed_over: Mapping[str, int]


def is_many(source: str) -> bool:
    """Whether a path means many files: a folder that is no model itself, or a pattern."""
    if os.path.exists(source):
        return os.path.isdir(source) and not is_model(source)
    return glob.has_magic(source) and "://" not in source


def ending(name: str) -> str:
    """The ending of a file of Keras, whatever the case of its letters; empty if it has none."""
    found = next((suffix for suffix in table.SUFFIXES if name.lower().endswith(suffix)), "")
    return name[len(name) - len(found) :]


Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def paths(sources: Sources) -> list[str]:
    """Returns paths, which may be one by itself, as texts."""
    given = [sources] if isinstance(sources, str | os.PathLike) else sources
    if isinstance(given, Sequence):
        given = [os.fspath(one) if isinstance(one, os.PathLike) else one for one in given]
    return texts("sources", given, "paths", "Pass a path, or a list of them.", least=1)


def files(sources: Sources) -> Listing:
    """Lists the files that paths mean. What is called `.something` in a folder is left out.

    Raises:
        MissingFileError: If folders have no file of Keras, or nothing fits a pattern.
    """
    found: dict[str, File] = {}
    others = collections.Counter[str]()
    empty = []
    for source in paths(sources):
        held = list(_meant(source, others) if is_many(source) else [_named(source)])
        found |= {one.path: one for one in held}
        if not held:
            empty.append(source)
    if empty:
        raise MissingFileError(
            f"There is no file of Keras at {listed(empty)}.\n"
            f"Expected: names that end in {listed(filter(None, table.SUFFIXES))}, or folders of "
            f"TensorFlow or Orbax. Received: {counted(others) or 'nothing there'}.\n"
            "Check the path; a file that ends otherwise is read if you name it."
        )
    return Listing(tuple(found.values()), others)


def counted(endings: Mapping[str, int]) -> str:
    """Says how many files have each ending."""
    return ", ".join(f"{count} {name}" for name, count in sorted(endings.items()))


def _named(source: str) -> File:
    path = source if "://" in source else os.path.normpath(source)
    return File(path, os.path.basename(path), _size(path))


def _meant(source: str, others: collections.Counter[str]) -> Iterator[File]:
    """Yields the files of a folder or a pattern."""
    if os.path.isdir(source):
        below, found = source, sorted(_below(source, others))
    else:
        parts = Path(source).parts
        whole = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        below = os.path.join("", *parts[:whole]) or "."
        found = sorted(glob.glob(source, recursive=True))
        found = [path for path in found if not os.path.isdir(path) or is_model(path)]
    for path in found:
        yield File(os.path.normpath(path), os.path.relpath(path, below), _size(path))


def _below(folder: str, others: collections.Counter[str]) -> list[str]:
    """Lists the files of Keras in a folder, and in the folders inside it; counts the others."""
    found: list[str] = []

    def list_it_too(error: OSError) -> None:  # whoever reads it says why it cannot be opened
        found.append(error.filename)

    for parent, folders, names in os.walk(folder, onerror=list_it_too):
        folders[:] = [name for name in folders if not name.startswith(".")]
        models = [name for name in folders if is_model(os.path.join(parent, name))]
        folders[:] = [name for name in folders if name not in models]
        names = [name for name in names if not name.startswith(".")]
        checkpoints = {prefix + INDEX for prefix in tensorflow_paths.checkpoints(names)}
        # Shards are read with the JSON that names them.
        own = [name for name in names if ending(name) and not _SHARD.search(name)]
        found += (os.path.join(parent, name) for name in (*models, *own, *checkpoints))
        for name in names:
            is_part = _SHARD.search(name) or tensorflow_paths.is_data(name) or name == NEWEST
            if not (is_part or name in own or name in checkpoints):
                others[os.path.splitext(name)[1].lower() or "without ending"] += 1
    return found


def is_model(folder: str) -> bool:
    """Whether a folder is one file of Keras, unpacked, or one of TensorFlow or Orbax."""
    try:
        names = set(os.listdir(folder))
        if orbax_folder.is_one(Path(folder)):
            return True
    except OSError:
        return False
    if SAVED_MODEL in names or (CONFIG in names and not names.isdisjoint((WEIGHTS, VALUES))):
        return True
    checkpoints = tensorflow_paths.checkpoints(names)
    is_one = len(checkpoints) == 1 or (checkpoints and NEWEST in names)
    return bool(is_one) and not any(map(ending, names))


def _size(path: str) -> int:
    try:
        if not os.path.isdir(path):
            return os.path.getsize(path)
        return sum(one.stat().st_size for one in Path(path).rglob("*") if one.is_file())
    except OSError:
        return 0
