"""Callbacks that save several models, and go on with them, in the place of the fitted one."""

import contextlib
import functools
import sys

import adversaries
import keras
import numpy as np
import pytest
import scenarios
from adversaries import build, fit, is_whole, loop, state_of
from checkout import start
from pinning import pin

import tiedio
from tiedio import errors


def interrupt():
    raise KeyboardInterrupt


def bit_equal(ours, theirs):
    assert len(ours) == len(theirs)
    return all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))


class Judge(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = [3.0, 1.0, 2.0, 2.0][epoch]


def stopping():
    """Callbacks that go back to the weights of the second epoch."""
    options = {"monitor": "score", "mode": "min", "patience": 9, "restore_best_weights": True}
    return [Judge(), keras.callbacks.EarlyStopping(**options)]


@functools.cache
def uninterrupted(train=fit, judged=True):
    """The state after a run that nothing interrupted."""
    models = build()
    train(models, stopping() if judged else [])
    return state_of(models)


def backup_of(models, folder, **options):
    return tiedio.TiedBackupAndRestore(folder / "backup", models=models, **options)


def interrupted(folder, train=fit, **options):
    """Trains until something goes wrong, in the middle of the third epoch."""
    models = build()
    with pytest.raises(KeyboardInterrupt):
        train(models, [*stopping(), backup_of(models, folder, **options)], interrupt)


@pytest.mark.parametrize(
    ("train", "damaged", "epochs"),
    [pytest.param(fit, True, [1, 2, 3], marks=pytest.mark.slow), (loop, False, [2, 3])],
)
def test_all_models_go_on_as_if_nothing_was_interrupted(tmp_path, train, damaged, epochs):
    """Those are built without their ties, and named in another order.

    The best weights are those of the fitted model, whatever is saved with it.
    """
    interrupted(tmp_path, train, double_checkpoint=True)
    newest = tmp_path / "backup" / "latest.weights.h5"
    newest.write_bytes(newest.read_bytes()[: -99 if damaged else None])
    models = build(tie=False)
    backup = backup_of(dict(reversed(models.items())), tmp_path, double_checkpoint=True)
    warned = pytest.warns(tiedio.TiedioWarning, match="backup before it is taken")
    with warned if damaged else contextlib.nullcontext():
        assert train(models, [*stopping(), backup]) == epochs
    assert is_whole(models)
    assert bit_equal(state_of(models), uninterrupted(train))
    assert not (tmp_path / "backup").exists()
    assert models["gan"]._initial_epoch is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kills")
def test_a_killed_run_goes_on_with_all_models(tmp_path):
    codes = [start(adversaries, tmp_path).wait() for _ in range(2)]
    assert codes == [-9, 0]
    with np.load(tmp_path / "state.npz") as saved:
        assert bit_equal([*saved.values()], uninterrupted(judged=False))


class Adversaries(keras.Model):
    """As Keras' own examples train them: never called, with optimizers as attributes."""

    def __init__(self, generator, discriminator):
        super().__init__(name="adversaries")
        self.generator, self.discriminator = generator, discriminator
        self.built = keras.backend.backend() == "torch"  # where `fit` would call it else

    def compile(self):
        super().compile(run_eagerly=True)
        self.g_optimizer = keras.optimizers.Adam()
        self.d_optimizer = keras.optimizers.SGD(momentum=0.9)

    def train_step(self, data):
        for name in "generator", "discriminator":
            model = getattr(self, name)
            variables = [*model.variables[:2]]
            gradients = [keras.ops.add(variable, 0.1) for variable in variables]  # say
            getattr(self, f"{name[0]}_optimizer").apply(gradients, variables)
        return {"loss": keras.ops.sum(model.variables[0])}


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="`fit` passes a state there")
def test_a_class_that_trains_its_models_itself(tmp_path):
    def made(tie=True):
        parts = build(tie)
        parts["discriminator"].trainable = True
        whole = Adversaries(parts["generator"], parts["discriminator"])
        whole.compile()
        return {"whole": whole, "mirror": parts["mirror"], "generator": parts["generator"]}

    def train(models, epochs, stop=None, callbacks=()):
        whole = models["whole"]
        callbacks = [*callbacks, adversaries.Opponent({"discriminator": whole}, stop)]
        options = {"batch_size": 4, "verbose": 0, "callbacks": callbacks, "epochs": epochs}
        return whole.fit(adversaries.noise(), **options).epoch

    def state(models):
        whole = models["whole"]
        optimizers = whole.g_optimizer.variables, whole.d_optimizer.variables
        return scenarios.arrays_of([*whole.variables, *optimizers[0], *optimizers[1]])

    expected, killed, models = made(), made(), made(tie=False)
    train(expected, 4)
    with pytest.raises(KeyboardInterrupt):
        train(killed, 4, interrupt, [backup_of(killed, tmp_path)])
    assert train(models, 4, callbacks=[backup_of(models, tmp_path)]) == [2, 3]
    assert models["generator"].layers[0].kernel is models["mirror"].layers[0].kernel
    assert bit_equal(state(models), state(expected))
    del models["whole"]
    with pytest.raises(ValueError) as error:
        train({"whole": expected["whole"]}, 1, callbacks=[backup_of(models, tmp_path)])
    pin(
        error,
        errors.ArgumentError,
        "Cannot back up the training of `adversaries`, which is not among `models`.\n"
        "Expected: this model, or one that holds it. Received: `generator`, `mirror`.\n"
        "Pass it, too: what it holds beside these, as its optimizers, goes on with it.",
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("best.keras", {"save_best_only": True, "initial_value_threshold": 1e9}),
        ("batch.weights.h5", {"save_weights_only": True, "save_freq": adversaries.STEPS}),
    ],
)
def test_checkpoints_hold_the_models_that_are_named(tmp_path, name, options):
    """And no other; the fitted one is asked for what is best."""
    models = build()
    saved = {name: models[name] for name in ("generator", "discriminator")}
    checkpoint = tiedio.TiedModelCheckpoint(tmp_path / name, "loss", models=saved, **options)
    fit(models, [checkpoint], epochs=1)
    assert checkpoint.model is models["gan"]
    if "save_weights_only" in options:
        again = build(tie=False)
        loaded = {name: again[name] for name in saved}
        tiedio.load_tied_weights(loaded, tmp_path / name)
    else:
        loaded = tiedio.load_tied(tmp_path / name)
    assert bit_equal(state_of(loaded), state_of(saved))


