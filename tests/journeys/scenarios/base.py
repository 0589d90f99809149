"""What every scenario is made with."""

import keras
import numpy as np

import tiedio

SCENARIOS = {}
CONTROLS = []  # must come back with no tie at all
SEVERAL = []  # builders of a dict of models


def scenario(build):
    """Enters a builder, which returns a compiled model, or some by name, into the suite."""
    SCENARIOS[build.__name__] = build
    return build


def control(build):
    CONTROLS.append(build.__name__)
    return scenario(build)


serializable = keras.saving.register_keras_serializable("tiedio_tests")


def compiled(model, optimizer="adam"):
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"])
    return model


def tied_pair(**options):
    """Makes a model of three layers, the first two tied; returns these two and the model."""
    layers = [keras.layers.Dense(4, activation="tanh", **options) for _ in range(2)]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2)])
    tiedio.tie(layers[1], to=layers[0])
    return layers, model


def tie_by_hand(layer, owner, attribute):
    """Shares a variable as users do: the shared one ends up last in the layer's list."""
    layer._untrack_variable(getattr(layer, attribute))
    layer._tracker.unlock()
    setattr(layer, attribute, getattr(owner, attribute))
    layer._tracker.lock()


def inputs_for(model, random=None):
    random = random or np.random.default_rng(0)
    symbolic = getattr(model, "inputs", None) or [keras.KerasTensor((None, 6))]
    inputs = [_input_for(one, random) for one in symbolic]
    return inputs[0] if len(inputs) == 1 else inputs


def data_for(model):
    """Makes inputs and targets for a model, always the same."""
    random = np.random.default_rng(0)
    inputs = inputs_for(model, random)
    outputs = model(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs))
    return inputs, random.random(tuple(outputs.shape), dtype="float32")


def _input_for(symbolic, random):
    shape = (8, *symbolic.shape[1:])
    if symbolic.dtype == "string":
        return keras.ops.convert_to_tensor(np.array([["a"], ["b"], ["c"], ["d"]] * 2))
    if "int" in symbolic.dtype:
        return random.integers(0, 7, shape)
    return random.random(shape, dtype="float32")


def models_in(model):
    return [*model.values()] if isinstance(model, dict) else [model]


def train(model):
    """Trains a model for two epochs, or those of several that are compiled in turn."""
    if not isinstance(model, dict):
        _fit(model, epochs=2)
        return
    discriminator = model.get("discriminator")
    for one in 2 * [one for one in model.values() if one.compiled]:
        if discriminator:  # frozen where it judges only
            discriminator.trainable = one is discriminator
        _fit(one, epochs=1)


def _fit(model, epochs):
    inputs, targets = data_for(model)
    if _needs_fit(model):
        model.fit(inputs, targets, epochs=epochs, batch_size=4, shuffle=False, verbose=0)
        return
    # The same steps; what `fit` makes around them takes as long as they do.
    for rows in epochs * (slice(0, 4), slice(4, 8)):
        batch = keras.tree.map_structure(lambda one, rows=rows: one[rows], [inputs, targets])
        model.train_on_batch(*batch)


def _needs_fit(model):
    """Whether `fit` does more than its steps: compiles them, has code of its own, or ends them."""
    if keras.backend.backend() != "tensorflow" or type(model).fit is not keras.Model.fit:
        return True
    import tensorflow as tf

    has_averages = getattr(model.optimizer, "use_ema", False)
    return has_averages or not tf.config.functions_run_eagerly()


def optimizers_of(model):
    return [one.optimizer for one in models_in(model) if getattr(one, "optimizer", None)]


def iterations_of(model):
    return sum(int(optimizer.iterations) for optimizer in optimizers_of(model))


def variables_of(model):
    held = [one for part in (*models_in(model), *optimizers_of(model)) for one in part.variables]
    return [*{id(one): one for one in held}.values()] if isinstance(model, dict) else held


def arrays_of(variables):
    return [np.asarray(keras.ops.convert_to_numpy(variable)) for variable in variables]


def state_of(model):
    """Lists every value that training changes."""
    return arrays_of(variables_of(model))
