"""Files of which few are open at once, and weights in more shards than may be open."""

import json
import subprocess
import sys

import generations
import pytest
from checkout import environment

from tiedio.errors import FileFormatError
from tiedio.storage import shelf
from tiedio.storage.locating import at

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of files to set")

LOADING = """
import resource, sys, generations
used = len(__import__("os").listdir("/dev/fd"))
limit = int(sys.argv[2]) if sys.argv[2][0] != "+" else used + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
assert generations.load(sys.argv[1]) == 1
"""


@posix
@pytest.mark.parametrize(
    "shards, limit",
    [(61, "+20"), (61, "+6"), pytest.param(300, "64", marks=pytest.mark.slow)],
)
def test_more_shards_than_may_be_open(tmp_path, monkeypatch, shards, limit):
    filepath = tmp_path / "model.weights.json"
    monkeypatch.setattr(generations, "TENSOR_BYTES", 1 << 10)
    options = {"tensors": shards, "shard_bytes": 1 << 10, "durable": False}
    generations.save(filepath, 1, generations.SHARDS, **options)
    assert len(set(json.loads(filepath.read_text())["weight_map"].values())) == shards
    command = [sys.executable, "-c", LOADING, str(filepath), limit]
    subprocess.run(command, env=environment(), check=True)


def test_a_file_that_was_replaced_while_it_was_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "_MOST", 1)
    paths = [tmp_path / "first", tmp_path / "second"]
    for path in paths:
        path.write_bytes(b"before")
    held = shelf.Shelf()
    first, second = (held.file(at(path)) for path in paths)
    assert (first.read(), second.read()) == (b"before", b"before")
    (tmp_path / "other").write_bytes(b"behind")
    (tmp_path / "other").replace(paths[0])
    first.seek(0)
    with pytest.raises(FileFormatError, match="was replaced while it was read"):
        first.read()
    held.close()
