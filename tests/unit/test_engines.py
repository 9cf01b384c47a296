"""Engines without Ray and Dask: what is asked of a cluster, by one of threads; real ones are in tests/faults."""

import contextlib
import os
import socket
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import joblib
import pytest
import torch

from companion import store
from companion.errors import CompanionError, MissingExtraError
from companion.training import engines, processes, runs, sweep, sweeps

VARIABLES = ("ENGINE", "ADDRESS", "GPUS", "JOBS", "PROCESSES")


@pytest.fixture
def ask(results, monkeypatch):
    """Set these variables, and no others of the kind."""

    def set_them(**given):
        for name in VARIABLES:
            monkeypatch.setenv(f"CONTRASTIVE_{name}", given.get(name.lower(), ""))

    return set_them


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of a thread in the place of Ray; what it is asked for is noted."""
    asked = []

    @contextlib.contextmanager
    def connected(engine, configs, jobs):
        with ThreadPoolExecutor(1) as pool:

            def submit(task, cpus, gpus):
                asked.append((cpus, gpus))
                return pool.submit(task)

            yield submit, [{"CPU": 2, "GPU": 1}]

    monkeypatch.setattr(engines, "_ray", connected)
    return asked


def test_nothing_named_is_loky(ask):
    ask()
    assert engines.chosen() == engines.Engine("loky", "", None)


@pytest.mark.parametrize(
    ("given", "told"),
    [({"engine": "rai"}, r"Unknown ENGINE \(or CONTRASTIVE_ENGINE\) 'rai': expected one of loky, ray, dask. Did you"),
     ({"address": "head:6379"}, r"^ADDRESS .* is 'head:6379' and ENGINE is 'loky'.*ENGINE=ray or ENGINE=dask"),
     ({"engine": "loky", "gpus": "1"}, r"^GPUS .* is '1' and ENGINE is 'loky'.*leave GPUS out"),
     ({"engine": "ray", "gpus": "half"}, r"^GPUS .* is 'half': expected a finite number"),
     ({"engine": "ray", "gpus": "-1"}, r"^GPUS .* is -1.0: expected a finite number at least 0"),
     ({"engine": "ray", "gpus": "nan"}, r"^GPUS .* is nan: expected a finite number"),
     ({"engine": "ray", "gpus": "1e-320"}, r"^GPUS .* is 9.99989e-321: expected 0, a part of one GPU from 0.0001 on"),
     ({"engine": "dask", "gpus": "0.00009"}, r"^GPUS .* is 9e-05: expected 0, a part of one GPU from 0.0001 on"),
     ({"engine": "dask", "gpus": "1.5"}, r"^GPUS .* is 1.5: expected 0, a part of one GPU .*, or whole ones")],
)  # fmt: skip
def test_what_cannot_be_meant_is_told_before_anything_is_trained(quick, results, ask, given, told):
    ask(**given)
    with pytest.raises(CompanionError, match=told):
        sweep([quick])
    assert not (results / "runs").exists()


@pytest.mark.parametrize("gpus", [0, 0.0001, 0.5, 1, 2, 3])
def test_a_run_may_take_a_part_of_a_gpu_or_any_number_of_them(ask, gpus):
    ask(engine="ray", gpus=str(gpus))
    assert engines.chosen() == engines.Engine("ray", "", gpus)


@pytest.mark.parametrize("name", ["ray", "dask"])
def test_a_missing_package_is_named_with_its_extra(quick, results, ask, monkeypatch, name):
    ask(engine=name)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"{name} is not installed.*contrastive-companion\[cluster\]"):
        sweep([quick])


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "tcp://head", "head:123456"])
def test_an_address_that_is_none_is_told(quick, ask, address):
    ask(engine="dask", address=address)
    with pytest.raises(CompanionError, match=r"^ADDRESS .*: expected that of `dask scheduler`.* tcp://head:8786"):
        sweep([quick])


@pytest.mark.parametrize("listens", [True, False])
def test_an_address_where_no_engine_speaks_is_told(quick, ask, monkeypatch, listens):
    monkeypatch.setitem(engines.SECONDS, "answer", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        ask(engine="ray", address=address)
        with pytest.raises(CompanionError, match=rf"^Nothing of ray answers at {address} \(.+\): expected `ray start"):
            sweep([quick])


# What they say to whoever connects: a frame of HTTP/2's settings, and the header of Dask's greeting.
SPOKEN = {
    "ray": bytes.fromhex("000018040000000000 000400400000"),
    "dask": bytes.fromhex("3a00000000000000 0100000000000000 2a00000000000000"),
    "half of ray's": bytes.fromhex("000018040000010000 000400400000"),
    "neither": b"SSH-2.0-OpenSSH",
    "nothing": b"",
}


@pytest.mark.parametrize("address", ["a..b:1", f"{64 * 'a'}:1"])
def test_an_address_that_is_no_name_is_told(address):
    with pytest.raises(CompanionError, match=f"Nothing of ray answers at {address}"):
        engines.Engine("ray", address).reach()


@pytest.mark.parametrize("protocol", ["", "tcp://"])
@pytest.mark.parametrize("speaks", SPOKEN)
@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_an_address_of_another_engine_is_told(engine, speaks, protocol):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{protocol}127.0.0.1:{server.getsockname()[1]}"

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(SPOKEN[speaks][:4])
                time.sleep(0.05)  # the rest comes later
                connection.sendall(SPOKEN[speaks][4:])

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        reaches = engines.Engine(engine, address).reach
        if engine == speaks:
            reaches()
        else:
            with pytest.raises(
                CompanionError, match=rf"Nothing of {engine} answers at {address} \(something else list"
            ):
                reaches()
        answering.join()


@pytest.mark.parametrize(
    ("machines", "cpus", "gpus", "expected"),
    [([{"CPU": 8}, {"CPU": 3}], 1, 0, 11), ([{"CPU": 8}, {"CPU": 3}], 2, 0, 5), ([{"CPU": 8, "GPU": 2}], 1, 1, 2),
     ([{"CPU": 8, "GPU": 1}], 1, 0.1, 8), ([{"CPU": 16, "GPU": 1}], 1, 0.1, 10), ([{"CPU": 3, "GPU": 4}], 2, 2, 1),
     ([{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], 2, 2, 0), ([{"CPU": 8}], 1, 0.5, 0), ([{"GPU": 1}], 1, 0, 0),
     ([{"CPU": 4, "GPU": 0.3}], 1, 0.1, 3), ([], 1, 0, 0)],
)  # fmt: skip
def test_a_run_finds_its_place_on_one_machine(machines, cpus, gpus, expected):
    assert engines.places(machines, cpus, gpus) == expected


@pytest.mark.parametrize(
    ("accelerators", "there", "given", "count", "expected"),
    [(["cpu"], True, "", 1, 0), (["cuda"], False, "", 1, 1), (["cpu", "auto"], True, "", 1, 1),
     (["auto"], False, "", 1, 0), (["cuda"], True, "", 2, 2), (["cuda"], True, "0.5", 1, 0.5),
     (["cuda"], True, "0", 1, 0), (["cpu"], False, "2", 1, 2)],
)  # fmt: skip
def test_gpus_that_a_run_takes(quick, ask, accelerators, there, given, count, expected):
    ask(engine="ray", gpus=given, processes=str(count))
    configs = [quick.replace(accelerator=accelerator) for accelerator in accelerators]
    assert engines.chosen().takes(configs, there) == expected


@pytest.mark.parametrize("number", [1, 3])
def test_every_run_goes_to_the_cluster_with_what_it_takes(quick, ask, cluster, number):
    """A single one too: the cluster may have the GPU that this machine has not."""
    ask(engine="ray", gpus="0.5")
    configs = [quick.replace(seed=seed) for seed in range(number)]
    assert [run.config for run in sweep(configs)] == configs
    assert cluster == [(1, 0.5)] * number
    sweep(configs)
    assert len(cluster) == number  # what is stored asks no cluster


def test_a_run_takes_a_gpu_where_one_of_the_machines_has_one(quick, ask, cluster, monkeypatch):
    whole = engines._ray

    @contextlib.contextmanager
    def of_two(*arguments):
        with whole(*arguments) as (submit, machines):
            yield submit, [{"CPU": 2}, *machines]

    monkeypatch.setattr(engines, "_ray", of_two)
    ask(engine="ray")
    with engines.chosen().cluster([quick.replace(accelerator="auto")], None) as (parallel, room):
        parallel([joblib.delayed(abs)(1)])
    assert (cluster, room) == ([(1, 1)], 1)


def test_ray_on_this_machine_tells_its_makers_nothing(quick, ask, monkeypatch):
    told = []
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")  # what is set from here on is undone

    def started(**options):
        told.append((os.environ.get("RAY_USAGE_STATS_ENABLED"), options["address"], options["include_dashboard"]))
        raise CompanionError("started")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False, init=started))
    ask(engine="ray")
    with pytest.raises(CompanionError, match=r"^started"):
        sweep([quick])
    assert told == [("0", "local", False)]


def test_a_run_for_which_no_machine_has_room_is_told(quick, results, ask, cluster):
    ask(engine="ray", gpus="2")
    with pytest.raises(CompanionError, match=r"^A run takes 1 CPUs and 2 GPUs, and none of the 1 machines of the Ray"):
        sweep([quick])
    assert cluster == []


@pytest.mark.parametrize(
    ("gpus", "devices", "told"),
    [("0.5", 0, "0.5 GPUs, .* has 0 CUDA devices"), ("1", 0, "1 GPUs, .* has 0"), ("2", 1, "2 GPUs, .* has 1"),
     ("0.5", 1, ""), ("2", 2, ""), ("0", 0, ""), ("", 0, ""), ("", 1, "")],
)  # fmt: skip
def test_dask_on_this_machine_invents_no_gpus(quick, results, ask, monkeypatch, gpus, devices, told):
    """Without Dask: a worker has what its cluster says, whether or not there are such devices."""

    def started(**options):
        raise CompanionError(f"started with {options['resources']}")

    monkeypatch.setitem(sys.modules, "dask", types.ModuleType("dask"))
    monkeypatch.setitem(sys.modules, "distributed", types.SimpleNamespace(Client=None, LocalCluster=started))
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    ask(engine="dask", gpus=gpus)
    with pytest.raises(CompanionError, match=rf"^A run takes {told}" if told else "^started with"):
        sweep([quick])
    assert not (results / "runs").exists() or not runs.folder(quick).exists()


def test_one_that_fails_or_whose_worker_is_lost_does_not_end_the_others(quick, results, ask, cluster, monkeypatch):
    original = sweeps._ensure_elsewhere

    def lost(config, *arguments):
        if config.seed == 1:
            raise RuntimeError("its worker died 4 times\nand more")
        return original(config, *arguments)

    monkeypatch.setattr(sweeps, "_ensure_elsewhere", lost)
    ask(engine="ray")
    bad = quick.replace(learning_rate=1e30, epochs=2)
    with pytest.raises(CompanionError) as told:
        sweep([quick.replace(seed=1), bad, quick])
    first, second, third = str(told.value).splitlines()
    assert first == "2 of 3 runs failed; the others are stored."
    assert second.startswith(
        f"{runs.folder(quick.replace(seed=1)).name}: the ray cluster gave it up (RuntimeError: its"
    )
    assert third.startswith(f"{runs.folder(bad).name}: The loss became NaN")
    assert runs.complete(runs.folder(quick))


def test_a_worker_without_the_package_is_told():
    error = ModuleNotFoundError("No module named 'companion'")
    assert "install the project where the workers run" in engines._told("dask", error)


def test_a_worker_that_sees_another_disk_is_told(quick, results, ask, cluster, monkeypatch):
    """Before it trains, for its sign is not there."""
    ask(engine="ray")
    original = sweeps._ensure_elsewhere

    def on_another_disk(config, places, settings, sign):
        return original(config, places, settings, results.parent / "not-here")

    monkeypatch.setattr(sweeps, "_ensure_elsewhere", on_another_disk)
    with pytest.raises(
        CompanionError, match=rf"{socket.gethostname()} does not see what is in .*that all machines share"
    ):
        sweep([quick])
    assert not runs.folder(quick).exists()


def test_the_sign_of_a_run_store_is_seen_while_it_is_asked_for(results):
    with store.sign() as sign:
        store.recognise(sign)
    with pytest.raises(CompanionError, match="does not see what is in"):
        store.recognise(sign)
    assert not list(sign.parent.iterdir())


def test_runs_that_are_said_to_be_stored_and_are_not_here_are_told(quick, ask, cluster, monkeypatch):
    ask(engine="ray")
    monkeypatch.setattr(sweeps, "LATE", 0)
    monkeypatch.setattr(sweeps, "_ensure_elsewhere", lambda *_: None)
    with pytest.raises(
        CompanionError, match=r"(?s)^2 of 2 runs failed.*a folder that all machines share, and give all"
    ):
        sweep([quick, quick.replace(seed=1)])


def test_runs_that_a_shared_disk_shows_late_are_waited_for(quick, ask, cluster, monkeypatch):
    ask(engine="ray")
    original, late = sweeps._ensure_elsewhere, []

    def later(*arguments):
        late.append(threading.Timer(1, original, arguments))
        late[0].start()

    monkeypatch.setattr(sweeps, "_ensure_elsewhere", later)
    monkeypatch.setattr(store, "recognise", lambda sign: None)
    assert runs.complete(sweep([quick])[0].path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"address": "h:1"}, None), ({"address": "h:1", "jobs": "3"}, 3), ({}, 2), ({"jobs": "1"}, 1)],
)
def test_places_are_counted_in_the_run_store_unless_a_cluster_counts_them(
    quick, ask, cluster, monkeypatch, given, expected
):
    """One of this machine is a sweep's own, and two notebooks would have two."""
    seen = []
    monkeypatch.setattr(engines.Engine, "reach", lambda self: None)
    monkeypatch.setattr(sweeps, "_ensure", lambda config, places: seen.append(places))
    monkeypatch.setattr(sweeps, "complete", lambda path: bool(seen))
    ask(engine="ray", **given)
    sweep([quick])
    assert seen == [expected]


