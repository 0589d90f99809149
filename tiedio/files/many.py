"""The verbs of the command line for many files: folders, patterns, and several paths.

One file that fails does not stop the others. Each function takes what the function of its name in
`tiedio.files` takes, paths that mean many files in place of one, and returns what became of each.

Example:

>>> import keras, os
>>> from tiedio.files import many
>>> os.mkdir("old")
>>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
>>> model.save("old/a.keras")
>>> _ = open("old/b.keras", "w").write("no model")
>>> [str(one.state) for one in many.migrate("old", "new")]
['fine', 'failed']
>>> [str(one.state) for one in many.migrate("old", "new", skip_existing=True)]
['skipped', 'failed']
>>> [one.filepath for one in many.verify(["old", "new/*.keras"]) if one.error]
['old/b.keras']
"""

import dataclasses
import enum
import os
from collections.abc import Callable, Sequence
from typing import Any

from tiedio import errors, files
from tiedio.errors import MigrationError, OptionNeededError, TargetExistsError, TiedioError
from tiedio.formats import listing
from tiedio.formats.listing import File, Sources
from tiedio.storage.progress import bar


class State(enum.StrEnum):
    """What became of a file.

    Attributes:
        FINE: What was asked for is done; a dry run would do it.
        READ: `inspect` or `plan` has read it, as far as they do: not all values, as `verify` does.
        UNVERIFIED: `verify` can read it, and it has neither digests nor a checksum.
        SKIPPED: The file that would be written is there already.
        NEEDS_OPTION: Nothing is wrong, but somebody has to decide.
        FAILED: It is damaged, no file of Keras, or cannot be written so.
    """

    FINE = "fine"
    READ = "read"
    UNVERIFIED = "nothing to verify against"
    SKIPPED = "skipped"
    NEEDS_OPTION = "needs an option"
    FAILED = "failed"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
        filepath: The file.
        result: What the function of `tiedio.files` returns; `None` if there is nothing to say. Of
            a file that needs an option, the plan.
        error: Why it failed, or which option it needs; `None` if neither.
        skipped: The file that is there already, where such files are skipped.
        fine: What it comes to if nothing is wrong.
    """

    filepath: str
    result: Any = None
    error: TiedioError | OSError | MemoryError | None = None
    skipped: str = ""
    fine: State = State.FINE

    @property
    def state(self) -> State:
        """What that comes to."""
        if self.skipped:
            return State.SKIPPED
        if self.error is None:  # a file that can be read may have no digests, and no checksum
            return self.fine if getattr(self.result, "is_verified", True) else State.UNVERIFIED
        needs_option = isinstance(self.error, OptionNeededError)
        return State.NEEDS_OPTION if needs_option else State.FAILED

    @property
    def needs(self) -> tuple[str, ...]:
        """The options without which it is not done, as they are given on the command line."""
        return self.error.needs if isinstance(self.error, OptionNeededError) else ()

    def to_json(self) -> dict[str, Any]:
        return {
            "filepath": self.filepath,
            "state": str(self.state),
            "needs": list(self.needs),
            "error": str(self.error or ""),
            "skipped": self.skipped,
            "result": self.result and self.result.to_json(),
        }


Told = Callable[[Outcome], Any]

# Each function imports what it alone needs: a command answers the sooner.


def inspect(sources: Sources, *, progress: bool = False, told: Told | None = None) -> list[Outcome]:
    """Tells of many files what they are, who wrote them, and what they share.

    Args:
        sources: Files, folders, and patterns as the shell has them; `**` is any number of folders.
            In folders, files count whose names end as those of Keras do, and folders that are one
            model.
        progress: Whether to show a bar, by files and bytes.
        told: Called with each outcome as soon as it is known.

    Returns:
        An outcome of each file, with what `tiedio.files.inspect` returns.

    Raises:
        ArgumentError: If something else is passed than a path, or paths.
        MissingFileError: If a folder has no file of Keras, or nothing fits a pattern.
    """

    def one(file: File) -> Outcome:
        return Outcome(file.path, files.inspect(file.path), fine=State.READ)

    return _each(listing.files(sources).files, one, "Inspecting", progress, told)


def plan(
    sources: Sources, *, progress: bool = False, told: Told | None = None, **given: Any
) -> list[Outcome]:
    """Finds out which variables of many files were tied. Nothing is written.

    Args:
        sources: As in `inspect`, as are the next two.
        progress: Whether to show a bar.
        told: Called with each outcome.
        **given: Further arguments of `tiedio.files.plan`.

    Returns:
        An outcome of each file, with its plan.

    Raises:
        ArgumentError: As in `inspect`.
        MissingFileError: As in `inspect`.
    """

    def one(file: File) -> Outcome:
        from tiedio.migration import allowing

        planned = files.plan(file.path, **given)
        try:
            allowing.check(planned)
        except OptionNeededError as error:
            return Outcome(file.path, planned, error)
        return Outcome(file.path, planned, fine=State.READ)

    return _each(listing.files(sources).files, one, "Planning", progress, told)


def verify(sources: Sources, *, progress: bool = False, told: Told | None = None) -> list[Outcome]:
    """Compares many files with what their records say of them.

    Args:
        sources: As in `inspect`, as are the next two.
        progress: Whether to show a bar.
        told: Called with each outcome.

    Returns:
        An outcome of each file, with what `tiedio.files.verify` returns.

    Raises:
        ArgumentError: As in `inspect`.
        MissingFileError: As in `inspect`.
    """

    def one(file: File) -> Outcome:
        found = files.verify(file.path)
        return Outcome(file.path, found, found.error)

    return _each(listing.files(sources).files, one, "Verifying", progress, told)


def migrate(
    sources: Sources,
    target: str | os.PathLike[str],
    *,
    skip_existing: bool = False,
    dry_run: bool = False,
    progress: bool = False,
    told: Told | None = None,
    **given: Any,
) -> list[Outcome]:
    """Migrates many files into a folder; or one file, to a path or into a folder.

    Args:
        sources: As in `inspect`.
        target: Where the new files go, under the same names with the ending `.keras`, or
            `.weights.h5` for weights only. Where two would have one name, or one would take
            the place of a file that is migrated, the old ending stays in it: `a_h5.keras`. For one
            file also its new path, if no folder is there, and it does not end in a slash.
        skip_existing: Whether to leave out files whose new file is there already.
        dry_run: Whether to plan only.
        progress: Whether to show a bar, by files and bytes.
        told: Called with each outcome as soon as it is known.
        **given: Further arguments of `tiedio.files.migrate`.

    Returns:
        An outcome of each file, with what was done, or would be.

    Raises:
        ArgumentError: As in `inspect`.
        MissingFileError: As in `inspect`.
        MigrationError: If the target of many files is the path of one.
    """
    from tiedio.migration.destination import Destinations

    found = listing.files(sources).files
    paths, target = listing.paths(sources), os.fspath(target)
    is_many = len(paths) > 1 or listing.is_many(paths[0])
    if is_many and listing.ending(target) and not os.path.isdir(target):
        raise MigrationError(
            f"Cannot migrate many files to `{target}`.\n"
            "Expected: a folder, which may be a new one. Received: the path of one file.\n"
            "Pass the path of a folder; a new one may end in a slash."
        )
    into_folder = is_many or target.endswith(("/", os.sep))
    into_folder = into_folder or (os.path.isdir(target) and not listing.is_model(target))
    destinations = Destinations(found, target) if into_folder else None

    def one(file: File) -> Outcome:
        if not destinations:
            return migrated(file, target)[0]
        wanted, instead = destinations.of(file), ""
        if not dry_run and "://" not in wanted:
            os.makedirs(os.path.dirname(wanted) or ".", exist_ok=True)
        while True:
            # What is written of it may have another ending, which only its content tells.
            outcome, written = migrated(file, instead or wanted)
            if destinations.is_taken(file, written):
                instead = destinations.instead_of(file, written)
            elif isinstance(outcome.error, TargetExistsError) and given.get("overwrite"):
                instead = written  # where it may be replaced, as it is this file's
            else:
                break
        if written:
            destinations.take(file, wanted, written)
        if outcome.state is State.FINE:
            notes = (*outcome.result.notes, *destinations.notes(file))
            done = dataclasses.replace(outcome.result, notes=notes)
            outcome = dataclasses.replace(outcome, result=done)
        return outcome

    def migrated(file: File, wanted: str, unused: Sequence[str] = ()) -> tuple[Outcome, str]:
        """Migrates a file; tells also where it is written, or would be if that were free."""
        lambdas = {k: v for k, v in (given.get("lambdas") or {}).items() if k not in unused}
        own = {**given, "lambdas": lambdas} if unused else given
        try:
            done = files.migrate(file.path, wanted, dry_run=dry_run, **own)
        except TargetExistsError as error:
            if skip_existing:
                return Outcome(file.path, skipped=error.target), error.target
            return Outcome(file.path, error=error), error.target
        except OptionNeededError as error:
            planned = error.plan and dataclasses.replace(error.plan, unused=tuple(unused))
            return Outcome(file.path, planned, error), ""
        except MigrationError as error:
            if not (is_many and error.unused):
                raise
            return migrated(file, wanted, error.unused)  # functions may be of other files
        return Outcome(file.path, dataclasses.replace(done, unused=tuple(unused))), done.target

    return _each(found, one, "Planning" if dry_run else "Migrating", progress, told)


def _each(
    files: Sequence[File],
    verb: Callable[[File], Outcome],
    what: str,
    progress: bool,
    told: Told | None,
) -> list[Outcome]:
    """Does the same with each file; whatever fails is an outcome, too."""
    outcomes: list[Outcome] = []
    total = sum(file.size for file in files)
    with bar(what, progress) as advance:
        for number, file in enumerate(files, 1):
            if len(files) > 1:
                advance(0, total, f"{what} {number} of {len(files)} files")
            try:
                outcome = verb(file)
            except (TiedioError, OSError, MemoryError) as error:
                outcome = Outcome(file.path, error=error)
            if outcome.error:
                errors.forget_frames(outcome.error)
            outcomes.append(outcome)
            if told:
                told(outcome)
            advance(file.size, total)
    return outcomes
