"""`TiedModelCheckpoint` and `TiedBackupAndRestore`: those of Keras, with ties, through kills."""

import functools
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import backed_up
import keras
import numpy as np
import pytest
import scenarios
from backed_up import EPOCHS, STEPS, build, fit, is_tied
from checkout import start

import tiedio
from tiedio.errors import FileFormatError, LoadError

STEP_BY_STEP, BY_TWO_STEPS = {}, {"steps_per_execution": 2}
EAGERLY = {"run_eagerly": True}  # quicker for a few steps

not_on_torch = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="torch has one step per execution"
)
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kills")


def bit_equal(ours, theirs):
    return [a.tobytes() for a in ours] == [b.tobytes() for b in theirs]


@functools.cache
def uninterrupted(epochs=EPOCHS, **options):
    """The state after so many epochs that nothing interrupted."""
    model = build(**options)
    fit(model, epochs=epochs)
    return scenarios.state_of(model)


class StopAt(keras.callbacks.Callback):
    """Interrupts a run, as an error would, or lets `fit` return."""

    def __init__(self, epoch, batch, quietly=False):
        super().__init__()
        self.moment, self.quietly = (epoch, batch), quietly

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) >= self.moment:  # Keras 3.10 names the first of several steps
            if not self.quietly:
                raise KeyboardInterrupt
            self.model.stop_training = True


def interrupted(folder, epoch, batch, compiled=STEP_BY_STEP, **options):
    """Trains with a backup until something goes wrong."""
    backup = tiedio.TiedBackupAndRestore(str(folder / "backup"), **options)
    with pytest.raises(KeyboardInterrupt):
        fit(build(**compiled), [backup, StopAt(epoch, batch)])


@pytest.fixture(scope="module")
def one_interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    interrupted(folder, 2, 3, double_checkpoint=True)
    return folder / "backup"


@pytest.fixture
def backup(one_interrupted, tmp_path):
    """Two backups of a run that was interrupted in the middle of its third epoch."""
    return Path(shutil.copytree(one_interrupted, tmp_path / "backup"))


def resumed(folder, tie=False, compiled=STEP_BY_STEP, epochs_before=0, **options):
    """Goes on with a backup, by default of a model that is built without its ties."""
    model = build(tie, **compiled)
    fit(model, epochs=epochs_before)
    history = fit(model, [tiedio.TiedBackupAndRestore(str(folder / "backup"), **options)])
    assert is_tied(model)
    return model, history.epoch


def from_the_middle(epoch, batch):
    """What Keras does with a backup of the middle: the epoch begins again."""
    model = build()
    fit(model, [StopAt(epoch, batch, quietly=True)])
    fit(model, initial_epoch=epoch)
    return model


# Resuming in one process


@pytest.mark.often(1)
@pytest.mark.parametrize(("tie", "epochs_before"), [(False, 0), (False, 1), (True, 0)])
def test_an_interrupted_run_goes_on_as_if_it_was_not(tmp_path, backup, tie, epochs_before):
    """Also with a model that was trained before, untied: its compiled functions, which `fit` has
    at hand when the backup is loaded, know variables that are gone then.
    """
    model, epochs = resumed(tmp_path, tie, epochs_before=epochs_before)
    assert epochs == [2, 3]
    assert bit_equal(scenarios.state_of(model), uninterrupted())


@pytest.mark.seldom
@pytest.mark.parametrize("save_freq", [4, 7])
def test_by_batches_the_epoch_begins_again_with_the_weights_of_its_middle(tmp_path, save_freq):
    """As Keras does it: its backup says which batch it was, and Keras does not ask."""
    interrupted(tmp_path, 2, 4, save_freq=save_freq)
    saved = (2 * STEPS + 5) // save_freq * save_freq - 1  # batches, the last one that was saved
    epoch, batch = divmod(saved, STEPS)
    said = json.loads((tmp_path / "backup" / "training_metadata.json").read_text())
    assert said == {"epoch": epoch, "batch": batch}
    model, epochs = resumed(tmp_path, save_freq=save_freq)
    assert epochs == [*range(epoch, EPOCHS)]
    assert bit_equal(scenarios.state_of(model), scenarios.state_of(from_the_middle(epoch, batch)))


@not_on_torch
@pytest.mark.slow
def test_several_steps_per_execution(tmp_path):
    interrupted(tmp_path, 2, 3, compiled=BY_TWO_STEPS)
    model, epochs = resumed(tmp_path, compiled=BY_TWO_STEPS)
    assert epochs == [2, 3]
    assert bit_equal(scenarios.state_of(model), uninterrupted(**BY_TWO_STEPS))


