"""Bad inputs of the workflow: other checkouts, --config and --configfile, too little memory."""

import os
import re
import shutil
from pathlib import Path
from unittest import mock

from bad_inputs.table import BadInput

from passionsr.benchmark.config_choice import chosen_file
from passionsr.benchmark.job_memory import memory_budget
from passionsr.cli import main
from passionsr.utils.machine_memory import VARIABLE, MachineMemory
from passionsr.utils.own_code import PACKAGE

ROOT = PACKAGE.parent
FILE = "--config file=config/mini.yaml"
KNOWN = f"known: file, the path of a configuration ({FILE})"
SNAKEMAKE = ["$", "snakemake", "-n", "-s", str(ROOT / "Snakefile")]


# -- another checkout ---------------------------------------------------------------------------


def checkout(folder, *scripts):
    """A folder that looks like a checkout with other code, and scripts of this one in it."""
    (folder / "Snakefile").write_text("")
    (folder / "passionsr").mkdir()
    (folder / "passionsr" / "__init__.py").write_text("")
    (folder / "results" / "mini").mkdir(parents=True)
    for name in scripts:
        target = folder / "workflow" / "scripts" / name
        target.parent.mkdir(parents=True)
        shutil.copy(ROOT / "workflow" / "scripts" / name, target)


def command_in(folder, *command, below="."):
    checkout(folder)
    os.chdir(folder / below)
    return list(command)


def script_of(name, *arguments):
    """A script beside a Snakefile without code: the environment's would be imported."""

    def prepare(folder):
        checkout(folder, name)
        shutil.rmtree(folder / "passionsr")
        return ["$", "python", f"workflow/scripts/{name}", *arguments]

    return prepare


OTHER_CODE = (
    f"this passionsr is the code in {ROOT}, but {{folder}} is a checkout with other code: run "
    "`python -m passionsr.cli` instead of `passionsr` in {folder}, or install it "
    "(`pip install -e .` in it)"
)
ELSEWHERE = (
    f"{{folder}}: passionsr would be imported from {ROOT}/passionsr/__init__.py, expected "
    "{folder}/passionsr/__init__.py: a job must run the code beside its own Snakefile; give the "
    "checkout its own passionsr/ and baselines/ (with passionsr/baselines as a link)"
)
CHECKOUTS = [
    BadInput(
        kind=1,
        given=f"`passionsr {command[0]}` in another checkout",
        prepare=lambda folder, command=command: command_in(folder, *command),
        answer=OTHER_CODE,
    )
    for command in (
        ["readme"],
        ["check", "config/mini.yaml"],
        ["expect", "results/mini"],
        ["plan", "config/mini.yaml", "--record", "here"],
    )
]
CHECKOUTS += [
    BadInput(
        kind=1,
        given="`passionsr bench` in a folder of another checkout",
        prepare=lambda folder: command_in(folder, "bench", "mini", below="results"),
        answer=OTHER_CODE,
    ),
    BadInput(
        kind=1,
        given="job.py in a checkout without code",
        prepare=script_of("job.py", "data", "--config", "config/mini.yaml"),
        answer=ELSEWHERE,
        status=1,
    ),
    BadInput(
        kind=1,
        given="dvc_benchmark.py in a checkout without code",
        prepare=script_of("dvc_benchmark.py", "--config", "a.yaml", "--results", "results/a"),
        answer=ELSEWHERE,
        status=1,
    ),
]


# -- which configuration ------------------------------------------------------------------------


def choice(given, *config_files, arguments=()):
    """A row's command: what the Snakefile asks, with these of --config and --configfile."""

    def prepare(folder):
        for name in config_files:
            (folder / name).write_text(f"name: {Path(name).stem}\n")
        return lambda: chosen_file(given, arguments, [folder / name for name in config_files])

    return prepare


def of_dvc(folder):
    """A dvc.yaml of which only `config` was changed."""
    return [
        "$", "env", "-C", str(ROOT), "python", "workflow/scripts/dvc_benchmark.py",
        "--config", "config/small.yaml", "--results", "results/mini",
    ]  # fmt: skip


CHOICES = [
    ("unknown key of --config", choice({"fle": "config/small.yaml"}),
     f"--config fle=config/small.yaml: unknown key; {KNOWN}"),
    ("a benchmark's key after --config", choice({"limit": 2}, "a.yaml"),
     "--config limit=2: the keys of a benchmark stand in its file: change limit there, or in a "
     f"copy with another `name:`, and give that as {FILE}"),
    ("--config file= with nothing", choice({"file": None}),
     f"--config file=: no path given, expected that of a configuration ({FILE})"),
    ("--config file= with a number", choice({"file": 3}),
     f"--config file=: 3 given, expected the path of a file ({FILE})"),
    ("--configfile and another file=", choice({"file": "b.yaml"}, "a.yaml"),
     "--configfile a.yaml and --config file=b.yaml: two configurations are named; give one "
     "(a profile may name one)"),
    ("two files of --configfile", choice({}, "a.yaml", "b.yaml"),
     "--configfile a.yaml b.yaml: a benchmark is one file, and files are not merged; give one"),
    ("file= given twice", choice({"file": "b.yaml"}, arguments=["file=a.yaml", "file=b.yaml"]),
     "--config file=a.yaml file=b.yaml: two configurations are named; give one"),
]  # fmt: skip
CONFIGURATIONS = [BadInput(5, given, prepare, answer) for given, prepare, answer in CHOICES]
CONFIGURATIONS += [
    BadInput(
        kind=5,
        given="snakemake with an unknown key",
        prepare=lambda folder: [*SNAKEMAKE, "--config", "fle=config/small.yaml"],
        answer=CHOICES[0][2],
        status=1,
    ),
    BadInput(
        kind=5,
        given="dvc.yaml whose `results` is of another configuration",
        prepare=of_dvc,
        answer="dvc.yaml: results: results/mini given, but config/small.yaml writes to "
        "results/small: change `config` and `results` of its `vars` together",
        status=1,
    ),
]


# -- memory -------------------------------------------------------------------------------------


def with_memory(text):
    """`passionsr plan` on a machine that the user describes."""

    def command():
        with mock.patch.dict(os.environ, {VARIABLE: text}):
            return main(["plan", str(ROOT / "config" / "mini.yaml")])

    def prepare(folder):
        os.chdir(ROOT)
        return command

    return prepare


def budget(total, **needs):
    memory = MachineMemory(total, "this machine")
    return lambda folder: lambda: memory_budget(needs, memory)


MEMORY = [
    BadInput(
        kind=15,
        given=f"memory of this machine: {text!r}",
        prepare=with_memory(text),
        answer=f"PASSIONSR_MEMORY_MB={text}: expected the memory of this machine in MB, a whole "
        "number such as 16000; unset it to take what there is",
    )
    for text in ("16G", "0", "-1")
]
MEMORY += [
    BadInput(
        kind=15,
        given="a machine with 2 GB",
        prepare=budget(2000, calibrate=3000, score=3000, tables=1000),
        answer="too little memory: calibrate may take 3000 MB, and jobs may take 1000 MB (2000 MB "
        "of this machine less 1000 MB for everything else); use a larger machine or limit, or, if "
        "you know better, say what jobs may take: --resources mem_mb=3000",
    ),
    BadInput(
        kind=15,
        given="`plan` for a machine with 2 GB",
        prepare=with_memory("2000"),
        answer=re.compile("^- too little memory: .* 3000 MB, and jobs may take 1000 MB"),
        status=0,
    ),
]
ROWS = [*CHECKOUTS, *CONFIGURATIONS, *MEMORY]
