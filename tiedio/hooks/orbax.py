"""`keras.callbacks.OrbaxCheckpoint`, with the record beside what Keras gives Orbax to save."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tiedio.errors import MissingPackageError, SaveError, imported
from tiedio.model.arguments import check_model
from tiedio.record.ties import METADATA_KEY
from tiedio.saving import orbax
from tiedio.storage.locating import path_of


class _RecordingCheckpointer:
    """The checkpointer of a callback, which is given one part more to save."""

    def __init__(self, checkpointer: Any, record: Any):
        self._checkpointer = checkpointer
        self._record = record

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._checkpointer, name)
        return functools.partial(self._save, found) if name.startswith("save_") else found

    def _save(
        self, save: Callable[..., Any], step: int, parts: dict[str, Any], **options: Any
    ) -> Any:
        cause = None
        try:
            saved = save(step, {**parts, METADATA_KEY: self._record}, **options)
        except FileExistsError as error:  # of this step; of an earlier one Orbax says nothing
            saved, cause = None, error
        if saved is None or saved is False:
            raise SaveError(
                f"Orbax has not saved step {step}.\n"
                f"Expected: a step after those in the folder. Received: {step}, after "
                f"{getattr(self._checkpointer.latest, 'step', None)}.\n"
                "Save to another folder, or go on with `initial_epoch`."
            ) from cause
        return saved


def recording(
    model: keras.Model, callback: Any, strict: bool = True
) -> contextlib.AbstractContextManager[Any]:
    """Lets what a `keras.callbacks.OrbaxCheckpoint` saves, until the end, have the record.

    Raises:
        SaveError: As from `save_tied`; nothing is saved.
    """
    if isinstance(callback.checkpointer, _RecordingCheckpointer):
        return contextlib.nullcontext()
    check_model(model)
    return _recording(callback, orbax.addition(model, callback.save_weights_only, strict))


@contextlib.contextmanager
def _recording(callback: Any, record: Any) -> Iterator[None]:
    checkpointer = callback.checkpointer
    callback.checkpointer = _RecordingCheckpointer(checkpointer, record)
    try:
        yield
    finally:
        callback.checkpointer = checkpointer


_OrbaxCheckpoint: Any = getattr(keras.callbacks, "OrbaxCheckpoint", keras.callbacks.Callback)


class TiedOrbaxCheckpoint(_OrbaxCheckpoint):
    """Saves a model, with its shared variables, by Orbax while it is trained.

    Takes the place of `keras.callbacks.OrbaxCheckpoint`, and has its arguments: Orbax saves in the
    background, sharded, from many hosts. A record is stored beside what Keras writes, for
    `load_tied` and `load_tied_weights`, which lay values out for the distribution that is in
    force. Stock Keras opens the folder, without the sharing.

    Args:
        directory: The folder; like all that follows it, as in Keras.

    Raises:
        MissingPackageError: If Orbax is not installed, or Keras is older than its callback.
        TiedioError: From `fit`, what `save_tied` raises.
        Exception: From `fit`, at its end, what Orbax raised in the background.

    Example:

    >>> import keras, numpy, tiedio
    >>> layers = [keras.layers.Dense(2), keras.layers.Dense(2)]
    >>> model = keras.Sequential([keras.Input((2,)), *layers])
    >>> _ = tiedio.tie(layers[1], to=layers[0])
    >>> model.compile(optimizer="adam", loss="mse")
    >>> data = numpy.ones((4, 2))
    >>> saving = tiedio.TiedOrbaxCheckpoint("checkpoints", max_to_keep=2)
    >>> _ = model.fit(data, data, epochs=3, callbacks=[saving], verbose=0)
    >>> resumed = tiedio.load_tied("checkpoints")
    >>> first, second = resumed.layers
    >>> first.kernel is second.kernel, int(resumed.optimizer.iterations)
    (True, 3)

    Source: `keras.callbacks.OrbaxCheckpoint`.
    """

    def __init__(self, directory: Any, *args: Any, **kwargs: Any):
        imported("orbax.checkpoint", "`TiedOrbaxCheckpoint`", "orbax")
        if _OrbaxCheckpoint is keras.callbacks.Callback:
            raise MissingPackageError(
                f"`TiedOrbaxCheckpoint` needs a newer Keras.\n"
                f"Expected: `keras.callbacks.OrbaxCheckpoint`. Received: Keras {keras.__version__}."
                "\nInstall it: `pip install --upgrade keras`."
            )
        directory = path_of(directory, "directory")
        if "://" not in directory:  # Orbax takes no relative path
            directory = os.path.abspath(directory)
        super().__init__(directory, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with recording(self.model, self):  # on JAX, this gives the model its state
            super()._save_checkpoint(*args, **kwargs)

    def on_train_end(self, logs: Any = None) -> None:
        try:
            self.wait_until_finished()  # which tells errors, as Keras would not
        finally:
            super().on_train_end(logs)
