"""Shows in a table what the main job comes to on real input, with stock Keras and with tiedio.

Keras is imported in other processes only. What it logs there is shown if one fails.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

_METHODS = {"stock": "stock Keras", "tiedio": "tiedio"}


def run() -> bool:
    """Runs the demo and prints its table.

    Returns:
        Whether tiedio restored everything.
    """
    console = Console(width=100, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        console.print("Training two convolutions with one kernel on the handwritten digits ...")
        before = _found("train", folder)
        console.print(f"Trained for {before['iterations']} steps: {before['accuracy']:.1%} right.")
        reports = {}
        for method, name in _METHODS.items():
            console.print(f"Loading with {name} in a new process, fine-tuning ...")
            reports[method] = _found(method, folder)
        console.print(_table(before, reports))
    return all(is_good for _, _, is_good in _answers(before, reports["tiedio"]))


def _found(step: str, folder: str) -> dict[str, Any]:
    """Takes a step in a new process, and returns what was found there."""
    command = [sys.executable, "-m", "tiedio.cli.demo_steps", step, folder]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise click.ClickException(f"{done.stderr}The step `{step}` of the demo failed.")
    return json.loads(Path(folder, f"{step}.json").read_text())


def _answers(before: dict[str, Any], report: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Lists the questions, each with its answer, and whether that is good."""
    step, last_step = report["iterations"], before["iterations"]
    parameters, tied = report["parameters"], report["tied"] and not report["drift"]
    drifted = f"drifted apart, by up to {report['drift']:.4f}"
    return [
        ("File size", f"{report['bytes']:,} bytes", True),
        (
            "Parameters after loading",
            f"{parameters:,} (were {before['parameters']:,})",
            parameters == before["parameters"],
        ),
        (
            "Optimizer state resumed",
            f"{_yes(step == last_step)}, at step {step} of {last_step}",
            step == last_step,
        ),
        ("Convolutions after fine-tuning", "still tied" if tied else drifted, tied),
        ("Bit-equal to an unbroken run", _yes(report["bit_equal"]), report["bit_equal"]),
    ]


def _table(before: dict[str, Any], reports: dict[str, dict[str, Any]]) -> Table:
    table = Table("", *_METHODS.values(), title="Save, load in a new process, fine-tune")
    columns = [_answers(before, reports[method]) for method in _METHODS]
    for answers in zip(*columns, strict=True):
        cells = (f"[{'green' if good else 'red'}]{answer}[/]" for _, answer, good in answers)
        table.add_row(answers[0][0], *cells)
    return table


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"
