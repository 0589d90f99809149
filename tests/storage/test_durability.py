"""A save replaces the old file whole, or leaves it untouched."""

import collections
import contextlib
import errno
import multiprocessing
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import keras
import pytest
import savers
import scenarios
from large_models import large
from other_users import NOBODY, PATIENCE, as_nobody, posix

import tiedio
from tiedio.errors import FileFormatError
from tiedio.storage import atomic


@pytest.fixture
def filepath(tmp_path):
    filepath = tmp_path / "model.keras"
    savers.save(filepath, 1)
    return filepath


@pytest.fixture(scope="module")
def start():
    """Starts functions of `savers` in processes of their own, which have not imported Keras."""
    if sys.platform == "win32":
        pytest.skip("Windows has no fork server")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiedio.formats.zip_archive"])
    started = []

    def start(function, *arguments, reports=True, **options):
        here, there = context.Pipe()
        process = context.Process(
            target=function, args=(*arguments, *[there] * reports), kwargs=options, daemon=True
        )
        process.start()
        there.close()
        started.append(process)
        return process, here

    yield start
    for process in started:
        process.kill()
        process.join()


def await_report(reports):
    assert reports.poll(PATIENCE)
    return reports.recv()


def killed(process, reports):
    """Kills a saver; returns the last generation that it reported, if any."""
    process.kill()
    process.join()
    last = None
    with contextlib.suppress(EOFError):
        while reports.poll(PATIENCE):
            last = reports.recv()
    return last


def leftovers(filepath):
    return sorted(filepath.parent.glob(".*-partial"))


def leave(filepath):
    """Leaves a partial file as a save does that is killed."""
    partial, file, unlock = atomic._create(filepath)
    file.close()
    unlock()
    return partial


# Kills


@pytest.mark.parametrize("step", ["writing", "flushing", "renaming", "renamed"])
def test_a_kill_at_each_step(filepath, start, step):
    process, _ = start(savers.die_at, step, filepath, reports=False)
    process.join(PATIENCE)
    assert process.exitcode == -9
    assert savers.load(filepath) == (0, 2 if step == "renamed" else 1)
    assert len(leftovers(filepath)) == (0 if step == "renamed" else 1)
    savers.save(filepath, 3)
    assert os.listdir(filepath.parent) == ["model.keras"]


def stage_of(filepath, reported):
    """Tells from what a kill left how far the save was."""
    if leftovers(filepath):
        try:
            savers.load(leftovers(filepath)[0])
        except FileFormatError:
            return "writing"
        return "written"
    return "between saves" if savers.load(filepath)[1] == reported else "renamed"


@pytest.mark.slow
def test_kills_at_random_moments(filepath, start):
    moments = random.Random(1)  # noqa: S311 (to be the same each time)
    stages = collections.Counter()
    last = 1
    for _ in range(50):
        before = set(leftovers(filepath))
        process, reports = start(savers.save_again_and_again, filepath, first=last + 1)
        first = await_report(reports)
        assert before.isdisjoint(leftovers(filepath))
        time.sleep(moments.uniform(0, 0.1))
        reported = killed(process, reports) or first
        _, last = savers.load(filepath)
        assert last in (reported, reported + 1)
        assert len(leftovers(filepath)) <= 1
        stages[stage_of(filepath, reported)] += 1
    print(dict(stages))
    # Otherwise the kills do not test much.
    assert stages["writing"]
    assert stages["writing"] + stages["written"] >= 10
    savers.save(filepath, last + 1)
    assert os.listdir(filepath.parent) == ["model.keras"]


@pytest.mark.slow
def test_kills_of_real_saves(tmp_path, start):
    moments = random.Random(2)  # noqa: S311 (to be the same each time)
    filepath = tmp_path / "model.keras"
    last = interrupted = 0
    for _ in range(8):
        process, reports = start(savers.save_tied_again_and_again, filepath, first=last + 1)
        first = await_report(reports)
        time.sleep(moments.uniform(0, 0.3))
        reported = killed(process, reports) or first
        model = tiedio.load_tied(filepath)
        assert len(tiedio.find_ties(model)) == 1
        values = [keras.ops.convert_to_numpy(v) for v in model.weights]
        last = int(values[0].flat[0])
        assert last in (reported, reported + 1)
        assert all((value == last).all() for value in values)
        interrupted += len(leftovers(filepath))
    assert interrupted  # otherwise no kill came in the middle of a save
    savers.save(filepath, last + 1)
    assert os.listdir(tmp_path) == ["model.keras"]


