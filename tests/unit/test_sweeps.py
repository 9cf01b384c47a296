"""Sweeps in one process; several processes have their tests in tests/distributed."""

import os

import pytest
import torch

from companion import store
from companion.errors import CompanionError
from companion.training import Contrastive, Labelled, Unchanged, processes, run, runs, sweep, sweeps, train
from companion.training.data import Data, Split


def visible(results):
    return sorted(path.name for path in (results / "runs").glob("[!.]*"))


def diverging(config):
    return config.replace(learning_rate=1e30, warmup_epochs=0, epochs=2)


def test_equal_configs_are_trained_once_and_the_order_is_kept(quick, results, monkeypatch):
    trained, original = [], sweeps._train
    monkeypatch.setattr(sweeps, "_train", lambda config, final: trained.append(config.seed) or original(config, final))
    configs = [quick.replace(seed=1), quick, quick.replace(seed=1), quick.replace(seed=2)]
    found = sweep(configs)
    assert [run.config for run in found] == configs
    assert sorted(trained) == [0, 1, 2]
    assert len(visible(results)) == 3
    sweep(configs)
    assert len(trained) == 3


def test_a_run_that_diverges_is_told_and_leaves_nothing(quick, results):
    with pytest.raises(
        CompanionError, match=r"NaN or infinite in epoch \d: the network has diverged. Lower the learning"
    ):
        run(diverging(quick))
    assert visible(results) == []


def test_one_that_diverges_does_not_starve_the_others(quick, results):
    bad, good = diverging(quick), [quick.replace(seed=seed) for seed in (1, 2)]
    with pytest.raises(CompanionError) as told:
        sweep([good[0], bad, good[1]])
    first, second = str(told.value).splitlines()
    assert first == "1 of 3 runs failed; the others are stored."
    assert second.startswith(f"{runs.folder(bad).name}: The loss became NaN or infinite")
    assert visible(results) == sorted(runs.folder(config).name for config in good)
    assert [run.config for run in sweep(good)] == good


@pytest.mark.parametrize(
    ("error", "expected"), [(RuntimeError("no memory"), "RuntimeError: no memory"), (CompanionError("full"), "full")]
)
def test_what_else_goes_wrong_in_a_run_is_told_with_its_name(quick, results, monkeypatch, error, expected):
    original = sweeps._train

    def train(config, final):
        if config.seed == 1:
            raise error
        original(config, final)

    monkeypatch.setattr(sweeps, "_train", train)
    with pytest.raises(CompanionError) as told:
        sweep([quick.replace(seed=seed) for seed in (0, 1, 2)])
    assert str(told.value).splitlines()[1] == f"{runs.folder(quick.replace(seed=1)).name}: {expected}"
    assert len(visible(results)) == 2


def test_missing_data_are_told_before_anything_is_trained(quick, results, tmp_path):
    with pytest.raises(CompanionError, match=r"^/no/such/folder was found in none of"):
        sweep([quick.replace(dataset="imagefolder:/no/such/folder", seed=seed) for seed in (0, 1)])
    assert not (results / "runs").exists()


def test_what_a_killed_write_left_is_not_published(quick, results):
    partial = sweeps._partial(runs.folder(quick))
    partial.mkdir(parents=True)
    for name in (".checkpoint.pt.123", ".metrics.json.99999"):
        (partial / name).write_bytes(b"half")
    found = run(quick)
    assert not [path.name for path in found.path.iterdir() if path.name.startswith(".")]
    assert not partial.exists()


