"""Lines in a log carry a step's progress, results and errors to whoever reads it."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from twophase.errors import TwoPhaseError, UsageError
from twophase.progress import Event, parse, step


@given(note=st.text(), done=st.integers(0, 10**6), before=st.sampled_from(["", "    ", "[KFP] 12:00 "]))
def test_a_line_comes_back_whatever_a_log_puts_before_it(note: str, done: int, before: str) -> None:
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), step("x") as say:
        say.result(note, done=done)
    line = out.getvalue().splitlines()[-1]
    assert parse(before + line) == Event("x", 1, 1, note, values={"done": done})


def test_other_lines_are_no_events() -> None:
    assert parse("INFO twophase did something") is None


def test_what_a_user_can_mend_ends_a_step_with_its_exit_code_and_no_traceback() -> None:
    for error in (TwoPhaseError, UsageError):
        code = (
            "from twophase.progress import step; from twophase.errors import *\n"
            f"with step('x') as say: raise {error.__name__}('a.wav: is empty')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == error.exit_code
        assert done.stderr == ""
        event = parse(done.stdout.splitlines()[-1])
        assert event is not None
        assert event.error == "a.wav: is empty"
