"""Migrate many files, one after the other; one that fails does not stop the rest.

Which files a folder or a pattern means, and what they are called in the new folder, is decided
here; what becomes of each is not.
"""

import collections
import dataclasses
import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiedio.errors import MigrationError, TiedioError, listed
from tiedio.formats import orbax_folder, table
from tiedio.formats.content import CONFIG, VALUES, WEIGHTS
from tiedio.formats.folder import SAVED_MODEL
from tiedio.migration import planning
from tiedio.migration.planning import Plan
from tiedio.record.json_fields import Written
from tiedio.storage.progress import shown

_SHARD = re.compile(r"_\d{5}\.weights\.h5$")


@dataclasses.dataclass(frozen=True)
class Outcome(Written):
    """The outcome of one file's migration.

    Attributes:
        filepath: The file.
        plan: What was done, or would be; `None` if not even that could be told.
        error: Why it failed; empty if it did not.
        needs_option: Whether it failed for something that has to be allowed.
    """

    filepath: str
    plan: Plan | None
    error: str = ""
    needs_option: bool = False


def is_many(source: str) -> bool:
    """Whether a path means many files: a folder that is no model itself, or a pattern."""
    if os.path.exists(source):
        return os.path.isdir(source) and not _is_model(source)
    return glob.has_magic(source) and "://" not in source


def files(source: str) -> list[tuple[str, str]]:
    """Lists the files that a folder or a pattern means.

    Returns:
        Each file, and its name below that folder, or below the last one that the pattern
        names whole.
    """
    if os.path.isdir(source):
        below, found = source, _below(source)
    else:
        parts = Path(source).parts
        whole = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        below = os.path.join("", *parts[:whole])
        found = glob.glob(source, recursive=True)
        found = [path for path in found if not os.path.isdir(path) or _is_model(path)]
    return [(os.path.normpath(path), os.path.relpath(path, below or ".")) for path in sorted(found)]


def migrate(
    source: str,
    folder: str,
    ties: Sequence[str] = (),
    accept: Sequence[str] = (),
    reconcile: str = "error",
    config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    durable: bool = True,
    *,
    lambdas: Mapping[str, str] | None = None,
    dry_run: bool = False,
    progress: bool = False,
) -> list[Outcome]:
    """Migrates all files that a folder or a pattern means.

    Args:
        source: The folder, or a pattern as the shell has them; `**` is any number of folders.
        folder: Where the new files go, under the same names with the ending `.keras`, or
            `.weights.h5` for weights only. Where two would have one name, or one would take
            the place of a file that is migrated, the old ending stays in it: `a_h5.keras`.
        ties: As in `tiedio.files.migrate`, as are the next five.
        accept: Which weak evidence to go by.
        reconcile: What becomes of copies that have different values by now.
        config: The config of the model, for files that have none.
        overwrite: Whether to replace files in `folder`.
        durable: Whether to wait until each file is on disk.
        lambdas: As in `tiedio.files.migrate`, for the files that have such layers.
        dry_run: Whether to plan only.
        progress: Whether to show a progress bar, by bytes.

    Returns:
        What became of each file.

    Example:

    >>> import keras, os
    >>> from tiedio.migration import many
    >>> os.mkdir("old")
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    >>> model.save("old/a.keras")
    >>> _ = open("old/b.keras", "w").write("no model")
    >>> [one.error == "" for one in many.migrate("old", "new")]
    [True, False]
    """
    found = files(source)
    targets = _targets(found, folder)
    sizes = {path: os.path.getsize(path) for path, _ in found}
    outcomes: list[Outcome] = []
    # Whatever has the new ending already keeps its name, in its turn.
    own = [path for path, name in found if _renamed(name) == name]
    taken = {_identity(targets[path]): path for path in reversed(own)}
    taken |= {_identity(path): path for path, _ in found}
    with shown("Planning" if dry_run else "Migrating", progress) as advance:
        for path, name in found:
            target = targets[path]
            plan = None
            try:
                if dry_run:
                    plan = planning.plan(path, ties, config, lambdas=lambdas)
                    planning.accepted(plan, accept, reconcile)
                _check_untaken(path, target, taken)
                if not dry_run:
                    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
                plan = planning.migrate(
                    path,
                    target,
                    ties=ties,
                    accept=accept,
                    reconcile=reconcile,
                    config=config,
                    overwrite=overwrite,
                    durable=durable,
                    lambdas=lambdas,
                    dry_run=dry_run,
                )
                if dry_run:  # it may have another ending, and nothing lies there that is in the way
                    _check_untaken(path, plan.target, taken)
                taken[_identity(target)] = taken[_identity(plan.target)] = path
                if target != os.path.join(folder, _renamed(name)):
                    why = f"Another file is, or becomes, `{_renamed(name)}`: so this one keeps its"
                    plan = dataclasses.replace(plan, notes=(*plan.notes, f"{why} old ending."))
                outcomes.append(Outcome(path, plan))
            except (TiedioError, OSError) as error:
                needs_option = isinstance(error, MigrationError)
                outcomes.append(Outcome(path, plan, str(error), needs_option))
            advance(sizes[path], sum(sizes.values()))
    return outcomes


