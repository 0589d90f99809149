"""A model whose class has a say in how it is compiled goes on as it was compiled when saved."""

import copy

import keras
import numpy as np
import pytest
import scenarios
from scenarios.base import serializable, tied_pair

import tiedio
from tiedio import errors


@serializable
class Task(keras.Model):
    """Compiles itself, and has defaults of its own, as the tasks of KerasHub."""

    def __init__(self, **options):
        inputs = keras.Input((4,))
        first, second = (keras.layers.Dense(4, name=name) for name in ("first", "second"))
        super().__init__(inputs, second(first(inputs)), **options)
        tiedio.tie(second, to=first)
        self.compile()

    def compile(self, optimizer="auto", loss="auto", *, sampler="top_k", **options):
        if optimizer == "auto":
            optimizer = keras.optimizers.Adam(2e-5)
        super().compile(optimizer=optimizer, loss="mse" if loss == "auto" else loss, **options)
        self.sampler = sampler

    def get_config(self):
        return {"name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@serializable
class Terse(Task):
    """Its `compile` takes less than Keras' own."""

    def compile(self, optimizer="sgd", loss="mse"):
        super().compile(optimizer, loss)


@serializable
class Stubborn(Task):
    """Compiles as it likes."""

    def compile_from_config(self, config):
        self.compile()


@serializable
class Wrapped(Task):
    """Is told everything, and does something else with it."""

    def compile(self, optimizer="sgd", **options):
        super().compile(keras.optimizers.Adam(1e-3, epsilon=0.5), **options)


@serializable
class Obedient(Task):
    def get_compile_config(self):
        return {**super().get_compile_config(), "sampler": self.sampler}

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))


def given(kind, **options):
    model = kind()
    options = {"metrics": ["mae"], **options} if kind is not Terse else {}
    optimizer = keras.optimizers.Adam(1e-2, beta_2=0.9, clipnorm=0.05)
    model.compile(optimizer, "mae", **options)
    return model


@pytest.mark.often(1)
@pytest.mark.parametrize("name", ["x.keras", "folder", "x.h5"])
@pytest.mark.parametrize("kind", [Task, Terse, Obedient])
def test_a_model_that_compiles_itself_is_compiled_as_it_was(tmp_path, kind, name):
    model = given(kind)
    scenarios.train(model)
    tiedio.save_tied(model, tmp_path / name, zipped="." in name)
    loaded = tiedio.load_tied(tmp_path / name)
    assert loaded.optimizer.beta_2 == 0.9 and loaded.optimizer.clipnorm == 0.05
    assert loaded.loss == model.loss or type(loaded.loss) is type(model.loss)
    for _ in range(2):
        for a, b in zip(scenarios.state_of(model), scenarios.state_of(loaded), strict=True):
            assert a.tobytes() == b.tobytes()
        scenarios.train(model)
        scenarios.train(loaded)


def test_what_a_class_says_beside_it_comes_back(tmp_path):
    model = given(Obedient, sampler="greedy")
    tiedio.save_tied(model, tmp_path / "x.keras")
    assert tiedio.load_tied(tmp_path / "x.keras").sampler == "greedy"


def test_the_optimizer_that_keras_forgets_when_it_saves_to_hdf5(tmp_path):
    _, model = tied_pair()
    scenarios.train(scenarios.compiled(model, keras.optimizers.SGD(0.01, momentum=0.9)))
    model.save(tmp_path / "stock.h5")
    tiedio.save_tied(model, tmp_path / "tied.keras")
    loaded = tiedio.load_tied(tmp_path / "tied.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert scenarios.iterations_of(loaded) == scenarios.iterations_of(model) > 0


def test_a_rate_that_was_changed_is_state(tmp_path):
    model = given(Obedient)
    scenarios.train(model)
    model.optimizer.learning_rate = 0.125
    tiedio.save_tied(model, tmp_path / "x.keras")
    assert float(tiedio.load_tied(tmp_path / "x.keras").optimizer.learning_rate) == 0.125


@pytest.mark.parametrize(
    ("kind", "names", "expected", "received"),
    [
        (
            Stubborn,
            "`loss`, `metrics`, `optimizer/beta_2`, `optimizer/clipnorm`",
            "`loss` mae; `metrics` ['mae']; `optimizer/beta_2` 0.9; `optimizer/clipnorm` 0.05",
            "`loss` mse; `metrics` None; `optimizer/beta_2` 0.999; `optimizer/clipnorm` None",
        ),
        (
            Wrapped,
            "`optimizer/beta_2`, `optimizer/clipnorm`, `optimizer/epsilon`",
            "`optimizer/beta_2` 0.9; `optimizer/clipnorm` 0.05; `optimizer/epsilon` 1e-07",
            "`optimizer/beta_2` 0.999; `optimizer/clipnorm` None; `optimizer/epsilon` 0.5",
        ),
    ],
)
def test_what_a_class_does_otherwise_is_named(tmp_path, kind, names, expected, received):
    model = given(Task)
    model.name = "mine"
    scenarios.train(model)
    tiedio.save_tied(model, tmp_path / "x.keras")
    objects = {"tiedio_tests>Task": kind}
    with pytest.raises(errors.LoadError) as error:
        tiedio.load_tied(tmp_path / "x.keras", objects)
    assert str(error.value) == (
        f"Cannot compile `mine` as it was when saved: its class sets {names}.\n"
        f"Expected: {expected}. Received: {received}.\n"
        "Let the `compile_from_config` of its class use all that it is given, or pass "
        "`strict=False`."
    )
    with pytest.warns(tiedio.TiedioWarning, match="Cannot compile"):
        loaded = tiedio.load_tied(tmp_path / "x.keras", objects, strict=False)
    assert all(map(np.array_equal, loaded.get_weights(), model.get_weights()))
    with (
        tiedio.patch(),
        keras.saving.custom_object_scope(objects),
        pytest.warns(tiedio.TiedioWarning, match="Cannot compile"),
    ):
        copied = copy.deepcopy(model)  # which has no `strict`
    assert all(map(np.array_equal, copied.get_weights(), model.get_weights()))
