"""A model whose tensors are written in parts."""

import keras
import numpy as np


def large():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1 << 17)])  # 4.5 MB
    model.layers[0].kernel.assign(np.arange(1 << 20, dtype="float32").reshape(8, -1))
    return model
