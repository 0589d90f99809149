"""Models on a card: saved and loaded by parts, without the copies of the backend.

The card is memory of the host, which the driver would take for that of one.
"""

import ctypes
import json

import keras
import numpy as np
import pytest
import xxhash
from sample_files import flipped, opened, zipped

import tiedio
from tiedio.errors import FileFormatError
from tiedio.formats import device_memory, digests, hdf5_writer
from tiedio.saving import deferral

ON_HOST = 1  # as DLPack numbers it
LARGE = 1 << 12  # bytes


class Driver:
    """A driver whose card is the host."""

    device_type = ON_HOST

    def __init__(self, can_pin):
        self.can_pin = can_pin
        self.copied = {"to_host": 0, "to_device": 0}
        self.largest = 0
        self.pinned = {}
        self.pins = 0

    def to_host(self, device, address, host, size):
        self._copy("to_host", host, address, size)

    def to_device(self, device, address, host, size):
        self._copy("to_device", address, host, size)

    def _copy(self, way, to, from_, size):
        ctypes.memmove(to, from_, size)
        self.copied[way] += size
        self.largest = max(self.largest, size)

    def synchronize(self, device):
        pass

    def pin(self, device, host, size):
        if not self.can_pin:
            raise OSError("no memory may be pinned")
        self.pinned[host] = size
        self.pins += 1

    def unpin(self, device, host):
        del self.pinned[host]


@pytest.fixture(params=[True, False], ids=["pinned", "not pinned"])
def driver(request, monkeypatch):
    made = Driver(request.param)
    monkeypatch.setattr(device_memory, "driver", lambda: made)
    monkeypatch.setattr(deferral, "driver", lambda: made)
    monkeypatch.setattr(digests, "PART", 1 << 12)
    monkeypatch.setattr(hdf5_writer, "_LARGE", LARGE)
    monkeypatch.setattr(deferral, "_LARGE_ON_CARD", dict.fromkeys(("torch", "jax"), LARGE))
    return made


def trained():
    first, second = keras.layers.Dense(64), keras.layers.Dense(64)
    model = keras.Sequential([keras.Input((64,)), first, second, keras.layers.Dense(3)])
    tiedio.tie(second, to=first)
    model.compile("adam", "mse")
    model.fit(*data(), epochs=1, verbose=0)
    return model


def data():
    random = np.random.default_rng(0)
    return random.random((8, 64), "float32"), random.random((8, 3), "float32")


def values(model):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in everything(model)]


def everything(model):
    return [*model.variables, *model.optimizer.variables]


def assert_equal(model, other):
    for mine, others in zip(values(model), values(other), strict=True):
        assert mine.tobytes() == others.tobytes()


def test_training_goes_on_as_it_would(tmp_path, driver):
    model = trained()
    tiedio.save_tied(model, tmp_path / "model.keras")
    large = [v for v in everything(model) if np.prod(v.shape) * 4 >= LARGE]
    size = sum(int(np.prod(v.shape)) * 4 for v in large)
    assert size == 3 * 64 * 64 * 4  # the shared kernel once, and its slots
    on_card = keras.backend.backend() != "tensorflow"
    if on_card:
        assert driver.copied == {"to_host": size, "to_device": 0}
        assert driver.largest == digests.PART
    loaded = tiedio.load_tied(tmp_path / "model.keras")
    assert loaded.layers[0].kernel is loaded.layers[1].kernel
    assert_equal(model, loaded)
    if on_card:
        assert driver.copied == {"to_host": size, "to_device": size}
        assert bool(driver.pins) == driver.can_pin
        assert not driver.pinned  # any more
    for one in (model, loaded):
        one.fit(*data(), epochs=2, shuffle=False, verbose=0)
    assert_equal(model, loaded)


def test_integers_of_which_a_backend_keeps_half(tmp_path, driver):
    class Counts(keras.layers.Layer):
        def build(self, input_shape):
            self.counts = self.add_weight((64, 64), dtype="int64", trainable=False)

        def call(self, inputs):
            return inputs

    model = keras.Sequential([keras.Input((2,)), Counts()])
    model.layers[0].counts.assign(np.arange(64 * 64).reshape(64, 64))
    tiedio.save_tied(model, tmp_path / "model.keras")
    loaded = tiedio.load_tied(tmp_path / "model.keras", custom_objects={"Counts": Counts})
    assert np.array_equal(loaded.get_weights()[0], np.arange(64 * 64).reshape(64, 64))


