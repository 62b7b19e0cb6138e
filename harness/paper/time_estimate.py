"""How long the rest of many runs will take: predictions, corrected by what has passed. Pure."""

# Seconds of predictions that are believed before anything is known.
_BELIEVED_S = 60.0


class TimeLeft:
    """Learns by how much predictions are off."""

    def __init__(self) -> None:
        self._predicted_s = self._taken_s = _BELIEVED_S

    @property
    def factor(self) -> float:
        """How many times longer things take than predicted."""
        return self._taken_s / self._predicted_s

    def passed(self, predicted_s: float, taken_s: float) -> None:
        """Something that was predicted has been done."""
        self._predicted_s += predicted_s
        self._taken_s += taken_s

    def about_s(self, predicted_s: float) -> float:
        """What so much will take."""
        return predicted_s * self.factor


def time_words(seconds: float) -> str:
    """A time as people say it: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
