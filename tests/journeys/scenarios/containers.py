"""How a scenario is saved, and loaded again, beside `.keras`."""

from pathlib import Path

import keras

import tiedio

from .base import SCENARIOS, SEVERAL, state_of


def save_folder(model, filepath):
    tiedio.save_tied(model, filepath, zipped=False)


def save_shards(model, filepath):
    """Saves as many shards as can be."""
    largest = max(array.nbytes for array in state_of(model))
    tiedio.save_tied_weights(model, filepath, max_shard_size=largest / 2**30)


def load_weights(filepath):
    """Builds the model by the same code, with other values, and loads its weights."""
    name = Path(filepath).name.partition(".")[0]
    keras.utils.clear_session()
    keras.utils.set_random_seed(2)
    model = SCENARIOS[name]()
    tiedio.load_tied_weights(model, filepath)
    return model


CONTAINERS = {
    "folder": (save_folder, tiedio.load_tied),
    "h5": (tiedio.save_tied, tiedio.load_tied),
    "weights.h5": (tiedio.save_tied_weights, load_weights),
    "weights.json": (save_shards, load_weights),
}

# HDF5 as Keras 2 wrote it has no bfloat16, configs of no other objects, and one optimizer.
NOT_CONTAINED = {"h5": ("bfloat16", "random_augmentation", *SEVERAL)}
