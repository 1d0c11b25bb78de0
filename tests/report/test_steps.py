import io

from rich.console import Console

from synaptree.report.steps import steps


def shown(terminal: bool) -> str:
    out = io.StringIO()
    with steps(3, Console(file=out, force_terminal=terminal, width=100)) as step:
        step("compacting")
        step("writing [net].syn")
    return out.getvalue()


def test_a_terminal_shows_the_step_at_work_and_how_many_there_are():
    text = shown(terminal=True)
    assert "compacting" in text
    assert "writing [net].syn" in text
    assert "0/3" in text
    assert "1/3" in text
    assert "2/3" not in text


def test_what_is_no_terminal_gets_nothing():
    assert shown(terminal=False) == ""


def test_an_error_takes_the_bar_away():
    out = io.StringIO()
    try:
        with steps(2, Console(file=out, force_terminal=True, width=100)) as step:
            step("reading")
            raise ValueError
    except ValueError:
        assert out.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")
