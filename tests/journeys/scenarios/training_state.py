"""Optimizers, random states and numbers of other precision."""

import keras
import numpy as np

import tiedio

from .base import compiled, scenario, serializable, tied_pair, train
from .between_layers import TiedAutoencoder, two_paddings


@scenario
def momentum_and_schedule():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    return two_paddings(keras.optimizers.SGD(schedule, momentum=0.9))


@scenario
def dropout():
    first, second = keras.layers.Dense(4), keras.layers.Dense(4)
    # Without a seed, dropout on torch draws from torch's own generator instead of Keras'.
    noise = [keras.layers.Dropout(0.5, seed=3), keras.layers.GaussianNoise(0.1)]
    model = keras.Sequential([keras.Input((4,)), first, *noise, second])
    tiedio.tie(second, to=first)
    return compiled(model)


@scenario
def bfloat16():
    layers = [keras.layers.Dense(4, dtype="bfloat16") for _ in range(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    tiedio.tie(layers[1], to=layers[0])
    return compiled(model)


@scenario
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


@scenario
def compiled_inside():
    """As in a GAN: a discriminator that was trained, frozen in a model that is compiled too."""
    first, second = keras.layers.Dense(4), keras.layers.Dense(4)
    discriminator = compiled(keras.Sequential([keras.Input((4,)), first, second]))
    tiedio.tie(second, to=first, weights=("kernel",))
    train(discriminator)
    discriminator.trainable = False
    inputs = keras.Input((4,))
    return compiled(keras.Model(inputs, discriminator(keras.layers.Dense(4)(inputs))))


def _with(optimizer):
    _, model = tied_pair()
    return compiled(model, optimizer)


@scenario
def adamw():
    return _with(keras.optimizers.AdamW(weight_decay=0.1))


@scenario
def adamw_without_biases():
    optimizer = keras.optimizers.AdamW(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return _with(optimizer)


@scenario
def rmsprop_with_clipping():
    return _with(keras.optimizers.RMSprop(momentum=0.9, centered=True, clipnorm=0.01))


@scenario
def adafactor():
    return _with(keras.optimizers.Adafactor())


@scenario
def lion():
    return _with(keras.optimizers.Lion())


def muon():
    return _with(keras.optimizers.Muon())


# Whose Muon fails in TensorFlow's graphs, also without a tie.
if not keras.__version__.startswith(("3.10.", "3.11.", "3.12.")):
    scenario(muon)


def optimizers_chosen_by_path():
    """The owner's path decides, and automatic names are in it."""
    model = TiedAutoencoder()
    model(np.zeros((1, 6), dtype="float32"))
    tiedio.tie(model.decoders[1], to=model.decoders[0], weights=("kernel",))
    chosen = keras.optimizers.OptimizerMap(keras.optimizers.SGD(momentum=0.9))
    chosen[f".*{model.decoders[0].name}/kernel"] = keras.optimizers.Adam()
    return compiled(model, keras.optimizers.MultiOptimizer(chosen))


if hasattr(keras.optimizers, "MultiOptimizer"):
    scenario(optimizers_chosen_by_path)


@scenario
def lamb():
    return _with(keras.optimizers.Lamb())


@scenario
def ftrl():
    return _with(keras.optimizers.Ftrl())


def moving_averages():
    return _with(keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=3))


if keras.backend.backend() != "jax":  # where Keras cannot fit such a model twice, tied or not
    scenario(moving_averages)


@scenario
def gradient_accumulation():
    return _with(keras.optimizers.Adam(gradient_accumulation_steps=3))


@scenario
def one_seed_generator_in_two_layers():
    """Masks alternate between the layers: each draws from what the other left."""
    noise = [keras.layers.Dropout(0.5, seed=3) for _ in range(2)]
    noise[1]._tracker.unlock()
    noise[1]._tracker.untrack(noise[1].seed_generator)
    noise[1].seed_generator = noise[0].seed_generator
    first, second = keras.layers.Dense(4), keras.layers.Dense(4)
    model = keras.Sequential([keras.Input((4,)), first, noise[0], second, noise[1]])
    tiedio.tie(second, to=first)
    return compiled(model)


@scenario
def random_augmentation():
    image = keras.Input((6, 6, 1))
    convs = [keras.layers.Conv2D(1, 3, padding="same") for _ in range(2)]
    augmented = keras.layers.RandomBrightness(0.5, value_range=(0, 1), seed=5)(image)
    model = keras.Model(image, convs[1](convs[0](augmented)))
    tiedio.tie(convs[1], to=convs[0])
    return compiled(model)


@serializable
class TwoOptimizers(keras.Model):
    """As in a GAN: two halves, trained in turn by optimizers of their own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.halves = [keras.layers.Dense(6, activation="tanh", name=f"half_{i}") for i in range(2)]

    def build(self, input_shape):
        for half in self.halves:
            half.build(input_shape)

    def call(self, inputs):
        return self.halves[1](self.halves[0](inputs))

    def compile(self, optimizer, other_optimizer, loss, metrics=None):
        super().compile(optimizer=optimizer, loss=loss)
        self.other_optimizer = other_optimizer

    def get_compile_config(self):
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "other_optimizer": keras.saving.serialize_keras_object(self.other_optimizer),
            "loss": "mse",
        }

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def train_turn(self, inputs, targets, optimizer, variables):
        # Without gradients, which each backend has in its own way: a step along the signs.
        loss = np.mean((self.predict(inputs, verbose=0) - targets) ** 2)
        signs = [np.sign(keras.ops.convert_to_numpy(variable)) for variable in variables]
        optimizer.apply([keras.ops.convert_to_tensor(sign * loss) for sign in signs], variables)

    def fit(self, inputs, targets, **kwargs):
        for optimizer, half in zip(
            (self.optimizer, self.other_optimizer), self.halves, strict=True
        ):
            self.train_turn(inputs, targets, optimizer, half.trainable_variables)


@scenario
def two_optimizers():
    model = TwoOptimizers()
    model.build((None, 6))
    tiedio.tie(model.halves[1], to=model.halves[0], weights=("kernel",))
    model.compile(keras.optimizers.Adam(), keras.optimizers.SGD(momentum=0.9), "mse")
    return model
