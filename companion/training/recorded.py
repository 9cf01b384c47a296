"""Recorded runs: a table that is committed, one row a run, with what it was made from and with."""

import csv
import functools
import io
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from companion import paths, store
from companion.errors import CompanionError
from companion.training import data
from companion.training.baselines import baselines, probed, table
from companion.training.config import EMOJI, Config, from_json
from companion.training.provenance import NAMES
from companion.training.runs import Run
from companion.training.sweeps import sweep

HISTORIES = "histories.csv"  # beside the table, in some folders
NEEDED = ("key", "data", "config", "linear_accuracy", "negative_variance")  # without these a row says nothing
PROVENANCE = (*NAMES, "seconds")
CHOOSING = 1000, 1001, 1002  # seeds of the runs that a setting was chosen by: no result rests on them
NAME = re.compile("[a-z][a-z0-9_]*")  # of a metric
RANGES = {  # of metrics, by what their names end in
    "accuracy|low|high|r[0-9]|known|kind|group": (0, 1),  # shares of images or concepts
    "mean|tolerance": (-1, 1),  # of cosine similarities, as are
    "variance|variance_[a-z_]+|std": (0, 1),
    "alignment": (0, 4),
    "uniformity": (-8, 0),
    "gap": (0, 2),
}
ANY = -sys.float_info.max, sys.float_info.max
ROUNDING = 1e-4  # of float32, and more
LONGEST = 200  # characters of a cell of provenance; csv reads up to 131,072


def record(
    runs: Iterable[Run],
    path: Path,
    *,
    identity: Callable[[str], str] = data.identity,
    accuracies: Callable[[list[Config]], list[float]] = probed,
) -> int:
    """Add runs to the table at ``path``; return how many rows it has then.

    A run that it has stays as it is, for other results were computed from it: remove its line to record it again.
    Where ``histories.csv`` lies beside the table, it is kept in step: a row an epoch of each trained run of the table.

    Args:
        runs: finished runs.
        path: of the table, in a folder of its own.
        identity: what the data set of a run is, if it does not lie here.
        accuracies: of the baselines, as in :func:`companion.training.table`; nan leaves the cell empty.

    Raises:
        CompanionError: if a file is there and no such table, or cannot be written.
    """
    runs, known = {run.key: run for run in runs}, _known(path)
    new = {key: run for key, run in runs.items() if key not in known}
    trained = table((run for run in new.values() if run.config.epochs), accuracies=accuracies)
    measured = {name for run in new.values() for name in run.metrics}
    beside = [column for column in trained if column.endswith("_accuracy") and column not in measured]
    found = trained.set_index("key")[beside] if len(trained) else pd.DataFrame()
    rows = [
        {"key": key, "data": identity(run.config.dataset), "config": json.dumps(_shareable(run.config))}
        | run.metrics
        | (found.loc[key].to_dict() if key in found.index else {})
        | run.provenance
        for key, run in sorted(new.items())
    ]
    with store.lock(f"recorded-{path.parent.name}"):
        whole, known = _rows(path) if path.exists() else pd.DataFrame(columns=["key"]), _known(path)
        rows = [row for row in rows if row["key"] not in known]  # another process may have added it meanwhile
        if rows:
            added = pd.DataFrame(rows)
            whole = pd.concat([whole[~whole["key"].isin(added["key"])], added]).sort_values("key")
            _write(whole, path)
            read.cache_clear()
        _follow(path.with_name(HISTORIES), runs, known, _known(path))
    return len(whole)


