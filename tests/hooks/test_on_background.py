"""Callbacks with `save_on_background=True`: files of that moment, in order, and runs that go on."""

import errno
import os
import threading

import keras
import pytest
import scenarios
from backed_up import EPOCHS, build, fit, is_tied

import tiedio
from tiedio.saving import background

EAGERLY = {"run_eagerly": True}  # quicker for a few steps


def state(model):
    return [array.tobytes() for array in scenarios.state_of(model)]


class Note(keras.callbacks.Callback):
    """Knows the state at the end of each epoch; ends the run in one, as an error would."""

    def __init__(self, stop=None):
        super().__init__()
        self.states, self.stop = [], stop

    def on_epoch_end(self, epoch, logs=None):
        self.states.append(state(self.model))

    def on_train_batch_end(self, batch, logs=None):
        if (len(self.states), batch) == self.stop:
            raise KeyboardInterrupt


@pytest.fixture
def slow(monkeypatch):
    """Lets threads write each value when training has gone on for a while."""
    read = background._Read.__call__

    def slowly(copy):
        copy.begin()
        threading.Event().wait(0.02)
        return read(copy)

    monkeypatch.setattr(background._Read, "__call__", slowly)
    yield
    background.catch_up()
    assert not background._unsettled


@pytest.mark.parametrize(
    "name", ["{epoch}.keras", pytest.param("{epoch}.weights.h5", marks=pytest.mark.slow)]
)
def test_a_checkpoint_holds_the_values_of_its_epoch(tmp_path, slow, name):
    options = {"save_weights_only": "weights" in name, "save_on_background": True}
    noted = Note()
    fit(build(), [noted, tiedio.TiedModelCheckpoint(tmp_path / name, **options)])
    assert not background._unsettled  # training has waited
    for epoch, then in enumerate(noted.states, 1):
        filepath = tmp_path / name.format(epoch=epoch)
        if options["save_weights_only"]:
            loaded = build(tie=False)
            tiedio.load_tied_weights(loaded, filepath)
        else:
            loaded = tiedio.load_tied(filepath)
        assert is_tied(loaded) and state(loaded) == then


def test_a_run_goes_on_bit_for_bit(tmp_path, slow):
    def backup():
        options = {"double_checkpoint": True, "save_on_background": True}
        return tiedio.TiedBackupAndRestore(tmp_path / "backup", **options)

    uninterrupted = build(**EAGERLY)
    fit(uninterrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(build(**EAGERLY), [backup(), Note(stop=(2, 3))])
    model = build(tie=False, **EAGERLY)
    history = fit(model, [backup()])
    assert history.epoch == [*range(2, EPOCHS)]
    assert is_tied(model) and state(model) == state(uninterrupted)
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("in_background", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_backup_comes_after_the_checkpoint_that_it_knows(tmp_path, slow, in_background):
    """Whoever is killed in between has a best model that is replaced by a worse one."""
    best = tiedio.TiedModelCheckpoint(
        tmp_path / "best.keras", monitor="loss", save_best_only=True, save_on_background=True
    )
    backup = tiedio.TiedBackupAndRestore(tmp_path / "backup", save_on_background=in_background)
    written, replace = [], os.replace

    def noting(source, target):
        replace(source, target)
        written.append(os.path.basename(target))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "replace", noting)
        fit(build(**EAGERLY), [backup, best], epochs=2)
    assert written == ["best.keras", "latest.weights.h5"] * 2


@pytest.mark.slow
def test_a_kill_in_the_first_backup_leaves_no_epoch_to_go_on_with(tmp_path):
    """Keras has written which epoch it was by then."""
    (tmp_path / "training_metadata.json").write_text('{"epoch": 1, "batch": 0}')
    model, uninterrupted = build(**EAGERLY), build(**EAGERLY)
    fit(uninterrupted)
    history = fit(model, [tiedio.TiedBackupAndRestore(tmp_path, save_on_background=True)])
    assert history.epoch == [*range(EPOCHS)]
    assert state(model) == state(uninterrupted)


@pytest.mark.parametrize("epochs", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [tiedio.TiedModelCheckpoint, tiedio.TiedBackupAndRestore])
def test_an_error_ends_the_run(tmp_path, monkeypatch, kind, epochs):
    """At the next save, or at the end of training."""

    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    noted = Note()
    monkeypatch.setattr(os, "fsync", fail)
    filepath = tmp_path / "{epoch}.keras"
    with pytest.raises(OSError, match="No space left"):
        fit(build(**EAGERLY), [noted, kind(filepath, save_on_background=True)], epochs=epochs)
    assert len(noted.states) == min(epochs, 2)
    assert not background._unsettled
