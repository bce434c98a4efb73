"""The documentation: its commands and snippets run, its links lead somewhere, its tables say what the code says."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import soundfile
import typer
import yaml

import sprachbund
from sprachbund.cli import build_app
from sprachbund.corpora.asterisk.packages import SPEAKERS
from sprachbund.corpora.asterisk.transcripts import RULES
from sprachbund.corpora.editions import EDITIONS
from sprachbund.corpora.phrasebook import KINDS
from sprachbund.corpora.phrasebook.sentences import phrases, templates
from sprachbund.corpora.public import PREPARATIONS
from sprachbund.data.synthesis import DEV_VARIANTS, TEST_VARIANTS, VARIANTS
from sprachbund.decoding.formats import FORMATS
from sprachbund.decoding.guard import Understanding
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.result import Segment, Translation
from sprachbund.engines.extension import missing_because
from sprachbund.evaluation import tables
from sprachbund.training.loop import LogLine
from sprachbund.training.recipe import TranslatorRecipe
from tests.models.whisper_support import make_directory
from tests.stories.support import command, speech, write_wav

ROOT = Path(__file__).parents[2]
SYSTEMS = sorted((ROOT / "src/sprachbund/research").glob("*/README.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *SYSTEMS]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LANGUAGES_OF_BLOCKS = {"", "python", "console", "toml", "tsv", "json"}
# These need a network, recordings that are not here, or more than seconds: only their options are checked.
CHECKED_ONLY = (
    "data prepare asterisk",
    "data make telephone",
    "data make outside",
    "calibrate",
    "data make sentences",
    "--model openai/",
    "models download",
    "--model whisper-large",
    "--model parakeet",
    "--model canary",
    "--model moonshine",
    "--model kyutai",
    "--speakers",
    "--punctuate oliverguhr/",
    "--model voxtral",
    "--model qwen3-asr",
    "seamless",
    "--edition bundled",
    "--check",  # tests/research does
    "recipes/bundled.toml",
    "bench",
    "sprachbund serve",
    "compress",
    "sprachbund convert",
    "sprachbund export",
    "--model exported",
    "evaluate",
    "compare",
    "score",
    "replay",
    "report",
)
OTHER_PROGRAMS = {
    "--blocks", "--corpus", "--drafts", "--index-url", "--instruction-set", "--max-restarts", "--measure", "--mutants",
    "--nnodes", "--no-deps", "--no-loadscope-reorder", "--nproc-per-node", "--one", "--openvino", "--peers",
    "--processor", "--quick", "--rdzv-backend", "--rdzv-endpoint", "--rounds", "--seconds", "--shapes", "--tokens",
    "--verbose",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Block:
    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = page.read_text(encoding="utf-8")
    for match in fence.finditer(text):
        yield Block(language=match[1], text=match[2], line=text[: match.start()].count("\n") + 1)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: recordings, a folder of one's own, a Whisper checkpoint."""
    root = tmp_path_factory.mktemp("docs")
    write_wav(root / "talk.wav", speech())
    soundfile.write(root / "meeting.flac", speech("Please dial the number again."), 16_000)
    (root / "own").mkdir()
    texts = ("One.", "Good morning.", "Night.", "How are you?", "Thanks.", "No.", "Please wait.")
    for name, text in zip("abcdefg", texts, strict=True):
        write_wav(root / "own" / f"{name}.wav", speech(text))
        (root / "own" / f"{name}.txt").write_text(text)
        (root / "own" / f"{name}.de.txt").write_text(f"Deutsch {name}")
    make_directory(root / "whisper-small")
    return root


