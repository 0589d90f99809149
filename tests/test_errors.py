"""The text of every error, and that nothing is half-done when it is raised."""

import io
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import safetensors.numpy
import scenarios
from pinning import pin

import tiedio
from tiedio import errors
from tiedio.files import many
from tiedio.tools import export


def dense(units=4, shape=(None, 4), **options):
    layer = keras.layers.Dense(units, **options)
    layer.build(shape)
    return layer


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    keras.utils.clear_session()
    model = scenarios.two_paddings()
    scenarios.train(model)
    filepath = tmp_path_factory.mktemp("saved") / "model.keras"
    tiedio.save_tied(model, filepath)
    return filepath


@pytest.fixture
def saved(original, tmp_path):
    """A file of a model whose layers have the names of the first ones of a process."""
    keras.utils.clear_session(free_memory=False)
    return Path(shutil.copy(original, tmp_path))


def rewrite(filepath, change, member="metadata.json"):
    """Writes the archive again with one JSON member changed."""
    with zipfile.ZipFile(filepath) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = json.loads(members[member])
    members[member] = json.dumps(change(content) or content).encode()
    with zipfile.ZipFile(filepath, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_the_tree_names_every_error():
    tree = errors.__doc__
    leaves = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)]
    for leaf in leaves:
        if issubclass(leaf, errors.TiedioError):
            assert leaf.__name__ in tree
            builtins = [b.__name__ for b in leaf.__mro__ if b.__module__ == "builtins"]
            assert leaf is errors.TiedioError or set(builtins) & {
                "ValueError",
                "TypeError",
                "ImportError",
            }


def test_shapes_differ():
    a, b = dense(name="a"), dense(3, name="b")
    before = [b.kernel, b.bias]
    with pytest.raises(ValueError) as error:
        tiedio.tie(b, to=a)
    pin(
        error,
        errors.TieError,
        "Cannot tie `b/bias` to `a/bias`, `b/kernel` to `a/kernel`: shapes or dtypes differ.\n"
        "Expected: (4,) float32, (4, 4) float32 (owner). Received: (3,) float32, (4, 3) float32.\n"
        "Tie only variables of equal shape and dtype.",
    )
    assert b.kernel is before[0]
    assert b.bias is before[1]


def test_dtypes_differ():
    with pytest.raises(ValueError) as error:
        tiedio.tie(dense(name="b", dtype="float16", use_bias=False), to=dense(name="a"))
    pin(
        error,
        errors.TieError,
        "Cannot tie `b/kernel` to `a/kernel`: shapes or dtypes differ.\n"
        "Expected: (4, 4) float32 (owner). Received: (4, 4) float16.\n"
        "Tie only variables of equal shape and dtype.",
    )


def test_layer_without_variables():
    with pytest.raises(ValueError) as error:
        tiedio.tie(keras.layers.Flatten(name="b"), to=dense(name="a"))
    pin(
        error,
        errors.TieError,
        "Cannot tie `b` to `a`: they have no weights of equal name.\n"
        "Expected: `bias`, `kernel` (owner). Received: none.\n"
        'Tie layers of the same kind, or pass a dict of names, as `{"kernel": "embeddings"}`.',
    )


def test_unknown_weight_names():
    with pytest.raises(ValueError) as error:
        tiedio.tie(dense(name="b"), to=dense(name="a"), weights=("gamma", "kernel", "beta"))
    pin(
        error,
        errors.TieError,
        "Layer `b` has no weights `beta`, `gamma`.\n"
        "Expected: some of `bias`, `kernel`. Received: `beta`, `gamma`.\n"
        "Pass names that both layers have, or a dict from this layer's to the owner's, such as "
        '`{"kernel": "recurrent_kernel"}`.',
    )


def test_weight_that_the_owner_lacks():
    with pytest.raises(ValueError) as error:
        tiedio.tie(dense(name="b"), to=dense(name="a", use_bias=False), weights=("bias",))
    pin(
        error,
        errors.TieError,
        "Layer `a` has no weights `bias`.\n"
        "Expected: some of `kernel`. Received: `bias`.\n"
        "Pass names that both layers have, or a dict from this layer's to the owner's, such as "
        '`{"kernel": "recurrent_kernel"}`.',
    )


