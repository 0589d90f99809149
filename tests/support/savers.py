"""What the processes run that `test_durability` kills: savers of plain archives, without Keras."""

import os
import signal

import numpy as np

from tiedio.formats import hdf5_writer, table
from tiedio.formats.content import Content
from tiedio.record.record import Record
from tiedio.storage import atomic
from tiedio.storage.locating import at

TENSORS = 8
TENSOR_BYTES = 1 << 20


def save(filepath, generation, saver=0, durable=True):
    """Saves tensors that are full of the number of their generation."""
    shape, dtype = (TENSOR_BYTES // 8,), np.dtype("int64")
    tensor = hdf5_writer.Tensor(shape, dtype, lambda: np.full(shape, generation, dtype))
    layout = hdf5_writer.Layout(tensors={f"layers/{n}/vars/0": tensor for n in range(TENSORS)})
    config = {"saver": saver, "generation": generation}
    target = at(filepath)
    container = table.format_to_save(target, holds_model=True)
    container.write(target, Content(layout, Record(), {}, config), durable, hdf5_writer.untold)


def load(filepath):
    """Reads a file back, all of it; returns whose it is and of which generation."""
    with table.reading(at(filepath)) as content:
        weights = content.weights
        digests = content.read_record(verify=True).digests
        values = np.concatenate([weights.read(path) for path in digests])
        if content.verify_weights:
            content.verify_weights()
    assert not weights.damaged
    assert values.nbytes == TENSORS * TENSOR_BYTES
    assert (values == content.config["generation"]).all()
    return content.config["saver"], content.config["generation"]


def save_again_and_again(filepath, reports, first=1, saver=0):
    """Saves, reports the generation, and goes on until killed."""
    generation = first
    while True:
        save(filepath, generation, saver)
        reports.send(generation)
        generation += 1


def die_at(step, filepath):
    """Saves, and is killed at a step of it."""

    def die(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    if step == "writing":
        # The second part waits for the first one.
        parts = bytes(1 << 20), b"more"
        hdf5_writer.write = lambda layout, stream, *_, **__: die(*map(stream.write, parts))
    elif step == "renamed":
        atomic._flush_folder = die
    else:
        setattr(os, {"flushing": "fsync", "renaming": "replace"}[step], die)
    save(filepath, 2)


def wait_in_the_middle(filepath, reports):
    """Saves, and waits for a message before the file is complete."""
    with atomic.replacing(filepath) as file:
        file.write(b"half")
        file.flush()
        reports.send("half")
        reports.recv()
        file.write(b" and half")
    reports.send("done")


def save_tied_again_and_again(filepath, reports, first=1):
    """The same with a real model."""
    import keras

    import tiedio

    model = tied_model(keras, tiedio)
    generation = first
    while True:
        for variable in model.weights:
            variable.assign(np.full(variable.shape, generation, "float32"))
        tiedio.save_tied(model, filepath)
        reports.send(generation)
        generation += 1


def tied_model(keras, tiedio):
    layers = [keras.layers.Dense(1024, use_bias=False) for _ in range(3)]
    model = keras.Sequential([keras.Input((1024,)), *layers])
    tiedio.tie(layers[2], to=layers[0])
    return model
