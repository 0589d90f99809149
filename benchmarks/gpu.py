"""Measures saving and loading of a model on a CUDA card, beside raw I/O and peers.

Each backend that is installed, torch and JAX, runs in a process of its own. Times are ratios to
raw I/O of the same bytes in the same process, in turn, medians; raw reads go into warm memory.
Memory is what the host needs beside what it had. No network is needed.
"""

import datetime
import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import measure
import methods
import models
import report
from rich.console import Console

BACKENDS = ("torch", "jax")
# 2.2 GB: a table of 1.5 GB, and layers of 33 MB.
SIZES = {"full": models.Size(292_000, 1_280, 22), "quick": models.Size(550, 100, 2)}


class Unverified(methods.Tiedio):
    """Loads without a look at the digests."""

    name = "tiedio, verify=False"

    def load(self, path: Path) -> Any:
        import tiedio

        return tiedio.load_tied(path, verify=False)


class Safetensors(methods.Method):
    """Its functions for tensors of the backend."""

    name, needs, suffix = "safetensors", "safetensors", ".safetensors"

    def __init__(self, subject: Any):
        super().__init__(subject)
        flavour = {"torch": "torch", "jax": "flax"}[_backend()]
        self.functions = importlib.import_module(f"safetensors.{flavour}")

    def save(self, path: Path) -> None:
        self.functions.save_file(self.subject, path)

    def load(self, path: Path) -> Any:
        options = {"device": "cuda"} if _backend() == "torch" else {}
        return self.functions.load_file(path, **options)


class FastSafetensors(Safetensors):
    """Another reader of the same files."""

    name, needs = "fastsafetensors", "fastsafetensors"

    def load(self, path: Path) -> Any:
        from fastsafetensors import fastsafe_open

        with fastsafe_open([str(path)], nogds=True, device="cuda:0") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


class Torch(methods.Method):
    """`torch.save`, and `torch.load` of a mapped file."""

    name, needs, suffix = "torch.save, mmap", "torch", ".pt"

    def save(self, path: Path) -> None:
        import torch

        torch.save(self.subject, path)

    def load(self, path: Path) -> Any:
        import torch

        return torch.load(path, map_location="cuda", mmap=True)


OF_MODELS = (methods.Tiedio, Unverified, methods.StockKeras)
PEERS = {"torch": (Safetensors, FastSafetensors, Torch), "jax": (Safetensors, methods.Orbax)}


def _backend() -> str:
    return os.environ["KERAS_BACKEND"]


def _settled(result: Any) -> Any:
    """Waits until what was loaded is there."""
    if _backend() == "torch":
        import torch

        torch.cuda.synchronize()
    elif result is not None:
        import jax

        jax.block_until_ready(result if isinstance(result, dict) else _tensors(result))
    return result


def _tensors(model: Any) -> dict[str, Any]:
    """Returns the tensors of a model, each once."""
    return {
        f"{number}": variable.value.detach() if _backend() == "torch" else variable.value
        for number, variable in enumerate(model.variables)
    }


def measured(scale: str, repetitions: int, folder: Path) -> dict[str, Any]:
    """Measures all methods with the backend of this process."""
    size = SIZES[scale]
    small, model = map(models.with_shared_table, (SIZES["quick"], size))
    raw = methods.Raw(size.unique_bytes)
    rows: dict[str, Any] = {}
    for type_ in OF_MODELS + PEERS[_backend()]:
        if not type_.is_installed():
            continue
        of_model = type_ in OF_MODELS
        try:
            for subject in small, model:  # the small one to warm up
                method = type_(subject if of_model else _tensors(subject))
                times = repetitions if subject is model else 1
                if type_ is methods.StockKeras:
                    times = 1  # it takes so long that noise does not matter
                rows[type_.name] = _row(method, raw, times, folder)
        except Exception as error:  # a peer that cannot: the others are measured
            rows[type_.name] = {"failed": f"{type(error).__name__}: {error}"}
    return {
        "rows": rows,
        "resumes": _resumes(folder),
        "card": _card(),
        "GB": size.unique_bytes / 1e9,
    }


