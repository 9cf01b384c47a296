"""Add what another machine computed to the recorded results: ``python -m companion.course.merge FROM INTO``.

``FROM`` is the results folder of that machine, here or over ssh, ``INTO`` a folder of ``results/reference``, named
after the profile and the data set, such as ``gpu-cifar10-jpeg``.
"""

import argparse
import math
import re
import subprocess
import sys
from pathlib import Path

import torch

from companion import paths, store
from companion.course import profiles
from companion.errors import CompanionError, command, extra
from companion.ledger.ledger import STOOD, TAKEN, take_over
from companion.ledger.ledger import read as read_claims
from companion.training import data
from companion.training.baselines import baselines, differing
from companion.training.config import EMOJI, Config
from companion.training.encoders import FIXED
from companion.training.recorded import CHOOSING, HISTORIES, begin_histories, fill, read, record, sound
from companion.training.runs import FILES, Run, complete, stored
from companion.training.sweeps import sweep

with extra("course"):
    import pandas as pd

WEIGHTS = "weights.safetensors"  # many times as large as the rest of a run, and nothing that is recorded needs them
NAMED = 10  # at most, of those that are refused for one reason
VANISHED = 24  # rsync's status where a file went away meanwhile, as those of a run that is being made do


def fetch(source: str, folder: str, *, weights: bool = False) -> Path:
    """The results folder that ``source`` names: as it is if it lies here, else its copy below ``results/fetched``.

    Args:
        source: a folder with ``runs/``, or what rsync takes, ``user@host:path/to/results``.
        folder: whose claims are fetched too.
        weights: fetch the weights as well.

    Raises:
        CompanionError: if there is no such folder, rsync is missing or fails.
    """
    found = Path(source).expanduser()
    if not found.exists() and ":" in source and not source.startswith("-"):
        found = paths.results() / "fetched" / re.sub(r"[^A-Za-z0-9.]+", "-", source).strip("-.")[-100:]
        wanted = [f"/runs/*/{name}" for name in FILES if weights or name != WEIGHTS]
        wanted = ["/runs/", "/runs/*/", *wanted, f"/{folder}/", f"/{folder}/claims.json"]
        wanted += ["/reference/", f"/reference/{folder}/", f"/reference/{folder}/claims.json"]
        filters = ["--exclude=.*", *(f"--include={name}" for name in wanted), "--exclude=*"]
        with store.lock(f"fetch-{found.name}"):
            found.mkdir(parents=True, exist_ok=True)
            _rsync(["--recursive", "--times", "--compress", "--prune-empty-dirs", "--delete", *filters], source, found)
    if not source or not (found / "runs").is_dir():
        raise CompanionError(
            f"FROM is {source!r}, which has no folder runs/: expected the results folder of another machine, "
            "user@host:path/to/results, or a folder here (unpack an archive first)."
        )
    return found


