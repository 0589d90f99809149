"""No test is forgotten where each day some of them run."""

import by_day


def test_shares(request, monkeypatch):
    items = request.session.items

    def chosen(share):
        return {*items} - {*by_day.of_other_shares(items, share, 3)}

    today = [chosen(share) for share in range(3)]
    assert set.union(*today) == {*items}
    assert all(len(one) < len(items) for one in today) or len(items) < 100
    monkeypatch.setattr(by_day, "TODAY", by_day.TODAY + 1)
    assert chosen(0) == today[1]
