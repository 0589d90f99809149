"""A model is built without values where it can be; where it cannot, it loads all the same."""

import json
import logging
import zipfile

import keras
import numpy as np
import pytest
import scenarios

import tiedio
from tiedio import errors
from tiedio.formats import hdf5_reader
from tiedio.formats.arrays import aligned
from tiedio.model.keras_internals import has_value
from tiedio.saving import deferral, retying
from tiedio.saving.deferral import Deferral


class Plain(keras.layers.Layer):
    """A layer like many; those below do in their ways what needs values, or arrays of their own."""

    def build(self, input_shape):
        for name in ("scale", "shift"):
            weight = self.add_weight(shape=(4,), initializer="ones", name=name)
            setattr(self, name, weight)

    def call(self, inputs):
        return inputs * self.scale + self.shift


class ReadsWhileBuilding(Plain):
    def build(self, input_shape):
        super().build(input_shape)
        self.first = float(keras.ops.sum(self.scale))


class AssignsWhileBuilding(Plain):
    def build(self, input_shape):
        super().build(input_shape)
        self.shift.assign(self.scale * 2)


class MadeOfValues(Plain):
    def build(self, input_shape):
        super().build(input_shape)
        self.fixed = keras.Variable(np.arange(4.0, dtype="float32"), name="fixed")


class NeedsTheValueItself(Plain):
    def load_own_variables(self, store):
        value = self.scale.value
        if hasattr(value, "copy_"):  # torch
            value.data.copy_(keras.ops.convert_to_tensor(np.array(store["0"])))
        elif hasattr(value, "assign"):  # a variable of TensorFlow
            value.assign(store["0"])
        elif keras.backend.backend() == "tensorflow":
            raise AttributeError("an eager tensor has no `assign`")
        else:
            self.scale.assign(store["0"])
        self.shift.assign(store["1"])


class WritesToWhatItReads(Plain):
    def load_own_variables(self, store):
        value = np.asarray(store["0"])
        self.scale.assign(value)
        value += 0
        self.shift.assign(np.asarray(store["1"]))


class ReadsWhatItLoaded(Plain):
    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.shift.assign(self.shift + 0 * self.scale)


class LoadsOneFromAnother(Plain):
    def load_own_variables(self, store):
        self.scale.assign(store["0"])
        self.shift.assign(self.scale)
        self.shift.assign(store["1"])


class LoadsOneOfTwo(Plain):
    def load_own_variables(self, store):
        self.scale.assign(store["0"])


WITHOUT_VALUES = (
    Plain,
    NeedsTheValueItself,
    WritesToWhatItReads,
    ReadsWhatItLoaded,
    LoadsOneFromAnother,
)
WITH_VALUES = (ReadsWhileBuilding, AssignsWhileBuilding, MadeOfValues)


def saved(kind, filepath, optimizer="adam"):
    keras.saving.register_keras_serializable("tiedio_tests")(kind)
    model = keras.Sequential([keras.Input((4,)), kind(), kind()])
    tiedio.tie(model.layers[1], to=model.layers[0])
    model.compile(optimizer, "mse")
    model.fit(np.ones((2, 4)), np.ones((2, 4)), epochs=2, verbose=0)
    tiedio.save_tied(model, filepath)
    return model


def assert_equal(loaded, model):
    pairs = zip(variables_of(loaded), variables_of(model), strict=True)
    for ours, theirs in pairs:
        ours, theirs = (keras.ops.convert_to_numpy(v) for v in (ours, theirs))
        assert ours.tobytes() == theirs.tobytes()
    assert tiedio.find_ties(loaded) == tiedio.find_ties(model)


def variables_of(model):
    return [*model.variables, *model.optimizer.variables]


@pytest.mark.often(3)
@pytest.mark.parametrize("kind", [*WITHOUT_VALUES, *WITH_VALUES], ids=lambda kind: kind.__name__)
def test_every_layer_loads_exactly(kind, tmp_path, caplog):
    keras.utils.clear_session()
    model = saved(kind, tmp_path / "model.keras")
    with caplog.at_level(logging.DEBUG, "tiedio"):
        loaded = tiedio.load_tied(tmp_path / "model.keras")
    assert ("built with initial values" in caplog.text) == (
        kind in (AssignsWhileBuilding, MadeOfValues)
    )
    assert_equal(loaded, model)
    for one in (model, loaded):
        one.fit(np.ones((2, 4)), np.ones((2, 4)), verbose=0)
    assert_equal(loaded, model)


