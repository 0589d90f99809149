"""Let every optimizer of a model be built for the variables of the record, or say why not."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras

from tiedio.errors import LoadError, first_line, listed
from tiedio.formats.content import Opened
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.formats.store import Store
from tiedio.keras_versions.keras_version import KerasVersion
from tiedio.model import renewal, weight_decay
from tiedio.model.own_state import loads_as_keras
from tiedio.model.places import members
from tiedio.model.rebuilding import Rebuilding, optimizer_variables
from tiedio.model.walk import Walk, walk
from tiedio.record.record import LayerState, Record
from tiedio.record.ties import Place
from tiedio.saving import retying
from tiedio.saving.deferral import Deferral

# What a file has for an optimizer, by its inner_path.
Stores = Callable[[str], Store]


def match_optimizers(
    walk: Walk, record: Record, deferral: Deferral, everything: Walk | None = None
) -> tuple[bool, LoadError | None]:
    """Makes every optimizer be built for the variables it was built for when saved.

    One that the record does not mention is built for what is trainable. If the model was in use
    before, and `everything` of it is given, what was built for something then stays as it is.

    Returns:
        Whether one was built again, with what may be other optimizers inside it, and an error
        that names those that the model does not have.
    """
    # Of all, as `walk` may lack what an optimizer that is among them trains.
    places = (everything or walk).places
    by_path = {visit.inner_path: visit.saveable for visit in walk.visits}
    wanted = {
        inner_path: [places[place].item for place in trained or () if place in places]
        for inner_path, trained in record.optimizer_variables.items()
    }
    model, optimizer = by_path.get(""), by_path.get("optimizer")
    if (
        isinstance(optimizer, keras.optimizers.Optimizer)
        and not (everything and optimizer.built)
        and isinstance(model, keras.Model)
        and renewal.compiles_as_keras(model)
    ):
        wanted.setdefault("optimizer", model.trainable_variables)
    missing = [
        path
        for path in record.excluded_from_weight_decay
        if path not in wanted and not isinstance(by_path.get(path), keras.optimizers.Optimizer)
    ]
    rebuilt = False
    for inner_path, trained in wanted.items():
        optimizer = by_path.get(inner_path)
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            missing += [inner_path] if trained else []
            continue
        if not _is_built_for(optimizer, trained):
            rebuilt |= optimizer.built
            build(optimizer, trained, deferral)
    if not missing:
        return rebuilt, None
    return rebuilt, LoadError(
        f"Cannot resume {listed(map(walk.label, missing))}: the model has no such optimizer.\n"
        "Expected: an optimizer. Received: none, as when the `compile` of a class is its own.\n"
        "Compile the model, and call `tiedio.load_tied_weights` with the same file."
    )


def build(optimizer: Any, trained: list[Any], deferral: Deferral) -> None:
    """Builds an optimizer for these variables; if it was built for others, it starts anew."""
    was_built = optimizer.built
    rebuilding = Rebuilding(optimizer)
    if trained:
        deferral.build(lambda: rebuilding.build(trained))
    else:
        rebuilding.unbuild()
    if was_built:
        rebuilding.restart()


def exclude_from_weight_decay(walk: Walk, record: Record) -> None:
    """Tells the optimizers of a model that was built for this what not to decay."""
    for optimizer, excluded in _excluding(walk, record, walk):
        optimizer.exclude_from_weight_decay(var_list=excluded)


def decays_otherwise(walk: Walk, record: Record, everything: Walk) -> Iterator[str]:
    """Yields a warning for each optimizer of a script that is told otherwise than the file's."""
    variables = [held.item for held in everything.places.values()]
    for optimizer, expected in _excluding(walk, record, everything):
        excluded = {id(v): v for v in weight_decay.excluded_among(optimizer, variables)}
        if excluded.keys() != set(map(id, expected)):
            yield (
                f"The optimizer `{optimizer.name}` goes on with another weight decay: in the file "
                f"{listed(v.path for v in expected)} had none, here "
                f"{listed(v.path for v in excluded.values()) or 'all have one'}. "
                "Call its `exclude_from_weight_decay` before, as when it was saved."
            )


