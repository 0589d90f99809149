"""Trainings of scenarios in processes of their own: uninterrupted, and resumed from a file."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import scenarios

PROCESSES = 2
WORTH_A_PROCESS = 10  # tasks; a process imports for as long as it runs so many
RESUMED = ("resume", *scenarios.CONTAINERS)  # parts that one process can run one after another

# In a process that ran other models before, TensorFlow now and then adds up large convolutions
# in another order, also when it is not interrupted (1 run of 5; alone 0 of 12).
ALONE = ("origin_at_its_real_size",)

_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Backend:
    """A backend of Keras, and the names of the scenarios that it can run."""

    name: str
    scenarios: tuple[str, ...]

    def __str__(self):
        return self.name


@functools.cache
def backends(asked):
    """Lists the backends that are asked for, by names; that in force if none is.

    One that is missing is an error: a test that is skipped tells nobody.
    """
    in_force = keras.backend.backend()
    return [
        Backend(name, tuple(scenarios.SCENARIOS) if name == in_force else _scenarios_on(name))
        for name in (asked.split(",") if asked else [in_force])
    ]


def _scenarios_on(backend):
    answer = subprocess.run(
        [sys.executable, "-c", "import scenarios; print(*scenarios.SCENARIOS)"],
        cwd=_HERE,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        raise pytest.Collector.CollectError(
            f"The backend `{backend}` was asked for and cannot be imported: "
            f"{answer.stderr.splitlines()[-1]}"
        )
    return tuple(answer.stdout.splitlines()[-1].split())


class Runs:
    """The same training, uninterrupted on one backend, and resumed on the same or another.

    Args:
        folder: For all files; what a writer saved is there once for all readers.
        writer: The backend that trains, saves, and trains on.
        reader: The backend that loads, and trains on.
        asked: For each test of these its scenario, and container if any.
    """

    def __init__(self, folder, writer, reader, asked):
        self.saved = folder / str(writer)
        self.loaded = folder / f"{writer} to {reader}"
        self.writer = writer
        self.reader = reader
        self.asked = asked

    def names(self, part):
        """Lists the scenarios to run for a part, in the order in which they stand."""
        if part == "start":
            wanted = {name for writer, _, name, _ in self.asked if writer == self.writer}
        else:
            container = part if part in scenarios.CONTAINERS else None
            wanted = {
                name
                for writer, reader, name, asked in self.asked
                if (writer, reader, asked) == (self.writer, self.reader, container)
            }
        return [name for name in self.writer.scenarios if name in wanted]

    def run(self, part):
        """Runs a part once for all scenarios that are asked for; returns what it wrote."""
        seen = self._seen(part)
        if not seen.exists():
            parts = RESUMED if part in RESUMED else [part]
            for one in parts:
                self._seen(one).mkdir(parents=True)
            if part == "start":
                self._tell_containers()
            tasks = [(one, name) for one in parts for name in self.names(one)]
            together = [task for task in tasks if task[1] not in ALONE]
            cores = min(PROCESSES, 1 + len(together) // WORTH_A_PROCESS)
            self._run_at_once(part, *(together[core::cores] for core in range(cores)))
            for task in tasks:
                if task[1] in ALONE:
                    self._run_at_once(part, [task])
        return seen

    def _seen(self, part):
        return (self.saved if part == "start" else self.loaded) / part

    def _tell_containers(self):
        contained = {container: [] for container in scenarios.CONTAINERS}
        for writer, _, name, container in self.asked:
            if container and writer == self.writer:
                contained[container].append(name)
        (self.saved / "contained.json").write_text(json.dumps(contained))

    def _run_at_once(self, part, *tasks_by_core):
        backend = self.writer if part == "start" else self.reader
        folders = self.saved, self._seen(part).parent
        processes = [
            subprocess.Popen(
                [sys.executable, _HERE / "new_process.py", str(core), *folders]
                + ["/".join(task) for task in tasks],
                cwd=self.saved,
                env={**os.environ, "KERAS_BACKEND": backend.name},
            )
            for core, tasks in enumerate(tasks_by_core)
            if tasks
        ]
        assert {process.wait() for process in processes} <= {0}

    def facts(self, name, part="resume"):
        """What was tied, what the optimizers held: of the uninterrupted run, and of `part`."""
        seen = [self.run("start"), self.run(part)]
        facts = [json.loads((folder / f"{name}.json").read_text()) for folder in seen]
        failures = [one["error"] for one in facts if "error" in one and part != "never_retied"]
        assert not failures, failures[0]
        return facts

    def filepath(self, name):
        """The file that the uninterrupted run saved on its way."""
        self.run("start")
        return self.saved / f"{name}.keras"

    def states(self, name, moment, moment_of_start=None, part="resume"):
        """Every array at that moment: of the uninterrupted and the resumed run."""
        self.facts(name, part)
        found = []
        for one, wanted in (("start", moment_of_start or moment), (part, moment)):
            with np.load(self.run(one) / f"{name}.npz") as seen:
                found.append([seen[key] for key in seen.files if key.startswith(f"{wanted}_")])
        return found