def test_a_layer_to_itself():
    layer = dense(name="a")
    with pytest.raises(ValueError) as error:
        tiedio.tie(layer, to=layer)
    pin(
        error,
        errors.TieError,
        "Cannot tie `a` to itself.\n"
        "Expected: two layers. Received: one, twice.\n"
        "Pass the layer whose variables are to be used as `to`.",
    )


def test_unbuilt_owner():
    with pytest.raises(ValueError) as error:
        tiedio.tie(dense(name="b"), to=keras.layers.Dense(4, name="a"))
    pin(
        error,
        errors.ModelNotBuiltError,
        "Layer `a` has no variables yet: it is not built.\n"
        "Expected: a built layer. Received: an unbuilt one, and no `input_shape`.\n"
        "Build it, call it on data, or pass `input_shape` to `tie`.",
    )


def test_a_shape_that_cannot_be_built():
    with pytest.raises(ValueError) as error:
        tiedio.tie(keras.layers.Conv2D(3, 2, name="b"), to=dense(name="a"))
    pin(
        error,
        errors.ModelNotBuiltError,
        "Layer `b` cannot be built: *\n"
        "Expected: a shape it accepts. Received: {'input_shape': (None, 4)}.\n"
        "Build the layer first, or pass its `input_shape` to `tie`.",
    )


def test_untie_what_is_not_tied():
    with pytest.raises(ValueError) as error:
        tiedio.untie(dense(name="a"))
    pin(
        error,
        errors.TieError,
        "Cannot untie `a`: no other layer holds its weights.\n"
        "Expected: a tied weight. Received: `bias`, `kernel`.\n"
        "Untie one of the layers that were tied, by the names of tied weights.",
    )


def test_save_weights_of_an_unbuilt_model(tmp_path):
    with pytest.raises(ValueError) as error:
        tiedio.save_tied_weights(keras.Sequential(name="m"), tmp_path / "model.weights.h5")
    pin(
        error,
        errors.ModelNotBuiltError,
        "Model `m` has no variables yet: it is not built.\n"
        "Expected: a built model. Received: an unbuilt one.\n"
        "Build it, or call it on data, before saving.",
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "zipped", "expected", "advice"),
    [
        (
            "model.tf",
            None,
            "a path ending in `.keras`, `.h5`, `.hdf5`",
            ", or pass `zipped=False` to save to a folder",
        ),
        (
            "model.keras",
            False,
            "the path of a folder, which should not end in `.keras`",
            "",
        ),
        ("model.h5", False, "the path of a folder, which should not end in `.h5`", ""),
    ],
)
def test_a_name_of_no_format(tmp_path, name, zipped, expected, advice):
    with pytest.raises(ValueError) as error:
        model = scenarios.controls.equal_but_untied()
        tiedio.save_tied(model, tmp_path / name, zipped=zipped)
    pin(
        error,
        errors.SaveError,
        f"`*{name}` names no format in which models are saved.\n"
        f"Expected: {expected}. Received: *{name}.\n"
        f"Change the ending{advice}.",
    )


def test_a_name_of_no_format_for_weights(tmp_path):
    with pytest.raises(ValueError) as error:
        tiedio.save_tied_weights(scenarios.controls.equal_but_untied(), tmp_path / "model.h5")
    pin(
        error,
        errors.SaveError,
        "`*model.h5` names no format in which weights are saved.\n"
        "Expected: a path ending in `.weights.h5`, `.weights.json`. Received: *model.h5.\n"
        "Change the ending.",
    )


def test_an_optimizer_for_variables_that_are_gone(saved):
    keras.utils.clear_session()
    model = scenarios.two_paddings(tie=None)
    scenarios.train(model)
    scenarios.tie_by_hand(model.layers[2], model.layers[1], "_kernel")
    with pytest.raises(ValueError) as error:
        tiedio.save_tied(model, saved)
    pin(
        error,
        errors.SaveError,
        "Cannot save the optimizer state of `conv2d_1/kernel`: no layer holds these variables.\n"
        "Expected: an optimizer built for the model's variables. Received: one built for "
        "variables that were replaced since.\n"
        "Compile the model again after replacing variables, use `tiedio.tie`, or pass "
        "`strict=False`.",
    )


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        tiedio.load_tied(tmp_path / "none.keras")
    pin(
        error,
        errors.MissingFileError,
        "There is no file `*none.keras`.\n"
        "Expected: a file. Received: nothing there.\n"
        "Check the path.",
    )
    assert isinstance(error.value, ValueError)


