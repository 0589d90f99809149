"""Scripts as guides of Keras write them, in a run with `tiedio.patch()` and in one without.

Each gives what it saw on its way, and models which the patch keeps alike: the one that trained, and
those that came from its files and trained as much.
"""

import contextlib
import functools

import keras
import numpy as np
import pytest
import scenarios

import tiedio

NOISE, DATA = np.random.default_rng(0).normal(size=(2, 8, 4)).astype("float32")
REAL, FAKE = np.ones((8, 1), "float32"), np.zeros((8, 1), "float32")

squared = keras.losses.MeanSquaredError()


def coder(tied, units=4):
    """Makes three layers; if tied, two have a kernel in common."""
    first, second = (keras.layers.Dense(4, activation="tanh") for _ in range(2))
    model = keras.Sequential([keras.Input((4,)), first, second, keras.layers.Dense(units)])
    if tied:
        tiedio.tie(second, to=first, weights=["kernel"])
    return model


def values(model):
    return [array.tobytes() for array in model.get_weights()]


def outputs_of(model):
    return keras.ops.convert_to_numpy(model(NOISE)).tobytes()


# A step of training from scratch, as the guide of each backend has it


def descend_on_tensorflow(model, optimizer, loss_of):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = loss_of(model)
    gradients = tape.gradient(loss, model.trainable_weights)
    optimizer.apply(gradients, model.trainable_weights)
    return loss


def descend_on_torch(model, optimizer, loss_of):
    import torch

    model.zero_grad()
    loss = loss_of(model)
    loss.backward()
    weights = model.trainable_weights
    with torch.no_grad():
        optimizer.apply([weight.value.grad for weight in weights], weights)
    return loss


def descend_on_jax(model, optimizer, loss_of):
    import jax

    def loss(trained, others):
        def call(inputs):
            outputs, others[:] = model.stateless_call(trained, others, inputs)
            return outputs

        return loss_of(call), others

    optimizer.build(model.trainable_variables)
    trained, others, slots = (
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
    )
    (_, others), gradients = jax.value_and_grad(loss, has_aux=True)(trained, others)
    trained, slots = optimizer.stateless_apply(slots, gradients, trained)
    for variables, new in (
        (model.trainable_variables, trained),
        (model.non_trainable_variables, others),
        (optimizer.variables, slots),
    ):
        for variable, value in zip(variables, new, strict=True):
            variable.assign(value)


descend = globals()[f"descend_on_{keras.backend.backend()}"]


def step_of(model):
    """Returns what trains a model by one step, with an optimizer that it does not know."""
    step = functools.partial(
        descend,
        model,
        keras.optimizers.Adam(0.01),
        lambda call: squared(DATA, call(DATA)),
    )
    if keras.backend.backend() != "tensorflow":
        return step
    import tensorflow as tf

    return tf.function(step)


# The scripts


def loop(folder, tied):
    """A loop from scratch, which goes back to its best weights, and is carried on another day."""
    model = coder(tied)
    step = step_of(model)
    seen = []
    for epoch in range(3):
        step()
        model.save_weights(folder / f"{epoch}.weights.h5")
        seen.append(values(model))
    model.load_weights(folder / "1.weights.h5")
    seen.append(values(model))
    step()
    seen.append(values(model))
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    built = coder(tied=False)
    built.load_weights(folder / "model.keras")
    models = [model, loaded, built]
    for one in models:
        step_of(one)()
    return seen, models


def gan_in_turns(folder, tied):
    """The oldest GAN: a discriminator that is compiled, and frozen in a model with a generator."""

    def build(tied):
        generator, discriminator = coder(tied), coder(tied, units=1)
        discriminator.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
        discriminator.trainable = False
        noise = keras.Input((4,))
        combined = keras.Model(noise, discriminator(generator(noise)))
        combined.compile(keras.optimizers.Adam(0.02), "mse", run_eagerly=True)
        return generator, discriminator, combined

    def train(generator, discriminator, combined):
        for _ in range(2):
            discriminator.trainable = True
            discriminator.train_on_batch(DATA, REAL)
            discriminator.train_on_batch(generator(NOISE), FAKE)
            discriminator.trainable = False
            combined.train_on_batch(NOISE, REAL)

    models, again = build(tied), build(tied)
    train(*models)
    models[-1].save_weights(folder / "combined.weights.h5")
    again[-1].load_weights(folder / "combined.weights.h5")
    seen = [values(models[-1])]
    for one in models, again:
        train(*one)
    for model in models:
        model.save(folder / "model.keras")
        seen.append(outputs_of(keras.saving.load_model(folder / "model.keras")))
    return seen, [models[-1], again[-1]]


