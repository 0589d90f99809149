"""Models on several devices: tied variables are loaded onto these, and training resumes."""

import socket
import subprocess
import sys
from pathlib import Path

import keras
import pytest

pytestmark = [
    pytest.mark.orbax,
    pytest.mark.skipif(
        keras.backend.backend() == "torch", reason="Keras distributes no torch models"
    ),
]
on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="TensorFlow has no layouts")


def start(*arguments):
    script = Path(__file__).with_name("distributed.py")
    return subprocess.Popen([sys.executable, script, *map(str, arguments)])


def run(*arguments):
    assert start(*arguments).wait() == 0


def test_training_on_several_devices_resumes(tmp_path):
    run("both", tmp_path, 4, "columns")


@on_jax
def test_other_devices_and_layouts(tmp_path):
    run("save", tmp_path, 4, "columns")
    run("load", tmp_path, 4, "rows")
    run("load", tmp_path, 2, "data")
    run("load", tmp_path, 1, "none")


@on_jax
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start("processes", tmp_path, 2, "columns", number, port) for number in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
