"""Models and weights in open files, behind URLs and on the Hub: replaced whole, read as on disk."""

import functools
import gc
import gzip
import importlib
import inspect
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from unittest import mock

import fsspec
import generations
import huggingface_hub
import keras
import numpy as np
import pytest
import scenarios
from checkout import environment
from huggingface_hub.utils import filter_repo_objects
from keras.src.saving import saving_lib
from moto.server import ThreadedMotoServer
from pinning import pin

import tiedio
from tiedio import errors
from tiedio.storage.locating import at

PATIENCE = 120  # seconds for another process to do something
BLOCK = 5 << 20  # bytes: the smallest part that S3 takes


@pytest.fixture(scope="module")
def server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with mock.patch("werkzeug.serving.WSGIRequestHandler.log_request"):
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture
def s3(server, monkeypatch, request):
    """Makes a bucket; returns fsspec's file system, and its URL."""
    options = {"endpoint_url": server, "default_block_size": BLOCK}
    environment = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    environment |= {"AWS_DEFAULT_REGION": "us-east-1", "FSSPEC_S3": json.dumps(options)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    files = fsspec.filesystem("s3")
    bucket = f"bucket-{abs(hash(request.node.name))}"
    files.mkdir(bucket)
    yield files, f"s3://{bucket}"
    files.rm(bucket, recursive=True)
    type(files).clear_instance_cache()


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files, "memory://folder"
    files.store.clear()


@pytest.fixture
def disk(tmp_path):
    return fsspec.filesystem("local"), f"file://{tmp_path}"


@pytest.fixture
def disk_of_fsspec(tmp_path):
    return fsspec.filesystem("local"), f"local://{tmp_path}"


@pytest.fixture(params=["s3", "memory", "disk", "disk_of_fsspec"])
def place(request):
    return request.getfixturevalue(request.param)


@functools.cache
def trained():
    model = scenarios.two_paddings()
    scenarios.train(model)
    return model


def assert_same(loaded, model):
    first, second = [layer for layer in loaded.layers if hasattr(layer, "kernel")][:2]
    assert first.kernel is second.kernel
    assert scenarios.ties_of(loaded) == scenarios.ties_of(model) != []
    for one, other in zip(scenarios.state_of(loaded), scenarios.state_of(model), strict=True):
        assert np.array_equal(one, other)


def assert_same_to_keras(stock, model):
    for one, other in zip(stock.layers, model.layers, strict=True):
        for value, expected in zip(one.get_weights(), other.get_weights(), strict=True):
            assert np.array_equal(value, expected)


# Keras has no room for the optimizer of variables that were one.
pytestmark = pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")


# URLs


@pytest.mark.parametrize(
    "name",
    [
        "a folder/ü.keras",
        *(pytest.param(one, marks=pytest.mark.seldom) for one in ("m.keras", "m.h5")),
    ],
)
def test_a_model_behind_a_url(place, name, tmp_path):
    files, url = place
    files.makedirs(f"{url}/a folder", exist_ok=True)
    model = trained()
    for _ in range(2):
        tiedio.save_tied(model, f"{url}/{name}")
    assert_same(tiedio.load_tied(f"{url}/{name}"), model)
    if not name.endswith(".h5"):
        files.get_file(f"{url}/{name}", tmp_path / "copy.keras")
        assert_same_to_keras(keras.saving.load_model(tmp_path / "copy.keras"), model)
    written = [path for path in files.find(url) if not path.endswith("copy.keras")]
    assert [path.rpartition("/")[2] for path in written] == [name.rpartition("/")[2]]


@pytest.mark.parametrize("name", ["w.weights.h5", "w.weights.json"])
def test_weights_behind_a_url(place, name):
    files, url = place
    container = generations.BARE if name.endswith("h5") else generations.SHARDS
    for generation in (1, 2):
        generations.save(
            f"{url}/{name}", generation, container, shard_bytes=2 * generations.TENSOR_BYTES
        )
        assert generations.load(f"{url}/{name}") == generation
    # The JSON, two shards, and the one that Keras opens first.
    assert len(files.find(url)) == (1 if name.endswith("h5") else 4)


def test_a_folder_behind_a_url_is_read(place, tmp_path):
    files, url = place
    model = trained()
    tiedio.save_tied(model, tmp_path / "folder", zipped=False)
    for name in ("config.json", "metadata.json", "model.weights.h5"):
        files.makedirs(f"{url}/copy", exist_ok=True)
        files.put_file(tmp_path / "folder" / name, f"{url}/copy/{name}")
    assert_same(tiedio.load_tied(f"{url}/copy"), model)


def test_a_folder_behind_a_url_keeps_its_files_inside(s3):
    files, url = s3
    for name in ("config.json", "../outside"):
        files.call_s3("put_object", Bucket=url[5:], Key=f"copy/{name}", Body=b"{}")
    with pytest.raises(errors.FileFormatError) as error:
        tiedio.load_tied(f"{url}/copy")
    pin(
        error,
        errors.FileFormatError,
        f"`{url}/copy` holds a file outside itself.\n"
        "Expected: files of a model. Received: `../outside`.\n"
        "Remove it.",
    )


def test_a_folder_is_not_written_behind_a_url(place):
    _, url = place
    if url.startswith("file:"):
        tiedio.save_tied(trained(), f"{url}/folder", zipped=False)
        return
    with pytest.raises(errors.SaveError) as error:
        tiedio.save_tied(trained(), f"{url}/folder", zipped=False)
    pin(
        error,
        errors.SaveError,
        f"`{url}/folder` cannot be, or have, a folder.\n"
        f"Expected: a path on disk. Received: `{url}/folder`.\n"
        "Save to a path ending in `.keras`, or to a folder on disk.",
    )


def test_overwrite_false_asks(place, monkeypatch):
    files, url = place
    questions = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "n")
    files.pipe_file(f"{url}/model.keras", b"old")
    tiedio.save_tied(trained(), f"{url}/model.keras", overwrite=False)
    assert len(questions) == 1
    assert files.cat_file(f"{url}/model.keras") == b"old"


