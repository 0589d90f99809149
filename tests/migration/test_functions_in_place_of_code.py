"""Files whose Lambda layers hold code of another Python, written by that: `fixtures/lambdas`."""

import json
import sys

import keras
import numpy as np
import pytest
from checkout import FIXTURES
from click.testing import CliRunner
from pinning import pin

import tiedio
from tiedio import errors, files
from tiedio.cli.main import main
from tiedio.files import many

FOLDER = FIXTURES / "lambdas"
TRUTH = json.loads((FOLDER / "predictions.json").read_text())
PYTHONS = {
    "2.7": "2",
    "3.6": "3.0 to 3.7",
    "3.8": "3.8 to 3.10",
    "3.10": "3.8 to 3.10",
    "3.12": "3.12",
}
THIS = "{}.{}".format(*sys.version_info)
SIAMESE = FOLDER / "siamese_python_3_6.h5"
GIVEN = {"distance": "mine:absolute", "z": "mine:code", "decoder/scale": "Mine>double"}


def absolute(inputs):
    return keras.ops.abs(inputs[0] - inputs[1])


def code(inputs, noise):
    return inputs[0] + keras.ops.exp(inputs[1] / 2) * noise


OWN = {"absolute": absolute, "code": code, "Mine>double": lambda x: 2 * x}


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.mark.often(3)
@pytest.mark.parametrize("name", TRUTH)
def test_named_functions_take_the_place_of_code(name, tmp_path):
    of = [one for one in GIVEN if (one == "distance") == name.startswith("siamese")]
    told = f"ode of Python {PYTHONS[TRUTH[name]['python']]}"
    planned = files.plan(FOLDER / name)
    options = {f"--lambda {one}=MODULE:FUNCTION" for one in of}
    if planned.code:
        assert {*planned.needs} == options
        assert all(told in one for one in planned.code.values())
        assert not planned.notes  # what is needed is not said twice
    else:
        assert {*planned.offers} == options
        assert told in planned.notes[0]
    assert told in files.inspect(FOLDER / name).notes[-1]
    if TRUTH[name]["python"] != THIS:
        for safe_mode in True, False:
            with pytest.raises(
                errors.LoadError, match=rf"as code.\n.*{THIS}.*\n.*--lambda {of[-1]}="
            ):
                tiedio.load_tied(FOLDER / name, custom_objects=OWN, safe_mode=safe_mode)

    given = {one: GIVEN[one] for one in of}
    done = files.migrate(FOLDER / name, tmp_path / "new.keras", lambdas=given)

    assert not done.needs
    inputs = [np.random.RandomState(seed).rand(3, 4).astype("float32") for seed in range(2)]
    inputs = inputs if name.startswith("siamese") else inputs[0]
    for load in tiedio.load_tied, keras.saving.load_model:
        model = load(tmp_path / "new.keras", custom_objects=OWN)
        predicted = model.predict(inputs, verbose=0)
        np.testing.assert_allclose(predicted, TRUTH[name]["predictions"], rtol=1e-5, atol=1e-6)
        assert name.endswith(".keras") or int(model.optimizer.iterations) == 1


def test_code_that_nothing_runs_is_refused_by_name(tmp_path):
    with pytest.raises(errors.LoadError) as error:
        tiedio.load_tied(SIAMESE)
    pin(
        error,
        errors.LoadError,
        "Cannot build the model of `*siamese_python_3_6.h5`: it holds the functions of `distance` "
        "as code.\n"
        f"Expected: code of Python {THIS}, or names. Received: code of Python 3.0 to 3.7.\n"
        "Put functions of your own in its place: "
        "`tiedio migrate *siamese_python_3_6.h5 NEW.keras --lambda distance=MODULE:FUNCTION`.",
    )
    with pytest.raises(errors.OptionNeededError) as error:
        files.migrate(SIAMESE, tmp_path / "new.keras")
    pin(
        error,
        errors.OptionNeededError,
        "Cannot migrate `*siamese_python_3_6.h5` as a model: it holds the functions of `distance` "
        "as code.\n"
        "Expected: names of functions. Received: code of Python 3.0 to 3.7, which does not run in "
        "Python 3.11 or later.\n"
        "Pass `--lambda distance=MODULE:FUNCTION`, or a path ending in `.weights.h5` for weights "
        "only.",
    )
    assert not [*tmp_path.iterdir()]
    files.migrate(SIAMESE, tmp_path / "new.weights.h5")  # which need no functions


def test_code_of_this_python_needs_unsafe_mode(tmp_path):
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Lambda(lambda x: 2 * x, name="twice")]
    )
    for name in "a.keras", "a.h5":
        model.save(tmp_path / name)
        with pytest.raises(errors.LoadError) as error:
            tiedio.load_tied(tmp_path / name)
        pin(
            error,
            errors.LoadError,
            f"Cannot build the model of `*{name}`: it holds the functions of `twice` as code, "
            "which carries a risk of arbitrary code execution.\n"
            "Expected: names of functions. Received: code of Python *.\n"
            "Pass `safe_mode=False` if you trust the file, or put functions of your own in its "
            f"place: `tiedio migrate *{name} NEW.keras --lambda twice=MODULE:FUNCTION`.",
        )
        assert files.plan(tmp_path / name).needs == ()
        files.migrate(tmp_path / name, tmp_path / "new.keras", overwrite=True)
        loaded = tiedio.load_tied(tmp_path / "new.keras", safe_mode=False)
        assert np.array_equal(loaded(np.ones((1, 2), "float32")), [[2, 2]])


