"""Say what a file is, who wrote it, and what it shares.

What counts as shared, and what as a copy, is decided here, and what people are told of it.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from tiedio.checkpoints import opening
from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.stated_ties import Evidence, gathered
from tiedio.checkpoints.variables import StoredVariable
from tiedio.keras_versions import lambdas, optimizer_slots
from tiedio.keras_versions.layer_outline import configs_of
from tiedio.record import runs
from tiedio.record.json_fields import Written
from tiedio.record.notebook import Reported
from tiedio.record.report import Report, Table, bytes_of, notes
from tiedio.record.ties import VERSION, TransposedTie


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group(Written):
    """Variables of one value.

    Attributes:
        names: The variables; of tied ones, the owner first.
        shape: Their shape.
        dtype: Their dtype.
        evidence: The evidence that they are tied, as in `Evidence`; nothing for copies.
        nbytes: Bytes that are saved by storing the value once, or wasted by not doing so.
        trainable: Whether optimizers train them; `None` if unknown.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    evidence: tuple[str, ...]
    nbytes: int
    trainable: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection(Written, Reported):
    """A description of a file.

    Attributes:
        filepath: The file.
        kind: What it is, in words.
        keras_version: The version of Keras that wrote it; empty if it does not say.
        date_saved: When; empty if it does not say.
        record_version: The version of its record; `None` if it has none.
        variables: How many variables its layers have, each place of a tied one counted.
        tie_groups: Those that it states, with the bytes saved.
        shared_layers: The names of each layer that stands in several places.
        models: The names of its models, if it has several.
        copies: Equal values that it stores more than once, with the bytes wasted. Values
            that are equal easily, as zeros are, do not count.
        bytes_stored: Bytes of all tensors, those of the optimizer too.
        bytes_shared: Bytes that it would take more, if it stored each variable by itself.
        bytes_wasted: Bytes that it would take less, if it stored equal values once.
        optimizer: The class of its optimizer, of several models of each; in words if it has a
            state only; empty if there is none.
        notes: Further notes.
    """

    filepath: str
    kind: str
    keras_version: str
    date_saved: str
    record_version: int | None
    variables: int
    tie_groups: tuple[Group, ...]
    shared_layers: tuple[tuple[str, ...], ...]
    models: tuple[str, ...]
    copies: tuple[Group, ...]
    bytes_stored: int
    bytes_shared: int
    bytes_wasted: int
    optimizer: str
    notes: tuple[str, ...]

    def report(self) -> Report:
        written = f"Written by Keras {self.keras_version or '(it does not say which)'}"
        written += f", {self.date_saved}" if self.date_saved else ""
        version = self.record_version
        written += f", with a record of version {version}" if version else ""
        groups = [groups_table("tied", "saves", self.tie_groups, with_evidence=True)]
        copies = [groups_table("equal copies", "waste", self.copies, with_evidence=True)]
        return [
            f"{self.filepath}: {self.kind}",
            written,
            *[f"Models: {', '.join(self.models)}"] * bool(self.models),
            f"Variables: {self.variables}; tie groups: {len(self.tie_groups)}"
            + f"; shared layers: {len(self.shared_layers)}" * bool(self.shared_layers),
            f"Optimizer: {self.optimizer or 'none'}",
            f"Stores {bytes_of(self.bytes_stored)}; sharing saves {bytes_of(self.bytes_shared)}, "
            f"equal copies waste {bytes_of(self.bytes_wasted)}",
            *groups * bool(self.tie_groups),
            *copies * bool(self.copies),
            *(in_places(names, self.models) for names in self.shared_layers),
            *notes(self.notes),
        ]


# Tie groups; the names of each layer that stands in several places; the names of several models.
Sharing = tuple[Sequence[Group], Sequence[Sequence[str]], Sequence[str]]


def groups_table(
    title: str,
    verb: str,
    groups: Sequence[Group],
    *,
    with_evidence: bool = False,
    is_whole: bool = False,
) -> Table:
    """Returns a table of variables that are tied, or equal."""
    titles = [title, "shape, dtype", verb, "trainable", *["by"] * with_evidence]
    known = {True: "yes", False: "no", None: "unknown"}
    rows = [
        (
            one.names,
            f"{one.shape}\n{one.dtype}",
            one.nbytes,
            known[one.trainable],
            *[",\n".join(one.evidence) or "equal contents"] * with_evidence,
        )
        for one in groups
    ]
    return Table(titles, rows, is_tall=True, is_whole=is_whole)


def in_places(names: Sequence[str], models: Sequence[str], *, is_whole: bool = False) -> str:
    """Says where a layer, or a model, stands."""
    kind = "model" if {*names} & {*models} else "layer"
    places = sorted(names, key=lambda name: name.count("/"))
    told = places if is_whole else runs.told(places)
    return f"One {kind} in {len(names)} places: {' = '.join(told)}"


