"""What all tests run in."""

import gc

import keras
import pytest


@pytest.fixture(autouse=True, scope="module")
def nothing_left_over():
    """Lets go of what a module made, so that no later search for live layers goes through it."""
    yield
    keras.utils.clear_session()
    gc.collect()


def pytest_addoption(parser):
    parser.addoption(
        "--backends",
        metavar="NAMES",
        help="backends whose files test_backends.py carries to each other, such as "
        "`tensorflow,jax,torch`; the one in force unless given",
    )
