"""Measures how easy the package is to find one's way in: files, circles, probes, words, and files that journeys pass.

python -m scripts.house [--root CHECKOUT] [--journeys] [--out FILE.json]
python -m scripts.house --journeys [--before FILE.json] --table docs/results/house.json

The figures are a thermometer and not an aim: a merge that makes a file harder to read is a fault. With `--root`, the
same is measured of another checkout, so that two versions can be laid side by side. Journeys run the command line of
that checkout in a process of its own, and count the files of which a function was called, and how often the file
changed from one call to the next; what modules call while they are imported does not count.
"""

import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CORE = ("models", "nn", "decoding", "engines", "runtime", "streaming")
GLOSSARY = {
    "guess": r"guess",
    "Rules, Rows": r"(?-i:^Rules$|RowsSoFar|^Rows$)",  # the rows of tables and tensors are standard
    "seat, stranger, nudge": r"^_?seats?$|stranger|nudge",
    "companions, foreign": r"companion|foreign",
    "lesson, told, tell": r"lesson|^_?tells$|(^|_)told(_|$)|^_?tell_",  # tell() is a method of Python's files
    "judge, weigh": r"judge|^_?weigh$",
    "worth_dropping, exchanged, beside": r"worth_dropping|exchanged|_beside|^beside$|some_parts_rest",
    "place": r"(^|_)places?(_|$)",
    "found": r"^found$",
    "Needs": r"(?-i:Needs$)",
    "Supply": r"^Supply$",
}
"""Words that the field has a standard term for, as patterns of names; upper and lower case are one."""
SERVICE_GLOSSARY = {"gate": r"^gate$"}
"""The same in the service alone, where it was a limiter; a gate of a layer or a loss is the standard term."""
PROSE = {
    "guess": r"guess",
    "seat, stranger, nudge": r"\bseats?\b|stranger|nudge",
    "companions, foreign": r"companion|foreign",
    "lesson, told": r"\blessons?\b|\btold\b",
    "judge": r"\bjudg",
    "place": r"\bplaces\b",
    "room of the package": r"\b(audio|units|service|core)('s)? room\b|\broom by room\b|\brooms import",
}
"""The same in texts: docstrings, comments, messages, tables, pages of the documentation."""
ORDINARY = (
    r"\bguessing\b",  # the guard's reason for a text of low probability
    r"easily guessed",  # keys
    r"<foreign|/?foreign>",  # tags of Fisher's transcripts
    r"foreign, uncertain|uncertain, foreign",  # marks of IWSLT's
    r"\btold (apart|from|otherwise)\b",
    r"\bin_place\b",
    r"\bin place\b|\btakes? the place of\b",
    r"in earlier versions `guesses`|`judged`",  # the documentation of former names
    r"\b_PLACE_FORMS\b|\b_regular_place\b|\bdistance_place\b",  # that one can travel to
)
"""Phrases in which a word of the old vocabulary has its ordinary meaning, or the one of somebody else's format."""
TEXTS = {
    "benchmarks and scripts": ("benchmarks/**/*.py", "scripts/[!h]*.py"),  # this file has all of the words
    "native sources": ("src/sprachbund/*/native/*", "scripts/*.cpp"),
    "page of the service": ("src/sprachbund/serving/**/*.js",),
    "documentation": ("README.md", "docs/*.md", "src/sprachbund/**/README.md"),
    "results": ("benchmarks/**/*.json", "docs/results/**/*.json"),
}
"""What is read beside the package, as patterns of paths."""


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    by_name = {}
    for path in sorted((root / "src" / "sprachbund").rglob("*.py")):
        parts = path.relative_to(root / "src").with_suffix("").parts
        by_name[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return by_name


@cache
def parsed(text: str) -> ast.Module:
    """The tree of a Python file."""
    return ast.parse(text)


@cache
def nodes_of(tree: ast.Module) -> list[ast.AST]:
    """Every node of a tree, which many figures go through."""
    return [*ast.walk(tree)]


def imports(known: dict[str, Path], trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module to the modules of the package that it imports, at its top or anywhere else."""
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, tree in trees.items():
        package = name if known[name].name == "__init__.py" else name.rpartition(".")[0]
        for node in nodes_of(tree):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names if alias.name in known}
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    target = f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base
                    if target in known and target != name:
                        graph[name].add(target)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or by way of others (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = []
            while not group or group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    sys.setrecursionlimit(10_000)
    for name in graph:
        if name not in index:
            visit(name)
    return groups


SETTINGS = ("config", "generation", "generation_config", "tokenizer")
"""Names of configurations and tokenizers, which `optional_setting` may read by name; anything else is a module."""


def settings_read(trees: dict[str, ast.Module]) -> list[str]:
    """Where an optional value of a configuration or a tokenizer is read by name, which is no probe of an ability."""
    return [one for one, is_setting in _optional_settings(trees) if is_setting]


def _optional_settings(trees: dict[str, ast.Module]) -> Iterator[tuple[str, bool]]:
    """Calls of `optional_setting`, and whether each is of settings."""
    for name, tree in trees.items():
        for node in nodes_of(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("optional_setting"):
                asked = ast.unparse(node.args[0])
                yield f"{name}:{node.lineno} {ast.unparse(node)}", asked.rpartition(".")[2] in SETTINGS


def probes(trees: dict[str, ast.Module]) -> list[str]:
    """Where a package of the core asks an object by name what it can do, or exchanges its class."""
    calls = [one for one, is_setting in _optional_settings(trees) if not is_setting]
    for name, tree in trees.items():
        if name.split(".")[1:2] and name.split(".")[1] not in CORE:
            continue
        for node in nodes_of(tree):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if called in ("getattr", "hasattr") and isinstance(node, ast.Call):
                asked = node.args[1]
                if isinstance(asked, ast.Constant):
                    calls.append(f"{name}:{node.lineno} {called} {asked.value}")
            if isinstance(node, ast.Assign):
                exchanged = [
                    t for t in node.targets if isinstance(t, ast.Attribute) and t.attr == "__class__"
                ]
                calls += [f"{name}:{node.lineno} __class__"] * len(exchanged)
    return calls


def undocumented(trees: dict[str, ast.Module]) -> list[str]:
    """Public functions with three or more parameters that are not documented.

    The docstring documents them; or the annotation does, where a parameter is an option of the command line. A function
    inside of another, or in a class with a leading underscore, is not public.
    """
    missing = []
    aliases = {
        target.id
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and "Annotated[" in ast.unparse(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def is_option(argument: ast.arg) -> bool:
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        return annotation.startswith("Annotated[") or annotation in {*aliases, "typer.Context"}

    def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from public(node.body)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                yield node

    for name, tree in trees.items():
        for node in public(tree.body):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            named = [a.arg for a in arguments if a.arg not in ("self", "cls")]
            named = [] if all(is_option(a) for a in arguments if a.arg in named) else named
            overloaded = any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)
            if len(named) < 3 or overloaded:
                continue
            doc = ast.get_docstring(node) or ""
            if not ("Args:" in doc or "rguments" in doc or all(re.search(rf"\b{n}\b", doc) for n in named)):
                missing.append(f"{name}.{node.name}")
    return missing


def identifiers(tree: ast.Module) -> Iterator[str]:
    """Names that are used, of arguments and attributes, and of what is defined."""
    for node in nodes_of(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name


def strings(text: str) -> Iterator[str]:
    """String constants, docstrings among them, and comments of a Python file, but for former names that are read.

    These stand in what is called `former`, in calls of `sprachbund.util.options.renamed`, and in `Option(old=...)`.
    """
    nodes = nodes_of(parsed(text))
    former = {id(inner) for node in nodes if _has_former_names(node) for inner in ast.walk(node)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in former:
            yield node.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def _has_former_names(node: ast.AST) -> bool:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]):
            return "former" in name.lower()
        case ast.Call(func=ast.Name(id="renamed")) | ast.keyword(arg="old"):
            return True
    return False


def labels(value: Any) -> Iterator[str]:
    """Keys and texts of JSON."""
    match value:
        case dict():
            for key, inner in value.items():
                yield key
                yield from labels(inner)
        case list():
            for inner in value:
                yield from labels(inner)
        case str():
            yield value


_ORDINARY = re.compile("|".join(ORDINARY))


@cache
def ours(text: str) -> str:
    """A text or name without the phrases of `ORDINARY`."""
    return _ORDINARY.sub("", text)


def old_words(texts: Iterable[str]) -> Iterator[str]:
    """Every word of the old vocabulary in some texts, with what stands around it; a single word is taken as a name."""
    for text in texts:
        yield from _old_words_of(text)


@cache  # names come again and again
def _old_words_of(text: str) -> list[str]:
    text = ours(text)
    patterns = GLOSSARY if re.fullmatch(r"\w+", text) else PROSE
    return [
        text[max(0, match.start() - 30) : match.end() + 30]
        for pattern in patterns.values()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]


def texts_of(path: Path) -> Iterable[str]:
    """What `old_words` reads of a file: names, strings and comments; keys and labels; or the text."""
    text = path.read_text(encoding="utf-8")
    match path.suffix:
        case ".py":
            return [*strings(text), *identifiers(parsed(text))]
        case ".json":
            return dict.fromkeys(labels(json.loads(text)))  # each once: rows of a table have the same
        case ".md":
            return [text]
        case _:  # C++ and JavaScript
            prose = r"//.*|/\*(?s:.*?)\*/|\"(?:[^\"\\\n]|\\.)*\""
            return [*re.findall(prose, text), *re.findall(r"\w+", re.sub(prose, "", text))]


def measure(root: Path) -> dict[str, Any]:
    """All figures of a checkout that reading alone gives."""
    known = modules(root)
    texts = {name: path.read_text(encoding="utf-8") for name, path in known.items()}
    trees = {name: parsed(text) for name, text in texts.items()}
    graph = imports(known, trees)
    importers: dict[str, set[str]] = defaultdict(set)
    for name, targets in graph.items():
        for target in targets:
            importers[target].add(name)
    lines = [line for text in texts.values() for line in text.splitlines()]
    names = Counter(name for tree in trees.values() for name in identifiers(tree))
    serving = (tree for module, tree in trees.items() if module.startswith("sprachbund.serving"))
    service_names = Counter(name for tree in serving for name in identifiers(tree))
    classes: dict[str, int] = defaultdict(int)
    for tree in trees.values():
        for node in nodes_of(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name] += 1
    beside = {
        kind: [path for pattern in patterns for path in sorted(root.glob(pattern))]
        for kind, patterns in TEXTS.items()
    }
    figures = {
        "files": len(known),
        "lines": len(lines),
        "comment_lines": sum(line.lstrip().startswith("#") for line in lines),
        "single_importer_files": sorted(n for n, who in importers.items() if len(who) == 1),
        "circles": circles(graph),
        "core_probes": probes(trees),
        "settings_read_by_name": settings_read(trees),  # left out of the probes
        "undocumented_functions": undocumented(trees),
        "classes_defined_twice": sorted(n for n, count in classes.items() if count > 1),
        "glossary": {
            word: sum(n for name, n in named.items() if re.search(pattern, ours(name), re.IGNORECASE))
            for glossary, named in ((GLOSSARY, names), (SERVICE_GLOSSARY, service_names))
            for word, pattern in glossary.items()
        },
        "old_words": {
            "package": [text for file in texts.values() for text in old_words(strings(file))],
            **{
                kind: [text for path in paths for text in old_words(texts_of(path))]
                for kind, paths in beside.items()
            },
        },
    }
    for kept in (parsed, nodes_of):
        kept.cache_clear()  # a million nodes would slow every search for garbage of the process that asked
    return figures


_TRACED = """
import inspect, sys, threading
from pathlib import Path
import json
PACKAGE, OUT = sys.argv[1], sys.argv[2]
calls, last, changes, on = {}, [""], [0], [True]
imports = threading.local()
def profile(frame, event, argument):
    if event not in ("call", "return"):
        return
    if frame.f_code.co_name == "<module>":  # what a module calls while it is imported is no part of a journey
        imports.depth = getattr(imports, "depth", 0) + (1 if event == "call" else -1)
    if event == "return" or not on[0] or getattr(imports, "depth", 0) > 0:
        return
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return  # bodies of classes are no calls of functions
    if (name := frame.f_code.co_filename).startswith(PACKAGE):
        calls[name] = calls.get(name, 0) + 1
        if name != last[0]:
            last[0] = name
            changes[0] += 1
def begin():
    threading.setprofile(profile)
    sys.setprofile(profile)
def end():
    sys.setprofile(None)
    files = sorted(name[len(PACKAGE) + 1:] for name in calls)
    Path(OUT).write_text(json.dumps({"files": files, "changes": changes[0]}))
"""
_COMMAND = (
    _TRACED + "from sprachbund.cli import main\nbegin()\ncode = main(sys.argv[3:])\nend()\nsys.exit(code)\n"
)
_STEP = (
    _TRACED
    + """
from torch.optim.optimizer import register_optimizer_step_post_hook
from sprachbund.cli import main
steps = [0]
on[0] = False
def stepped(optimizer, arguments, keywords):
    steps[0] += 1
    on[0] = steps[0] == 2  # the calls between the second step and the third
register_optimizer_step_post_hook(stepped)
begin()
code = main(sys.argv[3:])
end()
sys.exit(code)
"""
)
_REQUEST = (
    _TRACED
    + """
from starlette.testclient import TestClient
from sprachbund.serving.app import create_app
on[0] = False
begin()
with TestClient(create_app(), base_url="http://127.0.0.1") as client:
    for turn in range(2):
        on[0] = turn == 1  # the first request loads what the second does not need to
        with open(sys.argv[3], "rb") as sound:
            given = {"model": "bundled", "target_language": "de"}
            answer = client.post("/v1/audio/translations", files={"file": ("talk.wav", sound)}, data=given)
        assert answer.status_code == 200, answer.text
    on[0] = False
end()
"""
)
_RECIPE = """languages = ["en", "de"]
vocabulary_size = 150
[[train]]
path = "{corpus}/train"
[[dev]]
path = "{corpus}/dev"
[model]
width = 16
num_heads = 2
num_encoder_layers = 2
num_decoder_layers = 1
feed_forward_width = 16
[training]
steps = 4
batch_s = 20
precision = "no"
num_workers = 0
[card]
name = "small"
"""


def journeys(root: Path) -> dict[str, dict[str, Any]]:
    """Files passed by a recording translated, one captioned live, a training step, a request, an evaluation."""
    package, talk = root / "src" / "sprachbund", ROOT / "examples" / "recordings" / "en.wav"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus, recipe, out = folder / "corpus", folder / "small.toml", folder / "out.json"

        def run(program: str, *arguments: str) -> dict[str, Any]:
            command = [sys.executable, "-c", program, str(package), str(out), *arguments]
            environment = {"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin", "HOME": name}
            ran = subprocess.run(
                command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600
            )
            if ran.returncode:
                raise SystemExit(f"{' '.join(arguments)} failed: {ran.stderr[-600:]}")
            passed: dict[str, Any] = json.loads(out.read_text())
            return {"count": len(passed["files"]), **passed}

        run(
            _COMMAND,
            "data",
            "make",
            "phrasebook",
            "--out",
            str(corpus),
            "--edition",
            "tiny",
            "--utterances",
            "48",
            "--heldout",
            "4",
        )
        recipe.write_text(_RECIPE.format(corpus=corpus))
        # The engine is named, since the first start with `auto` makes a trial of all, which is no part of a journey.
        engine = ("--engine", "torch")
        return {
            "translate": run(_COMMAND, "translate", str(talk), "--to", "de", *engine),
            "listen": run(_COMMAND, "listen", str(talk), "--to", "de", *engine),
            "training step": run(_STEP, "train", str(recipe), "--out", str(folder / "run")),
            "request": run(_REQUEST, str(talk)),
            "evaluate": run(
                _COMMAND,
                "evaluate",
                str(corpus / "dev"),
                "--limit",
                "4",
                "--out",
                str(folder / "eval"),
                *engine,
            ),
        }


def figures(measured: dict[str, Any]) -> dict[str, int | str]:
    """Rows of a table, by name."""
    return {
        "files": measured["files"],
        "lines": measured["lines"],
        "lines of comment": measured["comment_lines"],
        "files with a single importer": len(measured["single_importer_files"]),
        "import circles, lazy imports included": len(measured["circles"]),
        "capabilities of models probed by name": len(measured["core_probes"]),
        "public functions of three or more parameters without documentation of them": len(
            measured["undocumented_functions"]
        ),
        "public class names defined twice": len(measured["classes_defined_twice"]),
        "names with words of the old vocabulary": sum(measured["glossary"].values()),
        "the same words in strings, comments, native sources, benchmarks and documentation": sum(
            len(seen) for seen in measured["old_words"].values()
        ),
        **{
            f"files passed, {journey} (changes of file)": f"{passed['count']} ({passed['changes']})"
            for journey, passed in measured["journeys"].items()
        },
    }


def write_table(path: Path, measured: dict[str, Any], before: Path | None) -> None:
    """Write each figure before and after; without a file of before, with what the table has."""
    if before is None:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        old = {row["measure"]: row["before"] for row in rows}
    else:
        old = figures(json.loads(before.read_text(encoding="utf-8")))
    table = [{"measure": k, "before": old[k], "after": v} for k, v in figures(measured).items()]
    path.write_text(json.dumps({"rows": table}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure a checkout and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout; this one by default")
    parser.add_argument("--journeys", action="store_true", help="run the five journeys too (minutes)")
    parser.add_argument("--out", type=Path, help="all figures and names as JSON")
    parser.add_argument(
        "--before", type=Path, help="what --out wrote of another checkout; that of the table without"
    )
    parser.add_argument(
        "--table", type=Path, help="rows of before and after, for a page of the documentation"
    )
    options = parser.parse_args()
    root = options.root.resolve()
    measured = measure(root)
    if options.journeys:
        measured["journeys"] = journeys(root)
    for name, value in measured.items():
        if name == "journeys":
            for journey, passed in value.items():
                print(f"{journey}: {passed['count']} files, {passed['changes']} changes of file")
        elif name == "old_words":
            print(f"{name}: {', '.join(f'{kind} {len(seen)}' for kind, seen in value.items())}")
        elif name == "glossary":
            print(f"glossary: {sum(value.values())} ({', '.join(f'{w} {n}' for w, n in value.items() if n)})")
        else:
            print(f"{name}: {len(value) if isinstance(value, list) else value}")
    if options.out:
        options.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if options.table:
        write_table(options.table, measured, options.before)


if __name__ == "__main__":
    main()
