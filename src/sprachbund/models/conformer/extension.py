"""Changes to a conformer before it is trained: its languages, its prompt, the weights of its losses, streaming."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Literal

import torch
from pydantic import BaseModel
from torch import Tensor
from torch.nn import functional as F

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.checkpoints import CONTROL, empty_pieces
from sprachbund.models.conformer.config import ConformerConfig, ConformerShape, TransducerPart
from sprachbund.models.conformer.model import Conformer
from sprachbund.models.splitting import split_feed_forwards
from sprachbund.nn.conformer import sinusoids
from sprachbund.text.languages import MIXED
from sprachbund.text.tokenizer import Tokenizer, language_token
from sprachbund.util.files import validate

MEAN: Literal["mean"] = "mean"
"""Value in place of a related language: the mean of all."""
LOSSES = frozenset({"ctc_weight", "language_weight", "label_smoothing", "dropout"})
OF_DECODER = frozenset(
    {"num_decoder_layers", "decoder_width", "decoder_heads", "decoder_feed_forward_width", "max_tokens"}
)
"""Sizes of the attention decoder."""
LOSSES_OF_TRANSDUCER = frozenset({"fast_emit", "frames_at_once", "prune_range"})
"""Losses of a transducer that concern its training alone, and not its text."""
_BY_TOKEN = (
    "decoder.embedding.weight",
    "transducer.prediction.embedding.weight",
    "transducer.joint.out.weight",
    "transducer.joint.out.bias",
    "transducer.simple_joint.encoder.weight",
    "transducer.simple_joint.encoder.bias",
    "transducer.simple_joint.prediction.weight",
)
_BY_SOURCE = ("language_head.weight", "language_head.bias")
_BY_TARGET = ("language_fusion.language.weight",)
_DEPTHWISE = "convolution.depthwise.weight"
_NOT_OFFLINE = ("attention.key.bias", "attention.distance.weight")
"""What the offline attention lacks. Zero distances are content alone, and get a gradient: the queries are not zero."""
_OF_SUBSAMPLING = re.compile(r"^encoder\.subsampling\.|^encoder\.(?=norm\.)")
_NORM_OF_STEM = "encoder.stem.norm.bias"
_POSITIONS = 60
"""Frames whose positions are averaged, 4.8 s."""
_OF_PRUNED_LOSS = "transducer.simple_joint."
_OF_WRITING = ("decoder.", "transducer.", "language_fusion.")


def rebuilt(
    model: Conformer,
    *,
    config: ConformerConfig | None = None,
    tokenizer: Tokenizer | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Conformer:
    """A new model of the same weights, split as the old one is, with what is given in place of its own.

    The network of a pruned loss is there if the configuration has one, initialized anew if the old model has none.

    Args:
        model: the old one.
        config: configuration in place of its own.
        tokenizer: tokenizer in place of its own.
        weights: weights in place of its own.
    """
    new = Conformer(config or model.config, tokenizer or model.tokenizer, model.transcript_tokenizer)
    if model.sharing_plan is not None:
        split_feed_forwards(new, model.sharing_plan)
    kept = model.state_dict() if weights is None else weights
    of_loss = {name: value for name, value in new.state_dict().items() if name.startswith(_OF_PRUNED_LOSS)}
    others = {name: value for name, value in kept.items() if not name.startswith(_OF_PRUNED_LOSS)}
    known = {name: kept[name] for name in of_loss if name in kept}
    new.load_state_dict({**others, **of_loss, **known})
    return new.train(model.training)


def add_languages(model: Conformer, related: Mapping[str, str]) -> Conformer:
    """A model that hears and writes more languages; their pieces are those that its tokenizer has.

    `MIXED` is written only: speech that mixes languages is heard in one of them.

    Args:
        model: not split by language.
        related: BCP-47 tag of a new language to that of the language whose token it starts from, or `MEAN` for the
            mean of all.

    Raises:
        SprachbundError: a tag that is there already or is none, a related language that the model lacks, or a model
            that is split.
    """
    if not related:
        return model
    _check_new(model, related)
    config, tokens = model.config, model.tokenizer
    heard = {tag: like for tag, like in related.items() if tag != MIXED}
    weights = model.state_dict()
    for names, added, numbers in (
        (_BY_TOKEN, related, {tag: tokens.language_id(tag) for tag in config.target_languages}),
        (_BY_SOURCE, heard, {tag: number for number, tag in enumerate(config.source_languages)}),
        (_BY_TARGET, related, {tag: number for number, tag in enumerate(config.target_languages)}),
    ):
        starts = [list(numbers.values()) if like == MEAN else [numbers[like]] for like in added.values()]
        weights |= {name: _extended(weights[name], starts) for name in names if name in weights}
    more = {
        "source_languages": (*config.source_languages, *heard),
        "target_languages": (*config.target_languages, *related),
    }
    return rebuilt(
        model,
        config=config.model_copy(update=more),
        tokenizer=_with_languages(tokens, related),
        weights=weights,
    )


def with_new_decoder(model: Conformer, shape: ConformerShape) -> Conformer:
    """A model with the encoder, the heads and the tokenizers of another, and an attention decoder that knows nothing.

    Args:
        model: the other one.
        shape: has the sizes of the decoder and the losses; what it leaves out is as in the other model.

    Raises:
        SprachbundError: a size that is the encoder's, heads that do not divide the decoder's width, a model that is
            split by language, or one whose text comes from a transducer.
    """
    given = shape.model_dump(include=set(shape.model_fields_set))
    if fixed := sorted(given.keys() - OF_DECODER - LOSSES):
        raise SprachbundError(
            f"conformer.{fixed[0]} is taken from the model whose encoder is kept; leave it out, or take one of "
            f"{', '.join(sorted(OF_DECODER))}"
        )
    if model.sharing_plan is not None or model.writes_by_frames:
        why = "its text comes from a transducer" if model.writes_by_frames else "it is split by language"
        raise SprachbundError(
            f"the model whose encoder is kept gets no other decoder: {why}; take another model"
        )
    config = validate(ConformerConfig, {**model.config.model_dump(), **given}, "conformer")
    new = Conformer(config, model.tokenizer, model.transcript_tokenizer)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("decoder.")}
    new.load_state_dict({**new.state_dict(), **kept})
    return new


def with_streaming_encoder(
    model: Conformer, shape: ConformerShape, tokenizer: Tokenizer | None = None
) -> Conformer:
    """A streaming model that is initialized with an offline one.

    Feed-forwards, norms, queries, keys and values of the encoder are kept, and the CTC and language heads. A causal
    convolution keeps the taps of its kernel up to the centre, with zeros before them where the new kernel is longer;
    one that sees its chunk keeps all. A subsampling "striding_conv1d" is kept, with the mean of the positions that were
    added to it in the bias of its norm; one of the other kind is initialized anew. Attention starts without distances:
    their weights are zero. The decoder and the transducer are kept if neither their sizes nor their tokenizer change.

    With `convolution = "chunk"` and `subsampling = "striding_conv1d"`, and one chunk as long as the utterance, the
    states are those of the offline encoder with such positions, one frame later.

    Args:
        model: the offline model.
        shape: has `streaming`; `transducer`, `kernel_size`, sizes of the decoder and losses are taken from it, where it
            has them. Without a kernel size, it is the number of taps that are kept. Convolutions that see their chunk
            have that of the offline model.
        tokenizer: tokenizer of the texts in place of the offline model's: few pieces make a cheap transducer.

    Raises:
        SprachbundError: a model that streams already or is split by language, or a size that its layers contradict.
    """
    if model.config.streaming is not None or model.sharing_plan is not None:
        why = "streams already" if model.config.streaming is not None else "is split by language"
        raise SprachbundError(f"the model to start from {why}; leave model.streaming out, or take another")
    assert shape.streaming is not None
    causal = shape.streaming.convolution == "causal"
    free = {"streaming", "transducer"} | OF_DECODER | LOSSES
    check_kept("model", model.config, shape, free | ({"kernel_size"} if causal else set()))
    given = shape.model_dump(include=set(shape.model_fields_set))
    if causal:
        given.setdefault("kernel_size", model.config.kernel_size // 2 + 1)
    config = validate(ConformerConfig, {**model.config.model_dump(), **given}, "model")
    new = Conformer(config, tokenizer or model.tokenizer, model.transcript_tokenizer)
    writes_alike = new.tokenizer.model == model.tokenizer.model and all(
        getattr(config, name) == getattr(model.config, name) for name in OF_DECODER | {"transducer"}
    )
    weights = new.state_dict()
    for name, value in model.state_dict().items():
        if name.startswith(_OF_WRITING) and not writes_alike:
            continue  # pieces of another tokenizer may have tensors of the same sizes
        if name.endswith(_DEPTHWISE) and causal:
            value = _past_taps(value, config.kernel_size)
        name = _OF_SUBSAMPLING.sub("encoder.stem.", name)
        if name in weights:
            weights[name] = value
    for name in weights:
        if name.endswith(_NOT_OFFLINE):
            weights[name] = torch.zeros_like(weights[name])
    if _NORM_OF_STEM in weights:
        weights[_NORM_OF_STEM] = weights[_NORM_OF_STEM] + sinusoids(_POSITIONS, config.width).mean(0)
    new.load_state_dict(weights)
    return new


def check_kept(key: str, own: BaseModel | None, given: BaseModel | None, free: Set[str]) -> None:
    """Check that a recipe does not contradict what is kept of the model to start from.

    Args:
        key: key of the section in the recipe.
        own: that section of the model to start from.
        given: that section of the recipe.
        free: names that may differ.

    Raises:
        SprachbundError: naming the first that differs.
    """
    there, asked = ({} if part is None else dict(part) for part in (own, given))
    for name in () if given is None else sorted(given.model_fields_set - free):
        if (value := asked[name]) != (seen := there.get(name)):
            raise SprachbundError(
                f"{key}.{name} is {value}, the model to start from has {seen}; leave it out, it is taken from there"
            )


def _past_taps(kernel: Tensor, size: int) -> Tensor:
    """The last `size` taps of a centred kernel (D, 1, K) up to its centre, zeros first where it has fewer."""
    past = kernel[..., : kernel.shape[-1] // 2 + 1]
    return F.pad(past, (max(0, size - past.shape[-1]), 0))[..., -size:]


def with_target_language_prompt(model: Conformer) -> Conformer:
    """A model whose transducer reads which language to write before it begins; as it is where it does so already.

    Raises:
        SprachbundError: its text does not come from a transducer.
    """
    part = model.config.transducer
    if part is None or not model.writes_by_frames:
        raise SprachbundError(
            "fine_tuning.prompt is for Whisper, and for transducers that write what is spoken; leave it out"
        )
    if part.prompted:
        return model
    prompted = part.model_copy(update={"prompted": True})
    return rebuilt(model, config=model.config.model_copy(update={"transducer": prompted}))


def with_losses(config: ConformerConfig, shape: ConformerShape) -> ConformerConfig:
    """A configuration that is trained as `shape` says; its sizes are its own."""
    changes = _losses(shape)
    if config.transducer is not None and shape.transducer is not None:
        of_transducer = shape.transducer.model_dump(include=set(LOSSES_OF_TRANSDUCER))
        changes["transducer"] = config.transducer.model_copy(update=of_transducer)
    return config.model_copy(update=changes)


def only_losses(shape: ConformerShape) -> ConformerShape:
    """A shape that says how a model is trained, and nothing of its sizes; see `with_losses`."""
    losses = _losses(shape)
    if shape.transducer is not None:
        of_transducer = shape.transducer.model_dump(include=set(LOSSES_OF_TRANSDUCER))
        losses["transducer"] = TransducerPart.model_validate(of_transducer)
    return ConformerShape.model_validate(losses)


def _losses(shape: ConformerShape) -> dict[str, object]:
    return shape.model_dump(include=set(LOSSES))


def _check_new(model: Conformer, related: Mapping[str, str]) -> None:
    if model.sharing_plan is not None:
        raise SprachbundError(
            "a model that is split by language learns no new one: add the language first, then split the model"
        )
    import langcodes

    known = sorted(set(model.config.source_languages) & set(model.config.target_languages))
    for tag, like in related.items():
        if not langcodes.tag_is_valid(tag):
            raise SprachbundError(f"{tag!r} is not a BCP-47 tag such as 'gsw' or 'pt-BR'; correct it")
        if tag in (*model.config.source_languages, *model.config.target_languages):
            raise SprachbundError(f"new_languages: the model knows {tag} already; leave it out")
        if like != MEAN and like not in known:
            raise SprachbundError(
                f"new_languages: {tag} cannot start from {like!r}, which the model lacks; take {MEAN!r} or one of "
                f"{', '.join(known)}"
            )


def _extended(rows: Tensor, starts: Sequence[Sequence[int]]) -> Tensor:
    """Rows (N, ...) and behind them the mean of each of `starts`."""
    return torch.cat([rows, *(rows[list(numbers)].mean(0, keepdim=True) for numbers in starts)])


def _with_languages(tokenizer: Tokenizer, languages: Iterable[str]) -> Tokenizer:
    """A tokenizer with language tokens behind all that it has."""
    model, new = empty_pieces(), tuple(languages)
    model.ParseFromString(tokenizer.model)
    names = [language_token(language) for language in new]
    for piece in model.pieces:
        if piece.piece in names:  # a control token of a converted checkpoint; nobody asks for it
            piece.piece += "*"
    for name in names:
        model.pieces.add(piece=name, score=0.0, type=CONTROL)
    model.trainer_spec.vocab_size = len(model.pieces)
    return Tokenizer(model.SerializeToString(), (*tokenizer.languages, *new))
