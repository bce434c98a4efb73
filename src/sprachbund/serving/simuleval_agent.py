"""Lets SimulEval drive a live session, so that its scores and those of other systems can be laid side by side.

simuleval --agent src/sprachbund/serving/simuleval_agent.py --source wavs.txt --target references.txt \
    --source-segment-size 500 --to de --policy alignatt --output out --emission-log out/emissions.jsonl

Every sentence of SimulEval is a session of its own; all options of a session are options of the command. SimulEval
counts what stands between spaces: a word that goes on after its beginning was committed is two words to it.
"""

import logging
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
from simuleval.agents import SpeechToTextAgent
from simuleval.agents.actions import Action, ReadAction, WriteAction
from simuleval.utils import entrypoint

import sprachbund
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.emissions import EmissionRecorder
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveEvent, LiveNotice
from sprachbund.streaming.live import SimulatedClock
from sprachbund.streaming.options import LiveOptions
from sprachbund.util.options import declared

_LOG = logging.getLogger("sprachbund")


@entrypoint
class LiveAgent(SpeechToTextAgent):
    """A live session behind SimulEval's interface: READ until something is committed, then WRITE it.

    Args:
        args: arguments of the command.

    Raises:
        SprachbundError: for options, languages and models as `LiveEngine.open` and `sprachbund.load`.
    """

    def __init__(self, args: Namespace) -> None:
        values = {option.name: getattr(args, option.name) for option in declared(LiveOptions)}
        self._options = LiveOptions(**values)
        self._engine = LiveEngine(sprachbund.load(args.model, engine=args.engine).family)
        self._spoken, self._to, self._log_path = args.spoken, args.to, args.emission_log
        self._num_logged = 0
        super().__init__(args)

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        """The model, the languages, every field of `LiveOptions`, and where to write the log of emissions."""
        parser.add_argument("--model", default="bundled", help="bundled, a directory, or a Hugging Face id")
        parser.add_argument("--engine", default="auto", help="as of sprachbund translate")
        parser.add_argument("--to", required=True, help="language to translate into")
        parser.add_argument("--spoken", default=None, help="language spoken; identified if not given")
        parser.add_argument("--emission-log", type=Path, default=None, help="for sprachbund latency")
        for option in declared(LiveOptions):
            name = f"--{option.name.replace('_', '-')}"
            parser.add_argument(name, type=str if option.choices else option.type, default=option.default)

    def reset(self) -> None:
        """Begin a sentence."""
        super().reset()
        self._session = self._engine.open([self._to], self._spoken, self._options)
        self._recorder = EmissionRecorder(str(self._num_logged), self._session.targets[0])
        self._clock = SimulatedClock(computing=True)
        self._num_pushed = 0

    def policy(self) -> Action:
        """Hear what is new, and write what was committed by it."""
        finished = bool(self.states.source_finished)
        samples = np.array(self.states.source[self._num_pushed :], np.float32)
        self._num_pushed += len(samples)
        self._clock.wait_until(self._num_pushed / SAMPLE_RATE)
        with self._clock.working():
            if len(samples):
                self._check_rate()
                self._session.push(samples)
            if finished:
                self._session.finish()
        text = " ".join(self._written())
        if finished:
            self._write_log()
        return WriteAction(text, finished=finished) if text or finished else ReadAction()

    def _written(self) -> list[str]:
        """All text that is committed by now, piece by piece."""
        pieces = []
        while self._session.due:
            with self._clock.working():
                events = self._engine.step([self._session])[0]
            pieces += [piece for event in events if (piece := self._take(event))]
        return pieces

    def _take(self, event: LiveEvent) -> str:
        """Record an event; what it commits."""
        if isinstance(event, LiveNotice):
            if event.kind == "error":
                raise SprachbundError(event.message)
            _LOG.warning(event.message)
            return ""
        piece = event.committed.strip()
        apart = f" {piece}" if piece else ""  # SimulEval sees a word of its own
        self._recorder.add(event.segment, apart, event.tentative, event.audio_s, self._clock.now_s())
        return piece

    def _write_log(self) -> None:
        self._num_logged += 1
        if self._log_path is not None:
            log = self._recorder.log(self._num_pushed / SAMPLE_RATE)
            with self._log_path.open("w" if self._num_logged == 1 else "a", encoding="utf-8") as file:
                file.write(log.to_json() + "\n")

    def _check_rate(self) -> None:
        if self.states.source_sample_rate != SAMPLE_RATE:
            raise SprachbundError(
                f"the recording has {self.states.source_sample_rate} Hz; SimulEval hands recordings on as they are: "
                f"convert it to {SAMPLE_RATE} Hz mono"
            )
