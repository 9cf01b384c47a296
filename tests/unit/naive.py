"""Every loss once more, as slow loops over Python floats: nothing here is shared with the package."""

import math


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def arc_length(a, b):
    return 1 - math.acos(max(-1.0, min(1.0, cosine(a, b)))) / math.pi


def euclidean(a, b):
    return -math.dist(a, b)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def softmax_loss(positive, candidates):
    """-log of the share of e^positive in the sum of e^candidate."""
    return -math.log(math.exp(positive) / sum(map(math.exp, candidates)))


def info_nce(u, v, s, temperature):
    n = len(u)
    return mean(
        softmax_loss(s(u[i], v[i]) / temperature, [s(u[i], v[j]) / temperature for j in range(n)]) for i in range(n)
    )


def moco(u, v, queue, s, temperature):
    values = []
    for a, b in zip(u, v, strict=True):
        positive = s(a, b) / temperature
        values.append(softmax_loss(positive, [positive] + [s(a, c) / temperature for c in queue]))
    return mean(values)


def clip(u, v, s, temperature):
    return (info_nce(u, v, s, temperature) + info_nce(v, u, s, temperature)) / 2


def views(u, v):
    """Each view with its twin and the views of other instances."""
    n = len(u)
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        yield i, u[i], v[i], [u[j] for j in rest], [v[j] for j in rest]
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        yield i, v[i], u[i], [v[j] for j in rest], [u[j] for j in rest]


def nt_xent(u, v, s, temperature, y=None):
    """With labels y the others of an anchor's class are left out."""
    values, n = [], len(u)
    for i, anchor, twin, within, across in views(u, v):
        rest = [j for j in range(n) if j != i] * 2
        kept = [o for j, o in zip(rest, [*within, *across], strict=True) if y is None or y[j] != y[i]]
        others = [twin, *kept]
        values.append(softmax_loss(s(anchor, twin) / temperature, [s(anchor, o) / temperature for o in others]))
    return mean(values)


def dcl(u, v, s, temperature, weights=None):
    values = []
    for i, anchor, twin, within, across in views(u, v):
        weight = 1 if weights is None else weights[i]
        negatives = sum(math.exp(s(anchor, o) / temperature) for o in within + across)
        values.append(-weight * s(anchor, twin) / temperature + math.log(negatives))
    return mean(values)


def dclw(u, v, s, temperature, sigma):
    exponentials = [math.exp(s(a, b) / sigma) for a, b in zip(u, v, strict=True)]
    return dcl(u, v, s, temperature, [2 - e / mean(exponentials) for e in exponentials])


def dhel(u, v, s, temperature, form):
    values = []
    for _, anchor, twin, within, _ in views(u, v):
        negatives = math.log(sum(math.exp(s(anchor, o) / temperature) for o in within))
        share = 1 if form == "lee" else 2
        values.append(share * negatives - s(anchor, twin) / temperature)
    return mean(values)


def hardest(u, v, s, i, keep):
    return sorted((s(u[i], v[j]) for j in range(len(v)) if j != i), reverse=True)[:keep]


def hard_contrastive(u, v, s, temperature, keep):
    values = []
    for i in range(len(u)):
        positive = s(u[i], v[i]) / temperature
        values.append(softmax_loss(positive, [positive] + [x / temperature for x in hardest(u, v, s, i, keep)]))
    return mean(values)


def simple(u, v, s, weight, keep=None):
    keep = len(u) - 1 if keep is None else keep
    return mean(-s(u[i], v[i]) + weight * sum(hardest(u, v, s, i, keep)) for i in range(len(u)))


def align_uniform(u, v, weight, alpha=2, t=2):
    """On unit vectors: mean ‖u_i − v_i‖^α + λ · half the sum of both views' log mean e^(−t‖z_i − z_j‖²), i < j."""
    unit = [[[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in view] for view in (u, v)]

    def distance(a, b):
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))

    aligned = sum(distance(a, b) ** alpha for a, b in zip(*unit, strict=True)) / len(u)
    potentials = [[math.exp(-t * distance(z[i], z[j]) ** 2) for i in range(len(z)) for j in range(i)] for z in unit]
    return aligned + weight * sum(math.log(sum(p) / len(p)) for p in potentials) / 2