# Leftovers


def test_each_save_removes_the_leftovers_of_its_own_target(tmp_path):
    long = "n" * 244
    names = ["a.keras", "b.a.keras", ".a.keras", "a?.keras", "[a].keras", "a.keras.keras"]
    names += [f"{long}1.keras", f"{long}2.keras", "é" * 124 + ".keras"]
    left = {name: leave(tmp_path / name) for name in names}
    for name in names:
        assert sorted(leftovers(tmp_path / name)) == sorted(left.values())
        savers.save(tmp_path / name, 1)
        left.pop(name)
    assert leftovers(tmp_path / "a.keras") == []
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_what_a_live_process_writes_is_kept(filepath, start):
    _, reports = start(savers.wait_in_the_middle, filepath)
    await_report(reports)
    (partial,) = leftovers(filepath)
    for generation in (2, 3):
        savers.save(filepath, generation)
        assert leftovers(filepath) == [partial]
        assert savers.load(filepath) == (0, generation)
    reports.send("go on")
    assert await_report(reports) == "done"
    assert filepath.read_bytes() == b"half and half"
    assert os.listdir(filepath.parent) == ["model.keras"]


def test_saves_of_one_process_keep_apart(filepath):
    with atomic.replacing(filepath) as first:
        first.write(b"first")
        with atomic.replacing(filepath) as second:
            second.write(b"second")
        assert filepath.read_bytes() == b"second"
    assert filepath.read_bytes() == b"first"


@posix
def test_a_file_is_kept_until_it_is_renamed(filepath, monkeypatch):
    replace = os.replace

    def late(*paths):
        atomic._remove_leftovers(filepath)  # as another save would
        replace(*paths)

    monkeypatch.setattr(os, "replace", late)
    savers.save(filepath, 2)
    assert savers.load(filepath) == (0, 2)


def test_a_file_that_is_removed_before_it_is_locked(filepath, monkeypatch):
    lock, removed = atomic._lock, []

    def late(path, file):
        if not removed:
            removed.append(path)
            path.unlink()
        return lock(path, file)

    monkeypatch.setattr(atomic, "_lock", late)
    savers.save(filepath, 2)
    assert removed
    assert savers.load(filepath) == (0, 2)
    assert os.listdir(filepath.parent) == ["model.keras"]


@posix
def test_without_locks_files_are_saved_and_leftovers_kept(filepath, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    leftover = leave(filepath)
    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    savers.save(filepath, 2)
    assert savers.load(filepath) == (0, 2)
    assert leftovers(filepath) == [leftover]


def test_two_processes_save_to_one_path(filepath, start):
    saving = {n: start(savers.save_again_and_again, filepath, saver=n) for n in (1, 2)}
    for _, reports in saving.values():
        await_report(reports)
    seen = collections.Counter()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        saver, _ = savers.load(filepath)
        seen[saver] += 1
        assert len(leftovers(filepath)) <= 2
    assert all(process.is_alive() for process, _ in saving.values())
    assert set(seen) == {1, 2}
    assert all(killed(*one) > 5 for one in saving.values())
    savers.save(filepath, 1)
    assert os.listdir(filepath.parent) == ["model.keras"]


# Errors


@keras.saving.register_keras_serializable("tiedio_tests")
class Failing(keras.layers.Dense):
    def save_own_variables(self, store):
        raise RuntimeError("no luck")


def assert_untouched(filepath):
    assert savers.load(filepath) == (0, 1)
    assert os.listdir(filepath.parent) == ["model.keras"]


def test_an_exception_in_a_layer_leaves_the_old_file(filepath):
    with pytest.raises(RuntimeError, match="no luck"):
        tiedio.save_tied(keras.Sequential([keras.Input((2,)), Failing(2)]), filepath)
    assert_untouched(filepath)


def test_an_exception_in_the_middle_of_the_write_leaves_the_old_file(filepath):
    with pytest.raises(KeyboardInterrupt), atomic.replacing(filepath) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert_untouched(filepath)


@posix
@pytest.mark.parametrize("limit", [0, 5000, 1 << 21, (1 << 22) + 4096, 1 << 22])
def test_a_limit_of_the_file_size_leaves_the_old_file(filepath, limit):
    import resource

    model = large()
    # On its first use, `tempfile` tries folders by writing to them, which fails for another reason.
    tempfile.gettempdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError) as error:
            tiedio.save_tied(model, filepath)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert_untouched(filepath)
    tiedio.save_tied(model, filepath)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    options = ["-t", "tmpfs", "-o", "size=2m", "tiedio", disk]
    if not mount or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("mounting a disk takes root on Linux")
    yield disk
    subprocess.run([unmount, disk], check=True)


