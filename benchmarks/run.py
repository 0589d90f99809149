"""Measures what saving and loading costs, and prints it beside stock Keras, raw I/O and peers.

Each method runs in a process of its own, so that its peak memory is its own. Times are ratios
to raw I/O of the same bytes in the same process, in turn, medians; nothing is compared between
runs. Raw reads go into fresh memory, as a loader must allocate, too; "load / warm read" is beside
reads into a warm buffer instead.

Resident memory counts: pages of mapped files too, the page cache and what lies in tmpfs not.
Stock Keras stores the shared table twice, and drops the slots of the optimizer when it loads.
"""

import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import measure
import methods
import models
import report
from rich.console import Console


@click.command(help=__doc__)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False),
    default="/dev/shm" if Path("/dev/shm").is_dir() else None,  # noqa: S108 - memory, not a disk
    show_default=True,
    help="Where to write; in memory, so that the disk is not what is measured.",
)
@click.option("--picture", type=click.Path(path_type=Path), help="Also draw a PNG or SVG file.")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Also write the figures.")
@click.option("--markdown", is_flag=True, help="Also print the tables as in docs/performance.md.")
@click.option("--quick", is_flag=True, help="Tiny models, once, one process: to see that it runs.")
@click.option(
    "--only",
    multiple=True,
    metavar="WORD",
    help="Only tasks with this word, such as tiedio, speed.",
)
def main(
    folder: str | None,
    picture: Path | None,
    as_json: Path | None,
    markdown: bool,
    quick: bool,
    only: tuple[str, ...],
) -> None:
    """Measures, then shows."""
    if picture and importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("matplotlib is missing: pip install 'tiedio[benchmark]'")
    console = Console(width=120)
    tasks = [task for task in _tasks(quick) if all(word in str(task) for word in only)]
    tasks.insert(0, ("versions",))
    batches = [tasks] if quick else [[task] for task in tasks]
    figures: measure.Figures = {}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for number, batch in enumerate(batches, 1):
            said = "everything" if quick else " ".join(map(str, batch[0]))
            print(f"{number} of {len(batches)}: {said} ...", file=sys.stderr)
            for figure, values in _measured(batch, Path(name)).items():
                figures.setdefault(figure, {}).update(values)
            if as_json:  # at each step: the whole takes minutes
                as_json.write_text(json.dumps(figures, indent=1))
    header = _header(figures.pop("versions"))
    tables = report.headline(figures), report.peers(figures), report.stalls(figures)
    console.print(header, highlight=False)
    console.print(report.as_rich(tables[0], report.goals_met(figures)))
    for table in tables[1:]:
        console.print(report.as_rich(table))
    if markdown:
        print(*map(report.as_markdown, tables), header, sep="\n\n")
    if picture:
        report.draw(figures, header, picture)


def _tasks(quick: bool) -> list[Any]:
    """Lists what is to be measured: a function of `measure`, and its arguments."""
    scale, repetitions = ("quick", 1) if quick else ("full", 5)
    tasks: list[Any] = []
    for flavour in models.SIZES[scale]:
        for method in methods.OF_MODELS:
            tasks.append(("speed", method.name, scale, flavour, repetitions))
            # In this order: the one reads what the other wrote.
            tasks.append(("memory_of_saving", method.name, scale, flavour))
            tasks.append(("memory_of_loading", method.name, scale, flavour))
    for method in methods.PEERS:
        if method.is_installed():
            tasks.append(("speed", method.name, scale, "plain", repetitions))
    tasks.append(("stalls", scale, "Adam", repetitions))
    tasks.append(("commands", repetitions))
    tasks.append(("whole_files", scale, repetitions))
    tasks.append(("verification", scale, repetitions))
    for count, times in ((2, 1), (4, 1)) if quick else ((100, 5), (400, 3), (1600, 1), (5000, 1)):
        tasks.append(("many_layers", count, times))
    for name, (needed, _) in models.KNOWN.items():
        if importlib.util.find_spec(needed):
            tasks.append(("known_model", name, repetitions))
    return tasks


def _measured(tasks: list[Any], folder: Path) -> measure.Figures:
    with tempfile.TemporaryDirectory() as name:
        answer = Path(name) / "answer.json"
        arguments = [measure.__file__, json.dumps(tasks), str(folder), str(answer)]
        run = subprocess.run(
            [sys.executable, *arguments],
            env={"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore", **os.environ},
            capture_output=True,
            text=True,
        )
        if run.returncode:
            raise click.ClickException(f"{tasks} failed:\n{run.stderr}")
        return json.loads(answer.read_text())


def _header(versions: dict[str, str]) -> str:
    """Says when, on what class of machine and with which versions it was measured."""
    machine = f"{_cpu()}, {os.cpu_count()} cores"
    if hasattr(os, "sysconf"):
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        machine += f", {pages / 1e9:.0f} GB"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{datetime.date.today()}; {machine}; Python {platform.python_version()}, {packages}"


def _cpu() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else ()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    main()
