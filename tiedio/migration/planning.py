"""Give a checkpoint its sharing back: plan what to tie, then write a file where it is tied.

No model code is needed, and nothing of Keras: what a file says is enough, or what the user
says. The source is never changed; the target is replaced whole.
"""

import dataclasses
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiedio.checkpoints import opening, rewriting
from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.evidence import find
from tiedio.checkpoints.given_ties import given_by_name, parsed
from tiedio.checkpoints.stated_ties import Evidence, Tie, joined
from tiedio.checkpoints.variables import StoredVariable
from tiedio.errors import MigrationError, listed, texts
from tiedio.formats import table
from tiedio.record.json_fields import Written
from tiedio.storage.base import Storage
from tiedio.storage.locating import at
from tiedio.storage.progress import shown

# Endings of files in the layout of Keras 2.
_OLD = (".h5", ".hdf5")

RECONCILE = ("error", "owner", "mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal(Written):
    """Variables to tie, and the evidence.

    Attributes:
        owner: The variable that the others are tied to.
        aliases: The others.
        evidence: The kind of evidence.
        why: The same in a sentence.
        shape: Their shape.
        dtype: Their dtype.
        bytes_saved: Bytes that storing them once saves.
        largest_difference: Between the values of the owner and of the others.
        mean_difference: The same on average.
        needs: The options without which it is not applied.
        axes: The axes of the owner in the order of the others, if these show it transposed.
    """

    owner: str
    aliases: tuple[str, ...]
    evidence: Evidence
    why: str
    shape: tuple[int, ...]
    dtype: str
    bytes_saved: int
    largest_difference: float = 0.0
    mean_difference: float = 0.0
    needs: tuple[str, ...] = ()
    axes: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The owner, then the aliases."""
        return (self.owner, *self.aliases)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Written):
    """The plan of a migration, or its outcome.

    Attributes:
        filepath: The file.
        kind: What it is, in words.
        keras_version: The version of Keras that wrote it; empty if it does not say.
        proposals: Variables to tie.
        forbidden: Variables that are equal, and were not tied.
        notes: Further notes.
        target: The file that was written, or would be by a dry run; empty for a plan.
    """

    filepath: str
    kind: str
    keras_version: str
    proposals: tuple[Proposal, ...]
    forbidden: tuple[Proposal, ...]
    notes: tuple[str, ...]
    target: str = ""


def plan(filepath: Any, ties: Sequence[str] = (), config: Mapping[str, Any] | None = None) -> Plan:
    """Finds out which variables of a file were tied. Nothing is written.

    Args:
        filepath: A file that any version of Keras from 2.0 on wrote, whatever it is called.
        ties: What you know to be tied: `"decoder/kernel=encoder/kernel"`, or `"decoder=encoder"`
            for all variables of two layers.
        config: The config of the model, for a file that has none, as `model.to_json()` gives it.

    Returns:
        The plan.

    Raises:
        MissingFileError: If there is no such file.
        FileFormatError: If it is not one of Keras, or damaged.
        TieError: If `ties` cannot be read, or name variables that the file does not have, or
            of different shapes or dtypes. All are named.

    Example:

    >>> import keras, tiedio
    >>> from tiedio import files
    >>> encoder, decoder = (keras.layers.Dense(4, name=name) for name in ("encoder", "decoder"))
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
    >>> decoder.set_weights(encoder.get_weights())
    >>> model.save("lost.keras")
    >>> [(one.owner, str(one.evidence), one.needs) for one in files.plan("lost.keras").proposals]
    [('encoder/kernel', 'contents', ('--accept contents',))]
    """
    pairs = parsed(ties)
    with opening.reading(filepath, config, pairs) as checkpoint:
        return _planned(checkpoint, pairs)


def migrate(
    filepath: Any,
    target: Any,
    ties: Sequence[str] = (),
    accept: Collection[str] = (),
    reconcile: str = "error",
    config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    durable: bool = True,
    *,
    dry_run: bool = False,
    progress: bool = False,
) -> Plan:
    """Writes a file with shared variables tied again, for `load_tied` to restore.

    The state of the optimizer is carried over: of several states of one variable the owner's
    is kept. What Keras 3 cannot load as a model is written as weights.

    Args:
        filepath: As in `plan`.
        target: What to write: a path ending in `.keras`, or `.weights.h5` for weights only.
        ties: As in `plan`.
        accept: Which weak evidence to go by: `"contents"` for all equal contents, names of
            variables for those they are in, `"none"` to leave the others as they are.
        reconcile: What becomes of copies that have different values by now: `"owner"` takes the
            owner's, `"mean"` their mean; `"error"` refuses.
        config: As in `plan`.
        overwrite: Whether to replace what is at `target`.
        durable: Whether to wait until the file is on disk.
        dry_run: Whether to check all of this, and write nothing.
        progress: Whether to show a progress bar, by bytes.

    Returns:
        What was done, or would be.

    Raises:
        MigrationError: If something has to be allowed first. The option is named.
        MissingFileError: If there is no such file.
        FileFormatError: If it is not one of Keras, or damaged.
        TieError: As in `plan`.
        OSError: If the target cannot be written.

    Example:

    >>> import keras, tiedio
    >>> from tiedio import files
    >>> encoder, decoder = (keras.layers.Dense(4, name=name) for name in ("encoder", "decoder"))
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
    >>> model.save("diverged.keras")
    >>> done = files.migrate(
    ...     "diverged.keras", "tied.keras", ties=["decoder=encoder"], reconcile="owner"
    ... )
    >>> model = tiedio.load_tied("tied.keras")
    >>> model.layers[0].kernel is model.layers[1].kernel
    True
    """
    if reconcile not in RECONCILE:
        raise MigrationError(
            f"There is no rule `{reconcile}` to reconcile copies.\n"
            f"Expected: one of {listed(RECONCILE)}. Received: {reconcile!r}.\n"
            "Pass one of these as `--reconcile`."
        )
    wanted = at(target)
    if not overwrite:
        wanted.check_free(MigrationError)
    pairs = parsed(ties)
    with opening.reading(filepath, config, pairs) as checkpoint:
        if not dry_run:
            checkpoint.verify()  # what is damaged would get digests that say it is not
        planned = _planned(checkpoint, pairs)
        chosen = accepted(planned, accept, reconcile)
        destination, holds_model, notes = _destination(wanted, checkpoint)
        if destination.name != wanted.name:  # which nobody allowed to be replaced
            destination.check_free(MigrationError)
        _check_apart(destination, at(filepath))
        with (
            tempfile.TemporaryDirectory() as assets,
            shown(f"Writing {destination.label}", progress and not dry_run) as advance,
        ):
            content, lost = rewriting.content(
                checkpoint,
                [Tie(one.names, one.evidence, one.why, one.axes) for one in chosen],
                reconcile=reconcile,
                holds_model=holds_model,
                assets=Path(assets),
            )
            container = table.format_to_save(
                destination,
                holds_model or checkpoint.is_by_position,
                zipped=destination.name.endswith(table.SUFFIXES),  # a folder has none
            )
            if not dry_run:
                container.write(destination, content, durable, advance)
    return dataclasses.replace(
        planned,
        proposals=tuple(chosen),
        notes=(*planned.notes, *notes, *lost),
        target=destination.name,
    )


def _check_apart(destination: Storage, source: Storage) -> None:
    if destination.is_same_as(source):
        told = "is the file that is migrated"
    elif destination.exists() and destination.holds(source):
        told = "holds the file that is migrated"
    elif destination.exists() and source.holds(destination):
        told = "is a part of the one that is migrated"
    else:
        return
    raise MigrationError(
        f"`{destination.name}` {told}.\n"
        "Expected: another one, as a source is never changed. Received: the same.\n"
        "Pass another path."
    )


def _planned(checkpoint: Checkpoint, pairs: Sequence[tuple[str, str]]) -> Plan:
    found = find(checkpoint, given_by_name(pairs, checkpoint.variables))
    values = checkpoint.values

    def proposal(tie: Tie, needs: str = "") -> Proposal:
        owner, *aliases = members = [checkpoint.by_name[name] for name in tie.names]
        differences = [
            _difference(checkpoint, owner, one) for one in aliases if not values.equal(owner, one)
        ]
        return Proposal(
            owner=owner.name,
            aliases=tuple(one.name for one in aliases),
            evidence=tie.evidence,
            why=tie.why,
            shape=owner.shape,
            dtype=owner.dtype.name,
            bytes_saved=(len(values.distinct(members)) - 1) * owner.nbytes,
            largest_difference=max((largest for largest, _ in differences), default=0.0),
            mean_difference=max((mean for _, mean in differences), default=0.0),
            needs=tuple(filter(None, (needs, "--reconcile owner" if differences else ""))),
        )

    def transposed(tie: Tie) -> Proposal:
        owner = checkpoint.by_name[tie.names[0]]
        facts = {"shape": owner.shape, "dtype": owner.dtype.name, "bytes_saved": 0}
        told = {"evidence": tie.evidence, "why": tie.why, "axes": tie.axes}
        return Proposal(owner=owner.name, aliases=tie.names[1:], **facts, **told)

    return Plan(
        filepath=checkpoint.filepath,
        kind=checkpoint.kind,
        keras_version=checkpoint.keras_version,
        proposals=(
            *(
                proposal(tie, "--accept contents" if tie.evidence is Evidence.CONTENTS else "")
                for tie in _gathered(found.ties)
            ),
            *map(transposed, found.transposed),
        ),
        forbidden=tuple(
            proposal(tie, f'--tie "{tie.names[1]}={tie.names[0]}"')
            for tie in _gathered(found.forbidden)
        ),
        notes=(
            *checkpoint.notes,
            *found.notes,
            *(f"{' = '.join(tie.names)}: this stays so." for tie in checkpoint.transposed_ties),
        ),
    )


def _gathered(ties: Sequence[Tie]) -> Iterator[Tie]:
    """Yields each tie once, by the strongest evidence, and those of one owner together."""
    known: list[Tie] = []
    for kind in Evidence:
        # Each variable that this evidence ties, with the owner of its tie group.
        before = joined(known)
        added = [tie for tie in ties if tie.evidence is kind]
        owners = joined([*known, *added])
        gathered: dict[str, dict[str, str]] = {}
        for tie in added:
            for name in tie.names:
                owner = owners[name]
                if name != owner and before.get(name, name) != before.get(owner, owner):
                    gathered.setdefault(owner, {}).setdefault(name, tie.why)
        for owner, aliases in gathered.items():
            why = "; ".join(dict.fromkeys(aliases.values()))
            yield Tie((owner, *aliases), kind, why)
        known += added


def _difference(
    checkpoint: Checkpoint, owner: StoredVariable, alias: StoredVariable
) -> tuple[float, float]:
    """Returns the largest and the mean absolute difference."""
    first, second = (
        checkpoint.tensors.read(one.source).astype(np.float64) for one in (owner, alias)
    )
    difference = np.abs(first - second)
    return float(difference.max(initial=0.0)), float(difference.mean()) if difference.size else 0.0


def accepted(planned: Plan, accept: Collection[str], reconcile: str) -> list[Proposal]:
    """Lists the proposals of a plan that `migrate` would go by.

    Args:
        planned: The plan.
        accept: As in `migrate`.
        reconcile: As in `migrate`.

    Raises:
        MigrationError: If some need an option that was not given.
    """
    accept = texts("accept", accept, "`contents`, `none` or names", "Pass a list of these.")
    names = {name for one in planned.proposals for name in one.names}
    if unknown := set(accept) - names - {"contents", "none"}:
        raise MigrationError(
            f"Nothing is proposed for {listed(unknown)}.\n"
            f"Expected: `contents`, `none`, or some of {listed(names) or 'no variables'}. "
            f"Received: {listed(unknown)}.\n"
            "`tiedio plan` lists what is proposed; `--tie` ties other variables."
        )
    weak = [one for one in planned.proposals if one.evidence is Evidence.CONTENTS]
    taken = [one for one in weak if "contents" in accept or set(one.names) & set(accept)]
    if not accept and weak:
        raise MigrationError(
            f"Cannot tell whether these were tied: {listed(' = '.join(one.names) for one in weak)}."
            "\nExpected: more than equal contents. Received: no more.\n"
            "Pass `--accept contents` to tie them all, `--accept NAME` to tie those equal to NAME, "
            "or `--accept none`."
        )
    chosen = [one for one in planned.proposals if one in taken or one not in weak]
    diverged = [one for one in chosen if one.largest_difference != 0]  # or none at all
    if diverged and reconcile == "error":
        told = (
            f"{' = '.join(one.names)} by up to {one.largest_difference:.3g}" for one in diverged
        )
        raise MigrationError(
            f"The copies of {listed(one.owner for one in diverged)} have different values.\n"
            f"Expected: equal ones. Received: {'; '.join(told)}.\n"
            "Pass `--reconcile owner` to keep the value of the first, or `--reconcile mean`."
        )
    return chosen


def _destination(wanted: Storage, checkpoint: Checkpoint) -> tuple[Storage, bool, tuple[str, ...]]:
    """Returns where to write, whether the whole model, and what to say of it."""
    weights_only = wanted.name.endswith(table.WEIGHTS_SUFFIXES)
    if wanted.name.endswith(_OLD) and not weights_only and not checkpoint.is_by_position:
        raise MigrationError(
            f"Cannot write `{wanted.name}`: Keras reads such files by position and loses ties.\n"
            f"Expected: a path ending in `.keras`, or in {listed(table.WEIGHTS_SUFFIXES)}. "
            f"Received: {wanted.label}.\n"
            "Change the ending."
        )
    unplaced = [one.name for one in checkpoint.variables if one.place is None]
    if unplaced and checkpoint.old_layout is None:
        has_config = checkpoint.config is not None
        raise MigrationError(
            f"Cannot tell how Keras 3 would store {listed(unplaced)} of `{checkpoint.filepath}`.\n"
            "Expected: the config of the model, made of layers of Keras. "
            f"Received: {'one of other layers' if has_config else 'none'}.\n"
            + ("Restore it by TensorFlow." if has_config else "Pass it as `--config`.")
        )
    has_places = not checkpoint.is_by_position
    if has_places and (weights_only or checkpoint.is_model):
        return wanted, not weights_only, ()
    # Weights in the layout that they have, as nothing tells how Keras 3 would store them.
    ending = ".weights.h5" if has_places else ".h5"
    stem = wanted.label
    for suffix in (*table.WEIGHTS_SUFFIXES, ".keras", *_OLD):
        stem = stem.removesuffix(suffix)
    if wanted.name.endswith(ending) and (has_places or not weights_only):
        return wanted, False, ()
    if checkpoint.translated.untranslated:
        why = "Keras 3 cannot load the model"
    elif checkpoint.config is None:
        why = "the file holds no config of the model (`--config` gives one)"
    else:
        why = "it does not tell how Keras 3 would store them"
    found = wanted.sibling(stem + ending)
    return found, False, (f"Written as weights only, to `{found.label}`: {why}.",)
