"""Published sizes of FLEURS: sentences read in train, dev and test, of the languages that a size was found for.

They are those of the languages that TensorFlow Datasets' catalogue gives a size for; the others stay unchecked.
"""

from collections.abc import Sequence

from sprachbund.data.corpora.counts import Published

_SOURCE = "the catalogue of TensorFlow Datasets, xtreme_s/fleurs"
_SIZES = {
    "af": (1032, 198, 264), "am": (3163, 223, 516), "ar": (2104, 295, 428), "as": (2812, 418, 984),
    "ast": (2511, 398, 946), "az": (2665, 400, 923), "be": (2433, 408, 967), "ca": (2300, 404, 940),
    "ckb": (3040, 386, 922), "cs": (2811, 305, 723), "cy": (3427, 447, 1021), "da": (2465, 395, 930),
    "es": (2796, 408, 908), "fa": (3101, 369, 871), "ga": (2845, 369, 842), "gl": (2175, 395, 927),
    "gu": (3145, 432, 1000), "he": (3242, 328, 792), "hi": (2120, 239, 418), "hr": (3461, 377, 914),
    "hu": (3095, 407, 905), "hy": (3053, 395, 932), "id": (2579, 350, 687), "is": (926, 36, 46),
    "it": (3030, 391, 865), "ja": (2292, 266, 650), "jv": (3051, 295, 728), "ka": (1491, 409, 979),
    "kea": (2715, 366, 864), "kk": (3200, 369, 856), "km": (1675, 326, 771), "ko": (2307, 226, 382),
    "ky": (2818, 422, 977), "lb": (2502, 408, 934), "lg": (2478, 306, 723), "ln": (3350, 209, 478),
    "lt": (2937, 416, 986), "luo": (2384, 102, 256), "lv": (2110, 356, 851), "mk": (2337, 415, 973),
    "ml": (3043, 418, 958), "mn": (3074, 405, 949), "mt": (2895, 404, 926), "ne": (3332, 305, 726),
    "nso": (1990, 363, 790), "om": (1701, 19, 41), "pa": (1923, 251, 574), "pl": (2841, 338, 758),
    "ps": (2513, 217, 512), "pt": (2793, 386, 919), "ro": (2891, 387, 883), "ru": (2562, 356, 775),
    "sd": (3443, 426, 980), "so": (3149, 432, 1019), "sr": (2944, 290, 700), "sv": (2385, 330, 759),
    "sw": (3070, 211, 487), "te": (2302, 311, 472), "tg": (2298, 240, 600), "uk": (2810, 325, 750),
    "umb": (1597, 135, 379), "vi": (2994, 361, 857), "zu": (2858, 354, 854),
}  # fmt: skip
"""Train, dev and test by language."""


def published() -> Sequence[Published]:
    """Sentences read of every language and split."""
    return [
        Published(part=part, key=language, utterances=size, source=_SOURCE)
        for language, sizes in _SIZES.items()
        for part, size in zip(("train", "dev", "test"), sizes, strict=True)
    ]
