"""`keras.callbacks` that keep an eye on ties."""

import warnings
from collections.abc import Iterable
from typing import Any

import keras

from tiedio.errors import TiedioWarning, TieError
from tiedio.ties import TieGroup
from tiedio.tying import assert_tied


class AssertTied(keras.callbacks.Callback):
    """Stops training when a tie breaks.

    Ties are checked before the first step and at the end of every epoch, as by
    `assert_tied`. Training that begins with a broken tie raises; when one breaks
    on the way, the run stops after that epoch, and a `TiedioWarning` says which.

    Args:
        ties: The tie groups to check, as from `find_ties`. `None` checks those
            made by `tie` or restored by `load_tied`.

    Raises:
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

    def __init__(self, ties: Iterable[TieGroup] | None = None):
        super().__init__()
        self.ties = None if ties is None else tuple(ties)

    def on_train_begin(self, logs: Any = None) -> None:
        self._check(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        model: Any = self.model
        try:
            self._check(model)
        except TieError as error:
            model.stop_training = True
            warnings.warn(f"Training stopped. {error}", TiedioWarning, stacklevel=2)

    def _check(self, model: Any) -> None:
        assert_tied(model, self.ties)
