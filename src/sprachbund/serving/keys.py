"""Who may ask: keys from a file, compared in a time that does not tell how much of a key was right."""

import hashlib
import hmac
from pathlib import Path

from sprachbund.errors import SprachbundError
from sprachbund.serving.refusals import RefusalError

_SHORTEST = 16


class Keys:
    """The keys of a service; without any, everybody may ask."""

    def __init__(self, keys: tuple[str, ...] | None = None) -> None:
        self._digests = None if keys is None else [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: Path | None) -> "Keys":
        """From a file with one key a line; empty lines and those beginning with # do not count.

        Raises:
            SprachbundError: the file cannot be read, has no key, or one that is easily guessed.
        """
        if path is None:
            return cls()
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise SprachbundError(f"the key file {path} cannot be read ({error}); check the path") from error
        keys = tuple(line for line in lines if line and not line.startswith("#"))
        if not keys:
            raise SprachbundError(f"the key file {path} holds no key; write one a line")
        for number, key in enumerate(keys, 1):
            if len(key) < _SHORTEST or not key.isascii() or any(c.isspace() or c in ',"' for c in key):
                raise SprachbundError(
                    f"key {number} of {path} is too short or has spaces, commas or quotes in it; "
                    f"take at least {_SHORTEST} letters and digits"
                )
        return cls(keys)

    @property
    def wanted(self) -> bool:
        """Whether a key is needed."""
        return self._digests is not None

    def check(self, key: str | None) -> str | None:
        """A name for the key's owner, safe to write down; None where no key is needed.

        Raises:
            RefusalError: 401, no key or a wrong one.
        """
        if self._digests is None:
            return None
        if not key:
            raise RefusalError(
                401, "a key is needed; send it as 'Authorization: Bearer KEY'", code="no_api_key"
            )
        seen = _digest(key)
        # All are compared, whichever fits, and digests of equal length: the time says nothing about any key.
        if not sum([hmac.compare_digest(seen, known) for known in self._digests]):
            raise RefusalError(401, "the key is not known here; check it", code="invalid_api_key")
        return seen.hex()[:8]


def bearer(header: str | None) -> str | None:
    """The key in an `Authorization` header."""
    scheme, _, key = (header or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
