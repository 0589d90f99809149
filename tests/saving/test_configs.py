"""What is said of configs that Keras cannot read."""

import re

import keras
import pytest

import tiedio
from tiedio import errors

registered = keras.saving.register_keras_serializable("tiedio_tests")


@registered
class Decay(keras.regularizers.L2):
    pass


@registered
class Descent(keras.optimizers.SGD):
    pass


@registered
class Distance(keras.losses.MeanSquaredError):
    pass


@registered
class Grown(keras.layers.Dense):
    pass


@registered
def rippled(x):
    return keras.ops.sin(x)


@registered
def gap(targets, outputs):
    return keras.ops.sum(outputs - targets, -1)


OBJECTS = {one.__name__: one for one in (Decay, Descent, Distance, Grown, gap, rippled)}


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
@pytest.mark.parametrize(
    ("kind", "layer", "compiled"),
    [
        (keras.layers.Dense, {"kernel_regularizer": Decay(0.1)}, {}),
        (keras.layers.Dense, {"activation": rippled}, {}),
        (keras.layers.Dense, {}, {"optimizer": Descent()}),
        (keras.layers.Dense, {}, {"loss": Distance()}),
        (keras.layers.Dense, {}, {"metrics": [gap]}),
        (Grown, {}, {}),
    ],
    ids=["regularizer", "function", "optimizer", "loss", "metric", "layer"],
)
def test_custom_objects_are_named_as_they_help(tmp_path, monkeypatch, name, kind, layer, compiled):
    model = keras.Sequential([keras.Input((2,)), kind(2, **layer)])
    model.compile(**{"loss": "mse", **compiled})
    tiedio.save_tied(model, tmp_path / name)
    for one in OBJECTS:
        monkeypatch.delitem(keras.saving.get_custom_objects(), f"tiedio_tests>{one}")
    with pytest.raises(errors.CustomObjectsError) as error:
        tiedio.load_tied(tmp_path / name)
    (told,) = re.findall(r'pass `custom_objects={"(.*)": (.*)}`', str(error.value))
    tiedio.load_tied(tmp_path / name, {told[0]: OBJECTS[told[1]]})
