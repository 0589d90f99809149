"""The members of an archive, and what is refused."""

import io
import os
import zipfile

import keras
import numpy as np
import pytest
import scenarios
from large_models import large

import tiedio
from tiedio.errors import FileFormatError
from tiedio.formats import table, zip_archive
from tiedio.storage.locating import at


@pytest.fixture
def filepath(tmp_path):
    filepath = tmp_path / "model.keras"
    tiedio.save_tied(scenarios.controls.equal_but_untied(), filepath)
    return filepath


def test_large_tensors_are_written_in_their_order(filepath):
    tiedio.save_tied(large(), filepath)
    with zipfile.ZipFile(filepath) as content:
        assert content.testzip() is None
    kernel = tiedio.load_tied(filepath).layers[0].kernel
    assert np.array_equal(keras.ops.convert_to_numpy(kernel), np.arange(1 << 20).reshape(8, -1))


@pytest.mark.parametrize(("answer", "replaced"), [("y", True), ("n", False), ("", False)])
def test_overwrite_false_asks_as_keras_does(filepath, monkeypatch, answer, replaced):
    before = filepath.stat().st_ino
    questions = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or answer)
    tiedio.save_tied(scenarios.controls.equal_but_untied(), filepath, overwrite=False)
    assert (filepath.stat().st_ino != before) is replaced
    assert len(questions) == 1


def test_overwrite_false_does_not_ask_for_a_new_path(filepath):
    tiedio.save_tied(
        scenarios.controls.equal_but_untied(), filepath.with_name("new.keras"), overwrite=False
    )


def test_the_archive_has_the_members_that_keras_expects(filepath):
    with zipfile.ZipFile(filepath) as content:
        assert content.namelist() == ["config.json", "model.weights.h5", "metadata.json"]
        assert {info.compress_type for info in content.infolist()} == {zipfile.ZIP_STORED}
        assert content.testzip() is None


def test_a_bomb_is_refused_before_it_is_unpacked(filepath, monkeypatch):
    monkeypatch.setattr(zip_archive, "_EXPANSION_FLOOR", 1 << 16)
    bomb = filepath.with_name("bomb.keras")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("config.json", "{}")
        content.writestr("model.weights.h5", bytes(1 << 24))
    with pytest.raises(FileFormatError, match=r"`model\.weights\.h5` of 16777216 bytes in \d+\."):
        tiedio.load_tied(bomb)


def test_assets_cannot_leave_their_folder(filepath, tmp_path):
    with zipfile.ZipFile(filepath, "a") as content:
        content.writestr("assets/../../../outside.txt", "got out")
        content.writestr("assets/inside.txt", "stayed")
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    with table.reading(at(filepath)) as content:
        content.extract_assets(folder)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.txt")}
    assert all(path.startswith("a/b/c/") for path in files)
    assert np.any([path.endswith("assets/inside.txt") for path in files])


@keras.saving.register_keras_serializable("tiedio_tests")
class Meddling(keras.layers.Dense):
    """A layer that meddles with the file that it is loaded from."""

    meddle = staticmethod(lambda: None)

    def build(self, input_shape):
        super().build(input_shape)
        Meddling.meddle()


@pytest.fixture
def meddled(tmp_path):
    filepath = tmp_path / "meddled.keras"
    model = keras.Sequential([keras.Input((64,)), Meddling(1 << 14)])  # 4 MB
    tiedio.save_tied(model, filepath)
    return filepath, keras.ops.convert_to_numpy(model.layers[0].kernel)


def test_a_file_that_is_cut_short_while_it_is_read(meddled, monkeypatch):
    filepath, _ = meddled
    size = filepath.stat().st_size
    monkeypatch.setattr(Meddling, "meddle", lambda: os.truncate(filepath, size // 2))
    with pytest.raises(FileFormatError, match=r"is damaged at `layers/meddling/vars/0`, `l"):
        tiedio.load_tied(filepath)


def test_a_file_that_is_replaced_while_it_is_read(meddled, monkeypatch):
    filepath, kernel = meddled
    other = filepath.with_name("other.keras")
    tiedio.save_tied(scenarios.controls.equal_but_untied(), other)
    monkeypatch.setattr(Meddling, "meddle", lambda: other.exists() and os.replace(other, filepath))
    loaded = tiedio.load_tied(filepath)
    assert not other.exists()
    assert np.array_equal(keras.ops.convert_to_numpy(loaded.layers[0].kernel), kernel)


def test_a_file_that_is_overwritten_after_it_was_read(meddled):
    filepath, kernel = meddled
    loaded = tiedio.load_tied(filepath)
    filepath.write_bytes(bytes(filepath.stat().st_size))
    filepath.write_bytes(b"")
    assert np.array_equal(keras.ops.convert_to_numpy(loaded.layers[0].kernel), kernel)


def test_an_archive_behind_other_bytes():
    """As a file may be that is open, and was not empty."""
    file = io.BytesIO(b"not of the archive")
    file.seek(0, io.SEEK_END)
    model = scenarios.two_paddings()
    tiedio.save_tied(model, file)
    assert file.getvalue().startswith(b"not of the archivePK")
    assert scenarios.ties_of(tiedio.load_tied(file)) == scenarios.ties_of(model)
