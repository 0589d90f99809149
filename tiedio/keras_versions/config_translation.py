"""Write the config of a model that an older Keras saved as Keras 3 would write it.

What was called otherwise is in the tables of `renames`, and goes there. Here is what is not a
name: how objects are described, and how a model was compiled. What
may not change: nothing is imported, no config makes it raise, and whatever would load as
something else than what was saved is named in `Translated.untranslated`.
"""

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tiedio.keras_versions import graph_calls, lambdas, renames
from tiedio.keras_versions.graph_calls import Graph
from tiedio.keras_versions.keras_version import KerasVersion
from tiedio.keras_versions.lambdas import Code
from tiedio.keras_versions.public_names import with_public_names
from tiedio.keras_versions.renames import LAYERS, LOSSES, METRICS, OPTIMIZERS, described

_FUNCTIONAL = "keras.src.models.functional"
_SCHEDULES = "keras.optimizers.schedules"
# Values under these keys belong to one module, whichever class has them.
_ROLES = {
    "initializer": "keras.initializers",
    "regularizer": "keras.regularizers",
    "constraint": "keras.constraints",
    "optimizer": OPTIMIZERS,
    "rate": _SCHEDULES,
    "loss": LOSSES,
    "metrics": METRICS,
}
# How `compile` was called, as far as Keras 3 takes it too. (Unset ones are left out.)
_COMPILED = ("loss", "metrics", "weighted_metrics", "loss_weights")
HOW_IT_RUNS = ("run_eagerly", "steps_per_execution", "jit_compile")


@dataclasses.dataclass(frozen=True)
class Translated:
    """A config as Keras 3 writes it.

    Attributes:
        config: As in the `config.json` of a `.keras` file.
        notes: Notes for whoever loads it.
        untranslated: Parts that Keras 3 cannot load, or would load as something else.
        code: Functions that are there as code, which few versions of Python run.
        lost: Those of the notes that say what training does not go on with.
        unused: Names that functions were given for, and that have none.
    """

    config: dict[str, Any]
    notes: tuple[str, ...] = ()
    untranslated: tuple[str, ...] = ()
    code: tuple[Code, ...] = ()
    lost: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def translated(
    config: Mapping[str, Any],
    training_config: Mapping[str, Any] | None,
    keras_version: str,
    functions: Mapping[str, str] | None = None,
) -> Translated:
    """Translates the config of a model.

    Args:
        config: `model_config` of an HDF5 file, or `config.json` of a `.keras` file; empty if
            there is none.
        training_config: That of an HDF5 file, if it has one.
        keras_version: Of the Keras that wrote it; it may be empty.
        functions: Functions that take the place of others, as `lambdas.replace` has them.
    """
    model: dict[str, Any] = with_public_names(config)
    if not model:
        return Translated(model, unused=tuple(functions or ()))
    version = KerasVersion(keras_version or str(model.get("keras_version", "")))
    of_keras_3 = _is_of_keras_3(model, version)
    translation = _Translation(version, of_keras_3)
    notes, unused = lambdas.replace(model, functions or {})
    translation.notes += notes
    if of_keras_3 and "module" in model:
        graph_calls.number_anew(model)
    else:
        try:
            compiled = translation.of_compile(training_config or model.get("compile_config"))
            model = translation.of_object(model, LAYERS)
        except RecursionError:
            told = "The config is nested too deeply to be that of a model."
            return Translated(model, (), (told,))
        if compiled:
            model["compile_config"] = compiled
    return Translated(
        model,
        tuple(dict.fromkeys((*translation.notes, *translation.lost))),
        tuple(dict.fromkeys(translation.untranslated)),
        tuple(lambdas.found(model)),
        tuple(dict.fromkeys(translation.lost)),
        tuple(unused),
    )


def _is_of_keras_3(config: Mapping[str, Any], version: KerasVersion) -> bool:
    if version.numbers:
        return version.is_of_keras_3
    module = config.get("module")
    return isinstance(module, str) and re.match(r"keras(\.src\.models\b|$)", module) is not None


