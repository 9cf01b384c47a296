"""The speed run, whole and tiny on the CPU: what it stops at, what its clock counts, and what its log says."""

import copy
import itertools
import json
import math
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from companion import paths
from companion.bench import speedlog, speedrun, tricks
from companion.training import Views, initial, load_data

TINY = [
    "--dry-run", "--n-train", "120", "--n-validation", "30", "--batch-size", "40", "--epochs", "6", "--every", "2",
]  # fmt: skip
STEPS = 3  # in an epoch
PLAIN = "compile+bf16"  # left out of tests: compiling takes half a minute


def race(*options, seed=0, left_out=PLAIN):
    return speedrun.race_of(speedrun.parse([*TINY, *options]), seed, left_out)


class Time:
    """A clock that stands, but for a second a step and a thousand an evaluation."""

    def __init__(self, monkeypatch):
        self.now, self.steps = 5000.0, 0
        pretended = SimpleNamespace(perf_counter=lambda: self.now, monotonic=lambda: self.now)
        monkeypatch.setattr(tricks, "time", pretended)
        monkeypatch.setattr(speedrun, "time", pretended)
        after_step, evaluate = tricks.Racer.after_step, speedrun.evaluate

        def step(racer):
            self.now, self.steps = self.now + 1, self.steps + 1
            after_step(racer)

        def look(method, images):
            self.now += 1000
            return evaluate(method, images)

        monkeypatch.setattr(tricks.Racer, "after_step", step)
        monkeypatch.setattr(speedrun, "evaluate", look)


@pytest.fixture
def time(monkeypatch):
    return Time(monkeypatch)


def test_it_stops_at_the_first_evaluation_that_reaches_the_target(results, time):
    row = speedrun.run(race("--target", "0.05"))
    assert time.steps == 2 * STEPS
    assert row["reached"] == row["noted"][0] == row["noted"][-1]
    assert row["reached"]["epoch"] == 2
    assert 0.05 <= row["reached"]["test"] <= 1
    assert 0 <= row["reached"]["validation"] <= 1
    assert set(row["beside"]) == {"pixels", "untrained"}
    assert row["views_per_epoch"] == 2 * 120


def test_to_the_end_it_notes_the_target_and_goes_on(results, time):
    row = speedrun.run(race("--target", "0.05", "--to-the-end"))
    assert [noted["epoch"] for noted in row["noted"]] == [2, 4, 6]
    assert row["reached"] == row["noted"][0]


def test_a_target_out_of_reach_is_not_reached_and_has_no_time(results, time):
    row = speedrun.run(race("--target", "1", "--epochs", "3"))
    assert row["reached"] is None
    assert [noted["epoch"] for noted in row["noted"]] == [2, 3]  # the last one too
    table = speedlog.table([{"left_out": "", **row}], 15)
    summary, single = (next(line for line in part.splitlines() if line.startswith("| all")) for part in halves(table))
    assert summary.startswith("| all | 0 of 1 | not reached |  |  |  |")
    assert summary.endswith("| 0 of 1 |")
    assert single.startswith("| all | 0 | not reached |  |  |")


def halves(table):
    """The summary, and the table of single runs."""
    return table.split("| tricks | seed |")


def test_the_clock_counts_steps_and_not_evaluations(results, time):
    row = speedrun.run(race("--target", "1"))
    assert [noted["seconds"] for noted in row["noted"]] == [2 * STEPS, 4 * STEPS, 6 * STEPS]
    assert row["seconds"] == {"clock": 6 * STEPS, "evaluations": 3000.0, "data": 0.0}


@pytest.mark.parametrize("stopped_after", [1, 2 * STEPS - 1, 5 * STEPS + 1])
def test_a_run_that_is_stopped_goes_on_with_its_clock_and_ends_as_if_it_had_not_been(
    results, time, monkeypatch, stopped_after
):
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("CONTRASTIVE_RESULTS", str(results / "whole"))
        whole = speedrun.run(race("--target", "1"))
    looks = (stopped_after - 1) // (2 * STEPS)
    until = time.now + stopped_after + 1000 * looks
    time.steps = 0
    assert speedrun.run(race("--target", "1"), until=until) is None
    assert time.steps == stopped_after
    time.now += 1e6  # whatever passes in between
    resumed = speedrun.run(race("--target", "1"))
    assert time.steps == 6 * STEPS
    assert resumed.pop("sittings") == 2
    assert whole.pop("sittings") == 1
    assert resumed == whole  # accuracies and seconds of every evaluation


