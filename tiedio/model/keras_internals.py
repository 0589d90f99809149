"""The private names of Keras that tiedio uses, each with its reason.

Nothing else imports `keras.src`. `tests/model/test_keras_internals.py` says which name broke
when a Keras version moves it.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

# Keras' account of the variables that wait for a value: one that is left in it would be
# given a random one at the next chance.
from keras.src.backend.common import global_state

# The configs of Keras 2: there is no public way to make them, nor a model of one.
from keras.src.legacy.saving import json_utils as json_utils
from keras.src.legacy.saving import saving_utils as saving_utils
from keras.src.legacy.saving.saving_options import keras_option_scope as keras_option_scope

# What `clone_model` calls, whoever imported that by name: `patching` replaces it there.
from keras.src.models import cloning as cloning

# A graph of layers keeps its order and its nodes by the layers' identity: it is drawn anew.
from keras.src.ops.function import map_graph as map_graph

# All that Keras saves and loads in public goes through this module: `patching` replaces what it
# calls, and reaches so whoever imported its functions by name.
from keras.src.saving import saving_api as saving_api

# Objects that Keras' saving walks: layers, optimizers, metrics, losses.
from keras.src.saving.keras_saveable import KerasSaveable as KerasSaveable

# The attributes it does not visit, their order, and how it names the members of lists
# (`walk`): paths made from anything else would not be where stock Keras looks for them.
from keras.src.saving.saving_lib import _name_key
from keras.src.saving.saving_lib import get_attr_skipset as get_attr_skipset

# Re-exported for `saving`: a model is read and written inside these scopes.
from keras.src.saving.serialization_lib import ObjectSharingScope as ObjectSharingScope
from keras.src.saving.serialization_lib import SafeModeScope as SafeModeScope
from keras.src.saving.serialization_lib import in_safe_mode
from keras.src.utils.naming import to_snake_case as to_snake_case

from tiedio.model.views import base

name_key = _name_key

# The two lists in which a layer tracks its variables (there is no public way
# to put another variable into a given place of them).
TRACKED = ("_trainable_variables", "_non_trainable_variables")

# Attributes that mention a variable without being a name for it: the lists
# above, that of seed generators, and TensorFlow's own account of attributes.
BOOKKEEPING = {
    *TRACKED,
    "_seed_generators",
    "_self_unconditional_checkpoint_dependencies",
    "_self_unconditional_deferred_dependencies",
    "_self_unconditional_dependency_names",
}


def custom_object_scope(custom_objects: Mapping[str, Any] | None) -> Any:
    """Opens a scope of custom objects; Keras' own would hide those of the scope around it."""
    around = global_state.get_global_attribute("custom_objects_scope_dict") or {}
    return keras.saving.CustomObjectScope({**around, **(custom_objects or {})})


def safe_mode_scope(safe_mode: bool) -> Any:
    """Opens a scope of safe mode. As in Keras, one that is set already goes before.

    So does `keras.config.enable_unsafe_deserialization`, which sets it for good.
    """
    around = in_safe_mode()
    return SafeModeScope(safe_mode if around is None else around)


@contextlib.contextmanager
def scopes_as_before() -> Iterator[None]:
    """Leaves Keras' account of open scopes as it was, also where a signal ends what is inside.

    It may come between the opening of a scope and the `try` that closes it.
    """
    account = vars(global_state.GLOBAL_STATE_TRACKER)
    before = {key: held[:] if isinstance(held, list) else held for key, held in account.items()}
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):
            account.clear()
            account.update(before)
        raise


def global_seed_generator(make: bool) -> Any:
    """Returns the generator of what is drawn without a seed, which each thread has its own of.

    `None` if nothing was drawn so, and none is to be made.
    """
    name = "global_seed_generator"
    if make and global_state.get_global_attribute(name) is None:
        # Keras' own function would draw a seed, from Python's generator.
        global_state.set_global_attribute(name, keras.random.SeedGenerator(seed=0))
    return global_state.get_global_attribute(name)


