"""What a person may call the variables of a file, to tie them."""

import numpy as np
import pytest

from tiedio.checkpoints import given_ties
from tiedio.checkpoints.variables import StoredVariable
from tiedio.record.ties import Place


def variables(**names):
    """Variables by the paths where a file has them."""
    return [
        StoredVariable(
            name=name,
            source=path,
            shape=(2,),
            dtype=np.dtype("float32"),
            place=Place(path.partition("/vars/")[0], path.rpartition("/")[2], path),
        )
        for path, name in names.items()
    ]


# Of a model of a class of its own, which calls some of its layers by attributes.
FILE = {
    "decoder/out/vars/0": "decoder/dense/0",
    "decoder/out/vars/1": "decoder/dense/1",
    "dec/cell/vars/0": "gru_1/gru_cell/0",
    "enc/cell/vars/0": "gru/gru_cell/0",
    "e/vars/0": "dense_4/0",
    "e/vars/1": "dense_4/1",
    "layers/embedding/vars/0": "embedding/0",
    "table/vars/0": "embedding_1/0",
}
LAYERS = [("decoder/dense/0", "dense_4/0"), ("decoder/dense/1", "dense_4/1")]


@pytest.mark.parametrize(
    ("tie", "expected"),
    [
        ("decoder/dense=dense_4", LAYERS),
        ("decoder/out=e", LAYERS),
        ("decoder/out=dense_4", LAYERS),
        ("decoder/out/vars/1=e/vars/1", LAYERS[1:]),
        ("decoder/out/vars/1=dense_4/1", LAYERS[1:]),
        ("dec=enc", [("gru_1/gru_cell/0", "gru/gru_cell/0")]),
        ("embedding_1=embedding", [("embedding_1/0", "embedding/0")]),
        ("embedding_1/embeddings=embedding/embeddings", [("embedding_1/0", "embedding/0")]),
        ("table/embeddings=embedding/0", [("embedding_1/0", "embedding/0")]),
        # Of two variables, it is not told which one that is.
        ("dense_4/kernel=decoder/dense/kernel", [("dense_4/kernel", "decoder/dense/kernel")]),
        ("embedding_1/1=embedding/0", [("embedding_1/1", "embedding/0")]),
        # A layer with one variable has no bias, and those in a layer are none of its own.
        ("embedding_1/bias=embedding/bias", [("embedding_1/bias", "embedding/bias")]),
        ("gru_1/kernel=gru/kernel", [("gru_1/kernel", "gru/kernel")]),
        ("embedding_1/x/y=embedding/0", [("embedding_1/x/y", "embedding/0")]),
        ("x=embedding", [("x", "embedding")]),
    ],
)
def test_by_names_by_paths_and_as_a_model_has_it(tie, expected):
    assert given_ties.given_by_name(given_ties.parsed([tie]), variables(**FILE)) == expected


def test_names_go_before_paths():
    """As a plan prints them, whatever the attributes of the model are called."""
    held = variables(**{"a/vars/0": "b/0", "b/vars/0": "a/0", "c/vars/0": "c/0"})
    assert given_ties.given_by_name([("a", "c")], held) == [("a/0", "c/0")]


def test_a_file_that_has_names_knows_no_others():
    held = variables(**{"layers/dense/vars/0": "a/kernel", "layers/dense_1/vars/0": "b/kernel"})
    pair = ("a/kernal", "b/kernel")
    assert given_ties.given_by_name([pair], held) == [pair]
