"""What a profile will cost: ``python -m companion.course.estimate NOTEBOOK … --profile gpu``. It trains nothing.

``make reproduce DRY_RUN=1`` prints this alone, and the profiles ``gpu`` and ``paper`` print it before they start.
"""

import argparse
import functools
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from companion import paths
from companion.course import profiles
from companion.course.dry_run import asked_for
from companion.errors import command
from companion.training import rates
from companion.training.config import Config
from companion.training.planned import dry_run
from companion.training.recorded import read


@dataclass(frozen=True)
class Cost:
    """Of one notebook: its runs, each counted where it is first asked for."""

    notebook: str
    needed: int
    there: int
    to_train: list[Config]
    unstored: list[tuple[Config, str]]  #: trainings that no store keeps, and on which kind of device
    cut_short: dict[int, str]  #: cells that could not be followed to their end, and why

    @functools.cached_property
    def hours(self) -> float:
        """For which the runs to train keep a device, or on the CPU a core, busy; with trainings that no store keeps, if
        they run there."""
        unstored = (config for config, device in self.unstored if (device == "cpu") != rates.on_gpu(config))
        return sum(map(rates.seconds, (*self.to_train, *unstored))) / 3600


def costs(notebooks: Sequence[Path], profile_name: str, *, dataset: str = "", seed: int = 0) -> list[Cost]:
    """The cost of each notebook at a profile, in the order in which they are given.

    Raises:
        CompanionError: for an unknown profile or data set, or what is no notebook.
    """
    parameters, found, seen = {"PROFILE": profile_name, "DATASET": dataset, "SEED": seed}, [], set()
    for notebook in notebooks:
        plan, cut_short = asked_for(notebook, parameters, most_alike)
        missing = [config for config, there in plan.runs.items() if not there and config not in seen]
        seen.update(missing)
        there = sum(plan.runs.values())
        found.append(Cost(notebook.stem, len(plan.runs), there, missing, plan.unstored, cut_short))
    return found


def most_alike(config: Config) -> dict[str, float]:
    """The metrics of the recorded run that has most settings in common with ``config``; none where none is recorded."""
    return _most_alike(config.replace(seed=0))


@functools.cache
def _most_alike(config: Config) -> dict[str, float]:
    known, wanted = read(paths.reference() / "cpu" / "runs.csv"), config.flat()
    if not len(known):
        return {}
    known = known[known["method"] == wanted["method"]] if (known["method"] == wanted["method"]).any() else known
    alike = sum((known[name] == value).astype(int) for name, value in wanted.items() if name in known)
    row = known.loc[alike.idxmax()].drop(labels=list(wanted), errors="ignore")
    return {name: value for name, value in row.items() if isinstance(value, float) and value == value}


def report(found: Sequence[Cost], profile) -> str:
    """The table, and how it came about."""
    unit = "core-hours" if profile.accelerator == "cpu" else "GPU-hours"
    rows = {c.notebook: [c.needed, c.there, len(c.to_train), f"{c.hours:.2f}"] for c in found}
    table = pd.DataFrame(rows, index=["runs needed", "there already", "to train", unit]).T
    trained, hours = sum(len(c.to_train) for c in found), sum(c.hours for c in found)
    notes = [
        "A run that several notebooks need is to train in the first of them. Where a notebook goes on by results that "
        "are not there, those of the recorded run that is most alike stand in.",
        _how(profile),
    ]
    for cost in found:
        for cell, why in cost.cut_short.items():
            notes.append(f"{cost.notebook}: at least these; cell {cell} was not followed to its end ({why}).")
        if cost.unstored:
            apart = sum((device == "cpu") == rates.on_gpu(config) for config, device in cost.unstored)
            where = f"{apart} of them on the CPU, not in the hours" if apart else "in the hours"
            notes.append(f"{cost.notebook}: {len(cost.unstored)} trainings that no store keeps, {where}.")
    head = f"Profile {profile.folder}: {trained} runs to train, about {hours:.1f} {unit}."
    return "\n".join([head, "", table.to_string(), "", *(textwrap.fill(note, 100) for note in notes)])


def _how(profile) -> str:
    """Where the hours come from."""
    if profile.accelerator != "cpu" and not torch.cuda.is_available():
        return (
            "The hours are from what was recorded on one H100 (results/reference/README.md), since no CUDA device is "
            "here: a ResNet-18 in bfloat16 at batches of 32 and 512, and the line through both. Other networks, image "
            "sizes and methods are scaled by multiply-adds, float32 by one measurement."
        )
    device = "one core of this machine" if profile.accelerator == "cpu" else torch.cuda.get_device_name()
    return (
        f"The hours are from a few steps of each kind, and from the measuring at the end, timed on {device} just now."
    )


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Say what notebooks will cost; train nothing, write nothing.")
    parser.add_argument("notebooks", type=Path, nargs="+")
    parser.add_argument("--profile", default="auto", help="smoke, cpu, gpu, paper, reference, long, or auto")
    parser.add_argument("--dataset", default="", help="a data set in place of the profile's own")
    parser.add_argument("--seed", type=int, default=0, help="added to every seed of the profile")
    arguments = parser.parse_args()
    with dry_run(most_alike):  # also for the profile, which asks for a device, and the data that steps are timed on
        profile = profiles.load(arguments.profile, dataset=arguments.dataset, seed=arguments.seed)
        found = costs(arguments.notebooks, profile.name, dataset=arguments.dataset, seed=arguments.seed)
        print(report(found, profile))


if __name__ == "__main__":
    sys.exit(main())
