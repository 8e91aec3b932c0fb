"""What the ids of a data set's labels mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: of every class by its id, 0 to 255; an id without a name is an error in a label.
        void: ids left out of every metric.
        anomalous: ids that are out of distribution.
    """

    names: Mapping[int, str]
    void: frozenset[int]
    anomalous: frozenset[int]

    @classmethod
    def named(cls, names: Mapping[int, str], anomalous: Iterable[str]) -> Classes:
        """Classes of which one is called void and those of the given names are anomalous.

        Raises:
            KeyError: a name that no class has.
        """
        ids = {name: id_ for id_, name in names.items()}
        return cls(names, frozenset({ids["void"]}), frozenset(ids[name] for name in anomalous))