def test_an_evaluation_is_outside_the_clock_even_if_it_fails(monkeypatch):
    Time(monkeypatch)
    clock = tricks.Clock(torch.device("cpu"))
    tricks.time.perf_counter = itertools.count(5000.0).__next__  # a second a look at it
    with pytest.raises(RuntimeError), clock.paused():
        raise RuntimeError
    assert clock.outside > 0


def naive_votes(train, labels, tests, k):
    found = []
    for x in tests:
        cosines = [float(x @ t / math.sqrt(float(x @ x) * float(t @ t))) for t in train]
        nearest = sorted(range(len(train)), key=lambda i: -cosines[i])[:k]
        counts = {}
        for i in nearest:
            counts[int(labels[i])] = counts.get(int(labels[i]), 0) + 1
        found.append(min(c for c in counts if counts[c] == max(counts.values())))
    return found


def test_the_vote_is_that_of_ten_nearest_by_cosine():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8))
    y, y_test = rng.integers(3, size=90), rng.integers(3, size=60)
    x = (centres[y] + 1.5 * rng.normal(size=(90, 8))) * rng.uniform(0.1, 10, size=(90, 1))  # lengths say nothing
    x_test = centres[y_test] + 1.5 * rng.normal(size=(60, 8))
    expected = np.mean(np.array(naive_votes(x, y, x_test, 10)) == y_test)
    assert 0.5 < expected < 0.95
    given = [(torch.tensor(a, dtype=torch.float32), torch.tensor(b)) for a, b in ((x, y), (x_test, y_test))]
    assert speedrun.votes(*given) == [pytest.approx(expected)]


def test_what_stands_beside_it_is_the_vote_of_pixels_and_of_the_same_network_untrained(results):
    tiny = race()
    images = load_data(tiny.config)
    pixels = [s.images.flatten(1).numpy().astype(float) for s in (images.train, images.test)]
    votes = naive_votes(pixels[0], images.train.labels, pixels[1][::40], 10)
    from_it = speedrun.votes(
        (torch.tensor(pixels[0]), images.train.labels), (torch.tensor(pixels[1][::40]), images.test.labels[::40])
    )
    assert from_it == [pytest.approx(np.mean(np.array(votes) == images.test.labels[::40].numpy()))]
    net = initial(tiny.config).model.train()  # its batch norm then averages what it sees
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        for batch in Views(images.train, tiny.config.augmentation.build(16), 40, seed=0).batches(0):
            net(batch.first)
        net.eval()
        parts = [(net.encoder(s.images / 255), s.labels) for s in (images.train, images.test, images.validation)]
    found = speedrun.beside(tiny, images, torch.device("cpu"))
    assert found["untrained"] == speedrun.votes(*parts[:2])[0]
    calibrated = initial(tiny.config)
    calibrated.model.load_state_dict(net.state_dict())
    expected = dict(zip(("test", "validation"), speedrun.votes(*parts), strict=True))
    assert speedrun.evaluate(calibrated.eval(), images) == expected
    assert found["pixels"] == speedrun.votes(
        *((torch.tensor(x), s.labels) for x, s in zip(pixels, (images.train, images.test), strict=True))
    ) [0]  # fmt: skip
    with speedrun.seeded(tiny.config.seed, 0):
        racer = tricks.Racer(tiny, images.train, tricks.Clock(torch.device("cpu")))
    assert all(map(torch.equal, racer.model.parameters(), initial(tiny.config).model.parameters()))


def test_views_are_small_in_the_first_half_of_the_epochs():
    def sizes(given):
        source = tricks.Growing(given, load_data(given.config).train, torch.device("cpu"))
        return [next(source.batches(epoch)).first.shape[-1] for epoch in range(given.config.epochs)]

    assert sizes(race("--epochs", "5")) == [12, 12, 16, 16, 16]
    assert sizes(race("--epochs", "5", left_out="small-first")) == [16] * 5


