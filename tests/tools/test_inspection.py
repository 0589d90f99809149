"""What a file is, who wrote it, and what it shares."""

import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
import sample_files
from pinning import pin

from tiedio import errors
from tiedio.tools.inspection import Group, inspect

KERNELS = ("encoder/kernel", "decoder/kernel")
UNNAMED = "one that the file does not name, with 8 variables"
NUMBERED = ("encoder/0", "decoder/0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sample_files.write(tmp_path_factory.mktemp("files"))


def test_a_tied_file(folder):
    found = inspect(folder / "tied.keras")
    assert found.kind == "zip archive of a whole model"
    assert found.keras_version == keras.__version__
    assert found.date_saved.startswith("20")
    assert found.record_version == 1
    assert found.variables == 4
    assert found.tie_groups == (kernels(KERNELS, 256, "record", "hard links"),)
    assert found.copies == ()
    assert (found.bytes_shared, found.bytes_wasted) == (256, 0)
    assert found.bytes_stored == stored_in(folder / "tied.keras")
    assert found.optimizer == "Adam"
    assert found.notes == ()


def test_an_optimizer_that_left_its_state_only(folder):
    assert inspect(folder / "tied.weights.h5").optimizer == UNNAMED
    assert inspect(folder / "tied.keras").optimizer == "Adam"


@pytest.mark.parametrize("name", ["a.keras", "a.h5"])
@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
def test_a_file_without_weights(tmp_path, name):
    keras.Sequential([keras.layers.Dense(2), keras.layers.Dense(2)]).save(tmp_path / name)
    found = inspect(tmp_path / name)
    assert (found.variables, found.optimizer) == (0, "")
    assert found.notes == (
        "It holds no weights: its model has none, or was saved before it was built.",
    )


def test_layers_without_their_weights(tmp_path):
    model = keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(2, name=n) for n in "abc")])
    model.save(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        for name in "bc":
            file["model_weights"][name].attrs["weight_names"] = []
    with pytest.raises(errors.FileFormatError) as error:
        inspect(tmp_path / "a.h5")
    pin(
        error,
        errors.FileFormatError,
        "`*a.h5` has no values of `b/bias`, `b/kernel`, `c/bias`, `c/kernel`.\n"
        "Expected: a value for every variable. Received: no value of their layers.\n"
        "Save the model again, with its weights.",
    )


def stored_in(filepath):
    import io

    with zipfile.ZipFile(filepath) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    sizes = []
    with h5py.File(content) as file:
        file.visititems(
            lambda _, one: sizes.append(one.nbytes) if isinstance(one, h5py.Dataset) else None
        )
    return sum(sizes)


@pytest.mark.parametrize(
    ("stored", "shown"),
    [("adam", "Adam"), ({"class_name": "Custom>Adam"}, "Adam"), (None, UNNAMED), ([3], UNNAMED)],
    ids=str,
)
def test_optimizers_by_name_and_by_config(folder, tmp_path, stored, shown):
    with sample_files.opened(folder / "lost.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["compile_config"]["optimizer"] = stored
    members["config.json"] = json.dumps(config).encode()
    assert inspect(sample_files.zipped(tmp_path / "a.keras", members)).optimizer == shown


def test_copies_that_keras_stored(folder):
    found = inspect(folder / "lost.keras")
    assert found.record_version is None
    assert found.tie_groups == ()
    # Biases are equal too, but zero.
    assert found.copies == (kernels(KERNELS, 256),)
    assert (found.bytes_shared, found.bytes_wasted) == (0, 256)


@pytest.mark.parametrize(
    ("name", "kind", "names"),
    [
        ("folder", "folder of a whole model", KERNELS),
        ("tied.h5", "HDF5 file of a whole model", KERNELS),
        ("tied.weights.h5", "HDF5 file of weights only", NUMBERED),
        ("tied.weights.json", "shards of weights only", NUMBERED),
    ],
)
def test_every_container(folder, name, kind, names):
    found = inspect(folder / name)
    assert found.kind == kind
    assert [group.names for group in found.tie_groups] == [names]
    assert found.bytes_shared == 256
    assert found.keras_version == keras.__version__ * (name != "tied.weights.h5")


def test_hard_links_without_a_record(folder, tmp_path):
    def drop(file):
        del file["tiedio"]

    found = inspect(sample_files.edited(folder / "tied.weights.h5", tmp_path / "linked.h5", drop))
    assert found.record_version is None
    assert found.tie_groups == (kernels(NUMBERED, 256, "hard links", trainable=None),)


def test_a_record_without_links_wastes_what_it_could_share(folder, tmp_path):
    found = inspect(sample_files.edited(folder / "tied.keras", tmp_path / "a.keras", unlink))
    assert found.tie_groups == (kernels(KERNELS, 0, "record"),)
    assert found.copies == (kernels(KERNELS, 256),)
    assert (found.bytes_shared, found.bytes_wasted) == (0, 256)


def kernels(names, nbytes, *evidence, trainable=True):
    return Group(
        names=names,
        shape=(8, 8),
        dtype="float32",
        evidence=evidence,
        nbytes=nbytes,
        trainable=trainable,
    )


def unlink(file):
    value = file["layers/dense_1/vars/0"][()]
    del file["layers/dense_1/vars/0"]
    file["layers/dense_1/vars/0"] = value


def test_three_copies_and_what_is_equal_by_chance(tmp_path):
    telling = np.arange(12, dtype="float32")
    arrays = {f"layers/dense_{n}/vars/0": telling for n in range(3)}
    arrays |= {f"layers/dense_{n}/vars/1": np.ones(12, "float32") for n in range(3)}
    arrays["layers/dense_0/vars/2"] = telling.astype("float64")
    links = {"layers/dense_3/vars/0": "layers/dense_0/vars/0"}  # wastes nothing
    found = inspect(sample_files.weights(tmp_path / "copies.weights.h5", arrays, links))
    (group,) = found.copies
    assert group.names == tuple(f"dense_{n}/0" for n in range(4))
    assert (found.bytes_wasted, found.bytes_shared) == (2 * 48, 48)
    assert found.bytes_stored == 6 * 48 + 96


def test_json(folder):
    found = json.loads(json.dumps(inspect(folder / "tied.keras").to_json()))
    assert found["tie_groups"][0]["names"] == list(KERNELS)
    assert found["bytes_shared"] == 256
