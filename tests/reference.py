"""The editing methods in their plain textbook form: the oracle that the library is tested against.

Nothing here is fast. Every step of every optimisation is a full forward pass of the whole model with hooks, requests
are taken one at a time, every key is a forward pass of its own, and every closed form is one dense float64 solve.
It knows the Llama family, GPT-2 (which keeps its weights transposed), GPT-J and GPT-NeoX, in float32 and in float64.

An edit is any object with `.prompt` (one "{}"), `.subject` and `.target_new` (no leading space); contexts are strings
with one "{}", the clean one ("{}") first; hyperparameters are any object with the usual field names. A call leaves its
edit in the weights: restoring is the caller's business. This file does not import the library, on purpose.
"""

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import torch

KL_PROMPT = "{} is a"


def layout(model):
    """Names of the modules that the methods touch."""
    block, mlp, attention, norm = {
        "gpt2": ("transformer.h.{}", "mlp.c_proj", "attn.c_proj", "transformer.ln_f"),
        "gptj": ("transformer.h.{}", "mlp.fc_out", "attn.out_proj", "transformer.ln_f"),
        "gpt_neox": ("gpt_neox.layers.{}", "mlp.dense_4h_to_h", "attention.dense", "gpt_neox.final_layer_norm"),
        "falcon": ("transformer.h.{}", "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f"),
        "bloom": ("transformer.h.{}", "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f"),
        "opt": ("model.decoder.layers.{}", "fc2", "self_attn.out_proj", "model.decoder.final_layer_norm"),
        "starcoder2": ("model.layers.{}", "mlp.c_proj", "self_attn.o_proj", "model.norm"),
        "llama4_text": ("model.layers.{}", "feed_forward.down_proj", "self_attn.o_proj", "model.norm"),
    }.get(model.config.model_type, ("model.layers.{}", "mlp.down_proj", "self_attn.o_proj", "model.norm"))
    cap = getattr(model.config, "final_logit_softcapping", None)
    factor = getattr(model.config, "logit_scale", 1) / getattr(model.config, "logits_scaling", 1)  # Cohere's; Granite's
    return SimpleNamespace(
        block=block,
        mlp=f"{block}.{mlp}",
        attention=f"{block}.{attention}",
        norm=model.get_submodule(norm),
        head=lambda normed: capped(model.get_output_embeddings()(normed) * factor, cap),
        added=getattr(model.config, "residual_multiplier", 1),  # the stream takes so much of the MLP's output (Granite)
        transposed=model.config.model_type == "gpt2",
        n_layers=model.config.num_hidden_layers,
    )


