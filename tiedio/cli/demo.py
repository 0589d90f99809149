"""The main job on real input: share, train, save, load in a new process, train on.

Run as `python -m tiedio.cli.demo METHOD FOLDER` it is the new process.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import tiedio

METHODS = ("stock", "tiedio")


def run() -> bool:
    """Runs the demo and prints its table.

    Returns:
        Whether tiedio restored everything.
    """
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        console.print("Training two convolutions with one kernel on the handwritten digits ...")
        before = _train(folder)
        console.print(f"Trained for {before['iterations']} steps: {before['accuracy']:.1%} right.")
        reports = {}
        for method in METHODS:
            console.print(f"Loading with {method} in a new process, fine-tuning ...")
            subprocess.run([sys.executable, "-m", "tiedio.cli.demo", method, name], check=True)
            reports[method] = json.loads((folder / f"{method}.json").read_text())
        console.print(_table(before, reports))
    return all(is_good for _, _, is_good in _answers(before, reports["tiedio"]))


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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


def _answers(before: dict[str, Any], report: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Lists the questions, each with its answer, and whether that is good."""
    step, last_step = report["iterations"], before["iterations"]
    parameters, tied = report["parameters"], report["tied"] and not report["drift"]
    drifted = f"drifted apart, by up to {report['drift']:.4f}"
    return [
        ("File size", f"{report['bytes']:,} bytes", True),
        (
            "Parameters after loading",
            f"{parameters:,} (were {before['parameters']:,})",
            parameters == before["parameters"],
        ),
        (
            "Optimizer state resumed",
            f"{_yes(step == last_step)}, at step {step} of {last_step}",
            step == last_step,
        ),
        ("Convolutions after fine-tuning", "still tied" if tied else drifted, tied),
        ("Bit-equal to an unbroken run", _yes(report["bit_equal"]), report["bit_equal"]),
    ]


def _table(before: dict[str, Any], reports: dict[str, dict[str, Any]]) -> Any:
    table = Table("", "stock Keras", "tiedio", title="Save, load in a new process, fine-tune")
    columns = [_answers(before, reports[method]) for method in METHODS]
    for answers in zip(*columns, strict=True):
        cells = (f"[{'green' if good else 'red'}]{answer}[/]" for _, answer, good in answers)
        table.add_row(answers[0][0], *cells)
    return table


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


if __name__ == "__main__":
    _method, _folder = sys.argv[1], Path(sys.argv[2])
    (_folder / f"{_method}.json").write_text(json.dumps(_resume(_method, _folder)))
