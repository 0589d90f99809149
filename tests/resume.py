"""The new process: loads every scenario below a folder, trains on, writes what came out.

Run as `python resume.py FOLDER`.
"""

import json
import pathlib
import sys

import keras
import numpy as np
import scenarios

import tiedio

folder = pathlib.Path(sys.argv[1])
for filepath in sorted(folder.glob("*.keras")):
    # Other automatic names than in the process that saved must not matter.
    keras.layers.Dense(1), keras.layers.Conv2D(1, 1)
    model = tiedio.load_tied(filepath)
    report = {
        "ties": scenarios.ties_of(model),
        "optimizer": [variable.name.split("_")[-1] for variable in model.optimizer.variables],
        "iterations": int(model.optimizer.iterations),
    }
    loaded = scenarios.state_of(model)
    scenarios.train(model)
    trained = scenarios.state_of(model)
    np.savez(
        filepath.with_suffix(".resumed.npz"),
        **{f"loaded_{i}": array.astype("float64") for i, array in enumerate(loaded)},
        **{f"trained_{i}": array.astype("float64") for i, array in enumerate(trained)},
    )
    filepath.with_suffix(".json").write_text(json.dumps(report))
