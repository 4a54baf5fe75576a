"""The benchmark interrupted in every way we could think of.

The same command again gives the same bytes.

Each test is one kind of fault; where and when it strikes is drawn from a printed seed. All of them
run once, two at a time, in copies of a finished small benchmark from which a part was removed.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from copies import SMALL, check_same, environment, results_of, snakemake, start

pytestmark = pytest.mark.slow
RUN = "passionsr-W4A4-UV-s0"
# What a stage makes and all that is made from it: something stands unfinished, not only missing.
LATER = {
    "calibrate": f"runs/{RUN}",
    "infer": f"images/{RUN}",
    "score": f"scores/{RUN}",
    "tables": "tables",
}


def remove(results, stage):
    """Undo a stage of the small benchmark and those after it."""
    for name in [*list(LATER.values())[list(LATER).index(stage) :], "figures"]:
        path = results / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()


def processes(folder, stage):
    """Process numbers of a stage's jobs in `folder`: the Python process, not its shell."""
    wanted = [b"workflow/scripts/job.py", stage.encode()]
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[1:3] == wanted and (path.parent / "cwd").samefile(
                folder
            ):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_for(condition, process, what, seconds=240):
    """The condition's first true value; the process must not end before."""
    for _ in range(seconds * 20):
        value = condition()
        if value:
            return value
        assert process.poll() is None, f"Snakemake ended before {what}"
        time.sleep(0.05)
    raise AssertionError(f"no {what}")


class Place:
    """One copy, one fault."""

    def __init__(self, folder, rng):
        self.folder, self.rng = folder, rng
        self.results = results_of(folder, SMALL)
        self.notes = []

    def note(self, text):
        self.notes.append(text)

    def started(self, *stages, longest=6.0):
        """Snakemake at a random moment of a random one of `stages`.

        (its process, the job's processes).
        """
        stage = self.rng.choice(stages)
        remove(self.results, stage)
        process = start(self.folder, *SMALL)
        found = wait_for(lambda: processes(self.folder, stage), process, f"{stage} started")
        delay = self.rng.uniform(0, longest)
        self.note(f"{delay:.1f} s into {stage}")
        time.sleep(delay)
        return process, found

    def again(self):
        """The same command again; obeys the one printed line that may ask for something."""
        status, output = snakemake(self.folder, *SMALL)
        asked = re.search(r"(?:remove the lock: |your command again: )(.*)", output)
        if status and asked:
            self.note(f"printed: {asked.group(1)[:200]}")
            subprocess.run(
                asked.group(1), shell=True, check=True, cwd=self.folder,
                env=environment(self.folder), capture_output=True,
            )  # fmt: skip
            status, output = snakemake(self.folder, *SMALL)
        assert status == 0, output[-3000:]
        return output


def signalled(place, number, whole_group, *stages):
    """Signal one process or all; the next start must ask to unlock exactly when a lock was left."""
    process, _ = place.started(*stages)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    place.note(f"exit {process.wait()}")
    # No lock where the workflow had done all its work before the signal and was about to exit.
    locked = any((place.folder / ".snakemake" / "locks").glob("*"))
    place.again()
    assert any("--unlock" in note for note in place.notes) == locked
    return locked


def job_killed(place):
    """kill -9 of a job: Snakemake repeats it in the same run."""
    process, found = place.started("calibrate", "infer", "score", "tables")
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it was faster than the delay
            place.note("had just ended")
    place.note(f"exit {process.wait()}")
    assert process.returncode == 0, (place.folder / "snakemake.out").read_text()[-3000:]
    place.again()


def job_terminated(place):
    """SIGTERM of a job: it removes its temporary files itself."""
    process, found = place.started("calibrate", "infer", "score")
    for pid in found:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            place.note("had just ended")
    place.note(f"exit {process.wait()}")
    assert process.returncode == 0
    place.again()


def calibration_killed_twice(place):
    """kill -9 of a calibration that has finished a stage, and of its repetition.

    The next start resumes.
    """
    remove(place.results, "calibrate")
    kept = place.results / "resume" / RUN
    process = start(place.folder, *SMALL)
    log = place.results / "logs" / f"calibrate-{RUN}.log"
    for attempt in (1, 2):
        wanted = place.rng.randint(1, 3) + (len(list(kept.glob("0*"))) if attempt == 2 else 0)
        found = wait_for(
            lambda n=wanted: (
                len(list(kept.glob("0*"))) >= n and processes(place.folder, "calibrate")
            ),
            process,
            f"{wanted} stages finished",
        )
        os.kill(found[0], signal.SIGKILL)
        place.note(f"killed with {len(list(kept.glob('0*')))} stages kept")
        wait_for(lambda p=found[0]: not Path(f"/proc/{p}").exists(), process, "death")
    process.wait()
    assert process.returncode != 0  # one retry was not enough
    place.again()
    resumed = log.read_text().count("finished by an earlier attempt")
    place.note(f"{resumed} stages not repeated")
    assert resumed >= 2
    assert not (place.results / "resume").exists()


def snakemake_killed(place):
    """kill -9 of Snakemake alone: its job goes on as an orphan while the next start works.

    The lock stays.
    """
    assert signalled(place, signal.SIGKILL, False, "calibrate", "infer")


def power_loss(place):
    """kill -9 of Snakemake and of all its jobs at once."""
    signalled(place, signal.SIGKILL, True, "calibrate", "infer", "score", "tables")


