"""What stands in the place of a run in a dry run."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from companion.errors import CompanionError
from companion.training import planned
from companion.training.config import Config
from companion.training.runs import Run, complete, folder


@dataclass(frozen=True)
class StandIn(Run):
    """In a dry run the place of a run: it has no weights, and if it is not in the store the numbers of another."""

    numbers: dict[str, float] = field(compare=False)

    @property
    def metrics(self) -> dict[str, float]:
        """Its own, or those of the other run."""
        return self.numbers

    @property
    def history(self) -> pd.DataFrame:
        """The same in every epoch."""
        return pd.DataFrame([{"step": epoch + 1, "loss": 1.0} | self.numbers for epoch in range(self.config.epochs)])

    def method(self):
        raise CompanionError(f"{self.key} is the stand-in of a run: a dry run has no weights.")


def stand_in(config: Config, plan: planned.Plan) -> StandIn:
    """Note that a run is asked for. One on an image folder that is not there has no name, and is in no store."""
    try:
        path = folder(config)
    except CompanionError:
        path = Path("unknown")
    plan.runs[config] = complete(path)
    return StandIn(config, path, Run(config, path).metrics if plan.runs[config] else plan.numbers(config))
