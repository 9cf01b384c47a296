"""How soon SimCLR reaches an accuracy on CIFAR-10: ``python -m companion.bench.speedrun``, or ``make speedrun``.

It trains a ResNet-18 without labels until ten neighbours among its features vote for the right class of 90 % of the
test images, and logs what that took; with ``--leave-out NAME``, without one of its tricks. It needs a CUDA device, or
``--dry-run``, and the extra ``course``.
"""

import argparse
import shutil
import sys
import time

import torch
from torch.optim.swa_utils import update_bn

from companion import paths, store
from companion.bench import speedlog
from companion.bench.tricks import RECORD, SMALL, TRICKS, Clock, Growing, Race, Racer
from companion.course.profiles import slug
from companion.errors import CompanionError, command, positive
from companion.training import initial, load_data, probe, train
from companion.training.config import ACCELERATORS, EMBEDDED
from companion.training.data import Data
from companion.training.loop import seeded
from companion.training.processes import alone
from companion.training.provenance import algorithms, provenance
from companion.training.rates import STEP
from companion.training.resume import terminable
from companion.training.runs import features

NEIGHBOURS = 10
FOREVER = 1e9  # minutes
VIEWS_PER_SECOND = round(2 * RECORD.batch_size / STEP[RECORD.batch_size])  # on one H100, as recorded
DRY = {  # the same on images that lie in the repository, with a network for CPUs; colour tells their classes apart
    "dataset": EMBEDDED, "image_size": 16, "n_train": 4000, "n_validation": 2000, "encoder": "small", "epochs": 16,
    "batch_size": 128, "learning_rate": 0.5, "jitter": 0.1, "grayscale": 0.0, "accelerator": "cpu", "target": 0.62,
    "every": 2,
}  # fmt: skip


class _ReachedError(Exception):
    """The target is reached, and the training is over."""


def votes(train: tuple, *tests: tuple) -> list[float]:
    """Accuracies of the majority vote of the ``NEIGHBOURS`` nearest by cosine; each argument features (n, d) and labels
    (n,), the first those that vote."""
    return [float(correct.mean()) for correct in probe.knn(*train, *tests, k=NEIGHBOURS)]


def evaluate(method, images: Data) -> dict[str, float]:
    """k-NN accuracy on ``test`` images and, if there are any, on held-out ones (``validation``)."""
    parts = {name: getattr(images, name) for name in ("test", "validation") if len(getattr(images, name))}
    tests = [features(method, split) for split in parts.values()]
    return dict(zip(parts, votes(features(method, images.train), *tests), strict=True))


def beside(race: Race, images: Data, device: torch.device) -> dict[str, float]:
    """The same vote on test images among raw ``pixels``, and among the features of the ``untrained`` network, with the
    statistics of batch norm from the training images, as its own."""
    pixels = [(s.images.flatten(1).to(device).float(), s.labels.to(device)) for s in (images.train, images.test)]
    untrained = initial(race.config).to(device)
    source = Growing(race.replace(small_first=0.0), images.train, device)
    update_bn((batch.first for batch in source.batches(0)), untrained.model)
    return {"pixels": votes(*pixels)[0], "untrained": evaluate(untrained, images)["test"]}


@algorithms()
def run(race: Race, *, until: float = float("inf")) -> dict | None:
    """Train, and tell when the target was reached.

    Args:
        race: what to do.
        until: the reading of ``time.monotonic`` at which the training is saved, to go on when it is asked for again.

    Returns:
        The row of the log; None if it was saved before its end.

    Raises:
        CompanionError: for data that are not there, or a loss that has become NaN or infinite.
        SystemExit: after SIGTERM, when the training is saved.
    """
    torch.compiler.reset()  # what was compiled for another network counts against how much may be compiled
    config, began = race.config, time.perf_counter()
    images, folder = load_data(config), paths.results() / "bench" / f".partial-{race.key}"
    if not len(images.test):
        raise CompanionError(f"{config.dataset} has no test images: expected some, whose accuracy is the target.")
    loaded = time.perf_counter() - began
    fabric = alone(config)
    source = Growing(race, images.train, fabric.device)

    clock = Clock(fabric.device)
    with seeded(config.seed, 0):
        racer = Racer(race, images.train, clock)
    racer.to(fabric.device, memory_format=torch.channels_last)

    def track(_) -> dict:
        racer.epoch += 1
        if racer.epoch % race.every and racer.epoch < config.epochs:
            return {}
        with clock.paused():
            seconds = clock.read()
            racer.noted.append({"epoch": racer.epoch, "seconds": seconds, **evaluate(racer, images)})
        said = ", ".join(
            f"{name} {racer.noted[-1][name]:.2%}" for name in racer.noted[-1] if name in ("test", "validation")
        )
        print(f"  seed {config.seed}, epoch {racer.epoch}, {seconds:.1f} s: {said}", flush=True)
        if racer.noted[-1]["test"] >= race.target and not race.to_the_end:
            raise _ReachedError
        return {}

    over = False

    def stop() -> bool:
        nonlocal over
        over = time.monotonic() >= until
        return over or asked()

    with terminable() as asked:
        try:
            train(racer, source, config, fabric=fabric, track=track, checkpoint=folder / "checkpoint.pt", stop=stop)
        except _ReachedError:
            pass
        except SystemExit:
            if not over:
                raise
            return None
    row = {
        "race": race.described(),
        "reached": next((noted for noted in racer.noted if noted["test"] >= race.target), None),
        "noted": racer.noted,
        "seconds": {"clock": clock.read(), "evaluations": clock.outside, "data": loaded},
        "views_per_epoch": 2 * len(source) * config.batch_size,
        "sittings": racer.sittings,
        "beside": beside(race, images, fabric.device),
        "provenance": provenance(fabric.device),
    }
    return row


