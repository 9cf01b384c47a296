"""Run one notebook headlessly: ``python -m companion.course.execute NOTEBOOK --profile cpu``.

Make decides which and when.
"""

import argparse
import contextlib
import functools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from companion import paths, store
from companion.course import profiles
from companion.errors import CompanionError, choose, extra

with extra("course"):
    import joblib
    import nbformat
    import papermill
    from jupyter_client import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError

QUIET = ["--IPKernelApp.log_level=ERROR"]  # the kernel's notes on its transport are not the reader's
GRACE = 30  # seconds in which what trains can save itself: as many as Slurm leaves


class _Kernel(AsyncKernelManager):
    """A kernel that ends, with the processes that it has started, when this one is stopped by SIGTERM or Ctrl-C: they
    get SIGTERM, by which what they train is saved, and are waited for."""

    async def start_kernel(self, **options):
        await super().start_kernel(**options)
        process, group = self.provisioner.process, self.provisioner.pgid

        def stop(number, frame):
            patience = time.monotonic() + GRACE
            with contextlib.suppress(OSError):  # nobody of the group is left
                os.killpg(group, signal.SIGTERM)
                while time.monotonic() < patience:
                    process.poll()  # or it stays in the group
                    os.killpg(group, 0)
                    time.sleep(0.1)
            raise SystemExit(128 + number)

        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, stop)


def execute(notebook: Path, out: Path, parameters: dict, then: Callable[[list[str]], None] | None = None) -> None:
    """Execute ``notebook`` with papermill into ``out``, beside which a Make dependency file names the runs it used.

    On a failing cell the partial notebook is kept as ``<name>.failed.ipynb``.

    Args:
        notebook: to execute; it stays as it is.
        out: the executed one.
        parameters: of its cell of parameters.
        then: what is done with the keys of the runs that it used, before it counts as done.

    Raises:
        CompanionError: if there is no such notebook, or for a parameter that it does not have.
        papermill.exceptions.PapermillExecutionError: if a cell fails.
        SystemExit: with 128 and the number of the signal that has stopped it.
    """
    if not notebook.is_file():
        raise CompanionError(f"There is no notebook {notebook}: expected the path of one, as notebooks/01_….ipynb.")
    known = papermill.inspect_notebook(notebook)
    for name in parameters:
        choose(name, known, f"parameter of {notebook.name}")
    if os.environ.get("CONTRASTIVE_DATA"):  # a kernel may run elsewhere
        os.environ["CONTRASTIVE_DATA"] = str(Path(os.environ["CONTRASTIVE_DATA"]).expanduser().resolve())
    # Make has set it to 1. By hand half the cores: a notebook runs beside its training processes, or beside another.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, joblib.cpu_count() // 2)))
    if os.environ.get("SLURM_JOB_ID"):  # Fabric would take the notebook for one of the job's tasks, that train together
        os.environ["SLURM_JOB_NAME"] = "interactive"
    failed = out.with_suffix(".failed.ipynb")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("r") as used:
        os.environ["CONTRASTIVE_USED_RUNS"] = used.name
        os.environ["CONTRASTIVE_NOTEBOOK"] = notebook.stem
        os.environ["CONTRASTIVE_PROGRESS"] = _terminal()
        kernel = {"kernel_manager_class": _Kernel, "extra_arguments": QUIET}
        papermill.execute_notebook(notebook, failed, parameters, progress_bar=False, **kernel)
        runs = sorted({line.strip() for line in used})
    # If a run is deleted, Make sees a missing prerequisite and runs this notebook again.
    prerequisites = [os.path.relpath(paths.runs() / run / "metrics.json") for run in runs]
    rules = [f"{os.path.relpath(out)}: {' '.join(prerequisites)}", *(f"{name}:" for name in prerequisites)]
    store.write(out.with_suffix(".d"), "\n".join(rules).replace("#", r"\#") + "\n")
    if then:
        then(runs)
    os.replace(failed, out)  # last: a notebook without its prerequisites would count as done whatever becomes of them


def _terminal() -> str:
    """Where progress is drawn."""
    try:
        return os.ttyname(2)
    except OSError:  # none, or one of another system, as in a container
        return "off"


def record_in(path: Path, dataset: str, name: str, keys: list[str]) -> None:
    """Add these runs, as far as they are on the data set ``dataset``, to the table of recorded runs at ``path``, and
    tell those that stand there with other numbers, since what was filed rests on the new ones."""
    from companion.training.baselines import differing  # torch takes seconds, and most profiles need none of it here
    from companion.training.config import EMOJI
    from companion.training.recorded import read, record
    from companion.training.runs import stored

    runs = [stored(paths.runs() / key, dataset=dataset) for key in keys]
    own = {run.key: run for run in runs if run.config.dataset in (dataset, EMOJI)}  # others are but probed
    print(f"{name}: {record(own.values(), path)} runs are recorded", flush=True)
    rows = read(path)
    if found := differing(own, rows.set_index("key") if len(rows) else rows):
        print(
            f"{name}: {len(found)} runs, such as {found[0]}, came out with other numbers than are recorded, as on "
            f"another kind of processor. Their rows in {os.path.relpath(path)} stay, and the claims that were filed "
            "now rest on the new numbers. Remove those rows and the executed notebook and run this again to record "
            "them, or restore claims.json.",
            file=sys.stderr,
        )


def normalise(path: Path) -> None:
    """Strip from an executed notebook what differs between two equal executions, so that diffs stay small."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute one notebook headlessly.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--profile", default="auto", help="smoke, cpu, gpu, paper, reference, long, or auto")
    parser.add_argument("--dataset", default="", help="a data set in place of the profile's own")
    parser.add_argument("--seed", type=int, default=0, help="added to every seed of the profile")
    parser.add_argument("--out", type=Path, help="where to write; default: results/<profile>/notebooks/")
    parser.add_argument("--freeze", action="store_true", help="execute the source in place at the cpu profile")
    arguments = parser.parse_args()
    name = arguments.notebook.stem
    started = time.monotonic()
    try:
        then = None
        if arguments.freeze:
            os.environ["CONTRASTIVE_PROFILE"] = "cpu"
            os.environ["CONTRASTIVE_FRAMES"] = "1"  # all pictures of what a reader can turn
            out, parameters = paths.results() / "frozen" / arguments.notebook.name, {}
        else:
            profile = profiles.load(arguments.profile, dataset=arguments.dataset, seed=arguments.seed)
            out = arguments.out or paths.results() / profile.folder / "notebooks" / arguments.notebook.name
            parameters = {"PROFILE": profile.name, "DATASET": arguments.dataset, "SEED": arguments.seed}
            if profile.records:
                table = paths.results() / profile.folder / "runs.csv"
                then = functools.partial(record_in, table, profile.base.dataset, name)
        print(f"{name} …", flush=True)
        execute(arguments.notebook, out, parameters, then)
        if arguments.freeze:
            normalise(out)
            os.replace(out, arguments.notebook)
    except CompanionError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except papermill.exceptions.PapermillExecutionError as error:
        print(
            f"{name}: cell [{error.exec_count}] failed; the notebook up to there is "
            f"{os.path.relpath(out.with_suffix('.failed.ipynb'))}\n\n" + "\n".join(error.traceback),
            file=sys.stderr,
        )
        return 1
    except DeadKernelError as error:
        print(f"{name}: the kernel died ({error}); was the memory enough?", file=sys.stderr)
        return 1
    except SystemExit as stopped:
        said = "what it was training goes on from its last checkpoint when it is started again"
        print(f"{name}: stopped; {said}", file=sys.stderr)
        return stopped.code
    print(f"{name} done in {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
