"""Random text-to-text checkpoints in the true layouts, made by transformers, with vocabularies trained here."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

from sprachbund.models.base import Features, Target
from sprachbund.models.translation import TextTranslator, load
from tests.models.seamless.support import SENTENCES, pieces

SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "scale_embedding": True,
}
"""A model that translates in milliseconds; every size differs where sizes may differ."""
MAX_LENGTH = 24
NLLB_CODES = [
    *("aka_Latn", "deu_Latn", "eng_Latn", "fra_Latn", "kor_Hang"),
    *("taq_Latn", "taq_Tfng", "twi_Latn", "zho_Hans", "zho_Hant"),
]
TEXTS = (*SENTENCES[:4], "koer jookseb", "🎉 ﬁ  zwei  Leerzeichen", "x")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A directory and what is in it.

    Attributes:
        codes: BCP-47 tag to language code, of some languages.
        mark: name of the token of a code.
        pairs: to be tried.
    """

    kind: str
    directory: Path
    hf_model: Any
    tokenizer: Any
    model: TextTranslator
    codes: dict[str, str]
    mark: Callable[[str], str]
    pairs: tuple[tuple[str, str], ...]

    def language_token(self, tag: str) -> int:
        """The token of a language, by transformers."""
        return int(self.tokenizer.convert_tokens_to_ids(self.mark(self.codes[tag])))

    def source(self, texts: list[str], source: str, target: str) -> Any:
        """Tokens and mask of texts, padded, by transformers."""
        if self.model.tokens.marked == "target":
            texts = [f"{self.mark(self.codes[target])} {text}" for text in texts]
        if self.model.tokens.marked != "source":
            return self.tokenizer(texts, return_tensors="pt", padding=True)
        self.tokenizer.src_lang = self.codes[source]
        return self.tokenizer(texts, return_tensors="pt", padding=True)

    def features(self, texts: list[str], source: str | None) -> Features:
        """The same by our model."""
        made = self.model.text_features(texts)
        language = -1 if source is None else self.model.source_languages.index(source)
        return Features(
            values=made.values,
            num_frames=made.num_frames,
            source_language=torch.full((len(texts),), language),
        )

    def prompt(self, target: str) -> list[int]:
        """What `generate` starts with."""
        start: int = self.hf_model.config.decoder_start_token_id
        return [start] if self.model.tokens.marked != "source" else [start, self.language_token(target)]

    def target(self, source: str, language: str) -> Target:
        return Target(source=source, language=language)


def write_m2m_100(directory: Path) -> Any:
    """vocab.json, pieces and the tokenizer's configuration, as published; the tokenizer read back."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces())
    own = [processor.id_to_piece(i) for i in range(3, len(processor))]
    vocabulary = {name: i for i, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", *own])}
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (directory / "sentencepiece.bpe.model").write_bytes(pieces())
    special = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
    return _read_back(directory, "M2M100Tokenizer", additional_special_tokens=special)


def write_nllb(directory: Path) -> Any:
    """tokenizer.json and the language codes among its special tokens, as published; the tokenizer read back."""
    (directory / "sentencepiece.bpe.model").write_bytes(pieces())
    _read_back(directory, "NllbTokenizer", additional_special_tokens=NLLB_CODES).save_pretrained(directory)
    return transformers.NllbTokenizer.from_pretrained(directory, local_files_only=True)


def write_mbart(directory: Path) -> Any:
    """tokenizer.json, as published; the tokenizer read back."""
    (directory / "sentencepiece.bpe.model").write_bytes(pieces("unigram"))
    _read_back(directory, "MBart50Tokenizer").save_pretrained(directory)
    return transformers.MBart50Tokenizer.from_pretrained(directory, local_files_only=True)


def write_marian(directory: Path, targets: tuple[str, ...] = ()) -> Any:
    """vocab.json with <pad> as its last, two models of pieces and the pair, as published; the tokenizer read back."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces())
    own = [processor.id_to_piece(i) for i in range(3, len(processor))]
    names = ["</s>", "<unk>", *(f">>{code}<<" for code in targets), *own, "<pad>"]
    (directory / "vocab.json").write_text(
        json.dumps({name: i for i, name in enumerate(names)}), encoding="utf-8"
    )
    for name in ("source.spm", "target.spm"):
        (directory / name).write_bytes(pieces())
    target = "mul" if targets else "en"
    return _read_back(directory, "MarianTokenizer", source_lang="de", target_lang=target)


