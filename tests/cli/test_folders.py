"""The command line on many files: what it says of them, how it ends, and what it leaves alone."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sample_files
from click.testing import CliRunner

from tiedio.cli.main import main
from tiedio.files import many
from tiedio.migration import planning
from tiedio.tools.comparison import diff

LOST, UNSURE, APART = "lost.keras", "unsure.keras", "apart.keras"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return sample_files.write(tmp_path_factory.mktemp("files"))


@pytest.fixture
def old(samples, tmp_path, monkeypatch):
    """A folder `old` of one file of each state, in the working directory."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("old")
    for name in (LOST, UNSURE, APART):
        shutil.copy(samples / name, "old")
    Path("old/broken.keras").write_text("no model")
    return tmp_path / "old"


def run(*arguments, code=0, width=200):
    """Runs a command; returns what it prints, and its errors."""
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": str(width)})
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stdout, result.stderr


def read(*arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code)[0])


def rows(printed):
    lines = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def states(*arguments, code):
    return {Path(one["filepath"]).name: one["state"] for one in read(*arguments, code=code)}


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


def test_every_format_is_found_in_a_folder(samples, old):
    os.mkdir("old/deep")
    shutil.copy(samples / "tied.h5", "old/deep/TIED.H5")
    shutil.copy(samples / "lost.weights.h5", "old")
    shutil.copytree(samples / "folder", "old/deep/folder")
    for path in samples.glob("tied*.weights.*"):
        shutil.copy(path, "old/deep")
    for name in ("notes.txt", "a.pt", "b.pt", ".hidden.h5", "._lost.keras", "README"):
        Path("old", name).write_text("no model either")
    os.symlink("../.git/annex/objects/x/y.h5", "old/annexed.h5")
    printed, said = run("migrate", "old", "new", "--accept", "contents", code=1)
    assert {name: cells[:3] for name, cells in rows(printed).items()} == {
        "old/apart.keras": ["fine", "new/apart.keras", "0"],
        "old/deep/TIED.H5": ["fine", "new/deep/TIED.keras", "1"],
        "old/deep/folder": ["fine", "new/deep/folder.keras", "1"],
        "old/deep/tied.weights.h5": ["fine", "new/deep/tied.weights.h5", "1"],
        "old/deep/tied.weights.json": ["fine", "new/deep/tied_json.weights.h5", "1"],
        "old/lost.keras": ["fine", "new/lost.keras", "1"],
        "old/lost.weights.h5": ["fine", "new/lost.weights.h5", "1"],
        "old/unsure.keras": ["fine", "new/unsure.keras", "1"],
    }
    assert not said  # why a file failed is a part of the report
    assert "  old/broken.keras: is not a Keras file. Expected:" in printed
    assert "1 file failed. Fetch the file that it stands for: `git annex get`.\n" in printed
    told = "10 files. Migrated with ties: 7; with nothing to tie: 1; failed: 2\n"
    left = "Not looked at, for what their names end in: 2 .pt, 1 .txt, 1 without ending."
    assert told + left in printed
    assert diff("new/lost.keras", samples / "tied.keras").is_equal


def test_a_second_run_does_what_is_left(old):
    planned, _ = run("migrate", "old", "new", "--dry-run", code=1)
    assert not os.path.exists("new")
    told = ["needs an option", "", "1", "256 bytes", "--accept contents"]
    assert rows(planned)["old/unsure.keras"] == told
    totals = "4 files. {} with ties: 1; with nothing to tie: 1; needs an option: 1; failed: 1\n"
    assert totals.format("Would be migrated") in planned
    assert "would write" in planned
    printed, _ = run("migrate", "old", "new", code=1)
    told = re.search(
        r"\n1 file needs an option\. Pass `--accept contents` .*\n  old/unsure\.keras: Cannot .*"
        r"\n1 file failed\. Check the path; .*\n  old/broken\.keras: is not .*\n",
        printed,
    )
    assert told[0] in planned
    assert (
        "\nFor what is left, run it again with `--skip-existing` and `--accept contents`.\n"
        in printed
    )
    assert totals.format("Migrated") in printed
    assert "optimizer. Files: old/apart.keras, old/lost.keras" in printed
    assert "migrate old/apart" not in printed  # its copies may be meant
    before = contents("new")
    assert len(before) == 2
    states_then = states("migrate", "old", "new", code=1)
    assert states_then["lost.keras"] == "needs an option"  # one that says what is to be replaced
    for command in ["plan", "old"], ["migrate", "old", "new"]:
        needs = {Path(one["filepath"]).name: one["needs"] for one in read(*command, code=1)}
        there = ["--overwrite"] if "new" in command else []
        assert needs == {
            LOST: there,
            APART: there,
            UNSURE: ["--accept contents"],
            "broken.keras": [],
        }
    again = ("migrate", "old", "new", "--skip-existing", "--accept", "contents")
    assert states(*again, code=1) == {
        LOST: "skipped",
        APART: "skipped",
        UNSURE: "fine",
        "broken.keras": "failed",
    }
    assert before.items() <= contents("new").items()
    os.remove("old/broken.keras")
    printed, _ = run(*again)
    assert printed == "3 files. Migrated with ties: 0; skipped: 3; failed: 0\n"


