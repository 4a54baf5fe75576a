"""The code that each job depends on, as digests: what Snakemake compares to know what to make again."""

from __future__ import annotations

from passionsr.models.family import FAMILIES
from passionsr.utils.code_digest import code_digest

# Read the configuration, or fetch: the values that a job uses are parameters of its rule.
LEFT_OUT = (
    "passionsr.benchmark.config",
    "passionsr.data.fetch",
    "passionsr.metrics.registry",
    "passionsr.utils.checked_yaml",
)


def job_code(*modules: str) -> str:
    """Digest of modules of this package and all they import, such as "benchmark.jobs.infer"."""
    return code_digest([f"passionsr.{module}" for module in modules], LEFT_OUT)


def method_code(target: str) -> str:
    """Digest of one method ("module:Class") and all it imports: the other methods' code does not concern its runs."""
    return code_digest([target.partition(":")[0]], LEFT_OUT)


def family_code(name: str) -> str:
    """Name of a model family and digest of its code: families are looked up, not imported."""
    module = FAMILIES.get(name, name).partition(":")[0]
    return f"{name} {code_digest([module, 'passionsr.models.family'], LEFT_OUT)}"
