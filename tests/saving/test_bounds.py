"""What hostile files cost: memory by their size and the model's, and time by their size.

Beside the file and the model 300 MB, and 2 seconds of a processor for each megabyte; see `bounded`.
"""

import struct
import sys

import bounded
import h5py
import keras
import numpy as np
import pytest

import tiedio

if sys.platform != "linux":
    pytest.skip("limits of a process's memory are Linux's", allow_module_level=True)

LAYER_LISTS = "model_weights"


@pytest.fixture(scope="module")
def bounds():
    process = bounded.Bounded()
    yield process
    process.end()


def every(*entries, quick="load_tied"):
    """Takes each entry; all but one are slow."""
    marks = {True: [], False: [pytest.mark.slow]}
    entries = entries or bounded.ENTRIES
    return pytest.mark.parametrize(
        "entry", [pytest.param(one, marks=marks[one == quick]) for one in entries]
    )


# Attributes


def with_one_text_often(filepath, path, name, length, count):
    """Gives an object an attribute of many texts, all of which lie in one place of the file."""
    with h5py.File(filepath, "a") as file:
        if name in file[path].attrs:
            del file[path].attrs[name]
        texts = np.array(["x" * length] + ["Q"] * (count - 1), dtype=object)
        file[path].attrs.create(name, texts, dtype=h5py.string_dtype())
    raw = bytearray(filepath.read_bytes())
    at = raw.find(struct.pack("<I", length))
    while raw[at + 16 : at + 20] != struct.pack("<I", 1):
        at = raw.find(struct.pack("<I", length), at + 1)
    raw[at : at + 16 * count] = bytes(raw[at : at + 16]) * count
    filepath.write_bytes(raw)


def saved_by_keras(filepath):
    model = bounded.model()
    (model.save_weights if filepath.name.endswith(".weights.h5") else model.save)(filepath)
    return filepath


BOMBS = {
    "that nobody asks for": ("model.h5", "/", "other"),
    "of layers": ("model.h5", LAYER_LISTS, "layer_names"),
    "of weights": ("model.h5", f"{LAYER_LISTS}/first", "weight_names"),
    "of the dtype": ("model.weights.h5", "layers/dense/vars/0", "dtype"),
    "of a name": ("model.weights.h5", "layers/dense/vars", "name"),
}


@pytest.mark.parametrize("name", BOMBS)
@every()
def test_an_attribute_of_one_text_many_times(bounds, tmp_path, name, entry):
    file, path, attribute = BOMBS[name]
    filepath = saved_by_keras(tmp_path / file)
    with h5py.File(filepath, "a") as content:
        if "first" in path:
            path = next(f"{one.name}" for one in content[LAYER_LISTS].values() if len(one))
        if attribute == "dtype":
            del content[path]
            content.create_dataset(path, data=np.zeros((3, 3), "V2"))
    with_one_text_often(filepath, path, attribute, 400_000, 3900)
    came, told = bounds.check(entry, filepath)
    assert came == "fine" or "attribute" in told, told


def test_honest_attributes_are_read(tmp_path):
    """Keras 3 writes lists of texts of any length, the configs as one text."""
    filepath = tmp_path / "model.h5"
    layers = [keras.layers.Dense(1, name=f"{'x' * 300}_{number}") for number in range(80)]
    model = keras.Sequential([keras.Input((1,)), *layers])
    model.save(filepath)
    with h5py.File(filepath) as file:
        assert file[LAYER_LISTS].attrs["layer_names"].dtype == object
        assert len(file.attrs["model_config"]) > 1 << 16
    loaded = tiedio.load_tied(filepath)
    assert all(map(np.array_equal, loaded.get_weights(), model.get_weights()))
