"""Whether a file is as it was saved: its tensors, and its hard links."""

import json
import shutil

import keras
import numpy as np
import pytest
import sample_files
from checkout import FIXTURES

import tiedio
from tiedio import files
from tiedio.errors import FileFormatError
from tiedio.formats import table
from tiedio.record.record import Record
from tiedio.record.ties import METADATA_KEY
from tiedio.storage.locating import at
from tiedio.storage.streams import Window
from tiedio.tools.verification import verify

KERNELS = ("layers/dense/vars/0", "layers/dense_1/vars/0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sample_files.write(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def kernel(folder):
    return sample_files.values(folder / "tied.keras", KERNELS[0])


def problems(filepath):
    found = verify(filepath)
    assert not found.is_verified
    return sorted(map(str, found.problems))


@pytest.mark.parametrize(
    "name", ["tied.keras", "folder", "tied.h5", "tied.weights.h5", "tied.weights.json"]
)
def test_what_tiedio_saved(folder, name):
    found = verify(folder / name)
    assert found.is_verified
    assert found.against == "digests"
    assert found.tensors == 11 + (name == "tied.h5")  # with its config
    assert found.to_json()["is_verified"]


def test_a_changed_bit_of_a_shared_tensor(folder, tmp_path, kernel):
    file = sample_files.flipped(folder / "tied.weights.h5", tmp_path / "flipped.h5", kernel)
    assert problems(file) == [f"{path}: not the values that were saved" for path in KERNELS]


def test_a_changed_bit_in_an_archive(folder, tmp_path, kernel):
    file = sample_files.flipped(folder / "tied.keras", tmp_path / "flipped.keras", kernel)
    assert problems(file) == [
        *(f"{path}: not the values that were saved" for path in KERNELS),
        "the weights do not fit the checksum of the archive",
    ]


def test_a_missing_tensor(folder, tmp_path):
    def drop(file):
        del file["layers/dense/vars/1"]

    file = sample_files.edited(folder / "tied.keras", tmp_path / "less.keras", drop)
    assert problems(file) == ["layers/dense/vars/1: missing"]


def test_an_added_tensor(folder, tmp_path):
    def add(file):
        file["layers/dense/vars/2"] = np.zeros(3)

    file = sample_files.edited(folder / "tied.keras", tmp_path / "more.keras", add)
    assert problems(file) == ["layers/dense/vars/2: added after the file was saved"]


def test_a_link_that_was_lost(folder, tmp_path, kernel):
    def unlink(file):
        del file[KERNELS[1]]
        file[KERNELS[1]] = kernel

    found = verify(sample_files.edited(folder / "tied.keras", tmp_path / "apart.keras", unlink))
    assert list(map(str, found.problems)) == [
        f"{' = '.join(KERNELS)}: tied by the record, but stored apart, with equal values"
    ]
    assert found.is_verified


def test_a_link_that_was_lost_and_changed(folder, tmp_path, kernel):
    def unlink(file):
        del file[KERNELS[1]]
        file[KERNELS[1]] = kernel + 1

    file = sample_files.edited(folder / "tied.keras", tmp_path / "apart.keras", unlink)
    assert problems(file) == [
        f"{' = '.join(KERNELS)}: tied by the record, but stored apart, with different values",
        f"{KERNELS[1]}: not the values that were saved",
    ]


def test_a_link_that_the_record_does_not_know(folder, tmp_path):
    def link(file):
        del file["layers/dense_1/vars/1"]
        file["layers/dense_1/vars/1"] = file["layers/dense/vars/1"]  # zeros as well

    file = sample_files.edited(folder / "tied.keras", tmp_path / "linked.keras", link)
    assert problems(file) == [
        "layers/dense/vars/1 = layers/dense_1/vars/1: not tied by the record, but stored once"
    ]


def test_a_file_of_keras_has_the_checksum_of_the_archive(folder, tmp_path, kernel):
    found = verify(folder / "lost.keras")
    assert found.is_verified
    assert found.against == "checksum"
    file = sample_files.flipped(folder / "lost.keras", tmp_path / "flipped.keras", kernel)
    assert problems(file) == ["the weights do not fit the checksum of the archive"]


def test_weights_of_keras_have_nothing(folder):
    found = verify(folder / "lost.weights.h5")
    assert not found.is_verified
    assert (found.against, found.problems) == ("", ())


def test_tensors_that_cannot_be_read(tmp_path):
    file = sample_files.weights(tmp_path / "a.h5", {"layers/dense/vars/0": np.zeros(8)})

    def outside(opened):
        opened.create_dataset("elsewhere", (2,), "float32", external=[("/dev/zero", 0, 8)])

    assert problems(sample_files.edited(file, tmp_path / "b.h5", outside)) == [
        "elsewhere: cannot be read"
    ]


def test_shared_layers_and_generators_are_no_problem(tmp_path):
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dropout(0.5)])
    twice = keras.Sequential([keras.Input((8,)), inner, inner.layers[0], inner.layers[1]])
    tiedio.save_tied(twice, tmp_path / "twice.keras")
    assert verify(tmp_path / "twice.keras").problems == ()

    def copy(file):
        first, other = "layers/sequential/layers/dense", "layers/dense"
        value = {name: file[f"{first}/vars/{name}"][()] for name in "01"}
        del file[other]
        for name in value:
            file[f"{other}/vars/{name}"] = value[name]

    file = sample_files.edited(tmp_path / "twice.keras", tmp_path / "copy.keras", copy)
    assert any("tied by the record, but stored apart" in str(p) for p in verify(file).problems)


