"""Training state is restored where the model has a place for it; what is not, is told.

Values and ties come back in any case: these are programs that Keras itself lets go on.
"""

import keras
import numpy as np
import pytest
import scenarios
from loads import load_patched

import tiedio
from tiedio.errors import TiedioWarning

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")


def tied_layers(optimizer="adam", frozen=False, dtype=None):
    """A frozen layer or not, and two that share their variables."""
    layers = [keras.layers.Dense(4, name=name, dtype=dtype) for name in ("trunk", "a", "b")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    tiedio.tie(layers[2], to=layers[1])
    layers[0].trainable = not frozen
    model.compile(optimizer, "mse")
    return model


def fit(model, **options):
    return model.fit(X, X, batch_size=8, shuffle=False, verbose=0, **options)


def assert_as_saved(model, saved):
    assert all(map(np.array_equal, model.get_weights(), saved.get_weights()))
    assert model.get_layer("a").kernel is model.get_layer("b").kernel


@pytest.mark.parametrize("was_frozen", [True, False], ids=["thawed", "frozen"])
def test_another_phase_starts_its_optimizer_anew(tmp_path, load, was_frozen):
    saved, path = tied_layers(frozen=was_frozen), tmp_path / "x.weights.h5"
    fit(saved)
    tiedio.save_tied_weights(saved, path)
    model = tied_layers(keras.optimizers.Adam(1e-4), frozen=not was_frozen)
    verb = "does not train" if was_frozen else "trains"
    with pytest.warns(TiedioWarning) as caught:
        load(model, path)
    assert [str(one.message) for one in caught] == [
        f"Cannot resume `optimizer`: in the file it {verb} `trunk/bias`, `trunk/kernel`.\n"
        f"Expected: {4 if was_frozen else 2} variables, as in the model. "
        f"Received: {2 if was_frozen else 4}.\n"
        "It keeps the state that it has here. To resume, let it train what it trained, and no more."
    ]
    assert_as_saved(model, saved)
    assert int(model.optimizer.iterations) == 0
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-4)
    fit(model)
    assert int(model.optimizer.iterations) == 2


@pytest.mark.parametrize("backup", [tiedio.TiedBackupAndRestore, keras.callbacks.BackupAndRestore])
def test_one_backup_over_two_phases(tmp_path, backup):
    def phase(epochs, frozen):
        kept = backup(str(tmp_path / "backup"), delete_checkpoint=False)
        return fit(tied_layers(frozen=frozen), epochs=epochs, callbacks=[kept]).epoch

    with tiedio.patch():
        assert phase(2, frozen=True) == [0, 1]
        with pytest.warns(TiedioWarning, match="does not train `trunk/bias`, `trunk/kernel`"):
            assert phase(4, frozen=False) == [2, 3]


def test_an_optimizer_of_another_kind(tmp_path, load):
    saved, path = tied_layers("adam"), tmp_path / "x.weights.h5"
    fit(saved)
    tiedio.save_tied_weights(saved, path)
    model = tied_layers("sgd")
    with pytest.warns(TiedioWarning, match="Compile with the optimizer that was saved") as caught:
        load(model, path)
    assert len(caught) == 1 and "strict" not in str(caught[0].message)
    assert caught[0].filename == load.__code__.co_filename  # not a line of Keras, nor of tiedio
    assert_as_saved(model, saved)
    fit(model)


def scaled():
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW())


def inner(model):
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


@pytest.mark.often(1)
@pytest.mark.parametrize("was_scaled", [True, False])
def test_loss_scaling_then_or_now(tmp_path, load, was_scaled):
    first, second = (scaled(), "adamw") if was_scaled else ("adamw", scaled())
    saved, path = tied_layers(first), tmp_path / "x.weights.h5"
    fit(saved)
    tiedio.save_tied_weights(saved, path)
    model = tied_layers(second)
    fit(model, epochs=3)
    load(model, path)
    assert_as_saved(model, saved)
    assert int(model.optimizer.iterations) == 2
    slots = [scenarios.arrays_of(inner(one).variables) for one in (model, saved)]
    assert all(map(np.array_equal, *slots))
    fit(model)


def test_a_model_under_another_policy(tmp_path):
    saved, path = tied_layers("adamw"), tmp_path / "x.keras"
    saved.optimizer.exclude_from_weight_decay(var_list=[saved.get_layer("a").bias])
    fit(saved)
    tiedio.save_tied(saved, path)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        loaded = tiedio.load_tied(path)
        assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)
        fit(loaded)
        tiedio.save_tied(loaded, path)
    finally:
        keras.config.set_dtype_policy("float32")
    fit(saved)
    again = tiedio.load_tied(path)
    assert_as_saved(again, loaded)
    assert int(again.optimizer.iterations) == 4
    decays = [inner(again)._use_weight_decay(v) for v in again.trainable_variables]
    assert decays == [True, True, True, False]