def test_no_more_runs_than_jobs_are_handed_to_the_cluster_at_once(quick, ask, cluster, monkeypatch):
    handed = []
    monkeypatch.setattr(sweeps, "LATE", 0)

    def slow(*_):
        time.sleep(0.2)
        handed.append(len(cluster))

    monkeypatch.setattr(sweeps, "_ensure_elsewhere", slow)
    ask(engine="ray", jobs="2")
    with pytest.raises(CompanionError):
        sweep([quick.replace(seed=seed) for seed in range(4)])
    assert handed[0] == 2  # when the first was done, of which a thread does one at a time
    assert handed[-1] == 4


def test_a_worker_of_several_threads_trains_one_run_at_a_time(quick, ask, monkeypatch):
    """A training sets torch's generators and threads for the whole process."""
    inside, most = [], []

    def ensure(config, places):
        inside.append(config)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()

    monkeypatch.setattr(sweeps, "_ensure", ensure)
    given = sweeps._settings()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: sweeps._ensure_elsewhere(quick.replace(seed=seed), 1, given), range(4)))
    assert most == [1] * 4


def test_a_worker_elsewhere_is_told_whole_paths(quick, ask, cluster, monkeypatch, tmp_path):
    seen = []
    monkeypatch.chdir(tmp_path)
    ask(engine="ray")
    monkeypatch.setenv("CONTRASTIVE_RESULTS", "here")
    monkeypatch.setenv("CONTRASTIVE_DATA", "data")
    monkeypatch.setattr(
        sweeps, "_ensure_elsewhere", lambda config, places, settings, sign: seen.append(settings) or "no"
    )
    with pytest.raises(CompanionError):
        sweep([quick])
    assert seen[0]["CONTRASTIVE_RESULTS"] == str(tmp_path / "here")
    assert seen[0]["CONTRASTIVE_DATA"] == str(tmp_path / "data")
    assert os.environ["CONTRASTIVE_RESULTS"] == "here"


def test_a_daemon_that_may_start_no_processes_is_told(monkeypatch):
    monkeypatch.setattr(processes.multiprocessing.current_process(), "_config", {"daemon": True})
    with pytest.raises(CompanionError, match=r"^2 processes were asked for, and this one is a daemon.*--no-nanny"):
        processes.launch(torch.zeros, count=2, accelerator="cpu")
