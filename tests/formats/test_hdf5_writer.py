"""The weights file: what is streamed is what h5py would have written."""

import io

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tiedio.errors import FileFormatError
from tiedio.formats import digests, hdf5_reader, hdf5_writer, parts
from tiedio.storage.streams import Window, WriteBehind

DTYPES = ["float32", "float16", "float64", "int32", "int64", "uint8", "bool"]


class OneWay(io.RawIOBase):
    """A stream that can be written once, from start to end, as a socket or a zip member."""

    def __init__(self):
        self.parts = []

    def writable(self):
        return True

    def write(self, data):
        self.parts.append(bytes(data))
        return len(self.parts[-1])


def tensor(array):
    return hdf5_writer.Tensor(array.shape, array.dtype, lambda: array)


def opened(file, name="x"):
    return hdf5_reader.WeightsFile([Window(file, 0, file.seek(0, io.SEEK_END))], name)


def streamed(layout, **options):
    """Writes a layout; returns the digests, and the file."""
    stream = OneWay()
    with WriteBehind(stream) as behind:
        digests = hdf5_writer.write(layout, behind, **options)
    return digests, io.BytesIO(b"".join(stream.parts))


def write(arrays, links=None, groups=None):
    layout = hdf5_writer.Layout(
        groups or {}, {p: tensor(a) for p, a in arrays.items()}, links or {}
    )
    digests, file = streamed(layout)
    assert digests.keys() == {*arrays, *(links or {})}
    return file


@given(
    st.lists(
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
        ),
        max_size=12,
    )
)
def test_arrays_of_any_shape_come_back(arrays):
    named = {f"layers/layer_{i}/vars/{i % 3}": array for i, array in enumerate(arrays)}
    file = write(named)
    with h5py.File(file, "r") as plain:
        for path, array in named.items():
            assert plain[path].dtype == array.dtype
            assert plain[path].shape == array.shape
            assert plain[path][()].tobytes() == array.tobytes()
    weights = opened(file)
    for path, array in named.items():
        assert weights.read(path).tobytes() == array.tobytes()


def test_gathered_and_in_parts_a_tensor_has_one_digest(monkeypatch):
    monkeypatch.setattr(digests, "PART", 999)
    array = np.random.default_rng(0).random((7, 1000))
    layout = hdf5_writer.Layout(tensors={"vars/0": tensor(array)}, links={"vars/1": "vars/0"})
    found, whole = streamed(layout)
    monkeypatch.setattr(hdf5_writer, "_LARGE", 100)
    monkeypatch.setattr(parts, "_AT_ONCE", 2)
    again, file = streamed(layout)
    assert again == found == {path: digests.of(array) for path in ("vars/0", "vars/1")}
    assert file.getvalue() == whole.getvalue()
    weights = opened(file)
    weights.expect(found)
    assert np.array_equal(weights.read("vars/1"), array)
    assert not weights.damaged
    weights.expect({"vars/0": found["vars/0"][::-1]})
    weights.read("vars/0")
    assert weights.damaged == {"vars/0"}


def test_arrays_lie_in_memory_as_asked():
    array = np.random.default_rng(0).random((2, 3, 4))
    weights = opened(write({"vars/0": array}))
    weights.axis_orders = {"vars/0": (2, 0, 1)}
    read = weights.read("vars/0")
    assert np.array_equal(read, array)
    assert read.strides == (24, 8, 48)
    assert read.ctypes.data % 64 == 0
    weights.axis_orders = {"vars/0": (1, 0)}
    with pytest.raises(FileFormatError, match="unreadable `vars/0`"):
        weights.read("vars/0")


def test_memory_is_taken_over_once_and_aligned():
    weights = opened(write({"vars/0": np.ones((3, 5))}, links={"vars/1": "vars/0"}))
    stored = weights.read_once("vars/0")
    assert weights.read_once("vars/1") is stored
    taken = [stored.take_over(), stored.take_over(), stored[1:].take_over()]
    for i, array in enumerate(taken):
        assert array.ctypes.data % 64 == 0
        assert np.shares_memory(array, stored) == (i == 0)
        assert (array == 1).all()