def sound(run: Run) -> None:
    """Look whether a run that comes from elsewhere can have a row: each file holds what it should, no number is
    impossible, and neither a name nor a value harms the rest of the table.

    Raises:
        CompanionError: with what is wrong.
    """
    measured, made_with = run.metrics, run.provenance
    settings = set(run.config.flat()) - {"bias"}  # which Clip sets at first, and learns
    taken = {*NEEDED[:3], *PROVENANCE, *settings, *(f"{name}_accuracy" for name in baselines(run.config))}
    for name in sorted({*measured, *NEEDED[3:]}):
        if name in taken or not NAME.fullmatch(name):
            raise CompanionError(f"its metrics are damaged: {name!r:.60} is no name of a metric")
        value, (low, high) = measured.get(name), _range(name)
        undefined = value != value and name not in NEEDED
        if type(value) not in (int, float) or not (low - ROUNDING <= value <= high + ROUNDING or undefined):
            within = f" from {low} to {high}" if (low, high) != ANY else ""
            raise CompanionError(f"its metrics are damaged: {name} is {value!r:.40}, expected a finite number{within}")
    if not {"torch", "device", "commit"} <= set(made_with):
        raise CompanionError("its environment.json does not say what it was made with")
    for name, value in made_with.items():
        if name not in PROVENANCE:
            raise CompanionError(f"its environment.json has {name!r:.60}: expected only {', '.join(PROVENANCE)}")
        expected = f"a line of at most {LONGEST} characters"
        good = isinstance(value, str) and value.isprintable() and len(value) <= LONGEST
        if name == "seconds":
            expected, good = "a number of at least 0", type(value) in (int, float) and 0 <= value <= ANY[1]
        if not good:
            raise CompanionError(f"its environment.json is damaged: {name} is {value!r:.40}, expected {expected}")
    if run.config.epochs:
        history = run.history
        named = "loss" in history and all(map(NAME.fullmatch, history)) and not {"key", "epoch"} & set(history)
        numeric = named and all(map(pd.api.types.is_numeric_dtype, history.dtypes))
        if not numeric or len(history) != run.config.epochs or not np.isfinite(history["loss"]).all():
            raise CompanionError(
                f"its history is damaged: expected {run.config.epochs} epochs, each with a finite loss"
            )


def _range(metric: str) -> tuple[float, float]:
    """What the metric of this name can be."""
    return next((found for names, found in RANGES.items() if re.fullmatch(f"(.*_)?({names})", metric)), ANY)


def fill(path: Path, accuracies: Callable[[list[Config]], list[float]]) -> int:
    """Write into the table at ``path`` the accuracies of baselines whose cells are empty, those that are known now;
    return how many. ``accuracies`` is as in :func:`record`."""
    wanted = _empty(path)
    found = dict(zip(wanted, accuracies(list(wanted.values())), strict=True))  # it may train: the table is not held
    with store.lock(f"recorded-{path.parent.name}"):
        found = {cell: found[cell] for cell in _empty(path) if np.isfinite(found.get(cell, np.nan))}
        if found:
            whole = _rows(path)
            for (key, column), accuracy in found.items():
                whole.loc[whole.index[whole["key"] == key][0], column] = accuracy
            _write(whole, path)
            read.cache_clear()
    return len(found)


def _empty(path: Path) -> dict[tuple[str, str], Config]:
    """Key and column of each empty cell of a baseline, in the rows that count, and the run that belongs there."""
    read.cache_clear()
    rows = read(path).to_dict("records")
    return {
        (row["key"], f"{name}_accuracy"): beside
        for row in rows
        if row["epochs"]
        for name, beside in baselines(from_json(row["config"])).items()
        if pd.isna(row.get(f"{name}_accuracy"))
    }


def begin_histories(path: Path) -> None:
    """Have the histories of the runs kept, from now on, beside the table at ``path``."""
    with store.lock(f"recorded-{path.parent.name}"):
        if not path.with_name(HISTORIES).exists():
            _write(pd.DataFrame(columns=["key", "epoch"]), path.with_name(HISTORIES))


def _follow(path: Path, runs: dict[str, Run], before: set[str], known: set[str]) -> None:
    """Add the histories of runs that are ``known``, now, to those at ``path``, if any are kept.

    Of a run that was not known ``before`` none can be right: its line was removed to record it again.
    """
    if not path.exists():
        return
    try:
        old = pd.read_csv(path)
        kept = old[old["key"].isin(before)]
    except (ValueError, KeyError) as error:
        raise CompanionError(
            f"{path} is not a table of histories ({error}): restore it from the repository."
        ) from error
    absent = sorted(key for key in known & set(runs) - set(kept["key"]) if runs[key].config.epochs)
    added = [runs[key].history for key in absent]
    for key, history in zip(absent, added, strict=True):
        history.insert(0, "key", key)
        history.insert(1, "epoch", range(1, len(history) + 1))
    whole = pd.concat([frame for frame in (kept, *added) if len(frame)] or [kept]).sort_values(["key", "epoch"])
    if added or len(kept) < len(old):
        _write(whole, path)


def _write(rows: pd.DataFrame, path: Path) -> None:
    buffer = io.StringIO()
    rows.to_csv(buffer, index=False, float_format="%.7g", lineterminator="\n")
    store.write(path, buffer.getvalue())


def _known(path: Path) -> set[str]:
    """Keys of the runs that the file has now, whole."""
    read.cache_clear()
    return set(read(path).get("key", []))