MADLAD_CODES = ("de", "en", "fr", "ko", "zh", "zh_Hant")


@cache
def t5_pieces() -> bytes:
    """A SentencePiece model with tokens of languages and of a task, its numbers as MADLAD-400 has them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES * 3, "koer jookseb"]),
        model_writer=model,
        vocab_size=140,
        model_type="unigram",
        user_defined_symbols=[*(f"<2{code}>" for code in MADLAD_CODES), "<2translate>"],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


class Pieces:
    """SentencePiece itself, called as a tokenizer of transformers is: T5 was trained on what it gives."""

    unk_token_id = 0

    def __init__(self, directory: Path) -> None:
        path = str(directory / "spiece.model")
        self.processor = sentencepiece.SentencePieceProcessor(model_file=path)

    @classmethod
    def from_pretrained(cls, directory: Path) -> "Pieces":
        return cls(directory)

    def get_vocab(self) -> dict[str, int]:
        return {self.processor.id_to_piece(i): i for i in range(len(self.processor))}

    def convert_tokens_to_ids(self, name: str) -> int:
        return int(self.processor.piece_to_id(name))

    def convert_ids_to_tokens(self, tokens: Iterable[int]) -> list[str]:
        return [self.processor.id_to_piece(token) for token in tokens]

    def __call__(self, texts: Sequence[str], **how: Any) -> dict[str, torch.Tensor]:
        rows = [torch.tensor([*self.processor.encode(text), 2]) for text in texts]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": padded, "attention_mask": mask}


def write_t5(directory: Path) -> Pieces:
    """The pieces, without tokenizer.json, which transformers would make anew with another unknown token."""
    (directory / "spiece.model").write_bytes(t5_pieces())
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "<s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Pieces(directory)


def _read_back(directory: Path, kind: str, **settings: Any) -> Any:
    config = {"tokenizer_class": kind, **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return getattr(transformers, kind).from_pretrained(directory, local_files_only=True)


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How checkpoints of a kind are made; `spare` rows have no token, as published."""

    write: Callable[[Path], Any]
    config: str
    model: str
    spare: int
    codes: dict[str, str]
    mark: Callable[[str], str] = str
    settings: dict[str, Any] = field(default_factory=dict)
    pairs: tuple[tuple[str, str], ...] = (("en", "fr"), ("de", "en"), ("zh", "ko"))


_KINDS = {
    "m2m_100": _Kind(
        write=write_m2m_100,
        config="M2M100Config",
        model="M2M100ForConditionalGeneration",
        spare=8,
        codes={tag: tag for tag in ("de", "en", "fr", "ko", "zh")},
        mark="__{}__".format,
    ),
    "nllb": _Kind(
        write=write_nllb,
        config="M2M100Config",
        model="M2M100ForConditionalGeneration",
        spare=2,
        codes={"de": "deu_Latn", "en": "eng_Latn", "fr": "fra_Latn", "ko": "kor_Hang", "zh": "zho_Hans"},
    ),
    "mbart": _Kind(
        write=write_mbart,
        config="MBartConfig",
        model="MBartForConditionalGeneration",
        spare=0,
        codes={"de": "de_DE", "en": "en_XX", "fr": "fr_XX", "ko": "ko_KR", "zh": "zh_CN"},
        settings={"decoder_start_token_id": 2, "activation_function": "relu"},
    ),
}
_MARIAN = {"eos_token_id": 0, "forced_eos_token_id": None, "activation_function": "swish"}
_KINDS |= {
    "marian": _Kind(
        write=write_marian,
        config="MarianConfig",
        model="MarianMTModel",
        spare=0,
        codes={},
        settings=_MARIAN,
        pairs=(("de", "en"),),
    ),
    "marian_many": _Kind(
        write=lambda directory: write_marian(directory, ("eng", "fra", "cmn_Hans", "cmn_Hant", "mul")),
        config="MarianConfig",
        model="MarianMTModel",
        spare=0,
        codes={"en": "eng", "fr": "fra", "zh": "cmn_Hans", "zh-Hant": "cmn_Hant"},
        mark=">>{}<<".format,
        settings=_MARIAN,
        pairs=(("de", "en"), ("de", "fr"), ("de", "zh")),
    ),
    "t5": _Kind(
        write=write_t5,
        config="T5Config",
        model="T5ForConditionalGeneration",
        spare=8,
        codes={tag: tag for tag in ("de", "en", "fr", "ko", "zh")},
        mark="<2{}>".format,
        settings={
            "d_kv": 12,
            "d_ff": 48,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 2,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 12,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        },
        pairs=(("de", "en"), ("de", "fr"), ("en", "zh")),
    ),
}
KINDS = tuple(_KINDS)


