"""Checkpoints of Orbax: those with a record, and those without."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import scenarios

import tiedio
from tiedio.errors import (
    FileFormatError,
    LoadError,
    MissingFileError,
    SaveError,
    TiedioError,
    TiedioWarning,
)
from tiedio.formats import orbax_folder

pytestmark = [
    pytest.mark.orbax,
    # On torch dropout draws from the generator of the process, which other tests draw from, too.
    pytest.mark.filterwarnings("ignore:Training does not resume exactly"),
]

DATA = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


@pytest.fixture(autouse=True)
def anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@keras.saving.register_keras_serializable("orbax_tests")
class Twice(keras.Model):
    """A class whose parts are tied from outside, after it was built."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = keras.layers.Dense(4), keras.layers.Dense(4)
        self.dropout = keras.layers.GaussianDropout(0.5)

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)

    def call(self, inputs, training=False):
        return self.second(self.dropout(self.first(inputs), training=training))


@keras.saving.register_keras_serializable("orbax_tests")
class Holder(keras.layers.Layer):
    """A layer that makes another one, whose name no config has."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])

    def call(self, inputs):
        return self.inner(inputs)


@keras.saving.register_keras_serializable("orbax_tests")
class WithAsset(keras.layers.Dense):
    """A layer with a file of its own."""

    def __init__(self, units=4, **options):
        super().__init__(units, **options)
        self.words = ""

    def save_assets(self, folder):
        (Path(folder) / "words.txt").write_text(self.words)

    def load_assets(self, folder):
        self.words = (Path(folder) / "words.txt").read_text()


def functional():
    inputs = keras.Input((4,))
    hidden = keras.layers.GaussianDropout(0.5)(keras.layers.Dense(4)(inputs))
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.BatchNormalization()(hidden)))


def sequential():
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4),
            keras.layers.GaussianDropout(0.5),
            keras.layers.Dense(4),
        ]
    )


def subclassed():
    model = Twice()
    model.build((None, 4))
    return model


def compiled(make, tied=True):
    keras.utils.set_random_seed(1)
    model = make()
    if tied:
        first, second = dense(model)
        tiedio.tie(second, to=first)
    model.compile("adam", "mse")
    return model


def dense(model):
    return [one for one in model._flatten_layers() if isinstance(one, keras.layers.Dense)]


def fit(model, epochs=2, callbacks=()):
    model.fit(DATA, DATA, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks])


def save(model, folder="checkpoints", kind=tiedio.TiedOrbaxCheckpoint, epochs=1, **options):
    fit(model, epochs, [kind(os.path.abspath(folder), **options)])


def state_of(model):
    return [np.asarray(v).tobytes() for v in (*model.variables, *model.optimizer.variables)]


@contextlib.contextmanager
def by(writer):
    """Saves, and loads, by tiedio's own names or by those of Keras."""
    if writer == "tiedio":
        yield tiedio.TiedOrbaxCheckpoint, tiedio.load_tied
    else:
        with tiedio.patch():
            yield keras.callbacks.OrbaxCheckpoint, keras.saving.load_model


@pytest.mark.parametrize("writer", ["tiedio", "keras under the patch"])
@pytest.mark.parametrize("make", [functional, sequential, subclassed])
def test_training_goes_on_bit_for_bit(make, writer):
    model = compiled(make)
    with by(writer) as (kind, load):
        save(model, kind=kind, epochs=2)
        resumed = load(os.path.abspath("checkpoints"))
    first, second = dense(resumed)
    assert first.kernel is second.kernel and first.bias is second.bias
    assert state_of(resumed) == state_of(model)
    fit(model)
    fit(resumed)
    assert state_of(resumed) == state_of(model)


