"""What the documentation says of the command line: the help of every command, as it is printed.

`python tests/support/command_line.py` writes it there.
"""

import click
import pages
from checkout import ROOT

from tiedio.cli.main import main

PAGE = ROOT / "docs" / "command-line.md"
WIDTH = 80


def helps():
    """Returns what `--help` of the program, and of each command, prints."""
    program = click.Context(main, info_name="tiedio", terminal_width=WIDTH, **main.context_settings)
    commands = [
        click.Context(command, program, name, terminal_width=WIDTH)
        for name, command in sorted(main.commands.items())
    ]
    return [context.get_help() for context in (program, *commands)]


def written(page):
    """Returns the page with its helps as they are now."""
    blocks = "\n\n".join(f"```text\n{text}\n```" for text in helps())
    return pages.written(page, "command_line.py", blocks)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
