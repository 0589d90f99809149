"""Slow cases that are much alike: each day some of them run, and in so many days all."""

import datetime

import pytest

TODAY = datetime.date.today().toordinal()


def of_today(days, cases, id=lambda case: None):
    """Marks cases as slow, and returns those of today: all of them, in so many days.

    A case is a tuple of the arguments of a test, or its only argument.
    """
    return [
        pytest.param(
            *(one if isinstance(one, tuple) else (one,)), id=id(one), marks=pytest.mark.slow
        )
        for one in list(cases)[TODAY % days :: days]
    ]
