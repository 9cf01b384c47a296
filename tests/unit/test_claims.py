"""The ledger: what a verdict is, what it refuses, what it keeps, and what chance does to it."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from companion import ledger, paths
from companion.course import profiles
from companion.errors import CompanionError
from companion.ledger import (
    NOT_LEARNT,
    Claim,
    Ledger,
    Observed,
    identity,
    load,
    over_seeds,
    paired_difference,
    scoreboard,
)
from companion.ledger import claims as module
from companion.ledger import ledger as ledger_module


def claim(**changes):
    values = {"id": "x", "source": "", "notebook": "", "statement": "", "quantity": "q", "kind": "trained",
              "prediction": "open", "at_least": 0, "at_most": 1}  # fmt: skip
    return Claim(**values | changes)


def runs(accuracy=0.7, untrained=0.4, keys="abc"):
    return pd.DataFrame(
        {"key": list(keys), "seed": range(len(keys)), "linear_accuracy": accuracy, "untrained_accuracy": untrained,
         "x": np.arange(len(keys), dtype=float)}
    )  # fmt: skip


@pytest.fixture
def book(results, monkeypatch):
    """A ledger of a few claims of its own, at profile smoke, without recorded runs."""
    entries = {
        "trained": claim(id="trained", quantity="a difference", found={"smoke": "reproduced"}),
        "accuracy": claim(id="accuracy", accuracy=True, at_least=0.01, at_most=math.inf),
        "formula": claim(id="formula", kind="identity", prediction="", at_least=-1e-9, at_most=1e-9),
        "drawn": claim(id="drawn", kind="simulation"),
    }
    for where in (module, ledger_module, scoreboard):
        monkeypatch.setattr(where, "load", lambda: entries)
    monkeypatch.setattr(paths, "reference", lambda: results / "reference")
    return Ledger(profiles.load("smoke"))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.3, "reproduced"),
        (0.0, 1.0, "reproduced"),  # the range includes its ends
        (-0.1, 0.3, "inconclusive"),
        (-0.3, -0.1, "not reproduced"),
        (0.9, 1.1, "inconclusive"),
        (1.1, 1.2, "not reproduced"),
        (-1, 2, "inconclusive"),
    ],
)
def test_verdict_compares_interval_and_range(low, high, expected):
    assert ledger.verdict(claim(), Observed((low + high) / 2, low, high, 3)) == expected


@pytest.mark.parametrize(
    ("id", "verdict", "fate"),
    [("accuracy", "reproduced", "taken over"), ("accuracy", NOT_LEARNT, "taken over"),
     ("accuracy", "inconclusive", "its verdict is 'inconclusive'"), ("trained", "reproduced", "taken over"),
     ("trained", NOT_LEARNT, "its verdict is 'networks did not learn enough here'")],
)  # fmt: skip
def test_only_of_a_claim_about_accuracy_networks_that_did_not_learn_are_taken_over(book, id, verdict, fate):
    record = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "runs": ["a"], "verdict": verdict}
    assert ledger_module.take_over({id: record}, "cpu", {"a"})[id].startswith(fate)
    path = paths.reference() / "cpu" / "claims.json"
    assert ledger_module.read(path) == ({id: record} if fate == "taken over" else {})


def test_over_seeds_is_the_t_interval():
    values = [0.1, 0.4, 0.25, 0.3]
    found = over_seeds(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.value, found.n) == (pytest.approx(np.mean(values)), 4)
    assert found.standard_error == pytest.approx(stats.sem(values))


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [1.0, 2.0, math.nan]])
def test_no_claim_from_too_few_or_broken_values(values):
    with pytest.raises(CompanionError, match="at least 3 finite values"):
        over_seeds(values)


def test_the_p_value_is_that_of_a_t_test_against_the_nearest_end():
    values = [0.5, 0.7, 0.55, 0.62, 0.58]
    found = over_seeds(values)
    assert found.p_value(0.4, math.inf) == pytest.approx(
        stats.ttest_1samp(values, 0.4, alternative="greater").pvalue, rel=1e-6
    )
    assert found.p_value(-math.inf, 0.9) == pytest.approx(
        stats.ttest_1samp(values, 0.9, alternative="less").pvalue, rel=1e-6
    )
    assert found.p_value(0.0, 0.65) == found.p_value(-math.inf, 0.65)  # the nearer end
    assert identity(0.5).p_value(0, 1) == 0


@pytest.mark.parametrize("n", [3, 6, 7, 10])
def test_draws_that_differ_by_rounding_alone_are_equal(n):
    """The mean of equal values is not always that value, and their standard error then not 0."""
    for value in (0.7, 0.1, 1 / 3, 1e-15, -2e-15):
        assert over_seeds([value] * n).p_value(value - abs(value) / 4, math.inf) == 0.5**n
    tiny = [1e-15, 1.1e-15, 1.2e-15]
    expected = stats.ttest_1samp(tiny, 0, alternative="greater").pvalue
    assert over_seeds(tiny).p_value(0, math.inf) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [0.2, 0.9])
def test_a_value_outside_its_interval_is_told(value):
    with pytest.raises(CompanionError, match=f"Observed {value} in .* expected a finite value inside"):
        Observed(value, 0.4, 0.6, 3)


@pytest.mark.parametrize(("n", "others"), [(10, 3), (3, 10), (4, 40)])
def test_a_prediction_interval_foretells_nineteen_of_twenty(n, others):
    """The distance of two means, in standard deviations of the first sample, that one in twenty exceeds."""
    first, second = (np.random.default_rng(n).normal(size=(200_000, k)) for k in (n, others))
    edge = np.quantile(abs(first.mean(1) - second.mean(1)) / first.std(1, ddof=1), 0.95)
    sample = stats.zscore(np.arange(n), ddof=1)
    for share, expected in ((0.98, True), (1.02, False), (-0.98, True), (-1.02, False)):
        assert over_seeds(sample).foretells(Observed(share * edge, -9, 9, others)) == expected


def test_what_is_far_off_is_not_foretold():
    rng = np.random.default_rng(0)
    assert not over_seeds(rng.normal(size=10)).foretells(over_seeds(rng.normal(size=3) + 5))
    assert identity(1.0).foretells(identity(1.0 + 1e-9))
    assert not identity(1.0).foretells(identity(1.01))


def test_holms_correction_by_hand():
    """.05/4 = .0125, .05/3 = .0167, .05/2 = .025: the third fails, and with it all that follow."""
    assert scoreboard.holm({"a": 0.001, "b": 0.016, "c": 0.03, "d": 0.031}) == {"a", "b"}
    assert scoreboard.holm({"a": 0.02, "b": 0.001}) == {"a", "b"}
    assert scoreboard.holm({"a": 0.2}) == set()
    assert scoreboard.holm({}) == set()


def adjusted(p_values):
    """Holm's adjusted p-values as R's ``p.adjust`` and statsmodels have them: (m − i) p, never less than one before."""
    result, largest = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=p_values.get)):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[name]))
        result[name] = largest
    return result


def test_holms_correction_by_adjusted_p_values():
    assert adjusted({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}  # the example of statsmodels' and R's documentation
    )
    rng = np.random.default_rng(0)
    for _ in range(200):
        p_values = dict(enumerate(10 ** rng.uniform(-5, 0, size=rng.integers(1, 12))))
        assert scoreboard.holm(p_values) == {name for name, p in adjusted(p_values).items() if p <= 0.05}


def test_what_chance_is_asked_about(book):
    """All that was measured, what is inconclusive too; neither identities nor what was not tested."""
    book.check("formula", identity(0), quantity="q")
    book.check("trained", Observed(0.5, 0.4, 0.6, 3), quantity="a difference", runs=runs())
    book.check("accuracy", Observed(0.5, 0.4, 0.6, 3), quantity="q", runs=runs(0.4))  # nothing was learnt
    book.check("drawn", Observed(0.9, 0.5, 1.3, 6), quantity="q")
    half, wide = 0.1 / stats.t.ppf(0.975, 2), 0.4 / stats.t.ppf(0.975, 5)
    expected = {"trained": stats.t.sf(0.5 / half, 2), "drawn": stats.t.sf(0.1 / wide, 5)}
    assert scoreboard.p_values(book.records()) == pytest.approx(expected)
    words = scoreboard.chance(book.records())
    assert words.startswith(
        "Of 2 measured claims about 0.1 intervals miss the truth by chance; 1 are decided, and 1 of "
    )


def test_an_inconclusive_claim_makes_the_correction_harder_for_the_others(book):
    """p = .03: alone it survives, beside a second measured claim it does not."""
    half = stats.t.ppf(0.975, 2) * 0.5 / stats.t.isf(0.03, 2)
    book.check("trained", Observed(0.5, 0.5 - half, 0.5 + half, 3), quantity="a difference", runs=runs())
    alone = {id: record | {"verdict": "reproduced"} for id, record in book.records().items()}
    assert scoreboard.survivors(alone) == {"trained"}
    book.check("drawn", Observed(0.9, 0.5, 1.3, 6), quantity="q")
    assert scoreboard.survivors(alone | {"drawn": book.records()["drawn"]}) == set()


def test_under_the_truth_of_every_boundary_one_verdict_in_twenty_survives_anywhere():
    """Forty claims exactly on their boundary: the share of scoreboards with any surviving verdict is at most .05."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(300):
        samples = rng.normal(size=(40, 3))
        half = stats.t.ppf(0.975, 2) * stats.sem(samples, axis=1)
        found = [Observed(x, x - h, x + h, 3) for x, h in zip(samples.mean(1), half, strict=True)]
        wrong += bool(scoreboard.holm({i: o.p_value(0, math.inf) for i, o in enumerate(found)}))
    assert wrong / 300 < 2 * 0.05 + 0.04  # both sides of every boundary are asked about


