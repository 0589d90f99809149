"""Trains a tied model on several devices, saves it, and loads it onto others.

Run as a program, as devices are made before anything else, with `ACT FOLDER DEVICES LAYOUT`:
`save` saves in every format and trains on; `load` loads each, and trains on: is it as
uninterrupted? `both` does the one after the other, on TensorFlow too, whose strategy is no layout.
`processes` does it in one of two processes, to Orbax only, and is told which it is, and a port.
"""

import contextlib
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[3]}"

import keras
import numpy as np

import tiedio

ACT, FOLDER = sys.argv[1], Path(sys.argv[2])
LAYOUT, *PROCESS = sys.argv[4:]
DATA = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
ORBAX = str(FOLDER / "orbax")
# Keras' own callback for Orbax cannot count the steps of a model of its strategies.
IS_TENSORFLOW = keras.backend.backend() == "tensorflow"


def strategy():
    import tensorflow as tf

    cpu, *_ = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()


def layout(kind):
    """Returns the distribution: no one, `data`, or kernels laid out by `columns` or `rows`."""
    devices = keras.distribution.list_devices()
    if kind == "none":
        return contextlib.nullcontext()
    if kind == "data":
        data = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
        return data.scope()
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ["batch", "model"], devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*kernel"] = {"columns": (None, "model"), "rows": ("model", None)}[kind]
    return keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
    ).scope()


def built():
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, activation="tanh") for _ in range(3)]
    noise = keras.layers.GaussianNoise(0.1)
    model = keras.Sequential([keras.Input((8,)), layers[0], noise, *layers[1:]])
    model.compile(optimizer="adam", loss="mse")
    return model


def tied(model):
    first, _, second, shown = model.layers
    tiedio.tie(second, to=first)
    tiedio.tie(shown, to=first, weights=("kernel",), transpose=True)
    return model


def train(model, callbacks=()):
    model.fit(DATA, DATA, epochs=2, shuffle=False, verbose=0, callbacks=[*callbacks])


def state_of(model):
    return [keras.ops.convert_to_numpy(v) for v in (*model.variables, *model.optimizer.variables)]


def save():
    model = tied(built())
    train(model, [] if IS_TENSORFLOW else [tiedio.TiedOrbaxCheckpoint(ORBAX)])
    tiedio.save_tied(model, FOLDER / "model.keras")
    tiedio.save_tied_weights(model, FOLDER / "model.weights.h5")
    before = state_of(model)
    train(model)
    np.savez(FOLDER / "state.npz", *before, *state_of(model))


def load(is_exact):
    with np.load(FOLDER / "state.npz") as held:
        expected = [held[key] for key in held.files]
    wholes, weights = [FOLDER / "model.keras"], [FOLDER / "model.weights.h5"]
    if not IS_TENSORFLOW:
        wholes, weights = [*wholes, ORBAX], [*weights, ORBAX]
    existing = [built() for _ in weights]
    for model, path in zip(existing, weights, strict=True):
        tiedio.load_tied_weights(model, path)
    for model in (*existing, *map(tiedio.load_tied, wholes)):
        first, _, second, shown = model.layers
        assert first.kernel is second.kernel and first.bias is second.bias
        assert np.array_equal(shown.kernel, np.transpose(first.kernel))
        assert len(model.trainable_variables) == 3
        check_layout(model)
        before = state_of(model)
        for one, other in zip(before, expected[: len(before)], strict=True):
            assert one.tobytes() == other.tobytes()
        train(model)
        for one, other in zip(state_of(model), expected[len(before) :], strict=True):
            # Sums over parts of a kernel are rounded otherwise.
            assert np.allclose(one, other, rtol=1e-4, atol=1e-6)
            assert not is_exact or one.tobytes() == other.tobytes()


def check_layout(model):
    """Checks that kernels, and their slots, are laid out as those of a model that is built here."""
    fresh = built()
    fresh.optimizer.build(fresh.trainable_variables)
    if IS_TENSORFLOW:
        assert len(model.layers[0].kernel.value.values) == 2
        return
    kernels = [one for one in model.optimizer.variables if one.shape == (8, 8)]
    for kernel in (model.layers[0].kernel, *kernels):
        assert kernel.value.sharding == fresh.layers[0].kernel.value.sharding


def in_processes():
    """Values are on no single process: Orbax saves them, a file cannot."""
    model = tied(built())
    file, weights_file = FOLDER / "model.keras", FOLDER / "model.weights.h5"
    for save_to_file, path in ((tiedio.save_tied, file), (tiedio.save_tied_weights, weights_file)):
        try:
            save_to_file(model, path)
        except tiedio.TiedioError as error:
            assert "`dense/kernel`, `dense_1/kernel`" in str(error)
            assert "TiedOrbaxCheckpoint" in str(error) and not path.exists()
        else:
            raise AssertionError("a part of the values was saved as all of them")
    train(model, [tiedio.TiedOrbaxCheckpoint(ORBAX)])
    resumed = tiedio.load_tied(ORBAX)
    weights = built()
    tiedio.load_tied_weights(weights, ORBAX)
    train(model)
    for one in (resumed, weights):
        train(one)
        check_parts(one, model)
    with layout("data"):  # each process has all values, and both save them to one path
        whole = tied(built())
        for _ in range(5):
            tiedio.save_tied(whole, file)
            tiedio.save_tied_weights(whole, weights_file)
    laid_out, weights = tiedio.load_tied(file), built()
    tiedio.load_tied_weights(weights, weights_file)
    for one in (laid_out, weights):
        check_parts(one, tied(built()))


def check_parts(model, expected):
    """Checks that ties, and what of the values this process has, are as expected."""
    assert model.layers[0].kernel is model.layers[2].kernel
    for one, other in zip(model.weights, expected.weights, strict=True):
        assert one.value.sharding == other.value.sharding
        shards = one.value.addressable_shards, other.value.addressable_shards
        assert all(np.array_equal(a.data, b.data) for a, b in zip(*shards, strict=True))


if __name__ == "__main__":
    if PROCESS:
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{PROCESS[1]}", 2, int(PROCESS[0]))
    with strategy() if IS_TENSORFLOW else layout(LAYOUT):
        if ACT == "processes":
            in_processes()
        if ACT in ("save", "both"):
            save()
        if ACT in ("load", "both"):
            load(is_exact=ACT == "both")
