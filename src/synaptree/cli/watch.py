"""The page of runs while they go on."""

from collections.abc import Sequence
from pathlib import Path

import typer

from synaptree.cli.report import needing_report
from synaptree.cli.show import MARGINS

__all__ = ["serve"]


def serve(places: Sequence[Path], port: int = 0) -> None:
    """Serve the page of runs on this machine until Ctrl-C.

    Args:
        places: folders of runs, and files of results.
        port: to listen on; 0 takes a free one.

    Raises:
        DataError: a place is not there.
        OptionError: a library is missing.
        OSError: the port is taken.
    """
    with needing_report():
        from synaptree.report.page.live import LiveServer
    with LiveServer(places, port, MARGINS) as server:
        typer.echo(f"{server.address} shows {', '.join(map(str, places))} as it goes on; Ctrl-C ends it")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            typer.echo("ended", err=True)
