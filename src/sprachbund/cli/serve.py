"""`sprachbund serve`: the service and its page, until Ctrl-C."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sprachbund.cli.console import Bar, UsageError, as_usage, listed, say
from sprachbund.errors import SprachbundError

if TYPE_CHECKING:
    from sprachbund.engines.choice import EngineChoice
    from sprachbund.serving.server import Server
    from sprachbund.serving.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Serve the page, HTTP and live captions.")(serve)


def serve(
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Where to listen; 0.0.0.0 is every network, and needs --key-file.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", help="0 takes one that is free.")] = 8000,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="MODEL,…", help="Models that may be asked for; the first is loaded now."
        ),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", help="Keys that clients need, one a line.")
    ] = None,
    no_key: Annotated[
        bool,
        typer.Option("--no-key", help="Let everybody in who reaches the address, also from other machines."),
    ] = False,
    max_upload_mb: Annotated[
        float, typer.Option("--max-upload-mb", metavar="MB", help="Of one recording.")
    ] = 100,
    max_duration_s: Annotated[
        float, typer.Option("--max-duration-s", metavar="S", help="Of one recording.")
    ] = 14400,
    max_working: Annotated[
        int, typer.Option("--max-working", metavar="N", help="Recordings worked on at a time.")
    ] = 8,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", metavar="N", help="Recordings that wait; the next is refused.")
    ] = 64,
    max_live: Annotated[int, typer.Option("--max-live", metavar="N", help="Live sessions at a time.")] = 16,
    max_share: Annotated[
        float,
        typer.Option(
            "--max-share", metavar="PART", help="Of those places that one key or address may hold; 1 is all."
        ),
    ] = 0.75,
    max_connections: Annotated[
        int, typer.Option("--max-connections", metavar="N", help="Open at a time.")
    ] = 1000,
    max_per_address: Annotated[
        int,
        typer.Option(
            "--max-per-address", metavar="N", help="Connections of one address; raise it behind a proxy."
        ),
    ] = 128,
    max_receiving: Annotated[
        int, typer.Option("--max-receiving", metavar="N", help="Recordings being sent at a time.")
    ] = 128,
    max_stored_mb: Annotated[
        float,
        typer.Option("--max-stored-mb", metavar="MB", help="Of all recordings that are here at a time."),
    ] = 8000,
    max_per_minute: Annotated[
        float, typer.Option("--max-per-minute", metavar="N", help="Requests of one key or address.")
    ] = 600,
    max_loaded: Annotated[
        int, typer.Option("--max-loaded", metavar="N", help="Models in memory at a time.")
    ] = 2,
    unload_s: Annotated[
        float, typer.Option("--unload-s", metavar="S", help="Unload a model that is not used for so long.")
    ] = 600,
    header_s: Annotated[
        float, typer.Option("--header-s", metavar="S", help="Time for the head of a request to come.")
    ] = 10,
    stop_s: Annotated[
        float, typer.Option("--stop-s", metavar="S", help="Time to finish what was begun when stopped.")
    ] = 60,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="auto, native, torch, as of `translate`.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", help="To compute with.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
) -> None:
    """Serve until Ctrl-C; a second one does not wait for what was begun."""
    with as_usage():
        _needs_extra()
        from sprachbund.serving.settings import Limits, Settings, Timeouts

        settings = Settings(
            host=host,
            port=port,
            models=tuple(listed(model)) or ("bundled",),
            key_file=key_file,
            engine=engine,
            threads=threads,
            offline=offline,
            limits=Limits(
                max_upload_bytes=round(max_upload_mb * 1e6),
                max_duration_s=max_duration_s,
                max_working=max_working,
                max_waiting=max_waiting,
                max_live=max_live,
                max_share=max_share,
                max_connections=max_connections,
                max_connections_per_address=max_per_address,
                max_receiving=max_receiving,
                max_stored_bytes=round(max_stored_mb * 1e6),
                max_loaded=max_loaded,
                requests_per_minute=max_per_minute,
            ),
            timeouts=Timeouts(header_s=header_s, unload_s=unload_s, stop_s=stop_s),
        )
        _check_reach(settings, no_key=no_key)
    _run(settings)


def _needs_extra() -> None:
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


def _check_reach(settings: "Settings", *, no_key: bool) -> None:
    """Who opens a service to a network says who may use it."""
    if settings.host in ("127.0.0.1", "::1", "localhost") or settings.key_file or no_key:
        return
    raise UsageError(
        f"at {settings.host} other machines reach the service; give --key-file, or --no-key to let everybody in"
    )


def _run(settings: "Settings") -> None:
    with Bar("starting"):
        from sprachbund.engines.choice import check_choice
        from sprachbund.models.io import locate
        from sprachbund.serving.server import make_server

        check_choice(cast("EngineChoice", settings.engine), settings.threads)
        for name in settings.models:
            locate(name, offline=settings.offline)
        server = make_server(settings)
        sock = server.listen()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for line in _greeting(server, sock.getsockname()):
        say(line)
    server.run([sock])


def _greeting(server: "Server", address: Any) -> list[str]:
    """Where it is, and what the weights may be used for."""
    host, port = address[0], address[1]
    named = f"[{host}]" if ":" in host else host
    store = server.service.store
    licences = [
        f"model {name}: licence {store.card(name).licence or 'not stated; see where it came from'}"
        for name in store.ids
    ]
    return [
        f"page at http://{named}:{port}/",
        f"OpenAI's clients: base_url=http://{named}:{port}/v1",
        f"live captions: ws://{named}:{port}/v1/live",
        *licences,
        f"{'keys from ' + str(server.service.settings.key_file) if server.service.keys.wanted else 'no key needed'}; "
        "Ctrl-C stops it",
    ]
