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
from tiedio.checkpoints.evidence import Findings, find
from tiedio.checkpoints.given_ties import given_by_name, parsed
from tiedio.checkpoints.stated_ties import RECORDED, Evidence, Tie, joined
from tiedio.checkpoints.variables import StoredVariable
from tiedio.errors import OptionNeededError
from tiedio.formats import table
from tiedio.keras_versions import graph_calls, lambdas, layer_outline
from tiedio.migration import allowing, targets
from tiedio.migration.destination import check_ending, check_free
from tiedio.migration.proposals import Plan, Proposal
from tiedio.record import runs
from tiedio.storage.locating import at
from tiedio.storage.progress import bar


def plan(
    filepath: Any,
    ties: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    *,
    lambdas: Mapping[str, str] | None = None,
) -> Plan:
    """Finds out which variables of a file were tied. Nothing is written.

    Args:
        filepath: A file that any version of Keras from 2.0 on wrote, whatever it is called.
        ties: What you know to be tied: `"decoder/kernel=encoder/kernel"`, or `"decoder=encoder"`
            for all variables of two layers. A name is one that the plan has, or a path in the file,
            in which layers go by the attributes of their model.
        config: The config of the model, for a file that has none, as `model.to_json()` gives it.
        lambdas: Functions to put in the place of those of `Lambda` layers, which the file has as
            code: `{"distance": "module:function"}`, or the name that it is registered by. What
            is in a model inside, or no `Lambda`, is named so: `"decoder/scale"`,
            `"dense/activation"`. No code of the file is run.

    Returns:
        The plan, which also says what `migrate` would refuse.

    Raises:
        ArgumentError: If something else is passed than a path and texts, `config` is that of
            another model, or `lambdas` are no names.
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
    with opening.reading(filepath, config, pairs, lambdas) as checkpoint:
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
    lambdas: Mapping[str, str] | None = None,
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
            variables or layers for those they are in, `"none"` to leave the others as they are.
        reconcile: What becomes of copies that have different values by now: `"owner"` takes the
            owner's, `"mean"` their mean; `"error"` refuses.
        config: As in `plan`.
        overwrite: Whether to replace what is at `target`.
        durable: Whether to wait until the file is on disk.
        lambdas: As in `plan`. The new file has their names, and loads with `custom_objects`.
        dry_run: Whether to check all of this, and write nothing.
        progress: Whether to show a progress bar, by bytes.

    Returns:
        What was done, or would be.

    Raises:
        OptionNeededError: If something has to be allowed first. The option is named.
        MigrationError: If it cannot be written so, or `lambdas` has names that it does not.
        MissingFileError: If there is no such file.
        FileFormatError: If it is not one of Keras, or damaged.
        TieError: As in `plan`.
        ArgumentError: As in `plan`.
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
    allowing.check_rule(reconcile)
    wanted = at(target)
    check_ending(wanted)
    if not overwrite:
        check_free(wanted)
    pairs = parsed(ties)
    with opening.reading(filepath, config, pairs, lambdas) as checkpoint:
        allowing.check_used(checkpoint.translated, checkpoint.filepath)
        if targets.refusal(checkpoint):
            allowing.check(_planned(checkpoint, pairs))
        destination, holds_model, notes = targets.chosen(wanted, checkpoint, at(filepath))
        if not dry_run:
            checkpoint.verify()  # what is damaged would get digests that say it is not
        planned = allowing.narrowed(
            _planned(checkpoint, pairs),
            accept,
            reconcile,
            variables=checkpoint.variables,
            as_model=holds_model,
        )
        allowing.check(planned)
        with (
            tempfile.TemporaryDirectory() as assets,
            bar(f"Writing {destination.label}", progress and not dry_run) as advance,
        ):
            content, lost = rewriting.content(
                checkpoint,
                [
                    Tie(one.names, one.evidence, one.why, one.axes)
                    for one in planned.proposals
                    # What is shown transposed by the record stays in it.
                    if not (one.axes and one.evidence is Evidence.RECORD)
                ],
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
        notes=(*planned.notes, *notes, *lost),
        target=destination.name,
        is_written=not dry_run,
    )


def _planned(checkpoint: Checkpoint, pairs: Sequence[tuple[str, str]]) -> Plan:
    found = find(checkpoint, given_by_name(pairs, checkpoint.variables))
    values = checkpoint.values

    def proposal(tie: Tie, needs: str = "") -> Proposal:
        owner, *aliases = members = [checkpoint.by_name[name] for name in tie.names]
        differences = [
            _difference(checkpoint, owner, one) for one in aliases if not values.equal(owner, one)
        ]
        differ = any(largest != 0 for largest, _ in differences)  # or by no number
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
            needs=tuple(filter(None, (needs, allowing.RECONCILE_OWNER if differ else ""))),
        )

    code = checkpoint.translated.code
    runnable = [one for one in code if not one.runs_nowhere]
    forbidden = tuple(
        proposal(tie, f'--tie "{tie.names[1]}={tie.names[0]}"')
        for tie in _gathered(found.forbidden)
    )
    refusal = targets.refusal(checkpoint)
    return Plan(
        filepath=checkpoint.filepath,
        kind=checkpoint.kind,
        keras_version=checkpoint.keras_version,
        proposals=(
            *(
                proposal(tie, allowing.ACCEPT_CONTENTS if tie.evidence is Evidence.CONTENTS else "")
                for tie in _gathered(found.ties)
            ),
            *_transposed(checkpoint, found.transposed),
        ),
        forbidden=forbidden,
        calls={
            layer: count
            for layer, count in graph_calls.calls(checkpoint.translated.config).items()
            if count > 1 and any(name.startswith(f"{layer}/") for name in checkpoint.by_name)
        },
        notes=(
            *checkpoint.notes,
            *lambdas.notes(runnable),
            *found.notes,
            *_notes_on_random_numbers(checkpoint),
            *_notes_on_names(checkpoint, found),
        ),
        code={
            one.name: lambdas.told([one])
            for one in code
            if checkpoint.is_model and one not in runnable
        },
        refused=str(refusal or ""),
        lacks_config=isinstance(refusal, OptionNeededError),
        # None of what is forbidden: a copy of its own may be meant, as of a target network.
        offers=tuple(lambdas.options([one.name]) for one in runnable),
        unused=checkpoint.translated.unused,
    )


def _transposed(checkpoint: Checkpoint, found: Sequence[Tie]) -> Iterator[Proposal]:
    """Yields variables that are others transposed: by the record, and those that were found."""
    for tie in checkpoint.transposed_ties:
        owner, *aliases = map(str, tie.places)
        yield Proposal(
            owner=owner,
            aliases=tuple(aliases),
            evidence=Evidence.RECORD,
            why=RECORDED,
            shape=tie.shape,
            dtype=tie.dtype,
            bytes_saved=0,
            axes=tie.axes,
        )
    for tie in found:
        owner, *aliases = tie.names
        yield Proposal(
            owner=owner,
            aliases=tuple(aliases),
            evidence=tie.evidence,
            why=tie.why,
            shape=checkpoint.by_name[owner].shape,
            dtype=checkpoint.by_name[owner].dtype.name,
            bytes_saved=0,
            axes=tie.axes,
        )


def _notes_on_random_numbers(checkpoint: Checkpoint) -> Iterator[str]:
    """Names the layers that draw other random numbers once training goes on.

    Of Keras' own files none has their state. Where there is no training, nothing is lost.
    """
    slots, record = checkpoint.slots, checkpoint.record
    is_trained = checkpoint.optimizer is not None and (slots is None or slots.variables)
    names = layer_outline.random_layers(checkpoint.translated.config)
    if is_trained and names and not (record and record.random_states):
        told = ", ".join(runs.told(list(dict.fromkeys(names))))
        yield f"The file does not hold the state of random numbers, which begin anew: {told}."


def _notes_on_names(checkpoint: Checkpoint, found: Findings) -> Iterator[str]:
    """Says how to tie layers of which nothing tells whether they are alike."""
    names = [one.name.rpartition("/")[2] for one in checkpoint.variables]
    is_told = found.ties or found.forbidden or checkpoint.transposed_ties
    if len(names) > 1 and all(map(str.isdecimal, names)) and not is_told:
        yield (
            "Nothing names its variables. `--tie LAYER=LAYER` ties two layers that you know to "
            "share theirs."
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