def dense(floats):
    return keras.Sequential([keras.Input((1,)), keras.layers.Dense(floats, use_bias=False)])


def test_a_full_disk_leaves_the_old_file(small_disk):
    filepath = small_disk / "model.keras"
    tiedio.save_tied(dense(10), filepath)
    before = filepath.read_bytes()
    for floats in (1 << 19, 1 << 20):
        with pytest.raises(OSError) as error:
            tiedio.save_tied(dense(floats), filepath)
        assert error.value.errno == errno.ENOSPC
        assert filepath.read_bytes() == before
        assert os.listdir(small_disk) == ["model.keras"]
    tiedio.save_tied(dense(100_000), filepath)
    assert tiedio.load_tied(filepath).count_params() == 100_000


def test_a_leftover_makes_room_for_the_next_save(small_disk, start):
    filepath = small_disk / "model.keras"
    process, _ = start(savers.die_at, "writing", filepath, reports=False)
    process.join(PATIENCE)
    (leftover,) = leftovers(filepath)
    assert leftover.stat().st_size >= 1 << 20
    tiedio.save_tied(dense(380_000), filepath)  # 1.5 MB
    assert os.listdir(small_disk) == ["model.keras"]


# Flushing


def small():
    return scenarios.controls.equal_but_untied()


@pytest.mark.parametrize("durable", [True, False])
def test_the_new_file_is_flushed_before_it_replaces_the_old(filepath, monkeypatch, durable):
    calls = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        status = os.fstat(descriptor)
        calls.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    tiedio.save_tied(small(), filepath, durable=durable)
    size = filepath.stat().st_size
    assert calls == ([size, "rename", "folder"] if durable else ["rename"])


def failing_fsync(monkeypatch, is_kind, number):
    fsync = os.fsync

    def fail(descriptor):
        if is_kind(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)


def test_a_file_that_cannot_be_flushed_leaves_the_old_one(filepath, monkeypatch):
    failing_fsync(monkeypatch, stat.S_ISREG, errno.EIO)
    with pytest.raises(OSError) as error:
        savers.save(filepath, 2)
    assert error.value.errno == errno.EIO
    assert_untouched(filepath)


@posix
def test_a_folder_that_cannot_be_flushed_is_no_error(filepath, monkeypatch):
    failing_fsync(monkeypatch, stat.S_ISDIR, errno.EINVAL)
    savers.save(filepath, 2)
    assert savers.load(filepath) == (0, 2)


@posix
def test_a_folder_that_fails_to_be_flushed_is_an_error(filepath, monkeypatch):
    failing_fsync(monkeypatch, stat.S_ISDIR, errno.EIO)
    with pytest.raises(OSError) as error:
        savers.save(filepath, 2)
    assert error.value.errno == errno.EIO
    assert savers.load(filepath) == (0, 2)


# As `open(filepath, "w")`


@pytest.fixture
def folder():
    """A folder of `nobody`, with a saved file."""
    with tempfile.TemporaryDirectory() as folder:
        filepath = Path(folder) / "model.keras"
        savers.save(filepath, 1)  # as root: `nobody` may not be able to read what is imported
        if os.geteuid() == 0:
            for path in (folder, filepath):
                os.chown(path, NOBODY, -1)
        yield Path(folder)
        os.chmod(folder, 0o700)