def _excluding(walk: Walk, record: Record, everything: Walk) -> Iterator[tuple[Any, list[Any]]]:
    """Yields each optimizer that excludes variables in the file, with these."""
    places = everything.places
    for visit in walk.optimizer_parts:
        excluded = record.excluded_from_weight_decay.get(visit.inner_path)
        if excluded and isinstance(visit.saveable, keras.optimizers.Optimizer):
            yield visit.saveable, [places[place].item for place in excluded if place in places]


def in_order_of_model(found: Walk, record: Record, everything: Walk) -> Record:
    """Returns a record whose optimizers are for the variables of a model in its own order.

    Keras goes by that order on JAX, whatever the optimizer's is.
    """
    places = everything.places
    ordered = {}
    for path, trained in record.optimizer_variables.items():
        optimizer, holder = found.optimizers.get(path), found.layers.get(path.rpartition("/")[0])
        if trained and optimizer and holder:
            now = optimizer_variables(optimizer) or holder.trainable_variables
            number = {id(variable): count for count, variable in enumerate(now)}
            known = [place for place in trained if place in places]
            known.sort(key=lambda place: number.get(id(places[place].item), len(number)))
            ordered[path] = tuple(known)
    trained = {**record.optimizer_variables, **ordered}
    return dataclasses.replace(record, optimizer_variables=trained)


def reordered(
    found: Walk, record: Record, everything: Walk, stores: Stores
) -> dict[str, Store | LoadError]:
    """Maps optimizers that were saved in another order to what is stored, in that of now."""
    put: dict[str, Store | LoadError] = {}
    for path, optimizer in found.optimizers.items():
        saved = record.optimizer_variables.get(path) or ()
        trained = [everything.places[place].item for place in saved if place in everything.places]
        now = optimizer_variables(optimizer) or []
        if not trained or list(map(id, now)) == list(map(id, trained)):
            continue
        saved_parts = Rebuilding(optimizer).told(trained, _slots_of_parts)
        for visit in walk(optimizer).visits:
            if isinstance(visit.saveable, keras.optimizers.Optimizer):
                part = f"{path}/{visit.inner_path}".rstrip("/")
                then = saved_parts.get(visit.inner_path, [])
                put[part] = _reordered(part, then, _slots(visit.saveable), stores(part))
    return put


def _reordered(path: str, saved: list[Any], now: list[Any], store: Store) -> Store | LoadError:
    names = {slot: str(number) for number, slot in enumerate(saved)}
    stored = set(store)
    if stored and names.keys() == set(now) and stored == set(names.values()):
        return store.renumbered([names[slot] for slot in now])
    return _unordered(path, saved, len(stored))


def _order_error(
    inner_path: str, optimizer: Any, known: list[Any], stores: Stores
) -> LoadError | None:
    """The error for an optimizer whose slots cannot be told apart, and so not be reordered."""
    for part, saved in Rebuilding(optimizer).told(known, _slots_of_parts).items():
        path = f"{inner_path}/{part}".rstrip("/")
        stored = len(stores(path))
        if stored and not len(set(saved)) == len(saved) == stored:
            return _unordered(path, saved, stored)
    return None


def _unordered(path: str, saved: list[Any], stored: int) -> LoadError:
    return LoadError(
        f"Cannot resume `{path}`: the layers of the model are in another order.\n"
        "Expected: an optimizer that keeps its variables in lists, one for each that it trains. "
        f"Received: {len(set(saved))} such variables of {len(saved)}, and {stored} stored.\n"
        "Build the layers in the order of the file."
    )


