"""Train, save, load in a new process, train on: nothing differs from never stopping."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import scenarios

import tiedio

SCENARIOS = [name for name in scenarios.SCENARIOS if name not in scenarios.SLOW]
TIED = [name for name in SCENARIOS if name not in scenarios.CONTROLS]
PROCESSES = 2


class Runs:
    """The same training, uninterrupted and resumed, each in processes of their own."""

    def __init__(self, folder, names, parts=("start", "resume", "never_retied")):
        self.folder = folder
        script = Path(__file__).with_name("new_process.py")
        for part in parts:
            processes = [
                subprocess.Popen(
                    [sys.executable, script, str(core), part, folder, *names[core::PROCESSES]],
                    cwd=folder,
                )
                for core in range(PROCESSES)
            ]
            assert [process.wait() for process in processes] == [0] * PROCESSES

    def facts(self, name, part="resume"):
        """What was tied, what the optimizers held: of the uninterrupted run, and of `part`."""
        facts = [
            json.loads((self.folder / one / f"{name}.json").read_text()) for one in ("start", part)
        ]
        for one in facts:
            assert "error" not in one, one["error"]
        return facts

    def states(self, name, moment, moment_of_start=None):
        """Every array at that moment: of the uninterrupted and the resumed run."""
        self.facts(name)
        found = []
        for part, wanted in (("start", moment_of_start or moment), ("resume", moment)):
            with np.load(self.folder / part / f"{name}.npz") as saved:
                found.append([saved[key] for key in saved.files if key.startswith(wanted)])
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("scenarios"), SCENARIOS)


def bit_equal(ours, theirs):
    return [a.tobytes() for a in ours] == [b.tobytes() for b in theirs]


@pytest.mark.parametrize("name", SCENARIOS)
def test_ties_are_exactly_those_that_were_saved(runs, name):
    uninterrupted, resumed = runs.facts(name)
    assert resumed["ties"] == uninterrupted["ties"]
    assert resumed["shared_layers"] == uninterrupted["shared_layers"]
    assert bool(resumed["ties"] or resumed["shared_layers"]) == (name in TIED)


@pytest.mark.parametrize("name", SCENARIOS)
def test_optimizers_have_the_same_variables_in_the_same_order(runs, name):
    uninterrupted, resumed = runs.facts(name)
    assert resumed["iterations"] == uninterrupted["iterations"] > 0
    assert resumed["optimizers"] == uninterrupted["optimizers"]
    assert resumed["trainable"] == uninterrupted["trainable"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_state_is_bit_equal_to_the_uninterrupted_run(runs, name, moment):
    uninterrupted, resumed = runs.states(name, moment)
    assert len(resumed) > 0
    assert bit_equal(resumed, uninterrupted)


@pytest.mark.parametrize("name", SCENARIOS)
def test_training_did_change_the_state(runs, name):
    (before, _), (after, _) = runs.states(name, "before"), runs.states(name, "after")
    assert not bit_equal(before, after)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_second_trip_changes_nothing(runs, name):
    uninterrupted, resumed = runs.facts(name)
    assert resumed["second_trip"] == uninterrupted
    assert bit_equal(*runs.states(name, "second_trip", "before"))


# What a class shares by its own code, and a layer that Keras itself shares, needs no retying.
SHARED_ANYWAY = (
    "aliases_inside_one_layer",
    "variable_owned_by_the_model",
    "tied_by_the_code_of_a_class",
    "plain_then_distributed_over_time",
)


@pytest.mark.parametrize("name", TIED)
def test_these_tests_fail_without_retying(runs, name):
    uninterrupted, untied = runs.facts(name, part="never_retied")
    same = all(untied[fact] == uninterrupted[fact] for fact in ("ties", "shared_layers"))
    assert same == (name in SHARED_ANYWAY)


@pytest.mark.slow
def test_the_origin_at_its_real_size(tmp_path):
    (origin,) = scenarios.SLOW
    runs = Runs(tmp_path, [origin])
    uninterrupted, resumed = runs.facts(origin)
    assert resumed["second_trip"] == uninterrupted
    assert len(resumed["ties"]) == 2
    assert len(resumed["optimizers"]["optimizer"]) == 4
    for moment in ("before", "after"):
        assert bit_equal(*runs.states(origin, moment))


def weights_file(filepath):
    return h5py.File(io.BytesIO(zipfile.ZipFile(filepath).read("model.weights.h5")), "r")


@pytest.mark.parametrize("name", TIED)
def test_shared_tensors_are_stored_once_as_hard_links(runs, name):
    filepath = runs.folder / f"{name}.keras"
    record = json.loads(zipfile.ZipFile(filepath).read("metadata.json"))["tiedio"]
    with weights_file(filepath) as file:
        for group in record["tie_groups"]:
            places = [group["owner"], *group["aliases"]]
            datasets = [file[place["dataset_path"]] for place in places]
            assert all(dataset == datasets[0] for dataset in datasets)
            link = file.get(places[1]["dataset_path"], getlink=True)
            assert isinstance(link, h5py.HardLink)
            assert h5py.h5o.get_info(datasets[0].id).rc == len(places)


# Keras reads LayerNormalization by position, and a tie made out of order changed the positions.
BY_POSITION = ("gamma_by_hand", "untied_after_a_tie_by_hand")


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in BY_POSITION])
def test_stock_keras_opens_the_file(runs, name):
    stock = keras.saving.load_model(runs.folder / f"{name}.keras")
    tied = tiedio.load_tied(runs.folder / f"{name}.keras")
    inputs, _ = scenarios.data_for(tied)
    assert stock.predict(inputs, verbose=0).tobytes() == tied.predict(inputs, verbose=0).tobytes()


def without_seeds(model):
    """Lists the arrays of a model but for seeds, which stock Keras draws anew."""
    variables = scenarios.variables_of(model)
    return scenarios.arrays_of(v for v in variables if v.name != "seed_generator_state")


def loaded_or_none(load, filepath):
    try:
        return load(filepath)
    except ValueError:
        return None


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.parametrize("name", SCENARIOS)
def test_stock_files_open_as_in_keras(tmp_path, name):
    model = scenarios.SCENARIOS[name]()
    scenarios.train(model)
    model.save(tmp_path / "stock.keras")
    # Keras cannot read its own file of a loss-scaled model under another policy.
    ours, theirs = (
        loaded_or_none(load, tmp_path / "stock.keras")
        for load in (tiedio.load_tied, keras.saving.load_model)
    )
    assert (ours is None) == (theirs is None) == (name == "loss_scaling")
    if ours is None:
        return
    for a, b in zip(without_seeds(ours), without_seeds(theirs), strict=True):
        assert a.tobytes() == b.tobytes()


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


def test_compile_false_leaves_the_model_uncompiled(tmp_path):
    model = scenarios.two_paddings()
    tiedio.save_tied(model, tmp_path / "model.keras")
    loaded = tiedio.load_tied(tmp_path / "model.keras", compile=False)
    assert not loaded.compiled
    assert scenarios.ties_of(loaded) == scenarios.ties_of(model)


def test_assets_travel(tmp_path):
    model = keras.Sequential([keras.Input((1,)), scenarios.Motto()])
    model.layers[0].text = "ties that bind"
    tiedio.save_tied(model, tmp_path / "motto.keras")
    for load in (tiedio.load_tied, keras.saving.load_model):
        assert load(tmp_path / "motto.keras").layers[0].text == "ties that bind"