def test_differences_are_paired_by_seed_in_any_order():
    a = pd.DataFrame({"seed": [0, 1, 2], "x": [10.0, 20.0, 30.0]})
    b = pd.DataFrame({"seed": [2, 0, 1], "x": [29.0, 9.0, 19.0]})
    found = paired_difference(a, b, "x")
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    with pytest.raises(CompanionError, match="cannot be paired"):
        paired_difference(a, b[b["seed"] < 2], "x")


def test_a_run_is_not_compared_with_itself():
    with pytest.raises(CompanionError, match="compared with themselves: c"):
        paired_difference(runs(keys="abc"), runs(keys="dec").assign(seed=range(3)), "x")


def test_an_observation_that_is_not_finite_is_refused():
    with pytest.raises(CompanionError, match="expected a finite value"):
        identity(math.nan)


def test_numbers_are_shown_to_the_digits_that_the_interval_allows():
    assert str(Observed(0.123456, 0.1, 0.15, 3)) == "0.1235 [0.1000, 0.1500]"
    assert str(identity(1 / 3)) == "0.3333"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"at_least": -math.inf, "at_most": math.inf}, "could never fail or never hold"),
        ({"at_least": 2}, "could never fail or never hold"),
        ({"kind": "measured"}, "Unknown kind of claim x"),
        ({"prediction": ""}, "Unknown prediction"),
        ({"longer": "perhaps"}, "Unknown prediction of claim x for a longer training"),
        ({"found": {"cpu": "partly"}}, "Unknown verdict found"),
        ({"profiles": ("gpus",)}, "Unknown profile.*Did you mean 'gpu'"),
    ],
)
def test_an_unsound_claim_is_refused(changes, expected):
    with pytest.raises(CompanionError, match=expected):
        claim(**changes)


