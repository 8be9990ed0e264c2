"""The promise that reproducible sampling rests on: a row of a tile depends on itself alone."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from tinkergate.engine import tile_linear
from tinkergate.engine.sampler import READ_TILE
from tinkergate.engine.tile_linear import TILE, TileLinear, use_tile_linears

SHAPES = [(64, 64), (576, 576), (192, 576), (1536, 576), (576, 1536), (333, 129), (8, 64), (64, 8)]


@pytest.fixture(params=[True, False], ids=["weight first", "rows first"])
def either_order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both orders of products, whichever this machine is quicker with."""
    monkeypatch.setattr(tile_linear, "_WEIGHT_FIRST", request.param)


def layer(outputs: int, inputs: int, *, bias: bool = False) -> nn.Module:
    network = nn.Sequential(nn.Linear(inputs, outputs, bias=bias)).requires_grad_(False)
    use_tile_linears(network)
    return network[0]


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("either_order")
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@torch.no_grad()
def test_a_row_does_not_depend_on_its_place_or_its_neighbours(outputs: int, inputs: int) -> None:
    module = layer(outputs, inputs)
    tile = rows(TILE, inputs, 0)
    expected = module(tile)[3]
    for place in range(TILE):
        others = rows(TILE, inputs, place + 1)
        others[place] = tile[3]
        assert torch.equal(module(others)[place], expected)


@pytest.mark.parametrize("count", [TILE, READ_TILE])
@pytest.mark.parametrize(("outputs", "inputs"), [*SHAPES, (49152, 64)])
@torch.no_grad()
def test_the_products_that_stay_as_they_are_keep_rows_apart_too(
    outputs: int, inputs: int, count: int
) -> None:
    """The adapters' factors and the unembedding are multiplied in the usual order, and so is all
    that is done in reading a tile of prompts."""
    weight, tile = rows(outputs, inputs, 100), rows(count, inputs, 0)
    expected = linear(tile, weight)[3]
    for place in range(0, count, count // TILE):
        others = rows(count, inputs, place + 1)
        others[place] = tile[3]
        assert torch.equal(linear(others, weight)[place], expected)


@pytest.mark.usefixtures("either_order")
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_the_numbers_are_those_of_a_linear_layer(bias: bool) -> None:
    module = layer(96, 64, bias=bias)
    for shape in ((TILE, 64), (1, TILE, 64), (TILE - 1, 64), (3, TILE, 64), (1, 64)):
        inputs = rows(shape[0], shape[1] if len(shape) == 2 else shape[1] * shape[2], 1)
        inputs = inputs.reshape(shape)
        answer = module(inputs)
        assert answer.shape == (*shape[:-1], 96)
        assert answer.is_contiguous()
        expected = linear(inputs, module.weight, module.bias)
        torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)


def test_gradients_flow_as_ever() -> None:
    module = layer(32, 64)
    inputs = rows(TILE, 64, 0).requires_grad_()
    module(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, module.weight.sum(0).expand(TILE, 64))


def test_only_plain_linear_layers_are_changed() -> None:
    class Special(nn.Linear):
        pass

    network = nn.ModuleList([nn.Linear(2, 2), Special(2, 2), nn.LayerNorm(2)])
    use_tile_linears(network)
    assert [type(module) for module in network] == [TileLinear, Special, nn.LayerNorm]
