"""What is saved while another thread trains can be loaded: its digests are of the bytes written."""

import io
import threading

import generations
import keras
import numpy as np
import pytest

import tiedio
from tiedio.formats import digests, hdf5_writer
from tiedio.storage.locating import at


class Trained:
    """An array that changes whenever it was looked at, as if a thread trained it."""

    def __init__(self):
        self.array = np.zeros(generations.TENSOR_BYTES // 8, "int64")

    def train(self):
        self.array += 1


def content(trained, container):
    config = {"generation": 0} if container.holds_model else None
    return generations.content(0, read=lambda: trained.array, config=config)


def assert_sound(filepath):
    with generations.table.reading(at(filepath)) as source:
        source.read_record(verify=True)
        if source.verify_weights:
            source.verify_weights()
        assert not source.weights.find_damaged()


@pytest.mark.parametrize("suffix", generations.SUFFIXES)
def test_what_changes_once_it_was_digested(tmp_path, monkeypatch, suffix):
    trained, of_part = Trained(), digests.of_part

    def digest_and_train(part):
        digest = of_part(part)
        trained.train()
        return digest

    container = generations.SUFFIXES[suffix]
    filepath = tmp_path / f"model{suffix}"
    with monkeypatch.context() as patched:
        patched.setattr(digests, "of_part", digest_and_train)
        container.write(at(filepath), content(trained, container), False, hdf5_writer.untold)
    assert trained.array[0] > 0
    assert_sound(filepath)


@pytest.mark.parametrize("container", [generations.ZIPPED, generations.BARE])
def test_what_changes_before_another_thread_writes_it(container):
    trained = Trained()

    class File(io.BytesIO):
        def write(self, data):
            trained.train()
            return super().write(data)

    file = File()
    container.write(at(file), content(trained, container), False, hdf5_writer.untold)
    assert trained.array[0] > 0
    assert_sound(file)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "folder", "w.weights.h5"])
def test_a_model_that_a_thread_assigns_to(tmp_path, name):
    layers = [keras.layers.Dense(1024) for _ in range(2)]
    model = keras.Sequential([keras.Input((1024,)), *layers])
    tiedio.tie(layers[1], to=layers[0])
    done = threading.Event()

    def train():
        while not done.is_set():
            for variable in model.variables:
                variable.assign_add(keras.ops.ones(variable.shape, variable.dtype))

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for number in range(5):
            filepath = tmp_path / f"{number} {name}"
            if "weights" in name:
                tiedio.save_tied_weights(model, filepath, durable=False)
                tiedio.load_tied_weights(keras.models.clone_model(model), filepath)
            else:
                zipped = name != "folder"
                tiedio.save_tied(model, filepath, zipped=zipped, durable=False)
                loaded = tiedio.load_tied(filepath)
                assert loaded.layers[0].kernel is loaded.layers[1].kernel
    finally:
        done.set()
        thread.join()
