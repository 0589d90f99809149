"""Hostile files: each is refused with an error of tiedio, or loads exactly right.

Never with wrong values, never with another exception, nor a dead process, a hang, or
memory beyond the file's and the model's. What is allowed of each kind of file is in `FUZZED`.
"""

import collections
import io
import json
import random
import re
import select
import struct
import subprocess
import sys
import zipfile

import h5py
import hostile_loading
import keras
import numpy as np
import pytest
from by_day import ROUND
from checkout import start

from tiedio.model.substitution import may_adopt

if sys.platform == "win32":
    pytest.skip("Windows has no limit of a process's memory", allow_module_level=True)

SECONDS = 5  # of a processor; a process that takes no time may wait for ever, and is given more
MEMORY = 64 << 20  # bytes

Outcome = collections.namedtuple("Outcome", "came, text, seconds, memory")


class Loader:
    """A process that loads files, one after the other; begun anew when it died."""

    def __init__(self, folder):
        self.folder = folder
        self.process = None
        self.begin()
        self.original = (folder / "original.keras").read_bytes()

    def begin(self):
        self.end()
        self.errors = open(self.folder / "errors.txt", "w+b")  # noqa: SIM115 (closed at its end)
        self.process = start(
            hostile_loading,
            self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        assert self.answer(seconds=300).came == "same"

    def end(self):
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.errors.close()

    def answer(self, seconds):
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return Outcome("hung", f"for {seconds} s", seconds, 0)
        if line := self.process.stdout.readline():
            return Outcome(*json.loads(line))
        self.errors.seek(0)
        return Outcome("died", self.errors.read().decode(errors="replace")[-3000:], 0, 0)

    def load(self, content, **options):
        filepath = self.folder / "hostile.keras"
        filepath.write_bytes(content)
        print(json.dumps([str(filepath), options]), file=self.process.stdin, flush=True)
        outcome = self.answer(20 * SECONDS)
        if outcome.came in ("hung", "died"):
            self.begin()
        elif outcome.seconds > SECONDS:
            return outcome._replace(came="slow")
        elif outcome.memory > MEMORY + len(content):
            return outcome._replace(came="swollen")
        return outcome


@pytest.fixture(scope="session")
def loader(tmp_path_factory):
    loader = Loader(tmp_path_factory.mktemp("hostile"))
    yield loader
    loader.end()


def members_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rebuilt(members):
    """Makes an archive of members, with right checksums."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def span(chance, content, longest=256):
    start = chance.randrange(len(content))
    return slice(start, start + chance.randint(1, longest))


def flipped(chance, content):
    for _ in range(chance.choice([1, 1, 2, 8])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def truncated(chance, content):
    del content[chance.randrange(len(content)) :]


def zeroed(chance, content):
    part = span(chance, content)
    content[part] = bytes(len(content[part]))


def filled(chance, content):
    part = span(chance, content, 8)
    content[part] = b"\xff" * len(content[part])


def swapped(chance, content):
    first, second = (span(chance, content) for _ in range(2))
    content[first], content[second] = content[second], content[first]


def inserted(chance, content):
    start = chance.randrange(len(content))
    content[start:start] = chance.randbytes(chance.randint(1, 64))


def deleted(chance, content):
    del content[span(chance, content)]


def edited(chance, content):
    """Puts another value, of the same text or a strange one, in a place of a JSON text."""
    tree = json.loads(content)
    places = []

    def visit(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                visit(node[key])

    visit(tree)
    node, key = chance.choice(places)
    other, at = chance.choice(places)
    # By its text: what holds itself is no JSON.
    node[key] = chance.choice([json.loads(json.dumps(other[at])), *STRANGE])
    content[:] = json.dumps(tree).encode()


STRANGE = (None, True, -1, 0, 10**30, float("nan"), "", "../..", "__class__", "\ud800", [], {})
MUTATIONS = (flipped, truncated, zeroed, filled, swapped, inserted, deleted)

# What is mutated; how it is loaded; what may come of it; how many cases at first, and in all.
# A record is no secret of tiedio's: who edits it may name, flag, tie and seed otherwise, but every
# value that is loaded is that of the file. Who edits a config gets another model.
ANYTHING = {"refused", "same", "reshared", "other"}
FUZZED = {
    "file": (None, {}, {"refused", "same"}, 12, 300),
    "weights": ("model.weights.h5", {}, {"refused", "same"}, 12, 600),
    "weights, unverified": ("model.weights.h5", {"verify": False}, ANYTHING, 8, 600),
    "record": ("metadata.json", {}, {"refused", "same", "reshared"}, 12, 200),
    "record, not strict": ("metadata.json", {"strict": False}, ANYTHING, 12, 200),
    "config": ("config.json", {}, ANYTHING, 12, 200),
}


def mutated(original, member, mutate, seed):
    chance = random.Random(f"{mutate.__name__} {seed}")  # noqa: S311
    if member is None:
        content = bytearray(original)
        mutate(chance, content)
        return bytes(content)
    members = members_of(original)
    content = bytearray(members[member])
    mutate(chance, content)
    return rebuilt({**members, member: bytes(content)})


def failures(loader, name, mutate, seeds):
    member, options, allowed, *_ = FUZZED[name]
    found = {}
    for seed in seeds:
        outcome = loader.load(mutated(loader.original, member, mutate, seed), **options)
        if outcome.came not in allowed:
            found[seed] = outcome
    return found


CASES = [
    pytest.param(name, mutate, id=f"{name}-{mutate.__name__}")
    for mutate in (*MUTATIONS, edited)
    for name, (member, *_) in FUZZED.items()
    if mutate is not edited or (member or "").endswith(".json")
]


@pytest.mark.often(4)
@pytest.mark.parametrize(("name", "mutate"), CASES)
def test_a_mutated_file_is_refused_or_loads_right(loader, name, mutate):
    assert not failures(loader, name, mutate, range(FUZZED[name][3]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mutate"), CASES)
def test_many_mutated_files_are_refused_or_load_right(loader, name, mutate):
    """A tenth of them, in turn: all of them take ten minutes."""
    seeds = range(FUZZED[name][3], FUZZED[name][4])[ROUND % 10 :: 10]
    assert not failures(loader, name, mutate, seeds)


def with_record(original, edit, weights=None):
    """Rebuilds the archive with its record edited in place, or replaced by a text."""
    members = members_of(original)
    if isinstance(edit, str):
        members["metadata.json"] = edit.encode("utf-8", "surrogatepass")
    else:
        metadata = json.loads(members["metadata.json"])
        edit(metadata["tiedio"])
        members["metadata.json"] = json.dumps(metadata).encode()
    if weights:
        members["model.weights.h5"] = weights
    return rebuilt(members)


def place(inner_path, attribute, dataset_path=None):
    return {"inner_path": inner_path, "attribute": attribute, "dataset_path": dataset_path}


def tie(owner, alias, shape=(4,), dtype="float32"):
    """Adds a tie group of two places, given as `layer/attribute/dataset`."""

    def edit(record):
        owner_place, alias_place = (
            place(f"layers/{layer}", attribute, f"layers/{layer}/vars/{index}")
            for layer, attribute, index in (owner, alias)
        )
        record["tie_groups"].append(
            {
                "owner": owner_place,
                "aliases": [alias_place],
                "shape": shape,
                "dtype": dtype,
                "trainable": True,
            }
        )
        # Two slots of one variable would be refused before the values are looked at.
        slots = record["optimizer_variables"]["optimizer"]
        slots[:] = [
            s
            for s in slots
            if (s["inner_path"], s["attribute"])
            != (alias_place["inner_path"], alias_place["attribute"])
        ]

    return edit


def put(value, *keys):
    """Puts a value into a record, at a path of keys."""

    def edit(record):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return edit


def more(values, *keys):
    """Adds values to a list, or to an object, in a record."""

    def edit(record):
        for key in keys:
            record = record[key]
        (record.update if isinstance(values, dict) else record.extend)(values)

    return edit


def both(*edits):
    def edit(record):
        for one in edits:
            one(record)

    return edit


def repeated(part, count):
    """Repeats an entry of a list, or of an object under made-up keys."""

    def edit(record):
        entries = record[part]
        if isinstance(entries, dict):
            entry = list(entries.values())[-1]
            entries.update({f"layers/made_up_{i}": entry for i in range(count)})
        else:
            text = json.dumps(entries[-1])
            entries.extend(
                json.loads(re.sub(r'"(layers/[^"]*)"', rf'"\1/{i}"', text)) for i in range(count)
            )

    return edit


GAMMA, BETA = ("layer_normalization", "gamma", 0), ("layer_normalization", "beta", 1)
OTHER, FIRST = ("dense_3", "_kernel", 0), ("dense", "_kernel", 0)
FIRST_BIAS, OTHER_BIAS = ("dense", "bias", 1), ("dense_3", "bias", 1)
ATTRIBUTES = (
    "__class__",
    "__dict__",
    "__doc__",
    "_tracker",
    "activity_regularizer",
    "_kernel/__class__",
    "a/b/../c",
    "../../_kernel",
    "/etc/passwd",
    "",
    "\0",
    "\ud800",
    "x" * 100_000,
)
PATHS = ("../..", "/", "", ".", "//", "layers", "layers/dense/vars", "\0", "\ud800", "x/" * 20_000)
SEED = place("layers/dropout", "seed_generator")
DEEP = "[" * 900 + "]" * 900

# What a record says; the message of the refusal, or that the file loads right all the same.
RECORDS = {
    "another version": (put(2, "version"), "Expected: version 1. Received: version 2"),
    "a version that is true": (put(True, "version"), "`version` of the record as int"),
    "a version that is no number": (put(float("nan"), "version"), "as int. Received: nan"),
    "a version without end": (put(float("inf"), "version"), "as int. Received: inf"),
    "a version of 31 digits": (put(10**30, "version"), f"Received: version {10**30}"),
    "a number of 5000 digits": (f'{{"tiedio": {{"version": 1{"0" * 5000}}}}}', "is not JSON"),
    "a name that is no text": (put("\ud800", "layers", "layers/dense", "name"), "as text"),
    "nesting": (put(json.loads(DEEP), "version"), "`version` of the record as int"),
    "deeper nesting": ("[" * 200_000, "is not JSON"),
    "one key twice": ('{"tiedio": {"version": 1, "version": 1}}', "'version' stands twice"),
    "a record that is a list": ('{"tiedio": []}', "the record as dict"),
    "metadata that are a list": ("[]", "is not a JSON object"),
    "a tie to itself": (
        tie(GAMMA, GAMMA),
        "a tie group for every place. Received: several for `layers/layer_normalization/gamma`",
    ),
    "one place in two groups": (tie(FIRST_BIAS, OTHER_BIAS), "several for `layers/dense/bias`"),
    "a kernel tied to a bias": (
        tie(OTHER, OTHER_BIAS, (4, 4)),
        r"`other/bias`: \(4,\) float32, not \(4, 4\)",
    ),
    "a scale tied to an offset": (
        tie(GAMMA, BETA),
        "is damaged at `layers/layer_normalization/vars/1`",
    ),
    "another shape": (
        put([4, 3], "tie_groups", 0, "shape"),
        r"`first/kernel`: \(4, 4\) float32, not \(4, 3\)",
    ),
    "a shape below zero": (put([-4, 4], "tie_groups", 0, "shape"), "of 0 or more. Received: -4"),
    "a shape of 31 digits": (
        put([10**30], "tie_groups", 0, "shape"),
        f"not \\({10**30},\\) float32",
    ),
    "a shape that is true": (put([True], "tie_groups", 0, "shape"), "as int. Received: True"),
    "another dtype": (put("float64", "tie_groups", 0, "dtype"), None),  # the model's is used
    "an unknown layer": (
        put("layers/gone", "tie_groups", 0, "owner", "inner_path"),
        "`layers/gone/kernel`: no such variable",
    ),
    "20,000 ties": (repeated("tie_groups", 20_000), "`layers/dense_1/19999/bias`: no such"),
    "20,000 layers": (repeated("layers", 20_000), "`layers/made_up_9`"),
    "20,000 shared layers": (repeated("shared_layers", 20_000), None),
    "20,000 exact values": (
        more([place("layers/dense", f"x{i}", f"x/{i}") for i in range(20_000)], "exact_values"),
        None,
    ),
    "20,000 fake variables": (
        more(
            [[f"x{i}", f"x{i}", True, True] for i in range(20_000)],
            "layers",
            "layers/dense",
            "variables",
        ),
        "`first/x19999`",
    ),
    "20,000 digests": (
        more({f"x/{i}": "0" for i in range(20_000)}, "digests"),
        "is damaged at .*`x/19999`",
    ),
    "20,000 places of a seed": (
        more([place("layers/dense", f"x{i}") for i in range(20_000)], "random_states", 0, "places"),
        "`first/x19999`: no such seed",
    ),
    "a digest of another form": (
        put("ff", "digests", "layers/dense/vars/0"),
        "is damaged at `layers/dense/vars/0`",
    ),
    "a digest that is a number": (put(7, "digests", "layers/dense/vars/0"), "a digest as str"),
    "another tensor's path": (
        put("layers/dense_3/vars/0", "tie_groups", 0, "aliases", 0, "dataset_path"),
        "is damaged at `layers/dense_3/vars/0`",
    ),
    "another tensor as an exact value": (
        put([place("layers/dense_3", "_kernel", "layers/dense/vars/0")], "exact_values"),
        "a tensor of `layers/dense_3/_kernel`. Received: `layers/dense/vars/0`",
    ),
    "one tensor for many variables": (
        put(
            [
                place("layers/dense_3", f"_trainable_variables/{i}", "layers/dense_3/vars/0")
                for i in range(1000)
            ],
            "exact_values",
        ),
        "a tensor for every exact value. Received: several for `layers/dense_3/vars/0`",
    ),
    "an exact value that is nowhere": (
        put([place("layers/dense_3", "_kernel", "layers/dense_3/vars/9")], "exact_values"),
        "`other/kernel`: no such tensor in the file",
    ),
    "a listed variable that is nowhere": (
        both(
            put(
                [place("layers/dense_3", "_trainable_variables/9", "layers/dense_3/vars/9")],
                "exact_values",
            ),
            more(
                [["_trainable_variables/9", "x", True, True]],
                "layers",
                "layers/dense_3",
                "variables",
            ),
        ),
        "other/.*9`: no such variable",
    ),
    "a slot twice": (
        more([place("layers/dense", "_kernel")], "optimizer_variables", "optimizer"),
        "a slot of `optimizer` for every place. Received: several for `layers/dense/_kernel`",
    ),
    "a slot of both of a tie": (
        more([place("layers/dense_1", "bias")], "optimizer_variables", "optimizer"),
        "several for `layers/dense/bias`",
    ),
    "slots of nothing": (put([], "optimizer_variables", "optimizer"), "Cannot resume `optimizer`"),
    "an optimizer that is a layer": (
        put([place("layers/dense", "bias")], "optimizer_variables", "layers/dense"),
        "Cannot resume `first`",
    ),
    "exclusions of a layer": (
        put({"layers/dense": [place("layers/dense", "bias")]}, "excluded_from_weight_decay"),
        "Cannot resume `first`",
    ),
    "exclusions of nothing": (
        put({"optimizer": [place("layers/none", "bias")] * 9}, "excluded_from_weight_decay"),
        None,
    ),
    "exclusions that are no places": (
        put({"optimizer": None}, "excluded_from_weight_decay"),
        "variables of an optimizer as list. Received: None",
    ),
    "a seed of one word": (
        put([7], "random_states", 0, "state"),
        "`dropout/seed_generator`: a state of another size",
    ),
    "a seed of large words": (put([1 << 62] * 2, "random_states", 0, "state"), None),
    "a seed of huge words": (put([1 << 63] * 2, "random_states", 0, "state"), "in 64 bits"),
    "a seed that is no number": (
        put([float("nan")] * 2, "random_states", 0, "state"),
        "as int. Received: nan",
    ),
    "one seed twice": (
        more([{"places": [SEED], "state": [1, 2]}], "random_states"),
        "several for `layers/dropout/seed_generator`",
    ),
    "layers shared that differ in class": (
        put([["layers/dense", "layers/dropout"]], "shared_layers"),
        "`dropout`: another layer than `first`",
    ),
    "layers shared that differ in values": (
        put([["layers/dense", "layers/dense_3"]], "shared_layers"),
        "`other`: stored with other values than `first`",
    ),
    "a shared layer the model has not": (
        put("layers/gone", "shared_layers", 0, 1),
        "`layers/gone`: no such layer",
    ),
    "a layer shared with its own part": (
        put([["", "layers/sequential"]], "shared_layers"),
        "another layer than `the model`",
    ),
    "a layer in two shared ones": (
        put([["layers/dense", "layers/dense_1"]] * 2, "shared_layers"),
        "one shared layer for every path. Received: several for `layers/dense`, `layers/dense_1`",
    ),
}
RECORDS |= {
    f"the attribute {name[:20]!r}": (
        put(name, "tie_groups", 0, "aliases", 0, "attribute"),
        "as text" if name == "\ud800" else "Cannot restore `second/",
    )
    for name in ATTRIBUTES
}
RECORDS |= {
    f"the inner path {path[:20]!r}": (
        put(path, "tie_groups", 0, "aliases", 0, "inner_path"),
        "as text" if path == "\ud800" else "kernel`: no such variable",
    )
    for path in PATHS
}
RECORDS |= {
    f"the dataset path {path[:20]!r}": (
        put(path, "tie_groups", 0, "aliases", 0, "dataset_path"),
        "is damaged at|has an unreadable|as text" if path else None,
    )
    for path in PATHS
}


@pytest.mark.often(12)
@pytest.mark.parametrize("name", RECORDS)
def test_a_hostile_record_is_refused_by_name(loader, name):
    edit, message = RECORDS[name]
    content = with_record(loader.original, edit)
    outcome = loader.load(content)
    if message is None:
        assert outcome.came in ("refused", "same", "reshared"), outcome
    else:
        assert outcome.came == "refused", outcome
        assert re.search(message, outcome.text), outcome.text
    if "20,000" not in name:
        assert loader.load(content, strict=False).came in ANYTHING


def archived(edit):
    """Makes an archive that zipfile would not write by itself."""

    def build(original):
        stream = io.BytesIO(original)
        with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
            edit(archive)
        return stream.getvalue()

    return build


def member(name, size):
    """Adds a member of zeros."""
    return archived(lambda archive: archive.writestr(name, bytes(size)))


def instead(name, content, compression=zipfile.ZIP_DEFLATED):
    """Puts something in the place of a member, compressed."""

    def build(original):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", compression) as archive:
            for one, data in ({**members_of(original), name: content}).items():
                archive.writestr(one, data)
        return stream.getvalue()

    return build


def in_directory(name, offset, value):
    """Changes bytes in the archive's directory, at an offset into the entry of a member."""

    def build(original):
        content = bytearray(original)
        entry = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
        content[entry + offset : entry + offset + len(value)] = value
        return bytes(content)

    return build


def symlink(archive):
    info = zipfile.ZipInfo("assets/link")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, "/etc/passwd")