def test_what_is_evaluated_is_the_moving_average_of_weights_and_statistics(results):
    given = race().replace(average=0.2)
    images = load_data(given.config)
    racer = tricks.Racer(given, images.train, tricks.Clock(torch.device("cpu")))
    decay = 1 - 1 / (0.2 * 6 * STEPS)
    by_hand, g = copy.deepcopy(racer.model.encoder.state_dict()), torch.Generator().manual_seed(0)
    for _ in range(4):
        with torch.no_grad():
            for value in racer.model.encoder.state_dict().values():
                value.copy_(torch.rand(value.shape, generator=g) if value.is_floating_point() else value + 1)
        racer.after_step()
        for name, value in racer.model.encoder.state_dict().items():
            if value.is_floating_point():
                by_hand[name] = decay * by_hand[name] + (1 - decay) * value
    for name, value in racer.average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, by_hand[name])
    x, net = torch.rand(5, 3, 16, 16), copy.deepcopy(racer.model.encoder).eval()
    net.load_state_dict(by_hand)
    racer.eval()
    torch.testing.assert_close(racer.embed(x), net(x))
    without = tricks.Racer(race(left_out=f"{PLAIN}+average"), images.train, tricks.Clock(torch.device("cpu"))).eval()
    torch.testing.assert_close(without.embed(x), without.model.encoder(x))


def test_every_trick_can_be_left_out_and_leaves_the_others():
    every = race(left_out="")
    changed = {}
    for name in tricks.TRICKS:
        less = race(left_out=name)
        ours, theirs = less.to_dict() | less.config.to_dict(), every.to_dict() | every.config.to_dict()
        changed[name] = {key for key in ours if ours[key] != theirs[key]} - {"config"}
    assert changed == {
        "bf16": {"precision"}, "graph": {"graph"}, "compile": {"compiled"}, "small-first": {"small_first"},
        "average": {"average"},
    }  # fmt: skip
    both = race(left_out="bf16+average")
    assert (both.config.precision, both.average, both.graph) == ("32-true", 0.0, True)
    images = load_data(every.config)
    for name, static in (("average", True), ("graph", False)):
        racer = tricks.Racer(race(left_out=f"{PLAIN}+{name}"), images.train, tricks.Clock(torch.device("cpu")))
        assert racer.static is static


