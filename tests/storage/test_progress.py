"""Saving and loading tell how far they have come, when asked."""

import sys
import types

import keras
import numpy as np
import pytest
import rich.console
import rich.progress

import tiedio
from tiedio.formats import digests
from tiedio.storage import bars
from tiedio.storage.progress import bar


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
        assert told.pop() == {"total": 0, "completed": 0}
        assert sum(one["advance"] for one in told) == np.prod(model.layers[0].embeddings.shape) * 4
        assert {one["total"] for one in told} == {told[0]["total"]}
        assert len(told) > 2


def test_until_bytes_are_known_it_says_so():
    bar = bars.here()
    task = bar.add_task("Loading", total=None, meanwhile="building")
    with bar.console.capture() as told:
        bar.console.print(bar.get_renderable())
    assert "building" in told.get() and "?" not in told.get()
    bar.update(task, total=1000)
    with bar.console.capture() as told:
        bar.console.print(bar.get_renderable())
    assert "building" not in told.get() and "0.0/1.0 kB" in told.get()


def test_a_notebook_needs_no_ipywidgets(tmp_path, monkeypatch, capsys):
    """The bar is HTML that is replaced in its place."""
    pages = []
    place = types.SimpleNamespace(update=lambda bar: pages.append(bar._repr_html_()))

    def display(bar, display_id):
        place.update(bar)
        return place

    ipython = types.SimpleNamespace(display=types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setattr(rich, "_console", None)  # which one is made once, and kept
    tiedio.save_tied(model_of(3), tmp_path / "[b]model.keras", progress=True)
    assert "Saving [b]model.keras" in pages[-1] and "3.2/3.2 MB" in pages[-1]
    assert not any("building" in page for page in pages)
    tiedio.load_tied(tmp_path / "[b]model.keras", progress=True)
    assert any("Loading" in page and "building" in page for page in pages)
    assert capsys.readouterr() == ("", "")


def test_a_name_commands_no_terminal(capsys):
    with bar("Loading \x1b]0;owned\x07.keras", wanted=True) as advance:
        advance(1, 1)
    printed = capsys.readouterr().out
    assert "Loading ?]0;owned?.keras" in printed and "\x1b]0" not in printed
