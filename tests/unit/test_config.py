"""Descriptions of runs: what they accept, when two are the same, and what decides their keys."""

import hashlib
import json
import math
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.errors import CompanionError
from companion.training import Clip, Config, Contrastive, Labelled, MoCo, SimCLR, Supervised, Unchanged
from companion.training import config as module
from companion.training.augment import AUGMENTATIONS
from companion.training.config import from_json
from companion.training.methods import METHODS, clip, contrastive, labelled

# The training code's version → a digest of every default there is. Defaults are left out of a run's key, so a run that
# is stored under one default would silently stand for another.
DEFAULTS = {2: "f5956929e5030e58"}


def test_a_changed_default_raises_the_version():
    defaults = {"config": Config()} | {cls.name: cls() for cls in (*AUGMENTATIONS.values(), *METHODS.values())}
    text = json.dumps({name: settings.to_dict() for name, settings in defaults.items()}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert digest == DEFAULTS.get(module.TRAINING_VERSION), (
        f"a default changed: raise TRAINING_VERSION, then note the new digest here, {digest} (of a field that was only "
        "added the digest alone)"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss": "nt-xent"}, "Unknown loss 'nt-xent'.*Did you mean 'nt_xent'"),
        ({"dataset": "cifar"}, "Unknown data set 'cifar'.*Did you mean"),
        ({"dataset": "imagefolder:"}, "Unknown data set"),
        ({"dataset": 5}, "Unknown data set 5"),
        ({"encoder": "vit"}, "Unknown encoder"),
        ({"precision": "8-bit"}, "Unknown precision"),
        ({"accelerator": "gpu"}, "Unknown accelerator 'gpu'"),
        ({"storage": "disk"}, "Unknown storage 'disk'"),
        ({"optimizer": "adam"}, "Unknown optimizer 'adam'.*Did you mean 'adamw'"),
        ({"schedule": "step"}, "Unknown schedule 'step'.*Did you mean 'steps'"),
        ({"projector_hidden": -1}, "projector_hidden is -1.*at least 0"),
        ({"storage": "files"}, "storage is 'files' and dataset 'eurosat-subset': expected an imagefolder:PATH"),
        ({"temperatur": 0.1}, "Unknown parameter 'temperatur'.*Did you mean 'temperature'"),
        ({"x": 1}, "expected one of dataset, image_size, .*, seed, crop_scale, flip, .*, loss, temperature, bias"),
        ({"margin": 0.1}, "Unknown parameter 'margin'"),  # it is of another method
        ({"name": "mine"}, "Unknown parameter 'name'"),
        ({"temperature": 0.0}, "temperature is 0.0: expected a finite number greater than 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"temperature": "0.2"}, "temperature is '0.2': expected a finite number"),
        ({"learning_rate": "0.5"}, "learning_rate is '0.5': expected a finite number"),
        ({"bias": b"-10"}, "bias is b'-10': expected a finite number"),
        ({"temperature": torch.ones(2)}, r"temperature is tensor.*: expected a finite number"),
        ({"seed": np.bool_(True)}, "seed is .*True.*: expected a whole number"),
        ({"vrns": -1.0}, "vrns is -1.0.*at least 0"),
        ({"batch_size": 1}, "batch_size is 1.*at least 2"),
        ({"batch_size": 64.0}, "batch_size is 64.0: expected a whole number"),
        ({"batch_size": True}, "batch_size is True: expected a whole number"),
        ({"batch_size": 100_000}, "batch_size 100000 is larger than n_train"),
        ({"n_train": 4, "batch_size": 2}, "n_train is 4: expected a whole number of at least 5"),  # neighbours
        ({"loss_batch_size": 1}, "loss_batch_size is 1"),
        ({"loss_batch_size": 48}, "loss_batch_size 48 does not divide batch_size 128"),
        ({"flip": 1.5}, "flip is 1.5: expected a number from 0 to 1"),
        ({"epochs": -1}, "epochs is -1"),
        ({"image_size": 4}, "image_size is 4.*at least 8"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"momentum": 1}, "momentum is 1.0: expected less than 1"),
        ({"warmup_epochs": 9}, "warmup_epochs is 9 and epochs 8: expected a warm-up that"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"seed": -1}, "seed is -1"),
        ({"bias": math.inf}, "bias is inf"),
        ({"heads": 3}, "heads is 3: expected 1.*or 2"),
        ({"heads": 2.0}, "heads is 2.0: expected 1.*or 2"),
        ({"heads": True}, "heads is True: expected 1.*or 2"),
        ({"within_view": True}, "within_view makes no difference to 'nt_xent'"),
        ({"loss": "clip", "within_view": 1}, "within_view is 1: expected True or False"),
        (
            {"method": "contrastive"},
            "method is 'contrastive': expected one of clip, contrastive, labelled, moco, supervised",
        ),
        ({"augmentation": Supervised()}, "augmentation is Supervised.*expected one of simclr, none"),
        ({"method": Labelled(), "loss": "nt_xent"}, "Unknown loss with labels 'nt_xent'"),
        ({"method": Labelled(), "margin": -1}, "margin is -1"),
    ],
)
def test_bad_values_are_told(changes, expected):
    with pytest.raises(CompanionError, match=expected):
        Config().replace(**changes)


