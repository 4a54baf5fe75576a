"""One stage of the workflow in one process: `stage.py STAGE --config FILE [--run ID ...]`."""

import argparse
import importlib
import logging
import os
import sys
from pathlib import Path

HEAVY = {  # what a stage imports before it can work; timed as start-up
    "data": ["passionsr.data"],
    "probe": ["passionsr.metric_weights"],
    "reference": ["torch", "diffusers", "passionsr.inference"],
    "calibrate": ["torch", "diffusers", "passionsr.method"],
    "infer": ["torch", "diffusers", "passionsr.export"],
    "score": ["torch", "passionsr.metrics"],
    "tables": ["passionsr.tables"],
    "figures": ["passionsr.figures"],
}


def run(stage: str, config_path: Path, run_ids: list[str]) -> None:
    from passionsr import stages
    from passionsr.bench import Timer
    from passionsr.config import load_config

    config = load_config(config_path)
    timer = Timer(
        config.results, stage, run_ids[0] if len(run_ids) == 1 else "-".join(run_ids[:1]) or "all"
    )
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    for module in HEAVY[stage]:
        importlib.import_module(module)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(config.threads)
    timer.ready()
    if stage == "score":
        stages.score(config, run_ids)
    elif stage in ("calibrate", "infer"):
        getattr(stages, stage)(config, config.run(run_ids[0]))
    elif stage == "tables":
        sys.modules["passionsr.tables"].write_tables(config)
    elif stage == "figures":
        sys.modules["passionsr.figures"].write_figures(config)
    else:
        {"data": stages.make_data, "probe": stages.probe_metrics, "reference": stages.reference}[
            stage
        ](config)
    timer.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=list(HEAVY))
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--run", nargs="*", default=[])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    from passionsr.files import UserError

    try:
        run(args.stage, args.config, args.run)
    except UserError as err:
        raise SystemExit(f"error: {err}") from None
