"""What `migrate` writes, `load_tied` loads, whichever variables the optimizer was built for.

A layer may be frozen, or not any more, since the optimizer was built: what the config of a
model says of its layers is not what the state of the optimizer is of.
"""

import keras
import numpy as np
import pytest

import tiedio
from tiedio import errors
from tiedio.migration import planning

L = keras.layers

LEFT_OUT = "it does not tell which variables it is of"


def chain(*sizes, inputs=4):
    keras.utils.set_random_seed(1)
    layers = [L.Dense(size, name=f"dense_{size}_{n}") for n, size in enumerate(sizes)]
    return keras.Sequential([keras.Input((inputs,)), *layers])


def trained(model, *, steps=2):
    model.compile(keras.optimizers.Adam(0.01), "mse")
    random = np.random.RandomState(0)
    x, y = (random.rand(8, *shape[1:]) for shape in (model.input_shape, model.output_shape))
    for _ in range(steps):
        model.train_on_batch(x, y)
    return model


def as_it_was(*sizes):
    return trained(chain(*sizes))


def frozen_since(*sizes):
    model = trained(chain(*sizes))
    model.layers[0].trainable = False
    return model


def all_frozen_since(*sizes):
    model = trained(chain(*sizes))
    model.trainable = False
    return model


def not_frozen_any_more(*sizes):
    model = chain(*sizes)
    model.layers[0].trainable = False
    trained(model).layers[0].trainable = True
    return model


def others_frozen(*sizes):
    """As many variables as before, but others."""
    model = chain(*sizes)
    model.layers[0].trainable = False
    first, *_, last = trained(model).layers
    first.trainable, last.trainable = True, False
    return model


def compiled_again(*sizes):
    model = trained(chain(*sizes))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def of_a_part(*sizes):
    """The optimizer is built for one layer, as where a model has a `train_step` of its own."""
    model = chain(*sizes)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    part = model.layers[-1].trainable_variables
    model.optimizer.apply([keras.ops.ones_like(one) for one in part], part)
    return model


def adversarial(*sizes):
    """The generator is trained through a discriminator that is frozen meanwhile."""
    generator, discriminator = chain(*sizes), chain(*sizes[-2::-1], 1, inputs=sizes[-1])
    discriminator.trainable = False
    return trained(keras.Sequential([keras.Input((4,)), generator, discriminator]))


def adversarial_not_frozen_any_more(*sizes):
    """As in Keras 2, where such a flag is not in the file."""
    model = adversarial(*sizes)
    model.layers[1].trainable = True
    return model


CASES = {
    one.__name__: one
    for one in (
        as_it_was,
        frozen_since,
        all_frozen_since,
        not_frozen_any_more,
        others_frozen,
        compiled_again,
        of_a_part,
        adversarial,
        adversarial_not_frozen_any_more,
    )
}
# Of these no shapes tell it. (Where as many were frozen as before, the config is believed.)
UNTOLD = ("not_frozen_any_more", "of_a_part", "adversarial_not_frozen_any_more")


def migrated(model, ending, tmp_path):
    model.save(tmp_path / f"stock{ending}")
    done = planning.migrate(tmp_path / f"stock{ending}", tmp_path / "tied.keras", accept=["none"])
    return done, tiedio.load_tied(done.target)


def check_state(model, loaded):
    """Compares the variables that the optimizer was built for, and all that it holds."""
    for one, other in zip(model.weights, loaded.weights, strict=True):
        assert np.array_equal(one, other), one.path
    assert trained_by(model.optimizer, model) == trained_by(loaded.optimizer, loaded)
    for one, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        assert np.array_equal(one, other), one.path


def trained_by(optimizer, model):
    """Numbers the variables that an optimizer was built for, as the model has them."""
    if not optimizer.built:
        return None
    number = {id(one): number for number, one in enumerate(model.weights)}
    return [number[id(one)] for one in optimizer._trainable_variables]


@pytest.mark.often(4)
@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("case", CASES)
def test_what_shapes_or_names_tell_resumes(case, ending, tmp_path):
    model = CASES[case](5, 6, 3)
    done, loaded = migrated(model, ending, tmp_path)
    assert not any(LEFT_OUT in note for note in done.notes)
    check_state(model, loaded)