@pytest.mark.parametrize("content", [b"", b"PK", b"no model"])
def test_what_is_no_model(place, content):
    files, url = place
    files.pipe_file(f"{url}/model.keras", content)
    with pytest.raises(errors.FileFormatError, match=r"is not a Keras file|is damaged"):
        tiedio.load_tied(f"{url}/model.keras")


def test_nothing_there(place):
    _, url = place
    with pytest.raises(ValueError) as error:
        tiedio.load_tied(f"{url}/model.keras")
    pin(
        error,
        errors.MissingFileError,
        f"There is no file `{at(f'{url}/model.keras').name!s}`.\n"
        "Expected: a file. Received: nothing there.\n"
        "Check the path.",
    )


def test_what_somebody_else_replaced_is_read_anew(s3):
    files, url = s3
    generations.save(f"{url}/model.keras", 1)
    assert files.ls(url)  # which fsspec remembers
    other = type(files)(skip_instance_cache=True, use_listings_cache=False)
    generations.save(f"memory://{url[5:]}", 2, tensors=8)
    other.pipe_file(f"{url}/model.keras", fsspec.filesystem("memory").cat(f"/{url[5:]}"))
    assert generations.load(f"{url}/model.keras") == 2
    assert files.exists(f"{url}/model.keras")


def test_a_large_file_goes_up_in_parts(s3):
    files, url = s3
    generations.save(f"{url}/model.keras", 1, tensors=24)
    info = files.info(f"{url}/model.keras")
    parts = int(info["ETag"].strip('"').rpartition("-")[2])
    assert 4 <= parts <= 5
    assert info["size"] // parts >= generations.TENSOR_BYTES * 4