@pytest.mark.parametrize(
    "name",
    [
        "autoencoder_of_plain_layers",  # shown transposed
        "kernel_by_hand",
        "loss_scaling",  # whose optimizer Keras' own config does not have
        "rounded_when_stored",
        "one_dropout_in_two_models",
    ],
)
def test_scenarios_resume(name):
    model = scenarios.SCENARIOS[name]()
    scenarios.train(model)
    callback = tiedio.TiedOrbaxCheckpoint("checkpoints")
    callback.set_model(model)
    callback.on_epoch_end(0)
    callback.on_train_end()
    resumed = tiedio.load_tied("checkpoints")
    assert scenarios.ties_of(resumed) == scenarios.ties_of(model)
    scenarios.train(model)
    scenarios.train(resumed)
    for one, other in zip(scenarios.state_of(model), scenarios.state_of(resumed), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("make", [functional, sequential])
@pytest.mark.parametrize("patched", [False, True])
def test_weights_go_into_a_model_that_exists(make, patched):
    model = compiled(make)
    save(model)
    other = compiled(make, tied=False)
    if patched:
        with tiedio.patch():
            other.load_weights(os.path.abspath("checkpoints"))
    else:
        tiedio.load_tied_weights(other, "checkpoints")
    first, second = dense(other)
    assert first.kernel is second.kernel
    assert state_of(other) == state_of(model)


def test_weights_only():
    model = compiled(functional)
    save(model, save_weights_only=True)
    with pytest.raises(FileFormatError, match="holds the weights of a model only"):
        tiedio.load_tied("checkpoints")
    other = compiled(functional, tied=False)
    tiedio.load_tied_weights(other, "checkpoints")
    assert dense(other)[0].kernel is dense(other)[1].kernel
    assert [w.tobytes() for w in other.get_weights()] == [w.tobytes() for w in model.get_weights()]


def test_assets_are_kept():
    model = compiled(lambda: keras.Sequential([keras.Input((4,)), WithAsset()]), tied=False)
    model.layers[0].words = "an asset"
    save(model)
    assert tiedio.load_tied("checkpoints").layers[0].words == "an asset"


class TestWithoutRecord:
    """What Keras' own callback wrote: right, or an error."""

    @pytest.mark.parametrize("make", [functional, sequential])
    def test_a_model_without_ties_resumes(self, make):
        model = compiled(make, tied=False)
        save(model, kind=keras.callbacks.OrbaxCheckpoint)
        resumed = tiedio.load_tied("checkpoints")
        assert state_of(resumed) == state_of(model)
        fit(model)
        fit(resumed)
        assert state_of(resumed) == state_of(model)

    def test_a_sequential_model_in_another(self):
        def make():
            return keras.Sequential([keras.Input((4,)), sequential_of_two(), keras.layers.Dense(4)])

        def sequential_of_two():
            return keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(4)])

        model = make()
        model.compile("adam", "mse")
        save(model, kind=keras.callbacks.OrbaxCheckpoint)
        assert state_of(tiedio.load_tied("checkpoints")) == state_of(model)

    @pytest.mark.parametrize("make", [functional, sequential, subclassed])
    def test_ties_that_nothing_tells_of_are_an_error(self, make):
        save(compiled(make), kind=keras.callbacks.OrbaxCheckpoint)
        with pytest.raises(LoadError, match=r"no leaf for .*dense\w*/bias`, .*dense\w*/kernel`"):
            tiedio.load_tied("checkpoints")
        untied = compiled(make, tied=False)
        before = state_of(untied)
        with pytest.raises(LoadError, match="no leaf for"):
            tiedio.load_tied_weights(untied, "checkpoints")
        assert state_of(untied) == before

    def test_ties_that_the_model_has_are_kept(self):
        model = compiled(functional)
        save(model, kind=keras.callbacks.OrbaxCheckpoint)
        other = keras.models.clone_model(model)
        tiedio.tie(dense(other)[1], to=dense(other)[0])
        other.compile("adam", "mse")
        other.optimizer.build(other.trainable_variables)
        tiedio.load_tied_weights(other, "checkpoints")
        assert [w.tobytes() for w in other.get_weights()] == [
            w.tobytes() for w in model.get_weights()
        ]

    def test_seeds_that_cannot_be_told_from_each_other(self):
        def make():
            dropouts = [keras.layers.GaussianDropout(0.5) for _ in range(2)]
            return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), *dropouts])

        model = compiled(make, tied=False)
        save(model, kind=keras.callbacks.OrbaxCheckpoint)
        with pytest.raises(
            LoadError, match=r"the seeds of `gaussian_dropout\w*/seed_generator`, `gaussian_dropout"
        ):
            tiedio.load_tied("checkpoints")
        with pytest.warns(TiedioWarning, match="the seeds of"):
            loaded = tiedio.load_tied("checkpoints", strict=False)
        assert [w.tobytes() for w in loaded.get_weights()] == [
            w.tobytes() for w in model.get_weights()
        ]

    def test_seeds_whose_paths_are_those_of_others(self):
        keras.utils.clear_session()  # numbers are the same where it is loaded
        inputs = keras.Input((4,))
        second, first = (keras.layers.GaussianDropout(0.5, name=name) for name in "ba")
        model = keras.Model(inputs, second(keras.layers.Dense(4)(first(inputs))))
        model.compile("adam", "mse")
        save(model, kind=keras.callbacks.OrbaxCheckpoint)
        keras.utils.clear_session()
        with pytest.raises(LoadError, match=r"the seeds of `a/seed_generator`, `b/seed_generator`"):
            tiedio.load_tied("checkpoints")

    def test_names_that_keras_numbered_are_an_error(self):
        keras.utils.clear_session()  # numbers are the same where it is loaded
        inputs = keras.Input((4,))
        second, first = Holder(name="b"), Holder(name="a")
        model = keras.Model(inputs, second(first(inputs)))
        model.compile("adam", "mse")
        save(model, kind=keras.callbacks.OrbaxCheckpoint)
        save(model, "weights", keras.callbacks.OrbaxCheckpoint, save_weights_only=True)
        keras.utils.clear_session()
        with pytest.raises(LoadError, match=r"Keras numbered .*dense\w*/kernel`"):
            tiedio.load_tied("checkpoints")
        keras.utils.clear_session()
        clone = keras.models.clone_model(model)
        with pytest.raises(LoadError, match=r"Keras numbered .*dense\w*/kernel`"):
            tiedio.load_tied_weights(clone, "weights")

    @pytest.mark.parametrize("other", ["frozen", "sgd", "adafactor"])
    def test_weights_go_to_another_optimizer(self, other):
        model = compiled(functional, tied=False)
        save(model, kind=keras.callbacks.OrbaxCheckpoint)
        another = keras.models.clone_model(model)
        if other == "frozen":
            dense(another)[0].trainable = False
        another.compile("adam" if other == "frozen" else other, "mse")
        with pytest.warns(TiedioWarning, match="another one, or it trains other variables") as told:
            tiedio.load_tied_weights(another, "checkpoints")
        assert len(told) == 1 and "tied" not in str(told[0].message)
        assert [w.tobytes() for w in another.get_weights()] == [
            w.tobytes() for w in model.get_weights()
        ]
        fit(another)  # its slots are new
        tiedio.load_tied_weights(another, "checkpoints", objects_to_skip=[another.optimizer])

    def test_slots_go_to_an_optimizer_that_is_not_built(self):
        model = compiled(functional, tied=False)
        save(model, kind=keras.callbacks.OrbaxCheckpoint)
        another = tiedio.load_tied("checkpoints", compile=False)
        tiedio.load_tied_weights(another, "checkpoints")  # no optimizer: nothing to tell
        another.compile("adam", "mse")
        tiedio.load_tied_weights(another, "checkpoints")
        assert state_of(another) == state_of(model)

    def test_what_is_not_compiled_needs_no_loss(self):
        def loss(expected, given):
            return (expected - given) ** 2

        model = compiled(functional, tied=False)
        model.compile("adam", loss)
        save(model, kind=keras.callbacks.OrbaxCheckpoint)
        loaded = tiedio.load_tied("checkpoints", compile=False)
        assert not loaded.compiled
        assert [w.tobytes() for w in loaded.get_weights()] == [
            w.tobytes() for w in model.get_weights()
        ]

    def test_paths_of_the_model_that_collide(self):
        model = compiled(functional, tied=False)
        save(model, kind=keras.callbacks.OrbaxCheckpoint)
        inputs = keras.Input((4,))
        inner = [keras.Sequential([keras.layers.Dense(4, name="d")], name=n) for n in "ab"]
        model = keras.Model(inputs, inner[1](inner[0](inputs)))
        for variable in model.variables:
            variable._path = "d/kernel"
        with pytest.raises(
            LoadError, match=r"Cannot load [^R]*Received: `d/kernel`.* more than once"
        ):
            tiedio.load_tied_weights(model, "checkpoints")

    def test_commands_say_that_a_model_is_needed(self):
        save(compiled(functional), kind=keras.callbacks.OrbaxCheckpoint)
        with pytest.raises(FileFormatError, match=r"Load it with `tiedio\.load_tied`"):
            tiedio.files.inspect("checkpoints")


