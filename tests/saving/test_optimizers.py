"""Optimizers of a script stay its own when weights are loaded, and go on as they were."""

import json

import keras
import numpy as np
import pytest
import scenarios

import tiedio
from tiedio import errors
from tiedio.model.walk import walk
from tiedio.record.record import Record
from tiedio.saving.capture import capture


def three_layers(tie):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(4, bias_initializer="ones") for _ in range(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    if tie:
        tiedio.tie(layers[1], to=layers[0])
    return model


def step(optimizer, variables):
    """Applies gradients that follow from the values, as each backend finds them in its own way."""
    tensors = [keras.ops.convert_to_tensor(variable) for variable in variables]
    gradients = [keras.ops.sin(5 * tensor) for tensor in tensors]
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if not (scales and keras.backend.backend() == "jax"):
        optimizer.apply(gradients, variables)
        return
    if not optimizer.built:
        optimizer.build(variables)
    slots = [slot.value for slot in optimizer.variables]
    after = optimizer.stateless_apply(slots, gradients, tensors)
    kept = [*variables, *optimizer.variables]
    for variable, value in zip(kept, [*after[0], *after[1]], strict=True):
        variable.assign(value)


def train(model, steps=3):
    for _ in range(steps):
        step(model.optimizer, model.trainable_variables)


class WithoutConfig(keras.optimizers.SGD):
    def get_config(self):
        raise NotImplementedError("no config")


class Halves(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1 * keras.ops.power(0.5, keras.ops.cast(step, "float32"))


class KeepsLists(keras.optimizers.Optimizer):
    """Made in the constructor: lists that `build` appends to, and a variable."""

    def __init__(self, learning_rate=0.1, **options):
        super().__init__(learning_rate=learning_rate, **options)
        self.slots, self.by_name = [], {}
        self.size = self.add_variable((), initializer="ones", name="size")

    def build(self, variables):
        super().build(variables)
        self.total = self.add_variable((), name="total")
        for variable in variables:
            self.slots.append(self.add_variable_from_reference(variable, name="slot"))
            self.by_name[variable.path] = self.slots[-1]

    def update_step(self, gradient, variable, learning_rate):
        gradient = keras.ops.cast(gradient, variable.dtype)
        slot = self.slots[self._get_variable_index(variable)]
        self.assign(slot, gradient + 0.5 * keras.ops.convert_to_tensor(slot))
        self.assign_add(self.total, keras.ops.sum(gradient))
        rate = keras.ops.convert_to_tensor(learning_rate) * keras.ops.convert_to_tensor(self.size)
        self.assign_sub(variable, rate * keras.ops.convert_to_tensor(slot))
        self.assign(self.size, 0.9 * keras.ops.convert_to_tensor(self.size))


class OnlyOnce(keras.optimizers.SGD):
    """A class of which no second `build` makes the same."""

    times = 0

    def build(self, variables):
        super().build(variables)
        OnlyOnce.times += 1
        for _ in range(OnlyOnce.times):
            self.add_variable((), name="more")


def decaying(**excluded):
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(**excluded)
    return optimizer


OPTIMIZERS = {
    "a pattern": lambda model: decaying(var_names=["bias"]),
    "variables": lambda model: decaying(var_list=[model.layers[1].bias, model.layers[2].kernel]),
    "no config": lambda model: WithoutConfig(0.1, momentum=0.9),
    "a schedule without a config": lambda model: keras.optimizers.Adam(Halves()),
    "a function for a rate": lambda model: keras.optimizers.Adam(lambda: 0.05),
    "lists": lambda model: KeepsLists(),
    "lists, and loss scaling": lambda model: keras.optimizers.LossScaleOptimizer(KeepsLists()),
    "moving averages": lambda model: keras.optimizers.SGD(0.1, use_ema=True),
    "accumulation": lambda model: keras.optimizers.Adam(0.1, gradient_accumulation_steps=2),
    "loss scaling": lambda model: keras.optimizers.LossScaleOptimizer(
        decaying(var_names=["bias"]), initial_scale=8.0, dynamic_growth_steps=2
    ),
    "nadam": lambda model: keras.optimizers.Nadam(0.1),
    "a value at first": lambda model: keras.optimizers.Adagrad(0.1),
}


def by_path(model):
    chosen = keras.optimizers.OptimizerMap(decaying(var_names=["bias"]))
    chosen[f".*{model.layers[0].name}/kernel"] = keras.optimizers.SGD(0.1, momentum=0.9)
    return keras.optimizers.MultiOptimizer(chosen)


def by_function(model):
    made = [keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.Adam(0.1)]
    return keras.optimizers.MultiOptimizer(lambda variable: made[len(variable.shape) - 1])


if hasattr(keras.optimizers, "MultiOptimizer"):
    OPTIMIZERS |= {"a map": by_path, "a function for a map": by_function}


def compiled(tie, made):
    keras.utils.clear_session(free_memory=False)  # the same names each time
    model = three_layers(tie)
    model.compile(OPTIMIZERS[made](model), "mse")
    return model


def assert_same(model, other):
    for a, b in zip(scenarios.state_of(model), scenarios.state_of(other), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.often(6)
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("made", OPTIMIZERS)
def test_the_optimizer_of_the_script_goes_on(tmp_path, made, trained):
    model = compiled(True, made)
    train(model)
    tiedio.save_tied_weights(model, tmp_path / "x.weights.h5")
    resumed = compiled(False, made)
    optimizer = resumed.optimizer
    optimizer.its_own = object()
    own, iterations = optimizer.its_own, optimizer._iterations
    if trained:
        train(resumed, 2)
    tiedio.load_tied_weights(resumed, tmp_path / "x.weights.h5")
    assert resumed.optimizer is optimizer
    assert optimizer.its_own is own and optimizer._iterations is iterations
    assert_same(resumed, model)
    train(model)
    train(resumed)
    assert_same(resumed, model)
    ids = {id(variable) for variable in optimizer._variables}
    assert optimizer._tracker.stored_ids["variables"] == ids


@pytest.mark.often(4)
@pytest.mark.parametrize("made", OPTIMIZERS)
def test_tie_starts_the_optimizer_anew_and_keeps_it(made):
    model = compiled(False, made)
    optimizer, before = model.optimizer, model.get_weights()
    train(model, 2)
    with pytest.warns(tiedio.TiedioWarning, match="starts anew"):
        tiedio.tie(model.layers[1], to=model.layers[0])
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 0
    fresh = compiled(True, made)
    if made.startswith("lists"):
        parts = [getattr(one, "inner_optimizer", one) for one in (optimizer, fresh.optimizer)]
        parts[0].size.assign(parts[1].size)  # which it had before it was built
    model.set_weights(before[:2] + before[4:])
    train(model)
    train(fresh)
    assert_same(model, fresh)


def test_untie_and_the_exclusion_of_a_variable():
    model = compiled(True, "variables")
    train(model, 1)
    optimizer = model.optimizer
    shared = model.layers[0].bias
    with pytest.warns(tiedio.TiedioWarning, match="starts anew"):
        tiedio.untie(model.layers[1])
    assert model.optimizer is optimizer
    own = model.layers[1].bias
    assert own is not shared and len(optimizer._trainable_variables) == 6
    keys = {optimizer._var_key(variable) for variable in (shared, own, model.layers[2].kernel)}
    assert optimizer._exclude_from_weight_decay == keys


@pytest.mark.often(2)
@pytest.mark.parametrize(
    "made", sorted({"a pattern", "variables", "loss scaling", "a map"} & OPTIMIZERS.keys())
)
@pytest.mark.parametrize("trained", [True, False])
def test_a_whole_model_brings_exclusions_back(tmp_path, made, trained):
    model = compiled(True, made)
    if trained:
        train(model)
    tiedio.save_tied(model, tmp_path / "x.keras")
    resumed = tiedio.load_tied(tmp_path / "x.keras")
    train(model)
    train(resumed)
    assert_same(resumed, model)
    tiedio.save_tied(resumed, tmp_path / "again.keras")
    again = tiedio.load_tied(tmp_path / "again.keras")
    train(resumed)
    train(again)
    assert_same(again, resumed)


def test_a_record_says_nothing_of_what_was_not_excluded():
    model = three_layers(True)
    model.compile(keras.optimizers.AdamW(0.01, weight_decay=0.5), "mse")
    train(model)
    record = capture(walk(model), None)[1]
    assert "excluded_from_weight_decay" not in record.to_json()
    model.optimizer.exclude_from_weight_decay(var_names=["bias"])
    record = capture(walk(model), None)[1]
    text = json.dumps(record.to_json())
    places = Record.from_json(json.loads(text)).excluded_from_weight_decay
    assert [p.inner_path for p in places["optimizer"]] == ["layers/dense", "layers/dense_2"]


def test_another_exclusion_than_in_the_file_is_told(tmp_path):
    model = compiled(True, "a pattern")
    train(model)
    tiedio.save_tied_weights(model, tmp_path / "x.weights.h5")
    other = three_layers(True)
    other.compile(decaying(var_list=[other.layers[2].kernel]), "mse")
    with pytest.warns(tiedio.TiedioWarning, match=r"another weight decay.*bias.*dense_5/kernel"):
        tiedio.load_tied_weights(other, tmp_path / "x.weights.h5")


def test_the_old_layout_does_not_say_what_is_excluded(tmp_path):
    model = compiled(True, "a pattern")
    with pytest.warns(tiedio.TiedioWarning, match="`optimizer` excludes from weight decay"):
        tiedio.save_tied(model, tmp_path / "x.h5")


@pytest.mark.parametrize("name", ["regularizer", "constraint", "overwrite_with_gradient"])
def test_what_is_set_on_a_variable_by_hand_is_told(tmp_path, name):
    layers = [keras.layers.Dense(4, bias_regularizer="l2", name=name) for name in ("a", "b")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    tiedio.tie(layers[1], to=layers[0])
    tiedio.save_tied(model, tmp_path / "x.keras")  # nothing to tell
    value = keras.constraints.NonNeg() if name == "constraint" else keras.regularizers.L1(0.1)
    setattr(layers[0].kernel, name, True if name == "overwrite_with_gradient" else value)
    if name == "regularizer":
        layers[0].bias.regularizer = None
    named = f"`a/kernel.{name}`"
    with pytest.warns(tiedio.TiedioWarning, match=named) as told:
        tiedio.save_tied(model, tmp_path / "x.keras")
    assert ("a/bias.regularizer" in str(told[0].message)) == (name == "regularizer")


@scenarios.base.serializable
class Parts(keras.Model):
    """A model with an optimizer for each part, in a list or a dict, or in the parts."""

    def __init__(self, held="list", **options):
        super().__init__(**options)
        self.held = held
        self.parts = [keras.layers.Dense(4), keras.layers.Dense(4)]

    def build(self, shape):
        for part in self.parts:
            part.build(shape)

    def call(self, inputs):
        return self.parts[1](self.parts[0](inputs))

    def compile(self, **options):
        super().compile(**options)
        rates = [keras.optimizers.Adam(0.1), keras.optimizers.Adam(0.01)]
        if self.held == "layer":
            for part, rate in zip(self.parts, rates, strict=True):
                part.optimizer = rate
        else:
            self.rates = rates if self.held == "list" else {"a": rates[0], "b": rates[1]}

    def train(self):
        if self.held == "layer":
            rates = [part.optimizer for part in self.parts]
        else:
            rates = self.rates if self.held == "list" else list(self.rates.values())
        for rate, part in zip(rates, self.parts, strict=True):
            step(rate, part.trainable_variables)


def parts(held, tie=True):
    keras.utils.set_random_seed(1)
    model = Parts(held)
    model.build((None, 4))
    if tie:
        tiedio.tie(model.parts[1], to=model.parts[0], weights=("kernel",))
    model.compile()
    return model


@pytest.mark.often(4)
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("held", ["list", "dict", "layer"])
def test_optimizers_are_held_in_many_ways(tmp_path, held, trained, tie):
    model = parts(held)
    model.train()
    model.train()
    tiedio.save_tied_weights(model, tmp_path / "x.weights.h5")
    resumed = parts(held, tie)
    if trained:
        resumed.train()
    tiedio.load_tied_weights(resumed, tmp_path / "x.weights.h5")
    assert resumed.parts[0].kernel is resumed.parts[1].kernel
    model.train()
    resumed.train()
    for a, b in zip(model.get_weights(), resumed.get_weights(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("held", ["list", "dict", "layer"])
def test_tie_after_training_finds_them(tmp_path, held):
    model = parts(held, tie=False)
    model.train()
    with pytest.warns(tiedio.TiedioWarning, match="starts anew"):
        tiedio.tie(model.parts[1], to=model.parts[0], weights=("kernel",))
    model.train()
    tiedio.save_tied_weights(model, tmp_path / "x.weights.h5")


def test_a_class_that_cannot_be_built_again_changes_nothing(tmp_path):
    model = three_layers(True)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    train(model)
    tiedio.save_tied_weights(model, tmp_path / "x.weights.h5")
    other = three_layers(False)
    other.compile(OnlyOnce(0.1, name="mine"), "mse")
    train(other)
    before, slots = other.get_weights(), list(map(id, other.optimizer.variables))
    for tie in (
        lambda: tiedio.load_tied_weights(other, tmp_path / "x.weights.h5"),
        lambda: tiedio.tie(other.layers[1], to=other.layers[0]),
    ):
        with pytest.raises(errors.TieError, match="Cannot build the optimizer `mine` for other"):
            tie()
    assert not tiedio.find_ties(other)
    with pytest.raises(errors.TieError, match="no ties to check"):
        tiedio.assert_tied(other)
    assert all(map(np.array_equal, before, other.get_weights()))
    assert list(map(id, other.optimizer.variables)) == slots
    train(other)


def test_what_does_not_fit_leaves_the_optimizer_as_it_is(tmp_path):
    model = compiled(True, "lists")
    train(model)
    tiedio.save_tied_weights(model, tmp_path / "x.weights.h5")
    other = compiled(True, "accumulation")
    train(other)
    before, attributes = scenarios.arrays_of(other.optimizer.variables), vars(other.optimizer)
    attributes = {name: id(value) for name, value in attributes.items()}
    with pytest.warns(errors.TiedioWarning, match="its variables are not those of the file"):
        tiedio.load_tied_weights(other, tmp_path / "x.weights.h5")
    assert {name: id(value) for name, value in vars(other.optimizer).items()} == attributes
    assert all(map(np.array_equal, before, scenarios.arrays_of(other.optimizer.variables)))
    train(other)