@posix
def test_an_unwritable_folder_leaves_the_old_file(folder):
    folder.chmod(0o500)
    with as_nobody():
        with pytest.raises(PermissionError):
            (folder / "other").write_text("")
        with pytest.raises(PermissionError) as error:
            savers.save(folder / "model.keras", 2)
    assert error.value.filename.startswith(str(folder / ".model.keras."))
    assert_untouched(folder / "model.keras")


@posix
def test_an_unreadable_folder_is_saved_to(folder):
    folder.chmod(0o300)
    with as_nobody():
        with pytest.raises(PermissionError):
            os.listdir(folder)
        savers.save(folder / "model.keras", 2)
    folder.chmod(0o700)
    assert savers.load(folder / "model.keras") == (0, 2)


@posix
def test_a_read_only_file_is_refused(folder):
    filepath = folder / "model.keras"
    filepath.chmod(0o444)
    with as_nobody():
        with pytest.raises(PermissionError):
            filepath.write_text("")
        with pytest.raises(PermissionError) as error:
            savers.save(filepath, 2)
    assert error.value.filename == str(filepath)
    assert_untouched(filepath)


@posix
def test_a_file_that_may_only_be_written_is_replaced(folder):
    filepath = folder / "model.keras"
    filepath.chmod(0o200)
    with as_nobody():
        savers.save(filepath, 2)
    assert stat.S_IMODE(filepath.stat().st_mode) == 0o200
    filepath.chmod(0o600)
    assert savers.load(filepath) == (0, 2)


def test_permissions_and_symbolic_links_are_kept(filepath):
    link = filepath.with_name("link.keras")
    link.symlink_to(filepath)
    filepath.chmod(0o640)
    before = filepath.stat().st_ino
    tiedio.save_tied(small(), link)
    assert link.is_symlink()
    assert filepath.stat().st_ino != before
    assert stat.S_IMODE(filepath.stat().st_mode) == 0o640


@posix
def test_a_private_file_is_private_from_the_first_byte(filepath):
    filepath.chmod(0o600)
    with atomic.replacing(filepath):
        (partial,) = leftovers(filepath)
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600


@posix
def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    other = tmp_path / "plain"
    before = os.umask(0o027)
    try:
        other.write_text("")
        savers.save(tmp_path / "new.keras", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "new.keras").stat().st_mode == other.stat().st_mode
    assert stat.S_IMODE(other.stat().st_mode) == 0o640


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="takes root")
def test_the_owner_is_kept(filepath):
    os.chown(filepath, NOBODY, NOBODY - 1)
    filepath.chmod(0o4755)
    savers.save(filepath, 2)
    status = filepath.stat()
    assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY - 1)
    assert stat.S_IMODE(status.st_mode) == 0o4755


@posix
def test_what_a_dangling_link_points_to_is_made(tmp_path):
    link = tmp_path / "link.keras"
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to("elsewhere/model.keras")
    savers.save(link, 1)
    assert link.is_symlink()
    assert savers.load(tmp_path / "elsewhere" / "model.keras") == (0, 1)


@posix
@pytest.mark.parametrize("name", ["folder", "loop", "nowhere/model", "n" * 300])
def test_what_open_refuses(tmp_path, name):
    (tmp_path / "folder.keras").mkdir()
    (tmp_path / "loop.keras").symlink_to("loop.keras")
    target = tmp_path / f"{name}.keras"
    with pytest.raises(OSError) as expected:
        target.write_text("")
    with pytest.raises(OSError) as error:
        savers.save(target, 1)
    assert isinstance(error.value, type(expected.value))
    assert error.value.errno == expected.value.errno
    assert name != "nowhere/model" or error.value.filename == str(target)
    assert sorted(os.listdir(tmp_path)) == ["folder.keras", "loop.keras"]


@posix
def test_what_is_no_file_is_written_to(tmp_path):
    pipe = tmp_path / "pipe.keras"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    with atomic.replacing(pipe) as file:
        file.write(b"all of it")
    reader.join(PATIENCE)
    assert received == [b"all of it"]
    assert pipe.is_fifo()
