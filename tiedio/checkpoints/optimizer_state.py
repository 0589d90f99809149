"""Tell what becomes of the state of an optimizer once its variables are tied."""

import collections
import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from tiedio.checkpoints.checkpoint import Checkpoint
from tiedio.checkpoints.stated_ties import Evidence, Tie, joined
from tiedio.checkpoints.variables import StoredVariable
from tiedio.errors import listed
from tiedio.formats.content import Weight
from tiedio.keras_versions import layer_outline, optimizer_slots
from tiedio.keras_versions.optimizer_slots import Slots
from tiedio.record.ties import Place

OPTIMIZER = "optimizer"


class Kept:
    """It is written as it is stored, if it is."""


@dataclasses.dataclass(frozen=True)
class Lost:
    """It is left out, for a reason."""

    why: str


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """It is written anew, as Keras 3 stores it.

    Attributes:
        values: The stored values.
        trained: The entry of the record for the variables that it is of, if they are known.
        notes: What is to be said of it.
    """

    values: Sequence[Weight | np.ndarray]
    trained: Mapping[str, tuple[Place, ...] | None]
    notes: Sequence[str] = ()


# The entry in the record of an optimizer that was not built, and starts anew.
NOT_BUILT = {OPTIMIZER: None}

# Whether these were tied when saved, or are to be from now on, they do not say.
_UNSURE = (Evidence.GIVEN, Evidence.CONTENTS)
# Each may have been or not: so many are tried.
_MOST_UNSURE = 8


def of(
    checkpoint: Checkpoint, ties: Sequence[Tie], *, holds_model: bool
) -> Kept | Lost | Rewritten:
    """Tells what becomes of the state of the optimizer when a file is written with these ties.

    Args:
        checkpoint: The file.
        ties: What is tied.
        holds_model: Whether a whole model is written, or weights only.
    """
    slots = checkpoint.slots
    if checkpoint.is_by_position:
        is_stored = checkpoint.old_layout and checkpoint.old_layout.optimizer
        return Lost("weights by position are written without it") if is_stored else Kept()
    if checkpoint.optimizer is None:
        return _of_unknown(checkpoint, ties, holds_model=holds_model)
    recorded = checkpoint.record and checkpoint.record.optimizer_variables.get(OPTIMIZER)
    if recorded and slots and all(one.evidence is Evidence.RECORD for one in ties):
        every = range(len(slots.variables))
        values = optimizer_slots.ordered(slots, every, checkpoint.optimizer)
        return Rewritten(values, {OPTIMIZER: recorded})
    owners = joined(ties)
    trained = [one for one in checkpoint.variables if one.trainable is not False]
    distinct = {owners.get(one.name, one.name) for one in trained}
    if slots is None:
        is_kept = checkpoint.is_of_keras_3 and len(distinct) == len(trained)
        return Kept() if is_kept else Lost("it is of a kind that is not known here")
    if not slots.variables:
        return Rewritten(optimizer_slots.ordered(slots, (), checkpoint.optimizer), NOT_BUILT)
    having = _having_slots(checkpoint, ties, slots)
    if having is None:
        # Where the config does not say what is trained, whoever loads it may find that it fits.
        is_known = checkpoint.is_ordered and all(one.trainable is not None for one in trained)
        if is_known or recorded or (ties and not _may_fit(checkpoint, ties, slots)):
            return Lost("it does not tell which variables it is of")
        every = range(len(slots.variables))
        values = optimizer_slots.ordered(slots, every, checkpoint.optimizer)
        notes = [*_notes_on_likeness(checkpoint, ties)]
        notes += _notes_on_copies(checkpoint, owners, slots)
        return Rewritten(values, {}, notes)
    if checkpoint.is_of_keras_3 and [owners.get(one.name, one.name) for one in having] == [
        *dict.fromkeys(owners.get(one.name, one.name) for one in trained)
    ]:
        return Kept()
    states: dict[str, list[int]] = collections.defaultdict(list)
    for index, one in enumerate(having):
        owner = owners.get(one.name, one.name)
        states[owner].insert(0 if one.name == owner else len(states[owner]), index)

    def digests(index: int) -> tuple[str, ...]:
        weights = slots.variables[index].values()
        return tuple(checkpoint.values.digest(one.dataset_path) for one in weights)

    order = [indexes[0] for indexes in states.values()]
    return Rewritten(
        optimizer_slots.ordered(slots, order, checkpoint.optimizer),
        {OPTIMIZER: tuple(p for owner in states if (p := checkpoint.by_name[owner].place))},
        [
            *(
                f"The optimizer has several states of `{owner}`: that of the variable itself is "
                "kept."
                for owner, indexes in states.items()
                if len(set(map(digests, indexes))) > 1
            ),
            *_notes_on_frozen(trained, owners, states),
        ],
    )


