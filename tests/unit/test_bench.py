"""The benchmark runs, compares like with like, and reports what it measured. Times themselves decide nothing here."""

import contextlib
import importlib
import itertools
import json
import math
import runpy
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from companion.bench import contenders
from companion.bench import measure as bench
from companion.bench import report as bench_report
from companion.errors import CompanionError


@pytest.mark.parametrize("loss", bench.CONTENDERS)
def test_all_contenders_compute_the_same_loss(loss, monkeypatch):
    monkeypatch.setitem(bench.TILE, "cpu", 50)  # several tiles at this n
    inputs = bench.embeddings(64, "cpu", autocast=False)
    outcomes = {}
    for name, make in bench.CONTENDERS[loss].items():
        if name != bench_report.FLOOR:
            with contextlib.suppress(ImportError):  # a library of the extra `oracles`, or for CUDA alone
                value = make("cpu")(*inputs)
                outcomes[name] = value.detach(), *torch.autograd.grad(value, inputs)
    assert {bench_report.AUTO, bench_report.TILED, bench_report.DENSE, bench_report.USUAL} <= set(outcomes)
    for observed in outcomes.values():
        for a, b in zip(observed, outcomes[bench_report.DENSE], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_results_are_written_and_complete(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(tmp_path))
    monkeypatch.setattr(bench, "ProcessPoolExecutor", lambda workers, _: ThreadPoolExecutor(workers))  # in this process
    monkeypatch.setattr(bench, "CONTENDERS", {"nt_xent": dict(list(bench.CONTENDERS["nt_xent"].items())[:3])})
    path = bench.main(["--sizes", "16", "32", "--large", "0"])
    results = json.loads(path.with_suffix(".json").read_text())
    assert set(results["times"]["nt_xent"]) == {"16", "32"}
    for times in results["times"]["nt_xent"].values():
        assert set(times) == {bench_report.FLOOR, bench_report.AUTO, bench_report.TILED}
        assert all(len(rounds) >= 4 and min(rounds) > 0 for rounds in times.values())
    assert path.with_suffix(".png").stat().st_size > 0
    assert "| 32 |" in path.read_text()
    assert path.read_text() in capsys.readouterr().out


def test_who_is_stopped_has_the_losses_that_were_done(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(tmp_path))
    monkeypatch.setattr(bench, "CONTENDERS", {"first": {"a": None, "b": None}, "second": {"a": None}})

    def tried(loss, *rest):
        if loss == "second":
            raise KeyboardInterrupt
        return {16: {"seconds": 1.0}}

    monkeypatch.setattr(bench, "ProcessPoolExecutor", lambda workers, _: ThreadPoolExecutor(workers))
    monkeypatch.setattr(bench, "trial", tried)
    monkeypatch.setattr(bench, "race", lambda loss, trials, n, *_: {name: [n / 16] for name in trials})
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--sizes", "16", "32"])
    results = json.loads((tmp_path / "bench" / "cpu.json").read_text())
    assert results["times"] == {"first": {"16": {"a": [1.0], "b": [1.0]}, "32": {"a": [2.0], "b": [2.0]}}}
    assert results["machine"]["threads"] == 1
    assert not (tmp_path / "bench" / "cpu.md").exists()  # no table of a part


def test_the_command_ends_with_status_0(monkeypatch):
    monkeypatch.setattr(bench, "main", lambda: Path("results/bench/cpu.md"))  # which an exit would take for a failure
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("companion.bench", run_name="__main__")
    assert ended.value.code == 0


def test_ratios_are_taken_round_by_round():
    times = {"slow": [2.0, 30.0], "fast": [1.0, 10.0]}
    assert bench_report.ratios(times, "slow", "fast") == [2.0, 3.0]
    assert bench_report.ratios(times, "slow", "absent") is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [({4: {"x": 1.0}}, 8.0), ({2: {"x": 1.0}, 4: {"x": 4.0}}, 16.0), ({2: {"x": 1.0}, 4: {"x": 100.0}}, 800.0)],
    ids=["cubic after one", "the power of the last two", "at most cubic"],
)
def test_extrapolation(found, expected):
    assert bench._extrapolate(found, "x", 8) == pytest.approx(expected)


def test_bad_options():
    with pytest.raises(CompanionError, match="expected at least 2 instances"):
        bench.main(["--sizes", "1"])
    if not torch.cuda.is_available():
        with pytest.raises(CompanionError, match="no CUDA device"):
            bench.main(["--device", "cuda"])


# ---- What is reported, from times and bytes that are given -----------------------------------------------------------

FLOOR, AUTO, TILED, DENSE = bench_report.FLOOR, bench_report.AUTO, bench_report.TILED, bench_report.DENSE