def test_models_that_cannot_be_saved(tmp_path):
    """Also where they share nothing, and Keras would save what it is asked to."""
    models = build()
    unbuilt = keras.Sequential([keras.layers.Dense(2)], name="unbuilt")
    apart = {name: models[name] for name in ("mirror", "discriminator")}
    for several, path, kind, message in (
        ({**models, "unbuilt": unbuilt}, "a.keras", errors.ModelNotBuiltError, "`unbuilt` has no"),
        (apart, "a.h5", errors.SaveError, "Expected: one model"),
    ):
        with pytest.raises(kind, match=message):
            fit(models, [tiedio.TiedModelCheckpoint(tmp_path / path, models=several)], epochs=1)
    with pytest.raises(errors.ModelNotBuiltError, match="before training"):
        fit(models, [backup_of({**models, "unbuilt": unbuilt}, tmp_path)], epochs=1)
    assert [*tmp_path.iterdir()] == []


def test_the_backup_of_other_models_is_kept(tmp_path):
    interrupted(tmp_path, loop)
    before = {path.name: path.read_bytes() for path in (tmp_path / "backup").iterdir()}
    models = build()
    for other in {"gan": models["gan"]}, None:
        backup = tiedio.TiedBackupAndRestore(tmp_path / "backup", models=other)
        with pytest.raises(errors.LoadError, match="does not hold what was passed"):
            loop(models, [backup])
    assert {path.name: path.read_bytes() for path in (tmp_path / "backup").iterdir()} == before


def test_ties_of_several_are_checked():
    layers = [keras.layers.Dense(4, name=name) for name in ("one", "other")]
    models = {layer.name: keras.Sequential([keras.Input((4,)), layer]) for layer in layers}
    tiedio.tie(layers[1], to=layers[0])
    data = np.ones((4, 4), "float32")
    models["one"].compile("sgd", "mse")
    for ties in (None, tiedio.find_ties(models)):
        check = tiedio.AssertTied(ties, models=models)
        models["one"].fit(data, data, callbacks=[check], verbose=0)
    with pytest.warns(tiedio.TiedioWarning, match="starts anew"):
        tiedio.untie(layers[1])
    with pytest.raises(tiedio.TiedioError, match=r"`other/other/kernel`.* are not tied"):
        models["one"].fit(data, data, callbacks=[check], verbose=0)


@pytest.mark.parametrize("kind", [tiedio.TiedModelCheckpoint, tiedio.TiedBackupAndRestore])
def test_models_are_given_by_their_name(kind, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    with pytest.raises(errors.ArgumentError, match="Pass models as `models="):
        kind(tmp_path / "model.keras", {"model": model})
