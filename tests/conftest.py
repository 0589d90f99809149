"""What all tests run in."""

import gc

import keras
import pytest


@pytest.fixture(autouse=True, scope="module")
def nothing_left_over():
    """Lets go of what a module made. TensorFlow keeps thousands of objects for each model that is
    trained: frozen, they are nothing that the garbage collector goes through again and again.
    """
    yield
    keras.utils.clear_session()
    gc.collect()
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption(
        "--backends",
        metavar="NAMES",
        help="backends whose files test_backends.py carries to each other, such as "
        "`tensorflow,jax,torch`; the one in force unless given",
    )
