"""What is done with a hostile file costs no more than it may: each time in a process with limits.

Run as `python bounded.py`. It imports what is needed once, and answers each line of its input,
`[entry, filepath]`, with what came of it in a fork: a word, a text, seconds of a processor, and
bytes of memory beyond those that were taken before.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
from checkout import start

import tiedio
from tiedio import files

SECONDS, PER_BYTE = 5, 2e-6  # of a processor: a small honest file's, and for each byte
MEMORY = 300 << 20  # bytes, beside those of the file and the model
ADDRESS_SPACE = 6 << 30  # bytes, so that no other process suffers


def model():
    """The model into which weights are loaded: two layers of three units."""
    layers = [keras.layers.Dense(3), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((3,)), *layers])


def _migrate(filepath):
    with tempfile.TemporaryDirectory() as folder:
        files.migrate(filepath, f"{folder}/migrated{'.keras' * filepath.endswith('.keras')}")


def _export(filepath):
    with tempfile.TemporaryDirectory() as folder:
        files.export(filepath, f"{folder}/exported.safetensors")


ENTRIES = {
    "load_tied": tiedio.load_tied,
    "load_tied_weights": lambda filepath: tiedio.load_tied_weights(model(), filepath),
    "inspect": lambda filepath: str(files.inspect(filepath)),
    "verify": files.verify,
    "plan": files.plan,
    "migrate": _migrate,
    "diff": lambda filepath: files.diff(filepath, filepath),
    "export": _export,
}


def _answer(entry, filepath):
    """Does it in this process, which is then over."""
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + ADDRESS_SPACE,) * 2)
    begun = time.process_time()
    try:
        ENTRIES[entry](filepath)
        came, text = "fine", ""
    except tiedio.TiedioError as error:
        came, text = "refused", str(error)
    except BaseException:
        came, text = "raised", traceback.format_exc()
    seconds = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return came, text[-2000:], seconds, peak - before


class Bounded:
    """A process that does things with files; `cost` asks it."""

    def __init__(self):
        self._process = start(
            sys.modules[__name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def end(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def check(self, entry, filepath, model_bytes=0):
        """Returns what came of it, and what is said; fails if it cost too much."""
        size = sum(path.stat().st_size for path in (Path(filepath), *Path(filepath).rglob("*")))
        seconds = SECONDS + PER_BYTE * size
        print(json.dumps([entry, str(filepath), seconds]), file=self._process.stdin, flush=True)
        came, text, took, memory = json.loads(self._process.stdout.readline())
        told = f"{entry} of {size} bytes: {came}, {took:.1f} s, {memory >> 20} MB; {text[-1500:]}"
        assert came in ("fine", "refused"), told
        assert memory < size + model_bytes + MEMORY, told
        assert took < seconds, told
        return came, text


def main():
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        entry, filepath, seconds = json.loads(line)
        receiving, sending = os.pipe()
        if not (child := os.fork()):
            os.close(receiving)
            signal.alarm(4 * int(seconds + 1))  # a processor may be busy with something else
            os.write(sending, json.dumps(_answer(entry, filepath)).encode())
            os._exit(0)
        os.close(sending)
        with open(receiving, "rb") as answer:
            told = answer.read()
        _, status = os.waitpid(child, 0)
        died = json.dumps(["died", f"by signal {os.WTERMSIG(status)}", seconds, 0])
        print(told.decode() or died, flush=True)


if __name__ == "__main__":
    main()
