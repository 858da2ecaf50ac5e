"""Imports read from source, the layers that docs/architecture.md draws, and what breaks them."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
#: Folders that nothing shipped may import.
OUTSIDE = ("reference", "tests", "benchmarks", "docs", "examples", "solvers")


def sources(folder, root=ROOT):
    """Return every Python file below a folder."""
    return sorted((root / folder).rglob("*.py"))


def module_name(path, root=ROOT):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree, module, is_package=False):
    """Yield (name, whether at the top level) of every import in a syntax tree.

    `from a import b` is a.b, which may be a module or a name in one; relative imports are resolved.
    """
    inside = {
        id(node)
        for f in ast.walk(tree)
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - 1 if is_package else node.level
                parts = module.split(".")
                base = ".".join([*parts[: len(parts) - up], *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "import_module",
            "importlib.import_module",
            "__import__",
        ):
            first = node.args[0]
            if isinstance(first, ast.Constant):
                names = [str(first.value)]
            else:  # an f-string: what it begins with
                names = [ast.unparse(first).removeprefix("f").strip("'\"").split(".{")[0]]
        else:
            continue
        for name in names:
            yield name, id(node) not in inside


def edges(files, root=ROOT, known=None):
    """Return {module: modules of the package that it imports}, at function level too.

    known : the modules that there are; by default those of the files.
    """
    known = {module_name(path, root) for path in files} if known is None else known
    found = {}
    for path in files:
        module = module_name(path, root)
        targets = set()
        for name, _ in imports(ast.parse(path.read_text()), module, path.stem == "__init__"):
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name and name != module:
                targets.add(name)
        found[module] = targets
    return found


def layers(text):
    """Return {package: {child: line}} as architecture.md lists them, lowest line first.

    The listing is a fenced block whose first word is `nmsolve`; a package's name is a line of its
    own, its layers are indented below it. `__init__` is the package's own file.
    """
    fenced = re.findall(r"^```text\n(.*?)^```", text, re.S | re.M)
    block = next(block for block in fenced if block.startswith("nmsolve"))
    found, package = {}, ""
    for line in block.splitlines():
        if not line.startswith(" "):
            package = line.strip()
            found[package] = {}
            number = 0
        elif line.strip():
            number += 1
            for name in line.split(","):
                assert name.strip() not in found[package], f"{package} lists {name.strip()} twice"
                found[package][name.strip()] = number
    return found


def upward(graph, drawn):
    """Return what imports from a layer above its own, and modules that no layer holds."""
    problems = []
    for module in graph:
        parts = module.split(".")
        packages = {m.rpartition(".")[0] for m in graph} | set(drawn)
        if module in packages:
            parts.append("__init__")
        for depth in range(1, len(parts)):
            package = ".".join(parts[:depth])
            if parts[depth] not in drawn.get(package, {}):
                problems.append(f"{package}.{parts[depth]} is in no layer of docs/architecture.md")
    if problems:
        return sorted(set(problems))
    for module, targets in graph.items():
        for target in targets:
            a, b = module.split("."), target.split(".")
            shared = 0
            while shared < min(len(a), len(b)) and a[shared] == b[shared]:
                shared += 1
            package = ".".join(a[:shared])
            ours = a[shared] if shared < len(a) else "__init__"
            theirs = b[shared] if shared < len(b) else "__init__"
            if drawn[package][theirs] > drawn[package][ours]:
                problems.append(f"{module} imports {target}, which lies above it")
    return problems


def circles(graph):
    """Return the sets of modules that import each other, however long the way."""
    order, low, stack, found = {}, {}, [], []

    def visit(module):
        order[module] = low[module] = len(order)
        stack.append(module)
        for target in graph.get(module, ()):
            if target not in order:
                visit(target)
            if target in stack:
                low[module] = min(low[module], low[target])
        if low[module] == order[module]:
            members = []
            while not members or members[-1] != module:
                members.append(stack.pop())
            if len(members) > 1:
                found.append(sorted(members))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def outside(files, root=ROOT):
    """Return imports of folders that are not shipped."""
    return [
        f"{module_name(path, root)} imports {name}"
        for path in files
        for name, _ in imports(ast.parse(path.read_text()), module_name(path, root))
        if name.split(".")[0] in OUTSIDE
    ]
