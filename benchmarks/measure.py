"""Measures one task after the other, in this process.

Run as `python benchmarks/measure.py TASKS FOLDER ANSWER`: `TASKS` is a JSON list of
`[function, *arguments]`. What they return, `{figure: {method: value}}`, is written to `ANSWER`.
"""

import ctypes
import gc
import importlib
import json
import operator
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import methods
import models
import numpy as np

Figures = dict[str, dict[str, Any]]


def speed(name: str, scale: str, flavour: str, repetitions: int, folder: Path) -> Figures:
    """Times a method, in turn with raw I/O of the same bytes: the machine drifts."""
    size = models.SIZES[scale][flavour]
    method = _made(name, size)
    raw = methods.Raw(size.unique_bytes)
    path, raw_path = folder / f"model{method.suffix}", folder / "raw"
    seconds: dict[str, list[float]] = {}
    for _ in range(1 + repetitions):
        for act, call, path_ in (
            ("raw save", raw.save, raw_path),
            ("save", method.save, path),
            ("raw load", raw.load, raw_path),
            ("raw warm load", raw.load_warm, raw_path),
            ("load", method.load, path),
        ):
            seconds.setdefault(act, []).append(seconds_of(call, path_))
        clean_up(folder)
    seconds = {act: all_[1:] for act, all_ in seconds.items()}  # the first was to warm up
    figures: Figures = {
        f"{flavour} {act} seconds": {name: median(all_)} for act, all_ in seconds.items()
    }
    for act, unit in (("save", "save"), ("load", "load"), ("load", "warm load")):
        ratios = [a / b for a, b in zip(seconds[act], seconds[f"raw {unit}"], strict=True)]
        figures[f"{flavour} {unit}"] = {name: median(ratios)}
    return figures


def memory_of_saving(name: str, scale: str, flavour: str, folder: Path) -> Figures:
    """Measures what one save needs beside the model. Leaves the file to `memory_of_loading`."""
    _warm_up(name, folder)
    size = models.SIZES[scale][flavour]
    method = _made(name, size)
    peak = extra_peak(lambda: method.save(folder / f"model{method.suffix}"))
    return {f"{flavour} save memory": {name: peak / size.unique_bytes}}


def memory_of_loading(name: str, scale: str, flavour: str, folder: Path) -> Figures:
    """Measures what one load needs, the loaded model included."""
    _warm_up(name, folder)
    size = models.SIZES[scale][flavour]
    method = methods.METHODS[name](None)
    peak = extra_peak(lambda: method.load(folder / f"model{method.suffix}"))
    return {f"{flavour} load memory": {name: peak / size.unique_bytes}}


def many_layers(count: int, repetitions: int, folder: Path) -> Figures:
    """Times stock Keras and tiedio, in turn, in milliseconds per layer; and finding the ties.

    Also as multiples of what nobody gets around: Keras' own work on the config of the model.
    """
    seconds: dict[str, dict[str, list[float]]] = {}
    _time_layers(models.with_many_layers(4), {}, folder)  # to warm up
    model = models.with_many_layers(count)
    for _ in range(repetitions):
        _time_layers(model, seconds, folder)
    configs = {act: seconds[act].pop("config") for act in ("save", "load")}
    figures: Figures = {
        f"{act} {count}": {name: 1000 * median(all_) / count for name, all_ in of_method.items()}
        for act, of_method in seconds.items()
    }
    for act, floor in configs.items():
        figures[f"{act} config {count}"] = {
            name: median(map(operator.truediv, all_, floor)) for name, all_ in seconds[act].items()
        }
    ties, saves = seconds["find"]["tiedio"], seconds["save"]["stock Keras"]
    figures[f"find {count}"] = {"tiedio": median(a / b for a, b in zip(ties, saves, strict=True))}
    return figures


