"""Write how the layers of a functional model are called as Keras 3 writes it.

A call is a list of tensors, each of which is told by the call of the layer that made it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

# Layers that Keras 2 gave their first states as further inputs.
_WITH_STATES = {"RNN", "SimpleRNN", "LSTM", "GRU", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"}
_WITH_STATES |= {"Bidirectional"}


def number_anew(config: dict[str, Any]) -> None:
    """Numbers the calls in a config of Keras 3 so that each of them exists.

    Keras 3.0 counted the calls of a layer outside of the model too.
    """
    for part in _leaves(config):
        if _is_graph({"config": part}):
            for references in _beyond(part):
                _rank(references)


def _beyond(model: Mapping[str, Any]) -> list[list[list[Any]]]:
    """Lists the references to each layer of a model that has fewer calls than they say."""
    given = model.get("layers")
    layers = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    calls = {}
    for layer in layers:
        name, nodes = layer.get("name"), layer.get("inbound_nodes")
        if isinstance(name, str) and isinstance(nodes, list) and not _is_graph(layer):
            calls[name] = max(len(nodes), 1)
    references: dict[str, list[list[Any]]] = {name: [] for name in calls}
    for held in (*(layer.get("inbound_nodes") for layer in layers), model.get("output_layers")):
        for one in _leaves(held):
            if _is_reference(one, calls):
                references[one[0]].append(one)
    return [held for name, held in references.items() if any(one[1] >= calls[name] for one in held)]


def _rank(references: list[list[Any]]) -> None:
    """Numbers calls without gaps."""
    rank = {number: n for n, number in enumerate(sorted({one[1] for one in references}))}
    for one in references:
        one[1] = rank[one[1]]


def calls(config: Mapping[str, Any]) -> dict[str, int]:
    """Counts the calls of each layer of a model, and of those in it, by the names that lead to it.

    Args:
        config: The config as Keras 3 writes it.
    """
    found: dict[str, int] = {}
    models = [("", config)]
    for path, model in models:  # one that is in another goes to the end
        held = model.get("config")
        given = held.get("layers") if isinstance(held, dict) else None
        for layer in given if isinstance(given, list) else ():
            inner = layer.get("config") if isinstance(layer, dict) else None
            if isinstance(inner, dict):
                name = f"{path}/{inner.get('name')}".lstrip("/")
                nodes = layer.get("inbound_nodes")
                found[name] = len(nodes) if isinstance(nodes, list) else 0
                models.append((name, layer))
    return found


class Graph:
    """Translates how the layers of a functional model are called.

    Keras 2 numbered a layer's calls also outside of the model, and the making of a nested model as
    one of its own. Keras 3 numbers those in the model, and in `output_layers` a making as well.
    """

    def __init__(self, layers: list[dict[str, Any]], of_keras_3: bool):
        self._names = {layer["name"] for layer in layers if isinstance(layer["name"], str)}
        self._models = self._names & {str(layer["name"]) for layer in layers if _is_graph(layer)}
        self._of_keras_3 = of_keras_3
        # All that refers to a call, by the name of the layer.
        self._references: dict[str, list[list[Any]]] = {name: [] for name in self._names}

    def calls(self, layer: Mapping[str, Any], nodes: list[Any]) -> list[Any]:
        """Translates the calls of a layer."""
        if self._of_keras_3 or any(isinstance(node, dict) and "args" in node for node in nodes):
            for one in _leaves(nodes):
                if self._is_reference(one):
                    self._references[one[0]].append(one)
            return nodes
        return [self._call(str(layer["class_name"]), node) for node in nodes]

    def ends(self, given: Any) -> Any:
        """Translates the inputs or outputs of the model."""
        # Keras 2 made no difference between one and a list of one.
        if isinstance(given, list) and len(given) == 1 and not self._of_keras_3:
            given = given[0]
        if self._is_reference(given):
            found = list(given[:3])
            if self._of_keras_3 and found[0] in self._models:
                found[1] = max(found[1] - 1, 0)
            self._references[found[0]].append(found)
            return found
        return _mapped(given, self.ends)

    def number_calls(self, ends: Mapping[str, Any]) -> None:
        """Numbers the calls of each layer anew, once all are known."""
        for references in self._references.values():
            _rank(references)
        for one in _leaves(ends):
            if self._is_reference(one) and one[0] in self._models:
                one[1] += 1

    def _call(self, class_name: str, node: Any) -> dict[str, Any]:
        kwargs: dict[str, Any] = {}
        inputs = self._inputs(node, kwargs)
        if isinstance(inputs, list) and len(inputs) == 1:
            inputs = inputs[0]
        if isinstance(inputs, list) and class_name in _WITH_STATES:
            inputs, *kwargs["initial_state"] = inputs
        return {"args": [inputs], "kwargs": kwargs}

    def _inputs(self, given: Any, kwargs: dict[str, Any]) -> Any:
        """Translates the inputs of a call, and adds what else it was given to `kwargs`."""
        if isinstance(given, list) and len(given) > 2 and given[0] == "_CONSTANT_VALUE":
            return given[2]
        if not self._is_reference(given):
            return _mapped(given, lambda one: self._inputs(one, kwargs))
        if len(given) > 3 and isinstance(given[3], dict):
            # What is unset may be unknown to Keras 3.
            kwargs |= {k: self._argument(v) for k, v in given[3].items() if v is not None}
        return self._tensor(given)

    def _argument(self, given: Any) -> Any:
        is_tensor = self._is_reference(given)
        return self._tensor(given) if is_tensor else _mapped(given, self._argument)

    def _tensor(self, reference: list[Any]) -> dict[str, Any]:
        """Describes the output of a call. (Keras reads neither shape nor type of it.)"""
        history = list(reference[:3])
        self._references[history[0]].append(history)
        about = {"shape": [], "dtype": "float32", "keras_history": history}
        return {"class_name": "__keras_tensor__", "config": about}

    def _is_reference(self, given: Any) -> bool:
        return _is_reference(given, self._names)


def _is_reference(given: Any, names: Collection[str]) -> bool:
    """Whether this is the name of a layer, the number of its call, and that of an output."""
    return (
        isinstance(given, list)
        and len(given) > 2
        and isinstance(given[0], str)
        and given[0] in names
        and all(isinstance(number, int) for number in given[1:3])
    )


def _mapped(given: Any, translate: Callable[[Any], Any]) -> Any:
    """Translates what is in a list or a dict; anything else is returned as it is."""
    if isinstance(given, list):
        return [translate(one) for one in given]
    if isinstance(given, dict):
        return {key: translate(one) for key, one in given.items()}
    return given


def _leaves(given: Any) -> Iterator[Any]:
    """Yields all lists and what is in them."""
    if isinstance(given, dict | list):
        yield given
        for one in given.values() if isinstance(given, dict) else given:
            yield from _leaves(one)


def _is_graph(layer: Mapping[str, Any]) -> bool:
    config = layer.get("config")
    return isinstance(config, dict) and "input_layers" in config
