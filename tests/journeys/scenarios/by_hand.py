"""Ties made by hand, as users make them in want of a better way."""

import keras

import tiedio

from .base import compiled, control, scenario, tie_by_hand, train
from .between_layers import TiedByItself, two_paddings


@scenario
def kernel_by_hand():
    return two_paddings(tie=lambda layer, to: tie_by_hand(layer, to, "_kernel"))


@scenario
def gamma_by_hand():
    inputs = keras.Input((4,))
    first, second = keras.layers.LayerNormalization(), keras.layers.LayerNormalization()
    model = keras.Model(inputs, second(keras.layers.Dense(4)(first(inputs))))
    tie_by_hand(second, first, "gamma")
    return compiled(model)


@control
def untied_after_a_tie_by_hand():
    model = gamma_by_hand()
    second = model.layers[-1]
    tiedio.untie(second)
    second.gamma.assign(second.gamma + 3.0)
    return compiled(model)


def _two_dense():
    layers = [keras.layers.Dense(4) for _ in range(2)]
    return layers, keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2)])


@scenario
def old_variable_left_tracked():
    """The second layer still lists, and trains by its regularizer, a kernel it does not use."""
    first, second = keras.layers.Dense(4), keras.layers.Dense(4, kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((4,)), first, second])
    second._tracker.unlock()
    second._kernel = first.kernel
    second._tracker.lock()
    return compiled(model)


@scenario
def set_past_the_tracker():
    (first, second), model = _two_dense()
    object.__setattr__(second, "_kernel", first.kernel)
    return compiled(model)


@scenario
def tied_after_compile():
    (first, second), model = _two_dense()
    compiled(model)
    tie_by_hand(second, first, "_kernel")
    return model


@scenario
def tied_after_training():
    (first, second), model = _two_dense()
    train(compiled(model))
    tie_by_hand(second, first, "_kernel")
    return compiled(model)


@scenario
def recurrent_kernel_by_hand():
    """Recurrent cells are stored by position."""
    series = keras.Input((4, 3))
    first, second = keras.layers.LSTM(3, return_sequences=True), keras.layers.LSTM(3)
    model = keras.Model(series, second(first(series)))
    tie_by_hand(second.cell, first.cell, "kernel")
    return compiled(model)


@scenario
def one_of_two_ties_of_a_class_undone():
    layer = TiedByItself()
    model = keras.Sequential([keras.Input((4,)), layer])
    tiedio.untie(layer.second, weights=("kernel",))
    layer.second.kernel.assign(layer.second.kernel + 1.0)
    return compiled(model)


@control
def ties_of_a_class_undone():
    layer = TiedByItself()
    model = keras.Sequential([keras.Input((4,)), layer])
    tiedio.untie(layer.second)
    return compiled(model)
