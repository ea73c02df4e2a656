from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.watch.runs import (
    RUN_CHARACTERS_MAX,
    WatchRoot,
    epoch_from_path,
    is_alias,
    name_rank,
    next_attempt,
    resolve_roots,
    signature,
    step_from_path,
)
from storage.records import FileStat, SnapshotStatus, StoredSnapshot

ROOT = WatchRoot(path="/data/out", name="out")


@pytest.mark.parametrize(
    ("path", "run"),
    [
        ("model.pt", "out"),
        ("checkpoint-123/model.safetensors", "out"),
        ("step-10/model.pt", "out"),
        ("epoch_3/model.pt", "out"),
        ("iter_0001/mp_rank_00/model.pt", "out/mp_rank_00"),
        ("global_step5/model.pt", "out"),
        ("checkpoints/ckpt/weights/model.pt", "out"),
        ("exp1/model.pt", "out/exp1"),
        ("exp1/checkpoints/step-10/model.pt", "out/exp1"),
        ("lightning_logs/version_0/checkpoints/epoch=1-step=8.ckpt", "out/lightning_logs/version_0"),
        ("lightning_logs/version_0/checkpoints/epoch=1-step=8.ckpt/model.pt", "out/lightning_logs/version_0"),
        ("2026-01-02/12-30-00/model.pt", "out/2026-01-02/12-30-00"),
        ("runs/detect/train2/weights/last.pt", "out/runs/detect/train2"),
        ("seed1/model.pt", "out/seed1"),
        ("best/model.pt", "out"),
    ],
)
def test_a_run_is_named_after_the_directories_that_do_not_only_hold_checkpoints(path: str, run: str) -> None:
    assert ROOT.run_of(f"/data/out/{path}") == run


def test_a_run_name_is_printable_and_bounded_and_still_tells_runs_apart() -> None:
    assert ROOT.run_of("/data/out/a\nb\x1b/model.pt") == "out/a\\x0ab\\x1b"
    long = [ROOT.run_of(f"/data/out/{'x' * 250}{i}/model.pt") for i in range(2)]
    assert len(set(long)) == 2
    assert {len(name) for name in long} == {RUN_CHARACTERS_MAX}


def test_roots_get_names_of_their_own(tmp_path: Path) -> None:
    def named(*paths: str | tuple[str, str]) -> list[str]:
        specs = [(str(tmp_path / p), None) if isinstance(p, str) else (str(tmp_path / p[0]), p[1]) for p in paths]
        return [root.name for root in resolve_roots(specs)]

    assert named("a/out", "b/logs") == ["out", "logs"]
    assert named("a/out", "b/out") == ["a/out", "b/out"]
    assert named("x/a/out", "y/a/out", "z/b") == ["x/a/out", "y/a/out", "b"]
    assert named("a/out", ("b/out", "mine")) == ["out", "mine"]
    assert named(("a/out", "mine/"), "a/out") == ["mine"]
    assert named("a/out", ("b", "out")) == ["a/out", "out"]
    assert len(set(named("x/a", "y/a/b", "z/b"))) == 3


def test_no_roots_run_can_be_mistaken_for_another_roots_run(tmp_path: Path) -> None:
    a, b, c = resolve_roots([(str(tmp_path / p), None) for p in ("x/a", "y/a/b", "z/b")])
    runs = {a.run_of(f"{a.path}/b/m.pt"), b.run_of(f"{b.path}/m.pt"), c.run_of(f"{c.path}/m.pt")}
    assert len(runs) == 3


def test_links_and_repeated_roots_count_once_and_nested_roots_are_known(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    roots = resolve_roots([(str(tmp_path / p), None) for p in ("link", "real", "real/inner")])
    assert [r.path for r in roots] == [str(tmp_path.resolve() / "real"), str(tmp_path.resolve() / "real" / "inner")]
    assert roots[0].nested == (roots[1].path,)
    assert roots[1].nested == ()


def test_two_roots_with_one_configured_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both called 'x'"):
        resolve_roots([(str(tmp_path / "a"), "x"), (str(tmp_path / "b"), "x")])


def test_the_filesystems_root_has_a_name_too() -> None:
    assert resolve_roots([("/", None)])[0].name == "root"
    assert resolve_roots([("/", None)])[0].run_of("/model.pt") == "root"


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("step=8.ckpt", 8),
        ("epoch=1-step=8.ckpt", 8),
        ("epoch=0-step=1000-v1.ckpt", 1000),
        ("checkpoint-500/model.safetensors", 500),
        ("checkpoint-500/global_step500/model.pt", 500),
        ("ckpt_00012.pt", 12),
        ("ckpt12.pt", 12),
        ("model-000100.pt", 100),
        ("model_step_2000_ema.safetensors", 2000),
        ("iter_0000100/mp_rank_00/model.pt", 100),
        ("iter_5000.pth", 5000),
        ("global_step5/m.pt", 5),
        ("000100.pt", 100),
        ("step_10k.pt", 10_000),
        ("ckpt_10k.pt", 10_000),
        ("checkpoint_3_1200.pt", 1200),
        ("checkpoint-7.pth.tar", 7),
        ("step-40/model-00001-of-00003.safetensors", 40),
        ("step=20240101.pt", 20_240_101),
        ("MyModel-Steps-300.pt", 300),
        ("checkpoint-500/last.pt", 500),
    ],
)
def test_a_step_is_read_from_names(path: str, step: int) -> None:
    assert step_from_path(f"/data/out/{path}") == step