def _slots_of_parts(optimizer: Any) -> dict[str, list[Any]]:
    parts = {visit.inner_path: visit.saveable for visit in walk(optimizer).visits}
    return {path: _slots(part) for path, part in parts.items() if hasattr(part, "variables")}


def _slots(optimizer: Any) -> list[Any]:
    """Tells the variables of an optimizer apart, in their order: by attribute, and whose it is."""
    slots: dict[int, Any] = {}
    for visit in walk(optimizer).visits:
        trained = getattr(visit.saveable, "_trainable_variables", ())
        for name, variable in members(visit.saveable, keras.Variable):
            attribute, _, number = name.rpartition("/")
            slot: Any = visit.inner_path, name
            if number.isdigit() and int(number) < len(trained):
                slot = visit.inner_path, attribute, id(trained[int(number)])
            if attribute != "_variables":  # all, whatever they are
                slots.setdefault(id(variable), slot)
    return [slots.get(id(variable)) for variable in optimizer.variables]


def stored_at(walk: Walk, weights: WeightsFile) -> dict[str, str]:
    """Maps optimizers to where a file has them that was saved with loss scaling, or without it.

    Keras wraps the optimizer of a model that computes in float16. The scale itself starts anew.
    """
    found = {}
    for path, optimizer in walk.optimizers.items():
        inner = f"{path}/inner_optimizer"
        is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        was_scaled = bool(weights.names(f"{inner}/vars"))
        if is_scaled and not was_scaled:
            found |= {path: inner, inner: path}
        elif was_scaled and not hasattr(optimizer, "inner_optimizer"):
            found[path] = inner
    return found


