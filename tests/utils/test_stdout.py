"""Commands end with the right status and message if a standard stream cannot be used."""

import fcntl
import os
import struct
import subprocess
import sys
import termios

import pytest

from tests.helpers import ROOT

HEADER = """
import os, sys
from vae.utils.stdout import OutputClosed, print_error, print_or_raise, run_command

def main():
"""
FOOTER = """
run_command("program", main)
"""


def run_main(body: str, redirection: str = "", **variables: str) -> tuple[int, bytes, bytes]:
    """Run a command whose main function has a body; return its status, output and errors."""
    program = HEADER + "".join(f"    {line}\n" for line in body.splitlines()) + FOOTER
    process = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, program],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""} | variables,
        capture_output=True,
    )
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "1 ± 2 é\n".encode()),
        ("ascii", b"1 +- 2 \\xe9\n"),
        ("latin-1", b"1 \xb1 2 \xe9\n"),
    ],
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_characters_that_a_stream_cannot_encode_are_replaced(encoding, expected, stream):
    body = f"print('1 ± 2 é', file=sys.{stream}); return 0"
    status, *printed = run_main(body, PYTHONIOENCODING=encoding)
    assert (status, printed[stream == "stderr"]) == (0, expected)


def test_characters_are_replaced_in_the_locale_c():
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run_main("print('\\xb1'); return 0", **variables) == (0, b"+-\n", b"")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_bytes_of_a_file_name_that_are_not_valid_utf_8_stay_as_they_are(encoding):
    body = "print(os.fsdecode(b'run\\xff')); return 0"
    assert run_main(body, PYTHONIOENCODING=encoding) == (0, b"run\xff\n", b"")


PRINT = """
try: print_or_raise('results')
except OutputClosed as error:
    print_error('program', error)
    return 1
return 0
"""
NOT_PRINTED = b"program: the results could not be printed: "


@pytest.mark.parametrize(
    "body", [PRINT, "print('help'); return 0", "print('help'); raise SystemExit(0)"]
)
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [
        (">&-", b"Bad file descriptor"),
        (">&- <&-", b"Bad file descriptor"),
        (">/dev/full", b"No space left on device"),
    ],
)
def test_output_that_cannot_be_printed_is_reported_in_one_line(body, redirection, reason):
    assert run_main(body, redirection) == (1, b"", NOT_PRINTED + reason + b"\n")


def test_other_failures_keep_their_status_if_nothing_can_be_printed():
    status, _, _ = run_main("print('results'); return 2", ">&-")
    assert status == 2
    status, _, errors = run_main("print('results'); raise ValueError('of main')", ">&-")
    assert (status, errors.splitlines()[-1]) == (1, b"ValueError: of main")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("status", [0, 2])
def test_messages_are_lost_and_nothing_else_if_stderr_cannot_be_used(redirection, status):
    body = f"print_error('program', 'a')\nprint_error('program', 'b')\nprint('c')\nreturn {status}"
    assert run_main(body, redirection) == (status, b"c\n", b"")


def test_status_is_kept_if_all_streams_are_closed():
    assert run_main(PRINT, "<&- >&- 2>&-") == (1, b"", b"")


@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-"])
def test_a_file_does_not_get_the_descriptor_of_a_closed_stream(redirection, tmp_path):
    body = f"open({str(tmp_path / 'file')!r}, 'w').write(str(os.open('.', os.O_RDONLY)))\nreturn 0"
    run_main(body, redirection)
    assert int((tmp_path / "file").read_text()) > 2


def print_width_to(stdout: int, **variables: str) -> None:
    """Start a process that prints the width of its stdout, which is a file descriptor."""
    program = "from vae.utils.stdout import terminal_width; print(terminal_width())"
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    environment |= {"PYTHONPATH": str(ROOT)} | variables
    subprocess.run([sys.executable, "-c", program], env=environment, stdout=stdout, check=True)


@pytest.mark.parametrize(("variables", "width"), [({}, "93"), ({"COLUMNS": "70"}, "70")])
def test_width_is_that_of_the_terminal_unless_columns_is_set(variables, width):
    ours, stdout = os.openpty()
    fcntl.ioctl(stdout, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 93, 0, 0))
    print_width_to(stdout, **variables)
    assert os.read(ours, 100).decode().strip() == width
    os.close(ours)
    os.close(stdout)


@pytest.mark.parametrize(("variables", "width"), [({}, "None"), ({"COLUMNS": "70"}, "70")])
def test_output_that_is_no_terminal_has_no_width_unless_columns_is_set(variables, width):
    ours, stdout = os.pipe()
    print_width_to(stdout, **variables)
    assert os.read(ours, 100).decode().strip() == width
    os.close(ours)
    os.close(stdout)
