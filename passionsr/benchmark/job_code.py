"""The code that each job depends on, as digests.

What Snakemake compares to know what to make again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json

from passionsr.metrics.registry import METRICS
from passionsr.metrics.weights import weights_digest
from passionsr.models.family import FAMILIES
from passionsr.utils.code_digest import code_digest

# Read the configuration, fetch, or word errors: the values that a job uses are parameters of its
# rule. This module makes keys and no product; through it, metric weights would count for
# calibrations.
LEFT_OUT = (
    "passionsr.benchmark.config",
    "passionsr.benchmark.job_code",
    "passionsr.data.fetch",
    "passionsr.methods.declared",
    "passionsr.metrics.registry",
    "passionsr.utils.checked_yaml",
    "passionsr.utils.contents",
    "passionsr.utils.names",
    "passionsr.utils.network",
    "passionsr.utils.yaml_files",
)


def job_code(*modules: str) -> str:
    """Digest of modules of this package and all they import, such as "benchmark.jobs.infer"."""
    return code_digest([f"passionsr.{module}" for module in modules], LEFT_OUT)


def method_code(target: str) -> str:
    """Digest of one method ("module:Class") and all it imports.

    The other methods' code does not concern its runs.
    """
    return code_digest([target.partition(":")[0]], LEFT_OUT)


def family_code(name: str) -> str:
    """Name of a model family and digest of its code: families are looked up, not imported."""
    module = FAMILIES.get(name, name).partition(":")[0]
    return f"{name} {code_digest([module, 'passionsr.models.family'], LEFT_OUT)}"


# Of a metric its own entry and its own weights count, not the lists in which they stand. The
# suite takes only its error type from utils.files.
OTHER_METRICS = (*LEFT_OUT, "passionsr.metrics.weights", "passionsr.utils.files")


def metric_code(name: str) -> str:
    """Digest of what computes one metric: its settings, its weights, pyiqa's version, the suite.

    How it is printed and how exactly it must be reproduced do not count.
    """
    metric = METRICS[name]
    parts = [
        json.dumps(metric.computation(), sort_keys=True),
        weights_digest(metric.pyiqa),
        importlib.metadata.version("pyiqa"),
        code_digest(["passionsr.metrics.suite"], OTHER_METRICS),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