def known_model(name: str, repetitions: int, folder: Path) -> Figures:
    """Times stock Keras and tiedio, in turn, in milliseconds, with a model that people use."""
    seconds: dict[str, dict[str, list[float]]] = {}
    _, make = models.KNOWN[name]
    model = make()
    for _ in range(1 + repetitions):
        _time_both(model, seconds, folder)
    return {
        f"{act} {name}": {method: 1000 * median(all_[1:]) for method, all_ in of_method.items()}
        for act, of_method in seconds.items()  # the first was to warm up
    }


def _time_layers(model: Any, seconds: dict[str, dict[str, list[float]]], folder: Path) -> None:
    import keras

    import tiedio

    def build(config: Any) -> Any:
        with keras.StatelessScope(initialize_variables=False):
            return keras.saving.deserialize_keras_object({**config, "compile_config": None})

    _time_both(model, seconds, folder)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    for act, name, call, argument in (
        ("save", "config", keras.saving.serialize_keras_object, model),
        ("load", "config", build, config),
        ("find", "tiedio", tiedio.find_ties, model),
    ):
        seconds.setdefault(act, {}).setdefault(name, []).append(seconds_of(call, argument))


def _time_both(model: Any, seconds: dict[str, dict[str, list[float]]], folder: Path) -> None:
    for method in (type_(model) for type_ in methods.OF_MODELS):
        path = folder / f"model{method.suffix}"
        for act, call in (("save", method.save), ("load", method.load)):
            of_method = seconds.setdefault(act, {})
            of_method.setdefault(method.name, []).append(seconds_of(call, path))
        clean_up(folder)


def stalls(scale: str, flavour: str, repetitions: int, folder: Path) -> Figures:
    """Times for how long callbacks hold training up, in turn, and the step of training after each.

    That pays for what a callback leaves to it: memory that is still in use is not used again.
    """
    size = models.SIZES[scale][flavour]
    model = models.with_shared_table(size)
    batch = np.zeros((8, 8), "int32"), np.zeros((8, 8, size.units[-1]), "float32")
    callbacks = [type_(model, folder) for type_ in methods.CHECKPOINTS if type_.is_installed()]
    calls: dict[str, list[float]] = {}
    steps: dict[str, list[float]] = {}
    for epoch in range(1 + repetitions):
        steps.setdefault(methods.NO_CALLBACK, []).append(seconds_of(model.train_on_batch, *batch))
        for one in callbacks:
            calls.setdefault(one.name, []).append(seconds_of(one.save_epoch, epoch))
            steps.setdefault(one.name, []).append(seconds_of(model.train_on_batch, *batch))
            one.wait()
    calls, steps = (  # the first ones were to warm up
        {name: all_[1:] for name, all_ in times.items()} for times in (calls, steps)
    )
    return {
        "stall seconds": {name: median(all_) for name, all_ in calls.items()},
        "step seconds": {name: median(all_) for name, all_ in steps.items()},
        "stall": {
            name: median(map(operator.truediv, all_, calls[callbacks[0].name]))
            for name, all_ in calls.items()
        },
    }


