"""Copies of a model: which of them lose its ties, and how they come by them."""

import copy
import io
import pickle

import keras
import numpy as np
import pytest
from keras.models import clone_model  # by name, before anything is patched

import tiedio
from tiedio.errors import TiedioWarning
from tiedio.model.walk import walk

DATA = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def sequential():
    layers = [keras.layers.Dense(4, activation="tanh") for _ in range(2)]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(4)])
    tiedio.tie(layers[1], to=layers[0])
    return model


def functional():
    inputs = keras.Input((4,))
    layers = [keras.layers.Dense(4, activation=name) for name in ("tanh", "relu")]
    model = keras.Model(inputs, layers[1](layers[0](inputs)))
    tiedio.tie(layers[1], to=layers[0])
    return model


def nested():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    inputs, outer = keras.Input((4,)), keras.layers.Dense(4)
    model = keras.Model(inputs, outer(inner(inputs)))
    tiedio.tie(outer, to=inner.layers[0])
    return model


@keras.saving.register_keras_serializable("tiedio_tests")
class OfAClass(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.encoder, self.decoder = keras.layers.Dense(4), keras.layers.Dense(4)

    def build(self, input_shape):
        self.encoder.build(input_shape)
        self.decoder.build(input_shape)

    def call(self, inputs):
        return self.decoder(self.encoder(inputs))


def of_a_class():
    model = OfAClass()
    model.build((None, 4))
    tiedio.tie(model.decoder, to=model.encoder)
    return model


def one_layer_in_two_models():
    shared, inputs, inner_inputs = keras.layers.Dense(4), keras.Input((4,)), keras.Input((4,))
    inner = keras.Model(inner_inputs, keras.layers.Dense(4)(shared(inner_inputs)))
    return keras.Model(inputs, inner(shared(inputs)))


TIED = [sequential, functional, nested, of_a_class]


def outputs_of(model):
    return keras.ops.convert_to_numpy(model(DATA)).tobytes()


def give_ties_and_values(clone, model):
    file = io.BytesIO()
    tiedio.save_tied_weights(model, file)
    tiedio.load_tied_weights(clone, file)


def assert_loses_ties(copied, model):
    ties = tiedio.find_ties(model)
    with pytest.raises(tiedio.TiedioError) as error:
        tiedio.assert_tied(copied, ties)
    assert all(str(place) in str(error.value) for tie in ties for place in tie.aliases)


@pytest.mark.parametrize("build", TIED)
def test_a_clone_loses_ties_and_the_weights_bring_them(build):
    model = build()
    clone = keras.models.clone_model(model)
    assert_loses_ties(clone, model)
    give_ties_and_values(clone, model)
    tiedio.assert_tied(clone, tiedio.find_ties(model))
    tiedio.assert_tied(clone)
    assert outputs_of(clone) == outputs_of(model)
    held = {id(variable) for variable in model.variables}
    assert not any(id(variable) in held for variable in clone.variables)


def test_a_config_has_no_ties():
    model = functional()
    assert_loses_ties(keras.Model.from_config(model.get_config()), model)
    assert_loses_ties(keras.models.model_from_json(model.to_json()), model)


@pytest.mark.parametrize(
    "options",
    [
        {"recursive": True},
        {"clone_function": lambda layer: layer.__class__.from_config(layer.get_config())},
        {"call_function": lambda layer, *args, **kwargs: layer(*args, **kwargs)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_cloning_keep_no_ties(options):
    model = functional()
    clone = keras.models.clone_model(model, **options)
    assert_loses_ties(clone, model)
    give_ties_and_values(clone, model)
    tiedio.assert_tied(clone, tiedio.find_ties(model))


def test_a_clone_with_new_values_is_tied_as_the_model_was():
    model = functional()
    clone = keras.models.clone_model(model)
    first, second = (layer.name for layer in model.layers[1:])
    tiedio.tie(clone.get_layer(second), to=clone.get_layer(first))
    tiedio.assert_tied(clone, tiedio.find_ties(model))
    assert outputs_of(clone) != outputs_of(model)


def test_a_layer_in_two_models_stays_one_in_a_recursive_clone_only():
    model = one_layer_in_two_models()
    places = walk(model).shared_layers
    assert len(places) == 1
    recursive = keras.models.clone_model(model, recursive=True)
    assert walk(recursive).shared_layers == places
    clone = keras.models.clone_model(model)
    # One layer is no tie, so that this is what tells.
    assert (clone.count_params(), model.count_params()) == (60, 40)
    give_ties_and_values(clone, model)
    assert clone.count_params() == model.count_params()
    assert outputs_of(clone) == outputs_of(model)


def clone_patched(model, *args, **options):
    with tiedio.patch():
        return clone_model(model, *args, **options)


def assert_is_clone(clone, model):
    """Tied as the model is, not with it, and ready to be trained by itself."""
    tiedio.assert_tied(clone, tiedio.find_ties(model))
    assert clone.count_params() == model.count_params()
    held = {id(variable) for variable in model.variables}
    assert not any(id(variable) in held for variable in clone.variables)
    before = outputs_of(model)
    clone.compile("sgd", "mse")
    clone.fit(DATA, keras.ops.convert_to_numpy(model(DATA)), verbose=0)
    tiedio.assert_tied(clone, tiedio.find_ties(model))
    assert outputs_of(model) == before


@pytest.mark.often(2)
@pytest.mark.parametrize(
    ("build", "clone_tied"),
    [
        *((build, tiedio.clone_tied) for build in (*TIED, one_layer_in_two_models)),
        *((build, clone_patched) for build in (sequential, functional, of_a_class)),
    ],
)
def test_a_clone_is_tied_as_the_model_is(build, clone_tied):
    model = build()
    model.compile("adam", "mse")
    model.fit(DATA, DATA, verbose=0)
    clone = clone_tied(model)
    assert type(clone) is type(model)
    assert len(clone.optimizer.variables) == len(model.optimizer.variables)
    assert int(clone.optimizer.iterations) == 0
    assert_is_clone(clone, model)
    if tiedio.find_ties(model):
        tiedio.assert_tied(clone)  # as made on purpose


def from_config(layer):
    return layer.__class__.from_config(layer.get_config())


def between_and_inside_models():
    """What is tied in a nested model, and to a layer around it."""
    inner = [keras.layers.Dense(4, activation="tanh", name=f"inner_{n}") for n in range(2)]
    inside = keras.Input((4,))
    nested = keras.Model(inside, inner[1](inner[0](inside)), name="nested")
    inputs, outer = keras.Input((4,)), keras.layers.Dense(4, name="outer")
    model = keras.Model(inputs, outer(nested(nested(inputs))))
    tiedio.tie(inner[1], to=inner[0])
    tiedio.tie(outer, to=inner[0], weights=("kernel",))
    return model


def test_options_of_cloning_keep_ties():
    """Whatever stands at other paths in the clone, as layers that are put between those."""

    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        is_dense = isinstance(layer, keras.layers.Dense)
        return keras.layers.Dense(4, name=f"after_{layer.name}")(outputs) if is_dense else outputs

    model = between_and_inside_models()
    assert_is_clone(clone_patched(model, recursive=True), model)
    assert_is_clone(clone_patched(model, keras.Input((4,)), from_config), model)
    clone = clone_patched(model, call_function=call, recursive=True)
    nested = clone.get_layer("nested")
    first, second = (nested.get_layer(f"inner_{n}") for n in range(2))
    assert first.kernel is second.kernel is clone.get_layer("outer").kernel
    assert first.bias is second.bias is not clone.get_layer("outer").bias
    assert "after" not in str(tiedio.find_ties(clone))  # what was put between


def test_layers_that_are_used_again_are_what_they_are():
    model = functional()
    first, second = model.layers[1:]
    clone = tiedio.clone_tied(
        model, clone_function=lambda one: one if one is first else from_config(one)
    )
    assert clone.layers[1] is first and first.kernel is second.kernel
    assert clone.layers[2].kernel is not first.kernel
    assert tiedio.clone_tied(model, clone_function=lambda layer: layer).layers[1:] == [
        first,
        second,
    ]


@pytest.mark.parametrize("clone_tied", [tiedio.clone_tied, clone_patched])
def test_what_cannot_be_tied_in_a_clone_is_named(clone_tied):
    def wider(layer):
        is_outer = layer.name == "outer"
        return keras.layers.Dense(5, name="outer") if is_outer else from_config(layer)

    def without_weights(layer):
        return keras.Sequential([keras.layers.Activation("tanh")], name=layer.name)

    model = between_and_inside_models()
    names = "`nested/inner_0/kernel`, `nested/inner_1/kernel` from `outer/kernel`"
    with pytest.warns(TiedioWarning) as warned:
        clone = clone_tied(model, clone_function=wider)
    assert str(warned[0].message).startswith(f"Cloning `{model.name}` separated {names}: the")
    assert (len(warned), warned[0].filename) == (1, __file__)
    inner = clone.get_layer("nested").layers[1:]
    assert inner[0].kernel is inner[1].kernel and inner[0].bias is inner[1].bias
    with pytest.warns(TiedioWarning, match="separated .*`nested/inner_0/bias` from `nested/inner_"):
        clone_tied(model, clone_function=without_weights)


def test_what_is_cloned_meanwhile_is_tied_too():
    clones = []

    def cloning(layer):
        if isinstance(layer, keras.Model):
            clones.append(clone_model(layer))  # and not used
            return clone_model(layer)
        return from_config(layer)

    model = between_and_inside_models()
    assert_is_clone(tiedio.clone_tied(model, clone_function=cloning), model)
    (unused,) = clones
    tiedio.assert_tied(unused, tiedio.find_ties(model.get_layer("nested")))
    assert unused.layers[1].kernel is not model.get_layer("nested").layers[1].kernel


def test_what_keras_refuses_to_clone_is_refused_as_by_keras():
    for options in ({"clone_function": from_config}, {"call_function": from_config}):
        with pytest.raises(ValueError, match="only supported for"):
            tiedio.clone_tied(of_a_class(), **options)
    for other in ("model.keras", keras.layers.Dense(4)):
        with pytest.raises(tiedio.TiedioError, match="passed as `model`"):
            tiedio.clone_tied(other)
    assert not tiedio.clone_tied(keras.Sequential([keras.layers.Dense(4)])).built


def unpickled(model):
    return pickle.loads(pickle.dumps(model))  # noqa: S301


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, unpickled])
def test_a_copy_by_keras_loses_ties(duplicate):
    model = functional()
    assert_loses_ties(duplicate(model), model)


@pytest.mark.often(2)
@pytest.mark.parametrize(
    ("build", "duplicate"),
    [*((build, copy.deepcopy) for build in (*TIED, one_layer_in_two_models)), (nested, unpickled)],
)
def test_a_copy_keeps_what_is_one_where_keras_is_patched(build, duplicate):
    model = build()
    model.compile(optimizer="adam", loss="mse")
    model.fit(DATA, DATA, verbose=0)
    with tiedio.patch():
        copied = duplicate(model)
    tiedio.assert_tied(copied, tiedio.find_ties(model))
    assert copied.count_params() == model.count_params()
    outputs = outputs_of(model)
    assert outputs_of(copied) == outputs
    for one, other in zip(copied.optimizer.variables, model.optimizer.variables, strict=True):
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (one, other)))
    for variable in copied.trainable_variables:
        variable.assign(variable + 1)
    assert outputs_of(model) == outputs


def test_a_pickle_is_loaded_tied_where_keras_is_not_patched():
    model = functional()
    with tiedio.patch():
        pickled = pickle.dumps(model)
    tiedio.assert_tied(pickle.loads(pickled), tiedio.find_ties(model))  # noqa: S301


def test_what_is_no_built_model_is_copied_by_keras_where_it_is_patched():
    layer = keras.layers.Dense(4)
    layer.build((None, 4))
    optimizer = keras.optimizers.Adam(0.5)
    with tiedio.patch():
        copied = copy.deepcopy(layer)
        assert isinstance(copy.deepcopy(keras.Sequential([keras.layers.Dense(4)])), keras.Model)
        assert float(copy.deepcopy(optimizer).learning_rate) == 0.5
    assert np.array_equal(*(keras.ops.convert_to_numpy(one.kernel) for one in (copied, layer)))
