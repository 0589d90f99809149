"""Small files of one model, and what tools other than tiedio may do to them."""

import io
import os
import shutil
import zipfile

import h5py
import keras
import numpy as np

import tiedio

WEIGHTS = "model.weights.h5"


def write(folder):
    """Writes a model with tied kernels, as tiedio and Keras do; and one with two kernels."""
    model = _model()
    tiedio.tie(model.layers[1], to=model.layers[0], weights=("kernel",))
    _fill(model)
    tiedio.save_tied(model, folder / "tied.keras")
    tiedio.save_tied(model, folder / "folder", zipped=False)
    tiedio.save_tied(model, folder / "tied.h5")
    tiedio.save_tied_weights(model, folder / "tied.weights.h5")
    tiedio.save_tied_weights(model, folder / "tied.weights.json", max_shard_size=1e-6)
    model.save(folder / "lost.keras")
    model.save_weights(folder / "lost.weights.h5")
    model.compiled = False  # without the state of the optimizer, nothing tells that they were tied
    model.save(folder / "unsure.keras")
    apart = _model()
    _fill(apart)
    apart.save(folder / "apart.keras")
    return folder


def _model():
    layers = [keras.layers.Dense(8, name=name) for name in ("encoder", "decoder")]
    model = keras.Sequential([keras.Input((8,)), *layers], name="autoencoder")
    model.compile(optimizer="adam", loss="mse")
    return model


def _fill(model):
    random = np.random.default_rng(0)
    model.optimizer.build(model.trainable_variables)
    for variable in (*model.trainable_variables, *model.optimizer.variables):
        # Biases stay zero, which says nothing of ties.
        if variable.ndim == 2:
            variable.assign(random.normal(size=variable.shape))


def edited(filepath, target, edit):
    """Copies a file with its HDF5 changed, as other tools might."""
    if filepath.suffix != ".keras":
        shutil.copy(filepath, target)
        with h5py.File(target, "r+") as file:
            edit(file)
        return target
    with opened(filepath) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO(members[WEIGHTS])
    with h5py.File(content, "r+") as file:
        edit(file)
    return zipped(target, {**members, WEIGHTS: content.getvalue()})


def opened(filepath):
    return zipfile.ZipFile(filepath)


def zipped(target, members):
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def flipped(filepath, target, array):
    """Copies a file with one bit of an array in it changed."""
    content = bytearray(filepath.read_bytes())
    content[content.index(np.ascontiguousarray(array).tobytes()) + 1] ^= 1
    target.write_bytes(content)
    return target


def values(filepath, dataset_path):
    with opened(filepath) as archive:
        content = io.BytesIO(archive.read(WEIGHTS))
    with h5py.File(content) as file:
        return file[dataset_path][()]


def weights(filepath, arrays, links=None):
    """Writes a file of weights without a record."""
    with h5py.File(filepath, "w") as file:
        for path, array in arrays.items():
            file[path] = array
        for path, first in (links or {}).items():
            file[path] = file[first]
    return filepath


def size(filepath):
    return os.path.getsize(filepath)
