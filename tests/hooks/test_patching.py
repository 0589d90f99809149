"""Keras' own functions under `tiedio.patch()`: what is routed, for whom, and until when."""

import builtins
import concurrent.futures
import copy
import io
import json
import sys
import threading
import zipfile

import h5py
import keras
import numpy as np
import pytest
import scenarios

# By name, before anything is patched.
from keras.models import load_model as imported_load_model
from keras.saving import load_model, load_weights, save_model, save_weights

import tiedio
from tiedio import errors
from tiedio.hooks import patching

HELD = [getattr(holder, name) for holder, name, _ in patching._replacements()]


def is_stock():
    now = (getattr(holder, name) for holder, name, _ in patching._replacements())
    return all(one is before for one, before in zip(now, HELD, strict=True))


@pytest.fixture(autouse=True)
def stock_again():
    """No test may leave Keras patched to another one."""
    assert is_stock()
    yield
    tiedio.unpatch()
    assert is_stock() and patching._uses == ()


def coder(tie=True, compiled=True):
    layers = [keras.layers.Dense(4, name=name) for name in ("encoder", "decoder")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    if tie:
        tiedio.tie(layers[1], to=layers[0])
    if compiled:
        model.compile("adam", "mse")
    return model


@pytest.fixture(scope="module")
def model():
    model = coder()
    scenarios.train(model)
    return model


def is_tied(model):
    return model.layers[0].kernel is model.layers[1].kernel


def trained_as(loaded, model):
    pairs = zip(scenarios.state_of(loaded), scenarios.state_of(model), strict=True)
    return all(np.array_equal(ours, theirs) for ours, theirs in pairs)


# From when until when


def test_a_with_statement_ends_with_keras_as_it_was():
    with tiedio.patch():
        assert not is_stock()
    assert is_stock()


def test_an_exception_ends_it_too():
    with pytest.raises(KeyError), tiedio.patch():
        raise KeyError
    assert is_stock()


def test_unpatch_ends_all_of_it():
    for _ in range(2):
        tiedio.patch()
    tiedio.unpatch()
    assert is_stock()
    tiedio.unpatch()


def test_one_inside_another():
    with tiedio.patch():
        with tiedio.patch():
            pass
        assert not is_stock()
    assert is_stock()


def test_one_may_be_used_again(model, tmp_path):
    patch = tiedio.patch()
    with patch:
        pass
    assert is_stock()
    with patch:
        model.save(tmp_path / "model.keras")
        assert is_tied(load_model(tmp_path / "model.keras"))


def test_two_threads_that_overlap():
    begun, ended = threading.Event(), threading.Event()

    def first():
        with tiedio.patch():
            begun.set()
            assert ended.wait(60)
            return is_stock()

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        other = threads.submit(first)
        assert begun.wait(60)
        with tiedio.patch():
            ended.set()
            assert not other.result(60)
            assert not is_stock()
    assert is_stock()


def test_threads_that_come_and_go(tmp_path):
    """While some save and load, others patch for a moment."""
    models = [coder(compiled=False) for _ in range(2)]
    done = threading.Event()

    def save_and_load(number):
        path = tmp_path / f"{number}.keras"
        for _ in range(5):
            with tiedio.patch():
                models[number].save(path)
                assert is_tied(load_model(path))

    def come_and_go(routed):
        count = 0
        while not done.is_set():
            with patching.routed() if routed else tiedio.patch():
                assert patching._is_routed()
            count += 1
        return count

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            passing = [threads.submit(come_and_go, number % 2) for number in range(4)]
            saving = [threads.submit(save_and_load, number) for number in range(2)]
            concurrent.futures.wait(saving)
            done.set()
            assert [one.result() for one in saving] == [None, None]
            assert all(one.result() > 10 for one in passing)
    finally:
        done.set()
        sys.setswitchinterval(interval)
    assert is_stock()


# What is routed

WHOLE = {
    "model.save": (lambda model, path: model.save(path), load_model, "m.keras"),
    "by name": (save_model, imported_load_model, "m.keras"),
    "keras.saving": (
        lambda *arguments: keras.saving.save_model(*arguments),
        lambda *arguments, **options: keras.saving.load_model(*arguments, **options),
        "m.keras",
    ),
    "keras.models": (
        lambda *arguments: keras.models.save_model(*arguments),
        lambda *arguments, **options: keras.models.load_model(*arguments, **options),
        "m.keras",
    ),
    "HDF5": (lambda model, path: model.save(path), load_model, "m.h5"),
    "a folder": (lambda model, path: model.save(path, zipped=False), load_model, "m"),
}


@pytest.mark.parametrize("route", WHOLE)
def test_a_model(model, tmp_path, route):
    save, load, name = WHOLE[route]
    save(coder(), tmp_path / f"stock_{name}")  # Keras' HDF5 takes the optimizer from its model
    assert not is_tied(load(tmp_path / f"stock_{name}", compile=False))
    with tiedio.patch():
        save(model, tmp_path / name)
        loaded = load(tmp_path / name)
    assert is_tied(loaded)
    assert trained_as(loaded, model)


def sharded(model, path):
    model.save_weights(path, max_shard_size=100 / 2**30)


WEIGHTS = {
    "model.save_weights": (
        lambda model, path: model.save_weights(path),
        lambda model, path: model.load_weights(path),
        "m.weights.h5",
    ),
    "by name": (save_weights, load_weights, "m.weights.h5"),
    "keras.saving": (
        lambda *arguments: keras.saving.save_weights(*arguments),
        lambda *arguments: keras.saving.load_weights(*arguments),
        "m.weights.h5",
    ),
    "shards": (sharded, lambda model, path: model.load_weights(path), "m.weights.json"),
    "of a model": (save_model, lambda model, path: model.load_weights(path), "m.keras"),
}


@pytest.mark.parametrize("route", WEIGHTS)
def test_weights(model, tmp_path, route):
    save, load, name = WEIGHTS[route]
    with tiedio.patch():
        save(model, tmp_path / name)
        loaded = coder(tie=False)
        load(loaded, tmp_path / name)
    assert is_tied(loaded)
    assert trained_as(loaded, model)
    if not (keras.__version__.startswith("3.10.") and route == "shards"):  # it cannot read them
        loaded = coder(tie=False, compiled=False)
        load(loaded, tmp_path / name)
        assert not is_tied(loaded)


@pytest.mark.parametrize("by_name", [False, True])
def test_weights_of_a_model_in_hdf5(model, tmp_path, by_name):
    stock = tmp_path / "stock.h5"
    coder(tie=False).save(stock)
    with tiedio.patch():
        model.save(tmp_path / "m.h5")
        loaded = coder(tie=False)
        if not by_name:
            loaded.load_weights(tmp_path / "m.h5")
            assert is_tied(loaded) and trained_as(loaded, model)
        with pytest.raises(errors.LoadError, match="the model ties what has several values"):
            model.load_weights(stock, **({"by_name": True} if by_name else {}))


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_without_the_optimizer(model, tmp_path, name):
    with tiedio.patch():
        save_model(model, tmp_path / name, include_optimizer=False)
        loaded = load_model(tmp_path / name)
    assert is_tied(loaded)
    # Keras takes it for `.h5` only.
    assert loaded.compiled == (not name.endswith(".h5"))


@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoints(tmp_path, weights_only):
    path = tmp_path / ("m.weights.h5" if weights_only else "m.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=weights_only)
    model, data = coder(), np.ones((2, 4))
    with tiedio.patch():
        model.fit(data, data, callbacks=[checkpoint], verbose=0)
        if weights_only:
            loaded = coder(tie=False)
            loaded.load_weights(path)
        else:
            loaded = load_model(path)
    assert is_tied(loaded)
    assert trained_as(loaded, model)


def test_backups(tmp_path):
    model, data = coder(), np.ones((2, 4))

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)

    with tiedio.patch():
        model.fit(data, data, epochs=2, callbacks=[backup()], verbose=0)
        restored = coder(tie=False)
        restored.fit(data, data, epochs=3, callbacks=[backup()], verbose=0)
    model.fit(data, data, verbose=0)
    assert is_tied(restored)
    assert trained_as(restored, model)


# What is left to Keras


def read_record(path):
    with h5py.File(path) as file:
        return "tiedio" in file


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m"])
def test_a_model_that_is_not_built(tmp_path, name):
    model = keras.Sequential([keras.layers.Dense(2)])
    with tiedio.patch():
        save_model(model, tmp_path / name, zipped="." in name)
        loaded = load_model(tmp_path / name)
    assert loaded.layers[0].units == 2 and not loaded.built


def layer():
    dense = keras.layers.Dense(3)
    dense.build((None, 2))
    return dense


def optimizer():
    adam = keras.optimizers.Adam(0.25)
    adam.build([])
    return adam


@pytest.mark.parametrize("make", [layer, optimizer])
def test_what_is_no_model(tmp_path, make):
    one = make()
    with tiedio.patch():
        save_model(one, tmp_path / "one.keras")
        loaded = load_model(tmp_path / "one.keras")
    assert type(loaded) is type(one)
    assert loaded.get_config() == one.get_config()
    for ours, theirs in zip(loaded.variables, one.variables, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="FeatureSpace needs it")
def test_a_feature_space(tmp_path):
    import tensorflow as tf

    rows = {"number": [1.0, 2.0, 3.0], "text": ["x", "y", "x"]}
    space = keras.utils.FeatureSpace(
        {"number": "float_normalized", "text": "string_categorical"}, output_mode="concat"
    )
    space.adapt(tf.data.Dataset.from_tensor_slices(rows))
    with tiedio.patch():
        space.save(tmp_path / "space.keras")
        loaded = load_model(tmp_path / "space.keras")
    row = {"number": 2.0, "text": "y"}
    assert np.array_equal(loaded(row), space(row))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it looks up with it")
@pytest.mark.skipif(
    keras.__version__.startswith(("3.10.", "3.12.")), reason="it cannot read its own, either"
)
@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_lookup_that_learns_from_the_file(tmp_path, name):
    """Until then, Keras cannot say what such a layer stores."""
    import tensorflow as tf

    words = keras.layers.TextVectorization(output_mode="tf_idf")
    words.adapt(tf.constant([["a b"], ["b c"]]))
    model = keras.Sequential([keras.Input((1,), dtype="string"), words, keras.layers.Dense(2)])
    with tiedio.patch():
        model.save(tmp_path / name)
        loaded = load_model(tmp_path / name)
    text = tf.constant([["a c"], ["b b"]])
    assert np.array_equal(loaded(text), model(text))


def test_keras_asks_once(model, tmp_path, monkeypatch):
    path, asked, answers = tmp_path / "m.h5", [], ["n", "y"]
    monkeypatch.setattr(builtins, "input", lambda text: asked.append(text) or answers.pop(0))
    path.write_bytes(b"before")
    with tiedio.patch():
        save_model(model, path, overwrite=False)
        assert path.read_bytes() == b"before" and len(asked) == 1
        save_model(model, path, overwrite=False)
        assert read_record(path) and len(asked) == 2


def calls_that_fail(model, folder):
    yield lambda: model.save(folder / "model.tf")
    yield lambda: model.save_weights(folder / "model.h5")
    yield lambda: load_model(folder / "nothing.keras")
    yield lambda: model.load_weights(folder / "nothing.keras.txt")


def test_messages_about_paths_are_those_of_keras(model, tmp_path):
    said = []
    for patched in (False, True):
        if patched:
            tiedio.patch()
        for call in calls_that_fail(model, tmp_path):
            with pytest.raises(ValueError) as error:
                call()
            said.append((type(error.value), str(error.value)))
    assert said[: len(said) // 2] == said[len(said) // 2 :]


# One thread only


def test_routed_is_for_one_thread(model, tmp_path):
    def save(name):
        model.save_weights(tmp_path / name)
        return read_record(tmp_path / name)

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        with patching.routed():
            assert save("mine.weights.h5")
            assert not threads.submit(save, "theirs.weights.h5").result(60)
            tiedio.unpatch()  # which is not about this one
            assert save("mine.weights.h5")
            with tiedio.patch():
                assert threads.submit(save, "theirs.weights.h5").result(60)
        assert is_stock()
        assert not save("stock.weights.h5")


def test_a_model_with_the_optimizer_of_a_larger_one_is_saved(tmp_path):
    first, second = keras.layers.Dense(4), keras.layers.Dense(4)
    whole = keras.Sequential([keras.Input((4,)), first, second])
    whole.compile("adam", "mse")
    whole.fit(np.ones((4, 4)), np.ones((4, 4)), verbose=0)
    part = keras.Sequential([keras.Input((4,)), first])
    part.compile(whole.optimizer, "mse")  # which was built for more than it has
    with tiedio.patch():
        with pytest.warns(errors.TiedioWarning, match="`optimizer` is not saved: it trained"):
            part.save(tmp_path / "part.keras")
        loaded = load_model(tmp_path / "part.keras", compile=False)
        assert np.array_equal(loaded.layers[0].kernel, first.kernel)


@pytest.mark.often(1)
@pytest.mark.parametrize("ending", ["keras", "h5", "weights.h5", "pickle"])
def test_a_tied_model_that_cannot_resume_is_saved_without_its_optimizer(tmp_path, ending):
    model, path = coder(tie=False), tmp_path / f"x.{ending}"
    model.fit(np.ones((4, 4)), np.ones((4, 4)), verbose=0)
    for attribute in ("_kernel", "bias"):  # as threads advise; Keras saves it
        scenarios.tie_by_hand(model.layers[1], model.layers[0], attribute)
    with tiedio.patch():
        loaded = coder(tie=False)
        with pytest.warns(errors.TiedioWarning, match="`optimizer` is not saved: it trained"):
            if ending == "pickle":
                loaded = copy.deepcopy(model)
            elif ending == "weights.h5":
                model.save_weights(path)
            else:
                model.save(path)
        if ending == "weights.h5":
            loaded.load_weights(path)
        elif ending != "pickle":
            loaded = load_model(path)
    assert loaded.layers[0].kernel is loaded.layers[1].kernel
    assert int(loaded.optimizer.iterations) == 0
    loaded.fit(np.ones((4, 4)), np.ones((4, 4)), verbose=0)


def test_a_scope_of_custom_objects_around_holds(tmp_path):
    class Mine(keras.layers.Dense):
        pass

    model = keras.Sequential([keras.Input((4,)), Mine(4)])
    for name in ("model.keras", "model.h5"):
        tiedio.save_tied(model, tmp_path / name)
        with keras.saving.custom_object_scope({"Mine": Mine}), tiedio.patch():
            assert type(load_model(tmp_path / name).layers[0]) is Mine


def test_what_a_hostile_file_says_it_holds_does_not_choose_a_loader_without_checks(tmp_path):
    file = io.BytesIO()
    with h5py.File(file, "w") as weights:
        for name in "01":
            weights.create_dataset(
                f"vars/{name}", (1 << 28,), "f4", chunks=(1 << 20,), compression="gzip"
            )
    config = keras.saving.serialize_keras_object(keras.optimizers.SGD())
    with zipfile.ZipFile(tmp_path / "optimizer.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": keras.__version__}))
        archive.writestr("model.weights.h5", file.getvalue())
    with tiedio.patch(), pytest.raises(errors.FileFormatError, match="1073741824 bytes declared"):
        load_model(tmp_path / "optimizer.keras")