@pytest.mark.parametrize("part", [SimCLR(), Labelled()])
def test_a_value_that_a_part_does_not_have_is_told(part):
    with pytest.raises(CompanionError, match="Unknown parameter 'taw': expected one of"):
        part.replace(taw=0.2)


def test_whole_numbers_and_floats_are_one_config_with_one_key():
    base = Config()
    assert base.replace(vrns=30) == base.replace(vrns=30.0)
    for name, whole in (
        ("vrns", 30), ("temperature", 1), ("bias", -10), ("learning_rate", 1), ("momentum", 0), ("weight_decay", 0),
        ("jitter", 1), ("crop_scale", 1), ("flip", 0), ("blur", 1),
    ):  # fmt: skip
        one, other = base.replace(**{name: whole}), base.replace(**{name: float(whole)})
        third = base.replace(**{name: np.float32(whole)})
        assert one == other == third
        assert len({one, other, third}) == 1
        assert one.key("data") == other.key("data") == third.key("data")


def test_numbers_of_torch_and_numpy_are_the_same_config_with_the_same_key():
    base = Config()
    for name, number, plain in (
        ("temperature", torch.tensor(0.5), 0.5), ("learning_rate", torch.tensor([0.25], requires_grad=True), 0.25),
        ("seed", np.int64(3), 3), ("batch_size", np.int32(64), 64), ("loss_batch_size", np.int64(32), 32),
        ("heads", np.int8(2), 2), ("image_size", np.uint8(32), 32),
    ):  # fmt: skip
        one, other = base.replace(**{name: number}), base.replace(**{name: plain})
        assert one == other
        assert type(one.flat()[name]) is type(plain)
        assert one.key("data") == other.key("data")


def test_the_whole_batch_has_one_description():
    one, other = Config(batch_size=64, method=Contrastive(loss_batch_size=64)), Config(batch_size=64)
    assert (one, one.key("data")) == (other, other.key("data"))
    assert Config(batch_size=64, method=Contrastive(loss_batch_size=16)).m == 16
    assert Config(batch_size=64).m == Config(batch_size=64, method=Labelled()).m == 64


CHANGED = {  # of the config, the augmentation and the method: a value that is not the default
    "image_size": 32, "n_train": 2000, "n_validation": 10, "encoder": "resnet18", "width": 8, "projector_hidden": 64,
    "projector_dim": 64, "batch_size": 64, "epochs": 3, "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.0,
    "warmup_epochs": 2, "measured_pairs": 100, "precision": "bf16-mixed", "accelerator": "cpu", "seed": 7,
    "augmentation": Unchanged(), "method": Labelled(), "calibrate_batch_norm": True, "schedule": "steps",
    "optimizer": "adamw",
}  # fmt: skip
OF_PARTS = {
    SimCLR: {
        "crop_scale": 0.5, "flip": 0.0, "jitter": 0.2, "jitter_probability": 0.5, "grayscale": 0.1, "blur": 0.5,
        "rotate": 0.5,
    },
    Unchanged: {},
    Clip: {
        "loss": "siglip", "second": "view", "artists": "noto", "temperature": 0.1, "learned": False, "bias": -5.0,
        "within_view": True, "vrns": 1.0, "pool": 2, "dropout": 0.1, "word_dim": 64,
    },
    Contrastive: {
        "loss": "dcl", "temperature": 0.3, "vrns": 1.0, "loss_batch_size": 32, "bias": -5.0, "heads": 2,
        "within_view": True, "keep": 3, "weight": 0.5, "known_classes": True,
    },
    Labelled: {"loss": "lifted", "margin": 0.5, "temperature": 0.5, "similarity": "euclidean"},
    MoCo: {"temperature": 0.5, "queue": 512, "key_momentum": 0.9, "batch_norm_groups": 2, "shuffle": False},
    Supervised: {},
}  # fmt: skip


