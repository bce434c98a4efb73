"""Tables of docs/results are those of the texts that are stored beside them."""

import gzip
import json
from collections import defaultdict
from pathlib import Path

import pytest
from scripts.tables_of_texts import RESULTS, control_rows, filled, read_texts, sharing_rows, units_rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "table", "rows_of", "groups"),
    [
        ("units_equal_steps", "units_soft_sharing", units_rows, [["ctc_attention, + MT", "soft sharing"]]),
        (
            "units_equal_steps",
            "units_equal_steps_control",
            control_rows,
            [["ctc_attention, + external MT", "1 h, + planted MT 20 times"]],
        ),
    ],
)
def test_a_stored_table_is_that_of_its_texts(file, table, rows_of, groups) -> None:
    texts = read_texts(RESULTS / f"{file}.jsonl.gz", defaultdict(lambda: "es"))
    values = json.loads((RESULTS / f"{table}.json").read_text(encoding="utf-8"))
    rows = rows_of(texts.runs, values["rows"], groups)
    assert values["test"] == texts.test == {"references": 419, "different references": 281}
    assert [row.keys() for row in rows] == [row.keys() for row in values["rows"]]
    for new, old in zip(rows, values["rows"], strict=True):
        assert {k: v for k, v in new.items() if isinstance(v, str)} == {
            k: v for k, v in old.items() if isinstance(v, str)
        }
        numbers = {k: v for k, v in old.items() if not isinstance(v, str)}
        assert {k: v for k, v in new.items() if not isinstance(v, str)} == pytest.approx(numbers)


def test_new_languages_have_columns_of_their_own(tmp_path: Path) -> None:
    references = {f"{tag}-{n}": f"line {n}" for tag in ("es", "nl") for n in range(6)}
    right_in_nl = {name: said if name.startswith("nl") else "no" for name, said in references.items()}
    runs = {"uft": dict.fromkeys(references, "no"), "sharing": right_in_nl}
    path = tmp_path / "texts.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        print(json.dumps({"references": references}), file=file)
        for seed in (0, 1):
            for arm, texts in runs.items():
                print(json.dumps({"arm": arm, "seed": seed, "hypotheses": texts}), file=file)
    texts = read_texts(path, {name: name[:2] for name in references})
    assert texts.test == {"references": 12, "different references": 6}
    old = [{"arm": arm, "chrF all": 0.0, "steps": 7} for arm in runs]
    uft, sharing = sharing_rows(texts.runs, old)
    assert (uft["seeds"], uft["steps"], uft["difference new"]) == (2, 7, "")
    assert sharing["chrF new"] == pytest.approx(100)
    assert sharing["chrF all"] == pytest.approx((100 + uft["chrF all"]) / 2)


def test_names_stay_in_front() -> None:
    row = filled({"hours": 1, "BLEU": 1.0, "more": 2}, {"seeds": 3, "BLEU": 5.0})
    assert list(row.items()) == [("hours", 1), ("seeds", 3), ("BLEU", 5.0), ("more", 2)]
