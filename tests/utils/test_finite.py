"""What counts as finite, and what a message says about where it is not."""

import math

import pytest
import torch
from torch import nn

from passionsr.utils.files import UserError
from passionsr.utils.finite import NonFiniteError, check_finite, is_finite, where_it_begins


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_float_type_is_looked_at(dtype):
    good = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, 0], dtype=dtype)
    assert is_finite(good)
    for bad in (math.nan, math.inf, -math.inf):
        assert not is_finite(torch.cat([good, torch.tensor([bad], dtype=dtype)]))


def test_integers_and_nothing_are_finite():
    assert is_finite(torch.tensor([255], dtype=torch.uint8))
    assert is_finite(torch.tensor([True]))
    assert is_finite(torch.empty(0))


def test_the_message_names_the_first_and_counts():
    named = [(f"t{i}", torch.tensor(math.nan if i % 2 else 0.0)) for i in range(10)]
    expected = (
        "m: t1, t3, t5 and 2 more hold NaN or infinite values (5 of 10 tensors); do something"
    )
    with pytest.raises(NonFiniteError) as caught:
        check_finite(named, "m", "do something")
    assert str(caught.value) == expected
    with pytest.raises(NonFiniteError, match=r"^m: t1 holds NaN or infinite values \(1 of 2 "):
        check_finite(named[:2], "m", "do something")
    check_finite(named[::2], "m", "do something")


def test_it_is_the_users_error_and_one_of_arithmetic():
    assert issubclass(NonFiniteError, UserError)
    assert issubclass(NonFiniteError, FloatingPointError)


def test_where_it_begins():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2)
    )
    run = lambda: model(torch.ones(1, 2))  # noqa: E731
    with torch.no_grad():
        model[0].weight[0, 0] = 1e30
        model[1][0].weight.fill_(1e20)
        text = where_it_begins(model, run)
        assert text == "they begin in 1.0, and the largest weight is 1e+30 in 0.weight"
        model[2].bias[0] = math.nan
        assert where_it_begins(model, run) == "they begin in 1.0, and weight 2.bias is not finite"
    assert not any(m._forward_hooks for m in model.modules())