@pytest.mark.parametrize(
    "options",
    [{"chunks": True}, {"chunks": True, "compression": "gzip"}, {"dtype": ">f4"}, {"dtype": "<f4"}],
    ids=str,
)
def test_what_does_not_lie_as_in_memory_is_read_by_hdf5(options):
    array = np.arange(60, dtype="f4").reshape(3, 20)
    file = io.BytesIO()
    with h5py.File(file, "w") as plain:
        plain.create_dataset("vars/0", data=array, **options)
        plain.create_dataset("vars/1", (2,), "f4", fillvalue=7)
    weights = opened(file)
    assert np.array_equal(weights.read("vars/0"), array)
    assert weights.read("vars/1").tolist() == [7, 7]


def test_many_large_tensors_between_much_metadata():
    random = np.random.default_rng(0)
    named = {f"layers/l{i}/vars/{j}": random.random((i, 37)) for i in range(400) for j in range(2)}
    with h5py.File(write(named), "r") as plain:
        for path, array in named.items():
            assert np.array_equal(plain[path], array)


def test_bfloat16_is_stored_as_keras_stores_it():
    array = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    file = write({"vars/0": array, "vars/1": array[0, 1]})
    with h5py.File(file, "r") as plain:
        assert plain["vars/0"].attrs["dtype"] == "bfloat16"
        assert np.array_equal(np.array(plain["vars/0"], dtype=ml_dtypes.bfloat16), array)
    assert opened(file).read("vars/1") == array[0, 1]


def test_links_are_second_names_of_one_object():
    file = write({"a/vars/0": np.ones(1000)}, links={"b/vars/7": "a/vars/0"})
    with h5py.File(file, "r") as plain:
        assert plain["a/vars/0"] == plain["b/vars/7"]
        assert isinstance(plain.get("b/vars/7", getlink=True), h5py.HardLink)
    assert file.getbuffer().nbytes < 2 * 8000
    assert opened(file).disagreements({"b/vars/7": "a/vars/0"}) == []


def test_disagreements_are_those_of_values():
    file = write({"v/a": np.ones(3), "v/b": np.ones(3), "v/c": np.zeros(3)})
    paths = {"v/b": "v/a", "v/c": "v/a", "gone": "v/a"}
    assert opened(file).disagreements(paths) == ["v/c", "gone"]


def test_a_store_is_a_mapping_of_what_is_there():
    file = write({"l/vars/0": np.ones(3)}, groups={"l/vars": {"name": "dense"}})
    weights = opened(file)
    store = weights.store("l")
    assert list(store.keys()) == ["0"]
    assert "0" in store
    assert "1" not in store
    assert len(weights.store("none")) == 0
    with h5py.File(file, "r") as plain:
        assert plain["l/vars"].attrs["name"] == "dense"


def hostile(kind):
    file = io.BytesIO()
    with h5py.File(file, "w") as plain:
        plain["vars/0"] = np.ones(3)
        if kind == "soft":
            plain["vars/1"] = h5py.SoftLink("/vars/0")
        elif kind == "external link":
            plain["vars/1"] = h5py.ExternalLink("other.h5", "/x")
        elif kind == "external data":
            plain.create_dataset("vars/1", (3,), "f8", external=[("/etc/hostname", 0, 24)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3,), "f8")
            layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
            plain.create_virtual_dataset("vars/1", layout)
    return file


@pytest.mark.parametrize("kind", ["soft", "external link", "external data", "virtual"])
def test_no_byte_comes_from_outside(kind):
    store = opened(hostile(kind), "x.keras").store("")
    assert store["0"].tolist() == [1, 1, 1]
    with pytest.raises(FileFormatError, match=r"^`x\.keras` (has a|keeps)"):
        store["1"]


def test_no_hdf5_file():
    with pytest.raises(
        FileFormatError, match=r"^`x\.keras` is not an HDF5 file\.\nExpected: weights"
    ):
        opened(io.BytesIO(b"nothing of the kind"), "x.keras")


@pytest.mark.parametrize("length", [2, 100, 3000, 20_000])
def test_a_record_of_any_length_is_written_last(length):
    arrays = {f"layers/{n}/vars/0": np.arange(n, dtype="float32") for n in (0, 3, 700, 5)}
    layout = hdf5_writer.Layout({}, {path: tensor(array) for path, array in arrays.items()}, {})
    told = []
    _, written = streamed(layout, record=lambda digests: told.append(digests) or "x" * length)
    file = opened(written)
    assert file.text(hdf5_writer.RECORD).strip() == b"x" * length
    assert told[-1].keys() == arrays.keys() and told[0] != told[-1]
    assert all(np.array_equal(file.read(path), array) for path, array in arrays.items())
