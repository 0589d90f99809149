"""`TiedBackupAndRestore`: a run that is killed goes on with its ties, and with its callbacks.

A run is its model and its callbacks at one moment: all of them begin before any state is given
back, and all have seen the end of an epoch before it is saved, in whatever order they are listed.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tiedio.errors import ArgumentError, FileFormatError, listed, warn
from tiedio.hooks import callback_states
from tiedio.hooks.patching import routed
from tiedio.model.arguments import several_in
from tiedio.model.keras_internals import show_callbacks
from tiedio.model.several import Models
from tiedio.model.walk import walk
from tiedio.record.json_fields import Fields
from tiedio.saving.background import Buffer
from tiedio.saving.backup import Run, load_run
from tiedio.storage.locating import path_of


class _Loads(keras.callbacks.Callback):
    """Loads a model where its backup was listed: who comes after it sees what goes on."""

    def __init__(self, load: Callable[[], None]):
        super().__init__()
        self.load = load

    def on_train_begin(self, logs: Any = None) -> None:
        self.load()


class TiedBackupAndRestore(keras.callbacks.BackupAndRestore):
    """Backs up a training run, and goes on with it where it was killed, with its ties.

    Takes the place of `keras.callbacks.BackupAndRestore`, and has its arguments. A model that
    is built without its ties gets them from the backup. Backups are files as of
    `save_tied_weights`, with the state of the optimizer and of random generators, those of Keras
    and torch for the whole process included: what was saved at the end of an epoch goes on as if
    it had not stopped.

    The other callbacks go on, too, in whatever order all are listed: a backup is written when
    they are done with an epoch, and what they know is in it, in one file with the weights.
    `ModelCheckpoint` and `TiedModelCheckpoint` still know their best value, `EarlyStopping` and
    `ReduceLROnPlateau` how long they wait, and for what, `EarlyStopping` its best weights,
    `SwapEMAWeights` which ones it has swapped; `CSVLogger(append=True)` loses the rows of epochs
    that are trained again. So does any callback with a `get_state()`, which returns what JSON can
    say, and a `set_state(state)`, which is called once all callbacks have begun. Callbacks are
    known by their class, `filepath`, `filename` and `monitor`, several alike by their order: one
    that is new begins anew, and with `delete_checkpoint=False` an `EarlyStopping` that has
    stopped the run. Keras' own `BackupAndRestore` keeps none of this, also under `patch`.

    With `double_checkpoint=True`, the backup before is taken if the newest one is damaged, with a
    `TiedioWarning`.

    Args:
        backup_dir: As in Keras, like all that follow it there.
        models: Several models by name, as for `save_tied_weights`, that go on together, each with
            its optimizer, whichever of them is trained by `fit`, or by a loop of its own that
            calls the callback: a GAN's, say. A class that trains the others is named, too: its
            own optimizers belong to it. What else the callbacks know is of the trained one.
        save_on_background: Whether training goes on while backups are written, as for
            `TiedModelCheckpoint`. A backup comes after what other callbacks save, also there.

    Raises:
        ArgumentError: If something else is passed than models by name, and a path; from `fit`,
            if the model that is trained is not among them, nor part of one.
        ModelNotBuiltError: From `fit`, if one of several models has no variables yet.
        FileFormatError: From `fit`, if the backup is damaged, and there is none before it.
        TiedioError: From `fit`, what `save_tied_weights` and `load_tied_weights` raise.

    Example:

    >>> import keras, numpy, tiedio
    >>> def train(epochs, tie):
    ...     layers = [keras.layers.Dense(2), keras.layers.Dense(2)]
    ...     model = keras.Sequential([keras.Input((2,)), *layers])
    ...     if tie:
    ...         tiedio.tie(layers[1], to=layers[0])
    ...     model.compile(optimizer="adam", loss="mse")
    ...     data = numpy.ones((4, 2))
    ...     backup = tiedio.TiedBackupAndRestore("backup", delete_checkpoint=False)
    ...     return model, model.fit(data, data, epochs=epochs, callbacks=[backup], verbose=0)
    >>> _ = train(epochs=2, tie=True)
    >>> model, history = train(epochs=3, tie=False)
    >>> history.epoch, model.layers[0].kernel is model.layers[1].kernel
    ([2], True)

    A training loop of its own, for two models:

    >>> def train(epochs):
    ...     models = {name: keras.Sequential([keras.layers.Dense(2)]) for name in ("one", "other")}
    ...     for model in models.values():
    ...         model.build((None, 2))
    ...         model.compile(optimizer="adam", loss="mse")
    ...     backup = tiedio.TiedBackupAndRestore("both", models=models)
    ...     backup.set_model(model)
    ...     backup.on_train_begin()
    ...     for epoch in range(int(model.optimizer.iterations), epochs):
    ...         for model in models.values():
    ...             _ = model.train_on_batch(numpy.ones((4, 2)), numpy.ones((4, 2)))
    ...         backup.on_epoch_end(epoch)
    ...     return [int(model.optimizer.iterations) for model in models.values()]
    >>> train(epochs=2), train(epochs=5)
    ([2, 2], [5, 5])

    Source: `keras.callbacks.BackupAndRestore`.
    """

    # The others of the run, where a list has shown them; then the run to go on with, if any.
    _callbacks: Sequence[Any] = ()
    _run: Run | None = None
    _unread: list[list[str]]  # what is said of backups that cannot be read, but for the advice
    _told: frozenset[str] = frozenset()  # names of those whose state is not kept

    def __init__(
        self,
        backup_dir: Any,
        *args: Any,
        models: Mapping[str, keras.Model] | None = None,
        save_on_background: bool = False,
        **kwargs: Any,
    ):
        path_of(backup_dir, "backup_dir")
        self._models = several_in(models, args)
        self.save_on_background = save_on_background
        self._buffer = Buffer()
        super().__init__(backup_dir, *args, **kwargs)

    def set_model(self, model: Any) -> None:
        if self._models and getattr(model, "compiled", False):
            _check_held(model, self._models)
        super().set_model(model)
        show_callbacks()

    def see_callbacks(self, callbacks: list[Any]) -> None:
        """Takes the last place in a list that is about to begin."""
        if not any(isinstance(one, _Loads) and one.load == self._begin for one in callbacks):
            callbacks[callbacks.index(self)] = _Loads(self._begin)
            callbacks.append(self)
        self._callbacks = callbacks

    def _begin(self) -> None:
        self._run, self._unread = None, []
        try:
            super().on_train_begin()
        except FileFormatError as error:
            raise self._lost() from error
        taken = "The backup before it is taken: what was trained since then is trained again."
        warn("\n".join([*told, taken]) for told in self._unread)

    def _lost(self) -> FileFormatError:
        """The error for a run of which no backup can be read: what helps is not another save."""
        (what, told), which = self._unread[-1], "it"
        if len(self._unread) > 1:
            what = f"{what} So is the backup before it, `{self._prev_weights_path}`."
            which = "one of them"
        return FileFormatError(
            f"{what}\n{told}\n"
            f"Restore {which} from a copy, or remove the folder `{self.backup_dir}` to begin anew."
        )

    def on_train_begin(self, logs: Any = None) -> None:
        if not self._callbacks:
            self._begin()
        elif self._run:
            self._restore_callbacks(self._run)
        self._run = None

    def _restore_callbacks(self, run: Run) -> None:
        fields = Fields(run.state, "a run")
        states = fields.mapped("callbacks", lambda item: Fields(item, "the state of a callback"))
        if not self.delete_checkpoint:  # that run has come to its end, and this is another
            states = {n: s for n, s in states.items() if not callback_states.has_stopped(s)}
        epoch = fields.get("epoch", int)
        warn(callback_states.restore(self._callbacks, states, run.weights, epoch))
        if callback_states.have_stopped(self._callbacks):
            self._go_on_with((self.params or {}).get("epochs", epoch))

    def _go_on_with(self, epoch: int | None) -> None:
        model: Any = self.model
        model._initial_epoch = epoch  # where Keras puts it, too

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._current_epoch = epoch  # Keras counts from 0, also where a run goes on

    def on_train_end(self, logs: Any = None) -> None:
        self._buffer.settle()  # before Keras removes the folder
        super().on_train_end(logs)
        self._go_on_with(None)  # Keras would begin the next `fit` there, too
        self._callbacks = ()

    def _load_model(self) -> None:
        try:
            self._load()
        except OSError as error:  # for which Keras takes the backup before, if it has one
            self._unread.append(str(error).splitlines()[:2])
            raise

    def _load(self) -> None:
        damage = None
        try:
            # It is this process that goes on.
            with routed(self, self._models, random_state=True):
                super()._load_model()
        except json.JSONDecodeError as error:
            damage = error
        model: Any = self.model
        self._run = load_run(self._models or model, self._weights_path, model.weights)
        if self._run:
            self._go_on_with(Fields(self._run.state, "a run").get("epoch", int))
        elif not os.path.exists(self._weights_path):  # killed while it wrote the first backup
            self._go_on_with(None)
        elif damage:  # a backup of Keras, which says the epoch there only
            path = self._training_metadata_path
            raise FileFormatError(
                f"`{path}` is damaged: it was not written to its end.\n"
                f'Expected: JSON that names the "epoch" to go on with. Received: {damage}.'
            ) from damage

    def _save_model(self) -> None:
        self._buffer.settle()  # before Keras copies the backup
        states, problems = callback_states.collect(self._callbacks)
        warn(problem for name, problem in problems.items() if name not in self._told)
        self._told |= problems.keys()
        state = {
            "epoch": self._current_epoch,
            "batch": self._last_batch_seen,
            "callbacks": states,
        }
        model: Any = self.model
        run = Run(state, callback_states.best_weights(self._callbacks), model.weights)
        background = self.save_on_background and self._buffer
        with routed(self, self._models, run=run, background=background):
            super()._save_model()


def _check_held(trained: Any, models: Models) -> None:
    """Raises an error if what is trained is no part of models, and its training could not go on."""
    if any(visit.saveable is trained for visit in walk(models).visits):
        return
    raise ArgumentError(
        f"Cannot back up the training of `{trained.name}`, which is not among `models`.\n"
        f"Expected: this model, or one that holds it. Received: {listed(models.models)}.\n"
        "Pass it, too: what it holds beside these, as its optimizers, goes on with it."
    )
