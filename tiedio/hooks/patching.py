"""Route Keras' own saving and loading through tiedio, for code that is not yours.

The functions of Keras check their arguments, choose a format, and let another module do the work.
That module is replaced, where they look it up: so code that imported one of them by name is routed
too, and messages and prompts stay those of Keras.
"""

import contextlib
import contextvars
import functools
import inspect
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tiedio.errors import ModelNotBuiltError, NoModelError, SaveError
from tiedio.hooks import orbax
from tiedio.model.arguments import check_built
from tiedio.model.cloning import clone_by_config, clone_by_layers, config_of
from tiedio.model.keras_internals import KerasSaveable, cloning, saving_api
from tiedio.model.quantizing import keep_ties
from tiedio.model.several import Models
from tiedio.model.walk import walk
from tiedio.saving import backup, weights
from tiedio.saving.model import load_tied, save_tied

_Function = Callable[..., Any]

_lock = threading.Lock()
_undo = contextlib.ExitStack()  # gives Keras its own back
_uses: tuple["patch", ...] = ()  # what wants it replaced; others read it without the lock
# What this thread saves or loads with; `None` where it is not routed.
_here: contextvars.ContextVar[dict[str, Any] | None]
_here = contextvars.ContextVar("tiedio_routed", default=None)


class patch(contextlib.AbstractContextManager):  # noqa: N801 - it is called as a function
    """Lets Keras' own functions save and load tied variables, for code that is not yours.

    From the call on, `model.save`, `keras.saving.save_model` and `load_model`,
    `model.save_weights` and `load_weights` and the callbacks of Keras do what `save_tied`,
    `load_tied`, `save_tied_weights` and `load_tied_weights` do, in all threads, and also where they
    were imported by name before. `model.quantize` and `keras.models.clone_model` keep ties, as
    `quantize_tied` and `clone_tied` do, and so do pickles and copies by `copy.deepcopy`; such a
    pickle needs tiedio, but no `patch`, where it is loaded. In a `with` statement until its
    end, otherwise until `unpatch`; several may hold at once. Arguments, prompts and messages
    about paths stay those of Keras.

    What tiedio does not save goes on to Keras, with its checks and without ties: models without
    variables, weights of models that are not built, layers and optimizers that are not in a
    model, and models without ties that would not come back as they are. Where weights are
    loaded from Orbax checkpoints, `model.load_weights` is routed, and what was imported is not.

    Raises:
        TiedioError: From Keras' functions, where those of tiedio raise it.

    Example:

    >>> import keras, tiedio
    >>> encoder, decoder = keras.layers.Dense(4), keras.layers.Dense(4)
    >>> model = keras.Sequential([keras.Input((4,)), encoder, decoder])
    >>> _ = tiedio.tie(decoder, to=encoder)
    >>> with tiedio.patch():
    ...     model.save("model.keras")
    ...     loaded = keras.saving.load_model("model.keras")
    >>> loaded.layers[0].kernel is loaded.layers[1].kernel
    True
    """

    everywhere = True

    def __init__(self):
        self._begin()

    def _begin(self) -> None:
        global _uses
        with _lock:
            if not _uses:
                for holder, name, replacement in _replacements():
                    _undo.callback(setattr, holder, name, getattr(holder, name))
                    setattr(holder, name, replacement)
            if self not in _uses:
                _uses = (*_uses, self)

    def __enter__(self) -> Any:
        self._begin()  # if it has ended before
        return self

    def __exit__(self, *exception: Any) -> None:
        global _uses
        with _lock:
            _uses = tuple(use for use in _uses if use is not self)
            if not _uses:
                _undo.close()


def unpatch() -> None:
    """Gives Keras its own functions back, however often it was patched.

    Example:

    >>> import keras, tiedio
    >>> save = keras.Model.save
    >>> _ = tiedio.patch()
    >>> tiedio.unpatch()
    >>> keras.Model.save is save
    True
    """
    for use in _uses:
        if use.everywhere:
            use.__exit__()


