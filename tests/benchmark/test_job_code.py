"""Which sources a job's digest is made of."""

import pytest

from passionsr.benchmark.job_code import LEFT_OUT
from passionsr.utils.code_digest import sources


@pytest.mark.parametrize("job", ["data", "calibrate", "infer"])
def test_no_model_depends_on_metrics_or_the_report(job):
    """A metric's weights, a title or a table must not make a calibration run again."""
    found = sources([f"passionsr.benchmark.jobs.{job}"], LEFT_OUT)
    assert f"passionsr.benchmark.jobs.{job}" in found
    assert not [
        name for name in found if name.startswith(("passionsr.metrics", "passionsr.report"))
    ]
