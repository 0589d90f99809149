"""The command line: parse, call, print, exit code."""

import click

from tiedio.errors import MissingPackageError


@click.group()
@click.version_option(package_name="tiedio")
def main() -> None:
    """Keeps weights tied when a Keras model is saved and loaded."""


@main.command()
def demo() -> None:
    """Save, reload and fine-tune a model with shared weights.

    Trains two convolutions that share a kernel and a bias on handwritten
    digits, saves them with stock Keras and with tiedio, reloads both in new
    processes and trains on. Takes about a minute.

    Exit code: 0 if tiedio restored everything, 1 if not, 2 if a package that
    the demo needs is missing.
    """
    # Imports Keras, which takes seconds that other commands do not need.
    from tiedio.demo import run

    try:
        succeeded = run()
    except MissingPackageError as error:
        raise click.UsageError(str(error)) from error
    raise SystemExit(0 if succeeded else 1)
