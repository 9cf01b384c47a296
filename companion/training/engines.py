"""Where the runs of a sweep are trained: in processes of this machine, or on a Ray or a Dask cluster."""

import contextlib
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import joblib
import torch
from joblib.parallel import ParallelBackendBase

from companion.errors import CompanionError, choose, command, extra, positive, whole
from companion.training import processes
from companion.training.config import Config

ENGINES = ("loky", "ray", "dask")
STARTED = {"ray": "`ray start --head`, whose address is like head:6379",
           "dask": "`dask scheduler`, whose address is like tcp://head:8786"}  # fmt: skip
RETRIES = 3  # where a worker was killed; Dask's own `allowed-failures` says the same there
LEAST = 1e-4  # of a GPU: Ray counts in such parts
SECONDS = {"answer": 5, "connect": 20, "worker": 60}  # to wait for a port, for what listens there, for a first worker


@dataclass(frozen=True)
class Engine:
    """What trains a sweep: see :func:`chosen`."""

    name: str = "loky"
    address: str = ""  #: of a cluster that is there; empty: one of this machine, for the sweep alone
    gpus: float | None = None  #: that one run takes; None: as many as it has processes, if it uses any

    @contextlib.contextmanager
    def cluster(self, configs: list[Config], jobs: int | None) -> Iterator[tuple[joblib.Parallel, int | None]]:
        """Inside, a ``joblib.Parallel`` that trains on the cluster, and how many runs it may train at once together
        with whoever else uses the run store; None: the cluster alone decides.

        Args:
            configs: of the runs to come.
            jobs: most runs at once; None: what the cluster has room for.

        Raises:
            CompanionError: if the package of the engine is not installed, nothing answers at the address, or no machine
                of the cluster can take a run.
        """
        connected = {"ray": _ray, "dask": _dask}[self.name]
        self.reach()
        with connected(self, configs, jobs) as (submit, machines):
            cpus, gpus = processes.number(), self.takes(configs, any(have.get("GPU") for have in machines))
            room = places(machines, cpus, gpus)
            if not room:
                said = " Start it with `--resources GPU=1`." if self.name == "dask" and gpus else ""
                raise CompanionError(
                    f"A run takes {cpus} CPUs and {gpus:g} GPUs, and none of the {len(machines)} {_part(self.name)} "
                    f"has them: expected one that does. GPUS={gpus:g} asks for the GPUs, PROCESSES={cpus} for the "
                    f"CPUs.{said}"
                )
            at_once = min(jobs or len(configs), len(configs))
            # Parallel would take a single job to mean this very process.
            options = {"n_jobs": max(2, at_once), "pre_dispatch": at_once, "batch_size": 1}
            yield (
                joblib.Parallel(backend=_Backend(self.name, lambda task: submit(task, cpus, gpus)), **options),
                jobs or (None if self.address else room),
            )

    def takes(self, configs: list[Config], there: bool) -> float:
        """GPUs that one run takes, with or without any GPU ``there``."""
        if self.gpus is not None:
            return self.gpus
        uses = any(c.accelerator == "cuda" or (c.accelerator == "auto" and there) for c in configs)
        return processes.number() if uses else 0

    def reach(self) -> None:
        """Look whether the engine listens at its address, if it has one: a client waits for minutes, or for ever, where
        nothing or something else does, such as a dashboard.

        Raises:
            CompanionError: if it does not, or that is no address.
        """
        if not self.address:
            return
        protocol, _, rest = self.address.rpartition("://")
        where = None, None
        with contextlib.suppress(ValueError):
            parts = urlsplit(f"//{rest}")
            where = parts.hostname, parts.port
        if not all(where):
            raise CompanionError(
                f"ADDRESS (or CONTRASTIVE_ADDRESS) is {self.address!r}: expected that of {STARTED[self.name]}."
            )
        try:
            with socket.create_connection(where, timeout=SECONDS["answer"]) as connection:
                if protocol in ("", "tcp"):  # where both speak first
                    heard = b""
                    while len(heard) < 9 and (more := connection.recv(9 - len(heard))):
                        heard += more
                    # Ray begins with a frame of HTTP/2's settings, Dask with the number of bytes that follow, some 60.
                    spoken = {"ray": heard[3:] == b"\4\0\0\0\0\0", "dask": heard[2:8] == bytes(6)}
                    if not spoken[self.name]:
                        raise OSError("something else listens there")
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise CompanionError(
                f"Nothing of {self.name} answers at {self.address} ({why}): expected "
                f"{STARTED[self.name]}. Start it, or leave ADDRESS out for a cluster of this machine."
            ) from error


