"""The private parts of Keras that tiedio leans on: each test names one that moved."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
import scenarios
from keras.src.saving import saving_lib

import tiedio
from tiedio.hooks import callback_states
from tiedio.model import renewal, substitution
from tiedio.model.keras_internals import (
    BOOKKEEPING,
    TRACKED,
    Counted,
    KerasSaveable,
    ObjectSharingScope,
    SafeModeScope,
    Uninitialized,
    global_state,
    has_value,
    initialize,
    json_utils,
    keras_option_scope,
    saving_api,
    saving_utils,
    scopes_as_before,
    show_callbacks,
)
from tiedio.model.places import named_variables
from tiedio.model.rebuilding import Rebuilding, optimizer_variables
from tiedio.model.visits import _Attributes
from tiedio.model.walk import walk
from tiedio.saving import deferral
from tiedio.saving.capture import capture


def paths_in(file):
    with h5py.File(file, "r") as weights:
        found = {}
        weights.visititems(
            lambda path, item: (
                found.update({path: dict(item.attrs)})
                if isinstance(item, h5py.Dataset) or path.endswith("vars")
                else None
            )
        )
    return found


WALKED = (
    "two_paddings",
    "inside_and_across_nested_models",
    "subclassed",
    "recurrent_cells",
    "custom_layers",
    "compiled_inside",
    "blocks_with_everything_tied",
    "aliases_inside_one_layer",
)


@pytest.mark.parametrize("name", WALKED)
def test_the_walk_is_that_of_keras(name, tmp_path):
    """`saving_lib._walk_saveable`, `naming.to_snake_case`, `KerasSaveable`, names in lists."""
    model = scenarios.SCENARIOS[name]()
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "stock.keras")
    content = zipfile.ZipFile(tmp_path / "stock.keras").read("model.weights.h5")
    layout = capture(walk(model), tmp_path)[0]
    ours = {**layout.groups, **{path: {} for path in [*layout.tensors, *layout.links]}}
    theirs = paths_in(io.BytesIO(content))
    assert sorted(ours) == sorted(theirs)
    for path, attributes in layout.groups.items():
        assert theirs[path] == attributes


@pytest.mark.parametrize("name", WALKED)
def test_attributes_are_walked_in_the_order_of_keras(name):
    """`saving_lib.get_attr_skipset`, `._name_key`, `KerasSaveable._obj_type`."""
    model = scenarios.SCENARIOS[name]()
    attributes = _Attributes()
    for visit in walk(model).visits:
        ours = [attribute for attribute, _ in attributes.of(visit.saveable)]
        assert ours == [
            attribute
            for attribute, value in saving_lib._walk_saveable(visit.saveable)
            if isinstance(value, (KerasSaveable, list, dict, tuple))
        ]


def test_variables_wait_for_a_value():
    """`Variable._value`, `._initializer`, `._deferred_initialize`, "uninitialized_variables"."""
    with Uninitialized() as waiting, keras.StatelessScope(initialize_variables=False):
        variable = keras.Variable("ones", shape=(2,), name="waiting")
    assert [v is variable for v in waiting.variables] == [True]
    assert not has_value(variable)
    initialize(variable, lambda shape, dtype: keras.ops.full(shape, 7.0, dtype))
    assert has_value(variable)
    assert np.array_equal(variable, [7, 7])


def test_assignments_are_collected_and_not_done():
    """`StatelessScope.add_update`."""
    variable = keras.Variable(np.zeros(2, "float32"))
    with deferral._Assignments() as assignments:
        variable.assign([1, 2])
    assert np.array_equal(assignments.made[0], [1, 2])
    assert np.array_equal(variable, [0, 0])


def test_variables_are_tracked_in_two_lists_with_their_ids():
    """`Layer._trainable_variables`, `._non_trainable_variables`, `._tracker`."""
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3))
    assert [v.name for v in layer._trainable_variables] == ["gamma", "beta"]
    assert [v.name for v in layer._non_trainable_variables] == ["moving_mean", "moving_variance"]
    assert layer._tracker.locked
    for store in TRACKED:
        ids = {id(variable) for variable in getattr(layer, store)}
        assert layer._tracker.stored_ids[store.removeprefix("_")] == ids
        assert layer._tracker.config[store.removeprefix("_")][1] is getattr(layer, store)


def test_bookkeeping_is_no_name_for_a_variable():
    """Attributes of a layer that mention its variables: `BOOKKEEPING` must list them."""
    layer = keras.layers.Dropout(0.5)
    dense = keras.layers.Dense(2)
    dense.build((None, 3))
    assert set(named_variables(dense)) == {"_kernel", "bias"}
    places = walk(layer).generators
    assert [place.attribute for place in places] == ["seed_generator"]


def test_substitution_leaves_the_tracker_in_step():
    """`Tracker.stored_ids`: a stale id would let a later object in, or keep one out."""
    a, b = keras.layers.Dense(2), keras.layers.Dense(2)
    a.build((None, 3))
    b.build((None, 3))
    substitution.substitute(b, b.kernel, a.kernel)
    assert b._tracker.locked
    assert b._tracker.stored_ids["trainable_variables"] == {id(a.kernel), id(b.bias)}
    assert [v is w for v, w in zip(b._trainable_variables, [a.kernel, b.bias], strict=True)] == [
        True
    ] * 2


def test_a_graph_is_drawn_anew_for_another_layer():
    """`Operation._inbound_nodes`, `._outbound_nodes`, `Node`, `KerasHistory`, `map_graph`."""
    old, new = keras.layers.Dense(2), keras.layers.Dense(2)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.ReLU()(old(inputs)))
    new.build((None, 3))
    substitution.substitute_layers([(old, new)], [model])
    assert model.layers[1] is new
    assert old not in model.operations
    assert [node.operation for node in new._inbound_nodes] == [new]
    assert [node.operation for node in new._outbound_nodes] == [model.layers[2]]
    clone = keras.Model.from_config(model.get_config())
    clone.set_weights(model.get_weights())
    data = np.ones((1, 3), dtype="float32")
    expected = keras.ops.convert_to_numpy(keras.ops.relu(new(data)))
    for prediction in (model.predict(data, verbose=0), clone.predict(data, verbose=0)):
        assert np.allclose(prediction, expected)


def test_layer_paths_open_the_paths_of_their_variables():
    """`Layer.path`, `Layer._open_name_scope`."""
    layer = keras.layers.Dense(2, name="dense_of_mine")
    keras.Sequential([keras.Input((3,)), layer], name="outer")
    assert layer.kernel.path == f"{layer.path}/kernel"
    assert substitution.copy_of(layer.kernel, layer, "_kernel").path == layer.kernel.path


def test_the_optimizer_lists_its_variables():
    """`Optimizer._trainable_variables`."""
    model = scenarios.two_paddings()
    assert optimizer_variables(model.optimizer) is None
    model.optimizer.build(model.trainable_variables)
    trained = optimizer_variables(model.optimizer)
    assert list(map(id, trained)) == list(map(id, model.trainable_variables))


def test_the_compile_config_holds_the_optimizer():
    """`Trainer._compile_config.config`."""
    model = scenarios.two_paddings()
    assert model._compile_config.config["optimizer"] is model.optimizer
    wrapped = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    wrapped.dtype_policy = "mixed_float16"
    scenarios.compiled(wrapped)
    assert isinstance(wrapped.optimizer, keras.optimizers.LossScaleOptimizer)
    assert wrapped._compile_config.config["optimizer"] is wrapped.optimizer.inner_optimizer


def test_an_optimizer_is_what_it_was_before_it_was_built():
    """`Optimizer._variables`, `._iterations`, `._learning_rate`, `._trainable_variables_indices`,
    `._tracker`."""
    model = scenarios.two_paddings()
    optimizer = model.optimizer
    before = {name: _copied(value) for name, value in vars(optimizer).items()}
    optimizer.build(model.trainable_variables)
    Rebuilding(optimizer).unbuild()
    after = {name: _copied(value) for name, value in vars(optimizer).items()}
    # Of TensorFlow, which lists there what once was an attribute.
    for attributes in (before, after):
        for name in BOOKKEEPING:
            attributes.pop(name, None)
    slots = {"_momentums": [], "_velocities": []}
    assert {name: after.pop(name) for name in slots} == slots
    assert after.keys() == before.keys()
    assert all(after[name] == value or after[name] is value for name, value in before.items())
    assert optimizer._tracker.stored_ids["variables"] == {id(v) for v in optimizer._variables}


def _copied(value):
    if isinstance(value, (list, set)):
        return [id(item) for item in value]
    return dict(value) if isinstance(value, dict) else value


def test_compiled_functions_are_these_three():
    """`train_function`, `test_function`, `predict_function`, and `make_train_function(force)`."""
    model = scenarios.two_paddings()
    scenarios.train(model)
    before = model.train_function
    assert before is not None
    renewal.renew_functions(model)
    assert model.train_function not in (None, before)
    assert model.test_function is model.predict_function is None


def test_torch_parameters_follow_the_variables():
    """`TorchLayer._track_variables`, `._torch_params`."""
    # Tied after it was built and called, as its own code would not do.
    model = scenarios.two_paddings(tie=None)
    tiedio.tie(model.layers[2], to=model.layers[1])
    has_parameters = hasattr(model, "_track_variables")
    assert has_parameters == (keras.backend.backend() == "torch")
    if has_parameters:
        parameters = {id(parameter) for parameter in model.parameters()}
        assert parameters == {id(variable.value) for variable in model.variables}


def test_the_old_layout_has_configs_of_its_own():
    """`saving_options.keras_option_scope`, `saving_utils.model_metadata`, `.model_from_config`,
    `json_utils.get_json_type`, `.decode`."""
    model = scenarios.two_paddings()
    with keras_option_scope(use_legacy_config=True):
        about = saving_utils.model_metadata(model)
        text = json.dumps(about, default=json_utils.get_json_type)
        read = json_utils.decode(text)
        built = saving_utils.model_from_config(read["model_config"], custom_objects={})
    assert about.keys() == {"keras_version", "backend", "model_config", "training_config"}
    assert about["training_config"].keys() >= {"loss", "metrics", "optimizer_config"}
    assert [layer.name for layer in built.layers] == [layer.name for layer in model.layers]
    assert [v.path for v in built.layers[1].weights] == [v.path for v in model.layers[1].weights]


def test_shared_objects_and_safe_mode_have_scopes(tmp_path):
    """`serialization_lib.ObjectSharingScope`, `.SafeModeScope`."""
    layer = keras.layers.Dense(2)
    with ObjectSharingScope():
        config = [keras.saving.serialize_keras_object(layer) for _ in range(2)]
    with ObjectSharingScope(), SafeModeScope(True):
        first, second = (
            keras.saving.deserialize_keras_object(json.loads(json.dumps(c))) for c in config
        )
    assert first is second
    lambda_layer = keras.saving.serialize_keras_object(keras.layers.Lambda(lambda x: x))
    with (
        SafeModeScope(True),
        pytest.raises(ValueError, match=r"unsafe|arbitrary code"),
    ):
        keras.saving.deserialize_keras_object(lambda_layer, safe_mode=False)


def test_boxes_of_a_plot():
    """`plot_ties` finds them by the `id` of a layer, and paints what is black in their labels."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="dense")])
    graph = keras.utils.model_to_dot(model)
    (node,) = graph.get_node(str(id(model.layers[0])))
    label = node.get("label")
    assert label.count('bgcolor="black"') == 2
    assert label.index('color="white"') < label.index("<b>dense</b>")