def commands(repetitions: int, folder: Path) -> Figures:
    """Measures the CPU seconds of a process that imports tiedio, or runs a command on a file."""
    path = folder / "model.keras"
    methods.Tiedio(models.with_shared_table(models.SIZES["quick"]["Adam"])).save(path)
    calls = {"import": ["-c", "import tiedio"]}
    calls |= {name: ["-m", "tiedio", name, str(path)] for name in ("inspect", "plan", "verify")}
    seconds: dict[str, list[float]] = {}
    # As for most users, what was compiled once is kept.
    env = {k: value for k, value in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(1 + repetitions):
        for name, call in calls.items():
            before = _cpu_of_children()
            subprocess.run([sys.executable, *call], stdout=subprocess.DEVNULL, check=True, env=env)
            seconds.setdefault(name, []).append(_cpu_of_children() - before)
    return {  # the first was to warm up
        f"start {name}": {methods.Tiedio.name: median(all_[1:])} for name, all_ in seconds.items()
    }


def whole_files(scale: str, repetitions: int, folder: Path) -> Figures:
    """Times what goes through a whole file, in turn with raw I/O of the same bytes."""
    import fsspec

    import tiedio
    from tiedio import files

    size = models.SIZES[scale]["plain"]
    largest = 4 * size.rows * size.width
    model = models.with_shared_table(size)
    copies, migrated = folder / "copies.keras", folder / "migrated.keras"
    model.save(copies)
    raw_copies, raw = methods.Raw(copies.stat().st_size), methods.Raw(size.unique_bytes)

    def migrate() -> None:
        files.migrate(copies, migrated, accept=["contents"], overwrite=True, durable=False)

    def read_and_write() -> None:
        raw_copies.load_warm(copies)
        raw.save(folder / "raw")

    figures = {
        "migrate": _in_turn(migrate, read_and_write, repetitions),
        "shards": _in_turn(
            lambda: tiedio.save_tied_weights(
                model, folder / "model.weights.json", max_shard_size=largest / 2**30, durable=False
            ),
            lambda: raw.save(folder / "raw"),
            repetitions,
        ),
        "remote": _in_turn(
            lambda: tiedio.save_tied(model, "memory://model.keras"),
            lambda: fsspec.filesystem("memory").pipe("raw", raw.buffer.tobytes()),
            repetitions,
        ),
    }
    figures["migrate memory"] = extra_peak(migrate) / largest
    return {f"files {name}": {methods.Tiedio.name: figure} for name, figure in figures.items()}


def verification(scale: str, repetitions: int, folder: Path) -> Figures:
    """Times `verify` of a large file, in turn with a read of it, part by part."""
    from tiedio import files

    path, part = folder / "model.keras", bytearray(1 << 23)
    methods.Tiedio(models.with_shared_table(models.LARGE[scale])).save(path)

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            while file.readinto(part):
                pass

    ratio = _in_turn(lambda: files.verify(path), read, repetitions)
    return {"files verify": {methods.Tiedio.name: ratio}}


def _in_turn(call: Callable[[], Any], raw: Callable[[], Any], repetitions: int) -> float:
    """Times a call and raw I/O in turn; returns the median of the ratios."""
    return median([seconds_of(call) / seconds_of(raw) for _ in range(1 + repetitions)][1:])


def _cpu_of_children() -> float:
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def versions(folder: Path) -> Figures:
    """Says what was measured."""
    import h5py
    import keras

    backend = keras.config.backend()
    return {
        "versions": {
            "Keras": keras.__version__,
            backend: importlib.import_module(backend).__version__,
            "h5py": h5py.__version__,
        }
    }


median = statistics.median


def _made(name: str, size: models.Size) -> methods.Method:
    type_ = methods.METHODS[name]
    make = models.with_shared_table if type_ in methods.OF_MODELS else models.tensors_of
    return type_(make(size))


def _warm_up(name: str, folder: Path) -> None:
    """Saves and loads a small model: imports and the backend's start are not what we measure."""
    method = _made(name, models.SIZES["quick"]["Adam"])
    path = folder / f"small{method.suffix}"
    method.save(path)
    method.load(path)


def seconds_of(call: Callable[..., Any], *arguments: Any) -> float:
    """Times one call."""
    start = time.perf_counter()
    result = call(*arguments)
    seconds = time.perf_counter() - start
    del result  # freeing it is not part of loading it
    return seconds


def extra_peak(call: Callable[[], Any]) -> int:
    """Returns by how many bytes the resident memory grows at most while `call` runs.

    Pages of mapped files count, the page cache (and what is in tmpfs) does not.
    """
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is needed
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew: Linux only
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result
    return peak - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def clean_up(folder: Path) -> None:
    """Removes the files and the loaded models: every call finds the same conditions."""
    shutil.rmtree(folder)
    folder.mkdir()
    gc.collect()


if __name__ == "__main__":
    _tasks, _folder, _answer = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    _all: Figures = {}
    for _function, *_arguments in _tasks:
        for _figure, _values in globals()[_function](*_arguments, folder=_folder).items():
            _all.setdefault(_figure, {}).update(_values)
    _answer.write_text(json.dumps(_all))