def interrupted(place):
    """Ctrl-C: SIGINT to all processes."""
    signalled(place, signal.SIGINT, True, "calibrate", "infer", "score")
    assert not any("printed" in note for note in place.notes)


def terminated(place):
    """SIGTERM of Snakemake: it waits for its jobs and stops."""
    signalled(place, signal.SIGTERM, False, "calibrate", "infer", "score")
    assert not any("printed" in note for note in place.notes)


@contextmanager
def small_disk(place):
    """The results on a file system of their own; skips where mounting is not allowed."""
    folder = place.folder / "results"
    aside = place.folder / "aside"
    folder.rename(aside)
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield folder
    finally:
        shutil.rmtree(aside)
        shutil.copytree(folder, aside)
        subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder)
        aside.rename(folder)


def full_disk(place):
    """No room on the disk of the results; then some."""
    stage = place.rng.choice(["calibrate", "infer", "tables"])
    room = place.rng.choice([0, 4096, 65536])
    with small_disk(place) as folder:
        remove(place.results, stage)
        ballast = folder / "ballast"
        state = os.statvfs(folder)
        ballast.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - room)))
        status, output = snakemake(place.folder, *SMALL)
        place.note(f"{stage} with {room} bytes left: exit {status}")
        assert status != 0
        assert "No space left on device" in output
        ballast.unlink()
        place.again()


def read_only(place):
    """The results folder may not be written; then it may."""
    stage = place.rng.choice(["calibrate", "infer", "tables"])
    with small_disk(place) as folder:
        remove(place.results, stage)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        status, output = snakemake(place.folder, *SMALL)
        place.note(f"{stage}: exit {status}")
        assert status != 0
        # the second where an output of the planned jobs is still there
        assert "Read-only file system" in output or "Write-protected output files" in output
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        place.again()


def vanished_input(place):
    """A file disappears after the plan was made and before the job that needs it reads it."""
    name = place.rng.choice([f"images/{RUN}", "data/test/HR"])
    remove(place.results, "score")
    process = start(place.folder, *SMALL)
    wait_for(lambda: processes(place.folder, "score"), process, "score started")
    for path in (place.results / name).iterdir():
        path.unlink()
    place.note(f"{name} gone: exit {process.wait()}")
    place.again()


def clock_ahead(place):
    """Files from the future, as after a clock that was wrong."""
    jump(place, 10 * 86400)


def clock_back(place):
    """Files from the past: the clock was set back before they were written."""
    jump(place, -10 * 86400)


def jump(place, seconds):
    files = [p for p in place.results.rglob("*") if p.is_file()]
    chosen = place.rng.sample(files, len(files) // 2)
    for path in chosen:
        when = path.stat().st_mtime + seconds
        os.utime(path, (when, when))
    stage = place.rng.choice(["infer", "score", "tables"])
    remove(place.results, stage)
    place.note(
        f"{len(chosen)} of {len(files)} files moved by {seconds / 86400:+.0f} days, {stage} to do"
    )
    place.again()


def cut_output(place):
    """Finished files that lost their end.

    The next start says which, and how to have them made again.
    """
    files = [
        p
        for part in ("runs", "tables", "data")
        for p in sorted((place.results / part).rglob("*"))
        if p.suffix in {".png", ".safetensors", ".csv", ".json", ".md"}
    ]
    for path in place.rng.sample(files, 2):
        keep = place.rng.randint(0, path.stat().st_size - 1)
        data = path.read_bytes()[:keep].rstrip(b"\n")
        path.write_bytes(data)
        place.note(f"{path.name} cut to {len(data)}")
    place.again()
    assert any("printed" in note for note in place.notes)


FAULTS = [
    job_killed,
    job_terminated,
    calibration_killed_twice,
    snakemake_killed,
    power_loss,
    interrupted,
    terminated,
    full_disk,
    read_only,
    vanished_input,
    clock_ahead,
    clock_back,
    cut_output,
]


@pytest.fixture(scope="module")
def outcomes(undisturbed, tmp_path_factory, seed):
    """What each fault did: None or the exception, and notes."""
    finished, expected = undisturbed
    base = tmp_path_factory.mktemp("faults")
    only = os.environ.get("PASSIONSR_FAULTS", "").split()  # to repeat some of them

    def strike(fault):
        place = Place(base / fault.__name__, random.Random(f"{seed} {fault.__name__}"))
        shutil.copytree(finished, place.folder, symlinks=True)
        try:
            fault(place)
            check_same(place.folder, expected)
            assert not list(place.results.rglob(".tmp-*"))
            # And everything is done: nothing was left half recorded.
            status, output = snakemake(place.folder, *SMALL, "-n")
            assert status == 0
            assert "Nothing to be done" in output, output[-2000:]
        except BaseException as err:  # raised again by the fault's own test
            return err, place.notes
        shutil.rmtree(place.folder)
        return None, place.notes

    chosen = [f for f in FAULTS if not only or f.__name__ in only]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip([f.__name__ for f in chosen], pool.map(strike, chosen), strict=True))


@pytest.mark.parametrize("name", [f.__name__ for f in FAULTS])
def test_same_bytes_after(name, outcomes, seed):
    if name not in outcomes:
        pytest.skip("not in PASSIONSR_FAULTS")
    error, notes = outcomes[name]
    print(f"PASSIONSR_FAULT_SEED={seed}; {name}: {'; '.join(notes)}")
    if error is not None:
        raise error
