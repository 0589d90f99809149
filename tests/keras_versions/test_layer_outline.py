"""What a config alone tells of a model, compared with the model that Keras builds of it."""

import collections

import keras
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiedio.keras_versions import layer_outline
from tiedio.model.walk import walk

L = keras.layers

SEQUENCES = {
    "dense": lambda: [L.Dense(4), L.Dense(4, use_bias=False)],
    "einsum": lambda: [L.EinsumDense("abc,cd->abd", (4, 4), bias_axes="d")],
    "convolution": lambda: [L.Conv1D(4, 1), L.Conv1DTranspose(4, 1), L.SeparableConv1D(4, 1)],
    "depthwise": lambda: [L.DepthwiseConv1D(1), L.DepthwiseConv1D(1, use_bias=False)],
    "normalisation": lambda: [
        L.BatchNormalization(),
        L.BatchNormalization(scale=False, center=False),
        L.LayerNormalization(scale=False),
        L.GroupNormalization(2),
    ],
    "recurrent": lambda: [
        L.LSTM(4, return_sequences=True),
        L.GRU(4, return_sequences=True, use_bias=False),
        L.SimpleRNN(4, return_sequences=True),
        L.RNN(L.LSTMCell(4), return_sequences=True),
        L.RNN([L.GRUCell(4), L.SimpleRNNCell(4)], return_sequences=True),
    ],
    "both_ways": lambda: [
        L.Bidirectional(L.LSTM(2, return_sequences=True)),
        L.Bidirectional(
            L.GRU(2, return_sequences=True),
            backward_layer=L.SimpleRNN(2, return_sequences=True, go_backwards=True),
        ),
    ],
    "wrapped": lambda: [L.TimeDistributed(L.Dense(4)), L.SpectralNormalization(L.Dense(4))],
    "bare": lambda: [L.PReLU(), L.Dropout(0.5), L.LeakyReLU(), L.Activation("relu")],
    "frozen": lambda: [L.Dense(4, trainable=False), L.BatchNormalization(trainable=False)],
}


def pictures():
    inputs = keras.Input((8, 8, 2))
    outputs = L.Conv2D(4, 3)(inputs)
    for layer in (
        L.DepthwiseConv2D(3),
        L.SeparableConv2D(4, 3, use_bias=False),
        L.Conv2DTranspose(4, 3),
        L.PReLU(shared_axes=[1, 2]),
        L.MaxPooling2D(),
        L.BatchNormalization(),
    ):
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def films():
    inputs = keras.Input((3, 8, 8, 2))
    return keras.Model(inputs, L.ConvLSTM2D(4, 3)(inputs))


def volumes():
    inputs = keras.Input((4, 4, 4, 2))
    return keras.Model(inputs, L.Conv3DTranspose(4, 2)(L.Conv3D(4, 2)(inputs)))


def attention():
    inputs = keras.Input((4, 4))
    first = L.MultiHeadAttention(2, 2)(inputs, inputs)
    return keras.Model(inputs, L.MultiHeadAttention(2, 2, use_bias=False)(first, inputs))


def words():
    inputs = keras.Input((4,), dtype="int32")
    return keras.Model(inputs, L.Embedding(8, 4)(inputs))


def adapted():
    given_values = L.Normalization(mean=0.5, variance=2.0)
    return keras.Sequential([keras.Input((4,)), L.Normalization(), given_values, L.Dense(2)])


def in_sequence(layers):
    return keras.Sequential([keras.Input((4, 4)), *layers])


def config_of(model):
    return {"class_name": type(model).__name__, "config": model.get_config()}


def seen(model):
    """What the outline says: by inner_path, names in the order of storing, and what trains."""
    parts = [part for held in layer_outline.layers(config_of(model)).values() for part in held]
    return {
        part.inner_path: (part.name, part.variables and list(part.variables), set(part.trainable))
        for part in parts
        if part.variables != ()
    }


def built(model):
    """The same of the model itself, as Keras stores it."""
    found = walk(model)
    held = collections.defaultdict(dict)
    for place, variable in found.stored_places.items():
        number = int(place.dataset_path.rpartition("/")[2])
        held[place.inner_path][number] = variable
    names = names_of(model)
    return {
        path: (
            names[path],
            [found[number].name for number in sorted(found)],
            {one.name for one in found.values() if one.trainable},
        )
        for path, found in held.items()
        if path and not path.startswith("seed")
    }


def names_of(model):
    """The names that lead to each part: layers by their own, parts of a layer by hand."""
    names = {}
    for path, layer in walk(model).layers.items():
        parents = [names[one] for one in sorted(names, key=len) if path.startswith(f"{one}/")]
        above = parents[-1] if parents else ""
        attribute = path.rpartition("/")[2]
        called = {
            "cell": "",
            "layer": "",
            "forward_layer": "forward",
            "backward_layer": "backward",
            "query_dense": "query",
            "key_dense": "key",
            "value_dense": "value",
            "output_dense": "output",
        }.get(attribute, layer.name)
        names[path] = "/".join(filter(None, (above, called))) if path else ""
    return names


def check(model):
    expected = built(model)
    found = seen(model)
    unknown = {path for path, (_, names, _) in found.items() if names is None}
    assert unknown <= {path for path in expected if "spectral_normalization" in path}
    assert len(expected) > len(unknown)
    for path in unknown:  # it stores the kernel of its layer once more
        expected[path] = (expected[path][0], None, set())
    assert found == expected


@pytest.mark.parametrize("name", SEQUENCES)
def test_it_sees_what_keras_builds(name):
    check(in_sequence(SEQUENCES[name]()))


@pytest.mark.parametrize("make", [pictures, films, volumes, attention, words, adapted])
def test_it_sees_what_keras_builds_of_other_inputs(make):
    check(make())


@pytest.mark.seldom
@settings(max_examples=15)
@given(st.lists(st.tuples(st.sampled_from(sorted(SEQUENCES)), st.integers(0, 2)), max_size=4))
def test_it_sees_what_keras_builds_of_models_in_models(parts):
    """Any of them, at any depth, several of one class and of one name."""
    layers = [L.Dense(4, name="named")]
    for name, depth in parts:
        inner = SEQUENCES[name]()
        for _ in range(depth):
            inner = [in_sequence(inner)]
        layers += inner
    inputs = outputs = keras.Input((4, 4))
    for layer in layers:
        outputs = layer(outputs)
    check(keras.Model(inputs, outputs))


def test_the_order_of_layers_is_that_of_the_config():
    model = keras.Sequential([keras.Input((4,)), L.Dense(4, name="z"), L.Dense(4, name="a")])
    assert list(layer_outline.layers(config_of(model)))[-2:] == ["z", "a"]


def test_of_an_unknown_class_it_says_that_it_does_not_know():
    config = {"config": {"layers": [{"class_name": "mine>Mine", "config": {"name": "mine"}}]}}
    (part,) = layer_outline.layers(config)["mine"]
    assert (part.inner_path, part.variables) == ("layers/mine", None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["class_name", "config", "layers", "name", "layer", "cell", "cells", "trainable"]
            ),
            inner,
            max_size=4,
        )
        | st.sampled_from(["Bidirectional", "RNN", "LSTM", "Functional", "MultiHeadAttention"])
    ),
    max_leaves=9,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["class_name", "config"]), JSON))
def test_no_config_is_too_strange(config):
    assert isinstance(layer_outline.layers(config), dict)