def test_a_check_refuses_what_is_not_promised(book):
    three = Observed(0.5, 0.4, 0.6, 3)
    with pytest.raises(CompanionError, match=r"Unknown claim 'traind'.*Did you mean 'trained'"):
        book.check("traind", three, quantity="q", runs=runs())
    with pytest.raises(CompanionError, match="trained promises 'a difference', but 'a ratio' was handed in"):
        book.check("trained", three, quantity="a ratio", runs=runs())
    with pytest.raises(CompanionError, match="is about trained networks: hand in the tables"):
        book.check("trained", three, quantity="a difference")
    with pytest.raises(CompanionError, match="rests on 3 observations: expected 5 or more"):
        book.check("drawn", three, quantity="q")
    with pytest.raises(CompanionError, match="rests on 3 observations: expected exactly 1"):
        book.check("formula", three, quantity="q")
    with pytest.raises(CompanionError, match="rests on 1 observations: expected 3 or more"):
        book.check("trained", identity(0.5), quantity="a difference", runs=runs())
    assert book.records() == {}


def test_what_is_filed_names_its_runs_and_comes_back(book):
    assert book.check(
        "trained", Observed(0.5, 0.4, 0.6, 3), quantity="a difference", runs=[runs(), runs(keys="de")]
    ) == ("reproduced")
    other = Ledger(profiles.load("smoke"))
    other.check("formula", identity(0), quantity="q")
    stored = json.loads((paths.results() / "smoke" / "claims.json").read_text())
    assert stored["trained"]["runs"] == list("abcde")
    assert set(other.records()) == {"trained", "formula"}
    assert list(book.table().index) == ["trained"]  # a notebook's own claims
    assert list(book.table(everything=True).index) == ["trained", "accuracy", "formula", "drawn"]
    assert book.table(everything=True)["verdict"].loc[["formula", "drawn"]].tolist() == ["reproduced", "not yet"]


@pytest.mark.parametrize(
    ("accuracy", "expected"), [(0.4499, NOT_LEARNT), (0.40, NOT_LEARNT), (0.4501, "reproduced"), (0.6, "reproduced")]
)
def test_accuracy_is_tested_only_where_networks_learnt(book, accuracy, expected):
    observed = Observed(0.05, 0.04, 0.06, 3)
    assert book.check("accuracy", observed, quantity="q", runs=runs(accuracy=accuracy)) == expected
    assert book.check("trained", Observed(0.5, 0.4, 0.6, 3), quantity="a difference", runs=runs(0.4)) == "reproduced"


def test_five_points_are_not_enough_and_every_run_counts_once(book):
    observed = Observed(0.05, 0.04, 0.06, 3)
    assert book.check("accuracy", observed, quantity="q", runs=runs(0.05, 0.0)) == NOT_LEARNT
    assert book.check("accuracy", observed, quantity="q", runs=runs(0.0501, 0.0)) == "reproduced"
    good, bad = runs(0.6, 0.4, "abc"), runs(0.2, 0.4, "de")  # .2, .2, .2, −.2, −.2: on average .04
    assert book.check("accuracy", observed, quantity="q", runs=pd.concat([good, bad])) == NOT_LEARNT
    assert book.check("accuracy", observed, quantity="q", runs=pd.concat([good, good, bad])) == NOT_LEARNT
    assert book.check("accuracy", observed, quantity="q", runs=[bad, bad]) == NOT_LEARNT
    assert book.check("accuracy", observed, quantity="q", runs=[bad, good]) == "reproduced"  # one side has learnt
    assert book.check("accuracy", observed, quantity="q", runs=[good]) == "reproduced"


def test_a_table_without_baselines_counts_for_nothing_wherever_it_stands(book):
    observed = Observed(0.05, 0.04, 0.06, 3)
    good, bad, unknown = runs(0.6, 0.4, "abc"), runs(0.42, 0.4, "de"), runs(0.9, math.nan, "fg")
    for tables, expected in (
        ([good, unknown], "reproduced"), ([unknown, good], "reproduced"), ([unknown, bad, good], "reproduced"),
        ([bad, unknown], NOT_LEARNT), ([unknown, bad], NOT_LEARNT), ([unknown], NOT_LEARNT),
        ([unknown, unknown], NOT_LEARNT), (unknown, NOT_LEARNT),
    ):  # fmt: skip
        assert ledger_module.learnt([tables] if isinstance(tables, pd.DataFrame) else tables) == (
            expected != NOT_LEARNT
        )
        assert book.check("accuracy", observed, quantity="q", runs=tables) == expected


