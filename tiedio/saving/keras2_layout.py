"""Describe a model in the layout of Keras 2, and match one with a file in that layout.

Keras reads this layout by position. So what is saved is listed as the model that
Keras will build of the config lists it, where nothing is tied.
"""

import collections
import dataclasses
import json
import logging
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras

from tiedio.errors import LoadError, SaveError, TiedioWarning, first_line, listed
from tiedio.formats import hdf5_writer
from tiedio.formats.content import OldLayout, Weight
from tiedio.keras_versions import public_names
from tiedio.model.keras_internals import (
    SafeModeScope,
    custom_object_scope,
    json_utils,
    keras_option_scope,
    saving_utils,
)
from tiedio.model.places import find_places, find_shared_layers, own_variables
from tiedio.model.walk import layers_of, walk
from tiedio.saving.deferral import Deferral

_log = logging.getLogger(__name__)

# Under which the variables of the model itself are listed here.
_OWN = ""


def capture(
    model: keras.Model, layout: hdf5_writer.Layout, include_optimizer: bool = True
) -> OldLayout:
    """Describes a model in the layout of Keras 2, by the tensors that `layout` has.

    Raises:
        SaveError: If Keras could not read that. All that is in the way is named.
    """
    about = _metadata(model, include_optimizer)
    stored = {id(t.source): (path, t) for path, t in layout.tensors.items() if t.source is not None}
    lists = _lists_once_built(model, about["model_config"]) or _lists(model)
    optimizer = model.optimizer.variables if about.get("training_config") else []
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
        layers={name: weights_of(one) for name, one in lists.items() if name != _OWN},
        top_level=weights_of(lists[_OWN]),
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
        try:
            return getattr(keras.losses.get(loss), "__name__")  # noqa: B009  (untyped)
        except (AttributeError, ValueError):  # one of the user's own
            pass
    return loss


def _lists(model: keras.Model) -> dict[str, list[Any]]:
    """Lists the variables of each top-level layer in the order of this layout."""
    lists = {one.name: one.trainable_weights + one.non_trainable_weights for one in model.layers}
    return {**lists, _OWN: own_variables(model)}


def _lists_once_built(model: keras.Model, config: dict[str, Any]) -> dict[str, list[Any]] | None:
    """Lists a model's variables as Keras will list those of the model it builds of the config.

    Nothing is tied there: each place of a shared variable is listed, and none is where a
    tie put it. Returns `None` if it cannot be built here, as for want of a function.
    """
    visits = walk(model)
    classes = {type(layer) for _, layer in layers_of(visits)}
    known = {name: one for one in classes for name in (one.__name__, _registered_name(one))}
    seeds = random.getstate()  # from which layers without a seed draw one
    try:
        with SafeModeScope(False), custom_object_scope(known):
            built = build(config, Deferral(0))
    except Exception as error:  # a config may lead Keras anywhere
        _log.debug("listed as the model itself lists them: %s", error)
        return None
    finally:
        random.setstate(seeds)
    places = {id(v): place for place, (_, v) in find_places(walk(built)).items()}
    held = {place: v for place, (_, v) in find_places(visits).items()}
    copies = [(copy, first) for first, *others in find_shared_layers(visits) for copy in others]

    def counterpart(variable: Any) -> Any:
        place = places[id(variable)]
        for copy, first in copies:
            if f"{place.inner_path}/".startswith(f"{copy}/"):
                inner_path = first + place.inner_path.removeprefix(copy)
                place = dataclasses.replace(place, inner_path=inner_path.lstrip("/"))
        return held[place]

    try:
        lists = {name: list(map(counterpart, one)) for name, one in _lists(built).items()}
    except KeyError as error:
        _log.debug("listed as the model itself lists them: %s", error)
        return None
    # A model that Keras builds only when it is called has none yet.
    unlisted = {id(v) for v in model.weights} - {id(v) for one in lists.values() for v in one}
    return None if unlisted else lists


def _registered_name(kind: type) -> str:
    return keras.saving.get_registered_name(kind)