def test_where_a_backup_is_read_and_written(tmp_path):
    """`BackupAndRestore._load_model`, `._save_model`, and what they go by."""
    backup = keras.callbacks.BackupAndRestore(str(tmp_path))
    with open(backup._training_metadata_path, "w") as file:
        json.dump({"epoch": 2}, file)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    backup.set_model(model)
    backup._load_model()
    assert model._initial_epoch == 2
    backup._current_epoch = 3
    backup._save_model()
    with open(backup._training_metadata_path) as file:
        assert json.load(file) == {"epoch": 3, "batch": backup._last_batch_seen}
    assert h5py.is_hdf5(backup._weights_path)


def test_where_a_checkpoint_is_written(tmp_path):
    """`ModelCheckpoint._save_model`, and `_model`, of which it is."""
    fitted, saved = (keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]) for _ in "ab")
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    checkpoint.set_model(fitted)
    assert checkpoint._model is checkpoint.model is fitted
    checkpoint._model = saved
    checkpoint._save_model(epoch=0, batch=None, logs={})
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert np.array_equal(loaded.layers[0].kernel, saved.layers[0].kernel)


def test_lists_of_callbacks():
    """`CallbackList.callbacks`, gone through in their order; the others of a list are as before."""
    seen = []

    class Sees(keras.callbacks.Callback):
        def see_callbacks(self, callbacks):
            seen.append(callbacks)

        def on_train_begin(self, logs=None):
            seen.append(self)

    show_callbacks()
    show_callbacks()
    one, other = Sees(), keras.callbacks.Callback()
    shown = keras.callbacks.CallbackList([other, one])
    shown.on_train_begin()
    assert seen == [shown.callbacks, one]
    assert shown.callbacks == [other, one]


