"""No test is forgotten where each day some of them run."""

import types

import by_day


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
