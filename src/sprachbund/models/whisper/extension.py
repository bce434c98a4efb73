"""Changes to a Whisper checkpoint before it is fine-tuned: its languages and the meaning of its prompt."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import CONFIG_KEY
from sprachbund.models.splitting import split_feed_forwards
from sprachbund.models.whisper.files import TOKENIZER, CheckpointFiles
from sprachbund.models.whisper.io import REAL_LENGTH
from sprachbund.models.whisper.model import Whisper
from sprachbund.models.whisper.tokens import ENGLISH, WhisperTokens, language_name, with_languages

MEAN = "mean"
"""Value in place of a related language: the mean of all."""
Prompt = Literal["spoken", "wanted", "wanted-only"]
"""Language that the prompt names: the one spoken, as published, or the one wanted; and that alone, without a task or
timestamps (arXiv 2508.11189)."""
_EMBEDDING = "decoder.embedding.weight"


def add_languages(model: Whisper, related: Mapping[str, str]) -> Whisper:
    """A model with a token more for each new language; all else is as it was.

    Args:
        model: model with its tokens.
        related: BCP-47 tag of a new language to that of the language whose token's embedding it starts from, or
            `MEAN` for the mean of all language tokens.

    Raises:
        SprachbundError: a tag that is there already or is none, or a related language that the model lacks.
    """
    if not related:
        return model
    known = model.tokens.languages
    if not known or not model.tasks.language_tokens:
        raise SprachbundError(
            "this model's prompt names no language, so it cannot learn a new one; start from a multilingual Whisper"
        )
    for tag, start in related.items():
        if start != MEAN and start not in known:
            raise SprachbundError(
                f"new_languages: {tag} cannot start from {start!r}, which the model lacks; take {MEAN!r} or one of "
                f"{', '.join(sorted(known))}"
            )
    tokenizer = with_languages(model.tokens, list(related))
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    numbers = {tag: vocabulary[language_name(tag)] for tag in related}
    size = max(model.config.vocabulary_size, *(number + 1 for number in numbers.values()))
    starts = {numbers[tag]: list(known.values()) if s == MEAN else [known[s]] for tag, s in related.items()}
    weights = model.state_dict()
    weights[_EMBEDDING] = _extended(weights[_EMBEDDING], size, starts)
    checkpoint_files = _with_tokens(model.checkpoint_files, tokenizer.to_str(), numbers)
    return _rebuilt(
        model,
        weights,
        config=replace(model.config, vocabulary_size=size),
        tokens=WhisperTokens(tokenizer, size),
        checkpoint_files=_with_pairs(
            checkpoint_files, list(related), list(known), model.tasks.target_language_prompt
        ),
    )


def set_prompt(model: Whisper, prompt: Prompt, languages: Sequence[str]) -> Whisper:
    """A model whose prompt names the language spoken or the one wanted.

    Args:
        model: model with its tokens.
        prompt: "wanted" and "wanted-only" make it many-to-many: any of `languages` to any other.
        languages: BCP-47 tags that it is about to be trained on.
    """
    if not model.tasks.language_tokens:
        raise SprachbundError(
            "this model's prompt names no language; start from a multilingual Whisper to choose it"
        )
    wanted = {(s, t) for s in languages for t in languages}
    if prompt == "spoken":
        wanted = {(s, t) for s, t in wanted if t in (s, ENGLISH)}
    by_target = prompt != "spoken"
    if by_target == model.tasks.target_language_prompt:
        wanted |= model.pairs()
    ours = {"target_language_prompt": by_target, "bare_prompt": prompt == "wanted-only"}
    pairs = {"pairs": sorted(map(list, wanted))}
    return _rebuilt(
        model, model.state_dict(), checkpoint_files=_with_ours(model.checkpoint_files, {**ours, **pairs})
    )


def without_transcription(model: Whisper) -> Whisper:
    """A model that is asked for no language's own text, since it was not trained on that."""
    pairs = sorted([s, t] for s, t in model.pairs() if s != t)
    return _rebuilt(
        model, model.state_dict(), checkpoint_files=_with_ours(model.checkpoint_files, {"pairs": pairs})
    )


