"""The config of several models: that of one graph, which Keras opens without tiedio, and back.

In the graph each model is a layer that is called on inputs of its own. Some models cannot be in
one: such as are no graph themselves, or are called the same. Then `Models` is in the file, and
Keras needs tiedio to open it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tiedio.errors import LoadError, RecordError, listed
from tiedio.formats.content import Opened
from tiedio.keras_versions.layer_outline import configs_of
from tiedio.model.several import Models
from tiedio.saving import configs
from tiedio.saving.deferral import Deferral


def write(model: Any) -> dict[str, Any]:
    """Returns the config of a model, or of several, and of how each was compiled."""
    if not isinstance(model, Models):
        return configs.write([model])[0]
    written = configs.write(model.layers)
    names = [part.name for part in model.layers]
    if len({*names}) == len(names) and all(map(_is_graph, model.layers)):
        return _graph(model.layers, written)
    return _container(model.named(written))


def _is_graph(model: Any) -> bool:
    is_graph = isinstance(model, keras.Model) and model._obj_type() in ("Functional", "Sequential")
    return is_graph and bool(getattr(model, "inputs", None))


def _container(written: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "module": Models.__module__,
        "class_name": Models.__name__,
        "config": {"models": dict(written)},
        "registered_name": keras.saving.get_registered_name(Models),
    }


def _graph(models: Sequence[Any], written: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the config of a graph as Keras would write it: the models are not called for it."""
    inputs: list[keras.Layer] = []
    called, outputs = [], []
    for model, config in zip(models, written, strict=True):

        def made(tensor: Any, name: str = f"{model.name}_input") -> Any:
            layer = keras.layers.InputLayer(
                batch_shape=tensor.shape,
                dtype=tensor.dtype,
                sparse=tensor.sparse,
                name=f"{name}_{len(inputs)}",
            )
            inputs.append(layer)
            return layer.output

        is_graph = model._obj_type() == "Functional"
        taken = keras.tree.map_structure(made, model.input if is_graph else model.inputs[0])
        given = keras.saving.serialize_keras_object([taken])
        called.append({**_named(model, config), "inbound_nodes": [{"args": given, "kwargs": {}}]})
        # The first node of a graph is its own, from its inputs to its outputs.
        outputs += [[model.name, int(is_graph), i] for i, _ in enumerate(model.outputs)]
    held = [
        {**_named(layer, keras.saving.serialize_keras_object(layer)), "inbound_nodes": []}
        for layer in inputs
    ]
    graph = {
        "name": "models",
        "trainable": True,
        "layers": [*held, *called],
        "input_layers": [[layer.name, 0, 0] for layer in inputs],
        "output_layers": outputs,
    }
    kind = {"module": "keras", "class_name": "Model", "registered_name": None}
    return {**kind, "config": graph}


def _named(layer: Any, config: Any) -> dict[str, Any]:
    return {**config, "name": layer.name}


class ModelsConfig:
    """The configs of several models that were read from a file. `configs.Config` is its twin.

    Args:
        config: As from `write`.
        models: The inner_path of each model, by its name.
        path: The file, for messages.
        scopes: As for `configs.Config`.

    Raises:
        RecordError: If there are other models in the config.
    """

    def __init__(self, config: Any, models: Mapping[str, str], path: str, scopes: Any):
        self.differences: list[LoadError] = []
        self._models, self._path = models, path
        found = configs_of(config, models)
        uncompiled = {name: {**one, "compile_config": None} for name, one in found.items()}
        if found.keys() != {*models.values()}:
            raise RecordError(
                f"Cannot load {listed(models)} of `{path}`: its config is not theirs.\n"
                f"Expected: {len({*models.values()})} models. Received: {len(found)}.\n"
                "Load the file as it was saved."
            )
        self._all = configs.Config(_container(uncompiled), path, scopes)
        self._parts = {name: configs.Config(one, path, scopes) for name, one in found.items()}

    def build(self, deferral: Deferral) -> Models:
        """Builds the models, uncompiled."""
        built: Any = self._all.build(deferral)
        for model in built.layers:
            configs.check_model(model, self._path)
        return Models({name: built.models[path] for name, path in self._models.items()})

    def compile(self, model: Models, deferral: Deferral) -> bool:
        """Compiles each that was, and whose class lets us; whether none is left out."""
        compiled = []
        parts = {inner_path: model.models[name] for name, inner_path in self._models.items()}
        for inner_path, config in self._parts.items():
            if config.is_compiled:
                compiled.append(config.compile(parts[inner_path], deferral))
                self.differences += config.differences
        return bool(compiled) and all(compiled)


def as_saved(model: Any, saved: Mapping[str, str], source: Opened) -> Any:
    """Returns the models that were given in the order of a file; or the one, if it has one.

    Raises:
        LoadError: If the file has other models, by their names.
    """
    given = model.models if isinstance(model, Models) else {}
    if given.keys() == saved.keys():
        return Models({name: given[name] for name in saved}) if saved else model
    expected, received = (listed(names) if names else "one model" for names in (saved, given))
    advice = "Pass a dict of these models, by these names" if saved else "Pass one, without a name"
    if saved and source.config is not None:
        advice += "; `tiedio.load_tied` returns them, to use one"
    raise LoadError(
        f"Cannot load `{source.filepath}`, which does not hold what was passed.\n"
        f"Expected: {expected}. Received: {received}.\n"
        f"{advice}."
    )
