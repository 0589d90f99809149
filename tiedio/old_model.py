"""Build the model of a file that Keras wrote in the layout of Keras 2, as `load_tied` does.

Such a file says more than Keras reads. A variable is listed under the path that the
layer gave it which made it, also where another layer lists it: so ties come back. And
its optimizer has slots, which Keras leaves at zero.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import keras

from tiedio import configs, models, retying, state, variables
from tiedio.containers import Archive
from tiedio.deferral import Deferral
from tiedio.errors import FileFormatError, LoadError
from tiedio.legacy import OldLayout, Weight
from tiedio.old_layout import Match, build, check, finalize, match
from tiedio.substitution import restore_layer
from tiedio.ties import Place, Record, TieGroup
from tiedio.weights_file import WeightsFile, damaged

# What Keras writes of `compile`, and does not read back.
_HOW_IT_RUNS = ("run_eagerly", "steps_per_execution", "jit_compile")


def load(
    source: Archive,
    deferral: Deferral,
    custom_objects: Mapping[str, Any] | None,
    compile: bool,
    safe_mode: bool,
    strict: bool,
) -> keras.Model:
    """Returns the model; `load_tied` describes the arguments.

    Raises:
        FileFormatError: If tensors cannot be read. All are named.
        CustomObjectsError: If `custom_objects` lacks classes of the file.
        LoadError: If some state cannot be restored. All is named.
    """
    old: Any = source.old_layout
    weights = source.weights
    with (
        variables.SafeModeScope(safe_mode),
        keras.saving.CustomObjectScope(dict(custom_objects or {})),
    ):
        with configs.explained(old.model_config, old.filepath):
            model = build(old.model_config or {}, deferral)
        configs.check_model(model, old.filepath, keras.Model)
        state.make_room(weights, model)
        matches = match(model, old)
        check(matches, old)
        places = collections.defaultdict(list)
        for place, (_, variable) in variables.find_places(variables.walk(model)).items():
            places[id(variable)].append(place)
        stored = {
            places[id(variable)][0]: weight
            for one in matches
            for variable, weight in zip(one.variables, one.weights, strict=True)
        }
        ties = _find_ties(model, old, matches, places, weights)
        error = retying.retie(model, Record(tie_groups=ties), weights, deferral)
        state.report(error, strict)
        _restore_order(model, old, stored)
        compiled = compile and _compile(model, old)
        held = variables.find_places(variables.walk(model))
        _assign([(held[place][1], weight) for place, weight in stored.items()], weights)
        deferral.finish()
        finalize(model)
        if compiled:
            state.report(_resume(model, old, weights, deferral), strict)
    return model


def _find_ties(
    model: keras.Model,
    old: OldLayout,
    matches: Sequence[Match],
    places: Mapping[int, Sequence[Place]],
    weights: WeightsFile,
) -> tuple[TieGroup, ...]:
    """Finds the variables that were one when saved.

    One that is listed under the path of another layer, which lists the same path and has
    the same values there, was that layer's. Equal paths alone say nothing where each could
    be a layer's own, as in two nested models with members of one name.
    """
    names = {path: layer.name for path, layer in variables.layers_of(variables.walk(model))}
    own = collections.defaultdict(list)
    foreign = []
    linked: dict[Any, Any] = {}
    tied: list[tuple[Any, Any]] = []
    for one in matches:
        for variable, weight in zip(one.variables, one.weights, strict=True):
            first = linked.setdefault(weights.address(weight.dataset_path), variable)
            makers = set(_maker(weight).parts)
            around = _names_around(places[id(variable)][0], names)
            if first is not variable:  # a hard link: it is one tensor
                tied.append((first, variable))
            elif makers <= around or one.group in makers:
                own[weight.name].append((weight, variable))
            else:
                foreign.append((weight, variable))

    def equal(one: Weight, other: Weight) -> bool:
        return not weights.disagreements({one.dataset_path: other.dataset_path})

    for weight, variable in foreign:
        owners = [owner for made, owner in own[weight.name] if equal(weight, made)]
        if len(owners) == 1:
            tied.append((owners[0], variable))
    shared = _layers_with_one_slot(model, old, own)
    for (first, owner), *others in own.values():
        tied += [(owner, v) for w, v in others if _maker(w) in shared and equal(w, first)]
    return tuple(_tie_groups(tied, places))


def _layers_with_one_slot(
    model: keras.Model, old: OldLayout, own: Mapping[str, Sequence[tuple[Weight, Any]]]
) -> set[PurePosixPath]:
    """Finds the paths of layers that stand in several models, and were trained as one.

    Two variables of one path would have slots of one name, which Keras cannot save.
    """
    trained = {id(variable) for variable in model.trainable_variables}
    slots = [PurePosixPath(weight.name).name for weight in old.optimizer]
    return {
        _maker(held[0][0])
        for name, held in own.items()
        if sum(id(variable) in trained for _, variable in held) > 1
        and any(slot.startswith(f"{name.replace('/', '_')}_") for slot in slots)
    }


def _maker(weight: Weight) -> PurePosixPath:
    """The path of the layer that made a variable."""
    return PurePosixPath(weight.name).parent


def _tie_groups(
    tied: Sequence[tuple[Any, Any]], places: Mapping[int, Sequence[Place]]
) -> Iterator[TieGroup]:
    # What is linked to a variable that is another's belongs to that one.
    of = {id(variable): owner for owner, variable in tied}
    tied = [(of.get(id(owner), owner), variable) for owner, variable in tied]
    owners = {id(owner): owner for owner, variable in tied if owner is not variable}
    for key, owner in owners.items():
        aliases = {id(v): places[id(v)] for o, v in tied if o is owner and v is not owner}
        places_of_aliases = (place for held in aliases.values() for place in held)
        yield variables.tie_group(places[key][0], places_of_aliases, owner)


def _names_around(place: Place, names: Mapping[str, str]) -> set[str]:
    """Names the layer at a place, and the layers and models around it."""
    path = PurePosixPath(place.inner_path)
    inner_paths = [str(one) for one in (path, *path.parents)]
    return {names[one] for one in [*inner_paths, ""] if one in names}


def _restore_order(model: keras.Model, old: OldLayout, stored: Mapping[Place, Weight]) -> None:
    """Lists the variables of each layer as when saved: the order of slots follows it."""
    number = {
        weight.dataset_path: count
        for weights in old.layers.values()
        for count, weight in enumerate(weights)
    }
    listed = collections.defaultdict(list)  # as the model lists them, where each is in the file
    for place, weight in stored.items():
        listed[place.inner_path].append(number.get(weight.dataset_path, 0))
    visits = variables.walk(model)
    states = variables.find_layers(visits)
    for inner_path, layer in variables.layers_of(visits):
        held = states[inner_path].variables
        weights = [stored.get(Place(inner_path, one.attribute)) for one in held]
        order = [number.get(weight.dataset_path, 0) for weight in weights if weight]
        if len(order) == len(held) and listed[inner_path] != sorted(order):
            as_saved = [one for _, one in sorted(zip(order, held, strict=True), key=lambda p: p[0])]
            saved = dataclasses.replace(states[inner_path], variables=tuple(as_saved))
            restore_layer(layer, saved, variables.named_variables(layer))


def _compile(model: keras.Model, old: OldLayout) -> bool:
    """Compiles the model if it was; its optimizer is left unbuilt."""
    config = old.training_config
    if not config:
        return False
    with configs.explained(config, old.filepath):
        arguments = {
            "optimizer": _revived(config.get("optimizer_config"), "optimizers"),
            "loss": _revived(config.get("loss"), "losses"),
            "metrics": _revived(config.get("metrics"), "metrics"),
            "weighted_metrics": _revived(config.get("weighted_metrics"), "metrics"),
            "loss_weights": config.get("loss_weights"),
        }
        if models.compiles_as_keras(model):
            arguments |= {name: config[name] for name in _HOW_IT_RUNS if name in config}
        model.compile(**arguments)
    return True


def _revived(config: Any, area: str) -> Any:
    """Makes objects of their configs; names that Keras knows are left to `compile`."""
    if isinstance(config, list):
        return [_revived(one, area) for one in config]
    if isinstance(config, str):
        return keras.saving.get_registered_object(config) or config
    if not isinstance(config, dict):
        return config
    if "class_name" not in config:
        return {name: _revived(one, area) for name, one in config.items()}
    name = config["class_name"]
    module = f"keras.{area}" if hasattr(getattr(keras, area), str(name)) else None
    return keras.saving.deserialize_keras_object(
        {"module": module, "registered_name": name, **config}
    )


def _assign(values: Iterable[tuple[Any, Weight]], weights: WeightsFile) -> None:
    unreadable = []
    assigned = set()
    for variable, weight in values:
        if id(variable) not in assigned:  # a tied one has equal values in several places
            assigned.add(id(variable))
            try:
                variable.assign(weights.read_once(weight.dataset_path))
            except FileFormatError as error:
                unreadable.append(error)
    if len(unreadable) == 1:
        raise unreadable[0]
    if unreadable:
        raise damaged(weights.filepath, weights.damaged, "others") from unreadable[0]


def _resume(
    model: keras.Model, old: OldLayout, weights: WeightsFile, deferral: Deferral
) -> LoadError | None:
    """Gives the optimizer its state, slots included.

    Returns:
        An error if it does not fit; it starts anew then.
    """
    if len(old.optimizer) > len(model.optimizer.variables):  # it was built
        retying.match_optimizers(model, variables.walk(model), Record(), deferral)
    expected = [tuple(variable.shape) for variable in model.optimizer.variables]
    received = [weight.shape for weight in old.optimizer]
    fits = expected == received
    if fits:
        values = zip(model.optimizer.variables, old.optimizer, strict=True)
        _assign(values, weights)
    deferral.finish()
    if fits or not received:
        return None
    return LoadError(
        f"Cannot resume the optimizer of `{old.filepath}`: its variables are not those of the "
        "model.\n"
        f"Expected: {len(expected)} of shapes {sorted(set(expected))}. "
        f"Received: {len(received)} of shapes {sorted(set(received))}.\n"
        "The model may have had ties or flags that this format does not keep: pass "
        "`strict=False` to start the optimizer anew, or `compile=False`."
    )
