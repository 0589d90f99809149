"""What is told by a version of Keras."""

import pytest

from tiedio.keras_versions.keras_version import KerasVersion


@pytest.mark.parametrize(
    ("text", "numbers", "is_of_keras_3", "is_multi_backend"),
    [
        ("", (), False, False),
        ("unknown", (), False, False),
        ("2.2.4", (2, 2), False, True),
        ("2.2.4-tf", (2, 2), False, False),
        ("2.3.1", (2, 3), False, True),
        ("2.4.0", (2, 4), False, False),
        ("2.15.0", (2, 15), False, False),
        ("3.0.5", (3, 0), True, False),
        ("3.15.1", (3, 15), True, False),
    ],
)
def test_versions(text, numbers, is_of_keras_3, is_multi_backend):
    version = KerasVersion(text)
    assert version.numbers == numbers
    assert version.is_of_keras_3 == is_of_keras_3
    assert version.is_multi_backend == is_multi_backend
