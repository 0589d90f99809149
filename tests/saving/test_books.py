"""The books are closed: all that training uses is stored as it was, and read, or named."""

import keras
import numpy as np
import pytest

import tiedio
from tiedio.errors import LoadError, SaveError

ONE = np.ones((2, 4), "float32")
serializable = keras.saving.register_keras_serializable("tiedio_tests")


def sequential(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


def exchanged(model, folder):
    """Saves a model, and loads it with tiedio and with Keras."""
    tiedio.save_tied(model, folder / "model.keras")
    return tiedio.load_tied(folder / "model.keras"), keras.saving.load_model(folder / "model.keras")


def array(value):
    return np.array(keras.ops.convert_to_numpy(value))


@serializable
class OneBuffer(keras.layers.Layer):
    """Fills one buffer with all that it stores, one after the other."""

    def build(self, _):
        self.first = self.add_weight(shape=(4,), name="first")
        self.second = self.add_weight(shape=(4,), name="second")

    def call(self, inputs):
        return inputs + self.first + self.second

    def save_own_variables(self, store):
        buffer = np.empty(4, "float32")
        for name in ("first", "second"):
            buffer[:] = array(getattr(self, name))
            store[name] = buffer

    def load_own_variables(self, store):
        self.first.assign(store["first"])
        self.second.assign(store["second"])


@serializable
class Averaged(keras.layers.Dense):
    """Stores the double of its kernel, and goes on with the kernel itself."""

    def save_own_variables(self, store):
        kernel = array(self.kernel)
        self.kernel.assign(2 * kernel)
        super().save_own_variables(store)
        self.kernel.assign(kernel)


def test_what_a_buffer_held_is_stored_not_what_it_holds_at_last(tmp_path):
    layer = OneBuffer()
    model = sequential(layer)
    layer.first.assign([1, 2, 3, 4])
    layer.second.assign([5, 6, 7, 8])
    for loaded in exchanged(model, tmp_path):
        assert array(loaded.layers[0].first).tolist() == [1, 2, 3, 4]
        assert array(loaded.layers[0].second).tolist() == [5, 6, 7, 8]


def test_what_a_layer_assigned_while_it_stored_is_stored(tmp_path):
    model = sequential(Averaged(4), keras.layers.Dense(2))
    kernel = array(model.layers[0].kernel)
    tied, stock = exchanged(model, tmp_path)
    assert np.array_equal(array(stock.layers[0].kernel), 2 * kernel)
    assert np.array_equal(array(tied.layers[0].kernel), kernel)  # the model that was saved


@serializable
class Cell(keras.layers.Dense):
    pass


# Whose name is that of the second `Cell` in a list.
Another = serializable(type("Cell_1", (keras.layers.Dense,), {}))


@serializable
class Tower(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.blocks = [Cell(4, name="a"), Cell(4, name="b"), Another(4, name="c")]

    def call(self, inputs):
        for block in self.blocks:
            inputs = block(inputs)
        return inputs


def test_no_path_is_written_twice(tmp_path):
    model = Tower()
    model(ONE)
    for save, name in ((tiedio.save_tied, "a.keras"), (tiedio.save_tied_weights, "a.weights.h5")):
        with pytest.raises(SaveError, match=r"`b`, `c`.*\n.*`blocks/cell_1`"):
            save(model, tmp_path / name)
        assert not (tmp_path / name).exists()


@serializable
class OfASet(keras.Model):
    """Keeps layers in a set: Keras lists them in an order that no other process has."""

    def __init__(self, **options):
        super().__init__(**options)
        self.parts = {keras.layers.Dense(4, name=name) for name in ("left", "right")}

    def call(self, inputs):
        return sum(part(inputs) for part in self.parts)


@serializable
class InSet(keras.layers.Layer):
    """Keeps layers in a set: Keras trains them, and does not save them."""

    def __init__(self, **options):
        super().__init__(**options)
        self.parts = {keras.layers.Dense(4, name="hidden")}

    def build(self, shape):
        for part in self.parts:
            part.build(shape)

    def call(self, inputs):
        for part in self.parts:
            inputs = part(inputs)
        return inputs


class Weighted(keras.losses.Loss):
    def __init__(self, **options):
        super().__init__(**options)
        self.scale = keras.Variable(2.0, name="scale")

    def call(self, y_true, y_pred):
        return self.scale * keras.ops.mean((y_true - y_pred) ** 2, axis=-1)


def test_layers_that_saving_does_not_reach_are_named(tmp_path):
    model = sequential(InSet())
    with pytest.raises(SaveError, match="hidden/kernel"):
        tiedio.save_tied(model, tmp_path / "model.keras")
    model.save_weights(tmp_path / "stock.weights.h5")
    with pytest.raises(LoadError, match="hidden/kernel"):
        tiedio.load_tied_weights(model, tmp_path / "stock.weights.h5")


def test_layers_without_an_order_are_named(tmp_path):
    model = OfASet()
    model(ONE)
    with pytest.raises(SaveError, match=r"left/bias`.*right/kernel`"):
        tiedio.save_tied(model, tmp_path / "model.keras")
    model.in_order = sorted(model.parts, key=lambda part: part.name)
    tiedio.save_tied(model, tmp_path / "model.keras")


@serializable
class GraphOfASet(keras.Model):
    """A graph, which has an order, and keeps some of its layers in a set besides."""

    def __init__(self, **options):
        inputs = keras.Input((4,))
        layers = [keras.layers.Dense(4, name=name) for name in ("left", "right")]
        super().__init__(inputs, layers[1](layers[0](inputs)), **options)
        self.parts = set(layers)

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls()


def test_layers_of_a_graph_have_an_order_though_a_set_holds_them(tmp_path):
    model = GraphOfASet()
    for loaded in exchanged(model, tmp_path):
        assert np.array_equal(array(loaded(ONE)), array(model(ONE)))


def test_variables_of_a_loss_are_named(tmp_path):
    model = sequential(keras.layers.Dense(2))
    model.compile("sgd", Weighted())
    model.fit(ONE, ONE[:, :2], verbose=0)
    with pytest.raises(SaveError, match="scale"):
        tiedio.save_tied_weights(model, tmp_path / "model.weights.h5")


class Box:
    """In which nobody looks for variables."""


@serializable
class Counted(keras.layers.Layer):
    """Stores a number of its own beside a variable that is in no attribute."""

    def __init__(self, **options):
        super().__init__(**options)
        self.box, self.count = Box(), 0

    def build(self, _):
        self.box.scale = self.add_weight(shape=(4,), name="scale")

    def call(self, inputs):
        return inputs * self.box.scale

    def save_own_variables(self, store):
        store["scale"] = array(self.box.scale)
        store["count"] = np.array(self.count)

    def load_own_variables(self, store):
        self.box.scale.assign(store["scale"])
        self.count = int(np.array(store["count"]))


def test_a_layer_gets_back_what_it_stores_beside_its_variables(tmp_path):
    model = sequential(Counted())
    model.layers[0].count = 7
    assert [loaded.layers[0].count for loaded in exchanged(model, tmp_path)] == [7, 7]
    tiedio.save_tied_weights(model, tmp_path / "model.weights.h5")
    other = sequential(Counted())
    tiedio.load_tied_weights(other, tmp_path / "model.weights.h5")
    assert other.layers[0].count == 7
    assert np.array_equal(array(other.layers[0].box.scale), array(model.layers[0].box.scale))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="wraps a module of torch")
def test_a_module_of_torch_keeps_its_averages(tmp_path):
    import torch

    wrapped = keras.layers.TorchModuleWrapper(torch.nn.BatchNorm1d(4))
    model = sequential(wrapped)
    wrapped.module.running_mean.copy_(torch.arange(4.0))
    expected = array(model(ONE, training=False))
    tiedio.save_tied(model, tmp_path / "model.keras")
    loaded = tiedio.load_tied(tmp_path / "model.keras", safe_mode=False)
    assert np.array_equal(array(loaded(ONE, training=False)), expected)


@serializable
class Raw(keras.layers.Layer):
    """Keeps state in a variable of the backend, as many guides do."""

    def __init__(self, **options):
        super().__init__(**options)
        match keras.backend.backend():
            case "tensorflow":
                import tensorflow as tf

                self.state = tf.Variable([1.0, 2.0])
            case "torch":
                import torch

                self.state = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

    def call(self, inputs):
        return inputs


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX tracks nothing")
def test_variables_of_the_backend_come_back(tmp_path):
    def put(layer, value):
        if keras.backend.backend() == "torch":
            layer.state.data.copy_(keras.ops.convert_to_tensor(value))
        else:
            layer.state.assign(value)

    model = sequential(Raw(), keras.layers.Dense(2))
    put(model.layers[0], [3.0, 4.0])
    tiedio.save_tied(model, tmp_path / "model.keras")
    loaded = tiedio.load_tied(tmp_path / "model.keras")
    assert array(loaded.layers[0].state).tolist() == [3.0, 4.0]
    state = loaded.layers[0].state
    put(loaded.layers[0], [0.0, 0.0])
    tiedio.save_tied_weights(model, tmp_path / "model.weights.h5")
    tiedio.load_tied_weights(loaded, tmp_path / "model.weights.h5")
    assert loaded.layers[0].state is state
    assert array(state).tolist() == [3.0, 4.0]


@serializable
class OfAnyLength(keras.layers.Layer):
    """Keeps what it has seen in a variable of TensorFlow that has no length of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        import tensorflow as tf

        self.seen = tf.Variable([1.0], shape=tf.TensorShape([None]))

    def call(self, inputs):
        return inputs


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others have no such shapes")
def test_a_variable_of_the_backend_may_be_of_any_length(tmp_path):
    model = sequential(OfAnyLength(), keras.layers.Dense(2))
    model.layers[0].seen.assign([1.0, 2.0, 3.0])
    tiedio.save_tied(model, tmp_path / "model.keras")
    loaded = tiedio.load_tied(tmp_path / "model.keras")
    assert array(loaded.layers[0].seen).tolist() == [1.0, 2.0, 3.0]


def untracked(layer, attribute, shared):
    """Ties by hand, as users do: the shared variable is the last one in the layer's list."""
    layer._untrack_variable(getattr(layer, attribute))
    layer._tracker.unlock()
    setattr(layer, attribute, shared)
    layer._tracker.lock()


LAYERS = {
    "layer normalisation": (keras.layers.LayerNormalization, {}, "gamma"),
    "batch normalisation": (keras.layers.BatchNormalization, {}, "beta"),
    "transposed convolution": (keras.layers.Conv2DTranspose, {"filters": 4}, "kernel"),
    "separable convolution": (keras.layers.SeparableConv2D, {"filters": 4}, "pointwise_kernel"),
    "convolution by channel": (keras.layers.DepthwiseConv2D, {}, "kernel"),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_keras_reads_what_was_tied_by_hand(kind, tmp_path):
    make, options, attribute = LAYERS[kind]
    if "onvolution" in kind:
        options = {**options, "kernel_size": 3, "padding": "same"}
    layers = [make(**options) for _ in range(2)]
    model = keras.Sequential([keras.Input((4, 4, 4)), *layers])
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(1, 2, weight.shape) for weight in model.weights])
    untracked(layers[1], attribute, getattr(layers[0], attribute))
    images = rng.normal(size=(2, 4, 4, 4)).astype("float32")
    expected = array(model(images))
    order = [weight.name for weight in layers[1].weights]
    tied, stock = exchanged(model, tmp_path)
    assert np.allclose(array(stock(images)), expected)
    assert np.array_equal(array(tied(images)), expected)
    assert getattr(tied.layers[1], attribute) is getattr(tied.layers[0], attribute)
    assert [weight.name for weight in tied.layers[1].weights] == order
    # And once more, from the model that was loaded.
    again, _ = exchanged(tied, tmp_path)
    assert np.array_equal(array(again(images)), expected)


