"""Which runs a notebook asks for: it is read, and of its code what leads to a training is executed, without training.

The rest of a notebook, its simulations and pictures, takes minutes, and asks for nothing.
"""

import ast
import contextlib
import io
import signal
import symtable
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

from companion.course.student import opened
from companion.errors import CompanionError, extra
from companion.ledger import Ledger
from companion.ledger.claims import VERDICTS
from companion.training.config import Config
from companion.training.planned import Plan, dry_run

with extra("course"):
    import matplotlib.pyplot
    from lightning_fabric import Fabric

TRAINERS = ("run", "sweep", "table", "table_of", "train")  # functions of companion.training that train
SECONDS = 10  # for one statement
CHANGE = (  # methods that change what they are called on
    "add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "reverse", "setdefault",
    "sort", "update",
)  # fmt: skip


@dataclass
class Statement:
    """A statement at the top level of a cell."""

    cell: int
    node: ast.stmt

    def __post_init__(self):
        enclosed = ast.unparse(_Enclosed().visit(ast.parse(ast.unparse(self.node))))
        top = symtable.symtable(enclosed, "<cell>", "exec")
        below, self.uses = [*top.get_children()], set()
        self.binds = {node.target.id for node in ast.walk(self.node) if isinstance(node, ast.NamedExpr)}
        for symbol in top.get_symbols():
            if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
                self.binds.add(symbol.get_name())
            if symbol.is_referenced():
                self.uses.add(symbol.get_name())
        while below:
            table = below.pop()
            below += table.get_children()
            self.uses |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        for loop in (node for node in ast.walk(self.node) if isinstance(node, ast.For)):  # it sets them before its use
            self.uses -= {n.id for n in ast.walk(loop.target) if isinstance(n, ast.Name)} - _names(loop.iter)
        self.changes = {name for node in ast.walk(self.node) for name in _changed(node)} & (self.uses | self.binds)

    @cached_property
    def defines(self) -> bool:
        """Whether it only gives something a name, and executes nothing of it."""
        return isinstance(self.node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)

    @cached_property
    def forgets(self) -> set[str]:
        """Names whose earlier value does not matter any more."""
        return self.binds - self.uses - self.changes if self.defines or isinstance(self.node, ast.Assign) else set()


class _Enclosed(ast.NodeTransformer):
    """Puts each comprehension into a function: from Python 3.12 on its variables count among those around it."""

    def visit(self, node: ast.AST) -> ast.AST:
        node = self.generic_visit(node)
        if not isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp):
            return node
        enclosed = ast.parse("(lambda: 0)()", mode="eval").body
        enclosed.func.body = node
        return enclosed


def _root(node: ast.AST) -> str:
    """The name that attributes are taken of, as ``a`` in ``a.b.c``; empty where it is no name."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _changed(node: ast.AST) -> set[str]:
    """The name whose value changes by ``name[…] = …``, ``name.x = …``, ``name += …`` or ``name.append(…)``."""
    if isinstance(node, ast.AugAssign):
        target = node.target
    elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
        target = node
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGE:
        target = node.func
    else:
        return set()
    while isinstance(target, ast.Subscript | ast.Attribute):
        target = target.value
    return {target.id} if isinstance(target, ast.Name) else set()


def statements(notebook: Path) -> list[Statement]:
    """Those of the code cells of a notebook, in their order.

    Raises:
        CompanionError: if it is no notebook that can be read, or a cell is not Python alone.
    """
    found = []
    for i, cell in enumerate(opened(notebook).cells):
        if cell.cell_type != "code":
            continue
        try:
            found += [Statement(i, node) for node in ast.parse(cell.source).body]
        except SyntaxError as error:
            raise CompanionError(
                f"{notebook.name}, cell {i}, is no plain Python ({error.msg}), and a dry run follows nothing else: "
                "leave DRY_RUN out, or commands with % and ! out of the notebook."
            ) from error
    return found


def leading_to_training(code: list[Statement]) -> list[tuple[Statement, bool]]:
    """Those that train, and those that these need, in their order: a backward slice, by names.

    Returns:
        Statements, and whether each trains.
    """
    imported = {}  # what the notebook calls it → its name
    for node in (node for s in code for node in ast.walk(s.node) if isinstance(node, ast.Import | ast.ImportFrom)):
        inside = getattr(node, "module", "") or ""
        for alias in node.names:
            if (inside or alias.name).startswith("companion"):
                imported[alias.asname or (alias.name if inside else alias.name.partition(".")[0])] = alias.name
    direct = {alias for alias, name in imported.items() if name in TRAINERS} | {x for x in TRAINERS if "*" in imported}
    functions = {s.node.name: s for s in code if isinstance(s.node, ast.FunctionDef | ast.ClassDef)}

    def with_functions(names: set[str]) -> set[str]:
        """These names, and those that the notebook's functions among them use in turn."""
        found, todo = set(), set(names)
        while todo:
            found.add(name := todo.pop())
            todo |= (functions[name].uses if name in functions else set()) - found
        return found

    def names_trainer(node: ast.AST) -> bool:
        return any(
            isinstance(part, ast.Attribute) and part.attr in TRAINERS and _root(part) in imported
            for part in ast.walk(node)
        )

    def hands_on(statement: Statement) -> bool:
        """Whether it gives another name to what trains, or makes an object whose methods do."""
        parts = list(ast.walk(statement.node))
        called = {id(part.func) for part in parts if isinstance(part, ast.Call)}
        later = [part for part in parts if isinstance(part, ast.Lambda)]
        handed = [part for part in parts if isinstance(part, ast.Name | ast.Attribute) and id(part) not in called]
        names = {part.id for part in handed if isinstance(part, ast.Name)}.union(*map(_names, later))
        made = {name for name, s in functions.items() if isinstance(s.node, ast.ClassDef)} & statement.uses
        named = [*later, *(part for part in handed if getattr(part, "attr", "") in TRAINERS)]
        return bool((names | made) & training) or any(map(names_trainer, named))

    training = direct | {
        name for name, s in functions.items() if names_trainer(s.node) or with_functions({name}) & direct
    }
    for statement in code:
        if not statement.defines and hands_on(statement):
            training |= statement.binds
    chosen, needed = [], set()
    for statement in reversed(code):
        uses = with_functions(statement.uses)
        trains = not statement.defines and bool(names_trainer(statement.node) or uses & training)
        if trains or (statement.binds | statement.changes) & needed:
            chosen.append((statement, trains))
            needed = (needed - statement.forgets) | uses
    return chosen[::-1]


