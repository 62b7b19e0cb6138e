"""Numbers with bounds, of which the types of a record are made."""

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Amount = Annotated[float, Meta(ge=0, lt=1e30)]
Factor = Annotated[float, Meta(ge=1, lt=1e30)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
