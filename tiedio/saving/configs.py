"""Turn a model into its config, and a config into a model."""

import collections
import contextlib
import functools
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from tiedio.errors import (
    SAME_CLASSES,
    CustomObjectsError,
    LoadError,
    NoModelError,
    TiedioError,
    first_line,
    listed,
)
from tiedio.keras_versions import lambdas
from tiedio.keras_versions.lambdas import Code
from tiedio.keras_versions.public_names import copied, parts, with_public_name
from tiedio.model import renewal
from tiedio.model.keras_internals import (
    ObjectSharingScope,
    custom_object_scope,
    safe_mode_scope,
    scopes_as_before,
)
from tiedio.saving import compiling
from tiedio.saving.deferral import Deferral

_log = logging.getLogger(__name__)

# How Keras says in a config that several layers are one object.
_MARK = "shared_object_id"

# What Keras says of names that it does not know.
_UNKNOWN = (
    "ould not locate",
    "Unknown layer",
    "Cannot deserialize object of type",
    "Could not interpret",
)

# Where Keras has the classes that it names in the layout of Keras 2.
_AREAS = (
    "constraints",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "regularizers",
)


def write(models: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the config of each model, and of how it was compiled."""
    with scopes_as_before(), ObjectSharingScope():
        written: list[Any] = list(map(keras.saving.serialize_keras_object, models))
    for model, config in zip(models, written, strict=True):
        compiled = config.get("compile_config") or {}
        # Saving to `.h5`, Keras takes the optimizer out of its own config of how it compiled.
        written_by = getattr(type(model), "get_compile_config", None)
        is_of_keras = written_by is keras.Model.get_compile_config
        if compiled.get("optimizer") or (compiled and is_of_keras and model.optimizer):
            # Not the one given to `compile`: Keras wraps that for loss scaling, and wraps it again
            # only where the policy in force is the same. In a scope of its own, as Keras would
            # mark what it meets a second time.
            with scopes_as_before(), ObjectSharingScope():
                optimizer = keras.saving.serialize_keras_object(model.optimizer)
            compiled["optimizer"] = optimizer
    for part in parts(written):
        part.update(with_public_name(part))
    _drop_marks([{"layers": written}])
    return written


def uncompiled(config: Any) -> Any:
    """Copies a config without how the model, and models in it, were compiled."""
    return copied(config, lambda part: {k: v for k, v in part.items() if k != "compile_config"})


@contextlib.contextmanager
def reading(
    custom_objects: Mapping[str, Any] | None, safe_mode: bool
) -> Iterator[contextlib.ExitStack]:
    """Opens the scopes in which Keras reads a config; yields what closes more of them."""
    with (
        scopes_as_before(),
        contextlib.ExitStack() as scopes,
        safe_mode_scope(safe_mode),
        custom_object_scope(custom_objects),
    ):
        yield scopes


class Config:
    """A config that was read from a file, within its scopes.

    Args:
        config: The config.
        path: The file, for messages.
        scopes: Closes the scope of shared objects, as from `reading`.

    Attributes:
        differences: The error for what the class of the model compiled it with instead, if any.
    """

    def __init__(self, config: dict[str, Any], path: str, scopes: contextlib.ExitStack):
        self.differences: list[LoadError] = []
        self._config = config
        self._path = path
        self._scopes = scopes

    @property
    def is_compiled(self) -> bool:
        """Whether the model was compiled."""
        return bool(self._config.get("compile_config"))

    def build(self, deferral: Deferral) -> keras.Model:
        """Builds the model, uncompiled."""

        def build() -> Any:
            # A second attempt shares nothing with the first.
            self._scopes.enter_context(ObjectSharingScope())
            config = _for_this_keras({**self._config, "compile_config": None})
            return keras.saving.deserialize_keras_object(config)

        with explained(self._config, self._path):
            model = deferral.build(build)
        check_model(model, self._path)
        return model

    def compile(self, model: keras.Model, deferral: Deferral) -> bool:
        """Compiles the model if it was, and its class lets us; its optimizer is left unbuilt."""
        if not self.is_compiled:
            return False
        with explained(self._config, self._path):
            config = _for_this_keras(self._config["compile_config"])
            if renewal.compiles_as_keras(model):
                model.compile(**keras.saving.deserialize_keras_object(config))
            else:
                _log.debug("built with initial values: its class compiles it")
                deferral.finish()  # it may build optimizers
                compiling.compile_by_its_class(model, config)
                self.differences = compiling.differences(model, config)
        return model.compiled


def check_model(model: Any, path: str, kind: type = keras.Layer) -> None:
    """Refuses what a config may be of and is no model."""
    if not isinstance(model, kind):
        raise NoModelError(
            f"`{path}` holds no model.\n"
            f"Expected: a model. Received: {type(model).__name__}.\n"
            "Load it with `keras.saving.load_model`."
        )


@contextlib.contextmanager
def explained(config: Any, path: str) -> Iterator[None]:
    """Turns what Keras says of a config that it cannot read into errors of tiedio."""
    if code := [one for one in lambdas.found(config) if not one.runs_in(sys.version_info[:2])]:
        raise _of_other_pythons(code, path)  # Keras would find out as it runs it, or crash
    try:
        yield
    except TiedioError:
        raise
    except Exception as error:  # a config may lead Keras anywhere
        unknown = any(words in str(error) for words in _UNKNOWN)
        missing = _unregistered(config) if unknown else set()
        if missing:
            names = sorted(name.replace("\n", " ") for name in missing)
            classes = {name: name.rpartition(">")[2] for name in names}
            objects = ", ".join(f'"{n}": {c}' for n, c in classes.items() if c.isidentifier())
            raise CustomObjectsError(
                f"`{path}` needs classes or functions that are not registered: "
                f"{listed(names)}.\n"
                "Expected: all of them in `custom_objects`. Received: not these.\n"
                "Import the module that registers them, pass "
                f"`custom_objects={{{objects}}}`, or register them with "
                "`keras.saving.register_keras_serializable`."
            ) from error
        if "safe_mode=False" in str(error) and (code := lambdas.found(config)):
            raise _unsafe(code, path) from error
        # Keras wraps the error of a layer once for each model around it, and shows configs.
        kind = type(error).__name__
        cause = str(error).rpartition("Exception encountered: ")[2].partition(" Full object")[0]
        raise LoadError(
            f"Cannot build the model of `{path}`: {first_line(Exception(cause or kind))}\n"
            f"Expected: a config that Keras {keras.__version__} reads. Received: {kind}.\n"
            f"{_advice(config, path)}"
        ) from error


def _advice(config: Any, path: str) -> str:
    if code := lambdas.found(config):
        told = "Code may lack what stood beside it. Put functions of your own in its place"
        return f"{told}: `{_replacing(code, path)}`."
    named = lambdas.named(config)
    check = f"Check the functions of {listed(named)}, or l" if named else "L"
    return f"{check}{SAME_CLASSES[1:]}"


def _of_other_pythons(code: Sequence[Code], path: str) -> LoadError:
    """The error for functions of a config that this Python does not run."""
    return LoadError(
        f"Cannot build the model of `{path}`: it holds the functions of "
        f"{listed(one.name for one in code)} as code.\n"
        f"Expected: code of Python {sys.version_info[0]}.{sys.version_info[1]}, or names. "
        f"Received: {lambdas.told(code)}.\n"
        f"Put functions of your own in its place: `{_replacing(code, path)}`."
    )


def _unsafe(code: Sequence[Code], path: str) -> LoadError:
    """The error for functions of a config that safe mode does not allow."""
    return LoadError(
        f"Cannot build the model of `{path}`: it holds the functions of "
        f"{listed(one.name for one in code)} as code, which carries a risk of arbitrary code "
        "execution.\n"
        f"Expected: names of functions. Received: {lambdas.told(code)}.\n"
        "Pass `safe_mode=False` if you trust the file, or put functions of your own in its place: "
        f"`{_replacing(code, path)}`."
    )


def _replacing(code: Sequence[Code], path: str) -> str:
    """The command that puts functions of a name in the place of code."""
    return f"tiedio migrate {path} NEW.keras {lambdas.options(one.name for one in code)}"


def _for_this_keras(config: dict[str, Any]) -> dict[str, Any]:
    """Copies a config from a file, as the Keras that is installed reads it."""
    made = copied(config, lambda part: _without_unknown(with_public_name(part)))
    _drop_marks(made)
    return made


def _drop_marks(config: Any) -> None:
    """Takes out Keras' marks of layers that several graphs share.

    A graph finds the calls of its layers by number: made one object by such a mark, a
    layer that was called in another graph before would answer with that call.
    """
    layers = [layer for part in parts(config) for layer in _graph_layers(part)]
    marked = collections.Counter(map(_mark, layers))
    for layer in layers:
        if marked[_mark(layer)] > 1:
            layer.pop(_MARK, None)


def _graph_layers(part: dict[str, Any]) -> list[dict[str, Any]]:
    layers = part.get("layers")
    return [one for one in layers if isinstance(one, dict)] if isinstance(layers, list) else []


def _mark(layer: dict[str, Any]) -> Any:
    mark = layer.get(_MARK)
    return mark if isinstance(mark, int) else None


def _unregistered(config: Any) -> set[str]:
    """Names the classes and functions in a config that Keras cannot find."""
    found = set()
    parts = [config]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        if not isinstance(part, dict):
            continue
        parts += part.values()
        name = part.get("class_name")
        if name == "function":
            try:  # only Keras knows all the modules in which it looks a function up
                keras.saving.deserialize_keras_object(part)
            except Exception:  # a config may lead Keras anywhere
                found.add(str(part.get("config")))
        elif name and not _is_of_keras(part, str(name)):
            registered = str(part.get("registered_name") or name)
            if keras.saving.get_registered_object(registered) is None:
                found.add(registered)
    return found


def _is_of_keras(part: dict[str, Any], name: str) -> bool:
    if "module" in part:
        return str(part["module"]).split(".")[0] == "keras"
    # The layout of Keras 2 does not say.
    return (
        name.startswith("__")
        or name == "Functional"
        or any(hasattr(getattr(keras, area), name) for area in _AREAS)
    )


def _without_unknown(part: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the unused arguments that a class of this Keras does not know."""
    arguments, module, name = (part.get(key) for key in ("config", "module", "class_name"))
    if not (isinstance(arguments, dict) and isinstance(module, str) and isinstance(name, str)):
        return part
    known = _known_arguments(module, name) if module.split(".")[0] == "keras" else None
    if not known:
        return part
    used = {key: value for key, value in arguments.items() if value is not None or key in known}
    return {**part, "config": used}


@functools.cache
def _known_arguments(module: str, name: str) -> frozenset[str]:
    """Names what a class of Keras can be made with; none if it is no such class."""
    # Only what is imported already: a file imports nothing.
    kind = getattr(sys.modules.get(module), name, None)
    if not (isinstance(kind, type) and kind.__module__.startswith("keras.")):
        return frozenset()
    if "from_config" in vars(kind) or issubclass(kind, keras.Model):
        return frozenset()  # it reads its config in a way of its own
    return frozenset(
        argument
        for one in kind.__mro__
        if "__init__" in vars(one)
        for argument in inspect.signature(one.__init__).parameters
    )
