"""Where no thread can be had, as while Python ends, the calling one writes and reads."""

import subprocess
import sys
import threading

import generations
import keras
import numpy as np
import pytest
from checkout import environment, start

import tiedio
from tiedio.formats import digests, parts

PATIENCE = 120  # seconds

PROGRAM = """
import atexit, sys, threading
import numpy as np
import keras, tiedio

when, folder = sys.argv[1:]
layers = [keras.layers.Dense(600) for _ in range(2)]
model = keras.Sequential([keras.Input((600,)), *layers])
tiedio.tie(layers[1], to=layers[0])
model.compile("adam", "mse")
model.fit(np.ones((1, 600)), np.ones((1, 600)), verbose=0)


def work():
    if when == "after":
        threading.main_thread().join()
    tiedio.save_tied(model, f"{folder}/model.keras", progress=True)
    tiedio.save_tied_weights(model, f"{folder}/model.weights.h5")
    loaded = tiedio.load_tied(f"{folder}/model.keras", progress=True)
    tiedio.load_tied_weights(loaded, f"{folder}/model.weights.h5")
    print("tied:", loaded.layers[0].kernel is loaded.layers[1].kernel)


atexit.register(work) if when == "atexit" else threading.Thread(target=work).start()
"""


@pytest.mark.parametrize("when", ["atexit", "after", "meanwhile"])
def test_files_are_written_and_read_as_python_ends(tmp_path, monkeypatch, when):
    monkeypatch.setattr(digests, "PART", generations.SMALL_PART)
    process = start(
        generations,
        "save_as_python_ends",
        when,
        tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, error = process.communicate(timeout=PATIENCE)
    # Python ends with 0, whatever was raised then.
    assert not error.decode()
    assert out.split() == [b"1"] * len(generations.SUFFIXES)
    for suffix in generations.SUFFIXES:
        assert generations.load(tmp_path / f"model{suffix}") == 1


@pytest.mark.slow
@pytest.mark.parametrize("when", ["atexit", "after"])
def test_a_model_is_saved_and_loaded_as_python_ends(tmp_path, when):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, when, tmp_path],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "tied: True" in done.stdout, done.stderr
    loaded = tiedio.load_tied(tmp_path / "model.keras")
    assert loaded.layers[0].kernel is loaded.layers[1].kernel


def refuse(*_):
    raise RuntimeError("can't start new thread at interpreter shutdown")


@pytest.mark.parametrize("suffix", generations.SUFFIXES)
def test_no_thread_can_be_started(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(digests, "PART", generations.SMALL_PART)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    filepath = tmp_path / f"model{suffix}"
    for generation in (1, 2):
        generations.save(filepath, generation, generations.SUFFIXES[suffix])
        assert generations.load(filepath) == generation


def test_only_some_threads_can_be_started(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "PART", generations.TENSOR_BYTES // 512)
    begun = threading.Thread.start
    starts = iter([begun] * 2)
    monkeypatch.setattr(threading.Thread, "start", lambda self: next(starts, refuse)(self))
    monkeypatch.setattr(parts, "_THREADS", 8)
    generations.save(tmp_path / "model.keras", 1)
    assert generations.load(tmp_path / "model.keras") == 1


def test_a_bar_is_shown_without_a_thread(tmp_path, monkeypatch, capsys):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Embedding(1 << 10, 256)])
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        tiedio.save_tied(model, tmp_path / "model.keras", progress=True)
    assert "1.1/1.1 MB" in capsys.readouterr().out
    loaded = tiedio.load_tied(tmp_path / "model.keras")
    assert np.array_equal(*(np.array(one.layers[0].embeddings) for one in (model, loaded)))