def chosen() -> Engine:
    """What ``CONTRASTIVE_ENGINE``, ``CONTRASTIVE_ADDRESS`` and ``CONTRASTIVE_GPUS`` say.

    Raises:
        CompanionError: for an unknown engine, an address or GPUs that the engine has no use for, or what is no number
            of GPUs.
    """
    engine, address, gpus = (os.environ.get(f"CONTRASTIVE_{x}", "").strip() for x in ("ENGINE", "ADDRESS", "GPUS"))
    engine = choose(engine or "loky", ENGINES, "ENGINE (or CONTRASTIVE_ENGINE)")
    for what, given in (("ADDRESS", address), ("GPUS", gpus)):
        if given and engine == "loky":
            raise CompanionError(
                f"{what} (or CONTRASTIVE_{what}) is {given!r} and ENGINE is 'loky', which knows neither clusters nor "
                f"GPUs: expected ENGINE=ray or ENGINE=dask with it. Name one, or leave {what} out."
            )
    if not gpus:
        return Engine(engine, address)
    with contextlib.suppress(ValueError):
        gpus = float(gpus)
    positive(gpus, "GPUS (or CONTRASTIVE_GPUS)", zero=True)
    if (gpus > 1 and gpus % 1) or 0 < gpus < LEAST:
        raise CompanionError(
            f"GPUS (or CONTRASTIVE_GPUS) is {gpus:g}: expected 0, a part of one GPU from {LEAST} on, or whole ones."
        )
    return Engine(engine, address, gpus)


def jobs() -> int | None:
    """Most runs at once that ``CONTRASTIVE_JOBS`` allows; None if it says nothing.

    Raises:
        CompanionError: for what is no whole number of at least 1.
    """
    given = os.environ.get("CONTRASTIVE_JOBS", "").strip()
    return whole(int(given) if given.isdecimal() else given, "JOBS (or CONTRASTIVE_JOBS)", least=1) if given else None


