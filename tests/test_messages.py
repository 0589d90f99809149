"""Every message of `messages.py` appears in stock Keras, and every cure cures."""

import warnings

import keras
import messages
import pytest


@pytest.mark.often(4)
@pytest.mark.parametrize("message", messages.MESSAGES)
def test_stock_keras_says_it_and_the_cure_cures(message, tmp_path, monkeypatch):
    version = tuple(map(int, keras.__version__.split(".")[:2]))
    if version < message.since:
        pytest.skip("a newer Keras says it")
    monkeypatch.chdir(tmp_path)
    assert message.matches(said_by(message.symptom))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        message.cured()


def said_by(symptom):
    """Returns all that is warned of, and the error if there is one."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        error = None
        try:
            symptom()
        except Exception as raised:
            error = raised
    return "\n".join(str(said) for said in [*(warning.message for warning in warned), error])


def test_the_table_is_as_it_was_tried():
    page = messages.PAGE.read_text()
    assert messages.written(page) == page, "renew it by `python tests/support/messages.py`"
    assert messages.table() in page
