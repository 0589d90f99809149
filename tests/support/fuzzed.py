"""Reads files whose structure was changed at random, each in a fork with limits. No Keras here.

Run as `python fuzzed.py FOLDER KIND FIRST COUNT`: changes the sample of a kind, which is in the
folder, as seeds FIRST to FIRST + COUNT say, and prints how often each outcome came, and what was
worse than an error of tiedio.
"""

import collections
import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import h5py
import numpy as np

from tiedio import TiedioError, files
from tiedio.formats import table
from tiedio.storage.locating import at

SECONDS = 10  # of a processor; nothing here takes one by itself
MEMORY = 8 << 30  # bytes of address space, beside those taken before: what reserves it uses little
WORSE = ("wrong", "raised", "died", "took too long")

# Whatever a number in a file may be, these are its worst values.
WORDS = (0, 1, 2, 7, 255, 256, 1 << 15, (1 << 16) - 1, (1 << 31) - 1, (1 << 32) - 1, 1 << 62)


def near(*marks, before=0, after=64):
    """Finds the bytes around each place where one of the marks stands."""

    def find(content):
        found = set()
        for mark in marks:
            place = content.find(mark)
            while place >= 0:
                found.update(range(max(0, place - before), min(len(content), place + after)))
                place = content.find(mark, place + 1)
        return sorted(found)

    return find


def object_headers(content):
    """Finds the bytes of HDF5 that describe its objects."""
    return near(b"\x89HDF", after=96)(content) + _headers(content, lambda one: True)


def attributes(content):
    return _headers(content, lambda one: len(one.attrs))


def _headers(content, wanted):
    begin = content.find(b"\x89HDF")
    end = content.find(b"PK\1\2", begin) if begin else len(content)
    with tempfile.NamedTemporaryFile() as file:
        file.write(content[begin:end])
        file.flush()
        places = []

        def note(_, one):
            if wanted(one):
                address = h5py.h5o.get_info(one.id).addr
                places.extend(range(begin + address, min(begin + address + 300, len(content))))

        with h5py.File(file.name) as opened:
            note("", opened)
            opened.visititems(note)
    return places


def safetensors_header(content):
    return list(range(8 + int.from_bytes(content[:8], "little")))


ORBAX = "an Orbax folder"

# The sample of each kind, and where it is changed; `None`: anywhere in any of its files.
KINDS = {
    "object headers of HDF5, in an archive": ("tied.keras", object_headers),
    "object headers of HDF5": ("tied.weights.h5", object_headers),
    "attributes of HDF5": ("lost.h5", attributes),
    "link tables of HDF5": ("tied.weights.h5", near(b"TREE", b"SNOD", b"HEAP", after=200)),
    "chunk indexes of HDF5": ("chunked.weights.h5", near(b"TREE", after=300)),
    "central directory of a zip archive": ("tied.keras", near(b"PK\1\2", b"PK\5\6", after=46)),
    "local headers of a zip archive": ("tied.keras", near(b"PK\3\4", after=60)),
    "headers of npz": ("npz.keras", near(b"\x93NUMPY", after=128)),
    "header of safetensors": ("tied.safetensors", safetensors_header),
    "index of a TensorFlow checkpoint": ("tensorflow", "model.index"),
    "JSON of shards": ("tied.weights.json", near(b"{", b'"', after=8)),
    ORBAX: ("orbax", None),
}


def change(content, spots, random):
    """Changes bytes at one to four of the spots."""
    content = bytearray(content)
    for spot in random.choice(spots, random.integers(1, 5)):
        width = int(random.choice([1, 2, 4, 8]))
        if random.random() < 0.3:
            content[spot] ^= 1 << int(random.integers(8))
        elif random.random() < 0.5:
            word = int(random.choice([*WORDS, len(content), int(random.integers(1 << 40))]))
            part = (word % (1 << 8 * width)).to_bytes(width, "little")
            content[spot : spot + width] = part[: max(0, len(content) - spot)]
        else:
            other = int(random.choice(spots))
            content[spot : spot + width] = content[other : other + width]
    return bytes(content)


def changed(folder, kind, seed, target):
    """Makes a file, or a folder, of a kind."""
    name, find = KINDS[kind]
    random = np.random.default_rng(seed)
    sample = folder / name
    if sample.is_dir():
        path = target / name
        shutil.copytree(sample, path)
        inside = sorted(one for one in path.rglob("*") if one.is_file() and one.stat().st_size)
        file = path / find if find else inside[random.integers(len(inside))]
        content = file.read_bytes()
        file.write_bytes(change(content, range(len(content)), random))
        return path / "model" if find else path
    for beside in folder.glob(f"{name.partition('.')[0]}_*.weights.h5"):
        shutil.copy(beside, target)
    content = sample.read_bytes()
    (target / name).write_bytes(change(content, find(content), random))
    return target / name


def outcome(path, expected):
    """Says what came of reading it: whatever is read is right, where digests tell."""
    if path.suffix == ".safetensors":
        acts = [lambda: files.export(path, path.with_name("exported.keras"))]
    else:
        acts = [lambda: str(files.inspect(path)), lambda: files.verify(path)]
        acts.append(lambda: str(files.plan(path)))
    came = set()
    for act in acts:
        try:
            act()
            came.add("read")
        except TiedioError:
            came.add("refused")
    with contextlib.suppress(TiedioError), table.reading(at(path)) as opened:
        record = opened.read_record(verify=True)
        if expected and not record and path.suffix == ".keras":
            return "wrong", "lost its record"
        for dataset_path, content in expected.items():
            with contextlib.suppress(TiedioError, KeyError):
                value = opened.weights.read(dataset_path)
                is_known = record and dataset_path in record.digests
                is_right = value.tobytes() == content
                if is_known and not is_right and dataset_path not in opened.weights.damaged:
                    return "wrong", dataset_path
    return ("read" if came == {"read"} else "refused"), ""


def in_fork(path, expected):
    """Does it in a process of its own, with limits."""
    receiving, sending = os.pipe()
    if not (child := os.fork()):
        os.close(receiving)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (space + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        signal.alarm(6 * SECONDS)
        try:
            told = outcome(path, expected)
        except BaseException:
            told = "raised", traceback.format_exc()[-1500:]
        os.write(sending, json.dumps(told).encode())
        os._exit(0)
    os.close(sending)
    with open(receiving, "rb") as answer:
        told = answer.read()
    _, status = os.waitpid(child, 0)
    if told:
        return json.loads(told)
    number = os.WTERMSIG(status)
    late = number in (signal.SIGXCPU, signal.SIGALRM)
    return ("took too long" if late else "died"), f"signal {number}"


def values(sample):
    """The values of a sample, where its record has digests of them."""
    with table.reading(at(sample)) as opened:
        record = opened.read_record(verify=True)
        paths = record.digests if record else ()
        return {path: opened.weights.read(path).tobytes() for path in paths}


def main():
    folder, kind, first, count = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:5])
    sample = folder / KINDS[kind][0]
    expected = {}
    if kind != ORBAX:  # which lets no process fork that has used it
        with contextlib.suppress(TiedioError):
            expected = values(sample)
        outcome(sample / "model" if kind.startswith("index") else sample, expected)  # imports
    found, worse = collections.Counter(), []
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory() as target:
            came, why = in_fork(changed(folder, kind, seed, Path(target)), expected)
        found[came] += 1
        if came in WORSE:
            worse.append(f"{kind}, {seed}: {came}: {why}")
    print(json.dumps([found, worse]))


if __name__ == "__main__":
    main()