def _may_fit(checkpoint: Checkpoint, ties: Sequence[Tie], slots: Slots) -> bool:
    """Whether slots can be those of the variables that ties leave, whatever their order.

    What was tied when saved is equal, and has slots once. So a model with these ties, and no
    others, has the variables of then in the order of then.
    """
    left = collections.Counter(one.shape for one in _once(checkpoint.variables, joined(ties)))
    return _shapes(slots) <= left and all(tie.axes or _is_equal(checkpoint, tie) for tie in ties)


def _notes_on_likeness(checkpoint: Checkpoint, ties: Sequence[Tie]) -> Iterator[str]:
    """Says which ties decide whose the slots are, as other variables have the same shape."""
    shapes = [checkpoint.by_name[tie.names[0]].shape for tie in ties]
    left = collections.Counter(one.shape for one in _once(checkpoint.variables, joined(ties)))
    alike = [t for t, shape in zip(ties, shapes, strict=True) if left[shape] > shapes.count(shape)]
    if alike:
        yield (
            "The state of the optimizer is right only if these were tied when saved, and all "
            f"others of their shape were trained: {'; '.join(' = '.join(t.names) for t in alike)}."
        )


def _notes_on_copies(
    checkpoint: Checkpoint, owners: Mapping[str, str], slots: Slots
) -> Iterator[str]:
    """Names equal variables that stay apart, where fewer of their shape have slots."""
    left = _once(checkpoint.variables, owners)
    held = collections.Counter(one.shape for one in left)
    states = _shapes(slots)
    for group in checkpoint.values.equal_ones(left):
        shape = group[0].shape
        if held[shape] > states[shape] and checkpoint.values.are_telling(group[0]):
            yield (
                "The optimizer starts anew if these were tied when saved: "
                f"{' = '.join(one.name for one in group)}. Of shape {shape} it has "
                f"{states[shape]} states, and there are {held[shape]} variables now."
            )


def _shapes(slots: Slots) -> collections.Counter[tuple[int, ...]]:
    """Counts the shapes of the variables that an optimizer has slots of."""
    return collections.Counter(next(iter(kinds.values())).shape for kinds in slots.variables)


def _notes_on_frozen(
    trained: Sequence[StoredVariable], owners: Mapping[str, str], having: Collection[str]
) -> Iterator[str]:
    """Names what is trained and has no slots, by the largest parts of the model that are all so."""

    def around(variable: StoredVariable) -> Iterator[str]:
        parts = variable.name.split("/")
        return ("/".join(parts[: number + 1]) for number in range(len(parts)))

    lacking = [one for one in trained if owners.get(one.name, one.name) not in having]
    names = {one.name for one in lacking}
    others = {path for one in trained if one.name not in names for path in around(one)}
    known = [one for one in lacking if one.trainable]
    if parts := {next(path for path in around(one) if path not in others) for one in known}:
        yield (
            f"The optimizer has no state of {listed(parts)}, as of what was frozen when it was "
            "built. Before `fit`, set `trainable = False` there, or compile the model again."
        )


def _of_unknown(checkpoint: Checkpoint, ties: Sequence[Tie], *, holds_model: bool) -> Kept | Lost:
    """Tells the same where no config says which optimizer it was.

    Keras 3 forgets the optimizer of a model once it has saved it as HDF5. Weights load into a
    model that has its own.
    """
    is_stored = any(path.startswith(f"{OPTIMIZER}/") for path in checkpoint.others)
    config = checkpoint.config if holds_model else None
    if is_stored and config and config.get("compile_config"):
        return Lost("the config does not say which optimizer it was")
    if is_stored and not all(_is_equal(checkpoint, one) for one in ties):
        return Lost("nothing says which optimizer it was")
    return Kept()


