"""Tests of which some run each day, and in so many days all."""

import datetime
import zlib

import pytest

TODAY = datetime.date.today().toordinal()

slow_and_of_today = pytest.mark.slow(TODAY)  # in every share


def of_today(days, cases, id=lambda case: None):
    """Marks cases as slow, and returns those of today: all of them, in so many days.

    A case is a tuple of the arguments of a test, or its only argument.
    """
    return [
        pytest.param(
            *(one if isinstance(one, tuple) else (one,)), id=id(one), marks=slow_and_of_today
        )
        for one in list(cases)[TODAY % days :: days]
    ]


def of_other_shares(items, share, shares):
    """Returns the tests that can wait, if one of so many shares runs, and the next one tomorrow."""
    return [
        one
        for one in items
        if slow_and_of_today.mark not in one.iter_markers("slow")
        and _number(one) % shares != (share + TODAY) % shares
    ]


def _number(item):
    """Returns the number of a test; those of one scenario have one, as one run serves all."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    asks_runs = "runs" in getattr(item, "fixturenames", ())
    name = params.get("name", params.get("tied")) if asks_runs else item.nodeid
    return zlib.crc32(name.encode())