@pytest.mark.often(2)
@pytest.mark.parametrize("case", CASES)
def test_names_tell_what_no_shapes_do(case, tmp_path):
    model = CASES[case](4, 4, 4)
    check_state(model, migrated(model, ".h5", tmp_path)[1])


@pytest.mark.parametrize("case", UNTOLD)
def test_what_nothing_tells_is_left_out(case, tmp_path):
    """Of layers of one shape any may have been frozen, and the state is of none for sure."""
    done, loaded = migrated(CASES[case](4, 4, 4), ".keras", tmp_path)
    assert any(LEFT_OUT in note for note in done.notes)
    assert not loaded.optimizer.built


@pytest.mark.often(2)
@pytest.mark.parametrize("case", CASES)
def test_weights_alone_load_into_the_model(case, tmp_path):
    model = CASES[case](5, 6, 3)
    model.save(tmp_path / "stock.keras")
    planning.migrate(tmp_path / "stock.keras", tmp_path / "tied.weights.h5", accept=["none"])
    again = CASES[case](5, 6, 3)
    for one in (*again.weights, *again.optimizer.variables):
        one.assign(keras.ops.zeros_like(one))
    tiedio.load_tied_weights(again, tmp_path / "tied.weights.h5")
    check_state(model, again)


@pytest.mark.often(2)
@pytest.mark.parametrize("case", CASES)
def test_what_a_record_tells_is_kept(case, tmp_path):
    model = CASES[case](4, 4, 4)
    tiedio.save_tied(model, tmp_path / "first.keras")
    planning.migrate(tmp_path / "first.keras", tmp_path / "second.keras", accept=["none"])
    check_state(model, tiedio.load_tied(tmp_path / "second.keras"))


@keras.saving.register_keras_serializable("tests")
class Momentum(keras.optimizers.Adam):
    """An optimizer of which nothing is known here."""


@keras.saving.register_keras_serializable("tests")
class Own(keras.Model):
    """A model whose config does not say which layers it has."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = L.Dense(5), L.Dense(3)

    def call(self, inputs):
        return self.second(self.first(inputs))

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build((None, 5))


def stepped(model, optimizer):
    model.compile(optimizer, "mse")
    model.train_on_batch(np.ones((8, 4)), np.ones((8, 3)))
    return model


def of_unknown_optimizer():
    return stepped(chain(5, 3), Momentum(0.01))


def of_unknown_optimizer_frozen_since():
    model = of_unknown_optimizer()
    model.layers[0].trainable = False
    return model


def of_unknown_layers():
    return stepped(Own(), "adam")


def of_unknown_layers_frozen():
    model = Own()
    model.first.trainable = False
    return stepped(model, "adam")


@pytest.mark.parametrize("make", [of_unknown_optimizer, of_unknown_layers])
def test_what_is_not_known_resumes_if_it_fits(make, tmp_path):
    model = make()
    check_state(model, migrated(model, ".keras", tmp_path)[1])


@pytest.mark.parametrize("make", [of_unknown_optimizer_frozen_since, of_unknown_layers_frozen])
def test_what_is_not_known_starts_anew_if_not(make, tmp_path):
    """With a warning, as where the file that was migrated is loaded."""
    model = make()
    with pytest.warns(errors.TiedioWarning, match="Cannot resume `optimizer`"):
        _, loaded = migrated(model, ".keras", tmp_path)
    assert int(loaded.optimizer.iterations) == 0
    for one, other in zip(model.weights, loaded.weights, strict=True):
        assert np.array_equal(one, other), one.path


@keras.saving.register_keras_serializable("tests")
class Twins(Own):
    """A model whose config does not say that two layers of one shape share a kernel."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = L.Dense(4), L.Dense(4)

    def build(self, input_shape):
        self.first.build((None, 4))
        self.second.build((None, 4))


