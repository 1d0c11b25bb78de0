import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from commands import fails, shows
from recorded import a_result

from synaptree.cli.report import needing_report
from synaptree.core.errors import OptionError
from synaptree.results import write


def test_report_writes_a_page_and_says_what_is_on_it(tmp_path):
    write(a_result(), tmp_path / "runs")
    (tmp_path / "runs" / "other.json").write_text("[]")
    out = tmp_path / "page.html"
    said = shows("report", tmp_path / "runs", "-o", out)
    assert said == f"{out}: {out.stat().st_size:,} bytes, 1 run\n"
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_report_overwrites_nothing_but_pages(tmp_path):
    file = write(a_result(), tmp_path)
    before = file.read_bytes()
    assert "wanted a name that ends in .html or .htm" in fails("report", file, "-o", file)
    assert file.read_bytes() == before


def test_report_of_an_empty_folder_says_what_was_looked_for(tmp_path):
    assert "no runs in" in fails("report", tmp_path, "-o", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_watch_of_a_folder_that_is_not_there_ends_at_once(tmp_path):
    assert "is not there" in fails("watch", tmp_path / "nowhere")


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(OptionError, match=r"needs plotly: pip install 'synaptree\[report\]'"), needing_report():
        import plotly  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"), needing_report():
        import no_such_thing  # noqa: F401


@pytest.mark.slow
def test_watch_serves_until_ctrl_c(tmp_path):
    write(a_result(), tmp_path)
    command = [sys.executable, "-c", "from synaptree.cli import main; main()", "watch", str(tmp_path)]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=surroundings, **pipes) as served:
        address = served.stdout.readline().split()[0]
        try:
            with urllib.request.urlopen(address, timeout=20) as answer:
                assert b"<!doctype html>" in answer.read()
        finally:
            served.send_signal(signal.SIGINT)
        assert served.wait(20) == 0
        assert served.stderr.read() == "ended\n"
