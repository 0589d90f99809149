"""One variable in several layers: tied by `tie`, or by the code of a class."""

import keras
import numpy as np

import tiedio

from .base import compiled, scenario, serializable


@serializable
class TiedAutoencoder(keras.Model):
    """A subclassed model whose own code shares nothing; the ties are made outside."""

    def __init__(self, width=6, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        # With automatic names, which no config keeps: TensorFlow adds up three gradients in an
        # order that depends on them.
        self.encoder = keras.layers.Dense(width, activation="tanh")
        self.decoders = [keras.layers.Dense(width) for _ in range(2)]

    def call(self, inputs):
        hidden = self.encoder(inputs)
        for decoder in self.decoders:
            hidden = decoder(hidden)
        return hidden

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@serializable
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


@scenario
def two_paddings(optimizer="adam", tie=tiedio.tie, shape=(8, 8, 2), filters=3):
    image = keras.Input(shape)
    same = keras.layers.Conv2D(filters, 3, padding="same", kernel_regularizer="l2")
    valid = keras.layers.Conv2D(filters, 3, padding="valid")
    pooled = [keras.layers.GlobalAveragePooling2D()(conv(image)) for conv in (same, valid)]
    if tie:
        tie(valid, to=same)
    merged = keras.layers.Concatenate()(pooled)
    return compiled(keras.Model(image, keras.layers.Dense(2)(merged)), optimizer)


@scenario
def owner_comes_second():
    return two_paddings(tie=lambda layer, to: tiedio.tie(to, to=layer))


@scenario
def tied_before_build():
    first, second = keras.layers.Dense(4), keras.layers.Dense(4, activation="relu")
    tiedio.tie(second, to=first, input_shape=(None, 4))
    return compiled(keras.Sequential([keras.Input((4,)), first, second, keras.layers.Dense(2)]))


@scenario
def three_in_a_row():
    layers = [keras.layers.Dense(4, activation="tanh") for _ in range(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    for layer in layers[1:]:
        tiedio.tie(layer, to=layers[0], weights=("kernel",))
    return compiled(model)


@scenario
def inside_and_across_nested_models():
    inner_first, inner_second = keras.layers.Dense(4), keras.layers.Dense(4)
    inner = keras.Sequential([keras.Input((4,)), inner_first, inner_second], name="inner")
    outer = keras.layers.Dense(4)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, outer(inner(inputs)))
    tiedio.tie(inner_second, to=inner_first, weights=("bias",))
    tiedio.tie(outer, to=inner_first, weights=("kernel",))
    return compiled(model)


@scenario
def subclassed():
    model = TiedAutoencoder()
    model(np.zeros((1, 6), dtype="float32"))
    tiedio.tie(model.decoders[0], to=model.encoder, weights=("kernel",))
    tiedio.tie(model.decoders[1], to=model.encoder)
    return compiled(model)


@serializable
class Decoder(keras.layers.Layer):
    """Scores of tokens, by a table that can be an embedding's too."""

    def build(self, input_shape):
        self.embeddings = self.add_weight(shape=(7, input_shape[-1]), name="embeddings")

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.embeddings))


@scenario
def embedding_and_decoder():
    tokens = keras.Input((5,), dtype="int32")
    embedding, decoder = keras.layers.Embedding(7, 4), Decoder()
    hidden = keras.layers.Dense(4, activation="tanh")(embedding(tokens))
    model = keras.Model(tokens, decoder(hidden))
    tiedio.tie(decoder, to=embedding)
    return compiled(model)


@scenario
def two_embeddings():
    tokens = keras.Input((5,), dtype="int32")
    source, target = keras.layers.Embedding(7, 4), keras.layers.Embedding(7, 4)
    merged = keras.layers.Add()([source(tokens), target(tokens)])
    tiedio.tie(target, to=source)
    return compiled(keras.Model(tokens, keras.layers.GlobalAveragePooling1D()(merged)))


@scenario
def recurrent_cells():
    series = keras.Input((5, 3))
    forward, backward = keras.layers.LSTM(4), keras.layers.LSTM(4, go_backwards=True)
    merged = keras.layers.Concatenate()([forward(series), backward(series)])
    tiedio.tie(backward, to=forward)
    return compiled(keras.Model(series, merged))


