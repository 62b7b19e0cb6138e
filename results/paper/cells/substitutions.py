"""What ran instead of the paper's model, or instead of its network in the allreduce study.

Every rendering marks such a value with the name of what ran, and no claim is judged by it.
"""

from results.paper.cell import Cell, Place, StudiedNetwork
from results.paper.cells.result_set import ResultSet
from results.records.schema import RunRecord

# Exhibits of one model, or of none; in all others the row is the model.
_MODEL_OF = {
    "figure1": "llama3.1-8b", "figure3": "", "figure4": "llama2-7b", "figure5": "llama2-70b",
    "validation": "",
}  # fmt: skip
_STUDIED = "figure3"
_PAPER = StudiedNetwork(8, 300)


def expected_model(place: Place) -> str:
    """The model that the paper has there; empty where it has none."""
    exhibit = place.exhibit.rstrip("abc")
    return _MODEL_OF.get(exhibit, place.row)


def stand_in(results: ResultSet, cell: Cell) -> str:
    """Why a cell is of another size than the paper's; empty if it is not."""
    name = stand_in_name(results, cell)
    if cell.place.exhibit == _STUDIED:
        of = f"{_PAPER.devices} at {_PAPER.rate_mbps:g} Mbit/s"
        return f"{name} in the place of {of}" if name else ""
    if name == "smoke":
        return "smoke: of another size than the paper's"
    return f"{name} ran in the place of {expected_model(cell.place)}" if name else ""


def stand_in_name(results: ResultSet, cell: Cell) -> str:
    """What ran in the place of the paper's: a model, or fewer devices; empty where none did."""
    if cell.place.exhibit == _STUDIED:
        return _other_network(cell)
    record = results.records.get(cell.run_id)
    if record is not None and record.config.model.name and expected_model(cell.place):
        return other_model(cell.place, record)
    return "smoke" if cell.scale == "smoke" and cell.evidence == "measured" else ""


def stand_in_names(results: ResultSet, exhibit: str) -> list[str]:
    """Of all that ran for an exhibit, each once."""
    cells = [cell for cell in results.exhibit(exhibit) if cell.ran]
    return sorted({name for cell in cells if (name := stand_in_name(results, cell))})


def other_model(place: Place, record: RunRecord) -> str:
    """The model that ran where the paper has another one; empty where it is the paper's."""
    name, expected = record.config.model.name, expected_model(place)
    return name if expected and name != expected else ""


def _other_network(cell: Cell) -> str:
    """`4 devices`, `8 devices at 1000 Mbit/s`: a network other than the paper's."""
    if cell.evidence != "measured" or cell.value is None:
        return ""
    if cell.network is None:
        return "an unknown number of devices"
    if cell.network.rate_mbps not in (None, _PAPER.rate_mbps):
        return str(cell.network)
    return "" if cell.network.devices == _PAPER.devices else f"{cell.network.devices} devices"
