"""What `TiedBackupAndRestore` keeps of the other callbacks of a run, whatever the list of them."""

import csv

import keras
import numpy as np
import pytest
import scenarios

import tiedio
from tiedio.errors import FileFormatError

SCORES = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
JUDGED = {"monitor": "score", "mode": "min"}


def build(tie=True, optimizer="sgd"):
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    first, second = keras.layers.Dense(2), keras.layers.Dense(2)
    model = keras.Sequential([keras.Input((2,)), first, second])
    if tie:
        tiedio.tie(second, to=first)
    model.compile(optimizer, "mse", run_eagerly=True)  # quicker for a few steps
    return model


def fit(model, callbacks, epochs):
    """Trains a model, with three batches in each epoch."""
    data = np.arange(12, dtype="float32").reshape(6, 2) / 12
    options = {"batch_size": 2, "shuffle": False, "verbose": 0}
    return model.fit(data, data, epochs=epochs, callbacks=callbacks, **options)


def is_tied(model):
    return model.layers[0].kernel is model.layers[1].kernel


class Judge(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = SCORES[epoch]


class StopAt(keras.callbacks.Callback):
    """Interrupts a run, in the middle of an epoch."""

    def __init__(self, epoch, batch=1):
        super().__init__()
        self.moment = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.moment:
            raise KeyboardInterrupt


class Remembers(keras.callbacks.Callback):
    """Has a state of its own, which `on_train_begin` resets."""

    def __init__(self, state=None):
        super().__init__()
        self.begun_with = self.state = state

    def on_train_begin(self, logs=None):
        self.state = self.begun_with

    def on_epoch_end(self, epoch, logs=None):
        if isinstance(self.state, list):
            self.state = [*self.state, epoch]

    def get_state(self):
        return self.state

    def set_state(self, state):
        if state == "not mine":
            raise KeyError(state)
        self.state = state


@pytest.fixture
def train(tmp_path):
    def train(*others, stop=None, epochs=5, model=None, backup=None, place=0):
        """Trains with a backup that is kept; returns the epochs."""
        model = model or build()
        callbacks = [Judge(), *others]
        folder = tmp_path / "backup"
        options = {"delete_checkpoint": False, **(backup or {})}
        callbacks.insert(place, tiedio.TiedBackupAndRestore(folder, **options))
        if stop:
            with pytest.raises(KeyboardInterrupt):
                fit(model, [*callbacks, StopAt(*stop)], epochs)
            return None
        return fit(model, callbacks, epochs).epoch

    return train


def state_of(callback):
    names = ("best", "best_epoch", "wait", "stopped_epoch", "cooldown_counter", "state")
    return {name: vars(callback)[name] for name in names if name in vars(callback)}


def early(**options):
    return keras.callbacks.EarlyStopping(**{**JUDGED, "patience": 9, **options})


def plateau(**options):
    return keras.callbacks.ReduceLROnPlateau(**{**JUDGED, "patience": 2, "cooldown": 2, **options})


def of_tiedio(warned):
    return [str(one.message) for one in warned if one.category is tiedio.TiedioWarning]


@pytest.mark.often(1)
@pytest.mark.parametrize("place", [0, 2, 5])
def test_callbacks_go_on_as_if_nothing_was_interrupted(train, tmp_path, place):
    def callbacks():
        options = {"save_best_only": True, "save_weights_only": True, **JUDGED}
        best = keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", **options)
        return early(), plateau(), best, Remembers([])

    fit(build(), [Judge(), *(expected := callbacks())], epochs=5)
    train(*callbacks(), stop=(3,), place=place)
    resumed = callbacks()
    assert train(*resumed, place=place) == [3, 4]
    assert [*map(state_of, resumed)] == [*map(state_of, expected)]
    assert resumed[-1].state == [0, 1, 2, 3, 4]


def test_callbacks_are_told_apart(train):
    """By class, file and monitor, then by order; others begin anew, and who is gone is no error."""
    train(
        *(first := [early(patience=7), early(), early(monitor="loss"), Remembers([5])]),
        stop=(2,),
    )
    assert [callback.best for callback in first[:2]] == [1.0, 1.0]
    new, same, second = early(monitor="mae"), early(monitor="loss"), early()
    train(new, same, second, epochs=2)
    assert new.best is None and same.best == first[2].best and second.best == 1.0
    assert (second.best_epoch, second.wait) == (1, 0)


def test_best_weights_are_those_of_the_model_that_goes_on(train, tmp_path):
    """Also where it has no ties yet, and in a file that Keras itself can load."""
    first = early(restore_best_weights=True)
    train(first, stop=(3,))
    best = first.best_weights
    model = build(tie=False)
    second = early(restore_best_weights=True)
    assert train(second, model=model, epochs=3) == []
    assert is_tied(model)
    assert all(np.array_equal(*pair) for pair in zip(second.best_weights, best, strict=True))
    assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), best, strict=True))
    path = tmp_path / "backup" / "latest.weights.h5"
    build().load_weights(path)
    shown = keras.saving.KerasFileEditor(str(path)).weights_dict
    assert shown.keys() == {"layers", "optimizer"}


