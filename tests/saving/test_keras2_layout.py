"""Whole models in the HDF5 layout of Keras 2: what stock Keras opens, and what it wrote."""

import json
import operator
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import scenarios
from keras.src.legacy.saving import legacy_h5_format
from pinning import pin

import tiedio
from tiedio import errors, files
from tiedio.formats import hdf5_writer, table
from tiedio.formats import keras2_layout as layout_on_disk
from tiedio.formats.content import OldLayout, Weight
from tiedio.model.keras_internals import global_state, json_utils, saving_utils
from tiedio.model.walk import walk
from tiedio.saving import keras2_record
from tiedio.storage.locating import at
from tiedio.storage.streams import WriteBehind


def trained(name):
    keras.utils.set_random_seed(1)
    model = scenarios.SCENARIOS[name]()
    scenarios.train(model)
    return model


def classes_of(model):
    return {type(one).__name__: type(one) for one in walk(model).layers.values()}


def predictions(*models):
    inputs, _ = scenarios.data_for(models[0])
    return [model.predict(inputs, verbose=0) for model in models]


def bytes_of(listed):
    return [array.tobytes() for array in scenarios.arrays_of(listed)]


def weights_and_slots(model):
    """Lists what this layout keeps: neither metrics nor seeds."""
    return bytes_of([*model.weights, *(model.optimizer.variables if model.optimizer else ())])


def equal_pair(**options):
    """Makes a model of two layers that are equal and not tied."""
    layers = [keras.layers.Dense(4, kernel_initializer="ones", **options) for _ in range(2)]
    return keras.Sequential([keras.Input((4,)), *layers])


def mostly_slow(names, *always):
    """Runs a test for all names only where slow tests are asked for."""
    return [
        pytest.param(name, marks=[] if name in always else [pytest.mark.slow]) for name in names
    ]


# What tiedio writes

WRITTEN = [
    "two_paddings",
    "kernel_by_hand",
    "gamma_by_hand",
    "one_frozen_variable",
    "inside_and_across_nested_models",
    "query_and_key_of_one_attention",
    "tied_inside_one_layer",
    "dense_then_inside_a_submodel",
    "given_twice_to_one_custom_layer",
    "spectral_normalisation",
    "lora_on_one_layer",
    "adafactor",
    "loss_scaling",
    "dropout",
    "adapted_normalisation",
]


@pytest.mark.parametrize("name", mostly_slow(WRITTEN, "two_paddings"))
def test_stock_keras_opens_it(name, tmp_path):
    """Also where it cannot open what it writes itself: nested ties, replaced and LoRA kernels."""
    model = trained(name)
    tiedio.save_tied(model, tmp_path / "model.h5")
    stock = keras.saving.load_model(tmp_path / "model.h5", custom_objects=classes_of(model))
    ours, theirs = predictions(model, stock)
    assert np.array_equal(ours, theirs)
    assert type(stock.optimizer) is type(model.optimizer)


@pytest.mark.parametrize("name", mostly_slow(WRITTEN, "two_paddings", "dropout"))
def test_load_tied_restores_all_of_it(name, tmp_path):
    model = trained(name)
    tiedio.save_tied(model, tmp_path / "model.hdf5")
    loaded = tiedio.load_tied(tmp_path / "model.hdf5")
    assert scenarios.ties_of(loaded) == scenarios.ties_of(model)
    assert bytes_of(scenarios.variables_of(loaded)) == bytes_of(scenarios.variables_of(model))


