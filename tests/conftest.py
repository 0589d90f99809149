"""What all tests run in."""

import gc

import by_day
import hypothesis
import keras
import pytest

# Whether a test passes, no clock decides.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Folders that ask whether what TensorFlow traced goes on with old variables, and a file that asks
# what Keras says. In all others training only makes something to save.
TRACED = {"hooks", "journeys", "model", "test_messages.py"}


@pytest.fixture(autouse=True, scope="module")
def steps_run_eagerly(request):
    """Trains without tracing but in `TRACED`: a few steps take a tenth of the time."""
    where = {request.path.name, request.path.parent.name}
    if keras.backend.backend() != "tensorflow" or where & TRACED:
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# The garbage collector need not go through all that was imported each time.
gc.collect()
gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def nothing_left_over():
    """Lets go of what a module made, and freezes what TensorFlow keeps: thousands of objects for
    each model that is trained.
    """
    yield
    keras.utils.clear_session()
    gc.collect()
    gc.freeze()


def pytest_itemcollected(item):
    by_day.mark(item)


def pytest_addoption(parser):
    parser.addoption(
        "--backends",
        metavar="NAMES",
        help="backends whose files test_backends.py carries to each other, such as "
        "`tensorflow,jax,torch`; the one in force unless given",
    )
    parser.addoption(
        "--share",
        metavar="K/N",
        default="0/1",
        help="of N shares of the tests the one numbered K, and tomorrow the next one",
    )


def pytest_collection_modifyitems(config, items):
    share, shares = map(int, config.getoption("share").split("/"))
    left_out = by_day.of_other_shares(items, share, shares)
    config.hook.pytest_deselected(items=left_out)
    waiting = set(left_out)
    items[:] = [one for one in items if one not in waiting]
