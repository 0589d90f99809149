"""Tests of which a share runs each day, and in so many days all."""

import datetime
import zlib

TODAY = datetime.date.today().toordinal()
ROUND = (
    TODAY // 6
)  # of CI, which runs a sixth of the slow tests a day: the next cases in the next one


def of_other_shares(items, share, shares):
    """Returns the tests that can wait, if one of so many shares runs, and the next one tomorrow."""
    return [one for one in items if _number(one) % shares != (share + TODAY) % shares]


def _number(item):
    """Returns the number of a test; those of one scenario have one, as one run serves all."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    asks_runs = "runs" in getattr(item, "fixturenames", ())
    name = params.get("name", params.get("tied")) if asks_runs else item.nodeid
    return zlib.crc32(name.encode())
