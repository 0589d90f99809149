"""What a plan tells of a model: what is called several times, what has no state, whose it is."""

import json

import h5py
import keras
import numpy as np
import pytest
from checkout import FIXTURES
from click.testing import CliRunner
from pinning import pin

import tiedio
from tiedio import errors, files
from tiedio.cli.main import main

L = keras.layers
NOTHING = "There is nothing to tie, as far as the file tells."


def called(name="model", **times):
    """A model that calls each layer so many times in a row."""
    given = tensor = keras.Input((4,))
    for layer, count in times.items():
        made = L.Activation("relu", name=layer) if layer == "relu" else L.Dense(4, name=layer)
        for _ in range(count):
            tensor = made(tensor)
    return keras.Model(given, tensor, name=name)


@pytest.mark.parametrize(
    ("times", "told"),
    [
        ({"a": 1, "b": 1}, NOTHING),
        ({"relu": 2, "b": 1}, NOTHING),  # it has nothing to share
        ({"a": 2}, "No variable is tied; 1 layer is called 2 times, which needs no tie: a."),
        (
            {"a": 3, "b": 3},
            "No variable is tied; 2 layers are called 3 times, which needs no tie: a, b.",
        ),
        (
            {"a": 2, "b": 4},
            "No variable is tied; 2 layers are called several times, which needs no tie: "
            "a (2), b (4).",
        ),
    ],
    ids=str,
)
def test_layers_that_are_called_several_times(tmp_path, times, told):
    for name in "model.keras", "model.h5":
        called(**times).save(tmp_path / name)
        result = CliRunner().invoke(main, ["plan", str(tmp_path / name), "--json"])
        counted = {layer: count for layer, count in times.items() if count > 1 and layer != "relu"}
        assert json.loads(result.output)["calls"] == counted
        assert told in CliRunner().invoke(main, ["plan", str(tmp_path / name)]).output.splitlines()


def test_calls_in_a_model_that_is_called_itself(tmp_path):
    inner = called("inner", a=2)
    given = keras.Input((4,))
    keras.Model(given, inner(inner(inner(given)))).save(tmp_path / "model.keras")
    assert files.plan(tmp_path / "model.keras").calls == {"inner": 3, "inner/a": 2}


def test_variables_without_a_state_are_told_of_once(tmp_path):
    """As of layers that were frozen while the optimizer was built, and are no more."""
    dense = [L.Dense(size, name=f"dense{size}") for size in (2, 3, 4)]
    model = keras.Sequential([keras.Input((5,)), *dense, L.BatchNormalization(), L.Dense(1)])
    for layer in model.layers[1:4]:
        layer.trainable = False
    model.compile("adam", "mse")
    model.fit(np.ones((4, 5)), np.ones((4, 1)), verbose=0)
    for layer in model.layers:
        layer.trainable = True
        for one in layer.trainable_variables:
            one.assign(np.random.RandomState(len(one.path)).rand(*one.shape))
    model.save(tmp_path / "model.h5")
    notes = [note for note in files.plan(tmp_path / "model.h5").notes if "state" in note]
    assert notes == [
        "The optimizer has no state of some variables, and no others equal them: 1 of shape "
        "(2, 3), 1 of shape (3,), 1 of shape (3, 4), 3 of shape (4,). They were frozen while it "
        "was used, or tied and changed since."
    ]


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_layers_are_named_whose_random_numbers_begin_anew(tmp_path, name):
    """Where there is a training to go on with, and Keras saved it, which does not save these."""
    given = tensor = keras.Input((5, 4))
    for layer in (
        L.Dropout(0.5, name="drop"),
        L.Dropout(0.0, name="nothing"),
        L.GaussianNoise(0.5, name="noise"),
        L.LSTM(4, dropout=0.5, return_sequences=True, name="lstm"),
        L.GRU(4, return_sequences=True, name="gru"),
    ):
        tensor = layer(tensor)
    tensor = L.MultiHeadAttention(1, 2, dropout=0.5, name="heads")(tensor, tensor)
    model = keras.Model(given, tensor)
    model.compile("adam", "mse")
    told = "The file does not hold the state of random numbers, which begin anew: "
    model.save(path := tmp_path / name)
    assert files.plan(path).notes == ()
    model.train_on_batch(np.ones((1, 5, 4)), np.ones((1, 5, 4)))
    model.save(path)
    assert files.plan(path).notes == (f"{told}drop, noise, lstm, heads.",)
    tiedio.save_tied(model, tmp_path / "tied.keras")
    assert files.plan(tmp_path / "tied.keras").notes == ()


