"""Signals of a classifier that cost more than its ordinary pass, by the kinds that there are."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from offmap.core.signals import base_of
from offmap.represent.augmented import TTA
from offmap.represent.gradients import NAC
from offmap.represent.headed import Family, Headed, Run
from offmap.represent.perturbed import ADASCALE, ODIN
from offmap.represent.stochastic import MC_DROPOUT
from offmap.represent.tail import RANKFEAT

FAMILIES: tuple[Family, ...] = (ODIN, ADASCALE, NAC, RANKFEAT, MC_DROPOUT, TTA)


def provided(net: Headed) -> frozenset[str]:
    """Base names of all that a network gives; a name without settings asks for those of the paper."""
    return frozenset().union(*(family.provided(net) for family in FAMILIES))


def asked(net: Headed, names: Iterable[str]) -> Mapping[Family, Sequence[str]]:
    """Those of the names that are signals of further passes, by family, in the order of the network's layers."""
    order = [f"{kind}.{layer}" for kind in ("nac", "rankfeat.logits") for layer in net.maps]
    rank = {name: i for i, name in enumerate(order)}
    known = sorted(names, key=lambda name: (rank.get(base_of(name), len(rank)), name))
    found: dict[Family, list[str]] = {}
    for family in FAMILIES if known else ():
        gives = family.provided(net)
        found[family] = [name for name in known if base_of(name) in gives]
    return {family: few for family, few in found.items() if few}


def further(run: Run, families: Mapping[Family, Sequence[str]]) -> dict[str, Tensor]:
    """The signals asked for, of one chunk of images."""
    out: dict[str, Tensor] = {}
    for family, names in families.items():
        out |= family.signals(run, names)
    return out
