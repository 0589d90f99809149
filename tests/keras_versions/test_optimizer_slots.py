"""The state of an optimizer, as each version of Keras stores it, and as Keras 3 does."""

import dataclasses
import functools
import io
import json
import tempfile
import zipfile

import h5py
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiedio.formats.content import Weight
from tiedio.keras_versions import optimizer_slots

# What Keras 3 writes

CASES = {
    "sgd": ("SGD", {}),
    "sgd_momentum": ("SGD", {"momentum": 0.9}),
    "sgd_average": ("SGD", {"use_ema": True}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop_all": ("RMSprop", {"momentum": 0.9, "centered": True, "use_ema": True}),
    "rmsprop_centered": ("RMSprop", {"centered": True}),
    "adam": ("Adam", {}),
    "adam_amsgrad": ("Adam", {"amsgrad": True}),
    "adam_accumulating": ("Adam", {"gradient_accumulation_steps": 2}),
    "adam_all": (
        "Adam",
        {"amsgrad": True, "use_ema": True, "gradient_accumulation_steps": 2},
    ),
    "adam_schedule": ("Adam", {"learning_rate": "schedule"}),
    "adamw": ("AdamW", {}),
    "adamax": ("Adamax", {}),
    "nadam": ("Nadam", {}),
    "nadam_average": ("Nadam", {"use_ema": True}),
    "adagrad": ("Adagrad", {}),
    "adadelta": ("Adadelta", {}),
    "ftrl": ("Ftrl", {}),
    "lion": ("Lion", {}),
    "lamb": ("Lamb", {}),
    "adafactor": ("Adafactor", {}),
    "adafactor_average": ("Adafactor", {"use_ema": True}),
    "schedule_free": ("ScheduleFreeAdamW", {}),
}


def optimizer_of(class_name, options):
    if not hasattr(keras.optimizers, class_name):
        pytest.skip(f"this Keras has no {class_name}")
    if options.get("learning_rate") == "schedule":
        schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
        options = {**options, "learning_rate": schedule}
    return getattr(keras.optimizers, class_name)(**options)


def trained(case):
    """Makes a model with variables of one, two and three dimensions, and takes three steps."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4, 3)),
            keras.layers.Conv1D(2, 3, name="conv"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(5, name="dense"),
        ]
    )
    model.compile(optimizer_of(*CASES[case]), "mean_squared_error")
    model.optimizer.build(model.trainable_variables)
    random = np.random.default_rng(1)
    for _ in range(3):
        gradients = [
            keras.ops.convert_to_tensor(random.random(one.shape).astype("float32"))
            for one in model.trainable_variables
        ]
        model.optimizer.apply(gradients, model.trainable_variables)
    return model


@dataclasses.dataclass
class Saved:
    """What a file has of an optimizer: its config, its arrays in order, and their values."""

    config: dict
    stored: list[Weight]
    values: dict[str, np.ndarray]

    def read(self):
        return optimizer_slots.read(self.config, self.stored, keras.__version__)

    def ordered(self, read, order):
        found = optimizer_slots.ordered(read, order, self.config)
        return [self.values[one.dataset_path] if isinstance(one, Weight) else one for one in found]


@functools.cache
def saved(case):
    """Returns a model, and what stock Keras saves of it by number and by name, if it can."""
    model = trained(case)
    with tempfile.TemporaryDirectory() as folder:
        # In this order, as Keras forgets the optimizer's config while it saves the second.
        ways = [by_number(model, f"{folder}/model.keras")]
        if not case.startswith("adafactor"):  # has slots of one name
            ways.append(by_name(model, f"{folder}/model.h5"))
    return model, ways


def by_number(model, path):
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        weights = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    group = weights["optimizer/vars"]
    values = {number: group[number][()] for number in map(str, range(len(group)))}
    stored = [Weight("", number, value.shape) for number, value in values.items()]
    return Saved(config["compile_config"]["optimizer"], stored, values)


def by_name(model, path):
    model.save(path)
    with h5py.File(path) as file:
        group = file["optimizer_weights"]
        values = {name: group[name][()] for name in group.attrs["weight_names"]}
        config = json.loads(file.attrs["training_config"])["optimizer_config"]
    stored = [Weight(name, name, value.shape) for name, value in values.items()]
    return Saved(config, stored, values)


def bytes_of(arrays):
    return [(one.dtype, one.shape, one.tobytes()) for one in arrays]


def of_keras_3(class_name, config, shapes):
    """Returns the optimizer that Keras 3 makes of a config, built for variables of these shapes."""
    made = getattr(keras.optimizers, class_name).from_config(config)
    made.build([keras.Variable(np.zeros(shape, "float32")) for shape in shapes])
    return made


@pytest.mark.often(3)
@pytest.mark.parametrize("case", CASES)
def test_order_is_that_of_the_variables_of_the_optimizer(case):
    model, ways = saved(case)
    expected = bytes_of(keras.ops.convert_to_numpy(one) for one in model.optimizer.variables)
    for one in ways:
        read = one.read()
        assert bytes_of(one.ordered(read, range(len(read.variables)))) == expected
        shapes = [next(iter(held.values())).shape for held in read.variables]
        assert shapes in ([], [variable.shape for variable in model.trainable_variables])


@pytest.mark.often(3)
@pytest.mark.parametrize("case", [case for case in CASES if case != "sgd"])
def test_any_order_is_what_keras_builds_for_it(case):
    model, (one, *_) = saved(case)
    order = [2, 0, 3]
    found = one.ordered(one.read(), order)
    built = model.optimizer.from_config(model.optimizer.get_config())
    built.build([model.trainable_variables[index] for index in order])
    assert [array.shape for array in found] == [
        tuple(variable.shape) for variable in built.variables
    ]

    def name(variable):
        return variable.path.partition("/")[2]

    # Adafactor names several alike.
    names = [name(variable) for variable in model.optimizer.variables]
    originals = dict(zip(names, model.optimizer.variables, strict=True))
    for array, variable in zip(found, built.variables, strict=True):
        if names.count(name(variable)) == 1:
            original = originals[name(variable)]
            assert np.array_equal(array, keras.ops.convert_to_numpy(original))


@pytest.mark.parametrize("case", ["adam_amsgrad", "rmsprop_all", "ftrl", "nadam"])
def test_names_of_slots_tell_those_of_variables(case):
    model, (numbered, named) = saved(case)
    paths = tuple(variable.path.replace("/", "_") for variable in model.trainable_variables)
    assert named.read().hints == paths
    assert numbered.read().hints == ("",) * 4


# What others wrote: one dense layer, of a kernel and a bias

KERNEL, BIAS = (3, 4), (4,)


def listed(text, shapes):
    return [
        Weight(name.strip('"'), str(number), shape)
        for number, (name, shape) in enumerate(zip(text.split(), shapes, strict=True))
    ]


# Class, config, version, names, shapes, and for each kind the numbers of its arrays.
ADAM = [(), KERNEL, BIAS, KERNEL, BIAS]
IN_TURNS = [(), KERNEL, KERNEL, BIAS, BIAS]
OTHERS = {
    "keras_2_2_adam": (
        "Adam",
        {"lr": 0.001, "decay": 0.0, "amsgrad": False},
        "2.2.4",
        "Adam/iterations:0 training/Adam/Variable:0 training/Adam/Variable_1:0 "
        "training/Adam/Variable_2:0 training/Adam/Variable_3:0 training/Adam/Variable_4:0 "
        "training/Adam/Variable_5:0",
        [*ADAM, (1,), (1,)],
        {"momentum": "12", "velocity": "34"},
        ("", ""),
    ),
    "keras_2_2_rmsprop_does_not_count": (
        "RMSprop",
        {"lr": 0.001, "decay": 0.0},
        "2.2.4",
        "training/RMSprop/Variable:0 training/RMSprop/Variable_1:0",
        [KERNEL, BIAS],
        {"velocity": "01"},
        ("", ""),
    ),
    "keras_2_2_sgd_without_momentum": (
        "SGD",
        {"lr": 0.01, "momentum": 0.0, "decay": 0.0},
        "2.2.4",
        "SGD/iterations:0 training/SGD/Variable:0 training/SGD/Variable_1:0",
        [(), KERNEL, BIAS],
        {},
        ("", ""),
    ),
    "keras_2_2_nadam_forgets_its_product": (
        "Nadam",
        {"lr": 0.002},
        "2.2.4",
        "Nadam/iterations:0 training/Nadam/Variable:0 training/Nadam/Variable_1:0 "
        "training/Nadam/Variable_2:0 training/Nadam/Variable_3:0",
        ADAM,
        {"momentum": "12", "velocity": "34"},
        ("", ""),
    ),
    "keras_2_3_adam_amsgrad": (
        "Adam",
        {"learning_rate": 0.001, "decay": 0.0, "amsgrad": True},
        "2.3.1",
        "Adam/iterations:0 training/Adam/m_0_1:0 training/Adam/m_1_1:0 training/Adam/v_0_1:0 "
        "training/Adam/v_1_1:0 training/Adam/vhat_0_1:0 training/Adam/vhat_1_1:0",
        [*ADAM, KERNEL, BIAS],
        {"momentum": "12", "velocity": "34", "velocity_hat": "56"},
        ("", ""),
    ),
    "keras_2_3_nadam": (
        "Nadam",
        {"learning_rate": 0.002},
        "2.3.1",
        "Nadam_1/iterations:0 Nadam_1/m_schedule:0 training_1/Nadam/m_0_1:0 "
        "training_1/Nadam/m_1_1:0 training_1/Nadam/v_0_1:0 training_1/Nadam/v_1_1:0",
        [(), *ADAM],
        {"momentum": "23", "velocity": "45", "u_product": "1"},
        ("", ""),
    ),
    "keras_2_3_adadelta": (
        "Adadelta",
        {"learning_rate": 1.0, "decay": 0.0},
        "2.3.1",
        "Adadelta/iterations:0 training/Adadelta/accumulator_0_1:0 "
        "training/Adadelta/accumulator_1_1:0 training/Adadelta/delta_accumulator_0_1:0 "
        "training/Adadelta/delta_accumulator_1_1:0",
        ADAM,
        {"accumulated_grad": "12", "accumulated_delta_var": "34"},
        ("", ""),
    ),
    "tf_1_15_adam": (
        "Adam",
        {"learning_rate": 0.001, "decay": 0.0, "amsgrad": False},
        "2.2.4-tf",
        "training/Adam/iter:0 training/Adam/d1/kernel/m:0 training/Adam/d1/bias/m:0 "
        "training/Adam/d1/kernel/v:0 training/Adam/d1/bias/v:0",
        ADAM,
        {"momentum": "12", "velocity": "34"},
        ("d1/kernel", "d1/bias"),
    ),
    "tf_2_8_adam": (
        "Adam",
        {"learning_rate": 0.001, "decay": 0.0, "amsgrad": False},
        "2.8.0",
        "Adam/iter:0 Adam/d1/kernel/m:0 Adam/d1/bias/m:0 Adam/d1/kernel/v:0 Adam/d1/bias/v:0",
        ADAM,
        {"momentum": "12", "velocity": "34"},
        ("d1/kernel", "d1/bias"),
    ),
    "tf_2_8_adam_saved_again": (
        "Adam",
        {"learning_rate": 0.001, "decay": 0.0, "amsgrad": False},
        "2.8.0",
        "iter:0 d1/kernel/m:0 d1/bias/m:0 d1/kernel/v:0 d1/bias/v:0",
        ADAM,
        {"momentum": "12", "velocity": "34"},
        ("d1/kernel", "d1/bias"),
    ),
    "tf_2_8_adam_decaying": (
        "Adam",
        {"learning_rate": 0.001, "decay": 0.1, "amsgrad": False},
        "2.8.0",
        "Adam/iter:0 Adam/d1/kernel/m:0 Adam/d1/bias/m:0 Adam/d1/kernel/v:0 Adam/d1/bias/v:0",
        ADAM,
        {"momentum": "12", "velocity": "34"},
        ("d1/kernel", "d1/bias"),
    ),
    "tf_2_8_sgd_without_momentum": (
        "SGD",
        {"learning_rate": 0.01, "decay": 0.0, "momentum": 0.0},
        "2.8.0",
        "SGD/iter:0",
        [()],
        {},
        (),
    ),
    "tf_2_8_rmsprop_all": (
        "RMSprop",
        {"learning_rate": 0.001, "decay": 0.0, "momentum": 0.9, "centered": True},
        "2.8.0",
        "RMSprop/iter:0 RMSprop/d1/kernel/rms:0 RMSprop/d1/bias/rms:0 "
        "RMSprop/d1/kernel/momentum:0 RMSprop/d1/bias/momentum:0 RMSprop/d1/kernel/mg:0 "
        "RMSprop/d1/bias/mg:0",
        [*ADAM, KERNEL, BIAS],
        {"velocity": "12", "momentum": "34", "average_gradient": "56"},
        ("d1/kernel", "d1/bias"),
    ),
    "tf_2_8_nadam": (
        "Nadam",
        {"learning_rate": 0.001, "decay": 0.004},
        "2.8.0",
        "Nadam/iter:0 Nadam/momentum_cache:0 Nadam/d1/kernel/m:0 Nadam/d1/bias/m:0 "
        "Nadam/d1/kernel/v:0 Nadam/d1/bias/v:0",
        [(), *ADAM],
        {"momentum": "23", "velocity": "45", "u_product": "1"},
        ("d1/kernel", "d1/bias"),
    ),
    "tf_2_8_adamax": (
        "Adamax",
        {"learning_rate": 0.001, "decay": 0.0},
        "2.8.0",
        "Adamax/iter:0 Adamax/d1/kernel/m:0 Adamax/d1/bias/m:0 Adamax/d1/kernel/v:0 "
        "Adamax/d1/bias/v:0",
        ADAM,
        {"momentum": "12", "norm": "34"},
        ("d1/kernel", "d1/bias"),
    ),
    "tf_2_8_adadelta": (
        "Adadelta",
        {"learning_rate": 0.001, "decay": 0.0},
        "2.8.0",
        "Adadelta/iter:0 Adadelta/d1/kernel/accum_grad:0 Adadelta/d1/bias/accum_grad:0 "
        "Adadelta/d1/kernel/accum_var:0 Adadelta/d1/bias/accum_var:0",
        ADAM,
        {"accumulated_grad": "12", "accumulated_delta_var": "34"},
        ("d1/kernel", "d1/bias"),
    ),
    "tf_2_8_ftrl_in_turns": (
        "Ftrl",
        {"learning_rate": 0.001, "decay": 0.0},
        "2.8.0",
        "Ftrl/iter:0 Ftrl/d1/kernel/accumulator:0 Ftrl/d1/kernel/linear:0 "
        "Ftrl/d1/bias/accumulator:0 Ftrl/d1/bias/linear:0",
        IN_TURNS,
        {"accumulator": "13", "linear": "24"},
        ("d1/kernel", "d1/bias"),
    ),
    "keras_2_15_adam_all": (
        "Custom>Adam",
        {"learning_rate": 0.001, "amsgrad": True, "use_ema": True},
        "2.15.0",
        "iteration:0 Adam/average/d1/kernel:0 Adam/average/d1/bias:0 Adam/m/d1/kernel:0 "
        "Adam/v/d1/kernel:0 Adam/m/d1/bias:0 Adam/v/d1/bias:0 Adam/vhat/d1/kernel:0 "
        "Adam/vhat/d1/bias:0",
        [(), KERNEL, BIAS, KERNEL, KERNEL, BIAS, BIAS, KERNEL, BIAS],
        {"average": "12", "momentum": "35", "velocity": "46", "velocity_hat": "78"},
        ("d1/kernel", "d1/bias"),
    ),
    "keras_2_15_adam_saved_again": (
        "Custom>Adam",
        {"learning_rate": 0.001, "amsgrad": False, "use_ema": False},
        "2.15.0",
        "iteration:0 m/d1/kernel:0 v/d1/kernel:0 m/d1/bias:0 v/d1/bias:0",
        IN_TURNS,
        {"momentum": "13", "velocity": "24"},
        ("d1/kernel", "d1/bias"),
    ),
    "keras_2_15_sgd_without_momentum": (
        "Custom>SGD",
        {"learning_rate": 0.01, "momentum": 0.0},
        "2.15.0",
        "iteration:0 SGD/m/d1/kernel:0 SGD/m/d1/bias:0",
        [(), KERNEL, BIAS],
        {},
        ("d1/kernel", "d1/bias"),
    ),
    "keras_2_15_nadam_forgets_its_product": (
        "Custom>Nadam",
        {"learning_rate": 0.001},
        "2.15.0",
        "iteration:0 Nadam/m/d1/kernel:0 Nadam/v/d1/kernel:0 Nadam/m/d1/bias:0 Nadam/v/d1/bias:0",
        IN_TURNS,
        {"momentum": "13", "velocity": "24"},
        ("d1/kernel", "d1/bias"),
    ),
    "keras_2_15_adafactor_without_factors_of_vectors": (
        "Custom>Adafactor",
        {"learning_rate": 0.001},
        "2.15.0",
        "iteration:0 Adafactor/r/d1/kernel:0 Adafactor/c/d1/kernel:0 Adafactor/v/d1/kernel:0 "
        "Adafactor/v/d1/bias:0",
        [(), (3,), (4,), KERNEL, BIAS],
        {"r": "1-", "c": "2-", "velocity": "34"},
        ("d1/kernel", "d1/bias"),
    ),
    "keras_2_15_by_number": (
        "Adam",
        {"learning_rate": 0.001, "amsgrad": False, "use_ema": False},
        "2.15.0",
        '"" "" "" "" ""',
        IN_TURNS,
        {"momentum": "13", "velocity": "24"},
        ("", ""),
    ),
    "keras_2_15_adafactor_by_number": (
        "Adafactor",
        {"learning_rate": 0.001, "use_ema": True},
        "2.15.0",
        "0 1 2 3 4 5 6",
        [(), KERNEL, BIAS, (3,), (4,), KERNEL, BIAS],
        {"average": "12", "r": "3-", "c": "4-", "velocity": "56"},
        ("", ""),
    ),
    "keras_3_0_adam": (
        "Adam",
        {"learning_rate": 0.001, "amsgrad": False},
        "3.0.5",
        "iteration learning_rate d1_kernel_momentum d1_kernel_velocity d1_bias_momentum "
        "d1_bias_velocity",
        [(), *IN_TURNS],
        {"momentum": "24", "velocity": "35", "learning_rate": "1"},
        ("d1_kernel", "d1_bias"),
    ),
    "keras_3_6_nadam_with_its_product_first": (
        "Nadam",
        {"learning_rate": 0.001, "use_ema": True},
        "3.6.0",
        "nadam/iteration nadam/learning_rate nadam/d1_kernel_average nadam/d1_bias_average "
        "nadam/variable nadam/d1_kernel_momentum nadam/d1_kernel_velocity "
        "nadam/d1_bias_momentum nadam/d1_bias_velocity",
        [(), (), KERNEL, BIAS, *IN_TURNS],
        {
            "average": "23",
            "momentum": "57",
            "velocity": "68",
            "learning_rate": "1",
            "u_product": "4",
        },
        ("d1_kernel", "d1_bias"),
    ),
    "keras_3_6_averages_and_accumulators_in_turns": (
        "SGD",
        {
            "learning_rate": 0.01,
            "momentum": 0.9,
            "use_ema": True,
            "gradient_accumulation_steps": 2,
        },
        "3.6.0",
        "SGD/iteration SGD/learning_rate SGD/d1_kernel_average SGD/d1_kernel_gradient_accumulator "
        "SGD/d1_bias_average SGD/d1_bias_gradient_accumulator SGD/d1_kernel_momentum "
        "SGD/d1_bias_momentum",
        [(), (), KERNEL, KERNEL, BIAS, BIAS, KERNEL, BIAS],
        {"average": "24", "gradient_accumulator": "35", "momentum": "67", "learning_rate": "1"},
        ("d1_kernel", "d1_bias"),
    ),
}

SCALARS = ("learning_rate", "u_product")


@pytest.mark.parametrize("case", OTHERS)
def test_slots_of_other_versions(case):
    class_name, config, version, names, shapes, expected, hints = OTHERS[case]
    optimizer = {"class_name": class_name, "config": config}
    stored = listed(names, shapes)
    read = optimizer_slots.read(optimizer, stored, version)
    assert read is not None
    assert read.hints == hints
    for kind, numbers in expected.items():
        if kind in SCALARS:
            assert read.scalars[kind].dataset_path == numbers
        else:
            held = [variable.get(kind) for variable in read.variables]
            assert "".join(one.dataset_path if one else "-" for one in held) == numbers
    assert [next(iter(held.values())).shape for held in read.variables] == [KERNEL, BIAS][
        : len(hints)
    ]
    counted = shapes[0] == ()
    assert (read.scalars.get("iteration") == stored[0]) is counted

    translated = {key: value for key, value in config.items() if key not in ("decay", "lr")}
    rate = config.get("learning_rate", config.get("lr"))
    if config.get("decay") == 0.1:
        schedules = keras.optimizers.schedules
        rate = schedules.serialize(schedules.InverseTimeDecay(rate, 1, 0.1))
    translated["learning_rate"] = rate
    built = of_keras_3(class_name.removeprefix("Custom>"), translated, [KERNEL, BIAS])
    for written in (optimizer, {**optimizer, "config": translated}):
        found = optimizer_slots.ordered(read, range(len(read.variables)), written)
        assert [one.shape for one in found] == [tuple(one.shape) for one in built.variables]
        numbers = [one.dataset_path for one in found if isinstance(one, Weight)]
        asked = sum(numbers != "-" for text in expected.values() for numbers in text)
        assert len(set(numbers)) == len(numbers) == asked + counted


def test_what_is_not_stored_is_what_it_would_be():
    optimizer = {"class_name": "Nadam", "config": {"lr": 0.25}}
    nothing = optimizer_slots.ordered(optimizer_slots.Slots((), (), {}), (), optimizer)
    assert nothing == [0, 0.25, 1]
    _, _, version, names, shapes, _, _ = OTHERS["keras_2_2_nadam_forgets_its_product"]
    read = optimizer_slots.read(optimizer, listed(names, shapes), version)
    # After 40 steps it is less than a millionth.
    *_, product = optimizer_slots.ordered(read, (0, 1), optimizer)
    assert product == 0


# What is not understood

TF_2 = "iter:0 d1/kernel/m:0 d1/bias/m:0 d1/kernel/v:0 d1/bias/v:0"
KERAS_2 = "iteration:0 Adam/m/d1/kernel:0 Adam/v/d1/kernel:0 Adam/m/d1/bias:0 Adam/v/d1/bias:0"
KERAS_3 = "iteration learning_rate a_momentum a_velocity b_momentum b_velocity"


def adam(**others):
    return {"class_name": "Adam", "config": {"learning_rate": 0.1}, **others}


NOT_UNDERSTOOD = {
    "one_less": (adam(), listed(TF_2[:-13], ADAM[:-1]), "2.8.0"),
    "one_more": (adam(), listed(f"{TF_2} d1/bias/w:0", [*ADAM, BIAS]), "2.8.0"),
    "only_one": (adam(), listed("a_momentum", [KERNEL]), "3.15.0"),
    "other_shapes": (adam(), listed(KERAS_2, ADAM), "2.15.0"),
    "no_scalar": (adam(), listed(KERAS_3, [(), BIAS, *IN_TURNS[1:]]), "3.15.0"),
    "another_order": (adam(), listed(TF_2.replace("m", "v"), ADAM), "2.8.0"),
    "names_that_contradict": (
        adam(),
        listed(KERAS_2.replace("v/d1/kernel", "v/d2/kernel"), IN_TURNS),
        "2.15.0",
    ),
    "names_of_another_kind": (adam(), listed(KERAS_2.replace("/v/", "/u/"), IN_TURNS), "2.15.0"),
    "names_of_keras_3_that_contradict": (
        adam(),
        listed(KERAS_3.replace("a_velocity", "c_velocity"), [(), *IN_TURNS]),
        "3.15.0",
    ),
    "option_that_is_not_stored": (
        adam(config={"learning_rate": 0.1, "amsgrad": True}),
        listed(KERAS_3, [(), *IN_TURNS]),
        "3.15.0",
    ),
    "factors_of_other_shapes": (
        {"class_name": "Adafactor", "config": {"learning_rate": 0.1}},
        listed("0 1 2 3 4", [(), (), (4,), (3,), KERNEL]),
        "3.15.0",
    ),
    "muon": (adam(class_name="Muon"), listed(KERAS_3, [(), *IN_TURNS]), "3.15.0"),
    "no_class": (adam(class_name=["Adam"]), listed(KERAS_3, [(), *IN_TURNS]), "3.15.0"),
    "registered": (adam(registered_name="My>Adam"), listed(KERAS_3, [(), *IN_TURNS]), "3.15.0"),
    "registered_in_a_list": (
        adam(class_name="Custom>Adam"),
        listed(KERAS_3, [(), *IN_TURNS]),
        "3.15.0",
    ),
    "no_version": (adam(class_name="RMSprop"), listed("0 1", [KERNEL, BIAS]), "none"),
    "fewer_than_scalars": (adam(class_name="Lion"), listed("iteration", [()]), "3.15.0"),
    "slots_of_none": (adam(class_name="SGD"), listed("0 1 2", [(), (), BIAS]), "3.15.0"),
}


@pytest.mark.parametrize("case", NOT_UNDERSTOOD)
def test_what_does_not_fit_is_not_understood(case):
    assert optimizer_slots.read(*NOT_UNDERSTOOD[case]) is None


def test_those_are_understood_but_for_one_thing():
    assert optimizer_slots.read(adam(), listed(TF_2, ADAM), "2.8.0")
    assert optimizer_slots.read(adam(), listed(KERAS_2, IN_TURNS), "2.15.0")
    assert optimizer_slots.read(adam(), listed(KERAS_3, [(), *IN_TURNS]), "3.15.0")


def test_no_state_is_a_state():
    assert optimizer_slots.read(adam(), [], "") == optimizer_slots.Slots((), (), {})
    untrained = optimizer_slots.read(adam(), listed("0 1", [(), ()]), "3.15.0")
    assert untrained.variables == ()
    assert len(optimizer_slots.ordered(untrained, (), adam())) == 2


JSON = st.sampled_from(
    [None, True, 0, -1, 10**400, 0.5, float("nan"), 1e300, "", "a", [1], {"": 0}]
)
OPTIONS = [
    *("learning_rate", "lr", "decay", "momentum", "amsgrad", "centered", "use_ema"),
    "gradient_accumulation_steps",
]
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "class_name": st.sampled_from([*optimizer_slots._OPTIMIZERS, "Custom>Adam"]) | JSON,
        "registered_name": st.none() | JSON,
        "config": st.dictionaries(st.sampled_from(OPTIONS), JSON) | JSON,
    },
)
WORDS = ["", "0", "iter:0", "iterations:0", "iteration:0", "m", "v:0", "a", "momentum", "_1", ":0"]
NAMES = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=4).map("/".join)
SHAPES = st.sampled_from([(), (1,), (3,), (4,), (3, 4), (2, 3, 4)])
STORED = st.lists(st.builds(Weight, NAMES, st.text(max_size=2), SHAPES), max_size=9)
VERSIONS = st.sampled_from(["2.2.4", "2.2.4-tf", "2.8.0", "2.15.0", "3.0.5", "3.15.0"]) | st.text()


@settings(max_examples=200)
@given(CONFIGS, STORED, VERSIONS)
def test_nothing_that_a_file_says_is_an_error(optimizer, stored, version):
    read = optimizer_slots.read(optimizer, stored, version)
    if read is not None:
        optimizer_slots.ordered(read, range(len(read.variables)), optimizer)


def test_a_long_list_takes_no_longer_than_it_is():
    many = listed("0 " * 20_000, [(), *[(4,)] * 19_999])
    optimizer = {"class_name": "Adafactor", "config": {"learning_rate": 0.1}}
    assert len(optimizer_slots.read(optimizer, many, "2.15.0").variables) == 19_999
    name = "m/" * 20_000 + "\n"
    assert (
        optimizer_slots.read(adam(), [Weight("iteration:0", "", ()), Weight(name, "", ())], "")
        is None
    )