def test_best_weights_of_layers_in_another_order(train):
    """Named ones are found by their names."""

    def model_of(order):
        inputs = keras.Input((2,))
        layers = [keras.layers.Dense(2, name=name) for name in order]
        outputs = keras.layers.Average()([layer(inputs) for layer in layers])
        model = keras.Model(inputs, outputs)
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    train(first := early(restore_best_weights=True), model=model_of(["one", "other"]), stop=(2,))
    model = model_of(["other", "one"])
    train(early(restore_best_weights=True), model=model, epochs=2)
    kernel, _, *others = first.best_weights
    assert np.array_equal(model.get_layer("one").kernel, kernel)
    assert np.array_equal(model.get_layer("other").kernel, others[0])
    assert model.layers[1].name == "other"


def test_best_weights_of_a_model_that_has_more_by_now(train):
    train(early(restore_best_weights=True), stop=(3,))
    model = build(tie=False)
    model.layers[1].enable_lora(1)
    second = early(restore_best_weights=True)
    with pytest.warns(tiedio.TiedioWarning) as warned:
        assert train(second, model=model) == [3, 4]
    assert of_tiedio(warned)[-1].splitlines() == [  # after what loading says
        "The best weights of `EarlyStopping(monitor='score')` are not restored.",
        "Expected: values of this model. Received: those of another one.",
        "It begins anew.",
    ]
    assert (second.best, second.best_epoch) == (2.0, 3)


