"""Saving in the background: the values of the call, in their order, and no error lost."""

import errno
import os
import signal
import subprocess
import sys
import threading
from concurrent import futures

import keras
import numpy as np
import pytest
import scenarios
from checkout import environment

import tiedio
from tiedio import errors
from tiedio.saving import background

PATIENCE = 120  # seconds


@pytest.fixture
def model():
    keras.utils.set_random_seed(1)
    first, second = keras.layers.Dense(8), keras.layers.Dense(8)
    noise = keras.layers.Dropout(0.5, seed=1)
    model = keras.Sequential([keras.Input((8,)), first, noise, second])
    tiedio.tie(second, to=first)
    model.compile("adam", "mse")
    train(model)
    return model


def train(model):
    model.fit(np.ones((4, 8)), np.ones((4, 8)), verbose=0)


def state(model):
    return [array.tobytes() for array in scenarios.state_of(model)]


def load(filepath, like):
    """Loads a file, of weights into another model that is as the one that was saved."""
    if ".weights." not in str(filepath):
        return tiedio.load_tied(filepath)
    model = keras.models.clone_model(like)
    model.compile("adam", "mse")
    tiedio.load_tied_weights(model, filepath)
    return model


class Gate:
    """Holds threads that save before the first value, once all is checked, and until opened."""

    def __init__(self, monkeypatch):
        self.is_open, read = threading.Event(), background._Read.__call__

        def held(copy):
            is_open = self.is_open
            copy.begin()
            assert is_open.wait(PATIENCE)
            return read(copy)

        monkeypatch.setattr(background._Read, "__call__", held)

    def open_later(self):
        threading.Timer(0.2, self.is_open.set).start()


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.is_open.set()
    background.catch_up()
    assert not background._unsettled


SAVES = {
    "model.keras": (tiedio.save_tied, {}),
    "folder": (tiedio.save_tied, {"zipped": False}),
    "model.h5": (tiedio.save_tied, {}),
    "model.weights.h5": (tiedio.save_tied_weights, {}),
    "model.weights.json": (tiedio.save_tied_weights, {"max_shard_size": 500 / 2**30}),
}


@pytest.mark.often(1)
@pytest.mark.parametrize("name", SAVES)
def test_a_file_holds_the_values_of_the_call(tmp_path, model, gate, name):
    save, options = SAVES[name]
    for _ in range(2):  # the second in the memory of the first
        gate.is_open.clear()
        saving = save(model, tmp_path / name, background=True, **options)
        then = state(model)
        train(model)
        assert not saving.done and state(model) != then
        gate.is_open.set()
        saving.wait()
        assert saving.done
        loaded = load(tmp_path / name, model)
        assert loaded.layers[0].kernel is loaded.layers[-1].kernel
        assert state(loaded) == then


def test_several_models(tmp_path, model, gate):
    other = keras.Sequential([keras.Input((8,)), model.layers[0]])
    models = {"model": model, "other": other}
    saving = tiedio.save_tied(models, tmp_path / "both.keras", background=True)
    then = state(model)
    train(model)
    gate.is_open.set()
    saving.wait()
    loaded = tiedio.load_tied(tmp_path / "both.keras")
    assert loaded["other"].layers[0] is loaded["model"].layers[0]
    assert state(loaded["model"]) == then


def test_the_memory_is_that_of_one_copy(tmp_path, model, gate):
    tiedio.save_tied(model, tmp_path / "first.keras", background=True)
    buffer = background._buffers[model]
    memory, size = buffer._memory, sum(map(len, state(model)))
    assert size <= memory.nbytes < 1.5 * size
    gate.open_later()
    second = tiedio.save_tied(model, tmp_path / "second.keras", background=True)
    assert gate.is_open.is_set()  # it has waited for the first one, which used it
    second.wait()
    assert buffer._memory is memory


def test_without_enough_memory_it_is_saved_at_once(tmp_path, model, gate, monkeypatch):
    assert 1e8 < background._free_memory() < 1e15
    size = sum(map(len, state(model)))
    monkeypatch.setattr(background, "_free_memory", lambda: 1.9 * size)
    other = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    before = tiedio.save_tied(other, tmp_path / "other.keras", background=True)
    gate.open_later()
    saving = tiedio.save_tied(model, tmp_path / "model.keras", background=True)
    assert saving.done and not background._buffers[model]._memory.nbytes
    assert before.done  # it keeps the order, too
    assert state(tiedio.load_tied(tmp_path / "model.keras")) == state(model)


def test_an_open_file_is_written_at_once(tmp_path, model, gate):
    with open(tmp_path / "model.keras", "wb") as file:
        saving = tiedio.save_tied(model, file, background=True)
    saving.wait()
    assert state(tiedio.load_tied(tmp_path / "model.keras")) == state(model)


