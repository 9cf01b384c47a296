"""Recorded claims that no run here files again follow from the tables of runs: computed once more, from the file alone.

Notebook 13 files what it says of lengths, images and chosen weights only where no record of it is there.
"""

import csv
import itertools
import json
import statistics

import pytest
from scipy import stats

from companion import paths
from companion.ledger import NOT_LEARNT, load

SEEDS, CHOOSING = range(100, 110), (1000, 1001, 1002)
SHORT, LONG, MANY, LARGE = (16, 8), (32, 40), (16, 40), (32, 8)  # pixels of a side, epochs
N = {16: 4000, 32: 6000}  # training images
SETTINGS = {"simclr": ("nt_xent", 32, 0.2), "large": ("nt_xent", 256, 0.2), "hot": ("nt_xent", 32, 2.0),
            "dcl": ("dcl", 32, 0.2), "dhel": ("dhel", 32, 0.2)}  # fmt: skip
COLUMNS = {
    "accuracy": "linear_accuracy",
    "held out": "linear_validation_accuracy",
    "variance": "negative_variance",
    "colours": "colours_accuracy",
}


@pytest.fixture(scope="module")
def table():
    """(key, numbers) of each run of an encoder trained by a contrastive loss, by design, setting, λ and seed."""
    found = {}
    with (paths.reference() / "cpu-long" / "runs.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            config = json.loads(row["config"])
            method, design = config["method"], (config["image_size"], config["epochs"])
            setting = method.get("loss"), config["batch_size"], method.get("temperature")
            usual = config["encoder"] == "small" and not method.get("loss_batch_size")
            if config["learning_rate"] != 0.5:
                setting = *setting, config["learning_rate"]
            if config["encoder"] == "colour_moments":
                found[config["image_size"], "colours"] = float(row["linear_accuracy"])
            if method["name"] == "contrastive" and config["epochs"] and usual:
                assert (config["n_train"], config["width"]) == (N[config["image_size"]], 24)
                numbers = {name: float(row[column]) for name, column in COLUMNS.items()}
                found.setdefault((design, setting, method["vrns"]), {})[config["seed"]] = row["key"], numbers
    return found


@pytest.fixture(scope="module")
def claims():
    return json.loads((paths.reference() / "cpu" / "claims.json").read_text())


class Side:
    """What the runs of one setting have, a value a seed."""

    def __init__(self, table, design, setting, weight=0.0, seeds=SEEDS):
        self.runs = [table[design, SETTINGS.get(setting, setting), weight][seed] for seed in seeds]
        self.keys = {key for key, _ in self.runs}

    def __getitem__(self, name):
        return [numbers[name] for _, numbers in self.runs]


def minus(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


def agrees(record, values, *sides):
    low, high = stats.t.interval(
        0.95, len(values) - 1, statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
    )
    assert [record["value"], record["low"], record["high"]] == pytest.approx(
        [statistics.fmean(values), low, high], abs=2e-7
    )
    assert record["n"] == len(values) == 10
    assert set(record["runs"]) == set().union(*(side.keys for side in sides))


@pytest.mark.parametrize(("id", "design"), [("length", MANY), ("images", LARGE)])
def test_one_change_at_a_time(table, claims, id, design):
    small, large, hot, helped = (
        Side(table, design, *setting) for setting in (["simclr"], ["large"], ["hot"], ["hot", 30.0])
    )
    falls = [1 - a / b for a, b in zip(large["variance"], small["variance"], strict=True)]
    agrees(claims[f"companion.long.{id}.trend"], falls, large, small)
    gains = minus(helped["accuracy"], hot["accuracy"])
    agrees(claims[f"companion.long.{id}.gain"], gains, hot, helped)


@pytest.mark.parametrize(("prefix", "design"), [("companion.tuned", SHORT), ("companion.long.tuned", LONG)])
def test_weights_are_chosen_on_held_out_images_by_seeds_of_their_own(table, claims, prefix, design):
    def held_out(setting, weight):
        return statistics.fmean(Side(table, design, setting, weight, CHOOSING)["held out"])

    chosen = {name: max((0.3, 1.0, 3.0, 10.0, 30.0), key=lambda w: held_out(name, w)) for name in SETTINGS}
    plain = {name: Side(table, design, name) for name in SETTINGS}
    best = {name: Side(table, design, name, weight) for name, weight in chosen.items()}
    gains = {name: minus(best[name]["accuracy"], plain[name]["accuracy"]) for name in SETTINGS}
    for name in ("simclr", "dcl", "dhel"):
        agrees(claims[f"{prefix}.{name}"], gains[name], plain[name], best[name])
    beyond = minus(gains["simclr"], gains["large"])
    agrees(claims[f"{prefix}.small_batches"], beyond, *(of[x] for of in (plain, best) for x in ("simclr", "large")))
    ahead = minus(best["simclr"]["accuracy"], best["hot"]["accuracy"])
    agrees(claims[f"{prefix}.flat"], ahead, best["simclr"], best["hot"])
    if design == LONG:  # after the short training its gain was known before
        agrees(claims[f"{prefix}.high_temperature"], gains["hot"], plain["hot"], best["hot"])


def test_temperature_and_weight_are_chosen_together_for_every_loss_and_batch_size(table, claims):
    def side(loss, m, choice, seeds):
        return Side(table, SHORT, (loss, m, choice[0]), choice[1], seeds)

    def held_out(loss, m, choice):
        return statistics.fmean(side(loss, m, choice, CHOOSING)["held out"])

    taus, gains, sides = (0.1, 0.2, 0.3, 0.4, 0.5), {}, {}
    for loss, m in itertools.product(("nt_xent", "dcl", "dhel"), (32, 256)):
        every = {w: [(tau, w) for tau in taus] for w in (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)}
        plain = max(every.pop(0.0), key=lambda choice: held_out(loss, m, choice))
        best = max(itertools.chain(*every.values()), key=lambda choice: held_out(loss, m, choice))
        sides[loss, m] = [side(loss, m, choice, SEEDS) for choice in (plain, best)]
        gains[loss, m] = minus(*(x["accuracy"] for x in reversed(sides[loss, m])))
    for loss, id in (("nt_xent", "simclr"), ("dcl", "dcl"), ("dhel", "dhel")):
        agrees(claims[f"companion.tuned.both.{id}"], gains[loss, 32], *sides[loss, 32])
    beyond = [minus(gains[loss, 32], gains[loss, 256]) for loss in ("nt_xent", "dcl", "dhel")]
    every_side = itertools.chain(*sides.values())
    means = list(map(statistics.fmean, zip(*beyond, strict=True)))
    agrees(claims["companion.tuned.both.small_batches"], means, *every_side)


def test_learning_rates_are_chosen_with_and_without_the_term_at_both_temperatures(table, claims):
    def side(tau, weight, rate, seeds=SEEDS):
        return Side(table, SHORT, ("nt_xent", 32, tau, *([rate] if rate != 0.5 else [])), weight, seeds)

    def held_out(choice):
        return statistics.fmean(side(*choice, CHOOSING)["held out"])

    rates, own, helped = (0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0), {}, {}
    for tau in (0.2, 2.0):
        own[tau] = side(*max(((tau, 0.0, rate) for rate in rates), key=held_out))
        helped[tau] = side(*max(itertools.product([tau], (0.3, 1.0, 3.0, 10.0, 30.0), rates), key=held_out))
        gain = minus(helped[tau]["accuracy"], own[tau]["accuracy"])
        agrees(
            claims[f"companion.tuned.rate.{'high_temperature' if tau == 2 else 'simclr'}"], gain, own[tau], helped[tau]
        )
    one = {tau: side(tau, 0.0, 0.5) for tau in own}
    apart, apart_at_one = (minus(x[0.2]["accuracy"], x[2.0]["accuracy"]) for x in (own, one))
    agrees(claims["companion.tuned.rate.temperature"], apart, *own.values())
    agrees(claims["companion.tuned.rate.step"], minus(apart_at_one, apart), *own.values(), *one.values())


def test_learning_rates_are_chosen_after_the_longer_training_too(table, claims):
    def side(tau, rate, seeds=SEEDS):
        return Side(table, LONG, ("nt_xent", 32, tau, *([rate] if rate != 0.5 else [])), 0.0, seeds)

    rates = (0.125, 0.25, 0.5, 1.0, 2.0)
    own = {
        tau: side(tau, max(rates, key=lambda rate: statistics.fmean(side(tau, rate, CHOOSING)["held out"])))
        for tau in (0.2, 2.0)
    }
    one = {tau: side(tau, 0.5) for tau in own}
    apart, apart_at_one = (minus(x[0.2]["accuracy"], x[2.0]["accuracy"]) for x in (own, one))
    agrees(claims["companion.long.tuned.rate.temperature"], apart, *own.values())
    agrees(claims["companion.long.tuned.rate.step"], minus(apart_at_one, apart), *own.values(), *one.values())


def test_colours_after_the_longer_training(table, claims):
    simclr = Side(table, LONG, "simclr")
    assert set(simclr["colours"]) == {table[32, "colours"]}
    agrees(claims["companion.long.colours"], minus(simclr["accuracy"], simclr["colours"]), simclr)


def test_every_such_claim_was_looked_at(claims):
    asked = {id for id in load() if id.startswith(("companion.long.", "companion.tuned."))}
    assert asked == {id for id in claims if id.startswith(("companion.long.", "companion.tuned."))}
    # colours; one change at a time; chosen weights after either training; τ too; rates after either
    assert len(asked) == 1 + 4 + 6 + 5 + 4 + 4 + 2


@pytest.mark.parametrize("folder", ["cpu", "cpu-long", "cpu-cifar10-jpeg"])
def test_recorded_verdicts_are_those_of_the_ranges_that_the_ledger_has_now(folder):
    for id, record in json.loads((paths.reference() / folder / "claims.json").read_text()).items():
        claim = load()[id]
        inside = claim.at_least <= record["low"] and record["high"] <= claim.at_most
        outside = record["high"] < claim.at_least or claim.at_most < record["low"]
        expected = "reproduced" if inside else "not reproduced" if outside else "inconclusive"
        assert record["verdict"] in ({expected, NOT_LEARNT} if claim.accuracy else {expected}), id
