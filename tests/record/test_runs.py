"""Which names are left out for people, and that no others are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiedio.record import runs


def numbered(form, *numbers):
    return [form.format(number) for number in numbers]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], []),
        (["a_1", "a_2", "a_3"], ["a_1", "a_2", "a_3"]),
        (numbered("b_{}/k", *range(60)), ["b_0/k … b_59/k"]),
        # In the order of text, as Keras walks over attributes.
        (sorted(numbered("b_{}", *range(60))), ["b_0 … b_59"]),
        # An owner stays the first.
        (["b_5", *numbered("b_{}", 0, 1, 2, 3, 4, 6, 7, 8, 9)], ["b_5", "b_0 … b_4", "b_6 … b_9"]),
        # What does not fit stays.
        ([*numbered("b_{}", *range(9)), "other"], ["b_0 … b_8", "other"]),
        (["dense", *numbered("dense_{}", 2, 4, 6, 8)], ["dense", "dense_2, dense_4 … dense_8"]),
        ([f"b_{n}/dense_{2 * n}" for n in range(9)], ["b_0/dense_0 … b_8/dense_16"]),
        (
            [f"b_{n}/d_{m}" for n in range(9) for m in range(2)],
            ["b_0/d_0 … b_8/d_0", "b_0/d_1 … b_8/d_1"],
        ),
        (["b_1", "b_01", "b_2", "b_3", "b_4"], ["b_1 … b_4", "b_01"]),
    ],
)
def test_names(names, told):
    assert runs.told(names) == told


NAMES = st.lists(st.from_regex(r"[ab]_[0-9]{1,2}(/[0-9])?", fullmatch=True), max_size=40)


@given(NAMES)
def test_each_name_is_in_one_run(names):
    found = runs.runs([(name,) for name in names])
    assert sum(run.size for run in found) == len(names)
    shown = [position for run in found for position in run.shown]
    assert len({*shown}) == len(shown)
    assert all(run.size >= 4 or run.size == 1 for run in found)


def test_rows_that_differ_otherwise_stay_apart():
    pairs = [(f"e_{n}", f"d_{n}") for n in range(9)]
    assert runs.runs(pairs, ["one"] * 5 + ["other"] * 4) == [(5, (0, 4)), (4, (5, 8))]


def test_many_names_of_strangers():
    """Neither those that count down, nor short rows of thousands, cost more than others."""
    assert runs.told([f"b_{n}" for n in reversed(range(2000))]) == ["b_1999", "b_0 … b_1998"]
    rows = [f"b_{10 * n + m}" for n in range(2000) for m in range(4)]
    walked = []
    with pytest.MonkeyPatch.context() as patch:
        walk = runs._walk
        patch.setattr(runs, "_walk", lambda *given: walked.append(found := walk(*given)) or found)
        assert runs.told(rows)[:2] == ["b_0 … b_3", "b_10 … b_13"]
    assert sum(map(len, walked)) < 20 * len(rows)
