"""Slow cases that are much alike: each day some of them run, and in so many days all."""

import datetime
import zlib

import pytest

TODAY = datetime.date.today().toordinal()


def of_today(days, cases, id=lambda case: None):
    """Marks cases as slow, and returns those of today: all of them, in so many days.

    A case is a tuple of the arguments of a test, or its only argument.
    """
    return [
        pytest.param(
            *(one if isinstance(one, tuple) else (one,)), id=id(one), marks=pytest.mark.slow(TODAY)
        )
        for one in list(cases)[TODAY % days :: days]
    ]


def of_tomorrow(items):
    """Returns those slow tests that can wait: half of them, but for what `of_today` chose."""
    slow = {one: one.get_closest_marker("slow") for one in items}
    return [
        one
        for one, mark in slow.items()
        if mark and not mark.args and zlib.crc32(one.nodeid.encode()) % 2 != TODAY % 2
    ]
