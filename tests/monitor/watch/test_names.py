from __future__ import annotations

import pytest

from monitor.read.unfinished import is_held_back, is_temporary, unfinished_of
from monitor.watch.names import DEFAULT_EXCLUDES, NameRules

RULES = NameRules.compile()


@pytest.mark.parametrize(
    "name",
    [
        ".tmpAbC123", ".nfs000001", ".hidden.pt", "model.pt.tmp", "model.tmp.123.pt", "tmp-checkpoint-5", "tmp.pth.tar",
        "recovery_tmp_3.pt", "tmp.pt", "a.ckpt.part", "x.tempstate123", "5.orbax-checkpoint-tmp-17",
        "a.orbax-checkpoint-tmp", "state.__lock", "step=5-unfinished", "step=5-unfinished.txt",
    ],
)  # fmt: skip
def test_names_of_what_is_not_finished_are_temporary(name: str) -> None:
    assert is_temporary(name)


@pytest.mark.parametrize(
    "name",
    [".metadata", ".metadata.json", ".snapshot_metadata", "model.pt", "temp.pt", "attempt.pt", "x-tmp", "ckpt_temp"],
)
def test_parts_of_checkpoints_and_plain_files_are_not_temporary(name: str) -> None:
    assert not is_temporary(name)


@pytest.mark.parametrize("name", ["step5-tmp", "ckpt-7_temp", ".cache", "tmp-checkpoint-5", "9.orbax-checkpoint-tmp"])
def test_directories_have_temporary_names_of_their_own(name: str) -> None:
    assert is_temporary(name, is_directory=True)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors", "ckpt.pt", "a.PTH", "epoch=1-step=8.ckpt", "pytorch_model.bin", "w.npz", "w.npy",
        "checkpoint-3.pth.tar", "model-00001-of-00003.safetensors",
    ],
)  # fmt: skip
def test_the_usual_checkpoint_names_are_taken(name: str) -> None:
    assert RULES.takes_path(name)
    assert RULES.takes_path(f"exp/checkpoint-5/{name}")


@pytest.mark.parametrize(
    "path",
    [
        "rng_state.pth", "rng_state_3.pth", "training_args.bin", "scheduler.pt", "optimizer.pt", "scaler.pt",
        "model.safetensors.index.json", "config.json", "train.bin", "README.md", "events.out.tfevents.1",
        ".cache/model.pt", "tmp-checkpoint-5/model.pt", "venv/site-packages/x.pt", "a/wandb/b/model.pt", "model.pt.tmp",
        "model",
    ],
)  # fmt: skip
def test_what_lies_beside_weights_is_left_out(path: str) -> None:
    assert not RULES.takes_path(path)


def test_own_patterns_replace_the_default_and_excludes_may_be_added() -> None:
    rules = NameRules.compile(["weights_*"], [*DEFAULT_EXCLUDES, "*_ema*", "old/", "runs/*/final.*", "archive/2020/"])
    assert rules.takes_path("weights_1")
    assert not rules.takes_path("model.pt")
    assert not rules.takes_path("weights_ema_1")
    assert not rules.takes_path("a/old/weights_1")
    assert not rules.takes_path("archive/2020/weights_1")
    assert rules.takes_path("archive/2021/weights_1")
    assert rules.takes_path("2020/weights_1")


def test_a_pattern_with_a_slash_is_about_the_path_below_the_root() -> None:
    rules = NameRules.compile(["exp*/final.pt"], [])
    assert rules.takes_path("exp1/final.pt")
    assert not rules.takes_path("final.pt")
    assert not rules.takes_path("other/final.pt")


def test_an_exclude_without_a_slash_at_its_end_may_name_a_directory_too() -> None:
    rules = NameRules.compile(None, ["debug*", "a/b"])
    assert not rules.takes_path("debug1/model.pt")
    assert not rules.takes_path("a/b/model.pt")
    assert rules.takes_path("a/c/model.pt")


def test_no_pattern_at_all_takes_nothing() -> None:
    assert not NameRules.compile([], []).takes_path("model.pt")


@pytest.mark.parametrize("name", ["step=5.ckpt", "step=5", "step=5.nemo"])
def test_a_marker_holds_back_the_checkpoint_it_names(name: str) -> None:
    marked = unfinished_of("step=5-unfinished.txt")
    assert marked == "step=5"
    assert is_held_back(name, frozenset({marked}))
    assert not is_held_back("step=6.ckpt", frozenset({marked}))
    assert unfinished_of("step=5.ckpt") is None
