"""A save or a load that is interrupted at any moment leaves the file, and Keras, as they were."""

import contextlib
import os
import signal
import time

import keras
import numpy as np
import pytest
from numbered import model_of, number_of

import tiedio
from tiedio.model.keras_internals import global_state

MOMENTS = 50
UNITS = 600  # two tensors of over 1 MB, which threads write and read

# Whoever makes layers changes how many names were given.
COUNTS = "object_name_uids"


def state_of_keras():
    state = vars(global_state.GLOBAL_STATE_TRACKER)
    return {key: held for key, held in state.items() if held and key != COUNTS}


@contextlib.contextmanager
def interrupted(error, delay):
    """Raises an error inside as a handler of a signal does, if it takes longer than that."""
    is_inside = True

    def interrupt(*_):
        if is_inside:
            raise error

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, delay)
    came = []
    try:
        try:
            yield came
        finally:
            is_inside = False
    except error:
        came.append(True)  # not the error: what its traceback holds stays open with it
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def seconds(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


# What Ctrl+C raises, and what a handler of SIGTERM does that lets a program end in order.
ERRORS = [KeyboardInterrupt, pytest.param(SystemExit, marks=pytest.mark.seldom)]


def interrupt_often(call, error):
    """Interrupts a call at any moment of it; yields whether it was, each time."""
    duration = min(seconds(call) for _ in range(3))
    moments = np.random.default_rng(0).uniform(1e-4, duration, MOMENTS)
    before, came = state_of_keras(), 0
    for moment in moments:
        with interrupted(error, moment) as raised:
            call()
        assert state_of_keras() == before
        came += bool(raised)
        yield bool(raised)
    assert came > MOMENTS // 2


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    "name",
    ["model.keras", *(pytest.param(n, marks=pytest.mark.slow) for n in ("model.h5", "folder"))],
)
def test_a_save_leaves_the_old_file_or_the_new_one(tmp_path, name, error):
    old, new = (model_of(number, UNITS) for number in (0, 1))
    options = {} if "." in name else {"zipped": False}
    path = tmp_path / name
    for came in interrupt_often(lambda: tiedio.save_tied(new, path, **options), error):
        assert number_of(tiedio.load_tied(path)) in (0, 1) if came else (1,)
        tiedio.save_tied(old, path, **options)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="TensorFlow may crash where a signal comes while it makes a variable, as in stock Keras",
)
@pytest.mark.parametrize("error", ERRORS)
def test_a_load_leaves_nothing_behind(tmp_path, error):
    path = tmp_path / "model.keras"
    tiedio.save_tied(model_of(1, UNITS), path)
    for _ in interrupt_often(lambda: tiedio.load_tied(path), error):
        assert number_of(tiedio.load_tied(path)) == 1
