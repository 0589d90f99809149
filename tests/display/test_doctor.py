"""What `doctor` says of the process that asks."""

import subprocess
import sys

import keras

import tiedio


def last_line(capsys):
    tiedio.doctor()
    return capsys.readouterr().out.splitlines()[-1]


def test_it_says_whether_keras_is_patched(capsys):
    process = f"this process      keras {keras.__version__} on {keras.config.backend()}, "
    assert last_line(capsys) == process + "not patched"
    with tiedio.patch():
        assert last_line(capsys) == process + "patched"
    with tiedio.hooks.patching.routed():  # as callbacks do for themselves
        assert last_line(capsys) == process + "not patched"


def test_it_imports_no_keras():
    code = "import tiedio; tiedio.doctor()"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "this process      without Keras"
