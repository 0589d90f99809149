"""No test is forgotten where each day some of them run."""

import types

import by_day
import pytest


def item(name, *marks):
    return types.SimpleNamespace(nodeid=name, iter_markers=lambda _: iter(marks))


def test_shares(monkeypatch):
    always = item("always", pytest.mark.slow.mark, by_day.slow_and_of_today.mark)
    items = {item.nodeid: item for item in [always, *(item(f"test_{n}") for n in range(600))]}

    def chosen(share):
        return {*items} - {one.nodeid for one in by_day.of_other_shares(items.values(), share, 3)}

    today = [chosen(share) for share in range(3)]
    assert set.union(*today) == {*items}
    assert set.intersection(*today) == {"always"}
    assert all(150 < len(one) < 250 for one in today)
    monkeypatch.setattr(by_day, "TODAY", by_day.TODAY + 1)
    assert chosen(0) == today[1]