def test_damaged_best_weights_are_told(train, tmp_path):
    train(stopping := early(restore_best_weights=True), stop=(3,))
    path = tmp_path / "backup" / "latest.weights.h5"
    content = bytearray(path.read_bytes())
    content[content.index(stopping.best_weights[0].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="tiedio_run/weights/0/0"):
        train(early(restore_best_weights=True))


def test_a_run_that_was_stopped_is_another_if_its_backup_is_kept(train):
    assert train(early(patience=2), plateau(), epochs=8) == [0, 1, 2, 3]
    begun_anew, goes_on = early(patience=2), plateau()
    assert train(begun_anew, goes_on, epochs=6) == [4, 5]
    assert (begun_anew.best, goes_on.best) == (2.0, 1.0)


def test_a_run_that_was_killed_when_it_had_stopped_has_nothing_more_to_do(train):
    class StopAtEnd(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            raise KeyboardInterrupt

    deleted = {"delete_checkpoint": True}
    with pytest.raises(KeyboardInterrupt):
        train(early(patience=2), StopAtEnd(), epochs=8, backup=deleted)
    stopped = early(patience=2)
    assert train(stopped, epochs=8, backup=deleted) == []
    assert (stopped.best_epoch, stopped.stopped_epoch) == (1, 3)
    assert train(early(patience=2), epochs=8, backup=deleted) == [0, 1, 2, 3]


def test_states_that_are_none(train):
    """One warning for all epochs, which names the callback; the run goes on."""
    with pytest.warns(tiedio.TiedioWarning) as warned:
        train(Remembers({1}), epochs=3)
    (message,) = of_tiedio(warned)
    first, second, third = message.splitlines()
    assert first == "The state of `Remembers()` is not kept in backups."
    assert second.startswith("Expected: a `get_state` for what JSON can say. Received: ")
    assert third == "A run that is killed goes on with a new one."
    train(Remembers("not mine"), epochs=4)
    with pytest.warns(tiedio.TiedioWarning, match=r"`Remembers\(\)` is not restored"):
        assert train(Remembers("mine"), epochs=5) == [4]


@pytest.mark.parametrize("place", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_averages_that_are_in_the_model_at_the_end_of_an_epoch(train, place):
    def model():
        return build(optimizer=keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5))

    def swap():
        return keras.callbacks.SwapEMAWeights(swap_on_epoch=True)

    expected, resumed = model(), model()
    fit(expected, [swap()], epochs=4)
    train(swap(), model=model(), stop=(2,), epochs=4, place=place)
    assert train(swap(), model=resumed, epochs=4, place=place) == [2, 3]
    pairs = zip(scenarios.state_of(resumed), scenarios.state_of(expected), strict=True)
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_a_backup_by_batches_in_a_run_that_went_on(train):
    """Keras says epoch 0 of it."""
    often = {"save_freq": 2}
    train(stop=(2, 2), backup=often)
    train(stop=(2, 2), backup=often)
    assert train(backup=often) == [2, 3, 4]


def rows(path):
    with open(path, newline="") as file:
        return [row[0] for row in csv.reader(file)]


def test_a_log_loses_the_rows_of_epochs_that_are_trained_again(train, tmp_path):
    path = tmp_path / "log.csv"

    def log():
        return keras.callbacks.CSVLogger(path, append=True)

    train(log(), stop=(2,))
    with open(path, "a") as file:
        file.write("2,0.5\n3,0.5\n")  # of epochs that no backup has
    train(log(), epochs=4)
    assert rows(path) == ["epoch", "0", "1", "2", "3"]
    with open(path, "a") as file:
        file.write("0,another run\n7,0.5\n")
    train(log(), epochs=5)
    assert rows(path) == ["epoch", "0", "1", "2", "3", "0", "7", "4"]
    path.unlink()
    train(log(), epochs=6)
    assert rows(path) == ["epoch", "5"]


def test_a_log_that_was_begun_after_the_backup_keeps_its_header(train, tmp_path):
    path = tmp_path / "log.csv"
    by_batches = {"save_freq": 2}
    train(keras.callbacks.CSVLogger(path, append=True), stop=(1, 0), backup=by_batches)
    train(keras.callbacks.CSVLogger(path, append=True), backup=by_batches, epochs=2)
    assert rows(path) == ["epoch", "0", "1"]


def test_a_list_of_callbacks_that_is_used_again(tmp_path):
    model = build()
    backup = tiedio.TiedBackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    shown = keras.callbacks.CallbackList([backup, Judge(), early()], True, model=model, epochs=2)
    for epochs in 2, 4:
        fit(model, shown, epochs)
    assert shown.callbacks[-1] is backup
    assert len(shown.callbacks) == 5  # with the history, and what loads the backup
    assert shown.callbacks[2].wait == 2
    assert model.history.epoch == [2, 3]


def test_callbacks_that_are_called_one_by_one(tmp_path):
    """As in a training loop of one's own."""
    for model in build(), build(tie=False):
        backup = tiedio.TiedBackupAndRestore(tmp_path / "backup")
        backup.set_model(model)
        backup.on_train_begin()
        backup.on_epoch_begin(3)
        backup.on_epoch_end(3)
        assert is_tied(model)
    assert model._initial_epoch == 4
    backup.on_train_end()
    assert not (tmp_path / "backup").exists()


def test_a_tied_model_whose_optimizer_cannot_be_saved(tmp_path):
    model = build(tie=False, optimizer="adam")
    fit(model, [], epochs=1)
    for attribute in ("_kernel", "bias"):
        scenarios.tie_by_hand(model.layers[1], model.layers[0], attribute)
    backup = tiedio.TiedBackupAndRestore(tmp_path / "backup")
    backup.set_model(model)
    with pytest.warns(tiedio.TiedioWarning, match="`optimizer` is not saved: it trained"):
        backup.on_epoch_end(0)
    resumed = build(tie=False)
    backup.set_model(resumed)
    backup.on_train_begin()
    assert is_tied(resumed) and resumed._initial_epoch == 1
