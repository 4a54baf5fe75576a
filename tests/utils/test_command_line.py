"""How a command line ends where nobody reads on, and the limits of its numbers."""

import os
import re
import subprocess
import sys

import pytest

from passionsr.cli import cli_reference, main
from passionsr.inference.limits import LIMITS
from passionsr.utils.command_line import CLOSED_PIPE, INTERRUPTED, end_quietly, number


def start(code, **streams):
    return subprocess.run([sys.executable, "-c", code], check=False, text=True, **streams)


RUN = "import sys; from passionsr.cli import main; sys.exit(main(%r))"
PRINTS = "import passionsr.cli as c; c.app.command('print')(lambda: print('x' * %d)); " + RUN


@pytest.mark.parametrize(
    "code", [RUN % ["--help"], PRINTS % (9, ["print"]), PRINTS % (10**6, ["print"])]
)
def test_a_reader_that_has_gone(code):
    """`passionsr ... | head`: in help, in the last flush, and within a long output."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = start(code, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (CLOSED_PIPE, "")


@pytest.mark.parametrize("length", [9, 10**6])
def test_a_full_output(length):
    with open("/dev/full", "w") as full:
        done = start(PRINTS % (length, ["print"]), stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.startswith("error: No space left on device: make room")
    assert done.stderr.count("\n") == 1


def test_a_name_that_cannot_be_printed(tmp_path):
    code = PRINTS.replace("'x' * %d", "'caf\\udce9' * %d") % (1, ["print"])
    done = start(code, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUTF8": "1"})
    assert (done.returncode, done.stdout) == (0, "caf\\udce9\n")


def test_interrupted_outside_a_command():
    def interrupted():
        raise KeyboardInterrupt

    assert end_quietly(interrupted) == INTERRUPTED


def numbers():
    """(command, option) of every option that takes a number, as the reference page has them."""
    for section in cli_reference().split("\n## `passionsr ")[1:]:
        for option in re.findall(r"^\* `(--[a-z-]+) <(?:int|float)", section, re.M):
            yield section.split("`")[0], option


@pytest.mark.parametrize(
    ("command", "option"), [pytest.param(*n, id=" ".join(n)) for n in numbers()]
)
@pytest.mark.parametrize("value", ["-1", "9" * 400])
def test_every_number_has_limits(command, option, value, tmp_path, monkeypatch, capsys):
    """One line that names the option; a tile or overlap may be as large as one likes."""
    monkeypatch.chdir(tmp_path)
    needed = {
        "upscale": ["lr.png", "sr.png"],
        "plan": ["c.yaml"],
        "quantize": ["out", "--method", "m", "--scheme", "W8A8", "--calibration", "c"],
        "bench": ["--tiles"],
    }
    status = main([command, *needed[command], option, value])
    err = capsys.readouterr().err
    assert status == 2
    assert err.count("\n") == 1
    unlimited = LIMITS.get(option.removeprefix("--").replace("-", "_"), (0, 0))[1] is None
    if not (unlimited and value != "-1"):
        assert err.startswith(f"error: {option} {value}: give ")


def test_every_number_is_found():
    assert {f"{command} {option}" for command, option in numbers()} == {
        "upscale --process-size", "upscale --latent-tile", "upscale --latent-overlap",
        "upscale --encoder-tile", "upscale --decoder-tile", "quantize --seed", "bench --sizes",
        "bench --threads", "plan --gpus", "plan --test-images",
    }  # fmt: skip


def test_numbers_of_a_list_are_checked_one_by_one():
    option = number("help", 2, 5)
    check = option.callback
    parameter = type("P", (), {"opts": ["--n"]})
    assert check(parameter, None) is None
    assert check(parameter, [2, 5]) == [2, 5]
    for wrong in ([2, 6], 1):
        with pytest.raises(ValueError, match=r"^--n [16]: give 2 to 5$"):
            check(parameter, wrong)
