"""One stage of the workflow in one process: `stage.py STAGE --config FILE [--run ID ...]`."""

import argparse
import errno
import logging
import signal
import sys
from pathlib import Path

from passionsr import stages
from passionsr.bench import Timer
from passionsr.config import Config, load_config
from passionsr.files import UserError
from passionsr.memory import keep_freed_memory

STAGES = (
    "data", "probe", "reference", "sensitivity", "calibrate", "infer", "score", "tables", "figures",
    "table3", "proof",
)  # fmt: skip
# diffusers imports them where they are installed (pyiqa brings them); its UNet, VAE and scheduler use neither.
UNUSED = ("transformers", "bitsandbytes")
NOT_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def imports(stage: str) -> None:
    """What a stage needs before it can work, imported first so that the timer can tell it from work."""
    if stage in ("reference", "sensitivity", "calibrate", "infer", "table3"):
        for name in UNUSED:  # half of what importing diffusers takes
            sys.modules[name] = None
        from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
    elif stage == "score":
        from passionsr.metric_weights import use_private_hub

        use_private_hub()
        import pyiqa  # noqa: F401
    elif stage == "figures":
        import passionsr.figures  # noqa: F401


def work(stage: str, config: Config, run_ids: list[str]) -> None:
    """Call the library."""
    if stage in ("reference", "sensitivity", "calibrate", "infer", "score"):
        import torch

        torch.set_num_threads(config.threads)
        if not config.lean:
            keep_freed_memory()
    if stage in ("calibrate", "infer"):
        (run_id,) = run_ids
        getattr(stages, stage)(config, config.run(run_id))
    elif stage == "score":
        stages.score(config, run_ids)
    elif stage == "tables":
        from passionsr.tables import write_tables

        write_tables(config)
    elif stage == "table3":
        from passionsr.cost import write_table3

        write_table3(config)
    elif stage == "proof":
        from passionsr.proof import write_proof

        for run in write_proof(config):
            logging.warning("%s is not finished", run.run_id)
    elif stage == "figures":
        from passionsr.figures import write_figures

        write_figures(config)
    else:
        {
            "data": stages.make_data,
            "probe": stages.probe_metrics,
            "reference": stages.reference,
            "sensitivity": stages.sensitivity,
        }[stage](config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--run", nargs="*", default=[])
    args = parser.parse_args()
    # Without this a SIGTERM ends the process where it stands, and temporary files stay.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        config = load_config(args.config)
        timer = Timer(config.results, args.stage, args.run[0] if args.run else "all")
        imports(args.stage)
        timer.ready()
        work(args.stage, config, args.run)
        timer.finish()
    except UserError as err:
        raise SystemExit(f"error: {err}") from None
    except OSError as err:
        if err.errno not in NOT_OURS:
            raise
        raise SystemExit(
            f"error: {err}: give the results folder room and write permission, then run again"
        ) from None


if __name__ == "__main__":
    main()