def pairs(n):
    return [(i, j) for i in range(n) for j in range(n) if i != j]


def siglip(u, v, s, scale, bias, within_view):
    n, value = len(u), 0.0
    for i in range(n):
        for j in range(n):
            label = 1 if i == j else -1
            value -= math.log(1 / (1 + math.exp(-label * (scale * s(u[i], v[j]) + bias)))) / n
    if within_view:
        for i, j in pairs(n):
            for z in (u, v):
                value += math.log(1 + math.exp(scale * s(z[i], z[j]) + bias)) / (2 * n)
    return value


def spectral(u, v, s, within_view):
    n = len(u)
    value = mean(s(u[i], v[j]) ** 2 for i, j in pairs(n)) - mean(s(u[i], v[i]) for i in range(n))
    if within_view:
        value += mean((s(u[i], u[j]) ** 2 + s(v[i], v[j]) ** 2) / 2 for i, j in pairs(n))
    return value


def vrns(u, v, s, n):
    return mean((s(u[i], v[j]) + 1 / (n - 1)) ** 2 for i, j in pairs(len(u)))


def vrns_parts(u, v, s, n):
    negatives = [s(u[i], v[j]) for i, j in pairs(len(u))]
    center = mean(negatives)
    return mean((x - center) ** 2 for x in negatives), (center + 1 / (n - 1)) ** 2


def unit(z):
    return [[x / math.sqrt(dot(row, row)) for x in row] for row in z]


def align(u, v, alpha):
    return mean(math.dist(a, b) ** alpha for a, b in zip(unit(u), unit(v), strict=True))


def uniform(z, t):
    z = unit(z)
    return math.log(mean(math.exp(-t * math.dist(z[i], z[j]) ** 2) for i in range(len(z)) for j in range(i)))


def by_anchor(z, y):
    """Each anchor with its positives and its negatives."""
    for i in range(len(z)):
        positives = [j for j in range(len(z)) if j != i and y[j] == y[i]]
        yield i, positives, [j for j in range(len(z)) if y[j] != y[i]]


def sup_con(z, y, s, temperature):
    values = []
    for i, positives, negatives in by_anchor(z, y):
        candidates = [s(z[i], z[j]) / temperature for j in positives + negatives]
        if positives:
            values.append(mean(softmax_loss(s(z[i], z[j]) / temperature, candidates) for j in positives))
    return mean(values)


def eps_sup_info_nce(z, y, s, temperature, epsilon):
    values = []
    for i, positives, negatives in by_anchor(z, y):
        others = sum(math.exp(s(z[i], z[j]) / temperature) for j in negatives)
        logits = [s(z[i], z[j]) / temperature for j in positives]
        if positives:
            values.append(mean(-math.log(math.exp(x) / (math.exp(x - epsilon) + others)) for x in logits))
    return mean(values)


def contrastive_margin(z, y, s, margin):
    return mean(-s(z[i], z[j]) if y[i] == y[j] else max(0.0, s(z[i], z[j]) - margin) for i, j in pairs(len(z)))


def triplet(z, y, s, margin):
    return mean(
        max(0.0, s(z[i], z[k]) - s(z[i], z[j]) + margin)
        for i, positives, negatives in by_anchor(z, y)
        for j in positives
        for k in negatives
    )


def lifted(z, y, s, margin):
    values = []
    for i, positives, negatives in by_anchor(z, y):
        for j in positives:
            hardest = max(max(s(z[i], z[k]) for k in negatives), max(s(z[j], z[k]) for k in negatives))
            values.append(max(0.0, hardest - s(z[i], z[j]) + margin))
    return mean(values)


def batch_hard(z, y, s, margin):
    values = []
    for i, positives, negatives in by_anchor(z, y):
        if positives and negatives:
            least, most = min(s(z[i], z[j]) for j in positives), max(s(z[i], z[k]) for k in negatives)
            values.append(max(0.0, most - least + margin))
    return mean(values)
