"""What else Keras does with a model that `load_tied` loaded."""

import keras
import numpy as np
import pytest

import tiedio

DATA = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


@pytest.fixture
def model(tmp_path):
    layers = [keras.layers.Dense(4, name=name) for name in ("encoder", "decoder")]
    made = keras.Sequential([keras.Input((4,)), *layers])
    tiedio.tie(layers[1], to=layers[0])
    tiedio.save_tied(made, tmp_path / "model.keras")
    return tiedio.load_tied(tmp_path / "model.keras")


@pytest.fixture
def trip(tmp_path):
    def there_and_back(model):
        tiedio.save_tied(model, tmp_path / "again.keras")
        return tiedio.load_tied(tmp_path / "again.keras")

    return there_and_back


def outputs_of(model):
    return keras.ops.convert_to_numpy(model(DATA)).tobytes()


def test_weights_are_counted_and_listed_once(model):
    assert model.count_params() == 20
    assert len(model.get_weights()) == len(model.weights) == 2
    encoder, decoder = model.layers
    decoder.set_weights([np.ones((4, 4)), np.zeros(4)])
    assert np.array_equal(encoder.get_weights()[0], np.ones((4, 4)))
    assert encoder.kernel is decoder.kernel


def test_freezing_one_layer_freezes_what_it_shares(model, trip):
    model.layers[0].trainable = False
    assert model.trainable_weights == []
    assert trip(model).trainable_weights == []


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have:UserWarning")
def test_quantizing_gives_each_layer_a_kernel_and_tie_makes_them_one_again(model, trip):
    ties = tiedio.find_ties(model)
    model.quantize("int8")
    for one in (model, trip(model)):
        with pytest.raises(tiedio.TiedioError) as error:
            tiedio.assert_tied(one, ties)
        assert str(error.value).startswith("`decoder/kernel` are not tied.")
    encoder, decoder = model.layers
    before = outputs_of(model)
    tiedio.tie(decoder, to=encoder)
    assert outputs_of(model) == before
    loaded = trip(model)
    encoder, decoder = loaded.layers
    assert encoder._kernel is decoder._kernel
    assert encoder.kernel_scale is decoder.kernel_scale
    assert outputs_of(loaded) == before


def test_lora_on_one_layer_keeps_the_tie_and_freezes_it(model, trip):
    encoder, decoder = model.layers
    decoder.enable_lora(2)
    assert encoder._kernel is decoder._kernel
    assert not encoder._kernel.trainable
    decoder.lora_kernel_b.assign(np.ones((2, 4)))
    loaded = trip(model)
    tiedio.assert_tied(loaded, tiedio.find_ties(model))
    assert outputs_of(loaded) == outputs_of(model)
