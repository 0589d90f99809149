"""What the demo does in each of its processes: share, train and save; or load, and train on.

Run as `python -m tiedio.cli.demo_steps STEP FOLDER`. What is found goes to `STEP.json` there.
"""

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

import tiedio


def _model() -> Any:
    images: Any = keras.Input((8, 8, 1))
    features = keras.layers.Conv2D(64, 3, padding="same", activation="relu")(images)
    same = keras.layers.Conv2D(64, 3, padding="same", activation="relu")
    valid = keras.layers.Conv2D(64, 3, padding="valid", activation="relu")
    pooled = [keras.layers.GlobalMaxPooling2D()(conv(features)) for conv in (same, valid)]
    tiedio.tie(valid, to=same)
    merged = keras.layers.Dropout(0.2, seed=0)(keras.layers.Concatenate()(pooled))
    model = keras.Model(images, keras.layers.Dense(10, activation="softmax")(merged))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def _fit(model: Any) -> float:
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype("float32") / 16
    history = model.fit(images, labels, batch_size=64, epochs=3, shuffle=False, verbose=0)
    return history.history["accuracy"][-1]


def _arrays(*variables: Any) -> list[Any]:
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def _state(model: Any) -> list[Any]:
    return _arrays(*model.variables, *model.optimizer.variables)


def _train(folder: Path) -> dict[str, Any]:
    """Trains and saves; then trains on, for the states the others must reach."""
    keras.utils.set_random_seed(0)
    model = _model()
    accuracy = _fit(model)
    model.save(folder / "stock.keras")
    tiedio.save_tied(model, folder / "tiedio.keras")
    before = {
        "parameters": model.count_params(),
        "iterations": int(model.optimizer.iterations),
        "accuracy": accuracy,
    }
    _fit(model)
    np.savez(folder / "uninterrupted.npz", *_state(model))
    return before


def _resume(method: str, folder: Path) -> dict[str, Any]:
    """Loads what `_train` saved, trains on, and reports."""
    load: Any = tiedio.load_tied if method == "tiedio" else keras.saving.load_model
    filepath = folder / f"{method}.keras"
    model = load(filepath)
    same, valid = model.layers[2:4]
    report = {
        "bytes": filepath.stat().st_size,
        "parameters": model.count_params(),
        "iterations": int(model.optimizer.iterations),
        "tied": same.kernel is valid.kernel and same.bias is valid.bias,
    }
    _fit(model)
    with np.load(folder / "uninterrupted.npz") as saved:
        uninterrupted = [*saved.values()]
    state = _state(model)
    one, other = _arrays(same.kernel, valid.kernel)
    report["drift"] = float(np.max(np.abs(one - other)))
    report["bit_equal"] = len(state) == len(uninterrupted) and all(
        a.tobytes() == b.tobytes() for a, b in zip(state, uninterrupted, strict=True)
    )
    return report


if __name__ == "__main__":
    _step, _folder = sys.argv[1], Path(sys.argv[2])
    told = _train(_folder) if _step == "train" else _resume(_step, _folder)
    (_folder / f"{_step}.json").write_text(json.dumps(told))