def inspect(filepath: Any) -> Inspection:
    """Tells what a file is, who wrote it, and what it shares.

    Args:
        filepath: A file that any version of Keras from 2.0 on wrote, whatever it is called.

    Returns:
        The description, with its sizes in bytes.

    Raises:
        ArgumentError: If something else is passed than a path, a URL or an open file.
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
    with opening.reading(filepath, of_keras_1=True) as checkpoint:
        copies = tuple(_copies(checkpoint))
        sizes = _sizes(checkpoint)
        each = sum(one.nbytes for one in checkpoint.variables)
        once = sum(one.nbytes for one in checkpoint.values.distinct(checkpoint.variables))
        not_stored = sum(map(_without_copy, checkpoint.transposed_ties))
        transposed = tuple(_transposed(checkpoint))
        return Inspection(
            filepath=checkpoint.filepath,
            kind=checkpoint.kind,
            keras_version=checkpoint.keras_version,
            date_saved=str(checkpoint.metadata.get("date_saved", "")),
            record_version=None if checkpoint.record is None else VERSION,
            variables=len(checkpoint.variables) + not_stored,
            tie_groups=(*_tie_groups(checkpoint), *transposed),
            shared_layers=_shared_layers(checkpoint),
            models=tuple(checkpoint.record.models if checkpoint.record else ()),
            copies=copies,
            bytes_stored=sum(sizes.values()),
            bytes_shared=each - once + sum(group.nbytes for group in transposed),
            bytes_wasted=sum(group.nbytes for group in copies),
            optimizer=", ".join(_optimizers(checkpoint)) or _optimizer_state(checkpoint),
            notes=(*checkpoint.notes, *lambdas.notes(checkpoint.translated.code)),
        )


def sharing(filepath: Any) -> Sharing:
    """Returns what a file shares."""
    with opening.reading(filepath) as checkpoint:
        models = checkpoint.record.models if checkpoint.record else ()
        groups = [*_tie_groups(checkpoint), *_transposed(checkpoint)]
        return groups, _shared_layers(checkpoint), [*models]


def _shared_layers(checkpoint: Checkpoint) -> tuple[tuple[str, ...], ...]:
    record = checkpoint.record
    if record is None:
        return ()
    labels = record.layer_labels
    return tuple(tuple(labels.get(path, path) for path in one) for one in record.shared_layers)


def _optimizers(checkpoint: Checkpoint) -> Iterator[str]:
    config, models = checkpoint.config, checkpoint.record.models if checkpoint.record else {}
    held = configs_of(config, models) if config and models else {"": config}
    names = {path: f" ({name})" for name, path in models.items()}
    for path, one in held.items():
        kind = (optimizer_slots.of_model(one) or {}).get("class_name")
        if isinstance(kind, str):
            yield kind.rpartition(">")[2] + names.get(path, "")


def _optimizer_state(checkpoint: Checkpoint) -> str:
    held = [path.split("/") for path in checkpoint.others]
    variables = sum("optimizer" in names and "vars" in names for names in held)
    return f"one that the file does not name, with {variables} variables" if variables else ""


def _tie_groups(checkpoint: Checkpoint) -> Iterator[Group]:
    owners = checkpoint.owners
    said = collections.defaultdict(set)
    for tie in checkpoint.ties:
        said[owners[tie.names[0]]].add(tie.evidence)
    recorded = checkpoint.record.tie_groups if checkpoint.record else ()
    flags = {path: group.trainable for group in recorded for path in group.dataset_paths}
    for owner, members in gathered(checkpoint.variables, owners).items():
        spared = len(members) - len(checkpoint.values.distinct(members))
        evidence = tuple(kind.value for kind in Evidence if kind in said[owner])
        told = [flags[one.source] for one in members if one.source in flags]
        group = _group(members, spared, evidence)
        yield dataclasses.replace(group, trainable=told[0]) if told else group


def _transposed(checkpoint: Checkpoint) -> Iterator[Group]:
    """Yields what layers show transposed; a copy of it, as stock Keras reads it, saves nothing."""
    sizes = {one.source: one.nbytes for one in checkpoint.variables}
    for tie in checkpoint.transposed_ties:
        yield Group(
            names=tie.names,
            shape=tie.shape,
            dtype=tie.dtype,
            evidence=(Evidence.RECORD.value,),
            nbytes=_without_copy(tie) * sizes.get(tie.owner.dataset_path or "", 0),
            trainable=tie.trainable,
        )


def _without_copy(tie: TransposedTie) -> int:
    """Counts the places that show a variable, and of which the file stores nothing."""
    return sum(place.dataset_path is None for place in tie.aliases)


def _copies(checkpoint: Checkpoint) -> Iterator[Group]:
    values = checkpoint.values
    telling, others = [], []
    for members in values.equal_ones(checkpoint.variables):
        (telling if values.are_telling(members[0]) else others).append(members)
    for members in (*telling, *values.beside(telling, others)):
        if extra := len(values.distinct(members)) - 1:
            yield _group(members, extra)


def _group(members: Sequence[StoredVariable], copies: int, evidence: tuple[str, ...] = ()) -> Group:
    first = members[0]
    return Group(
        names=tuple(one.name for one in members),
        shape=first.shape,
        dtype=first.dtype.name,
        evidence=evidence,
        nbytes=copies * first.nbytes,
        trainable=first.trainable,
    )


def _sizes(checkpoint: Checkpoint) -> dict[Any, int]:
    """Returns the bytes of every tensor, by where it is."""
    tensors = checkpoint.tensors
    paths = [*(one.source for one in checkpoint.variables), *checkpoint.others.values()]
    if checkpoint.old_layout:
        paths += [weight.dataset_path for weight in checkpoint.old_layout.optimizer]
    return {
        tensors.address(path): math.prod(tensors.shape(path)) * tensors.dtype(path).itemsize
        for path in paths
    }
