"""No test is forgotten where each day some of them run."""

import types

import by_day
import pytest


def test_shares(monkeypatch):
    items = {name: types.SimpleNamespace(nodeid=name) for name in map("test_{}".format, range(600))}

    def chosen(share):
        return {*items} - {one.nodeid for one in by_day.of_other_shares(items.values(), share, 3)}

    today = [chosen(share) for share in range(3)]
    assert set.union(*today) == {*items}
    assert not set.intersection(*today)
    assert all(150 < len(one) < 250 for one in today)
    monkeypatch.setattr(by_day, "TODAY", by_day.TODAY + 1)
    assert chosen(0) == today[1]


class Case:
    originalname = "test"

    def __init__(self, parent, *marks):
        self.parent = parent
        self.marks = {one.name: one for one in marks}

    def get_closest_marker(self, name):
        return self.marks.get(name)

    def add_marker(self, name):
        self.marks[name] = getattr(pytest.mark, name).mark


def test_often():
    """What is slow anyway is none of the cases that run each time."""
    parent = types.SimpleNamespace(stash=pytest.Stash())
    often, slow, seldom = pytest.mark.often(2).mark, pytest.mark.slow.mark, pytest.mark.seldom.mark
    cases = [Case(parent, often, *marks) for marks in ([slow], [], [], [], [seldom])]
    for case in cases:
        by_day.mark(case)
    assert ["slow" in case.marks for case in cases] == [True, False, False, True, True]
    assert ["seldom" in case.marks for case in cases] == [False, False, False, True, True]
