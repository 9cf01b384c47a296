"""A deck while it is made: stacks of slides, and how much goes on one."""

import re
from pathlib import Path

from companion.course import pieces
from companion.course.pieces import DISPLAY, Slide, text_of

# A slide has 1280 × 800 units of its own, whatever the screen. These are estimates, on the safe side; what is still too
# high or too wide is set smaller when the deck opens, down to the smallest size in the template.
LINES, LINE = 14, 68  # of text on a slide, and letters in a line
ANNOUNCES = re.compile(r":\s*</p>\s*$")
LEFT_OUT = re.compile(r"References|The claims of this notebook")


class Deck:
    """Stacks of slides, one a section: the first of a stack is its heading, the others stand below it."""

    def __init__(self, here: Path, decks: set[str]):
        self.stacks: list[list[Slide]] = []
        self.section = ""
        self.said = ""  # the sentence of the text just read that leads to what comes
        self.tables: list[Slide] = []  # of the last table of the section
        self.skipping = False
        self.here, self.decks = here, decks

    @property
    def last(self) -> Slide:
        return self.stacks[-1][-1]

    def html(self, source: str) -> str:
        return pieces.markdown(source, self.decks)

    def start(self, title: str) -> None:
        self.section, self.said, self.tables = title, "", []
        self.skipping = bool(LEFT_OUT.match(title))
        if not self.skipping:
            self.stacks.append([Slide(title, "opening" if not self.stacks else "text")])

    def below(self, kind: str, title: str = "") -> Slide:
        self.stacks[-1].append(Slide(title or self.section, kind))
        return self.last

    def finish(self) -> None:
        """Take away sentences that announce what is left to the notebook."""
        for stack in self.stacks:
            for slide, after in zip(stack, [*stack[1:], None], strict=True):
                shown = after is not None and after.kind in ("figure", "table", "code", "text")
                if slide.blocks and not shown and ANNOUNCES.search(slide.blocks[-1]):
                    slide.blocks.pop()

    def flow(self, *texts: str) -> None:
        """Add texts to the last slide, and go on below it when it is full."""
        for text in texts:
            formulas = len(DISPLAY.findall(text))
            plain = text_of(DISPLAY.sub("", text))
            lines = sum(-(-len(line) // LINE) for line in plain.split("\n")) + 0.3
            lines += formulas * 2.2 + 1.6 * text.count(r"\\")
            if (self.last.blocks and self.last.lines + lines > LINES) or self.last.kind in ("figure", "table", "code"):
                self.below("text")
            self.last.blocks.append(self.html(text))
            self.last.lines += lines
