"""Let every optimizer of a model be built for the variables of the record, in their order."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tiedio.errors import LoadError, listed
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.formats.store import Store
from tiedio.model import renewal, weight_decay
from tiedio.model.places import members
from tiedio.model.rebuilding import Rebuilding, optimizer_variables
from tiedio.model.walk import Walk, walk
from tiedio.record.record import Record
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
        if not is_built_for(optimizer, trained):
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


def is_built_for(optimizer: Any, variables: list[Any]) -> bool:
    """Whether an optimizer is built for these variables, in this order."""
    built = optimizer_variables(optimizer) or []
    return list(map(id, built)) == list(map(id, variables))


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


def order_error(
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
