"""One layer, or one model, in several places.

Stock Keras saves such models and cannot load most of them.
"""

import keras

from .base import compiled, scenario, serializable, train


def _part(shared, name):
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(4, activation="tanh")(shared(inputs)), name=name)


@scenario
def dense_then_inside_a_submodel():
    """keras#10898."""
    shared, inputs = keras.layers.Dense(4), keras.Input((4,))
    return compiled(keras.Model(inputs, _part(shared, "part")(shared(inputs))))


@scenario
def inside_a_submodel_then_dense():
    shared, inputs = keras.layers.Dense(4), keras.Input((4,))
    return compiled(keras.Model(inputs, shared(_part(shared, "part")(inputs))))


@scenario
def inside_a_sequential_model_and_out():
    shared, inputs = keras.layers.Dense(4), keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), shared, keras.layers.Dense(4)])
    return compiled(keras.Model(inputs, inner(shared(inputs))))


@scenario
def sequential_models_inside_each_other():
    shared = keras.layers.Dense(4)
    inner = keras.Sequential([keras.Input((4,)), shared])
    return compiled(keras.Sequential([keras.Input((4,)), inner, shared]))


@scenario
def distributed_over_time_then_plain():
    """keras#7116."""
    shared, series = keras.layers.Dense(4), keras.Input((3, 4))
    return compiled(keras.Model(series, shared(keras.layers.TimeDistributed(shared)(series))))


@scenario
def plain_then_distributed_over_time():
    shared, series = keras.layers.Dense(4), keras.Input((3, 4))
    return compiled(keras.Model(series, keras.layers.TimeDistributed(shared)(shared(series))))


@scenario
def one_cell_in_two_recurrent_layers():
    cell, series = keras.layers.GRUCell(4), keras.Input((3, 4))
    hidden = keras.layers.RNN(cell, return_sequences=True)(series)
    return compiled(keras.Model(series, keras.layers.RNN(cell)(hidden)))


@scenario
def one_cell_in_both_directions():
    series = keras.Input((3, 4))
    both = keras.layers.Bidirectional(keras.layers.LSTM(3))
    # Keras itself makes a copy of the cell.
    both.backward_layer._tracker.untrack(both.backward_layer.cell)
    both.backward_layer.cell = both.forward_layer.cell
    return compiled(keras.Model(series, both(series)))


@scenario
def one_cell_in_a_stack():
    cell, series = keras.layers.SimpleRNNCell(4), keras.Input((3, 4))
    stack = keras.layers.StackedRNNCells([cell, keras.layers.SimpleRNNCell(4), cell])
    return compiled(keras.Model(series, keras.layers.RNN(stack)(series)))


@serializable
class Residual(keras.layers.Layer):
    """A custom layer around layers that it is given, by name, in any containers."""

    def __init__(self, **layers):
        super().__init__(name=layers.pop("name", None), dtype=layers.pop("dtype", None))
        layers.pop("trainable", None)
        self.names = list(layers)
        for name, value in layers.items():
            setattr(self, name, value)

    def _inside(self):
        return [layer for name in self.names for layer in _flat(getattr(self, name))]

    def build(self, input_shape):
        for layer in self._inside():
            if not layer.built:
                layer.build(input_shape)

    def call(self, inputs):
        for layer in self._inside():
            inputs = inputs + layer(inputs)
        return inputs

    def get_config(self):
        inside = {
            name: keras.saving.serialize_keras_object(_plain(getattr(self, name)))
            for name in self.names
        }
        return {**super().get_config(), **inside}

    @classmethod
    def from_config(cls, config):
        return cls(**keras.saving.deserialize_keras_object(config))


def _flat(value):
    if isinstance(value, keras.Layer):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [layer for item in items for layer in _flat(item)]


def _plain(value):
    """Turns the containers that Keras tracks into Python's own."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [*map(_plain, value)]
    return value


@scenario
def given_to_two_custom_layers():
    shared = keras.layers.Dense(4)
    layers = [Residual(inner=shared), Residual(inner=shared, other=keras.layers.Dense(4))]
    return compiled(keras.Sequential([keras.Input((4,)), *layers]))


@scenario
def given_twice_to_one_custom_layer():
    shared = keras.layers.Dense(4)
    return compiled(keras.Sequential([keras.Input((4,)), Residual(one=shared, two=shared)]))


@scenario
def in_lists_dicts_and_tuples():
    shared, other = keras.layers.Dense(4), keras.layers.Dense(4)
    layers = [
        Residual(items=[other, shared]),
        Residual(items={"a": shared, "b": [other, {"c": shared}]}),
        Residual(items=(keras.layers.Dense(4), shared)),
    ]
    return compiled(keras.Sequential([keras.Input((4,)), *layers]))


@scenario
def two_submodels_with_one_layer():
    shared, inputs = keras.layers.Dense(4), keras.Input((4,))
    return compiled(keras.Model(inputs, _part(shared, "b")(_part(shared, "a")(inputs))))


@scenario
def sequential_model_of_anothers_layers():
    first = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4)])
    second = keras.Sequential([keras.Input((4,)), *first.layers, keras.layers.Dense(4)])
    inputs = keras.Input((4,))
    return compiled(keras.Model(inputs, second(first(inputs))))


@scenario
def discriminator_frozen_in_the_combined_model():
    """A GAN: generator, discriminator, and the two combined, all in one model."""
    generator = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)], name="generator")
    discriminator = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)], name="critic")
    train(compiled(discriminator))
    discriminator.trainable = False
    noise = keras.Input((4,))
    combined = compiled(keras.Model(noise, discriminator(generator(noise)), name="combined"))
    train(combined)
    real = keras.Input((4,))
    return compiled(keras.Model([real, noise], combined(noise) - discriminator(real)))


@scenario
def teacher_and_student_with_one_normalisation():
    shared, inputs = keras.layers.BatchNormalization(), keras.Input((4,))
    teacher, student = _part(shared, "teacher"), _part(shared, "student")
    teacher.layers[-1].trainable = False
    return compiled(keras.Model(inputs, teacher(inputs) - student(inputs)))


@scenario
def encoder_three_levels_deep():
    encoder = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)], name="encoder")
    wrapped = encoder
    for level in range(3):
        wrapped = _part(wrapped, f"level_{level}")
    inputs = keras.Input((4,))
    return compiled(keras.Model(inputs, [encoder(wrapped(inputs))][0]))


@scenario
def one_submodel_in_two_models():
    shared = _part(keras.layers.LayerNormalization(), "shared")
    inputs = keras.Input((4,))
    return compiled(keras.Model(inputs, _part(shared, "b")(_part(shared, "a")(inputs))))


@scenario
def one_dropout_in_two_models():
    """No variables, but a random state that both draw from."""
    shared, inputs = keras.layers.Dropout(0.5, seed=1), keras.Input((4,))
    first = _part(shared, "a")
    return compiled(keras.Model(inputs, _part(shared, "b")(first(shared(first(inputs))))))


@scenario
def called_twice_inside_and_outside():
    shared, inputs = keras.layers.Dense(4, activation="tanh"), keras.Input((4,))
    inner_inputs = keras.Input((4,))
    inner = keras.Model(inner_inputs, shared(shared(inner_inputs)))
    return compiled(keras.Model(inputs, shared(inner(shared(inner(inputs))))))
