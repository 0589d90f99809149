"""Options that several commands have, and what is in the files that are given to some."""

import json
from typing import Any

import click


def _read_json(context: click.Context, parameter: click.Parameter, file: Any) -> Any:
    """Reads a file that was given to an option."""
    if file is None:
        return None
    try:
        return json.load(file)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"`{file.name}` is not JSON: {error}") from error


def _read_ties(context: click.Context, parameter: click.Parameter, file: Any) -> list[str]:
    content = _read_json(context, parameter, file)
    if isinstance(content, dict):
        content = [f"{alias}={owner}" for alias, owner in content.items()]
    if not isinstance(content, list | None) or not all(isinstance(t, str) for t in content or ()):
        raise click.BadParameter(f"`{file.name}` holds no object of names, and no list of A=B.")
    return content or []


def _read_config(context: click.Context, parameter: click.Parameter, file: Any) -> Any:
    content = _read_json(context, parameter, file)
    if not isinstance(content, dict | None):
        raise click.BadParameter(f"`{file.name}` holds no config of a model.")
    return content


# Of any kind, also one that does not exist, or a URL; a shell completes it.
PATH = click.Path(readable=False)

files = click.argument("files", nargs=-1, required=True, type=PATH)


def _read_lambdas(context: click.Context, parameter: click.Parameter, given: Any) -> dict[str, str]:
    pairs = [one.rpartition("=") for one in given]
    if wrong := [function for name, _, function in pairs if not name]:
        raise click.BadParameter(f"`{wrong[0]}` is not of the form NAME=MODULE:FUNCTION.")
    return {name: function for name, _, function in pairs}


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace what is at DST.")
tie = click.option(
    "--tie",
    "ties",
    multiple=True,
    metavar="A=B",
    help="Tie the variable A to B, or the layer A to B. May be repeated.",
)
ties = click.option(
    "--ties",
    "ties_file",
    type=click.File(encoding="utf-8"),
    callback=_read_ties,
    help='The same in a JSON file: `{"A": "B"}`, or `["A=B"]`.',
)
lambdas = click.option(
    "--lambda",
    "lambdas",
    multiple=True,
    callback=_read_lambdas,
    metavar="NAME=MODULE:FUNCTION",
    help="Let the layer NAME call this function, or one of a registered name, in place of "
    "its own, which the file has as code. May be repeated.",
)
config = click.option(
    "--config",
    type=click.File(encoding="utf-8"),
    callback=_read_config,
    help="The model's config, as of `model.to_json()`, for files of this model without one.",
)
