"""Language codes of checkpoints to BCP-47 tags and back.

Checkpoints write `fra`, `fra_Latn`, `fr_XX` or `fr`, `cmn_Hant` or `zho_Hant`; this project writes `fr`, `zh-Hant`. Two
codes may fall together (`aka` and `twi` are both `ak` to CLDR): each then keeps its code as its tag, and the shared tag
is refused by name.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from sprachbund.errors import SprachbundError
from sprachbund.text.languages import described

_MACRO = {"pbt": "ps", "zlm": "ms", "ns": "nso"}
"""Codes that CLDR does not resolve: Southern Pashto, spoken Malay, and M2M-100's code of Northern Sotho."""


def to_bcp47(code: str) -> str:
    """The BCP-47 tag of a code: "fr" for "fra" and "fr", "zh-Hant" for "cmn_Hant", "pt-BR" for "pt_br".

    Raises:
        SprachbundError: it is no language code.
    """
    import langcodes

    tag = code.replace("_", "-")
    try:
        return _MACRO.get(tag) or langcodes.standardize_tag(tag, macro=True)
    except ValueError:
        raise SprachbundError(f"{code!r} is not a language code such as 'fra' or 'cmn_Hant'") from None


class Languages:
    """Codes and tags of one checkpoint, one to one.

    Args:
        codes: as the checkpoint writes them; their order is kept.
        spelled: the same codes as `to_bcp47` is to read them; as they are if None.

    Attributes:
        tags: BCP-47 tags, in the order of the codes.
        ambiguous: a tag that several codes share, to those codes written as tags.
    """

    def __init__(self, codes: Iterable[str], spelled: Mapping[str, str] | None = None) -> None:
        spelled = (
            {code: code for code in codes} if spelled is None else {code: spelled[code] for code in codes}
        )
        sharing: dict[str, list[str]] = defaultdict(list)
        for code, read in spelled.items():
            sharing[to_bcp47(read)].append(code)
        own = {code: read.replace("_", "-") for code, read in spelled.items()}
        self.ambiguous = {tag: [own[c] for c in same] for tag, same in sharing.items() if len(same) > 1}
        self._tags = {c: own[c] if len(same) > 1 else tag for tag, same in sharing.items() for c in same}
        self._codes = {tag: code for code, tag in self._tags.items()}

    @property
    def tags(self) -> tuple[str, ...]:
        """Every BCP-47 tag."""
        return tuple(self._codes)

    @property
    def codes(self) -> tuple[str, ...]:
        """Every code, in its order."""
        return tuple(self._tags)

    def tag(self, code: str) -> str:
        """The tag of a code of this checkpoint. Raises SprachbundError for another."""
        if code not in self._tags:
            raise SprachbundError(f"{code!r} is not a language of this model; it has {', '.join(self._tags)}")
        return self._tags[code]

    def code(self, tag: str) -> str:
        """The code of a tag. Raises SprachbundError for one that is unknown, or shared by several codes."""
        if tag in self.ambiguous:
            raise SprachbundError(
                f"{tag!r} may be {' or '.join(self.ambiguous[tag])} in this model; name one of them"
            )
        if tag not in self._codes:
            raise SprachbundError(f"this model does not write {tag!r}; it writes {described(self._codes)}")
        return self._codes[tag]
