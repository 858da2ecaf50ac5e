"""Pruning on a GPU gives what it gives on the CPU. These tests exist only where there is a GPU."""

import copy

import pytest
import torch

import nmsolve
import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, snapshot
from tests.training.small_net import Net

if torch.cuda.is_available():
    PRUNE = {
        "least squares": nmt.adaprune_,
        "adam": lambda *args: nmt.adaprune_(*args, update=nmt.Adam(steps=50)),
        "second order": nmt.sparsegpt_,
    }

    def both():
        torch.manual_seed(0)
        model = Net().eval()
        items = [torch.randn(16, 1, 6, 6) for _ in range(3)]
        return (model, items), (copy.deepcopy(model).cuda(), [x.cuda() for x in items])

    @pytest.mark.gpu
    @pytest.mark.parametrize("name", PRUNE)
    @pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
    def test_errors_are_those_on_the_cpu(name, pattern):
        here, there = both()
        found = [PRUNE[name](model, pattern, items) for model, items in (here, there)]
        for one, other in zip(*found, strict=True):
            assert other.name == one.name
            assert other.before == pytest.approx(one.before, rel=0.05, abs=1e-4)
            assert other.after == pytest.approx(one.after, rel=0.1, abs=1e-3)
            assert other.held_out_after == pytest.approx(one.held_out_after, rel=0.2, abs=2e-3)
        assert found[0].way == found[1].way
        assert nmt.verify(there[0], pattern)
        assert all(p.is_cuda for p in there[0].parameters())

    @pytest.mark.gpu
    def test_what_fails_there_leaves_the_model_as_it_was():
        _, (model, items) = both()
        before, state = snapshot(model), torch.cuda.get_rng_state()
        items[2][3] = torch.nan
        with pytest.raises(nmsolve.InputError, match="calibration item 2"):
            nmt.adaprune_(model, "2:4", items)
        assert not differing(snapshot(model), before)
        changed = []

        def interrupt(*_):
            changed.append(bool(differing(snapshot(model), before)))
            if changed[-1]:  # when batch norms are given their new statistics
                raise KeyboardInterrupt

        stop = model.stem.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            nmt.sparsegpt_(model, "2:4", items[:2])
        stop.remove()
        assert changed[-1]
        assert not differing(snapshot(model), before)
        assert torch.equal(torch.cuda.get_rng_state(), state)

    @pytest.mark.gpu
    def test_scores_are_those_on_the_cpu():
        here, there = both()
        for name, arguments in (
            ("activation", ()),
            ("fisher", (lambda model, x: model(x).square().mean(),)),
        ):
            first, second = (
                getattr(nmt.scores, name)(model, items, *arguments)
                for model, items in (here, there)
            )
            for path, scores in first.items():
                torch.testing.assert_close(
                    second[path].cpu(), scores, rtol=1e-2, atol=1e-5 + 1e-3 * float(scores.max())
                )

    @pytest.mark.gpu
    def test_losses_and_searches_run_there():
        (_, _), (model, items) = both()
        losses = nmt.losses(model, ["2:4", "1:4", "2:4T", "dense"], calibration=items)
        whole = sum(
            max(option.kept for option in layer.options) for layer in losses if layer.options
        )
        assert nmt.allocate(losses, budget=nmt.Params(whole // 2)).status.value == "optimal"
        found = nmt.domino_search(
            model.train(),
            lambda model: model(items[0]).square().mean(),
            nmt.Params(whole // 2),
            m=8,
            decay=5.0,
            penalty_every=1,
            check_every=1,
        )
        assert found.reached