def estimate(race: Race) -> str:
    """What the schedule will take, from the recorded speed; it is printed before a training starts."""
    config = race.config
    full = config.epochs * 2 * config.n_train / VIEWS_PER_SECOND / 60
    by_pixels = full * (1 - race.small_first + race.small_first * SMALL**2)
    return (
        f"An estimate, not a measurement: {config.epochs} epochs of 2 × {config.n_train:,} views take {full:.1f} min "
        f"at the {VIEWS_PER_SECOND:,} views a second recorded on one H100 (ResNet-18, 32 pixels, batches of 512, "
        f"bfloat16, each step a CUDA graph), and {by_pixels:.1f} min if a view costs what its pixels do. What "
        "compiling gives is not known."
    )


@command
def main(arguments: list[str] | None = None) -> None:
    """Run what the log does not have yet, write ``results/bench/speedrun-<device>.{jsonl,md}``, print the table."""
    chosen = parse(arguments)
    until = time.monotonic() + 60 * chosen.sitting
    races = [(label, race_of(chosen, seed, label)) for label in chosen.leave_out or [""] for seed in chosen.seeds]
    for name in ("minutes", "sitting"):
        positive(getattr(chosen, name), f"--{name}")
    if chosen.accelerator == "cuda" and not torch.cuda.is_available():
        raise CompanionError("torch sees no CUDA device here: expected one, or --dry-run, which needs none.")
    _run_all(races, chosen, until)


def _run_all(races: list[tuple[str, Race]], chosen: argparse.Namespace, until: float) -> None:
    if (chosen.accelerator, chosen.encoder) == ("cuda", RECORD.encoder):
        print(estimate(races[0][1]), flush=True)
    device = torch.cuda.get_device_name() if chosen.accelerator == "cuda" else chosen.accelerator
    name = f"speedrun-{slug(device)}" + "-dry" * chosen.dry_run
    log = paths.results() / "bench" / f"{name}.jsonl"
    with store.lock(name):  # two at once would take each other's time
        for label, race in races:
            what = f"{f'without {label}' if label else 'all tricks'}, seed {race.config.seed}"
            if any(row["race"] == race.described() for row in speedlog.read(log)):
                print(f"{what}: in {log} already")
                continue
            print(f"{what}:", flush=True)
            row = run(race, until=until) if time.monotonic() < until else None
            if row is None:
                print(f"The {chosen.sitting:g} min of this command are over. The same command again goes on from here.")
                break
            speedlog.add(log, {"left_out": label, **row}, chosen.minutes)
            shutil.rmtree(log.parent / f".partial-{race.key}", ignore_errors=True)
        rows = speedlog.read(log)
    if rows:
        print(speedlog.table(rows, chosen.minutes))
        print(f"Log: {log}   Table: {log.with_suffix('.md')}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; of those that are not given, the values of the speed run, or of its dry run."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--dry-run", action="store_true", help="a small network on the embedded images, on the CPU")
    parser = argparse.ArgumentParser(
        prog="python -m companion.bench.speedrun", description=__doc__.splitlines()[0], parents=[first]
    )
    record = RECORD.flat() | Race().to_dict()
    dry = first.parse_known_args(arguments)[0].dry_run
    parser.set_defaults(**(DRY if dry else {name: record[name] for name in DRY}))
    parser.add_argument("--dataset", help="such as cifar10 (the default), or imagefolder:FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--target", type=float, help="accuracy at which the clock is read (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=15, help="the goal, which the table judges by (default: 15)")
    parser.add_argument(
        "--sitting", type=float, default=FOREVER,
        help="minutes after which this command saves what it trains and ends; it goes on when it is started again",
    )  # fmt: skip
    parser.add_argument(
        "--leave-out", nargs="+", metavar="NAME",
        help=f"do the run without each of these tricks in turn, in place of the run with all: {', '.join(TRICKS)}; "
        "without several at once: NAME+NAME",
    )  # fmt: skip
    parser.add_argument("--to-the-end", action="store_true", help="go on to the end of the schedule after the target")
    parser.add_argument("--every", type=int, help="epochs between two evaluations (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="length of the schedule (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="images in a batch (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, help="at a batch of 256 (default: %(default)s)")
    parser.add_argument("--encoder", help="(default: %(default)s)")
    parser.add_argument("--image-size", type=int, help="pixels a side (default: %(default)s)")
    parser.add_argument("--n-train", type=int, help="images to train on (default: %(default)s)")
    parser.add_argument("--n-validation", type=int, help="images held out of them (default: %(default)s)")
    parser.add_argument("--accelerator", choices=ACCELERATORS[1:], help="(default: %(default)s)")
    return parser.parse_args(arguments)


def race_of(chosen: argparse.Namespace, seed: int, left_out: str = "") -> Race:
    """What the options describe, with this seed and without a trick.

    Raises:
        CompanionError: for a value outside its range, or a trick that does not exist.
    """
    own = {"target", "every"}
    config = RECORD.replace(seed=seed, **{name: getattr(chosen, name) for name in DRY if name not in own})
    race = Race(config=config, to_the_end=chosen.to_the_end, **{name: getattr(chosen, name) for name in own})
    return race.without(left_out) if left_out else race


if __name__ == "__main__":
    sys.exit(main())