def set_real_length(model: Whisper, real_length: bool) -> Whisper:
    """A model that is to be trained and used on utterances at their own length, or on whole windows."""
    model.real_length = real_length
    model.checkpoint_files = _with_ours(model.checkpoint_files, {REAL_LENGTH: real_length})
    return model


def _rebuilt(model: Whisper, weights: Mapping[str, Tensor], **changes: Any) -> Whisper:
    parts = {
        "config": model.config,
        "tokens": model.tokens,
        "checkpoint_files": model.checkpoint_files,
        **changes,
    }
    config = parts.pop("config")
    with torch.device("meta"):
        new = Whisper(config, real_length=model.real_length, **parts)
    if model.sharing_plan is not None:
        split_feed_forwards(new, model.sharing_plan)
    new.load_state_dict(weights, assign=True)
    return new.train(model.training)


def _extended(embedding: Tensor, size: int, starts: Mapping[int, Sequence[int]]) -> Tensor:
    """The embedding (V, D) with `size` rows, each of `starts` the mean of the rows that it starts from."""
    mean = embedding.mean(0, keepdim=True).expand(size - len(embedding), -1)
    extended = torch.cat([embedding, mean])
    for number, rows in starts.items():
        extended[number] = embedding[list(rows)].mean(0)
    return extended


def _with_ours(checkpoint_files: CheckpointFiles, changes: Mapping[str, Any]) -> CheckpointFiles:
    ours = {**checkpoint_files.config.get(CONFIG_KEY, {}), **changes}
    return replace(checkpoint_files, config={**checkpoint_files.config, CONFIG_KEY: ours})


def _with_pairs(
    checkpoint_files: CheckpointFiles, new: list[str], known: list[str], by_target: bool
) -> CheckpointFiles:
    """Checkpoint files whose list of pairs, if there is one, has those of new languages too."""
    listed = checkpoint_files.config.get(CONFIG_KEY, {}).get("pairs")
    if listed is None:
        return checkpoint_files
    heard = {tag for pair in listed for tag in pair} & set(known)
    if by_target:
        more = {(s, t) for s in (*heard, *new) for t in (*heard, *new) if s in new or t in new}
    else:
        more = {(s, t) for s in new for t in (s, ENGLISH)}
    return _with_ours(checkpoint_files, {"pairs": [*listed, *sorted(map(list, more))]})


def _with_tokens(
    checkpoint_files: CheckpointFiles, tokenizer: str, numbers: Mapping[str, int]
) -> CheckpointFiles:
    """The tokenizer's files with the new tokens, in each of the files where transformers looks for them."""
    names = {language_name(tag): number for tag, number in numbers.items()}
    files = {**checkpoint_files.files, TOKENIZER: tokenizer.encode()}
    for file, change in {
        "added_tokens.json": lambda content: {**content, **names},
        "special_tokens_map.json": lambda content: _listed(content, names),
        "tokenizer_config.json": lambda content: _described(_listed(content, names), names),
    }.items():
        if file in files:
            files[file] = json.dumps(change(json.loads(files[file])), ensure_ascii=False, indent=2).encode()
    generation = dict(checkpoint_files.generation)
    if "lang_to_id" in generation:
        generation["lang_to_id"] = {**generation["lang_to_id"], **names}
    return replace(checkpoint_files, files=files, generation=generation)


def _listed(content: dict[str, Any], names: Mapping[str, int]) -> dict[str, Any]:
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(content.get(key), list):
            content = {**content, key: [*content[key], *names]}
    return content


def _described(content: dict[str, Any], names: Mapping[str, int]) -> dict[str, Any]:
    if "added_tokens_decoder" not in content:
        return content
    kind = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    new = {str(number): {"content": name, **kind} for name, number in names.items()}
    return {**content, "added_tokens_decoder": {**content["added_tokens_decoder"], **new}}