# Kills


class Training:
    """Runs `backed_up` in processes of their own, one after the other, in one folder."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, **options):
        """Returns the exit code."""
        return start(backed_up, self.folder, json.dumps(options), cwd=self.folder).wait()

    def finish(self, **options):
        """Lets a run come to its end; returns its epochs, and what the model holds."""
        assert self(**options) == 0
        epochs, tied = json.loads((self.folder / "facts.json").read_text())
        assert tied
        with np.load(self.folder / "state.npz") as saved:
            return epochs, list(saved.values())


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path)


KILLS = {
    "in the middle of an epoch": ({"step": (2, 3)}, 2),
    "in the middle of a save": ({"save": (3, "writing")}, 2),
    "in the middle of the first save": ({"save": (1, "writing")}, 0),
}


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("tie", "kill"),
    [
        (False, "in the middle of an epoch"),
        (True, "in the middle of an epoch"),
        (False, "in the middle of a save"),
        (True, "in the middle of the first save"),
    ],
)
def test_a_killed_run_goes_on_as_if_it_was_not(training, tie, kill):
    kill, epoch = KILLS[kill]
    assert training(**kill, backup={}) == -9
    epochs, state = training.finish(tie=tie, backup={})
    assert epochs == [*range(epoch, EPOCHS)]
    assert bit_equal(state, uninterrupted())
    assert not (training.folder / "backup").exists()


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "epoch", "batch"), [({"step": (2, 4)}, 2, 3), ({"save": (4, "writing")}, 1, 5)]
)
def test_a_run_that_is_backed_up_by_batches_is_killed(training, kill, epoch, batch):
    assert training(**kill, backup={"save_freq": 4}) == -9
    epochs, state = training.finish(tie=False, backup={"save_freq": 4})
    assert epochs == [*range(epoch, EPOCHS)]
    assert bit_equal(state, scenarios.state_of(from_the_middle(epoch, batch)))


@posix
@pytest.mark.slow
def test_a_kill_before_keras_wrote_the_epoch(training):
    """The file of the weights has it."""
    options = {"backup": {}}
    assert training(metadata=3, **options) == -9
    half = (training.folder / "backup" / "training_metadata.json").read_text()
    with pytest.raises(json.JSONDecodeError):
        json.loads(half)
    epochs, state = training.finish(tie=False, **options)
    assert epochs == [3]
    assert bit_equal(state, uninterrupted())


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "step", "epochs"),
    [("model.keras", "writing", 1), ("model.keras", "renamed", 2), ("model.h5", "writing", 1)],
)
def test_a_kill_leaves_the_old_checkpoint_or_the_new_one(training, checkpoint, step, epochs):
    assert training(save=(2, step), checkpoint=checkpoint) == -9
    model = tiedio.load_tied(training.folder / checkpoint)
    assert is_tied(model)
    assert bit_equal(scenarios.state_of(model), uninterrupted(epochs))


OTHERS = {"backup": {}, "others": 0, "epochs": 9}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A run with other callbacks that nothing killed: stopped after the sixth epoch."""
    training = Training(tmp_path_factory.mktemp("judged"))
    epochs, state = training.finish(**OTHERS)
    assert epochs == [*range(6)]
    return state, left_by(training.folder)


def left_by(folder):
    with zipfile.ZipFile(folder / "best.keras") as archive:
        weights = archive.read("model.weights.h5")
    return (folder / "log.csv").read_text(), weights


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "place", "epochs"),
    [
        # With the best weights two epochs before.
        ({"step": (3, 3)}, 0, [3, 4, 5]),
        ({"step": (5, 3)}, 2, [5]),  # in the last one
        # The log has the epoch, the backup does not; best.keras was the second save.
        ({"save": (6, "writing")}, 5, [3, 4, 5]),
        ({"save": (6, "renamed")}, 0, [4, 5]),
        ({"end": True}, 3, []),  # when it had been stopped
    ],
)
def test_a_killed_run_goes_on_with_its_callbacks(training, judged, kill, place, epochs):
    options = {**OTHERS, "others": place}
    assert training(**options, **kill) == -9
    trained, state = training.finish(**options, tie=False)
    assert trained == epochs
    assert bit_equal(state, judged[0])
    assert left_by(training.folder) == judged[1]
    assert is_tied(tiedio.load_tied(training.folder / "best.keras"))


# Damaged backups


