"""Any way of sharing among equal layers survives the round trip, and nothing else is shared."""

import json
import tempfile
from pathlib import Path

import hypothesis
import keras
from hypothesis import given
from hypothesis import strategies as st

import tiedio
from tiedio.errors import RecordError
from tiedio.record import ties
from tiedio.record.record import HeldVariable, LayerState, RandomState, Record

# One number for each layer and role: layers with equal numbers share that variable.
PARTITIONS = st.integers(2, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, n - 1), min_size=n, max_size=n),
        st.lists(st.integers(0, n - 1), min_size=n, max_size=n),
    )
)


def partition(model):
    """Numbers the kernels and biases of a model by identity, in order of appearance."""
    numbers = []
    for role in ("kernel", "bias"):
        seen = []
        for layer in model.layers:
            variable = getattr(layer, role)
            if not any(variable is other for other in seen):
                seen.append(variable)
            numbers.append(next(i for i, other in enumerate(seen) if variable is other))
    return numbers


@hypothesis.settings(max_examples=20)
@given(PARTITIONS)
def test_any_partition_survives_exactly(roles):
    kernels, biases = roles
    # Equal values everywhere: only identity can tell what is tied.
    layers = [keras.layers.Dense(3, kernel_initializer="ones") for _ in kernels]
    model = keras.Sequential([keras.Input((3,)), *layers])
    for role, numbers in (("kernel", kernels), ("bias", biases)):
        for i, number in enumerate(numbers):
            if numbers.index(number) != i:
                tiedio.tie(layers[i], to=layers[numbers.index(number)], weights=(role,))
    expected = [sorted(set(r), key=r.index).index(number) for r in roles for number in r]
    assert partition(model) == expected
    with tempfile.TemporaryDirectory() as folder:
        filepath = Path(folder) / "model.keras"
        tiedio.save_tied(model, filepath)
        loaded = tiedio.load_tied(filepath)
    assert partition(loaded) == expected
    assert [str(group) for group in tiedio.find_ties(loaded)] == [
        str(group) for group in tiedio.find_ties(model)
    ]


def tuples_of(items, min_size=0):
    return st.lists(items, min_size=min_size, max_size=3).map(tuple)


PLACES = st.builds(
    ties.Place, st.text(max_size=8), st.text(max_size=8), st.none() | st.text(max_size=8)
)
PATHS = st.text(max_size=4)
LAYERS = st.builds(
    LayerState,
    PATHS,
    PATHS,
    st.booleans(),
    tuples_of(st.builds(HeldVariable, PATHS, PATHS, st.booleans(), st.booleans())),
)
WORDS = tuples_of(st.integers(-(1 << 63), (1 << 63) - 1))


def cut(items, size):
    """Cuts a list into tuples: what stands in one of them stands in no other."""
    return tuple(tuple(items[i : i + size]) for i in range(0, len(items) - size + 1, size))


def unique(items, **options):
    return st.lists(items, unique=True, max_size=6, **options)


@st.composite
def records(draw):
    places = draw(st.lists(PLACES, unique=True, max_size=9))
    pairs = [places[i : i + 3] for i in range(0, len(places) - 1, 3)]
    groups = tuple(
        ties.TieGroup(
            owner,
            tuple(aliases),
            tuple(draw(st.lists(st.integers(0, 9), max_size=3))),
            draw(st.sampled_from(["float32", "int8"])),
            draw(st.booleans()),
        )
        for owner, *aliases in pairs
    )
    owners = [group.owner for group in groups]
    return Record(
        groups,
        draw(st.dictionaries(PATHS, LAYERS, max_size=3)),
        cut(draw(unique(PATHS)), 2),
        tuple(draw(st.lists(PLACES, unique_by=(hash, lambda p: p.dataset_path), max_size=3))),
        draw(st.dictionaries(PATHS, st.none() | st.just(tuple(owners)), max_size=3)),
        tuple(RandomState(held, draw(WORDS)) for held in cut(draw(unique(PLACES)), 2)),
        excluded_from_weight_decay=draw(st.dictionaries(PATHS, st.just(tuple(owners)), max_size=3)),
    )


@given(records())
def test_records_come_back_from_json(record):
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_unknown_keys_are_ignored_and_missing_ones_empty():
    assert Record.from_json({"version": 1, "from_the_future": [1, 2]}) == Record()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -1, 1 << 63])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["__class__", "../..", "/", "\0", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(records(), st.data())
def test_a_mutated_record_is_refused_or_read(record, data):
    """Whatever JSON stands anywhere in a record: a `RecordError`, or a record of what it says."""
    mutated = record.to_json()
    node = mutated
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(node[key], (dict, list)) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = data.draw(JSON)
        break
    try:
        read = Record.from_json(mutated)
    except RecordError as error:
        assert str(error).count("\n") == 2
    else:
        assert Record.from_json(json.loads(json.dumps(read.to_json()))) == read