def test_a_worker_knows_no_setting_that_its_task_was_not_given(quick, results, monkeypatch):
    """A worker of an earlier sweep may hold what has been unset since."""
    seen = []
    monkeypatch.setattr(sweeps, "_ensure", lambda *_: seen.append(dict(os.environ)))
    monkeypatch.setenv("CONTRASTIVE_DATA", "/of/an/earlier/sweep")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = {"CONTRASTIVE_RESULTS": str(results), "CONTRASTIVE_JOBS": "2"}
    assert sweeps._ensure_elsewhere(quick, 2, given) is None
    assert {name: value for name, value in seen[0].items() if name.startswith("CONTRASTIVE_")} == given
    assert seen[0]["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(("variable", "jobs", "expected"), [("3", None, 3), ("3", 2, 2), ("", None, 7)])
def test_how_many_compute_at_once(quick, results, monkeypatch, variable, jobs, expected):
    asked = []
    monkeypatch.setattr(sweeps.joblib, "cpu_count", lambda: 7)
    monkeypatch.setattr(sweeps, "_ensure", lambda config, jobs: asked.append(jobs))
    monkeypatch.setenv("CONTRASTIVE_JOBS", variable)
    sweep([quick], jobs=jobs)
    assert asked == [expected]


@pytest.mark.parametrize(
    ("variable", "jobs"), [("-1", None), ("0", None), ("two", None), ("1.5", None), ("1", -1), ("1", 0)]
)
def test_a_number_of_processes_that_is_none_is_told(quick, results, monkeypatch, variable, jobs):
    monkeypatch.setenv("CONTRASTIVE_JOBS", variable)
    with pytest.raises(CompanionError, match=r"(?i)^jobs .*is .*: expected a whole number of at least 1"):
        sweep([quick], jobs=jobs)


@pytest.mark.parametrize(
    ("accelerators", "there", "expected"),
    [(["cpu", "cuda"], True, 1), (["auto"], True, 1), (["cpu"], True, 7), (["auto"], False, 7)],
)
def test_one_process_computes_on_a_gpu(quick, results, monkeypatch, accelerators, there, expected):
    asked = []
    monkeypatch.setattr(sweeps.joblib, "cpu_count", lambda: 7)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    monkeypatch.setattr(sweeps, "_ensure", lambda config, jobs: asked.append(jobs))
    monkeypatch.setattr(sweeps, "_ensure_elsewhere", lambda config, jobs, settings: asked.append(jobs))
    monkeypatch.setattr(sweeps.joblib, "Parallel", lambda n_jobs: lambda tasks: [f(*a, **k) for f, a, k in tasks])
    monkeypatch.delenv("CONTRASTIVE_JOBS")
    sweep([quick.replace(accelerator=accelerator) for accelerator in accelerators])
    assert asked == [expected] * len(accelerators)


def test_the_notebook_runner_learns_which_runs_were_used(quick, results, tmp_path, monkeypatch):
    monkeypatch.setenv("CONTRASTIVE_USED_RUNS", str(tmp_path / "used"))
    trained = run(quick)
    assert run(quick) == trained  # from the store: used as well
    assert (tmp_path / "used").read_text().splitlines() == [trained.key] * 2


def test_the_bar_counts_epochs_of_all_missing_runs(quick, results, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, description, unit):
            self.total, self.description, self.unit, self.n = total, description, unit, 0
            bars.append(self)

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

        def update(self, by):
            self.n += by

    monkeypatch.setattr(sweeps.progress, "bar", Bar)
    configs = [quick.replace(seed=seed, epochs=3) for seed in (0, 1)]
    folders = {config: runs.folder(config) for config in configs}
    partial = sweeps._partial(folders[configs[1]])
    partial.mkdir(parents=True)
    (partial / "epochs").write_text("..")  # two of three were done before
    with sweeps._watch(configs, folders):
        pass
    assert (bars[0].total, bars[0].description, bars[0].unit) == (6, "training 2 runs", "epoch")
    assert bars[0].initial == bars[0].n == 2


@pytest.mark.parametrize("count", [1, 2])
def test_a_slot_is_free_again_after_an_error(results, count):
    for _ in range(3):
        with pytest.raises(RuntimeError), store.slot(count):
            raise RuntimeError


@pytest.mark.parametrize("count", [0, -1])
def test_without_any_slot_nothing_waits_for_one(results, count):
    with pytest.raises(CompanionError, match=rf"is {count}: expected a whole number of at least 1"), store.slot(count):
        pass


@pytest.fixture
def trained(monkeypatch):
    """What the runs of a test hand to the training loop, and in how many threads; nothing is trained."""
    seen = []

    def train(method, source, config, **options):
        batches = list(source.batches(0))
        seen.append({"batches": batches, "threads": torch.get_num_threads(), "fabric": options["fabric"]})
        return [{"step": 0, "loss": 0.0}]

    monkeypatch.setattr(sweeps, "train", train)
    return seen


def test_a_run_trains_on_its_own_images_in_the_views_that_its_augmentation_makes(quick, results, trained):
    config = quick.replace(augmentation=Unchanged())
    images = runs.load_data(config).train
    run(config)
    run(quick)
    plain, augmented = (seen["batches"] for seen in trained)
    whole = {image.numpy().tobytes(): label for image, label in zip(images.images, images.labels.tolist(), strict=True)}
    for batch in plain:
        for views in (batch.first, batch.second):
            pixels = (255 * views).round().byte().contiguous()
            assert [whole[image.numpy().tobytes()] for image in pixels] == batch.labels.tolist()
    assert not torch.equal(augmented[0].first, augmented[0].second)


def test_the_order_and_the_views_of_a_run_are_those_of_its_seed(quick, results, trained):
    for seed in (0, 1):
        run(quick.replace(seed=seed))
    first, second = (seen["batches"][0] for seen in trained)
    assert first.labels.tolist() != second.labels.tolist()
    assert not torch.equal(first.first, second.first)


def test_a_run_computes_in_one_thread(quick, results, trained):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(quick)
        assert [seen["threads"] for seen in trained] == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_run_has_the_precision_and_the_device_of_its_config(quick, results, trained, monkeypatch):
    asked, fabric = [], processes.Fabric
    monkeypatch.setattr(
        processes, "Fabric", lambda accelerator, **o: asked.append(accelerator) or fabric(accelerator="cpu", **o)
    )
    run(quick.replace(precision="bf16-mixed", accelerator="cuda"))
    assert asked == ["cuda"]
    with trained[0]["fabric"].autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_a_run_in_a_job_of_slurm_is_no_task_of_it(quick, results, monkeypatch):
    """Fabric would raise, or wait for the other three."""
    slurm = {"JOB_ID": "7", "JOB_NAME": "sweep", "NTASKS": "4", "PROCID": "1", "LOCALID": "1", "NODELIST": "node1"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert len(run(quick).history) == quick.epochs


def test_a_run_among_processes_that_it_knows_nothing_of_is_told_and_leaves_nothing(quick, results, monkeypatch):
    monkeypatch.setattr(processes, "world", lambda: 2)
    told = "torch.distributed has 2 processes here, this training 1: .* Train before .*init_process_group"
    with pytest.raises(CompanionError, match=told):
        run(quick)
    assert [path.name for path in (results / "runs").iterdir()] == [".locks"]
    method, source = runs.initial(quick), sweeps.source_of(quick, runs.load_data(quick), "cpu")
    with pytest.raises(CompanionError, match=told):
        train(method, source, quick)


@pytest.mark.parametrize(("method", "part"), [(Contrastive(), "train"), (Labelled(), "labelled")])
def test_only_a_method_with_labels_leaves_images_without_one_out(tiny, method, part):
    some = Split(torch.zeros(96, 3, 16, 16, dtype=torch.uint8), torch.arange(96) % 3 - 1)
    images = Data(some, some[:0], some, "some")
    source = sweeps.source_of(tiny.replace(method=method), images, "cpu")
    assert len(source.split) == len(getattr(images, part)) == {"train": 96, "labelled": 64}[part]
