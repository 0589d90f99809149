"""Many threads save and load at once, while others train, and patch Keras: all values are right."""

import itertools
import os
import threading
import time
import traceback

import keras
import numpy as np
from numbered import fill, model_of, number_of

import tiedio

SECONDS = float(os.environ.get("TIEDIO_STRESS_SECONDS", "4"))
PATIENCE = 120  # seconds for the last round of each thread
UNITS = 300  # a kernel of more than what is written in a thread of its own


def whole(folder, model, number):
    path = folder / f"{threading.get_ident()}.keras"
    tiedio.save_tied(model, path, durable=False)
    assert number_of(tiedio.load_tied(path)) == number


def in_old_format(folder, model, number):
    path = folder / f"{threading.get_ident()}.h5"
    tiedio.save_tied(model, path, durable=False)
    assert number_of(tiedio.load_tied(path)) == number


def weights(folder, model, number):
    path = folder / f"{threading.get_ident()}.weights.h5"
    tiedio.save_tied_weights(model, path, durable=False)
    other = model_of(-1, UNITS)
    tiedio.load_tied_weights(other, path)
    assert number_of(other) == number


def in_background(folder, model, number):
    path = folder / f"{threading.get_ident()} background.keras"
    saving = tiedio.save_tied(model, path, durable=False, background=True)
    fill(model, -2)
    saving.wait()
    assert number_of(tiedio.load_tied(path)) == number


def to_one_place(folder, model, number):
    path = folder / "shared.keras"
    tiedio.save_tied(model, path, durable=False)
    assert number_of(tiedio.load_tied(path)) >= 0  # somebody's, and one


def stock(folder, model, number):
    path = folder / f"{threading.get_ident()} stock.keras"
    model.save(path)  # patched or not
    assert number_of(keras.saving.load_model(path), tied=False) == number


def training(folder, model, number):
    batch = np.ones((4, UNITS), "float32"), np.ones((4, UNITS), "float32")
    checkpoint = tiedio.TiedModelCheckpoint(folder / f"{threading.get_ident()} best.keras")
    model.fit(*batch, epochs=2, verbose=0, callbacks=[checkpoint])
    assert model.layers[0].kernel is model.layers[1].kernel


def patching(folder, model, number):
    with tiedio.patch():
        time.sleep(0.02)


WORK = (whole, in_old_format, weights, in_background, to_one_place, to_one_place, stock, training)


def test_threads_do_not_see_each_other(tmp_path):
    errors, rounds, end = [], dict.fromkeys(WORK, 0), time.monotonic() + SECONDS
    save, load = keras.Model.save, keras.saving.load_model

    def run(work):
        try:
            model = model_of(0, UNITS)
            for number in itertools.count(1):
                if time.monotonic() > end or errors:
                    return
                fill(model, number)
                work(tmp_path, model, number)
                rounds[work] = number
        except BaseException:
            errors.append(f"{work.__name__}: {traceback.format_exc()}")

    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in (*WORK, patching)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + PATIENCE)
    assert not errors, errors[0]
    assert not [thread for thread in threads if thread.is_alive()]
    assert all(rounds[work] for work in WORK)
    assert (keras.Model.save, keras.saving.load_model) == (save, load)
    assert not [name for name in os.listdir(tmp_path) if "tiedio" in name]
