"""Contents that are full of one number, their generation, and processes that die saving them.

Run as `python generations.py FUNCTION ARGUMENTS...`, without Keras.
"""

import atexit
import itertools
import os
import shutil
import signal
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path

import numpy as np

from tiedio.formats import digests, hdf5_writer, table
from tiedio.formats.content import Content
from tiedio.record.record import Record
from tiedio.storage import atomic
from tiedio.storage.locating import at

ZIPPED, FOLDER, BARE, WHOLE, SHARDS = table.FORMATS
TENSOR_BYTES = 1 << 20
SMALL_PART = TENSOR_BYTES // 32  # a tensor is read in several threads then


def content(generation, tensors=4, read=None, **options):
    """Makes tensors of a megabyte each, one of them under two names."""
    shape, dtype = (TENSOR_BYTES // 8,), np.dtype("int64")
    tensor = hdf5_writer.Tensor(shape, dtype, read or (lambda: np.full(shape, generation, dtype)))
    layout = hdf5_writer.Layout(
        tensors={f"layers/{n}/vars/0": tensor for n in range(tensors)},
        links={"layers/tied/vars/0": "layers/0/vars/0"},
    )
    return Content(layout, Record(), {"generation": generation}, **options)


def save(
    filepath, generation, container=ZIPPED, advance=hdf5_writer.untold, durable=True, **options
):
    config = {"generation": generation} if container.holds_model else None
    container.write(at(filepath), content(generation, config=config, **options), durable, advance)


def save_folder(filepath, generation, **options):
    """Saves a folder, with assets that change from one generation to the next."""
    with tempfile.TemporaryDirectory() as assets:
        for name in ("always", f"in {generation % 2}/vocabulary"):
            Path(assets, name).parent.mkdir(exist_ok=True)
            Path(assets, name).write_text(str(generation))
        save(filepath, generation, FOLDER, assets=Path(assets), **options)


def load(filepath):
    """Reads all that is there, and returns its generation, which is one and the same."""
    with table.reading(at(filepath)) as source, tempfile.TemporaryDirectory() as folder:
        if source.verify_weights:
            source.verify_weights()
        source.weights.expect(source.record["digests"])
        paths = source.weights.below("layers")
        assert "layers/tied/vars/0" in paths
        assert not source.weights.find_damaged()
        found = {int(one) for path in paths for one in np.unique(source.weights.read(path))}
        if source.config:
            found.add(source.config["generation"])
        source.extract_assets(Path(folder, "here"))
        assert not os.path.exists(folder) or set(os.listdir(folder)) <= {"here"}
        folder = Path(folder, "here")
        assets = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        found |= {int(path.read_text()) for path in assets}
    assert len(found) == 1
    (generation,) = found
    if assets:
        names = [path.relative_to(folder).as_posix() for path in assets]
        assert names == ["assets/always", f"assets/in {generation % 2}/vocabulary"]
    return generation


def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def dying_after(count):
    """Makes a function that is told of bytes, and kills its process after so many."""
    told = itertools.accumulate(itertools.repeat(TENSOR_BYTES))
    return lambda *_: next(told) >= count and die()


def die_in_upload(filepath, after):
    save(filepath, 2, advance=dying_after(int(after)), tensors=24)


def measure_upload(filepath, tensors):
    """Saves many tensors, and prints how much memory that took."""
    save(filepath, 1)  # which imports what is needed
    tracemalloc.start()
    save(filepath, 2, tensors=int(tensors))
    print(tracemalloc.get_traced_memory()[1])


def die_at(step, filepath):
    """Saves a folder, and is killed at a step of it."""
    if step == "writing":
        save_folder(filepath, 2, advance=dying_after(2 * TENSOR_BYTES))
    owner, name = {
        "flushing": (atomic, "_flush"),
        "keeping what is the user's": (atomic, "_link"),
        "exchanging": (atomic, "_exchange"),
        "removing the old one": (shutil, "rmtree"),
    }[step]
    setattr(owner, name, die)
    save_folder(filepath, 2)


def die_between_renames(filepath):
    """Saves a folder where two cannot be exchanged, and is killed when the old one is aside."""
    atomic.ctypes.CDLL = lambda name: None
    rename = Path.rename

    def renamed(self, target):
        rename(self, target)
        die()

    Path.rename = renamed
    save_folder(filepath, 2)


def save_again_and_again(filepath, first):
    for generation in itertools.count(int(first)):
        save_folder(filepath, generation)
        print(generation, flush=True)


def save_and_load(filepath):
    save_folder(filepath, 2)
    assert load(filepath) == 2


SUFFIXES = {
    ".keras": ZIPPED,
    "": FOLDER,
    ".weights.h5": BARE,
    ".h5": WHOLE,
    ".weights.json": SHARDS,
}


def save_as_python_ends(when, folder):
    """Saves in each format, and loads, while no thread can be started any more."""
    digests.PART = SMALL_PART

    def ended(*_):
        threading.main_thread().join()  # that is, its program is over

    def work():
        if when == "after":
            ended()
        for suffix, container in SUFFIXES.items():
            save(
                f"{folder}/model{suffix}",
                1,
                container,
                ended if when == "meanwhile" else hdf5_writer.untold,
            )
            print(load(f"{folder}/model{suffix}"), flush=True)

    if when == "atexit":
        atexit.register(work)
    else:
        threading.Thread(target=work).start()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
