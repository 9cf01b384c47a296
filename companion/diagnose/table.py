"""A reading as rows of text, for the terminal and for the page."""

import textwrap
from typing import NamedTuple

from companion.diagnose.advice import advice
from companion.diagnose.reading import Reading
from companion.diagnose.sums import Similarities, Uniformity


class Row(NamedTuple):
    """One number."""

    name: str
    value: str
    meaning: str  #: what it can be compared with


def tables(r: Reading) -> dict[str, list[Row]]:
    """All numbers of a reading but the spectrum and the histogram, by section."""
    separation = f"yes, by {r.simplex - r.negative.mean:.3g}" if r.separated else "no"
    found = {
        "Similarities": [
            Row("positive pairs", _moments(r.positive), "mean ± std; 1 is perfectly aligned"),
            Row("negatives, across views", _moments(r.negative), f"-1/(n-1) = {r.simplex:.3g} is the simplex"),
            Row("… their variance", f"{r.negative.variance:.4g}", f"1/d = {1 / r.dimension:.3g} by chance"),
            Row("negatives within u", _moments(r.within_u), ""),
            Row("negatives within v", _moments(r.within_v), ""),
        ],
        "Alignment and uniformity": [
            Row("alignment", f"{r.alignment:.4f}", "α = 2; 0 is perfect, 4 the worst"),
            Row("uniformity of u", _uniformity(r.u.uniformity), f"t = 2; {r.uniformity_of_chance:.3f} by chance"),
            Row("uniformity of v", _uniformity(r.v.uniformity), _basis(r.v.uniformity)),
            Row("uniformity of both", _uniformity(r.both.uniformity), "u and v together"),
        ],
        "Dimensions": [
            Row("participation ratio", _three(r, "participation_ratio", ".1f"), f"u, v, both; d = {r.dimension}"),
            Row("… without the mean", _three(r, "centred_ratio", ".1f"), "the same of the covariances"),
            Row("effective rank", _three(r, "effective_rank", ".1f"), "u, v, both; of the second moments"),
            Row("99 % of the energy in", _three(r, "energy_dimensions", "d"), "singular values of u, v, both"),
            Row("length of the mean", _three(r, "mean_length", ".3f"), "u, v, both; 0 is centred, 1 a point"),
        ],
        "Between the views": [
            Row("modality gap", f"{r.gap:.4f}", "‖mean u - mean v‖, of 2 at most"),
            Row("its share", f"{r.gap_share:.1%}", "of the mean squared distance of partners"),
            Row("bound on positives", "none" if r.bound is None else _bound(r.bound), "Theorem 5.2, sharp"),
            Row("the same as printed", _bound(r.bound_printed), "Theorem 5.2, Eq. 7"),
            Row("excessive separation", separation, "mean negative below -1/(n-1)"),
        ],
    }
    if r.siglip:
        s = r.siglip
        rows = [
            Row("phase of the optimum", s.phase, f"t = {s.scale:g}, bias = {s.bias:g}, n = {s.n:,}"),
            Row("s_pos, s_neg there", f"{s.s_pos:.4f}, {s.s_neg:.4g}", "over free embeddings, d ≥ n"),
        ]
        if s.aligned_below is not None:
            ends = f"{s.aligned_below:.3f}, {s.antipodal_above:.3f}"
            rows.append(Row("phases end at a bias of", ends, "largest aligned, smallest antipodal one"))
        found["SigLIP"] = rows
    if r.classes:
        c = r.classes
        found[f"Variance of the negatives by class ({c.count:,})"] = [
            Row("same or different", _share(c.same_vs_different, c.total), "structure"),
            Row("among class pairs", _share(c.among_class_pairs, c.total), "structure"),
            Row("within class pairs", _share(c.within_class_pairs, c.total), "between instances"),
            Row("tolerance of u, v", f"{c.tolerance_u:.4f}, {c.tolerance_v:.4f}", "mean similarity within a class"),
        ]
    if r.target:
        t = r.target
        found[f"Against a training set of {t.n:,}"] = [
            Row("mean negative - target", f"{t.distance:.4g}", f"the target -1/(n-1) is {t.value:.3g}"),
            Row("VRNS", f"{t.vrns:.4g}", "variance + squared distance"),
        ]
    return found


def text(r: Reading) -> str:
    """Tables and advice for a terminal, at most 100 columns wide."""
    lines = [title(r)]
    for section, rows in tables(r).items():
        lines += ["", section]
        lines += [f"  {row.name:<25}{row.value:<33}{row.meaning}".rstrip() for row in rows]
    lines += ["", "What to look at"]
    for item in advice(r):
        for label, part in (
            ("- ", item.finding),
            ("  ", item.suggestion),
            ("  ", f"{item.notebook}, “{item.section}”"),
        ):
            lines += textwrap.wrap(part, 98, initial_indent=label, subsequent_indent="  ")
    return "\n".join([*lines, "", *textwrap.wrap(basis(r), 98)])


def title(r: Reading) -> str:
    """One line that says what was read."""
    return f"{r.pairs:,} pairs of embeddings in {r.dimension:,} dimensions"


def basis(r: Reading) -> str:
    """One sentence that says what is exact and what is a sample."""
    exact = "Means, variances, ranks and shares are exact sums over all pairs."
    if r.u.uniformity.exact:
        return f"{exact} So are the uniformity and the histograms."
    return (
        f"{exact} Uniformity and the histogram of the negatives rest on a random sample of {r.u.uniformity.pairs:,} "
        "pairs of instances; the brackets are 95 % intervals of what all pairs would give."
    )


def _moments(s: Similarities) -> str:
    return f"{s.mean:.4f} ± {s.std:.4f}"


def _uniformity(u: Uniformity) -> str:
    return f"{u.value:.4f}" if u.exact else f"{u.value:.4f} [{u.low:.4f}, {u.high:.4f}]"


def _basis(u: Uniformity) -> str:
    return "all pairs" if u.exact else f"a sample of {u.pairs:,} pairs"


def _three(r: Reading, field: str, form: str) -> str:
    return ", ".join(format(getattr(spread, field), form) for spread in (r.u, r.v, r.both))


def _bound(value: float) -> str:
    return f"{value:.4f}" if value < 1 else "1 (does not bind)"


def _share(part: float, total: float) -> str:
    return f"{part:.4g} ({part / total:.0%})" if total > 1e-15 else "0"  # less is rounding