@scenario
def by_other_names():
    """A separable convolution, and the same two steps as layers of their own."""
    image = keras.Input((6, 6, 2))
    both = keras.layers.SeparableConv2D(2, 3, padding="same")
    depthwise, pointwise = keras.layers.DepthwiseConv2D(3), keras.layers.Conv2D(2, 1)
    model = keras.Model(image, both(pointwise(depthwise(image))))
    tiedio.tie(depthwise, to=both, weights={"kernel": "depthwise_kernel"})
    tiedio.tie(pointwise, to=both, weights={"kernel": "pointwise_kernel", "bias": "bias"})
    return compiled(model)


@scenario
def normalisation():
    inputs = keras.Input((4,))
    first, second = keras.layers.BatchNormalization(), keras.layers.BatchNormalization()
    model = keras.Model(inputs, second(keras.layers.Dense(4)(first(inputs))))
    tiedio.tie(second, to=first)
    return compiled(model)


@scenario
def custom_layers():
    first, second = Mixture(), Mixture()
    model = keras.Sequential([keras.Input((4,)), first, second])
    tiedio.tie(second, to=first, weights=("kernels/1", "tables/scale"))
    return compiled(model)


@scenario
def origin_at_its_real_size():
    """The model that tiedio was begun for; too slow for every run."""
    return two_paddings(shape=(299, 299, 3), filters=64)


@scenario
def query_and_key_of_one_attention():
    series = keras.Input((5, 4))
    attention = keras.layers.MultiHeadAttention(2, 3)
    model = keras.Model(series, attention(series, series))
    tiedio.tie(attention.key_dense, to=attention.query_dense)
    return compiled(model)


@scenario
def cells_of_one_bidirectional():
    series = keras.Input((5, 3))
    both = keras.layers.Bidirectional(keras.layers.GRU(4))
    model = keras.Model(series, both(series))
    tiedio.tie(both.backward_layer, to=both.forward_layer)
    return compiled(model)


@scenario
def depthwise_and_pointwise_kernels():
    image = keras.Input((6, 6, 2))
    first, second = (keras.layers.SeparableConv2D(2, 3, padding="same") for _ in range(2))
    model = keras.Model(image, second(first(image)))
    tiedio.tie(second, to=first, weights=("depthwise_kernel", "pointwise_kernel"))
    return compiled(model)


@scenario
def transposed_convolutions():
    image = keras.Input((6, 6, 2))
    first, second = (keras.layers.Conv2DTranspose(2, 3, padding="same") for _ in range(2))
    model = keras.Model(image, second(first(image)))
    tiedio.tie(second, to=first, weights=("kernel",))
    return compiled(model)


@scenario
def only_the_bias():
    first, second = keras.layers.Dense(4), keras.layers.Dense(4)
    model = keras.Sequential([keras.Input((4,)), first, second])
    tiedio.tie(second, to=first, weights=("bias",))
    return compiled(model)


@scenario
def only_gamma():
    first, second = keras.layers.LayerNormalization(), keras.layers.LayerNormalization()
    model = keras.Sequential([keras.Input((4,)), first, keras.layers.Dense(4), second])
    tiedio.tie(second, to=first, weights=("gamma",))
    return compiled(model)


@scenario
def non_trainable_state():
    first, second = keras.layers.BatchNormalization(), keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((4,)), first, keras.layers.Dense(4), second])
    tiedio.tie(second, to=first, weights=("moving_mean", "moving_variance"))
    return compiled(model)


