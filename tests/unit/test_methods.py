"""Methods: each loss with each of its options by hand, in sub-batches as one call, and without a look at any value."""

import naive
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from companion import losses, metrics, similarity
from companion.errors import CompanionError
from companion.training import Batch, Config, Contrastive, Labelled, MoCo, Supervised
from companion.training.data import Split
from companion.training.methods import METHODS, contrastive, labelled
from companion.training.methods.contrastive import in_sub_batches, objective
from companion.training.methods.labelled import SIMILARITIES, WITH_MARGIN, WITH_TEMPERATURE

SIZE, CLASSES = 12, 3
SPLIT = Split(torch.zeros(SIZE, 3, 16, 16, dtype=torch.uint8), torch.arange(SIZE) % CLASSES)
CONFIG = Config(n_train=SIZE, batch_size=SIZE, n_validation=0, width=4, projector_hidden=16, projector_dim=8)

# Settings → the same by loops over floats, of the lists u and v.
BY_HAND = {
    Contrastive(): lambda u, v: naive.nt_xent(u, v, naive.cosine, temperature=0.2),
    Contrastive(temperature=0.5): lambda u, v: naive.nt_xent(u, v, naive.cosine, temperature=0.5),
    Contrastive(loss="clip"): lambda u, v: naive.clip(u, v, naive.cosine, temperature=0.2),
    Contrastive(loss="clip", within_view=True): lambda u, v: naive.nt_xent(u, v, naive.cosine, temperature=0.2),
    Contrastive(loss="info_nce"): lambda u, v: naive.info_nce(u, v, naive.cosine, temperature=0.2),
    Contrastive(loss="dcl", temperature=0.3): lambda u, v: naive.dcl(u, v, naive.cosine, temperature=0.3),
    Contrastive(loss="dhel"): lambda u, v: naive.dhel(u, v, naive.cosine, temperature=0.2, form="lee"),
    Contrastive(loss="hard_contrastive", keep=1): lambda u, v: naive.hard_contrastive(u, v, naive.cosine, 0.2, 1),
    Contrastive(loss="simple"): lambda u, v: naive.simple(u, v, naive.cosine, 1 / (len(u) - 1)),
    Contrastive(loss="simple", weight=3.0, keep=1): lambda u, v: naive.simple(u, v, naive.cosine, 3.0, 1),
    Contrastive(loss="align_uniform"): lambda u, v: naive.align_uniform(u, v, 1),
    Contrastive(loss="align_uniform", weight=0.5): lambda u, v: naive.align_uniform(u, v, 0.5),
    Contrastive(loss="siglip"): lambda u, v: naive.siglip(u, v, naive.cosine, scale=5, bias=-10, within_view=False),
    Contrastive(loss="siglip", temperature=0.5, bias=-3, within_view=True): lambda u, v: naive.siglip(
        u, v, naive.cosine, scale=2, bias=-3, within_view=True
    ),
    Contrastive(loss="spectral"): lambda u, v: naive.spectral(u, v, naive.cosine, within_view=False),
    Contrastive(loss="spectral", within_view=True): lambda u, v: naive.spectral(u, v, naive.cosine, within_view=True),
}
settings = pytest.mark.parametrize("settings", BY_HAND, ids=lambda s: f"{s.title} {s.bias:g} {s.within_view}")


def embeddings(n=SIZE, d=5, seed=0):
    return torch.randn(2, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind()


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(SIZE, 3, 16, 16, generator=g), torch.rand(SIZE, 3, 16, 16, generator=g), SPLIT.labels)


def build(settings, **changes):
    torch.manual_seed(0)
    return settings.build(CONFIG.replace(method=settings, **changes), SPLIT)


def test_every_loss_is_here():
    assert {s.loss for s in BY_HAND} == set(contrastive.LOSSES)
    assert {s.loss for s in BY_HAND if s.within_view} == set(contrastive.WITHIN_VIEW)


