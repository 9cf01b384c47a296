"""Each loss against slow loops over floats, with each similarity."""

import naive
import pytest
import torch

from companion import losses, similarity

Y = [0, 2, 1, 0, 2, 2, 3, 0]
SIMILARITIES = ["cosine", "arc_length", "euclidean"]


@pytest.fixture(params=SIMILARITIES)
def both(request):
    """A similarity function of the package, and the one of the loops."""
    return getattr(similarity, request.param), getattr(naive, request.param)


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(8, 4, dtype=torch.float64, generator=generator) for _ in range(2))


def close(observed, expected):
    assert observed.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "hyperparameters"),
    [
        ("info_nce", {"temperature": 0.3}),
        ("clip", {"temperature": 0.3}),
        ("nt_xent", {"temperature": 0.3}),
        ("dcl", {"temperature": 0.3}),
        ("dclw", {"temperature": 0.3, "sigma": 0.7}),
        ("dhel", {"temperature": 0.3, "form": "lee"}),
        ("dhel", {"temperature": 0.3, "form": "koromilas"}),
        ("hard_contrastive", {"temperature": 0.3, "keep": 3}),
        ("simple", {"weight": 0.2}),
        ("simple", {"weight": 0.2, "keep": 3}),
        ("siglip", {"scale": 5, "bias": -2, "within_view": False}),
        ("siglip", {"scale": 5, "bias": -2, "within_view": True}),
        ("spectral", {"within_view": False}),
        ("spectral", {"within_view": True}),
        ("vrns", {"n": 20}),
    ],
)
def test_two_views(name, hyperparameters, both, views):
    u, v = views
    expected = getattr(naive, name)(u.tolist(), v.tolist(), both[1], **hyperparameters)
    close(getattr(losses, name)(u, v, similarity=both[0], **hyperparameters), expected)


@pytest.mark.parametrize("labels", [Y, [0] * 8, list(range(8))], ids=["classes", "one class", "no two alike"])
def test_nt_xent_without_false_negatives(labels, both, views):
    u, v = views
    expected = naive.nt_xent(u.tolist(), v.tolist(), both[1], temperature=0.3, y=labels)
    y = torch.tensor(labels)
    close(losses.nt_xent(u, v, temperature=0.3, y=y, similarity=both[0]), expected)
    close(losses.nt_xent(u, v, temperature=0.3, y=y, similarity=both[0], tile=3), expected)


@pytest.mark.parametrize(
    ("name", "hyperparameters"),
    [
        ("sup_con", {"temperature": 0.3}),
        ("eps_sup_info_nce", {"temperature": 0.3, "epsilon": 0.25}),
        ("contrastive_margin", {"margin": -0.4}),
        ("triplet", {"margin": 0.5}),
        ("lifted", {"margin": 0.5}),
        ("batch_hard", {"margin": 0.5}),
    ],
)
def test_labels(name, hyperparameters, both, views):
    z = views[0]
    expected = getattr(naive, name)(z.tolist(), Y, both[1], **hyperparameters)
    close(getattr(losses, name)(z, torch.tensor(Y), similarity=both[0], **hyperparameters), expected)


def test_sincere_is_eps_sup_info_nce_without_margin(both, views):
    z = views[0]
    expected = naive.eps_sup_info_nce(z.tolist(), Y, both[1], temperature=0.3, epsilon=0)
    close(losses.sincere(z, torch.tensor(Y), temperature=0.3, similarity=both[0]), expected)


def test_queue(both, views):
    u, v = views
    queue = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    expected = naive.moco(u.tolist(), v.tolist(), queue.tolist(), both[1], temperature=0.3)
    close(losses.info_nce(u, v, temperature=0.3, queue=queue, similarity=both[0]), expected)


def test_clip_within_view_is_nt_xent(views):
    assert torch.equal(losses.clip(*views, temperature=0.3, within_view=True), losses.nt_xent(*views, temperature=0.3))


def test_vrns_parts(both, views):
    u, v = views
    parts = losses.vrns_parts(u, v, n=20, similarity=both[0])
    for part, expected in zip(parts, naive.vrns_parts(u.tolist(), v.tolist(), both[1], n=20), strict=True):
        close(part, expected)
    close(sum(parts), losses.vrns(u, v, n=20, similarity=both[0]).item())


@pytest.mark.parametrize("alpha", [1, 2, 3.5])
def test_align(alpha, views):
    close(losses.align(*views, alpha=alpha), naive.align(*(x.tolist() for x in views), alpha))


@pytest.mark.parametrize("t", [0.5, 2, 3])
def test_uniform(t, views):
    close(losses.uniform(views[0], t=t), naive.uniform(views[0].tolist(), t))


def test_align_uniform(views):
    u, v = (x.tolist() for x in views)
    expected = naive.align(u, v, 2) + 0.7 * (naive.uniform(u, 3) + naive.uniform(v, 3)) / 2
    close(losses.align_uniform(*views, weight=0.7, t=3), expected)


def test_what_is_not_said_is_as_the_sources_have_it(views):
    """Cosine similarity and α = t = 2 of Wang & Isola, σ of DCLW, ε of the case study, Lee et al.'s form of DHEL."""
    z, (u, v), s, tau = views[0], (x.tolist() for x in views), naive.cosine, 0.3
    close(losses.align(*views), naive.align(u, v, 2))
    close(losses.uniform(z), naive.uniform(u, 2))
    close(losses.align_uniform(*views), naive.align_uniform(u, v, weight=1))
    close(losses.dclw(*views, temperature=tau), naive.dclw(u, v, s, tau, sigma=0.5))
    close(losses.dhel(*views, temperature=tau), naive.dhel(u, v, s, tau, form="lee"))
    close(losses.siglip(*views, scale=5, bias=-2), naive.siglip(u, v, s, 5, -2, within_view=False))
    close(losses.spectral(*views), naive.spectral(u, v, s, within_view=False))
    close(losses.clip(*views, temperature=tau), naive.clip(u, v, s, tau))
    expected = naive.eps_sup_info_nce(u, Y, s, tau, epsilon=0.25)
    close(losses.eps_sup_info_nce(z, torch.tensor(Y), temperature=tau), expected)


def test_a_function_of_your_own_serves_as_similarity(views):
    u, v = views
    expected = naive.nt_xent(u.tolist(), v.tolist(), naive.dot, temperature=3)
    close(losses.nt_xent(u, v, temperature=3, similarity=lambda a, b: a @ b.T), expected)
