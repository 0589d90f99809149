"""Files of Keras as safetensors, and back."""

import io
import json
import struct
import sys

import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import sample_files

import tiedio
from tiedio.errors import FileFormatError, MissingPackageError, RecordError, SaveError
from tiedio.formats import safetensors_file
from tiedio.storage.streams import WriteBehind
from tiedio.tools.comparison import diff
from tiedio.tools.export import export
from tiedio.tools.inspection import inspect
from tiedio.tools.verification import verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sample_files.write(tmp_path_factory.mktemp("files"))


@pytest.fixture
def exported(folder, tmp_path):
    export(folder / "tied.keras", tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def metadata_of(filepath):
    with safetensors.safe_open(filepath, "numpy") as file:
        return file.metadata()


def changed(filepath, change):
    """Changes the JSON that is kept beside the tensors."""
    content = filepath.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    rest = json.loads(header["__metadata__"]["tiedio"])
    change(rest)
    header["__metadata__"]["tiedio"] = json.dumps(rest)
    text = json.dumps(header).encode()
    filepath.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return filepath


def test_tensors_have_the_names_of_variables(folder, exported):
    tensors = safetensors.numpy.load_file(exported)
    assert "decoder/kernel" not in tensors
    kernel = sample_files.values(folder / "tied.keras", "layers/dense/vars/0")
    np.testing.assert_array_equal(tensors["encoder/kernel"], kernel)
    assert tensors["decoder/bias"].shape == (8,)


def test_aliases_are_where_safetensors_puts_them(exported):
    # As `safetensors.torch.save_model` does: each name that is left out, to the one that is kept.
    assert metadata_of(exported)["decoder/kernel"] == "encoder/kernel"
    assert set(metadata_of(exported)) == {"decoder/kernel", "tiedio"}


@pytest.mark.parametrize(
    ("name", "back"),
    [
        ("tied.keras", "back.keras"),
        ("folder", "back.keras"),
        ("lost.keras", "back.keras"),
        ("tied.weights.h5", "back.weights.h5"),
        ("tied.weights.json", "back.weights.h5"),
        ("tied.keras", "back.weights.h5"),
    ],
)
def test_there_and_back(folder, tmp_path, name, back):
    export(folder / name, tmp_path / "model.safetensors")
    done = export(tmp_path / "model.safetensors", tmp_path / back)
    assert diff(folder / name, tmp_path / back).is_equal
    assert verify(tmp_path / back).is_verified
    assert len(done.aliases) == (0 if name == "lost.keras" else 1)
    assert inspect(tmp_path / back).kind.endswith(
        "weights only" if back.endswith(".h5") else "a whole model"
    )


def test_all_of_the_model_comes_back(folder, exported, tmp_path):
    export(exported, tmp_path / "back.keras")
    before, after = (
        tiedio.load_tied(file) for file in (folder / "tied.keras", tmp_path / "back.keras")
    )
    assert after.layers[0].kernel is after.layers[1].kernel
    states = [[*one.weights, *one.optimizer.variables] for one in (before, after)]
    assert len(states[0]) == len(states[1]) == 3 + 8
    for first, second in zip(*states, strict=True):
        np.testing.assert_array_equal(first, second)
    assert before.get_config() == after.get_config()
    assert sample_files.size(folder / "tied.keras") == sample_files.size(tmp_path / "back.keras")


def test_bfloat16(tmp_path):
    keras.utils.clear_session()
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, name="dense", dtype="bfloat16")]
    )
    tiedio.save_tied(model, tmp_path / "model.keras")
    export(tmp_path / "model.keras", tmp_path / "model.safetensors")
    tensor = safetensors.numpy.load_file(tmp_path / "model.safetensors")["dense/kernel"]
    assert tensor.dtype == ml_dtypes.bfloat16
    export(tmp_path / "model.safetensors", tmp_path / "back.keras")
    assert diff(tmp_path / "model.keras", tmp_path / "back.keras").is_equal


