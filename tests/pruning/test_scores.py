"""Scores of weights against loops, and where they can be used."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from nmsolve.cli import main
from reference.pruning import activation_scores, convolution_inputs


def by_loops(weight, inputs):
    return torch.from_numpy(
        activation_scores(weight.detach().double().numpy(), inputs.detach().double().numpy())
    )


def close(found, wanted, tolerance=1e-5):
    assert found.shape == wanted.shape
    torch.testing.assert_close(
        found.double(), wanted.double(), rtol=tolerance, atol=tolerance * float(wanted.abs().max())
    )


@given(
    batches=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    rows=st.integers(1, 5),
    cols=st.integers(1, 9),
    tokens=st.integers(0, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_activation_scores_of_a_linear_layer_equal_the_loops(batches, rows, cols, tokens, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(cols, rows)
    items = [torch.randn(size, *([tokens] if tokens else []), cols) for size in batches]
    found = nmt.scores.activation(nn.Sequential(layer), items)
    assert found.criterion == "activation"
    close(found["0"], by_loops(layer.weight, torch.cat([x.reshape(-1, cols) for x in items])))


@given(
    channels=st.sampled_from([(2, 4, 1), (4, 6, 2), (3, 3, 3)]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_activation_scores_of_a_convolution_equal_the_loops(
    channels, kernel, stride, padding, dilation, seed
):
    torch.manual_seed(seed)
    inputs, outputs, groups = channels
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups)
    items = [torch.randn(size, inputs, 6, 7) for size in (2, 1)]
    found = nmt.scores.activation(nn.Sequential(layer), items)["0"]
    met = convolution_inputs(torch.cat(items).double().numpy(), kernel, stride, padding, dilation)
    for group in range(groups):
        rows = slice(group * outputs // groups, (group + 1) * outputs // groups)
        part = met[:, group * inputs // groups : (group + 1) * inputs // groups]
        wanted = by_loops(layer.weight[rows].flatten(1), torch.from_numpy(part).flatten(1))
        close(found[rows].flatten(1), wanted)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (
            lambda: nn.Conv1d(4, 6, 3, dilation=2, padding="same", padding_mode="circular"),
            (2, 4, 9),
        ),
        (lambda: nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 2), stride=(1, 2, 1)), (2, 4, 3, 4, 5)),
        (lambda: nn.Conv2d(4, 6, 3), (4, 7, 8)),
    ],
    ids=["Conv1d", "Conv3d", "unbatched"],
)
def test_activation_scores_of_other_convolutions(layer, shape):
    """The squared norm of what a weight meets is the gradient of half the squared outputs' sum, of
    squared inputs and ones.
    """
    torch.manual_seed(0)
    model, x = nn.Sequential(layer()), torch.randn(shape)
    twin = nn.Sequential(layer()).double()
    nn.init.zeros_(twin[0].bias)
    nn.init.ones_(twin[0].weight)
    twin(x.double().square()).sum().backward()
    close(
        nmt.scores.activation(model, [x])["0"],
        model[0].weight.detach().abs() * twin[0].weight.grad.sqrt(),
    )


def test_attention_is_scored_by_what_its_projections_multiply():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, kdim=12, vdim=4, batch_first=True)
    query, key, value = torch.randn(3, 5, 8), torch.randn(3, 6, 12), torch.randn(3, 6, 4)
    found = nmt.scores.activation(attention, [(query, key, value)])
    close(found["q_proj_weight"], by_loops(attention.q_proj_weight, query.flatten(0, 1)))
    close(found["k_proj_weight"], by_loops(attention.k_proj_weight, key.flatten(0, 1)))
    close(found["v_proj_weight"], by_loops(attention.v_proj_weight, value.flatten(0, 1)))
    plain = nn.MultiheadAttention(8, 2)  # sequence first
    memory = torch.randn(6, 3, 8)
    sequence = torch.randn(5, 3, 8)
    packed = nmt.scores.activation(plain, [{"query": sequence, "key": memory, "value": memory}])[
        "in_proj_weight"
    ]
    wanted = [
        by_loops(part, x.flatten(0, 1))
        for part, x in zip(plain.in_proj_weight.chunk(3), (sequence, memory, memory), strict=True)
    ]
    close(packed, torch.cat(wanted))


def test_the_output_projection_of_attention_sees_the_heads():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    found = nmt.scores.activation(attention, [(x, x, x)])["out_proj"]
    q, k, v = (
        part.unflatten(-1, (2, 4)).transpose(1, 2)
        for part in nn.functional.linear(x, attention.in_proj_weight).chunk(3, -1)
    )
    heads = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    close(found, by_loops(attention.out_proj.weight, heads.flatten(0, 1)))


def test_an_encoder_is_scored_past_its_fused_path():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2
    ).eval()
    enabled = torch.backends.mha.get_fastpath_enabled()
    found = nmt.scores.activation(encoder, [torch.randn(2, 4, 8)])
    assert len(found) == 8
    assert all(bool((scores > 0).any()) for scores in found.values())
    assert torch.backends.mha.get_fastpath_enabled() == enabled


def test_gradient_scores_equal_the_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    items = [(torch.randn(size, 6), torch.randint(3, (size,))) for size in (4, 2, 1)]

    def loss(model, item):
        return nn.functional.cross_entropy(model(item[0]), item[1])

    first, second = (
        getattr(nmt.scores, name)(model, items, loss) for name in ("gradient", "fisher")
    )
    for path in ("0", "2"):
        weight = model[int(path)].weight
        gradients = [torch.autograd.grad(loss(model, item), weight)[0].double() for item in items]
        mean, squares = sum(gradients) / 3, sum(g.square() for g in gradients) / 3
        close(first[path], (weight.detach().double() * mean).abs())
        close(second[path], 0.5 * weight.detach().double().square() * squares)


def test_scoring_leaves_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.ones(3, 4)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    items = [torch.randn(5, 6, generator=torch.Generator().manual_seed(0))]
    nmt.scores.activation(model, items)
    nmt.scores.gradient(model, items, lambda model, x: model(x).square().mean())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not model[0].weight.requires_grad
    assert model[0].weight.grad is None
    assert torch.equal(model[3].weight.grad, torch.ones(3, 4))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("generator", [True, False])
@pytest.mark.parametrize("criterion", ["activation", "gradient", "fisher"])
def test_calibration_is_run_through_once_and_let_go_of(criterion, generator):
    """Memory independent of the number of samples: when the third batch is asked for, the first is
    gone.
    """
    alive = []

    def batches():
        for _ in range(5):
            assert sum(one() is not None for one in alive) <= 1
            x = torch.randn(3, 6)
            alive.append(weakref.ref(x))
            yield x

    class Stream:
        def __iter__(self):
            return batches()

    model = nn.Sequential(nn.Linear(6, 4))
    arguments = () if criterion == "activation" else (lambda model, x: model(x).square().mean(),)
    getattr(nmt.scores, criterion)(model, batches() if generator else Stream(), *arguments)
    assert len(alive) == 5


def test_shared_weights_are_scored_by_all_their_inputs():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second)
    x = torch.randn(5, 6)
    found = nmt.scores.activation(model, [x])
    close(found["0"], by_loops(first.weight, torch.cat([x, first(x).tanh()])))
    assert torch.equal(found["0"], found["2"])


def test_scores_decide_masks_everywhere(tmp_path, capsys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    x = torch.randn(20, 8) * torch.tensor([1.0, 9, 1, 1, 1, 1, 9, 1])
    found = nmt.scores.activation(model, [x])
    wanted = {path: nmt.solve(scores, "2:4", scores).mask for path, scores in found.items()}
    magnitudes = nmt.scores.magnitude(model)
    assert any(
        not torch.equal(wanted[path], nmt.solve(magnitudes[path], "2:4").mask) for path in wanted
    )
    assert all(
        torch.equal(nmt.solve(model[int(p)].weight, "2:4", found[p]).mask, mask)
        for p, mask in wanted.items()
    )

    plan = nmt.plan(model, "2:4", scores=found)
    assert plan.scores is found
    for given_plan, given_scores in ((plan, None), ("2:4", found)):
        sparse = nmt.sparsify_(model, given_plan, nmt.Fixed(), scores=given_scores)
        assert all(torch.equal(layer.masked.mask, wanted[layer.path]) for layer in sparse.layers)
        with pytest.raises(nmsolve.InputError, match="score the model again"):
            sparse.refresh_()
        sparse.finalize_()
        with torch.no_grad():
            for path, scores in found.items():
                model[int(path)].weight.copy_(scores)  # something without zeros again
        found = nmt.ModelScores("given", found)

    np.save(tmp_path / "w.npy", model[0].weight.detach().numpy())
    np.save(tmp_path / "s.npy", found["0"].numpy())
    arguments = [
        "solve",
        str(tmp_path / "w.npy"),
        "2:4",
        "--scores",
        str(tmp_path / "s.npy"),
        "--out",
        str(tmp_path / "m.npy"),
    ]
    assert main(arguments) == 0
    assert np.array_equal(np.load(tmp_path / "m.npy"), wanted["0"].numpy())
    assert "objective" in capsys.readouterr().out


def test_scores_print_as_a_table():
    text = str(nmt.scores.magnitude(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))))
    assert "magnitude" in text
    assert "4×8" in text


def refuses(call, *words):
    with pytest.raises(nmsolve.InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_what_cannot_be_scored_is_refused():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    x = torch.randn(5, 8)
    bad = x.clone()
    bad[2, 3] = torch.nan
    exhausted = iter([x])
    next(exhausted)
    refuses(lambda: nmt.scores.activation(model, []), "gave no inputs", "empty or exhausted")
    refuses(lambda: nmt.scores.activation(model, exhausted), "gave no inputs")
    refuses(lambda: nmt.scores.activation(model, x), "tensor of shape (5, 8)", "[inputs]")
    refuses(lambda: nmt.scores.activation(model, 3), "got 3")
    refuses(lambda: nmt.scores.activation(model, [x, bad]), "the input of layer 0 is nan", "item 1")
    refuses(
        lambda: nmt.scores.activation(model, [(x, torch.zeros(5))]),
        "item 0",
        "Sequential(float32 tensor (5, 8)",
        "inputs alone",
    )
    refuses(lambda: nmt.scores.activation(model, [x[:, :5]]), "item 0", "RuntimeError")
    refuses(
        lambda: nmt.scores.activation(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), [x]),
        "nothing to score",
    )

    class Bypass(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x):
            return self.used(x)

    refuses(lambda: nmt.scores.activation(Bypass(), [x]), "layer spare is never reached", "exclude")
    assert list(nmt.scores.activation(Bypass(), [x], exclude="spare")) == ["used"]
    assert list(nmt.scores.activation(Bypass(), [x], include="used")) == ["used"]
    mean = lambda model, x: model(x).mean()  # noqa: E731
    refuses(lambda: nmt.scores.gradient(Bypass(), [x], mean), "layer spare is never reached")
    refuses(lambda: nmt.scores.gradient(model, [x]), "has no loss", "loss=")
    refuses(
        lambda: nmt.scores.gradient(model, [x], lambda model, x: model(x)),
        "a tensor of shape (5, 4)",
    )
    refuses(
        lambda: nmt.scores.gradient(model, [x], lambda model, x: model(x).mean().detach()),
        "without a gradient",
    )
    refuses(lambda: nmt.scores.fisher(model, [bad], mean), "the loss is nan")
    with pytest.raises(KeyError, match="there are 0, 2"):
        nmt.scores.magnitude(model)["1"]


def test_scores_that_do_not_fit_are_refused():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    found = nmt.scores.magnitude(model)
    part = {"0": found["0"]}
    refuses(
        lambda: nmt.plan(model, "2:4", scores=part), "no scores for layer 2", "there are some for 0"
    )
    refuses(
        lambda: nmt.plan(model, "2:4", scores=part | {"2": found["0"]}),
        "layer 2 have shape (4, 8)",
        "(4, 4)",
    )
    refuses(lambda: nmt.plan(model, "2:4", scores=part | {"2": 1.0}), "layer 2 are a float")
    refuses(lambda: nmt.plan(model, "2:4", scores=[1]), "nmt.scores.activation")
    assert nmt.plan(model, "2:4", exclude="2", scores=part).planned
    for method in (nmt.STE(), nmt.SRSTE(), nmt.LBC(t_i=0, t_f=5)):
        refuses(
            lambda method=method: nmt.sparsify_(model, "2:4", method, scores=found),
            type(method).__name__,
            "nmt.Fixed()",
        )
    refuses(
        lambda: nmt.sparsify_(model, "2:4", nmt.Fixed(score=lambda w, g: w.abs()), scores=found),
        "choose one",
    )
    assert not any(nn.utils.parametrize.is_parametrized(module) for module in model.modules())