def digest(config, data="data"):
    """The part of a key that is a hash; before it stand some settings in words."""
    return config.key(data).rpartition("-")[2]


def test_the_key_covers_every_field():
    elsewhere = {"dataset", "storage"}  # see below
    assert set(CHANGED) | elsewhere == {f.name for f in fields(Config)}
    base = Config()
    keys = [digest(base), digest(base, "other data")]
    keys += [digest(base.replace(**{name: value})) for name, value in CHANGED.items()]
    folder = Config(dataset="imagefolder:/images")
    keys += [digest(folder, "images"), digest(folder.replace(storage="files"), "images")]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("part", OF_PARTS, ids=lambda cls: cls.name)
def test_the_key_covers_every_field_of_augmentation_and_method(part):
    assert set(OF_PARTS[part]) == {f.name for f in fields(part)}
    which = "augmentation" if part in AUGMENTATIONS.values() else "method"
    base = Config(**{which: Contrastive(loss="clip") if part is Contrastive else part()})  # clip: takes within_view
    others = {"keep": {"loss": "simple"}, "known_classes": {"loss": "nt_xent"}} if part is Contrastive else {}
    keys = {digest(base), *(digest(base.replace(**changes)) for changes in others.values())}
    for name, value in OF_PARTS[part].items():
        key = digest(base.replace(**others.get(name, {}), **{name: value}))
        assert key not in keys, name
        keys.add(key)


def test_the_key_is_not_that_of_another_version(monkeypatch):
    before = Config().key("data")
    monkeypatch.setattr(module, "TRAINING_VERSION", module.TRAINING_VERSION + 1)
    assert Config().key("data") != before


def test_the_key_does_not_depend_on_where_the_data_lie():
    here, there = Config(dataset="imagefolder:/a/images"), Config(dataset="imagefolder:/b/images")
    assert here.key("imagefolder:images:123") == there.key("imagefolder:images:123")
    assert here != there


