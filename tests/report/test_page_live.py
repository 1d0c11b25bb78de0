import http.client
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorded import a_result, a_round

from synaptree.core.errors import DataError
from synaptree.report.page.live import LiveServer
from synaptree.results import write_progress


@pytest.fixture
def server(tmp_path) -> Iterator[LiveServer]:
    with LiveServer([tmp_path]) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def ask(server: LiveServer, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def a_sign(folder: Path, rounds: int, written: float) -> None:
    file = write_progress(a_result(status="running", rounds=[a_round(n) for n in range(rounds)]), folder)
    os.utime(file, (written, written))


def test_only_this_machine_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/"


def test_the_page_is_made_anew_when_a_run_goes_on_and_not_before(server, tmp_path):
    a_sign(tmp_path, 1, 1000)
    status, html = ask(server, "/")
    stamp = html.partition('data-live="')[2].partition('"')[0]
    assert status == 200
    assert "connect-src 'self'" in html
    assert ask(server, f"/state?seen={stamp}") == (204, "")
    a_sign(tmp_path, 2, 2000)
    status, news = ask(server, f"/state?seen={stamp}")
    told = json.loads(news)
    assert status == 200
    assert told["stamp"] != stamp
    assert ">1</td>" in told["content"]
    assert told["charts"]
    assert ask(server, f"/state?seen={told['stamp']}") == (204, "")


def test_a_run_that_has_written_nothing_yet_is_waited_for(server):
    status, html = ask(server, "/")
    assert status == 200
    assert "Nothing to show yet: no runs in" in html


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""])
def test_who_calls_this_machine_by_another_name_gets_nothing(server, host):
    status, text = ask(server, "/", Host=host.format(port=server.server_port))
    assert (status, text) == (403, "this page is for this machine alone\n")


def test_pages_of_others_get_nothing_and_its_own_page_does(server):
    assert ask(server, "/state", Origin="http://evil.example")[0] == 403
    assert ask(server, "/state", Origin="null")[0] == 403
    assert ask(server, "/state", Origin=server.address.rstrip("/"))[0] == 200
    assert ask(server, "/", Host=f"localhost:{server.server_port}")[0] == 200


def test_nothing_but_the_page_is_served(server, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    for path in ("/secret.txt", "/../secret.txt", "//etc/passwd"):
        assert ask(server, path) == (404, "there is only /\n")


def test_a_place_that_is_not_there_is_named_at_once(tmp_path):
    with pytest.raises(DataError, match="nowhere is not there; name the folder"):
        LiveServer([tmp_path / "nowhere"])