def test_other_kinds_of_numbers_and_shapes(tmp_path):
    arrays = {
        f"layers/dense_{kind}/vars/0": np.ones(3, kind)
        for kind in ("?", "i1", "u2", "i8", "f2", "f8", "c8")
    }
    arrays["layers/dense/vars/0"] = np.zeros((0, 2), "f4")
    arrays["layers/dense/vars/1"] = np.float32(7)
    arrays["layers/dense/vars/2"] = np.arange(3, dtype=">f4")
    file = sample_files.weights(tmp_path / "model.weights.h5", arrays)
    export(file, tmp_path / "model.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert tensors["dense/1"].shape == ()
    np.testing.assert_array_equal(tensors["dense/2"], [0, 1, 2])
    export(tmp_path / "model.safetensors", tmp_path / "back.weights.h5")
    found = diff(file, tmp_path / "back.weights.h5")
    assert found.is_equal, found


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="takes TensorFlow")
def test_assets(tmp_path):
    keras.utils.clear_session()
    words = keras.layers.TextVectorization()
    words.adapt(["tie tie knot"])
    model = keras.Sequential([keras.Input((), dtype="string"), words])
    tiedio.save_tied(model, tmp_path / "model.keras")
    export(tmp_path / "model.keras", tmp_path / "model.safetensors")
    export(tmp_path / "model.safetensors", tmp_path / "back.keras")
    assert tiedio.load_tied(tmp_path / "back.keras").layers[0].get_vocabulary()[2:] == [
        "tie",
        "knot",
    ]


def test_one_tensor_is_held_at_a_time(folder, tmp_path, monkeypatch):
    held = []
    write = WriteBehind.write

    def counted(stream, data):
        held.append(len(data))
        return write(stream, data)

    monkeypatch.setattr(WriteBehind, "write", counted)
    export(folder / "tied.keras", tmp_path / "model.safetensors")
    assert max(held[2:]) == 8 * 8 * 4
    assert len(held) == 2 + 11


def test_through_open_files(folder, tmp_path):
    done = export(folder / "tied.keras", "memory://tiedio-test/model.safetensors")
    assert done.target == "memory://tiedio-test/model.safetensors"
    export("memory://tiedio-test/model.safetensors", tmp_path / "back.keras")
    assert diff(folder / "tied.keras", tmp_path / "back.keras").is_equal


def test_where_no_file_can_be(exported):
    with pytest.raises(SaveError, match="cannot be, or have, a single file"):
        export(exported, "hf://tiedio/back.weights.h5")