@pytest.fixture
def here(material: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the material, where the bundled model is a tiny one."""
    for source in material.iterdir():
        (tmp_path / source.name).symlink_to(source)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setattr("sprachbund.models.io.bundled_directory", lambda name: tiny_model)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # packed weights are kept there
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_snippets_run(page: Path, here: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks(page):
        assert block.language in LANGUAGES_OF_BLOCKS, block
        if block.language == "python":
            code = compile("\n" * block.line + block.text, str(page), "exec")
            exec(code, names)
        elif block.language == "toml":
            Path("small.toml").write_text(block.text)
        elif block.language == "tsv":
            Path("own/table.tsv").write_text(block.text)
        elif block.language == "console":
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.startswith("$ "):
                    run(line[2:])


def run(line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif program == "pip":
        assert arguments[0] == "install", line
    elif program == "torchrun":
        parse(arguments[arguments.index("sprachbund") + 1 :])
    elif (program == "sprachbund" and any(part in line for part in CHECKED_ONLY)) or (
        "--engine native" in line and missing_because()
    ):
        parse(arguments)
    else:
        assert program == "sprachbund", line
        globbed = [str(p) for a in arguments for p in (sorted(Path().glob(a)) if "*" in a else [a])]
        ran = command(*globbed)
        assert ran.code == 0, f"{line}\n{ran.out}\n{ran.err}"


def parse(arguments: list[str]) -> None:
    """See that a command takes these arguments, without running it."""
    group, context = typer.main.get_command(build_app()), None
    while True:
        context = group.make_context("sprachbund", list(arguments), parent=context)
        if not hasattr(group, "resolve_command"):
            return
        _, group, arguments = group.resolve_command(context, [*context._protected_args, *context.args])


def all_options() -> set[str]:
    actual, waiting = {"--debug"}, [typer.main.get_command(build_app())]
    while waiting:
        group = waiting.pop()
        if hasattr(group, "get_command"):
            # Verbs become commands when they are asked for, and so do public corpora.
            for name in ("no such command", *group.list_commands(None)):
                group.get_command(None, name)
        actual |= {option for parameter in group.params for option in parameter.opts}
        waiting += getattr(group, "commands", {}).values()
    return actual | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - all_options() - OTHER_PROGRAMS
    assert not unknown
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target


def rows(page: str) -> list[list[str]]:
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_tests_that_are_named_exist() -> None:
    """Security and reliability name the test of each promise."""
    text = "".join(
        (ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("security.md", "reliability.md")
    )
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    names = set(re.findall(r"`(test_\w+)`", text))
    paths = set(re.findall(r"`((?:tests|benchmarks|scripts)/[\w/]+\.py)`", text))
    assert len(names) > 20
    assert {name for name in names if f"def {name}(" not in written} == set()
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_translate_page_names_every_field_format_and_threshold() -> None:
    text = (ROOT / "docs/translate.md").read_text()
    names = set(re.findall(r"`(\w+)`", text))
    for kind in (Translation, Segment, DecodingOptions):
        known = {field.name for field in fields(kind)} - {"timestamps", "language_windows"}
        assert known <= names, known - names
    assert set(FORMATS) <= names
    guard = GuardOptions()
    reasons = {row[0]: row[1] for row in rows("docs/translate.md") if len(row) == 2}
    for reason, values in {
        "`no speech`": (
            guard.min_speech_probability,
            guard.max_no_speech_probability,
            guard.min_mean_log_probability,
        ),
        "`guessing`": (guard.hopeless_mean_log_probability,),
        "`loop`": (guard.max_compression_ratio, guard.max_repetition),
        "`too much text`": (guard.max_characters_per_s,),
        "`not a translation`": (guard.max_length_ratio,),
    }.items():
        assert [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", reasons[reason])] == list(values)


@pytest.mark.parametrize("page", ["translate", "listen", "serve"])
def test_the_pages_say_from_which_probability_on_text_is_likely_wrong(page: str) -> None:
    text = " ".join((ROOT / f"docs/{page}.md").read_text(encoding="utf-8").split())
    said = re.search(r"text that is likely wrong \(`out_of_domain` above (\d\.\d+)\)", text)
    assert said
    heard = Understanding(["de"])
    heard.add(1.0, None, float(said[1]))
    assert heard.doubtful_s == 0
    heard.add(1.0, None, float(said[1]) + 1e-6)
    assert heard.doubtful_s == 1


def test_data_page_lists_the_public_corpora_and_the_speakers() -> None:
    table = rows("docs/data.md")
    for p in PREPARATIONS.values():
        assert [f"`{p.name}`", p.summary, p.licence, f"<{p.homepage}>"] in table
    for s in SPEAKERS:
        where = "`unheard` only" if s.held_out else "all other parts"
        assert [f"`{s.tag}`", s.attribution, s.licence, where] in table
    start = next(i for i, row in enumerate(table) if row[0] == "rule")
    counted = [row for row in table[start + 2 :] if len(row) == 6]
    assert len(counted) == len(RULES) + 3  # and lines, wrong keys, kept
    lines, kept = counted[0], counted[-1]
    dropped = [row for row in counted if row[0].startswith("dropped")]
    for i in range(1, 6):
        assert int(kept[i]) <= int(lines[i]) - sum(int(row[i]) for row in dropped)


def test_data_page_tells_the_true_numbers_of_the_phrasebook() -> None:
    text = " ".join((ROOT / "docs/data.md").read_text().split())
    standard, bundled = EDITIONS["standard"], EDITIONS["bundled"]
    held_out = len(DEV_VARIANTS) + len(TEST_VARIANTS)
    for part in (
        f"**Kinds.** {len(KINDS)}:",
        f"{len(templates())} kinds of sentence",
        f"{len(phrases())} fixed phrases",
        f"{len(VARIANTS) - held_out} for training, {len(DEV_VARIANTS)} others for dev",
        f"seed {standard.seed}, eight languages, {standard.train_utterances:,} training utterances",
        f"{standard.heldout_sentences} sentences for each language",
        f"{standard.no_speech_share:.0%}".replace("%", " %") + " of train is noise",
        f"`bundled` has seed {bundled.seed}, the six languages",
        f"{bundled.train_utterances:,} utterances",
    ):
        assert part in text, part
    assert (len(standard.languages), len(bundled.languages)) == (8, 6)


def test_train_page_shows_a_line_as_the_loop_writes_it() -> None:
    shown = next(b.text for b in blocks(ROOT / "docs/train.md") if b.text.startswith("step "))
    numbers = {
        "epoch": 0,
        "left_s": 3723.0,
        "heads": {"ctc": 1, "language": 1},
        "memory_gib": 1.0,
        "parts": {},
        "kinds": {},
        "counts": {},
    }
    line = str(LogLine(**{f.name: 1 for f in fields(LogLine)} | numbers))  # type: ignore[arg-type]
    assert re.sub(r"[\d.:e+-]+", "#", shown.strip()) == re.sub(r"[\d.:e+-]+", "#", line)


def test_recipe_in_the_documentation_is_whole() -> None:
    given = tomllib.loads(next(b.text for b in blocks(ROOT / "docs/train.md") if b.language == "toml"))
    recipe = TranslatorRecipe.model_validate(given)
    assert recipe.languages == tuple(given["languages"])
    assert given["training"].items() <= recipe.training.model_dump().items()


def test_citation_names_this_version_and_the_five_papers() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == sprachbund.__version__
    papers = {paper["url"].rpartition("/")[2] for paper in cited["references"]}
    assert papers == {"2603.25836", "2508.11189", "2511.10670", "2309.15826", "2606.24169"}
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert all(f"(https://arxiv.org/abs/{paper})" in index for paper in papers)


def test_tables_are_those_of_their_manifests() -> None:
    assert tables.main([*map(str, PAGES), "--check"]) == 0


def test_the_map_of_contributors_names_packages_that_there_are() -> None:
    """And every package has a place in it."""
    named = set(
        re.findall(r"`(src/sprachbund/[a-z_]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    )
    there = {f"src/sprachbund/{p.parent.name}" for p in (ROOT / "src" / "sprachbund").glob("*/__init__.py")}
    assert named == there
