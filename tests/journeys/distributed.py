"""Trains a tied model on two devices, saves it, loads it and trains on: is it as uninterrupted?

Run as a program, as devices are made before anything else. TensorFlow and JAX only.
"""

import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras
import numpy as np

import tiedio

DATA = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")


def mirrored(run):
    import tensorflow as tf

    cpu, *_ = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        run(lambda variable: len(variable.value.values))


def on_devices(run):
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*kernel"] = (None, "model")
    for distribution in (
        keras.distribution.DataParallel(devices=devices),
        keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch"),
    ):
        with distribution.scope():
            run(lambda variable: len(variable.value.sharding.device_set))


def built():
    layers = [keras.layers.Dense(4, activation="tanh") for _ in range(2)]
    return keras.Sequential([keras.Input((4,)), *layers])


def train(model):
    model.fit(DATA, DATA, epochs=2, shuffle=False, verbose=0)


def resume(devices_of):
    model = built()
    tiedio.tie(model.layers[1], to=model.layers[0])
    model.compile(optimizer="adam", loss="mse")
    train(model)
    tiedio.save_tied(model, FOLDER / "model.keras")
    tiedio.save_tied_weights(model, FOLDER / "model.weights.h5")
    train(model)
    untied = built()
    untied.compile(optimizer="adam", loss="mse")
    tiedio.load_tied_weights(untied, FOLDER / "model.weights.h5")
    for other in (tiedio.load_tied(FOLDER / "model.keras"), untied):
        tiedio.assert_tied(other, tiedio.find_ties(model))
        assert [devices_of(one) for one in other.weights] == [2, 2]
        train(other)
        for one, expected in zip(other.get_weights(), model.get_weights(), strict=True):
            assert np.array_equal(one, expected)


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    {"tensorflow": mirrored, "jax": on_devices}[keras.backend.backend()](resume)