def places(machines: list[dict[str, float]], cpus: int, gpus: float) -> int:
    """Runs for which machines have room that have so many ``CPU`` and ``GPU`` each, if a run takes ``cpus`` and
    ``gpus`` of one machine."""
    almost = 1e-9  # 0.3 is not three times 0.1
    return sum(
        int(min(have.get("CPU", 0) // cpus, have.get("GPU", 0) / gpus + almost if gpus else float("inf")))
        for have in machines
    )


def _part(engine: str) -> str:
    return {"ray": "machines of the Ray cluster", "dask": "workers of the Dask cluster"}[engine]


class _Backend(ParallelBackendBase):
    """joblib's tasks as futures of a cluster, which queues them and tries again where a worker dies.

    Those that Ray and Dask have for joblib do more than a sweep can use: Ray's waits until all workers of a pool are
    there, of which two pools may each hold a part; Dask's lets what a task computes in parallel leave for other
    workers; and both train in this process where the cluster has room for one. A task that fails ends the others.
    """

    supports_retrieve_callback = True

    def __init__(self, engine: str, submit: Callable):
        super().__init__()
        self.engine, self.start = engine, submit

    def effective_n_jobs(self, n_jobs: int) -> int:
        return n_jobs

    def submit(self, func: Callable, callback: Callable | None = None):
        future = self.start(func)
        future.add_done_callback(callback)
        return future

    apply_async = submit  # as joblib calls it before 1.5

    def retrieve_result_callback(self, out) -> list[str | None]:
        try:
            return out.result()
        except Exception as error:
            return [_told(self.engine, error)]


def _told(engine: str, error: Exception) -> str:
    if "No module named 'companion" in str(error):
        return (
            "a worker cannot import `companion`: install the project where the workers run, in the version that this "
            "process has, or start them in its folder with PYTHONPATH=."
        )
    why = (str(error).strip().splitlines() or [""])[0]
    return f"the {engine} cluster gave it up ({type(error).__name__}: {why}); ask for it again, it goes on from there"


@contextlib.contextmanager
def _connecting(engine: Engine) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not engine.address:
            raise
        token = (
            " If the cluster asks for a token, set RAY_AUTH_MODE=token and copy its ~/.ray/auth_token to this machine; "
            "if it asks for none, unset it."
        ) * (engine.name == "ray")
        raise CompanionError(
            f"No client could connect to {engine.address} ({type(error).__name__}: {error}): expected "
            f"{STARTED[engine.name]}, in the version that is installed here.{token}"
        ) from error


def _unpack() -> Callable[[bytes], list]:
    """What a worker does, sent as code: what it cannot import fails the task, which tells it, and not the worker."""
    return lambda task: pickle.loads(task)()


@contextlib.contextmanager
def _ray(engine: Engine, configs: list[Config], jobs: int | None) -> Iterator[tuple[Callable, list[dict]]]:
    with extra("cluster"):
        import ray

    def submit(task, cpus, gpus):
        return call.options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES).remote(pickle.dumps(task)).future()

    own = not ray.is_initialized()  # else by who called this
    if own:
        options = {"address": engine.address or "local", "log_to_driver": False}
        if not engine.address:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # which would be sent to its makers
            cpus = jobs * processes.number() if jobs else max(joblib.cpu_count(), processes.number())
            options |= {"num_cpus": cpus, "include_dashboard": False}
        with _connecting(engine):
            ray.init(**options)
    try:
        call = ray.remote(_unpack())
        yield submit, [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        if own:
            ray.shutdown()


@contextlib.contextmanager
def _dask(engine: Engine, configs: list[Config], jobs: int | None) -> Iterator[tuple[Callable, list[dict]]]:
    with extra("cluster"):
        import dask
        from distributed import Client, LocalCluster

    def submit(task, cpus, gpus):
        return client.submit(call, pickle.dumps(task), pure=False, resources={"GPU": gpus} if gpus else None)

    call = _unpack()
    with contextlib.ExitStack() as stack:
        where = engine.address
        if not where:
            gpus, devices = engine.takes(configs, torch.cuda.is_available()), torch.cuda.device_count()
            if gpus > devices:  # a worker has what it is said to have, and would train on the CPU
                raise CompanionError(
                    f"A run takes {gpus:g} GPUs, and this machine has {devices} CUDA devices: expected as many. GPUS "
                    "says how many, 0 on the CPU; ADDRESS names a cluster that has them."
                )
            room = joblib.cpu_count() // processes.number()
            if gpus:  # all see the first GPU
                room = min(room, int(1 / gpus))
            if processes.number() > 1:  # which a daemon may not start
                stack.enter_context(dask.config.set({"distributed.worker.daemon": False}))
            options = {"n_workers": jobs or max(1, room), "threads_per_worker": 1, "dashboard_address": ":0"}
            where = stack.enter_context(LocalCluster(resources={"GPU": gpus}, **options))
        with _connecting(engine):
            client = stack.enter_context(Client(where, timeout=SECONDS["connect"], set_as_default=False))
        if not client.nthreads():
            try:  # a task lets an adaptive cluster start a worker
                client.submit(int, pure=False).result(timeout=SECONDS["worker"])
            except TimeoutError as error:
                raise CompanionError(
                    f"No worker has come to {where} in {SECONDS['worker']} s: start some with `dask worker {where} "
                    "--nthreads 1`."
                ) from error
        have = client.run_on_scheduler(lambda dask_scheduler: [w.resources for w in dask_scheduler.workers.values()])
        # A worker trains one run at a time, whatever its threads.
        yield submit, [{"GPU": resources.get("GPU", 0), "CPU": processes.number()} for resources in have]


@command
def check() -> None:
    """Print what the environment asks for and cannot be meant, before anything is started."""
    jobs(), processes.number()
    chosen().reach()
