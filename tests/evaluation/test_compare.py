from dataclasses import replace

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.compare import (
    ComparedFiles,
    RunFile,
    System,
    claims,
    compare,
    compare_files,
    parse_system,
    tables,
)
from sprachbund.evaluation.lines import DecodingEvidence, LineWriter
from sprachbund.util.options import OptionValueError
from tests.evaluation.made import made_lines

PAIRS = (("en", "de"), ("en", "fr"), ("fr", "de"))


def system(name, *runs):
    return System(name=name, runs=runs)


@pytest.fixture(scope="module")
def good():
    return made_lines(60, 0.15, seed=1, pairs=PAIRS)


@pytest.fixture(scope="module")
def bad():
    return made_lines(60, 0.45, seed=2, pairs=PAIRS)


def test_a_real_difference_is_claimed_in_the_right_direction(good, bad):
    result = compare([system("bad", bad), system("good", good)], ["chrF", "TER"], draws=200)
    said = claims(result)
    assert said[0].startswith("chrF: good is better than bad (difference +")
    assert said[1].startswith("TER: good is better than bad (difference -")
    assert "better on 3 (en-de, en-fr, fr-de) and worse on none" in said[2]
    assert "another seed it says nothing" in said[-1]
    backwards = claims(compare([system("good", good), system("bad", bad)], ["chrF"], draws=200))
    assert backwards[0].startswith("chrF: bad is worse than good")


def test_no_difference_is_not_claimed(good):
    other = made_lines(60, 0.16, seed=5, pairs=PAIRS)
    said = claims(compare([system("a", good), system("b", other)], ["chrF"], draws=200))
    assert "no difference between b and a may be claimed" in said[0]
    assert "neither may it be claimed that they are equal" in said[0]


def test_equal_outputs_claim_nothing(good):
    result = compare([system("a", good), system("b", good)], ["chrF"], draws=100)
    assert "no difference" in claims(result)[0]
    assert "better on none and worse on none" in claims(result)[1]
    assert [row[-1] for row in tables(result)[1].rows if row[2] == "b"] == ["equal"] * 3


def test_over_seeds(good, bad):
    bads = [made_lines(60, 0.45, seed=n, pairs=PAIRS) for n in (3, 4)]
    goods = [made_lines(60, 0.15, seed=n, pairs=PAIRS) for n in (6, 7)]
    result = compare([system("bad", bad, *bads), system("good", good, *goods)], ["chrF"])
    assert result.means["chrF", "good"].num_seeds == (3, 3)
    assert result.by_pair == {}
    said = claims(result)
    assert "good is better" in said[0]
    assert said[-1].endswith("training again as well.")
    two = claims(compare([system("bad", *bads), system("good", *goods)], ["chrF"]))
    assert "2 runs of a system say little of how trainings differ" in two[-1]
    with pytest.raises(SprachbundError, match="2 and 1 runs"):
        compare([system("bad", *bads), system("good", good)], ["chrF"])


def test_equal_references_and_translations_of_one_utterance_are_drawn_together(good, bad):
    def alike(lines):
        return [replace(x, reference="twelve") if x.id in ("en-0", "en-2") else x for x in lines]

    before, result = (
        compare([system("bad", of(bad)), system("good", of(good))], ["chrF"], draws=50)
        for of in (list, alike)
    )
    # en-de and en-fr have 60 utterances in common, fr-de has others; one text was made twice.
    assert (before.num_lines, before.num_units) == (180, 119)
    assert result.num_units == 118
    assert "Means were compared on draws from 118 units, not 180 texts" in claims(result)[-2]


def test_the_order_of_lines_does_not_matter(good, bad):
    first = compare([system("a", good), system("b", bad)], ["chrF"], draws=50)
    second = compare([system("a", good), system("b", bad[::-1])], ["chrF"], draws=50)
    assert first.means == second.means


def test_the_draws_asked_for_are_those_of_the_means_too(good, bad):
    p_values = {
        n: compare([system("a", good), system("b", bad)], ["chrF"], draws=n).means["chrF", "b"].p_value
        for n in (50, 500)
    }
    assert p_values == pytest.approx({50: 2 / 51, 500: 2 / 501})
    by_default = compare([system("a", good), system("b", bad)], ["chrF"], test="randomization")
    assert (by_default.draws, by_default.mean_draws) == (10_000, 1_000)


def test_systems_with_other_lines_or_references_are_refused(good):
    with pytest.raises(
        SprachbundError, match="b lacks 'en-0' of 'corpus-0' into 'de', and 0 more lines differ"
    ):
        compare([system("a", good), system("b", good[1:])])
    changed = [replace(good[0], reference="other"), *good[1:]]
    with pytest.raises(SprachbundError, match="the reference of 'en-0' differs"):
        compare([system("a", good), system("b", changed)])
    with pytest.raises(SprachbundError, match="systems are called a; give two or more"):
        compare([system("a", good)])


