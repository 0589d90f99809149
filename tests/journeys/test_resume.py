"""A model that was loaded goes on as it was; `test_backends` looks at that in new processes."""

import contextlib
import zipfile

import h5py
import keras
import numpy as np
import pytest
import scenarios

import tiedio
from tiedio.model.own_state import own_state, to_numpy


def test_an_equal_size_file_would_be_larger_without_links(tmp_path):
    tokens = keras.Input((5,), dtype="int32")
    layers = [keras.layers.Embedding(1000, 64) for _ in range(2)]
    model = keras.Model(tokens, keras.layers.Add()([layer(tokens) for layer in layers]))
    tiedio.tie(layers[1], to=layers[0])
    tiedio.save_tied(model, tmp_path / "tied.keras")
    unique = 1000 * 64 * 4
    assert unique < (tmp_path / "tied.keras").stat().st_size <= unique * 1.02 + 64 * 1024


def test_second_trip_in_one_process(tmp_path):
    model = scenarios.kernel_by_hand()
    scenarios.train(model)
    for trip in range(2):
        tiedio.save_tied(model, tmp_path / f"{trip}.keras")
        loaded = tiedio.load_tied(tmp_path / f"{trip}.keras")
        assert scenarios.ties_of(loaded) == scenarios.ties_of(model)
        scenarios.train(model)
        scenarios.train(loaded)
        for a, b in zip(scenarios.state_of(model), scenarios.state_of(loaded), strict=True):
            assert a.tobytes() == b.tobytes()
        model = loaded


def test_slots_of_variables_frozen_after_training_are_kept(tmp_path):
    model = scenarios.two_paddings()
    scenarios.train(model)
    model.layers[-1].trainable = False
    tiedio.save_tied(model, tmp_path / "frozen.keras")
    loaded = tiedio.load_tied(tmp_path / "frozen.keras")
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        assert np.array_equal(a, b)


def test_an_optimizer_that_was_never_built_comes_back_unbuilt(tmp_path):
    model = scenarios.two_paddings(keras.optimizers.Adam(0.25))
    model.optimizer.learning_rate = 0.125
    tiedio.save_tied(model, tmp_path / "new.keras")
    loaded = tiedio.load_tied(tmp_path / "new.keras")
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    assert float(loaded.optimizer.learning_rate) == 0.125


@pytest.mark.often(1)
@pytest.mark.parametrize("name", ["model.keras", "model.h5", "folder"])
def test_the_optimizer_may_be_left_out(tmp_path, name):
    model = scenarios.two_paddings()
    scenarios.train(model)
    before = scenarios.state_of(model)
    filepath = tmp_path / name
    options = {"zipped": "." in name, "include_optimizer": False}
    tiedio.save_tied(model, filepath, **options)
    loaded = tiedio.load_tied(filepath)
    assert not loaded.compiled
    tiedio.save_tied(loaded, filepath, **options)  # where there is none
    assert scenarios.ties_of(loaded) == scenarios.ties_of(model)
    assert all(map(np.array_equal, loaded.get_weights(), model.get_weights()))
    assert not keras.saving.load_model(filepath).compiled
    assert all(map(np.array_equal, scenarios.state_of(model), before))
    loaded.compile("adam", "mse")
    tiedio.save_tied(loaded, filepath, **options)  # which is in a folder, and replaced
    with contextlib.ExitStack() as opened:
        file = filepath if name != "folder" else filepath / "model.weights.h5"
        if name == "model.keras":
            file = opened.enter_context(zipfile.ZipFile(filepath)).open("model.weights.h5")
        file = opened.enter_context(h5py.File(file))
        assert "layers" in file and not {"optimizer", "optimizer_weights"} & {*file}


def test_with_the_optimizers_of_models_inside(tmp_path):
    inner = scenarios.compiled(keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)]))
    scenarios.train(inner)
    model = scenarios.compiled(keras.Sequential([keras.Input((4,)), inner]))
    scenarios.train(model)
    tiedio.save_tied(model, tmp_path / "model.keras", include_optimizer=False)
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert "compile_config" not in archive.read("config.json").decode()
        with h5py.File(archive.open("model.weights.h5")) as file:
            paths = []
            file.visit(paths.append)
    assert paths and not [path for path in paths if "optimizer" in path]
    tiedio.load_tied(tmp_path / "model.keras")


def test_compile_false_leaves_the_model_uncompiled(tmp_path):
    model = scenarios.two_paddings()
    tiedio.save_tied(model, tmp_path / "model.keras")
    loaded = tiedio.load_tied(tmp_path / "model.keras", compile=False)
    assert not loaded.compiled
    assert scenarios.ties_of(loaded) == scenarios.ties_of(model)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_the_config_marks_no_optimizer_as_shared(tmp_path, policy):
    dense = keras.layers.Dense(2, dtype=policy)
    model = keras.Sequential([keras.Input((2,)), dense])
    model.compile("adam", "mse", auto_scale_loss=True)
    model.optimizer.build(model.trainable_variables)
    tiedio.save_tied(model, tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        config = archive.read("config.json").decode()
    assert type(model.optimizer).__name__ in config
    assert "shared_object_id" not in config


def test_assets_travel(tmp_path):
    model = keras.Sequential([keras.Input((1,)), scenarios.Motto()])
    model.layers[0].text = "ties that bind"
    tiedio.save_tied(model, tmp_path / "motto.keras")
    for load in (tiedio.load_tied, keras.saving.load_model):
        assert load(tmp_path / "motto.keras").layers[0].text == "ties that bind"


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "bool"])
def test_saving_reads_variables_without_copying_them(dtype):
    variable = keras.Variable(np.ones((64, 64)), dtype=dtype, trainable=False)
    arrays = [to_numpy(variable) for _ in range(2)]
    assert np.shares_memory(*arrays)
    assert arrays[0].dtype == dtype and arrays[0].all()


def test_optimizers_are_stored_under_the_names_that_keras_gives():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(optimizer="adam", loss="mse")
    expected = {}
    model.optimizer.save_own_variables(expected)
    stored = own_state(model.optimizer)
    assert list(stored) == list(expected)
    assert all(np.array_equal(to_numpy(stored[key]), expected[key]) for key in expected)


def test_optimizers_that_store_in_their_own_way_are_asked():
    class Halved(keras.optimizers.SGD):
        def save_own_variables(self, store):
            store["half"] = np.array(0.5)

    assert own_state(Halved()) == {"half": 0.5}