def test_a_file_without_names_is_told_to_take_those_of_layers(tmp_path):
    model = called(a=1, b=1)
    model.save_weights(tmp_path / "apart.weights.h5")
    (note,) = files.plan(tmp_path / "apart.weights.h5").notes
    assert note.startswith("Nothing names its variables. `--tie LAYER=LAYER` ties two layers")
    model.layers[2].kernel.assign(model.layers[1].kernel)
    model.save_weights(tmp_path / "equal.weights.h5")
    assert files.plan(tmp_path / "equal.weights.h5").notes == ()


# A config that is given


def config_of(path):
    with h5py.File(path) as file:
        return json.loads(file.attrs["model_config"])


@pytest.mark.parametrize("writer", ["keras_2_2_4", "tf_2_8", "keras_3_15"])
def test_the_config_of_another_model_is_refused(writer):
    """Of the files in a folder, some have a model of the same layers: they differ by ties."""
    (weights,) = (FIXTURES / writer).glob("two_paddings.weights.h5")
    for path in (FIXTURES / writer).glob("*[!s].h5"):
        if path.name.startswith(("two_paddings", "resaved", "diverged", "bare_names")):
            files.plan(weights, config=config_of(path))
        else:
            with pytest.raises(errors.ArgumentError, match="is not that of the model in"):
                files.plan(weights, config=config_of(path))


@pytest.mark.parametrize("name", ["x.h5", "x.weights.h5"])
def test_nothing_is_said_of_an_optimizer_that_a_file_does_not_have(name, tmp_path):
    """Also if the config that is given says how its model was compiled."""
    model = called(a=1, b=1)
    path = weights_of(model, tmp_path / name)
    model.compile("adam", "mse")
    config = json.loads(model.to_json())
    assert "adam" in json.dumps(config["compile_config"]).lower()
    done = files.migrate(path, tmp_path / "new.keras", config=config)
    assert done.notes == ()
    loaded = tiedio.load_tied(done.target)
    assert int(loaded.optimizer.iterations) == 0 and loaded.compiled
    assert all(map(np.array_equal, loaded.get_weights(), model.get_weights()))


def weights_of(model, path):
    """Saves weights alone: in the layout of Keras 2, which goes by names, or by place."""
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
        return path
    model.save(path.with_name("whole.h5"))
    with h5py.File(path.with_name("whole.h5")) as file, h5py.File(path, "w") as weights:
        weights.attrs.update(file["model_weights"].attrs)
        for layer in file["model_weights"]:
            file["model_weights"].copy(layer, weights)
    return path


@pytest.mark.parametrize(
    ("name", "of_others"),
    [("x.weights.h5", "no more layers. Received: `d`"), ("x.h5", "layers `b`. Received: `c`, `d`")],
)
def test_what_does_not_fit_is_named(tmp_path, name, of_others):
    path = weights_of(called(a=1, b=1), tmp_path / name)
    narrower = json.loads(called(a=1, b=1).to_json())
    narrower["config"]["layers"][1]["config"]["units"] = 3
    for config, told in (
        (called(a=1, c=1, d=1).to_json(), of_others),
        (called(a=1).to_json(), "layers `b`. Received: none"),
        (called(a=1, b=1, c=1).to_json(), "no more layers. Received: `c`"),
        (json.dumps(narrower), "`a/kernel` of shape (4, 4). Received: `a` of 3"),
    ):
        with pytest.raises(errors.ArgumentError) as error:
            files.plan(path, config=json.loads(config))
        pin(
            error,
            errors.ArgumentError,
            f"The config that was given is not that of the model in `{path}`.\n"
            f"Expected: {told}.\n"
            "Pass the config of the model that was saved; its layers have the names of then.",
        )
    assert files.plan(path, config=json.loads(called(a=1, b=1).to_json())).proposals == ()
