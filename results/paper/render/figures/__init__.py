"""The paper's figures, drawn by matplotlib from a book of cells and its records alone.

`draw.py` knows which module draws which figure; `style.py` sets the kinds of evidence apart. Only
`results/paper/render/main.py` imports this package, and only when a figure is wanted: matplotlib is
slow to load. Read `draw.draw` first.
"""