def test_what_the_recorded_runs_foretell_agrees(book, results):
    recorded = {"trained": {"value": 0.55, "low": 0.5, "high": 0.6, "n": 10, "verdict": "inconclusive"}}
    (results / "reference" / "smoke").mkdir(parents=True)
    (results / "reference" / "smoke" / "claims.json").write_text(json.dumps(recorded))
    book.check("trained", Observed(0.5, 0.45, 0.55, 3), quantity="a difference", runs=runs())
    book.check("formula", identity(0), quantity="q")
    table = book.table()
    assert table.loc["trained", ["verdict", "agrees"]].tolist() == [
        "inconclusive",
        "yes",
    ]  # ten seeds decide, not three
    assert table.loc["formula", ["recorded", "agrees"]].tolist() == ["", ""]
    scoreboard.write(book)
    for ending in ("md", "html"):
        assert "0.550 [0.500, 0.600]" in (book.folder / f"scoreboard.{ending}").read_text()
    assert "0.550 [0.500, 0.600]" in scoreboard.text(book)
    (results / "reference" / "smoke" / "claims.json").write_text("{half")
    with pytest.raises(CompanionError, match=r"reference.*claims\.json is damaged"):
        book.table()


def test_a_notebook_whose_claims_are_all_left_to_recorded_runs_shows_them(book, results):
    recorded = {"left": {"value": 0.55, "low": 0.5, "high": 0.6, "n": 10, "verdict": "reproduced"}}
    recorded["another"] = recorded["left"]
    (results / "reference" / "smoke").mkdir(parents=True)
    (results / "reference" / "smoke" / "claims.json").write_text(json.dumps(recorded))
    ledger_module.load()["left"] = claim(id="left", notebook="99_all_left", recorded_only=True)
    ledger_module.load()["another"] = claim(id="another", notebook="98_other", recorded_only=True)
    assert len(book.table()) == 0
    assert not book.tests("left")
    table = book.table()
    assert list(table.index) == ["left"]
    assert table.loc["left", ["recorded", "verdict"]].tolist() == ["0.550 [0.500, 0.600]", "reproduced"]


def test_nothing_is_recorded_for_another_data_set_or_seed(results, monkeypatch):
    monkeypatch.setattr(paths, "reference", lambda: results / "reference")
    (results / "reference" / "cpu").mkdir(parents=True)
    record = {"lee2025.fig4.dcl": {"value": 0.0, "low": -0.1, "high": 0.1, "n": 10, "verdict": "inconclusive"}}
    (results / "reference" / "cpu" / "claims.json").write_text(json.dumps(record))
    assert Ledger(profiles.load("cpu")).recorded() == record
    assert Ledger(profiles.load("cpu", dataset="cifar10")).recorded() == {}
    assert Ledger(profiles.load("cpu", seed=3)).recorded() == {}


def test_a_profile_that_does_not_test_a_claim_says_which_do(results):
    book = Ledger(profiles.load("smoke"))
    paper = "lee2025.table1.simclr.m32"
    assert not book.tests(paper)
    assert book.tests("lee2025.table1.trend")
    assert not Ledger(profiles.load("smoke", dataset="cifar10")).tests("lee2025.table1.trend")
    assert book.table(everything=True).loc[paper, "verdict"] == "at profile paper"


def test_the_recorded_tier_decides_about_accuracy_and_what_chance_could_turn_and_stands_beside_the_rest(book, results):
    recorded = {
        "more seeds here": {"value": 0.9, "low": 0.4, "high": 1.4, "n": 10, "verdict": "inconclusive"},
        "accuracy": {"value": 0.0, "low": -0.004, "high": 0.004, "n": 10, "verdict": "not reproduced"},
        "trained": {"value": 0.9, "low": 0.89, "high": 0.91, "n": 10, "verdict": "reproduced"},
        "drawn": {"value": 0.9, "low": 0.89, "high": 0.91, "n": 10, "verdict": "reproduced"},
    }
    (results / "reference" / "smoke").mkdir(parents=True)
    (results / "reference" / "smoke" / "claims.json").write_text(json.dumps(recorded))
    book.check("drawn", Observed(0.5, -0.4, 1.4, 100), quantity="q")  # no network, so nothing is left to recorded runs
    book.check("accuracy", Observed(0.05, 0.04, 0.06, 3), quantity="q", runs=runs())
    book.check("trained", Observed(0.5, -0.4, 1.4, 3), quantity="a difference", runs=runs())
    ledger_module.load()["more seeds here"] = claim(id="more seeds here")
    book.check("more seeds here", Observed(0.5, -0.4, 1.4, 11), quantity="q", runs=runs())
    table = book.table()
    assert table.loc["more seeds here", ["verdict", "agrees"]].tolist() == ["inconclusive", "yes"]
    assert table.loc["accuracy", ["verdict", "agrees"]].tolist() == ["not reproduced", "no"]
    assert table.loc["trained", ["verdict", "agrees"]].tolist() == ["reproduced", "no"]
    assert table.loc["drawn", "verdict"] == "inconclusive"
    assert table.loc["trained", ["recorded", "recorded n"]].tolist() == ["0.9000 [0.8900, 0.9100]", 10]


