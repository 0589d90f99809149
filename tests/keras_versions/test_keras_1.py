"""Files of Keras 1: every verb says so, and what to do; `inspect` says what is in them."""

import pytest
from checkout import FIXTURES

import tiedio
from tiedio import files

FILE = FIXTURES / "keras_1.h5"


@pytest.mark.parametrize(
    "verb",
    [
        tiedio.load_tied,
        files.plan,
        files.verify,
        lambda path: files.migrate(path, "new.keras"),
        lambda path: files.migrate(path, "new.weights.h5"),
        lambda path: files.diff(path, path),
        lambda path: files.export(path, "new.safetensors"),
    ],
    ids=["load_tied", "plan", "verify", "migrate", "migrate weights", "diff", "export"],
)
def test_it_is_refused_by_name(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tiedio.errors.FileFormatError) as error:
        verb(FILE)
    what, received, action = str(error.value).splitlines()
    assert "keras_1.h5` was written by Keras 1.2.2" in what
    assert "Keras 1." in received
    assert "Load it with Keras 2.0 to 2.3" in action
    assert not list(tmp_path.iterdir())


def test_it_is_described():
    found = files.inspect(FILE)
    assert found.kind == "HDF5 file of Keras 1 of a whole model"
    assert (found.keras_version, found.variables) == ("1.2.2", 6)
    (note,) = found.notes
    assert "Keras 2.0 to 2.3" in note
