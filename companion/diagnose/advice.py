"""What a reading suggests: findings by thresholds, what the theory says to try next, and where it is explained."""

import math
from typing import NamedTuple

from companion.diagnose.reading import Reading

# Thresholds. None of them is a law: each marks where a number is far enough from what the theory calls ideal that a
# reader should look. They are compared with numbers that the table prints, so anyone can judge otherwise.
COLLAPSED = 0.99  # mean similarity of unrelated embeddings: angles of 8° and less between any two
CONE = 0.1  # the same for a cone: ‖mean‖ of 0.32, where chance gives 0 and the simplex -1/(n-1)
CEILING = 0.99  # largest mean positive that Theorem 5.2 (sharp) allows; nearer to 1 than this the loss is 8° at most
GAP_SHARE, GAP = 0.5, 0.1  # one common offset makes up half of the positives' squared distance, and is visible at all
SCATTER = 2.0  # std of the negatives against 1/√min(d, n-1), what evenly spread embeddings have: 4 times the variance
ENERGY_SHARE = 0.5  # of min(d, n) dimensions: fewer hold 99 % of the energy
WEAK = 0.5  # mean positive similarity: pairs 60° apart
UNRELATED = 3.0  # standard errors by which positives should at least beat negatives
CLASS_SHARE = 0.5  # of the negatives' variance: structure between classes outweighs the rest


class Advice(NamedTuple):
    """One finding, from the numbers of a reading."""

    finding: str  #: what is seen, with the numbers
    suggestion: str  #: what the theory says to try next
    notebook: str  #: path in the project of the notebook that explains it
    section: str  #: its heading there


NOTEBOOK_00 = "notebooks/00_start_here.ipynb"
NOTEBOOK_07 = "notebooks/07_full_batch_misalignment.ipynb"
NOTEBOOK_08 = "notebooks/08_small_batch_variance.ipynb"
NOTEBOOK_09 = "notebooks/09_auxiliary_loss.ipynb"


def advice(reading: Reading) -> list[Advice]:
    """Findings about a reading, the gravest first; if no threshold is crossed, one entry that says so.

    They are statements about similarities. Whether a representation is of use, only a task can tell.

    Args:
        reading: from :func:`companion.diagnose.diagnose`.

    Returns:
        At least one :class:`Advice`.
    """
    if reading.within_u.mean > COLLAPSED and reading.within_v.mean > COLLAPSED and reading.negative.mean > COLLAPSED:
        return [_collapsed(reading)]  # whatever else is seen follows from it
    checks = (_unrelated, _separated, _gap, _siglip, _cone, _dimensions, _scatter, _weak)
    return [found for found in (check(reading) for check in checks) if found] or [_nothing(reading)]


def _collapsed(r: Reading) -> Advice:
    return Advice(
        f"The embeddings have collapsed: two unrelated ones have a mean similarity of {r.negative.mean:.4f}.",
        "Alignment alone is content with a single point; what holds embeddings apart are negatives. Check that the "
        "loss has them, that its temperature is not so high that they weigh nothing, and that the last layer does "
        "not add a large constant to every embedding.",
        NOTEBOOK_00,
        "The idea",
    )


def _unrelated(r: Reading) -> Advice | None:
    lead, error = r.positive.mean - r.negative.mean, r.positive.std / math.sqrt(r.pairs)
    if lead > UNRELATED * error:
        return None
    return Advice(
        f"Positive pairs are no more alike than negative ones: {r.positive.mean:.4f} against {r.negative.mean:.4f}, "
        f"a lead of {lead:.4f} with a standard error of {error:.4f}.",
        "Check first that row i of u and row i of v belong together and in one order (a shuffling loader is the usual "
        "cause). If they do, the network has not learnt the pairing, or its optimum forbids it: see the bound.",
        NOTEBOOK_08,
        "What is measured",
    )


def _separated(r: Reading) -> Advice | None:
    if r.bound is None or r.bound >= CEILING:
        return None
    return Advice(
        f"Excessive separation: the mean negative, {r.negative.mean:.4f}, lies below -1/(n-1) = {r.simplex:.4f}, so no "
        f"encoder could have a mean positive above {r.bound:.4f} (sharp bound; {r.bound_printed:.4f} as printed, "
        f"Eq. 7). Measured: {r.positive.mean:.4f}.",
        "Add within-view negatives (c₂ = 1, as NT-Xent has): with them the optimum is aligned at every scale and bias "
        "(Theorem 5.1). For SigLIP a lower bias also leads out of the separated phase. The positives need not rise at "
        "once: the bound only stops to forbid it.",
        NOTEBOOK_07,
        "Theorem 5.2: what negatives cost the positives",
    )


def _gap(r: Reading) -> Advice | None:
    if r.gap < GAP or r.gap_share < GAP_SHARE:
        return None
    return Advice(
        f"Modality gap: the means of the two views lie {r.gap:.3f} apart, and that one offset makes up "
        f"{r.gap_share:.0%} of the mean squared distance of partners.",
        "Within-view negatives take away what the loss gains by a gap; so does one network, or one head, for both "
        "views. To see what the gap costs, subtract each view's own mean and read the embeddings again.",
        NOTEBOOK_07,
        "Excessive separation looks like a modality gap",
    )