def test_recorded_runs_decide_nothing_about_an_accuracy_that_was_not_observed(book, results):
    recorded = {"accuracy": {"value": 0.03, "low": 0.02, "high": 0.04, "n": 10, "verdict": "reproduced"}}
    (results / "reference" / "smoke").mkdir(parents=True)
    (results / "reference" / "smoke" / "claims.json").write_text(json.dumps(recorded))
    assert book.deciding() == {}
    assert book.table(everything=True).loc["accuracy", ["recorded n", "verdict"]].tolist() == [10, "not yet"]


def test_an_identity_has_no_recorded_value_beside_it(book, results):
    """It is no measurement: it holds here or it does not."""
    recorded = {"formula": {"value": 0.0, "low": 0.0, "high": 0.0, "n": 1, "verdict": "reproduced"}}
    (results / "reference" / "smoke").mkdir(parents=True)
    (results / "reference" / "smoke" / "claims.json").write_text(json.dumps(recorded))
    book.check("formula", identity(1e-10), quantity="q")
    assert book.table().loc["formula", ["recorded", "recorded n", "agrees"]].tolist() == ["", "", ""]


def test_printed_are_the_verdicts_of_this_machine_on_what_was_found_before(results, monkeypatch, capsys):
    entries = {
        "accuracy": claim(id="accuracy", accuracy=True, found={"cpu": "reproduced"}),
        "trained": claim(id="trained", found={"cpu": "not reproduced"}),
        "new": claim(id="new"),
        "elsewhere": claim(id="elsewhere", found={"gpu": "reproduced"}),
        "not checked": claim(id="not checked", found={"cpu": "reproduced"}),
    }
    for where in (module, ledger_module):
        monkeypatch.setattr(where, "load", lambda: entries)
    monkeypatch.setattr(paths, "reference", lambda: results / "reference")
    (results / "reference" / "cpu").mkdir(parents=True)
    record = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "verdict": "reproduced"}
    (results / "reference" / "cpu" / "claims.json").write_text(json.dumps({"accuracy": record, "trained": record}))
    book = Ledger(profiles.load("cpu"))
    for id in ("accuracy", "trained", "new", "elsewhere"):
        book.check(id, Observed(-1.0, -1.1, -0.9, 3), quantity="q", runs=runs())
    book.print_verdicts()
    assert capsys.readouterr().out.splitlines()[1:] == ["accuracy: not reproduced", "trained: not reproduced"]


@pytest.mark.parametrize(
    ("found", "why"), [({"cpu": "reproduced"}, "chance could turn"), ({"gpu": "reproduced"}, "found before")]
)
def test_where_no_verdict_must_come_out_again_a_line_says_why(results, monkeypatch, capsys, found, why):
    entries = {"new": claim(id="new"), "not checked": claim(id="not checked", kind="trained", found=found)}
    for where in (module, ledger_module):
        monkeypatch.setattr(where, "load", lambda: entries)
    book = Ledger(profiles.load("cpu"))
    book.check("new", Observed(-1.0, -1.1, -0.9, 3), quantity="q", runs=runs())
    book.print_verdicts()
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert line.startswith("none: ")
    assert why in line


def test_what_is_left_to_the_recorded_runs_is_tested_here_only_where_there_are_none(results, monkeypatch):
    id = "lee2025.fig4.dcl"
    assert load()[id].recorded_only
    monkeypatch.setattr(paths, "reference", lambda: results / "reference")
    (results / "reference" / "cpu").mkdir(parents=True)
    record = {id: {"value": 0.02, "low": 0.01, "high": 0.03, "n": 10, "verdict": "reproduced"}}
    (results / "reference" / "cpu" / "claims.json").write_text(json.dumps(record))
    book = Ledger(profiles.load("cpu"))
    assert not book.tests(id)
    for name in ("smoke", "reference"):
        assert Ledger(profiles.load(name)).tests(id)
    assert Ledger(profiles.load("reference")).recorded() == record  # what it adds to
    assert book.deciding() == record
    row = book.table(everything=True).loc[id]
    assert row[["here", "n", "recorded n", "verdict"]].tolist() == ["", "", 10, "reproduced"]
    assert "gain in accuracy, DCL" in scoreboard.text(book)
    assert list(book.table().index) == [id]  # it was asked for
    assert Ledger(profiles.load("cpu")).table().empty
    book.check(
        "lee2025.fig4.simclr", Observed(0.0, -0.1, 0.1, 3), quantity="gain in accuracy, SimCLR, m = 32", runs=runs()
    )
    assert list(book.table().index) == ["lee2025.fig4.simclr", id]
    assert id not in Ledger(profiles.load("cpu", seed=3)).deciding()


