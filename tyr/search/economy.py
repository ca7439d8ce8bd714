"""What saves the search tokens: five choices, each of them the paper's unless it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from tyr.errors import ConfigError
from tyr.search.archive import Archive, NoArchive
from tyr.search.racing import NoRacing, Racing
from tyr.search.samples import IndependentSamples, Samples
from tyr.search.start import CentreStart, Start
from tyr.search.surrogate import NoSurrogate, Surrogate


@dataclass(frozen=True)
class Economy:
    """The options of a search that trade assumptions for tokens.

    Args:
        start: where an iteration starts (paper: the centre).
        surrogate: which offspring are evaluated at all (paper: all that are drawn).
        racing: when a candidate leaves a stage (paper: at its end).
        samples: which positions a stage uses (paper: new ones every time).
        archive: which losses are used again (paper: none but the parent's last).

    Raises:
        ConfigError: one of them is a word instead of an object.
    """

    start: Start = field(default_factory=CentreStart)
    surrogate: Surrogate = field(default_factory=NoSurrogate)
    racing: Racing = field(default_factory=NoRacing)
    samples: Samples = field(default_factory=IndependentSamples)
    archive: Archive = field(default_factory=NoArchive)

    def __post_init__(self) -> None:
        for part in fields(self):
            word = getattr(self, part.name)
            if isinstance(word, str):
                raise ConfigError(
                    f"search.economy.{part.name}={word} replaces an object by a word; write "
                    f"{part.name}={word}"
                )

    @property
    def remembers(self) -> bool:
        """Whether losses must be kept between generations."""
        return self.archive.keeps or self.surrogate.learns