def given(times, *, bytes=3 * 2**20, large=None):
    """The results of a benchmark of NT-Xent at n = 4,096."""
    return {
        "machine": {"name": "a", "threads": 1, "torch": "2", "dtype": "float32", "tile": 512, "d": 128},
        "trials": {"nt_xent": {name: {4096: {"seconds": 1.0, "bytes": bytes}} for name in times}},
        "times": {"nt_xent": {4096: times}}, "large": large or {}, "goals": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("lightly", "floor", "tiled", "size", "met"),
    [
        ([7.0, 7.0, 6.0], 1.0, 1.0, 2 * 2**30, [True, True, True, True]),  # at the border a goal is met
        ([6.9, 6.9, 7.1], 1.0, 1.0, 2 * 2**30, [False, True, True, True]),
        ([7.0, 7.0, 5.9], 1.0, 1.0, 2 * 2**30, [False, True, True, True]),
        ([7.0, 7.0, 6.0], 0.99, 1.0, 2 * 2**30, [True, False, True, True]),
        ([7.0, 7.0, 6.0], 1.0, 0.95, 2 * 2**30, [True, True, False, True]),
        ([7.0, 7.0, 6.0], 1.0, 1.0, 2.1 * 2**30, [True, True, True, False]),
    ],
)
def test_every_goal_fails_just_beyond_what_it_says(lightly, floor, tiled, size, met):
    times = {FLOOR: [floor] * 3, AUTO: [1.0] * 3, TILED: [tiled] * 3, DENSE: [2.0] * 3, "lightly": lightly}
    rows = bench_report.goals(given(times, large={50_000: {"bytes": size, "seconds": 9.0}}))
    assert [row["met"] for row in rows] == met
    assert f"{size / 1024**3:.2f} GiB in 9 s" in rows[-1]["measured"]


def test_the_default_is_held_against_the_fastest_of_each_round():
    """Tiled and dense take turns; either alone would be as fast on average."""
    times = {FLOOR: [3.0, 3.0, 3.0], AUTO: [1.5, 1.5, 1.5], TILED: [1.0, 2.0, 1.0], DENSE: [2.0, 1.0, 2.0]}
    (row,) = [row for row in bench_report.goals(given(times)) if "fastest" in row["goal"]]
    assert not row["met"]
    assert row["measured"] == "1.50 (1.50 to 1.50)"


def test_the_table_has_ratios_within_a_round_in_their_units():
    """Tiled to floor, round by round: 2, 1, 6. Their median is 2 (their mean 3, the ratio of the medians 1)."""
    found = bench_report.table(given({FLOOR: [0.010, 0.012, 0.020], TILED: [0.020, 0.012, 0.120]}))
    (row,) = [line for line in found.splitlines() if line.startswith("| 4,096 |")]
    assert row == "| 4,096 | 12.0 ms | 2.00 (1.00 to 6.00), 3 MiB |"


# ---- How it is measured ----------------------------------------------------------------------------------------------


def test_the_floor_is_three_matrix_products():
    u, v = bench.embeddings(16, "cpu", autocast=False)
    for loss, rows in (("nt_xent", 32), ("clip", 16), ("info_nce", 16), ("siglip", 16)):
        with FlopCounterMode(display=False) as counted:
            bench.CONTENDERS[loss][FLOOR]("cpu")(u, v)
        assert counted.get_total_flops() == 3 * (2 * rows * rows * bench.DIMENSION)


def test_a_time_is_of_forward_and_backward_from_no_gradient():
    inputs = bench.embeddings(8, "cpu", autocast=False)
    gradients = []
    for _ in range(2):
        assert bench.seconds(bench.CONTENDERS["nt_xent"][DENSE]("cpu"), inputs, "cpu", False) > 0
        gradients.append([x.grad.clone() for x in inputs])
    expected = torch.autograd.grad(contenders.usual_formula(*inputs), inputs)
    for found in gradients:  # the second is not added to the first
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", bench.CONTENDERS)
def test_the_error_is_that_of_the_gradient(loss):
    """Of the exact gradient it is a rounding; of one that is off by a thousandth, a thousandth."""
    inputs = bench.embeddings(16, "cpu", autocast=False)
    bench.seconds(bench.CONTENDERS[loss][DENSE]("cpu"), inputs, "cpu", False)
    assert 0 < bench.error(loss, inputs) < 1e-6
    for x in inputs:
        x.grad *= 1.001
    assert bench.error(loss, inputs) == pytest.approx(1e-3, rel=1e-3)


@pytest.fixture
def clock(monkeypatch):
    """The benchmark with seconds and bytes that a test makes up: ``clock.seconds(n)``, ``clock.bytes(n)``."""
    made = SimpleNamespace(seconds=lambda n: n / 100, bytes=lambda n: 0, n=0, order=[])

    def seconds(function, inputs, device, autocast):
        made.n = len(inputs[0])
        made.order.append(function)
        return made.seconds(made.n)

    monkeypatch.setattr(bench, "CONTENDERS", {"x": {name: lambda device, name=name: name for name in "abc"}})
    monkeypatch.setattr(bench, "seconds", seconds)
    monkeypatch.setattr(bench, "_reset_peak", lambda device: 1000)
    monkeypatch.setattr(bench, "_peak", lambda device: 1000 + made.bytes(made.n))
    monkeypatch.setattr(bench, "_available", lambda device: math.inf)
    return made


def trial(sizes):
    return bench.trial("x", "a", sizes, "cpu", False, torch.get_num_threads())