def find_unresumable(
    record: Record,
    stores: Stores,
    walk: Walk,
    everything: Walk,
    *,
    then: Record,
    in_other_order: bool,
    unrecorded: Opened | None,
) -> dict[str, LoadError | None]:
    """Finds the optimizers that cannot go on as the file says; nothing is changed.

    Args:
        record: The record of the file, fitted to the model.
        stores: What the file has for each optimizer.
        walk: The saveables to be loaded.
        everything: All saveables of the model.
        then: The record of the file, with the flags and ties of then.
        in_other_order: Whether its layers are in another order than in the file.
        unrecorded: The file, if it has no record.

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
        store, trained = stores(inner_path), record.optimizer_variables.get(inner_path)
        if trained is None and inner_path in record.optimizer_variables and optimizer.built:
            found[inner_path] = None
        if trained is None or not len(store):
            continue
        if unrecorded and not has_begun(store):
            found[inner_path] = None
            continue
        saved = tied(places[place].item for place in trained if place in places)
        now = tied(optimizer_variables(optimizer) or ())
        holder: Any = by_path.get(inner_path.rpartition("/")[0])
        trains = [now] if optimizer.built else []
        is_its_own = getattr(holder, "optimizer", None) is optimizer
        if is_its_own and renewal.compiles_as_keras(holder):
            trainable = tied(holder.trainable_variables)
            trains.append({key: one for key, one in trainable.items() if one.trainable})
        known = list(saved.values())
        *_, expected = trains = trains or [saved]
        is_lacking = any(place not in places for place in trained)
        fits = any(saved.keys() == one.keys() for one in trains)
        # What `fit` trains, its optimizer must know.
        is_short = is_its_own and renewal.trains_as_keras(holder) and expected.keys() - saved
        is_as_then = not is_short and as_then.issuperset({**saved, **expected})
        if is_lacking or not (fits or is_as_then):
            names = [retying.name_of(place, everything, record) for place in trained]
            error = _other_variables(walk.label(inner_path), names, expected, everything)
        else:
            name = walk.label(inner_path)
            error = _slots_error(name, optimizer, known, store, unrecorded=unrecorded)
        if in_other_order and not error:
            order = now or tied(getattr(holder, "trainable_variables", ()))
            if [key for key in order if key in saved] != list(saved):
                error = _order_error(inner_path, optimizer, known, stores)
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


def _is_built_for(optimizer: Any, variables: list[Any]) -> bool:
    built = optimizer_variables(optimizer) or []
    return list(map(id, built)) == list(map(id, variables))


def _slots_error(
    name: str, optimizer: Any, known: list[Any], store: Store, *, unrecorded: Opened | None
) -> LoadError | None:
    if error := _other_class(name, optimizer, unrecorded):
        return error
    if _is_built_for(optimizer, known):
        return slots_error(name, optimizer, store, unrecorded)
    try:
        expected = Rebuilding(optimizer).told(known, _shapes)
    except Exception as error:  # the code of optimizers may raise anything
        return LoadError(
            f"Cannot resume `{name}`: {first_line(error)}\n"
            "Expected: an optimizer that can be built for other variables. "
            f"Received: {type(error).__name__}.\n"
            "Give its class a `build` that can be called again."
        )
    return _difference(name, expected, store, unrecorded)


def _other_class(name: str, optimizer: Any, unrecorded: Opened | None) -> LoadError | None:
    """The error for the state of another optimizer, which may have slots of the same shapes."""
    old = unrecorded and unrecorded.old_layout
    registered = keras.saving.get_registered_name(type(optimizer)).rpartition(">")[2]
    if not old or old.optimizer_class in ("", type(optimizer).__name__, registered):
        return None
    return LoadError(
        f"Cannot resume `{name}`: the file has the state of another.\n"
        f"Expected: that of `{type(optimizer).__name__}`. Received: that of "
        f"`{old.optimizer_class}`.\nCompile with the optimizer that was saved."
    )


def has_begun(store: Store) -> bool:
    """Whether an optimizer has slots, or has counted steps: one that is not built has scalars."""
    counts = (one for one in store.values() if one.dtype.kind in "iu")
    return any(store.shapes().values()) or any(one.any() for one in counts)


def slots_error(
    name: str, saveable: Any, store: Store, unrecorded: Opened | None
) -> LoadError | None:
    """Compares what an optimizer holds with what is stored, before any of it is changed.

    Args:
        name: Its name for messages.
        saveable: The optimizer; what has no slots is fine.
        store: What is stored for it.
        unrecorded: The file, if it has no record.
    """
    is_optimizer = isinstance(saveable, keras.optimizers.Optimizer)
    if not is_optimizer or (unrecorded and not loads_as_keras(saveable)):  # its code knows better
        return None
    return _difference(name, _shapes(saveable), store, unrecorded)


def _shapes(optimizer: Any) -> list[tuple[int, ...]]:
    return [tuple(variable.shape) for variable in optimizer.variables]


def _difference(
    name: str, expected: list[tuple[int, ...]], store: Store, unrecorded: Opened | None
) -> LoadError | None:
    received = list(store.shapes().values())
    # Keras 2 had another order, which shapes do not always tell.
    listed_by = unrecorded.keras_version if unrecorded and unrecorded.is_by_position else ""
    is_ordered = not listed_by or KerasVersion(listed_by).is_of_keras_3
    if received == expected and is_ordered:
        return None
    advice = "Compile with the optimizer that was saved, in the version of then."
    path = unrecorded.filepath if unrecorded else ""
    if not is_ordered:
        advice = (
            f"It goes on without that state, which `tiedio migrate {path} NEW` puts in the order "
            "of Keras 3 if it knows all layers."
        )
    elif unrecorded and len(received) < len(expected):
        advice = (
            "It goes on without that state. Variables may have been tied when it was saved: "
            f"`tiedio plan {path}` says which, and `tiedio migrate {path} NEW` ties them again."
        )
    return LoadError(
        f"Cannot resume `{name}`: its variables are not those of the file.\n"
        f"Expected: {len(expected)} of shapes {sorted(set(expected))}. "
        f"Received: {len(received)} of shapes {sorted(set(received))}.\n{advice}"
    )
