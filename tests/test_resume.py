"""Train, save, load in a new process, train on: nothing differs from never stopping."""

import contextlib
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
from tiedio import state

PROCESSES = 2

# In a process that ran other models before, TensorFlow now and then adds up large convolutions
# in another order, also when it is not interrupted (1 run of 5; alone 0 of 12).
ALONE = ("origin_at_its_real_size",)


def each(names):
    """Runs a test for each scenario, for some of them only where slow tests are asked for."""
    slow = {name: [pytest.mark.slow] for name in scenarios.SLOW}
    parameters = [pytest.param(name, marks=slow.get(name, ())) for name in names]
    return pytest.mark.parametrize("name", parameters)


TIED = [name for name in scenarios.SCENARIOS if name not in scenarios.CONTROLS]


class Runs:
    """The same training, uninterrupted and resumed, each in processes of their own."""

    def __init__(self, folder, names, contained):
        self.folder = folder
        self.names = names
        self.contained = contained
        (folder / "contained.json").write_text(json.dumps(contained))

    def run(self, part):
        """Runs a part once for all scenarios that are asked for."""
        if (self.folder / part).exists():
            return
        names = self.contained.get(part, self.names)
        together = [name for name in names if name not in ALONE]
        self.run_at_once(part, *(together[core::PROCESSES] for core in range(PROCESSES)))
        for name in names:
            if name in ALONE:
                self.run_at_once(part, [name])

    def run_at_once(self, part, *names_by_core):
        script = Path(__file__).with_name("new_process.py")
        processes = [
            subprocess.Popen(
                [sys.executable, script, str(core), part, self.folder, *names], cwd=self.folder
            )
            for core, names in enumerate(names_by_core)
            if names
        ]
        assert {process.wait() for process in processes} <= {0}

    def facts(self, name, part="resume"):
        """What was tied, what the optimizers held: of the uninterrupted run, and of `part`."""
        self.run("start")
        self.run(part)
        facts = [
            json.loads((self.folder / one / f"{name}.json").read_text()) for one in ("start", part)
        ]
        failures = [one["error"] for one in facts if "error" in one and part != "never_retied"]
        assert not failures, failures[0]
        return facts

    def filepath(self, name):
        """The file that the uninterrupted run saved on its way."""
        self.run("start")
        return self.folder / f"{name}.keras"

    def states(self, name, moment, moment_of_start=None, part="resume"):
        """Every array at that moment: of the uninterrupted and the resumed run."""
        self.facts(name, part)
        found = []
        for one, wanted in (("start", moment_of_start or moment), (part, moment)):
            with np.load(self.folder / one / f"{name}.npz") as saved:
                found.append([saved[key] for key in saved.files if key.startswith(wanted)])
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    asked = [
        item.callspec.params
        for item in request.session.items
        if item.module is request.module and "runs" in item.fixturenames
    ]

    def in_order(some):
        names = {parameters["name"] for parameters in some}
        return [name for name in scenarios.SCENARIOS if name in names]

    contained = {
        container: in_order([one for one in asked if one.get("container") == container])
        for container in scenarios.CONTAINERS
    }
    return Runs(tmp_path_factory.mktemp("scenarios"), in_order(asked), contained)


def bit_equal(ours, theirs):
    return [a.tobytes() for a in ours] == [b.tobytes() for b in theirs]


@each(scenarios.SCENARIOS)
def test_ties_are_exactly_those_that_were_saved(runs, name):
    uninterrupted, resumed = runs.facts(name)
    assert resumed["ties"] == uninterrupted["ties"]
    assert resumed["shared_layers"] == uninterrupted["shared_layers"]
    assert bool(resumed["ties"] or resumed["shared_layers"]) == (name in TIED)


@each(scenarios.SCENARIOS)
def test_optimizers_have_the_same_variables_in_the_same_order(runs, name):
    uninterrupted, resumed = runs.facts(name)
    assert resumed["iterations"] == uninterrupted["iterations"] > 0
    assert resumed["optimizers"] == uninterrupted["optimizers"]


@each(scenarios.SCENARIOS)
def test_layers_and_variables_are_named_and_flagged_as_before(runs, name):
    uninterrupted, resumed = runs.facts(name)
    assert resumed["variables"] == uninterrupted["variables"]
    assert resumed["layers"] == uninterrupted["layers"]


@pytest.mark.parametrize("moment", ["before", "after"])
@each(scenarios.SCENARIOS)
def test_state_is_bit_equal_to_the_uninterrupted_run(runs, name, moment):
    uninterrupted, resumed = runs.states(name, moment)
    assert len(resumed) > 0
    assert bit_equal(resumed, uninterrupted)


@each(scenarios.SCENARIOS)
def test_training_did_change_the_state(runs, name):
    (before, _), (after, _) = runs.states(name, "before"), runs.states(name, "after")
    assert not bit_equal(before, after)


@each(scenarios.SCENARIOS)
def test_a_second_trip_changes_nothing(runs, name):
    uninterrupted, resumed = runs.facts(name)
    assert resumed["second_trip"] == uninterrupted
    assert bit_equal(*runs.states(name, "second_trip", "before"))