def asked_for(
    notebook: Path, parameters: dict, numbers: Callable[[Config], dict[str, float]]
) -> tuple[Plan, dict[int, str]]:
    """Every run that a notebook asks for with these parameters, as far as that can be told without training.

    What fails, since a stand-in has no weights, is left out and the rest goes on. Nothing is filed in the ledger.

    Args:
        notebook: its path.
        parameters: values for names of its cell of parameters.
        numbers: the metrics that stand in for those of a run that is not in the store; what the notebook decides by
            them, it decides so.

    Returns:
        The plan, and for each cell in which a statement that trains could not be executed to its end, why.
    """
    names, cut_short = {"__name__": "__main__", "display": lambda *shown, **options: None}, {}
    with contextlib.ExitStack() as stack:
        plan = stack.enter_context(dry_run(numbers))
        stack.enter_context(patch("lightning_fabric.Fabric", _OnCpu))
        stack.enter_context(patch.object(Ledger, "check", lambda *claim, **values: VERDICTS[1]))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(matplotlib.rc_context({"backend": "Agg", "figure.max_open_warning": 0}))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        for statement, trains in leading_to_training(statements(notebook)):
            failures: list[Exception] = []
            names["__failed__"] = failures.append
            module = ast.fix_missing_locations(ast.Module([_going_on(statement.node)], []))
            try:
                with _at_most(SECONDS):
                    exec(compile(module, f"<cell {statement.cell}>", "exec"), names)
            except _TooLong:
                failures.append(TimeoutError(f"it took more than {SECONDS} s"))
            if failures and trains:
                cut_short[statement.cell] = f"{type(failures[0]).__name__}: {failures[0]}"
            names |= {name: value for name, value in parameters.items() if name in statement.binds}
    matplotlib.pyplot.close("all")
    return plan, cut_short


class _OnCpu(Fabric):
    """What a notebook takes for trainings of its own: none is done, so that no device is needed."""

    def __init__(self, *asked, **for_):
        super().__init__(accelerator="cpu", devices=1)


def _going_on(node: ast.stmt) -> ast.stmt:
    """The statement, and each in the blocks of a loop or a condition, made to report an exception and go on."""
    if isinstance(node, ast.If | ast.For | ast.While | ast.With):
        node.body = [_going_on(inner) for inner in node.body]
        if not isinstance(node, ast.With):
            node.orelse = [_going_on(inner) for inner in node.orelse]
    report = ast.parse("__failed__(__error__)").body
    handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), "__error__", report)
    return ast.Try([node], [handler], [], [])


class _TooLong(BaseException):
    """No exception that a notebook catches."""


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End what goes on inside after some time, with :class:`_TooLong`; in the main thread alone, which has signals."""

    def end(*signal):
        raise _TooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
