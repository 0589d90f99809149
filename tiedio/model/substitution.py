"""Put one variable, layer or seed generator in the place of another, wherever it is held.

Attributes that Keras keeps private are read here, and `renewal`, only where a comment says why.
"""

import collections
import dataclasses
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from tiedio.model.keras_internals import TRACKED, has_value, map_graph
from tiedio.model.places import attributes_of, members
from tiedio.model.views import TransposedView
from tiedio.record.record import LayerState
from tiedio.record.ties import shown

# What a layer asks of its variables, in attributes such as `kernel_regularizer`.
_WISHES = ("regularizer", "constraint")

# What `map_graph` returns, in its order.
_GRAPH = ("_nodes", "_nodes_by_depth", "_operations", "_operations_by_depth")


@dataclasses.dataclass
class Substitution:
    """`new` is to take the place of `old` in `layer`."""

    layer: keras.Layer
    old: Any
    new: Any


def substitute(layer: keras.Layer, old: Any, new: Any) -> None:
    """Puts `new` wherever `layer` itself holds `old`, in the same place of its lists.

    A view is in no list; what takes its place is listed where a layer built anew has it.
    """
    # A built layer refuses new state, and tracking would append what must keep its place.
    tracker = layer._tracker
    listed = () if isinstance(new, TransposedView) else (new,)
    tracked = {
        store: (held, [o for thing in held for o in (listed if thing is old else (thing,))])
        for store, (_, held) in tracker.config.items()
    }
    locked, tracker.locked = tracker.locked, False
    try:
        for name, value in attributes_of(layer).items():
            replaced = _replaced(value, old, new)
            if replaced is not value and listed:
                setattr(layer, name, replaced)
            elif replaced is not value:
                layer.__dict__[name] = replaced  # which no backend is to track
                if hasattr(layer, "_delete_tracking"):  # TensorFlow would export what was there
                    layer._delete_tracking(name)
    finally:
        tracker.locked = locked
    if isinstance(old, TransposedView) and listed:
        _, kept = tracked[TRACKED[0 if new.trainable else 1].removeprefix("_")]
        order = {id(variable): n for n, (_, variable) in enumerate(members(layer, keras.Variable))}
        kept.append(new)
        kept.sort(key=lambda one: order.get(id(one), len(order)))
    for store, (held, kept) in tracked.items():
        held[:] = kept
        tracker.stored_ids[store] = {id(thing) for thing in kept}
    track_parameters(layer)


def substitute_layers(
    pairs: Iterable[tuple[keras.Layer, keras.Layer]], holders: Iterable[keras.Layer]
) -> None:
    """Puts a layer in the place of each other one, in every layer and graph of `holders`.

    Args:
        pairs: What is to be replaced, and by what.
        holders: All that may hold them.
    """
    held: dict[int, dict[int, Any]] = collections.defaultdict(dict)
    for holder in holders:
        # A Sequential model keeps its graph in a model that nobody else sees.
        for one in filter(None, (holder, getattr(holder, "_functional", None))):
            for _, part in members(one, keras.Layer):
                held[id(part)][id(one)] = one
    graphs = {}
    for old, new in pairs:
        _take_calls(old, new)
        for key, holder in held.pop(id(old), {}).items():
            substitute(holder, old, new)
            held[id(new)][key] = holder
            if hasattr(holder, "_operations"):
                graphs[key] = holder
    for graph in graphs.values():
        parts = map_graph(graph._inputs, graph._outputs)
        graph.__dict__.update(zip(_GRAPH, parts, strict=True))


def _take_calls(old: keras.Layer, new: keras.Layer) -> None:
    """Makes the calls of a layer in graphs, which are numbered per layer, those of another one."""
    for node in old._inbound_nodes:
        node.operation = new
        number = len(new._inbound_nodes)
        new._inbound_nodes.append(node)
        for tensor in node.outputs:
            history = tensor._keras_history
            tensor._keras_history = history._replace(operation=new, node_index=number)
    old._inbound_nodes = []
    new._outbound_nodes.extend(old._outbound_nodes)


def track_parameters(layer: keras.Layer) -> None:
    """Makes a torch module's parameters those of its variables (it keeps them when built)."""
    if hasattr(layer, "_track_variables") and all(map(has_value, layer.variables)):
        layer._track_variables()


