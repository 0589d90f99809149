"""A folder is replaced whole, or left untouched, and what else is in it is kept."""

import collections
import ctypes
import functools
import json
import os
import random
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import generations
import pytest
from checkout import start
from other_users import NOBODY, PATIENCE, as_nobody, posix

import tiedio
from tiedio.errors import MissingPackageError
from tiedio.formats import hdf5_writer
from tiedio.storage import atomic
from tiedio.storage.local import Local

MEMBERS = ["assets", "config.json", "metadata.json", "model.weights.h5"]


@pytest.fixture
def folder(tmp_path):
    """A saved folder of generation 1, in which a user put files."""
    folder = tmp_path / "model"
    generations.save_folder(folder, 1)
    (folder / "logs" / "train").mkdir(parents=True)
    (folder / "logs" / "train" / "events").write_text("events")
    (folder / "notes.txt").write_text("notes")
    (folder / "link").symlink_to("notes.txt")
    return folder


def assert_users_files(folder):
    assert sorted(os.listdir(folder)) == sorted([*MEMBERS, "logs", "notes.txt", "link"])
    assert (folder / "notes.txt").read_text() == "notes"
    assert (folder / "logs" / "train" / "events").read_text() == "events"
    assert os.readlink(folder / "link") == "notes.txt"


run = functools.partial(start, generations)


def test_a_folder_is_replaced_whole(folder):
    before = folder.stat().st_ino
    generations.save_folder(folder, 2)
    assert generations.load(folder) == 2
    assert folder.stat().st_ino != before
    assert_users_files(folder)
    assert os.listdir(folder.parent) == ["model"]


def test_a_users_file_goes_on_being_written_to(folder):
    with open(folder / "notes.txt", "a") as file:
        generations.save_folder(folder, 2)
        file.write(" and more")
    assert (folder / "notes.txt").read_text() == "notes and more"


def test_a_file_that_a_user_adds_meanwhile_is_kept(folder):
    with atomic.replacing_folder(folder, MEMBERS) as new:
        (folder / "added").write_text("added")
        (new / "config.json").write_text("{}")
    assert (folder / "added").read_text() == "added"
    assert not (folder / "metadata.json").exists()


def test_values_in_another_format_are_removed(folder):
    (folder / "model.weights.npz").write_text("")
    generations.save_folder(folder, 2)
    assert_users_files(folder)


@posix
def test_a_partial_folder_that_is_removed_before_it_is_locked(folder, monkeypatch):
    lock, removed = atomic._lock, []

    def late(partial):
        if len(removed) < 2:
            removed.append(partial)
            partial.rmdir()
        return lock(partial)

    monkeypatch.setattr(atomic, "_lock", late)
    generations.save_folder(folder, 2)
    assert len(removed) == 2
    assert generations.load(folder) == 2
    assert os.listdir(folder.parent) == ["model"]