@pytest.mark.slow
def test_stock_keras_opens_it_in_another_process(tmp_path):
    model = trained("two_paddings")
    tiedio.save_tied(model, tmp_path / "model.h5")
    inputs, _ = scenarios.data_for(model)
    np.save(tmp_path / "inputs.npy", inputs)
    program = (
        "import sys, keras, numpy; model = keras.saving.load_model('model.h5');"
        "numpy.save('outputs.npy', model.predict(numpy.load('inputs.npy'), verbose=0));"
        "assert 'tiedio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    (outputs,) = predictions(model)
    assert np.allclose(np.load(tmp_path / "outputs.npy"), outputs, atol=1e-6)


def test_stock_keras_loads_the_weights_of_a_model_it_cannot_build(tmp_path):
    """A model of a class of one's own has no variables until it is called."""
    model = trained("subclassed")
    tiedio.save_tied(model, tmp_path / "model.h5")
    other = trained("subclassed")
    inputs, _ = scenarios.data_for(model)
    for variable in other.weights:
        variable.assign(np.zeros(variable.shape))
    other.load_weights(tmp_path / "model.h5")
    expected, received = (one.predict(inputs, verbose=0) for one in (model, other))
    assert np.array_equal(received, expected)


def test_stock_keras_goes_on_counting(tmp_path):
    """Slots it leaves at zero, whoever wrote the file."""
    model = trained("two_paddings")
    tiedio.save_tied(model, tmp_path / "model.h5")
    stock = keras.saving.load_model(tmp_path / "model.h5")
    assert int(stock.optimizer.iterations) == int(model.optimizer.iterations) > 0


def test_training_resumes_as_if_it_had_not_stopped(tmp_path):
    model = trained("dropout")
    tiedio.save_tied(model, tmp_path / "model.h5")
    scenarios.train(model)
    resumed = tiedio.load_tied(tmp_path / "model.h5")
    scenarios.train(resumed)
    assert bytes_of(scenarios.variables_of(resumed)) == bytes_of(scenarios.variables_of(model))


def test_every_tensor_is_stored_once(tmp_path):
    layers = [keras.layers.Dense(512) for _ in range(3)]
    model = scenarios.compiled(keras.Sequential([keras.Input((512,)), *layers]))
    tiedio.tie(layers[2], to=layers[0])
    model.optimizer.build(model.trainable_variables)
    tiedio.save_tied(model, tmp_path / "model.h5")
    unique = sum(array.nbytes for array in scenarios.state_of(model))
    assert (tmp_path / "model.h5").stat().st_size <= 1.02 * unique + 65536
    model.save(tmp_path / "stock.h5")
    assert (tmp_path / "stock.h5").stat().st_size > unique + 512 * 512 * 4


def test_a_tensor_has_no_second_digest(tmp_path):
    tiedio.save_tied(trained("two_paddings"), tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5") as file:
        digests = json.loads(file["tiedio/record"][()].tobytes())["digests"]
    assert digests
    assert not [path for path in digests if path.startswith(("model_weights", "optimizer_weights"))]


def test_damage_is_found_and_named_once(tmp_path):
    model = trained("two_paddings")
    tiedio.save_tied(model, tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        file["layers/dense/vars/1"][:] = 7
    with pytest.raises(errors.FileFormatError, match=r"is damaged at `layers/dense/vars/1`\.\n"):
        tiedio.load_tied(tmp_path / "model.h5")


def test_assets_come_along(tmp_path):
    motto = scenarios.Motto()
    motto.text = "tied for life"
    model = scenarios.compiled(
        keras.Sequential([keras.Input((4,)), motto, keras.layers.Dense(2, name="dense")])
    )
    tiedio.save_tied(model, tmp_path / "model.h5")
    assert tiedio.load_tied(tmp_path / "model.h5").layers[0].text == "tied for life"


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_keeps_its_optimizer(tmp_path, fails, monkeypatch):
    """Keras' own writer takes it out of the live model, and no later file has one."""
    model = trained("two_paddings")
    if fails:
        monkeypatch.setattr(json_utils, "get_json_type", lambda part: 1 / 0)
        monkeypatch.setattr(saving_utils, "_serialize_nested_config", lambda _: {1: {2}})
        with pytest.raises(errors.SaveError):
            tiedio.save_tied(model, tmp_path / "model.h5")
        monkeypatch.undo()
    else:
        tiedio.save_tied(model, tmp_path / "model.h5")
    model.save(tmp_path / "stock.keras")
    assert isinstance(
        keras.saving.load_model(tmp_path / "stock.keras").optimizer, keras.optimizers.Adam
    )


def test_saving_draws_no_random_seed(tmp_path):
    model = trained("two_paddings")
    keras.utils.set_random_seed(7)
    expected = keras.random.SeedGenerator().state
    keras.utils.set_random_seed(7)
    tiedio.save_tied(model, tmp_path / "model.h5")
    assert np.array_equal(keras.random.SeedGenerator().state, expected)


def test_attributes_are_those_of_keras(tmp_path):
    """But for losses, which are spelled out, and lists of names of one length."""
    model = trained("owner_comes_second")
    tiedio.save_tied(model, tmp_path / "model.h5")
    model.save(tmp_path / "stock.h5")
    with h5py.File(tmp_path / "model.h5") as ours, h5py.File(tmp_path / "stock.h5") as theirs:
        groups = ["", "optimizer_weights", "model_weights"]
        groups += [f"model_weights/{name}" for name in theirs["model_weights"]]
        for group in groups:
            expected = dict((theirs[group] if group else theirs).attrs)
            received = dict((ours[group] if group else ours).attrs)
            assert received.keys() == expected.keys()
            for name in expected:
                one, other = received[name], expected[name]
                if name.endswith("_names"):
                    one, other = (
                        [n.decode() if isinstance(n, bytes) else n for n in x] for x in (one, other)
                    )
                elif name == "training_config":
                    one, other = json.loads(one), json.loads(other)
                    assert (one.pop("loss"), other.pop("loss")) == ("mean_squared_error", "mse")
                assert one == other


def test_names_may_collide():
    """Keras numbers nothing, and fails with `name already exists`."""
    names = ["a/b", "a/b", "a", "a/b/c", "d", "d/e", "a_b_1"]
    unique = list(layout_on_disk._made_unique(names))
    assert unique == ["a/b", "a_b_1", "a_1", "a_b_c_1", "d", "d_e_1", "a_b_1_1"]


def open_layout(filepath):
    with table.reading(at(filepath)) as source:
        return source.old_layout


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_long_lists_are_split_as_keras_does(count, tmp_path):
    tensor = hdf5_writer.Tensor((2,), np.dtype("float32"), lambda: np.zeros(2, "float32"))
    layout = hdf5_writer.Layout(tensors={"vars/0": tensor})
    names = [f"weight_with_a_long_name_{n}" for n in range(count)]
    listed = tuple(Weight(name, "vars/0", (2,)) for name in names)
    old = OldLayout(
        filepath="",
        model_config={},
        training_config=None,
        keras_version="3",
        backend="jax",
        layers={"a": listed},
    )
    layout_on_disk.write(old, layout)
    with open(tmp_path / "model.h5", "wb") as file, WriteBehind(file) as stream:
        hdf5_writer.write(layout, stream)
    with h5py.File(tmp_path / "model.h5") as file:
        group = file["model_weights/a"]
        assert legacy_h5_format.load_attributes_from_hdf5_group(group, "weight_names") == names
        assert ("weight_names0" in group.attrs) == (count == 5000)
    assert [w.name for w in open_layout(tmp_path / "model.h5").layers["a"]] == names


@keras.saving.register_keras_serializable("tiedio_tests")
class Twins(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(2, name="twin")
        self.second = keras.layers.Dense(2, name="twin")

    def call(self, inputs):
        return self.second(self.first(inputs))


def unsaved(model, filepath):
    filepath.write_bytes(b"before")
    with pytest.raises(ValueError) as error:
        tiedio.save_tied(model, filepath)
    assert filepath.read_bytes() == b"before"
    return error


def test_layers_of_one_name_cannot_be_saved(tmp_path):
    model = Twins()
    model.build((None, 2))
    pin(
        unsaved(model, tmp_path / "model.h5"),
        errors.SaveError,
        "Cannot save `twin` of model `*` as HDF5.\n"
        "Expected: what Keras can read in this format. Received: several layers of one name.\n"
        "Save it to a path ending in `.keras`.",
    )


class Secretive(keras.layers.Dense):
    def get_config(self):
        if global_state.get_global_attribute("use_legacy_config"):
            raise NotImplementedError("not told")
        return super().get_config()


def test_configs_that_fail_cannot_be_saved(tmp_path):
    model = keras.Sequential([keras.Input((2,)), Secretive(2)])
    pin(
        unsaved(model, tmp_path / "model.h5"),
        errors.SaveError,
        "Cannot save its config of model `*` as HDF5.\n"
        "Expected: what Keras can read in this format. Received: not told.\n"
        "Save it to a path ending in `.keras`.",
    )


def test_bfloat16_cannot_be_saved(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, dtype="bfloat16")])
    error = unsaved(model, tmp_path / "model.h5")
    pin(
        error,
        errors.SaveError,
        "Cannot save `*/bias`, `*/kernel` of model `*` as HDF5.\n"
        "Expected: what Keras can read in this format. Received: bfloat16, or what no layer "
        "stores.\n"
        "Save it to a path ending in `.keras`.",
    )


# What stock Keras writes

STOCK = [
    "two_paddings",
    "owner_comes_second",
    "three_in_a_row",
    "two_embeddings",
    "custom_layers",
    "blocks_with_everything_tied",
    "kernel_by_hand",
    "gamma_by_hand",
    "untied_after_a_tie_by_hand",
    "spectral_normalisation",
    "lora_on_both_layers",
    "policies_that_differ",
    "loss_scaling",
    "lamb",
    "momentum_and_schedule",
    "adapted_normalisation",
    "equal_but_untied",
    "equal_names",
    "one_layer_called_twice",
]


def stock(model, filepath):
    model.save(filepath)
    return filepath


@pytest.mark.parametrize(
    "name", mostly_slow(STOCK, "owner_comes_second", "gamma_by_hand", "momentum_and_schedule")
)
def test_ties_weights_and_optimizer_come_back(name, tmp_path):
    model = trained(name)
    loaded = tiedio.load_tied(stock(model, tmp_path / "model.h5"))
    assert scenarios.ties_of(loaded) == scenarios.ties_of(model)
    assert bool(scenarios.ties_of(model)) == (
        name not in [*scenarios.CONTROLS, "untied_after_a_tie_by_hand"]
    )
    assert weights_and_slots(loaded) == weights_and_slots(model)
    assert int(loaded.optimizer.iterations) > 0
    ours, theirs = predictions(model, loaded)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    "name", mostly_slow(["two_paddings", "equal_but_untied", "owner_comes_second"], "two_paddings")
)
def test_training_of_a_stock_file_resumes(name, tmp_path):
    model = trained(name)
    stock(model, tmp_path / "model.h5")
    scenarios.train(model)
    resumed = tiedio.load_tied(tmp_path / "model.h5")
    scenarios.train(resumed)
    for ours, theirs in zip(scenarios.state_of(resumed), scenarios.state_of(model), strict=True):
        assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_equal_names_in_two_nested_models_are_no_tie(tmp_path):
    """Equal zero biases of one name: neither name nor values tell them apart."""
    inputs = keras.Input((4,))
    parts = []
    for name in ("one", "two"):
        inner = keras.Input((4,))
        outputs = keras.layers.Dense(4, kernel_initializer="ones", name="member")(inner)
        parts.append(keras.Model(inner, outputs, name=name))
    model = keras.Model(inputs, parts[1](parts[0](inputs)))
    stock(model, tmp_path / "model.h5")
    old = open_layout(tmp_path / "model.h5")
    assert [w.name for w in old.layers["one"]] == [w.name for w in old.layers["two"]]
    assert tiedio.find_ties(tiedio.load_tied(tmp_path / "model.h5")) == ()


def test_a_member_named_as_an_outer_layer_is_no_tie(tmp_path):
    """Its path could be that of either, and its bias is zero as the other's is."""
    inner = keras.Input((4,))
    part = keras.Model(inner, keras.layers.Dense(4, name="twin")(inner), name="part")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(4, name="twin")(part(inputs)))
    stock(model, tmp_path / "model.h5")
    old = open_layout(tmp_path / "model.h5")
    assert [w.name for w in old.layers["part"]] == [w.name for w in old.layers["twin"]]
    assert tiedio.find_ties(tiedio.load_tied(tmp_path / "model.h5")) == ()