def show_callbacks() -> None:
    """Lets lists of callbacks show themselves to those in them that have a `see_callbacks`.

    That is before training begins. Keras tells a callback of its model, and of no other callback.
    """
    kind: Any = keras.callbacks.CallbackList
    begin = kind.on_train_begin

    @functools.wraps(begin)
    def on_train_begin(self: Any, logs: Any = None) -> None:
        for callback in tuple(self.callbacks):
            if hasattr(callback, "see_callbacks"):
                callback.see_callbacks(self.callbacks)
        begin(self, logs)

    if not hasattr(begin, "shows_callbacks"):
        on_train_begin.__dict__["shows_callbacks"] = True
        kind.on_train_begin = on_train_begin


class _Made(list[Any]):
    def append(self, variable: Any) -> None:
        # TensorFlow takes the flag over with the first value, and never follows it.
        variable._trainable_when_made = variable.trainable
        super().append(variable)


class Uninitialized:
    """A scope that lists the variables made without values inside it."""

    _ACCOUNT = "uninitialized_variables"

    def __enter__(self) -> "Uninitialized":
        self.variables = _Made()
        self._others = global_state.get_global_attribute(self._ACCOUNT)
        global_state.set_global_attribute(self._ACCOUNT, self.variables)
        return self

    def __exit__(self, *exception: Any) -> None:
        global_state.set_global_attribute(self._ACCOUNT, self._others)


class Counted:
    """A scope that calls `made` with the shape and dtype of each variable, before it is made.

    Only those of this thread: Keras' class shows them while any thread is in such a scope.
    """

    _ACCOUNT = "tiedio_counted"
    _lock = threading.Lock()
    _open = 0
    _before: Any = None

    def __init__(self, made: Callable[[Any, str], None]):
        self._made = made

    def __enter__(self) -> "Counted":
        kind: Any = keras.Variable
        with self._lock:
            if not Counted._open:
                validate = kind._validate_shape

                def counted(variable: Any, shape: Any) -> Any:
                    made = global_state.get_global_attribute(self._ACCOUNT)
                    if made is not None:
                        made(shape, variable.dtype)
                    return validate(variable, shape)

                Counted._before = vars(kind).get("_validate_shape")
                kind._validate_shape = counted
            Counted._open += 1
        global_state.set_global_attribute(self._ACCOUNT, self._made)
        return self

    def __exit__(self, *exception: Any) -> None:
        global_state.set_global_attribute(self._ACCOUNT, None)
        kind: Any = keras.Variable
        with self._lock:
            Counted._open -= 1
            if not Counted._open:
                del kind._validate_shape
                if Counted._before is not None:
                    kind._validate_shape = Counted._before


def has_value(variable: Any) -> bool:
    """Whether a variable has a value yet; asked otherwise, it makes one up."""
    return base(variable)._value is not None  # a view would be computed for this


def exchange_initializer(variable: Any, initializer: Callable[..., Any]) -> Callable[..., Any]:
    """Sets what gives a variable its first value, once one is needed; returns what did so."""
    before, variable._initializer = variable._initializer, initializer
    return before


def initialize(variable: Any, initializer: Callable[..., Any] | None = None) -> None:
    """Gives a variable its first value, by another initializer than its own if there is one."""
    if initializer:
        exchange_initializer(variable, initializer)
    trainable = variable.trainable
    variable.trainable = vars(variable).pop("_trainable_when_made", trainable)
    variable._deferred_initialize()
    variable.trainable = trainable


def axis_order(variable: Any) -> tuple[int, ...] | None:
    """Returns the axes of a torch variable by stride, if they are not in their order.

    Matrices are multiplied in another way then, with other last bits.
    """
    value = variable._value
    if not hasattr(value, "stride") or value.is_contiguous():
        return None
    return tuple(sorted(range(value.ndim), key=value.stride().__getitem__, reverse=True))


def to_tensor(array: np.ndarray) -> Any:
    """Returns a tensor in the memory of `array`, where Keras would copy it."""
    # Another type to NumPy's side of DLPack, to torch, and to Keras on JAX.
    bfloat16 = array.dtype.name == "bfloat16"
    plain = array.view(np.int16) if bfloat16 else array
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            tensor = tf.experimental.dlpack.from_dlpack(plain.__dlpack__())
            return tf.bitcast(tensor, tf.bfloat16) if bfloat16 else tensor
        case "torch":
            import torch  # pyright: ignore[reportMissingImports]

            tensor = torch.from_numpy(plain)
            return tensor.view(torch.bfloat16) if bfloat16 else tensor
        case "jax" if bfloat16:
            import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

            return jnp.asarray(array, dtype=array.dtype)
    return array