def test_a_surprise_is_what_this_machine_found_whatever_the_recorded_runs_decide(results, monkeypatch):
    monkeypatch.setattr(paths, "reference", lambda: results / "reference")
    id = "wang2020.align_alone"
    (results / "reference" / "cpu").mkdir(parents=True)
    record = {id: {"value": 1.0, "low": 0.99, "high": 1.0, "n": 10, "verdict": load()[id].found["cpu"]}}
    (results / "reference" / "cpu" / "claims.json").write_text(json.dumps(record))
    book = Ledger(profiles.load("cpu"))
    book.check(id, Observed(0.95, 0.94, 0.96, 3), quantity=load()[id].quantity, runs=runs())
    assert book.surprises() == []
    book.check(id, Observed(0.1, 0.05, 0.15, 3), quantity=load()[id].quantity, runs=runs())
    assert book.deciding() == record
    assert book.surprises() == [f"{id}: not reproduced, found before: reproduced"]


def test_another_data_set_or_seed_is_held_to_nothing(results):
    for profile in (profiles.load("cpu", dataset="cifar10"), profiles.load("cpu", seed=3), profiles.load("reference")):
        book = Ledger(profile)
        book.check("lee2025.theorem5.5.lower", identity(0), quantity="variance of negatives, n = 12, m = 4")
        assert book.surprises() == []
    book = Ledger(profiles.load("cpu"))
    book.check("lee2025.theorem5.5.lower", identity(0), quantity="variance of negatives, n = 12, m = 4")
    assert book.surprises() == ["lee2025.theorem5.5.lower: not reproduced, found before: reproduced"]


SOUND = {"value": 0, "low": 0, "high": 0, "n": 3, "verdict": "inconclusive", "runs": ["a", "b"]}
FOREIGN = [{"n": "3"}, {"n": 2.5}, {"n": 0}, {"n": True}, {"runs": 5}, {"runs": "ab"}, {"runs": [1]}, {"value": "0"}]


@pytest.mark.parametrize(
    "content",
    ["{half", "[]", '{"trained": {"value": 1}}', '{"trained": 3}']
    + [json.dumps({"trained": SOUND | values}) for values in FOREIGN],
)
def test_a_damaged_file_is_told(book, content):
    book.check("formula", identity(0), quantity="q")
    (paths.results() / "smoke" / "claims.json").write_text(content)
    with pytest.raises(CompanionError, match="is damaged"):
        book.records()


def test_the_scoreboard_shows_range_interval_and_chance(book):
    book.check("trained", Observed(0.5, 0.4, 0.6, 3), quantity="a difference", runs=runs())
    book.check("drawn", Observed(5.0, 4.0, 6.0, 6), quantity="q")
    book.check("formula", identity(0), quantity="q")
    table = scoreboard.write(book)
    assert table.loc["drawn", "holm"] == "✓"
    for ending in ("md", "html"):
        text = (paths.results() / "smoke" / f"scoreboard.{ending}").read_text()
        for words in ("0.500 [0.400, 0.600]", "0 to 1", "Of 2 measured claims about 0.1 intervals miss", "Holm"):
            assert words in text, words
    text = scoreboard.text(book)
    assert "Identities: 1 of 1 hold" in text
    for words in ("2 reproduced", "1 not tested here", "1 not reproduced", "found before: none", "0 to 1", "5.0"):
        assert words in text, words
    (row,) = [line for line in text.splitlines() if line.startswith("trained")]
    assert "0.500 [0.400, 0.600]" in row
    assert row.rstrip().endswith("✓")


def test_the_forest_plot_has_a_row_for_each_observed_claim(book):
    from companion.course.forest import forest

    book.check("trained", Observed(0.5, 0.4, 0.6, 3), quantity="a difference", runs=runs())
    recorded = {"trained": {"value": 0.3, "low": -0.2, "high": 0.8, "n": 10, "verdict": "inconclusive"}}
    shown = [claim(id="trained", statement="What is claimed"), claim(id="other", statement="Never observed")]
    (axes,) = forest(shown, book.records(), recorded).axes
    words = "\n".join(text.get_text() for text in axes.texts)
    assert "What is claimed" in words
    assert "Never observed" not in words
    assert "0.500 [0.400, 0.600], n = 3" in words
    assert "n = 10, recorded" in words


def drawn(*claims, records=(), recorded=()):
    """The axes of a forest plot, and of each row its range and its intervals in places on the axes."""
    from companion.course.forest import forest

    (axes,) = forest(list(claims), dict(records), dict(recorded)).axes
    rows = []
    for row, band in enumerate(axes.collections):
        ends = band.get_paths()[0].vertices[:, 0]
        found = {"accepted": (ends.min(), ends.max())}
        for line in axes.lines:
            x, y = line.get_xdata(), line.get_ydata()
            if len(x) and abs(y[0] - row) < 0.4:
                name = {"o": "here", "D": "then"}.get(line.get_marker())
                name = name or ("zero" if y[0] != y[1] else "interval here" if y[0] < row else "interval then")
                found[name] = (*x, line.get_color()) if name != "zero" else x[0]
        rows.append(found)
    return axes, rows


def record(value, low, high, verdict="reproduced"):
    return {"value": value, "low": low, "high": high, "n": 3, "verdict": verdict}