class _Translation:
    """Translates one config, and collects what there is to say of it."""

    def __init__(self, version: KerasVersion, of_keras_3: bool):
        self._of_keras_3 = of_keras_3
        self._version: tuple[int, ...] = version.numbers or (2, 15)
        self._is_multi_backend = version.is_multi_backend
        self.notes: list[str] = []
        self.lost: list[str] = []
        self.untranslated: list[str] = []

    def of_compile(self, given: Any) -> dict[str, Any] | None:
        """Translates how a model was compiled; `None` if it cannot be compiled so."""
        if not isinstance(given, dict):
            return None
        optimizer = given.get("optimizer_config") or given.get("optimizer")
        name = optimizer.get("class_name") if isinstance(optimizer, dict) else optimizer
        if not isinstance(name, str) or name in ("TFOptimizer", "OptimizerV2"):
            self.lost.append(f"It is not compiled: Keras 3 has no optimizer `{name}`. Compile it.")
            return None
        compiled = {key: given.get(key) for key in _COMPILED}
        compiled["optimizer"] = self._value(optimizer, "optimizer")
        compiled["loss"] = self._functions(compiled["loss"], LOSSES)
        for key in ("metrics", "weighted_metrics"):
            metrics = self._functions(compiled[key], METRICS)
            # Keras 2 wrote a list for each output also where there is but one.
            if isinstance(metrics, list) and len(metrics) == 1 and isinstance(metrics[0], list):
                metrics = metrics[0]
            compiled[key] = metrics
        runs = {key: given[key] for key in HOW_IT_RUNS if given.get(key) is not None}
        return {**compiled, **runs}

    def _functions(self, given: Any, role: str) -> Any:
        """Translates losses or metrics, in whatever containers."""
        if isinstance(given, list):
            return [self._functions(one, role) for one in given]
        if isinstance(given, dict):
            if _is_function(given):
                return self._functions(given["config"], role)
            if "class_name" in given:
                return self.of_object(given, role)
            return {name: self._functions(one, role) for name, one in given.items()}
        if role == LOSSES or not isinstance(given, str):
            return _function(given)
        # Keras 3 reads short names of metrics, and logs call them so.
        return given if len(given) < 5 else renames.METRIC_FUNCTIONS.get(given, given)

    def _value(self, given: Any, key: str) -> Any:
        """Translates what stands under a key of a config."""
        if isinstance(given, list):
            return [self._value(one, key) for one in given]
        if isinstance(given, str) and key.endswith("activation"):
            return self._activation(given)
        if not isinstance(given, dict):
            return given
        if set(given) == {"type", "value"} and given["type"] == "ndarray":
            return given["value"]  # as tf.keras wrote arrays
        if key.endswith("activation") and _is_function(given):
            return self._activation(given["config"])
        if key == "dtype":
            return _dtype(given)
        if _is_function(given):
            return given
        if isinstance(given.get("class_name"), str) and "config" in given:
            return self.of_object(given, _ROLES.get(key.rpartition("_")[2]))
        return {name: self._value(one, name) for name, one in given.items()}

    def _activation(self, name: Any) -> Any:
        if name == "hard_sigmoid" and not self._of_keras_3:
            self.notes.append(
                "`hard_sigmoid` of Keras 2, which is another function than that of Keras 3, is "
                "written as two layers."
            )
            return copy.deepcopy(renames.HARD_SIGMOID)
        return _function(name)

    def of_object(self, given: Mapping[str, Any], role: str | None) -> dict[str, Any]:
        """Translates an object; `role` is its module, if only one is possible."""
        class_name, config = given.get("class_name"), given.get("config")
        if not isinstance(class_name, str) or class_name.startswith("__"):
            return dict(given)
        name = class_name.removeprefix("Custom>")
        kept = {
            key: value
            for key, value in given.items()
            if key not in ("module", "class_name", "config", "registered_name")
            and key not in ("build_config", "compile_config", "keras_version", "backend")
        }
        if name in ("Model", "Functional") and isinstance(config, dict) and "layers" in config:
            return described(_FUNCTIONAL, "Functional", self._graph(config), "Functional") | kept
        if name == "Sequential":
            return described("keras", name, self._sequence(config)) | kept
        arguments: dict[str, Any] = {}
        if not self._of_keras_3:
            name, arguments = renames.CLASSES.get(name, (name, arguments))
        module = self._module(name, role)
        if not isinstance(config, dict):
            config = {}
        if module is None:
            return self._unknown(given, config) | kept
        if module == LAYERS and name == "Lambda":
            config = self._function_of_lambda(config)
        config = {key: self._value(value, key) for key, value in config.items()} | arguments
        if not self._of_keras_3:
            self._rename(module, name, config)
        return described(module, name, config) | kept

    def _module(self, name: str, role: str | None) -> str | None:
        """Returns the module of Keras 3 that has a class; `None` if it is someone's own."""
        if self._version < renames.SINCE.get(name, (0,)) or (
            self._is_multi_backend and name in renames.SINCE
        ):
            return None
        modules = [role] if role else renames.BUILT_IN
        return next((one for one in modules if name in renames.BUILT_IN.get(one, ())), None)

    def _unknown(self, given: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Any]:
        """Describes an object of a class that Keras 3 does not have."""
        class_name = str(given["class_name"])
        layer, name = config.get("name"), class_name.rpartition(">")[2]
        if why := renames.WITHOUT_EQUAL.get(class_name):
            self.untranslated.append(f"Layer `{layer}` is a {class_name}: {why}.")
        else:
            self.notes.append(f"`{class_name}` is not of Keras: give it as `custom_objects`.")
        found = {key: self._value(value, key) for key, value in config.items()}
        if "layers" in config and "input_layers" in config:
            found |= self._graph(config)
        registered = given.get("registered_name")
        registered = registered if isinstance(registered, str) else class_name
        built = {"build_config": given["build_config"]} if "build_config" in given else {}
        return described(given.get("module"), name, found, registered) | built

    def _rename(self, module: str, name: str, config: dict[str, Any]) -> None:
        """Applies the tables of renames to the config of an object."""
        label = f"`{config.get('name')}`"
        for row in renames.ARGUMENTS:
            if row.role == module and row.old in config and name in (row.classes or (name,)):
                value = config.pop(row.old)
                if row.new:
                    config.setdefault(row.new, value)
                elif row.harmless is not None and value not in row.harmless:
                    lost = self.untranslated if module == LAYERS else self.lost
                    lost.append(f"{label} ({name}) has `{row.old}={value!r}`: {row.why}.")
        for row in renames.VALUES:
            if row.role == module and name in (row.classes or (name,)):
                value = config.get(row.argument, renames.ABSENT)
                if value is row.old or (isinstance(value, str) and value == row.old):
                    config[row.argument] = row.new
        if module == OPTIMIZERS:
            self._decay(config)
        if name == "MeanMetricWrapper":
            config["fn"] = _public_function(config.get("fn"))
        elif module in (LOSSES, METRICS):
            config.pop("fn", None)  # told by the class
        if module == LAYERS:
            self._adjust_layer(name, config)

    def _adjust_layer(self, name: str, config: dict[str, Any]) -> None:
        axis = config.get("axis")
        if name == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
            config["axis"] = axis[0]
        method, how = config.get("interpolation", "nearest"), ""
        if self._is_multi_backend and method != "nearest":
            how = "between the corners of pixels, and Keras 3 between their centers"
        elif method in ("gaussian", "mitchellcubic"):
            how = f"by `{method}`, which Keras 3 does not have"
        if name == "UpSampling2D" and how:
            layer = f"`{config.get('name')}` ({name})"
            self.untranslated.append(f"{layer} interpolates {how}: use a layer of your own.")

    def _decay(self, config: dict[str, Any]) -> None:
        """Writes the decay of a learning rate as the schedule that it is."""
        decay, rate = config.pop("decay", None), config.get("learning_rate")
        if not isinstance(decay, int | float) or not decay:
            return
        if not isinstance(rate, int | float):
            self.lost.append("The optimizer has a `decay`, which Keras 3 does not know.")
            return
        schedule = {"initial_learning_rate": rate, "decay_steps": 1, "decay_rate": decay}
        config["learning_rate"] = described(_SCHEDULES, "InverseTimeDecay", schedule)

    def _function_of_lambda(self, config: dict[str, Any]) -> dict[str, Any]:
        """Describes the functions of a Lambda layer."""
        found = {
            key: value
            for key, value in config.items()
            if not re.fullmatch(r"module|(function|output_shape)_(type|module)", key)
        }
        for key in ("function", "output_shape", "mask"):
            value = found.get(key)
            if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
                code = dict(zip(("code", "defaults", "closure"), value, strict=True))
                found[key] = {"class_name": "__lambda__", "config": code}
            elif isinstance(value, str) and config.get(f"{key}_type") == "function":
                found[key] = {"class_name": "function", "config": value, "registered_name": value}
                self.notes.append(f"`{value}` is not of Keras: give it as `custom_objects`.")
        return found

    def _sequence(self, config: Any) -> dict[str, Any]:
        """Translates what a Sequential consists of."""
        config = {"layers": config} if isinstance(config, list) else config
        found = dict(config) if isinstance(config, dict) else {}
        given = found.get("layers")
        layers = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
        found.setdefault("name", "sequential")
        found["layers"] = [*self._input(layers), *(self.of_object(one, LAYERS) for one in layers)]
        return {key: _dtype(one) if key == "dtype" else one for key, one in found.items()}

    def _input(self, layers: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields the input layer of a Sequential whose first layer says what it takes."""
        config = (layers[0].get("config") if layers else None) or {}
        shape = config.get("batch_input_shape") if isinstance(config, dict) else None
        if isinstance(shape, list) and layers[0].get("class_name") != "InputLayer":
            dtype = config.get("dtype")
            found = {
                "batch_shape": shape,
                "dtype": dtype if isinstance(dtype, str) else "float32",
                "name": f"{config.get('name')}_input",
            }
            yield described(LAYERS, "InputLayer", found)

    def _graph(self, config: dict[str, Any]) -> dict[str, Any]:
        """Translates what a functional model consists of."""
        given = config["layers"] if isinstance(config["layers"], list) else []
        layers = [self.of_object(one, LAYERS) for one in given if isinstance(one, dict)]
        for layer in layers:
            inner = layer.get("config")
            layer.setdefault("name", inner.get("name") if isinstance(inner, dict) else None)
        graph = Graph(layers, self._of_keras_3)
        for layer in layers:
            nodes = layer.get("inbound_nodes")
            layer["inbound_nodes"] = graph.calls(layer, nodes if isinstance(nodes, list) else [])
        found = {key: config[key] for key in ("name", "trainable") if key in config}
        ends = {key: graph.ends(config.get(key)) for key in ("input_layers", "output_layers")}
        graph.number_calls(ends)
        return {**found, "layers": layers, **ends}


def _is_function(given: Mapping[str, Any]) -> bool:
    return given.get("class_name") == "function" and isinstance(given.get("config"), str)


def _function(name: Any) -> Any:
    return renames.FUNCTIONS.get(name, name) if isinstance(name, str) else name


def _public_function(name: Any) -> Any:
    """Describes a function that metrics are means of."""
    if not isinstance(name, str):
        return name
    found = renames.FUNCTIONS.get(name, name)
    return described(METRICS, "function", found, found)


def _dtype(given: Any) -> Any:
    """Describes a dtype policy, which Keras 2 called otherwise in each of its versions."""
    config = given.get("config") if isinstance(given, dict) else None
    name = config.get("name") if isinstance(config, dict) else None
    if not isinstance(name, str) or not str(given.get("class_name")).startswith("Policy"):
        return given
    if name.startswith("_infer"):
        return "float32"
    return described("keras", "DTypePolicy", {"name": name})
