"""What differs from when a model was saved, and is loaded all the same, as stock Keras loads it."""

import keras
import numpy as np
import pytest
import scenarios
from loads import load_directly, load_patched

import tiedio
from tiedio.errors import LoadError, RecordError, TiedioError, TiedioWarning
from tiedio.model.keras_internals import SafeModeScope

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")


def dense(names="ab", units=4, **options):
    layers = [keras.layers.Dense(units, name=name, **options) for name in names]
    return keras.Sequential([keras.Input((4,)), *layers])


def tied(dtype=None):
    model = dense(dtype=dtype)
    tiedio.tie(model.layers[1], to=model.layers[0])
    model.compile("adam", "mse")
    return model


def fit(model):
    model.fit(X, X, batch_size=8, shuffle=False, verbose=0)


def assert_equal(model, other):
    pairs = zip(model.weights, other.weights, strict=True)
    assert all(np.array_equal(*scenarios.arrays_of(pair)) for pair in pairs)


@pytest.mark.parametrize(
    "then, now",
    [
        ("float32", "bfloat16"),
        ("float32", "float16"),
        ("bfloat16", "float32"),
        ("mixed_float16", "float32"),
    ],
)
def test_weights_of_another_dtype_are_cast_and_tied(tmp_path, load, then, now):
    saved, path = tied(then), tmp_path / "x.weights.h5"
    fit(saved)
    tiedio.save_tied_weights(saved, path)
    by_keras, model = tied(now), tied(now)
    by_keras.load_weights(path)
    load(model, path)
    assert_equal(model, by_keras)
    assert model.get_layer("a").kernel is model.get_layer("b").kernel
    assert model.get_layer("a").kernel.dtype == now
    assert int(model.optimizer.iterations) == 2
    fit(model)
    tiedio.save_tied_weights(model, path)
    load(again := tied(now), path)
    assert_equal(again, model)


def test_variables_of_two_dtypes_cannot_be_one(tmp_path):
    tiedio.save_tied_weights(tied(), path := tmp_path / "x.weights.h5")
    model = dense("a")
    model.add(keras.layers.Dense(4, name="b", dtype="bfloat16"))
    before = scenarios.arrays_of(model.weights)
    told = "`a/kernel`: float32, tied to another dtype; .*; `b/kernel`: bfloat16, tied to another"
    with pytest.raises(RecordError, match=told):
        load_directly(model, path)
    assert all(map(np.array_equal, scenarios.arrays_of(model.weights), before))
    with pytest.warns(TiedioWarning, match=told):
        load_patched(model, path)
    (by_keras := keras.models.clone_model(model)).load_weights(path)
    assert_equal(model, by_keras)


