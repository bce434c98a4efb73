"""A cascade behind the service: live, with a policy that commits, and texts."""

import asyncio
import json
from urllib.request import Request, urlopen

import numpy as np

from sprachbund.api import Model
from sprachbund.models.cascade import Cascade
from sprachbund.serving.settings import Settings
from tests.serving.live_support import said, whole
from tests.serving.support import serving
from tests.streaming.test_cascade_commits import SCRIPT, Capitals, Hearing


def test_a_cascade_captions_live_and_translates_texts(spoken: dict[str, np.ndarray]) -> None:
    cascade = Cascade(Hearing(), Capitals())
    with serving(Settings(port=0), loader=lambda name: Model(cascade, name=name)) as running:
        first = {
            "targets": ["es"],
            "source": "de",
            "policy": "alignatt",
            "settings": {"step_s": 0.3, "border_words": 1},
        }
        client = asyncio.run(whole(running, spoken["en"], first))
        texts = [message for message in client.seen if message["type"] == "text"]
        assert texts[-1]["final"]
        heard = said(client, "es")
        assert heard
        assert all(word in {one.upper() for one in SCRIPT} for word in heard.split())
        body = json.dumps(
            {"model": "bundled", "input": "So it goes.", "target_language": "es", "source_language": "de"}
        ).encode()
        asked = Request(f"{running.url}/v1/text/translations", body, {"Content-Type": "application/json"})
        with urlopen(asked, timeout=20) as answer:
            assert "SO IT GOES." in answer.read().decode()
