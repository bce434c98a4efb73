"""`sprachbund serve`: the service and its page, until Ctrl-C."""

import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprachbund.cli.console import Bar, UsageError, as_usage, say
from sprachbund.cli.models import fetch
from sprachbund.cli.options import OWN_PANEL, Panel, with_options
from sprachbund.errors import SprachbundError
from sprachbund.serving.settings import Settings

if TYPE_CHECKING:
    from sprachbund.serving.server import Server


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(with_options(serve))


def serve(
    no_key: Annotated[
        bool,
        typer.Option("--no-key", help="Let everybody in who reaches the address, also from other machines."),
    ] = False,
    *,
    settings: Annotated[Settings, Panel(OWN_PANEL, nested={"limits": "Limits", "timeouts": "Timeouts"})],
) -> None:
    """Serve until Ctrl-C; a second one does not wait for what was begun."""
    with as_usage():
        _needs_extra(wyoming=settings.wyoming is not None)
        _check_reach(settings, no_key=no_key)
    _run(settings)


def _needs_extra(*, wyoming: bool) -> None:
    try:
        import fastapi  # noqa: F401
        import multipart  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise SprachbundError(
            f"{error.name} is not installed, which the service needs; pip install 'sprachbund[serve]'"
        ) from error
    if wyoming:
        try:
            import wyoming as _  # noqa: F401
        except ImportError as error:
            raise SprachbundError(
                "wyoming is not installed, which --wyoming needs; pip install 'sprachbund[wyoming]'"
            ) from error


def _check_reach(settings: Settings, *, no_key: bool) -> None:
    """Require keys, or `--no-key`, of a service that other machines can reach."""
    here = ("127.0.0.1", "::1", "localhost")
    if (address := settings.wyoming_address) and address[0] not in here and not no_key:
        raise UsageError(
            f"at {address[0]} other machines reach the Wyoming port, whose protocol has no keys; give --no-key to let "
            "everybody in"
        )
    if settings.host in here or settings.key_file or no_key:
        return
    raise UsageError(
        f"at {settings.host} other machines reach the service; give --key-file, or --no-key to let everybody in"
    )


def _run(settings: Settings) -> None:
    with Bar("starting"):
        from sprachbund.engines.choice import check_choice
        from sprachbund.serving.server import make_server

        check_choice(settings.engine, settings.threads, settings.device)
        for name in settings.models:
            fetch(name, offline=settings.offline)
        server = make_server(settings)
        sock = server.listen()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for line in _greeting(server, sock.getsockname()):
        say(line)
    server.run([sock])


def _greeting(server: "Server", address: Any) -> list[str]:
    """Address of the service, and licences of the models."""
    named = _named(address)
    store = server.service.store
    terms = [f"model {name}: licence {' and '.join(map(str, store.licences(name)))}" for name in store.ids]
    listener = server.wyoming_socket
    wyoming = [] if listener is None else [f"Wyoming: tcp://{_named(listener.getsockname())}, without keys"]
    return [
        f"page at http://{named}/",
        f"OpenAI's clients: base_url=http://{named}/v1",
        f"live captions: ws://{named}/v1/live, and OpenAI's realtime sessions at /v1/realtime",
        *wyoming,
        *terms,
        f"{'keys from ' + str(server.service.settings.key_file) if server.service.keys.wanted else 'no key needed'}; "
        "Ctrl-C stops it",
    ]


def _named(address: Any) -> str:
    """Host and port of a socket's address."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
