"""Checkpoints: what is saved when, what is done with a damaged one, and how SIGTERM is heard."""

import io
import itertools
import os
import signal
import sys
import threading

import pytest
import torch

from companion import store
from companion.errors import CompanionError
from companion.training import Contrastive, MoCo, SimCLR, Views, train
from companion.training.data import Split
from companion.training.resume import terminable

STEPS = 3


@pytest.fixture
def split():
    g = torch.Generator().manual_seed(0)
    return Split(torch.randint(256, (48, 3, 16, 16), dtype=torch.uint8, generator=g), torch.arange(48) % 4)


@pytest.fixture(params=[Contrastive(), MoCo(queue=32, batch_norm_groups=2)], ids=lambda m: m.title)
def config(tiny, request):
    """MoCo draws an order from the global generator in every step, and carries a queue."""
    return tiny.replace(n_train=48, batch_size=16, epochs=4, seed=2, learning_rate=0.8, method=request.param)


@pytest.fixture
def plain(tiny):
    return tiny.replace(n_train=48, batch_size=16, epochs=4, seed=2, learning_rate=0.8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".partial-a-run" / "checkpoint.pt"


class Training:
    """One training of ``config``; how many steps it took, and everything that it ended with."""

    def __init__(self, config, split, *, stop_after=10**9, **options):
        torch.manual_seed(1)
        self.method, self.steps = config.method.build(config, split), 0
        after = self.method.after_step

        def after_step():
            self.steps += 1
            after()

        self.method.after_step = after_step
        source, self.stopped = Views(split, SimCLR().build(16), config.batch_size, seed=config.seed), None
        try:
            self.history = train(self.method, source, config, stop=lambda: self.steps == stop_after, **options)
        except SystemExit as left:
            self.stopped = left.code
        self.state = {name: value.clone() for name, value in self.method.state_dict().items()}

    def __eq__(self, other):
        return self.history == other.history and all(
            torch.equal(mine, theirs) for mine, theirs in zip(self.state.values(), other.state.values(), strict=True)
        )


@pytest.mark.parametrize("step", [1, 2, 3, 5, 11, 12])
def test_a_training_stopped_after_any_step_ends_as_if_it_had_not_been(config, split, path, capsys, monkeypatch, step):
    monkeypatch.setattr("companion.training.sources.CHUNK", 32)  # two chunks of views in an epoch
    whole = Training(config, split)
    stopped = Training(config, split, checkpoint=path, stop_after=step)
    assert stopped.stopped == 143
    epoch, done = divmod(step - 1, STEPS)
    told = f"Stopped: a-run is saved after step {done + 1} of epoch {epoch + 1}, and goes on from there"
    assert told in capsys.readouterr().err
    resumed = Training(config, split, checkpoint=path)
    assert resumed.steps == 12 - step
    assert resumed == whole


def test_it_may_be_stopped_again_and_again(config, split, path):
    whole, taken = Training(config, split), []
    for _ in range(5):
        taken.append(Training(config, split, checkpoint=path, stop_after=2).steps)
    last = Training(config, split, checkpoint=path)
    assert taken == [2] * 5
    assert last.steps == 2
    assert last == whole


def test_without_a_file_it_stops_all_the_same(plain, split):
    assert Training(plain, split, stop_after=2).stopped == 143


def changed(change):
    """A whole file with something else in it."""

    def damage(content: bytes) -> bytes:
        state, buffer = torch.load(io.BytesIO(content), weights_only=True), io.BytesIO()
        torch.save(change(state), buffer)
        return buffer.getvalue()

    return damage


def broken_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit_in_a_weight(content: bytes) -> bytes:
    state = torch.load(io.BytesIO(content), weights_only=True)
    weight = max(state["method"].values(), key=torch.numel).numpy().tobytes()
    start = content.index(weight)
    return content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :]


def one_byte_in_the_archive(content: bytes) -> bytes:
    """Its first part is said to be compressed, and is not: zlib.error."""
    start = content.index(b"PK\1\2") + 10
    return content[:start] + b"\x08" + content[start + 1 :]