def _having_slots(
    checkpoint: Checkpoint, ties: Sequence[Tie], slots: Slots
) -> list[StoredVariable] | None:
    """Lists the variables that an optimizer has slots of, in their order, if it can be told.

    The names of slots tell it, where they have some. Else it is what the config has as trained,
    if the slots fit that. They do not if layers were frozen, or not any more, since the optimizer
    was built: then it is those whose shapes alone fit the slots, frozen or not.

    What was tied when saved has slots once, where it was first used; what is tied since, each.
    Ties that are given, or of equal contents, may be either. So every choice among up to
    `_MOST_UNSURE` of them is tried, 2^8 at most, and beyond that only none and all. The answer
    is the one list of variables that the slots fit; `None` if several do, or none does.
    """
    if not checkpoint.is_ordered:
        return None
    every = _that_may_be_trained(checkpoint)
    if named := _told_by_names(every, joined(ties), slots):
        return named
    unsure = [one for one in ties if one.evidence in _UNSURE and _is_equal(checkpoint, one)]
    sure = [one for one in ties if one.evidence not in _UNSURE]
    if checkpoint.version.is_multi_backend:
        unsure, sure = [], []
    sizes = range(len(unsure) + 1) if len(unsure) <= _MOST_UNSURE else (0, len(unsure))
    choices = [
        joined([*sure, *some])
        for some in itertools.chain(*(itertools.combinations(unsure, size) for size in sizes))
    ]
    trained = [one for one in checkpoint.variables if one.trainable is not False]
    fits = [
        first for first in (_once(trained, owners) for owners in choices) if _fit(first, slots)
    ] or [way for owners in choices for way in _ways(_once(every, owners), slots)]
    found = {tuple(one.name for one in having): having for having in fits}
    return next(iter(found.values())) if len(found) == 1 else None


def _that_may_be_trained(checkpoint: Checkpoint) -> list[StoredVariable]:
    """Lists the variables that may have been trained, in the order of the model.

    In the layout of Keras 2, those that are frozen stand behind the others of a nested model.
    """
    layers = layer_outline.layers(checkpoint.config or {})
    parts = {part.inner_path: part for held in layers.values() for part in held}
    rank = {inner_path: number for number, inner_path in enumerate(parts)}
    found: list[tuple[int, StoredVariable]] = []
    for one in checkpoint.variables:
        place = one.place
        part = parts.get(place.inner_path) if place else None
        if one.trainable is not False or (place and part and part.may_train(int(place.attribute))):
            found.append((rank[part.inner_path] if part else len(rank), one))
    return [one for _, one in sorted(found, key=lambda item: item[0])]


def _once(variables: Sequence[StoredVariable], owners: Mapping[str, str]) -> list[StoredVariable]:
    """Lists what is one variable once, where it was first used."""
    first: dict[str, StoredVariable] = {}
    for one in variables:
        first.setdefault(owners.get(one.name, one.name), one)
    return list(first.values())


def _told_by_names(
    variables: Sequence[StoredVariable], owners: Mapping[str, str], slots: Slots
) -> list[StoredVariable] | None:
    """Lists the variables that the names of slots name, if each names one and no other does."""
    named = collections.defaultdict(list)
    for one in _once(variables, owners):
        named[(one.listed or one.name).replace("/", "_")].append(one)
    having = [one for hint in slots.hints for one in named.get(hint.replace("/", "_"), ())]
    is_told = len({one.name for one in having}) == len(having) and _fit(having, slots)
    return having if is_told else None


def _ways(variables: Sequence[StoredVariable], slots: Slots) -> Iterator[list[StoredVariable]]:
    """Yields the first and the last choice of variables whose shapes fit the slots.

    These are equal if there is only one, and there are none if it fits none.
    """
    for step in (1, -1):
        left = iter(variables[::step])
        way = [
            next((one for one in left if _is_slot_of(kinds, one)), None)
            for kinds in slots.variables[::step]
        ]
        if None not in way:
            yield [one for one in way[::step] if one]


def _is_equal(checkpoint: Checkpoint, tie: Tie) -> bool:
    return checkpoint.values.equal(*(checkpoint.by_name[name] for name in tie.names))


def _fit(variables: Collection[StoredVariable], slots: Slots) -> bool:
    """Whether these can be the variables that an optimizer has slots of."""
    return len(variables) == len(slots.variables) and all(
        map(_is_slot_of, slots.variables, variables)
    )


def _is_slot_of(kinds: Mapping[str, Weight], variable: StoredVariable) -> bool:
    # The first has the variable's shape; others may be spare, and of any.
    return all(weight.shape == variable.shape for weight in list(kinds.values())[:1])