@keras.saving.register_keras_serializable("tiedio_tests")
class CompiledByTheScript(keras.Model):
    """Its `compile` is its own, and nothing reads that back, as in many guides."""

    def __init__(self, **options):
        super().__init__(**options)
        self.a, self.b = keras.layers.Dense(4, name="a"), keras.layers.Dense(4, name="b")

    def build(self, input_shape):
        self.a.build(input_shape)
        self.b.build(input_shape)
        self.built = True

    def call(self, inputs):
        return self.b(self.a(inputs))

    def compile(self, first, second):
        super().compile()
        self.first, self.second = first, second

    def learn(self):
        for optimizer, layer in ((self.first, self.a), (self.second, self.b)):
            trained = layer.trainable_variables
            optimizer.apply([keras.ops.sin(5 * variable.value) for variable in trained], trained)


@pytest.mark.parametrize("patched", [False, True])
def test_a_class_that_the_script_compiles(tmp_path, patched):
    saved, path = CompiledByTheScript(), str(tmp_path / "x.keras")
    saved.build((None, 4))
    tiedio.tie(saved.b, to=saved.a, weights=["kernel"])
    saved.compile(keras.optimizers.Adam(), keras.optimizers.RMSprop())
    saved.learn()
    tiedio.save_tied(saved, path)
    with (
        pytest.warns(UserWarning, match="`compile\\(\\)` was not called"),
        pytest.warns(TiedioWarning, match="Compile the model, and call `tiedio.load_tied_weights`"),
    ):
        if patched:
            with tiedio.patch():
                loaded = keras.saving.load_model(path)
        else:
            loaded = tiedio.load_tied(path)
    assert not loaded.compiled
    assert_as_saved(loaded, saved)
    loaded.compile(keras.optimizers.Adam(), keras.optimizers.RMSprop())
    tiedio.load_tied_weights(loaded, path)
    for model in (saved, loaded):
        model.learn()
    assert_as_saved(loaded, saved)
    for one, other in ((saved.first, loaded.first), (saved.second, loaded.second)):
        assert all(map(np.array_equal, *map(scenarios.arrays_of, (one.variables, other.variables))))


@pytest.mark.parametrize("name", ["x.keras", "x.h5", "x.weights.h5"])
def test_a_layer_that_was_taken_off(tmp_path, name):
    saved, path = tied_layers(), tmp_path / name
    saved.add(keras.layers.Dense(4, name="head"))
    saved.compile("adam", "mse")
    fit(saved)
    saved.pop()
    save = tiedio.save_tied_weights if "weights" in name else tiedio.save_tied
    with pytest.warns(TiedioWarning, match=r"`optimizer` is not saved: .*/head/bias`, .*/kernel`"):
        save(saved, path)
    loaded = tied_layers()
    if "weights" in name:
        tiedio.load_tied_weights(loaded, path)
    else:
        loaded = tiedio.load_tied(path)
    assert_as_saved(loaded, saved)
    assert int(loaded.optimizer.iterations) == 0
    fit(loaded)


class Averaged(keras.Model):
    """Its optimizer trains one part; the other is an average of it, that nobody froze."""

    def __init__(self):
        super().__init__()
        self.network, self.average = (tied_layers() for _ in range(2))

    def call(self, inputs):
        return self.average(inputs)

    def learn(self):
        trained = self.network.trainable_variables
        self.optimizer.apply([keras.ops.sin(5 * one.value) for one in trained], trained)
        for one, mean in zip(self.network.variables, self.average.variables, strict=True):
            mean.assign(0.9 * mean + 0.1 * one)


def test_an_optimizer_that_trains_a_part(tmp_path, load):
    saved, model = Averaged(), Averaged()
    for one in (saved, model):
        one(X)
        one.compile("adam")
    saved.learn()
    tiedio.save_tied_weights(saved, tmp_path / "x.weights.h5")
    load(model, tmp_path / "x.weights.h5")
    for one in (saved, model):
        one.learn()
    assert int(model.optimizer.iterations) == 2
    assert all(map(np.array_equal, model.get_weights(), saved.get_weights()))


def test_all_that_is_not_restored_is_told_at_once(tmp_path):
    saved, model = Averaged(), Averaged()
    for one in (saved, model):
        one(X)
        fit(one.network)
        one.compile("adam" if one is saved else "sgd")
    saved.learn()
    model.network.compile("rmsprop", "mse")
    tiedio.save_tied_weights(saved, tmp_path / "x.weights.h5")
    with pytest.warns(TiedioWarning) as caught:
        tiedio.load_tied_weights(model, tmp_path / "x.weights.h5")
    (message,) = [str(one.message) for one in caught]
    assert message.count("Cannot resume") == 2 and len(message.splitlines()) == 6


