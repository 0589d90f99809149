"""Plain layers that show another layer's variable transposed."""

import keras

import tiedio

from .base import compiled, scenario


@scenario
def autoencoder_of_plain_layers():
    encoder = keras.layers.Dense(3, activation="tanh", name="encoder")
    decoder = keras.layers.Dense(6, name="decoder")
    model = keras.Sequential([keras.Input((6,)), encoder, decoder])
    tiedio.tie(decoder, to=encoder, weights=["kernel"], transpose=True)
    return compiled(model)


@scenario
def convolutional_autoencoder_of_plain_layers():
    down = keras.layers.Conv2D(4, 3, padding="same", activation="tanh")
    up = keras.layers.Conv2D(2, 3, padding="same", kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((6, 6, 2)), down, up])
    tiedio.tie(up, to=down, weights=["kernel"], transpose=(0, 1, 3, 2))
    return compiled(model, keras.optimizers.SGD(0.1, momentum=0.9))


@scenario
def language_model_with_a_plain_head():
    table = keras.layers.Embedding(7, 4, name="table")
    head = keras.layers.Dense(7, use_bias=False, name="head")
    words = keras.Input((5,), dtype="int32")
    hidden = keras.layers.LSTM(4, return_sequences=True)(table(words))
    model = keras.Model(words, head(hidden))
    tiedio.tie(head, to=table, weights={"kernel": "embeddings"}, transpose=True)
    return compiled(model, keras.optimizers.AdamW(0.01))


@scenario
def three_views_of_one_table():
    """Two heads of one kind, an `EinsumDense`, and a second table that is tied as it is."""
    table, same = keras.layers.Embedding(7, 4), keras.layers.Embedding(7, 4)
    heads = [keras.layers.Dense(7) for _ in range(2)]
    heads.append(keras.layers.EinsumDense("abc,cd->abd", (None, 7), bias_axes="d"))
    words, others = (keras.Input((5,), dtype="int32") for _ in range(2))
    hidden = keras.layers.Dense(4, "tanh")(table(words) + same(others))
    model = keras.Model([words, others], [head(hidden) for head in heads])
    names = {"kernel": "embeddings"}
    for head in heads:
        tiedio.tie(head, to=table, weights=names, transpose=True)
    tiedio.tie(same, to=table)
    model = keras.Model(model.inputs, keras.layers.Concatenate()(model.outputs))
    return compiled(model, "sgd")
