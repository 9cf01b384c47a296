"""The benchmark runs, compares like with like, and reports what it measured. Times themselves decide nothing here."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

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
            with contextlib.suppress(ImportError):  # a library of the extra `oracles`
                value = make("cpu")(*inputs)
                outcomes[name] = value.detach(), *torch.autograd.grad(value, inputs)
    assert {bench_report.TILED, bench_report.DENSE} <= set(outcomes)
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
        assert set(times) == {bench_report.FLOOR, bench_report.TILED, bench_report.DENSE}
        assert all(len(rounds) >= 4 and min(rounds) > 0 for rounds in times.values())
    assert path.with_suffix(".png").stat().st_size > 0
    assert "| 32 |" in path.read_text()
    assert path.read_text() in capsys.readouterr().out


def test_ratios_are_taken_round_by_round():
    times = {"slow": [2.0, 30.0], "fast": [1.0, 10.0]}
    assert bench_report.ratios(times, "slow", "fast") == [2.0, 3.0]
    assert bench_report.ratios(times, "slow", "absent") is None


def test_goals_are_judged_by_what_was_measured():
    def results(tiled, large):
        times = {bench_report.TILED: [tiled], bench_report.DENSE: [2.0], bench_report.FLOOR: [1.0], "lightly": [6.5]}
        return {"times": {"nt_xent": {4096: times}}, "large": {50_000: {"bytes": large, "seconds": 9.0}}}

    assert [row["met"] for row in bench_report.goals(results(0.9, 2**30))] == [True, True, True, True]
    assert [row["met"] for row in bench_report.goals(results(2.5, 2**32))] == [False, False, False, False]


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
