"""Build the model of a file that Keras wrote in the layout of Keras 2, as `load_tied` does.

Such a file says more than Keras reads: which variables were one, and the slots of its
optimizer, which Keras leaves at zero.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from tiedio.errors import FileFormatError, LoadError
from tiedio.formats.content import OldLayout, Opened, Weight
from tiedio.formats.hdf5_reader import WeightsFile, damaged
from tiedio.keras_versions import public_names
from tiedio.model import renewal
from tiedio.model.keras_internals import SafeModeScope, custom_object_scope
from tiedio.model.places import find_layers, find_places, named_variables
from tiedio.model.substitution import restore_layer
from tiedio.model.walk import layers_of, walk
from tiedio.record.record import Record
from tiedio.record.ties import Place
from tiedio.saving import configs, old_ties, retying
from tiedio.saving.deferral import Deferral
from tiedio.saving.keras2_layout import build, check, finalize, match
from tiedio.saving.optimizers import match_optimizers
from tiedio.saving.restoration import make_room, report

# What Keras writes of `compile`, and does not read back.
_HOW_IT_RUNS = ("run_eagerly", "steps_per_execution", "jit_compile")


def load(
    source: Opened,
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
        SafeModeScope(safe_mode),
        custom_object_scope(custom_objects),
    ):
        report(_other_functions(old), strict)
        with configs.explained(old.model_config, old.filepath):
            model = build(old.model_config or {}, deferral)
        configs.check_model(model, old.filepath, keras.Model)
        make_room(weights, model)
        matches = match(model, old)
        check(matches, old)
        places = collections.defaultdict(list)
        for place, (_, variable) in find_places(walk(model)).items():
            places[id(variable)].append(place)
        stored = {
            places[id(variable)][0]: weight for one in matches for variable, weight in one.pairs
        }
        ties = old_ties.find(model, old, matches, places, weights)
        error = retying.retie(lambda: walk(model), Record(tie_groups=ties), weights, deferral)
        report(error, strict)
        _restore_order(model, old, stored)
        compiled = compile and _compile(model, old)
        held = find_places(walk(model))
        _assign([(held[place][1], weight) for place, weight in stored.items()], weights)
        deferral.finish()
        finalize(model)
        if compiled:
            report(_resume(model, old, weights, deferral), strict)
    return model


def _other_functions(old: OldLayout) -> LoadError | None:
    """The error for what Keras 3 loads, and then computes otherwise than Keras 2 did."""
    if old.keras_version.startswith("2.") and '"hard_sigmoid"' in json.dumps(old.model_config):
        return LoadError(
            f"Cannot load `{old.filepath}`: its `hard_sigmoid` is another function in Keras 3.\n"
            f"Expected: that of Keras 3. Received: that of Keras {old.keras_version}.\n"
            "Migrate it, or pass `strict=False` to go on with the other function."
        )
    return None


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
    visits = walk(model)
    states = find_layers(visits)
    for inner_path, layer in layers_of(visits):
        held = states[inner_path].variables
        weights = [stored.get(Place(inner_path, one.attribute)) for one in held]
        order = [number.get(weight.dataset_path, 0) for weight in weights if weight]
        if len(order) == len(held) and listed[inner_path] != sorted(order):
            as_saved = [one for _, one in sorted(zip(order, held, strict=True), key=lambda p: p[0])]
            saved = dataclasses.replace(states[inner_path], variables=tuple(as_saved))
            restore_layer(layer, saved, named_variables(layer))


def _compile(model: keras.Model, old: OldLayout) -> bool:
    """Compiles the model if it was; its optimizer is left unbuilt."""
    config = public_names.with_public_names(old.training_config)
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
        if renewal.compiles_as_keras(model):
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
        match_optimizers(model, walk(model), Record(), deferral)
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
