import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from companion.errors import CompanionError
from companion.similarity import euclidean
from companion.training import probe, runs


@pytest.fixture
def blobs():
    """Three classes in three directions, with features of very different length: only the direction tells."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(40)
    x = torch.eye(3).repeat_interleave(40, dim=0) + 0.15 * torch.randn(120, 3, generator=generator)
    return x * torch.rand(120, 1, generator=generator).mul(5).exp(), y


def test_both_probes_find_what_is_separable(blobs):
    x, y = blobs
    train, test = torch.arange(0, 120, 2), torch.arange(1, 120, 2)
    for classify in (probe.linear_probe, probe.knn):
        first, second = classify(x[train], y[train], (x[test], y[test]), (x[test], (y[test] + 1) % 3))
        assert first.mean() > 0.95
        assert second.mean() < 0.05  # wrong labels: the second test set is scored on its own


def test_knn_against_a_loop(blobs):
    x, y = blobs
    train, test = torch.arange(0, 120, 2), torch.arange(1, 120, 2)
    unit = torch.nn.functional.normalize(x, dim=1)
    (found,) = probe.knn(x[train], y[train], (x[test], y[test]), k=3)
    for i, correct in zip(test.tolist(), found, strict=True):
        nearest = max(train.tolist(), key=lambda j: float(unit[i] @ unit[j]))
        (alone,) = probe.knn(x[train], y[train], (x[i : i + 1], y[i : i + 1]), k=1)
        assert alone[0] == (y[nearest] == y[i])
        top = sorted(train.tolist(), key=lambda j: -float(unit[i] @ unit[j]))[:3]
        votes = torch.bincount(y[top], minlength=3)
        if votes.max() > 1:  # ties are the library's to break
            assert correct == (votes.argmax() == y[i])


@pytest.mark.parametrize(("hits", "of"), [(750, 1000), (10, 10), (0, 7), (1, 3)])
def test_the_interval_is_wilsons(hits, of):
    """(Wilson 1927) where (p̂ - p)² n = z² p (1 - p)."""
    low, high = probe.accuracy_interval(np.arange(of) < hits)
    z = 1.959963984540054
    for end in (low, high):
        if 0 < end < 1:
            assert (hits / of - end) ** 2 * of == pytest.approx(z**2 * end * (1 - end), rel=1e-6)
    assert 0 <= low < hits / of + 1e-12
    assert hits / of - 1e-12 < high <= 1
    assert low < high  # ten of ten prove less than certainty


def test_no_image_has_no_accuracy():
    with pytest.raises(CompanionError, match="no image at all"):
        probe.accuracy_interval(np.zeros(0, dtype=bool))


def test_features_are_normalised_only_where_asked(blobs):
    """Labels by length alone: lost to a probe that normalises, plain to one that does not."""
    x = torch.nn.functional.normalize(blobs[0], dim=1)
    y = torch.arange(len(x)) % 2
    x = x * (1 + 9 * y[:, None])
    for normalise, least, most in ((False, 0.95, 1.0), (True, 0.0, 0.75)):
        (correct,) = probe.linear_probe(x, y, (x, y), normalise=normalise)
        assert least <= correct.mean() <= most


def test_five_neighbours_vote():
    """Nearest first: b b a a a b b. One, three and seven of them say b, five say a."""
    angles = torch.tensor([1.0, 2, 3, 4, 5, 6, 7]).deg2rad()
    x, y = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([1, 1, 0, 0, 0, 1, 1])
    (correct,) = probe.knn(x, y, (torch.tensor([[2.0, 0.0]]), torch.tensor([0])))
    assert correct.tolist() == [True]


@pytest.mark.parametrize("newton", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("strength", [0.003, 1.0])
def test_the_linear_probe_is_the_minimum_of_its_objective(strength, normalise, newton):
    """Cross entropy summed over images + ‖W‖² / 2C on standardised features, minimised by SciPy; the bias is free."""
    g, (n, k, d, classes) = torch.Generator().manual_seed(0), (150, 400, 12, 3)
    scales = torch.logspace(0, -2, d)  # a penalty on features that were not standardised would spare the large ones
    directions = torch.randn(classes, d, generator=g)
    y = torch.arange(n + k) % classes
    y[torch.rand(n + k, generator=g) < 0.4] = 0  # unbalanced, so that the bias counts
    x = (directions[y] + 1.5 * torch.randn(n + k, d, generator=g)) * scales + 2 * scales
    z = (torch.nn.functional.normalize(x, dim=1) if normalise else x).double()
    z = (z - z[:n].mean(0)) / z[:n].std(0, correction=0)

    def objective(flat):
        parameters = torch.from_numpy(flat).view(d + 1, classes).requires_grad_()
        scores = z[:n] @ parameters[:d] + parameters[d]
        log_likelihood = (scores - scores.logsumexp(1, keepdim=True))[torch.arange(n), y[:n]].sum()
        value = parameters[:d].square().sum() / (2 * strength) - log_likelihood
        value.backward()
        return value.item(), parameters.grad.numpy().ravel()

    best = minimize(objective, np.zeros((d + 1) * classes), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    best = torch.from_numpy(best).view(d + 1, classes)
    predicted = (z[n:] @ best[:d] + best[d]).argmax(1)
    given = {"C": strength, "normalise": normalise, "newton": newton}
    (agree,) = probe.linear_probe(x[:n], y[:n], (x[n:], predicted), **given)
    assert agree.mean() > 0.985  # all but what lies on a boundary


def test_a_baseline_of_few_features_is_fitted_to_the_end(monkeypatch):
    """The label is the sign of a small difference of two features: L-BFGS stops long before it sees that."""
    g = torch.Generator().manual_seed(0)
    common, difference = torch.randn(2, 900, generator=g)
    x, y = torch.stack([common, common + 0.002 * difference], dim=1), (difference > 0).long()
    parts = [(x[a:b], y[a:b]) for a, b in ((0, 500), (500, 700), (700, 900))]
    assert runs.baseline_probe(*parts[0], *parts[1:])[-1].mean() > 0.97
    monkeypatch.setattr(runs, "FEW", 1)
    assert runs.baseline_probe(*parts[0], *parts[1:])[-1].mean() < 0.9


def test_newtons_method_is_precise_enough_for_a_weak_penalty():
    """Of that kind of features single precision loses the optimum: it stops where more than twice as many are wrong."""
    g = torch.Generator().manual_seed(0)
    common, difference = torch.randn(2, 900, generator=g)
    x, y = torch.stack([common, common + 0.002 * difference], dim=1), (difference > 0).long()
    (correct,) = probe.linear_probe(x[:500], y[:500], (x[500:], y[500:]), C=1e6, normalise=False, newton=True)
    assert correct.mean() > 0.985


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_the_probes_of_a_gpu_say_what_those_of_the_cpu_say(strength, normalise):
    g = torch.Generator().manual_seed(1)
    y = torch.arange(900) % 5
    x = torch.randn(5, 16, generator=g)[y] + 1.5 * torch.randn(900, 16, generator=g) + 1
    x[:, 3] = 2.0  # a constant feature
    train, test = (x[:500], y[:500]), (x[500:], y[500:])
    (expected,) = probe.linear_probe(*train, test, C=strength, normalise=normalise)
    (found,) = probe._score(probe._linear(*train, strength, normalise), [test])
    assert (found == expected).mean() > 0.98
    (expected,) = probe.knn(*train, test)
    (found,) = probe._score(probe._nearest(*train, 5), [test])
    assert (found == expected).all()
    assert 0.3 < expected.mean() < 1


@pytest.mark.parametrize("strength", [0.01, 0.1])
@pytest.mark.parametrize(("classes", "n"), [(2, 200), (3, 200), (2, 12), (3, 12), (2, 3), (3, 4)])
def test_the_probe_of_a_gpu_has_the_penalty_of_the_cpus_for_two_classes_and_for_more(classes, n, strength):
    """Unbalanced, and with features that go together, so that another penalty moves the boundaries."""
    g, k = torch.Generator().manual_seed(0), 4000
    y = (torch.rand(n + k, generator=g) < 0.25).long() * torch.randint(1, classes, (n + k,), generator=g)
    y[:classes] = torch.arange(classes)
    slope = torch.linspace(0, 1, 10)
    x = torch.randn(n + k, 10, generator=g) + 0.8 * torch.randn(n + k, 1, generator=g) * (2 * slope - 1)
    x += torch.stack([0 * slope, slope, 1 - slope])[y]
    train, test = (x[:n], y[:n]), (x[n:], y[n:])
    (expected,) = probe.linear_probe(*train, test, C=strength, normalise=False)
    (found,) = probe._score(probe._linear(*train, strength, False), [test])
    assert (found == expected).mean() > 0.995


@pytest.mark.parametrize("constant", [0.0, 0.1, 0.7, 2.0])
def test_a_feature_that_was_constant_in_training_says_nothing_of_a_test_image(constant):
    """Its mean is rounded, and what rounding leaves of it is no feature either."""
    g = torch.Generator().manual_seed(3)
    y = torch.arange(900) % 3
    x = torch.randn(3, 8, generator=g)[y] + torch.randn(900, 8, generator=g)
    (expected,) = probe._score(probe._linear(x[:500], y[:500], 0.1, False), [(x[500:], y[500:])])
    x = torch.cat([x, torch.full((900, 1), constant)], dim=1)
    x[500:, 8] += torch.randn(400, generator=g)
    train, test = (x[:500], y[:500]), (x[500:], y[500:])
    (found,) = probe._score(probe._linear(*train, 0.1, False), [test])
    assert 0.6 < expected.mean() < 1
    assert (found == expected).mean() > 0.99
    (of_cpu,) = probe.linear_probe(*train, test, C=0.1, normalise=False)
    assert (found == of_cpu).mean() > 0.99


@pytest.mark.parametrize("labels", [(0, 1), (0, 2), (1, 2), (3, 7)])
def test_what_two_classes_are_called_is_nothing_to_the_probe_of_a_gpu(labels):
    """Unbalanced, and with a penalty that moves the boundary: that of scikit-learn, which knows the classes it sees."""
    g, n, k = torch.Generator().manual_seed(0), 60, 4000
    y = (torch.rand(n + k, generator=g) < 0.25).long()
    x = torch.randn(n + k, 10, generator=g) + 0.8 * torch.randn(n + k, 1, generator=g) * torch.linspace(-1, 1, 10)
    x += y[:, None] * torch.linspace(0, 1, 10)
    named = torch.tensor(labels)[y]
    predicted = probe._linear(x[:n], y[:n], 0.1, False)(x[n:])
    found = probe._linear(x[:n], named[:n], 0.1, False)(x[n:])
    assert (found == torch.tensor(labels)[predicted]).float().mean() > 0.999
    (correct,) = probe._score(probe._linear(x[:n], named[:n], 0.1, False), [(x[n:], named[n:])])
    assert correct.mean() == pytest.approx((predicted == y[n:]).float().mean().item(), abs=1e-3)
    x, named = x.numpy(), named.numpy()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-6)).fit(x[:n], named[:n])
    assert (pipeline.predict(x[n:]) == found.numpy()).mean() > 0.995


def test_the_probe_of_a_gpu_is_fitted_where_gradients_are_off(blobs):
    with torch.no_grad():
        (found,) = probe._score(probe._linear(*blobs, 1.0, True), [blobs])
    assert found.mean() > 0.95


def test_features_that_lie_elsewhere_go_to_the_probes_of_a_gpu_with_every_option(monkeypatch):
    x, y, asked = torch.empty(9, 2, device="meta"), torch.empty(9, device="meta"), []
    for name in ("_linear", "_nearest"):
        monkeypatch.setattr(probe, name, lambda *a, name=name: asked.append((name, *a[2:])))
    monkeypatch.setattr(probe, "_score", lambda predict, tests: len(tests))
    assert probe.linear_probe(x, y, (x, y), (x, y), C=0.3, normalise=False) == 2
    assert probe.linear_probe(x, y, (x, y), C=3.0) == 1
    assert probe.knn(x, y, (x, y), k=7) == 1
    assert asked == [("_linear", 0.3, False), ("_linear", 3.0, True), ("_nearest", 7)]


def test_a_tie_goes_to_the_first_class_on_a_gpu_too():
    """And every image gets the vote of its own neighbours, whatever the number of images."""
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(200, 4, generator=g), torch.randint(0, 6, (200,), generator=g)
    test = torch.randn(3000, 4, generator=g)
    for k in (1, 2, 4, 5):
        near = [int(label) for label in probe._nearest(x, y, k)(test)]
        unit, others = (torch.nn.functional.normalize(part, dim=1) for part in (test, x))
        for i in range(0, 3000, 97):
            top = y[sorted(range(200), key=lambda j, i=i: -float(unit[i] @ others[j]))[:k]].tolist()
            assert near[i] == max(sorted(set(top)), key=top.count), (i, k)


@pytest.mark.parametrize("k", [1, 4])
def test_the_weighted_vote_against_loops(blobs, k):
    x, y = blobs
    x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1))  # so that neighbours disagree
    train, test = torch.arange(0, 120, 2), torch.arange(1, 120, 2)
    unit = torch.nn.functional.normalize(x, dim=1)
    (found,) = probe.weighted_knn(x[train], y[train], (x[test], y[test]), k=k)
    for i, correct in zip(test.tolist(), found, strict=True):
        votes = [0.0, 0.0, 0.0]
        for j in sorted(train.tolist(), key=lambda j: -float(unit[i] @ unit[j]))[:k]:
            votes[y[j]] += float(unit[i] @ unit[j])
        assert correct == (votes.index(max(votes)) == y[i])


def test_the_nearest_outweighs_two_that_are_farther():
    train, labels = torch.tensor([[1.0, 0.1], [0.1, 1.0], [-0.1, 1.0]]), torch.tensor([1, 0, 0])
    query = (torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert probe.weighted_knn(train, labels, query, k=3)[0].tolist() == [True]  # .995 against .0995, and less than none
    assert probe.knn(train, labels, query, k=3)[0].tolist() == [False]


def test_neighbours_by_another_similarity_and_weights_by_cosine():
    train, labels = torch.tensor([[9.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1])
    query = (torch.tensor([[1.0, 0.1]]), torch.tensor([0]))
    assert probe.weighted_knn(train, labels, query)[0].tolist() == [True]  # in direction
    assert probe.weighted_knn(train, labels, query, similarity=euclidean)[0].tolist() == [False]  # in place


@pytest.mark.parametrize("classify", [probe.knn, probe.weighted_knn])
def test_more_voters_than_images_are_told(classify):
    x, y = torch.randn(3, 2), torch.arange(3)
    with pytest.raises(CompanionError, match="k is 4: expected 1 to 3, the number of training images"):
        classify(x, y, (x, y), k=4)
    for k in (0, 2.5, True):
        with pytest.raises(CompanionError, match=f"k is {k}"):
            classify(x, y, (x, y), k=k)
