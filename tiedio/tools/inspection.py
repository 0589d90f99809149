"""Say what a file is, who wrote it, and what it shares.

What counts as shared, and what as a copy, is decided here; how a file is read, and which
ties it states, is not.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tiedio.checkpoints import opening
from tiedio.checkpoints.checkpoint import Checkpoint, Evidence, StoredVariable
from tiedio.checkpoints.stated_ties import joined, stated
from tiedio.checkpoints.values import Contents
from tiedio.record.ties import VERSION


@dataclasses.dataclass(frozen=True)
class Group:
    """Variables of one value.

    Attributes:
        names: The variables; of those that are one, the owner first.
        shape: Their shape.
        dtype: Their dtype.
        evidence: What says that they are one, as in `Evidence`; nothing for copies.
        nbytes: Bytes that are saved by storing the value once, or wasted by not doing so.
        trainable: Whether optimizers train them; `None` if unknown.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    evidence: tuple[str, ...]
    nbytes: int
    trainable: bool | None = None


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a file is.

    Attributes:
        filepath: The file.
        kind: What it is, in words.
        keras_version: The version of Keras that wrote it; empty if it does not say.
        date_saved: When; empty if it does not say.
        record_version: The version of its record; `None` if it has none.
        variables: How many variables its layers have, each place of a tied one counted.
        tie_groups: Those that it states, with the bytes saved.
        copies: Equal values that it stores more than once, with the bytes wasted. Values
            that are equal easily, as zeros are, do not count.
        bytes_stored: Bytes of all tensors, those of the optimizer too.
        bytes_shared: Bytes that it would take more, if it stored each variable by itself.
        bytes_wasted: Bytes that it would take less, if it stored equal values once.
        optimizer: The class of its optimizer; empty if there is none.
        notes: What else is to be known.
    """

    filepath: str
    kind: str
    keras_version: str
    date_saved: str
    record_version: int | None
    variables: int
    tie_groups: tuple[Group, ...]
    copies: tuple[Group, ...]
    bytes_stored: int
    bytes_shared: int
    bytes_wasted: int
    optimizer: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def inspect(filepath: Any) -> Inspection:
    """Tells what a file is, who wrote it, and what it shares.

    Args:
        filepath: A file that any version of Keras from 2.2 on wrote, whatever it is called.

    Raises:
        MissingFileError: If there is no such file.
        FileFormatError: If it is not one of Keras, or damaged.

    Example:

    >>> import keras, tiedio
    >>> from tiedio.files import inspect
    >>> encoder, decoder = (keras.layers.Dense(4, name=name) for name in ("encoder", "decoder"))
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
    >>> _ = tiedio.tie(decoder, to=encoder, weights=("kernel",))
    >>> tiedio.save_tied(model, "model.keras")
    >>> [one.names for one in inspect("model.keras").tie_groups]
    [('encoder/kernel', 'decoder/kernel')]
    """
    with opening.reading(filepath) as checkpoint:
        contents = Contents(checkpoint)
        tie_groups = tuple(_tie_groups(checkpoint, contents))
        copies = tuple(_copies(checkpoint, contents))
        sizes = _sizes(checkpoint)
        each = sum(one.nbytes for one in checkpoint.variables)
        once = {checkpoint.tensors.address(one.source): one for one in checkpoint.variables}
        return Inspection(
            checkpoint.filepath,
            checkpoint.kind,
            checkpoint.keras_version,
            str(checkpoint.metadata.get("date_saved", "")),
            None if checkpoint.record is None else VERSION,
            len(checkpoint.variables),
            tie_groups,
            copies,
            sum(sizes.values()),
            each - sum(one.nbytes for one in once.values()),
            sum(group.nbytes for group in copies),
            _class_name(checkpoint.optimizer),
            (*checkpoint.notes, *checkpoint.untranslated),
        )


def sharing(filepath: Any) -> tuple[list[Group], Sequence[Sequence[str]]]:
    """Returns the tie groups of a file, and the paths of each layer that has several."""
    with opening.reading(filepath) as checkpoint:
        layers = checkpoint.record.shared_layers if checkpoint.record else ()
        return list(_tie_groups(checkpoint, Contents(checkpoint))), layers


def _class_name(optimizer: Mapping[str, Any] | None) -> str:
    name = (optimizer or {}).get("class_name")
    return name.rpartition(">")[2] if isinstance(name, str) else ""


def _tie_groups(checkpoint: Checkpoint, contents: Contents) -> Iterator[Group]:
    ties = stated(checkpoint, contents)
    owners = joined(ties)
    said = collections.defaultdict(set)
    recorded = checkpoint.record.tie_groups if checkpoint.record else ()
    flags = {path: group.trainable for group in recorded for path in group.dataset_paths}
    for tie in ties:
        said[owners[tie.names[0]]].add(tie.evidence)
    for owner, members in _gathered(checkpoint, owners).items():
        names = (owner, *(one.name for one in members if one.name != owner))
        distinct = len(_addresses(checkpoint, members))
        evidenced = tuple(kind.value for kind in Evidence if kind in said[owner])
        spared = (len(members) - distinct) * members[0].nbytes
        group = _group(names, members[0], spared, evidenced)
        told = [flags[one.source] for one in members if one.source in flags]
        yield dataclasses.replace(group, trainable=told[0]) if told else group


def _gathered(checkpoint: Checkpoint, owners: dict[str, str]) -> dict[str, list[StoredVariable]]:
    groups: dict[str, list[StoredVariable]] = {}
    for one in checkpoint.variables:
        if one.name in owners:
            groups.setdefault(owners[one.name], []).append(one)
    return groups


def _copies(checkpoint: Checkpoint, contents: Contents) -> Iterator[Group]:
    kinds = collections.defaultdict(list)
    for one in checkpoint.variables:
        kinds[one.shape, one.dtype].append(one)
    for alike in kinds.values():
        # What nothing else is like need not be read.
        if len(_addresses(checkpoint, alike)) < 2:
            continue
        held = collections.defaultdict(list)
        for one in alike:
            held[contents.digest(one.source)].append(one)
        for members in held.values():
            extra = len(_addresses(checkpoint, members)) - 1
            if extra and contents.are_telling(members[0]):
                names = tuple(one.name for one in members)
                yield _group(names, members[0], extra * members[0].nbytes)


def _group(
    names: Sequence[str], one: StoredVariable, nbytes: int, said: tuple[str, ...] = ()
) -> Group:
    return Group(tuple(names), one.shape, one.dtype.name, said, nbytes, one.trainable)


def _addresses(checkpoint: Checkpoint, variables: Sequence[StoredVariable]) -> set[Any]:
    return {checkpoint.tensors.address(one.source) for one in variables}


def _sizes(checkpoint: Checkpoint) -> dict[Any, int]:
    """Returns the bytes of every tensor, by where it is."""
    tensors = checkpoint.tensors
    paths = [*(one.source for one in checkpoint.variables), *checkpoint.others.values()]
    if checkpoint.old_layout:
        paths += [weight.dataset_path for weight in checkpoint.old_layout.optimizer]
    return {tensors.address(path): _nbytes(checkpoint, path) for path in paths}


def _nbytes(checkpoint: Checkpoint, path: str) -> int:
    tensors = checkpoint.tensors
    return StoredVariable("", path, tensors.shape(path), tensors.dtype(path)).nbytes