def make_checkpoint(directory: Path, name: str, **changes: Any) -> Checkpoint:
    """A directory as published, of a kind."""
    kind = _KINDS[name]
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = kind.write(directory)
    num_tokens = max(tokenizer.get_vocab().values()) + 1 + kind.spare
    sizes = {"d_model": SIZES["d_model"]} if name == "t5" else SIZES
    settings = {**sizes, **kind.settings, **changes}
    if name.startswith("marian"):
        settings |= {"pad_token_id": num_tokens - 1, "decoder_start_token_id": num_tokens - 1}
    config = getattr(transformers, kind.config)(vocab_size=num_tokens, **settings)
    hf_model = getattr(transformers, kind.model)(config)
    if name == "t5":  # published files have an output matrix of its own, and transformers then keeps both
        hf_model.lm_head.weight = torch.nn.Parameter(torch.empty_like(hf_model.shared.weight))
        config.tie_word_embeddings = False
    randomised(hf_model)
    hf_model.generation_config.max_length = MAX_LENGTH
    hf_model.save_pretrained(directory)
    return Checkpoint(
        kind=name,
        directory=directory,
        hf_model=hf_model,
        tokenizer=tokenizer,
        model=load(directory),
        codes=kind.codes,
        mark=kind.mark,
        pairs=kind.pairs,
    )


def randomised(hf_model: Any, seed: int = 0) -> Any:
    """The same with every weight, bias and norm random, so that none is lost unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*hf_model.named_parameters(), *hf_model.named_buffers()]:
            if name.endswith("embed_positions.weights") or (
                not value.requires_grad and value.ndim > 1 < len(value)
            ):
                continue  # computed
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                value.copy_(1 + 0.2 * noise)
            else:
                value.copy_(noise * (0.1 if value.ndim < 2 else 1.6 * value[0].numel() ** -0.5))
        if hf_model.config.model_type == "t5":
            for name, value in hf_model.named_parameters():
                if name.endswith(
                    "Attention.q.weight"
                ):  # scores are not scaled, so that the weights are smaller
                    value.mul_(hf_model.config.d_kv**-0.5)
            hf_model.lm_head.weight[hf_model.config.eos_token_id].mul_(2)
            return hf_model.eval()
        # The output matrix is tied: without this every token repeats itself, and no row ends.
        decoder, shared = hf_model.model.decoder, hf_model.model.shared
        last = (
            decoder.layers[-1].final_layer_norm
            if hf_model.config.model_type == "marian"
            else decoder.layer_norm
        )
        last.weight.mul_(torch.randn(len(last.weight), generator=generator).sign())
        shared.weight.mul_(2)
        shared.weight[hf_model.config.eos_token_id].mul_(2)
        if "final_logits_bias" in hf_model.state_dict():
            hf_model.final_logits_bias[0, hf_model.config.eos_token_id] += 8
    return hf_model.eval()
