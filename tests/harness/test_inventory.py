"""What is found in an object, and how many parameters are counted in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from foresight_bench.inventory import holdings, parameter_count


class Owner:
    """Holds whatever it is given."""

    def __init__(self, **held: object) -> None:
        vars(self).update(held)


def test_whatever_an_encoder_holds_is_found() -> None:
    shared = torch.ones(1)
    inner = Owner(tensors={"a": shared, "b": [torch.zeros(2)]})
    owner = Owner(inner=inner, model=nn.Sequential(nn.Linear(1, 1)), shared=shared)
    vars(inner)["owner"] = owner
    found = holdings(owner)
    assert set(found.modules) == {"model", "model.0"}
    assert set(found.tensors) == {"shared", "inner.tensors.b.0", "model.0.weight", "model.0.bias"}


def tied() -> nn.Module:
    """Return a model with one matrix as one object in two places, and another as two objects on one memory."""
    model = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(4))
    model[1].weight = model[0].weight
    model[3].weight = nn.Parameter(model[2].weight.data)
    return model


class Encoder(nn.Module):
    """An encoder that is a module itself; running statistics and a table are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 5), nn.BatchNorm1d(5)
        self.register_buffer("table", torch.zeros(100))


class Refuses(dict[str, object]):
    """What cannot be looked through."""

    def items(self) -> Any:
        raise RuntimeError("not now")


LINEAR = nn.Linear(3, 5)


@pytest.mark.parametrize(
    ("owner", "count"),
    [
        (Owner(model=LINEAR), 20),
        (Owner(inner=Owner(models={"a": [LINEAR]}), again=LINEAR, part=LINEAR.weight), 20),
        (Owner(model=LINEAR, positions=torch.zeros(7)), 20),
        (Owner(model=nn.Linear(3, 5, device="meta"), other=nn.Linear(3, 5, device="meta")), 40),
        (Owner(model=tied()), 18),
        (Encoder(), 20 + 10),
        (torch.nn.RNN(2, 3), 2 * 3 + 3 * 3 + 2 * 3),  # on a GPU, parts of one memory
        (Owner(weights=torch.zeros(9)), 0),
        (Owner(model=LINEAR, held=Refuses(a=1)), 0),
    ],
)
def test_parameters_are_those_of_all_modules_each_once(owner: object, count: int) -> None:
    assert parameter_count(owner) == count
