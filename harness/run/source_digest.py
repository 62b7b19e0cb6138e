"""Digest of the source that a program's numbers come from: its modules as Python understands them.

The modules are found by following imports from the program's own, wherever in a file they stand.
Nothing is imported, so that no torch is loaded. Followed are this project's packages and the
package that the program comes from. A text that names a module counts as an import, because
programs are started by name (`python -m testbed.switch.switch`).

Comments, docstrings, blank lines and layout are not part of the digest. C files beside the modules
are digested by their text without comments.
"""

import ast
import functools
import hashlib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tpi.errors import ConfigError

_OURS = frozenset({"tpi", "testbed", "baselines", "results", "harness"})
_STARTED = ("", ".__main__")  # what runs when a module or a package is started by its name
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")
_C_COMMENT = re.compile(
    r"""[ \t]*(?://[^\n]*|/\*.*?\*/)[ \t]*|("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class _Module:
    """What is known of a module from its text: digest, and names that may be modules."""

    digest: str
    imports: frozenset[str]
    texts: frozenset[str]


def source_digest(*modules: str) -> str:
    """SHA-256 over some modules and all that they import; raises ConfigError if one is missing."""
    total = hashlib.sha256()
    for name, file in sorted(source_files(*modules).items()):
        digest = _read(name, file).digest if file.suffix == ".py" else _c_digest(file)
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


def source_files(*modules: str) -> dict[str, Path]:
    """Its files by module, or by path for C files; raises ConfigError if a module is missing."""
    for name in modules:
        if _file_of(name) is None:
            raise ConfigError(f"source of {name}: there is no such module")
    followed = _OURS | {name.partition(".")[0] for name in modules}
    found: dict[str, Path] = {}
    seen: set[str] = set()
    todo = [each + end for each in modules for end in _STARTED]
    while todo:
        name = todo.pop()
        if name in seen or name.partition(".")[0] not in followed:
            continue
        seen.add(name)
        file = _file_of(name)
        if file is not None:
            found[name] = file
            module = _read(name, file)
            todo += [name.rpartition(".")[0], *module.imports]
            todo += [each + end for each in module.texts for end in _STARTED]
    return {**found, **_c_files(found)}


def _c_files(modules: dict[str, Path]) -> dict[str, Path]:
    return {
        f"{name}/{path.name}": path
        for name, file in modules.items()
        if file.name == "__init__.py"
        for suffix in ("c", "h")
        for path in file.parent.glob(f"*.{suffix}")
    }


def _file_of(module: str) -> Path | None:
    """The file of a module, or of a package's `__init__`; None if it is neither."""
    top, *rest = module.split(".")
    path = _origin(top)
    if path is not None and rest:
        path = path.parent.joinpath(*rest)
        files = (path.with_name(f"{path.name}.py"), path / "__init__.py")
        path = next((file for file in files if file.is_file()), None)
    return path if path is not None and path.is_file() else None


@functools.cache
def _origin(top: str) -> Path | None:
    """The file of a module outside packages, found and not imported; a package may lack it."""
    spec = importlib.util.find_spec(top)
    if spec is not None and spec.has_location and spec.origin:
        return Path(spec.origin)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(folders[0]) / "__init__.py" if folders else None


def _read(module: str, file: Path) -> _Module:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return _parse(_text(file), package)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@functools.cache  # by text, so that a file may change while we run
def _parse(text: str, package: str) -> _Module:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        _drop_docstring(node)
    imports: set[str] = set()
    texts: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(name, package)
            imports |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts |= {node.value} if _NAME.fullmatch(node.value) else set()
    written: list[str] = []
    _write(tree, written)
    digest = hashlib.sha256("".join(written).encode()).hexdigest()
    return _Module(digest, frozenset(imports), frozenset(texts))


def _drop_docstring(node: ast.AST) -> None:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
        del node.body[0]


def _write(node: object, out: list[str]) -> None:
    """Write a syntax tree as text. `ast.dump` writes other text in other versions of Python."""
    if isinstance(node, ast.AST):
        out.append(f"{type(node).__name__}(")
        for name in node._fields:
            value = getattr(node, name, None)
            if value is not None and value != []:
                out.append(f"{name}=")
                _write(value, out)
        out.append(")")
    elif isinstance(node, list):
        out.append("[")
        for each in node:
            _write(each, out)
        out.append("]")
    else:
        out.append(f"{node!r},")


def _c_digest(file: Path) -> str:
    return hashlib.sha256("\n".join(_c_lines(_text(file))).encode()).hexdigest()


def _c_lines(text: str) -> Iterable[str]:
    bare = _C_COMMENT.sub(lambda match: match[1] or " ", text)
    return filter(None, map(str.strip, bare.splitlines()))
