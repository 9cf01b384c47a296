"""Formulas as MathML, which browsers show and screen readers speak by themselves: no script and no network."""

from docutils import nodes
from sphinx.util.math import get_node_equation_number

from companion.course.pieces import TAG, mathml


def inline(self, node):
    self.body.append(f'<span class="math">{mathml(node.astext(), display=False)}</span>')
    raise nodes.SkipNode


def block(self, node):
    tex = node.astext()
    tag = TAG.search(tex)
    number = tag[1] if tag else node.get("number") and get_node_equation_number(self, node)
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(mathml(tex, display=True))
    if number:
        self.body.append(f'<span class="eqno">({number})</span>')
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