class routed(patch):  # noqa: N801
    """Routes what this thread saves and loads, and no other.

    Args:
        callback: What saves and loads its model there, if it does so with other models instead.
        models: These models.
        options: Further ones for what the callback calls: those of `save_tied`, of
            `load_tied_weights`, or of `save_backup`.
    """

    everywhere = False

    def __init__(self, callback: Any = None, models: Models | None = None, **options: Any):
        if models:
            check_built(models, "training")
        self._callback, self._models, self._options = callback, models, options
        super().__init__()

    def __enter__(self) -> Any:
        super().__enter__()
        self._token = _here.set(self._options)
        if self._models:
            _ = self._callback.model  # which on JAX takes its state back from `fit`
            self._trained, self._callback._model = self._callback._model, self._models
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._models:
            self._callback._model = self._trained
        _here.reset(self._token)
        super().__exit__(*exception)


def is_patched() -> bool:
    """Whether `patch` is in force."""
    return any(use.everywhere for use in _uses)


def _is_routed() -> bool:
    return _here.get() is not None or is_patched()


def _option(name: str) -> Any:
    return (_here.get() or {}).get(name)


class _Overlay:
    """A module of Keras, with other functions in the place of some."""

    def __init__(self, module: Any, **functions: _Function):
        self._module = module
        for name, function in functions.items():
            setattr(self, name, _either(function, getattr(module, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _either(ours: _Function, stock: _Function) -> _Function:
    """Calls `ours` where calls are routed, unless it is about something that only Keras saves."""

    @functools.wraps(stock)
    def either(*args: Any, **kwargs: Any) -> Any:
        saved = [arg for arg in args if isinstance(arg, KerasSaveable)]
        if _is_routed() and all(map(_is_saved, saved)):
            try:
                return ours(*args, **kwargs)
            except (NoModelError, ModelNotBuiltError):  # a file of an optimizer, say
                pass
            except SaveError:  # what could not resume; Keras saves it all the same, but untied
                # What ties cost there is told by a warning; and only ours saves a backup's run, or
                # in the background.
                if _option("run") or _option("background") or any(map(_shares, saved)):
                    return ours(*args, **kwargs, strict=False)
        return stock(*args, **kwargs)

    return either


class _Quantize:
    """The method `quantize` of models, in front of that which Keras gives each one by itself.

    Python asks a descriptor that can be set before it looks at what an object itself has.
    """

    def __init__(self, stock: _Function):
        self._stock = stock

    def __set__(self, model: Any, quantize: _Function) -> None:
        vars(model)["quantize"] = quantize

    def __get__(self, model: Any, kind: type) -> Any:
        if model is None:
            return self._stock
        stock = self._stock.__get__(model)
        if "quantize" not in vars(model):  # Keras is about to make it
            return stock
        # A class with a method of its own comes here by `super()`.
        is_inherited = inspect.getattr_static(kind, "quantize") is self
        quantize = vars(model)["quantize"] if is_inherited else stock
        return functools.partial(_quantize, quantize, model) if _is_routed() else quantize


def _quantize(quantize: _Function, model: Any, *args: Any, **kwargs: Any) -> None:
    keep_ties(model, functools.partial(quantize, *args, **kwargs))


def _is_saved(model: Any) -> bool:
    """Whether it is a model with variables: of one that is never called its parts may have some."""
    return isinstance(model, keras.Model) and bool(model.built or model.weights)


def _shares(model: Any) -> bool:
    found = walk(model)
    return bool(found.ties or found.shared_layers or found.models)


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    """Lists what is replaced in Keras: where, its name, and by what."""
    containers = _Overlay(
        saving_api.saving_lib,
        save_model=_save_model,
        load_model=functools.partial(load_tied, strict=False),
        save_weights_only=_save_weights,
        load_weights_only=_load_weights,
    )
    old_layout = _Overlay(
        saving_api.legacy_h5_format,
        save_model_to_hdf5=_save_hdf5,
        load_model_from_hdf5=functools.partial(load_tied, strict=False),
        load_weights_from_hdf5_group=_load_hdf5,
        load_weights_from_hdf5_group_by_name=functools.partial(_load_hdf5, by_name=True),
    )
    yield saving_api, "saving_lib", containers
    yield saving_api, "legacy_h5_format", old_layout
    yield keras.Model, "quantize", _Quantize(keras.Model.quantize)
    for name in ("_clone_sequential_model", "_clone_functional_model"):
        stock = getattr(cloning, name)
        yield cloning, name, _either(functools.partial(clone_by_layers, stock), stock)
    configs = cloning.serialization_lib
    by_config = _Overlay(
        configs,
        serialize_keras_object=functools.partial(config_of, configs.serialize_keras_object),
        deserialize_keras_object=functools.partial(
            clone_by_config, configs.deserialize_keras_object
        ),
    )
    yield cloning, "serialization_lib", by_config
    yield from _orbax_replacements()
    yield KerasSaveable, "__reduce__", _either(_reduce, KerasSaveable.__reduce__)


def _orbax_replacements() -> Iterator[tuple[Any, str, Any]]:
    kind: Any = getattr(keras.callbacks, "OrbaxCheckpoint", None)
    if kind is None:  # Keras before 3.14
        return
    save = kind._save_checkpoint
    recording = _either(orbax.recording, lambda model, callback: contextlib.nullcontext())

    @functools.wraps(save)
    def save_recorded(callback: Any, *args: Any, **kwargs: Any) -> Any:
        with recording(callback.model, callback):
            return save(callback, *args, **kwargs)

    yield kind, "_save_checkpoint", save_recorded
    load = saving_api._load_model_from_orbax_checkpoint
    ours = functools.partial(load_tied, strict=False)
    yield saving_api, "_load_model_from_orbax_checkpoint", _either(ours, load)
    # Where Keras loads weights, it does so itself in the middle of its own function.
    load_weights = saving_api.load_weights
    either = _either(_load_weights, load_weights)

    @functools.wraps(load_weights)
    def load_recorded(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        is_orbax = saving_api.is_orbax_checkpoint(filepath)
        return (either if is_orbax else load_weights)(model, filepath, *args, **kwargs)

    yield saving_api, "load_weights", load_recorded


def _save_model(*args: Any, **kwargs: Any) -> None:
    save_tied(*args, **kwargs, background=_option("background"))


def _save_weights(
    model: keras.Model,
    filepath: Any,
    max_shard_size: Any = None,
    objects_to_skip: Any = None,
    strict: bool = True,
) -> None:
    background = _option("background")
    if run := _option("run"):
        return backup.save_backup(model, filepath, run, strict=strict, background=background)
    weights.save_tied_weights(
        model,
        filepath,
        max_shard_size=max_shard_size,
        objects_to_skip=objects_to_skip,
        strict=strict,
        background=background,
    )


def _load_weights(*args: Any, **kwargs: Any) -> None:
    weights.load_tied_weights(*args, **kwargs, strict=False, random_state=_option("random_state"))


def _save_hdf5(
    model: keras.Model,
    filepath: Any,
    overwrite: bool = True,
    include_optimizer: bool = True,
    strict: bool = True,
) -> None:
    # Keras has asked at the prompt already.
    _save_model(model, filepath, include_optimizer=include_optimizer, strict=strict)


def _load_hdf5(
    file: Any, model: keras.Model, skip_mismatch: bool = False, by_name: bool = False
) -> None:
    weights.load_tied_weights(
        model, file.file.filename, skip_mismatch, by_name=by_name, strict=False
    )


def _reduce(model: keras.Model, strict: bool = True) -> tuple[_Function, tuple[Any, ...]]:
    """How a model is pickled, and deeply copied: as a file, which Keras would read without ties."""
    file = io.BytesIO()
    save_tied(model, file, strict=strict)
    safe_mode = False  # as in Keras: a pickle can run any code as it is
    return functools.partial(load_tied, strict=False), (file, None, True, safe_mode)
