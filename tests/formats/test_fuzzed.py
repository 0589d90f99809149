"""Files whose structure was changed at random: right, or refused, within bounds of time and memory.

Each day tries other changes. `TIEDIO_FUZZ_CASES` says how many of each kind.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time

import fuzzed
import h5py
import keras
import pytest
import sample_files
from checkout import environment
from keras.src.saving import saving_lib

import tiedio
import tiedio.files

CASES = int(os.environ.get("TIEDIO_FUZZ_CASES", "60"))
FIRST = int(os.environ.get("TIEDIO_FUZZ_FIRST", int(time.time()) // 86400 * CASES))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = sample_files.write(tmp_path_factory.mktemp("samples"))
    model = sample_files.model()
    model.save(folder / "lost.h5")
    saving_lib.save_model(model, folder / "npz.keras", weights_format="npz")
    tiedio.files.export(folder / "tied.keras", folder / "tied.safetensors")
    with h5py.File(folder / "chunked.weights.h5", "w") as file:
        for number in range(2):
            file.create_dataset(
                f"layers/dense_{number}/vars/0",
                data=model.layers[number].kernel.numpy(),
                chunks=(2, 2),
                compression="gzip",
            )
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.train.Checkpoint(model=model).write(str(folder / "tensorflow" / "model"))
    if importlib.util.find_spec("orbax"):
        model.compile("adam", "mse")
        checkpoint = tiedio.TiedOrbaxCheckpoint(str(folder / "orbax"), save_on_background=False)
        checkpoint.set_model(model)
        checkpoint.on_train_begin()
        checkpoint.on_epoch_end(0)
        checkpoint.on_train_end()
    return folder


def needs(kind):
    needed = {fuzzed.ORBAX: pytest.mark.orbax}
    return [pytest.mark.slow, *([needed[kind]] if kind in needed else [])]


@pytest.mark.parametrize("kind", [pytest.param(one, marks=needs(one)) for one in fuzzed.KINDS])
def test_a_changed_file_is_right_or_refused(samples, kind):
    if not (samples / fuzzed.KINDS[kind][0]).exists():
        pytest.skip("only TensorFlow, or Orbax, writes one")
    arguments = [samples, kind, FIRST, CASES]
    done = subprocess.run(
        [sys.executable, fuzzed.__file__, *map(str, arguments)],
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    found, worse = json.loads(done.stdout.splitlines()[-1])
    print(kind, found)
    assert not worse, "\n".join(worse)
    assert sum(found.values()) == CASES and found.get("refused")