def test_another_folder(tmp_path):
    (tmp_path / "letter.txt").write_text("hello")
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(tmp_path)
    pin(
        error,
        errors.FileFormatError,
        "`*` is not a Keras file: it has no `config.json`, `model.weights.h5`.\n"
        "Expected: a folder with `config.json` and `model.weights.h5`. "
        "Received: 1 other members.\n"
        "Pass a file that was saved by Keras or tiedio.",
    )


def test_not_a_keras_file(tmp_path):
    (tmp_path / "text.keras").write_text("weights")
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(tmp_path / "text.keras")
    pin(
        error,
        errors.FileFormatError,
        "`*text.keras` is not a Keras file.\n"
        "Expected: a zip archive, an HDF5 file, the JSON of sharded weights, or a folder. "
        "Received: a file that begins with b'weights'.\n"
        "Check the path; a model in another format must be saved again by Keras.",
    )


def test_another_zip_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("letter.txt", "hello")
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(tmp_path / "zip.keras")
    pin(
        error,
        errors.FileFormatError,
        "`*zip.keras` is not a Keras file: it has no `config.json`, `model.weights.h5`.\n"
        "Expected: a zip archive with `config.json` and `model.weights.h5`. "
        "Received: 1 other members.\n"
        "Pass a file that was saved by Keras or tiedio.",
    )


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_truncated_file(saved, part):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(saved)
    pin(
        error,
        errors.FileFormatError,
        "`*model.keras` is damaged.\n"
        "Expected: a complete file of Keras or tiedio. "
        "Received: a zip archive without its end; it was truncated.\n"
        "Restore it from a copy, or save the model again.",
    )


def flip_values(filepath, *dataset_paths):
    """Flips a bit in the bytes of each tensor."""
    content = bytearray(filepath.read_bytes())
    start = content.index(b"\x89HDF")
    with h5py.File(io.BytesIO(bytes(content[start:])), "r") as weights:
        for path in dataset_paths:
            content[start + weights[path].id.get_offset() + 5] ^= 1
    filepath.write_bytes(content)


def test_flipped_bits(saved):
    names = ["layers/conv2d/vars/0", "optimizer/vars/2", "layers/dense/vars/1"]
    flip_values(saved, *names)
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(saved)
    pin(
        error,
        errors.FileFormatError,
        "`*model.keras` is damaged at `layers/conv2d/vars/0`, `layers/conv2d_1/vars/0`, "
        "`layers/dense/vars/1`, `optimizer/vars/2`.\n"
        "Expected: the values that were saved. Received: others.\n"
        "Restore it from a copy, or save the model again.",
    )
    loaded = tiedio.load_tied(saved, verify=False)
    assert len(tiedio.find_ties(loaded)) == 2


def test_flipped_bits_without_digests(saved):
    rewrite(saved, lambda metadata: metadata["tiedio"].pop("digests") and metadata)
    flip_values(saved, "layers/conv2d/vars/0")
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(saved)
    pin(
        error,
        errors.FileFormatError,
        "`*model.keras` is damaged.\n"
        "Expected: a complete file of Keras or tiedio. "
        "Received: Bad CRC-32 for file 'model.weights.h5'.\n"
        "Restore it from a copy, or save the model again.",
    )
    tiedio.load_tied(saved, verify=False)


