"""Logs found beside checkpoints, written by the frameworks themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from tensorboardX import SummaryWriter
from transformers.trainer_callback import TrainerState

from monitor.logbook.reading import LogLimits, log_scalars


def _said(path: Path, root: Path, step: int | None = 20, after: int | None = 10, **limits: int) -> dict[str, float]:
    return log_scalars(str(path), str(root), step=step, after=after, limits=LogLimits(**limits))


def test_a_trainer_state_in_the_checkpoints_directory_is_joined(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-20"
    checkpoint.mkdir()
    history: list[dict[str, float]] = [
        {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-3, "epoch": 0.1, "step": 10},
        {"loss": float("nan"), "grad_norm": 3.0, "learning_rate": 5e-4, "epoch": 0.2, "step": 20},
        {"eval_loss": 1.9, "step": 20},
    ]
    TrainerState(global_step=20, log_history=history).save_to_json(str(checkpoint / "trainer_state.json"))
    expected = {
        "log.loss": 2.0,
        "log.loss_max": 2.0,
        "log.loss_last": 2.0,
        "log.grad_norm": 3.0,
        "log.grad_norm_max": 3.0,
        "log.learning_rate": 5e-4,
        "log.eval_loss": 1.9,
        "log.n_nonfinite": 1.0,
        "log.step": 20.0,
    }
    assert _said(checkpoint, tmp_path) == expected
    assert _said(checkpoint / "model.safetensors", tmp_path) == expected


def test_lightnings_table_above_the_checkpoints_is_joined(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path), name="lightning_logs")
    logger.log_metrics({"train_loss": 2.0, "epoch": 0}, step=9)
    logger.log_metrics({"val_loss": 1.5, "epoch": 0}, step=9)
    logger.log_metrics({"train_loss": 1.0, "epoch": 1}, step=19)
    logger.save()
    said = _said(Path(logger.log_dir) / "checkpoints" / "epoch=1-step=20.ckpt", tmp_path)
    assert (said["log.loss"], said["log.eval_loss"], said["log.step"]) == (1.0, 1.5, 19.0)


def test_event_files_of_the_newest_run_below_are_joined(tmp_path: Path) -> None:
    for name, loss in (("first", 9.0), ("second", 1.25)):
        with SummaryWriter(str(tmp_path / "runs" / name)) as writer:
            writer.add_scalar("loss", loss, 15)
        os.utime(tmp_path / "runs" / name, (1e9 + loss, 1e9 - loss))
    assert _said(tmp_path / "model.pt", tmp_path)["log.loss"] == 1.25


def test_json_lines_beside_the_checkpoint_are_joined(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 15, "loss": 1.5, "grad_norm": 0.5}\n{"step": 25, "loss": 9}\n')
    said = _said(tmp_path / "ckpt.pt", tmp_path)
    assert (said["log.loss"], said["log.grad_norm"]) == (1.5, 0.5)


def test_the_more_trusted_log_speaks_and_the_other_adds_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 20, "loss": 1.0}]}')
    (tmp_path / "log.jsonl").write_text('{"step": 20, "loss": 7.0, "eval_loss": 3.0}\n')
    said = _said(tmp_path / "ckpt.pt", tmp_path)
    assert (said["log.loss"], said["log.eval_loss"]) == (1.0, 3.0)


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    lines = "".join(f'{{"step": {n}, "loss": {n}}}\n' for n in range(10_000))
    (tmp_path / "log.jsonl").write_text(lines)
    said = _said(tmp_path / "ckpt.pt", tmp_path, step=9_999, after=9_998, tail_bytes_max=2000)
    assert said["log.loss"] == 9_999.0
    assert _said(tmp_path / "ckpt.pt", tmp_path, step=5_000, after=4_999, tail_bytes_max=2000) == {}


def test_a_document_over_the_limit_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 20, "loss": 1.0}]}')
    assert _said(tmp_path / "ckpt.pt", tmp_path, document_bytes_max=10) == {}


def test_nothing_above_the_root_is_read(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 20, "loss": 1.0}\n')
    root = tmp_path / "watched"
    root.mkdir()
    assert _said(root / "ckpt.pt", root) == {}
    assert _said(root / "ckpt.pt", tmp_path)["log.loss"] == 1.0


def test_a_pipe_a_directory_and_a_missing_directory_are_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.jsonl")
    (tmp_path / "metrics.csv").mkdir()
    assert _said(tmp_path / "ckpt.pt", tmp_path) == {}
    assert _said(tmp_path / "gone" / "ckpt.pt", tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_log_that_may_not_be_read_is_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 20, "loss": 1.0}\n')
    log.chmod(0)
    assert _said(tmp_path / "ckpt.pt", tmp_path) == {}


def test_without_a_step_nothing_can_be_joined(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 20, "loss": 1.0}\n')
    assert _said(tmp_path / "ckpt.pt", tmp_path, step=None) == {}
