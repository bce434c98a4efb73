import base64
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.figures import bins_by
from sprachbund.evaluation.metrics import metric
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.report import Sounds, marked, write_report
from tests.evaluation.made import line
from tests.evaluation.scores import summarise

VOID = {"meta", "br", "path", "use", "image", "rect", "stop"}


class Checker(HTMLParser):
    """Counts elements, and insists that they are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.counts, self.links = [], {}, []

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.links += [v for k, v in attrs if k in {"src", "href", "xlink:href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in {"src", "href", "xlink:href"}]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(evaluated, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(evaluated[1].lines(), evaluated[1].manifest, path, num_examples=5)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_and_needs_nothing_else(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.counts["svg"] >= 5
    assert checker.counts["audio"] == checker.counts["article"] == 10
    assert all(link.startswith(("data:", "#")) for link in checker.links)


def test_players_hold_the_utterances_sound(page, corpus, evaluated):
    coded = re.findall(r'src="data:audio/flac;base64,([^"]+)"', page)
    manifest = Manifest(corpus)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(coded[0])), dtype="float32")
    assert rate == 16_000
    assert any(
        len(manifest.samples(i)) == len(samples) and np.abs(manifest.samples(i) - samples).max() < 1e-4
        for i in range(len(manifest))
    )


def test_sound_that_is_gone(evaluated, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "audio.00000.wav").unlink()
    run = evaluated[1]
    with pytest.raises(SprachbundError, match=r"audio\.00000\.wav does not exist; copy the corpus again"):
        write_report(run.lines(), run.manifest, tmp_path / "r.html", data=[tmp_path / "corpus"])
    one = next(line for line in run.lines() if line.id == "u000")
    assert "no sound here" in Sounds([tmp_path / "corpus"]).player(one)


def test_hostile_texts_stay_texts(evaluated, tmp_path):
    lines = [line("<script>alert(1)</script>", "<b>x</b> & y", id="1", transcript="<i>")]
    result = evaluated[1].manifest
    manifest = summarise(lines, result.model, result.data, EvaluationOptions())
    write_report(lines, manifest, tmp_path / "r.html", data=[], num_examples=1)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "no sound here" in page


def test_words_that_do_not_agree_are_marked():
    wrong, right = marked(line("am Montag um drei", "am Dienstag um drei Uhr"))
    assert wrong == "am <del>Montag</del> um drei"
    assert right == "am <ins>Dienstag</ins> um drei <ins>Uhr</ins>"
    assert "nothing" in marked(line("", "ja"))[0]
    assert marked(line("请按一", "请按二", target="zh")) == ("请按<del>一</del>", "请按<ins>二</ins>")


def test_bins_pool_their_own_lines():
    counts = np.array([[1, 1], [0, 1], [1, 1], [1, 1]], float)
    bins = bins_by(counts, metric("exact"), [0.5, 0.7, 3.0, 99.0], (0.0, 1.0, 4.0, float("inf")))
    assert [(b.label, b.num_lines, b.score) for b in bins] == [
        ("0–1", 2, 50),
        ("1–4", 1, 100),
        ("4+", 1, 100),
    ]
    assert bins[0].interval == (0, 100)