def _check_untaken(path: str, target: str, taken: Mapping[object, str]) -> None:
    if (other := taken.get(_identity(target), path)) != path:
        raise MigrationError(
            f"`{path}` would be written to `{target}`.\n"
            f"Expected: a path of its own. Received: that of {listed([other])}.\n"
            "Migrate it by itself, or rename one of the two."
        )


def _targets(found: Sequence[tuple[str, str]], folder: str) -> dict[str, str]:
    """Returns the path to write each file to, by its own.

    Only its ending is another. If so it would be that of another new file, or of one that is
    to be migrated, the old ending stays in the name, as in `best_h5.keras`; unless it is the
    new one already, whose name that is.
    """
    plain = {path: os.path.join(folder, _renamed(name)) for path, name in found}
    times = collections.Counter(plain.values())
    sources = {_identity(path) for path, _ in found}
    return {
        path: os.path.join(folder, _renamed(name, keeps_ending=True))
        if _renamed(name) != name and (times[plain[path]] > 1 or _identity(plain[path]) in sources)
        else plain[path]
        for path, name in found
    }


def _identity(path: str) -> object:
    """What lies at a path, whichever path that is; a path itself where nothing is."""
    try:
        here = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return here.st_dev, here.st_ino


def _is_model(folder: str) -> bool:
    """Whether a folder is one file of Keras, unpacked, or one of TensorFlow or Orbax."""
    names = set(os.listdir(folder))
    if orbax_folder.is_one(Path(folder)):
        return True
    is_of_keras = CONFIG in names and not names.isdisjoint((WEIGHTS, VALUES))
    return is_of_keras or any(name == SAVED_MODEL or name.endswith(".index") for name in names)


def _below(folder: str) -> list[str]:
    """Lists the files of Keras in a folder, and in the folders inside it."""
    found = []
    for parent, folders, names in os.walk(folder):
        models = [name for name in folders if _is_model(os.path.join(parent, name))]
        folders[:] = [name for name in folders if name not in models]
        # Shards are read with the JSON that names them.
        own = [name for name in names if name.endswith(table.SUFFIXES) and not _SHARD.search(name)]
        found += [os.path.join(parent, name) for name in (*models, *own)]
    return found


def _renamed(name: str, keeps_ending: bool = False) -> str:
    """Returns the name of a new file: a whole model's, which weights only change again."""
    suffix = next((suffix for suffix in table.SUFFIXES if name.endswith(suffix)), "")
    stem = name.removesuffix(suffix)
    if keeps_ending:
        stem += f"_{suffix.rpartition('.')[2] or 'folder'}"
    return stem + (".weights.h5" if suffix in table.WEIGHTS_SUFFIXES else ".keras")