@settings
@pytest.mark.parametrize("vrns", [0.0, 7.0])
def test_the_objective_is_the_loss_by_hand(settings, vrns):
    u, v = embeddings()
    found = objective(settings.replace(vrns=vrns), m=SIZE, n=100)(u, v)
    u, v = u.tolist(), v.tolist()
    expected = BY_HAND[settings](u, v) + (vrns * naive.vrns(u, v, naive.cosine, n=100) if vrns else 0)
    assert found.item() == pytest.approx(expected, rel=1e-11)


@settings
@pytest.mark.parametrize("vrns", [0.0, 7.0])
@pytest.mark.parametrize("m", [2, 3, 6])
def test_sub_batches_in_one_call_are_a_loop(settings, vrns, m):
    if settings.loss == "align_uniform":
        with pytest.raises(CompanionError, match="align_uniform takes whole batches"):
            settings.replace(loss_batch_size=m)
        return
    function = objective(settings.replace(vrns=vrns), m=m, n=100)
    u, v = (x.requires_grad_() for x in embeddings())
    with losses.unchecked():
        found = in_sub_batches(function, u, v, m)
    looped = sum(function(u[k : k + m], v[k : k + m]) for k in range(0, SIZE, m)) / (SIZE // m)
    torch.testing.assert_close(found, looped, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(found, (u, v)), torch.autograd.grad(looped, (u, v)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@settings
@pytest.mark.parametrize("m", [None, 4])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_method_takes_the_loss_of_its_projections(settings, m, heads):
    m = None if settings.loss == "align_uniform" else m
    chosen = settings.replace(loss_batch_size=m, heads=heads, vrns=3.0)
    method = build(chosen).double().train()
    given = Batch(*(x.double() for x in batch()[:2]), SPLIT.labels)
    found = method.loss(given)
    model = method.model
    if heads == 2:
        u, v = model.projector(model.encoder(given.first)), model.second_projector(model.encoder(given.second))
    else:  # batch norm sees both views
        z = model.projector(model.encoder(torch.cat([given.first, given.second])))
        u, v = z[:SIZE], z[SIZE:]
    parts = [slice(k, k + (m or SIZE)) for k in range(0, SIZE, m or SIZE)]
    by_hand = [
        BY_HAND[settings](u[p].tolist(), v[p].tolist())
        + 3 * naive.vrns(u[p].tolist(), v[p].tolist(), naive.cosine, SIZE)
        for p in parts
    ]
    assert found.item() == pytest.approx(sum(by_hand) / len(parts), rel=1e-9)


@pytest.mark.parametrize(("loss", "keep", "scale"), [("hard_contrastive", 3, {}), ("simple", 4, {"weight": 2.0})])
def test_hard_losses_keep_as_many_negatives_as_they_are_told(loss, keep, scale):
    u, v = embeddings()
    found = objective(Contrastive(loss=loss, keep=keep, **scale), m=SIZE, n=100)(u, v).item()
    u, v = u.tolist(), v.tolist()
    by_hand = {
        "hard_contrastive": lambda: naive.hard_contrastive(u, v, naive.cosine, 0.2, keep),
        "simple": lambda: naive.simple(u, v, naive.cosine, 2.0 / keep, keep),
    }
    assert found == pytest.approx(by_hand[loss](), rel=1e-11)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss": "hard_contrastive"}, "hard_contrastive needs keep"),
        ({"loss": "nt_xent", "keep": 3}, "keep makes no difference to 'nt_xent'"),
        ({"loss": "simple", "keep": 0}, "keep"),
        ({"loss": "simple", "weight": -1.0}, "weight"),
    ],
)
def test_unsound_hard_losses_are_refused(changes, expected):
    with pytest.raises(CompanionError, match=expected):
        Contrastive(**changes)


def test_known_classes_leave_an_anchors_own_class_out():
    method, given = build(Contrastive(known_classes=True, vrns=3.0)).double().train(), batch()
    given = Batch(*(x.double() for x in given[:2]), given.labels)
    z = method.model(torch.cat([given.first, given.second]))
    u, v = z[:SIZE].tolist(), z[SIZE:].tolist()
    expected = naive.nt_xent(u, v, naive.cosine, temperature=0.2, y=SPLIT.labels.tolist())
    expected += 3 * naive.vrns(u, v, naive.cosine, SIZE)
    assert method.loss(given).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("changes", [{"loss": "dcl"}, {"loss_batch_size": 4}])
def test_known_classes_are_for_nt_xent_on_whole_batches(changes):
    with pytest.raises(CompanionError, match="known_classes is for nt_xent on whole batches"):
        Contrastive(known_classes=True, **changes)


def test_known_classes_need_a_label_of_every_image():
    some = Split(SPLIT.images, SPLIT.labels - 1)
    with pytest.raises(CompanionError, match="this data set has images without one"):
        Contrastive(known_classes=True).build(CONFIG, some)


def test_no_more_negatives_are_kept_than_there_are():
    hard = Contrastive(loss="hard_contrastive", keep=7)
    assert CONFIG.replace(method=hard, batch_size=8, n_train=100).m == 8
    with pytest.raises(CompanionError, match="keep is 7: expected at most 3"):
        CONFIG.replace(method=hard.replace(loss_batch_size=4), batch_size=8, n_train=100)


def test_the_n_of_vrns_is_the_training_sets_and_not_the_batchs():
    u, v = embeddings()
    config = CONFIG.replace(n_train=1000, vrns=5.0)
    method = config.method.build(config, SPLIT)
    expected = losses.nt_xent(u, v, temperature=0.2) + 5 * losses.vrns(u, v, n=1000)
    torch.testing.assert_close(method.objective(u, v), expected)


def test_only_the_second_views_reach_the_second_head():
    method = build(Contrastive(heads=2, loss="clip"))
    seen = {}
    for name in ("projector", "second_projector"):
        getattr(method.model, name).register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].clone()}))
    given = batch()
    method.eval().loss(given)
    torch.testing.assert_close(seen["projector"], method.embed(given.first))
    torch.testing.assert_close(seen["second_projector"], method.embed(given.second))
    u, v = method.project(given.first, given.second)
    torch.testing.assert_close(u, method.model.projector(method.embed(given.first)))
    torch.testing.assert_close(v, method.model.second_projector(method.embed(given.second)))


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("loss", WITH_MARGIN + WITH_TEMPERATURE)
def test_a_labelled_loss_is_that_of_both_views_with_their_labels(loss, name):
    chosen, by_hand = Labelled(loss=loss, margin=0.4, temperature=0.3, similarity=name), getattr(naive, name)
    method = build(chosen).double().train()
    given = Batch(*(x.double() for x in batch()[:2]), SPLIT.labels)
    z = method.model(torch.cat([given.first, given.second])).tolist()
    y = SPLIT.labels.tolist() * 2
    if loss == "sincere":
        expected = naive.eps_sup_info_nce(z, y, by_hand, temperature=0.3, epsilon=0)
    else:
        option = {"margin": 0.4} if loss in WITH_MARGIN else {"temperature": 0.3}
        expected = getattr(naive, loss)(z, y, by_hand, **option)
    assert method.loss(given).item() == pytest.approx(expected, rel=1e-9)


