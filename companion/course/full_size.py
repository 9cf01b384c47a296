"""What was recorded with the main paper's network and image size, by the profiles ``paper`` and, on a shorter schedule
and other images, ``gpu``, beside what a laptop finds."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from companion import paths
from companion.course import profiles
from companion.ledger import over_seeds
from companion.ledger.scoreboard import NOT_RUN
from companion.training.recorded import matching

# Variance of negatives, as printed: λ of VRNS → batch size m (Lee et al. 2025, Table 1: SimCLR, CIFAR-100, ResNet-18).
TABLE_1 = {
    0.0: {32: 0.1649, 64: 0.1505, 128: 0.1444, 256: 0.1404, 512: 0.1396},
    30.0: {32: 0.1008, 64: 0.0952, 128: 0.0929, 256: 0.0921, 512: 0.0917},
}


@dataclass(frozen=True)
class FullSize:
    """The recorded runs of some settings, a table each, from the one folder that has most of them."""

    folder: str
    tables: list[pd.DataFrame]

    def column(self, metric: str) -> list[str]:
        """A cell a setting: the mean over its runs and their number n; from three runs on with the 95 % interval of the
        mean; ``not run`` where there is none."""
        return [_cell(rows.get(metric, pd.Series(dtype=float)).dropna()) for rows in self.tables]

    def __str__(self) -> str:
        """In words where they come from."""
        rows = pd.concat(self.tables) if self.tables else pd.DataFrame()
        if not len(rows):
            return "Full size: none of these settings has been recorded."
        said = {name: ", ".join(f"{value:,}" if name == "n_train" else str(value) for value in sorted(set(rows[name])))
                for name in ("encoder", "n_train", "epochs", "device")}  # fmt: skip
        return (
            f"Full size: {rows['key'].nunique()} recorded runs of `{self.folder}` ({said['encoder']}, {said['n_train']}"
            f" images, {said['epochs']} epochs; {said['device']})."
        )


def full_size(settings: Sequence[dict | Sequence[dict]]) -> FullSize:
    """The runs that are recorded of these settings at the papers' size.

    Args:
        settings: for each cell of a table the changes to the profile's own config, as :meth:`Profile.config
            <companion.course.profiles.Profile.config>` takes them; or several, whose runs the cell then shares.

    Returns:
        Their runs, whatever the seeds, of one profile and data set: that with runs of most of these settings, the
        paper's own schedule first.
    """
    found = [FullSize("", [pd.DataFrame() for _ in settings])]
    for folder in paths.full_size():
        profile, tables = profiles.named(folder.partition("-")[0]), []
        for changes in settings:
            wanted = [changes] if isinstance(changes, dict) else changes
            tables.append(matching([profile.config(**one) for one in wanted], folder))
        found.append(FullSize(folder, tables))
    return max(found, key=lambda one: sum(len(rows) > 0 for rows in one.tables))


def _cell(values: pd.Series) -> str:
    if not len(values):
        return NOT_RUN
    return f"{over_seeds(values) if len(values) >= 3 else f'{values.mean():.4g}'}, n = {len(values)}"