def _row(method: methods.Method, raw: methods.Raw, times: int, folder: Path) -> dict[str, float]:
    path, raw_path = folder / f"model{method.suffix}", folder / "raw"

    def save() -> None:
        _settled(method.save(path))

    def load() -> Any:
        return _settled(method.load(path))

    seconds: dict[str, list[float]] = {}
    peaks: dict[str, list[int]] = {}

    def note(act: str, call: Callable[[], Any]) -> None:
        seconds.setdefault(act, []).append(measure.seconds_of(call))

    for _ in range(times):
        for act, call in (
            ("raw save", lambda: raw.save(raw_path)),
            ("save", save),
            ("raw load", lambda: raw.load_warm(raw_path)),
            ("load", load),
        ):
            peaks.setdefault(act, []).append(measure.extra_peak(functools.partial(note, act, call)))
        measure.clean_up(folder)
    row: dict[str, float] = {}
    for act in ("save", "load"):
        row[f"{act} MB"] = max(peaks[act]) / 1e6
        pairs = zip(seconds[act], seconds[f"raw {act}"], strict=True)
        row[act] = measure.median(a / b for a, b in pairs)
        row[f"{act} seconds"] = measure.median(seconds[act])
    return row


def _resumes(folder: Path) -> bool:
    """Whether a tied model on the card goes on bit for bit after it was saved and loaded."""
    import keras
    import numpy as np

    import tiedio

    keras.utils.set_random_seed(0)
    first, second = keras.layers.Dense(2048), keras.layers.Dense(2048)
    model = keras.Sequential(
        [keras.Input((2048,)), first, keras.layers.Dropout(0.1, seed=1), second]
    )
    tiedio.tie(second, to=first)
    model.compile("adam", "mse")
    random = np.random.default_rng(0)
    batch = random.random((64, 2048), "float32"), random.random((64, 2048), "float32")
    model.fit(*batch, epochs=2, verbose=0)
    tiedio.save_tied(model, folder / "model.keras")
    loaded = tiedio.load_tied(folder / "model.keras")
    for one in model, loaded:
        one.fit(*batch, epochs=3, shuffle=False, verbose=0)
    pairs = zip(
        [*model.variables, *model.optimizer.variables],
        [*loaded.variables, *loaded.optimizer.variables],
        strict=True,
    )
    tied = loaded.layers[0].kernel is loaded.layers[-1].kernel
    to_numpy = keras.ops.convert_to_numpy
    return tied and all(to_numpy(a).tobytes() == to_numpy(b).tobytes() for a, b in pairs)


def _card() -> str:
    if _backend() == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "no card"
    import jax

    return jax.devices()[0].device_kind


@click.command(help=__doc__)
@click.option("--folder", default="/dev/shm", show_default=True, help="Where to write: in memory.")  # noqa: S108
@click.option("--repetitions", default=3, show_default=True, help="How often each is timed.")
@click.option("--quick", is_flag=True, help="A tiny model: to see that it runs.")
@click.option("--markdown", is_flag=True, help="Also print the tables as in docs/performance.md.")
@click.option("--answer", type=click.Path(path_type=Path), hidden=True)
def main(folder: str, repetitions: int, quick: bool, markdown: bool, answer: Path | None) -> None:
    """Measures, then shows."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        if answer:
            figures = measured("quick" if quick else "full", repetitions, Path(name))
            answer.write_text(json.dumps(figures))
            return
        for backend in filter(importlib.util.find_spec, BACKENDS):
            told = Path(name) / "answer.json"
            subprocess.run(
                [sys.executable, *sys.argv, "--answer", str(told)],
                env={**os.environ, "KERAS_BACKEND": backend},
                check=True,
            )
            _show(backend, json.loads(told.read_text()), markdown)


def _show(backend: str, figures: dict[str, Any], markdown: bool) -> None:
    resumes = "resumes bit for bit" if figures["resumes"] else "DOES NOT RESUME bit for bit"
    header = (
        f"{datetime.date.today()}; {figures['card']}; {backend} "
        f"{importlib.import_module(backend).__version__}; {figures['GB']:.2f} GB; {resumes}"
    )
    table = [["", "save / raw", "load / raw", "save, s", "load, s", "save, MB", "load, MB"]]
    for name, row in figures["rows"].items():
        if "failed" in row:
            header += f"\n{name}: {row['failed']}"
            continue
        keys = "save", "load", "save seconds", "load seconds"
        memory = (f"{row[key]:.0f}" for key in ("save MB", "load MB"))
        table.append([name, *(f"{row[key]:.2f}" for key in keys), *memory])
    console = Console(width=120)
    console.print(header, highlight=False)
    console.print(report.as_rich(table))
    if markdown:
        print(report.as_markdown(table))


if __name__ == "__main__":
    main()
