"""What tests of saving and loading share."""

import pytest
from loads import load_directly, load_patched


@pytest.fixture(params=[pytest.param(load_directly, marks=pytest.mark.slow), load_patched])
def load(request):
    return request.param