def test_no_initial_value_is_made_for_what_is_loaded(tmp_path, monkeypatch):
    saved(Plain, tmp_path / "model.keras")
    given = []
    initialize = deferral.initialize
    monkeypatch.setattr(
        deferral,
        "initialize",
        lambda v, *value: given.append(bool(value)) or initialize(v, *value),
    )
    tiedio.load_tied(tmp_path / "model.keras")
    assert given == [True] * (2 + 2 * 2)


def test_what_is_not_loaded_has_the_initial_value_of_keras(tmp_path):
    model = saved(LoadsOneOfTwo, tmp_path / "model.keras")
    loaded = tiedio.load_tied(tmp_path / "model.keras")
    scale, shift = loaded.layers[0].weights
    assert np.array_equal(scale, model.layers[0].scale)
    assert np.array_equal(shift, np.ones(4))


def test_assign_is_as_before_once_loading_is_done(tmp_path):
    saved(Plain, tmp_path / "model.keras")
    loaded = tiedio.load_tied(tmp_path / "model.keras")
    for variable in variables_of(loaded):
        assert "assign" not in vars(variable)
    loaded.layers[0].scale.assign(np.full(4, 7.0))
    assert np.array_equal(loaded.layers[1].scale, np.full(4, 7.0))


def test_other_variables_that_wait_for_a_value_go_on_waiting(tmp_path):
    saved(Plain, tmp_path / "model.keras")
    with keras.StatelessScope(initialize_variables=False):
        other = keras.Variable("ones", shape=(2,), name="other")
    tiedio.load_tied(tmp_path / "model.keras")
    with keras.StatelessScope():
        pass  # gives a value to all that wait
    assert np.array_equal(other, np.ones(2))


def test_a_shared_tensor_is_read_once(tmp_path, monkeypatch):
    saved(Plain, tmp_path / "model.keras")
    read = []
    original = hdf5_reader.WeightsFile.read
    monkeypatch.setattr(
        hdf5_reader.WeightsFile,
        "read",
        lambda self, path: read.append(path) or original(self, path),
    )
    tiedio.load_tied(tmp_path / "model.keras")
    assert sorted(path for path in read if path.startswith("layers")) == [
        "layers/plain/vars/0",
        "layers/plain/vars/1",
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_variables_take_over_what_was_read(dtype, tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, dtype=dtype)])
    tiedio.save_tied(model, tmp_path / "model.keras")
    read = []
    original = aligned
    monkeypatch.setattr(
        hdf5_reader, "aligned", lambda *arguments: read.append(original(*arguments)) or read[-1]
    )
    kernel = tiedio.load_tied(tmp_path / "model.keras").layers[0].kernel
    assert any(np.shares_memory(memory_of(kernel), array) for array in read)


def memory_of(variable):
    tensor = keras.ops.stop_gradient(variable)
    bfloat16 = variable.dtype == "bfloat16"  # of which NumPy's views know nothing
    match keras.backend.backend():
        case "jax":
            return np.asarray(tensor)
        case "tensorflow":
            import tensorflow as tf

            return np.asarray(memoryview(tf.bitcast(tensor, tf.uint16) if bfloat16 else tensor))
        case "torch":
            import torch

            return np.from_dlpack(tensor.view(torch.int16) if bfloat16 else tensor)


class CountsItsLoads(Plain):
    loads = 0

    def build(self, input_shape):
        super().build(input_shape)
        self.cache = self.add_weight(shape=(2,), name="cache", trainable=False)

    def save_own_variables(self, store):
        store["scale"], store["shift"] = self.scale, self.shift

    def load_own_variables(self, store):
        CountsItsLoads.loads += 1
        self.scale.assign(store["scale"])
        self.shift.assign(store["shift"])


def test_code_of_its_own_runs_once(tmp_path):
    saved(CountsItsLoads, tmp_path / "model.keras")
    tiedio.load_tied(tmp_path / "model.keras")
    assert CountsItsLoads.loads == 2  # of two layers


class OfTheClass(Plain):
    """A layer that shares a variable with all of its class."""

    table = None

    def build(self, input_shape):
        if OfTheClass.table is None:
            OfTheClass.table = keras.Variable("ones", shape=(4,), name="table")
        self.kept = OfTheClass.table
        super().build(input_shape)
        self.needs_value()

    def needs_value(self):
        pass


