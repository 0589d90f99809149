"""Saving and loading tell how far they have come, when asked."""

import keras
import numpy as np
import pytest
import rich.progress

import tiedio
from tiedio.formats import digests


def model_of(megabytes):
    layer = keras.layers.Embedding(megabytes << 10, 256)
    return keras.Sequential([keras.Input((2,)), layer])


@pytest.mark.parametrize("wanted", [True, False])
def test_a_bar_is_shown_if_wanted(wanted, tmp_path, capsys):
    model = model_of(3)
    tiedio.save_tied(model, tmp_path / "model.keras", progress=wanted)
    saving = capsys.readouterr().out
    tiedio.load_tied(tmp_path / "model.keras", progress=wanted)
    loading = capsys.readouterr().out
    assert ("Saving model.keras" in saving) == ("Loading model.keras" in loading) == wanted
    assert ("3.2/3.2 MB" in saving) == ("3.2/3.2 MB" in loading) == wanted


def test_every_byte_of_a_tensor_is_told_once(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(rich.progress.Progress, "update", lambda *_, **done: told.append(done))
    monkeypatch.setattr(digests, "PART", 1 << 15)
    model = model_of(3)
    for done in (
        lambda: tiedio.save_tied(model, tmp_path / "model.keras", progress=True),
        lambda: tiedio.load_tied(tmp_path / "model.keras", progress=True),
    ):
        told.clear()
        done()
        assert told.pop() == {"completed": None}
        assert sum(one["advance"] for one in told) == np.prod(model.layers[0].embeddings.shape) * 4
        assert {one["total"] for one in told} == {told[0]["total"]}
        assert len(told) > 2