@posix
def test_what_cannot_be_linked_is_copied(folder, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    generations.save_folder(folder, 2)
    assert_users_files(folder)


# Kills


@posix
@pytest.mark.parametrize(
    "step",
    ["writing", "flushing", "keeping what is the user's", "exchanging", "removing the old one"],
)
def test_a_kill_at_each_step(folder, step):
    assert run("die_at", step, folder).wait(PATIENCE) == -9
    assert generations.load(folder) == (2 if step == "removing the old one" else 1)
    assert_users_files(folder)
    assert len(os.listdir(folder.parent)) == 2
    generations.save_folder(folder, 3)
    assert generations.load(folder) == 3
    assert_users_files(folder)
    assert os.listdir(folder.parent) == ["model"]


@posix
def test_a_kill_between_two_renames_is_made_up_for_by_the_next_save(folder):
    assert run("die_between_renames", folder).wait(PATIENCE) == -9
    aside, partial = sorted(folder.parent.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert (aside.suffix, partial.suffix) == (".tiedio-replaced", ".tiedio-partial")
    assert (generations.load(aside), generations.load(partial)) == (1, 2)
    generations.save_folder(folder, 3)
    assert generations.load(folder) == 3
    assert_users_files(folder)
    assert os.listdir(folder.parent) == ["model"]


@posix
@pytest.mark.slow
def test_kills_at_random_moments(folder):
    moments = random.Random(1)  # noqa: S311 (to be the same each time)
    last, came = 1, collections.Counter()
    for _ in range(6):
        with run("save_again_and_again", folder, last + 1, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
            reported = [int(line) for line in process.stdout.read().split()] or [last + 1]
        last = generations.load(folder)
        assert last in (reported[-1], reported[-1] + 1)
        assert_users_files(folder)
        came[len(os.listdir(folder.parent))] += 1
    assert came[2]  # otherwise no kill came in the middle of a save
    assert set(came) <= {1, 2}
    generations.save_folder(folder, last + 1)
    assert os.listdir(folder.parent) == ["model"]


# Errors


class OtherError(Exception):
    pass


def fail(*arguments, **options):
    raise OtherError


@pytest.mark.parametrize(
    ("owner", "name"),
    [(hdf5_writer, "write"), (atomic, "_link"), (atomic, "_exchange"), (atomic, "_flush")],
)
def test_an_exception_leaves_the_old_folder(folder, monkeypatch, owner, name):
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fail)
        with pytest.raises(OtherError):
            generations.save_folder(folder, 2)
    assert generations.load(folder) == 1
    assert_users_files(folder)
    assert os.listdir(folder.parent) == ["model"]


def test_an_exception_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(OtherError), atomic.replacing_folder(tmp_path / "model", ()) as folder:
        (folder / "config.json").write_text("{}")
        fail()
    assert os.listdir(tmp_path) == []


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "model").write_text("file")
    with pytest.raises(NotADirectoryError) as error:
        generations.save_folder(tmp_path / "model", 1)
    assert error.value.filename == str(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "file"
    assert os.listdir(tmp_path) == ["model"]


@posix
@pytest.mark.parametrize("unwritable", ["model", "."])
def test_an_unwritable_folder(folder, unwritable):
    paths = [folder.parent, folder, *folder.rglob("*")]
    if os.geteuid() == 0:
        for path in paths:
            os.chown(path, NOBODY, -1, follow_symlinks=False)
    for path in folder.parent.parents:  # those of pytest are private
        if path.stat().st_uid == os.geteuid() and not path.stat().st_mode & stat.S_IXOTH:
            path.chmod(path.stat().st_mode | stat.S_IXOTH)
    (folder.parent / unwritable).chmod(0o500)
    try:
        with as_nobody(), pytest.raises(PermissionError):
            generations.save_folder(folder, 2)
    finally:
        (folder.parent / unwritable).chmod(0o700)
    assert generations.load(folder) == 1
    assert os.listdir(folder.parent) == ["model"]


# Two saves at once


def test_saves_of_one_folder_keep_apart(folder):
    with atomic.replacing_folder(folder, MEMBERS) as first:
        (first / "config.json").write_text("first")
        with atomic.replacing_folder(folder, MEMBERS) as second:
            (second / "config.json").write_text("second")
        assert (folder / "config.json").read_text() == "second"
    assert (folder / "config.json").read_text() == "first"
    assert os.listdir(folder.parent) == ["model"]


def test_two_saves_of_a_new_folder(tmp_path):
    with atomic.replacing_folder(tmp_path / "model", MEMBERS) as first:
        (first / "config.json").write_text("first")
        with atomic.replacing_folder(tmp_path / "model", MEMBERS) as second:
            (second / "config.json").write_text("second")
    assert (tmp_path / "model" / "config.json").read_text() == "first"
    assert os.listdir(tmp_path) == ["model"]


@posix
def test_two_processes_save_to_one_folder(folder):
    savers = [
        run("save_again_and_again", folder, first, stdout=subprocess.PIPE) for first in (10, 1000)
    ]
    try:
        for saver in savers:
            saver.stdout.readline()
        seen = collections.Counter()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            seen[json.loads((folder / "config.json").read_text())["generation"] >= 1000] += 1
            assert (folder / "notes.txt").read_text() == "notes"
            assert (folder / "logs" / "train" / "events").read_text() == "events"
        assert all(saver.poll() is None for saver in savers)
        assert seen[True]
        assert seen[False]
    finally:
        for saver in savers:
            saver.kill()
            saver.communicate()
    generations.save_folder(folder, 1)
    assert generations.load(folder) == 1
    assert_users_files(folder)
    assert os.listdir(folder.parent) == ["model"]


# Where systems differ


def library(monkeypatch, **functions):
    """Puts a C library with these functions only in the place of the system's."""
    called = []

    def named(name, function):
        return lambda *arguments: called.append(name) or function(*arguments)

    made = type("Library", (), {n: staticmethod(named(n, f)) for n, f in functions.items()})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: made)
    return called


@pytest.mark.parametrize(
    "functions",
    [{}, {"renameat2": lambda *_: -1}, {"renamex_np": lambda *_: -1}],
    ids=["none", "Linux without it", "macOS without it"],
)
def test_where_two_folders_cannot_be_exchanged(folder, monkeypatch, functions):
    called = library(monkeypatch, **functions)
    generations.save_folder(folder, 2)
    assert called == list(functions)
    assert generations.load(folder) == 2
    assert_users_files(folder)
    assert os.listdir(folder.parent) == ["model"]


def test_where_the_new_folder_cannot_be_renamed(folder, monkeypatch):
    library(monkeypatch)
    rename = Path.rename

    def refuse(self, target):
        if self.suffix == ".tiedio-partial":
            raise PermissionError
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        generations.save_folder(folder, 2)
    assert generations.load(folder) == 1
    assert_users_files(folder)
    assert os.listdir(folder.parent) == ["model"]


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_a_folder_is_there_at_every_moment(folder):
    done = threading.Event()
    looks = []

    def look():
        while not done.is_set():
            looks.append((folder / "notes.txt").exists())

    looker = threading.Thread(target=look)
    looker.start()
    for generation in range(2, 12):
        generations.save_folder(folder, generation, durable=False)
    done.set()
    looker.join()
    assert len(looks) > 100
    assert all(looks)


# What is kept


@posix
def test_permissions_are_kept_and_private_from_the_first(folder):
    folder.chmod(0o700)
    with atomic.replacing_folder(folder, MEMBERS) as new:
        assert stat.S_IMODE(new.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="takes root")
def test_the_owner_is_kept(folder):
    os.chown(folder, NOBODY, NOBODY - 1)
    generations.save_folder(folder, 2)
    assert (folder.stat().st_uid, folder.stat().st_gid) == (NOBODY, NOBODY - 1)


@posix
@pytest.mark.parametrize("there", [True, False])
def test_what_a_symbolic_link_points_to_is_replaced(folder, there):
    target = folder if there else folder.with_name("new")
    link = folder.with_name("link")
    link.symlink_to(target.name)
    generations.save_folder(link, 2)
    assert link.is_symlink()
    assert generations.load(target) == 2


def test_parents_are_made(tmp_path):
    generations.save_folder(tmp_path / "a" / "b", 1)
    assert generations.load(tmp_path / "a" / "b") == 1


@pytest.mark.parametrize("durable", [True, False])
def test_all_is_flushed_before_it_is_exchanged(folder, monkeypatch, durable):
    calls = []
    fsync, exchange = os.fsync, atomic._exchange

    def noted(descriptor):
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(
        atomic, "_exchange", lambda *paths: (calls.append("exchange"), exchange(*paths))
    )
    generations.save_folder(folder, 2, durable=durable)
    if not durable:
        assert calls == ["exchange"]
        return
    before = calls[: calls.index("exchange")]
    assert {"always", "vocabulary", "config.json", "metadata.json", "model.weights.h5"} < set(
        before
    )
    assert before[-1].endswith(".tiedio-partial")
    assert calls[-1] == folder.parent.name


def test_a_model_with_shared_variables(tmp_path):
    import scenarios

    model = scenarios.two_paddings()
    tiedio.save_tied(model, tmp_path / "model", zipped=False)
    tiedio.save_tied(model, tmp_path / "model", zipped=False)
    loaded = tiedio.load_tied(tmp_path / "model")
    assert scenarios.ties_of(loaded) == scenarios.ties_of(model) != []
    assert Local(tmp_path / "model").is_folder()


def test_a_folder_of_orbax_needs_it(tmp_path, monkeypatch):
    (tmp_path / "run" / "0" / "pytree").mkdir(parents=True)
    (tmp_path / "run" / "0" / "_CHECKPOINT_METADATA").write_text("{}")
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    for use in (tiedio.load_tied, tiedio.files.inspect, tiedio.TiedOrbaxCheckpoint):
        with pytest.raises(MissingPackageError, match=r"pip install 'tiedio\[orbax\]'"):
            use(tmp_path / "run")


@posix
def test_a_folder_on_which_somebody_holds_a_lock(folder):
    """As with `flock model python train.py`: that is no save, and may last for ever."""
    fcntl = pytest.importorskip("fcntl")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with run("save_and_load", folder) as process:
            assert process.wait(PATIENCE) == 0
    finally:
        os.close(descriptor)
    assert_users_files(folder)


def test_files_that_are_listed_while_another_save_replaces_the_folder(folder, monkeypatch):
    listed, replaced = os.listdir, []

    def late(path):
        names = listed(path)
        if path == folder and not replaced:
            replaced.append(path)
            generations.save_folder(folder, 2)
            return names[:1]  # the others were removed already
        return names

    monkeypatch.setattr(os, "listdir", late)
    generations.save_folder(folder, 3)
    assert replaced and generations.load(folder) == 3
    assert_users_files(folder)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="the system has no extended attributes")
@pytest.mark.parametrize("zipped", [True, False])
def test_extended_attributes_are_kept(folder, zipped):
    filepath = folder
    if zipped:
        filepath = folder.parent / "model.keras"
        generations.save(filepath, 1)
    try:
        os.setxattr(filepath, "user.origin", b"a note")
    except OSError:
        pytest.skip("the file system has no extended attributes")
    (generations.save if zipped else generations.save_folder)(filepath, 2)
    assert os.getxattr(filepath, "user.origin") == b"a note"
    assert generations.load(filepath) == 2


@posix
def test_other_hard_links_keep_the_old_content(folder):
    filepath, other = folder.parent / "model.keras", folder.parent / "other.keras"
    generations.save(filepath, 1)
    os.link(filepath, other)
    generations.save(filepath, 2)
    assert (generations.load(filepath), generations.load(other)) == (2, 1)
