"""Which tests go to one process together, and which of these groups begin first."""

from __future__ import annotations

PREFECT = "prefect"
"""Files with a Prefect server: in one group they share it."""
LATE = "tests/api/test_flows.py"
"""After tests/flows, whose first test leaves the tables of a Prefect database to be copied."""
LONGEST = (
    PREFECT,
    "finetune/test_starter_quality.py",
    "core/test_evaluation_live.py",
    "core/test_tracking_mlflow.py",
    "core/test_lanes_s3.py",
    "core/test_lanes_killed.py",
    "core/test_bench_generate.py",
    "core/test_backends.py",
    "core/test_evaluation_agreement.py",
    "core/test_evaluation_corpus.py",
    "telemetry/test_serve_wired.py",
    "core/test_runs_resume.py",
    "telemetry/test_run_metrics.py",
    "core/test_plan_memory.py",
    "core/test_tracking_wandb.py",
    "core/test_runs_retry.py",
    "core/test_lanes_failing.py",
    "api/test_api_document.py",
    "core/test_quant_artefact.py",
)
"""Groups that take longest go first, so that no process is left with one of them at the end."""


def find_group(test_id: str) -> str:
    """Path of the test's file below tests/, or the group that the file belongs to."""
    name = test_id.partition("::")[0].removeprefix("tests/")
    return PREFECT if name.startswith("flows/") or name == "api/test_flows.py" else name