def test_what_follows_at_one_path_waits(tmp_path, model, gate):
    filepath = tmp_path / "model.keras"
    first = tiedio.save_tied(model, filepath, background=True)
    then = state(model)
    train(model)
    gate.open_later()
    assert state(tiedio.load_tied(filepath)) == then and first.done  # there was no file before
    gate.is_open.clear()
    second = tiedio.save_tied(model, filepath, background=True)
    then = state(model)
    gate.open_later()
    tiedio.save_tied(model, filepath)
    assert second.done and state(tiedio.load_tied(filepath)) == then


def test_files_are_written_in_the_order_of_the_calls(tmp_path, model, gate):
    first = tiedio.save_tied(model, tmp_path / "first.keras", background=True)
    held, gate.is_open = gate.is_open, threading.Event()
    gate.is_open.set()
    other = keras.models.clone_model(model)
    second = tiedio.save_tied(other, tmp_path / "second.keras", background=True)
    assert not futures.wait([second._end], timeout=0.3).done
    held.set()
    second.wait()
    assert first.done


# What is refused, and what fails


def test_what_is_refused_is_refused_by_the_call(tmp_path, model, gate):
    def refused(kind, save, name, **options):
        with pytest.raises(kind):
            save(model, tmp_path / name, background=True, **options)
        assert not background._unsettled

    refused(errors.MissingFileError, tiedio.save_tied, "nowhere/model.keras")
    shards = {"max_shard_size": 8 / 2**30}
    refused(errors.SaveError, tiedio.save_tied_weights, "model.weights.json", **shards)
    (tmp_path / "file").write_text("mine")
    refused(NotADirectoryError, tiedio.save_tied, "file", zipped=False)
    model.hidden = {keras.layers.Dense(1)}
    model.get_config = lambda: {"nothing": object()}
    refused(TypeError, tiedio.save_tied, "model.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def full_disk(monkeypatch):
    flush = os.fsync

    def fail(descriptor):
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fail)


@pytest.mark.often(1)
@pytest.mark.parametrize("name", ["model.keras", "folder", "model.weights.json"])
def test_an_error_is_raised_once_and_the_old_file_stays(tmp_path, model, full_disk, name):
    save, options = SAVES[name]
    save(model, tmp_path / name, **options)
    then = state(model)
    train(model)

    def fail():
        saving = save(model, tmp_path / name, background=True, **options)
        background.catch_up()
        assert saving.done
        return saving

    for told in (
        lambda: fail().wait(),
        lambda: fail() and save(model, f"{tmp_path}/./{name}", **options),
        lambda: fail() and fail(),
    ):
        with pytest.raises(OSError, match="No space left"):
            told()
        assert not background._unsettled
        assert state(load(tmp_path / name, model)) == then
    save(model, tmp_path / name, **options)
    assert state(load(tmp_path / name, model)) == state(model)


def test_where_no_thread_can_be_had_the_call_writes(tmp_path, model, monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        saving = tiedio.save_tied(model, tmp_path / "model.keras", background=True)
        assert saving.done
    assert state(tiedio.load_tied(tmp_path / "model.keras")) == state(model)


PROGRAM = """
import atexit, os, signal, sys, time
import keras, tiedio
from tiedio.saving import background

what, folder = sys.argv[1:]
model = keras.Sequential([keras.Input((600,)), keras.layers.Dense(600)])
tiedio.save_tied(model, f"{folder}/model.keras")
read = background._Read.__call__


def slowly(copy):
    copy.begin()
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    return read(copy)


def fail(descriptor):
    raise OSError("the disk is full")


def save(name):
    return tiedio.save_tied(model, f"{folder}/{name}.keras", background=True)


background._Read.__call__ = slowly
save("model")
save("ends")
atexit.register(lambda: save("at_exit").wait())
if what == "fail":
    os.fsync = fail
"""


def end(what, folder):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, what, folder],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.slow
def test_the_end_of_python_waits(tmp_path):
    done = end("wait", tmp_path)
    assert not done.returncode and "Error" not in done.stderr, done.stderr
    for name in ("model", "ends", "at_exit"):
        tiedio.load_tied(tmp_path / f"{name}.keras")


@pytest.mark.slow
def test_an_error_that_nobody_asked_for_is_printed(tmp_path):
    done = end("fail", tmp_path)
    assert f"`{tmp_path}/ends.keras` could not be saved" in done.stderr
    assert "the disk is full" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    tiedio.load_tied(tmp_path / "model.keras")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kills")
def test_a_kill_leaves_the_old_file(tmp_path):
    assert end("kill", tmp_path).returncode == -signal.SIGKILL
    tiedio.load_tied(tmp_path / "model.keras")
    assert not (tmp_path / "ends.keras").exists()