def test_a_field_that_is_added_with_a_default_changes_no_key(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class LaterConfig(Config):
        ema: float = 0.99
        nesterov: bool = False

    @dataclass(frozen=True, kw_only=True)
    class LaterMethod(Contrastive):
        symmetric: bool = True

    for changes in ({}, {"epochs": 3, "vrns": 30}):
        assert LaterConfig().replace(**changes).key("data") == Config().replace(**changes).key("data")
    assert LaterConfig(ema=0.9).key("data") != Config().key("data")
    changed = {"loss": "dcl", "temperature": 0.5}
    assert LaterMethod(**changed).changed() == Contrastive(**changed).changed() == {"name": "contrastive"} | changed
    monkeypatch.setitem(METHODS, "contrastive", LaterMethod)
    later = Config(method=LaterMethod(**changed))
    monkeypatch.undo()
    assert later.key("data") == Config(method=Contrastive(**changed)).key("data")


def test_replace_reaches_into_augmentation_and_method_and_changes_nothing_else():
    base = Config(seed=3)
    found = base.replace(flip=0.25, vrns=30, epochs=2)
    assert (found.augmentation, found.method) == (SimCLR(flip=0.25), Contrastive(vrns=30.0))
    assert (found.epochs, found.seed) == (2, 3)
    assert base == Config(seed=3)
    switched = base.replace(method=Labelled(), margin=0.5, augmentation=Unchanged())
    assert (switched.method, switched.augmentation) == (Labelled(margin=0.5), Unchanged())
    assert base.replace(method=Labelled(margin=0.7), temperature=0.5).method == Labelled(margin=0.7, temperature=0.5)


def test_a_flat_row_has_every_value_once():
    row = Config(method=Labelled(margin=0.5), augmentation=Unchanged()).flat()
    assert (row["method"], row["augmentation"], row["margin"], row["m"]) == ("labelled", "none", 0.5, 128)
    assert not any(isinstance(value, dict) for value in row.values())
    assert Config().replace(loss_batch_size=32).flat()["m"] == 32
    assert "-m32of128-" in Config().replace(batch_size=128, loss_batch_size=32).key("data")
    assert "-m128-" in Config().replace(batch_size=128).key("data")


share = st.floats(0, 1)
positives = st.floats(1e-6, 1e6)
augmentations = st.one_of(
    st.just(Unchanged()),
    st.builds(
        SimCLR, crop_scale=st.floats(0.01, 1), flip=share, jitter=share, jitter_probability=share, grayscale=share,
        blur=share, rotate=share,
    ),
)  # fmt: skip
sub_batches = st.sampled_from([None, 2, 4, 8])
free = [loss for loss in contrastive.LOSSES if loss not in ("hard_contrastive", "align_uniform")]
contrastives = st.one_of(
    st.builds(
        Contrastive, loss=st.sampled_from(free), temperature=positives, vrns=st.floats(0, 1e3),
        bias=st.floats(-100, 100), heads=st.sampled_from([1, 2]), loss_batch_size=sub_batches, weight=st.floats(0, 1e3),
    ),
    st.builds(Contrastive, loss=st.sampled_from(contrastive.WITHIN_VIEW), within_view=st.booleans()),
    st.builds(
        Contrastive, loss=st.sampled_from(contrastive.HARDEST), keep=st.integers(1, 3), temperature=positives,
        loss_batch_size=st.sampled_from([None, 4, 8]), weight=st.floats(0, 1e3),
    ),
    st.builds(Contrastive, loss=st.just("align_uniform"), weight=st.floats(0, 1e3)),
)  # fmt: skip
mocos = st.builds(
    MoCo, temperature=positives, queue=st.sampled_from([64, 512]), key_momentum=share,
    batch_norm_groups=st.sampled_from([1, 2, 4]), shuffle=st.booleans(),
)  # fmt: skip
labelleds = st.builds(
    Labelled, loss=st.sampled_from(labelled.WITH_MARGIN + labelled.WITH_TEMPERATURE), margin=st.floats(0, 10),
    temperature=positives,
) | st.builds(Labelled, similarity=st.sampled_from(sorted(labelled.SIMILARITIES)), temperature=positives)  # fmt: skip
clips = st.builds(
    Clip, loss=st.sampled_from(clip.WITHIN_VIEW), second=st.just("text"), learned=st.booleans(),
    temperature=st.floats(1 / clip.LARGEST, 1e6), bias=st.floats(-100, 100), within_view=st.booleans(),
    vrns=st.floats(0, 1e3), dropout=st.floats(0, 0.9),
)  # fmt: skip
on_emoji = st.builds(
    Config, method=clips, dataset=st.just("emoji"), image_size=st.just(32), n_train=st.just(900),
    n_validation=st.just(173), optimizer=st.sampled_from(["sgd", "adamw"]), seed=st.integers(0, 2**40),
)  # fmt: skip
configs = on_emoji | st.builds(
    Config, method=contrastives | labelleds | mocos | st.just(Supervised()), augmentation=augmentations,
    batch_size=st.sampled_from([8, 64]), learning_rate=positives, epochs=st.integers(0, 500),
    momentum=st.floats(0, 1, exclude_max=True), encoder=st.sampled_from(module.ENCODERS), seed=st.integers(0, 2**40),
)  # fmt: skip


@given(configs)
def test_a_config_comes_back_from_json(config):
    back = from_json(json.dumps(config.to_dict()))
    assert back == config
    assert back.key("data") == config.key("data")
    assert config.replace() == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is not the description of a run"),
        ("{half", "is not the description of a run"),
        ("[1, 2]", "is not the description of a run"),
        ("5", "is not the description of a run"),
        pytest.param("[" * 100_000, "is not the description of a run", id="nested deeply"),
        ("{}", "is not the description of a run: 'augmentation'"),
        (json.dumps(Config().to_dict() | {"method": "nt_xent"}), "method is 'nt_xent': expected a dictionary"),
        (
            json.dumps(Config().to_dict() | {"method": {"vrns": 30}}),
            r"method is {'vrns': 30}: expected a .* with a name",
        ),
        (json.dumps(Config().to_dict() | {"method": {"name": "simclr"}}), "Unknown method 'simclr'.*[^.]\\.$"),
        (json.dumps(Config().to_dict() | {"method": {"name": "contrastive", "tau": 1}}), "Unknown argument of method"),
        (json.dumps(Config().to_dict() | {"epoch": 3}), "Unknown parameter 'epoch'.*Did you mean 'epochs'"),
        (json.dumps(Config().to_dict() | {"name": "x"}), "Unknown parameter 'name'"),
        (json.dumps(Config().to_dict() | {"epochs": "3"}), "epochs is '3'"),
        (json.dumps(Config().to_dict() | {"dataset": None}), "Unknown data set None"),
    ],
)
def test_what_is_no_description_is_told(text, expected):
    with pytest.raises(CompanionError, match=expected):
        from_json(text)
