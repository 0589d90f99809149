"""What looks tied and is not."""

import keras

from .base import compiled, control


@control
def equal_but_untied():
    layers = [keras.layers.Dense(4, kernel_initializer="ones") for _ in range(3)]
    return compiled(keras.Sequential([keras.Input((4,)), *layers]))


@control
def one_layer_called_twice():
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(4)
    return compiled(keras.Model(inputs, layer(layer(inputs))))


@control
def equal_names():
    """Layers of one name in two models."""
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="twin")])
    inputs = keras.Input((4,))
    return compiled(keras.Model(inputs, keras.layers.Dense(4, name="twin")(inner(inputs))))


@control
def no_layer_with_another():
    return compiled(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
