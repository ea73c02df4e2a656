from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from monitor.read.optimizer_names import named_states
from monitor.read.reader import TensorSpec
from storage.records import TensorKind
from tests.support.reading import read_whole

Groups = Callable[[torch.nn.Module], Any]


def spec(name: str, shape: Sequence[int], kind: TensorKind) -> TensorSpec:
    n = 1
    for size in shape:
        n *= size
    return TensorSpec(name=name, kind=kind, dtype="float32", shape=tuple(shape), n_elements=n)


def model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8),
        torch.nn.LayerNorm(8),
        torch.nn.Linear(8, 8),
        torch.nn.Linear(8, 3),
        torch.nn.Linear(3, 3),
    )


def trained(net: torch.nn.Module, groups: Any, **options: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(groups, lr=1e-3, **options)
    net(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    return optimizer


def read(
    net: torch.nn.Module, optimizer: torch.optim.Optimizer, order: Iterable[str] | None = None
) -> tuple[list[TensorSpec], dict[str, float]]:
    parameters = dict(net.named_parameters())
    state = optimizer.state_dict()
    specs = [spec(name, parameters[name].shape, TensorKind.PARAMETER) for name in order or parameters]
    specs += [
        spec(f"optimizer.state.{index}.{key}", value.shape, TensorKind.OPTIMIZER)
        for index, entry in state["state"].items()
        for key, value in entry.items()
    ]
    scalars: dict[str, float] = {}
    for number, group in enumerate(state["param_groups"]):
        scalars[f"optimizer.param_groups.{number}.params.length"] = len(group["params"])
        scalars[f"optimizer.param_groups.{number}.betas.1"] = group["betas"][1]
    return specs, scalars


def truth(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the parameters' names in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def stated(specs: Iterable[TensorSpec]) -> list[str]:
    suffix = ".exp_avg_sq"
    prefix = "optimizer.state."
    return [s.name.removeprefix(prefix).removesuffix(suffix) for s in specs if s.name.endswith(suffix)]


def plain(net: torch.nn.Module) -> Any:
    return net.parameters()


def by_dimensions(net: torch.nn.Module) -> Any:
    return [
        {"params": [p for p in net.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in net.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]


def without_decay_first(net: torch.nn.Module) -> Any:
    return by_dimensions(net)[::-1]


@pytest.mark.parametrize("groups", [plain, by_dimensions, without_decay_first])
def test_state_of_a_model_in_module_order_gets_the_names_of_its_parameters(groups: Groups) -> None:
    net = model()
    optimizer = trained(net, groups(net))
    specs, scalars = named_states(*read(net, optimizer), in_module_order=True)
    assert stated(specs) == truth(net, optimizer)
    assert scalars == read(net, optimizer)[1]


def test_an_optimizer_in_another_order_keeps_its_numbers() -> None:
    net = model()
    optimizer = trained(net, list(net.parameters())[::-1])
    specs, _ = named_states(*read(net, optimizer), in_module_order=True)
    assert stated(specs) == [str(n) for n in range(10)]


def test_an_optimizer_of_a_part_of_the_model_keeps_its_numbers() -> None:
    net = model()
    optimizer = trained(net, list(net.parameters())[:4])
    specs, _ = named_states(*read(net, optimizer), in_module_order=True)
    assert stated(specs) == [str(n) for n in range(4)]


def test_without_module_order_equal_shapes_are_never_guessed() -> None:
    net = model()
    optimizer = trained(net, net.parameters())
    names = sorted(name for name, _ in net.named_parameters())
    specs, _ = named_states(*read(net, optimizer, names), in_module_order=False)
    assert stated(specs) == [str(n) for n in range(10)]


def test_without_module_order_shapes_that_occur_once_are_certain() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
    optimizer = trained(net, net.parameters())
    names = sorted((name for name, _ in net.named_parameters()), reverse=True)
    specs, _ = named_states(*read(net, optimizer, names), in_module_order=False)
    assert stated(specs) == truth(net, optimizer)


def test_groups_of_different_beta2_keep_numbers_because_numbers_tell_the_group() -> None:
    net = model()
    groups = by_dimensions(net)
    groups[0]["betas"] = (0.9, 0.95)
    optimizer = trained(net, groups)
    specs, _ = named_states(*read(net, optimizer), in_module_order=True)
    assert stated(specs) == [str(n) for n in range(10)]


def test_a_parameter_that_never_had_a_gradient_leaves_a_gap_and_shifts_nothing() -> None:
    net = model()
    last = list(net.parameters())[3]
    last.requires_grad_(False)
    optimizer = trained(net, net.parameters())
    specs, _ = named_states(*read(net, optimizer), in_module_order=True)
    assert stated(specs) == [name for i, name in enumerate(truth(net, optimizer)) if i != 3]


def test_scalar_steps_follow_their_state() -> None:
    specs = [
        spec("w", (3,), TensorKind.PARAMETER),
        spec("optimizer.state.0.exp_avg", (3,), TensorKind.OPTIMIZER),
    ]
    scalars = {"optimizer.param_groups.0.params.length": 1.0, "optimizer.state.0.step": 7.0}
    found, numbers = named_states(specs, scalars, in_module_order=True)
    assert [s.name for s in found] == ["w", "optimizer.state.w.exp_avg"]
    assert numbers == {"optimizer.param_groups.0.params.length": 1.0, "optimizer.state.w.step": 7.0}


def test_moments_that_differ_in_shape_keep_their_numbers() -> None:
    specs = [
        spec("w", (3,), TensorKind.PARAMETER),
        spec("optimizer.state.0.exp_avg", (3,), TensorKind.OPTIMIZER),
        spec("optimizer.state.0.exp_avg_sq", (4,), TensorKind.OPTIMIZER),
    ]
    found, _ = named_states(specs, {"optimizer.param_groups.0.params.length": 1.0}, in_module_order=True)
    assert [s.name for s in found] == [s.name for s in specs]


def test_names_that_the_optimizer_states_itself_are_taken_whatever_the_order(tmp_path: Path) -> None:
    net = model()
    optimizer = trained(net, list(net.named_parameters())[::-1])
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    whole = read_whole(tmp_path / "optimizer.pt")
    assert stated(whole.specs.values()) == truth(net, optimizer)
    state = optimizer.state_dict()["state"][0]["exp_avg"]
    assert whole.values["optimizer.state.4.bias.exp_avg"].tolist() == state.tolist()


@pytest.mark.parametrize("names", [["a"], [1] * 10, "abcdefghij", ["same"] * 10, None])
def test_stated_names_that_make_no_sense_are_passed_over(tmp_path: Path, names: object) -> None:
    net = model()
    state = trained(net, net.parameters()).state_dict()
    state["param_groups"][0]["param_names"] = names
    torch.save(state, tmp_path / "optimizer.pt")
    assert stated(read_whole(tmp_path / "optimizer.pt").specs.values()) == [str(n) for n in range(10)]
