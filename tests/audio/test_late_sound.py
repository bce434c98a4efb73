"""Sound that begins late in its container: silence before it, in pieces, however late."""

import av
import numpy as np

from sprachbund.audio.decoders import CHUNK_FRAMES, open_decoder
from sprachbund.audio.load import open_audio


def test_ten_minutes_of_silence_before_the_sound_comes_in_pieces(tmp_path):
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w", format="matroska") as container:
        video = container.add_stream("mpeg4", rate=1)
        video.width = video.height = 16
        audio = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        picture.pts = 0
        container.mux(video.encode(picture))
        container.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(np.full((1, 1600), 8000, np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts = 16_000, 600 * 16_000
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    with path.open("rb") as file:
        chunks = [samples for _, samples in open_decoder(file, "late", seekable=True).chunks()]
    assert max(map(len, chunks)) <= CHUNK_FRAMES
    total = sum(map(len, chunks))
    assert abs(total - 600 * 16_000 - 1600) < 1600
    assert sum(len(block) for block in open_audio(path).blocks()) == total