def test_a_row_of_the_forest_plot_is_drawn_to_one_scale_in_the_colours_of_its_verdicts():
    from companion.course.figures import VERDICT_COLORS
    from companion.course.forest import LEFT, RIGHT

    _, (row,) = drawn(
        claim(id="x", at_least=0.2, at_most=0.6),
        records={"x": record(0.5, 0.3, 0.7, "inconclusive")},
        recorded={"x": record(0.35, -0.25, 0.55, "not reproduced")},
    )
    here, then = VERDICT_COLORS["inconclusive"], VERDICT_COLORS["not reproduced"]
    assert [row[name][-1] for name in ("here", "interval here", "then", "interval then")] == [here, here, then, then]
    values = np.array([0, 0.2, 0.6, 0.5, 0.3, 0.7, 0.35, -0.25, 0.55])
    places = np.array(
        [row["zero"], *row["accepted"], row["here"][0], *row["interval here"][:2], row["then"][0],
         *row["interval then"][:2]]
    )  # fmt: skip
    fitted = stats.linregress(values, places)
    np.testing.assert_allclose(fitted.intercept + fitted.slope * values, places, atol=1e-9)
    assert fitted.slope > 0
    assert LEFT < places.min() < places.max() < RIGHT
    assert places.max() - places.min() > 0.7 * (RIGHT - LEFT)


@pytest.mark.parametrize("open_end", ["at_least", "at_most"])
def test_a_range_that_is_open_reaches_the_end_of_its_row(open_end):
    from companion.course.forest import LEFT, RIGHT

    limits = {"at_least": {"at_least": -math.inf, "at_most": 0.3}, "at_most": {"at_least": 0.3, "at_most": math.inf}}
    _, (row,) = drawn(claim(id="x", **limits[open_end]), records={"x": record(0.3, 0.2, 0.5)})
    low, high = (LEFT, row["here"][0]) if open_end == "at_least" else (row["here"][0], RIGHT)
    assert row["accepted"] == (pytest.approx(low), pytest.approx(high))


def test_the_forest_plot_shows_what_is_left_to_the_recorded_runs_and_nothing_else_that_was_not_observed_here():
    shown = [claim(id="left", statement="Left", recorded_only=True), claim(id="other", statement="Not observed")]
    shown += [claim(id="not yet", statement="Not recorded", recorded_only=True)]
    axes, rows = drawn(*shown, recorded={"left": record(0.5, 0.4, 0.6), "other": record(0.5, 0.4, 0.6)})
    words = [text.get_text() for text in axes.texts]
    assert "Left" in words
    assert not {"Not observed", "Not recorded"} & set(words)
    assert len(rows) == 1
    assert "here" not in rows[0]
    assert "0.500 [0.400, 0.600], n = 3, recorded" in words


def test_the_forest_plot_says_what_was_published_and_tears_no_equation():
    long = "In the small batches of this paper the variance is larger, at m = 32 and m = 64, than it is elsewhere"
    axes, _ = drawn(claim(id="x", statement=long, published=".39 (m = 32)"), records={"x": record(0.5, 0.4, 0.6)})
    words = [text.get_text() for text in axes.texts]
    assert any("published: .39 (m\u00a0=\u00a032)" in text for text in words)
    for length in (58, 60, 62, 64, 66):  # wherever the line ends
        text = "x" * length + " y = 32 z"
        axes, _ = drawn(claim(id="x", statement=text), records={"x": record(0.5, 0.4, 0.6)})
        (found,) = [t.get_text() for t in axes.texts if t.get_text().startswith("xx")]
        assert "y\u00a0=\u00a032" in found, length
    (found,) = [text for text in words if text.startswith("In the small")]
    assert found.replace("\n", " ").replace("\u00a0", " ") == long  # two lines hold it
    assert found.count("\n") == 1


def test_every_claim_has_room_in_its_row_of_the_forest_plot():
    claims = list(load().values())
    axes, _ = drawn(*claims, records={claim.id: record(0.5, 0.4, 0.6) for claim in claims})
    lines = {"".join(text.get_text().split()): text.get_text().count("\n") + 1 for text in axes.texts}
    for claim in claims:
        assert lines["".join(claim.statement.split())] <= 2, claim.id
        published = f"published: {claim.paper}" if claim.paper else ""
        numbers = "".join(f"0.500 [0.400, 0.600], n = 3{published}".split())
        assert lines[numbers] <= 3, claim.id  # beside a line of recorded numbers


def test_what_was_recorded_on_several_data_sets_stands_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "reference", lambda: tmp_path)
    for folder, records in {"one": {"wang2020.plane": record(0.5, 0.4, 0.6)}, "two": {}}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "claims.json").write_text(json.dumps(records))
    asked = [load()[id] for id in ("companion.longer", "wang2020.plane")]
    found = scoreboard.recorded_on({"first": "one", "second": "two", "third": "nowhere"}, asked)
    assert list(found.index) == ["wang2020.plane"]
    assert found["statement"].item() == asked[1].statement
    assert found["first"].item() == f"0.500 [0.400, 0.600], {record(0.5, 0.4, 0.6)['verdict']}"
    assert found["second"].item() == found["third"].item() == "–"
    assert found["accepted"].item() == f"{asked[1].quantity}: {asked[1].range}"
    assert list(scoreboard.recorded_on({"second": "two"}, asked).columns) == ["statement", "accepted", "second"]


ENDS_AT_ZERO = {
    "feeney2023.sincere.repulsion",  # never, so not at all
    "lee2025.fig1.pairs",  # a count
}


