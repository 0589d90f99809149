"""What one reader of a file calls damaged, every other one does, too."""

import numpy as np
import pytest
import sample_files

import tiedio
from tiedio import files
from tiedio.errors import FileFormatError, RecordError

KERNELS = ("layers/dense/vars/0", "layers/dense_1/vars/0")
BIASES = ("layers/dense/vars/1", "layers/dense_1/vars/1")


def changed(file):
    file[KERNELS[0]][0, 0] += 1


def missing(file):
    del file[BIASES[0]]


def added(file):
    file["layers/dense/vars/2"] = np.zeros(3)


def apart(file, change=0):
    value = file[KERNELS[0]][()] + change
    del file[KERNELS[1]]
    file[KERNELS[1]] = value


def apart_and_changed(file):
    apart(file, change=1)


def linked(file):
    del file[BIASES[1]]
    file[BIASES[1]] = file[BIASES[0]]  # zeros as well


# What is done to a file, and which tensors it leaves other than they were saved.
DAMAGE = {
    changed: KERNELS,
    missing: BIASES[:1],
    added: ("layers/dense/vars/2",),
    apart_and_changed: KERNELS,
    linked: BIASES,
}


def verify(filepath):
    """Raises what `tiedio verify` prints."""
    found = files.verify(filepath)
    if not found.is_verified:
        raise FileFormatError("\n".join(map(str, found.problems)))


def migrate(filepath):
    files.migrate(filepath, filepath.with_name("migrated.keras"), overwrite=True)


def export(filepath):
    files.export(filepath, filepath.with_name("exported.safetensors"), overwrite=True)


def load(filepath):
    tiedio.load_tied(filepath) if filepath.suffix == ".keras" else load_weights(filepath)


def load_weights(filepath):
    tiedio.load_tied_weights(sample_files.model(), filepath)


# All that read a file before they go by it.
READERS = (verify, migrate, export, load, load_weights)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sample_files.write(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("read", READERS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", ["tied.keras", "tied.weights.h5"])
def test_what_was_saved_is_taken(folder, name, read):
    read(folder / name)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda one: one.__name__)
@pytest.mark.parametrize("read", READERS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", ["tied.keras", "tied.weights.h5"])
def test_what_is_damaged_is_refused(folder, tmp_path, name, read, damage):
    file = sample_files.edited(folder / name, tmp_path / name, damage)
    with pytest.raises((FileFormatError, RecordError)) as refused:
        read(file)
    if read in (load, load_weights):  # which stop where they meet it, and may name layers
        named = [path for path in DAMAGE[damage] if path in str(refused.value)]
        assert named or "`decoder/bias`, `encoder/bias`" in str(refused.value)
    else:
        assert all(path in str(refused.value) for path in DAMAGE[damage])
    assert not [one for one in tmp_path.iterdir() if one != file]


@pytest.mark.parametrize("read", READERS, ids=lambda one: one.__name__)
def test_equal_copies_are_no_damage(folder, tmp_path, read):
    file = sample_files.edited(folder / "tied.keras", tmp_path / "copies.keras", apart)
    read(file)
    (problem,) = files.verify(file).problems
    assert problem.names == KERNELS
    assert not problem.is_damage


@pytest.mark.parametrize("read", READERS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("number", range(3))
def test_a_group_that_hdf5_cannot_read_is_told(folder, tmp_path, read, number):
    """HDF5 opens an object before it looks at what says how many paths it has."""
    parts = (folder / "tied.weights.h5").read_bytes().split(b"HEAP")
    begin, end = (b"HEAP".join(part) for part in (parts[: number + 1], parts[number + 1 :]))
    (tmp_path / "broken.weights.h5").write_bytes(begin + b"PAEH" + end)
    with pytest.raises(FileFormatError):
        read(tmp_path / "broken.weights.h5")


def inspect(filepath):
    str(files.inspect(filepath))


@pytest.mark.parametrize("read", [*READERS, inspect], ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", [b"metadata.json", b"model.weights.h5"])
def test_a_member_by_another_name(folder, tmp_path, read, name):
    """Without its record, a file would be read as one of Keras, untied."""
    content = bytearray((folder / "tied.keras").read_bytes())
    content[content.rindex(name) + 5] ^= 4  # in the directory: before its bytes, too, it is named
    (tmp_path / "renamed.keras").write_bytes(content)
    with pytest.raises(FileFormatError, match="is damaged"):
        read(tmp_path / "renamed.keras")
