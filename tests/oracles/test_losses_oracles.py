"""Our losses against the authors' and the community's own code, in float64, value and gradient.

The other libraries are the extra `oracles`; without one, its tests are skipped.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from companion import losses
from companion.similarity import arc_length

pytestmark = pytest.mark.filterwarnings("ignore")
Y_BALANCED = torch.arange(12) % 4
Y_UNBALANCED = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
Y_LONE = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4])
N = len(Y_BALANCED)


def needs(module: str, package: str):
    return pytest.importorskip(module, reason=f"{package} is not installed: pip install -e '.[oracles]'")


def embeddings(count=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(N, 6, dtype=torch.float64, generator=generator).to(dtype) for _ in range(count)]


def unit(z):
    return F.normalize(z, dim=1)


def assert_same(ours, oracle, inputs, atol=1e-12):
    """Equal values, and equal gradients with respect to every input."""
    outcomes = []
    for function in (ours, oracle):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        outcomes.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
class TestSoftmax:
    def test_nt_xent_is_that_of_pytorch_metric_learning(self, temperature):
        oracle = needs("pytorch_metric_learning.losses", "pytorch-metric-learning").NTXentLoss(temperature=temperature)
        labels = torch.arange(N).repeat(2)
        assert_same(
            lambda u, v: losses.nt_xent(u, v, temperature=temperature),
            lambda u, v: oracle(torch.cat([u, v]), labels),
            embeddings(),
        )

    @pytest.mark.parametrize(("name", "oracle"), [("nt_xent", "NTXentLoss"), ("dcl", "DCLLoss"), ("dclw", "DCLWLoss")])
    def test_lightly(self, name, oracle, temperature):
        oracle = getattr(needs("lightly.loss", "lightly"), oracle)(temperature=temperature)
        assert_same(lambda u, v: getattr(losses, name)(u, v, temperature=temperature), oracle, embeddings())

    def test_info_nce_is_that_of_info_nce_pytorch(self, temperature):
        oracle = needs("info_nce", "info-nce-pytorch").info_nce
        ours = lambda u, v: losses.info_nce(u, v, temperature=temperature)  # noqa: E731
        assert_same(ours, lambda u, v: oracle(u, v, temperature=temperature), embeddings())
        assert_same(
            ours, lambda u, v: F.cross_entropy(unit(u) @ unit(v).T / temperature, torch.arange(N)), embeddings()
        )

    def test_queue_is_that_of_info_nce_pytorch(self, temperature):
        oracle = needs("info_nce", "info-nce-pytorch").info_nce
        assert_same(
            lambda u, v, queue: losses.info_nce(u, v, queue=queue, temperature=temperature),
            lambda u, v, queue: oracle(u, v, queue, temperature=temperature, negative_mode="unpaired"),
            embeddings(3),
        )

    def test_queue_is_the_memory_bank_of_lightly(self, temperature):
        module = needs("lightly.loss", "lightly")
        torch.manual_seed(0)
        oracle = module.NTXentLoss(temperature=temperature, memory_bank_size=(64, 6))
        u, v = embeddings(dtype=torch.float32)
        oracle(u, v.clone().requires_grad_())  # the first call fills the bank
        queue = oracle.memory_bank(unit(v))[1].T.clone()  # lightly hands it out as (d, k)
        ours = losses.info_nce(u, v, queue=queue, temperature=temperature)
        assert ours.item() == pytest.approx(oracle(u, v).item(), abs=1e-5)

    def test_clip_is_that_of_open_clip(self, temperature):
        oracle = needs("open_clip.loss", "open_clip_torch").ClipLoss()
        assert_same(
            lambda u, v, t: losses.clip(u, v, temperature=t),
            lambda u, v, t: oracle(unit(u), unit(v), 1 / t),
            [*embeddings(), torch.tensor(temperature, dtype=torch.float64)],
            atol=1e-11,
        )


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (3.0, 0.5)])
def test_siglip_is_that_of_open_clip(scale, bias):
    oracle = needs("open_clip.loss", "open_clip_torch").SigLipLoss()
    learned = [torch.tensor(x, dtype=torch.float64) for x in (scale, bias)]
    assert_same(
        lambda u, v, t, b: losses.siglip(u, v, scale=t, bias=b),
        lambda u, v, t, b: oracle(unit(u), unit(v), t, b),
        [*embeddings(), *learned],
    )


@pytest.mark.parametrize("y", [Y_BALANCED, Y_UNBALANCED], ids=["balanced", "unbalanced"])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
class TestSupervised:
    def test_sup_con_is_that_of_pytorch_metric_learning(self, y, temperature):
        oracle = needs("pytorch_metric_learning.losses", "pytorch-metric-learning").SupConLoss(temperature=temperature)
        assert_same(lambda z: losses.sup_con(z, y, temperature=temperature), lambda z: oracle(z, y), embeddings(1))

    @pytest.mark.parametrize("similarity", ["cosine", "arc_length"])
    def test_sincere_is_that_of_pytorch_metric_learning(self, y, temperature, similarity):
        pml = needs("pytorch_metric_learning.losses", "pytorch-metric-learning")
        options = {
            "temperature": temperature,
            "reducer": needs("pytorch_metric_learning.reducers", "").DoNothingReducer(),
        }
        if similarity == "arc_length":
            options["distance"] = _arc_length_distance()
        oracle = pml.NTXentLoss(**options)

        def mean_of_each_anchor(z):
            per_pair = oracle(z, y)["loss"]
            anchors = per_pair["indices"][0]
            means = [per_pair["losses"][anchors == i].mean() for i in anchors.unique()]
            return torch.stack(means).mean()

        ours = {"similarity": arc_length} if similarity == "arc_length" else {}
        assert_same(lambda z: losses.sincere(z, y, temperature=temperature, **ours), mean_of_each_anchor, embeddings(1))

    def test_eps_sup_info_nce_with_a_wide_margin_has_no_positive_in_its_denominator(self, y, temperature):
        (z,) = embeddings(1)
        s = unit(z) @ unit(z).T / temperature
        negatives = s.masked_fill(y[:, None] == y, -math.inf).logsumexp(dim=1)
        positives = (y[:, None] == y) & ~torch.eye(N, dtype=torch.bool)
        expected = torch.stack([(negatives[i] - s[i, positives[i]]).mean() for i in range(N)]).mean()
        observed = losses.eps_sup_info_nce(z, y, temperature=temperature, epsilon=100)
        assert observed.item() == pytest.approx(expected.item(), abs=1e-12)


def test_sup_con_leaves_out_lone_anchors_as_pytorch_metric_learning_does():
    module = needs("pytorch_metric_learning.losses", "pytorch-metric-learning")
    reducer = needs("pytorch_metric_learning.reducers", "pytorch-metric-learning").DoNothingReducer()
    oracle = module.SupConLoss(temperature=0.2, reducer=reducer)
    (z,) = embeddings(1)
    has_positive = torch.tensor([(c == Y_LONE).sum() > 1 for c in Y_LONE])
    expected = oracle(z, Y_LONE)["loss"]["losses"][has_positive].mean()
    assert losses.sup_con(z, Y_LONE, temperature=0.2).item() == pytest.approx(expected.item(), abs=1e-12)


def test_triplet_is_that_of_pytorch_metric_learning():
    pml = needs("pytorch_metric_learning.losses", "pytorch-metric-learning")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.reducers import MeanReducer

    oracle = pml.TripletMarginLoss(margin=0.3, distance=CosineSimilarity(), reducer=MeanReducer())
    assert_same(lambda z: losses.triplet(z, Y_UNBALANCED, margin=0.3), lambda z: oracle(z, Y_UNBALANCED), embeddings(1))


def test_batch_hard_is_the_triplet_loss_of_pytorch_metric_learning_on_mined_triplets():
    pml = needs("pytorch_metric_learning.losses", "pytorch-metric-learning")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.miners import BatchHardMiner
    from pytorch_metric_learning.reducers import MeanReducer

    oracle = pml.TripletMarginLoss(margin=0.3, distance=CosineSimilarity(), reducer=MeanReducer())
    miner = BatchHardMiner(distance=CosineSimilarity())
    assert_same(
        lambda z: losses.batch_hard(z, Y_LONE, margin=0.3),
        lambda z: oracle(z, Y_LONE, miner(z, Y_LONE)),
        embeddings(1),
    )


@pytest.mark.parametrize(("t", "alpha", "weight"), [(2, 2, 1), (3, 1, 0.5)])
def test_align_uniform_is_the_hypersphere_loss_of_lightly(t, alpha, weight):
    oracle = needs("lightly.loss.hypersphere_loss", "lightly").HypersphereLoss(t=t, lam=weight, alpha=alpha)
    assert_same(lambda u, v: losses.align_uniform(u, v, weight=weight, t=t, alpha=alpha), oracle, embeddings())


def _arc_length_distance():
    """Arc length as a distance object of pytorch-metric-learning, with its own guard."""
    distances = needs("pytorch_metric_learning.distances", "pytorch-metric-learning")

    class ArcLength(distances.CosineSimilarity):
        def compute_mat(self, query, reference):
            return 1 - torch.arccos(super().compute_mat(query, reference).clamp(-1 + 1e-15, 1 - 1e-15)) / math.pi

        def pairwise_distance(self, query, reference):
            return 1 - torch.arccos(super().pairwise_distance(query, reference)) / math.pi

    return ArcLength()