SHARED_LAYERS = [
    "dense_then_inside_a_submodel",
    "inside_a_sequential_model_and_out",
    "two_submodels_with_one_layer",
    "encoder_three_levels_deep",
    "called_twice_inside_and_outside",
]


@pytest.mark.parametrize("name", mostly_slow(SHARED_LAYERS, "dense_then_inside_a_submodel"))
def test_layers_in_several_models_are_tied(name, tmp_path):
    """They were trained as one: Keras saves no two slots of one name."""
    model = trained(name)
    loaded = tiedio.load_tied(stock(model, tmp_path / "model.h5"))
    assert len(tiedio.find_ties(loaded)) > 0
    assert weights_and_slots(loaded) == weights_and_slots(model)


def test_equal_copies_are_no_tie(tmp_path):
    loaded = tiedio.load_tied(stock(equal_pair(), tmp_path / "model.h5"))
    assert tiedio.find_ties(loaded) == ()


def test_a_name_alone_is_no_tie(tmp_path):
    """The values of a tie are equal."""
    stock(trained("two_paddings"), tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        for path, names in [(p, g.attrs["weight_names"]) for p, g in file["model_weights"].items()]:
            for name in names:
                if name.split("/")[0] != path:
                    file["model_weights"][path][name][...] += 1
    loaded = tiedio.load_tied(tmp_path / "model.h5", compile=False)
    assert tiedio.find_ties(loaded) == ()


def test_hard_links_are_ties(tmp_path):
    """As a later Keras may write what it shares."""
    stock(equal_pair(), tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        first, second = file["model_weights"].attrs["layer_names"]
        groups = [file["model_weights"][name] for name in (first, second)]
        names = [group.attrs["weight_names"][0] for group in groups]
        del groups[1][names[1]]
        groups[1][names[1]] = groups[0][names[0]]
    (group,) = tiedio.find_ties(tiedio.load_tied(tmp_path / "model.h5"))
    assert [place.attribute for place in group.places] == ["_kernel", "_kernel"]


def my_loss(target, output):
    return keras.ops.mean(keras.ops.square(target - output), axis=-1)


@pytest.mark.often(2)
@pytest.mark.parametrize(
    "loss",
    ["mse", "mean_squared_error", ["MSE"], keras.losses.MeanSquaredError(), my_loss, "bce"],
)
def test_losses_come_back_by_any_name(loss, tmp_path):
    """Keras itself does not read `"mse"` back from this format."""
    model = equal_pair(activation="sigmoid")
    model.compile("adam", loss=loss, metrics=["mae"], run_eagerly=True)
    stock(model, tmp_path / "model.h5")
    loaded = tiedio.load_tied(tmp_path / "model.h5", custom_objects={"my_loss": my_loss})
    data = np.full((3, 4), 0.3, "float32")
    assert loaded.evaluate(data, data, verbose=0) == model.evaluate(data, data, verbose=0)
    assert loaded.run_eagerly
    tiedio.save_tied(model, tmp_path / "tied.h5")
    keras.saving.load_model(tmp_path / "tied.h5", custom_objects={"my_loss": my_loss})


def test_compile_may_be_left_out(tmp_path):
    loaded = tiedio.load_tied(stock(trained("two_paddings"), tmp_path / "model.h5"), compile=False)
    assert not loaded.compiled
    assert len(tiedio.find_ties(loaded)) > 0


def test_a_model_that_was_not_compiled(tmp_path):
    model = equal_pair()
    loaded = tiedio.load_tied(stock(model, tmp_path / "model.h5"))
    assert not loaded.compiled
    assert bytes_of(loaded.weights) == bytes_of(model.weights)


def test_an_optimizer_that_was_not_built(tmp_path):
    model = scenarios.compiled(equal_pair())
    loaded = tiedio.load_tied(stock(model, tmp_path / "model.h5"))
    assert not loaded.optimizer.built
    scenarios.train(loaded)


def without_a_slot(filepath):
    with h5py.File(filepath, "r+") as file:
        names = file["optimizer_weights"].attrs["weight_names"]
        file["optimizer_weights"].attrs["weight_names"] = list(names[:-1])
    return filepath


def test_an_optimizer_that_does_not_fit(tmp_path):
    """As in Keras it starts anew; one warning says so."""
    model = trained("equal_but_untied")
    filepath = without_a_slot(stock(model, tmp_path / "model.h5"))
    with pytest.warns(errors.TiedioWarning) as told:
        loaded = tiedio.load_tied(filepath)
    assert [str(one.message) for one in told] == [
        "Cannot resume `optimizer`: its variables are not those of the file.\n"
        "Expected: 14 of shapes [(), (4,), (4, 4)]. Received: 13 of shapes [(), (4,), (4, 4)].\n"
        "It goes on without that state. Variables may have been tied when it was saved: "
        f"`tiedio plan {filepath}` says which, and `tiedio migrate {filepath} NEW` ties them again."
    ]
    assert bytes_of(loaded.weights) == bytes_of(model.weights)
    assert int(loaded.optimizer.iterations) == 0
    scenarios.train(loaded)


def test_python_lambdas_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: 2 * x)])
    stock(model, tmp_path / "model.h5")
    with pytest.raises(errors.LoadError, match="Cannot build the model"):
        tiedio.load_tied(tmp_path / "model.h5")
    loaded = tiedio.load_tied(tmp_path / "model.h5", safe_mode=False)
    assert np.array_equal(loaded(np.ones((1, 2), "float32")), [[2, 2]])


