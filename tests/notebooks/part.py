"""Run a part of a notebook: of its code, only the statements that make a name which is wanted."""

import ast
import contextlib
import io
import symtable


def names(node, context):
    return {x.id for x in ast.walk(node) if isinstance(x, ast.Name) and isinstance(x.ctx, context)}


def reads(statement):
    """Names of the module that a statement reads, be it in a function that it defines; ``x += 1`` reads x."""

    def inside(table):
        own = table.get_type() == "module"
        found = {name.get_name() for name in table.get_symbols() if name.is_referenced() and (own or name.is_global())}
        return found.union(*map(inside, table.get_children()))

    added = (node.target for node in ast.walk(statement) if isinstance(node, ast.AugAssign))
    source = ast.unparse(ast.fix_missing_locations(statement))
    return inside(symtable.symtable(source, "<notebook>", "exec")).union(
        *(names(target, ast.Store) for target in added)
    )


def bound(statement):
    """Names that a statement of a module makes, and whether it makes them for sure and from nothing."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}, True
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}, True
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return set().union(*(names(target, ast.Store) for target in targets)), True
    return names(statement, ast.Store), False


def changed(statement):
    """Names of what a statement changes in place: by an item, an attribute, or a method."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found |= names(node.value, ast.Load)
        elif isinstance(node, ast.AugAssign):
            found |= names(node.target, ast.Store)
        elif isinstance(node, ast.Expr) and isinstance(getattr(node.value, "func", None), ast.Attribute):
            found |= names(node.value.func.value, ast.Load)
    return found


def needed(statements, wanted):
    """Of the ``statements``, in their order, those on which the values of the names ``wanted`` at their end depend."""
    inside = {}  # of a function, what it reads when it is called, and not when it is defined
    for statement in statements:
        if isinstance(statement, ast.FunctionDef):
            inside[statement.name] = inside.get(statement.name, set()) | reads(statement)

    def with_insides(found):
        todo = list(found)
        while todo:
            for name in inside.get(todo.pop(), set()) - found:
                found.add(name)
                todo.append(name)
        return found

    imported = set().union(*(bound(s)[0] for s in statements if isinstance(s, ast.Import | ast.ImportFrom)))
    wanted, kept = with_insides(set(wanted)), []
    for statement in reversed(statements):
        makes, surely = bound(statement)
        if makes & wanted or (changed(statement) - imported) & wanted:
            kept.append(statement)
            if surely:
                wanted -= makes
            wanted |= with_insides(reads(statement))
    return kept[::-1]


def parsed(source):
    lines = [line for line in source.splitlines() if not line.startswith(("%", "!"))]
    return ast.parse("\n".join(lines)).body


def run(statements, namespace):
    for statement in statements:
        ast.fix_missing_locations(statement)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(statements, []), "<notebook>", "exec"), namespace)
    return printed.getvalue()
