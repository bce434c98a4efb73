"""What is changed in a conformer before it is trained on: new languages, the prompt, the losses; the rest stays."""

import pytest
import torch
from pydantic import ValidationError

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.conformer import Conformer, ConformerShape, StreamingPart, TransducerPart
from sprachbund.models.conformer.extension import (
    add_languages,
    only_losses,
    rebuilt,
    with_losses,
    with_streaming_encoder,
    with_target_language_prompt,
)
from sprachbund.models.conformer.io import load, save
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.nn.conformer import sinusoids, valid_frames
from sprachbund.nn.streaming_conformer import LEAD
from sprachbund.text.tokenizer import Tokenizer
from tests.training import made


def transducer(*, prompted: bool = False) -> Conformer:
    plain = made.make_model()
    parts = {
        "num_decoder_layers": 0,
        "streaming": StreamingPart(left_context=16, right_contexts=(6, 1), stem_channels=4),
        "transducer": TransducerPart(
            prediction_width=8, prediction_layers=1, joint_width=8, prompted=prompted, prune_range=2
        ),
    }
    torch.manual_seed(1)
    return Conformer(plain.config.model_copy(update=parts), plain.tokenizer, plain.transcript_tokenizer)


def test_a_pruned_loss_comes_and_goes_with_its_network() -> None:
    """The rest of the weights, and so the text, stays."""
    pruned = transducer()
    part = TransducerPart(prediction_width=8, prediction_layers=1, joint_width=8)
    plain = rebuilt(pruned, config=with_losses(pruned.config, ConformerShape(transducer=part)))
    own = {name for name in pruned.state_dict() if "simple_joint" in name}
    assert len(own) == 3
    assert pruned.state_dict().keys() - plain.state_dict().keys() == own
    wider = part.model_copy(update={"prune_range": 5})
    again = rebuilt(plain, config=with_losses(plain.config, ConformerShape(transducer=wider)))
    assert again.config.transducer is not None
    assert again.config.transducer.prune_range == 5
    kept = rebuilt(pruned, config=with_losses(pruned.config, ConformerShape(transducer=wider)))
    for name, value in pruned.state_dict().items():
        assert again.state_dict()[name].equal(value) or name in own
        assert kept.state_dict()[name].equal(value), name


def test_a_new_language_begins_as_the_one_it_resembles(tmp_path):
    old = made.make_model().eval()
    new = add_languages(old, {"nl": "de", "sv": "mean"})
    assert new.source_languages == new.config.target_languages == ("en", "de", "nl", "sv")
    memory = old.encode(old.features([torch.randn(20_000).numpy()]))
    tokens = {tag: new.tokenizer.language_id(tag) for tag in new.source_languages}
    assert [tokens["nl"], tokens["sv"]] == [len(old.tokenizer), len(old.tokenizer) + 1]

    def logits(model: Conformer, tag: str) -> torch.Tensor:
        first = torch.tensor([[tokens[tag], 7, 8]])
        return model.step(first, model.start(memory))[..., : len(old.tokenizer)]

    # A product with a matrix of more rows may be summed in another order: 32 terms of up to 4, in single precision.
    torch.testing.assert_close(logits(new, "de"), logits(old, "de"), atol=32 * 4 * 2**-23, rtol=0)
    assert torch.equal(logits(new, "nl"), logits(new, "de"))
    before, after = old.state_dict(), new.state_dict()
    for name, value in before.items():
        assert after[name][: len(value)].equal(value), name
    mean = before["decoder.embedding.weight"][[tokens["en"], tokens["de"]]].mean(0)
    torch.testing.assert_close(after["decoder.embedding.weight"][tokens["sv"]], mean)
    assert after["language_head.bias"][2] == before["language_head.bias"][1]
    for text in ("one four", "zwei eins"):
        assert new.tokenizer.encode(text) == old.tokenizer.encode(text)
    save(new, tmp_path)
    again = load(tmp_path)
    assert again.pairs() == new.pairs() > old.pairs()
    assert all(again.state_dict()[name].equal(value) for name, value in after.items())


