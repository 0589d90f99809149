"""How a load goes about it: what it asks of users' code, and where its warnings point."""

import gc

import h5py
import keras
import numpy as np
import pytest

import tiedio
from tiedio.saving import loading

ONE = np.ones((2, 4), "float32")


@keras.saving.register_keras_serializable("tiedio_tests")
class Asked(keras.layers.Dense):
    """Counts how often it is asked for what it stores."""

    times = 0

    def save_own_variables(self, store):
        Asked.times += 1
        super().save_own_variables(store)


def model():
    made = keras.Sequential([keras.Input((4,)), *(Asked(4) for _ in range(8))])
    made.compile(optimizer="adam", loss="mse")
    made.fit(ONE, ONE, verbose=0)
    return made


@pytest.fixture
def saved(tmp_path):
    made = model()
    tiedio.save_tied(made, tmp_path / "model.keras")
    tiedio.save_tied_weights(made, tmp_path / "model.weights.h5")
    made.save(tmp_path / "stock.h5")
    return tmp_path


@pytest.fixture
def walks(monkeypatch):
    """Counts walks over a model."""
    counted = []
    walk = loading.walk
    monkeypatch.setattr(loading, "walk", lambda *args: counted.append(args) or walk(*args))
    return counted


@pytest.mark.parametrize("name", ["model.keras", "stock.h5", "model.weights.h5"])
def test_layers_are_asked_once_for_what_they_store(saved, name):
    other = model()
    Asked.times = 0
    if name.endswith(".weights.h5"):
        tiedio.load_tied_weights(other, saved / name)
    else:
        tiedio.load_tied(saved / name)
    assert Asked.times <= 10


@pytest.mark.parametrize("name", ["model.keras", "stock.h5"])
def test_a_model_is_walked_over_twice(saved, walks, name):
    tiedio.load_tied(saved / name)
    assert len(walks) <= 2


def tie_after_training(made, _):
    tiedio.tie(made.layers[1], to=made.layers[0])


def load_with_another_optimizer(made, folder):
    made.optimizer.build(made.trainable_variables[:2])
    made.layers[0].trainable = False
    made.compile(optimizer="sgd", loss="mse")
    tiedio.load_tied_weights(made, folder / "model.weights.h5", strict=False)


def load_without_a_slot(made, folder):
    with h5py.File(folder / "stock.h5", "r+") as file:
        slots = file["optimizer_weights"].attrs
        slots["weight_names"] = list(slots["weight_names"][:-1])
    tiedio.load_tied(folder / "stock.h5", strict=False)


def shards_by_another_name(made, folder):
    tiedio.save_tied_weights(made, folder / "some.weights.h5", max_shard_size=1)


@pytest.mark.often(2)
@pytest.mark.parametrize(
    "act",
    [
        tie_after_training,
        load_with_another_optimizer,
        load_without_a_slot,
        shards_by_another_name,
    ],
)
def test_warnings_point_at_the_line_that_called(saved, act):
    made = model()
    with pytest.warns(tiedio.TiedioWarning) as caught:
        act(made, saved)
    (warning,) = (one for one in caught if one.category is tiedio.TiedioWarning)
    assert warning.filename == __file__
    first = act.__code__.co_firstlineno
    assert first < warning.lineno <= first + 6  # inside `act`, and not who called that


@keras.saving.register_keras_serializable("tiedio_tests")
class BuiltInPart(keras.Model):
    """A class that leaves a layer to be built by its first call."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = keras.layers.Dense(4), keras.layers.Dense(4, name="second")

    def build(self, input_shape):
        self.first.build(input_shape)
        self.built = True

    def call(self, inputs):
        return self.second(self.first(inputs))


@pytest.mark.parametrize("save", [tiedio.save_tied, keras.Model.save])
@pytest.mark.parametrize("strict", [False, True])
def test_a_class_that_leaves_layers_unbuilt(tmp_path, save, strict):
    made = BuiltInPart()
    made(ONE)
    save(made, tmp_path / "model.keras")
    advice = r"Let the `build` of the class that has them build all of its layers\.$"
    with pytest.raises(tiedio.errors.LoadError, match=f"Cannot load .* `second`.*\n.*\n{advice}"):
        tiedio.load_tied(tmp_path / "model.keras", strict=strict)


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_looked_for_as_before(tmp_path, enabled):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    seen = []
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading.Loading, "read", lambda *_: seen.append(gc.isenabled()) or 1 / 0)
            tiedio.save_tied(model(), tmp_path / "a.keras")
            assert gc.isenabled() == enabled
            with pytest.raises(ZeroDivisionError):
                tiedio.load_tied(tmp_path / "a.keras")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False]
