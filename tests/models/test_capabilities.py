"""What a model can do stands in one typed place: no code looks for it by the name of an attribute."""

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import sprachbund
from sprachbund.engines.choice import on_torch
from sprachbund.engines.torch_layers import TorchDecoder
from sprachbund.models.base import Capabilities
from sprachbund.models.io import load
from sprachbund.nn.decoder import TextDecoder
from tests.models.speech_llm_support import make_model as make_speech_llm
from tests.models.split_support import make_split_model
from tests.models.whisper_support import TINY, with_tokens
from tests.streaming.test_by_frames import tiny_transducer

PACKAGE = Path(sprachbund.__file__).parent
ELSEWHERE = {"cli"}
"""It handles errors of frameworks, not models."""
ALLOWED = {
    "getattr(settings, name, None)": "the one place where optional attributes of transformers are read",
    "hasattr(comet, 'load_from_checkpoint')": "two packages are called comet",
    "getattr(_ctypes, 'dlclose', None)": "not on every system",
    "getattr(source, 'name', 'audio stream')": "not of every file object",
    "getattr(file, 'read1', file.read)": "not of every file object",
}
"""Calls that look for an attribute by name, and why nothing better is to be had."""


def probes(tree: ast.AST) -> Iterator[str]:
    """Code that looks whether something has an attribute, or changes what an object is: its class, methods, base."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (_by_name(node) or _unbound_init(node)):
            yield ast.unparse(node)
        targets = node.targets if isinstance(node, ast.Assign) else []
        for part in (part for target in targets for part in ast.walk(target)):
            if isinstance(part, ast.Attribute) and part.attr in ("__class__", "__dict__"):
                yield ast.unparse(node)
        if isinstance(node, ast.FunctionDef):
            yield from _methods_put_on_objects(node)


def _by_name(call: ast.Call) -> bool:
    named = isinstance(call.func, ast.Name) and call.func.id in ("getattr", "hasattr", "setattr", "delattr")
    return named and len(call.args) > 1 and (isinstance(call.args[1], ast.Constant) or len(call.args) == 3)


def _unbound_init(call: ast.Call) -> bool:
    init = call.func if isinstance(call.func, ast.Attribute) and call.func.attr == "__init__" else None
    return init is not None and isinstance(init.value, ast.Name | ast.Attribute)


def _methods_put_on_objects(function: ast.FunctionDef) -> Iterator[str]:
    inner = {n.name for n in ast.walk(function) if isinstance(n, ast.FunctionDef) and n is not function}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            on_object = any(isinstance(target, ast.Attribute) for target in node.targets)
            if on_object and node.value.id in inner:
                yield ast.unparse(node)


def test_nothing_is_looked_for_by_name() -> None:
    found = [
        (code, path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ELSEWHERE
        for code in probes(ast.parse(path.read_text(encoding="utf-8")))
    ]
    others = [f"{path}: {code}" for code, path in found if code not in ALLOWED]
    assert not others, "declare it in `sprachbund.models.base.Capabilities` instead"
    assert ALLOWED.keys() == {code for code, _ in found}, "of what is allowed, delete what is gone"


CORE = ("models", "nn", "decoding", "engines", "streaming", "evaluation", "serving")


def classes() -> Iterator[type]:
    """Every class that a module of the core defines."""
    for package in CORE:
        folder = importlib.import_module(f"sprachbund.{package}")
        for info in pkgutil.walk_packages(folder.__path__, f"{folder.__name__}."):
            if info.name.endswith(
                ("_native", "simuleval_agent")
            ):  # not a module of Python, and needs SimulEval
                continue
            module = importlib.import_module(info.name)
            yield from (
                value
                for value in vars(module).values()
                if isinstance(value, type) and value.__module__ == module.__name__
            )


def makes_its_base(made: type) -> bool:
    """Whether `__init__` calls that of the next class, where one of the bases has its own."""
    own = vars(made).get("__init__")
    bases = [base for base in made.__mro__[1:] if inspect.isfunction(vars(base).get("__init__"))]
    if not inspect.isfunction(own) or own.__name__ != "__init__" or "<string>" in own.__code__.co_filename:
        return True
    if all(base.__module__ == "typing" or getattr(base, "_is_protocol", False) for base in bases):
        return True
    return "super().__init__(" in textwrap.dedent(inspect.getsource(own))


def test_a_subclass_makes_its_base() -> None:
    assert not [f"{one.__module__}.{one.__name__}" for one in classes() if not makes_its_base(one)]


def test_a_subclass_that_does_not_is_seen() -> None:
    class Base:
        def __init__(self) -> None:
            self.ready = True

    class Forgetful(Base):
        def __init__(self) -> None:
            self.other = True

    class Careful(Base):
        def __init__(self) -> None:
            super().__init__()

    assert not makes_its_base(Forgetful)
    assert makes_its_base(Careful)


@pytest.mark.parametrize(
    "code",
    [
        "if hasattr(family, 'real_length'): pass",
        "x = getattr(family, 'spans', None)",
        "getattr(model, name, None)",
        "setattr(family, 'encode', encode)",
        "decoder.__class__ = Other",
        "nn.Module.__init__(self)",
        "def f(family):\n    def encode(x): ...\n    family.encode = encode",
    ],
)
def test_such_code_is_seen(code: str) -> None:
    assert list(probes(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["getattr(self, field.name)", "super().__init__()", "vars(options)['beam_size']"]
)
def test_fields_of_dataclasses_are_no_such_code(code: str) -> None:
    assert not list(probes(ast.parse(code)))


def has(capabilities: Capabilities) -> set[str]:
    """Names of what it has, without the devices, of which every model has some."""
    return {
        name
        for name, value in vars(capabilities).items()
        if name != "devices" and value not in (None, (), False)
    }


def test_every_family_says_what_it_can_do() -> None:
    attention = {"encoder", "decoder", "alignment", "encode_text"}
    conformer = attention | {"transcript_head", "words_only"}
    assert has(load().capabilities) == conformer | {"hears_language"}
    assert has(make_split_model().capabilities) == conformer | {"sharing_plan"}
    assert has(tiny_transducer().capabilities) == {
        "encoder",
        "decoder",
        "transducer",
        "streaming",
        "transcript_head",
        "encode_text",
        "hears_language",
        "words_only",
    }
    assert has(with_tokens().capabilities) == attention | {"timestamps", "fixed_window", "reads_context"}
    assert has(make_speech_llm().capabilities) == {"encoder", "decoder", "experts", "reads_prefix"}


def test_a_whisper_model_without_a_vocabulary_has_no_times() -> None:
    from sprachbund.models.whisper import Whisper

    assert has(Whisper.shape(TINY).capabilities) == {"encoder", "decoder", "alignment", "fixed_window"}


def test_a_copy_on_an_engine_shows_its_own_parts() -> None:
    model = load()
    fast = on_torch(model, "fp32")
    assert type(fast.capabilities.decoder) is TorchDecoder
    assert type(model.capabilities.decoder) is TextDecoder
