"""The models that are saved and loaded: with a large shared table, many layers, or well known."""

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Size:
    """A table shared by two `Embedding` layers, with `Dense` layers on top.

    Attributes:
        rows: Rows of the table.
        width: Its columns. The `Dense` layers are in turn five times as wide, and as wide.
        depth: How many `Dense` layers there are.
        slots: Whether the model is compiled with Adam, whose slots are then filled. Otherwise
            with SGD, which has none.
    """

    rows: int
    width: int
    depth: int
    slots: bool = False

    @property
    def units(self) -> list[int]:
        return [(1 if i % 2 else 5) * self.width for i in range(self.depth)]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, the shared one once, without the slots."""
        widths = [self.width, *self.units]
        shapes: dict[str, tuple[int, ...]] = {"table": (self.rows, self.width)}
        for i, units in enumerate(self.units):
            shapes |= {f"kernel_{i}": (widths[i], units), f"bias_{i}": (units,)}
        return shapes

    @property
    def unique_bytes(self) -> int:
        """Bytes of all tensors, the shared one counted once."""
        return 4 * sum(map(math.prod, self.shapes.values())) * (3 if self.slots else 1)


# 400 MB each: a table of 220 MB and 180 MB in layers; or a third of that, with two slots for each.
SIZES = {
    "full": {"plain": Size(55_000, 1_000, 9), "Adam": Size(18_333, 1_000, 3, slots=True)},
    "quick": {"plain": Size(550, 100, 2), "Adam": Size(180, 100, 2, slots=True)},
}
# 2 GB, to be verified: two tables of it are there while they are tied.
LARGE = {"full": Size(500_000, 1_000, 1), "quick": Size(1000, 100, 1)}


def tensors_of(size: Size) -> dict[str, np.ndarray]:
    """Makes the tensors of the model alone, for those that save no models."""
    random = np.random.default_rng(0)
    return {name: random.random(shape, np.float32) for name, shape in size.shapes.items()}


def with_shared_table(size: Size) -> Any:
    """Makes the model, compiled."""
    import keras

    import tiedio

    numbers = keras.Input((8,), dtype="int32")
    first, second = (keras.layers.Embedding(size.rows, size.width) for _ in range(2))
    rows = first(numbers)
    tiedio.tie(second, to=first, input_shape=(None, 8))
    outputs = keras.layers.Add()([rows, second(numbers)])
    for units in size.units:
        outputs = keras.layers.Dense(units)(outputs)
    model = keras.Model(numbers, outputs)
    model.compile("adam" if size.slots else "sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    for slot in model.optimizer.variables if size.slots else ():
        if len(slot.shape):
            slot.assign(keras.random.uniform(slot.shape))
    return model


def with_many_layers(count: int) -> Any:
    """Makes a model of small layers tied in pairs.

    They stand side by side: Keras' recursion does not get through a chain of 1,600.
    """
    import keras

    import tiedio

    numbers = keras.Input((8,))
    layers = [keras.layers.Dense(8) for _ in range(count)]
    for owner, alias in zip(layers[::2], layers[1::2], strict=True):
        owner.build((None, 8))
        tiedio.tie(alias, to=owner, input_shape=(None, 8))
    model = keras.Model(numbers, keras.layers.Add()([layer(numbers) for layer in layers]))
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def _bert() -> Any:
    """Makes a model with the layers of BERT, and a quarter of their width."""
    import keras_hub

    return keras_hub.models.BertBackbone(
        vocabulary_size=30_522,
        num_layers=12,
        num_heads=12,
        hidden_dim=192,
        intermediate_dim=768,
    )


def _efficientnet() -> Any:
    import keras

    return keras.applications.EfficientNetB0(weights=None)


# By name, each with the module that it needs, and what makes it with random weights.
KNOWN = {"EfficientNetB0": ("keras", _efficientnet), "BERT": ("keras_hub", _bert)}
