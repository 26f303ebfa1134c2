"""The coordinator's environment and clock: the one place that touches either."""

from __future__ import annotations

import os
from datetime import UTC, datetime

MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # also answers "off" to the UI's own telemetry
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # each of its workers takes 240 MB
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default hangs for minutes on a dead server
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Variables under which MLflow calls nobody, starts no workers and gives up quickly."""


def quiet_mlflow() -> None:
    """Set MLflow's variables in this process; call it before MLflow is first imported."""
    os.environ.update(MLFLOW_ENVIRONMENT)  # noqa: TID251 - this is settings


def inherited_environment() -> dict[str, str]:
    """Return what child processes inherit, path and locale; nothing of it is read here."""
    return dict(os.environ)  # noqa: TID251 - this is settings


def utc_now() -> datetime:
    """Return the time now; passed as the ``clock`` argument wherever time is recorded."""
    return datetime.now(UTC)  # noqa: TID251 - the clock that others are given
