"""Models that were made, and frozen, before anything of tiedio was used.

Run as `python frozen_models.py`; exits with 0 if what was tied then is what predicts.
"""

import gc

import keras
import numpy as np

DATA = np.ones((2, 2), "float32")

if __name__ == "__main__":
    first, second = keras.layers.Dense(2), keras.layers.Dense(2)
    model = keras.Sequential([keras.Input((2,)), first, second])
    model.compile("sgd", "mse")
    model.predict(DATA, verbose=0)
    gc.freeze()

    import tiedio

    tiedio.tie(second, to=first)
    computed = keras.ops.convert_to_numpy(model(DATA))
    assert np.allclose(model.predict(DATA, verbose=0), computed)
    assert gc.get_freeze_count() > 0  # as whoever froze it wants it