@keras.saving.register_keras_serializable("tiedio_tests")
class GAN(keras.Model):
    """A GAN with two optimizers, and a `compile` and a `train_step` of its own."""

    def __init__(self, generator, discriminator):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.built = True

    def get_config(self):
        return {
            name: keras.saving.serialize_keras_object(part)
            for name, part in (("generator", self.generator), ("discriminator", self.discriminator))
        }

    @classmethod
    def from_config(cls, config):
        return cls(**keras.saving.deserialize_keras_object(config))

    def compile(self, d_optimizer, g_optimizer):
        super().compile(run_eagerly=True)  # which is quicker, for a few steps
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def train_step(self, data):
        real, fake = keras.ops.ones((4, 1)), keras.ops.zeros((4, 1))
        noise = keras.random.normal((4, 4), seed=3)
        generated = keras.ops.stop_gradient(self.generator(noise))
        # In one call: the backend may add up more than two gradients of a kernel in any order.
        seen, labels = (keras.ops.concatenate(two) for two in ((data, generated), (real, fake)))
        return {
            "d_loss": descend(
                self.discriminator, self.d_optimizer, lambda call: squared(labels, call(seen))
            ),
            "g_loss": descend(
                self.generator,
                self.g_optimizer,
                lambda call: squared(real, self.discriminator(call(noise))),
            ),
        }


class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def gan_by_fit(folder, tied):
    """A GAN that is killed, built again, and resumed from its backup."""

    def build():
        keras.utils.set_random_seed(1)
        return compiled(GAN(coder(tied), coder(tied, units=1)))

    def compiled(gan):
        gan.compile(keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.02))
        return gan

    def fit(gan, *callbacks, epochs=3):
        options = {"batch_size": 4, "shuffle": False, "verbose": 0}
        gan.fit(DATA, epochs=epochs, callbacks=callbacks, **options)

    gan, killed, resumed = build(), build(), build()
    fit(gan)
    with contextlib.suppress(KeyboardInterrupt):
        fit(
            killed,
            Kill(),
            keras.callbacks.BackupAndRestore(folder / "backup"),
            keras.callbacks.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True),
            keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras"),
        )
    fit(resumed, keras.callbacks.BackupAndRestore(folder / "backup"))
    loaded = keras.saving.load_model(folder / "2.keras")  # which cannot compile it
    seen = [values(killed), outputs_of(loaded.generator)]
    compiled(loaded).load_weights(folder / "2.keras")
    fit(loaded, epochs=1)
    return seen, [gan, resumed, loaded]


SCRIPTS = [loop, gan_in_turns]
if keras.backend.backend() != "jax":  # there, a `train_step` takes the state of one optimizer
    SCRIPTS.append(gan_by_fit)


def run(script, folder, tied):
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    folder.mkdir()
    return script(folder, tied)


# As Keras warns too: it does not call that `compile`.
@pytest.mark.filterwarnings("ignore:Cannot resume `d_optimizer`, `g_optimizer`")
@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("script", [pytest.param(one, marks=pytest.mark.slow) for one in SCRIPTS])
def test_scripts(tmp_path, script, tied):
    seen, (model, *_) = run(script, tmp_path / "stock", tied)
    with tiedio.patch():
        ours, models = run(script, tmp_path / "patched", tied)
    assert bool(scenarios.ties_of(model)) == tied
    assert ours == seen
    for one in models:
        assert scenarios.ties_of(one) == scenarios.ties_of(model)
        assert values(one) == values(model)
