"""A model that was trained, and then quantized: its optimizer knows variables that are gone."""

import io

import keras
import numpy as np
import pytest
import scenarios

import tiedio
from tiedio.errors import SaveError, TiedioWarning

DATA = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")

pytestmark = pytest.mark.filterwarnings(
    "ignore:Layer .* does not have a `quantize` method:UserWarning"
)


def quantized(quantize=keras.Model.quantize):
    layers = [keras.layers.Dense(4, name=name) for name in ("encoder", "decoder", "other")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    tiedio.tie(layers[1], to=layers[0])
    model.compile("adam", "mse")
    model.fit(DATA, DATA, verbose=0)
    quantize(model, "int8")
    return model


def save_patched(model, path):
    with tiedio.patch():
        model.save(path)


@pytest.mark.parametrize(
    ("quantize", "save", "ending"),
    [
        (keras.Model.quantize, tiedio.save_tied, "keras"),
        (tiedio.quantize_tied, save_patched, "keras"),
        (tiedio.quantize_tied, tiedio.save_tied, "h5"),
    ],
)
def test_it_is_saved_without_its_optimizer(tmp_path, quantize, save, ending):
    model, path = quantized(quantize), tmp_path / f"x.{ending}"
    gone = "`sequential.*/encoder/kernel`, `sequential.*/other/kernel`, which the model does not"
    with pytest.warns(TiedioWarning, match=f"of `optimizer` is not saved: it trained {gone} hold"):
        save(model, path)
    loaded = tiedio.load_tied(path)
    tiedio.assert_tied(loaded, tiedio.find_ties(model))
    assert np.array_equal(loaded.predict(DATA, verbose=0), model.predict(DATA, verbose=0))
    assert int(loaded.optimizer.iterations) == 0
    loaded.fit(DATA, DATA, verbose=0)  # its biases, as Keras does
    assert len(loaded.optimizer.variables) == 2 + 2 * len(loaded.trainable_variables) == 6
    tiedio.save_tied(loaded, path)
    assert int(tiedio.load_tied(path).optimizer.iterations) == 1


def test_its_weights_are_saved_too():
    model, other, file = quantized(), quantized(), io.BytesIO()
    with pytest.warns(TiedioWarning, match="of `optimizer` is not saved"):
        tiedio.save_tied_weights(model, file)
    tiedio.load_tied_weights(other, file)
    assert np.array_equal(other.predict(DATA, verbose=0), model.predict(DATA, verbose=0))


def test_variables_that_were_replaced_by_hand_are_told_from_that():
    layers = [keras.layers.Dense(4, name=name) for name in ("first", "second", "third")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("adam", "mse")
    model.fit(DATA, DATA, verbose=0)
    layers[0].quantize("int8")
    with pytest.warns(TiedioWarning, match=r"it trained `sequential.*/first/kernel`, which"):
        tiedio.save_tied(model, io.BytesIO())
    scenarios.tie_by_hand(layers[2], layers[1], "_kernel")
    with pytest.raises(SaveError, match=r"Cannot save the optimizer state of .*/third/kernel`"):
        tiedio.save_tied(model, io.BytesIO())


def test_a_layer_that_does_not_say_that_its_parts_are_quantized(tmp_path):
    def build():
        inputs = keras.Input((4, 8))
        hidden = keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
        return keras.Model(inputs, keras.layers.Dense(3, name="dense")(hidden))

    model = build()
    tiedio.quantize_tied(model, "int8")
    with pytest.warns(tiedio.TiedioWarning, match="`attention/key`.* are quantized") as warned:
        tiedio.save_tied(model, tmp_path / "model.keras")
    assert "`dense`" not in str(warned[0].message)
    again = build()
    tiedio.quantize_tied(again, "int8")
    tiedio.load_tied_weights(again, tmp_path / "model.keras")
    data = np.ones((1, 4, 8), "float32")
    assert np.array_equal(again.predict(data, verbose=0), model.predict(data, verbose=0))