def test_an_error_leaves_the_old_file(folder, exported, monkeypatch):
    before = exported.read_bytes()

    def fail(array, size):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors_file, "cut", fail)
    with pytest.raises(OSError, match="disk full"):
        export(folder / "tied.keras", exported, overwrite=True)
    assert exported.read_bytes() == before
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def refused(error, source, target, **options):
    """Checks that nothing is written; returns the message."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(error) as raised:
        export(source, target, **options)
    assert type(raised.value) is error
    assert sorted(target.parent.iterdir()) == before
    assert str(raised.value).count("\n") == 2
    return str(raised.value)


def test_one_side_is_safetensors(folder, exported, tmp_path):
    said = refused(SaveError, folder / "tied.keras", tmp_path / "other.keras")
    assert "Received: none." in said
    assert "Received: two." in refused(SaveError, exported, tmp_path / "other.safetensors")


def test_what_is_there_is_not_replaced_unasked(folder, exported):
    assert "--overwrite" in refused(SaveError, folder / "lost.keras", exported)
    export(folder / "lost.keras", exported, overwrite=True)
    assert "decoder/kernel" in safetensors.numpy.load_file(exported)


def test_texts_have_no_place(tmp_path):
    texts = {"layers/dense/vars/0": np.array([b"text"])}
    file = sample_files.weights(tmp_path / "a.weights.h5", texts)
    said = refused(SaveError, file, tmp_path / "a.safetensors")
    assert said.startswith(f"`{tmp_path / 'a.safetensors'}` cannot hold `dense/0`.")


def test_weights_are_no_model(folder, tmp_path):
    export(folder / "tied.weights.h5", tmp_path / "model.safetensors")
    assert "weights only" in refused(
        SaveError, tmp_path / "model.safetensors", tmp_path / "model.keras"
    )


def test_the_layout_of_keras_2_is_not_written(exported, tmp_path):
    assert "Received: model.h5." in refused(SaveError, exported, tmp_path / "model.h5")


def test_files_of_others_do_not_say_where_tensors_belong(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "a.safetensors", {"b": "a"})
    said = refused(FileFormatError, tmp_path / "a.safetensors", tmp_path / "a.keras")
    assert "Received: `b`." in said


def test_the_package_is_optional(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    export(folder / "tied.keras", tmp_path / "a.safetensors")  # needs none
    said = refused(MissingPackageError, tmp_path / "a.safetensors", tmp_path / "a.keras")
    assert "pip install 'tiedio[safetensors]'" in said


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_truncated_file(exported, length):
    exported.write_bytes(exported.read_bytes()[:length])
    assert "is damaged" in refused(FileFormatError, exported, exported.parent / "a.keras")


def escape(rest):
    rest["assets"] = {"encoder/bias": "../../escaped"}


CHANGES = {
    "asset outside": (escape, "an asset at `../../escaped`"),
    "asset at root": (lambda rest: rest["assets"].update({"encoder/bias": "/escaped"}), "an asset"),
    "version": (lambda rest: rest.update(version=2), "version 2"),
    "no tensors": (lambda rest: rest.pop("tensors"), "`tensors` that is no dict"),
    "unknown tensor": (lambda rest: rest["tensors"].update(other="a/vars/9"), "no `other`"),
    "number": (lambda rest: rest["tensors"].update({"encoder/bias": 3}), "`encoder/bias` that is"),
    "group": (lambda rest: rest["tensors"].update({"encoder/bias": "layers"}), ""),
    "no path": (lambda rest: rest["tensors"].update({"encoder/bias": ""}), ""),
    "attributes": (lambda rest: rest["groups"].update(layers=3), "`layers` that is no dict"),
    "attribute": (lambda rest: rest["groups"].update(layers={"a": {}}), ""),
    "config": (lambda rest: rest.update(config=[]), "`config` that is no dict"),
    "link": (lambda rest: rest["links"].update({"layers/dense/vars/0/x": "layers"}), ""),
}


@pytest.mark.parametrize(("change", "received"), CHANGES.values(), ids=CHANGES)
def test_hostile_metadata(exported, change, received):
    changed(exported, change)
    said = refused(FileFormatError, exported, exported.parent / "a.keras")
    assert f"Received: {received}" in said


def test_a_hostile_record(exported):
    changed(exported, lambda rest: rest["record"].update(tie_groups=3))
    refused(RecordError, exported, exported.parent / "a.keras")


def test_numbers_that_keras_cannot_store(exported):
    header = {"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}
    header["__metadata__"] = metadata_of(exported)
    text = json.dumps(header).encode()
    exported.write_bytes(struct.pack("<Q", len(text)) + text + bytes(1))
    changed(exported, lambda rest: rest.update(tensors={"a": "layers/dense/vars/0"}))
    said = refused(FileFormatError, exported, exported.parent / "a.keras")
    assert "`a` of type F8_E4M3" in said


def test_an_open_file(folder, tmp_path):
    class Named(io.BytesIO):
        name = "open.safetensors"

    file = Named()
    export(folder / "tied.keras", file)
    export(file, tmp_path / "back.keras")
    assert diff(folder / "tied.keras", tmp_path / "back.keras").is_equal
