"""Describe a model in the layout of Keras 2.

Keras reads this layout by position. So what is saved is listed as the model that
Keras will build of the config lists it, where nothing is tied.
"""

import collections
import dataclasses
import json
import logging
from collections.abc import Iterable
from typing import Any

import keras

from tiedio.errors import SaveError, first_line, listed
from tiedio.formats import hdf5_writer
from tiedio.formats.content import OldLayout, Weight
from tiedio.keras_versions import public_names, renames
from tiedio.model.keras_internals import (
    SafeModeScope,
    custom_object_scope,
    json_utils,
    keras_option_scope,
    saving_utils,
)
from tiedio.model.walk import walk
from tiedio.saving.deferral import Deferral, unnoticed
from tiedio.saving.keras2_config import build
from tiedio.saving.keras2_record import OWN, lists_of

_log = logging.getLogger(__name__)


def capture(
    model: keras.Model, layout: hdf5_writer.Layout, include_optimizer: bool = True
) -> OldLayout:
    """Describes a model in the layout of Keras 2, by the tensors that `layout` has.

    Raises:
        SaveError: If Keras could not read that. All that is in the way is named.
    """
    about = _metadata(model, include_optimizer)
    stored = {id(t.source): (path, t) for path, t in layout.tensors.items() if t.source is not None}
    lists = _lists_once_built(model, about["model_config"]) or lists_of(model)
    optimizer = model.optimizer.variables if about.get("training_config") else []
    if not any(id(variable) in stored for variable in optimizer):  # nothing of it is saved
        optimizer = []
    listed_variables = [variable for one in (*lists.values(), optimizer) for variable in one]
    lost = {v.path for v in listed_variables if id(v) not in stored}
    lost |= {v.path for v in listed_variables if v.dtype == "bfloat16"}
    if lost:
        raise _unsaved(model, f"{listed(lost)}", "bfloat16, or what no layer stores")

    def weights_of(listed_here: Iterable[Any]) -> tuple[Weight, ...]:
        return tuple(Weight(v.path, stored[id(v)][0], stored[id(v)][1].shape) for v in listed_here)

    return OldLayout(
        filepath=model.name,
        model_config=about["model_config"],
        training_config=about.get("training_config"),
        keras_version=about["keras_version"],
        backend=about["backend"],
        layers={name: weights_of(one) for name, one in lists.items() if name != OWN},
        top_level=weights_of(lists[OWN]),
        optimizer=weights_of(optimizer),
    )


def _metadata(model: keras.Model, include_optimizer: bool) -> dict[str, Any]:
    """Returns the configs of a model as Keras writes them in this layout."""
    names = collections.Counter(layer.name for layer in model.layers)
    if twice := [name for name, count in names.items() if count > 1]:
        raise _unsaved(model, listed(twice), "several layers of one name")
    compiled = getattr(getattr(model, "_compile_config", None), "config", {})
    before = dict(compiled)
    try:
        with keras_option_scope(use_legacy_config=True):
            about = saving_utils.model_metadata(model, include_optimizer)
        about = json.loads(json.dumps(about, default=json_utils.get_json_type))
    except Exception as error:  # the code of layers may raise anything
        raise _unsaved(model, "its config", first_line(error)) from error
    finally:
        # Keras takes the optimizer out of it, and no file would have one any more.
        compiled.update(before)
    if training := about.get("training_config"):
        training["loss"] = _with_full_names(training.get("loss"))
    return public_names.with_public_names(about)


def _unsaved(model: keras.Model, what: str, received: str) -> SaveError:
    return SaveError(
        f"Cannot save {what} of model `{model.name}` as HDF5.\n"
        f"Expected: what Keras can read in this format. Received: {received}.\n"
        "Save it to a path ending in `.keras`."
    )


def _with_full_names(loss: Any) -> Any:
    """Spells names of losses out: Keras does not read `"mse"` back."""
    if isinstance(loss, list):
        return [_with_full_names(one) for one in loss]
    if isinstance(loss, dict) and "class_name" not in loss:
        return {name: _with_full_names(one) for name, one in loss.items()}
    if isinstance(loss, str) and keras.saving.get_registered_object(loss) is None:
        return renames.FUNCTIONS.get(loss, loss)
    return loss


def _lists_once_built(model: keras.Model, config: dict[str, Any]) -> dict[str, list[Any]] | None:
    """Lists a model's variables as Keras will list those of the model it builds of the config.

    Nothing is tied there: each place of a shared variable is listed, and none is where a
    tie put it. Returns `None` if it cannot be built here, as for want of a function.
    """
    found = walk(model)
    classes = {type(layer) for layer in found.layers.values()}
    known: dict[str, Any] = {one.__name__: one for one in classes}
    known |= {keras.saving.get_registered_name(one): one for one in classes}
    try:
        with unnoticed(), SafeModeScope(False), custom_object_scope(known):
            built = build(config, Deferral())
    except Exception as error:  # a config may lead Keras anywhere
        _log.debug("listed as the model itself lists them: %s", error)
        return None
    places = walk(built).places_of
    copies = [(copy, first) for first, *others in found.shared_layers for copy in others]

    def counterpart(variable: Any) -> Any:
        place = places[id(variable)][-1]
        for copy, first in copies:
            if f"{place.inner_path}/".startswith(f"{copy}/"):
                inner_path = first + place.inner_path.removeprefix(copy)
                place = dataclasses.replace(place, inner_path=inner_path.lstrip("/"))
        return found.places[place].item

    try:
        lists = {name: list(map(counterpart, one)) for name, one in lists_of(built).items()}
    except KeyError as error:
        _log.debug("listed as the model itself lists them: %s", error)
        return None
    # A model that Keras builds only when it is called has none yet.
    unlisted = {id(v) for v in model.weights} - {id(v) for one in lists.values() for v in one}
    return None if unlisted else lists