def test_stock_keras_opens_it():
    model = compiled(functional, tied=False)
    save(model)
    loaded = keras.saving.load_model(os.path.abspath("checkpoints"))
    assert [w.tobytes() for w in loaded.get_weights()] == [w.tobytes() for w in model.get_weights()]


def test_every_command_reads_it():
    model = compiled(functional)
    save(model, epochs=2, max_to_keep=2)
    assert len(tiedio.files.inspect("checkpoints").tie_groups) == 2
    assert not tiedio.files.verify("checkpoints").problems
    assert len(tiedio.files.plan("checkpoints").proposals) == 2
    assert tiedio.files.diff("checkpoints/0", "checkpoints/1").differences
    tiedio.files.migrate("checkpoints", "model.keras")
    tiedio.files.export("checkpoints", "model.safetensors")
    assert not tiedio.files.diff("checkpoints", "model.keras").differences
    migrated = tiedio.load_tied("model.keras")
    assert dense(migrated)[0].kernel is dense(migrated)[1].kernel
    assert state_of(migrated) == state_of(model)


def test_steps():
    model = compiled(functional)
    save(model, epochs=3, max_to_keep=None)
    iterations = [
        int(tiedio.load_tied("checkpoints", step=step).optimizer.iterations)
        for step in (0, 1, None)
    ]
    assert iterations == [1, 2, 3]
    with pytest.raises(MissingFileError, match="checkpoints/7"):
        tiedio.load_tied("checkpoints", step=7)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("max_to_keep", [1, None])
