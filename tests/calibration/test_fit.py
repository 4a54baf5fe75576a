"""The one training loop: schedules, what moves, what is logged; units of block reconstruction."""

import math

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from passionsr.baselines.qdiffusion import QDiffusion
from passionsr.calibration.fit import FitConfig, FitLog, FitStage, ParamGroup, fit
from passionsr.calibration.reconstruction import Minibatches, capture, find_units
from passionsr.calibration.sub_models import in_sequence
from passionsr.quantization.layer import QuantizedLayer
from passionsr.quantization.spec import Scheme


def rates(config, batches=4):
    return [config.factor(step, batches) for step in range(config.total(batches))]


def test_schedules():
    assert rates(FitConfig(epochs=2)) == [1.0] * 8
    assert rates(FitConfig(epochs=2, schedule="halves", decay=0.2)) == [1.0] * 4 + [0.2] * 4
    assert rates(FitConfig(epochs=1, schedule="halves", decay=0.2)) == [1.0] * 4
    assert rates(FitConfig(steps=4, schedule="linear")) == [1.0, 0.75, 0.5, 0.25]
    cosine = rates(FitConfig(steps=4, schedule="cosine"))
    assert cosine == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)])


@pytest.mark.parametrize(
    "config",
    [
        FitConfig(lr=0.3, steps=7, schedule="cosine"),
        FitConfig(lr=0.3, steps=7, schedule="linear", weight_decay=0.01),
        FitConfig(lr=0.3, epochs=3, schedule="halves", decay=0.2),
        FitConfig(lr=0.3, epochs=2, optimizer="sgd"),
    ],
    ids=lambda c: c.schedule,
)
def test_every_step_has_its_rate(config):
    """To the bit.

    Rate of the group times the factor of the step, which torch's scheduler applies.
    """
    parameters, seen = [nn.Parameter(torch.ones(1)) for _ in range(2)], []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append([group["lr"] for group in optimizer.param_groups])
    )
    try:
        fit(
            [ParamGroup([p], scale) for p, scale in zip(parameters, (0.7, 1 / 3), strict=True)],
            lambda x: sum(p.sum() for p in parameters) * x,
            [1.0, 2.0, 3.0],
            config,
            FitStage("s", FitLog()),
        )
    finally:
        hook.remove()
    assert seen == [[0.3 * 0.7 * f, 0.3 * (1 / 3) * f] for f in rates(config, 3)]


def quadratic(parameter):
    return lambda target: (parameter - target).square().sum()


def test_steps_cycle_through_the_batches_and_are_logged():
    parameter, log = nn.Parameter(torch.zeros(1)), FitLog()
    fit(
        [ParamGroup([parameter])],
        quadratic(parameter),
        [1.0, 3.0],
        FitConfig(lr=1e-6, steps=5),
        FitStage("s", log),
    )
    assert [r["loss"] for r in log.rows] == pytest.approx([1, 9, 1, 9, 1], rel=1e-4)
    assert [r["epoch"] for r in log.rows] == [0, 0, 1, 1, 2]
    (stage,) = log.stages
    assert stage["steps"] == 5
    assert stage["loss_before"] == pytest.approx(5)
    assert not parameter.requires_grad
    assert parameter.grad is None


def test_weight_decay_is_decoupled():
    """AdamW: with a zero gradient the parameter shrinks by lr * decay; Adam leaves it."""
    for decay, expected in ((0.1, 2.0 * (1 - 0.01 * 0.1)), (0.0, 2.0)):
        parameter = nn.Parameter(torch.tensor([2.0]))
        config = FitConfig(lr=0.01, steps=1, weight_decay=decay)
        fit(
            [ParamGroup([parameter])],
            lambda _, p=parameter: 0.0 * p.sum(),
            [0],
            config,
            FitStage("s", FitLog()),
        )
        assert float(parameter) == pytest.approx(expected, rel=1e-6)


def test_the_regulariser_is_minimised_but_not_reported():
    parameter, log, steps = nn.Parameter(torch.tensor([1.0])), FitLog(), []

    def regulariser(step):
        steps.append(step)
        return 10.0 * parameter.sum()

    fit(
        [ParamGroup([parameter])],
        lambda _: 0.0 * parameter.sum(),
        [0],
        FitConfig(lr=0.1, steps=3),
        FitStage("s", log),
        regulariser,
    )
    assert steps == [1, 2, 3]
    assert float(parameter) < 0.75
    assert log.stages[0]["loss_before"] == 0
    assert log.rows[0]["loss"] == 0


def test_a_loss_that_is_not_finite_stops_the_run():
    parameter = nn.Parameter(torch.tensor([1.0]))
    with pytest.raises(FloatingPointError, match=r"unet\.let: the loss is nan at step 0"):
        fit(
            [ParamGroup([parameter])],
            lambda _: parameter.sum() * math.nan,
            [0],
            FitConfig(),
            FitStage("unet.let", FitLog()),
        )
    assert not parameter.requires_grad


# -- units --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tiny, tiny_batches):
    model, _ = QDiffusion().prepare(tiny, Scheme.parse("W8A8"), "UV")
    return model, tiny_batches


def test_units_cover_every_layer_once_in_execution_order(prepared):
    model, batches = prepared
    for sub, inputs, _ in in_sequence(model, batches, "UV"):
        units = find_units(sub, inputs[0])
        layers = [m for u in units for m in u.layers()]
        every = [m for r in sub.modules for m in r.modules() if isinstance(m, QuantizedLayer)]
        assert len(layers) == len(set(map(id, layers))) == len(every)
        order = []
        handles = [
            m.register_forward_pre_hook(lambda m, _, order=order: order.append(m)) for m in every
        ]
        with torch.no_grad():
            sub.run(inputs[0])
        for handle in handles:
            handle.remove()
        firsts = [min(order.index(m) for m in u.layers()) for u in units]
        assert firsts == sorted(firsts)
        blocks = {"ResnetBlock2D", "BasicTransformerBlock"}
        kinds = {type(u.module).__name__ for u in units}
        assert kinds - {"QuantizedLayer"} <= blocks
        assert "ResnetBlock2D" in kinds


def test_captured_units_replay(prepared):
    """What a unit was called with, called again, gives what it returned.

    Minibatches pick images consistently.
    """
    model, batches = prepared
    for sub, inputs, _ in in_sequence(model, batches, "U"):
        for unit in find_units(sub, inputs[0]):
            seen = capture(unit.module, sub.run, inputs)
            with torch.no_grad():
                again = unit.module(*seen.args, **seen.kwargs)
                assert torch.allclose(again, seen.output, atol=1e-5)
                part, target = Minibatches(seen, seen.output, 1, 2)[0]
                assert target.shape[0] == 1
                # 1e-4: batched and single matrix products sum in another order
                assert torch.allclose(unit.module(*part.args, **part.kwargs), target, atol=1e-4)
