"""Formulas as MathML, which browsers show and screen readers speak by themselves: no script and no network."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util.math import get_node_equation_number

TAG = re.compile(r"\\tag\{([^}]*)\}")


def inline(self, node):
    self.body.append(f'<span class="math">{convert(node.astext())}</span>')
    raise nodes.SkipNode


def block(self, node):
    tex = node.astext()
    tag = TAG.search(tex)
    number = tag[1] if tag else node.get("number") and get_node_equation_number(self, node)
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(convert(TAG.sub("", tex), display="block"))
    if number:
        self.body.append(f'<span class="eqno">({number})</span>')
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