def test_functions_that_are_code_need_an_option(old):
    lambdas = Path(__file__).parents[2] / "fixtures" / "lambdas"
    shutil.copy(lambdas / "siamese_python_2_7.h5", "old")
    needed = "--lambda distance=MODULE:FUNCTION"
    printed, _ = run("plan", "old", code=1)
    assert rows(printed)["old/siamese_python_2_7.h5"] == ["needs an option", "0", "", needed]
    printed, _ = run("migrate", "old", "new", code=1)
    assert rows(printed)["old/siamese_python_2_7.h5"][-1] == needed


@pytest.mark.parametrize("command", ["inspect", "plan", "verify"])
def test_several_files_folders_and_patterns(command, old):
    whole = states(command, "old", code=1)
    assert whole["broken.keras"] == "failed"
    unsure = {"inspect": "read", "plan": "needs an option", "verify": "fine"}
    assert whole[UNSURE] == unsure[command]
    # The same files, each once, in the order in which they were asked for.
    given = (command, f"old/{UNSURE}", "old/*.keras", "old")
    assert states(*given, code=1) == whole
    assert next(iter(states(*given, code=1))) == UNSURE
    printed, _ = run(*given, code=1)
    assert printed.count(f"│ old/{LOST} ") == 1
    assert "failed: 1" in printed.splitlines()[-1]
    assert "old/broken.keras: is not a Keras file" in printed
    (one,) = read(command, "old/l*.keras")
    assert one["result"] == read(command, f"old/{LOST}")  # an object, of one file that is named
    assert run(command, "old/*.h5", code=1)[1].startswith("Error: There is no file of Keras at")
    assert states(command, f"old/{LOST}", "old/none.keras", code=1)["none.keras"] == "failed"


def test_exit_codes(old):
    os.remove("old/broken.keras")
    run("inspect", "old")
    run("verify", "old")
    run("plan", "old", code=3)
    run("migrate", "old", "new", code=3)
    run("migrate", f"old/{UNSURE}", "one.keras", code=3)
    printed, said = run("migrate", f"old/{UNSURE}", "one.keras", "--json", code=3)
    assert json.loads(printed)["proposals"][0]["needs"] == ["--accept contents"]
    assert said.startswith("Error: Cannot tell whether these were tied")
    run("migrate", f"old/{LOST}", "one.keras")
    run("migrate", f"old/{LOST}", "one.keras", code=3)
    printed, _ = run("migrate", f"old/{LOST}", "one.keras", "--skip-existing")
    assert printed == "Skipped: `one.keras` is there already.\n"
    assert read("migrate", f"old/{LOST}", "one.keras", "--skip-existing")["state"] == "skipped"


def test_what_has_nothing_to_verify_against_is_no_damage(samples, old):
    shutil.copy(samples / "lost.weights.h5", "old")
    assert states("verify", "old", code=1)["lost.weights.h5"] == "nothing to verify against"
    printed, _ = run("verify", "old", code=1)
    assert rows(printed)["old/lost.weights.h5"][0] == "nothing to verify against"
    assert printed.count("lost.weights.h5") == 1
    told = "5 files. As they were saved: 3; nothing to verify against: 1; failed: 1\n"
    assert printed.endswith(told)
    os.remove("old/broken.keras")
    run("verify", "old", code=1)  # 0 says that all are as they were saved


