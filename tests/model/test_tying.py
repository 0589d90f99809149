"""`tie` and `untie` on live layers and models."""

import gc
import warnings
import weakref

import frozen_models
import keras
import numpy as np
import pytest
import scenarios
from checkout import start

import tiedio
from tiedio.errors import TieError
from tiedio.model.live_layers import live_layers


def built(layer, shape=(None, 4)):
    layer.build(shape)
    return layer


def image_model(*layers):
    image = keras.Input((8, 8, 2))
    pooled = [keras.layers.GlobalMaxPooling2D()(layer(image)) for layer in layers]
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.Concatenate()(pooled)))


LAYERS = {
    "conv": (lambda **kw: keras.layers.Conv2D(3, 2, **kw), (None, 8, 8, 2)),
    "transposed": (lambda **kw: keras.layers.Conv2DTranspose(3, 2, **kw), (None, 8, 8, 2)),
    "separable": (lambda **kw: keras.layers.SeparableConv2D(3, 2, **kw), (None, 8, 8, 2)),
    "depthwise": (lambda **kw: keras.layers.DepthwiseConv2D(2, **kw), (None, 8, 8, 2)),
    "dense": (lambda **kw: keras.layers.Dense(3, **kw), (None, 4)),
    "einsum": (
        lambda **kw: keras.layers.EinsumDense("ab,bc->ac", 3, bias_axes="c", **kw),
        (None, 4),
    ),
    "embedding": (lambda **kw: keras.layers.Embedding(5, 3, **kw), (None, 4)),
    "lstm": (lambda **kw: keras.layers.LSTM(3, **kw), (None, 5, 4)),
    "gru": (lambda **kw: keras.layers.GRU(3, **kw), (None, 5, 4)),
    "cell": (lambda **kw: keras.layers.LSTMCell(3, **kw), (None, 4)),
    "batch": (lambda **kw: keras.layers.BatchNormalization(**kw), (None, 4)),
    "layer": (lambda **kw: keras.layers.LayerNormalization(**kw), (None, 4)),
    "group": (lambda **kw: keras.layers.GroupNormalization(2, **kw), (None, 4)),
    "custom": (lambda **kw: scenarios.Mixture(**kw), (None, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("order", ["both built", "one built", "none built"])
def test_every_weight_of_equal_role_is_one_variable(kind, order):
    make, shape = LAYERS[kind]
    owner, layer = make(), make()
    if order != "none built":
        owner.build(shape)
    if order == "both built":
        layer.build(shape)
    tiedio.tie(layer, to=owner, input_shape=shape if order == "none built" else None)
    assert len(owner.weights) > 0
    for ours, theirs in zip(layer.weights, owner.weights, strict=True):
        assert ours is theirs


@pytest.mark.parametrize(
    ("option", "value"), [("padding", "same"), ("strides", 2), ("dilation_rate", 2)]
)
def test_convolutions_may_differ_in_everything_else(option, value):
    plain = keras.layers.Conv2D(3, 2)
    other = keras.layers.Conv2D(3, 2, **{option: value}, activation="relu")
    model = image_model(plain, other)
    before = model.count_params()
    tiedio.tie(other, to=plain)
    assert other.kernel is plain.kernel
    assert other.bias is plain.bias
    assert model.count_params() == before - plain.count_params()
    assert len(model.trainable_variables) == 4


def test_named_weights_only():
    a, b = built(keras.layers.Dense(4)), built(keras.layers.Dense(4))
    assert tiedio.tie(b, to=a, weights=("kernel",)) is b
    assert b.kernel is a.kernel
    assert b.bias is not a.bias


def test_a_name_stands_for_all_weights_of_that_name():
    a, b = built(keras.layers.LSTM(2), (None, 3, 4)), built(keras.layers.LSTM(2), (None, 3, 4))
    tiedio.tie(b, to=a, weights="recurrent_kernel")
    assert b.cell.recurrent_kernel is a.cell.recurrent_kernel
    assert b.cell.kernel is not a.cell.kernel


def test_weights_that_only_one_layer_has_stay():
    a, b = built(keras.layers.Dense(4, use_bias=False)), built(keras.layers.Dense(4))
    bias = b.bias
    tiedio.tie(b, to=a)
    assert b.kernel is a.kernel
    assert b.bias is bias


def test_the_kernel_of_one_is_another_variable_of_the_owner():
    gru, dense = built(keras.layers.GRUCell(4)), built(keras.layers.Dense(12))
    kernel = gru.kernel
    tiedio.tie(dense, to=gru, weights={"kernel": "recurrent_kernel"})
    assert dense.kernel is gru.recurrent_kernel
    assert gru.kernel is kernel and dense.bias is not gru.bias


def bidirectional():
    return built(keras.layers.Bidirectional(keras.layers.GRU(4)), (None, 3, 4))


def test_other_names_go_by_sub_layers_and_what_there_is_once_wherever_it_is():
    owner, both = bidirectional(), bidirectional()
    cell, wrapped = (
        built(keras.layers.GRUCell(4)),
        keras.layers.TimeDistributed(built(keras.layers.Dense(12, use_bias=False))),
    )
    tiedio.tie(both, to=owner, weights={"kernel": "recurrent_kernel"})
    for layer in ("forward_layer", "backward_layer"):
        kernel = getattr(owner, layer).cell.recurrent_kernel
        assert getattr(both, layer).cell.kernel is kernel
    tiedio.tie(cell, to=owner, weights={"kernel": "backward_layer/cell/kernel"})
    assert cell.kernel is owner.backward_layer.cell.kernel
    tiedio.tie(wrapped, to=cell, weights="kernel", input_shape=(None, 3, 4))
    assert wrapped.layer.kernel is cell.kernel


def test_untied_from_another_name_it_is_regularised_as_its_own():
    gru = built(keras.layers.GRUCell(4, recurrent_regularizer="l1"))
    dense = built(keras.layers.Dense(12, kernel_regularizer="l2"))
    tiedio.tie(dense, to=gru, weights={"kernel": "recurrent_kernel"})
    tiedio.untie(dense, weights=("kernel",))
    assert dense.kernel is not gru.recurrent_kernel
    assert dense.kernel.name == "kernel"
    assert isinstance(dense.kernel.regularizer, keras.regularizers.L2)


@pytest.mark.often(1)
@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.weights.h5"])
def test_ties_by_other_names_are_saved_and_resumed(tmp_path, name):
    build = scenarios.SCENARIOS["by_other_names"]
    model = build()
    expected = {"depthwise_kernel": "kernel", "pointwise_kernel": "_kernel", "bias": "bias"}
    groups = tiedio.find_ties(model)
    assert {one.owner.attribute: one.aliases[0].attribute for one in groups} == expected
    scenarios.train(model)
    if "weights" in name:
        tiedio.save_tied_weights(model, tmp_path / name)
        loaded = build()
        tiedio.untie(loaded.layers[1])
        tiedio.load_tied_weights(loaded, tmp_path / name)
    else:
        tiedio.save_tied(model, tmp_path / name)
        loaded = tiedio.load_tied(tmp_path / name)
    assert tiedio.find_ties(loaded) == groups
    tiedio.assert_tied(loaded)
    for one in (model, loaded):
        scenarios.train(one)
    for a, b in zip(scenarios.state_of(model), scenarios.state_of(loaded), strict=True):
        assert a.tobytes() == b.tobytes()
    loaded.layers[1]._tracker.unlock()
    loaded.layers[1].kernel = keras.Variable(np.zeros((3, 3, 2, 1), "float32"))
    with pytest.raises(
        TieError, match=r"/depthwise_kernel` and `depthwise_conv2d\w*/kernel` differ"
    ):
        tiedio.assert_tied(loaded)


@pytest.mark.parametrize(
    "layers", [keras.layers.Dense, lambda _: keras.layers.LayerNormalization()]
)
def test_places_in_the_layers_lists_are_kept(layers):
    a, b = built(layers(4)), built(layers(4))
    names = [variable.name for variable in b.trainable_variables]
    tiedio.tie(b, to=a, weights=(names[0],))
    assert [variable.name for variable in b.trainable_variables] == names
    assert b.trainable_variables[0] is a.trainable_variables[0]


def test_tying_again_changes_nothing():
    a, b = built(keras.layers.Dense(4)), built(keras.layers.Dense(4))
    tiedio.tie(b, to=a)
    kernel = a.kernel
    tiedio.tie(b, to=a)
    assert a.kernel is b.kernel is kernel


def test_find_ties_names_owner_aliases_and_nothing_equal():
    keras.utils.clear_session()
    (group,) = tiedio.find_ties(scenarios.between_layers.three_in_a_row())
    assert str(group) == "dense/kernel = dense_1/kernel, dense_2/kernel  (4, 4) float32"
    assert [place.inner_path for place in group.aliases] == ["layers/dense_1", "layers/dense_2"]
    assert tiedio.find_ties(scenarios.controls.equal_but_untied()) == ()
    assert tiedio.find_ties(scenarios.controls.one_layer_called_twice()) == ()


def test_owner_is_the_layer_that_created_the_variable():
    model = scenarios.between_layers.owner_comes_second()
    assert [group.owner.inner_path for group in tiedio.find_ties(model)] == ["layers/conv2d_1"] * 2


def test_a_trained_function_does_not_go_on_with_the_old_variable():
    first, second = keras.layers.Conv2D(3, 2), keras.layers.Conv2D(3, 2)
    model = scenarios.compiled(image_model(first, second))
    scenarios.train(model)
    with pytest.warns(tiedio.TiedioWarning, match="starts anew, with its slots and iterations"):
        tiedio.tie(second, to=first)
    assert int(model.optimizer.iterations) == 0
    inputs, _ = scenarios.data_for(model)
    model.predict(inputs, verbose=0)
    before = np.array(first.kernel)
    scenarios.train(model)
    assert second.kernel is first.kernel
    assert np.abs(np.array(first.kernel) - before).max() > 0
    assert int(model.optimizer.iterations) == 4
    expected = model.predict(inputs, verbose=0)
    first.kernel.assign(np.zeros(first.kernel.shape))
    first.bias.assign(np.zeros(first.bias.shape))
    assert not np.array_equal(model.predict(inputs, verbose=0), expected)
    assert not keras.ops.convert_to_numpy(second(inputs)).any()


@pytest.fixture
def frozen_pair():
    """A model of two layers that has predicted, and is hidden from the garbage collector's list."""
    layers = keras.layers.Dense(2), keras.layers.Dense(2)
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.compile("sgd", "mse")
    assert predicts_as_it_computes(model)
    gc.freeze()
    yield model, *layers
    gc.unfreeze()


def predicts_as_it_computes(model):
    data = np.ones((2, 2), "float32")
    computed = keras.ops.convert_to_numpy(model(data))
    return np.allclose(model.predict(data, verbose=0), computed)


def test_models_that_are_frozen_for_a_fork_forget_their_functions(frozen_pair):
    model, first, second = frozen_pair
    tiedio.tie(second, to=first)
    assert predicts_as_it_computes(model)
    tiedio.untie(second)
    second.kernel.assign(np.zeros((2, 2)))
    assert predicts_as_it_computes(model)


def test_weights_into_a_part_of_a_frozen_model(frozen_pair, tmp_path):
    tied = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dense(2)])
    tiedio.tie(tied.layers[1], to=tied.layers[0])
    tiedio.save_tied_weights(tied, tmp_path / "tied.weights.h5")
    part, *_ = frozen_pair
    gc.unfreeze()
    whole = keras.Sequential([keras.Input((2,)), part])
    whole.compile("sgd", "mse")
    assert predicts_as_it_computes(whole)
    gc.freeze()
    tiedio.load_tied_weights(part, tmp_path / "tied.weights.h5")
    assert predicts_as_it_computes(whole)


@pytest.mark.seldom
def test_models_that_were_made_and_frozen_before_tiedio_was_used():
    assert start(frozen_models).wait() == 0


def test_the_list_of_layers_keeps_none_alive():
    layer = built(keras.layers.Dense(2))
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
    assert None not in live_layers()


def test_the_optimizer_counts_a_shared_variable_once():
    first, second = keras.layers.Conv2D(3, 2), keras.layers.Conv2D(3, 2)
    model = scenarios.compiled(image_model(first, second))
    model.optimizer.build(model.trainable_variables)
    optimizer = model.optimizer
    tiedio.tie(second, to=first)  # never trained: nothing is lost, no warning
    assert model.optimizer is optimizer
    assert len(model.optimizer.variables) == 2 + 2 * len(model.trainable_variables) == 10


def test_the_optimizer_that_was_built_anew_is_the_one_that_is_saved(tmp_path):
    first, second = keras.layers.Conv2D(3, 2), keras.layers.Conv2D(3, 2)
    model = scenarios.compiled(image_model(first, second))
    model.optimizer.build(model.trainable_variables)
    tiedio.tie(second, to=first)
    model.optimizer.learning_rate = 0.5
    assert model.get_compile_config()["optimizer"]["config"]["learning_rate"] == 0.5


def test_models_without_the_layer_keep_their_optimizer():
    other = scenarios.controls.equal_but_untied()
    scenarios.train(other)
    optimizer = other.optimizer
    a, b = built(keras.layers.Dense(4)), built(keras.layers.Dense(4))
    tiedio.tie(b, to=a)
    assert other.optimizer is optimizer


def test_untie_gives_a_copy_of_its_own():
    a, b = (built(keras.layers.Dense(4, kernel_regularizer=r)) for r in (None, "l2"))
    tiedio.tie(b, to=a)
    assert tiedio.untie(b, weights=("kernel",)) is b
    assert b.kernel is not a.kernel
    assert b.bias is a.bias
    assert np.array_equal(b.kernel, a.kernel)
    assert b.kernel.regularizer is not None
    a.kernel.assign(np.zeros(a.kernel.shape))
    assert np.array(b.kernel).any()
    tiedio.untie(b)
    assert b.bias is not a.bias


def test_untie_the_owner_leaves_the_others_tied():
    a, b, c = (built(keras.layers.Dense(4)) for _ in range(3))
    tiedio.tie(b, to=a)
    tiedio.tie(c, to=a)
    tiedio.untie(a)
    assert b.kernel is c.kernel is not a.kernel


def test_untied_model_trains_its_copies_apart(tmp_path):
    model = scenarios.two_paddings()
    tiedio.untie(model.layers[2])
    assert tiedio.find_ties(model) == ()
    scenarios.train(model)
    assert np.abs(np.array(model.layers[1].kernel) - np.array(model.layers[2].kernel)).max() > 0
    tiedio.save_tied(model, tmp_path / "untied.keras")
    loaded = tiedio.load_tied(tmp_path / "untied.keras")
    for a, b in zip(scenarios.state_of(model), scenarios.state_of(loaded), strict=True):
        assert a.tobytes() == b.tobytes()


def test_nothing_is_half_tied():
    a, b = built(keras.layers.Dense(4)), built(keras.layers.Dense(3))
    kernel, bias = b.kernel, b.bias
    with pytest.raises(TieError):
        tiedio.tie(b, to=a)
    assert b.kernel is kernel
    assert b.bias is bias


def test_a_warning_made_an_error_leaves_nothing_half_done():
    first, second = keras.layers.Conv2D(3, 2), keras.layers.Conv2D(3, 2)
    model = scenarios.compiled(image_model(first, second))
    scenarios.train(model)
    with warnings.catch_warnings(), pytest.raises(tiedio.TiedioWarning):
        warnings.simplefilter("error", tiedio.TiedioWarning)
        tiedio.tie(second, to=first)
    scenarios.train(model)
    assert int(model.optimizer.iterations) == 4


def test_an_optimizer_set_after_compile():
    first, second = keras.layers.Conv2D(3, 2), keras.layers.Conv2D(3, 2)
    model = scenarios.compiled(image_model(first, second))
    model.optimizer = keras.optimizers.SGD()
    model.optimizer.build(model.trainable_variables)
    tiedio.tie(second, to=first)
    scenarios.train(model)


def test_a_built_layer_inside_an_unbuilt_one_is_in_use():
    shared, other = built(keras.layers.Dense(4)), keras.Sequential([keras.layers.Dense(4)])
    user = keras.Sequential([keras.Input((4,)), shared])
    zeros = user.predict(np.ones((1, 4)), verbose=0) * 0
    outer = keras.Sequential([shared])
    other.build((None, 4))
    tiedio.tie(outer, to=other, input_shape=(None, 4))
    for variable in other.weights:
        variable.assign(np.zeros(variable.shape))
    assert np.array_equal(user.predict(np.ones((1, 4)), verbose=0), zeros)


def test_untie_keeps_how_a_variable_is_cast():
    a, b = (keras.layers.BatchNormalization(dtype="mixed_float16") for _ in range(2))
    tiedio.tie(b, to=a, input_shape=(None, 4))
    casts = [variable._autocast for variable in b.weights]
    tiedio.untie(b)
    assert [variable._autocast for variable in b.weights] == casts
    assert False in casts


def test_a_wrapper_follows_with_its_own_reference():
    wrapped, owner = (
        keras.layers.SpectralNormalization(keras.layers.Dense(4)),
        keras.layers.Dense(4),
    )
    keras.Sequential([keras.Input((4,)), owner, wrapped])
    tiedio.tie(wrapped.layer, to=owner, weights=("kernel",))
    assert wrapped.kernel is wrapped.layer.kernel
    assert wrapped.kernel is owner.kernel
    tiedio.untie(wrapped.layer)
    assert wrapped.kernel is wrapped.layer.kernel
    assert wrapped.kernel is not owner.kernel


class OwnFunctions(keras.Model):
    """Makes its functions without an option to make them anew, as Keras calls it."""

    fails = False

    def make_train_function(self):
        if self.fails:
            raise RuntimeError("no functions today")
        if self.train_function is None:
            super().make_train_function()


def own_functions():
    first, second = keras.layers.Dense(4), keras.layers.Dense(4)
    inputs = keras.Input((4,))
    model = OwnFunctions(inputs, second(first(inputs)))
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 4)), verbose=0)
    return model, first, second


@pytest.mark.filterwarnings("ignore::tiedio.errors.TiedioWarning")
def test_a_class_with_functions_of_its_own_trains_what_is_tied():
    model, first, second = own_functions()
    tiedio.tie(second, to=first)
    before = np.array(first.kernel)
    model.fit(np.ones((4, 4)), np.ones((4, 4)), verbose=0)
    assert second.kernel is first.kernel
    assert not np.array_equal(first.kernel, before)


@pytest.mark.filterwarnings("ignore::tiedio.errors.TiedioWarning")
def test_a_function_that_cannot_be_made_leaves_no_old_one():
    model, first, second = own_functions()
    model.fails = True
    with pytest.raises(RuntimeError):
        tiedio.tie(second, to=first)
    assert second.kernel is first.kernel and model.train_function is None
    held = {id(variable) for variable in model.trainable_variables}
    assert {id(variable) for variable in model.optimizer._trainable_variables} == held
