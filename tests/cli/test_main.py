"""The command line: what it prints, and its exit codes."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sample_files
from checkout import FIXTURES, ROOT
from click.testing import CliRunner

from tiedio.cli.main import main
from tiedio.tools.comparison import diff
from tiedio.tools.inspection import inspect

TIE = "encoder/kernel = decoder/kernel"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return sample_files.write(tmp_path_factory.mktemp("files"))


@pytest.fixture
def folder(samples, tmp_path, monkeypatch):
    """A folder of its own, with the files."""
    shutil.copytree(samples, tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")
    return tmp_path / "files"


def run(*arguments, code=0):
    """Runs a command; returns what it prints, and its errors."""
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stdout, result.stderr


def read(*arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code)[0])


def cells(printed):
    """Returns the cells of a table; a row that is folded has several lines."""
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


def test_inspect(folder):
    printed, _ = run("inspect", "tied.keras")
    assert printed.startswith("tied.keras: zip archive of a whole model\nWritten by Keras 3.")
    assert "record of version 1\nVariables: 4; tie groups: 1\nOptimizer: Adam\n" in printed
    assert "sharing saves 256 bytes, equal copies waste 0 bytes" in printed
    assert cells(printed) == [
        ["encoder/kernel =", "(8, 8)", "256 bytes", "yes", "record,"],
        ["decoder/kernel", "float32", "", "", "hard links"],
    ]
    printed, _ = run("inspect", "lost.keras")
    assert "sharing saves 0 bytes, equal copies waste 256 bytes" in printed
    assert cells(printed) == [
        ["encoder/kernel =", "(8, 8)", "256 bytes", "yes", "equal contents"],
        ["decoder/kernel", "float32", "", "", ""],
    ]
    assert read("inspect", "lost.keras")["bytes_wasted"] == 256


def test_plan(folder):
    printed, _ = run("plan", "unsure.keras", code=3)
    assert cells(printed)[0][0] == TIE
    assert cells(printed)[0][-1] == "--accept contents"
    (row,) = cells(run("plan", "lost.keras")[0])
    assert row[1] == "equal contents, and 1 fewer in the optimizer's state"
    assert "needs" not in run("plan", "tied.keras")[0]
    assert "There is nothing to tie" in run("plan", "apart.keras")[0]
    found = read("plan", "unsure.keras", code=3)
    assert found["proposals"][0]["owner"] == "encoder/kernel"
    assert os.listdir() == os.listdir(folder)


def test_ties_that_are_given(folder):
    printed, _ = run("plan", "apart.keras", "--tie", "decoder/kernel=encoder/kernel", code=3)
    (row,) = cells(printed)
    assert (row[0], row[-1]) == (TIE, "--reconcile owner")
    assert float(row[3]) > float(row[4]) > 0
    for content in ({"decoder/kernel": "encoder/kernel"}, ["decoder/kernel=encoder/kernel"]):
        Path("ties.json").write_text(json.dumps(content))
        assert run("plan", "apart.keras", "--ties", "ties.json", code=3)[0] == printed


def test_a_config_that_is_given(folder):
    with sample_files.opened(Path("lost.keras")) as members:
        Path("config.json").write_bytes(members.read("config.json"))
    assert cells(run("plan", "lost.weights.h5", code=3)[0])[0][0] == "encoder/0 = decoder/0"
    printed, _ = run("plan", "lost.weights.h5", "--config", "config.json")
    assert cells(printed)[0][0] == TIE


@pytest.mark.parametrize(
    ("option", "content"),
    [("--ties", "no json"), ("--ties", "3"), ("--ties", "[1]"), ("--config", "[]")],
)
def test_files_that_are_no_such_option(folder, option, content):
    Path("option.json").write_text(content)
    assert "`option.json`" in run("plan", "lost.keras", option, "option.json", code=2)[1]


def test_migrate(folder):
    printed, said = run("migrate", "unsure.keras", "new.keras", code=3)
    assert cells(printed)[0][-1] == "--accept contents"
    assert "--accept contents" in said
    assert not os.path.exists("new.keras")
    printed, _ = run("migrate", "unsure.keras", "new.keras", "--accept", "contents")
    assert printed.endswith("Wrote new.keras\n")
    assert diff("new.keras", "tied.keras").is_equal
    _, said = run("migrate", "unsure.keras", "new.keras", "--accept", "none", code=3)
    assert "--overwrite" in said
    done = read("migrate", "unsure.keras", "new.keras", "--accept", "none", "--overwrite")
    assert done["target"] == "new.keras"
    assert not diff("new.keras", "tied.keras").is_equal


def test_migrate_what_has_diverged(folder):
    options = ["migrate", "apart.keras", "new.keras", "--tie", "decoder=encoder"]
    assert "--reconcile owner" in run(*options, code=3)[1]
    printed, _ = run(*options, "--reconcile", "mean")
    assert "--reconcile" not in printed  # which needs no other one now
    assert [group.names for group in inspect("new.keras").tie_groups] == [
        ("encoder/kernel", "decoder/kernel"),
        ("encoder/bias", "decoder/bias"),
    ]
    assert "'median' is not one of" in run(*options, "--reconcile", "median", code=2)[1]


def test_copies_that_differ_by_no_number_are_not_made_one(folder):
    def spoil(file):
        file["layers/dense_1/vars/0"][0, 0] = float("nan")

    sample_files.edited(folder / "lost.keras", folder / "nan.keras", spoil)
    options = ["--tie", "decoder/kernel=encoder/kernel"]
    assert "--reconcile owner" in run("migrate", "nan.keras", "new.keras", *options, code=3)[1]
    found = read("plan", "nan.keras", *options, code=3)
    assert found["proposals"][0]["largest_difference"] is None


def test_a_dry_run_says_what_is_needed(folder):
    before = os.listdir()
    printed, said = run("migrate", "unsure.keras", "new.keras", "--dry-run", code=3)
    assert TIE in printed
    assert "--accept contents" in said
    printed, _ = run("migrate", "unsure.keras", "new.keras", "--dry-run", "--accept", "contents")
    assert printed.endswith("Would write new.keras\n")
    _, said = run("migrate", "tied.keras", "tied.keras", "--dry-run", "--overwrite", code=1)
    assert "`tied.keras` is the file that is migrated." in said
    assert os.listdir() == before


def test_weights_do_not_replace_others_by_another_ending(folder):
    shutil.copy("lost.weights.h5", "new.weights.h5")
    _, said = run("migrate", "lost.weights.h5", "new.keras", "--accept", "none", code=3)
    assert "`new.weights.h5` exists already." in said


def test_verify(folder):
    assert run("verify", "tied.keras")[0] == (
        "tied.keras: 11 tensors agree with the digests of its record.\n"
    )
    assert "agree with the archive's checksum" in run("verify", "lost.keras")[0]
    assert "nothing to verify them against" in run("verify", "lost.weights.h5", code=1)[0]
    kernel = sample_files.values(folder / "tied.keras", "layers/dense/vars/0")
    sample_files.flipped(folder / "tied.weights.h5", folder / "flipped.h5", kernel)
    printed, _ = run("verify", "flipped.h5", code=1)
    assert printed == (
        "layers/dense/vars/0: not the values that were saved\n"
        "layers/dense_1/vars/0: not the values that were saved\n"
        "flipped.h5 is not as it was saved. Problems: 2\n"
    )
    assert read("verify", "flipped.h5", code=1)["is_verified"] is False


def test_diff(folder):
    assert run("diff", "tied.keras", "folder")[0] == "4 variables and all ties are equal.\n"
    printed, _ = run("diff", "tied.keras", "apart.keras", code=1)
    assert printed.startswith(f"Tied only in tied.keras: {TIE}\n")
    assert [row[0] for row in cells(printed)] == ["decoder/kernel"]
    assert printed.endswith("1 of 4 variables differ.\n")
    assert read("diff", "tied.keras", "apart.keras", code=1)["is_equal"] is False


def test_export(folder):
    assert run("export", "tied.keras", "a.safetensors")[0] == (
        "Wrote a.safetensors. Tensors: 11; aliases: 1\n"
    )
    assert "--overwrite" in run("export", "tied.keras", "a.safetensors", code=1)[1]
    assert read("export", "a.safetensors", "b.keras")["aliases"] == {
        "decoder/kernel": "encoder/kernel"
    }
    assert run("diff", "tied.keras", "b.keras")
    assert "one path ending in" in run("export", "tied.keras", "b.h5", code=1)[1]


def test_a_missing_package_is_an_error_of_usage(folder, monkeypatch):
    run("export", "tied.keras", "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    _, said = run("export", "a.safetensors", "b.keras", code=2)
    assert "pip install 'tiedio[safetensors]'" in said


def test_a_file_that_is_to_go_nowhere():
    assert "Missing argument 'DST'." in run("migrate", "tied.keras", code=2)[1]


COMMANDS = {
    "inspect": ["inspect", "{}"],
    "plan": ["plan", "{}"],
    "migrate": ["migrate", "{}", "out.keras"],
    "verify": ["verify", "{}"],
    "diff": ["diff", "{}", "{}"],
    "export": ["export", "{}", "out.safetensors"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("kind", ["nothing", "text", "empty", "truncated", "HDF5", "record"])
def test_hostile_files(folder, command, kind):
    file = Path("hostile.keras")
    if kind == "text":
        file.write_text("no model")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "truncated":
        shutil.copy(FIXTURES / "truncated.keras", file)
    elif kind == "HDF5":
        file.write_bytes(Path("tied.weights.h5").read_bytes()[:3000])
    elif kind == "record":
        with sample_files.opened(Path("tied.keras")) as members:
            metadata = json.loads(members.read("metadata.json"))
            metadata["tiedio"]["tie_groups"] = [{"owner": 3}]
            kept = {name: members.read(name) for name in members.namelist()}
        kept["metadata.json"] = json.dumps(metadata).encode()
        sample_files.zipped(file, kept)
    before = sorted(os.listdir())
    printed, said = run(*(one.format(file) for one in command), code=1)
    assert printed == ""
    assert said.startswith("Error: ")
    assert said.count("\n") == 3
    assert sorted(os.listdir()) == before


def test_names_that_are_commands_to_a_terminal(folder):
    with sample_files.opened(Path("tied.keras")) as members:
        kept = {name: members.read(name) for name in members.namelist()}
    kept["config.json"] = kept["config.json"].replace(b'"encoder"', b'"\\u001b[2Jencoder"')
    sample_files.zipped(Path("strange.keras"), kept)
    printed, _ = run("inspect", "strange.keras")
    assert "\x1b" not in printed
    assert "\\x1b[2Jencoder/kernel" in printed
    assert "\x1b" not in run("inspect", "\x1b[2J", code=1)[1]


@pytest.mark.parametrize("terminal", [True, False])
def test_names_are_never_cut_off(tmp_path, terminal):
    names = [f"layers/{'a_long_name_' * 8}{n}/vars/0" for n in range(2)]
    array = range(12)
    file = sample_files.weights(tmp_path / "long.h5", {names[0]: array}, {names[1]: names[0]})
    environment = {**os.environ, "COLUMNS": "60"}
    if terminal:
        environment |= {"FORCE_COLOR": "1", "NO_COLOR": ""}
    printed = tiedio("inspect", file, env=environment).stdout
    printed = re.sub(r"\x1b\[[\d;]*m", "", printed)
    assert ("│" in printed) != terminal  # where a name has no room, there is no table
    for number in range(2):
        assert re.search(rf"(^|│ ){'a_long_name_' * 8}{number}/0", printed, flags=re.MULTILINE)


@pytest.mark.parametrize("command", ["inspect", "plan", "verify", "diff"])
def test_files_are_read_without_keras(samples, command):
    files = [samples / "tied.keras"] * (2 if command == "diff" else 1)
    result = tiedio(command, *files, options=["-X", "importtime"])
    assert result.returncode == 0
    loaded = set(re.findall(r"\| +([\w.]+)$", result.stderr, flags=re.MULTILINE))
    assert "h5py" in loaded
    assert loaded.isdisjoint({"keras", "tensorflow", "safetensors"})


@pytest.mark.slow
def test_what_tensorflow_reads_is_read_without_its_log():
    quiet = {"TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"}
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    result = tiedio("inspect", FIXTURES / "tf_2_15" / "two_paddings_ckpt", env=environment)
    assert (result.returncode, result.stderr) == (0, "")


def test_help_needs_no_library():
    result = tiedio("--help", options=["-X", "importtime"])
    loaded = set(re.findall(r"\| +([\w.]+)$", result.stderr, flags=re.MULTILINE))
    assert "click" in loaded
    assert loaded.isdisjoint({"h5py", "numpy", "rich", "keras"})


def test_exit_codes_are_in_the_help():
    printed, _ = run("--help")
    for code in (0, 1, 2, 3, 130):
        assert re.search(rf"^    {code} +\w", printed, flags=re.MULTILINE)
    for command in ((), *([name] for name in main.commands)):
        assert run(*command, "-h") == run(*command, "--help")


def test_whoever_reads_may_have_enough(samples):
    command = f"{sys.executable} -m tiedio inspect {samples / 'tied.keras'} | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert "Traceback" not in result.stderr
    assert result.stdout.startswith(str(samples))


def tiedio(*arguments, options=(), **others):
    """Runs a command in a process of its own."""
    command = [sys.executable, *options, "-m", "tiedio", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **others)


def test_version_without_keras():
    code = "import sys, tiedio.cli; print('keras' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout == "False\n"
    shown = tiedio("--version").stdout
    assert shown == f"tiedio, version {importlib.metadata.version('tiedio')}\n"


def test_the_version_is_one():
    import tiedio

    assert tiedio.__version__ == importlib.metadata.version("tiedio")


def test_doctor_says_what_is_installed(monkeypatch):
    printed, _ = run("doctor")
    assert f"keras             {importlib.metadata.version('keras')}, tested\n" in printed
    assert read("doctor")["is_fine"]
    monkeypatch.setenv("KERAS_BACKEND", "none")
    printed, _ = run("doctor", code=1)
    assert "backend           none, by KERAS_BACKEND, which is none that tiedio knows" in printed
    assert not read("doctor", code=1)["is_fine"]
    said = run("doctor", "model.keras", code=2)[1]
    assert "`tiedio verify FILE`" in said and "`tiedio inspect FILE`" in said


def test_the_demo_says_what_to_install(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['sklearn'] = None\n"
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'sklearn' else find(name, *a)\n"
    )
    result = tiedio("demo", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert result.returncode == 2
    assert "scikit-learn is missing: pip install 'tiedio[demo]'" in result.stderr


@pytest.mark.slow
def test_the_demo_shows_what_readme_shows():
    """And nothing else, whatever Keras and its backend log."""
    result = tiedio("demo", env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"})
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["Training", "Trained", "Loading", "Loading"]
    readme = (ROOT / "README.md").read_text().split("```text\n")[1].split("```")[0]
    assert varied(lines[4:]) == varied(readme.splitlines())


def varied(table):
    """Returns a table without that in which machines differ: bytes, and how far values drift."""
    return [re.sub(r"[\d,]+ (?=bytes)|0\.\d+", "", line).split() for line in table]


@pytest.mark.slow
def test_the_demo_fails_when_tiedio_does(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import tiedio.model.renewal\ntiedio.model.renewal.apply = lambda *_: None\n"
    )
    result = tiedio("demo", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
