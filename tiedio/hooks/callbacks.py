"""`keras.callbacks` that keep ties: they save them, bring them back, or tell when one breaks."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from tiedio.errors import TieError, warn
from tiedio.hooks.patching import routed
from tiedio.model.arguments import several_in, ties_in
from tiedio.model.tying import assert_tied
from tiedio.record.ties import TieGroup
from tiedio.saving.background import Buffer
from tiedio.storage.locating import path_of


class AssertTied(keras.callbacks.Callback):
    """Stops training when a tie breaks.

    Ties are checked before the first step and at the end of every epoch, as by
    `assert_tied`. Training that begins with a broken tie raises; when one breaks
    on the way, the run stops after that epoch, and a `TiedioWarning` says which.

    Args:
        ties: The tie groups to check, as from `find_ties`. `None` checks those
            made by `tie` or restored by `load_tied`.
        models: Several models by name, as for `assert_tied`, to check in the place of the one
            that is trained.

    Raises:
        ArgumentError: If something else is passed than tie groups, and models by name.
        TieError: From `fit`, if a tie is broken before the first step.

    Example:

    >>> import keras, numpy, tiedio
    >>> layers = [keras.layers.Dense(2), keras.layers.Dense(2)]
    >>> model = keras.Sequential([keras.Input((2,)), *layers])
    >>> _ = tiedio.tie(layers[1], to=layers[0])
    >>> model.compile(optimizer="sgd", loss="mse")
    >>> data = numpy.ones((4, 2))
    >>> _ = model.fit(data, data, callbacks=[tiedio.AssertTied()], verbose=0)
    """

    def __init__(
        self,
        ties: Iterable[TieGroup] | None = None,
        models: Mapping[str, keras.Model] | None = None,
    ):
        super().__init__()
        self._models = several_in(models)
        self.ties = None if ties is None else ties_in(ties)

    def on_train_begin(self, logs: Any = None) -> None:
        self._check()

    def _check(self) -> None:
        model: Any = self._models or self.model
        assert_tied(model, self.ties)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        model: Any = self.model
        try:
            self._check()
        except TieError as error:
            model.stop_training = True
            warn([f"Training stopped. {error}"])


class TiedModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """Saves a model, with its shared variables, while it is trained.

    Takes the place of `keras.callbacks.ModelCheckpoint`, and has its arguments. Files are
    written as by `save_tied`, or with `save_weights_only=True` by `save_tied_weights`: a
    run that is killed leaves the old file or the new one, whole.

    Args:
        filepath: As in Keras, like all that follow it there.
        models: Several models by name, as for `save_tied`, that are saved in the place of the
            one that is trained: these, each with its optimizer, and no other.
        save_on_background: Whether training goes on while files are written, with the values
            of that moment, as with `background=True` of `save_tied`. A save waits for the one
            before, and so does the end of training; both raise what that failed with.

    Raises:
        ArgumentError: If something else is passed than models by name, and a path.
        TiedioError: From `fit`, what `save_tied` and `save_tied_weights` raise.

    Example:

    >>> import keras, numpy, tiedio
    >>> layers = [keras.layers.Dense(2), keras.layers.Dense(2)]
    >>> model = keras.Sequential([keras.Input((2,)), *layers])
    >>> _ = tiedio.tie(layers[1], to=layers[0])
    >>> model.compile(optimizer="adam", loss="mse")
    >>> data = numpy.ones((4, 2))
    >>> best = tiedio.TiedModelCheckpoint("best.keras", monitor="loss", save_best_only=True)
    >>> _ = model.fit(data, data, epochs=3, callbacks=[best], verbose=0)
    >>> first, second = tiedio.load_tied("best.keras").layers
    >>> first.kernel is second.kernel
    True
    >>> encoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    >>> autoencoder = keras.Sequential([encoder, keras.layers.Dense(2)])
    >>> autoencoder.compile(optimizer="adam", loss="mse")
    >>> models = {"encoder": encoder, "autoencoder": autoencoder}
    >>> both = tiedio.TiedModelCheckpoint("both.keras", models=models)
    >>> _ = autoencoder.fit(data, data, callbacks=[both], verbose=0)
    >>> loaded = tiedio.load_tied("both.keras")
    >>> loaded["autoencoder"].layers[0] is loaded["encoder"]
    True

    Source: `keras.callbacks.ModelCheckpoint`.
    """

    def __init__(
        self,
        filepath: Any,
        *args: Any,
        models: Mapping[str, keras.Model] | None = None,
        save_on_background: bool = False,
        **kwargs: Any,
    ):
        path_of(filepath)  # of what is none, Keras tells no more than how it failed
        self._models = several_in(models, args)
        self.save_on_background = save_on_background
        self._buffer = Buffer()
        super().__init__(filepath, *args, **kwargs)

    def _save_model(self, *args: Any, **kwargs: Any) -> None:
        self._buffer.settle()
        with routed(self, self._models, background=self.save_on_background and self._buffer):
            super()._save_model(*args, **kwargs)

    def on_train_end(self, logs: Any = None) -> None:
        self._buffer.settle()