def test_keras_reads_cells_of_one_name(tmp_path):
    layers = [keras.layers.LSTM(4, return_sequences=True) for _ in range(2)]
    model = keras.Sequential([keras.Input((3, 4)), *layers])
    untracked(layers[1].cell, "kernel", layers[0].cell.kernel)
    series = np.ones((1, 3, 4), "float32")
    for loaded in exchanged(model, tmp_path):
        assert np.allclose(array(loaded(series)), array(model(series)))


def test_keras_reads_what_was_untied_after_a_tie_by_hand(tmp_path):
    layers = [keras.layers.LayerNormalization() for _ in range(2)]
    model = sequential(*layers)
    untracked(layers[1], "gamma", layers[0].gamma)
    tiedio.untie(layers[1])
    layers[1].gamma.assign([1, 2, 3, 4])
    for loaded in exchanged(model, tmp_path):
        assert np.allclose(array(loaded(ONE)), array(model(ONE)))


@serializable
class Experts(keras.layers.Layer):
    """Keeps kernels in a list, of which two may be one."""

    def build(self, shape):
        self.kernels = [self.add_weight(shape=(4, 4), name=f"kernel_{n}") for n in range(2)]
        self.bias = self.add_weight(shape=(4,), name="bias")

    def call(self, inputs):
        return sum(keras.ops.matmul(inputs, kernel) for kernel in self.kernels) + self.bias


