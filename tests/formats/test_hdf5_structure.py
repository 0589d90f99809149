"""The structure of a weights file is as h5py would have written it, and HDF5 goes on from there."""

import collections
import io
import re
import struct

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiedio.formats.hdf5_structure import Dataset, structure

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1)
PATHS = st.lists(NAMES.filter(lambda name: name != "."), min_size=1, max_size=4).map("/".join)
VALUES = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))),
    st.binary(max_size=9).filter(lambda text: b"\0" not in text),
    st.integers(-9, 9),
    st.lists(st.sampled_from(["", "a", "größer"]), min_size=1, max_size=3),
    st.lists(st.sampled_from([b"a", b"longer"]), min_size=1, max_size=3).map(np.array),
    st.sampled_from([np.float32(2.5), np.array([[True, False]]), np.zeros((0, 3), "int16")]),
)
ATTRIBUTES = st.dictionaries(NAMES, VALUES, max_size=3)
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
DTYPES = st.sampled_from([np.dtype(name) for name in ("f4", ">f8", "?", "c8", "V2", "S5", "u1")])


def written(groups, datasets, links=None):
    """Writes a file of these: the first dataset is all ones, the second all twos, ..."""
    laid_out = structure(groups, datasets, links or {})
    content = bytearray(laid_out.content.ljust(laid_out.size, b"\0"))
    for number, (path, start) in enumerate(laid_out.offsets.items(), 1):
        content[start : start + datasets[path].nbytes] = (
            bytes([number % 251]) * datasets[path].nbytes
        )
    return io.BytesIO(content)


def by_h5py(groups, datasets, links):
    file = io.BytesIO()
    with h5py.File(file, "w") as plain:
        for path, attributes in groups.items():
            (plain.require_group(path) if path else plain).attrs.update(attributes)
        for path, one in datasets.items():
            plain.create_dataset(path, one.shape, one.dtype).attrs.update(one.attributes)
        for path, target in links.items():
            plain[path] = plain[target]
    return file


def described(file):
    """Describes each object of a file by the first path that leads to it, and each path."""
    first, paths = {}, {}

    def visit(path, one):
        info = h5py.h5o.get_info(one.id)
        paths[path] = first.setdefault(info.addr, path)
        attributes = {name: attribute(one.attrs[name]) for name in one.attrs}
        shape = (one.shape, one.dtype) if isinstance(one, h5py.Dataset) else None
        described = info.rc, shape, attributes, [one.attrs.get_id(n).dtype for n in one.attrs]
        if paths[path] == path:
            paths[path] = described
            for name in one if shape is None else ():
                visit(f"{path}/{name}", one[name])

    with h5py.File(file, "r") as plain:
        visit("", plain["/"])
    return paths


def attribute(value):
    array = np.asarray(value)
    return type(value), array.dtype, array.tolist()


@st.composite
def trees(draw):
    """Draws groups, datasets and links that do not stand in each other's way."""
    datasets = draw(
        st.dictionaries(PATHS, st.builds(Dataset, SHAPES, DTYPES, ATTRIBUTES), max_size=8)
    )
    groups = draw(st.dictionaries(st.one_of(st.just(""), PATHS), ATTRIBUTES, max_size=8))
    links = draw(st.dictionaries(PATHS, st.sampled_from([*datasets, *groups, ""]), max_size=4))
    taken, inner = set(), set()

    def fits(path):
        parents = {path[:end] for end, character in enumerate(path) if character == "/"}
        if path in taken or path in inner or taken & parents:
            return False
        taken.add(path)
        inner.update(parents)
        return True

    datasets = {path: one for path, one in datasets.items() if fits(path)}
    held = set(taken)
    groups = {
        path: one
        for path, one in groups.items()
        if not any(f"{path}/".startswith(f"{other}/") for other in held)
    }
    taken |= groups.keys()
    links = {
        path: target
        for path, target in links.items()
        if (target in datasets or target in groups) and target and fits(path)
    }
    return groups, datasets, links


@settings(max_examples=60)
@given(trees())
def test_all_is_as_h5py_would_have_written_it(drawn):
    assert described(written(*drawn)) == described(by_h5py(*drawn))


@pytest.mark.parametrize("count", [0, 1, 8, 9, 256, 257, 8193])
def test_a_group_of_any_size_finds_its_members(count):
    names = [f"layer_{number}" for number in range(count)]
    groups = {"layers": {}} | {f"layers/{name}": {"name": name} for name in names}
    with h5py.File(written(groups, {}), "r") as plain:
        assert list(plain["layers"]) == sorted(names)
        assert all(plain["layers"][name].attrs["name"] == name for name in names)
        assert "layer_" not in plain["layers"]