def damage(filepath, how):
    content = bytearray(filepath.read_bytes())
    if how == "a flipped value":
        content[content.index(tied_kernel_in(filepath))] ^= 1
    if how == "a changed state":
        content[content.index(b'"epoch": 2') + len(b'"epoch": ')] ^= 1
    filepath.write_bytes(content[: len(content) // 2] if how == "cut short" else content)


def tied_kernel_in(filepath):
    model = build()
    tiedio.load_tied_weights(model, filepath)
    return keras.ops.convert_to_numpy(model.layers[0].kernel).tobytes()


@pytest.mark.often(2)
@pytest.mark.parametrize("how", ["a flipped value", "a changed state", "cut short"])
def test_the_backup_before_is_taken_if_the_newest_is_damaged(tmp_path, backup, how):
    damage(newest := backup / "latest.weights.h5", how)
    with pytest.warns(tiedio.TiedioWarning) as warned:
        model, epochs = resumed(tmp_path, double_checkpoint=True)
    assert epochs == [1, 2, 3]
    assert bit_equal(scenarios.state_of(model), uninterrupted())
    (warning,) = [one for one in warned if one.category is tiedio.TiedioWarning]
    assert warning.filename == backed_up.__file__  # which calls `fit`
    what, _, taken = str(warning.message).splitlines()
    assert what.startswith(f"`{newest}` is damaged")
    assert taken == "The backup before it is taken: what was trained since then is trained again."


def test_the_backup_of_another_model_is_kept(tmp_path):
    def train(use_bias):
        layers = [keras.layers.Dense(4), keras.layers.Dense(4, use_bias=use_bias)]
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.compile("adam", "mse", run_eagerly=EAGERLY["run_eagerly"])
        backup = tiedio.TiedBackupAndRestore(
            str(tmp_path / "backup"), double_checkpoint=True, delete_checkpoint=False
        )
        model.fit(np.ones((4, 4)), np.ones((4, 4)), epochs=3, verbose=0, callbacks=[backup])

    train(use_bias=True)
    before = {path.name: path.read_bytes() for path in (tmp_path / "backup").iterdir()}
    with pytest.raises(LoadError, match=r"when saved\.$"):  # `fit` has no option to name
        train(use_bias=False)
    assert {path.name: path.read_bytes() for path in (tmp_path / "backup").iterdir()} == before
    assert len(before) == 4


def test_a_damaged_backup_with_none_before_it(tmp_path, backup):
    for before in backup.glob("*.bkp"):
        before.unlink()
    damage(backup / "training_metadata.json", "cut short")  # the file of the weights has it, too
    assert resumed(tmp_path, delete_checkpoint=False)[1] == [2, 3]
    damage(backup / "latest.weights.h5", "cut short")
    with pytest.raises(FileFormatError, match="damaged"):
        resumed(tmp_path)


def test_two_damaged_backups(tmp_path, backup):
    newest, before = backup / "latest.weights.h5", backup / "latest.weights.h5.bkp"
    for path in (newest, before):
        damage(path, "cut short")
    with pytest.raises(FileFormatError) as error:
        resumed(tmp_path, double_checkpoint=True)
    assert str(error.value).splitlines() == [
        f"`{newest}` is damaged. So is the backup before it, `{before}`.",
        "Expected: a complete file of Keras or tiedio. "
        "Received: an HDF5 file without its end; it was truncated.",
        f"Restore one of them from a copy, or remove the folder `{backup}` to begin anew.",
    ]


def test_a_damaged_backup_of_keras(tmp_path):
    folder = tmp_path / "backup"
    folder.mkdir()
    build().save_weights(folder / "latest.weights.h5")
    metadata = folder / "training_metadata.json"
    metadata.write_text('{"epoch"')
    with pytest.raises(FileFormatError) as error:
        resumed(tmp_path, tie=True)
    assert str(error.value).splitlines() == [
        f"`{metadata}` is damaged: it was not written to its end.",
        'Expected: JSON that names the "epoch" to go on with. '
        "Received: Expecting ':' delimiter: line 1 column 9 (char 8).",
        f"Restore it from a copy, or remove the folder `{folder}` to begin anew.",
    ]
    metadata.write_text('{"epoch": 2}')
    assert resumed(tmp_path, tie=True)[1] == [2, 3]


# As those of Keras


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def run_with(kind, folder, path, options, capsys, compiled=EAGERLY):
    """Trains with a callback; returns the files that it leaves, and what it said."""
    folder = folder / kind.__name__
    folder.mkdir()
    model = build(**compiled)
    capsys.readouterr()
    fit(model, [kind(str(folder / path), **options)], epochs=2, validation_split=0.5)
    said = capsys.readouterr().out.replace(str(folder), "folder")
    return names_in(folder), said


def tied_files_in(folder):
    """Loads whatever is there; returns how many files there are."""
    files = [path for path in folder.rglob("*") if re.search(r"\.(keras|h5)(\.bkp)?$", path.name)]
    for path in files:
        if ".weights.h5" in path.name:
            model = build(tie=False)
            tiedio.load_tied_weights(model, path)
        else:
            model = tiedio.load_tied(path)
        assert is_tied(model)
    return len(files)


CHECKPOINTS = {
    "pattern of batches": ("{epoch}-{batch}.keras", {"save_freq": 5, "verbose": 1}),
    "default": ("model.keras", {}),
    "made folders": ("made/by/it/model.keras", {"verbose": 1}),
    "pattern": ("{epoch:02d}-{loss:.2f}.keras", {"verbose": 1}),
    "pattern of validation": ("{epoch}-{val_mae:.3f}.keras", {}),
    "best": ("{epoch}.keras", {"save_best_only": True, "verbose": 1}),
    "best of metric": (
        "{epoch}.keras",
        {"save_best_only": True, "monitor": "mae", "mode": "min", "verbose": 1},
    ),
    "worst": (
        "{epoch}.keras",
        {"save_best_only": True, "monitor": "loss", "mode": "max", "verbose": 1},
    ),
    "better than": (
        "{epoch}.keras",
        {"save_best_only": True, "monitor": "loss", "initial_value_threshold": 1e-9, "verbose": 1},
    ),
    "weights": ("{epoch}.weights.h5", {"save_weights_only": True, "verbose": 1}),
    "weights by batches": ("model.weights.h5", {"save_weights_only": True, "save_freq": 3}),
    "hdf5": ("model.h5", {"verbose": 1}),
}


@pytest.mark.often(1)
@pytest.mark.parametrize(
    ("name", "compiled"),
    [(name, EAGERLY) for name in CHECKPOINTS]
    + [
        pytest.param(name, BY_TWO_STEPS, marks=not_on_torch)
        for name in ("pattern of batches", "weights by batches")
    ],
)
def test_checkpoints_are_those_of_keras(tmp_path, capsys, name, compiled):
    filepath, options = CHECKPOINTS[name]
    theirs, ours = (
        run_with(kind, tmp_path, filepath, options, capsys, compiled)
        for kind in (keras.callbacks.ModelCheckpoint, tiedio.TiedModelCheckpoint)
    )
    assert ours == theirs
    assert bool(options.get("verbose")) == bool(ours[1])
    count = tied_files_in(tmp_path / "TiedModelCheckpoint")
    assert count == 0 if name == "better than" else count > 0


BACKUPS = {
    "default": {},
    "kept": {"delete_checkpoint": False},
    "two": {"delete_checkpoint": False, "double_checkpoint": True},
    "by batches": {"delete_checkpoint": False, "save_freq": 5},
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "two" else [pytest.mark.slow]) for name in BACKUPS],
)
def test_backups_are_those_of_keras(tmp_path, capsys, name):
    theirs, ours = (
        run_with(kind, tmp_path, "a/b", BACKUPS[name], capsys)
        for kind in (keras.callbacks.BackupAndRestore, tiedio.TiedBackupAndRestore)
    )
    assert ours == theirs
    count = tied_files_in(tmp_path / "TiedBackupAndRestore")
    assert count == (0 if name == "default" else 2 if name == "two" else 1)
    said = [
        (tmp_path / kind / "a/b/training_metadata.json").read_text()
        for kind in ("BackupAndRestore", "TiedBackupAndRestore")
        if name != "default"
    ]
    assert len(set(said)) <= 1


