"""Pin the text of an error."""

import re


def pin(error, kind, text):
    """Checks the class, its builtin and the whole text; `*` stands for what varies."""
    assert type(error.value) is kind
    pattern = re.escape(text).replace(re.escape("*"), ".*")
    assert re.fullmatch(pattern, str(error.value)), str(error.value)
    assert str(error.value).count("\n") == 2
