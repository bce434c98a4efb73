"""The service on many machines, by Ray Serve: replicas of the one app, each with models and batches of its own.

    serve run sprachbund.serving.ray_serve:build models='["bundled"]'

A live session lives in one replica, and can be resumed only there: balance `/v1/live` by the client's address.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sprachbund.errors import SprachbundError
from sprachbund.serving.schemas import field_fault
from sprachbund.serving.settings import Limits, Settings, Timeouts

OURS = {
    "host": "port and host are Ray's: see http_options",
    "port": "port and host are Ray's: see http_options",
    "wyoming": "a replica has no address of its own, which the Wyoming protocol would need",
}
_PARTS = {"limits": Limits, "timeouts": Timeouts}


def build(args: Mapping[str, Any]) -> Any:
    """A Ray Serve application.

    Args:
        args: fields of `Settings` besides host and port, those of `limits` and `timeouts` as objects; `replicas`, their
            number; `actor`, resources of one (`num_cpus`, `num_gpus`, ...). From the command line, values are JSON.

    Raises:
        SprachbundError: unknown or wrong settings.
    """
    from ray import serve

    values = {name: _read(value) for name, value in args.items()}
    replicas, actor = values.pop("replicas", 1), values.pop("actor", {})
    settings = settings_from(values)

    def app() -> Any:
        from sprachbund.serving.app import create_app

        return create_app(settings)

    deployment = serve.deployment(
        name="sprachbund",
        num_replicas=replicas,
        ray_actor_options=actor,
        max_ongoing_requests=ongoing(settings.limits),
        health_check_period_s=10,
        graceful_shutdown_timeout_s=settings.timeouts.stop_s,
    )
    return deployment(serve.ingress(app)()).bind()


def ongoing(limits: Limits) -> int:
    """Requests that a replica takes at once: all it has room for, and some for those it refuses by itself."""
    return limits.max_working + limits.max_waiting + limits.max_live + 32


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings out of plain values.

    Raises:
        SprachbundError: a name that is not known, or a value of the wrong kind.
    """
    values = dict(values)
    for name, reason in OURS.items():
        if name in values:
            raise SprachbundError(f"{name} is {values[name]!r}; {reason}")
    for name, part in _PARTS.items():
        if isinstance(values.get(name), Mapping):
            _check_names(values[name], part, f"{name}.")
    _check_names(values, Settings, "")
    try:
        return TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        raise SprachbundError(field_fault(error.errors()).reason) from error


def _check_names(values: Mapping[str, Any], part: Any, prefix: str) -> None:
    known = [field.name for field in fields(part) if field.name not in OURS]
    for name in values:
        if name not in known:
            raise SprachbundError(f"{prefix}{name} is not known; there are {', '.join(known)}")


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
