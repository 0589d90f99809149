"""A save replaces the old file whole, or leaves it untouched."""

import errno
import os
import stat
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import scenarios

import tiedio
from tiedio import archive
from tiedio.errors import FileFormatError


@pytest.fixture
def filepath(tmp_path):
    filepath = tmp_path / "model.keras"
    tiedio.save_tied(scenarios.controls.equal_but_untied(), filepath)
    return filepath


@keras.saving.register_keras_serializable("tiedio_tests")
class Failing(keras.layers.Dense):
    def save_own_variables(self, store):
        raise RuntimeError("no luck")


def test_an_exception_in_a_layer_leaves_the_old_file(filepath):
    before = filepath.read_bytes()
    with pytest.raises(RuntimeError, match="no luck"):
        tiedio.save_tied(keras.Sequential([keras.Input((2,)), Failing(2)]), filepath)
    assert filepath.read_bytes() == before
    assert os.listdir(filepath.parent) == ["model.keras"]


@pytest.mark.parametrize("bytes_written", [0, 100, 5000])
def test_a_full_disk_leaves_the_old_file(filepath, monkeypatch, bytes_written):
    before = filepath.read_bytes()
    write = archive.hdf5.write

    def fill(layout, stream):
        stream.write(bytes(bytes_written))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.hdf5, "write", fill)
    with pytest.raises(OSError, match="No space left"):
        tiedio.save_tied(scenarios.controls.equal_but_untied(), filepath)
    assert filepath.read_bytes() == before
    assert os.listdir(filepath.parent) == ["model.keras"]
    monkeypatch.setattr(archive.hdf5, "write", write)
    tiedio.save_tied(scenarios.controls.equal_but_untied(), filepath)


def large():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1 << 17)])  # 4.5 MB
    model.layers[0].kernel.assign(np.arange(1 << 20, dtype="float32").reshape(8, -1))
    return model


def test_large_tensors_are_written_in_their_order(filepath):
    tiedio.save_tied(large(), filepath)
    with zipfile.ZipFile(filepath) as content:
        assert content.testzip() is None
    kernel = tiedio.load_tied(filepath).layers[0].kernel
    assert np.array_equal(keras.ops.convert_to_numpy(kernel), np.arange(1 << 20).reshape(8, -1))


SAVE_WITH_A_LIMIT = """
import resource, signal, sys
sys.path[:0] = sys.argv[3:]
import tiedio, test_archive
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = test_archive.large()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
try:
    tiedio.save_tied(model, sys.argv[1])
except OSError as error:
    print(error.errno)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of file sizes")
@pytest.mark.parametrize("limit", [0, 5000, 1 << 21, (1 << 22) + 4096, 1 << 22])
def test_a_limit_of_the_file_size_leaves_the_old_file(filepath, limit):
    before = filepath.read_bytes()
    child = subprocess.run(
        [sys.executable, "-c", SAVE_WITH_A_LIMIT, filepath, str(limit), *sys.path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.stdout.split() == [str(errno.EFBIG)], child.stderr
    assert filepath.read_bytes() == before
    assert os.listdir(filepath.parent) == ["model.keras"]


def test_the_new_file_is_flushed_before_it_replaces_the_old(filepath, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    tiedio.save_tied(scenarios.controls.equal_but_untied(), filepath)
    assert calls == ["fsync", "replace", "fsync"]


def test_permissions_and_symbolic_links_are_kept(filepath):
    link = filepath.with_name("link.keras")
    link.symlink_to(filepath)
    filepath.chmod(0o640)
    before = filepath.stat().st_ino
    tiedio.save_tied(scenarios.controls.equal_but_untied(), link)
    assert link.is_symlink()
    assert filepath.stat().st_ino != before
    assert stat.S_IMODE(filepath.stat().st_mode) == 0o640


def test_a_new_file_has_the_permissions_of_any_other(filepath):
    other = filepath.with_name("plain")
    other.write_text("")
    assert filepath.stat().st_mode == other.stat().st_mode


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
    monkeypatch.setattr(archive, "_EXPANSION_FLOOR", 1 << 16)
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
    with archive.open_archive(filepath) as content:
        content.extract_assets(folder)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.txt")}
    assert all(path.startswith("a/b/c/") for path in files)
    assert np.any([path.endswith("assets/inside.txt") for path in files])
