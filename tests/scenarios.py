"""Small models that share variables, one builder for each way of sharing.

Each builder returns a compiled model. `CONTROLS` must come back untied.
"""

import pathlib

import keras
import numpy as np

import tiedio


@keras.saving.register_keras_serializable("tiedio_tests")
class TiedAutoencoder(keras.Model):
    """A subclassed model whose own code shares nothing; the ties are made outside."""

    def __init__(self, width=6, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        # Named, because TensorFlow adds up three gradients in an order that depends on names,
        # and automatic names of layers inside a subclassed model are not in its config.
        self.encoder = keras.layers.Dense(width, activation="tanh", name="encoder")
        self.decoders = [keras.layers.Dense(width, name=f"decoder_{i}") for i in range(2)]

    def call(self, inputs):
        hidden = self.encoder(inputs)
        for decoder in self.decoders:
            hidden = decoder(hidden)
        return hidden

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("tiedio_tests")
class Mixture(keras.layers.Layer):
    """A custom layer with Keras' default storing, and weights in a list and a dict."""

    def build(self, input_shape):
        width = input_shape[-1]
        self.kernels = [self.add_weight(shape=(width, width), name=f"kernel_{i}") for i in range(2)]
        self.tables = {"scale": self.add_weight(shape=(width,), initializer="ones", name="scale")}

    def call(self, inputs):
        for kernel in self.kernels:
            inputs = keras.ops.matmul(inputs, kernel)
        return inputs * self.tables["scale"]


@keras.saving.register_keras_serializable("tiedio_tests")
class Motto(keras.layers.Layer):
    """A layer that keeps a text file beside its variables."""

    text = ""

    def call(self, inputs):
        return inputs

    def save_assets(self, folder):
        (pathlib.Path(folder) / "motto.txt").write_text(self.text)

    def load_assets(self, folder):
        self.text = (pathlib.Path(folder) / "motto.txt").read_text()


def tie_by_hand(layer, owner, attribute):
    """Shares a variable as users do: the shared one ends up last in the layer's list."""
    layer._untrack_variable(getattr(layer, attribute))
    layer._tracker.unlock()
    setattr(layer, attribute, getattr(owner, attribute))
    layer._tracker.lock()


def compiled(model, optimizer="adam"):
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"])
    return model


def two_paddings(optimizer="adam", tie=tiedio.tie, shape=(8, 8, 2), filters=3):
    image = keras.Input(shape)
    same = keras.layers.Conv2D(filters, 3, padding="same", kernel_regularizer="l2")
    valid = keras.layers.Conv2D(filters, 3, padding="valid")
    pooled = [keras.layers.GlobalAveragePooling2D()(conv(image)) for conv in (same, valid)]
    if tie:
        tie(valid, to=same)
    merged = keras.layers.Concatenate()(pooled)
    return compiled(keras.Model(image, keras.layers.Dense(2)(merged)), optimizer)


def origin_at_its_real_size():
    """The model that tiedio was begun for; too slow for every run."""
    return two_paddings(shape=(299, 299, 3), filters=64)


def kernel_by_hand():
    return two_paddings(tie=lambda layer, to: tie_by_hand(layer, to, "_kernel"))


def owner_comes_second():
    return two_paddings(tie=lambda layer, to: tiedio.tie(to, to=layer))


def momentum_and_schedule():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    return two_paddings(keras.optimizers.SGD(schedule, momentum=0.9))


def tied_before_build():
    first, second = keras.layers.Dense(4), keras.layers.Dense(4, activation="relu")
    tiedio.tie(second, to=first, input_shape=(None, 4))
    return compiled(keras.Sequential([keras.Input((4,)), first, second, keras.layers.Dense(2)]))


def three_in_a_row():
    layers = [keras.layers.Dense(4, activation="tanh") for _ in range(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    for layer in layers[1:]:
        tiedio.tie(layer, to=layers[0], weights=("kernel",))
    return compiled(model)


def inside_and_across_nested_models():
    inner_first, inner_second = keras.layers.Dense(4), keras.layers.Dense(4)
    inner = keras.Sequential([keras.Input((4,)), inner_first, inner_second], name="inner")
    outer = keras.layers.Dense(4)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, outer(inner(inputs)))
    tiedio.tie(inner_second, to=inner_first, weights=("bias",))
    tiedio.tie(outer, to=inner_first, weights=("kernel",))
    return compiled(model)


def subclassed():
    model = TiedAutoencoder()
    model(np.zeros((1, 6), dtype="float32"))
    tiedio.tie(model.decoders[0], to=model.encoder, weights=("kernel",))
    tiedio.tie(model.decoders[1], to=model.encoder)
    return compiled(model)


def two_embeddings():
    tokens = keras.Input((5,), dtype="int32")
    source, target = keras.layers.Embedding(7, 4), keras.layers.Embedding(7, 4)
    merged = keras.layers.Add()([source(tokens), target(tokens)])
    tiedio.tie(target, to=source)
    return compiled(keras.Model(tokens, keras.layers.GlobalAveragePooling1D()(merged)))


def recurrent_cells():
    series = keras.Input((5, 3))
    forward, backward = keras.layers.LSTM(4), keras.layers.LSTM(4, go_backwards=True)
    merged = keras.layers.Concatenate()([forward(series), backward(series)])
    tiedio.tie(backward, to=forward)
    return compiled(keras.Model(series, merged))


def normalisation():
    inputs = keras.Input((4,))
    first, second = keras.layers.BatchNormalization(), keras.layers.BatchNormalization()
    model = keras.Model(inputs, second(keras.layers.Dense(4)(first(inputs))))
    tiedio.tie(second, to=first)
    return compiled(model)


def gamma_by_hand():
    inputs = keras.Input((4,))
    first, second = keras.layers.LayerNormalization(), keras.layers.LayerNormalization()
    model = keras.Model(inputs, second(keras.layers.Dense(4)(first(inputs))))
    tie_by_hand(second, first, "gamma")
    return compiled(model)


def custom_layers():
    first, second = Mixture(), Mixture()
    model = keras.Sequential([keras.Input((4,)), first, second])
    tiedio.tie(second, to=first, weights=("kernels/1", "tables/scale"))
    return compiled(model)


def frozen_owner():
    first, second = keras.layers.Dense(4), keras.layers.Dense(4)
    model = keras.Sequential([keras.Input((4,)), first, second, keras.layers.Dense(4)])
    first.trainable = False
    tiedio.tie(second, to=first)
    return compiled(model)


def dropout():
    first, second = keras.layers.Dense(4), keras.layers.Dense(4)
    # Without a seed, dropout on torch draws from torch's own generator instead of Keras'.
    noise = [keras.layers.Dropout(0.5, seed=3), keras.layers.GaussianNoise(0.1)]
    model = keras.Sequential([keras.Input((4,)), first, *noise, second])
    tiedio.tie(second, to=first)
    return compiled(model)


def bfloat16():
    layers = [keras.layers.Dense(4, dtype="bfloat16") for _ in range(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    tiedio.tie(layers[1], to=layers[0])
    return compiled(model)


def loss_scaling():
    """As under the policy mixed_float16, which the process that loads need not have set."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layers = [keras.layers.Dense(4) for _ in range(2)]
        model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.BatchNormalization()])
        tiedio.tie(layers[1], to=layers[0])
        return compiled(model)
    finally:
        keras.config.set_dtype_policy("float32")


def compiled_inside():
    """As in a GAN: a discriminator that was trained, frozen in a model that is compiled too."""
    first, second = keras.layers.Dense(4), keras.layers.Dense(4)
    discriminator = compiled(keras.Sequential([keras.Input((4,)), first, second]))
    tiedio.tie(second, to=first, weights=("kernel",))
    train(discriminator)
    discriminator.trainable = False
    inputs = keras.Input((4,))
    return compiled(keras.Model(inputs, discriminator(keras.layers.Dense(4)(inputs))))


def one_frozen_variable():
    model = two_paddings(tie=None)
    tiedio.tie(model.layers[2], to=model.layers[1], weights=("kernel",))
    model.layers[1].bias.trainable = False
    model.layers[1].kernel.trainable = False
    return compiled(model)


def untied_after_a_tie_by_hand():
    model = gamma_by_hand()
    second = model.layers[-1]
    tiedio.untie(second)
    second.gamma.assign(second.gamma + 3.0)
    return compiled(model)


def equal_but_untied():
    layers = [keras.layers.Dense(4, kernel_initializer="ones") for _ in range(3)]
    return compiled(keras.Sequential([keras.Input((4,)), *layers]))


def one_layer_called_twice():
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(4)
    return compiled(keras.Model(inputs, layer(layer(inputs))))


SLOW = (origin_at_its_real_size,)
CONTROLS = (equal_but_untied, one_layer_called_twice, untied_after_a_tie_by_hand)
SCENARIOS = {
    build.__name__: build
    for build in (
        two_paddings,
        kernel_by_hand,
        owner_comes_second,
        momentum_and_schedule,
        tied_before_build,
        three_in_a_row,
        inside_and_across_nested_models,
        subclassed,
        two_embeddings,
        recurrent_cells,
        normalisation,
        gamma_by_hand,
        custom_layers,
        frozen_owner,
        dropout,
        bfloat16,
        loss_scaling,
        compiled_inside,
        one_frozen_variable,
        *CONTROLS,
        *SLOW,
    )
}


def data_for(model):
    """Makes inputs and targets for a model, always the same."""
    random = np.random.default_rng(0)
    (symbolic,) = getattr(model, "inputs", None) or [keras.KerasTensor((None, 6))]
    shape = (8, *symbolic.shape[1:])
    integers = "int" in symbolic.dtype
    inputs = random.integers(0, 7, shape) if integers else random.random(shape, dtype="float32")
    outputs = model.predict(inputs, verbose=0).shape
    return inputs, random.random(outputs, dtype="float32")


def train(model):
    inputs, targets = data_for(model)
    model.fit(inputs, targets, epochs=2, batch_size=4, shuffle=False, verbose=0)


def variables_of(model):
    return [*model.variables, *(model.optimizer.variables if model.optimizer else ())]


def arrays_of(variables):
    return [np.asarray(keras.ops.convert_to_numpy(variable)) for variable in variables]


def state_of(model):
    """Lists every value that training changes."""
    return arrays_of(variables_of(model))


def ties_of(model):
    return [str(group) for group in tiedio.find_ties(model)]
