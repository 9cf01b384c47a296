"""The benchmark of the training lets one network learn from every pipeline. Times themselves decide nothing here."""

import json

import pytest
import torch
from PIL import Image

from companion.bench import training as bench
from companion.errors import CompanionError
from companion.training import Config, SimCLR, loop

TINY = Config(
    image_size=8, batch_size=8, n_train=16, width=4, projector_hidden=8, projector_dim=4, accelerator="cpu",
    augmentation=bench.VIEWS,
)  # fmt: skip


@pytest.mark.parametrize("compiled", [True, False])
def test_every_contender_trains_its_own_network_for_as_many_steps(tmp_path, monkeypatch, compiled):
    """Counted where nobody can cheat: at the optimisers, each of which owns the parameters of one network."""
    stepped, made = [], []

    def optimizer_of(method, config):
        optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
        made.append((optimizer, [p.detach().clone() for p in method.parameters()]))
        optimizer.register_step_post_hook(lambda optimizer, *_: stepped.append(optimizer))
        return optimizer

    for module in (bench, loop):
        monkeypatch.setattr(module, "optimizer_of", optimizer_of)
    compilations = []

    def compiler(forward, dynamic):
        return lambda images: compilations.append(len(images)) or forward(images)

    monkeypatch.setattr(torch, "compile", compiler)
    field = bench.contenders(TINY, 2, 0, tmp_path, compiled=compiled)
    last = [bench.COMPILED] if compiled else []
    assert list(field) == [bench.ALONE, bench.MEMORY, bench.FILES, bench.USUAL, *last]
    for epoch, (optimizer, before) in zip(field.values(), made, strict=True):
        stepped.clear()
        epoch()
        assert len(stepped) == 2
        after = optimizer.param_groups[0]["params"]
        assert [p.shape for p in after] == [p.shape for p in made[0][1]]
        assert all((a != b).any() for a, b in zip(after, before, strict=True) if a.ndim > 1)
    assert compilations == [16, 16] * compiled  # two views of each image, in two steps of one contender


def test_views_are_of_the_images_size_and_files_are_read_by_workers(tmp_path):
    fabric, images = bench.Fabric(accelerator="cpu", devices=1), bench.noise(TINY, 2)
    assert images.images.shape == (16, 3, 8, 8)
    views = bench.views_of(TINY, fabric, images)
    assert [batch.first.shape for batch in views.batches(0)] == [(8, 3, 8, 8)] * 2
    assert views.workers == 0
    assert bench.views_of(TINY, fabric, images, 3).workers == 3


def test_the_usual_views_are_two_different_ones_of_one_image():
    image = Image.fromarray(torch.randint(256, (8, 8, 3), dtype=torch.uint8).numpy())
    first, second, _ = bench.TwoCrops([image], SimCLR(), 8)[0]
    assert first.shape == second.shape == (3, 8, 8)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("usual", "alone", "met"),
    [(2.0, 0.8, [True, True]), (1.9, 0.8, [False, True]), (2.0, 0.79, [True, False])],
)
def test_goals_are_judged_by_what_was_measured(usual, alone, met):
    times = {bench.ALONE: [alone], bench.MEMORY: [1.0], bench.FILES: [1.0], bench.USUAL: [usual]}
    assert [row["met"] for row in bench.goals(times, "cpu")] == met


def test_results_are_written_and_complete(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CONTRASTIVE_RESULTS", str(tmp_path))
    monkeypatch.setitem(bench.STEPS, "cpu", 1)
    monkeypatch.setattr(
        bench,
        "contenders",
        lambda *_, compiled: {name: lambda: None for name in (bench.MEMORY, bench.ALONE, bench.USUAL)},
    )
    path = bench.main(["--rounds", "2", "--threads", "1", "--batch-size", "16"])
    results = json.loads(path.with_suffix(".json").read_text())
    assert results["views"] == 32
    assert all(len(rounds) == 2 for rounds in results["times"].values())
    assert "| usual pipeline | " in path.read_text()
    assert path.read_text() in capsys.readouterr().out


def test_a_machine_that_cannot_compile_is_told_and_measures_the_rest(capsys):
    def broken():
        raise RuntimeError("no compiler here")

    done = []
    able = bench.warm({bench.COMPILED: broken, bench.USUAL: lambda: done.append("an epoch")})
    assert (list(able), done) == ([bench.USUAL], ["an epoch"])
    assert capsys.readouterr().err == (
        "companion, from memory, compiled: left out, for it failed here: RuntimeError: no compiler here\n"
    )
    with pytest.raises(RuntimeError, match="no compiler"):
        bench.warm({bench.MEMORY: broken})


def test_bad_options():
    with pytest.raises(CompanionError, match="--rounds is 0"):
        bench.main(["--rounds", "0"])
    if not torch.cuda.is_available():
        with pytest.raises(CompanionError, match="no CUDA device"):
            bench.main(["--device", "cuda"])
