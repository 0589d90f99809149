"""Several models that share layers or variables, in one file: builders return them by name."""

import keras

import tiedio

from .base import SEVERAL, compiled, scenario, serializable


def scenario_of_several(build):
    SEVERAL.append(build.__name__)
    return scenario(build)


@scenario_of_several
def generator_discriminator_and_gan():
    generator = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6), keras.layers.BatchNormalization()],
        name="generator",
    )
    image = keras.Input((6,))
    inner = keras.layers.Dropout(0.25, seed=3)(keras.layers.Dense(5, activation="tanh")(image))
    discriminator = keras.Model(image, keras.layers.Dense(1)(inner), name="discriminator")
    compiled(discriminator)
    discriminator.trainable = False
    noise = keras.Input((4,))
    gan = keras.Model(noise, discriminator(generator(noise)), name="gan")
    compiled(gan, keras.optimizers.RMSprop(momentum=0.5))
    return {"generator": generator, "discriminator": discriminator, "gan": gan}


@scenario_of_several
def encoder_decoder_and_autoencoder():
    """All three over one graph: Keras draws the decoder's anew, from where it begins."""
    inputs = keras.Input((6,), name="inputs")
    code = keras.layers.Dense(3, activation="tanh", name="code")(inputs)
    hidden = keras.layers.Dense(5, activation="tanh", name="hidden")(code)
    outputs = keras.layers.Dense(6, name="outputs")(hidden)
    return {
        "autoencoder": compiled(keras.Model(inputs, outputs, name="autoencoder")),
        "encoder": keras.Model(inputs, code, name="encoder"),
        "decoder": compiled(keras.Model(code, outputs, name="decoder"), "sgd"),
    }


@scenario_of_several
def sequence_to_sequence_and_its_inference():
    """The classical example of Keras: inference runs the layers step by step, with their states."""
    table = keras.layers.Embedding(7, 4, name="table")
    source, target = (keras.Input((5,), dtype="int32", name=name) for name in ("source", "target"))
    encoder = keras.layers.LSTM(4, return_state=True, name="encoder")
    decoder = keras.layers.LSTM(4, return_sequences=True, return_state=True, name="decoder")
    dense = keras.layers.Dense(7, activation="softmax", name="dense")
    _, *states = encoder(table(source))
    outputs, *_ = decoder(table(target), initial_state=states)
    given = [keras.Input((4,), name=f"state_{number}") for number in range(2)]
    step, *after = decoder(table(target), initial_state=given)
    return {
        "training": compiled(keras.Model([source, target], dense(outputs), name="training")),
        "encoder": keras.Model(source, states, name="encoder_model"),
        "decoder": keras.Model([target, *given], [dense(step), *after], name="decoder_model"),
    }


@scenario_of_several
def actor_and_critic_on_one_trunk():
    observation = keras.Input((4,), name="observation")
    trunk = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, "tanh")], name="trunk")
    actor = keras.Model(observation, keras.layers.Dense(3, "softmax")(trunk(observation)))
    critic = keras.Model(observation, keras.layers.Dense(1)(trunk(observation)))
    return {
        "actor": compiled(actor, keras.optimizers.Adam(0.01)),
        "critic": compiled(critic, keras.optimizers.SGD(0.01, momentum=0.9)),
    }


@scenario_of_several
def two_models_with_one_variable():
    layers = [keras.layers.Dense(4, use_bias=use_bias) for use_bias in (True, False)]
    first, second = (
        compiled(keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(2)]))
        for layer in layers
    )
    tiedio.tie(layers[1], to=layers[0], weights=("kernel",))
    return {"first": first, "second": second}


@serializable
class _Head(keras.Model):
    """A model that is no graph, around layers that it was given."""

    def __init__(self, body, **options):
        super().__init__(**options)
        self.body = body
        self.top = keras.layers.Dense(2)

    def build(self, input_shape):
        self.top.build((*input_shape[:-1], 4))

    def call(self, inputs):
        return self.top(self.body(inputs))

    def get_config(self):
        return {
            **super().get_config(),
            "body": keras.saving.serialize_keras_object(self.body),
        }

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("body")), **config)


@scenario_of_several
def two_models_of_a_class_around_one():
    """No graphs, and with one name: stock Keras opens their file with tiedio only."""
    body = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, "tanh")], name="body")
    heads = {"first": _Head(body, name="head"), "second": _Head(body, name="head")}
    for head in heads.values():
        head.build((None, 6))
        compiled(head)
    return {**heads, "body": body}
