"""Tests of which a share runs each day, and in so many days all."""

import collections
import datetime
import zlib

import pytest

TODAY = datetime.date.today().toordinal()
# CI runs a sixth of the slow tests a day (`.ci/run`): those of the next round have other cases.
ROUND = TODAY // 6


_cases = pytest.StashKey[collections.Counter]()


def mark(item):
    """Marks what is `seldom` as slow, too: where a test is `often(n)`, all its other cases."""
    often = item.get_closest_marker("often")
    if often and not item.get_closest_marker("slow"):
        cases = item.parent.stash.setdefault(_cases, collections.Counter())
        cases[item.originalname] += 1
        if cases[item.originalname] > often.args[0]:
            item.add_marker("seldom")
    if item.get_closest_marker("seldom"):
        item.add_marker("slow")


def of_other_shares(items, share, shares):
    """Returns the tests that can wait, if one of so many shares runs, and the next one tomorrow."""
    return [one for one in items if _number(one) % shares != (share + TODAY) % shares]


def _number(item):
    """Returns the number of a test; those of one scenario have one, as one run serves all."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    asks_runs = "runs" in getattr(item, "fixturenames", ())
    name = params.get("name", params.get("tied")) if asks_runs else item.nodeid
    return zlib.crc32(name.encode())
