"""Weights into models that exist: untied, tied, tied otherwise, or not fit to be tied."""

import io
import json
import re
import warnings

import h5py
import keras
import numpy as np
import pytest
import scenarios

import tiedio
from tiedio import errors, files

FORMS = {
    "one file": ("model.weights.h5", {}),
    "shards": ("model.weights.json", {"max_shard_size": 1500 / 2**30}),
    "whole model": ("model.keras", None),
    "folder": ("model", None),
    "whole model in HDF5": ("model.h5", None),
}


@pytest.fixture(
    params=[
        pytest.param(form, marks=[] if form in ("one file", "shards") else [pytest.mark.slow])
        for form in FORMS
    ]
)
def form(request):
    return request.param


def two_convolutions(tie=("kernel", "bias"), filters=3, kernel_size=3):
    """Two paddings, and a head; tied, partly or not."""
    image = keras.Input((8, 8, 1))
    same = keras.layers.Conv2D(filters, 3, padding="same", name="same")
    valid = keras.layers.Conv2D(filters, kernel_size, name="valid")
    pooled = [keras.layers.GlobalMaxPooling2D()(conv(image)) for conv in (same, valid)]
    output = keras.layers.Dense(2, name="head")(keras.layers.Concatenate()(pooled))
    model = keras.Model(image, output)
    if tie:
        tiedio.tie(valid, to=same, weights=tie)
    model.compile("adam", "mse")
    return model


@pytest.fixture
def tied():
    keras.utils.set_random_seed(1)
    model = two_convolutions()
    scenarios.train(model)
    return model


def save(model, folder, form):
    name, options = FORMS[form]
    filepath = folder / name
    if options is None:
        tiedio.save_tied(model, filepath, zipped=form != "folder")
    else:
        tiedio.save_tied_weights(model, filepath, **options)
    return filepath


