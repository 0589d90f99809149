"""Weights into a model whose layers come in another order: those of a name belong together."""

import keras
import numpy as np
import pytest

import tiedio

FORMS = {
    "one file": ("model.weights.h5", {}),
    "shards": ("model.weights.json", {"max_shard_size": 200 / 2**30}),
    "whole model": ("model.keras", None),
    "folder": ("model", None),
    "whole model in HDF5": ("model.h5", None),
}
DATA = np.random.default_rng(0).random((16, 4), "float32")


def save(model, folder, form="one file"):
    name, options = FORMS[form]
    if options is None:
        tiedio.save_tied(model, folder / name, zipped=form != "folder")
    else:
        tiedio.save_tied_weights(model, folder / name, **options)
    return folder / name


def dense(*names):
    return [keras.layers.Dense(4, name=name) for name in names]


def chain(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


def by_name(model):
    return {
        f"{layer.name}/{variable.name}": np.array(keras.ops.convert_to_numpy(variable))
        for layer in model._flatten_layers(include_self=False)
        for variable in layer.weights
    }


def assert_equal_by_name(model, other):
    ours, theirs = by_name(model), by_name(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.tobytes() == theirs[name].tobytes(), name


@pytest.mark.parametrize("form", FORMS)
def test_layers_are_found_by_their_names(tmp_path, form):
    saved = chain(*dense("a", "b", "c"))
    filepath = save(saved, tmp_path, form)
    model = chain(*dense("c", "a", "b"))
    tiedio.load_tied_weights(model, filepath)
    assert_equal_by_name(model, saved)


def branches(order, tie=True, optimizer="adam"):
    """A sum of branches, which is the same in every order."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    layers = {
        name: [
            keras.layers.Dense(4, name=name),
            keras.layers.Dropout(0.3, seed=ord(name), name=f"{name}_dropped"),
        ]
        for name in "ab"
    }
    first = keras.layers.Dense(4, name="z" if tie else "y")
    outputs = []
    for name in order:
        layer, dropout = layers[name]
        outputs.append(dropout(layer(first(inputs) if name == "a" else inputs)))
    model = keras.Model(inputs, keras.layers.Add(name="sum")(outputs))
    if tie:
        tiedio.tie(layers["b"][0], to=first, weights=("kernel",))
    model.compile(optimizer() if callable(optimizer) else optimizer, "mse")
    return model


def train(model):
    model.fit(DATA, DATA, batch_size=4, epochs=2, shuffle=False, verbose=0)


OPTIMIZERS = {
    "adam": "adam",
    "sgd": "sgd",
    "adafactor": "adafactor",
    "muon": "muon",
    "moving averages": lambda: keras.optimizers.RMSprop(use_ema=True, ema_overwrite_frequency=3),
    "loss scaling": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
    "accumulated": lambda: keras.optimizers.Adam(gradient_accumulation_steps=3),
}
IN_VAIN = {
    # It is not there, or cannot train.
    "muon": tuple(map(int, keras.__version__.split(".")[:2])) < (3, 14),
    # Keras cannot go on after `fit` there, saved or not.
    "moving averages": keras.backend.backend() == "jax",
}


@pytest.mark.often(1)
@pytest.mark.parametrize(
    ("name", "tied", "is_built"),
    [
        *((name, True, True) for name in OPTIMIZERS if not IN_VAIN.get(name)),
        *(("adam", *how) for how in [(False, False), (True, False), (False, True)]),
    ],
)
def test_training_resumes_where_layers_have_another_order(tmp_path, name, tied, is_built):
    optimizer = OPTIMIZERS[name]
    saved = branches("ab", optimizer=optimizer)
    train(saved)
    filepath = save(saved, tmp_path)
    model = branches("ba", tie=tied, optimizer=optimizer)
    model.get_layer("z" if tied else "y").name = "z"
    if is_built:
        model.optimizer.build(model.trainable_variables)
    own = model.optimizer
    assert [one.name for one in model.layers] != [one.name for one in saved.layers]
    tiedio.load_tied_weights(model, filepath)
    assert model.get_layer("b").kernel is model.get_layer("z").kernel
    assert model.optimizer is own or not (tied and is_built)
    for _ in range(2):
        assert_equal_by_name(model, saved)
        train(saved)
        train(model)
    again = tiedio.load_tied(save(model, tmp_path, "whole model"))
    train(again)
    train(model)
    assert_equal_by_name(again, model)


class Hidden(keras.optimizers.SGD):
    """Keeps its slots where nobody finds them."""

    def build(self, variables):
        keras.optimizers.Optimizer.build(self, variables)
        slots = [self.add_variable_from_reference(one, name="slot") for one in variables]
        self.slot_of = lambda variable: slots[self._get_variable_index(variable)]

    def update_step(self, gradient, variable, learning_rate):
        self.assign(self.slot_of(variable), gradient)
        self.assign_sub(variable, learning_rate * gradient)


def test_an_optimizer_that_cannot_be_reordered_is_left_as_it_is(tmp_path):
    saved = branches("ab", optimizer=Hidden)
    train(saved)
    filepath = save(saved, tmp_path)
    model = branches("ba", optimizer=Hidden)
    with pytest.warns(tiedio.TiedioWarning, match="another order"):
        tiedio.load_tied_weights(model, filepath)
    assert_equal_by_name(model, saved)


class Stack(keras.layers.Layer):
    """Layers in a list, as no model of Keras has them."""

    def __init__(self, layers, **kwargs):
        super().__init__(**kwargs)
        self.members = layers

    def build(self, shape):
        for layer in self.members:
            layer.build(shape)

    def call(self, inputs):
        for layer in self.members:
            inputs = layer(inputs)
        return inputs


def test_names_inside_of_what_is_found_by_its_name(tmp_path):
    def stacks(order, members):
        return chain(*(Stack(dense(*members), name=name) for name in order))

    saved = stacks(("left", "right"), ("a", "b"))
    model = stacks(("right", "left"), ("b", "a"))
    tiedio.load_tied_weights(model, save(saved, tmp_path))
    for stack in saved.layers:
        for layer in stack.members:
            twin = next(x for x in model.get_layer(stack.name).members if x.name == layer.name)
            assert np.array_equal(*(keras.ops.convert_to_numpy(x.kernel) for x in (layer, twin)))


def assert_equal_by_position(model, other):
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (ours, theirs)))


UNNAMED = {
    "a name that only one has": (("a", "b"), ("b", "c")),
    "a name twice": (("a", "b"), ("b", "b")),
    "one that has none": (("a", None, "b"), ("b", None, "a")),
}


@pytest.mark.parametrize("why", UNNAMED)
def test_otherwise_layers_go_by_their_order(tmp_path, why):
    saved, other = UNNAMED[why]
    if why == "a name twice":
        models = [chain(Stack(dense(*names), name="stack")) for names in (saved, other)]
    else:
        models = [chain(*dense(*names)) for names in (saved, other)]
    tiedio.load_tied_weights(models[1], save(models[0], tmp_path))
    assert_equal_by_position(models[1], models[0])


def test_names_that_keras_counted_are_none(tmp_path):
    """A layer that was made first has the lower number, wherever it stands."""
    models = []
    for is_swapped in (False, True):
        keras.utils.clear_session()
        layers = dense(None, None)
        models.append(chain(*(reversed(layers) if is_swapped else layers)))
    first, second = ([layer.name for layer in model.layers] for model in models)
    assert first == second[::-1]
    tiedio.load_tied_weights(models[1], save(models[0], tmp_path))
    assert_equal_by_position(models[1], models[0])


def test_attributes_are_names_enough(tmp_path):
    class Pair(keras.layers.Layer):
        def __init__(self, first, second, **kwargs):
            super().__init__(**kwargs)
            self.dense_1, self.dense_2 = dense(first, second)

        def build(self, shape):
            self.dense_1.build(shape)
            self.dense_2.build(shape)

        def call(self, inputs):
            return self.dense_2(self.dense_1(inputs))

    saved, model = chain(Pair("a", "b")), chain(Pair("b", "a"))
    tiedio.load_tied_weights(model, save(saved, tmp_path))
    assert_equal_by_position(model, saved)


def test_files_of_keras_go_by_their_order(tmp_path):
    saved, model = chain(*dense("a", "b")), chain(*dense("b", "a"))
    saved.save_weights(tmp_path / "stock.weights.h5")
    tiedio.load_tied_weights(model, tmp_path / "stock.weights.h5")
    assert_equal_by_position(model, saved)


def test_what_is_left_out_is_left_out_by_name(tmp_path):
    saved, model = chain(*dense("a", "b", "c")), chain(*dense("c", "a", "b"))
    before = by_name(model)
    left_out = [model.get_layer("a")]
    tiedio.load_tied_weights(model, save(saved, tmp_path), objects_to_skip=left_out)
    expected = by_name(saved) | {name: before[name] for name in ("a/kernel", "a/bias")}
    for name, value in by_name(model).items():
        assert value.tobytes() == expected[name].tobytes()