def test_a_step_that_orbax_declines_is_an_error(background, max_to_keep):
    saving = tiedio.TiedOrbaxCheckpoint(
        "checkpoints", max_to_keep=max_to_keep, save_on_background=background
    )
    fit(compiled(functional), 2, [saving])
    for again in saving, tiedio.TiedOrbaxCheckpoint("checkpoints"):
        with pytest.raises(SaveError, match="has not saved step 0"):
            fit(compiled(functional), 1, [again])
    with tiedio.patch(), pytest.raises(SaveError, match="has not saved step 0"):
        save(compiled(functional, tied=False), kind=keras.callbacks.OrbaxCheckpoint)


def test_what_was_not_finished_is_left_out():
    save(compiled(functional), epochs=2, max_to_keep=2)
    Path("checkpoints/1").rename("checkpoints/1.orbax-checkpoint-tmp-0")
    Path("checkpoints/1.orbax-checkpoint-tmp-0/_CHECKPOINT_METADATA").unlink()
    Path("checkpoints/5").mkdir()
    assert int(tiedio.load_tied("checkpoints").optimizer.iterations) == 1
    Path("checkpoints/0/_CHECKPOINT_METADATA").unlink()  # a run that removes it begins anywhere
    for place in "checkpoints", "checkpoints/0":
        with pytest.raises(MissingFileError, match="has no finished checkpoint"):
            tiedio.load_tied(place)


KILLED = """
import os, signal, sys
import numpy as np
import test_orbax
from test_orbax import compiled, fit, functional
import keras, tiedio

class Kill(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)

saving = tiedio.TiedOrbaxCheckpoint("checkpoints", max_to_keep=None)
model = compiled(functional)
fit(model, 2, [saving])
saving = tiedio.TiedOrbaxCheckpoint("checkpoints", max_to_keep=None)
data = test_orbax.DATA
options = dict(initial_epoch=2, epochs=9, shuffle=False, verbose=0)
model.fit(data, data, callbacks=[saving, Kill()], **options)
"""


