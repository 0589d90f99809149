"""A generator and its adversary, trained together, each with an optimizer of its own.

Run as `python adversaries.py FOLDER` in a process of its own, which kills itself if there is no
backup in that folder yet, in the middle of the third epoch; else it goes on to the end.
"""

import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import scenarios

import tiedio

EPOCHS, STEPS = 4, 3


def noise():
    return np.random.default_rng(0).normal(size=(4 * STEPS, 3)).astype("float32")


def build(tie=True):
    """Makes models by name; a layer of the generator is tied to one of the mirror."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    generator = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)], name="generator")
    real = keras.Input((4,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(5, "relu")(real))
    judged = keras.layers.Dense(1)(keras.layers.Dropout(0.3, seed=3)(hidden))
    discriminator = keras.Model(real, judged, name="discriminator")
    mirror = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)], name="mirror")
    if tie:
        tiedio.tie(generator.layers[0], to=mirror.layers[0])
    discriminator.compile("adam", "mse", run_eagerly=True)
    discriminator.trainable = False
    given = keras.Input((3,))
    gan = keras.Model(given, discriminator(generator(given)), name="gan")
    gan.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", run_eagerly=True)
    return {"discriminator": discriminator, "mirror": mirror, "generator": generator, "gan": gan}


def is_whole(models):
    """Whether the models share what they should."""
    generator, discriminator, mirror, gan = (
        models[name] for name in ("generator", "discriminator", "mirror", "gan")
    )
    tied = generator.layers[0].kernel is mirror.layers[0].kernel
    return tied and gan.layers[1] is generator and gan.layers[2] is discriminator


def state_of(models):
    """Lists every value that training changes."""
    return [
        value
        for model in models.values()
        for value in scenarios.arrays_of(
            [*model.variables, *getattr(getattr(model, "optimizer", None), "variables", ())]
        )
    ]


class Opponent(keras.callbacks.Callback):
    """Trains the discriminator before each step of the generator."""

    def __init__(self, models, stop=None):
        super().__init__()
        self.models, self.stop = models, stop

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.stop and (self.epoch, batch) == (2, 1):
            self.stop()
        # On JAX, `model` takes the state back that `fit` has taken.
        if self.model is not self.models["discriminator"]:
            oppose(self.models, self.epoch, batch)


def oppose(models, epoch, batch):
    real = np.random.default_rng((epoch, batch)).normal(size=(4, 4)).astype("float32")
    models["discriminator"].trainable = True
    models["discriminator"].train_on_batch(real, np.ones((4, 1)))
    models["discriminator"].trainable = False


def fit(models, callbacks=(), stop=None, epochs=EPOCHS):
    """Trains by `fit` of the combined model; returns the epochs."""
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, "epochs": epochs}
    callbacks = [*callbacks, Opponent(models, stop)]
    return models["gan"].fit(noise(), np.ones(4 * STEPS), callbacks=callbacks, **options).epoch


def loop(models, callbacks=(), stop=None, epochs=EPOCHS):
    """Trains by a loop of its own, as `fit` does; returns the epochs."""
    gan, opponent = models["gan"], Opponent(models, stop)
    listed = keras.callbacks.CallbackList([*callbacks, opponent], model=gan, epochs=epochs)
    listed.on_train_begin()
    done = []
    for epoch in range(gan._initial_epoch or 0, epochs):
        listed.on_epoch_begin(epoch)
        for batch in range(STEPS):
            listed.on_train_batch_begin(batch)
            loss = gan.train_on_batch(noise()[4 * batch :][:4], np.ones((4, 1)))
            listed.on_train_batch_end(batch, {"loss": float(loss)})
        listed.on_epoch_end(epoch, {"loss": float(loss)})
        done.append(epoch)
    listed.on_train_end()
    return done


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    begun = (folder / "backup").exists()
    models = build(tie=not begun)
    backup = tiedio.TiedBackupAndRestore(folder / "backup", models=models)
    epochs = fit(models, [backup], stop=lambda: begun or os.kill(os.getpid(), signal.SIGKILL))
    assert epochs == [2, 3] and is_whole(models)
    np.savez(folder / "state.npz", *state_of(models))
