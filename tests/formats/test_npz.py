"""Values that Keras pickled into `.npz` are read, and nothing that a pickle names is run."""

import io
import os
import pickle
import struct
import subprocess
import time
import tracemalloc
import zipfile

import keras
import ml_dtypes
import numpy as np
import pytest
import scenarios
from keras.src.saving import saving_lib

import tiedio
from tiedio.errors import FileFormatError
from tiedio.formats import npz
from tiedio.formats.hdf5_reader import WeightsFile
from tiedio.storage.streams import Window

SECONDS = 15
MEMORY = 1 << 29  # bytes


def stored_in(content, *paths):
    """Reads arrays from the bytes of a `.npz` file."""
    with npz.converted(Window(io.BytesIO(content), 0, len(content)), "model.npz") as window:
        weights = WeightsFile([window], "model.npz")
        try:
            return [weights.read(path) for path in paths]
        finally:
            weights.close()


def refusal(content):
    with pytest.raises(FileFormatError) as error:
        stored_in(content)
    assert str(error.value).count("\n") == 2
    return str(error.value)


# What Keras writes


def mixed():
    """A model with variables of several dtypes, and one at its root."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1)),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2, dtype="bfloat16", kernel_constraint="max_norm"),
        ]
    )
    return scenarios.compiled(model)


@pytest.mark.filterwarnings("ignore:.*Skipping variable loading")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_model_that_keras_saved_as_npz(tmp_path, zipped):
    model = mixed()
    scenarios.train(model)
    filepath = tmp_path / ("model.keras" if zipped else "model")
    saving_lib.save_model(model, filepath, weights_format="npz", zipped=zipped)
    with pytest.raises(Exception, match=r"allow_pickle|weights_store"):
        saving_lib.load_model(filepath)
    if keras.backend.backend() == "torch":  # which pickles its tensors in a format of its own
        with pytest.raises(FileFormatError, match=r"Received: torch\._utils\._rebuild_parameter\."):
            tiedio.load_tied(filepath)
        return
    loaded = tiedio.load_tied(filepath)
    for one, other in zip(scenarios.state_of(model), scenarios.state_of(loaded), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert int(loaded.optimizer.iterations) > 0


# What others write


def saved(**members):
    stream = io.BytesIO()
    np.savez(stream, **members)
    return stream.getvalue()


ARRAYS = {
    "by rows": np.arange(6, dtype="float32").reshape(2, 3),
    "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "foreign byte order": np.arange(6, dtype=">i4")[::2],
    "bfloat16": np.array([1.5, -2], ml_dtypes.bfloat16),
    "a scalar": np.float64(3),
    "nothing": np.zeros((0, 4), "uint8"),
    "a truth": np.array(True),
    "complex": np.array([1 + 2j]),
    "an int": 7,
    "a float": 0.5,
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_in_dicts(name):
    array = ARRAYS[name]
    content = saved(**{"layers/dense": {"0": array}, "__root__": {"a": array}})
    for stored in stored_in(content, "layers/dense/vars/0", "vars/a"):
        assert stored.shape == np.shape(array)
        assert stored.dtype.newbyteorder("=") == np.asarray(array).dtype.newbyteorder("=")
        assert np.array_equal(stored, array)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_protocol_that_numpy_wrote(protocol):
    content = pickled(pickle.dumps(np.array({"0": np.arange(3)}, object), protocol))
    if protocol == 2:  # has no bytes: Python makes them of text, by a function
        assert "cannot be read" in refusal(content)
    else:
        assert np.array_equal(stored_in(content, "layers/dense/vars/0")[0], np.arange(3))


def test_plain_arrays():
    content = saved(**{"layers/dense/vars/0": np.arange(3), "layers/dense/vars/1": np.eye(2)})
    first, second = stored_in(content, "layers/dense/vars/0", "layers/dense/vars/1")
    assert np.array_equal(first, np.arange(3))
    assert np.array_equal(second, np.eye(2))


# Hostile


def pickled(content, name="layers/dense.npy", **options):
    """Makes a `.npz` file of a pickle."""
    header = io.BytesIO()
    plain = {"descr": "|O", "fortran_order": False, "shape": (), **options}
    np.lib.format.write_array_header_1_0(header, plain)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, header.getvalue() + content)
    return stream.getvalue()


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = function, arguments, state

    def __reduce__(self):
        return self.reduced[: 2 if self.reduced[2] is None else 3]


class Dict(dict):
    """A dict that pickles as one that is made by a function."""

    def __reduce__(self):
        return run, (), None, None, iter(self.items())


ran = []


def run(*arguments):
    ran.append(arguments)
    return np.zeros(1)


def array_of(shape, content=b"", code="f8", by_columns=False):
    """An array as it is pickled, of parts that need not fit."""
    dtype = Calls(np.dtype, code, False, True, state=(3, "<", None, None, None, -1, -1, 0))
    start = Calls(np.ndarray.__reduce__(np.zeros(1))[0], np.ndarray, (0,), b"b")
    start.reduced = (*start.reduced[:2], (1, shape, dtype, by_columns, content))
    return start


def nested(depth):
    value = ()
    for _ in range(depth):
        value = (value, value)
    return value


def in_itself():
    value = {}
    value["_value"] = made = Calls(run, state=value)
    return made


HOSTILE = {
    "a call": Calls(run),
    "a command": Calls(os.system, "touch ran"),
    "a process": Calls(subprocess.check_output, ("touch", "ran")),
    "an expression": Calls(eval, "ran.append(1)"),
    "a call in a state": Calls(run, state={"_value": Calls(run)}),
    "a call by a partial": Calls(run, state=(run, (), {"initial_value": Calls(run)}, None)),
    "a call among arguments": Calls(run, Calls(run)),
    "a huge shape": array_of((1 << 40, 1 << 40)),
    "a shape of zero bytes": array_of((0, 1 << 70)),
    "a negative shape": array_of((-1, -8), bytes(64)),
    "a shape of booleans": array_of((True,), bytes(8)),
    "a shape that is a number": array_of(8, bytes(64)),
    "a shape of texts": array_of(("8",), bytes(64)),
    "a shape that takes for ever to print": array_of(nested(60), bytes(8)),
    "too few bytes": array_of((8,), bytes(63)),
    "too many bytes": array_of((8,), bytes(65)),
    "text for bytes": array_of((8,), "x" * 64),
    "a list for bytes": array_of((1,), [1]),
    "a dtype of objects": array_of((1,), bytes(8), "O8"),
    "a dtype that is a structure": array_of((1,), bytes(8), "f4,f4"),
    "a dtype that is none": array_of((1,), bytes(8), "b2"),
    "a dtype that is made": array_of((1,), bytes(8), Calls(run)),
    "a value in itself": in_itself(),
    "text": "x",
    "nothing": None,
    "a dict": {"0": 1},
    "a tuple of tuples": nested(60),
    "a huge number": 1 << 1000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_value_is_refused_and_runs_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickled(pickle.dumps(np.array({"0": HOSTILE[name]}, object), 4))
    ran.clear()
    start = time.process_time()
    assert "cannot" in refusal(content)
    assert time.process_time() - start < SECONDS
    assert not ran
    assert os.listdir(tmp_path) == []


def test_the_calls_of_these_tests_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran.clear()
    pickle.loads(pickle.dumps([HOSTILE["a call"], HOSTILE["a command"]]))  # noqa: S301
    assert ran
    assert os.listdir(tmp_path) == ["ran"]


WHOLE = {
    "another object": pickle.dumps(Calls(run), 4),
    "no dict": pickle.dumps(np.array([1], object), 4),
    "several": pickle.dumps(np.array([{}, {}], object), 4),
    "a dict that is made": pickle.dumps(np.array(Dict({"0": np.eye(2)}), object), 4),
    "nothing": b"",
    "no end": pickle.dumps(np.array({"0": np.eye(2)}, object), 4)[:-1],
    "two of them": pickle.dumps(np.array({"0": np.eye(2)}, object), 4) * 2,
    "only an end": b".",
    "a mark that is missing": b"\x80\x04t.",
    "arguments that are missing": b"\x80\x04R.",
    "values below a mark": b"\x80\x04))(R.",
    "a value that was never remembered": b"\x80\x04h\x07.",
    "a value at a huge place": b"\x80\x04)r\xff\xff\xff\x7f.",
    "a state of a name": b"\x80\x04cos\nsystem\n}b.",
    "a name of numbers": b"\x80\x04K\x01K\x02\x93.",
    "a name in another object": b"(S'touch ran'\nios\nsystem\n.",
    "an object by its number": b"\x80\x02\x82\x01.",
    "an object that is elsewhere": b"\x80\x04)Q.",
    "unknown opcodes": b"\x80\x04\xff.",
    "8 exabytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "8 gigabytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b".",
    "a frame of exabytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b".",
    "keys that take for ever to compare": b"\x80\x04})"
    + b"".join(b"\x94h%c\x86" % place for place in range(60))
    + b"Ns.",
    "lists in lists": b"\x80\x04" + b"]" * 10_000 + b"a" * 9_999 + b".",
    "4 MB of lists": b"\x80\x04" + b"]" * (4 << 20) + b".",
    "4 MB of memory": b"\x80\x04)" + b"\x94" * (4 << 20) + b".",
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_hostile_pickle_is_refused_and_runs_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(npz, "_MOST_OPCODES", 1 << 18)  # which takes less than a second
    content = pickled(WHOLE[name])
    ran.clear()
    traced = len(content) < 1 << 20  # which takes much longer
    if traced:
        tracemalloc.start()
    start = time.process_time()
    try:
        assert "values that cannot be read (" in refusal(content)
    finally:
        peak = tracemalloc.get_traced_memory()[1] if traced else 0
        tracemalloc.stop()
    assert time.process_time() - start < SECONDS
    assert peak < MEMORY
    assert not ran
    assert os.listdir(tmp_path) == []


FINE = np.array({"0": np.eye(2)}, object)


@pytest.mark.parametrize(
    "name", ["../x.npy", "/x.npy", "a//b.npy", "./x.npy", "a/../b.npy", ".npy", "a/..npy"]
)
def test_a_member_of_a_path_that_is_none(name):
    content = pickled(pickle.dumps(FINE, 4), name)
    assert "is no path" in refusal(content)


@pytest.mark.parametrize("key", ["", "..", "a/../b", "/a", "a\0b"])
def test_a_key_that_is_no_name(key):
    assert "is no path" in refusal(saved(**{"layers/dense": {key: np.eye(2)}}))


def test_a_path_below_a_value():
    content = saved(**{"a": np.eye(2), "a/b": np.eye(2)})
    assert "values that cannot be read" in refusal(content)


def test_a_member_that_is_compressed_is_a_bomb():
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.zeros(1 << 20))
    assert "members larger than the file" in refusal(stream.getvalue())


@pytest.mark.parametrize("shape", [(1 << 50,), (1 << 20, 1 << 40), (3,)])
def test_a_plain_array_of_another_size(shape):
    content = pickled(bytes(16), descr="<f8", shape=shape)
    assert "16 bytes in a shape of" in refusal(content)


@pytest.mark.parametrize("part", [slice(50), slice(-30), slice(4, None)])
def test_a_file_that_is_cut_short(part):
    assert "values that cannot be read" in refusal(saved(a=np.eye(9))[part])


def test_a_value_that_was_changed():
    content = bytearray(saved(**{"layers/dense": {"0": np.full(8, 7.0)}}))
    place = content.index(struct.pack("<d", 7))
    content[place] ^= 1
    assert "Bad CRC-32" in refusal(bytes(content))


@pytest.mark.parametrize("chance", range(40))
def test_flipped_bits_are_refused_or_harmless(chance):
    random = np.random.default_rng(chance)
    content = pickle.dumps(np.array({"0": np.arange(8.0)}, object), 4)
    flipped = bytearray(content)
    for place in random.integers(len(content), size=3):
        flipped[place] ^= 1 << random.integers(8)
    try:
        stored_in(pickled(bytes(flipped)))
    except FileFormatError as error:
        assert str(error).count("\n") == 2