def _replaced(value: Any, old: Any, new: Any, entered: tuple[int, ...] = ()) -> Any:
    """Returns `value` with `new` for `old`: lists and dicts changed in place."""
    if value is old:
        return new
    if id(value) in entered:  # it is inside itself
        return value
    entered = (*entered, id(value))
    if isinstance(value, tuple):
        items = [_replaced(item, old, new, entered) for item in value]
        if all(item is before for item, before in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, (list, dict)):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            replaced = _replaced(item, old, new, entered)
            if replaced is not item:
                value[key] = replaced
    return value


def facts_of(variable: Any, axes: Sequence[int] | None = None) -> str:
    """Tells what must be equal for two variables to be tied, as messages show it."""
    shape = tuple(variable.shape)
    if axes and sorted(axes) == list(range(len(shape))):
        shape = tuple(shape[axis] for axis in axes)
    return f"{shape} {variable.dtype}"


def may_adopt(layer: keras.Layer, attribute: str) -> bool:
    """Whether `attribute` is empty, and of a kind that a class may fill from outside.

    The name comes from a file. It is none that a class defines, and none of Keras' own:
    what every layer has, or what a layer of Keras is configured with.
    """
    keras_classes = [c for c in type(layer).__mro__ if c.__module__.split(".")[0] == "keras"]
    return (
        attributes_of(layer).get(attribute, layer) is None
        and type(layer) not in keras_classes
        and not hasattr(type(layer), attribute)
        and not hasattr(keras.layers.Layer(name="any"), attribute)
        and not any(
            attribute.lstrip("_") in inspect.signature(c.__init__).parameters for c in keras_classes
        )
    )


def adopt(layer: keras.Layer, attribute: str, variable: Any) -> None:
    """Gives `layer` a variable as an attribute that was empty so far."""
    locked, layer._tracker.locked = layer._tracker.locked, False
    try:
        setattr(layer, attribute, variable)
    finally:
        layer._tracker.locked = locked


def copy_of(variable: Any, layer: keras.Layer, attribute: str) -> Any:
    """Makes a separate variable with the value of `variable` for an attribute of `layer`."""
    # The owner's may be called otherwise, and what a layer wishes goes by its own names.
    wished = any(hasattr(layer, f"{shown(attribute)}_{wish}") for wish in _WISHES)
    name = shown(attribute) if wished else variable.name
    copy = variable_of(
        layer,
        np.array(keras.ops.convert_to_numpy(variable)),
        name,
        dtype=variable.dtype,
        # Which TensorFlow may have otherwise, from when the variable was made.
        trainable=getattr(variable.value, "trainable", variable.trainable),
        autocast=variable._autocast,  # said to `add_weight`, and nowhere else to be read
        aggregation=variable.aggregation,
    )
    copy.trainable = variable.trainable
    for wish in _WISHES:
        if not hasattr(layer, f"{name}_{wish}"):
            setattr(copy, wish, getattr(variable, wish))
    return copy


def variable_of(layer: keras.Layer, value: np.ndarray, name: str, **options: Any) -> Any:
    """Makes a variable as `layer` would: named and regularised like one of its own."""
    with layer._open_name_scope():  # names tell owners from aliases
        variable = keras.Variable(value, name=name, **options)
    for wish in _WISHES:
        setattr(variable, wish, getattr(layer, f"{name}_{wish}", None))
    return variable


def restore_layer(layer: Any, saved: LayerState, named: dict[str, Any]) -> None:
    """Names, flags and lists the variables of `layer` as they were when saved.

    Args:
        layer: The layer.
        saved: Its state when saved.
        named: Its variables by attribute, those in no attribute included.
    """
    layer.name = saved.name
    layer._path = saved.path  # there is no public way to say that it was built elsewhere
    # Not by its setter, which would flag all variables and sub-layers too.
    layer._trainable = saved.trainable
    lists: dict[str, list[Any]] = {tracked: [] for tracked in TRACKED}
    for held in saved.variables:
        variable = named.get(held.attribute)
        if variable is not None and not isinstance(variable, TransposedView):
            variable._path = held.path  # there is no public way to rename a variable
            variable.trainable = held.trainable
            lists[TRACKED[0] if held.listed_trainable else TRACKED[1]].append(variable)
    for tracked, variables in lists.items():
        getattr(layer, tracked)[:] = variables
        layer._tracker.stored_ids[tracked.removeprefix("_")] = {id(v) for v in variables}
    track_parameters(layer)