def build(config: dict[str, Any], deferral: Deferral) -> Any:
    """Builds a model of its config, uncompiled."""
    known = keras.saving.get_custom_objects()

    def make() -> Any:
        # Keras changes the config that it reads.
        fresh = json_utils.decode(json.dumps(config))
        with keras_option_scope(use_legacy_config=True):
            return saving_utils.model_from_config(fresh, custom_objects=dict(known))

    return deferral.build(make)


@dataclasses.dataclass
class Match:
    """A layer of a model, and what a file lists for it.

    Attributes:
        name: The layer's name.
        group: Its name in the file.
        variables: Its variables.
        weights: What is stored for them, one for each if it fits.
    """

    name: str
    group: str
    variables: Sequence[Any]
    weights: Sequence[Weight]

    def __post_init__(self):
        # Names may tell more than the order does: one of a layer's variables may have been
        # replaced by another layer's, or frozen, and was listed behind the others then.
        by_name = {_last(weight.name): weight for weight in self.weights}
        names = [_last(variable.path) for variable in self.variables]
        if len(by_name) == len(self.weights) and sorted(by_name) == sorted(names):
            self.weights = [by_name[name] for name in names]

    @property
    def pairs(self) -> Iterator[tuple[Any, Weight]]:
        """Each variable, and what is stored for it."""
        return zip(self.variables, self.weights, strict=True)

    def problem(self) -> str | None:
        """What does not fit, if anything does not."""
        expected = [tuple(variable.shape) for variable in self.variables]
        received = [weight.shape for weight in self.weights]
        return None if expected == received else f"{expected}, received {received}"


def fitting(
    model: keras.Model, old: OldLayout, by_name: bool = False, skip_mismatch: bool = False
) -> list[Match]:
    """Matches the layers of a model with those of a file, as Keras does.

    Args:
        model: A built model.
        old: What the file says.
        by_name: Whether to go by the names of layers, and leave out those that only one of
            the two has, instead of by their order.
        skip_mismatch: Whether to leave out, with a warning, layers that do not fit.

    Raises:
        LoadError: If they do not fit. All layers that do not are named.
    """
    matches = match(model, old, by_name)
    try:
        check(matches, old)
    except LoadError as error:
        if not skip_mismatch:
            raise
        warnings.warn(str(error), TiedioWarning, stacklevel=4)
        matches = [one for one in matches if not one.problem()]
    return matches


def match(model: keras.Model, old: OldLayout, by_name: bool = False) -> list[Match]:
    """Matches the layers of a model with those of a file.

    Raises:
        LoadError: If there are more of them in one than in the other.
    """
    lists = _lists(model)
    own = lists.pop(_OWN)
    if by_name:
        groups = {name: name for name in lists if name in old.layers}
    else:
        expected = [name for name, one in lists.items() if one]
        received = [name for name, weights in old.layers.items() if weights]
        if len(expected) != len(received):
            raise LoadError(
                f"Cannot load `{old.filepath}` into model `{model.name}`: it has other layers.\n"
                f"Expected: {len(expected)} with weights: {listed(expected) or 'none'}. "
                f"Received: {len(received)}: {listed(received) or 'none'}.\n"
                "Load it into the model that was saved, with the same classes."
            )
        groups = dict(zip(expected, received, strict=True))
    matches = [Match(name, g, lists[name], old.layers[g]) for name, g in groups.items()]
    if old.top_level is not None:
        matches.append(Match(model.name, _OWN, own, old.top_level))
    return matches


def check(matches: Iterable[Match], old: OldLayout) -> None:
    """Compares shapes.

    Raises:
        LoadError: If the shapes of a layer are others in the file. All such layers are named.
    """
    problems = {one.name: problem for one in matches if (problem := one.problem())}
    if problems:
        told = "; ".join(f"`{name}`: expected {problems[name]}" for name in sorted(problems))
        raise LoadError(
            f"Cannot load the weights of {listed(problems)} from `{old.filepath}`.\n"
            f"Received: {told}.\n"
            "Load the file into the model that was saved. Where fewer are stored than expected, "
            "some may have been tied inside one layer: this format does not say which."
        )


def finalize(model: keras.Model) -> None:
    """Lets layers take up what they computed from their variables, as normalization does."""
    for _, layer in layers_of(walk(model)):
        if hasattr(layer, "finalize_state") and layer.weights:
            layer.finalize_state()


def _last(name: str) -> str:
    return name.rpartition("/")[2]