def test_a_generator_of_random_numbers_that_is_shared_is_no_tie(tmp_path):
    first, second = (keras.layers.Dropout(0.5, seed=1, name=name) for name in "ab")
    second._tracker.unlock()
    second._tracker.untrack(second.seed_generator)
    second.seed_generator = first.seed_generator
    model = keras.Sequential([keras.Input((8,)), first, second])
    tiedio.save_tied(model, tmp_path / "model.keras")
    assert verify(tmp_path / "model.keras").is_verified


def test_what_is_no_layer_may_share(folder, tmp_path):
    def link(file):
        file["metrics/mean/vars/0"] = file["layers/dense/vars/1"]

    file = sample_files.edited(folder / "tied.keras", tmp_path / "a.keras", link)
    with sample_files.opened(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    metadata = json.loads(members["metadata.json"])
    metadata["tiedio"]["digests"] = {}  # or it would have to be in there
    members["metadata.json"] = json.dumps(metadata).encode()
    found = verify(sample_files.zipped(tmp_path / "b.keras", members))
    assert found.is_verified
    assert found.against == "checksum"


def test_a_truncated_archive_is_an_error(tmp_path):
    shutil.copy(FIXTURES / "truncated.keras", tmp_path)
    with pytest.raises(FileFormatError):
        verify(tmp_path / "truncated.keras")


@pytest.mark.parametrize("command", ["inspect", "plan", "verify", "load_tied"])
def test_every_command_says_of_a_damaged_archive_the_same(command, tmp_path):
    """And not what HDF5 cannot read for it."""
    content = bytearray((FIXTURES / "keras_3_15/nested.keras").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 24] = bytes(byte ^ 0x5A for byte in content[middle : middle + 24])
    (tmp_path / "damaged.keras").write_bytes(content)
    with pytest.raises(FileFormatError) as error:
        getattr(tiedio if command == "load_tied" else files, command)(tmp_path / "damaged.keras")
    what, told, _ = str(error.value).splitlines()
    assert what == f"`{tmp_path / 'damaged.keras'}` is damaged."
    assert told.endswith("Received: Bad CRC-32 for file 'model.weights.h5'.")


@pytest.mark.parametrize("save", [tiedio.save_tied, lambda model, path: model.save(path)])
def test_a_file_is_read_once(tmp_path, monkeypatch, save):
    model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(1000)])
    save(model, tmp_path / "model.keras")
    read = []
    whole = Window.read_at

    def counted(window, buffer, position):
        read.append(len(buffer))
        whole(window, buffer, position)

    monkeypatch.setattr(Window, "read_at", counted)
    assert verify(tmp_path / "model.keras").is_verified
    assert 4e6 < sum(read) < 1.1 * 4e6


def test_digests_of_the_kind_that_files_once_had(tmp_path):
    old = FIXTURES / "tied_v1.keras"
    assert verify(old).is_verified
    with sample_files.opened(old) as archive:
        record = json.loads(archive.read("metadata.json"))[METADATA_KEY]
    path = next(iter(Record.from_json(record).digests))
    flipped = sample_files.flipped(old, tmp_path / "old.keras", sample_files.values(old, path))
    assert any(path in problem for problem in problems(flipped))


def test_names_that_are_lost(tmp_path):
    """HDF5 has no checksum of its lists of names: one bit may empty them."""
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(40)])
    tiedio.save_tied_weights(model, tmp_path / "model.weights.h5")
    content = bytearray((tmp_path / "model.weights.h5").read_bytes())
    at = content.index(b"TREE")  # that of the root
    content[at + 6 : at + 8] = bytes(2)  # how many it lists
    (tmp_path / "model.weights.h5").write_bytes(content)
    with pytest.raises(FileFormatError, match="bytes that no name leads to"):
        verify(tmp_path / "model.weights.h5")
    (tmp_path / "model.weights.h5").write_bytes(content[:-1000])
    with pytest.raises(FileFormatError, match="it was truncated"):
        verify(tmp_path / "model.weights.h5")


def test_what_is_no_tensor_is_not_called_fine(tmp_path):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)]).save(tmp_path / "model.keras")

    def add(file):
        file["layers/dense/vars/2"] = np.zeros(3, "V8")

    sample_files.edited(tmp_path / "model.keras", tmp_path / "other.keras", add)
    assert problems(tmp_path / "other.keras") == ["layers/dense/vars/2: cannot be read"]


def test_an_order_of_axes_that_contradicts_a_shape(folder):
    with table.reading(at(folder / "tied.keras")) as opened:
        record = opened.read_record(verify=True)
        opened.weights.axis_orders = {KERNELS[1]: (1, 0, 2)}  # of the second path only
        assert record and KERNELS[0] in record.digests
        assert opened.weights.find_damaged([KERNELS[1]]) == [KERNELS[1]]