DAMAGE = {
    "broken off": broken_off,
    "one byte in the archive": one_byte_in_the_archive,
    "empty": lambda content: b"",
    "other bytes": lambda content: bytes(range(256)) * 100,
    "one bit": one_bit_in_a_weight,
    "text": lambda content: b"not a checkpoint\n",
    "no history": changed(lambda state: state | {"history": None}),
    "a number for it": changed(lambda state: state | {"history": 2}),
    "numbers in it": changed(lambda state: state | {"history": [1.5, 1.4]}),
    "no part": changed(lambda state: {name: value for name, value in state.items() if name != "part"}),
    "a list": changed(lambda state: list(state)),
}
REASONS = {
    "no history": "its history is not a list of what was noted after each epoch",
    "no part": "it lacks part of what a checkpoint holds: config, history, method, optimizer, part",
}


@pytest.fixture
def stopped(plain, split, path):
    """A training that was stopped in its third epoch, with the checkpoint of the second before."""
    Training(plain, split, checkpoint=path, stop_after=8)
    assert sorted(p.name for p in path.parent.iterdir()) == ["checkpoint.previous", "checkpoint.pt", "epochs"]
    return path


@pytest.mark.parametrize("damage", DAMAGE)
def test_instead_of_a_damaged_checkpoint_the_one_before_is_used(plain, split, stopped, capsys, damage):
    stopped.write_bytes(DAMAGE[damage](stopped.read_bytes()))
    resumed = Training(plain, split, checkpoint=stopped)
    told = capsys.readouterr().err
    assert told.startswith(f"The checkpoint {stopped} cannot be used ({REASONS.get(damage, '')}")
    assert told.endswith("). The one before it is used.\n")
    assert resumed.steps == 12 - 6  # the second epoch had ended
    assert resumed == Training(plain, split)


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_both_are_damaged_the_run_starts_anew(plain, split, stopped, capsys, damage):
    for path in (stopped, stopped.with_suffix(".previous")):
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    resumed = Training(plain, split, checkpoint=stopped)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("The one before it is used.")
    assert second.startswith(f"The checkpoint {stopped.with_suffix('.previous')} cannot be used (")
    assert second.endswith("The run starts anew.")
    assert resumed.steps == 12
    assert resumed == Training(plain, split)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"width": 8}, "other settings"),
        ({"learning_rate": 0.1}, "other settings"),
        ({"dataset": "svhn"}, "other settings"),
        ({"dataset": "imagefolder:elsewhere"}, "other settings"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_run_is_refused(plain, split, path, capsys, changes, why):
    Training(plain.replace(**changes), split, checkpoint=path, stop_after=8)
    resumed = Training(plain, split, checkpoint=path)
    assert capsys.readouterr().err.count(why) == 2
    assert resumed == Training(plain, split)


def test_images_may_be_moved_between_two_sittings(plain, split, path, capsys):
    Training(plain.replace(dataset="imagefolder:here"), split, checkpoint=path, stop_after=8)
    resumed = Training(plain.replace(dataset="imagefolder:/there"), split, checkpoint=path)
    assert "cannot be used" not in capsys.readouterr().err
    assert resumed.steps == 12 - 8


def test_an_epoch_that_two_processes_began_is_not_ended_by_one(plain, split, stopped, capsys):
    state = torch.load(stopped, weights_only=True)
    state["part"]["processes"] *= 2
    torch.save(state, stopped)
    resumed = Training(plain, split, checkpoint=stopped)
    assert "in the middle of an epoch by 2 processes, and there are 1). The one before it" in capsys.readouterr().err
    assert resumed.steps == 12 - 6
    assert resumed == Training(plain, split)


def test_weights_of_another_architecture_leave_no_trace(plain, split, stopped, capsys):
    """Even under the right settings: what fits of them would have been taken already."""
    other = plain.replace(projector_dim=12)  # the encoder's weights fit
    Training(other, split, checkpoint=stopped.with_name("other.pt"))
    state = torch.load(stopped.with_name("other.pt"), weights_only=True)
    config = torch.load(stopped, weights_only=True)["config"]
    for path in (stopped, stopped.with_suffix(".previous")):
        torch.save(state | {"config": config}, path)
    resumed = Training(plain, split, checkpoint=stopped)
    assert capsys.readouterr().err.count("loading state_dict") == 2
    assert resumed == Training(plain, split)


def test_a_good_checkpoint_is_not_pushed_out_by_a_damaged_one(plain, split, stopped, monkeypatch):
    """The next save takes the damaged one's place; the good one stays: one in the middle of an epoch is no match."""
    good = stopped.with_suffix(".previous").read_bytes()
    stopped.write_bytes(b"damaged")
    Training(plain, split, checkpoint=stopped, stop_after=1)
    assert stopped.with_suffix(".previous").read_bytes() == good
    assert torch.load(stopped, weights_only=True)["part"]["steps"] == 1
    Training(plain, split, checkpoint=stopped, stop_after=1)
    assert stopped.with_suffix(".previous").read_bytes() == good


def test_a_checkpoint_is_written_once_in_so_many_seconds_and_at_the_end(plain, split, path, monkeypatch):
    clock = itertools.count(0, 25)  # asked once at the start, then once an epoch and once a save
    monkeypatch.setattr("companion.training.resume.time.monotonic", lambda: next(clock))
    monkeypatch.setenv("CONTRASTIVE_CHECKPOINT_SECONDS", "60")
    written, write = [], store.write

    def noted(to, content):
        written.append(len(content) if to.name == "epochs" else to.name)
        write(to, content)

    monkeypatch.setattr(store, "write", noted)
    Training(plain.replace(epochs=5), split, checkpoint=path)
    assert written == [1, 2, "checkpoint.pt", 3, 4, "checkpoint.pt", 5]


def test_epochs_that_were_done_but_not_saved_are_not_counted_when_it_resumes(plain, split, path, monkeypatch):
    monkeypatch.setenv("CONTRASTIVE_CHECKPOINT_SECONDS", "1e9")
    counted = []

    def look(method):
        counted.append((path.parent / "epochs").stat().st_size if path.parent.exists() else None)
        if len(counted) == 3:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        Training(plain, split, checkpoint=path, track=look)
    assert counted == [None, 1, 2]
    Training(plain, split, checkpoint=path, stop_after=5)
    assert (path.parent / "epochs").read_text() == "."
    (path.parent / "epochs").write_text("....")  # whoever wrote it
    counted.clear()
    with pytest.raises(KeyboardInterrupt):
        Training(plain, split, checkpoint=path, track=look)
    assert counted == [1, 2, 3]


@pytest.mark.parametrize("given", ["often", "-1", "nan"])
def test_a_time_between_checkpoints_that_is_none_is_told(plain, split, path, monkeypatch, given):
    monkeypatch.setenv("CONTRASTIVE_CHECKPOINT_SECONDS", given)
    with pytest.raises(
        CompanionError, match=r"^CONTRASTIVE_CHECKPOINT_SECONDS is .*: expected a finite number at least 0"
    ):
        Training(plain, split, checkpoint=path)


# ---- SIGTERM ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def heard():
    """SIGTERMs that came through to the handler of before."""
    signals = []
    before = signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
    yield signals
    signal.signal(signal.SIGTERM, before)


def test_sigterm_waits_for_the_end_and_is_handed_on(heard):
    ours = signal.getsignal(signal.SIGTERM)
    with terminable() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert asked()
        assert heard == []
    assert heard == [1]
    assert signal.getsignal(signal.SIGTERM) is ours
    with terminable() as asked:
        assert not asked()
    assert heard == [1]


def test_an_error_inside_does_not_swallow_sigterm(heard):
    def fail():
        with terminable():
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert heard == [1]


def test_an_error_beside_sigterm_is_told_before_the_process_ends(heard, capsys):
    def fail(*, stopped):
        with terminable():
            if stopped:
                os.kill(os.getpid(), signal.SIGTERM)
            raise CompanionError("Cannot write there: the disk is full.")

    for stopped in (True, False):  # where nobody has stopped it, who catches it tells it
        with pytest.raises(CompanionError):
            fail(stopped=stopped)
        told = capsys.readouterr().err
        assert told == "Stopped, and not saved: CompanionError: Cannot write there: the disk is full.\n" * stopped


def test_only_the_main_thread_listens(heard):
    ours, seen = signal.getsignal(signal.SIGTERM), []

    def elsewhere():
        with terminable() as asked:
            seen.append((signal.getsignal(signal.SIGTERM) is ours, asked()))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(True, False)]


def test_who_ignores_sigterm_goes_on_doing_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with terminable() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            assert not asked()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_message_goes_to_stderr_at_once(plain, split, path, monkeypatch):
    """The process is about to end, perhaps without a chance to empty its buffers."""
    flushed = []

    class Pipe:
        def write(self, text):
            flushed.append(text)

        def flush(self):
            flushed.append("flush")

    monkeypatch.setattr(sys, "stderr", Pipe())
    Training(plain, split, checkpoint=path, stop_after=1)
    assert flushed[-1] == "flush"
