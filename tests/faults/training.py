"""Faults in planning, masks on weights and training: `nmsolve.torch.weights` and `.training`."""

from tests.faults.planting import Fault

WEIGHTS = "nmsolve/torch/weights"
TRAINING = "nmsolve/torch/training"
TESTS = "tests/training"

FAULTS = (
    Fault(
        name="SR-STE's decay falls on kept weights",
        file=f"{TRAINING}/solved_methods.py",
        old="attachment.factor(layer, kept=False)",
        new="attachment.factor(layer, kept=True)",
        tests=(f"{TESTS}/test_methods.py::test_srste",),
    ),
    Fault(
        name="SR-STE's decay shrinks with loss scaling",
        file=f"{TRAINING}/solved_methods.py",
        old="[sign * self.decay * step.scale for sign in signs]",
        new="[sign * self.decay for sign in signs]",
        tests=(f"{TESTS}/test_steps.py::test_grad_scaler",),
    ),
    Fault(
        name="SR-STE decays away from zero where an optimizer maximises",
        file=f"{TRAINING}/solved_methods.py",
        old='signs = [-1.0 if group.get("maximize") else 1.0 for _, group in step.layers]',
        new="signs = [1.0 for _, group in step.layers]",
        tests=(f"{TESTS}/test_steps.py::test_maximize",),
    ),
    Fault(
        name="decoupled decay counts every evaluation of a closure",
        file=f"{TRAINING}/solved_methods.py",
        old="            if not step.first:\n                return\n            rates",
        new="            rates",
        tests=(f"{TESTS}/test_hazards.py::test_decoupled_decay_counts_once_a_step_of_lbfgs",),
    ),
    Fault(
        name="gradients of Fixed are not masked",
        file=f"{TRAINING}/solved_methods.py",
        old="straight_through: ClassVar[bool] = False",
        new="straight_through: ClassVar[bool] = True",
        tests=(f"{TESTS}/test_methods.py::test_gradients_of_dropped_weights",),
    ),
    Fault(
        name="masks change after freeze_after",
        file=f"{TRAINING}/solved_methods.py",
        old="self.freeze_after is None or step <= self.freeze_after",
        new="self.freeze_after is None or step >= 0",
        tests=(f"{TESTS}/test_methods.py::test_ste",),
    ),
    Fault(
        name="masks are not refreshed",
        file=f"{TRAINING}/solved_methods.py",
        old="        refresh(due, self.mask_method, self.score)",
        new="        return",
        tests=(f"{TESTS}/test_methods.py::test_ste",),
    ),
    Fault(
        name="masks are exchanged one by one, so that an error leaves half of them",
        file=f"{TRAINING}/refreshing.py",
        old="            parts = _solve_all(layers, mask_method, score)\n",
        new=(
            "            parts = []\n"
            "            for layer in layers:\n"
            "                parts += _solve_all([layer], mask_method, score)\n"
            "                layer.masked.put(parts[-1])\n"
        ),
        tests=(f"{TESTS}/test_errors.py::test_weights_that_are_not_finite_at_a_refresh",),
    ),
    Fault(
        name="flips count the last refresh alone",
        file=f"{TRAINING}/refreshing.py",
        old="progress.flips += changed",
        new="progress.flips = changed",
        tests=(f"{TESTS}/test_methods.py::test_ste",),
    ),
    Fault(
        name="momenta of dropped weights are kept, and revive them",
        file=f"{TRAINING}/attached_layers.py",
        old="local(tensor).mul_(mask)",
        new="local(tensor)",
        tests=(f"{TESTS}/test_methods.py::test_lbc",),
    ),
    Fault(
        name="a mask's factor is that of the mask before",
        file=f"{TRAINING}/attached_layers.py",
        old="            and found[0] == version\n",
        new="",
        tests=(f"{TESTS}/test_methods.py::test_srste",),
    ),
    Fault(
        name="a step that GradScaler skips is counted",
        file=f"{TRAINING}/stepping.py",
        old="        if self._skipped or (found_inf is not None and float(found_inf) != 0.0):\n",
        new="        if False:\n",
        tests=(f"{TESTS}/test_steps.py::test_grad_scaler",),
    ),
    Fault(
        name="attaching again leaves the first attachment at work",
        file=f"{TRAINING}/sparse_model.py",
        old="        self.detach()\n        self._attachments = news\n",
        new="        self._attachments = news\n",
        tests=(f"{TESTS}/test_errors.py::test_attaching_again_replaces",),
    ),
    Fault(
        name="a Trainer's callback attaches nothing",
        file=f"{TRAINING}/callback.py",
        old="        self.sparse.attach(*optimizers)\n",
        new="",
        tests=(f"{TESTS}/test_hugging_face_callback.py::test_logs",),
    ),
    Fault(
        name="checkpoints hold no counters",
        file=f"{TRAINING}/state_dict.py",
        old="            *astuple(masked.progress),\n",
        new="            *(0, 0, 0, 0, 0.0),\n",
        tests=(f"{TESTS}/test_checkpoints.py::test_resumes_bit_for_bit",),
    ),
    Fault(
        name="a checkpoint with masks of another pattern is loaded",
        file=f"{TRAINING}/state_dict.py",
        old="    if text != str(masked.pattern):\n",
        new="    if False:\n",
        tests=(f"{TESTS}/test_errors.py::test_a_checkpoint_with_masks_of_another_pattern",),
    ),
    Fault(
        name="masks of earlier versions are read with their bits reversed",
        file=f"{TRAINING}/state_dict.py",
        old='return "little" if numbers[1] < 0 else "big"',
        new='return "little"',
        tests=("tests/core/test_bits.py::test_a_state_dict_of_today",),
    ),
    Fault(
        name="finalizing leaves -0 where negative weights were dropped",
        file=f"{TRAINING}/removal.py",
        old="weight.copy_(torch.where(mask, weight, 0))",
        new="weight.mul_(mask)",
        tests=(f"{TESTS}/test_changed_models.py::test_masks_come_off",),
    ),
    Fault(
        name="LBC removes the best candidates",
        file=f"{WEIGHTS}/candidates.py",
        old="remove_lowest(flat[part]",
        new="remove_lowest(-flat[part]",
        tests=(f"{TESTS}/test_methods.py::test_lbc",),
    ),
    Fault(
        name="LBC leaves candidates after t_f, if no removal is due",
        file=f"{TRAINING}/lbc.py",
        old="waits = step < self.t_f and step % self.update_every != 0",
        new="waits = step % self.update_every != 0",
        tests=(f"{TESTS}/test_methods.py::test_lbc_removes_when_it_is_due",),
    ),
    Fault(
        name="LBC's inverse criterion is the learned one",
        file=f"{TRAINING}/lbc.py",
        old='-worth if self.criterion == "inverse" else worth',
        new="worth",
        tests=(f"{TESTS}/test_methods.py::test_lbc",),
    ),
    Fault(
        name="a write to module.weight is lost",
        file=f"{WEIGHTS}/written.py",
        old="return handle(masked, handed, MaskedWeight)",
        new="return masked",
        tests=(f"{TESTS}/test_writes.py::test_only_written_entries_change",),
    ),
    Fault(
        name="zeros written over dropped entries are not seen",
        file=f"{WEIGHTS}/memory.py",
        old="~mask, -0.0\n",
        new="~mask, 0.0\n",
        tests=(f"{TESTS}/test_writes.py::test_zeros_are_written_too",),
    ),
    Fault(
        name="a late write overwrites a newer dense weight",
        file=f"{WEIGHTS}/memory.py",
        old="            if written and not stale:\n",
        new="            if written:\n",
        tests=(f"{TESTS}/test_handles.py::test_a_late_write_is_an_error",),
    ),
    Fault(
        name="casting a model turns its masks into floats",
        file=f"{WEIGHTS}/masked.py",
        old="            self.mask = self.mask != 0\n",
        new="            pass\n",
        tests=(f"{TESTS}/test_checkpoints.py::test_casting_everything_leaves_masks_alone",),
    ),
    Fault(
        name="blocks of a grouped convolution reach across its filter groups",
        file=f"{WEIGHTS}/layer_kinds.py",
        old="        apart=True,\n",
        new="",
        tests=(f"{TESTS}/test_plan.py::test_blocks_need_rows_and_stay_in_their_filter_group",),
    ),
    Fault(
        name="in_proj_weight is taken for one projection",
        file=f"{WEIGHTS}/layer_kinds.py",
        old='3 if parameter == "in_proj_weight" else 1',
        new="1",
        tests=(
            "tests/pruning/test_scores.py::"
            "test_attention_is_scored_by_what_its_projections_multiply",
        ),
    ),
    Fault(
        name="Conv1D's groups lie along its outputs",
        file=f"{WEIGHTS}/layer_kinds.py",
        old='modules=("transformers.pytorch_utils.Conv1D",), weights={"weight": 0}',
        new='modules=("transformers.pytorch_utils.Conv1D",), weights={"weight": 1}',
        tests=(f"{TESTS}/test_hugging_face.py::test_plans",),
    ),
    Fault(
        name="embeddings are planned",
        file=f"{WEIGHTS}/layer_kinds.py",
        old="        modules=(nn.Embedding, nn.EmbeddingBag),\n",
        new='        modules=(nn.Embedding, nn.EmbeddingBag),\n        weights={"weight": 1},\n',
        tests=(f"{TESTS}/test_plan.py::test_every_weight_has_an_entry_with_a_pattern_or_a_reason",),
    ),
    Fault(
        name="a plan does not say which weights are tied",
        file=f"{WEIGHTS}/planning.py",
        old='"tied_to": owner if owner != path else None,',
        new='"tied_to": None,',
        tests=(f"{TESTS}/test_plan.py::test_tied_weights",),
    ),
    Fault(
        name="tied weights get two masks",
        file=f"{TRAINING}/sparsify.py",
        old="key = id(parameters_of(module)[entry.parameter])",
        new="key = id(module)",
        tests=(f"{TESTS}/test_masked_models.py::test_tied_weights_have_one_mask",),
    ),
    Fault(
        name="a weight that is tied to an embedding is planned",
        file=f"{WEIGHTS}/planning.py",
        old="yield layer.skipped(reasons[layer.path]) if layer.path in reasons else layer",
        new="yield layer",
        tests=(f"{TESTS}/test_plan.py::test_tied_weights",),
    ),
    Fault(
        name="matrices of adapters are planned",
        file=f"{WEIGHTS}/planning.py",
        old="    if not named and ADAPTER.search(weight.path):\n",
        new="    if False:\n",
        tests=(f"{TESTS}/test_changed_models.py::test_adapters_that_are_not_merged",),
    ),
    Fault(
        name="a shared weight is covered once for each layer",
        file=f"{WEIGHTS}/coverage.py",
        old="sum(sizes[key] for key in covered)",
        new="sum(parameters_of(m)[e.parameter].numel() for e, m in entries)",
        tests=(f"{TESTS}/test_coverage.py::test_a_shared_weight_counts_once",),
    ),
    Fault(
        name="weights that quantized layers pack are no part of the model",
        file=f"{WEIGHTS}/coverage.py",
        old="        for name, tensor in packed_tensors(module).items():\n",
        new="        for name, tensor in ():\n",
        tests=(f"{TESTS}/test_coverage.py::test_packed_weights_are_still_the_models",),
    ),
    Fault(
        name="codes of quantized weights are taken for numbers",
        file=f"{WEIGHTS}/quantized.py",
        old="    if values.dtype not in (*FLOATS, *FLOATS8):\n",
        new="    if False:\n",
        tests=(f"{TESTS}/test_quantized.py::test_codes_that_say_nothing_are_refused_by_name",),
    ),
    Fault(
        name="quantized weights are verified by their codes",
        file=f"{WEIGHTS}/quantized.py",
        old="            found = dequantize()\n",
        new=(
            "            found = getattr(weight, 'codes', None)\n"
            "            found = weight.int_repr() if found is None else found\n"
            "            found = found.float()\n"
        ),
        tests=(
            f"{TESTS}/test_quantized.py::test_parameters_that_are_torchs_quantized_tensors",
            f"{TESTS}/test_quantized.py::test_layers_that_are_quantized_statically",
        ),
    ),
)