@pytest.fixture
def compilations(monkeypatch):
    """Graphs that were compiled so far; without a compiler, which would take half a minute. And how it was asked."""
    asked, compiler = [], torch.compile

    def quick(function, *, dynamic):
        asked.append(dynamic)
        return compiler(function, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", quick)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda: (torch._dynamo.utils.counters["stats"]["unique_graphs"], asked)
    torch.compiler.reset()


def test_the_encoder_is_compiled_once_for_either_size_and_not_again_after_an_evaluation(
    results, monkeypatch, compilations
):
    """For what is compiled after the first steps would be compiled in the middle of a CUDA graph's capture."""
    seen, after_step = [], tricks.Racer.after_step

    def step(racer):
        seen.append(compilations()[0])
        after_step(racer)

    monkeypatch.setattr(tricks.Racer, "after_step", step)
    speedrun.run(race("--target", "1", "--every", "1", left_out="graph"))
    assert seen == [1] * 3 * STEPS + [2] * 3 * STEPS
    assert compilations() == (2, [False])


@pytest.mark.parametrize(("left_out", "expected"), [("graph", (2, [False])), ("compile", (0, []))])
def test_the_encoder_is_compiled_unless_that_is_left_out(results, compilations, left_out, expected):
    speedrun.run(race("--target", "1", "--every", "6", left_out=left_out))
    assert compilations() == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--leave-out", "averages"], "Unknown trick 'averages': expected one of bf16, .* Did you mean 'average'?"),
        (["--leave-out", "bf16+"], "Unknown trick ''"),
        (["--target", "90"], "target is 90.0: expected a number from 0 to 1"),
        (["--every", "0"], "every is 0"),
        (["--epochs", "0"], "epochs"),
        (["--sitting", "-1"], "--sitting is -1.0"),
        (["--minutes", "nan"], "--minutes is nan"),
        (["--image-size", "8"], "image_size is 8: expected 11 or more"),
        (["--encoder", "resnet19"], "Did you mean 'resnet18'?"),
        (["--n-train", "9999"], "training images"),
        (["--accelerator", "cuda"], "torch sees no CUDA device here"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_trained_or_written(results, capsys, monkeypatch, options, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(speedrun, "train", lambda *a, **k: pytest.fail("trained"))
    assert speedrun.main([*TINY, *options]) == 2
    printed = capsys.readouterr()
    assert re.search(told, printed.err)
    assert not list((results / "bench").glob("*"))


def test_the_log_has_a_line_a_run_and_no_run_is_done_twice(results, capsys, monkeypatch):
    options = [*TINY, "--target", "0.05", "--leave-out", PLAIN, "--seeds"]
    assert speedrun.main([*options, "3"]) == 0
    log = results / "bench" / "speedrun-cpu-dry.jsonl"
    first = log.read_text()
    assert "seed 3:" in capsys.readouterr().out
    assert [path.name for path in sorted(log.parent.iterdir())] == [
        log.name,
        log.with_suffix(".md").name,
    ]  # no leftover
    done, run = [], speedrun.run

    def counted(given, **options):
        done.append(given.config.seed)
        return run(given, **options)

    monkeypatch.setattr(speedrun, "run", counted)
    assert speedrun.main([*options, "3", "4"]) == 0
    assert done == [4]
    printed = capsys.readouterr().out
    assert "seed 3: in" in printed
    assert log.read_text().startswith(first)
    rows = speedlog.read(log)
    assert [row["race"]["config"]["seed"] for row in rows] == [3, 4]
    assert {row["left_out"] for row in rows} == {PLAIN}
    assert log.with_suffix(".md").read_text() == speedlog.table(rows, 15)
    assert speedlog.table(rows, 15) in printed
    assert speedrun.main([*options, "3", "--every", "1"]) == 0  # another run
    assert done == [4, 3]


def test_a_sitting_that_is_over_says_so_keeps_the_checkpoint_and_leaves_no_row(results, capsys, time):
    options = [*TINY, "--target", "1", "--leave-out", PLAIN, "--seeds", "0", "1"]
    assert speedrun.main([*options, "--sitting", "0.1"]) == 0  # six seconds: six steps
    printed = capsys.readouterr()
    assert "The 0.1 min of this command are over. The same command again goes on from here." in printed.out
    assert re.search(r"Stopped: speedrun-e6-seed0-\w+ is saved after step 3 of epoch 2", printed.err)
    assert time.steps == 6
    assert not (results / "bench" / "speedrun-cpu-dry.jsonl").exists()
    assert len(list((results / "bench").glob(".partial-*/checkpoint.pt"))) == 1
    assert speedrun.main(options) == 0
    rows = speedlog.read(results / "bench" / "speedrun-cpu-dry.jsonl")
    assert [row["sittings"] for row in rows] == [2, 1]
    assert time.steps == 2 * 6 * STEPS


def test_sigterm_saves_the_step_and_ends_the_command(results, capsys, monkeypatch, time):
    heard, after_step = [], tricks.Racer.after_step

    def step(racer):
        after_step(racer)
        if time.steps == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(tricks.Racer, "after_step", step)
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(time.steps))
    try:
        with pytest.raises(SystemExit) as left:
            speedrun.main([*TINY, "--leave-out", PLAIN])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 143
    assert heard == [2]
    assert "is saved after step 2 of epoch 1" in capsys.readouterr().err


def row(seed, seconds, left_out="", *, test=0.91, epochs=500):
    """As much of a row as the table reads."""
    given = speedrun.race_of(speedrun.parse([*TINY, "--epochs", str(epochs)]), seed)
    noted = [{"epoch": 10, "seconds": 30.0, "test": 0.4}, {"epoch": 400, "seconds": seconds or 900.0, "test": test}]
    return {
        "race": given.described(), "left_out": left_out, "noted": noted, "reached": noted[-1] if seconds else None,
        "seconds": {"clock": seconds or 900.0, "evaluations": 60.0, "data": 2.0}, "views_per_epoch": 1000,
        "sittings": 1, "beside": {"pixels": 0.35, "untrained": 0.29},
        "provenance": {"device": "H", "torch": "2", "commit": "abc"},
    }  # fmt: skip


def cells(table, start):
    (line,) = [line for line in halves(table)[0].splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_means_with_intervals_and_differences_by_seed():
    seconds, without = {0: 600.0, 1: 660.0, 2: 750.0}, {2: 800.0, 0: 640.0, 1: 720.0}
    rows = [row(s, t) for s, t in seconds.items()] + [row(s, t, "average") for s, t in without.items()]
    table = speedlog.table(rows, 11)

    def interval(values):
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        return f"{np.mean(values):.2f} [{low:.2f}, {high:.2f}]"

    whole = cells(table, "| all")
    assert whole[1:4] == ["3 of 3", interval([10, 11, 12.5]), ""]
    assert whole[-1] == "2 of 3"  # 11 minutes or less
    less = cells(table, "| without")
    assert less[:4] == ["without `average`", "3 of 3", interval([640 / 60, 12, 800 / 60]), interval([2 / 3, 1, 5 / 6])]
    alone = [*rows, row(0, 660.0, "graph"), row(7, 900.0, "graph")]  # a seed without a partner is compared with none
    line = next(line for line in speedlog.table(alone, 11).splitlines() if line.startswith("| without `graph`"))
    assert line.startswith("| without `graph` | 2 of 2 | 11.00, 15.00 | 1.00 |")
    rates = [390 * 1000 / (t - 30) for t in seconds.values()]
    low, high = stats.t.interval(0.95, 2, np.mean(rates), stats.sem(rates))
    assert whole[-2] == f"{np.mean(rates):,.0f} [{low:,.0f}, {high:,.0f}]"


def test_where_a_seed_did_not_get_there_no_mean_stands_for_the_others():
    rows = [row(0, 600.0), row(1, None, test=0.89), row(2, 700.0), row(0, None, "bf16", test=0.8)]
    table = speedlog.table(rows, 15)
    assert cells(table, "| all")[1:6] == ["2 of 3", "not reached", "", "", ""]
    assert cells(table, "| without")[1:4] == ["0 of 1", "not reached", ""]
    assert "| all | 1 | not reached |" in halves(table)[1]
    assert "| all | 2 | 11.67 | 400 | 91.00% |" in halves(table)[1]


def test_schedules_of_two_lengths_are_not_put_together():
    table = speedlog.table([row(0, 600.0), row(1, 300.0, epochs=400)], 15)
    assert "## To 62.0% by small on 120 images (30 held out) of eurosat-subset, 16 pixels: 500 epochs" in table
    assert ": 400 epochs" in table
    assert [line.split("|")[2].strip() for line in table.splitlines() if "of 1 |" in line] == ["1 of 1"] * 2


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"race": {}}'])
def test_a_damaged_line_is_told_and_the_log_stays(results, capsys, line):
    log = results / "bench" / "speedrun-cpu-dry.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps(row(0, 600.0)) + "\n" + line + "\n")
    before = log.read_text()
    assert speedrun.main(TINY) == 2
    assert "Line 2 of" in capsys.readouterr().err
    assert log.read_text() == before


def test_the_estimate_is_called_one_and_rests_on_what_was_recorded(monkeypatch, capsys, results):
    whole = tricks.Race()
    text = speedrun.estimate(whole)
    assert text.startswith("An estimate, not a measurement: 500 epochs of 2 × 50,000 views take 15.7 min")
    assert f"and {500 * 100_000 * (0.5 + 0.5 * 0.5625) / 53_100 / 60:.1f} min" in text
    assert "15.7 min if" in speedrun.estimate(whole.without("small-first"))
    assert f"({speedrun.VIEWS_PER_SECOND:,} views/s)" in (paths.reference() / "README.md").read_text()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(speedrun, "run", lambda race, until: None)
    monkeypatch.setattr(tricks.Race, "described", lambda self: {})
    assert speedrun.main([]) == 0
    assert capsys.readouterr().out.startswith("An estimate")  # before anything is started
