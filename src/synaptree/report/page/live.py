"""The page of runs at work, served to this machine alone and made anew as their files change."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from synaptree.core.errors import DataError, SynaptreeError
from synaptree.report.page.render import Page, notice, page
from synaptree.results import PROGRESS

__all__ = ["LiveServer"]

HERE = "127.0.0.1"


class LiveServer(ThreadingHTTPServer):
    """Serves the page of runs on 127.0.0.1 until it is shut down.

    Args:
        places: folders of runs, and files of results; what is not in them yet is waited for.
        port: to listen on; 0 takes a free one.
        margins: as for `page`.

    Raises:
        DataError: a place is not there.
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, places: Sequence[Path], port: int = 0, margins: Mapping[str, float] | None = None) -> None:
        for place in places:
            if not place.exists():
                raise DataError(f"{place} is not there; name the folder that `synaptree run --out` writes to")
        self.places, self.margins = [Path(place) for place in places], margins
        self._lock, self._made = Lock(), ("", Page("", {}))
        super().__init__((HERE, port), _Handler)

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HERE}:{self.server_port}/"

    def current(self) -> tuple[str, Page]:
        """Return the page as the files are now, and a stamp that tells it from others."""
        stamp = _stamp(self.places)
        with self._lock:
            if self._made[0] != stamp:
                self._made = stamp, self._page()
            return self._made

    def _page(self) -> Page:
        try:
            return page(self.places, margins=self.margins)
        except (OSError, SynaptreeError) as error:
            return notice(f"Nothing to show yet: {error}")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a browser that leaves early is no error."""


def _stamp(places: Iterable[Path]) -> str:
    """Return a text that is another as soon as a file of a run is."""
    files = [file for place in places for file in ([place] if place.is_file() else _told(place))]
    states = []
    for file in sorted(files):
        with suppress(FileNotFoundError):  # a run takes it away as it ends
            found = file.stat()
            states.append((file.name, found.st_mtime_ns, found.st_size))
    return format(hash(tuple(states)), "x")


def _told(folder: Path) -> Iterable[Path]:
    return [file for pattern in ("*.json", PROGRESS, "round_*.safetensors") for file in folder.rglob(pattern)]


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer

    def do_GET(self) -> None:
        """Answer with the page, or with what is new of it."""
        asked = urlsplit(self.path)
        if not self._from_here():
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "this page is for this machine alone\n")
        elif asked.path == "/":
            stamp, made = self.server.current()
            self._answer(HTTPStatus.OK, "text/html", made.html(live=stamp))
        elif asked.path == "/state":
            stamp, made = self.server.current()
            if parse_qs(asked.query).get("seen") == [stamp]:
                self._answer(HTTPStatus.NO_CONTENT, "", "")
            else:
                news = {"stamp": stamp, "content": made.content, "charts": made.charts}
                self._answer(HTTPStatus.OK, "application/json", json.dumps(news))
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is only /\n")

    def _from_here(self) -> bool:
        """Say whether a page of this server asks, and no name that somebody made point at this machine."""
        port = self.server.server_port
        own = {f"{name}:{port}" for name in (HERE, "localhost")}
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in own and (origin is None or origin in {f"http://{name}" for name in own})

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for header, value in (
            ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):  # fmt: skip
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the terminal is for people."""
