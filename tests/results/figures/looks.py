"""What a drawing holds, in plain numbers."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def points(line: Line2D) -> list[list[float]]:
    return [[float(x), float(y)] for x, y in np.asarray(line.get_xydata())]


def right_end(collection: Collection) -> float:
    paths = collection.get_paths()
    return max((float(np.asarray(path.vertices)[:, 0].max()) for path in paths), default=0.0)
