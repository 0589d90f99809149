"""Pages with a part that a script writes, between marks that name the script."""

import re


def written(page, script, part):
    """Returns the text of a page with that part as it is now."""
    begin, end = f"<!-- begin: python tests/support/{script} -->", "<!-- end -->"
    between = f"{re.escape(begin)}.*?{re.escape(end)}"
    return re.sub(between, lambda _: f"{begin}\n\n{part}\n\n{end}", page, flags=re.DOTALL)
