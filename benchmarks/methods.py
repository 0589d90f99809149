"""The ways to save and load that are compared: raw I/O, the two that take models, their peers.

Each is a class with `save` and, mirroring it, `load`. What it needs is imported when it is made,
so that no method pays for another's imports.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


class Method:
    """One way to save and load.

    Attributes:
        name: What tables call it.
        what: What it saves.
        needs: The module that must be installed.
        suffix: How its files end.
    """

    name: ClassVar[str]
    what: ClassVar[str] = "bare tensors"
    needs: ClassVar[str]
    suffix: ClassVar[str] = ""

    def __init__(self, subject: Any):
        """Takes a model, or the tensors (a dict of arrays) of one."""
        self.subject = subject

    @classmethod
    def is_installed(cls) -> bool:
        try:
            return importlib.util.find_spec(cls.needs) is not None
        except ModuleNotFoundError:  # nor is the package around it
            return False

    def save(self, path: Path) -> Any:
        raise NotImplementedError

    def load(self, path: Path) -> Any:
        raise NotImplementedError


class Raw:
    """What persistence could cost at best: the same bytes, written and read in one go."""

    def __init__(self, size: int):
        """Takes the number of bytes."""
        self.buffer = np.ones(size, np.uint8)  # warm: every page is in memory

    def save(self, path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            rest = self.buffer.data
            while rest:  # Linux writes 2 GiB at most in one call
                rest = rest[file.write(rest) :]

    def load(self, path: Path) -> np.ndarray:
        """Reads into fresh memory, because whoever loads a model must allocate it, too."""
        return _read(path, np.empty_like(self.buffer))

    def load_warm(self, path: Path) -> np.ndarray:
        return _read(path, self.buffer)


def _read(path: Path, buffer: np.ndarray) -> np.ndarray:
    with path.open("rb", buffering=0) as file:
        rest = buffer.data
        while rest:
            rest = rest[file.readinto(rest) :]
    return buffer


class StockKeras(Method):
    """What Keras does by itself."""

    name, what, needs, suffix = "stock Keras", "model, shared tensors twice", "keras", ".keras"

    def save(self, path: Path) -> None:
        self.subject.save(path)

    def load(self, path: Path) -> Any:
        import keras

        return keras.saving.load_model(path)


class Tiedio(Method):
    """What tiedio does, as its users call it."""

    name, what, needs, suffix = "tiedio", "model", "tiedio", ".keras"

    def save(self, path: Path) -> None:
        import tiedio

        tiedio.save_tied(self.subject, path)

    def load(self, path: Path) -> Any:
        import tiedio

        return tiedio.load_tied(path)


class H5py(Method):
    """A dataset for each tensor."""

    name, needs, suffix = "h5py", "h5py", ".h5"

    def save(self, path: Path) -> None:
        import h5py

        with h5py.File(path, "w") as file:
            for name, tensor in self.subject.items():
                file[name] = tensor

    def load(self, path: Path) -> Any:
        import h5py

        with h5py.File(path) as file:
            return {name: dataset[()] for name, dataset in file.items()}


class Safetensors(Method):
    """Its functions for NumPy arrays."""

    name, needs, suffix = "safetensors", "safetensors", ".safetensors"

    def save(self, path: Path) -> None:
        from safetensors.numpy import save_file

        save_file(self.subject, path)

    def load(self, path: Path) -> Any:
        from safetensors.numpy import load_file

        return load_file(path)


class Torch(Method):
    """`torch.save` of a dict."""

    name, needs, suffix = "torch.save", "torch", ".pt"

    def __init__(self, subject: Any):
        import torch

        super().__init__({name: torch.from_numpy(tensor) for name, tensor in subject.items()})

    def save(self, path: Path) -> None:
        import torch

        torch.save(self.subject, path)

    def load(self, path: Path) -> Any:
        import torch

        return torch.load(path)


class TensorFlowCheckpoint(Method):
    """Loads arrays, by the checkpoint's reader."""

    name, needs = "tf.train.Checkpoint", "tensorflow"

    def __init__(self, subject: Any):
        import tensorflow as tf

        variables = {name: tf.Variable(tensor) for name, tensor in subject.items()}
        super().__init__(tf.train.Checkpoint(**variables))

    def save(self, path: Path) -> None:
        self.subject.write(str(path))

    def load(self, path: Path) -> Any:
        import tensorflow as tf

        reader = tf.train.load_checkpoint(str(path))
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


class Orbax(Method):
    """Saves, and waits until all is written."""

    name, needs = "Orbax", "orbax.checkpoint"

    def __init__(self, subject: Any):
        import orbax.checkpoint

        super().__init__(subject)
        self.checkpointer = orbax.checkpoint.StandardCheckpointer()

    def save(self, path: Path) -> None:
        self.checkpointer.save(os.path.abspath(path), self.subject)
        self.checkpointer.wait_until_finished()

    def load(self, path: Path) -> Any:
        return self.checkpointer.restore(os.path.abspath(path))


class Checkpoint(Method):
    """A callback that saves a model at the end of an epoch."""

    def __init__(self, subject: Any, folder: Path):
        """Takes a model, and where its files go."""
        super().__init__(subject)
        self.callback = self.made(folder)
        self.callback.set_model(subject)

    def made(self, folder: Path) -> Any:
        raise NotImplementedError

    def save_epoch(self, epoch: int) -> None:
        """Saves, and returns when training may go on."""
        self.callback.on_epoch_end(epoch, {})

    def wait(self) -> None:
        """Waits for what goes on in the background."""


class KerasCheckpoint(Checkpoint):
    """Stock Keras."""

    name, what, needs = "ModelCheckpoint", "model, shared tensors twice", "keras"

    def made(self, folder: Path) -> Any:
        import keras

        return keras.callbacks.ModelCheckpoint(folder / "stock.keras")


class OrbaxCheckpoint(Checkpoint):
    """Keras' callback for Orbax, which saves in the background by default."""

    name, what, needs = "OrbaxCheckpoint", "model", "orbax.checkpoint"

    def made(self, folder: Path) -> Any:
        import keras

        return keras.callbacks.OrbaxCheckpoint(os.path.abspath(folder / "orbax"))

    def wait(self) -> None:
        self.callback.wait_until_finished()


class TiedCheckpoint(Checkpoint):
    """What tiedio does by default."""

    name, what, needs = "TiedModelCheckpoint", "model", "tiedio"
    on_background: ClassVar[bool] = False

    def made(self, folder: Path) -> Any:
        import tiedio

        return tiedio.TiedModelCheckpoint(
            folder / f"{self.on_background}.keras", save_on_background=self.on_background
        )

    def wait(self) -> None:
        self.callback.on_train_end()


class TiedCheckpointOnBackground(TiedCheckpoint):
    """The same, in the background."""

    name, on_background = "TiedModelCheckpoint, on background", True


OF_MODELS: tuple[type[Method], ...] = (StockKeras, Tiedio)
PEERS: tuple[type[Method], ...] = (H5py, Safetensors, Torch, TensorFlowCheckpoint, Orbax)
METHODS = {method.name: method for method in OF_MODELS + PEERS}
NO_CALLBACK = "none"
# The others are compared with the first.
CHECKPOINTS: tuple[type[Checkpoint], ...] = (
    TiedCheckpoint,
    TiedCheckpointOnBackground,
    OrbaxCheckpoint,
    KerasCheckpoint,
)