def test_a_contender_is_asked_as_long_as_the_next_size_is_worth_waiting_for(clock, monkeypatch):
    monkeypatch.setattr(bench, "PATIENCE", 0.5)
    assert {n: found["seconds"] for n, found in trial([4, 8, 16, 32, 64, 128]).items()} == {
        4: 0.04, 8: 0.08, 16: 0.16, 32: 0.32,  # 64 would take 0.64
    }  # fmt: skip


def test_a_contender_is_asked_as_long_as_the_next_size_fits_into_memory(clock, monkeypatch):
    clock.bytes = lambda n: n * 10**6
    monkeypatch.setattr(bench, "_available", lambda device: 50e6)  # of which a fifth is left alone
    assert {n: found["bytes"] for n, found in trial([4, 8, 16, 32, 64]).items()} == {
        4: 4e6, 8: 8e6, 16: 16e6, 32: 32e6,  # what was held before is not counted; 64e6 is too much
    }  # fmt: skip


def test_a_contender_that_runs_out_of_memory_keeps_what_it_did(clock):
    def seconds(n):
        if n == 16:
            raise torch.OutOfMemoryError
        return 1e-6

    clock.seconds = seconds
    assert set(trial([4, 8, 16, 32])) == {4, 8}


def test_a_contender_that_is_not_installed_is_left_out(clock, monkeypatch):
    monkeypatch.setitem(bench.CONTENDERS["x"], "a", lambda device: importlib.import_module("no_such_library"))
    assert trial([4]) == {}


def test_a_library_that_fails_is_told_and_keeps_what_it_did_and_a_loss_of_ours_is_a_fault(clock, monkeypatch, capsys):
    def seconds(n):
        if n == 16:
            raise RuntimeError("out of resource")
        return 1e-6

    clock.seconds = seconds
    assert set(trial([4, 8, 16, 32])) == {4, 8}
    assert capsys.readouterr().err == "a, x: left out, for it failed here: RuntimeError: out of resource\n"
    assert trial([16]) == {}
    monkeypatch.setattr(bench, "OURS_AND_USUAL", "a")
    with pytest.raises(RuntimeError, match="out of resource"):
        trial([16])


def test_a_library_that_fails_in_a_race_is_told_and_leaves_it(clock, capsys):
    calls = itertools.count()

    def seconds(n):
        if next(calls) == 4:
            raise RuntimeError("an illegal instruction")
        return 2.0

    clock.seconds = seconds
    trials = {name: {8: {"seconds": 2.0}} for name in "abc"}
    assert bench.race("x", trials, 8, "cpu", False) == {"a": [2.0] * 5, "c": [2.0] * 5}
    assert "b, x, n = 8: left out, for it failed here: RuntimeError: an illegal" in capsys.readouterr().err


def test_contenders_take_turns_and_the_first_round_is_not_counted(clock):
    calls = itertools.count()
    clock.seconds = lambda n: next(calls)
    trials = {
        "a": {4: {"seconds": 3.0}, 8: {"seconds": 3.0}},
        "b": {4: {"seconds": 2.0}, 8: {"seconds": 2.0}},
        "c": {4: {}},
    }
    times = bench.race("x", trials, 8, "cpu", False)
    assert clock.order == ["a", "b"] * 7  # one to warm up, and 30 seconds of patience for five seconds a round
    assert times == {"a": [2, 4, 6, 8, 10, 12], "b": [3, 5, 7, 9, 11, 13]}


def test_a_turn_of_short_passes_has_as_many_of_them_as_it_takes_and_counts_their_median(clock):
    calls = itertools.count()
    clock.seconds = lambda n: next(calls) ** 2
    trials = {"a": {8: {"seconds": bench.TURN / 3}}, "b": {8: {"seconds": bench.TURN / 2}}}
    times = bench.race("x", trials, 8, "cpu", False)
    assert clock.order == (["a"] * 3 + ["b"] * 2) * 16
    assert times["a"] == [(5 * i + 1) ** 2 for i in range(1, 16)]
    assert times["b"] == [((5 * i + 3) ** 2 + (5 * i + 4) ** 2) / 2 for i in range(1, 16)]


def test_a_race_on_a_gpu_leaves_its_memory_to_the_next_contender(monkeypatch):
    made, emptied = [], []

    def embeddings(*_):
        leaves = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        made.extend(weakref.ref(x) for x in leaves)
        return leaves

    monkeypatch.setattr(bench, "embeddings", embeddings)
    monkeypatch.setattr(bench, "seconds", lambda *_: 2.0)
    monkeypatch.setattr(bench, "CONTENDERS", {"x": {"a": lambda device: device}})
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append([x() for x in made]))
    bench.race("x", {"a": {8: {"seconds": 2.0}}}, 8, "cuda", False)
    assert emptied == [[None, None]]  # and what is still held could not have been given back


def test_what_shrinks_is_taken_to_grow_in_proportion():
    assert bench._extrapolate({2: {"x": 1.0}, 4: {"x": 0.5}}, "x", 8) == pytest.approx(1.0)
