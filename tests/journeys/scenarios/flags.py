"""What is frozen, and what a variable brings along from the layer that made it."""

import keras
import numpy as np

import tiedio

from .base import compiled, control, scenario, serializable, tied_pair
from .between_layers import two_paddings


@scenario
def frozen_owner():
    first, second = keras.layers.Dense(4), keras.layers.Dense(4)
    model = keras.Sequential([keras.Input((4,)), first, second, keras.layers.Dense(4)])
    first.trainable = False
    tiedio.tie(second, to=first)
    return compiled(model)


@scenario
def one_frozen_variable():
    model = two_paddings(tie=None)
    tiedio.tie(model.layers[2], to=model.layers[1], weights=("kernel",))
    model.layers[1].bias.trainable = False
    model.layers[1].kernel.trainable = False
    return compiled(model)


@scenario
def frozen_alias():
    (_, alias), model = tied_pair()
    alias.trainable = False
    return compiled(model)


@scenario
def one_frozen_then_the_other_unfrozen():
    (owner, alias), model = tied_pair()
    owner.trainable = False
    alias.trainable = False
    alias.trainable = True
    return compiled(model)


@scenario
def frozen_bias_of_a_tied_layer():
    (owner, _), model = tied_pair()
    owner.bias.trainable = False
    return compiled(model)


@scenario
def wishes_of_the_owner_which_comes_second():
    wishes = {
        "kernel_regularizer": "l1",
        "kernel_constraint": "non_neg",
        "kernel_initializer": "ones",
        "bias_initializer": "ones",
    }
    first, second = keras.layers.Dense(4), keras.layers.Dense(4, **wishes)
    model = keras.Sequential([keras.Input((4,)), first, second])
    tiedio.tie(first, to=second)
    return compiled(model)


@scenario
def policies_that_differ():
    first = keras.layers.Dense(4)
    second = keras.layers.Dense(4, dtype="mixed_bfloat16")
    model = keras.Sequential([keras.Input((4,)), first, second, keras.layers.Dense(2)])
    tiedio.tie(second, to=first)
    return compiled(model)


@serializable
class Backbone(keras.Model):
    """A subclassed model, whose config does not say what in it is frozen."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(6)
        self.norms = [keras.layers.BatchNormalization() for _ in range(2)]

    def build(self, input_shape):
        for layer in (self.dense, *self.norms):
            layer.build(input_shape)

    def call(self, inputs, training=False):
        for norm in self.norms:
            inputs = norm(self.dense(inputs), training=training)
        return inputs


@scenario
def frozen_inside_a_subclassed_model():
    model = Backbone()
    model.build((None, 6))
    tiedio.tie(model.norms[1], to=model.norms[0], weights=("gamma",))
    model.norms[0].moving_mean.assign(np.arange(6.0))
    model.norms[0].trainable = False
    return compiled(model)


@control
def frozen_and_untied():
    layers = [keras.layers.Dense(4) for _ in range(2)]
    layers[0].trainable = False
    return compiled(keras.Sequential([keras.Input((4,)), *layers]))
