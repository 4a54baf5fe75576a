"""A clone runs its own code, whatever passionsr the environment and PYTHONPATH hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from copies import ROOT, copy_repository, edit, environment

from passionsr.cli import main
from passionsr.utils import own_code
from passionsr.utils.files import UserError
from passionsr.utils.system import git_sha

PARTS = ("Snakefile", "workflow", "passionsr", "baselines", "config")
OWN = "the clone's own code"
JOB = ("workflow/scripts/job.py", "data", "--config", "config/test.yaml")
DVC = (
    "workflow/scripts/dvc_benchmark.py", "--config", "config/test.yaml",
    "--results", "results/test",
)  # fmt: skip


def run(folder, *command):
    """(status, standard error) of a Python command in a folder."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder, env=environment(folder), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A checkout whose check of configurations is another one's."""
    folder = copy_repository(tmp_path_factory.mktemp("a clone") / "repo", PARTS)
    old = '    """Read and check a configuration file; UserError says what is wrong and where."""\n'
    edit(folder, "passionsr/benchmark/config.py", old, f'{old}    raise UserError("{OWN}")\n')
    return folder


@pytest.mark.parametrize("script", [JOB, DVC], ids=["job", "DVC"])
@pytest.mark.parametrize("flags", [[], ["-P"], ["-I"]], ids=["plain", "safe path", "isolated"])
def test_scripts_run_the_code_beside_them(clone, script, flags):
    """PYTHONPATH names this checkout; the folder of the clone has a space in its name."""
    assert run(clone, *flags, *script) == (1, f"error: {OWN}\n")


def test_from_elsewhere_and_through_a_link(clone, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(clone)
    name, *arguments = JOB
    assert run(ROOT, clone / name, *arguments) == (1, f"error: {OWN}\n")
    assert run(ROOT, link / name, *arguments) == (1, f"error: {OWN}\n")


@pytest.mark.parametrize(
    ("part", "module"),
    [("passionsr", "passionsr"), ("passionsr/baselines", "passionsr.baselines")],
)
def test_a_checkout_without_its_code_is_refused(tmp_path, part, module):
    """The environment's own would be imported instead, or nothing."""
    folder = copy_repository(tmp_path / "repo", ("workflow", "passionsr", "baselines", "config"))
    (folder / part).rename(folder / "aside")
    status, said = run(folder, *JOB)
    assert status == 1
    assert said.startswith(f"error: {folder}: {module} would be imported from ")
    assert said.count("\n") == 1


def test_this_process_runs_this_checkout():
    own_code.check_own_code(ROOT)
    with pytest.raises(UserError, match="would be imported from"):
        own_code.check_own_code(ROOT / "tests")


def test_children_import_this_code(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/elsewhere", "", str(ROOT)]))
    assert own_code.python_path() == os.pathsep.join([str(ROOT), "/elsewhere"])


# -- the command line ---------------------------------------------------------------------------


def test_the_command_refuses_a_checkout_with_other_code(clone, monkeypatch, capsys):
    """Everywhere in it; where the code is the same, or there is none, it works."""
    for place in (clone, clone / "config"):
        monkeypatch.chdir(place)
        assert main(["check", str(ROOT / "config/test.yaml")]) == 2
        said = capsys.readouterr().err
        assert said == (
            f"error: this passionsr is the code in {ROOT}, but {clone} is a checkout with other "
            f"code: run `python -m passionsr.cli` instead of `passionsr` in {clone}, or install "
            "it (`pip install -e .` in it)\n"
        )
    assert main(["--help"]) == 0
    assert run(clone, "-m", "passionsr.cli", "check", "config/test.yaml") == (2, f"error: {OWN}\n")


def test_a_copy_with_the_same_code_is_no_other(tmp_path, monkeypatch):
    folder = copy_repository(tmp_path / "repo", PARTS)
    own_code.check_folder(folder)
    own_code.check_folder(tmp_path)
    with (folder / "baselines" / "minmax.py").open("a") as stream:
        stream.write("# changed\n")
    with pytest.raises(UserError, match="is a checkout with other code"):
        own_code.check_folder(folder)


# -- the commit ---------------------------------------------------------------------------------


def git(folder, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    """Not that of the working directory, nor of a repository that only surrounds the code."""
    code = tmp_path / "repo" / "passionsr"
    code.mkdir(parents=True)
    (code / "__init__.py").write_text("")
    assert git_sha(code) == "unknown"
    git(code.parent, "init", "--quiet")
    assert git_sha(code) == "unknown"  # installed below a repository
    git(code.parent, "add", ".")
    git(code.parent, "commit", "--quiet", "--message", "one")
    commit = git(code.parent, "rev-parse", "HEAD")
    monkeypatch.chdir(ROOT)
    assert git_sha(code) == commit
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "none"))  # as in a hook of git
    assert git_sha(code) == commit
    (code / "__init__.py").write_text("changed = True\n")
    assert git_sha(code) == f"{commit}-dirty"


def test_the_default_is_the_code_that_runs():
    assert Path(git_sha.__defaults__[0]) == own_code.PACKAGE
