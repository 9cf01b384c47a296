"""Many runs at once: descriptions in, finished runs out, from the run store or trained."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import joblib
import pandas as pd
import safetensors.torch
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from lightning_fabric import Fabric
from threadpoolctl import threadpool_limits
from torch.optim.swa_utils import update_bn

from companion import metrics, paths, store
from companion.errors import CompanionError, whole
from companion.training import emoji, engines, planned, processes, progress
from companion.training.config import Config
from companion.training.loop import train
from companion.training.methods import Clip
from companion.training.pairs import track as track_pairs
from companion.training.provenance import algorithms, provenance
from companion.training.resume import leave_with_parent, terminable
from companion.training.runs import Run, complete, folder, initial, load_data, measure, two_views
from companion.training.sources import Views
from companion.training.standins import stand_in

TRACKED_PAIRS = 256  # positive pairs behind the similarity statistics of the history, after every epoch
LATE = 60  # seconds after which a disk that machines share shows what another one wrote: NFS's default, at most
_ALONE = threading.Lock()  # of a worker with several threads: a training sets what torch knows once a process


def run(config: Config) -> Run:
    """Load the run that ``config`` describes, or train it. See :func:`sweep` for many."""
    return sweep([config])[0]


def sweep(configs: list[Config], *, jobs: int | None = None) -> list[Run]:
    """Load or train every run of ``configs``, in parallel, each in one thread.

    With ``CONTRASTIVE_PROCESSES`` above 1 as many processes train each run together, with a GPU each if it uses any
    (:mod:`companion.training.processes`).

    ``CONTRASTIVE_ENGINE`` says what trains them: ``loky``, the default, processes of this machine; ``ray`` or ``dask``
    the cluster at ``CONTRASTIVE_ADDRESS`` or, without one, one of this machine that is started for the sweep and closed
    after it. There a run takes ``CONTRASTIVE_GPUS`` GPUs, a part of one if below 1; by default none, or where it uses
    any one a process. All machines of a cluster need the package, the data, and this run store on a disk that they
    share. A run whose worker is killed is trained on by another one.

    Args:
        configs: descriptions of the runs; equal ones are trained once.
        jobs: most runs at once; default: ``CONTRASTIVE_JOBS``, or what a cluster has room for, or on this machine 1 if
            a run uses the GPU, else the cores that this process may use, divided by the processes that a run takes.

    Returns:
        The runs, in the order of ``configs``.

    Raises:
        CompanionError: for a number of jobs or processes below 1, a batch that the processes do not divide, missing or
            damaged data, diverged losses, or a run store that cannot be written; for an engine that is unknown, not
            installed, does not answer, has no room for a run, or writes where it is not seen from here. A run that
            fails does not stop the others: all that could be trained are stored when this is raised.
    """
    if plan := planned.current():
        return [stand_in(config, plan) for config in configs]
    jobs = engines.jobs() if jobs is None else whole(jobs, "jobs", least=1)
    engine = engines.chosen()
    folders = {config: folder(config) for config in configs}
    missing = [config for config, path in folders.items() if not complete(path)]
    if missing:
        processes.number()  # what is wrong with it, or with the data, is told here, not from the depth of a worker
        load_data(missing[0])
        with _watch(missing, folders):
            if engine.name != "loky":
                _on_cluster(engine, missing, jobs)
            elif len(missing) == 1:
                _ensure(missing[0], jobs or _default_jobs(configs))
            else:
                _on_this_machine(missing, jobs or _default_jobs(configs))
    _remember(folders.values())
    return [Run(config, folders[config]) for config in configs]


def _default_jobs(configs: list[Config]) -> int:
    if torch.accelerator.is_available() and any(config.accelerator != "cpu" for config in configs):
        return 1  # every run takes the first GPU, which one process keeps busy
    return max(1, joblib.cpu_count() // processes.number())


def _on_this_machine(missing: list[Config], jobs: int) -> None:
    task, settings = joblib.delayed(_ensure_elsewhere), _settings()
    for _ in range(1 + engines.RETRIES):
        left = [config for config in missing if not complete(folder(config))]
        try:
            failures = joblib.Parallel(n_jobs=min(jobs, len(missing)))(task(config, jobs, settings) for config in left)
        except TerminatedWorkerError:  # a worker was killed, and joblib has ended the others
            continue
        return _tell(left, failures)
    left = sum(not complete(folder(config)) for config in missing)
    raise CompanionError(
        f"Processes that train were killed {1 + engines.RETRIES} times, by the system if the memory was not enough: "
        f"{left} of {len(missing)} runs are left. Lower JOBS (now {jobs}), and start again: they go on."
    )


def _settings() -> dict[str, str]:
    """What a worker may not know, which may be older than a change of these variables, or run on another machine."""
    return {name: value for name, value in os.environ.items() if name.startswith("CONTRASTIVE_")}


def _on_cluster(engine: engines.Engine, missing: list[Config], jobs: int | None) -> None:
    settings = _settings() | {"CONTRASTIVE_RESULTS": str(paths.results().absolute())}  # a worker is in another folder
    if settings.get("CONTRASTIVE_DATA"):
        settings["CONTRASTIVE_DATA"] = str(paths.data_roots()[0].absolute())
    task = joblib.delayed(_ensure_elsewhere)
    with engine.cluster(missing, jobs) as (parallel, places), store.sign() as sign:
        failures = parallel(task(config, places, settings, sign) for config in missing)
    deadline = time.monotonic() + LATE
    for number, config in enumerate(missing):
        final = folder(config)
        while not (failures[number] or complete(final)):
            if time.monotonic() > deadline:
                failures[number] = (
                    f"its worker has stored it, and it is not in {final.parent}: let that be a link to a folder "
                    "that all machines share, and give all of them the same version of the companion"
                )
            time.sleep(0.1)
    _tell(missing, failures)


def _tell(configs: list[Config], failures: list[str | None]) -> None:
    failed = [f"{folder(config).name}: {why}" for config, why in zip(configs, failures, strict=True) if why]
    if failed:
        raise CompanionError(
            f"{len(failed)} of {len(configs)} runs failed; the others are stored.\n" + "\n".join(failed)
        )


def _ensure(config: Config, places: int | None) -> None:
    """Train one run unless it is there; wait if another process is training it, or all ``places`` are taken."""
    final = folder(config)
    with store.lock(final.name):
        if not complete(final):
            with store.slot(places) if places else contextlib.nullcontext():
                _train(config, final)


def _ensure_elsewhere(
    config: Config, places: int | None, settings: dict[str, str], sign: Path | None = None
) -> str | None:
    """The same in a worker; what went wrong is returned, so that the other runs go on."""
    if sign is None:  # the workers of a cluster have a life of their own
        leave_with_parent()
    with _ALONE:
        for name in [name for name in os.environ if name.startswith("CONTRASTIVE_")]:
            del os.environ[name]
        os.environ.update(settings)
        try:
            if sign:
                store.recognise(sign)
            _ensure(config, places)
        except Exception as error:
            return str(error) if isinstance(error, CompanionError) else f"{type(error).__name__}: {error}"


def _train(config: Config, final: Path) -> None:
    count = processes.number() if config.epochs else 1
    if count == 1:
        _train_on(processes.alone(config), config, final)
    else:
        options = {"accelerator": config.accelerator, "precision": config.precision}
        processes.launch(_train_on, config, final, count=count, **options)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Two one-thread processes beat one two-thread process on small nets, and one thread repeats its sums exactly."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):  # of NumPy and scikit-learn
            yield
    finally:
        torch.set_num_threads(before)


@one_thread()
@algorithms()
def _train_on(fabric: Fabric, config: Config, final: Path) -> None:
    """What each process of a run does. The first one measures and writes."""
    processes.check_alone(fabric)
    started = time.perf_counter()
    partial = _partial(final)
    if fabric.is_global_zero:  # alone, as it writes
        for leftover in partial.glob(".*"):  # what a killed process was writing
            leftover.unlink(missing_ok=True)
    images, method = load_data(config), initial(config)
    source = source_of(config, images, fabric.device, rank=fabric.global_rank, world=fabric.world_size)

    def track(method) -> dict[str, float]:
        return tracked(method, config, images)

    method.to(fabric.device)
    with terminable() as stop:
        saved = {"checkpoint": partial / "checkpoint.pt", "stop": stop}
        history = train(method, source, config, fabric=fabric, track=track, **saved)
    if config.calibrate_batch_norm:
        update_bn((batch.first for batch in source.batches(0)), method.model)
    if not fabric.is_global_zero:
        return
    weights = {name: value.cpu().contiguous() for name, value in method.state_dict().items()}
    store.write(partial / "weights.safetensors", safetensors.torch.save(weights))
    store.write(partial / "history.csv", pd.DataFrame(history).to_csv(index=False))
    store.write(partial / "metrics.json", json.dumps(measure(method, config, images), indent=1))
    described = {"training_version": store.TRAINING_VERSION} | config.to_dict()
    store.write(partial / "config.json", json.dumps(described, indent=1))
    made_with = provenance(fabric.device, fabric.world_size) | {"seconds": round(time.perf_counter() - started, 1)}
    store.write(partial / "environment.json", json.dumps(made_with, indent=1))
    for scaffold in ("checkpoint.pt", "checkpoint.previous", "epochs"):
        (partial / scaffold).unlink(missing_ok=True)
    store.publish(partial, final)


def tracked(method, config: Config, images) -> dict[str, float]:
    """What the history notes of a method after every epoch."""
    if isinstance(config.method, Clip):
        return track_pairs(method, config, images)
    u, v, y = two_views(method, config, images.train, TRACKED_PAIRS)
    return metrics.similarity_statistics(u, v) | method.notes(u, v, y)


def source_of(config: Config, images, device, **place) -> Views:
    """Where the batches of a run come from: images, drawings with captions, or drawings of two artists."""
    augmentation = config.augmentation.build(config.image_size)
    options = {"seed": config.seed, "device": device} | place
    if not isinstance(config.method, Clip):
        split = images.train if config.method.unlabelled else images.labelled
        return Views(split, augmentation, config.batch_size, **options)
    if config.method.second == "text":
        return emoji.Captions(images, augmentation, config.batch_size, **options)
    two = config.method.second == "artist"
    return emoji.Drawings(images, augmentation, config.batch_size, two_artists=two, **options)


def _partial(final: Path) -> Path:
    """The hidden folder in which a run is made; it has one byte in ``epochs`` for every epoch done."""
    return final.with_name(f".partial-{final.name}")


@contextlib.contextmanager
def _watch(missing: list[Config], folders: dict[Config, Path]) -> Iterator[None]:
    """A progress bar over the epochs of all missing runs, whichever process trains them."""
    total = sum(config.epochs for config in missing)
    finished = threading.Event()

    def epochs_done(config: Config) -> int:
        if complete(folders[config]):
            return config.epochs
        try:
            return (_partial(folders[config]) / "epochs").stat().st_size
        except OSError:
            return 0

    with progress.bar(total, f"training {len(missing)} run{'s' * (len(missing) > 1)}", "epoch") as bar:

        def follow():
            while not finished.wait(0.5):
                bar.update(sum(map(epochs_done, missing)) - bar.n)

        bar.initial = bar.n = sum(map(epochs_done, missing))
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()


def _remember(used) -> None:
    """Tell the notebook runner which runs a notebook stands on (see :mod:`companion.course.execute`)."""
    path = os.environ.get("CONTRASTIVE_USED_RUNS")
    if path:
        with open(path, "a") as file:
            file.writelines(f"{run.name}\n" for run in used)