def test_supervised_is_cross_entropy_on_the_features_of_both_views():
    method = build(Supervised()).double().train()
    assert method.classifier.out_features == CLASSES
    given = Batch(*(x.double() for x in batch()[:2]), SPLIT.labels)
    features = method.embed(torch.cat([given.first, given.second]))
    logits = (features @ method.classifier.weight.T + method.classifier.bias).detach()
    y = SPLIT.labels.repeat(2)
    expected = -(logits.exp() / logits.exp().sum(1, keepdim=True)).log()[torch.arange(2 * SIZE), y].mean()
    torch.testing.assert_close(method.loss(given).detach(), expected)


@pytest.mark.parametrize(
    "settings", [Contrastive(), Contrastive(heads=2), Labelled(), MoCo(queue=SIZE), Supervised()], ids=repr
)
def test_every_part_that_a_method_trains_gets_a_gradient(settings):
    method = build(settings, n_train=100).train()
    method.loss(batch()).backward()
    trained = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
    idle = {name for name, gradient in trained.items() if gradient is None or not gradient.any()}
    assert all(name.startswith("model.projector") for name in idle) if settings == Supervised() else not idle


class NoLook(TorchDispatchMode):
    """Fails where a step waits for the device: where Python asks for a value, or a shape depends on one."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique", "bincount")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not by_mask, "indexed by a mask"
        assert not name.startswith(self.WAITING), name
        return function(*args, **(kwargs or {}))


STEPS = [
    *(s.replace(vrns=v, loss_batch_size=m) for s in BY_HAND for v in (0, 7) for m in (None, 4)
      if not (m and s.loss == "align_uniform")),
    # Not of those that wait once a step because labels decide a shape: triplet lists its positive pairs, SupCon and
    # SINCERE the classes.
    *(Labelled(loss=loss) for loss in labelled.WITH_MARGIN if loss != "triplet"),
    MoCo(queue=SIZE), MoCo(queue=SIZE, batch_norm_groups=2), Contrastive(known_classes=True),
    Supervised(),
]  # fmt: skip


@pytest.mark.parametrize("settings", STEPS, ids=lambda s: f"{s.title} {getattr(s, 'loss_batch_size', '')}")
def test_a_step_neither_checks_nor_waits(settings, monkeypatch):
    method, given = build(settings, n_train=100).train(), batch()

    def looked(*_, **__):
        raise AssertionError("a step looks at values")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, looked)
    monkeypatch.setattr(torch, "isfinite", looked)
    with NoLook():
        method.loss(given).backward()


def test_outside_of_a_step_the_losses_do_look():
    """So the test above would see it."""
    u, v = embeddings()
    with pytest.raises(AssertionError, match=r"_local_scalar_dense|nonzero|equal"), NoLook():
        losses.nt_xent(u, v, temperature=0.2)


@pytest.mark.parametrize(("name", "cls"), METHODS.items())
def test_a_method_says_in_its_title_what_it_is(name, cls):
    assert cls.name == name
    assert "/" not in cls().title
    assert Contrastive(loss="clip", heads=2, within_view=True, vrns=30).title == "clip-within-2heads-t0.2-vrns30"
    assert Labelled(loss="sup_con", temperature=0.5).title == "sup_con-t0.5"
    assert Labelled(margin=0.5).title == "triplet-margin0.5"
    assert Labelled(loss="sincere", similarity="arc_length").title == "sincere-t0.1-arc_length"


def test_a_similarity_that_there_is_not_is_told():
    with pytest.raises(CompanionError, match=r"Unknown similarity 'arclength'.*Did you mean 'arc_length'"):
        Labelled(loss="sincere", similarity="arclength")


@pytest.mark.parametrize("name", SIMILARITIES)
def test_the_notes_of_a_labelled_method_are_the_pulls_of_its_own_loss(name):
    u, v = embeddings(seed=1)
    y = torch.arange(SIZE) % CLASSES
    found = build(Labelled(loss="sincere", temperature=0.3, similarity=name)).notes(u, v, y)
    angles, strength = metrics.pulls(
        losses.sincere, torch.cat([u, v]), y.repeat(2), similarity=getattr(similarity, name), temperature=0.3
    )
    assert found == pytest.approx(metrics.pulls_by_angle(angles, strength), nan_ok=True)
    assert build(Labelled(loss="triplet")).notes(u, v, y) == build(Contrastive()).notes(u, v, y) == {}