def change_weights(filepath, change):
    """Writes the archive again with its weights file changed by h5py."""
    with zipfile.ZipFile(filepath) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    weights = io.BytesIO(members["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        change(file)
    members["model.weights.h5"] = weights.getvalue()
    with zipfile.ZipFile(filepath, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_several_tensors_that_cannot_be_read(saved):
    names = ["layers/dense/vars/0", "layers/dense/vars/1", "optimizer/vars/3"]

    def change(file):
        for path in names:
            del file[path]
            file[path] = "text"

    change_weights(saved, change)
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(saved)
    pin(
        error,
        errors.FileFormatError,
        "`*model.keras` is damaged at `layers/dense/vars/0`, `layers/dense/vars/1`, "
        "`optimizer/vars/3`.\n"
        "Expected: the values that were saved. Received: others.\n"
        "Restore it from a copy, or save the model again.",
    )


@pytest.mark.parametrize("attribute", ["gone", "swapped", "other dtype", "other shape"])
def test_a_dataset_that_is_not_the_one_saved(saved, attribute):
    path = "layers/dense/vars/1"

    def change(file):
        value = file[path][()]
        del file[path]
        if attribute == "swapped":
            file[path] = file["optimizer/vars/0"]
        elif attribute != "gone":
            file[path] = value.view("int32") if "dtype" in attribute else value[None]

    change_weights(saved, change)
    with pytest.raises(errors.FileFormatError, match=f"is damaged at `{path}`"):
        tiedio.load_tied(saved)


def test_a_newer_record(saved):
    rewrite(saved, lambda metadata: metadata["tiedio"].update(version=2))
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(saved)
    pin(
        error,
        errors.RecordError,
        "Cannot read the record of this file.\n"
        "Expected: version 1. Received: version 2.\n"
        "Read it with the version of tiedio that wrote it, or a newer one.",
    )


def test_a_malformed_record(saved):
    rewrite(saved, lambda metadata: metadata["tiedio"]["tie_groups"][0].update(owner=7))
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(saved)
    pin(
        error,
        errors.RecordError,
        "Cannot read the record of this file.\n"
        "Expected: `owner` of a tie group as dict. Received: 7.\n"
        "The file was changed after it was saved; save it again.",
    )


def renamed(metadata):
    first, second = metadata["tiedio"]["tie_groups"]
    first["aliases"][0]["attribute"] = "table"
    second["owner"]["inner_path"] = "layers/gone"
    second["shape"] = [9]


def test_a_record_of_variables_the_model_does_not_have(saved):
    rewrite(saved, renamed)
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(saved)
    text = (
        "Cannot restore `conv2d_1/bias`, `conv2d_1/table`, `layers/gone/bias`: "
        "the model is not the one that was saved.\n"
        "Received: `conv2d_1/bias`: (3,) float32, not (9,) float32; "
        "`conv2d_1/table`: no such variable; `layers/gone/bias`: no such variable.\n"
        "Load the file with the same classes, in the version it was saved with, or pass "
        "`strict=False`."
    )
    pin(error, errors.RecordError, text)
    # `strict=False` loads what can be: the optimizer's slots cannot.
    with pytest.warns(tiedio.TiedioWarning) as warned:
        model = tiedio.load_tied(saved, strict=False)
    (one,) = warned
    assert str(one.message).startswith(text.replace(", or pass `strict=False`", ""))
    assert tiedio.find_ties(model) == ()


def test_a_tie_of_unequal_values(saved):
    def change(file):
        del file["layers/conv2d_1/vars/1"]
        file["layers/conv2d_1/vars/1"] = np.ones(3, "float32")

    change_weights(saved, change)
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(saved)
    pin(
        error,
        errors.FileFormatError,
        "`*model.keras` is damaged at `layers/conv2d_1/vars/1`.\n"
        "Expected: the values that were saved. Received: others.\n"
        "Restore it from a copy, or save the model again.",
    )


def local_model():
    class Local(keras.layers.Dense):
        pass

    def wave(x):
        return keras.ops.sin(x)

    layer = Local(2, activation=wave)
    return {"Local": Local, "wave": wave}, keras.Sequential([keras.Input((2,)), layer])


def test_missing_custom_objects(tmp_path):
    custom, model = local_model()
    tiedio.save_tied(model, tmp_path / "custom.keras")
    with pytest.raises(TypeError) as error:
        tiedio.load_tied(tmp_path / "custom.keras", custom_objects={"other": str})
    pin(
        error,
        errors.CustomObjectsError,
        "`*custom.keras` needs classes or functions that are not registered: `Local`, `wave`.\n"
        "Expected: all of them in `custom_objects`. Received: not these.\n"
        'Import the module that registers them, pass `custom_objects={"Local": Local, "wave": '
        "wave}`, or register them with `keras.saving.register_keras_serializable`.",
    )
    assert tiedio.load_tied(tmp_path / "custom.keras", custom_objects=custom).built


def test_state_that_does_not_fit(saved):
    def widen(config):
        layers = config["config"]["layers"]
        next(layer for layer in layers if layer["class_name"] == "Dense")["config"]["units"] = 5

    rewrite(saved, widen, "config.json")
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(saved)
    pin(
        error,
        errors.LoadError,
        "Cannot load the state of `dense`.\n"
        "Received, for `dense`: *\n"
        "Load the file with the same classes, in the version it was saved with.",
    )


def test_slots_that_do_not_fit(saved):
    def drop(config):
        config["compile_config"]["optimizer"]["config"]["amsgrad"] = True

    rewrite(saved, drop, "config.json")
    text = (
        "Cannot resume `optimizer`: its variables are not those of the file.\n"
        "Expected: 14 of shapes [(), (2,), (3,), (3, 3, 2, 3), (6, 2)]. "
        "Received: 10 of shapes [(), (2,), (3,), (3, 3, 2, 3), (6, 2)].\n"
        "Compile with the optimizer that was saved, in the version of then."
    )
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(saved)
    pin(error, errors.LoadError, text.removesuffix(".") + ", or pass `strict=False`.")
    with pytest.warns() as warned:
        model = tiedio.load_tied(saved, strict=False)
    assert text in [str(warning.message) for warning in warned]
    assert int(model.optimizer.iterations) == 0
    assert len(tiedio.find_ties(model)) == 2


def test_a_model_that_cannot_be_compiled_again(tmp_path):
    @keras.saving.register_keras_serializable("tiedio_tests")
    class OwnCompile(keras.Sequential):
        def compile(self, *args, **kwargs):
            super().compile(*args, **kwargs)

    model = OwnCompile([keras.Input((4,)), keras.layers.Dense(4)], name="m")
    scenarios.train(scenarios.compiled(model))
    tiedio.save_tied(model, tmp_path / "own.keras")
    with (
        pytest.warns(UserWarning, match="`compile\\(\\)` was not called"),
        pytest.warns(errors.TiedioWarning) as caught,
    ):
        tiedio.load_tied(tmp_path / "own.keras")
    assert (
        "Cannot resume `optimizer`: the model has no such optimizer.\n"
        "Expected: an optimizer. Received: none, as when the `compile` of a class is its own.\n"
        "Compile the model, and call `tiedio.load_tied_weights` with the same file."
    ) in [str(one.message) for one in caught]
    assert not tiedio.load_tied(tmp_path / "own.keras", compile=False).compiled


def test_a_record_of_layers_the_model_does_not_have(saved):
    def changed(metadata):
        record = metadata["tiedio"]
        record["layers"]["layers/gone"] = {**record["layers"]["layers/conv2d"], "name": "gone"}
        record["layers"]["layers/dense"]["variables"].pop()
        record["shared_layers"] = [["layers/conv2d", "layers/dense"]]
        record["random_states"] = [
            {"places": [{"inner_path": "layers/dense", "attribute": "seed"}], "state": [1, 2]}
        ]

    rewrite(saved, changed)
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(saved)
    text = (
        "Cannot restore `dense`, `dense/bias`, `dense/seed`, `gone`: "
        "the model is not the one that was saved.\n"
        "Received: `dense`: another layer than `conv2d`; "
        "`dense/bias`: not in the file; `dense/seed`: no such seed generator; "
        "`gone`: no such layer, or a different class at this path.\n"
        "Load the file with the same classes, in the version it was saved with, or pass "
        "`strict=False`."
    )
    pin(error, errors.RecordError, text)
    with pytest.warns(tiedio.TiedioWarning) as warned:
        model = tiedio.load_tied(saved, strict=False)
    assert str(warned[0].message) == text.replace(", or pass `strict=False`", "")
    assert len(tiedio.find_ties(model)) == 2
    assert len(model.layers[-1].variables) == 2


@keras.saving.register_keras_serializable("tiedio_tests")
class Grown(keras.layers.Layer):
    """A layer whose class gets one more variable after a model with it was saved."""

    grown = False

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(4,), name="scale")
        if self.grown:
            self.shift = self.add_weight(shape=(4,), name="shift")

    def call(self, inputs):
        return inputs * self.scale


def test_a_class_that_changed_since(tmp_path, monkeypatch):
    keras.utils.clear_session()
    model = keras.Sequential([keras.Input((4,)), Grown()])
    tiedio.save_tied(model, tmp_path / "model.keras")
    monkeypatch.setattr(Grown, "grown", True)
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(tmp_path / "model.keras")
    pin(
        error,
        errors.RecordError,
        "Cannot restore `grown/shift`: the model is not the one that was saved.\n"
        "Received: `grown/shift`: not in the file.\n"
        "Load the file with the same classes, in the version it was saved with, or pass "
        "`strict=False`.",
    )


def exported(tmp_path, name, arrays=None):
    """Writes weights, and exports them."""
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.zeros(2) if arrays is None else arrays
    return export.export(tmp_path / "a.weights.h5", tmp_path / name)


def test_export_between_files_of_keras(tmp_path):
    with pytest.raises(ValueError) as error:
        exported(tmp_path, "b.weights.h5")
    pin(
        error,
        errors.SaveError,
        f"Cannot export `{tmp_path / 'a.weights.h5'}` to `{tmp_path / 'b.weights.h5'}`.\n"
        "Expected: one path ending in `.safetensors`. Received: none.\n"
        "Change an ending; `tiedio migrate` writes files of Keras from others.",
    )


def test_export_to_what_is_there(tmp_path):
    exported(tmp_path, "a.safetensors")
    with pytest.raises(ValueError) as error:
        exported(tmp_path, "a.safetensors")
    pin(
        error,
        errors.SaveError,
        f"`{tmp_path / 'a.safetensors'}` exists already.\n"
        "Expected: a path where nothing is. Received: one with a file.\n"
        "Pass another path, or `--overwrite`.",
    )


def test_export_of_texts(tmp_path):
    with pytest.raises(ValueError) as error:
        exported(tmp_path, "a.safetensors", np.array([b"text"]))
    pin(
        error,
        errors.SaveError,
        f"`{tmp_path / 'a.safetensors'}` cannot hold `dense/0`.\n"
        "Expected: numbers that safetensors knows. Received: bytes32.\n"
        "Copy the file as it is; a file of Keras holds all of them.",
    )


def test_weights_do_not_come_back_as_a_model(tmp_path):
    exported(tmp_path, "a.safetensors")
    with pytest.raises(ValueError) as error:
        export.export(tmp_path / "a.safetensors", tmp_path / "a.keras")
    pin(
        error,
        errors.SaveError,
        f"`{tmp_path / 'a.safetensors'}` cannot be written as a model to "
        f"`{tmp_path / 'a.keras'}`.\n"
        "Expected: a path ending in `.keras`, and a model. Received: weights only.\n"
        "Change the ending: to `.weights.h5` for weights.",
    )


def test_a_safetensors_file_of_others(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError) as error:
        export.export(tmp_path / "a.safetensors", tmp_path / "a.keras")
    pin(
        error,
        errors.FileFormatError,
        f"`{tmp_path / 'a.safetensors'}` does not say where its tensors belong.\n"
        "Expected: `tiedio` in its metadata. Received: none.\n"
        "Only what `tiedio export` wrote of a whole model, or of weights, can come back.",
    )


def test_safetensors_is_missing(tmp_path, monkeypatch):
    exported(tmp_path, "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError) as error:
        export.export(tmp_path / "a.safetensors", tmp_path / "b.weights.h5")
    pin(
        error,
        errors.MissingPackageError,
        f"`{tmp_path / 'a.safetensors'}` needs a package that is not installed.\n"
        "Expected: `safetensors`. Received: *.\n"
        "Install it: `pip install 'tiedio[safetensors]'`.",
    )


def test_two_files_that_would_be_one(tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("a.weights.h5", "a.weights.json", "a_json.weights.h5"):
        with h5py.File(tmp_path / "old" / name, "w") as file:
            file["layers/dense/vars/0"] = np.zeros(2)
    _, other, _ = many.migrate(str(tmp_path / "old"), str(tmp_path / "new"))
    assert str(other.error) == (
        f"`{tmp_path / 'old/a.weights.json'}` would be written to "
        f"`{tmp_path / 'new/a_json.weights.h5'}`.\n"
        f"Expected: a path of its own. Received: that of `{tmp_path / 'old/a_json.weights.h5'}`.\n"
        "Migrate it by itself, or rename one of the two."
    )