@keras.saving.register_keras_serializable("tiedio_tests")
class OfThePolicy(keras.layers.Layer):
    """Its config says nothing of its dtype."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = (keras.layers.Dense(4, name=name) for name in "ab")

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)

    def call(self, inputs):
        return self.second(self.first(inputs))

    def get_config(self):
        return {"name": self.name}


@pytest.mark.parametrize("patched", [False, True])
def test_a_model_that_is_built_by_another_policy(tmp_path, patched):
    saved, path = keras.Sequential([keras.Input((4,)), OfThePolicy()]), str(tmp_path / "x.keras")
    tiedio.tie(saved.layers[0].second, to=saved.layers[0].first)
    saved.compile("adam", "mse")
    fit(saved)
    tiedio.save_tied(saved, path)
    keras.config.set_dtype_policy("bfloat16")
    try:
        by_keras = keras.saving.load_model(path, compile=False)
        if patched:
            with tiedio.patch():
                loaded = keras.saving.load_model(path)
        else:
            loaded = tiedio.load_tied(path)
    finally:
        keras.config.set_dtype_policy("float32")
    layer = loaded.layers[0]
    assert layer.first.kernel is layer.second.kernel and layer.first.kernel.dtype == "bfloat16"
    for one, other in zip(layer.first.weights, by_keras.layers[0].first.weights, strict=True):
        assert np.array_equal(*scenarios.arrays_of([one, other]))
    fit(loaded)
    assert int(loaded.optimizer.iterations) == 4


def recurrent(batch_size, stateful=True):
    layers = [keras.layers.LSTM(4, name=n, stateful=stateful, return_sequences=True) for n in "ab"]
    model = keras.Sequential([keras.Input((3, 4), batch_size=batch_size), *layers])
    tiedio.tie(layers[1], to=layers[0])
    return model


def states(model):
    return scenarios.arrays_of(state for layer in model.layers for state in layer.states)


def test_states_of_another_batch_size(tmp_path, load):
    saved, path = recurrent(8), tmp_path / "x.weights.h5"
    assert saved.layers[0].states[0] is not saved.layers[1].states[0]  # which are no weights
    saved.predict(np.ones((8, 3, 4)), verbose=0)
    tiedio.save_tied_weights(saved, path)
    load(equal := recurrent(8), path)
    assert all(map(np.array_equal, states(equal), states(saved)))
    for model, why in ((recurrent(1), r"\(8, 4\), not \(1, 4\)"), (recurrent(1, False), "no such")):
        if other := model.layers[0].stateful:
            model.predict(np.ones((1, 3, 4)), verbose=0)
            before = states(model)
        with pytest.warns(TiedioWarning, match=f"`a/states/0`: {why}.*`b/states/1`") as caught:
            load(model, path)
        assert len(caught) == 1
        assert_equal(model, saved)
        assert model.layers[0].cell.kernel is model.layers[1].cell.kernel
        assert not other or all(map(np.array_equal, states(model), before))


def test_a_serving_model_needs_no_seeds(tmp_path, load):
    saved, path = tied(), tmp_path / "x.weights.h5"
    layers = [*saved.layers, keras.layers.Dropout(0.5, name="c"), keras.layers.GaussianNoise(0.1)]
    saved = keras.Sequential([keras.Input((4,)), *layers])
    tiedio.save_tied_weights(saved, path)
    load(model := dense(), path)
    assert_equal(model, saved)
    assert model.layers[0].kernel is model.layers[1].kernel


@pytest.mark.parametrize("patched", [False, True])
def test_lambdas_are_allowed_as_in_keras(tmp_path, patched):
    saved, path = tied(), str(tmp_path / "x.keras")
    saved.add(keras.layers.Lambda(lambda x: 2 * x, output_shape=(4,)))
    tiedio.save_tied(saved, path)

    def loaded(**options):
        if not patched:
            return tiedio.load_tied(path, **options)
        with tiedio.patch():
            return keras.saving.load_model(path, **options)

    with pytest.raises(ValueError, match=r"unsafe|arbitrary code"):
        loaded()
    with SafeModeScope(None):  # which ends what is set inside
        keras.config.enable_unsafe_deserialization()
        assert_equal(loaded(), saved)
    with SafeModeScope(True), pytest.raises(ValueError, match=r"unsafe|arbitrary code"):
        loaded(safe_mode=False)
    with pytest.raises(ValueError, match=r"unsafe|arbitrary code"):
        loaded()
    assert_equal(loaded(safe_mode=False), saved)


def test_layers_by_name_from_a_file_that_tiedio_wrote(tmp_path, load):
    """Of a layer with another input, Keras skips the kernel, and loads the bias."""
    saved, path = dense(["a", "b", "c"]), tmp_path / "x.h5"
    tiedio.tie(saved.layers[1], to=saved.layers[0])
    saved.layers[2].bias.assign(X[0])
    tiedio.save_tied(saved, path)

    def other():
        model = dense(["b", "new", "a"])
        wide = keras.layers.Dense(4, name="c")(keras.layers.Concatenate()(model.outputs * 2))
        return keras.Model(model.inputs, wide)

    model = other()
    (by_keras := other()).set_weights(model.get_weights())
    by_keras.load_weights(path, by_name=True, skip_mismatch=True)
    with pytest.warns(TiedioWarning, match="Cannot load the weights of `c`"):
        load(model, path, by_name=True, skip_mismatch=True)
    for layer, expected in zip(model.layers, by_keras.layers, strict=True):
        assert all(map(np.array_equal, layer.get_weights(), expected.get_weights())), layer.name
    assert np.array_equal(model.get_layer("c").get_weights()[1], X[0])
    assert model.get_layer("a").kernel is model.get_layer("b").kernel


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="a torch module needs torch")
@pytest.mark.parametrize("tied_file", [False, True])
def test_a_layer_that_stores_by_name(tmp_path, load, tied_file):
    import torch

    def wrapped():
        parts = torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 4)
        model = tied() if tied_file else dense()
        model.add(keras.layers.TorchModuleWrapper(torch.nn.Sequential(*parts)))
        return model

    saved, path = wrapped(), tmp_path / "x.weights.h5"
    (tiedio.save_tied_weights if tied_file else keras.Model.save_weights)(saved, path)
    load(model := wrapped(), path)
    assert_equal(model, saved)
    states = [one.layers[2].module.state_dict().values() for one in (model, saved)]
    assert all(map(torch.equal, *states))
    model.layers[2].module[0] = torch.nn.Linear(4, 3, bias=False)
    with pytest.raises(LoadError, match=r"`torch_module_wrapper.*their shapes must match"):
        load(model, path)


class WithAnotherHead(keras.Model):
    """One of its layers is built only where it is used."""

    def __init__(self, both):
        super().__init__()
        self.a, self.b = (keras.layers.Dense(4, name=name) for name in "ab")
        self.both = both

    def build(self, shape):
        for layer in (self.a, self.b)[: 1 + self.both]:
            layer.build(shape)

    def call(self, inputs):
        return self.a(inputs) + (self.b(inputs) if self.both else 0)


@pytest.mark.parametrize("save", [keras.Model.save_weights, tiedio.save_tied_weights])
def test_a_layer_that_is_not_built(tmp_path, save):
    saved, path = WithAnotherHead(both=True), tmp_path / "x.weights.h5"
    saved.build((None, 4))
    save(saved, path)
    (model := WithAnotherHead(both=False)).build((None, 4))
    with pytest.raises(TiedioError, match=r"Cannot (restore|load the weights of) `b"):
        load_directly(model, path)
    assert not np.array_equal(*scenarios.arrays_of([model.a.kernel, saved.a.kernel]))
    with pytest.warns(TiedioWarning, match=r"Cannot (restore|load the weights of) `b") as caught:
        load_patched(model, path)
    assert len(caught) == 1
    assert_equal(model.a, saved.a)
    assert not model.b.built
    with pytest.raises(ValueError, match="a model that has not yet been built"):
        load_patched(WithAnotherHead(both=False), path)


@keras.saving.register_keras_serializable("tiedio_tests")
class NeverCalled(keras.Model):
    """Its parts are built, and trained by code of its own, as in many guides."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = dense(), dense()

    def get_config(self):
        return {}


