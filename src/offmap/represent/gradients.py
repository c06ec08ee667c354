"""Signals of how much each neuron moves the output away from uniform: neuron activation coverage."""

from collections.abc import Sequence

from torch import Tensor

from offmap.represent.headed import PENULTIMATE, Family, Headed, Run


def nac_signals(run: Run, names: Sequence[str]) -> dict[str, Tensor]:
    """``nac.<layer> (N, C)``: mean over space of ``F * dKL(u || p) / dF``, u uniform, p the softmax; one backward pass for all layers.

    A layer whose output a later part changes in place is taken after the change, activations and gradient alike.

    Raises:
        ConfigError: one logit, or no gradients from the logits to one of the layers.
    """
    run.net.two_or_more("nac")
    calls = run.plain.calls
    layers = [name.partition(".")[2] for name in names]
    states = [calls[run.net.head].given if layer == PENULTIMATE else calls[layer].gave for layer in layers]
    divergence = -run.logits.float().log_softmax(dim=1).mean(dim=1)
    gradients = run.gradient(divergence.sum(), states)
    return {name: _mean(state.detach() * slope).float() for name, state, slope in zip(names, states, gradients, strict=True)}


def _mean(values: Tensor) -> Tensor:
    return values.flatten(2).mean(dim=2) if values.ndim > 2 else values


def _provided(net: Headed) -> frozenset[str]:
    return frozenset(f"nac.{layer}" for layer in (*net.maps, PENULTIMATE))


NAC = Family(_provided, nac_signals, gradients=True)
