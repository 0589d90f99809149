"""The processes of the resume tests: one trains, saves and trains on, a later one resumes.

Run as `python new_process.py (start|resume) FOLDER SCENARIO...`. Each writes what the
models held when saved (loaded), and after further training.
"""

import json
import os
import sys
from pathlib import Path

if hasattr(os, "sched_setaffinity"):
    # On several cores TensorFlow adds up large convolutions' gradients in changing order: two
    # uninterrupted runs differ in the last bits. On one core all that is left is our doing.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import keras
import numpy as np
import scenarios

import tiedio
from tiedio import models, variables


def trained_places(model):
    """Lists the places of the optimizer's variables, in its order."""
    places = variables.find_places(variables.walk(model))
    trained = models.optimizer_variables(model)
    return [next(p for p, (_, held) in places.items() if held is v) for v in trained]


def report(model, folder, name):
    """Trains on, and writes what the model held before and after."""
    facts = {
        "ties": scenarios.ties_of(model),
        "optimizer": [str(place) for place in trained_places(model)],
        "iterations": int(model.optimizer.iterations),
    }
    before = scenarios.state_of(model)
    scenarios.train(model)
    moments = {"before": before, "after": scenarios.state_of(model)}
    arrays = {f"{m}_{i}": a for m, state in moments.items() for i, a in enumerate(state)}
    # NumPy's own files know no bfloat16; float64 holds it, and every other number here, exactly.
    np.savez(folder / f"{name}.npz", **{key: a.astype("float64") for key, a in arrays.items()})
    (folder / f"{name}.json").write_text(json.dumps(facts))


def start(folder, name):
    keras.utils.set_random_seed(1)
    model = scenarios.SCENARIOS[name]()
    scenarios.train(model)
    tiedio.save_tied(model, folder / f"{name}.keras")
    report(model, folder / "start", name)


def resume(folder, name):
    # Other automatic names than in the process that saved must not matter.
    keras.layers.Dense(1), keras.layers.Conv2D(1, 1)
    report(tiedio.load_tied(folder / f"{name}.keras"), folder / "resume", name)


if __name__ == "__main__":
    _part, _folder, *_names = sys.argv[1:]
    (Path(_folder) / _part).mkdir()
    for _name in _names:
        {"start": start, "resume": resume}[_part](Path(_folder), _name)
