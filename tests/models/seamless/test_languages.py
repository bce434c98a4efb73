"""Codes of Seamless to BCP-47 and back."""

import langcodes
import pytest

from sprachbund.errors import SprachbundError
from sprachbund.models.language_codes import Languages, to_bcp47
from sprachbund.models.seamless.tokens import SPOKEN

NLLB = (
    "ace ace_Latn acm acq aeb afr ajp aka amh apc arb ars ary arz asm ast awa ayr azb azj bak bam ban bel bem ben bho "
    "bjn bjn_Latn bod bos bug bul cat ceb ces cjk ckb crh cym dan deu dik dyu dzo ell eng epo est eus ewe fao pes fij "
    "fin fon fra fur fuv gla gle glg grn guj hat hau heb hin hne hrv hun hye ibo ilo ind isl ita jav jpn kab kac kam "
    "kan kas kas_Deva kat knc knc_Latn kaz kbp kea khm kik kin kir kmb kon kor kmr lao lvs lij lim lin lit lmo ltg ltz "
    "lua lug luo lus mag mai mal mar min mkd plt mlt mni khk mos mri zsm mya nld nno nob npi nso nus nya oci gaz ory "
    "pag pan pap pol por prs pbt quy ron run rus sag san sat scn shn sin slk slv smo sna snd som sot spa als srd srp "
    "ssw sun swe swh szl tam tat tel tgk tgl tha tir taq taq_Tfng tpi tsn tso tuk tum tur twi tzm uig ukr umb urd uzn "
    "vec vie war wol xho ydd yor yue cmn cmn_Hant zul"
)
"""What SeamlessM4T-Medium writes: the languages of NLLB-200."""
MEDIUM = NLLB.split()


@pytest.mark.parametrize(
    ("code", "tag"),
    [
        ("fra", "fr"),
        ("arb", "ar"),
        ("arz", "arz"),
        ("cmn", "zh"),
        ("cmn_Hant", "zh-Hant"),
        ("pes", "fa"),
        ("pbt", "ps"),
        ("nob", "nb"),
        ("swh", "sw"),
        ("zlm", "ms"),
        ("gle", "ga"),
        ("bem", "bem"),
        ("aeb", "aeb"),
        ("taq_Tfng", "taq-Tfng"),
    ],
)
def test_known_tags(code: str, tag: str) -> None:
    assert to_bcp47(code) == tag


@pytest.mark.parametrize("codes", [MEDIUM, SPOKEN])
def test_every_code_comes_back_from_its_tag_and_every_tag_is_bcp47(codes: list[str]) -> None:
    languages = Languages(codes)
    assert len(set(languages.tags)) == len(codes)
    assert [languages.code(languages.tag(code)) for code in codes] == list(codes)
    assert all(langcodes.tag_is_valid(tag) for tag in languages.tags)


def test_a_tag_shared_by_two_codes_is_refused_by_naming_both() -> None:
    languages = Languages(MEDIUM)
    assert languages.ambiguous == {"ak": ["aka", "twi"]}
    assert languages.code("twi") == "twi"
    with pytest.raises(SprachbundError, match="'ak' may be aka or twi"):
        languages.code("ak")


def test_an_unknown_language_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        SprachbundError, match=r"does not write 'tlh'; it writes de \(German\), fr \(French\)"
    ):
        Languages(["deu", "fra"]).code("tlh")
    with pytest.raises(SprachbundError, match="not a language code"):
        to_bcp47("no language")