def test_what_callbacks_know():
    """The attributes that change in Keras' callbacks."""
    made = [
        keras.callbacks.ModelCheckpoint("best.keras"),
        keras.callbacks.EarlyStopping(),
        keras.callbacks.ReduceLROnPlateau(),
        keras.callbacks.SwapEMAWeights(),
    ]
    for callback in made:
        callback.on_train_begin()
        kept = callback_states._KEPT[type(callback)]
        assert [name for name in kept if not hasattr(callback, name)] == []
    assert made[1].best_weights is None


def test_cloning_and_quantizing_go_through_what_is_replaced():
    called = {"_clone_sequential_model", "_clone_functional_model", "serialization_lib"}
    assert called <= set(keras.models.clone_model.__code__.co_names)
    model = keras.Sequential([keras.layers.Dense(2)])
    assert "quantize" in vars(model) and "quantize" in vars(keras.Model)


def test_orbax_is_given_what_it_saves_where_keras_is_patched():
    kind = getattr(keras.callbacks, "OrbaxCheckpoint", None)
    if kind is None:
        pytest.skip("Keras before 3.14")
    assert callable(kind._save_checkpoint)
    names = ("load_weights", "_load_model_from_orbax_checkpoint", "is_orbax_checkpoint")
    assert all(callable(getattr(saving_api, name)) for name in names)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_signal_leaves_no_scope_open(error):
    def account():
        held = vars(global_state.GLOBAL_STATE_TRACKER).items()
        return {key: list(one) if isinstance(one, list) else one for key, one in held if one}

    with keras.name_scope("around"):
        before = account()
        with pytest.raises(error), scopes_as_before():
            keras.name_scope("inside").__enter__()  # and the signal comes
            assert account() != before
            raise error
        assert account() == before


def test_variables_are_counted_before_they_are_made():
    counted = []
    with Counted(lambda shape, dtype: counted.append((tuple(shape), dtype))):
        keras.Variable(np.zeros((2, 3)), dtype="float16")
        keras.layers.Dense(4).build((None, 5))
    keras.layers.Dense(4).build((None, 5))
    # JAX asks twice about some.
    assert list(dict.fromkeys(counted)) == [
        ((2, 3), "float16"),
        ((5, 4), "float32"),
        ((4,), "float32"),
    ]
