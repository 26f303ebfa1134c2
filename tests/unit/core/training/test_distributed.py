"""Two processes on loopback learn what one would, and none waits for ever for one that died."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.factories import shared_training
from vitrael.core.errors import ConfigError
from vitrael.core.training.distributed import ALONE, Ranks, join_ranks

ROOT = Path(__file__).resolve().parents[4]
PATIENCE_S = 120


def free_port() -> int:
    with closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


@contextmanager
def two_processes(*arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the program of ``shared_training`` twice, as torchrun would."""
    port = free_port()
    started = []
    try:
        for rank in range(2):
            environment = {
                **os.environ,
                "TORCHELASTIC_RUN_ID": "test",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
            }
            command = [sys.executable, "-W", "ignore", shared_training.__file__, *arguments]
            started.append(
                subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            )
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where two processes have left their weights: whole, and stopped and resumed."""
    folder = tmp_path_factory.mktemp("shared")
    with two_processes("whole", str(folder)) as processes:
        for process in processes:
            _, said = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, said
    return folder


def test_all_processes_hold_the_same_weights_and_curve(shared: Path) -> None:
    first, second = (load_file(shared / f"whole-{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_two_processes_learn_what_one_does_with_the_whole_batch(shared: Path) -> None:
    ours = load_file(shared / "whole-0.safetensors")
    alone = shared_training.train_alone(count=2)
    assert ours.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(ours[name], tensor, rtol=2e-4, atol=2e-5)
    other = shared_training.train_alone(count=1)  # the control: other draws, other weights
    assert any(not torch.allclose(ours[n], other[n], rtol=1e-2, atol=1e-3) for n in ours)


def test_shared_training_that_was_stopped_goes_on_to_the_same_weights(shared: Path) -> None:
    for rank in range(2):
        whole = load_file(shared / f"whole-{rank}.safetensors")
        resumed = load_file(shared / f"resumed-{rank}.safetensors")
        assert all(whole[name].equal(resumed[name]) for name in whole)


def test_only_the_first_process_saves(shared: Path) -> None:
    assert (shared / "saves-0").read_text(encoding="ascii") == "1"
    assert (shared / "saves-1").read_text(encoding="ascii") == "0"


def test_process_whose_neighbor_died_ends_in_bounded_time(tmp_path: Path) -> None:
    with two_processes("die", str(tmp_path)) as processes:
        first, second = processes
        assert second.wait(timeout=PATIENCE_S) == shared_training.DEAD
        _, said = first.communicate(timeout=PATIENCE_S)
        assert first.returncode not in {0, shared_training.DEAD}
        assert "Error" in said


def test_processes_that_go_on_from_different_steps_are_refused(shared: Path) -> None:
    for rank in range(2):
        said = (shared / f"refused-{rank}").read_text(encoding="utf-8")
        assert "do not agree on the step" in said
        assert "one has 0, another 3" in said


def test_process_alone_is_alone() -> None:
    with join_ranks(device="cpu") as ranks:
        assert ranks is ALONE
        assert ranks.is_first
    rng = torch.Generator().manual_seed(1)
    before = rng.get_state()
    assert ALONE.stream(rng) is rng
    tensor = torch.ones(2)
    ALONE.average([tensor])
    assert rng.get_state().equal(before)
    assert tensor.equal(torch.ones(2))


def test_processes_draw_from_streams_of_their_own() -> None:
    draws = []
    for rank in range(2):
        rng = torch.Generator().manual_seed(1)
        draws.append(torch.rand(4, generator=Ranks(rank, 2).stream(rng)))
        after = torch.rand(1, generator=rng)
    assert not draws[0].equal(draws[1])
    rng = torch.Generator().manual_seed(1)
    Ranks(1, 2).stream(rng)
    assert torch.rand(1, generator=rng).equal(after), "what is kept of a training is the same"


def test_batch_that_cannot_be_shared_is_refused() -> None:
    assert Ranks(0, 4).part_of(8) == 2
    with pytest.raises(ConfigError, match="cannot be shared by 3") as caught:
        Ranks(0, 3).part_of(8)
    assert "multiple" in caught.value.fix