def test_the_file_is_that_of_any_model(tmp_path, driver, monkeypatch):
    model = trained()
    tiedio.save_tied_weights(model, tmp_path / "card.weights.h5")
    monkeypatch.setattr(device_memory, "driver", lambda: None)
    tiedio.save_tied_weights(model, tmp_path / "host.weights.h5")
    card, host = ((tmp_path / f"{name}.weights.h5").read_bytes() for name in ("card", "host"))
    assert card == host


def test_a_copy_for_the_background_is_made_at_once(tmp_path, driver):
    model = trained()
    before = values(model)
    for _ in range(2):
        saving = tiedio.save_tied(model, tmp_path / "model.keras", background=True)
    pins = driver.pins  # the memory of the copy is pinned once
    model.fit(*data(), epochs=1, verbose=0)
    saving.wait()
    for old, kept in zip(before, values(tiedio.load_tied(tmp_path / "model.keras")), strict=True):
        assert old.tobytes() == kept.tobytes()
    if keras.backend.backend() != "tensorflow":
        assert pins == driver.can_pin
        assert driver.copied["to_host"] > 2 * 3 * 64 * 64 * 4


def test_damage_is_found_on_the_way(tmp_path, driver):
    model = trained()
    tiedio.save_tied(model, tmp_path / "model.keras")
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
    flipped(tmp_path / "model.keras", tmp_path / "damaged.keras", kernel[32:])
    with pytest.raises(FileFormatError, match="layers/dense/vars/0"):
        tiedio.load_tied(tmp_path / "damaged.keras")


def test_a_digest_of_all_bytes_is_made_on_the_host(tmp_path, driver):
    model = trained()
    tiedio.save_tied(model, tmp_path / "model.keras")
    with opened(tmp_path / "model.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
    metadata = json.loads(members["metadata.json"])
    old = xxhash.xxh3_64(b"float32[64, 64]" + kernel.tobytes()).hexdigest()
    metadata["tiedio"]["digests"]["layers/dense/vars/0"] = old
    members["metadata.json"] = json.dumps(metadata).encode()
    assert_equal(model, tiedio.load_tied(zipped(tmp_path / "old.keras", members)))


def test_who_looks_at_a_value_waits_for_it(tmp_path, driver, monkeypatch):
    model = trained()
    tiedio.save_tied(model, tmp_path / "model.keras")
    load, seen = keras.layers.Dense.load_own_variables, []

    def load_and_look(self, store):
        load(self, store)
        seen.append(keras.ops.convert_to_numpy(self.kernel))

    load_and_look.__module__ = load.__module__
    monkeypatch.setattr(keras.layers.Dense, "load_own_variables", load_and_look)
    tiedio.load_tied(tmp_path / "model.keras")
    kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers]
    assert [one.tobytes() for one in seen] == [one.tobytes() for one in kernels]


def test_what_a_backend_makes_of_what_is_not_read_yet(tmp_path, driver, monkeypatch):
    model = trained()
    tiedio.save_tied(model, tmp_path / "model.keras")

    def load(self, store):
        for number, variable in enumerate(self.variables):
            variable.assign(keras.ops.multiply(store[str(number)], 2))

    load.__module__ = keras.layers.Dense.load_own_variables.__module__
    monkeypatch.setattr(keras.layers.Dense, "load_own_variables", load)
    loaded = tiedio.load_tied(tmp_path / "model.keras")
    for mine, twice in zip(model.variables, loaded.variables, strict=True):
        assert np.array_equal(
            2 * keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(twice)
        )


def test_a_card_that_fails(tmp_path, driver, monkeypatch):
    tiedio.save_tied(trained(), tmp_path / "model.keras")

    def fail(*_):
        raise OSError("CUDA failed")

    monkeypatch.setattr(driver, "to_device", fail)
    if keras.backend.backend() != "tensorflow":
        with pytest.raises(FileFormatError, match="layers/dense/vars/0"):
            tiedio.load_tied(tmp_path / "model.keras")
