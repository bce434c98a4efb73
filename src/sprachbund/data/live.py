"""Editions of the phrasebook that are spoken while a model trains on them: every epoch hears other utterances.

An epoch's utterances are rendered when it begins and deleted when the next one is there, so a run of any length needs
the space of one epoch. They are drawn from (edition, seed, epoch) alone: a run that is taken up finds them, or makes
the same again where the edition is exact.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sprachbund.data.editions import Edition, make_part
from sprachbund.data.manifest import INFO_FILE, Manifest

_LOCK = "lock"


class LiveEdition:
    """The training part of an edition, drawn anew for every epoch; stands where a `Manifest` stands.

    Args:
        edition: what is drawn and how it sounds; an epoch has `train_utterances`.
        directory: where the epoch's utterances lie.
        workers: processes that render; every core if None.
        report: told before an epoch is rendered.
    """

    def __init__(
        self,
        edition: Edition,
        directory: str | Path,
        *,
        workers: int | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.edition = edition
        self.directory = Path(directory)
        self.workers = workers or os.cpu_count() or 1
        self.report = report

    def at(self, epoch: int | None = None) -> Manifest:
        """The utterances of an epoch, rendered if they are not there; of any that is there, or the first, if None.

        Of several processes that ask, one renders and the others wait.

        Raises:
            SprachbundError: a synthesiser that cannot speak, or a shard that cannot be made.
        """
        with self._alone():
            there = [path for path in sorted(self.directory.glob("epoch-*")) if (path / INFO_FILE).exists()]
            if epoch is None and there:
                return Manifest(there[-1])
            path = self.directory / f"epoch-{epoch or 0:06d}"
            if path not in there:
                edition = replace(self.edition, name=f"{self.edition.name}-{path.name}")
                count = edition.train_utterances
                self.report(f"epoch {epoch or 0}: rendering {count} utterances of {self.edition.name}")
                make_part(path, edition, "train", count, workers=self.workers)
            for other in self.directory.glob("epoch-*"):
                if other != path:
                    shutil.rmtree(other)
            return Manifest(path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