def test_systems_are_read_from_files_behind_the_guard(good, tmp_path):
    hidden = replace(good[0], hypothesis="made up", evidence=DecodingEvidence(dropped="loop"))
    for run in ("one", "two"):
        with LineWriter(tmp_path / run / "hypotheses.jsonl") as writer:
            for line in [hidden, *good[1:]]:
                writer.write(line)
    name, paths = parse_system(f"ours={tmp_path / 'one'},{tmp_path / 'two'}")
    assert (name, paths) == ("ours", [tmp_path / "one", tmp_path / "two"])
    assert next(iter(RunFile(paths[0]))).hypothesis == ""
    assert parse_system(str(tmp_path / "one"))[0] == "one"
    with pytest.raises(
        SprachbundError, match=r"one is there twice .*; the runs .* are of different training seeds"
    ):
        parse_system(f"ours={tmp_path / 'one'},{tmp_path / 'two' / '..' / 'one'}")


def test_a_task_is_compared_alone(tmp_path):
    """The means are those of the lines that are left; both tasks together are named in a note."""
    pairs = (("en", "de"), ("en", "en"), ("fr", "de"))
    made = {"a": made_lines(40, 0.2, seed=1, pairs=pairs), "b": made_lines(40, 0.4, seed=2, pairs=pairs)}
    for name, lines in made.items():
        with LineWriter(tmp_path / name / "hypotheses.jsonl") as writer:
            for line in lines:
                writer.write(line)
    folders = {name: [str(tmp_path / name)] for name in made}

    def compared(task):
        return compare_files(ComparedFiles(systems=folders, metrics=("chrF",), draws=50, task=task))

    kept = {"translation": [("en", "de"), ("fr", "de")], "transcription": [("en", "en")]}
    for task, wanted in kept.items():
        own = {
            name: [line for line in lines if (line.source, line.target) in wanted]
            for name, lines in made.items()
        }
        alone = compare([system(name, lines) for name, lines in own.items()], ["chrF"], draws=50)
        assert (list(compared(task).pairs), compared(task).means) == (wanted, alone.means)
        assert "transcription" not in tables(compared(task))[0].note
    assert tables(compared("all"))[0].note.endswith("; 1 of the 3 pairs are transcription, see --task")
    (tmp_path / "texts").write_text("x\n")
    with pytest.raises(OptionValueError, match="task is 'translation', and text files are of no known task"):
        ComparedFiles(systems=folders, reference=str(tmp_path / "texts"), task="translation")


def test_text_files_need_references(tmp_path):
    (tmp_path / "a.txt").write_text("x\ny\n")
    with pytest.raises(SprachbundError, match="name the references"):
        parse_system(str(tmp_path / "a.txt"))
    assert parse_system(str(tmp_path / "a.txt"), tmp_path / "a.txt") == ("a.txt", [tmp_path / "a.txt"])
    assert len(list(RunFile(tmp_path / "a.txt", tmp_path / "a.txt"))) == 2


def test_pairs_that_the_draws_cannot_tell_apart_are_said_to_be_too_many(good, bad):
    many = [("en", f"{a}{b}") for a in "abc" for b in "klmn"]
    result = compare(
        [system("bad", made_lines(8, 0.9, 1, many)), system("good", made_lines(8, 0.0, 2, many))],
        ["chrF"],
        draws=100,
    )
    said = claims(result)[1]
    # 12 tests of p at least 1/101 each.
    assert said == (
        "chrF: 100 draws cannot show a difference of one pair among 12 (after Holm's correction p is at least 0.119); "
        "give --draws 240 for that."
    )
    enough = compare([system("bad", bad), system("good", good)], ["chrF"], draws=60)  # 3 / 61 is below 0.05
    assert "of 3 pairs, good is better on 3" in claims(enough)[1]


def test_a_path_may_have_an_equals_sign_in_it(tmp_path):
    folder = tmp_path / "lr=0.1" / "results"
    folder.mkdir(parents=True)
    assert parse_system(str(folder)) == ("results", [folder])
    assert parse_system(f"base={folder}") == ("base", [folder])
    other = tmp_path / "lr=0.2"
    other.mkdir()
    assert parse_system(f"{folder},{other}") == ("results", [folder, other])
    with pytest.raises(SprachbundError, match=r"gone does not exist"):
        parse_system(f"base={tmp_path / 'gone'}")


def test_references_beside_results_that_have_their_own_are_refused(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "lines.jsonl").write_text("")
    (tmp_path / "references.txt").write_text("a\n")
    for name in ("results", "lines.jsonl"):
        with pytest.raises(SprachbundError, match=rf"{name} has references of its own, and --reference"):
            parse_system(f"a={tmp_path / name}", tmp_path / "references.txt")
