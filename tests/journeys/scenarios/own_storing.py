"""Layers that store something else than their variables."""

import pathlib

import keras
import numpy as np

import tiedio

from .base import compiled, scenario, serializable, tied_pair


@serializable
class Motto(keras.layers.Layer):
    """A layer that keeps a text file beside its variables."""

    text = ""

    def call(self, inputs):
        return inputs

    def save_assets(self, folder):
        (pathlib.Path(folder) / "motto.txt").write_text(self.text)

    def load_assets(self, folder):
        self.text = (pathlib.Path(folder) / "motto.txt").read_text()


@serializable
class Rounded(keras.layers.Layer):
    """A layer that stores its kernel as an array of its own making."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], input_shape[-1]), name="kernel")

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.kernel)

    def save_own_variables(self, store):
        store["rounded"] = np.round(keras.ops.convert_to_numpy(self.kernel), 2)

    def load_own_variables(self, store):
        self.kernel.assign(store["rounded"])


@scenario
def rounded_when_stored():
    first, second = Rounded(), Rounded()
    model = keras.Sequential([keras.Input((4,)), first, second, keras.layers.Dense(2)])
    tiedio.tie(second, to=first)
    return compiled(model)


@scenario
def lora_on_one_layer():
    (first, _), model = tied_pair()
    first.enable_lora(2)
    return compiled(model)


@scenario
def lora_on_both_layers():
    (first, second), model = tied_pair()
    first.enable_lora(2)
    second.enable_lora(2)
    return compiled(model)


@scenario
def quantised_after_tying():
    """The kernels are separate from then on; the bias is still shared."""
    layers, model = tied_pair()
    for layer in layers:
        layer.quantize("int8")
    return compiled(model)


@scenario
def spectral_normalisation():
    layers = [keras.layers.Dense(4) for _ in range(2)]
    wrapped = keras.layers.SpectralNormalization(layers[1])
    model = keras.Sequential([keras.Input((4,)), layers[0], wrapped])
    tiedio.tie(wrapped.layer, to=layers[0], weights=("kernel",))
    return compiled(model)


@scenario
def adapted_normalisation():
    layers = [keras.layers.Dense(4) for _ in range(2)]
    norm = keras.layers.Normalization()
    norm.adapt(np.arange(20.0).reshape(5, 4))
    model = keras.Sequential([keras.Input((4,)), norm, *layers])
    tiedio.tie(layers[1], to=layers[0])
    return compiled(model)


def text():
    """A layer with a vocabulary, used in two models."""
    lookup = keras.layers.StringLookup(vocabulary=["a", "b", "c"], name="lookup")

    def part(name):
        words = keras.Input((1,), dtype="string")
        embedding = keras.layers.Embedding(5, 3)
        return keras.Model(words, keras.layers.Flatten()(embedding(lookup(words))), name=name)

    words = keras.Input((1,), dtype="string")
    parts = [part("one"), part("two")]
    tiedio.tie(parts[1].layers[2], to=parts[0].layers[2])
    return compiled(keras.Model(words, keras.layers.Add()([one(words) for one in parts])))


if keras.backend.backend() == "tensorflow":  # the only backend with strings
    scenario(text)