def test_who_is_killed_leaves_a_whole_step(tmp_path):
    folders = [Path(__file__).parent, *map(Path, sys.path)]
    died = subprocess.run(
        [sys.executable, "-c", KILLED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
    )
    assert died.returncode == -signal.SIGKILL
    resumed = tiedio.load_tied("checkpoints")
    done = int(resumed.optimizer.iterations)
    assert done in (2, 3)
    fit(resumed, 5 - done)
    model = compiled(functional)
    fit(model, 5)
    assert state_of(resumed) == state_of(model)


def test_damage_is_told():
    save(compiled(functional))
    [*leaves] = Path("checkpoints/0/pytree").rglob("d/*")
    for file in leaves:
        file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(FileFormatError, match="damaged"):
        tiedio.load_tied("checkpoints")


def test_leaves_that_are_missing_or_too_many_are_told():
    save(compiled(functional))
    text = Path("checkpoints/0/tiedio/_strings.json")
    held = json.loads(text.read_text())
    placing = json.loads(held["placing"])
    gone, _ = placing["leaves"].pop("layers/batch_normalization/vars/0")
    text.write_text(json.dumps({**held, "placing": json.dumps(placing)}))
    with pytest.raises(FileFormatError, match=gone):
        tiedio.load_tied("checkpoints")


def test_trees_that_declare_far_more_than_they_store_are_refused(monkeypatch):
    save(compiled(functional))
    monkeypatch.setattr(orbax_folder, "_ROOM", 0)
    tiedio.load_tied("checkpoints")
    monkeypatch.setattr(orbax_folder, "_MOST_COMPRESSED", 0.001)
    with pytest.raises(FileFormatError, match="bytes declared"):
        tiedio.load_tied("checkpoints")


def test_paths_that_collide_are_an_error():
    model = scenarios.SCENARIOS["adafactor"]()
    callback = tiedio.TiedOrbaxCheckpoint("checkpoints")
    callback.set_model(model)
    scenarios.train(model)
    with pytest.raises(SaveError, match="one path for several"):
        callback.on_epoch_end(0)
    callback.on_train_end()
    assert not list(Path("checkpoints").iterdir())


def test_what_cannot_be_recorded_goes_to_keras_if_nothing_is_tied():
    model = compiled(functional, tied=False)
    model.compile("adafactor", "mse")
    with tiedio.patch(), pytest.raises(ValueError) as told:
        save(model, kind=keras.callbacks.OrbaxCheckpoint)
    assert not isinstance(told.value, TiedioError)  # as without the patch


def test_what_fails_in_the_background_is_told(monkeypatch):
    saving = tiedio.TiedOrbaxCheckpoint("checkpoints")

    class Failing:
        def result(self):
            raise OSError("no room")

    monkeypatch.setattr(
        type(saving.checkpointer), "save_checkpointables_async", lambda *a, **o: Failing()
    )
    with pytest.raises(OSError, match="no room"):
        fit(compiled(functional), 1, [saving])


class TestWhileARunSaves:
    """A run removes a step once the next one is finished."""

    @staticmethod
    def removing(monkeypatch, times):
        """Lets steps be removed while they are read, as a run with `max_to_keep=1` would."""
        orbax = importlib.import_module("orbax.checkpoint").v1
        read, steps = orbax.load_checkpointables, iter(range(times))

        def load(folder, *args, **kwargs):
            if (step := next(steps, None)) is not None:
                Path(f"checkpoints/{step}").rename(f"checkpoints/{step + 1}")
            return read(folder, *args, **kwargs)

        monkeypatch.setattr(orbax, "load_checkpointables", load)

    def test_the_next_step_is_loaded(self, monkeypatch):
        model = compiled(functional)
        save(model)
        self.removing(monkeypatch, 2)
        assert state_of(tiedio.load_tied("checkpoints")) == state_of(model)

    @pytest.mark.parametrize(("step", "times"), [(0, 1), (None, 99)])
    def test_it_is_told(self, monkeypatch, step, times):
        model = compiled(functional)
        save(model)
        before = state_of(model)
        self.removing(monkeypatch, times)
        place = "checkpoints" if step is None else f"checkpoints/{step}"
        with pytest.raises(MissingFileError, match="was removed while it was read"):
            tiedio.load_tied_weights(model, place)
        assert state_of(model) == before


def test_an_optimizer_that_is_not_saved_is_told():
    model = compiled(sequential, tied=False)
    fit(model, 1)
    model.pop()
    saving = tiedio.TiedOrbaxCheckpoint("checkpoints")
    saving.set_model(model)
    with pytest.warns(TiedioWarning, match="The state of `optimizer` is not saved"):
        saving.on_epoch_end(0)
    saving.on_train_end()
