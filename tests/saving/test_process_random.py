"""Random numbers without a seed: they come from generators of the process, not of the model."""

import random
import warnings

import keras
import numpy as np
import pytest
import scenarios

import tiedio
from tiedio.model import keras_internals, process_random
from tiedio.model.walk import Walk
from tiedio.record.record import Record

BACKEND = keras.backend.backend()
DATA = np.random.default_rng(0).random((8, 4), "float32")


class Noise(keras.layers.Layer):
    def call(self, inputs, training=False):
        if training and BACKEND != "jax":  # which refuses this in what is traced
            inputs = inputs + keras.random.normal(keras.ops.shape(inputs))
        return inputs


class DrawnAhead(keras.callbacks.Callback):
    """Draws from the generator between steps, as code around training may on every backend."""

    def on_train_batch_begin(self, batch, logs=None):
        drawn = keras.random.normal((4,))
        bias = self.model.get_layer("second").bias
        bias.assign(bias + drawn)


def build(noise):
    keras.utils.clear_session()
    keras.utils.set_random_seed(5)
    first, second = (keras.layers.Dense(4, name=name) for name in ("first", "second"))
    model = keras.Sequential([keras.Input((4,)), first, noise(), second])
    tiedio.tie(second, to=first, weights=("kernel",))
    model.compile("adam", "mse")
    return model


NOISES = {
    "keras.random": Noise,
    "dropout": lambda: keras.layers.Dropout(0.5),
}


@pytest.fixture(params=NOISES)
def noise(request):
    return NOISES[request.param]


def fit(model, epochs=2, callbacks=()):
    around = [*callbacks, DrawnAhead()]
    model.fit(DATA, DATA, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=around)


def forget():
    """What a new process knows of random numbers, and has drawn so far."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(6)
    keras.random.normal((3,))
    if BACKEND == "torch":
        import torch

        torch.rand(3)


def assert_equal(model, other):
    for ours, theirs in zip(*map(scenarios.state_of, (model, other)), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.often(1)
@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_training_resumes_with_the_random_numbers_of_the_process(tmp_path, noise, name):
    model = build(noise)
    fit(model)
    if name.endswith(".weights.h5"):
        tiedio.save_tied_weights(model, tmp_path / name)
    else:
        tiedio.save_tied(model, tmp_path / name)
    fit(model)
    if name.endswith(".weights.h5"):
        resumed = build(noise)
        forget()
        tiedio.load_tied_weights(resumed, tmp_path / name, random_state=True)
    else:
        forget()
        resumed = tiedio.load_tied(tmp_path / name, {"Noise": Noise}, random_state=True)
    fit(resumed)
    assert_equal(resumed, model)


@pytest.mark.slow
def test_backups_resume_with_them(tmp_path, noise):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    model = build(noise)
    fit(model, epochs=4)
    stopped = build(noise)
    backup = str(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, 4, [tiedio.TiedBackupAndRestore(backup), Stop()])
    resumed = build(noise)
    forget()
    fit(resumed, 4, [tiedio.TiedBackupAndRestore(backup)])
    assert_equal(resumed, model)


def saved(tmp_path, train=True):
    model = build(Noise)
    if train:
        fit(model)
    tiedio.save_tied(model, tmp_path / "model.keras")
    forget()
    return tmp_path / "model.keras"


def test_a_load_leaves_them_alone_and_says_so(tmp_path):
    filepath = saved(tmp_path)
    before = process_random.states(Walk(()))
    with pytest.warns(tiedio.TiedioWarning) as caught:
        tiedio.load_tied(filepath, {"Noise": Noise})
    (message,) = (str(one.message) for one in caught if one.category is tiedio.TiedioWarning)
    assert message.splitlines() == [
        "Training does not resume exactly: random numbers that are drawn without a seed do not "
        f"go on as when `{filepath}` was saved.",
        "Expected: the state of `keras` there. Received: that of this process.",
        "`tiedio.load_tied` takes that of the file with `random_state=True`, and does without "
        "with `random_state=False`.",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiedio.load_tied(filepath, {"Noise": Noise}, random_state=False)
        tiedio.load_tied(filepath, {"Noise": Noise}, compile=False)  # to predict
    assert process_random.states(Walk(())) == before


def test_a_model_that_was_not_trained_resumes_nothing(tmp_path):
    filepath = saved(tmp_path, train=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiedio.load_tied(filepath, {"Noise": Noise})


class OwnTraining(keras.Model):
    """Calls something else than Keras does its optimizer."""

    def __init__(self):
        super().__init__()
        self.dense, self.optimizer = keras.layers.Dense(2), "adam"

    def call(self, inputs):
        return self.dense(inputs)


def test_what_resumes_is_an_optimizer_of_keras(tmp_path):
    keras.utils.clear_session()
    keras.random.normal((1,))
    model = OwnTraining()
    model(DATA)
    tiedio.save_tied_weights(model, tmp_path / "model.weights.h5")
    keras.random.normal((1,))
    tiedio.load_tied_weights(model, tmp_path / "model.weights.h5")


def test_nothing_is_recorded_where_nothing_was_drawn(tmp_path):
    model = build(lambda: keras.layers.Dropout(0.5, seed=1))
    assert process_random.states(tiedio.model.walk.walk(model)) == {}
    assert "process_random_states" not in Record().to_json()


def test_what_python_and_numpy_draw_is_the_users():
    keras.utils.clear_session()  # a generator is made, which Keras would draw a seed for
    states = random.getstate(), np.random.get_state()[1].tolist()
    assert process_random.restore({"keras": (1, 2)}) == []
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


@pytest.mark.parametrize("states", [{"keras": (1, 2, 3)}, {"torch/tpu": (1,)}, {"torch/cpu": (1,)}])
def test_a_generator_that_is_not_here(states):
    assert process_random.restore(states) == list(states)


def test_the_generator_of_keras_is_the_one_that_is_drawn_from():
    """`random.seed_generator.global_seed_generator`, and its name."""
    keras.utils.clear_session()
    assert keras_internals.global_seed_generator(make=False) is None
    made = keras_internals.global_seed_generator(make=True)
    before = keras.ops.convert_to_numpy(made.state).tolist()
    keras.random.normal((1,))
    assert keras_internals.global_seed_generator(make=False) is made
    assert keras.ops.convert_to_numpy(made.state).tolist() != before