def test_mixed_speech_is_written_and_not_heard(tmp_path):
    old = made.make_model()
    new = add_languages(old, {"mul": "mean", "nl": "de"})
    assert new.source_languages == ("en", "de", "nl")
    assert new.config.target_languages == ("en", "de", "mul", "nl")
    assert new.language_head.bias.shape == (3,)
    assert new.language_head.bias[2] == old.language_head.bias[1]
    save(new, tmp_path)
    assert load(tmp_path).pairs() == {(s, t) for s in ("en", "de", "nl") for t in ("en", "de", "mul", "nl")}


def test_a_transducer_writes_old_languages_as_before():
    old = transducer().eval()
    new = add_languages(old, {"nl": "mean"})
    encoded, tokens = torch.randn(1, 5, 32), torch.tensor([[7, 8]])
    size = len(old.tokenizer)
    for part in ("transducer.joint.out.weight", "transducer.prediction.embedding.weight"):
        assert new.state_dict()[part].shape[0] == size + 1
    predicted = [m.transducer.joint.prediction(m.transducer.prediction(tokens)) for m in (old, new)]
    assert torch.equal(*predicted)
    frames = old.transducer.joint.encoder(encoded)[:, :, None]
    first, second = (
        m.transducer.joint(frames, p[:, None]) for m, p in zip((old, new), predicted, strict=True)
    )
    torch.testing.assert_close(second[..., :size], first)


def test_what_cannot_be_learned():
    model = made.make_model()
    for related, said in (
        ({"de": "mean"}, "the model knows de already"),
        ({"nl": "fr"}, "nl cannot start from 'fr', which the model lacks; take 'mean' or one of de, en"),
        ({"not a tag": "de"}, "'not a tag' is not a BCP-47 tag"),
    ):
        with pytest.raises(SprachbundError, match=said):
            add_languages(model, related)
    model.sharing_plan = SharingPlan.model_validate({"splits": []})
    with pytest.raises(SprachbundError, match="split by language"):
        add_languages(model, {"nl": "de"})


def test_a_transducer_is_told_the_language():
    silent = transducer()
    prompted = with_target_language_prompt(silent)
    assert (silent.prompt(Target(language="de")), prompted.prompt(Target(language="de"))) == (
        [],
        [silent.tokenizer.language_id("de")],
    )
    assert silent.pairs() == {("de", "de"), ("en", "en")}
    assert ("en", "de") in prompted.pairs()
    assert all(prompted.state_dict()[name].equal(value) for name, value in silent.state_dict().items())
    assert with_target_language_prompt(prompted) is prompted
    with pytest.raises(SprachbundError, match="for transducers that write what is spoken"):
        with_target_language_prompt(made.make_model())


def test_losses_change_and_sizes_do_not():
    own = transducer().config
    wanted = ConformerShape(
        width=999,
        ctc_weight=0.0,
        dropout=0.1,
        transducer=TransducerPart(joint_width=999, fast_emit=0.1, frames_at_once=4),
    )
    result = with_losses(own, wanted)
    assert result.transducer is not None
    assert own.transducer is not None
    assert (result.ctc_weight, result.dropout, result.transducer.fast_emit) == (0.0, 0.1, 0.1)
    changed = {"ctc_weight": own.ctc_weight, "dropout": own.dropout, "language_weight": own.language_weight}
    part = own.transducer.model_copy(update={"fast_emit": 0.1, "frames_at_once": 4, "prune_range": None})
    assert result.model_copy(update=changed) == own.model_copy(update={"transducer": part})
    assert with_losses(own, only_losses(wanted)) == result
    assert only_losses(wanted).model_fields_set.isdisjoint({"width", "streaming"})


STREAMS = ConformerShape(
    streaming=StreamingPart(left_context=16, right_contexts=(6, 1), stem_channels=4),
    transducer=TransducerPart(prediction_width=8, prediction_layers=1, joint_width=8),
)


