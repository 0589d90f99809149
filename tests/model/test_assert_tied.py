"""`assert_tied` and its callback: a tie that broke is told, and how far apart it came."""

import keras
import numpy as np
import pytest
import scenarios

import tiedio
from tiedio.errors import TieError


def pair(tie=True):
    keras.utils.clear_session()
    layers = [keras.layers.Dense(4) for _ in range(2)]
    model = scenarios.compiled(keras.Sequential([keras.Input((4,)), *layers]))
    if tie:
        tiedio.tie(layers[1], to=layers[0])
    return model, *layers


def break_kernel(layer, by=0.5):
    """Gives a layer another kernel behind the back of tiedio."""
    kernel = keras.Variable(np.array(keras.ops.convert_to_numpy(layer.kernel)) + by)
    layer._untrack_variable(layer.kernel)
    layer._tracker.unlock()
    layer._kernel = kernel


MESSAGE = (
    "`dense_1/kernel` are not tied.\n"
    "Expected: the variable of the owner. "
    "Received: `dense_1/kernel` and `dense/kernel` differ by up to 0.5.\n"
    "Tie these layers again with `tiedio.tie`, or undo the tie with `tiedio.untie`."
)


def test_made_by_tie():
    model, _, second = pair()
    tiedio.assert_tied(model)
    break_kernel(second)
    with pytest.raises(TieError) as error:
        tiedio.assert_tied(model)
    assert str(error.value) == MESSAGE


def test_restored_by_load_tied(tmp_path):
    model, _, second = pair()
    tiedio.save_tied(model, tmp_path / "model.keras")
    loaded = tiedio.load_tied(tmp_path / "model.keras")
    tiedio.assert_tied(loaded)
    break_kernel(loaded.layers[1])
    with pytest.raises(TieError) as error:
        tiedio.assert_tied(loaded)
    assert str(error.value) == MESSAGE
    tiedio.assert_tied(model)
    assert second.kernel is model.layers[0].kernel


def test_undone_by_untie():
    model, first, second = pair()
    tiedio.untie(second, weights=("kernel",))
    tiedio.assert_tied(model)
    tiedio.untie(first)
    with pytest.raises(TieError, match="`sequential` has no ties to check"):
        tiedio.assert_tied(model)


def test_a_clone_lost_its_ties():
    model, *_ = pair()
    clone = keras.models.clone_model(model)
    with pytest.raises(TieError) as error:
        tiedio.assert_tied(clone, tiedio.find_ties(model))
    assert "`dense_1/bias`, `dense_1/kernel` are not tied" in str(error.value)
    tiedio.tie(clone.layers[1], to=clone.layers[0])
    tiedio.assert_tied(clone, tiedio.find_ties(model))


def test_quantised_layers_are_not_tied():
    model, _, second = pair()
    second.quantize("int8")
    with pytest.raises(TieError, match=r"are .*int8 and .*float32"):
        tiedio.assert_tied(model)


def test_places_that_are_gone():
    model, *_ = pair()
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="dense")])
    with pytest.raises(TieError, match="no variable at `dense_1/bias`"):
        tiedio.assert_tied(other, tiedio.find_ties(model))


def test_ties_made_by_hand_have_to_be_given():
    model, first, second = pair(tie=False)
    with pytest.raises(TieError, match="no ties to check"):
        tiedio.assert_tied(model)
    scenarios.tie_by_hand(second, first, "_kernel")
    tiedio.assert_tied(model)
    ties = tiedio.find_ties(model)
    break_kernel(second)
    with pytest.raises(TieError):
        tiedio.assert_tied(model, ties)


class BreakAtEpoch(keras.callbacks.Callback):
    # At the end of an epoch, for JAX cannot run a step with another list of variables.
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            break_kernel(self.model.layers[1])


def test_training_stops_when_a_tie_breaks():
    model, *_ = pair()
    data = np.ones((4, 4))
    callbacks = [BreakAtEpoch(), tiedio.AssertTied()]
    with pytest.warns(tiedio.TiedioWarning, match="Training stopped. `dense_1/kernel`"):
        history = model.fit(data, data, epochs=5, verbose=0, callbacks=callbacks)
    assert len(history.epoch) == 2
    with pytest.raises(TieError):
        model.fit(data, data, verbose=0, callbacks=callbacks)


def test_training_goes_on_while_ties_hold():
    model, *_ = pair()
    data = np.ones((4, 4))
    history = model.fit(
        data,
        data,
        epochs=3,
        verbose=0,
        callbacks=[tiedio.AssertTied(), tiedio.AssertTied(tiedio.find_ties(model))],
    )
    assert len(history.epoch) == 3