# One of each kind; the others where slow tests are asked for.
CONTAINED = ("two_paddings", "dropout")


@pytest.mark.parametrize(
    ("name", "container"),
    [
        pytest.param(name, container, marks=[] if name in CONTAINED else [pytest.mark.slow])
        for name in scenarios.SCENARIOS
        for container in scenarios.CONTAINERS
        if name not in scenarios.NOT_CONTAINED.get(container, ())
    ],
)
def test_every_container_resumes_bit_for_bit(runs, name, container):
    uninterrupted, resumed = runs.facts(name, part=container)
    assert {fact: resumed[fact] for fact in resumed} == {
        fact: uninterrupted[fact] for fact in resumed
    }
    for moment in ("before", "after"):
        uninterrupted, resumed = runs.states(name, moment, part=container)
        assert bit_equal(resumed, uninterrupted) and len(resumed) > 0


# What a class shares by its own code, and a layer that Keras itself shares, needs no retying.
SHARED_ANYWAY = (
    "aliases_inside_one_layer",
    "variable_owned_by_the_model",
    "tied_by_the_code_of_a_class",
    "plain_then_distributed_over_time",
    "one_cell_in_a_stack",
    "given_twice_to_one_custom_layer",
)


@each(TIED)
def test_these_tests_fail_without_retying(runs, name):
    uninterrupted, untied = runs.facts(name, part="never_retied")
    same = all(untied.get(fact) == uninterrupted[fact] for fact in ("ties", "shared_layers"))
    assert same == (name in SHARED_ANYWAY)


def weights_file(filepath):
    return h5py.File(io.BytesIO(zipfile.ZipFile(filepath).read("model.weights.h5")), "r")


@each(TIED)
def test_shared_tensors_are_stored_once_as_hard_links(runs, name):
    filepath = runs.filepath(name)
    record = json.loads(zipfile.ZipFile(filepath).read("metadata.json"))["tiedio"]
    with weights_file(filepath) as file:
        for group in record["tie_groups"]:
            places = [group["owner"], *group["aliases"]]
            paths = {place["dataset_path"] for place in places} - {None}
            datasets = [file[path] for path in sorted(paths)]
            assert all(dataset == datasets[0] for dataset in datasets)
            assert {type(file.get(path, getlink=True)) for path in paths} == {h5py.HardLink}
        for first, *others in record["shared_layers"]:
            assert all(file[path] == file[first] for path in others if first in file)


# Keras reads some layers by position, and ties made by hand out of order changed the positions.
BY_POSITION = (
    "gamma_by_hand",
    "recurrent_kernel_by_hand",
    "tied_inside_one_layer",
    "untied_after_a_tie_by_hand",
)
# Keras cannot know what is not in the config of the class.
BY_ITS_CODE = (
    "one_of_two_ties_of_a_class_undone",
    "ties_of_a_class_undone",
    "variable_given_to_a_constructor",
)
# The layer itself stores less than it has.
INEXACT = ("rounded_when_stored",)
# Optimizers chosen by automatic names, which are other ones in the model that Keras builds.
BY_NAME = ("optimizers_chosen_by_path",)


@pytest.mark.slow
@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_stock_keras_opens_the_file(runs, name):
    _, stock = runs.facts(name, part="stock")
    assert stock["predicts"] == (name not in (*BY_POSITION, *BY_ITS_CODE, *INEXACT, *BY_NAME))


# Nothing in a file of Keras' own says that two layers without variables were one.
NOT_INFERRED = ("one_dropout_in_two_models",)


@pytest.mark.slow
@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_files_of_stock_keras_open(runs, name):
    """As in Keras, and also where Keras itself fails for a layer in several places."""
    uninterrupted, stock = runs.facts(name, part="stock")
    ours, theirs = stock["stock_opens"]
    if theirs:
        assert stock["equal"]
    elif uninterrupted["shared_layers"]:
        same = stock["shared_layers"] == uninterrupted["shared_layers"]
        assert same == (name not in NOT_INFERRED)
    # Keras cannot read its own file of a loss-scaled model under another policy.
    assert ours or name in (*BY_POSITION, *BY_ITS_CODE, *BY_NAME, "loss_scaling")


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
    arrays = [state._to_numpy(variable) for _ in range(2)]
    assert np.shares_memory(*arrays)
    assert arrays[0].dtype == dtype and arrays[0].all()


def test_optimizers_are_stored_under_the_names_that_keras_gives():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(optimizer="adam", loss="mse")
    expected = {}
    model.optimizer.save_own_variables(expected)
    stored = state._own_variables(model.optimizer)
    assert list(stored) == list(expected)
    assert all(np.array_equal(state._to_numpy(stored[key]), expected[key]) for key in expected)


def test_optimizers_that_store_in_their_own_way_are_asked():
    class Halved(keras.optimizers.SGD):
        def save_own_variables(self, store):
            store["half"] = np.array(0.5)

    assert state._own_variables(Halved()) == {"half": 0.5}