def _siglip(r: Reading) -> Advice | None:
    if r.siglip is None or r.siglip.phase == "aligned":
        return None
    s = r.siglip
    return Advice(
        f"At scale {s.scale:g} and bias {s.bias:g} the optimum of SigLIP over {s.n:,} instances is {s.phase}: "
        f"s_pos = {s.s_pos:.4f} and s_neg = {s.s_neg:.4f} there, if d ≥ n.",
        f"At this scale the aligned phase needs a bias of {s.aligned_below:.3f} or less, and the more instances the "
        "lower; or add within-view negatives. This speaks of fixed scale and bias: training moves both, and a small "
        "loss is then no proof of alignment.",
        NOTEBOOK_07,
        "Theorem 5.3: who separates too far",
    )


def _cone(r: Reading) -> Advice | None:
    if r.negative.mean <= CONE:
        return None
    target = f"-1/(n-1) = {r.target.value:.2g} of the training set" if r.target else f"-1/(n-1) = {r.simplex:.2g}"
    return Advice(
        f"The embeddings lie in a cone: the mean negative is {r.negative.mean:.4f}, where the full batch would have "
        f"{target}; the mean embeddings have length {r.u.mean_length:.3f} and {r.v.mean_length:.3f}.",
        "A sharply peaked softmax looks at the nearest negatives alone and can leave such a cone: try a higher "
        "temperature, or VRNS, which penalises the squared distance of the mean from -1/(n-1) besides the variance. "
        "Features behind a ReLU are never negative and lie in a cone before any training: of those, subtract the mean, "
        "or read the projector's output.",
        NOTEBOOK_09,
        "Accuracy against temperature (Figure 3)",
    )


def _dimensions(r: Reading) -> Advice | None:
    possible = min(r.dimension, r.pairs)
    used = min(r.u.energy_dimensions, r.v.energy_dimensions)
    if used >= ENERGY_SHARE * possible:
        return None
    return Advice(
        f"Dimensional collapse: {used} of {possible} possible dimensions carry 99 % of the energy (participation ratio "
        f"{r.u.participation_ratio:.1f} and {r.v.participation_ratio:.1f}). The mean alone has "
        f"{r.u.mean_length**2:.0%} and {r.v.mean_length**2:.0%} of it; without the mean the ratio is "
        f"{r.u.centred_ratio:.1f} and {r.v.centred_ratio:.1f}.",
        "The participation ratio is 1/E[s²], so what lowers the mean square of the similarities raises it: larger "
        "batches, or VRNS. Read the encoder's output as well as the projector's; a projector may give up dimensions "
        "that the features keep. Labels with few classes can be the reason too.",
        NOTEBOOK_08,
        "On a ResNet-18",
    )


def _scatter(r: Reading) -> Advice | None:
    even = 1 / math.sqrt(min(r.dimension, r.pairs - 1))
    if r.negative.std <= SCATTER * even:
        return None
    finding = (
        f"The negatives scatter: their standard deviation is {r.negative.std:.4f} (variance "
        f"{r.negative.variance:.4f}), where embeddings spread evenly over the dimensions would have about {even:.4f}."
    )
    if r.classes and r.classes.same_vs_different + r.classes.among_class_pairs > CLASS_SHARE * r.classes.total:
        share = (r.classes.same_vs_different + r.classes.among_class_pairs) / r.classes.total
        return Advice(
            f"{finding} {share:.0%} of the variance is structure between the classes given.",
            "That is what a representation should have. VRNS cannot tell it from scatter and would remove part of it, "
            "so look at a downstream score before and after, not at the variance.",
            NOTEBOOK_09,
            "The caveat: which variance does it remove?",
        )
    return Advice(
        finding,
        "Mini-batches leave scatter, since instances that never meet are not told apart (Theorem 5.5): try a larger "
        "batch at an equal number of steps, or VRNS. Part of it may be class structure, which should stay: with labels "
        "this page splits the variance.",
        NOTEBOOK_08,
        "The idea",
    )


def _weak(r: Reading) -> Advice | None:
    free = r.bound is None or r.bound >= CEILING  # else the bound has said it already
    if r.positive.mean >= WEAK or not free:
        return None
    return Advice(
        f"Positive pairs are weakly aligned, {r.positive.mean:.4f} on average, and no bound forbids more.",
        "What the bound leaves is how differently the two views of an instance lie from instance to instance: train "
        "longer, or check that the augmentation leaves what identifies an instance. With VRNS, a smaller weight: it "
        "spreads negatives at the positives' expense.",
        NOTEBOOK_07,
        "On real images",
    )


def _nothing(r: Reading) -> Advice:
    return Advice(
        f"Nothing stands out: no threshold is crossed. Positives {r.positive.mean:.4f}, negatives "
        f"{r.negative.mean:.4f} ± {r.negative.std:.4f}.",
        "That is no proof of a good representation: similarities do not tell what embeddings are of use for. Probe "
        "them on a task with labels.",
        NOTEBOOK_00,
        "Is the network any good?",
    )