def test_where_one_file_goes(old):
    run("migrate", f"old/{LOST}", "there/")
    os.mkdir("here")
    run("migrate", f"old/{LOST}", "here")
    assert os.listdir("there") == os.listdir("here") == [LOST]
    run("migrate", f"old/{LOST}", f"old/{APART}", "both")
    assert sorted(os.listdir("both")) == [APART, LOST]
    for files in ("old",), (f"old/{LOST}", f"old/{APART}"):  # as when the last one is forgotten
        _, said = run("migrate", *files, "all.keras", code=1)
        assert said.startswith(
            "Error: Cannot migrate many files to `all.keras`.\nExpected: a folder"
        )
        assert not os.path.exists("all.keras")
    run("migrate", f"old/{LOST}", "unpacked")  # which Keras calls a folder
    assert "model.weights.h5" in os.listdir("unpacked")
    run("migrate", f"old/{LOST}", "unpacked", "--overwrite")
    for name in ("x.pt", "x.KERAS", "x.safetensors", "x.zip", "x.npz"):
        for options in ([], ["--dry-run"]):
            _, said = run("migrate", f"old/{LOST}", name, *options, code=1)
            assert said.startswith(f"Error: Cannot write `{name}`: nothing that is written has")
    assert not list(Path().glob("x.*"))


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize(
    ("command", "files"),
    [*((one, "old") for one in ("inspect", "plan", "verify", "migrate")), ("plan", f"old/{LOST}")],
)
def test_words_are_not_broken(files, command, width, old, monkeypatch):
    """Whatever the width: what is printed has the same words as where there is room."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    given = (command, files, *["new.keras" if files != "old" else "new"] * (command == "migrate"))
    given += ("--dry-run",) * (command == "migrate")
    code = 1 if files == "old" else 0
    wide, narrow = (run(*given, code=code, width=one)[0] for one in (1000, width))
    plain = re.sub(r"\x1b\[[\d;]*m", "", narrow)
    words = set(re.findall(r"[\w/.]+", re.sub(r"\x1b\[[\d;]*m", "", wide)))
    assert set(re.findall(r"[\w/.]+", plain)) - {""} <= words
    lines = [line for line in plain.splitlines() if not line.startswith("  tiedio ")]  # to copy
    assert re.search("(?m)^([│┃┏┡└]|  [a-z ]+: )", plain)
    assert max(map(len, lines)) <= width
    said = run("migrate", f"old/{UNSURE}", "one.keras", code=3, width=width)[1]
    assert max(map(len, said.splitlines())) <= width
    assert len(said.splitlines()) > 3


def test_a_damaged_folder_stops_nothing(old, monkeypatch):
    os.mkdir("old/closed")
    walk = os.walk

    def walk_without(folder, onerror):
        onerror(PermissionError(13, "Permission denied", "old/closed"))
        return walk(folder)

    monkeypatch.setattr(os, "walk", walk_without)
    assert states("inspect", "old", code=1)["closed"] == "failed"


def test_an_interrupt_says_what_is_left(old, monkeypatch):
    migrate = planning.migrate

    def interrupted(path, *arguments, **options):
        if path.endswith(LOST):
            raise KeyboardInterrupt
        return migrate(path, *arguments, **options)

    monkeypatch.setattr(planning, "migrate", interrupted)
    printed, said = run("migrate", "old", "new", code=130)
    assert "old/apart.keras" in printed
    assert "2 files. Migrated with ties: 0; with nothing to tie: 1; failed: 1" in printed
    assert said.endswith("the same with `--skip-existing` goes on.\nInterrupted.\n")
    _, said = run("migrate", f"old/{LOST}", "one.keras", code=130)
    assert said == "Interrupted.\n"


def tiedio(*arguments, **environment):
    """Runs a command in a process of its own; returns it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tiedio", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # What a shell starts in the background ignores Ctrl+C, and so would what that starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_only_whole_files_are_left(old):
    for number in range(120):
        shutil.copy(f"old/{LOST}", f"old/{number}.keras")
    with tiedio("migrate", "old", "new") as running:
        for _ in itertools.takewhile(lambda _: not list(Path().glob("new/*.keras")), range(60_000)):
            time.sleep(0.001)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate()
    assert running.returncode == 130, said
    assert b"Interrupted." in said
    done = os.listdir("new")
    assert 0 < len(done) < 120
    assert all(name.endswith(".keras") and not name.startswith(".") for name in done)
    assert all(one.state == "fine" for one in many.verify("new"))
    run("migrate", "old", "new", "--skip-existing", "--accept", "contents", code=1)
    assert len(os.listdir("new")) == 123


def test_pipes_locales_and_colours(old):
    with sample_files.opened(Path("old", LOST)) as members:
        kept = {name: members.read(name) for name in members.namelist()}
    kept["config.json"] = kept["config.json"].replace(b'"encoder"', '"encöder"'.encode())
    sample_files.zipped(Path("old/lösé.keras"), kept)
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    with tiedio("inspect", "old", **ascii_only) as running:
        printed, said = running.communicate()
        assert (running.returncode, b"Traceback" in said) == (1, False)
    assert printed.isascii()
    assert b"| old/lost.keras " in printed
    with tiedio("plan", "old/lösé.keras", **ascii_only) as running:
        assert b"| enc\\xf6der/kernel = decoder/kernel " in running.communicate()[0]
    with tiedio("plan", "old", FORCE_COLOR="1", NO_COLOR="1", COLUMNS="200") as running:
        printed, _ = running.communicate()
    assert b"\x1b[3" not in printed
    for number in range(400):  # more than a pipe holds
        os.symlink("broken.keras", f"old/{number}{'x' * 150}.keras")
    with tiedio("inspect", "old") as running:
        assert running.stdout.read(10)
        running.stdout.close()
        assert b"Traceback" not in running.stderr.read()


def test_shells_complete(old):
    """What the docs say of it: click makes the script, and files and options are known to it."""
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    assert 'eval "$(_TIEDIO_COMPLETE=bash_source tiedio)"' in page
    code = "from tiedio.cli.main import main; main(prog_name='tiedio')"
    for words, position, expected in (
        ("tiedio mig", 1, "plain,migrate"),
        ("tiedio inspect ol", 2, "file,ol"),
        ("tiedio migrate --skip", 2, "plain,--skip-existing"),
    ):
        said = subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "_TIEDIO_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(position),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert expected in said.stdout, said.stderr
