"""`snakemake -n` in forked processes: importing Snakemake is half of a dry run, and is done once.

This module must not import passionsr: every dry run imports the one in its own folder.
"""

import multiprocessing
import os
import sys

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["snakemake.cli", "snakemake.workflow", "pydantic", "PIL.Image"])


def _main(folder, arguments, environment):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, environment["PYTHONPATH"])
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in environment
    out = os.open("snakemake.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(out, stream)
    sys.argv = ["snakemake", *arguments]
    from snakemake.cli import main

    main(arguments)


def dry_run(folder, arguments, environment):
    """Exit status; what it prints goes to folder/snakemake.out."""
    process = _forkserver.Process(target=_main, args=(folder, arguments, environment))
    process.start()
    process.join()
    return process.exitcode