@pytest.mark.often(2)
@pytest.mark.parametrize(
    ("filepath", "options"),
    [
        ("model.keras", {"save_freq": "often"}),
        ("model.keras", {"save_weights_only": True}),
        ("model.txt", {}),
        ("{nothing}.keras", {}),
        ("folder.keras", {}),
        ("folder.weights.h5", {"save_weights_only": True}),
    ],
)
def test_errors_are_those_of_keras(tmp_path, filepath, options):
    raised = []
    for kind in (keras.callbacks.ModelCheckpoint, tiedio.TiedModelCheckpoint):
        if filepath.startswith("folder"):
            (tmp_path / filepath).mkdir(exist_ok=True)
        with pytest.raises((ValueError, KeyError, OSError)) as error:
            fit(build(**EAGERLY), [kind(tmp_path / filepath, **options)], epochs=1)
        raised.append((error.type, str(error.value)))
    theirs, ours = raised
    assert ours == theirs


def test_calls_outside_of_the_callback_are_those_of_keras(tmp_path):
    model = build(**EAGERLY)
    fit(model, [tiedio.TiedModelCheckpoint(tmp_path / "tied.keras")], epochs=1)
    model.save(tmp_path / "stock.keras")
    assert is_tied(tiedio.load_tied(tmp_path / "tied.keras"))
    assert not is_tied(keras.saving.load_model(tmp_path / "stock.keras"))
    stock, tied = ((tmp_path / name).read_bytes() for name in ("stock.keras", "tied.keras"))
    assert b"tie_groups" in tied and b"tie_groups" not in stock