def overlapping(original):
    """Twelve thousand members that are all the same megabyte."""
    content = member("assets/0", 1 << 20)(original)
    end = content.rindex(b"PK\x05\x06")
    start = content.rindex(b"PK\x01\x02")
    entry = bytearray(content[start : start + 46])
    entry[28:30] = struct.pack("<H", 12)
    entries = b"".join(bytes(entry) + b"assets/%05d" % i for i in range(12_000))
    directory = struct.unpack("<I", content[end + 16 : end + 20])[0]
    head = content[directory:start]
    tail = bytearray(content[end:])
    tail[8:12] = struct.pack("<HH", 12_003, 12_003)
    tail[12:16] = struct.pack("<I", len(head) + len(entries))
    return content[:directory] + head + entries + bytes(tail)


# Offsets into an entry of an archive's directory.
FLAGS, COMPRESSION, SIZE, START = 8, 10, 24, 42

UNKNOWN = '{"module": "x", "class_name": "X", "config": {"x": %s}}'

ARCHIVES = {
    "a config 900 lists deep": (
        instead("config.json", f'{{"config": {DEEP}}}'),
        "RecursionError|NoneType|Received: dict",
    ),
    "a class nobody knows, 400 lists deep": (
        instead(
            "config.json",
            f'{{"module": "x", "class_name": "X", "config": {{"x": {DEEP[500:-500]}}}}}',
        ),
        "needs classes or functions that are not registered: `X`",
    ),
    "300 MB of zeros as weights": (
        instead("model.weights.h5", bytes(300 << 20)),
        "of 314572800 bytes in",
    ),
    "200 MB of zeros as weights": (
        instead("model.weights.h5", bytes(200 << 20)),
        "has weights that are no HDF5 file",
    ),
    "20 MB of config": (
        instead("config.json", b"[" * (20 << 20)),
        "`config.json` of 20971520 bytes in",
    ),
    "4 MB of nested lists": (instead("config.json", b"[]," * (1 << 20)), "is not JSON"),
    "overlapping members": (overlapping, "`assets/00000` of 1048576 bytes in"),
    "10,000 members": (archived(lambda a: [a.writestr(f"x/{i}", "") for i in range(10_000)]), None),
    "one name twice": (member("model.weights.h5", 10), "several members named `model.weights.h5`"),
    "another compression": (
        in_directory("model.weights.h5", COMPRESSION, b"\x09"),
        "of another compression",
    ),
    "an unknown compression": (
        in_directory("model.weights.h5", COMPRESSION, b"\x63"),
        "of another compression",
    ),
    "an encrypted member": (in_directory("model.weights.h5", FLAGS, b"\x01"), "encrypted"),
    "an encrypted config": (in_directory("config.json", FLAGS, b"\x01"), "encrypted"),
    "a size that is a lie": (
        in_directory("model.weights.h5", SIZE, b"\xff\xff\xff\x7f"),
        "of 2147483647 bytes in|beyond the end",
    ),
    "a small size that is a lie": (in_directory("config.json", SIZE, b"\x07\0\0\0"), "CRC|JSON"),
    "a member that starts elsewhere": (
        in_directory("model.weights.h5", START, b"\x07\0\0\0"),
        "no `model.weights.h5` where its directory has it",
    ),
    "a path out of the archive": (member("assets/../../x", 3), None),
    "an absolute path": (member("/etc/x", 3), None),
    "a symbolic link": (archived(symlink), None),
    "a file that is a folder": (
        archived(lambda a: [a.writestr(n, "") for n in ("assets/a", "assets/a/b")]),
        "is damaged",
    ),
    "a name of 60,000 letters": (member("assets/" + "x" * 60_000, 3), "is damaged"),
}


