"""What frameworks call the same tensor: names reduced to what they have in common. Pure text.

PyTorch says `fc1.weight` and `bn.running_mean`, Keras `fc1/kernel` and `bn/moving_mean`, flax `params.fc1.kernel` and
`batch_stats.bn.mean`.
"""

from __future__ import annotations

import re

_ROLES = {
    "kernel": "weight",
    "embeddings": "weight",
    "embedding": "weight",
    "gamma": "weight",
    "scale": "weight",
    "depthwise_kernel": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "mean": "running_mean",
    "var": "running_var",
    "variance": "running_var",
    "recurrent_kernel": "weight_hh",
}
# What the projections of an attention layer are called by Keras and Flax, in Hugging Face's models, by others.
_ATTENTION = {
    **dict.fromkeys(("query", "query_dense", "q_proj", "q", "wq", "to_q", "q_lin"), "query"),
    **dict.fromkeys(("key", "key_dense", "k_proj", "k", "wk", "to_k", "k_lin"), "key"),
    **dict.fromkeys(("value", "value_dense", "v_proj", "v", "wv", "to_v", "v_lin"), "value"),
    **dict.fromkeys(("attention_output", "output_dense", "out", "out_proj", "o_proj", "wo", "o", "out_lin"), "out"),
}
_CELLS = frozenset({"lstm_cell", "gru_cell", "simple_rnn_cell", "cell"})
_CONTAINERS = frozenset({"params", "batch_stats", "model", "module", "variables"})
_RECURRENT = re.compile(r"(weight|bias)_(ih|hh)(_l\d+(?:_reverse)?)?")
_STATE = re.compile(r"optimizer(?:\.\d+)?\.state\.(.+)\.([^./]+)", re.DOTALL)
_NUMBER_OF_OUTPUT = re.compile(r":\d+$")

_KNOWN = frozenset({"weight", "bias", "running_mean", "running_var", "weight_hh", "bias_hh"})
COUNTERS = frozenset({"num_batches_tracked", "seed_generator_state"})  # kept by one framework, unknown to the other


def parts_of(name: str) -> list[str]:
    """Return the components of a name, whatever separates them."""
    return [part for part in re.split(r"[./]", _NUMBER_OF_OUTPUT.sub("", name)) if part]


def last_part(name: str) -> str:
    """Return the last component of a name: `kernel`, `weight`, `running_mean`."""
    return (parts_of(name) or [name])[-1]


def layer_of(name: str) -> str:
    """Return the name without its last component, "" where it has only one."""
    return ".".join(parts_of(name)[:-1])


def role_of(name: str) -> str:
    """Return what a tensor is to its layer, in PyTorch's words; an optimizer's state has its key in front."""
    state = _STATE.fullmatch(name)
    if state is not None:
        return f"{state[2]}:{role_of(state[1])}"
    last = last_part(name).lower()
    recurrent = _RECURRENT.fullmatch(last)
    if recurrent is not None:
        return recurrent[1] if recurrent[2] == "ih" else f"{recurrent[1]}_{recurrent[2]}"
    return _ROLES.get(last, last)


def may_be_alike(name: str, other: str) -> bool:
    """Say whether two tensors can be the same by their roles: a mean is no variance, an unknown role may be any.

    Neither is a query a key, where both names say which of them they are.
    """
    parts = attention_part(name), attention_part(other)
    if all(parts) and parts[0] != parts[1]:
        return False
    roles = role_of(name), role_of(other)
    return roles[0] == roles[1] or not all(role.rpartition(":")[2] in _KNOWN for role in roles)


def attention_part(name: str) -> str:
    """Return which projection of an attention layer a tensor is of: query, key, value, out, or "" where none is named.

    A word of one letter, or that other layers may be called by too, only counts where another one is of attention.
    """
    state = _STATE.fullmatch(name)
    parts = [part.lower() for part in parts_of(state[1] if state is not None else name)]
    if len(parts) < 2:
        return ""
    word = parts[-2]
    is_plain = word in {"q", "k", "v", "o", "out", "key", "value", "query"}
    if is_plain and not any("att" in part or part == "mha" for part in parts[:-2]):
        return ""
    return _ATTENTION.get(word, "")


def reduced(name: str) -> str:
    """Return what is left of a name without containers, separators and dialect; equal for what is called alike."""
    state = _STATE.fullmatch(name)
    if state is not None:
        return f"{state[2]}:{reduced(state[1])}"
    parts = [part.lower() for part in parts_of(name)]
    while len(parts) > 2 and parts[0] in _CONTAINERS:
        parts = parts[1:]
    layer = [part for part in parts[:-1] if part not in _CELLS]
    return re.sub(r"[_-]", "", "".join(layer)) + "." + role_of(name)


def is_transposing(name: str, other: str) -> bool:
    """Say whether `name` is a kernel that `other`, a weight, keeps with its axes in PyTorch's order."""
    last, other_last = last_part(name).lower(), last_part(other).lower()
    is_weight = other_last == "weight" or other_last.startswith(("weight_ih", "weight_hh"))
    return last in {"kernel", "recurrent_kernel"} and is_weight


def is_gru(name: str, other: str) -> bool:
    """Say whether one of two names is of a gated recurrent unit."""
    return "gru" in name.lower() or "gru" in other.lower()


def is_recurrent(name: str, other: str) -> bool:
    """Say whether one of two names is of a recurrent layer, whose axes hold gates."""
    return any(
        _RECURRENT.fullmatch(last_part(n).lower()) or re.search(r"lstm|gru|rnn|recurrent", n.lower())
        for n in (name, other)
    )