# Averages of weights


def averaging():
    return keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5)


def averages_of(model):
    return scenarios.arrays_of(model.optimizer._model_variables_moving_average)


def trained_of(model):
    return scenarios.arrays_of(model.trainable_variables)


def evaluate(model):
    """What a model is worth with the averages in the place of its weights."""
    swap = keras.callbacks.SwapEMAWeights()
    return model.evaluate(*backed_up.data(), verbose=0, callbacks=[swap])


def close(ours, theirs):
    """On TensorFlow, Keras swaps by adding and subtracting."""
    return all(np.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def test_averages_resume_bit_for_bit(tmp_path):
    swap = keras.callbacks.SwapEMAWeights()
    checkpoint = tiedio.TiedModelCheckpoint(tmp_path / "{epoch}.keras")
    model = build(optimizer=averaging())
    expected = fit(model, [swap, checkpoint], validation_split=0.5).history["val_loss"]
    resumed = tiedio.load_tied(tmp_path / "2.keras")
    history = fit(resumed, [swap], validation_split=0.5, initial_epoch=2).history["val_loss"]
    assert is_tied(resumed)
    assert history == expected[2:]
    assert bit_equal(scenarios.state_of(resumed), scenarios.state_of(model))


def test_averages_are_saved_in_the_place_of_the_weights(tmp_path):
    """With `swap_on_epoch`, those after it see the averages: swapped twice, a tied variable
    would have its trained value.
    """
    callbacks = [
        tiedio.TiedModelCheckpoint(tmp_path / "trained-{epoch}.keras"),
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        tiedio.TiedModelCheckpoint(tmp_path / "swapped-{epoch}.keras"),
    ]
    fit(build(optimizer=averaging()), callbacks, epochs=3)
    usual, swapped = (
        tiedio.load_tied(tmp_path / f"{kind}-2.keras") for kind in ("trained", "swapped")
    )
    assert is_tied(swapped)
    assert not close(trained_of(usual)[:1], averages_of(usual)[:1])  # the tied kernel
    assert close(trained_of(swapped), averages_of(usual))
    assert close(averages_of(swapped), trained_of(usual))
    np.testing.assert_allclose(
        swapped.evaluate(*backed_up.data(), verbose=0), evaluate(usual), rtol=1e-5
    )
    swap_back = keras.callbacks.SwapEMAWeights()
    swap_back.set_model(swapped)
    swap_back.on_test_begin()
    assert close(trained_of(swapped), trained_of(usual))
    assert close(averages_of(swapped), averages_of(usual))


def test_stock_keras_loses_the_averages_of_tied_variables(tmp_path):
    model = build(optimizer=averaging(), **EAGERLY)
    fit(model, epochs=1)
    model.save(tmp_path / "stock.keras")
    tiedio.save_tied(model, tmp_path / "tied.keras")
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        stock = keras.saving.load_model(tmp_path / "stock.keras")
    tied = tiedio.load_tied(tmp_path / "tied.keras")
    assert not is_tied(stock) and is_tied(tied)
    assert len(averages_of(stock)) == len(averages_of(model)) + 2
    assert not any(average.any() for average in averages_of(stock))
    assert bit_equal(averages_of(tied), averages_of(model))
    ours, theirs, expected = (evaluate(one) for one in (tied, stock, model))
    assert ours == expected
    # With zeros for weights it answers zero.
    targets = backed_up.data()[1]
    np.testing.assert_allclose(theirs[0], np.square(targets).mean(), rtol=1e-5)
    assert theirs[0] > 2 * expected[0]