@pytest.mark.often(2)
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_refused_or_loads_right(loader, name):
    build, message = ARCHIVES[name]
    outcome = loader.load(build(loader.original))
    assert outcome.came == ("refused" if message else "same"), outcome
    assert not message or re.search(message, outcome.text), outcome.text
    assert {path.name for path in loader.folder.iterdir()} == {
        "original.keras",
        "hostile.keras",
        "errors.txt",
    }


PATH = "layers/dense_3/vars/0"


def dataset(shape=(4, 4), dtype="float32", **options):
    """Puts a dataset in the place of a kernel, without values if it is not of its shape."""

    def edit(file):
        values = file[PATH][()]
        del file[PATH]
        file.create_dataset(PATH, shape, dtype, **options)
        if shape == (4, 4) and np.dtype(dtype).kind in "fi" and not options.get("external"):
            file[PATH][...] = values

    return edit


def link(target):
    def edit(file):
        del file[PATH]
        file[PATH] = target

    return edit


def circle(path, target):
    def edit(file):
        file[path] = file[target]

    return edit


def virtual(file):
    del file[PATH]
    layout = h5py.VirtualLayout((4, 4), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4, 4))
    file.create_virtual_dataset(PATH, layout)


def attribute(file):
    file.attrs.create("big", np.zeros(8000), dtype="f8")
    file[PATH].attrs["dtype"] = "bfloat16"


