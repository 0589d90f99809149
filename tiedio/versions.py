"""Read configs that a newer Keras wrote.

A new version adds arguments, and writes them also where they are not used. What is `None`,
and unknown to the class in this version, meant nothing there.
"""

import functools
import inspect
import sys
from typing import Any

import keras


def without_unknown(config: Any) -> Any:
    """Copies a config without the unused arguments that classes of this Keras do not know."""
    if isinstance(config, (list, tuple)):
        return [without_unknown(item) for item in config]
    if not isinstance(config, dict):
        return config
    copied = {key: without_unknown(value) for key, value in config.items()}
    arguments = copied.get("config")
    known = _arguments_of(copied.get("module"), copied.get("class_name"))
    if known and isinstance(arguments, dict):
        copied["config"] = {
            name: value for name, value in arguments.items() if value is not None or name in known
        }
    return copied


def _arguments_of(module: Any, name: Any) -> frozenset[str]:
    """Names what a class of Keras can be made with; none if it is no such class."""
    if not (isinstance(module, str) and isinstance(name, str)):
        return frozenset()
    return _known_arguments(module, name) if module.split(".")[0] == "keras" else frozenset()


@functools.cache
def _known_arguments(module: str, name: str) -> frozenset[str]:
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