def test_keras_reads_what_is_tied_inside_one_layer(tmp_path):
    model = sequential(Experts())
    layer = model.layers[0]
    shared, other = layer.kernels
    layer._untrack_variable(other)
    layer._tracker.unlock()
    layer.kernels[1] = shared
    layer._tracker.lock()
    tied, stock = exchanged(model, tmp_path)
    for loaded in (tied, stock):
        assert np.allclose(array(loaded(ONE)), array(model(ONE)))
    assert tied.layers[0].kernels[0] is tied.layers[0].kernels[1]


@serializable
class Transposed(keras.layers.Dense):
    """Has the transpose of another layer's kernel, and no kernel of its own."""

    def __init__(self, units, other=None, **options):
        super().__init__(units, **options)
        self.other = other

    def build(self, shape):
        self.bias = self.add_weight(shape=(self.units,), name="bias")
        self.built = True

    @property
    def kernel(self):
        return keras.ops.transpose(self.other.kernel)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    encoder = keras.layers.Dense(2)
    model = sequential(encoder, Transposed(4, encoder, name="decoder"))
    with pytest.raises(SaveError, match="`decoder`"):
        tiedio.save_tied(model, tmp_path / "model.keras")


def test_a_model_that_is_not_built_is_saved_as_in_keras(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.warns(tiedio.TiedioWarning, match="without weights"):
        tiedio.save_tied(model, tmp_path / "model.keras")
    for load in (tiedio.load_tied, keras.saving.load_model):
        loaded = load(tmp_path / "model.keras")
        assert not loaded.built
        loaded.fit(ONE, ONE[:, :2], verbose=0)