def references(file):
    reference = file["layers"].ref
    del file[PATH]
    file.create_dataset(PATH, data=np.full((4, 4), reference), dtype=h5py.ref_dtype)


def unknown_filter(file):
    del file[PATH]
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((4, 4))
    creation.set_filter(40_000, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((4, 4))
    written = h5py.h5d.create(
        file["layers/dense_3/vars"].id, b"0", h5py.h5t.IEEE_F32LE, space, creation
    )
    written.write_direct_chunk((0, 0), bytes(64))


HUGE = (1 << 25, 1 << 25)

# What stands in the place of a kernel; what is said of it.
HDF5 = {
    "declared without storage": (dataset(HUGE), "4503599627370496 bytes declared, 0 stored"),
    "declared in chunks": (dataset(HUGE, chunks=(1, 64)), "bytes declared, 0 stored"),
    "a gigabyte in few bytes": (
        dataset((1 << 14, 1 << 14), chunks=(1 << 12, 1 << 12), compression="gzip", fillvalue=7),
        "1073741824 bytes declared",
    ),
    "100 MB without storage": (dataset((5000, 5000)), "100000000 bytes declared, 0 stored"),
    "another shape": (dataset((4, 5)), "is damaged at|Cannot load"),
    "float64": (dataset(dtype="float64"), f"is damaged at `{PATH}`"),
    "another byte order": (dataset(dtype=">f4"), "is damaged at|byte order"),
    "compressed": (dataset(compression="gzip"), None),
    "shuffled, with a checksum": (dataset(shuffle=True, fletcher32=True), None),
    "strings": (dataset(dtype=h5py.string_dtype()), "values of type object"),
    "short strings": (dataset(dtype="S4"), "is damaged at|Cannot load"),
    "arrays of any length": (dataset(dtype=h5py.vlen_dtype("f4")), "values of type object"),
    "references": (references, "values of type object"),
    "a compound": (dataset(dtype=[("a", "f4"), ("b", "f4")]), "values of type"),
    "opaque bytes": (dataset(dtype="V4"), "values of type"),
    "a soft link": (
        link(h5py.SoftLink("/layers/dense/vars/0")),
        f"(SoftLink at|unreadable) `{PATH}`",
    ),
    "a soft link to itself": (link(h5py.SoftLink(PATH)), f"(SoftLink at|unreadable) `{PATH}`"),
    "an external link": (
        link(h5py.ExternalLink("original.keras", "/x")),
        f"(ExternalLink at|unreadable) `{PATH}`",
    ),
    "a group": (lambda file: (file.__delitem__(PATH), file.create_group(PATH)), "."),
    "a committed type": (
        lambda file: (file.__delitem__(PATH), file.__setitem__(PATH, np.dtype("f4"))),
        ".",
    ),
    "external data": (dataset(external=[("/etc/hostname", 0, 64)]), "outside itself"),
    "virtual data": (virtual, "outside itself"),
    "an unknown filter": (unknown_filter, f"has an unreadable `{PATH}`"),
    "no bfloat16": (attribute, None),
    "a circle": (circle("layers/dense_3/vars/again", "layers/dense_3"), "."),
    "a circle through the root": (circle("layers/dense/layers", "/"), None),
    "a circle instead of a shared layer": (
        lambda file: (file.__delitem__("layers/dense_2"), circle("layers/dense_2", "layers")(file)),
        ".",
    ),
}


@pytest.mark.often(4)
@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no digests"])
@pytest.mark.parametrize("name", HDF5)
def test_hostile_weights_are_refused_or_load_right(loader, name, digests):
    edit, message = HDF5[name]
    stream = io.BytesIO(members_of(loader.original)["model.weights.h5"])
    with h5py.File(stream, "a") as file:
        edit(file)
    outcome = loader.load(
        with_record(
            loader.original,
            lambda record: digests or record.pop("digests"),
            stream.getvalue(),
        )
    )
    if digests or outcome.came == "refused":
        assert outcome.came == ("refused" if message else "same"), outcome
        assert not message or re.search(message, outcome.text), outcome.text
    else:  # as in Keras, numbers are converted, and what is not asked for is not read
        assert outcome.came == "same", outcome


@pytest.mark.parametrize("size", [1, 512, 4096])
def test_a_userblock_is_no_part_of_a_weights_file(loader, size):
    weights = bytes(size) + members_of(loader.original)["model.weights.h5"]
    outcome = loader.load(rebuilt({**members_of(loader.original), "model.weights.h5": weights}))
    assert outcome.came in ("refused", "same"), outcome


class Handed(keras.layers.Layer):
    """A layer that may be handed a table, and has other attributes that are empty."""

    empty_in_the_class = None

    def __init__(self, table=None, **kwargs):
        super().__init__(**kwargs)
        self.table = table
        self.held = [None]

    @property
    def view(self):
        return None


class OwnDense(keras.layers.Dense):
    def __init__(self, *args, table=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.table = table


def test_a_record_fills_only_what_a_class_of_ones_own_left_empty():
    layers = {"own": Handed(), "dense": keras.layers.Dense(2), "own dense": OwnDense(2)}
    asked = ["table", "held", "view", "empty_in_the_class", "__doc__", "__class__", "no_such"]
    asked += ["activity_regularizer", "kernel_regularizer", "bias_constraint", "lora_rank"]
    asked += [name for name, value in vars(layers["dense"]).items() if value is None]
    filled = {
        (name, one) for name, layer in layers.items() for one in asked if may_adopt(layer, one)
    }
    assert filled == {("own", "table"), ("own dense", "table")}