def test_functions_that_do_not_run_are_named(tmp_path):
    """Code lacks what it was written beside; a function that is given may be another one."""
    inputs = [keras.Input((2,)), keras.Input((2,))]
    distance = keras.layers.Lambda(lambda x: keras.ops.abs(x[0] - x[1]), name="distance")(inputs)
    outputs = keras.layers.Dense(1)(distance)
    keras.Model(inputs, outputs).save(tmp_path / "own.keras")
    with pytest.raises(errors.LoadError) as error:
        tiedio.load_tied(tmp_path / "own.keras", safe_mode=False)
    pin(
        error,
        errors.LoadError,
        "Cannot build the model of `*own.keras`: `Lambda.call()` failed: *\n"
        "Expected: a config that Keras * reads. Received: *.\n"
        "Code may lack what stood beside it. Put functions of your own in its place: `tiedio "
        "migrate *own.keras NEW.keras --lambda distance=MODULE:FUNCTION`.",
    )
    given = {"distance": "mine:absolute"}
    files.migrate(tmp_path / "own.keras", tmp_path / "new.keras", lambdas=given)
    for function, told in ((lambda x: x[0][:, :1], "incompatible"), (lambda x: x[3], "failed")):
        with pytest.raises(errors.LoadError) as error:
            tiedio.load_tied(tmp_path / "new.keras", custom_objects={"absolute": function})
        pin(
            error,
            errors.LoadError,
            f"Cannot build the model of `*new.keras`: *{told}*\n"
            "Expected: a config that Keras * reads. Received: *.\n"
            "Check the functions of `distance`, or load the file with the same classes, in the "
            "version it was saved with.",
        )
    model = tiedio.load_tied(tmp_path / "new.keras", custom_objects=OWN)
    assert model.count_params() == 3


@pytest.mark.parametrize("given", [["mine:absolute"], {"distance": "import os"}, {"distance": 3}])
def test_functions_are_given_by_their_names(given, tmp_path):
    with pytest.raises(errors.ArgumentError, match="module:function"):
        files.migrate(SIAMESE, tmp_path / "new.keras", lambdas=given)


def test_the_command_line_says_what_is_needed(tmp_path):
    new, wanted = tmp_path / "new.keras", "--lambda distance=MODULE:FUNCTION"
    for command in ("plan", SIAMESE), ("migrate", SIAMESE, new, "--dry-run"):
        result = run(*command)
        assert result.exit_code == 3
        assert wanted in result.output
    assert json.loads(run("plan", SIAMESE, "--json").stdout)["needs"] == [wanted]
    result = run("migrate", SIAMESE, new)
    assert result.exit_code == 3
    assert wanted in result.output
    assert run("migrate", SIAMESE, new, "--lambda", "keras.ops:abs").exit_code == 2
    given = ("--lambda", "distance=keras.ops:subtract")
    assert run("plan", SIAMESE, *given).exit_code == 0
    assert run("migrate", SIAMESE, new, *given).exit_code == 0


def test_a_misspelled_layer_is_an_error_before_anything_is_written(tmp_path):
    """For one file; of several, each may have functions that the others have not."""
    given = ("--lambda", "distanze=keras.ops:abs")
    result = run("migrate", SIAMESE, tmp_path / "new.keras", *given)
    assert result.exit_code == 1
    assert "has no functions at `distanze`" in result.output
    assert "Expected: some of `distance`. Received: `distanze`." in result.output
    assert not any(tmp_path.iterdir())


def test_in_a_folder_functions_are_of_the_files_that_have_such_layers(tmp_path):
    found = many.migrate(str(FOLDER), str(tmp_path), lambdas=GIVEN)
    assert len(found) == len(TRUTH)
    assert not any(one.error for one in found)
    lambdas = {"z": "mine:code", "none": "mine:code"}
    found = many.migrate(str(FOLDER), str(tmp_path / "again"), lambdas=lambdas)
    assert all(one.state == many.State.NEEDS_OPTION for one in found if one.error)
    assert sum(not one.error for one in found) == 2  # of Python 3.12, which is there
    assert {need for one in found for need in one.needs} == {
        "--lambda distance=MODULE:FUNCTION",
        "--lambda decoder/scale=MODULE:FUNCTION",
    }
    given = [f"--lambda={name}={function}" for name, function in lambdas.items()]
    told = "Note: There is no function at `{}`: `--lambda {}=...` is not used.\n"
    printed = run("plan", FOLDER, *given).output
    assert told.format("none", "none") in printed
    assert told.format("z", "z") not in printed  # which others have
    assert told.format("z", "z") in run("plan", SIAMESE, *given).output