def _rsync(options: list[str], source: str, target: Path) -> None:
    try:
        done = subprocess.run(
            ["rsync", *options, "--", f"{source.rstrip('/')}/", f"{target}/"], stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError as error:
        raise CompanionError(
            f"{source} is fetched with rsync, which is not installed: install it here and there, or copy the folder "
            "and name the copy."
        ) from error
    if done.returncode not in (0, VANISHED):
        raise CompanionError(f"Fetching {source} failed; rsync says: {done.stderr.strip() or done.returncode}")


class Merge:
    """Adds results to the recorded ones of one folder, and knows what became of them.

    Args:
        folder: of the recorded results.

    Raises:
        CompanionError: for a name that is none, or a table there that is damaged.
    """

    def __init__(self, folder: str):
        found = re.fullmatch("(cpu-long|cpu|gpu|paper)(-[a-z0-9]+)*", folder)
        if not found:
            raise CompanionError(
                f"INTO is {folder!r}: expected cpu, cpu-long, gpu or paper, and for another data set its name with it, "
                "as in gpu-cifar10-jpeg."
            )
        self.folder, self.profile = folder, profiles.named(found[1].removeprefix("cpu-"))
        self.images = folder[len(found[1]) + 1 :]
        # Where a profile has a recorded reference, recorded runs have other seeds than its notebooks'.
        others = (profiles.named(name) for name in profiles.NAMES if name != self.profile.name)
        self.referenced = any(p.recorded == self.profile.recorded for p in others)
        self.path = paths.reference() / folder / "runs.csv"
        self.before = self.after = _rows(self.path)
        identities = sorted(set(self.before.get("data", [])) - {EMOJI})
        self.data = identities[0] if identities else ""  # one table, one data set
        self.sound: dict[str, Run] = {}  #: by key
        self.filled = 0  #: empty cells of baselines that could be filled
        self.refused: dict[str, str] = {}  #: name of a run → why
        self.tried: set[str] = set()  #: keys of baselines that were asked for here once
        self.other: list[str] = []  #: runs that are recorded with other numbers
        self.claims: dict[str, str] = {}  #: id → what became of it
        self.unread = ""  #: why there are none, if their file is damaged

    def add(self, source: Path) -> None:
        """Add the runs of a results folder that are complete, sound and of this table; then its claims that rest on
        recorded runs."""
        for path in sorted(path for path in (source / "runs").glob("[!.]*") if path.is_dir()):
            try:
                self.sound[path.name] = self._checked(path)
            except CompanionError as error:
                self.refused[path.name] = _of_another(error).replace(f"{path} is", "it is").rstrip(".")
            except RecursionError:
                self.refused[path.name] = "one of its files is nested too deeply to be read"
        apart = "reference" if self.referenced or self.profile.records else ""  # where what is recorded is written
        if self.sound and not len(self.before) and not apart:
            begin_histories(self.path)
        self.other = differing(self.sound, self.before)
        agreeing = [run for key, run in self.sound.items() if key not in self.other]
        record(agreeing, self.path, identity=self.identity, accuracies=self.accuracies)
        self.filled = fill(self.path, self.accuracies)
        self.after = _rows(self.path)
        self.other = differing(self.sound, self.after)
        try:
            found = read_claims(source / apart / self.folder / "claims.json")
        except CompanionError as error:
            found, self.unread = {}, f"No claim was taken over: {_of_another(error)}"
        self.claims = take_over(found, self.folder, set(self.after.index) - set(self.other) - set(self.refused))

    def identity(self, dataset: str) -> str:
        """What the data set of a run is, by the runs that are recorded; by the images that lie here if there are none.

        Raises:
            CompanionError: if it is not that of the table, or nobody knows.
        """
        if dataset == EMOJI:
            return EMOJI
        own, name = self.profile.base.dataset, profiles.slug(dataset)
        if name != self.images if self.images else dataset != own:
            raise CompanionError(f"it was trained on {name}, and {self.folder} is of {self.images or own}")
        if not self.data:
            try:
                self.data = data.identity(paths.without_folder(dataset))
            except CompanionError as error:
                raise CompanionError(
                    f"its images, {name}, are not here, and no recorded run tells what they are: name a folder that "
                    "has them with DATA="
                ) from error
        return self.data

    def accuracies(self, configs: list[Config]) -> list[float]:
        """Of baselines: as they were found there, or else as they are recorded, or stored here, or trained here where
        images and device allow it; else nan."""
        known = {key: run.metrics["linear_accuracy"] for key, run in self.sound.items()}
        known = (dict(self.before["linear_accuracy"]) if len(self.before) else {}) | known
        keys = [config.key(self.identity(config.dataset)) for config in configs]
        here = {k: c for k, c in zip(keys, configs, strict=True) if k not in known}
        # An image folder is looked for, by its name, among the data sets here.
        here = {key: config.replace(dataset=paths.without_folder(config.dataset)) for key, config in here.items()}
        try:
            sweep([c for key, c in here.items() if key not in self.tried and self._can_be_trained(c)])
        except CompanionError as error:
            print(error)  # what could be trained is stored
        self.tried |= here.keys()
        for key, config in here.items():
            if complete(paths.runs() / key):
                known[key] = Run(config, paths.runs() / key).metrics["linear_accuracy"]
        return [known.get(key, math.nan) for key in keys]

    def report(self) -> str:
        """In a few lines what was done."""
        new = self.after[self.after.index.isin(self.sound) & ~self.after.index.isin(self.before.index)]
        there = len(set(self.sound) & set(self.before.index))
        histories = self.path.with_name(HISTORIES)
        kept = f", histories of {pd.read_csv(histories)['key'].nunique()}" if histories.exists() else ""
        lines = [f"{self.folder}: {len(new)} runs are new, {there} were there; {len(self.after)} rows now{kept}."]
        if self.other:
            lines.append(f"Recorded before with other numbers, and left so: {', '.join(self.other)}.")
        if self.filled:
            lines.append(f"Empty cells of baselines that could be filled now: {self.filled}.")
        lines += _grouped("run", self.refused)
        rows = self.after
        for name in baselines(self.profile.base) if len(rows) else ():
            column = rows.get(f"{name}_accuracy", pd.Series(index=rows.index, dtype=float))
            lacking = rows[column.isna() & (rows["epochs"] > 0) & (rows["method"] != "clip")]
            if len(lacking):
                lines.append(
                    f"No {name}_accuracy in {len(lacking)} rows: none came with them, and none could be trained here. "
                    "Merge again once these baselines are there, or their images and device here: that trains them."
                )
        fates = list(self.claims.values())
        told = f"Claims: {fates.count(TAKEN)} taken over, {fates.count(STOOD)} left as they were."
        lines.append(self.unread or told)
        return "\n".join(
            lines + _grouped("claim", {i: why for i, why in self.claims.items() if why not in (TAKEN, STOOD)})
        )

    def _checked(self, path: Path) -> Run:
        """The run in a folder, whose every file was read and fits this table.

        Raises:
            CompanionError: with what is wrong.
        """
        if absent := [name for name in FILES if name != WEIGHTS and not (path / name).is_file()]:
            raise CompanionError(f"it is not complete: it has no {', '.join(absent)}")
        run = stored(path, dataset="")
        config, base = run.config, self.profile.base
        identity = self.identity(config.dataset)
        differs, compared = (self._differs(config, of) for of in (base, profiles.named(self.profile.tests_as).base))
        # Beside a longer training stands what it is compared with, of its seeds: a store has short runs of others too.
        seeds = *self.profile.seeds, *CHOOSING
        if differs and (compared or not (config.encoder in FIXED or config.seed in seeds)):
            raise CompanionError(f"it is not of profile {self.profile.name}: {', '.join(differs)}")
        if self.referenced and config.encoder not in FIXED and config.seed in self.profile.seeds:
            raise CompanionError(
                f"its seed is one of the notebooks' own, {self.profile.seeds}: recorded runs have others"
            )
        if config.key(identity) != path.name:
            raise CompanionError(
                f"its name is not that of its config on the images of this table ({identity}): it was edited, or "
                "trained on others"
            )
        sound(run)
        return run

    @staticmethod
    def _differs(config: Config, base: Config) -> list[str]:
        """In what a run is none of the profile with this base."""
        wanted = {"accelerator": base.accelerator}
        if config.dataset != EMOJI:  # whose sizes their notebook chooses
            wanted |= {"image_size": base.image_size, "images": base.n_train + base.n_validation}
        has = {name: getattr(config, name, config.n_train + config.n_validation) for name in wanted}
        return [f"{name} {has[name]} and not {value}" for name, value in wanted.items() if has[name] != value]

    def _can_be_trained(self, config: Config) -> bool:
        """Whether its images lie here, and its device is there."""
        try:
            return data.identity(config.dataset) == self.identity(config.dataset) and (
                config.accelerator != "cuda" or torch.cuda.is_available()
            )
        except CompanionError:
            return False


def _rows(path: Path) -> pd.DataFrame:
    """The recorded rows, by their keys."""
    rows = read(path)
    return rows.set_index("key") if len(rows) else rows


def _of_another(error: CompanionError) -> str:
    """What is wrong with a file of another machine, without the advice to whoever owns it."""
    return re.sub(r": remove .*$", ": merge again once it is whole there.", str(error))


def _grouped(what: str, refused: dict[str, str]) -> list[str]:
    """A line a reason, with the names."""
    reasons = {}
    for name, why in refused.items():
        reasons.setdefault(why, []).append(name)
    lines = []
    for why, names in reasons.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(f"Refused, {len(names)} {what}{'s' * (len(names) > 1)}, {why}: {', '.join(names[:NAMED])}{more}.")
    return lines


def merge(source: str, folder: str, *, weights: bool = False) -> str:
    """Fetch, check and record; see the module. Done again, it changes nothing, but for cells of baselines
    that could not be had before.

    Returns:
        What was done, in a few lines.

    Raises:
        CompanionError: for a source or a folder that there is not, or recorded files that are damaged.
    """
    done = Merge(folder)
    done.add(fetch(source, folder, weights=weights))
    return done.report()


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Add what another machine computed to the recorded results.")
    parser.add_argument("source", metavar="FROM", help="its results folder: here, or user@host:path/to/results")
    parser.add_argument("folder", metavar="INTO", help="folder of results/reference, such as gpu-cifar10-jpeg")
    parser.add_argument("--weights", action="store_true", help="fetch the weights too")
    arguments = parser.parse_args()
    print(merge(arguments.source, arguments.folder, weights=arguments.weights))


if __name__ == "__main__":
    sys.exit(main())