class Plain(keras.layers.Layer):
    def call(self, inputs):
        return inputs


class Failing(keras.layers.Layer):
    def call(self, inputs):
        raise ValueError("the axes are wrong:\n  there are 3,\n  and not 2")


@pytest.mark.parametrize("name", ["model.h5", "model.keras"])
def test_a_call_that_fails_says_why(tmp_path, name):
    given = keras.Input((2,))
    model = keras.Model(given, Plain(name="plain")(given))
    model.save(tmp_path / name)
    with pytest.raises(errors.LoadError) as error:
        tiedio.load_tied(tmp_path / name, {"Plain": Failing})
    pin(
        error,
        errors.LoadError,
        f"Cannot build the model of `*{name}`: `Failing.call()` of `plain` failed: "
        "the axes are wrong: there are 3, and not 2\n"
        f"Expected: a config that Keras {keras.__version__} reads. Received: ValueError.\n"
        "Load the file with the same classes, in the version it was saved with.",
    )
    with pytest.raises(errors.CustomObjectsError) as error:
        tiedio.load_tied(tmp_path / name)
    assert "registered: `Plain`.\n" in str(error.value)  # and no class of Keras


class Doubled(keras.layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


def test_classes_that_are_not_registered(tmp_path):
    model = keras.Sequential([keras.Input((2,)), Doubled(2, name="doubled")])
    stock(model, tmp_path / "model.h5")
    with pytest.raises(TypeError) as error:
        tiedio.load_tied(tmp_path / "model.h5")
    pin(
        error,
        errors.CustomObjectsError,
        "`*model.h5` needs classes or functions that are not registered: `Doubled`.\n"
        "Expected: all of them in `custom_objects`. Received: not these.\n"
        'Import the module that registers them, pass `custom_objects={"Doubled": Doubled}`, or '
        "register them with `keras.saving.register_keras_serializable`.",
    )
    loaded = tiedio.load_tied(tmp_path / "model.h5", custom_objects={"Doubled": Doubled})
    assert type(loaded.layers[0]) is Doubled


def test_what_is_listed_once_inside_a_nested_model_is_tied(tmp_path):
    """Keras lists it once, and expects it twice."""
    model = trained("inside_and_across_nested_models")
    loaded = tiedio.load_tied(stock(model, tmp_path / "model.h5"))
    assert scenarios.ties_of(loaded) == scenarios.ties_of(model)
    assert weights_and_slots(loaded) == weights_and_slots(model)


def test_ties_inside_a_nested_model_that_nothing_tells(tmp_path):
    layers = [keras.layers.Dense(2, name=name) for name in "abcd"]
    inner = keras.Sequential([keras.Input((2,)), *layers], name="inner")
    tiedio.tie(layers[1], to=layers[0])
    tiedio.tie(layers[3], to=layers[2])
    path = stock(keras.Sequential([keras.Input((2,)), inner]), tmp_path / "model.h5")
    with pytest.raises(errors.LoadError, match=r"Cannot load the weights of `inner` from .*"):
        tiedio.load_tied(path)
    with pytest.raises(ValueError) as error:
        files.plan(path)
    pin(
        error,
        errors.OptionNeededError,
        "`*model.h5` has no values of `inner/b/bias`, `inner/b/kernel`, `inner/d/bias`, "
        "`inner/d/kernel`.\n"
        "Expected: a value for every variable. Received: fewer, as several were tied inside one "
        "nested model.\n"
        'Say to `plan` or `migrate` what they are tied to: `--tie "inner/b/kernel=..."`.',
    )


# Hostile and damaged files


def _set(group, name, value):
    def change(file):
        file[group].attrs[name] = value

    return change


def _longer(group, name, more):
    def change(file):
        file[group].attrs[name] = [*file[group].attrs[name], more]

    return change


def _without(group, name):
    def change(file):
        del file[group].attrs[name]

    return change


def _soft_link(file):
    del file["model_weights/a/s/a/kernel"]
    file["model_weights/a/s/a/kernel"] = h5py.SoftLink("/model_weights/b/s/b/kernel")


HOSTILE = {
    "no JSON": _set("/", "model_config", "{"),
    "no object": _set("/", "model_config", "[]"),
    "no text": _set("/", "model_config", 7),
    "no UTF-8": _set("/", "model_config", np.bytes_(b"\xff")),
    "a key twice": _set("/", "training_config", '{"loss": 1, "loss": 2}'),
    "numbers for names": _set("model_weights", "layer_names", [1, 2]),
    "one name": _set("model_weights", "layer_names", "a"),
    "names in two dimensions": _set("model_weights/a", "weight_names", np.zeros((2, 2), "S1")),
    "a layer twice": _longer("model_weights", "layer_names", "a"),
    "a layer that is not there": _longer("model_weights", "layer_names", "gone"),
    "a weight that is not there": _longer("model_weights/a", "weight_names", "gone"),
    "a group for a weight": _longer("model_weights/a", "weight_names", "s"),
    "no list": _without("model_weights/a", "weight_names"),
    "a slot that is not there": _longer("optimizer_weights", "weight_names", "../layers"),
    "a soft link": _soft_link,
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(change, tmp_path):
    layers = [keras.layers.Dense(4, name=name) for name in "ab"]
    model = scenarios.compiled(keras.Sequential([keras.Input((4,)), *layers], name="s"))
    stock(model, tmp_path / "model.h5")
    tiedio.load_tied(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        change(file)
    with pytest.raises(errors.FileFormatError):
        tiedio.load_tied(tmp_path / "model.h5")


@pytest.mark.parametrize(
    "text",
    ['{"class_name": "Dense"}', '{"class_name": "Dense", "config": {"units": 2}}', "{}"],
)
def test_configs_of_something_else(text, tmp_path):
    stock(equal_pair(), tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        file.attrs["model_config"] = text
    with pytest.raises(errors.TiedioError):
        tiedio.load_tied(tmp_path / "model.h5")


def test_whatever_is_missing_is_named(tmp_path):
    stock(trained("equal_but_untied"), tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        first, second, _ = file["model_weights"].attrs["layer_names"]
        for name in (first, second):
            _longer(f"model_weights/{name}", "weight_names", "gone")(file)
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(tmp_path / "model.h5")
    pin(
        error,
        errors.FileFormatError,
        f"`*model.h5` lacks `model_weights/{first}/gone`, `model_weights/{second}/gone`.\n"
        "Expected: whatever its lists of names mention. Received: no such thing.\n"
        "Restore it from a copy, or save the model again.",
    )


# For weights alone


def two_dense(units=3, names="ab"):
    layers = [keras.layers.Dense(n, name=name) for name, n in zip(names, (2, units), strict=True)]
    return keras.Sequential([keras.Input((2,)), *layers])


@pytest.fixture
def weights_only(tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, two_dense())
    return open_layout(tmp_path / "weights.h5")


def test_weights_only_files_have_no_config(weights_only):
    assert weights_only.model_config is None
    assert list(weights_only.layers) == ["a", "b"]
    assert weights_only.keras_version == keras.__version__
    assert weights_only.backend == keras.backend.backend()


def tied_pair():
    model = equal_pair(bias_initializer="ones")
    for layer in model.layers:
        layer.kernel.assign(np.eye(4) + np.arange(4))
    tiedio.tie(model.layers[1], to=model.layers[0])
    return model


def test_ties_come_back_in_files_of_weights_only(tmp_path):
    """A stock file lists what is tied under the name of the layer that made it."""
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, tied_pair())
    model = scenarios.compiled(equal_pair())
    scenarios.train(model)
    with pytest.warns(errors.TiedioWarning, match="starts anew"):
        tiedio.load_tied_weights(model, tmp_path / "weights.h5")
    first, second = model.layers
    assert first.kernel is second.kernel
    assert first.bias is second.bias
    assert np.array_equal(first.kernel, np.eye(4) + np.arange(4))
    scenarios.train(model)
    assert np.array_equal(first.kernel, second.kernel)
    assert not np.array_equal(first.kernel, np.eye(4) + np.arange(4))


def test_equal_weights_of_their_own_stay_two(tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, equal_pair())
    model = equal_pair()
    tiedio.load_tied_weights(model, tmp_path / "weights.h5")
    assert model.layers[0].kernel is not model.layers[1].kernel


@pytest.mark.parametrize("owner", [0, 1])
def test_a_model_that_ties_some_of_them_ties_the_others_too(owner, tmp_path):
    def three():
        layers = [keras.layers.Dense(4, name=name) for name in "abc"]
        return keras.Sequential([keras.Input((4,)), *layers], name="model")

    saved, model = three(), three()
    for layer in saved.layers:
        if layer is not saved.layers[owner]:
            tiedio.tie(layer, to=saved.layers[owner])
    tiedio.tie(model.layers[1 - owner], to=model.layers[owner])
    saved.save(tmp_path / "model.h5")
    tiedio.load_tied_weights(model, tmp_path / "model.h5")
    assert len({id(layer.kernel) for layer in model.layers}) == 1


def test_a_model_that_exists_keeps_the_order_of_its_weights(tmp_path):
    saved, model = two_dense(), two_dense()
    saved.layers[0].kernel.trainable = False  # Keras lists it behind the bias then
    saved.save(tmp_path / "model.h5")
    tiedio.load_tied_weights(model, tmp_path / "model.h5")
    assert [weight.name for weight in model.layers[0].weights] == ["kernel", "bias"]
    assert np.array_equal(model.layers[0].kernel, saved.layers[0].kernel)


@pytest.mark.often(1)
@pytest.mark.parametrize("is_trained", [False, True])
def test_a_model_that_exists_resumes(tmp_path, is_trained):
    saved, model = scenarios.compiled(tied_pair()), scenarios.compiled(equal_pair())
    scenarios.train(saved)
    if is_trained:
        scenarios.train(model)
    tiedio.load_tied_weights(model, stock(saved, tmp_path / "model.h5"))
    assert weights_and_slots(model) == weights_and_slots(saved)
    scenarios.train(model)
    scenarios.train(saved)
    assert weights_and_slots(model) == weights_and_slots(saved)


def test_a_model_that_exists_resumes_in_its_own_order(tmp_path):
    saved, model = (
        keras.Sequential([keras.Input((4,)), keras.layers.LayerNormalization()]) for _ in range(2)
    )
    saved.layers[0]._trainable_variables.reverse()  # as where it was handed another's gamma
    scenarios.train(scenarios.compiled(saved))
    tiedio.load_tied_weights(scenarios.compiled(model), stock(saved, tmp_path / "model.h5"))
    trained = model.optimizer._trainable_variables  # which JAX takes for those of the model
    assert all(map(operator.is_, trained, model.trainable_variables))
    scenarios.train(model)
    scenarios.train(saved)
    assert bytes_of([model.layers[0].gamma, model.layers[0].beta]) == bytes_of(
        [saved.layers[0].gamma, saved.layers[0].beta]
    )


def test_a_model_that_exists_does_not_take_slots_in_the_order_of_keras_2(tmp_path):
    saved, model = scenarios.compiled(equal_pair()), scenarios.compiled(equal_pair())
    scenarios.train(saved)
    with h5py.File(stock(saved, tmp_path / "model.h5"), "r+") as file:
        file["model_weights"].attrs["keras_version"] = "2.15.0"
    with pytest.warns(errors.TiedioWarning, match="`tiedio migrate .* NEW` puts in the order"):
        tiedio.load_tied_weights(model, tmp_path / "model.h5")
    assert bytes_of(model.weights) == bytes_of(saved.weights)
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize("is_frozen_now", [False, True])
def test_a_model_that_exists_does_not_take_slots_of_what_it_does_not_train(tmp_path, is_frozen_now):
    saved, model = equal_pair(), equal_pair()
    saved.layers[1].trainable = False
    model.layers[0].trainable = not is_frozen_now
    scenarios.train(scenarios.compiled(saved))
    with pytest.warns(errors.TiedioWarning, match="Cannot resume `optimizer`: in the file"):
        tiedio.load_tied_weights(scenarios.compiled(model), stock(saved, tmp_path / "model.h5"))
    assert bytes_of(model.weights) == bytes_of(saved.weights)
    assert int(model.optimizer.iterations) == 0


def test_an_optimizer_that_is_registered_by_another_name_resumes(tmp_path):
    @keras.saving.register_keras_serializable("tiedio_tests", name="Other")
    class Mine(keras.optimizers.Adam):
        pass

    saved, model = (scenarios.compiled(equal_pair(), Mine()) for _ in range(2))
    scenarios.train(saved)
    tiedio.load_tied_weights(model, stock(saved, tmp_path / "model.h5"))
    assert weights_and_slots(model) == weights_and_slots(saved)


@pytest.mark.parametrize("name", ["rmsprop", "sgd"])
def test_a_model_with_another_optimizer_keeps_that(tmp_path, name):
    saved, model = scenarios.compiled(equal_pair()), equal_pair()
    scenarios.train(saved)
    model.compile(name, "mse")
    with pytest.warns(errors.TiedioWarning, match="Received: that of `Adam`"):
        tiedio.load_tied_weights(model, stock(saved, tmp_path / "model.h5"))
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_model_that_exists_goes_on_where_training_had_not_begun(tmp_path, name):
    saved, model = equal_pair(), equal_pair()
    for one in (saved, model):
        one.compile(name, "mse")
    scenarios.train(model)
    steps = int(model.optimizer.iterations)
    tiedio.load_tied_weights(model, stock(saved, tmp_path / "model.h5"))
    assert int(model.optimizer.iterations) == steps
    tiedio.load_tied_weights(saved, stock(model, tmp_path / "model.h5"))
    assert int(saved.optimizer.iterations) == steps


def test_layers_fit_by_order_and_by_name(weights_only):
    def groups(model, **options):
        found, _ = keras2_record.fitting(model, weights_only, **options)
        pairs = (pair for one in found for pair in one.pairs)
        return [(v.path.split("/")[-2], w.dataset_path.split("/")[0]) for v, w in pairs]

    assert groups(two_dense(names="xy")) == [("x", "a")] * 2 + [("y", "b")] * 2
    assert groups(two_dense(names="xa", units=2), by_name=True) == [("a", "a")] * 2
    assert groups(two_dense(names="xy"), by_name=True) == []


def test_layers_that_do_not_fit(weights_only):
    with pytest.raises(ValueError) as error:
        keras2_record.fitting(two_dense(units=4), weights_only)
    pin(
        error,
        errors.LoadError,
        "Cannot load the weights of `b` from `*weights.h5`.\n"
        "Received: `b`: expected [(2, 4), (4,)], received [(2, 3), (3,)].\n"
        "Load the file into the model that was saved. Where fewer are stored than expected, "
        "some may have been tied inside one layer: this format does not say which.",
    )
    with pytest.raises(ValueError) as error:
        keras2_record.fitting(keras.Sequential(two_dense().layers[:1], name="half"), weights_only)
    pin(
        error,
        errors.LoadError,
        "Cannot load `*weights.h5` into model `half`: it has other layers.\n"
        "Expected: 1 with weights: `a`. Received: 2: `a`, `b`.\n"
        "Load it into the model that was saved, with the same classes.",
    )