def test_every_claim_of_the_ledger_is_sound():
    written = {path.stem for path in (paths.ROOT / "notebooks").glob("*.ipynb")}
    for entry in ledger.load().values():
        assert entry.statement, entry.id
        assert entry.source, entry.id
        if entry.found:  # a verdict can be found only where a notebook computes it
            assert entry.notebook in written, entry.id
            assert set(entry.found) <= set(entry.profiles), entry.id
        if entry.kind != "identity" or entry.id in ENDS_AT_ZERO:
            ends = {end for end in (entry.at_least, entry.at_most) if math.isfinite(end)}
            assert 0 not in ends or entry.id in ENDS_AT_ZERO, f"{entry.id}: name the smallest difference that matters"
        if entry.accuracy:
            assert entry.kind == "trained", entry.id


def test_every_claim_has_a_notebook():
    written = {path.stem for path in (paths.ROOT / "notebooks").glob("*.ipynb")}
    assert {entry.notebook for entry in ledger.load().values()} <= written


def test_every_trained_claim_was_foretold_before_it_was_measured():
    for entry in ledger.load().values():
        assert entry.kind == "identity" or entry.prediction in ("yes", "no", "open"), entry.id
    for id in ledger_module.read(paths.reference() / "cpu-long" / "claims.json"):
        assert ledger.load()[id].kind != "trained" or ledger.load()[id].longer in ("yes", "no"), id


HEAD = "- {id: a.b, kind: identity, source: s, notebook: n, statement: t, quantity: q, at_most: 1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{HEAD}}}\n{HEAD}}}", r"Claim a\.b stands twice"),
        (f"{HEAD}, expected: reproduced}}", r"Claim a\.b in claims\.yaml is malformed.*expected"),
        (HEAD.replace("quantity: q, ", "") + "}", r"a\.b in claims\.yaml is malformed.*quantity"),
        (f"{HEAD}, found: partly}}", "Unknown verdict found"),
        (f"{HEAD}, provenance: hearsay}}", "Unknown provenance"),
    ],
)
def test_a_malformed_ledger_is_told(tmp_path, monkeypatch, text, expected):
    (tmp_path / "claims.yaml").write_text(text)
    monkeypatch.setattr(module.resources, "files", lambda _: tmp_path)
    with pytest.raises(CompanionError, match=expected):
        module.load.__wrapped__()


def test_one_word_found_stands_for_every_profile_that_tests_it(tmp_path, monkeypatch):
    (tmp_path / "claims.yaml").write_text(f"{HEAD}, found: reproduced, profiles: [cpu, gpu]}}")
    monkeypatch.setattr(module.resources, "files", lambda _: tmp_path)
    assert module.load.__wrapped__()["a.b"].found == {"cpu": "reproduced", "gpu": "reproduced"}


def test_ranges_and_published_values_in_words():
    assert claim(at_most=math.inf).range == "≥ 0"
    assert claim(at_least=-math.inf).range == "≤ 1"
    assert claim(at_least=1).range == "1"
    assert claim(at_least=0.25).range == "0.25 to 1"
    assert claim(published=".16").paper == ".16"
    assert claim(published=".16", provenance="figure").paper == ".16 (read off a figure)"


def test_profiles_that_a_claim_may_name_exist():
    assert set(module.PROFILES) <= set(profiles.NAMES)


def test_the_record_that_decides_is_the_one_that_chance_is_asked_about(book, results):
    """Three seeds here cannot tell about the accuracy; ten recorded ones can, and survive or not by *their* p-value."""
    recorded = {"accuracy": {"value": 0.0, "low": -0.001, "high": 0.001, "n": 10, "verdict": "not reproduced"}}
    (results / "reference" / "smoke").mkdir(parents=True)
    (results / "reference" / "smoke" / "claims.json").write_text(json.dumps(recorded))
    book.check("accuracy", Observed(0.01, -0.2, 0.22, 3), quantity="q", runs=runs())
    book.check("trained", Observed(0.5, 0.4, 0.6, 3), quantity="a difference", runs=runs())
    decides = book.deciding()
    assert decides["accuracy"] == recorded["accuracy"]
    assert decides["trained"]["value"] == 0.5
    table = scoreboard.table(book)
    found = {id for id, row in table.iterrows() if row["verdict"] in ("reproduced", "not reproduced")}
    assert found == set(scoreboard.p_values(decides)) == {"accuracy", "trained"}
    assert table.loc["accuracy", ["verdict", "holm"]].tolist() == ["not reproduced", "✓"]


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        (Observed(-8.94e-14, -9.2e-14, -8.7e-14, 5), "-8.9e-14 [-9.2e-14, -8.7e-14]"),
        (Observed(1 - 3e-16, 1 - 6e-16, 1.0, 16), "1.000000 [1.000000, 1.000000]"),
        (Observed(0.1234, 0.1, 0.15, 3), "0.1234 [0.1000, 0.1500]"),
        (Observed(250, 100, 400, 3), "250 [100, 400]"),
    ],
)
def test_an_observation_is_written_to_what_its_interval_can_tell(observed, expected):
    assert str(observed) == expected


@pytest.mark.parametrize(("low", "high"), [(-0.3, 0.0), (1.0, 1.2)])
def test_an_interval_that_touches_the_range_is_inconclusive(low, high):
    """The range includes its ends, so a part of the interval lies in it: one point."""
    assert ledger.verdict(claim(), Observed((low + high) / 2, low, high, 3)) == "inconclusive"
