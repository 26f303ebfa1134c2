"""The same study with ``device = "cuda"``: every stage runs there, with no other change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.factories.federation import SITES, STUDY, open_sites, prepare_homes
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.run import open_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

ON_CUDA = STUDY.replace("[performance]\n", '[performance]\ndevice = "cuda"\n')


def test_study_runs_on_cuda_with_one_word_changed(tmp_path: Path) -> None:
    assert ON_CUDA != STUDY
    home = prepare_homes(tmp_path, ON_CUDA)
    torch.cuda.reset_peak_memory_stats()
    with open_sites(home, SITES) as exchange:
        run_study(home, exchange)
        run = open_run(home, exchange)
    finished = {
        record.key.stage
        for record in run.ledger.history(run.study.protocol.digest)
        if record.status == "finished"
    }
    assert {"codec", "teacher", "student", "audit", "gates"} <= finished
    assert torch.cuda.max_memory_allocated() > 0