def assert_equal(model, other):
    assert scenarios.ties_of(model) == scenarios.ties_of(other)
    for ours, theirs in zip(scenarios.state_of(model), scenarios.state_of(other), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def values(model):
    optimizer = getattr(model, "optimizer", None)
    held = [*model.variables, *(optimizer.variables if optimizer else ())]
    return [array.tobytes() for array in scenarios.arrays_of(held)]


@pytest.mark.parametrize(
    ("tie", "trained"),
    [
        (None, False),
        (("kernel",), True),
        pytest.param(None, True, marks=pytest.mark.seldom),
        pytest.param(("kernel",), False, marks=pytest.mark.seldom),
        pytest.param(("kernel", "bias"), False, marks=pytest.mark.seldom),
        pytest.param(("kernel", "bias"), True, marks=pytest.mark.seldom),
    ],
)
def test_a_tied_file(tied, tmp_path, form, tie, trained):
    filepath = save(tied, tmp_path, form)
    model = two_convolutions(tie)
    if trained:
        scenarios.train(model)
    tiedio.load_tied_weights(model, filepath)
    assert model.get_layer("same").kernel is model.get_layer("valid").kernel
    assert_equal(model, tied)
    scenarios.train(model), scenarios.train(tied)
    assert_equal(model, tied)


@pytest.mark.parametrize("tie", [None, ("kernel", "bias")])
def test_a_file_of_equal_copies(tmp_path, tie):
    """What is tied in the model stays so; what is not is not tied by equal values."""
    untied = two_convolutions(tie=None)
    same, valid = untied.get_layer("same"), untied.get_layer("valid")
    valid.set_weights(same.get_weights())
    tiedio.save_tied_weights(untied, tmp_path / "equal.weights.h5")
    untied.save_weights(tmp_path / "stock.weights.h5")
    for name in ("equal", "stock"):
        model = two_convolutions(tie)
        before = scenarios.ties_of(model)
        tiedio.load_tied_weights(
            model, tmp_path / f"{name}.weights.h5", objects_to_skip=[model.optimizer]
        )
        assert scenarios.ties_of(model) == before
        for layer in ("same", "valid"):
            assert np.array_equal(model.get_layer(layer).kernel, same.kernel)


@pytest.mark.parametrize("stock", [False, True])
def test_a_file_of_copies_that_differ(tmp_path, stock):
    untied, filepath = two_convolutions(tie=None), tmp_path / "untied.weights.h5"
    untied.save_weights(filepath) if stock else tiedio.save_tied_weights(untied, filepath)
    model = two_convolutions()
    before = values(model)
    with pytest.raises(errors.LoadError) as error:
        tiedio.load_tied_weights(model, filepath, strict=False, skip_mismatch=True)
    assert str(error.value) == (
        f"Cannot load `layers/conv2d_1/vars/0` of `{filepath}`: the model ties what has several "
        "values there.\n"
        "Expected: the values at `layers/conv2d/vars/0`. Received: others.\n"
        "Use `tiedio.untie` first, or load a file of a tied model."
    )
    assert values(model) == before
    assert len(tiedio.find_ties(model)) == 2


def test_a_model_that_cannot_be_tied(tied, tmp_path, form):
    filepath = save(tied, tmp_path, form)
    model = two_convolutions(tie=None, kernel_size=5)
    before = values(model)
    told = (
        "Cannot load the weights of `valid`: their shapes must match the model.\n"
        "Received: `valid`: expected [(5, 5, 1, 3), (3,)], received [(3, 3, 1, 3), (3,)].\n"
        "Build the model as it was when saved"
    )
    with pytest.raises(errors.LoadError, match=f"^{re.escape(told)}, or pass `skip_mismatch=True"):
        tiedio.load_tied_weights(model, filepath)
    assert values(model) == before and not tiedio.find_ties(model)
    skipped = [model.optimizer]
    with pytest.warns(tiedio.TiedioWarning, match=rf"^{re.escape(told)}\.$"):
        tiedio.load_tied_weights(model, filepath, skip_mismatch=True, objects_to_skip=skipped)
    assert np.array_equal(model.get_layer("same").kernel, tied.get_layer("same").kernel)
    assert np.array_equal(model.get_layer("head").kernel, tied.get_layer("head").kernel)
    assert len(tiedio.find_ties(model)) == 1  # the bias


def test_other_shapes_are_named_before_anything_is_changed(tmp_path):
    keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dense(3)]
    ).save_weights(tmp_path / "x.weights.h5")
    layers = [keras.layers.Dense(2), keras.layers.Dense(5, name="last")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    before = values(model)
    with pytest.raises(errors.LoadError) as error:
        tiedio.load_tied_weights(model, tmp_path / "x.weights.h5")
    assert str(error.value) == (
        "Cannot load the weights of `last`: their shapes must match the model.\n"
        "Received: `last`: expected [(2, 5), (5,)], received [(2, 3), (3,)].\n"
        "Build the model as it was when saved, or pass `skip_mismatch=True`."
    )
    assert values(model) == before


def test_a_damaged_file_changes_nothing(tied, tmp_path):
    filepath = save(tied, tmp_path, "one file")
    content = bytearray(filepath.read_bytes())
    with h5py.File(io.BytesIO(bytes(content)), "r") as weights:
        content[weights["layers/dense/vars/0"].id.get_offset()] ^= 1
    filepath.write_bytes(content)
    model = two_convolutions(tie=None)
    before = values(model)
    with pytest.raises(errors.FileFormatError, match="is damaged at `layers/dense/vars/0`"):
        tiedio.load_tied_weights(model, filepath)
    assert values(model) == before and not tiedio.find_ties(model)


def test_slots_of_another_optimizer(tied, tmp_path):
    filepath = save(tied, tmp_path, "one file")
    model = two_convolutions()
    model.compile("sgd", "mse")
    with pytest.warns(tiedio.TiedioWarning, match="Cannot resume `optimizer`"):
        tiedio.load_tied_weights(model, filepath)
    assert values(model)[:4] == values(tied)[:4]


def test_without_an_optimizer_on_either_side(tied, tmp_path):
    uncompiled = keras.models.clone_model(tied)
    tiedio.save_tied_weights(tied, tmp_path / "with.weights.h5")
    tiedio.load_tied_weights(uncompiled, tmp_path / "with.weights.h5")
    assert scenarios.ties_of(uncompiled) == scenarios.ties_of(tied)
    tiedio.save_tied_weights(uncompiled, tmp_path / "without.weights.h5")
    model = two_convolutions()
    scenarios.train(model)
    step = int(model.optimizer.iterations)
    tiedio.load_tied_weights(model, tmp_path / "without.weights.h5")
    assert int(model.optimizer.iterations) == step > 0
    assert values(model)[:4] == values(tied)[:4]


def test_names_and_flags_are_those_of_the_model(tied, tmp_path):
    filepath = save(tied, tmp_path, "one file")
    model = two_convolutions(tie=None)
    model.get_layer("same").trainable = False
    model.get_layer("head").name = "tail"
    model.compile("adam", "mse")
    tiedio.load_tied_weights(model, filepath, objects_to_skip=[model.optimizer])
    assert not model.get_layer("same").trainable
    assert model.get_layer("tail").trainable
    assert model.get_layer("same").kernel is model.get_layer("valid").kernel


def test_another_model_with_the_same_layers_trains_the_shared_variable(tied, tmp_path):
    filepath = save(tied, tmp_path, "one file")
    model = two_convolutions(tie=None)
    outer = keras.Sequential([keras.Input((8, 8, 1)), model])
    outer.compile("adam", "mse")
    scenarios.train(outer)
    with pytest.warns(tiedio.TiedioWarning, match="starts anew"):
        tiedio.load_tied_weights(model, filepath, objects_to_skip=[model.optimizer])
    kernel = model.get_layer("same").kernel
    before = keras.ops.convert_to_numpy(kernel).copy()
    scenarios.train(outer)
    assert any(variable is kernel for variable in outer.trainable_variables)
    assert not np.array_equal(keras.ops.convert_to_numpy(kernel), before)


def test_objects_to_skip_when_saving(tied, tmp_path):
    """What is left out is left alone; the others load, also in Keras."""
    skipped = [tied.get_layer("same"), tied.optimizer]
    tiedio.save_tied_weights(tied, tmp_path / "some.weights.h5", objects_to_skip=skipped)
    with h5py.File(tmp_path / "some.weights.h5") as file:
        assert list(file["layers"]) == ["conv2d_1", "dense"] or "conv2d" not in file["layers"]
        assert "optimizer" not in file
    model = two_convolutions(tie=None)
    before = model.get_layer("same").get_weights()
    tiedio.load_tied_weights(
        model, tmp_path / "some.weights.h5", objects_to_skip=[model.get_layer("same")]
    )
    assert all(map(np.array_equal, model.get_layer("same").get_weights(), before))
    assert np.array_equal(model.get_layer("valid").kernel, tied.get_layer("valid").kernel)


def test_objects_to_skip_when_loading(tied, tmp_path, form):
    filepath = save(tied, tmp_path, form)
    model = two_convolutions(tie=None)
    before = model.get_layer("head").get_weights()
    skipped = [model.get_layer("head"), model.optimizer]
    tiedio.load_tied_weights(model, filepath, objects_to_skip=skipped)
    assert all(map(np.array_equal, model.get_layer("head").get_weights(), before))
    assert scenarios.ties_of(model) == scenarios.ties_of(tied)
    assert int(model.optimizer.iterations) == 0


def test_skip_mismatch_is_as_in_keras(tied, tmp_path):
    filepath = save(tied, tmp_path, "one file")
    ours, theirs = (two_convolutions(tie=None, kernel_size=5) for _ in range(2))
    for one in (ours, theirs):
        one.get_layer("valid").set_weights([np.zeros((5, 5, 1, 3)), np.zeros(3)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.load_weights(filepath, skip_mismatch=True)
        tiedio.load_tied_weights(
            ours, filepath, skip_mismatch=True, objects_to_skip=[ours.optimizer]
        )
    for layer in ("same", "head"):
        assert all(
            map(
                np.array_equal,
                ours.get_layer(layer).get_weights(),
                theirs.get_layer(layer).get_weights(),
            )
        )
    assert np.array_equal(ours.get_layer("valid").kernel, theirs.get_layer("valid").kernel)


# Keras itself loads weights neither from folders nor, in the layout of Keras 3, from `.h5`.
@pytest.mark.often(1)
@pytest.mark.parametrize("form", ["one file", "shards", "whole model"])
def test_stock_keras_loads_the_weights(tied, tmp_path, form):
    filepath = save(tied, tmp_path, form)
    model = two_convolutions()
    inputs, _ = scenarios.data_for(model)
    model.load_weights(filepath)
    predictions = [one.predict(inputs, verbose=0).tobytes() for one in (model, tied)]
    assert predictions[0] == predictions[1]


def linked(filepath):
    """Writes weights as another tool may: shared tensors are hard links, and there is no record."""
    with h5py.File(filepath, "r+") as file:
        for index in ("0", "1"):
            del file[f"layers/conv2d_1/vars/{index}"]
            file[f"layers/conv2d_1/vars/{index}"] = file[f"layers/conv2d/vars/{index}"]


def test_links_without_a_record(tied, tmp_path):
    """Also the optimizer resumes: once its variables are shared, they are those of the file."""
    filepath = tmp_path / "linked.weights.h5"
    tied.save_weights(filepath)
    linked(filepath)
    model = two_convolutions(tie=None)
    tiedio.load_tied_weights(model, filepath)
    assert_equal(model, tied)


def test_links_without_a_record_in_a_whole_model(tied, tmp_path):
    tied.save(tmp_path / "stock", zipped=False)
    linked(tmp_path / "stock" / "model.weights.h5")
    loaded = tiedio.load_tied(tmp_path / "stock")
    assert_equal(loaded, tied)


def rewritten(filepath, change=lambda file: None):
    """Rewrites a file group by group, which turns links into copies."""
    copied = io.BytesIO()
    with h5py.File(filepath) as file, h5py.File(copied, "w") as copy:

        def duplicate(group, into):
            for name, member in group.items():
                if isinstance(member, h5py.Group):
                    duplicate(member, into.create_group(name))
                else:
                    into[name] = member[()]

        duplicate(file, copy)
        change(copy)
    filepath.write_bytes(copied.getvalue())


def test_a_record_without_links(tied, tmp_path):
    filepath = save(tied, tmp_path, "one file")
    rewritten(filepath)
    with h5py.File(filepath) as file:
        assert file["layers/conv2d/vars/0"] != file["layers/conv2d_1/vars/0"]
    model = two_convolutions(tie=None)
    tiedio.load_tied_weights(model, filepath)
    assert_equal(model, tied)


@pytest.mark.parametrize("verify", [False, True])
def test_a_record_without_links_whose_values_differ(tied, tmp_path, verify):
    filepath = save(tied, tmp_path, "one file")

    def change(file):
        file["layers/conv2d_1/vars/0"][...] += 1

    rewritten(filepath, change)
    model = two_convolutions(tie=None)
    before = values(model)
    with pytest.raises(errors.FileFormatError, match="is damaged at `layers/conv2d_1/vars/0`"):
        tiedio.load_tied_weights(model, filepath, verify=verify)
    assert values(model) == before and not tiedio.find_ties(model)


def test_a_whole_model_is_not_in_a_file_of_weights(tied, tmp_path):
    filepath = save(tied, tmp_path, "one file")
    with pytest.raises(errors.FileFormatError) as error:
        tiedio.load_tied(filepath)
    assert str(error.value) == (
        f"`{filepath}` holds the weights of a model only.\n"
        "Expected: a whole model. Received: no config.\n"
        "Build the model, and pass it to `tiedio.load_tied_weights`."
    )


def test_an_unbuilt_model(tied, tmp_path):
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    filepath = save(tied, tmp_path, "one file")
    for action in (tiedio.load_tied_weights, tiedio.save_tied_weights):
        with pytest.raises(errors.ModelNotBuiltError, match="has no variables yet"):
            action(unbuilt, filepath)


def test_the_record_is_a_text_that_any_tool_reads(tied, tmp_path):
    filepath = save(tied, tmp_path, "one file")
    with h5py.File(filepath) as file:
        record = json.loads(file["tiedio/record"][()].tobytes())
    assert record["version"] == 1 and len(record["tie_groups"]) == 2
    assert record["digests"].keys() >= {"layers/conv2d/vars/0", "layers/conv2d_1/vars/0"}


def test_the_record_of_older_files(tied, tmp_path):
    """It was a text at the root."""
    filepath = save(tied, tmp_path, "one file")
    with h5py.File(filepath, "a") as file:
        text = file["tiedio/record"][()].tobytes()
        del file["tiedio"]
        file["tiedio"] = np.array(text)
    assert files.verify(filepath).is_verified
    model = two_convolutions(tie=None)
    tiedio.load_tied_weights(model, filepath)
    assert_equal(model, tied)


def test_what_the_editor_of_keras_saves(tied, tmp_path):
    """It knows no links, and neither shows nor keeps what is no layer's."""
    editor = keras.saving.KerasFileEditor(str(save(tied, tmp_path, "one file")))
    assert editor.weights_dict.keys() == {"layers", "optimizer"}
    editor.summary()
    editor.rename_object("layers/conv2d_1", "renamed")
    copy = editor.weights_dict["layers"]["renamed"]
    editor.delete_object("layers/renamed")
    editor.add_object("layers/conv2d_1", copy)
    filepath = tmp_path / "edited.weights.h5"
    editor.save(filepath)

    for load, warning in (
        (keras.Model.load_weights, "Skipping variable loading for optimizer"),
        (tiedio.load_tied_weights, f"Cannot resume `optimizer`.*\n.*\n.*`tiedio plan {filepath}`"),
    ):
        untied = two_convolutions(tie=None)
        with pytest.warns(UserWarning, match=warning):
            load(untied, filepath)
        assert not scenarios.ties_of(untied)
        for name in ("same", "valid", "head"):
            saved = tied.get_layer(name).get_weights()
            assert all(map(np.array_equal, untied.get_layer(name).get_weights(), saved))
    stays_tied = two_convolutions()
    tiedio.load_tied_weights(stays_tied, filepath)
    assert_equal(stays_tied, tied)

    editor.add_weights("layers/conv2d_1", {"0": np.zeros_like(copy["0"])})
    editor.save(filepath)
    with pytest.raises(errors.LoadError, match="the model ties what has several values there"):
        tiedio.load_tied_weights(stays_tied, filepath)


@keras.saving.register_keras_serializable("tiedio_tests")
class ListsInLists(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        blocks = [keras.Sequential([keras.layers.Dense(3)]), keras.layers.Dense(3)]
        self.groups = [blocks, [keras.layers.Dense(3)]]

    def call(self, inputs):
        for layer in (layer for group in self.groups for layer in group):
            inputs = layer(inputs)
        return inputs


def lists_in_lists():
    model = ListsInLists()
    model(np.ones((1, 3)))
    return model


@pytest.fixture
def stored_as_before(tmp_path):
    """Weights where versions of Keras before 3.12 stored them, and 3.12 still looks."""
    model, filepath = lists_in_lists(), tmp_path / "stock.weights.h5"
    model.save_weights(filepath)
    with h5py.File(filepath, "r+") as file:
        if "groups" in file:
            for number, path in enumerate(("container/dense", "container_1/dense")):
                file.move(f"groups/{path}", f"layers/dense_{number}" if number else "layers/dense")
            file.move("groups/container/sequential", "layers/sequential")
            del file["groups"]
        assert {*file["layers"]} == {"sequential", "dense", "dense_1"}
    return model, filepath


def test_lists_in_lists_are_found_where_older_versions_store_them(stored_as_before):
    model, filepath = stored_as_before
    loaded = lists_in_lists()
    tiedio.load_tied_weights(loaded, filepath)
    assert all(map(np.array_equal, loaded.get_weights(), model.get_weights()))


def test_lists_in_lists_are_linked_to_where_older_versions_look(tmp_path):
    tiedio.save_tied_weights(lists_in_lists(), tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5") as file:
        for now, before in (
            ("container/sequential", "sequential"),
            ("container_1/dense", "dense_1"),
        ):
            assert file[f"groups/{now}"] == file[f"layers/{before}"]


@pytest.fixture
def old_layout(tmp_path):
    """What stock Keras saves as `.h5`, of a model that is not tied."""
    model = two_convolutions(tie=None)
    model.save(tmp_path / "old.h5")
    return model, tmp_path / "old.h5"


@pytest.mark.parametrize("by_name", [False, True])
def test_the_layout_of_keras_2(old_layout, by_name):
    model, filepath = old_layout
    loaded = two_convolutions(tie=None)
    tiedio.load_tied_weights(loaded, filepath, by_name=by_name)
    assert all(map(np.array_equal, loaded.get_weights(), model.get_weights()))


def test_the_layout_of_keras_2_into_a_tied_model(old_layout):
    model, filepath = old_layout
    loaded = two_convolutions()
    before = values(loaded)
    with pytest.raises(errors.LoadError, match=r"Cannot load `model_weights/valid/"):
        tiedio.load_tied_weights(loaded, filepath)
    assert values(loaded) == before
    model.get_layer("valid").set_weights(model.get_layer("same").get_weights())
    model.save(filepath)
    tiedio.load_tied_weights(loaded, filepath)
    assert all(
        map(
            np.array_equal,
            loaded.get_layer("same").get_weights(),
            model.get_layer("same").get_weights(),
        )
    )
    assert len(tiedio.find_ties(loaded)) == 2


def test_the_layout_of_keras_2_into_other_shapes(old_layout):
    model, filepath = old_layout
    loaded = two_convolutions(tie=None, kernel_size=5)
    before = values(loaded)
    with pytest.raises(errors.LoadError, match="Cannot load the weights of `valid` from"):
        tiedio.load_tied_weights(loaded, filepath)
    assert values(loaded) == before
    with pytest.warns(tiedio.TiedioWarning, match="Cannot load the weights of `valid` from"):
        tiedio.load_tied_weights(loaded, filepath, skip_mismatch=True)
    assert np.array_equal(loaded.get_layer("head").kernel, model.get_layer("head").kernel)


def test_options_that_a_file_has_no_use_for(tied, tmp_path, old_layout):
    filepath = save(tied, tmp_path, "one file")
    model = two_convolutions()
    with pytest.raises(errors.LoadError, match="`by_name` cannot be used for"):
        tiedio.load_tied_weights(model, filepath, by_name=True)
    with pytest.raises(errors.LoadError, match="`objects_to_skip` cannot be used for"):
        tiedio.load_tied_weights(model, old_layout[1], objects_to_skip=[model.optimizer])


# What is in use stays in use


def trunk_and_head(frozen=False, head="head"):
    layers = [keras.layers.Dense(4), keras.layers.Dense(4), keras.layers.Dense(2, name=head)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    tiedio.tie(layers[1], to=layers[0])
    layers[0].trainable = not frozen
    model.compile("adam", "mse")
    return model


@pytest.mark.parametrize("trained", [False, True])
def test_an_optimizer_that_is_left_out_is_not_touched(tied, tmp_path, trained):
    filepath = save(tied, tmp_path, "one file")
    model = two_convolutions()
    if trained:
        scenarios.train(model)
    optimizer, before = model.optimizer, len(model.optimizer.variables)
    step = int(optimizer.iterations)
    tiedio.load_tied_weights(model, filepath, objects_to_skip=[model.optimizer])
    assert model.optimizer is optimizer and len(optimizer.variables) == before
    assert int(optimizer.iterations) == step


def test_an_optimizer_that_was_not_built_resets_none(tmp_path):
    tiedio.save_tied_weights(two_convolutions(), tmp_path / "new.weights.h5")
    model = two_convolutions()
    scenarios.train(model)
    step = int(model.optimizer.iterations)
    tiedio.load_tied_weights(model, tmp_path / "new.weights.h5")
    assert int(model.optimizer.iterations) == step > 0


@pytest.mark.parametrize("load", [tiedio.load_tied, tiedio.load_tied_weights])
def test_what_keras_saved_before_training_is_no_loss(tmp_path, load):
    """Its optimizer is not built there, and nothing is wrong."""
    model = scenarios.compiled(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    model.save(tmp_path / "model.keras")
    scenarios.train(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        given = [model] if load is tiedio.load_tied_weights else []
        loaded = load(*given, tmp_path / "model.keras") or model
    scenarios.train(loaded)


def test_a_model_with_loss_scaling(tmp_path):
    def mixed():
        layers = [keras.layers.Dense(4, dtype="mixed_float16") for _ in range(2)]
        model = keras.Sequential([keras.Input((4,)), *layers])
        tiedio.tie(layers[1], to=layers[0])
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse")
        return model

    model, other = mixed(), mixed()
    scenarios.train(model)
    tiedio.save_tied_weights(model, tmp_path / "x.weights.h5")
    tiedio.load_tied_weights(other, tmp_path / "x.weights.h5")
    assert_equal(other, model)


def test_an_interrupted_load_leaves_a_model_that_trains(tied, tmp_path, monkeypatch):
    filepath = save(tied, tmp_path, "one file")
    model = two_convolutions(tie=None)

    def interrupted(self, store):
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.optimizers.Optimizer, "load_own_variables", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiedio.load_tied_weights(model, filepath)
    monkeypatch.undo()
    scenarios.train(model)


class OwnWay(keras.layers.Layer):
    """A layer that loads in its own way, and may have one variable more."""

    def __init__(self, extra, **options):
        super().__init__(**options)
        self.has_extra = extra

    def build(self, shape):
        self.w = self.add_weight(shape=(2,), name="w")
        if self.has_extra:
            self.extra = self.add_weight(shape=(2,), name="extra")

    def load_own_variables(self, store):
        self.w.assign(store["0"])


def test_a_variable_that_the_model_lacks(tmp_path):
    saved, lacking = (keras.Sequential([keras.Input((2,)), OwnWay(one)]) for one in (True, False))
    tiedio.save_tied_weights(saved, tmp_path / "x.weights.h5")
    before = values(lacking)
    with pytest.raises(errors.RecordError, match=r"Cannot restore `own_way(_\d+)?/extra`"):
        tiedio.load_tied_weights(lacking, tmp_path / "x.weights.h5")
    assert values(lacking) == before


def test_a_variable_that_only_the_model_ties_stays_in_its_layer(tmp_path):
    def model(tie):
        layers = [keras.layers.Dense(4, use_bias=number == 0 or tie) for number in range(2)]
        made = keras.Sequential([keras.Input((4,)), *layers])
        if tie:
            tiedio.tie(layers[1], to=layers[0], weights=("bias",))
        return made

    saved, tied = model(False), model(True)
    tiedio.save_tied_weights(saved, tmp_path / "x.weights.h5")
    with pytest.warns(tiedio.TiedioWarning):
        tiedio.load_tied_weights(tied, tmp_path / "x.weights.h5", skip_mismatch=True)
    assert len(tied.layers[1].weights) == 2


def test_an_open_file_is_for_one_file_of_weights(tied):
    file = io.BytesIO(b"hello")
    file.seek(5)
    for options in ({}, {"max_shard_size": 1}):
        with pytest.raises(errors.SaveError, match="Cannot save weights to"):
            tiedio.save_tied_weights(tied, file, **options)
    with pytest.raises(errors.SaveError, match="cannot be, or have, a folder"):
        tiedio.save_tied(tied, file, zipped=False)
    assert file.getvalue() == b"hello"


def test_shards_of_an_open_file(tied, tmp_path):
    filepath = save(tied, tmp_path, "shards")
    with open(filepath, "rb") as file, pytest.raises(errors.FileFormatError, match="needs other"):
        tiedio.load_tied_weights(two_convolutions(), file)


class InItsOwnWay(keras.layers.Dense):
    """Loads whatever is there."""

    def load_own_variables(self, store):
        for number in store:
            self.weights[int(number)].assign(store[number])


@keras.saving.register_keras_serializable("tiedio_tests")
class Named(keras.Model):
    """Layers under these names, the third of which loads in its own way."""

    def __init__(self, names=("first", "second"), **options):
        super().__init__(**options)
        self._names = names
        for name in names:
            kind = InItsOwnWay if name == "third" else keras.layers.Dense
            setattr(self, name, kind(6))

    def call(self, inputs):
        for name in self._names:
            inputs = getattr(self, name)(inputs)
        return inputs


@keras.saving.register_keras_serializable("tiedio_tests")
class Renamed(Named):
    """The layers of `Named`, which other attributes reach first."""

    def __init__(self):
        super().__init__(("a_first", "a_second"))

    first = property(lambda self: self.a_first)
    second = property(lambda self: self.a_second)


def named(kind=Named, tie=False, **options):
    model = kind(**options)
    model(np.ones((1, 6)))
    if tie:
        tiedio.tie(model.second, to=model.first)
    model.compile("adam", "mse")
    return model


@pytest.mark.parametrize("stock", [False, True])
def test_a_layer_that_another_path_reaches_first(tmp_path, stock):
    model, filepath = named(tie=not stock), tmp_path / "model.weights.h5"
    scenarios.train(model)
    model.save_weights(filepath) if stock else tiedio.save_tied_weights(model, filepath)
    other = named(Renamed)
    tiedio.load_tied_weights(other, filepath)
    assert (other.first.kernel is other.second.kernel) == (not stock)
    assert np.array_equal(other.second.kernel, model.second.kernel)
    for ours, theirs in zip(scenarios.state_of(other), scenarios.state_of(model), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("skip_mismatch", [False, True])
def test_nothing_is_left_out_in_silence(tmp_path, stock, skip_mismatch):
    model, filepath = named(names=("first",)), tmp_path / "model.weights.h5"
    model.save_weights(filepath) if stock else tiedio.save_tied_weights(model, filepath)
    other = named(names=("first", "second", "third"))
    before = values(other)
    second, third = other.second.name, other.third.name
    if not skip_mismatch:
        with pytest.raises(errors.LoadError, match=r"when saved\.$"):
            tiedio.load_tied_weights(other, filepath, strict=False)
        with pytest.raises(errors.LoadError) as error:
            tiedio.load_tied_weights(other, filepath)
        assert str(error.value) == (
            f"Cannot load the weights of `{second}`, `{third}`: "
            f"`{filepath}` has none for them.\n"
            f"Received: `{second}`: expected 2 variables, received 0 variables; "
            f"`{third}`: expected 2 variables, received 0 variables.\n"
            "Build the model as it was when saved, or pass `skip_mismatch=True`."
        )
        assert all(map(np.array_equal, values(other), before))
        return
    with pytest.warns(tiedio.TiedioWarning) as caught:
        tiedio.load_tied_weights(other, filepath, skip_mismatch=True)
    (one,) = (one for one in caught if one.category is tiedio.TiedioWarning)
    assert f"`{second}`, `{third}`: `{filepath}` has none for them." in str(one.message)
    assert np.array_equal(other.first.kernel, model.first.kernel)


@keras.saving.register_keras_serializable("tiedio_tests")
class InsideItself(keras.Model):
    """Layers in a list and a dict that are inside themselves."""

    def __init__(self, **options):
        super().__init__(**options)
        self.blocks = [keras.layers.Dense(6), keras.layers.Dense(6)]
        self.blocks.append(self.blocks)
        self.by_name = {"first": self.blocks[0]}
        self.by_name["all"] = self.by_name

    def call(self, inputs):
        return self.blocks[1](self.blocks[0](inputs))


@pytest.mark.parametrize("weights_only", [False, True])
def test_containers_that_are_inside_themselves(tmp_path, weights_only):
    model = InsideItself()
    model(np.ones((1, 6)))
    tiedio.tie(model.blocks[1], to=model.blocks[0])
    model.compile("adam", "mse")
    scenarios.train(model)
    if weights_only:
        tiedio.save_tied_weights(model, tmp_path / "model.weights.h5")
        loaded = InsideItself()
        loaded(np.ones((1, 6)))
        loaded.compile("adam", "mse")
        tiedio.load_tied_weights(loaded, tmp_path / "model.weights.h5")
    else:
        tiedio.save_tied(model, tmp_path / "model.keras")
        loaded = tiedio.load_tied(tmp_path / "model.keras")
    assert loaded.blocks[0].kernel is loaded.blocks[1].kernel
    assert_equal(loaded, model)


def with_lora(tie=False, rank=None):
    layers = [keras.layers.Dense(4) for _ in range(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    if tie:
        tiedio.tie(layers[1], to=layers[0], weights=("kernel",))
    for n, layer in enumerate(layers if rank else ()):
        layer.enable_lora(rank)
        layer.lora_kernel_b.assign(np.full((rank, 4), n + 1.0))
    return model


def test_a_model_without_lora_gets_what_lora_made_of_the_kernel(tmp_path):
    model, merged = with_lora(rank=2), with_lora()
    tiedio.save_tied_weights(model, tmp_path / "x.weights.h5")
    tiedio.load_tied_weights(merged, tmp_path / "x.weights.h5")
    for layer, loaded in zip(model.layers, merged.layers, strict=True):
        kernels = [keras.ops.convert_to_numpy(one.kernel) for one in (layer, loaded)]
        assert np.array_equal(*kernels)


def test_what_lora_made_of_one_kernel_is_several(tmp_path):
    filepath, model = tmp_path / "x.weights.h5", with_lora()
    tiedio.save_tied_weights(with_lora(tie=True, rank=2), filepath)
    before = values(model)
    with pytest.raises(errors.LoadError, match="each has LoRA of its own") as error:
        tiedio.load_tied_weights(model, filepath)
    assert values(model) == before
    assert "Call `enable_lora` on these layers" in str(error.value)
    with tiedio.patch(), pytest.warns(tiedio.TiedioWarning, match="each has LoRA of its own"):
        model.load_weights(filepath)
    stock = with_lora()
    stock.load_weights(filepath)
    assert values(model) == values(stock) and not tiedio.find_ties(model)


class Partly(keras.layers.Layer):
    """Stores one of its variables, in its own way."""

    names = ("kernel", "scale", "shift")

    def build(self, input_shape):
        for name in self.names:
            setattr(self, name, self.add_weight(shape=(4,), initializer="ones", name=name))

    def save_own_variables(self, store):
        store["0"] = self.kernel

    def load_own_variables(self, store):
        self.kernel.assign(store["0"])

    def call(self, inputs):
        return inputs * self.kernel * self.scale


def test_what_a_class_has_no_more_is_named_and_the_rest_is_read(tmp_path, monkeypatch):
    def model():
        return keras.Sequential([keras.Input((4,)), Partly(name="partly")])

    saved = model()
    saved.layers[0].scale.assign([7.0] * 4)
    tiedio.save_tied_weights(saved, tmp_path / "model.weights.h5")
    monkeypatch.setattr(Partly, "names", ("kernel", "scale"))
    loaded = model()
    with pytest.raises(errors.RecordError, match="`partly/shift`: no such variable"):
        tiedio.load_tied_weights(loaded, tmp_path / "model.weights.h5")
    with pytest.warns(tiedio.TiedioWarning):
        tiedio.load_tied_weights(loaded, tmp_path / "model.weights.h5", strict=False)
    assert np.array_equal(loaded.layers[0].scale, [7.0] * 4)
