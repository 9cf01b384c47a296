"""The benchmark of several trainings at once: every contender trains what it says. Times decide nothing here."""

import contextlib
import json

import pytest
import torch
from test_bench_training import TINY

from companion.bench import together as bench
from companion.errors import CompanionError
from companion.training import loop

STEPS = 2


@pytest.fixture
def made(monkeypatch):
    """Optimisers with their parameters, in the order in which they are made; they learn, and count their steps."""
    made = []

    def optimizer_of(method, config):
        optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
        made.append((optimizer, list(method.parameters())))
        optimizer.steps = 0

        def count(optimizer, *_):
            optimizer.steps += 1

        optimizer.register_step_post_hook(count)
        return optimizer

    for module in (bench, loop):
        monkeypatch.setattr(module, "optimizer_of", optimizer_of)
    return made


def test_every_run_takes_as_many_steps(made):
    assert bench.one(TINY, STEPS)() == STEPS
    assert [optimizer.steps for optimizer, _ in made] == [STEPS]
    made.clear()
    train = bench.by_streams(TINY, STEPS, 3)
    for epochs in (1, 2):
        assert train() == 3 * STEPS
        assert [optimizer.steps for optimizer, _ in made] == [epochs * STEPS] * 3
    made.clear()
    assert bench.stacked(TINY, STEPS, 3)() == 3 * STEPS
    assert [optimizer.steps for optimizer, _ in made] == [STEPS]


def test_stacked_runs_learn_what_one_run_learns(made):
    """Seeds are equal, so every one of them is that run, its batch statistics included."""
    first = bench.one(TINY, STEPS)
    before = [x.detach().clone() for x in made[0][1]]
    stacked = bench.stacked(TINY, STEPS, 3)
    for train in (first, stacked):
        train()
        train()
    for alone, start, stack in zip(made[0][1], before, made[1][1], strict=True):
        assert stack.shape == (3, *alone.shape)
        moved = (alone - start).norm()
        assert moved > 0 or alone.ndim == 1
        for its in stack:
            assert (its - alone).norm() <= 1e-3 * moved + 1e-6


def test_stacked_runs_learn_in_half_precision_too(made):
    train = bench.stacked(TINY.replace(precision="bf16-mixed"), STEPS, 2)
    before = [x.detach().clone() for x in made[0][1]]
    train()
    assert all(x.isfinite().all() and x.dtype == torch.float32 for x in made[0][1])
    assert any((x != start).any() for x, start in zip(made[0][1], before, strict=True))


def test_runs_by_processes_start_and_end_together():
    with bench.by_processes(TINY, STEPS, 2) as train:
        assert [train(), train()] == [2 * STEPS] * 2


def test_a_process_that_dies_is_told():
    told = pytest.raises(CompanionError, match="One of 2 processes that train at once has died")
    with bench.by_processes(TINY, -1, 2) as train, told:  # of so few steps there are no images
        train()


def test_rounds_are_timed_with_their_threads_and_the_first_is_left_out(monkeypatch):
    called, now = [], 0.0

    def contender(name, seconds):
        def train():
            nonlocal now
            called.append((name, torch.get_num_threads()))
            now += seconds if len(called) > 4 else 100.0  # the first round

        return train

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    ones = iter([contender(bench.ONE, 1.0), contender(bench.THREADS, 2.0)])
    monkeypatch.setattr(bench, "one", lambda *_: next(ones))
    monkeypatch.setattr(bench, "by_processes", lambda *_: contextlib.nullcontext(contender(bench.PROCESSES, 3.0)))
    monkeypatch.setattr(bench, "stacked", lambda *_: contender(bench.STACKED, 4.0))
    before = torch.get_num_threads()
    try:
        times = bench.measure(TINY, STEPS, 2, 2, 5)
    finally:
        torch.set_num_threads(before)
    assert times == {
        bench.ONE: [1.0] * 2,
        bench.PROCESSES: [3.0] * 2,
        bench.THREADS: [2.0] * 2,
        bench.STACKED: [4.0] * 2,
    }
    assert called == [(bench.ONE, 1), (bench.PROCESSES, 1), (bench.THREADS, 5), (bench.STACKED, 5)] * 3


def test_what_fails_is_told_and_the_others_are_measured(monkeypatch, capsys):
    def stacked(*_):
        raise torch.OutOfMemoryError("no room for four")

    monkeypatch.setattr(bench, "one", lambda *_: lambda: None)
    monkeypatch.setattr(bench, "by_processes", lambda *_: contextlib.nullcontext(lambda: None))
    monkeypatch.setattr(bench, "stacked", stacked)
    assert list(bench.measure(TINY, STEPS, 2, 1, 1)) == [bench.ONE, bench.PROCESSES]
    assert capsys.readouterr().err == (
        "stacked by vmap: left out, for it failed here: OutOfMemoryError: no room for four\n"
    )
    monkeypatch.setattr(bench, "one", stacked)
    with pytest.raises(torch.OutOfMemoryError):
        bench.measure(TINY, STEPS, 2, 1, 1)


def test_views_of_all_runs_are_counted():
    machine = {"name": "x", "torch": "2", "encoder": "small", "image_size": 8, "batch_size": 8, "precision": "32-true"}
    times = {bench.ONE: [1.0, 2.0], bench.THREADS: [0.5, 1.0], bench.PROCESSES: [2.0, 4.0], bench.STACKED: [1.5, 3.0]}
    lines = bench.table({"machine": machine, "runs": 3, "views": 60, "times": times}).splitlines()
    assert "| one run | 40 | 1.00 (1.00 to 1.00) |" in lines
    assert "| one run, all threads | 80 | 2.00 (2.00 to 2.00) |" in lines
    assert "| 3: a process each | 60 | 1.50 (1.50 to 1.50) |" in lines
    assert "| 3: stacked by vmap | 80 | 2.00 (2.00 to 2.00) |" in lines


def test_results_are_written_and_complete(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(tmp_path))
    monkeypatch.setitem(bench.STEPS, "cpu", 1)
    path = bench.main(["--rounds", "1", "--batch-size", "8", "--runs", "2"])
    results = json.loads(path.with_suffix(".json").read_text())
    assert results["views"] == 16
    assert {bench.ONE, bench.PROCESSES, bench.STACKED} <= results["times"].keys()
    assert all(len(rounds) == 1 for rounds in results["times"].values())
    assert path.read_text() in capsys.readouterr().out


@pytest.mark.parametrize(("option", "told"), [("--runs", "at least 2"), ("--rounds", "at least 1")])
def test_bad_options(option, told):
    with pytest.raises(CompanionError, match=told):
        bench.main([option, "0"])
