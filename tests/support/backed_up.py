"""The training that `test_checkpoint_callbacks` kills, goes on with, and never stops.

Run as `python backed_up.py FOLDER JSON`, in a process of its own; the JSON is what `run` takes.
"""

import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import scenarios

import tiedio
from tiedio.formats import hdf5_writer
from tiedio.storage import atomic

EPOCHS, STEPS = 4, 6


def build(tie=True, optimizer="adam", **options):
    """Makes a model, always the same, with random numbers of its own in each step."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    first, second, third = (keras.layers.Dense(4, activation="tanh") for _ in range(3))
    noise = keras.layers.Dropout(0.3, seed=3)  # without a seed, torch draws from its own generator
    model = keras.Sequential(
        [keras.Input((4,)), first, noise, second, third, keras.layers.Dense(2)]
    )
    if tie:
        tiedio.tie(third, to=first)
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"], **options)
    return model


def data():
    random = np.random.default_rng(0)
    return random.random((4 * STEPS, 4), "float32"), random.random((4 * STEPS, 2), "float32")


def fit(model, callbacks=(), epochs=EPOCHS, **options):
    """Trains a model, with its data in the same order each time."""
    fixed = {"batch_size": 4, "shuffle": False, "verbose": 0}
    return model.fit(*data(), epochs=epochs, callbacks=list(callbacks), **fixed, **options)


def is_tied(model):
    first, _, second, third, _ = model.layers
    return first.kernel is third.kernel and first.kernel is not second.kernel


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Judge(keras.callbacks.Callback):
    """Gives each epoch a score, the second the best one; counts, and keeps its count."""

    seen = 0

    def on_epoch_end(self, epoch, logs=None):
        self.seen += epoch
        logs["score"] = [3.0, 1.0, 2.0][min(epoch, 2)]
        logs["seen"] = self.seen

    def get_state(self):
        return {"seen": np.int64(self.seen)}

    def set_state(self, state):
        self.seen = state["seen"]


class DieAtEnd(keras.callbacks.Callback):
    def on_train_end(self, logs=None):
        die()


def with_others(backup, folder, place):
    """A backup among callbacks that have a state: from the fourth epoch on, the rate is lower."""
    judged = {"monitor": "score", "mode": "min"}
    callbacks = [
        Judge(),
        tiedio.TiedModelCheckpoint(folder / "best.keras", save_best_only=True, **judged),
        keras.callbacks.EarlyStopping(patience=4, restore_best_weights=True, **judged),
        keras.callbacks.ReduceLROnPlateau(patience=2, cooldown=1, **judged),
        keras.callbacks.CSVLogger(folder / "log.csv", append=True),
    ]
    callbacks.insert(place, backup)
    return callbacks


class DieAtStep(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.moment = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.moment:
            die()


def die_in_save(number, step):
    """Lets a save be the last thing that this process does."""
    saves = []

    def dying(write):
        def wrapped(layout, stream, *arguments, **options):
            saves.append(stream)
            if len(saves) == number and step == "writing":
                for part in bytes(1 << 20), b"more":  # the second waits for the first
                    stream.write(part)
                die()
            written = write(layout, stream, *arguments, **options)
            if len(saves) == number and step == "renamed":
                atomic._flush_folder = lambda folder: die()
            return written

        return wrapped

    hdf5_writer.write = dying(hdf5_writer.write)


def die_in_metadata(filepath, number):
    """Dies when Keras has written half of what it says of a backup."""
    dumps = json.dumps

    def dying(content, **options):
        text = dumps(content, **options)
        if content == {"epoch": number, "batch": 0}:
            filepath.write_text(text[: len(text) // 2])
            die()
        return text

    json.dumps = dying


def run(
    folder,
    tie=True,
    step=None,
    save=None,
    metadata=None,
    backup=None,
    checkpoint=None,
    others=None,
    epochs=EPOCHS,
    end=False,
):
    """Trains with a callback, and writes what the model holds, unless it is killed before."""
    callbacks = []
    if backup is not None:
        callbacks.append(tiedio.TiedBackupAndRestore(str(folder / "backup"), **backup))
    if others is not None:
        callbacks = with_others(*callbacks, folder, others)
    if end:
        callbacks.append(DieAtEnd())
    if checkpoint is not None:
        callbacks.append(tiedio.TiedModelCheckpoint(folder / checkpoint))
    if step:
        callbacks.append(DieAtStep(*step))
    if save:
        die_in_save(*save)
    if metadata:
        die_in_metadata(folder / "backup" / "training_metadata.json", metadata)
    model = build(tie)
    history = fit(model, callbacks, epochs)
    np.savez(folder / "state.npz", *scenarios.state_of(model))
    (folder / "facts.json").write_text(json.dumps([history.epoch, is_tied(model)]))


if __name__ == "__main__":
    run(Path(sys.argv[1]), **json.loads(sys.argv[2]))