def twins(*, are_tied, steps=2):
    keras.utils.set_random_seed(1)
    model = Twins()
    model.build((None, 4))
    if are_tied:
        tiedio.tie(model.second, to=model.first, weights=["kernel"])
    model.compile("adam", "mse")
    return further(model, steps)


def further(model, steps=2):
    x, y = np.random.RandomState(0).rand(2, 8, 4)
    for _ in range(steps):
        model.train_on_batch(x, y)
    return model


def first_tie(filepath):
    (equal,) = planning.plan(filepath).proposals
    return f"{equal.aliases[0]}={equal.owner}"


@pytest.mark.parametrize("how", ["accepted", "given"])
def test_a_model_of_unknown_layers_resumes_with_its_ties(how, tmp_path):
    model = twins(are_tied=True)
    model.save(stock := tmp_path / "stock.keras")
    allowed = {"ties": [first_tie(stock)]} if how == "given" else {"accept": ["contents"]}
    done = planning.migrate(stock, tmp_path / "tied.keras", **allowed)
    assert not any("optimizer" in note for note in done.notes)
    loaded = tiedio.load_tied(done.target)
    check_state(further(model), further(loaded))
    assert loaded.first.kernel is loaded.second.kernel


@keras.saving.register_keras_serializable("tests")
class Triplets(Twins):
    def __init__(self, **options):
        super().__init__(**options)
        self.third = L.Dense(4)

    def build(self, input_shape):
        super().build(input_shape)
        self.third.build((None, 4))


def test_a_tie_that_decides_whose_the_state_is(tmp_path):
    """Two states of three that are alike are of two that are tied, or one has none: it is told."""
    model = Triplets()
    model.build((None, 4))
    model.third.trainable = False
    model.compile("adam", "mse")
    further(model).second.kernel.assign(model.first.kernel)
    model.save(stock := tmp_path / "stock.keras")
    tie = f"{model.second.name}/0={model.first.name}/0"
    done = planning.migrate(stock, tmp_path / "tied.keras", ties=[tie])
    assert any("right only if these were tied when saved" in note for note in done.notes)


def test_a_model_of_unknown_layers_starts_anew_with_other_ties(tmp_path):
    """Each of the two has a state of its own, though they are equal now."""
    model = twins(are_tied=False)
    model.second.kernel.assign(model.first.kernel)
    model.save(stock := tmp_path / "stock.keras")
    (kernel,) = planning.plan(stock).forbidden
    tie = f"{kernel.aliases[0]}={kernel.owner}"
    done = planning.migrate(stock, tmp_path / "tied.keras", ties=[tie])
    assert any(LEFT_OUT in note for note in done.notes)
    assert not tiedio.load_tied(done.target).optimizer.built


def test_a_tie_that_is_declined_is_told_to_end_the_state(tmp_path):
    twins(are_tied=True).save(stock := tmp_path / "stock.keras")
    done = planning.migrate(stock, tmp_path / "apart.keras", accept=["none"])
    (note,) = (note for note in done.notes if "optimizer" in note)
    assert note.startswith("The optimizer starts anew if these were tied when saved: dense")
    assert note.endswith("Of shape (4, 4) it has 1 states, and there are 2 variables now.")
    with pytest.warns(errors.TiedioWarning, match="Cannot resume `optimizer`"):
        assert int(tiedio.load_tied(done.target).optimizer.iterations) == 0


def test_a_config_without_the_optimizer_keeps_the_state_beside_weights(tmp_path):
    """As Keras forgets it once it has saved a model as HDF5."""
    model = trained(chain(4, 4))
    model.save_weights(tmp_path / "stock.weights.h5")
    config = keras.saving.serialize_keras_object(model)
    del config["compile_config"]["optimizer"]
    for ending, is_kept in ((".weights.h5", True), (".keras", False)):
        stock, target = tmp_path / "stock.weights.h5", tmp_path / f"tied{ending}"
        done = planning.migrate(stock, target, config=config, accept=["none"])
        assert any("optimizer" in note for note in done.notes) is not is_kept
    again = trained(chain(4, 4), steps=0)
    tiedio.load_tied_weights(again, tmp_path / "tied.weights.h5")
    check_state(model, again)