def run(*arguments):
    return subprocess.run(
        [sys.executable, Path(generations.__file__), *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.seldom
def test_what_goes_up_is_not_held_in_memory(s3):
    _, url = s3
    peak = int(run("measure_upload", f"{url}/model.keras", 48).stdout)
    assert peak < 5 * BLOCK < 48 * generations.TENSOR_BYTES // 1.9


def uploads(s3):
    files, url = s3
    return files.call_s3("list_multipart_uploads", Bucket=url[5:]).get("Uploads") or []


@pytest.mark.seldom
def test_a_kill_in_the_middle_of_an_upload_leaves_the_old_object(s3):
    files, url = s3
    generations.save(f"{url}/model.keras", 1)
    died = run("die_in_upload", f"{url}/model.keras", 18 * generations.TENSOR_BYTES)
    assert died.returncode == -9
    assert uploads(s3)  # otherwise it was killed before or after
    assert generations.load(f"{url}/model.keras") == 1
    assert [path.rpartition("/")[2] for path in files.find(url)] == ["model.keras"]


class OtherError(Exception):
    pass


@pytest.mark.parametrize(
    ("tensors", "there"),
    [
        (24, True),
        *(
            pytest.param(*one, marks=pytest.mark.seldom)
            for one in [(1, True), (1, False), (24, False)]
        ),
    ],
)
def test_an_exception_in_the_middle_of_an_upload_leaves_the_old_object(
    place, request, tensors, there
):
    files, url = place
    if there:
        generations.save(f"{url}/model.keras", 1)
    before = files.find(url)
    reads = iter(range(tensors))

    def read():
        if next(reads) == tensors - 1:
            raise OtherError
        return np.zeros(generations.TENSOR_BYTES // 8, "int64")

    with pytest.raises(OtherError):
        generations.save(f"{url}/model.keras", 2, tensors=tensors, read=read)
    gc.collect()  # what is closed only now must not be completed
    assert files.find(url) == before
    assert not files.transaction.files
    if there:
        assert generations.load(f"{url}/model.keras") == 1
    if url.startswith("s3"):
        assert not uploads((files, url))


def test_an_upload_that_fails_at_its_end_leaves_the_old_object(s3, monkeypatch):
    files, url = s3
    generations.save(f"{url}/model.keras", 1)
    call = type(files).call_s3

    def refuse(self, method, *arguments, **options):
        if method == "complete_multipart_upload":
            raise PermissionError("not now")
        return call(self, method, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(files), "call_s3", refuse)
        with pytest.raises(PermissionError, match="not now"):
            generations.save(f"{url}/model.keras", 2)
    assert generations.load(f"{url}/model.keras") == 1
    assert not uploads(s3)


# Packages that are not installed, and URLs that lead nowhere


def test_an_unknown_scheme():
    with pytest.raises(ValueError) as error:
        tiedio.load_tied("gopher://host/model.keras")
    pin(
        error,
        errors.FileFormatError,
        "`gopher://host/model.keras` is of a scheme that fsspec does not know.\n"
        "Expected: `s3://`, `gs://` or the like. Received: Protocol not known: gopher.\n"
        "Check the URL.",
    )


@pytest.mark.parametrize(
    ("package", "extra", "url"),
    [("fsspec", "remote", "s3://bucket/model.keras"), ("huggingface_hub", "hf", "hf://me/model")],
)
def test_a_package_that_is_not_installed(monkeypatch, package, extra, url):
    monkeypatch.setitem(sys.modules, package, None)
    for use in (tiedio.load_tied, lambda url: tiedio.save_tied(trained(), url)):
        with pytest.raises(ImportError) as error:
            use(url)
        pin(
            error,
            errors.MissingPackageError,
            f"`{url}` needs a package that is not installed.\n"
            f"Expected: `{package}`. Received: import of {package} halted; None in sys.modules.\n"
            f"Install it: `pip install 'tiedio[{extra}]'`.",
        )


def test_a_package_of_a_scheme_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(ImportError) as error:
        tiedio.load_tied("s3://bucket/model.keras")
    pin(
        error,
        errors.MissingPackageError,
        "`s3://bucket/model.keras` needs a package that is not installed.\n"
        "Expected: what fsspec needs for it. Received: Install s3fs to access S3.\n"
        "Install what is named there.",
    )


# Open files


class Onward(io.RawIOBase):
    """A stream that is only written to, from its start to its end, a bit at a time."""

    def __init__(self):
        self.content = bytearray()

    def writable(self):
        return True

    def write(self, data):
        part = bytes(data)[:100_000]
        self.content += part
        return len(part)


class Writer:
    """Has nothing but what is needed."""

    def __init__(self):
        self.content = bytearray()

    def write(self, data):
        self.content += data
        return len(data)


FILES = {
    "BytesIO": lambda path: io.BytesIO(),
    "open": lambda path: open(path, "w+b"),  # noqa: SIM115 (they are closed where they are used)
    "unbuffered": lambda path: open(path, "w+b", buffering=0),  # noqa: SIM115
    "temporary": lambda path: tempfile.TemporaryFile(),  # noqa: SIM115
    "named temporary": lambda path: tempfile.NamedTemporaryFile(),  # noqa: SIM115
    "spooled": lambda path: tempfile.SpooledTemporaryFile(1 << 10),  # noqa: SIM115
}


@pytest.mark.often(2)
@pytest.mark.parametrize("name", FILES)
def test_an_open_file(name, tmp_path):
    model = trained()
    with FILES[name](tmp_path / "file") as file:
        for _ in range(2):
            tiedio.save_tied(model, file)
            assert_same(tiedio.load_tied(file), model)
            file.seek(0)
        assert_same_to_keras(saving_lib.load_model(io.BytesIO(file.read())), model)
        assert not file.closed


@pytest.mark.parametrize("kind", [Path, str, os.fsencode, "PathLike"])
def test_a_path_of_any_kind(tmp_path, kind):
    class Somewhere:
        def __fspath__(self):
            return str(tmp_path / "model.keras")

    filepath = Somewhere() if kind == "PathLike" else kind(tmp_path / "model.keras")
    model = trained()
    tiedio.save_tied(model, filepath)
    assert_same(tiedio.load_tied(filepath), model)
    assert os.listdir(tmp_path) == ["model.keras"]


def test_a_file_open_for_reading(tmp_path):
    model = trained()
    tiedio.save_tied(model, tmp_path / "model.keras")
    with open(tmp_path / "model.keras", "rb") as file:
        file.seek(1000)  # a model is all of its file, as for Keras
        assert_same(tiedio.load_tied(file), model)
    packed = gzip.compress((tmp_path / "model.keras").read_bytes())
    (tmp_path / "model.gz").write_bytes(packed)
    with gzip.open(tmp_path / "model.gz") as file:
        assert_same(tiedio.load_tied(file), model)


def test_what_is_in_an_open_file_before_stays(tmp_path):
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"before")
        tiedio.save_tied(trained(), file)
        assert file.tell() == os.fstat(file.fileno()).st_size
    content = (tmp_path / "file").read_bytes()
    assert content.startswith(b"beforePK")
    assert_same(tiedio.load_tied(io.BytesIO(content[6:])), trained())


def test_what_is_longer_is_replaced_whole():
    file = io.BytesIO()
    generations.save(file, 1, tensors=8)
    file.seek(0)
    generations.save(file, 2, tensors=1)
    assert generations.load(file) == 2
    assert len(file.getvalue()) < 2 * generations.TENSOR_BYTES


@pytest.mark.parametrize("start", [6, 0])
@pytest.mark.parametrize("name", FILES)
def test_an_exception_leaves_what_is_in_an_open_file(name, start, tmp_path):
    def fail():
        raise OtherError

    with FILES[name](tmp_path / "file") as file:
        file.write(b"before")
        file.seek(start)
        with pytest.raises(OtherError):
            generations.save(file, 1, read=fail)
        file.seek(0)
        assert file.read() == b"before"


@pytest.mark.parametrize("stream", [Onward, Writer])
def test_a_stream_that_does_not_seek(stream):
    stream = stream()
    generations.save(stream, 1)
    assert generations.load(io.BytesIO(stream.content)) == 1


def test_a_stream_that_is_packed(tmp_path):
    with gzip.open(tmp_path / "model.gz", "wb", compresslevel=1) as file:
        tiedio.save_tied(trained(), file)
    with gzip.open(tmp_path / "model.gz") as file:
        assert_same(tiedio.load_tied(file), trained())


def test_a_stream_that_takes_nothing_for_the_moment():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with (
        open(reading, "rb"),
        open(writing, "wb", buffering=0) as file,
        pytest.raises(BlockingIOError),
    ):
        generations.save(file, 1)


def test_a_pipe():
    reading, writing = os.pipe()
    received = []

    def receive():
        with open(reading, "rb") as file:
            received.append(file.read())

    receiver = threading.Thread(target=receive)
    receiver.start()
    with open(writing, "wb") as file:
        generations.save(file, 1)
    receiver.join(PATIENCE)
    assert generations.load(io.BytesIO(received[0])) == 1


def test_a_pipe_is_not_read():
    reading, writing = os.pipe()
    os.close(writing)
    with open(reading, "rb") as file, pytest.raises(ValueError) as error:
        tiedio.load_tied(file)
    pin(
        error,
        errors.FileFormatError,
        f"`{reading}` can only be read from its start to its end.\n"
        "Expected: a file that seeks. Received: BufferedReader.\n"
        "Read it into an `io.BytesIO`, and pass that.",
    )


@pytest.mark.parametrize("use", [tiedio.load_tied, lambda file: tiedio.save_tied(trained(), file)])
def test_a_text_file(tmp_path, use):
    with open(tmp_path / "file", "w+") as file, pytest.raises(ValueError) as error:
        use(file)
    pin(
        error,
        errors.FileFormatError,
        f"`{tmp_path / 'file'}` is open as text.\n"
        "Expected: a file of bytes. Received: TextIOWrapper.\n"
        'Open it in binary mode, as with `open(path, "rb")`.',
    )
    for text in (io.StringIO(), tempfile.NamedTemporaryFile("w+")):  # noqa: SIM115
        with text, pytest.raises(errors.FileFormatError, match="is open as text"):
            use(text)


@pytest.mark.parametrize("durable", [True, False])
def test_an_open_file_is_flushed(tmp_path, monkeypatch, durable):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(os.fstat(number).st_size))
    with open(tmp_path / "file", "wb") as file:
        tiedio.save_tied(trained(), file, durable=durable)
        assert flushed == ([file.tell()] if durable else [])
        assert os.path.getsize(tmp_path / "file") == file.tell()


# The Hugging Face Hub


class Hub:
    """What is called of the Hub's package, as it is called there, on this machine."""

    def __init__(self, cache):
        self.cache = cache
        self.commits = []
        self.repositories = {}

    def create_repo(self, repo_id, exist_ok=False, **options):
        assert exist_ok or repo_id not in self.repositories
        self.repositories.setdefault(repo_id, {".gitattributes": b""})
        return mock.Mock(repo_id=repo_id, spec_set=["repo_id"])

    def file_exists(self, repo_id, filename, **options):
        return filename in self.repositories[repo_id]

    def upload_folder(self, repo_id, folder_path, delete_patterns=None, **options):
        files = self.repositories[repo_id]
        new = {
            path.relative_to(folder_path).as_posix(): path.read_bytes()
            for path in Path(folder_path).rglob("*")
            if path.is_file()
        }
        removed = filter_repo_objects(list(files), allow_patterns=delete_patterns or [])
        kept = {name: files[name] for name in set(files).difference(removed)}
        self.repositories[repo_id] = kept | new
        self.commits.append(sorted(new))

    def snapshot_download(self, repo_id, **options):
        if repo_id not in self.repositories:
            raise huggingface_hub.errors.RepositoryNotFoundError("401", response=mock.MagicMock())
        snapshot = Path(tempfile.mkdtemp(dir=self.cache))
        for number, (name, content) in enumerate(self.repositories[repo_id].items()):
            blob = self.cache / f"{snapshot.name}-{number}"
            blob.write_bytes(content)
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).symlink_to(blob)
        return str(snapshot)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    importlib.import_module("huggingface_hub.errors")
    hub = Hub(tmp_path)

    def bound(real, stand_in, skipped=0):
        signature = inspect.signature(real)

        def call(*arguments, **options):
            return stand_in(**signature.bind(*[None] * skipped, *arguments, **options).arguments)

        return call

    class Api:
        """Has the signatures of the real one."""

        def __init__(self, *arguments, **options):
            inspect.signature(huggingface_hub_api.__init__).bind(self, *arguments, **options)

        def __getattr__(self, name):
            method = getattr(hub, name)
            return bound(getattr(huggingface_hub_api, name), lambda self, **o: method(**o), 1)

    huggingface_hub_api = huggingface_hub.HfApi
    download = bound(huggingface_hub.snapshot_download, hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return hub


def test_a_model_on_the_hub(hub):
    model = trained()
    for _ in range(2):
        tiedio.save_tied(model, "hf://me/model")
    assert_same(tiedio.load_tied("hf://me/model"), model)
    # Without TensorFlow, `keras.saving.load_model` does not come as far as this.
    assert_same_to_keras(saving_lib.load_model("hf://me/model"), model)
    names = ["config.json", "metadata.json", "model.weights.h5"]
    assert hub.commits == [["README.md", *names], names]  # the card was there the second time
    assert b"library_name: keras" in hub.repositories["me/model"]["README.md"]


def test_a_model_that_keras_put_on_the_hub(hub, monkeypatch):
    """With a picture of it, which Keras draws by a program that a bare machine has not got."""

    def draw(model, to_file, **options):
        Path(to_file).write_bytes(b"a picture")

    monkeypatch.setattr(saving_lib, "plot_model", draw)
    model = trained()
    model.save("hf://me/model")
    assert "assets/summary_plot.png" in hub.repositories["me/model"]
    with pytest.warns(tiedio.TiedioWarning, match="`tiedio plan hf://me/model` says which"):
        loaded = tiedio.load_tied("hf://me/model")
    assert_same_to_keras(loaded, model)


def test_what_a_model_on_the_hub_no_longer_has_is_removed(hub):
    hub.repositories["me/model"] = dict.fromkeys(
        ["README.md", "assets/a/b", "model.weights.npz", "logs/events"], b"old"
    )
    generations.save_folder("hf://me/model", 1)
    assert generations.load("hf://me/model") == 1
    kept = {name for name, content in hub.repositories["me/model"].items() if content == b"old"}
    assert kept == {"README.md", "logs/events"}


def test_a_failure_before_the_upload_leaves_nothing_on_the_hub(hub):
    def fail():
        raise OtherError

    with pytest.raises(OtherError):
        generations.save("hf://me/model", 1, generations.FOLDER, read=fail)
    assert not hub.repositories


def test_a_failure_of_the_upload_leaves_the_old_model_on_the_hub(hub, monkeypatch):
    generations.save_folder("hf://me/model", 1)
    before = dict(hub.repositories["me/model"])

    def fail(**options):
        raise OtherError

    monkeypatch.setattr(hub, "upload_folder", fail)
    with pytest.raises(OtherError):
        generations.save_folder("hf://me/model", 2)
    assert hub.repositories["me/model"] == before


def test_a_repository_that_is_not_there(hub):
    with pytest.raises(ValueError) as error:
        tiedio.load_tied("hf://me/model")
    pin(
        error,
        errors.MissingFileError,
        "There is no file `hf://me/model`.\n"
        "Expected: a file. Received: no such repository, or one that is private.\n"
        "Check the path.",
    )


def test_a_path_that_is_no_repository():
    with pytest.raises(ValueError) as error:
        tiedio.load_tied("hf://me/model/file.keras")
    pin(
        error,
        errors.FileFormatError,
        "`hf://me/model/file.keras` is no repository of the Hugging Face Hub.\n"
        "Expected: `hf://namespace/name`. Received: hf://me/model/file.keras.\n"
        "Check the path.",
    )


def test_the_hub_has_no_single_files(hub):
    with pytest.raises(errors.SaveError, match=r"names no format|cannot be, or have, a single"):
        tiedio.save_tied(trained(), "hf://me/model", zipped=True)
    assert not hub.repositories