@scenario
def group_norm_and_einsum():
    series = keras.Input((3, 4))
    dense = [keras.layers.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d") for _ in range(2)]
    norms = [keras.layers.GroupNormalization(2) for _ in range(2)]
    model = keras.Sequential([series, dense[0], norms[0], dense[1], norms[1]])
    tiedio.tie(dense[1], to=dense[0])
    tiedio.tie(norms[1], to=norms[0], weights=("beta",))
    return compiled(model)


@scenario
def groups_that_cross_layers():
    """Kernels of the first and third layer, of the second and fourth, biases the other way."""
    layers = [keras.layers.Dense(4, activation="tanh") for _ in range(4)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    tiedio.tie(layers[2], to=layers[0], weights=("kernel",))
    tiedio.tie(layers[3], to=layers[1], weights=("kernel",))
    tiedio.tie(layers[1], to=layers[0], weights=("bias",))
    tiedio.tie(layers[3], to=layers[2], weights=("bias",))
    return compiled(model)


@serializable
class Twice(keras.layers.Layer):
    """A layer with two names for one variable, and a scalar."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], input_shape[-1]), name="kernel")
        self.gate = self.add_weight(shape=(), initializer="ones", name="gate")
        self.decoder_kernel = self.kernel

    def call(self, inputs):
        hidden = keras.ops.matmul(inputs, self.kernel) * self.gate
        return keras.ops.matmul(hidden, keras.ops.transpose(self.decoder_kernel))


@scenario
def aliases_inside_one_layer():
    return compiled(keras.Sequential([keras.Input((4,)), Twice(), keras.layers.Dense(2)]))


@scenario
def scalars():
    first, second = Twice(), Twice()
    model = keras.Sequential([keras.Input((4,)), first, second])
    tiedio.tie(second, to=first, weights=("gate",))
    return compiled(model)


@scenario
def tied_inside_one_layer():
    """Two kernels in the list of one layer become one."""
    layer = Mixture()
    model = keras.Sequential([keras.Input((4,)), layer])
    _substitute_own(layer, 1, 0)
    return compiled(model)


def _substitute_own(layer, alias, owner):
    layer._untrack_variable(layer.kernels[alias])
    layer.kernels[alias] = layer.kernels[owner]


@serializable
class OwnTable(keras.Model):
    """A model that owns a table, which it and two of its layers use."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoder = keras.layers.Dense(6, activation="tanh", name="encoder")
        self.table = self.add_weight(shape=(6, 6), name="table")
        self.readers = {
            "a": TableReader(self.table, name="a"),
            "b": TableReader(self.table, name="b"),
        }

    def call(self, inputs):
        hidden = self.readers["b"](self.readers["a"](self.encoder(inputs)))
        return keras.ops.matmul(hidden, self.table)


@serializable
class TableReader(keras.layers.Layer):
    """A layer that is given a variable, which `get_config` cannot hold."""

    def __init__(self, table=None, **kwargs):
        super().__init__(**kwargs)
        self.table = table
        self.scale = self.add_weight(shape=(6,), initializer="ones", name="scale")

    def get_config(self):
        return keras.layers.Layer.get_config(self)  # which does not ask for the table

    def call(self, inputs):
        return inputs if self.table is None else keras.ops.matmul(inputs, self.table) * self.scale


@scenario
def variable_owned_by_the_model():
    model = OwnTable()
    model.build((None, 6))
    model(np.zeros((1, 6), dtype="float32"))
    return compiled(model)


@scenario
def variable_given_to_a_constructor():
    """Nothing in the config of the second layer says that it has the first one's kernel."""
    first = keras.layers.Dense(6)
    inputs = keras.Input((6,))
    hidden = first(inputs)
    reader = TableReader(first.kernel)
    return compiled(keras.Model(inputs, reader(hidden)))


@serializable
class Block(keras.layers.Layer):
    """A transformer block, small."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = keras.layers.MultiHeadAttention(2, 2, name="attention")
        self.norm = keras.layers.LayerNormalization(name="norm")
        self.dense = keras.layers.Dense(4, activation="gelu", name="dense")

    def build(self, input_shape):
        self.attention.build(input_shape, input_shape)
        self.norm.build(input_shape)
        self.dense.build(input_shape)

    def call(self, inputs):
        return self.dense(self.norm(inputs + self.attention(inputs, inputs)))


@scenario
def blocks_with_everything_tied():
    """As in ALBERT."""
    series = keras.Input((5, 4))
    blocks = [Block() for _ in range(3)]
    model = keras.Sequential([series, *blocks])
    for block in blocks[1:]:
        tiedio.tie(block, to=blocks[0])
    return compiled(model)


@serializable
class TiedByItself(keras.layers.Layer):
    """A layer whose own code ties two others."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Dense(4, name="first")
        self.second = keras.layers.Dense(4, name="second")

    def build(self, input_shape):
        self.first.build(input_shape)
        tiedio.tie(self.second, to=self.first, input_shape=input_shape)

    def call(self, inputs):
        return self.second(self.first(inputs))


@scenario
def tied_by_the_code_of_a_class():
    return compiled(keras.Sequential([keras.Input((4,)), TiedByItself()]))


@scenario
def never_trained_backbone():
    """Without an optimizer of its own, inside a model that is trained."""
    layers = [keras.layers.Dense(4) for _ in range(2)]
    backbone = keras.Sequential([keras.Input((4,)), *layers])
    tiedio.tie(layers[1], to=layers[0])
    backbone.trainable = False
    inputs = keras.Input((4,))
    return compiled(keras.Model(inputs, keras.layers.Dense(2)(backbone(inputs))))