@pytest.mark.parametrize("way", ["built", "assigned to", "refused", "failed"])
def test_what_outlives_a_load_has_a_value(way, tmp_path, monkeypatch):
    saved(OfTheClass, tmp_path / "model.keras")
    monkeypatch.setattr(OfTheClass, "table", None)
    if way == "assigned to":
        monkeypatch.setattr(OfTheClass, "needs_value", lambda self: self.shift.assign(self.scale))
    if way == "refused":
        monkeypatch.setattr(OfTheClass, "needs_value", lambda self: keras.Variable([1.0]))
    if way == "failed":
        monkeypatch.setattr(retying, "retie", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiedio.load_tied(tmp_path / "model.keras")
    else:
        tiedio.load_tied(tmp_path / "model.keras")
    assert has_value(OfTheClass.table)
    assert "assign" not in vars(OfTheClass.table)


def test_a_value_that_is_anothers_is_copied():
    deferral = Deferral(0)
    first, second = deferral.build(
        lambda: [keras.Variable("zeros", shape=(4,), name=name) for name in ("first", "second")]
    )
    first.assign(np.ones(4))
    second.assign(first)
    deferral.finish()
    first.assign(np.full(4, 7.0))
    assert np.array_equal(keras.ops.convert_to_numpy(second), np.ones(4))


class BuildsItsBaseLast(keras.optimizers.SGD):
    def build(self, variables):
        made = [keras.Variable(np.zeros(v.shape, "float32"), trainable=False) for v in variables]
        self.sums = made
        for variable in made:
            self._track_variable(variable)
        super().build(variables)


def test_an_optimizer_that_is_built_in_vain_is_made_anew(tmp_path):
    keras.saving.register_keras_serializable("tiedio_tests")(BuildsItsBaseLast)
    model = saved(Plain, tmp_path / "model.keras", BuildsItsBaseLast(0.125))
    assert_equal(tiedio.load_tied(tmp_path / "model.keras"), model)


def test_a_class_that_compiles_itself_is_given_values_first(tmp_path, caplog):
    model = scenarios.SCENARIOS["two_optimizers"]()
    scenarios.train(model)
    tiedio.save_tied(model, tmp_path / "model.keras")
    with caplog.at_level(logging.DEBUG, "tiedio"):
        loaded = tiedio.load_tied(tmp_path / "model.keras")
    assert "built with initial values: its class compiles it" in caplog.text
    assert_equal(loaded, model)


class KeepsWhatItReads(Plain):
    def load_own_variables(self, store):
        self.kept = np.asarray(store["0"])
        self.scale.assign(self.kept)
        self.shift.assign(self.scale)


def test_no_two_share_memory_that_are_not_one(tmp_path):
    saved(KeepsWhatItReads, tmp_path / "model.keras")
    first = tiedio.load_tied(tmp_path / "model.keras").layers[0]
    before = keras.ops.convert_to_numpy(first.scale).copy()
    first.scale.assign(np.full(4, 7.0))
    for other in (first.kept, first.shift):
        assert np.array_equal(keras.ops.convert_to_numpy(other), before)


def test_links_between_variables_that_are_two(tmp_path):
    """A record that says nothing of it that two layers' tensors are one."""
    saved(Plain, tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as tied:
        members = {name: tied.read(name) for name in tied.namelist()}
    metadata = json.loads(members["metadata.json"])
    metadata["tiedio"]["tie_groups"] = []
    with zipfile.ZipFile(tmp_path / "untied.keras", "w") as untied:
        for name, content in members.items():
            edited = json.dumps(metadata) if name == "metadata.json" else content
            untied.writestr(name, edited)
    with pytest.raises(errors.RecordError, match="does not say that these are tied"):
        tiedio.load_tied(tmp_path / "untied.keras")
    with pytest.warns(tiedio.TiedioWarning):
        first, second = tiedio.load_tied(tmp_path / "untied.keras", strict=False).layers
    assert first.scale is not second.scale
    before = keras.ops.convert_to_numpy(first.scale).copy()
    assert np.array_equal(keras.ops.convert_to_numpy(second.scale), before)
    first.scale.assign(np.full(4, 7.0))
    assert np.array_equal(keras.ops.convert_to_numpy(second.scale), before)


def test_a_model_inside_that_was_compiled_is_built_with_values(tmp_path, caplog):
    keras.utils.clear_session()
    model = scenarios.SCENARIOS["compiled_inside"]()
    scenarios.train(model)
    tiedio.save_tied(model, tmp_path / "model.keras")
    with caplog.at_level(logging.DEBUG, "tiedio"):
        loaded = tiedio.load_tied(tmp_path / "model.keras")
    assert "built with initial values" in caplog.text
    assert_equal(loaded, model)
