"""The log of the speed run: a line a training, and a table of them. See :mod:`companion.bench.speedrun`."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from companion import store
from companion.bench.tricks import TRICKS
from companion.errors import CompanionError
from companion.ledger.observed import over_seeds

CLOCK = (
    "The clock runs from the moment when the decoded images lie in the device's memory: it has the building of the "
    "network, compilation, warm-up, captures, every step, and the writing of checkpoints in it. Outside are imports, "
    "the reading and decoding of the images, and the evaluations, each told below. A training that was stopped goes on "
    "with the reading of its checkpoint, so what had to be done twice for it, such as compilation, counts twice. The "
    "first training on a machine compiles; later ones find most of it in torch's cache. Views/s are those between the "
    "first evaluation and the last."
)
RULE = (
    "k = 10 neighbours by cosine among the encoder's features of un-augmented training images vote on the test images. "
    "The target is read off the test images, as speed records have it: it is met at the best of several looks, so the "
    "accuracy at that moment is a little flattered. Held-out training images, where there are any, had no say in it. "
    "The length of the schedule was chosen before."
)


def read(path: Path) -> list[dict]:
    """The rows of a log; none if there is no file yet.

    Raises:
        CompanionError: if a line is damaged.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        try:
            row = json.loads(line)
            rows.append(row | {"reached": row["reached"], "race": row["race"]})
        except (ValueError, KeyError, TypeError) as error:
            raise CompanionError(
                f"Line {number} of {path} is no row of a speed run ({error}): remove it, and its run is done again."
            ) from error
    return rows


def add(path: Path, row: dict, goal: float) -> None:
    """Append a row, and write the table anew beside it."""
    rows = [*read(path), row]
    store.write(path, "".join(json.dumps(row) + "\n" for row in rows))
    store.write(path.with_suffix(".md"), table(rows, goal))


def table(rows: list[dict], goal: float) -> str:
    """The log in Markdown.

    Args:
        rows: of the log.
        goal: minutes that a training may take to its target.
    """
    lines = ["# Speed run", "", f"{', '.join(sorted({_machine(row) for row in rows}))}.", "", CLOCK, "", RULE]
    for setting, labels in _settings(rows).items():
        lines += ["", f"## {setting}", "", *_summary(labels, goal), "", *_runs(labels)]
    lines += ["", "## Tricks", "", *(f"- `{name}`: {what}" for name, (what, _) in TRICKS.items())]
    return "\n".join(lines) + "\n"


def _settings(rows: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """Title → what was left out → rows: only what differs in its tricks alone, and in seeds, is compared."""
    found = {}
    for row in rows:
        found.setdefault(_title(row["race"]), {}).setdefault(row["left_out"], []).append(row)
    return {title: dict(sorted(labels.items())) for title, labels in found.items()}  # "", nothing left out, first


def _title(race: dict) -> str:
    """Every value that an option of the command sets, so that what differs in one is not put together."""
    config = race["config"]
    held_out = f" ({config['n_validation']:,} held out)" if config["n_validation"] else ""
    return (
        f"To {race['target']:.1%} by {config['encoder']} on {config['n_train']:,} images{held_out} of "
        f"{config['dataset']}, {config['image_size']} pixels: {config['epochs']} epochs, batches of "
        f"{config['batch_size']}, learning rate {config['learning_rate']:g}, evaluated every {race['every']}"
        + ", to the end of the schedule"
        * race["to_the_end"]
    )


def _summary(labels: dict[str, list[dict]], goal: float) -> Iterable[str]:
    yield (
        "| tricks | reached | minutes to the target | longer than with all | test accuracy then | held out then "
        f"| accuracy at the end | views/s | within {goal:g} min |"
    )
    yield "|---" * 9 + "|"
    for label, rows in labels.items():
        reached = [row["reached"] for row in rows]
        there = all(reached)  # of seeds that did not all get there, a mean would be one of the fast ones
        ends = [row["noted"][-1] for row in rows if row["noted"][-1]["epoch"] == row["race"]["config"]["epochs"]]
        cells = [
            f"without `{label}`" if label else "all",
            f"{sum(map(bool, reached))} of {len(rows)}",
            _spread([r["seconds"] / 60 for r in reached]) if there else "not reached",
            _spread(_longer(rows, labels.get("", []))) if label and there else "",
            _spread([r["test"] for r in reached], ".2%") if there else "",
            _spread([r["validation"] for r in reached if "validation" in r], ".2%") if there else "",
            _spread([end["test"] for end in ends], ".2%"),
            _spread([rate for row in rows if (rate := _rate(row))], ",.0f"),
            f"{sum(bool(r) and r['seconds'] <= 60 * goal for r in reached)} of {len(rows)}",
        ]
        yield "| " + " | ".join(cells) + " |"


def _longer(rows: list[dict], others: list[dict]) -> list[float]:
    """Minutes more than with all tricks, of the seeds that got there both times."""
    best = {row["race"]["config"]["seed"]: row["reached"] for row in others if row["reached"]}
    seeds = [(row["race"]["config"]["seed"], row["reached"]["seconds"]) for row in rows]
    return [(seconds - best[seed]["seconds"]) / 60 for seed, seconds in seeds if seed in best]


def _rate(row: dict) -> float | None:
    """Views a second between the first evaluation and the last: what comes before it, compiling least, is left out."""
    first, last = row["noted"][0], row["noted"][-1]
    views = row["views_per_epoch"] * (last["epoch"] - first["epoch"])
    return views / (last["seconds"] - first["seconds"]) if views else None


def _runs(labels: dict[str, list[dict]]) -> Iterable[str]:
    yield (
        "| tricks | seed | minutes to the target | epoch | test accuracy then | last evaluated | untrained | pixels "
        "| clock, min | evaluations, min | data, s | sittings | commit |"
    )
    yield "|---" * 13 + "|"
    for label, rows in labels.items():
        for row in sorted(rows, key=lambda row: row["race"]["config"]["seed"]):
            reached, last = row["reached"], row["noted"][-1]
            cells = [
                f"without `{label}`" if label else "all",
                str(row["race"]["config"]["seed"]),
                f"{reached['seconds'] / 60:.2f}" if reached else "not reached",
                str(reached["epoch"]) if reached else "",
                f"{reached['test']:.2%}" if reached else "",
                f"{last['test']:.2%} (epoch {last['epoch']})",
                *(f"{row['beside'][name]:.2%}" for name in ("untrained", "pixels")),
                *(f"{row['seconds'][name] / 60:.2f}" for name in ("clock", "evaluations")),
                f"{row['seconds']['data']:.1f}",
                str(row["sittings"]),
                row["provenance"]["commit"],
            ]
            yield "| " + " | ".join(cells) + " |"


def _spread(values: list[float], form: str = ".2f") -> str:
    """Mean and 95 % Student-t interval over seeds; of one or two seeds the values."""
    if len(values) < 3:
        return ", ".join(format(value, form) for value in values)
    if len(set(values)) == 1:
        return f"{statistics.mean(values):{form}}"
    observed = over_seeds(values)
    return f"{observed.value:{form}} [{observed.low:{form}}, {observed.high:{form}}]"


def _machine(row: dict) -> str:
    return f"{row['provenance']['device']}, torch {row['provenance']['torch']}"