def capped(logits, cap):
    """What Gemma 2 does to its logits."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def weight(model, layer):
    """Name and parameter of the matrix that is edited, as stored (GPT-2: d_ff x d_model)."""
    name = layout(model).mlp.format(layer) + ".weight"
    return name, model.get_parameter(name)


def add_to_weight(model, layer, update):
    """Add an update of shape d_model x d_ff; return {parameter name: the same update in the parameter's own shape}."""
    name, parameter = weight(model, layer)
    update = (update.T if layout(model).transposed else update).to(parameter.dtype).contiguous()
    with torch.no_grad():
        parameter += update
    return {name: update}


@contextmanager
def watching(model, names, add=None):
    """Record `.input` and `.output` of the named modules; `add` = {name: (vector, positions)} adds one vector to each
    row of a module's output at that row's position."""
    seen, handles, batch = {name: SimpleNamespace() for name in names}, [], []

    def begin(module, args, kwargs):
        batch[:] = kwargs["input_ids"].shape

    def by_row(x):
        """OPT runs its MLP on all tokens of a batch in one row."""
        return x.view(*batch, -1) if x.dim() == 2 else x

    def hook(name):
        def changed(module, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            flat, hidden = hidden.dim() == 2, by_row(hidden)
            if add and name in add:
                vector, positions = add[name]
                here = torch.zeros(hidden.shape[:2], dtype=hidden.dtype)
                here[torch.arange(len(positions)), positions] = 1
                hidden = hidden + here[:, :, None] * vector
            if name in seen:
                seen[name].input, seen[name].output = by_row(inputs[0]), hidden.clone()  # Falcon adds to it in place
            hidden = hidden.flatten(0, 1) if flat else hidden
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return changed

    try:
        handles.append(model.register_forward_pre_hook(begin, with_kwargs=True))
        for name in {*names, *(add or {})}:
            handles.append(model.get_submodule(name).register_forward_hook(hook(name)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def encode(tokenizer, text):
    """Ids of a text as the tokenizer gives them by default: begin-of-text once, in front, if it adds one."""
    return tokenizer(text)["input_ids"]


def target_ids(tokenizer, prompt, target):
    """Ids of the target as it continues the prompt."""
    before = encode(tokenizer, prompt)
    for written in (" " + target, target):  # the second for tokenizers that put the space there by themselves
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        joined = tokenizer.decode(before + ids, skip_special_tokens=True)
        if joined == f"{prompt} {target}" and tokenizer.decode(ids[:1]).strip():
            return ids
    raise ValueError(f"{target!r} does not continue {prompt!r}")


def fill(context, prompt, subject):
    """The whole text, and where the subject ends in it (in characters)."""
    filled = prompt.format(subject)
    text = context.format(filled)
    start = context.format("\0").index("\0") + prompt.format("\0").index("\0")
    assert text[start : start + len(subject)] == subject
    return text, start + len(subject)


def lookup_index(tokenizer, context, prompt, subject):
    """Index of the token that holds the subject's last character, the text being tokenised as a whole."""
    text, end = fill(context, prompt, subject)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return max(i for i, (left, right) in enumerate(offsets) if left < end <= right)


def right_padded(rows, pad):
    """One matrix of ids. Attention is causal, so padding on the right changes nothing on its left: no mask needed."""
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


def rewriting(tokenizer, edit, contexts):
    """Everything the optimisation reads: rows of ids (the KL prompt last), lookup indices, the target's ids and, for
    each row but the last, the first position whose logits predict the target."""
    target = target_ids(tokenizer, edit.prompt.format(edit.subject), edit.target_new)
    prompts = [encode(tokenizer, fill(context, edit.prompt, edit.subject)[0]) for context in contexts]
    rows = [ids + target[:-1] for ids in prompts] + [encode(tokenizer, KL_PROMPT.format(edit.subject))]
    lookups = [lookup_index(tokenizer, context, edit.prompt, edit.subject) for context in contexts]
    lookups.append(lookup_index(tokenizer, "{}", KL_PROMPT, edit.subject))
    return SimpleNamespace(rows=rows, lookups=lookups, target=target, starts=[len(ids) - 1 for ids in prompts])


def optimise(model, tokenizer, edit, contexts, hp, sites, loss_layer=None, pmet=False):
    """Find the vectors that, added at the subject's last token to the outputs of the modules `sites`, make the model
    say the target. `loss_layer` None: read the model's own logits."""
    model.requires_grad_(False)
    parts, read = layout(model), rewriting(tokenizer, edit, contexts)
    ids = right_padded(read.rows, read.target[0])
    loss_block = None if loss_layer is None else parts.block.format(loss_layer)
    target = torch.tensor(read.target)
    deltas = [torch.zeros(model.config.hidden_size, dtype=model.dtype, requires_grad=True) for _ in sites]

    with torch.no_grad(), watching(model, sites) as seen:
        first_kl = model(input_ids=ids, use_cache=False).logits[-1, read.lookups[-1]].log_softmax(-1)
    clean = [seen[site].output[0, read.lookups[0]].clone() for site in sites]

    adam, factor = torch.optim.Adam(deltas, lr=hp.v_lr), getattr(hp, "nll_loss_factor", 1.0)
    trace, led = SimpleNamespace(losses=[], nlls=[], kls=[], decays=[], probabilities=[]), 0
    for step in range(hp.v_num_grad_steps):
        added = {site: (delta, read.lookups) for site, delta in zip(sites, deltas, strict=True)}
        with watching(model, [loss_block] if loss_block else [], added) as seen:
            logits = model(input_ids=ids, use_cache=False).logits
        # The KL always reads the model's final logits, whatever the loss layer is.
        now_kl = logits[-1, read.lookups[-1]].log_softmax(-1)
        if loss_block:
            logits = parts.head(parts.norm(seen[loss_block].output))
        predicted = torch.stack(
            [logits[row, start : start + len(target)].log_softmax(-1) for row, start in enumerate(read.starts)]
        )  # contexts x target tokens x vocabulary
        nll_each = -predicted[:, torch.arange(len(target)), target].mean(1)
        nll = factor * nll_each.mean()
        kl = hp.kl_factor * (now_kl.exp() * (now_kl - first_kl)).sum()
        decay = hp.v_weight_decay * sum(
            delta.norm() / value.norm() ** 2 for delta, value in zip(deltas, clean, strict=True)
        )
        loss = nll + kl + decay
        seen_now = {"losses": loss, "nlls": nll, "kls": kl, "decays": decay, "probabilities": (-nll_each).exp().mean()}
        for name, number in seen_now.items():
            getattr(trace, name).append(number.item())
        cutoff = getattr(hp, "prob_cutoff", -2 if getattr(hp, "stop", None) else 0)
        right = predicted[min(1, len(predicted) - 1) :].argmax(-1) == target
        led += right.sum().item() == 5 if getattr(hp, "as_code", False) else bool(right.all())
        if (cutoff < 0 and led == -cutoff) or (cutoff > 0 and (-nll_each).exp().mean() > cutoff):
            break
        if loss < 0.05:
            break
        if pmet:
            learned = bool((predicted.argmax(-1) == target).all())
            factor = hp.nll_loss_factor * (0.1 if learned else 1.0)  # takes effect from the next step on
            if learned and kl <= 0.01:
                break
        if step == hp.v_num_grad_steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for delta, value in zip(deltas, clean, strict=True):
                limit = hp.clamp_norm_factor * value.norm()
                if delta.norm() > limit:
                    delta *= limit / delta.norm()

    trace.steps = len(trace.losses)
    trace.delta, trace.v0 = deltas[0].detach(), clean[0]
    trace.z = trace.v0 + trace.delta
    return trace


def loss_layer_of(model, hp):
    layer = layout(model).n_layers - 1 if hp.v_loss_layer is None else hp.v_loss_layer
    return max(layer, hp.layers[-1])


def optimise_v(model, tokenizer, edit, contexts, hp):
    """v* of ROME: the output of one MLP."""
    return optimise(model, tokenizer, edit, contexts, hp, [layout(model).mlp.format(hp.layers[-1])])


def optimise_z(model, tokenizer, edit, contexts, hp):
    """z of MEMIT, EMMET, AlphaEdit: the residual stream after the last edited layer."""
    sites = [layout(model).block.format(hp.layers[-1])]
    return optimise(model, tokenizer, edit, contexts, hp, sites, loss_layer_of(model, hp))


def optimise_pmet(model, tokenizer, edit, contexts, hp):
    """z of PMET: the MLP's output, with the attention's output optimised beside it and then forgotten."""
    sites = [layout(model).mlp.format(hp.layers[-1]), layout(model).attention.format(hp.layers[-1])]
    return optimise(model, tokenizer, edit, contexts, hp, sites, loss_layer_of(model, hp), pmet=True)


@torch.no_grad()
def at_subject(model, tokenizer, edit, context, name):
    """Input and output of a module at the subject's last token."""
    ids = encode(tokenizer, fill(context, edit.prompt, edit.subject)[0])
    with watching(model, [name]) as seen:
        model(input_ids=torch.tensor([ids]), use_cache=False)
    index = lookup_index(tokenizer, context, edit.prompt, edit.subject)
    return seen[name].input[0, index], seen[name].output[0, index]


def keys_of(model, tokenizer, edit, contexts, layer):
    """Keys and outputs of one edit, a row each context."""
    pairs = [at_subject(model, tokenizer, edit, context, layout(model).mlp.format(layer)) for context in contexts]
    return torch.stack([key for key, _ in pairs]), torch.stack([output for _, output in pairs])


def keys(model, tokenizer, edits, contexts, layer):
    """Keys of the MEMIT family, d_ff x N: half the clean prompt's, half the mean of the other contexts'."""
    assert contexts[0] == "{}"
    columns = []
    for edit in edits:
        rows, _ = keys_of(model, tokenizer, edit, contexts, layer)
        columns.append((rows[0] + rows[1:].mean(0)) / 2 if len(rows) > 1 else rows[0])
    return torch.stack(columns, 1)


def hidden(model, tokenizer, edits, name):
    """Output of a module at the clean prompts' subjects, d_model x N."""
    return torch.stack([at_subject(model, tokenizer, edit, "{}", name)[1] for edit in edits], 1)


# R: d_model x N residuals, already divided by the layer's share. K: d_ff x N keys. C: d_ff x d_ff second moment.


def rome_update(C, key_for_direction, key, change):
    """The rank-one update W k = old + change; C None: the direction is the key itself."""
    k, key, change = key_for_direction.double(), key.double(), change.double()
    u = k if C is None else torch.linalg.solve(C.double(), k)
    u = u / u.norm()
    return torch.outer(change, u) / (u @ key)


def memit_update(R, K, C, weight, M=None):
    R, K = R.double(), K.double()
    A = weight * C.double() + K @ K.T + (0 if M is None else M)
    return torch.linalg.solve(A, K @ R.T).T


def emmet_update(R, K, C, weight, ridge, eta):
    R, K = R.double(), K.double()
    C = weight * C.double() + eta * torch.eye(len(C), dtype=torch.float64)
    J = torch.linalg.solve(C, K)  # C'^-1 K
    small = K.T @ J + (ridge if K.shape[1] > 1 else 0) * torch.eye(K.shape[1], dtype=torch.float64)
    return R @ torch.linalg.solve(small, J.T)


def null_projection(C, threshold):
    """Projection on the directions of C whose singular value is below the threshold. In the precision of C, as the
    authors have it: where singular values crowd around the threshold, rounding turns the cut by 5e-5."""
    U, values, _ = torch.linalg.svd(C)
    U = U[:, values < threshold]
    return (U @ U.T).double()


def alphaedit_update(R, K, P, ridge, M=None):
    R, K = R.double(), K.double()
    A = P @ (K @ K.T + (0 if M is None else M)) + ridge * torch.eye(len(P), dtype=torch.float64)
    return torch.linalg.solve(A, P @ K @ R.T).T


def rect_update(update, W):
    """RECT: of all entries, sorted by |update / (W + 1e-8)|, the first 60 % but for the last of these become 0 (the
    authors keep the entry at the boundary)."""
    update, W = update.double(), W.detach().double()
    order = (update / (W + 1e-8)).abs().flatten().argsort()
    dropped = order[: int(update.numel() * 60 / 100) - 1]
    kept = update.flatten().clone()
    kept[dropped] = 0
    return kept.view_as(update)


def prune_update(update, W0):
    """PRUNE: singular values of the total update above the unedited weight's largest grow with their logarithm only."""
    largest = torch.linalg.svdvals(W0.double()).max()
    U, values, V = torch.linalg.svd(update.double(), full_matrices=False)
    lowered = [value.log() - largest.log() + largest if value > largest else value for value in values]
    return U @ torch.diag(torch.stack(lowered)) @ V


def anchored(model, tokenizer, edit, layer, target, norm, skip):
    """Norm anchoring: v* = v0 + delta, at the MLP's output and the clean prompt, is given this norm, or dropped if
    it is longer than so many times it; z moves along."""
    _, v0 = at_subject(model, tokenizer, edit, "{}", layout(model).mlp.format(layer))
    v_star = v0 + target.delta
    rescaled = v0 if v_star.norm() > skip * norm else v_star / v_star.norm() * norm
    return SimpleNamespace(**{**vars(target), "z": target.z - v_star + rescaled, "delta": rescaled - v0})


def reference_norm(model, tokenizer, edits, layer, targets):
    """What norm anchoring gives every v*: the mean norm of these, the largest 5 % left out."""
    name = layout(model).mlp.format(layer)
    values = [at_subject(model, tokenizer, edit, "{}", name)[1] for edit in edits]
    norms = sorted(float((v0 + target.delta).norm()) for v0, target in zip(values, targets, strict=True))
    kept = norms[: len(norms) - int(0.05 * len(norms))]
    return sum(kept) / len(kept)


def targets_of(optimise_one, model, tokenizer, edits, contexts, hp):
    """All targets on the weights as they are, anchored if hp says so."""
    targets = [optimise_one(model, tokenizer, edit, contexts, hp) for edit in edits]
    if getattr(hp, "norm_anchor", None) is None:
        return targets
    skip = float("inf") if not getattr(hp, "anchor_skip", True) else 5 if optimise_one is optimise_v else 2
    return [
        anchored(model, tokenizer, edit, hp.layers[-1], target, hp.norm_anchor, skip)
        for edit, target in zip(edits, targets, strict=True)
    ]


def rome(model, tokenizer, edit, contexts, hp, C=None, kind="rome"):
    """ROME, and its two consistent forms: kind "rrome" (the mean key everywhere), "prome" (the clean key everywhere).
    C: {layer: second moment}."""
    layer = hp.layers[0]
    (target,) = targets_of(optimise_v, model, tokenizer, [edit], contexts, hp)
    rows, outputs = keys_of(model, tokenizer, edit, contexts, layer)
    mean, clean = rows.mean(0), rows[0]
    direction = clean if kind == "prome" else mean
    key, old = (mean, outputs.mean(0)) if kind == "rrome" else (clean, outputs[0])
    update = rome_update(C[layer] if hp.mom2_adjustment else None, direction, key, target.z - old)
    return SimpleNamespace(
        deltas=add_to_weight(model, layer, update), targets=[target], keys={layer: direction[:, None]}, key=key, old=old
    )


rrome, prome = partial(rome, kind="rrome"), partial(rome, kind="prome")


def spread(model, tokenizer, edits, contexts, hp, targets, site, share, update):
    """The loop over layers that the MEMIT family shares: measure the residual at `site`, take this layer's share,
    solve, write, go on with the weights so far."""
    result = SimpleNamespace(deltas={}, targets=targets, keys={}, hidden={})
    Z = torch.stack([target.z for target in targets], 1)
    for i, layer in enumerate(hp.layers):
        K = keys(model, tokenizer, edits, contexts, layer)
        H = hidden(model, tokenizer, edits, site)
        R = (Z - H).double() / share(len(hp.layers) - i)
        result.keys[layer], result.hidden[layer] = K, H
        result.deltas |= add_to_weight(model, layer, update(layer, R, K))
    return result


def spread_stream(model, tokenizer, edits, contexts, hp, update):
    """`spread` for targets of the residual stream, in equal shares."""
    targets = targets_of(optimise_z, model, tokenizer, edits, contexts, hp)
    site, added = layout(model).block.format(hp.layers[-1]), layout(model).added
    return spread(model, tokenizer, edits, contexts, hp, targets, site, lambda left: left * added, update)


def add_to_history(model, tokenizer, edits, contexts, hp, M):
    """After an edit: M += K K^T with the keys measured on the edited weights. M: {layer: matrix}, changed in place;
    None: there is no history."""
    for layer in hp.layers if M is not None else ():
        K = keys(model, tokenizer, edits, contexts, layer).double()
        M[layer] = M.get(layer, 0) + K @ K.T


def ridge(hp, C, M):
    """MEMIT's closed form for a layer."""
    return lambda layer, R, K: memit_update(R, K, C[layer], hp.mom2_update_weight, (M or {}).get(layer))


def memit(model, tokenizer, edits, contexts, hp, C, M=None):
    """MEMIT; with M ({layer: matrix}, empty at first) MEMIT with a history of the keys written before."""
    result = spread_stream(model, tokenizer, edits, contexts, hp, ridge(hp, C, M))
    add_to_history(model, tokenizer, edits, contexts, hp, M)
    return result


def rect(model, tokenizer, edits, contexts, hp, C, M=None):
    """MEMIT to its end; then all of it is taken back, and the largest relative changes of each weight are made."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = memit(model, tokenizer, edits, contexts, hp, C, None if M is None else dict(M))
    model.load_state_dict(before)
    for name, update in result.deltas.items():
        result.deltas[name] = rect_update(update, before[name])
        with torch.no_grad():
            model.get_parameter(name).add_(result.deltas[name])
    add_to_history(model, tokenizer, edits, contexts, hp, M)
    return result


def pmet(model, tokenizer, edits, contexts, hp, C, M=None):
    targets = targets_of(optimise_pmet, model, tokenizer, edits, contexts, hp)
    site = layout(model).mlp.format(hp.layers[-1])
    result = spread(model, tokenizer, edits, contexts, hp, targets, site, lambda left: left**0.5, ridge(hp, C, M))
    add_to_history(model, tokenizer, edits, contexts, hp, M)
    return result


def emmet(model, tokenizer, edits, contexts, hp, C):
    def update(layer, R, K):
        return emmet_update(R, K, C[layer], hp.mom2_update_weight, hp.emmet_lambda, hp.update_norm_lambda)

    return spread_stream(model, tokenizer, edits, contexts, hp, update)


def alphaedit(model, tokenizer, edits, contexts, hp, P, M):
    """P: {layer: projection}; M: {layer: matrix}, empty at first, shared by successive calls."""

    def update(layer, R, K):
        return alphaedit_update(R, K, P[layer], hp.L2, M.get(layer))

    result = spread_stream(model, tokenizer, edits, contexts, hp, update)
    add_to_history(model, tokenizer, edits, contexts, hp, M)
    return result


def encore(model, tokenizer, edits, contexts, hp, C, M):
    """M: {layer: matrix}, empty at first: of the keys that earlier updates were solved with."""

    def update(layer, R, K):
        K = K.double()
        A = hp.mom2_update_weight * C[layer].double() + hp.update_norm_lambda * torch.eye(len(K)).double() + K @ K.T
        found = torch.linalg.solve(A + M.get(layer, 0), K @ R.T).T
        M[layer] = M.get(layer, 0) + K @ K.T
        return found

    return spread_stream(model, tokenizer, edits, contexts, hp, update)


def evoedit(model, tokenizer, edits, contexts, hp, P):
    """P: {layer: projection}, changed in place."""

    def update(layer, R, K):
        Y = P[layer] @ K.double()
        small = K.double().T @ Y + (hp.L2 + 1e-6) * torch.eye(K.shape[1], dtype=torch.float64)
        U, values, _ = torch.linalg.svd(Y, full_matrices=False)
        Q = U[:, values > 1e-8 * values[0]]
        P[layer] = P[layer] - Q @ Q.T
        return R @ torch.linalg.solve(small, Y.T)

    return spread_stream(model, tokenizer, edits, contexts, hp, update)


def betaedit(model, tokenizer, edits, contexts, hp, C, state):
    """state: .done edits, .renewed at edit, .M and .P by layer, changed in place."""
    due = state.done - state.renewed >= hp.tau

    def update(layer, R, K):
        K, old = K.double(), C[layer].double()
        if due:
            mixed = (state.M[layer] / state.done + hp.lambda1 * old) / (hp.lambda1 + 1)
            state.P[layer] = null_projection(mixed.to(C[layer].dtype), hp.nullspace_threshold)
        P, eye = state.P[layer], torch.eye(len(K), dtype=torch.float64)
        A = P @ (K @ K.T + state.M.get(layer, 0) + hp.lambda1 * old) + hp.lambda2 * eye
        state.M[layer] = state.M.get(layer, 0) + K @ K.T
        return torch.linalg.solve(A, P @ K @ R.T).T

    result = spread_stream(model, tokenizer, edits, contexts, hp, update)
    state.renewed = state.done if due else state.renewed
    state.done += len(edits)
    return result


def lyaplock(model, tokenizer, edits, contexts, hp, C, W0, state):
    """W0: {layer: unedited weight}. state: {layer: (q, Z, damage allowed, H_vk, H_kk)}, empty at first."""

    def update(layer, R, K):
        K, W, old = K.double(), matrix_of(model, layer), C[layer].double()
        q, Z, allowed, VK, KK = state.get(layer, (1.0, None, None, 0 * W, 0 * old))
        left = R @ K.T + q * hp.mom2_update_weight * (W0[layer] - W) @ old + VK - W @ KK
        found = left @ torch.linalg.inv(K @ K.T + q * hp.mom2_update_weight * old + KK)
        after = W + found
        drift = after - W0[layer]
        damage = (old @ drift.T @ drift).trace().item()
        allowed = hp.alpha * damage if allowed is None else allowed
        least = allowed**0.5
        Z = max((least if Z is None else Z) + (damage - allowed) / least, least)
        state[layer] = Z / least, Z, allowed, VK + after @ K @ K.T, KK + K @ K.T
        return found

    return spread_stream(model, tokenizer, edits, contexts, hp, update)


def rlsedit_as_code(model, tokenizer, edits, contexts, hp, C, inverse):
    """The recursion as the authors' program feeds it: W K is driven towards R, each with its share. inverse: {layer:
    (weight C + K K^T)^-1}, empty at first."""

    def update(layer, R, K):
        K, W, left = K.double(), matrix_of(model, layer), len(hp.layers) - hp.layers.index(layer)
        before = inverse.get(layer, torch.linalg.inv(hp.mom2_update_weight * C[layer].double()))
        inverse[layer] = torch.linalg.inv(torch.linalg.inv(before) + K @ K.T)
        return (R - W @ K / left) @ K.T @ inverse[layer]

    return spread_stream(model, tokenizer, edits, contexts, hp, update)


def matrix_of(model, layer):
    """The edited weight, d_model x d_ff."""
    W = weight(model, layer)[1].detach().double().clone()
    return W.T if layout(model).transposed else W


def filtered(model, result, layers, change):
    """All of an outcome is taken back, and written as `change(layer, update, weight)` makes it."""
    for layer in layers:
        name, parameter = weight(model, layer)
        raw = result.deltas[name].double()
        raw = raw.T if layout(model).transposed else raw
        with torch.no_grad():
            parameter -= result.deltas[name]
        result.deltas |= add_to_weight(model, layer, change(layer, raw, matrix_of(model, layer)))
    return result


def sphere_update(update, W, beta, alpha):
    rows = W / (W.norm(dim=1, keepdim=True) + 1e-8)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    values, vectors = values.flip(0), vectors.flip(1)
    r = int((values.cumsum(0) / values.sum() <= beta).sum()) + 1
    return update @ (torch.eye(len(values)).double() - alpha * vectors[:, :r] @ vectors[:, :r].T)


def revive_update(update, W, tau):
    U, values, Vt = torch.linalg.svd(W)
    energy, k = 0.0, 0
    while energy < tau * float((values**2).sum()):
        energy, k = energy + float(values[k] ** 2), k + 1
    keep_rows = torch.eye(len(U)).double() - U[:, :k] @ U[:, :k].T
    keep_columns = torch.eye(len(Vt)).double() - Vt[:k].T @ Vt[:k]
    return keep_rows @ update @ keep_columns


@torch.no_grad()
def simie(model, tokenizer, edit, hp, base, P):
    """base(edit) edits the model and returns its outcome. P: {layer: matrix}, empty at first. hp.init_model: from the
    unedited weights hp.originals ({parameter name: value})."""
    names = {layer: weight(model, layer)[0] for layer in hp.layers}
    before = {layer: matrix_of(model, layer) for layer in hp.layers}
    kept = {name: model.get_parameter(name).detach().clone() for name in names.values()}
    if hp.init_model:
        for name in names.values():
            model.get_parameter(name).copy_(hp.originals[name])
    prompt = edit.prompt.format(edit.subject)
    ids = encode(tokenizer, prompt) + target_ids(tokenizer, prompt, edit.target_new)
    modules = {layer: layout(model).mlp.format(layer) for layer in hp.layers}
    with watching(model, list(modules.values())) as seen:
        model(input_ids=torch.tensor([ids]), use_cache=False)
    with torch.enable_grad():
        result = base(edit)
    after = {layer: matrix_of(model, layer) for layer in hp.layers}
    for name, value in kept.items():
        model.get_parameter(name).copy_(value)
    result.deltas = {}
    for layer, module in modules.items():
        X = seen[module].input[0].double()
        P[layer] = P.get(layer, hp.lamHyper * torch.eye(X.shape[1]).double()) + X.T @ X
        update = (after[layer] - before[layer]) @ X.T @ X @ torch.linalg.inv(P[layer])
        result.deltas |= add_to_weight(model, layer, update)
    return result


def prune(model, originals):
    """After all edits: replace each edited weight. originals: {parameter name: its unedited value}."""
    with torch.no_grad():
        for name, W0 in originals.items():
            W = model.get_parameter(name)
            W.copy_(W0 + prune_update(W - W0, W0))


def fine_tune(model, tokenizer, edits, hp):
    """FT-L ("prompt_last": every target token is read at the prompt's last token) and FT-M ("target_new": each at its
    own place). Adam on the weights themselves, which stay within `norm_constraint` of what they were."""
    weights = dict(weight(model, layer) for layer in hp.layers)
    before = {name: W.detach().clone() for name, W in weights.items()}
    model.requires_grad_(False)
    for W in weights.values():
        W.requires_grad_(True)
    adam = torch.optim.Adam(weights.values(), lr=hp.lr, weight_decay=hp.weight_decay)
    traces = [SimpleNamespace(losses=[], probabilities=[]) for _ in edits]

    def losses(chosen):
        found = []
        for i in chosen:
            prompt = encode(tokenizer, edits[i].prompt.format(edits[i].subject))
            target = target_ids(tokenizer, edits[i].prompt.format(edits[i].subject), edits[i].target_new)
            logits = model(input_ids=torch.tensor([prompt + target[:-1]]), use_cache=False).logits[0]
            last = len(prompt) - 1
            at = [last + (j if hp.objective_optimization == "target_new" else 0) for j in range(len(target))]
            found.append(-logits[at].log_softmax(-1)[range(len(target)), target].mean())
            traces[i].losses.append(found[-1].item())
            traces[i].probabilities.append(found[-1].neg().exp().item())
        return torch.stack(found).mean()

    chunks = [range(i, min(i + hp.batch_size, len(edits))) for i in range(0, len(edits), hp.batch_size)]
    for _ in range(hp.num_steps):
        for chunk in chunks:
            adam.zero_grad()
            loss = losses(chunk)
            if loss >= 0.01:
                loss.backward()
                adam.step()
            if hp.norm_constraint is not None:
                with torch.no_grad():
                    for name, W in weights.items():
                        W.copy_(torch.clamp(W, before[name] - hp.norm_constraint, before[name] + hp.norm_constraint))
        if sum(trace.losses[-1] for trace in traces) / len(traces) < 0.01:
            break
    else:  # the steps are used up: what they have reached
        for chunk in chunks:
            losses(chunk)
    for trace in traces:
        trace.steps = len(trace.losses)
    model.requires_grad_(False)
    deltas = {name: (W - before[name]).detach() for name, W in weights.items()}
    return SimpleNamespace(deltas=deltas, targets=traces, keys={})


def ultraedit(model, tokenizer, edits, hp, state):
    """state: {(d_in, d_out): (n, mean, spread)}, empty at first. hp: modules, lr, batch_size."""
    eps, modules = torch.finfo(torch.float32).eps, {name: model.get_submodule(name) for name in hp.modules}
    rows = []
    for edit in edits:
        prompt = encode(tokenizer, edit.prompt.format(edit.subject))
        target = target_ids(tokenizer, edit.prompt.format(edit.subject), edit.target_new)
        rows.append((prompt + target[:-1], len(prompt) - 1, target))
    rows.sort(key=lambda row: -len(row[0]))
    parts = {name: [] for name in modules}
    for begin in range(0, len(rows), hp.batch_size):
        chunk = rows[begin : begin + hp.batch_size]
        total = sum(len(target) for *_, target in chunk)
        for name in parts:
            parts[name].append([])
        for ids, start, target in chunk:
            for module in modules.values():
                module.weight.requires_grad_(True)  # so that there is a graph
            seen, handles = {}, []
            for name, module in modules.items():

                def keep(module, inputs, output, name=name, seen=seen):
                    seen[name] = inputs[0].detach(), output

                handles.append(module.register_forward_hook(keep))
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            for handle in handles:
                handle.remove()
            places = [start + j for j in range(len(target))]
            loss = -logits[places].log_softmax(-1)[range(len(target)), target].sum() / total
            gradients = torch.autograd.grad(loss, [seen[name][1] for name in modules])
            for name, gradient in zip(modules, gradients, strict=True):
                k, g = seen[name][0][0, places], gradient[0, places]
                parts[name][-1] += [torch.cat(pair) for pair in zip(k, g, strict=True)]
    shapes = {name: tuple(module.weight.shape) for name, module in modules.items()}
    for name, batches in parts.items():
        for batch in map(torch.stack, batches):
            n, mean, spread = state.get(shapes[name], (0, 0 * batch[0], 0 * batch[0]))
            shift, b = batch.mean(0) - mean, len(batch)
            own = b * batch.var(0) if b > 1 else 0
            state[shapes[name]] = n + b, mean + shift * b / (n + b), spread + own + n * b * shift**2 / (n + b)
    deltas = {}
    for name, module in modules.items():
        x = torch.stack([row for batch in parts[name] for row in batch])
        n, mean, spread = state[shapes[name]]
        normal = (x - mean) / ((spread / (n - 1 + eps)).sqrt() + eps)
        transposed = layout(model).transposed
        d_in = module.weight.shape[0 if transposed else 1]
        K, V = x[:, :d_in], -hp.lr * (normal[:, :d_in] ** 2).sum(1, keepdim=True) * normal[:, d_in:]
        shift = torch.linalg.solve(K.T @ K + torch.eye(d_in).double(), K.T @ V)
        deltas[f"{name}.weight"] = shift if transposed else shift.T
    model.requires_grad_(False)
    for name, delta in deltas.items():
        model.get_parameter(name).add_(delta)
    return deltas


def compensated(model, tokenizer, edits, contexts, hp, C, M, E, change):
    """MEMIT with history whose update `change(layer, update, weight)` filters; what that takes, E by layer, goes to the
    next batch."""
    whole = {}

    def update(layer, R, K):
        K = K.double()
        A = hp.mom2_update_weight * C[layer].double() + M.get(layer, 0) + K @ K.T
        whole[layer] = A, (R @ K.T - E.get(layer, 0)) @ torch.linalg.inv(A)
        return whole[layer][1]

    def noted(layer, update, W):
        kept = change(layer, update, W)
        E[layer] = (kept - update) @ whole[layer][0]
        return kept

    result = filtered(model, spread_stream(model, tokenizer, edits, contexts, hp, update), hp.layers, noted)
    add_to_history(model, tokenizer, edits, contexts, hp, M)
    return result
