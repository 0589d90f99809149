"""Find the optimizers that cannot go on with what a file has for them, and say why."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from tiedio.errors import LoadError, first_line, listed
from tiedio.formats.content import Opened
from tiedio.formats.store import Store
from tiedio.keras_versions.keras_version import KerasVersion
from tiedio.model import renewal
from tiedio.model.own_state import loads_as_keras
from tiedio.model.rebuilding import Rebuilding, optimizer_variables
from tiedio.model.walk import Walk
from tiedio.record.record import LayerState, Record
from tiedio.record.ties import Place
from tiedio.saving import optimizers, retying


@dataclasses.dataclass(frozen=True)
class StoredState:
    """What a file has for an optimizer, compared before anything is changed.

    Attributes:
        name: That of the optimizer in messages.
        store: Its variables.
        unrecorded: The file, if it has no record.
    """

    name: str
    store: Store
    unrecorded: Opened | None

    @property
    def has_begun(self) -> bool:
        """Whether it has slots, or has counted steps: one that is not built has scalars."""
        counts = (one for one in self.store.values() if one.dtype.kind in "iu")
        return any(self.store.shapes().values()) or any(one.any() for one in counts)

    def error_for(self, saveable: Any) -> LoadError | None:
        """The error if a saveable, as it is built, does not fit; what has no slots is fine."""
        if not isinstance(saveable, keras.optimizers.Optimizer):
            return None
        if self.unrecorded and not loads_as_keras(saveable):  # its code knows better
            return None
        return self._difference(_shapes(saveable))

    def error_for_variables(self, optimizer: Any, trained: list[Any]) -> LoadError | None:
        """The error if an optimizer that is built for these variables would not fit."""
        if error := self._other_class(optimizer):
            return error
        if optimizers.is_built_for(optimizer, trained):
            return self.error_for(optimizer)
        try:
            expected = Rebuilding(optimizer).told(trained, _shapes)
        except Exception as error:  # the code of optimizers may raise anything
            return LoadError(
                f"Cannot resume `{self.name}`: {first_line(error)}\n"
                "Expected: an optimizer that can be built for other variables. "
                f"Received: {type(error).__name__}.\n"
                "Give its class a `build` that can be called again."
            )
        return self._difference(expected)

    def _other_class(self, optimizer: Any) -> LoadError | None:
        """The error for the state of another optimizer, which may have slots of the same shapes."""
        old = self.unrecorded and self.unrecorded.old_layout
        registered = keras.saving.get_registered_name(type(optimizer)).rpartition(">")[2]
        if not old or old.optimizer_class in ("", type(optimizer).__name__, registered):
            return None
        return LoadError(
            f"Cannot resume `{self.name}`: the file has the state of another.\n"
            f"Expected: that of `{type(optimizer).__name__}`. Received: that of "
            f"`{old.optimizer_class}`.\nCompile with the optimizer that was saved."
        )

    def _difference(self, expected: list[tuple[int, ...]]) -> LoadError | None:
        received = list(self.store.shapes().values())
        file = self.unrecorded
        # Keras 2 had another order, which shapes do not always tell.
        listed_by = file.keras_version if file and file.is_by_position else ""
        is_ordered = not listed_by or KerasVersion(listed_by).is_of_keras_3
        if received == expected and is_ordered:
            return None
        advice = "Compile with the optimizer that was saved, in the version of then."
        if file and not is_ordered:
            advice = (
                "It goes on without that state, which "
                f"`tiedio migrate {file.filepath} NEW` puts in the order "
                "of Keras 3 if it knows all layers."
            )
        elif file and len(received) < len(expected):
            advice = (
                "It goes on without that state. Variables may have been tied when it was saved: "
                f"`tiedio plan {file.filepath}` says which, and "
                f"`tiedio migrate {file.filepath} NEW` ties them again."
            )
        return LoadError(
            f"Cannot resume `{self.name}`: its variables are not those of the file.\n"
            f"Expected: {len(expected)} of shapes {sorted(set(expected))}. "
            f"Received: {len(received)} of shapes {sorted(set(received))}.\n{advice}"
        )


def _shapes(optimizer: Any) -> list[tuple[int, ...]]:
    return [tuple(variable.shape) for variable in optimizer.variables]


def find(
    record: Record,
    stored_of: Callable[[str], StoredState],
    walk: Walk,
    everything: Walk,
    *,
    then: Record,
    in_other_order: bool,
) -> dict[str, LoadError | None]:
    """Finds the optimizers that cannot go on as the file says; nothing is changed.

    Args:
        record: The record of the file, fitted to the model.
        stored_of: Tells what the file has for an optimizer, by its inner_path.
        walk: The saveables to be loaded.
        everything: All saveables of the model.
        then: The record of the file, with the flags and ties of then.
        in_other_order: Whether its layers are in another order than in the file.

    Returns:
        An error for each; `None` for one that was not built when saved, and is now: the file
        says nothing of how it goes on.
    """
    found: dict[str, LoadError | None] = {}
    places = everything.places
    by_path = {visit.inner_path: visit.saveable for visit in walk.visits}
    owner_of = {
        id(places[place].item): places[owner].item
        for place, owner in {**record.shown_transposed, **record.owners}.items()
        if place in places and owner in places
    }

    def tied(variables: Iterable[Any]) -> dict[int, Any]:
        """Maps ids to what will be in the places of these, each once."""
        instead = (owner_of.get(id(one), one) for one in variables)
        return {id(one): one for one in instead}

    as_then = _as_then(then, everything)
    for inner_path, optimizer in walk.optimizers.items():
        stored, trained = stored_of(inner_path), record.optimizer_variables.get(inner_path)
        if trained is None and inner_path in record.optimizer_variables and optimizer.built:
            found[inner_path] = None
        if trained is None or not len(stored.store):
            continue
        if stored.unrecorded and not stored.has_begun:
            found[inner_path] = None
            continue
        saved = tied(places[place].item for place in trained if place in places)
        known = list(saved.values())
        built_for = tied(optimizer_variables(optimizer) or ())
        holder: Any = by_path.get(inner_path.rpartition("/")[0])
        is_its_own = getattr(holder, "optimizer", None) is optimizer
        # What it may train from now on: the last one is what it will, unless it stays as it is.
        candidates = [built_for] if optimizer.built else []
        if is_its_own and renewal.compiles_as_keras(holder):
            trainable = tied(holder.trainable_variables)
            candidates.append({key: one for key, one in trainable.items() if one.trainable})
        expected = candidates[-1] if candidates else saved
        fits = not candidates or any(saved.keys() == one.keys() for one in candidates)
        # What `fit` trains, its optimizer must know.
        is_short = is_its_own and renewal.trains_as_keras(holder) and expected.keys() - saved
        is_as_then = not is_short and as_then.issuperset({**saved, **expected})
        is_lacking = any(place not in places for place in trained)
        if is_lacking or not (fits or is_as_then):
            names = [retying.name_of(place, everything, record) for place in trained]
            error = _other_variables(stored.name, names, expected, everything)
        else:
            error = stored.error_for_variables(optimizer, known)
        if in_other_order and not error:
            order = built_for or tied(getattr(holder, "trainable_variables", ()))
            if [key for key in order if key in saved] != list(saved):
                error = optimizers.order_error(
                    inner_path, optimizer, known, lambda path: stored_of(path).store
                )
        if error:
            found[inner_path] = error
    return found


def _as_then(record: Record, everything: Walk) -> set[int]:
    """Finds the variables that are trainable if they were when saved, by their `id()`.

    An optimizer of these trains what it did: it may leave some to another one, or train what its
    model has frozen for another one.
    """
    places = everything.places
    now = _flags(everything.layer_states)
    return {
        id(places[place].item)
        for place, flag in _flags(record.layers).items()
        if now.get(place) == flag and record.owners.get(place, place) == place
    }


def _flags(layers: Mapping[str, LayerState]) -> dict[Place, bool]:
    return {
        Place(inner_path, held.attribute): held.listed_trainable and held.trainable
        for inner_path, layer in layers.items()
        for held in layer.variables
    }


def _other_variables(
    name: str, trained: Iterable[str], now: Mapping[int, Any], everything: Walk
) -> LoadError:
    """The error for an optimizer that trained other variables when saved than it does now."""
    saved = set(trained)
    expected = {str(everything.places_of[key][0]) for key in now if key in everything.places_of}
    told = [f"does not train {listed(expected - saved)}"] if expected - saved else []
    told += [f"trains {listed(saved - expected)}"] if saved - expected else []
    return LoadError(
        f"Cannot resume `{name}`: in the file it {', and it '.join(told)}.\n"
        f"Expected: {len(expected)} variables, as in the model. Received: {len(saved)}.\n"
        "It keeps the state that it has here. To resume, let it train what it trained, and no more."
    )