def matching(configs: Iterable[Config], folder: str = "cpu") -> pd.DataFrame:
    """The recorded runs of these settings, of any seeds but ``CHOOSING``, as :func:`companion.training.table` has them.

    Args:
        configs: descriptions of runs; their seeds do not count.
        folder: of the recorded results: ``cpu``, or that with the name of another data set.

    Returns:
        One row a run; no row where nothing was recorded.
    """
    wanted = {_settings(config) for config in configs}
    known = read(paths.reference() / folder / "runs.csv")
    if not len(known):
        return known
    known = known[~known["seed"].isin(CHOOSING)]
    found = known["config"].map(lambda text: _settings(from_json(text)) in wanted).astype(bool)
    return known[found].reset_index(drop=True)


def table_of(configs: Iterable[Config], folder: str = "cpu") -> pd.DataFrame:
    """What :func:`companion.training.table` says of these very runs: of those that were recorded, what was recorded;
    the others are trained.

    Args:
        configs: descriptions of runs.
        folder: of the recorded results, as in :func:`matching`.
    """
    configs = {config.key(data.identity(config.dataset)): config for config in configs}
    known = read(paths.reference() / folder / "runs.csv")
    known = known[known["key"].isin(configs)] if len(known) else known
    missing = [config for key, config in configs.items() if key not in set(known.get("key", []))]
    return pd.concat([known, table(sweep(missing))], ignore_index=True) if missing else known.reset_index(drop=True)


@functools.cache
def read(path: Path) -> pd.DataFrame:
    """The whole table at ``path``, one row a run; a damaged, foreign or repeated row is left out, and told once.

    Raises:
        CompanionError: if the file is no table of runs at all.
    """
    if not path.exists():
        return pd.DataFrame()
    names, lines = _lines(path)
    rows, good = _parsed(names, lines), {}
    numbers = [name for name in rows if _range(name) != ANY]
    for line, row in zip(rows.index, rows.to_dict("records"), strict=True):
        try:
            config = from_json(row["config"])
            if config.key(row["data"]) != row["key"]:
                raise CompanionError("its key is not that of its config: another version made it, or it was edited")
            found = {name: float(row[name]) for name in numbers}
            if not np.isfinite([found["linear_accuracy"], found["negative_variance"]]).all():
                raise CompanionError("its metrics are not finite")
            if row["key"] in good:
                raise CompanionError("its run has a line above")
        except (ValueError, TypeError) as error:
            _ignored(path, line, error)
            continue
        good[row["key"]] = line, config.flat()
    # Anew, for a cell that is no number has made text of its whole column.
    kept = _parsed(names, {line: lines[line] for line, _ in good.values()}).to_dict("records")
    return pd.DataFrame([flat | row for (_, flat), row in zip(good.values(), kept, strict=True)])


def _rows(path: Path) -> pd.DataFrame:
    return _parsed(*_lines(path))  # what the file holds, by the number of the line


def _lines(path: Path) -> tuple[str, dict[int, str]]:
    """The line of names, and each line that is a row by its number; one that is none is left out, and told.

    No cell has a line break, so a quote that is not closed spoils its own line alone.
    """
    try:
        names, *lines = path.read_text(encoding="utf-8").split("\n")
        columns = next(csv.reader([names]), [])
        if missing := sorted(set(NEEDED) - set(columns)):
            raise ValueError(f"it has no column {', '.join(missing)}")
    except (ValueError, csv.Error) as error:
        raise CompanionError(
            f"{path} is not a table of recorded runs ({error}): restore it from the repository."
        ) from error
    good = {}
    for number, line in enumerate(lines, start=2):
        try:
            cells = len(next(csv.reader([line], strict=True), []))
        except csv.Error as error:
            _ignored(path, number, error)
            continue
        if cells == len(columns):
            good[number] = line
        elif cells:
            _ignored(path, number, f"it has {cells} cells for {len(columns)} columns")
    return names, good


def _parsed(names: str, lines: dict[int, str]) -> pd.DataFrame:
    rows = pd.read_csv(io.StringIO("\n".join([names, *lines.values()])), dtype={"commit": str})  # 1234e56 is no number
    return rows.set_axis(list(lines))


def _ignored(path: Path, line: int, why) -> None:
    print(f"{path.name}, line {line} is ignored: {str(why).removesuffix('.')}.")


def _settings(config: Config) -> str:
    """What counts of a config here: not its seed, and not its data set, which the folder of the table says; but that of
    emoji stand in the tables of others."""
    dataset = EMOJI if config.dataset == EMOJI else ""
    return json.dumps(config.to_dict() | {"seed": 0, "dataset": dataset}, sort_keys=True)


def _shareable(config: Config) -> dict:
    """The config without where the data lie, which is nobody's business; what they are stands in another column."""
    return config.to_dict() | {"dataset": paths.without_folder(config.dataset)}
