"""Errors become one line and an exit code; what an exception says stays inside."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from offmap.cli.exits import Guarded, describe
from offmap.core.errors import BundleError, ConfigError, DataError, NotAvailableError, OODError, SignalError
from offmap.prepare.resampler import resample

CANARY = "DOE^JANE-4711"


def run(error: BaseException, *, debug: bool = False) -> tuple[int, str, BaseException | None]:
    app = typer.Typer(cls=Guarded, pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    @app.callback()
    def group() -> None:
        pass

    done = CliRunner().invoke(app, ["fail"], env={"OFFMAP_DEBUG": "1" if debug else ""})
    return done.exit_code, done.stderr, done.exception


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("alpha = 2 must lie in (0, 0.5]"), 2),
        (SignalError("no signal"), 2),
        (NotAvailableError("install offmap[hub]"), 2),
        (DataError("no image could be read"), 3),
        (BundleError("manifest.json is cut off"), 4),
    ],
)
def test_errors_on_purpose_are_one_line_and_their_code(error: OODError, code: int) -> None:
    assert run(error)[:2] == (code, f"offmap: {error}\n")


def test_interrupt_is_130() -> None:
    code, text, _ = run(KeyboardInterrupt())
    assert code == 130
    assert text.startswith("offmap: interrupted")


def test_unexpected_errors_show_type_and_place_but_no_text() -> None:
    with pytest.raises(IndexError) as caught:
        resample(np.zeros((1, 4, 4), dtype=np.float32), ())
    code, text, _ = run(caught.value)
    assert code == 1
    assert text.startswith("offmap: IndexError in offmap/prepare/resampler.py:")
    assert text.count("\n") == 1
    assert str(caught.value) not in text


def test_text_of_a_foreign_error_stays_inside() -> None:
    code, text, _ = run(ValueError(CANARY))
    assert code == 1
    assert "ValueError in" in text
    assert CANARY not in text


def test_faults_of_the_machine_are_named_by_the_system() -> None:
    assert describe(OSError(28, CANARY)).startswith("OSError (No space left on device) in")


def test_debug_shows_the_exception() -> None:
    error = ValueError(CANARY)
    assert run(error, debug=True)[2] is error


def test_control_characters_cannot_steer_the_terminal() -> None:
    assert run(ConfigError("no file \x1b[2Jx"))[1] == "offmap: no file \\x1b[2Jx\n"


def test_warnings_of_other_packages_stay_inside() -> None:
    app = typer.Typer(cls=Guarded, pretty_exceptions_enable=False)

    @app.command()
    def talk() -> None:
        warnings.warn(CANARY, stacklevel=1)

    @app.callback()
    def group() -> None:
        pass

    done = CliRunner().invoke(app, ["talk"])
    assert done.exit_code == 0
    assert CANARY not in done.output


def test_options_that_do_not_exist_are_usage_errors() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from offmap.cli import main; main()", "score", "gate", "x.png", "--out", "s.csv", "--colour"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 2
    assert "--colour" in done.stderr
    assert done.stdout == ""


def test_help_loads_nothing_heavy() -> None:
    code = """
import json, sys
sys.argv = ["offmap", *json.loads(sys.argv[1])]
from offmap.cli import main
try:
    main()
except SystemExit as left:
    print(json.dumps([left.code, sorted({"torch", "numpy", "scipy", "pyarrow", "pydicom", "sklearn", "PIL"} & set(sys.modules))]))
"""
    for arguments in (["--help"], ["fit", "--help"], ["score", "--help"], ["data", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout.splitlines()[-1]) == [0, []], arguments