@pytest.mark.parametrize(
    "path",
    [
        "model.pt", "model-00001-of-00003.safetensors", "pytorch_model-00002-of-00005.bin", "epoch_12.pth",
        "epoch=3.ckpt", "ckpt_20240131.pt", "ckpt_2024-01-31.pt", "20240131.npz", "20240131_120000.pt",
        "20240131120000.pt", "model_v2.pt", "model-1.2.pt", "version_3/model.pt", "resnet50.pth", "llama-2-7b.npz",
        "model_rank_0.pt", "mp_rank_00_model_states.pt", "last.ckpt", "last-v1.ckpt", "seed1/model.pt", "best.pt",
        "val_loss=0.25.ckpt", "step=999999999999999999999999999.pt", "stepwise-model.pt", "footstep9x.pt",
        "2024/model.pt", "exit-5.pt",
    ],
)  # fmt: skip
def test_dates_versions_shards_and_epochs_are_no_steps(path: str) -> None:
    assert step_from_path(f"/data/out/{path}") is None


@pytest.mark.parametrize(
    ("path", "epoch"),
    [
        ("epoch=1-step=8.ckpt", 1.0),
        ("epoch=03-val_loss=0.25.ckpt", 3.0),
        ("epoch_12.pth", 12.0),
        ("epoch12.pt", 12.0),
        ("epoch_3/model.pt", 3.0),
        ("checkpoint_3_1200.pt", 3.0),
        ("epoch=1.5.pt", 1.5),
        ("epoch_latest.pt", None),
        ("model.pt", None),
        ("step-4.pt", None),
        ("depth3.pt", None),
    ],
)
def test_an_epoch_is_read_from_names(path: str, epoch: float | None) -> None:
    assert epoch_from_path(f"/data/out/{path}") == epoch


@given(st.text(max_size=60), st.text(alphabet="0123456789_-=.kstepchond/", max_size=60))
def test_no_name_breaks_the_parsing(anything: str, likely: str) -> None:
    for name in (anything, likely):
        step = step_from_path("/root/" + name)
        assert step is None or 0 <= step <= 10**12
        epoch = epoch_from_path("/root/" + name)
        assert epoch is None or 0 <= epoch <= 10**12


@given(st.integers(0, 10**9))
def test_a_written_step_is_read_back(step: int) -> None:
    for pattern in (
        "step={}.pt",
        "checkpoint-{}/m.pt",
        "iter_{:07d}.pth",
        "epoch=2-step={}.ckpt",
        "global_step{}/x.pt",
    ):
        assert step_from_path("/r/" + pattern.format(step)) == step


def test_last_and_best_stand_for_others() -> None:
    assert is_alias("/r/last.ckpt")
    assert is_alias("/r/model_best.pth.tar")
    assert is_alias("/r/last-v1.ckpt")
    assert not is_alias("/r/blast.pt")
    assert not is_alias("/r/checkpoint-5.pt")
    assert sorted(["/r/last.pt", "/r/model.pt", "/r/checkpoint-5.pt"], key=name_rank) == [
        "/r/checkpoint-5.pt",
        "/r/model.pt",
        "/r/last.pt",
    ]


def file(path: str = "/r/a.pt", inode: int = 1, size: int = 10, mtime_ns: int = 100, device: int = 1) -> FileStat:
    return FileStat(path=path, device=device, inode=inode, size_bytes=size, mtime_ns=mtime_ns)


def test_a_signature_changes_with_the_bytes_and_not_with_a_new_name_or_a_reboot() -> None:
    original = signature([file()], "/r/a.pt")
    assert len(original) == 32
    assert int(original, 16) >= 0
    assert signature([file(path="/r/b.pt")], "/r/b.pt") == original
    assert signature([file(device=9)], "/r/a.pt") == original
    changed = [file(inode=2), file(size=11), file(mtime_ns=101)]
    assert len({original, *(signature([f], "/r/a.pt") for f in changed)}) == 4


def test_a_signature_of_many_files_does_not_depend_on_their_order() -> None:
    files = [file(path="/r/u/a"), file(path="/r/u/b", inode=2)]
    assert signature(files, "/r/u") == signature(files[::-1], "/r/u")
    assert signature(files, "/r/u") != signature([file(path="/r/u/b"), file(path="/r/u/a", inode=2)], "/r/u")


def stored(step: int | None, written_at: float, attempt: int = 1) -> StoredSnapshot:
    return StoredSnapshot(
        id=1, run="r", root="/r", attempt=attempt, path="/r/a.pt", signature="0" * 32, format="torch_zip", step=step,
        epoch=None, status=SnapshotStatus.COMPLETE, problem=None, size_bytes=1, written_at=written_at,
        measured_at=written_at, n_tensors=1, n_parameters=1, n_nonfinite=0, weight_norm=1.0, update_ratio=None,
        gradient=None, first_bad_tensor=None, reference_step=None, duration_seconds=0.1, bytes_read=1,
        worst_severity=None,
    )  # fmt: skip


def test_an_attempt_begins_when_the_step_goes_back_later() -> None:
    previous = stored(100, 1000.0, attempt=3)
    assert next_attempt(None, 5, 1.0) == 1
    assert next_attempt(previous, 110, 1010.0) == 3
    assert next_attempt(previous, 100, 1010.0) == 3
    assert next_attempt(previous, 50, 1010.0) == 4
    assert next_attempt(previous, 50, 990.0) == 3  # an older file, found late
    assert next_attempt(previous, None, 1010.0) == 3
    assert next_attempt(stored(None, 1000.0), 5, 1010.0) == 1
    assert next_attempt(previous, 50, 1010.0, path="/r/best.pt") == 3