@pytest.mark.parametrize("patched", [False, True])
def test_a_model_that_is_never_called(tmp_path, patched):
    saved, path = NeverCalled(), tmp_path / "x.keras"
    tiedio.tie(saved.decoder, to=saved.encoder)
    saved.compile("adam")
    trained = saved.trainable_variables
    saved.optimizer.apply([keras.ops.ones(one.shape) for one in trained], trained)
    if patched:
        with tiedio.patch():
            saved.save(path)
            loaded = keras.saving.load_model(path)
    else:
        tiedio.save_tied(saved, path)
        loaded = tiedio.load_tied(path)
    assert not saved.built and not loaded.built
    assert_equal(loaded, saved)
    assert loaded.encoder.layers[0].kernel is loaded.decoder.layers[0].kernel
    assert int(loaded.optimizer.iterations) == 1


def test_the_lists_of_an_h5_file_are_for_other_classes_too(tmp_path, load):
    """Keras goes by their order, and knows no paths there."""

    class Other(keras.layers.Dense):
        pass

    saved, path = tied(), tmp_path / "x.h5"
    fit(saved)
    tiedio.save_tied(saved, path)
    model = keras.Sequential(
        [keras.Input((4,)), Other(4), keras.layers.Activation("tanh"), Other(4)]
    )
    load(model, path)
    assert np.array_equal(*scenarios.arrays_of([model.layers[0].kernel, saved.layers[0].kernel]))
    assert model.layers[0].kernel is model.layers[2].kernel