def test_nodes_of_a_tree_know_their_neighbours():
    """HDF5 asks only when it takes nodes away."""
    content = written({f"g/{number}": {} for number in range(8208)}, {}).getvalue()
    levels = collections.defaultdict(list)
    for found in re.finditer(rb"TREE\x00", content):
        _, _, level, count, left, right = struct.unpack_from("<4sBBHQQ", content, found.start())
        if level or count > 1:  # not of the groups inside, which are empty, nor of the root
            levels[level].append((found.start(), left, right))
    nowhere = (1 << 64) - 1
    assert {level: len(nodes) for level, nodes in levels.items()} == {0: 33, 1: 2, 2: 1}
    for nodes in levels.values():
        places = [nowhere, *(place for place, *_ in nodes), nowhere]
        assert [(left, right) for _, left, right in nodes] == list(
            zip(places[:-2], places[2:], strict=True)
        )


def test_more_texts_than_one_collection_holds():
    texts = list(map(str, range(70_000)))
    groups = {f"g{part}": {"all": texts[100 * part : 100 * part + 100]} for part in range(700)}
    groups["long"] = {"text": "x" * 200_000}
    with h5py.File(written(groups, {}), "r") as plain:
        assert [text for part in range(700) for text in plain[f"g{part}"].attrs["all"]] == texts
        assert plain["long"].attrs["text"] == "x" * 200_000


def test_a_long_attribute_is_refused():
    with pytest.raises(ValueError, match=r"no room in HDF5 for the 70048 bytes of .* `many`"):
        structure({"a": {"many": np.zeros(70_000, "u1")}}, {}, {})
    with pytest.raises(ValueError, match=r"no room in HDF5 for the 700.. bytes of .* `n{60}`"):
        structure({"a": {"n" * 70_000: "x"}}, {}, {})


@pytest.mark.parametrize("value", ["a\0b", b"a\0b", ["a", "a\0b"]], ids=["text", "bytes", "list"])
def test_a_text_that_hdf5_would_cut_off_is_refused(value):
    with pytest.raises(ValueError, match="no text in HDF5 has a zero byte inside"):
        structure({"a": {"name": value}}, {}, {})


def test_a_dataset_has_as_many_axes_as_hdf5_has():
    most = Dataset((1,) * 32, np.dtype("u1"), {})
    with h5py.File(written({}, {"a": most}), "r") as plain:
        assert plain["a"].shape == most.shape
    with pytest.raises(ValueError, match="no room in HDF5 for 33 axes"):
        structure({}, {"a": most._replace(shape=(1,) * 33)}, {})


@pytest.mark.parametrize("path", ["a/b", "a/b/c", "a/.", "a/n\0l", "a/", "a//c"])
def test_what_hdf5_cannot_name_is_refused(path):
    one = Dataset((2,), np.dtype("f4"), {})
    with pytest.raises(ValueError, match="nothing more can be at `a/"):
        structure({}, {"a/b": one}, {path: "a/b"})


def test_groups_may_be_as_deep_as_they_like():
    path = "/".join("a" * 5000)
    with h5py.File(written({}, {path: Dataset((2,), np.dtype("u1"), {})}), "r") as plain:
        assert plain[path][()].tolist() == [1, 1]


def test_hdf5_goes_on_from_there():
    groups = {f"layers/l{n}/vars": {"name": f"layer {n}"} for n in range(300)}
    datasets = {f"{group}/0": Dataset((n,), np.dtype("u1"), {}) for n, group in enumerate(groups)}
    file = written(groups, datasets, {"again": "layers/l7/vars"})
    with h5py.File(file, "r+") as plain:
        for number in range(0, 300, 2):
            del plain[f"layers/l{number}"]
        del plain["layers/l7"]
        for number in range(1000):
            plain[f"layers/new{number}/vars/0"] = [number]
        plain["layers/l1/vars"].attrs.update(name="x" * 5000, more=np.arange(99))
        plain["layers/l3/vars"].move("0", "1")
    with h5py.File(file, "r") as plain:
        assert len(plain["layers"]) == 1000 + 149
        assert plain["again"].attrs["name"] == "layer 7"
        assert plain["again/0"][()].tolist() == [7] * 7
        assert plain["layers/l1/vars"].attrs["name"] == "x" * 5000
        assert plain["layers/l3/vars/1"][()].tolist() == [3] * 3
        for number in range(5, 300, 2):
            if number != 7:
                held = plain[f"layers/l{number}/vars"]
                assert held.attrs["name"] == f"layer {number}"
                assert held["0"][()].tolist() == [number % 251] * number
        assert all(plain[f"layers/new{n}/vars/0"][0] == n for n in range(1000))