def test_an_offline_model_starts_a_streaming_one():
    """Feed-forwards as they are; of each convolution what was heard so far, whatever the length of the new kernel."""
    old = made.make_model()
    kernel = old.config.kernel_size
    past = kernel // 2 + 1
    for size in (None, past - 1, past + 2):
        shape = STREAMS if size is None else STREAMS.model_copy(update={"kernel_size": size})
        new = with_streaming_encoder(old, shape)
        size = size or past
        assert (new.config.kernel_size, new.config.width) == (size, old.config.width)
        assert new.capabilities.streaming is not None
        x = torch.randn(2, 7, old.config.width)
        for mine, theirs in zip(new.encoder.layers, old.encoder.layers, strict=True):
            assert mine.feed_forward_in(x, None).equal(theirs.feed_forward_in(x, None))
            given, frames = x.transpose(1, 2), torch.arange(7)
            got = mine.convolution.depthwise(torch.nn.functional.pad(given, (size - 1, 0)))
            for t in range(
                7
            ):  # the old one, with silence behind this frame, and before what the new one reaches
                heard = given * ((frames <= t) & (frames > t - size))
                wanted = theirs.convolution.depthwise(heard)[..., t]
                # Sums of as many products as the kernel has taps, of numbers up to about 4, in another order.
                torch.testing.assert_close(got[..., t], wanted, atol=4 * kernel * 2**-23, rtol=0)
            assert not mine.attention.key.bias.any()
            assert not mine.attention.distance.weight.any()
    assert new.ctc_head.weight.equal(old.ctc_head.weight)


@torch.no_grad()
def test_with_its_subsampling_and_whole_kernels_a_streaming_model_hears_as_the_offline_one_does():
    """In one chunk: the offline layers behind the same subsampling give the same states."""
    old = made.make_model().eval()
    old.encoder.norm.bias.normal_()
    part = StreamingPart(
        left_context=40, right_contexts=(39, 6), convolution="chunk", subsampling="striding_conv1d"
    )
    new = with_streaming_encoder(old, STREAMS.model_copy(update={"streaming": part})).eval()
    assert new.config.kernel_size == old.config.kernel_size
    values = torch.randn(2, 40 * 8, old.config.num_mel_bins)
    num_frames = torch.tensor([40 * 8, 17 * 8])
    states, counts = new.encoder(values, num_frames)
    frames, _ = old.encoder.subsampling(values, num_frames)
    positions = sinusoids(60, old.config.width).mean(0)
    start = new.encoder.start(2, new.encoder.tiers[0], keep=0)
    padded = torch.nn.functional.pad(values, (0, 0, LEAD, 0))
    x, _ = new.encoder.stem(padded, start.stem, start.num_past == 0)
    # One frame later, the first before the sound.
    torch.testing.assert_close(x[0, 1:], (old.encoder.norm(frames) + positions)[0, :-1], atol=1e-5, rtol=0)
    wanted = old.encoder.layers(x, valid_frames(counts, x.shape[1]), None)
    for row, count in enumerate(counts.tolist()):
        torch.testing.assert_close(states[row, :count], wanted[row, :count], atol=1e-4, rtol=0)
    with pytest.raises(SprachbundError, match=r"model\.kernel_size is 3, the model to start from has"):
        with_streaming_encoder(old, STREAMS.model_copy(update={"streaming": part, "kernel_size": 3}))


def test_a_subsampling_of_the_offline_kind_has_no_channels_of_its_own():
    with pytest.raises(ValidationError, match="stem_channels is 4, but a subsampling"):
        StreamingPart(subsampling="striding_conv1d", stem_channels=4)


def test_a_decoder_is_kept_with_its_sizes_and_its_tokenizer():
    """The words of another tokenizer with as many pieces have other rows."""
    old = made.make_model()
    shape = ConformerShape(streaming=STREAMS.streaming)
    backwards = [" ".join(words)[::-1] for words in made.WORDS.values()] * 20
    other = Tokenizer.train(backwards, made.LANGUAGES, len(old.tokenizer))
    assert len(other) == len(old.tokenizer)
    fewer = shape.model_copy(update={"max_tokens": 16})
    for new, kept in (
        (with_streaming_encoder(old, shape), True),
        (with_streaming_encoder(old, shape, old.tokenizer), True),
        (with_streaming_encoder(old, shape, other), False),
        (with_streaming_encoder(old, fewer), False),
    ):
        for name in ("embedding.weight", "layers.0.feed_forward.expand.weight"):
            mine, theirs = new.decoder.get_parameter(name), old.decoder.get_parameter(name)
            assert mine.equal(theirs) == kept, name


def test_a_streaming_model_has_the_sizes_of_its_start():
    old = made.make_model()
    with pytest.raises(
        SprachbundError, match=r"model\.width is 64, the model to start from has 32; leave it out"
    ):
        with_streaming_encoder(old, STREAMS.model_copy(update={"width": 64}))
    with pytest.raises(SprachbundError, match="the model to start from streams already"):
        with_streaming_encoder(transducer(), STREAMS)