def test_a_tie_by_hand_to_what_is_frozen(tmp_path, load):
    """The model is built without the tie: its own kernel, which it would train, is given up."""

    def built(tie):
        layers = [keras.layers.Dense(4, name=name, trainable=name != "a") for name in "ab"]
        model = keras.Sequential([keras.Input((4,)), *layers])
        if tie:
            scenarios.tie_by_hand(layers[1], layers[0], "_kernel")
        model.compile("adam", "mse")
        return model

    saved, model = built(tie=True), built(tie=False)
    fit(saved)
    tiedio.save_tied_weights(saved, tmp_path / "x.weights.h5")
    load(model, tmp_path / "x.weights.h5")
    for one in (saved, model):
        fit(one)
    assert_as_saved(model, saved)
    assert int(model.optimizer.iterations) == 4


def test_a_discriminator_that_its_generator_freezes(tmp_path, load):
    """Each trains with an optimizer of its own; the flag is toggled for each, as guides do."""

    def adversaries():
        generator, discriminator = tied_layers(), tied_layers()
        discriminator.trainable = False
        inputs = keras.Input((4,))
        combined = keras.Model(inputs, discriminator(generator(inputs)))
        combined.compile("adam", "mse")
        return discriminator, combined

    def train(discriminator, combined):
        discriminator.trainable = True
        discriminator.train_on_batch(X, X)
        discriminator.trainable = False
        combined.train_on_batch(X, X)

    saved, resumed = adversaries(), adversaries()
    train(*saved)
    tiedio.save_tied_weights(saved[1], tmp_path / "x.weights.h5")
    load(resumed[1], tmp_path / "x.weights.h5")
    for pair in (saved, resumed):
        train(*pair)
    assert all(map(np.array_equal, resumed[1].get_weights(), saved[1].get_weights()))
    assert [int(one.optimizer.iterations) for one in resumed] == [2, 2]


@pytest.mark.parametrize("patched", [False, True])
def test_what_was_frozen_when_saved_can_be_thawed(tmp_path, patched):
    """TensorFlow asks a variable of its own whether it is trained, and that once."""
    saved = tied_layers()
    saved.trainable = False
    saved.compile("adam", "mse")
    path = str(tmp_path / "x.keras")
    tiedio.save_tied(saved, path)
    if patched:
        with tiedio.patch():
            loaded = keras.saving.load_model(path)
    else:
        loaded = tiedio.load_tied(path)
    tiedio.untie(saved.get_layer("b"), weights=["bias"])  # whose copy is frozen, too
    tiedio.untie(loaded.get_layer("b"), weights=["bias"])
    for one in (saved, loaded):
        one.trainable = True
        one.compile("adam", "mse")
        before = one.get_weights()
        fit(one)
        assert not any(map(np.array_equal, one.get_weights(), before))
    assert_as_saved(loaded, saved)


def dense_layers(names, tie=False):
    layers = [keras.layers.Dense(4, name=name) for name in names]
    model = keras.Sequential([keras.Input((4,)), *layers])
    for layer in layers[1:] if tie else ():
        tiedio.tie(layer, to=layers[0])
    model.compile("adam", "mse")
    return model


def test_a_tie_of_which_the_model_lacks_a_layer(tmp_path):
    saved, model = dense_layers("abc", tie=True), dense_layers("ab")
    fit(saved)
    tiedio.save_tied_weights(saved, tmp_path / "x.weights.h5")
    with pytest.warns(TiedioWarning, match="Cannot restore `c`"):
        load_patched(model, tmp_path / "x.weights.h5")
    assert model.get_layer("a").kernel is model.get_layer("b").kernel
    fit(model)
    assert int(model.optimizer.iterations) == 4


def test_layers_that_were_thawed_before_the_save(tmp_path, load):
    """The optimizer was built for fewer, and its model would train more by now."""
    saved, model = tied_layers(frozen=True), tied_layers()
    fit(saved)
    saved.get_layer("trunk").trainable = True
    tiedio.save_tied_weights(saved, tmp_path / "x.weights.h5")
    tiedio.save_tied(saved, tmp_path / "x.keras")
    with pytest.warns(TiedioWarning, match="does not train `trunk/bias`, `trunk/kernel`"):
        load(model, tmp_path / "x.weights.h5")
    with tiedio.patch(), pytest.warns(TiedioWarning, match="does not train `trunk/bias`"):
        loaded = keras.saving.load_model(tmp_path / "x.keras")
    for one in (model, loaded):
        fit(one)
        assert int(one.optimizer.iterations) == 2
    assert int(tiedio.load_tied(tmp_path / "x.keras").optimizer.iterations) == 2  # as it was
