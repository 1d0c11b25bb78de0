import json
import re
from pathlib import Path

import pytest
from developed import developed
from recorded import a_result, a_round

from synaptree.artifact.interchange import write_tensors
from synaptree.report.page.detail import _sentence, _steps
from synaptree.report.page.render import page, write_page
from synaptree.report.page.timing import Timing
from synaptree.results import Connections, write, write_progress
from synaptree.runtime.explain import Explanation, Row

ATTACK = "<script>alert(1)</script></script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return developed(tmp_path_factory.mktemp("html"), seeds=(0,))


def parts(html: str) -> tuple[str, str]:
    """Return what a person reads and the figures, without the plotting library."""
    head, _, rest = html.partition('<script type="application/json" id="charts">')
    return head, rest.partition("</script>")[0]


def test_a_page_holds_all_it_needs_and_asks_nobody_for_anything(runs):
    html = page([runs]).html()
    content, charts = parts(html)
    assert not re.search(r"""(src|href|action)\s*=\s*["']?(?!#)""", content)
    assert "url(" not in content
    assert "default-src 'none'" in content
    assert "connect-src" not in content
    assert html.count('id="plotly"') == 1
    assert "Plotly" in html
    assert json.loads(charts).keys() == set(re.findall(r'id="(chart-\d+)"', content))


def test_what_people_wrote_is_shown_and_never_run(tmp_path):
    result = a_result(
        recipe=ATTACK, control=None, status="failed", reason=ATTACK, config={"data": ATTACK, "note": ATTACK},
        rounds=[a_round(0, [1], notes=[ATTACK], layers={ATTACK: 1.0})],
    )  # fmt: skip
    write(result, tmp_path)
    (tmp_path / f"{ATTACK.replace('/', '_')}.json").write_text("{}")
    html = page([tmp_path]).html()
    content, charts = parts(html)
    assert "<script>alert" not in content
    assert "<img" not in content
    assert content.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5
    assert "<" not in charts
    assert ATTACK in json.dumps(json.loads(charts))


def test_figures_in_a_page_are_those_of_the_result(runs):
    made = page([runs])
    assert made.said == "2 runs"
    heights = [one for one in made.charts.values() if one["data"][0]["type"] == "heatmap"]
    assert heights
    for words in ("magnitude, seed 0", "random", "density %", "Configuration, seed, versions, hardware", "fc1"):
        assert words in made.content
    assert "Times were not measured" in made.content
    assert "where nothing is gained" not in made.content


def test_measured_times_say_that_they_were_measured(runs):
    content = page([runs], time=True).content
    assert "Measured on this machine with one sample and one thread" in content
    assert re.search(r"<td[^>]*>fc1</td><td[^>]*>linear</td>", content)


def test_a_step_that_gains_nothing_says_why():
    rows = (
        Row("fc1", "linear", (12,), 0.1, "rows", 2.0, 6.0, ""),
        Row("fc2", "linear", (10,), 1.0, "rows", 2.0, 2.0, "no gain: every connection is there"),
        Row("", "enter", (), None, "enter", None, None, ""),
    )
    table = _steps(Timing(Explanation("avx2", 1, 1, rows), 100))
    assert [cells[-2:] for cells, _ in table.rows] == [
        ("3.0 x", ""), ("1.0 x", "no gain here, because every connection is there"), ("-", ""),
    ]  # fmt: skip
    assert table.rows[2][0][:5] == ("-", "enter", "-", "enter", "-")


def test_a_result_alone_says_what_cannot_be_shown(tmp_path):
    write(a_result(config={"data": "mnist", "model": "lenet_300_100"}), tmp_path)
    content = page([tmp_path]).content
    assert "its file round_NN.safetensors does not lie beside the result" in content


def test_a_network_of_another_model_than_the_result_says_is_told_not_drawn(tmp_path):
    import torch

    file = write(a_result(config={"data": "mnist", "model": "lenet_300_100"}), tmp_path)
    meta = {"format": "synaptree sparse 1", "masks": {}, "shapes": {}}
    write_tensors(file.with_name("round_00.safetensors"), {"other.weight": torch.ones(2, 2)}, meta)
    assert "The network could not be read: " in page([tmp_path]).content


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("running", "Unfinished: the run was at work when it last gave a sign"),
        ("interrupted", "Unfinished: the run was interrupted: asked to stop. The same command goes on with it."),
        ("failed", "The run failed: asked to stop."),
    ],
)
def test_a_run_that_is_not_done_says_how_it_stands(tmp_path, status, words):
    write_progress(a_result(status=status, reason="asked to stop", rounds=[], epochs=[]), tmp_path)
    made = page([tmp_path])
    assert words in made.content
    assert "No round has ended yet." in made.content
    assert made.said == "1 run, 1 unfinished"


def test_runs_of_different_data_sets_have_their_own_sections(tmp_path):
    for data in ("mnist", "digits"):
        write(a_result(recipe=data, config={"data": data}), tmp_path)
    content = page([tmp_path]).content
    assert re.findall(r"<h2>(.*)</h2>", content) == ["Data set digits", "Data set mnist"]
    assert "kept apart" in content


def test_findings_of_the_guards_say_when_they_were_made_and_when_they_were_gone():
    finding = {"kind": "collapse", "text": "fc1 has lost all connections.", "stage": "train", "round": 1}
    assert _sentence("fc1 has lost everything") == "fc1 has lost everything"
    assert _sentence(finding | {"step": 40}) == "stage train, round 1, step 40: fc1 has lost all connections."
    assert _sentence(finding | {"step": 40, "until": 60}).endswith("all connections. Gone at step 60.")
    assert _sentence(Connections(born=1, died=2, layers={})) == "born: 1, died: 2, layers: {}"


def test_what_a_run_says_of_itself_is_among_the_notes(tmp_path):
    write(a_result(notes=["went on with another version"], rounds=[a_round(1, notes=["3 cuts"])]), tmp_path)
    assert "<li>went on with another version</li><li>Round 1: 3 cuts</li>" in page([tmp_path]).content


def test_a_page_is_written_whole_and_its_size_is_told(tmp_path):
    write(a_result(), tmp_path)
    size = write_page(page([tmp_path]), tmp_path / "out" / "page.html")
    assert (tmp_path / "out" / "page.html").stat().st_size == size
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["page.html"]


def test_the_example_in_the_documents_runs(tmp_path, monkeypatch, capsys):
    write(a_result(), tmp_path / "runs" / "demo")
    text = Path(__file__).parents[2].joinpath("docs", "report.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(text.partition("```python\n")[2].partition("```")[0], {})
    assert capsys.readouterr().out == "1 run []\n"
    assert (tmp_path / "report.html").read_bytes().startswith(b"<!doctype html>")
